// A desk: quotes of all symbols, one of them in depth, and an account that trades.

import { animate, identity, make, open, recent, toast } from "./frame.js";

const byId = (id) => document.getElementById(id);
const DEPTH = 6;

// Each tab is an account.
const me = await identity("trading-account", () => `desk-${Math.random().toString(36).slice(2, 8)}`);
byId("account").textContent = me;

const { airwave, cost, watch } = open({ title: "Trading", recommended: "websocket", token: () => me });

/** Newest quote of each symbol, and the prices that this page has seen. */
const quotes = new Map();
const prices = new Map();
let selected;
let statement;

// A position is the time in microseconds at which its event was published. What is kept of the last
// minutes begins the charts.
const past = await recent("trading/quotes", 300, cost.fetch);
const quoted = watch(airwave.channel("trading/quotes", { after: past.cursor }));
const take = (quote, { id }) => {
  const isNew = !quotes.has(quote.symbol);
  quotes.set(quote.symbol, quote);
  const seen = prices.get(quote.symbol) ?? prices.set(quote.symbol, []).get(quote.symbol);
  seen.push({ at: Number(id) / 1000, price: middle(quote) });
  if (seen.length > 600) seen.shift();
  selected ??= quote.symbol;
  if (isNew) listSymbols();
  paint();
};
quoted.on("quote", take);
// Quotes that were missed are old, and there is no use for old ones.
quoted.on("gap", () => {});

const account = airwave.channel(`trading/accounts/${me}`);
const state = (told) => {
  statement = told;
  paint();
};
account.on("statement", state);
account.on("gap", () => void ask());
account.on("state", ({ state }) => state === "open" && void ask());
account.on("error", ({ message }) => toast(message));
async function ask() {
  try {
    state(await account.send("statement"));
  } catch (error) {
    toast(error.message);
  }
}

// ---- orders --------------------------------------------------------------------------------

const ticket = byId("ticket");
ticket.addEventListener("change", () => side(ticket.elements.side.value));
function side(value) {
  ticket.dataset.side = value;
  ticket.elements.side.value = value;
  byId("place").textContent = value === "buy" ? "Buy" : "Sell";
}
side("buy");

ticket.addEventListener("submit", async (event) => {
  event.preventDefault();
  const limit = byId("price").value;
  const order = {
    reference: crypto.getRandomValues(new Uint32Array(2)).join("-"),
    symbol: selected,
    side: ticket.elements.side.value,
    price: limit === "" ? null : Math.round(Number(limit) * 100),
    quantity: Number(byId("quantity").value),
  };
  const asked = performance.now();
  acknowledge("waiting", "sent …");
  try {
    // The same reference, however often it has to be repeated: it counts once.
    const ack = await account.send("order", order);
    const took = Math.round(performance.now() - asked);
    const filled = ack.filled ? `${ack.filled} traded at ${(ack.average / 100).toFixed(2)}` : "";
    const rests = ack.resting ? `${ack.resting} waiting` : "";
    const told = [filled, rests].filter(Boolean).join(", ") || "nothing to trade with: cancelled";
    acknowledge("done", `Order ${ack.order}: ${told} · acknowledged in ${took} ms`);
  } catch (error) {
    acknowledge("failed", error.message);
  }
});

function acknowledge(is, text) {
  byId("ack").dataset.is = is;
  byId("ack").textContent = text;
}

async function cancel(order) {
  try {
    acknowledge("done", `Order ${order}: cancelled, ${await account.send("cancel", { order })} had not been traded`);
  } catch (error) {
    acknowledge("failed", error.message);
  }
}

// ---- what is shown -------------------------------------------------------------------------

const money = (cents) => (cents / 100).toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
const middle = ({ bids, asks, last }) => (bids.length && asks.length ? (bids[0][0] + asks[0][0]) / 2 : last);
const tone = (n) => (n > 0 ? "up" : n < 0 ? "down" : "");
const percent = ({ opened, last }) => `${last >= opened ? "+" : "−"}${Math.abs((last / opened - 1) * 100).toFixed(2)} %`;

