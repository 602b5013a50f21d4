// Tabs of a real browser that share one connection.

import { existsSync } from "node:fs";
import { type Browser, type BrowserContext, chromium, type Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { Server } from "./support/server.js";

const executablePath = process.env["AIRWAVE_TEST_CHROMIUM"] ?? "/usr/bin/chromium";
const missing = !existsSync(executablePath) && !process.env["AIRWAVE_TEST_REQUIRE_ALL"];
if (missing) console.error(`SKIPPED: there is no Chromium at ${executablePath}: say where it is in AIRWAVE_TEST_CHROMIUM`);

/** What one tab has heard: events by their data, and what else it was told. */
class Tab {
  readonly page: Page;
  constructor(page: Page) {
    this.page = page;
  }

  static async open(context: BrowserContext, server: Server, channels: string[] = ["both/a"], options: object = {}): Promise<Tab> {
    const page = await context.newPage();
    await page.goto(`${server.url}/healthz`);
    const tab = new Tab(page);
    await page.addScriptTag({ type: "module", content: 'import { connect } from "/client.js"; window.connect = connect;' });
    await page.waitForFunction("window.connect");
    await page.evaluate(
      ([names, options]) => {
        const { connect } = window as unknown as { connect: (url: undefined, options: object) => any };
        const heard: Record<string, unknown[]> = {};
        const airwave = connect(undefined, { share: true, backoff: [50, 500], ...(options as object) });
        const channels: Record<string, unknown> = {};
        for (const name of names as string[]) {
          const channel = (channels[name] = airwave.channel(name));
          const told: unknown[] = (heard[name] = []);
          channel.on("*", (data: unknown, { event }: { event: string }) => told.push(event === "airwave.gap" ? "gap" : data));
          channel.on("end", () => told.push("end"));
        }
        Object.assign(window, { airwave, channels, heard });
      },
      [channels, options] as const,
    );
    for (const name of channels) await tab.is(name, "open");
    return tab;
  }

  // biome-ignore lint: the page's own globals
  in<T>(code: (window: any, ...args: any[]) => T, ...args: unknown[]): Promise<T> {
    return this.page.evaluate(`(${code})(window, ...${JSON.stringify(args)})`) as Promise<T>;
  }

  async is(name: string, state: string): Promise<void> {
    await this.page.waitForFunction(`channels[${JSON.stringify(name)}].state === ${JSON.stringify(state)}`);
  }

  heard(name = "both/a"): Promise<unknown[]> {
    return this.in((window, name) => window.heard[name], name);
  }
}

describe.skipIf(missing)("tabs", () => {
  let browser: Browser;
  beforeAll(async () => {
    browser = await chromium.launch({ executablePath, headless: true, args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"] });
  });
  afterAll(() => browser?.close());

  async function context(): Promise<BrowserContext> {
    const made = await browser.newContext();
    onTestFinished(() => made.close());
    return made;
  }

  const count = (server: Server): Promise<number> => server.sessions("websocket");
  const says = (data: unknown) => ({ channel: "both/a", event: "n", data });

  test("share one connection, and go on without a loss when the one that has it is closed", async () => {
    const server = await Server.start();
    const tabs: Tab[] = [];
    const all = await context();
    for (let i = 0; i < 3; i += 1) tabs.push(await Tab.open(all, server));
    await server.publish(says(0));
    for (const tab of tabs) await expect.poll(() => tab.heard()).toEqual([0]);
    await expect.poll(() => count(server)).toBe(1);

    // The first tab leads. What is published while it goes must reach the others.
    let n = 1;
    let going = true;
    const publishing = (async () => {
      while (going) await server.publish(says(n++));
    })();
    await tabs[0]!.page.close({ runBeforeUnload: false });
    for (const tab of tabs.slice(1)) await tab.is("both/a", "open");
    const published = n;
    await expect.poll(() => n).toBeGreaterThan(published + 20);
    going = false;
    await publishing;
    const expected = Array.from({ length: n }, (_, i) => i);
    for (const tab of tabs.slice(1)) await expect.poll(() => tab.heard()).toEqual(expected);
    await expect.poll(() => count(server)).toBe(1);
  });

  test("each tab sends and is answered, whichever tab leads", async () => {
    const server = await Server.start();
    const all = await context();
    const [first, second] = [await Tab.open(all, server), await Tab.open(all, server)];
    const send = (tab: Tab, n: number): Promise<unknown> => tab.in((window, n) => window.channels["both/a"].send("n", n, { key: `k${n}`, attributes: { tab: `t${n}` } }), n);
    await second!.in((window) => {
      window.said = [];
      window.channels["both/a"].on("n", (_: unknown, { key, attributes }: { key: string; attributes: object }) => window.said.push([key, attributes]));
    });
    expect(await send(second!, 1)).toBe(null);
    await first!.page.close();
    expect(await send(second!, 2)).toBe(null);
    await expect.poll(() => second!.heard()).toEqual([1, 2]);
    // The leader passes on what an event says beside its data, in both directions.
    expect(await second!.in((window) => window.said)).toEqual([["k1", { tab: "t1" }], ["k2", { tab: "t2" }]]);
    const refused = await second!.in(async (window) => {
      const channel = window.airwave.channel("silent/x");
      return channel.send("n", 1).catch((error: { code: string }) => error.code);
    });
    expect(refused).toBe("forbidden");
  });

  test("a tab that comes later gets its replay, and then shares", async () => {
    const server = await Server.start();
    await server.publish([1, 2, 3].map((data) => ({ channel: "replayed/a", event: "n", data })));
    const all = await context();
    const first = await Tab.open(all, server, ["replayed/a"]);
    await expect.poll(() => first.heard("replayed/a")).toEqual([1, 2, 3]);
    const second = await Tab.open(all, server, ["replayed/a"]);
    await expect.poll(() => second.heard("replayed/a")).toEqual([1, 2, 3]);
    await expect.poll(() => count(server)).toBe(1);
    await server.publish({ channel: "replayed/a", event: "n", data: 4, end: true });
    for (const tab of [first, second]) {
      await expect.poll(() => tab.heard("replayed/a")).toEqual([1, 2, 3, 4, "end"]);
      await tab.is("replayed/a", "ended");
    }
  });

  test("a channel is let go with the last tab that hears it", async () => {
    const server = await Server.start();
    const all = await context();
    const first = await Tab.open(all, server, ["both/a"]);
    const second = await Tab.open(all, server, ["both/b"], { transport: "sse" });
    await expect.poll(() => count(server)).toBe(1);
    const listeners = async (): Promise<number> => {
      const state = (await (await fetch(`${server.url}/live/state`)).json()) as { channels: { name: string; listeners: Record<string, number> }[] };
      return Object.values(state.channels.find(({ name }) => name === "both/b")?.listeners ?? {}).reduce((a, b) => a + b, 0);
    };
    await expect.poll(listeners).toBe(1);
    await second.page.close();
    await expect.poll(listeners).toBe(0);
    expect(await first.in((window) => window.channels["both/a"].state)).toBe("open");
  });

  test("without Web Locks each tab has its own", async () => {
    const server = await Server.start();
    const all = await context();
    await all.addInitScript(() => Object.defineProperty(navigator, "locks", { value: undefined }));
    const tabs = [await Tab.open(all, server), await Tab.open(all, server)];
    await server.publish(says(1));
    for (const tab of tabs) await expect.poll(() => tab.heard()).toEqual([1]);
    expect(await count(server)).toBe(2);
  });

  test("survive the server's death together", async () => {
    const server = await Server.start();
    const all = await context();
    const tabs = [await Tab.open(all, server), await Tab.open(all, server)];
    await server.publish(says(1));
    for (const tab of tabs) await expect.poll(() => tab.heard()).toEqual([1]);
    await server.kill();
    for (const tab of tabs) await tab.is("both/a", "waiting");
    await server.restart();
    for (const tab of tabs) await expect.poll(() => tab.heard()).toEqual([1, "gap"]);
    await server.publish(says(2));
    for (const tab of tabs) await expect.poll(() => tab.heard()).toEqual([1, "gap", 2]);
  });
});
