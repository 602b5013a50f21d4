// Proxies between a client and the server, which break what passes them.

import { once } from "node:events";
import http from "node:http";
import net from "node:net";
import { onTestFinished } from "vitest";

async function listen(server: net.Server): Promise<string> {
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  onTestFinished(() => {
    (server as http.Server).closeAllConnections?.();
    server.close();
  });
  return `http://127.0.0.1:${(server.address() as net.AddressInfo).port}`;
}

/** A proxy of connections that a test cuts. */
export interface CuttableProxy {
  url: string;
  /** How many connections were made. */
  made: number;
  /** How many are open. */
  readonly open: number;
  /** Cuts every connection and takes no new one until `restore`. */
  cut(): void;
  restore(): void;
  /** Connections stay open and nothing passes any more: what a dead Wi-Fi does. */
  swallow(): void;
}

/** Starts a proxy of connections to the server. */
export async function cuttableProxy(port: number): Promise<CuttableProxy> {
  const pairs = new Set<{ client: net.Socket; upstream: net.Socket }>();
  let down = false;
  const relay = net.createServer((client) => {
    client.on("error", () => {});
    if (down) {
      client.destroy();
      return;
    }
    made.made += 1;
    const upstream = net.connect(port, "127.0.0.1");
    upstream.on("error", () => client.destroy());
    const pair = { client, upstream };
    pairs.add(pair);
    client.pipe(upstream).pipe(client);
    client.on("close", () => {
      upstream.destroy();
      pairs.delete(pair);
    });
    upstream.on("close", () => client.destroy());
  });
  const made: CuttableProxy = {
    url: "",
    made: 0,
    get open() {
      return pairs.size;
    },
    cut() {
      down = true;
      for (const { client, upstream } of [...pairs]) {
        client.resetAndDestroy();
        upstream.destroy();
      }
    },
    restore() {
      down = false;
    },
    swallow() {
      for (const { client, upstream } of pairs) {
        client.unpipe(upstream);
        upstream.unpipe(client);
        client.resume();
        upstream.resume();
      }
    },
  };
  onTestFinished(() => {
    for (const { client } of pairs) client.destroy();
  });
  made.url = await listen(relay);
  return made;
}

/**
 * A proxy that passes plain HTTP, streams as well, and no upgrade. `upgrades` counts what it has
 * refused.
 */
export async function withoutUpgrades(port: number): Promise<{ url: string; upgrades: number; allow: boolean; breakSockets(): void }> {
  const sockets = new Set<net.Socket>();
  const state = {
    url: "",
    upgrades: 0,
    allow: false,
    breakSockets: () => {
      for (const socket of sockets) socket.destroy();
    },
  };
  onTestFinished(state.breakSockets);
  const proxy = http.createServer((request, response) => {
    const { url, method, headers } = request;
    const upstream = http.request({ host: "127.0.0.1", port, path: url, method, headers }, (answer) => {
      response.writeHead(answer.statusCode ?? 502, answer.headers);
      answer.pipe(response);
      answer.on("error", () => response.destroy());
    });
    upstream.on("error", () => {
      if (response.headersSent) response.destroy();
      else response.writeHead(502).end();
    });
    response.on("close", () => upstream.destroy());
    request.pipe(upstream);
  });
  proxy.on("upgrade", (request: http.IncomingMessage, socket: net.Socket, head: Buffer) => {
    socket.on("error", () => {});
    if (!state.allow) {
      state.upgrades += 1;
      socket.end("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
      return;
    }
    const upstream = net.connect(port, "127.0.0.1", () => {
      const lines = request.rawHeaders.reduce((all, text, i) => all + text + (i % 2 ? "\r\n" : ": "), "");
      upstream.write(`${request.method} ${request.url} HTTP/1.1\r\n${lines}\r\n`);
      upstream.write(head);
      socket.pipe(upstream).pipe(socket);
    });
    upstream.on("error", () => socket.destroy());
    socket.on("close", () => upstream.destroy());
    upstream.on("close", () => socket.destroy());
    sockets.add(socket);
  });
  state.url = await listen(proxy);
  return state;
}
