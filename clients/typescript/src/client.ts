// A client of one server: which line carries which channel, and what all lines need.

import { isTemporary, type Line, lost } from "./line.js";
import { refusal, SocketLine, STATUS_CODES } from "./socket.js";
import { StreamLine } from "./stream.js";
import { type Info, type Owner, Subscription } from "./subscription.js";
import { type Airwave, AirwaveError, type AnyEvents, type Channel, type ChannelOptions, type Code, type Options, type TransportName } from "./types.js";

/** The server takes so many channels on one connection. */
const CHANNELS_PER_LINE = 100;
/** How long an answer may take that is not a stream. */
const ANSWER_MS = 15_000;

/** What must be known of a token: one to use again, a new one, or one in place of a token that was refused. */
export type TokenWanted = "same" | "new" | "refused";

/** Carries channels over somebody else's line: another tab's (`share`). */
export interface Relay {
  /** Takes the channel, or says no: then it is carried here. */
  takes(subscription: Subscription): boolean;
  /** Nothing more comes on this channel. */
  over(subscription: Subscription): void;
  close(): void;
}

export class Client implements Airwave, Owner {
  readonly url: string;
  readonly queue: number;
  readonly silence: number;
  readonly backoff: readonly [number, number];
  readonly credentials: RequestCredentials;
  readonly WebSocket: unknown;
  readonly hasToken: boolean;
  readonly options: Options;
  relay: Relay | undefined;
  /** Something on the way lets no WebSocket pass. */
  blocked = false;
  #fetch: typeof fetch;
  #token: Promise<string | undefined> | undefined;
  #asking = false;
  #subscriptions = new Map<string, Subscription>();
  #lines = new Set<Line>();
  #pauses = new Set<() => void>();
  #ready: Promise<unknown> | undefined;

