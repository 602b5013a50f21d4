// The live page: what is on this node's channels, and one channel heard over both transports side
// by side.
//
// It speaks the protocol of docs/protocol.md with nothing but what a browser has, so it is also an
// example of a client. Everything that arrives is shown through `textContent`, never as markup. All
// URLs are relative to the page's own.

const base = new URL(".", document.baseURI);
const ROWS_KEPT = 400; // per pane: the page must stay light beside a channel with thousands of events a second
const TEXT_SHOWN = 4000; // characters of one event
const CHANNELS_SHOWN = 200;
const FAST = 25; // more events a second than a person reads: then each second shows the last
const SHOWN_OF_A_SECOND = 4;

const $ = (id) => document.getElementById(id);

/** A new element with a class and a text. */
function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// ---- names, URLs, payloads -----------------------------------------------------------------

/** Why `name` is no channel name, or null if it is one. */
function nameFault(name) {
  if (name === "") return "Give the channel a name.";
  if (name.length > 255) return "A channel name has at most 255 characters.";
  if (!/^[A-Za-z0-9\-_.~:@=+/]*$/.test(name)) return "A channel name is made of letters, digits and - _ . ~ : @ = + with / between segments.";
  if (name.split("/").some((segment) => segment === "" || segment === "." || segment === "..")) return "No segment of a channel name may be empty, “.” or “..”.";
  return null;
}

/** The channel's one URL, on which the request decides what is answered. */
function channelUrl(name, query = {}) {
  const url = new URL(`channels/${name}`, base);
  for (const [key, value] of Object.entries(query)) if (value) url.searchParams.set(key, value);
  return url;
}

function socketUrl(name, query) {
  const url = channelUrl(name, query);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  return url;
}

/**
 * JSON in one spelling, so that both panes show the same characters for the same value; other text
 * as it is.
 */
function shown(text) {
  let line = text;
  try {
    const value = JSON.parse(text);
    // A number that JavaScript cannot hold would be shown as another one: then better the text as
    // it came.
    if (!/\d{16}/.test(text)) line = JSON.stringify(value);
  } catch {
    // Not JSON.
  }
  return line.length > TEXT_SHOWN ? `${line.slice(0, TEXT_SHOWN)} … (${line.length.toLocaleString("en")} characters)` : line;
}

/** Bytes as people read them: how many, and the first of them. */
function shownBytes(bytes) {
  const first = Array.from(bytes.subarray(0, 32), (byte) => byte.toString(16).padStart(2, "0")).join(" ");
  return `${bytes.length} ${bytes.length === 1 ? "byte" : "bytes"}: ${first}${bytes.length > 32 ? " …" : ""}`;
}

function fromBase64(text) {
  try {
    return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  } catch {
    return new Uint8Array();
  }
}

/** The text to show for the payload of an envelope (docs/protocol.md, section 5). */
function payloadOf(envelope) {
  if (typeof envelope.text === "string") return shown(envelope.text);
  if (typeof envelope.base64 === "string") return shownBytes(fromBase64(envelope.base64));
  return shown(JSON.stringify(envelope.data));
}

const seconds = (ms) => `${(ms / 1000).toFixed(1)} s`;

// ---- panes: what is seen -------------------------------------------------------------------

/** One pane: rows of events, the state of the line, and the cursor. It knows no transport. */
class Pane {
  constructor(transport, title) {
    const made = $("pane-template").content.firstElementChild.cloneNode(true);
    made.dataset.transport = transport;
    made.querySelector("h3").textContent = title;
    this.transport = transport;
    this.title = title;
    this.part = (role) => made.querySelector(`[data-role="${role}"]`);
    this.rows = this.part("rows");
    this.rows.setAttribute("aria-label", `Events over ${title}`);
    this.paused = false;
    this.onToggle = () => {};
    this.part("toggle").addEventListener("click", () => this.onToggle());
    $("panes").append(made);
    this.reset();
  }

  reset() {
    this.waiting = []; // rows that wait for the next frame, or for the end of a pause
    this.skipped = 0; // rows dropped from `waiting` before anybody saw them
    this.events = 0;
    this.second = { since: performance.now(), events: 0 };
    this.rate = 0;
    this.fast = 0; // seconds in a row in which more came than a person reads
    this.rows.replaceChildren();
    this.cursor("");
    this.state("idle", "idle");
    this.counted();
    this.empty("Listening. What is published from now on shows up here.");
  }

