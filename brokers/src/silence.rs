//! How long a call waits for its answer: as long as its connection is silent.
//!
//! Many calls share one connection, and a busy server answers them one after the other. A time that
//! counted from when a call was made would be over while the call still waits behind others, on a
//! connection that works. So the time counts from the last thing that was heard.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, timeout};

/// How often a call that waits looks whether anything was heard, as a part of its limit. So much
/// earlier than the limit the silence may be called one, and never later.
const LOOKS: u32 = 18;

/// Waits for `call` until nothing has been heard for `limit`. `activity` is a number that changes
/// whenever something is heard on the connection. `None`: it was silent for that long.
pub(crate) async fn while_active<T>(limit: Duration, activity: impl Fn() -> u64, call: impl Future<Output = T>) -> Option<T> {
    let mut call = pin!(call);
    let (mut before, mut since) = (activity(), Instant::now());
    loop {
        let look = Instant::now();
        if let Ok(done) = timeout(limit / LOOKS, &mut call).await {
            return Some(done);
        }
        let now = activity();
        if now != before {
            (before, since) = (now, look);
        } else if since.elapsed() >= limit {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::atomic::{AtomicU64, Ordering};

    use tokio::time::sleep;

    use super::*;

    const LIMIT: Duration = Duration::from_millis(1800);

    #[tokio::test(start_paused = true)]
    async fn a_call_on_a_silent_connection_ends_after_its_limit() {
        let begin = Instant::now();
        assert_eq!(while_active(LIMIT, || 7, pending::<()>()).await, None);
        assert_eq!(begin.elapsed(), LIMIT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_behind_others_waits_as_long_as_they_are_answered() {
        let activity = AtomicU64::new(0);
        let others = async {
            for _ in 0..10 {
                sleep(Duration::from_secs(1)).await;
                activity.fetch_add(1, Ordering::Relaxed);
            }
            pending::<()>().await
        };
        let begin = Instant::now();
        let answered = while_active(LIMIT, || activity.load(Ordering::Relaxed), sleep(Duration::from_secs(8)));
        tokio::select! {
            answered = answered => assert_eq!(answered, Some(())),
            () = others => {}
        }
        assert_eq!(begin.elapsed(), Duration::from_secs(8));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_counts_from_the_last_thing_that_was_heard() {
        let activity = AtomicU64::new(0);
        let once = async {
            sleep(Duration::from_secs(1)).await;
            activity.fetch_add(1, Ordering::Relaxed);
            pending::<()>().await
        };
        let begin = Instant::now();
        tokio::select! {
            silent = while_active(LIMIT, || activity.load(Ordering::Relaxed), pending::<()>()) => assert_eq!(silent, None),
            () = once => {}
        }
        let silent = begin.elapsed() - Duration::from_secs(1);
        assert!(silent <= LIMIT && silent >= LIMIT - 2 * LIMIT / LOOKS, "{silent:?}");
    }
}
