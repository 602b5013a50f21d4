//! A node of version 0.1 and one of this version share a broker, as docs/upgrading.md says.
//!
//! `AIRWAVE_TEST_OLD_BIN` names the program of 0.1: `scripts/test.sh upgrade` builds it from the
//! commit that was 0.1, and runs these tests.

use std::net::SocketAddr;
use std::path::PathBuf;

use airwave_bench::chaos::BrokerKind;
use airwave_bench::chaos::clients::{self, Heard, Sse};
use airwave_bench::chaos::world::World;
use serde_json::{Value, json};

use crate::moving::{Listener, Watcher, Way, next, position, publish};
use crate::{airwave, is_here};

/// `on_both_brokers!(scenario)`: the async function `scenario(Versions)` as one test for each
/// broker.
macro_rules! on_both_brokers {
    ($($scenario:ident),* $(,)?) => {$(
        mod $scenario {
            #[test]
            #[ignore = "scripts/test.sh upgrade builds version 0.1 for it"]
            fn redis() {
                super::with_both_versions(super::BrokerKind::Redis, super::$scenario);
            }

            #[test]
            #[ignore = "scripts/test.sh upgrade builds version 0.1 for it"]
            fn nats() {
                super::with_both_versions(super::BrokerKind::Nats, super::$scenario);
            }
        }
    )*};
}

on_both_brokers!(
    events_without_attributes_go_both_ways,
    what_one_version_stored_the_other_reads,
    a_listener_moves_to_the_new_version_and_back,
    members_are_known_to_both_versions,
    version_0_1_refuses_a_channel_with_attributes_alone,
    version_0_1_does_not_know_keys_that_this_version_has_used,
);

/// A node of each version, over one broker.
struct Versions {
    old: SocketAddr,
    new: SocketAddr,
    kind: BrokerKind,
    world: World,
}

fn with_both_versions<F: Future<Output = ()>>(kind: BrokerKind, scenario: fn(Versions) -> F) {
    if !is_here(kind) {
        return;
    }
    let old = std::env::var_os("AIRWAVE_TEST_OLD_BIN").map(PathBuf::from);
    let old = old.expect("name the program of version 0.1 in AIRWAVE_TEST_OLD_BIN, or run scripts/test.sh upgrade");
    crate::run(async {
        let config = |url: &str| {
            format!(
                "[broker]\nurl = \"{url}\"\n[[channels]]\nmatch = \"room/{{name}}\"\ntransport = [\"sse\", \"websocket\"]\n\
                 presence = true\n[[channels]]\nmatch = \"{{*all}}\"\ntransport = [\"sse\", \"websocket\"]\n\
                 send = \"publish\"\nhistory = {{ events = 1000, age = \"1h\" }}\n"
            )
        };
        let world = World::start_each(kind, &[(&old, 0), (airwave(), 0)], config).await.unwrap();
        let (old, new) = (world.address(0).await, world.address(1).await);
        scenario(Versions { old, new, kind, world }).await;
    });
}

async fn page(node: SocketAddr, channel: &str) -> (u16, Value) {
    let path = format!("/channels/{channel}?limit=1000");
    clients::request(node, "GET", &path, "", "").await.unwrap()
}

async fn publish_with_attributes(node: SocketAddr, channel: &str, number: u64) -> u64 {
    let message = json!({"channel": channel, "data": number, "attributes": {"trace": "t1"}});
    let (status, answer) = clients::publish(node, &message).await.unwrap();
    assert_eq!(status, 200, "{answer}");
    position(&answer)
}

fn is_unavailable((status, answer): &(u16, Value)) -> bool {
    (*status, answer["error"]["code"].as_str()) == (503, Some("unavailable"))
}

async fn events_without_attributes_go_both_ways(on: Versions) {
    let mut listeners = Vec::new();
    for node in [on.old, on.new] {
        for way in Way::ALL {
            listeners.push(Listener::open(node, way, "a", None).await);
        }
    }
    let mut positions = Vec::new();
    for number in 0..30 {
        let node = if number % 3 == 0 { on.new } else { on.old };
        positions.push(publish(node, "a", number).await);
    }
    for listener in &mut listeners {
        assert_eq!(listener.hears(0..30).await, positions, "everywhere the same places");
    }
    assert_eq!(on.world.wrong(), Vec::<String>::new());
}

