// A client of one server: which connection carries which channel, and what all connections need.

import type { Relay, ShareHost } from "./client-share.js";
import { type Connection, type ConnectionHost, jitter, lost, type TokenWanted } from "./connection.js";
import type { ErrorBody } from "./frames.js";
import { checkChannel } from "./names.js";
import { disconnected, isTemporary, object, refusal, TooLong } from "./protocol.js";
import { type Info, type Owner, Subscription } from "./subscription.js";
import { after } from "./timing.js";
import { TRANSPORTS } from "./transports.js";
import { type Airwave, AirwaveError, type AnyEvents, type Channel, type ChannelOptions, type Code, type Options, type TransportName } from "./types.js";

/** How long an answer other than a stream may take. */
const ANSWER_MS = 15_000;

/** How long the server may take to answer when the browser says that it is offline. */
const OFFLINE_MS = 5_000;

export class Client implements Airwave, Owner, ConnectionHost, ShareHost {
  readonly url: string;
  readonly queue: number;
  readonly silence: number;
  readonly backoff: readonly [number, number];
  readonly credentials: RequestCredentials;
  readonly WebSocket: unknown;
  readonly hasToken: boolean;
  readonly options: Options;
  relay: Relay | undefined;
  /** The transports that a proxy between does not pass. */
  readonly #blocked = new Set<string>();
  /** Why this client cannot connect to anything. */
  fault: AirwaveError | undefined;
  /** Whether an answer could be read, so that the server allows pages of this origin. */
  #read = false;
  /** Whether the page is in the back/forward cache, where nothing connects. */
  #suspended = false;
  #fetch: typeof fetch;
  #token: Promise<string | undefined> | undefined;
  #asking = false;
  #subscriptions = new Map<string, Subscription>();
  #connections = new Set<Connection>();
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
    for (const [event, listener] of this.#page) globalThis.addEventListener?.(event, listener);
    globalThis.document?.addEventListener("visibilitychange", this.#visible);
  }

  channel<E = AnyEvents, C = AnyEvents>(name: string, options: ChannelOptions = {}): Channel<E, C> {
    let subscription = this.#subscriptions.get(name);
    if (subscription) subscription.users += 1;
    else {
      subscription = new Subscription(this, name, options);
      this.#subscriptions.set(name, subscription);
      const made = subscription;
      // An invalid name never becomes part of a URL: "../admin" would leave the server's path, with
      // the token.
      const wrong = this.fault ?? checkChannel(name);
      // Later, so that the caller has the time to add listeners.
      queueMicrotask(() => (wrong ? made.refused(wrong) : void this.place(made)));
    }
    return subscription as unknown as Channel<E, C>;
  }

  over(subscription: Subscription): void {
    if (this.#subscriptions.get(subscription.name) === subscription) this.#subscriptions.delete(subscription.name);
    this.relay?.over(subscription);
  }

  close(): void {
    for (const [event, listener] of this.#page) globalThis.removeEventListener?.(event, listener);
    globalThis.document?.removeEventListener("visibilitychange", this.#visible);
    for (const subscription of [...this.#subscriptions.values()]) subscription.shut();
    this.relay?.close();
    // Not the connections: the answer to a ping would be waited for, and a process that has nothing
    // else to do with it.
    this.#wake();
  }

  // ---- which connection --------------------------------------------------------------------

  /** Finds what carries this channel from now on. `alone`: not another tab. */
  async place(subscription: Subscription, alone = false): Promise<void> {
    if (this.options.share) await (this.#ready ??= this.#share());
    if (subscription.isOver || (!alone && this.relay?.takes(subscription))) return;
    const wanted = this.#wanted(subscription);
    const kind = wanted === "auto" ? await this.#asked(subscription) : wanted;
    if (kind && !subscription.isOver) this.carry(subscription, kind);
  }

  /** Returns what the options say about a channel's transport. */
  #wanted({ options }: Subscription): TransportName | "auto" {
    return options.transport ?? this.options.transport ?? "auto";
  }

  /** Puts the channel on a connection of this client. */
  carry(subscription: Subscription, kind: TransportName): void {
    let connection = [...this.#connections].find((each) => each.kind === kind && each.takes(subscription));
    if (!connection) {
      connection = new (TRANSPORTS[kind] ?? TRANSPORTS.polling)(this, subscription);
      this.#connections.add(connection);
    }
    connection.add(subscription);
  }

  /**
   * Asks the server for a channel's transport, until it answers. Undefined: the channel is over.
   */
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
          await this.pause(jitter(this, tries));
        }
      }
    }
    return undefined;
  }

  /** Returns whether the server may name this transport, and it works here. */
  #can(kind: string | null | undefined): kind is TransportName {
    return TRANSPORTS[kind as TransportName]?.works?.(this) === true;
  }

  #choice({ transport, transports }: Info): TransportName | undefined {
    const able = [transport, ...transports].filter((kind) => this.#can(kind));
    return able.find((kind) => !this.#blocked.has(kind)) ?? (able.length ? "polling" : undefined);
  }

  async ask({ name }: Subscription): Promise<Info> {
    return this.page(name, undefined, 1);
  }

  /** Asks for a channel's page: how to listen, and the events after a cursor. */
  async page<T extends Info>(name: string, cursor: string | undefined, limit = 100): Promise<T> {
    const after = cursor === undefined ? "" : `&after=${encodeURIComponent(cursor)}`;
    const response = await this.request(`channels/${name}?limit=${limit}${after}`, { headers: { accept: "application/json" } });
    return this.json<T>(response, ({ transports }) => Array.isArray(transports));
  }

  /** Resolves with whether the server answers within seconds. */
  async answers({ name }: Subscription): Promise<boolean> {
    const signal = AbortSignal.timeout(OFFLINE_MS);
    return this.request(`channels/${name}?limit=1`, { headers: { accept: "application/json" }, signal }).then(
      () => true,
      ({ code }: AirwaveError) => code !== "disconnected",
    );
  }

  /**
   * Reads the JSON object of an answer. Rejects with `disconnected` if it is not one that Airwave
   * gives.
   */
  async json<T extends object>(response: Response, fits: (value: T) => boolean): Promise<T> {
    const value = object(await response.text().catch(() => "")) as T | undefined;
    if (value && fits(value)) return value;
    throw foreign(response);
  }

  /** Resolves with the reason for which the server refuses the channel, if it does. */
  async check(subscription: Subscription): Promise<AirwaveError | undefined> {
    try {
      const { transports } = (subscription.info = await this.ask(subscription));
      const other = transports.find((kind) => kind !== subscription.transport);
      if (transports.includes(subscription.transport ?? "")) return undefined;
      return new AirwaveError("wrong-transport", `'${subscription.name}' is not carried over ${subscription.transport}`, other);
    } catch (error) {
      return error as AirwaveError;
    }
  }

  /** Resolves with whether plain HTTP works now. */
  async reaches(subscription: Subscription): Promise<boolean> {
    const error = await this.check(subscription);
    return !error || error.code === "wrong-transport";
  }

  /** Moves the channel to the transport that a refusal names, unless an option fixes it. */
  moves(subscription: Subscription, { transport }: AirwaveError): boolean {
    if (this.#wanted(subscription) !== "auto" || !this.#can(transport) || transport === subscription.transport || this.#blocked.has(transport)) return false;
    subscription.connection?.remove(subscription);
    this.carry(subscription, transport);
    return true;
  }

  /**
   * Moves the channels of a connection over which nothing comes, with their cursors, to a transport
   * that their rules allow and that may pass.
   */
  fallBack(connection: Connection): void {
    if (connection.kind === "polling") return;
    for (const subscription of [...connection.members.values()]) {
      if (this.#wanted(subscription) !== "auto" || !subscription.info) continue;
      this.#blocked.add(connection.kind);
      const kind = this.#choice(subscription.info) ?? "polling";
      subscription.down(disconnected(`nothing comes over ${connection.kind} although the server answers; now ${kind}`));
      connection.remove(subscription);
      this.carry(subscription, kind);
    }
  }

  /** Forgets a connection that carries nothing any more. */
  idle(connection: Connection): void {
    this.#connections.delete(connection);
  }

  /** Loads what few pages need; undefined if it cannot be loaded. */
  readonly extra = (): Promise<typeof import("./client-share.js") | undefined> => import("./client-share.js").catch(() => undefined);

  async #share(): Promise<void> {
    try {
      this.relay = await (await this.extra())?.share(this);
    } catch {
      // Each tab has its own connections then: more of them, and otherwise the same.
    }
  }

  // What `share` needs of this module: a second copy of it would make errors that are of another
  // class.
  readonly lost: typeof lost = lost;
  readonly after: typeof after = after;
  error(code: Code, message: string): AirwaveError {
    return new AirwaveError(code, message);
  }

  // ---- what connections need ---------------------------------------------------------------

  /** Waits for `ms`, or until there is a reason to try at once. */
  pause(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const done = (): void => {
        clearTimeout(timer);
        this.#pauses.delete(done);
        resolve();
      };
      const timer = after(this.#suspended ? Infinity : ms, done);
      this.#pauses.add(done);
    });
  }

  #wake(): void {
    for (const done of [...this.#pauses]) done();
  }

  /** The listeners of a browser's page. */
  readonly #page: [string, (event: Event) => void][] = [
    [
      "online",
      () => {
        // The new network may have other proxies.
        this.#blocked.clear();
        this.#wake();
        for (const connection of this.#connections) connection.online();
      },
    ],
    [
      "offline",
      () => {
        for (const connection of this.#connections) connection.offline();
        const error = disconnected("the browser is offline");
        for (const subscription of this.#subscriptions.values()) subscription.become(subscription.state, error);
      },
    ],
    [
      "pagehide",
      (event) => {
        // A page that is left for good takes its connections with it. One that is kept must not
        // have any, and comes back behind its cursors.
        if (!(event as PageTransitionEvent).persisted) return;
        this.#suspended = true;
        for (const connection of this.#connections) connection.suspend();
      },
    ],
    [
      "pageshow",
      () => {
        if (!this.#suspended) return;
        this.#suspended = false;
        this.#wake();
      },
    ],
  ];

  #visible = (): void => {
    if (document.visibilityState !== "visible") return;
    this.#wake();
    for (const connection of this.#connections) connection.probe();
  };

  async token(wanted: TokenWanted): Promise<string | undefined> {
    const { token } = this.options;
    if (!token) return undefined;
    // Connections that begin together ask once.
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
      throw disconnected(`there is no token: ${error}`);
    }
  }

  /**
   * Calls the server and resolves with an answer that is a success.
   *
   * Replaces a token that the server refuses once. Rejects with an {@link AirwaveError}.
   */
  async request(path: string, init: RequestInit, wanted: TokenWanted = "same"): Promise<Response> {
    const token = await this.token(wanted);
    const headers = { ...(init.headers as Record<string, string>), ...(token && { authorization: `Bearer ${token}` }) };
    let response: Response;
    try {
      const signal = init.signal ?? AbortSignal.timeout(ANSWER_MS);
      response = await this.#fetch(this.url + path, { credentials: this.credentials, ...init, headers, signal });
    } catch (error) {
      // A script learns no more from a browser if the server does not allow its page.
      const extra = this.#read ? undefined : await this.extra();
      throw disconnected((await extra?.notAllowed(this.url)) ?? `the server cannot be reached: ${error}`);
    }
    this.#read = true;
    if (response.ok) return response;
    // A stream's connection replaces its own token.
    if (response.status === 401 && wanted === "same" && this.hasToken) return this.request(path, init, "refused");
    if (response.status === 414 || response.status === 431) throw new TooLong("disconnected", `the request is too long for a proxy in between (${response.status})`);
    const body = object(await response.text().catch(() => "")) as Partial<ErrorBody> | undefined;
    const error = body?.error;
    if (typeof error?.code === "string") throw refusal(error);
    throw foreign(response);
  }
}

/**
 * Makes the error of an answer that is not Airwave's. A proxy gave it, or a server that is about to
 * be replaced, so the client tries again.
 */
function foreign({ status, headers }: Response): AirwaveError {
  return disconnected(`what answers is not Airwave: status ${status}, type ${headers.get("content-type")}`);
}

/**
 * Makes a client of the server at `url`: absolute, or relative to the page.
 *
 * The client connects with its first channel. Without a page to be relative to (on a server that
 * renders one), it refuses its channels.
 *
 * Throws an {@link AirwaveError} without a URL. The server's own `/client.js` has a default: the
 * place that it was loaded from.
 */
export function connect(url: string | URL, options: Options = {}): Airwave {
  if (url === undefined) throw new AirwaveError("bad-request", "give the server's URL: connect(\"https://realtime.example\")");
  const base = globalThis.document?.baseURI ?? globalThis.location?.href;
  try {
    return new Client(new URL(url, base).href, options);
  } catch {
    const client = new Client(String(url), options);
    client.fault = new AirwaveError("bad-request", `'${url}' is no absolute URL, and there is no page`);
    return client;
  }
}
