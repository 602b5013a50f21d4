//#region src/types.d.ts
/**
* What a position, a gap's reason and a refusal's code are, is said in docs/protocol.md; the words
* are the same here.
*/
type GapReason = "unknown-position" | "history-expired" | "too-slow" | "broker-lost-data" | (string & {});
/**
* Codes of the server (docs/protocol.md, section 3), and of this client: `closed`, `disconnected`,
* `timeout`, `overflow`.
*/
type Code = "bad-request" | "unauthorized" | "forbidden" | "unknown-channel" | "wrong-transport" | "ended" | "too-large" | "too-many" | "unavailable" | "internal" | "closed" | "disconnected" | "timeout" | "overflow" | (string & {});
/** A "no", with a code to act on and a message for people. */
declare class AirwaveError extends Error {
  /** What kind of "no". */
  readonly code: Code;
  /** With `wrong-transport`: the one to use. */
  readonly transport: string | undefined;
  constructor(code: Code, message: string, transport?: string);
}
/**
* The events of a channel as a map of names to payloads, from what an application writes: that map
* itself, or the union of `{ event, data }` that the generator makes from a Rust enum.
*/
type EventsOf<E> = [E] extends [{
  event: string;
}] ? { [U in E as U["event"]]: U extends {
  data: infer D;
} ? D : null } : E;
/** Any events at all: what a channel without a type has. */
type AnyEvents = Record<string, any>;
/** One event, as `for await` yields it and listeners get it as their second argument. */
interface ChannelEvent<Name extends string = string, Data = unknown> {
  readonly channel: string;
  /** Its position: a cursor from which a listener goes on behind it. */
  readonly id: string;
  readonly event: Name;
  /** JSON as it was published, a string for text, a `Uint8Array` for binary. */
  readonly data: Data;
  /** What it is about, if its publisher said so. */
  readonly key?: string;
  /**
  * What it says about itself beside its data, such as `content-type`. A binary event on a
  * WebSocket and an event of a plain `EventSource` have none, and no key.
  */
  readonly attributes?: Readonly<Record<string, string>>;
}
/** An announced loss: events after `after` are gone, the channel goes on behind `cursor`. */
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
* - `connecting`: the first time, nothing has been heard yet
* - `open`: confirmed; nothing is missed without a word
* - `waiting`: the connection is down; it is tried again by itself
* - `ended`, `refused`, `closed`: over, for good
*/
type State = "connecting" | "open" | "waiting" | "ended" | "refused" | "closed";
/** A change of a channel's state. */
interface StateChange {
  readonly state: State;
  /** How it is carried now, if it is. */
  readonly transport: TransportName | undefined;
  /** Why it is `waiting` or `refused`, if that is known. */
  readonly error?: AirwaveError;
}
/** A member of a channel, as presence reports it. */
interface Member {
  /** Null: the anonymous, who are counted together. */
  readonly user: string | null;
  /** By how many connections; 0 for one who has left. */
  readonly connections: number;
  /** What the application said of them. */
  readonly meta?: unknown;
}
/** Who is there after a change, and the change. */
interface Presence {
  readonly members: readonly Member[];
  /** Who came, left or changed; none of them on the first list. */
  readonly joined?: Member;
  readonly left?: Member;
  readonly updated?: Member;
}
/**
* What the client itself tells. These names win over an application's events of the same name,
* which `"*"` and `for await` still give.
*/
interface ControlEvents {
  /**
  * Events were lost: load afresh. Never silent: without a listener for it, the console is told.
  */
  gap: Gap;
  /** The channel has ended; no event follows. */
  end: {
    readonly channel: string;
    readonly cursor: string;
  };
  /** The connection was down, is up again, and nothing was missed. */
  resumed: {
    readonly channel: string;
    readonly cursor: string;
  };
  state: StateChange;
  /** The server has not reached its broker for 10 s; it catches up by itself. */
  stale: Record<string, never>;
  /** Asked for with `presence: true`. */
  presence: Presence;
  /** The channel is refused, for good. */
  error: AirwaveError;
}
/** How one message is sent. */
interface SendOptions {
  /** What it is about. */
  key?: string;
  /** What it says about itself beside its data: at most 8 names and texts, 1 KiB together. */
  attributes?: Record<string, string>;
  /** Keeps a repetition from being done twice. Made up if absent. */
  idempotencyKey?: string;
  /**
  * Milliseconds until the promise is rejected with `timeout`; whether it was done is unknown then.
  * Default 30,000.
  */
  timeout?: number;
  /**
  * False: said once, never repeated; rejected with `disconnected` if the connection is down or
  * breaks before the answer. On a WebSocket, binary data then goes as a binary frame, which has no
  * room for an idempotency key. Default true.
  */
  repeat?: boolean;
  /**
  * False: no answer is asked for; the promise resolves with null once the message is on its way.
  * Only with `repeat: false` over a WebSocket.
  */
  reply?: boolean;
}
/**
* The transports that this client speaks. `polling` asks for a channel's JSON page every 2 s: the
* last resort, where neither of the others passes.
*/
type TransportName = "websocket" | "sse" | "polling";
/** What is decided for one channel. */
interface ChannelOptions {
  /** `auto` asks the channel's URL. Default: that of `connect`. */
  transport?: TransportName | "auto";
  /**
  * A cursor (of a publish, of the JSON history, of an earlier visit) after which to begin.
  * Default: as the channel's rule says.
  */
  after?: string;
  /** Asks for who is there, and for changes of it. */
  presence?: boolean;
}
/** What is decided for a client. */
interface Options {
  /**
  * `auto` (default) does as each channel's rule says. Where nothing comes over that transport,
  * twice in a row, although the server answers plain HTTP, the channel moves to the other one that
  * its rule allows, and else to `polling`.
  */
  transport?: TransportName | "auto";
  /**
  * Gives the token to show: asked at every new connection, and when the server refused the one
  * before (then `refused` is true). Goes as `Authorization: Bearer` or, where a browser allows no
  * headers, as a WebSocket subprotocol; never in a URL.
  */
  token?: (refused: boolean) => string | null | undefined | Promise<string | null | undefined>;
  /**
  * How many sends wait while there is no connection. 0: they are refused with `disconnected`.
  * Default 100.
  */
  queue?: number;
  /**
  * One connection for all tabs of this browser. Needs Web Locks and BroadcastChannel; without them
  * each tab has its own.
  */
  share?: boolean;
  /** Sent with every request: `include` for cookies of another origin. Default `same-origin`. */
  credentials?: RequestCredentials;
  /**
  * The bounds of the wait before another try, in ms; the server's hint goes first. Default `[1000,
  * 30000]`.
  */
  backoff?: readonly [number, number];
  /**
  * After so many ms without a sign of life the connection counts as dead. The server gives one
  * every 15 s. Default 40,000.
  */
  silence?: number;
  /** In place of the platform's; `overEventSource` of `airwave-client/eventsource` is one. */
  fetch?: typeof fetch;
  /** In place of the platform's; Node 20 has none (`import WebSocket from "ws"`). */
  WebSocket?: unknown;
}
/** Takes a listener away again. */
type Off = () => void;
/** One channel, listened to. */
interface Channel<E = AnyEvents, C = AnyEvents> extends AsyncIterable<AnyEvent<EventsOf<E>>> {
  readonly name: string;
  readonly state: State;
  /** How it is carried now. */
  readonly transport: TransportName | undefined;
  /** The position up to which everything has been heard: for `after` of a later visit. */
  readonly cursor: string | undefined;
  /** Who is there, if `presence` was asked for. */
  readonly members: readonly Member[];
  /** Listens to what the client itself tells. */
  on<K extends keyof ControlEvents>(event: K, listener: (told: ControlEvents[K]) => void): Off;
  /** Listens to every event. */
  on(event: "*", listener: (data: unknown, event: AnyEvent<EventsOf<E>>) => void): Off;
  /** Listens to events of a name. */
  on<K extends keyof EventsOf<E> & string>(event: K, listener: (data: EventsOf<E>[K], event: ChannelEvent<K, EventsOf<E>[K]>) => void): Off;
  /**
  * Says something to the channel's handler and resolves with its answer. Messages of a channel
  * keep their order. While the connection is down they wait, and what got no answer is repeated
  * with the same idempotency key.
  */
  send<R = unknown, K extends keyof EventsOf<C> & string = keyof EventsOf<C> & string>(event: K, data?: EventsOf<C>[K], options?: SendOptions): Promise<R>;
  /**
  * Stops listening. A channel that was asked for several times closes when it has been closed as
  * often.
  */
  close(): void;
}
/** A client of one server. */
interface Airwave {
  /** The server's address, with a slash at its end. */
  readonly url: string;
  /**
  * Listens to a channel. The same name gives the same channel while it is open, with the options
  * of the first.
  */
  channel<E = AnyEvents, C = AnyEvents>(name: string, options?: ChannelOptions): Channel<E, C>;
  /** Closes all channels and connections. */
  close(): void;
}
//#endregion
export { Presence as _, Channel as a, StateChange as b, Code as c, Gap as d, GapEvent as f, Options as g, Off as h, AnyEvents as i, ControlEvents as l, Member as m, AirwaveError as n, ChannelEvent as o, GapReason as p, AnyEvent as r, ChannelOptions as s, Airwave as t, EventsOf as u, SendOptions as v, TransportName as x, State as y };