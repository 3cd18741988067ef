// Connection state: the pill in the header, the banner, the API key form and the announcements.

import { byId, setText } from "./dom.js";
import { timeOfDay } from "./format.js";

const PILLS = {
  connecting: "Connecting",
  live: "Live",
  paused: "Paused",
  hidden: "Paused in the background",
  unreachable: "Not reachable",
  unavailable: "Not available",
  overloaded: "Overloaded",
  unauthorized: "API key required",
  unexpected: "Unexpected response",
};
const FAILURES = new Set(["unreachable", "unavailable", "unauthorized", "unexpected"]);

let current = "connecting";
let halted = null;
let lastSuccess = null;

/** Announce `text` to screen readers. For changes of state only: figures that change every second are not announced. */
export function announce(text) {
  setText(byId("announcer"), text);
}

/** Show that a poll succeeded; `overload` is a sentence if the service rejects events because of load, else null. */
export function showWorking(overload) {
  lastSuccess = Date.now();
  hideKeyForm();
  if (overload) {
    change("overloaded", "The service is overloaded.");
    showBanner("warn", "The service is overloaded.", overload);
    return;
  }
  change("live", FAILURES.has(current) ? "The service responds again." : "");
  byId("banner").hidden = true;
}

function hideKeyForm() {
  const form = byId("key-form");
  // Keep the keyboard focus on a visible element.
  if (form.contains(document.activeElement)) byId("main").focus();
  form.hidden = true;
}

/** Show that a poll failed; the next one follows after `waitMs`. With null, polling is halted. */
export function showFailure(error, waitMs) {
  const [title, text] = describeFailure(error);
  const kind = FAILURES.has(error.kind) ? error.kind : "unexpected";
  const wasUnauthorized = current === "unauthorized";
  change(kind, title);
  byId("key-form").hidden = kind !== "unauthorized";
  if (kind === "unauthorized" && !wasUnauthorized) byId("key").value = "";
  // If no key was sent, the label of the form is sufficient.
  setText(byId("key-error"), kind === "unauthorized" && error.keySent ? error.message : "");
  const age = lastSuccess === null ? "" : ` The page shows data from ${timeOfDay(lastSuccess)}.`;
  const retry = waitMs === null ? "" : ` Next attempt in ${Math.max(1, Math.round(waitMs / 1000))} s.`;
  // The key form replaces the banner.
  if (kind === "unauthorized") byId("banner").hidden = true;
  else showBanner(kind === "unavailable" ? "warn" : "bad", title, `${text}${age}${retry}`);
}

/** Show that polling is halted: "paused" by the user, or "hidden" with the tab; null: polling continues. */
export function showHalted(reason) {
  halted = reason;
  showPill();
  announce({ paused: "Paused.", hidden: "" }[reason] ?? "");
}

function change(kind, announcement) {
  if (kind !== current && announcement) announce(announcement);
  current = kind;
  showPill();
}

/** Show the state. A failure has precedence over a halt, because a request of the user would fail too. */
function showPill() {
  const kind = halted !== null && !FAILURES.has(current) ? halted : current;
  byId("connection").dataset.state = kind;
  setText(byId("connection-text"), PILLS[kind]);
}

function showBanner(level, title, text) {
  byId("banner").dataset.level = level;
  setText(byId("banner-title"), title);
  setText(byId("banner-text"), text);
  byId("banner").hidden = false;
}

function describeFailure(error) {
  if (error.kind === "unreachable") return ["The service cannot be reached.", error.message];
  if (error.kind === "unauthorized") return ["The service requires an API key.", error.message];
  if (error.code === "overloaded") return ["The service is overloaded.", error.message];
  if (error.code === "shutting_down") return ["The service is shutting down.", error.message];
  if (error.code === "store_unavailable") return ["The service runs, but its Redis does not respond.", error.message];
  if (error.kind === "unavailable") return ["The service is not available.", error.message];
  return ["The service returned an unexpected response.", error.message];
}
