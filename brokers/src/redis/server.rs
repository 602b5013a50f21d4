//! A server: opening a connection to it, and looking at what answers there.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, PushInfo, PushKind, RedisError, Value, cmd};
use tokio::time::timeout;

use super::address::Place;
use super::errors::RedisConnectError;
use super::sentinel::Sentinels;
use super::values::text_of;
use crate::reconnect::Disconnected;

/// For the way to the server and its greeting.
pub(super) const CONNECT_WITHIN: Duration = Duration::from_millis(1500);

/// How many commands wait to be written before callers wait for their turn.
const QUEUE: usize = 4096;

/// Which server, and how to log in.
#[derive(Clone)]
pub(super) struct Server {
    info: ConnectionInfo,
    /// For people.
    name: Arc<str>,
    mode: Mode,
}

#[derive(Clone)]
enum Mode {
    /// It stays where it is.
    Alone,
    /// It is where these say.
    Watched(Arc<Sentinels>),
    /// One of a cluster's.
    Clustered,
}

/// A connection, until it is found to be dead.
pub(super) struct ServerConnection {
    pub(super) connection: MultiplexedConnection,
    pub(super) dead: Arc<Disconnected>,
    /// Where it leads.
    pub(super) place: Place,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Server {
    /// One that stays where it is.
    pub(super) fn alone(info: ConnectionInfo) -> Server {
        Self::new(info, Mode::Alone)
    }

    /// Whichever is the master now.
    pub(super) fn watched(info: ConnectionInfo, sentinels: Arc<Sentinels>) -> Server {
        Server {
            name: sentinels.to_string().into(),
            mode: Mode::Watched(sentinels),
            info,
        }
    }

    /// One of a cluster's.
    pub(super) fn clustered(info: ConnectionInfo) -> Server {
        Self::new(info, Mode::Clustered)
    }

    fn new(info: ConnectionInfo, mode: Mode) -> Server {
        let database = info.redis_settings().db();
        let name = match mode {
            Mode::Clustered => Place::of(&info).to_string(),
            _ => format!("{}/{database}", Place::of(&info)),
        };
        Server {
            info,
            name: name.into(),
            mode,
        }
    }

    pub(super) fn place(&self) -> Place {
        Place::of(&self.info)
    }

    /// The same login at another place.
    pub(super) fn at(&self, place: &Place) -> Server {
        Self::new(place.instead_of(&self.info), self.mode.clone())
    }

    /// Comes back when the server is known to be elsewhere now.
    pub(super) async fn leaves(&self, place: &Place) {
        match &self.mode {
            Mode::Watched(sentinels) => sentinels.leaves(place).await,
            _ => std::future::pending().await,
        }
    }

    /// Opens a connection to a server that can be used. `on_push` is called with what a
    /// subscription brings, in order.
    pub(super) async fn open(
        &self,
        on_push: impl Fn(PushKind, Vec<Value>) + Send + Sync + 'static,
    ) -> Result<ServerConnection, RedisConnectError> {
        match &self.mode {
            Mode::Watched(sentinels) => {
                let place = sentinels.master().await?;
                self.at(&place).open_here(on_push, true).await
            }
            _ => self.open_here(on_push, true).await,
        }
    }

    /// A connection only to ask what the cluster looks like, which a replica may answer too.
    pub(super) async fn open_to_ask(&self) -> Result<ServerConnection, RedisConnectError> {
        self.open_here(|_, _| {}, false).await
    }

    async fn open_here(
        &self,
        on_push: impl Fn(PushKind, Vec<Value>) + Send + Sync + 'static,
        master: bool,
    ) -> Result<ServerConnection, RedisConnectError> {
        let client = Client::open(self.info.clone()).map_err(|error| self.explain(&error))?;
        let tls = matches!(self.info.addr(), ConnectionAddr::TcpTls { .. });
        // Rustls wants one provider for the process. An application that has chosen its own keeps
        // it.
        if tls && rustls::crypto::CryptoProvider::get_default().is_none() {
            // Fails only if other code has installed one first, which is as good.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let dead = Arc::new(Disconnected::default());
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_WITHIN))
            // The library's own is half a second; our calls have deadlines of their own.
            .set_response_timeout(None)
            .set_pipeline_buffer_size(QUEUE)
            .set_push_sender({
                let dead = dead.clone();
                move |push: PushInfo| -> Result<(), redis::aio::SendError> {
                    match push.kind {
                        PushKind::Disconnection => dead.tell(),
                        kind => on_push(kind, push.data),
                    }
                    Ok(())
                }
            });
        let opening = async {
            let connection = client.get_multiplexed_async_connection_with_config(&config).await;
            let mut connection = connection.map_err(|error| self.explain(&error))?;
            self.examine(&mut connection, master).await?;
            Ok(connection)
        };
        let connection = match timeout(2 * CONNECT_WITHIN, opening).await {
            Ok(connection) => connection?,
            Err(_) => return Err(self.unreachable("no answer in time")),
        };
        Ok(ServerConnection {
            connection,
            dead,
            place: self.place(),
        })
    }

