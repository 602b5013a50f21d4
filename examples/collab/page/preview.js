// The text as it is being written.

import { SharedText } from "./shared-text.js";

export default function preview(root, airwave) {
  const box = document.createElement("p");
  box.style.cssText = "white-space:pre-wrap;overflow:hidden;max-height:130px;overflow-wrap:anywhere";
  root.append(box);
  const shared = new SharedText();
  const show = () => {
    const text = shared.text.toString();
    box.textContent = text ? text.slice(-300) : "An empty page: open the example in two windows, and write.";
  };
  shared.onchange = show;
  show();
  shared.connect(airwave, "collab/notes");
  return () => shared.disconnect();
}
