//! The server that a competent team writes by hand today: axum's own SSE and WebSocket types over
//! `tokio::sync::broadcast`.
//!
//! It is what Airwave has to beat, so it is not made worse than such servers are: events are shared
//! (`Arc`), the WebSocket text is built once per event, `TCP_NODELAY` is set, and its channels hold
//! enough events not to lag in a burst. It has no history, so no client can resume from it.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Bytes;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::{StreamExt, stream};
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;

use super::{Item, now_micros, subscribed_notice};

/// Events that a slow listener may be behind before it silently loses some.
const CAPACITY: usize = 1_024;

struct Published {
    position: u64,
    event: String,
    data: String,
    /// The WebSocket's envelope, ready to send.
    envelope: Utf8Bytes,
}

struct ChannelLog {
    last: Mutex<u64>,
    sender: broadcast::Sender<Arc<Published>>,
}

#[derive(Clone, Default)]
struct InMemoryApp {
    channels: Arc<Mutex<HashMap<String, Arc<ChannelLog>>>>,
}

impl InMemoryApp {
    fn channel(&self, name: &str) -> Arc<ChannelLog> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(name) {
            return channel.clone();
        }
        let channel = Arc::new(ChannelLog {
            last: Mutex::new(now_micros()),
            sender: broadcast::channel(CAPACITY).0,
        });
        channels.insert(name.to_owned(), channel.clone());
        channel
    }

    fn publish(&self, item: &Item<'_>) -> String {
        let channel = self.channel(item.channel);
        let mut last = channel.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last = now_micros().max(*last + 1);
        let (position, name, event, data) = (*last, item.channel, item.event, item.data.get());
        let published = Published {
            position,
            event: event.to_owned(),
            data: data.to_owned(),
            envelope: format!("{{\"channel\":\"{name}\",\"id\":\"{position}\",\"event\":\"{event}\",\"data\":{data}}}").into(),
        };
        // An error only says that the channel has no listener.
        let _ = channel.sender.send(Arc::new(published));
        format!("{{\"channel\":\"{name}\",\"cursor\":\"{position}\",\"duplicate\":false}}")
    }
}

/// Serves until the process is killed; prints its address first.
pub fn serve() -> Result<(), String> {
    let runtime = tokio::runtime::Runtime::new().map_err(|error| format!("cannot start tokio: {error}"))?;
    runtime.block_on(async {
        let app = Router::new()
            .route("/channels/{*name}", get(listen))
            .route("/publish", post(publish))
            .with_state(InMemoryApp::default());
        super::serve_router(app).await
    })
}

async fn listen(
    State(app): State<InMemoryApp>,
    Path(name): Path<String>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let channel = app.channel(&name);
    match upgrade {
        Ok(upgrade) => upgrade.on_upgrade(move |socket| websocket(socket, name, channel)),
        Err(_) => sse(name, &channel).into_response(),
    }
}

fn sse(name: String, channel: &ChannelLog) -> Sse<impl stream::Stream<Item = Result<Event, Infallible>> + use<>> {
    let events = BroadcastStream::new(channel.sender.subscribe()).filter_map(|event| async move {
        let event = event.ok()?; // lagged: lost, and the client is not told
        Some(
            Event::default()
                .id(event.position.to_string())
                .event(&event.event)
                .data(&event.data),
        )
    });
    let cursor = *channel.last.lock().unwrap_or_else(PoisonError::into_inner);
    let notice = format!("{{{}}}", subscribed_notice(&name, cursor, false));
    let subscribed = Event::default()
        .id(cursor.to_string())
        .event("airwave.subscribed")
        .data(notice);
    Sse::new(stream::iter([subscribed]).chain(events).map(Ok)).keep_alive(KeepAlive::default())
}

async fn websocket(mut socket: WebSocket, name: String, channel: Arc<ChannelLog>) {
    let mut events = channel.sender.subscribe();
    let cursor = *channel.last.lock().unwrap_or_else(PoisonError::into_inner);
    let notice = format!("{{\"type\":\"subscribed\",{}}}", subscribed_notice(&name, cursor, false));
    if socket.send(Message::Text(notice.into())).await.is_err() {
        return;
    }
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Ok(event) => {
                    if socket.send(Message::Text(event.envelope.clone())).await.is_err() {
                        return;
                    }
                }
                Err(broadcast::error::RecvError::Lagged(_)) => {} // lost, and the client is not told
                Err(broadcast::error::RecvError::Closed) => return,
            },
            message = socket.recv() => match message {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => {}
            },
        }
    }
}

async fn publish(State(app): State<InMemoryApp>, body: Bytes) -> Result<String, (StatusCode, String)> {
    let bad = |error: serde_json::Error| (StatusCode::BAD_REQUEST, error.to_string());
    if body.first() == Some(&b'[') {
        let items: Vec<Item<'_>> = serde_json::from_slice(&body).map_err(bad)?;
        let answers: Vec<String> = items.iter().map(|item| app.publish(item)).collect();
        return Ok(format!("[{}]", answers.join(",")));
    }
    let item: Item<'_> = serde_json::from_slice(&body).map_err(bad)?;
    Ok(app.publish(&item))
}
