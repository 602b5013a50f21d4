//! What the rings of a node take together. It is counted as it changes, and bounded where it grows.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::time::Instant;

use crate::registry::Registry;

/// A ring that gives room when the rings of its node take too much. Called with no ring locked.
pub(crate) trait CountedRing: Send + Sync {
    /// Whether there is no listener.
    fn is_unused(&self) -> bool;

    /// Estimated bytes.
    fn held(&self) -> usize;

    /// When the newest entry came.
    fn newest_at(&self) -> Option<Instant>;

    /// Drops the older half. One event stays. Listeners that stand before it fall off.
    fn shrink(&self);

    /// Drops everything, but for the end of the channel.
    fn empty(&self);
}

/// The bound of all rings of a node, and what they take.
pub(crate) struct RingMemory {
    used: AtomicUsize,
    limit: usize,
    rings: Mutex<Registry<Weak<dyn CountedRing>>>,
    /// Held while room is made. Others that need room wait for it.
    making_room: Mutex<()>,
}

/// What one ring takes. Its drop gives that back.
pub(crate) struct MemoryShare {
    memory: Arc<RingMemory>,
    /// The ring's number.
    number: u64,
    counted: usize,
}

impl MemoryShare {
    /// The ring takes so much now.
    pub(crate) fn set(&mut self, now: usize) {
        let before = std::mem::replace(&mut self.counted, now);
        if now > before {
            self.memory.used.fetch_add(now - before, Ordering::Relaxed);
        } else if now < before {
            self.memory.used.fetch_sub(before - now, Ordering::Relaxed);
        }
    }

    pub(crate) fn counted(&self) -> usize {
        self.counted
    }
}

impl Drop for MemoryShare {
    fn drop(&mut self) {
        lock(&self.memory.rings).remove(self.number);
        self.set(0);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is whole between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RingMemory {
    /// `limit` in bytes, as the rings estimate them.
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            used: AtomicUsize::new(0),
            limit,
            rings: Mutex::default(),
            making_room: Mutex::default(),
        })
    }

    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// From now on this ring gives room when the rings need it.
    pub(crate) fn share(self: &Arc<Self>, ring: Weak<dyn CountedRing>) -> MemoryShare {
        MemoryShare {
            memory: self.clone(),
            number: lock(&self.rings).insert(ring),
            counted: 0,
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
            let rings: Vec<Arc<dyn CountedRing>> = lock(&self.rings).iter().filter_map(Weak::upgrade).collect();
            tracing::debug!(
                used = self.used(),
                rings = rings.len(),
                "the rings exceed half of limits.memory: they shrink"
            );
            self.free(rings, self.limit - self.limit / 8);
        }
    }

    fn free(&self, mut rings: Vec<Arc<dyn CountedRing>>, down_to: usize) {
        let is_enough = || self.used() <= down_to;
        for ring in rings.iter().filter(|ring| ring.is_unused()) {
            ring.empty();
            if is_enough() {
                return;
            }
        }
        rings.sort_by_cached_key(|ring| std::cmp::Reverse(ring.held()));
        loop {
            let before = self.used();
            for ring in &rings {
                ring.shrink();
                if is_enough() {
                    return;
                }
            }
            if self.used() >= before {
                break;
            }
        }
        rings.sort_by_cached_key(|ring| ring.newest_at());
        for ring in &rings {
            ring.empty();
            if is_enough() {
                return;
            }
        }
    }
}
