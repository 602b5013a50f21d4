// The real server behind the real nginx and HAProxy, with the very configurations that
// docs/deploying.md shows.

import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, before, describe, test } from "node:test";
import WebSocket from "ws";
import { isEvent, launch, pageAt, socketAddress, withoutChromium } from "./support/browser.mjs";
import { Collector } from "./support/collector.mjs";
import { ask, stream, withoutCurl } from "./support/curl.mjs";
import { documented, documentedWords, haproxy, nginx, plainNginx, put, withoutProxies } from "./support/proxies.mjs";
import { redis, withoutRedis } from "./support/redis.mjs";
import { binary, config, Server } from "./support/server.mjs";

const skip = withoutProxies() || withoutCurl();
const CLOSED = 2;
const HANDSHAKE = ["-H", "connection: upgrade", "-H", "upgrade: websocket", "-H", "sec-websocket-version: 13", "-H", "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ=="];
const both = [nginx, haproxy];

const subscribed = ({ event }) => event === "airwave.subscribed";
const named = (name) => ({ event }) => event === name;

/**
 * The documented file, and the rules of the tests. `more`: lines in front. Anybody may publish,
 * because the tests have no token.
 */
function behind(t, more = "", rules = "", broker = "memory:") {
  const toml = `${more}\n${put(documented("/etc/airwave/airwave.toml"), [["memory:", broker]])}\n${config()}\n${rules}`;
  return Server.start(t, { toml, prepare: () => ({ variables: { AIRWAVE_PUBLISH_OPEN: "true" } }) });
}

/** A rule that names WebSockets first. */
const websocketFirst = `
[[channels]]
match = "chatty/{id}"
transport = ["websocket", "sse"]
send = "publish"
`;

/** A WebSocket that hears; frames are parsed. */
async function socketAt(t, address) {
  const socket = new WebSocket(socketAddress(address), { rejectUnauthorized: false });
  t.after(() => socket.terminate());
  const heard = new Collector("ws");
  socket.on("message", (data) => heard.push(JSON.parse(data)));
  socket.on("ping", () => heard.push({ type: "ping" }));
  socket.on("close", (code, reason) => heard.push({ type: "close", code, reason: reason.toString() }));
  await once(socket, "open");
  return { socket, heard, say: (frame) => socket.send(JSON.stringify(frame)) };
}

/**
 * That an event arrives while its stream stays open, and that a stream resumes. `args`: for curl.
 */
async function streams(t, server, url, ...args) {
  const channel = `both/${args.length}`;
  const address = `${url}/channels/${channel}`;
  // A proxy that compressed could only do it in blocks.
  const listening = ["-k", "-H", "accept-encoding: gzip, deflate, br", ...args];
  const first = stream(t, ...listening, address);
  const { status, headers } = await first.head;
  assert.equal(status, 200);
  assert.equal(headers["content-type"], "text/event-stream");
  assert.equal(headers["content-encoding"], undefined);
  await first.blocks.first(subscribed, "confirmation");
  let cursor;
  for (const data of [1, 2, 3]) {
    ({ cursor } = await server.publish({ channel, event: "n", data }));
    await first.blocks.first(({ event, id }) => event === "n" && id === cursor, `event ${data}`);
  }
  await first.stop();
  await server.publish({ channel, event: "n", data: "missed" });
  const second = stream(t, ...listening, "-H", `last-event-id: ${cursor}`, address);
  assert.equal(JSON.parse((await second.blocks.first(subscribed, "confirmation")).data).resumed, true);
  assert.equal((await second.blocks.first(named("n"), "event")).data, '"missed"');
  await second.stop();
}

