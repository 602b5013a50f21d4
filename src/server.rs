//! Puts a node together: the one place that knows every broker and every transport by name.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use airwave_brokers::memory::Memory;
use airwave_core::event::Invalid;
use airwave_core::hub::HubBuilder;
use airwave_core::rule::Pattern;
use airwave_core::{Broker, Directory, Handler, Hub, Refusal};
use airwave_transports::request::{addressed_host, came_through_a_proxy, is_local, refusal_response};
use airwave_transports::{Options, Origins, Publishers};
use axum::Router;
use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::Response;
use http::request::Parts;

use crate::client;
use crate::config::{AllowedOrigins, BrokerKind, Config, ConfigError, Origin, is_loopback_name};
use crate::listener::{self, Serving};
use crate::live;
use crate::process;
pub use crate::signals::asked_to_end;

/// Why a node could not be put together or served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration is not acceptable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The broker cannot be used.
    #[error("{0}")]
    Broker(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A rule asks for presence, and the broker knows nothing of members.
    #[error(
        "the rule '{0}' has presence, which this broker cannot do: write presence = false into that rule (use_case = \"chat\" and \"collab\" turn it on)"
    )]
    NoDirectory(String),
    /// A pattern that a handler was registered with is not one.
    #[error("a handler cannot be registered: {0}")]
    Pattern(Invalid),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}; choose another address with --listen or `listen = …`")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Serving failed.
    #[error("serving failed: {0}")]
    Serve(#[from] io::Error),
    /// A format of a transport cannot be registered.
    #[error(transparent)]
    Format(#[from] airwave_core::hub::FormatError),
    /// A channel refused what the application asked of it.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// A broker, and its directory of members if it has one.
pub(crate) type Backbone = (Arc<dyn Broker>, Option<Arc<dyn Directory>>);

/// The transports of a node, in the order in which they are asked.
pub(crate) type Transports = Vec<Arc<dyn airwave_transports::Transport>>;

/// The broker that the configuration names.
async fn broker(config: &Config) -> Result<Backbone, Error> {
    match config.broker.url.kind() {
        BrokerKind::Memory => {
            let memory = Arc::new(Memory::bounded(config.rules.clone(), config.limits.memory / 2));
            Ok((memory.clone(), Some(memory)))
        }
        #[cfg(feature = "redis")]
        BrokerKind::Redis => {
            let redis = airwave_brokers::Redis::connect(config.broker.url.expose(), config.rules.clone()).await;
            let redis = Arc::new(redis.map_err(|error| Error::Broker(Box::new(error)))?);
            Ok((redis.clone(), Some(redis)))
        }
        #[cfg(not(feature = "redis"))]
        BrokerKind::Redis => Err(Error::Broker("Redis is not part of this build".into())),
        #[cfg(feature = "nats")]
        BrokerKind::Nats => {
            let nats = airwave_brokers::Nats::connect(config.broker.url.expose(), config.rules.clone()).await;
            let nats = Arc::new(nats.map_err(|error| Error::Broker(Box::new(error)))?);
            Ok((nats.clone(), Some(nats)))
        }
        #[cfg(not(feature = "nats"))]
        BrokerKind::Nats => Err(Error::Broker("NATS is not part of this build".into())),
    }
}

/// Gives one handler to a node that is being built.
pub(crate) type Register = Box<dyn FnOnce(HubBuilder, Pattern) -> HubBuilder + Send + Sync>;

/// Keeps a handler until the node is built.
pub(crate) fn register(handler: impl Handler) -> Register {
    Box::new(|builder, pattern| builder.handle(pattern, handler))
}

/// A hub as the configuration describes it, with the application's handlers.
pub(crate) async fn hub(config: &Config, own_broker: Option<Backbone>, handlers: Vec<(Pattern, Register)>) -> Result<Hub, Error> {
    let (broker, directory) = match own_broker {
        Some(backbone) => backbone,
        None => broker(config).await?,
    };
    let mut builder = Hub::builder(broker, config.rules.clone()).limits(config.limits.clone());
    match (directory, config.rules.iter().find(|rule| rule.presence)) {
        (Some(directory), _) => builder = builder.directory(directory),
        (None, None) => {}
        (None, Some(rule)) => return Err(Error::NoDirectory(rule.pattern.to_string())),
    }
    for (pattern, register) in handlers {
        builder = register(builder, pattern);
    }
    let hub = builder.build();
    process::add_to(hub.metrics());
    Ok(hub)
}

/// The transports of a node, which register their formats before a channel is opened.
pub(crate) fn transports(hub: &Hub) -> Result<Transports, Error> {
    Ok(airwave_transports::standard(hub)?)
}

/// All routes of a node. `embedded`: inside an application, whose address tells nothing about who
/// reaches it.
pub(crate) fn routes(config: &Config, hub: &Hub, transports: Transports, embedded: bool) -> Router {
    let publishers = match &config.publish_token {
        Some(token) => Publishers::Token(token.expose().into()),
        None if config.publish_open => Publishers::Anybody,
        None if !embedded && config.is_local() && !config.publish_is_closed() => Publishers::Local,
        None => Publishers::NoOne,
    };
    let origins = match &config.origins {
        AllowedOrigins::Any => Origins::Any,
        AllowedOrigins::Listed(list) if list.is_empty() => Origins::Same,
        AllowedOrigins::Listed(list) => Origins::List(list.clone()),
    };
    let options = Options::default().with_origins(origins).with_publishers(publishers);
    let router = airwave_transports::router(hub.clone(), options, transports).merge(client::routes());
    if config.live_page && !embedded {
        router.merge(local_only(live::routes("/", hub.clone())))
    } else {
        router
    }
}

/// Runs the `airwave` server until `shutdown`, then drains. `ready` is called once, with the
/// address that is listened on.
///
/// # Errors
/// The broker cannot be used, or the address cannot be listened on.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>, ready: impl FnOnce(SocketAddr)) -> Result<(), Error> {
    config.check()?;
    let hub = hub(&config, None, Vec::new()).await?;
    let app = routes(&config, &hub, transports(&hub)?, false);
    serve(&config, hub, app, shutdown, ready).await
}

/// Wraps `app` so that it answers only requests that address the server as `localhost` or by an IP
/// address, and through no proxy that shows itself. All others are `forbidden`.
///
/// It protects a server on a loopback address whose handlers let every client in. A browser on this
/// machine reaches it, too. A foreign site may point its own name to this address (DNS rebinding),
/// and its page is then same-origin. The name in the request gives such a page away.
pub fn local_only(app: Router) -> Router {
    app.layer(middleware::from_fn(async |request: Request, next: Next| {
        let (parts, body) = request.into_parts();
        if is_local(&parts) {
            return next.run(Request::from_parts(parts, body)).await;
        }
        let refusal = Refusal::forbidden(
            "this server lets every client in, so it answers only at localhost or an IP address, and not through a proxy",
        );
        refusal_response(&refusal, None)
    }))
}

/// Whether a request names the server in a way that is its own.
///
/// A browser on this machine reaches a server on loopback, and so does a page of a foreign site
/// that has its own name lead here (DNS rebinding). The name gives it away. A proxy that the
/// configuration does not tell of may speak for anybody.
fn is_named_rightly(config: &Config, parts: &Parts) -> bool {
    let loopback = config.listens_on_loopback();
    if config.hosts.iter().any(|host| host == "*") || (!loopback && config.hosts.is_empty()) {
        return true;
    }
    // They tell a supervisor or a proxy whether the node works, and nothing about its channels.
    if matches!(parts.uri.path(), "/healthz" | "/readyz") {
        return true;
    }
    let Some(host) = addressed_host(parts) else { return false };
    if config.hosts.iter().any(|named| *named == host) {
        return true;
    }
    let direct = !loopback || !config.trusted_proxies.is_empty() || !came_through_a_proxy(parts);
    direct && (is_loopback_name(&host) || (!loopback && host.parse::<IpAddr>().is_ok()))
}

/// The answer to a request that does not name the server by one of its names: `forbidden`.
fn named_wrongly(config: &Config, parts: &Parts) -> Option<Response> {
    if is_named_rightly(config, parts) {
        return None;
    }
    let host = addressed_host(parts).unwrap_or_default();
    let refusal = Refusal::forbidden(format!(
        "this server does not answer at the host '{}', or not through a proxy: name the host that the proxy passes on in 'hosts' in the server's configuration, for example hosts = [\"live.example\"]",
        host.chars().take(100).collect::<String>()
    ));
    Some(refusal_response(&refusal, None))
}

/// Rules whose patterns the log names.
const NAMED_RULES: usize = 20;

/// One line: what was set, and by which rules channels go. `airwave check` shows the rest.
fn log_configuration(config: &Config) {
    let written = |origin: &Origin| !matches!(origin, Origin::Default | Origin::Implied(_) | Origin::UseCase(_));
    let settings: Vec<String> = config
        .settings()
        .filter(|(key, _, origin)| written(origin) || *key == "broker.url")
        // Secrets are shown as set, and URLs without their credentials.
        .map(|(key, shown, _)| format!("{key}={shown}"))
        .collect();
    let patterns: Vec<&str> = config.rules.iter().map(|rule| rule.pattern.as_str()).collect();
    let mut rules = patterns[..patterns.len().min(NAMED_RULES)].join(" ");
    if patterns.len() > NAMED_RULES {
        rules += &format!(" and {} more", patterns.len() - NAMED_RULES);
    }
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        file = config.file().unwrap_or("none"),
        settings = settings.join("; "),
        rules,
        "configuration in force"
    );
}

