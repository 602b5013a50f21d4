//! What came of a run.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use super::checker::Breach;
use super::history::{History, Outcome, Told};
use super::plan::Plan;
use super::servers::BrokerKind;

/// What no node may have in memory: about three times what a debug build was seen to have.
pub const MEMORY_BOUND_KIB: u64 = 64 * 1024;

/// What came of a run.
pub struct ChaosRun {
    /// The broker.
    pub kind: BrokerKind,
    /// What went wrong when.
    pub plan: Plan,
    /// What was seen.
    pub history: History,
    /// The promises that were broken.
    pub breaches: Vec<Breach>,
    /// What else went wrong: processes that ended, answers outside the protocol, listeners that did
    /// not catch up, too much memory.
    pub wrong: Vec<String>,
    /// The most memory that any node had, in KiB.
    pub peak_memory: u64,
    /// How long it took, once everything was put right, until all nodes were ready; and then until
    /// everybody had the last events.
    pub healed: (Duration, Duration),
    pub(super) logs: Vec<String>,
}

/// What a run had in it, for one in which nothing happens keeps every promise.
#[derive(Clone, Debug, Default)]
pub struct RunSummary {
    /// Publications that were acknowledged.
    pub acknowledged: usize,
    /// Publications that were refused.
    pub refused: usize,
    /// Publications with an unknown outcome.
    pub unknown: usize,
    /// Events that listeners got.
    pub events: usize,
    /// Times that a listener came back and missed nothing.
    pub resumed: usize,
    /// The ways in which they did.
    pub hows: BTreeSet<String>,
    /// Gaps that were announced, by reason.
    pub gaps: BTreeMap<String, usize>,
}

impl ChaosRun {
    /// Whether every promise was kept.
    pub fn is_good(&self) -> bool {
        self.breaches.is_empty() && self.wrong.is_empty()
    }

    /// What it had in it.
    pub fn seen(&self) -> RunSummary {
        let mut seen = RunSummary::default();
        for publication in &self.history.publications {
            match publication.outcome {
                Outcome::Acknowledged { .. } => seen.acknowledged += 1,
                Outcome::Refused => seen.refused += 1,
                Outcome::Unknown => seen.unknown += 1,
            }
        }
        for listener in &self.history.listeners {
            let mut asked = "";
            for (_, told) in &listener.told {
                match told {
                    Told::Asked { how, .. } => asked = how,
                    Told::Confirmed { resumed: true, .. } => {
                        seen.resumed += 1;
                        seen.hows.insert(asked.to_owned());
                    }
                    Told::Confirmed { .. } => {}
                    Told::Event { .. } => seen.events += 1,
                    Told::Gap { reason, .. } => *seen.gaps.entry(reason.clone()).or_default() += 1,
                }
            }
        }
        seen
    }

    /// Everything about a run that failed: what was broken, what went wrong when, what the nodes
    /// said, and how to repeat it.
    pub fn report(&self, story: bool) -> String {
        let mut text = format!("{self}\n{}", self.plan);
        for breach in &self.breaches {
            text += &format!("  BROKEN {breach}\n");
        }
        for wrong in &self.wrong {
            text += &format!("  WRONG {wrong}\n");
        }
        if story {
            text += &self.history.to_string();
            for (node, log) in self.logs.iter().enumerate() {
                text += &format!("---- the end of node {node}'s log\n{log}\n");
            }
        }
        text + &format!(
            "again, with its story: cargo run -p airwave-bench -- chaos --broker {} --with {} --nodes {} --seed {} --seconds {} --runs 5 --story\n",
            self.kind,
            self.plan.more,
            self.plan.nodes,
            self.plan.seed,
            self.plan.trouble.as_secs()
        )
    }
}

impl fmt::Display for ChaosRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seen = self.seen();
        let verdict = if self.is_good() { "good" } else { "BROKEN" };
        write!(
            f,
            "{verdict}: {} seed {}: {} acknowledged, {} unknown, {} refused; {} events heard, {} resumes, gaps {:?}; \
             nodes at most {} MiB; ready after {:.1} s and caught up after {:.1} s",
            self.kind,
            self.plan.seed,
            seen.acknowledged,
            seen.unknown,
            seen.refused,
            seen.events,
            seen.resumed,
            seen.gaps,
            self.peak_memory / 1024,
            self.healed.0.as_secs_f64(),
            self.healed.1.as_secs_f64()
        )
    }
}
