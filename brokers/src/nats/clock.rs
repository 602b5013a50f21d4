//! The clock by which the age of an event is judged: the server's.
//!
//! The server notes when it stores a message, and says so with every answer. A node never compares
//! that with its own clock, which may be minutes ahead or behind. Its own probe, which comes back
//! through the stream, tells it the server's time; between two probes it counts on with a monotonic
//! clock. So it is never ahead of the server, and behind it by as much as a probe is under way: a
//! page may show a little more than its rule promises, and never less.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The server's time as far as this node knows it.
#[derive(Default)]
pub(super) struct ServerClock(Mutex<Option<(u64, Instant)>>);

impl ServerClock {
    /// A message that was stored at this time (µs since 1970) has just been heard.
    pub(super) fn set(&self, stored_at: u64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((stored_at, Instant::now()));
    }

    /// µs since 1970; zero as long as nothing was heard, so that nothing is too old.
    pub(super) fn now(&self) -> u64 {
        let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.map_or(0, |(at, since)| at.saturating_add(micros(since.elapsed())))
    }
}

pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Reads a time as the server writes it, `2026-11-29T16:16:41.249859878Z`, in µs since 1970.
/// `None`: it is none of these.
pub(super) fn time_of(text: &str) -> Option<u64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let (time, fraction) = time.split_once('.').unwrap_or((time, ""));
    let (year, month, day) = three(date, '-')?;
    let (hour, minute, second) = three(time, ':')?;
    let digits = fraction.get(..fraction.len().min(6))?;
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    if hour > 23 || minute > 59 || second > 60 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let mut below = 0;
    for place in 0..6 {
        below = below * 10 + digits.as_bytes().get(place).map_or(0, |digit| u64::from(digit - b'0'));
    }
    // Years that begin in March end with the day that not every year has.
    let (from_march, year) = ((month + 9) % 12, if month > 2 { year } else { year - 1 });
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (from_march * 153 + 2) / 5 + day - 1;
    let seconds = ((days.checked_sub(719_468)? * 24 + hour) * 60 + minute) * 60 + second;
    Some(seconds * 1_000_000 + below)
}

fn three(text: &str, between: char) -> Option<(u64, u64, u64)> {
    let mut parts = text.splitn(3, between).map(|part| part.parse::<u64>().ok());
    Some((parts.next()??, parts.next()??, parts.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_times_of_a_server_are_read() {
        for (text, micros) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T12:00:00.5Z", 951_825_600_500_000),
            ("2000-03-01T00:00:00Z", 951_868_800_000_000),
            ("2026-11-23T02:03:10.123456789Z", 1_795_399_390_123_456),
            ("2026-11-29T16:16:41.249859878Z", 1_795_969_001_249_859),
            ("2100-03-01T00:00:00.000001Z", 4_107_542_400_000_001),
        ] {
            assert_eq!(time_of(text), Some(micros), "{text}");
        }
        for text in [
            "",
            "Z",
            "2026-11-29",
            "2026-11-29T16:16:41",
            "2026-13-29T16:16:41Z",
            "2026-11-29T24:16:41Z",
            "2026-11-29T16:16:41.é9Z",
            "0001-01-01T00:00:00Z",
            "x-1-1T0:0:0Z",
            "2026-11-23T02:03:10+01:00",
            "2026-11-29T16:16:41+01:00Z",
        ] {
            assert_eq!(time_of(text), None, "{text}");
        }
    }

    #[test]
    fn the_last_word_counts_and_time_goes_on_from_it() {
        let clock = ServerClock::default();
        assert_eq!(clock.now(), 0);
        clock.set(5_000_000);
        assert!(clock.now() >= 5_000_000);
        // The server's clock was set back.
        clock.set(1_000_000);
        assert!((1_000_000..5_000_000).contains(&clock.now()));
    }
}
