// Channels over one SSE stream, and their messages over POST: docs/protocol.md, sections 4 and 6.

import { createParser, type EventSourceMessage } from "eventsource-parser";
import type { Client } from "./client.js";
import { type Frame, isTemporary, Line } from "./line.js";
import { payload, refusal } from "./socket.js";
import type { Sending, Subscription } from "./subscription.js";
import { AirwaveError } from "./types.js";

/** A stream is opened anew for a channel that comes or goes: several of them at once are one reason. */
const COMING_MS = 10;
const GOING_MS = 250;
/** The server gives a sign of life every 15 s. */
const QUIET_MS = 20_000;

export class StreamLine extends Line {
  readonly kind = "sse";
  /** A stream tells of presence in all its channels or in none, and a rule without it refuses. */
  readonly presence: boolean;
  #over: ((error: AirwaveError | undefined) => void) | undefined;
  #reopening: ReturnType<typeof setTimeout> | undefined;
  #speaking = new Set<Subscription>();
  #refusedToken = false;

  constructor(client: Client, presence: boolean) {
    super(client);
    this.presence = presence;
  }

  protected async connect(): Promise<void> {
    await new Promise((done) => setTimeout(done, COMING_MS));
    clearTimeout(this.#reopening);
    const members = [...this.members.values()];
    if (!members.length) return;
    const query = new URLSearchParams({ heartbeat: "event" });
    const some = members.some(({ cursor }) => cursor !== undefined);
    for (const { name, cursor } of members) {
      query.append("channel", name);
      if (some) query.append("after", cursor ?? "");
    }
    if (this.presence) query.set("presence", "true");
    const url = `events?${query}`;
    const abort = new AbortController();
    try {
      const error = await new Promise<AirwaveError | undefined>((done, fail) => {
        this.#over = done;
        this.#fetched(url, abort.signal, members).then(() => done(undefined), fail);
      });
      if (error) throw error;
    } catch (thrown) {
      const error = thrown instanceof AirwaveError ? thrown : new AirwaveError("disconnected", "the stream broke off");
      await this.#judge(error);
      throw error;
    } finally {
      abort.abort();
      this.#over = undefined;
    }
  }

  async #fetched(url: string, signal: AbortSignal, members: Subscription[]): Promise<void> {
    const headers = { accept: "text/event-stream" };
    const response = await this.client.request(url, { headers, signal, cache: "no-store" }, this.#refusedToken ? "refused" : "new");
    if (signal.aborted) return;
    if (response.status === 204) {
      for (const member of members) if (member.line === this) member.ended(member.cursor ?? "0");
      return;
    }
    let error: AirwaveError | undefined;
    const parser = createParser({
      onEvent: (message) => {
        error = this.#hear(message) ?? error;
      },
      onRetry: (ms) => {
        this.hint = ms;
      },
      // Heartbeats of a proxy, too, are signs of life.
      onComment: () => this.alive(),
    });
    const reader = (response.body as ReadableStream<Uint8Array>).getReader();
    // A stream that was given up ends its body with an error; whoever gave it up has gone on by then.
    const decoder = new TextDecoder();
    for (;;) {
      const { done, value } = await reader.read();
      if (done || signal.aborted) break;
      this.alive();
      parser.feed(decoder.decode(value, { stream: true }));
      if (signal.aborted) break;
    }
    if (error) throw error;
  }

  /** Takes one event of the stream; gives the error if it tells one. */
  #hear({ event, data }: EventSourceMessage): AirwaveError | undefined {
    this.alive();
    const frame = JSON.parse(data) as Frame;
    const type = event?.startsWith("airwave.") ? event.slice(8) : undefined;
    if (type === "error") return refusal(frame);
    if (type === "subscribed") {
      // What came before was told for the case that this stream breaks, not to make us wait.
      if (this.hint !== undefined) this.base = this.hint;
      this.hint = undefined;
      this.#refusedToken = false;
      if (!this.up) this.opened();
      this.members.get(frame["channel"] as string)?.confirmed(frame["cursor"] as string, frame["resumed"] as boolean);
    } else this.take(type ? { ...frame, type } : frame);
    return undefined;
  }

  /** What a refused stream means for its channels: the refusal does not say which of them it is about. */
  async #judge(error: AirwaveError): Promise<void> {
    if (isTemporary(error)) return;
    if (error.code === "unauthorized" && this.client.hasToken && !this.#refusedToken) {
      this.#refusedToken = true;
      this.again = true;
      return;
    }
    this.#refusedToken = false;
    const members = [...this.members.values()];
    await Promise.all(
      members.map(async (member) => {
        const why = members.length > 1 ? await this.client.check(member) : error;
        if (!why || member.line !== this || isTemporary(why)) return;
        if (!(why.code === "wrong-transport" && this.client.moves(member, why))) member.refused(why);
      }),
    );
    this.again = members.length > this.members.size;
    if (!this.again && error.code === "bad-request") for (const member of members) member.refused(error);
  }

  protected cut(error?: AirwaveError): void {
    this.#over?.(error);
  }

  protected changed(_: Subscription, added: boolean): void {
    if (!this.#over) return;
    clearTimeout(this.#reopening);
    this.#reopening = setTimeout(
      () => {
        if (!this.#over) return;
        this.again = true;
        this.cut();
      },
      added ? COMING_MS : GOING_MS,
    );
  }

  probe(): void {
    if (this.up && Date.now() - this.last > QUIET_MS) this.cut(new AirwaveError("disconnected", "nothing was heard"));
  }

  flush(subscription: Subscription): void {
    if (!this.#speaking.has(subscription)) void this.#speak(subscription);
  }

  /** One POST after the other, so that what was said first is heard first. */
  async #speak(subscription: Subscription): Promise<void> {
    this.#speaking.add(subscription);
    let tries = 0;
    for (let sending = subscription.outbox[0]; sending && subscription.line === this; sending = subscription.outbox[0]) {
      try {
        sending.settle(null, await this.#post(sending));
        tries = 0;
      } catch (thrown) {
        const error = thrown as AirwaveError;
        if (!sending.repeat || !isTemporary(error) || error.code === "internal") sending.settle(error);
        else {
          await this.client.pause(Math.random() * Math.min(this.client.backoff[1], this.base * 2 ** tries));
          tries += 1;
        }
      }
    }
    this.#speaking.delete(subscription);
  }

  async #post({ to, event, data, key, idempotencyKey }: Sending): Promise<unknown> {
    const response = await this.client.request(`channels/${to.name}`, {
      method: "POST",
      headers: { "content-type": "application/json", "idempotency-key": idempotencyKey },
      body: JSON.stringify({ event, ...payload(data), key }),
    });
    const answer = (await response.json()) as { data: unknown };
    return answer.data;
  }
}
