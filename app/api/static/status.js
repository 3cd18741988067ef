// What the page says of itself: connected or not, and what is wrong.

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
  unauthorized: "Key needed",
  unexpected: "Trouble",
};
const FAILURES = new Set(["unreachable", "unavailable", "unauthorized", "unexpected"]);

let current = "connecting";
let halted = null;
let lastAnswer = null;

/** Say something to those who hear the page. Changes only: figures that move every second are not announced. */
export function announce(text) {
  setText(byId("announcer"), text);
}

/** The poll worked; `overload` is a sentence when the service refuses part of its events, else null. */
export function showWorking(overload) {
  lastAnswer = Date.now();
  hideKeyForm();
  if (overload) {
    change("overloaded", "The service is overloaded.");
    showBanner("warn", "The service is overloaded.", overload);
    return;
  }
  change("live", FAILURES.has(current) ? "The service answers again." : "");
  byId("banner").hidden = true;
}

function hideKeyForm() {
  const form = byId("key-form");
  // The keyboard goes on where the page has something to show now.
  if (form.contains(document.activeElement)) byId("main").focus();
  form.hidden = true;
}

/** The poll failed, and is tried again after `waitMs`; with null only when the user asks. */
export function showFailure(error, waitMs) {
  const [title, text] = failureWords(error);
  const kind = FAILURES.has(error.kind) ? error.kind : "unexpected";
  const wasUnauthorized = current === "unauthorized";
  change(kind, title);
  byId("key-form").hidden = kind !== "unauthorized";
  if (kind === "unauthorized" && !wasUnauthorized) byId("key").value = "";
  // Without a key there is nothing to say of it; the label asks for one.
  setText(byId("key-refusal"), kind === "unauthorized" && error.keySent ? error.message : "");
  const shown = lastAnswer === null ? "" : ` What is shown is from ${timeOfDay(lastAnswer)}.`;
  const again = waitMs === null ? "" : ` Trying again in ${Math.max(1, Math.round(waitMs / 1000))} s.`;
  // The form for the key says it all.
  if (kind === "unauthorized") byId("banner").hidden = true;
  else showBanner(kind === "unavailable" ? "warn" : "bad", title, `${text}${shown}${again}`);
}

/** Polling is halted: "paused" by the user, or "hidden" with the tab; null when it goes on. */
export function showHalted(reason) {
  halted = reason;
  showPill();
  announce({ paused: "Paused.", hidden: "" }[reason] ?? "");
}

function change(kind, words) {
  if (kind !== current && words) announce(words);
  current = kind;
  showPill();
}

/** A failure is said even when nothing is asked by itself: what the user asks for now would fail. */
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

function failureWords(error) {
  if (error.kind === "unreachable") return ["The service cannot be reached.", error.message];
  if (error.kind === "unauthorized") return ["The service asks for a key.", error.message];
  if (error.code === "overloaded") return ["The service is overloaded.", error.message];
  if (error.code === "shutting_down") return ["The service is shutting down.", error.message];
  if (error.code === "store_unavailable") return ["The service runs, but its Redis does not answer.", error.message];
  if (error.kind === "unavailable") return ["The service cannot answer now.", error.message];
  return ["The service answered something unexpected.", error.message];
}
