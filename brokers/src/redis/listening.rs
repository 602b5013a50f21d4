//! What this node listens to: one connection for all subscriptions, and the feeds that hang on it.
//!
//! A feed lives as long as its connection does. When that breaks, or its probe is not heard any more, all of them end, and whoever
//! wants to go on follows again: so the subscriptions of a new connection are made by those who need them, in batches as large as
//! they come, and nothing that was missed meanwhile can be taken for heard.
//!
//! Locks are taken in the order *all channels*, *one channel*, *feed*; none is held across an await.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use airwave_core::broker::FeedSender;
use airwave_core::{BrokerError, ChannelName, Event, Feed, Position};
use redis::{Value, cmd};
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::connection::{Backoff, Commands, ConnectError, Server, Wire, lost, random_bits};
use super::{DEADLINE, HEAD_LIVES, bounded, decode, key, millis};

/// How often this node publishes to itself.
const PROBE_EVERY: Duration = Duration::from_millis(750);

/// So many probes in a row unheard, and the connection is dead: after three seconds. Counted, not timed, so that a process that stood
/// still itself does not take its server for dead.
const PROBES_UNHEARD: u32 = 3;

/// How many channels one SUBSCRIBE names. Bounds how long the server does nothing else.
const BATCH: usize = 1000;

/// How many events wait for a feed that is being opened. Beyond it the feed fails to open.
const OPENING_BOUND: usize = 10_000;

/// How long a feed that is being opened waits for a connection.
const WAIT_FOR_CONNECTION: Duration = Duration::from_secs(1);

/// How often the heads of channels that are followed are told to live on, however quiet they are.
const REMEMBER_EVERY: Duration = Duration::from_secs(24 * 3600);

pub(super) struct Listening {
    server: Server,
    commands: Arc<Commands>,
    /// What comes before a channel's name in pub/sub, and after it: `}`.
    prefix: String,
    /// The pub/sub channel of this node alone. Not a channel's: those have braces.
    probe: String,
    state: Mutex<State>,
    /// Which connection listens; zero: none.
    connection: watch::Sender<u64>,
    /// Some channel's subscription must be made or ended.
    changed: Notify,
    asked: AtomicU64,
    answered: AtomicU64,
    heard: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    /// Which connection the feeds belong to; zero: none, and there are none.
    connection: u64,
    channels: HashMap<ChannelName, Arc<Mutex<Subscription>>>,
    changed: VecDeque<ChannelName>,
    listeners: u64,
}

#[derive(Default)]
struct Subscription {
    /// The server has been asked, or is being asked.
    wanted: bool,
    confirmed: bool,
    waiting: Vec<oneshot::Sender<()>>,
    ears: Vec<(u64, Ear)>,
}

enum Ear {
    /// The head is not known yet, so events wait.
    Opening(Vec<Arc<Event>>),
    Open {
        feed: FeedSender,
        head: Position,
        last: Position,
    },
}

