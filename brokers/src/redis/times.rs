//! How long calls wait, and how long what is stored lives.

use std::time::Duration;

/// The head outlives the history by far, so that a quiet channel keeps its chain and a listener its
/// cursor.
pub(super) const HEAD_LIVES: Duration = Duration::from_secs(30 * 24 * 3600);

/// How long a call waits while nothing arrives on its connection. Below the two seconds within
/// which callers are promised an answer.
pub(super) const DEADLINE: Duration = Duration::from_millis(1800);

/// The same for a page of history, which may be many megabytes: nothing else arrives before its
/// end.
pub(super) const READ_DEADLINE: Duration = Duration::from_secs(5);

/// What no call exceeds, although answers to others arrive.
pub(super) const LONGEST: Duration = Duration::from_secs(5);

/// Ages are bounded to a century: the server adds them to its clock.
pub(super) fn bounded(age: Duration) -> Duration {
    age.min(Duration::from_secs(100 * 365 * 24 * 3600))
}

pub(super) fn micros(age: Duration) -> u64 {
    u64::try_from(bounded(age).as_micros()).unwrap_or(u64::MAX)
}

pub(super) fn millis(age: Duration) -> u64 {
    u64::try_from(bounded(age).as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn head_lives(age: Duration) -> Duration {
    HEAD_LIVES.max(age.saturating_mul(2))
}
