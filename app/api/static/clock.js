// The service's clock. The clock of a browser is often minutes off, so only the offset between the two is kept.

let offsetMs = 0;

/** Set the service's current time, in RFC 3339; a text that is no time is ignored. */
export function setServiceTime(text) {
  const serviceTime = Date.parse(text);
  if (Number.isFinite(serviceTime)) offsetMs = serviceTime - Date.now();
}

/** Return the seconds since `text`, a time of the service, at least 0; null if `text` is no time. */
export function secondsSince(text) {
  const then = Date.parse(text);
  return Number.isFinite(then) ? Math.max(0, (Date.now() + offsetMs - then) / 1000) : null;
}
