//! One node, put together: its admission, its logs, its sessions, its formats.
//!
//! Each part is in a file of its own; what is public of them is reached here.

use std::future::Future;
use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::admission::Admission;
pub use crate::admission::Connection;
use crate::backbone::Backbone;
use crate::broker::{Broker, PageLimit, Replay};
use crate::channel::Channel;
use crate::directory::Directory;
use crate::event::{ChannelName, IdempotencyKey, Message, Position};
use crate::format::Format;
use crate::formats::Formats;
pub use crate::formats::{FormatError, FormatHandle};
use crate::handler::{ConnectRequest, DynHandler, Handler, Reply};
use crate::jitter::Jitter;
use crate::key_counts::KeyCounts;
pub use crate::logs::ChannelState;
use crate::logs::{Logs, Round};
use crate::newer::Newer;
use crate::not_ready::NotReady;
use crate::observe::Metrics;
use crate::orders::Orders;
use crate::outage::{HealTurns, Outage, Unanswered};
use crate::patience::{self, Patience};
use crate::presence::Presence;
use crate::probe::BrokerProbe;
use crate::refusal::Refusal;
use crate::rule::{Limits, Pattern, Rules};
use crate::sessions::Sessions;
use crate::warnings::{Warning, Warnings};

/// How often the hub looks after its sessions and logs; more often where a limit is shorter.
const TICK: Duration = Duration::from_secs(1);
/// How long taking members back may hold up the end of a node.
const DEREGISTER_WITHIN: Duration = Duration::from_secs(2);

/// One running Airwave process: cheap to clone, gone when the last clone and the last connection
/// are.
#[derive(Clone)]
pub struct Hub(Arc<Parts>);

/// Puts a [`Hub`] together.
pub struct HubBuilder {
    broker: Arc<dyn Broker>,
    rules: Rules,
    limits: Limits,
    handlers: Vec<(Pattern, Arc<dyn DynHandler>)>,
    jitter: Jitter,
    directory: Option<Arc<dyn Directory>>,
}

struct Parts {
    backbone: Arc<Backbone>,
    logs: Arc<Logs>,
    sessions: Arc<Sessions>,
    admission: Arc<Admission>,
    formats: Arc<Formats>,
    probe: BrokerProbe,
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
        let handlers = self.handlers;
        let wanted = self.rules.iter().any(|rule| rule.presence);
        let presence = self.directory.filter(|_| wanted).map(|directory| {
            let jitter = Jitter::new(self.jitter.draw());
            Presence::begin(directory, jitter, self.limits.broker_timeout)
        });
        let backbone = Arc::new(Backbone {
            metrics: Metrics::new(self.broker.stats(), &self.rules),
            presence,
            broker: self.broker,
            rules: self.rules,
            limits: self.limits,
            outage: Outage::default(),
            unanswered: Unanswered::default(),
            turns: HealTurns::default(),
            newer: Newer::default(),
            keys: KeyCounts::default(),
            warnings: Warnings::default(),
            jitter: self.jitter,
        });
        backbone.metrics.connections_limit.set(backbone.limits.connections as i64);
        let formats = Arc::<Formats>::default();
        let logs = Arc::new(Logs::new(backbone.clone(), formats.clone()));
        let sessions = Arc::new(Sessions::new(backbone.clone()));
        let admission = Arc::new(Admission::new(sessions.clone(), logs.clone(), handlers));
        tokio::spawn(keep_house(Arc::downgrade(&admission)));
        Hub(Arc::new(Parts {
            probe: BrokerProbe::start(&sessions),
            formats,
            backbone,
            logs,
            sessions,
            admission,
        }))
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
    /// The list of formats is frozen when the node opens its first channel for a listener, so that
    /// each event has a slot for each format and none for others.
    ///
    /// # Errors
    /// There are four formats already, or the list is frozen.
    pub fn register_format(&self, format: Arc<dyn Format>) -> Result<FormatHandle, FormatError> {
        self.0.formats.register(format, self.metrics())
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
        self.0.sessions.uptime()
    }

    /// Whether this node can deliver, as it was when the broker was last asked: the node asks every
    /// second. Answers at once, but for a node whose first question has no answer yet.
    ///
    /// # Errors
    /// What the node waits for.
    pub async fn ready(&self) -> Result<(), NotReady> {
        if self.0.sessions.is_leaving() {
            return Err(NotReady::draining());
        }
        self.0.probe.answer(&self.0.backbone).await
    }

