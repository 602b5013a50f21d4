// The editor: a plain text field over a mirror of itself that shows where the others are.

import { identity, make, open, someone } from "./frame.js";
import { SharedText } from "./shared-text.js";

/** A cursor that is silent for so long is removed. */
const SILENT_MS = 20_000;
const TELL_MS = 60;

const byId = (id) => document.getElementById(id);
const [field, mirror] = [byId("text"), byId("mirror")];

// Each tab is a writer.
const me = await identity("collab-name", () => `${someone()}~${Math.random().toString(36).slice(2, 8)}`);

const { airwave, watch } = open({ title: "Collaborative text", recommended: "websocket", token: () => me });
const asked = location.hash.slice(1);
const name = /^[A-Za-z0-9_-]{1,40}$/.test(asked) ? asked : "notes";
byId("document").textContent = name;
addEventListener("hashchange", () => location.reload());

const shared = new SharedText();
const others = new Map();
let cursors;
let online = true;
/** Where this page's own selection is, as places in the text. */
let anchor = shared.place(0);
let head = anchor;
let shown = "";

connect();

function connect() {
  watch(shared.connect(airwave, `collab/${name}`));
  cursors = airwave.channel(`collab/${name}/cursors`);
  cursors.on("cursor", ({ who, cursor }) => {
    if (who === me) return;
    if (cursor) {
      if (!others.has(who)) tell();
      others.set(who, { ...cursor, at: Date.now() });
    } else others.delete(who);
    paint();
  });
  // A place that was missed is told again with the next.
  cursors.on("gap", () => {});
  cursors.on("state", ({ state }) => state === "open" && tell());
}

const STATUS = { offline: "Offline: what you write is kept here and merged later", syncing: "Comparing with the server …", synced: "Everything is saved and shared" };
shared.onstatus = (status, why) => {
  byId("status").textContent = status === "refused" ? `Not taken: ${why}` : STATUS[status];
  byId("status").dataset.is = status;
};
shared.onstatus("offline");

shared.onchange = (remote) => {
  const text = shared.text.toString();
  if (remote && text !== field.value) {
    const focused = document.activeElement === field;
    field.value = text;
    const [from, to] = [shared.index(anchor) ?? 0, shared.index(head) ?? 0];
    if (focused) field.setSelectionRange(Math.min(from, to), Math.max(from, to), from > to ? "backward" : "forward");
  }
  shown = text;
  paint();
};

field.addEventListener("input", () => {
  const [before, after] = [shown, field.value];
  // What stands in front of the caret is new, what stands behind it was there: that is how two
  // equal letters are told apart.
  const caret = field.selectionEnd;
  let end = 0;
  while (end < after.length - caret && end < before.length && before[before.length - 1 - end] === after[after.length - 1 - end]) end += 1;
  let start = 0;
  while (start < Math.min(before.length, after.length) - end && before[start] === after[start]) start += 1;
  shared.replace(start, before.length - end - start, after.slice(start, after.length - end));
  moved();
});
document.addEventListener("selectionchange", () => document.activeElement === field && moved());

function moved() {
  const { selectionStart: from, selectionEnd: to, selectionDirection: direction } = field;
  const [a, h] = direction === "backward" ? [to, from] : [from, to];
  [anchor, head] = [shared.place(a), shared.place(h)];
  tell();
}

let telling;
function tell() {
  telling ??= setTimeout(() => {
    telling = undefined;
    // A place that cannot be told now is told with the next.
    if (cursors?.state === "open") cursors.send("cursor", { anchor, head }, { repeat: false, reply: false }).catch(() => {});
  }, TELL_MS);
}
setInterval(() => {
  if (document.visibilityState === "visible") tell();
  for (const [who, { at }] of others) if (Date.now() - at > SILENT_MS) others.delete(who);
  paint();
}, SILENT_MS / 4);

byId("line").addEventListener("click", () => {
  online = !online;
  byId("line").setAttribute("aria-pressed", String(!online));
  byId("line").textContent = online ? "Work offline" : "Back online";
  if (online) return connect();
  shared.disconnect();
  cursors.close();
  others.clear();
  paint();
});

let painting;
function paint() {
  painting ??= requestAnimationFrame(() => {
    painting = undefined;
    const places = [...others].flatMap(([who, cursor]) => {
      const [from, to] = [shared.index(cursor.anchor), shared.index(cursor.head)];
      return from === null || to === null ? [] : [{ who, from: Math.min(from, to), to: Math.max(from, to), caret: to }];
    });
    const text = shown;
    const cuts = [...new Set([0, text.length, ...places.flatMap(({ from, to }) => [from, to])])].sort((a, b) => a - b);
    const parts = [];
    cuts.forEach((cut, n) => {
      for (const { who } of places.filter(({ caret }) => caret === cut)) parts.push(caretOf(who));
      if (n + 1 === cuts.length) return;
      const piece = text.slice(cut, cuts[n + 1]);
      const selected = places.find(({ from, to }) => from <= cut && cut < to);
      const span = make("span", { className: selected ? "range" : "" }, piece);
      if (selected) span.style.backgroundColor = `hsl(${hue(selected.who)} 70% 60% / 30%)`;
      parts.push(span);
    });
    // A last line that is empty has a height, too.
    mirror.replaceChildren(...parts, "\n\u200b");
    byId("writers").replaceChildren(...[me, ...others.keys()].map(badge));
    byId("size").textContent = `${text.length.toLocaleString("en")} characters`;
  });
}

function caretOf(who) {
  const caret = make("span", { className: "caret" });
  caret.dataset.name = label(who);
  caret.style.borderColor = colour(who);
  caret.style.setProperty("--hue", colour(who));
  return caret;
}

function badge(who) {
  const item = make("li", {}, who === me ? `${label(who)} (you)` : label(who));
  item.style.backgroundColor = colour(who);
  return item;
}

const label = (who) => who.split("~")[0];
const colour = (who) => `hsl(${hue(who)} 55% 28%)`;
function hue(who) {
  let sum = 7;
  for (const c of who) sum = (sum * 31 + c.codePointAt(0)) % 3600;
  return sum / 10;
}
paint();
