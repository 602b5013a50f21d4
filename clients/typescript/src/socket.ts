// Channels over one WebSocket: docs/protocol.md, section 5.

import { decodeFrame, encodeFrame, toBase64Url } from "./bytes.js";
import { Connection, type ConnectionHost } from "./connection.js";
import type { ErrorFrame, ServerFrame, Subscribed } from "./frames.js";
import { CLOSE_CODES, disconnected, envelope, isTemporary, object, refusal } from "./protocol.js";
import { type Sending, Subscription } from "./subscription.js";
import { after, now, type Timer } from "./timing.js";
import { AirwaveError } from "./types.js";

/**
 * Stays below the server's limits: it takes 100 frames per second and 200 in a burst, and closes
 * the connection on more.
 */
const FRAMES_PER_MS = 0.09;
const BURST = 150;
/** How long a connection may take to answer a ping. */
const PONG_MS = 5_000;

export class SocketConnection extends Connection {
  readonly kind = "websocket";
  #socket: WebSocket | undefined;
  #over: ((error: AirwaveError | undefined) => void) | undefined;
  #id = 0;
  /** What waits for the answer to the command of a number. */
  #asked = new Map<number, Sending | Subscription>();
  #queue: (string | Uint8Array)[] = [];
  #allowance = BURST;
  #filled = 0;
  #pacing: Timer | undefined;
  #refusedToken = false;

  /** Returns whether this platform opens WebSockets. */
  static works({ WebSocket }: ConnectionHost): boolean {
    return WebSocket !== undefined;
  }

  protected async connect(): Promise<void> {
    const { client } = this;
    const token = await client.token(this.#refusedToken ? "refused" : "new");
    if (!this.members.size) return;
    const url = `${client.url.replace(/^http/, "ws")}socket?heartbeat=event&batch=true`;
    const Socket = client.WebSocket as typeof WebSocket;
    const socket = token ? new Socket(url, ["airwave", `airwave.bearer.${toBase64Url(token)}`]) : new Socket(url);
    socket.binaryType = "arraybuffer";
    // The close that follows tells what went wrong. Without this listener an error ends a Node
    // process.
    socket.onerror = () => {};
    this.#socket = socket;
    let said: AirwaveError | undefined;
    const error = await new Promise<AirwaveError | undefined>((done) => {
      this.#over = done;
      socket.onopen = () => {
        this.#allowance = BURST;
        this.#filled = now();
        for (const member of this.members.values()) this.#subscribe(member);
        this.opened();
      };
      socket.onmessage = ({ data }: MessageEvent) => {
        if (this.proven) this.alive();
        else this.proves();
        if (typeof data !== "string") {
          const event = decodeFrame(data as ArrayBuffer);
          const member = event && this.members.get(event.channel);
          if (member?.live) member.heard(event!);
          return;
        }
        const told = object(data);
        // Events that wait come in one frame: a browser spends more on a frame than on an event.
        for (const frame of [told].flat() as (ServerFrame | null | undefined)[]) {
          if (typeof frame !== "object" || !frame) return this.cut(disconnected("what answers is not Airwave: a frame is no JSON object"));
          if (frame.type === "error" && frame.id === null) said = refusal(frame);
          this.#answer(frame);
        }
      };
      socket.onclose = ({ code, reason }: CloseEvent) => {
        this.hint = code === 1012 ? Number(/retry=(\d+)/.exec(reason)?.[1] ?? NaN) || undefined : undefined;
        done(new AirwaveError(CLOSE_CODES[code] ?? "disconnected", said?.message ?? (reason || `the WebSocket closed with ${code}`), said?.transport));
      };
    });
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close();
    this.#socket = this.#over = undefined;
    if (error) {
      this.#judge(error);
      throw error;
    }
  }

  /** Refuses all channels of this connection, unless a later try may succeed. */
  #judge(error: AirwaveError): void {
    if (error.code === "too-large") {
      for (const asked of this.#asked.values()) if (!(asked instanceof Subscription)) asked.settle(error);
      return;
    }
    const retries = error.code === "unauthorized" && this.client.hasToken && !this.#refusedToken;
    this.#refusedToken = retries;
    if (retries) this.again = true;
    else if (!isTemporary(error)) for (const member of [...this.members.values()]) member.refused(error);
  }

  protected cut(error?: AirwaveError): void {
    this.#over?.(error);
  }

  protected override broken(): void {
    clearTimeout(this.#pacing);
    this.#pacing = undefined;
    this.#queue = [];
    this.#asked.clear();
    super.broken();
  }

  protected changed(subscription: Subscription, added: boolean): void {
    if (!this.up) return;
    if (added) this.#subscribe(subscription);
    else if (subscription.state !== "ended" && subscription.state !== "refused") {
      this.#write(JSON.stringify({ type: "unsubscribe", id: (this.#id += 1), channel: subscription.name }));
    }
  }

  probe(): void {
    if (!this.up) return;
    const asked = now();
    // A frame that came in this moment is no answer.
    this.last = asked - 1;
    this.#write('{"type":"ping"}');
    after(PONG_MS, () => {
      if (this.up && this.last < asked) this.cut(disconnected("a ping was not answered"));
    });
  }

  // A ping answers within seconds, and a socket that survived keeps what is on its way.
  online(): void {
    this.probe();
  }

  offline(): void {
    this.probe();
  }

  #subscribe(subscription: Subscription): void {
    const id = this.#ask(subscription);
    const { name, cursor, options } = subscription;
    this.#write(JSON.stringify({ type: "subscribe", id, channel: name, after: cursor, presence: options.presence || undefined }));
  }

  #ask(who: Sending | Subscription): number {
    this.#id += 1;
    this.#asked.set(this.#id, who);
    return this.#id;
  }

