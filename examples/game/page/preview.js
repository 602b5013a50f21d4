// The arena, small.

import { Arena } from "./arena.js";
import { animate } from "./frame.js";

export default function preview(root, airwave) {
  const canvas = document.createElement("canvas");
  canvas.style.cssText = "aspect-ratio:16/7;border-radius:8px;background:#0b1020";
  root.append(canvas);
  const arena = new Arena();
  const channel = airwave.channel("game/arena");
  arena.follow(channel);
  const stop = animate(canvas, (context, width, height) => arena.draw(context, width, height));
  return () => {
    stop();
    channel.close();
  };
}
