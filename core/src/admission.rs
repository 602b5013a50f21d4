//! Admission decides who may connect, listen and send. Every transport asks permission here.
//!
//! The module [`sending`] holds the messages of clients.

mod sending;

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;

use crate::address::AddressKey;
use crate::backbone::Backbone;
use crate::broker::{PageLimit, Replay};
use crate::caught::Call;
use crate::channel::Channel;
use crate::event::{ChannelName, Position};
use crate::handler::{Client, ConnectRequest, DynHandler, Identity, LeaveReason};
use crate::identities::{Identities, IdentitySource};
use crate::key_counts::KeyCounts;
use crate::logs::Logs;
use crate::places::{Place, Places};
use crate::rate::Rates;
use crate::refusal::{Code, Refusal};
use crate::rule::{Params, Pattern, Rule, TransportName};
use crate::sessions::Sessions;
use crate::warnings::Warning;

/// Admission takes in the clients of one node, and asks the node's handlers what a client may do.
pub(crate) struct Admission {
    pub(crate) backbone: Arc<Backbone>,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) logs: Arc<Logs>,
    /// The node asks the first handler whose pattern matches a channel.
    handlers: Vec<(Pattern, Arc<dyn DynHandler>)>,
    places: Arc<Places>,
    requests: Rates<RequestSource>,
    new_channels: Rates<AddressKey>,
    /// Counts the idempotency keys of clients' messages.
    keys: KeyCounts<KeyOwner>,
    next_client: AtomicU64,
    /// Distinguishes this node's connections from those of other nodes.
    node: u64,
    runtime: Handle,
}

/// The node counts the requests of one source together.
#[derive(PartialEq, Eq, Hash)]
enum RequestSource {
    User(Arc<str>),
    Address(AddressKey),
}

/// The node counts the idempotency keys of one owner together.
#[derive(PartialEq, Eq, Hash)]
enum KeyOwner {
    User(Arc<str>),
    Address(Option<AddressKey>),
}

/// A connection belongs to one client, before and beside its session. It holds the client's
/// identity for each handler that the node asked.
pub struct Connection {
    pub(crate) admission: Arc<Admission>,
    pub(crate) id: u64,
    transport: TransportName,
    peer: Option<IpAddr>,
    /// Holds the connection's place among the node's connections, if it takes one.
    _place: Option<Place>,
    identities: Identities,
}

/// The node has checked this channel for a connection, and found the handler that answers for it.
pub(crate) struct Admitted {
    pub(crate) channel: Channel,
    pub(crate) client: Arc<Client>,
    pub(crate) handler: Option<Arc<dyn DynHandler>>,
    pub(crate) rule: Arc<Rule>,
}

impl Admission {
    /// Creates the admission of one node. The caller must be within a tokio runtime, because a task
    /// there calls the handlers when a subscription is over.
    pub(crate) fn new(sessions: Arc<Sessions>, logs: Arc<Logs>, handlers: Vec<(Pattern, Arc<dyn DynHandler>)>) -> Self {
        let backbone = sessions.backbone.clone();
        let limits = &backbone.limits;
        let (requests, new_channels) = (limits.requests_per_second, limits.new_channels_per_minute);
        Self {
            places: Places::new(limits.connections, limits.connections_per_address),
            requests: Rates::new(requests, Duration::from_secs(1), requests.saturating_mul(2)),
            new_channels: Rates::new(new_channels, Duration::from_secs(60), new_channels),
            keys: KeyCounts::default(),
            next_client: AtomicU64::new(1),
            node: RandomState::new().hash_one(0),
            runtime: Handle::current(),
            backbone,
            sessions,
            logs,
            handlers,
        }
    }

    /// Gives memory back that the rates of addresses and users no longer need. The node calls this
    /// about once a second.
    pub(crate) fn sweep(&self) {
        self.requests.sweep();
        self.new_channels.sweep();
    }

    /// Implements [`Hub::retry_hint`](crate::Hub::retry_hint).
    pub(crate) fn retry_hint(&self) -> u32 {
        let crowd = self.places.taken().min(30_000) as f64;
        (1000.0 + self.backbone.jitter.unit() * (2000.0 + crowd)) as u32
    }

    /// Implements [`Hub::bound_connections`](crate::Hub::bound_connections).
    pub(crate) fn bound_connections(&self, count: usize) {
        let limit = self.places.bound(count);
        self.backbone.metrics.connections_limit.set(limit as i64);
    }

