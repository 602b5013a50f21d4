//! Who is in a channel, as one node knows it: its own members, those that the directory tells of,
//! and what has changed, for listeners to read.
//!
//! A **presence set** is to presence what a log is to events: a table of members, and a ring of the
//! last changes. A listener holds a place in that ring. A listener that is new, or has fallen off,
//! gets the whole list, in pages, and goes on behind it. Bytes are made once per format and shared,
//! and no listener has a queue of its own.
//!
//! What a node says about its members goes to the directory in batches, one under way at a time, so
//! that a member who comes and goes quickly costs no more than the last word. A node follows what
//! other nodes say only while it has a listener.
//!
//! Lock order: all sets → one set → its listeners; a watch's own lock comes before a set's, so a
//! watch is never dropped under it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::broker::BrokerError;
use crate::directory::{Directory, HEARTBEAT_EVERY, Heartbeat, MAX_MEMBER, MemberEntry, NODE_EXPIRES, NodeId, Watch};
use crate::event::{ChannelName, Data, JsonText, Position};
use crate::format::{Change, MAX_FORMATS, Member, Notice};
use crate::inbox::FeedSink;
use crate::jitter::Jitter;
use crate::log::{FormatSlot, READ_BYTES};
use crate::patience;
use crate::refusal::Refusal;
use crate::registry::Registry;
use crate::session_handle::SessionHandle;
use crate::shrink::shrink;

/// How long a member whose connection broke still counts, so that a page that is loaded again
/// neither leaves nor joins.
const GRACE: Duration = Duration::from_secs(3);
/// How often listeners are told at most. What changes meanwhile is told as one.
const SHOW_EVERY: Duration = Duration::from_millis(100);
/// How often a channel's changes are announced to other nodes at most.
const ANNOUNCE_EVERY: Duration = Duration::from_millis(100);
/// How many entries are announced in one call.
const BATCH: usize = 500;
/// How many changes a presence set's ring holds, and how many bytes of ids and words about users.
const RING: (usize, usize) = (1024, 1 << 20);
/// How much of the list stands on a page. Bounds a frame, and what a connection holds.
const PAGE: (usize, usize) = (500, 32 << 10);
/// How long other nodes are followed without anybody who listens.
const LINGER: Duration = Duration::from_secs(10);
/// How often a presence set is compared with the directory, whatever it has heard.
const REFRESH_EVERY: Duration = Duration::from_secs(600);
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// A watch that ends sooner than this is not opened again at once.
const WATCH_LASTS: Duration = Duration::from_secs(1);
/// How many channels' members are taken back at the same time when the node goes.
const DEREGISTER_AT_ONCE: usize = 32;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing here panics half-way through a change that matters.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Presence on one node: its life in the directory, and its presence sets.
pub(crate) struct Presence {
    directory: Arc<dyn Directory>,
    sets: Mutex<HashMap<ChannelName, Arc<PresenceSet>>>,
    /// The nodes that were heard of, and when that was first.
    nodes: Mutex<HashMap<NodeId, Instant>>,
    life: Mutex<Life>,
    /// Whether the node lives in the directory, so that its entries count.
    lives: watch::Sender<bool>,
    /// From the first missed heartbeat until an outage is over, no member counts as gone: other
    /// nodes are coming back, too.
    unsettled: AtomicBool,
    stamp: AtomicU64,
    jitter: Jitter,
    /// How long a call may take.
    limit: Duration,
    runtime: Handle,
    me: Weak<Presence>,
}

struct Life {
    node: NodeId,
    /// The last heartbeat failed.
    missed: bool,
    settles: Instant,
    over: bool,
}

/// One channel's members, as this node knows them.
pub(crate) struct PresenceSet {
    name: ChannelName,
    presence: Weak<Presence>,
    /// One past the last place of the ring; zero while the list is not known.
    version: AtomicU64,
    state: Mutex<State>,
    registered: Mutex<Registry<Arc<SessionHandle>>>,
    me: Weak<PresenceSet>,
}

struct State {
    node: NodeId,
    closed: bool,
    /// By id; the anonymous have an empty one.
    members: HashMap<Arc<str>, MemberState>,
    /// Departures that do not count yet, in the order of their times.
    leaving: VecDeque<(Instant, Arc<str>)>,
    /// Whether a task waits for the first of them.
    parting: bool,
    unannounced: VecDeque<Arc<str>>,
    announcing: bool,
    /// How often something was announced.
    words: u64,
    // What follows is only for those who listen.
    listeners: usize,
    lingering: bool,
    /// Whether a task is opening the watch.
    following: bool,
    /// Tells the watch that is in use from one that was given up.
    generation: u64,
    watch: Option<Watch>,
    watched: Instant,
    compared: Instant,
    /// While the directory is being asked for its list: what was heard meanwhile is newer.
    listing: Option<HashMap<(NodeId, Arc<str>), u64>>,
    whole: bool,
    dirty: Vec<Arc<str>>,
    /// Whether a task waits to show what is dirty.
    showing: bool,
    shown_at: Option<Instant>,
    ring: VecDeque<Arc<PresenceChange>>,
    /// The place of `ring[0]`. Places are counted from one, and never reused.
    first: u64,
    weight: usize,
    list: Option<Arc<List>>,
    batches: [Option<(u64, u64, Bytes)>; MAX_FORMATS],
}

/// A member, as far as this node knows.
#[derive(Default)]
struct MemberState {
    local: OwnConnections,
    remote: Vec<OtherNode>,
    shown: Option<Arc<Member>>,
    dirty: bool,
}

/// A member's connections to this node.
#[derive(Default)]
struct OwnConnections {
    live: u32,
    leaving: u32,
    /// How many of those that leave have come back: so many departures do not count.
    back: u32,
    metadata: Metadata,
    queued: bool,
    /// What the directory was told; `None`: nothing, or that there are none.
    told: Option<(u32, u64)>,
}

/// What another node says.
struct OtherNode {
    node: NodeId,
    stamp: u64,
    connections: u32,
    metadata: Metadata,
}

/// Metadata of a user, and when it was set, in microseconds since 1970; zero: never.
#[derive(Clone, Default)]
struct Metadata {
    at: u64,
    meta: Option<JsonText>,
}

