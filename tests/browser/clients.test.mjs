// The real server, heard by clients that Airwave did not write: the packages `eventsource` and
// `ws`, and curl.

import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { describe, test } from "node:test";
import { EventSource } from "eventsource";
import WebSocket from "ws";
import { Collector } from "./support/collector.mjs";
import { ask, stream, withoutCurl } from "./support/curl.mjs";
import { decodeEvent, encodeCommand } from "./support/frames.mjs";
import { line } from "./support/lines.mjs";
import { config, Server } from "./support/server.mjs";

describe("the eventsource package", () => {
  /** An EventSource of that package, with the headers of each request that it made. */
  function listen(t, url, events) {
    const requests = [];
    const source = new EventSource(url, {
      fetch: async (input, init) => {
        const request = { headers: init.headers, status: null };
        requests.push(request);
        const response = await fetch(input, init);
        request.status = response.status;
        return response;
      },
    });
    t.after(() => source.close());
    const heard = new Collector("eventsource");
    for (const event of [...events, "airwave.subscribed", "airwave.gap", "airwave.end", "error"]) {
      source.addEventListener(event, ({ type, lastEventId, data }) => heard.push({ type, id: lastEventId, data, readyState: source.readyState }));
    }
    return { source, heard, requests };
  }

  test("resumes with Last-Event-ID, and stops when the channel has ended", async (t) => {
    const server = await Server.start(t);
    const wire = await line(t, server);
    const { source, heard, requests } = listen(t, `${wire.url}/channels/both/es`, ["n"]);
    await heard.first(({ type }) => type === "airwave.subscribed", "confirmation");
    const { cursor } = await server.publish({ channel: "both/es", event: "n", data: 1 });
    await heard.first(({ type }) => type === "n", "event");
    wire.cut();
    await heard.first(({ type }) => type === "error", "loss of the line");
    await server.publish({ channel: "both/es", event: "n", data: 2 });
    wire.restore();
    await heard.count(2, ({ type }) => type === "n", "event");
    const answered = requests.filter(({ status }) => status === 200);
    assert.equal(answered.length, 2);
    assert.equal(answered[0].headers["Last-Event-ID"], undefined);
    assert.equal(answered[1].headers["Last-Event-ID"], cursor);

    const last = await server.publish({ channel: "both/es", event: "n", data: 3, end: true });
    await heard.first(({ type, readyState }) => type === "error" && readyState === source.CLOSED, "the end");
    assert.deepEqual(heard.entries.filter(({ type }) => type === "n").map(({ data }) => data), ["1", "2", "3"]);
    assert.deepEqual(heard.entries.filter(({ type }) => type === "airwave.gap"), []);
    assert.equal(requests.at(-1).headers["Last-Event-ID"], last.cursor);
    assert.equal(requests.at(-1).status, 204);
  });
});

