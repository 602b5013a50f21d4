//! The directory: saying, listing and watching members, and the heartbeats of nodes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use airwave_core::directory::{Heartbeat, MemberEntry, NODE_EXPIRES, NodeId, Watch, WatchSender};
use airwave_core::shrink::shrink;
use airwave_core::{BrokerError, ChannelName, Directory};
use async_nats::{HeaderMap, Subscriber};
use async_trait::async_trait;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use super::entries::{TELLS, bucket_of, decode, encode, node_of, parts, update_of};
use super::leases::{LeaseState, Leases, wrong_leases};
use super::{Account, ChannelEntries, lock};
use crate::nats::Nats;
use crate::nats::clock::time_of;
use crate::nats::errors::{code, lost, unstored};
use crate::nats::link::{Answer, Link, PermissionWatch};
use crate::nats::messages::{EXPECTED, NEVER};
use crate::nats::stored::token;
use crate::reconnect::Disconnected;

/// How many questions and answers are under way at the same time.
const AT_ONCE: usize = 32;

/// How much a node does for the dead, and for channels that it has left, with each heartbeat.
const TIDY_FOR: Duration = Duration::from_millis(700);

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
        let time = info["ts"].as_str().and_then(time_of).ok_or_else(wrong_leases)?;
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
        let read = || Some((message["seq"].as_u64()?, time_of(message["time"].as_str()?)?, data?));
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

    fn account(&self, node: NodeId, channel: &ChannelName) -> Account {
        lock(&self.members.accounts)
            .entry((node, channel.clone()))
            .or_default()
            .clone()
    }

    /// Tells and stores some entries, which are few enough for it.
    async fn say(
        &self,
        way: &Way,
        channel: &ChannelName,
        account: &mut ChannelEntries,
        entries: &[MemberEntry],
    ) -> Result<(), BrokerError> {
        let Some(first) = entries.first() else { return Ok(()) };
        let mut touched = Vec::new();
        for entry in entries {
            let number = bucket_of(&entry.member);
            let bucket = account.buckets.entry(number).or_default();
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
            let bucket = account.buckets.get(&number).into_iter().flatten();
            let bytes = encode(bucket.map(|(member, (stamp, value))| (&**member, *stamp, Some(value))));
            messages.push((self.connection.members(&format!("{place}.{number}")), bytes.into()));
        }
        // Told with the last: when it is told, it can be listed.
        let Some((subject, last)) = messages.pop() else {
            return Ok(());
        };
        let others = stream::iter(messages).map(|(subject, bytes)| put(way, subject, None, bytes));
        others.buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await?;
        account.updates += 1;
        let mut update = account.updates.to_be_bytes().to_vec();
        update.extend(encode(
            entries
                .iter()
                .map(|entry| (&*entry.member, entry.stamp, entry.value.as_ref())),
        ));
        let mut headers = HeaderMap::new();
        headers.insert(TELLS, BASE64_STANDARD.encode(update));
        let stored = put(way, subject, Some(headers), last).await;
        account.buckets.retain(|_, bucket| !bucket.is_empty());
        if account.buckets.is_empty() {
            lock(&self.members.empty).insert((first.node, channel.clone()));
        }
        stored
    }

    /// Removes the empty messages of channels where this node has no members any more.
    async fn tidy(&self, way: &Way) -> Result<(), BrokerError> {
        let empty: Vec<_> = lock(&self.members.empty).iter().cloned().collect();
        let tidied = stream::iter(empty).map(|(node, channel)| async move {
            let account = self.account(node, &channel);
            let mut account = account.lock().await;
            if account.buckets.is_empty() {
                let filter = self.connection.members(&format!("c.{}.{node}.*", token(&channel)));
                self.ask_members(way, "STREAM.PURGE", &json!({ "filter": filter })).await?;
                // A call that waits for the lock looks into the table again.
                account.over = true;
                lock(&self.members.accounts).remove(&(node, channel.clone()));
            }
            lock(&self.members.empty).remove(&(node, channel));
            Ok(())
        });
        let tidied = tidied.buffer_unordered(AT_ONCE).try_collect().await;
        shrink(&mut *lock(&self.members.accounts));
        shrink(&mut *lock(&self.members.empty));
        tidied
    }

    /// A life of ours is over, or was never known: what it said does not count.
    fn forget_life(&self, node: NodeId) {
        lock(&self.members.accounts).retain(|(other, _), _| *other != node);
        lock(&self.members.empty).retain(|(other, _)| *other != node);
    }

    async fn heartbeat_once(&self, node: NodeId) -> Result<(Way, Heartbeat, Vec<NodeId>), BrokerError> {
        let mut expired = HashSet::new();
        loop {
            let (way, now, _) = self.survey(&self.connection.members("roll")).await?;
            let mut leases = self.leases(&way).await?;
            let dead = leases.judge(now);
            let known = matches!(leases.nodes.get(&node), Some(LeaseState::Heartbeat(_)));
            let gone = matches!(leases.nodes.get(&node), Some(LeaseState::Gone(_)));
            // Whatever was left under that name must not come back with it.
            if !known && !gone && expired.insert(node) {
                self.forget_life(node);
                self.expire(&way, node).await?;
            }
            for forgotten in leases.forgotten(now) {
                if expired.insert(forgotten) {
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
                return Ok((way, Heartbeat::new(known, living), dead));
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
            let Some((number, entries)) = update_of(&message) else {
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
                let account = self.account(first.node, channel);
                let mut account = account.lock().await;
                if account.over {
                    continue;
                }
                for part in parts(entries) {
                    self.say(&way, channel, &mut account, part).await?;
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
        let (way, heartbeat, dead) = self.within(self.heartbeat_once(node)).await?;
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
