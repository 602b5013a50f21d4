//! The end of a server, aloud: what a drain waits for, and how it ended.

use std::future::Future;
use std::time::Duration;

use airwave_core::Hub;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};
use tokio_util::task::TaskTracker;

/// How often the log says what is waited for.
const PROGRESS: Duration = Duration::from_secs(2);

/// Waits for `everything` for as long as `grace`, and logs what is left meanwhile. True: all of it
/// came to its end.
pub(super) async fn wait(everything: impl Future<Output = ()>, grace: Duration, hub: &Hub, tasks: &TaskTracker) -> bool {
    let begin = Instant::now();
    let end = begin + grace;
    tracing::info!(
        sessions = hub.sessions(),
        connections = tasks.len(),
        grace = grace.as_secs_f64(),
        "draining: nothing new is taken in, sessions are told to go elsewhere, requests under way finish"
    );
    let mut progress = interval_at(begin + PROGRESS, PROGRESS);
    progress.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut everything = std::pin::pin!(everything);
    let whole = loop {
        tokio::select! {
            () = everything.as_mut() => break true,
            () = sleep_until(end) => break false,
            _ = progress.tick() => tracing::info!(
                sessions = hub.sessions(),
                connections = tasks.len(),
                seconds_left = (end - Instant::now()).as_secs(),
                "draining: waits for these sessions and connections to end"
            ),
        }
    };
    if whole {
        tracing::info!(seconds = begin.elapsed().as_secs_f64(), "drained");
    } else {
        tracing::warn!(
            sessions = hub.sessions(),
            connections = tasks.len(),
            "the grace time is over: cutting the connections that are left"
        );
    }
    whole
}
