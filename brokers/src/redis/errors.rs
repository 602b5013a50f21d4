//! What can go wrong, in words for operators.

use airwave_core::{BrokerError, ChannelName};

/// Why no broker could be made. The text says what to do, and holds no credentials.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum RedisConnectError {
    /// The URL is not one.
    #[error("the broker's URL {0}")]
    Url(String),
    /// No server answers there.
    #[error("Redis at {address} cannot be reached: {reason}; start it, or correct the broker's URL")]
    Unreachable {
        /// Host, port and database.
        address: String,
        /// What happened.
        reason: String,
    },
    /// The server loads its data from its file. It is waited for: no caller of
    /// [`Redis::connect`](super::Redis::connect) sees this.
    #[error("Redis at {address} is loading its data")]
    Loading {
        /// Host, port and database.
        address: String,
    },
    /// The server answers, but will not have us or cannot serve us.
    #[error("Redis at {address} cannot be used: {reason}")]
    Unusable {
        /// Host, port and database.
        address: String,
        /// What happened, and what to do.
        reason: String,
    },
}

/// A failed connection that can be made again.
pub(super) fn lost(what: &str) -> BrokerError {
    BrokerError::unavailable(format!("Redis: {what}"))
}

pub(super) fn broke_meanwhile() -> BrokerError {
    lost("the subscription broke while it was made")
}

pub(super) fn late() -> BrokerError {
    BrokerError::unavailable("Redis did not answer in time").for_clients()
}

/// Something else writes to our keys, or a later version of this program did.
pub(super) fn not_ours(channel: &ChannelName) -> BrokerError {
    BrokerError::unavailable(format!(
        "the keys of the channel {channel} (airwave:…{{{channel}}}:*) hold what Airwave did not write there: give it a database of its own"
    ))
}
