// Interventions: each rule with its switch, both groups' conversions, and the verdict.

import { get, post } from "./api.js";
import { byId, element, isolated, setText, table } from "./dom.js";
import { NO_VALUE, count, counted, dateAndTime, measure, percent } from "./format.js";
import { announce } from "./status.js";

// The counts change when sessions end, so the page does not ask each second.
const EVERY_MS = 5000;
const LEVELS = { more: "good", less: "bad", mismatch: "bad" };

let askedAt = -Infinity;
let shown = null;
let onRules = () => {};

/** Call `listener` with the names of the rules whenever these may have changed. */
export function startInterventions(listener) {
  onRules = listener;
}

/**
 * Request the rules, unless the last response is recent, and show them.
 * @throws {ApiError}
 */
export async function updateInterventions() {
  if (performance.now() - askedAt < EVERY_MS) return;
  askedAt = performance.now();
  try {
    show(await get("interventions"));
  } catch (error) {
    askedAt = -Infinity;
    throw error;
  }
}

function show({ rules, webhooks, as_of: asOf }) {
  const text = JSON.stringify([rules, webhooks]);
  if (text === shown) return;
  shown = text;
  setText(byId("interventions-basis"), rules.length ? `${counted(rules.length, "rule")}, ${dateAndTime(asOf)}` : "");
  byId("no-rules").hidden = rules.length > 0;
  const focused = document.activeElement?.dataset?.rule;
  byId("rules").replaceChildren(...rules.map(ruleCard), ...(webhooks.length ? [webhooksCard(webhooks)] : []));
  if (focused) byId("rules").querySelector(`[data-rule="${CSS.escape(focused)}"]`)?.focus();
  onRules(rules.map((rule) => rule.name));
}

function ruleCard(rule) {
  const { treatment, control_group: control, experiment } = rule;
  const heading = element("h3", {}, isolated(rule.name));
  return element("article", { class: "rule" },
    element("div", { class: "rule-head" }, heading, switchOf(rule)),
    element("p", { class: "mark", "data-level": LEVELS[experiment.finding] ?? null }, sentence(experiment.verdict)),
    element("p", { class: "note" }, firedText(rule), stateText(rule)),
    element("div", { class: "wide", tabindex: 0, role: "region", "aria-label": `Groups of ${rule.name}` }, table(
      [{ title: "Group" }, ...["Conversion", "95% interval", "Buyers", "Ended sessions", `Revenue per session${inCurrency(treatment)}`, "Fired today"]
        .map((title) => ({ title, number: true }))],
      [groupRow("Treatment", treatment), groupRow("Control", control)], `Groups of ${rule.name}`)),
    element("p", { class: "note" }, differenceText(experiment)));
}

function switchOf(rule) {
  if (!rule.in_file) return element("span", { class: "note" }, "not in the file");
  const button = element("button", {
    type: "button", role: "switch", "aria-checked": String(rule.on), "aria-label": `Rule ${rule.name}`, "data-rule": rule.name,
  }, rule.on ? "On" : "Off");
  button.addEventListener("click", () => turn(rule, button));
  return button;
}

async function turn(rule, button) {
  // Not `disabled`, which would take the focus from the button.
  if (button.getAttribute("aria-busy") === "true") return;
  button.setAttribute("aria-busy", "true");
  const on = !rule.on;
  let failure = "";
  try {
    await post(`interventions/${encodeURIComponent(rule.name)}/switch`, { on });
    announce(`Rule ${rule.name} is ${on ? "on" : "off"}.`);
  } catch (error) {
    failure = error.status === 403
      ? `The rule was not switched: the API key lacks the scope interventions:admin.`
      : `The rule was not switched: ${error.message}`;
    announce(failure);
  }
  setText(byId("switch-error"), failure);
  button.removeAttribute("aria-busy");
  askedAt = -Infinity;
  shown = null;
  await updateInterventions().catch(() => {});
}

const sentence = (text) => `${text.charAt(0).toUpperCase()}${text.slice(1)}.`;

function firedText(rule) {
  const held = rule.control > 0 ? `, of which ${count(rule.control_group.fired_today)} held out` : "";
  const pending = rule.treatment.pending + rule.control_group.pending;
  const later = pending ? `${counted(pending, "ended session")} not yet counted. ` : "";
  return `Fired ${counted(rule.fired_today, "time")} today${held}. ${later}`;
}

function stateText({ in_file: inFile, switched_off: off, control }) {
  if (!inFile) return "The file of rules does not have it any more.";
  if (off) return `Switched off ${dateAndTime(off)}.`;
  return control > 0 ? `${percent(control)} of the sessions are held out.` : "";
}

function groupRow(name, group) {
  const { low, high } = group.conversion_interval;
  return [
    name, percent(group.conversion), group.sessions ? `${percent(low)} to ${percent(high)}` : NO_VALUE,
    count(group.buyers), count(group.sessions), measure(group.revenue_per_session), count(group.fired_today),
  ];
}

const inCurrency = ({ currency }) => (currency ? `, ${currency}` : "");

/** A difference of conversions in percentage points, with its sign. */
const points = (value) => `${value < 0 ? "−" : "+"}${Math.abs(100 * value).toFixed(2)}`;
const signed = (value) => `${value < 0 ? "−" : "+"}${measure(Math.abs(value))}`;

function differenceText({ difference, interval, interval_once: once, revenue_difference: revenue, revenue_interval: range, ...more }) {
  if (difference === null) return "There is no difference to show before both groups have ended sessions.";
  const parts = [`Treatment minus control: ${points(difference)} percentage points`];
  if (interval) parts.push(` (${points(interval.low)} to ${points(interval.high)}, valid at every look)`);
  else if (once) parts.push(` (${points(once.low)} to ${points(once.high)}, valid for one look only)`);
  if (range) parts.push(`; revenue per session ${signed(revenue)} (${signed(range.low)} to ${signed(range.high)})`);
  parts.push(".");
  if (more.minimum_detectable_effect !== null) {
    parts.push(` Detectable so far: ${(100 * more.minimum_detectable_effect).toFixed(2)} points.`);
  }
  return parts.join("");
}

function webhooksCard(webhooks) {
  const rows = webhooks.map((hook) => [
    isolated(hook.name), hook.rules ? hook.rules.join(", ") : "all", count(hook.waiting),
    hook.dead ? element("span", { class: "mark", "data-level": "bad" }, count(hook.dead)) : "0",
  ]);
  return element("article", { class: "rule" },
    element("h3", {}, "Webhooks"),
    element("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "Webhooks" }, table(
      [{ title: "Receiver" }, { title: "Rules" }, { title: "Waiting", number: true }, { title: "Given up", number: true }],
      rows, "Webhooks")));
}
