//! NATS beyond the contract: outages of every kind, and what is refused. Real servers for each test.

#![cfg(feature = "nats")]
#![allow(clippy::unwrap_used)]

#[path = "support/nats.rs"]
mod support;

use std::time::Duration;

use airwave_brokers::Nats;
use airwave_brokers::nats::ConnectError;
use airwave_core::rule::TransportName;
use airwave_core::{
    Broker, BrokerError, BrokerErrorKind, ChannelName, Data, EventName, Feed, Message, Position, Publish, Rule, Rules,
};
use futures_util::StreamExt;
use serde_json::{Value, json};
use support::Server;
use tokio::time::{Instant, sleep, timeout};

/// How long a test waits for anything. It decides nothing but when a hang is called one.
const PATIENCE: Duration = Duration::from_secs(60);

/// What an outage may take at most: promised, so asserted.
const UNAVAILABLE_WITHIN: Duration = Duration::from_millis(2000);
const FOUND_WITHIN: Duration = Duration::from_secs(5);

fn name(text: &str) -> ChannelName {
    ChannelName::new(text).unwrap()
}

fn say(text: impl ToString) -> Publish {
    Publish::new(Message::new(EventName::new("said").unwrap(), Data::text(text.to_string())))
}

async fn connect(server: &Server) -> Nats {
    Nats::connect(&server.url(), Rules::default()).await.unwrap()
}

async fn publish(broker: &Nats, channel: &str) -> Position {
    broker.publish(&name(channel), say("text")).await.unwrap().position
}

async fn ended(feed: &mut Feed) {
    let next = timeout(PATIENCE, feed.next())
        .await
        .expect("the feed goes on as if nothing had happened");
    assert_eq!(next, None);
}

