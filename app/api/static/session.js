// One session: what its visitor did, and how the probability went with it.

import { get } from "./api.js";
import { course } from "./charts.js";
import { secondsSince } from "./clock.js";
import { byId, element, fact, isolated, setText } from "./dom.js";
import { NOTHING, count, dayAndTime, duration, outcomeWord, percent, timeOfDay } from "./format.js";

let chart = null;
let sessionId = null;
let traced = null;
let tracedSummary = null;

/** Make the chart's place ready. */
export function startSession() {
  chart = course(byId("session-chart"), markEvent);
}

/** Open the view of a session, empty until its answer is there. */
export function openSession(id) {
  if (id === sessionId) return;
  sessionId = id;
  traced = null;
  tracedSummary = null;
  byId("session-title").replaceChildren("Session ", isolated(id));
  byId("session-parts").hidden = true;
  byId("session-outcome").hidden = true;
  setText(byId("session-words"), "Asking the service …");
}

/**
 * Ask for the session that is open and show it. Its course is computed by the service, so only when there is a new event.
 * @throws {ApiError} for everything but a session that is not there.
 */
export async function refreshSession() {
  const id = sessionId;
  const path = `sessions/${encodeURIComponent(id)}`;
  try {
    const summary = await get(path);
    if (id !== sessionId) return;
    if (hasChanged(summary)) {
      const answer = await get(`${path}?trace=true`);
      if (id !== sessionId) return;
      traced = answer;
      tracedSummary = summary;
      showCourse();
    }
    showSummary(summary);
  } catch (error) {
    if (id !== sessionId) return;
    // 422: the address names something that is no session id.
    if (error.kind !== "missing" && error.status !== 422) throw error;
    showMissing();
  }
}

function hasChanged(summary) {
  return tracedSummary === null || ["events", "last_seen", "outcome", "model"].some((name) => summary[name] !== tracedSummary[name]);
}

function showMissing() {
  byId("session-outcome").hidden = true;
  setText(byId("session-words"), traced
    ? "The session has ended, and the service no longer has it. This is the last that was seen of it."
    : "There is no such session: it never was, or it ended and its idle time has passed.");
}

function showSummary(summary) {
  const outcome = byId("session-outcome");
  outcome.hidden = false;
  outcome.dataset.state = summary.outcome;
  setText(outcome, outcomeWord(summary.outcome));
  setText(byId("session-words"), {
    purchase: "The session ended in a purchase. Its probability stands still: the purchase itself is never an input.",
    none: "The session ended without a purchase.",
  }[summary.outcome] ?? "");
  const idle_s = secondsSince(summary.last_seen);
  const length_s = (Date.parse(summary.last_seen) - Date.parse(summary.first_seen)) / 1000;
  const tiles = [
    ["Probability", percent(summary.probability), "after its last event"],
    ["Events", count(summary.events), `over ${duration(length_s)}`],
    ["Last seen", idle_s === null ? NOTHING : `${duration(idle_s)} ago`, dayAndTime(summary.last_seen)],
    ["Model", element("code", {}, summary.model), "gave the last answer"],
  ];
  byId("session-tiles").replaceChildren(...tiles.map((tile) => fact(...tile)));
}

function showCourse() {
  const { trace, trace_model: traceModel, model } = traced;
  byId("session-parts").hidden = false;
  const values = trace.map((point) => point.probability);
  const last = values.length ? percent(values[values.length - 1]) : NOTHING;
  chart.show([trace.map((_point, at) => at + 1), values],
    `Probability after each of ${count(values.length)} events, now ${last}. The table below has every value.`);
  setText(byId("session-note"), traceModel === model
    ? ""
    : `Computed by model ${traceModel}, which is live now; the last answer came from model ${model}.`);
  byId("session-events").replaceChildren(...trace.map((point, at) => element("tr", {},
    element("td", { class: "number" }, at + 1),
    element("td", {}, element("time", { datetime: point.timestamp, title: dayAndTime(point.timestamp) }, timeOfDay(point.timestamp))),
    element("td", {}, isolated(point.event_name)),
    element("td", { class: "number" }, percent(point.probability)),
    element("td", { class: "item" }, isolated(point.item_id ?? NOTHING)))));
}

/** Mark the row of the point under the pointer. */
function markEvent(index) {
  [...byId("session-events").children].forEach((row, at) => row.classList.toggle("marked", at === index));
}
