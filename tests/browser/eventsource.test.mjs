// Streams of events in Chromium's own EventSource: it hears what the parser of airwave-protocol has
// heard (tests/protocol/streams.json). No Airwave is between them.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { after, before, test } from "node:test";
import { launch, withoutChromium } from "./support/browser.mjs";

const streams = JSON.parse(readFileSync(new URL("../protocol/streams.json", import.meta.url), "utf8"));
const skip = withoutChromium();

let server, browser;
before(async () => {
  if (skip) return;
  server = createServer(async ({ url }, response) => {
    const stream = streams[Number(url.slice("/stream/".length))];
    response.setHeader("content-type", stream && url.startsWith("/stream/") ? "text/event-stream" : "text/html");
    if (!stream) return response.end("<!doctype html><title>streams</title>");
    const bytes = Buffer.from(stream.bytes, "base64");
    let from = 0;
    for (const to of [...stream.cuts, bytes.length]) {
      if (to > from) await new Promise((done) => response.write(bytes.subarray(from, to), done));
      from = to;
    }
    response.end();
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  browser = await launch();
});
after(async () => {
  await browser?.close();
  server?.close();
});

test("Chromium's EventSource hears what airwave-protocol hears", { skip }, async () => {
  assert.ok(streams.length > 300);
  const page = await browser.newPage();
  await page.goto(`http://127.0.0.1:${server.address().port}/page`);
  const names = [...new Set(streams.flatMap(({ events }) => events.map(({ event }) => event)))];
  const heard = await page.evaluate(
    async ({ count, names }) => {
      const hear = (index) =>
        new Promise((done) => {
          const source = new EventSource(`/stream/${index}`);
          const heard = [];
          for (const name of names) source.addEventListener(name, ({ type, data, lastEventId }) => heard.push({ id: lastEventId, event: type, data }));
          // The end of the stream: it would come back, and hear the same again.
          source.onerror = () => {
            source.close();
            done(heard);
          };
        });
      const all = [];
      for (let index = 0; index < count; index += 1) all.push(await hear(index));
      return all;
    },
    { count: streams.length, names },
  );
  for (const [index, { bytes, events }] of streams.entries()) {
    assert.deepEqual(heard[index], events, JSON.stringify(Buffer.from(bytes, "base64").toString()));
  }
});
