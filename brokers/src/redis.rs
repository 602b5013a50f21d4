//! Redis, version 7 or newer, as the backbone of several nodes.
//!
//! **Truth is the store, pub/sub is speed.** Each channel has a *head* (a hash: its newest
//! position, its base, whether it has ended) and a *stream* (its history, each entry's id is the
//! event's position). Publishing is one script, `append.lua`, which does all of it or nothing and
//! then tells the live subscribers; reading is one script, `read.lua`, so head and history always
//! fit together. A channel without events has no key of its own: `epoch.lua` tells how a listener
//! resumes there all the same.
//!
//! A node has two connections to each server that has events, however many channels it follows: one
//! for commands, pipelined, and one for subscriptions (`listening`). A third one is made for the
//! first page of history, so that publishes and the node's own probe never stand behind large
//! pages. No connection is trusted because it is open: every node publishes to itself, and what
//! does not hear itself for a while is dead. Nothing that may have happened is ever sent twice in
//! secret.
//!
//! One server has these connections. Behind sentinels (`sentinel`) that is whichever server they
//! name. On a cluster (`cluster`) each master has them, and a map says which partition is where.
//! How all of it is named: `naming`.

mod address;
mod cluster;
mod commands;
mod directory;
mod errors;
mod listening;
mod loading;
mod marks;
mod members;
mod naming;
mod scripts;
mod sentinel;
mod server;
mod shard;
mod times;
mod values;

use std::sync::Arc;

use airwave_core::broker::{BrokerStats, IDEMPOTENCY_WINDOW};
use airwave_core::event::Invalid;
use airwave_core::{
    Append, Broker, BrokerError, BrokerErrorKind, ChannelName, Feed, PageLimit, Position, Published, Replay, Rules,
};
use async_trait::async_trait;
use redis::{Cmd, Value};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use self::address::Address;
use self::cluster::Cluster;
pub use self::errors::RedisConnectError;
use self::errors::{broke_meanwhile, late, not_ours};
use self::listening::Listener;
use self::marks::Marks;
use self::members::Registered;
use self::naming::{Naming, partition};
use self::scripts::{Keys, Script};
use self::sentinel::Sentinels;
use self::server::Server;
use self::shard::Shard;
use self::times::{HEAD_LIVES, LONGEST, head_lives, micros, millis};
use self::values::{is_nothing, replay_of, strings};

/// How long a page of history can be. Bounds what one script does to a server that others use too.
const MOST_AT_ONCE: usize = 100_000;
const MOST_BYTES_AT_ONCE: usize = 256 << 20;

/// The broker. Dropping it ends its feeds and closes its connections.
pub struct Redis {
    rules: Rules,
    naming: Naming,
    servers: Servers,
    stats: BrokerStats,
    marks: Arc<Marks>,
    registered: Registered,
}

enum Servers {
    One {
        shard: Shard,
        /// Asks the sentinels, if there are any.
        watch: Option<AbortHandle>,
    },
    Cluster(Arc<Cluster>),
}

/// Checks a URL without asking anybody: what is wrong with it, and what to write.
///
/// # Errors
/// A sentence without its subject, and without any part of the URL.
pub fn check(url: &str) -> Result<(), Invalid> {
    match Address::parse(url) {
        Ok(_) => Ok(()),
        Err(RedisConnectError::Url(wrong)) => Err(Invalid::new(wrong)),
        Err(other) => Err(Invalid::new(other.to_string())),
    }
}

impl Redis {
    /// Connects to what `url` names, and keeps of each channel what `rules` say. Belongs to the
    /// tokio runtime that it is awaited in.
    ///
    /// - `redis://[user:password@]host[:port][/database]`: one server;
    /// - `redis+sentinel://[user:password@]host[:port],host…/MASTER-NAME[/database]`: the server that
    ///   these sentinels call the master. User and password are the server's; sentinels that want
    ///   some have their own, `?sentinel_user=…&sentinel_password=…`;
    /// - `redis+cluster://[user:password@]host[:port],host…`: a cluster, of which some nodes are
    ///   named.
    ///
    /// Each with `rediss` for TLS, to sentinels too.
    ///
    /// # Errors
    /// The URL is wrong, or the server cannot be reached, refuses us, or is not one that we can
    /// use; the text says what to do. Later outages are no errors of this kind: they are waited
    /// for.
    pub async fn connect(url: &str, rules: Rules) -> Result<Redis, RedisConnectError> {
        let stats = BrokerStats::default();
        let marks = Arc::new(Marks::default());
        let (naming, servers) = match Address::parse(url)? {
            Address::Server(info) => {
                let database = info.redis_settings().db();
                let (naming, shard) = one(Server::alone(info), database, &stats, &marks).await?;
                (naming, Servers::One { shard, watch: None })
            }
            Address::Sentinels {
                sentinels,
                master,
                server,
            } => {
                let sentinels = Sentinels::new(sentinels, master);
                let database = server.redis_settings().db();
                let (naming, shard) = one(Server::watched(server, sentinels.clone()), database, &stats, &marks).await?;
                let watch = Some(tokio::spawn(sentinels.watch()).abort_handle());
                (naming, Servers::One { shard, watch })
            }
            Address::Cluster(seeds) => {
                let cluster = Cluster::connect(seeds, stats.clone(), marks.clone()).await?;
                (Naming::Partitions, Servers::Cluster(cluster))
            }
        };
        Ok(Redis {
            rules,
            naming,
            servers,
            stats,
            marks,
            registered: Registered::default(),
        })
    }