/// A change that listeners are told.
struct PresenceChange {
    change: Change,
    member: Arc<Member>,
    encoded: Encoded,
}

/// Made once per format, on first need.
type Encoded = [OnceLock<Bytes>; MAX_FORMATS];

/// All members, as they were before the change at place `version`.
struct List {
    version: u64,
    pages: Vec<Page>,
}

struct Page {
    members: Vec<Arc<Member>>,
    more: bool,
    encoded: Encoded,
}

/// What a listener finds.
enum NextRead {
    Nothing,
    Changes(Bytes, u64),
    List(Arc<List>),
}

/// One connection in one channel: a member, who may also listen. Dropping it leaves.
pub(crate) struct Membership {
    set: Arc<PresenceSet>,
    member: Arc<str>,
    listening: Option<Listening>,
    /// Whether it leaves without grace: the connection is there and wants no more of this channel.
    pub(crate) at_once: bool,
}

struct Listening {
    registration: u64,
    next: u64,
    list: Option<(Arc<List>, usize)>,
}

impl Presence {
    /// Begins the node's life in the directory. Must be called within a tokio runtime.
    pub(crate) fn begin(directory: Arc<dyn Directory>, jitter: Jitter, limit: Duration) -> Arc<Self> {
        let presence = Arc::new_cyclic(|me| Self {
            directory,
            sets: Mutex::default(),
            nodes: Mutex::default(),
            life: Mutex::new(Life {
                node: NodeId::draw(),
                missed: false,
                settles: Instant::now(),
                over: false,
            }),
            lives: watch::Sender::new(false),
            unsettled: AtomicBool::new(false),
            stamp: AtomicU64::new(0),
            jitter,
            limit,
            runtime: Handle::current(),
            me: me.clone(),
        });
        tokio::spawn(heartbeat(presence.me.clone()));
        presence
    }

    /// Checks whether a user can be a member.
    ///
    /// # Errors
    /// `internal`: the application gave a user an id that is too long.
    pub(crate) fn check(user: Option<&str>) -> Result<(), Refusal> {
        let length = user.map_or(0, str::len);
        if length > MAX_MEMBER {
            tracing::error!(
                length,
                "a user's id is longer than the {MAX_MEMBER} bytes that presence takes: shorten it in Handler::connect, or set presence = false"
            );
            return Err(Refusal::internal(
                "who you are cannot be shown in this channel: the user's id is too long",
            ));
        }
        Ok(())
    }

    /// Takes in a connection. With a `listener` it listens as well, and is rung when there is
    /// something to read.
    pub(crate) fn attend(
        &self,
        channel: &ChannelName,
        user: Option<&Arc<str>>,
        meta: Option<&JsonText>,
        listener: Option<Arc<SessionHandle>>,
    ) -> Box<Membership> {
        let member: Arc<str> = user.cloned().unwrap_or_default();
        // Only users are told apart, so nothing can be said of one of the anonymous.
        let meta = meta.filter(|_| !member.is_empty());
        let set = loop {
            let set = self.set(channel);
            if set.enter(&member, meta) {
                break set;
            }
            // It was closed between our look-up and our lock, and is no longer in the map.
        };
        let listening = listener.map(|listener| Listening {
            registration: set.register(listener),
            next: 0,
            list: None,
        });
        Box::new(Membership {
            set,
            member,
            listening,
            at_once: false,
        })
    }

    fn set(&self, channel: &ChannelName) -> Arc<PresenceSet> {
        let mut sets = lock(&self.sets);
        if let Some(set) = sets.get(channel) {
            return set.clone();
        }
        // Under the map's lock: a node that begins another life tells all that are in the map.
        let set = PresenceSet::new(self, channel.clone(), lock(&self.life).node);
        sets.insert(channel.clone(), set.clone());
        set
    }

    fn all(&self) -> Vec<Arc<PresenceSet>> {
        lock(&self.sets).values().cloned().collect()
    }

    /// Removes the presence set if it is unused.
    fn forget_if_unused(&self, set: &Arc<PresenceSet>) {
        let mut sets = lock(&self.sets);
        let mut state = lock(&set.state);
        if !state.closed && state.is_unused() {
            state.closed = true;
            sets.remove(&set.name);
            shrink(&mut *sets);
        }
    }

    /// Everybody who is in the channel, on any node: users in the order of their ids, the anonymous
    /// last.
    pub(crate) async fn members(&self, channel: &ChannelName) -> Result<Vec<Arc<Member>>, BrokerError> {
        let known = lock(&self.sets).get(channel).cloned();
        if let Some(set) = &known
            && let Some(members) = set.members()
        {
            return Ok(members);
        }
        let entries = patience::call(self.limit, self.directory.list(channel)).await?;
        let node = lock(&self.life).node;
        // A table of the moment: what this node knows of itself, and what others say.
        let mut table = State::new(node);
        if let Some(set) = &known {
            lock(&set.state).copy_local(&mut table);
        }
        for entry in &entries {
            table.hear(entry);
        }
        let members = table.members.iter().filter_map(|(id, seen)| seen.merged(id).map(Arc::new));
        Ok(in_order(members.collect()))
    }

    async fn call<T>(&self, call: impl Future<Output = Result<T, BrokerError>>) -> Result<T, BrokerError> {
        within(self.limit, call).await
    }

    fn stamp(&self) -> u64 {
        let mut last = self.stamp.load(Ordering::Relaxed);
        loop {
            let next = Position(last).next().0;
            match self
                .stamp
                .compare_exchange_weak(last, next, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return next,
                Err(other) => last = other,
            }
        }
    }

    /// Notes that the directory has shown a member of that node.
    fn heard_of(&self, node: NodeId) {
        lock(&self.nodes).entry(node).or_insert_with(Instant::now);
    }

