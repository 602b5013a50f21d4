// A room of the chat: its newest messages, what is said from now on, and what was said earlier as
// the page is scrolled up.

import { identity, make, open, recent, someone, toast } from "./frame.js";

const ROOMS = ["lobby", "rust", "music", "night-shift"];
const PAGE = 30;
const TYPING_MS = 4000;

const byId = (id) => document.getElementById(id);
const [scroll, messages, text, people] = ["scroll", "messages", "text", "people"].map(byId);

// Each tab is a user of its own, so two tabs can talk to each other.
const me = await identity("chat-name", () => `${someone()}-${1000 + Math.floor(Math.random() * 9000)}`);
byId("name").value = me;
byId("rename").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("chat-name", byId("name").value);
  location.reload();
});
byId("name").addEventListener("change", () => byId("rename").requestSubmit());

const { airwave, watch, cost } = open({ title: "Chat", recommended: "websocket", token: () => me });

let room;

async function enter() {
  const asked = location.hash.slice(1);
  const name = ROOMS.includes(asked) ? asked : ROOMS[0];
  room?.leave();
  for (const link of byId("rooms").children) link.setAttribute("aria-current", String(link.hash === `#${name}`));
  byId("room").textContent = `# ${name}`;
  for (const element of [messages, people, byId("typing"), byId("here")]) element.replaceChildren();
  const entered = (room = new Room(name));
  await entered.open();
}

class Room {
  #name;
  #said;
  #typing;
  #ids = new Set();
  #oldest;
  #more = false;
  #loading = false;
  #left = false;
  #typists = new Map();
  #toldTyping = 0;

  constructor(name) {
    this.#name = `chat/${name}`;
  }

