// Service status: current figures, and curves over the last minutes since the page was opened.

import { histogram, timeLines } from "./charts.js";
import { byId, fact, setText } from "./dom.js";
import { NO_VALUE, count, counted, duration, measure, money } from "./format.js";

const WINDOW_S = 600;
// A longer gap between samples is a pause or an outage; the curves break there.
const GAP_S = 5;
const HIGH_SCORE = 0.5;

const samples = [];
let scores = null;
let throughput = null;
let latency = null;

/** Create the charts. Call once. */
export function startOverview() {
  scores = histogram(byId("scores-chart"));
  throughput = timeLines(byId("throughput-chart"), ["events per second"]);
  latency = timeLines(byId("latency-chart"), ["median", "p95", "p99"]);
}

/** Add a response of `GET v1/stats` to the curves. Called in every view, so that the curves have no gaps. */
export function keepSample(stats) {
  const time = Date.now() / 1000;
  const last = samples[samples.length - 1];
  if (last && time - last[0] > GAP_S) samples.push([(time + last[0]) / 2, null, null, null, null]);
  const { p50, p95, p99 } = stats.latency_ms;
  samples.push([time, stats.rates.events_per_s, p50, p95, p99]);
  while (samples[0][0] < time - WINDOW_S) samples.shift();
}

/** Show a response of `GET v1/stats`. */
export function showOverview(stats) {
  showTiles(stats);
  showScores(stats.scores);
  const column = (at) => samples.map((sample) => sample[at]);
  const period = `over the last ${duration(samples[samples.length - 1][0] - samples[0][0])}`;
  throughput.show([column(0), column(1)], `Events per second ${period}, now ${measure(stats.rates.events_per_s)}.`);
  const { p50, p99 } = stats.latency_ms;
  latency.show([0, 2, 3, 4].map(column),
    `Response time of events ${period}, now median ${measure(p50)} and p99 ${measure(p99)} ms.`);
}

function showTiles(stats) {
  const { outcomes, queue } = stats;
  const { p50, p95 } = stats.latency_ms;
  const tiles = [
    ["Live sessions", count(stats.live_sessions), `${count(stats.open_sessions)} open`],
    ["Events per second", measure(stats.rates.events_per_s), `mean over ${duration(stats.rates.window_s)}`],
    ["Response time", p95 === null ? NO_VALUE : `${measure(p95)} ms`, `p95; median ${measure(p50)}`],
    purchases(outcomes),
    atStake(stats.at_stake),
    ["Queue", count(queue.length), `of ${count(queue.capacity)} events`],
    ["Replicas", count(stats.replicas), counted(stats.totals.errors, "error") + " since start"],
  ];
  const list = byId("tiles");
  if (list.children.length !== tiles.length) list.replaceChildren(...tiles.map((tile) => fact(...tile)));
  tiles.forEach(([, value, more], at) => {
    const [, shown, note] = list.children[at].children;
    setText(shown, value);
    setText(note, more);
  });
}

/** The sessions that bought among those that have had time to end with either outcome. */
function purchases({ purchase, none, revenue = [], pending, pending_s: wait, window_s: window }) {
  const ended = purchase + none;
  return ended === 0
    ? ["Purchases", "not yet known", `${counted(pending, "ended session")}; they count ${duration(wait)} after they began`]
    : ["Purchases", count(purchase), `${revenue.length ? `worth ${money(revenue)}; ` : ""}of ${counted(ended, "ended session")} in ${duration(window)}; ${count(pending)} not yet counted`];
}

/** Cart value times probability, summed over open sessions. */
function atStake({ values, complete, sessions }) {
  const [first, ...others] = values.map(({ currency, at_stake: value }) => money([{ currency, value }]));
  const carts = values.reduce((sum, { carts: number }) => sum + number, 0);
  const basis = complete ? counted(carts, "filled cart") : `${counted(carts, "filled cart")} of the likeliest ${count(sessions)}, so at least`;
  return ["At stake", first ?? NO_VALUE, others.length ? `and ${others.join(" and ")}; ${basis}` : basis];
}

function showScores({ edges, counts }) {
  const middles = counts.map((_count, at) => (edges[at] + edges[at + 1]) / 2);
  const total = counts.reduce((sum, value) => sum + value, 0);
  const high = counts.reduce((sum, value, at) => sum + (edges[at] >= HIGH_SCORE - 1e-9 ? value : 0), 0);
  const summary = total
    ? `${count(high)} of ${counted(total, "open session")} at ${100 * HIGH_SCORE}% or above.`
    : "No open sessions.";
  scores.show([middles, counts], `Histogram of scores. ${summary}`);
  setText(byId("scores-note"), summary);
}
