// The model in use, and the model card from its artifact.

import { byId, element, fact, isolated, setText, table } from "./dom.js";
import { NO_VALUE, count, dateAndTime, measure, dateOnly } from "./format.js";

const MAX_DEPTH = 4;
const MAX_ITEMS = 60;

/** Show a response of `GET v1/model`. */
export function showModel(model) {
  const { manifest } = model;
  byId("open-access").hidden = model.access !== "open";
  setText(byId("model-basis"), `loaded ${dateAndTime(model.loaded_at)}`);
  const facts = element("dl", { class: "tiles" },
    fact("Fingerprint", element("code", {}, model.fingerprint)),
    fact("Exported", manifest.created ? dateOnly(manifest.created) : NO_VALUE),
    fact("Inputs", count(manifest.features?.length), `${count(manifest.event_names?.length)} event names`),
    fact("Device", model.device),
    fact("State per session", `at most ${count(model.state_bytes)} bytes`, model.state_dtype));
  const card = manifest.model_card;
  const hasCard = card && Object.keys(card).length > 0;
  const parts = hasCard
    ? collapsible(card)
    : collapsible({ quality: manifest.metrics, data: manifest.data, training: manifest.training });
  byId("model-facts").replaceChildren(facts,
    element("p", { class: "note" }, hasCard
      ? "The model card, written into the artifact at export."
      : "The artifact has no model card. These are entries of its manifest."),
    ...parts);
}

/** Return each entry of an object as a collapsible part; entries without content are left out. */
function collapsible(object) {
  return Object.entries(object)
    .filter(([, value]) => !isEmpty(value))
    .map(([name, value], at) => element("details", { open: at === 0 },
      element("summary", {}, title(name)), render(value, title(name), 0)));
}

const isEmpty = (value) => value === null || value === undefined || value === ""
  || (typeof value === "object" && Object.keys(value).length === 0);
const isScalar = (value) => value === null || typeof value !== "object";

/** Return `log_loss` as "Log loss". */
const title = (name) => {
  const spaced = String(name).replaceAll("_", " ");
  return spaced.charAt(0).toUpperCase() + spaced.slice(1);
};

/** Return any JSON value as elements: a list of objects as a table, an object as names and values, text as a paragraph. */
function render(value, label, depth) {
  if (isScalar(value) || isEstimate(value)) return element("p", {}, isolated(formatted(value)));
  if (depth >= MAX_DEPTH) return element("p", {}, element("code", {}, JSON.stringify(value)));
  if (!Array.isArray(value)) return renderObject(value, depth);
  const items = value.slice(0, MAX_ITEMS);
  if (items.length && items.every((item) => !isScalar(item) && !Array.isArray(item))) return renderTable(items, label);
  if (items.every((item) => typeof item !== "string" || item.length < 30) && items.every(isScalar)) {
    return element("p", {}, isolated(items.map(formatted).join(", ")), value.length > items.length ? ", …" : null);
  }
  return element("ul", {}, ...items.map((item) => element("li", {}, render(item, label, depth + 1))));
}

function renderObject(object, depth) {
  const entries = Object.entries(object).slice(0, MAX_ITEMS);
  if (entries.length && entries.every(([, value]) => !isScalar(value) && !Array.isArray(value))) {
    return renderTable(entries.map(([name, value]) => ({ " ": title(name), ...value })), "");
  }
  return element("dl", { class: "facts" }, ...entries.map(([name, value]) => element("div", {},
    element("dt", {}, title(name)), element("dd", {}, render(value, title(name), depth + 1)))));
}

function renderTable(records, label) {
  const items = records.map(flattened);
  const names = [...new Set(items.flatMap((item) => Object.keys(item)))];
  const isNumber = (name) => items.some((item) => typeof item[name] === "number" || isEstimate(item[name]));
  const columns = names.map((name) => ({ title: title(name), number: isNumber(name) }));
  const rows = items.map((item) => names.map((name) => isolated(formatted(item[name]))));
  return element("div", { class: "wide", tabindex: "0", role: "region", "aria-label": label || "Table" },
    table(columns, rows, label));
}

/** Flatten objects inside a record into columns: `scores: {auc: 0.7}` becomes "scores: auc". */
function flattened(record) {
  return Object.fromEntries(Object.entries(record).flatMap(([name, value]) => {
    if (isScalar(value) || Array.isArray(value) || isEstimate(value)) return [[name, value]];
    return Object.entries(value).map(([inner, part]) => [`${name}: ${inner}`, part]);
  }));
}

/** Whether a value of the card is an estimate with its confidence interval: `{value, low, high}`. */
const isEstimate = (value) => value !== null && typeof value === "object" && "value" in value && "low" in value && "high" in value;

function formatted(value) {
  if (value === null || value === undefined) return NO_VALUE;
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
