//! Clauses run over a backbone. This module describes it, its faults, and the rules of its brokers.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::broker::Broker;
use crate::event::ChannelName;
use crate::rule::{History, Rule, Rules, TransportName};

/// Bounds the time that a clause waits for anything. It decides only when a wait counts as a hang.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A fixture is one backbone that clauses run over.
#[async_trait]
pub trait Fixture: Send + Sync {
    /// Returns the broker of another node on this backbone, made with [`rules`]. A broker that is
    /// one process gives the same one each time.
    async fn node(&self) -> Arc<dyn Broker>;

    /// Returns the same for a node whose clock is `ahead` µs ahead, or behind if `ahead` is
    /// negative. A fixture whose broker never reads its node's clock keeps this default.
    async fn node_with_clock(&self, ahead: i64) -> Arc<dyn Broker> {
        let _ = ahead;
        self.node().await
    }

    /// Returns the faults that this fixture can cause. A clause that needs another fault is
    /// skipped, and its test prints that.
    fn faults(&self) -> &[Fault];

    /// Causes `fault`, one of [`Fixture::faults`], and returns when it has happened.
    async fn inflict(&self, fault: Fault);

    /// Returns the number of subscriptions that the backbone counts for `channel`, if it counts
    /// them.
    async fn subscriptions(&self, channel: &ChannelName) -> Option<usize>;

    /// Returns the number of things that the backbone stores for single channels, if it counts
    /// them.
    async fn stored(&self) -> Option<usize> {
        None
    }
}

/// A fault is an event that can happen to a backbone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The backbone loses all that it held, for current and for later nodes. It works again at
    /// once.
    Wipe,
    /// Every connection of every node breaks, once.
    Cut,
    /// The backbone stops without warning, and comes back with what it had stored. Only a backbone
    /// that stores has this fault.
    Restart,
    /// The backbone stops, and comes back with nothing and with a clock that is ten minutes behind.
    ReturnBehind,
}

/// Returns the rules with which a fixture makes its brokers.
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

/// Returns the bound on what a broker keeps beyond its rule, see the module's doc.
pub(super) const fn at_most(events: usize) -> usize {
    2 * events + 200
}

/// Each variant is a history policy of [`rules`].
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
