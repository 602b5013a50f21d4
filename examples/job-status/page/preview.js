// A job as a card, and the small view of the newest jobs in the gallery.

import { bytes, make, recent } from "./frame.js";

const WORDS = { queued: "waiting", running: "running", done: "done", failed: "failed", cancelled: "cancelled", lost: "lost" };

/**
 * A job's card. `follow(channel)` lets it show what that channel tells; `cancel` is called by its
 * button.
 */
export class Card {
  #seen = { bytes: 0, step: "" };

  constructor(tool, cancel) {
    this.title = make("span", {}, tool || "…");
    this.pill = make("span", { className: "pill" });
    this.told = make("p", { className: "told" });
    this.bars = [make("b"), make("b")];
    this.stop = make("button", { type: "button", className: "danger" }, "Cancel");
    this.stop.addEventListener("click", () => cancel?.());
    this.element = make("li", { className: "card job" }, make("h3", {}, this.title, this.pill), this.stop, make("div", { className: "steps" }, ...this.bars.map((bar) => make("i", {}, bar))), this.told);
    this.is("queued");
  }

  is(state) {
    this.state = state;
    this.element.dataset.is = state;
    this.pill.dataset.is = state;
    this.pill.textContent = WORDS[state] ?? state;
    this.stop.hidden = state !== "queued" && state !== "running";
  }

  follow(channel) {
    channel.on("queued", ({ tool }) => {
      this.title.textContent = tool;
      this.told.textContent = "waits for its turn";
    });
    channel.on("started", (started) => {
      this.#seen.bytes = started.bytes;
      this.is("running");
    });
    channel.on("progress", ({ step, done }) => {
      this.is("running");
      const at = step === "compressing" ? 0 : 1;
      if (at === 1) this.bars[0].style.transform = "scaleX(1)";
      this.bars[at].style.transform = `scaleX(${done})`;
      this.told.textContent = `${step}: ${Math.round(done * 100)} % of ${bytes(this.#seen.bytes)}`;
    });
    channel.on("finished", ({ is, why, packed, ratio, seconds, ...told }) => {
      this.is(is);
      if (is === "done") {
        for (const bar of this.bars) bar.style.transform = "scaleX(1)";
        this.told.textContent = `${bytes(told.bytes)} became ${bytes(packed)} (${(ratio * 100).toFixed(1)} %) in ${seconds.toFixed(1)} s, unpacked and compared`;
      } else this.told.textContent = why ?? "cancelled before it was done";
    });
    channel.on("gap", () => this.lost());
  }

  /** The server that ran it is gone, and what it kept of it, too. */
  lost() {
    if (this.state === "done" || this.state === "failed" || this.state === "cancelled") return;
    this.is("lost");
    this.told.textContent = "The server was restarted, and this job died with it.";
  }
}

/** A row of the gallery runs a job when there has been none for so long. */
const QUIET_S = 12;

export default async function preview(root, airwave, { fetch, every }) {
  const line = make("p", { className: "preview-line" }, "No job has run yet. Run one: every tab sees it.");
  const start = make("button", { type: "button" }, "Run gzip -1");
  const bar = make("progress", { max: 1, value: 0 });
  root.append(line, bar, make("div", { className: "preview-foot" }, start));
  let job;
  const show = ({ id, tool }) => {
    job?.close();
    bar.value = 0;
    job = airwave.channel(`jobs/${id}`);
    job.on("queued", () => (line.textContent = `${tool}: waits for its turn`));
    job.on("progress", ({ step, done }) => {
      line.textContent = `${tool}: ${step} ${Math.round(done * 100)} %`;
      bar.value = step === "compressing" ? done * 0.75 : 0.75 + done * 0.25;
    });
    job.on("finished", ({ is, ratio }) => {
      bar.value = is === "done" ? 1 : 0;
      line.textContent = is === "done" ? `${tool}: done, ${(ratio * 100).toFixed(1)} % of its size; the channel has ended` : `${tool}: ${is}`;
    });
    job.on("gap", () => {});
  };
  const list = airwave.channel("jobs/list");
  let quiet = 1;
  list.on("job", () => (quiet = QUIET_S));
  list.on("job", (told) => told.is === "running" && show(told));
  list.on("gap", () => {});
  const past = await recent("jobs/list", 1, fetch);
  for (const { data } of past.events) if (!job) show(data);
  const run = async () => {
    start.disabled = true;
    const own = airwave.channel(`jobs/${crypto.randomUUID().slice(0, 8)}`);
    await own.send("start", "gzip -1").catch((error) => (line.textContent = error.message));
    own.close();
    start.disabled = false;
  };
  start.addEventListener("click", run);
  // One now and then, if none is running.
  every(1000, () => {
    if (quiet-- > 0 || start.disabled) return;
    quiet = QUIET_S;
    void run();
  });
  return () => {
    list.close();
    job?.close();
  };
}
