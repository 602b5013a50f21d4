//! Who is in a channel: a second, small stream, in which every subject holds its newest message
//! alone.
//!
//! **What a node says of a channel is in at most 64 messages**, by the members' hashes:
//! `airwave.members.c.NAME.NODE.BUCKET` holds the whole bucket. The node is its only writer and
//! knows what is in it, so nothing is read to write. A channel of 10,000 members is listed with 64
//! questions for each node, and for a member that joins, its node rewrites a 64th of its entries.
//!
//! **What has changed stands in a header** of the last message of a call. The stream tells that
//! again without the rest (`headers_only`), under `airwave.changes.c.NAME.NODE.BUCKET`; so a watch
//! is one plain subscription. Each node counts what it tells of a channel: a watch that finds a
//! hole ends.
//!
//! **The list of leases is one message**, `airwave.members.roll`, which a node replaces only after
//! it has read it. All times in it are those at which the stream's leader stored something, so no
//! node's clock counts. A node sends its heartbeat by writing the list of leases, at the time that
//! the server gives that very message. The dead stay in it for a while, so that they cannot come
//! back before what they said is removed.
//!
//! The stream's leader alone is asked, since replicas may lag. Nothing here needs more than version
//! 2.10.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use airwave_core::directory::{Heartbeat, MemberEntry, NODE_EXPIRES, NodeId, Watch, WatchSender};
use airwave_core::shrink::shrink;
use airwave_core::{BrokerError, ChannelName, Directory};
use async_nats::{HeaderMap, Message, Subscriber};
use async_trait::async_trait;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use super::connection::{Answer, Connection, Link, NatsConnectError, PermissionWatch, code, lost, unstored};
use super::stored::token;
use super::{EXPECTED, NEVER, Nats};
use crate::reconnect::Disconnected;

/// In so many messages a node's members of a channel are divided. A bucket of 10,000 members holds
/// 156: some 10 KB.
const BUCKETS: u64 = 64;

/// What is told at once, in bytes. A header may have 64 KiB, and bytes need a third more there.
const TELL_AT_MOST: usize = 32 << 10;

/// How many questions and answers are under way at the same time.
const AT_ONCE: usize = 32;

/// How long a dead node stays in the list of leases. What it was still saying when it was found
/// dead has come by then.
const DEAD_ARE_KEPT: Duration = Duration::from_secs(60);

/// How much a node does for the dead, and for channels that it has left, with each heartbeat.
const TIDY_FOR: Duration = Duration::from_millis(700);

const TELLS: &str = "Airwave-Told";

/// An entry that is cleared, where the length of its value would stand.
const CLEARED: u16 = u16::MAX;

/// What this broker said about members.
#[derive(Default)]
pub(super) struct MemberAccounts {
    said: Mutex<HashMap<(NodeId, ChannelName), Account>>,
    /// Channels without members, of which only empty messages are left.
    empty: Mutex<HashSet<(NodeId, ChannelName)>>,
    /// When each of our lives sent its last heartbeat; `None`: it is over. Entries of a life that
    /// counts as dead would only take room.
    answered: Mutex<HashMap<NodeId, Option<Instant>>>,
}

/// One call at a time: each builds on what the one before said.
type Account = Arc<tokio::sync::Mutex<ChannelEntries>>;

/// What one node has said of one channel.
#[derive(Default)]
struct ChannelEntries {
    buckets: BTreeMap<u64, Bucket>,
    /// How often something was told.
    told: u64,
    /// It is no longer in the table: another one counts.
    over: bool,
}

/// By member: stamp and value.
type Bucket = BTreeMap<Arc<str>, (u64, Bytes)>;

