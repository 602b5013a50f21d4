//! A node counts an outage of the broker as channels that cannot be healed, and as calls without an
//! answer. It logs each kind when it begins, and sums it up when it is over.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::broker::BrokerError;

/// Bounds how many logs heal at once. When a connection to the broker breaks, all of a node's logs
/// heal. Together they would delay everything else that the node asks of its broker. Its publishes
/// and its own probe are among those calls.
const HEALS_AT_ONCE: usize = 512;
/// Bounds how many of those have no listeners, or failed at their last try. These logs must not
/// delay the others.
const OTHER_HEALS_AT_ONCE: usize = 64;

/// Logs take turns to heal, in the order in which they ask.
pub(crate) struct HealTurns {
    /// Gives the turns of logs with listeners.
    pub(crate) awaited: Semaphore,
    pub(crate) other: Semaphore,
}

impl Default for HealTurns {
    fn default() -> Self {
        Self {
            awaited: Semaphore::new(HEALS_AT_ONCE),
            other: Semaphore::new(OTHER_HEALS_AT_ONCE),
        }
    }
}

/// The node counts the channels that cannot be healed. So it logs an outage once, and not for each
/// channel and try.
#[derive(Default)]
pub(crate) struct Outage(Mutex<Troubled>);

#[derive(Default)]
pub(crate) struct Troubled {
    /// Holds the time at which the first channel failed.
    pub(crate) since: Option<Instant>,
    /// Counts the channels that cannot be healed now.
    pub(crate) now: usize,
    /// Counts the channels that could not be healed since the outage began.
    pub(crate) in_all: usize,
    pub(crate) tries: u64,
}

impl Outage {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Troubled> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An outage is over when the broker answers and has answered every call for this long. Part of a
/// cluster may be away while the rest answers.
const ANSWERS_AGAIN: Duration = Duration::from_secs(5);

/// The node counts the calls that it refused because the broker did not answer. So it logs an
/// outage once, and not for each call.
#[derive(Default)]
pub(crate) struct Unanswered {
    /// Says whether there are any such calls. Each call reads this flag.
    any: AtomicBool,
    calls: Mutex<Option<Calls>>,
}

struct Calls {
    first: Instant,
    last: Instant,
    count: u64,
}

impl Unanswered {
    fn lock(&self) -> MutexGuard<'_, Option<Calls>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a call was refused with `error`.
    pub(crate) fn refused(&self, error: &BrokerError) {
        let now = Instant::now();
        let mut calls = self.lock();
        let first = calls.is_none();
        let Calls { last, count, .. } = calls.get_or_insert(Calls {
            first: now,
            last: now,
            count: 0,
        });
        (*last, *count) = (now, *count + 1);
        self.any.store(true, Ordering::Relaxed);
        drop(calls);
        if first {
            tracing::warn!(%error, "the broker is unavailable; publishes and the like are refused until it answers, and then summed up");
        } else {
            tracing::debug!(%error, "the broker is unavailable");
        }
    }

    /// Notes that a call was answered. Each call runs this: it reads one flag while there is no
    /// outage.
    pub(crate) fn answered(&self) {
        if !self.any.load(Ordering::Relaxed) {
            return;
        }
        let over = {
            let mut calls = self.lock();
            let over = calls.take_if(|calls| calls.last.elapsed() >= ANSWERS_AGAIN);
            self.any.store(calls.is_some(), Ordering::Relaxed);
            over
        };
        if let Some(Calls { first, last, count }) = over {
            let seconds = (last - first).as_secs_f64();
            tracing::info!(refused = count, seconds, "the broker answers again");
        }
    }
}
