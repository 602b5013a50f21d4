//! This module runs one clause and returns its verdict.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::time::timeout;

use super::fixture::{Fault, Fixture, PATIENCE};

/// This environment variable names a folder into which tests write their verdicts.
pub const RECORD: &str = "AIRWAVE_CONFORMANCE_RECORD";

/// A whole clause may take this long.
pub(super) const CLAUSE_BOUND: Duration = Duration::from_secs(180);

/// A clause is one part of the broker contract, with the test that checks it.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Clause {
    /// Holds the name of the clause's function.
    pub name: &'static str,
    /// Lists the faults that the fixture must make for the clause.
    pub needs: &'static [Fault],
    /// Runs the clause and panics if it is broken.
    pub run: for<'a> fn(&'a dyn Fixture) -> Run<'a>,
}

/// This future is a clause under way.
pub type Run<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// The verdict says whether a clause holds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// The clause holds.
    Held,
    /// The fixture cannot make this fault happen.
    Skipped(Fault),
    /// The clause does not hold, for this reason.
    Broken(String),
}

impl Clause {
    /// Runs the clause and catches its panic.
    pub async fn judge(&self, fixture: &dyn Fixture) -> Verdict {
        if let Some(fault) = self.needs.iter().find(|fault| !fixture.faults().contains(fault)) {
            return Verdict::Skipped(*fault);
        }
        let _watchdog = Watchdog::over(self.name);
        let mut run = (self.run)(fixture);
        let caught = std::future::poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| run.as_mut().poll(cx))) {
            Ok(poll) => poll.map(Ok),
            Err(panic) => Poll::Ready(Err(panic)),
        });
        match timeout(CLAUSE_BOUND, caught).await {
            Ok(Ok(())) => Verdict::Held,
            Ok(Err(panic)) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or(panic.downcast_ref::<&str>().copied());
                Verdict::Broken(text.unwrap_or("a panic without text").to_owned())
            }
            Err(_) => Verdict::Broken(format!("not done within {CLAUSE_BOUND:?}")),
        }
    }

    /// Calls [`Clause::judge`], and writes the verdict down if [`RECORD`] is in the environment.
    /// The file stands under the broker's name, for [`recorded_table`].
    ///
    /// # Panics
    /// If it cannot be written.
    pub async fn judge_and_record(&self, broker: &str, fixture: &dyn Fixture) -> Verdict {
        let verdict = self.judge(fixture).await;
        if let Some(folder) = std::env::var_os(RECORD) {
            let folder = PathBuf::from(folder).join(broker);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join(self.name), verdict.to_string()).unwrap();
        }
        verdict
    }

    /// Runs the clause as a test, for the broker of this name. It prints a skip.
    ///
    /// # Panics
    /// If the clause is broken, with its name.
    pub async fn prove(&self, broker: &str, fixture: &dyn Fixture) {
        match self.judge_and_record(broker, fixture).await {
            Verdict::Held => {}
            Verdict::Skipped(fault) => eprintln!("skipped: {}, because this fixture makes no {fault:?}", self.name),
            Verdict::Broken(why) => panic!("{}: {why}", self.name),
        }
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Verdict::Held => f.write_str("held"),
            Verdict::Skipped(fault) => write!(f, "skipped (no {fault:?})"),
            Verdict::Broken(_) => f.write_str("BROKEN"),
        }
    }
}

/// The watchdog ends the process when a broker blocks the thread itself, which no timeout can
/// interrupt. Dropping the watchdog calls it off.
pub(super) struct Watchdog {
    _called_off: std::sync::mpsc::Sender<()>,
}

impl Watchdog {
    pub(super) fn over(clause: &'static str) -> Self {
        let (called_off, waiting) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let waited = waiting.recv_timeout(CLAUSE_BOUND + PATIENCE);
            if waited == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                eprintln!("{clause}: the broker blocks its thread");
                std::process::exit(101);
            }
        });
        Self { _called_off: called_off }
    }
}
