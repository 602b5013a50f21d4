// Channels over one SSE stream, and their messages over POST: docs/protocol.md, sections 4 and 6.

import { createParser, type EventSourceMessage } from "eventsource-parser";
import type { ConnectionHost } from "./connection.js";
import type { Failure, ServerFrame, Subscribed } from "./frames.js";
import { PostingConnection } from "./post.js";
import { disconnected, isTemporary, object, refusal, TooLong } from "./protocol.js";
import type { Subscription } from "./subscription.js";
import { after, now, type Timer } from "./timing.js";
import { AirwaveError } from "./types.js";

/**
 * How long a stream waits for further changes before it opens again, because a channel was added or
 * removed.
 */
const COMING_MS = 10;
const GOING_MS = 250;
/** A stream is suspect after that time: the server gives a sign of life every 15 s. */
const QUIET_MS = 20_000;
/** How long a request may be that every proxy takes: the smallest limit in use is 4 kB. */
const REQUEST_BYTES = 3_500;
/**
 * Returns how many bytes a channel adds to the request: its name, a cursor of 16 digits, and the
 * names of the parameters.
 */
const bytesOf = ({ name }: Subscription): number => encodeURIComponent(name).length + 16 + "&channel=&after=".length;

export class StreamConnection extends PostingConnection {
  readonly kind = "sse";
  /** Whether the stream asks for presence: in all its channels or in none. */
  readonly #presence: boolean;
  #over: ((error: AirwaveError | undefined) => void) | undefined;
  #reopening: Timer | undefined;
  /** How many bytes the channels may add to the request; fewer after a proxy refused it. */
  #room: number = REQUEST_BYTES;
  #refusedToken = false;

  /** Returns true: every platform has streams. */
  static works(): boolean {
    return true;
  }

  constructor(client: ConnectionHost, first: Subscription) {
    super(client);
    this.#presence = first.options.presence === true;
  }

  override takes(subscription: Subscription): boolean {
    const bytes = [...this.members.values()].reduce((sum, member) => sum + bytesOf(member), bytesOf(subscription));
    return super.takes(subscription) && this.#presence === (subscription.options.presence === true) && (!this.members.size || bytes <= this.#room);
  }

  protected async connect(): Promise<void> {
    await new Promise<void>((done) => after(COMING_MS, done));
    clearTimeout(this.#reopening);
    const members = [...this.members.values()];
    if (!members.length) return;
    const query = new URLSearchParams({ heartbeat: "event" });
    const some = members.some(({ cursor }) => cursor !== undefined);
    for (const { name, cursor } of members) {
      query.append("channel", name);
      if (some) query.append("after", cursor ?? "");
    }
    if (this.#presence) query.set("presence", "true");
    const url = `events?${query}`;
    const abort = new AbortController();
    try {
      const error = await new Promise<AirwaveError | undefined>((done, fail) => {
        this.#over = done;
        this.#fetched(url, abort.signal, members).then(() => done(undefined), fail);
      });
      if (error) throw error;
    } catch (thrown) {
      const error = thrown instanceof AirwaveError ? thrown : disconnected("the stream broke off");
      if (error instanceof TooLong) this.#split();
      else await this.#judge(error);
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
      for (const member of members) if (member.connection === this) member.ended(member.cursor ?? "0");
      return;
    }
    if (!response.headers.get("content-type")?.startsWith("text/event-stream")) {
      throw disconnected(`what answers is not Airwave: the stream is of the type ${response.headers.get("content-type")}`);
    }
    if (!this.client.options.share && globalThis.document) void this.client.extra().then((extra) => extra?.crowd(this.client.url, signal));
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
    // The body of an aborted stream ends with an error. The code that aborted it has gone on by
    // then.
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

  /** Handles one event of the stream; returns the error that it tells, if it tells one. */
  #hear({ event, data }: EventSourceMessage): AirwaveError | undefined {
    this.alive();
    const frame = object(data);
    if (!frame) throw disconnected("what answers is not Airwave: an event is no JSON object");
    const type = event?.startsWith("airwave.") ? event.slice(8) : undefined;
    if (type === "error") return refusal(frame as Failure);
    if (type === "subscribed") {
      // The `retry:` before this event is for the case that this stream breaks.
      if (this.hint !== undefined) this.base = this.hint;
      this.hint = undefined;
      this.#refusedToken = false;
      if (!this.up) {
        this.proves();
        this.opened();
      }
      const { channel, cursor, resumed } = frame as Subscribed;
      this.members.get(channel)?.confirmed(cursor, resumed);
    } else this.take((type ? { ...frame, type } : frame) as ServerFrame);
    return undefined;
  }

  /**
   * Finds the channels for which the server refused the stream, because the refusal does not name
   * them, and refuses or moves those.
   */
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
        if (!why || member.connection !== this || isTemporary(why)) return;
        if (!(why.code === "wrong-transport" && this.client.moves(member, why))) member.refused(why);
      }),
    );
    this.again = members.length > this.members.size;
    if (!this.again && error.code === "bad-request") for (const member of members) member.refused(error);
  }

  /**
   * Moves half of the channels to another connection, because a proxy between takes no request of
   * that length. Both connections try at once.
   */
  #split(): void {
    const members = [...this.members.values()];
    this.again = members.length > 1;
    this.#room = Math.ceil(members.reduce((sum, member) => sum + bytesOf(member), 0) / 2);
    for (const member of members.slice(Math.ceil(members.length / 2))) {
      this.remove(member);
      this.client.carry(member, this.kind);
    }
  }

  protected cut(error?: AirwaveError): void {
    this.#over?.(error);
  }

  protected changed(_: Subscription, added: boolean): void {
    if (!this.#over) return;
    clearTimeout(this.#reopening);
    this.#reopening = after(added ? COMING_MS : GOING_MS, () => {
      if (!this.#over) return;
      this.again = true;
      this.cut();
    });
  }

  probe(): void {
    if (this.up && now() - this.last > QUIET_MS) this.cut(disconnected("nothing was heard"));
  }

  // Nothing goes to the server on a stream, so that a dead one looks like a quiet one.
  online(): void {
    if (!this.#over) return;
    this.again = true;
    this.cut();
  }

  offline(): void {
    const [first] = this.members.values();
    if (!this.up || !first) return;
    void this.client.answers(first).then((answers) => {
      if (this.up && !answers) this.cut(disconnected("the browser is offline, and the server does not answer"));
    });
  }
}
