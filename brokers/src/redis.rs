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
mod connection;
mod listening;
mod marks;
mod members;
mod naming;
mod sentinel;

use std::sync::Arc;
use std::time::Duration;

use airwave_core::broker::{BrokerStats, IDEMPOTENCY_WINDOW};
use airwave_core::event::Invalid;
use airwave_core::{
    Append, Broker, BrokerError, BrokerErrorKind, ChannelName, Event, Feed, Message, PageLimit, Position, Published, Replay,
    Rules,
};
use async_trait::async_trait;
use bytes::Bytes;
use redis::{Cmd, Value};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use self::address::Address;
use self::cluster::{Cluster, Shard};
pub use self::connection::RedisConnectError;
use self::connection::{Server, lost};
use self::listening::Listener;
use self::marks::Marks;
use self::naming::{Naming, partition};
use self::sentinel::Sentinels;

/// The head outlives the history by far, so that a quiet channel keeps its chain and a listener its
/// cursor.
const HEAD_LIVES: Duration = Duration::from_secs(30 * 24 * 3600);

/// How long a call waits while nothing arrives on its connection. Below the two seconds within
/// which callers are promised an answer.
const DEADLINE: Duration = Duration::from_millis(1800);

/// The same for a page of history, which may be many megabytes: nothing else arrives before its
/// end.
const READ_DEADLINE: Duration = Duration::from_secs(5);

/// What no call exceeds, although answers to others arrive.
const LONGEST: Duration = Duration::from_secs(5);

/// How long a page of history can be. Bounds what one script does to a server that others use too.
const MOST_AT_ONCE: usize = 100_000;
const MOST_BYTES_AT_ONCE: usize = 256 << 20;

/// A script of ours, with what its first line says and what several need: the epochs, and what is
/// too old.
macro_rules! script {
    ($first:literal, $file:literal) => {
        concat!(
            $first,
            "\n",
            include_str!("redis/epoch.lua"),
            include_str!("redis/age.lua"),
            include_str!($file)
        )
    };
}

const APPEND: &str = script!("#!lua", "redis/append.lua");
const READ: &str = script!("#!lua flags=allow-oom", "redis/read.lua");
const FOUND: &str = script!("#!lua", "redis/found.lua");
const FLOOR: &str = script!("#!lua", "redis/floor.lua");
const REMEMBER: &str = script!("#!lua", "redis/remember.lua");

