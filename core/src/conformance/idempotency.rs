//! This module tests idempotency keys, and publishes that their callers gave up.

use super::calls::{
    at_once, channel, follow, give_up, key, named, patiently, publish, replay, take, take_until, text, text_of, unique,
};
use super::chain::{Chain, assert_same};
use super::fixture::{Fixture, Kept, TEN, at_most};
use crate::broker::{Append, BrokerErrorKind};
use crate::event::{Data, EventName, Key, Message, Position};
use crate::idempotency::{Fingerprint, KeySource, ScopedKey};

/// A caller may repeat the key through any node.
pub async fn a_repeated_key_gives_the_first_position_and_no_second_event(fixture: &dyn Fixture) {
    let nodes = [fixture.node().await, fixture.node().await];
    let channel = channel(Kept::Ample);
    let mut feed = follow(&*nodes[0], &channel).await;
    let mut chain = Chain(vec![feed.head]);
    let first = chain
        .publish(&*nodes[0], &channel, text("one").with_idempotency_key(key("k")))
        .await;
    chain
        .publish(&*nodes[0], &channel, text("two").with_idempotency_key(key("K")))
        .await;
    for node in [&nodes[0], &nodes[1], &nodes[0], &nodes[1]] {
        let repeated = text("one").with_idempotency_key(key("k"));
        let published = patiently("publish", node.publish(&channel, repeated)).await.unwrap();
        assert_eq!((published.position, published.duplicate), (first, true));
    }
    // The same text without a key makes another event.
    chain.publish(&*nodes[1], &channel, text("one")).await;
    chain.publish(&*nodes[1], &channel, text("one")).await;
    let shown = take(&mut feed, 4).await;
    assert_eq!(
        shown.iter().map(|event| text_of(event)).collect::<Vec<_>>(),
        ["one", "two", "one", "one"]
    );
    chain.replays(&*nodes[1], &channel, 4).await;
}

/// The broker checks the key and appends the event in one step, over all nodes.
pub async fn a_repeated_key_among_concurrent_publishers_makes_one_event(fixture: &dyn Fixture) {
    let nodes = [fixture.node().await, fixture.node().await];
    for round in 0..10 {
        let channel = channel(Kept::Ample);
        let mut feed = follow(&*nodes[0], &channel).await;
        let published = at_once((0..16).map(|n| {
            let (node, channel) = (nodes[n % 2].clone(), channel.clone());
            async move {
                let publish = text("same").with_idempotency_key(key("same"));
                patiently("publish", node.publish(&channel, publish)).await.unwrap()
            }
        }))
        .await;
        let first = published[0].position;
        assert!(
            published.iter().all(|p| p.position == first),
            "one key, several positions: {published:?}"
        );
        let news = published.iter().filter(|p| !p.duplicate).count();
        assert_eq!(
            news, 1,
            "round {round}: so many publishers were told that theirs was the first"
        );
        let last = publish(&*nodes[1], &channel, text("last")).await;
        let shown: Vec<Position> = take_until(&mut feed, last).await.iter().map(|event| event.position).collect();
        assert_eq!(shown, [first, last]);
    }
}

/// The key's window does not depend on the history that the channel keeps.
pub async fn a_repeated_key_is_recognised_after_its_event_was_trimmed(fixture: &dyn Fixture) {
    let node = fixture.node().await;
    for kept in [Kept::None, Kept::Ten] {
        let channel = channel(kept);
        let mut chain = Chain::base(&*node, &channel).await;
        let first = chain
            .publish(&*node, &channel, text("one").with_idempotency_key(key("k")))
            .await;
        chain.publish_many(&*node, &channel, 2 * at_most(TEN)).await;
        let again = patiently("publish", node.publish(&channel, text("one").with_idempotency_key(key("k")))).await;
        let again = again.unwrap();
        assert_eq!((again.position, again.duplicate), (first, true));
        assert_eq!(replay(&*node, &channel, None, 1).await.head, chain.head());
    }
}

/// The same key in another channel makes another publish.
pub async fn a_key_counts_for_its_channel_alone(fixture: &dyn Fixture) {
    let node = fixture.node().await;
    let rest = unique();
    for name in [format!("{rest}/a"), format!("{rest}/b"), format!("{rest}/a/b"), rest] {
        publish(&*node, &named(Kept::Ample, &name), text(&name).with_idempotency_key(key("k"))).await;
        // A key that spells the boundary between name and key does not cross it either.
        publish(
            &*node,
            &named(Kept::Ample, &name),
            text(&name).with_idempotency_key(key("a/k")),
        )
        .await;
        publish(
            &*node,
            &named(Kept::Ample, &name),
            text(&name).with_idempotency_key(key("/k")),
        )
        .await;
    }
}