function listSymbols() {
  byId("symbols").replaceChildren(...[...quotes.keys()].sort().map((symbol) => {
    const canvas = make("canvas");
    const button = make("button", { type: "button" }, make("b", {}, symbol), make("span", { className: "price number" }), canvas);
    button.dataset.symbol = symbol;
    button.addEventListener("click", () => {
      selected = symbol;
      byId("price").value = "";
      paint();
    });
    animate(canvas, (context, width, height, colour) => curve(context, width, height, prices.get(symbol).slice(-120), colour, quotes.get(symbol)));
    return make("li", {}, button);
  }));
}

animate(byId("chart"), (context, width, height, colour) => {
  const quote = quotes.get(selected);
  if (quote) curve(context, width, height, prices.get(selected), colour, quote, true);
});

function curve(context, width, height, seen, colour, quote, large = false) {
  if (seen.length < 2) return;
  const values = seen.map(({ price }) => price);
  const mine = large ? (statement?.open ?? []).filter(({ symbol }) => symbol === quote.symbol).map(({ price }) => price) : [];
  const spread = Math.max(...values) - Math.min(...values) || 1;
  const [low, high] = [Math.min(...values) - spread * 0.12, Math.max(...values) + spread * 0.12];
  const right = large ? width - 62 : width;
  const [from, to] = [seen[0].at, seen.at(-1).at];
  const x = (at) => ((at - from) / (to - from || 1)) * right;
  const y = (price) => height - ((price - low) / (high - low)) * height;
  const hue = colour(quote.last >= quote.opened ? "--good" : "--bad");
  if (large) {
    context.font = "12px system-ui, sans-serif";
    context.textBaseline = "middle";
    for (let n = 0; n < 5; n += 1) {
      const price = low + ((high - low) * (n + 0.5)) / 5;
      line(context, 0, right, y(price), colour("--line"));
      context.fillStyle = colour("--muted");
      context.fillText(money(price), right + 8, y(price));
    }
    context.setLineDash([5, 4]);
    for (const price of mine.filter((price) => price > low && price < high)) line(context, 0, right, y(price), colour("--websocket"));
    context.setLineDash([]);
  }
  context.beginPath();
  seen.forEach(({ at, price }, n) => (n ? context.lineTo(x(at), y(price)) : context.moveTo(x(at), y(price))));
  context.strokeStyle = hue;
  context.lineWidth = large ? 2 : 1.5;
  context.lineJoin = "round";
  context.stroke();
  context.lineTo(right, height);
  context.lineTo(0, height);
  context.globalAlpha = 0.12;
  context.fillStyle = hue;
  context.fill();
  context.globalAlpha = 1;
  if (large) {
    context.fillStyle = hue;
    context.beginPath();
    context.arc(right, y(values.at(-1)), 4, 0, 7);
    context.fill();
  }
}

function line(context, from, to, y, colour) {
  context.strokeStyle = colour;
  context.lineWidth = 1;
  context.beginPath();
  context.moveTo(from, Math.round(y) + 0.5);
  context.lineTo(to, Math.round(y) + 0.5);
  context.stroke();
}

/**
 * The rows of the book, which stay while prices change in them: a button that is replaced loses
 * the focus.
 */
const book = { asks: [], bids: [] };
for (const [name, opposite] of [["asks", "buy"], ["bids", "sell"]]) {
  for (let n = 0; n < DEPTH; n += 1) {
    const row = { take: make("button", { type: "button", title: `${opposite} at this price` }), size: make("td") };
    row.element = make("tr", {}, make("td", {}, row.take), row.size);
    // Where the pointer went down counts: by the time it is up, another price stands there.
    const take = () => {
      if (row.price === undefined) return;
      byId("price").value = (row.price / 100).toFixed(2);
      side(opposite);
    };
    row.element.addEventListener("pointerdown", take);
    // A click that no pointer made: a key, or a screen reader.
    row.take.addEventListener("click", ({ detail }) => detail === 0 && take());
    book[name].push(row);
  }
}
byId("asks").append(...book.asks.map(({ element }) => element).reverse());
byId("bids").append(...book.bids.map(({ element }) => element));

