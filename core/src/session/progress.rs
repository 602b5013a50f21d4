//! This module records how far a listener has come in its channel.

use crate::event::Position;
use crate::log::Entry;

/// Progress is the place where a listener stands in its channel.
///
/// The fields keep their order in memory, like those of the subscription that holds this type.
#[derive(Debug, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Progress {
    /// Holds the position up to which the listener has the events.
    pub(super) cursor: Position,
    /// The next event must name this position as its previous. It is the cursor, except after a
    /// lost tail that the listener had seen.
    pub(super) expected_previous: Position,
    /// Events up to here are left out, because the listener had them before they were lost. This
    /// node may not know that they are lost.
    skip_through: Position,
}

impl Progress {
    /// Returns the progress of a listener that holds `cursor`, in a stream that continues after
    /// `expected_previous`.
    pub(super) fn new(cursor: Position, expected_previous: Position) -> Self {
        Self {
            cursor,
            expected_previous,
            skip_through: Position::ZERO,
        }
    }

    /// Returns whether the listener needs every entry that comes next.
    pub(super) fn skips_nothing(&self) -> bool {
        self.skip_through == Position::ZERO
    }

    /// Moves behind `entry`. Returns false if the entry is left out: it is hidden, or the listener
    /// had it before.
    pub(super) fn advance(&mut self, entry: &Entry) -> bool {
        self.expected_previous = entry.expected_previous();
        if entry.is_hidden() || entry.position() <= self.skip_through {
            return false;
        }
        self.cursor = entry.position();
        self.skip_through = Position::ZERO;
        true
    }

    /// Leaves out the events up to the cursor, behind a gap that went back. `head` is the newest
    /// position that the log of this node has.
    ///
    /// An event that is published from now on may stand before a cursor that is ahead of the clock.
    /// So then this function leaves out only the events that this node already holds.
    pub(super) fn skip_what_was_lost(&mut self, head: impl FnOnce() -> Position) {
        if self.cursor > self.expected_previous {
            self.skip_through = match self.cursor > Position::now() {
                true => self.cursor.min(head()),
                false => self.cursor,
            };
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::format::GapReason;
    use crate::{Data, Event, EventName, Message};

    fn event(position: Position) -> Arc<Entry> {
        named(EventName::new("x").unwrap(), position)
    }

    fn named(name: EventName, position: Position) -> Arc<Entry> {
        Entry::event(Arc::new(Event {
            position,
            previous: Position::ZERO,
            message: Message::new(name, Data::text("")),
        }))
    }

    fn at(position: u64) -> Progress {
        Progress::new(Position(position), Position(position))
    }

    #[test]
    fn a_listener_stands_where_its_last_event_stands() {
        let mut progress = at(10);
        assert!(progress.advance(&event(Position(20))));
        assert_eq!(progress, at(20));
    }

    #[test]
    fn a_hidden_event_is_passed_and_the_listener_holds_what_it_held() {
        let mut progress = at(10);
        let hidden = named(EventName::from_stored("airwave.run").unwrap(), Position(20));
        assert!(!progress.advance(&hidden));
        assert_eq!((progress.cursor, progress.expected_previous), (Position(10), Position(20)));
        assert!(progress.advance(&named(EventName::end(), Position(30))));
    }

    #[test]
    fn behind_a_gap_that_went_back_the_events_that_were_lost_are_left_out() {
        let mut progress = at(50);
        let gap = Entry::gap(Some(Position(50)), Position(20), GapReason::BrokerLostData);
        assert!(progress.advance(&gap));
        progress.skip_what_was_lost(|| panic!("the cursor is not ahead of the clock"));
        assert_eq!((progress.cursor, progress.expected_previous), (Position(50), Position(20)));
        assert!(!progress.skips_nothing());
        assert!(!progress.advance(&event(Position(30))), "had it");
        assert_eq!((progress.cursor, progress.expected_previous), (Position(50), Position(30)));
        assert!(progress.advance(&event(Position(60))));
        assert_eq!(progress, at(60));
        assert!(progress.advance(&event(Position(70))) && progress.skips_nothing());
    }

    #[test]
    fn behind_a_cursor_that_is_ahead_of_the_clock_only_what_the_node_holds_is_left_out() {
        let ahead = Position::now().plus(std::time::Duration::from_secs(60));
        let head = Position(30);
        let mut progress = Progress::new(ahead, Position(20));
        progress.skip_what_was_lost(|| head);
        assert!(!progress.advance(&event(head)));
        assert!(progress.advance(&event(Position(31))), "it is new");
    }

    #[test]
    fn behind_a_gap_that_went_forward_nothing_is_left_out() {
        let mut progress = at(10);
        let gap = Entry::gap(Some(Position(10)), Position(20), GapReason::HistoryExpired);
        assert!(progress.advance(&gap));
        progress.skip_what_was_lost(|| Position(20));
        assert!(progress.skips_nothing());
        assert_eq!(progress, at(20));
    }
}