/// The broker. Dropping it ends its feeds and closes its connections.
pub struct Redis {
    rules: Rules,
    naming: Naming,
    servers: Servers,
    stats: BrokerStats,
    marks: Arc<Marks>,
    registered: members::Registered,
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
            registered: members::Registered::default(),
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
            self.script(channel, Script { pages, ..READ_SCRIPT }, |call, keys| {
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
        if matches!(&answer, Value::Array(parts) if parts.is_empty()) {
            let found = self.script(channel, FOUND_SCRIPT, |call, _| {
                call.arg(2).arg(&epochs);
            });
            let found = found.await;
            answer = read(true).await?;
            if matches!(&answer, Value::Array(parts) if parts.is_empty()) {
                // Not even an old one, and none can be made: a full server, say.
                found?;
            }
        }
        let mut replay = replay_of(answer).ok_or_else(|| not_ours(channel))?;
        if believed > replay.head {
            // What was there is lost. What comes must be above what the caller has had, or the
            // caller would not hear it.
            let highest = mark.max(Position::now());
            let floor = self.script(channel, FLOOR_SCRIPT, |call, _| {
                call.arg(1).arg(self.naming.floor(channel));
                call.arg(believed.0).arg(highest.0).arg(millis(HEAD_LIVES));
            });
            match floor.await {
                // Only now: what this page does not hold is published later, and lies above.
                Ok(_) => replay = replay_of(read(true).await?).ok_or_else(|| not_ours(channel))?,
                // A server that takes no writes takes no events either.
                Err(error) if error.public => {}
                Err(error) => return Err(error),
            }
        }
        self.marks.note(partition, replay.head);
        Ok(replay)
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

#[derive(Clone, Copy)]
struct Script {
    text: &'static str,
    hash: fn(&connection::Connected) -> &str,
    /// Whether its answer may be a page of history, which has a connection of its own.
    pages: bool,
    /// Whether it publishes, so that feeds wait for what it says.
    tells: bool,
    /// Whether it can be called with [`Keys::Own`]. It answers with nothing then if those are not
    /// enough.
    own: bool,
}

/// Which keys a call names. While a slot moves, a cluster refuses a call (`TRYAGAIN`) of whose keys
/// only some are where it is called. The epochs and the floor belong to a partition: one of them is
/// mostly missing, and they may have moved before the channel has, or after it. A channel with
/// events does without them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keys {
    All,
    /// The channel's own.
    Own,
}

impl Keys {
    fn others(self) -> Keys {
        match self {
            Keys::All => Keys::Own,
            Keys::Own => Keys::All,
        }
    }
}

const APPEND_SCRIPT: Script = Script {
    text: APPEND,
    hash: |connected| &connected.append,
    pages: false,
    tells: true,
    own: true,
};

const READ_SCRIPT: Script = Script {
    text: READ,
    hash: |connected| &connected.read,
    pages: false,
    tells: false,
    own: true,
};

const FOUND_SCRIPT: Script = Script {
    text: FOUND,
    hash: |connected| &connected.found,
    pages: false,
    tells: false,
    own: false,
};

const FLOOR_SCRIPT: Script = Script {
    text: FLOOR,
    hash: |connected| &connected.floor,
    pages: false,
    tells: false,
    own: false,
};

const REMEMBER_SCRIPT: Script = Script {
    text: REMEMBER,
    hash: |connected| &connected.remember,
    pages: false,
    tells: false,
    own: false,
};

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
        let partition = partition(channel);
        let known = self.marks.of(partition);
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
        let appended = self.script(channel, APPEND_SCRIPT, |call, keys| {
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
        let answer = strings(answer?).ok_or_else(|| not_ours(channel))?;
        let mut answer = answer.iter().map(|bytes| std::str::from_utf8(bytes).unwrap_or_default());
        let (outcome, position) = (answer.next(), answer.next().and_then(|text| text.parse().ok()));
        match (outcome, position) {
            (Some("ended"), _) => Err(BrokerError::ended()),
            (Some("other"), _) => Err(BrokerError::another_payload()),
            // Its end was a publish of its own, and may be missing.
            (Some("old"), Some(position)) if append.end_behind().is_some() => match self.publish(channel, Append::end()).await {
                Ok(end) => Ok(Published { duplicate: true, ..end }),
                Err(error) if error.kind == BrokerErrorKind::Ended => Ok(Published {
                    position,
                    duplicate: true,
                }),
                Err(error) => Err(error),
            },
            (Some(outcome @ ("new" | "known" | "old")), Some(position)) => {
                self.marks.note(partition, position);
                Ok(Published {
                    position,
                    duplicate: outcome != "new",
                })
            }
            _ => Err(not_ours(channel)),
        }
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
                Servers::One { shard, .. } => shard.listening.hears_itself().await,
                Servers::Cluster(cluster) => cluster.hears_itself().await,
            }
        };
        timeout(LONGEST, hears).await.unwrap_or_else(|_| Err(late()))
    }

    fn stats(&self) -> BrokerStats {
        self.stats.clone()
    }
}

fn broke_meanwhile() -> BrokerError {
    lost("the subscription broke while it was made")
}

fn late() -> BrokerError {
    BrokerError::unavailable("Redis did not answer in time").for_clients()
}

/// Something else writes to our keys, or a later version of this program did.
fn not_ours(channel: &ChannelName) -> BrokerError {
    BrokerError::unavailable(format!(
        "the keys of the channel {channel} (airwave:…{{{channel}}}:*) hold what Airwave did not write there: give it a database of its own"
    ))
}

/// Bounded to what a double counts exactly.
fn counted(limit: u64) -> u64 {
    limit.min(1 << 50)
}

/// Ages are bounded to a century: the server adds them to its clock.
fn bounded(age: Duration) -> Duration {
    age.min(Duration::from_secs(100 * 365 * 24 * 3600))
}

fn micros(age: Duration) -> u64 {
    u64::try_from(bounded(age).as_micros()).unwrap_or(u64::MAX)
}

fn millis(age: Duration) -> u64 {
    u64::try_from(bounded(age).as_millis()).unwrap_or(u64::MAX)
}

fn head_lives(age: Duration) -> Duration {
    HEAD_LIVES.max(age.saturating_mul(2))
}

/// An event as the scripts tell it: `position:previous:message`. `None`: it is not one.
fn decode(bytes: Vec<u8>) -> Option<Event> {
    let bytes = Bytes::from(bytes);
    let mut parts = bytes.splitn(3, |byte| *byte == b':');
    let position = std::str::from_utf8(parts.next()?).ok()?.parse().ok()?;
    let previous = std::str::from_utf8(parts.next()?).ok()?.parse().ok()?;
    let message = bytes.slice_ref(parts.next()?);
    Some(Event {
        position,
        previous,
        message: Message::from_stored(&message),
    })
}

