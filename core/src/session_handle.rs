//! What others see of a session: how it is woken, what the hub tells it, and since when it is
//! quiet.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::Wake;
use std::time::Duration;

use crate::rule::Limits;
use crate::wake::WakeFlag;

/// A heartbeat is due.
pub(crate) const HEARTBEAT: u8 = 1;
/// A write made no progress for too long.
pub(crate) const STALLED: u8 = 2;
/// Nothing was heard for too long.
pub(crate) const SILENT: u8 = 4;

/// One session's signs of life. A publish touches one of these for each listener, so all of it
/// stands in one cache line.
#[derive(Default)]
#[repr(align(64))]
pub(crate) struct SessionHandle {
    pub(crate) wake: WakeFlag,
    flags: AtomicU8,
    /// Times of the hub's coarse clock; zero: never, or not now. The next heartbeat counts from
    /// here: from what was written last, or, where answers are expected, from the heartbeat before.
    /// Those are asked for even while events go out: a client that only listens says nothing else.
    quiet: AtomicU64,
    /// Zero: nothing is expected to be heard.
    heard: AtomicU64,
    stalled: AtomicU64,
}

/// Of the socket: it may have something to read.
impl Wake for SessionHandle {
    fn wake(self: Arc<Self>) {
        self.wake.wake_readable();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.wake.wake_readable();
    }
}

impl SessionHandle {
    /// Of a session that begins now, by the hub's clock.
    pub(crate) fn new(now: u64) -> Self {
        let handle = Self {
            quiet: AtomicU64::new(now),
            ..Self::default()
        };
        // There may be something to read, until it has been tried.
        handle.wake.keep_readable();
        handle
    }

    /// Has this fetched from memory.
    pub(crate) fn look(&self) {
        std::hint::black_box(self.quiet.load(Ordering::Relaxed));
    }

    /// There is something to read in a log.
    pub(crate) fn wake(&self) {
        self.wake.wake();
    }

    /// Wakes even a session that waits for its socket.
    pub(crate) fn wake_always(&self) {
        self.wake.wake_always();
    }

    /// Ends the session without waiting for its socket.
    pub(crate) fn cut(&self) {
        self.flags.fetch_or(STALLED, Ordering::Relaxed);
        self.wake.wake_always();
    }

    /// What the hub has said.
    pub(crate) fn flags(&self) -> u8 {
        self.flags.load(Ordering::Relaxed)
    }

    /// What the hub has said since this was called last.
    pub(crate) fn take_flags(&self) -> u8 {
        // Mostly there is nothing, and a look is cheaper than an exchange.
        match self.flags() {
            0 => 0,
            _ => self.flags.swap(0, Ordering::Relaxed),
        }
    }

    /// Something was written, if only to the buffer.
    pub(crate) fn wrote(&self, now: u64) {
        if self.heard.load(Ordering::Relaxed) == 0 {
            self.quiet.store(now, Ordering::Relaxed);
        }
    }

    /// The client said something.
    pub(crate) fn heard(&self, now: u64) {
        self.heard.store(now, Ordering::Relaxed);
    }

    /// Since when a write has waited for the socket; zero: none does.
    pub(crate) fn stalled(&self, since: u64) {
        self.stalled.store(since, Ordering::Relaxed);
    }

    /// Called by the hub every second or so.
    pub(crate) fn check_times(&self, now: u64, limits: &Limits) {
        let longer = |since: &AtomicU64, limit: Duration| {
            let since = since.load(Ordering::Relaxed);
            since != 0 && u128::from(now.saturating_sub(since)) >= limit.as_millis()
        };
        if longer(&self.stalled, limits.stalled_write) {
            self.flags.fetch_or(STALLED, Ordering::Relaxed);
            self.wake.wake_always();
        } else if longer(&self.heard, limits.idle) {
            self.flags.fetch_or(SILENT, Ordering::Relaxed);
            self.wake.wake_always();
            return;
        }
        if longer(&self.quiet, limits.heartbeat) {
            self.quiet.store(now, Ordering::Relaxed);
            self.flags.fetch_or(HEARTBEAT, Ordering::Relaxed);
            self.wake.wake();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn stands_in_one_cache_line() {
        assert_eq!(size_of::<SessionHandle>(), 64);
    }
}
