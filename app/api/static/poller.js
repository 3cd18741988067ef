// Polling: at a fixed period while the job succeeds, with exponential backoff while it fails.

const PERIOD_MS = 1000;
const MAX_WAIT_MS = 5000;

/** Return the wait after `failures` failures in a row, with jitter, so that many pages do not retry at the same time. */
export function backoffMs(failures, minimumMs = 0) {
  const ceiling = Math.min(MAX_WAIT_MS, PERIOD_MS * 2 ** (failures - 1));
  return Math.max(minimumMs, ceiling * (0.5 + Math.random() / 2));
}

/** Runs a job periodically while no reason to halt is set. Runs never overlap. */
export class Poller {
  #job;
  #onFailure;
  #timer = null;
  #running = false;
  #runAgain = false;
  #failures = 0;
  #reasons = new Set();

  /**
   * @param {() => Promise<void>} job
   * @param {(error: Error, waitMs: number|null) => void} onFailure called after each failure with the wait before the
   *   next run; null while halted.
   */
  constructor(job, onFailure) {
    this.#job = job;
    this.#onFailure = onFailure;
  }

  /** Run the job now, even while halted. If the job is running, run it once more afterwards. */
  pollNow() {
    clearTimeout(this.#timer);
    if (this.#running) this.#runAgain = true;
    else this.#run();
  }

  /** Stop periodic runs until `reason` and all other reasons are released. */
  halt(reason) {
    this.#reasons.add(reason);
    clearTimeout(this.#timer);
  }

  /** Remove `reason`. If it was the last one, run the job now. */
  release(reason) {
    if (this.#reasons.delete(reason) && !this.#reasons.size) this.pollNow();
  }

  async #run() {
    this.#running = true;
    this.#runAgain = false;
    let waitMs = PERIOD_MS;
    try {
      await this.#job();
      this.#failures = 0;
    } catch (error) {
      this.#failures += 1;
      waitMs = backoffMs(this.#failures, error.retryAfterMs ?? 0);
      this.#onFailure(error, this.#reasons.size ? null : waitMs);
    }
    this.#running = false;
    if (this.#runAgain) this.#run();
    else if (!this.#reasons.size) this.#timer = setTimeout(() => this.#run(), waitMs);
  }
}
