//! This module tests the order of events: positions, `previous`, several publishers and nodes.

use super::calls::{at_once, channel, follow, next, patiently, publish, replay, take, text, text_of};
use super::chain::{Chain, assert_same};
use super::fixture::{Fixture, Kept};
use crate::event::Position;

/// A backbone that works answers [`Broker::ping`].
pub async fn a_broker_that_works_says_so(fixture: &dyn Fixture) {
    let node = fixture.node().await;
    patiently("ping", node.ping()).await.unwrap();
    assert!(!node.name().is_empty());
}

/// The feed and the history give the same chain of events.
pub async fn positions_strictly_increase_and_name_their_previous(fixture: &dyn Fixture) {
    let (node, channel) = (fixture.node().await, channel(Kept::Ample));
    let mut feed = follow(&*node, &channel).await;
    let mut chain = Chain(vec![feed.head]);
    chain.publish_many(&*node, &channel, 50).await;
    let shown = take(&mut feed, 50).await;
    chain.names_previous_of(&shown);
    for pair in shown.windows(2) {
        assert_eq!(
            pair[1].previous, pair[0].position,
            "a feed knows the previous event while it is kept"
        );
    }
    let replay = replay(&*node, &channel, Some(chain.0[0]), 100).await;
    chain.allows(Some(chain.0[0]), 100, 50, &replay);
}

/// The broker takes positions from the clock, and they fit a JavaScript number. A store that starts
/// anew therefore starts above every position that it ever gave.
pub async fn positions_come_from_the_clock(fixture: &dyn Fixture) {
    let (node, channel) = (fixture.node().await, channel(Kept::Ample));
    let base = follow(&*node, &channel).await.head;
    let first = publish(&*node, &channel, text("first")).await;
    // A store may count on from the clock at which it was made. No store may run ahead of the clock
    // for long.
    let (made, soon) = (Position(1_577_836_800_000_000), Position(Position::now().0 + 60_000_000));
    for position in [base, first] {
        assert!(position > made && position < soon, "{position} is not from the clock");
        assert!(position.0 < 1 << 53, "{position} does not fit a JavaScript number");
    }
}

/// Any node may give the listener its first position. All later events come after that position.
/// Feeds that were open before the first event show it, too.
pub async fn a_listener_without_events_misses_nothing(fixture: &dyn Fixture) {
    let (a, b) = (fixture.node().await, fixture.node().await);
    for kept in [Kept::Ample, Kept::Ten, Kept::None] {
        let (channel, other) = (channel(kept), channel(kept));
        let (mut firsts, mut feeds) = (Vec::new(), Vec::new());
        for node in [&a, &b] {
            firsts.push(replay(&**node, &channel, None, 10).await.head);
            publish(&**node, &other, text("elsewhere")).await;
            feeds.push(follow(&**node, &channel).await);
            firsts.extend(feeds.last().map(|feed| feed.head));
        }
        assert!(!firsts.contains(&Position::ZERO), "an empty channel's head is zero");
        for node in [&a, &b] {
            for after in firsts.iter().copied().map(Some).chain([None]) {
                let replay = replay(&**node, &channel, after, 10).await;
                assert!(!replay.ended && !replay.more && replay.events.is_empty(), "{replay:?}");
                assert!(replay.complete, "nothing is there, and something is missing after {after:?}");
                assert_ne!(replay.head, Position::ZERO, "an empty channel's head is zero");
            }
        }

        let mut events = Vec::new();
        for n in 0..3 {
            events.push(publish(&*b, &channel, text(n)).await);
        }
        let promised = if matches!(kept, Kept::None) { 0 } else { events.len() };
        let after_them = fixture.node().await;
        for node in [&a, &b, &after_them] {
            for first in &firsts {
                let mut chain = Chain(vec![*first]);
                chain.0.extend(&events);
                assert!(events[0] > *first, "{} was given after {first}", events[0]);
                for limit in [1, 2, 3, 10] {
                    let replay = replay(&**node, &channel, Some(*first), limit).await;
                    chain.allows(Some(*first), limit, promised, &replay);
                }
            }
        }
        for mut feed in feeds {
            let first = feed.head;
            // A feed that has ended cannot say whether an event is missing. A caller that follows
            // again asks history, as above.
            if let Some(event) = patiently("a feed's first event", feed.next()).await {
                assert_eq!(event.position, events[0], "a feed does not begin with the first event");
                let follows = event.previous == first || event.previous == Position::ZERO;
                assert!(
                    follows,
                    "{} does not follow {first}, which its feed began with",
                    event.previous
                );
                assert_eq!(next(&mut feed).await.position, events[1]);
            }
        }
    }
}

