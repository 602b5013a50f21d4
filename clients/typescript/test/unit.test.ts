// What needs no server: the clock is a fake one, and so is the other end.

import { afterEach, beforeEach, describe, expect, expectTypeOf, test, vi } from "vitest";
import { decodeFrame, encodeFrame, fromBase64, toBase64, toBase64Url } from "../src/bytes.js";
import { type Airwave, AirwaveError, connect, type Options } from "../src/index.js";
import { overEventSource } from "../src/eventsource.js";
import { SocketConnection } from "../src/socket.js";
import { TRANSPORTS } from "../src/transports.js";
import { FakeSocket, settled } from "./support/socket.js";

let airwave: Airwave;
const start = (options: Options = {}): Airwave => (airwave = connect("http://server.example/realtime", { WebSocket: FakeSocket, transport: "websocket", fetch: () => Promise.reject(new Error("down")), ...options }));

beforeEach(() => {
  vi.useFakeTimers();
  vi.spyOn(Math, "random").mockReturnValue(0.5);
  FakeSocket.made = [];
});
afterEach(() => {
  airwave?.close();
  vi.useRealTimers();
  vi.restoreAllMocks();
});

describe("bytes", () => {
  test("a command's frame is that of the protocol", () => {
    const frame = encodeFrame("a/b", "say", 258, new Uint8Array([9, 8]));
    expect([...frame]).toEqual([1, 3, 0x61, 0x2f, 0x62, 3, 0x73, 0x61, 0x79, 0, 0, 0, 0, 0, 0, 1, 2, 9, 8]);
    expect([...encodeFrame("a", "b", undefined, new Uint8Array())].slice(-8)).toEqual(Array(8).fill(255));
    expect(decodeFrame(frame.buffer as ArrayBuffer)).toEqual({ channel: "a/b", event: "say", id: "258", data: new Uint8Array([9, 8]) });
    const longest = "x".repeat(255);
    expect(decodeFrame(encodeFrame(longest, longest, 1, new Uint8Array()).buffer as ArrayBuffer)).toMatchObject({ channel: longest, event: longest });
    expect(decodeFrame(new Uint8Array([2, 1, 97]).buffer)).toBe(undefined);
    expect(decodeFrame(frame.slice(0, 12).buffer as ArrayBuffer)).toBe(undefined);
  });

  test("base64 there and back", () => {
    const bytes = Uint8Array.from({ length: 100_000 }, (_, i) => i * 7);
    expect(Buffer.from(fromBase64(toBase64(bytes))).equals(bytes)).toBe(true);
    expect(toBase64Url("ü?>~~")).toBe(Buffer.from("ü?>~~").toString("base64url"));
  });
});

