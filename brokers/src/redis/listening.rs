//! What this node listens to: one connection for all subscriptions, and the feeds that hang on it.
//!
//! A feed lives as long as its connection does. When that breaks, or its probe is not heard any
//! more, all of them end, and each follower opens a new feed. So the followers make the
//! subscriptions of a new connection, in batches as large as they come, and no feed takes a missed
//! message for heard.
//!
//! On a cluster each master has one of these, for the channels that are its own. There the server
//! takes subscriptions back when it gives a slot away: the feeds of its channels end, and those
//! alone.
//!
//! Locks are taken in the order *all channels*, *one channel*, *feed*; none is held across an
//! await.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use airwave_core::broker::{BrokerStats, FeedSender};
use airwave_core::directory::{MemberEntry, Watch, WatchSender};
use airwave_core::shrink::shrink;
use airwave_core::{BrokerError, ChannelName, Event, Feed, Position};
use redis::aio::MultiplexedConnection;
use redis::{Cmd, Pipeline, PushKind, RedisError, Value, cmd};
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::commands::Commands;
use super::errors::{RedisConnectError, late, lost};
use super::marks::Marks;
use super::members::{TELLS_OF_MEMBERS, decode as decode_members};
use super::naming::{Naming, partition};
use super::scripts::Script;
use super::server::{Server, ServerConnection};
use super::times::{DEADLINE, HEAD_LIVES, LONGEST, bounded, millis};
use super::values::decode;
use crate::reconnect::{Backoff, random_bits};
use crate::silence::while_active;

/// How often this node publishes to itself.
const PROBE_EVERY: Duration = Duration::from_millis(750);

/// How long the key lives that a probe writes.
const PROBE_LIVES: Duration = Duration::from_secs(10);

/// So many probes in a row unheard, and the connection is dead: after three seconds. Counted, not
/// timed, so that a process that stood still itself does not take its server for dead.
const PROBES_MISSED: u32 = 3;

/// So many in a row unheard although other things arrive, and it is asked why. What arrives proves
/// that the connection lives, and mostly the probe stands behind that.
const PROBES_BEHIND: u32 = 6;

/// How many channels one SUBSCRIBE names. Bounds how long the server does nothing else.
const BATCH: usize = 1000;

/// How many events wait for a feed that is being opened. Beyond it the feed fails to open. As many
/// as wait in a feed that nothing reads: a page of history may be on its way meanwhile.
const OPENING_BOUND: usize = 65_536;

/// How long a feed that is being opened waits for a connection.
const WAIT_FOR_CONNECTION: Duration = Duration::from_secs(1);

/// How often the heads of channels that are followed are told to live on, however quiet they are.
const REMEMBER_EVERY: Duration = Duration::from_secs(24 * 3600);

/// A channel that has been followed for so long without an event gets a head. An epoch lives for 14
/// days more when it is given out.
const FOLLOWED_LONG: Duration = Duration::from_secs(7 * 24 * 3600);

/// What a publish carries instead of an event where feeds shall end and be healed from history.
pub(super) const LOOK: &str = "look";

/// How long after that they end. While a slot moves, each event of the channel brings this word. A
/// feed that ended with each would end before anybody has read what it is to be healed from.
const LOOK_AFTER: Duration = Duration::from_millis(100);

pub(super) struct Listening {
    server: Server,
    commands: Arc<Commands>,
    naming: Naming,
    stats: BrokerStats,
    marks: Arc<Marks>,
    /// Ends the name of the pub/sub channel on which this node hears itself.
    tag: String,
    /// That name, for the connection as it is now.
    probe: Mutex<Arc<str>>,
    /// The partition that it is in; any that is this server's.
    home: AtomicU16,
    /// Told when this server turns out not to have what it was thought to have.
    astray: Arc<Notify>,
    /// The server gave away the slot of the probe.
    probe_left: Notify,
    /// The connection lives, and the server does not tell this node what it publishes.
    deaf: Notify,
    state: Mutex<ListeningState>,
    /// Which connection listens; zero: none.
    connection: watch::Sender<u64>,
    /// Some channel's subscription must be made or ended.
    changed: Notify,
    asked: AtomicU64,
    answered: AtomicU64,
    last_probe: watch::Sender<u64>,
    /// How many things have arrived on the connection.
    arrived: AtomicU64,
}

