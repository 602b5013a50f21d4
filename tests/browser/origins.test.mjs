// Who may connect from which web site (docs/protocol.md, section 9), tested with a browser, because
// a browser always sends `Origin`.

import assert from "node:assert/strict";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { isEvent, launch, pageAt, socketAddress, withoutChromium } from "./support/browser.mjs";
import { otherSite } from "./support/lines.mjs";
import { config, Server } from "./support/server.mjs";

const CLOSED = 2;
const skip = withoutChromium();
const subscribed = ({ type }) => type === "airwave.subscribed";
const isSubscribed = ({ type, data }) => type === "text" && JSON.parse(data).type === "subscribed";

describe("another origin", { skip }, () => {
  let browser;
  before(async () => {
    browser = await launch();
  });
  after(() => browser?.close());

  async function refused(t, toml, site) {
    const server = await Server.start(t, { toml });
    const page = await pageAt(t, browser, site);
    const url = `${server.url}/channels/both/x`;

    const source = await page.sse("source", url, ["n"]);
    await source.first(({ type, readyState }) => type === "error" && readyState === CLOSED, "refusal");
    // The page learns no status (that is the point of it); that it is 403 is asked with curl, in
    // clients.test.mjs.
    assert.equal((await page.statuses(url)).length, 1);

    const socket = await page.socket("socket", socketAddress(url));
    const closed = await socket.first(({ type }) => type === "close", "failed handshake");
    assert.equal(closed.code, 1006);
    assert.deepEqual(socket.entries.filter(({ type }) => type === "open" || type === "text"), []);

    // A form of another site needs no permission to be sent: it must not be done either.
    const forged = { channel: "both/x", event: "n", data: "forged" };
    await page.page.evaluate(
      ([publish, channel, body]) =>
        Promise.all(
          [publish, channel].flatMap((address) =>
            ["text/plain", "application/x-www-form-urlencoded"].map((type) =>
              fetch(address, { method: "POST", mode: "no-cors", headers: { "content-type": type }, body }),
            ),
          ),
        ),
      [`${server.url}/publish`, url, JSON.stringify(forged)],
    );
    await assert.rejects(
      page.page.evaluate(([address, body]) => fetch(address, { method: "POST", headers: { "content-type": "application/json" }, body }), [`${server.url}/publish`, JSON.stringify(forged)]),
      /Failed to fetch/,
    );
    assert.deepEqual((await server.recent("both/x")).events, []);
  }

  test("is refused unless it is listed", async (t) => {
    await refused(t, config(), await otherSite(t));
  });

  test("is refused when only others are listed", async (t) => {
    await refused(t, config('origins = ["https://app.example"]'), await otherSite(t));
  });

  test("that is not listed is told so once by the client, with the word", async (t) => {
    const site = await otherSite(t);
    const server = await Server.start(t);
    const { page } = await pageAt(t, browser, site);
    // The client as the page has it: of its own site, not of the server.
    for (const [name, built] of [["client.js", "served.js"], ["client-share.js", "client-share.js"]]) {
      await page.route(`${site}/${name}`, (route) => route.fulfill({ path: join(import.meta.dirname, "../../clients/typescript/dist", built), contentType: "text/javascript" }));
    }
    const told = [];
    page.on("console", (message) => message.text().startsWith("airwave:") && told.push(message.text()));
    const errors = await page.evaluate(async ([module, url]) => {
      const { connect } = await import(module);
      const channel = connect(url, { backoff: [10, 50] }).channel("both/x");
      const errors = [];
      await new Promise((done) => channel.on("state", ({ error }) => error && errors.push(error.message) > 3 && done()));
      return errors;
    }, [`${site}/client.js`, server.url]);
    assert.ok(errors.every((message) => message.includes(`add "${site}" to \`origins\``)), errors.join("\n"));
    assert.equal(told.length, 1, told.join("\n"));
    assert.match(told[0], /origins/);
  });

  test("may listen and send when it is listed, with credentials", async (t) => {
    const site = await otherSite(t);
    const server = await Server.start(t, { toml: config(`origins = ["https://app.example", "${site}"]`) });
    const page = await pageAt(t, browser, site);
    const url = `${server.url}/channels/both/x`;
    const plain = await page.sse("plain", url, ["n"]);
    const source = await page.sse("source", url, ["n"], { withCredentials: true });
    const socket = await page.socket("socket", socketAddress(url));
    await plain.first(subscribed, "confirmation");
    await source.first(subscribed, "confirmation");
    await socket.first(isSubscribed, "confirmation");

    // A JSON body is asked for beforehand (preflight), and the page may read the answer.
    const status = await page.page.evaluate(async (address) => {
      const response = await fetch(address, {
        method: "POST",
        credentials: "include",
        headers: { "content-type": "application/json", "idempotency-key": "once", traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01" },
        body: JSON.stringify({ event: "n", data: "from another site" }),
      });
      await response.json();
      return response.status;
    }, url);
    assert.equal(status, 200);
    for (const listener of [plain, source]) assert.equal((await listener.first(isEvent, "event")).data, '"from another site"');
    await socket.first(({ type, data }) => type === "text" && JSON.parse(data).data === "from another site", "event");
  });

  test('any may listen with "*", without credentials', async (t) => {
    const site = await otherSite(t);
    const server = await Server.start(t, { toml: config('origins = ["*"]') });
    const page = await pageAt(t, browser, site);
    const url = `${server.url}/channels/both/x`;
    const plain = await page.sse("plain", url, ["n"]);
    const socket = await page.socket("socket", socketAddress(url));
    await plain.first(subscribed, "confirmation");
    await socket.first(isSubscribed, "confirmation");
    const credentialed = await page.sse("credentialed", `${url}?credentialed`, ["n"], { withCredentials: true });
    await credentialed.first(({ type, readyState }) => type === "error" && readyState === CLOSED, "the browser's refusal");
    await server.publish({ channel: "both/x", event: "n", data: 1 });
    assert.equal((await plain.first(isEvent, "event")).data, "1");
  });
});
