//! When a log whose rule has a rate shows what it has: once in each window.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

pub(super) struct RateWindow(Mutex<Shown>);

struct Shown {
    last: Instant,
    /// A timer will show what comes until then.
    scheduled: bool,
}

/// What the caller does with what was appended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Show {
    Now,
    /// When this time has come. The caller then calls [`RateWindow::shown`].
    At(Instant),
    /// Nothing: another caller was told to.
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

    /// Something was appended, and windows are so long.
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

    /// What was scheduled is about to be shown.
    pub(super) fn shown(&self, due: Instant) {
        // When it was due: a timer is late by a millisecond or two, which would make sixty a second
        // fifty-six. One that is very late is made up for once, and no more.
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