/// The nodes, and how they stand at times of the server, in µs.
#[derive(Debug, Default, PartialEq)]
struct Leases {
    /// The message that it was read from; zero: there is none.
    sequence: u64,
    nodes: BTreeMap<NodeId, LeaseState>,
    /// Leases of a later version that this one does not understand. They are written back as they
    /// are: every node writes the whole list.
    others: serde_json::Map<String, Value>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum LeaseState {
    /// Its heartbeat was then.
    Heartbeat(u64),
    /// It was found dead or has left then.
    Gone(u64),
}

/// The way to the stream of members.
struct Way {
    link: Arc<Link>,
    /// The stream is gone, or has no leader.
    gone: Arc<Disconnected>,
}

impl Way {
    /// Stores something in the stream, if it will have it.
    async fn call(&self, subject: String, headers: Option<HeaderMap>, payload: Bytes) -> Result<Answer, BrokerError> {
        self.link.call_of(&self.gone, subject, headers, payload).await
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Nothing here panics half-way through a change that matters.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl Connection {
    fn members_stream(&self) -> String {
        format!("{}-members", self.settings.prefix)
    }

    fn members(&self, what: &str) -> String {
        format!("{}.members.{what}", self.settings.prefix)
    }

    fn changes(&self, what: &str) -> String {
        format!("{}.changes.{what}", self.settings.prefix)
    }

    /// Makes the stream of members if it is missing, and judges one that is there.
    pub(super) async fn examine_members(&self, link: &Link, first: bool) -> Result<(), NatsConnectError> {
        let (name, settings) = (self.members_stream(), &self.settings);
        let wanted = json!({
            "name": name,
            "description": "Airwave: who is in which channel",
            "subjects": [self.members(">")],
            "retention": "limits",
            "discard": "old",
            "max_consumers": -1,
            "max_msgs": -1,
            "max_bytes": -1,
            "max_msg_size": -1,
            "max_msgs_per_subject": 1,
            "storage": settings.storage,
            "num_replicas": settings.replicas,
            "republish": { "src": self.members(">"), "dest": self.changes(">"), "headers_only": true },
            "metadata": { "airwave-format": "1" },
        });
        let not_made = |text: &str| {
            self.unusable(format!(
                "it does not make or change the stream {name} with replicas={} and storage={} ({text}); give it as many servers and as much \
                 room as that takes, or write other replicas into the broker's URL",
                settings.replicas, settings.storage
            ))
        };
        for _ in 0..3 {
            let config = match self.reached(link.api(format!("STREAM.INFO.{name}"), &Value::Null).await)? {
                Answer::Done(info) => info["config"].clone(),
                Answer::Refused {
                    code: code::NO_SUCH_STREAM,
                    ..
                } => {
                    // A split cluster may say so of a stream that exists, and lose it by this. Then
                    // the nodes announce all their members again, and no member counts as gone.
                    tracing::info!(server = %settings, stream = name, "making the stream");
                    match self.reached(link.api(format!("STREAM.CREATE.{name}"), &wanted).await)? {
                        Answer::Done(_) => return Ok(()),
                        // Another node was faster.
                        Answer::Refused {
                            code: code::NAME_TAKEN, ..
                        } => continue,
                        Answer::Refused {
                            code: code::SUBJECTS_TAKEN,
                            ..
                        } => {
                            return Err(self.unusable(format!(
                                "another stream takes the subjects {}; delete that one, or choose another prefix (?prefix=NAME in the broker's URL)",
                                self.members(">")
                            )));
                        }
                        // Events are served meanwhile. The first caller that needs the members
                        // makes it later.
                        Answer::Refused { code, text } if first && code::FULL.contains(&code) => {
                            tracing::warn!(server = %settings, stream = name, text, "presence waits: JetStream is full");
                            return Ok(());
                        }
                        Answer::Refused { text, .. } => return Err(not_made(&text)),
                    }
                }
                Answer::Refused { text, .. } => return Err(self.unreachable(text)),
            };
            let differs = ["subjects", "retention", "max_msgs_per_subject", "storage"]
                .into_iter()
                .find(|what| config[what] != wanted[what]);
            let told = ["src", "dest", "headers_only"]
                .iter()
                .any(|what| config["republish"][what] != wanted["republish"][what]);
            let forgets = config["max_age"].as_u64().is_some_and(|age| age > 0);
            let format = config["metadata"]["airwave-format"] != wanted["metadata"]["airwave-format"];
            let differs = differs
                .or(told.then_some("republish"))
                .or(forgets.then_some("max_age"))
                .or(format.then_some("metadata"));
            if let Some(what) = differs {
                // Nothing in it is worth keeping: nodes say it all again.
                return Err(self.unusable(format!(
                    "its stream {name} is not as Airwave makes it ({what} differs); delete it (nats stream rm {name}), or choose another prefix \
                     (?prefix=NAME in the broker's URL)"
                )));
            }
            // As with the events: a node that only comes back changes nothing.
            if first && config["num_replicas"] != wanted["num_replicas"] {
                let mut changed = config;
                changed["num_replicas"] = wanted["num_replicas"].clone();
                tracing::info!(server = %settings, stream = name, "changing the stream's replicas");
                if let Answer::Refused { text, .. } = self.reached(link.api(format!("STREAM.UPDATE.{name}"), &changed).await)? {
                    return Err(not_made(&text));
                }
            }
            return Ok(());
        }
        Err(self.unreachable("the stream comes and goes"))
    }
}

impl Nats {
    /// A connection, and the stream of members behind it. Rules without presence make none at the
    /// start, so it may have to be made.
    async fn way(&self) -> Result<Way, BrokerError> {
        let link = self.connection.link().await?;
        let mut members = link.members.lock().await;
        let gone = match members.as_ref().filter(|gone| !gone.is()) {
            Some(gone) => gone.clone(),
            None => {
                let examined = self.connection.examine_members(&link, false).await;
                examined.map_err(|error| BrokerError::unavailable(error.to_string()))?;
                members.insert(Arc::default()).clone()
            }
        };
        drop(members);
        Ok(Way { link, gone })
    }

    /// Asks JetStream about the stream of members. If it is gone, all watches end, and the next
    /// call makes it anew.
    async fn ask_members(&self, way: &Way, what: &str, body: &Value) -> Result<Option<Value>, BrokerError> {
        match way
            .link
            .api(format!("{what}.{}", self.connection.members_stream()), body)
            .await?
        {
            Answer::Done(answer) => Ok(Some(answer)),
            Answer::Refused {
                code: code::NO_MESSAGE, ..
            } => Ok(None),
            Answer::Refused { code, text } => {
                if code == code::NO_SUCH_STREAM {
                    way.gone.tell();
                }
                Err(lost(&text))
            }
        }
    }

    /// The server's time, and the subjects that a filter lets through. Nothing has been done before
    /// it, so a stream that is gone is made anew here.
    async fn survey(&self, filter: &str) -> Result<(Way, u64, Vec<String>), BrokerError> {
        let mut way = self.way().await?;
        let question = json!({ "subjects_filter": filter });
        let mut info = self.ask_members(&way, "STREAM.INFO", &question).await;
        if info.is_err() && way.gone.is() {
            way = self.way().await?;
            info = self.ask_members(&way, "STREAM.INFO", &question).await;
        }
        let info = info?.unwrap_or_default();
        let time = info["ts"].as_str().and_then(time).ok_or_else(wrong_leases)?;
        // The server names 100,000 at most: those of 1,500 nodes.
        let subjects = info["state"]["subjects"].as_object();
        let subjects = subjects.map(|subjects| subjects.keys().cloned().collect());
        Ok((way, time, subjects.unwrap_or_default()))
    }

    /// The newest message of a subject, as the leader has it: its sequence, its time, what is in
    /// it.
    async fn newest_of(&self, way: &Way, subject: &str) -> Result<Option<(u64, u64, Vec<u8>)>, BrokerError> {
        let answer = self
            .ask_members(way, "STREAM.MSG.GET", &json!({ "last_by_subj": subject }))
            .await?;
        let Some(answer) = answer else { return Ok(None) };
        let message = &answer["message"];
        let data = BASE64_STANDARD.decode(message["data"].as_str().unwrap_or_default()).ok();
        let read = || Some((message["seq"].as_u64()?, time(message["time"].as_str()?)?, data?));
        read().map(Some).ok_or_else(wrong_leases)
    }

    async fn leases(&self, way: &Way) -> Result<Leases, BrokerError> {
        match self.newest_of(way, &self.connection.members("roll")).await? {
            Some((sequence, written, bytes)) => Leases::read(sequence, written, &bytes).ok_or_else(wrong_leases),
            None => Ok(Leases::default()),
        }
    }

    /// Replaces the list of leases that was read. Returns false if another node was faster.
    async fn replace_leases(&self, way: &Way, leases: &Leases, by: Option<NodeId>) -> Result<bool, BrokerError> {
        let mut headers = HeaderMap::new();
        headers.insert(EXPECTED, leases.sequence.to_string());
        match way
            .call(self.connection.members("roll"), Some(headers), leases.text(by))
            .await?
        {
            Answer::Done(_) => Ok(true),
            Answer::Refused { code, .. } if code::WRONG_LAST.contains(&code) => Ok(false),
            Answer::Refused { code, text } => Err(unstored(code, &text)),
        }
    }

    /// Removes what a node has said, everywhere.
    async fn expire(&self, way: &Way, node: NodeId) -> Result<(), BrokerError> {
        let filter = self.connection.members(&format!("c.*.{node}.*"));
        self.ask_members(way, "STREAM.PURGE", &json!({ "filter": filter })).await?;
        Ok(())
    }

    fn said(&self, node: NodeId, channel: &ChannelName) -> Account {
        lock(&self.members.said).entry((node, channel.clone())).or_default().clone()
    }

    /// Tells and stores some entries, which are few enough for it.
    async fn say(
        &self,
        way: &Way,
        channel: &ChannelName,
        said: &mut ChannelEntries,
        entries: &[MemberEntry],
    ) -> Result<(), BrokerError> {
        let Some(first) = entries.first() else { return Ok(()) };
        let mut touched = Vec::new();
        for entry in entries {
            let number = bucket_of(&entry.member);
            let bucket = said.buckets.entry(number).or_default();
            match &entry.value {
                Some(value) => drop(bucket.insert(entry.member.clone(), (entry.stamp, value.clone()))),
                None => drop(bucket.remove(&entry.member)),
            }
            if !touched.contains(&number) {
                touched.push(number);
            }
        }
        let place = format!("c.{}.{}", token(channel), first.node);
        let mut messages: Vec<(String, Bytes)> = Vec::new();
        for number in touched {
            let bucket = said.buckets.get(&number).into_iter().flatten();
            let bytes = encode(bucket.map(|(member, (stamp, value))| (&**member, *stamp, Some(value))));
            messages.push((self.connection.members(&format!("{place}.{number}")), bytes.into()));
        }
        // Told with the last: when it is told, it can be listed.
        let Some((subject, last)) = messages.pop() else {
            return Ok(());
        };
        let others = stream::iter(messages).map(|(subject, bytes)| put(way, subject, None, bytes));
        others.buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await?;
        said.told += 1;
        let mut told = said.told.to_be_bytes().to_vec();
        told.extend(encode(
            entries
                .iter()
                .map(|entry| (&*entry.member, entry.stamp, entry.value.as_ref())),
        ));
        let mut headers = HeaderMap::new();
        headers.insert(TELLS, BASE64_STANDARD.encode(told));
        let stored = put(way, subject, Some(headers), last).await;
        said.buckets.retain(|_, bucket| !bucket.is_empty());
        if said.buckets.is_empty() {
            lock(&self.members.empty).insert((first.node, channel.clone()));
        }
        stored
    }

    /// Removes the empty messages of channels where this node has no members any more.
    async fn tidy(&self, way: &Way) -> Result<(), BrokerError> {
        let empty: Vec<_> = lock(&self.members.empty).iter().cloned().collect();
        let tidied = stream::iter(empty).map(|(node, channel)| async move {
            let said = self.said(node, &channel);
            let mut said = said.lock().await;
            if said.buckets.is_empty() {
                let filter = self.connection.members(&format!("c.{}.{node}.*", token(&channel)));
                self.ask_members(way, "STREAM.PURGE", &json!({ "filter": filter })).await?;
                // A call that waits for the lock looks into the table again.
                said.over = true;
                lock(&self.members.said).remove(&(node, channel.clone()));
            }
            lock(&self.members.empty).remove(&(node, channel));
            Ok(())
        });
        let tidied = tidied.buffer_unordered(AT_ONCE).try_collect().await;
        shrink(&mut *lock(&self.members.said));
        shrink(&mut *lock(&self.members.empty));
        tidied
    }

    /// A life of ours is over, or was never known: what it said does not count.
    fn forget_life(&self, node: NodeId) {
        lock(&self.members.said).retain(|(other, _), _| *other != node);
        lock(&self.members.empty).retain(|(other, _)| *other != node);
    }

    async fn beat_once(&self, node: NodeId) -> Result<(Way, Heartbeat, Vec<NodeId>), BrokerError> {
        let mut buried = HashSet::new();
        loop {
            let (way, now, _) = self.survey(&self.connection.members("roll")).await?;
            let mut leases = self.leases(&way).await?;
            let dead = leases.judge(now);
            let known = matches!(leases.nodes.get(&node), Some(LeaseState::Heartbeat(_)));
            let gone = matches!(leases.nodes.get(&node), Some(LeaseState::Gone(_)));
            // Whatever was left under that name must not come back with it.
            if !known && !gone && buried.insert(node) {
                self.forget_life(node);
                self.expire(&way, node).await?;
            }
            for forgotten in leases.forgotten(now) {
                if buried.insert(forgotten) {
                    self.expire(&way, forgotten).await?;
                }
                leases.nodes.remove(&forgotten);
            }
            let by = (!gone).then_some(node);
            if let Some(node) = by {
                leases.nodes.insert(node, LeaseState::Heartbeat(now));
            }
            if self.replace_leases(&way, &leases, by).await? {
                let living = leases.living();
                return Ok((way, Heartbeat { known, living }, dead));
            }
        }
    }

    async fn list_once(&self, channel: &ChannelName) -> Result<Vec<MemberEntry>, BrokerError> {
        let filter = self.connection.members(&format!("c.{}.>", token(channel)));
        let (way, now, subjects) = self.survey(&filter).await?;
        if subjects.is_empty() {
            return Ok(Vec::new());
        }
        // Reads the list of leases only now: a node in the list had sent a heartbeat before.
        let mut leases = self.leases(&way).await?;
        leases.judge(now);
        let living: HashSet<NodeId> = leases.living().into_iter().collect();
        let subjects = subjects.into_iter().filter_map(|subject| {
            let node = node_of(&subject)?;
            living.contains(&node).then_some((subject, node))
        });
        let way = &way;
        let buckets = stream::iter(subjects).map(|(subject, node)| async move {
            let Some((_, _, bytes)) = self.newest_of(way, &subject).await? else {
                return Ok(Vec::new());
            };
            // What cannot be read is of a later version, whose members are not told here.
            Ok(decode(node, &bytes).unwrap_or_default())
        });
        let buckets: Vec<Vec<MemberEntry>> = buckets.buffer_unordered(AT_ONCE).try_collect().await?;
        Ok(buckets.into_iter().flatten().collect())
    }

    async fn open_watch(&self, channel: &ChannelName) -> Result<Watch, BrokerError> {
        let way = self.way().await?;
        let subject = self.connection.changes(&format!("c.{}.>", token(channel)));
        let mut forbidden = way.link.forbidden.watch("Subscription", &subject);
        let live = way.link.client.subscribe(subject).await;
        let live = live.map_err(|error| lost("the connection broke").caused_by(error))?;
        // What is refused goes to the leader the way that members' messages go, and so behind the
        // subscription.
        let mut headers = HeaderMap::new();
        headers.insert(EXPECTED, NEVER.to_string());
        match way.call(self.connection.members("none"), Some(headers), Bytes::new()).await? {
            Answer::Refused { code, .. } if code::WRONG_LAST.contains(&code) => {}
            Answer::Refused { text, .. } => return Err(lost(&text)),
            Answer::Done(_) => return Err(wrong_leases()),
        }
        forbidden.look()?;
        let (stop, stopped) = oneshot::channel();
        let (sender, watch) = Watch::new(move || drop(stop));
        tokio::spawn(show(way, live, forbidden, stopped, sender));
        Ok(watch)
    }
}

/// Shows a watch what the stream tells, until something is missing, the connection or the stream is
/// lost, the server takes the subscription away, or the watch is dropped.
async fn show(
    way: Way,
    mut live: Subscriber,
    mut forbidden: PermissionWatch,
    stopped: oneshot::Receiver<()>,
    watch: WatchSender,
) {
    let (dead, gone) = (way.link.dead.clone(), way.gone.clone());
    // Held by a quiet watch, it would keep a dead connection's client.
    drop(way);
    let show = async {
        let mut last: HashMap<NodeId, u64> = HashMap::new();
        while let Some(message) = live.next().await {
            // A message beside the last one of its call.
            if message.headers.as_ref().is_none_or(|headers| headers.get(TELLS).is_none()) {
                continue;
            }
            let Some((number, entries)) = told(&message) else {
                tracing::warn!(subject = %message.subject, "a message is not one of ours: its watch ends");
                return;
            };
            let Some(first) = entries.first() else { continue };
            // One that begins to count has said nothing before.
            let before = last.insert(first.node, number);
            if number != 1 && before.is_some_and(|before| before + 1 != number) {
                return;
            }
            if !entries.into_iter().all(|entry| watch.push(entry)) {
                return;
            }
        }
    };
    tokio::select! {
        () = show => {}
        _ = stopped => {}
        () = dead.wait() => {}
        () = gone.wait() => {}
        _ = forbidden.wait() => {}
    }
}

/// Puts a bucket in the place of the one before.
async fn put(way: &Way, subject: String, headers: Option<HeaderMap>, bucket: Bytes) -> Result<(), BrokerError> {
    match way.call(subject, headers, bucket).await? {
        Answer::Done(_) => Ok(()),
        Answer::Refused {
            code: code::TOO_LARGE,
            text,
        } => Err(BrokerError::rejected(format!("NATS: {text}"))),
        Answer::Refused { text, .. } => Err(lost(&text)),
    }
}

/// What a message tells: how often its node had told of the channel, with this; and the entries.
fn told(message: &Message) -> Option<(u64, Vec<MemberEntry>)> {
    let header = message.headers.as_ref()?.get(TELLS)?;
    let bytes = BASE64_STANDARD.decode(header.as_str()).ok()?;
    let (number, entries) = bytes.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*number), decode(node_of(&message.subject)?, entries)?))
}

