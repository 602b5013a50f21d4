// One connection for all tabs of a browser. The tab that holds a Web Lock leads: it has the
// connections, and passes events to the other tabs, its followers, through a BroadcastChannel.
//
// Each tab keeps its own cursors, so that the leader may change at any time without a loss. A tab
// that begins to lead, or to follow another leader, goes on behind its own cursor. A tab at another
// position than the leader's (it begins with the channel's replay) has a connection of its own
// until it has caught up.

import type { Timer } from "./timing.js";
import type { Carrier, Sending, Subscription } from "./subscription.js";
import type { AirwaveError, AnyEvent, AnyEvents, Channel, ChannelEvent, ChannelOptions, Code, Gap, Off, Presence, SendOptions, TransportName } from "./types.js";

/** Carries channels over the connection of another tab (`share`). */
export interface Relay {
  /** Takes the channel and returns true, or leaves it to a connection of this tab. */
  takes(subscription: Subscription): boolean;
  /** Takes the report that nothing more comes on this channel. */
  over(subscription: Subscription): void;
  close(): void;
}

/**
 * The client as sharing sees it.
 *
 * The functions come from the client, because this file is a build of its own: a copy of them here
 * would make errors of another class.
 */
export interface ShareHost {
  /** The server's address, with a slash at its end. */
  readonly url: string;
  readonly after: (ms: number, what: () => void) => Timer | undefined;
  readonly lost: (sending: Sending) => void;
  channel(name: string, options?: ChannelOptions): Channel;
  /** Finds what carries this channel from now on. With `alone`, no other tab does. */
  place(subscription: Subscription, alone?: boolean): Promise<void>;
  /** Makes an error of the client's own class. */
  error(code: Code, message: string): AirwaveError;
}

/** How long a leader may take to answer, before this tab connects by itself. */
const ANSWER_MS = 2_000;
/**
 * How often a follower asks whether its leader is alive. A leader that dies gives up its lock at
 * once; one that hangs does not.
 */
const CHECK_MS = 10_000;
/** How many events of a channel a tab keeps while it catches up with the leader. */
const KEPT = 1_000;

type Relayed = AnyEvent<AnyEvents>;

/** A message between tabs: from a follower to the leader, from the leader to all or to one (`to`). */
type Note =
  | { do: "who" | "here" | "lead"; from: string }
  | { do: "listen"; from: string; name: string; cursor: string | undefined; presence: boolean }
  | { do: "leave"; from: string; name: string }
  | { do: "base"; from: string; to: string; name: string; cursor: string | undefined; fresh: boolean; open: boolean; kind: TransportName | undefined; presence: Presence | undefined }
  | { do: "event"; from: string; name: string; event: Relayed }
  | { do: "open" | "resumed" | "waiting" | "end" | "stale"; from: string; name: string; cursor: string; kind: TransportName | undefined }
  | { do: "refused"; from: string; name: string; error: PlainError }
  | { do: "presence"; from: string; name: string; presence: Presence }
  | { do: "send"; from: string; name: string; n: number; event: string; data: unknown; options: SendOptions }
  | { do: "answer"; from: string; to: string; n: number; error?: PlainError; value?: unknown };

/** An error as a BroadcastChannel carries it, without its class. */
interface PlainError {
  code: Code;
  message: string;
}

/** A channel that the leader listens to for other tabs. */
interface Lent {
  channel: Channel;
  offs: Off[];
  tabs: Set<string>;
  presence: Presence | undefined;
}

/** A channel to which this tab listens, or wants to listen, through the leader. */
interface Borrowed {
  subscription: Subscription;
  /** Whether its events come through the leader. */
  adopted: boolean;
  /** While this tab catches up: the position where the leader was, and the events since. */
  base: string | undefined;
  since: Relayed[];
  offs: Off[];
  timer: Timer | undefined;
  kind: TransportName;
}

const at = (cursor: string | undefined): number => Number(cursor ?? -1);

/**
 * Makes the relay of this tab's channels over the connection of the tab that leads. Rejects where
 * the browser cannot do that.
 */
