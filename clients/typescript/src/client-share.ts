import type { Client, Relay } from "./client.js";

/** Carries this tab's channels over the connection of whichever tab leads. */
export function share(_client: Client): Relay {
  throw new Error("not built yet");
}
