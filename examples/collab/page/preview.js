// The text as it is being written; in a comparison, somebody who writes it.

import { make } from "./frame.js";
import { SharedText } from "./shared-text.js";

const WORDS = "Each of these letters is an update of its own, checked and merged by the server, and shown here when it has been told to everybody. ";

export default function preview(root, airwave, { me }) {
  const box = make("p", { className: "preview-text" });
  box.style.cssText = "white-space:pre-wrap;overflow-wrap:anywhere";
  root.append(box);
  const shared = new SharedText();
  const show = () => {
    const text = shared.text.toString();
    box.textContent = text ? text.slice(-300) : "An empty page. Open the example in two windows, and write.";
    box.classList.toggle("muted", !text);
  };
  shared.onchange = show;
  show();
  // A comparison writes where it disturbs nobody, each side on a page of its own.
  shared.connect(airwave, me ? `collab/compared-${me.split("-")[0]}` : "collab/notes");
  if (!me) return () => shared.disconnect();

  let step = 0;
  const timer = setInterval(() => {
    const length = shared.text.length;
    shared.replace(length > 2 * WORDS.length ? 0 : length, length > 2 * WORDS.length ? length : 0, WORDS[step % WORDS.length]);
    step += 1;
  }, 200);
  return () => {
    clearInterval(timer);
    shared.disconnect();
  };
}