    /// Implements [`Hub::connect`](crate::Hub::connect).
    pub(crate) fn connect(self: &Arc<Self>, request: ConnectRequest, counted: bool) -> Result<Arc<Connection>, Refusal> {
        self.refuse_if_draining()?;
        let place = match counted {
            true => Some(self.places.take(request.peer)?),
            false => None,
        };
        let (transport, peer) = (request.transport.clone(), request.peer);
        // Without handlers, no handler ever reads the request.
        let request = (!self.handlers.is_empty()).then_some(request);
        Ok(Arc::new(Connection {
            admission: self.clone(),
            id: self.next_client.fetch_add(1, Ordering::Relaxed),
            transport,
            peer,
            _place: place,
            identities: Identities::new(request),
        }))
    }

    fn refuse_if_draining(&self) -> Result<(), Refusal> {
        match self.sessions.is_draining() {
            true => Err(Refusal::unavailable("this server is going away: connect again")),
            false => Ok(()),
        }
    }

    /// Implements [`Hub::has_handler`](crate::Hub::has_handler).
    pub(crate) fn has_handler(&self, pattern: &Pattern) -> bool {
        self.handlers.iter().any(|(of, _)| of.covers(pattern))
    }

    /// Implements [`Hub::query_parameters`](crate::Hub::query_parameters).
    pub(crate) fn query_parameters(&self) -> impl Iterator<Item = &str> {
        let handlers = self.handlers.iter();
        handlers.flat_map(|(_, handler)| handler.query_parameters().iter().copied())
    }

    /// Implements [`Hub::count_request`](crate::Hub::count_request).
    pub(crate) fn count_request(&self, user: Option<&Arc<str>>, peer: Option<IpAddr>) -> Result<(), Refusal> {
        let source = match (user, peer) {
            (Some(user), _) => RequestSource::User(user.clone()),
            (None, Some(peer)) => RequestSource::Address(peer.into()),
            (None, None) => return Ok(()),
        };
        if self.requests.take(source) {
            return Ok(());
        }
        Err(Refusal::new(
            Code::TooMany,
            format!(
                "more than {} requests per second from this {} (limits.requests_per_second): wait a second, or use one connection for many messages",
                self.backbone.limits.requests_per_second,
                if user.is_some() { "user" } else { "address" }
            ),
        ))
    }

    /// Counts a request that came over HTTP. A connection that stays has limits of its own.
    fn count_if_http(&self, connection: &Connection, admitted: &Admitted) -> Result<(), Refusal> {
        match connection.transport == TransportName::HTTP {
            true => self.count_request(admitted.client.user_id(), connection.peer),
            false => Ok(()),
        }
    }

    /// Counts a channel that is not open on this node against the address that names it.
    fn count_name(&self, peer: Option<IpAddr>, name: &ChannelName) -> Result<(), Refusal> {
        let Some(peer) = peer else { return Ok(()) };
        if self.logs.is_open(name) || self.new_channels.take(peer.into()) {
            return Ok(());
        }
        Err(Refusal::new(
            Code::TooMany,
            format!(
                "more than {} channels that were not open from this address within a minute (limits.new_channels_per_minute): try again later",
                self.backbone.limits.new_channels_per_minute
            ),
        ))
    }

    /// Returns the channel, and the client as the channel's handler knows it. Every permission
    /// begins here, for every transport.
    async fn admit(&self, connection: &Connection, name: &ChannelName) -> Result<Admitted, Refusal> {
        let (rule, rule_params) = self.backbone.rule(name)?;
        let (client, handler, params) = match self.handler_of(name) {
            Some((number, handler, params)) => {
                let client = self.identify(connection, number, handler, name).await?;
                (client, Some(handler.clone()), params)
            }
            None => (anonymous(connection), None, rule_params),
        };
        let channel = Channel::new(self.backbone.clone(), name.clone(), rule.clone(), params);
        Ok(Admitted {
            channel,
            client,
            handler,
            rule,
        })
    }

    /// Returns the handler of a channel, the handler's number, and the values of its pattern's
    /// parameters.
    fn handler_of(&self, name: &ChannelName) -> Option<(usize, &Arc<dyn DynHandler>, Params)> {
        self.handlers.iter().enumerate().find_map(|(number, (pattern, handler))| {
            let params = pattern.matches(name.as_str())?;
            Some((number, handler, params))
        })
    }

