// Which model is live, and the card that its makers gave it.

import { byId, element, fact, isolated, setText, table } from "./dom.js";
import { NOTHING, count, dayAndTime, measure, onlyDay } from "./format.js";

const DEEPEST = 4;
const MOST_ITEMS = 60;

/** Show the answer of `GET v1/model`. */
export function showModel(model) {
  const { manifest } = model;
  byId("open-access").hidden = model.access !== "open";
  setText(byId("model-basis"), `since ${dayAndTime(model.loaded_at)}`);
  const facts = element("dl", { class: "tiles" },
    fact("Fingerprint", element("code", {}, model.fingerprint)),
    fact("Exported", manifest.created ? onlyDay(manifest.created) : NOTHING),
    fact("Inputs", count(manifest.features?.length), `${count(manifest.event_names?.length)} event names`),
    fact("Runs on", model.device),
    fact("State of a session", `at most ${count(model.state_bytes)} bytes`, model.state_dtype));
  const card = manifest.model_card;
  const hasCard = card && Object.keys(card).length > 0;
  const parts = hasCard
    ? foldedParts(card)
    : foldedParts({ quality: manifest.metrics, data: manifest.data, training: manifest.training });
  byId("model-facts").replaceChildren(facts,
    element("p", { class: "note" }, hasCard
      ? "The model card, as it was written into the artifact when the model was exported."
      : "This artifact brings no model card; here is what its manifest says."),
    ...parts);
}

/** Each entry of an object as a part that folds away; those without content are left out. */
function foldedParts(object) {
  return Object.entries(object)
    .filter(([, value]) => !isEmpty(value))
    .map(([name, value], at) => element("details", { open: at === 0 },
      element("summary", {}, words(name)), rendered(value, words(name), 0)));
}

const isEmpty = (value) => value === null || value === undefined || value === ""
  || (typeof value === "object" && Object.keys(value).length === 0);
const isPlain = (value) => value === null || typeof value !== "object";

/** `log_loss` as "Log loss". */
const words = (name) => {
  const spaced = String(name).replaceAll("_", " ");
  return spaced.charAt(0).toUpperCase() + spaced.slice(1);
};

/** Any JSON as elements: a list of like objects as a table, an object as names and values, text as a paragraph. */
function rendered(value, label, depth) {
  if (isPlain(value) || isEstimate(value)) return element("p", {}, isolated(plain(value)));
  if (depth >= DEEPEST) return element("p", {}, element("code", {}, JSON.stringify(value)));
  if (!Array.isArray(value)) return asFacts(value, depth);
  const items = value.slice(0, MOST_ITEMS);
  if (items.length && items.every((item) => !isPlain(item) && !Array.isArray(item))) return asTable(items, label);
  if (items.every((item) => typeof item !== "string" || item.length < 30) && items.every(isPlain)) {
    return element("p", {}, isolated(items.map(plain).join(", ")), value.length > items.length ? ", …" : null);
  }
  return element("ul", {}, ...items.map((item) => element("li", {}, rendered(item, label, depth + 1))));
}

function asFacts(object, depth) {
  const entries = Object.entries(object).slice(0, MOST_ITEMS);
  if (entries.length && entries.every(([, value]) => !isPlain(value) && !Array.isArray(value))) {
    return asTable(entries.map(([name, value]) => ({ " ": words(name), ...value })), "");
  }
  return element("dl", { class: "facts" }, ...entries.map(([name, value]) => element("div", {},
    element("dt", {}, words(name)), element("dd", {}, rendered(value, words(name), depth + 1)))));
}

function asTable(records, label) {
  const items = records.map(flattened);
  const names = [...new Set(items.flatMap((item) => Object.keys(item)))];
  const isNumber = (name) => items.some((item) => typeof item[name] === "number" || isEstimate(item[name]));
  const columns = names.map((name) => ({ title: words(name), number: isNumber(name) }));
  const rows = items.map((item) => names.map((name) => isolated(plain(item[name]))));
  return element("div", { class: "wide", tabindex: "0", role: "region", "aria-label": label || "Table" },
    table(columns, rows, label));
}

/** Objects inside a record as columns of its own: `scores: {auc: 0.7}` as "scores: auc". */
function flattened(record) {
  return Object.fromEntries(Object.entries(record).flatMap(([name, value]) => {
    if (isPlain(value) || Array.isArray(value) || isEstimate(value)) return [[name, value]];
    return Object.entries(value).map(([inner, part]) => [`${name}: ${inner}`, part]);
  }));
}

/** A measured number with its interval, as the card has it: `{value, low, high}`. */
const isEstimate = (value) => value !== null && typeof value === "object" && "value" in value && "low" in value && "high" in value;

function plain(value) {
  if (value === null || value === undefined) return NOTHING;
  if (isEstimate(value)) {
    const interval = value.low === null ? "" : ` (${measure(value.low, 3)} to ${measure(value.high, 3)})`;
    return measure(value.value, 3) + interval;
  }
  if (typeof value === "number") return Number.isInteger(value) ? String(value) : measure(value, 4);
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (Array.isArray(value) && value.every((item) => typeof item === "number")) {
    return value.map((item) => measure(item, 3)).join(" to ");
  }
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}
