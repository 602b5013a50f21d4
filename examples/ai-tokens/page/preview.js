// The newest answer, as it is given.

import { make, recent } from "./frame.js";

/** A row of the gallery asks when there was no question for so long. */
const QUIET_S = 15;

export default async function preview(root, airwave, { fetch, every, plays }) {
  const text = make("p", { className: "preview-text muted" }, "No question yet. Ask one, and read the answer here as the model gives it.");
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
  let quiet = 1;
  list.on("answer", ({ is }) => (quiet = is === "running" ? 60 : QUIET_S));
  list.on("answer", ({ id, is }) => is === "running" && show(id));
  list.on("gap", () => {});
  const past = await recent("ai/list", 1, fetch);
  for (const { data } of past.events) if (!answer) show(data.id);
  const question = async () => {
    ask.disabled = true;
    const own = airwave.channel(`ai/${crypto.randomUUID().slice(0, 8)}`);
    await own.send("ask", "What does a channel promise?").catch((error) => (text.textContent = error.message));
    own.close();
    ask.disabled = false;
  };
  ask.addEventListener("click", question);
  every(1000, () => {
    if (!plays || quiet-- > 0 || ask.disabled) return;
    quiet = QUIET_S;
    void question();
  });
  return () => {
    list.close();
    answer?.close();
  };
}
