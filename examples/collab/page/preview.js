// The text as it is being written; in a comparison, a user who writes it.

import { make } from "./frame.js";
import { SharedText } from "./shared-text.js";

const WORDS = "Each of these letters is an update of its own, checked and merged by the server, and shown here when it has been told to everybody. ";

/**
 * Two writers of the gallery's own page: one goes on at the end, the other puts right what stands
 * before.
 */
const FIRST = "Dear all, the mast is up and the wind is not. We sail on Friday. ";
const SECOND = "(Saturday, says the harbour.) ";
const FULL = 260;

export default function preview(root, airwave, { me, every }) {
  const box = make("p", { className: "preview-text" });
  box.style.cssText = "white-space:pre-wrap;overflow-wrap:anywhere";
  const shared = new SharedText();
  const show = () => {
    const text = shared.text.toString();
    box.textContent = text ? text.slice(-300) : "An empty page. Open the example in two windows, and write.";
    box.classList.toggle("muted", !text);
  };
  shared.onchange = show;
  show();
  if (me) {
    root.append(box);
    // A comparison writes where it disturbs no visitor, each side on a page of its own.
    shared.connect(airwave, `collab/compared-${me.split("-")[0]}`);
    let step = 0;
    const stop = every(200, () => {
      const length = shared.text.length;
      shared.replace(length > 2 * WORDS.length ? 0 : length, length > 2 * WORDS.length ? length : 0, WORDS[step % WORDS.length]);
      step += 1;
    });
    return () => {
      stop();
      shared.disconnect();
    };
  }

  const other = new SharedText();
  const writers = [["Mira", "--c2"], ["Tomas", "--c3"]].map(([name, colour]) => {
    const tag = make("b", { className: "small" }, name);
    tag.style.color = `var(${colour})`;
    return tag;
  });
  const status = make("p", { className: "preview-line" }, ...writers.flatMap((tag, n) => (n ? [" and ", tag] : [tag])), " write on this page");
  root.append(status, box);
  shared.connect(airwave, "collab/gallery");
  other.connect(airwave, "collab/gallery");
  let [first, second] = [0, 0];
  const stops = [
    every(180, () => {
      const { length } = shared.text;
      if (length > FULL) return shared.replace(0, length, "");
      // A word at a time, as people write.
      const end = FIRST.indexOf(" ", first % FIRST.length) + 1;
      shared.replace(length, 0, FIRST.slice(first % FIRST.length, end));
      first = end % FIRST.length;
    }),
    every(700, () => {
      const at = other.text.toString().indexOf("We sail");
      if (at < 0) return;
      other.replace(at, 0, SECOND[second % SECOND.length]);
      second += 1;
    }),
  ];
  return () => {
    for (const stop of stops) stop();
    shared.disconnect();
    other.disconnect();
  };
}
