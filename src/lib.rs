//! Airwave: a realtime framework. A backend publishes an event once, to a [`Channel`]; the channel
//! carries it to every listener, over SSE or WebSocket.
//!
//! ```no_run
//! use airwave::{Airwave, Channel, Client, Handler, Message, Refusal, Reply};
//!
//! #[derive(serde::Deserialize, serde::Serialize)]
//! struct Say { text: String }
//!
//! struct Chat;
//!
//! impl Handler for Chat {
//!     async fn message(&self, client: &Client, channel: &Channel, message: Message) -> Result<Reply, Refusal> {
//!         let say: Say = message.json()?;
//!         channel.publish("said", &say).await?;
//!         Ok(Reply::done())
//!     }
//! }
//!
//! #[tokio::main]
//! async fn main() -> airwave::Result<()> {
//!     let airwave = Airwave::from_file("airwave.toml")?.handle("chat/{room}", Chat).build().await?;
//!     let app = axum::Router::new().nest("/realtime", airwave.router());
//!     airwave.serve(app).await
//! }
//! ```

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod client;
pub mod config;
pub mod listener;
mod live;
mod pages;
mod process;
pub mod server;
pub mod signals;
#[cfg(feature = "typescript")]
pub mod typescript;

use std::path::Path;
use std::sync::Arc;

use axum::Router;

/// The brokers that Airwave has: the memory broker, and with their features Redis and NATS.
pub use airwave_brokers as brokers;
pub use airwave_core::event::{IdempotencyKey, Invalid};
pub use airwave_core::{
    Append, Broker, BrokerError, BrokerErrorKind, Channel, ChannelName, Client, Code, ConnectRequest, Cursor, Data, Directory,
    Event, EventName, Feed, Format, Handler, Hub, Identity, Key, LeaveReason, Member, Message, NotReady, NotReadyKind, Notice,
    PageLimit, Position, Publish, Published, Refusal, Replay, Reply, Rule, Rules, Session, UseCase,
};
/// The parts for a broker, a directory, a format or a transport of one's own, and for a [`Rule`] in
/// code.
pub use airwave_core::{broker, directory, event, format, hub, idempotency, rule, session};
/// The transports that Airwave has, and what they share.
pub use airwave_transports as transports;
pub use airwave_transports::Transport;
/// For implementing [`Broker`], [`Directory`] and [`Transport`].
pub use async_trait::async_trait;
pub use config::Config;
pub use pages::pages;
pub use server::{Error, local_only};

/// What a node counts, and the text formats of `/metrics`.
///
/// # Examples
///
/// ```no_run
/// # fn show(airwave: airwave::Airwave) {
/// use airwave::metrics::TextFormat;
///
/// let metrics = airwave.hub().metrics();
/// metrics.add_source(|snapshot| {
///     snapshot.gauge("shop_open_carts", "Carts that hold something").add(&[], 3_u64);
/// });
/// println!("{}", TextFormat::Prometheus.encode(&metrics.read()));
/// # }
/// ```
pub mod metrics {
    pub use airwave_core::observe::{Family, Histogram, Kind, Metrics, Sample, Snapshot, Value};
    pub use airwave_transports::prometheus::TextFormat;
}

/// What building and serving a node give.
pub type Result<T> = std::result::Result<T, Error>;

/// A node inside an application.
#[derive(Clone)]
pub struct Airwave {
    hub: Hub,
    transports: server::Transports,
    config: Config,
}

/// Puts an [`Airwave`] together.
pub struct Builder {
    config: Config,
    broker: Option<server::Backbone>,
    handlers: Vec<(String, server::Register)>,
}

