//! Outages that every broker gets over in the same way (P3, P9): one text for all of them.

#![allow(dead_code)] // each test file uses a part

use std::sync::Arc;
use std::time::Duration;

use airwave_core::{
    Append, Broker, BrokerError, BrokerErrorKind, ChannelName, Data, EventName, Feed, Message, PageLimit, Position,
};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::hub::Node;
use super::proxy::Proxy;

/// How long a test waits for anything. It decides nothing but when a hang is called one.
const PATIENCE: Duration = Duration::from_secs(60);

/// What an outage may take at most: promised, so asserted. By a time-out and not by a look at the
/// clock: when this machine stood still for a moment, what is waited for is asked once more before
/// the time-out counts.
pub const UNAVAILABLE_WITHIN: Duration = Duration::from_secs(2);
const FOUND_WITHIN: Duration = Duration::from_secs(5);

pub fn name(text: &str) -> ChannelName {
    ChannelName::new(text).unwrap()
}

pub fn say(text: impl ToString) -> Append {
    Append::new(Message::new(EventName::new("said").unwrap(), Data::text(text.to_string())))
}

pub async fn publish(broker: &dyn Broker, channel: &str) -> Position {
    broker.publish(&name(channel), say("text")).await.unwrap().position
}

pub async fn ended(feed: &mut Feed) {
    let next = timeout(PATIENCE, feed.next())
        .await
        .expect("the feed goes on as if nothing had happened");
    assert_eq!(next, None);
}

/// The trouble that began then is found: the feed ends, in time.
pub async fn found(feed: &mut Feed, since: Instant) {
    timeout_at(since + FOUND_WITHIN, ended(feed))
        .await
        .expect("not found in time");
}

/// Asks until the answer is not "unavailable".
pub async fn insist<T>(mut ask: impl AsyncFnMut() -> Result<T, BrokerError>) -> T {
    let asked = async {
        loop {
            match ask().await {
                Ok(answer) => return answer,
                Err(error) if error.kind == BrokerErrorKind::Unavailable => sleep(Duration::from_millis(20)).await,
                Err(error) => panic!("{error}"),
            }
        }
    };
    timeout(PATIENCE, asked).await.expect("it does not come back")
}

pub async fn unavailable<T>(call: impl Future<Output = Result<T, BrokerError>>) -> String {
    let answer = timeout(UNAVAILABLE_WITHIN, call).await.expect("no answer in time");
    let Err(error) = answer else { panic!("it answered") };
    assert_eq!(error.kind, BrokerErrorKind::Unavailable, "{error}");
    error.to_string()
}

/// Nothing answers, no connection ends: the server stands still, or the line swallows everything.
/// It is found, feeds end, and afterwards all is there.
pub async fn silence_is_found_and_healed(broker: &dyn Broker, silent: impl Fn(bool)) {
    let mut feed = broker.follow(&name("a")).await.unwrap();
    let first = publish(broker, "a").await;
    assert_eq!(feed.next().await.unwrap().position, first);

    silent(true);
    let since = Instant::now();
    unavailable(broker.publish(&name("a"), say("unknown"))).await;
    unavailable(broker.ping()).await;
    found(&mut feed, since).await;
    silent(false);

    insist(async || broker.ping().await).await;
    let mut feed = insist(async || broker.follow(&name("a")).await).await;
    let replay = insist(async || broker.replay(&name("a"), Some(first), PageLimit::events(100)).await).await;
    assert!(replay.complete, "something was lost");
    let next = publish(broker, "a").await;
    loop {
        // What was unknown may have happened, late.
        let event = feed.next().await.unwrap();
        if event.position == next {
            break;
        }
    }
}

/// A client listens at `near`, which has an outage of its own, while `far` publishes. The client
/// hears everything in order, and of no gap.
pub async fn each_hears_what_others_publish(near: Arc<dyn Broker>, far: Arc<dyn Broker>, silent: impl Fn(bool)) {
    let (node, far) = (Node::new(near.clone()), Node::new(far));
    let client = node.listen("a", None).await;
    let mut said = Vec::new();
    let mut say = async |text: String| {
        let position = far.say("a", &text).await.expect("nothing is wrong there");
        said.push((position, text));
        position
    };
    for n in 0..10 {
        say(format!("before {n}")).await;
    }
    client.hears(say("the last before".to_owned()).await).await;
    let mut feed = near.follow(&name("quiet")).await.unwrap();
    silent(true);
    let found = async {
        let mut n = 0;
        // Not before: what the line has swallowed would be missing from the middle of a connection,
        // which no network does.
        while timeout(Duration::from_millis(50), feed.next()).await.is_err() {
            say(format!("while {n}")).await;
            n += 1;
        }
    };
    timeout(PATIENCE, found).await.expect("it is not found");
    say("when it was found".to_owned()).await;
    silent(false);
    client.hears(say("after".to_owned()).await).await;
    insist(async || near.ping().await).await;
    client.hears(say("in the end".to_owned()).await).await;
    assert_eq!(client.gaps(), []);
    client.knows_of(&said);
    let told = client.told();
    let events = told.iter().filter(|told| matches!(told, super::hub::Told::Event(..))).count();
    assert_eq!(events, said.len(), "each once");
}

/// What was published arrives slowly, for so long that the node's own probes stand more than
/// fifteen seconds behind it. Whatever arrives proves that the connection lives, so it is not given
/// up.
pub async fn a_slow_line_is_not_a_dead_one(near: &dyn Broker, far: &dyn Broker, proxy: &Proxy) {
    let mut feed = near.follow(&name("busy")).await.unwrap();
    proxy.pace(100_000);
    let text = "x".repeat(16_000);
    let mut last = feed.head;
    for _ in 0..110 {
        last = far.publish(&name("busy"), say(&text)).await.unwrap().position;
    }
    let all = async { while feed.next().await.expect("the connection was given up").position != last {} };
    timeout(PATIENCE, all).await.expect("it stands still");
    proxy.pace(0);
    insist(async || near.ping().await).await;
    assert_eq!(near.stats().reconnects(), 0);
}

/// Calls that are sent over a slow line are answered one after the other. The last of them waits
/// far longer than a silent server is waited for, and is not refused.
pub async fn calls_behind_others_are_not_late(broker: Arc<dyn Broker>, proxy: &Proxy) {
    proxy.pace(100_000);
    let text = "x".repeat(60_000);
    let publishes: Vec<_> = (0..5)
        .map(|n| {
            let (broker, publish) = (broker.clone(), say(&text));
            tokio::spawn(async move { broker.publish(&name(&format!("large/{n}")), publish).await })
        })
        .collect();
    for publish in publishes {
        timeout(PATIENCE, publish).await.unwrap().unwrap().unwrap();
    }
    proxy.pace(0);
}

/// A server that takes connections and drops them at once is the worst case of a busy loop. `most`
/// tries are what three seconds have room for.
pub async fn an_outage_is_no_busy_loop(proxy: &Proxy, most: u64) {
    proxy.refuse();
    let before = proxy.connections();
    let since = Instant::now();
    sleep(Duration::from_secs(3)).await;
    let most = most * since.elapsed().as_millis() as u64 / 3000;
    let tries = proxy.connections() - before;
    assert!((2..=most).contains(&tries), "{tries} tries in three seconds");
}
