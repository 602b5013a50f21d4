//! What is said in a room, and asked for.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// What clients send.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Say {
    pub text: String,
}

/// Asks for messages before one that is known.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Earlier {
    pub before: String,
    pub limit: usize,
}

/// What everybody hears.
#[derive(Serialize, Deserialize)]
pub struct Said {
    pub from: String,
    pub text: String,
    /// Milliseconds since 1970.
    pub at: u128,
}

impl Said {
    /// As said now.
    pub fn now(from: &str, text: &str) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Said {
            from: from.to_owned(),
            text: text.to_owned(),
            at: since.map_or(0, |since| since.as_millis()),
        }
    }
}
