// Typed from Rust to the page, and signed in: against `examples/typed.rs`.

import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, expectTypeOf, test } from "vitest";
import type { AirwaveError, Options } from "../src/index.js";
import type { Item, OrderCommands, OrderEvents } from "./orders.js";
import { client, Heard } from "./support/heard.js";
import { cuttableProxy } from "./support/proxies.js";
import { example, Server } from "./support/server.js";

const program = example("typed");

test("the types in this folder are those of the example", () => {
  expect(readFileSync(join(import.meta.dirname, "orders.ts"), "utf8")).toBe(execFileSync(program, ["types"], { encoding: "utf8" }));
});

for (const transport of ["websocket", "sse"] as const) {
  describe(transport, () => {
    /**
     * What an application does: keeps a token, and gets another when the server says that it is no
     * good.
     */
    function signIn(url: string): Options & { asked: boolean[]; issued: number } {
      let token: string | undefined;
      const state = {
        transport,
        asked: [] as boolean[],
        issued: 0,
        async token(refused: boolean) {
          state.asked.push(refused);
          if (refused || !token) {
            state.issued += 1;
            token = await (await fetch(`${url}/sign-in`, { method: "POST" })).text();
          }
          return token;
        },
      };
      return state;
    }

    test("an event is what its type says, and what does not fit is refused with its path", async () => {
      const server = await Server.of(program, []);
      const order = client(server.url, signIn(server.url)).channel<OrderEvents, OrderCommands>("orders/1");
      const heard = new Heard(order as never);
      const items: Item[] = [];
      order.on("order-update", (data) => {
        expectTypeOf(data.status).toEqualTypeOf<"open" | "shipped">();
        items.push(...data.items);
      });
      await heard.state("open");
      await order.send("add-items", { items: [{ name: "nut", cents: 5 }] });
      await heard.first("order-update");
      expect(items).toEqual([{ name: "nut", cents: 5 }]);
      const wrong = { items: [{ name: "nut", cents: 5 }, { name: "bolt", cents: "6" }] } as unknown as { items: Item[] };
      const refused: AirwaveError = await order.send<AirwaveError>("add-items", wrong).catch((error) => error);
      expect(refused.code).toBe("bad-request");
      expect(refused.message).toContain("'items[1].cents': invalid type: string \"6\", expected u32");
    });

    test("a token that is good no more is replaced, and nothing is missed", async () => {
      const server = await Server.of(program, []);
      const proxy = await cuttableProxy(server.port);
      const options = signIn(server.url);
      const heard = new Heard(client(proxy.url, options).channel("orders/1"));
      await heard.state("open");
      await heard.channel.send("cancel", { why: "first" });
      proxy.cut();
      await heard.state("waiting");
      await fetch(`${server.url}/sign-out-everybody`, { method: "POST" });
      proxy.restore();
      await heard.first("!resumed");
      await heard.channel.send("cancel", { why: "second" });
      expect(await heard.data("cancelled", 2)).toEqual([{ why: "first" }, { why: "second" }]);
      expect(heard.all("!gap")).toEqual([]);
      expect(options.issued).toBe(2);
      expect(options.asked).toContain(true);
    });

    test("who is there, and who comes and goes", async () => {
      const server = await Server.of(program, []);
      const airwave = client(server.url, signIn(server.url));
      const ann = new Heard(airwave.channel("orders/1", { presence: true }));
      // Beside it one that does not ask, and one whose rule could not say.
      await new Heard(airwave.channel("orders/2")).state("open");
      const first = await ann.first("!presence");
      const users = (): (string | null)[] => ann.channel.members.map(({ user }) => user).sort();
      expect(first.members.length).toBeLessThanOrEqual(1);
      await ann.until(() => users().join() === "token-1", "herself");
      const other = client(server.url, signIn(server.url));
      const bob = other.channel("orders/1");
      const { joined } = await ann.first("!presence", 0, ({ joined }) => joined?.user === "token-2");
      expect(joined).toMatchObject({ user: "token-2", connections: 1 });
      expect(users()).toEqual(["token-1", "token-2"]);
      bob.close();
      await ann.first("!presence", 0, ({ left }) => left?.user === "token-2");
      expect(users()).toEqual(["token-1"]);
    });

    test("without a token that is good the channel is refused", async () => {
      const server = await Server.of(program, []);
      let asked = 0;
      const heard = new Heard(client(server.url, { transport, token: () => `bad-${(asked += 1)}` }).channel("orders/1"));
      expect(await heard.first("!error")).toMatchObject({ code: "unauthorized", message: "sign in first" });
      expect(asked).toBe(2);
    });
  });
}
