//! What makes a figure worth believing: did every listener get every event, once and in order, and
//! how late?
//!
//! Events carry a sequence number that counts from 1 within their channel, so loss needs no list of
//! what was sent: a [`Checker`] per listener sees a skipped, a repeated and an overtaken number at
//! once.

use std::ops::RangeInclusive;

/// What a listener's checker thinks of one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// The one that had to come.
    Next,
    /// A later one: what was skipped counts as lost unless it still comes.
    Ahead,
    /// One that was skipped before: it was not lost, but it is out of order.
    Late,
    /// One that was there already.
    Duplicate,
}

/// The sequence numbers one listener has had.
#[derive(Debug, Clone)]
pub struct Checker {
    next: u64,
    /// Skipped so far, in ascending order. Empty in every correct run, so it costs a listener 24
    /// bytes.
    missing: Vec<RangeInclusive<u64>>,
}

impl Checker {
    /// Of a listener that must get every event from sequence number `first` on.
    pub fn starting_at(first: u64) -> Self {
        Self {
            next: first,
            missing: Vec::new(),
        }
    }

    /// Records that event `n` arrived.
    pub fn see(&mut self, n: u64) -> Arrival {
        if n == self.next {
            self.next += 1;
            return Arrival::Next;
        }
        if n > self.next {
            self.missing.push(self.next..=n - 1);
            self.next = n + 1;
            return Arrival::Ahead;
        }
        match self.missing.iter().position(|range| range.contains(&n)) {
            None => Arrival::Duplicate,
            Some(at) => {
                let (from, to) = self.missing.remove(at).into_inner();
                if n < to {
                    self.missing.insert(at, n + 1..=to);
                }
                if from < n {
                    self.missing.insert(at, from..=n - 1);
                }
                Arrival::Late
            }
        }
    }

    /// How many of the events up to `last`, the newest that was published, have not come.
    pub fn lost(&self, last: u64) -> u64 {
        let skipped: u64 = self.missing.iter().map(|range| range.end() - range.start() + 1).sum();
        skipped + (last + 1).saturating_sub(self.next)
    }

    /// Whether everything up to `n` has come.
    pub fn has_all_up_to(&self, n: u64) -> bool {
        self.next > n && self.missing.is_empty()
    }
}

/// Counts durations in nanoseconds, exact to 1/64 of their size, in 30 KiB.
#[derive(Clone)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max: u64,
}

/// Sub-buckets per power of two.
const STEPS: u64 = 64;

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: vec![0; 64 * STEPS as usize],
            total: 0,
            max: 0,
        }
    }
}

impl Histogram {
    fn bucket(value: u64) -> usize {
        if value < STEPS {
            return value as usize;
        }
        let shift = u64::from(value.ilog2()) - u64::from(STEPS.ilog2());
        (shift * STEPS + (value >> shift)) as usize
    }

    /// The largest value of a bucket, so that a percentile is never reported better than it was.
    fn upper_edge(bucket: usize) -> u64 {
        let bucket = bucket as u64;
        if bucket < STEPS {
            return bucket;
        }
        let shift = bucket / STEPS - 1;
        let base = bucket - shift * STEPS;
        ((base + 1) << shift) - 1
    }

    /// Adds one duration in nanoseconds.
    pub fn record(&mut self, nanoseconds: u64) {
        self.counts[Self::bucket(nanoseconds)] += 1;
        self.total += 1;
        self.max = self.max.max(nanoseconds);
    }

