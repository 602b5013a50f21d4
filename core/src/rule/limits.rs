//! Limits say how much of each input a node takes, and how long it waits.

use std::time::Duration;

/// Limits say what a node allows. Every input has a stated limit (docs/guarantees.md, P13).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Bounds the sessions at once on this node.
    pub connections: usize,
    /// Bounds the sessions at once from one address.
    pub connections_per_address: usize,
    /// Bounds the channels that one session may be subscribed to.
    pub channels_per_connection: usize,
    /// Bounds the logs open at once on this node.
    pub channels: usize,
    /// Bounds the bytes of one message: payload and names.
    pub message_bytes: usize,
    /// Bounds the WebSocket frames that a client may send in a second (twice as many in a burst).
    pub frames_per_second: u32,
    /// Bounds the requests over HTTP (messages, pages of history) in a second (twice as many in a
    /// burst). They count for a user, or else for an address.
    pub requests_per_second: u32,
    /// Bounds the channels that are not open on this node yet and that one address may name in a
    /// minute.
    pub new_channels_per_minute: u32,
    /// Bounds the bytes of events on this node. Half of it is for the rings of all logs together,
    /// half for the history of the memory broker.
    pub memory: usize,
    /// Bounds the idempotency keys that one client may use within
    /// [`IDEMPOTENCY_WINDOW`](crate::broker::IDEMPOTENCY_WINDOW). A client is a user over all
    /// connections to this node, or all clients without a user id from one address.
    pub idempotency_keys_per_client: usize,
    /// Bounds the idempotency keys that this node may use in one channel within that time.
    pub idempotency_keys_per_channel: usize,
    /// Says how many events a log's ring keeps at least. So a slow listener has room even where
    /// history is short.
    pub ring_events: usize,
    /// Bounds the bytes that a log's ring keeps.
    pub ring_bytes: usize,
    /// The node sends a heartbeat after this silence.
    pub heartbeat: Duration,
    /// The node closes a session after this silence of a client that is expected to answer.
    pub idle: Duration,
    /// Says how long an HTTP connection may wait for its next request.
    pub keep_alive: Duration,
    /// Says how long a write may make no progress before the node cuts the connection.
    pub stalled_write: Duration,
    /// Says how long a log stays open without listeners.
    pub linger: Duration,
    /// Says how long the broker may take to answer before it counts as unavailable.
    pub broker_timeout: Duration,
}

impl Limits {
    /// Returns these limits after `change`.
    ///
    /// # Examples
    ///
    /// ```
    /// use airwave_core::rule::Limits;
    ///
    /// let limits = Limits::default().with(|limits| limits.connections = 500);
    /// assert_eq!(limits.connections, 500);
    /// ```
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 100_000,
            connections_per_address: 1000,
            channels_per_connection: 100,
            channels: 1_000_000,
            message_bytes: 64 << 10,
            frames_per_second: 100,
            requests_per_second: 100,
            new_channels_per_minute: 10_000,
            memory: 1 << 30,
            idempotency_keys_per_client: 20_000,
            idempotency_keys_per_channel: 1_000_000,
            ring_events: 1024,
            ring_bytes: 16 << 20,
            heartbeat: Duration::from_secs(15),
            idle: Duration::from_secs(60),
            keep_alive: Duration::from_secs(75),
            stalled_write: Duration::from_secs(30),
            linger: Duration::from_secs(30),
            broker_timeout: Duration::from_secs(2),
        }
    }
}