export async function share(client: ShareHost): Promise<Relay> {
  if (!globalThis.navigator?.locks || !globalThis.BroadcastChannel) throw new Error("Web Locks or BroadcastChannel are missing");
  const shared = new Shared(client);
  await shared.known;
  return shared;
}

class Shared implements Relay {
  readonly known: Promise<void>;
  #client: ShareHost;
  #me: string = Array.from({ length: 3 }, () => Math.random().toString(36).slice(2)).join("");
  #broadcast: BroadcastChannel;
  #lock: string;
  #stop = new AbortController();
  #leads = false;
  #leader: string | undefined;
  #heard = true;
  #missed = 0;
  #checking: ReturnType<typeof setInterval>;
  #lent = new Map<string, Lent>();
  #tabs = new Set<string>();
  #borrowed = new Map<string, Borrowed>();
  #asked = new Map<number, (note: { error?: PlainError; value?: unknown }) => void>();
  #n = 0;
  #found: () => void = () => {};

  constructor(client: ShareHost) {
    this.#client = client;
    this.#lock = `airwave:${client.url}`;
    this.#broadcast = new BroadcastChannel(this.#lock);
    this.#broadcast.onmessage = ({ data }: MessageEvent<Note>) => this.#hear(data);
    const { signal } = this.#stop;
    const { locks } = navigator;
    const held = (): Promise<void> => new Promise((done) => signal.addEventListener("abort", () => done()));
    this.known = new Promise((done) => {
      this.#found = done;
      // A leader that hangs: this tab connects by itself, until another tab leads.
      client.after(ANSWER_MS, done);
    });
    const lead = (): Promise<void> => {
      this.#lead();
      return held();
    };
    // A tab that waits for this lock learns that this tab is gone. So this tab takes the lock
    // before it sends its first message.
    const begin = (): Promise<void> => {
      locks.request(this.#lock, { signal }, lead).catch(() => {});
      this.#say({ do: "who", from: this.#me });
      return held();
    };
    locks.request(this.#lock + this.#me, { signal }, begin).catch(() => {});
    this.#checking = setInterval(() => this.#checkLeader(), CHECK_MS);
  }

  #say(note: Note): void {
    if (!this.#stop.signal.aborted) this.#broadcast.postMessage(note);
  }

  close(): void {
    clearInterval(this.#checking);
    this.#stop.abort();
    this.#broadcast.close();
  }

  takes(subscription: Subscription): boolean {
    if (this.#leads || !this.#leader) return false;
    this.#borrow(subscription);
    return true;
  }

  over(subscription: Subscription): void {
    const borrowed = this.#borrowed.get(subscription.name);
    if (borrowed?.subscription !== subscription) return;
    this.#forget(borrowed);
    this.#say({ do: "leave", from: this.#me, name: subscription.name });
  }

  // ---- leading -----------------------------------------------------------------------------

  #lead(): void {
    this.#leads = true;
    this.#leader = this.#me;
    this.#found();
    this.#say({ do: "lead", from: this.#me });
    for (const { subscription, adopted } of this.#giveBack()) if (adopted) void this.#client.place(subscription, true);
  }

  #listen(note: Note & { do: "listen" }): void {
    const { name, from: to, cursor, presence } = note;
    let lent = this.#lent.get(name);
    const wantsMore = lent && presence && !lent.presence;
    const channel = lent?.channel ?? this.#client.channel(name, { presence, ...(cursor !== undefined && { after: cursor }) });
    // The channel's position says whether this tab's own application has it already: one that was
    // just made has no event yet.
    const fresh = !lent && channel.state === "connecting" && channel.transport === undefined && channel.cursor === cursor;
    if (!lent) {
      // If this tab's application has it already, only the list of members is known here.
      const presence = channel.members.length ? { members: channel.members } : undefined;
      lent = { channel, offs: [], tabs: new Set(), presence };
      this.#lent.set(name, lent);
      this.#tap(lent);
    }
    lent.tabs.add(to);
    if (!this.#tabs.has(to)) {
      this.#tabs.add(to);
      const gone = (): void => {
        this.#tabs.delete(to);
        for (const lent of [...this.#lent.keys()]) this.#leave(lent, to);
      };
      navigator.locks.request(this.#lock + to, { signal: this.#stop.signal }, gone).catch(() => {});
    }
    const { transport: kind, state } = channel;
    this.#say({ do: "base", from: this.#me, to, name, cursor: channel.cursor, fresh: fresh && !wantsMore, open: state === "open", kind, presence: lent.presence });
  }

  #tap(lent: Lent): void {
    const { channel } = lent;
    const { name } = channel;
    const from = this.#me;
    const tell = (what: "open" | "resumed" | "waiting" | "end" | "stale"): void => this.#say({ do: what, from, name, cursor: channel.cursor ?? "", kind: channel.transport });
    const over = (): void => {
      this.#lent.delete(name);
    };
    lent.offs = [
      channel.on("*", (_, event) => this.#say({ do: "event", from, name, event })),
      channel.on("state", ({ state }) => (state === "open" || state === "waiting") && tell(state)),
      channel.on("resumed", () => tell("resumed")),
      channel.on("stale", () => tell("stale")),
      channel.on("presence", (presence) => {
        lent.presence = { members: presence.members };
        this.#say({ do: "presence", from, name, presence });
      }),
      channel.on("end", () => {
        tell("end");
        over();
      }),
      channel.on("error", ({ code, message }) => {
        this.#say({ do: "refused", from, name, error: { code, message } });
        over();
      }),
    ];
  }

  #leave(name: string, tab: string): void {
    const lent = this.#lent.get(name);
    if (!lent?.tabs.delete(tab) || lent.tabs.size) return;
    this.#lent.delete(name);
    for (const off of lent.offs) off();
    lent.channel.close();
  }

  async #answer({ from: to, name, n, event, data, options }: Note & { do: "send" }): Promise<void> {
    const note = { do: "answer" as const, from: this.#me, to, n };
    const lent = this.#lent.get(name);
    try {
      if (!lent) throw { code: "disconnected", message: "this tab does not hear the channel" };
      this.#say({ ...note, value: await lent.channel.send(event, data, options) });
    } catch (error) {
      const { code, message } = error as AirwaveError;
      this.#say({ ...note, error: { code, message } });
    }
  }

  // ---- following ---------------------------------------------------------------------------

  #borrow(subscription: Subscription): void {
    const { name, cursor, options } = subscription;
    const timer = this.#client.after(ANSWER_MS, () => this.#alone(name));
    this.#borrowed.set(name, { subscription, adopted: false, base: undefined, since: [], offs: [], timer, kind: "sse" });
    this.#say({ do: "listen", from: this.#me, name, cursor, presence: options.presence === true });
  }

  /** Carries a channel here, because the leader does not answer or cannot carry it. */
  #alone(name: string): void {
    const borrowed = this.#borrowed.get(name);
    if (!borrowed) return;
    this.#forget(borrowed);
    this.#say({ do: "leave", from: this.#me, name });
    if (!borrowed.subscription.connection) void this.#client.place(borrowed.subscription, true);
  }

  #forget(borrowed: Borrowed): void {
    this.#borrowed.delete(borrowed.subscription.name);
    clearTimeout(borrowed.timer);
    for (const off of borrowed.offs) off();
  }

  #based(note: Note & { do: "base" }): void {
    const borrowed = this.#borrowed.get(note.name);
    if (!borrowed || borrowed.adopted || borrowed.subscription.connection) return;
    clearTimeout(borrowed.timer);
    const { subscription } = borrowed;
    const { cursor: mine } = subscription;
    if (note.kind) borrowed.kind = note.kind;
    if (subscription.options.presence && !note.presence && !note.fresh) return this.#alone(note.name);
    // The leader passes on all events behind the cursor of this tab, if it is not ahead of it.
    const together = note.fresh || (mine === undefined ? note.cursor === undefined : note.cursor !== undefined && at(note.cursor) <= at(mine));
    if (together) {
      this.#adopt(borrowed, note.open);
      if (note.presence) subscription.present(note.presence);
      return;
    }
    borrowed.base = note.cursor;
    const look = (): void => this.#catchUp(borrowed);
    borrowed.offs = [subscription.on("*", look), subscription.on("state", look)];
    void this.#client.place(subscription, true);
  }

  /**
   * Changes to the leader's events, once this tab's own connection has come to a position at which
   * the leader was since this tab asked.
   */
  #catchUp(borrowed: Borrowed): void {
    const { subscription, base, since } = borrowed;
    const { cursor, live, connection } = subscription;
    if (borrowed.adopted || !live || !connection || cursor === undefined) return;
    const i = cursor === base ? 0 : since.findIndex(({ id }) => id === cursor) + 1;
    if (i === 0 && cursor !== base) return;
    for (const off of borrowed.offs) off();
    borrowed.offs = [];
    borrowed.since = [];
    // Not within the delivery of the event, because other listeners still have to get it.
    queueMicrotask(() => {
      if (subscription.isOver || this.#borrowed.get(subscription.name) !== borrowed) return;
      const rest = since.slice(i);
      subscription.connection?.remove(subscription);
      this.#adopt(borrowed, true);
      for (const event of [...rest, ...borrowed.since]) this.#relay(borrowed, event);
      borrowed.since = [];
    });
  }

  #adopt(borrowed: Borrowed, open: boolean): void {
    const { subscription } = borrowed;
    borrowed.adopted = true;
    subscription.connection = this.#carrier(borrowed);
    subscription.live = true;
    if (open) {
      if (subscription.cursor !== undefined) subscription.confirmed(subscription.cursor, true);
      this.#flush(borrowed);
    }
  }

