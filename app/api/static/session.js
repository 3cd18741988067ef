// View of one session: its events, and the probability after each event.

import { get } from "./api.js";
import { probabilityTrend } from "./charts.js";
import { secondsSince } from "./clock.js";
import { byId, element, fact, isolated, setText } from "./dom.js";
import { NO_VALUE, count, dateAndTime, duration, outcomeLabel, percent, points, timeOfDay } from "./format.js";

let chart = null;
let sessionId = null;
let traced = null;
let tracedSummary = null;

/** Create the chart. Call once. */
export function startSession() {
  chart = probabilityTrend(byId("session-chart"), markEvent, (at) => points(traced.trace[at].delta?.points));
  byId("ask-why").addEventListener("click", askWhy);
}

/** Open the view of a session. The view stays empty until `refreshSession` gets a response. */
export function openSession(id) {
  if (id === sessionId) return;
  sessionId = id;
  traced = null;
  tracedSummary = null;
  byId("session-title").replaceChildren("Session ", isolated(id));
  byId("session-parts").hidden = true;
  byId("session-outcome").hidden = true;
  clearWhy();
  setText(byId("session-summary"), "Loading the session …");
}

/**
 * Request the open session and show it. The page requests the trace only after a change, because the service computes
 * the trace from all events.
 * @throws {ApiError} for every failure except a missing session.
 */
export async function refreshSession() {
  const id = sessionId;
  const path = `sessions/${encodeURIComponent(id)}`;
  try {
    const summary = await get(path);
    if (id !== sessionId) return;
    if (hasChanged(summary)) {
      const response = await get(`${path}?trace=true`);
      if (id !== sessionId) return;
      if (traced?.trace.length !== response.trace.length) clearWhy();
      traced = response;
      tracedSummary = summary;
      showTrace();
    }
    showSummary(summary);
  } catch (error) {
    if (id !== sessionId) return;
    // 422: the URL contains no valid session id.
    if (error.kind !== "missing" && error.status !== 422) throw error;
    showMissing();
  }
}

/** Ask which inputs moved the last event's probability; the service computes this on request only. */
async function askWhy() {
  const id = sessionId;
  setText(byId("why-note"), "Asking the model …");
  try {
    const { why } = await get(`sessions/${encodeURIComponent(id)}?why=true`);
    if (id !== sessionId) return;
    setText(byId("why-note"), "");
    showWhy(why);
  } catch (error) {
    if (id === sessionId) setText(byId("why-note"), error.message);
  }
}

const SMALLEST_POINTS = 0.05;

function showWhy(why) {
  byId("why").hidden = false;
  setText(byId("why-summary"), why
    ? `Event ${count(why.event)}, ${why.event_name}: from ${percent(why.before)} to ${percent(why.after)}, ${points(why.change.points)} points.`
    : "No event was folded yet.");
  const reasons = why?.reasons ?? [];
  const shown = reasons.filter((reason) => Math.abs(reason.points) >= SMALLEST_POINTS);
  const rest = reasons.length - shown.length;
  byId("why-reasons").replaceChildren(
    ...shown.map((reason) => element("li", { "data-sign": reason.points < 0 ? "down" : "up" }, isolated(reason.text))),
    ...(rest ? [element("li", { class: "note" }, `${count(rest)} more inputs with less than 0.05 points each`)] : []));
}

function clearWhy() {
  byId("why").hidden = true;
  setText(byId("why-note"), "");
}

function hasChanged(summary) {
  return tracedSummary === null || ["events", "last_seen", "outcome", "model"].some((name) => summary[name] !== tracedSummary[name]);
}

function showMissing() {
  byId("session-outcome").hidden = true;
  setText(byId("session-summary"), traced
    ? "The service no longer has this session: the session expired or was deleted. The page shows the last data received."
    : "The service has no session with this id: no event had this id, or the session expired.");
}

function showSummary(summary) {
  const outcome = byId("session-outcome");
  outcome.hidden = false;
  outcome.dataset.state = summary.outcome;
  setText(outcome, outcomeLabel(summary.outcome));
  setText(byId("session-summary"), {
    purchase: "The session ended in a purchase, so it has no probability any more. Below are those before the purchase.",
    none: "The session ended without a purchase.",
  }[summary.outcome] ?? "");
  const idle_s = secondsSince(summary.last_seen);
  const length_s = (Date.parse(summary.last_seen) - Date.parse(summary.first_seen)) / 1000;
  const tiles = [
    ["Probability", percent(summary.probability), summary.outcome === "open" ? "after its last event" : "the outcome is known"],
    ["Events", count(summary.events), `over ${duration(length_s)}`],
    ["Last seen", idle_s === null ? NO_VALUE : `${duration(idle_s)} ago`, dateAndTime(summary.last_seen)],
    ["Model", element("code", {}, summary.model), "computed the last probability"],
  ];
  byId("session-tiles").replaceChildren(...tiles.map((tile) => fact(...tile)));
}

function showTrace() {
  const { trace, trace_model: traceModel, model } = traced;
  byId("session-parts").hidden = false;
  const values = trace.map((point) => point.probability);
  const last = values.length ? percent(values[values.length - 1]) : NO_VALUE;
  chart.show([trace.map((_point, at) => at + 1), values],
    `Probability after each of ${count(values.length)} events, now ${last}. The table below lists every value.`);
  setText(byId("session-note"), traceModel === model
    ? ""
    : `The current model ${traceModel} computed these probabilities. The last response to an event came from model ${model}.`);
  byId("session-events").replaceChildren(...trace.map((point, at) => element("tr", { role: "row" },
    cell("number", at + 1),
    cell("time", element("time", { datetime: point.timestamp, title: dateAndTime(point.timestamp) }, timeOfDay(point.timestamp))),
    cell("event", isolated(point.event_name), ...(point.interventions ?? []).map(decision)),
    cell("number probability", percent(point.probability)),
    cell("number delta", element("span", { title: oddsText(point.delta) }, points(point.delta?.points))),
    cell("item", isolated(point.item_id ?? NO_VALUE)))));
}

const oddsText = (delta) => (delta ? `${delta.log_odds < 0 ? "−" : "+"}${Math.abs(delta.log_odds).toFixed(2)} log-odds` : "the first event");

const cell = (kind, ...children) => element("td", { role: "cell", class: kind }, ...children);

/** Return the mark of a rule that fired at an event, or in the idle time after it. */
function decision({ name, group, probability, decided, idle }) {
  const when = `${dateAndTime(decided)}, at ${percent(probability)}${idle ? ", after idle time" : ""}`;
  return element("span", { class: "decision", "data-group": group, title: when },
    isolated(name), group === "control" ? ": held out" : ": treated");
}

/** Highlight the table row of the point under the pointer. */
function markEvent(index) {
  [...byId("session-events").children].forEach((row, at) => row.classList.toggle("marked", at === index));
}
