// A Yjs text that follows a channel: what is written here goes out as binary updates, what others
// write comes in, and after every pause both sides tell each other what they have.

import {
  applyUpdate, createAbsolutePositionFromRelativePosition, createRelativePositionFromTypeIndex, decodeRelativePosition, decodeStateVector, Doc,
  encodeRelativePosition, encodeStateAsUpdate, encodeStateVector, mergeUpdates,
} from "./yjs.js";

/** Marks changes that came from elsewhere. */
const REMOTE = Symbol("remote");

const RETRY_MS = 500;

export class SharedText {
  doc = new Doc();
  text = this.doc.getText("text");
  /** Called when the text has changed; `remote`: not by this page. */
  onchange = (_remote) => {};
  /** Called with "offline", "syncing", "synced", or "refused" and why. */
  onstatus = (_status, _why) => {};
  #channel;
  /** Updates that have not been said. */
  #waiting = [];
  /** The server has not confirmed everything that was written here. */
  #unsaid = false;
  #synced = false;
  #talking = false;

  constructor() {
    this.doc.on("update", (update, origin) => {
      this.onchange(origin === REMOTE);
      if (origin === REMOTE) return;
      this.#unsaid = true;
      this.#waiting.push(update);
      void this.#talk();
    });
  }

  connect(airwave, name) {
    const channel = (this.#channel = airwave.channel(name));
    channel.on("update", (update) => this.#apply(update));
    channel.on("state", ({ state }) => {
      this.#synced = false;
      if (state === "open") void this.#talk();
      else this.onstatus("offline");
    });
    // Whatever was lost, a sync brings.
    channel.on("gap", () => this.#again());
    channel.on("error", ({ message }) => this.onstatus("refused", message));
    return channel;
  }

  disconnect() {
    this.#channel?.close();
    this.#channel = undefined;
    this.#synced = false;
    this.onstatus("offline");
  }

  /** Replaces `length` characters at `at` by `words`. */
  replace(at, length, words) {
    this.doc.transact(() => {
      if (length > 0) this.text.delete(at, length);
      if (words) this.text.insert(at, words);
    });
  }

  /** A place that moves with the text around it, in base64, and back. */
  place(index) {
    return toBase64(encodeRelativePosition(createRelativePositionFromTypeIndex(this.text, index, -1)));
  }

  index(place) {
    try {
      const found = createAbsolutePositionFromRelativePosition(decodeRelativePosition(fromBase64(place)), this.doc);
      return found?.type === this.text ? found.index : null;
    } catch {
      // The bytes come from another user and may be malformed.
      return null;
    }
  }

  #apply(update) {
    try {
      applyUpdate(this.doc, update, REMOTE);
    } catch (error) {
      console.warn("an update that cannot be read", error);
    }
  }

  #again() {
    this.#synced = false;
    void this.#talk();
  }

  /**
   * One thing at a time: first the sync, then what waits. What is written meanwhile goes out
   * together.
   */
  async #talk() {
    const channel = this.#channel;
    if (this.#talking || channel?.state !== "open") return;
    this.#talking = true;
    try {
      while (channel === this.#channel && channel.state === "open" && (!this.#synced || this.#waiting.length > 0)) {
        if (!this.#synced) await this.#sync(channel);
        if (this.#waiting.length === 0) continue;
        const update = this.#waiting.length === 1 ? this.#waiting[0] : mergeUpdates(this.#waiting);
        this.#waiting = [];
        await this.#say(channel, update);
        this.#unsaid = this.#waiting.length > 0;
        if (!this.#unsaid) this.onstatus("synced");
      }
    } catch (error) {
      this.#synced = false;
      const line = ["disconnected", "closed", "timeout", "unavailable"].includes(error.code);
      if (line) this.onstatus("offline");
      else this.onstatus("refused", error.message);
      // A line that comes back says so by its state, but it may be back already.
      if (line) setTimeout(() => void this.#talk(), RETRY_MS);
    } finally {
      this.#talking = false;
    }
    // Another channel has been opened meanwhile.
    if (this.#channel !== channel) void this.#talk();
  }

  async #sync(channel) {
    this.onstatus("syncing");
    this.#synced = true;
    const reply = await channel.send("sync", { vector: toBase64(encodeStateVector(this.doc)) }, { repeat: false });
    this.#apply(fromBase64(reply.update));
    const theirs = fromBase64(reply.vector);
    const has = decodeStateVector(theirs);
    const mine = decodeStateVector(encodeStateVector(this.doc));
    const lacks = [...mine].some(([client, clock]) => (has.get(client) ?? 0) < clock);
    if (this.#unsaid || lacks) {
      this.#waiting = [];
      await this.#say(channel, encodeStateAsUpdate(this.doc, theirs));
      this.#unsaid = this.#waiting.length > 0;
    }
    if (!this.#unsaid) this.onstatus("synced");
  }

  /**
   * Sends it once, as a binary frame on a WebSocket. If no reply says whether it arrived, the next
   * sync finds out.
   */
  #say(channel, update) {
    return channel.send("update", update, { repeat: false });
  }
}

function toBase64(bytes) {
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return btoa(text);
}

function fromBase64(text) {
  return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
}