  #carrier(borrowed: Borrowed): Carrier {
    return {
      get kind() {
        return borrowed.kind;
      },
      up: true,
      flush: () => this.#flush(borrowed),
      remove: (subscription) => {
        subscription.connection = undefined;
        subscription.live = false;
      },
    };
  }

  #flush({ subscription }: Borrowed): void {
    for (const sending of [...subscription.outbox]) {
      if (sending.sent) continue;
      sending.sent = true;
      const n = (this.#n += 1);
      const { event, key, attributes, idempotencyKey, repeat, reply } = sending;
      const data: unknown = typeof sending.data === "string" ? JSON.parse(sending.data) : sending.data;
      this.#asked.set(n, ({ error, value }) => sending.settle(error ? this.#client.error(error.code, error.message) : null, value));
      this.#say({ do: "send", from: this.#me, name: subscription.name, n, event, data, options: { idempotencyKey, repeat, reply, ...(key !== undefined && { key }), ...(attributes && { attributes }) } });
    }
  }

  #relay({ subscription }: Borrowed, event: Relayed): void {
    // A leader that began before this tab's cursor sends events that this tab has.
    if (subscription.isOver || at(event.id) <= at(subscription.cursor)) return;
    if (event.event === "airwave.gap") subscription.gap(event.data as Gap);
    else subscription.heard(event as ChannelEvent);
  }

  /** Takes all channels back from the leader. Whether it sent the messages is unknown. */
  #giveBack(): Borrowed[] {
    const all = [...this.#borrowed.values()];
    this.#asked.clear();
    for (const borrowed of all) {
      const { subscription, adopted } = borrowed;
      this.#forget(borrowed);
      if (!adopted) {
        // It was about to change to the leader: it has a connection of its own, or asks again.
        borrowed.adopted = !subscription.connection;
        continue;
      }
      subscription.connection = undefined;
      for (const sending of [...subscription.outbox]) this.#client.lost(sending);
      subscription.down(undefined);
    }
    return all;
  }

  #checkLeader(): void {
    if (this.#leads || !this.#leader) return;
    this.#missed = this.#heard ? 0 : this.#missed + 1;
    this.#heard = false;
    this.#say({ do: "who", from: this.#me });
    if (this.#missed < 2) return;
    this.#leader = undefined;
    for (const { subscription, adopted } of this.#giveBack()) if (adopted) void this.#client.place(subscription, true);
  }

  #hear(note: Note): void {
    if (this.#leads) return this.#heardAsLeader(note);
    if (note.do === "lead" || (note.do === "here" && this.#leader !== note.from)) {
      const again = this.#giveBack().filter(({ adopted }) => adopted);
      this.#leader = note.from;
      this.#heard = true;
      this.#found();
      for (const { subscription } of again) this.#borrow(subscription);
      return;
    }
    if (note.from !== this.#leader) return;
    this.#heard = true;
    if (note.do === "answer") {
      if (note.to !== this.#me) return;
      this.#asked.get(note.n)?.(note);
      this.#asked.delete(note.n);
      return;
    }
    if (!("name" in note)) return;
    const borrowed = this.#borrowed.get(note.name);
    if (!borrowed) return;
    const { subscription } = borrowed;
    if (note.do === "base") {
      if (note.to === this.#me) this.#based(note);
      return;
    }
    if (!borrowed.adopted) {
      if (note.do !== "event") return;
      borrowed.since.push(note.event);
      if (borrowed.since.length > KEPT) borrowed.base = borrowed.since.shift()?.id;
      this.#catchUp(borrowed);
      return;
    }
    switch (note.do) {
      case "event":
        return this.#relay(borrowed, note.event);
      case "open":
      case "resumed":
        if (note.kind) borrowed.kind = note.kind;
        subscription.confirmed(subscription.cursor ?? note.cursor, note.do === "resumed");
        return this.#flush(borrowed);
      case "waiting":
        return subscription.down(undefined);
      case "stale":
        return subscription.stale();
      case "presence":
        return subscription.present(note.presence);
      case "end":
        this.#forget(borrowed);
        return subscription.ended(note.cursor);
      case "refused":
        this.#forget(borrowed);
        return subscription.refused(this.#client.error(note.error.code, note.error.message));
    }
  }

  #heardAsLeader(note: Note): void {
    switch (note.do) {
      case "who":
        return this.#say({ do: "here", from: this.#me });
      case "listen":
        return this.#listen(note);
      case "leave":
        return this.#leave(note.name, note.from);
      case "send":
        return void this.#answer(note);
    }
  }
}

// ---- what few pages need, and so no part of the core ------------------------------------

const told = new Set<string>();

/**
 * Returns the reason if the server answers, but not to pages of this origin. Writes it to the
 * console once for each server.
 */
export async function notAllowed(url: string): Promise<string | undefined> {
  const origin = globalThis.location?.origin;
  if (!origin || url.startsWith(`${origin}/`)) return undefined;
  try {
    await fetch(`${url}healthz`, { mode: "no-cors", cache: "no-store", signal: AbortSignal.timeout(5_000) });
  } catch {
    return undefined;
  }
  const why = `the server at ${url} answers, but not to pages of ${origin}: add "${origin}" to \`origins\` in its airwave.toml`;
  if (!told.has(url)) console.error(`airwave: ${why}`);
  told.add(url);
  return why;
}

/*
 * A browser opens six connections to a host over HTTP/1.1 for all its tabs, and each stream keeps
 * one: the seventh tab loads nothing.
 */

/** How many streams leave two connections for everything else. */
const CROWD = 4;
/** How long other tabs may take to answer. */
const COUNT_MS = 500;

let warned = false;

/** Counts a stream until it is over, and warns once where there are many. */
export function crowd(url: string, signal: AbortSignal): void {
  const spoken = (performance.getEntriesByType("resource") as PerformanceResourceTiming[]).filter(({ name }) => name.startsWith(url)).at(-1)?.nextHopProtocol;
  // Without TLS a browser speaks HTTP/1.1; over TLS the last finished request tells.
  if (!globalThis.BroadcastChannel || (!url.startsWith("http:") && spoken !== "http/1.1")) return;
  const { host } = new URL(url);
  const broadcast = new BroadcastChannel(`airwave:streams:${host}`);
  const me = Math.random();
  let count = 1;
  broadcast.onmessage = ({ data }: MessageEvent<{ from?: number; to?: number }>) => {
    if (data.to === me) count += 1;
    else if (data.from) broadcast.postMessage({ to: data.from });
  };
  broadcast.postMessage({ from: me });
  const timer = setTimeout( () => {
    if (count < CROWD || warned) return;
    warned = true;
    console.warn(`airwave: ${count} streams to ${host} are open over HTTP/1.1, which has six connections for all tabs: use { share: true }, or HTTP/2`);
  }, COUNT_MS);
  const over = (): void => {
    clearTimeout(timer);
    broadcast.close();
  };
  if (signal.aborted) over();
  else signal.addEventListener("abort", over);
}
