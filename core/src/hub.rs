//! One node: its open logs, its sessions, its limits. What every transport needs of permission,
//! opening and sending is here once.

use std::collections::HashMap;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::address::{AddressCounts, AddressKey, AddressPlace};
use crate::backbone::Backbone;
use crate::broker::{Broker, BrokerError, IDEMPOTENCY_WINDOW, PageLimit, Replay};
use crate::caught::Call;
use crate::channel::Channel;
use crate::directory::Directory;
use crate::event::{ChannelName, IdempotencyKey, Message, Position};
use crate::follower::Follower;
use crate::format::{Format, MAX_FORMATS};
use crate::handler::{Client, ConnectRequest, DynHandler, Handler, Identity, LeaveReason, Reply};
use crate::idempotency::KeySource;
use crate::jitter::Jitter;
use crate::key_counts::KeyCounts;
use crate::log::FormatSlot;
use crate::newer::Newer;
use crate::observe::Metrics;
use crate::outage::{HealTurns, Outage, Unanswered};
use crate::patience::{self, Patience};
use crate::presence::Presence;
use crate::publish::Publish;
use crate::rate::Rates;
use crate::refusal::{Code, Refusal};
use crate::registry::Registry;
use crate::ring_memory::RingMemory;
use crate::rule::{Limits, Pattern, Rule, Rules, SendPolicy, TransportName};
use crate::session_handle::SessionHandle;
use crate::shrink::shrink;
use crate::singleflight::Singleflight;
use crate::warnings::{Warning, Warnings};

/// How often the hub looks after its sessions and logs; more often where a limit is shorter.
const TICK: Duration = Duration::from_secs(1);
/// After how long without its broker a node tells its listeners.
const STALE_AFTER: Duration = Duration::from_secs(10);
/// How long taking members back may hold up the end of a node.
const DEREGISTER_WITHIN: Duration = Duration::from_secs(2);
/// How many logs are looked at in one tick, so that a node with a million does not stutter.
const LOGS_PER_TICK: usize = 50_000;

/// How often a node at `limits.channels` looks for unused logs that can make room.
const ROOM_PAUSE: Duration = Duration::from_secs(1);

/// One running Airwave process: cheap to clone, gone when the last clone is.
#[derive(Clone)]
pub struct Hub(pub(crate) Arc<Inner>);

/// Puts a [`Hub`] together.
pub struct HubBuilder {
    broker: Arc<dyn Broker>,
    rules: Rules,
    limits: Limits,
    handlers: Vec<(Pattern, Arc<dyn DynHandler>)>,
    jitter: Jitter,
    directory: Option<Arc<dyn Directory>>,
}

pub(crate) struct Inner {
    pub(crate) backbone: Arc<Backbone>,
    handlers: Vec<(Pattern, Arc<dyn DynHandler>)>,
    formats: RwLock<Vec<Arc<FormatSlot>>>,
    logs: Mutex<HashMap<ChannelName, Arc<Follower>>>,
    opening: Singleflight<ChannelName, Result<Arc<Follower>, BrokerError>>,
    asking: Singleflight<(ChannelName, Position, PageLimit), Result<Arc<Replay>, BrokerError>>,
    pub(crate) sessions: Mutex<Registry<Arc<SessionHandle>>>,
    addresses: Arc<AddressCounts>,
    requests: Rates<Source>,
    new_channels: Rates<AddressKey>,
    /// When unused logs last had to make room.
    made_room: Mutex<Option<Instant>>,
    connections: AtomicUsize,
    /// How many connections there may be: `limits.connections`, or fewer.
    places: AtomicUsize,
    next_client: AtomicU64,
    /// Tells this node's connections from those of other nodes.
    node: u64,
    /// Idempotency keys of clients' messages.
    client_keys: KeyCounts<Whose>,
    draining: AtomicBool,
    /// A drain is about to begin.
    leaving: AtomicBool,
    /// Counts the times that listeners have to be told that the broker is gone.
    pub(crate) stale: AtomicU32,
    /// What the last probe of the broker came to; `None`: the first has no answer yet.
    broker: watch::Sender<Option<Result<(), String>>>,
    warnings: Warnings,
    started: Instant,
    /// Milliseconds since the start, plus one, as of the last tick.
    pub(crate) clock: AtomicU64,
    pub(crate) runtime: Handle,
}

/// Whose idempotency keys are counted together.
#[derive(PartialEq, Eq, Hash)]
enum Whose {
    User(Arc<str>),
    Address(Option<AddressKey>),
}

/// A format that is registered with a hub.
#[derive(Clone)]
pub struct FormatHandle(pub(crate) Arc<FormatSlot>);

