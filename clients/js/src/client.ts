/** The service's client. A call is retried after a failure that may pass, with the same event id (`retries.ts`). */

import type { IdentifiedEvent, SentEvent } from "./errors.ts";
import { ClientError, IncompleteBatchError, ProblemError, UnavailableError, UnexpectedAnswerError } from "./errors.ts";
import { EventQueue, type OnLost } from "./queue.ts";
import { type Answer, exchange, type Limits, pause, type Request, RETRIED_STATUSES } from "./retries.ts";
import { retryAfterMs, waitMs } from "./retries.ts";
import type { BatchOut, BoardOut, EventIn, HistoryOut, InterventionsOut, ItemOut, ModelOut } from "./types.ts";
import type { OutcomeIn, Problem, ScoreOut, SessionOut, SessionsQuery, StatsOut } from "./types.ts";
import type { TokenIn, TokenOut, TracedSessionOut } from "./types.ts";

/** Options of the client. */
export interface Options {
  /** Sent as `Authorization: Bearer`. */
  apiKey?: string;
  /** Longest time of one attempt, within the deadline. 5000. */
  timeoutMs?: number;
  /** Longest time of a call, retries included. 200: no page waits longer for a score. */
  deadlineMs?: number;
  /** The same for each request of a batch. 10,000. */
  batchDeadlineMs?: number;
  /** Most events of a batch's request, at most the service's limit. 1000. */
  batchEvents?: number;
  /** Largest body of a batch's request in bytes, at most the service's limit. 4,000,000. */
  batchBytes?: number;
  /** Most events of one session in a request, at most the service's dedupe window. 64. */
  sessionEvents?: number;
  /** Longest time that `enqueue` keeps an event before the first attempt. 1000. */
  flushIntervalMs?: number;
  /** Most events that wait. 10,000. */
  queueEvents?: number;
  /** Told about queued events that are lost: refused, without room, or without an answer at the end. Logs by default. */
  onLost?: OnLost;
  /** In place of the global `fetch`, for proxies or certificates. */
  fetch?: typeof fetch;
}

/** What the answer to an event has beside its score. */
export interface SendOptions extends Limits {
  /** Decisions of control groups too; the key needs the scope `sessions:read` for it. */
  control?: boolean;
}

/** What the answer to a reading of a session has beside its score. */
export interface SessionOptions extends Limits {
  /** The probability after each event. */
  trace?: boolean;
  /** Which inputs moved the probability at the last event. */
  why?: boolean;
}

const MEDIA_TYPES = { json: "application/json", lines: "application/x-ndjson" };
const EXCERPT = 200;
const ENCODER = new TextEncoder();

/** The service's client; one for the whole process. */
export class Client {
  readonly #url: string;
  readonly #headers: Record<string, string>;
  readonly #fetch: typeof fetch;
  readonly #limits: Required<Limits>;
  readonly #batch: { deadlineMs: number; events: number; bytes: number; sessionEvents: number };
  readonly #queue: EventQueue;
  #closed = false;

