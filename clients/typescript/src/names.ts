// What the protocol accepts as a name (docs/protocol.md, section 1). The client checks it before it
// builds a URL or a frame.

import { AirwaveError } from "./types.js";

const SEGMENT = /^[A-Za-z0-9\-_.~:@=+]+$/;

const wrong = (what: string): AirwaveError => new AirwaveError("bad-request", what);

/** Returns why `name` names no channel; undefined if it does. */
export function checkChannel(name: string): AirwaveError | undefined {
  const fits = typeof name === "string" && name.length <= 255 && name.split("/").every((part) => SEGMENT.test(part) && part !== "." && part !== "..");
  return fits ? undefined : wrong(`'${name}' is no channel name: 1 to 255 characters in segments between '/', each of A-Z a-z 0-9 - _ . ~ : @ = +, and none '.' or '..'`);
}

/**
 * Returns why an event of that name, or with that idempotency key, cannot be sent; undefined if it
 * can.
 */
export function checkSend(event: string, idempotencyKey: string): AirwaveError | undefined {
  if (typeof event !== "string" || event.length > 255 || !SEGMENT.test(event) || event.startsWith("airwave.")) {
    return wrong(`'${event}' is no event name: 1 to 255 characters of A-Z a-z 0-9 - _ . ~ : @ = +, not beginning with 'airwave.'`);
  }
  return /^[\x21-\x7e]{1,255}$/.test(idempotencyKey) ? undefined : wrong("an idempotency key has 1 to 255 visible ASCII characters");
}

/**
 * Writes `data` as JSON.
 *
 * Throws an {@link AirwaveError} for what JSON cannot carry. `JSON.stringify` alone would write
 * `{}` for a `Map` and for an `ArrayBuffer`.
 */
export function toJson(data: unknown): string {
  const refuse = (value: unknown, more = ""): never => {
    const kind = Object.prototype.toString.call(value).slice(8, -1);
    throw wrong(`JSON cannot carry a value of the type ${kind}${more}`);
  };
  let text: string | undefined;
  try {
    text = JSON.stringify(data ?? null, (_, value: unknown) => {
      if (typeof value === "bigint") refuse(value, ": send it as text");
      if (value instanceof ArrayBuffer || ArrayBuffer.isView(value)) refuse(value, ": send a Uint8Array as the data itself");
      if (value instanceof Map || value instanceof Set || value instanceof Promise || (typeof Blob === "function" && value instanceof Blob)) refuse(value);
      return value;
    });
  } catch (error) {
    throw error instanceof AirwaveError ? error : wrong(`the data cannot be written as JSON: ${error}`);
  }
  return text ?? refuse(data);
}
