// What the address says: `#/`, `#/trust`, `#/model`, or `#/session/` and the id, percent-encoded.

const SESSION = "#/session/";

/** Return the address of a session's view; the board's where the id has no address (half of a surrogate pair). */
export function sessionHash(sessionId) {
  try {
    return SESSION + encodeURIComponent(sessionId);
  } catch {
    return "#/";
  }
}

/** Return what to show: a session's id, or the section of the overview to go to. */
export function currentRoute() {
  const { hash } = location;
  if (hash.startsWith(SESSION) && hash.length > SESSION.length) {
    const encoded = hash.slice(SESSION.length);
    try {
      return { session: decodeURIComponent(encoded) };
    } catch {
      return { session: encoded };
    }
  }
  return { session: null, section: { "#/trust": "trust", "#/model": "model" }[hash] ?? "overview" };
}
