// The feed. What this browser has seen, and how far it was marked as read, outlives the page: a
// cursor each.

import { open, recent } from "./frame.js";
import { line, note, words } from "./preview.js";

const CHANNEL = "feed/activity";
const { airwave, watch } = open({ title: "Feed", recommended: "sse" });
const $ = (id) => document.getElementById(id);
const SEEN = "feed:seen"; // the cursor up to which this browser has got
const READ = "feed:read"; // the position up to which it was marked as read
const KEPT = 200;

let read = Number(localStorage.getItem(READ) ?? 0);

function count() {
  let unread = 0;
  for (const item of $("feed").children) {
    const fresh = Number(item.dataset.id ?? 0) > read;
    item.classList.toggle("unread", fresh);
    if (fresh) unread += 1;
  }
  $("unread").hidden = unread === 0;
  $("unread").textContent = `${unread} new`;
  document.title = unread > 0 ? `(${unread}) Feed · Airwave` : "Feed · Airwave";
  $("read").disabled = unread === 0;
}

function show(item) {
  $("feed").prepend(item);
  for (const old of [...$("feed").children].slice(KEPT)) old.remove();
  $("none").hidden = true;
}

function heard(event, data, id) {
  show(line(event, data, id));
  localStorage.setItem(SEEN, id);
  count();
}

$("read").addEventListener("click", () => {
  const newest = [...$("feed").children].find((item) => item.dataset.id);
  read = Number(newest?.dataset.id ?? read);
  localStorage.setItem(READ, String(read));
  count();
});
// Another tab of this browser has read it.
addEventListener("storage", ({ key, newValue }) => {
  if (key !== READ) return;
  read = Number(newValue);
  count();
});

if ("Notification" in globalThis && Notification.permission === "default") $("notify").hidden = false;
$("notify").addEventListener("click", async () => {
  await Notification.requestPermission();
  $("notify").hidden = true;
});
function notify(event, data) {
  if (!document.hidden || globalThis.Notification?.permission !== "granted") return;
  const [title, body] = words(event, data);
  new Notification(title, { body, tag: CHANNEL });
}

// What was there when this browser looked last is shown from history; what came since then is asked
// for by its cursor, and any loss is told.
const seen = localStorage.getItem(SEEN);
const past = await recent(CHANNEL, KEPT);
const old = seen === null ? past.events : past.events.filter(({ id }) => Number(id) <= Number(seen));
for (const { event, data, id } of old) show(line(event, data, id));
if (seen === null) {
  // The first visit: nothing of what was there is news.
  read = Number(past.cursor);
  localStorage.setItem(READ, String(read));
  localStorage.setItem(SEEN, past.cursor);
} else if (old.length > 0) {
  show(note("mark", "what came after your last visit stands above"));
}
count();

const channel = watch(airwave.channel(CHANNEL, { after: seen ?? past.cursor }));
channel.on("*", (data, { event, id }) => {
  if (event === "airwave.gap") return;
  heard(event, data, id);
  notify(event, data);
});
channel.on("gap", ({ reason, cursor }) => {
  // A server with the memory broker has nothing from before its start.
  show(note("gap", `Something is missing here: the server no longer has it (${reason}).`));
  localStorage.setItem(SEEN, cursor);
});
