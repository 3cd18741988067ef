// Creates and fills elements. Data becomes text nodes and attributes, never markup.

/** Return the element with this id. */
export const byId = (id) => document.getElementById(id);

/**
 * Return a new element.
 * @param {string} tag
 * @param {Object<string, string|number|boolean|null>} attributes null or false: the attribute is not set.
 * @param {...(Node|string|number|null)} children null is skipped; a string or number becomes a text node.
 */
export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** Return a string from the shop in a `bdi` element, so that its writing direction does not change the text around it. */
export const isolated = (text, attributes = {}) => element("bdi", attributes, text);

/** Set an element's text if it differs. Setting an equal text loses the user's selection and screen readers repeat it. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/**
 * Make `nodes` the children of `parent`, in this order, without moving `fixed`.
 *
 * Moving an element removes the keyboard focus from its descendants. So `fixed` keeps the focus, and the others move.
 */
export function arrange(parent, nodes, fixed = null) {
  const wanted = new Set(nodes);
  for (const child of [...parent.children]) if (!wanted.has(child)) child.remove();
  const pivot = fixed ? nodes.indexOf(fixed) : -1;
  let next = pivot < 0 ? null : fixed;
  for (let at = pivot < 0 ? nodes.length - 1 : pivot - 1; at >= 0; at -= 1) {
    if (nodes[at].nextSibling !== next || nodes[at].parentNode !== parent) parent.insertBefore(nodes[at], next);
    next = nodes[at];
  }
  let previous = fixed;
  for (let at = pivot < 0 ? nodes.length : pivot + 1; at < nodes.length; at += 1) {
    if (previous.nextSibling !== nodes[at]) parent.insertBefore(nodes[at], previous.nextSibling);
    previous = nodes[at];
  }
}

/**
 * Return a table.
 * @param {{title: string, number?: boolean}[]} columns
 * @param {(string|Node)[][]} rows the first cell of a row is its header.
 * @param {string} label the table's accessible name.
 */
export function table(columns, rows, label) {
  const kind = (at) => (columns[at].number ? "number" : null);
  const head = columns.map(({ title }, at) => element("th", { scope: "col", class: kind(at) }, title));
  const body = rows.map((row) =>
    element("tr", {}, ...row.map((cell, at) =>
      at === 0
        ? element("th", { scope: "row", class: kind(at) }, cell)
        : element("td", { class: kind(at) }, cell))));
  return element("table", { "aria-label": label },
    element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...body));
}

/** Return an entry of a `dl`: name, value and an optional note. */
export function fact(name, value, note = null) {
  return element("div", {}, element("dt", {}, name),
    element("dd", {}, value), note === null ? null : element("dd", { class: "note" }, note));
}