  /** @param url address of the service, with its path prefix if it has one. */
  constructor(url: string, options: Options = {}) {
    if (!/^https?:\/\//.test(url)) throw new TypeError(`url: expected http:// or https://, not ${JSON.stringify(url)}`);
    const { apiKey, onLost = logLost } = options;
    if (apiKey !== undefined && !/^[ -~]+$/.test(apiKey)) throw new TypeError("apiKey: expected printable ASCII");
    const number = (name: keyof Options, fallback: number): number => {
      const value = options[name] ?? fallback;
      if (typeof value === "number" && value > 0 && value < Infinity) return value;
      throw new RangeError(`${name}: expected a number above 0, not ${value}`);
    };
    this.#url = url.replace(/\/+$/, "");
    this.#headers = {
      accept: MEDIA_TYPES.json,
      ...(apiKey === undefined ? {} : { authorization: `Bearer ${apiKey}` }),
    };
    // Some runtimes refuse `fetch` with another `this`.
    this.#fetch = options.fetch ?? ((...args) => globalThis.fetch(...args));
    this.#limits = { timeoutMs: number("timeoutMs", 5000), deadlineMs: number("deadlineMs", 200) };
    this.#batch = {
      deadlineMs: number("batchDeadlineMs", 10_000),
      events: number("batchEvents", 1000),
      bytes: number("batchBytes", 4_000_000),
      sessionEvents: number("sessionEvents", 64),
    };
    this.#queue = new EventQueue({
      sendBatch: (events) => this.sendBatch(events),
      onLost,
      batchEvents: this.#batch.events,
      flushIntervalMs: number("flushIntervalMs", 1000),
      queueEvents: number("queueEvents", 10_000),
    });
  }

  /** Sends one event, with a new id if it has none, and returns its session's score. */
  async send(event: EventIn, { control, ...limits }: SendOptions = {}): Promise<ScoreOut> {
    const body = withEventId(event);
    try {
      return await this.#call<ScoreOut>("session_id", "POST", `/v1/events${flags({ control })}`, limits, json(body));
    } catch (error) {
      if (error instanceof ClientError) error.eventId = body.event_id;
      throw error;
    }
  }

  /**
   * Sends many events in order, in as many requests as needed, and returns one result for each.
   *
   * An event that the service refuses is a result with a `problem`. An event that the service cannot take now is sent
   * again; it then counts after the events of its session that were taken.
   *
   * @throws IncompleteBatchError where a request had no answer.
   */
  async sendBatch(events: readonly EventIn[], options: SendOptions = {}): Promise<SentEvent[]> {
    const bodies = events.map(withEventId);
    const results: SentEvent[] = [];
    for (const lines of this.#requests(bodies)) {
      try {
        for (const { score, problem } of await this.#sendLines(lines, options)) {
          const { event_id } = bodies[results.length]!;
          results.push({ event_id, score: score ?? null, problem: problem ?? null });
        }
      } catch (error) {
        if (!(error instanceof ClientError)) throw error;
        throw new IncompleteBatchError(error, results, bodies.slice(results.length));
      }
    }
    return results;
  }

  /**
   * Queues an event that nobody waits for, and returns its id. Queued events are sent in batches and in order, and
   * again until the service has taken them. The time is now, unless the event has one.
   */
  enqueue(event: EventIn): string {
    if (this.#closed) throw new TypeError("the client is closed");
    const body = withEventId({ ...event, timestamp: event.timestamp || Date.now() });
    json(body); // An event that JSON cannot hold is the caller's mistake, so it is thrown here.
    this.#queue.add(body);
    return body.event_id;
  }

  /** Sends what is queued, and returns how many events still wait since the service did not take them. */
  flush(): Promise<number> {
    return this.#queue.flush();
  }

  /** Sends what is queued, once; what has no answer is lost. Node's `beforeExit` does the same. */
  async close(): Promise<void> {
    this.#closed = true;
    await this.#queue.finish();
  }

  /** Returns a session; with `trace` also the probability after each of its events, with `why` what moved the last. */
  session(sessionId: string, options: SessionOptions & ({ trace: true } | { why: true })): Promise<TracedSessionOut>;
  session(sessionId: string, options?: SessionOptions): Promise<SessionOut>;
  async session(sessionId: string, { trace, why, ...limits }: SessionOptions = {}): Promise<SessionOut> {
    return await this.#call("session_id", "GET", sessionPath(sessionId) + flags({ trace, why }), limits);
  }

  /** Returns a page of the live board; `cursor: page.next_cursor` returns the next one. */
  sessions(query: SessionsQuery = {}, limits: Limits = {}): Promise<BoardOut> {
    const given = Object.entries(query).filter(([, value]) => value !== undefined && value !== null);
    const texts = given.map(([name, value]) => [name, value instanceof Date ? value.toISOString() : String(value)]);
    return this.#call("sessions", "GET", `/v1/sessions?${new URLSearchParams(texts)}`, limits);
  }

  /** Returns the statistics of the service. */
  stats(limits: Limits = {}): Promise<StatsOut> {
    return this.#call("as_of", "GET", "/v1/stats", limits);
  }

  /** Returns conversion, volume and revenue by the hour, of at most the last week. */
  history(hours = 24, limits: Limits = {}): Promise<HistoryOut> {
    return this.#call("hours", "GET", `/v1/history?hours=${hours}`, limits);
  }

  /** Returns the rules, how often each fired, and its experiment. */
  interventions(limits: Limits = {}): Promise<InterventionsOut> {
    return this.#call("rules", "GET", "/v1/interventions", limits);
  }

  /** Returns a token with which a browser may read one session; without `session_id`, board, statistics and stream. */
  token({ timeoutMs, deadlineMs, ...wanted }: Limits & TokenIn = {}): Promise<TokenOut> {
    return this.#call("token", "POST", "/v1/tokens", { timeoutMs, deadlineMs }, json(wanted));
  }

  /** Returns the model in use. */
  model(limits: Limits = {}): Promise<ModelOut> {
    return this.#call("fingerprint", "GET", "/v1/model", limits);
  }

  /** Records the outcome of a session, where no `purchase` event does, and returns the session. */
  async outcome(
    sessionId: string,
    outcome: OutcomeIn["outcome"],
    { timestamp, ...limits }: Limits & Pick<OutcomeIn, "timestamp"> = {},
  ): Promise<SessionOut> {
    const body = json({ outcome, timestamp });
    return await this.#call("session_id", "POST", `${sessionPath(sessionId)}/outcome`, limits, body);
  }

  /** Erases a session, if there is one. */
  async delete(sessionId: string, limits: Limits = {}): Promise<void> {
    const answer = await this.#exchange({ method: "DELETE", path: sessionPath(sessionId) }, limits);
    if (answer.status !== 204) throw refusal(answer);
  }

  /** Yields the events in order as lines of JSON, split into requests within the limits. */
  *#requests(bodies: IdentifiedEvent[]): Generator<string[]> {
    // All at once, so that an event that is no JSON throws before any is sent.
    const encoded = bodies.map(json);
    const { events, bytes, sessionEvents } = this.#batch;
    let lines: string[] = [];
    let size = 0;
    let ofSession = new Map<string, number>();
    for (const [at, line] of encoded.entries()) {
      const session = sessionKey(bodies[at]!.session_id);
      const length = ENCODER.encode(line).length;
      const count = ofSession.get(session) ?? 0;
      if (lines.length && (lines.length >= events || size + length >= bytes || count >= sessionEvents)) {
        yield lines;
        [lines, size, ofSession] = [[], 0, new Map()];
      }
      lines.push(line);
      size += length + 1;
      ofSession.set(session, (ofSession.get(session) ?? 0) + 1);
    }
    if (lines.length) yield lines;
  }

  /** Sends one request, and sends again those of its events that the service could not take. */
  async #sendLines(lines: string[], { control, ...limits }: SendOptions): Promise<ItemOut[]> {
    const deadlineMs = limits.deadlineMs ?? this.#batch.deadlineMs;
    const giveUpAt = performance.now() + deadlineMs;
    const items: ItemOut[] = [];
    let waiting = [...lines.keys()];
    for (let attempts = 1;; attempts++) {
      const body = waiting.map((at) => lines[at]).join("\n");
      const path = `/v1/events/batch${flags({ control })}`;
      const request = { method: "POST", path, body, contentType: MEDIA_TYPES.lines };
      const answer = await this.#exchange(request, { ...limits, deadlineMs }, giveUpAt);
      const { results } = parsed<BatchOut>(answer, "results");
      if (results.length !== waiting.length) {
        throw new UnexpectedAnswerError(`${results.length} results for ${waiting.length} events`, answer.status);
      }
      for (const [at, item] of results.entries()) items[waiting[at]!] = item;
      waiting = waiting.filter((at) => RETRIED_STATUSES.has(items[at]!.status));
      const wait = waitMs(attempts);
      if (!waiting.length || !(performance.now() + wait < giveUpAt)) return items;
      await pause(wait);
    }
  }

  async #call<Body>(
    key: keyof Body & string,
    method: string,
    path: string,
    limits: Limits,
    body?: string,
  ): Promise<Body> {
    const typed = body === undefined ? {} : { body, contentType: MEDIA_TYPES.json };
    return parsed<Body>(await this.#exchange({ method, path, ...typed }, limits), key);
  }

  #exchange(request: Request, { timeoutMs, deadlineMs }: Limits, giveUpAt?: number): Promise<Answer> {
    const limits = {
      timeoutMs: timeoutMs ?? this.#limits.timeoutMs,
      deadlineMs: deadlineMs ?? this.#limits.deadlineMs,
    };
    return exchange((one, longestMs) => this.#attempt(one, longestMs), request, limits, giveUpAt);
  }

  async #attempt({ method, path, body, contentType }: Request, longestMs: number): Promise<Answer> {
    const headers = { ...this.#headers, ...(contentType === undefined ? {} : { "content-type": contentType }) };
    const signal = AbortSignal.timeout(Math.max(1, Math.ceil(longestMs)));
    const response = await this.#fetch(this.#url + path, { method, headers, body, signal, redirect: "manual" });
    return { status: response.status, headers: response.headers, text: await response.text() };
  }
}

