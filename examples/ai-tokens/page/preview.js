// The newest answer, as it is given.

import { make, recent } from "./frame.js";

export default async function preview(root, airwave, { fetch }) {
  const text = make("p", { className: "preview-text muted" }, "Nobody has asked yet. Ask, and read the answer here as it is given.");
  const ask = make("button", { type: "button" }, "Ask something");
  root.append(text, make("div", { className: "preview-foot" }, ask));
  let answer;
  const show = (id) => {
    if (answer?.name === `ai/${id}`) return;
    answer?.close();
    answer = airwave.channel(`ai/${id}`);
    text.textContent = "";
    text.classList.remove("muted");
    answer.on("token", (token) => {
      text.append(token);
      text.scrollTop = text.scrollHeight;
    });
    answer.on("gap", () => {});
  };
  const list = airwave.channel("ai/list");
  list.on("answer", ({ id, is }) => is === "running" && show(id));
  list.on("gap", () => {});
  const past = await recent("ai/list", 1, fetch);
  for (const { data } of past.events) if (!answer) show(data.id);
  ask.addEventListener("click", async () => {
    ask.disabled = true;
    const own = airwave.channel(`ai/${crypto.randomUUID().slice(0, 8)}`);
    await own.send("ask", "What does a channel promise?").catch((error) => (text.textContent = error.message));
    own.close();
    ask.disabled = false;
  });
  return () => {
    list.close();
    answer?.close();
  };
}