describe("behind a proxy as documented", { skip }, () => {
  for (const start of both) {
    test(`${start.name}: streams, WebSockets and messages of full size pass, and what is internal does not`, async (t) => {
      const server = await behind(t);
      const { url } = await start(t, server);
      await streams(t, server, url, "--http2");
      await streams(t, server, url, "--http1.1", "--no-keepalive");

      const { heard, say } = await socketAt(t, `${url}/socket`);
      say({ type: "subscribe", id: 1, channel: "both/ws" });
      await heard.first(({ id, type }) => id === 1 && type === "subscribed", "confirmation");
      // Base64 of a message of 64 KiB, less its names.
      const large = "x".repeat(60_000);
      say({ type: "send", id: 2, channel: "both/ws", event: "large", data: large });
      assert.equal((await heard.first(({ id }) => id === 2, "reply")).type, "reply");
      assert.equal((await heard.first(named("large"), "event")).data, large);

      const post = ["-k", "-X", "POST", "-H", "content-type: application/json"];
      const posted = await ask(t, ...post, "--data", JSON.stringify({ event: "large", data: large }), `${url}/channels/both/ws`);
      assert.equal(posted.status, 200, posted.body);
      await heard.count(2, named("large"), "large event");
      // What is too large is told by the server, in the words of the protocol.
      const dir = await mkdtemp(join(tmpdir(), "airwave-large-"));
      t.after(() => rm(dir, { recursive: true, force: true }));
      await writeFile(join(dir, "body"), JSON.stringify({ event: "large", data: "x".repeat(900_000) }));
      const refused = await ask(t, ...post, "-H", "expect:", "--data-binary", `@${dir}/body`, `${url}/channels/both/ws`);
      assert.equal(refused.status, 413);
      assert.equal(JSON.parse(refused.body).error.code, "too-large");

      // However they are written.
      const internal = ["publish", "metrics", "readyz", "metrics?x", "%6detrics", "/metrics", "./metrics", "x/../metrics", "metrics/"];
      for (const [path, wanted] of [["healthz", 200], ...internal.map((path) => [path, 404])]) {
        assert.equal((await ask(t, "-k", "--path-as-is", `${url}/${path}`)).status, wanted, path);
      }
    });

    test(`${start.name}: each client counts for itself`, async (t) => {
      const server = await behind(t, "limits = { connections_per_address = 1 }");
      const { url } = await start(t, server);
      const from = (address) => stream(t, "-k", "--interface", address, `${url}/channels/both/x`);
      await from("127.0.0.2").blocks.first(subscribed, "confirmation");
      await from("127.0.0.3").blocks.first(subscribed, "confirmation");
      const third = from("127.0.0.2");
      assert.equal(JSON.parse((await third.blocks.first(named("airwave.error"), "refusal")).data).code, "too-many");
      assert.equal(await third.exited, 0);
    });
  }

  test("what is quiet stays open: the heartbeat is shorter than the proxies' time-outs", async (t) => {
    // Two seconds for each 15 of the defaults: the heartbeat's, nginx's 60 s, and the 50 s of
    // Debian's haproxy.cfg.
    const seconds = (n) => ({
      nginx: { http: `proxy_read_timeout ${n * 1000}ms; proxy_send_timeout ${n * 1000}ms;` },
      haproxy: { edit: ["client", "server"].map((side) => [`timeout ${side}  50000`, `timeout ${side}  ${Math.floor((n * 5000) / 6)}`]) },
    });
    const lively = await behind(t, 'limits = { heartbeat = "2s" }');
    const silent = await behind(t);
    await Promise.all(
      both.map(async (start) => {
        const { url } = await start(t, lively, seconds(8)[start.name]);
        const quiet = stream(t, "-k", `${url}/channels/both/quiet`);
        const socket = await socketAt(t, `${url}/channels/both/quiet`);
        const still = stream(t, "-k", `${(await start(t, silent, seconds(4)[start.name])).url}/channels/both/quiet`);
        // So long that either proxy would have cut them.
        await quiet.blocks.count(5, ({ comment }) => comment !== undefined, "heartbeat");
        await socket.heard.count(5, ({ type }) => type === "ping", "ping");
        await lively.publish({ channel: "both/quiet", event: start.name, data: 1 });
        await quiet.blocks.first(named(start.name), "event");
        await socket.heard.first(named(start.name), "event");
        // Whereas one without a sign of life is cut.
        await still.blocks.first(subscribed, "confirmation");
        await still.exited;
      }),
    );
  });
});

