// The bundlers that most applications use.

import assert from "node:assert/strict";
import { join } from "node:path";
import { describe, test } from "node:test";
import { application, hears, skip, tool } from "./support.mjs";

const shared = { more: ["", "&share"] };

describe("the packed client, built and run", { skip }, () => {
  test("by esbuild", async (t) => {
    const dir = await application(t, "plain");
    // It splits off what is loaded only where tabs share.
    const said = await tool(dir, "esbuild", ["main.js", "--bundle", "--splitting", "--format=esm", "--outdir=built", "--log-level=warning"]);
    assert.equal(said, "");
    await tool(dir, "esbuild", ["index.html", "--loader:.html=copy", "--outdir=built", "--log-level=warning"]);
    await hears(t, join(dir, "built"), shared);
  });

  test("by Vite", async (t) => {
    const dir = await application(t, "plain");
    const said = await tool(dir, "vite", ["build", "--outDir", "built", "--logLevel", "warn"]);
    assert.equal(said.trim(), "");
    await hears(t, join(dir, "built"), shared);
  });

  test("by Next with Turbopack, rendered on a server", async (t) => {
    const dir = await application(t, "next");
    await tool(dir, "next", ["build"]);
    await hears(t, join(dir, "out"));
  });
});
