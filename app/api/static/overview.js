// How the service is doing: figures of now, and the last minutes as this page saw them.

import { histogram, timeLines } from "./charts.js";
import { byId, fact, setText } from "./dom.js";
import { NOTHING, count, counted, duration, measure } from "./format.js";

const LONGEST_S = 600;
// A gap so long was a pause or an outage; lines break there.
const GAP_S = 5;
const HIGH = 0.5;

const samples = [];
let scores = null;
let throughput = null;
let latency = null;

/** Make the charts' places ready. */
export function startOverview() {
  scores = histogram(byId("scores-chart"));
  throughput = timeLines(byId("throughput-chart"), ["events a second"]);
  latency = timeLines(byId("latency-chart"), ["median", "p95", "p99"]);
}

/** Keep the figures of `GET v1/stats` for the curves, whatever view is open. */
export function keepSample(stats) {
  const time = Date.now() / 1000;
  const last = samples[samples.length - 1];
  if (last && time - last[0] > GAP_S) samples.push([(time + last[0]) / 2, null, null, null, null]);
  const { p50, p95, p99 } = stats.latency_ms;
  samples.push([time, stats.rates.events_per_s, p50, p95, p99]);
  while (samples[0][0] < time - LONGEST_S) samples.shift();
}

/** Show the answer of `GET v1/stats`. */
export function showOverview(stats) {
  showTiles(stats);
  showScores(stats.scores);
  const column = (at) => samples.map((sample) => sample[at]);
  const seen = `over the last ${duration(samples[samples.length - 1][0] - samples[0][0])}`;
  throughput.show([column(0), column(1)], `Events a second ${seen}, now ${measure(stats.rates.events_per_s)}.`);
  latency.show([0, 2, 3, 4].map(column),
    `Answer time of events ${seen}, now median ${measure(stats.latency_ms.p50)} and p99 ${measure(stats.latency_ms.p99)} ms.`);
}

function showTiles(stats) {
  const { latency_ms: times, outcomes, queue } = stats;
  const ended = outcomes.purchase + outcomes.none;
  const tiles = [
    ["Live sessions", count(stats.live_sessions), `${count(stats.open_sessions)} open`],
    ["Events a second", measure(stats.rates.events_per_s), `mean of ${duration(stats.rates.window_s)}`],
    ["Answer time", times.p95 === null ? NOTHING : `${measure(times.p95)} ms`, `p95; median ${measure(times.p50)}`],
    ["Bought", count(outcomes.purchase), `of ${counted(ended, "session")} that ended in ${duration(outcomes.window_s)}`],
    ["Waiting events", count(queue.length), `of at most ${count(queue.capacity)}`],
    ["Replicas", count(stats.replicas), counted(stats.totals.errors, "error") + " since they started"],
  ];
  const list = byId("tiles");
  if (list.children.length !== tiles.length) list.replaceChildren(...tiles.map((tile) => fact(...tile)));
  tiles.forEach(([, value, more], at) => {
    const [, shown, note] = list.children[at].children;
    setText(shown, value);
    setText(note, more);
  });
}

function showScores({ edges, counts }) {
  const middles = counts.map((_count, at) => (edges[at] + edges[at + 1]) / 2);
  const total = counts.reduce((sum, value) => sum + value, 0);
  const high = counts.reduce((sum, value, at) => sum + (edges[at] >= HIGH - 1e-9 ? value : 0), 0);
  const words = total
    ? `${count(high)} of ${counted(total, "open session")} at ${100 * HIGH}% or more.`
    : "No open session.";
  scores.show([middles, counts], `Histogram of scores. ${words}`);
  setText(byId("scores-note"), words);
}
