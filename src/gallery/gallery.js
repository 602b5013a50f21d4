// The decision matrix, each row live. All rows share one client, so one stream and one socket carry
// them all; a row that is compared has two of its own.

import { bytes, calmly, count, CUT_MS, inView, loaded, make, metered, still, TITLES } from "./frame.js";

/** What the preset's words cannot say in a table: why, and what the other transport would cost. */
const ROWS = {
  dashboard: {
    title: "Dashboard",
    reason: "Tabs only listen. SSE is plain HTTP: every proxy passes it and the browser reconnects it. A WebSocket would carry the same figures, and add a way up that no page uses.",
    verdict: "Nearly the same bytes down, and nothing up once it has begun: so the simpler one.",
  },
  "job-status": {
    title: "Job status",
    reason: "A job tells how it gets on, and ends. With SSE a plain EventSource hears all of it, and a 204 stops it when the job is over. A WebSocket has no such word: each client must know by itself when to stop.",
    verdict: "The same few events; SSE also knows an end that every browser understands.",
  },
  "ai-tokens": {
    title: "AI tokens",
    reason: "One long answer, of which a refresh wants the beginning. SSE resumes by Last-Event-ID. The rate of the rule coalesces tokens, which matters more than the transport.",
    verdict: "Framing is a few bytes a token: an SSE event has its id and name in text. In return any HTTP client can read it.",
  },
  feed: {
    title: "Feed",
    reason: "The server tells what happened; a client that slept asks for what it missed by its cursor. Nothing goes up but a mark now and then, which a POST carries.",
    verdict: "A quiet line on both. SSE needs no ping from the client and survives any proxy.",
  },
  chat: {
    title: "Chat",
    reason: "People answer, and typing is news too. On a WebSocket a message is one small frame; over SSE each is an HTTP request with all its headers.",
    verdict: "Look at the bytes up: each line said over SSE costs a whole request.",
  },
  collab: {
    title: "Shared editor",
    reason: "Each keystroke goes both ways, and is binary. WebSocket frames carry bytes as they are; SSE makes base64 of them, a third more, and a request of each keystroke.",
    verdict: "Bytes up tell: a keystroke is some 60 bytes as a frame, and ten times that as a request.",
  },
  game: {
    title: "Game",
    reason: "Input goes up many times a second. A frame costs tens of bytes, a POST costs half a kilobyte and an answer each. Only the newest state of each player counts, on both.",
    verdict: "Fifteen inputs a second are fifteen requests a second over SSE: this is what WebSocket is for.",
  },
  trading: {
    title: "Trading",
    reason: "Quotes down, orders up, each acknowledged on the line that it came by. Quotes are conflated per symbol, so a slow screen shows the newest price and not a queue.",
    verdict: "Quotes cost the same; each order over SSE is a request of its own.",
  },
};

const other = { sse: "websocket", websocket: "sse" };
/** A line that is cut here for a moment comes back within that moment. */
const BACK_SOON = [300, 1200];
const shared = metered("auto", { share: true, backoff: BACK_SOON });
const total = document.getElementById("total");
shared.cost.onchange = calmly(() => (total.textContent = `This page, all rows together: ${shared.cost}`));

/**
 * The row that is compared now: one at a time, because a browser has six connections for a host.
 */
let compared;

const words = ({ delivery, max_rate: rate, history, replay, presence }) =>
  [
    delivery === "latest" ? "newest of each key" : "every event",
    rate ? `at most ${rate}/s` : "",
    history.events > 0 ? `${count(history.events)} events or ${hours(history.age_s)} kept` : "nothing kept",
    replay === "all" ? "all of it on subscribe" : replay === "last" ? "last values on subscribe" : "",
    presence ? "presence" : "",
  ]
    .filter(Boolean)
    .join(" · ");
const hours = (seconds) => (seconds >= 172_800 ? `${seconds / 86_400} days` : seconds >= 3600 ? `${seconds / 3600} h` : `${seconds / 60} min`);

/**
 * What a row does by itself while it is in view, unless the person wants less motion and has not
 * asked for it.
 */
function life(root, asked) {
  let seen = false;
  const timers = new Set();
  const unwatch = inView(root, (now) => {
    seen = now;
    root.dataset.seen = String(now);
  });
  const every = (ms, act) => {
    const moves = () => seen && document.visibilityState === "visible" && (asked || !still.matches);
    const timer = setInterval(() => moves() && act(), ms);
    timers.add(timer);
    return () => clearInterval(timer);
  };
  const stop = () => {
    unwatch();
    for (const timer of timers) clearInterval(timer);
  };
  return { every, stop };
}

/**
 * Tells in one pill how the channels of a view are carried, and what became of them after a cut.
 */
class Line {
  constructor(pill, told) {
    this.pill = pill;
    this.told = told;
    this.down = new Map();
    this.lost = 0;
  }

