// docs/who-may-listen.md: Debian's nginx with the document's lines, which asks the document's
// little application.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import WebSocket from "ws";
import { socketAddress } from "./support/browser.mjs";
import { ask, stream, withoutCurl } from "./support/curl.mjs";
import { askingNginx, documented, freePort, put, withoutProxies } from "./support/proxies.mjs";
import { Server } from "./support/server.mjs";

const skip = withoutProxies() || withoutCurl();
const ann = ["-H", "cookie: other=1; session=a-session-of-ann"];
const subscribed = ({ event }) => event === "airwave.subscribed";
const named = (name) => ({ event }) => event === name;

/** The document's application on a port of its own. */
async function application(t) {
  const port = await freePort();
  const dir = await mkdtemp(join(tmpdir(), "airwave-ask-"));
  t.after(() => rm(dir, { recursive: true, force: true }));
  // It says when it listens, which the document's need not.
  const code = put(documented("ask.mjs", "who-may-listen.md"), [["listen(3000, \"127.0.0.1\")", `listen(${port}, "127.0.0.1", () => console.log("ready"))`]]);
  await writeFile(join(dir, "ask.mjs"), code);
  const child = spawn(process.execPath, [join(dir, "ask.mjs")], { stdio: ["ignore", "pipe", "inherit"] });
  t.after(() => child.kill("SIGKILL"));
  await new Promise((done, fail) => {
    child.stdout.once("data", done);
    child.once("exit", (code) => fail(new Error(`ask.mjs ended with ${code}`)));
  });
  return port;
}

async function asked(t) {
  const token = "a-token-of-the-test";
  const server = await Server.start(t, {
    toml: put(documented("/etc/airwave/asked.toml", "who-may-listen.md"), [["publish.open = false ", `publish.token = "${token}" `]]),
  });
  const { url } = await askingNginx(t, server, await application(t));
  const publish = async (publication) => {
    const headers = { "content-type": "application/json", authorization: `Bearer ${token}` };
    const response = await fetch(`${server.url}/publish`, { method: "POST", headers, body: JSON.stringify(publication) });
    assert.equal(response.status, 200, await response.clone().text());
  };
  return { server, url, publish };
}

test("nginx asks before anyone listens, reads or sends", { skip }, async (t) => {
  const { url, publish } = await asked(t);
  const status = async (...args) => (await ask(t, "-k", "--path-as-is", ...args)).status;

  // Who is allowed to hears, over one channel's stream and over one of several.
  const one = stream(t, "-k", ...ann, `${url}/channels/orders/ann`);
  await one.blocks.first(subscribed, "confirmation");
  const several = stream(t, "-k", ...ann, `${url}/events?channel=orders/ann&channel=news%2Fsport`);
  await several.blocks.count(2, subscribed, "confirmation");
  await publish({ channel: "orders/ann", event: "shipped", data: 1 });
  await one.blocks.first(named("shipped"), "event");
  await several.blocks.first(named("shipped"), "event");
  const page = await ask(t, "-k", ...ann, `${url}/channels/orders/ann?limit=10`);
  assert.equal(JSON.parse(page.body).events[0].event, "shipped");

  // Who is not signed in, or asks for what belongs to another, does not.
  const refused = await ask(t, "-k", `${url}/channels/news/sport`);
  assert.deepEqual([refused.status, JSON.parse(refused.body).error.code], [401, "unauthorized"]);
  const forbidden = await ask(t, "-k", ...ann, `${url}/channels/orders/bob`);
  assert.deepEqual([forbidden.status, JSON.parse(forbidden.body).error.code], [403, "forbidden"]);
  for (const path of [
    "channels/orders/bob?presence=true",
    "events?channel=orders/bob",
    "events?channel=orders/ann&channel=orders/bob",
    "events?channel=orders/ann&chann%65l=orders/bob",
    "events?channel=orders/ann&channel=orders%2Fbob",
    "events",
    // However a name is written, the one that is asked about is the one that is passed on.
    "channels/orders/%62ob",
    "channels/orders%2Fbob",
    "channels/orders/ann/../bob",
    "channels/orders/ann/%2e%2e/bob",
    "channels//orders/bob",
    "channels/news/../orders/bob",
  ]) {
    assert.equal(await status(...ann, `${url}/${path}`), 403, path);
  }
  // Ann may hear the news and not make them, although the rule says 'publish'.
  const post = ["-X", "POST", "-H", "content-type: application/json", "--data", '{"event":"e","data":1}'];
  assert.equal(await status(...ann, `${url}/channels/news/sport`), 200);
  assert.equal(await status(...ann, ...post, `${url}/channels/news/sport`), 403);

  // What a client says of itself to the application counts for nothing.
  for (const header of ["x-airwave-channel: orders/ann", "x-airwave-query: channel=orders/ann"]) {
    assert.equal(await status(...ann, "-H", header, `${url}/channels/orders/bob`), 403, header);
    assert.equal(await status(...ann, "-H", header, `${url}/events?channel=orders/bob`), 403, header);
  }
});

test("no WebSocket passes, and nothing that is not named", { skip }, async (t) => {
  const { url } = await asked(t);
  // A WebSocket to a channel that is allowed could subscribe to any other.
  for (const [path, wanted] of [["channels/orders/ann", 426], ["socket", 404]]) {
    const socket = new WebSocket(socketAddress(`${url}/${path}`), { rejectUnauthorized: false, headers: { cookie: "session=a-session-of-ann" } });
    const status = await new Promise((done, fail) => {
      socket.on("unexpected-response", (_, response) => done(response.statusCode));
      socket.on("open", () => fail(new Error(`${path}: a WebSocket passed`)));
      socket.on("error", fail);
    });
    assert.equal(status, wanted, path);
  }
  for (const path of ["", "ask", "socket", "publish", "metrics", "readyz", "live", "live/state", "channels/", "channels/x%20y", "%65vents/x"]) {
    assert.equal((await ask(t, "-k", "--path-as-is", ...ann, `${url}/${path}`)).status, 404, path);
  }
  for (const path of ["client.js", "client-share.js"]) {
    assert.equal((await ask(t, "-k", `${url}/${path}`)).status, 200, path);
  }
});