    /// Warns the operator of something that a client at `peer` causes: a few lines a minute for
    /// each cause and one for each address. What is more is counted, and summed up in one line.
    /// `detail` is shown shortened and quoted; it must not hold a secret.
    pub fn warn(&self, warning: Warning, peer: Option<IpAddr>, detail: &str) {
        self.0.backbone.warnings.warn(warning, peer, detail);
    }

    /// Says that a drain is about to begin: from now on [`Hub::ready`] fails, and everything else
    /// goes on. Load balancers that ask for it send no more clients.
    pub fn announce_drain(&self) {
        self.0.sessions.announce_drain();
    }

    /// Begins to go away: no new connections, and every session is told to end. Returns at once.
    pub fn drain(&self) {
        self.0.sessions.drain();
    }

    /// Ends every session at once, whatever it has still to write. For when the grace time of a
    /// drain is over.
    pub fn cut(&self) {
        self.0.sessions.give_all(Orders::CUT);
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
        self.0.sessions.is_draining()
    }

    /// Sessions that are open.
    pub fn sessions(&self) -> usize {
        self.0.sessions.count()
    }

    /// Returns how many milliseconds a client should wait before it connects again: jittered, and
    /// longer where many would come at once.
    pub fn retry_hint(&self) -> u32 {
        self.0.admission.retry_hint()
    }

    /// Lowers the number of connections that this node takes in to `count`, for example because it
    /// may not open more files. Does nothing if `limits.connections` is lower.
    pub fn bound_connections(&self, count: usize) {
        self.0.admission.bound_connections(count);
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
        self.0.admission.connect(request, counted)
    }

    /// Whether one handler is asked about every channel that `pattern` matches.
    pub fn has_handler(&self, pattern: &Pattern) -> bool {
        self.0.admission.has_handler(pattern)
    }

    /// The query parameters that the handlers read, [`Handler::query_parameters`].
    pub fn query_parameters(&self) -> impl Iterator<Item = &str> {
        self.0.admission.query_parameters()
    }

    /// Counts one request over HTTP of `user`, or without one of the address. A request whose
    /// address is not known is not counted.
    ///
    /// # Errors
    /// `too-many`.
    pub fn count_request(&self, user: Option<&Arc<str>>, peer: Option<IpAddr>) -> Result<(), Refusal> {
        self.0.admission.count_request(user, peer)
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
        self.0.admission.send(connection, name, message, key).await
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
        let admission = &self.0.admission;
        admission.send_from_listener(connection, listens, name, message, key).await
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
        self.0.admission.history(connection, name, after, limit).await
    }

    /// The channels that are open on this node, in the order of their names; at most `limit`.
    pub fn channels(&self, limit: usize) -> Vec<ChannelState> {
        self.channels_after(None, limit)
    }

    /// The channels that are open on this node and whose names come after `after`, in the order of
    /// their names; at most `limit`. The last of them is the `after` of the next page. It costs
    /// what the page holds, however many channels are open.
    ///
    /// # Examples
    /// ```
    /// # use airwave_core::Hub;
    /// fn count_listeners(hub: &Hub) -> usize {
    ///     let (mut count, mut after) = (0, None);
    ///     loop {
    ///         let page = hub.channels_after(after.as_ref(), 1000);
    ///         count += page.iter().flat_map(|channel| &channel.listeners).map(|(_, n)| n).sum::<usize>();
    ///         match page.last() {
    ///             Some(last) => after = Some(last.name.clone()),
    ///             None => return count,
    ///         }
    ///     }
    /// }
    /// ```
    pub fn channels_after(&self, after: Option<&ChannelName>, limit: usize) -> Vec<ChannelState> {
        self.0.logs.states(after, limit)
    }

    /// Sessions by format.
    pub fn sessions_by_wire(&self) -> Vec<(&'static str, usize)> {
        self.0.formats.sessions()
    }
}

/// Heartbeats, stalled and silent sessions, unused logs: one timer for all of them, which ends with
/// the last connection.
async fn keep_house(admission: Weak<Admission>) {
    let shortest = match admission.upgrade() {
        Some(admission) => {
            let limits = &admission.backbone.limits;
            limits.heartbeat.min(limits.idle).min(limits.stalled_write).min(limits.linger)
        }
        None => return,
    };
    let mut ticks = interval((shortest / 4).clamp(Duration::from_millis(10), TICK));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut round = Round::default();
    loop {
        ticks.tick().await;
        let Some(admission) = admission.upgrade() else { return };
        admission.sessions.tick();
        admission.sweep();
        admission.backbone.warnings.sweep();
        admission.logs.tend(&mut round);
    }
}
