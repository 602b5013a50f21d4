// What stands between the client and the server, and what an application hands over: answers that
// are not Airwave's, connections that carry nothing, networks that change, names and data that are
// none. The clock is a fake one, and so is the other end.

import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { type Airwave, AirwaveError, connect, type Options, type StateChange } from "../src/index.js";
import { after } from "../src/timing.js";
import { FakeSocket, settled } from "./support/socket.js";

const json = (value: unknown, status = 200): Response => new Response(JSON.stringify(value), { status, headers: { "content-type": "application/json" } });
const page = (status: number): Response => new Response("<html>deploying</html>", { status, headers: { "content-type": "text/html" } });
const info = (transports = ["sse"], more: object = {}): Response => json({ channel: "a", cursor: "10", complete: true, more: false, ended: false, transport: transports[0], transports, events: [], ...more });

/** A stream that says `blocks` and stays open until it is aborted. */
function stream(signal: AbortSignal | null | undefined, ...blocks: string[]): Response {
  const body = new ReadableStream<Uint8Array>({
    start(controller) {
      for (const block of blocks) controller.enqueue(new TextEncoder().encode(block));
      signal?.addEventListener("abort", () => controller.error(new Error("aborted")));
    },
  });
  return new Response(body, { headers: { "content-type": "text/event-stream" } });
}
const subscribed = (channel = "a", cursor = "10", resumed = false): string => `id: ${cursor}\nevent: airwave.subscribed\ndata: ${JSON.stringify({ channel, cursor, resumed })}\n\n`;

type Answer = (path: string, init: RequestInit) => Response | Promise<Response>;
let airwave: Airwave;
let asked: string[];
/** A client of a server that gives these answers. */
function start(answer: Answer, options: Options = {}): Airwave {
  asked = [];
  const fetch = async (input: RequestInfo | URL, init: RequestInit = {}): Promise<Response> => {
    const path = String(input).replace("http://server.example/", "");
    asked.push(path);
    return answer(path, init);
  };
  return (airwave = connect("http://server.example/", { WebSocket: FakeSocket, fetch: fetch as typeof globalThis.fetch, backoff: [100, 100], ...options }));
}

beforeEach(() => {
  vi.useFakeTimers();
  vi.spyOn(Math, "random").mockReturnValue(0.5);
  FakeSocket.made = [];
});
afterEach(() => {
  airwave?.close();
  vi.useRealTimers();
  vi.unstubAllGlobals();
  vi.restoreAllMocks();
});