  clear() {
    this.waiting = [];
    this.skipped = 0;
    this.events = 0;
    this.rows.replaceChildren();
    this.counted();
    this.empty("Cleared. The line is still open.");
  }

  /** `state` chooses the colour, `text` says it; `drops` is what the button would do now. */
  state(state, text, drops = false) {
    const pill = this.part("state");
    pill.dataset.state = state;
    pill.textContent = text;
    const toggle = this.part("toggle");
    toggle.textContent = drops ? "Drop" : state === "refused" ? "Try again" : "Resume";
    toggle.title = drops ? "Cut this connection and keep its cursor" : "Connect again, exactly after the last event seen";
    toggle.disabled = state === "idle" || state === "absent";
  }

  cursor(cursor) {
    this.part("cursor").textContent = cursor || "–";
  }

  empty(text) {
    this.part("empty").textContent = text;
    this.part("empty").hidden = this.events > 0;
  }

  /** An event of the channel. `past`: it came with the history, before the line was open. */
  event({ id, event, key, text, past }) {
    this.events += 1;
    if (!past) this.measure();
    showStage();
    this.add({ kind: past ? "past" : "fresh", id, name: event, key, text });
  }

  measure() {
    const now = performance.now();
    const { since } = this.second;
    if (now - since >= 1000) {
      this.rate = Math.round((this.second.events * 1000) / (now - since));
      // One burst is no flood.
      this.fast = this.rate > FAST ? this.fast + 1 : 0;
      this.second = { since: now, events: 0 };
    }
    this.second.events += 1;
  }

  get isFast() {
    return this.fast >= 2;
  }

  /** A control event: kind is subscribed, gap, end, stale or error. */
  control(kind, note, id) {
    this.add({ kind: `control ${kind}`, name: kind, note, id });
  }

  /** A remark of this page. */
  own(note) {
    this.add({ kind: "own", note });
  }

  add(row) {
    this.waiting.push(row);
    // Frames do not come while the tab is hidden: what waits is bounded here, not by the screen.
    if (this.waiting.length > ROWS_KEPT) {
      this.waiting.shift();
      this.skipped += 1;
    }
    if (this.paused) this.counted();
    else this.draw();
  }

  pause(paused) {
    this.paused = paused;
    if (paused) this.counted();
    else this.draw();
  }

  draw() {
    if (this.drawing) return;
    this.drawing = true;
    const soon = (draw) => (this.isFast ? setTimeout(() => requestAnimationFrame(draw), 1000) : requestAnimationFrame(draw));
    soon(() => {
      this.drawing = false;
      if (this.paused) return;
      const rows = this.rows;
      const follows = rows.scrollHeight - rows.scrollTop - rows.clientHeight < 48;
      if (this.isFast) this.thin();
      if (this.skipped > 0) {
        rows.replaceChildren(rowOf({ kind: "own", note: `${this.skipped} more came than this page keeps` }));
        this.skipped = 0;
      }
      rows.append(...this.waiting.map(rowOf));
      this.waiting = [];
      while (rows.childElementCount > ROWS_KEPT) rows.firstElementChild.remove();
      if (follows) rows.scrollTop = rows.scrollHeight;
      this.part("empty").hidden = this.events > 0 || rows.querySelector(".error") !== null;
      this.counted();
    });
  }

  /** Keeps the last events of those that wait, and says how many more there were. */
  thin() {
    const events = this.waiting.filter(({ text }) => text !== undefined);
    const left = events.slice(-SHOWN_OF_A_SECOND);
    const more = events.length - left.length + this.skipped;
    this.skipped = 0;
    this.waiting = this.waiting.filter((row) => row.text === undefined || left.includes(row));
    if (more > 0) this.waiting.unshift({ kind: "own", note: `${more.toLocaleString("en")} more in this second` });
  }

  counted() {
    const held = this.paused ? this.waiting.length + this.skipped : 0;
    const events = `${this.events.toLocaleString("en")} ${this.events === 1 ? "event" : "events"}${this.isFast ? `, ${this.rate}/s` : ""}`;
    this.part("count").textContent = held > 0 ? `${events}, ${held.toLocaleString("en")} behind the pause` : events;
  }
}