    /// What the directory says to a heartbeat that was sent at `asked`; when the next is due.
    fn answered(&self, asked: Instant, heartbeat: Heartbeat) -> Duration {
        let now = Instant::now();
        let mut life = lock(&self.life);
        if life.over {
            return HEARTBEAT_EVERY;
        }
        let lived = *self.lives.borrow();
        if lived && !heartbeat.known {
            // We were taken for dead, or the directory has lost everything. What dies stays dead:
            // others may be removing it right now.
            let dead = life.node;
            life.node = dead.next();
            life.settles = now + NODE_EXPIRES;
            self.unsettled.store(true, Ordering::Relaxed);
            let node = life.node;
            drop(life);
            tracing::warn!("this node was not in the directory any more: announcing its members again");
            self.lives.send_replace(false);
            let (directory, limit) = (self.directory.clone(), self.limit);
            // Removes what was set under the old name. If this fails, those entries do no harm.
            self.runtime
                .spawn(async move { within(limit, directory.leave(dead)).await.is_ok() });
            for set in self.all() {
                set.re_register(node);
            }
            return Duration::ZERO;
        }
        if life.missed {
            life.missed = false;
            life.settles = now + NODE_EXPIRES;
        }
        let settled = now >= life.settles;
        drop(life);
        self.lives.send_replace(true);
        if settled {
            let compare = self.unsettled.swap(false, Ordering::Relaxed);
            self.expire(asked, &heartbeat.living);
            for set in self.all() {
                set.compare_if_due(compare);
            }
        }
        self.jitter.spread(HEARTBEAT_EVERY)
    }

    fn missed(&self) -> Duration {
        lock(&self.life).missed = true;
        self.unsettled.store(true, Ordering::Relaxed);
        self.jitter.spread(BACKOFF.1)
    }

    /// Forgets what the nodes said that do not live any more.
    fn expire(&self, asked: Instant, living: &[NodeId]) {
        let living: HashSet<&NodeId> = living.iter().collect();
        let mut dead = HashSet::new();
        lock(&self.nodes).retain(|node, since| {
            // A node sends a heartbeat before it says anything: one that was heard of before we
            // asked, and is not among the living, is dead.
            let lives = living.contains(node) || *since >= asked;
            if !lives {
                dead.insert(*node);
            }
            lives
        });
        if dead.is_empty() {
            return;
        }
        tracing::info!(nodes = dead.len(), "nodes are dead: their members have left");
        for set in self.all() {
            set.expire(&dead);
        }
    }

    /// Takes this node's members back, for other nodes to see at once. Nothing is announced after
    /// it.
    pub(crate) async fn deregister(&self) {
        let node = {
            let mut life = lock(&self.life);
            life.over = true;
            life.node
        };
        if !*self.lives.borrow() {
            return;
        }
        let mut calls = JoinSet::new();
        for set in self.all() {
            for entries in set.removals(self) {
                if calls.len() >= DEREGISTER_AT_ONCE {
                    calls.join_next().await;
                }
                let (directory, limit, name) = (self.directory.clone(), self.limit, set.name.clone());
                calls.spawn(async move { within(limit, directory.set(&name, &entries)).await });
            }
        }
        while calls.join_next().await.is_some() {}
        if let Err(error) = self.call(self.directory.leave(node)).await {
            tracing::debug!(%error, "the node could not leave the directory: its entries expire");
        }
    }

    fn is_over(&self) -> bool {
        lock(&self.life).over
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        // A watch must not be dropped by its own call into its presence set, which may be the last
        // to hold that: the call holds the watch's lock.
        for set in self.all() {
            let watch = lock(&set.state).watch.take();
            drop(watch);
        }
    }
}

async fn within<T>(limit: Duration, call: impl Future<Output = Result<T, BrokerError>>) -> Result<T, BrokerError> {
    match timeout(limit, call).await {
        Ok(answer) => answer,
        Err(_) => Err(BrokerError::unavailable("the directory did not answer in time")),
    }
}

/// Says that this node lives, and hears which do.
async fn heartbeat(me: Weak<Presence>) {
    loop {
        let Some(presence) = me.upgrade() else { return };
        let (directory, limit) = (presence.directory.clone(), presence.limit);
        let node = {
            let life = lock(&presence.life);
            if life.over {
                return;
            }
            life.node
        };
        // Only a weak handle is held across waits.
        drop(presence);
        let asked = Instant::now();
        let answer = within(limit, directory.heartbeat(node)).await;
        let Some(presence) = me.upgrade() else { return };
        let pause = match answer {
            Ok(heartbeat) => presence.answered(asked, heartbeat),
            Err(error) => {
                tracing::debug!(%error, "the directory is out of reach");
                presence.missed()
            }
        };
        drop(presence);
        sleep(pause).await;
    }
}

