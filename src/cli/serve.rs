//! `airwave serve`: configuration, log, signals; the server itself is the library's.

use std::io::Write;
use std::net::SocketAddr;

use airwave::config::{Config, LogConfig, LogFormat, Origin};
use airwave::server;
use tracing_subscriber::EnvFilter;

use super::{ConfigArgs, Stop, colours, refused};

pub(super) const HELP: &str = "\
Settings come from ./airwave.toml (or --config FILE), then AIRWAVE_… variables (AIRWAVE_LISTEN, AIRWAVE_BROKER_URL,
AIRWAVE_PUBLISH_TOKEN, AIRWAVE_LIMITS_…), then flags. The first line of output says where the server listens; the log goes to
standard error. SIGTERM or Ctrl-C drains and ends; a second one ends at once.

Examples:
  airwave serve
  airwave serve --config /etc/airwave.toml --log-format json
  AIRWAVE_PUBLISH_TOKEN=$(cat token) airwave serve --config airwave.toml --listen 0.0.0.0:8080";

pub(super) fn run(args: ConfigArgs) -> Result<(), Stop> {
    let config = Config::load(&args.sources()?).map_err(|error| refused(&error))?;
    start_log(&config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Stop::Failed(format!("cannot start: {error}")))?;
    runtime.block_on(async {
        // Before the first line is printed: whoever has read it may signal at once.
        let shutdown = Signals::listen().map_err(|error| Stop::Failed(format!("cannot listen for signals: {error}")))?;
        serve(config, shutdown.first()).await.map_err(|error| match error {
            server::Error::Config(error) => refused(&error),
            error => Stop::Failed(error.to_string()),
        })
    })
}

/// A node as it is configured; without a file, the examples are served, too.
async fn serve(config: Config, shutdown: impl Future<Output = ()>) -> Result<(), server::Error> {
    #[cfg(feature = "gallery")]
    if config.file().is_none() {
        return crate::gallery::run(config, shutdown, ready).await;
    }
    server::run(config, shutdown, ready).await
}

/// Scripts wait for this line, so it is the first one and is there at once.
fn ready(address: SocketAddr) {
    let mut out = std::io::stdout().lock();
    // Nobody may be reading; the server serves all the same.
    let _ = writeln!(out, "airwave listening on http://{address}").and_then(|()| out.flush());
}

/// The library that speaks NATS logs every try to connect, as often as it is tried. What counts of that we say ourselves, once an outage. A level that names
/// the library has the last word.
fn without_the_library(level: &str) -> String {
    format!("async_nats=off,{level}")
}

fn start_log(config: &Config) -> Result<(), Stop> {
    let LogConfig { format, level, .. } = &config.log;
    // RUST_LOG is what people reach for, but what was said about Airwave itself counts more.
    let said = matches!(config.origin("log.level"), Origin::Flag(_) | Origin::Variable(_));
    let rust_log = std::env::var("RUST_LOG").ok().filter(|text| !said && !text.is_empty());
    let (name, text) = match rust_log {
        Some(text) => ("RUST_LOG", text),
        None => ("log.level", without_the_library(level)),
    };
    let filter = EnvFilter::try_new(text).map_err(|error| Stop::Wrong(format!("{name}: {error}")))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.with_ansi(colours(&std::io::stderr())).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    Ok(())
}

#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn listen() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            // No signal will ever come.
            std::future::pending::<()>().await;
        }
    }
}

impl Signals {
    /// Done at the first signal; the second ends the process where it stands.
    async fn first(mut self) {
        self.next().await;
        tokio::spawn(async move {
            self.next().await;
            super::say("second signal, ending at once");
            std::process::exit(1);
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_library_is_heard_only_if_it_is_named() {
        let directives = |level: &str| EnvFilter::try_new(without_the_library(level)).unwrap().to_string();
        for level in ["info", "debug", "airwave_core=debug,warn"] {
            assert!(directives(level).contains("async_nats=off"), "{}", directives(level));
        }
        let named = directives("info,async_nats=debug");
        assert!(named.contains("async_nats=debug") && !named.contains("off"), "{named}");
        assert!(EnvFilter::try_new(without_the_library("lo=ud=er")).is_err());
    }
}
