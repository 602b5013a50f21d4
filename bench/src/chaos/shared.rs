//! What everybody in a run shares.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::sleep;

use super::history::{Clock, Loss, Moment, Outcome, Publication, Told};
use super::plan::{PUBLISHERS, Plan};
use super::random::Random;
use super::servers::Loses;
use super::world::World;

/// Of each listener and channel.
pub(super) type Stories = BTreeMap<(&'static str, &'static str), Vec<(Moment, Told)>>;

/// What everybody in a run shares.
pub(super) struct Shared {
    pub(super) world: World,
    pub(super) seed: u64,
    /// Clocks differ, so that a position does not tell when something was.
    pub(super) clocks: bool,
    pub(super) clock: Clock,
    /// Cleared when everything is put right.
    pub(super) trouble: AtomicBool,
    pub(super) publications: Mutex<Vec<Publication>>,
    pub(super) told: Mutex<Stories>,
    pub(super) losses: Mutex<Vec<Loss>>,
    pub(super) jumps: Mutex<Vec<Moment>>,
    /// A count of everything that needs a name of its own.
    pub(super) named: AtomicUsize,
    pub(super) wrong: Mutex<Vec<String>>,
    /// A count of publishers that are still at it.
    pub(super) publishing: AtomicUsize,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn in_trouble(&self) -> bool {
        self.trouble.load(Ordering::SeqCst)
    }

    pub(super) fn wrong(&self, what: String) {
        lock(&self.wrong).push(what);
    }

    /// Of a run that begins.
    pub(super) fn of(plan: &Plan, world: World) -> Self {
        let mut losses = Vec::new();
        if world.kind.loses() == Loses::Newest {
            losses.push(Loss {
                channel: None,
                position: u64::MAX,
                at: 0,
                everything: false,
            });
        }
        Self {
            world,
            seed: plan.seed,
            clocks: plan.more.clocks,
            clock: Clock::default(),
            trouble: AtomicBool::new(true),
            publications: Mutex::default(),
            told: Mutex::default(),
            losses: Mutex::new(losses),
            jumps: Mutex::default(),
            named: AtomicUsize::new(0),
            wrong: Mutex::default(),
            publishing: AtomicUsize::new(PUBLISHERS.len()),
        }
    }

    /// The highest position that anybody has seen of a channel.
    pub(super) fn highest(&self, channel: &str) -> Option<u64> {
        let publications = lock(&self.publications);
        let acknowledged = publications.iter().filter(|publication| publication.channel == channel);
        let acknowledged = acknowledged.filter_map(|publication| match publication.outcome {
            Outcome::Acknowledged { position, .. } => position,
            _ => None,
        });
        let told = lock(&self.told);
        let told = told.iter().filter(|((_, of), _)| *of == channel).flat_map(|(_, told)| told);
        let told = told.filter_map(|(_, told)| match told {
            Told::Event { position, .. } => Some(*position),
            Told::Confirmed { cursor, .. } | Told::Gap { cursor, .. } => Some(*cursor),
            Told::Asked { .. } => None,
        });
        acknowledged.chain(told).max()
    }

    /// A node that runs, if there is one.
    pub(super) async fn some_node(&self, random: &mut Random) -> SocketAddr {
        loop {
            let nodes = self.world.addresses();
            if !nodes.is_empty() {
                return random.pick(&nodes);
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}
