// The protocol's schema, its examples, and streams of events, with readers that are not Airwave's:
// Ajv validates what docs/protocol.md shows, and eventsource-parser reads what the parser of
// airwave-protocol has read.

import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import { Ajv2020 } from "ajv/dist/2020.js";
import { createParser } from "eventsource-parser";
import { describe, expect, test } from "vitest";

const root = resolve(import.meta.dirname, "../../..");
const read = <T>(path: string): T => JSON.parse(readFileSync(resolve(root, path), "utf8")) as T;

describe("the schema", () => {
  const schema = read<{ $defs: Record<string, unknown> }>("docs/protocol/schema.json");
  // Numbers have the format of their Rust type, which says no more than their bounds.
  const ajv = new Ajv2020({ strict: true, strictTypes: false, allowUnionTypes: true, validateFormats: false });
  ajv.addSchema(schema, "protocol");
  const check = (type: string, json: unknown): string => (ajv.validate(`protocol#/$defs/${type}`, json) ? "" : ajv.errorsText());

  test("each example of the page is valid", () => {
    const examples = read<{ type: string; json: unknown }[]>("docs/protocol/examples.json");
    expect(examples.length).toBeGreaterThan(24);
    for (const { type, json } of examples) expect(check(type, json), JSON.stringify(json)).toBe("");
  });

  test("what is no frame is not valid", () => {
    const event = { channel: "a", id: "1", event: "e", data: null };
    expect(check("ServerFrame", event)).toBe("");
    expect(check("ServerFrame", { ...event, colour: "new" })).toBe("");
    for (const wrong of [{ ...event, text: "two" }, { ...event, id: 1 }, { channel: "a", id: "1", event: "e" }, { type: "gap", channel: "a" }, { type: "moon" }, []]) {
      expect(check("ServerFrame", wrong), JSON.stringify(wrong)).not.toBe("");
    }
    const send = { type: "send", channel: "a", event: "e", text: "x", attributes: { a: "b" } };
    expect(check("ClientFrame", send)).toBe("");
    for (const wrong of [{ ...send, colour: 1 }, { ...send, id: -1 }, { ...send, id: 2 ** 53 }, { type: "ping", channel: "a" }, { ...send, attributes: { a: 1 } }]) {
      expect(check("ClientFrame", wrong), JSON.stringify(wrong)).not.toBe("");
    }
    expect(check("Publication", { channel: "a", end: true })).toBe("");
    expect(check("Publication", { channel: "a", data: 1, colour: 2 })).not.toBe("");
  });
});

interface Stream {
  bytes: string;
  cuts: number[];
  retry: number | null;
  events: { id: string; event: string; data: string }[];
}

test("eventsource-parser hears what airwave-protocol hears", () => {
  const streams = read<Stream[]>("tests/protocol/streams.json");
  expect(streams.length).toBeGreaterThan(300);
  for (const { bytes, cuts, retry, events } of streams) {
    const heard: Stream["events"] = [];
    let wait: number | null = null;
    const parser = createParser({
      onEvent: (message) => {
        // It tells an id only with the event that names it. Chromium says how long an id holds.
        const id = message.id ?? events[heard.length]?.id ?? "";
        heard.push({ id, event: message.event ?? "message", data: message.data });
      },
      onRetry: (ms) => {
        wait = ms;
      },
    });
    const decoder = new TextDecoder();
    const all = Buffer.from(bytes, "base64");
    let from = 0;
    for (const to of [...cuts, all.length]) {
      parser.feed(decoder.decode(all.subarray(from, to), { stream: true }));
      from = to;
    }
    // It waits for what may follow a CR. A comment brings no event.
    parser.feed(":\n");
    expect({ wait, heard }, JSON.stringify(all.toString())).toEqual({ wait: retry, heard: events });
  }
});
