import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    // test/deep is the deep tier's: `npm run test:deep`.
    include: process.env["AIRWAVE_TEST_DEEP"] ? ["test/deep/*.test.ts"] : ["test/*.test.ts"],
    // Only turns a wait that would be endless into a failure.
    expect: { poll: { timeout: 30_000 } },
    testTimeout: 60_000,
    hookTimeout: 60_000,
    // Each file starts servers of its own.
    maxWorkers: 2,
  },
});
