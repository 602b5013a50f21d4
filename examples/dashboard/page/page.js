// The figures of this machine. The charts begin with what history holds; from its cursor on, the
// channel tells what is new.

import { animate, bytes, make, open, recent, toast } from "./frame.js";
import { chart, Series } from "./preview.js";

const CHANNEL = "dashboard/machine";
const { airwave, watch } = open({ title: "Dashboard", recommended: "sse" });
const $ = (id) => document.getElementById(id);

const series = { cpu: new Series(), used: new Series(), down: new Series(), up: new Series(), read: new Series(), written: new Series() };
const percent = (n) => `${n.toFixed(n < 99.95 ? 1 : 0)} %`;
const rate = (n) => `${bytes(n)}/s`;

/** What each event does, with the second in which it was published. */
const figures = {
  cpu({ all, cores, load, up_s }, at) {
    series.cpu.add(at, all);
    $("cpu-now").textContent = percent(all);
    $("cpu-more").textContent = `load ${load.toFixed(2)} · ${cores.length} ${cores.length === 1 ? "core" : "cores"} · up ${Math.floor(up_s / 3600)} h ${Math.floor(up_s / 60) % 60} min`;
    while ($("cores").childElementCount < cores.length) $("cores").append(make("i", {}, make("b")));
    cores.forEach((core, i) => ($("cores").children[i].firstChild.style.transform = `scaleX(${core / 100})`));
  },
  memory({ total, used, swap }, at) {
    series.used.add(at, (100 * used) / total);
    $("memory-now").textContent = bytes(used);
    $("memory-more").textContent = `of ${bytes(total)} · swap ${bytes(swap)}`;
  },
  network({ down, up }, at) {
    series.down.add(at, down);
    series.up.add(at, up);
    $("network-now").textContent = `↓ ${rate(down)}`;
    $("network-more").textContent = `↑ ${rate(up)}`;
  },
  disk({ read, written, spaces }, at) {
    series.read.add(at, read);
    series.written.add(at, written);
    $("disk-now").textContent = `${rate(written)} written`;
    $("disk-more").textContent = `${rate(read)} read`;
    $("spaces").replaceChildren(
      ...spaces.map(({ at: where, total, free }) => make("div", {}, make("span", {}, make("span", {}, where), make("span", {}, `${bytes(free)} free of ${bytes(total)}`)), make("progress", { max: total, value: total - free }))),
    );
  },
  airwave({ tabs, cpu, memory }) {
    $("tabs").textContent = tabs;
    $("own-cpu").textContent = cpu === null ? "–" : percent(cpu);
    $("own-memory").textContent = memory === null ? "–" : bytes(memory);
  },
};

// A position is the time in microseconds at which the event was published.
const second = (id) => Number(id) / 1e6;
const take = ({ id, event, data }) => figures[event]?.(data, second(id));

const past = await recent(CHANNEL, 1000);
past.events.forEach(take);

const channel = watch(airwave.channel(CHANNEL, { after: past.cursor }));
channel.on("*", (_, event) => take(event));
channel.on("gap", () => toast("Some figures are missing here: the server was away. The charts show a hole, and go on."));

const hundred = () => 100;
animate($("cpu"), chart([[series.cpu, "--c1"]], { top: hundred, unit: (n) => `${n} %` }));
animate($("memory"), chart([[series.used, "--c2"]], { top: hundred, unit: (n) => `${n} %` }));
animate($("network"), chart([[series.down, "--c1"], [series.up, "--c3"]], { unit: rate }));
animate($("disk"), chart([[series.written, "--c3"], [series.read, "--c2"]], { unit: rate }));
