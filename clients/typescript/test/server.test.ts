// The client against the real server, over both transports.

import { describe, expect, test } from "vitest";
import { client, Heard } from "./support/heard.js";
import { cuttableProxy, withoutUpgrades } from "./support/proxies.js";
import { config, redis, Server } from "./support/server.js";

for (const transport of ["websocket", "sse"] as const) {
  describe(transport, () => {
    test("hears what was published: JSON, text and bytes, with ids and keys", async () => {
      const server = await Server.start();
      const heard = new Heard(client(server.url, { transport }).channel("both/a"));
      await heard.state("open");
      expect(heard.channel.transport).toBe(transport);
      await server.publish([
        { channel: "both/a", event: "json", data: { n: [1, null, "ü\u2028"] }, key: "k", attributes: { trace: "t", "content-type": "a" } },
        { channel: "both/a", event: "text", text: "two\nlines" },
        { channel: "both/a", event: "bytes", base64: "AAEC/w==" },
      ]);
      const bytes = await heard.first("bytes");
      expect(heard.all("json")[0]).toMatchObject({ channel: "both/a", data: { n: [1, null, "ü\u2028"] }, key: "k", attributes: { trace: "t", "content-type": "a" } });
      expect(heard.all("text")[0]).not.toHaveProperty("attributes");
      expect(heard.all("text")[0].data).toBe("two\nlines");
      expect([...bytes.data]).toEqual([0, 1, 2, 255]);
      expect(heard.channel.cursor).toBe(bytes.id);
    });

    test("sends, and is answered: what is done, and what is refused", async () => {
      const server = await Server.start();
      const airwave = client(server.url, { transport });
      const heard = new Heard(airwave.channel("both/a"));
      // Waits, because there is no connection yet.
      await expect(heard.channel.send("say", { text: "early" })).resolves.toBe(null);
      await heard.channel.send("say", { text: "hi" }, { key: "k" });
      await heard.channel.send("bytes", new Uint8Array([1, 2, 3]));
      await heard.channel.send("bytes", new Uint8Array([4, 5]), { repeat: false });
      await heard.channel.send("about", 1, { attributes: { trace: "t" } });
      await expect(heard.channel.send("about", 1, { attributes: { "airwave.x": "t" } })).rejects.toMatchObject({ code: "bad-request" });
      await heard.channel.send("nothing");
      await heard.first("nothing");
      expect(heard.all("say").map(({ data, key }) => [data, key])).toEqual([[{ text: "early" }, undefined], [{ text: "hi" }, "k"]]);
      expect(heard.all("bytes").map(({ data }) => [...data])).toEqual([[1, 2, 3], [4, 5]]);
      expect(heard.all("about").map(({ attributes }) => attributes)).toEqual([{ trace: "t" }]);
      await expect(airwave.channel("silent/a").send("say", 1)).rejects.toMatchObject({ code: "forbidden" });
    });
  
    test("goes on behind the last event after a cut: each event once, no gap", async () => {
      const server = await Server.start();
      const proxy = await cuttableProxy(server.port);
      const heard = new Heard(client(proxy.url, { transport }).channel("both/a"));
      await heard.state("open");
      await server.publish([1, 2].map((data) => ({ channel: "both/a", event: "n", data })));
      await heard.data("n", 2);
      proxy.cut();
      await heard.state("waiting");
      await server.publish([3, 4].map((data) => ({ channel: "both/a", event: "n", data })));
      proxy.restore();
      await heard.first("!resumed");
      await server.publish({ channel: "both/a", event: "n", data: 5 });
      expect(await heard.data("n", 5)).toEqual([1, 2, 3, 4, 5]);
      expect(heard.all("!gap")).toEqual([]);
    });

    test("is told of what a killed server has lost with its memory", async () => {
      const server = await Server.start();
      const heard = new Heard(client(server.url, { transport }).channel("both/a"));
      await heard.state("open");
      const { cursor } = await server.publish({ channel: "both/a", event: "n", data: "before" });
      await heard.first("n");
      await server.kill();
      await heard.state("waiting");
      const from = heard.entries.length;
      await server.restart();
      const gap = await heard.first("!gap", from);
      expect(gap).toMatchObject({ channel: "both/a", after: cursor });
      await server.publish({ channel: "both/a", event: "n", data: "after" });
      expect(await heard.data("n", 2)).toEqual(["before", "after"]);
      expect(heard.all("!resumed")).toEqual([]);
    });

    test("thousands of events without loss and in order, while the server is killed and comes back, with its history in Redis", async () => {
      const url = await redis();
      const server = await Server.start(config(`[broker]\nurl = "${url}"`));
      const airwave = client(server.url, { transport });
      const names = ["both/a", "both/b", "both/c"];
      const heards = names.map((name) => new Heard(airwave.channel(name)));
      for (const heard of heards) await heard.state("open");
      let n = 0;
      const publish = async (count: number): Promise<void> => {
        for (const end = n + count; n < end; n += 50) {
          const data = Array.from({ length: 50 }, (_, i) => n + i);
          await server.publish(names.flatMap((channel) => data.map((data) => ({ channel, event: "n", data }))));
        }
      };
      await publish(500);
      for (const round of [1, 2]) {
        await server.kill();
        for (const heard of heards) await heard.until((entries) => entries.filter(({ told }) => told.state === "waiting").length >= round, "the loss");
        await server.restart();
        await publish(500);
      }
      const all = Array.from({ length: n }, (_, i) => i);
      for (const heard of heards) {
        expect(await heard.data("n", n)).toEqual(all);
        expect(heard.all("!gap")).toEqual([]);
        expect(heard.all("!resumed").length).toBeGreaterThanOrEqual(1);
      }
    });

    test("messages without a connection wait for one, and go once and in order", async () => {
      const server = await Server.start();
      const proxy = await cuttableProxy(server.port);
      const airwave = client(proxy.url, { transport, queue: 3 });
      const heard = new Heard(airwave.channel("both/a"));
      await heard.state("open");
      proxy.cut();
      await heard.state("waiting");
      const sent = [1, 2, 3].map((n) => heard.channel.send("n", n));
      await expect(heard.channel.send("n", 4)).rejects.toMatchObject({ code: "disconnected" });
      await expect(heard.channel.send("n", 5, { repeat: false })).rejects.toMatchObject({ code: "disconnected" });
      proxy.restore();
      await Promise.all(sent);
      expect(await heard.data("n", 3)).toEqual([1, 2, 3]);
    });

    test("hears the end, and stops listening", async () => {
      const server = await Server.start();
      const airwave = client(server.url, { transport });
      const heard = new Heard(airwave.channel("both/a"));
      await heard.state("open");
      const read: unknown[] = [];
      const reading = (async () => {
        for await (const { event, data } of heard.channel) read.push([event, data]);
      })();
      await server.publish({ channel: "both/a", event: "n", data: "last", end: true });
      const { cursor } = await heard.first("!end");
      await reading;
      expect(read).toEqual([["n", "last"]]);
      expect(heard.channel).toMatchObject({ state: "ended", cursor, transport: undefined });
      await expect(heard.channel.send("n", 1)).rejects.toMatchObject({ code: "ended" });
      // A client that comes back behind the end hears of it too.
      const again = new Heard(airwave.channel("both/a", { after: cursor }));
      await again.first("!end");
      await expect.poll(() => server.sessions(transport === "sse" ? "sse-many" : "websocket")).toBe(0);
    });

    test("channels share one connection, and one that comes later loses nothing of the others", async () => {
      const server = await Server.start();
      const proxy = await cuttableProxy(server.port);
      const airwave = client(proxy.url, { transport });
      const first = new Heard(airwave.channel("both/1"));
      await first.state("open");
      // Nothing is published through the proxy, so that it counts only the client's connections.
      let n = 0;
      let going = true;
      const publishing = (async () => {
        while (going) await server.publish({ channel: "both/1", event: "n", data: n++ });
      })();
      const more = [2, 3, 4, 5, 6, 7, 8, 9].map((i) => new Heard(airwave.channel(`both/${i}`)));
      for (const heard of more) await heard.state("open");
      more[3]!.channel.close();
      const published = n;
      await expect.poll(() => n).toBeGreaterThan(published + 20);
      going = false;
      await publishing;
      expect(await first.data("n", n)).toEqual(Array.from({ length: n }, (_, i) => i));
      expect(first.all("!gap")).toEqual([]);
      for (const i of [2, 9]) await server.publish({ channel: `both/${i}`, event: "n", data: i });
      await more[0]!.first("n");
      await more[7]!.first("n");
      await expect.poll(() => server.sessions(transport === "sse" ? "sse-many" : "websocket")).toBe(1);
    });

    test("a dead connection is noticed by its silence", async () => {
      const server = await Server.start();
      const proxy = await cuttableProxy(server.port);
      const heard = new Heard(client(proxy.url, { transport, silence: 300 }).channel("both/a"));
      await heard.state("open");
      proxy.swallow();
      const { error } = await heard.first("!state", 0, ({ state }) => state === "waiting");
      expect(error.code).toBe("disconnected");
      await server.publish({ channel: "both/a", event: "n", data: "missed" });
      await heard.first("n");
    });

    test("a server that drains is left and found again when it says", async () => {
      const server = await Server.start();
      const heard = new Heard(client(server.url, { transport }).channel("both/a"));
      await heard.state("open");
      await server.drain();
      await heard.state("waiting");
      const from = heard.entries.length;
      await server.restart();
      await heard.state("open", from);
    });
  });
}

