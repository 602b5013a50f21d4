//! The node and its logs hold this handle of a session. It wakes the session, carries its orders,
//! and knows since when the session is quiet.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Wake;

use crate::keep_alive::KeepAlive;
use crate::orders::{Orders, PendingOrders};
use crate::rule::Limits;
use crate::wake::WakeFlag;

/// A handle is one session as others see it. A publish touches one handle for each listener, so all
/// of it stands in one cache line.
#[derive(Default)]
#[repr(align(64))]
pub(crate) struct SessionHandle {
    pub(crate) wake: WakeFlag,
    pub(crate) keep_alive: KeepAlive,
    orders: PendingOrders,
    /// Holds the expiry in seconds of the node's coarse clock, or zero for never. The cache line
    /// has no room for milliseconds.
    expires_at: AtomicU32,
}

/// The socket wakes the session when it may have something to read.
impl Wake for SessionHandle {
    fn wake(self: Arc<Self>) {
        self.wake.wake_readable();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.wake.wake_readable();
    }
}

impl SessionHandle {
    /// Creates the handle of a session that begins now, by the node's clock.
    pub(crate) fn new(now: u64) -> Self {
        let handle = Self {
            keep_alive: KeepAlive::new(now),
            ..Self::default()
        };
        // The socket may have something to read until the session has tried.
        handle.wake.keep_readable();
        handle
    }

    /// Fetches the handle from memory.
    pub(crate) fn look(&self) {
        self.keep_alive.look();
    }

    /// Wakes the session because a log has something to read.
    pub(crate) fn wake(&self) {
        self.wake.wake();
    }

    /// Gives orders to the session, which carries them out in its next turn. The orders reach even
    /// a session that waits for its socket. Only a heartbeat does not, because it is of no use to
    /// that session.
    pub(crate) fn give(&self, orders: Orders) {
        self.orders.add(orders);
        if orders == Orders::HEARTBEAT {
            self.wake.wake();
        } else {
            self.wake.wake_always();
        }
    }

    /// Returns the orders that the session has not taken yet.
    pub(crate) fn orders(&self) -> Orders {
        self.orders.peek()
    }

    /// Takes the orders that came since the last call.
    pub(crate) fn take_orders(&self) -> Orders {
        self.orders.take()
    }

    /// Ends the session at the first tick at or after `at`, in milliseconds of the node's clock.
    /// With `None` the session never expires. The time is rounded up to a second.
    #[cfg_attr(not(test), allow(dead_code, reason = "no application grants a time yet"))]
    pub(crate) fn expire_at(&self, at: Option<u64>) {
        let seconds = at.map_or(0, |at| at.div_ceil(1000).max(1));
        // A time beyond 136 years counts as never.
        self.expires_at.store(u32::try_from(seconds).unwrap_or(0), Ordering::Relaxed);
    }

    /// Gives the session the orders that are due. The node calls this every second or so.
    pub(crate) fn check_times(&self, now: u64, limits: &Limits) {
        let mut due = self.keep_alive.due(now, limits);
        let expires_at = u64::from(self.expires_at.load(Ordering::Relaxed)) * 1000;
        if expires_at != 0 && now >= expires_at {
            self.expires_at.store(0, Ordering::Relaxed);
            due = due | Orders::EXPIRE;
        }
        if due != Orders::NONE {
            self.give(due);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn stands_in_one_cache_line() {
        assert_eq!(size_of::<SessionHandle>(), 64);
    }

    #[test]
    fn a_session_expires_once_at_the_first_tick_after_its_time() {
        let limits = Limits {
            heartbeat: Duration::from_secs(3600),
            ..Limits::default()
        };
        let handle = SessionHandle::new(1);
        handle.check_times(
            u64::MAX / 2,
            &Limits {
                heartbeat: Duration::MAX,
                ..limits.clone()
            },
        );
        assert_eq!(handle.take_orders(), Orders::NONE, "without a time it never expires");
        handle.expire_at(Some(4001));
        handle.check_times(4999, &limits);
        assert_eq!(handle.orders(), Orders::NONE);
        handle.check_times(5000, &limits);
        assert_eq!(handle.take_orders(), Orders::EXPIRE);
        handle.check_times(6000, &limits);
        assert_eq!(handle.take_orders(), Orders::NONE);
        handle.expire_at(Some(7000));
        handle.expire_at(None);
        handle.check_times(8000, &limits);
        assert_eq!(handle.take_orders(), Orders::NONE);
    }
}