  /** A client whose channels are watched. */
  over(airwave) {
    return { channel: (name, options) => this.watch(airwave.channel(name, options)) };
  }

  watch(channel) {
    channel.on("state", ({ state, transport }) => {
      if (state === "waiting") {
        if (!this.down.size) this.lost = 0;
        if (!this.down.has(channel)) this.down.set(channel, { cursor: channel.cursor, transport: this.transport });
        this.say("waiting", "cut");
      } else if (state === "open") {
        this.transport = transport;
        if (TITLES[transport]) {
          this.pill.textContent = TITLES[transport];
          this.pill.dataset.is = transport;
        }
        if (this.down.has(channel)) this.back(channel, transport);
      } else if (this.down.delete(channel) && !this.down.size) {
        // It ended, or was let go, before it was back.
        this.resumed();
      }
    });
    channel.on("gap", () => {
      this.lost += 1;
      if (this.told.dataset.is === "open") this.resumed();
    });
    return channel;
  }

  back(channel, transport) {
    const before = this.down.get(channel);
    this.down.delete(channel);
    if (before.cursor && before.transport && before.transport !== transport) {
      this.moved = `${TITLES[before.transport]} lost after ${before.cursor}, on over ${TITLES[transport]} behind the same cursor: `;
    }
    if (!this.down.size) this.resumed();
  }

  resumed() {
    const words = this.lost ? "resumed at the newest: nothing older is kept here" : "resumed, 0 lost";
    this.say("open", `${this.moved ?? ""}${words}`);
  }

  say(is, words) {
    this.told.hidden = false;
    this.told.dataset.is = is;
    this.told.textContent = words;
  }
}

/**
 * One view of an example over one client. `me`: it takes part by itself, under this name.
 * `asked`: the visitor pressed a button for it.
 */
async function side(stage, row, transport, client, me, asked) {
  const box = make("div", { className: "preview" });
  const pill = make("span", { className: "pill" }, TITLES[transport]);
  pill.dataset.is = transport;
  const told = make("span", { className: "line small", hidden: true });
  told.setAttribute("role", "status");
  const root = make("div", { className: "side" }, make("div", { className: "head" }, pill, told), box);
  root.dataset.transport = transport;
  stage.append(root);
  const { every, stop: rest } = life(root, asked);
  const line = new Line(pill, told);
  const { default: preview } = await import(`/${row.name}/preview.js`);
  // What it asks for by itself, it asks for as who listens.
  const fetch = (input, init = {}) => client.cost.fetch(input, { ...init, headers: { ...(me && { authorization: `Bearer ${me}` }), ...init.headers } });
  const stop = await preview(box, line.over(client.airwave), { fetch, me, every, plays: row.plays });
  return {
    root,
    line,
    stop: () => {
      rest();
      stop();
    },
  };
}

function figures(root, cost, changed) {
  const values = make("dl", { className: "figures" });
  root.append(values);
  const since = performance.now();
  const paint = () => {
    const seconds = Math.round((performance.now() - since) / 1000);
    const lines = [
      [`${seconds} s`, "messages", "bytes"],
      ["down", count(cost.down), bytes(cost.bytesDown)],
      ["up", count(cost.up), bytes(cost.bytesUp)],
      ["connections", `${cost.open}`, cost.opened > cost.open ? `${cost.opened} in all` : ""],
    ];
    changed();
    values.replaceChildren(...lines.flatMap(([name, ...cells]) => [make("dt", {}, name), ...cells.map((cell) => make("dd", {}, cell))]));
  };
  cost.onchange = calmly(paint);
  paint();
}

/** What was counted so far, as one sentence. */
function measured(kinds, clients) {
  const of = (way, figure) => {
    const [first, second] = clients.map(({ cost }) => cost[figure]);
    const times = Math.max(first, second) / Math.max(1, Math.min(first, second));
    const more = first > second ? kinds[0] : kinds[1];
    return `${way} ${bytes(first)} over ${TITLES[kinds[0]]}, ${bytes(second)} over ${TITLES[kinds[1]]}${times >= 1.15 ? ` (${TITLES[more]}: ${times.toFixed(1)} times)` : ""}`;
  };
  return `So far: ${of("up", "bytesUp")}; ${of("down", "bytesDown")}. `;
}

