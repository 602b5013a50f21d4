// Bytes as the wire writes them: base64 in JSON, and the binary frame of docs/protocol.md, section
// 5.

/** Base64 with the standard alphabet. In pieces, because a call takes only so many arguments. */
export function toBase64(bytes: Uint8Array): string {
  let text = "";
  for (let at = 0; at < bytes.length; at += 8192) text += String.fromCharCode(...bytes.subarray(at, at + 8192));
  return btoa(text);
}

export function fromBase64(text: string): Uint8Array {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

/** A text in the characters that a WebSocket subprotocol may have. */
export function toBase64Url(text: string): string {
  return toBase64(new TextEncoder().encode(text)).replace(/\+/g, "-").replace(/\//g, "_").replace(/=/g, "");
}

/** A client's binary command. `id` undefined: no answer is wanted. */
export function encodeFrame(channel: string, event: string, id: number | undefined, payload: Uint8Array): Uint8Array {
  // Names are ASCII, so that a character is a byte.
  const head = 11 + channel.length + event.length;
  const frame = new Uint8Array(head + payload.length);
  const names = (text: string, at: number): number => {
    frame[at] = text.length;
    for (let i = 0; i < text.length; i += 1) frame[at + 1 + i] = text.charCodeAt(i);
    return at + 1 + text.length;
  };
  frame[0] = 1;
  const at = names(event, names(channel, 1));
  new DataView(frame.buffer).setBigUint64(at, id === undefined ? 0xffff_ffff_ffff_ffffn : BigInt(id));
  frame.set(payload, head);
  return frame;
}

/** A server's binary event; undefined if it is of a format that this client does not know. */
export function decodeFrame(buffer: ArrayBuffer): { channel: string; event: string; id: string; data: Uint8Array } | undefined {
  const frame = new Uint8Array(buffer);
  const text = (at: number): string => String.fromCharCode(...frame.subarray(at + 1, at + 1 + (frame[at] ?? 0)));
  if (frame[0] !== 1) return undefined;
  const channel = text(1);
  const event = text(2 + channel.length);
  const at = 3 + channel.length + event.length;
  if (frame.length < at + 8) return undefined;
  return { channel, event, id: new DataView(buffer).getBigUint64(at).toString(), data: frame.subarray(at + 8) };
}
