//! Clauses call a broker through these functions. Each waits for the result that must come, and
//! fails with a text.

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Poll;

use tokio::task::JoinSet;
use tokio::time::timeout;

use super::fixture::{Kept, PATIENCE};
use crate::broker::{Append, Broker, BrokerError, BrokerErrorKind, Feed, PageLimit, Published, Replay};
use crate::event::{ChannelName, Data, Event, EventName, IdempotencyKey, Message, Position};

/// Returns text that no other run and no other call gives.
pub(super) fn unique() -> String {
    static RUN: OnceLock<Position> = OnceLock::new();
    static CALL: AtomicU64 = AtomicU64::new(0);
    let run = RUN.get_or_init(Position::now);
    format!("{run}-{}-{}", std::process::id(), CALL.fetch_add(1, Ordering::Relaxed))
}

pub(super) fn channel(kept: Kept) -> ChannelName {
    named(kept, &unique())
}

pub(super) fn named(kept: Kept, rest: &str) -> ChannelName {
    ChannelName::new(&format!("conformance/{}/{rest}", kept.as_str())).unwrap()
}

pub(super) fn text(text: impl ToString) -> Append {
    Append::new(Message::new(EventName::new("said").unwrap(), Data::text(text.to_string())))
}

pub(super) fn key(text: &str) -> IdempotencyKey {
    IdempotencyKey::new(text).unwrap()
}

pub(super) fn text_of(event: &Event) -> &str {
    std::str::from_utf8(event.message.data.as_bytes()).unwrap()
}

/// Waits for a result that must come, and fails with `what` if it does not.
pub(super) async fn patiently<T>(what: &str, future: impl Future<Output = T>) -> T {
    match timeout(PATIENCE, future).await {
        Ok(done) => done,
        Err(_) => panic!("{what}: nothing for {PATIENCE:?}"),
    }
}

pub(super) async fn publish(node: &dyn Broker, channel: &ChannelName, append: Append) -> Position {
    let published = patiently("publish", node.publish(channel, append)).await;
    let published = published.unwrap_or_else(|error| panic!("publish: {error}"));
    assert!(!published.duplicate, "a first publish was called a duplicate");
    published.position
}

pub(super) async fn follow(node: &dyn Broker, channel: &ChannelName) -> Feed {
    let feed = patiently("follow", node.follow(channel)).await;
    feed.unwrap_or_else(|error| panic!("follow: {error}"))
}

pub(super) async fn replay(node: &dyn Broker, channel: &ChannelName, after: Option<Position>, limit: usize) -> Replay {
    page(node, channel, after, PageLimit::events(limit)).await
}

pub(super) async fn page(node: &dyn Broker, channel: &ChannelName, after: Option<Position>, limit: PageLimit) -> Replay {
    let replay = patiently("replay", node.replay(channel, after, limit)).await;
    replay.unwrap_or_else(|error| panic!("replay: {error}"))
}

pub(super) async fn next(feed: &mut Feed) -> Arc<Event> {
    let event = patiently("the feed's next event", feed.next()).await;
    event.expect("the feed ended although nothing was disturbed")
}

pub(super) async fn take(feed: &mut Feed, count: usize) -> Vec<Arc<Event>> {
    let mut events = Vec::new();
    for _ in 0..count {
        events.push(next(feed).await);
    }
    events
}

/// Takes all events that come until the feed has shown `position`.
pub(super) async fn take_until(feed: &mut Feed, position: Position) -> Vec<Arc<Event>> {
    let mut events: Vec<Arc<Event>> = Vec::new();
    while events.last().is_none_or(|event| event.position < position) {
        events.push(next(feed).await);
    }
    events
}

/// Runs futures at the same time, at most 64 of them, and returns their results in no order.
pub(super) async fn at_once<T: Send + 'static>(
    futures: impl IntoIterator<Item = impl Future<Output = T> + Send + 'static>,
) -> Vec<T> {
    let mut tasks = JoinSet::new();
    let mut done = Vec::new();
    for future in futures {
        while tasks.len() >= 64 {
            done.extend(tasks.join_next().await.map(joined));
        }
        tasks.spawn(future);
    }
    while let Some(result) = tasks.join_next().await {
        done.push(joined(result));
    }
    done
}

pub(super) fn joined<T>(result: Result<T, tokio::task::JoinError>) -> T {
    result.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// Polls a future `times` times and gives it up.
pub(super) async fn give_up(times: usize, future: impl Future) {
    let mut future = pin!(future);
    for _ in 0..times {
        let ready = std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_ready())).await;
        if ready {
            return;
        }
        tokio::task::yield_now().await;
    }
}

pub(super) fn assert_ended(result: Result<Published, BrokerError>) {
    match result {
        Err(error) if error.kind == BrokerErrorKind::Ended => {}
        other => panic!("a publish to an ended channel gave {other:?}"),
    }
}
