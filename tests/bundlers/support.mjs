// The package as it would be published, an application of its own for each bundler, and a site for
// what was built.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { createServer } from "node:http";
import { cp, mkdir, readFile, rm } from "node:fs/promises";
import { extname, join, resolve } from "node:path";
import { promisify } from "node:util";
import { launch, withoutChromium } from "../browser/support/browser.mjs";
import { config, Server } from "../browser/support/server.mjs";

const run = promisify(execFile);
const here = import.meta.dirname;
const client = resolve(here, "../../clients/typescript");

/** Why these tests cannot run, or false. */
export const skip = withoutChromium();

/** Runs a program of `modules` to its end. A failure shows what it said. */
export async function tool(cwd, name, args, modules = here) {
  const env = { ...process.env, NEXT_TELEMETRY_DISABLED: "1", CI: "true" };
  try {
    const { stdout, stderr } = await run(join(modules, "node_modules/.bin", name), args, { cwd, env, maxBuffer: 1 << 24 });
    return stdout + stderr;
  } catch (error) {
    throw new Error(`${name} ${args.join(" ")} failed: ${error.stdout}${error.stderr}`);
  }
}

/**
 * A copy of the application in the folder `from`, with the packed client among its modules. Below
 * `modules`, where the bundler is found.
 */
export async function application(t, from, modules = here) {
  const dir = join(modules, ".work", `${from}-${process.pid}-${Math.random().toString(36).slice(2)}`);
  t.after(() => rm(dir, { recursive: true, force: true }));
  await mkdir(join(dir, "node_modules/airwave-client"), { recursive: true });
  await cp(join(here, from), dir, { recursive: true });
  const { stdout } = await run("npm", ["pack", "--json", "--pack-destination", dir], { cwd: client });
  const [{ filename }] = JSON.parse(stdout);
  await run("tar", ["-xzf", join(dir, filename), "-C", join(dir, "node_modules/airwave-client"), "--strip-components=1"]);
  return dir;
}

const TYPES = { ".html": "text/html", ".js": "text/javascript", ".css": "text/css" };

/** Serves a folder on an origin of its own. */
async function site(t, dir) {
  const server = createServer(async (request, response) => {
    const path = new URL(request.url, "http://x").pathname;
    const body = await readFile(join(dir, path.endsWith("/") ? `${path}index.html` : path)).catch(() => undefined);
    response.writeHead(body ? 200 : 404, { "content-type": TYPES[extname(path) || ".html"] ?? "application/octet-stream" });
    response.end(body);
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  t.after(() => server.close());
  return `http://127.0.0.1:${server.address().port}`;
}

/**
 * Opens what was built into `dir` in Chromium; the page must hear an event of a server of another
 * origin.
 */
export async function hears(t, dir, { entry = "/", more = [""] } = {}) {
  const origin = await site(t, dir);
  const server = await Server.start(t, { toml: config(`origins = ["${origin}"]`) });
  const browser = await launch();
  t.after(() => browser.close());
  for (const options of more) {
    const page = await browser.newPage();
    const faults = [];
    page.on("pageerror", (error) => faults.push(String(error)));
    page.on("requestfailed", (request) => faults.push(`${request.url()} ${request.failure()?.errorText}`));
    await page.goto(`${origin}${entry}?server=${encodeURIComponent(server.url)}${options}`);
    const shows = (text) =>
      page.waitForFunction((text) => document.getElementById("heard")?.textContent.includes(text), text).catch(async (error) => {
        throw new Error(`${error.message}: the page shows ${await page.content()}, and said ${faults}`);
      });
    await shows("open");
    await server.publish({ channel: "both/bundled", event: "n", data: 7 });
    await shows("n 7");
    assert.deepEqual(faults, []);
    if (!dir.endsWith("out")) assert.match(await page.textContent("#heard"), /give the server's URL/);
    await page.close();
  }
}