/// Every kind of payload, keys and an end; each version reads what the other stored before.
async fn what_one_version_stored_the_other_reads(on: Versions) {
    for (channel, writer) in [("of-old", on.old), ("of-new", on.new)] {
        for message in [
            json!({"channel": channel, "event": "e", "data": {"n": 1}, "key": "é k"}),
            json!({"channel": channel, "event": "e", "text": "two\nlines"}),
            json!({"channel": channel, "event": "e", "base64": "AP8="}),
            json!({"channel": channel, "end": true}),
        ] {
            let (status, answer) = clients::publish(writer, &message).await.unwrap();
            assert_eq!(status, 200, "{answer}");
        }
        let (old, new) = (page(on.old, channel).await, page(on.new, channel).await);
        assert_eq!((new.0, &new.1["events"]), (200, &old.1["events"]), "{channel}");
        assert_eq!(new.1["events"].as_array().unwrap().len(), 3);
        assert_eq!([&old.1["ended"], &new.1["ended"]], [true, true]);
    }
}

async fn a_listener_moves_to_the_new_version_and_back(on: Versions) {
    let mut listener = Listener::open(on.old, Way::Sse, "a", None).await;
    let mut number = 0;
    for round in 0..12 {
        let (here, there) = if round % 2 == 0 { (on.old, on.new) } else { (on.new, on.old) };
        publish(there, "a", number).await;
        listener.hears(number..number + 1).await;
        let cursor = listener.cursor;
        drop(listener);
        publish(here, "a", number + 1).await;
        // The cursor of one channel is the same in both versions.
        let way = [Way::Sse, Way::WebSocket, Way::Socket][round % 3];
        listener = Listener::open(there, way, "a", Some(cursor)).await;
        listener.hears(number + 1..number + 2).await;
        number += 2;
    }
}

async fn members_are_known_to_both_versions(on: Versions) {
    let mut watchers = [
        Watcher::open(on.old, Way::WebSocket).await,
        Watcher::open(on.new, Way::Sse).await,
    ];
    let mut others = Vec::new();
    for node in [on.old, on.new, on.new] {
        others.push(Listener::open(node, Way::WebSocket, "room/a", None).await);
        for watcher in &mut watchers {
            watcher.knows_of(2 + others.len() as u64).await;
        }
    }
    let path = "/channels/room/a?presence=true";
    for node in [on.old, on.new] {
        let (_, answer) = clients::request(node, "GET", path, "", "").await.unwrap();
        assert_eq!(answer["members"], json!([{"user": null, "connections": 5}]));
    }
    drop(others);
    for watcher in &mut watchers {
        watcher.knows_of(2).await;
    }
}

/// What docs/upgrading.md warns of.
async fn version_0_1_refuses_a_channel_with_attributes_alone(on: Versions) {
    let mut listener = Listener::open(on.new, Way::Sse, "a", None).await;
    publish(on.old, "a", 0).await;
    let said = publish_with_attributes(on.new, "a", 1).await;
    let (status, answer) = page(on.new, "a").await;
    assert_eq!((status, &answer["events"][1]["attributes"]), (200, &json!({"trace": "t1"})));
    assert_eq!(answer["events"][1]["id"], json!(said.to_string()));
    listener.hears(0..2).await;
    assert!(is_unavailable(&page(on.old, "a").await), "version 0.1 answers that page");
    // On Redis it publishes without reading. On NATS it builds on the newest message.
    let message = json!({"channel": "a", "data": 2});
    let published = clients::publish(on.old, &message).await.unwrap();
    match on.kind {
        BrokerKind::Nats => assert!(is_unavailable(&published), "{published:?}"),
        _ => {
            assert_eq!(published.0, 200, "{published:?}");
            listener.hears(2..3).await;
        }
    }
    // No other channel is concerned, and a listener that comes from 0.1 misses nothing here.
    publish(on.old, "b", 0).await;
    let mut other = Sse::open(on.old, "/channels/b", Some("b"), None, false).await.unwrap();
    assert!(matches!(next(&mut other).await, Heard::Confirmed { .. }));
    assert_eq!(page(on.old, "b").await.0, 200);
    let mut moved = Listener::open(on.new, Way::WebSocket, "a", Some(listener.cursor)).await;
    publish_with_attributes(on.new, "a", 3).await;
    moved.hears(3..4).await;
}

/// A repeated publish with an idempotency key.
async fn version_0_1_does_not_know_keys_that_this_version_has_used(on: Versions) {
    let message = json!({"channel": "a", "data": 0, "idempotency_key": "k"});
    let (_, first) = clients::publish(on.new, &message).await.unwrap();
    let again = clients::publish(on.old, &message).await.unwrap();
    match on.kind {
        BrokerKind::Nats => assert_eq!((again.0, position(&again.1)), (200, position(&first))),
        _ => assert!(is_unavailable(&again), "{again:?}"),
    }
    // The other way it is known.
    let message = json!({"channel": "a", "data": 1, "idempotency_key": "l"});
    let (_, first) = clients::publish(on.old, &message).await.unwrap();
    let (status, again) = clients::publish(on.new, &message).await.unwrap();
    assert_eq!(
        (status, position(&again), &again["duplicate"]),
        (200, position(&first), &json!(true))
    );
}
