//! This module tests which replays are complete, and where a page ends.

use super::calls::{at_once, channel, page, patiently, publish, replay, text};
use super::chain::{Chain, assert_same, brief};
use super::fixture::{Fixture, Kept, TEN, at_most};
use crate::broker::{PageLimit, Replay};
use crate::event::Position;

/// The rule holds whether the channel has events or not, and however little it keeps.
pub async fn replay_after_the_head_is_complete_and_empty(fixture: &dyn Fixture) {
    let node = fixture.node().await;
    for kept in [Kept::Ample, Kept::Ten, Kept::None, Kept::FewBytes] {
        let channel = channel(kept);
        let mut chain = Chain::base(&*node, &channel).await;
        for n in 0..15 {
            let replay = replay(&*node, &channel, Some(chain.head()), 10).await;
            assert_eq!((replay.events.len(), replay.complete, replay.more), (0, true, false));
            assert_eq!(replay.head, chain.head());
            chain.publish(&*node, &channel, text(n)).await;
        }
    }
}

/// The page holds the oldest event first. It is complete only if it holds all events that the
/// channel ever had.
pub async fn replay_without_a_position_gives_the_newest(fixture: &dyn Fixture) {
    let node = fixture.node().await;
    for (kept, promised) in [(Kept::Ample, 10_000), (Kept::Ten, TEN)] {
        let channel = channel(kept);
        let mut chain = Chain::base(&*node, &channel).await;
        for n in 0..12 {
            chain.publish(&*node, &channel, text(n)).await;
            for limit in 0..15 {
                let replay = replay(&*node, &channel, None, limit).await;
                chain.allows(None, limit, promised, &replay);
                if n < TEN {
                    assert_eq!(replay.events.len(), limit.min(n + 1));
                }
            }
        }
    }
}

/// The page is complete, because its listener has missed nothing.
pub async fn replay_after_the_previous_of_the_oldest_is_complete(fixture: &dyn Fixture) {
    let (node, channel) = (fixture.node().await, channel(Kept::Ten));
    let mut chain = Chain::base(&*node, &channel).await;
    for round in 0..50 {
        chain.publish_many(&*node, &channel, 10).await;
        let before_the_promised = chain.0[round * 10];
        let replayed = replay(&*node, &channel, Some(before_the_promised), 1000).await;
        assert!(replayed.complete, "the ten newest are promised");
        assert_eq!(replayed.events.len(), 10);
        chain.allows(Some(before_the_promised), 1000, TEN, &replayed);

        let left = replay(&*node, &channel, None, 1000).await.events;
        chain.names_previous_of(&left);
        if left[0].previous != Position::ZERO {
            let replayed = replay(&*node, &channel, Some(left[0].previous), 1000).await;
            assert!(replayed.complete, "the previous of the oldest is the one before it");
            assert_same(&left, &replayed.events);
        }
    }
}

/// The page gives the events that are left after the position, without a hole.
pub async fn replay_after_a_position_that_was_trimmed_is_incomplete(fixture: &dyn Fixture) {
    let (node, channel) = (fixture.node().await, channel(Kept::Ten));
    let mut chain = Chain::base(&*node, &channel).await;
    chain.publish_many(&*node, &channel, 2 * at_most(TEN)).await;
    let left = replay(&*node, &channel, None, 10_000).await;
    assert!(!left.complete, "the oldest events are gone");
    for after in chain.0.iter().take(10) {
        for limit in [0, 1, 3, 1000] {
            let replayed = replay(&*node, &channel, Some(*after), limit).await;
            assert!(!replayed.complete, "a trimmed position was called complete");
            assert_same(&left.events[..limit.min(left.events.len())], &replayed.events);
            assert_eq!(
                replayed.more,
                limit < left.events.len(),
                "more after {limit} of {}",
                left.events.len()
            );
        }
    }
    for after in &chain.0 {
        let replayed = replay(&*node, &channel, Some(*after), 1000).await;
        chain.allows(Some(*after), 1000, TEN, &replayed);
        let held = left.events.iter().any(|event| event.position == *after);
        assert!(replayed.complete || !held, "{after} is still held, but was called incomplete");
    }
}

