//! The application's handlers decide who may connect, listen and send, and what a sent message
//! does.

use std::any::Any;
use std::future::{Future, ready};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;

use serde::Serialize;

use crate::caught::Details;
use crate::channel::Channel;
use crate::event::{Data, Invalid, JsonText, Message};
use crate::refusal::Refusal;
use crate::rule::TransportName;

/// Bounds a user's metadata, in bytes of JSON.
const MAX_META: usize = 1024;

/// A handler is the application's code for the channels that match a pattern: who may connect,
/// listen and send.
///
/// The same handler serves every transport. A message that a WebSocket client sends and one that an
/// SSE client POSTs make the same call.
///
/// Every method has a default, so an application implements the methods that it needs. Calls for
/// one connection come one after the other; different connections call at the same time. A slow
/// method delays only further commands of its own connection, never deliveries. Airwave may drop a
/// call under way at its next `await` when its connection breaks. Work that must not stop half-way
/// belongs in a task of its own. A drain waits for a call under way.
///
/// Airwave catches the panic of a method. The client receives `internal`, and the connection and
/// its other channels go on. The log names the channel and the event, and
/// `airwave_handler_panics_total` counts the panic.
///
/// An application that shares a handler with its other parts gives it as an `Arc`.
///
/// # Examples
/// The methods use `async fn`. Their futures must be `Send`.
///
/// ```
/// use airwave_core::{Channel, Client, ConnectRequest, Handler, Identity, Message, Refusal, Reply};
///
/// struct Chat;
///
/// impl Handler for Chat {
///     async fn connect(&self, request: &ConnectRequest) -> Result<Identity, Refusal> {
///         match request.bearer_token() {
///             Some("secret-of-anna") => Ok(Identity::user("anna")),
///             _ => Err(Refusal::unauthorized("sign in first")),
///         }
///     }
///
///     async fn message(&self, _: &Client, room: &Channel, message: Message) -> Result<Reply, Refusal> {
///         room.publish("said", &message.json::<String>()?).await?;
///         Ok(Reply::done())
///     }
/// }
/// ```
pub trait Handler: Send + Sync + 'static {
    /// Returns who the client is. Airwave calls it once for each connection that turns to a channel
    /// of this handler, before anything else. A connection is an SSE stream, a WebSocket or a
    /// single POST. The other methods receive the returned value as the client's identity. The
    /// default admits every client as anonymous.
    ///
    /// # Errors
    /// Returns the refusal that the client receives.
    ///
    /// # Examples
    /// ```
    /// # use airwave_core::{ConnectRequest, Handler, Identity, Refusal};
    /// # struct Orders;
    /// # fn user_of(session: &str) -> Option<String> { None }
    /// impl Handler for Orders {
    ///     async fn connect(&self, request: &ConnectRequest) -> Result<Identity, Refusal> {
    ///         let user = request.cookie("session").and_then(user_of);
    ///         user.map(Identity::user).ok_or_else(|| Refusal::unauthorized("sign in first"))
    ///     }
    /// }
    /// ```
    fn connect(&self, request: &ConnectRequest) -> impl Future<Output = Result<Identity, Refusal>> + Send {
        let _ = request;
        ready(Ok(Identity::anonymous()))
    }

    /// Returns the names of the query parameters that [`Handler::connect`] reads. Airwave refuses a
    /// request with a parameter that neither it nor a handler knows, so that the client notices a
    /// misspelt one. `&["*"]` accepts every parameter. The default accepts none.
    ///
    /// # Examples
    /// ```
    /// # use airwave_core::Handler;
    /// # struct Orders;
    /// impl Handler for Orders {
    ///     fn query_parameters(&self) -> &[&str] {
    ///         &["token"]
    ///     }
    /// }
    /// ```
    fn query_parameters(&self) -> &[&str] {
        &[]
    }

    /// Admits a client that wants to listen to a channel, or refuses it. Airwave calls it for each
    /// subscription and each history request. Unless [`Handler::requires_subscription`] says
    /// otherwise, it also calls it for each message that does not come over a subscription. The
    /// default admits every client.
    ///
    /// # Errors
    /// Returns the refusal that the client receives.
    ///
    /// # Examples
    /// ```
    /// # use airwave_core::{Channel, Client, Handler, Refusal};
    /// # struct Inbox;
    /// impl Handler for Inbox {
    ///     async fn subscribe(&self, client: &Client, channel: &Channel) -> Result<(), Refusal> {
    ///         match client.user() {
    ///             Some(user) if channel.param("user") == Some(user) => Ok(()),
    ///             _ => Err(Refusal::forbidden("this inbox is another user's")),
    ///         }
    ///     }
    /// }
    /// ```
    fn subscribe(&self, client: &Client, channel: &Channel) -> impl Future<Output = Result<(), Refusal>> + Send {
        let _ = (client, channel);
        ready(Ok(()))
    }

    /// Handles a message of a client: publishes it, acts on it, answers it, or refuses it. Airwave
    /// calls it for each `send` frame and each POST of a client that [`Handler::subscribe`]
    /// admitted. The default refuses the message as `forbidden`.
    ///
    /// # Errors
    /// Returns the refusal that the client receives.
    ///
    /// # Examples
    /// ```
    /// # use airwave_core::{Channel, Client, Handler, Message, Refusal, Reply};
    /// # struct Chat;
    /// impl Handler for Chat {
    ///     async fn message(&self, _: &Client, room: &Channel, message: Message) -> Result<Reply, Refusal> {
    ///         if message.event.as_str() != "say" {
    ///             return Err(Refusal::bad_request("a room knows 'say'"));
    ///         }
    ///         // Data of another type are refused, with the path of the wrong field.
    ///         let text: String = message.json()?;
    ///         let published = room.publish("said", &text).await?;
    ///         Ok(Reply::json(&published.position.to_string())?)
    ///     }
    /// }
    /// ```
    fn message(
        &self,
        client: &Client,
        channel: &Channel,
        message: Message,
    ) -> impl Future<Output = Result<Reply, Refusal>> + Send {
        let _ = (client, channel, message);
        ready(Err(Refusal::forbidden("this channel takes no messages from clients")))
    }

    /// Returns whether only those clients may send that may listen. The default is yes.
    ///
    /// With `true`, a message over a WebSocket needs an open subscription of that connection to the
    /// channel. For a POST, Airwave calls [`Handler::subscribe`] first, each time; if it refuses,
    /// Airwave refuses the message with the same code. With `false`, [`Handler::message`] runs for
    /// every client that [`Handler::connect`] knows, and has to check all conditions by itself.
    /// That is for channels to which clients write and that they never read.
    ///
    /// # Examples
    /// ```
    /// # use airwave_core::Handler;
    /// # struct Letterbox;
    /// impl Handler for Letterbox {
    ///     fn requires_subscription(&self) -> bool {
    ///         false
    ///     }
    /// }
    /// ```
    fn requires_subscription(&self) -> bool {
        true
    }

    /// Receives the end of a subscription. Airwave calls it once for each subscription that
    /// `subscribe` admitted, in its own task. The default does nothing.
    ///
    /// # Examples
    /// ```
    /// # use airwave_core::{Channel, Client, Handler, LeaveReason};
    /// # struct Game;
    /// impl Handler for Game {
    ///     async fn unsubscribe(&self, client: &Client, arena: &Channel, reason: LeaveReason) {
    ///         if reason == LeaveReason::Disconnected {
    ///             // The listeners that are left hear of it, unless the broker is out of reach.
    ///             let _ = arena.publish("left", &client.user()).await;
    ///         }
    ///     }
    /// }
    /// ```
    fn unsubscribe(&self, client: &Client, channel: &Channel, reason: LeaveReason) -> impl Future<Output = ()> + Send {
        let _ = (client, channel, reason);
        ready(())
    }
}