impl PresenceSet {
    fn new(presence: &Presence, name: ChannelName, node: NodeId) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            name,
            presence: presence.me.clone(),
            version: AtomicU64::new(0),
            state: Mutex::new(State::new(node)),
            registered: Mutex::default(),
            me: me.clone(),
        })
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(presence) = self.presence.upgrade() {
            presence.runtime.spawn(task);
        }
    }

    /// A connection of `member` begins. False: the presence set is closed, look it up again.
    fn enter(&self, member: &Arc<str>, meta: Option<&JsonText>) -> bool {
        let show = {
            let mut state = lock(&self.state);
            if state.closed {
                return false;
            }
            let local = &mut state.state_of(member).local;
            let before = (local.count(), local.metadata.at);
            local.live = local.live.saturating_add(1);
            if local.leaving > 0 {
                local.leaving -= 1;
                local.back += 1;
            }
            if meta.is_some() && meta != local.metadata.meta.as_ref() {
                local.metadata = Metadata {
                    at: Position(local.metadata.at).next().0,
                    meta: meta.cloned(),
                };
            }
            if before == (local.count(), local.metadata.at) {
                return true;
            }
            self.changed(&mut state, member)
        };
        if show {
            self.show();
        }
        true
    }

    /// A connection of `member` is over.
    fn exit(&self, member: &Arc<str>, at_once: bool) {
        let show = {
            let mut state = lock(&self.state);
            let local = &mut state.state_of(member).local;
            local.live = local.live.saturating_sub(1);
            if at_once {
                self.changed(&mut state, member)
            } else {
                local.leaving += 1;
                state.leaving.push_back((Instant::now() + GRACE, member.clone()));
                if !state.parting {
                    state.parting = true;
                    self.spawn(part(self.me.clone()));
                }
                false
            }
        };
        if show {
            self.show();
        }
    }

    /// The departures that are due; when the next is. `None`: none is left.
    fn part(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut show = false;
        let next = loop {
            let mut state = lock(&self.state);
            match state.leaving.front() {
                Some((due, _)) if *due <= now => {}
                Some((due, _)) => break Some(*due),
                None => {
                    state.parting = false;
                    break None;
                }
            }
            let Some((_, member)) = state.leaving.pop_front() else {
                continue;
            };
            let local = &mut state.state_of(&member).local;
            if local.back > 0 {
                local.back -= 1;
                continue;
            }
            local.leaving = local.leaving.saturating_sub(1);
            show |= self.changed(&mut state, &member);
        };
        if show {
            self.show();
        }
        next
    }

    /// This node's own count of `member` is another. True: it is to be shown now.
    fn changed(&self, state: &mut State, member: &Arc<str>) -> bool {
        self.announce(state, member);
        state.mark(member);
        self.is_due(state)
    }

    fn announce(&self, state: &mut State, member: &Arc<str>) {
        let local = &mut state.state_of(member).local;
        if !local.queued {
            local.queued = true;
            state.unannounced.push_back(member.clone());
        }
        if !state.announcing {
            state.announcing = true;
            self.spawn(announce(self.me.clone()));
        }
    }

    /// Whether what has changed is to be shown now. If not, and there is something, a task does it
    /// later.
    fn is_due(&self, state: &mut State) -> bool {
        if state.dirty.is_empty() || state.showing {
            return false;
        }
        let Some(due) = state
            .shown_at
            .map(|last| last + SHOW_EVERY)
            .filter(|due| *due > Instant::now())
        else {
            return true;
        };
        state.showing = true;
        let me = self.me.clone();
        self.spawn(async move {
            sleep_until(due).await;
            if let Some(set) = me.upgrade() {
                lock(&set.state).showing = false;
                set.show();
            }
        });
        false
    }

    /// Tells those who listen what has changed since they were told last.
    fn show(&self) {
        {
            let mut state = lock(&self.state);
            let before = state.end();
            state.tell();
            if state.end() == before {
                return;
            }
            self.version.store(state.end(), Ordering::Release);
        }
        self.ring();
    }

    fn ring(&self) {
        for listener in lock(&self.registered).iter() {
            listener.wake();
        }
    }

    /// What is to be announced next; empty: nothing is.
    fn next_words(&self, presence: &Presence) -> Vec<MemberEntry> {
        let mut state = lock(&self.state);
        let mut entries = Vec::new();
        while entries.len() < BATCH
            && let Some(member) = state.unannounced.pop_front()
        {
            let node = state.node;
            let local = &mut state.state_of(&member).local;
            local.queued = false;
            let count = local.count();
            let words = (count, local.metadata.at);
            let unchanged = if count == 0 {
                local.told.is_none()
            } else {
                local.told == Some(words)
            };
            if !unchanged {
                local.told = Some(words);
                entries.push(MemberEntry {
                    node,
                    member: member.clone(),
                    stamp: presence.stamp(),
                    value: (count > 0).then(|| encode(count, &local.metadata)),
                });
            }
            state.tidy(&member);
        }
        state.announcing = !entries.is_empty();
        state.words += u64::from(state.announcing);
        entries
    }

    /// The directory has it.
    fn announced(&self, entries: &[MemberEntry]) {
        let mut state = lock(&self.state);
        for entry in entries.iter().filter(|entry| entry.value.is_none()) {
            let local = &mut state.state_of(&entry.member).local;
            if local.told.is_some_and(|(count, _)| count == 0) {
                local.told = None;
            }
            state.tidy(&entry.member);
        }
    }

    /// The directory may have it or not.
    fn not_announced(&self, entries: &[MemberEntry]) {
        let mut state = lock(&self.state);
        for entry in entries {
            let local = &mut state.state_of(&entry.member).local;
            local.told = Some(UNKNOWN);
            if !local.queued {
                local.queued = true;
                state.unannounced.push_back(entry.member.clone());
            }
        }
    }

    /// The node has begun another life, in which it has said nothing.
    fn re_register(&self, node: NodeId) {
        let mut state = lock(&self.state);
        state.node = node;
        let members: Vec<Arc<str>> = state.members.keys().cloned().collect();
        for member in members {
            let local = &mut state.state_of(&member).local;
            local.told = None;
            if local.count() > 0 {
                self.announce(&mut state, &member);
            } else {
                state.tidy(&member);
            }
        }
    }

    /// Clears all that was announced.
    fn removals(&self, presence: &Presence) -> Vec<Vec<MemberEntry>> {
        let mut state = lock(&self.state);
        let node = state.node;
        let mut entries = Vec::new();
        for (member, seen) in &mut state.members {
            if seen.local.told.take().is_some() {
                entries.push(MemberEntry {
                    node,
                    member: member.clone(),
                    stamp: presence.stamp(),
                    value: None,
                });
            }
        }
        entries.chunks(BATCH).map(<[MemberEntry]>::to_vec).collect()
    }

    fn register(&self, listener: Arc<SessionHandle>) -> u64 {
        let registration = lock(&self.registered).insert(listener);
        let mut state = lock(&self.state);
        state.listeners += 1;
        if state.watch.is_none() && !state.following {
            state.following = true;
            self.spawn(follow(self.me.clone(), Duration::ZERO));
        }
        registration
    }

    fn deregister(&self, registration: u64) {
        lock(&self.registered).remove(registration);
        let mut state = lock(&self.state);
        state.listeners = state.listeners.saturating_sub(1);
        if state.listeners == 0 && !state.lingering {
            state.lingering = true;
            self.spawn(linger(self.me.clone()));
        }
    }

    /// Everybody, if this node knows.
    fn members(&self) -> Option<Vec<Arc<Member>>> {
        let members: Vec<Arc<Member>> = {
            let state = lock(&self.state);
            if !state.whole {
                return None;
            }
            let members = state.members.iter().filter_map(|(id, seen)| seen.merged(id).map(Arc::new));
            members.collect()
        };
        Some(in_order(members))
    }

    /// Other nodes' words, while a watch is open.
    fn heard(&self, generation: u64, entry: &MemberEntry) {
        let show = {
            let mut state = lock(&self.state);
            if state.generation != generation || entry.node.process == state.node.process {
                return;
            }
            if let Some(presence) = self.presence.upgrade() {
                presence.heard_of(entry.node);
            }
            if let Some(heard) = &mut state.listing {
                heard.insert((entry.node, entry.member.clone()), entry.stamp);
            }
            state.hear(entry);
            self.is_due(&mut state)
        };
        if show {
            self.show();
        }
    }

    /// Called by the watch itself, which is therefore left where it is until another takes its
    /// place: dropping it here would take the lock that it holds.
    fn watch_ended(&self, generation: u64) {
        let mut state = lock(&self.state);
        if state.generation != generation {
            return;
        }
        state.generation += 1;
        state.listing = None;
        if !state.following {
            state.following = true;
            let pause = WATCH_LASTS.saturating_sub(state.watched.elapsed());
            self.spawn(follow(self.me.clone(), pause));
        }
    }

    /// From now on what is heard is newer than what the directory lists. False: it is being asked
    /// already, or the watch is another.
    fn begin_listing(&self, generation: u64) -> bool {
        let mut state = lock(&self.state);
        let free = state.generation == generation && state.listing.is_none();
        if free {
            state.listing = Some(HashMap::new());
        }
        free
    }

    /// The directory's list, asked for while what was heard was written down. False: the watch has
    /// ended meanwhile.
    fn take_in(&self, generation: u64, entries: &[MemberEntry], misses: bool) -> bool {
        let (show, first) = {
            let mut state = lock(&self.state);
            if state.generation != generation {
                return false;
            }
            let Some(heard) = state.listing.take() else { return false };
            state.compared = Instant::now();
            if let Some(presence) = self.presence.upgrade() {
                for entry in entries {
                    presence.heard_of(entry.node);
                }
            }
            let own = state.node.process;
            let mut listed = HashSet::with_capacity(entries.len());
            for entry in entries.iter().filter(|entry| entry.node.process != own) {
                listed.insert((entry.node, entry.member.clone()));
                let newer = heard.get(&(entry.node, entry.member.clone()));
                if newer.is_none_or(|newer| *newer < entry.stamp) {
                    state.hear(entry);
                }
            }
            if misses {
                state.miss(|node, member| {
                    let key = (node, member.clone());
                    !listed.contains(&key) && !heard.contains_key(&key)
                });
            }
            let first = !state.whole;
            if first {
                state.whole = true;
                state.begin_anew();
                self.version.store(state.end(), Ordering::Release);
            }
            (self.is_due(&mut state), first)
        };
        if first {
            self.ring();
        } else if show {
            self.show();
        }
        true
    }

    fn expire(&self, dead: &HashSet<NodeId>) {
        let show = {
            let mut state = lock(&self.state);
            state.miss(|node, _| dead.contains(&node));
            self.is_due(&mut state)
        };
        if show {
            self.show();
        }
    }

    /// Asks the directory whether it and this node are of one mind. `now`: not only if that was
    /// long ago.
    fn compare_if_due(&self, now: bool) {
        let mut state = lock(&self.state);
        if now || state.compared.elapsed() >= REFRESH_EVERY {
            state.compared = Instant::now();
            self.spawn(compare(self.me.clone()));
        }
    }

    /// What the directory holds of this node, if nothing was being said meanwhile.
    fn correct(&self, words: u64, entries: &[MemberEntry]) {
        let mut state = lock(&self.state);
        if state.announcing || state.words != words {
            return;
        }
        let node = state.node;
        let mut listed = HashMap::new();
        for entry in entries.iter().filter(|entry| entry.node == node) {
            let words = entry.value.as_ref().and_then(decode);
            listed.insert(entry.member.clone(), words.map(|(count, said)| (count, said.at)));
        }
        let known: HashSet<Arc<str>> = state.members.keys().chain(listed.keys()).cloned().collect();
        for member in known {
            let listed = listed.get(&member).copied();
            let local = &mut state.state_of(&member).local;
            let agree = match (local.told, listed) {
                (None, None) => true,
                (Some(told), Some(listed)) => Some(told) == listed,
                _ => false,
            };
            if !agree {
                local.told = listed.map(|_| UNKNOWN);
                self.announce(&mut state, &member);
            }
            state.tidy(&member);
        }
    }

    /// What a listener at `next` has not been told, as one piece of bytes; or if that is no longer
    /// known, everything.
    fn read(&self, next: u64, slot: &FormatSlot) -> NextRead {
        let version = self.version.load(Ordering::Acquire);
        if version == next || version == 0 {
            return NextRead::Nothing;
        }
        let (told, end) = {
            let state = lock(&self.state);
            // Between the look and the lock the last listener's linger may have let go of all of
            // it.
            if !state.whole {
                return NextRead::Nothing;
            }
            let end = state.end();
            if let Some((from, to, bytes)) = &state.batches[slot.index]
                && (*from, *to) == (next, end)
            {
                return NextRead::Changes(bytes.clone(), end);
            }
            let behind = next.checked_sub(state.first).and_then(|index| usize::try_from(index).ok());
            let Some(behind) = behind else {
                drop(state);
                return self.list().map_or(NextRead::Nothing, NextRead::List);
            };
            let told: Vec<Arc<PresenceChange>> = state.ring.iter().skip(behind).cloned().collect();
            (told, end)
        };
        let encode = |told: &PresenceChange| {
            let bytes = told.encoded[slot.index].get_or_init(|| {
                slot.format.notice(&Notice::Change {
                    channel: &self.name,
                    change: told.change,
                    member: &told.member,
                })
            });
            bytes.clone()
        };
        let bytes = match told.as_slice() {
            [only] => encode(only),
            all => {
                let mut joined = BytesMut::new();
                all.iter().for_each(|told| joined.extend_from_slice(&encode(told)));
                joined.freeze()
            }
        };
        lock(&self.state).batches[slot.index] = Some((next, end, bytes.clone()));
        NextRead::Changes(bytes, end)
    }

    /// Returns all members that were told, for a listener that knows none. Listeners share the list
    /// as long as few changes have come since.
    fn list(&self) -> Option<Arc<List>> {
        let (version, members) = {
            let state = lock(&self.state);
            if !state.whole {
                return None;
            }
            // In a large channel making it anew for everybody who comes would cost more than
            // telling them the last changes.
            if let Some(list) = &state.list
                && list.version >= state.first
                && (state.end() - list.version) as usize <= state.members.len() / 8
            {
                return Some(list.clone());
            }
            let members = state.members.values().filter_map(|seen| seen.shown.clone());
            (state.end(), members.collect())
        };
        let list = Arc::new(List {
            version,
            pages: pages(in_order(members)),
        });
        lock(&self.state).list = Some(list.clone());
        Some(list)
    }
}

