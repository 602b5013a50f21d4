// The real `airwave` binary, started for one test and ended by its pid. As
// tests/browser/support/server.mjs, and a broker of its own if asked.

import { type ChildProcess, spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { createInterface } from "node:readline";
import { onTestFinished } from "vitest";

const root = resolve(import.meta.dirname, "../../../..");
const targetDir = resolve(root, process.env["CARGO_TARGET_DIR"] ?? "target");
const binary = process.env["AIRWAVE_BIN"] ?? join(targetDir, "debug", "airwave");
/** An example of the repository, beside that binary. */
export const example = (name: string): string => join(dirname(binary), "examples", name);
const redisServer = process.env["AIRWAVE_TEST_REDIS_SERVER"] ?? "/usr/bin/redis-server";

/** Rules for every use that the tests make of channels. `more` stands before them. */
export function config(more = ""): string {
  const channels = (match: string, transports: string, rest = ""): string => `
[[channels]]
match = "${match}/{id}"
transport = [${transports}]
history = { events = 10000, age = "1h" }
send = "publish"
${rest}
`;
  return `${more}
${channels("both", '"websocket", "sse"')}
${channels("sse-first", '"sse", "websocket"')}
${channels("websocket-only", '"websocket"')}
${channels("sse-only", '"sse"')}
${channels("replayed", '"websocket", "sse"', 'replay = "all"')}
[[channels]]
match = "silent/{id}"
transport = ["websocket", "sse"]
send = "refuse"
`;
}

// The server reads AIRWAVE_* variables as settings: a developer's own must not change what is
// tested.
const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("AIRWAVE_") || name.startsWith("AIRWAVE_TEST_")));

export class Server {
  url = "";
  port = 0;
  log = "";
  #program: string;
  #args: string[];
  #child: ChildProcess | undefined;
  #exited: Promise<void> = Promise.resolve();

  constructor(program: string, args: string[]) {
    this.#program = program;
    this.#args = args;
  }

  /** On a free port, until the test ends. */
  static async start(toml: string = config()): Promise<Server> {
    const dir = await mkdtemp(join(tmpdir(), "airwave-client-"));
    const file = join(dir, "airwave.toml");
    await writeFile(file, toml);
    onTestFinished(() => rm(dir, { recursive: true, force: true }));
    return Server.of(binary, ["serve", "--config", file, "--listen"]);
  }

  /** Another program that takes its address as its last argument and says where it listens. */
  static async of(program: string, args: string[]): Promise<Server> {
    if (!existsSync(program)) throw new Error(`there is no ${program}: build it first (\`cargo build --bin airwave\`, \`cargo build --features typescript --example typed\`), or say where it is in AIRWAVE_BIN`);
    const server = new Server(program, args);
    onTestFinished(() => server.kill());
    await server.#run(0);
    return server;
  }

  async #run(port: number): Promise<void> {
    const child = spawn(this.#program, [...this.#args, `127.0.0.1:${port}`], { env, stdio: ["ignore", "pipe", "pipe"] });
    this.#child = child;
    child.stderr.setEncoding("utf8").on("data", (text: string) => (this.log += text));
    this.#exited = new Promise((done) => child.once("close", () => done()));
    const line = await new Promise<string>((done, fail) => {
      createInterface({ input: child.stdout }).once("line", done);
      child.once("error", fail);
      void this.#exited.then(() => fail(new Error(`the server ended at once; its log: ${this.log}`)));
    });
    const found = /(http:\/\/127\.0\.0\.1:(\d+))/.exec(line);
    if (!found) throw new Error(`the server's first line was: ${line}`);
    this.url = found[1] as string;
    this.port = Number(found[2]);
  }

  /** The same server again, where it was. */
  async restart(): Promise<void> {
    await this.#run(this.port);
  }

  /** SIGKILL: no goodbye to anybody. */
  async kill(): Promise<void> {
    this.#child?.kill("SIGKILL");
    await this.#exited;
  }

  /** SIGTERM: the server drains. */
  async drain(): Promise<void> {
    this.#child?.kill("SIGTERM");
    await this.#exited;
  }

  /** SIGSTOP and SIGCONT: it stands still, and its connections stay open. */
  freeze(frozen: boolean): void {
    this.#child?.kill(frozen ? "SIGSTOP" : "SIGCONT");
  }

  async publish(publication: unknown): Promise<{ cursor: string }> {
    const response = await fetch(`${this.url}/publish`, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(publication) });
    const body = await response.text();
    if (response.status !== 200) throw new Error(`publish answered ${response.status}: ${body}`);
    return JSON.parse(body) as { cursor: string };
  }

  /** How many sessions of a transport are open, by the server's own count. */
  async sessions(transport: string): Promise<number> {
    const text = await (await fetch(`${this.url}/metrics`)).text();
    return Number(new RegExp(`^airwave_connections\\{[^}]*"${transport}"[^}]*\\} (\\d+)`, "m").exec(text)?.[1] ?? 0);
  }
}

/**
 * A Redis of this test's own, which keeps its data while the server in front of it dies. Gives its
 * URL.
 */
export async function redis(): Promise<string> {
  if (!existsSync(redisServer)) throw new Error(`there is no ${redisServer}: say where it is in AIRWAVE_TEST_REDIS_SERVER`);
  const dir = await mkdtemp(join(tmpdir(), "airwave-client-redis-"));
  const port = await freePort();
  const child = spawn(redisServer, ["--port", String(port), "--bind", "127.0.0.1", "--save", "", "--dir", dir, "--maxmemory-policy", "noeviction"], { stdio: ["ignore", "pipe", "inherit"] });
  const exited = new Promise((done) => child.once("close", done));
  onTestFinished(async () => {
    child.kill("SIGKILL");
    await exited;
    await rm(dir, { recursive: true, force: true });
  });
  await new Promise<void>((done, fail) => {
    createInterface({ input: child.stdout }).on("line", (line) => {
      if (line.includes("Ready to accept connections")) done();
    });
    void exited.then(() => fail(new Error("redis-server ended at once")));
  });
  return `redis://127.0.0.1:${port}`;
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
  const { port } = server.address() as { port: number };
  await new Promise((done) => server.close(done));
  return port;
}
