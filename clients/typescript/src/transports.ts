// The transports of this client. A further one is a class of `Connection` in a file of its own, a
// name in `TransportName`, and a row here: nothing else knows all of them.

import type { Connection, ConnectionHost } from "./connection.js";
import { PollConnection } from "./poll.js";
import { SocketConnection } from "./socket.js";
import { StreamConnection } from "./stream.js";
import type { Subscription } from "./subscription.js";
import type { TransportName } from "./types.js";

/** A transport: the class of its connections. */
export interface Transport {
  /** Makes a connection that has room for `first`. It connects once a channel is added. */
  new (host: ConnectionHost, first: Subscription): Connection;
  /**
   * Returns whether this platform has what the transport needs.
   *
   * A server cannot choose a transport without this function: options do, or the client does where
   * nothing else passes.
   */
  works?(host: ConnectionHost): boolean;
}

export const TRANSPORTS: Record<TransportName, Transport> = { sse: StreamConnection, websocket: SocketConnection, polling: PollConnection };
