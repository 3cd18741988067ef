// Building and filling elements. Data becomes text nodes and attributes, never markup.

/** Return the element of that id, which the page has. */
export const byId = (id) => document.getElementById(id);

/**
 * Return a new element.
 * @param {string} tag
 * @param {Object<string, string|number|boolean|null>} attributes null and false leave the attribute away.
 * @param {...(Node|string|number|null)} children null is left away, everything but nodes becomes text.
 */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** Return a string of the shop's in an element that keeps its writing direction from the text around it. */
export const isolated = (text, attributes = {}) => element("bdi", attributes, text);

/** Set an element's text, unless it is that already: a text that is set anew would be selected and read out anew. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/**
 * Bring `nodes` into order as the children of `parent`, and remove all others, without moving `still`.
 *
 * Moving an element takes the keyboard focus from what is in it; the others are moved around it.
 */
export function arrange(parent, nodes, still = null) {
  const wanted = new Set(nodes);
  for (const child of [...parent.children]) if (!wanted.has(child)) child.remove();
  const pivot = still ? nodes.indexOf(still) : -1;
  let next = pivot < 0 ? null : still;
  for (let at = pivot < 0 ? nodes.length - 1 : pivot - 1; at >= 0; at -= 1) {
    if (nodes[at].nextSibling !== next || nodes[at].parentNode !== parent) parent.insertBefore(nodes[at], next);
    next = nodes[at];
  }
  let previous = still;
  for (let at = pivot < 0 ? nodes.length : pivot + 1; at < nodes.length; at += 1) {
    if (previous.nextSibling !== nodes[at]) parent.insertBefore(nodes[at], previous.nextSibling);
    previous = nodes[at];
  }
}

/**
 * Return a table.
 * @param {{title: string, number?: boolean}[]} columns
 * @param {(string|Node)[][]} rows whose first cell names the row.
 * @param {string} label what the table is, for those who do not see it.
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

/** Return a fact for a `dl`: its name, its value, and what else there is to say of it. */
export function fact(name, value, more = null) {
  return element("div", {}, element("dt", {}, name),
    element("dd", {}, value), more === null ? null : element("dd", { class: "note" }, more));
}
