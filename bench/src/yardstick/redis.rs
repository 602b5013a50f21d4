//! Redis behind a hand-written server, as the usual tutorial shows it: `PUBLISH` for every request,
//! and for every SSE client a subscriber connection of its own, straight into axum's SSE.
//!
//! It has no history and no cursor: what is published while a client reconnects, or while Redis
//! does, is lost, and the client is not told.

use std::convert::Infallible;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::routing::{get, post};
use futures_util::{Stream, StreamExt, stream};
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;

use super::{Item, now_micros, subscribed_notice};

#[derive(Clone)]
struct RedisApp {
    client: redis::Client,
    /// One for all who publish: the client pipelines.
    publisher: MultiplexedConnection,
}

type Failure = (StatusCode, String);

fn failed(error: redis::RedisError) -> Failure {
    (StatusCode::SERVICE_UNAVAILABLE, error.to_string())
}

/// Serves until the process is killed; prints its address first.
pub fn serve(url: &str) -> Result<(), String> {
    let runtime = tokio::runtime::Runtime::new().map_err(|error| format!("cannot start tokio: {error}"))?;
    runtime.block_on(async {
        let client = redis::Client::open(url).map_err(|error| format!("not Redis's URL: {error}"))?;
        let publisher = client
            .get_multiplexed_async_connection()
            .await
            .map_err(|error| format!("cannot reach Redis: {error}"))?;
        let app = Router::new()
            .route("/channels/{*name}", get(listen))
            .route("/publish", post(publish))
            .with_state(RedisApp { client, publisher });
        super::serve_router(app).await
    })
}

async fn listen(
    State(app): State<RedisApp>,
    Path(name): Path<String>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Failure> {
    let mut subscriber = app.client.get_async_pubsub().await.map_err(failed)?;
    subscriber.subscribe(&name).await.map_err(failed)?;
    let events = subscriber.into_on_message().filter_map(|message| async move {
        let payload: String = message.get_payload().ok()?;
        // Position, event's name and data, as `publish` wrote them.
        let mut lines = payload.splitn(3, '\n');
        let (id, event, data) = (lines.next()?, lines.next()?, lines.next()?);
        Some(Event::default().id(id).event(event).data(data))
    });
    let cursor = now_micros();
    let subscribed = Event::default()
        .id(cursor.to_string())
        .event("airwave.subscribed")
        .data(format!("{{{}}}", subscribed_notice(&name, cursor, false)));
    Ok(Sse::new(stream::iter([subscribed]).chain(events).map(Ok)).keep_alive(KeepAlive::default()))
}

async fn publish(State(mut app): State<RedisApp>, body: Bytes) -> Result<String, Failure> {
    let item: Item<'_> = serde_json::from_slice(&body).map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))?;
    let (position, name) = (now_micros(), item.channel);
    let payload = format!("{position}\n{}\n{}", item.event, item.data.get());
    let _: i64 = app.publisher.publish(name, payload).await.map_err(failed)?;
    Ok(format!(
        "{{\"channel\":\"{name}\",\"cursor\":\"{position}\",\"duplicate\":false}}"
    ))
}
