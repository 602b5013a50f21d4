//! The limits of a node: how much of each input it takes, and how long it waits.

use std::time::Duration;

/// What a node allows. Every input has a stated limit (docs/guarantees.md, P13).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Sessions at once on this node.
    pub connections: usize,
    /// Sessions at once from one address.
    pub connections_per_address: usize,
    /// Channels that one session may be subscribed to.
    pub channels_per_connection: usize,
    /// Logs open at once on this node.
    pub channels: usize,
    /// Bytes of one message: payload and names.
    pub message_bytes: usize,
    /// WebSocket frames that a client may send in a second (twice as many in a burst).
    pub frames_per_second: u32,
    /// Requests over HTTP (messages, pages of history) that a user, or else an address, may make in
    /// a second (twice as many in a burst).
    pub requests_per_second: u32,
    /// Channels that are not open on this node yet and that one address may name in a minute.
    pub new_channels_per_minute: u32,
    /// Bytes of events on this node: half of it for the rings of all logs together, half for the
    /// history of the memory broker.
    pub memory: usize,
    /// Idempotency keys that one client may use within
    /// [`IDEMPOTENCY_WINDOW`](crate::broker::IDEMPOTENCY_WINDOW): a user over all connections to
    /// this node, or all clients without a user id from one address.
    pub idempotency_keys_per_client: usize,
    /// Idempotency keys that this node may use in one channel within that time.
    pub idempotency_keys_per_channel: usize,
    /// Events that a log's ring keeps at least, so that a slow listener has room even where history
    /// is short.
    pub ring_events: usize,
    /// Bytes that a log's ring keeps at most.
    pub ring_bytes: usize,
    /// Silence after which a heartbeat is sent.
    pub heartbeat: Duration,
    /// Silence of a client that is expected to answer, after which its session is closed.
    pub idle: Duration,
    /// How long an HTTP connection may wait for its next request.
    pub keep_alive: Duration,
    /// How long a write may make no progress before the connection is cut.
    pub stalled_write: Duration,
    /// How long a log stays open without listeners.
    pub linger: Duration,
    /// How long the broker may take to answer before it counts as unavailable.
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