class Row {
  constructor(row) {
    const { title, reason, verdict } = ROWS[row.use_case];
    this.name = row.use_case;
    this.transport = row.transport;
    this.plays = row.plays;
    this.stage = make("div", { className: "stage" });
    this.measured = make("span", { className: "number" });
    this.verdict = make("p", { className: "verdict", hidden: true }, this.measured, make("span", { className: "muted" }, verdict));
    this.toggle = make("button", { type: "button" }, `Compare with ${TITLES[other[row.transport]]}`);
    this.toggle.setAttribute("aria-pressed", "false");
    this.toggle.addEventListener("click", () => this.compare(this.toggle.getAttribute("aria-pressed") !== "true", true));
    const pill = make("span", { className: "pill" }, TITLES[row.transport]);
    pill.dataset.is = row.transport;
    const link = row.example ? make("a", { href: `/${row.use_case}/` }, title) : make("span", {}, title);
    const source = make("a", { className: "small", href: `/${row.use_case}/source/main.rs` }, "Source");
    source.setAttribute("aria-label", `Source of ${title}`);
    const go = make("a", { className: "button", href: `/${row.use_case}/` }, "Open");
    go.setAttribute("aria-label", `Open ${title}`);
    const actions = make("div", { className: "actions" }, go, this.toggle);
    if (row.transport === "websocket") {
      this.taken = make("button", { type: "button", title: "As behind a proxy that passes no WebSockets" }, TAKE);
      this.taken.addEventListener("click", () => this.take(!this.alone));
      actions.append(this.taken);
    }
    actions.append(source);
    actions.hidden = !row.example;
    this.element = make(
      "li",
      { className: "card row" },
      make("div", {}, make("h2", {}, link, pill), make("p", { className: "use small" }, make("code", {}, `use_case = "${row.use_case}"`)), make("p", { className: "reason" }, reason), make("p", { className: "preset" }, words(row)), actions),
      this.stage,
      this.verdict,
    );
    this.element.dataset.transport = row.transport;
    this.element.dataset.row = row.use_case;
    this.sides = [];
    if (row.example) this.ready = this.show([[row.transport, shared]]);
    else this.stage.append(make("p", { className: "muted small" }, "This row has no example yet."));
  }

  /** Runs the example once for each of the clients. */
  async show(clients, asked = false) {
    // One after the other: a view that is still loading must not be left behind.
    await this.ready;
    for (const { stop } of this.sides.splice(0)) stop();
    this.stage.replaceChildren();
    this.stage.classList.toggle("both", clients.length > 1);
    for (const [transport, client, me] of clients) {
      const made = await side(this.stage, this, transport, client, me, asked);
      if (me) figures(made.root, client.cost, () => (this.measured.textContent = measured(clients.map(([kind]) => kind), clients.map(([, one]) => one))));
      this.sides.push(made);
    }
  }

  async compare(on, asked) {
    if (on && this.alone) await this.take(false);
    this.toggle.setAttribute("aria-pressed", String(on));
    this.toggle.textContent = on ? "End the comparison" : `Compare with ${TITLES[other[this.transport]]}`;
    this.verdict.hidden = !on;
    if (!on) {
      if (compared === this) compared = undefined;
      await this.show([[this.transport, shared]]);
      for (const { airwave } of this.clients ?? []) airwave.close();
      this.clients = undefined;
      return;
    }
    const before = compared;
    compared = this;
    if (before) await before.compare(false);
    const kinds = [this.transport, other[this.transport]];
    const names = kinds.map((kind) => `${kind}-${Math.random().toString(36).slice(2, 6)}`);
    this.clients = kinds.map((kind, i) => metered(kind, { token: () => names[i], backoff: BACK_SOON }));
    await this.show(kinds.map((kind, i) => [kind, this.clients[i], names[i]]), asked);
  }

  /**
   * Runs the example on a connection of its own whose WebSocket is taken away as soon as it
   * stands.
   */
  async take(on) {
    if (on && compared === this) await this.compare(false);
    this.taken.setAttribute("aria-pressed", String(on));
    this.taken.textContent = on ? "Give it back" : TAKE;
    const before = this.alone;
    this.alone = on ? metered("auto", { backoff: [200, 800] }) : undefined;
    await this.show([[this.transport, this.alone ?? shared]], on);
    before?.airwave.close();
    const { alone } = this;
    if (!alone) return;
    const { line } = this.sides[0];
    // Long enough to be seen on its first transport.
    while (line.transport !== "websocket") await later(50);
    await later(1000);
    alone.cost.takeSockets();
  }

  get clientsNow() {
    return [...(this.clients ?? []), ...(this.alone ? [this.alone] : [])];
  }
}

const TAKE = "Take its WebSocket away";
const later = (ms) => new Promise((done) => setTimeout(done, ms));

const matrix = await loaded("gallery/matrix");
const rows = matrix.map((row) => new Row(row));
document.getElementById("rows").append(...rows.map(({ element }) => element));

// The promise, to be seen: everything is cut, events go on, and nothing of them is lost.
const cut = document.getElementById("cut");
cut.hidden = false;
cut.addEventListener("click", async () => {
  cut.disabled = true;
  cut.textContent = "Cut: events go on";
  shared.cost.cutAll();
  for (const { cost } of rows.flatMap((row) => row.clientsNow)) cost.cut(CUT_MS);
  await later(CUT_MS);
  cut.textContent = "Cut all connections";
  cut.disabled = false;
});

// One row is compared from the beginning: where the difference is a person's to feel.
void rows.find(({ name }) => name === "chat")?.compare(true, false);
