//! The highest positions that this node knows, which each script call carries.
//!
//! The server gives positions from its clock. A server that comes back without its data and with a
//! clock that is behind would begin below what listeners have had. So each call names the highest
//! position that the node knows, and the server goes on above it.
//!
//! One mark for each partition of channels, not one for each channel: the memory is 8 KiB however
//! many channels there are, and a channel that the node has never heard of is covered by its
//! neighbours. Not one for the whole node either: a position far in the future spreads to one
//! channel in 1,024 at most. On a cluster a partition moves as a whole, so its mark goes along to
//! the next master.

use std::sync::atomic::{AtomicU64, Ordering};

use airwave_core::Position;

use super::naming::PARTITIONS;

/// What a double still counts exactly, with room to count on. Nothing above it comes from a clock
/// before 2112.
const HIGHEST: u64 = 1 << 52;

pub(super) struct Marks(Vec<AtomicU64>);

impl Default for Marks {
    fn default() -> Self {
        Self((0..PARTITIONS).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Marks {
    /// The broker has given this position in this partition. Positions that only a client names do
    /// not count.
    pub(super) fn note(&self, partition: u16, position: Position) {
        let Some(mark) = self.0.get(usize::from(partition)) else {
            return;
        };
        // Mostly it is higher, but not always: two connections tell of one server.
        if position.0 <= HIGHEST && position.0 > mark.load(Ordering::Relaxed) {
            mark.fetch_max(position.0, Ordering::Relaxed);
        }
    }

    /// The highest position that the node knows of this partition; zero: none.
    pub(super) fn of(&self, partition: u16) -> Position {
        let mark = self.0.get(usize::from(partition));
        Position(mark.map_or(0, |mark| mark.load(Ordering::Relaxed)))
    }
}

/// The cursor of a client that may be carried beside a mark: its channel then goes on above it, so
/// that the client hears what comes. One beyond this node's clock and mark was given by no clock
/// that counts, and is not believed.
pub(super) fn believed(after: Option<Position>, mark: Position) -> Position {
    let believed = after.filter(|after| after.0 <= HIGHEST && *after <= mark.max(Position::now()));
    believed.unwrap_or(Position::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_only_rises_and_belongs_to_one_partition() {
        let marks = Marks::default();
        marks.note(3, Position(10));
        marks.note(3, Position(9));
        assert_eq!((marks.of(3), marks.of(4)), (Position(10), Position::ZERO));
        marks.note(3, Position(HIGHEST + 1));
        assert_eq!(marks.of(3), Position(10), "a position that a script cannot count with");
        marks.note(PARTITIONS, Position(10));
        assert_eq!(marks.of(PARTITIONS), Position::ZERO);
    }

    #[test]
    fn a_cursor_from_the_future_is_not_believed() {
        let past = Position(Position::now().0 - 1);
        assert_eq!(believed(Some(past), Position::ZERO), past);
        let ahead = Position(past.0 + 3_600_000_000);
        assert_eq!(believed(Some(ahead), past), Position::ZERO);
        assert_eq!(believed(Some(ahead), ahead), ahead, "the server has given as much");
        assert_eq!(believed(None, past), Position::ZERO);
    }
}