function rowOf({ kind, id, name, key, text, note }) {
  const row = element("div", `row ${kind}`);
  if (id && text !== undefined) row.dataset.id = id;
  if (name || id) {
    const meta = element("div", "meta");
    if (name) meta.append(element("span", "event", name));
    if (key) meta.append(element("span", "key", key));
    if (id) meta.append(element("span", "id", id));
    row.append(meta);
  }
  if (note) row.append(element("div", "note", note));
  if (text !== undefined) row.append(element("div", "data", text));
  return row;
}

/** The row under the pointer, in the other pane too: the same event, the same id. */
function showTwins(panes) {
  let current = null;
  const mark = (id) => {
    if (id === current) return;
    current = id;
    for (const pane of panes) {
      for (const row of pane.rows.children) row.classList.toggle("same", id !== null && row.dataset.id === id);
    }
  };
  for (const pane of panes) {
    pane.rows.addEventListener("pointerover", (event) => mark(event.target.closest(".row")?.dataset.id ?? null));
    pane.rows.addEventListener("pointerleave", () => mark(null));
  }
}

// ---- listeners: one channel over one transport ---------------------------------------------

/**
 * Hears one channel: connects, keeps the cursor, comes back after a loss, and tells its pane
 * everything. A subclass knows its transport: `open()` connects and `close()` cuts, both without a
 * word to the pane.
 */
class Listener {
  constructor(pane, channel, cursor) {
    this.pane = pane;
    this.channel = channel;
    this.position = cursor;
    this.retry = 2000;
    this.attempt = 0; // which connection is the current one: what an older one still says is ignored
    this.losses = 0; // since the line was last open: only the first is worth a row
    pane.cursor(cursor);
    pane.onToggle = () => (this.dropped ? this.resume() : this.drop());
  }

  start() {
    this.dropped = false;
    this.attempt += 1;
    this.pane.state("connecting", "connecting", true);
    this.open(this.attempt);
  }

  /** The person cuts the line. The cursor stays. */
  drop() {
    this.stop();
    this.pane.state("dropped", "dropped");
    this.pane.own("You cut the line. Events that come now wait behind the cursor.");
  }

  resume() {
    clearTimeout(this.timer);
    this.losses = 0;
    this.start();
  }

  /** For good, or until `resume`. */
  stop() {
    this.dropped = true;
    this.attempt += 1;
    clearTimeout(this.timer);
    this.close();
  }

  at(cursor) {
    if (!cursor) return;
    this.position = cursor;
    this.pane.cursor(cursor);
  }

  subscribed({ cursor, resumed }) {
    this.losses = 0;
    this.at(cursor);
    this.pane.state("live", "live", true);
    $("hero-listening").textContent = "This page listens to that channel already, over every transport that its rule offers.";
    this.pane.control("subscribed", resumed ? "resumed: nothing is missing since the cursor" : "from here on nothing is missed without a word", cursor);
  }

  gap({ after, cursor, reason }) {
    this.at(cursor);
    this.pane.control("gap", `events after ${after ?? "an unknown position"} are lost (${reason}); the stream goes on`, cursor);
  }

  stale() {
    this.pane.state("stale", "stale", true);
    this.pane.control("stale", "the node cannot reach its broker; the line stays open and catches up");
  }

  ended(cursor) {
    this.over = true;
    this.at(cursor);
    this.pane.control("end", "the channel has ended", cursor);
  }

  /** The end is known to both sides: nothing is left to come back for. */
  finish() {
    this.stop();
    this.pane.state("ended", "ended");
  }

  heard(event) {
    this.at(event.id);
    if (this.pane.part("state").dataset.state === "stale") this.pane.state("live", "live", true);
    this.pane.event(event);
  }

  /** Final: coming back would meet the same answer. */
  refused(code, message) {
    this.stop();
    this.pane.state("refused", code);
    this.pane.control("error", `${code}: ${message}`);
  }

