//! The `airwave` binary: serve, publish, listen, check.

#![forbid(unsafe_code)]

mod cli;
#[cfg(feature = "gallery")]
mod gallery;

fn main() -> std::process::ExitCode {
    cli::run()
}
