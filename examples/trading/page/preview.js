// Each symbol and its last price.

export default function preview(root, airwave) {
  const list = document.createElement("ul");
  root.append(list);
  const rows = new Map();
  const quotes = airwave.channel("trading/quotes");
  quotes.on("quote", ({ symbol, last, opened, bids, asks }) => {
    let row = rows.get(symbol);
    if (!row) {
      row = document.createElement("li");
      row.style.cssText = "display:grid;grid-template-columns:1fr 1fr 1fr 1fr;padding:3px 0;font-variant-numeric:tabular-nums";
      row.append(...Array.from({ length: 4 }, () => document.createElement("span")));
      rows.set(symbol, row);
      list.replaceChildren(...[...rows].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, row]) => row));
    }
    const money = (cents) => (cents / 100).toFixed(2);
    const texts = [symbol, money(last), bids[0] ? money(bids[0][0]) : "–", asks[0] ? money(asks[0][0]) : "–"];
    texts.forEach((text, n) => (row.children[n].textContent = text));
    row.children[0].style.fontWeight = "650";
    row.children[1].style.color = last >= opened ? "var(--good)" : "var(--bad)";
    for (const cell of [row.children[2], row.children[3]]) cell.className = "muted";
  });
  quotes.on("gap", () => {});
  return () => quotes.close();
}
