// The service's clock as this browser can tell it: browsers' own are often minutes off.

let aheadMs = 0;

/** Take note of what the service says the time is, as RFC 3339. */
export function setServiceTime(text) {
  const told = Date.parse(text);
  if (Number.isFinite(told)) aheadMs = told - Date.now();
}

/** Return the seconds since a time of the service, not less than 0; null where it is no time. */
export function secondsSince(text) {
  const then = Date.parse(text);
  return Number.isFinite(then) ? Math.max(0, (Date.now() + aheadMs - then) / 1000) : null;
}