#[derive(Default)]
struct ListeningState {
    /// Which connection the feeds belong to; zero: none, and there are none.
    connection: u64,
    channels: HashMap<ChannelName, Arc<Mutex<Subscription>>>,
    changed: VecDeque<ChannelName>,
    listeners: u64,
}

#[derive(Default)]
struct Subscription {
    partition: u16,
    /// The server has been asked, or is being asked.
    wanted: bool,
    confirmed: bool,
    waiting: Vec<oneshot::Sender<()>>,
    /// Its feeds are about to end, see [`LOOK_AFTER`].
    looks: bool,
    followers: Vec<(u64, Follower)>,
}

enum Follower {
    /// The head is not known yet, so events wait.
    Opening(Vec<Arc<Event>>),
    Open {
        feed: FeedSender,
        head: Position,
        last: Position,
        since: Instant,
        /// The first probe that was published after the head had been read. Once it is heard,
        /// nothing older comes.
        settled_by: u64,
    },
    /// A watch, which hears of members only.
    Watching(WatchSender),
}

impl Follower {
    /// False: something is missing, or there is no listener any more. `last_probe`: the newest
    /// probe that has come back.
    fn receive(&mut self, event: &Arc<Event>, last_probe: u64) -> bool {
        match self {
            Follower::Opening(waiting) => {
                waiting.push(event.clone());
                waiting.len() <= OPENING_BOUND
            }
            // Subscriptions may lag behind the commands that read the head. Later it is an event of
            // a server that has lost the head and goes on below it.
            Follower::Open {
                head, last, settled_by, ..
            } if event.position <= *head => *last == *head && last_probe < *settled_by,
            Follower::Open { feed, last, .. } => {
                let follows = event.previous == *last;
                *last = event.position;
                follows && feed.push(event.clone())
            }
            Follower::Watching(watch) => !watch.is_closed(),
        }
    }

