//! What can go wrong, in words for operators.

use airwave_core::{BrokerError, ChannelName};

/// What the server gives as reasons (`err_code`).
pub(super) mod code {
    pub(in crate::nats) const NOT_ENABLED: [u64; 2] = [10039, 10076];
    pub(in crate::nats) const NO_SUCH_STREAM: u64 = 10059;
    pub(in crate::nats) const NO_MESSAGE: u64 = 10037;
    pub(in crate::nats) const NAME_TAKEN: u64 = 10058;
    pub(in crate::nats) const SUBJECTS_TAKEN: u64 = 10065;
    pub(in crate::nats) const WRONG_LAST: [u64; 2] = [10071, 10164];
    pub(in crate::nats) const NO_SUCH_ROLLUP: u64 = 10111;
    pub(in crate::nats) const SAME_KEY_UNDER_WAY: u64 = 10158;
    pub(in crate::nats) const TOO_LARGE: u64 = 10054;
    pub(in crate::nats) const SEALED: u64 = 10109;
    /// The account's limit, the server's, its memory's, its disk's; and what the store itself says
    /// (`max_bytes`, a write that fails).
    pub(in crate::nats) const FULL: [u64; 5] = [10002, 10023, 10028, 10047, 10077];
}

/// Why no broker could be made. The text says what to do, and holds no credentials.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum NatsConnectError {
    /// The URL is not one.
    #[error("the broker's URL {0}")]
    Url(String),
    /// No server answers there.
    #[error("NATS at {address} cannot be reached: {reason}; start it, or correct the broker's URL")]
    Unreachable {
        /// Hosts and ports.
        address: String,
        /// What happened.
        reason: String,
    },
    /// A server answers, but will not have us or cannot serve us.
    #[error("NATS at {address} cannot be used: {reason}")]
    Unusable {
        /// Hosts and ports.
        address: String,
        /// What happened, and what to do.
        reason: String,
    },
}

pub(super) fn lost(what: &str) -> BrokerError {
    BrokerError::unavailable(format!("NATS: {what}"))
}

/// Why the server stores no message, in words for operators.
pub(super) fn unstored(code: u64, text: &str) -> BrokerError {
    if code::FULL.contains(&code) {
        lost(&format!(
            "JetStream is full ({text}): give it more room (max_file_store, the account's limits, the stream's max_bytes), or keep less history"
        ))
    } else if code == code::SEALED {
        lost(&format!(
            "the stream is sealed ({text}), which cannot be undone: choose another prefix (?prefix=NAME in the broker's URL)"
        ))
    } else {
        lost(text)
    }
}

pub(super) fn late() -> BrokerError {
    lost("no answer in time")
}

/// Something else writes to our subjects, or a later version of this program did.
pub(super) fn not_ours(channel: &ChannelName) -> BrokerError {
    lost(&format!(
        "the stream holds for the channel {channel} what Airwave did not write there: give it a prefix or an account of its own"
    ))
}
