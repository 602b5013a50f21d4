//! This module holds the sessions of one node: their registry, the clock that they share, and the
//! orders that the node gives to all of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::backbone::Backbone;
use crate::orders::Orders;
use crate::registry::Registry;
use crate::session_handle::SessionHandle;
use crate::sync::{Mutex, lock};

/// Holds all sessions of one node.
pub(crate) struct Sessions {
    pub(crate) backbone: Arc<Backbone>,
    open: Mutex<Registry<Arc<SessionHandle>>>,
    started: Instant,
    /// Counts the milliseconds since the start, plus one, as of the last tick.
    clock: AtomicU64,
    draining: AtomicBool,
    /// Says whether a drain is about to begin.
    leaving: AtomicBool,
}

impl Sessions {
    pub(crate) fn new(backbone: Arc<Backbone>) -> Self {
        Self {
            backbone,
            open: Mutex::default(),
            started: Instant::now(),
            clock: AtomicU64::new(1),
            draining: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
        }
    }

    /// Registers a session that begins now. Returns its handle, and the number for
    /// [`Sessions::remove`].
    pub(crate) fn register(&self) -> (Arc<SessionHandle>, u64) {
        let handle = Arc::new(SessionHandle::new(self.now()));
        let number = lock(&self.open).insert(handle.clone());
        // A drain sets the flag before it visits the sessions. Either the drain meets this session,
        // or this session sees the flag here.
        if self.is_draining() {
            handle.give(Orders::DRAIN);
        }
        (handle, number)
    }

    /// Removes a session that has ended.
    pub(crate) fn remove(&self, number: u64) {
        lock(&self.open).remove(number);
    }

    /// Returns how many sessions are open.
    pub(crate) fn count(&self) -> usize {
        lock(&self.open).len()
    }

    /// Returns the node's coarse clock. A system call for the time costs more than the rest of a
    /// short turn.
    pub(crate) fn now(&self) -> u64 {
        self.clock.load(Ordering::Relaxed)
    }

    /// Returns how long the node has been running.
    pub(crate) fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Sets the clock, and gives each session the orders that are due by it. The node calls it
    /// about every second.
    pub(crate) fn tick(&self) {
        let now = self.uptime().as_millis() as u64 + 1;
        self.clock.store(now, Ordering::Relaxed);
        let limits = &self.backbone.limits;
        for session in lock(&self.open).iter() {
            session.check_times(now, limits);
        }
    }

    /// Notes that a drain is about to begin.
    pub(crate) fn announce_drain(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    /// Returns whether a drain has begun or is about to.
    pub(crate) fn is_leaving(&self) -> bool {
        self.is_draining() || self.leaving.load(Ordering::Relaxed)
    }

    /// Orders every session to end, including those that begin later.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
        self.give_all(Orders::DRAIN);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Gives an order to every session that is open.
    pub(crate) fn give_all(&self, order: Orders) {
        for session in lock(&self.open).iter() {
            session.give(order);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::session::{CloseReason, Session, Turn};
    use crate::testing;

    #[tokio::test(start_paused = true)]
    async fn a_session_whose_time_is_over_is_told_when_to_come_back() {
        let hub = testing::hub();
        let format = hub.register_format(Arc::new(testing::Named("a"))).unwrap();
        let connection = hub.connect(testing::request(), true).unwrap();
        let (mut session, mut other) = (
            Session::new(connection.clone(), &format),
            Session::new(connection.clone(), &format),
        );
        let sessions = &connection.admission.sessions;
        let first = lock(&sessions.open).iter().next().cloned().unwrap();
        first.expire_at(Some(sessions.now() + 5000));
        let begin = Instant::now();
        let turn = session.turn(&mut Vec::new()).await;
        assert!(matches!(turn, Turn::Closed(CloseReason::Drain { .. })), "{turn:?}");
        let waited = begin.elapsed();
        assert!(
            waited > Duration::from_secs(4) && waited <= Duration::from_secs(7),
            "{waited:?}"
        );
        let mut out = Vec::new();
        let others = tokio::time::timeout(Duration::from_secs(5), other.turn(&mut out));
        assert!(others.await.is_err(), "only the one session ends");
    }

    #[tokio::test]
    async fn a_session_that_begins_during_a_drain_is_told_to_end() {
        let hub = testing::hub();
        let format = hub.register_format(Arc::new(testing::Named("a"))).unwrap();
        let connection = hub.connect(testing::request(), true).unwrap();
        hub.drain();
        let turn = Session::new(connection, &format).turn(&mut Vec::new()).await;
        assert!(matches!(turn, Turn::Closed(CloseReason::Drain { .. })), "{turn:?}");
    }
}