describe("Chromium behind a proxy", { skip: skip || withoutChromium() }, () => {
  let browser;
  before(async () => {
    browser = await launch();
  });
  after(() => browser?.close());

  const confirmed = ({ type, data }) => type === "airwave.subscribed" || (type === "text" && JSON.parse(data).type === "subscribed");
  const eventIn = (event) => ({ type, data }) => type === event || (type === "text" && JSON.parse(data).event === event);
  const pageBehind = (t, url) => pageAt(t, browser, `${url}/healthz`, { ignoreHTTPSErrors: true });

  /** Our client in that page, with a channel. What it hears is in `window.heard`, by channel. */
  const listen = (page, names, module = "/client.js") =>
    page.page.evaluate(async ([names, module]) => {
      const { connect } = await import(module);
      const airwave = connect(undefined, { backoff: [50, 500] });
      window.heard = {};
      window.channels = {};
      for (const name of names) {
        const channel = (window.channels[name] = airwave.channel(name));
        const heard = (window.heard[name] = []);
        channel.on("*", (data, { event }) => heard.push([event, event === "airwave.gap" ? null : data]));
      }
    }, [names, module]);
  const isOpen = (page, name, transport) => page.page.waitForFunction(([name, transport]) => channels[name].state === "open" && channels[name].transport === transport, [name, transport]);
  const hears = (page, name, event) => page.page.waitForFunction(([name, event]) => heard[name].some(([each]) => each === event), [name, event]);

  for (const start of both) {
    test(`${start.name}: eight streams and a WebSocket of one page, what it sends, and our client`, async (t) => {
      const server = await behind(t, "", websocketFirst);
      const { url } = await start(t, server);
      const page = await pageBehind(t, url);
      // Over HTTP/1.1 the seventh would wait for ever.
      const listeners = [];
      for (let i = 0; i < 8; i += 1) listeners.push(await page.sse(`source ${i}`, `${url}/channels/both/x?${"&".repeat(i)}`, ["n"]));
      listeners.push(await page.socket("socket", socketAddress(`${url}/channels/both/x`)));
      for (const listener of listeners) await listener.first(confirmed, "confirmation");
      const status = await page.page.evaluate(async () => {
        const sent = { event: "n", data: "from the page" };
        return (await fetch("/channels/both/x", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(sent) })).status;
      });
      assert.equal(status, 200);
      for (const listener of listeners) await listener.first(eventIn("n"), "event");

      await listen(page, ["sse-only/a", "both/a", "chatty/a"]);
      for (const [name, transport] of [["sse-only/a", "sse"], ["both/a", "sse"], ["chatty/a", "websocket"]]) {
        await isOpen(page, name, transport);
        await server.publish({ channel: name, event: "n", data: 1 });
        await hears(page, name, "n");
      }
      for (const name of ["both/a", "chatty/a"]) {
        assert.equal(await page.page.evaluate((name) => channels[name].send("said", 1), name), null);
        await hears(page, name, "said");
      }
    });
  }

  test("clients come back to a server that drained, even an EventSource that found no server for a while", async (t) => {
    await Promise.all(
      both.map(async (start) => {
        const server = await behind(t, "", websocketFirst);
        const { url } = await start(t, server);
        const page = await pageBehind(t, url);
        const address = `${url}/channels/both/x`;
        const source = await page.sse("source", address, ["n"]);
        const socket = await page.socket("socket", socketAddress(address));
        for (const listener of [source, socket]) await listener.first(confirmed, "confirmation");
        await listen(page, ["both/a", "chatty/a"]);
        await isOpen(page, "both/a", "sse");
        await isOpen(page, "chatty/a", "websocket");

        assert.deepEqual(await server.drain(), { code: 0, signal: null });
        const closed = await socket.first(({ type }) => type === "close", "close");
        assert.equal(closed.code, 1012);
        assert.match(closed.reason, /^retry=\d+$/);
        // The first stream has ended, and another one after it: that was the proxy's own.
        await source.count(2, ({ type }) => type === "error", "end of a stream");
        assert.notEqual(await page.readyState("source"), CLOSED);
        assert.deepEqual((await page.statuses(address)).slice(0, 2), [200, 200]);
        // Others are told the truth.
        assert.equal((await ask(t, "-k", address)).status, 503);

        await server.restart();
        await source.count(2, confirmed, "confirmation");
        for (const [name, transport] of [["both/a", "sse"], ["chatty/a", "websocket"]]) await isOpen(page, name, transport);
        for (const channel of ["both/x", "both/a", "chatty/a"]) await server.publish({ channel, event: "n", data: "again" });
        await source.first(isEvent, "event");
        for (const name of ["both/a", "chatty/a"]) await hears(page, name, "n");
      }),
    );
  });

  test("two nodes on Redis, restarted one after the other: no listener misses anything, whatever it listens with", { skip: withoutRedis() }, async (t) => {
    await Promise.all(
      both.map(async (start) => {
        const broker = await redis(t);
        const nodes = [await behind(t, "", websocketFirst, broker), await behind(t, "", websocketFirst, broker)];
        const { url } = await start(t, nodes[0], { others: nodes.slice(1) });
        const page = await pageBehind(t, url);
        const sources = [];
        for (let i = 0; i < 4; i += 1) sources.push(await page.sse(`source ${i}`, `${url}/channels/both/x?${"&".repeat(i)}`, ["n"]));
        for (const source of sources) await source.first(confirmed, "confirmation");
        await listen(page, ["both/x", "chatty/x"]);
        await isOpen(page, "both/x", "sse");
        await isOpen(page, "chatty/x", "websocket");

        let n = 0;
        const say = async (node) => {
          n += 1;
          for (const channel of ["both/x", "chatty/x"]) await node.publish({ channel, event: "n", data: n });
        };
        // Side by side, so that a proxy that lets them back one by one is found out.
        const arrives = () =>
          Promise.all([
            ...sources.map((source) => source.count(n, isEvent, "event")),
            ...["both/x", "chatty/x"].map((name) => page.page.waitForFunction(([name, n]) => heard[name].length >= n, [name, n])),
          ]);
        await say(nodes[0]);
        for (const [node, other] of [nodes, [...nodes].reverse()]) {
          await Promise.all([node.drain(), say(other)]);
          await say(other);
          await arrives();
          await node.restart();
          await say(node);
          await arrives();
        }
        const all = Array.from({ length: n }, (_, i) => i + 1);
        for (const source of sources) {
          assert.deepEqual(source.entries.filter(isEvent).map(({ data }) => Number(data)), all);
          assert.deepEqual(source.entries.filter(({ type }) => type === "airwave.gap"), []);
        }
        for (const name of ["both/x", "chatty/x"]) assert.deepEqual(await page.page.evaluate((name) => heard[name], name), all.map((n) => ["n", n]));
      }),
    );
  });

  test("nginx with a plain proxy_pass and nothing else: streams and POST pass, and our client does with them", async (t) => {
    const server = await Server.start(t, { toml: config('hosts = ["127.0.0.1"]') + websocketFirst });
    const { url } = await plainNginx(t, server);
    await streams(t, server, url);
    for (const path of ["socket", "channels/chatty/x"]) {
      const answer = await ask(t, ...HANDSHAKE, "--http1.1", `${url}/${path}`);
      assert.equal(answer.status, 426, path);
      assert.match(JSON.parse(answer.body).error.message, /'Upgrade: websocket'.*proxy.*SSE/, path);
    }
    // This server takes publishes from its own machine: not from a client that comes through a
    // proxy on it.
    const publish = ["-H", "content-type: application/json", "--data", '{"channel":"both/x","data":1}'];
    assert.equal((await ask(t, ...publish, `${url}/publish`)).status, 403);
    assert.equal((await ask(t, ...publish, `${server.url}/publish`)).status, 200);

    const page = await pageBehind(t, url);
    const source = await page.sse("source", `${url}/channels/both/x`, ["n"]);
    await source.first(confirmed, "confirmation");
    await listen(page, ["chatty/a"]);
    await isOpen(page, "chatty/a", "sse");
    assert.equal(await page.page.evaluate(() => channels["chatty/a"].send("said", 1)), null);
    await hears(page, "chatty/a", "said");
  });

  test("nginx with Airwave under a path of a larger site: our client finds its way, and what is internal stays so", async (t) => {
    const server = await behind(t, "", websocketFirst);
    const under = documentedWords(/\*\*Under a path\*\*: `(location [^`]+)` and `(proxy_pass [^`]+;)`.* `(location [^`]+)`/);
    const { url } = await nginx(t, server, { edit: [["location / {", `${under[0]} {`], ["proxy_pass http://airwave;", under[1]], ["location ~ ^/(publish|metrics|readyz)$", under[2]]] });
    for (const path of ["publish", "metrics", "readyz", "healthz"]) {
      assert.equal((await ask(t, "-k", `${url}/realtime/${path}`)).status, path === "healthz" ? 200 : 404, path);
    }
    const page = await pageBehind(t, `${url}/realtime`);
    await listen(page, ["both/a", "chatty/a"], "/realtime/client.js");
    for (const [name, transport] of [["both/a", "sse"], ["chatty/a", "websocket"]]) {
      await isOpen(page, name, transport);
      assert.equal(await page.page.evaluate((name) => channels[name].send("said", 1), name), null);
      await hears(page, name, "said");
    }
  });

  test("nginx that names its upstream in Host: a page's WebSocket is refused, until Host is passed on or the page's origin is listed", async (t) => {
    // On loopback a server answers through a proxy only at the hosts that it is told.
    const server = await Server.start(t, { toml: config('hosts = ["127.0.0.1"]') });
    const upgrade = "proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade;";
    const [line] = /proxy_set_header Host \S+;/.exec(documented("/etc/nginx/conf.d/airwave.conf"));
    const [without, mended] = [await plainNginx(t, server, upgrade), await plainNginx(t, server, `${upgrade} ${line}`)];
    const heardBy = async ({ url }) => {
      const page = await pageBehind(t, url);
      return page.socket("socket", socketAddress(`${url}/channels/both/x`));
    };
    const [refused, taken] = [await heardBy(without), await heardBy(mended)];
    assert.equal((await refused.first(({ type }) => type === "close", "refusal")).code, 1006);
    await taken.first(confirmed, "confirmation");
    const answer = await ask(t, ...HANDSHAKE, "-H", `origin: ${without.url}`, `${without.url}/socket`);
    assert.equal(answer.status, 403);
    assert.match(JSON.parse(answer.body).error.message, /proxy.*'Host'.*'origins'/);

    await server.kill();
    await writeFile(server.file, config(`hosts = ["127.0.0.1"]\norigins = ["${without.url}"]`));
    await server.restart();
    await (await heardBy(without)).first(confirmed, "confirmation");
    // A page of another site is not let in by that.
    const foreign = await ask(t, ...HANDSHAKE, "-H", "origin: https://evil.example", `${without.url}/socket`);
    assert.equal(foreign.status, 403);
  });
});

test("the documented unit starts the server with the documented file", async (t) => {
  const dir = await mkdtemp(join(tmpdir(), "airwave-unit-"));
  t.after(() => rm(dir, { recursive: true, force: true }));
  const file = join(dir, "airwave.toml");
  await writeFile(file, documented("/etc/airwave/airwave.toml"));
  const unit = put(documented("/etc/systemd/system/airwave.service"), [["/usr/local/bin/airwave", binary], ["/etc/airwave/airwave.toml", file]]);
  await writeFile(join(dir, "airwave.service"), unit);
  if (spawnSync("systemd-analyze", ["--version"]).status === 0) {
    const verified = spawnSync("systemd-analyze", ["verify", "--man=no", "--recursive-errors=no", join(dir, "airwave.service")], { encoding: "utf8" });
    assert.equal(verified.status, 0, verified.stderr);
    assert.equal(verified.stderr, "");
  }

  const [, command] = /^ExecStart=(.*)$/m.exec(unit);
  const [program, ...args] = command.split(" ");
  const { PATH } = process.env;
  const child = spawn(program, [...args, "--listen", "127.0.0.1:0"], { cwd: dir, env: { PATH, AIRWAVE_PUBLISH_TOKEN: "0123456789abcdef" }, stdio: ["ignore", "pipe", "inherit"] });
  const exited = new Promise((done) => child.once("close", (code, signal) => done({ code, signal })));
  t.after(() => child.kill("SIGKILL"));
  const [line] = await once(createInterface({ input: child.stdout }), "line");
  const url = line.replace("airwave listening on ", "");
  assert.equal((await fetch(`${url}/readyz`)).status, 200);
  const body = JSON.stringify({ channel: "orders/1", event: "order-update", data: 1 });
  for (const [authorization, wanted] of [["", 401], ["Bearer 0123456789abcdef", 200]]) {
    const answer = await fetch(`${url}/publish`, { method: "POST", headers: { "content-type": "application/json", authorization }, body });
    assert.equal(answer.status, wanted);
  }
  child.kill("SIGTERM");
  assert.deepEqual(await exited, { code: 0, signal: null });
});