  /** The line broke: back to the cursor after a while. */
  lost(why, wait = this.retry) {
    this.attempt += 1;
    this.close();
    this.pane.state("waiting", `back in ${seconds(wait)}`, true);
    this.losses += 1;
    if (this.over) this.pane.own("The stream is closed. An EventSource asks once more, hears 204, and stops.");
    else if (this.losses === 1) this.pane.own(`${why} Coming back after the cursor, every ${seconds(wait)}.`);
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.start(), wait);
  }
}

/**
 * SSE. It does what an EventSource does, by hand: an EventSource hands out only events whose names
 * were registered beforehand, and hides status codes and the reasons that come with them; this page
 * is there to show all of it.
 */
class SseListener extends Listener {
  async open(attempt) {
    const abort = new AbortController();
    this.abort = abort;
    const current = () => attempt === this.attempt;
    try {
      const headers = { Accept: "text/event-stream" };
      if (this.position) headers["Last-Event-ID"] = this.position;
      const response = await fetch(channelUrl(this.channel), { headers, cache: "no-store", signal: abort.signal });
      if (!current()) return;
      if (response.status === 204) {
        this.finish();
        return;
      }
      if (!response.ok) {
        const { code, message } = await errorOf(response);
        if (current()) this.refused(code, message);
        return;
      }
      const parser = new SseParser((block) => current() && this.block(block), (ms) => (this.retry = ms));
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      for (;;) {
        const { done, value } = await reader.read();
        if (!current()) return;
        if (done) break;
        parser.feed(value);
      }
      if (current()) this.lost("The server ended the stream.");
    } catch {
      if (current()) this.lost("The line broke.");
    }
  }

  close() {
    this.abort?.abort();
  }

  block({ id, event, data }) {
    if (!event.startsWith("airwave.")) {
      const binary = event.endsWith(";base64");
      this.heard({ id, event: binary ? event.slice(0, -";base64".length) : event, text: binary ? shownBytes(fromBase64(data)) : shown(data) });
      return;
    }
    const body = jsonOr(data, {});
    switch (event) {
      case "airwave.subscribed":
        this.subscribed(body);
        break;
      case "airwave.gap":
        this.gap(body);
        break;
      case "airwave.stale":
        this.stale();
        break;
      case "airwave.end":
        // The stream closes now, and the next request with this cursor is answered by 204.
        this.ended(body.cursor);
        break;
      case "airwave.error":
        this.pane.control("error", `${body.code}: ${body.message}`);
        break;
    }
  }
}

/**
 * The parser of an event stream, as the HTML standard describes it. Text comes in in any pieces.
 */
class SseParser {
  constructor(onBlock, onRetry) {
    this.onBlock = onBlock;
    this.onRetry = onRetry;
    this.rest = "";
    this.id = "";
    this.fresh();
  }

  fresh() {
    this.event = "";
    this.data = [];
  }

  feed(text) {
    let buffer = this.rest + text;
    // A CR at the end of a piece may be half of a CR LF: it waits for the next one.
    const held = buffer.endsWith("\r") ? "\r" : "";
    if (held) buffer = buffer.slice(0, -1);
    const lines = buffer.split(/\r\n|\r|\n/);
    this.rest = lines.pop() + held;
    for (const line of lines) this.line(line);
  }

  line(line) {
    if (line === "") {
      if (this.data.length > 0) this.onBlock({ id: this.id, event: this.event || "message", data: this.data.join("\n") });
      this.fresh();
      return;
    }
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    let value = colon < 0 ? "" : line.slice(colon + 1);
    if (value.startsWith(" ")) value = value.slice(1);
    if (field === "data") this.data.push(value);
    else if (field === "event") this.event = value;
    else if (field === "id" && !value.includes("\0")) this.id = value;
    else if (field === "retry" && /^\d+$/.test(value)) this.onRetry(Number(value));
  }
}

