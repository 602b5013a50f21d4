//! A page of a channel's history says what the channel holds and what is missing.

use std::sync::Arc;
use std::time::Duration;

use crate::event::{Event, Message, Position};
use crate::format::GapReason;

/// Bounds how much the clocks of nodes and brokers may differ. A position may be ahead of this
/// node's clock by this much, because a clock that is ahead may have given it. If the node took
/// that position for one that was never given, its listener would go back to events that it has
/// had.
const CLOCKS_DIFFER: Duration = Duration::from_secs(600);

/// A limit bounds how much one page of history may hold. The page ends at the bound that comes
/// first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct PageLimit {
    /// The page holds at most this many events.
    pub events: usize,
    /// The page holds at most this many bytes, by [`Message::weight`]. A broker may count what it
    /// stores, which is slightly more. A page holds one event even if that event alone is larger.
    pub bytes: usize,
}

impl PageLimit {
    /// Returns a limit of at most `events` events, whatever their size.
    pub const fn events(events: usize) -> Self {
        Self {
            events,
            bytes: usize::MAX,
        }
    }

    /// Returns the same limit with a bound in bytes.
    pub const fn with_bytes(self, bytes: usize) -> Self {
        Self { bytes, ..self }
    }

    /// Returns how many of `events` fit one page, in the order given.
    pub fn fitting<'a>(self, events: impl IntoIterator<Item = &'a Event>) -> usize {
        let mut bytes = 0_usize;
        let fits = |(n, event): &(usize, &Event)| {
            bytes = bytes.saturating_add(event.message.weight());
            *n == 0 || bytes <= self.bytes
        };
        events.into_iter().take(self.events).enumerate().take_while(fits).count()
    }
}

/// A replay is a page of a channel's history.
///
/// For example, a channel was trimmed to 30, 40, 50 (30's previous is 20). The page after 30 is
/// complete and begins at 40. The page after 20 is complete and begins at 30. The page after 10 or
/// 35 is not complete, and its `events` are those that are left after that position.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Replay {
    /// Holds the events after the position asked for, oldest first, each once.
    pub events: Vec<Arc<Event>>,
    /// Says whether nothing is missing between the position asked for and the first of `events`.
    pub complete: bool,
    /// Says whether the limit cut the page short. If so, the caller asks again after the last of
    /// `events`.
    pub more: bool,
    /// Holds the channel's newest position. The position is never zero, because a channel without
    /// events has a base position.
    pub head: Position,
    /// Says whether the channel has ended.
    pub ended: bool,
}

impl Replay {
    /// Returns a page of `events` in a channel whose newest position is `head`. It is complete,
    /// nothing follows it, and the channel has not ended, unless the methods below say otherwise.
    ///
    /// # Examples
    ///
    /// ```
    /// use airwave_core::{Position, Replay};
    ///
    /// let page = Replay::new(Position(30), Vec::new()).with_complete(false);
    /// assert!(!page.complete && !page.more && !page.ended);
    /// ```
    pub fn new(head: Position, events: Vec<Arc<Event>>) -> Self {
        Self {
            events,
            complete: true,
            more: false,
            head,
            ended: false,
        }
    }

    /// Returns the same page with [`Replay::complete`] set to `complete`.
    pub fn with_complete(self, complete: bool) -> Self {
        Self { complete, ..self }
    }

    /// Returns the same page with [`Replay::more`] set to `more`.
    pub fn with_more(self, more: bool) -> Self {
        Self { more, ..self }
    }

    /// Returns the same page with [`Replay::ended`] set to `ended`.
    pub fn with_ended(self, ended: bool) -> Self {
        Self { ended, ..self }
    }

    /// Returns the page that a broker gives to a caller that has everything up to `head`.
    pub(crate) fn nothing_after(head: Position) -> Self {
        Self::new(head, Vec::new())
    }

