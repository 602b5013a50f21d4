// dist/ is committed, because the server carries it, and building the server needs cargo alone. It
// must never be older than its source.

import { execFileSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { gzipSync } from "node:zlib";
import { expect, test } from "vitest";

const root = resolve(import.meta.dirname, "..");
const read = (dir: string): Record<string, string> => Object.fromEntries(readdirSync(dir).sort().map((name) => [name, readFileSync(join(dir, name), "utf8")]));

test("the committed build is what the source builds", () => {
  const dir = mkdtempSync(join(tmpdir(), "airwave-client-dist-"));
  try {
    execFileSync(process.execPath, [join(root, "node_modules/tsdown/dist/run.mjs"), "--out-dir", dir], { cwd: root, stdio: "pipe" });
    const [committed, built] = [read(join(root, "dist")), read(dir)];
    expect(Object.keys(committed)).toEqual(Object.keys(built));
    // One by one, because a difference of minified files is not to be shown.
    for (const name of Object.keys(built)) expect(committed[name] === built[name], `dist/${name} is not what src builds: npm run build`).toBe(true);
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
});

test("the core stays within 10 kB, gzipped", () => {
  expect(gzipSync(readFileSync(join(root, "dist/client.js"))).length).toBeLessThanOrEqual(10_000);
});

test("only the server's own module knows the place that it was loaded from, so no bundler sees an asset", () => {
  const names = readdirSync(join(root, "dist")).filter((name) => name.endsWith(".js"));
  expect(names.filter((name) => readFileSync(join(root, "dist", name), "utf8").includes("import.meta"))).toEqual(["served.js"]);
  // The server carries these two, each a single file.
  for (const name of ["served.js", "client-share.js"]) expect(readFileSync(join(root, "dist", name), "utf8")).not.toMatch(/from\s*["']\./);
});

test("a server that renders the page takes the hook for the browser's", () => {
  expect(readFileSync(join(root, "dist/react.js"), "utf8")).toMatch(/^"use client";/);
});
