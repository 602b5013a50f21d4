//! What the subcommands share: where the configuration is found, why a command stops, the runtime.

use std::future::Future;
use std::io::{ErrorKind, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use airwave::config::{ConfigError, Flags, Sources};
use clap::Args;

/// Where the configuration comes from, for `serve` and `check`.
#[derive(Args)]
pub(super) struct ConfigArgs {
    /// The configuration file [default: ./airwave.toml if there is one]
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// The address to listen on, such as 127.0.0.1:8080
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(super) listen: Option<String>,
    /// The broker: memory:, redis://127.0.0.1:6379 (redis+sentinel, redis+cluster; rediss for TLS)
    /// or nats://127.0.0.1:4222 (tls for TLS); credentials belong into AIRWAVE_BROKER_URL
    #[arg(long, value_name = "URL")]
    pub(super) broker: Option<String>,
    /// How much is logged: error, warn, info, debug, trace, or directives as RUST_LOG has them
    #[arg(long, value_name = "LEVEL")]
    pub(super) log: Option<String>,
    /// How the log is written: text or json
    #[arg(long, value_name = "FORMAT")]
    pub(super) log_format: Option<String>,
    /// Serve the live page, or not [default: only if this machine alone can reach the server]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) live_page: Option<String>,
}

const DEFAULT_FILE: &str = "airwave.toml";

impl ConfigArgs {
    /// The file's text, the environment and the flags.
    pub(super) fn sources(self) -> Result<Sources, Stop> {
        let mut sources = match &self.config {
            Some(path) => read(path)?,
            None => match Path::new(DEFAULT_FILE).try_exists() {
                Ok(false) => Sources::default(),
                // One that cannot even be looked at is an error, never a reason to serve without
                // rules.
                Ok(true) | Err(_) => read(Path::new(DEFAULT_FILE))?,
            },
        };
        sources.environment = std::env::vars_os().collect();
        sources.flags = Flags::default()
            .with_listen(self.listen)
            .with_broker(self.broker)
            .with_log_format(self.log_format)
            .with_log_level(self.log)
            .with_live_page(self.live_page);
        Ok(sources)
    }
}

fn read(path: &Path) -> Result<Sources, Stop> {
    let name = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Sources::of_file(name, text)),
        Err(error) => Err(Stop::Wrong(format!("cannot read {name}: {error}"))),
    }
}

/// Why a command stopped before it was done.
#[derive(Debug)]
pub(super) enum Stop {
    /// Wrong use or configuration: exit 2.
    Wrong(String),
    /// Failed at run time: exit 1.
    Failed(String),
    /// The reader of the output has closed it, as `head` does. There is no one left to tell: exit
    /// 0.
    NoReader,
}

impl Stop {
    /// What a failed write to standard output means.
    pub(super) fn of_output(error: std::io::Error) -> Self {
        match error.kind() {
            ErrorKind::BrokenPipe => Stop::NoReader,
            _ => Stop::Failed(format!("cannot write the output: {error}")),
        }
    }
}

/// Each problem stands on a line of its own, file and line first, so that editors find it.
pub(super) fn refused(error: &ConfigError) -> Stop {
    Stop::Wrong(format!("configuration refused\n{error}"))
}

/// The exit code; `tell` tells why, if there is anything to tell.
pub(super) fn exit(done: Result<(), Stop>, tell: impl FnOnce(&str)) -> ExitCode {
    match done {
        Ok(()) | Err(Stop::NoReader) => ExitCode::SUCCESS,
        Err(Stop::Failed(message)) => {
            tell(&message);
            ExitCode::from(1)
        }
        Err(Stop::Wrong(message)) => {
            tell(&message);
            ExitCode::from(2)
        }
    }
}

/// Writes a line for people on standard error. If that fails, the program goes on.
pub(super) fn say(message: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr().lock(), "airwave: {message}");
}

/// Runs a client command on a runtime of its own. One thread is enough for one connection.
pub(super) fn block_on<T>(future: impl Future<Output = Result<T, Stop>>) -> Result<T, Stop> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Stop::Failed(format!("cannot start: {error}")))?
        .block_on(future)
}

/// Whether `stream` shows colours: it is a terminal, and `NO_COLOR` is not set (no-color.org).
pub(super) fn colours(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
