// The other end of a WebSocket, for tests whose clock is a fake one.

import { vi } from "vitest";

/** Lets everything happen that needs no time. */
export const settled = (): Promise<unknown> => vi.advanceTimersByTimeAsync(0);

/** The other end of a WebSocket. */
export class FakeSocket {
  static made: FakeSocket[] = [];
  static get last(): FakeSocket {
    return FakeSocket.made.at(-1)!;
  }
  binaryType = "";
  said: Record<string, unknown>[] = [];
  bytes: Uint8Array[] = [];
  closed = false;
  onopen: (() => void) | null = null;
  onmessage: ((message: { data: unknown }) => void) | null = null;
  onclose: ((close: { code: number; reason: string }) => void) | null = null;
  constructor(
    readonly url: string,
    readonly protocols?: string[],
  ) {
    FakeSocket.made.push(this);
  }
  send(frame: string | Uint8Array): void {
    if (typeof frame === "string") this.said.push(JSON.parse(frame));
    else this.bytes.push(frame);
  }
  close(): void {
    this.closed = true;
  }
  tell(frame: unknown): void {
    this.onmessage?.({ data: JSON.stringify(frame) });
  }
  /** Confirms every subscription that was asked for. */
  confirm(cursor = "10", resumed = false): void {
    for (const { type, id, channel } of this.said) if (type === "subscribe") this.tell({ type: "subscribed", id, channel, cursor, resumed });
  }
  async open(): Promise<this> {
    this.onopen?.();
    await settled();
    return this;
  }
  drop(code = 1006, reason = ""): void {
    this.onclose?.({ code, reason });
  }
}
