// One line of the feed, and the last lines of it in the gallery.

import { bytes, make, recent } from "./frame.js";

const SHAPES = {
  file: "M6 2.5h8l4 4v15H6zM14 2.5v4h4",
  commit: "M2 12h6m8 0h6M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8z",
  gap: "M12 4 2.5 20.5h19zM12 10v5m0 2.5v.5",
};

function icon(kind) {
  const ns = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(ns, "svg");
  for (const [name, value] of Object.entries({ viewBox: "0 0 24 24", fill: "none", stroke: "currentColor", "stroke-width": "1.8", "stroke-linejoin": "round", "stroke-linecap": "round", "aria-hidden": "true" })) svg.setAttribute(name, value);
  const path = document.createElementNS(ns, "path");
  path.setAttribute("d", SHAPES[kind] ?? SHAPES.file);
  svg.append(path);
  return svg;
}

/** What happened, in words: the first of them bold. */
export function words(event, data) {
  if (event === "commit") return [data.message, `${data.author} committed ${data.hash.slice(0, 8)}`];
  if (event === "files") return [`${data.count} files`, "changed at once"];
  return [data.path, data.is + (data.is !== "removed" && data.bytes != null ? `, ${bytes(data.bytes)}` : "")];
}

/** A line of the feed. A position is the time in microseconds at which it was published. */
export function line(event, data, id) {
  const [first, more] = words(event, data);
  const at = new Date(event === "commit" && data.at ? data.at * 1000 : Number(id) / 1000);
  const today = at.toDateString() === new Date().toDateString();
  const time = make("time", { dateTime: at.toISOString() }, today ? at.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" }) : at.toLocaleDateString("en-GB", { day: "numeric", month: "short" }));
  const item = make("li", { className: "item" }, icon(event === "files" ? "file" : event), make("div", { className: "what" }, make("b", {}, first), make("div", { className: "more" }, more)), time);
  item.dataset.kind = event;
  item.dataset.id = id;
  if (data.is) item.dataset.is = data.is;
  return item;
}

/** A line that is none of the events: a gap, or how far it was read. */
export function note(kind, text) {
  const item = make("li", { className: "item" }, kind === "gap" ? icon("gap") : "", make("div", { className: "what" }, text));
  item.dataset.kind = kind;
  return item;
}

export default async function preview(root, airwave, { fetch }) {
  const list = make("ul", {});
  root.append(list);
  const show = (event, data) => {
    const [first, more] = words(event, data);
    if (list.firstChild?.dataset.is === "nothing") list.firstChild.remove();
    list.prepend(make("li", { className: "preview-line" }, make("b", {}, first), ` ${more}`));
    for (const old of [...list.children].slice(6)) old.remove();
  };
  const past = await recent("feed/activity", 6, fetch);
  for (const { event, data } of past.events) show(event, data);
  if (past.events.length === 0) {
    const nothing = make("li", { className: "preview-line" }, "Nothing has happened yet. The first file is being written.");
    nothing.dataset.is = "nothing";
    list.append(nothing);
  }
  const channel = airwave.channel("feed/activity", { after: past.cursor });
  channel.on("*", (data, { event }) => event !== "airwave.gap" && show(event, data));
  channel.on("gap", () => {});
  return () => channel.close();
}
