// What one listener has heard so far, and waiting for more of it. Tests wait for events, never for
// time: the limit below only turns a wait that would be endless into a failure that says what had
// come until then.

const LIMIT_MS = 30_000;

export class Collector {
  entries = [];
  #waiting = new Set();

  constructor(name = "listener") {
    this.name = name;
  }

  push(entry) {
    this.entries.push(entry);
    for (const wake of [...this.#waiting]) wake();
  }

  /**
   * Resolves with all entries as soon as `done(entries)` holds; `what` says in a failure what was
   * waited for.
   */
  until(done, what) {
    return new Promise((resolve, reject) => {
      const settle = (settled, value) => {
        this.#waiting.delete(wake);
        clearTimeout(timer);
        settled(value);
      };
      const wake = () => {
        try {
          if (done(this.entries)) settle(resolve, this.entries);
        } catch (error) {
          settle(reject, error);
        }
      };
      const timer = setTimeout(() => {
        settle(reject, new Error(`${this.name}: waited for ${what}; until then came ${JSON.stringify(this.entries, null, 1)}`));
      }, LIMIT_MS);
      this.#waiting.add(wake);
      wake();
    });
  }

  /** Resolves with the first entry, from index `from` on, for which `matches` holds. */
  async first(matches, what, from = 0) {
    await this.until((entries) => entries.slice(from).some(matches), what);
    return this.entries.slice(from).find(matches);
  }

  /** Resolves with the first `count` entries for which `matches` holds. */
  async count(count, matches, what) {
    await this.until((entries) => entries.filter(matches).length >= count, `${count} × ${what}`);
    return this.entries.filter(matches).slice(0, count);
  }
}
