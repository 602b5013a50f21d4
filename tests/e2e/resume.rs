//! Who comes back with a cursor misses nothing and gets nothing twice, or is told of a gap.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use airwave::broker::{BrokerStats, follow_and_replay};
use airwave::brokers::memory::Memory;
use airwave::{Airwave, Append, Broker, ChannelName, Position, Published, Replay};
use airwave::{BrokerError, Feed, PageLimit};
use tokio::sync::Semaphore;

use crate::support::{Dice, Heard, Listener, Node, Way, config, each_way, rule, until};

each_way!(
    hundreds_of_resumes_while_publishing,
    two_channels_with_one_cursor,
    the_first_confirmation_of_several_is_a_cursor_of_all,
    each_channel_may_have_its_own_cursor,
    a_cursor_that_was_never_given_is_a_gap,
    a_cursor_older_than_history_is_a_gap,
    a_cursor_from_before_a_restart_is_a_gap,
    a_confirmation_can_be_resumed_from,
    a_broker_that_lost_all_is_a_gap_for_those_who_listen,
);

/// Publishes 0, 1, 2, … as fast as it may: never more than history holds ahead of the listener.
struct Publisher {
    allowed: Arc<Semaphore>,
    published: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Publisher {
    fn new(node: &Node, channels: &'static [&'static str], ahead: usize) -> Self {
        let (allowed, published) = (Arc::new(Semaphore::new(ahead)), Arc::new(AtomicU64::new(0)));
        let (permits, count) = (allowed.clone(), published.clone());
        let airwave = node.airwave.clone();
        let task = tokio::spawn(async move {
            for number in 0u64.. {
                permits.acquire().await.unwrap().forget();
                let channel = channels[number as usize % channels.len()];
                airwave.channel(channel).unwrap().publish("n", &number).await.unwrap();
                count.store(number + 1, Ordering::SeqCst);
            }
        });
        Self {
            allowed,
            published,
            task,
        }
    }

