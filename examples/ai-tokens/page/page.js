// One answer is shown: the one that the address names (#id). It is a channel, so a reload gets all
// of it, and then what follows.

import { make, open, recent, toast } from "./frame.js";

const { airwave, watch } = open({ title: "AI tokens", recommended: "sse" });
const $ = (id) => document.getElementById(id);
const WORDS = { running: "answering", done: "complete", stopped: "stopped", failed: "failed", lost: "lost", unknown: "not found" };

let channel;

function is(state) {
  $("is").dataset.is = state;
  $("is").textContent = WORDS[state];
  $("stop").hidden = state !== "running";
  $("text").classList.toggle("running", state === "running");
  // A screen reader waits for the whole answer, and is told once that it is there.
  $("text").setAttribute("aria-busy", String(state === "running"));
  if (state !== "running") $("said").textContent = `The answer is ${WORDS[state]}.`;
}

/**
 * Attaches to an answer: to what there is of it, and to what follows. `asking`: this page asks for
 * it now.
 */
function attach(id, asking = false) {
  channel?.close();
  const own = (channel = airwave.channel(`ai/${id}`));
  $("answer").hidden = false;
  $("hint").hidden = true;
  $("answer").dataset.id = id;
  $("asked").textContent = "";
  $("text").replaceChildren();
  $("told").textContent = "";
  $("said").textContent = "";
  is("running");
  mark(id);
  // A channel that is empty is no answer: its address is wrong, or the server has forgotten it.
  const missing = () => {
    if (channel !== own) return;
    is("unknown");
    $("told").textContent = "There is no answer at this address. Ask a question.";
  };
  own.on("error", missing);
  if (!asking) {
    recent(`ai/${id}`, 1).then(
      ({ events, ended }) => !events.length && !ended && missing(),
      () => {},
    );
  }
  let tokens = 0;
  let at = performance.now();
  // What comes before the line has been quiet for the first time was there already.
  own.on("asked", ({ question, model }) => {
    if ($("is").dataset.is === "unknown") is("running");
    $("asked").textContent = question;
    $("asked").title = model;
  });
  own.on("token", (token) => {
    tokens += 1;
    $("text").append(token);
    const now = performance.now();
    if (now - at > 250 || tokens === 1) {
      at = now;
      $("told").textContent = `${tokens} tokens`;
    }
  });
  own.on("resumed", () => toast(`The line was down. The answer goes on where it stopped, after ${tokens} tokens.`));
  own.on("done", (done) => {
    is(done.is);
    $("told").textContent = done.why ?? `${done.tokens} tokens in ${done.seconds.toFixed(1)} s`;
  });
  own.on("gap", () => {
    if ($("is").dataset.is !== "running") return;
    is("lost");
    $("told").textContent = "The server was restarted, and the rest of this answer is lost.";
  });
}

const lines = new Map();
function list({ id, question, is: state }) {
  let line = lines.get(id);
  if (!line) {
    line = make("a", { href: `#${id}` }, make("span", {}), make("span", { className: "pill" }));
    lines.set(id, line);
    $("answers").prepend(make("li", {}, line));
    for (const old of [...$("answers").children].slice(10)) old.remove();
  }
  line.firstChild.textContent = question;
  line.lastChild.dataset.is = state;
  line.lastChild.textContent = WORDS[state];
  mark(location.hash.slice(1));
}
const mark = (id) => lines.forEach((line, of) => line.setAttribute("aria-current", String(of === id)));

const asked = () => location.hash.slice(1);
addEventListener("hashchange", () => asked() && asked() !== $("answer").dataset.id && attach(asked()));

$("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  const question = $("question").value.trim() || $("question").placeholder;
  const id = crypto.randomUUID().slice(0, 8);
  history.pushState(null, "", `#${id}`);
  attach(id, true);
  $("asked").textContent = question;
  $("question").value = "";
  try {
    await channel.send("ask", question);
  } catch (error) {
    is("failed");
    $("told").textContent = error.message;
  }
});
$("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey) return;
  event.preventDefault();
  $("ask").requestSubmit();
});
$("stop").addEventListener("click", () => channel.send("stop").catch((error) => toast(error.message)));

const past = await recent("ai/list", 50);
for (const { data } of past.events) list(data);
const answers = watch(airwave.channel("ai/list", { after: past.cursor }));
answers.on("answer", list);
answers.on("gap", () => toast("The server was restarted: its answers are gone. Ask again."));
if (asked()) attach(asked());
