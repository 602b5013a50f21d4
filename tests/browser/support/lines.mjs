// Helpers that stand between a client and the server, or beside them.

import { once } from "node:events";
import http from "node:http";
import net from "node:net";

async function listen(t, server) {
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  t.after(() => {
    server.closeAllConnections?.();
    server.close();
  });
  return `http://127.0.0.1:${server.address().port}`;
}

/** A line to the server that can be cut: what a tunnel or a bad Wi-Fi does. */
export async function line(t, server) {
  const pairs = new Set();
  const state = { down: false, url: null, tries: 0, cut: null, restore: null };
  const relay = net.createServer((client) => {
    client.on("error", () => {});
    if (state.down) {
      state.tries += 1;
      client.destroy();
      return;
    }
    const upstream = net.connect(server.port, "127.0.0.1");
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
  t.after(() => {
    for (const { client } of pairs) client.destroy();
  });
  state.url = await listen(t, relay);
  /** Cuts every connection and takes no new one until `restore`. `reset`: without a goodbye. */
  state.cut = ({ reset = false } = {}) => {
    state.down = true;
    for (const { client, upstream } of [...pairs]) {
      if (reset) client.resetAndDestroy();
      else client.end();
      upstream.destroy();
    }
  };
  state.restore = () => {
    state.down = false;
  };
  return state;
}

/** Some other web site: one empty page, on an origin of its own. */
export async function otherSite(t) {
  return listen(t, http.createServer((_, response) => {
    response.setHeader("content-type", "text/html; charset=utf-8");
    response.end("<!doctype html><title>another site</title><link rel=icon href='data:,'>");
  }));
}

/** The server under a path of a larger site, as a reverse proxy mounts it. */
export async function mounted(t, server, prefix) {
  const target = ({ url, method, headers }) => ({ host: "127.0.0.1", port: server.port, path: url.slice(prefix.length), method, headers });
  const proxy = http.createServer((request, response) => {
    if (!request.url.startsWith(`${prefix}/`)) {
      response.writeHead(404).end();
      return;
    }
    const upstream = http.request(target(request), (answer) => {
      response.writeHead(answer.statusCode, answer.headers);
      answer.pipe(response);
    });
    upstream.on("error", () => response.destroy());
    response.on("close", () => upstream.destroy());
    request.pipe(upstream);
  });
  proxy.on("upgrade", (request, socket) => {
    socket.on("error", () => {});
    const upstream = http.request(target(request));
    upstream.on("error", () => socket.destroy());
    upstream.on("upgrade", (answer, up) => {
      up.on("error", () => socket.destroy());
      const head = Object.entries(answer.headers).map(([name, value]) => `${name}: ${value}\r\n`).join("");
      socket.write(`HTTP/1.1 101 Switching Protocols\r\n${head}\r\n`);
      socket.pipe(up).pipe(socket);
      socket.on("close", () => up.destroy());
      up.on("close", () => socket.destroy());
    });
    upstream.end();
  });
  return `${await listen(t, proxy)}${prefix}/`;
}
