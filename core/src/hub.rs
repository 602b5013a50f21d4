//! A hub is one node, put together of its admission, its logs, its sessions and its formats.
//!
//! Each part is in a file of its own. This module makes the public parts reachable.

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

/// Sets how often the hub looks after its sessions and logs. It does so more often if a limit is
/// shorter.
const TICK: Duration = Duration::from_secs(1);
/// Bounds how long the deregistration of members may hold up the end of a node.
const DEREGISTER_WITHIN: Duration = Duration::from_secs(2);

/// A hub is one running Airwave process. A clone is cheap. The node goes when its last clone and
/// its last connection are gone.
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
    /// Sets what this node allows.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Adds the application's code for the channels that match `pattern`. The node asks the first
    /// handler whose pattern matches.
    pub fn handle(mut self, pattern: Pattern, handler: impl Handler) -> Self {
        self.handlers.push((pattern, Arc::new(handler)));
        self
    }

    /// Sets the directory in which this node finds the members of channels whose rules have
    /// presence. Without a directory these channels have no presence.
    pub fn directory(mut self, directory: Arc<dyn Directory>) -> Self {
        self.directory = Some(directory);
        self
    }

    /// Makes this node's random pauses and hints the same each time. Simulations use this. Nodes
    /// that share a seed come back together.
    pub fn seed(mut self, seed: u64) -> Self {
        self.jitter = Jitter::new(seed);
        self
    }

    /// Starts the node. The caller must be within a tokio runtime, which the node then uses.
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
    /// Returns the builder of a hub on `broker` for the channels of `rules`.
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

    /// Returns the channel of that name, to publish to.
    ///
    /// # Errors
    /// `bad-request`: not a name; `unknown-channel`: no rule matches.
    pub fn channel(&self, name: &str) -> Result<Channel, Refusal> {
        Channel::find(&self.0.backbone, name)
    }

    /// Returns the node's metrics.
    pub fn metrics(&self) -> &Metrics {
        &self.0.backbone.metrics
    }

    /// Returns the node's limits.
    pub fn limits(&self) -> &Limits {
        &self.0.backbone.limits
    }

    /// Returns the node's rules.
    pub fn rules(&self) -> &Rules {
        &self.0.backbone.rules
    }

    /// Returns the broker's short name.
    pub fn broker_name(&self) -> &'static str {
        self.0.backbone.broker.name()
    }

    /// Returns how long this node has been running.
    pub fn uptime(&self) -> Duration {
        self.0.sessions.uptime()
    }

    /// Returns whether this node could deliver when it last asked the broker. The node asks every
    /// second. The answer comes at once, except when the first question has no answer yet.
    ///
    /// # Errors
    /// What the node waits for.
    pub async fn ready(&self) -> Result<(), NotReady> {
        if self.0.sessions.is_leaving() {
            return Err(NotReady::draining());
        }
        self.0.probe.answer(&self.0.backbone).await
    }

    /// Warns the operator of something that a client at `peer` causes. The log has a few lines a
    /// minute for each cause and one for each address. The node counts the rest and sums it up in
    /// one line. The line shows `detail` shortened and quoted; `detail` must not hold a secret.
    pub fn warn(&self, warning: Warning, peer: Option<IpAddr>, detail: &str) {
        self.0.backbone.warnings.warn(warning, peer, detail);
    }

    /// Announces that a drain is about to begin. From now on [`Hub::ready`] fails, and everything
    /// else goes on. Load balancers that ask for it send no more clients.
    pub fn announce_drain(&self) {
        self.0.sessions.announce_drain();
    }

    /// Begins a drain: the node takes no new connections and orders every session to end. Returns
    /// at once.
    pub fn drain(&self) {
        self.0.sessions.drain();
    }

    /// Ends every session at once, whatever the session has still to write. The caller uses this
    /// when the grace time of a drain is over.
    pub fn cut(&self) {
        self.0.sessions.give_all(Orders::CUT);
    }

    /// Takes this node's members out of their channels, so that other nodes see it at once. The
    /// caller uses this at the end of a drain, before the process ends. If a node ends without this
    /// call, its members expire after a quarter of a minute. The call does nothing if there is no
    /// presence.
    pub async fn deregister(&self) {
        if let Some(presence) = &self.0.backbone.presence
            && timeout(DEREGISTER_WITHIN, presence.deregister()).await.is_err()
        {
            tracing::debug!("not all members could be taken back in time: the rest expires");
        }
    }

    /// Returns whether [`Hub::drain`] was called.
    pub fn is_draining(&self) -> bool {
        self.0.sessions.is_draining()
    }

    /// Returns the number of open sessions.
    pub fn sessions(&self) -> usize {
        self.0.sessions.count()
    }

    /// Returns how many milliseconds a client should wait before it connects again: jittered, and
    /// longer where many would come at once.
    pub fn retry_hint(&self) -> u32 {
        self.0.admission.retry_hint()
    }

    /// Lowers the number of connections that this node takes in to `count`, for example because it
    /// may not open more files. It does nothing if `limits.connections` is lower.
    pub fn bound_connections(&self, count: usize) {
        self.0.admission.bound_connections(count);
    }

    /// Carries out one client's request. All broker calls of the request share one time,
    /// `limits.broker_timeout`. The time counts while the broker does not answer, so a request that
    /// makes progress may take longer. Each channel of a published array is a request of its own.
    pub fn request<F: Future>(&self, request: F) -> impl Future<Output = F::Output> {
        patience::request(request)
    }

    /// Carries out a request like [`Hub::request`] that waited behind another one. The other
    /// request left `left` of its time, and the times of the two do not add up. Returns the time
    /// that is left now.
    pub fn request_behind<F: Future>(&self, left: Patience, request: F) -> impl Future<Output = (F::Output, Patience)> {
        patience::request_behind(left, request)
    }

    /// Takes in a client. `counted` says that the client stays and takes one of the node's places.
    ///
    /// # Errors
    /// `unavailable`: the node is draining; `too-many`: no place is left, on the node or for this
    /// address.
    pub fn connect(&self, request: ConnectRequest, counted: bool) -> Result<Arc<Connection>, Refusal> {
        self.0.admission.connect(request, counted)
    }

    /// Returns whether the node asks one handler about every channel that `pattern` matches.
    pub fn has_handler(&self, pattern: &Pattern) -> bool {
        self.0.admission.has_handler(pattern)
    }

    /// Returns the query parameters that the handlers read, [`Handler::query_parameters`].
    pub fn query_parameters(&self) -> impl Iterator<Item = &str> {
        self.0.admission.query_parameters()
    }

    /// Counts one HTTP request of `user`, or of the address if there is no user. The node does not
    /// count a request whose address is not known.
    ///
    /// # Errors
    /// `too-many`.
    pub fn count_request(&self, user: Option<&Arc<str>>, peer: Option<IpAddr>) -> Result<(), Refusal> {
        self.0.admission.count_request(user, peer)
    }

    /// Takes a client's message that came by itself, not over a subscription. The message goes to
    /// the handler; without a handler the rule decides. The node first asks the handler whether the
    /// client may listen.
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

    /// Takes a client's message over a connection that can listen. `listens` says that the
    /// connection listens to this channel.
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

    /// Returns a page of a channel's history for a client, and the channel that the client may see.
    ///
    /// The page holds [hidden events](crate::Event::is_hidden), too, so that the last event says
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

    /// Returns the channels that are open on this node, in the order of their names; at most
    /// `limit`.
    pub fn channels(&self, limit: usize) -> Vec<ChannelState> {
        self.channels_after(None, limit)
    }

    /// Returns the open channels of this node whose names come after `after`, in the order of their
    /// names; at most `limit`. The last one is the `after` of the next page. The cost depends on
    /// the page alone, however many channels are open.
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

    /// Returns the number of sessions of each format.
    pub fn sessions_by_wire(&self) -> Vec<(&'static str, usize)> {
        self.0.formats.sessions()
    }
}

/// Sends heartbeats, ends stalled and silent sessions, and closes unused logs. One timer serves all
/// of them, and ends with the last connection.
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