describe("the ws package", () => {
  /**
   * A socket, what it hears (`text` as JSON, `binary` decoded, `ping`, `pong`, `close`), and its
   * upgrade answer.
   */
  async function connect(t, url) {
    const socket = new WebSocket(url.replace(/^http/, "ws"));
    t.after(() => socket.terminate());
    const heard = new Collector("ws");
    socket.on("message", (data, binary) => heard.push(binary ? { type: "binary", ...decodeEvent(data) } : { type: "text", frame: JSON.parse(data) }));
    socket.on("ping", (data) => heard.push({ type: "ping", data }));
    socket.on("pong", (data) => heard.push({ type: "pong", data: data.toString() }));
    socket.on("close", (code, reason) => heard.push({ type: "close", code, reason: reason.toString() }));
    await once(socket, "open");
    const frame = async (matches, what) => (await heard.first((entry) => entry.type === "text" && matches(entry.frame), what)).frame;
    return { socket, heard, frame, say: (object) => socket.send(JSON.stringify(object)) };
  }

  test("text: subscribe, send, reply, unsubscribe, ping, each with its id", async (t) => {
    const server = await Server.start(t);
    const { socket, heard, frame, say } = await connect(t, `${server.url}/socket`);
    assert.equal(socket.protocol, "");
    assert.equal(socket.extensions, "");
    say({ type: "subscribe", id: 1, channel: "both/ws" });
    assert.deepEqual({ ...(await frame(({ id }) => id === 1, "confirmation")), cursor: "" }, { type: "subscribed", id: 1, channel: "both/ws", cursor: "", resumed: false });
    say({ type: "send", id: 2, channel: "both/ws", event: "say", data: { text: "héllo 😀" }, key: "k" });
    assert.equal((await frame(({ id }) => id === 2, "reply")).type, "reply");
    const event = await frame(({ event }) => event === "say", "event");
    assert.deepEqual({ ...event, id: "" }, { channel: "both/ws", id: "", event: "say", data: { text: "héllo 😀" }, key: "k" });
    say({ type: "send", id: 3, channel: "unknown/a", event: "say", data: 1 });
    const error = await frame(({ id }) => id === 3, "error");
    assert.deepEqual([error.type, error.code, error.channel], ["error", "unknown-channel", "unknown/a"]);
    say({ type: "ping", id: 4 });
    assert.deepEqual(await frame(({ id }) => id === 4, "pong"), { type: "pong", id: 4 });
    say({ type: "unsubscribe", id: 5, channel: "both/ws" });
    assert.deepEqual(await frame(({ id }) => id === 5, "confirmation"), { type: "unsubscribed", id: 5, channel: "both/ws" });
    await server.publish({ channel: "both/ws", event: "say", data: "not heard live" });
    say({ type: "subscribe", id: 6, channel: "both/ws", after: event.id });
    assert.equal((await frame(({ id }) => id === 6, "confirmation")).resumed, true);
    await frame(({ data }) => data === "not heard live", "the event that was missed");
    assert.equal(heard.entries.filter(({ frame }) => frame?.data === "not heard live").length, 1);
  });

  test("binary: a frame of a client reaches listeners byte for byte", async (t) => {
    const server = await Server.start(t);
    const listener = await connect(t, `${server.url}/channels/both/bin`);
    await listener.frame(({ type }) => type === "subscribed", "confirmation");
    const sender = await connect(t, `${server.url}/channels/both/bin`);
    const payload = randomBytes(3000);
    sender.socket.send(encodeCommand("both/bin", "blob", payload, 9));
    const reply = await sender.frame(({ id }) => id === 9, "reply");
    assert.equal(reply.type, "reply");
    sender.socket.send(encodeCommand("both/bin", "blob", Buffer.from("no reply wanted")));
    const [first, second] = await listener.heard.count(2, ({ type }) => type === "binary", "binary frame");
    assert.deepEqual([first.channel, first.event, first.payload], ["both/bin", "blob", payload]);
    assert.equal(second.payload.toString(), "no reply wanted");
    assert.ok(BigInt(second.id) > BigInt(first.id));
    sender.say({ type: "ping", id: 10 });
    await sender.frame(({ id }) => id === 10, "pong");
    assert.equal(sender.heard.entries.filter(({ type }) => type === "text").length, 3, "a command without an id has no reply");
  });

  test("a message in fragments, with a ping between them", async (t) => {
    const server = await Server.start(t);
    const { socket, heard, frame } = await connect(t, `${server.url}/channels/both/parts`);
    const text = Buffer.from(JSON.stringify({ type: "send", id: 1, channel: "both/parts", event: "say", data: "grün 😀" }));
    const cut = text.indexOf(Buffer.from("😀")) + 2; // within a character
    socket.send(text.subarray(0, cut), { binary: false, fin: false });
    socket.ping("between");
    socket.send(text.subarray(cut, cut + 1), { binary: false, fin: false });
    socket.send(text.subarray(cut + 1), { binary: false, fin: true });
    assert.equal((await frame(({ id }) => id === 1, "reply")).type, "reply");
    await heard.first(({ type, data }) => type === "pong" && data === "between", "pong");
    assert.equal((await server.recent("both/parts")).events[0].data, "grün 😀");
  });

  test("ping and pong, in both directions", async (t) => {
    const server = await Server.start(t, { toml: config('[limits]\nheartbeat = "1s"') });
    const { socket, heard, frame } = await connect(t, `${server.url}/channels/both/ping?heartbeat=event`);
    socket.ping("hello");
    await heard.first(({ type, data }) => type === "pong" && data === "hello", "pong");
    await heard.count(2, ({ type }) => type === "ping", "the server's ping");
    await frame(({ type }) => type === "heartbeat", "heartbeat");
    assert.equal(socket.readyState, WebSocket.OPEN);
  });

  test("many events that wait come as one frame where the client asks for it, and else one by one", async (t) => {
    const server = await Server.start(t);
    const { cursor: before } = await server.publish({ channel: "both/many", event: "n", data: -1 });
    const many = Array.from({ length: 500 }, (_, n) => ({ channel: "both/many", event: "n", data: n }));
    await server.publish(many);
    const replayed = async (query) => {
      const messages = [];
      const socket = new WebSocket(`${server.url.replace(/^http/, "ws")}/channels/both/many?after=${before}${query}`);
      t.after(() => socket.terminate());
      const events = () => messages.flatMap((text) => JSON.parse(text)).filter(({ type }) => !type);
      await new Promise((done, fail) => {
        socket.on("error", fail);
        socket.on("close", () => fail(new Error("closed")));
        socket.on("message", (message) => {
          messages.push(String(message));
          if (events().length >= many.length) done();
        });
      });
      assert.deepEqual(events().map(({ data }) => data), many.map(({ data }) => data));
      return messages;
    };
    const batched = await replayed("&batch=true");
    assert.ok(batched.length < 20, `${batched.length} frames`);
    const single = await replayed("");
    assert.ok(single.every((text) => !Array.isArray(JSON.parse(text))));
    assert.equal(single.length, many.length + 1);
  });

  const closing = [
    ["a channel that no rule matches", "channels/unknown/a", [], 4404, "unknown-channel"],
    ["a channel of another transport", "channels/sse-only/x", [], 4406, "wrong-transport"],
    ["a frame far over the limit of messages", "socket", ["x".repeat(256 * 1024)], 1009, null],
    ["text that is not UTF-8", "socket", [Buffer.from([0xc3, 0x28])], 1007, null],
    ["more frames at once than the burst", "socket", Array.from({ length: 500 }, (_, id) => JSON.stringify({ type: "ping", id })), 4429, null],
  ];
  for (const [what, path, messages, code, said] of closing) {
    test(`close code ${code}: ${what}`, async (t) => {
      const server = await Server.start(t);
      const { socket, heard } = await connect(t, `${server.url}/${path}`);
      for (const message of messages) socket.send(message, { binary: false });
      const closed = await heard.first(({ type }) => type === "close", "close");
      assert.equal(closed.code, code);
      const errors = heard.entries.filter(({ frame }) => frame?.type === "error").map(({ frame }) => frame.code);
      assert.deepEqual(errors, said === null ? [] : [said]);
    });
  }

  const answered = [
    ["a frame that is no JSON", "{nonsense", "bad-request", null],
    ["a frame of an unknown type", '{"type":"dance","id":3}', "bad-request", 3],
    ["a message over its limit", JSON.stringify({ type: "send", id: 3, channel: "both/x", event: "say", text: "x".repeat(65 * 1024) }), "too-large", 3],
    ["a name that is no channel's", '{"type":"subscribe","id":3,"channel":"a//b"}', "bad-request", 3],
    ["a channel that no rule matches", '{"type":"subscribe","id":3,"channel":"unknown/a"}', "unknown-channel", 3],
    ["a binary frame that is cut short", Buffer.from([1, 200, 65]), "bad-request", null],
  ];
  for (const [what, message, code, id] of answered) {
    test(`an error, and the conversation goes on: ${what}`, async (t) => {
      const server = await Server.start(t);
      const { socket, heard, frame, say } = await connect(t, `${server.url}/socket`);
      socket.send(message);
      const error = await frame(({ type }) => type === "error", "error");
      assert.deepEqual([error.code, error.id], [code, id]);
      assert.ok(error.message.length > 0);
      say({ type: "ping", id: 4 });
      assert.deepEqual(await frame(({ id }) => id === 4, "pong"), { type: "pong", id: 4 });
      assert.equal(heard.entries.length, 2);
    });
  }

  test("a client's close is answered with its code", async (t) => {
    const server = await Server.start(t);
    const { socket, heard } = await connect(t, `${server.url}/channels/both/bye`);
    socket.close(1000, "done");
    assert.equal((await heard.first(({ type }) => type === "close", "close")).code, 1000);
  });

  test("a server that drains closes with 1012 and says when to come back", async (t) => {
    const server = await Server.start(t);
    const { heard, frame } = await connect(t, `${server.url}/channels/both/drain`);
    await frame(({ type }) => type === "subscribed", "confirmation");
    const exit = await server.drain();
    const closed = await heard.first(({ type }) => type === "close", "close");
    assert.equal(closed.code, 1012);
    assert.match(closed.reason, /^retry=\d+$/);
    assert.deepEqual(exit, { code: 0, signal: null });
  });
});

