/**
 * Errors of a call to the service.
 *
 *     ClientError
 *       NoAnswerError          no attempt had an answer
 *       UnexpectedAnswerError  the answer is not one of a willbuy service
 *       ProblemError           the service refused the request; `code` is the stable name of the reason
 *         UnavailableError     the service could not answer in any attempt (408, 429, 502, 503, 504)
 *       IncompleteBatchError   a batch ended early; the error has the results and the unanswered events
 *       QueueFullError         the queue of `enqueue` had no room for the event
 *
 * After `NoAnswerError` and `UnavailableError` it is unknown whether the event was counted. Send it again with the same
 * `event_id`, and it counts once.
 */

import type { EventIn, FieldError, Problem, ProblemCode, ScoreOut } from "./types.ts";

/** An event with its id. */
export type IdentifiedEvent = EventIn & { event_id: string };

/** Result of one event of a batch: `score` unless there was a problem, `problem` unless there was an answer. */
export interface SentEvent {
  /** Id of the event, even if the client made it. */
  event_id: string;
  score: ScoreOut | null;
  problem: Problem | null;
}

/** A call without the expected answer. */
export class ClientError extends Error {
  override name = "ClientError";
  /** Id of the event that was sent, even if the client made it; absent for other calls. */
  eventId?: string;
}

/** No attempt had an answer; `cause` is the last attempt's failure. */
export class NoAnswerError extends ClientError {
  override name = "NoAnswerError";
}

/** The answer is not one of a willbuy service, or of one of another version. */
export class UnexpectedAnswerError extends ClientError {
  override name = "UnexpectedAnswerError";
  /** HTTP status of the answer. */
  readonly status: number;

  constructor(message: string, status: number) {
    super(message);
    this.status = status;
  }
}

/** The service refused the request. */
export class ProblemError extends ClientError {
  override name = "ProblemError";
  /** HTTP status. */
  readonly status: number;
  /** Stable name of the error; `http_<status>` where a proxy answered. */
  readonly code: ProblemCode | (string & Record<never, never>);
  /** What the code means. */
  readonly title: string;
  /** The fault of this request. */
  readonly detail: string;
  /** The invalid fields, if any. */
  readonly errors: FieldError[];
  /** Wait before the next attempt, if the answer has one. */
  readonly retryAfterMs?: number;

  constructor(problem: Problem, retryAfterMs?: number) {
    super(`${problem.code} (${problem.status}): ${problem.detail}`);
    this.status = problem.status;
    this.code = problem.code;
    this.title = problem.title;
    this.detail = problem.detail;
    this.errors = problem.errors ?? [];
    this.retryAfterMs = retryAfterMs;
  }
}

/** The service could not answer now; the request is valid. */
export class UnavailableError extends ProblemError {
  override name = "UnavailableError";
}

/** A request of a batch had no answer, and the later requests were not sent; `cause` says why. */
export class IncompleteBatchError extends ClientError {
  override name = "IncompleteBatchError";
  /** Results of the events before, in order. */
  readonly results: SentEvent[];
  /** The other events, each with its `event_id`; send them again unchanged. */
  readonly unanswered: IdentifiedEvent[];

  constructor(cause: ClientError, results: SentEvent[], unanswered: IdentifiedEvent[]) {
    const all = results.length + unanswered.length;
    super(`${unanswered.length} of ${all} events without an answer: ${cause.message}`, { cause });
    this.results = results;
    this.unanswered = unanswered;
  }
}

/** The queue had no room for the event. */
export class QueueFullError extends ClientError {
  override name = "QueueFullError";
}
