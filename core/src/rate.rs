//! Rates bound how often each key may do something, in a table of bounded size.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::shrink::shrink;

/// A table counts this many keys at once. A key that has all its permits again takes no entry.
const MOST_KEYS: usize = 100_000;
/// A full table waits this long between two sweeps, so that a flood of keys does not pay for a
/// sweep each.
const SWEEP_PAUSE: Duration = Duration::from_millis(100);

/// This type holds a bucket of permits for each key. Permits come back at a steady rate, up to the
/// burst.
pub(crate) struct Rates<K> {
    /// Says how long one permit takes to come back.
    every: Duration,
    /// Says how long all permits of a burst take to come back.
    burst: Duration,
    table: Mutex<Table<K>>,
}

struct Table<K> {
    /// Holds the time at which each key has all its permits again.
    full_at: HashMap<K, Instant>,
    swept: Option<Instant>,
}

impl<K: Eq + Hash> Rates<K> {
    /// Grants each key `permits` for each `period`, and at most `burst` at once.
    pub(crate) fn new(permits: u32, period: Duration, burst: u32) -> Self {
        let every = period / permits.max(1);
        Self {
            every,
            burst: every.saturating_mul(burst.max(1)),
            table: Mutex::new(Table {
                full_at: HashMap::new(),
                swept: None,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table<K>> {
        // The table is whole between any two statements.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a permit of `key`. Returns false if none is left, or if the table is full of other
    /// keys.
    pub(crate) fn take(&self, key: K) -> bool {
        let now = Instant::now();
        let mut table = self.lock();
        if table.full_at.len() >= MOST_KEYS && !table.full_at.contains_key(&key) {
            if table.swept.is_none_or(|swept| now - swept >= SWEEP_PAUSE) {
                table.sweep(now);
            }
            if table.full_at.len() >= MOST_KEYS {
                return false;
            }
        }
        let full_at = table.full_at.get(&key).copied().unwrap_or(now).max(now) + self.every;
        if full_at > now + self.burst {
            return false;
        }
        table.full_at.insert(key, full_at);
        true
    }

    /// Forgets the keys that have all their permits again, and gives their memory back.
    pub(crate) fn sweep(&self) {
        let mut table = self.lock();
        if !table.full_at.is_empty() {
            table.sweep(Instant::now());
        }
    }
}

impl<K: Eq + Hash> Table<K> {
    fn sweep(&mut self, now: Instant) {
        self.swept = Some(now);
        self.full_at.retain(|_, full_at| *full_at > now);
        shrink(&mut self.full_at);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn permits_come_back_at_the_rate_up_to_the_burst() {
        let rates = Rates::new(10, Duration::from_secs(1), 20);
        let taken = || (0..100).filter(|_| rates.take("a")).count();
        assert_eq!(taken(), 20);
        assert!(rates.take("b"), "another key has permits of its own");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(taken(), 10);
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(taken(), 20);
    }

    #[tokio::test(start_paused = true)]
    async fn the_table_is_bounded_and_gives_memory_back() {
        let rates = Rates::new(10, Duration::from_secs(1), 20);
        let accepted = (0..2 * MOST_KEYS).filter(|key| rates.take(*key)).count();
        assert_eq!(accepted, MOST_KEYS);
        assert!(rates.take(0), "a key that is counted goes on");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(rates.take(MOST_KEYS), "room is made of keys that have all permits again");
        rates.sweep();
        assert!(rates.lock().full_at.capacity() < 10_000);
    }
}