/// Sent, but it is unknown whether it arrived.
const UNKNOWN: (u32, u64) = (u32::MAX, u64::MAX);

impl State {
    fn new(node: NodeId) -> Self {
        let now = Instant::now();
        Self {
            node,
            closed: false,
            members: HashMap::new(),
            leaving: VecDeque::new(),
            parting: false,
            unannounced: VecDeque::new(),
            announcing: false,
            words: 0,
            listeners: 0,
            lingering: false,
            following: false,
            generation: 0,
            watch: None,
            watched: now,
            compared: now,
            listing: None,
            whole: false,
            dirty: Vec::new(),
            showing: false,
            shown_at: None,
            ring: VecDeque::new(),
            first: 1,
            weight: 0,
            list: None,
            batches: Default::default(),
        }
    }

    fn state_of(&mut self, member: &Arc<str>) -> &mut MemberState {
        // Looked up first: the key is cloned only for one who is new.
        if !self.members.contains_key(member) {
            self.members.insert(member.clone(), MemberState::default());
        }
        self.members.entry(member.clone()).or_default()
    }

    fn is_unused(&self) -> bool {
        let listens = self.listeners > 0 || self.lingering || self.following || self.watch.is_some();
        !listens && self.members.is_empty() && self.leaving.is_empty() && !self.announcing
    }

