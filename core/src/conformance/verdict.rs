//! Running one clause, and what comes of it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::time::timeout;

use super::fixture::{Fault, Fixture, PATIENCE};

/// The environment variable that names a folder into which tests write their verdicts.
pub const RECORD: &str = "AIRWAVE_CONFORMANCE_RECORD";

/// How long a whole clause may take.
pub(super) const CLAUSE_BOUND: Duration = Duration::from_secs(180);

/// One clause of the contract.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Clause {
    /// The name of its function.
    pub name: &'static str,
    /// What must happen to the backbone for it.
    pub needs: &'static [Fault],
    /// Runs it; panics if the clause is broken.
    pub run: for<'a> fn(&'a dyn Fixture) -> Run<'a>,
}

/// A clause under way.
pub type Run<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// Whether a clause holds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// It does.
    Held,
    /// The fixture cannot make this happen.
    Skipped(Fault),
    /// It does not; why.
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

    /// [`Clause::judge`], and with [`RECORD`] in the environment the verdict is written down under
    /// the broker's name, for [`recorded_table`].
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

    /// Runs the clause as a test, for the broker of this name. A skip is printed.
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

/// Ends the process when a broker blocks the thread itself, which no timeout can interrupt.
/// Dropping it calls it off.
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
