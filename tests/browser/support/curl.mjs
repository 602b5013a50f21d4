// curl as a client: a child process, whose event stream is taken apart here, line by line, as
// docs/protocol.md writes it.

import { spawn, spawnSync } from "node:child_process";
import { Collector } from "./collector.mjs";

const curl = process.env.AIRWAVE_TEST_CURL ?? "curl";

/**
 * For the `skip` option of a test: why it cannot run, or false. Where everything is required, it
 * must run.
 */
export function withoutCurl() {
  if (spawnSync(curl, ["--version"]).status === 0) return false;
  const why = "there is no curl: install it, or say where it is in AIRWAVE_TEST_CURL";
  if (process.env.AIRWAVE_TEST_REQUIRE_ALL) throw new Error(why);
  console.error(`SKIPPED: ${why}`);
  return why;
}

/** Runs curl to its end and returns status, headers (lower case) and body of the answer. */
export async function ask(t, ...args) {
  const { head, body, exited } = start(t, args);
  const code = await exited;
  if (code !== 0) throw new Error(`curl ended with ${code}: ${body.text}`);
  return { ...(await head), body: body.text };
}

/**
 * An event stream by curl: `blocks` collects `{id, event, data, retry, comment}` with the fields
 * that each block had, `head` resolves with status and headers, `exited` with curl's exit code once
 * the server has ended the stream.
 */
export function stream(t, ...args) {
  const blocks = new Collector("curl");
  let rest = "";
  const started = start(t, ["-N", "-H", "accept: text/event-stream", ...args], (text) => {
    const pieces = (rest + text).split("\n\n");
    rest = pieces.pop();
    for (const piece of pieces) blocks.push(parse(piece));
  });
  return { blocks, head: started.head, exited: started.exited, stop: started.stop, rest: () => rest };
}

function parse(piece) {
  const block = {};
  for (const line of piece.split("\n")) {
    const [, name, value] = /^([^:]*)(?:: ?(.*))?$/s.exec(line);
    if (name === "") block.comment = value ?? "";
    else if (name === "data" && "data" in block) block.data += `\n${value ?? ""}`;
    else block[name] = value ?? "";
  }
  return block;
}

function start(t, args, onText = () => {}) {
  const child = spawn(curl, ["--silent", "--show-error", "--include", "--max-time", "60", ...args], { stdio: ["ignore", "pipe", "pipe"] });
  const exited = new Promise((done) => child.once("close", (code) => done(code)));
  const stop = async () => {
    if (child.exitCode === null && child.signalCode === null) child.kill("SIGKILL");
    await exited;
  };
  t.after(stop);
  const body = { text: "" };
  let raw = "";
  let seen = false;
  const head = new Promise((done, fail) => {
    child.stderr.setEncoding("utf8").on("data", (text) => (body.text += text));
    child.stdout.setEncoding("utf8").on("data", (text) => {
      if (!seen) {
        raw += text;
        const end = raw.indexOf("\r\n\r\n");
        if (end < 0) return;
        seen = true;
        const [first, ...lines] = raw.slice(0, end).split("\r\n");
        const headers = Object.fromEntries(lines.map((line) => [line.slice(0, line.indexOf(":")).toLowerCase(), line.slice(line.indexOf(":") + 1).trim()]));
        done({ version: first.split(" ")[0], status: Number(first.split(" ")[1]), headers });
        text = raw.slice(end + 4);
      }
      body.text += text;
      onText(text);
    });
    exited.then((code) => fail(new Error(`curl ended with ${code} before any answer: ${body.text}`)));
  });
  head.catch(() => {});
  return { head, body, exited, stop };
}