  flush({ name, outbox, held, live }: Subscription): void {
    // The server takes messages of a channel that this connection listens to, and of no other.
    if (!this.up || held || !live) return;
    for (const sending of [...outbox]) {
      if (sending.sent) continue;
      sending.sent = true;
      const id = sending.reply ? this.#ask(sending) : undefined;
      const { data, event, key, attributes } = sending;
      if (data instanceof Uint8Array && !sending.repeat && !attributes) this.#write(encodeFrame(name, event, id, data));
      else {
        const idempotency_key = sending.repeat ? sending.idempotencyKey : undefined;
        this.#write(envelope({ type: "send", id, channel: name, event, key, attributes, idempotency_key }, data));
      }
      if (id === undefined) sending.settle(null, null);
    }
  }

  #answer(frame: ServerFrame): void {
    const id = (frame as { id: number }).id;
    const asked = frame.type ? this.#asked.get(id) : undefined;
    if (!asked) return this.take(frame);
    this.#asked.delete(id);
    if (asked instanceof Subscription) {
      if (this.members.get(asked.name) !== asked) return;
      if (frame.type === "error") this.#notSubscribed(asked, refusal(frame));
      else {
        const { cursor, resumed } = frame as Subscribed;
        this.#refusedToken = false;
        asked.confirmed(cursor, resumed);
        this.flush(asked);
      }
    } else if (frame.type === "reply") {
      asked.settle(null, frame.data);
    } else {
      const error = refusal(frame as ErrorFrame);
      if (asked.repeat && error.code === "unauthorized" && this.client.hasToken && !asked.retried) {
        asked.retried = true;
        this.#renew();
      } else if (asked.repeat && isTemporary(error) && error.code !== "internal") {
        asked.why = error.message;
        this.#hold(asked.to);
      } else asked.settle(error);
    }
  }

  /**
   * Makes a channel's messages wait because the server refused one for now.
   *
   * Later all messages without an answer go again, in order. The server knows those that it has
   * done by their idempotency keys.
   */
  #hold(subscription: Subscription): void {
    if (subscription.held) return;
    subscription.held = true;
    void this.client.pause(Math.random() * this.base).then(() => {
      if (!subscription.held || this.members.get(subscription.name) !== subscription) return;
      for (const [id, asked] of this.#asked) {
        if (asked instanceof Subscription || asked.to !== subscription || !asked.repeat) continue;
        this.#asked.delete(id);
      }
      subscription.held = false;
      for (const sending of subscription.outbox) sending.sent &&= !sending.repeat;
      this.flush(subscription);
    });
  }

  #notSubscribed(subscription: Subscription, error: AirwaveError): void {
    if (error.code === "unauthorized" && this.client.hasToken && !subscription.retried) {
      subscription.retried = true;
      this.#renew();
    } else if (error.code === "wrong-transport" && this.client.moves(subscription, error)) {
      return;
    } else if (isTemporary(error)) {
      subscription.down(error);
      void this.client.pause(this.base + Math.random() * this.base).then(() => {
        if (this.up && this.members.get(subscription.name) === subscription && !subscription.live) this.#subscribe(subscription);
      });
    } else subscription.refused(error);
  }

  /** Connects again at once, with a fresh token. The channels go on behind their cursors. */
  #renew(): void {
    this.#refusedToken = true;
    this.again = true;
    this.cut();
  }

  #write(frame: string | Uint8Array): void {
    this.#queue.push(frame);
    this.#pace();
  }

  #pace(): void {
    const time = now();
    this.#allowance = Math.min(BURST, this.#allowance + (time - this.#filled) * FRAMES_PER_MS);
    this.#filled = time;
    while (this.#queue.length && this.#allowance >= 1) {
      this.#allowance -= 1;
      this.#socket?.send(this.#queue.shift() as string);
    }
    if (this.#queue.length) {
      this.#pacing ??= setTimeout(() => {
        this.#pacing = undefined;
        this.#pace();
      }, 20);
    }
  }
}
