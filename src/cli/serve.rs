//! `airwave serve`: configuration, log, signals; the server itself is the library's. What ends the
//! process is told in the log's format.

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;

use airwave::config::{Config, LogConfig, LogFormat, Origin};
use airwave::server;
use airwave::signals::Signals;
use tracing_subscriber::Layer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::{ConfigArgs, Stop, colours, exit, log, refused, say};

pub(super) const HELP: &str = "\
Settings come from ./airwave.toml (or --config FILE), then AIRWAVE_… variables (AIRWAVE_LISTEN, AIRWAVE_BROKER_URL,
AIRWAVE_PUBLISH_TOKEN, AIRWAVE_LIMITS_…), then flags. The first line of output says where the server listens; the log goes to
standard error. SIGTERM, SIGQUIT or Ctrl-C drains and ends; a second one ends at once. SIGHUP is ignored.

Examples:
  airwave serve
  airwave serve --config /etc/airwave.toml --log-format json
  AIRWAVE_PUBLISH_TOKEN=$(cat token) airwave serve --config airwave.toml --listen 0.0.0.0:8080";

pub(super) fn run(args: ConfigArgs) -> ExitCode {
    let words = args.log_format.clone().map(|format| format!("--log-format={format}"));
    let mut json = log::is_json_wanted(words.as_slice(), None);
    let done = args.sources().and_then(|sources| {
        json = log::is_json_wanted(words.as_slice(), sources.file.as_ref().map(|(_, text)| text.as_str()));
        let config = Config::load(&sources).map_err(|error| refused(&error))?;
        json = config.log.format == LogFormat::Json;
        start(config)
    });
    exit(done, |message| match json {
        true => log::tell_json(message),
        false => say(message),
    })
}

fn start(config: Config) -> Result<(), Stop> {
    start_log(&config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Stop::Failed(format!("cannot start: {error}")))?;
    runtime.block_on(async {
        // Listens before the first line is printed: a program that reads the line may signal at
        // once.
        let shutdown = Signals::listen().map_err(|error| Stop::Failed(format!("cannot listen for signals: {error}")))?;
        serve(config, first(shutdown)).await.map_err(|error| match error {
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
    // The write fails if standard output is closed. The server serves all the same.
    let _ = writeln!(out, "airwave listening on http://{address}").and_then(|()| out.flush());
}

fn start_log(config: &Config) -> Result<(), Stop> {
    let LogConfig { format, level, .. } = &config.log;
    // RUST_LOG is what people reach for, but what was said about Airwave itself counts more.
    let said = matches!(config.origin("log.level"), Origin::Flag(_) | Origin::Variable(_));
    let rust_log = std::env::var("RUST_LOG").ok().filter(|text| !said && !text.is_empty());
    let (name, text) = match &rust_log {
        Some(text) => ("RUST_LOG", text),
        None => ("log.level", level),
    };
    let filter = log::filter(text).map_err(|error| Stop::Wrong(format!("{name}: {error}")))?;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let log = tracing_subscriber::registry();
    match format {
        LogFormat::Text => log
            .with(lines.with_ansi(colours(&std::io::stderr())).with_filter(filter))
            .init(),
        // A format that this command line does not know is written as JSON, which machines read.
        _ => log.with(lines.json().flatten_event(true).with_filter(filter)).init(),
    }
    Ok(())
}

/// Resolves at the first signal that asks the process to end; the second ends it where it stands.
async fn first(mut signals: Signals) {
    signals.end().await;
    tokio::spawn(async move {
        signals.end().await;
        tracing::warn!("second signal: the process ends at once, without the rest of the drain");
        std::process::exit(1);
    });
}
