//! What a channel has stored that no rule shows any more, a generation at a time.

use std::sync::LazyLock;
use std::time::Duration;

use airwave_core::Position;
use airwave_core::rule::History;

use super::clock::micros;
use super::stored::Chain;

/// A purge of a channel that goes on is for at least so many events or bytes.
const WORTH: (u64, u64) = (1000, 1 << 20);

/// And of one that has gone quiet.
const WORTH_QUIET: (u64, u64) = (16, 64 << 10);

/// How long nothing must be published to a channel until this node forgets what it knows of it.
const IDLE: Duration = Duration::from_secs(600);

/// How a channel stood when an event was its newest.
#[derive(Debug, Clone, Copy)]
struct Mark {
    head: Position,
    events: u64,
    bytes: u64,
    at: u64,
}

impl Mark {
    fn since(&self, before: &Mark) -> (u64, u64) {
        (
            self.events.saturating_sub(before.events),
            self.bytes.saturating_sub(before.bytes),
        )
    }

    fn older_than(&self, age: Duration, now: u64) -> bool {
        Duration::from_micros(now.saturating_sub(self.at)) > age
    }
}

fn is_worth(left: (u64, u64), worth: (u64, u64)) -> bool {
    left.0 >= worth.0 || left.1 >= worth.1
}

/// A monotonic clock, in µs: one that is set ahead would make a node take away what is young.
pub(super) fn uptime() -> u64 {
    static SINCE: LazyLock<std::time::Instant> = LazyLock::new(std::time::Instant::now);
    micros(SINCE.elapsed())
}

/// What this node knows of what a channel has stored.
#[derive(Debug, Default)]
pub(super) struct Generations {
    /// Where the generation began that is being written.
    begin: Option<Mark>,
    newest: Option<Mark>,
    /// Nothing is stored before, as far as this node has seen to it.
    swept: Option<Mark>,
}

impl Generations {
    /// An event was stored; the chain with it. `Some`: nothing before that position is shown, and
    /// it is worth a purge.
    pub(super) fn stored(&mut self, chain: &Chain, history: &History, now: u64) -> Option<Position> {
        let here = Mark {
            // The message that holds the head, which may stand below it.
            head: Position(chain.newest),
            events: chain.events,
            bytes: chain.bytes,
            at: now,
        };
        self.newest = Some(here);
        let begin = *self.begin.get_or_insert(here);
        let written = here.since(&begin);
        // These agree with what a page shows: the event that the generation began with is left out
        // already.
        let passed =
            written.0 >= history.events as u64 || written.1 >= history.bytes as u64 || begin.older_than(history.age, now);
        (passed && is_worth(written, WORTH)).then(|| {
            self.begin = Some(here);
            self.swept = Some(begin);
            begin.head
        })
    }

    /// The same for one to which this node has published nothing for long.
    pub(super) fn quiet(&mut self, history: impl FnOnce() -> History, now: u64) -> Option<Position> {
        let newest = self.newest?;
        let left = self.swept.map_or((newest.events, newest.bytes), |swept| newest.since(&swept));
        let due = is_worth(left, WORTH_QUIET) && newest.older_than(history().age, now);
        due.then(|| {
            self.swept = Some(newest);
            newest.head
        })
    }
}

impl Generations {
    /// Whether nothing was published for long, and nothing is left that a later look would purge.
    /// What is known of such a channel is asked for again with its next publish.
    pub(super) fn is_idle(&self, now: u64) -> bool {
        let Some(newest) = self.newest else { return true };
        let left = self.swept.map_or((newest.events, newest.bytes), |swept| newest.since(&swept));
        newest.older_than(IDLE, now) && !is_worth(left, WORTH_QUIET)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(events: u64, bytes: u64) -> Chain {
        Chain {
            newest: 1000 + events,
            head: Position(1000 + events),
            events,
            bytes,
            ..Chain::NONE
        }
    }

    const SECOND: u64 = 1_000_000;

    fn keeping(events: usize, bytes: usize, seconds: u64) -> History {
        History::new(events, Duration::from_secs(seconds)).with_bytes(bytes)
    }

    /// What is swept after each of so many events, of ten bytes and a second each.
    fn sweeps(history: &History, events: u64) -> Vec<(u64, u64)> {
        let mut generations = Generations::default();
        let sweep = |n: u64| {
            let swept = generations.stored(&chain(n, n * 10), history, n * SECOND)?;
            Some((n, swept.0 - 1000))
        };
        (1..=events).filter_map(sweep).collect()
    }

    #[test]
    fn a_channel_is_forgotten_when_it_was_quiet_for_long_and_nothing_of_it_is_due() {
        let history = keeping(100, usize::MAX, 3600);
        let mut generations = Generations::default();
        assert!(generations.is_idle(0), "nothing was ever stored");
        generations.stored(&chain(3, 30), &history, SECOND);
        assert!(!generations.is_idle(600 * SECOND), "it may be published to again");
        assert!(generations.is_idle(602 * SECOND));
        generations.stored(&chain(50, 500), &history, 700 * SECOND);
        assert!(!generations.is_idle(4_000 * SECOND), "its history will be too old");
        let later = 5_000 * SECOND;
        assert!(generations.quiet(|| history, later).is_some());
        assert!(generations.is_idle(later), "it is purged");
    }

    #[test]
    fn a_generation_goes_when_the_next_one_is_a_history_long() {
        for (history, sizes) in [
            (keeping(2000, usize::MAX, 1 << 40), 2000),
            // Too small to be worth it.
            (keeping(10, usize::MAX, 1 << 40), 1000),
            (keeping(usize::MAX, 30_000, 1 << 40), 3000),
            (keeping(usize::MAX, usize::MAX, 1500), 1501),
            (keeping(usize::MAX, usize::MAX, 10), 1000),
        ] {
            let expected: Vec<(u64, u64)> = (1..=3).map(|n| (1 + n * sizes, 1 + (n - 1) * sizes)).collect();
            assert_eq!(sweeps(&history, 1 + 3 * sizes), expected, "{history:?}");
        }
        assert_eq!(sweeps(&keeping(usize::MAX, usize::MAX, 1 << 40), 10_000), []);
    }

    #[test]
    fn a_quiet_channel_is_left_with_its_head() {
        let history = keeping(100, 1 << 20, 60);
        let mut generations = Generations::default();
        for n in 1..=20 {
            generations.stored(&chain(n, n * 10), &history, n * SECOND);
        }
        assert_eq!(generations.quiet(|| history, 80 * SECOND), None, "the newest is not old yet");
        assert_eq!(generations.quiet(|| history, 81 * SECOND), Some(Position(1020)));
        assert_eq!(generations.quiet(|| history, 82 * SECOND), None, "nothing is left");
        for n in 21..=36 {
            assert_eq!(generations.quiet(|| history, 1000 * SECOND), None, "little is left");
            generations.stored(&chain(n, n * 10), &history, 100 * SECOND);
        }
        assert_eq!(generations.quiet(|| history, 1000 * SECOND), Some(Position(1036)));
    }
}