describe("a connection", () => {
  test("several frames in one are heard in their order", async () => {
    start();
    const channel = airwave.channel("a");
    const heard: unknown[] = [];
    channel.on("n", (data) => heard.push(data));
    channel.on("gap", ({ reason }) => heard.push(reason));
    await settled();
    const socket = await FakeSocket.last.open();
    expect(socket.url).toContain("batch=true");
    socket.confirm();
    const event = (n: number): object => ({ channel: "a", id: String(10 + n), event: "n", data: n });
    socket.tell([event(1), event(2), { type: "gap", channel: "a", after: "12", cursor: "13", reason: "too-slow" }, event(4)]);
    expect(heard).toEqual([1, 2, "too-slow", 4]);
    expect(channel.cursor).toBe("14");
    // What is no frame is not Airwave's, within an array, too.
    socket.tell([event(5), null, event(6)]);
    await settled();
    expect(heard).toEqual([1, 2, "too-slow", 4, 5]);
    expect(channel.state).toBe("waiting");
  });

  test("a further row of the table of transports carries what the server gives it", async () => {
    const table = TRANSPORTS as unknown as Record<string, unknown>;
    class OtherConnection extends SocketConnection {
      override readonly kind = "other" as "websocket";
      static override works = (): boolean => true;
    }
    table["other"] = OtherConnection;
    const page = { transport: "other", transports: ["other", "sse"], ended: false };
    try {
      start({ transport: "auto", fetch: () => Promise.resolve(Response.json(page)) });
      const channels = ["a", "b"].map((name) => airwave.channel(name));
      await settled();
      const socket = await FakeSocket.last.open();
      socket.confirm();
      expect(channels.map(({ state, transport }) => [state, transport])).toEqual([["open", "other"], ["open", "other"]]);
      expect(FakeSocket.made.length).toBe(1);
    } finally {
      delete table["other"];
    }
    // Without its row the name says nothing to this client, and the next one of the rule is used.
    const later = airwave.channel("c");
    await settled();
    expect(later.transport).toBe("sse");
  });

  test("a page that the server does not allow reads so once in the console, with `origins`", async () => {
    vi.stubGlobal("document", { addEventListener: () => {}, removeEventListener: () => {}, baseURI: "https://app.example/" });
    vi.stubGlobal("location", { origin: "https://app.example", href: "https://app.example/" });
    const probes: unknown[] = [];
    let reachable = false;
    vi.stubGlobal("fetch", (_: string, { mode }: RequestInit) => {
      probes.push(mode);
      return reachable ? Promise.resolve(Response.error()) : Promise.reject(new TypeError("Failed to fetch"));
    });
    const told = vi.spyOn(console, "error").mockImplementation(() => {});
    start({ transport: "auto", backoff: [10, 10] });
    const errors: string[] = [];
    airwave.channel("a").on("state", ({ error }) => error && errors.push(error.message));
    // A server that cannot be reached is no matter of origins.
    await vi.waitFor(() => expect(errors.at(-1)).toContain("cannot be reached"));
    expect(told).not.toHaveBeenCalled();
    reachable = true;
    await vi.waitFor(() => expect(errors.at(-1)).toMatch(/not to pages of https:\/\/app\.example: add .* to `origins`/));
    const before = errors.length;
    await vi.waitFor(() => expect(errors.length).toBeGreaterThan(before + 2));
    expect(told).toHaveBeenCalledTimes(1);
    expect(told.mock.calls[0]![0]).toContain("origins");
    expect(new Set(probes)).toEqual(new Set(["no-cors"]));
    airwave.close();
    vi.unstubAllGlobals();
  });

  test("a browser with many streams over HTTP/1.1 is warned of once, and only then", async () => {
    vi.useRealTimers();
    vi.restoreAllMocks();
    vi.stubGlobal("document", {});
    const warned = vi.spyOn(console, "warn").mockImplementation(() => {});
    const { crowd } = await import("../src/client-share.js");
    const over = new AbortController();
    const open = (n: number, url = "http://server.example/"): void => {
      for (let i = 0; i < n; i += 1) crowd(url, over.signal);
    };
    const counted = (): Promise<unknown> => new Promise((done) => setTimeout(done, 800));
    // HTTP/2, streams of another server, and one that is over are none of these.
    open(5, "https://server.example/");
    open(3, "http://other.example/");
    open(3);
    crowd("http://server.example/", AbortSignal.abort());
    await counted();
    expect(warned).not.toHaveBeenCalled();
    open(2);
    await vi.waitFor(() => expect(warned).toHaveBeenCalled(), 30_000);
    await counted();
    expect(warned).toHaveBeenCalledTimes(1);
    expect(warned.mock.calls[0]![0]).toMatch(/streams to server\.example .*share: true/);
    over.abort();
    vi.unstubAllGlobals();
  });

  test("waits with full jitter, longer each time, and as long as the server says", async () => {
    start({ backoff: [1000, 4000] }).channel("a");
    for (const wait of [500, 1000, 2000, 2000]) {
      await settled();
      const count = FakeSocket.made.length;
      FakeSocket.last.drop();
      await vi.advanceTimersByTimeAsync(wait - 1);
      expect(FakeSocket.made.length).toBe(count);
      await vi.advanceTimersByTimeAsync(1);
      expect(FakeSocket.made.length).toBe(count + 1);
    }
    (await FakeSocket.last.open()).drop(1012, "retry=7000");
    const count = FakeSocket.made.length;
    await vi.advanceTimersByTimeAsync(6999);
    expect(FakeSocket.made.length).toBe(count);
    await vi.advanceTimersByTimeAsync(1);
    expect(FakeSocket.made.length).toBe(count + 1);
  });

  test("the wait is short again after a connection that held", async () => {
    start({ backoff: [1000, 60_000] }).channel("a");
    for (let i = 0; i < 5; i += 1) {
      await settled();
      FakeSocket.last.drop();
      await vi.advanceTimersByTimeAsync(30_000);
    }
    (await FakeSocket.last.open()).confirm();
    await vi.advanceTimersByTimeAsync(10_000);
    const count = FakeSocket.made.length;
    FakeSocket.last.drop();
    await vi.advanceTimersByTimeAsync(500);
    expect(FakeSocket.made.length).toBe(count + 1);
  });

  test("does not wait when the network or the page is back", async () => {
    const target = new EventTarget();
    vi.stubGlobal("addEventListener", target.addEventListener.bind(target));
    vi.stubGlobal("removeEventListener", target.removeEventListener.bind(target));
    const page = Object.assign(new EventTarget(), { visibilityState: "hidden", baseURI: "http://server.example/" });
    vi.stubGlobal("document", page);
    start({ backoff: [60_000, 60_000] }).channel("a");
    await settled();
    for (const wake of [() => target.dispatchEvent(new Event("online")), () => page.dispatchEvent(new Event("visibilitychange"))]) {
      FakeSocket.last.drop();
      await settled();
      const count = FakeSocket.made.length;
      page.visibilityState = "hidden";
      page.dispatchEvent(new Event("visibilitychange"));
      await settled();
      expect(FakeSocket.made.length).toBe(count);
      page.visibilityState = "visible";
      wake();
      await settled();
      expect(FakeSocket.made.length).toBe(count + 1);
    }
    // The client asks a connection that seems to stand whether it does.
    const socket = await FakeSocket.last.open();
    socket.confirm();
    target.dispatchEvent(new Event("online"));
    expect(socket.said.at(-1)).toEqual({ type: "ping" });
    await vi.advanceTimersByTimeAsync(5000);
    expect(socket.closed).toBe(true);
    airwave.close();
    vi.unstubAllGlobals();
  });

  test("a silent connection is given up", async () => {
    start({ silence: 40_000, backoff: [10, 10] }).channel("a");
    await settled();
    const socket = await FakeSocket.last.open();
    socket.confirm();
    for (let i = 0; i < 5; i += 1) {
      await vi.advanceTimersByTimeAsync(39_000);
      socket.tell({ type: "heartbeat" });
    }
    expect(socket.closed).toBe(false);
    await vi.advanceTimersByTimeAsync(40_100);
    expect(socket.closed).toBe(true);
    expect(FakeSocket.made.length).toBe(2);
  });

  test("a closed client leaves no timer that would keep a process alive", async () => {
    for (const open of [true, false]) {
      start().channel("a");
      await settled();
      if (open) (await FakeSocket.last.open()).confirm();
      else FakeSocket.last.drop();
      await settled();
      airwave.close();
      // As long as a connection without a channel is kept for another one that may come.
      await vi.advanceTimersByTimeAsync(100);
      expect(vi.getTimerCount()).toBe(0);
      expect(FakeSocket.last.closed).toBe(true);
    }
  });

  test("sends no more frames than the server takes", async () => {
    const channel = start().channel("a");
    await settled();
    const socket = await FakeSocket.last.open();
    socket.confirm();
    for (let i = 0; i < 500; i += 1) channel.send("n", i, { repeat: false, reply: false });
    expect(socket.said.length).toBe(150);
    await vi.advanceTimersByTimeAsync(1000);
    expect(socket.said.length).toBeGreaterThan(220);
    expect(socket.said.length).toBeLessThan(250);
    await vi.advanceTimersByTimeAsync(4000);
    expect(socket.said.slice(1).map(({ data }) => data)).toEqual(Array.from({ length: 500 }, (_, i) => i));
  });

  test("shows a token as a subprotocol, and a new one when that is refused", async () => {
    const asked: boolean[] = [];
    const channel = start({ token: (refused) => `t${asked.push(refused)}`, backoff: [100, 100] }).channel("a");
    await settled();
    expect(FakeSocket.last.url).toBe("ws://server.example/realtime/socket?heartbeat=event&batch=true");
    expect(FakeSocket.last.protocols).toEqual(["airwave", `airwave.bearer.${toBase64Url("t1")}`]);
    // Refused for one channel: the answer to its subscription.
    let socket = await FakeSocket.last.open();
    socket.tell({ type: "error", id: socket.said[0]!["id"], channel: "a", code: "unauthorized", message: "no" });
    await settled();
    expect(FakeSocket.last.protocols![1]).toBe(`airwave.bearer.${toBase64Url("t2")}`);
    socket = await FakeSocket.last.open();
    socket.confirm();
    expect(channel.state).toBe("open");
    socket.drop();
    await vi.advanceTimersByTimeAsync(100);
    expect(asked).toEqual([false, true, false]);
    // Refused twice in a row: it is the user, not the token.
    channel.on("error", () => {});
    for (let i = 0; i < 2; i += 1) {
      socket = await FakeSocket.last.open();
      socket.tell({ type: "error", id: socket.said[0]!["id"], channel: "a", code: "unauthorized", message: "no" });
      await settled();
    }
    expect(channel.state).toBe("refused");
  });
});

