// Jobs: the list tells which there are, and each job's own channel how it gets on.

import { make, open, recent, toast } from "./frame.js";
import { Card } from "./preview.js";

const { airwave, watch } = open({ title: "Job status", recommended: "sse" });
const $ = (id) => document.getElementById(id);
const jobs = new Map();

/** Shows the job on top and listens to its channel: to all of its history, and to what follows. */
function show(id, tool) {
  const known = jobs.get(id);
  if (known) return known;
  const channel = airwave.channel(`jobs/${id}`);
  const card = new Card(tool, () => channel.send("cancel").catch(complain));
  card.element.dataset.id = id;
  card.follow(channel);
  jobs.set(id, card);
  $("jobs").prepend(card.element);
  $("none").hidden = true;
  // Six rows are a page; what is over can be closed.
  for (const old of [...$("jobs").children].slice(8)) old.remove();
  return card;
}

const complain = (error) => toast(error.message);

$("order").addEventListener("submit", async (event) => {
  event.preventDefault();
  const id = crypto.randomUUID().slice(0, 8);
  const tool = $("tool").value;
  const card = show(id, tool);
  plain(id);
  try {
    await airwave.channel(`jobs/${id}`).send("start", tool);
  } catch (error) {
    card.is("failed");
    card.told.textContent = error.message;
  }
});

/** The browser's own listener: no library, and no code to stop it. */
let source;
function plain(id) {
  source?.close();
  $("code").textContent = `new EventSource("/channels/jobs/${id}")`;
  const own = (source = new EventSource(`/channels/jobs/${id}`));
  let heard = 0;
  const show = (is, text) => {
    if (source !== own) return;
    $("plain-state").dataset.is = is;
    $("plain-state").textContent = ["connecting", "open", "closed"][own.readyState];
    $("plain-told").textContent = text;
  };
  const hear = ({ type }) => show("running", `${(heard += 1)} events, the last: ${type}`);
  for (const name of ["queued", "started", "progress", "finished"]) own.addEventListener(name, hear);
  own.onerror = () => {
    // An error that leaves it closed is the 204; any other one it mends by itself.
    if (own.readyState === EventSource.CLOSED) show("done", `${heard} events. It came back, was answered 204, and stopped by itself.`);
    else show("waiting", `${heard} events. The line is down; the browser tries again.`);
  };
}

const past = await recent("jobs/list", 100);
const ids = new Map(past.events.map(({ data }) => [data.id, data.tool]));
for (const [id, tool] of [...ids].slice(-8)) show(id, tool);
const list = watch(airwave.channel("jobs/list", { after: past.cursor }));
list.on("job", ({ id, tool }) => show(id, tool));
list.on("gap", () => {
  for (const card of jobs.values()) card.lost();
  toast("The server was restarted. Jobs that ran in it are lost; new ones start as before.");
});
