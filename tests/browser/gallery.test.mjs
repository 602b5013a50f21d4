// The gallery of a server without a configuration file: each example does its job in two windows,
// survives a killed server, and has its picture taken (target/screenshots/gallery-NAME.png, and on
// a phone). A new example is a row of EXAMPLES.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdir, rm, writeFile } from "node:fs/promises";
import { createServer, request } from "node:http";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { launch, withoutChromium } from "./support/browser.mjs";
import { screenshots, Server } from "./support/server.mjs";

const skip = withoutChromium();

/** The text of the element, once it satisfies `wanted`. */
const text = (page, selector, wanted) => page.locator(selector).filter({ hasText: wanted }).first().waitFor();

/** An endpoint that speaks OpenAI's chat completions and never ends an answer by itself. */
async function endpoint(t) {
  const asked = [];
  const server = createServer(async (request, response) => {
    let body = "";
    for await (const part of request) body += part;
    asked.push({ path: request.url, authorization: request.headers.authorization, body: JSON.parse(body) });
    response.writeHead(200, { "content-type": "text/event-stream" });
    let n = 0;
    const timer = setInterval(() => response.write(`data: ${JSON.stringify({ choices: [{ delta: { content: `token-${(n += 1)} ` } }] })}\n\n`), 40);
    response.on("close", () => clearInterval(timer));
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  return { asked, variables: { OPENAI_BASE_URL: `http://127.0.0.1:${server.address().port}/v1`, OPENAI_API_KEY: "test-key", OPENAI_MODEL: "counter" } };
}

const git = (dir, ...words) => execFileSync("git", ["-C", dir, "-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "commit.gpgsign=false", ...words]);

async function commit(dir, name, message) {
  await writeFile(join(dir, name), `${message}\n`);
  git(dir, "add", name);
  git(dir, "commit", "-q", "-m", message);
}

/**
 * `works(a, b, server)`: does the job, seen in both windows, which have no cookies or storage in
 * common; the pictures are taken after it. `again(a, b, server)`: the same pages after the server
 * was killed and started again, without a reload. `prepare({ t, dir })`: before the server starts
 * in that folder; may say `variables` of its environment.
 */
const EXAMPLES = [
  {
    name: "dashboard",
    async works(a, b) {
      for (const page of [a, b]) {
        await text(page, "#cpu-now", /\d %/);
        await text(page, "#memory-now", /B$/);
      }
      await text(a, "#tabs", /^2$/);
    },
    async again(a, b) {
      // The hole is told, and then there are new figures: the new server counts who looks.
      for (const page of [a, b]) await text(page, ".toast", /missing/);
      await b.close();
      await text(a, "#tabs", /^1$/);
    },
  },
  {
    name: "job-status",
    async works(a, b) {
      const start = async (tool) => {
        await a.locator("#tool").selectOption(tool);
        await a.getByRole("button", { name: "Start" }).click();
      };
      await start("gzip -1");
      for (const page of [a, b]) await text(page, ".job[data-is=done]", /unpacked and compared/);
      // Without a library: the browser's own listener came back once, and stopped.
      await text(a, "#plain-state[data-is=done]", /closed/);
      await start("xz -6");
      await b.locator(".job[data-is=running] button, .job[data-is=queued] button").click();
      for (const page of [a, b]) await page.locator(".job[data-is=cancelled]").waitFor();
      await start("xz -6");
      for (const page of [a, b]) await text(page, ".job[data-is=running]", /compressing: \d+ %/);
    },
    async again(a, b) {
      for (const page of [a, b]) await page.locator(".job[data-is=lost]").waitFor();
      await b.locator("#tool").selectOption("gzip -1");
      await b.getByRole("button", { name: "Start" }).click();
      for (const page of [a, b]) await page.locator(".job[data-is=done]").nth(1).waitFor();
    },
  },
  {
    name: "ai-tokens",
    prepare: ({ t }) => endpoint(t),
    async works(a, b) {
      await a.locator("#question").fill("How far can you count?");
      await a.getByRole("button", { name: "Ask" }).click();
      await text(a, "#text", /token-3 /);
      // Another device finds it, attaches to it, and hears the beginning too.
      await b.locator("#answers a", { hasText: "How far can you count?" }).click();
      await text(b, "#text", /^token-1 token-2 .*token-9 /);
      // A refresh in the middle.
      await a.reload();
      await text(a, "#text", /^token-1 token-2 .*token-20 /);
      await text(a, "#asked", /How far/);
    },
    async again(a, b) {
      for (const page of [a, b]) await page.locator("#is[data-is=lost]").waitFor();
      await b.locator("#question").fill("Once more?");
      await b.getByRole("button", { name: "Ask" }).click();
      await a.locator("#answers a", { hasText: "Once more?" }).click();
      await text(a, "#text", /^token-1 token-2 /);
      // Stopped by the device that did not ask.
      await a.getByRole("button", { name: "Stop" }).click();
      for (const page of [a, b]) await page.locator("#is[data-is=stopped]").waitFor();
      assert.equal(await a.locator("#text").textContent(), await b.locator("#text").textContent());
    },
  },
  {
    name: "feed",
    async prepare({ dir }) {
      git(dir, "init", "-q");
      await commit(dir, "a.txt", "The first commit");
      return { variables: { FEED_FOLDER: dir } };
    },
    async works(a, b, { dir }) {
      for (const page of [a, b]) await text(page, ".item[data-kind=commit]", /The first commit.*Ada committed/);
      await mkdir(join(dir, "notes"));
      for (const page of [a, b]) await text(page, ".item[data-kind=file]", /notes.*created/);
      // In a folder that was not there before; and what is hidden is no news.
      await writeFile(join(dir, ".hidden"), "x");
      await writeFile(join(dir, "notes", "hello.txt"), "hello");
      for (const page of [a, b]) await text(page, ".item[data-kind=file]", /notes\/hello\.txt.*(created|changed), 5 B/);
      await commit(dir, "b.txt", "The second commit");
      for (const page of [a, b]) await text(page, ".item.unread[data-kind=commit]", /The second commit/);
      assert.equal(await a.locator(".item", { hasText: "hidden" }).count(), 0);
      await a.getByRole("button", { name: "Mark as read" }).click();
      await a.locator("#unread").waitFor({ state: "hidden" });
      await text(b, "#unread", /\d new/);
      await rm(join(dir, "notes", "hello.txt"));
      for (const page of [a, b]) await text(page, ".item[data-is=removed]", /hello\.txt/);
    },
    async again(a, b, { dir }) {
      for (const page of [a, b]) await text(page, ".item[data-kind=gap]", /missing here/);
      await commit(dir, "c.txt", "After the restart");
      for (const page of [a, b]) await text(page, ".item.unread[data-kind=commit]", /After the restart/);
    },
  },
  {
    name: "chat",
    async works(a, b, server) {
      const say = async (page, words) => {
        await page.locator("#text").fill(words);
        await page.locator("#text").press("Enter");
      };
      const sees = (page, words) => page.locator("#messages .text", { hasText: words }).waitFor();
      await say(a, "Has anybody seen the aerial?");
      await sees(b, "Has anybody seen the aerial?");
      await b.locator("#text").pressSequentially("It is on", { delay: 300 });
      await text(a, "#typing", /is typing/);
      await say(b, "It is on the roof, where you left it.");
      await sees(a, "It is on the roof");
      await text(a, "#typing", /^$/);
      await a.locator("#messages .pending").waitFor({ state: "detached" });
      // Who came second is shown both.
      await b.locator("#people li").nth(1).waitFor();

      // What was said before the page was opened comes as it is scrolled up, each message once and
      // in its order.
      for (let n = 1; n <= 75; n += 1) {
        const said = await fetch(`${server.url}/channels/chat/rust`, {
          method: "POST",
          headers: { "content-type": "application/json", authorization: "Bearer Ferris" },
          body: JSON.stringify({ event: "say", data: { text: `message ${n}.` } }),
        });
        assert.equal(said.status, 200);
      }
      await a.locator("#rooms a", { hasText: "rust" }).click();
      await sees(a, "message 75.");
      assert.equal(await a.locator("#messages .text", { hasText: "message 1." }).count(), 0);
      for (const first of ["message 30.", "message 1."]) {
        await a.locator("#scroll").evaluate((element) => (element.scrollTop = 0));
        await a.locator("#messages .text", { hasText: first }).waitFor({ state: "attached" });
      }
      const all = await a.locator("#messages .text").allTextContents();
      assert.deepEqual(all.filter((words) => words.startsWith("message")), Array.from({ length: 75 }, (_, n) => `message ${n + 1}.`));
      await a.locator("#rooms a", { hasText: "lobby" }).click();
      await sees(a, "It is on the roof");
    },
    async again(a, b) {
      await a.locator("#text").fill("Is it back?");
      await a.locator("#text").press("Enter");
      await b.locator("#messages .text", { hasText: "Is it back?" }).waitFor();
      // What was on the page before is still there.
      assert.equal(await b.locator("#messages .text", { hasText: "It is on the roof" }).count(), 1);
    },
  },
  {
    name: "collab",
    async works(a, b) {
      const has = (page, wanted) => page.waitForFunction((w) => document.querySelector("#text").value === w, wanted);
      const write = async (page, at, words) => {
        await page.locator("#text").focus();
        await page.keyboard.press(at);
        await page.keyboard.type(words);
      };
      await write(a, "Control+End", "Dear all,\nthe mast is up.");
      await has(b, "Dear all,\nthe mast is up.");
      await write(b, "Control+End", "\nThe wind is not.");
      await has(a, "Dear all,\nthe mast is up.\nThe wind is not.");
      await a.locator("#mirror .caret").first().waitFor();
      await b.locator("#mirror .caret").first().waitFor();
      // Offline edits merge.
      await b.locator("#line").click();
      await write(b, "Control+End", "\nWritten in a tunnel.");
      await write(a, "Control+Home", "Friday. ");
      await text(b, "#status", /^Offline/);
      assert.equal(await b.locator("#text").inputValue(), "Dear all,\nthe mast is up.\nThe wind is not.\nWritten in a tunnel.");
      await b.locator("#line").click();
      const merged = "Friday. Dear all,\nthe mast is up.\nThe wind is not.\nWritten in a tunnel.";
      for (const page of [a, b]) {
        await has(page, merged);
        await text(page, "#status", /saved and shared/);
      }
      const late = await a.context().newPage();
      await late.goto(a.url());
      await has(late, merged);
      await late.close();
      await a.locator("#mirror .caret").first().waitFor();
    },
    async again(a, b) {
      // The server has lost the document. The pages that still have it send it again.
      await a.locator("#text").focus();
      await a.keyboard.press("Control+End");
      await a.keyboard.type(" The end.");
      for (const page of [a, b]) {
        await page.waitForFunction(() => document.querySelector("#text").value.endsWith("tunnel. The end."));
        await text(page, "#status", /saved and shared/);
      }
      const late = await a.context().newPage();
      await late.goto(a.url());
      await late.waitForFunction((all) => document.querySelector("#text").value === all, await a.locator("#text").inputValue());
    },
  },
  {
    name: "game",
    async works(a, b, server) {
      for (const [page, name] of [[a, "Ada"], [b, "Bob"]]) {
        await page.locator("#name").fill(name);
        await page.getByRole("button", { name: "Play" }).click();
      }
      await text(a, "#scores", /Ada/);
      await text(b, "#scores", /Bob/);
      for (const page of [a, b]) await text(page, "#rate", /[1-9]\d* states\/s · 8 players/);
      // The server moves the player that steers, and tells every page.
      const told = await fetch(`${server.url}/channels/game/arena`, { headers: { accept: "text/event-stream" }, signal: AbortSignal.timeout(45_000) });
      await a.keyboard.down("ArrowRight");
      await a.keyboard.down("ArrowDown");
      let rest = "";
      for await (const chunk of told.body.pipeThrough(new TextDecoderStream())) {
        const lines = (rest + chunk).split("\n");
        rest = lines.pop();
        const states = lines.filter((line) => line.startsWith("data: ")).map((line) => JSON.parse(line.slice(6)));
        if (states.some(({ name, vx, vy }) => name === "Ada" && vx > 20 && vy > 20)) break;
      }
      await a.keyboard.up("ArrowRight");
      await a.keyboard.up("ArrowDown");
    },
    async again(a, b) {
      // The server has lost its players. Each page enters its player again.
      for (const page of [a, b]) await text(page, "#rate", /· 8 players/);
      await text(a, "#scores", /Ada/);
      await text(b, "#scores", /Bob/);
    },
  },
  {
    name: "trading",
    async works(a, b, server) {
      for (const page of [a, b]) {
        await page.locator("#symbols button[data-symbol=WAVE]").click();
        await text(page, "#symbol", /^WAVE$/);
        await text(page, "#spread", /spread/);
        await page.locator("#quantity").fill("20");
        await page.locator("#place").click();
        await text(page, "#ack", /20 traded at .* acknowledged/);
        await text(page, "#positions", /WAVE20/);
        await text(page, "#trades", /WAVEbuy/);
      }
      // A limit far away waits, is seen in the account, and can be taken back.
      await a.locator("#quantity").fill("7");
      await a.locator("#price").fill("1.50");
      await a.locator("#place").click();
      await text(a, "#ack", /7 waiting/);
      await text(a, "#open", /WAVEbuy71\.50/);
      await a.locator("#open button").click();
      await text(a, "#ack", /cancelled, 7 had not been traded/);
      await text(a, "#open", /^none$/);
      // And selling gives it back.
      await b.locator(".sides label", { hasText: "Sell" }).click();
      await b.locator("#place").click();
      await text(b, "#ack", /20 traded/);
      await text(b, "#positions", /^none$/);
      // One waits in the picture.
      await a.locator("#place").click();
      await text(a, "#open", /WAVEbuy7/);
      const account = await a.locator("#account").textContent();
      const stranger = await fetch(`${server.url}/channels/trading/accounts/${account}`, { headers: { authorization: "Bearer stranger" } });
      assert.equal(stranger.status, 403);
    },
    async again(a, b) {
      // The exchange begins anew, and the page says so.
      for (const page of [a, b]) await text(page, "#cash", /^100,000\.00$/);
      await text(a, "#open", /^none$/);
      await a.locator("#price").fill("");
      await a.locator("#place").click();
      await text(a, "#positions", /WAVE7/);
    },
  },
];

/** What a visitor clicks in one side of a comparison, where no simulated user takes part. */
const ACTIONS = { "job-status": "Run gzip -1", "ai-tokens": "Ask something" };
/** Where one takes part, it has sent so many messages before the figures are compared. */
const TALKS = { chat: 8, collab: 15, game: 40, trading: 9 };

/** `5.4 kB` in bytes. */
const inBytes = (text) => {
  const [number, unit] = text.split(" ");
  return Number(number) * { B: 1, kB: 1e3, MB: 1e6 }[unit];
};

/**
 * What the browser sees on the wire of a comparison, told by its debugger and not by the page:
 * `(transport) => { down, up, bytesDown, bytesUp, heads, open }`. The sides of a comparison show
 * tokens that begin with their transport; the rest of the page, which may connect anew at any
 * moment, shows none.
 */
async function listenIn(page) {
  const session = await page.context().newCDPSession(page);
  const empty = () => ({ down: 0, up: 0, bytesDown: 0, bytesUp: 0, heads: 0, open: 0 });
  const seen = { sse: empty(), websocket: empty() };
  const [requests, sockets] = [new Map(), new Set()];
  const length = ({ payloadData, opcode }) => (opcode === 1 ? Buffer.byteLength(payloadData) : Buffer.from(payloadData, "base64").length);
  const header = (headers, wanted) => Object.entries(headers).find(([name]) => name.toLowerCase() === wanted)?.[1] ?? "";
  session.on("Network.requestWillBeSent", ({ requestId, request }) => {
    const [, transport] = /^Bearer (sse|websocket)-/.exec(header(request.headers, "authorization")) ?? [];
    if (!transport) return;
    const counted = seen[transport];
    requests.set(requestId, { counted, stream: false, last: 0 });
    counted.up += 1;
    counted.heads += 1;
    counted.bytesUp += Buffer.byteLength(request.postData ?? "");
  });
  const hear = (request, data) => {
    for (const byte of Buffer.from(data ?? "", "base64")) {
      // A blank line ends an event.
      if (byte === 10 && request.last === 10) request.counted.down += 1;
      request.last = byte;
    }
  };
  session.on("Network.responseReceived", async ({ requestId, response }) => {
    const request = requests.get(requestId);
    if (!request) return;
    request.stream = response.mimeType === "text/event-stream";
    // A stream is counted by its events, all else by its answer.
    if (!request.stream) request.counted.down += 1;
    else {
      request.counted.open += 1;
      // A page that goes has nothing more to tell; anything else that is missing here makes a count
      // too small, and that is seen.
      const told = await session.send("Network.streamResourceContent", { requestId }).catch(() => ({}));
      hear(request, told.bufferedData);
    }
  });
  session.on("Network.dataReceived", ({ requestId, dataLength, data }) => {
    const request = requests.get(requestId);
    if (!request) return;
    request.counted.bytesDown += dataLength;
    if (request.stream) hear(request, data);
  });
  const over = ({ requestId }) => {
    const request = requests.get(requestId);
    if (request?.stream) request.counted.open -= 1;
    requests.delete(requestId);
  };
  session.on("Network.loadingFinished", over);
  session.on("Network.loadingFailed", over);
  session.on("Network.webSocketWillSendHandshakeRequest", ({ requestId, request }) => {
    if (!header(request.headers, "sec-websocket-protocol").includes("airwave.bearer.")) return;
    sockets.add(requestId);
    seen.websocket.up += 1;
    seen.websocket.heads += 1;
    seen.websocket.open += 1;
  });
  session.on("Network.webSocketClosed", ({ requestId }) => sockets.delete(requestId) && (seen.websocket.open -= 1));
  session.on("Network.webSocketFrameReceived", ({ requestId, response }) => {
    if (!sockets.has(requestId)) return;
    seen.websocket.down += 1;
    seen.websocket.bytesDown += length(response);
  });
  session.on("Network.webSocketFrameSent", ({ requestId, response }) => {
    if (!sockets.has(requestId)) return;
    seen.websocket.up += 1;
    seen.websocket.bytesUp += length(response);
  });
  await session.send("Network.enable");
  const wire = (transport) => ({ ...seen[transport] });
  wire.end = () => session.detach();
  return wire;
}

/**
 * What `look()` gives, once it satisfies `wanted`; or else, after as long as a page waits for
 * anything, what it gave last.
 */
async function until(what, look, wanted) {
  for (const deadline = Date.now() + 45_000; ; await new Promise((next) => setTimeout(next, 20))) {
    const seen = await look();
    if (wanted(seen)) return seen;
    assert.ok(Date.now() < deadline, `${what}: waited for in vain, and saw last ${JSON.stringify(seen)}`);
  }
}

describe("the gallery", { skip }, () => {
  let browser;
  before(async () => {
    await mkdir(screenshots, { recursive: true });
    browser = await launch();
  });
  after(() => browser?.close());

  /**
   * A window of its own: nothing in common with another. Complaints are the browser's about the
   * page.
   */
  async function window(t, options = {}) {
    const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, reducedMotion: "no-preference", ...options });
    t.after(() => context.close());
    const page = await context.newPage();
    page.setDefaultTimeout(45_000);
    const complaints = [];
    page.on("console", (message) => ["error", "warning"].includes(message.type()) && complaints.push(`${message.text()} ${message.location()?.url ?? ""}`));
    page.on("pageerror", (error) => complaints.push(String(error.stack ?? error)));
    return { page, complaints };
  }
  const phone = { viewport: { width: 390, height: 844 }, deviceScaleFactor: 2, isMobile: true, hasTouch: true, colorScheme: "dark" };

  async function fits(page) {
    const wide = await page.evaluate(() => document.documentElement.scrollWidth);
    assert.ok(wide <= 390, `the page is ${wide} px wide in a window of 390 px`);
  }

  for (const { name, prepare, works, again } of EXAMPLES) {
    test(`${name}: works in two windows, on a phone, and after a killed server`, async (t) => {
      const server = await Server.start(t, { toml: null, prepare });
      const address = `${server.url}/${name}/`;
      const [a, b, small] = [await window(t), await window(t), await window(t, phone)];
      for (const { page } of [a, b]) {
        await page.goto(address);
        await page.locator("#state[data-is=open]").waitFor();
      }
      await works(a.page, b.page, server);
      await a.page.screenshot({ path: join(screenshots, `gallery-${name}.png`) });
      await small.page.goto(a.page.url());
      await small.page.locator("#cost", { hasText: /1 connection/ }).waitFor();
      await small.page.screenshot({ path: join(screenshots, `gallery-${name}-phone.png`) });
      await fits(small.page);
      for (const { complaints } of [a, b, small]) assert.deepEqual(complaints, []);
      await small.page.close();

      await server.kill();
      for (const { page } of [a, b]) await page.locator("#state[data-is=waiting]").waitFor();
      await server.restart();
      for (const { page } of [a, b]) await page.locator("#state[data-is=open]").waitFor();
      await again(a.page, b.page, server);
    });

    test(`${name}: does the same over the other transport`, async (t) => {
      const server = await Server.start(t, { toml: null, prepare });
      const [a, b] = [await window(t), await window(t)];
      for (const { page } of [a, b]) {
        await page.goto(`${server.url}/${name}/`);
        await page.locator("#state[data-is=open]").waitFor();
        await page.locator("#bar .switch a[aria-current=false]").click();
        await page.waitForURL(/[?&]transport=/);
        await page.locator("#state[data-is=open]").waitFor();
      }
      await works(a.page, b.page, server);
      for (const { complaints } of [a, b]) assert.deepEqual(complaints, []);
    });
  }

  test("shows the matrix, each row live", async (t) => {
    const server = await Server.start(t, { toml: null, prepare: EXAMPLES.find(({ name }) => name === "feed").prepare });
    const { page, complaints } = await window(t);
    // Something to see in each row.
    const say = async (channel, event, data, who) => {
      const headers = { "content-type": "application/json", authorization: `Bearer ${who}` };
      const answer = await fetch(`${server.url}/channels/${channel}`, { method: "POST", headers, body: JSON.stringify({ event, data }) });
      assert.equal(answer.status, 200, channel);
    };
    await say("chat/lobby", "say", { text: "Has anybody seen the aerial?" }, "Ada");
    await say("chat/lobby", "say", { text: "It is on the roof, where you left it." }, "Grace");
    await say("jobs/first", "start", "gzip -1", "Ada");
    await say("ai/first", "ask", "What does a channel promise?", "Ada");
    await writeFile(join(server.dir, "letter.txt"), "Dear all,\n");
    await commit(server.dir, "mast.txt", "Raise the mast");
    await page.goto(`${server.url}/`);
    await page.locator(".row").nth(7).waitFor();
    assert.equal(await page.locator(".row").count(), 8);
    // One row is compared from the beginning.
    await page.locator(".row[data-row=chat] .side").nth(1).waitFor();
    await page.locator(".row[data-row=chat]").getByRole("button", { name: "End the comparison" }).click();
    await page.waitForFunction(() => document.querySelectorAll(".row[data-row=chat] .side").length === 1);
    for (const { name } of EXAMPLES) await page.locator(`.row[data-row=${name}] .preview`).waitFor();
    const seen = { dashboard: /processor/, "job-status": /gzip -1: (compressing|verifying|done)/, "ai-tokens": /\w+ \w+ \w+/, feed: /Raise the mast/, chat: /on the roof/, trading: /WAVE/ };
    for (const [name, words] of Object.entries(seen)) await page.locator(`.row[data-row=${name}] .preview`, { hasText: words }).waitFor();
    await page.screenshot({ path: join(screenshots, "gallery.png"), fullPage: true });

    assert.deepEqual(complaints, []);

    const small = await window(t, phone);
    await small.page.goto(`${server.url}/`);
    await small.page.locator(".row[data-row=dashboard] .preview", { hasText: /processor/ }).waitFor();
    await small.page.screenshot({ path: join(screenshots, "gallery-phone.png"), fullPage: true });
    await fits(small.page);
    assert.deepEqual(small.complaints, []);
  });

  test("compares every row over both transports, and shows what each cost and nothing else", async (t) => {
    const server = await Server.start(t, { toml: null });
    const { page, complaints } = await window(t);
    await page.goto(`${server.url}/`);
    // One row is compared from the beginning.
    const first = page.locator(".row[data-row=chat]");
    await text(first, ".verdict", /So far: up .* over WebSocket/);
    await first.getByRole("button", { name: "End the comparison" }).click();
    await page.waitForFunction(() => document.querySelectorAll(".row[data-row=chat] .side").length === 1);
    for (const { name } of EXAMPLES) {
      await t.test(name, async (t) => {
        const row = page.locator(`.row[data-row=${name}]`);
        await row.locator(".preview").waitFor();
        const wire = await listenIn(page);
        await row.getByRole("button", { name: /^Compare with/ }).click();

        const figures = async (transport) => {
          const cells = await row.locator(`.side[data-transport=${transport}] .figures > *`).allTextContents();
          const at = (name, column) => cells[cells.indexOf(name) + column];
          const number = (text) => Number(text.replaceAll(",", ""));
          return { down: number(at("down", 1)), up: number(at("up", 1)), connections: number(at("connections", 1)), bytesDown: inBytes(at("down", 2)), bytesUp: inBytes(at("up", 2)) };
        };
        for (const transport of ["sse", "websocket"]) await row.locator(`.side[data-transport=${transport}] .figures`, { hasText: /connections1/ }).waitFor();
        if (ACTIONS[name]) await row.locator(".side[data-transport=websocket]").getByRole("button", { name: ACTIONS[name] }).click();
        await row.locator(".side[data-transport=sse] .figures dt", { hasText: /^([2-9]|\d\d) s$/ }).waitFor();
        if (TALKS[name]) {
          for (const transport of ["sse", "websocket"]) await until(`${TALKS[name]} messages over ${transport}`, () => figures(transport), ({ up }) => up >= TALKS[name]);
        }

        // What the browser itself saw on the wire at a moment is shown a little later, and by then
        // not more than it has seen by then.
        for (const transport of ["sse", "websocket"]) {
          const before = wire(transport);
          const shown = await until(`what went over ${transport} is shown, ${JSON.stringify(before)}`, () => figures(transport), ({ down, up }) => down >= before.down && up >= before.up);
          const after = wire(transport);
          const told = `${transport}: shown ${JSON.stringify(shown)}, seen ${JSON.stringify(before)} and ${JSON.stringify(after)}`;
          assert.ok(shown.down <= after.down && shown.up <= after.up, told);
          assert.ok(shown.down > 0 && shown.up > 0, told);
          // Bytes are rounded, a frame has a head of at most 14, and a request's head is an
          // estimate.
          assert.ok(shown.bytesDown >= before.bytesDown * 0.94 && shown.bytesDown <= (after.bytesDown + 14 * after.down + 400 * after.heads) * 1.06, told);
          assert.ok(shown.bytesUp >= before.bytesUp * 0.94 && shown.bytesUp <= (after.bytesUp + 14 * after.up + 800 * after.heads) * 1.06, told);
          t.diagnostic(told);
        }
        const [sse, websocket] = [await figures("sse"), await figures("websocket")];
        // For each message: the slower side may have said fewer.
        const [one, other] = [sse, websocket].map(({ bytesUp, up }) => bytesUp / up);
        if (TALKS[name]) assert.ok(one > 1.5 * other, `${one} bytes up for a message over SSE, ${other} over WebSocket`);
        await text(row, ".verdict", /So far: up .* over (SSE|WebSocket)/);
        await row.screenshot({ path: join(screenshots, `gallery-compare-${name}.png`) });
        await row.getByRole("button", { name: "End the comparison" }).click();
        await page.waitForFunction((name) => document.querySelectorAll(`.row[data-row=${name}] .side`).length === 1, name);
        // The two connections of the comparison are gone.
        for (const transport of ["sse", "websocket"]) await until(`the comparison's ${transport} is closed`, () => wire(transport), ({ open }) => open === 0);
        await wire.end();
      });
    }
    assert.deepEqual(complaints, []);
  });

  test("feed: what happened while the page was closed is there, and unread", async (t) => {
    const { prepare } = EXAMPLES.find(({ name }) => name === "feed");
    const server = await Server.start(t, { toml: null, prepare });
    const { page, complaints } = await window(t);
    await until("the first commit", () => server.recent("feed/activity"), ({ events }) => events.length > 0);
    await page.goto(`${server.url}/feed/`);
    await page.locator("#state[data-is=open]").waitFor();
    await text(page, ".item", /The first commit/);
    // Nothing of what was there at the first visit is news.
    assert.equal(await page.locator("#unread").isVisible(), false);
    await page.goto("about:blank");
    await commit(server.dir, "b.txt", "While you slept");
    await until("the commit", () => server.recent("feed/activity"), ({ events }) => events.some(({ data }) => data.message === "While you slept"));
    await page.goto(`${server.url}/feed/`);
    await text(page, ".item.unread[data-kind=commit]", /While you slept/);
    await text(page, ".item[data-kind=mark]", /last visit/);
    await text(page, "#unread", /\d new/);
    await page.screenshot({ path: join(screenshots, "gallery-feed-next-morning.png") });
    assert.deepEqual(complaints, []);
  });

  test("ai-tokens: without an endpoint a model of its own answers, and ends", async (t) => {
    const server = await Server.start(t, { toml: null });
    const { page, complaints } = await window(t);
    await page.goto(`${server.url}/ai-tokens/`);
    await page.locator("#question").fill("What does a channel promise?");
    await page.getByRole("button", { name: "Ask" }).click();
    await page.locator("#is[data-is=done]").waitFor();
    await text(page, "#told", /[1-9]\d+ tokens in/);
    await page.screenshot({ path: join(screenshots, "gallery-ai-tokens-offline.png") });
    // What is over is all there for who opens it later, and nothing asks again.
    const answer = await page.locator("#text").textContent();
    const other = await window(t);
    await other.page.goto(page.url());
    await other.page.locator("#is[data-is=done]").waitFor();
    assert.equal(await other.page.locator("#text").textContent(), answer);
    assert.deepEqual([complaints, other.complaints], [[], []]);
  });

  test("ai-tokens: asks the endpoint as it wants to be asked, and once", async (t) => {
    let asked;
    const prepare = async () => {
      const made = await endpoint(t);
      asked = made.asked;
      return made;
    };
    const server = await Server.start(t, { toml: null, prepare });
    const say = async (event, data) => {
      const response = await fetch(`${server.url}/channels/ai/one`, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ event, data }) });
      return response.json();
    };
    assert.deepEqual((await say("ask", "Why?")).data, { attached: false });
    assert.deepEqual((await say("ask", "Why?")).data, { attached: true });
    await until("a token", () => server.recent("ai/one"), ({ events }) => events.some(({ event }) => event === "token"));
    await say("stop", null);
    await until("the end", () => server.recent("ai/one"), ({ ended }) => ended);
    assert.deepEqual((await say("ask", "Why?")).data, { attached: true });
    assert.equal(asked.length, 1);
    assert.equal(asked[0].path, "/v1/chat/completions");
    assert.equal(asked[0].authorization, "Bearer test-key");
    const { model, stream, messages } = asked[0].body;
    assert.deepEqual({ model, stream, messages }, { model: "counter", stream: true, messages: [{ role: "user", content: "Why?" }] });
  });

  test("refuses a page of a foreign site that points its own name here", async (t) => {
    const server = await Server.start(t, { toml: null });
    const ask = (host, method, path, body) =>
      new Promise((done, fail) => {
        const asked = request({ port: server.port, host: "127.0.0.1", method, path, headers: { host, "content-type": "application/json" } }, (answer) => {
          answer.destroy();
          done(answer.statusCode);
        });
        asked.on("error", fail).end(body);
      });
    const start = JSON.stringify({ event: "start", data: "gzip -1" });
    for (const [host, status] of [["evil.example", 403], [`localhost:${server.port}`, 200], [`127.0.0.1:${server.port}`, 200], ["[::1]", 200]]) {
      for (const path of ["/", "/channels/feed/activity", "/feed/", "/live/state", "/healthz"]) assert.equal(await ask(host, "GET", path), status, `${host} ${path}`);
      assert.equal(await ask(host, "POST", `/channels/jobs/of-${host.replace(/[^a-z0-9]/g, "-")}`, start), status, host);
    }
  });

  test("leaves other channels and the live page what they were", async (t) => {
    const server = await Server.start(t, { toml: null });
    await server.publish({ channel: "logs/anything", event: "line", data: "published" });
    assert.equal((await server.recent("logs/anything")).events[0].data, "published");
    const { page, complaints } = await window(t);
    await page.goto(`${server.url}/live#logs/anything`);
    await page.locator("#node-state[data-state=live]").waitFor();
    await page.locator(".pane[data-transport=sse] .row .data", { hasText: "published" }).waitFor();
    assert.deepEqual(complaints, []);
    const configured = await Server.start(t);
    for (const path of ["/dashboard/", "/gallery/matrix"]) assert.equal((await fetch(configured.url + path)).status, 404, path);
  });
});