    /// The smallest recorded duration in nanoseconds that a `share` (0 to 1) of all do not exceed;
    /// `None` if there is none.
    pub fn percentile(&self, share: f64) -> Option<u64> {
        if self.total == 0 {
            return None;
        }
        let rank = ((share * self.total as f64).ceil() as u64).clamp(1, self.total);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Some(Self::upper_edge(bucket).min(self.max));
            }
        }
        Some(self.max)
    }

    /// Takes over all that `other` has counted.
    pub fn merge(&mut self, other: &Histogram) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.total += other.total;
        self.max = self.max.max(other.max);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn verdicts(numbers: &[u64]) -> (Checker, Vec<Arrival>) {
        let mut checker = Checker::starting_at(1);
        let seen = numbers.iter().map(|n| checker.see(*n)).collect();
        (checker, seen)
    }

    #[test]
    fn an_undisturbed_stream_is_clean() {
        let (checker, seen) = verdicts(&[1, 2, 3]);
        assert_eq!(seen, [Arrival::Next; 3]);
        assert_eq!(checker.lost(3), 0);
        assert!(checker.has_all_up_to(3) && !checker.has_all_up_to(4));
    }

    #[test]
    fn a_dropped_event_is_lost() {
        let (checker, seen) = verdicts(&[1, 2, 5, 6]);
        assert_eq!(seen, [Arrival::Next, Arrival::Next, Arrival::Ahead, Arrival::Next]);
        assert_eq!(checker.lost(6), 2);
        assert!(!checker.has_all_up_to(6), "3 and 4 never came");
    }

    #[test]
    fn a_dropped_tail_is_lost() {
        let (checker, _) = verdicts(&[1, 2]);
        assert_eq!(checker.lost(5), 3);
    }

    #[test]
    fn a_listener_that_got_nothing_lost_all() {
        assert_eq!(Checker::starting_at(1).lost(7), 7);
    }

    #[test]
    fn a_repeated_event_is_a_duplicate_and_no_loss() {
        let (checker, seen) = verdicts(&[1, 2, 2, 1, 3]);
        assert_eq!(
            seen,
            [
                Arrival::Next,
                Arrival::Next,
                Arrival::Duplicate,
                Arrival::Duplicate,
                Arrival::Next
            ]
        );
        assert_eq!(checker.lost(3), 0);
    }

    #[test]
    fn an_overtaken_event_is_late_and_not_lost() {
        let (checker, seen) = verdicts(&[1, 3, 2, 4]);
        assert_eq!(seen, [Arrival::Next, Arrival::Ahead, Arrival::Late, Arrival::Next]);
        assert_eq!(checker.lost(4), 0);
    }

    #[test]
    fn a_late_event_that_comes_twice_is_a_duplicate() {
        let (checker, seen) = verdicts(&[1, 5, 3, 3]);
        assert_eq!(seen[2..], [Arrival::Late, Arrival::Duplicate]);
        assert_eq!(checker.lost(5), 2, "2 and 4 are still missing");
    }

    #[test]
    fn percentiles_are_within_a_bucket_of_the_truth() {
        let mut histogram = Histogram::default();
        for value in 1..=100_000_u64 {
            histogram.record(value * 1_000);
        }
        for share in [0.5, 0.9, 0.99, 0.999] {
            let truth = share * 100_000_000.0;
            let told = histogram.percentile(share).unwrap() as f64;
            assert!(
                told >= truth && told <= truth * (1.0 + 2.0 / STEPS as f64),
                "{share}: {told} for {truth}"
            );
        }
        assert_eq!(histogram.percentile(1.0), Some(100_000_000));
    }

    #[test]
    fn buckets_neither_overlap_nor_leave_holes() {
        for bucket in 0..40 * STEPS as usize {
            let edge = Histogram::upper_edge(bucket);
            assert_eq!(Histogram::bucket(edge), bucket);
            assert_eq!(Histogram::bucket(edge + 1), bucket + 1);
        }
        Histogram::default().record(u64::MAX);
    }

    #[test]
    fn merging_is_counting_together() {
        let (mut one, mut other) = (Histogram::default(), Histogram::default());
        one.record(10);
        other.record(1_000_000);
        one.merge(&other);
        assert_eq!(
            (one.total, one.percentile(0.5), one.percentile(1.0)),
            (2, Some(10), Some(1_000_000))
        );
        assert_eq!(Histogram::default().percentile(0.5), None);
    }
}
