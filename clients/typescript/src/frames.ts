// Generated from the types of airwave-protocol; `cargo test --test protocol` says when it is stale.

/** The answer to `POST /channels/{name}`. */
export type Answer = {
  /** What the handler says; `null` if it has nothing to say. */
  data: unknown;
};

/** Names and texts beside a payload. */
export type Attributes = Record<string, string>;

/** A JSON frame of a client on a WebSocket. */
export type ClientFrame =
  | Subscribe & { type: "subscribe" }
  | Unsubscribe & { type: "unsubscribe" }
  | SendMessage & { type: "send" }
  | Ping & { type: "ping" };

/** What a client says: the body of `POST /channels/{name}`, and a part of a `send` frame. */
export type ClientMessage = {
  /** Texts beside the payload. */
  attributes?: Attributes;
  /** The event's name. */
  event: string;
  /** What it is about. */
  key?: string;
} & ({ data: unknown; text?: undefined; base64?: undefined } | { text: string; data?: undefined; base64?: undefined } | { base64: string; data?: undefined; text?: undefined });

/** A frame whose type says everything. */
export type Empty = Record<never, never>;

/** The end of a channel. */
export type End = {
  /** The channel. */
  channel: string;
  /** The end's position. */
  cursor: string;
};

/**
 * An event as one JSON object: a WebSocket frame without a `type`, the data of an event on a stream
 * of several channels, an item of a page.
 */
export type Envelope = {
  /** Texts beside the payload; absent if there is none. */
  attributes?: Attributes;
  /** The channel. */
  channel: string;
  /** The event's name. */
  event: string;
  /** The position, in decimal. */
  id: string;
  /** What the event is about, if it says so. */
  key?: string;
} & ({ data: unknown; text?: undefined; base64?: undefined } | { text: string; data?: undefined; base64?: undefined } | { base64: string; data?: undefined; text?: undefined });

/** The body of an HTTP answer that says no: `{"error":{…}}`. */
export type ErrorBody = {
  /** What went wrong. */
  error: Failure;
};

/** A refusal. */
export type ErrorFrame = {
  /** The channel, if it is about one. */
  channel?: string;
  /** The code: one of `Code`, or one of a newer server. */
  code: string;
  /** The number of the command; `null`: it had none, or the whole connection is refused. */
  id: number | null;
  /** For people: what went wrong and what to do. */
  message: string;
  /** With `wrong-transport`: the transport to use instead. */
  transport?: string;
  /** With `wrong-transport` and one channel: where to go instead. */
  url?: string;
};

/** What an error says, on every transport. */
export type Failure = {
  /** The code: one of `Code`, or one of a newer server. */
  code: string;
  /** For people: what went wrong and what to do. */
  message: string;
  /** With `wrong-transport`: the transport to use instead. */
  transport?: string;
  /** With `wrong-transport` and one channel: where to go instead. */
  url?: string;
};

/** An announced loss. */
export type Gap = {
  /** The last position before the loss; `null` if the listener's cursor could not be read. */
  after: string | null;
  /** The channel. */
  channel: string;
  /** The stream goes on after this position. */
  cursor: string;
  /** Why: one of `GapReason`, or one of a newer server. */
  reason: string;
};

/**
 * A member of a channel: a user, over all their connections on all nodes. All clients without a
 * user are one member, who is only counted.
 */
export type Member = {
  /** How many connections there are; zero only where a member has left. */
  connections: number;
  /** What the application says about the user, if it says anything. */
  meta?: unknown;
  /** The user's id; `null`: the anonymous. */
  user: string | null;
};

/** A member that joined, left or changed. */
export type MemberChange = {
  /** The channel. */
  channel: string;
  /** The member as it is now. */
  member: Member;
};

/**
 * A page of who is in a channel. The first page of a new list follows one without `more`, or none.
 */
export type Members = {
  /** The channel. */
  channel: string;
  /** Each once in the whole list, users in the order of their ids, the anonymous last. */
  members: Member[];
  /** Whether another page follows. */
  more: boolean;
};

