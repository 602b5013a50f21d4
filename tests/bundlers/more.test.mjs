// The bundlers of the deep tier.

import { cp } from "node:fs/promises";
import { join, resolve } from "node:path";
import { describe, test } from "node:test";
import { application, hears, skip, tool } from "./support.mjs";

const more = resolve(import.meta.dirname, "more");
const shared = { more: ["", "&share"] };

describe("the packed client, built and run", { skip }, () => {
  test("by Next with webpack", async (t) => {
    const dir = await application(t, "next");
    await tool(dir, "next", ["build", "--webpack"]);
    await hears(t, join(dir, "out"));
  });

  test("by webpack", async (t) => {
    const dir = await application(t, "plain", more);
    await tool(dir, "webpack", ["--mode=production", "--entry=./main.js", "--output-path=./built", "--output-filename=main.js"], more);
    await cp(join(dir, "index.html"), join(dir, "built/index.html"));
    await hears(t, join(dir, "built"), shared);
  });

  test("by Rollup", async (t) => {
    const dir = await application(t, "plain", more);
    await tool(dir, "rollup", ["main.js", "--dir", "built", "--format", "es", "--plugin", "@rollup/plugin-node-resolve", "--failAfterWarnings"], more);
    await cp(join(dir, "index.html"), join(dir, "built/index.html"));
    await hears(t, join(dir, "built"), shared);
  });

  test("by Parcel", async (t) => {
    const dir = await application(t, "plain", more);
    await tool(dir, "parcel", ["build", "index.html", "--dist-dir", "built", "--no-cache", "--no-source-maps", "--no-autoinstall"], more);
    await hears(t, join(dir, "built"), shared);
  });
});
