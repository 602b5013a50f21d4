// The real nginx and HAProxy, with the configurations of docs/deploying.md: cut out of the
// document, with ports and files of the test put in.

import { spawn, spawnSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { chmod, mkdtemp, rm, writeFile } from "node:fs/promises";
import net from "node:net";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const nginxProgram = process.env.AIRWAVE_TEST_NGINX ?? "/usr/sbin/nginx";
const haproxyProgram = process.env.AIRWAVE_TEST_HAPROXY ?? "/usr/sbin/haproxy";
const root = resolve(dirname(fileURLToPath(import.meta.url)), "../../..");

/**
 * For the `skip` option of a test: why it cannot run, or false. Where everything is required, it
 * must run.
 */
export function withoutProxies() {
  const missing = [nginxProgram, haproxyProgram, "/etc/nginx/nginx.conf", "/etc/haproxy/haproxy.cfg"].filter((path) => !existsSync(path));
  if (missing.length === 0) return false;
  const why = `there is no ${missing.join(" and no ")}: install Debian's nginx and haproxy, or say where they are in AIRWAVE_TEST_NGINX and AIRWAVE_TEST_HAPROXY`;
  if (process.env.AIRWAVE_TEST_REQUIRE_ALL) throw new Error(why);
  console.error(`SKIPPED: ${why}`);
  return why;
}

const document = readFileSync(join(root, "docs/deploying.md"), "utf8");

/** What the groups of `pattern` find in docs/deploying.md. */
export function documentedWords(pattern) {
  // Where a line breaks says nothing.
  const found = pattern.exec(document.replaceAll(/\s+/g, " "));
  if (!found) throw new Error(`docs/deploying.md has nothing like ${pattern}`);
  return found.slice(1);
}

/**
 * The block of docs/deploying.md, or of another document, that begins with the comment `# PATH`
 * (`// PATH`).
 */
export function documented(path, of = "deploying.md") {
  const text = of === "deploying.md" ? document : readFileSync(join(root, "docs", of), "utf8");
  const found = [...text.matchAll(/^```\w*\n(.*?)^```$/gms)].map(([, block]) => block).filter((block) => block.replace(/^(#|\/\/) /, "").startsWith(path));
  if (found.length !== 1) throw new Error(`docs/${of} has ${found.length} blocks that begin with '# ${path}'`);
  return found[0];
}

/**
 * Puts the test's own values in. Each `[from, to]` must be there: what is not is not what the
 * document shows.
 */
export function put(text, pairs) {
  for (const [from, to] of pairs) {
    if (!text.includes(from)) throw new Error(`'${from}' is not in:\n${text}`);
    text = text.replaceAll(from, to);
  }
  return text;
}

/** A port that is free now. */
export async function freePort() {
  const server = net.createServer();
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  const { port } = server.address();
  await new Promise((done) => server.close(done));
  return port;
}

async function folder(t) {
  const dir = await mkdtemp(join(tmpdir(), "airwave-proxy-"));
  t.after(() => rm(dir, { recursive: true, force: true }));
  await chmod(dir, 0o755);
  return dir;
}

/** Makes a self-signed certificate, its key, and a file with both. */
async function certificate(dir) {
  const [crt, key, pem] = ["crt", "key", "pem"].map((end) => join(dir, `live.example.${end}`));
  const made = spawnSync("openssl", ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=live.example", "-keyout", key, "-out", crt]);
  if (made.status !== 0) throw new Error(`openssl: ${made.stderr}`);
  await writeFile(pem, readFileSync(crt, "utf8") + readFileSync(key, "utf8"));
  return { crt, key, pem };
}

/** Starts a proxy and waits until it takes connections on `port`. It ends with the test. */
async function run(t, program, args, port) {
  // It goes with this process, however that ends: nginx writes over its environment, by which
  // scripts/test.sh finds what is left.
  const child = spawn("setpriv", ["--pdeathsig", "TERM", program, ...args], { stdio: ["ignore", "pipe", "pipe"] });
  let log = "";
  for (const stream of [child.stdout, child.stderr]) stream.setEncoding("utf8").on("data", (text) => (log += text));
  const exited = new Promise((done) => child.once("close", done));
  let over = false;
  void exited.then(() => (over = true));
  t.after(async () => {
    // TERM, not KILL: the one that listens ends its workers.
    child.kill("SIGTERM");
    await exited;
  });
  const taken = () =>
    new Promise((done) => {
      const socket = net.connect(port, "127.0.0.1", () => done(true));
      socket.on("connect", () => socket.destroy()).on("error", () => done(false));
    });
  for (let tries = 0; !(await taken()); tries += 1) {
    if (over || tries > 1000) throw new Error(`${program} does not take connections: ${log}`);
    await new Promise((done) => setTimeout(done, 20));
  }
  return () => log;
}

/**
 * Debian's nginx.conf with `site` as its one site. `site` may be text or a function of the port to
 * listen on; `http`: lines for its http section. Resolves with the port.
 */
async function nginxWith(t, dir, site, http = "") {
  const port = await freePort();
  const file = join(dir, "site.conf");
  await writeFile(file, site(port));
  // What needs root stays out, and what other sites this machine has. Without root nginx cannot
  // write where Debian has its temporary files.
  const temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map((of) => `${of}_temp_path ${dir}/${of};`).join("\n");
  const main = readFileSync("/etc/nginx/nginx.conf", "utf8")
    .split("\n")
    .filter((line) => !/^\s*(pid|error_log|access_log|include \/etc\/nginx\/(modules-enabled|conf\.d|sites-enabled)\/)/.test(line))
    .join("\n")
    .replace(/^http \{$/m, `pid ${dir}/nginx.pid;\nerror_log stderr warn;\nhttp {\naccess_log off;\n${process.getuid() === 0 ? "" : temporary}\n${http}\ninclude ${file};`);
  if (!main.includes(file)) throw new Error("Debian's nginx.conf has no 'http {'");
  await writeFile(join(dir, "nginx.conf"), main);
  await run(t, nginxProgram, ["-c", join(dir, "nginx.conf"), "-e", "stderr", "-g", "daemon off;"], port);
  return port;
}

/**
 * nginx as documented, with TLS. `others`: more nodes; `http`: more lines for the http section;
 * `edit`: pairs for `put`.
 */
export async function nginx(t, server, { others = [], http = "", edit = [] } = {}) {
  const dir = await folder(t);
  const { crt, key } = await certificate(dir);
  const site = (port) =>
    put(documented("/etc/nginx/conf.d/airwave.conf"), [
      ["server 127.0.0.1:8080 max_fails=0;", [server, ...others].map(({ port }) => `server 127.0.0.1:${port} max_fails=0;`).join(" ")],
      ["listen 443 ssl", `listen 127.0.0.1:${port} ssl`],
      ["/etc/nginx/live.example.crt", crt],
      ["/etc/nginx/live.example.key", key],
      ...edit,
    ]);
  return { name: "nginx", url: `https://127.0.0.1:${await nginxWith(t, dir, site, http)}` };
}

/**
 * nginx as docs/who-may-listen.md has it: it asks at `askPort` before it passes a request on. With
 * TLS.
 */
export async function askingNginx(t, server, askPort) {
  const dir = await folder(t);
  const { crt, key } = await certificate(dir);
  const site = (port) =>
    put(documented("/etc/nginx/conf.d/airwave-asked.conf", "who-may-listen.md"), [
      ["server 127.0.0.1:8080 max_fails=0;", `server 127.0.0.1:${server.port} max_fails=0;`],
      ["127.0.0.1:3000", `127.0.0.1:${askPort}`],
      ["listen 443 ssl", `listen 127.0.0.1:${port} ssl`],
      ["/etc/nginx/live.example.crt", crt],
      ["/etc/nginx/live.example.key", key],
    ]);
  return { name: "nginx that asks", url: `https://127.0.0.1:${await nginxWith(t, dir, site)}` };
}

/** nginx with a plain `proxy_pass` and nothing else; `more` are lines beside it. Without TLS. */
export async function plainNginx(t, server, more = "") {
  const dir = await folder(t);
  const [line] = documentedWords(/A plain `(proxy_pass [^`]+)`/);
  const site = (port) => `server { listen 127.0.0.1:${port}; location / { ${put(line, [["8080", server.port]])}\n${more}\n} }`;
  return { name: "plain nginx", url: `http://127.0.0.1:${await nginxWith(t, dir, site)}` };
}

/**
 * HAProxy as documented, behind the defaults of Debian's file. `others`: more nodes; `edit`: pairs
 * for `put`, in all of it.
 */
export async function haproxy(t, server, { others = [], edit = [] } = {}) {
  const dir = await folder(t);
  const { pem } = await certificate(dir);
  const port = await freePort();
  // What needs root, or another machine's folders, stays out.
  const debian = readFileSync("/etc/haproxy/haproxy.cfg", "utf8")
    .split("\n")
    .filter((line) => !/^\s*(log\s|chroot|stats|user|group|daemon)/.test(line))
    .join("\n");
  const ours = put(documented("/etc/haproxy/haproxy.cfg"), [
    ["bind :443", `bind 127.0.0.1:${port}`],
    ["/etc/haproxy/live.example.pem", pem],
    ["server node1 127.0.0.1:8080 check", [server, ...others].map(({ port }, i) => `server node${i + 1} 127.0.0.1:${port} check`).join("\n    ")],
  ]);
  await writeFile(join(dir, "haproxy.cfg"), put(`${debian}\n${ours}`, edit));
  await run(t, haproxyProgram, ["-db", "-f", join(dir, "haproxy.cfg")], port);
  return { name: "haproxy", url: `https://127.0.0.1:${port}` };
}
