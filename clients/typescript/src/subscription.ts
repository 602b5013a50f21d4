// One channel over any transport: its cursor, its listeners, and the messages that wait.

import {
  AirwaveError,
  type AnyEvent,
  type AnyEvents,
  type Channel,
  type ChannelEvent,
  type ChannelOptions,
  type ControlEvents,
  type Gap,
  type Member,
  type Off,
  type Presence,
  type SendOptions,
  type State,
  type TransportName,
} from "./types.js";
import type { Attributes } from "./frames.js";
import { checkSend, toJson } from "./names.js";
import { disconnected } from "./protocol.js";
import { after } from "./timing.js";

/** The client as its subscriptions see it. */
export interface Owner {
  readonly queue: number;
  /** Takes the report, once, that nothing more comes. */
  over(subscription: Subscription): void;
}

/** What carries a channel: a connection of this client's own, or another tab's. */
export interface Carrier {
  readonly kind: TransportName;
  /** Whether messages can go now. */
  readonly up: boolean;
  /** Sends what waits in a channel's outbox, if it can go now. */
  flush(subscription: Subscription): void;
  remove(subscription: Subscription): void;
}

/** How to listen to a channel, as its page says. */
export interface Info {
  transport: string | null;
  transports: string[];
  ended: boolean;
}

/** A message that has no answer yet. */
export interface Sending {
  readonly to: Subscription;
  readonly event: string;
  /** Bytes, or JSON text that was written once, when the application handed the message over. */
  readonly data: string | Uint8Array;
  readonly key: string | undefined;
  readonly attributes: Attributes | undefined;
  readonly idempotencyKey: string;
  readonly repeat: boolean;
  readonly reply: boolean;
  /** Whether it is on its way over the present connection. */
  sent: boolean;
  /** Whether a fresh token was tried for it already. */
  retried: boolean;
  /** Why the server refused it the last time, if it goes again. */
  why: string | undefined;
  settle(error: AirwaveError | null, value?: unknown): void;
}

/** How many events a slow `for await` may be behind before it ends with `overflow`. */
const READER_LIMIT = 10_000;

const CONTROL: { [K in keyof ControlEvents]: true } = { gap: true, end: true, resumed: true, state: true, stale: true, presence: true, error: true };

type Listener = (first: unknown, second?: unknown) => void;

export class Subscription implements Channel<AnyEvents, AnyEvents> {
  readonly name: string;
  readonly options: ChannelOptions;
  cursor: string | undefined;
  state: State = "connecting";
  members: readonly Member[] = [];
  connection: Carrier | undefined;
  /** Whether it is confirmed on the present connection. Events before that are not its own. */
  live = false;
  /** Whether a fresh token was tried since it was last confirmed. */
  retried = false;
  info: Info | undefined;
  /** How many callers of `channel` have it. */
  users = 1;
  /** Whether messages wait because the server refused one for now. */
  held = false;
  readonly outbox: Sending[] = [];
  #owner: Owner;
  /** The pages so far of a list of members that is not complete yet. */
  #page: readonly Member[] | undefined;
  #wasDown = false;
  #listeners = new Map<string, Set<Listener>>();
  #readers = new Set<(event: AnyEvent<AnyEvents> | AirwaveError | null) => void>();

  constructor(owner: Owner, name: string, options: ChannelOptions) {
    this.#owner = owner;
    this.name = name;
    this.options = options;
    this.cursor = options.after;
  }

  get transport(): TransportName | undefined {
    return this.connection?.kind;
  }

  get isOver(): boolean {
    return this.state === "ended" || this.state === "refused" || this.state === "closed";
  }

  // ---- listening ---------------------------------------------------------------------------

  on(event: string, listener: (first: never, second: never) => void): Off {
    // No published event has a "!" in its name, so an event of the client cannot be taken for one.
    const name = Object.hasOwn(CONTROL, event) ? `!${event}` : event;
    let set = this.#listeners.get(name);
    if (!set) this.#listeners.set(name, (set = new Set()));
    set.add(listener as Listener);
    return () => set.delete(listener as Listener);
  }