    fn heard(&self, count: usize) {
        self.allowed.add_permits(count);
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn hundreds_of_resumes_while_publishing(way: Way) {
    resumes(300, |_| way).await;
}

/// P8: the cursor is the same text everywhere, so a listener may change its transport each time.
#[test]
fn hundreds_of_resumes_each_over_another_way() {
    let mut dice = Dice::new(7);
    crate::support::run(resumes(400, move |_| Way::ALL[dice.roll(Way::ALL.len())]));
}

/// Each round listens for a few events, is cut off wherever it happens to be, and comes back with
/// its last id.
async fn resumes(rounds: usize, mut way: impl FnMut(usize) -> Way) {
    let node = Node::of_rule("{*all}", |rule| rule.history.events = 1000).await;
    let mut dice = Dice::new(rounds as u64);
    let mut listener = node.listen(way(0), "a").await;
    let publisher = Publisher::new(&node, &["a"], 500);
    let mut expected = 0;
    for round in 0..rounds {
        let count = dice.roll(9);
        for _ in 0..count {
            assert_eq!(listener.number().await, expected, "round {round}");
            expected += 1;
        }
        publisher.heard(count);
        let cursor = listener.cursor().to_owned();
        drop(listener);
        listener = node.resume(way(round), "a", &cursor).await;
        let subscribed = listener.subscribed().await;
        assert_eq!((subscribed.resumed, subscribed.cursor), (true, cursor), "round {round}");
    }
    // The test is one only if the publisher was at it all the time.
    assert!(publisher.published.load(Ordering::SeqCst) > expected);
    until("sessions of clients that are gone are gone", || {
        node.airwave.hub().sessions() == 1
    })
    .await;
}

async fn open_two(node: &Node, way: Way, query: &str) -> (Listener, Vec<bool>) {
    if way.is_sse() {
        let mut listener = node.open(way, &format!("/events?channel=a&channel=b{query}")).await;
        let mut resumed = Vec::new();
        for channel in ["a", "b"] {
            let subscribed = listener.subscribed().await;
            assert_eq!(subscribed.channel, channel);
            resumed.push(subscribed.resumed);
        }
        return (listener, resumed);
    }
    // On a WebSocket each channel is subscribed with its own.
    let mut listener = node.open(way, "/socket").await;
    let afters = query.split("&after=").skip(1).chain(["", ""]);
    let mut resumed = Vec::new();
    for (channel, after) in ["a", "b"].into_iter().zip(afters) {
        listener
            .send(serde_json::json!({"type": "subscribe", "channel": channel, "after": after}))
            .await;
        loop {
            match listener.next().await {
                Heard::Subscribed(subscribed) => {
                    assert_eq!(subscribed.channel, channel);
                    resumed.push(subscribed.resumed);
                    break;
                }
                // The first channel does not wait for the second.
                Heard::Event(event) => assert_eq!(event.channel, "a"),
                other => panic!("{other:?}"),
            }
        }
    }
    (listener, resumed)
}

/// One stream, one id: cut off anywhere, both channels go on where they were.
async fn two_channels_with_one_cursor(way: Way) {
    if !way.is_sse() {
        // A WebSocket has a cursor for each channel: `hundreds_of_resumes_while_publishing`.
        return;
    }
    let node = Node::of_rule("{*all}", |rule| rule.history.events = 1000).await;
    let (mut listener, _) = open_two(&node, way, "").await;
    let publisher = Publisher::new(&node, &["a", "b"], 500);
    let mut dice = Dice::new(3);
    let mut expected = [0, 1];
    for round in 0..200 {
        let count = dice.roll(9);
        for _ in 0..count {
            let event = listener.event().await;
            let which = usize::from(event.channel == "b");
            assert_eq!(event.number(), expected[which], "round {round}: {event:?}");
            expected[which] += 2;
        }
        publisher.heard(count);
        let cursor = listener.cursor().to_owned();
        drop(listener);
        let resumed;
        (listener, resumed) = open_two(&node, way, &format!("&after={cursor}")).await;
        assert_eq!(resumed, [true, true], "round {round}");
    }
    // The same by the header that a browser sends.
    let cursor = listener.cursor().to_owned();
    let headers = [("last-event-id", cursor.as_str())];
    let path = "/events?channel=a&channel=b&after=ignored";
    let mut listener = node.try_open(way, path, &headers).await.unwrap();
    assert!(listener.subscribed().await.resumed && listener.subscribed().await.resumed);
}

/// A stream that breaks off after its first block must not have lost what it knew of the other
/// channels, nor the gaps that it was not told of.
async fn the_first_confirmation_of_several_is_a_cursor_of_all(way: Way) {
    if !way.is_sse() {
        return;
    }
    let mut config = config([rule("{*all}", |rule| rule.history.events = 10)]);
    config.limits.ring_events = 10;
    let node = Node::of(config).await;
    let (mut listener, _) = open_two(&node, way, "").await;
    node.publish("b", 1).await;
    assert_eq!(listener.number().await, 1);
    let cursor = listener.cursor().to_owned();
    node.publish("b", 2).await;
    let mut broken_off = node.open(way, &format!("/events?channel=a&channel=b&after={cursor}")).await;
    broken_off.subscribed().await;
    let first = broken_off.cursor().to_owned();
    drop(broken_off);
    let (mut again, resumed) = open_two(&node, way, &format!("&after={first}")).await;
    assert_eq!(resumed, [true, true]);
    assert_eq!(again.number().await, 2);
    for number in 3..20 {
        node.publish("b", number).await;
    }
    let mut broken_off = node.open(way, &format!("/events?channel=a&channel=b&after={cursor}")).await;
    assert!(broken_off.subscribed().await.resumed);
    let first = broken_off.cursor().to_owned();
    let (mut again, resumed) = open_two(&node, way, &format!("&after={first}")).await;
    assert_eq!(resumed, [true, false]);
    assert_eq!(again.gap().await.0, "history-expired");
    assert_eq!(again.numbers(10).await, (10..20).collect::<Vec<_>>());
}

async fn each_channel_may_have_its_own_cursor(way: Way) {
    let node = Node::new().await;
    let a = node.publish("a", 1).await;
    node.publish("a", 2).await;
    let b = node.publish("b", 10).await;
    let (mut listener, resumed) = open_two(&node, way, &format!("&after={a}&after={b}")).await;
    assert_eq!(resumed, [true, true]);
    node.publish("b", 11).await;
    let rest = if way.is_sse() { vec![2, 11] } else { vec![11] };
    let mut heard = listener.numbers(rest.len()).await;
    heard.sort_unstable();
    assert_eq!(heard, rest);
    if way.is_sse() {
        let (_, resumed) = open_two(&node, way, &format!("&after=&after={b}")).await;
        assert_eq!(resumed, [false, true]);
    }
}

/// Gap `unknown-position`: text that is no cursor, and positions that are not yet.
async fn a_cursor_that_was_never_given_is_a_gap(way: Way) {
    let node = Node::new().await;
    node.publish("a", 1).await;
    let future = u64::MAX.to_string();
    for (cursor, after) in [
        ("nonsense", None),
        ("-1", None),
        ("99999999999999999999999", None),
        ("%00%ff", None),
        ("AQAAAAAAAA", None),
        (future.as_str(), Some(future.clone())),
    ] {
        let path = format!("/channels/a?after={cursor}");
        let mut listener = match node.try_open(way, &path, &[]).await {
            Ok(listener) => listener,
            // A parameter that is not UTF-8 is no text at all.
            Err(answer) => {
                assert_eq!(
                    (cursor, answer.status, answer.error().as_str()),
                    ("%00%ff", 400, "bad-request")
                );
                continue;
            }
        };
        match listener.next().await {
            Heard::Subscribed(subscribed) => assert!(!subscribed.resumed),
            Heard::Refused { code, .. } => {
                assert_eq!((cursor, code.as_str()), ("%00%ff", "bad-request"));
                continue;
            }
            other => panic!("{cursor}: {other:?}"),
        }
        assert_eq!(listener.gap().await, ("unknown-position".to_owned(), after), "{cursor}");
        // Then it is live.
        node.publish("a", 2).await;
        assert_eq!(listener.number().await, 2, "{cursor}");
    }
    if way.is_sse() {
        // What a header holds that is no cursor is a gap as well.
        let mut listener = node
            .try_open(way, "/channels/a", &[("last-event-id", "\u{e9}")])
            .await
            .unwrap();
        assert!(!listener.subscribed().await.resumed);
        assert_eq!(listener.gap().await.0, "unknown-position");
    }
}

/// Gap `history-expired`, and everything that is left after it.
async fn a_cursor_older_than_history_is_a_gap(way: Way) {
    let mut config = config([rule("{*all}", |rule| rule.history.events = 10)]);
    config.limits.ring_events = 10;
    let node = Node::of(config).await;
    let first = node.publish("a", 0).await;
    for number in 1..=30 {
        node.publish("a", number).await;
    }
    let mut listener = node.resume(way, "a", &first).await;
    assert!(!listener.subscribed().await.resumed);
    assert_eq!(listener.gap().await, ("history-expired".to_owned(), Some(first)));
    assert_eq!(listener.numbers(10).await, (21..=30).collect::<Vec<_>>());
    // From there on it resumes.
    let cursor = listener.cursor().to_owned();
    node.publish("a", 31).await;
    let mut again = node.resume(way, "a", &cursor).await;
    assert!(again.subscribed().await.resumed);
    assert_eq!(again.number().await, 31);
    assert_eq!(node.metric("airwave_gaps_total{reason=\"history-expired\"}"), 1);
}

/// The memory broker forgets all with its process: positions are never given twice, so a cursor
/// from before is known to be lost.
async fn a_cursor_from_before_a_restart_is_a_gap(way: Way) {
    let before = Node::new().await;
    let mut listener = before.listen(way, "a").await;
    before.publish("a", 1).await;
    listener.event().await;
    let cursor = listener.cursor().to_owned();
    drop((listener, before));
    let after = Node::new().await;
    for restarted in [false, true] {
        if restarted {
            after.publish("a", 1).await;
        }
        let mut listener = after.resume(way, "a", &cursor).await;
        assert!(!listener.subscribed().await.resumed);
        let (reason, position) = listener.gap().await;
        assert_eq!(position, Some(cursor.clone()));
        assert!(["history-expired", "broker-lost-data"].contains(&reason.as_str()), "{reason}");
    }
}

/// A listener that has had no event yet can resume as well.
async fn a_confirmation_can_be_resumed_from(way: Way) {
    let node = Node::new().await;
    for channel in ["new", "old"] {
        if channel == "old" {
            node.publish(channel, 0).await;
        }
        let listener = node.listen(way, channel).await;
        let cursor = listener.cursor().to_owned();
        drop(listener);
        node.publish(channel, 1).await;
        let mut listener = node.resume(way, channel, &cursor).await;
        assert!(listener.subscribed().await.resumed);
        assert_eq!(listener.number().await, 1);
    }
    if way.is_sse() {
        // A browser that comes back sends what its page began with as well: the header is newer. An
        // empty one is none.
        let mut listener = node.listen(way, "new").await;
        let newer = node.publish("new", 2).await;
        assert_eq!(listener.number().await, 2);
        node.publish("new", 3).await;
        let older = node.get("/channels/new").await.json()["events"][0]["id"]
            .as_str()
            .unwrap()
            .to_owned();
        let path = format!("/channels/new?after={older}");
        for (header, wanted) in [(newer.as_str(), 3), ("", 2)] {
            let mut listener = node.try_open(way, &path, &[("last-event-id", header)]).await.unwrap();
            assert!(listener.subscribed().await.resumed);
            assert_eq!(listener.number().await, wanted);
        }
    }
}

/// A broker that can be wiped, as by a restart of the machine that it runs on.
struct Wiped {
    rules: airwave::Rules,
    memory: Mutex<Arc<Memory>>,
}

impl Wiped {
    fn memory(&self) -> Arc<Memory> {
        self.memory.lock().unwrap().clone()
    }

    fn wipe(&self) {
        *self.memory.lock().unwrap() = Arc::new(Memory::new(self.rules.clone()));
    }
}

/// The node's own handle of a [`Wiped`].
struct WipedHandle(Arc<Wiped>);

#[airwave::async_trait]
#[deny(clippy::missing_trait_methods)]
impl Broker for WipedHandle {
    fn name(&self) -> &'static str {
        "wiped"
    }

    async fn publish(&self, channel: &ChannelName, append: Append) -> Result<Published, BrokerError> {
        self.0.memory().publish(channel, append).await
    }

    async fn follow(&self, channel: &ChannelName) -> Result<Feed, BrokerError> {
        self.0.memory().follow(channel).await
    }

    async fn replay(&self, channel: &ChannelName, after: Option<Position>, limit: PageLimit) -> Result<Replay, BrokerError> {
        self.0.memory().replay(channel, after, limit).await
    }

    async fn open(&self, channel: &ChannelName, limit: PageLimit) -> Result<(Feed, Replay), BrokerError> {
        follow_and_replay(self, channel, limit).await
    }

    async fn ping(&self) -> Result<(), BrokerError> {
        Ok(())
    }

    fn stats(&self) -> BrokerStats {
        self.0.memory().stats()
    }
}

/// A gap in the middle of a stream, without a reconnect; from there on it goes on, and from the gap
/// it can be resumed.
async fn a_broker_that_lost_all_is_a_gap_for_those_who_listen(way: Way) {
    let config = config([rule("{*all}", |_| {})]);
    let wiped = Arc::new(Wiped {
        rules: config.rules.clone(),
        memory: Mutex::new(Arc::new(Memory::new(config.rules.clone()))),
    });
    let builder = Airwave::from_config(config).broker(Arc::new(WipedHandle(wiped.clone())));
    let node = Node::serving(builder, Airwave::router).await;
    let mut listener = node.listen(way, "a").await;
    for round in 0..3 {
        let last = node.publish("a", round).await;
        assert_eq!(listener.number().await, round);
        wiped.wipe();
        let (reason, after) = listener.gap().await;
        assert_eq!((reason.as_str(), after), ("history-expired", Some(last.clone())));
        let cursor = listener.cursor().to_owned();
        let mut again = node.resume(way, "a", &cursor).await;
        assert!(again.subscribed().await.resumed, "a gap is final");
        node.publish("a", 100 + round).await;
        assert_eq!((listener.number().await, again.number().await), (100 + round, 100 + round));
        // Its cursor stands right before the gap, which this node has in its ring.
        let mut late = node.resume(way, "a", &last).await;
        assert!(!late.subscribed().await.resumed, "a gap comes next");
        assert_eq!(late.gap().await, (reason.clone(), Some(last.clone())));
        assert_eq!(late.number().await, 100 + round);
        if way.is_sse() {
            let other = node.publish("b", 0).await;
            let (mut both, resumed) = open_two(&node, way, &format!("&after={last}&after={other}")).await;
            assert_eq!(resumed, [false, true]);
            assert_eq!(both.gap().await, (reason, Some(last)));
        }
    }
}
