// A server, and what a test does to it while conformance.mjs runs in some runtime.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { cuttableProxy } from "./proxies.js";
import { config, redis, Server } from "./server.js";

/** What the script asks for, or reports at its end. */
export interface StageRequest {
  cut?: string;
  down?: string;
  finish?: string;
  done?: true;
  failed?: string;
}

/**
 * Starts a server that forgets nothing when it dies, behind a proxy that can be cut. `handle` does
 * to them what the script asks for.
 */
export async function stage(): Promise<{ url: string; handle: (request: StageRequest) => Promise<void> }> {
  const server = await Server.start(config(`[broker]\nurl = "${await redis()}"`));
  const proxy = await cuttableProxy(server.port);
  const [cut, down] = [new Set<string>(), new Set<string>()];
  const handle = async (request: StageRequest): Promise<void> => {
    if (request.cut) cut.add(request.cut);
    if (request.cut && cut.size === 2) {
      await server.kill();
      proxy.cut();
    }
    if (request.down) down.add(request.down);
    if (request.down && down.size === 2) {
      await server.restart();
      for (const channel of down) await server.publish({ channel, event: "n", data: "missed" });
      proxy.restore();
    }
    if (request.finish) await server.publish({ channel: request.finish, event: "n", data: "last", end: true });
  };
  return { url: proxy.url, handle };
}

/**
 * The script and what starts it in a worker, as one module of the page's origin. The client comes
 * from the server, as in any page.
 */
export const worker = (url: string, name: string): string => `import { connect } from "${url}/client.js";
${readFileSync(join(import.meta.dirname, "conformance.mjs"), "utf8")}
const run = (port) => conform(connect, undefined, "${name}", {}, (said) => port.postMessage(said)).then(
  () => port.postMessage({ done: true }),
  (error) => port.postMessage({ failed: String(error) }),
);
if (globalThis.SharedWorkerGlobalScope) onconnect = ({ ports }) => run(ports[0]); else run(globalThis);`;

/** The same in a page, whose function `told` hears what is said. */
export const inPage = (url: string, name: string): string => `import { connect } from "${url}/client.js";
${readFileSync(join(import.meta.dirname, "conformance.mjs"), "utf8")}
conform(connect, undefined, "${name}", {}, (said) => told(said)).then(
  () => told({ done: true }),
  (error) => told({ failed: String(error) }),
);`;