    /// `pages`: over the connection for pages.
    async fn read(
        &self,
        channel: &ChannelName,
        after: Option<Position>,
        limit: PageLimit,
        pages: bool,
    ) -> Result<Replay, BrokerError> {
        let events = limit.events.min(MOST_AT_ONCE);
        let bytes = limit.bytes.min(MOST_BYTES_AT_ONCE);
        let history = self.rules.history(channel);
        let epochs = self.naming.epochs(channel);
        let partition = partition(channel);
        let mark = self.marks.of(partition);
        let believed = marks::believed(after, mark);
        let read = async |any_epoch: bool| {
            self.script(channel, Script { pages, ..Script::READ }, |call, keys| {
                call.arg(if keys == Keys::All { 4 } else { 2 });
                call.arg(self.key(channel, "head")).arg(self.key(channel, "stream"));
                if keys == Keys::All {
                    call.arg(&epochs);
                }
                call.arg(after.map(|after| after.to_string()).unwrap_or_default());
                call.arg(events).arg(bytes);
                call.arg(micros(history.age)).arg(millis(head_lives(history.age)));
                call.arg(u8::from(any_epoch));
                call.arg(mark.max(believed).0);
                call.arg(counted(history.events as u64)).arg(counted(history.bytes as u64));
            })
            .await
        };
        let mut answer = read(false).await?;
        if is_nothing(&answer) {
            let found = self.script(channel, Script::FOUND, |call, _| {
                call.arg(2).arg(&epochs);
            });
            let found = found.await;
            answer = read(true).await?;
            if is_nothing(&answer) {
                // Not even an old one, and none can be made: a full server, say.
                found?;
            }
        }
        let mut replay = replay_of(answer).ok_or_else(|| not_ours(channel))?;
        // What was there is lost. What comes must be above what the caller has had, or the caller
        // would not hear it.
        if believed > replay.head && self.raise_floor(channel, believed, mark).await? {
            // Only now: what this page does not hold is published later, and lies above.
            replay = replay_of(read(true).await?).ok_or_else(|| not_ours(channel))?;
        }
        self.marks.note(partition, replay.head);
        Ok(replay)
    }

