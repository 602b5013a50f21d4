// conformance.mjs as a program, for runtimes without a page: `node runtime.mjs URL NAME`. It ends
// when nothing is left to do: a closed client does not keep the process alive.

import { connect } from "../../dist/client.js";
import { conform } from "./conformance.mjs";

const [url, name] = process.argv.slice(2);
// Node 20 has none.
const WebSocket = globalThis.WebSocket ?? (await import("ws")).default;
await conform(connect, url, name, { WebSocket }, (what) => console.log(JSON.stringify(what)));
console.log(JSON.stringify({ done: true }));
