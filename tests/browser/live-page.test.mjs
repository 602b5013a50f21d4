// The live page at `/`: what a newcomer sees first. Its screenshots land in target/screenshots.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdir } from "node:fs/promises";
import { dirname, join } from "node:path";
import { after, before, describe, test } from "node:test";
import { launch, withoutChromium } from "./support/browser.mjs";
import { line, mounted } from "./support/lines.mjs";
import { binary, config, screenshots, Server } from "./support/server.mjs";

const skip = withoutChromium();

describe("the live page", { skip }, () => {
  let browser;
  before(async () => {
    await mkdir(screenshots, { recursive: true });
    browser = await launch();
  });
  after(() => browser?.close());

  /** The page in a window of this size, and every complaint of the browser about it. */
  async function open(t, url, { width = 1360, height = 960, ...options } = {}) {
    const context = await browser.newContext({ viewport: { width, height }, reducedMotion: "reduce", ...options });
    t.after(() => context.close());
    const page = await context.newPage();
    page.setDefaultTimeout(30_000);
    const complaints = [];
    page.on("console", (message) => ["error", "warning"].includes(message.type()) && complaints.push(message.text()));
    page.on("pageerror", (error) => complaints.push(String(error)));
    page.on("requestfailed", (request) => {
      const { errorText } = request.failure();
      // A stream that the page itself cut counts as failed, too.
      if (errorText !== "net::ERR_ABORTED") complaints.push(`${request.url()}: ${errorText}`);
    });
    await page.goto(url);
    await page.locator("#node-state[data-state=live]").waitFor();
    return { page, complaints };
  }

  const pane = (page, transport) => {
    const root = page.locator(`.pane[data-transport=${transport}]`);
    return {
      live: () => root.locator("[data-role=state][data-state=live]").waitFor(),
      state: (state) => root.locator(`[data-role=state][data-state=${state}]`).waitFor(),
      has: (text) => root.locator(".row .data", { hasText: text }).first().waitFor(),
      control: (kind) => root.locator(`.row.control.${kind}`).first().waitFor(),
      toggle: (label) => root.getByRole("button", { name: label, exact: true }).click(),
      rows: () => root.locator(".row[data-id]").evaluateAll((rows) => rows.map((row) => [row.dataset.id, row.querySelector(".event").textContent, row.querySelector(".data").textContent])),
    };
  };

  async function publish(page, { channel, event, key = "", data }) {
    await page.locator("#publish-channel").fill(channel);
    await page.locator("#publish-event").fill(event);
    await page.locator("#publish-key").fill(key);
    await page.locator("#publish-data").fill(data);
    await page.locator("#publish button[type=submit]").click();
    await page.locator("#publish-result", { hasText: "published as" }).waitFor();
  }

  test("is empty and helpful at first, then shows one event in both panes", async (t) => {
    const server = await Server.start(t);
    const { page, complaints } = await open(t, `${server.url}/`);
    await page.locator("#hero").waitFor();
    await page.locator("#hero-listening", { hasText: "listens" }).waitFor();
    const suggested = await page.locator("#hero-curl").textContent();
    assert.ok(suggested.startsWith(`curl ${server.url}/publish `), suggested);
    await page.screenshot({ path: join(screenshots, "live-page-empty.png") });

    // What it says to do is done, word by word: the page gives way to the events, in both panes.
    const PATH = `${dirname(binary)}:${process.env.PATH}`;
    for (const command of [suggested, await page.locator("#hero-airwave").textContent()]) {
      const { status, stderr } = spawnSync("sh", ["-c", command], { env: { ...process.env, PATH }, encoding: "utf8" });
      assert.equal(status, 0, `${command}: ${stderr}`);
    }
    for (const transport of ["sse", "websocket"]) {
      await page.locator(`.pane[data-transport=${transport}] [data-role=count]`, { hasText: "2 events" }).waitFor();
      assert.deepEqual((await pane(page, transport).rows()).map(([, event, data]) => [event, data]), Array(2).fill(["greeting", '{"text":"hi"}']));
    }
    assert.equal(await page.locator("#hero").isVisible(), false);

    await publish(page, { channel: "both/orders", event: "order-update", key: "abc123", data: '{"status": "shipped", "trackingId": "TRK9876"}' });
    const [sse, websocket] = [pane(page, "sse"), pane(page, "websocket")];
    for (const side of [sse, websocket]) await side.has("TRK9876");
    await server.publish({ channel: "both/orders", event: "order-update", data: { status: "out for delivery" } });
    for (const side of [sse, websocket]) await side.has("out for delivery");
    const rows = await sse.rows();
    assert.deepEqual(rows.map(([, event, data]) => [event, data]), [
      ["order-update", '{"status":"shipped","trackingId":"TRK9876"}'],
      ["order-update", '{"status":"out for delivery"}'],
    ]);
    assert.deepEqual(await websocket.rows(), rows);

    // Who listens over what: both panes, as the node counts them.
    await page.locator("#channels .channel", { hasText: "SSE 1" }).filter({ hasText: "WS 1" }).waitFor();
    await page.screenshot({ path: join(screenshots, "live-page.png") });
    assert.deepEqual(complaints, []);
  });

  test("a dropped line resumes after its cursor, on either transport", async (t) => {
    const server = await Server.start(t);
    const { page, complaints } = await open(t, `${server.url}/#both/resume`);
    const [sse, websocket] = [pane(page, "sse"), pane(page, "websocket")];
    for (const side of [sse, websocket]) await side.live();
    await server.publish({ channel: "both/resume", event: "n", data: "first" });
    for (const side of [sse, websocket]) await side.has("first");
    for (const side of [sse, websocket]) {
      await side.toggle("Drop");
      await side.state("dropped");
    }
    await server.publish({ channel: "both/resume", event: "n", data: "missed" });
    for (const side of [sse, websocket]) {
      await side.toggle("Resume");
      await side.has("missed");
    }
    assert.deepEqual((await sse.rows()).map(([, , data]) => data), ['"first"', '"missed"']);
    assert.deepEqual(await websocket.rows(), await sse.rows());
    assert.deepEqual(complaints, []);
  });

  test("tells of gap and end in words of their own", async (t) => {
    const server = await Server.start(t);
    const { page } = await open(t, `${server.url}/#both/loss`);
    const [sse, websocket] = [pane(page, "sse"), pane(page, "websocket")];
    for (const side of [sse, websocket]) await side.live();
    await server.publish({ channel: "both/loss", event: "n", data: "lost with the server" });
    for (const side of [sse, websocket]) await side.has("lost with the server");
    await server.kill();
    for (const side of [sse, websocket]) await side.state("waiting");
    await server.restart();
    for (const side of [sse, websocket]) await side.control("gap");
    await server.publish({ channel: "both/loss", event: "n", data: "the last one", end: true });
    for (const side of [sse, websocket]) {
      await side.has("the last one");
      await side.control("end");
      await side.state("ended");
    }
    await page.screenshot({ path: join(screenshots, "live-page-gap-and-end.png") });
  });

  test("shows what arrives as text, never as markup", async (t) => {
    const server = await Server.start(t);
    const { page, complaints } = await open(t, `${server.url}/#both/markup`);
    const [sse, websocket] = [pane(page, "sse"), pane(page, "websocket")];
    for (const side of [sse, websocket]) await side.live();
    const markup = '<img src=x onerror="window.broken = true"><script>window.broken = true</script>';
    await server.publish([
      { channel: "both/markup", event: "n", text: markup },
      { channel: "both/markup", event: "n", data: { markup } },
    ]);
    for (const side of [sse, websocket]) {
      await side.has(/^<img src=x onerror/);
      await side.has(/^\{"markup":"<img/);
    }
    assert.equal(await page.evaluate(() => window.broken), undefined);
    assert.equal(await page.locator(".row img, .row script").count(), 0);
    assert.deepEqual(complaints, []);
  });

  test("says why a channel or a transport is refused", async (t) => {
    const server = await Server.start(t);
    const { page } = await open(t, `${server.url}/#sse-only/x`);
    await pane(page, "sse").live();
    await pane(page, "websocket").state("absent");
    await page.goto(`${server.url}/#unknown/a`);
    for (const transport of ["sse", "websocket"]) {
      await pane(page, transport).state("refused");
      await pane(page, transport).control("error");
    }
    await page.locator("#publish-data").fill("{not json");
    await page.locator("#publish button[type=submit]").click();
    await page.locator("#publish-result[data-state=bad]", { hasText: "not JSON" }).waitFor();
  });

  test("pauses and clears", async (t) => {
    const server = await Server.start(t);
    const { page } = await open(t, `${server.url}/#both/pause`);
    const [sse, websocket] = [pane(page, "sse"), pane(page, "websocket")];
    for (const side of [sse, websocket]) await side.live();
    await page.getByRole("button", { name: "Pause", exact: true }).click();
    await server.publish({ channel: "both/pause", event: "n", data: "held back" });
    for (const transport of ["sse", "websocket"]) {
      await page.locator(`.pane[data-transport=${transport}] [data-role=count]`, { hasText: "1 behind the pause" }).waitFor();
    }
    assert.deepEqual(await sse.rows(), []);
    await page.getByRole("button", { name: "Continue", exact: true }).click();
    for (const side of [sse, websocket]) await side.has("held back");
    await page.getByRole("button", { name: "Clear", exact: true }).click();
    assert.deepEqual([await sse.rows(), await websocket.rows()], [[], []]);
  });

  test("works under any path of a larger site", async (t) => {
    const server = await Server.start(t);
    const { page, complaints } = await open(t, await mounted(t, server, "/some/where"));
    await publish(page, { channel: "both/deep", event: "n", data: '"heard"' });
    for (const transport of ["sse", "websocket"]) await pane(page, transport).has("heard");
    assert.deepEqual(complaints, []);
  });

  test("survives a broken line by itself", async (t) => {
    const server = await Server.start(t);
    const wire = await line(t, server);
    const { page } = await open(t, `${wire.url}/#both/line`);
    const [sse, websocket] = [pane(page, "sse"), pane(page, "websocket")];
    for (const side of [sse, websocket]) await side.live();
    await server.publish({ channel: "both/line", event: "n", data: "first" });
    for (const side of [sse, websocket]) await side.has("first");
    wire.cut();
    for (const side of [sse, websocket]) await side.state("waiting");
    await server.publish({ channel: "both/line", event: "n", data: "missed" });
    wire.restore();
    for (const side of [sse, websocket]) await side.has("missed");
    assert.deepEqual(await websocket.rows(), await sse.rows());
  });

  test("fits a phone, in the dark too", async (t) => {
    const server = await Server.start(t);
    await server.publish({ channel: "both/a-channel-with-a-rather-long-name", event: "n", data: 1 });
    for (const [colorScheme, file] of [["light", "live-page-phone.png"], ["dark", "live-page-phone-dark.png"]]) {
      const { page, complaints } = await open(t, `${server.url}/#both/phone`, { width: 390, height: 844, deviceScaleFactor: 2, isMobile: true, hasTouch: true, colorScheme });
      await publish(page, { channel: "both/phone", event: "order-update", key: "abc123", data: '{"status": "shipped", "trackingId": "TRK9876", "note": "averylongwordthatdoesnotfitintoonelineofaphoneatall"}' });
      for (const transport of ["sse", "websocket"]) await pane(page, transport).has("TRK9876");
      await page.locator("#channels .channel", { hasText: "both/phone" }).waitFor();
      const [content, viewport] = await page.evaluate(() => [document.documentElement.scrollWidth, window.innerWidth]);
      assert.ok(content <= 390 && viewport === 390, `the page is ${content} px wide in a window of ${viewport} px`);
      await page.screenshot({ path: join(screenshots, file), fullPage: true });
      assert.deepEqual(complaints, []);
    }
  });

  test("is not there when the configuration says so", async (t) => {
    const server = await Server.start(t, { toml: config("live_page = false") });
    for (const path of ["/", "/live/live.js", "/live/live.css", "/live/state"]) {
      assert.equal((await fetch(server.url + path)).status, 404, path);
    }
  });
});
