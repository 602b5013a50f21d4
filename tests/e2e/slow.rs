//! A listener that does not read costs itself its place, never anybody else a moment or the node
//! its memory (P12).

use std::sync::LazyLock;

use airwave::rule::SlowPolicy;
use airwave::{Data, EventName, Message, Publish};

use crate::support::{Event, Heard, Listener, Node, Way, config, each_way, rule, run, until, within};

each_way!(
    a_slow_listener_is_refilled,
    a_slow_listener_skips,
    a_slow_listener_is_closed_and_comes_back,
);

/// Half as much again as all the buffers between a server and a client that does not read: on Linux
/// at most 4 MiB of the sender's socket, and hyper's.
const EVENTS: u64 = 340;
const EVENT_BYTES: usize = 20_000;
const RING_BYTES: usize = 1 << 20;

async fn node(policy: SlowPolicy) -> Node {
    let mut config = config([rule("{*all}", |rule| {
        rule.slow = policy;
        rule.history.events = 2 * EVENTS as usize;
    })]);
    config.limits.ring_bytes = RING_BYTES;
    Node::of(config).await
}

/// The number is the event's name, so that all events can share one payload: checking it is what
/// takes the time.
async fn publish(node: &Node, number: u64) {
    static PAYLOAD: LazyLock<Data> = LazyLock::new(|| Data::json(&"x".repeat(EVENT_BYTES)).unwrap());
    let message = Message::new(EventName::new(&format!("n{number}")).unwrap(), PAYLOAD.clone());
    node.channel("a").publish_with(Publish::message(message)).await.unwrap();
}

async fn number(listener: &mut Listener) -> u64 {
    number_of(&listener.event().await)
}

fn number_of(event: &Event) -> u64 {
    assert_eq!(event.data.len(), EVENT_BYTES + 2);
    event.name[1..].parse().unwrap()
}

/// A confirmed listener that has stopped reading, long after it fell off the ring; another has
/// heard everything meanwhile.
async fn fallen(node: &Node, way: Way) -> Listener {
    let mut slow = Listener::connect(node.address(way), way, "/channels/a", &[], Some(4096))
        .await
        .unwrap();
    slow.subscribed().await;
    let mut brisk = node.listen(Way::WebSocket, "a").await;
    for n in 0..EVENTS {
        publish(node, n).await;
        assert_eq!(number(&mut brisk).await, n);
        let ring = &node.airwave.hub().channels(1)[0];
        assert!(ring.bytes <= RING_BYTES, "{ring:?}");
    }
    slow
}

async fn a_slow_listener_is_refilled(way: Way) {
    let node = node(SlowPolicy::Refill).await;
    let mut slow = fallen(&node, way).await;
    for n in 0..EVENTS {
        assert_eq!(number(&mut slow).await, n);
    }
    assert!(node.metric("airwave_slow_clients_total{policy=\"refill\"}") >= 1);
    publish(&node, EVENTS).await;
    assert_eq!(number(&mut slow).await, EVENTS);
}

async fn a_slow_listener_skips(way: Way) {
    let node = node(SlowPolicy::Skip).await;
    let mut slow = fallen(&node, way).await;
    let (mut expected, mut gaps, mut last) = (0, 0, String::new());
    // Live means: it gets what is published now.
    publish(&node, EVENTS).await;
    while expected <= EVENTS {
        match slow.next().await {
            Heard::Event(event) => {
                assert_eq!(number_of(&event), expected, "after {gaps} gaps");
                expected += 1;
                last = event.id;
            }
            Heard::Gap {
                after, cursor, reason, ..
            } => {
                assert_eq!((after, reason.as_str()), (Some(last.clone()), "too-slow"));
                assert!(cursor.parse::<u64>().unwrap() > last.parse().unwrap());
                gaps += 1;
                // The stream goes on after the cursor that the gap names.
                let page = node.get(&format!("/channels/a?limit=1&after={cursor}")).await.json();
                match page["events"][0]["event"].as_str() {
                    Some(next) => expected = next[1..].parse().unwrap(),
                    None => {
                        publish(&node, EVENTS + 1).await;
                        expected = EVENTS + 1;
                    }
                }
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(gaps >= 1);
    assert_eq!(node.metric("airwave_gaps_total{reason=\"too-slow\"}"), gaps);
}

async fn a_slow_listener_is_closed_and_comes_back(way: Way) {
    let node = node(SlowPolicy::Close).await;
    let mut slow = fallen(&node, way).await;
    let mut expected = 0;
    loop {
        match slow.next().await {
            Heard::Event(event) => {
                assert_eq!(number_of(&event), expected);
                expected += 1;
            }
            Heard::Closed { code, reason, .. } => {
                if !way.is_sse() {
                    assert_eq!((code, reason.as_str()), (Some(4408), "too-slow"));
                }
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(expected < EVENTS, "it was not slow");
    // With its cursor it misses nothing: history holds what the ring does not.
    let mut again = node.resume(way, "a", slow.cursor()).await;
    assert!(again.subscribed().await.resumed);
    for n in expected..EVENTS {
        assert_eq!(number(&mut again).await, n);
    }
}

/// A write that makes no progress is cut on every transport.
#[test]
fn a_stalled_write_is_cut() {
    for way in [Way::Sse, Way::WebSocket, Way::WebSocketBehindAxum] {
        run(async move {
            let mut config = config([rule("{*all}", |rule| rule.history.events = 1000)]);
            config.limits.stalled_write = std::time::Duration::from_millis(300);
            config.limits.ring_bytes = RING_BYTES;
            let node = Node::of(config).await;
            let mut slow = Listener::connect(node.address(way), way, "/channels/a", &[], Some(4096))
                .await
                .unwrap();
            slow.subscribed().await;
            let mut brisk = node.listen(way, "a").await;
            let mut n = 0;
            within("the stalled one is cut", async {
                while node.airwave.hub().sessions() > 1 {
                    publish(&node, n).await;
                    assert_eq!(number(&mut brisk).await, n);
                    n += 1;
                }
            })
            .await;
            // What was on its way may still arrive; then the connection is broken.
            loop {
                match slow.next().await {
                    Heard::Event(_) => {}
                    Heard::Closed { .. } => break,
                    other => panic!("{other:?}"),
                }
            }
            publish(&node, n).await;
            assert_eq!(number(&mut brisk).await, n);
        });
    }
}

/// Who is gone without a word is noticed, and its place is free again.
#[test]
fn a_listener_that_is_gone_is_gone() {
    run(async {
        let node = Node::new().await;
        let mut listeners = Vec::new();
        for way in Way::ALL {
            listeners.push(node.listen(way, "a").await);
        }
        assert_eq!(node.airwave.hub().sessions(), Way::ALL.len());
        drop(listeners);
        until("all sessions are gone", || node.airwave.hub().sessions() == 0).await;
    });
}