/** WebSocket. Its close codes say whether to come back (docs/protocol.md, section 3). */
class SocketListener extends Listener {
  open(attempt) {
    const current = () => attempt === this.attempt;
    const socket = new WebSocket(socketUrl(this.channel, { after: this.position }));
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    let error = null;
    socket.addEventListener("message", ({ data }) => {
      if (!current()) return;
      if (typeof data !== "string") {
        this.binary(new DataView(data));
        return;
      }
      const frame = jsonOr(data, {});
      if (frame.type === "error") error = frame;
      this.frame(frame);
    });
    socket.addEventListener("close", ({ code, reason }) => {
      if (!current()) return;
      const drain = code === 1012 && /^retry=(\d+)$/.exec(reason);
      if (drain) this.lost("The node drains.", Number(drain[1]));
      else if (code >= 4400 && code < 4500 && code !== 4408) this.refused(error?.code ?? `closed ${code}`, error?.message ?? (reason || "the server closed the connection"));
      // A retry of the server's is told over SSE only, so here a little chance keeps many pages
      // from coming back at once.
      else this.lost(code === 1006 ? "The line broke." : `The server closed the connection (${code}).`, 1000 + Math.random() * 2000);
    });
  }

  close() {
    this.socket?.close(1000);
  }

  frame(frame) {
    switch (frame.type) {
      case undefined:
        this.heard({ id: frame.id, event: frame.event, key: frame.key, text: payloadOf(frame) });
        break;
      case "subscribed":
        this.subscribed(frame);
        break;
      case "gap":
        this.gap(frame);
        break;
      case "stale":
        this.stale();
        break;
      case "end":
        this.ended(frame.cursor);
        this.finish();
        break;
      case "error":
        // A final one is shown when the connection closes, with its code.
        break;
    }
  }

  /** Format, channel, event, position, payload (docs/protocol.md, section 5). */
  binary(view) {
    if (view.byteLength < 11 || view.getUint8(0) !== 1) return;
    const bytes = new Uint8Array(view.buffer);
    const channelEnd = 2 + view.getUint8(1);
    const eventEnd = channelEnd + 1 + view.getUint8(channelEnd);
    this.heard({
      id: view.getBigUint64(eventEnd).toString(),
      event: new TextDecoder().decode(bytes.subarray(channelEnd + 1, eventEnd)),
      text: shownBytes(bytes.subarray(eventEnd + 8)),
    });
  }
}

function jsonOr(text, otherwise) {
  try {
    return JSON.parse(text) ?? otherwise;
  } catch {
    return otherwise;
  }
}

/** Code and message of an answer that is not what was asked for. */
async function errorOf(response) {
  const error = jsonOr(await response.text().catch(() => ""), {}).error;
  return { code: error?.code ?? `HTTP ${response.status}`, message: error?.message ?? (response.statusText || "no reason given") };
}

// ---- the stage: the chosen channel ---------------------------------------------------------

const transports = [
  { name: "sse", title: "SSE", Listener: SseListener },
  { name: "websocket", title: "WebSocket", Listener: SocketListener },
];
const panes = transports.map(({ name, title }) => new Pane(name, title));
showTwins(panes);

const stage = { channel: null, listeners: [], reachable: true };

/** Puts the panes in the place of the empty page. */
function showStage() {
  $("hero").hidden = true;
  $("stage").hidden = false;
}

/**
 * Shows `channel`: first what its history holds, then both streams from exactly there on. That is
 * how a page is best built: the answer to the history carries the cursor with which its stream
 * starts. `quietly`: behind the empty page, which gives way to the first event.
 */
async function choose(channel, { quietly = false } = {}) {
  for (const listener of stage.listeners) listener.stop();
  stage.listeners = [];
  stage.channel = channel;
  $("stage-channel").textContent = channel;
  $("publish-channel").value = channel;
  if (!quietly) {
    showStage();
    const hash = `#${channel}`;
    if (location.hash !== hash) history.replaceState(null, "", hash);
    document.title = `${channel} · Airwave`;
  }
  showSnippets(channel);
  markChosen();
  for (const pane of panes) {
    pane.reset();
    pane.onToggle = () => {};
    pane.state("connecting", "connecting", true);
  }

  let past;
  try {
    const response = await fetch(channelUrl(channel, { limit: "50" }), { headers: { Accept: "application/json" }, cache: "no-store" });
    if (stage.channel !== channel) return;
    if (!response.ok) {
      const { code, message } = await errorOf(response);
      if (stage.channel !== channel) return;
      for (const pane of panes) {
        pane.control("error", `${code}: ${message}`);
        pane.state("refused", code);
        pane.onToggle = () => choose(channel);
      }
      return;
    }
    past = await response.json();
    if (stage.channel !== channel) return;
  } catch {
    if (stage.channel !== channel) return;
    for (const pane of panes) {
      pane.state("unreachable", "node out of reach");
      pane.onToggle = () => choose(channel);
    }
    stage.reachable = false; // the next answer of the node brings the channel back
    return;
  }

  stage.reachable = true;
  for (const [index, { name, title, Listener }] of transports.entries()) {
    const pane = panes[index];
    if (past.transports && !past.transports.includes(name)) {
      pane.state("absent", "not offered");
      pane.empty(`This channel's rule does not offer ${title}. To hear both, write transport = ["sse", "websocket"] in its [[channels]] entry.`);
      continue;
    }
    for (const envelope of past.events ?? []) {
      pane.event({ id: envelope.id, event: envelope.event, key: envelope.key, text: payloadOf(envelope), past: true });
    }
    const listener = new Listener(pane, channel, past.cursor);
    stage.listeners.push(listener);
    listener.start();
  }
}