    /// Returns the client as a handler knows it. The node asks the handler once for each
    /// connection.
    async fn identify(
        &self,
        connection: &Connection,
        number: usize,
        handler: &Arc<dyn DynHandler>,
        name: &ChannelName,
    ) -> Result<Arc<Client>, Refusal> {
        let source = IdentitySource::Handler(number);
        if let Some(client) = connection.identities.known(source) {
            return Ok(client);
        }
        let request = connection.identities.request()?;
        let call = self.call("connect", name, None);
        let identity = call.wait(|| handler.connect(&request)).await;
        let identity = call.answer(identity.and_then(|identity| identity)).inspect_err(|refusal| {
            // A client that a handler refuses as unauthorized shows no token, or a wrong one.
            if refusal.code == Code::Unauthorized {
                self.backbone
                    .warnings
                    .warn(Warning::WrongToken, connection.peer, name.as_str());
            }
        })?;
        Ok(connection.identities.keep(source, connection.client(identity)))
    }

    /// Checks whether this client may listen to this channel over its transport.
    pub(crate) async fn admit_listener(&self, connection: &Connection, name: &ChannelName) -> Result<Admitted, Refusal> {
        self.refuse_if_draining()?;
        let admitted = self.admit(connection, name).await?;
        if !admitted.rule.allows(&connection.transport) && connection.transport != TransportName::HTTP {
            return Err(wrong_transport(connection, name, &admitted.rule));
        }
        self.count_if_http(connection, &admitted)?;
        self.ask_to_subscribe(&admitted).await?;
        self.count_name(connection.peer, name)?;
        Ok(admitted)
    }

    async fn ask_to_subscribe(&self, admitted: &Admitted) -> Result<(), Refusal> {
        let Some(handler) = &admitted.handler else {
            return Ok(());
        };
        let call = self.call("subscribe", admitted.channel.name(), None);
        call.answer(call.wait(|| handler.subscribe(&admitted.client, &admitted.channel)).await?)
    }

    /// Prepares a call of a handler, which catches the handler's panics.
    fn call<'a>(&'a self, method: &'static str, channel: &'a ChannelName, event: Option<&'a str>) -> Call<'a> {
        let metrics = &self.backbone.metrics;
        Call {
            metrics,
            method,
            channel,
            event,
        }
    }

    /// Implements [`Hub::history`](crate::Hub::history).
    pub(crate) async fn history(
        &self,
        connection: &Connection,
        name: &ChannelName,
        after: Option<Position>,
        limit: PageLimit,
    ) -> Result<(Channel, Replay), Refusal> {
        let admitted = self.admit_listener(connection, name).await?;
        if let Some(after) = after {
            let held = self.logs.page(name, after, limit).await;
            if let Some(replay) = held.map_err(|error| self.backbone.refusal(&error))? {
                return Ok((admitted.channel, replay));
            }
        }
        let replay = admitted.channel.whole_page(after, limit).await?;
        Ok((admitted.channel, replay))
    }

    /// Calls the handler in a task of its own when a subscription is over.
    pub(crate) fn unsubscribed(&self, handler: Arc<dyn DynHandler>, client: Arc<Client>, channel: Channel, reason: LeaveReason) {
        let backbone = self.backbone.clone();
        self.runtime.spawn(async move {
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
}

/// Returns the client of a channel without a handler.
fn anonymous(connection: &Connection) -> Arc<Client> {
    let source = IdentitySource::Anonymous;
    let known = connection.identities.known(source);
    known.unwrap_or_else(|| connection.identities.keep(source, connection.client(Identity::anonymous())))
}

fn wrong_transport(connection: &Connection, name: &ChannelName, rule: &Rule) -> Refusal {
    let to_use = rule.transports.first().cloned();
    let text = match &to_use {
        Some(to_use) => format!(
            "the channel '{name}' is not served over {}: use {to_use}",
            connection.transport
        ),
        None => format!("the channel '{name}' cannot be listened to"),
    };
    let mut refusal = Refusal::new(Code::WrongTransport, text);
    refusal.transport = to_use;
    refusal
}

impl Connection {
    /// Returns a number that distinguishes the connections of this node.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Returns the transport over which the client is connected.
    pub fn transport(&self) -> &TransportName {
        &self.transport
    }

    /// Returns the client's address, where the node knows it.
    pub fn peer(&self) -> Option<IpAddr> {
        self.peer
    }

    /// Drops the request's headers, because no further handler asks for the client's identity. The
    /// caller knows all channels of the connection.
    pub fn forget_request(&self) {
        self.identities.forget_request();
    }

    fn client(&self, identity: Identity) -> Client {
        Client {
            id: self.id,
            transport: self.transport.clone(),
            peer: self.peer,
            identity,
        }
    }
}