describe("an answer that is not Airwave's is never final", () => {
  const foreign: [string, () => Response][] = [
    ["a page with 404", () => page(404)],
    ["a page with 403", () => page(403)],
    ["a page with 502", () => page(502)],
    ["404 without a body", () => new Response(null, { status: 404 })],
    ["200 and a page", () => page(200)],
    ["200 and JSON of another shape", () => json({ hello: 1 })],
    ["404 and JSON of another shape", () => json({ error: "Not Found" }, 404)],
    ["null", () => json(null)],
  ];
  for (const [what, answer] of foreign) {
    test(`${what}: asking for the transport`, async () => {
      let deploying = true;
      const channel = start((path, { signal }) => (deploying ? answer() : path.startsWith("events") ? stream(signal, subscribed()) : info())).channel("a");
      const errors: unknown[] = [];
      channel.on("state", ({ error }) => error && errors.push(error));
      await vi.advanceTimersByTimeAsync(1500);
      expect(channel.state).toBe("waiting");
      expect(errors[0]).toBeInstanceOf(AirwaveError);
      expect(errors[0]).toMatchObject({ code: "disconnected", message: expect.stringContaining("not Airwave") });
      deploying = false;
      await vi.advanceTimersByTimeAsync(1000);
      expect(channel.state).toBe("open");
    });

    test(`${what}: a stream, and a message`, async () => {
      let deploying = true;
      const answers: Answer = (path, { signal, method }) => {
        if (deploying) return answer();
        return path.startsWith("events") ? stream(signal, subscribed()) : method === "POST" ? json({ data: "done" }) : info();
      };
      const channel = start(answers, { transport: "sse" }).channel("a");
      await vi.advanceTimersByTimeAsync(1500);
      expect(channel.state).toBe("waiting");
      deploying = false;
      await vi.advanceTimersByTimeAsync(1000);
      expect(channel.state).toBe("open");
      deploying = true;
      const sent = channel.send("n", 1);
      await vi.advanceTimersByTimeAsync(1500);
      deploying = false;
      await vi.advanceTimersByTimeAsync(1000);
      expect(await sent).toBe("done");
    });
  }

  test("a refusal of Airwave's own is final", async () => {
    vi.spyOn(console, "error").mockImplementation(() => {});
    const channel = start(() => json({ error: { code: "forbidden", message: "no" } }, 403)).channel("a");
    await vi.advanceTimersByTimeAsync(1000);
    expect(channel.state).toBe("refused");
    expect(asked).toHaveLength(1);
  });

  test("a WebSocket that speaks something else", async () => {
    const channel = start(() => page(404), { transport: "websocket" }).channel("a");
    await settled();
    const socket = await FakeSocket.last.open();
    socket.onmessage?.({ data: "hello" });
    await settled();
    expect(channel.state).toBe("waiting");
    await vi.advanceTimersByTimeAsync(100);
    (await FakeSocket.last.open()).confirm();
    expect(channel.state).toBe("open");
  });
});

describe("a connection is proven by what comes over it", () => {
  test("a proxy that holds streams back: the WebSocket is tried", async () => {
    const held: Answer = (path, { signal }) => (path.startsWith("events") ? new Promise((_, fail) => signal?.addEventListener("abort", () => fail(new Error("aborted")))) : info(["sse", "websocket"]));
    const channel = start(held).channel("a");
    const states: StateChange[] = [];
    channel.on("state", (state) => states.push(state));
    await vi.advanceTimersByTimeAsync(25_000);
    (await FakeSocket.last.open()).confirm();
    expect(channel.state).toBe("open");
    expect(channel.transport).toBe("websocket");
    expect(states.map(({ error }) => error?.message ?? "").join()).toMatch(/nothing comes over sse/);
  });

  test("a proxy that lets sockets open and swallows what they carry: the stream is tried", async () => {
    const channel = start((path, { signal }) => (path.startsWith("events") ? stream(signal, subscribed()) : info(["websocket", "sse"]))).channel("a");
    await settled();
    await FakeSocket.last.open();
    await vi.advanceTimersByTimeAsync(10_100);
    await FakeSocket.last.open();
    await vi.advanceTimersByTimeAsync(10_500);
    expect(channel.transport).toBe("sse");
    expect(channel.state).toBe("open");
  });

  test("neither passes: the JSON page is asked, nothing is missed, and messages go by POST", async () => {
    const kept: { id: number; data: number }[] = [{ id: 11, data: 1 }];
    const answers: Answer = (path, { signal, method }) => {
      if (path.startsWith("events")) return new Promise((_, fail) => signal?.addEventListener("abort", () => fail(new Error("aborted"))));
      if (method === "POST") return json({ data: "done" });
      const cursor = Number(/after=(\d+)/.exec(path)?.[1] ?? NaN);
      const events = kept.filter(({ id }) => id > cursor).map(({ id, data }) => ({ channel: "a", id: String(id), event: "n", data }));
      return info(["sse", "websocket"], { cursor: String(kept.at(-1)!.id), events });
    };
    const channel = start(answers).channel("a");
    const heard: unknown[] = [];
    channel.on("n", (data) => heard.push(data));
    for (let i = 0; i < 50 && channel.transport !== "polling"; i += 1) await vi.advanceTimersByTimeAsync(1000);
    expect(channel.transport).toBe("polling");
    await vi.advanceTimersByTimeAsync(100);
    expect(channel.state).toBe("open");
    kept.push({ id: 12, data: 2 }, { id: 13, data: 3 });
    await vi.advanceTimersByTimeAsync(2500);
    expect(heard).toEqual([2, 3]);
    expect(await channel.send("n", 1)).toBe("done");
  });

  test("a transport that was asked for by name is kept, and its state says why nothing comes", async () => {
    const channel = start(() => info(["sse", "websocket"]), { transport: "websocket" }).channel("a");
    const errors: string[] = [];
    channel.on("state", ({ error }) => error && errors.push(error.message));
    await settled();
    for (let i = 0; i < 3; i += 1) {
      await FakeSocket.last.open();
      await vi.advanceTimersByTimeAsync(10_500);
    }
    expect(channel.transport).toBe("websocket");
    expect(errors.at(-1)).toMatch(/nothing was heard/);
  });
});