describe("a channel", () => {
  test("a connection that breaks between confirmation and gap does not make the gap silent", async () => {
    const channel = start({ backoff: [10, 10] }).channel("a", { after: "5" });
    const gaps: unknown[] = [];
    channel.on("gap", (gap) => gaps.push(gap));
    await settled();
    (await FakeSocket.last.open()).confirm("90", false);
    FakeSocket.last.drop();
    await vi.advanceTimersByTimeAsync(10);
    const socket = await FakeSocket.last.open();
    expect(socket.said[0]).toMatchObject({ type: "subscribe", after: "5" });
    socket.confirm("90", false);
    const gap = { channel: "a", after: "5", cursor: "90", reason: "history-expired" };
    socket.tell({ type: "gap", ...gap });
    expect(gaps).toEqual([gap]);
    expect(channel.cursor).toBe("90");
  });

  test("names that the client uses itself do not hide an application's events", async () => {
    const channel = start().channel("a");
    const [ends, all]: [unknown[], unknown[]] = [[], []];
    channel.on("end", (told) => ends.push(told));
    channel.on("*", (data) => all.push(data));
    await settled();
    const socket = await FakeSocket.last.open();
    socket.confirm();
    socket.tell({ channel: "a", id: "11", event: "end", data: "of a play" });
    expect([ends, all]).toEqual([[], ["of a play"]]);
  });

  test("a listener that throws keeps no other listener from hearing", async () => {
    const channel = start().channel("a");
    const thrown: unknown[] = [];
    vi.stubGlobal("queueMicrotask", (task: () => void) => Promise.resolve().then(task).catch((error) => thrown.push(error)));
    const heard: unknown[] = [];
    channel.on("n", () => {
      throw new Error("the application's");
    });
    channel.on("n", (data) => heard.push(data));
    await settled();
    const socket = await FakeSocket.last.open();
    socket.confirm();
    for (const data of [1, 2]) socket.tell({ channel: "a", id: String(10 + data), event: "n", data });
    await settled();
    expect(heard).toEqual([1, 2]);
    expect(thrown).toHaveLength(2);
    vi.unstubAllGlobals();
  });

  test("'for await' gets gaps among the events, and is told when it falls behind", async () => {
    const channel = start().channel("a");
    const read: unknown[] = [];
    let fault: unknown;
    let hold: Promise<void> | undefined;
    const reading = (async () => {
      for await (const event of channel) {
        read.push(event.event === "airwave.gap" ? event.data.reason : event.data);
        await hold;
      }
    })().catch((error) => (fault = error));
    await settled();
    const socket = await FakeSocket.last.open();
    socket.confirm();
    socket.tell({ channel: "a", id: "11", event: "n", data: 1 });
    socket.tell({ type: "gap", channel: "a", after: "11", cursor: "20", reason: "too-slow" });
    socket.tell({ channel: "a", id: "21", event: "n", data: 2 });
    await settled();
    expect(read).toEqual([1, "too-slow", 2]);
    let go = (): void => {};
    hold = new Promise((done) => (go = done));
    for (let i = 0; i < 10_010; i += 1) socket.tell({ channel: "a", id: String(100 + i), event: "n", data: i });
    go();
    await reading;
    expect(fault).toBeInstanceOf(AirwaveError);
    expect(fault).toMatchObject({ code: "overflow" });
  });

  test("a loss without a listener is told to the console", async () => {
    const warn = vi.spyOn(console, "warn").mockImplementation(() => {});
    start().channel("a");
    await settled();
    const socket = await FakeSocket.last.open();
    socket.confirm();
    socket.tell({ type: "gap", channel: "a", after: "1", cursor: "20", reason: "too-slow" });
    expect(warn).toHaveBeenCalledOnce();
  });

  test("presence lists who is there, and who comes and goes", async () => {
    const channel = start().channel("a", { presence: true });
    const told: unknown[] = [];
    channel.on("presence", ({ members, joined, left, updated }) => told.push([members.map(({ user }) => user), joined?.user, left?.user, updated?.user]));
    await settled();
    const socket = await FakeSocket.last.open();
    expect(socket.said[0]).toMatchObject({ presence: true });
    socket.confirm();
    socket.tell({ type: "presence", channel: "a", members: [{ user: "ann", connections: 1 }], more: true });
    socket.tell({ type: "presence", channel: "a", members: [{ user: null, connections: 7 }], more: false });
    socket.tell({ type: "join", channel: "a", member: { user: "bob", connections: 1, meta: { colour: "red" } } });
    socket.tell({ type: "update", channel: "a", member: { user: "bob", connections: 2, meta: { colour: "blue" } } });
    socket.tell({ type: "leave", channel: "a", member: { user: "ann", connections: 0 } });
    expect(told).toEqual([
      [["ann", null], undefined, undefined, undefined],
      [["ann", null, "bob"], "bob", undefined, undefined],
      [["ann", null, "bob"], undefined, undefined, "bob"],
      [[null, "bob"], undefined, "ann", undefined],
    ]);
    expect(channel.members).toEqual([{ user: null, connections: 7 }, { user: "bob", connections: 2, meta: { colour: "blue" } }]);
  });

  test("a message without an answer goes again with the same key, unless `repeat` is false", async () => {
    const channel = start({ backoff: [10, 10] }).channel("a");
    await settled();
    let socket = await FakeSocket.last.open();
    socket.confirm();
    const kept = channel.send("n", 1);
    const once = channel.send("n", 2, { repeat: false });
    const failed = expect(once).rejects.toMatchObject({ code: "disconnected" });
    const [first] = socket.said.filter(({ data }) => data === 1);
    socket.drop();
    await failed;
    await vi.advanceTimersByTimeAsync(10);
    socket = await FakeSocket.last.open();
    const sends = () => socket.said.filter(({ type }) => type === "send");
    expect(sends()).toEqual([]);
    socket.confirm();
    const sent = sends();
    expect(sent).toHaveLength(1);
    expect(sent[0]).toMatchObject({ data: 1, idempotency_key: first!["idempotency_key"] });
    // The server cannot now: it is asked again, too.
    socket.tell({ type: "error", id: sent[0]!["id"], channel: "a", code: "unavailable", message: "later" });
    await vi.advanceTimersByTimeAsync(100);
    const again = socket.said.filter(({ type }) => type === "send").at(-1)!;
    expect(again["idempotency_key"]).toBe(first!["idempotency_key"]);
    socket.tell({ type: "reply", id: again["id"], data: { ok: true } });
    expect(await kept).toEqual({ ok: true });
    const late = expect(channel.send("n", 3, { timeout: 1000 })).rejects.toMatchObject({ code: "timeout" });
    await vi.advanceTimersByTimeAsync(1000);
    await late;
  });

  test("a message waits until its subscription is confirmed, and is refused with it", async () => {
    const client = start({ backoff: [10, 10], queue: 2 });
    const [channel, closed] = [client.channel("a"), client.channel("b")];
    closed.on("error", () => {});
    await settled();
    const socket = await FakeSocket.last.open();
    const sends = () => socket.said.filter(({ type }) => type === "send");
    const said = [channel.send("n", 1), channel.send("n", 2, { repeat: false })];
    const refused = expect(closed.send("n", 3)).rejects.toMatchObject({ code: "forbidden" });
    await expect(channel.send("n", 4)).rejects.toMatchObject({ code: "disconnected" });
    expect(sends()).toEqual([]);
    const subscribes = socket.said.filter(({ type }) => type === "subscribe");
    socket.tell({ type: "error", id: subscribes[1]!["id"], channel: "b", code: "forbidden", message: "members only" });
    await refused;
    socket.tell({ type: "subscribed", id: subscribes[0]!["id"], channel: "a", cursor: "1", resumed: false });
    expect(sends().map(({ channel, data }) => [channel, data])).toEqual([
      ["a", 1],
      ["a", 2],
    ]);
    for (const { id } of sends()) socket.tell({ type: "reply", id, data: null });
    await Promise.all(said);
    // A fault of the application's is the answer, and is not asked for again.
    const fault = expect(channel.send("n", 5)).rejects.toMatchObject({ code: "internal" });
    socket.tell({ type: "error", id: sends().at(-1)!["id"], channel: "a", code: "internal", message: "a fault" });
    await fault;
    await vi.advanceTimersByTimeAsync(30_000);
    expect(FakeSocket.made.flatMap(({ said }) => said).filter(({ data }) => data === 5)).toHaveLength(1);
  });

  test("the same name is the same channel, closed when all have closed it", async () => {
    const client = start();
    const [one, two] = [client.channel("a"), client.channel("a")];
    expect(one).toBe(two);
    await settled();
    const socket = await FakeSocket.last.open();
    socket.confirm();
    one.close();
    expect(one.state).toBe("open");
    two.close();
    expect(one.state).toBe("closed");
    expect(client.channel("a")).not.toBe(one);
    await vi.advanceTimersByTimeAsync(1000);
    expect(socket.closed).toBe(false);
    client.channel("a").close();
    client.channel("a").close();
    await settled();
    expect(client.channel("a").state).toBe("connecting");
    client.close();
    await vi.advanceTimersByTimeAsync(1000);
    expect(socket.closed).toBe(true);
    expect(FakeSocket.made.length).toBe(1);
  });
});

