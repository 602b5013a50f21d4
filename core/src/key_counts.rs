//! This module counts idempotency keys, so that no client fills a broker with them.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::broker::IDEMPOTENCY_WINDOW;
use crate::shrink::shrink;

/// Counts the keys that each caller has used within [`IDEMPOTENCY_WINDOW`], so that no caller fills
/// a broker with them.
///
/// The counter counts time in steps, so a key may count for one step longer than a broker remembers
/// it.
pub(crate) struct KeyCounts<K>(Mutex<Counted<K>>);

struct Counted<K> {
    windows: HashMap<K, KeyWindow>,
    since: Instant,
    swept: u64,
}

/// The window holds a count for each step, in a ring; `newest` is the newest step.
#[derive(Default)]
struct KeyWindow {
    used: [u32; STEPS],
    newest: u64,
}

const STEP: Duration = Duration::from_secs(10);
const STEPS: usize = (IDEMPOTENCY_WINDOW.as_secs() / STEP.as_secs()) as usize + 1;

impl<K: Eq + Hash> Default for KeyCounts<K> {
    fn default() -> Self {
        Self(Mutex::new(Counted {
            windows: HashMap::new(),
            since: Instant::now(),
            swept: 0,
        }))
    }
}

impl<K: Eq + Hash> KeyCounts<K> {
    /// Counts one more key of `who`; false if there are `limit` already.
    pub(crate) fn take(&self, who: K, limit: usize) -> bool {
        // No statement leaves the map half changed, so a poisoned lock does no harm.
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let step = counted.since.elapsed().as_secs() / STEP.as_secs();
        if step != counted.swept {
            counted.swept = step;
            counted.windows.retain(|_, window| window.sum_at(step) > 0);
            shrink(&mut counted.windows);
        }
        let window = counted.windows.entry(who).or_default();
        if window.sum_at(step) >= limit {
            return false;
        }
        window.used[step as usize % STEPS] += 1;
        true
    }
}

impl KeyWindow {
    fn sum_at(&mut self, step: u64) -> usize {
        for passed in (self.newest + 1..=step).take(STEPS) {
            self.used[passed as usize % STEPS] = 0;
        }
        self.newest = step;
        self.used.iter().map(|used| *used as usize).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn keys_are_counted_for_as_long_as_they_live_and_forgotten_then() {
        let counts = KeyCounts::default();
        for _ in 0..3 {
            assert!(counts.take("ann", 3));
        }
        assert!(!counts.take("ann", 3) && counts.take("bob", 3));
        tokio::time::advance(IDEMPOTENCY_WINDOW - Duration::from_millis(1)).await;
        assert!(!counts.take("ann", 3), "a broker still knows them");
        assert!(counts.take("bob", 3));
        tokio::time::advance(STEP + Duration::from_millis(1)).await;
        assert!(counts.take("ann", 3));
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert!(counts.take("eve", 3));
        assert_eq!(counts.0.lock().unwrap().windows.len(), 1);
    }
}