/** A page of a channel's history, and how to listen: the answer to `GET /channels/{name}`. */
export type Page = {
  /** The channel. */
  channel: string;
  /** False if events after the cursor that was given are lost. */
  complete: boolean;
  /** Where a stream starts that continues exactly after this page. */
  cursor: string;
  /** Whether the channel has ended. */
  ended: boolean;
  /** Events, oldest first. */
  events: Envelope[];
  /** Members, with `?presence=true`. */
  members?: Member[];
  /** Whether there are members behind these, with `?presence=true`. */
  members_more?: boolean;
  /** Whether a further page exists. */
  more: boolean;
  /** The transport that the server prefers; `null` if the channel's rule lists none that it has. */
  transport: string | null;
  /** The transports of the channel. */
  transports: string[];
  /** The path of this channel as the client reached it. */
  url: string;
};

/** The command that asks for a `pong`. */
export type Ping = {
  /** The number of the command: 0 to 2^53-1. */
  id?: number;
};

/** The answer to a `ping`. */
export type Pong = {
  /** The number of the ping, if it had one. */
  id?: number;
};

/** One publication of `POST /publish`. */
export type Publication = {
  /** Texts beside the payload. */
  attributes?: Attributes;
  /** The channel. */
  channel: string;
  /** Whether the channel ends after it. */
  end?: boolean;
  /** The event's name; absent: `message`. */
  event?: string;
  /** Makes repeating it harmless. */
  idempotency_key?: string;
  /** What the event is about. */
  key?: string;
} & (({ data: unknown; text?: undefined; base64?: undefined } | { text: string; data?: undefined; base64?: undefined } | { base64: string; data?: undefined; text?: undefined }) | unknown);

/** The answer to one publication of an array. */
export type PublishAnswer = (Published | ErrorBody);

/** A publication that the broker holds. */
export type Published = {
  /** The channel. */
  channel: string;
  /** The position of the event, or of the end. */
  cursor: string;
  /** Whether it was published before, with the same idempotency key. */
  duplicate: boolean;
};

/** What the handler answers to a message. */
export type Reply = {
  /** The answer; `null` if the handler has nothing to say. */
  data: unknown;
  /** The number of the command. */
  id: number;
};

/** The command that says something to the channel's handler. */
export type SendMessage = {
  /** Texts beside the payload. */
  attributes?: Attributes;
  /** The channel. */
  channel: string;
  /** The event's name. */
  event: string;
  /** The number of the command: 0 to 2^53-1. Absent: no reply is wanted. */
  id?: number;
  /** Makes repeating it harmless. */
  idempotency_key?: string;
  /** What it is about. */
  key?: string;
} & ({ data: unknown; text?: undefined; base64?: undefined } | { text: string; data?: undefined; base64?: undefined } | { base64: string; data?: undefined; text?: undefined });

/**
 * A JSON frame of a server: a notice with a `type`, or an event. On a stream of server-sent events
 * the type stands in the event's name (`airwave.gap`), and the rest is the same.
 */
export type ServerFrame =
  | Envelope & { type?: undefined }
  | Subscribed & { type: "subscribed" }
  | Unsubscribed & { type: "unsubscribed" }
  | Gap & { type: "gap" }
  | End & { type: "end" }
  | Reply & { type: "reply" }
  | ErrorFrame & { type: "error" }
  | Pong & { type: "pong" }
  | Members & { type: "presence" }
  | MemberChange & { type: "join" }
  | MemberChange & { type: "leave" }
  | MemberChange & { type: "update" }
  | Empty & { type: "stale" }
  | Empty & { type: "heartbeat" };

/** The command that listens to a channel. */
export type Subscribe = {
  /** The cursor after which to go on; absent: from now on. A number is read as its decimal text. */
  after?: string | number;
  /** The channel. */
  channel: string;
  /** The number of the command: 0 to 2^53-1. */
  id?: number;
  /** Whether to tell who is in the channel. */
  presence?: boolean;
};

/** A confirmed subscription. */
export type Subscribed = {
  /** The channel. */
  channel: string;
  /** The position before the first event that follows. */
  cursor: string;
  /** The number of the command, if it had one. */
  id?: number;
  /** Whether a cursor was given and everything after it follows. */
  resumed: boolean;
};

/** The command that stops listening to a channel. */
export type Unsubscribe = {
  /** The channel. */
  channel: string;
  /** The number of the command: 0 to 2^53-1. */
  id?: number;
};

/** An ended subscription. */
export type Unsubscribed = {
  /** The channel. */
  channel: string;
  /** The number of the command, if it had one. */
  id?: number;
};
