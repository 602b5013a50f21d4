//! These clauses are about the end of a channel.

use super::calls::{assert_ended, channel, follow, give_up, key, patiently, replay, take, text, text_of};
use super::chain::Chain;
use super::fixture::{Fixture, Kept, TEN};
use crate::broker::Append;

/// The end is the last event, on every node.
pub async fn an_ended_channel_takes_no_more_events(fixture: &dyn Fixture) {
    let nodes = [fixture.node().await, fixture.node().await];
    let channel = channel(Kept::Ample);
    let mut feed = follow(&*nodes[1], &channel).await;
    let mut chain = Chain(vec![feed.head]);
    chain.publish(&*nodes[0], &channel, text("one")).await;
    assert!(!replay(&*nodes[0], &channel, None, 10).await.ended);
    chain.publish(&*nodes[0], &channel, Append::end()).await;
    for node in &nodes {
        assert_ended(patiently("publish", node.publish(&channel, text("late"))).await);
        assert_ended(
            patiently(
                "publish",
                node.publish(&channel, text("late").with_idempotency_key(key("new"))),
            )
            .await,
        );
        assert_ended(patiently("publish", node.publish(&channel, Append::end())).await);
        let replayed = replay(&**node, &channel, None, 10).await;
        chain.allows(None, 10, 2, &replayed);
        assert!(replayed.ended && replayed.events[1].is_end());
    }
    let shown = take(&mut feed, 2).await;
    assert!(shown[1].is_end() && shown[1].position == chain.head());
}

/// A late visitor receives all events, and learns that the channel has ended.
pub async fn an_ended_channel_can_still_be_followed_and_replayed(fixture: &dyn Fixture) {
    let nodes = [fixture.node().await, fixture.node().await];
    for kept in [Kept::Ample, Kept::None] {
        let channel = channel(kept);
        let mut chain = Chain::base(&*nodes[0], &channel).await;
        let promised = if matches!(kept, Kept::None) { 0 } else { 3 };
        chain.publish_many(&*nodes[0], &channel, 2).await;
        chain.publish(&*nodes[0], &channel, Append::end()).await;
        for node in &nodes {
            assert_eq!(follow(&**node, &channel).await.head, chain.head());
            for after in chain.0.iter().copied().map(Some).chain([None]) {
                let replayed = replay(&**node, &channel, after, 10).await;
                assert!(
                    replayed.ended,
                    "the replay after {after:?} does not know that the channel has ended"
                );
                chain.allows(after, 10, promised, &replayed);
            }
        }
    }
}

/// A repeated end gives its position, and so does the key of an earlier event. The broker refuses
/// only something new.
pub async fn a_repeated_end_with_its_key_gives_its_position(fixture: &dyn Fixture) {
    let nodes = [fixture.node().await, fixture.node().await];
    let channel = channel(Kept::Ample);
    let mut chain = Chain::base(&*nodes[0], &channel).await;
    let first = chain
        .publish(&*nodes[0], &channel, text("one").with_idempotency_key(key("one")))
        .await;
    let end = chain
        .publish(&*nodes[0], &channel, Append::end().with_idempotency_key(key("end")))
        .await;
    for node in &nodes {
        for (repeated, position) in [
            (Append::end().with_idempotency_key(key("end")), end),
            (text("one").with_idempotency_key(key("one")), first),
        ] {
            let published = patiently("publish", node.publish(&channel, repeated)).await.unwrap();
            assert_eq!((published.position, published.duplicate), (position, true));
        }
        assert_ended(
            patiently(
                "publish",
                node.publish(&channel, Append::end().with_idempotency_key(key("other"))),
            )
            .await,
        );
    }
    chain.replays(&*nodes[1], &channel, 2).await;
}

/// The end stands directly behind its event, in feeds and in pages of any size. Nothing follows the
/// end. The publish gives the end's position.
pub async fn an_event_and_the_end_behind_it_are_one_append(fixture: &dyn Fixture) {
    let nodes = [fixture.node().await, fixture.node().await];
    for (kept, promised) in [(Kept::Ample, 100), (Kept::Ten, TEN), (Kept::None, 0)] {
        for earlier in [0, 1, 12] {
            let channel = channel(kept);
            let mut feed = follow(&*nodes[1], &channel).await;
            let mut chain = Chain(vec![feed.head]);
            chain.publish_many(&*nodes[0], &channel, earlier).await;
            let last = text("last").and_end().with_idempotency_key(key("k"));
            let published = patiently("publish", nodes[0].publish(&channel, last.clone())).await.unwrap();
            assert!(!published.duplicate);
            let shown = take(&mut feed, earlier + 2).await;
            assert_eq!(text_of(&shown[earlier]), "last");
            assert!(shown[earlier + 1].is_end());
            chain.0.extend(shown[earlier..].iter().map(|event| event.position));
            assert!(chain.0.is_sorted_by(|a, b| a < b));
            chain.names_previous_of(&shown);
            assert_eq!(published.position, chain.head(), "the end's position is the channel's last");
            for node in &nodes {
                for after in chain.0.iter().copied().map(Some).chain([None]) {
                    for limit in [1, 2, 3, 100] {
                        let replayed = replay(&**node, &channel, after, limit).await;
                        assert!(replayed.ended);
                        chain.allows(after, limit, promised, &replayed);
                    }
                }
                assert_eq!(follow(&**node, &channel).await.head, chain.head());
                let again = patiently("publish", node.publish(&channel, last.clone())).await.unwrap();
                assert_eq!((again.position, again.duplicate), (chain.head(), true));
                assert_ended(patiently("publish", node.publish(&channel, text("late"))).await);
                assert_ended(patiently("publish", node.publish(&channel, text("late").and_end())).await);
            }
        }
    }
}

/// The broker never appends the event without its end.
pub async fn an_event_with_its_end_that_was_given_up_happened_whole_or_not(fixture: &dyn Fixture) {
    let nodes = [fixture.node().await, fixture.node().await];
    for n in 0..24 {
        let channel = channel(Kept::Ample);
        let base = replay(&*nodes[0], &channel, None, 0).await.head;
        give_up(n % 8, nodes[0].publish(&channel, text("last").and_end())).await;
        for node in &nodes {
            let replayed = replay(&**node, &channel, Some(base), 10).await;
            match &replayed.events[..] {
                [] => assert!(!replayed.ended),
                [event, end] => assert!(text_of(event) == "last" && end.is_end() && replayed.ended),
                other => panic!("half of it happened: {other:?}"),
            }
        }
    }
}
