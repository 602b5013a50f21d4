//! What the rings of a node take together. It is counted as it changes, and bounded where it grows.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::log::Log;
use crate::registry::Registry;

/// The bound of all rings of a node, and what they take.
pub(crate) struct RingMemory {
    used: AtomicUsize,
    limit: usize,
    logs: Mutex<Registry<Weak<Log>>>,
    /// Held while room is made. Others that need room wait for it.
    making_room: Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is whole between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RingMemory {
    /// `limit` in bytes, as [`Log`] estimates them.
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            used: AtomicUsize::new(0),
            limit,
            logs: Mutex::default(),
            making_room: Mutex::default(),
        })
    }

    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// From now on this log gives room when the rings need it.
    pub(crate) fn register(&self, log: Weak<Log>) -> u64 {
        lock(&self.logs).insert(log)
    }

    pub(crate) fn deregister(&self, number: u64) {
        lock(&self.logs).remove(number);
    }

    /// A ring that took `before` takes `now`.
    pub(crate) fn change(&self, before: usize, now: usize) {
        if now > before {
            self.used.fetch_add(now - before, Ordering::Relaxed);
        } else if now < before {
            self.used.fetch_sub(before - now, Ordering::Relaxed);
        }
    }

    /// Frees an eighth of the bound if it is exceeded, so that the work is spread over many
    /// appends. The caller holds no lock of a ring. It may hold those of a broker and of a
    /// follower: nothing is called here but rings, one at a time.
    ///
    /// Rings without listeners are emptied first. Then the largest rings lose their older halves,
    /// down to one event each. The last events go at the end, oldest first. A listener that has not
    /// read what is gone falls off its ring, and reads it from the broker.
    pub(crate) fn make_room(&self) {
        let is_full = || self.used() > self.limit;
        if !is_full() {
            return;
        }
        let _alone = lock(&self.making_room);
        if is_full() {
            let logs: Vec<Arc<Log>> = lock(&self.logs).iter().filter_map(Weak::upgrade).collect();
            tracing::debug!(
                used = self.used(),
                logs = logs.len(),
                "the rings exceed half of limits.memory: they shrink"
            );
            self.free(logs, self.limit - self.limit / 8);
        }
    }

    fn free(&self, mut logs: Vec<Arc<Log>>, down_to: usize) {
        let is_enough = || self.used() <= down_to;
        for log in logs.iter().filter(|log| log.is_unused()) {
            log.empty();
            if is_enough() {
                return;
            }
        }
        logs.sort_by_cached_key(|log| std::cmp::Reverse(log.held()));
        loop {
            let before = self.used();
            for log in &logs {
                log.shrink();
                if is_enough() {
                    return;
                }
            }
            if self.used() >= before {
                break;
            }
        }
        logs.sort_by_cached_key(|log| log.newest_at());
        for log in &logs {
            log.empty();
            if is_enough() {
                return;
            }
        }
    }
}
