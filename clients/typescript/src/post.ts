// Messages of channels over HTTP, one POST each (docs/protocol.md, section 6).

import { Connection, jitter } from "./connection.js";
import { envelope, isTemporary } from "./protocol.js";
import type { Sending, Subscription } from "./subscription.js";
import type { AirwaveError } from "./types.js";

/** A connection whose channels send by POST. */
export abstract class PostingConnection extends Connection {
  #sending = new Set<Subscription>();

  flush(subscription: Subscription): void {
    if (!this.#sending.has(subscription)) void this.#send(subscription);
  }

  /** Sends one POST after the other, so that messages arrive in their order. */
  async #send(subscription: Subscription): Promise<void> {
    this.#sending.add(subscription);
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
    this.#sending.delete(subscription);
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
