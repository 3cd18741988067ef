// Doing a job again and again: in a steady rhythm while it works, less and less often while it fails.

const PERIOD_MS = 1000;
const LONGEST_WAIT_MS = 5000;

/** How long to wait after so many failures in a row; at random, so that many pages do not come back as one. */
export function backoffMs(failures, leastMs = 0) {
  const ceiling = Math.min(LONGEST_WAIT_MS, PERIOD_MS * 2 ** (failures - 1));
  return Math.max(leastMs, ceiling * (0.5 + Math.random() / 2));
}

/** Runs a job, never twice at a time; by itself only while there is no reason to halt. */
export class Poller {
  #job;
  #onFailure;
  #timer = null;
  #running = false;
  #pokedMeanwhile = false;
  #failures = 0;
  #reasons = new Set();

  /**
   * @param {() => Promise<void>} job
   * @param {(error: Error, waitMs: number|null) => void} onFailure told after each failure when the next try is.
   */
  constructor(job, onFailure) {
    this.#job = job;
    this.#onFailure = onFailure;
  }

  /** Run the job now, halted or not, or once more when it is just running. */
  poke() {
    clearTimeout(this.#timer);
    if (this.#running) this.#pokedMeanwhile = true;
    else this.#run();
  }

  /** Run by itself no more until `reason`, and every other, is released. */
  halt(reason) {
    this.#reasons.add(reason);
    clearTimeout(this.#timer);
  }

  release(reason) {
    if (this.#reasons.delete(reason) && !this.#reasons.size) this.poke();
  }

  async #run() {
    this.#running = true;
    this.#pokedMeanwhile = false;
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
    if (this.#pokedMeanwhile) this.#run();
    else if (!this.#reasons.size) this.#timer = setTimeout(() => this.#run(), waitMs);
  }
}