    /// Removes a member without any state.
    fn tidy(&mut self, member: &Arc<str>) {
        if self.members.get(member).is_some_and(MemberState::is_nothing) {
            self.members.remove(member);
        }
    }

    fn mark(&mut self, member: &Arc<str>) {
        if !self.whole {
            return;
        }
        let seen = self.state_of(member);
        if !seen.dirty {
            seen.dirty = true;
            self.dirty.push(member.clone());
        }
    }

    /// Takes in what another node says, unless it is older than what is known.
    fn hear(&mut self, entry: &MemberEntry) {
        let node = entry.node;
        if node.process == self.node.process {
            return;
        }
        let words = match &entry.value {
            None => None,
            Some(value) => match decode(value) {
                Some(words) => Some(words),
                None => {
                    tracing::debug!(%node, "a node's entry cannot be read: is it a newer version?");
                    return;
                }
            },
        };
        if words.is_none() && !self.members.contains_key(&entry.member) {
            return;
        }
        let seen = self.state_of(&entry.member);
        let newer = (node.incarnation, entry.stamp);
        let known = |remote: &OtherNode| remote.node.process == node.process && (remote.node.incarnation, remote.stamp) >= newer;
        if seen.remote.iter().any(known) {
            return;
        }
        // If a node began another life, only the last one counts. So no member is counted twice
        // before the first life is known to be dead.
        seen.remote.retain(|remote| remote.node.process != node.process);
        if let Some((connections, said)) = words {
            seen.remote.push(OtherNode {
                node,
                stamp: entry.stamp,
                connections,
                metadata: said,
            });
        }
        self.mark(&entry.member);
        self.tidy(&entry.member);
    }

    /// Forgets what nodes have said that `gone` names.
    fn miss(&mut self, gone: impl Fn(NodeId, &Arc<str>) -> bool) {
        let mut changed = Vec::new();
        for (member, seen) in &mut self.members {
            let before = seen.remote.len();
            seen.remote.retain(|remote| !gone(remote.node, member));
            if seen.remote.len() != before {
                changed.push(member.clone());
            }
        }
        for member in changed {
            self.mark(&member);
            self.tidy(&member);
        }
    }

    /// One past the last place.
    fn end(&self) -> u64 {
        self.first + self.ring.len() as u64
    }

    /// Puts what has changed into the ring.
    fn tell(&mut self) {
        self.shown_at = Some(Instant::now());
        for member in std::mem::take(&mut self.dirty) {
            let Some(seen) = self.members.get_mut(&member) else { continue };
            seen.dirty = false;
            let now = seen.merged(&member);
            let told = match (&seen.shown, now) {
                (None, None) => None,
                (None, Some(now)) => Some((Change::Join, Arc::new(now))),
                (Some(was), None) => {
                    let gone = Member {
                        connections: 0,
                        ..(**was).clone()
                    };
                    Some((Change::Leave, Arc::new(gone)))
                }
                (Some(was), Some(now)) if **was == now => None,
                (Some(_), Some(now)) => Some((Change::Update, Arc::new(now))),
            };
            if let Some((change, member)) = told {
                seen.shown = (change != Change::Leave).then(|| member.clone());
                self.weight += weight(&member);
                self.ring.push_back(Arc::new(PresenceChange {
                    change,
                    member,
                    encoded: Encoded::default(),
                }));
                self.batches = Default::default();
            }
            self.tidy(&member);
        }
        while self.ring.len() > RING.0 || (self.weight > RING.1 && self.ring.len() > 1) {
            if let Some(oldest) = self.ring.pop_front() {
                self.weight -= weight(&oldest.member);
                self.first += 1;
            }
        }
    }

    /// Everybody is told everything.
    fn begin_anew(&mut self) {
        for (id, seen) in &mut self.members {
            seen.dirty = false;
            seen.shown = seen.merged(id).map(Arc::new);
        }
        self.dirty.clear();
        // No listener holds a place: the listeners have not got a list yet.
        self.first = self.end();
        self.ring.clear();
        self.weight = 0;
        self.list = None;
        self.batches = Default::default();
        self.shown_at = Some(Instant::now());
    }