test("types: a map, or what a Rust enum becomes", () => {
  type Events = { event: "order-update"; data: { status: string } } | { event: "cleared" };
  start({ WebSocket: FakeSocket });
  const typed = airwave.channel<Events, { cancel: { why: string } }>("orders/1");
  typed.on("order-update", (data, event) => {
    expectTypeOf(data).toEqualTypeOf<{ status: string }>();
    expectTypeOf(event.id).toEqualTypeOf<string>();
  });
  typed.on("cleared", (data) => expectTypeOf(data).toEqualTypeOf<null>());
  typed.on("gap", ({ reason }) => expectTypeOf(reason).toExtend<string>());
  // @ts-expect-error: there is no such event
  typed.on("order-updated", () => {});
  // @ts-expect-error: a field is missing
  typed.send("cancel", {}).catch(() => {});
  const mapped = airwave.channel<{ tick: number }>("ticks");
  mapped.on("tick", (data) => expectTypeOf(data).toEqualTypeOf<number>());
});

test("an EventSource in place of fetch", async () => {
  vi.useRealTimers();
  class Source extends EventTarget {
    static last: Source;
    closed = false;
    onerror: (() => void) | undefined;
    constructor(readonly url: string) {
      super();
      Source.last = this;
    }
    close(): void {
      this.closed = true;
    }
    tell(type: string, data: unknown): void {
      this.dispatchEvent(new MessageEvent(type, { data: JSON.stringify(data) }));
    }
  }
  const channel = start({ transport: "sse", fetch: overEventSource(["n"], Source as unknown as typeof EventSource), backoff: [10, 10] }).channel("a");
  const heard: unknown[] = [];
  channel.on("n", (data) => heard.push(data));
  const long = { timeout: 30_000 };
  await vi.waitUntil(() => Source.last, long);
  expect(Source.last.url).toBe("http://server.example/realtime/events?heartbeat=event&channel=a");
  Source.last.tell("airwave.subscribed", { channel: "a", cursor: "10", resumed: false });
  Source.last.tell("n", { channel: "a", id: "11", event: "n", data: 1 });
  await vi.waitUntil(() => heard.length, long);
  const first = Source.last;
  first.onerror?.();
  await vi.waitUntil(() => Source.last !== first, long);
  expect(first.closed).toBe(true);
  expect(Source.last.url).toContain("&after=11");
});