function logLost(events: IdentifiedEvent[], error: unknown): void {
  console.error(`willbuy: ${events.length} events are lost: ${error}`);
}

function withEventId(event: EventIn): IdentifiedEvent {
  return { ...event, event_id: event.event_id || crypto.randomUUID() };
}

/** Returns one text for all ids that the service reads as one session, and perhaps for some others. */
function sessionKey(sessionId: unknown): string {
  return String(sessionId).normalize("NFC").replace(/[\s\p{C}]/gu, "").replace(/^-|\.0*$/g, "").toLowerCase();
}

/** Returns the path of a session, with each character of its id escaped that has a meaning in paths. */
function sessionPath(sessionId: string): string {
  // `fetch` resolves them as path segments, escaped or not.
  if (["", ".", ".."].includes(sessionId)) {
    throw new TypeError(`no path leads to the session ${JSON.stringify(sessionId)}`);
  }
  return `/v1/sessions/${encodeURIComponent(sessionId)}`;
}

/** Returns the query of the flags that are set. */
function flags(given: Record<string, boolean | undefined>): string {
  const names = Object.keys(given).filter((name) => given[name]);
  return names.length ? `?${names.map((name) => `${name}=true`).join("&")}` : "";
}

/** Returns JSON; numbers and times that JSON cannot hold are no null, but an error. */
function json(value: unknown): string {
  return JSON.stringify(value, function (this: Record<string, unknown>, name, one) {
    const given = this[name];
    const fits = given instanceof Date
      ? !Number.isNaN(given.getTime())
      : typeof given !== "number" || Number.isFinite(given);
    if (!fits) throw new TypeError(`${name}: JSON cannot hold ${given}`);
    return one;
  });
}

