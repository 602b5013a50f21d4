//! A registry holds values in the order of registration. Iteration reads memory in one row. The
//! memory follows the number of values that are there, whichever of them stay.

/// This type holds registered values by their numbers. It never gives a number twice.
pub(crate) struct Registry<T> {
    /// Holds the entries by number, ascending. `None` marks a removed one.
    entries: Vec<(u64, Option<T>)>,
    next: u64,
    len: usize,
}

/// The registry never gives back room below this.
const KEPT_CAPACITY: usize = 64;

impl<T> Default for Registry<T> {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            next: 0,
            len: 0,
        }
    }
}

impl<T> Registry<T> {
    /// Registers a value and returns the number that removes it again.
    pub(crate) fn insert(&mut self, value: T) -> u64 {
        let number = self.next;
        self.next += 1;
        self.entries.push((number, Some(value)));
        self.len += 1;
        number
    }

    pub(crate) fn remove(&mut self, number: u64) -> Option<T> {
        let at = self.entries.binary_search_by_key(&number, |(number, _)| *number).ok()?;
        let removed = self.entries[at].1.take()?;
        self.len -= 1;
        // A removal has paid for each move of an entry.
        if self.entries.len() >= 2 * self.len.max(KEPT_CAPACITY / 2) {
            self.entries.retain(|(_, value)| value.is_some());
            if self.entries.capacity() > KEPT_CAPACITY && self.len <= self.entries.capacity() / 4 {
                self.entries.shrink_to((2 * self.len).max(KEPT_CAPACITY));
            }
        }
        Some(removed)
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.entries.iter().filter_map(|(_, value)| value.as_ref())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn memory_is_given_back_after_a_flood_whichever_stays() {
        for stays in [0, 50_000, 99_999] {
            let mut registry = Registry::default();
            let numbers: Vec<u64> = (0..100_000).map(|n| registry.insert(n)).collect();
            for (n, number) in numbers.iter().enumerate().filter(|(n, _)| *n != stays) {
                assert_eq!(registry.remove(*number), Some(n));
            }
            assert_eq!(registry.iter().collect::<Vec<_>>(), [&stays]);
            assert!(
                registry.entries.capacity() <= 2 * KEPT_CAPACITY,
                "{}",
                registry.entries.capacity()
            );
            assert!(
                registry.entries.len() <= 2 * KEPT_CAPACITY,
                "no wake looks at those who have gone"
            );
        }
    }

    proptest! {
        #[test]
        fn it_is_a_list_from_which_some_are_removed(steps in proptest::collection::vec((any::<bool>(), any::<usize>()), 0..400)) {
            let (mut registry, mut model) = (Registry::default(), Vec::new());
            for (adds, n) in steps {
                if adds || model.is_empty() {
                    let number = registry.insert(n);
                    prop_assert!(model.iter().all(|(known, _)| *known < number));
                    model.push((number, n));
                } else {
                    let (number, value) = model.remove(n % model.len());
                    prop_assert_eq!(registry.remove(number), Some(value));
                    prop_assert_eq!(registry.remove(number), None);
                }
                prop_assert_eq!(registry.len(), model.len());
                prop_assert_eq!(registry.is_empty(), model.is_empty());
                prop_assert!(registry.iter().eq(model.iter().map(|(_, value)| value)));
            }
        }
    }
}
