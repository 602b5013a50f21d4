// The same script in every runtime that the client is said to run in: test/support/conformance.mjs.

import { type ChildProcess, spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { join, resolve } from "node:path";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";
import { describe, expect, onTestFinished, test } from "vitest";
import { type StageRequest, stage, worker } from "./support/stage.js";

const root = resolve(import.meta.dirname, "..");
const support = join(import.meta.dirname, "support");
const executablePath = process.env["AIRWAVE_TEST_CHROMIUM"] ?? "/usr/bin/chromium";
const missing = !existsSync(executablePath) && !process.env["AIRWAVE_TEST_REQUIRE_ALL"];
if (missing) console.error(`SKIPPED: there is no Chromium at ${executablePath}: say where it is in AIRWAVE_TEST_CHROMIUM`);

describe("the client", () => {
  for (const [name, program, args] of [
    ["node", process.execPath, []],
    ["deno", join(root, "node_modules/.bin/deno"), ["run", "--no-prompt", "--no-lock", "--allow-net=127.0.0.1"]],
    ["bun", join(root, "node_modules/.bin/bun"), ["run"]],
  ] as const) {
    test(`in ${name}`, async () => {
      const { url, handle } = await stage();
      const child: ChildProcess = spawn(program, [...args, join(support, "runtime.mjs"), url, name], { cwd: root, stdio: ["ignore", "pipe", "pipe"] });
      const exited = new Promise<number | null>((done) => child.once("close", done));
      onTestFinished(async () => {
        child.kill("SIGKILL");
        await exited;
      });
      let errors = "";
      child.stderr!.setEncoding("utf8").on("data", (text: string) => (errors += text));
      let over = false;
      let handling = Promise.resolve();
      createInterface({ input: child.stdout! }).on("line", (text) => {
        const said = JSON.parse(text) as StageRequest;
        if (said.done) over = true;
        handling = handling.then(() => handle(said));
      });
      // By itself: nothing of a closed client keeps a process alive.
      expect(await exited, errors).toBe(0);
      await handling;
      expect(over, errors).toBe(true);
    });
  }
});

describe.skipIf(missing)("the client in Chromium", () => {
  for (const kind of ["Worker", "SharedWorker"] as const) {
    test(`in a ${kind}`, async () => {
      const { url, handle } = await stage();
      const browser = await chromium.launch({ executablePath, headless: true, args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"] });
      onTestFinished(() => browser.close());
      const page = await browser.newPage();
      await page.goto(`${url}/healthz`);
      let handling = Promise.resolve();
      let finish: (said: StageRequest) => void;
      const over = new Promise<StageRequest>((done) => (finish = done));
      await page.exposeFunction("told", (said: StageRequest) => {
        if (said.done || said.failed) finish(said);
        handling = handling.then(() => handle(said));
      });
      await page.evaluate(
        ([kind, script]) => {
          const address = URL.createObjectURL(new Blob([script!], { type: "text/javascript" }));
          const options = { type: "module" } as const;
          const told = (window as unknown as { told: (said: unknown) => void }).told;
          const worker = kind === "Worker" ? new Worker(address, options) : new SharedWorker(address, options);
          const port = worker instanceof Worker ? worker : worker.port;
          port.onmessage = ({ data }: MessageEvent) => told(data);
          worker.onerror = (event) => told({ failed: `the worker did not start: ${(event as ErrorEvent).message}` });
        },
        [kind, worker(url, kind)],
      );
      expect(await over).toEqual({ done: true });
      await handling;
    });
  }
});
