// The newest messages of the lobby; in a comparison, somebody who talks to themself.

import { make, recent } from "./frame.js";

const LINES = ["Is anybody awake?", "The relay in the north is back.", "Who has the key of the roof?", "It is raining on the aerial.", "Good night, all."];

export default async function preview(root, airwave, { fetch, me }) {
  // A comparison talks where it disturbs nobody.
  const name = me ? "chat/night-shift" : "chat/lobby";
  const list = make("ul", { className: "preview-chat" });
  root.append(list);
  const show = ({ from, text }) => {
    list.append(make("li", { className: "preview-line" }, make("b", {}, from), ` ${text}`));
    while (list.children.length > 6) list.firstChild.remove();
  };
  const past = await recent(name, 6, fetch);
  for (const { data } of past.events) show(data);
  const room = airwave.channel(name, { after: past.cursor });
  room.on("said", show);
  room.on("gap", () => {});
  if (!me) return () => room.close();

  const typing = airwave.channel(`${name}/typing`);
  typing.on("gap", () => {});
  let step = 0;
  const timer = setInterval(() => {
    step += 1;
    // As people write: two hints that they do, and then what they wrote.
    const sent = step % 3 > 0 ? typing.send("typing", true, { repeat: false, reply: false }) : room.send("say", { text: LINES[(step / 3) % LINES.length] });
    sent.catch(() => {});
  }, 700);
  return () => {
    clearInterval(timer);
    room.close();
    typing.close();
  };
}