describe("curl", { skip: withoutCurl() }, () => {
  const published = (body) => ["-X", "POST", "-H", "content-type: application/json", "-d", JSON.stringify(body)];

  for (const [version, flags] of [["HTTP/1.1", []], ["HTTP/2", ["--http2-prior-knowledge"]]]) {
    test(`listens over ${version}, and resumes with Last-Event-ID`, async (t) => {
      const server = await Server.start(t);
      const url = `${server.url}/channels/both/curl`;
      const live = stream(t, ...flags, url);
      const head = await live.head;
      assert.deepEqual([head.version, head.status], [version, 200]);
      assert.match(head.headers["content-type"], /^text\/event-stream(;|$)/);
      assert.equal(head.headers["cache-control"], "no-store");
      assert.equal(head.headers["x-accel-buffering"], "no");
      const [confirmation] = await live.blocks.count(1, () => true, "block");
      assert.match(confirmation.retry, /^\d+$/);
      assert.equal(confirmation.event, "airwave.subscribed");
      assert.deepEqual(JSON.parse(confirmation.data), { channel: "both/curl", cursor: confirmation.id, resumed: false });

      const first = await server.publish({ channel: "both/curl", event: "n", data: { a: 1 } });
      const second = await server.publish({ channel: "both/curl", event: "line", text: "two\nlines" });
      const events = (await live.blocks.count(3, ({ comment }) => comment === undefined, "block")).slice(1);
      assert.deepEqual(events, [
        { id: first.cursor, event: "n", data: '{"a":1}' },
        { id: second.cursor, event: "line", data: "two\nlines" },
      ]);
      await live.stop();

      const resumed = stream(t, ...flags, "-H", `Last-Event-ID: ${first.cursor}`, `${url}?after=0`);
      const [again, missed] = await resumed.blocks.count(2, ({ comment }) => comment === undefined, "block");
      assert.deepEqual(JSON.parse(again.data), { channel: "both/curl", cursor: first.cursor, resumed: true }, "the header wins over ?after=");
      assert.deepEqual(missed, events[1]);
    });
  }

  test("hears the heartbeat, as a comment and as an event", async (t) => {
    const server = await Server.start(t, { toml: config('[limits]\nheartbeat = "1s"') });
    const comments = stream(t, `${server.url}/channels/both/quiet`);
    const events = stream(t, `${server.url}/channels/both/quiet?heartbeat=event`);
    assert.deepEqual(Object.keys(await comments.blocks.first(({ comment }) => comment !== undefined, "comment")), ["comment"]);
    const beat = await events.blocks.first(({ event }) => event === "airwave.heartbeat", "heartbeat");
    assert.deepEqual(beat, { event: "airwave.heartbeat", data: "{}" });
  });

  test("sees the stream of an ended channel close, and 204 from then on", async (t) => {
    const server = await Server.start(t);
    const url = `${server.url}/channels/both/ended`;
    const live = stream(t, url);
    await live.blocks.first(({ event }) => event === "airwave.subscribed", "confirmation");
    const { cursor } = await server.publish({ channel: "both/ended", event: "n", data: "last", end: true });
    assert.equal(await live.exited, 0);
    assert.equal(live.blocks.entries.at(-1).event, "airwave.end");
    assert.equal(live.blocks.entries.at(-1).id, cursor);
    assert.equal(live.rest(), "", "the stream ends after a whole block");
    const again = await ask(t, "-H", "accept: text/event-stream", "-H", `Last-Event-ID: ${cursor}`, url);
    assert.deepEqual([again.status, again.body], [204, ""]);
    const refused = await ask(t, ...published({ channel: "both/ended", data: 1 }), `${server.url}/publish`);
    assert.deepEqual([refused.status, JSON.parse(refused.body).error.code], [409, "ended"]);
  });

  test("sees a draining server end the stream after a whole block, with a time to come back", async (t) => {
    const server = await Server.start(t);
    const live = stream(t, `${server.url}/channels/both/drain`);
    await live.blocks.first(({ event }) => event === "airwave.subscribed", "confirmation");
    assert.deepEqual(await server.drain(), { code: 0, signal: null });
    assert.equal(await live.exited, 0);
    assert.deepEqual(Object.keys(live.blocks.entries.at(-1)), ["retry"]);
    assert.match(live.blocks.entries.at(-1).retry, /^\d+$/);
    assert.equal(live.rest(), "");
  });

  test("publishes, once per idempotency key, and reads the channel back as JSON", async (t) => {
    const server = await Server.start(t);
    const publish = [...published({ channel: "both/once", event: "n", data: { a: [1, 2] } }), "-H", "Idempotency-Key: order-1", `${server.url}/publish`];
    const first = await ask(t, ...publish);
    assert.equal(first.status, 200);
    const { cursor } = JSON.parse(first.body);
    assert.deepEqual(JSON.parse(first.body), { channel: "both/once", cursor, duplicate: false });
    assert.deepEqual(JSON.parse((await ask(t, ...publish)).body), { channel: "both/once", cursor, duplicate: true });

    const { status, body } = await ask(t, `${server.url}/channels/both/once`);
    assert.equal(status, 200);
    assert.deepEqual(JSON.parse(body), {
      channel: "both/once",
      cursor,
      complete: true,
      more: false,
      ended: false,
      transport: "sse",
      transports: ["sse", "websocket"],
      url: "/channels/both/once",
      events: [{ channel: "both/once", id: cursor, event: "n", data: { a: [1, 2] } }],
    });
  });

  test("gets errors in one shape", async (t) => {
    const server = await Server.start(t);
    const accept = ["-H", "accept: text/event-stream"];
    const cases = [
      [404, "unknown-channel", ...accept, `${server.url}/channels/unknown/a`],
      [404, "unknown-channel", ...published({ channel: "unknown/a", data: 1 }), `${server.url}/publish`],
      [406, "wrong-transport", ...accept, `${server.url}/channels/websocket-only/x`],
      [400, "bad-request", ...published("nonsense"), `${server.url}/publish`],
      [400, "bad-request", ...published({ channel: "both/x", data: 1, text: "two payloads" }), `${server.url}/publish`],
      [403, "forbidden", ...accept, "-H", "origin: https://elsewhere.example", `${server.url}/channels/both/x`],
    ];
    for (const [status, code, ...args] of cases) {
      const answer = await ask(t, ...args);
      const what = `${args.at(-1)} answered ${answer.status}: ${answer.body}`;
      assert.equal(answer.status, status, what);
      const { error } = JSON.parse(answer.body);
      assert.equal(error.code, code, what);
      assert.ok(typeof error.message === "string" && error.message.length > 0, what);
    }
  });
});
