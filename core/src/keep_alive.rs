//! This module knows since when a session is quiet, silent or stalled, and which orders are due.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::orders::Orders;
use crate::rule::Limits;

/// These are the times of one session by the node's coarse clock. Zero means never, or not now.
#[derive(Default)]
pub(crate) struct KeepAlive {
    /// Holds the time from which the next heartbeat counts. It is the last write or, if the client
    /// must answer, the heartbeat before. Such a client receives heartbeats even while events go
    /// out, because a client that only listens sends nothing else.
    quiet: AtomicU64,
    /// Holds the time when the client last sent something. Zero means that the client need not
    /// answer.
    last_activity: AtomicU64,
    stalled: AtomicU64,
}

impl KeepAlive {
    /// Creates the times of a session that begins now.
    pub(crate) fn new(now: u64) -> Self {
        Self {
            quiet: AtomicU64::new(now),
            ..Self::default()
        }
    }

    /// Makes the processor fetch this value from memory.
    pub(crate) fn look(&self) {
        std::hint::black_box(self.quiet.load(Ordering::Relaxed));
    }

    /// Notes that the session wrote something, if only to the buffer.
    pub(crate) fn wrote(&self, now: u64) {
        if self.last_activity.load(Ordering::Relaxed) == 0 {
            self.quiet.store(now, Ordering::Relaxed);
        }
    }

    /// Notes that the client sent something.
    pub(crate) fn record_activity(&self, now: u64) {
        self.last_activity.store(now, Ordering::Relaxed);
    }

    /// Notes since when a write has waited for the socket. Zero means that no write waits.
    pub(crate) fn stalled(&self, since: u64) {
        self.stalled.store(since, Ordering::Relaxed);
    }

    /// Returns the orders that are due now. If a heartbeat is due, the next one counts from here.
    pub(crate) fn due(&self, now: u64, limits: &Limits) -> Orders {
        let longer = |since: &AtomicU64, limit: Duration| {
            let since = since.load(Ordering::Relaxed);
            since != 0 && u128::from(now.saturating_sub(since)) >= limit.as_millis()
        };
        if longer(&self.stalled, limits.stalled_write) {
            return Orders::CUT;
        }
        if longer(&self.last_activity, limits.idle) {
            return Orders::SILENT;
        }
        if longer(&self.quiet, limits.heartbeat) {
            self.quiet.store(now, Ordering::Relaxed);
            return Orders::HEARTBEAT;
        }
        Orders::NONE
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn each_time_has_its_own_limit_and_the_gravest_order_wins() {
        let limits = Limits {
            heartbeat: Duration::from_millis(100),
            idle: Duration::from_millis(200),
            stalled_write: Duration::from_millis(300),
            ..Limits::default()
        };
        let times = KeepAlive::new(1);
        assert_eq!(times.due(100, &limits), Orders::NONE);
        assert_eq!(times.due(101, &limits), Orders::HEARTBEAT);
        assert_eq!(
            times.due(102, &limits),
            Orders::NONE,
            "the next heartbeat counts from the last"
        );
        times.wrote(150);
        assert_eq!(times.due(249, &limits), Orders::NONE, "a write stands for a heartbeat");
        times.record_activity(250);
        times.wrote(250);
        assert_eq!(
            times.due(250, &limits),
            Orders::HEARTBEAT,
            "an answer is asked for while events go out"
        );
        assert_eq!(times.due(450, &limits), Orders::SILENT);
        times.stalled(150);
        assert_eq!(times.due(450, &limits), Orders::CUT);
        times.stalled(0);
        times.record_activity(450);
        assert_eq!(times.due(450, &limits), Orders::HEARTBEAT);
    }
}
