//! The command line. Each subcommand is a module with its `Args` and a `run`; what they share is
//! here: exit codes, where the configuration is found, the runtime.

mod check;
mod client;
#[cfg(test)]
mod fake;
mod listen;
mod log;
mod publish;
mod send;
mod serve;

use std::io::{ErrorKind, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use airwave::config::{ConfigError, Flags, Sources};
use clap::{Args, Parser, Subcommand};

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed at run time: the server or the broker could not do it
  2  wrong use or configuration: nothing was done";

const EXAMPLES: &str = "\
Examples:
  airwave                                   serve; without ./airwave.toml: every channel, this machine only
  airwave check                             what the configuration comes to, and where each value comes from
  airwave listen orders/abc                 in one terminal …
  airwave publish orders/abc '{\"n\":1}'      … and in another
  airwave send chat/lobby hi --event say    say something as a client does
  tail -f app.log | airwave publish logs/app --lines";

#[derive(Parser)]
#[command(
    name = "airwave",
    version,
    about = "Realtime channels over SSE and WebSocket.",
    after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"),
    args_conflicts_with_subcommands = true
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ConfigArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Run the server (this is also what `airwave` alone does)
    #[command(after_help = format!("{}\n\n{EXIT_CODES}", serve::HELP))]
    Serve(ConfigArgs),
    /// Publish events to a channel
    #[command(after_help = format!("{}\n\n{EXIT_CODES}", publish::HELP))]
    Publish(publish::Args),
    /// Say a message into a channel, as a client of it
    #[command(after_help = format!("{}\n\n{EXIT_CODES}", send::HELP))]
    Send(send::Args),
    /// Print the events of channels as they happen
    #[command(after_help = format!("{}\n\n{EXIT_CODES}", listen::HELP))]
    Listen(listen::Args),
    /// Check the configuration and print what it comes to
    #[command(after_help = format!("{}\n\n{EXIT_CODES}", check::HELP))]
    Check(check::Args),
}

/// Where the configuration comes from, for `serve` and `check`.
#[derive(Args)]
struct ConfigArgs {
    /// The configuration file [default: ./airwave.toml if there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The address to listen on, such as 127.0.0.1:8080
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// The broker: memory:, redis://127.0.0.1:6379 (redis+sentinel, redis+cluster; rediss for TLS)
    /// or nats://127.0.0.1:4222 (tls for TLS); credentials belong into AIRWAVE_BROKER_URL
    #[arg(long, value_name = "URL")]
    broker: Option<String>,
    /// How much is logged: error, warn, info, debug, trace, or directives as RUST_LOG has them
    #[arg(long, value_name = "LEVEL")]
    log: Option<String>,
    /// How the log is written: text or json
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// Serve the live page, or not [default: only if this machine alone can reach the server]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    live_page: Option<String>,
}

const DEFAULT_FILE: &str = "airwave.toml";

impl ConfigArgs {
    /// The file's text, the environment and the flags.
    fn sources(self) -> Result<Sources, Stop> {
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
        sources.flags = Flags {
            listen: self.listen,
            broker: self.broker,
            log_format: self.log_format,
            log_level: self.log,
            live_page: self.live_page,
        };
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
enum Stop {
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
    fn of_output(error: std::io::Error) -> Self {
        match error.kind() {
            ErrorKind::BrokenPipe => Stop::NoReader,
            _ => Stop::Failed(format!("cannot write the output: {error}")),
        }
    }
}

/// Each problem stands on a line of its own, file and line first, so that editors find it.
fn refused(error: &ConfigError) -> Stop {
    Stop::Wrong(format!("configuration refused\n{error}"))
}

/// Runs the command that was typed.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return wrong_use(&error),
    };
    let done = match cli.command {
        None => return serve::run(cli.serve),
        Some(Command::Serve(args)) => return serve::run(args),
        Some(Command::Publish(args)) => publish::run(args),
        Some(Command::Send(args)) => send::run(args),
        Some(Command::Listen(args)) => listen::run(args),
        Some(Command::Check(args)) => check::run(args),
    };
    exit(done, say)
}

/// The exit code; `tell` tells why, if there is anything to tell.
fn exit(done: Result<(), Stop>, tell: impl FnOnce(&str)) -> ExitCode {
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

/// Tells of words that cannot be understood, in the log's format where the words say so.
fn wrong_use(error: &clap::Error) -> ExitCode {
    let words: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let is_port = |word: &String| word == "--port" || word.starts_with("--port=") || word == "-p";
    let mut text = error.to_string();
    if error.kind() == clap::error::ErrorKind::UnknownArgument && words.iter().any(is_port) {
        text.insert_str(
            text.find("\n\n").unwrap_or(text.len()),
            "\n\n  tip: the port is part of the address: --listen 127.0.0.1:8080",
        );
    }
    if error.use_stderr() && log::is_json_wanted(&words, None) {
        log::tell_json(text.trim_end());
    } else if text == error.to_string() {
        let _ = error.print();
    } else {
        eprint!("{text}");
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// Writes a line for people on standard error. If that fails, the program goes on.
fn say(message: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr().lock(), "airwave: {message}");
}

/// Runs a client command on a runtime of its own. One thread is enough for one connection.
fn block_on<T>(future: impl Future<Output = Result<T, Stop>>) -> Result<T, Stop> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Stop::Failed(format!("cannot start: {error}")))?
        .block_on(future)
}

/// Whether `stream` shows colours: it is a terminal, and `NO_COLOR` is not set (no-color.org).
fn colours(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn serve_is_what_happens_without_a_word() {
        let bare = Cli::try_parse_from(["airwave", "--listen", "127.0.0.1:0", "--live-page"]).unwrap();
        assert!(bare.command.is_none());
        assert_eq!(bare.serve.listen.as_deref(), Some("127.0.0.1:0"));
        assert_eq!(bare.serve.live_page.as_deref(), Some("true"));
        let said = Cli::try_parse_from(["airwave", "serve", "--live-page=false"]).unwrap();
        assert!(matches!(said.command, Some(Command::Serve(args)) if args.live_page.as_deref() == Some("false")));
    }

    #[test]
    fn wrong_use_is_exit_code_2() {
        for words in [
            &["airwave", "srve"][..],
            &["airwave", "listen"],
            &["airwave", "publish"],
            &["airwave", "publish", "a", "x", "--lines"],
            &["airwave", "send"],
            &["airwave", "send", "a", "--json", "--text"],
            &["airwave", "publish", "a", "--json", "--text"],
            &["airwave", "publish", "a", "x", "--binary", "f"],
            &["airwave", "listen", "a", "--json", "--raw"],
            &["airwave", "listen", "a", "--transport", "pigeon"],
            &["airwave", "listen", "a", "--for", "10"],
            &["airwave", "--listen", "127.0.0.1:0", "check"],
        ] {
            let error = Cli::try_parse_from(words)
                .err()
                .unwrap_or_else(|| panic!("{words:?} was accepted"));
            assert_eq!(error.exit_code(), 2, "{words:?}");
        }
    }

    #[test]
    fn every_help_has_examples_and_exit_codes() {
        for command in ["serve", "publish", "send", "listen", "check", ""] {
            let words = ["airwave", command, "--help"].into_iter().filter(|word| !word.is_empty());
            let help = Cli::try_parse_from(words).err().unwrap().to_string();
            assert!(
                help.contains("Examples:") && help.contains("Exit codes:"),
                "{command}: {help}"
            );
        }
    }
}
