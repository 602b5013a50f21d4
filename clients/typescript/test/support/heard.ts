// What one channel has heard so far, and waiting for more of it: for events, never for time.

import { onTestFinished } from "vitest";
import { type Airwave, type AnyEvent, type AnyEvents, type Channel, connect, type ControlEvents, type Options } from "../../src/index.js";
import WebSocket from "ws";

const LIMIT_MS = 30_000;

/** Control events by name, and events under their own. */
export interface Entry {
  what: string;
  // biome-ignore lint: whatever was told
  told: any;
}

export class Heard {
  readonly entries: Entry[] = [];
  readonly channel: Channel;
  #waiting = new Set<() => void>();

  constructor(channel: Channel) {
    this.channel = channel;
    const push = (what: string, told: unknown): void => {
      this.entries.push({ what, told });
      for (const wake of [...this.#waiting]) wake();
    };
    for (const name of ["gap", "end", "resumed", "state", "stale", "presence", "error"] as (keyof ControlEvents)[]) channel.on(name, (told: unknown) => push(`!${name}`, told));
    channel.on("*", (_: unknown, event: AnyEvent<AnyEvents>) => {
      if (event.event !== "airwave.gap") push(event.event, event);
    });
  }

  until<T>(found: (entries: Entry[]) => T | undefined | false, what: string): Promise<T> {
    return new Promise((resolve, reject) => {
      const wake = (): void => {
        const result = found(this.entries);
        if (result === undefined || result === false) return;
        this.#waiting.delete(wake);
        clearTimeout(timer);
        resolve(result);
      };
      const timer = setTimeout(() => reject(new Error(`${this.channel.name}: waited for ${what}; last came ${JSON.stringify(this.entries.slice(-20), null, 1)}`)), LIMIT_MS);
      this.#waiting.add(wake);
      wake();
    });
  }

  /** The first entry, from index `from` on, of that kind. */
  // biome-ignore lint: whatever was told
  async first(what: string, from = 0, matches: (told: any) => boolean = () => true): Promise<any> {
    const entry = await this.until((entries) => entries.slice(from).find((each) => each.what === what && matches(each.told)), what);
    return entry.told;
  }

  state(state: string, from = 0): Promise<unknown> {
    return this.first("!state", from, (told) => told.state === state);
  }

  /** The data of the first `count` events of a name. */
  async data(event: string, count: number): Promise<unknown[]> {
    await this.until((entries) => entries.filter(({ what }) => what === event).length >= count, `${count} × ${event}`);
    return this.all(event).map(({ data }) => data);
  }

  // biome-ignore lint: whatever was told
  all(what: string): any[] {
    return this.entries.filter((entry) => entry.what === what).map(({ told }) => told);
  }
}

/** A client that goes with the test. Node 20 has no WebSocket of its own. */
export function client(url: string, options: Options = {}): Airwave {
  const made = connect(url, { WebSocket, backoff: [50, 500], ...options });
  onTestFinished(() => made.close());
  return made;
}
