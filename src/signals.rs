//! What signals mean to a node: some ask it to end, some mean something to other servers.

use std::io;

/// Listens for signals from the moment it is made.
///
/// SIGTERM, SIGINT and SIGQUIT ask the process to end after a drain. SIGHUP, SIGUSR1 and SIGUSR2
/// mean "reload" or "open the log anew" to many servers, and end a process that does not handle
/// them: they are ignored, with a line in the log. SIGPIPE is ignored by Rust's runtime.
#[cfg(unix)]
#[derive(Debug)]
pub struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    quit: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
    user1: tokio::signal::unix::Signal,
    user2: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    /// Begins to listen.
    ///
    /// # Errors
    /// The system does not let us.
    pub fn listen() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            quit: signal(SignalKind::quit())?,
            hangup: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
        })
    }

    /// Resolves at the next signal that asks the process to end.
    pub async fn end(&mut self) {
        loop {
            let ignored = tokio::select! {
                _ = self.interrupt.recv() => return,
                _ = self.terminate.recv() => return,
                _ = self.quit.recv() => return,
                _ = self.hangup.recv() => "SIGHUP",
                _ = self.user1.recv() => "SIGUSR1",
                _ = self.user2.recv() => "SIGUSR2",
            };
            tracing::info!(
                signal = ignored,
                "ignored: the configuration is read at start only; SIGTERM drains and ends the process"
            );
        }
    }
}

/// Listens for Ctrl-C.
#[cfg(not(unix))]
#[derive(Debug)]
pub struct Signals;

#[cfg(not(unix))]
impl Signals {
    /// Begins to listen.
    ///
    /// # Errors
    /// None on this system.
    pub fn listen() -> io::Result<Self> {
        Ok(Self)
    }

    /// Resolves at the next signal that asks the process to end.
    pub async fn end(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            // No signal will ever come.
            std::future::pending::<()>().await;
        }
    }
}

/// Resolves when the process is asked to end (SIGTERM, SIGINT or SIGQUIT).
pub async fn asked_to_end() {
    match Signals::listen() {
        Ok(mut signals) => signals.end().await,
        Err(_) => drop(tokio::signal::ctrl_c().await),
    }
}
