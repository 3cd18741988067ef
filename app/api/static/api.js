// The service's API, asked conditionally: what did not change is not sent again.

const BASE = new URL("../v1/", document.baseURI);
const TIMEOUT_MS = 5000;
const MOST_REMEMBERED = 16;
const KEY = "willbuy-api-key";

/**
 * A request that gave no answer to show.
 * `kind` is "unreachable" (no answer), "unavailable" (503 or 429: the service cannot now), "unauthorized" (401 or 403),
 * "missing" (404), or "unexpected" (everything else). `keySent` says whether the request carried an API key.
 */
export class ApiError extends Error {
  constructor(kind, message, { status = null, code = null, retryAfterMs = null, keySent = false } = {}) {
    super(message);
    this.kind = kind;
    this.status = status;
    this.code = code;
    this.retryAfterMs = retryAfterMs;
    this.keySent = keySent;
  }
}

/** The tags and bodies of the last answers, by path. */
const remembered = new Map();
let key = null;

/** Send `value` as the API key from now on, for as long as this tab lives. */
export function useKey(value) {
  key = value;
  try {
    sessionStorage.setItem(KEY, value);
  } catch {
    // Storage may be switched off; the key then lasts until the page is loaded again.
  }
}

function knownKey() {
  if (key === null) {
    try {
      key = sessionStorage.getItem(KEY);
    } catch {
      key = "";
    }
  }
  return key;
}

/**
 * Return the body of `GET v1/path`; the very same object as last time where the service says that nothing changed.
 * @throws {ApiError}
 */
export async function get(path) {
  const known = remembered.get(path);
  const headers = { Accept: "application/json" };
  if (known?.tag) headers["If-None-Match"] = known.tag;
  if (knownKey()) headers.Authorization = `Bearer ${knownKey()}`;
  let response;
  let text;
  try {
    // The tag is sent by hand: the browser's own cache would answer 200 and hide that nothing changed.
    response = await fetch(new URL(path, BASE), {
      headers,
      cache: "no-store",
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
    text = await response.text();
  } catch (error) {
    const late = error.name === "TimeoutError";
    throw new ApiError("unreachable", late ? `No answer within ${TIMEOUT_MS / 1000} s.` : "No connection.");
  }
  if (response.status === 304 && known) return known.body;
  if (!response.ok) throw refusal(response, text);
  const body = parsed(text);
  if (body === null) throw new ApiError("unexpected", "The answer is no JSON.", { status: response.status });
  remember(path, { tag: response.headers.get("ETag"), body });
  return body;
}

function remember(path, answer) {
  remembered.delete(path);
  remembered.set(path, answer);
  if (remembered.size > MOST_REMEMBERED) remembered.delete(remembered.keys().next().value);
}

function refusal(response, text) {
  const problem = parsed(text);
  const message = typeof problem?.detail === "string" ? problem.detail : `Status ${response.status}.`;
  const seconds = Number(response.headers.get("Retry-After"));
  return new ApiError(kindOf(response.status), message, {
    status: response.status,
    code: typeof problem?.code === "string" ? problem.code : null,
    retryAfterMs: seconds > 0 ? seconds * 1000 : null,
    keySent: Boolean(knownKey()),
  });
}

function kindOf(status) {
  if (status === 503 || status === 429) return "unavailable";
  // A proxy answers so for a service that is gone.
  if (status === 502 || status === 504) return "unreachable";
  if (status === 401 || status === 403) return "unauthorized";
  return status === 404 ? "missing" : "unexpected";
}

function parsed(text) {
  try {
    const body = JSON.parse(text);
    return typeof body === "object" ? body : null;
  } catch {
    return null;
  }
}
