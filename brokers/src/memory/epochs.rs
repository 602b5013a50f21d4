//! The first positions of channels without events.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use airwave_core::Position;

/// A first position that was given out is honoured at least so long after it was last given out.
pub(super) const HONOURED_FOR: Duration = Duration::from_secs(300);

/// The first positions of channels without events: the one that is given out, and the one before
/// it, which is honoured still.
///
/// A channel is forgotten only if its newest event is older than both, so an epoch that is honoured
/// proves that a channel of which nothing is known had no event since.
pub(super) struct EpochPair {
    /// Written under the lock of the sweep alone. Read under a channel's lock: a channel that
    /// begins anew after it was forgotten sees what the sweeper wrote before that.
    pub(super) current: AtomicU64,
    pub(super) before: AtomicU64,
}

impl EpochPair {
    pub(super) fn current(&self) -> Position {
        Position(self.current.load(Ordering::Acquire))
    }

    pub(super) fn before(&self) -> Position {
        Position(self.before.load(Ordering::Acquire))
    }

    pub(super) fn honours(&self, position: Position) -> bool {
        position == self.current() || position == self.before()
    }
}