#[async_trait]
impl Directory for Nats {
    async fn set(&self, channel: &ChannelName, entries: &[MemberEntry]) -> Result<(), BrokerError> {
        let Some(first) = entries.first() else { return Ok(()) };
        let answered = lock(&self.members.answered).get(&first.node).copied();
        if answered.is_some_and(|at| at.is_none_or(|at| at.elapsed() > NODE_EXPIRES)) {
            return Err(lost("this node has no lease: it sends a heartbeat first"));
        }
        let set = async {
            let way = self.way().await?;
            loop {
                let said = self.said(first.node, channel);
                let mut said = said.lock().await;
                if said.over {
                    continue;
                }
                for part in parts(entries) {
                    self.say(&way, channel, &mut said, part).await?;
                }
                return Ok(());
            }
        };
        self.within(set).await
    }

    async fn list(&self, channel: &ChannelName) -> Result<Vec<MemberEntry>, BrokerError> {
        self.within(self.list_once(channel)).await
    }

    async fn watch(&self, channel: &ChannelName) -> Result<Watch, BrokerError> {
        self.within(self.open_watch(channel)).await
    }

    async fn heartbeat(&self, node: NodeId) -> Result<Heartbeat, BrokerError> {
        let asked = Instant::now();
        let (way, heartbeat, dead) = self.within(self.beat_once(node)).await?;
        let lives = heartbeat.living.contains(&node).then_some(asked);
        lock(&self.members.answered).insert(node, lives);
        let tidy = async {
            for dead in dead {
                self.expire(&way, dead).await?;
                tracing::debug!(node = %dead, "what a dead node had said is removed");
            }
            self.tidy(&way).await
        };
        // What is not done is done by a later heartbeat, this node's or another's: the dead lie in
        // the list of leases for a while.
        if let Ok(Err(error)) = timeout(TIDY_FOR, tidy).await {
            tracing::debug!(%error, "what the dead said is not all removed yet");
        }
        Ok(heartbeat)
    }

