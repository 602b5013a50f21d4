//! A chain holds what is known of a channel, and checks which answers a broker may then give.

use std::sync::Arc;

use super::calls::{publish, replay, text};
use crate::broker::{Append, Broker, Replay};
use crate::event::{ChannelName, Event, Position};

/// The chain lists the known positions of a channel: the base, then every event's position.
#[derive(Clone)]
pub(super) struct Chain(pub(super) Vec<Position>);

impl Chain {
    pub(super) async fn base(node: &dyn Broker, channel: &ChannelName) -> Chain {
        Chain(vec![replay(node, channel, None, 0).await.head])
    }

    pub(super) fn head(&self) -> Position {
        *self.0.last().unwrap()
    }

    pub(super) fn index_of(&self, position: Position) -> Option<usize> {
        self.0.binary_search(&position).ok()
    }

    pub(super) fn before(&self, position: Position) -> Position {
        let at = self
            .index_of(position)
            .unwrap_or_else(|| panic!("{position} was never given"));
        self.0[at - 1]
    }

    pub(super) async fn publish(&mut self, node: &dyn Broker, channel: &ChannelName, message: Append) -> Position {
        let position = publish(node, channel, message).await;
        assert!(position > self.head(), "{position} was given after {}", self.head());
        self.0.push(position);
        position
    }

    pub(super) async fn publish_many(&mut self, node: &dyn Broker, channel: &ChannelName, count: usize) {
        for n in 0..count {
            self.publish(node, channel, text(n)).await;
        }
    }

    /// Asserts that every `previous` is right or not known.
    pub(super) fn names_previous_of(&self, events: &[Arc<Event>]) {
        for event in events {
            let before = self.before(event.position);
            assert!(
                event.previous == before || event.previous == Position::ZERO,
                "{} names {} as its previous, but it is {before}",
                event.position,
                event.previous
            );
        }
    }

    /// Asserts that a replay agrees with the contract, if history promises the newest `promised`
    /// events.
    pub(super) fn allows(&self, after: Option<Position>, limit: usize, promised: usize, replay: &Replay) {
        let positions: Vec<Position> = replay.events.iter().map(|event| event.position).collect();
        let about = {
            let answer = (replay.complete, replay.more, replay.head);
            let (events, chain) = (brief(&positions), brief(&self.0));
            format!(
                "replay after {after:?}, at most {limit}: (complete, more, head) {answer:?}, events {events}, of the chain {chain}"
            )
        };
        assert_eq!(replay.head, self.head(), "not the head; {about}");
        assert!(positions.len() <= limit, "more than asked for; {about}");
        self.names_previous_of(&replay.events);
        let indices: Vec<usize> = positions.iter().filter_map(|position| self.index_of(*position)).collect();
        assert!(indices.is_sorted_by(|a, b| a + 1 == *b), "not a run of the chain; {about}");
        match after {
            None => self.allows_newest(&indices, limit, promised, replay, &about),
            Some(after) => {
                assert!(positions.iter().all(|position| *position > after), "not after; {about}");
                self.allows_after(after, limit, &indices, promised, replay, &about);
            }
        }
    }

    /// Asserts [`Chain::allows`] of a page that was asked for without a position.
    fn allows_newest(&self, indices: &[usize], limit: usize, promised: usize, replay: &Replay, about: &str) {
        let newest = self.0.len() - 1;
        let (first, last) = (indices.first().copied(), indices.last().copied());
        assert_eq!(last.unwrap_or(newest), newest, "not the newest; {about}");
        assert!(!replay.more, "there is nothing after the newest; {about}");
        let must = limit.min(promised).min(newest);
        assert!(indices.len() >= must, "not all that is kept; {about}");
        let all = first.unwrap_or(newest + 1) == 1;
        assert_eq!(replay.complete, all, "complete or not; {about}");
    }

    /// Asserts [`Chain::allows`] of a page of events after a position.
    fn allows_after(&self, after: Position, limit: usize, indices: &[usize], promised: usize, replay: &Replay, about: &str) {
        let newest = self.0.len() - 1;
        let (first, last) = (indices.first().copied(), indices.last().copied());
        let index = self.index_of(after);
        let must = index.is_some_and(|index| index + promised >= newest);
        assert!(replay.complete || !must, "called incomplete, but history holds all; {about}");
        if replay.complete {
            let index = index.unwrap_or_else(|| panic!("complete after a position that was never given; {about}"));
            assert_eq!(first.unwrap_or(index + 1), index + 1, "a part is missing; {about}");
            assert!(
                limit == 0 || index == newest || last.is_some(),
                "everything is missing; {about}"
            );
        }
        let more = match last {
            Some(last) => last < newest,
            // A page without events has more behind it if the channel has a later event. If the
            // channel promises no history, only the broker knows.
            None => limit == 0 && after < self.head() && (promised > 0 || replay.more),
        };
        assert_eq!(replay.more, more, "more or not; {about}");
    }

    /// Asks for every position of the chain and for all sizes of page, and checks each answer.
    pub(super) async fn replays(&self, node: &dyn Broker, channel: &ChannelName, promised: usize) {
        let newest = self.0.len() - 1;
        for after in self.0.iter().copied().map(Some).chain([None]) {
            for limit in [0, 1, 2, newest.saturating_sub(1), newest, newest + 1, 10_000] {
                let replay = replay(node, channel, after, limit).await;
                self.allows(after, limit, promised, &replay);
            }
        }
    }
}

pub(super) fn brief(positions: &[Position]) -> String {
    match positions {
        [first, .., last] if positions.len() > 20 => format!("[{first} … {last}] ({})", positions.len()),
        _ => format!("{positions:?}"),
    }
}

/// Asserts that two nodes show the same events. One of them may not know a `previous`.
pub(super) fn assert_same(shown: &[Arc<Event>], replayed: &[Arc<Event>]) {
    let positions = |events: &[Arc<Event>]| events.iter().map(|event| event.position).collect::<Vec<_>>();
    assert_eq!(positions(shown), positions(replayed));
    for (a, b) in shown.iter().zip(replayed) {
        assert_eq!(a.message, b.message, "the message at {}", a.position);
        let known = a.previous != Position::ZERO && b.previous != Position::ZERO;
        assert!(!known || a.previous == b.previous, "{a:?} and {b:?} differ in their previous");
    }
}
