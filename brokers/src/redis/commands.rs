//! The connection for commands: calling scripts on it, and keeping it open.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use airwave_core::BrokerError;
use airwave_core::broker::BrokerStats;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, Pipeline, RedisError, Value, cmd};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};

use super::address::Place;
use super::errors::{RedisConnectError, late, lost};
use super::scripts::{Script, TEXTS};
use super::server::{CONNECT_WITHIN, Server, ServerConnection};
use super::times::{DEADLINE, READ_DEADLINE};
use super::values::text_of;
use crate::reconnect::{Backoff, Disconnected};
use crate::silence::while_active;

/// How long a call waits for a connection before it says that there is none. Nothing has been sent
/// then.
const WAIT_FOR_CONNECTION: Duration = Duration::from_secs(1);

/// How long it waits while the last try to connect has failed.
const WAIT_WHILE_GONE: Duration = Duration::from_millis(400);

/// How often the connection for pages is tried out. The others carry the node's own probe.
const PAGES_PROBED_EVERY: Duration = Duration::from_secs(1);

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
    /// The hash of each script, by its number.
    hashes: Arc<[Arc<str>]>,
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
        match while_active(limit, || self.answers(), answer).await {
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
        match call("EVALSHA", &self.hashes[script.number]).await {
            Err(error) if error.code() == Some("NOSCRIPT") => call("EVAL", script.text()).await,
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
        let mut hashes = Vec::with_capacity(TEXTS.len());
        for text in TEXTS {
            hashes.push(load(text).await?);
        }
        Ok(Connected {
            connection,
            dead,
            place,
            hashes: hashes.into(),
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