  #tell(name: string, first: unknown, second?: unknown): boolean {
    const set = this.#listeners.get(name);
    if (!set?.size) return false;
    for (const listener of [...set]) {
      try {
        listener(first, second);
      } catch (error) {
        // A listener that throws keeps no other listener from the event.
        queueMicrotask(() => {
          throw error;
        });
      }
    }
    return true;
  }

  #read(event: AnyEvent<AnyEvents>): void {
    for (const push of [...this.#readers]) push(event);
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<AnyEvent<AnyEvents>, void, undefined> {
    const waiting: (AnyEvent<AnyEvents> | AirwaveError | null)[] = this.isOver ? [null] : [];
    let wake: (() => void) | undefined;
    const push = (event: AnyEvent<AnyEvents> | AirwaveError | null): void => {
      if (waiting.length > READER_LIMIT) {
        waiting.length = 0;
        event = new AirwaveError("overflow", `'for await' over '${this.name}' fell ${READER_LIMIT} events behind`);
        this.#readers.delete(push);
      }
      waiting.push(event);
      wake?.();
    };
    this.#readers.add(push);
    try {
      for (;;) {
        while (waiting.length) {
          const event = waiting.shift();
          if (!event) return;
          if (event instanceof AirwaveError) throw event;
          yield event;
        }
        await new Promise<void>((done) => (wake = done));
      }
    } finally {
      this.#readers.delete(push);
    }
  }

  // ---- what the connection reports ---------------------------------------------------------

  /** Takes a confirmation. `resumed`: the channel goes on behind the cursor that was given. */
  confirmed(cursor: string, resumed: boolean): void {
    this.live = true;
    this.retried = false;
    // If the server could not follow the cursor, the old one stays until the gap comes. Otherwise a
    // connection that breaks between them would hide the gap.
    if (resumed || this.cursor === undefined) this.cursor = cursor;
    const back = this.#wasDown && resumed;
    this.#wasDown &&= !resumed;
    this.become("open");
    if (back) this.#tell("!resumed", { channel: this.name, cursor });
  }

  heard(event: ChannelEvent): void {
    this.cursor = event.id;
    this.#tell(event.event, event.data, event);
    this.#tell("*", event.data, event);
    this.#read(event);
  }

  gap(gap: Gap): void {
    this.cursor = gap.cursor;
    const event = { channel: this.name, id: gap.cursor, event: "airwave.gap" as const, data: gap };
    const told = [this.#tell("!gap", gap), this.#tell("*", gap, event), this.#readers.size > 0];
    this.#read(event);
    if (!told.includes(true)) console.warn(`airwave: events of '${this.name}' are lost (${gap.reason}), and nothing listens to "gap"`);
  }

  stale(): void {
    this.#tell("!stale", {});
  }

  ended(cursor: string): void {
    this.cursor = cursor;
    this.#tell("!end", { channel: this.name, cursor });
    this.#finish("ended", new AirwaveError("ended", `the channel '${this.name}' has ended`));
  }

  refused(error: AirwaveError): void {
    if (!this.#tell("!error", error)) console.error(`airwave: '${this.name}' is refused: ${error.message}`);
    this.#finish("refused", error);
  }

  down(error: AirwaveError | undefined): void {
    this.live = false;
    this.#page = undefined;
    this.#wasDown = true;
    this.become("waiting", error);
  }

  /** Takes a page of the list of members. */
  listed(members: readonly Member[], more: boolean): void {
    const all = [...(this.#page ?? []), ...members];
    this.#page = more ? all : undefined;
    if (!more) this.present({ members: all });
  }

  present(presence: Presence): void {
    this.members = presence.members;
    this.#tell("!presence", presence);
  }

  /** Takes a member that joined, left or changed. */
  moved(kind: "joined" | "left" | "updated", member: Member): void {
    const others = this.members.filter(({ user }) => user !== member.user);
    this.present({ members: kind === "left" ? others : [...others, member], [kind]: member });
  }

  become(state: State, error?: AirwaveError): void {
    if (this.isOver || (this.state === state && !error)) return;
    this.state = state;
    this.#tell("!state", { state, transport: this.transport, ...(error && { error }) });
  }

  // ---- sending -----------------------------------------------------------------------------

  // biome-ignore lint: the typed signature is the interface's
  send(event: string, data?: unknown, options: SendOptions = {}): Promise<any> {
    return new Promise((resolve, reject) => {
      const { repeat = true, timeout = 30_000 } = options;
      if (this.isOver) return reject(new AirwaveError(this.state === "ended" ? "ended" : "closed", `the channel '${this.name}' is ${this.state}`));
      const up = this.connection?.up ?? false;
      // Over a WebSocket a message waits until the subscription is confirmed.
      const speaks = up && (this.live || this.transport !== "websocket");
      if ((!up && !repeat) || (!speaks && this.outbox.length >= this.#owner.queue)) {
        return reject(disconnected(`no connection to '${this.name}'`));
      }
      const idempotencyKey = options.idempotencyKey ?? unique();
      const wrong = checkSend(event, idempotencyKey);
      if (wrong) return reject(wrong);
      // Written only here: data that JSON cannot carry fails this promise alone, and a later change
      // of the data changes nothing.
      const text = data instanceof Uint8Array ? data.slice() : toJson(data);
      const timer = after(timeout, () => sending.settle(new AirwaveError("timeout", `no answer within ${timeout} ms${sending.why ? `; the last one: ${sending.why}` : ""}`)));
      const sending: Sending = {
        to: this,
        event,
        data: text,
        key: options.key,
        // A copy, for the same reason.
        attributes: options.attributes && { ...options.attributes },
        idempotencyKey,
        repeat,
        reply: repeat || options.reply !== false,
        sent: false,
        retried: false,
        why: undefined,
        settle: (error, value) => {
          const at = this.outbox.indexOf(sending);
          if (at < 0) return;
          this.outbox.splice(at, 1);
          clearTimeout(timer);
          if (error) reject(error);
          else resolve(value);
        },
      };
      this.outbox.push(sending);
      this.connection?.flush(this);
    });
  }

  close(): void {
    this.users -= 1;
    if (this.users <= 0) this.shut();
  }

  /** Closes for all callers. */
  shut(): void {
    this.#finish("closed", new AirwaveError("closed", `the channel '${this.name}' was closed`));
  }

  #finish(state: State, error: AirwaveError): void {
    if (this.isOver) return;
    this.become(state, state === "refused" ? error : undefined);
    this.connection?.remove(this);
    for (const sending of [...this.outbox]) sending.settle(error);
    for (const push of [...this.#readers]) push(state === "refused" ? error : null);
    this.#owner.over(this);
  }
}

/**
 * Returns a key that no other message has.
 *
 * Only secure origins have `randomUUID`. Elsewhere two random numbers are enough: the key has to be
 * different, not secret.
 */
function unique(): string {
  return globalThis.crypto?.randomUUID?.() ?? [Math.random(), Math.random()].join();
}