/// One client's connection, before and beside its session: who it is, for each handler that was
/// asked.
pub struct Connection {
    pub(crate) hub: Hub,
    pub(crate) id: u64,
    transport: TransportName,
    peer: Option<IpAddr>,
    /// Whether it takes one of the node's places.
    counted: bool,
    /// Its place among those of its address.
    _place: Option<AddressPlace>,
    /// Kept as long as a handler may still have to be asked.
    request: Mutex<Option<Box<ConnectRequest>>>,
    clients: Mutex<Vec<(Option<usize>, Arc<Client>)>>,
}

/// What a channel means to a connection: checked, and with the handler that is asked.
pub(crate) struct Admission {
    pub(crate) channel: Channel,
    pub(crate) client: Arc<Client>,
    pub(crate) handler: Option<Arc<dyn DynHandler>>,
    pub(crate) rule: Arc<Rule>,
}

/// Whose requests are counted together.
#[derive(PartialEq, Eq, Hash)]
enum Source {
    User(Arc<str>),
    Address(AddressKey),
}

/// A channel's state on this node, for people who look at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelState {
    /// Its name.
    pub name: ChannelName,
    /// Its rule.
    pub rule: Arc<Rule>,
    /// The newest position this node has.
    pub cursor: Position,
    /// Events in the ring.
    pub events: usize,
    /// Estimated memory of the ring.
    pub bytes: usize,
    /// Sessions that listen, by format.
    pub listeners: Vec<(&'static str, usize)>,
    /// Whether it has ended.
    pub ended: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The maps behind these locks are whole between any two statements; a panic elsewhere must not
    // take the node down.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    /// Closes and forgets a log that has had no listeners for `linger`.
    fn close_log(&self, name: &ChannelName, follower: &Follower, linger: Duration) -> bool {
        // In one step: a caller that finds it closed must not find it again.
        let unused = {
            let mut logs = lock(&self.logs);
            let unused = follower.log.close_if_unused(linger) && logs.remove(name).is_some();
            shrink(&mut *logs);
            unused
        };
        if unused {
            follower.close();
        }
        unused
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // A feed must not be dropped by the broker's own call into its follower, which may be the
        // last to hold it: that call holds the feed's lock.
        for follower in lock(&self.logs).values() {
            follower.close();
        }
    }
}

impl HubBuilder {
    /// What this node allows.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Adds the application's code for the channels that match `pattern`. The first handler whose
    /// pattern matches is asked.
    pub fn handle(mut self, pattern: Pattern, handler: impl Handler) -> Self {
        self.handlers.push((pattern, Arc::new(handler)));
        self
    }

    /// Where this node finds out who is in the channels whose rules have presence. Without it they
    /// have none.
    pub fn directory(mut self, directory: Arc<dyn Directory>) -> Self {
        self.directory = Some(directory);
        self
    }

    /// Makes this node's random pauses and hints the same each time. For simulations: nodes that
    /// share a seed come back together.
    pub fn seed(mut self, seed: u64) -> Self {
        self.jitter = Jitter::new(seed);
        self
    }

    /// Starts the node. Must be called within a tokio runtime, which it then uses.
    pub fn build(self) -> Hub {
        let wanted = self.rules.iter().any(|rule| rule.presence);
        let presence = self.directory.filter(|_| wanted).map(|directory| {
            let jitter = Jitter::new(self.jitter.draw());
            Presence::begin(directory, jitter, self.limits.broker_timeout)
        });
        let places = self.limits.connections;
        let backbone = Arc::new(Backbone {
            metrics: Metrics::new(self.broker.stats(), &self.rules),
            presence,
            ring_memory: RingMemory::new(self.limits.memory / 2),
            broker: self.broker,
            rules: self.rules,
            limits: self.limits,
            outage: Outage::default(),
            unanswered: Unanswered::default(),
            turns: HealTurns::default(),
            newer: Newer::default(),
            keys: KeyCounts::default(),
            jitter: self.jitter,
        });
        backbone.metrics.connections_limit.set(places as i64);
        let limits = &backbone.limits;
        let (requests, new_channels) = (limits.requests_per_second, limits.new_channels_per_minute);
        let inner = Arc::new(Inner {
            backbone,
            handlers: self.handlers,
            formats: RwLock::default(),
            logs: Mutex::default(),
            opening: Singleflight::default(),
            asking: Singleflight::default(),
            sessions: Mutex::default(),
            addresses: Arc::default(),
            requests: Rates::new(requests, Duration::from_secs(1), requests.saturating_mul(2)),
            new_channels: Rates::new(new_channels, Duration::from_secs(60), new_channels),
            made_room: Mutex::default(),
            connections: AtomicUsize::new(0),
            places: AtomicUsize::new(places),
            next_client: AtomicU64::new(1),
            node: RandomState::new().hash_one(0),
            client_keys: KeyCounts::default(),
            draining: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            stale: AtomicU32::new(0),
            broker: watch::Sender::new(None),
            warnings: Warnings::default(),
            started: Instant::now(),
            clock: AtomicU64::new(1),
            runtime: Handle::current(),
        });
        tokio::spawn(keep_house(Arc::downgrade(&inner), inner.backbone.limits.clone()));
        tokio::spawn(watch_broker(Arc::downgrade(&inner)));
        Hub(inner)
    }
}

