// The Airwave client: one API over SSE and WebSocket. README.md says how to use it,
// docs/protocol.md what it says on the wire.

export { connect } from "./client.js";
export * from "./types.js";