fn strings(answer: Value) -> Option<Vec<Vec<u8>>> {
    let Value::Array(items) = answer else { return None };
    items
        .into_iter()
        .map(|item| match item {
            Value::BulkString(bytes) => Some(bytes),
            Value::SimpleString(text) => Some(text.into_bytes()),
            _ => None,
        })
        .collect()
}

fn replay_of(answer: Value) -> Option<Replay> {
    let Value::Array(items) = answer else { return None };
    let mut items = items.into_iter();
    let flag = |items: &mut std::vec::IntoIter<Value>| match items.next()? {
        Value::Int(flag) => Some(flag == 1),
        _ => None,
    };
    let Value::BulkString(head) = items.next()? else { return None };
    let head: Position = std::str::from_utf8(&head).ok()?.parse().ok()?;
    let (ended, complete, more) = (flag(&mut items)?, flag(&mut items)?, flag(&mut items)?);
    let events = items.map(|item| match item {
        Value::BulkString(bytes) => decode(bytes).map(Arc::new),
        _ => None,
    });
    Some(Replay {
        events: events.collect::<Option<_>>()?,
        complete,
        more,
        head,
        ended,
    })
}

#[cfg(test)]
mod tests {
    use airwave_core::event::Key;
    use airwave_core::{Data, EventName};

    use super::*;

    fn stored(message: &Message) -> Vec<u8> {
        let mut bytes = b"1748123004217002:1748123004217001:".to_vec();
        message.store(&mut bytes);
        bytes
    }

    #[test]
    fn messages_come_back_as_they_were() {
        let long = "x".repeat(255);
        for (name, key, data) in [
            ("said", None, Data::text("")),
            ("said", Some("k:1"), Data::text("a:b:c\n")),
            (&long[..], Some(&long[..]), Data::binary(vec![0, 255, b':'])),
            ("s", Some("é"), Data::json_text("[1]").unwrap()),
        ] {
            let mut message = Message::new(EventName::new(name).unwrap(), data);
            message.key = key.map(|key| Key::new(key).unwrap());
            let event = decode(stored(&message)).unwrap();
            assert_eq!((event.position.0, event.previous.0), (1748123004217002, 1748123004217001));
            assert_eq!(event.message, message);
        }
        let end = Append::end().message;
        assert!(decode(stored(&end)).unwrap().is_end());
    }

    /// A full server must stay as full as it is.
    #[test]
    fn no_script_that_works_on_a_full_server_adds_a_key() {
        let scripts = [
            APPEND,
            READ,
            FOUND,
            FLOOR,
            REMEMBER,
            members::MEMBERS,
            members::LEASES,
            members::ENTER,
        ];
        let unbounded = scripts
            .into_iter()
            .filter(|script| script.lines().next().is_some_and(|line| line.contains("allow-oom")));
        let mut counted = 0;
        for script in unbounded {
            counted += 1;
            // What READ shares with scripts that make an epoch is not called with `true` there.
            let own = script.split("-- Reads").nth(1).unwrap();
            // A head that is there is no new key.
            let own = own.replace("redis.call('HSET', KEYS[1],", "");
            for adds in ["'SET'", "'HSET'", "'SADD'", "'XADD'", "'RPUSH'", "true)"] {
                assert!(!own.contains(adds), "{adds} in {own}");
            }
            assert_eq!(own.matches("'ZADD', key, 'XX'").count(), own.matches("'ZADD'").count());
        }
        assert_eq!(counted, 2, "the scripts that read, and that read leases");
    }

    #[test]
    fn what_is_not_an_event_is_not_read_as_one() {
        let whole = stored(&Message::new(EventName::new("said").unwrap(), Data::text("text")));
        let numbers = b"1748123004217002:1748123004217001:".len();
        for length in 0..numbers {
            assert_eq!(decode(whole[..length].to_vec()), None, "the first {length} bytes of one");
        }
        for forged in ["x:1:t0000", "1:x:t0000", "-1:1:t0100a"] {
            assert_eq!(decode(forged.as_bytes().to_vec()), None, "{forged}");
        }
        for (newer, is_hidden) in [
            ("1:0:", true),
            ("1:0:t0100\n", true),
            ("1:0:tzz00a", true),
            ("1:0:t0101a\n", true),
            ("1:0:t0b00airwave.run{}", true),
            ("1:0:x0100a", false),
            ("1:0:3j01000000a", false),
        ] {
            let event = decode(newer.as_bytes().to_vec()).unwrap();
            assert_eq!((event.position.0, event.is_hidden()), (1, is_hidden), "{newer}");
        }
    }
}
