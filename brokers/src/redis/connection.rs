//! Connections to the server: which one, opening it, looking at what answers there, and keeping the
//! one for commands open.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use airwave_core::BrokerError;
use airwave_core::broker::BrokerStats;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, Pipeline, PushInfo, PushKind, RedisError, Value, cmd,
};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};

use super::address::Place;
use super::members::{ENTER, LEASES, MEMBERS};
use super::sentinel::Sentinels;
use super::{APPEND, DEADLINE, FLOOR, FOUND, READ, READ_DEADLINE, REMEMBER, Script, late};
use crate::reconnect::{Backoff, Disconnected};
use crate::silence::while_heard;

/// For the way to the server and its greeting.
const CONNECT_WITHIN: Duration = Duration::from_millis(1500);

/// How long a call waits for a connection before it says that there is none. Nothing has been sent
/// then.
const WAIT_FOR_CONNECTION: Duration = Duration::from_secs(1);

/// How long it waits while the last try to connect has failed.
const WAIT_WHILE_GONE: Duration = Duration::from_millis(400);

/// How often the connection for pages is tried out. The others carry the node's own probe.
const PAGES_PROBED_EVERY: Duration = Duration::from_secs(1);

/// Between looks at a server that loads its data.
const LOADING_PAUSE: Duration = Duration::from_millis(250);

/// How long a server, or its cluster, may take to be of use after it has loaded its data.
const IS_WHOLE_WITHIN: Duration = Duration::from_secs(10);

/// How many commands wait to be written before callers wait for their turn.
const QUEUE: usize = 4096;

/// Why no broker could be made. The text says what to do, and holds no credentials.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum RedisConnectError {
    /// The URL is not one.
    #[error("the broker's URL {0}")]
    Url(String),
    /// No server answers there.
    #[error("Redis at {address} cannot be reached: {reason}; start it, or correct the broker's URL")]
    Unreachable {
        /// Host, port and database.
        address: String,
        /// What happened.
        reason: String,
    },
    /// The server loads its data from its file. It is waited for: no caller of
    /// [`Redis::connect`](super::Redis::connect) sees this.
    #[error("Redis at {address} is loading its data")]
    Loading {
        /// Host, port and database.
        address: String,
    },
    /// The server answers, but will not have us or cannot serve us.
    #[error("Redis at {address} cannot be used: {reason}")]
    Unusable {
        /// Host, port and database.
        address: String,
        /// What happened, and what to do.
        reason: String,
    },
}