/// Asks until the answer is not "unavailable".
async fn insist<T>(mut ask: impl AsyncFnMut() -> Result<T, BrokerError>) -> T {
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

async fn unavailable<T>(call: impl Future<Output = Result<T, BrokerError>>) {
    let since = Instant::now();
    let Err(error) = call.await else { panic!("it answered") };
    assert_eq!(error.kind, BrokerErrorKind::Unavailable, "{error}");
    assert!(since.elapsed() < UNAVAILABLE_WITHIN, "answered after {:?}", since.elapsed());
}

/// All that was given before is incomplete, and what is given now is above it.
async fn begins_above(broker: &Nats, old: &[Position]) {
    let new = insist(async || broker.publish(&name("a"), say("new")).await).await.position;
    assert!(new > *old.last().unwrap());
    for after in old {
        let replay = insist(async || broker.replay(&name("a"), Some(*after), 100).await).await;
        assert!(
            !replay.complete && replay.events.len() == 1 && replay.head == new,
            "after {after}: {replay:?}"
        );
    }
}

/// Ten events and the birth before them, each heard.
async fn ten(broker: &Nats, feed: &mut Feed) -> Vec<Position> {
    let mut given = vec![feed.head];
    for _ in 0..10 {
        given.push(publish(broker, "a").await);
        assert_eq!(feed.next().await.unwrap().position, *given.last().unwrap());
    }
    given
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_restarts_empty_gives_no_position_again_and_calls_nothing_complete() {
    let Some(server) = Server::start() else { return };
    let broker = connect(&server).await;
    let mut feed = broker.follow(&name("a")).await.unwrap();
    let old = ten(&broker, &mut feed).await;

    server.kill();
    ended(&mut feed).await;
    unavailable(broker.publish(&name("a"), say("lost"))).await;
    unavailable(broker.ping()).await;
    unavailable(broker.follow(&name("a"))).await;
    server.wipe();
    assert!(server.run());
    begins_above(&broker, &old).await;
    insist(async || broker.ping().await).await;
    let mut feed = insist(async || broker.follow(&name("a")).await).await;
    let next = publish(&broker, "a").await;
    assert_eq!(feed.next().await.unwrap().position, next);
}

/// Its stream comes back without events, and counts from the number at which it was made: also for nodes that knew nothing of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_in_memory_gives_no_position_again() {
    let Some(server) = Server::start() else { return };
    let url = format!("{}?storage=memory", server.url());
    let broker = Nats::connect(&url, Rules::default()).await.unwrap();
    let mut feed = broker.follow(&name("a")).await.unwrap();
    let old = ten(&broker, &mut feed).await;
    drop(broker);
    server.kill();
    assert!(server.run());
    let broker = Nats::connect(&url, Rules::default()).await.unwrap();
    begins_above(&broker, &old).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn feeds_heal_after_a_restart_with_all_that_was_stored() {
    let Some(server) = Server::start() else { return };
    let nodes = [connect(&server).await, connect(&server).await];
    let mut feed = nodes[0].follow(&name("a")).await.unwrap();
    let first = publish(&nodes[1], "a").await;
    assert_eq!(feed.next().await.unwrap().position, first);

    server.kill();
    ended(&mut feed).await;
    assert!(server.run());

    let second = insist(async || nodes[1].publish(&name("a"), say("second")).await)
        .await
        .position;
    let feed = insist(async || nodes[0].follow(&name("a")).await).await;
    assert_eq!(feed.head, second);
    let replay = nodes[0].replay(&name("a"), Some(first), 100).await.unwrap();
    assert!(replay.complete && replay.events.len() == 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stands_still_is_found_and_comes_back() {
    let Some(server) = Server::start() else { return };
    let broker = connect(&server).await;
    let mut feed = broker.follow(&name("a")).await.unwrap();
    let first = publish(&broker, "a").await;
    assert_eq!(feed.next().await.unwrap().position, first);

    server.signal("STOP");
    let since = Instant::now();
    unavailable(broker.publish(&name("a"), say("unknown"))).await;
    unavailable(broker.ping()).await;
    ended(&mut feed).await;
    assert!(since.elapsed() < FOUND_WITHIN, "found after {:?}", since.elapsed());
    server.signal("CONT");

    insist(async || broker.ping().await).await;
    let mut feed = insist(async || broker.follow(&name("a")).await).await;
    let replay = broker.replay(&name("a"), Some(first), 100).await.unwrap();
    assert!(replay.complete, "nothing was lost");
    let next = publish(&broker, "a").await;
    loop {
        // What was unknown may have happened.
        let event = feed.next().await.unwrap();
        if event.position == next {
            break;
        }
    }
}

/// The stream is told to nobody any more, but stores: only what a node says to itself can tell.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_stores_and_does_not_tell_is_found() {
    let Some(server) = Server::start() else { return };
    let broker = connect(&server).await;
    let mut feed = broker.follow(&name("a")).await.unwrap();
    let mut config = server.ask("STREAM.INFO.airwave", Value::Null).await["config"].take();
    config.as_object_mut().unwrap().remove("republish");
    let since = Instant::now();
    let changed = server.ask("STREAM.UPDATE.airwave", config).await;
    assert!(changed.get("error").is_none(), "{changed}");
    ended(&mut feed).await;
    assert!(since.elapsed() < FOUND_WITHIN, "found after {:?}", since.elapsed());
}

/// Who waits for an outage's end waits in vain for what was published in it: nothing is sent later in secret.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_published_in_an_outage_does_not_come_later() {
    let Some(server) = Server::start() else { return };
    let broker = connect(&server).await;
    let first = publish(&broker, "a").await;
    server.kill();
    for _ in 0..3 {
        unavailable(broker.publish(&name("a"), say("lost"))).await;
    }
    assert!(server.run());
    insist(async || broker.ping().await).await;
    insist(async || broker.ping().await).await;
    let replay = broker.replay(&name("a"), Some(first), 10).await.unwrap();
    assert!(replay.complete && replay.events.is_empty(), "{replay:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_loses_its_leader_goes_on_with_all_that_was_acknowledged() {
    let Some(servers) = Server::cluster() else { return };
    let hosts = servers
        .each_ref()
        .map(|server| format!("127.0.0.1:{}", server.port))
        .join(",");
    let url = format!("nats://{hosts}?replicas=3");
    let connecting = async {
        loop {
            // It takes a moment to find out who leads.
            match Nats::connect(&url, Rules::default()).await {
                Ok(node) => return node,
                Err(error) => eprintln!("not yet: {error}"),
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    let broker = timeout(PATIENCE, connecting).await.unwrap();
    let mut feed = broker.follow(&name("a")).await.unwrap();
    let mut given = vec![feed.head];
    for round in 0..2 {
        for _ in 0..20 {
            given.push(insist(async || broker.publish(&name("a"), say("text")).await).await.position);
        }
        let running = &servers[usize::from(round == 1)..];
        let info = running[running.len() - 1].ask("STREAM.INFO.airwave", Value::Null).await;
        let leader = info["cluster"]["leader"].as_str().unwrap_or_default().to_owned();
        let leader: usize = leader.trim_start_matches('n').parse().unwrap();
        servers[leader].kill();
        let next = insist(async || broker.publish(&name("a"), say("after")).await).await.position;
        assert!(next > *given.last().unwrap());
        given.push(next);
        let replay = insist(async || broker.replay(&name("a"), Some(given[0]), 1000).await).await;
        let replayed: Vec<Position> = replay.events.iter().map(|event| event.position).collect();
        assert!(replay.complete, "an acknowledged event was lost");
        // A publish that was not answered may have happened, and was published again.
        assert!(
            given[1..].iter().all(|position| replayed.contains(position)),
            "{given:?} {replayed:?}"
        );
        assert!(servers[leader].run());
        insist(async || broker.ping().await).await;
    }
    // However it went on, nothing is missing before the end or the next event.
    let mut last = feed.head;
    while let Ok(Some(event)) = timeout(Duration::from_secs(1), feed.next()).await {
        assert_eq!(event.previous, last);
        last = event.position;
    }
}

async fn refused(url: &str) -> ConnectError {
    match timeout(PATIENCE, Nats::connect(url, Rules::default())).await.unwrap() {
        Ok(_) => panic!("connected to {url}"),
        Err(error) => error,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_cannot_be_used_is_refused_with_what_to_do() {
    let Some(server) = Server::configured("") else { return };
    let error = refused(&server.url()).await.to_string();
    assert!(error.contains("no JetStream; start it with -js"), "{error}");
    let address = format!("127.0.0.1:{}", server.port);
    server.kill();
    let error = refused(&format!("nats://me:s3cret@{address}")).await;
    assert!(matches!(error, ConnectError::Unreachable { .. }), "{error}");
    let error = format!("{error} {error:?}");
    assert!(
        error.contains(&address) && error.contains("start it") && !error.contains("s3cret"),
        "{error}"
    );

    let Some(server) = Server::start() else { return };
    let error = refused(&format!("{}?replicas=3", server.url())).await.to_string();
    assert!(
        error.contains("replicas=3") && error.contains("write other replicas"),
        "{error}"
    );
    let made = json!({ "name": "airwave", "subjects": ["other.>"], "storage": "file" });
    server.ask("STREAM.CREATE.airwave", made).await;
    let error = refused(&server.url()).await.to_string();
    assert!(
        error.contains("subjects differs") && error.contains("?prefix=NAME"),
        "{error}"
    );
    let made = json!({ "name": "other", "subjects": ["mine.log.>"], "storage": "file" });
    server.ask("STREAM.CREATE.other", made).await;
    let error = refused(&format!("{}?prefix=mine", server.url())).await.to_string();
    assert!(error.contains("mine.log.>") && error.contains("another prefix"), "{error}");
    let good = Nats::connect(&format!("{}?prefix=good", server.url()), Rules::default())
        .await
        .unwrap();
    publish(&good, "a").await;
    let error = refused(&format!("{}?prefix=good&storage=memory", server.url()))
        .await
        .to_string();
    assert!(error.contains("write storage=file"), "{error}");
}

/// What the rules say now is what the stream keeps, and what is not within a rule is not shown.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changed_rules_change_the_stream() {
    let Some(server) = Server::start() else { return };
    let keeping = |events: usize| {
        let mut rule = Rule::new("{*all}".parse().unwrap(), vec![TransportName::SSE]);
        rule.history.events = events;
        Rules::new([rule])
    };
    let most = async || server.ask("STREAM.INFO.airwave", Value::Null).await["config"]["max_msgs_per_subject"].clone();
    let old = Nats::connect(&server.url(), keeping(500)).await.unwrap();
    for _ in 0..20 {
        publish(&old, "a").await;
    }
    assert_eq!(most().await, 501);
    let new = Nats::connect(&server.url(), keeping(3)).await.unwrap();
    assert_eq!(most().await, 101, "channels without a rule keep a hundred");
    assert_eq!(new.replay(&name("a"), None, 100).await.unwrap().events.len(), 3);
    // One that only comes back does not take back what is newer.
    server.cut().await;
    insist(async || old.ping().await).await;
    insist(async || old.ping().await).await;
    assert_eq!(most().await, 101);
}

/// Names and what stands in them reach no other subject, and none is told twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_is_one_literal_subject() {
    let Some(server) = Server::start() else { return };
    let client = server.client().await;
    let mut told = client.subscribe("airwave.live.>").await.unwrap();
    client.flush().await.unwrap();
    let broker = connect(&server).await;
    for channel in ["a.b", "a/b:c", &"~".repeat(255)] {
        let position = publish(&broker, channel).await;
        let subject = loop {
            let message = timeout(PATIENCE, told.next()).await.unwrap().unwrap();
            if !message.subject.contains(".probe.") {
                let sequence = message.headers.unwrap().get("Nats-Sequence").unwrap().to_string();
                assert_eq!(sequence, position.to_string());
                break message.subject;
            }
        };
        assert_eq!(subject.matches('.').count(), 3, "{subject}");
    }
}
