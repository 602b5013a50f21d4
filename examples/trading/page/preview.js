// Each symbol and its prices; in a comparison, a user who trades.

import { make } from "./frame.js";

export default function preview(root, airwave, { me, every }) {
  const list = make("ul", {});
  const line = (...cells) => {
    const row = make("li", {}, ...cells.map((text) => make("span", {}, text)));
    row.style.cssText = "display:grid;grid-template-columns:1fr 1fr 1fr 1fr;padding:3px 0;font-variant-numeric:tabular-nums";
    for (const cell of [...row.children].slice(1)) cell.style.textAlign = "right";
    return row;
  };
  const head = line("Symbol", "Last", "Bid", "Ask");
  head.className = "muted small";
  root.append(list);
  list.append(head);
  const rows = new Map();
  const quotes = airwave.channel("trading/quotes");
  quotes.on("quote", ({ symbol, last, opened, bids, asks }) => {
    let row = rows.get(symbol);
    if (!row) {
      rows.set(symbol, (row = line(symbol, "", "", "")));
      list.replaceChildren(head, ...[...rows].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, row]) => row));
    }
    const money = (cents) => (cents / 100).toFixed(2);
    const texts = [symbol, money(last), bids[0] ? money(bids[0][0]) : "–", asks[0] ? money(asks[0][0]) : "–"];
    texts.forEach((text, n) => (row.children[n].textContent = text));
    row.children[0].style.fontWeight = "650";
    row.children[1].style.color = last >= opened ? "var(--good)" : "var(--bad)";
    for (const cell of [row.children[2], row.children[3]]) cell.className = "muted";
  });
  quotes.on("gap", () => {});
  if (!me) return () => quotes.close();

  const account = airwave.channel(`trading/accounts/${me}`);
  account.on("gap", () => {});
  const told = make("p", { className: "preview-line number" }, "orders a share every second");
  root.append(told);
  let orders = 0;
  const stop = every(1000, () => {
    const side = orders % 2 === 0 ? "buy" : "sell";
    const asked = performance.now();
    orders += 1;
    account.send("order", { reference: `${me}-${orders}`, symbol: "WAVE", side, price: null, quantity: 1 }).then(
      ({ order }) => (told.textContent = `order ${order}: ${side} 1 WAVE, acknowledged in ${Math.round(performance.now() - asked)} ms`),
      ({ message }) => (told.textContent = message),
    );
  });
  return () => {
    stop();
    quotes.close();
    account.close();
  };
}
