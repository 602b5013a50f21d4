//! These cases check what a broker loses, and what it keeps, in wipes, cuts and restarts.

use std::time::Duration;

use tokio::time::sleep;

use super::calls::{assert_ended, channel, follow, key, patiently, publish, take, text, text_of, unique};
use super::chain::Chain;
use super::fixture::{Fault, Fixture, Kept};
use crate::broker::{Append, Broker, BrokerErrorKind, Feed, PageLimit, Replay};
use crate::event::{ChannelName, Position};

/// Publishes until the broker acknowledges it, as a caller with a key may.
pub(super) async fn insist(node: &dyn Broker, channel: &ChannelName, message: Append) -> Position {
    assert!(message.idempotency_key.is_some(), "only a publish with a key may be repeated");
    patiently("publishing after a fault", async {
        loop {
            match node.publish(channel, message.clone()).await {
                Ok(published) => return published.position,
                Err(error) if error.kind == BrokerErrorKind::Unavailable => sleep(Duration::from_millis(20)).await,
                Err(error) => panic!("publish after a fault: {error}"),
            }
        }
    })
    .await
}

/// Asks for a replay until the broker answers.
pub(super) async fn insist_on_replay(node: &dyn Broker, channel: &ChannelName, after: Position) -> Replay {
    patiently("replaying after a fault", async {
        loop {
            match node.replay(channel, Some(after), PageLimit::events(10_000)).await {
                Ok(replay) => return replay,
                Err(error) if error.kind == BrokerErrorKind::Unavailable => sleep(Duration::from_millis(20)).await,
                Err(error) => panic!("replay after a fault: {error}"),
            }
        }
    })
    .await
}

pub(super) async fn insist_on_following(node: &dyn Broker, channel: &ChannelName) -> Feed {
    patiently("following after a fault", async {
        loop {
            match node.follow(channel).await {
                Ok(feed) => return feed,
                Err(error) if error.kind == BrokerErrorKind::Unavailable => sleep(Duration::from_millis(20)).await,
                Err(error) => panic!("follow after a fault: {error}"),
            }
        }
    })
    .await
}

/// The broker gives no position again and calls no cursor from before the wipe complete. No feed
/// takes an event of the new chain for the next of the old one.
pub async fn after_a_wipe_nothing_old_goes_on(fixture: &dyn Fixture) {
    let (node, channel) = (fixture.node().await, channel(Kept::Ample));
    let mut feed = follow(&*node, &channel).await;
    let mut old = Chain(vec![feed.head]);
    old.publish_many(&*node, &channel, 20).await;
    take(&mut feed, 20).await;

    fixture.inflict(Fault::Wipe).await;

    let new = insist(&*node, &channel, text("new").with_idempotency_key(key("new"))).await;
    assert!(new > old.head(), "{new} was given after {} before the wipe", old.head());
    for node in [node.clone(), fixture.node().await] {
        for after in &old.0 {
            let replayed = insist_on_replay(&*node, &channel, *after).await;
            assert!(!replayed.complete, "{after}, from before the wipe, was called complete");
            assert_eq!(replayed.events.len(), 1);
            assert_eq!(replayed.head, new);
        }
    }
    match patiently("the old feed's end or next event", feed.next()).await {
        None => {}
        Some(event) => {
            assert_eq!(text_of(&event), "new");
            let goes_on = event.previous == Position::ZERO || event.previous == old.head();
            assert!(!goes_on, "a feed shows the new chain as if it continued the old one");
        }
    }
}

