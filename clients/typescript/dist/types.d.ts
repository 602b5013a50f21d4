//#region src/types.d.ts
/** Why events are lost: the reasons of docs/protocol.md. */
type GapReason = "unknown-position" | "history-expired" | "too-slow" | "broker-lost-data" | (string & {});
/**
* Codes of the server (docs/protocol.md, section 3), and of this client: `closed`, `disconnected`,
* `timeout`, `overflow`.
*/
type Code = "bad-request" | "unauthorized" | "forbidden" | "unknown-channel" | "wrong-transport" | "ended" | "too-large" | "too-many" | "unavailable" | "internal" | "closed" | "disconnected" | "timeout" | "overflow" | (string & {});
/** A refusal or a failure: a code for the program, and a message for people. */
declare class AirwaveError extends Error {
  /** What went wrong. */
  readonly code: Code;
  /** With `wrong-transport`: the transport to use instead. */
  readonly transport: string | undefined;
  constructor(code: Code, message: string, transport?: string);
}
/**
* The events of a channel as a map of names to payloads. An application gives that map itself, or
* the union of `{ event, data }` that the generator makes from a Rust enum.
*/
type EventsOf<E> = [E] extends [{
  event: string;
}] ? { [U in E as U["event"]]: U extends {
  data: infer D;
} ? D : null } : E;
/** The events of a channel without a type: any name, any payload. */
type AnyEvents = Record<string, any>;
/** One event, as `for await` yields it and listeners get it as their second argument. */
interface ChannelEvent<Name extends string = string, Data = unknown> {
  readonly channel: string;
  /** Its position, which is a cursor: a listener that gives it goes on behind this event. */
  readonly id: string;
  readonly event: Name;
  /** JSON as it was published, a string for text, a `Uint8Array` for binary. */
  readonly data: Data;
  /** What the event is about, if its publisher gave a key. */
  readonly key?: string;
  /**
  * Texts beside the data, such as `content-type`. A binary event on a WebSocket and an event of a
  * plain `EventSource` have none, and no key.
  */
  readonly attributes?: Readonly<Record<string, string>>;
}
/** An announced loss: events after `after` are gone, and the channel goes on behind `cursor`. */
interface Gap {
  readonly channel: string;
  /** The last event before the loss; null if the cursor that was given could not be read. */
  readonly after: string | null;
  readonly cursor: string;
  readonly reason: GapReason;
}
/**
* A gap among the events of `for await`. The name is reserved, so no application's event can look
* like it.
*/
interface GapEvent {
  readonly channel: string;
  readonly id: string;
  readonly event: "airwave.gap";
  readonly data: Gap;
}
/** What `for await` yields: a union that `event` tells apart. */
type AnyEvent<E> = { [K in keyof E & string]: ChannelEvent<K, E[K]> }[keyof E & string] | GapEvent;
/**
* The state of a channel.
*
* - `connecting`: not confirmed yet for the first time
* - `open`: confirmed; no event is missed without a `gap`
* - `waiting`: the connection is down; the client tries again by itself
* - `ended`, `refused`, `closed`: over; nothing follows
*/
type State = "connecting" | "open" | "waiting" | "ended" | "refused" | "closed";
/** A change of a channel's state. */
interface StateChange {
  readonly state: State;
  /** The transport that carries it now, if one does. */
  readonly transport: TransportName | undefined;
  /** Why it is `waiting` or `refused`, if that is known. */
  readonly error?: AirwaveError;
}
/** A member of a channel, as presence reports it. */
interface Member {
  /** The id of the user; null for all anonymous clients, which are one member. */
  readonly user: string | null;
  /** How many connections the member has; 0 after it left. */
  readonly connections: number;
  /** Metadata that the application gave. */
  readonly meta?: unknown;
}
/** The members of a channel after a change, and the change. */
interface Presence {
  readonly members: readonly Member[];
  /** The member that joined, left or changed; the first list has none of the three. */
  readonly joined?: Member;
  readonly left?: Member;
  readonly updated?: Member;
}
/**
* The events of the client itself. A listener of such a name does not hear an application's events
* of the same name, which `"*"` and `for await` still give.
*/
interface ControlEvents {
  /** Events were lost: load the page's data again. Without a listener the console shows it. */
  gap: Gap;
  /** The channel has ended; no event follows. */
  end: {
    readonly channel: string;
    readonly cursor: string;
  };
  /** The connection was down and is up again, and no event is missed. */
  resumed: {
    readonly channel: string;
    readonly cursor: string;
  };
  state: StateChange;
  /** The server has not reached its broker for 10 s; it catches up by itself. */
  stale: Record<string, never>;
  /** The members changed. Comes with the option `presence: true`. */
  presence: Presence;
  /** The server refused the channel; the client does not try again. */
  error: AirwaveError;
}
/** Options of one message. */
interface SendOptions {
  /** What the message is about. */
  key?: string;
  /** Texts beside the data: at most 8 names and texts, 1 KiB together. */
  attributes?: Record<string, string>;
  /** Makes a repetition harmless: the server does it once. Default: a random key. */
  idempotencyKey?: string;
  /**
  * Milliseconds until the promise rejects with `timeout`. The server may have done it or not.
  * Default 30,000.
  */
  timeout?: number;
  /**
  * False: the client sends it once. The promise rejects with `disconnected` if the connection is
  * down or breaks before the answer. On a WebSocket, binary data then goes as a binary frame,
  * which has no room for an idempotency key. Default true.
  */
  repeat?: boolean;
  /**
  * False: the server gives no answer, and the promise resolves with null once the message is sent.
  * Only with `repeat: false` over a WebSocket.
  */
  reply?: boolean;
}
/**
* The transports of this client. `polling` asks for a channel's JSON page every 2 s: the last
* resort, where neither of the others passes.
*/
type TransportName = "websocket" | "sse" | "polling";
/** Options of one channel. */
interface ChannelOptions {
  /** `auto` asks the channel's URL. Default: that of `connect`. */
  transport?: TransportName | "auto";
  /**
  * The cursor after which to begin: of a publish, of the JSON history, of an earlier visit.
  * Default: the channel's rule decides.
  */
  after?: string;
  /** Asks for the members of the channel, and for their changes. */
  presence?: boolean;
}
/** Options of a client. */
interface Options {
  /**
  * `auto` (default) follows each channel's rule. If that transport carries nothing, twice in a
  * row, although the server answers plain HTTP, the channel moves to the other one that its rule
  * allows, or else to `polling`.
  */
  transport?: TransportName | "auto";
  /**
  * Returns the token. The client calls it for every new connection, and when the server refused
  * the token before (then `refused` is true). The token goes as `Authorization: Bearer` or, where
  * a browser allows no headers, as a WebSocket subprotocol; never in a URL.
  */
  token?: (refused: boolean) => string | null | undefined | Promise<string | null | undefined>;
  /**
  * How many messages wait while there is no connection. 0: `send` rejects with `disconnected`.
  * Default 100.
  */
  queue?: number;
  /**
  * One connection for all tabs of this browser. Needs Web Locks and BroadcastChannel; without them
  * each tab has its own.
  */
  share?: boolean;
  /** Of every request: `include` sends cookies to another origin. Default `same-origin`. */
  credentials?: RequestCredentials;
  /**
  * The bounds of the wait before another try, in ms, unless the server names a time. Default
  * `[1000, 30000]`.
  */
  backoff?: readonly [number, number];
  /**
  * Milliseconds without a sign of life after which the connection counts as dead. The server gives
  * one every 15 s. Default 40,000.
  */
  silence?: number;
  /** In place of the platform's; `overEventSource` of `airwave-client/eventsource` is one. */
  fetch?: typeof fetch;
  /** In place of the platform's; Node 20 has none (`import WebSocket from "ws"`). */
  WebSocket?: unknown;
}
/** Removes the listener. */
type Off = () => void;
/** A channel that the client listens to. */
interface Channel<E = AnyEvents, C = AnyEvents> extends AsyncIterable<AnyEvent<EventsOf<E>>> {
  readonly name: string;
  readonly state: State;
  /** The transport that carries it now. */
  readonly transport: TransportName | undefined;
  /** The position of the last event, for `after` of a later visit. */
  readonly cursor: string | undefined;
  /** The members, with the option `presence: true`. */
  readonly members: readonly Member[];
  /** Listens to an event of the client itself. */
  on<K extends keyof ControlEvents>(event: K, listener: (told: ControlEvents[K]) => void): Off;
  /** Listens to every event. */
  on(event: "*", listener: (data: unknown, event: AnyEvent<EventsOf<E>>) => void): Off;
  /** Listens to the events of one name. */
  on<K extends keyof EventsOf<E> & string>(event: K, listener: (data: EventsOf<E>[K], event: ChannelEvent<K, EventsOf<E>[K]>) => void): Off;
  /**
  * Sends a message to the channel's handler and resolves with its answer.
  *
  * Messages of a channel keep their order. While the connection is down they wait, and the client
  * repeats those without an answer with the same idempotency key. Rejects with an
  * {@link AirwaveError}.
  */
  send<R = unknown, K extends keyof EventsOf<C> & string = keyof EventsOf<C> & string>(event: K, data?: EventsOf<C>[K], options?: SendOptions): Promise<R>;
  /**
  * Stops listening. A channel that several callers share closes when each of them has closed it.
  */
  close(): void;
}
/** A client of one server. */
interface Airwave {
  /** The server's address, with a slash at its end. */
  readonly url: string;
  /**
  * Listens to a channel. The same name gives the same channel while it is open, with the options
  * of the first call.
  */
  channel<E = AnyEvents, C = AnyEvents>(name: string, options?: ChannelOptions): Channel<E, C>;
  /** Closes all channels and connections. */
  close(): void;
}
//#endregion
export { Presence as _, Channel as a, StateChange as b, Code as c, Gap as d, GapEvent as f, Options as g, Off as h, AnyEvents as i, ControlEvents as l, Member as m, AirwaveError as n, ChannelEvent as o, GapReason as p, AnyEvent as r, ChannelOptions as s, Airwave as t, EventsOf as u, SendOptions as v, TransportName as x, State as y };