    /// Drops what other nodes said, because there is no listener any more.
    fn stop_watching(&mut self) -> Option<Watch> {
        self.generation += 1;
        self.listing = None;
        self.whole = false;
        self.begin_anew();
        for seen in self.members.values_mut() {
            seen.shown = None;
            seen.remote = Vec::new();
        }
        self.members.retain(|_, seen| !seen.is_nothing());
        self.watch.take()
    }

    fn copy_local(&self, table: &mut State) {
        for (id, seen) in self.members.iter().filter(|(_, seen)| seen.local.count() > 0) {
            let local = &mut table.state_of(id).local;
            (local.live, local.metadata) = (seen.local.count(), seen.local.metadata.clone());
        }
    }
}

impl MemberState {
    fn is_nothing(&self) -> bool {
        let Self {
            local,
            remote,
            shown,
            dirty,
        } = self;
        let silent = local.count() == 0 && local.back == 0 && local.told.is_none() && !local.queued;
        silent && remote.is_empty() && shown.is_none() && !dirty
    }

    /// The member over all nodes; `None`: is on none.
    fn merged(&self, id: &Arc<str>) -> Option<Member> {
        let remote = self.remote.iter().map(|remote| remote.connections);
        let connections = remote.fold(self.local.count(), u32::saturating_add);
        if connections == 0 {
            return None;
        }
        // The newest words count. Where two are as new, all nodes choose the same.
        let remote = self.remote.iter().map(|remote| &remote.metadata);
        let said = remote.chain((self.local.count() > 0).then_some(&self.local.metadata));
        let said = said.max_by_key(|said| (said.at, said.meta.as_ref().map(|meta| meta.as_str())))?;
        Some(Member {
            user: (!id.is_empty()).then(|| id.clone()),
            connections,
            meta: said.meta.clone(),
        })
    }
}

impl OwnConnections {
    fn count(&self) -> u32 {
        self.live.saturating_add(self.leaving)
    }
}

/// What a node says about a member: a byte for the format, the number of connections, when the
/// words about the user were said, and these as JSON.
fn encode(connections: u32, said: &Metadata) -> Bytes {
    let meta = said.meta.as_ref().map_or("", |meta| meta.as_str());
    let mut bytes = BytesMut::with_capacity(13 + meta.len());
    bytes.put_u8(1);
    bytes.put_u32(connections);
    bytes.put_u64(said.at);
    bytes.put_slice(meta.as_bytes());
    bytes.freeze()
}

fn decode(bytes: &Bytes) -> Option<(u32, Metadata)> {
    let (&format, rest) = bytes.split_first()?;
    let (connections, rest) = rest.split_first_chunk()?;
    let (at, meta) = rest.split_first_chunk()?;
    if format != 1 {
        return None;
    }
    let meta = match meta {
        [] => None,
        meta => match Data::from_stored(b'j', bytes.slice_ref(meta)) {
            Ok(Data::Json(meta)) => Some(meta),
            _ => return None,
        },
    };
    let at = u64::from_be_bytes(*at);
    Some((u32::from_be_bytes(*connections), Metadata { at, meta }))
}

fn weight(member: &Member) -> usize {
    let user = member.user.as_ref().map_or(0, |user| user.len());
    // Ids are written as JSON, where a character may take six; and there are braces and names.
    64 + 2 * user + member.meta.as_ref().map_or(0, |meta| meta.as_str().len())
}

fn in_order(mut members: Vec<Arc<Member>>) -> Vec<Arc<Member>> {
    members.sort_unstable_by(|a, b| (a.user.is_none(), &a.user).cmp(&(b.user.is_none(), &b.user)));
    members
}

/// At least one page, so that an empty list is told, too.
fn pages(members: Vec<Arc<Member>>) -> Vec<Page> {
    let mut pages = Vec::new();
    let (mut page, mut bytes) = (Vec::new(), 0);
    for member in members {
        let weight = weight(&member);
        if page.len() >= PAGE.0 || (bytes + weight > PAGE.1 && !page.is_empty()) {
            pages.push(std::mem::take(&mut page));
            bytes = 0;
        }
        bytes += weight;
        page.push(member);
    }
    pages.push(page);
    let last = pages.len() - 1;
    let page = |(index, members)| Page {
        members,
        more: index < last,
        encoded: Encoded::default(),
    };
    pages.into_iter().enumerate().map(page).collect()
}

impl Membership {
    /// Puts what the listener has not been told into `out`, up to about `room` bytes. True: there
    /// is more.
    pub(crate) fn read(&mut self, slot: &FormatSlot, room: usize, out: &mut Vec<Bytes>) -> bool {
        let Some(listening) = &mut self.listening else { return false };
        let mut written = 0;
        while written < room.min(READ_BYTES) {
            if let Some((list, at)) = &mut listening.list {
                let Some(page) = list.pages.get(*at) else {
                    listening.next = list.version;
                    listening.list = None;
                    continue;
                };
                *at += 1;
                let bytes = page.encoded[slot.index].get_or_init(|| {
                    slot.format.notice(&Notice::Members {
                        channel: &self.set.name,
                        members: &page.members,
                        more: page.more,
                    })
                });
                written += bytes.len();
                out.push(bytes.clone());
                continue;
            }
            match self.set.read(listening.next, slot) {
                NextRead::Nothing => return false,
                NextRead::List(list) => listening.list = Some((list, 0)),
                NextRead::Changes(bytes, next) => {
                    listening.next = next;
                    written += bytes.len();
                    out.push(bytes);
                }
            }
        }
        true
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        if let Some(listening) = self.listening.take() {
            self.set.deregister(listening.registration);
        }
        self.set.exit(&self.member, self.at_once);
    }
}

/// A watch's way into its presence set.
struct LiveWatch {
    set: Weak<PresenceSet>,
    generation: u64,
}

impl FeedSink<MemberEntry> for LiveWatch {
    fn take(&self, entry: MemberEntry) {
        if let Some(set) = self.set.upgrade() {
            set.heard(self.generation, &entry);
        }
    }

