// The client in Firefox: in a page and in a worker, over both transports, cut off and resumed.

import { existsSync } from "node:fs";
import puppeteer from "puppeteer-core";
import { describe, expect, onTestFinished, test } from "vitest";
import { inPage, type StageRequest, stage, worker } from "../support/stage.js";

const executablePath = process.env["AIRWAVE_TEST_FIREFOX"] ?? "/usr/bin/firefox-esr";

describe("the client in Firefox", () => {
  test("is tried in a real one", () => expect(existsSync(executablePath), `there is no Firefox at ${executablePath}: say where it is in AIRWAVE_TEST_FIREFOX`).toBe(true));

  for (const where of ["page", "Worker"] as const) {
    test(`in a ${where}`, async () => {
      const { url, handle } = await stage();
      const browser = await puppeteer.launch({ browser: "firefox", executablePath, headless: true });
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
      if (where === "page") await page.addScriptTag({ type: "module", content: inPage(url, "firefox-page") });
      else
        await page.evaluate((script) => {
          const told = (window as unknown as { told: (said: unknown) => void }).told;
          const worker = new Worker(URL.createObjectURL(new Blob([script], { type: "text/javascript" })), { type: "module" });
          worker.onmessage = ({ data }: MessageEvent) => told(data);
          worker.onerror = (event) => told({ failed: `the worker did not start: ${event.message}` });
        }, worker(url, "firefox-worker"));
      expect(await over).toEqual({ done: true });
      await handling;
    });
  }
});
