// HTTP client of the service. Conditional requests (ETag): the service sends an unchanged body only once.

const BASE = new URL("../v1/", document.baseURI);
const TIMEOUT_MS = 5000;
const MAX_CACHED = 16;
const KEY_ITEM = "willbuy-api-key";

/**
 * A failed request.
 * `kind` is "unreachable" (no response, 502 or 504), "unavailable" (503 or 429), "unauthorized" (401 or 403),
 * "missing" (404) or "unexpected" (every other failure). `keySent` is true if the request carried an API key.
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

/** ETags and bodies of the last responses by path; the body that was stored first is dropped first. */
const cache = new Map();
let apiKey = null;

/** Send `value` as the API key with every further request, until the tab is closed. */
export function useKey(value) {
  apiKey = value;
  try {
    sessionStorage.setItem(KEY_ITEM, value);
  } catch {
    // The browser may deny storage. The key then lasts until the page is reloaded.
  }
}

function currentKey() {
  if (apiKey === null) {
    try {
      apiKey = sessionStorage.getItem(KEY_ITEM);
    } catch {
      apiKey = "";
    }
  }
  return apiKey;
}

/**
 * Return the body of `GET v1/path`. After a 304 response, return the identical object as the last time.
 * @throws {ApiError}
 */
export async function get(path) {
  const cached = cache.get(path);
  // Set explicitly, without the browser's cache: the cache turns a 304 into a 200, which hides that nothing changed.
  const { response, text } = await send(path, cached?.tag ? { headers: { "If-None-Match": cached.tag } } : {});
  if (response.status === 304 && cached) return cached.body;
  const body = bodyOf(response, text);
  cacheResponse(path, { tag: response.headers.get("ETag"), body });
  return body;
}

/**
 * Send `value` as JSON with `POST v1/path` and return the body of the response.
 * @throws {ApiError}
 */
export async function post(path, value) {
  const headers = { "Content-Type": "application/json" };
  const { response, text } = await send(path, { method: "POST", headers, body: JSON.stringify(value) });
  return bodyOf(response, text);
}

async function send(path, { headers = {}, ...options }) {
  const all = { Accept: "application/json", ...headers };
  if (currentKey()) all.Authorization = `Bearer ${currentKey()}`;
  try {
    const response = await fetch(new URL(path, BASE), {
      ...options,
      headers: all,
      cache: "no-store",
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
    return { response, text: await response.text() };
  } catch (error) {
    const timedOut = error.name === "TimeoutError";
    throw new ApiError("unreachable", timedOut ? `No response within ${TIMEOUT_MS / 1000} s.` : "No connection.");
  }
}

function bodyOf(response, text) {
  if (!response.ok) throw apiError(response, text);
  const body = parseJson(text);
  if (body === null) throw new ApiError("unexpected", "The response is not valid JSON.", { status: response.status });
  return body;
}

function cacheResponse(path, response) {
  cache.delete(path);
  cache.set(path, response);
  if (cache.size > MAX_CACHED) cache.delete(cache.keys().next().value);
}

function apiError(response, text) {
  const problem = parseJson(text);
  const message = typeof problem?.detail === "string" ? problem.detail : `Status ${response.status}.`;
  const seconds = Number(response.headers.get("Retry-After"));
  return new ApiError(kindOf(response.status), message, {
    status: response.status,
    code: typeof problem?.code === "string" ? problem.code : null,
    retryAfterMs: seconds > 0 ? seconds * 1000 : null,
    keySent: Boolean(currentKey()),
  });
}

function kindOf(status) {
  if (status === 503 || status === 429) return "unavailable";
  // A proxy returns these for a service that does not run.
  if (status === 502 || status === 504) return "unreachable";
  if (status === 401 || status === 403) return "unauthorized";
  return status === 404 ? "missing" : "unexpected";
}

function parseJson(text) {
  try {
    const body = JSON.parse(text);
    return typeof body === "object" ? body : null;
  } catch {
    return null;
  }
}
