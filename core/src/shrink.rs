//! Collections that grew in a flood give memory back when the flood is over.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hash};

/// A collection never gives back capacity below this, because it is small and soon needed again.
const KEPT_CAPACITY: usize = 1024;

/// A collection that implements this trait can give its memory back.
pub trait Shrink {
    /// Returns how many entries there are, and how many there is memory for.
    fn occupancy(&self) -> (usize, usize);
    /// Gives back memory, but for `capacity` entries.
    fn shrink_to(&mut self, capacity: usize);
}

impl<K: Eq + Hash, V, S: BuildHasher> Shrink for HashMap<K, V, S> {
    fn occupancy(&self) -> (usize, usize) {
        (self.len(), self.capacity())
    }
    fn shrink_to(&mut self, capacity: usize) {
        HashMap::shrink_to(self, capacity);
    }
}

impl<T: Eq + Hash, S: BuildHasher> Shrink for HashSet<T, S> {
    fn occupancy(&self) -> (usize, usize) {
        (self.len(), self.capacity())
    }
    fn shrink_to(&mut self, capacity: usize) {
        HashSet::shrink_to(self, capacity);
    }
}

impl<T> Shrink for Vec<T> {
    fn occupancy(&self) -> (usize, usize) {
        (self.len(), self.capacity())
    }
    fn shrink_to(&mut self, capacity: usize) {
        Vec::shrink_to(self, capacity);
    }
}

impl<T> Shrink for std::collections::VecDeque<T> {
    fn occupancy(&self) -> (usize, usize) {
        (self.len(), self.capacity())
    }
    fn shrink_to(&mut self, capacity: usize) {
        std::collections::VecDeque::shrink_to(self, capacity);
    }
}

/// Gives memory back when at most a quarter of it is used, and keeps twice what is used. Removing
/// entries one by one therefore costs a constant amount of work for each.
pub fn shrink(collection: &mut impl Shrink) {
    let (len, capacity) = collection.occupancy();
    if capacity > 2 * KEPT_CAPACITY && len <= capacity / 4 {
        collection.shrink_to((2 * len).max(KEPT_CAPACITY));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collection_shrinks_once_most_of_it_is_unused() {
        let mut map: HashMap<u32, u32> = (0..100_000).map(|n| (n, n)).collect();
        let full = map.capacity();
        map.retain(|n, _| *n < 50_000);
        shrink(&mut map);
        assert!(map.capacity() > full / 2, "half full: it may grow again");
        map.retain(|n, _| *n < 5_000);
        shrink(&mut map);
        assert!((10_000..40_000).contains(&map.capacity()), "{}", map.capacity());
        map.clear();
        shrink(&mut map);
        assert!(map.capacity() <= 2 * KEPT_CAPACITY, "{}", map.capacity());
        assert!(map.capacity() >= KEPT_CAPACITY);
    }
}