/// A failed connection that can be made again.
pub(super) fn lost(what: &str) -> BrokerError {
    BrokerError::unavailable(format!("Redis: {what}"))
}

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

    /// Opens a connection to a server that can be used. `told` is called with what a subscription
    /// brings, in order.
    pub(super) async fn open(
        &self,
        told: impl Fn(PushKind, Vec<Value>) + Send + Sync + 'static,
    ) -> Result<ServerConnection, RedisConnectError> {
        match &self.mode {
            Mode::Watched(sentinels) => {
                let place = sentinels.master().await?;
                self.at(&place).open_here(told, true).await
            }
            _ => self.open_here(told, true).await,
        }
    }

    /// A connection only to ask what the cluster looks like, which a replica may answer too.
    pub(super) async fn open_to_ask(&self) -> Result<ServerConnection, RedisConnectError> {
        self.open_here(|_, _| {}, false).await
    }

    async fn open_here(
        &self,
        told: impl Fn(PushKind, Vec<Value>) + Send + Sync + 'static,
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
                        kind => told(kind, push.data),
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
        let told = |what: &str| {
            let text = greeting
                .as_map_iter()?
                .find_map(|(name, value)| (text_of(name)? == what).then_some(value));
            text_of(text?)
        };
        let version = told("version").unwrap_or_default();
        let major: u32 = version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0);
        if major < 7 {
            return Err(self.unusable(format!("it is version {version}; install 7.0 or newer")));
        }
        match (told("mode"), &self.mode) {
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
        if master && told("role") != Some("master") {
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
        let Ok(Ok(told)) = timeout(CONNECT_WITHIN, connection.send_packed_command(&question)).await else {
            return false;
        };
        text_of(&told).is_some_and(|told| told.lines().any(|line| line.trim() == "loading:1"))
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

pub(super) fn text_of(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Some(text),
        _ => None,
    }
}

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

/// The connection for commands. Kept open by [`Commands::keep`].
pub(super) struct Commands {
    server: Server,
    current: watch::Sender<Option<Connected>>,
    stats: BrokerStats,
    /// The last try to connect has failed.
    gone: AtomicBool,
    /// A call finds no connection.
    wanted: Notify,
}

/// The connection for commands as it is now, and the scripts that its server knows.
#[derive(Clone)]
pub(super) struct Connected {
    connection: MultiplexedConnection,
    dead: Arc<Disconnected>,
    place: Place,
    pub(super) append: Arc<str>,
    pub(super) found: Arc<str>,
    pub(super) floor: Arc<str>,
    pub(super) remember: Arc<str>,
    pub(super) read: Arc<str>,
    pub(super) members: Arc<str>,
    pub(super) leases: Arc<str>,
    pub(super) enter: Arc<str>,
    /// How many answers have come.
    answers: Arc<AtomicU64>,
    opened: Instant,
}

impl Connected {
    pub(super) async fn send(&self, command: &Cmd) -> Result<Value, RedisError> {
        self.send_within(DEADLINE, command).await
    }

    async fn send_within(&self, limit: Duration, command: &Cmd) -> Result<Value, RedisError> {
        let mut connection = self.connection.clone();
        let answer = self.answered(limit, connection.send_packed_command(command)).await;
        answer.and_then(Value::extract_error)
    }

    /// Waits for an answer as long as the server answers anything within `limit`: it answers in
    /// turn, so what is answered stood before this.
    async fn answered<T>(&self, limit: Duration, answer: impl Future<Output = Result<T, RedisError>>) -> Result<T, RedisError> {
        match while_heard(limit, || self.answers(), answer).await {
            Some(answer) => {
                self.answers.fetch_add(1, Ordering::Relaxed);
                answer
            }
            None => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
        }
    }

    /// How many answers have come on this connection. As long as there are more and more of them,
    /// the server lives.
    pub(super) fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }

    /// Sends several in one piece, so that nothing comes between them; each has its own answer.
    pub(super) async fn send_all(&self, commands: &Pipeline) -> Result<Vec<Value>, RedisError> {
        self.send_all_within(DEADLINE, commands).await
    }

    async fn send_all_within(&self, limit: Duration, commands: &Pipeline) -> Result<Vec<Value>, RedisError> {
        let count = commands.cmd_iter().count();
        let mut connection = self.connection.clone();
        self.answered(limit, connection.send_packed_commands(commands, 0, count))
            .await
    }

    /// Calls a script by its hash. Where the server has forgotten it (`SCRIPT FLUSH`), which it
    /// says before doing anything, by its text. `asking`: at a server that is taking the keys over
    /// and has been named as such.
    pub(super) async fn script(
        &self,
        script: Script,
        arguments: &(impl Fn(&mut Cmd) + ?Sized),
        asking: bool,
    ) -> Result<Value, RedisError> {
        let limit = if script.pages { READ_DEADLINE } else { DEADLINE };
        let call = async |name: &str, which: &str| {
            let mut call = cmd(name);
            call.arg(which);
            arguments(&mut call);
            if !asking {
                return self.send_within(limit, &call).await;
            }
            let mut both = Pipeline::with_capacity(2);
            both.cmd("ASKING").add_command(call);
            let answer = self.send_all_within(limit, &both).await?.pop();
            answer.unwrap_or(Value::Nil).extract_error()
        };
        match call("EVALSHA", (script.hash)(self)).await {
            Err(error) if error.code() == Some("NOSCRIPT") => call("EVAL", script.text).await,
            answer => answer,
        }
    }

    /// Where it leads.
    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// It is of no use any more.
    pub(super) fn give_up(&self) {
        self.dead.tell();
    }

    /// Comes back when the server answers nothing any more.
    async fn falls_silent(&self) {
        let question = cmd("TIME");
        loop {
            sleep(PAGES_PROBED_EVERY).await;
            let answer = self.send_within(READ_DEADLINE, &question).await;
            if answer.is_err_and(|error| error.is_timeout()) {
                return;
            }
        }
    }
}

impl Commands {
    pub(super) fn new(server: Server, stats: BrokerStats) -> Arc<Commands> {
        Arc::new(Commands {
            server,
            current: watch::Sender::new(None),
            stats,
            gone: AtomicBool::new(false),
            wanted: Notify::new(),
        })
    }

    /// The first connection, made before [`Commands::keep`] is begun where it is to be seen whether
    /// it can be.
    pub(super) async fn first(&self) -> Result<(), RedisConnectError> {
        let mut first = Self::open(&self.server).await?;
        self.server.warn_of_eviction(&mut first.connection).await;
        self.current.send_replace(Some(first));
        Ok(())
    }

    async fn open(server: &Server) -> Result<Connected, RedisConnectError> {
        let ServerConnection {
            mut connection,
            dead,
            place,
        } = server.open(|_, _| {}).await?;
        let mut load = async |text: &str| -> Result<Arc<str>, RedisConnectError> {
            let loaded = timeout(
                CONNECT_WITHIN,
                connection.send_packed_command(cmd("SCRIPT").arg("LOAD").arg(text)),
            )
            .await;
            let loaded = loaded.map_err(|_| server.unreachable("no answer in time"))?;
            let hash = loaded
                .and_then(Value::extract_error)
                .map_err(|error| server.explain(&error))?;
            Ok(text_of(&hash).unwrap_or_default().into())
        };
        let (append, read) = (load(APPEND).await?, load(READ).await?);
        let (found, floor, remember) = (load(FOUND).await?, load(FLOOR).await?, load(REMEMBER).await?);
        let (members, leases, enter) = (load(MEMBERS).await?, load(LEASES).await?, load(ENTER).await?);
        Ok(Connected {
            connection,
            dead,
            place,
            append,
            found,
            floor,
            remember,
            read,
            members,
            leases,
            enter,
            answers: Arc::default(),
            opened: Instant::now(),
        })
    }