    /// Makes the channel go on above a position. False: the server takes no writes, and so no
    /// events either.
    async fn raise_floor(&self, channel: &ChannelName, above: Position, mark: Position) -> Result<bool, BrokerError> {
        let highest = mark.max(Position::now());
        let floor = self.script(channel, Script::FLOOR, |call, _| {
            call.arg(1).arg(self.naming.floor(channel));
            call.arg(above.0).arg(highest.0).arg(millis(HEAD_LIVES));
        });
        match floor.await {
            Ok(_) => Ok(true),
            Err(error) if error.public => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What became of a publish, as the script answers.
    async fn published(&self, channel: &ChannelName, append: &Append, answer: Value) -> Result<Published, BrokerError> {
        let answer = strings(answer).ok_or_else(|| not_ours(channel))?;
        let mut answer = answer.iter().map(|bytes| std::str::from_utf8(bytes).unwrap_or_default());
        let (outcome, position) = (answer.next(), answer.next().and_then(|text| text.parse().ok()));
        match (outcome, position) {
            (Some("ended"), _) => Err(BrokerError::ended()),
            (Some("other"), _) => Err(BrokerError::another_payload()),
            // Its end was a publish of its own, and may be missing.
            (Some("old"), Some(position)) if append.end_behind().is_some() => match self.publish(channel, Append::end()).await {
                Ok(end) => Ok(Published::duplicate_of(end.position)),
                Err(error) if error.kind == BrokerErrorKind::Ended => Ok(Published::duplicate_of(position)),
                Err(error) => Err(error),
            },
            (Some(outcome @ ("new" | "known" | "old")), Some(position)) => {
                self.marks.note(partition(channel), position);
                Ok(match outcome {
                    "new" => Published::new(position),
                    _ => Published::duplicate_of(position),
                })
            }
            _ => Err(not_ours(channel)),
        }
    }

    /// Begins to listen where the channel is.
    async fn join(&self, channel: &ChannelName) -> Result<Listener, BrokerError> {
        match &self.servers {
            Servers::One { shard, .. } => shard.listening.join(channel).await,
            Servers::Cluster(cluster) => cluster.join(channel).await,
        }
    }

    fn key(&self, channel: &ChannelName, what: &str) -> String {
        self.naming.key(channel, what)
    }

    /// Calls a script where the channel is. All keys must be the channel's own or its partition's.
    async fn script(
        &self,
        channel: &ChannelName,
        script: Script,
        arguments: impl Fn(&mut Cmd, Keys),
    ) -> Result<Value, BrokerError> {
        match &self.servers {
            Servers::One { shard, .. } => {
                let commands = shard.commands_for(script);
                let connected = commands.connected().await?;
                let answer = connected
                    .script(script, &|call: &mut Cmd| arguments(call, Keys::All), false)
                    .await;
                answer.map_err(|error| commands.failed(&connected, error))
            }
            Servers::Cluster(cluster) => cluster.script(channel, script, arguments).await,
        }
    }
}

/// One server, or the one that sentinels name.
async fn one(
    server: Server,
    database: i64,
    stats: &BrokerStats,
    marks: &Arc<Marks>,
) -> Result<(Naming, Shard), RedisConnectError> {
    let naming = Naming::Database(database);
    // There is no map that could be wrong.
    let astray = Arc::new(Notify::new());
    let shard = Shard::connect(server, naming, stats.clone(), marks.clone(), 0, astray).await?;
    Ok((naming, shard))
}

impl Drop for Redis {
    fn drop(&mut self) {
        if let Servers::One { watch: Some(watch), .. } = &self.servers {
            watch.abort();
        }
    }
}

#[async_trait]
impl Broker for Redis {
    fn name(&self) -> &'static str {
        "redis"
    }

    async fn publish(&self, channel: &ChannelName, append: Append) -> Result<Published, BrokerError> {
        let history = self.rules.history(channel);
        let known = self.marks.of(partition(channel));
        let mut event = Vec::new();
        append.message.store(&mut event);
        let (mut end, mut end_weight) = (Vec::new(), 0);
        if let Some(message) = append.end_behind() {
            message.store(&mut end);
            end_weight = message.weight();
        }
        let fingerprint = match append.idempotency_key {
            Some(_) => append.fingerprint().to_string(),
            None => String::new(),
        };
        let appended = self.script(channel, Script::APPEND, |call, keys| {
            let count = if keys == Keys::All { 5 } else { 2 };
            call.arg(count + usize::from(append.idempotency_key.is_some()));
            call.arg(self.key(channel, "head")).arg(self.key(channel, "stream"));
            if keys == Keys::All {
                call.arg(&self.naming.epochs(channel)).arg(self.naming.floor(channel));
            }
            if let Some(idempotency_key) = &append.idempotency_key {
                call.arg(self.key(channel, &format!("key:{}", idempotency_key.as_str())));
            }
            call.arg(&event[..]).arg(append.message.weight());
            call.arg(self.naming.wire(channel)).arg(u8::from(append.ends_channel()));
            call.arg(counted(history.events as u64))
                .arg(micros(history.age))
                .arg(counted(history.bytes as u64));
            call.arg(millis(head_lives(history.age))).arg(millis(history.age).max(1));
            call.arg(millis(IDEMPOTENCY_WINDOW)).arg(self.naming.publish());
            call.arg(known.0).arg(&fingerprint).arg(&end[..]).arg(end_weight);
        });
        let Ok(answer) = timeout(LONGEST, appended).await else {
            return Err(late());
        };
        self.published(channel, &append, answer?).await
    }

    async fn follow(&self, channel: &ChannelName) -> Result<Feed, BrokerError> {
        let follow = async {
            let listener = self.join(channel).await?;
            // Only now: what is published after this answer is heard.
            let head = self.read(channel, None, PageLimit::events(0), false).await?.head;
            listener.open(head).ok_or_else(broke_meanwhile)
        };
        timeout(LONGEST, follow).await.unwrap_or_else(|_| Err(late()))
    }

    async fn open(&self, channel: &ChannelName, limit: PageLimit) -> Result<(Feed, Replay), BrokerError> {
        let open = async {
            let listener = self.join(channel).await?;
            // Only now, as above. The page says what the head is.
            let replay = self.read(channel, None, limit, true).await?;
            let feed = listener.open(replay.head).ok_or_else(broke_meanwhile)?;
            Ok((feed, replay))
        };
        timeout(LONGEST, open).await.unwrap_or_else(|_| Err(late()))
    }

    async fn replay(&self, channel: &ChannelName, after: Option<Position>, limit: PageLimit) -> Result<Replay, BrokerError> {
        timeout(LONGEST, self.read(channel, after, limit, true))
            .await
            .unwrap_or_else(|_| Err(late()))
    }

    async fn ping(&self) -> Result<(), BrokerError> {
        let hears = async {
            match &self.servers {
                Servers::One { shard, .. } => shard.listening.probe_itself().await,
                Servers::Cluster(cluster) => cluster.probe_itself().await,
            }
        };
        timeout(LONGEST, hears).await.unwrap_or_else(|_| Err(late()))
    }

    fn stats(&self) -> BrokerStats {
        self.stats.clone()
    }
}

/// Bounded to what a double counts exactly.
fn counted(limit: u64) -> u64 {
    limit.min(1 << 50)
}
