// One connection that carries several channels: it comes back by itself, and notices when it is
// dead. Each transport is a subclass, which knows what goes over the connection.

import { fromBase64 } from "./bytes.js";
import type { ServerFrame } from "./frames.js";
import { disconnected } from "./protocol.js";
import type { Carrier, Info, Sending, Subscription } from "./subscription.js";
import { after, now, type Timer } from "./timing.js";
import { AirwaveError, type Gap, type Member, type Options, type TransportName } from "./types.js";

/** How long a connection may take until it stands. */
const CONNECT_MS = 10_000;
/** How long a connection without a channel is kept. */
const LINGER_MS = 100;
/** A connection that held so long was a good one: the next wait begins small again. */
const GOOD_MS = 5_000;

/** How many channels the server takes on one connection. */
const CHANNELS_PER_CONNECTION = 100;

/**
 * Which token a request needs: the one at hand, a new one, or one in place of a token that the
 * server refused.
 */
export type TokenWanted = "same" | "new" | "refused";

/**
 * The client as its connections see it.
 *
 * A transport knows this interface and no client, so that its file stands below the client's.
 */
export interface ConnectionHost {
  /** The server's address, with a slash at its end. */
  readonly url: string;
  readonly options: Options;
  /** After so many ms without a sign of life a connection counts as dead. */
  readonly silence: number;
  /** The bounds of the wait before another try, in ms. */
  readonly backoff: readonly [number, number];
  /** Whether the application gives tokens. */
  readonly hasToken: boolean;
  /** The class that opens a WebSocket; undefined where there is none. */
  readonly WebSocket: unknown;
  /** Waits for `ms`, or until there is a reason to try at once. */
  pause(ms: number): Promise<void>;
  /** Asks the application for a token. Rejects with `disconnected` if it fails to give one. */
  token(wanted: TokenWanted): Promise<string | undefined>;
  /** Calls `path` of the server. Rejects with an {@link AirwaveError} unless it succeeds. */
  request(path: string, init: RequestInit, wanted?: TokenWanted): Promise<Response>;
  /** Reads the JSON object of an answer. Rejects with `disconnected` if it does not fit. */
  json<T extends object>(response: Response, fits: (value: T) => boolean): Promise<T>;
  /** Asks for a channel's page: how to listen, and the events after a cursor. */
  page<T extends Info>(name: string, cursor: string | undefined): Promise<T>;
  /** Resolves with whether the server answers within seconds. */
  answers(subscription: Subscription): Promise<boolean>;
  /** Resolves with the reason for which the server refuses a channel, if it does. */
  check(subscription: Subscription): Promise<AirwaveError | undefined>;
  /** Resolves with whether plain HTTP works now. */
  reaches(subscription: Subscription): Promise<boolean>;
  /** Moves a channel to the transport that the server's refusal names; returns whether it did. */
  moves(subscription: Subscription, error: AirwaveError): boolean;
  /** Puts a channel on a connection of that kind. */
  carry(subscription: Subscription, kind: TransportName): void;
  /** Moves the channels of a connection over which nothing comes to other transports. */
  fallBack(connection: Connection): void;
  /** Takes the report that a connection carries nothing any more. */
  idle(connection: Connection): void;
  /** Loads what few pages need; undefined if it cannot be loaded. */
  extra(): Promise<{ crowd(url: string, signal: AbortSignal): void } | undefined>;
}

export abstract class Connection implements Carrier {
  abstract readonly kind: TransportName;
  readonly members: Map<string, Subscription> = new Map();
  up = false;
  /**
   * Whether something has come over the present connection. A proxy may let a connection open and
   * hold back what it carries.
   */
  protected proven = false;
  /** How many connections in a row carried nothing although plain HTTP worked. */
  #unproven = 0;
  protected readonly client: ConnectionHost;
  /** Set when a connection ends only so that a new one begins at once. */
  protected again = false;
  /** How long the server asked the client to wait, in ms. */
  protected hint: number | undefined;
  protected base: number;
  protected last = 0;
  #attempt = 0;
  #running = false;
  #watch: Timer | undefined;

  constructor(client: ConnectionHost) {
    this.client = client;
    this.base = client.backoff[0];
  }

  /** Makes one connection and resolves, or rejects, when it is over. */
  protected abstract connect(): Promise<void>;
  /** Ends the present connection, so that `connect` settles. */
  protected abstract cut(error?: AirwaveError): void;
  /** Takes the report that a channel was added or removed. */
  protected abstract changed(subscription: Subscription, added: boolean): void;
  abstract flush(subscription: Subscription): void;
  /** Checks whether the connection is alive, because the page is visible again. */
  abstract probe(): void;
  /** Takes the report that the network has changed: a connection over the old one is dead soon. */
  abstract online(): void;
  /** Checks whether the connection is alive, because the browser has lost its network. */
  abstract offline(): void;

  /**
   * Ends the connection because the page goes into the back/forward cache. The connection comes
   * back when the page does.
   */
  suspend(): void {
    this.cut(disconnected("the page is in the back/forward cache"));
  }

