//! The application's code: who may connect, listen and send, and what a sent message does.

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

/// How much may be said about a user, in bytes of JSON.
const MAX_META: usize = 1024;

/// The application's code for the channels that match a pattern: who may connect, listen and send.
///
/// The same handler serves every transport: a message that a WebSocket client sends and one that an
/// SSE client POSTs are the same call.
///
/// Every method has a default, so an application implements what it needs. Calls for one connection
/// come one after the other; different connections call at the same time. A slow method delays only
/// further commands of its own connection, never deliveries. A call that is under way when its
/// connection breaks may be dropped at its next `await`: what must not stop half-way belongs in a
/// task of its own. A drain waits for it.
///
/// A method that panics is caught: the client is answered `internal`, the connection and its other
/// channels go on, the log says in which channel and at which event it was, and
/// `airwave_handler_panics_total` counts it.
///
/// A handler that is shared with other parts of the application is given as an `Arc`.
///
/// # Examples
/// The methods are written with `async fn`. Their futures must be `Send`.
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
    /// Returns who the client is. Called once for each connection (an SSE stream, a WebSocket, a
    /// single POST) that turns to a channel of this handler, before anything else. What it returns
    /// is the client's identity in the other methods. Default: every client, anonymous.
    ///
    /// # Errors
    /// The refusal that the client is answered with.
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

    /// Returns the names of the query parameters that [`Handler::connect`] reads. A request with a
    /// parameter that neither Airwave nor a handler knows is refused, so that a misspelt one is
    /// noticed. `&["*"]` accepts every parameter. Default: none.
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

    /// Admits a client that wants to listen to a channel, or refuses it. Called for each
    /// subscription and each history request, and, unless [`Handler::requires_subscription`] says
    /// otherwise, for each message that does not come over a subscription. Default: admits it.
    ///
    /// # Errors
    /// The refusal that the client is answered with.
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

    /// Handles a message of a client: publishes it, acts on it, answers it, or refuses it. Called
    /// for each `send` frame and each POST of a client that [`Handler::subscribe`] admitted.
    /// Default: refused as `forbidden`.
    ///
    /// # Errors
    /// The refusal that the client is answered with.
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

    /// Returns whether only those clients may send that may listen. Default: yes.
    ///
    /// Then a message over a WebSocket needs an open subscription of that connection to the
    /// channel, and for a POST, [`Handler::subscribe`] is asked first, each time; if it refuses,
    /// the message is refused with the same code. Without it, [`Handler::message`] runs for every
    /// client that [`Handler::connect`] knows, and has to check by itself whatever must hold: for
    /// channels to which clients write and that they never read.
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

    /// Is told that a subscription is over. Called once for each subscription that `subscribe`
    /// admitted, in its own task. Default: nothing.
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

/// A [`Handler`] whose type a node does not know: the same methods, with boxed futures.
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

/// Why a subscription is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeaveReason {
    /// The client said so.
    Unsubscribed,
    /// The connection is gone.
    Disconnected,
    /// The channel has ended.
    Ended,
}

/// The request that a connection began with.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ConnectRequest {
    /// The transport it came over.
    pub transport: TransportName,
    /// The address it came from, if the server knows it.
    pub peer: Option<IpAddr>,
    /// The query string, without `?`.
    pub query: String,
    /// Header names in lower case, and values that are text.
    pub headers: Vec<(String, String)>,
}

impl ConnectRequest {
    /// Returns a request over `transport`, without address, query and headers. A transport adds
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

    /// The first value of a header; `name` in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The token of an `Authorization: Bearer` header (RFC 6750, section 2.1), or of the
    /// subprotocol that stands for it where a browser opens a WebSocket (docs/protocol.md, section
    /// 5).
    pub fn bearer_token(&self) -> Option<&str> {
        let (scheme, token) = self.header("authorization")?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
    }

    /// The value of a cookie, as it was sent.
    pub fn cookie(&self, name: &str) -> Option<&str> {
        let cookies = self.headers.iter().filter(|(n, _)| n == "cookie");
        cookies.flat_map(|(_, line)| line.split(';')).find_map(|pair| {
            let (n, value) = pair.trim().split_once('=')?;
            (n == name).then_some(value)
        })
    }
}

/// Who a client is, as the application sees it.
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

    /// A user by an id that the application chooses. In channels with presence it is what others
    /// see, has at most 255 bytes, and an empty one is anonymous.
    pub fn user(id: impl Into<Arc<str>>) -> Self {
        Self {
            user: Some(id.into()),
            ..Self::default()
        }
    }

    /// The same with a few words about the user that everybody in a channel with presence may see:
    /// a name, a colour, a picture. Of a user with several connections the newest counts; of
    /// anonymous clients it is not shown, because they are only counted.
    ///
    /// # Errors
    /// The value is no JSON, or more than 1 KiB of it.
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

    /// The same with a value of the application's own (claims, a session, a database row).
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

/// One connected client, as its handler sees it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Client {
    /// Tells connections of this node apart.
    pub id: u64,
    /// The transport it came over.
    pub transport: TransportName,
    /// The address it came from, if the server knows it.
    pub peer: Option<IpAddr>,
    pub(crate) identity: Identity,
}

impl Client {
    /// The user's id; `None`: anonymous.
    pub fn user(&self) -> Option<&str> {
        self.identity.user.as_deref()
    }

    /// What [`Identity::with`] was given, if it was a `T`.
    pub fn details<T: Any>(&self) -> Option<&T> {
        self.identity.details.as_ref()?.downcast_ref()
    }
}

/// What a client is answered.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reply(pub(crate) Option<Data>);

impl Reply {
    /// "Done", and nothing else.
    pub fn done() -> Self {
        Reply(None)
    }

    /// A value, as JSON.
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<Self, Invalid> {
        Ok(Reply(Some(Data::json(value)?)))
    }

    /// The answer's data; `None`: just "done".
    pub fn data(&self) -> Option<&Data> {
        self.0.as_ref()
    }
}