/// A failover lost such a position, and its listener must learn of it. The broker must test for
/// equality, not `<=`.
pub async fn replay_inside_the_range_but_not_there_is_incomplete(fixture: &dyn Fixture) {
    let (node, channel, other) = (fixture.node().await, channel(Kept::Ample), channel(Kept::Ample));
    let mut chain = Chain::base(&*node, &channel).await;
    chain.publish(&*node, &channel, text("first")).await;
    let mut holes = Vec::new();
    for n in 0..1000 {
        // Positions may come from a counter that all channels share. An event of the other channel
        // then makes a hole.
        publish(&*node, &other, text(n)).await;
        let before = chain.head();
        let position = chain.publish(&*node, &channel, text(n)).await;
        if position.0 > before.0 + 1 {
            holes.extend([Position(before.0 + 1), Position(position.0 - 1)]);
        }
        if holes.len() >= 10 {
            break;
        }
    }
    assert!(!holes.is_empty(), "positions stand side by side: there is nothing to ask for");
    for hole in holes {
        let replayed = replay(&*node, &channel, Some(hole), 10_000).await;
        assert!(!replayed.complete, "{hole} was never given, but called complete");
        chain.allows(Some(hole), 10_000, 10_000, &replayed);
        let after = chain.0.iter().filter(|position| **position > hole).count();
        assert_eq!(replayed.events.len(), after, "not all that is left after {hole}");
    }
}

/// Clients send zero, one, and positions ahead of the head. No event comes after a position ahead
/// of the head.
pub async fn replay_after_a_position_that_was_never_given_is_incomplete(fixture: &dyn Fixture) {
    let node = fixture.node().await;
    for (kept, promised) in [(Kept::Ample, 3), (Kept::Ten, 3), (Kept::None, 0)] {
        let channel = channel(kept);
        let mut chain = Chain::base(&*node, &channel).await;
        for _ in 0..2 {
            let ahead = [
                chain.head().0 + 1,
                chain.head().0 * 2,
                (1 << 53) - 1,
                1 << 53,
                i64::MAX as u64,
                u64::MAX,
            ];
            for after in [0, 1, chain.0[0].0 - 1].into_iter().chain(ahead).map(Position) {
                let replayed = replay(&*node, &channel, Some(after), 10).await;
                assert!(!replayed.complete, "{after} was never given, but called complete");
                chain.allows(Some(after), 10, promised, &replayed);
                if after > chain.head() {
                    assert_eq!(replayed.events.len(), 0);
                } else {
                    assert!(replayed.events.len() >= promised.min(chain.0.len() - 1));
                }
            }
            chain.publish_many(&*node, &channel, 3).await;
        }
    }
}

/// Each page but the last has `more: true`, and the pages together hold all events.
pub async fn large_histories_come_in_pages(fixture: &dyn Fixture) {
    const EVENTS: usize = 2500;
    let (node, channel) = (fixture.node().await, channel(Kept::Ample));
    let mut chain = Chain::base(&*node, &channel).await;
    let given = at_once((0..EVENTS).map(|n| {
        let (node, channel) = (node.clone(), channel.clone());
        async move { publish(&*node, &channel, text(n)).await }
    }))
    .await;
    chain.0.extend(given);
    chain.0.sort();
    for limit in [300, 625, 1000, EVENTS, 5000] {
        let mut after = chain.0[0];
        let mut received = Vec::new();
        loop {
            let page = replay(&*node, &channel, Some(after), limit).await;
            chain.allows(Some(after), limit, EVENTS, &page);
            assert_eq!(
                page.events.len(),
                limit.min(EVENTS - received.len()),
                "a page that is not full"
            );
            received.extend(page.events.iter().map(|event| event.position));
            after = received[received.len() - 1];
            if !page.more {
                break;
            }
        }
        assert_eq!(received, chain.0[1..]);
    }
}

/// A caller asks for no events to learn whether a position is still good. The test asks at the
/// head, in the middle and before the trimmed events. It also asks at a position that was never
/// given, and at every first position of a channel.
pub async fn a_page_of_nothing_answers_as_a_page_of_one(fixture: &dyn Fixture) {
    let (node, other) = (fixture.node().await, fixture.node().await);
    for kept in [Kept::Ample, Kept::Ten, Kept::None] {
        let channel = channel(kept);
        let mut chain = Chain::base(&*node, &channel).await;
        let bases = [chain.head(), Chain::base(&*other, &channel).await.head()];
        for count in [0, 1, 4, 2 * at_most(TEN)] {
            chain.publish_many(&*node, &channel, count).await;
            let (head, middle) = (chain.head(), chain.0[chain.0.len() / 2]);
            let near = [head, chain.0[chain.0.len().saturating_sub(3)], middle, chain.0[1.min(count)]];
            let lost = [Position::ZERO, Position(middle.0 - 1), Position(head.0 + 1)];
            for after in bases.into_iter().chain(near).chain(lost) {
                let one = replay(&*node, &channel, Some(after), 1).await;
                let nothing = replay(&*node, &channel, Some(after), 0).await;
                let more = !one.events.is_empty();
                assert_eq!(
                    (nothing.events.len(), nothing.complete, nothing.more, nothing.head),
                    (0, one.complete, more, one.head),
                    "(events, complete, more, head) after {after}, of the chain {}",
                    brief(&chain.0)
                );
            }
        }
        let nothing = replay(&*node, &channel, None, 0).await;
        assert_eq!((nothing.events.len(), nothing.complete, nothing.more), (0, false, false));
    }
}

