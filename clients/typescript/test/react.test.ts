// @vitest-environment happy-dom
// The hook in components that are really mounted.

import { act, createElement, type ReactNode, StrictMode, useState } from "react";
import { createRoot } from "react-dom/client";
import { renderToString } from "react-dom/server";
import { beforeEach, expect, test, vi } from "vitest";
import { connect } from "../src/index.js";
import { useChannel } from "../src/react.js";

beforeEach(() => {
  Object.assign(globalThis, { IS_REACT_ACT_ENVIRONMENT: true });
});

/** The other end: confirms every subscription at once. */
class Socket {
  static all: Socket[] = [];
  channels: string[] = [];
  onopen?: () => void;
  onmessage?: (message: { data: string }) => void;
  constructor() {
    Socket.all.push(this);
    setTimeout(() => this.onopen?.());
  }
  send(text: string): void {
    const { type, id, channel } = JSON.parse(text);
    if (type === "subscribe") this.channels.push(channel);
    if (type === "unsubscribe") this.channels.splice(this.channels.indexOf(channel), 1);
    setTimeout(() => this.tell(type === "subscribe" ? { type: "subscribed", id, channel, cursor: "1", resumed: false } : { type: `${type}d`, id, channel }));
  }
  tell(frame: unknown): void {
    this.onmessage?.({ data: JSON.stringify(frame) });
  }
  close(): void {}
}

/** React shows what it was told when `act` ends. */
const until = (done: () => boolean): Promise<unknown> =>
  vi.waitUntil(
    async () => {
      await act(() => new Promise<void>((tick) => setTimeout(tick, 5)));
      return done();
    },
    { timeout: 30_000 },
  );

test("renders on a server without connecting", () => {
  const airwave = connect("http://server.example/", { fetch: () => Promise.reject(new Error("nothing is to be fetched")) });
  const Order = (): ReactNode => useChannel(airwave, "orders/1", { gap: () => {} }).state;
  expect(renderToString(createElement(StrictMode, null, createElement(Order)))).toBe("connecting");
});

test("components share a channel, hear with their newest listeners, and let it go", async () => {
  const airwave = connect("http://server.example/", { WebSocket: Socket, transport: "websocket" });
  const heard: string[] = [];
  let show!: (shown: { names: string[]; round: number }) => void;
  const Order = ({ name, round }: { name: string; round: number }): ReactNode => {
    const { state } = useChannel<{ n: number }>(airwave, name, { n: (data) => heard.push(`${name} ${data} in round ${round}`) });
    return createElement("p", null, `${name} ${state}`);
  };
  const Page = (): ReactNode => {
    const [{ names, round }, set] = useState({ names: ["a", "a", "b"], round: 1 });
    show = set;
    return names.map((name, i) => createElement(Order, { key: i, name, round }));
  };
  const place = document.createElement("div");
  const root = createRoot(place);
  await act(async () => root.render(createElement(StrictMode, null, createElement(Page))));
  await until(() => place.textContent === "a opena openb open");
  const socket = Socket.all.at(-1)!;
  expect(socket.channels.sort()).toEqual(["a", "b"]);
  const say = (id: number): Promise<void> => act(async () => socket.tell({ channel: "a", id: String(id), event: "n", data: id }));
  await say(2);
  await act(async () => show({ names: ["a", "b", "b"], round: 2 }));
  await say(3);
  expect(heard).toEqual(["a 2 in round 1", "a 2 in round 1", "a 3 in round 2"]);
  await act(async () => show({ names: ["b"], round: 3 }));
  await until(() => socket.channels.join() === "b" && place.textContent === "b open");
  await act(async () => root.unmount());
  await until(() => socket.channels.length === 0);
});
