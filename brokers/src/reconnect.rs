//! What every broker with a connection needs to make it again: when to try, and a word that it is
//! gone.

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

/// How soon after the last try a call that finds no connection brings the next one forward.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(250);

/// Between tries to connect: from the first to the last, for ever, jittered.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// A connection that lived so long was a good one.
const GOOD_AFTER: Duration = Duration::from_secs(5);

/// Says once that a connection is of no use any more.
#[derive(Default)]
pub(crate) struct Disconnected {
    is: AtomicBool,
    lost: Notify,
}

impl Disconnected {
    pub(crate) fn tell(&self) {
        self.is.store(true, Ordering::Release);
        self.lost.notify_waiters();
    }

    pub(crate) fn is(&self) -> bool {
        self.is.load(Ordering::Acquire)
    }

    pub(crate) async fn wait(&self) {
        let lost = self.lost.notified();
        let mut lost = std::pin::pin!(lost);
        // Listening before looking, or the word is lost between the two.
        lost.as_mut().enable();
        if !self.is() {
            lost.await;
        }
    }
}

/// When to try again: soon, then less and less often, for ever. A connection that breaks at once
/// does not begin anew.
pub(crate) struct Backoff {
    wait: Duration,
    opened: Instant,
    failed: u64,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self {
            wait: BACKOFF.0,
            opened: Instant::now(),
            failed: 0,
        }
    }

    /// The first failure of an outage is worth a warning, and then every minute or so.
    pub(crate) fn failed(&mut self, error: &impl Display) {
        if self.failed.is_multiple_of(60) {
            tracing::warn!(%error, tries = self.failed + 1, "cannot connect yet");
        } else {
            tracing::debug!(%error, tries = self.failed + 1, "cannot connect yet");
        }
        self.failed += 1;
    }

    pub(crate) fn opened(&mut self) {
        self.opened = Instant::now();
        self.failed = 0;
    }

    pub(crate) fn broke(&mut self) {
        if self.opened.elapsed() >= GOOD_AFTER {
            self.wait = BACKOFF.0;
        }
    }

    /// Waits until the next try, which a caller that wants the connection brings forward.
    pub(crate) async fn pause(&mut self, wanted: &Notify) {
        // Half to all of it, so that nodes which lost the same server do not come back together.
        let random = random_bits() >> 11;
        let pause = self.wait.mul_f64(0.5 + random as f64 / (1u64 << 54) as f64);
        let at_least = pause.min(TRY_AGAIN_AFTER);
        sleep(at_least).await;
        tokio::select! {
            () = sleep(pause - at_least) => {}
            () = wanted.notified() => {}
        }
        self.wait = (self.wait * 2).min(BACKOFF.1);
    }
}

/// Not for secrets: the standard library's hasher keys are random enough to spread things and to
/// tell nodes apart.
pub(crate) fn random_bits() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish()
}