impl Ear {
    /// False: something is missing, or nobody listens any more.
    fn hear(&mut self, event: &Arc<Event>) -> bool {
        match self {
            Ear::Opening(waiting) => {
                waiting.push(event.clone());
                waiting.len() <= OPENING_BOUND
            }
            // Subscriptions may lag behind the commands that read the head.
            Ear::Open { head, .. } if event.position <= *head => true,
            Ear::Open { feed, last, .. } => {
                let follows = event.previous == *last;
                *last = event.position;
                follows && feed.push(event.clone())
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic in a feed's sink leaves everything usable.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Somebody who has begun to listen to a channel. Dropping it stops that.
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
    /// The feed of all that was heard, and will be, after `head`. `None`: something was missed meanwhile.
    pub(super) fn open(mut self, head: Position) -> Option<Feed> {
        let (listening, channel, id) = (Arc::downgrade(&self.listening), self.channel.clone(), self.id);
        let (sender, feed) = Feed::new(head, move || {
            if let Some(listening) = listening.upgrade() {
                listening.leave(&channel, id);
            }
        });
        // From here on the feed leaves when it is dropped, also below.
        self.opened = true;
        let mut ear = Ear::Open {
            feed: sender,
            head,
            last: head,
        };
        let subscription = lock(&self.listening.state).channels.get(&self.channel).cloned();
        let opened = subscription.is_some_and(|subscription| {
            let mut subscription = lock(&subscription);
            let mine = subscription.ears.iter_mut().find(|(other, _)| *other == id);
            let Some((_, mine)) = mine else { return false };
            let whole = matches!(mine, Ear::Opening(waiting) if waiting.iter().all(|event| ear.hear(event)));
            if whole {
                *mine = ear;
            }
            whole
        });
        opened.then_some(feed)
    }
}

impl Listening {
    /// The first connection, and the task that keeps one open.
    pub(super) async fn connect(
        server: Server,
        commands: Arc<Commands>,
    ) -> Result<(Arc<Listening>, impl Future<Output = ()>), ConnectError> {
        let database = server.database;
        let listening = Arc::new(Listening {
            server,
            commands,
            prefix: format!("airwave:{database}:{{"),
            probe: format!("airwave:{database}:probe:{:016x}", random_bits()),
            state: Mutex::default(),
            connection: watch::Sender::new(0),
            changed: Notify::new(),
            asked: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            heard: watch::Sender::new(0),
        });
        let first = listening.clone().open(1).await?;
        Ok((listening.clone(), listening.keep(first)))
    }

    /// The channel's name in pub/sub.
    pub(super) fn wire_name(&self, channel: &ChannelName) -> String {
        format!("{}{channel}}}", self.prefix)
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
            let subscription = state.channels.entry(channel.clone()).or_default().clone();
            let mut subscription = lock(&subscription);
            subscription.ears.push((id, Ear::Opening(Vec::new())));
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
            confirmed.await.map_err(|_| lost("the connection for subscriptions broke"))?;
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
            let left = subscription.ears.iter().position(|(other, _)| *other == id);
            let left = left.map(|at| subscription.ears.swap_remove(at));
            if subscription.ears.is_empty() {
                state.changed.push_back(channel.clone());
                self.changed.notify_one();
            }
            left
        };
        drop(left);
    }

    /// Publishes to itself and waits until it hears that.
    pub(super) async fn hears_itself(&self) -> Result<(), BrokerError> {
        let mut heard = self.heard.subscribe();
        let number = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        let connected = self.commands.connected().await?;
        if *self.connection.borrow() == 0 {
            return Err(lost("there is no connection for subscriptions"));
        }
        let probe = connected.send(cmd("PUBLISH").arg(&self.probe).arg(number)).await;
        probe.map_err(|error| self.commands.failed(&connected, error))?;
        self.answered.fetch_max(number, Ordering::Relaxed);
        let heard = heard.wait_for(|heard| *heard >= number).await;
        heard.map(|_| ()).map_err(|_| lost("it is closed"))
    }

    /// Ends all feeds and takes no more.
    pub(super) fn close(&self) {
        self.end_feeds();
    }

    async fn open(self: Arc<Self>, number: u64) -> Result<Wire, ConnectError> {
        let me = Arc::downgrade(&self);
        let wire = self.server.open(move |data| Listening::message(&me, number, data)).await?;
        let subscribed = timeout(DEADLINE, wire.connection.clone().subscribe(&self.probe)).await;
        subscribed
            .map_err(|_| self.server.unreachable("no answer in time"))?
            .map_err(|error| self.server.explain(&error))?;
        lock(&self.state).connection = number;
        self.connection.send_replace(number);
        Ok(wire)
    }

    async fn keep(self: Arc<Self>, first: Wire) {
        let mut backoff = Backoff::new();
        let (mut wire, mut number) = (Some(first), 1);
        loop {
            if let Some(wire) = wire.take() {
                let why = self.serve(&wire).await;
                self.end_feeds();
                backoff.broke();
                tracing::warn!(server = %self.server, why, "the connection for subscriptions is lost");
            }
            backoff.pause().await;
            number += 1;
            match self.clone().open(number).await {
                Ok(opened) => {
                    backoff.opened();
                    tracing::info!(server = %self.server, "connected again for subscriptions");
                    wire = Some(opened);
                }
                Err(error) => backoff.failed(&error),
            }
        }
    }

    /// Makes and ends subscriptions until the connection is dead; says why.
    async fn serve(self: &Arc<Self>, wire: &Wire) -> &'static str {
        let mut connection = wire.connection.clone();
        let mut probes = interval(PROBE_EVERY);
        probes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut remember = tokio::time::interval_at(tokio::time::Instant::now() + REMEMBER_EVERY, REMEMBER_EVERY);
        let (mut last, mut unheard) = (0, 0);
        loop {
            tokio::select! {
                _ = wire.dead.wait() => return "it broke",
                _ = probes.tick() => {
                    unheard = if *self.heard.borrow() < last { unheard + 1 } else { 0 };
                    if unheard >= PROBES_UNHEARD {
                        if self.answered.load(Ordering::Relaxed) < last && let Some(commands) = self.commands.now() {
                            commands.give_up();
                        }
                        return "this node does not hear itself any more";
                    }
                    // `hears_itself` takes the next number; another may take one in between, which is as good.
                    last = self.asked.load(Ordering::Relaxed) + 1;
                    let me = self.clone();
                    tokio::spawn(async move { timeout(DEADLINE, me.hears_itself()).await });
                }
                _ = remember.tick() => {
                    let me = self.clone();
                    tokio::spawn(async move { me.remember().await });
                }
                () = self.changed.notified() => {
                    let (subscribe, unsubscribe) = self.take_changes();
                    let names = |channels: &[ChannelName]| channels.iter().map(|name| self.wire_name(name)).collect::<Vec<_>>();
                    let change = async {
                        if !unsubscribe.is_empty() {
                            connection.unsubscribe(names(&unsubscribe)).await?;
                        }
                        if !subscribe.is_empty() {
                            connection.subscribe(names(&subscribe)).await?;
                        }
                        Ok::<(), redis::RedisError>(())
                    };
                    match timeout(DEADLINE, change).await {
                        Ok(Ok(())) => self.confirm(&subscribe),
                        Ok(Err(error)) => {
                            tracing::warn!(server = %self.server, %error, "Redis refuses subscriptions");
                            return "a subscription failed";
                        }
                        Err(_) => return "a subscription was not confirmed in time",
                    }
                }
            }
        }
    }

    /// Which channels must be subscribed to, which not any more. They count as asked for from now on.
    fn take_changes(&self) -> (Vec<ChannelName>, Vec<ChannelName>) {
        let (mut subscribe, mut unsubscribe) = (Vec::new(), Vec::new());
        let mut state = lock(&self.state);
        while subscribe.len() + unsubscribe.len() < BATCH {
            let Some(name) = state.changed.pop_front() else { break };
            let Some(subscription) = state.channels.get(&name).cloned() else {
                continue;
            };
            let mut subscription = lock(&subscription);
            if subscription.ears.is_empty() {
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
        (subscribe, unsubscribe)
    }

    fn confirm(&self, channels: &[ChannelName]) {
        for name in channels {
            let subscription = lock(&self.state).channels.get(name).cloned();
            if let Some(subscription) = subscription {
                let mut subscription = lock(&subscription);
                subscription.confirmed = true;
                for waiting in subscription.waiting.drain(..) {
                    // Whoever gave up waiting has left, too.
                    let _ = waiting.send(());
                }
            }
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
            // A message may be on its way to it: it must find nobody.
            let ended = {
                let mut subscription = lock(&subscription);
                (
                    std::mem::take(&mut subscription.ears),
                    std::mem::take(&mut subscription.waiting),
                )
            };
            drop(ended);
        }
    }

    /// Called by the connection's own task, with one message after the other.
    fn message(me: &Weak<Listening>, connection: u64, data: Vec<Value>) {
        let Some(me) = me.upgrade() else { return };
        let mut data = data.into_iter();
        let (Some(Value::BulkString(channel)), Some(Value::BulkString(payload))) = (data.next(), data.next()) else {
            return;
        };
        let Ok(channel) = std::str::from_utf8(&channel) else { return };
        if channel == me.probe {
            if let Some(number) = std::str::from_utf8(&payload).ok().and_then(|text| text.parse::<u64>().ok()) {
                me.heard.send_if_modified(|heard| {
                    let newer = number > *heard;
                    *heard = number.max(*heard);
                    newer
                });
            }
            return;
        }
        let Some(name) = channel.strip_prefix(&*me.prefix).and_then(|rest| rest.strip_suffix('}')) else {
            return;
        };
        let subscription = {
            let state = lock(&me.state);
            if state.connection != connection {
                return;
            }
            state.channels.get(name).cloned()
        };
        let Some(subscription) = subscription else { return };
        let event = decode(payload).map(Arc::new);
        let mut subscription = lock(&subscription);
        match event {
            Some(event) => subscription.ears.retain_mut(|(_, ear)| ear.hear(&event)),
            None => {
                tracing::warn!(channel = name, "a message in pub/sub is not an event of ours: its feeds end");
                subscription.ears.clear();
            }
        }
    }

    /// Lets the heads of all channels that are followed live on.
    async fn remember(&self) {
        let channels: Vec<ChannelName> = lock(&self.state).channels.keys().cloned().collect();
        for channels in channels.chunks(BATCH) {
            let Ok(connected) = self.commands.connected().await else {
                return;
            };
            let calls = channels.iter().map(|channel| {
                // GT: one that lives longer, because its history does, is left alone.
                let mut call = cmd("PEXPIRE");
                call.arg(key(channel, "head")).arg(millis(bounded(HEAD_LIVES))).arg("GT");
                call
            });
            for call in calls {
                if let Ok(Err(error)) = timeout(DEADLINE, connected.send(&call)).await {
                    self.commands.failed(&connected, error);
                    return;
                }
            }
        }
    }
}
