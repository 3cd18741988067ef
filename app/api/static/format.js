// Formats numbers, times and outcomes for display.

export const NO_VALUE = "—";

const share = new Intl.NumberFormat("en", { style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 });
const integer = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const dateTime = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });

const date = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium" });

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

/** 0.1234 as "12.3%"; null as a dash. */
export function percent(value) {
  if (!isNumber(value)) return NO_VALUE;
  return value > 0 && value < 0.001 ? "<0.1%" : share.format(value);
}

/** A difference in percentage points with its sign, "+14.0"; none as a dash. */
export function points(value) {
  if (!isNumber(value)) return NO_VALUE;
  return `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(1)}`;
}

/** 12345 as "12,345"; null as a dash. */
export const count = (value) => (isNumber(value) ? integer.format(value) : NO_VALUE);

/** A measurement with `digits` significant digits, from 100 as an integer; null as a dash. */
export function measure(value, digits = 3) {
  if (!isNumber(value)) return NO_VALUE;
  return Math.abs(value) >= 100 ? integer.format(value) : Number(value.toPrecision(digits)).toString();
}

/** "1 session", "2 sessions". */
export const counted = (value, one, many = `${one}s`) => `${count(value)} ${value === 1 ? one : many}`;

/** The time of day; an invalid time as a dash. */
export function timeOfDay(value) {
  const time = new Date(value);
  return Number.isNaN(time.getTime()) ? NO_VALUE : clock.format(time);
}

const hourMinute = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const weekday = new Intl.DateTimeFormat("en-GB", { weekday: "short", day: "numeric" });
const valueOf = new Intl.NumberFormat("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 });

/** "14:00". */
export const hourOf = (value) => hourMinute.format(new Date(value));

/** "Mon 30". */
export const dayOf = (value) => weekday.format(new Date(value));

/** Amounts by currency as "1,204.50 EUR and 90.00 CHF"; those without a currency as a number. */
export const money = (amounts) => amounts
  .map(({ value, currency }) => `${valueOf.format(value)}${currency ? ` ${currency}` : ""}`).join(" and ");

/** Date and time; an invalid time as a dash. */
export function dateAndTime(value) {
  const time = new Date(value);
  return Number.isNaN(time.getTime()) ? NO_VALUE : dateTime.format(time);
}

/** The date; an invalid time as a dash. */
export function dateOnly(value) {
  const time = new Date(value);
  return Number.isNaN(time.getTime()) ? NO_VALUE : date.format(time);
}

/** A duration as "3 s", "2 min", "1 h 5 min", "2 d". */
export function duration(seconds) {
  if (!isNumber(seconds)) return NO_VALUE;
  const rounded_s = Math.max(0, Math.round(seconds));
  if (rounded_s < 60) return `${rounded_s} s`;
  if (rounded_s < 3600) return `${Math.floor(rounded_s / 60)} min`;
  const hours = Math.floor(rounded_s / 3600);
  const minutes = Math.floor((rounded_s % 3600) / 60);
  if (hours < 48) return minutes ? `${hours} h ${minutes} min` : `${hours} h`;
  return `${Math.floor(hours / 24)} d`;
}

const OUTCOMES = { open: "open", purchase: "bought", none: "no purchase" };

/** The label of an outcome. */
export const outcomeLabel = (outcome) => OUTCOMES[outcome] ?? String(outcome);
