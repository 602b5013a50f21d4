//! This module counts the memory of all rings of a node as it changes, and bounds it where it
//! grows.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::time::Instant;

use crate::registry::Registry;

/// A counted ring gives room when the rings of its node take too much. The caller of its methods
/// holds no ring locked.
pub(crate) trait CountedRing: Send + Sync {
    /// Returns whether the ring has no listener.
    fn is_unused(&self) -> bool;

    /// Returns the estimated bytes of the ring.
    fn held(&self) -> usize;

    /// Returns when the newest entry came.
    fn newest_at(&self) -> Option<Instant>;

    /// Drops the older half of the ring. One event stays. Listeners that stand before it fall off.
    fn shrink(&self);

    /// Drops everything except the end of the channel.
    fn empty(&self);
}

/// This type bounds the memory of all rings of a node, and counts it.
pub(crate) struct RingMemory {
    used: AtomicUsize,
    limit: usize,
    rings: Mutex<Registry<Weak<dyn CountedRing>>>,
    /// Admits one caller at a time to make room. Others that need room wait for it.
    making_room: Mutex<()>,
}

/// A share counts the memory of one ring. Its drop gives that memory back.
pub(crate) struct MemoryShare {
    memory: Arc<RingMemory>,
    /// Holds the ring's number.
    number: u64,
    counted: usize,
}

impl MemoryShare {
    /// Sets how much the ring takes now.
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
    // The data behind these locks is whole between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RingMemory {
    /// Creates the count with a `limit` in bytes, as the rings estimate them.
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

    /// Registers the ring. From now on it gives room when the rings need it.
    pub(crate) fn share(self: &Arc<Self>, ring: Weak<dyn CountedRing>) -> MemoryShare {
        MemoryShare {
            memory: self.clone(),
            number: lock(&self.rings).insert(ring),
            counted: 0,
        }
    }

    /// Frees an eighth of the bound if it is exceeded, which spreads the work over many appends.
    /// The caller holds no lock of a ring. It may hold those of a broker and of a follower: this
    /// method calls nothing but rings, one at a time.
    ///
    /// First the rings without listeners become empty. Then the largest rings lose their older
    /// halves, down to one event each. The last events go at the end, oldest first. A listener that
    /// has not read a dropped event falls off its ring, and reads it from the broker.
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