/** Resolves when every listener of the stage is on the air, or after a moment all the same. */
async function onTheAir() {
  const since = performance.now();
  while (performance.now() - since < 1500) {
    if (stage.listeners.length > 0 && stage.listeners.every(({ pane }) => pane.part("state").dataset.state !== "connecting")) return;
    await new Promise((resolve) => setTimeout(resolve, 30));
  }
}

$("pause").addEventListener("click", () => {
  const paused = $("pause").getAttribute("aria-pressed") !== "true";
  $("pause").setAttribute("aria-pressed", String(paused));
  $("pause").textContent = paused ? "Continue" : "Pause";
  for (const pane of panes) pane.pause(paused);
});

$("clear").addEventListener("click", () => {
  for (const pane of panes) pane.clear();
});

// ---- publishing ----------------------------------------------------------------------------

/** The publication that the form describes, or a text that says what is wrong with it. */
function publication() {
  const channel = $("publish-channel").value.trim();
  const fault = nameFault(channel);
  if (fault) return fault;
  const text = $("publish-data").value;
  const made = { channel };
  const event = $("publish-event").value.trim();
  if (event) made.event = event;
  const key = $("publish-key").value;
  if (key) made.key = key;
  if ($("publish").elements.format.value === "text") {
    made.text = text;
  } else {
    try {
      made.data = JSON.parse(text);
    } catch (error) {
      return `This is not JSON: ${error.message}. Choose “text” to publish it as it is.`;
    }
  }
  if ($("publish-end").checked) made.end = true;
  return made;
}

function publishResult(state, text) {
  $("publish-result").dataset.state = state;
  $("publish-result").textContent = text;
}

async function publish() {
  const made = publication();
  if (typeof made === "string") {
    publishResult("bad", made);
    return;
  }
  const button = $("publish").querySelector("button[type=submit]");
  button.disabled = true;
  try {
    if (stage.channel !== made.channel) {
      await choose(made.channel);
      await onTheAir();
    }
    const headers = { "Content-Type": "application/json" };
    const token = $("publish-token").value;
    if (token) headers.Authorization = `Bearer ${token}`;
    const response = await fetch(new URL("publish", base), { method: "POST", headers, body: JSON.stringify(made) });
    if (response.ok) {
      const { cursor } = await response.json();
      publishResult("good", `published as ${cursor}`);
    } else {
      const { code, message } = await errorOf(response);
      if (response.status === 401) $("publish-token-field").hidden = false;
      publishResult("bad", `${code}: ${message}`);
    }
  } catch {
    publishResult("bad", "The node did not answer. Whether the event was published is unknown.");
  } finally {
    button.disabled = false;
  }
}

$("publish").addEventListener("submit", (event) => {
  event.preventDefault();
  publish();
});
$("publish").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    publish();
  }
});
$("publish-channel").addEventListener("change", () => {
  const channel = $("publish-channel").value.trim();
  const fault = nameFault(channel);
  if (fault) publishResult("bad", fault);
  else {
    publishResult("", "");
    if (stage.channel !== channel) choose(channel);
  }
});

// ---- the node and its channels -------------------------------------------------------------

const known = new Map(); // channel name -> its button in the list
let latest = [];

