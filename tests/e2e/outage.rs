//! A broker that does not answer (P9): the times of one request's calls do not add up, and what
//! needs no broker goes on.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use airwave::broker::{BrokerStats, follow_and_replay};
use airwave::brokers::memory::Memory;
use airwave::rule::SendPolicy;
use airwave::{Airwave, Append, Broker, ChannelName, Config, Position, Published, Replay};
use airwave::{BrokerError, Feed, PageLimit};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::support::raw::{Raw, frame};
use crate::support::{Node, Way, config, http, rule, run, until, within};

/// A broker in memory that answers nothing while it is frozen.
struct Frozen {
    memory: Memory,
    is: watch::Sender<bool>,
    /// Calls that wait, by channel.
    waiting: Mutex<HashMap<String, usize>>,
    calls: AtomicUsize,
}

impl Frozen {
    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    async fn thawed(&self, channel: &ChannelName) {
        self.calls.fetch_add(1, Ordering::SeqCst);
        *self.waiting.lock().unwrap().entry(channel.to_string()).or_default() += 1;
        self.is.subscribe().wait_for(|frozen| !frozen).await.unwrap();
        *self.waiting.lock().unwrap().entry(channel.to_string()).or_default() -= 1;
    }
}

/// The node's own handle of it.
struct FrozenHandle(Arc<Frozen>);

#[airwave::async_trait]
#[deny(clippy::missing_trait_methods)]
impl Broker for FrozenHandle {
    fn name(&self) -> &'static str {
        "frozen"
    }

    async fn publish(&self, channel: &ChannelName, append: Append) -> Result<Published, BrokerError> {
        self.0.thawed(channel).await;
        self.0.memory.publish(channel, append).await
    }

    async fn follow(&self, channel: &ChannelName) -> Result<Feed, BrokerError> {
        self.0.thawed(channel).await;
        self.0.memory.follow(channel).await
    }

    async fn replay(&self, channel: &ChannelName, after: Option<Position>, limit: PageLimit) -> Result<Replay, BrokerError> {
        self.0.thawed(channel).await;
        self.0.memory.replay(channel, after, limit).await
    }

    async fn open(&self, channel: &ChannelName, limit: PageLimit) -> Result<(Feed, Replay), BrokerError> {
        follow_and_replay(self, channel, limit).await
    }

    async fn ping(&self) -> Result<(), BrokerError> {
        Ok(())
    }

    fn stats(&self) -> BrokerStats {
        self.0.memory.stats()
    }
}

async fn node(broker_timeout: Duration) -> (Node, Arc<Frozen>) {
    let mut config: Config = config([rule("{*all}", |rule| rule.send = SendPolicy::Publish)]);
    config.limits.broker_timeout = broker_timeout;
    let frozen = Arc::new(Frozen {
        memory: Memory::new(config.rules.clone()),
        is: watch::Sender::new(false),
        waiting: Mutex::default(),
        calls: AtomicUsize::new(0),
    });
    let builder = Airwave::from_config(config).broker(Arc::new(FrozenHandle(frozen.clone())));
    (Node::serving(builder, Airwave::router).await, frozen)
}

/// As long as no test waits.
const NEVER: Duration = Duration::from_secs(600);
const SOON: Duration = Duration::from_millis(300);

fn array(channels: usize, items: usize) -> Value {
    let publication = |n: usize| json!({"channel": format!("c/{}", n % channels), "event": "e", "data": n / channels});
    (0..channels * items).map(publication).collect()
}

#[test]
fn an_array_publishes_to_its_channels_at_once_and_to_each_in_order() {
    run(async {
        let (node, frozen) = node(NEVER).await;
        frozen.is.send_replace(true);
        let address = node.own;
        let posting = tokio::spawn(async move {
            let headers = [("content-type", "application/json")];
            let body = array(20, 3).to_string();
            http::request(address, "POST", "/publish", &headers, body.into()).await
        });
        until("one publish to each channel is under way", || {
            let waiting = frozen.waiting.lock().unwrap();
            waiting.len() == 20 && waiting.values().all(|&count| count == 1)
        })
        .await;
        frozen.is.send_replace(false);
        let answer = within("the answer", posting).await.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        let items = answer.json();
        for n in 0..60 {
            assert_eq!(items[n]["channel"], format!("c/{}", n % 20));
        }
        for n in 0..20 {
            let page = node.channel(&format!("c/{n}")).history(None, 10).await.unwrap();
            let data: Vec<_> = page
                .events
                .iter()
                .map(|event| event.message.data.as_bytes().to_vec())
                .collect();
            assert_eq!(data, [b"0", b"1", b"2"]);
        }
    });
}

