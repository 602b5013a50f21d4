//! Positions order the events of one channel.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::names::Invalid;

/// A position says where an event stands in the order of its channel. Positions strictly increase.
/// Two different events never have the same position, not even after a crash, a failover that lost
/// writes, or a wiped store.
///
/// Positions start from the clock in microseconds. So a store that begins anew begins above
/// everything it ever gave. For example, two events are at 1748123004217001 and 1748123004217002,
/// and then the store is wiped. The next event gets 1748123009000000, whose `previous` is not
/// 1748123004217002. A listener that holds that cursor receives a gap.
///
/// No event has position zero. As a `previous`, zero means that none is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Position(pub u64);

impl Position {
    /// No event has this position.
    pub const ZERO: Position = Position(0);

    /// Returns the clock's position: microseconds since 1970.
    pub fn now() -> Self {
        // A clock before 1970 gives zero. `next` then still counts up from the last position.
        let micros = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros());
        Position(u64::try_from(micros).unwrap_or(u64::MAX))
    }

    /// Returns the position that the clock gives `time` after `self`.
    pub(crate) fn plus(self, time: Duration) -> Self {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        Position(self.0.saturating_add(micros))
    }

    /// Returns the next position of a channel (or store) whose last one is `self`. That is the
    /// clock's, or one more than `self` where the clock is behind.
    pub fn next(self) -> Self {
        Position(self.0.saturating_add(1)).max(Position::now())
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Position {
    type Err = Invalid;

    /// Reads decimal digits only: no sign, no spaces.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(Invalid::new("a position is a decimal number"));
        }
        text.parse()
            .map(Position)
            .map_err(|_| Invalid::new("a position fits 64 bits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_follow_the_clock_and_never_repeat() {
        let ahead = Position(u64::MAX - 10);
        assert_eq!(ahead.next(), Position(u64::MAX - 9));
        assert!(Position::ZERO.next().0 > 1_700_000_000_000_000);
        assert!(
            "+1".parse::<Position>().is_err()
                && "".parse::<Position>().is_err()
                && "99999999999999999999".parse::<Position>().is_err()
        );
    }
}
