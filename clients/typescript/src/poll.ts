// Channels over the JSON page of each (docs/protocol.md, section 6): the last resort, where neither
// a stream nor a WebSocket passes.

import type { Page } from "./frames.js";
import { PostingConnection } from "./post.js";
import { isTemporary } from "./protocol.js";
import type { Subscription } from "./subscription.js";
import { after } from "./timing.js";
import type { AirwaveError } from "./types.js";

/** How long the client waits between two pages of a channel. */
const POLL_MS = 2_000;

export class PollConnection extends PostingConnection {
  readonly kind = "polling";
  #over = false;
  #error: AirwaveError | undefined;
  /** Ends the wait for the next round. */
  #wake: () => void = () => {};

  protected async connect(): Promise<void> {
    this.#over = false;
    this.#error = undefined;
    while (!this.#over && this.members.size) {
      for (const member of [...this.members.values()]) {
        if (member.connection === this && !this.#over) await this.#poll(member);
      }
      if (!this.up && !this.#over) {
        this.proves();
        this.opened();
      }
      await new Promise<void>((done) => {
        const timer = after(POLL_MS, done);
        this.#wake = () => {
          clearTimeout(timer);
          done();
        };
      });
    }
    if (this.#error) throw this.#error;
  }

  /** Asks for what is new in a channel. */
  async #poll(member: Subscription): Promise<void> {
    const { name, cursor } = member;
    try {
      const page = await this.client.page<Page>(name, cursor);
      this.alive();
      if (member.connection !== this) return;
      const resumed = cursor !== undefined && page.complete;
      if (!member.live) member.confirmed(cursor === undefined ? page.cursor : cursor, resumed);
      // Without a cursor a channel begins now.
      if (cursor === undefined) member.cursor = page.cursor;
      else {
        if (!page.complete) this.take({ type: "gap", channel: name, after: cursor, cursor, reason: "history-expired" });
        for (const event of page.events) if (event.event !== "airwave.end") this.take(event);
        member.cursor = page.cursor;
      }
      if (page.more) this.#wake();
      else if (page.ended) this.take({ type: "end", channel: name, cursor: page.cursor });
    } catch (thrown) {
      const error = thrown as AirwaveError;
      if (isTemporary(error)) this.cut(error);
      else if (member.connection === this) member.refused(error);
    }
  }

  protected cut(error?: AirwaveError): void {
    this.#over = true;
    this.#error ??= error;
    this.#wake();
  }

  protected changed(): void {
    this.#wake();
  }

  probe(): void {
    this.#wake();
  }

  online(): void {
    this.#wake();
  }

  offline(): void {}
}