impl Hub {
    /// A hub on `broker` for the channels of `rules`.
    pub fn builder(broker: Arc<dyn Broker>, rules: Rules) -> HubBuilder {
        HubBuilder {
            broker,
            rules,
            limits: Limits::default(),
            handlers: Vec::new(),
            jitter: Jitter::default(),
            directory: None,
        }
    }

    /// Registers a format. The same name gives the same format.
    ///
    /// # Panics
    /// With more than four different formats: each event has a slot for each.
    pub fn register_format(&self, format: Arc<dyn Format>) -> FormatHandle {
        let mut formats = self.0.formats.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = formats.iter().find(|slot| slot.format.name() == format.name()) {
            return FormatHandle(known.clone());
        }
        let index = formats.len();
        assert!(index < MAX_FORMATS, "a hub has room for {MAX_FORMATS} formats");
        let metrics = self.metrics().format(format.name());
        let slot = Arc::new(FormatSlot { index, format, metrics });
        formats.push(slot.clone());
        FormatHandle(slot)
    }

    /// The channel of that name, to publish to.
    ///
    /// # Errors
    /// `bad-request`: not a name; `unknown-channel`: no rule matches.
    pub fn channel(&self, name: &str) -> Result<Channel, Refusal> {
        Channel::find(&self.0.backbone, name)
    }

    /// The node's figures.
    pub fn metrics(&self) -> &Metrics {
        &self.0.backbone.metrics
    }

    /// The node's limits.
    pub fn limits(&self) -> &Limits {
        &self.0.backbone.limits
    }

    /// The node's rules.
    pub fn rules(&self) -> &Rules {
        &self.0.backbone.rules
    }

