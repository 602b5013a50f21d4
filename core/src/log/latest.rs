//! Conflation keeps the newest event of each key, also of those that have left the ring.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::entry::{Entry, Item};
use crate::shrink::shrink;

/// Bounds how many keys are remembered, within the ring's bound of bytes. Beyond that the oldest is
/// forgotten.
const MAX_KEYS: usize = 10_000;

/// This type remembers the newest event of each key.
#[derive(Default)]
pub(super) struct Latest {
    by_key: HashMap<Arc<str>, (u64, Arc<Entry>)>,
    /// Holds every event that `by_key` has, oldest first. Some entries are old: a newer event of
    /// their key has replaced them.
    order: VecDeque<(u64, Arc<str>)>,
    bytes: usize,
    /// Counts those of the bytes that have left the ring.
    beyond_ring: usize,
    /// Says whether the newest event of a key was dropped because the node needed memory.
    cut_short: bool,
    /// Everything before this index may have been forgotten: because of the bound, or because the
    /// log opened later.
    whole_from: u64,
}

impl Latest {
    /// Remembers the event at `index`. `first` is the first index of the ring.
    pub(super) fn put(&mut self, key: &Arc<str>, index: u64, entry: &Arc<Entry>, first: u64, max_bytes: usize) {
        self.order.push_back((index, key.clone()));
        self.bytes += entry.cost();
        if let Some((before, older)) = self.by_key.insert(key.clone(), (index, entry.clone())) {
            older.supersede(index);
            self.forgot(before, &older, first);
        }
        // Publishers choose the keys, so only this loop bounds their number and their weight.
        while self.by_key.len() > MAX_KEYS || (self.bytes > max_bytes && self.by_key.len() > 1) {
            self.forget_oldest(first);
        }
        if self.order.len() > 2 * self.by_key.len() + 64 {
            let Self { order, by_key, .. } = self;
            order.retain(|(index, key)| by_key.get(key).is_some_and(|(newest, _)| newest == index));
        }
    }

    /// Forgets the oldest events until at most `bytes`, or `keys` keys, are left. The node calls
    /// this when it needs memory.
    pub(super) fn drop_oldest(&mut self, bytes: usize, keys: usize, first: u64) {
        while self.bytes > bytes && self.by_key.len() > keys {
            self.cut_short = true;
            self.forget_oldest(first);
        }
    }

    fn forget_oldest(&mut self, first: u64) {
        while let Some((index, key)) = self.order.pop_front() {
            if self.by_key.get(&key).is_some_and(|(newest, _)| *newest == index) {
                if let Some((_, entry)) = self.by_key.remove(&key) {
                    self.forgot(index, &entry, first);
                }
                self.whole_from = index + 1;
                return;
            }
        }
    }

    fn forgot(&mut self, index: u64, entry: &Entry, first: u64) {
        self.bytes -= entry.cost();
        if index < first {
            self.beyond_ring -= entry.cost();
        }
    }

    /// Notes that the ring has dropped this entry. If it is the newest of its key, it stays here.
    pub(super) fn left_ring(&mut self, entry: &Arc<Entry>) {
        let Item::Event(event) = &entry.item else { return };
        let newest = self.by_key.get(event.message.conflation_key());
        if newest.is_some_and(|(_, newest)| Arc::ptr_eq(newest, entry)) {
            self.beyond_ring += entry.cost();
        }
    }

    /// Notes that events before `index` may be missing here, because events were lost.
    pub(super) fn lost_before(&mut self, index: u64) {
        self.whole_from = index;
    }

    /// Returns whether this type holds the newest event of each key that came at `index` or later.
    pub(super) fn is_whole_from(&self, index: u64) -> bool {
        self.whole_from <= index
    }

    /// Returns the events at `from` or later and before `visible`, in order. The bounds are
    /// indices, not positions. Behind a lost tail a listener's cursor goes back to the fork, and
    /// the lost events must not come again.
    pub(super) fn between(&self, from: u64, visible: u64) -> Vec<Arc<Entry>> {
        let mut found: Vec<_> = self
            .by_key
            .values()
            .filter(|(index, _)| (from..visible).contains(index))
            .collect();
        found.sort_unstable_by_key(|(index, _)| *index);
        found.into_iter().map(|(_, entry)| entry.clone()).collect()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the bytes of the events that have left the ring.
    pub(super) fn bytes_beyond_ring(&self) -> usize {
        self.beyond_ring
    }

    /// Says whether the newest event of a key was dropped because the node needed memory.
    pub(super) fn is_cut_short(&self) -> bool {
        self.cut_short
    }

    /// Gives back memory that was needed for many keys.
    pub(super) fn shrink(&mut self) {
        shrink(&mut self.by_key);
        shrink(&mut self.order);
    }

    #[cfg(all(test, not(loom)))]
    pub(super) fn entries(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.by_key.values().map(|(_, entry)| entry)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::log::entry::ENTRY_COST;
    use crate::log::tests::event;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

        /// Checks that the newest event of each key is remembered and the oldest is forgotten
        /// first. The type also knows which events may be missing.
        #[test]
        fn what_is_forgotten_is_the_oldest(puts in prop::collection::vec((0..12u8, 0..300usize), 1..200), roomy in any::<bool>()) {
            let max_bytes = if roomy { 1 << 30 } else { 8 * ENTRY_COST };
            let mut latest = Latest::default();
            let mut newest: Vec<(u64, u8, usize)> = Vec::new();
            let mut forgotten = 0;
            for (index, (key, size)) in (0..).zip(puts) {
                let event = event(index + 1, index, key, size);
                let entry = Entry::event(event.clone());
                latest.put(event.message.conflation_key(), index, &entry, 0, max_bytes);
                newest.retain(|(_, known, _)| *known != key);
                newest.push((index, key, entry.cost()));
                while newest.len() > 1 && newest.iter().map(|(_, _, cost)| cost).sum::<usize>() > max_bytes {
                    forgotten = newest.remove(0).0 + 1;
                }
                let given: Vec<u64> = latest.between(0, u64::MAX).iter().map(|e| e.position().0 - 1).collect();
                prop_assert_eq!(given, newest.iter().map(|(index, _, _)| *index).collect::<Vec<_>>());
                prop_assert_eq!(latest.whole_from, forgotten);
                prop_assert!(latest.order.len() <= 2 * newest.len() + 65, "{} for {}", latest.order.len(), newest.len());
            }
        }
    }
}
