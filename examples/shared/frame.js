// What the pages of the gallery share: a client whose traffic is counted, the bar at the top, a
// canvas that knows its size and colours.

import { connect } from "/client.js";

export const TITLES = { sse: "SSE", websocket: "WebSocket" };

/**
 * A browser's request line and headers, and an answer's. A page cannot see them, so they are
 * estimated.
 */
const REQUEST_HEAD = 420 + navigator.userAgent.length;
const ANSWER_HEAD = 220;

/** A WebSocket that does not come about. */
class NoSocket {
  constructor() {
    setTimeout(() => this.onclose?.(new CloseEvent("close", { code: 1006 })), 20);
  }
  send() {}
  close() {}
}

/** What a client costs: counted where it touches the network. */
export class Cost {
  /** Connections that stay open: streams and sockets. Opened so far, open now. */
  opened = 0;
  open = 0;
  /** Requests, and frames of a WebSocket. */
  up = 0;
  down = 0;
  bytesUp = 0;
  bytesDown = 0;
  onchange = () => {};
  /** No socket comes about any more, as behind a proxy that passes none. */
  withoutSockets = false;
  #cutUntil = 0;
  /** What ends each stream and socket that is open. */
  #live = new Set();

  /** Breaks every connection as a lost network does, and lets no new one come about for `ms`. */
  cut(ms) {
    this.#cutUntil = performance.now() + ms;
    for (const end of [...this.#live]) end();
  }

  /** Breaks the sockets, for good. Streams stay, and may be opened. */
  takeSockets() {
    this.withoutSockets = true;
    for (const end of [...this.#live]) if (end.isSocket) end();
  }

  get #isCut() {
    return performance.now() < this.#cutUntil;
  }

  fetch = async (input, init = {}) => {
    if (this.#isCut) throw new TypeError("the line is cut");
    this.up += 1;
    this.bytesUp += REQUEST_HEAD + size(init.body);
    this.onchange();
    const response = await fetch(input, init);
    this.bytesDown += ANSWER_HEAD;
    if (!response.body) return response;
    const stream = (response.headers.get("content-type") ?? "").startsWith("text/event-stream");
    if (!stream) this.down += 1;
    else this.#connected(1);
    let isOpen = stream;
    let broken = () => {};
    const end = () => {
      broken();
      ended();
    };
    const ended = () => {
      if (isOpen) this.#connected(-1);
      isOpen = false;
      this.#live.delete(end);
    };
    if (stream) this.#live.add(end);
    // A stream that the client itself cuts is told of by its signal alone.
    init.signal?.addEventListener("abort", ended);
    let last = 0;
    const counted = response.body.pipeThrough(
      new TransformStream({
        start: (out) => {
          broken = () => out.error(new TypeError("the line is cut"));
        },
        transform: (bytes, out) => {
          this.bytesDown += bytes.length;
          if (stream) {
            for (const byte of bytes) {
              // A blank line ends an event.
              if (byte === 10 && last === 10) this.down += 1;
              last = byte;
            }
          }
          this.onchange();
          out.enqueue(bytes);
        },
        flush: ended,
        cancel: ended,
      }),
    );
    return new Response(counted, { status: response.status, statusText: response.statusText, headers: response.headers });
  };

  get WebSocket() {
    const cost = this;
    return class extends WebSocket {
      constructor(...address) {
        if (cost.withoutSockets || cost.#isCut) return new NoSocket();
        super(...address);
        const end = () => {
          this.onclose?.(new CloseEvent("close", { code: 1006 }));
          this.close();
        };
        end.isSocket = true;
        cost.#live.add(end);
        this.addEventListener("close", () => cost.#live.delete(end));
        cost.up += 1;
        cost.bytesUp += REQUEST_HEAD;
        this.addEventListener("open", () => {
          cost.bytesDown += ANSWER_HEAD;
          cost.#connected(1);
          this.addEventListener("close", () => cost.#connected(-1));
        });
        this.addEventListener("message", ({ data }) => {
          cost.down += 1;
          cost.bytesDown += frame(size(data));
          cost.onchange();
        });
      }

      send(data) {
        cost.up += 1;
        cost.bytesUp += frame(size(data)) + 4; // A client's frames are masked.
        cost.onchange();
        super.send(data);
      }
    };
  }

  #connected(change) {
    if (change > 0) this.opened += 1;
    this.open += change;
    this.onchange();
  }

  /** In words: the connections, what came down, what went up. */
  get words() {
    const connections = `${this.open} ${this.open === 1 ? "connection" : "connections"}`;
    return [connections, `↓ ${messages(this.down)}, ${bytes(this.bytesDown)}`, `↑ ${messages(this.up)}, ${bytes(this.bytesUp)}`];
  }

  toString() {
    return this.words.join(" · ");
  }
}

const messages = (n) => `${count(n)} ${n === 1 ? "message" : "messages"}`;
const utf8 = new TextEncoder();
const size = (data) => (data == null ? 0 : typeof data === "string" ? utf8.encode(data).length : (data.byteLength ?? data.size ?? 0));
const frame = (payload) => payload + (payload < 126 ? 2 : payload < 65536 ? 4 : 10);

/** How long a line stays cut, in ms. */
export const CUT_MS = 2500;

/**
 * The pages of the gallery that share one connection are cut together: the button is in one tab,
 * the connection perhaps in another.
 */
const cuts = new BroadcastChannel("airwave-gallery:cut");

/**
 * A client and what it costs. `transport`: "sse", "websocket", or "auto", which is what the rule
 * says; `options`: more for the client (`token`). With `share: true`
 * all tabs of this browser use one connection, and are cut together.
 */
export function metered(transport = "auto", options = {}) {
  const cost = new Cost();
  const cut = () => cost.cut(CUT_MS);
  if (options.share) cuts.addEventListener("message", cut);
  cost.cutAll = () => {
    cut();
    if (options.share) cuts.postMessage("cut");
  };
  const airwave = connect(new URL("/", location), { ...options, transport, fetch: cost.fetch, WebSocket: cost.WebSocket });
  return { airwave, cost };
}

/**
 * The newest events of a channel, as its JSON page: `{ events, cursor, ended, … }`. Tries until
 * there is one: while a server is replaced, a proxy answers with pages of its own. Says so above
 * the page. Rejects only with a refusal of the server's.
 */
export async function recent(channel, limit, fetch = globalThis.fetch) {
  for (let wait = 250; ; wait = Math.min(wait * 2, 4000)) {
    const response = await fetch(`/channels/${channel}?limit=${limit}`, { headers: { accept: "application/json" } }).catch(() => undefined);
    const page = await response?.json().catch(() => undefined);
    if (Array.isArray(page?.events)) return page;
    if (page?.error?.code && response.status < 500 && response.status !== 429) throw new Error(page.error.message);
    toast(`The server does not answer yet (${response ? `status ${response.status}` : "no connection"}). This page tries again.`);
    await new Promise((done) => setTimeout(done, wait));
  }
}

/**
 * The JSON that a path of this server answers with. Tries until there is some: while a server is
 * replaced, a proxy answers with pages of its own.
 */
export async function loaded(path) {
  for (let wait = 250; ; wait = Math.min(wait * 2, 4000)) {
    const response = await fetch(path).catch(() => undefined);
    const value = response?.ok ? await response.json().catch(() => undefined) : undefined;
    if (value) return value;
    toast("The server does not answer yet. This page tries again.");
    await new Promise((done) => setTimeout(done, wait));
  }
}

/**
 * Who this tab is: kept over a reload, and not shared with a tab that was duplicated from it,
 * although a browser copies the storage of a tab to its duplicate.
 * `create` makes a new one.
 */
export async function identity(key, create) {
  const kept = sessionStorage.getItem(key);
  const tab = Math.random();
  const air = new BroadcastChannel(`airwave-gallery:${key}`);
  let mine = kept ?? create();
  let asking = kept !== null;
  let taken = false;
  air.addEventListener("message", ({ data }) => {
    if (data.who !== mine) return;
    if (data.here) taken ||= asking;
    // Of two that ask at once, as when a browser restores its tabs, one gives way.
    else if (!asking || tab < data.tab) air.postMessage({ who: mine, here: true });
  });
  if (asking) {
    air.postMessage({ who: kept, tab });
    await new Promise((done) => setTimeout(done, 200));
    asking = false;
    if (taken) mine = create();
  }
  sessionStorage.setItem(key, mine);
  return mine;
}

export const NAMES = ["Ada", "Grace", "Hedy", "Alan", "Edsger", "Barbara", "Donald", "Radia"];
export const someone = () => NAMES[Math.floor(Math.random() * NAMES.length)];

/** Whether the person asked the system for less motion. */
export const still = matchMedia("(prefers-reduced-motion: reduce)");

/**
 * Tells `show(seen)` whenever the element comes into view or leaves it. Returns a function that
 * stops.
 */
export function inView(element, show) {
  const observer = new IntersectionObserver((entries) => show(entries.at(-1).isIntersecting), { threshold: 0.15 });
  observer.observe(element);
  return () => observer.disconnect();
}

/** Calls `paint` at most four times a second, however often the returned function is. */
export function calmly(paint) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    setTimeout(() => {
      waiting = false;
      paint();
    }, 250);
  };
}

/**
 * Fills `<header id="bar">` and gives `{ airwave, transport, watch }`. `recommended` is the
 * matrix's transport; the address may ask for the other (`?transport=websocket`). `options`: more
 * for the client (`token`). `watch(channel)` shows that channel's state in the bar, and its losses
 * above the page.
 */
export function open({ title, recommended, ...options }) {
  const asked = new URLSearchParams(location.search).get("transport");
  const transport = asked === "sse" || asked === "websocket" ? asked : recommended;
  // A tab that has a name has its own connection. One whose transport was chosen by hand has it,
  // too: else it would show another tab's.
  const { airwave, cost } = metered(transport, { share: !options.token && !asked, ...options });

  const home = make("a", { className: "home", href: "/", title: "All examples" }, mark(), make("span", {}, "Gallery"));
  const state = make("span", { className: "pill", id: "state" }, "connecting");
  state.dataset.is = "connecting";
  const choices = make("span", { className: "switch" });
  choices.setAttribute("role", "group");
  choices.setAttribute("aria-label", "Transport");
  for (const kind of ["sse", "websocket"]) {
    const link = make("a", { href: `?transport=${kind}${location.hash}` }, TITLES[kind] + (kind === recommended ? " ✓" : ""));
    link.dataset.is = kind;
    link.title = kind === recommended ? "What the decision matrix says" : "The other transport, to compare";
    link.setAttribute("aria-current", String(kind === transport));
    link.addEventListener("click", () => (link.href = `?transport=${kind}${location.hash}`));
    choices.append(link);
  }
  const figures = make("div", { className: "cost", id: "cost" });
  const source = make("a", { className: "source", href: "source/main.rs", title: "The server's side of this page; the page itself is page.js beside it" }, "Source");
  const inner = make("div", { className: "inner" }, home, make("h1", {}, title), state, make("span", { className: "grow" }), source, choices, figures);
  document.getElementById("bar").append(inner);

  let watched;
  const paint = () => {
    const [connections, ...traffic] = cost.words;
    // A tab that leads nothing has no connection of its own.
    const own = cost.open || !watched || watched.state !== "open" ? connections : "another tab's connection";
    figures.replaceChildren(...[`This page over ${TITLES[transport]}: ${own}`, ...traffic].map((words) => make("span", {}, words)));
  };
  cost.onchange = calmly(paint);
  paint();

  const words = { connecting: "connecting", open: "live", waiting: "reconnecting", ended: "ended", refused: "refused", closed: "closed" };
  const watch = (channel) => {
    watched = channel;
    const show = (now) => {
      if (watched !== channel) return;
      state.dataset.is = now;
      state.textContent = words[now] ?? now;
      cost.onchange();
    };
    show(channel.state ?? "connecting");
    channel.on("state", (change) => show(change.state));
    return channel;
  };
  return { airwave, transport, cost, watch };
}

/** Says something above the page's content until it is clicked, or until the next. */
export function toast(text) {
  let box = document.querySelector(".toast");
  if (!box) {
    box = make("div", { className: "toast" });
    box.setAttribute("role", "status");
    box.addEventListener("click", () => box.remove());
    document.querySelector("main").prepend(box);
  }
  box.textContent = text;
}

/** An element with properties and children. Texts stay texts. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function mark() {
  const ns = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(ns, "svg");
  for (const [name, value] of Object.entries({ viewBox: "0 0 32 32", fill: "none", stroke: "currentColor", "stroke-width": "3", "stroke-linecap": "round", "aria-hidden": "true" })) svg.setAttribute(name, value);
  const dot = document.createElementNS(ns, "circle");
  for (const [name, value] of Object.entries({ cx: "7", cy: "16", r: "2.5", fill: "currentColor" })) dot.setAttribute(name, value);
  const waves = document.createElementNS(ns, "path");
  waves.setAttribute("d", "M13 9a10 10 0 0 1 0 14M19 5a16 16 0 0 1 0 22M25 1a22 22 0 0 1 0 30");
  svg.append(dot, waves);
  return svg;
}

/**
 * Draws on a canvas at every frame while it is on the screen: `draw(context, width, height,
 * colour)`, in CSS pixels; `colour("--c1")` is the style sheet's, in the light and in the dark.
 * Returns a function that stops.
 */
export function animate(canvas, draw) {
  const context = canvas.getContext("2d");
  let seen = true;
  const unwatch = inView(canvas, (now) => (seen = now));
  let style = getComputedStyle(canvas);
  let running = true;
  let last = 0;
  const colour = (name) => style.getPropertyValue(name).trim();
  const step = (now) => {
    if (!running) return;
    requestAnimationFrame(step);
    if (!seen || (still.matches && now - last < 500)) return;
    const { clientWidth: width, clientHeight: height } = canvas;
    if (width === 0 || height === 0) return;
    last = now;
    const ratio = devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
      style = getComputedStyle(canvas);
    }
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    draw(context, width, height, colour);
  };
  requestAnimationFrame(step);
  return () => {
    running = false;
    unwatch();
  };
}

export const count = (n) => n.toLocaleString("en");

export function bytes(n) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (n >= 1000 && unit < units.length - 1) {
    n /= 1000;
    unit += 1;
  }
  return `${unit === 0 ? n : n.toFixed(n < 10 ? 1 : 0)} ${units[unit]}`;
}