    async fn leave(&self, node: NodeId) -> Result<(), BrokerError> {
        lock(&self.members.answered).insert(node, None);
        self.forget_life(node);
        let leave = async {
            let way = loop {
                let (way, now, _) = self.survey(&self.connection.members("roll")).await?;
                let mut leases = self.leases(&way).await?;
                if !matches!(leases.nodes.get(&node), Some(LeaseState::Heartbeat(_))) {
                    break way;
                }
                leases.nodes.insert(node, LeaseState::Gone(now));
                if self.replace_leases(&way, &leases, None).await? {
                    break way;
                }
            };
            self.expire(&way, node).await
        };
        self.within(leave).await
    }
}

impl Leases {
    /// `written`: when the server stored it, which is its heartbeat.
    fn read(sequence: u64, written: u64, bytes: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(bytes).ok()?;
        let (mut nodes, mut others) = (BTreeMap::new(), serde_json::Map::new());
        for (node, stands) in value["nodes"].as_object()? {
            let known = match (node.parse(), stands[0].as_str(), stands[1].as_u64()) {
                (Ok(node), Some("beat"), Some(at)) => nodes.insert(node, LeaseState::Heartbeat(at)).is_none(),
                (Ok(node), Some("gone"), Some(at)) => nodes.insert(node, LeaseState::Gone(at)).is_none(),
                _ => false,
            };
            if !known {
                others.insert(node.clone(), stands.clone());
            }
        }
        if let Some(Ok(by)) = value["by"].as_str().map(str::parse) {
            nodes.insert(by, LeaseState::Heartbeat(written));
        }
        Some(Self { sequence, nodes, others })
    }

