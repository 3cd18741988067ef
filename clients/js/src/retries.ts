/**
 * Retries: which failures are retried, and after which wait.
 *
 * Every call of the client is idempotent: events carry an id, reads change nothing, and a repeated erasure or outcome
 * has no further effect. So failures that may pass are retried: broken connections, time-outs, and the statuses 408,
 * 429, 502, 503 and 504. Any other answer is final.
 *
 * The upper bound of the wait doubles with each attempt, up to a limit. The wait is drawn between zero and that bound
 * ("full jitter"), so that callers that failed together do not retry together. `Retry-After` is added.
 */

import { NoAnswerError } from "./errors.ts";

/** Statuses of answers that are retried. */
export const RETRIED_STATUSES: ReadonlySet<number> = new Set([408, 429, 502, 503, 504]);

const FIRST_WAIT_MS = 20;
const LONGEST_WAIT_MS = 2000;

/** Limits of a call. */
export interface Limits {
  /** Longest time of one attempt, within the deadline. */
  timeoutMs?: number;
  /** Longest time of a call, its attempts and the waits between them included. */
  deadlineMs?: number;
}

/** A request; `path` is percent-encoded. */
export interface Request {
  method: string;
  path: string;
  body?: string;
  contentType?: string;
}

/** A complete answer. */
export interface Answer {
  status: number;
  headers: Headers;
  text: string;
}

/** Sends a request once, within so many milliseconds; rejects without a complete answer. */
export type Attempt = (request: Request, timeoutMs: number) => Promise<Answer>;

/**
 * Sends until there is a final answer, or until the deadline; then returns the last answer.
 *
 * @param giveUpAt the deadline, of the clock `performance.now()`, where several requests share one.
 * @throws NoAnswerError where the last attempt had no answer.
 */
export async function exchange(
  attempt: Attempt,
  request: Request,
  limits: Required<Limits>,
  giveUpAt: number = performance.now() + limits.deadlineMs,
): Promise<Answer> {
  for (let attempts = 1;; attempts++) {
    let came: Answer | undefined;
    let failure: unknown;
    try {
      came = await attempt(request, Math.min(limits.timeoutMs, giveUpAt - performance.now()));
      if (!RETRIED_STATUSES.has(came.status)) return came;
    } catch (error) {
      failure = error;
    }
    const wait = waitMs(attempts, came && retryAfterMs(came));
    // So that NaN ends the call, too.
    if (!(performance.now() + wait < giveUpAt)) {
      if (came) return came;
      const tried = attempts === 1 ? "once" : `${attempts} times`;
      const message = `${request.method} ${request.path}: no answer, tried ${tried}: ${failure}`;
      throw new NoAnswerError(message, { cause: failure });
    }
    await pause(wait);
  }
}

/** Returns the wait after so many attempts. */
export function waitMs(attempts: number, retryAfter: number = 0): number {
  return Math.random() * Math.min(LONGEST_WAIT_MS, FIRST_WAIT_MS * 2 ** (attempts - 1)) + retryAfter;
}

/** Returns the wait of `Retry-After`, which is in seconds or a date; undefined without a valid one. */
export function retryAfterMs(answer: Answer): number | undefined {
  const value = (answer.headers.get("retry-after") ?? "").trim();
  if (/^\d+$/.test(value)) return Number(value) * 1000;
  // `Date.parse` takes much that is no date of HTTP, such as `1.5`.
  const at = /^[A-Z][a-z]+, /.test(value) ? Date.parse(value) : NaN;
  return Number.isNaN(at) ? undefined : Math.max(0, at - Date.now());
}

/** Resolves after so many milliseconds. */
export function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
