// What a connection says over HTTP: messages of its channels go by POST (docs/protocol.md, section
// 6).

import { Connection, jitter } from "./connection.js";
import { envelope, isTemporary } from "./protocol.js";
import type { Sending, Subscription } from "./subscription.js";
import type { AirwaveError } from "./types.js";

/** A connection whose channels speak by POST. */
export abstract class PostingConnection extends Connection {
  #speaking = new Set<Subscription>();

  flush(subscription: Subscription): void {
    if (!this.#speaking.has(subscription)) void this.#speak(subscription);
  }

  /** One POST after the other, so that what was said first is heard first. */
  async #speak(subscription: Subscription): Promise<void> {
    this.#speaking.add(subscription);
    let tries = 0;
    for (let sending = subscription.outbox[0]; sending && subscription.connection === this; sending = subscription.outbox[0]) {
      try {
        sending.settle(null, await this.#post(sending));
        tries = 0;
      } catch (thrown) {
        const error = thrown as AirwaveError;
        if (!sending.repeat || !isTemporary(error) || error.code === "internal") sending.settle(error);
        else {
          sending.why = error.message;
          await this.client.pause(jitter(this.client, tries, this.base));
          tries += 1;
        }
      }
    }
    this.#speaking.delete(subscription);
  }

  async #post({ to, event, data, key, attributes, idempotencyKey }: Sending): Promise<unknown> {
    const response = await this.client.request(`channels/${to.name}`, {
      method: "POST",
      headers: { "content-type": "application/json", "idempotency-key": idempotencyKey },
      body: envelope({ event, key, attributes }, data),
    });
    return (await this.client.json<{ data: unknown }>(response, ({ data }) => data !== undefined)).data;
  }
}