    /// Returns the position after which this page continues a stream.
    pub(crate) fn goes_on_after(&self) -> Position {
        match self.events.first() {
            Some(first) => position_before(first),
            // The end has left history, and `lost_end` stands for it.
            None if self.ended => just_below(self.head),
            None => self.head,
        }
    }

    /// Returns whether nothing is missing between `after` and this page, which the caller asked for
    /// with `after`.
    ///
    /// The broker cannot know the positions that [`position_before`] makes up, so this method
    /// recognises them. The client has received that gap, and receives it only once.
    pub(crate) fn is_whole(&self, after: Position) -> bool {
        self.complete || self.goes_on_after() == after
    }

    /// Returns whether events are missing in this page: between two of them, or between the last
    /// one and the head, although there is no more. A broker that reads in several steps gives such
    /// a page when trimming overtakes it.
    pub(crate) fn is_torn(&self) -> bool {
        let reaches_head = self.events.last().is_none_or(|last| last.position == self.head);
        !(self.more || reaches_head) || self.unbroken() < self.events.len()
    }

    /// Returns the part of the page that the node can believe. A torn page is as good as a shorter
    /// one with more behind it. A caller that asks for more learns of the hole.
    pub(crate) fn up_to_hole(mut self) -> Self {
        if self.is_torn() {
            self.events.truncate(self.unbroken());
            self.more = true;
        }
        self
    }

    /// Returns how many events of this page follow each other, from its first one on.
    fn unbroken(&self) -> usize {
        let follows = |pair: &[Arc<Event>]| {
            pair[0].position < pair[1].position && [pair[0].position, Position::ZERO].contains(&pair[1].previous)
        };
        match self.events.windows(2).position(|pair| !follows(pair)) {
            Some(at) => at + 1,
            None => self.events.len(),
        }
    }

    /// Returns the channel's end event if it has left history, because a new listener must still
    /// receive it.
    pub(crate) fn lost_end(&self) -> Option<Arc<Event>> {
        let lost = self.ended && !self.more && !self.events.last().is_some_and(|event| event.is_end());
        lost.then(|| {
            Arc::new(Event {
                position: self.head,
                previous: Position::ZERO,
                message: Message::end(),
            })
        })
    }

    /// Returns why a page that was asked for with `after` is not whole.
    ///
    /// `newest_known` is the newest position that this node has received of the channel. Positions
    /// up to there were given, whatever this node's clock says of them.
    pub(crate) fn lost_reason(&self, after: Position, newest_known: Position) -> GapReason {
        if after > Position::now().plus(CLOCKS_DIFFER).max(self.head).max(newest_known) {
            GapReason::UnknownPosition
        } else if after > self.head {
            GapReason::BrokerLostData
        } else {
            match self.events.first() {
                // Events stand on both sides of `after`, and `after` is not among them. So it was
                // in a tail that the broker lost.
                Some(first) if first.previous > Position::ZERO && first.previous < after => GapReason::BrokerLostData,
                _ => GapReason::HistoryExpired,
            }
        }
    }
}

/// Returns the position after which `event` continues a stream.
///
/// If the broker has forgotten the events before, the nearest position below is as good, because no
/// event can stand between.
pub(crate) fn position_before(event: &Event) -> Position {
    match event.previous {
        Position::ZERO => just_below(event.position),
        previous => previous,
    }
}

