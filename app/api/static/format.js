// Numbers and times as people read them.

export const NOTHING = "—";

const share = new Intl.NumberFormat("en", { style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 });
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });

const date = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium" });

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

/** 0.1234 as "12.3%"; null as a dash. */
export function percent(value) {
  if (!isNumber(value)) return NOTHING;
  return value > 0 && value < 0.001 ? "<0.1%" : share.format(value);
}

/** 12345 as "12,345"; null as a dash. */
export const count = (value) => (isNumber(value) ? whole.format(value) : NOTHING);

/** A measured number with about three digits that matter; null as a dash. */
export function measure(value, digits = 3) {
  if (!isNumber(value)) return NOTHING;
  return Math.abs(value) >= 100 ? whole.format(value) : Number(value.toPrecision(digits)).toString();
}

/** "1 session", "2 sessions". */
export const counted = (value, one, many = `${one}s`) => `${count(value)} ${value === 1 ? one : many}`;

/** A time of day; a value that is no time as a dash. */
export function timeOfDay(value) {
  const time = new Date(value);
  return Number.isNaN(time.getTime()) ? NOTHING : clock.format(time);
}

/** Day and time. */
export function dayAndTime(value) {
  const time = new Date(value);
  return Number.isNaN(time.getTime()) ? NOTHING : day.format(time);
}

/** The day. */
export function onlyDay(value) {
  const time = new Date(value);
  return Number.isNaN(time.getTime()) ? NOTHING : date.format(time);
}

/** A duration as "3 s", "2 min", "1 h 5 min", "2 d". */
export function duration(seconds) {
  if (!isNumber(seconds)) return NOTHING;
  const whole_s = Math.max(0, Math.round(seconds));
  if (whole_s < 60) return `${whole_s} s`;
  if (whole_s < 3600) return `${Math.floor(whole_s / 60)} min`;
  const hours = Math.floor(whole_s / 3600);
  const minutes = Math.floor((whole_s % 3600) / 60);
  if (hours < 48) return minutes ? `${hours} h ${minutes} min` : `${hours} h`;
  return `${Math.floor(hours / 24)} d`;
}

const OUTCOMES = { open: "open", purchase: "bought", none: "left" };

/** The outcome in one word. */
export const outcomeWord = (outcome) => OUTCOMES[outcome] ?? String(outcome);