impl<H: Handler> Handler for Arc<H> {
    fn connect(&self, request: &ConnectRequest) -> impl Future<Output = Result<Identity, Refusal>> + Send {
        (**self).connect(request)
    }

    fn query_parameters(&self) -> &[&str] {
        (**self).query_parameters()
    }

    fn subscribe(&self, client: &Client, channel: &Channel) -> impl Future<Output = Result<(), Refusal>> + Send {
        (**self).subscribe(client, channel)
    }

    fn message(
        &self,
        client: &Client,
        channel: &Channel,
        message: Message,
    ) -> impl Future<Output = Result<Reply, Refusal>> + Send {
        (**self).message(client, channel, message)
    }

    fn requires_subscription(&self) -> bool {
        (**self).requires_subscription()
    }

    fn unsubscribe(&self, client: &Client, channel: &Channel, reason: LeaveReason) -> impl Future<Output = ()> + Send {
        (**self).unsubscribe(client, channel, reason)
    }
}

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A node calls a [`Handler`] whose type it does not know by this trait: the same methods, with
/// boxed futures.
pub(crate) trait DynHandler: Send + Sync + 'static {
    fn connect<'a>(&'a self, request: &'a ConnectRequest) -> BoxFuture<'a, Result<Identity, Refusal>>;
    fn query_parameters(&self) -> &[&str];
    fn subscribe<'a>(&'a self, client: &'a Client, channel: &'a Channel) -> BoxFuture<'a, Result<(), Refusal>>;
    fn message<'a>(&'a self, client: &'a Client, channel: &'a Channel, message: Message)
    -> BoxFuture<'a, Result<Reply, Refusal>>;
    fn requires_subscription(&self) -> bool;
    fn unsubscribe<'a>(&'a self, client: &'a Client, channel: &'a Channel, reason: LeaveReason) -> BoxFuture<'a, ()>;
}