    fn text(&self, by: Option<NodeId>) -> Bytes {
        let nodes = self.nodes.iter().map(|(node, stands)| {
            let (what, at) = match stands {
                LeaseState::Heartbeat(at) => ("beat", at),
                LeaseState::Gone(at) => ("gone", at),
            };
            (node.to_string(), json!([what, at]))
        });
        let nodes: serde_json::Map<String, Value> = nodes.chain(self.others.clone()).collect();
        json!({ "by": by.map(|by| by.to_string()), "nodes": nodes })
            .to_string()
            .into()
    }

    /// Marks those that have sent no heartbeat for too long, and names them.
    fn judge(&mut self, now: u64) -> Vec<NodeId> {
        let mut dead = Vec::new();
        for (node, stands) in &mut self.nodes {
            if matches!(stands, LeaseState::Heartbeat(at) if now.saturating_sub(*at) > micros(NODE_EXPIRES)) {
                *stands = LeaseState::Gone(now);
                dead.push(*node);
            }
        }
        dead
    }

    fn living(&self) -> Vec<NodeId> {
        let living = self
            .nodes
            .iter()
            .filter(|(_, stands)| matches!(stands, LeaseState::Heartbeat(_)));
        living.map(|(node, _)| *node).collect()
    }

    /// Those that were gone long ago.
    fn forgotten(&self, now: u64) -> Vec<NodeId> {
        let long_gone =
            |stands: &LeaseState| matches!(stands, LeaseState::Gone(at) if now.saturating_sub(*at) > micros(DEAD_ARE_KEPT));
        let forgotten = self.nodes.iter().filter(|(_, stands)| long_gone(stands));
        forgotten.map(|(node, _)| *node).collect()
    }
}

