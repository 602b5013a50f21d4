// The newest messages of the lobby.

export default function preview(root, airwave) {
  const list = document.createElement("ul");
  list.className = "preview-chat";
  root.append(list);
  const show = ({ from, text }) => {
    const item = document.createElement("li");
    const who = document.createElement("b");
    who.textContent = `${from} `;
    item.append(who, text);
    item.style.cssText = "overflow:hidden;text-overflow:ellipsis;white-space:nowrap;padding:2px 0";
    list.append(item);
    while (list.children.length > 5) list.firstChild.remove();
  };
  const room = airwave.channel("chat/lobby", { after: "0" });
  room.on("said", show);
  room.on("gap", () => {});
  return () => room.close();
}