impl<H: Handler> DynHandler for H {
    fn connect<'a>(&'a self, request: &'a ConnectRequest) -> BoxFuture<'a, Result<Identity, Refusal>> {
        Box::pin(Handler::connect(self, request))
    }

    fn query_parameters(&self) -> &[&str] {
        Handler::query_parameters(self)
    }

    fn subscribe<'a>(&'a self, client: &'a Client, channel: &'a Channel) -> BoxFuture<'a, Result<(), Refusal>> {
        Box::pin(Handler::subscribe(self, client, channel))
    }

    fn message<'a>(
        &'a self,
        client: &'a Client,
        channel: &'a Channel,
        message: Message,
    ) -> BoxFuture<'a, Result<Reply, Refusal>> {
        Box::pin(Handler::message(self, client, channel, message))
    }

    fn requires_subscription(&self) -> bool {
        Handler::requires_subscription(self)
    }

    fn unsubscribe<'a>(&'a self, client: &'a Client, channel: &'a Channel, reason: LeaveReason) -> BoxFuture<'a, ()> {
        Box::pin(Handler::unsubscribe(self, client, channel, reason))
    }
}

/// The reason says why a subscription is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeaveReason {
    /// The client unsubscribed.
    Unsubscribed,
    /// The connection has ended.
    Disconnected,
    /// The channel has ended.
    Ended,
}

/// A connection begins with this request.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ConnectRequest {
    /// Names the transport of the request.
    pub transport: TransportName,
    /// Holds the client's address, if the server knows it.
    pub peer: Option<IpAddr>,
    /// Holds the query string, without `?`.
    pub query: String,
    /// Holds header names in lower case, and values that are text.
    pub headers: Vec<(String, String)>,
}

impl ConnectRequest {
    /// Creates a request over `transport`, without address, query and headers. A transport adds
    /// what it knows; a test of a handler adds what the handler reads.
    ///
    /// # Examples
    ///
    /// ```
    /// use airwave_core::ConnectRequest;
    /// use airwave_core::rule::TransportName;
    ///
    /// let request = ConnectRequest::new(TransportName::SSE)
    ///     .with_query("room=7")
    ///     .with_header("Authorization", "Bearer secret");
    /// assert_eq!(request.bearer_token(), Some("secret"));
    /// ```
    pub fn new(transport: TransportName) -> Self {
        Self {
            transport,
            peer: None,
            query: String::new(),
            headers: Vec::new(),
        }
    }

    /// Returns the same request with the client's address, if it is known.
    pub fn with_peer(mut self, peer: impl Into<Option<IpAddr>>) -> Self {
        self.peer = peer.into();
        self
    }

    /// Returns the same request with a query string, without `?`.
    pub fn with_query(mut self, query: impl Into<String>) -> Self {
        self.query = query.into();
        self
    }