describe("long requests", () => {
  const name = (i: number): string => `${"x".repeat(57)}${i}`;
  const channelsOf = (path: string): string[] => new URLSearchParams(path.slice(path.indexOf("?"))).getAll("channel");

  test("a hundred channels with long names stay below 4 kB each", async () => {
    start((path, { signal }) => stream(signal, ...channelsOf(path).map((channel) => subscribed(channel))), { transport: "sse" });
    const channels = Array.from({ length: 100 }, (_, i) => airwave.channel(name(i), { after: "1748123004217001" }));
    await vi.advanceTimersByTimeAsync(100);
    expect(channels.every(({ state }) => state === "open")).toBe(true);
    expect(Math.max(...asked.map((path) => path.length))).toBeLessThan(4000);
    expect(new Set(asked.flatMap(channelsOf)).size).toBe(100);
  });

  test("what refuses a request of 1,000 bytes is asked in pieces", async () => {
    for (const status of [414, 431]) {
      start((path, { signal }) => (path.length > 1000 ? page(status) : stream(signal, ...channelsOf(path).map((channel) => subscribed(channel)))), { transport: "sse" });
      const channels = Array.from({ length: 40 }, (_, i) => airwave.channel(name(i)));
      await vi.advanceTimersByTimeAsync(2000);
      expect(channels.every(({ state }) => state === "open")).toBe(true);
      airwave.close();
    }
  });
});

