//! The live page: shows developers what happens on this node. It is off unless the server is on a
//! loopback address, or the configuration turns it on.

use airwave_core::Hub;
use airwave_transports::request::json_response;
use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use serde_json::{Map, Value, json};

use crate::pages::file;

/// More channels than a person looks at.
const SHOWN: usize = 500;

/// The page at `path`, its style and script beside it, and the state it shows.
pub(crate) fn routes(path: &str, hub: Hub) -> Router {
    // What is beside a page is beside the last slash of its path.
    let beside = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    Router::new()
        .route(path, get(|| async { file("index.html", include_str!("live/index.html")) }))
        .route(
            &format!("{beside}/live/live.css"),
            get(|| async { file("live.css", include_str!("live/live.css")) }),
        )
        .route(
            &format!("{beside}/live/live.js"),
            get(|| async { file("live.js", include_str!("live/live.js")) }),
        )
        .route(&format!("{beside}/live/state"), get(state))
        .with_state(hub)
}

async fn state(State(hub): State<Hub>) -> Response {
    let counts = |pairs: &[(&'static str, usize)]| {
        let mut counts: Map<String, Value> = Map::new();
        for (wire, count) in pairs {
            // A stream of several channels is SSE too.
            let name = if *wire == "sse-many" { "sse" } else { wire };
            let sum = counts.get(name).and_then(Value::as_u64).unwrap_or(0) + *count as u64;
            counts.insert(name.to_owned(), json!(sum));
        }
        counts
    };
    let channels: Vec<Value> = hub
        .channels(SHOWN)
        .iter()
        .map(|channel| {
            json!({
                "name": channel.name.as_str(),
                "cursor": channel.cursor.to_string(),
                "events": channel.events,
                "bytes": channel.bytes,
                "listeners": counts(&channel.listeners),
                "ended": channel.ended,
                "use_case": channel.rule.use_case.map(|use_case| use_case.as_str()),
                "transport": channel.rule.transports.iter().map(|name| name.as_str()).collect::<Vec<_>>(),
            })
        })
        .collect();
    // What may be published to at all: the page suggests a channel that exists.
    let rules: Vec<Value> = hub
        .rules()
        .iter()
        .take(SHOWN)
        .map(|rule| {
            json!({
                "match": rule.pattern.to_string(),
                "use_case": rule.use_case.map(|use_case| use_case.as_str()),
                "transport": rule.transports.iter().map(|name| name.as_str()).collect::<Vec<_>>(),
            })
        })
        .collect();
    let node = json!({"version": env!("CARGO_PKG_VERSION"), "uptime_s": hub.uptime().as_secs(), "broker": hub.broker_name()});
    let state = json!({"node": node, "connections": counts(&hub.sessions_by_wire()), "channels": channels, "rules": rules});
    json_response(200, state.to_string())
}
