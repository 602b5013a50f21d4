// The server's own `/client.js`: the client, which takes the server that it was loaded from where
// no URL is given.

import { connect as connectTo } from "./client.js";
import type { Airwave, Options } from "./types.js";

export * from "./types.js";

/** As `connect` of the package; `url` is by default the folder that this module was loaded from. */
export function connect(url: string | URL = new URL(".", import.meta.url), options: Options = {}): Airwave {
  return connectTo(url, options);
}
