//! The `airwave` binary: serve, publish, listen, check.

#![forbid(unsafe_code)]

mod cli;

fn main() -> std::process::ExitCode {
    cli::run()
}
