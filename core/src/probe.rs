//! The node pings its broker every second. After a while without an answer it informs its
//! listeners.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::backbone::Backbone;
use crate::not_ready::NotReady;
use crate::orders::Orders;
use crate::sessions::Sessions;

/// The node pings its broker each time this interval has passed.
const EVERY: Duration = Duration::from_secs(1);
/// A node that is without its broker for this time informs its listeners.
const STALE_AFTER: Duration = Duration::from_secs(10);

/// Holds the answer to the last ping; `None`: the first ping has no answer yet.
type LastAnswer = Option<Result<(), NotReady>>;

/// The probe holds what the node knows of its broker.
pub(crate) struct BrokerProbe(watch::Receiver<LastAnswer>);

impl BrokerProbe {
    /// Starts to ping the broker, for as long as there are sessions to inform. The caller must be
    /// within a tokio runtime.
    pub(crate) fn start(sessions: &Arc<Sessions>) -> Self {
        let (answers, last) = watch::channel(None);
        tokio::spawn(watch_broker(Arc::downgrade(sessions), answers));
        Self(last)
    }

    /// Returns the broker's last answer. Waits only for the answer to the first ping.
    ///
    /// # Errors
    /// Returns the reason why the node cannot deliver.
    pub(crate) async fn answer(&self, backbone: &Backbone) -> Result<(), NotReady> {
        let mut last = self.0.clone();
        let first = timeout(backbone.limits.broker_timeout, last.wait_for(Option::is_some)).await;
        match first {
            Ok(Ok(answer)) => answer.clone().unwrap_or(Ok(())),
            Ok(Err(_)) | Err(_) => Err(NotReady::starting(backbone.broker.name())),
        }
    }
}

/// A silence begins when the broker stops answering.
struct Silence {
    since: Instant,
    /// Says whether the node has informed its listeners.
    announced: bool,
}

async fn watch_broker(sessions: Weak<Sessions>, answers: watch::Sender<LastAnswer>) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut silence = None;
    loop {
        ticks.tick().await;
        let Some(backbone) = sessions.upgrade().map(|sessions| sessions.backbone.clone()) else {
            return;
        };
        let answer = match timeout(backbone.limits.broker_timeout, backbone.broker.ping()).await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err("the broker does not answer".to_owned()),
        };
        let Some(sessions) = sessions.upgrade() else { return };
        backbone.metrics.broker_up.set(i64::from(answer.is_ok()));
        let name = backbone.broker.name();
        answers.send_replace(Some(answer.clone().map_err(|error| NotReady::broker(name, &error))));
        match answer {
            Ok(()) => {
                if let Some(Silence { since, .. }) = silence.take() {
                    tracing::info!(seconds = since.elapsed().as_secs(), "the broker is back");
                }
            }
            Err(error) => note_silence(&mut silence, &sessions, &error),
        }
    }
}

/// Notes that one more ping has failed.
fn note_silence(silence: &mut Option<Silence>, sessions: &Sessions, error: &str) {
    let silence = silence.get_or_insert_with(|| {
        tracing::warn!(broker = sessions.backbone.broker.name(), error, "the broker is gone");
        Silence {
            since: Instant::now(),
            announced: false,
        }
    });
    if !silence.announced && silence.since.elapsed() >= STALE_AFTER {
        silence.announced = true;
        sessions.give_all(Orders::STALE);
    }
}