function parsed<Body>(answer: Answer, key: keyof Body): Body {
  if (answer.status !== 200) throw refusal(answer);
  const body = object(answer);
  if (!body || !(key in body)) {
    throw new UnexpectedAnswerError(`not an answer of willbuy: ${excerpt(answer)}`, answer.status);
  }
  return body as Body;
}

function refusal(answer: Answer): ClientError {
  const { status } = answer;
  if (status < 400) return new UnexpectedAnswerError(`status ${status}, which willbuy does not use here`, status);
  let problem = object(answer) as Problem | undefined;
  if (typeof problem?.code !== "string" || typeof problem.detail !== "string") {
    // A proxy answered, not the service.
    const code = `http_${status}`;
    problem = { type: "about:blank", title: `HTTP status ${status}`, status, detail: excerpt(answer), code };
  }
  return new (RETRIED_STATUSES.has(status) ? UnavailableError : ProblemError)(problem, retryAfterMs(answer));
}

function object(answer: Answer): object | undefined {
  try {
    const body: unknown = JSON.parse(answer.text);
    return typeof body === "object" && body !== null ? body : undefined;
  } catch {
    return undefined;
  }
}

function excerpt(answer: Answer): string {
  return answer.text.slice(0, EXCERPT) || "an empty body";
}