    /// The broker's short name.
    pub fn broker_name(&self) -> &'static str {
        self.0.backbone.broker.name()
    }

    /// How long this node has been running.
    pub fn uptime(&self) -> Duration {
        self.0.started.elapsed()
    }

    /// Whether this node can deliver, as it was when the broker was last asked: the node asks every
    /// second. Answers at once, but for a node whose first question has no answer yet.
    ///
    /// # Errors
    /// Why not, for operators.
    pub async fn ready(&self) -> Result<(), String> {
        if self.is_draining() || self.0.leaving.load(Ordering::Relaxed) {
            return Err("draining".into());
        }
        let mut broker = self.0.broker.subscribe();
        let first = timeout(self.limits().broker_timeout, broker.wait_for(Option::is_some)).await;
        match first {
            Ok(Ok(answer)) => answer.clone().unwrap_or(Ok(())),
            Ok(Err(_)) | Err(_) => Err(format!("broker {} has not answered yet", self.broker_name())),
        }
    }

    /// Warns the operator of something that a client at `peer` causes: a few lines a minute for
    /// each cause and one for each address. What is more is counted, and summed up in one line.
    /// `detail` is shown shortened and quoted; it must not hold a secret.
    pub fn warn(&self, warning: Warning, peer: Option<IpAddr>, detail: &str) {
        self.0.warnings.warn(warning, peer, detail);
    }

    /// Says that a drain is about to begin: from now on [`Hub::ready`] fails, and everything else
    /// goes on. Load balancers that ask for it send no more clients.
    pub fn announce_drain(&self) {
        self.0.leaving.store(true, Ordering::Relaxed);
    }

    /// Begins to go away: no new connections, and every session is told to end. Returns at once.
    pub fn drain(&self) {
        self.0.draining.store(true, Ordering::SeqCst);
        for session in lock(&self.0.sessions).iter() {
            session.wake_always();
        }
    }

    /// Ends every session at once, whatever it has still to write. For when the grace time of a
    /// drain is over.
    pub fn cut(&self) {
        for session in lock(&self.0.sessions).iter() {
            session.cut();
        }
    }

    /// Takes this node's members out of their channels, for other nodes to see at once. For the end
    /// of a drain, before the process ends: members of a node that ends without it are gone after a
    /// quarter of a minute. Does nothing where there is no presence.
    pub async fn deregister(&self) {
        if let Some(presence) = &self.0.backbone.presence
            && timeout(DEREGISTER_WITHIN, presence.deregister()).await.is_err()
        {
            tracing::debug!("not all members could be taken back in time: the rest expires");
        }
    }

    /// Whether [`Hub::drain`] was called.
    pub fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::SeqCst)
    }

    /// Sessions that are open.
    pub fn sessions(&self) -> usize {
        lock(&self.0.sessions).len()
    }

    /// Returns how many milliseconds a client should wait before it connects again: jittered, and
    /// longer where many would come at once.
    pub fn retry_hint(&self) -> u32 {
        let crowd = self.0.connections.load(Ordering::Relaxed).min(30_000) as f64;
        (1000.0 + self.0.backbone.jitter.unit() * (2000.0 + crowd)) as u32
    }

    /// Lowers the number of connections that this node takes in to `count`, for example because it
    /// may not open more files. Does nothing if `limits.connections` is lower.
    pub fn bound_connections(&self, count: usize) {
        let before = self.0.places.fetch_min(count, Ordering::Relaxed);
        self.metrics().connections_limit.set(before.min(count) as i64);
    }

    /// Carries out one client's request: everything that it asks of the broker shares one time,
    /// `limits.broker_timeout`. It counts while the broker does not answer, so a request that makes
    /// progress may take longer. Each channel of an array that is published is a request of its
    /// own.
    pub fn request<F: Future>(&self, request: F) -> impl Future<Output = F::Output> {
        patience::request(request)
    }

    /// [`Hub::request`] for one that waited behind another, of which `left` was left: the times of
    /// the two do not add up. Returns what is left now.
    pub fn request_behind<F: Future>(&self, left: Patience, request: F) -> impl Future<Output = (F::Output, Patience)> {
        patience::request_behind(left, request)
    }

    /// Takes in a client. `counted`: it stays, and takes one of the node's places.
    ///
    /// # Errors
    /// `unavailable`: the node is draining; `too-many`: no place is left, on the node or for this
    /// address.
    pub fn connect(&self, request: ConnectRequest, counted: bool) -> Result<Arc<Connection>, Refusal> {
        if self.is_draining() {
            return Err(Refusal::unavailable("this server is going away: connect again"));
        }
        let limits = self.limits();
        let mut place = None;
        if counted {
            let open = self.0.connections.fetch_add(1, Ordering::Relaxed);
            let result = if open >= self.0.places.load(Ordering::Relaxed) {
                Err("this server has no place left (limits.connections, or its limit of open files): try again later")
            } else {
                self.take_place(request.peer, limits.connections_per_address)
            };
            match result {
                Ok(taken) => place = taken,
                Err(text) => {
                    self.0.connections.fetch_sub(1, Ordering::Relaxed);
                    return Err(Refusal::new(Code::TooMany, text));
                }
            }
        }
        let (transport, peer) = (request.transport.clone(), request.peer);
        // Without handlers, no handler will ever read the request.
        let request = (!self.0.handlers.is_empty()).then(|| Box::new(request));
        Ok(Arc::new(Connection {
            hub: self.clone(),
            id: self.0.next_client.fetch_add(1, Ordering::Relaxed),
            transport,
            peer,
            counted,
            _place: place,
            request: Mutex::new(request),
            clients: Mutex::default(),
        }))
    }

    /// A place among those of the client's address; none is needed where the address is unknown.
    fn take_place(&self, peer: Option<IpAddr>, limit: usize) -> Result<Option<AddressPlace>, &'static str> {
        let Some(peer) = peer else { return Ok(None) };
        self.0.addresses.take(peer, limit).map(Some).ok_or(
            "too many connections from this address (limits.connections_per_address): close some, or subscribe to several channels over one",
        )
    }

    /// Whether one handler is asked about every channel that `pattern` matches.
    pub fn has_handler(&self, pattern: &Pattern) -> bool {
        self.0.handlers.iter().any(|(of, _)| of.covers(pattern))
    }

    /// The query parameters that the handlers read, [`Handler::query_parameters`].
    pub fn query_parameters(&self) -> impl Iterator<Item = &str> {
        self.0
            .handlers
            .iter()
            .flat_map(|(_, handler)| handler.query_parameters().iter().copied())
    }

    /// Counts one request over HTTP of `user`, or without one of the address. A request whose
    /// address is not known is not counted.
    ///
    /// # Errors
    /// `too-many`.
    pub fn count_request(&self, user: Option<&Arc<str>>, peer: Option<IpAddr>) -> Result<(), Refusal> {
        let source = match (user, peer) {
            (Some(user), _) => Source::User(user.clone()),
            (None, Some(peer)) => Source::Address(peer.into()),
            (None, None) => return Ok(()),
        };
        if self.0.requests.take(source) {
            return Ok(());
        }
        Err(Refusal::new(
            Code::TooMany,
            format!(
                "more than {} requests per second from this {} (limits.requests_per_second): wait a second, or use one connection for many messages",
                self.limits().requests_per_second,
                if user.is_some() { "user" } else { "address" }
            ),
        ))
    }

    /// Counts a channel that is not open on this node against the address that names it.
    fn count_name(&self, peer: Option<IpAddr>, name: &ChannelName) -> Result<(), Refusal> {
        let Some(peer) = peer else { return Ok(()) };
        if lock(&self.0.logs).contains_key(name) || self.0.new_channels.take(peer.into()) {
            return Ok(());
        }
        Err(Refusal::new(
            Code::TooMany,
            format!(
                "more than {} channels that were not open from this address within a minute (limits.new_channels_per_minute): try again later",
                self.limits().new_channels_per_minute
            ),
        ))
    }

    /// The channel, and the client as the channel's handler knows it. Every permission begins here,
    /// whatever the transport.
    async fn admit(&self, connection: &Connection, name: &ChannelName) -> Result<Admission, Refusal> {
        let (rule, mut params) = self.0.backbone.rule(name)?;
        let found = self
            .0
            .handlers
            .iter()
            .enumerate()
            .find_map(|(i, (pattern, handler))| pattern.matches(name.as_str()).map(|params| (i, handler.clone(), params)));
        let (index, handler) = match found {
            Some((index, handler, handler_params)) => {
                params = handler_params;
                (Some(index), Some(handler))
            }
            None => (None, None),
        };
        let known = lock(&connection.clients)
            .iter()
            .find(|(i, _)| *i == index)
            .map(|(_, client)| client.clone());
        let client = match known {
            Some(client) => client,
            None => {
                let identity = match &handler {
                    Some(handler) => {
                        let request = lock(&connection.request).clone();
                        let request = request.ok_or_else(|| Refusal::internal("the connection can no longer be identified"))?;
                        let call = self.call("connect", name, None);
                        let identity = call.wait(|| handler.connect(&request)).await;
                        call.answer(identity.and_then(|identity| identity)).inspect_err(|refusal| {
                            self.warn_of(refusal, connection, name);
                        })?
                    }
                    None => Identity::anonymous(),
                };
                let client = Arc::new(Client {
                    id: connection.id,
                    transport: connection.transport.clone(),
                    peer: connection.peer,
                    identity,
                });
                lock(&connection.clients).push((index, client.clone()));
                client
            }
        };
        let channel = Channel::new(self.0.backbone.clone(), name.clone(), rule.clone(), params);
        Ok(Admission {
            channel,
            client,
            handler,
            rule,
        })
    }

    /// May this client listen to this channel over its transport?
    pub(crate) async fn admit_listener(&self, connection: &Connection, name: &ChannelName) -> Result<Admission, Refusal> {
        if self.is_draining() {
            return Err(Refusal::unavailable("this server is going away: connect again"));
        }
        let admission = self.admit(connection, name).await?;
        if !admission.rule.allows(&connection.transport) && connection.transport != TransportName::HTTP {
            let to_use = admission.rule.transports.first().cloned();
            let text = match &to_use {
                Some(to_use) => format!(
                    "the channel '{name}' is not served over {}: use {to_use}",
                    connection.transport
                ),
                None => format!("the channel '{name}' cannot be listened to"),
            };
            let mut refusal = Refusal::new(Code::WrongTransport, text);
            refusal.transport = to_use;
            return Err(refusal);
        }
        if connection.transport == TransportName::HTTP {
            self.count_request(admission.client.user_id(), connection.peer)?;
        }
        self.ask_to_subscribe(&admission).await?;
        self.count_name(connection.peer, name)?;
        Ok(admission)
    }

    async fn ask_to_subscribe(&self, admission: &Admission) -> Result<(), Refusal> {
        let Some(handler) = &admission.handler else {
            return Ok(());
        };
        let call = self.call("subscribe", admission.channel.name(), None);
        call.answer(call.wait(|| handler.subscribe(&admission.client, &admission.channel)).await?)
    }

    /// A client that a handler asks who it is showed nothing, or something wrong.
    fn warn_of(&self, refusal: &Refusal, connection: &Connection, name: &ChannelName) {
        if refusal.code == Code::Unauthorized {
            self.warn(Warning::WrongToken, connection.peer, name.as_str());
        }
    }

    /// A call of a handler, in which panics are caught.
    fn call<'a>(&'a self, method: &'static str, channel: &'a ChannelName, event: Option<&'a str>) -> Call<'a> {
        let metrics = self.metrics();
        Call {
            metrics,
            method,
            channel,
            event,
        }
    }

    /// A client's message that came by itself, not over a subscription: to the handler, or without
    /// one, what the rule says. The handler is asked first whether the client may listen.
    ///
    /// # Errors
    /// What the handler refuses, and `bad-request`, `unknown-channel`, `too-large`, `too-many`,
    /// `forbidden`, `ended`, `unavailable`.
    pub async fn send(
        &self,
        connection: &Connection,
        name: &ChannelName,
        message: Message,
        key: Option<IdempotencyKey>,
    ) -> Result<Reply, Refusal> {
        let admission = self.admit_sender(connection, name, &message).await?;
        if requires_subscription(&admission, &self.call("requires_subscription", name, None))? {
            self.ask_to_subscribe(&admission).await?;
        }
        self.deliver(connection, admission, message, key).await
    }

    /// A client's message over a connection that can listen. `listens`: it does listen to this
    /// channel.
    ///
    /// # Errors
    /// Those of [`Hub::send`]. Where it does not listen and would have to: why it may not, or
    /// `forbidden`.
    pub async fn send_from_listener(
        &self,
        connection: &Connection,
        listens: bool,
        name: &ChannelName,
        message: Message,
        key: Option<IdempotencyKey>,
    ) -> Result<Reply, Refusal> {
        let admission = self.admit_sender(connection, name, &message).await?;
        if !listens && requires_subscription(&admission, &self.call("requires_subscription", name, None))? {
            // What would be told at subscribing is told here.
            self.admit_listener(connection, name).await?;
            let log = lock(&self.0.logs).get(name).map(|follower| follower.log.clone());
            if log.is_some_and(|log| log.size().2) {
                return Err(Refusal::new(Code::Ended, "the channel has ended"));
            }
            return Err(Refusal::forbidden(
                "subscribe to this channel first: a message needs an open subscription of its connection",
            ));
        }
        self.deliver(connection, admission, message, key).await
    }

    /// Whether this message may be said here at all.
    async fn admit_sender(&self, connection: &Connection, name: &ChannelName, message: &Message) -> Result<Admission, Refusal> {
        let weight = message.weight();
        let limit = self.limits().message_bytes;
        if weight > limit {
            return Err(Refusal::new(
                Code::TooLarge,
                format!("the message has {weight} bytes; at most {limit} are allowed"),
            ));
        }
        if message.event.is_fired_by_event_source() {
            return Err(Refusal::bad_request(format!(
                "a client cannot send an event named '{}': a browser's EventSource fires events of that name itself, so choose another",
                message.event
            )));
        }
        let admission = self.admit(connection, name).await?;
        if connection.transport == TransportName::HTTP {
            self.count_request(admission.client.user_id(), connection.peer)?;
        }
        if admission.handler.is_none() && admission.rule.send == SendPolicy::Publish {
            self.count_name(connection.peer, name)?;
        }
        match (&admission.handler, admission.rule.send) {
            (_, SendPolicy::Refuse) => Err(Refusal::forbidden("this channel takes no messages from clients")),
            (None, SendPolicy::Handler) => Err(Refusal::forbidden(
                "this channel takes no messages from clients: no handler is registered for it (send = \"publish\" in its rule would publish them)",
            )),
            (Some(_), _) | (None, SendPolicy::Publish) => Ok(admission),
        }
    }

    async fn deliver(
        &self,
        connection: &Connection,
        admission: Admission,
        message: Message,
        key: Option<IdempotencyKey>,
    ) -> Result<Reply, Refusal> {
        let user = admission.client.user_id().filter(|user| !user.is_empty()).cloned();
        if key.is_some() {
            let whose = match &user {
                Some(user) => Whose::User(user.clone()),
                None => Whose::Address(connection.peer.map(Into::into)),
            };
            let limit = self.limits().idempotency_keys_per_client;
            if !self.0.client_keys.take(whose, limit) {
                return Err(Refusal::new(
                    Code::TooMany,
                    format!(
                        "{limit} messages with an idempotency key within {} seconds (limits.idempotency_keys_per_client): send it later, or without one",
                        IDEMPOTENCY_WINDOW.as_secs()
                    ),
                ));
            }
        }
        let channel = admission.channel.with_key(key, user, self.key_source(connection), &message);
        match admission.handler {
            Some(handler) => {
                let event = message.event.clone();
                let call = self.call("message", channel.name(), Some(event.as_str()));
                call.answer(call.wait(|| handler.message(&admission.client, &channel, message)).await?)
            }
            None => channel.publish_with(Publish::message(message)).await.map(|_| Reply::done()),
        }
    }

    /// Whose the idempotency keys of a connection without a user are.
    fn key_source(&self, connection: &Connection) -> KeySource<'static> {
        if connection.transport == TransportName::HTTP {
            KeySource::Address(connection.peer.map(Into::into))
        } else {
            KeySource::Connection(self.0.node, connection.id)
        }
    }

    /// A page of a channel's history for a client, with the channel it is allowed to see.
    ///
    /// The page holds [hidden events](crate::Event::is_hidden), too, so that the last one says
    /// where the next page begins. A transport leaves them out of what it writes.
    ///
    /// # Errors
    /// What the handler's `subscribe` refuses, and `unknown-channel`, `unavailable`.
    pub async fn history(
        &self,
        connection: &Connection,
        name: &ChannelName,
        after: Option<Position>,
        limit: PageLimit,
    ) -> Result<(Channel, Replay), Refusal> {
        let admission = self.admit_listener(connection, name).await?;
        if let Some(after) = after
            && let Some(replay) = self.page_of_log(name, after, limit).await?
        {
            return Ok((admission.channel, replay));
        }
        let replay = admission.channel.whole_page(after, limit).await?;
        Ok((admission.channel, replay))
    }

    async fn page_of_log(&self, name: &ChannelName, after: Position, limit: PageLimit) -> Result<Option<Replay>, Refusal> {
        let follower = lock(&self.0.logs).get(name).cloned();
        match follower {
            Some(follower) => follower.page(after, limit).await.map_err(|error| self.refusal(&error)),
            None => Ok(None),
        }
    }

    /// The channel's log on this node, opened if need be. However many ask at once, the broker is
    /// asked once.
    pub(crate) async fn open(&self, name: &ChannelName, rule: &Arc<Rule>) -> Result<Arc<Follower>, Refusal> {
        if let Some(follower) = lock(&self.0.logs).get(name) {
            return Ok(follower.clone());
        }
        let fetch = || {
            let (hub, name, rule) = (self.clone(), name.clone(), rule.clone());
            async move {
                let known = lock(&hub.0.logs).get(&name).cloned();
                if let Some(follower) = known {
                    return Ok(follower);
                }
                let follower = patience::request(Follower::open(hub.0.backbone.clone(), name.clone(), rule)).await?;
                lock(&hub.0.logs).insert(name, follower.clone());
                Ok(follower)
            }
        };
        if lock(&self.0.logs).len() >= self.limits().channels && !self.make_room() {
            return Err(Refusal::new(
                Code::TooMany,
                "this server has too many channels open (limits.channels): try again later",
            ));
        }
        let opened = async { self.0.opening.run(name.clone(), fetch).await.transpose() };
        match patience::wait(self.limits().broker_timeout, opened).await {
            Ok(Some(follower)) => Ok(follower),
            Err(error) => Err(self.refusal(&error)),
            Ok(None) => Err(Refusal::internal("the channel could not be opened")),
        }
    }

    /// Closes logs that have no listeners: first those whose channels have never had an event, then
    /// the others. False: there is no room still, or there was made some a moment ago.
    fn make_room(&self) -> bool {
        {
            let mut last = lock(&self.0.made_room);
            if last.is_some_and(|last| last.elapsed() < ROOM_PAUSE) {
                return false;
            }
            *last = Some(Instant::now());
        }
        let followers: Vec<Arc<Follower>> = lock(&self.0.logs).values().cloned().collect();
        for unpublished in [true, false] {
            for follower in &followers {
                if unpublished == follower.log.is_unpublished() {
                    self.0.close_log(&follower.log.name, follower, Duration::ZERO);
                }
            }
            if lock(&self.0.logs).len() < self.limits().channels {
                return true;
            }
        }
        false
    }

    /// What a client is told of a broker's error.
    pub(crate) fn refusal(&self, error: &BrokerError) -> Refusal {
        self.0.backbone.refusal(error)
    }

    /// A page of history that many listeners may want at the same time.
    pub(crate) async fn ask(&self, name: &ChannelName, after: Position, limit: PageLimit) -> Result<Arc<Replay>, BrokerError> {
        let fetch = || {
            let (backbone, name) = (self.0.backbone.clone(), name.clone());
            async move { backbone.replay(&name, Some(after), limit).await.map(Arc::new) }
        };
        let asked = async {
            let asked = self.0.asking.run((name.clone(), after, limit), fetch).await;
            asked.unwrap_or_else(|| Err(BrokerError::unavailable("the broker could not be asked")))
        };
        patience::wait(self.limits().broker_timeout, asked).await
    }

    /// Tells the handler that a subscription is over, in a task of its own.
    pub(crate) fn unsubscribed(&self, handler: Arc<dyn DynHandler>, client: Arc<Client>, channel: Channel, reason: LeaveReason) {
        let backbone = self.0.backbone.clone();
        self.0.runtime.spawn(async move {
            let call = Call {
                metrics: &backbone.metrics,
                method: "unsubscribe",
                channel: channel.name(),
                event: None,
            };
            // No caller waits for an answer.
            let _ = call.wait(|| handler.unsubscribe(&client, &channel, reason)).await;
        });
    }

    /// The channels that are open on this node, in the order of their names; at most `limit`.
    pub fn channels(&self, limit: usize) -> Vec<ChannelState> {
        let names: Vec<&'static str> = {
            let formats = self.0.formats.read().unwrap_or_else(PoisonError::into_inner);
            formats.iter().map(|slot| slot.format.name()).collect()
        };
        let followers: Vec<_> = lock(&self.0.logs).values().cloned().collect();
        let mut states: Vec<_> = followers
            .into_iter()
            .map(|follower| {
                let log = &follower.log;
                let (events, _, ended) = log.size();
                ChannelState {
                    name: log.name.clone(),
                    rule: log.rule.clone(),
                    cursor: log.head(),
                    events,
                    bytes: log.held(),
                    listeners: names
                        .iter()
                        .zip(log.listeners())
                        .filter(|(_, count)| *count > 0)
                        .map(|(name, count)| (*name, count))
                        .collect(),
                    ended,
                }
            })
            .collect();
        states.sort_by(|a, b| a.name.cmp(&b.name));
        states.truncate(limit);
        states
    }

    /// Sessions by format.
    pub fn sessions_by_wire(&self) -> Vec<(&'static str, usize)> {
        let formats = self.0.formats.read().unwrap_or_else(PoisonError::into_inner);
        formats
            .iter()
            .map(|slot| {
                (
                    slot.format.name(),
                    usize::try_from(slot.metrics.connections.get()).unwrap_or(0),
                )
            })
            .collect()
    }
}