function showNode({ node, connections }) {
  $("node-state").dataset.state = "live";
  $("node-state").textContent = "on the air";
  $("node-version").textContent = node.version;
  $("node-broker").textContent = node.broker;
  $("node-uptime").textContent = duration(node.uptime_s);
  $("node-sse").textContent = (connections.sse ?? 0).toLocaleString("en");
  $("node-websocket").textContent = (connections.websocket ?? 0).toLocaleString("en");
}

function duration(total) {
  const [days, hours, minutes] = [Math.floor(total / 86400), Math.floor(total / 3600) % 24, Math.floor(total / 60) % 60];
  if (days > 0) return `${days} d ${hours} h`;
  if (hours > 0) return `${hours} h ${minutes} min`;
  return minutes > 0 ? `${minutes} min ${total % 60} s` : `${total} s`;
}

function size(bytes) {
  if (bytes < 1024) return `${bytes} B`;
  return bytes < 1024 * 1024 ? `${(bytes / 1024).toFixed(1)} KB` : `${(bytes / 1024 / 1024).toFixed(1)} MB`;
}

function showChannels() {
  const wanted = $("channels-filter").value.trim().toLowerCase();
  const matching = latest.filter(({ name }) => name.toLowerCase().includes(wanted));
  const listed = matching.slice(0, CHANNELS_SHOWN);
  $("channels-count").textContent = latest.length > 0 ? latest.length.toLocaleString("en") : "";
  $("channels-none").hidden = latest.length > 0;
  $("channels-filter-label").hidden = latest.length <= 8 && wanted === "";
  const more = matching.length - listed.length;
  $("channels-more").hidden = more === 0;
  $("channels-more").textContent = `and ${more.toLocaleString("en")} more: filter by name`;

  const names = new Set(listed.map(({ name }) => name));
  for (const [name, button] of known) {
    if (!names.has(name)) {
      button.parentElement.remove();
      known.delete(name);
    }
  }
  // Buttons are kept and moved only if they stand elsewhere, so that a list that is read every
  // second keeps focus and pointer.
  let place = $("channels").firstElementChild;
  for (const channel of listed) {
    let button = known.get(channel.name);
    if (!button) {
      button = channelButton(channel.name);
      known.set(channel.name, button);
    }
    fillChannel(button, channel);
    const item = button.parentElement;
    if (item === place) place = place.nextElementSibling;
    else $("channels").insertBefore(item, place);
  }
  const options = listed.map(({ name }) => Object.assign(element("option"), { value: name }));
  if ($("channel-names").childElementCount !== options.length || options.some(({ value }, i) => $("channel-names").children[i].value !== value)) {
    $("channel-names").replaceChildren(...options);
  }
}

function channelButton(name) {
  const button = element("button", "channel");
  button.type = "button";
  button.append(element("span", "name", name), element("span", "facts"));
  button.setAttribute("aria-current", String(name === stage.channel));
  button.addEventListener("click", () => choose(name));
  element("li").append(button);
  return button;
}

function fillChannel(button, { events, bytes, listeners, ended, use_case: useCase, transport, cursor }) {
  const facts = [];
  if (ended) facts.push(["ended", "ended"]);
  if (useCase) facts.push(["", useCase]);
  facts.push(["", `${events.toLocaleString("en")} ${events === 1 ? "event" : "events"}`], ["", size(bytes)]);
  const { sse = 0, websocket = 0 } = listeners;
  const who = [];
  if (sse > 0 || transport.includes("sse")) who.push([sse > 0 ? "sse" : "idle", `SSE ${sse}`]);
  if (websocket > 0 || transport.includes("websocket")) who.push([websocket > 0 ? "websocket" : "idle", `WS ${websocket}`]);
  const text = JSON.stringify([facts, who, cursor]);
  if (button.dataset.shows === text) return;
  button.dataset.shows = text;
  const whoPart = element("span", "who");
  whoPart.title = `listening now: ${sse} over SSE, ${websocket} over WebSocket`;
  whoPart.append(...who.map(([className, part]) => element("span", className, part)));
  button.title = `cursor ${cursor}`;
  button.lastElementChild.replaceChildren(whoPart, ...facts.map(([className, part]) => element("span", className, part)));
}

function markChosen() {
  for (const [name, button] of known) button.setAttribute("aria-current", String(name === stage.channel));
}

