/** Events that nobody waits for: queued, and sent in batches. */

import type { IdentifiedEvent, SentEvent } from "./errors.ts";
import { IncompleteBatchError, NoAnswerError, ProblemError, QueueFullError, UnavailableError } from "./errors.ts";
import { RETRIED_STATUSES } from "./retries.ts";

const LONGEST_BACK_OFF_MS = 30_000;

/** Told about events that are not sent again: refused ones, and those without an answer at the end. */
export type OnLost = (events: IdentifiedEvent[], error: unknown) => void;

/** What the queue needs of the client. */
export interface QueueOptions {
  sendBatch(events: IdentifiedEvent[]): Promise<SentEvent[]>;
  onLost: OnLost;
  batchEvents: number;
  flushIntervalMs: number;
  queueEvents: number;
}

/** What the queue uses of Node; edge runtimes have none of it. */
interface NodeLike {
  process?: { on?(event: string, listener: () => void): void; off?(event: string, listener: () => void): void };
}

/** A bounded queue with one sender, so that the events of a session arrive in order. */
export class EventQueue {
  readonly #options: QueueOptions;
  #waiting: IdentifiedEvent[] = [];
  #timer: ReturnType<typeof setTimeout> | undefined;
  #sending: Promise<void> | undefined;
  #failures = 0;
  #watchesExit = false;
  readonly #atExit = (): void => void this.finish();

  constructor(options: QueueOptions) {
    this.#options = options;
  }

  /** Queues an event; without room it is lost. */
  add(event: IdentifiedEvent): void {
    if (this.#waiting.length >= this.#options.queueEvents) {
      this.#lost([event], new QueueFullError(`${this.#waiting.length} events wait already`));
      return;
    }
    this.#waiting.push(event);
    this.#watchExit();
    if (this.#failures === 0 && this.#waiting.length >= this.#options.batchEvents) void this.flush();
    else this.#schedule(this.#options.flushIntervalMs);
  }

  /** Sends what waits; resolves with the number of events that still wait, since the service did not take them. */
  async flush(): Promise<number> {
    this.#sending ??= this.#drain().finally(() => {
      this.#sending = undefined;
      if (this.#waiting.length) this.#schedule(this.#backOffMs());
    });
    await this.#sending;
    return this.#waiting.length;
  }

  /** Sends what waits, once, and reports the rest as lost. */
  async finish(): Promise<void> {
    // A flush that runs may have failed before: events queued meanwhile have a try of their own.
    if (this.#sending) await this.flush();
    if (this.#waiting.length) await this.flush();
    this.#stopTimer();
    this.#unwatchExit();
    const rest = this.#waiting.splice(0);
    if (rest.length) this.#lost(rest, new NoAnswerError(`${rest.length} events without an answer at the end`));
  }

  /** Sends until nothing waits, or until the service takes nothing. */
  async #drain(): Promise<void> {
    this.#stopTimer();
    while (this.#waiting.length) {
      // They stay in the queue meanwhile, and count for its bound.
      const events = this.#waiting.slice(0, this.#options.batchEvents);
      const again = await this.#send(events);
      this.#waiting.splice(0, events.length, ...again);
      this.#failures = again.length ? this.#failures + 1 : 0;
      if (again.length) return;
    }
  }

  /** Sends events, reports the refused ones, and returns those to send again. */
  async #send(events: IdentifiedEvent[]): Promise<IdentifiedEvent[]> {
    let results: SentEvent[] = [];
    let unanswered: IdentifiedEvent[] = [];
    try {
      results = await this.#options.sendBatch(events);
    } catch (error) {
      const cause = error instanceof IncompleteBatchError ? error.cause : error;
      if (error instanceof IncompleteBatchError) ({ results, unanswered } = error);
      else unanswered = events;
      if (!(cause instanceof UnavailableError || cause instanceof NoAnswerError)) {
        this.#lost(unanswered, cause);
        unanswered = [];
      }
    }
    const late = events.filter((_, at) => RETRIED_STATUSES.has(results[at]?.problem?.status ?? 0));
    for (const [at, { problem }] of results.entries()) {
      if (problem && !RETRIED_STATUSES.has(problem.status)) this.#lost([events[at]!], new ProblemError(problem));
    }
    return [...late, ...unanswered];
  }

  #lost(events: IdentifiedEvent[], error: unknown): void {
    try {
      this.#options.onLost(events, error);
    } catch (failure) {
      // Nobody waits for a batch, so nobody would catch this.
      console.error("willbuy: onLost failed:", failure);
    }
  }

  #backOffMs(): number {
    const bound = Math.min(LONGEST_BACK_OFF_MS, this.#options.flushIntervalMs * 2 ** this.#failures);
    return bound * (0.5 + Math.random() / 2);
  }

  #schedule(ms: number): void {
    if (this.#timer !== undefined || this.#sending) return;
    this.#timer = setTimeout(() => void this.flush(), ms);
    // Node need not wait for the timer: `beforeExit` sends what waits.
    if (this.#watchesExit) (this.#timer as unknown as { unref?(): void }).unref?.();
  }

  #stopTimer(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  #watchExit(): void {
    const { process } = globalThis as NodeLike;
    if (this.#watchesExit || typeof process?.on !== "function") return;
    process.on("beforeExit", this.#atExit);
    this.#watchesExit = true;
  }

  #unwatchExit(): void {
    (globalThis as NodeLike).process?.off?.("beforeExit", this.#atExit);
    this.#watchesExit = false;
  }
}