/// Serves `app` on the configured address through our own accept loop.
pub(crate) async fn serve(
    config: &Config,
    hub: Hub,
    app: Router,
    shutdown: impl Future<Output = ()>,
    ready: impl FnOnce(SocketAddr),
) -> Result<(), Error> {
    log_configuration(config);
    let address = config.listen;
    let listener = listener::bind(address).map_err(|source| Error::Listen { address, source })?;
    let address = listener.local_addr()?;
    let files = raise_open_files();
    let limit = config.limits.connections;
    tracing::info!(%address, open_files = files, connections = limit, broker = hub.broker_name(), "listening");
    if files < limit as u64 {
        tracing::warn!(
            open_files = files,
            connections = limit,
            "the limit of open files is below limits.connections: raise it with ulimit -n"
        );
    }
    // Only the handlers themselves know whether they ask.
    for warning in config.warnings_beside(|pattern| hub.has_handler(pattern)) {
        tracing::warn!("{warning}");
    }
    let config = Arc::new(config.clone());
    let (trusted, named) = (config.clone(), config.clone());
    let serving = Serving {
        connections: limit,
        connections_per_address: config.limits.connections_per_address,
        drain: config.drain,
        drain_delay: config.drain_delay,
        keep_alive: config.limits.keep_alive,
        trusts: Arc::new(move |peer| trusted.trusts(peer)),
        client_ip_header: config.client_ip_header,
        refuses: Arc::new(move |parts| named_wrongly(&named, parts)),
        ..Serving::default()
    };
    ready(address);
    let served = listener::serve(listener, app, hub.clone(), serving, shutdown).await;
    hub.deregister().await;
    Ok(served?)
}

