// The rows of the board as a CSV file (RFC 4180), built from what the page shows.

const COLUMNS = ["session_id", "probability", "events", "cart_value", "currency", "value_at_stake", "first_seen", "last_seen", "last_event", "last_item_id", "outcome", "model"];
// A spreadsheet takes a cell that begins so for a formula. Ids and names come from visitors.
const FORMULA = /^[=+\-@＝＋－＠\t\r\n]/;

/** Return a value as a cell; a text that a spreadsheet would compute begins with an apostrophe. */
function cell(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return String(value);
  const text = FORMULA.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** Return sessions of `GET v1/sessions` as CSV with a header. */
const csv = (sessions) => [COLUMNS, ...sessions.map((session) => COLUMNS.map((name) => session[name]))]
  .map((row) => `${row.map(cell).join(",")}\r\n`).join("");

/** Let the browser save sessions as a file. */
export function saveCsv(sessions) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([csv(sessions)], { type: "text/csv;charset=utf-8" }));
  link.download = `willbuy-sessions-${new Date().toISOString().slice(0, 19).replaceAll(":", "")}.csv`;
  link.click();
  // The browser reads the content after the click.
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
