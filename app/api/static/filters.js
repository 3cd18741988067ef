// Filters and order of the board: in the controls, in the query of the address, and in the query of the service.

import { byId, element } from "./dom.js";

const ANY = "any";
const RULE_NAME = /^[A-Za-z0-9._-]{1,64}$/;
const PROPERTY = /^[^=]{1,64}=.{1,256}$/;
const LONGEST_TEXT = 320;
const ORDERS = ["probability", "last_seen"];

/** The controls by their name in the address; `start`: the value that the address leaves out. */
const CONTROLS = [
  { name: "id", id: "id-prefix", start: "", cleared: "" },
  { name: "active_min", id: "active", start: "5", cleared: ANY },
  { name: "min_percent", id: "minimum-probability", start: "", cleared: "" },
  { name: "min_events", id: "minimum-events", start: "", cleared: "" },
  { name: "min_cart", id: "minimum-cart", start: "", cleared: "" },
  { name: "crossed_percent", id: "crossed", start: "", cleared: "" },
  { name: "property", id: "property", start: "", cleared: "" },
  { name: "rule", id: "rule", start: "", cleared: "" },
  { name: "rows", id: "row-limit", start: "25" },
];

let order = ORDERS[0];

export const currentOrder = () => order;

/** Sort by `wanted`, and mark its column. */
export function sortBy(wanted) {
  order = wanted;
  for (const name of ORDERS) byId(`by-${name}`).setAttribute("aria-sort", name === order ? "descending" : "none");
}

/** Call `onChange` when the user changes a control. */
export function watchFilters(onChange) {
  for (const { id } of CONTROLS) byId(id).addEventListener("input", onChange);
}

/** Remove all filters; the order and the number of rows stay. */
export function clearFilters() {
  for (const { id, cleared } of CONTROLS) if (cleared !== undefined) byId(id).value = cleared;
}

/** Offer these rules. A chosen rule that is none of them is given up. */
export function offerRules(names) {
  const select = byId("rule");
  const chosen = names.includes(select.value) ? select.value : "";
  select.replaceChildren(element("option", { value: "" }, "any"), ...names.map((name) => element("option", { value: name }, name)));
  select.value = chosen;
  byId("rule-filter").hidden = names.length === 0;
}

/** Return the filters as the query of an address: empty, or with its question mark. */
export function addressQuery() {
  const query = new URLSearchParams();
  if (order !== ORDERS[0]) query.set("order", order);
  for (const { name, id, start } of CONTROLS) if (byId(id).value !== start) query.set(name, byId(id).value);
  return query.size ? `?${query}` : "";
}

/** Set order and controls to those of an address. A value that a control does not take is left out. */
export function takeFilters(text) {
  const query = new URLSearchParams(text);
  sortBy(ORDERS.includes(query.get("order")) ? query.get("order") : ORDERS[0]);
  const rule = query.get("rule") ?? "";
  // The service's rules may not be known yet.
  if (RULE_NAME.test(rule) && ![...byId("rule").options].some((option) => option.value === rule)) {
    byId("rule").append(element("option", { value: rule }, rule));
  }
  for (const { name, id, start } of CONTROLS) {
    const control = byId(id);
    const wanted = query.get(name) ?? start;
    // A browser warns of a text in a number's control.
    if (control.type !== "number" || Number.isFinite(Number(wanted))) control.value = wanted.slice(0, LONGEST_TEXT);
    else control.value = start;
    if (control.value === "") control.value = start;
  }
}

/** Return the filters as parameters of `GET v1/sessions`. */
export function serviceQuery() {
  const query = new URLSearchParams({ order, limit: byId("row-limit").value });
  const [probability, events] = ["minimum-probability", "minimum-events"].map((id) => byId(id).valueAsNumber);
  if (probability > 0) query.set("min_probability", String(Math.min(100, probability) / 100));
  if (events > 1) query.set("min_events", String(Math.min(1e6, Math.floor(events))));
  const [cart, crossed] = ["minimum-cart", "crossed"].map((id) => byId(id).valueAsNumber);
  if (cart > 0) query.set("min_cart_value", String(Math.min(1e12, cart)));
  if (crossed > 0) query.set("crossed", String(Math.min(100, crossed) / 100));
  // While the user types, a property without its value is none.
  if (PROPERTY.test(byId("property").value.trim())) query.set("property", byId("property").value.trim());
  if (byId("rule").value) query.set("rule", byId("rule").value);
  if (byId("active").value !== ANY) query.set("active_s", String(60 * Number(byId("active").value)));
  if (wantedId()) query.set("id_prefix", wantedId());
  return query;
}

/** The text that session ids begin with; the service keeps ids without spaces around them. */
export const wantedId = () => byId("id-prefix").value.trim();

/** Return why no session is shown: a heading for the empty board; null if nothing is filtered. */
export function whyNothing() {
  const chosen = CONTROLS.filter(({ id, cleared }) => cleared !== undefined && byId(id).value !== cleared);
  if (!chosen.length) return null;
  if (chosen.length > 1 || chosen[0].id !== "active") return "No session matches the filters";
  return `No ${order === ORDERS[0] ? "open " : ""}session was active in the last ${byId("active").value} min`;
}