  async open() {
    // The newest messages, and the cursor that listening starts from: nothing is missed between the
    // two.
    const { events, cursor } = await this.#newest();
    if (this.#left) return;
    for (const { id, data } of events) this.#show(id, data);
    this.#more = events.length === PAGE;
    toEnd();
    this.#said = watch(airwave.channel(this.#name, { after: cursor, presence: true }));
    this.#said.on("said", (data, { id }) => {
      const followed = atEnd();
      this.#show(id, data);
      this.#stoppedTyping(data.from);
      if (followed || data.from === me) toEnd();
    });
    this.#said.on("gap", () => void this.#lost());
    this.#said.on("presence", ({ members, more }) => showPeople(members, more));
    this.#said.on("error", ({ message }) => toast(message));
    this.#typing = airwave.channel(`${this.#name}/typing`);
    this.#typing.on("typing", ({ from, on }) => {
      if (from === me) return;
      if (!on) return this.#stoppedTyping(from);
      clearTimeout(this.#typists.get(from));
      this.#typists.set(from, setTimeout(() => this.#stoppedTyping(from), TYPING_MS));
      this.#showTyping();
    });
    // A hint that was missed is none.
    this.#typing.on("gap", () => {});
  }

  leave() {
    this.#left = true;
    for (const timer of this.#typists.values()) clearTimeout(timer);
    this.#said?.close();
    this.#typing?.close();
  }

  async say(words) {
    const item = line("pending", me, words, Date.now());
    messages.append(item);
    toEnd();
    this.#typed(false);
    try {
      // While the line is down it waits, and is said once when the line is back.
      await this.#said.send("say", { text: words });
      // Its place among the others comes as an event.
      item.remove();
      regroup();
    } catch (error) {
      item.classList.add("failed");
      // Visibly, and to a screen reader: what was not taken, and why.
      item.append(make("div", { className: "refusal", role: "alert" }, `Not sent: ${error.message}`));
      toEnd();
    }
  }

  typed() {
    if (text.value === "") this.#typed(false);
    else if (Date.now() - this.#toldTyping > TYPING_MS / 2) this.#typed(true);
  }

  async earlier() {
    if (!this.#more || this.#loading || !this.#said) return;
    this.#loading = true;
    byId("earlier").hidden = false;
    try {
      const page = await this.#said.send("earlier", { before: this.#oldest, limit: PAGE });
      if (this.#left) return;
      const height = scroll.scrollHeight;
      for (const [id, said] of page.messages.reverse()) this.#show(id, said);
      this.#more = page.more;
      // What is looked at stays where it is.
      scroll.scrollTop += scroll.scrollHeight - height;
    } catch (error) {
      toast(error.message);
    } finally {
      this.#loading = false;
      byId("earlier").hidden = true;
    }
  }

  #newest() {
    return recent(this.#name, PAGE, cost.fetch);
  }

  async #lost() {
    messages.append(make("li", { className: "notice" }, "The server has forgotten some of what was said here."));
    const { events } = await this.#newest();
    if (this.#left) return;
    for (const { id, data } of events) this.#show(id, data);
    toEnd();
  }

  #show(id, { from, text: words, at }) {
    if (this.#ids.has(id)) return;
    this.#ids.add(id);
    const item = line("", from, words, at);
    item.dataset.id = id;
    // Ids are numbers of the same length in practice, and exact in JavaScript.
    const later = [...messages.children].find((other) => Number(other.dataset.id) > Number(id) || other.classList.contains("pending"));
    messages.insertBefore(item, later ?? null);
    this.#oldest = messages.querySelector("[data-id]").dataset.id;
    regroup();
  }

  #typed(on) {
    if (!on && this.#toldTyping === 0) return;
    this.#toldTyping = on ? Date.now() : 0;
    // A hint that is late is worth nothing: it is said once or not at all.
    this.#typing?.send("typing", on, { repeat: false, reply: false }).catch(() => (this.#toldTyping = 0));
  }

  #stoppedTyping(from) {
    clearTimeout(this.#typists.get(from));
    if (this.#typists.delete(from)) this.#showTyping();
  }

  #showTyping() {
    const who = [...this.#typists.keys()];
    byId("typing").textContent = who.length === 0 ? "" : who.length > 3 ? "Several people are typing …" : `${who.join(", ")} ${who.length === 1 ? "is" : "are"} typing …`;
  }
}

function line(kind, from, words, at) {
  const time = new Date(Number(at)).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  const item = make("li", { className: kind }, face(from), make("div", { className: "by" }, make("b", {}, from), ` ${time}`), make("div", { className: "text" }, words));
  item.dataset.from = from;
  item.classList.toggle("mine", from === me);
  return item;
}

/** Only the first of several messages in a row says whose they are. */
function regroup() {
  let before;
  for (const item of messages.children) {
    item.classList.toggle("first", item.dataset.from !== before);
    before = item.dataset.from;
  }
}

function face(name) {
  let hue = 0;
  for (const c of name) hue = (hue * 31 + c.codePointAt(0)) % 360;
  const element = make("span", { className: "face", ariaHidden: "true" }, name[0].toUpperCase());
  element.style.backgroundColor = `hsl(${hue} 45% 33%)`;
  return element;
}

function showPeople(members, more) {
  const named = members.filter(({ user }) => user);
  people.replaceChildren(...named.map(({ user }) => {
    const item = make("li", { title: user }, face(user), make("span", { className: "who" }, user === me ? `${user} (you)` : user));
    item.dataset.user = user;
    return item;
  }));
  byId("here").textContent = `${named.length}${more ? "+" : ""} here`;
}

const atEnd = () => scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 60;
const toEnd = () => (scroll.scrollTop = scroll.scrollHeight);

scroll.addEventListener("scroll", () => scroll.scrollTop < 80 && void room?.earlier());
text.addEventListener("input", () => room?.typed());
byId("say").addEventListener("submit", (event) => {
  event.preventDefault();
  const words = text.value.trim();
  text.value = "";
  if (words) void room.say(words);
});

for (const name of ROOMS) byId("rooms").append(make("a", { href: `#${name}` }, `# ${name}`));
addEventListener("hashchange", () => void enter());
void enter();
