// The real `airwave` binary, started for one test and ended by its pid.

import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const root = resolve(dirname(fileURLToPath(import.meta.url)), "../../..");
const targetDir = resolve(root, process.env.CARGO_TARGET_DIR ?? "target");
export const binary = process.env.AIRWAVE_BIN ?? join(targetDir, "debug", "airwave");
export const screenshots = process.env.AIRWAVE_TEST_SCREENSHOTS ?? join(targetDir, "screenshots");

/** Rules for every use that the tests make of channels. `more` are lines that stand before them. */
export function config(more = "") {
  return `
${more}

[[channels]]
match = "both/{id}"
transport = ["sse", "websocket"]
history = { events = 1000, age = "1h" }
replay = "none"
send = "publish"

[[channels]]
match = "sse-only/{id}"
transport = "sse"
history = { events = 1000, age = "1h" }

[[channels]]
match = "websocket-only/{id}"
transport = "websocket"
send = "publish"

[[channels]]
match = "forgetful/{id}"
transport = ["sse", "websocket"]
history = { events = 2, age = "1h" }
`;
}

// The server reads AIRWAVE_* variables as settings: a developer's own must not change what is
// tested. Those of tests stay.
const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("AIRWAVE_") || name.startsWith("AIRWAVE_TEST_")));

export class Server {
  /**
   * Starts the server on a free port (or, for a restart, on `port`) and stops it when the test
   * ends. `toml: null`: without a configuration file, in a folder of its own, which `prepare({ t,
   * dir })` may fill; the `variables` that it returns are added to the environment.
   */
  static async start(t, { toml = config(), port = 0, prepare } = {}) {
    if (!existsSync(binary)) throw new Error(`there is no ${binary}: run \`cargo build --bin airwave\` first, or say where it is in AIRWAVE_BIN`);
    const dir = await mkdtemp(join(tmpdir(), "airwave-browser-"));
    const file = toml === null ? null : join(dir, "airwave.toml");
    if (file) await writeFile(file, toml);
    const server = new Server(file);
    server.dir = dir;
    server.variables = {};
    t.after(async () => {
      await server.kill();
      await rm(dir, { recursive: true, force: true });
    });
    Object.assign(server.variables, (await prepare?.({ t, dir }))?.variables);
    await server.#run(port);
    return server;
  }

  constructor(file) {
    this.file = file;
  }

  async #run(port) {
    const child = spawn(binary, ["serve", ...(this.file ? ["--config", this.file] : []), "--listen", `127.0.0.1:${port}`], {
      cwd: this.dir,
      env: { ...env, ...this.variables },
      stdio: ["ignore", "pipe", "pipe"],
    });
    this.child = child;
    this.log = "";
    child.stderr.setEncoding("utf8").on("data", (text) => (this.log += text));
    this.exited = new Promise((done) => child.once("close", (code, signal) => done({ code, signal })));
    const lines = createInterface({ input: child.stdout });
    const line = await new Promise((done, fail) => {
      const timer = setTimeout(() => fail(new Error(`the server said nothing for 30 s; its log: ${this.log}`)), 30_000);
      child.once("error", fail);
      lines.once("line", (text) => {
        clearTimeout(timer);
        done(text);
      });
      this.exited.then(({ code, signal }) => {
        clearTimeout(timer);
        fail(new Error(`the server ended at once (code ${code}, signal ${signal}); its log: ${this.log}`));
      });
    });
    const found = /^airwave listening on (http:\/\/127\.0\.0\.1:(\d+))$/.exec(line);
    if (!found) throw new Error(`the server's first line was: ${line}`);
    this.url = found[1];
    this.port = Number(found[2]);
  }

  /** The same server again, where it was: what a client that comes back meets. */
  async restart() {
    await this.#run(this.port);
  }

  /** SIGKILL: no goodbye to anybody. */
  async kill() {
    if (!this.child || this.child.exitCode !== null || this.child.signalCode !== null) return;
    this.child.kill("SIGKILL");
    await this.exited;
  }

  /** SIGTERM: the server drains. Resolves with its exit code and signal. */
  async drain() {
    this.child.kill("SIGTERM");
    return this.exited;
  }

  /**
   * Publishes one publication or an array of them and returns the answer, which must be a success.
   */
  async publish(publication) {
    const response = await fetch(`${this.url}/publish`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(publication),
    });
    const body = await response.text();
    if (response.status !== 200) throw new Error(`publish answered ${response.status}: ${body}`);
    return JSON.parse(body);
  }

  /** Recent events of a channel, as JSON. */
  async recent(channel) {
    const response = await fetch(`${this.url}/channels/${channel}`, { headers: { accept: "application/json" } });
    if (response.status !== 200) throw new Error(`the channel answered ${response.status}: ${await response.text()}`);
    return response.json();
  }
}
