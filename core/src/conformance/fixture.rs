//! What clauses run over: a backbone, what can happen to it, and the rules of its brokers.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::broker::Broker;
use crate::event::ChannelName;
use crate::rule::{History, Rule, Rules, TransportName};

/// How long a clause waits for anything. It decides nothing but when a hang is called one.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What clauses run over: one backbone.
#[async_trait]
pub trait Fixture: Send + Sync {
    /// The broker of another node on this backbone, made with [`rules`]. A broker that is one
    /// process gives the same one each time.
    async fn node(&self) -> Arc<dyn Broker>;

    /// The same of a node whose clock is `ahead` µs ahead, or below zero so far behind. A broker
    /// that never reads its node's clock needs none of its own.
    async fn node_with_clock(&self, ahead: i64) -> Arc<dyn Broker> {
        let _ = ahead;
        self.node().await
    }

    /// What this fixture can do to its backbone. Clauses that need more are skipped, aloud.
    fn faults(&self) -> &[Fault];

    /// Makes `fault`, one of [`Fixture::faults`], happen, and comes back when it has.
    async fn inflict(&self, fault: Fault);

    /// How many subscriptions the backbone counts for `channel`, if it counts them.
    async fn subscriptions(&self, channel: &ChannelName) -> Option<usize>;

    /// How many things the backbone stores that are of single channels, if it counts them.
    async fn stored(&self) -> Option<usize> {
        None
    }
}

/// What can happen to a backbone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// All that it held is lost, for the nodes that are there as for later ones. It works again at
    /// once.
    Wipe,
    /// Every connection of every node breaks, once.
    Cut,
    /// It dies, without warning, and comes back with what it had stored. Only for a backbone that
    /// stores.
    Restart,
    /// It dies, and comes back with nothing and with a clock that is ten minutes behind.
    ReturnBehind,
}

/// The rules with which a fixture's brokers are made.
pub fn rules() -> Rules {
    let hour = Duration::from_secs(3600);
    let rule = |kept: Kept| {
        let pattern = format!("conformance/{}/{{*rest}}", kept.as_str());
        let mut rule = Rule::new(pattern.parse().unwrap(), vec![TransportName::SSE]);
        let (events, age, bytes) = match kept {
            Kept::Ample => (10_000, hour, 256 << 20),
            Kept::Ten => (TEN, hour, 16 << 20),
            Kept::None => (0, hour, 16 << 20),
            Kept::FewBytes => (10_000, hour, FEW_BYTES),
            Kept::Briefly => (10_000, Duration::from_secs(1), 16 << 20),
            Kept::Minute => (10_000, Duration::from_secs(60), 16 << 20),
        };
        rule.history = History { events, age, bytes };
        rule
    };
    Rules::new(
        [
            Kept::Ample,
            Kept::Ten,
            Kept::None,
            Kept::FewBytes,
            Kept::Briefly,
            Kept::Minute,
        ]
        .map(rule),
    )
}

pub(super) const TEN: usize = 10;

pub(super) const FEW_BYTES: usize = 20_000;

/// The bound on what a broker keeps beyond its rule, see the module's doc.
pub(super) const fn at_most(events: usize) -> usize {
    2 * events + 200
}

/// A history policy of [`rules`].
#[derive(Clone, Copy)]
pub(super) enum Kept {
    Ample,
    Ten,
    None,
    FewBytes,
    Briefly,
    Minute,
}

impl Kept {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Kept::Ample => "ample",
            Kept::Ten => "ten",
            Kept::None => "none",
            Kept::FewBytes => "few-bytes",
            Kept::Briefly => "briefly",
            Kept::Minute => "minute",
        }
    }
}
