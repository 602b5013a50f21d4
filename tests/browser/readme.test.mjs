// The pages of README and the Python of docs/using.md, cut out of the documents and run as they
// stand.

import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { createInterface } from "node:readline";
import { test } from "node:test";
import { launch, withoutChromium } from "./support/browser.mjs";
import { Collector } from "./support/collector.mjs";
import { otherSite } from "./support/lines.mjs";
import { put } from "./support/proxies.mjs";
import { Server } from "./support/server.mjs";

const root = resolve(import.meta.dirname, "../..");

/** The blocks of a document that are marked as `kind`. */
function blocks(document, kind) {
  const text = readFileSync(join(root, document), "utf8");
  return [...text.matchAll(/^```(\S*)\n(.*?)^```$/gms)].filter(([, of]) => of === kind).map(([, , block]) => block);
}

/** A server with README's own airwave.toml, whose page is that of `site`. */
function documentedServer(t, site) {
  const [toml] = blocks("README.md", "toml").filter((block) => block.startsWith("# airwave.toml"));
  return Server.start(t, { toml: put(toml, [["http://localhost:5173", site]]) });
}

test("README's pages hear and send, from an origin of their own", { skip: withoutChromium() }, async (t) => {
  const site = await otherSite(t);
  const server = await documentedServer(t, site);
  await server.publish({ channel: "orders/abc123", event: "order-update", data: { status: "shipped" } });
  const browser = await launch();
  t.after(() => browser.close());
  const scripts = blocks("README.md", "js");
  assert.equal(scripts.length, 3);
  for (const [script, part] of [
    [scripts[0], '"shipped"'],
    [scripts[1], '"shipped"'],
    [scripts[2], '"said"'],
  ]) {
    const page = await browser.newPage();
    const said = new Collector("page");
    page.on("console", async (message) => {
      const values = await Promise.all(message.args().map((value) => value.jsonValue()));
      said.push(JSON.stringify(values));
    });
    page.on("pageerror", (error) => said.push(`thrown: ${error}`));
    await page.goto(site);
    await page.addScriptTag({ type: "module", content: script.replaceAll("127.0.0.1:8080", `127.0.0.1:${server.port}`) });
    await said.first((text) => text.includes(part), `${part} of\n${script}`);
    await page.close();
  }
});

test("a page whose origin is not allowed is told of in the log, in README's words", { skip: withoutChromium() }, async (t) => {
  const [toml] = blocks("README.md", "toml").filter((block) => block.startsWith("# airwave.toml"));
  const [, words] = /what to write:\s`([^`]+)`/.exec(readFileSync(join(root, "README.md"), "utf8"));
  const server = await Server.start(t, { toml });
  const logged = new Collector("log");
  createInterface({ input: server.child.stderr }).on("line", (line) => logged.push(line));
  const browser = await launch();
  t.after(() => browser.close());
  const page = await browser.newPage();
  const site = await otherSite(t);
  await page.goto(site);
  await page.addScriptTag({ type: "module", content: blocks("README.md", "js")[1].replaceAll("127.0.0.1:8080", `127.0.0.1:${server.port}`) });
  await logged.first((line) => line.includes(words.replaceAll("\n", " ")) && line.includes(site), "the warning");
});

const python = spawnSync("python3", ["--version"]).status === 0;

test("the Python listener hears, comes back and is told of a loss", { skip: !python && "there is no python3" }, async (t) => {
  const server = await documentedServer(t, "http://localhost:5173");
  const dir = await mkdtemp(join(tmpdir(), "airwave-python-"));
  t.after(() => rm(dir, { recursive: true, force: true }));
  const [code] = blocks("docs/using.md", "python").filter((block) => block.startsWith("# listen.py"));
  await writeFile(join(dir, "listen.py"), put(code, [["127.0.0.1:8080", `127.0.0.1:${server.port}`]]));
  const child = spawn("python3", [join(dir, "listen.py")], { stdio: ["ignore", "pipe", "inherit"] });
  t.after(() => child.kill("SIGKILL"));
  const exited = new Promise((done) => child.once("close", done));
  const heard = new Collector("python");
  createInterface({ input: child.stdout }).on("line", (line) => heard.push(line));

  const update = (status) => server.publish({ channel: "orders/abc123", event: "order-update", data: { status } });
  await update("packed");
  await heard.first((line) => line.includes("packed"), "the first event");
  // The memory broker is empty after this, and says so.
  await server.drain();
  await server.restart();
  await update("shipped");
  await heard.first((line) => line.startsWith("events were lost"), "the gap");
  await heard.first((line) => line.includes("shipped"), "the event after it");
  await server.publish({ channel: "orders/abc123", end: true });
  assert.equal(await exited, 0);
});
