//! This module registers the listeners of a log, wakes them, and notes since when the log has none.

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;
use tokio::time::Instant;

use crate::format::MAX_FORMATS;
use crate::observe::RuleMetrics;
use crate::registry::Registry;
use crate::session_handle::SessionHandle;
use crate::sync::{Mutex, lock};

/// Bounds the listeners that the log looks at before it wakes the first of them.
const LOOK_AHEAD: usize = 16;

pub(super) struct Listeners(Mutex<Registered>);

struct Registered {
    /// Holds each listener with the index of its format.
    all: Registry<(Arc<SessionHandle>, u8)>,
    closed: bool,
    empty_since: Option<Instant>,
}

impl Listeners {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Registered {
            all: Registry::default(),
            closed: false,
            empty_since: Some(Instant::now()),
        }))
    }

    /// Registers a listener. Returns the key with which it leaves, or `None` if the log is closed.
    pub(super) fn register(&self, listener: Arc<SessionHandle>, format: usize, figures: &RuleMetrics) -> Option<u64> {
        let mut registered = lock(&self.0);
        if registered.closed {
            return None;
        }
        registered.empty_since = None;
        let key = registered.all.insert((listener, format as u8));
        figures.subscribed(format);
        Some(key)
    }

    pub(super) fn deregister(&self, key: u64, figures: &RuleMetrics) {
        let mut registered = lock(&self.0);
        let left = registered.all.remove(key);
        if let Some((_, format)) = &left {
            figures.unsubscribed(usize::from(*format));
        }
        if registered.all.is_empty() {
            registered.empty_since = Some(Instant::now());
        }
        drop(registered);
        // This handle may be the last one of a session, so the log drops it without the lock.
        drop(left);
    }

    /// Counts the listeners by the index of their format.
    pub(super) fn count(&self) -> [usize; MAX_FORMATS] {
        let mut counts = [0; MAX_FORMATS];
        for (_, format) in lock(&self.0).all.iter() {
            counts[usize::from(*format)] += 1;
        }
        counts
    }

    pub(super) fn is_empty(&self) -> bool {
        lock(&self.0).all.is_empty()
    }

    /// Closes the log to new listeners if it has had none for `linger`. Returns whether it is
    /// closed.
    pub(super) fn close_if_empty(&self, linger: Duration) -> bool {
        let mut registered = lock(&self.0);
        if registered.all.is_empty() && registered.empty_since.is_none_or(|since| since.elapsed() >= linger) {
            registered.closed = true;
        }
        registered.closed
    }

    /// Wakes the listeners that sleep.
    pub(super) fn wake(&self) {
        let registered = lock(&self.0);
        let mut rest = registered.all.iter().map(|(listener, _)| &**listener);
        loop {
            // A wake takes a lock, and a lock waits for the memory of its listener alone. A look
            // does not wait, so the processor fetches the memory of several listeners at the same
            // time.
            let some: SmallVec<[&SessionHandle; LOOK_AHEAD]> =
                rest.by_ref().take(LOOK_AHEAD).inspect(|listener| listener.look()).collect();
            if some.is_empty() {
                return;
            }
            some.iter().for_each(|listener| listener.wake());
        }
    }
}
