// The newest messages of the lobby; in a comparison, a user who talks to themself.

import { make, recent } from "./frame.js";

const LINES = ["Is anybody awake?", "The relay in the north is back.", "Who has the key of the roof?", "It is raining on the aerial.", "Good night, all."];

/** The cast talks in the lobby while no visitor does. */
const CAST = ["Mira", "Tomas"];
const TALK = ["The mast is up.", "And the wind is not.", "Who has the key of the roof?", "It hangs behind the door.", "The relay in the north is back.", "Then good night, all."];
/** They let a person speak. */
const POLITE_MS = 30_000;

export default async function preview(root, airwave, { fetch, me, every }) {
  // A comparison talks in a room of its own, so that it disturbs no visitor.
  const name = me ? "chat/night-shift" : "chat/lobby";
  const list = make("ul", { className: "preview-chat" });
  root.append(list);
  let last = { from: CAST[0], at: 0 };
  const show = ({ from, text, at }) => {
    last = { from, at };
    list.append(make("li", { className: "preview-line" }, make("b", {}, from), ` ${text}`));
    while (list.children.length > 6) list.firstChild.remove();
  };
  const past = await recent(name, 6, fetch);
  for (const { data } of past.events) show(data);
  const room = airwave.channel(name, { after: past.cursor });
  room.on("said", show);
  room.on("gap", () => {});
  let said = 0;
  if (!me) {
    const stop = every(2600, () => {
      const age = Date.now() - last.at;
      if (age < (CAST.includes(last.from) ? 2400 : POLITE_MS)) return;
      const data = { text: TALK[said % TALK.length] };
      const headers = { "content-type": "application/json", authorization: `Bearer ${CAST[said % CAST.length]}` };
      said += 1;
      void fetch(`/channels/${name}`, { method: "POST", headers, body: JSON.stringify({ event: "say", data }) }).catch(() => {});
    });
    return () => {
      stop();
      room.close();
    };
  }

  const typing = airwave.channel(`${name}/typing`);
  typing.on("gap", () => {});
  let step = 0;
  const stop = every(700, () => {
    step += 1;
    // As people write: two hints that they do, and then what they wrote.
    const sent = step % 3 > 0 ? typing.send("typing", true, { repeat: false, reply: false }) : room.send("say", { text: LINES[(step / 3) % LINES.length] });
    sent.catch(() => {});
  });
  return () => {
    stop();
    room.close();
    typing.close();
  };
}
