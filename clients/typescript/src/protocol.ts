// What is the same on every transport: codes, errors, and a message's envelope (docs/protocol.md,
// sections 3 and 5).

import { toBase64 } from "./bytes.js";
import type { Failure } from "./frames.js";
import { AirwaveError, type Code } from "./types.js";

/** A proxy between takes no request line, or no request head, of that length. */
export class TooLong extends AirwaveError {}

/** Makes the error of a connection that broke, or of an answer that is not this server's. */
export function disconnected(message: string): AirwaveError {
  return new AirwaveError("disconnected", message);
}

/** Returns whether the same call may succeed later without a change. */
export function isTemporary({ code }: AirwaveError): boolean {
  return code === "unavailable" || code === "too-many" || code === "internal" || code === "disconnected";
}

/**
 * What each close code of a WebSocket says: four codes of RFC 6455, and 4000 + the HTTP status of a
 * refusal.
 */
export const CLOSE_CODES: Record<number, Code> = {
  1009: "too-large",
  1011: "internal",
  1012: "unavailable",
  1013: "unavailable",
  4400: "bad-request",
  4401: "unauthorized",
  4403: "forbidden",
  4404: "unknown-channel",
  4406: "wrong-transport",
  4409: "ended",
  4413: "too-large",
  4429: "too-many",
  4503: "unavailable",
};

/** Returns the JSON object, or the array, that `text` holds; undefined if it holds neither. */
export function object(text: string): object | undefined {
  try {
    const value: unknown = JSON.parse(text);
    return value !== null && typeof value === "object" ? value : undefined;
  } catch {
    return undefined;
  }
}

/**
 * Returns a message in JSON: the fields of `head`, and `data`.
 *
 * A string is JSON text already and goes as it is; bytes become base64.
 */
export function envelope(head: object, data: string | Uint8Array): string {
  const field = data instanceof Uint8Array ? `"base64":"${toBase64(data)}"` : `"data":${data}`;
  return `${JSON.stringify(head).slice(0, -1)},${field}}`;
}

/** Returns the error that the server tells in a frame or in the body of an answer. */
export function refusal({ code, message, transport }: Failure): AirwaveError {
  return new AirwaveError(code as Code, message, transport);
}