/// A page ends at the bound of bytes with `more: true`, and the next one continues after it. A page
/// holds one event even if that event alone is larger. Without a position the page holds the newest
/// events that fit.
pub async fn a_page_ends_at_its_bytes(fixture: &dyn Fixture) {
    const EVENTS: usize = 40;
    const LARGE: usize = 25;
    let (node, channel) = (fixture.node().await, channel(Kept::Ample));
    let mut chain = Chain::base(&*node, &channel).await;
    for n in 0..EVENTS {
        let length = if n == LARGE { 50_000 } else { 1000 };
        chain.publish(&*node, &channel, text("x".repeat(length))).await;
    }
    for (events, bytes, most_pages) in [
        (100, 0, EVENTS),
        (100, 1, EVENTS),
        (100, 2500, 22),
        (100, 10_000, 7),
        (100, 51_000, 3),
        (5, 10_000, 10),
        (3, usize::MAX, 14),
        (100, usize::MAX, 1),
    ] {
        let limit = PageLimit { events, bytes };
        let about = format!("with at most {events} events and {bytes} bytes");
        let within = |replay: &Replay| {
            let sizes: Vec<usize> = replay.events.iter().map(|event| event.message.weight()).collect();
            let fits = sizes.len() == 1 || sizes.iter().sum::<usize>() <= bytes;
            assert!(
                fits && sizes.len() <= events,
                "a page {about} holds events of {sizes:?} bytes"
            );
        };
        let (mut received, mut pages) = (Vec::new(), 0);
        loop {
            let after = received.last().copied().unwrap_or(chain.0[0]);
            let replay = page(&*node, &channel, Some(after), limit).await;
            within(&replay);
            chain.allows(Some(after), events, EVENTS, &replay);
            assert!(replay.complete, "a page {about} after {after} is incomplete");
            assert!(!replay.events.is_empty(), "a page {about} after {after} is empty");
            received.extend(replay.events.iter().map(|event| event.position));
            pages += 1;
            if !replay.more {
                break;
            }
        }
        assert_eq!(received, chain.0[1..], "the pages {about} are not all events");
        assert!(pages <= most_pages, "{pages} pages {about}, where {most_pages} are enough");

        let newest = page(&*node, &channel, None, limit).await;
        within(&newest);
        let positions: Vec<Position> = newest.events.iter().map(|event| event.position).collect();
        assert!(
            !positions.is_empty() && chain.0.ends_with(&positions),
            "not the newest events {about}: {positions:?}"
        );
        let room = (bytes / 1100).min(EVENTS - LARGE - 1).min(events).max(1);
        assert!(positions.len() >= room, "{} newest events {about}", positions.len());
        assert!(!newest.more, "nothing follows the newest events");
        assert_eq!(newest.complete, positions.len() == EVENTS, "complete or not, {about}");
    }
}

/// The rule holds while another node publishes and the broker trims. The events of a page follow
/// each other, and the last one is the head, unless there is more. A page that ends early and does
/// not say so hides events for good.
pub async fn a_page_leads_to_the_head_or_says_that_there_is_more(fixture: &dyn Fixture) {
    const EVENTS: usize = 400;
    let (writer, reader) = (fixture.node().await, fixture.node().await);
    let channel = channel(Kept::Ten);
    let begin = Chain::base(&*reader, &channel).await.head();
    let writing = {
        let channel = channel.clone();
        tokio::spawn(async move {
            for n in 0..EVENTS {
                publish(&*writer, &channel, text(n)).await;
            }
        })
    };
    let mut read_to = begin;
    loop {
        let over = writing.is_finished();
        for after in [None, Some(read_to), Some(begin)] {
            let page = replay(&*reader, &channel, after, 1000).await;
            let positions: Vec<Position> = page.events.iter().map(|event| event.position).collect();
            let about = || format!("after {after:?}: {} of {}", brief(&positions), page.head);
            for pair in page.events.windows(2) {
                let previous = pair[1].previous;
                assert!(
                    previous == pair[0].position || previous == Position::ZERO,
                    "a hole before {}; {}",
                    pair[1].position,
                    about()
                );
            }
            if let Some(last) = page.events.last() {
                assert!(
                    page.more || last.position == page.head,
                    "it ends before the head; {}",
                    about()
                );
            }
            if after == Some(read_to) {
                read_to = positions.last().copied().unwrap_or(page.head);
            }
        }
        if over {
            break;
        }
    }
    patiently("the publisher", writing).await.unwrap();
}
