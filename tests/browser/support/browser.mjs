// Chromium, and listeners inside a page of it: the browser's own EventSource and WebSocket, nothing
// in between.

import { existsSync } from "node:fs";
import { chromium } from "playwright-core";
import { Collector } from "./collector.mjs";

const executablePath = process.env.AIRWAVE_TEST_CHROMIUM ?? "/usr/bin/chromium";

/**
 * For the `skip` option of a test: why it cannot run, or false. Where everything is required, it
 * must run.
 */
export function withoutChromium() {
  if (existsSync(executablePath)) return false;
  const why = `there is no Chromium at ${executablePath}: say where it is in AIRWAVE_TEST_CHROMIUM`;
  if (process.env.AIRWAVE_TEST_REQUIRE_ALL) throw new Error(why);
  console.error(`SKIPPED: ${why}`);
  return why;
}

export function launch() {
  return chromium.launch({
    executablePath,
    headless: true,
    args: [
      "--no-sandbox",
      "--disable-gpu",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
    ],
  });
}

/**
 * A page at `url` (any document of the origin that the test wants to be) with listeners that tell
 * this process what they hear. `options`: of the browser's context.
 */
export async function pageAt(t, browser, url, options) {
  const context = await browser.newContext(options);
  t.after(() => context.close());
  const page = await context.newPage();
  const collectors = new Map();
  const requests = [];
  page.on("request", (request) => requests.push(request));
  await page.exposeFunction("tell", (name, entry) => collectors.get(name).push(entry));
  await page.addInitScript(() => {
    window.listeners = {};
    window.hearSse = (name, address, events, options) => {
      const source = new EventSource(address, options);
      window.listeners[name] = source;
      source.onopen = () => tell(name, { type: "open" });
      source.onerror = () => tell(name, { type: "error", readyState: source.readyState });
      const hear = ({ type, lastEventId, data }) => tell(name, { type, id: lastEventId, data });
      for (const event of [...events, "airwave.subscribed", "airwave.gap", "airwave.end", "airwave.stale", "airwave.error", "airwave.heartbeat"]) {
        source.addEventListener(event, hear);
      }
    };
    window.hearSocket = (name, address) => {
      const socket = new WebSocket(address);
      socket.binaryType = "arraybuffer";
      window.listeners[name] = socket;
      socket.onopen = () => tell(name, { type: "open" });
      socket.onerror = () => tell(name, { type: "error", readyState: socket.readyState });
      socket.onclose = ({ code, reason, wasClean }) => tell(name, { type: "close", code, reason, wasClean });
      socket.onmessage = ({ data }) =>
        tell(name, typeof data === "string" ? { type: "text", data } : { type: "binary", bytes: Array.from(new Uint8Array(data)) });
    };
  });
  await page.goto(url);

  const collector = (name) => {
    const made = new Collector(name);
    collectors.set(name, made);
    return made;
  };
  return {
    page,
    /** An EventSource on `address` that listens to `events` and to all control events. */
    async sse(name, address, events, options) {
      const made = collector(name);
      await page.evaluate(([n, a, e, o]) => window.hearSse(n, a, e, o), [name, address, events, options]);
      return made;
    },
    /** A WebSocket on `address`. */
    async socket(name, address) {
      const made = collector(name);
      await page.evaluate(([n, a]) => window.hearSocket(n, a), [name, address]);
      return made;
    },
    send: (name, text) => page.evaluate(([n, s]) => window.listeners[n].send(s), [name, text]),
    close: (name) => page.evaluate((n) => window.listeners[n].close(), name),
    readyState: (name) => page.evaluate((n) => window.listeners[n].readyState, name),
    /**
     * The statuses with which requests to exactly this URL were answered, in order; null for one
     * without an answer.
     */
    async statuses(address) {
      const mine = requests.filter((request) => request.url() === address);
      return Promise.all(mine.map(async (request) => (await request.response())?.status() ?? null));
    },
  };
}

/** The WebSocket address of an HTTP one. */
export const socketAddress = (address) => address.replace(/^http/, "ws");

/** Entries that are events of a channel, not of the line. */
export const isEvent = ({ type }) => !type.startsWith("airwave.") && type !== "open" && type !== "error";

/** Frames of a socket's collector: the JSON objects among its text messages. */
export const frames = (entries) => entries.filter(({ type }) => type === "text").map(({ data }) => JSON.parse(data));
