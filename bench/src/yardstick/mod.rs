//! What Airwave is compared with. Each is a server in a process of its own that the bench starts as
//! a hidden subcommand.

pub mod axum;
pub mod raw;
pub mod redis;

use std::io::Write;
use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use ::axum::Router;
use ::axum::serve::ListenerExt;
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

/// Says where the server listens, in the words of `airwave serve`, so that `process.rs` starts all
/// of them alike.
pub fn announce(address: SocketAddr) -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "airwave listening on http://{address}")
        .and_then(|()| out.flush())
        .map_err(|error| format!("cannot print the address: {error}"))
}

/// Serves a router of axum on a free port until the process is killed; says first where.
pub async fn serve_router(app: Router) -> Result<(), String> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .map_err(|error| format!("cannot listen: {error}"))?;
    announce(listener.local_addr().map_err(|error| error.to_string())?)?;
    let listener = listener.tap_io(|socket| {
        // A socket that closed in the meantime has no use for it.
        let _ = socket.set_nodelay(true);
    });
    ::axum::serve(listener, app)
        .await
        .map_err(|error| format!("the server failed: {error}"))
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