impl Airwave {
    /// As a file and the environment describe it.
    ///
    /// # Errors
    /// [`Error::Config`], with file, line and what to write instead.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Builder> {
        Ok(Self::from_config(Config::from_file(path)?))
    }

    /// As `config` describes it.
    pub fn from_config(config: Config) -> Builder {
        Builder {
            config,
            broker: None,
            handlers: Vec::new(),
        }
    }

    /// The channel of that name, to publish to. No handler and no listener is needed.
    ///
    /// # Errors
    /// `bad-request`: not a name; `unknown-channel`: no rule matches.
    pub fn channel(&self, name: &str) -> std::result::Result<Channel, Refusal> {
        self.hub.channel(name)
    }

    /// All routes, to be nested under any prefix of any axum application, behind any server.
    pub fn router(&self) -> Router {
        server::routes(&self.config, &self.hub, self.transports.clone(), true)
    }

    /// The routes of a server of its own, as `airwave serve` has them: [`Airwave::router`]'s, and
    /// where only this machine reaches the configured address, a client that names the server by
    /// that address needs no token to publish. The live page is at `/` there unless `live_page` is
    /// off.
    pub fn standalone_router(&self) -> Router {
        server::routes(&self.config, &self.hub, self.transports.clone(), false)
    }

    /// The page at `path` (`/live`, without a slash at its end) that shows what goes on on this
    /// node, with its files beside it under `live/`. It shows every channel's name to every client
    /// that reaches it.
    pub fn live_page(&self, path: &str) -> Router {
        live::routes(path, self.hub.clone())
    }

    /// Serves `app` on the configured address until SIGTERM, SIGINT or SIGQUIT, through our own
    /// accept loop, then drains. SIGHUP, SIGUSR1 and SIGUSR2 are ignored, with a line in the log.
    ///
    /// # Errors
    /// [`Error::Listen`].
    pub async fn serve(&self, app: Router) -> Result<()> {
        self.serve_until(app, server::asked_to_end(), |_| {}).await
    }

    /// [`Airwave::serve`] until `shutdown`. `ready` is called once, with the address that is
    /// listened on.
    ///
    /// # Errors
    /// [`Error::Listen`].
    pub async fn serve_until(
        &self,
        app: Router,
        shutdown: impl Future<Output = ()>,
        ready: impl FnOnce(std::net::SocketAddr),
    ) -> Result<()> {
        server::serve(&self.config, self.hub.clone(), app, shutdown, ready).await
    }

    /// Drains the node inside an application whose server is not [`Airwave::serve`]: every listener
    /// is told to come back elsewhere and its connection ends, nothing new is taken in, and the
    /// node's members leave their channels. Returns when all listeners are gone, at the latest
    /// after the configuration's `drain_delay` and `drain`.
    ///
    /// A server's own graceful shutdown waits for its connections, and a listener's never ends by
    /// itself: so the node is drained first.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn run(airwave: airwave::Airwave, listener: tokio::net::TcpListener) -> std::io::Result<()> {
    /// let app = axum::Router::new().nest("/realtime", airwave.router());
    /// axum::serve(listener, app)
    ///     .with_graceful_shutdown(async move {
    ///         airwave::server::asked_to_end().await;
    ///         airwave.shutdown().await;
    ///     })
    ///     .await
    /// # }
    /// ```
    pub async fn shutdown(&self) {
        listener::drain(&self.hub, self.config.drain_delay, self.config.drain).await;
        self.hub.deregister().await;
    }

    /// The node, for those who build transports or look after it.
    pub fn hub(&self) -> &Hub {
        &self.hub
    }
}

impl Builder {
    /// Adds the application's code for the channels that match `pattern` (`chat/{room}`). The first
    /// handler whose pattern matches is asked.
    pub fn handle(mut self, pattern: &str, handler: impl Handler) -> Self {
        self.handlers.push((pattern.to_owned(), server::register(handler)));
        self
    }

    /// A broker of your own, instead of the one that the configuration names. For rules with
    /// presence: [`Builder::broker_with_directory`].
    pub fn broker(mut self, broker: Arc<dyn Broker>) -> Self {
        self.broker = Some((broker, None));
        self
    }

    /// A broker of your own that also knows the members of channels.
    pub fn broker_with_directory(mut self, broker: Arc<impl Broker + Directory>) -> Self {
        self.broker = Some((broker.clone(), Some(broker)));
        self
    }

    /// Starts the node, on the tokio runtime that this is awaited in.
    ///
    /// # Errors
    /// [`Error::Config`]: the configuration is not acceptable; [`Error::Pattern`]: a pattern is not
    /// one; [`Error::Broker`]: the broker cannot be used; [`Error::NoDirectory`]: a rule has
    /// presence, and the broker knows nothing of members.
    pub async fn build(self) -> Result<Airwave> {
        // A configuration that was put together in code has not been checked yet.
        self.config.check()?;
        let mut handlers = Vec::with_capacity(self.handlers.len());
        for (pattern, handler) in self.handlers {
            handlers.push((pattern.parse().map_err(Error::Pattern)?, handler));
        }
        let hub = server::hub(&self.config, self.broker, handlers).await?;
        Ok(Airwave {
            transports: server::transports(&hub)?,
            hub,
            config: self.config,
        })
    }
}

/// The Rust of the documents compiles, and what runs does what they say.
#[cfg(doctest)]
mod documents {
    #[doc = include_str!("../README.md")]
    struct Readme;
    #[doc = include_str!("../docs/using.md")]
    struct Using;
}
