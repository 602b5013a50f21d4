// A moving chart, and the small view of the dashboard in the gallery.

import { animate, make, recent } from "./frame.js";

/** Readings of the last minutes, oldest first: `[second, value]`. */
export class Series {
  points = [];

  add(at, value) {
    this.points.push([at, value]);
    while (this.points.length > 0 && at - this.points[0][0] > 300) this.points.shift();
  }
}

/**
 * The clocks of server and browser need not agree: how far the server's is ahead, from the newest
 * readings.
 */
const ahead = (lines) => Math.max(...lines.map(([{ points }]) => (points.length > 0 ? points.at(-1)[0] : 0))) - Date.now() / 1000;

/** A drawing of series over the last `longest` seconds, or as many as there are, for `animate`. */
export function chart(lines, { top, unit, longest = 120, grid = true } = {}) {
  let offset;
  let height = 1;
  return (context, width, tall, colour) => {
    const newest = ahead(lines);
    if (!Number.isFinite(newest) || newest < -1e9) return;
    // Follows the readings, gently: a reading that comes late must not make the chart jump.
    offset = offset === undefined || Math.abs(newest - offset) > 5 ? newest : Math.max(newest, offset - 0.0005);
    const now = Date.now() / 1000 + offset - 1.2;
    const first = Math.min(...lines.map(([{ points }]) => points[0]?.[0] ?? now));
    const span = Math.min(longest, Math.max(15, now - first));
    const x = (at) => width - ((now - at) / span) * width;
    const biggest = top ? top() : Math.max(1, ...lines.flatMap(([{ points }]) => points.filter(([at]) => now - at < span).map(([, value]) => value)));
    height += (nice(biggest, top) - height) * 0.15;
    const y = (value) => tall - 1.5 - (Math.min(value, height) / height) * (tall - 14);
    if (grid) {
      context.strokeStyle = colour("--line");
      context.lineWidth = 1;
      context.beginPath();
      for (const part of [0, 0.5, 1]) {
        context.moveTo(0, Math.round(y(height * part)) + 0.5);
        context.lineTo(width, Math.round(y(height * part)) + 0.5);
      }
      context.stroke();
    }
    for (const [{ points }, name] of lines) {
      for (const piece of pieces(points)) {
        context.beginPath();
        piece.forEach(([at, value], i) => context[i === 0 ? "moveTo" : "lineTo"](x(at), y(value)));
        context.strokeStyle = colour(name);
        context.lineWidth = 1.75;
        context.lineJoin = "round";
        context.stroke();
        context.lineTo(x(piece.at(-1)[0]), tall);
        context.lineTo(x(piece[0][0]), tall);
        context.globalAlpha = 0.13;
        context.fillStyle = colour(name);
        context.fill();
        context.globalAlpha = 1;
      }
    }
    if (grid && unit) {
      context.fillStyle = colour("--muted");
      context.font = "11px system-ui, sans-serif";
      context.fillText(unit(Math.round(nice(biggest, top))), 2, 10);
    }
  };
}

/** A round number not below `n`. */
function nice(n, top) {
  if (top) return n;
  const power = 10 ** Math.floor(Math.log10(n));
  return power * [1, 2, 5, 10].find((step) => step * power >= n);
}

/** The stretches without a hole. */
function* pieces(points) {
  let piece = [];
  for (const point of points) {
    if (piece.length > 0 && point[0] - piece.at(-1)[0] > 4) {
      yield piece;
      piece = [];
    }
    piece.push(point);
  }
  if (piece.length > 1) yield piece;
}

export default async function preview(root, airwave, { fetch }) {
  const canvas = make("canvas");
  const text = make("p", { className: "preview-line number" }, "waiting for the first reading");
  const key = ([colour, name]) => {
    const item = make("span", {}, name);
    item.dataset.colour = colour;
    return item;
  };
  root.append(text, canvas, make("p", { className: "legend small" }, ...[["c1", "processor"], ["c2", "memory"]].map(key)));
  const cpu = new Series();
  const used = new Series();
  const shown = {};
  const take = ({ event, data, id }) => {
    const at = Number(id) / 1e6;
    if (event === "cpu") {
      cpu.add(at, data.all);
      shown.cpu = `processor ${Math.round(data.all)} %`;
    } else if (event === "memory") {
      used.add(at, (100 * data.used) / data.total);
      shown.memory = `memory ${Math.round((100 * data.used) / data.total)} %`;
    }
    text.textContent = [shown.cpu, shown.memory].filter(Boolean).join(" · ") || text.textContent;
  };
  const past = await recent("dashboard/machine", 300, fetch);
  past.events.forEach(take);
  const channel = airwave.channel("dashboard/machine", { after: past.cursor });
  channel.on("*", (_, event) => take(event));
  channel.on("gap", () => {});
  const still = animate(canvas, chart([[used, "--c2"], [cpu, "--c1"]], { top: () => 100, longest: 60, grid: false }));
  return () => {
    still();
    channel.close();
  };
}
