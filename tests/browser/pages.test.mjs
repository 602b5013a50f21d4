// The pages as a visitor meets them: Back, rows that move, a line that is cut, a keyboard, a
// duplicated tab, and what axe-core finds in light and dark, wide and on a phone.

import assert from "node:assert/strict";
import { readFile, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { chromium } from "playwright-core";
import { launch, withoutChromium } from "./support/browser.mjs";
import { Server } from "./support/server.mjs";

const skip = withoutChromium();
const axe = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const EXAMPLES = ["dashboard", "job-status", "ai-tokens", "feed", "chat", "collab", "game", "trading"];
const wide = { width: 1280, height: 900 };
const phone = { width: 390, height: 844 };

/**
 * What axe-core finds wrong on the page as it is now. The page's own policy lets no foreign script
 * in: the debugger does.
 */
async function found(page, rules = {}) {
  const session = await page.context().newCDPSession(page);
  await session.send("Runtime.evaluate", { expression: `globalThis.axe || (() => { ${axe} })()` });
  const all = await page.evaluate((rules) => axe.run(document, rules), rules);
  await session.detach();
  return all.violations.flatMap(({ id, nodes }) => nodes.map(({ target, failureSummary }) => `${id} ${target}: ${failureSummary}`));
}

describe("the pages", { skip }, () => {
  let browser;
  let server;
  before(async () => {
    browser = await launch();
  });
  after(() => browser?.close());

  async function window(t, options = {}, opened = browser) {
    const context = await opened.newContext({ viewport: wide, reducedMotion: "no-preference", ...options });
    t.after(() => context.close());
    const page = await context.newPage();
    page.setDefaultTimeout(45_000);
    return page;
  }

  const started = async (t) => (server = await Server.start(t, { toml: null }));

  test("axe-core finds nothing on any of them, in light and dark, wide and on a phone", async (t) => {
    await started(t);
    for (const path of ["", ...EXAMPLES.map((name) => `${name}/`), "live#dashboard/machine"]) {
      const page = await window(t);
      await page.goto(`${server.url}/${path}`);
      await page.locator(path === "" ? ".row[data-row=trading] .preview" : path.startsWith("live") ? "#node-state[data-state=live]" : "#state[data-is=open]").waitFor();
      // The colours of a page are all that differs between light and dark.
      const colours = { runOnly: ["color-contrast"] };
      for (const [colorScheme, viewport, rules] of [["light", wide], ["dark", wide, colours], ["dark", phone], ["light", phone, colours]]) {
        await page.emulateMedia({ colorScheme });
        await page.setViewportSize(viewport);
        assert.deepEqual(await found(page, rules), [], `/${path}, ${colorScheme}, ${viewport.width} px wide`);
        const width = await page.evaluate(() => document.documentElement.scrollWidth);
        assert.ok(width <= viewport.width, `/${path} is ${width} px wide in a window of ${viewport.width} px`);
      }
      await page.close();
    }
  });

  test("Back brings a page that goes on, with the back/forward cache on", async (t) => {
    await started(t);
    // Playwright turns the cache off.
    const cached = await chromium.launch({ executablePath: process.env.AIRWAVE_TEST_CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox", "--disable-gpu"], ignoreDefaultArgs: ["--disable-back-forward-cache"] });
    t.after(() => cached.close());
    const page = await window(t, {}, cached);
    await page.goto(`${server.url}/`);
    const figures = page.locator(".row[data-row=dashboard] .preview", { hasText: /processor \d/ });
    await figures.waitFor();
    for (const name of ["chat", "dashboard"]) {
      await page.locator(`.row[data-row=${name}] h2 a`).click();
      await page.locator("#state[data-is=open]").waitFor();
      // A page that comes out of the cache is not loaded: what waits for that waits for ever.
      await page.evaluate(() => history.back());
      await page.locator("#rows").waitFor();
      await page.locator(".row[data-row=dashboard] .preview", { hasText: /processor \d/ }).waitFor();
      // It moves: the debugger sees what comes in from now on.
      const before = await page.locator("#total").textContent();
      await page.waitForFunction((text) => document.querySelector("#total").textContent !== text, before);
    }
    // And forward again.
    await page.evaluate(() => history.forward());
    await page.locator("#state[data-is=open]").waitFor();
  });

  test("every row moves while it is in view, and none where less motion is wanted", async (t) => {
    await started(t);
    const page = await window(t);
    // Its timers can be run at once.
    await page.clock.install();
    await page.goto(`${server.url}/`);
    const words = { "job-status": /gzip -1: (compressing|verifying|done)/, "ai-tokens": /\w+ \w+ \w+ \w+/, feed: /(created|changed|removed|committed)/, chat: /\w/, collab: /Dear all, the mast/, trading: /WAVE/ };
    const at = async (name) => {
      const row = page.locator(`.row[data-row=${name}]`);
      await row.scrollIntoViewIfNeeded();
      await row.locator(".side[data-seen=true]").first().waitFor();
      return row;
    };
    for (const [name, wanted] of Object.entries(words)) {
      const row = await at(name);
      await row.locator(".preview", { hasText: wanted }).first().waitFor();
    }
    // Two write, and both stop when the row is out of view.
    await at("collab");
    await page.locator(".row[data-row=collab] .preview", { hasText: /We sail/ }).waitFor();
    await page.evaluate(() => scrollTo(0, 0));
    await page.locator(".row[data-row=collab] .side[data-seen=false]").waitFor();
    const position = async () => Number((await (await fetch(`${server.url}/channels/collab/gallery?limit=1`)).json()).cursor);
    const held = async (after) => (await (await fetch(`${server.url}/channels/collab/gallery?after=${after}&limit=100`)).json()).events.length;
    const before = await position();
    await page.clock.runFor(10_000);
    // One may have been under way.
    const events = await held(before);
    assert.ok(events <= 1, `${events} updates while the row was out of view`);
    // A visitor who wants less motion starts nothing by looking.
    const calm = await window(t, { reducedMotion: "reduce" });
    const sent = [];
    await calm.clock.install();
    await calm.goto(`${server.url}/`);
    await calm.locator(".row[data-row=trading] .preview", { hasText: "WAVE" }).waitFor();
    calm.on("request", (request) => request.method() === "POST" && sent.push(request.url()));
    for (const name of ["job-status", "ai-tokens", "chat"]) {
      await calm.locator(`.row[data-row=${name}]`).scrollIntoViewIfNeeded();
      await calm.locator(`.row[data-row=${name}] .side[data-seen=true]`).first().waitFor();
      await calm.clock.runFor(10_000);
    }
    assert.deepEqual(sent, []);
  });

  test("a line that is cut comes back in every row, and nothing is lost", async (t) => {
    await started(t);
    const page = await window(t);
    await page.goto(`${server.url}/`);
    await page.locator(".row[data-row=dashboard] .preview", { hasText: /processor \d/ }).waitFor();
    await page.locator(".row[data-row=trading] .preview", { hasText: "WAVE" }).waitFor();
    await page.locator(".row[data-row=chat] .side[data-transport=sse] .figures", { hasText: /connections1/ }).waitFor();
    await page.locator("#cut").click();
    for (const name of EXAMPLES) await page.locator(`.row[data-row=${name}] .line[data-is=waiting]`).first().waitFor({ state: "attached" });
    for (const name of ["dashboard", "job-status", "ai-tokens", "feed", "chat", "collab"]) {
      const lines = page.locator(`.row[data-row=${name}] .line`);
      await lines.filter({ hasText: "resumed, 0 lost" }).first().waitFor();
    }
    // Of these only the newest counts, and is there.
    for (const name of ["game", "trading"]) await page.locator(`.row[data-row=${name}] .line`, { hasText: /^resumed/ }).waitFor();
  });

  test("a row whose WebSocket is taken away goes on over SSE behind the same cursor", async (t) => {
    await started(t);
    const page = await window(t);
    await page.goto(`${server.url}/`);
    const row = page.locator(".row[data-row=trading]");
    await row.locator(".preview", { hasText: "WAVE" }).waitFor();
    await row.getByRole("button", { name: "Take its WebSocket away" }).click();
    await row.locator(".line", { hasText: /WebSocket lost after \d{16}, on over SSE behind the same cursor: resumed/ }).waitFor();
    await row.locator(".head .pill[data-is=sse]").waitFor();
    await row.getByRole("button", { name: "Give it back" }).click();
    await row.locator(".head .pill[data-is=websocket]").waitFor();
  });

  test("a first answer that is a proxy's page is asked for again", async (t) => {
    await started(t);
    const page = await window(t);
    const first = { "": "gallery/matrix", dashboard: "channels/dashboard/machine", "job-status": "channels/jobs/list", "ai-tokens": "channels/ai/list", feed: "channels/feed/activity", chat: "channels/chat/lobby", trading: "channels/trading/quotes" };
    for (const [name, asked] of Object.entries(first)) {
      let answered = false;
      await page.route(new RegExp(`/${asked}(\\?|$)`), (route) => {
        answered = true;
        return route.fulfill({ status: 502, contentType: "text/html", body: "<h1>Bad gateway</h1>" });
      }, { times: 1 });
      await page.goto(`${server.url}/${name && `${name}/`}`);
      await page.locator(name ? "#state[data-is=open]" : ".row[data-row=trading] .preview").waitFor();
      assert.ok(answered, name);
      await page.unrouteAll();
    }
  });

  test("a duplicated tab is another person", async (t) => {
    await started(t);
    const who = { chat: () => document.querySelector("#name").value, trading: () => document.querySelector("#account").textContent, game: () => sessionStorage.getItem("game-id"), collab: () => sessionStorage.getItem("collab-name") };
    for (const [name, me] of Object.entries(who)) {
      const page = await window(t);
      await page.goto(`${server.url}/${name}/`);
      await page.locator("#state[data-is=open]").waitFor();
      const first = await page.evaluate(me);
      // A reload is the same person.
      await page.reload();
      await page.locator("#state[data-is=open]").waitFor();
      assert.equal(await page.evaluate(me), first, name);
      // A window that a page opens gets a copy of its storage, as a duplicate does.
      const [copy] = await Promise.all([page.waitForEvent("popup"), page.evaluate(() => void open(location.href))]);
      await copy.locator("#state[data-is=open]").waitFor();
      assert.notEqual(await copy.evaluate(me), first, name);
      await page.context().close();
    }
  });

  test("chat says why a message is not taken", async (t) => {
    await started(t);
    const page = await window(t);
    await page.goto(`${server.url}/chat/`);
    await page.locator("#state[data-is=open]").waitFor();
    await page.locator("#text").fill("語".repeat(700));
    await page.locator("#text").press("Enter");
    const refusal = page.locator("#messages .failed .refusal");
    await refusal.waitFor();
    assert.match(await refusal.textContent(), /at most 2000 bytes/);
  });

  test("the book of trading is used with a keyboard", async (t) => {
    await started(t);
    const page = await window(t);
    await page.goto(`${server.url}/trading/`);
    await page.locator("#spread", { hasText: /spread/ }).waitFor();
    const button = page.locator("#bids button:not([disabled])").first();
    await button.focus();
    // Quotes come meanwhile, and the focus stays.
    const shown = await page.locator("#tape").textContent();
    await page.waitForFunction((text) => document.querySelector("#tape").textContent !== text, shown);
    assert.equal(await page.evaluate(() => document.activeElement.closest("tbody")?.id), "bids");
    await page.keyboard.press("Enter");
    assert.match(await page.locator("#price").inputValue(), /^\d+\.\d\d$/);
    assert.equal(await page.locator("#place").textContent(), "Sell");
  });

  test("the live page stays readable beside a channel with 60 events a second", async (t) => {
    await started(t);
    const page = await window(t);
    await page.goto(`${server.url}/live#game/arena`);
    const pane = page.locator(".pane[data-transport=sse]");
    await pane.locator(".row", { hasText: /more in this second/ }).first().waitFor();
    await pane.locator("[data-role=count]", { hasText: /\d\/s$/ }).waitFor();
    // A button can be pressed, and a quiet channel shows each event as it comes.
    await page.locator("#pause").click();
    await pane.locator("[data-role=count]", { hasText: /behind the pause/ }).waitFor();
    await page.locator("#pause").click();
    await page.goto(`${server.url}/live#quiet/one`);
    await pane.locator("[data-role=state][data-state=live]").waitFor();
    await server.publish({ channel: "quiet/one", event: "n", data: "one" });
    await pane.locator(".row .data", { hasText: "one" }).waitFor();
  });

  test("each of them shows its source and the documents, and tells no name of a file where the server runs", async (t) => {
    await started(t);
    await writeFile(join(server.dir, "private-notes.txt"), "x");
    const page = await window(t);
    for (const name of EXAMPLES) {
      await page.goto(`${server.url}/${name}/`);
      const source = await page.locator("#bar .source").evaluate(({ href }) => href);
      const text = await (await fetch(source)).text();
      assert.match(text, /pub fn page\(\) -> Router/, name);
    }
    await page.goto(`${server.url}/`);
    const links = await page.locator("a").evaluateAll((all) => all.map(({ href }) => href));
    for (const link of links) assert.equal((await fetch(link)).status, 200, link);
    await page.goto(`${server.url}/feed/`);
    await page.locator(".item[data-kind=file]").first().waitFor();
    await writeFile(join(server.dir, "private-letter.txt"), "x");
    const seen = await page.locator(".item[data-kind=file]").count();
    await page.waitForFunction((count) => document.querySelectorAll(".item[data-kind=file]").length > count, seen);
    assert.doesNotMatch(await page.locator("#feed").textContent(), /private/);
    // The row of the dashboard shows its rule, not the preset.
    const matrix = await (await fetch(`${server.url}/gallery/matrix`)).json();
    assert.deepEqual(matrix.find(({ use_case }) => use_case === "dashboard").history, { events: 2000, age_s: 600 });
  });
});
