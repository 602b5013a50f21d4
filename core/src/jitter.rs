//! Chance, for spreading in time what many would do at once.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A number that no other process draws. Not for secrets.
pub(crate) fn random() -> u64 {
    // The standard library's hasher keys differ from process to process and from call to call.
    RandomState::new().build_hasher().finish()
}

/// Spreads in time what many would do at once. Not for secrets.
pub(crate) struct Jitter(AtomicU64);

impl Default for Jitter {
    fn default() -> Self {
        Self::new(random())
    }
}

impl Jitter {
    pub(crate) fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    /// Any number.
    pub(crate) fn draw(&self) -> u64 {
        // SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
        let state = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to 1.
    pub(crate) fn unit(&self) -> f64 {
        (self.draw() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Half to all of `full`, so that many who wait do not come back together.
    pub(crate) fn spread(&self, full: Duration) -> Duration {
        full / 2 + full.mul_f64(self.unit() / 2.0)
    }
}
