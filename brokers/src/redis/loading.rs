//! Waiting for a server that loads its data.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::errors::RedisConnectError;

/// Between looks at a server that loads its data.
const LOADING_PAUSE: Duration = Duration::from_millis(250);

/// How long a server, or its cluster, may take to be of use after it has loaded its data.
const IS_WHOLE_WITHIN: Duration = Duration::from_secs(10);

/// Waits while a server loads its data. As long as it says so it works, and only it knows how much
/// there is: so there is no bound but the patience of whatever has started this node.
#[derive(Default)]
pub(super) struct Loading {
    since: Option<Instant>,
    last: Option<Instant>,
}

impl Loading {
    /// What to do with the outcome of a try to connect. `None`, after a pause: try again.
    pub(super) async fn judge<T>(&mut self, opened: Result<T, RedisConnectError>) -> Option<Result<T, RedisConnectError>> {
        match opened {
            Err(RedisConnectError::Loading { address }) => {
                if self.since.is_none() {
                    tracing::info!(server = address, "Redis is loading its data: waiting for it");
                }
                let now = Instant::now();
                self.since.get_or_insert(now);
                self.last = Some(now);
                sleep(LOADING_PAUSE).await;
                None
            }
            // A cluster is whole only a moment after its nodes have loaded their data.
            Err(_) if self.last.is_some_and(|last| last.elapsed() < IS_WHOLE_WITHIN) => {
                sleep(LOADING_PAUSE).await;
                None
            }
            opened => {
                if let (Ok(_), Some(since)) = (&opened, self.since) {
                    let seconds = since.elapsed().as_secs_f64();
                    tracing::info!(seconds, "Redis has loaded its data");
                }
                Some(opened)
            }
        }
    }
}