impl Connection {
    /// A number that tells connections of this node apart.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// How it is connected.
    pub fn transport(&self) -> &TransportName {
        &self.transport
    }

    /// The client's address, where it is known.
    pub fn peer(&self) -> Option<IpAddr> {
        self.peer
    }

    /// The node it is connected to.
    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// No further handler will be asked who this is: lets go of the request's headers. For
    /// connections whose channels are all known.
    pub fn forget_request(&self) {
        lock(&self.request).take();
        lock(&self.clients).shrink_to_fit();
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if !self.counted {
            return;
        }
        self.hub.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

fn requires_subscription(admission: &Admission, call: &Call<'_>) -> Result<bool, Refusal> {
    match &admission.handler {
        Some(handler) => call.run(|| handler.requires_subscription()),
        None => Ok(true),
    }
}

/// Heartbeats, stalled and silent sessions, unused logs: one timer for all of them.
async fn keep_house(hub: Weak<Inner>, limits: Limits) {
    let shortest = limits.heartbeat.min(limits.idle).min(limits.stalled_write).min(limits.linger);
    let mut ticks = interval((shortest / 4).clamp(Duration::from_millis(10), TICK));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut names: Vec<ChannelName> = Vec::new();
    loop {
        ticks.tick().await;
        let Some(hub) = hub.upgrade() else { return };
        let now = hub.started.elapsed().as_millis() as u64 + 1;
        hub.clock.store(now, Ordering::Relaxed);
        for session in lock(&hub.sessions).iter() {
            session.check_times(now, &limits);
        }
        hub.requests.sweep();
        hub.new_channels.sweep();
        hub.warnings.sweep();
        if names.is_empty() {
            let logs = lock(&hub.logs);
            names = logs.keys().cloned().collect();
            let events: usize = logs.values().map(|follower| follower.log.size().0).sum();
            hub.backbone.metrics.logs.set(logs.len() as i64);
            hub.backbone.metrics.log_bytes.set(hub.backbone.ring_memory.used() as i64);
            hub.backbone.metrics.log_events.set(events as i64);
        }
        let at = names.len().saturating_sub(LOGS_PER_TICK);
        for name in names.drain(at..) {
            let Some(follower) = lock(&hub.logs).get(&name).cloned() else {
                continue;
            };
            follower.log.trim();
            hub.close_log(&name, &follower, limits.linger);
        }
    }
}

/// Asks the broker whether it is there, so that listeners of a node without one are told.
async fn watch_broker(hub: Weak<Inner>) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut down: Option<Instant> = None;
    let mut told = false;
    loop {
        ticks.tick().await;
        let Some(backbone) = hub.upgrade().map(|hub| hub.backbone.clone()) else {
            return;
        };
        let answer = match timeout(backbone.limits.broker_timeout, backbone.broker.ping()).await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err("the broker does not answer".to_owned()),
        };
        let Some(hub) = hub.upgrade() else { return };
        hub.backbone.metrics.broker_up.set(i64::from(answer.is_ok()));
        let name = hub.backbone.broker.name();
        hub.broker
            .send_replace(Some(answer.clone().map_err(|error| format!("broker {name}: {error}"))));
        match answer {
            Ok(()) => {
                if let Some(since) = down.take() {
                    tracing::info!(seconds = since.elapsed().as_secs(), "the broker is back");
                }
                told = false;
            }
            Err(error) => {
                let since = down.get_or_insert_with(|| {
                    tracing::warn!(broker = name, error, "the broker is gone");
                    Instant::now()
                });
                if !told && since.elapsed() >= STALE_AFTER {
                    told = true;
                    hub.stale.fetch_add(1, Ordering::SeqCst);
                    for session in lock(&hub.sessions).iter() {
                        session.wake_always();
                    }
                }
            }
        }
    }
}