/// Something else writes to our subjects, or a later version of this program did.
fn wrong_leases() -> BrokerError {
    lost("the stream of members holds what Airwave did not write there: give it a prefix or an account of its own")
}

/// The same as long as the node runs, and of no meaning to others.
fn bucket_of(member: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    member.hash(&mut hasher);
    hasher.finish() % BUCKETS
}

/// `….NODE.BUCKET`: neither they nor the channel's token hold a dot.
fn node_of(subject: &str) -> Option<NodeId> {
    subject.rsplit('.').nth(1)?.parse().ok()
}

/// The entries in parts that can each be told at once.
fn parts(entries: &[MemberEntry]) -> impl Iterator<Item = &[MemberEntry]> {
    let mut rest = entries;
    std::iter::from_fn(move || {
        let mut size = 0;
        let fits = rest.iter().take_while(|entry| {
            size += 11 + entry.member.len() + entry.value.as_ref().map_or(0, Bytes::len);
            size <= TELL_AT_MOST
        });
        // One is never too large.
        let count = fits.count().max(1).min(rest.len());
        let part;
        (part, rest) = rest.split_at(count);
        (!part.is_empty()).then_some(part)
    })
}

/// For each entry its stamp, member and value, with their lengths before them.
fn encode<'a>(entries: impl Iterator<Item = (&'a str, u64, Option<&'a Bytes>)>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (member, stamp, value) in entries {
        bytes.extend_from_slice(&stamp.to_be_bytes());
        // At most 255 bytes, and at most 2 KiB.
        bytes.push(member.len() as u8);
        bytes.extend_from_slice(member.as_bytes());
        let length = value.map_or(CLEARED, |value| value.len() as u16);
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(value.map(|value| &value[..]).unwrap_or_default());
    }
    bytes
}

