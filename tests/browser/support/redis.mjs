// A Redis of one test's own, for servers that share their channels.

import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { freePort } from "./proxies.mjs";

const program = process.env.AIRWAVE_TEST_REDIS_SERVER ?? "/usr/bin/redis-server";

/**
 * For the `skip` option of a test: why it cannot run, or false. Where everything is required, it
 * must run.
 */
export function withoutRedis() {
  if (existsSync(program)) return false;
  const why = `there is no ${program}: install redis-server, or say where it is in AIRWAVE_TEST_REDIS_SERVER`;
  if (process.env.AIRWAVE_TEST_REQUIRE_ALL) throw new Error(why);
  console.error(`SKIPPED: ${why}`);
  return why;
}

/** Starts it and resolves with its URL. It ends with the test. */
export async function redis(t) {
  const dir = await mkdtemp(join(tmpdir(), "airwave-redis-"));
  const port = await freePort();
  const child = spawn(program, ["--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", dir, "--maxmemory-policy", "noeviction"], { stdio: ["ignore", "pipe", "inherit"] });
  const exited = new Promise((done) => child.once("close", done));
  t.after(async () => {
    child.kill("SIGKILL");
    await exited;
    await rm(dir, { recursive: true, force: true });
  });
  await new Promise((done, fail) => {
    createInterface({ input: child.stdout }).on("line", (line) => line.includes("Ready to accept connections") && done());
    void exited.then(() => fail(new Error("redis-server ended at once")));
  });
  return `redis://127.0.0.1:${port}`;
}