describe("the choice of a transport", () => {
  test("is the server's", async () => {
    const server = await Server.start();
    const airwave = client(server.url);
    for (const [name, transport] of [["both/a", "websocket"], ["sse-first/a", "sse"], ["websocket-only/a", "websocket"], ["sse-only/a", "sse"]] as const) {
      const heard = new Heard(airwave.channel(name));
      await heard.state("open");
      expect(heard.channel.transport, name).toBe(transport);
    }
  });

  test("without a WebSocket here it is SSE, where the rule has it", async () => {
    const server = await Server.start();
    const airwave = client(server.url, { WebSocket: null });
    const heard = new Heard(airwave.channel("both/a"));
    await heard.state("open");
    expect(heard.channel.transport).toBe("sse");
    expect((await new Heard(airwave.channel("websocket-only/a")).first("!error")).code).toBe("wrong-transport");
  });

  test("falls back where upgrades are blocked, and goes on with the same cursor", async () => {
    const server = await Server.start();
    const proxy = await withoutUpgrades(server.port);
    proxy.allow = true;
    const heard = new Heard(client(proxy.url).channel("both/a"));
    await heard.state("open");
    expect(heard.channel.transport).toBe("websocket");
    await server.publish({ channel: "both/a", event: "n", data: 1 });
    await heard.first("n");
    // The connection breaks, and from now on nothing is upgraded.
    proxy.allow = false;
    const { cursor } = heard.channel;
    const from = heard.entries.length;
    proxy.breakSockets();
    await server.publish({ channel: "both/a", event: "n", data: 2 });
    await heard.state("open", from);
    expect(heard.channel.transport).toBe("sse");
    expect(proxy.upgrades).toBe(2);
    expect(await heard.data("n", 2)).toEqual([1, 2]);
    expect(heard.all("!gap")).toEqual([]);
    expect(cursor).toBeDefined();
    await heard.channel.send("n", 3);
    expect(await heard.data("n", 3)).toEqual([1, 2, 3]);
  });

  test("a refused channel is told so, and the others on the stream are not", async () => {
    const server = await Server.start();
    for (const transport of ["sse", "websocket"] as const) {
      const airwave = client(server.url, { transport });
      const good = new Heard(airwave.channel("both/a"));
      await good.state("open");
      const bad = new Heard(airwave.channel("unknown/a"));
      expect((await bad.first("!error")).code).toBe("unknown-channel");
      expect(bad.channel.state).toBe("refused");
      await server.publish({ channel: "both/a", event: "n", data: transport });
      await good.first("n");
    }
  });

  test("a client with the wrong transport learns the right one", async () => {
    const server = await Server.start();
    const told = new Heard(client(server.url, { transport: "sse" }).channel("websocket-only/a"));
    expect(await told.first("!error")).toMatchObject({ code: "wrong-transport" });
  });
});
