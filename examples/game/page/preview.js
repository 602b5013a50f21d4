// The arena, small; in a comparison, a player.

import { Arena } from "./arena.js";
import { animate, make } from "./frame.js";

/** A hand that changes its mind fifteen times a second. */
const STEER_MS = 66;

export default function preview(root, airwave, { me, every }) {
  const canvas = make("canvas");
  canvas.style.cssText = "border-radius:8px;background:#0b1020";
  root.append(canvas);
  const arena = new Arena();
  const channel = airwave.channel("game/arena");
  arena.follow(channel);
  const still = animate(canvas, (context, width, height) => arena.draw(context, width, height, me));
  const stop = () => {
    still();
    channel.close();
  };
  if (!me) return stop;

  channel.on("state", ({ state }) => state === "open" && channel.send("enter", { name: me }).catch(() => {}));
  let angle = 0;
  const rest = every(STEER_MS, () => {
    angle += 0.15;
    const steer = { x: Math.cos(angle), y: Math.sin(angle) };
    if (arena.players.has(me)) channel.send("steer", steer, { repeat: false, reply: false }).catch(() => {});
  });
  return () => {
    rest();
    stop();
  };
}
