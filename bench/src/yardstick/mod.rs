//! What Airwave is compared with. Each is a server in a process of its own that the bench starts as a hidden subcommand.

pub mod axum;
pub mod raw;
pub mod redis;

use std::io::Write;
use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::value::RawValue;

/// One publication of `POST /publish`.
#[derive(Debug, Deserialize)]
pub struct Item<'a> {
    /// The channel's name.
    pub channel: &'a str,
    /// The event's name.
    pub event: &'a str,
    /// JSON, as it was sent.
    #[serde(borrow)]
    pub data: &'a RawValue,
}

/// Says where the server listens, in the words of `airwave serve`, so that `process.rs` starts all of them alike.
pub fn announce(address: SocketAddr) -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "airwave listening on http://{address}")
        .and_then(|()| out.flush())
        .map_err(|error| format!("cannot print the address: {error}"))
}

/// The clock that positions begin from.
pub fn now_micros() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(1, |since| since.as_micros() as u64)
}

/// The members of a confirmation.
pub fn subscribed_notice(channel: &str, cursor: u64, resumed: bool) -> String {
    format!("\"channel\":\"{channel}\",\"cursor\":\"{cursor}\",\"resumed\":{resumed}")
}