$("channels-filter").addEventListener("input", showChannels);

let shownRules = "";
function showRules(rules) {
  const text = JSON.stringify(rules);
  if (text === shownRules) return;
  shownRules = text;
  $("rules-card").hidden = rules.length === 0;
  $("rules").replaceChildren(
    ...rules.map(({ match, use_case: useCase, transport }) => {
      const button = element("button", "rule");
      button.type = "button";
      button.title = "Choose a channel of this rule";
      const facts = element("span", "facts");
      if (useCase) facts.append(element("span", "", useCase));
      for (const { name, title } of transports) if (transport.includes(name)) facts.append(element("span", name, title));
      button.append(element("span", "pattern", match), facts);
      button.addEventListener("click", () => {
        $("publish-channel").value = exampleOf(match);
        $("publish-channel").focus();
        $("publish-channel").select();
      });
      const item = element("li");
      item.append(button);
      return item;
    }),
  );
}

/** A channel that the pattern matches: `orders/{id}` makes `orders/demo`. */
function exampleOf(pattern) {
  return /^\{\*?\w+\}$/.test(pattern) ? "hello" : pattern.replace(/\{\*?\w+\}/g, "demo");
}

/**
 * The first thing to show: the channel in which something happened last, or a first channel to try.
 */
function begin(rules) {
  if (latest.length > 0) {
    choose(latest.reduce((a, b) => (BigInt(b.cursor) > BigInt(a.cursor) ? b : a)).name);
    return;
  }
  const example = rules.length > 0 ? exampleOf(rules[0].match) : "hello";
  $("hero-curl").textContent = curlPublish(example);
  // The address that the command takes for granted need not be typed.
  const usual = ["http://127.0.0.1:8080/", "http://localhost:8080/"].includes(origin);
  $("hero-airwave").textContent = `airwave publish ${example} --event greeting '{"text":"hi"}'${usual ? "" : ` --url ${origin}`}`;
  $("hero").hidden = false;
  choose(example, { quietly: true });
}

let pollTimer;
async function poll() {
  clearTimeout(pollTimer);
  if (document.visibilityState !== "visible") return;
  try {
    const response = await fetch(new URL("live/state", base), { cache: "no-store", signal: AbortSignal.timeout(5000) });
    if (!response.ok) throw new Error(`HTTP ${response.status}`);
    const state = await response.json();
    latest = state.channels;
    showNode(state);
    showChannels();
    showRules(state.rules ?? []);
    if (stage.channel === null) begin(state.rules ?? []);
    else if (!stage.reachable) choose(stage.channel);
  } catch {
    $("node-state").dataset.state = "unreachable";
    $("node-state").textContent = "out of reach";
  }
  clearTimeout(pollTimer);
  pollTimer = setTimeout(poll, 1000);
}
document.addEventListener("visibilitychange", poll);

// ---- snippets ------------------------------------------------------------------------------

const origin = base.href;

function showSnippets(channel) {
  $("how-eventsource").textContent =
    `const source = new EventSource(${JSON.stringify(channelUrl(channel).href)});\n` +
    `source.addEventListener("greeting", (event) => console.log(event.lastEventId, event.data));`;
  $("how-websocket").textContent =
    `const socket = new WebSocket(${JSON.stringify(socketUrl(channel).href)});\n` +
    `socket.onmessage = (message) => console.log(message.data);`;
  $("how-listen").textContent = `curl -N -H 'accept: text/event-stream' ${channelUrl(channel).href}`;
  $("how-publish").textContent = curlPublish(channel);
}

function curlPublish(channel) {
  return `curl ${origin}publish -H 'content-type: application/json' \\\n  -d '{"channel":"${channel}","event":"greeting","data":{"text":"hi"}}'`;
}

for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText($(button.dataset.copies).textContent);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Select it";
    }
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
}

// ---- begin ---------------------------------------------------------------------------------

/** The channel that the address names, as `#orders/abc123`. */
function chooseAsked() {
  const asked = location.hash.slice(1);
  if (asked !== "" && asked !== stage.channel && nameFault(asked) === null) choose(asked);
}
window.addEventListener("hashchange", chooseAsked);
chooseAsked();
poll();