let painting;
function paint() {
  painting ??= requestAnimationFrame(() => {
    painting = undefined;
    for (const button of byId("symbols").querySelectorAll("button")) {
      const quote = quotes.get(button.dataset.symbol);
      button.setAttribute("aria-pressed", String(quote.symbol === selected));
      const price = button.querySelector(".price");
      price.textContent = money(quote.last);
      price.className = `price number ${tone(quote.last - quote.opened)}`;
    }
    const quote = quotes.get(selected);
    if (quote) paintQuote(quote);
    if (statement) paintAccount();
  });
}

function paintQuote(quote) {
  byId("symbol").textContent = quote.symbol;
  byId("last").textContent = money(quote.last);
  byId("change").textContent = percent(quote);
  byId("change").className = `number pill ${tone(quote.last - quote.opened)}`;
  byId("volume").textContent = `${quote.volume.toLocaleString("en")} shares traded`;
  const most = Math.max(1, ...[...quote.bids, ...quote.asks].map(([, shares]) => shares));
  const mine = new Set((statement?.open ?? []).filter(({ symbol }) => symbol === quote.symbol).map(({ price }) => price));
  for (const [side, levels] of [["asks", quote.asks], ["bids", quote.bids]]) {
    book[side].forEach((row, n) => {
      const [price, shares] = levels[n] ?? [];
      row.price = price;
      row.take.textContent = price === undefined ? "" : money(price);
      row.take.disabled = price === undefined;
      row.size.textContent = price === undefined ? "" : shares.toLocaleString("en");
      row.size.style.setProperty("--part", `${price === undefined ? 0 : (shares / most) * 100}%`);
      row.element.dataset.mine = String(mine.has(price));
    });
  }
  byId("spread").textContent = quote.bids.length && quote.asks.length ? `spread ${money(quote.asks[0][0] - quote.bids[0][0])}` : "one side is empty";
  byId("tape").replaceChildren(...[...quote.trades].reverse().slice(0, 6).map(({ side, price, quantity }) => make("li", {}, make("span", { className: side === "buy" ? "up" : "down" }, money(price)), make("span", {}, String(quantity)))));
}

function paintAccount() {
  const { cash, positions, open, trades } = statement;
  const worthOf = (symbol, shares) => shares * (quotes.get(symbol)?.last ?? 0);
  const held = Object.entries(positions).filter(([, { shares }]) => shares !== 0);
  byId("cash").textContent = money(cash);
  byId("worth").textContent = money(cash + held.reduce((sum, [symbol, { shares }]) => sum + worthOf(symbol, shares), 0));
  fill("positions", 4, held.map(([symbol, { shares, cost }]) => {
    const result = worthOf(symbol, shares) - cost;
    return [symbol, shares.toLocaleString("en"), money(cost), make("span", { className: tone(result) }, money(result))];
  }));
  fill("trades", 4, [...trades].reverse().slice(0, 5).map(({ symbol, side, quantity, price }) => [symbol, sideOf(side), String(quantity), money(price)]));
  // Buttons that are pressed must not be replaced while they are.
  const waits = JSON.stringify(open);
  if (byId("open").dataset.shows === waits) return;
  byId("open").dataset.shows = waits;
  fill("open", 5, open.map(({ order, symbol, side, left, price }) => {
    const button = make("button", { type: "button" }, "Cancel");
    button.addEventListener("click", () => void cancel(order));
    return [symbol, sideOf(side), String(left), money(price), button];
  }));
}

const sideOf = (side) => make("span", { className: side === "buy" ? "up" : "down" }, side);

function fill(id, columns, rows) {
  const body = rows.map((cells) => make("tr", {}, ...cells.map((cell) => make("td", {}, cell))));
  byId(id).replaceChildren(...(body.length ? body : [make("tr", {}, make("td", { colSpan: columns, className: "none" }, "none"))]));
}

for (const event of past.events) take(event.data, event);
