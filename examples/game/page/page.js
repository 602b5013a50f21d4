// A player: says where it wants to go, and shows what the server makes of it.

import { Arena } from "./arena.js";
import { animate, identity, make, open, toast } from "./frame.js";

/** Directions are told at most so often. */
const STEER_MS = 33;

const byId = (id) => document.getElementById(id);
const canvas = byId("arena");

// Each tab is a player.
const me = await identity("game-id", () => [...crypto.getRandomValues(new Uint8Array(8))].map((byte) => byte.toString(16).padStart(2, "0")).join(""));
byId("name").value = sessionStorage.getItem("game-name") ?? "";

const { airwave, watch } = open({ title: "Game", recommended: "websocket", token: () => me });
const arena = new Arena();
const channel = watch(airwave.channel("game/arena"));
arena.follow(channel);

let name;
channel.on("state", ({ state }) => state === "open" && void enter());
channel.on("error", ({ message }) => toast(message));

/** At first, and whenever the line has been down: a restarted server knows no player. */
async function enter() {
  if (!name) return;
  try {
    ({ size: arena.size } = await channel.send("enter", { name }));
    told = { x: 0, y: 0 };
    steer();
  } catch (error) {
    toast(error.message);
  }
}

byId("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  name = byId("name").value.trim() || "Player";
  sessionStorage.setItem("game-name", name);
  byId("enter").hidden = true;
  canvas.focus();
  void enter();
});

// ---- where to ------------------------------------------------------------------------------

const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], KeyA: [-1, 0], KeyD: [1, 0], KeyW: [0, -1], KeyS: [0, 1] };
const held = new Set();
let pointer = null;
let told = { x: 0, y: 0 };
let waiting;

for (const [type, change] of [["keydown", "add"], ["keyup", "delete"]]) {
  addEventListener(type, (event) => {
    if (!KEYS[event.code] || event.target.tagName === "INPUT") return;
    event.preventDefault();
    held[change](event.code);
    steer();
  });
}
addEventListener("blur", () => {
  held.clear();
  pointer = null;
  steer();
});
for (const type of ["pointerdown", "pointermove", "pointerup", "pointercancel"]) {
  canvas.addEventListener(type, (event) => {
    const down = type === "pointerdown" || (type === "pointermove" && event.buttons > 0);
    if (type === "pointerdown") canvas.setPointerCapture(event.pointerId);
    pointer = down ? { x: event.offsetX, y: event.offsetY } : null;
    steer();
  });
}

function wanted() {
  let [x, y] = [0, 0];
  for (const key of held) [x, y] = [x + KEYS[key][0], y + KEYS[key][1]];
  const mine = arena.players.get(me)?.shown;
  if (pointer && mine && arena.origin) {
    const { left, top, scale } = arena.origin;
    [x, y] = [(pointer.x - left) / scale - mine.x, (pointer.y - top) / scale - mine.y];
    const length = Math.hypot(x, y);
    // Slower where it is almost there.
    const speed = Math.min(1, length / 120) / (length || 1);
    [x, y] = [x * speed, y * speed];
  }
  return { x: Math.round(x * 50) / 50, y: Math.round(y * 50) / 50 };
}

function steer() {
  waiting ??= setTimeout(() => {
    waiting = undefined;
    const { x, y } = wanted();
    if (x !== told.x || y !== told.y) {
      told = { x, y };
      // The next one makes it good if this one is lost: said once, and no answer is asked for.
      if (name) channel.send("steer", told, { repeat: false, reply: false }).catch(() => (told = { x: NaN, y: NaN }));
    }
    if (pointer || held.size) steer();
  }, STEER_MS);
}

// ---- what is shown -------------------------------------------------------------------------

animate(canvas, (context, width, height) => arena.draw(context, width, height, me));
setInterval(() => {
  const ranking = arena.ranking;
  const shown = ranking.slice(0, 6);
  if (name && !shown.some(({ id }) => id === me)) shown.push(...ranking.filter(({ id }) => id === me));
  byId("scores").replaceChildren(...shown.map(({ id, name, hue, score }) => {
    const item = make("li", { className: id === me ? "me" : "" }, make("span", {}, name), make("span", { className: "number" }, String(score)));
    item.style.setProperty("--hue", `hsl(${hue} 75% 58%)`);
    return item;
  }));
  const players = arena.players.size;
  byId("rate").textContent = `${arena.rate} states/s · ${players} players · ${players ? Math.round(arena.rate / players) : 0} per player`;
}, 500);