describe("names and data", () => {
  test("an invalid name makes no request", async () => {
    vi.spyOn(console, "error").mockImplementation(() => {});
    start(() => info(), { token: () => "secret" });
    for (const name of ["jobs/../../../admin/x?y=", "", "/a", "a/", "a//b", "..", "a/.", "a b", "a?b", "a#b", "ü", "a%2e", "x".repeat(256), "a\nb"]) {
      const channel = airwave.channel(name);
      const errors: unknown[] = [];
      channel.on("error", (error) => errors.push(error));
      await settled();
      expect(channel.state, name).toBe("refused");
      expect(errors).toMatchObject([{ code: "bad-request" }]);
      await expect(channel.send("n", 1)).rejects.toBeInstanceOf(AirwaveError);
    }
    expect(asked).toEqual([]);
  });

  test("what JSON cannot carry fails its own promise and nothing else", async () => {
    const channel = start(() => info(), { transport: "websocket" }).channel("a");
    const circle: Record<string, unknown> = {};
    circle["circle"] = circle;
    const bad: unknown[] = [{ big: 10n }, 10n, new Map([[1, 2]]), { deep: { set: new Set() } }, new ArrayBuffer(3), [new DataView(new ArrayBuffer(1))], { bytes: new Uint8Array(2) }, () => 1, Symbol("s"), circle, new Blob([]), Promise.resolve()];
    for (const data of bad) await expect(channel.send("n", data)).rejects.toMatchObject({ code: "bad-request" });
    for (const event of ["", "a/b", "a b", "airwave.end", "ü", "x".repeat(256)]) await expect(channel.send(event, 1)).rejects.toMatchObject({ code: "bad-request" });
    await expect(channel.send("n", 1, { idempotencyKey: "not ascii: ü" })).rejects.toMatchObject({ code: "bad-request" });
    const data = { n: 1 };
    const good = channel.send("n", data);
    data.n = 2;
    const none = channel.send("n");
    await settled();
    const socket = await FakeSocket.last.open();
    socket.confirm();
    const sent = socket.said.filter(({ type }) => type === "send");
    // As it was when it was handed over.
    expect(sent.map(({ data }) => data)).toEqual([{ n: 1 }, null]);
    for (const { id } of sent) socket.tell({ type: "reply", id, data: null });
    await Promise.all([good, none]);
  });

  test("events named like a property of every object are heard", async () => {
    const channel = start(() => info(), { transport: "websocket" }).channel("a");
    const heard: unknown[] = [];
    for (const event of ["constructor", "toString", "__proto__", "hasOwnProperty"]) channel.on(event, (data) => heard.push(data));
    await settled();
    const socket = await FakeSocket.last.open();
    socket.confirm();
    ["constructor", "toString", "__proto__", "hasOwnProperty"].forEach((event, i) => socket.tell({ channel: "a", id: String(11 + i), event, data: event }));
    expect(heard).toEqual(["constructor", "toString", "__proto__", "hasOwnProperty"]);
  });

  test("messages refused for now are sent again in their order", async () => {
    const channel = start(() => info(), { transport: "websocket" }).channel("a");
    await settled();
    const socket = await FakeSocket.last.open();
    socket.confirm();
    const sends = [0, 1, 2, 3].map((n) => channel.send("n", n));
    const sent = (): Record<string, unknown>[] => socket.said.filter(({ type }) => type === "send");
    const first = sent();
    for (const i of [0, 2]) socket.tell({ type: "error", id: first[i]!["id"], channel: "a", code: "unavailable", message: "later" });
    // Behind the refused ones: it waits, too.
    sends.push(channel.send("n", 4));
    expect(sent()).toHaveLength(4);
    socket.tell({ type: "reply", id: first[1]!["id"], data: null });
    await vi.advanceTimersByTimeAsync(100);
    const again = sent().slice(4);
    expect(again.map(({ data }) => data)).toEqual([0, 2, 3, 4]);
    expect(again[0]!["idempotency_key"]).toBe(first[0]!["idempotency_key"]);
    for (const { id } of again) socket.tell({ type: "reply", id, data: null });
    await Promise.all(sends);
  });
});

describe("clocks and timers", () => {
  test("a clock that is set back stops nothing", async () => {
    const channel = start(() => info(), { transport: "websocket", silence: 40_000 }).channel("a");
    await settled();
    const socket = await FakeSocket.last.open();
    socket.confirm();
    for (let i = 0; i < 150; i += 1) void channel.send("n", i, { repeat: false, reply: false });
    vi.setSystemTime(Date.now() - 3_600_000);
    for (let i = 0; i < 50; i += 1) void channel.send("n", i, { repeat: false, reply: false });
    await vi.advanceTimersByTimeAsync(2000);
    expect(socket.said.filter(({ type }) => type === "send")).toHaveLength(200);
    // Its silence is noticed all the same.
    await vi.advanceTimersByTimeAsync(40_100);
    expect(socket.closed).toBe(true);
  });

  test("a delay beyond what a timer takes does not fire at once", async () => {
    const fired: string[] = [];
    const timer = after(2 ** 31, () => fired.push("2^31"));
    expect(after(Infinity, () => fired.push("Infinity"))).toBe(undefined);
    expect(after(Number.NaN, () => fired.push("NaN"))).toBe(undefined);
    await vi.advanceTimersByTimeAsync(1000);
    expect(fired).toEqual([]);
    clearTimeout(timer);
    const channel = start(() => info(), { transport: "websocket", silence: Infinity, backoff: [1e12, Infinity] }).channel("a");
    const sent = channel.send("n", 1, { timeout: Infinity });
    await settled();
    const socket = await FakeSocket.last.open();
    socket.confirm();
    await vi.advanceTimersByTimeAsync(100_000);
    expect(socket.closed).toBe(false);
    socket.tell({ type: "reply", id: socket.said.at(-1)!["id"], data: "done" });
    expect(await sent).toBe("done");
    socket.drop();
    await vi.advanceTimersByTimeAsync(100_000);
    expect(FakeSocket.made).toHaveLength(1);
  });
});

