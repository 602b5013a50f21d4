import { defineConfig } from "tsdown";

// dist/ is committed, because the server carries it (`/client.js`) and whoever builds the server has cargo alone. test/build.test.ts sees to it that it is
// what the source builds.
export default defineConfig({
  entry: { client: "src/index.ts", "client-share": "src/client-share.ts", eventsource: "src/eventsource.ts", react: "src/react.ts" },
  format: "esm",
  platform: "neutral",
  target: "es2022",
  outExtensions: () => ({ js: ".js", dts: ".d.ts" }),
  deps: {
    // client-share is loaded only if somebody shares: a file of its own, found beside client.js wherever that is served from.
    neverBundle: ["./client-share.js", "react"],
    onlyBundle: ["eventsource-parser"],
  },
  minify: true,
  sourcemap: false,
  dts: { entry: ["src/index.ts", "src/eventsource.ts", "src/react.ts"] },
  clean: true,
  hash: false,
});