/// `None`: it is not one of ours.
fn decode(node: NodeId, mut rest: &[u8]) -> Option<Vec<MemberEntry>> {
    let mut entries = Vec::new();
    while !rest.is_empty() {
        let mut take = |count: usize| {
            let (taken, left) = rest.split_at_checked(count)?;
            rest = left;
            Some(taken)
        };
        let stamp = u64::from_be_bytes(take(8)?.try_into().ok()?);
        let length = usize::from(*take(1)?.first()?);
        let member: Arc<str> = std::str::from_utf8(take(length)?).ok()?.into();
        let value = match u16::from_be_bytes(take(2)?.try_into().ok()?) {
            CLEARED => None,
            length => Some(Bytes::copy_from_slice(take(length.into())?)),
        };
        entries.push(MemberEntry {
            node,
            member,
            stamp,
            value,
        });
    }
    Some(entries)
}

/// A time as servers write it, `2026-01-31T23:59:59.123456789Z`, in µs since 1970.
fn time(text: &str) -> Option<u64> {
    let (date, clock) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<u64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let mut clock = clock.splitn(3, ':').map(|part| part.parse::<u64>().ok());
    let (hours, minutes, seconds) = (clock.next()??, clock.next()??, clock.next()??);
    let fraction = format!("{:0<6}", fraction.get(..6).unwrap_or(fraction)).parse::<u64>().ok()?;
    let good = (1970..10_000).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    let good = good && hours < 24 && minutes < 60 && seconds <= 60;
    good.then_some(())?;
    // Years that begin in March have their leap day at the end.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    Some((((days * 24 + hours) * 60 + minutes) * 60 + seconds) * 1_000_000 + fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_as_they_were_and_in_parts_that_fit() {
        let node = NodeId::draw().next();
        let entry = |member: &str, value: Option<&[u8]>| MemberEntry {
            node,
            member: member.into(),
            stamp: u64::MAX - 1,
            value: value.map(Bytes::copy_from_slice),
        };
        let long = "\0".repeat(255);
        let mut entries = vec![entry("", Some(b"")), entry("é*?[a]{}", None)];
        entries.extend((0..100).map(|_| entry(&long, Some(&[255; 2048]))));
        let bytes = |entries: &[MemberEntry]| {
            encode(
                entries
                    .iter()
                    .map(|entry| (&*entry.member, entry.stamp, entry.value.as_ref())),
            )
        };
        assert_eq!(decode(node, &bytes(&entries)).unwrap(), entries);
        let short = bytes(&entries[..2]);
        for length in 0..short.len() {
            let whole = decode(node, &short[..length]).is_none_or(|part| entries.starts_with(&part));
            assert!(whole, "the first {length} bytes of it");
        }
        let parts: Vec<&[MemberEntry]> = parts(&entries).collect();
        assert!(parts.iter().all(|part| bytes(part).len() <= TELL_AT_MOST));
        assert_eq!(parts.concat(), entries);
        assert!(parts.len() < 10);
        assert_eq!(super::parts(&[]).count(), 0);
    }

    #[test]
    fn times_are_read() {
        assert_eq!(time("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(time("2000-02-29T12:00:00.5Z"), Some(951_825_600_500_000));
        assert_eq!(time("2026-11-23T02:03:10.123456789Z"), Some(1_795_399_390_123_456));
        for wrong in [
            "",
            "2026-11-23",
            "2026-11-23T02:03:10+01:00",
            "2026-13-01T00:00:00Z",
            "x-1-1T0:0:0Z",
        ] {
            assert_eq!(time(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_node_that_has_not_beaten_is_gone_and_in_the_end_forgotten() {
        let (one, other) = (NodeId::draw(), NodeId::draw());
        let mut leases = Leases::default();
        leases.nodes.insert(one, LeaseState::Heartbeat(1));
        leases.nodes.insert(other, LeaseState::Heartbeat(2));
        // The heartbeat of the writer was when the server stored it.
        let mut leases = Leases::read(7, 5_000_000, &leases.text(Some(other))).unwrap();
        assert_eq!((leases.sequence, leases.judge(micros(NODE_EXPIRES) + 1).len()), (7, 0));
        let at = micros(NODE_EXPIRES) + 2;
        assert_eq!(leases.judge(at), [one]);
        assert_eq!((leases.living(), leases.judge(at)), (vec![other], vec![]));
        let again = Leases::read(8, 0, &leases.text(None)).unwrap();
        assert_eq!(again.nodes, leases.nodes);
        assert_eq!(again.forgotten(at + micros(DEAD_ARE_KEPT)), []);
        assert_eq!(again.forgotten(at + micros(DEAD_ARE_KEPT) + 1), [one]);
        assert_eq!(Leases::read(1, 1, b"{}"), None);
    }

    #[test]
    fn leases_of_a_later_version_are_kept_as_they_are() {
        let node = NodeId::draw();
        let written = json!({
            "by": "another form",
            "nodes": { node.to_string(): ["beat", 7], "n2": ["beat", 8], NodeId::draw().to_string(): ["paused", 9, "x"] },
        });
        let leases = Leases::read(7, 5, written.to_string().as_bytes()).unwrap();
        assert_eq!(leases.living(), [node]);
        let again: Value = serde_json::from_slice(&leases.text(None)).unwrap();
        assert_eq!(again["nodes"], written["nodes"]);
    }
}