/// The first payload counts, on every node and also after the channel's end.
pub async fn a_key_with_another_payload_is_refused(fixture: &dyn Fixture) {
    let nodes = [fixture.node().await, fixture.node().await];
    let channel = channel(Kept::Ample);
    let mut chain = Chain::base(&*nodes[0], &channel).await;
    let keyed = |append: Append| append.with_idempotency_key(key("k"));
    let first = chain.publish(&*nodes[0], &channel, keyed(text("one"))).await;
    let with_key = Message::new(EventName::new("said").unwrap(), Data::text("one")).with_key(Key::new("a").unwrap());
    let others = [
        text("two"),
        text("one").and_end(),
        Append::end(),
        Append::new(Message::new(EventName::new("heard").unwrap(), Data::text("one"))),
        Append::new(Message::new(EventName::new("said").unwrap(), Data::binary("one"))),
        Append::new(with_key),
    ];
    for ended in [false, true] {
        for node in &nodes {
            for other in &others {
                let result = patiently("publish", node.publish(&channel, keyed(other.clone()))).await;
                match result {
                    Err(error) if error.kind == BrokerErrorKind::Rejected => {}
                    other => panic!("a known key with another payload gave {other:?}"),
                }
            }
            let again = patiently("publish", node.publish(&channel, keyed(text("one"))))
                .await
                .unwrap();
            assert_eq!((again.position, again.duplicate), (first, true));
            let replayed = replay(&**node, &channel, None, 100).await;
            assert_eq!(
                (replayed.head, replayed.ended),
                (chain.head(), ended),
                "something was appended"
            );
        }
        if !ended {
            chain.publish(&*nodes[1], &channel, Append::end()).await;
        }
    }
}

/// Each source has keys of its own: the backend, users, connections, and the parts of one message
/// that a handler publishes.
pub async fn keys_of_different_sources_do_not_meet(fixture: &dyn Fixture) {
    let nodes = [fixture.node().await, fixture.node().await];
    let channel = channel(Kept::Ample);
    let mut chain = Chain::base(&*nodes[0], &channel).await;
    let print = |text: &str| Fingerprint::of_message(&Message::new(EventName::new("say").unwrap(), Data::text(text)), false);
    let mut keys = Vec::new();
    for caller in ["k", "k~1", "k~end", &"k".repeat(255)] {
        let key = key(caller);
        keys.push(ScopedKey::backend(&key));
        for part in 0..3 {
            for source in [
                KeySource::User("ann"),
                KeySource::User("k \u{e9}"),
                KeySource::Connection(1, 2),
            ] {
                keys.push(ScopedKey::client(source, &key, part, print("said")));
            }
        }
    }
    let keyed = |n: usize, key: &ScopedKey| text(n).with_idempotency_key(key.clone());
    let mut positions = Vec::new();
    for (n, key) in keys.iter().enumerate() {
        positions.push(chain.publish(&*nodes[n % 2], &channel, keyed(n, key)).await);
    }
    for (n, key) in keys.iter().enumerate() {
        let again = patiently("publish", nodes[(n + 1) % 2].publish(&channel, keyed(n, key)))
            .await
            .unwrap();
        assert_eq!((again.position, again.duplicate), (positions[n], true), "{key:?}");
    }
    // A handler may make different events of a repeated message. The client's message may not
    // differ.
    let of_ann = |text: &str| ScopedKey::client(KeySource::User("ann"), &key("k"), 0, print(text));
    let again = patiently("publish", nodes[0].publish(&channel, keyed(1000, &of_ann("said"))))
        .await
        .unwrap();
    assert_eq!((again.position, again.duplicate), (positions[1], true));
    let other = patiently("publish", nodes[1].publish(&channel, keyed(1, &of_ann("other")))).await;
    assert!(other.is_err_and(|error| error.kind == BrokerErrorKind::Rejected));
    assert_eq!(replay(&*nodes[0], &channel, None, 0).await.head, chain.head());
}

/// A caller that gave up waiting repeats its publish. In both cases there is one event.
pub async fn a_publish_that_was_given_up_may_be_repeated_with_its_key(fixture: &dyn Fixture) {
    let nodes = [fixture.node().await, fixture.node().await];
    let channel = channel(Kept::Ample);
    let mut feed = follow(&*nodes[1], &channel).await;
    let mut expected = Vec::new();
    for n in 0..40 {
        let message = text(n).with_idempotency_key(key(&format!("k{n}")));
        give_up(n % 8, nodes[0].publish(&channel, message.clone())).await;
        let published = patiently("publish", nodes[n % 2].publish(&channel, message)).await.unwrap();
        expected.push((published.position, n.to_string()));
    }
    let last = publish(&*nodes[0], &channel, text("last")).await;
    expected.push((last, "last".into()));
    let shown = take_until(&mut feed, last).await;
    let shown: Vec<_> = shown
        .iter()
        .map(|event| (event.position, text_of(event).to_owned()))
        .collect();
    assert_eq!(shown, expected);
}

/// The event is in both feed and history, once, or it is in neither.
pub async fn a_publish_that_was_given_up_happened_or_did_not(fixture: &dyn Fixture) {
    let (node, channel) = (fixture.node().await, channel(Kept::Ample));
    let mut feed = follow(&*node, &channel).await;
    for n in 0..80 {
        give_up(n % 8, node.publish(&channel, text(n))).await;
    }
    let last = publish(&*node, &channel, text("last")).await;
    let shown = take_until(&mut feed, last).await;
    for pair in shown.windows(2) {
        assert!(pair[0].position < pair[1].position);
        assert_eq!(pair[1].previous, pair[0].position);
    }
    let mut replayed = replay(&*node, &channel, Some(feed.head), 1000).await;
    assert!(replayed.complete);
    // A publish that was under way may still arrive after the last one.
    replayed.events.retain(|event| event.position <= last);
    assert_same(&shown, &replayed.events);
    let mut texts: Vec<_> = shown.iter().map(|event| text_of(event)).collect();
    texts.sort();
    let count = texts.len();
    texts.dedup();
    assert_eq!(texts.len(), count, "an event happened twice");
}