    /// Keeps a connection for pages open, from when one is wanted.
    pub(super) async fn keep_for_pages(self: Arc<Self>) {
        self.wanted.notified().await;
        self.keep_open(true).await;
    }

    /// Keeps a connection open, for ever.
    pub(super) async fn keep(self: Arc<Self>) {
        self.keep_open(false).await;
    }

    async fn keep_open(&self, for_pages: bool) {
        let mut backoff = Backoff::new();
        let mut lost = false;
        loop {
            let now = self.current.borrow().clone();
            if let Some(connected) = now {
                tokio::select! {
                    () = connected.dead.wait() => {
                        tracing::warn!(server = %self.server, at = %connected.place, for_pages, "a connection for commands is lost");
                    }
                    () = connected.falls_silent(), if for_pages => {
                        tracing::warn!(server = %self.server, at = %connected.place, "the connection for pages is silent");
                        connected.give_up();
                    }
                    () = self.server.leaves(&connected.place) => {
                        tracing::warn!(server = %self.server, at = %connected.place, "the sentinels name another master now");
                        connected.give_up();
                    }
                }
                backoff.broke();
                lost = true;
                self.current.send_replace(None);
            }
            backoff.pause(&self.wanted).await;
            match Self::open(&self.server).await {
                Ok(connected) => {
                    self.gone.store(false, Ordering::Relaxed);
                    backoff.opened();
                    tracing::info!(server = %self.server, at = %connected.place, for_pages, "connected for commands");
                    if lost {
                        self.stats.reconnected();
                    }
                    self.current.send_replace(Some(connected));
                }
                Err(error) => {
                    self.gone.store(true, Ordering::Relaxed);
                    backoff.failed(&error);
                }
            }
        }
    }

    /// The connection, if there is one soon.
    pub(super) async fn connected(&self) -> Result<Connected, BrokerError> {
        let mut current = self.current.subscribe();
        let limit = if self.gone.load(Ordering::Relaxed) {
            self.wanted.notify_one();
            WAIT_WHILE_GONE
        } else {
            WAIT_FOR_CONNECTION
        };
        let wanted = current.wait_for(|now| now.as_ref().is_some_and(|now| !now.dead.is()));
        match timeout(limit, wanted).await {
            Ok(Ok(now)) => now.clone().ok_or_else(|| lost("there is no connection")),
            _ => Err(lost("there is no connection")),
        }
    }

    /// Whether there is a connection that was made after the one of `commands`, which so leads to
    /// the same server. If not, one is asked for.
    pub(super) fn is_beside(&self, commands: &Commands) -> bool {
        let newest = commands.now().map(|connected| connected.opened);
        let own = self.now().filter(|own| !own.dead.is());
        match (own, newest) {
            (Some(own), Some(newest)) if own.opened >= newest => true,
            (Some(own), Some(_)) => {
                own.give_up();
                false
            }
            _ => {
                self.wanted.notify_one();
                false
            }
        }
    }

    /// The connection, if there is one now.
    pub(super) fn now(&self) -> Option<Connected> {
        self.current.borrow().clone()
    }

    /// What a failed call means for its caller, and for the connection.
    pub(super) fn failed(&self, connected: &Connected, error: RedisError) -> BrokerError {
        // Whether the connection is dead is found out by the node's own probe.
        if error.is_timeout() {
            return late();
        }
        // A server that has become a replica stays connected: the node must look for the new
        // master.
        if error.is_unrecoverable_error() || error.is_connection_dropped() || error.code() == Some("READONLY") {
            connected.give_up();
        }
        let cause = match error.code() {
            Some("OOM") => "Redis is full (maxmemory); give it more memory, or keep less history",
            Some("NOREPLICAS") => "Redis has too few replicas and takes no writes (min-replicas-to-write)",
            Some("MISCONF") => {
                "Redis cannot save its data and takes no writes (stop-writes-on-bgsave-error, or its append-only file)"
            }
            Some("READONLY") => "this Redis is a replica and takes no writes",
            Some("MASTERDOWN") => "this Redis is a replica that has lost its master",
            Some("LOADING") => "Redis is loading its data",
            Some("BUSY") => "Redis is busy with a script",
            Some("CLUSTERDOWN") => "the Redis cluster is down, or a part of it has no master",
            Some("TRYAGAIN") => "Redis is moving this channel to another server",
            Some("NOPERM") => {
                let message = format!("Redis refuses this user: {error}; docs/deploying.md has the ACL rule");
                return BrokerError::unavailable(message).caused_by(error);
            }
            _ => return BrokerError::unavailable(format!("Redis: {error}")).caused_by(error),
        };
        BrokerError::unavailable(cause).for_clients().caused_by(error)
    }
}