  /** Whether this connection has room for one more channel. */
  takes(_: Subscription): boolean {
    return this.members.size < CHANNELS_PER_CONNECTION;
  }

  add(subscription: Subscription): void {
    subscription.connection = this;
    subscription.live = false;
    this.members.set(subscription.name, subscription);
    this.changed(subscription, true);
    if (this.up) this.flush(subscription);
    void this.#run();
  }

  remove(subscription: Subscription): void {
    if (this.members.get(subscription.name) !== subscription) return;
    this.members.delete(subscription.name);
    subscription.connection = undefined;
    this.changed(subscription, false);
    subscription.live = false;
    subscription.held = false;
    for (const sending of subscription.outbox) sending.sent = false;
    // Not at once: a page that shows something else closes one channel and opens another.
    if (!this.members.size) after(LINGER_MS, () => this.members.size || this.cut());
  }

  async #run(): Promise<void> {
    if (this.#running) return;
    this.#running = true;
    while (this.members.size) {
      let error: AirwaveError | undefined;
      this.again = this.proven = false;
      this.hint = undefined;
      const since = now();
      this.heardWithin(CONNECT_MS);
      try {
        await this.connect();
      } catch (thrown) {
        error = thrown instanceof AirwaveError ? thrown : disconnected(String(thrown));
      }
      clearTimeout(this.#watch);
      if (this.proven || (error && error.code !== "disconnected")) this.#unproven = 0;
      else if (!this.again && this.members.size) await this.#doubt();
      if (this.up && now() - since > GOOD_MS) this.#attempt = 0;
      this.up = false;
      for (const member of this.members.values()) {
        if (this.again) member.live = false;
        else member.down(error);
      }
      this.broken();
      if (this.again || !this.members.size) continue;
      const wait = jitter(this.client, this.#attempt, this.base);
      this.#attempt += 1;
      await this.client.pause(this.hint ?? wait);
    }
    this.#running = false;
    this.client.idle(this);
  }

  /**
   * Asks over plain HTTP whether the server answers. If it does, and two connections in a row carry
   * nothing, a proxy between does not pass this transport, and its channels move.
   */
  async #doubt(): Promise<void> {
    const [first] = this.members.values();
    if (!first || !(await this.client.reaches(first))) return;
    this.#unproven += 1;
    if (this.#unproven > 1) this.client.fallBack(this);
    else this.again = true;
  }

  /** Handles the messages of a connection that is gone: the server took them or did not. */
  protected broken(): void {
    for (const member of this.members.values()) {
      member.held = false;
      for (const sending of [...member.outbox]) lost(sending);
    }
  }

  /** Takes the report that the connection stands, and sends what waits. */
  protected opened(): void {
    this.up = true;
    for (const member of [...this.members.values()]) this.flush(member);
  }

  /** Takes the first sign that the server hears this connection. */
  protected proves(): void {
    this.proven = true;
    this.heardWithin(this.client.silence);
  }

  /** Takes a sign of life. */
  protected alive(): void {
    this.last = now();
  }

  protected heardWithin(limit: number): void {
    clearTimeout(this.#watch);
    this.alive();
    const check = (): void => {
      const left = this.last + limit - now();
      // One timer that looks again: setting a new one for each event would cost more than the
      // event.
      if (left > 0) this.#watch = after(left, check);
      else this.cut(disconnected(`nothing was heard for ${limit} ms`));
    };
    this.#watch = after(limit, check);
  }

  /** Hands an event or a notice, in the form that all transports share, to its channel. */
  protected take(frame: ServerFrame): void {
    const member = this.members.get((frame as { channel: string }).channel);
    const live = member?.live ? member : undefined;
    switch (frame.type) {
      case undefined: {
        const { channel, id, event, key, attributes, text, base64 } = frame;
        const data: unknown = text ?? (base64 === undefined ? frame.data : fromBase64(base64));
        return live?.heard({ channel, id, event, data, ...(key !== undefined && { key }), ...(attributes && { attributes }) });
      }
      case "gap": {
        const { channel, after, cursor, reason } = frame;
        return live?.gap({ channel, after, cursor, reason } as Gap);
      }
      case "end":
        if (live) {
          live.live = false;
          live.ended(frame.cursor);
        }
        return;
      case "stale":
        for (const each of this.members.values()) each.stale();
        return;
      case "presence":
        return live?.listed(frame.members as Member[], frame.more);
      case "join":
        return live?.moved("joined", frame.member as Member);
      case "leave":
        return live?.moved("left", frame.member as Member);
      case "update":
        return live?.moved("updated", frame.member as Member);
    }
  }
}

/**
 * Returns the wait before another try, in ms, after so many tries that failed.
 *
 * Full jitter: many clients that lose their server together come back spread over the time.
 */
export function jitter({ backoff }: ConnectionHost, tries: number, base: number = backoff[0]): number {
  return Math.random() * Math.min(backoff[1], base * 2 ** tries);
}

/** Handles a message whose carrier is gone: whether the server took it is unknown. */
export function lost(sending: Sending): void {
  if (!sending.sent) return;
  sending.sent = false;
  if (!sending.repeat) sending.settle(disconnected("the connection broke before the answer"));
}
