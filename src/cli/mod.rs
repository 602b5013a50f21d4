//! The command line. Each subcommand is a module with its `Args` and a `run`; `common` is what they
//! share.

mod check;
mod client;
mod common;
#[cfg(test)]
mod fake;
mod listen;
mod log;
mod publish;
mod send;
mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use common::{ConfigArgs, Stop, block_on, colours, exit, refused, say};

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
    Publish(publish::PublishArgs),
    /// Say a message into a channel, as a client of it
    #[command(after_help = format!("{}\n\n{EXIT_CODES}", send::HELP))]
    Send(send::SendArgs),
    /// Print the events of channels as they happen
    #[command(after_help = format!("{}\n\n{EXIT_CODES}", listen::HELP))]
    Listen(listen::ListenArgs),
    /// Check the configuration and print what it comes to
    #[command(after_help = format!("{}\n\n{EXIT_CODES}", check::HELP))]
    Check(check::CheckArgs),
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
