//! The bound on the memory of all channels: the oldest events go first.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use tokio::time::Instant;

use super::channel::{Channel, Kept};
use super::lock::lock;
use super::shared::{EVENT_COST, Shared};

/// Into so many slices by age the events are sorted when some have to go.
const SLICES: usize = 256;

impl Shared {
    /// Makes room if the bound is reached; false if there is none still.
    pub(super) fn has_room(&self) -> bool {
        let is_full = || self.used.load(Ordering::Relaxed) > self.limit;
        if !is_full() {
            return true;
        }
        let _pressure = lock(&self.pressure);
        if is_full() {
            self.make_room();
        }
        !is_full()
    }

    /// Drops the oldest events of all channels until an eighth of the bound is free, and the
    /// channels of which nothing is left.
    fn make_room(&self) {
        let channels: Vec<Arc<Channel>> = {
            let channels = self.channels.read().unwrap_or_else(PoisonError::into_inner);
            channels.values().cloned().collect()
        };
        let now = Instant::now();
        let fronts = channels
            .iter()
            .filter_map(|channel| lock(&channel.state).kept.front().map(|kept| kept.since));
        let oldest = fronts.min().unwrap_or(now);
        let span = now.saturating_duration_since(oldest).as_nanos().max(1);
        let slice_of = |kept: &Kept| {
            let age = now.saturating_duration_since(kept.since).as_nanos();
            (age * (SLICES as u128 - 1) / span).min(SLICES as u128 - 1) as usize
        };
        let mut bytes = [0_usize; SLICES];
        for channel in &channels {
            for kept in &lock(&channel.state).kept {
                bytes[slice_of(kept)] += kept.event.message.weight() + EVENT_COST;
            }
        }
        let target = self.limit - self.limit / 8;
        let mut excess = self.used.load(Ordering::Relaxed).saturating_sub(target);
        let mut last = SLICES;
        while last > 0 && excess > 0 {
            last -= 1;
            excess = excess.saturating_sub(bytes[last]);
        }
        let mut emptied = Vec::new();
        for channel in &channels {
            let mut state = lock(&channel.state);
            while let Some(slice) = state.kept.front().map(slice_of)
                && (slice > last || (slice == last && self.used.load(Ordering::Relaxed) > target))
            {
                state.drop_oldest();
                self.count(channel, &mut state);
            }
            if state.is_bare() {
                emptied.push(channel);
            }
        }
        if self.used.load(Ordering::Relaxed) > target {
            self.forget_at_once(&emptied, target);
        }
        lock(&self.sweep).turns.retain(|channel| !lock(&channel.state).forgotten);
    }

    /// Forgets channels of which nothing is left before the epochs are old enough. So all epochs
    /// are dropped, and a listener that comes back with one is told of a gap.
    fn forget_at_once(&self, emptied: &[&Arc<Channel>], target: usize) {
        let Some(newest) = emptied.iter().map(|channel| lock(&channel.state).head).max() else {
            return;
        };
        {
            let mut sweep = lock(&self.sweep);
            let next = newest.max(self.epochs.current()).next();
            sweep.since = Instant::now();
            self.epochs.before.store(next.0, Ordering::Release);
            self.epochs.current.store(next.0, Ordering::Release);
        }
        for channel in emptied {
            if self.used.load(Ordering::Relaxed) <= target {
                return;
            }
            let mut channels = self.channels.write().unwrap_or_else(PoisonError::into_inner);
            let mut state = lock(&channel.state);
            if state.is_bare() && !state.forgotten && state.head < self.epochs.before() {
                self.forget_locked(channel, &mut channels, &mut state);
            }
        }
    }
}
