// The newest answer, as it is given.

import { make } from "./frame.js";

export default function preview(root, airwave) {
  const text = make("p", { className: "preview-text" }, "Nobody has asked yet.");
  const ask = make("button", { type: "button" }, "Ask something");
  root.append(text, make("div", { className: "preview-foot" }, ask));
  let answer;
  const show = (id) => {
    if (answer?.name === `ai/${id}`) return;
    answer?.close();
    answer = airwave.channel(`ai/${id}`);
    text.textContent = "";
    answer.on("token", (token) => {
      text.append(token);
      text.scrollTop = text.scrollHeight;
    });
    answer.on("gap", () => {});
  };
  const list = airwave.channel("ai/list");
  list.on("answer", ({ id, is }) => is === "running" && show(id));
  list.on("gap", () => {});
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
