// Routes in the URL hash: `#/`, `#/interventions`, `#/history`, `#/quality`, `#/model`, each with the board's filters as a query
// (`#/?min_events=3`), or `#/session/` and the percent-encoded session id.

const SESSION = "#/session/";
// `#/trust` is the former address of `#/quality`; bookmarks may contain it.
const SECTIONS = { "#/interventions": "interventions", "#/history": "history", "#/quality": "quality", "#/trust": "quality", "#/model": "model" };

/** Return the hash of a session's view; the board's if the id cannot be encoded (half of a surrogate pair). */
export function sessionHash(sessionId) {
  try {
    return SESSION + encodeURIComponent(sessionId);
  } catch {
    return "#/";
  }
}

/** Return the current route: a session id, or null, a section of the overview, and the query. */
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
  const [path, query = ""] = hash.split("?", 2);
  return { session: null, section: SECTIONS[path] ?? "overview", query };
}