/// A store that lost everything and whose clock is behind goes on above what nodes have seen. It
/// also goes on above what a client has had. Below that, no listener would receive anything until
/// the clock has caught up.
pub async fn a_store_that_returns_behind_goes_on_above_what_it_gave(fixture: &dyn Fixture) {
    let nodes = [fixture.node().await, fixture.node().await];
    let (known, forgotten) = (channel(Kept::Ample), channel(Kept::Ample));
    let mut feed = follow(&*nodes[1], &known).await;
    let mut old = Chain(vec![feed.head]);
    old.publish_many(&*nodes[0], &known, 20).await;
    take(&mut feed, 20).await;
    let had = publish(&*nodes[0], &forgotten, text("old")).await;
    // This node has published nothing and asked for nothing but its feed.
    let witness = nodes[1].clone();

    fixture.inflict(Fault::ReturnBehind).await;

    let new = insist(&*witness, &known, text("new").with_idempotency_key(key("new"))).await;
    assert!(new > old.head(), "{new} was given after {} had been heard", old.head());
    for after in &old.0 {
        let replayed = insist_on_replay(&*nodes[0], &known, *after).await;
        assert!(!replayed.complete, "{after}, from before the loss, was called complete");
        assert_eq!((replayed.events.len(), replayed.head), (1, new));
    }
    // These nodes know nothing. A client comes to one of them with the position that it had.
    let (asked, publisher) = (fixture.node().await, fixture.node().await);
    let replayed = insist_on_replay(&*asked, &forgotten, had).await;
    assert!(!replayed.complete && replayed.events.is_empty(), "{replayed:?}");
    let late = insist(&*publisher, &forgotten, text("late").with_idempotency_key(key("late"))).await;
    assert!(late > had, "{late} was given, and a client that has had {had} had asked");
    let mut feed = insist_on_following(&*asked, &known).await;
    let next = insist(&*publisher, &known, text("next").with_idempotency_key(key("next"))).await;
    assert_eq!(take(&mut feed, 1).await[0].position, next);
}

/// A cut feed ends, or it shows every event. A node that reconnects without ending its feeds would
/// hide what it missed.
pub async fn a_feed_that_was_cut_ends_or_misses_nothing(fixture: &dyn Fixture) {
    let nodes = [fixture.node().await, fixture.node().await];
    let channel = channel(Kept::Ample);
    let mut feed = follow(&*nodes[1], &channel).await;
    let mut chain = Chain(vec![feed.head]);
    chain.publish_many(&*nodes[0], &channel, 10).await;
    for round in 0..5 {
        fixture.inflict(Fault::Cut).await;
        for n in 0..10 {
            let message = text(n).with_idempotency_key(key(&format!("{round}-{n}")));
            let position = insist(&*nodes[n % 2], &channel, message).await;
            assert!(position > chain.head());
            chain.0.push(position);
        }
        let mut shown = feed.head;
        while shown < chain.head() {
            match patiently("the feed's next event or end", feed.next()).await {
                Some(event) => {
                    assert_eq!(
                        event.position,
                        chain.0[1 + chain.index_of(shown).unwrap()],
                        "a feed hid a loss"
                    );
                    shown = event.position;
                }
                None => {
                    feed = insist_on_following(&*nodes[1], &channel).await;
                    let replayed = insist_on_replay(&*nodes[0], &channel, shown).await;
                    chain.allows(Some(shown), 10_000, 10_000, &replayed);
                    shown = feed.head;
                }
            }
        }
        // The next round begins from here.
        feed.head = shown;
    }
}

/// A restart also loses no end, no idempotency key and no chain.
pub async fn a_restart_loses_no_acknowledged_event(fixture: &dyn Fixture) {
    let (node, channel, ended) = (fixture.node().await, channel(Kept::Ample), channel(Kept::Ample));
    let mut chain = Chain::base(&*node, &channel).await;
    publish(&*node, &ended, Append::end()).await;
    chain.publish_many(&*node, &channel, 100).await;
    let keyed = chain
        .publish(&*node, &channel, text("keyed").with_idempotency_key(key("k")))
        .await;

    fixture.inflict(Fault::Restart).await;

    for node in [node.clone(), fixture.node().await] {
        let replayed = insist_on_replay(&*node, &channel, chain.0[0]).await;
        chain.allows(Some(chain.0[0]), 10_000, 10_000, &replayed);
        assert_eq!(
            insist(&*node, &channel, text("keyed").with_idempotency_key(key("k"))).await,
            keyed
        );
        assert_ended(patiently("publish", node.publish(&ended, text("late"))).await);
        let position = insist(&*node, &channel, text("after").with_idempotency_key(key(&unique()))).await;
        assert!(position > chain.head());
        chain.0.push(position);
        let replayed = insist_on_replay(&*node, &channel, chain.0[0]).await;
        chain.allows(Some(chain.0[0]), 10_000, 10_000, &replayed);
    }
}