/// Each channel is tried once, and what stands behind that is not tried: the answer says which is
/// which.
#[test]
fn an_array_that_the_broker_does_not_answer_is_refused_once() {
    run(async {
        let (node, frozen) = node(SOON).await;
        frozen.is.send_replace(true);
        let answer = node.post("/publish", &[], array(20, 3).to_string()).await;
        assert_eq!(answer.status, 503, "{answer:?}");
        let items = answer.json();
        for n in 0..60 {
            let message = items[n]["error"]["message"].as_str().unwrap();
            assert_eq!(message.contains("not tried"), n >= 20, "{n}: {message}");
            assert_eq!(items[n]["error"]["code"], "unavailable");
        }
        assert_eq!(frozen.calls(), 20);
    });
}

/// The first channel takes all the time that the request has.
#[test]
fn a_stream_of_many_channels_is_refused_after_one_time() {
    run(async {
        let (node, frozen) = node(SOON).await;
        frozen.is.send_replace(true);
        let channels: Vec<_> = (0..100).map(|n| format!("channel=c/{n}")).collect();
        let headers = [("accept", "text/event-stream")];
        let answer = http::get(node.own, &format!("/events?{}", channels.join("&")), &headers).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(frozen.calls(), 1);
    });
}

#[test]
fn pings_and_closes_are_answered_while_a_command_waits() {
    run(async {
        let (node, frozen) = node(NEVER).await;
        let mut socket = Raw::websocket(node.own, "/channels/a").await;
        assert!(socket.frame().await.unwrap().text().contains("subscribed"));
        let before = frozen.calls();
        frozen.is.send_replace(true);
        let send = |n: u64| json!({"type": "send", "id": n, "channel": "a", "event": "e", "data": n}).to_string();
        for n in 0..20 {
            socket.say(frame(0x81, send(n).as_bytes())).await;
        }
        socket.say(frame(0x89, b"still there?")).await;
        let pong = socket.frame().await.unwrap();
        assert_eq!((pong.opcode, &pong.payload[..]), (10, &b"still there?"[..]));
        socket.say(frame(0x81, br#"{"type":"ping","id":77}"#)).await;
        let pong = socket.frame().await.unwrap();
        assert_eq!(pong.text(), r#"{"type":"pong","id":77}"#);
        socket.say(frame(0x88, &1000u16.to_be_bytes())).await;
        let (code, _) = socket.close_frame().await;
        assert_eq!(code, 1000);
        assert_eq!(frozen.calls() - before, 1, "the others wait for the first");
        // What was said before the close happens all the same, and in its order.
        frozen.is.send_replace(false);
        let channel = node.channel("a");
        let mut events = Vec::new();
        while events.len() < 20 {
            events = channel.history(None, 100).await.unwrap().events;
            tokio::task::yield_now().await;
        }
        for (n, event) in events.iter().enumerate() {
            assert_eq!(event.message.data.as_bytes(), n.to_string().as_bytes());
        }
    });
}

#[test]
fn the_times_of_commands_that_wait_on_one_socket_do_not_add_up() {
    run(async {
        let (node, frozen) = node(SOON).await;
        let mut listener = node.listen(Way::WebSocket, "heard").await;
        let before = frozen.calls();
        frozen.is.send_replace(true);
        for n in 0..50 {
            let frame = match n % 2 {
                0 => json!({"type": "send", "id": n, "channel": "heard", "event": "e", "data": n}),
                _ => json!({"type": "subscribe", "id": n, "channel": format!("a/{n}")}),
            };
            listener.send(frame).await;
        }
        until("the first is under way", || frozen.calls() > before).await;
        for n in 0..50 {
            let answer = listener.answer().await;
            assert_eq!(
                (answer["id"].as_u64(), answer["code"].as_str()),
                (Some(n), Some("unavailable")),
                "{answer}"
            );
        }
        // A client that is slower than the time may have said its last ones after it: those are
        // tried once more.
        let tried = frozen.calls() - before;
        assert!(tried <= 5, "{tried} of 50 were tried one after the other");
        // The first that comes behind the outage goes through.
        frozen.is.send_replace(false);
        listener
            .send(json!({"type": "send", "id": 99, "channel": "heard", "event": "e", "data": 1}))
            .await;
        let answer = listener.answer().await;
        assert_eq!((answer["id"].as_u64(), answer["type"].as_str()), (Some(99), Some("reply")));
    });
}