  constructor(url: string, options: Options) {
    const { queue = 100, silence = 40_000, backoff = [1000, 30_000], credentials = "same-origin" } = options;
    this.url = url.replace(/[?#].*$/s, "").replace(/\/*$/, "/");
    this.options = options;
    this.queue = queue;
    this.silence = silence;
    this.backoff = backoff;
    this.credentials = credentials;
    this.hasToken = options.token !== undefined;
    this.#fetch = options.fetch ?? ((...call) => fetch(...call));
    this.WebSocket = options.WebSocket ?? globalThis.WebSocket;
    globalThis.addEventListener?.("online", this.#online);
    globalThis.document?.addEventListener("visibilitychange", this.#visible);
  }

  channel<E = AnyEvents, C = AnyEvents>(name: string, options: ChannelOptions = {}): Channel<E, C> {
    let subscription = this.#subscriptions.get(name);
    if (subscription) subscription.users += 1;
    else {
      subscription = new Subscription(this, name, options);
      this.#subscriptions.set(name, subscription);
      const made = subscription;
      // Whoever made it has the time to say what they listen to.
      queueMicrotask(() => void this.place(made));
    }
    return subscription as unknown as Channel<E, C>;
  }

  over(subscription: Subscription): void {
    if (this.#subscriptions.get(subscription.name) === subscription) this.#subscriptions.delete(subscription.name);
    this.relay?.over(subscription);
  }

  close(): void {
    globalThis.removeEventListener?.("online", this.#online);
    globalThis.document?.removeEventListener("visibilitychange", this.#visible);
    for (const subscription of [...this.#subscriptions.values()]) subscription.shut();
    this.relay?.close();
    // Not the lines: the answer to a ping would be waited for, and a process that has nothing else to do with it.
    this.#wake();
  }

  // ---- which line ---------------------------------------------------------------------------------------------------

  /** Finds what carries this channel from now on. `alone`: not another tab. */
  async place(subscription: Subscription, alone = false): Promise<void> {
    if (this.options.share) await (this.#ready ??= this.#share());
    if (subscription.isOver || (!alone && this.relay?.takes(subscription))) return;
    const wanted = subscription.options.transport ?? this.options.transport ?? "auto";
    const kind = wanted === "auto" ? await this.#asked(subscription) : wanted;
    if (kind && !subscription.isOver) this.carry(subscription, kind);
  }

  /** Puts the channel on a line of this client's own. */
  carry(subscription: Subscription, kind: TransportName): void {
    const presence = subscription.options.presence === true;
    const fits = (line: Line): boolean => line.kind === kind && line.members.size < CHANNELS_PER_LINE && !(line instanceof StreamLine && line.presence !== presence);
    let line = [...this.#lines].find(fits);
    if (!line) this.#lines.add((line = kind === "sse" ? new StreamLine(this, presence) : new SocketLine(this)));
    line.add(subscription);
  }

  /** What the server says to use, as far as that is possible here. Tries until there is an answer. */
  async #asked(subscription: Subscription): Promise<TransportName | undefined> {
    for (let tries = 0; !subscription.isOver; tries += 1) {
      try {
        subscription.info = await this.ask(subscription);
        const kind = this.#choice(subscription.info);
        if (!kind) throw new AirwaveError("wrong-transport", `'${subscription.name}' needs ${subscription.info.transports}, which does not work here`);
        return kind;
      } catch (thrown) {
        const error = thrown as AirwaveError;
        if (!isTemporary(error)) subscription.refused(error);
        else {
          subscription.down(error);
          await this.pause(Math.random() * Math.min(this.backoff[1], this.backoff[0] * 2 ** tries));
        }
      }
    }
    return undefined;
  }

  #choice({ transport, transports }: Info): TransportName | undefined {
    const can = (kind: string): boolean => kind === "sse" || (kind === "websocket" && this.WebSocket !== undefined && !(this.blocked && transports.includes("sse")));
    return [transport, ...transports].find((kind): kind is TransportName => kind !== null && can(kind));
  }

  async ask({ name }: Subscription): Promise<Info> {
    const response = await this.request(`channels/${name}?limit=1`, { headers: { accept: "application/json" } });
    return (await response.json()) as Info;
  }

  /** Why the channel is refused, if it is. */
  async check(subscription: Subscription): Promise<AirwaveError | undefined> {
    try {
      subscription.info = await this.ask(subscription);
      const other = subscription.info.transports.find((kind) => kind !== subscription.transport);
      if (subscription.info.transports.includes(subscription.transport ?? "")) return undefined;
      return new AirwaveError("wrong-transport", `'${subscription.name}' is not carried over ${subscription.transport}`, other);
    } catch (error) {
      return error as AirwaveError;
    }
  }

  /** Whether plain HTTP works now. */
  async reaches(subscription: Subscription): Promise<boolean> {
    const error = await this.check(subscription);
    return !error || error.code === "wrong-transport";
  }

  /** The server names another transport: the channel moves there, if nobody has said which to take. */
  moves(subscription: Subscription, { transport }: AirwaveError): boolean {
    const told = subscription.options.transport ?? this.options.transport ?? "auto";
    if (told !== "auto" || (transport !== "sse" && transport !== "websocket") || transport === subscription.transport) return false;
    if (transport === "websocket" && (this.blocked || !this.WebSocket)) return false;
    subscription.line?.remove(subscription);
    this.carry(subscription, transport);
    return true;
  }

  /** No WebSocket passes: what may be carried over SSE moves there, with its cursor. */
  fallBack(line: Line): void {
    for (const subscription of [...line.members.values()]) {
      const told = subscription.options.transport ?? this.options.transport ?? "auto";
      if (told !== "auto" || !subscription.info?.transports.includes("sse")) continue;
      this.blocked = true;
      line.remove(subscription);
      this.carry(subscription, "sse");
    }
  }

  /** A line that carries nothing any more. */
  idle(line: Line): void {
    this.#lines.delete(line);
  }

  async #share(): Promise<void> {
    try {
      const { share } = await import("./client-share.js");
      this.relay = await share(this);
    } catch {
      // Each tab for itself, then: dearer, and otherwise the same.
    }
  }

  // What `share` needs of this module: a second copy of it would make errors that are of another class.
  readonly lost: typeof lost = lost;
  error(code: Code, message: string): AirwaveError {
    return new AirwaveError(code, message);
  }

  // ---- what lines need ----------------------------------------------------------------------------------------------

  /** Waits so long, or until there is a reason to try at once. */
  pause(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const done = (): void => {
        clearTimeout(timer);
        this.#pauses.delete(done);
        resolve();
      };
      const timer = setTimeout(done, ms);
      this.#pauses.add(done);
    });
  }

  #wake(): void {
    for (const done of [...this.#pauses]) done();
  }

  #poke(): void {
    this.#wake();
    for (const line of this.#lines) line.probe();
  }

  #online = (): void => {
    // Another network, perhaps, with other things in between.
    this.blocked = false;
    this.#poke();
  };

  #visible = (): void => {
    if (document.visibilityState === "visible") this.#poke();
  };

  async token(wanted: TokenWanted): Promise<string | undefined> {
    const { token } = this.options;
    if (!token) return undefined;
    // Lines that connect together ask once.
    if (!this.#token || wanted === "refused" || (wanted === "new" && !this.#asking)) {
      this.#asking = true;
      this.#token = (async () => (await token(wanted === "refused")) ?? undefined)();
    }
    const asked = this.#token;
    try {
      const given = await asked;
      if (this.#token === asked) this.#asking = false;
      return given;
    } catch (error) {
      if (this.#token === asked) this.#token = undefined;
      throw new AirwaveError("disconnected", `there is no token: ${error}`);
    }
  }

  /**
   * A request to the server, whose answer is a success.
   *
   * A token that is refused is replaced once. Rejects with an {@link AirwaveError}.
   */
  async request(path: string, init: RequestInit, wanted: TokenWanted = "same"): Promise<Response> {
    const token = await this.token(wanted);
    const headers = { ...(init.headers as Record<string, string>), ...(token && { authorization: `Bearer ${token}` }) };
    let response: Response;
    try {
      const signal = init.signal ?? AbortSignal.timeout(ANSWER_MS);
      response = await this.#fetch(this.url + path, { credentials: this.credentials, ...init, headers, signal });
    } catch (error) {
      throw new AirwaveError("disconnected", `the server cannot be reached: ${error}`);
    }
    if (response.ok) return response;
    // A stream's line replaces its own token.
    if (response.status === 401 && wanted === "same" && this.hasToken) return this.request(path, init, "refused");
    const body = (await response.json().catch(() => undefined)) as { error?: { code: Code; message: string } } | undefined;
    if (body?.error) throw refusal(body.error);
    throw new AirwaveError(STATUS_CODES[response.status] ?? (response.status < 500 ? "bad-request" : "unavailable"), `answered with status ${response.status}`);
  }
}

/**
 * A client of the server at `url`: absolute, or relative to the page. Default: where this module was loaded from, if that was a server's `/client.js`.
 * Nothing is connected before the first channel.
 */
export function connect(url: string | URL = new URL(".", import.meta.url), options: Options = {}): Airwave {
  const base = globalThis.document?.baseURI ?? globalThis.location?.href;
  return new Client(new URL(url, base).href, options);
}