    async fn examine(&self, connection: &mut MultiplexedConnection, master: bool) -> Result<(), RedisConnectError> {
        let greeting = connection.send_packed_command(&cmd("HELLO")).await;
        let greeting = greeting
            .and_then(Value::extract_error)
            .map_err(|error| self.explain(&error))?;
        let field = |what: &str| {
            let text = greeting
                .as_map_iter()?
                .find_map(|(name, value)| (text_of(name)? == what).then_some(value));
            text_of(text?)
        };
        let version = field("version").unwrap_or_default();
        let major: u32 = version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0);
        if major < 7 {
            return Err(self.unusable(format!("it is version {version}; install 7.0 or newer")));
        }
        match (field("mode"), &self.mode) {
            (Some("standalone"), Mode::Alone | Mode::Watched(_)) | (Some("cluster"), Mode::Clustered) => {}
            (Some("standalone"), _) => {
                return Err(self.unusable("it is no cluster; write redis:// or rediss:// in the broker's URL".into()));
            }
            (Some("cluster"), _) => {
                return Err(self.unusable(
                    "it runs in cluster mode; write redis+cluster:// or rediss+cluster:// in the broker's URL".into(),
                ));
            }
            (Some("sentinel"), _) => {
                return Err(
                    self.unusable("it is a sentinel; write redis+sentinel://host:port/MASTER-NAME in the broker's URL".into())
                );
            }
            (Some(mode), _) => return Err(self.unusable(format!("it runs in {mode} mode; name a server"))),
            (None, _) => {
                return Err(
                    self.unusable("it does not say what it is; is there a proxy before it? Name the server itself".into())
                );
            }
        }
        if master && field("role") != Some("master") {
            return Err(self.unusable("it is a replica, which may lag and takes no events; name its master".into()));
        }
        Ok(())
    }

    /// Asks whether the server may throw away what we have stored. Not every user may ask that.
    pub(super) async fn warn_of_eviction(&self, connection: &mut MultiplexedConnection) {
        let Ok(info) = connection.send_packed_command(cmd("INFO").arg("memory")).await else {
            return;
        };
        let evicts = |info: &str| {
            let is = |what: &str| info.lines().find_map(|line| line.strip_prefix(what)).map(str::trim);
            let policy = is("maxmemory_policy:")?;
            (is("maxmemory:")? != "0" && policy != "noeviction").then(|| policy.to_owned())
        };
        if let Some(policy) = text_of(&info).and_then(evicts) {
            tracing::warn!(
                server = %self, policy,
                "Redis may evict heads, history and idempotency keys when its memory is full: set maxmemory-policy noeviction"
            );
        }
    }

    pub(super) fn unreachable(&self, reason: impl Into<String>) -> RedisConnectError {
        RedisConnectError::Unreachable {
            address: self.name.to_string(),
            reason: reason.into(),
        }
    }

    /// Whether the server says that it is loading its data. Where it cannot be asked: no.
    pub(super) async fn is_loading(&self, connection: &mut MultiplexedConnection) -> bool {
        let question = cmd("INFO").arg("persistence").to_owned();
        let Ok(Ok(answer)) = timeout(CONNECT_WITHIN, connection.send_packed_command(&question)).await else {
            return false;
        };
        text_of(&answer).is_some_and(|text| text.lines().any(|line| line.trim() == "loading:1"))
    }

    fn unusable(&self, reason: String) -> RedisConnectError {
        RedisConnectError::Unusable {
            address: self.name.to_string(),
            reason,
        }
    }

    pub(super) fn explain(&self, error: &RedisError) -> RedisConnectError {
        let advice = match error.code() {
            Some("NOAUTH") => {
                "it wants a password; write it into the broker's URL, redis://:PASSWORD@host or redis://USER:PASSWORD@host"
            }
            Some("WRONGPASS") => "it does not accept this user and password; correct them in the broker's URL",
            Some("NOPERM") => "this user may not do what Airwave needs; docs/deploying.md has the ACL rule",
            Some("LOADING") => {
                return RedisConnectError::Loading {
                    address: self.name.to_string(),
                };
            }
            Some("NOPROTO" | "ERR") => {
                "it refused our greeting; Airwave needs Redis 7.0 or newer, and a database number that it has"
            }
            _ if error.kind() == redis::ErrorKind::AuthenticationFailed => {
                "it does not accept this user and password; correct them in the broker's URL"
            }
            _ if error.to_string().contains("certificate") => {
                "its TLS certificate is not accepted; name a host that it is for, and put its authority into the system's store, or into a file that SSL_CERT_FILE names"
            }
            _ => return self.unreachable(error.to_string()),
        };
        self.unusable(format!("{advice} ({error})"))
    }
}