/// As many open files as the system lets us have; how many that are.
fn raise_open_files() -> u64 {
    rlimit::increase_nofile_limit(u64::MAX).unwrap_or_else(|error| {
        tracing::warn!(%error, "the limit of open files cannot be raised");
        rlimit::getrlimit(rlimit::Resource::NOFILE).map_or(0, |(soft, _)| soft)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn answers(listen: &str, hosts: &[&str], proxies: &[&str], host: Option<&str>, through: Option<&'static str>) -> bool {
        let words = |words: &[&str]| words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(",");
        let file = format!(
            "listen = \"{listen}\"\nhosts = [{}]\ntrusted_proxies = [{}]\npublish.open = false\n[[channels]]\nmatch = \"a\"\nuse_case = \"feed\"\n",
            words(hosts),
            words(proxies)
        );
        let config = Config::load(&crate::config::Sources::of_file("airwave.toml", file)).unwrap();
        let mut request = http::Request::get("/live/state");
        if let Some(host) = host {
            request = request.header("host", host);
        }
        if let Some(through) = through {
            request = request.header(through, "x");
        }
        is_named_rightly(&config, &request.body(()).unwrap().into_parts().0)
    }

    struct Asks;

    impl Handler for Asks {}

    #[tokio::test]
    async fn a_rule_whose_channels_have_a_handler_is_not_warned_of() {
        let rule = |pattern: &str| format!("[[channels]]\nmatch = \"{pattern}\"\nuse_case = \"feed\"\n");
        let file = format!(
            "listen = \"0.0.0.0:0\"\npublish.open = false\n{}{}{}",
            rule("a/{id}"),
            rule("b/{id}"),
            rule("{*rest}")
        );
        let config = Config::load(&crate::config::Sources::of_file("airwave.toml", file)).unwrap();
        let handlers = ["a/{any}", "b/7"].map(|pattern| (pattern.parse().unwrap(), register(Asks)));
        let hub = hub(&config, None, handlers.into()).await.unwrap();
        let warnings = config.warnings_beside(|pattern| hub.has_handler(pattern));
        assert_eq!(warnings.len(), 1);
        // The handler of "b/7" is asked about one channel of its rule.
        assert!(
            warnings[0].contains("of the rules \"b/{id}\", \"{*rest}\" and"),
            "{warnings:?}"
        );
    }

    #[test]
    fn a_server_on_loopback_answers_at_its_own_names_alone() {
        let local = |host, through| answers("127.0.0.1:8080", &[], &[], host, through);
        for ours in ["localhost", "LOCALHOST:8080", "127.0.0.1:8080", "[::1]:8080"] {
            assert!(local(Some(ours), None), "{ours}");
            for sign in ["forwarded", "via", "x-forwarded-for", "x-real-ip"] {
                assert!(!local(Some(ours), Some(sign)), "{ours} through a proxy: {sign}");
            }
        }
        for foreign in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "203.0.113.7",
            "",
        ] {
            assert!(!local(Some(foreign), None), "{foreign}");
        }
        assert!(!local(None, None), "HTTP/1.0 without a Host");
    }

    #[test]
    fn hosts_names_others() {
        let named = |host, through| answers("127.0.0.1:8080", &["live.example"], &[], Some(host), through);
        assert!(named("live.example", None));
        assert!(named("Live.Example:443", Some("via")));
        assert!(named("localhost", None));
        assert!(!named("localhost", Some("via")), "a proxy that passes on another name");
        assert!(!named("evil.example", None));
        assert!(!named("x.live.example", None));
        assert!(answers("127.0.0.1:8080", &["*"], &[], Some("evil.example"), Some("via")));
        assert!(answers(
            "127.0.0.1:8080",
            &[],
            &["127.0.0.1"],
            Some("127.0.0.1:8080"),
            Some("x-forwarded-for")
        ));
        assert!(!answers("127.0.0.1:8080", &[], &["127.0.0.1"], Some("evil.example"), None));
    }

    #[test]
    fn a_server_that_other_machines_reach_answers_at_any_name_unless_hosts_says_so() {
        assert!(answers("0.0.0.0:8080", &[], &[], Some("any.example"), None));
        let named = |host| answers("0.0.0.0:8080", &["live.example"], &[], Some(host), Some("via"));
        assert!(named("live.example") && named("10.0.0.7:8080") && named("localhost"));
        assert!(!named("evil.example"));
    }
}
