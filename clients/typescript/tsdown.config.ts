import { defineConfig, type UserConfig } from "tsdown";

// dist/ is committed, because the server carries it and building the server takes cargo alone.
// test/build.test.ts compares it with what the source builds.
const common: UserConfig = {
  format: "esm",
  platform: "neutral",
  target: "es2022",
  outExtensions: () => ({ js: ".js", dts: ".d.ts" }),
  deps: {
    // client-share is loaded only where tabs share: a file of its own, found beside client.js
    // wherever that is served from.
    neverBundle: ["./client-share.js", "react"],
    onlyBundle: ["eventsource-parser"],
  },
  minify: true,
  sourcemap: false,
  hash: false,
};

export default defineConfig([
  {
    ...common,
    entry: { client: "src/index.ts", "client-share": "src/client-share.ts", eventsource: "src/eventsource.ts", react: "src/react.ts" },
    dts: { entry: ["src/index.ts", "src/eventsource.ts", "src/react.ts"] },
    clean: true,
  },
  // The server's `/client.js`: a build of its own, so that it is one file, and so that no other
  // file names the place that it was loaded from.
  { ...common, entry: { served: "src/served.ts" }, dts: false, clean: false },
]);