    /// Returns false if the watch has been dropped.
    fn hear_of_members(&mut self, entries: &[MemberEntry]) -> bool {
        match self {
            Follower::Watching(watch) => entries.iter().all(|entry| watch.push(entry.clone())),
            Follower::Opening(_) | Follower::Open { .. } => true,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic in a feed's sink leaves everything usable.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A listener of a channel. Dropping it ends its subscription.
pub(super) struct Listener {
    listening: Arc<Listening>,
    channel: ChannelName,
    id: u64,
    opened: bool,
}

impl Drop for Listener {
    fn drop(&mut self) {
        if !self.opened {
            self.listening.leave(&self.channel, self.id);
        }
    }
}

impl Listener {
    /// The watch of all that is heard of members from now on. `None`: something was missed
    /// meanwhile.
    pub(super) fn watch(mut self) -> Option<Watch> {
        let (listening, channel, id) = (Arc::downgrade(&self.listening), self.channel.clone(), self.id);
        let (sender, watch) = Watch::new(move || {
            if let Some(listening) = listening.upgrade() {
                listening.leave(&channel, id);
            }
        });
        // From here on the watch leaves when it is dropped, also below.
        self.opened = true;
        let subscription = lock(&self.listening.state).channels.get(&self.channel).cloned();
        let opened = subscription.is_some_and(|subscription| {
            let mut subscription = lock(&subscription);
            let mine = subscription.followers.iter_mut().find(|(other, _)| *other == id);
            let there = mine.is_some();
            if let Some((_, mine)) = mine {
                *mine = Follower::Watching(sender);
            }
            there
        });
        opened.then_some(watch)
    }

    /// The feed of all that was heard, and will be, after `head`. `None`: something was missed
    /// meanwhile.
    pub(super) fn open(mut self, head: Position) -> Option<Feed> {
        let (listening, channel, id) = (Arc::downgrade(&self.listening), self.channel.clone(), self.id);
        let (sender, feed) = Feed::new(head, move || {
            if let Some(listening) = listening.upgrade() {
                listening.leave(&channel, id);
            }
        });
        // From here on the feed leaves when it is dropped, also below.
        self.opened = true;
        let mut follower = Follower::Open {
            feed: sender,
            head,
            last: head,
            since: Instant::now(),
            settled_by: self.listening.asked.load(Ordering::Relaxed) + 1,
        };
        let subscription = lock(&self.listening.state).channels.get(&self.channel).cloned();
        let opened = subscription.is_some_and(|subscription| {
            let mut subscription = lock(&subscription);
            let mine = subscription.followers.iter_mut().find(|(other, _)| *other == id);
            let Some((_, mine)) = mine else { return false };
            let whole = matches!(mine, Follower::Opening(waiting) if waiting.iter().all(|event| follower.receive(event, 0)));
            if whole {
                *mine = follower;
            }
            whole
        });
        opened.then_some(feed)
    }
}

impl Listening {
    /// Not connected yet. `home`: on a cluster, a partition that this server has.
    pub(super) fn new(
        server: Server,
        commands: Arc<Commands>,
        naming: Naming,
        stats: BrokerStats,
        marks: Arc<Marks>,
        home: u16,
        astray: Arc<Notify>,
    ) -> Arc<Listening> {
        Arc::new(Listening {
            server,
            commands,
            naming,
            stats,
            marks,
            tag: format!("{:016x}", random_bits()),
            probe: Mutex::new("".into()),
            home: AtomicU16::new(home),
            astray,
            probe_left: Notify::new(),
            deaf: Notify::new(),
            state: Mutex::default(),
            connection: watch::Sender::new(0),
            changed: Notify::new(),
            asked: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            last_probe: watch::Sender::new(0),
            arrived: AtomicU64::new(0),
        })
    }

    /// On a cluster: a partition that this server has, from now on.
    pub(super) fn set_home(&self, partition: u16) {
        self.home.store(partition, Ordering::Relaxed);
    }

    /// Begins to listen, and comes back when the server has confirmed it.
    pub(super) async fn join(self: &Arc<Self>, channel: &ChannelName) -> Result<Listener, BrokerError> {
        let mut connection = self.connection.subscribe();
        let connected = async { connection.wait_for(|connection| *connection != 0).await.is_ok() };
        if !timeout(WAIT_FOR_CONNECTION, connected).await.unwrap_or(false) {
            return Err(lost("there is no connection for subscriptions"));
        }
        let (listener, confirmed) = {
            let mut state = lock(&self.state);
            if state.connection == 0 {
                return Err(lost("the connection for subscriptions broke"));
            }
            state.listeners += 1;
            let id = state.listeners;
            let subscription = state.channels.entry(channel.clone()).or_insert_with(|| {
                Arc::new(Mutex::new(Subscription {
                    partition: partition(channel),
                    ..Subscription::default()
                }))
            });
            let subscription = subscription.clone();
            let mut subscription = lock(&subscription);
            subscription.followers.push((id, Follower::Opening(Vec::new())));
            let confirmed = if subscription.confirmed {
                None
            } else {
                let (confirm, confirmed) = oneshot::channel();
                subscription.waiting.push(confirm);
                Some(confirmed)
            };
            if !subscription.wanted {
                state.changed.push_back(channel.clone());
                self.changed.notify_one();
            }
            let listener = Listener {
                listening: self.clone(),
                channel: channel.clone(),
                id,
                opened: false,
            };
            (listener, confirmed)
        };
        if let Some(confirmed) = confirmed {
            let confirmed = while_active(DEADLINE, || self.arrived.load(Ordering::Relaxed), confirmed).await;
            confirmed
                .ok_or_else(late)?
                .map_err(|_| lost("the connection for subscriptions broke"))?;
        }
        Ok(listener)
    }

    fn leave(&self, channel: &ChannelName, id: u64) {
        let left = {
            let mut state = lock(&self.state);
            let Some(subscription) = state.channels.get(channel).cloned() else {
                return;
            };
            let mut subscription = lock(&subscription);
            let left = subscription.followers.iter().position(|(other, _)| *other == id);
            let left = left.map(|at| subscription.followers.swap_remove(at));
            if subscription.followers.is_empty() {
                state.changed.push_back(channel.clone());
                self.changed.notify_one();
            }
            left
        };
        drop(left);
    }

    /// Writes a key of this node's, publishes to itself and waits until it hears that. A server may
    /// carry messages and refuse what is written: it has too few replicas, is full, cannot save.
    pub(super) async fn probe_itself(&self) -> Result<(), BrokerError> {
        let mut last_probe = self.last_probe.subscribe();
        let number = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        let connected = self.commands.connected().await?;
        if *self.connection.borrow() == 0 {
            return Err(lost("there is no connection for subscriptions"));
        }
        let probe = lock(&self.probe).clone();
        let mut both = Pipeline::with_capacity(2);
        both.cmd("SET").arg(&*probe).arg(number).arg("PX").arg(millis(PROBE_LIVES));
        // On a cluster the key's slot is the probe's: a master that the others have replaced goes
        // on to carry messages, but does not give out keys.
        let publish = match self.naming {
            Naming::Database(_) => "PUBLISH",
            Naming::Partitions => "SPUBLISH",
        };
        both.cmd(publish).arg(&*probe).arg(number);
        let (mut refused, mut asked) = (None, Ok(()));
        match connected.send_all(&both).await {
            Ok(answers) => {
                for (n, answer) in answers.into_iter().enumerate() {
                    match answer.extract_error() {
                        Ok(_) => {}
                        // The slot is on its way elsewhere, but it is still here.
                        Err(error) if error.code() == Some("ASK") => {}
                        Err(error) if n == 0 => refused = Some(error),
                        Err(error) => asked = Err(error),
                    }
                }
            }
            Err(error) => asked = Err(error),
        }
        asked.map_err(|error| self.commands.failed(&connected, error))?;
        self.answered.fetch_max(number, Ordering::Relaxed);
        if let Some(error) = refused {
            return Err(self.commands.failed(&connected, error));
        }
        let returned = last_probe.wait_for(|last| *last >= number);
        let returned = while_active(DEADLINE, || self.arrived.load(Ordering::Relaxed), returned).await;
        returned.ok_or_else(late)?.map(|_| ()).map_err(|_| lost("it is closed"))
    }

    /// Ends all feeds and takes no more.
    pub(super) fn close(&self) {
        self.end_feeds();
    }

    async fn open(self: Arc<Self>, number: u64) -> Result<ServerConnection, RedisConnectError> {
        let me = Arc::downgrade(&self);
        let wire = self
            .server
            .open(move |kind, data| Listening::on_push(&me, number, &kind, data))
            .await?;
        let probe: Arc<str> = self.naming.probe(self.home.load(Ordering::Relaxed), &self.tag).into();
        let mut connection = wire.connection.clone();
        let subscribing = async {
            match self.naming {
                Naming::Database(_) => connection.subscribe(&*probe).await,
                Naming::Partitions => {
                    let answer = connection.send_packed_command(cmd("SSUBSCRIBE").arg(&*probe)).await;
                    answer.and_then(Value::extract_error).map(|_| ())
                }
            }
        };
        timeout(DEADLINE, subscribing)
            .await
            .map_err(|_| self.server.unreachable("no answer in time"))?
            .map_err(|error| self.server.explain(&error))?;
        *lock(&self.probe) = probe;
        lock(&self.state).connection = number;
        self.connection.send_replace(number);
        Ok(wire)
    }

    /// The first connection, made before [`Listening::keep`] is begun where it is to be seen
    /// whether it can be.
    pub(super) async fn first(self: &Arc<Self>) -> Result<ServerConnection, RedisConnectError> {
        self.clone().open(1).await
    }

    /// Keeps a connection open, for ever.
    pub(super) async fn keep(self: Arc<Self>, first: Option<ServerConnection>) {
        let mut backoff = Backoff::new();
        let mut number = 1;
        let mut wire = first;
        let mut lost = false;
        loop {
            if let Some(wire) = wire.take() {
                let why = self.serve(&wire).await;
                self.end_feeds();
                self.astray.notify_one();
                backoff.broke();
                lost = true;
                tracing::warn!(server = %self.server, at = %wire.place, why, "the connection for subscriptions is lost");
            }
            backoff.pause(&Notify::new()).await;
            number += 1;
            match self.clone().open(number).await {
                Ok(opened) => {
                    backoff.opened();
                    tracing::info!(server = %self.server, at = %opened.place, "connected for subscriptions");
                    if lost {
                        self.stats.reconnected();
                    }
                    wire = Some(opened);
                }
                Err(error) => {
                    // On a cluster the slot of the probe may be what is refused.
                    self.astray.notify_one();
                    backoff.failed(&error);
                }
            }
        }
    }

    /// Makes and ends subscriptions until the connection is dead; says why.
    async fn serve(self: &Arc<Self>, wire: &ServerConnection) -> &'static str {
        let mut connection = wire.connection.clone();
        let mut probes = interval(PROBE_EVERY);
        probes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut remember = tokio::time::interval_at(tokio::time::Instant::now() + REMEMBER_EVERY, REMEMBER_EVERY);
        let (mut last, mut missed, mut behind) = (0, 0, 0);
        let mut before = (0, 0);
        let first = self.asked.load(Ordering::Relaxed) + 1;
        loop {
            tokio::select! {
                _ = wire.dead.wait() => return "it broke",
                () = self.server.leaves(&wire.place) => return "the sentinels name another master now",
                () = self.probe_left.notified() => return "the server gave away what this node listens to for itself",
                () = self.deaf.notified() => return "this node does not hear itself, although other things arrive",
                _ = probes.tick() => {
                    let answers = self.commands.now().map_or(0, |commands| commands.answers());
                    let now = (self.arrived.load(Ordering::Relaxed), answers);
                    // The probe is on its way to the server, or on its way back.
                    let moves = match self.answered.load(Ordering::Relaxed) < last {
                        true => now.1 > before.1,
                        false => now.0 > before.0,
                    };
                    before = now;
                    (missed, behind) = match *self.last_probe.borrow() < last {
                        // Whatever arrives proves that it lives.
                        true if moves => (0, behind + 1),
                        true => (missed + 1, behind),
                        false => (0, 0),
                    };
                    if behind >= PROBES_BEHIND {
                        behind = 0;
                        tokio::spawn(self.clone().asks_whether_it_is_deaf(connection.clone(), first));
                    }
                    if missed >= PROBES_MISSED {
                        if self.answered.load(Ordering::Relaxed) < last && let Some(commands) = self.commands.now() {
                            commands.give_up();
                        }
                        return "this node does not hear itself any more";
                    }
                    // `probe_itself` takes the next number; another may take one in between, which
                    // is as good.
                    last = self.asked.load(Ordering::Relaxed) + 1;
                    let me = self.clone();
                    tokio::spawn(async move { timeout(LONGEST, me.probe_itself()).await });
                }
                _ = remember.tick() => {
                    let me = self.clone();
                    tokio::spawn(async move { me.remember().await });
                }
                () = self.changed.notified() => {
                    let (subscribe, unsubscribe) = self.take_changes();
                    let change = self.change(&mut connection, &subscribe, &unsubscribe);
                    match while_active(DEADLINE, || self.arrived.load(Ordering::Relaxed), change).await {
                        Some(Ok(())) => {}
                        Some(Err(error)) => {
                            tracing::warn!(server = %self.server, %error, "Redis refuses subscriptions");
                            return "a subscription failed";
                        }
                        None => return "a subscription was not confirmed in time",
                    }
                }
            }
        }
    }

    /// Asks for an answer on the connection for subscriptions. It comes behind all that the server
    /// has told there, so a probe that was published before and is not heard then never will be.
    /// `first`: the first probe of this connection.
    async fn asks_whether_it_is_deaf(self: Arc<Self>, mut connection: MultiplexedConnection, first: u64) {
        let published = self.answered.load(Ordering::Relaxed);
        let number = *self.connection.borrow();
        if published >= first
            && connection.send_packed_command(&cmd("TIME")).await.is_ok()
            && *self.connection.borrow() == number
            && *self.last_probe.borrow() < published
        {
            self.deaf.notify_one();
        }
    }

    async fn change(
        &self,
        connection: &mut MultiplexedConnection,
        subscribe: &[ChannelName],
        unsubscribe: &[ChannelName],
    ) -> Result<(), RedisError> {
        match self.naming {
            Naming::Database(_) => {
                let names = |channels: &[ChannelName]| channels.iter().map(|name| self.naming.wire(name)).collect::<Vec<_>>();
                if !unsubscribe.is_empty() {
                    connection.unsubscribe(names(unsubscribe)).await?;
                }
                if !subscribe.is_empty() {
                    connection.subscribe(names(subscribe)).await?;
                    for name in subscribe {
                        self.confirm(name.as_str());
                    }
                }
            }
            Naming::Partitions => {
                self.change_each(connection, "SUNSUBSCRIBE", unsubscribe).await?;
                self.change_each(connection, "SSUBSCRIBE", subscribe).await?;
            }
        }
        Ok(())
    }

    /// A command for each channel, because a slot that is not here any more must refuse its own
    /// channels and no others; all in one write. What is confirmed is told to [`Listening::told`]
    /// before the answers are.
    async fn change_each(
        &self,
        connection: &mut MultiplexedConnection,
        command: &str,
        channels: &[ChannelName],
    ) -> Result<(), RedisError> {
        if channels.is_empty() {
            return Ok(());
        }
        let mut calls = Pipeline::with_capacity(channels.len());
        for channel in channels {
            calls.cmd(command).arg(self.naming.wire(channel));
        }
        let mut refused = None;
        for answer in connection.send_packed_commands(&calls, 0, channels.len()).await? {
            match answer.extract_error() {
                Ok(_) => {}
                Err(error) if error.is_cluster_error() => refused = Some(error),
                Err(error) => return Err(error),
            }
        }
        if let Some(error) = refused {
            tracing::debug!(server = %self.server, %error, "channels are not here");
            self.astray.notify_one();
            if command == "SSUBSCRIBE" {
                self.end_unconfirmed(channels);
            }
        }
        Ok(())
    }

    /// Ends the feeds of those channels of which the subscription is not confirmed.
    fn end_unconfirmed(&self, channels: &[ChannelName]) {
        let is_confirmed = |subscription: &Mutex<Subscription>| lock(subscription).confirmed;
        let ended: Vec<_> = {
            let mut state = lock(&self.state);
            let unconfirmed = |name: &&ChannelName| state.channels.get(*name).is_some_and(|one| !is_confirmed(one));
            let unconfirmed: Vec<&ChannelName> = channels.iter().filter(unconfirmed).collect();
            unconfirmed
                .into_iter()
                .filter_map(|name| state.channels.remove(name))
                .collect()
        };
        ended.iter().for_each(|subscription| end(subscription));
    }

    /// Which channels must be subscribed to, which not any more. They count as asked for from now
    /// on.
    fn take_changes(&self) -> (Vec<ChannelName>, Vec<ChannelName>) {
        let (mut subscribe, mut unsubscribe) = (Vec::new(), Vec::new());
        let mut state = lock(&self.state);
        while subscribe.len() + unsubscribe.len() < BATCH {
            let Some(name) = state.changed.pop_front() else { break };
            let Some(subscription) = state.channels.get(&name).cloned() else {
                continue;
            };
            let mut subscription = lock(&subscription);
            if subscription.followers.is_empty() {
                state.channels.remove(&name);
                if subscription.wanted {
                    unsubscribe.push(name);
                }
            } else if !subscription.wanted {
                subscription.wanted = true;
                subscribe.push(name);
            }
        }
        if !state.changed.is_empty() {
            self.changed.notify_one();
        }
        // A crowd that has gone gives its memory back.
        let ListeningState { channels, changed, .. } = &mut *state;
        shrink(channels);
        shrink(changed);
        (subscribe, unsubscribe)
    }

    fn confirm(&self, name: &str) {
        let subscription = lock(&self.state).channels.get(name).cloned();
        if let Some(subscription) = subscription {
            let mut subscription = lock(&subscription);
            subscription.confirmed = true;
            for waiting in subscription.waiting.drain(..) {
                // The send fails if the waiting call has given up.
                let _ = waiting.send(());
            }
        }
    }

    /// Ends the feeds of channels that are not this server's any more.
    pub(super) fn end(&self, gone: impl Fn(&ChannelName) -> bool) {
        let ended: Vec<_> = {
            let mut state = lock(&self.state);
            state.channels.extract_if(|name, _| gone(name)).collect()
        };
        for (_, subscription) in ended {
            end(&subscription);
        }
    }

    fn end_feeds(&self) {
        self.connection.send_replace(0);
        let ended = {
            let mut state = lock(&self.state);
            state.connection = 0;
            state.changed.clear();
            std::mem::take(&mut state.channels)
        };
        for subscription in ended.into_values() {
            end(&subscription);
        }
    }

    /// Called by the connection's own task, with one thing after the other.
    fn on_push(me: &Weak<Listening>, connection: u64, kind: &PushKind, data: Vec<Value>) {
        let Some(me) = me.upgrade() else { return };
        me.arrived.fetch_add(1, Ordering::Relaxed);
        let mut data = data.into_iter();
        let Some(Value::BulkString(channel)) = data.next() else {
            return;
        };
        let Ok(channel) = std::str::from_utf8(&channel) else { return };
        match kind {
            PushKind::Message | PushKind::SMessage => {
                if let Some(Value::BulkString(payload)) = data.next() {
                    me.message(connection, channel, payload);
                }
            }
            PushKind::SSubscribe | PushKind::SUnsubscribe => {
                if lock(&me.state).connection != connection {
                    return;
                }
                let begins = *kind == PushKind::SSubscribe;
                match me.naming.channel(channel) {
                    Some(name) if begins => me.confirm(name),
                    Some(name) => me.taken_back(name),
                    None if begins => {}
                    None => me.probe_left.notify_one(),
                }
            }
            _ => {}
        }
    }

    /// The server has ended a subscription: because we asked for it, or because the slot is
    /// another's now.
    fn taken_back(&self, name: &str) {
        let ended = {
            let mut state = lock(&self.state);
            let confirmed = state
                .channels
                .get(name)
                .is_some_and(|subscription| lock(subscription).confirmed);
            if confirmed { state.channels.remove(name) } else { None }
        };
        if let Some(subscription) = ended {
            end(&subscription);
            self.astray.notify_one();
        }
    }

    fn message(&self, connection: u64, channel: &str, payload: Vec<u8>) {
        let Some(name) = self.naming.channel(channel) else {
            if channel.ends_with(&*self.tag) {
                self.note_probe(&payload);
            }
            return;
        };
        let subscription = {
            let state = lock(&self.state);
            if state.connection != connection {
                return;
            }
            state.channels.get(name).cloned()
        };
        let Some(subscription) = subscription else { return };
        if payload.first() == Some(&TELLS_OF_MEMBERS) {
            let entries = decode_members(&payload);
            let mut subscription = lock(&subscription);
            match entries {
                Some(entries) => subscription
                    .followers
                    .retain_mut(|(_, follower)| follower.hear_of_members(&entries)),
                None => subscription
                    .followers
                    .retain(|(_, follower)| !matches!(follower, Follower::Watching(_))),
            }
            return;
        }
        let look = payload == LOOK.as_bytes();
        match decode(payload).map(Arc::new) {
            None if look => end_later(&subscription),
            Some(event) => {
                let mut subscription = lock(&subscription);
                self.marks.note(subscription.partition, event.position);
                let last_probe = *self.last_probe.borrow();
                subscription
                    .followers
                    .retain_mut(|(_, follower)| follower.receive(&event, last_probe));
            }
            None => {
                tracing::warn!(channel = name, "a message in pub/sub is not an event of ours: its feeds end");
                lock(&subscription).followers.clear();
            }
        }
    }

    /// Notes the number of a probe that this node has published and now receives.
    fn note_probe(&self, payload: &[u8]) {
        let Some(number) = std::str::from_utf8(payload).ok().and_then(|text| text.parse::<u64>().ok()) else {
            return;
        };
        self.stats.record_activity();
        self.last_probe.send_if_modified(|last| {
            let newer = number > *last;
            *last = number.max(*last);
            newer
        });
    }

    /// Lets the heads of all channels that are followed live on.
    async fn remember(&self) {
        let channels: Vec<_> = lock(&self.state)
            .channels
            .iter()
            .map(|(name, subscription)| (name.clone(), subscription.clone()))
            .collect();
        for channels in channels.chunks(BATCH) {
            let Ok(connected) = self.commands.connected().await else {
                return;
            };
            for (channel, subscription) in channels {
                let at = lock(subscription).followers.iter().find_map(|(_, follower)| match follower {
                    Follower::Open { last, since, .. } if since.elapsed() >= FOLLOWED_LONG => Some(last.to_string()),
                    _ => None,
                });
                let [one, other] = self.naming.epochs(channel);
                let arguments = |call: &mut Cmd| {
                    call.arg(3).arg(self.naming.key(channel, "head")).arg(&one).arg(&other);
                    call.arg(at.as_deref().unwrap_or_default());
                    // One that lives longer, because its history does, is left alone.
                    call.arg(millis(bounded(HEAD_LIVES)));
                };
                match connected.script(Script::REMEMBER, &arguments, false).await {
                    Ok(_) => {}
                    Err(error) if error.is_timeout() => {}
                    Err(error) => {
                        self.commands.failed(&connected, error);
                        return;
                    }
                }
            }
        }
    }
}

/// Ends the subscription's feeds after [`LOOK_AFTER`]. An end that is due already is also this one.
fn end_later(subscription: &Arc<Mutex<Subscription>>) {
    if std::mem::replace(&mut lock(subscription).looks, true) {
        return;
    }
    let subscription = subscription.clone();
    tokio::spawn(async move {
        sleep(LOOK_AFTER).await;
        let ended = {
            let mut subscription = lock(&subscription);
            subscription.looks = false;
            std::mem::take(&mut subscription.followers)
        };
        drop(ended);
    });
}

/// Empties the subscription, so that a message on its way finds no listener.
fn end(subscription: &Mutex<Subscription>) {
    let ended = {
        let mut subscription = lock(subscription);
        (
            std::mem::take(&mut subscription.followers),
            std::mem::take(&mut subscription.waiting),
        )
    };
    drop(ended);
}