fn just_below(position: Position) -> Position {
    Position(position.0.saturating_sub(1))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::{Data, EventName};

    fn event(position: u64, previous: u64) -> Arc<Event> {
        Arc::new(Event {
            position: Position(position),
            previous: Position(previous),
            message: Message::new(EventName::new("x").unwrap(), Data::text("")),
        })
    }

    fn end(position: u64, previous: u64) -> Arc<Event> {
        Arc::new(Event {
            position: Position(position),
            previous: Position(previous),
            message: Message::end(),
        })
    }

    /// Returns a page that was cut off on the left: the broker does not hold the position asked
    /// for.
    fn incomplete(events: Vec<Arc<Event>>, head: u64) -> Replay {
        Replay {
            events,
            complete: false,
            ..Replay::nothing_after(Position(head))
        }
    }

    #[test]
    fn a_page_continues_the_previous_of_its_first_event() {
        let page = incomplete(vec![event(30, 20), event(40, 30)], 40);
        assert_eq!(page.goes_on_after(), Position(20));
        assert!(page.is_whole(Position(20)) && !page.is_whole(Position(10)));
    }

    #[test]
    fn a_page_whose_past_is_forgotten_continues_the_position_just_below() {
        let page = incomplete(vec![event(30, 0)], 30);
        assert_eq!(page.goes_on_after(), Position(29));
        assert!(page.is_whole(Position(29)), "the cursor of a gap that was announced before");
        assert!(!page.is_whole(Position(28)));
    }

    #[test]
    fn an_empty_page_continues_the_head_and_an_end_that_left_history_stands_behind_it() {
        let mut page = incomplete(Vec::new(), 30);
        assert_eq!((page.goes_on_after(), page.lost_end()), (Position(30), None));
        page.ended = true;
        assert_eq!(page.goes_on_after(), Position(29));
        assert_eq!(page.lost_end(), Some(end(30, 0)));
    }

    #[test]
    fn the_end_of_a_channel_is_added_only_where_history_has_lost_it() {
        let with = |events: Vec<_>, more| Replay {
            more,
            ended: true,
            ..incomplete(events, 40)
        };
        assert_eq!(with(vec![event(30, 20), end(40, 30)], false).lost_end(), None, "it is there");
        assert_eq!(with(vec![event(30, 20)], true).lost_end(), None, "a later page has it");
        assert!(with(vec![event(30, 20)], false).lost_end().is_some());
    }

    #[test]
    fn a_page_with_a_hole_is_cut_before_the_hole_and_has_more_behind_it() {
        for (events, head, kept) in [
            (vec![event(30, 20), event(50, 40)], 50, 1),
            (vec![event(30, 20), event(40, 30)], 50, 2),
            (vec![event(30, 20), event(30, 20)], 30, 1),
        ] {
            let page = incomplete(events, head);
            assert!(page.is_torn());
            let cut = page.up_to_hole();
            assert!(cut.more && !cut.is_torn());
            assert_eq!(cut.events.len(), kept);
        }
    }

    #[test]
    fn a_page_without_a_hole_stays_as_it_is() {
        for (events, head, more) in [
            (vec![event(30, 20), event(40, 30)], 40, false),
            (vec![event(30, 20), event(40, 0)], 40, false),
            (vec![event(30, 20)], 90, true),
            (Vec::new(), 90, false),
        ] {
            let page = Replay {
                more,
                ..incomplete(events, head)
            };
            assert!(!page.is_torn(), "{page:?}");
            assert_eq!(page.clone().up_to_hole(), page);
        }
    }

    #[test]
    fn the_reason_of_a_loss_is_told_from_where_the_lost_position_stands() {
        let now = Position::now();
        let page = incomplete(vec![event(30, 20), event(40, 30)], 40);
        for (after, newest_known, reason) in [
            (Position(10), Position(40), GapReason::HistoryExpired),
            (Position(25), Position(40), GapReason::BrokerLostData),
            (Position(50), Position(40), GapReason::BrokerLostData),
            (now.plus(CLOCKS_DIFFER / 2), Position(40), GapReason::BrokerLostData),
            (now.plus(CLOCKS_DIFFER * 2), Position(40), GapReason::UnknownPosition),
            (
                now.plus(CLOCKS_DIFFER * 2),
                now.plus(CLOCKS_DIFFER * 3),
                GapReason::BrokerLostData,
            ),
        ] {
            assert_eq!(
                page.lost_reason(after, newest_known),
                reason,
                "after {after}, seen {newest_known}"
            );
        }
        let forgotten = incomplete(vec![event(30, 0)], 30);
        assert_eq!(forgotten.lost_reason(Position(25), Position(30)), GapReason::HistoryExpired);
    }
}