describe("a page", () => {
  const target = new EventTarget();
  beforeEach(() => {
    vi.stubGlobal("addEventListener", target.addEventListener.bind(target));
    vi.stubGlobal("removeEventListener", target.removeEventListener.bind(target));
  });
  const tell = (type: string, more: object = {}): boolean => target.dispatchEvent(Object.assign(new Event(type), more));
  const streams = (): number => asked.filter((path) => path.startsWith("events")).length;

  test("its stream is opened anew at once when the network has changed", async () => {
    const channel = start((_, { signal }) => stream(signal, subscribed("a", "10", true)), { transport: "sse", backoff: [60_000, 60_000] }).channel("a");
    await vi.advanceTimersByTimeAsync(100);
    expect(streams()).toBe(1);
    tell("online");
    await vi.advanceTimersByTimeAsync(100);
    expect(streams()).toBe(2);
    expect(channel.state).toBe("open");
  });

  test("an offline browser is told in the state, and a connection that does not answer is given up within seconds", async () => {
    let lost = false;
    const answers: Answer = (path, { signal }) => {
      if (lost) throw new TypeError("Failed to fetch");
      return path.startsWith("events") ? stream(signal, subscribed()) : info();
    };
    const channel = start(answers, { transport: "sse" }).channel("a");
    const errors: string[] = [];
    channel.on("state", ({ error }) => error && errors.push(error.message));
    await vi.advanceTimersByTimeAsync(100);
    tell("offline");
    await vi.advanceTimersByTimeAsync(6000);
    // The server of this machine, perhaps: it answers, so the stream stays.
    expect([channel.state, errors]).toEqual(["open", ["the browser is offline"]]);
    lost = true;
    tell("offline");
    await vi.advanceTimersByTimeAsync(6000);
    expect(channel.state).toBe("waiting");
  });

  test("kept in the back/forward cache it has no connection, and comes back behind its cursor", async () => {
    for (const transport of ["websocket", "sse"] as const) {
      const channel = start((path, { signal }) => (path.startsWith("events") ? stream(signal, subscribed("a", "10", path.includes("after"))) : info()), { transport }).channel("a");
      await vi.advanceTimersByTimeAsync(100);
      if (transport === "websocket") (await FakeSocket.last.open()).confirm();
      expect(channel.state).toBe("open");
      tell("pagehide", { persisted: true });
      await vi.advanceTimersByTimeAsync(60_000);
      expect(channel.state).toBe("waiting");
      const before = asked.length + FakeSocket.made.length;
      await vi.advanceTimersByTimeAsync(60_000);
      expect(asked.length + FakeSocket.made.length).toBe(before);
      tell("pageshow", { persisted: true });
      await vi.advanceTimersByTimeAsync(100);
      if (transport === "websocket") {
        expect((await FakeSocket.last.open()).said[0]).toMatchObject({ type: "subscribe", after: "10" });
        FakeSocket.last.confirm("10", true);
      } else expect(asked.at(-1)).toContain("after=10");
      expect(channel.state).toBe("open");
      airwave.close();
    }
  });
});

describe("without a page", () => {
  test("connect demands a URL", () => {
    expect(() => (connect as (url?: string) => Airwave)()).toThrow(/give the server's URL/);
  });

  test("a relative URL makes a client whose channels are refused, and throws nothing", async () => {
    vi.spyOn(console, "error").mockImplementation(() => {});
    const channel = (airwave = connect("/realtime")).channel("a");
    await settled();
    expect(channel.state).toBe("refused");
  });
});
