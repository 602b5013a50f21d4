//! A log whose rule has a rate shows its events once in each window. This module says when.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

pub(super) struct RateWindow(Mutex<Shown>);

struct Shown {
    last: Instant,
    /// Says whether a timer will show the events that come until it fires.
    scheduled: bool,
}

/// The variant tells the caller what to do with an appended event.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Show {
    Now,
    /// The caller shows it at this time, and calls [`RateWindow::shown`] then.
    At(Instant),
    /// The caller does nothing: the timer of another caller will show it.
    Scheduled,
}

impl RateWindow {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Shown {
            last: Instant::now(),
            scheduled: false,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Shown> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that an event was appended. `window` is the length of a window.
    pub(super) fn appended(&self, window: Duration) -> Show {
        let mut shown = self.lock();
        if shown.scheduled {
            return Show::Scheduled;
        }
        let (due, now) = (shown.last + window, Instant::now());
        if due <= now {
            shown.last = now;
            return Show::Now;
        }
        shown.scheduled = true;
        Show::At(due)
    }

    /// Records that the caller is about to show what was scheduled.
    pub(super) fn shown(&self, due: Instant) {
        // The next window begins when the timer was due. A timer is late by a millisecond or two,
        // which would make sixty a second fifty-six. A very late timer is made up for once, and no
        // more.
        *self.lock() = Shown {
            last: due,
            scheduled: false,
        };
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn within_a_window_one_caller_is_told_when_it_ends_and_the_others_do_nothing() {
        let window = Duration::from_millis(100);
        let rate = RateWindow::new();
        let due = Instant::now() + window;
        assert_eq!(rate.appended(window), Show::At(due));
        assert_eq!(rate.appended(window), Show::Scheduled);
        tokio::time::advance(window + Duration::from_millis(2)).await;
        rate.shown(due);
        assert_eq!(rate.appended(window), Show::At(due + window), "from when it was due");
        tokio::time::advance(window).await;
        rate.shown(due + window);
        tokio::time::advance(window).await;
        assert_eq!(rate.appended(window), Show::Now, "a quiet window has passed");
    }
}
