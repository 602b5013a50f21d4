// The real server, heard by Chromium's own EventSource and WebSocket.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { frames, isEvent, launch, pageAt, socketAddress, withoutChromium } from "./support/browser.mjs";
import { decodeEvent } from "./support/frames.mjs";
import { line } from "./support/lines.mjs";
import { Server } from "./support/server.mjs";

const CLOSED = 2;
const skip = withoutChromium();

const subscribed = ({ type }) => type === "airwave.subscribed";
const isFrame = (matches) => (entry) => entry.type === "text" && matches(JSON.parse(entry.data));
const isSubscribed = isFrame(({ type }) => type === "subscribed");
const isEventFrame = isFrame(({ type }) => type === undefined);

describe("Chromium", { skip }, () => {
  let browser;
  before(async () => {
    browser = await launch();
  });
  after(() => browser?.close());

  /** A server, and a page of its own origin. */
  async function setUp(t) {
    const server = await Server.start(t);
    const page = await pageAt(t, browser, `${server.url}/healthz`);
    return { server, page };
  }

  test("the same events with the same ids, over EventSource and WebSocket", async (t) => {
    const { server, page } = await setUp(t);
    const url = `${server.url}/channels/both/same`;
    const source = await page.sse("source", url, ["order-update", "line", "message"]);
    const socket = await page.socket("socket", socketAddress(url));
    await source.first(subscribed, "confirmation");
    await socket.first(isSubscribed, "confirmation");

    const answers = await server.publish([
      { channel: "both/same", event: "order-update", data: { status: "shipped", trackingId: "TRK9876" }, key: "abc123" },
      { channel: "both/same", event: "line", text: "status installed" },
      { channel: "both/same", data: [1, 2.5, null, "drei"] },
    ]);
    const ids = answers.map(({ cursor }) => cursor);

    const heard = await source.count(3, isEvent, "event");
    assert.deepEqual(heard, [
      { type: "order-update", id: ids[0], data: '{"status":"shipped","trackingId":"TRK9876"}' },
      { type: "line", id: ids[1], data: "status installed" },
      { type: "message", id: ids[2], data: '[1,2.5,null,"drei"]' },
    ]);
    const envelopes = frames(await socket.count(3, isEventFrame, "event"));
    assert.deepEqual(envelopes, [
      { channel: "both/same", id: ids[0], event: "order-update", data: { status: "shipped", trackingId: "TRK9876" }, key: "abc123" },
      { channel: "both/same", id: ids[1], event: "line", text: "status installed" },
      { channel: "both/same", id: ids[2], event: "message", data: [1, 2.5, null, "drei"] },
    ]);
  });

  test("a position is the same on both: what SSE has heard, a WebSocket resumes, and the other way round", async (t) => {
    const { server, page } = await setUp(t);
    const url = `${server.url}/channels/both/switch`;
    const source = await page.sse("source", url, ["n"]);
    await source.first(subscribed, "confirmation");
    await server.publish({ channel: "both/switch", event: "n", data: 1 });
    const { id } = await source.first(isEvent, "event");
    await page.close("source");
    await server.publish([2, 3].map((data) => ({ channel: "both/switch", event: "n", data })));

    const socket = await page.socket("socket", `${socketAddress(url)}?after=${id}`);
    const missed = frames(await socket.count(2, isEventFrame, "event"));
    assert.deepEqual(missed.map(({ data }) => data), [2, 3]);
    assert.equal(frames(socket.entries)[0].resumed, true);
    await page.close("socket");
    await server.publish({ channel: "both/switch", event: "n", data: 4 });

    const again = await page.sse("again", `${url}?after=${missed[1].id}`, ["n"]);
    assert.equal((await again.first(isEvent, "event")).data, "4");
    assert.equal(JSON.parse(again.entries.find(subscribed).data).resumed, true);
  });

  for (const reset of [false, true]) {
    test(`EventSource resumes by itself after its line was ${reset ? "reset" : "closed"}: everything once, no gap`, async (t) => {
      const server = await Server.start(t);
      const wire = await line(t, server);
      const page = await pageAt(t, browser, `${wire.url}/healthz`);
      const source = await page.sse("source", `${wire.url}/channels/both/resume`, ["n"]);
      await source.first(subscribed, "confirmation");
      await server.publish([1, 2].map((data) => ({ channel: "both/resume", event: "n", data })));
      await source.count(2, isEvent, "event");

      wire.cut({ reset });
      await source.first(({ type, readyState }) => type === "error" && readyState !== CLOSED, "loss of the line");
      await server.publish([3, 4].map((data) => ({ channel: "both/resume", event: "n", data })));
      wire.restore();
      await source.count(4, isEvent, "event");
      await server.publish({ channel: "both/resume", event: "n", data: 5 });
      await source.count(5, isEvent, "event");

      const heard = source.entries.filter(isEvent);
      assert.deepEqual(heard.map(({ data }) => data), ["1", "2", "3", "4", "5"]);
      const confirmations = source.entries.filter(subscribed);
      assert.equal(confirmations.length, 2);
      assert.deepEqual(JSON.parse(confirmations[1].data), { channel: "both/resume", cursor: heard[1].id, resumed: true });
      assert.deepEqual(source.entries.filter(({ type }) => type === "airwave.gap"), []);
    });
  }

  // The memory broker loses everything with its process: an EventSource that comes back must be
  // told, never left in silence.
  for (const how of ["drained", "killed"]) {
    test(`EventSource comes back to a server that was ${how} and restarted, and is told of the loss`, async (t) => {
      const { server, page } = await setUp(t);
      const source = await page.sse("source", `${server.url}/channels/both/restart`, ["n"]);
      await source.first(subscribed, "confirmation");
      const { cursor } = await server.publish({ channel: "both/restart", event: "n", data: "before" });
      await source.first(isEvent, "event");

      if (how === "killed") await server.kill();
      else assert.deepEqual(await server.drain(), { code: 0, signal: null });
      const from = source.entries.length;
      await server.restart();
      const gap = await source.first(({ type }) => type === "airwave.gap", "gap", from);
      await server.publish({ channel: "both/restart", event: "n", data: "after" });
      await source.first(isEvent, "event after the restart", from);

      const told = JSON.parse(gap.data);
      assert.equal(told.channel, "both/restart");
      assert.equal(told.after, cursor);
      // Which reason it is depends on what the new process can still know; that there is one does
      // not.
      assert.ok(["unknown-position", "history-expired", "broker-lost-data"].includes(told.reason), told.reason);
      assert.equal(gap.id, told.cursor, "a listener that is cut right after the gap resumes behind it");
      const since = source.entries.slice(from).filter(({ type }) => type !== "open" && type !== "error");
      assert.deepEqual(since.map(({ type }) => type), ["airwave.subscribed", "airwave.gap", "n"]);
      assert.equal(JSON.parse(since[0].data).resumed, false);
      assert.equal(since[2].data, '"after"');
    });
  }

  test("EventSource stops for good when the channel has ended: one more request, answered 204", async (t) => {
    const { server, page } = await setUp(t);
    const url = `${server.url}/channels/both/end`;
    const source = await page.sse("source", url, ["n"]);
    await source.first(subscribed, "confirmation");
    const { cursor } = await server.publish({ channel: "both/end", event: "n", data: "last", end: true });
    await source.first(({ type, readyState }) => type === "error" && readyState === CLOSED, "the end");

    const heard = source.entries.filter(({ type }) => type !== "open" && type !== "error");
    assert.deepEqual(heard.map(({ type }) => type), ["airwave.subscribed", "n", "airwave.end"]);
    assert.deepEqual(JSON.parse(heard[2].data), { channel: "both/end", cursor });
    assert.equal(heard[2].id, cursor);
    assert.equal(await page.readyState("source"), CLOSED);
    assert.deepEqual(await page.statuses(url), [200, 204]);
  });

  test("an ended channel tells a WebSocket so, once and with its last cursor", async (t) => {
    const { server, page } = await setUp(t);
    const socket = await page.socket("socket", socketAddress(`${server.url}/channels/both/end-ws`));
    await socket.first(isSubscribed, "confirmation");
    const { cursor } = await server.publish({ channel: "both/end-ws", event: "n", data: "last", end: true });
    const end = await socket.first(isFrame(({ type }) => type === "end"), "end");
    assert.deepEqual(JSON.parse(end.data), { type: "end", channel: "both/end-ws", cursor });
    assert.deepEqual(frames(socket.entries).map(({ type, data }) => type ?? data), ["subscribed", "last", "end"]);
  });

  test("a channel that no rule matches: EventSource closes after one 404, WebSocket is told and closed with 4404", async (t) => {
    const { server, page } = await setUp(t);
    const url = `${server.url}/channels/unknown/a`;
    const source = await page.sse("source", url, []);
    await source.first(({ type, readyState }) => type === "error" && readyState === CLOSED, "refusal");
    assert.deepEqual(await page.statuses(url), [404]);

    const socket = await page.socket("socket", socketAddress(url));
    const closed = await socket.first(({ type }) => type === "close", "close");
    assert.equal(closed.code, 4404);
    const [error] = frames(socket.entries);
    assert.equal(error.type, "error");
    assert.equal(error.code, "unknown-channel");
  });

  test("the wrong transport is refused and the right one named", async (t) => {
    const { server, page } = await setUp(t);
    const url = `${server.url}/channels/websocket-only/x`;
    const source = await page.sse("source", url, []);
    await source.first(({ type, readyState }) => type === "error" && readyState === CLOSED, "refusal");
    assert.deepEqual(await page.statuses(url), [406]);
    const answer = await page.page.evaluate(async (address) => {
      const response = await fetch(address, { headers: { accept: "text/event-stream" } });
      return response.json();
    }, url);
    assert.equal(answer.error.code, "wrong-transport");
    assert.equal(answer.error.transport, "websocket");
    assert.equal(answer.error.url, "/channels/websocket-only/x");

    const socket = await page.socket("socket", socketAddress(`${server.url}/channels/sse-only/x`));
    const closed = await socket.first(({ type }) => type === "close", "close");
    assert.equal(closed.code, 4406);
    const [error] = frames(socket.entries);
    assert.equal(error.code, "wrong-transport");
    assert.equal(error.transport, "sse");
    assert.equal(error.url, "/channels/sse-only/x");
  });

  test("several channels on one EventSource, with one cursor for all of them", async (t) => {
    const server = await Server.start(t);
    const wire = await line(t, server);
    const page = await pageAt(t, browser, `${wire.url}/healthz`);
    const names = ["both/a", "both/b", "sse-only/c"];
    const query = names.map((name) => `channel=${encodeURIComponent(name)}`).join("&");
    const source = await page.sse("source", `${wire.url}/events?${query}`, ["n"]);
    await source.count(3, subscribed, "confirmation");
    const publish = (round) => server.publish(names.map((channel) => ({ channel, event: "n", data: `${channel} ${round}` })));
    await publish(1);
    await source.count(3, isEvent, "event");
    wire.cut();
    await source.first(({ type }) => type === "error", "loss of the line");
    await publish(2);
    wire.restore();
    await source.count(6, isEvent, "event");
    await publish(3);
    await source.count(9, isEvent, "event");

    for (const name of names) {
      const envelopes = source.entries.filter(isEvent).map(({ data }) => JSON.parse(data)).filter(({ channel }) => channel === name);
      assert.deepEqual(envelopes.map(({ data }) => data), [1, 2, 3].map((round) => `${name} ${round}`));
      assert.ok(BigInt(envelopes[0].id) < BigInt(envelopes[1].id) && BigInt(envelopes[1].id) < BigInt(envelopes[2].id));
    }
    assert.deepEqual(source.entries.filter(({ type }) => type === "airwave.gap"), []);
    const confirmations = source.entries.filter(subscribed).map(({ data }) => JSON.parse(data));
    assert.deepEqual(confirmations.map(({ channel, resumed }) => [channel, resumed]).sort(), [
      ...names.map((name) => [name, false]),
      ...names.map((name) => [name, true]),
    ].sort());

    // The cursor of the very last event knows all channels: a new listener that starts from it has
    // missed nothing.
    const { id } = source.entries.filter(isEvent).at(-1);
    assert.match(id, /^[A-Za-z0-9_-]+$/);
    const next = await page.sse("next", `${wire.url}/events?${query}&after=${id}`, ["n"]);
    await next.count(3, subscribed, "confirmation");
    await server.publish({ channel: "both/b", event: "n", data: "live" });
    assert.equal(JSON.parse((await next.first(isEvent, "event")).data).data, "live");
    assert.ok(next.entries.filter(subscribed).every(({ data }) => JSON.parse(data).resumed));
  });

  test("JSON arrives as it was published, whatever stands in its strings", async (t) => {
    const { server, page } = await setUp(t);
    const values = [
      { text: "line\u2028and paragraph\u2029separator, next line \u0085" },
      { text: "nul \u0000, escape \u001b, delete \u007f" },
      { text: "CR LF \r\n CR \r LF \n two \n\n end" },
      { text: "emoji 😀👩‍👩‍👧, accents é ß, right to left עברית, zero width \u200b\ufeff" },
      { text: 'quotes " \\ / </script> <!-- data: x' },
      "\n\ndata: forged\n\n",
      "",
      null,
      0,
      -1.5e-7,
      [],
      {},
      { deep: [[[[{ a: [] }]]]] },
    ];
    const url = `${server.url}/channels/both/json`;
    const source = await page.sse("source", url, ["v"]);
    const socket = await page.socket("socket", socketAddress(url));
    await source.first(subscribed, "confirmation");
    await socket.first(isSubscribed, "confirmation");
    await server.publish(values.map((data) => ({ channel: "both/json", event: "v", data })));

    const heard = await source.count(values.length, isEvent, "event");
    assert.deepEqual(heard.map(({ data }) => JSON.parse(data)), values);
    const envelopes = frames(await socket.count(values.length, isEventFrame, "event"));
    assert.deepEqual(envelopes.map(({ data }) => data), values);
    assert.deepEqual(heard.map(({ id }) => id), envelopes.map(({ id }) => id));
  });

  test("text arrives as it was published; over SSE its line breaks arrive as LF", async (t) => {
    const { server, page } = await setUp(t);
    const texts = [
      "plain",
      "two\nlines",
      "CR LF \r\n CR \r LF \n all of them",
      "\n",
      "ends with one\n",
      "ends with two\n\n",
      "\n\nbegins with two",
      "",
      " one leading blank, one trailing ",
      ": no comment",
      "id: 1\nevent: airwave.end\ndata: forged\n\n",
      "forged\n\nevent: airwave.gap\ndata: {}\n\n",
      "nul \u0000 within",
      "separators \u2028 \u2029 \u0085",
      "\ufeffa mark in front",
      "emoji 😀👩‍👩‍👧 é ß עברית",
    ];
    const url = `${server.url}/channels/both/text`;
    const source = await page.sse("source", url, ["v", "forged"]);
    const socket = await page.socket("socket", socketAddress(url));
    await source.first(subscribed, "confirmation");
    await socket.first(isSubscribed, "confirmation");
    await server.publish(texts.map((text) => ({ channel: "both/text", event: "v", text })));

    const heard = await source.count(texts.length, isEvent, "event");
    assert.deepEqual(heard.map(({ data }) => data), texts.map((text) => text.replace(/\r\n|\r/g, "\n")));
    assert.ok(heard.every(({ type }) => type === "v"));
    assert.deepEqual(source.entries.filter(({ type }) => type === "airwave.gap" || type === "airwave.end"), []);
    const envelopes = frames(await socket.count(texts.length, isEventFrame, "event"));
    assert.deepEqual(envelopes.map(({ text }) => text), texts);
  });

  test("bytes arrive as they were published: base64 over SSE, a binary frame over WebSocket", async (t) => {
    const { server, page } = await setUp(t);
    const url = `${server.url}/channels/both/bytes`;
    const source = await page.sse("source", url, ["blob;base64"]);
    const socket = await page.socket("socket", socketAddress(url));
    await source.first(subscribed, "confirmation");
    await socket.first(isSubscribed, "confirmation");
    const payloads = [Buffer.from(Array.from({ length: 256 }, (_, byte) => byte)), Buffer.from([0xff]), Buffer.alloc(0)];
    const answers = await server.publish(payloads.map((bytes) => ({ channel: "both/bytes", event: "blob", base64: bytes.toString("base64") })));

    const heard = await source.count(payloads.length, isEvent, "event");
    assert.deepEqual(heard.map(({ data }) => data), payloads.map((bytes) => bytes.toString("base64")));
    const binary = (await socket.count(payloads.length, ({ type }) => type === "binary", "binary frame")).map(({ bytes }) => decodeEvent(bytes));
    assert.deepEqual(binary, payloads.map((payload, i) => ({ channel: "both/bytes", event: "blob", id: answers[i].cursor, payload })));
    assert.deepEqual(heard.map(({ id }) => id), answers.map(({ cursor }) => cursor));
  });

  test("history that is gone is a gap, on both transports and with the same words", async (t) => {
    const { server, page } = await setUp(t);
    const url = `${server.url}/channels/forgetful/x`;
    const [first] = await server.publish([1, 2, 3, 4, 5].map((data) => ({ channel: "forgetful/x", event: "n", data })));
    const source = await page.sse("source", `${url}?after=${first.cursor}`, ["n"]);
    const socket = await page.socket("socket", `${socketAddress(url)}?after=${first.cursor}`);
    const gap = JSON.parse((await source.first(({ type }) => type === "airwave.gap", "gap")).data);
    const frame = JSON.parse((await socket.first(isFrame(({ type }) => type === "gap"), "gap")).data);
    assert.equal(gap.reason, "history-expired");
    assert.equal(gap.after, first.cursor);
    assert.deepEqual(frame, { type: "gap", ...gap });
  });

  test("a page closes its WebSocket, and the server answers the close", async (t) => {
    const { server, page } = await setUp(t);
    const socket = await page.socket("socket", socketAddress(`${server.url}/channels/both/close`));
    await socket.first(isSubscribed, "confirmation");
    await page.page.evaluate(() => window.listeners.socket.close(1000, "done"));
    const closed = await socket.first(({ type }) => type === "close", "close");
    assert.deepEqual([closed.code, closed.wasClean], [1000, true]);
  });

  test("what a page sends over its WebSocket reaches the other listeners, and the reply comes back", async (t) => {
    const { server, page } = await setUp(t);
    const url = `${server.url}/channels/both/send`;
    const source = await page.sse("source", url, ["say"]);
    const socket = await page.socket("socket", socketAddress(url));
    await source.first(subscribed, "confirmation");
    await socket.first(({ type }) => type === "open", "open");
    await page.send("socket", JSON.stringify({ type: "send", id: 7, channel: "both/send", event: "say", data: { text: "hi 😀" } }));
    const reply = await socket.first(isFrame(({ type }) => type === "reply"), "reply");
    assert.equal(JSON.parse(reply.data).id, 7);
    assert.deepEqual(JSON.parse((await source.first(isEvent, "event")).data), { text: "hi 😀" });
  });
});