    fn ended(&self) {
        if let Some(set) = self.set.upgrade() {
            set.watch_ended(self.generation);
        }
    }
}

// A healthy presence set has no task. Those below run while there is something to do, and hold only
// a weak handle across waits.

/// Ends what is leaving, each when its grace is over.
async fn part(me: Weak<PresenceSet>) {
    loop {
        let Some(set) = me.upgrade() else { return };
        let Some(due) = set.part() else { return };
        drop(set);
        sleep_until(due).await;
    }
}

/// Tells the directory what this node has to say, until nothing is left.
async fn announce(me: Weak<PresenceSet>) {
    let mut backoff = BACKOFF.0;
    loop {
        let Some(set) = me.upgrade() else { return };
        let Some(presence) = set.presence.upgrade() else { return };
        let mut lives = presence.lives.subscribe();
        drop((set, presence));
        if lives.wait_for(|lives| *lives).await.is_err() {
            return;
        }
        let Some(set) = me.upgrade() else { return };
        let Some(presence) = set.presence.upgrade() else { return };
        if presence.is_over() {
            return;
        }
        let entries = set.next_words(&presence);
        if entries.is_empty() {
            presence.forget_if_unused(&set);
            return;
        }
        let (directory, limit, name) = (presence.directory.clone(), presence.limit, set.name.clone());
        drop((set, presence));
        let answer = within(limit, directory.set(&name, &entries)).await;
        let Some(set) = me.upgrade() else { return };
        let pause = match answer {
            Ok(()) => {
                set.announced(&entries);
                backoff = BACKOFF.0;
                ANNOUNCE_EVERY
            }
            Err(error) => {
                tracing::debug!(channel = %name, %error, "members cannot be announced yet");
                set.not_announced(&entries);
                backoff = (backoff * 2).min(BACKOFF.1);
                let Some(presence) = set.presence.upgrade() else { return };
                presence.jitter.spread(backoff)
            }
        };
        drop(set);
        sleep(pause).await;
    }
}

/// Opens the watch, then lists: what is set between the two is in both. Runs until that is done, or
/// until there is no listener.
async fn follow(me: Weak<PresenceSet>, mut pause: Duration) {
    let mut backoff = BACKOFF.0;
    loop {
        sleep(pause).await;
        let Some(set) = me.upgrade() else { return };
        let Some(presence) = set.presence.upgrade() else { return };
        {
            let mut state = lock(&set.state);
            if state.listeners == 0 && !state.lingering {
                state.following = false;
                drop(state);
                presence.forget_if_unused(&set);
                return;
            }
        }
        let (directory, limit, name) = (presence.directory.clone(), presence.limit, set.name.clone());
        drop((set, presence));
        let step = async {
            let watch = within(limit, directory.watch(&name)).await?;
            let Some(set) = me.upgrade() else { return Ok(true) };
            let generation = {
                let mut state = lock(&set.state);
                state.generation += 1;
                state.watched = Instant::now();
                state.listing = Some(HashMap::new());
                state.generation
            };
            watch.attach(Arc::new(LiveWatch {
                set: me.clone(),
                generation,
            }));
            drop(set);
            let entries = within(limit, directory.list(&name)).await?;
            let Some(set) = me.upgrade() else { return Ok(true) };
            let Some(presence) = set.presence.upgrade() else {
                return Ok(true);
            };
            let misses = !presence.unsettled.load(Ordering::Relaxed);
            if !set.take_in(generation, &entries, misses) {
                return Ok(false);
            }
            let mut old = None;
            let (done, unwanted) = {
                let mut state = lock(&set.state);
                if state.generation != generation {
                    (false, Some(watch))
                } else if state.listeners == 0 && !state.lingering {
                    set.version.store(0, Ordering::Release);
                    // The watch before this one has ended. Its shell is dropped outside the lock,
                    // too.
                    old = state.stop_watching();
                    (false, Some(watch))
                } else {
                    state.following = false;
                    (true, state.watch.replace(watch))
                }
            };
            drop((old, unwanted));
            Ok::<bool, BrokerError>(done)
        };
        match step.await {
            Ok(true) => return,
            Ok(false) => backoff = BACKOFF.0,
            Err(error) => tracing::debug!(channel = %name, %error, "other nodes' members are out of reach"),
        }
        let Some(presence) = me.upgrade().and_then(|set| set.presence.upgrade()) else {
            return;
        };
        pause = presence.jitter.spread(backoff);
        backoff = (backoff * 2).min(BACKOFF.1);
    }
}

/// Stops following other nodes when there has been no listener for a while.
async fn linger(me: Weak<PresenceSet>) {
    sleep(LINGER).await;
    let Some(set) = me.upgrade() else { return };
    let watch = {
        let mut state = lock(&set.state);
        state.lingering = false;
        if state.listeners > 0 {
            return;
        }
        set.version.store(0, Ordering::Release);
        state.stop_watching()
    };
    drop(watch);
    if let Some(presence) = set.presence.upgrade() {
        presence.forget_if_unused(&set);
    }
}

/// Lists the channel, and puts right whatever this node and the directory do not agree on.
async fn compare(me: Weak<PresenceSet>) {
    let Some(set) = me.upgrade() else { return };
    let Some(presence) = set.presence.upgrade() else { return };
    let (generation, watching, words) = {
        let state = lock(&set.state);
        if state.announcing {
            return;
        }
        (state.generation, state.watch.is_some(), state.words)
    };
    let watching = watching && set.begin_listing(generation);
    let (directory, limit, name) = (presence.directory.clone(), presence.limit, set.name.clone());
    drop((set, presence));
    let answer = within(limit, directory.list(&name)).await;
    let Some(set) = me.upgrade() else { return };
    match answer {
        Ok(entries) => {
            if watching {
                set.take_in(generation, &entries, true);
            }
            set.correct(words, &entries);
        }
        Err(error) => {
            tracing::debug!(channel = %name, %error, "the directory cannot be compared with");
            let mut state = lock(&set.state);
            if watching && state.generation == generation {
                state.listing = None;
            }
        }
    }
}