    /// Returns the same request with one header more. The name is taken in lower case.
    pub fn with_header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_ascii_lowercase(), value.into()));
        self
    }

    /// Returns the first value of a header; `name` is in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// Returns the token of an `Authorization: Bearer` header (RFC 6750, section 2.1). Where a
    /// browser opens a WebSocket, a subprotocol stands for that header (docs/protocol.md, section
    /// 5).
    pub fn bearer_token(&self) -> Option<&str> {
        let (scheme, token) = self.header("authorization")?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
    }

    /// Returns the value of a cookie, as the client sent it.
    pub fn cookie(&self, name: &str) -> Option<&str> {
        let cookies = self.headers.iter().filter(|(n, _)| n == "cookie");
        cookies.flat_map(|(_, line)| line.split(';')).find_map(|pair| {
            let (n, value) = pair.trim().split_once('=')?;
            (n == name).then_some(value)
        })
    }
}

/// An identity says who a client is, as the application sees it.
#[derive(Clone, Default)]
pub struct Identity {
    user: Option<Arc<str>>,
    meta: Option<JsonText>,
    details: Option<Details>,
}

impl Identity {
    /// Returns the identity of an anonymous client.
    pub fn anonymous() -> Self {
        Self::default()
    }

    /// Creates the identity of a user by an id that the application chooses. In channels with
    /// presence other clients see this id. It has at most 255 bytes there, and an empty one is
    /// anonymous.
    pub fn user(id: impl Into<Arc<str>>) -> Self {
        Self {
            user: Some(id.into()),
            ..Self::default()
        }
    }

    /// Returns the same identity with metadata about the user, such as a name, a colour or a
    /// picture. Every client in a channel with presence may see it. The newest connection of a user
    /// counts. A channel only counts anonymous clients, so it does not show their metadata.
    ///
    /// # Errors
    /// The value is no JSON, or has more than 1 KiB of it.
    pub fn with_meta<T: Serialize + ?Sized>(mut self, meta: &T) -> Result<Self, Invalid> {
        let Data::Json(text) = Data::json(meta)? else {
            return Err(Invalid::new("what is said about a user is JSON"));
        };
        let length = text.as_str().len();
        if length > MAX_META {
            return Err(Invalid::new(format!(
                "what is said about a user has {length} bytes of JSON; at most {MAX_META} are allowed"
            )));
        }
        self.meta = Some(text);
        Ok(self)
    }

    /// Returns the same identity with a value of the application's own (claims, a session, a
    /// database row).
    pub fn with(mut self, details: impl Any + Send + Sync) -> Self {
        self.details = Some(Details::new(details));
        self
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("user", &self.user).finish_non_exhaustive()
    }
}

impl Client {
    pub(crate) fn user_id(&self) -> Option<&Arc<str>> {
        self.identity.user.as_ref()
    }

    pub(crate) fn meta(&self) -> Option<&JsonText> {
        self.identity.meta.as_ref()
    }
}

/// A client is one connection, as its handler sees it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Client {
    /// Tells connections of this node apart.
    pub id: u64,
    /// Names the transport of the connection.
    pub transport: TransportName,
    /// Holds the client's address, if the server knows it.
    pub peer: Option<IpAddr>,
    pub(crate) identity: Identity,
}

impl Client {
    /// Returns the user's id; `None` for an anonymous client.
    pub fn user(&self) -> Option<&str> {
        self.identity.user.as_deref()
    }

    /// Returns the value that [`Identity::with`] received, if it is a `T`.
    pub fn details<T: Any>(&self) -> Option<&T> {
        self.identity.details.as_ref()?.downcast_ref()
    }
}

/// A reply answers a client's message.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reply(pub(crate) Option<Data>);

impl Reply {
    /// Creates the answer "done", without data.
    pub fn done() -> Self {
        Reply(None)
    }

    /// Creates an answer with a value, as JSON.
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<Self, Invalid> {
        Ok(Reply(Some(Data::json(value)?)))
    }

    /// Returns the answer's data; `None` means just "done".
    pub fn data(&self) -> Option<&Data> {
        self.0.as_ref()
    }
}
