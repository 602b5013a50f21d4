//! Where the master is now: what the sentinels say, asked before each connection and once a second.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ConnectionInfo, RedisError, Value, cmd};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::address::Place;
use super::errors::RedisConnectError;
use super::values::text_of;

/// How long one sentinel may take, connecting included.
const ANSWERS_WITHIN: Duration = Duration::from_millis(1200);

/// How long the others are waited for when one has answered.
const OTHERS_WITHIN: Duration = Duration::from_millis(250);

/// How often they are asked although nothing seems wrong: a master that was cut off with us
/// believes that it still is one.
const ASK_EVERY: Duration = Duration::from_secs(1);

pub(super) struct Sentinels {
    master: String,
    all: Vec<Sentinel>,
    known: watch::Sender<Option<KnownMaster>>,
}

/// Where a master is, and the number of the failover that made it one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct KnownMaster {
    place: Place,
    epoch: u64,
}

struct Sentinel {
    info: ConnectionInfo,
    place: Place,
    /// Kept open, so that asking costs no connection each time.
    connection: Mutex<Option<MultiplexedConnection>>,
}

/// Why a sentinel was of no use.
enum Useless {
    Silent(String),
    /// It answers, but will not have us or does not know the master.
    Refuses(String),
}

impl Sentinels {
    pub(super) fn new(all: Vec<ConnectionInfo>, master: String) -> Arc<Sentinels> {
        let all = all.into_iter().map(|info| Sentinel {
            place: Place::of(&info),
            info,
            connection: Mutex::default(),
        });
        Arc::new(Sentinels {
            master,
            all: all.collect(),
            known: watch::Sender::new(None),
        })
    }

    /// Asks them all.
    pub(super) async fn master(self: &Arc<Self>) -> Result<Place, RedisConnectError> {
        let mut asked = JoinSet::new();
        for n in 0..self.all.len() {
            let me = self.clone();
            asked.spawn(async move { me.all[n].ask(&me.master).await });
        }
        let (answers, mut useless) = gather(asked, OTHERS_WITHIN).await;
        let before = self.known.borrow().clone();
        let newest = answers.iter().max_by_key(|known| known.epoch);
        let Some(newest) = newest else {
            let address = self.to_string();
            return Err(match useless.pop() {
                Some(Useless::Refuses(reason)) => RedisConnectError::Unusable { address, reason },
                Some(Useless::Silent(reason)) => RedisConnectError::Unreachable { address, reason },
                None => RedisConnectError::Unreachable {
                    address,
                    reason: "no sentinel answers".into(),
                },
            });
        };
        // A few that were cut off tell of a master that has been replaced. Most of them together
        // may have been set up anew.
        let agreed = answers.iter().filter(|known| known.place == newest.place).count();
        if before.is_some_and(|before| newest.epoch < before.epoch) && agreed * 2 <= self.all.len() {
            return Err(RedisConnectError::Unreachable {
                address: self.to_string(),
                reason: "only sentinels answer that have missed a failover".into(),
            });
        }
        self.known.send_if_modified(|known| {
            let moved = known.as_ref() != Some(newest);
            *known = Some(newest.clone());
            moved
        });
        Ok(newest.place.clone())
    }

    /// Comes back when the master is not at this place any more.
    pub(super) async fn leaves(&self, place: &Place) {
        let mut known = self.known.subscribe();
        let elsewhere = known.wait_for(|known| known.as_ref().is_some_and(|known| known.place != *place));
        if elsewhere.await.is_err() {
            std::future::pending().await
        }
    }

    /// Keeps asking, for ever.
    pub(super) async fn watch(self: Arc<Self>) {
        loop {
            sleep(ASK_EVERY).await;
            if let Err(error) = self.master().await {
                tracing::debug!(%error, "the sentinels do not say where the master is");
            }
        }
    }
}

impl std::fmt::Display for Sentinels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (of the sentinels", self.master)?;
        for sentinel in &self.all {
            write!(f, " {}", sentinel.place)?;
        }
        f.write_str(")")
    }
}

impl Sentinel {
    async fn ask(&self, master: &str) -> Result<KnownMaster, Useless> {
        let mut kept = self.connection.lock().await;
        let asking = async {
            if let Some(connection) = &*kept
                && let Ok(answer) = question(connection.clone(), master).await
            {
                return Ok(answer);
            }
            *kept = None;
            let config = AsyncConnectionConfig::new()
                .set_connection_timeout(Some(ANSWERS_WITHIN))
                .set_response_timeout(None);
            let client = Client::open(self.info.clone()).map_err(|error| self.useless(&error))?;
            let connection = client.get_multiplexed_async_connection_with_config(&config).await;
            let connection = connection.map_err(|error| self.useless(&error))?;
            let answer = question(connection.clone(), master)
                .await
                .map_err(|error| self.useless(&error))?;
            *kept = Some(connection);
            Ok(answer)
        };
        let answer = match timeout(ANSWERS_WITHIN, asking).await {
            Ok(answer) => answer?,
            Err(_) => {
                *kept = None;
                return Err(Useless::Silent(format!(
                    "the sentinel at {} does not answer in time",
                    self.place
                )));
            }
        };
        let field = |what: &str| {
            let mut pairs = answer.as_map_iter()?;
            pairs.find_map(|(name, value)| (text_of(name)? == what).then(|| text_of(value)).flatten())
        };
        let known = || {
            Some(KnownMaster {
                place: Place {
                    host: field("ip")?.to_owned(),
                    port: field("port")?.parse().ok()?,
                },
                epoch: field("config-epoch")?.parse().ok()?,
            })
        };
        known().ok_or_else(|| Useless::Refuses(format!("what answers at {} is not a sentinel", self.place)))
    }

    fn useless(&self, error: &RedisError) -> Useless {
        let text = error.to_string();
        let advice = match error.code() {
            Some("NOAUTH" | "WRONGPASS") => {
                "wants a password of its own: write ?sentinel_password=PASSWORD, or ?sentinel_user=USER&sentinel_password=PASSWORD, at the end of the broker's URL"
            }
            _ if error.kind() == redis::ErrorKind::AuthenticationFailed => {
                "does not accept the sentinel_user and sentinel_password of the broker's URL"
            }
            _ if text.contains("No such master") => "watches no master of that name: correct it in the broker's URL",
            _ if text.contains("unknown command") => "is not a sentinel: for a server write redis://host:port",
            _ if text.contains("certificate") => "has a TLS certificate that is not accepted",
            _ => return Useless::Silent(format!("the sentinel at {}: {text}", self.place)),
        };
        Useless::Refuses(format!("the sentinel at {} {advice} ({text})", self.place))
    }
}

async fn question(mut connection: MultiplexedConnection, master: &str) -> Result<Value, RedisError> {
    let asked = cmd("SENTINEL").arg("MASTER").arg(master).to_owned();
    connection.send_packed_command(&asked).await.and_then(Value::extract_error)
}

/// What several say that are asked at once: until all have answered, or `others` after the first
/// who did. And why others did not.
pub(super) async fn gather<T: 'static, E: 'static>(mut asked: JoinSet<Result<T, E>>, others: Duration) -> (Vec<T>, Vec<E>) {
    let (mut answers, mut failed) = (Vec::new(), Vec::new());
    loop {
        let next = if answers.is_empty() {
            asked.join_next().await
        } else {
            timeout(others, asked.join_next()).await.unwrap_or(None)
        };
        match next {
            None => return (answers, failed),
            Some(Ok(Ok(answer))) => answers.push(answer),
            Some(Ok(Err(error))) => failed.push(error),
            Some(Err(_)) => {}
        }
    }
}
