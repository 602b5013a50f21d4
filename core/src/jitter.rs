//! This module draws random numbers, which spread in time what many callers would do at once.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Returns a number that no other process draws. It is not for secrets.
pub(crate) fn random() -> u64 {
    // The standard library's hasher keys differ from process to process and from call to call.
    RandomState::new().build_hasher().finish()
}

/// Jitter spreads in time what many callers would do at once. It is not for secrets.
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

    /// Draws any number.
    pub(crate) fn draw(&self) -> u64 {
        // SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
        let state = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Draws a number from 0 to 1.
    pub(crate) fn unit(&self) -> f64 {
        (self.draw() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Returns half to all of `full`, so that many callers that wait do not come back together.
    pub(crate) fn spread(&self, full: Duration) -> Duration {
        full / 2 + full.mul_f64(self.unit() / 2.0)
    }
}