/// The order also holds if different nodes publish them, whose clocks and connections differ.
pub async fn an_acknowledged_event_stands_before_one_published_later(fixture: &dyn Fixture) {
    let nodes = [fixture.node().await, fixture.node().await];
    let channel = channel(Kept::Ample);
    let mut feed = follow(&*nodes[1], &channel).await;
    let mut chain = Chain(vec![feed.head]);
    for n in 0..100 {
        chain.publish(&*nodes[n % 2], &channel, text(n)).await;
    }
    let shown: Vec<Position> = take(&mut feed, 100).await.iter().map(|event| event.position).collect();
    assert_eq!(shown, chain.0[1..]);
}

/// Four publishers publish on two nodes, and each node has two feeds.
pub async fn concurrent_publishers_are_put_into_one_order_that_every_feed_shows(fixture: &dyn Fixture) {
    const EACH: usize = 50;
    let nodes = [fixture.node().await, fixture.node().await];
    let channel = channel(Kept::Ample);
    let mut feeds = Vec::new();
    for n in 0..4 {
        feeds.push(follow(&*nodes[n % 2], &channel).await);
    }
    let base = feeds[0].head;
    let given = at_once((0..4).map(|publisher| {
        let (node, channel) = (nodes[publisher % 2].clone(), channel.clone());
        async move {
            let mut given = Vec::new();
            for n in 0..EACH {
                let position = publish(&*node, &channel, text(format!("{publisher} {n}"))).await;
                given.push((position, format!("{publisher} {n}")));
                tokio::task::yield_now().await;
            }
            given
        }
    }))
    .await;
    for own in &given {
        assert!(
            own.is_sorted_by(|a, b| a.0 < b.0),
            "a publisher's own events changed places: {own:?}"
        );
    }
    let mut given: Vec<_> = given.concat();
    given.sort();
    let chain = Chain(
        [base]
            .into_iter()
            .chain(given.iter().map(|(position, _)| *position))
            .collect(),
    );
    assert!(chain.0.is_sorted_by(|a, b| a < b), "a position was given twice");
    let replayed = replay(&*nodes[0], &channel, Some(base), 1000).await;
    chain.allows(Some(base), 1000, 4 * EACH, &replayed);
    for feed in &mut feeds {
        let shown = take(feed, 4 * EACH).await;
        let received: Vec<_> = shown
            .iter()
            .map(|event| (event.position, text_of(event).to_owned()))
            .collect();
        assert_eq!(received, given, "a feed shows another order");
        assert_same(&shown, &replayed.events);
    }
}

/// Each node's events appear in the other node's feed and in its replay.
pub async fn two_nodes_share_one_channel(fixture: &dyn Fixture) {
    let nodes = [fixture.node().await, fixture.node().await];
    let channel = channel(Kept::Ample);
    let mut feeds = [follow(&*nodes[0], &channel).await, follow(&*nodes[1], &channel).await];
    assert_eq!(feeds[0].head, feeds[1].head);
    let mut chain = Chain(vec![feeds[0].head]);
    for (n, node) in nodes.iter().enumerate() {
        let position = chain.publish(&**node, &channel, text(n)).await;
        for feed in &mut feeds {
            let event = next(feed).await;
            assert_eq!((event.position, text_of(&event)), (position, n.to_string().as_str()));
        }
    }
    for node in &nodes {
        chain.replays(&**node, &channel, 2).await;
    }
}
