//! A lease keeps the node registered in the directory. This module also limits the time of each
//! call to the directory.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::broker::BrokerError;
use crate::directory::{Directory, Heartbeat, MemberEntry, NODE_EXPIRES, NodeId, Watch};
use crate::event::{ChannelName, Position};
use crate::jitter::Jitter;
use crate::patience;

/// Locks the state of presence.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code here panics half-way through a change that matters.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Presence calls the directory through this type, which bounds the time of each call.
#[derive(Clone)]
pub(super) struct BoundedDirectory {
    directory: Arc<dyn Directory>,
    limit: Duration,
}

impl BoundedDirectory {
    async fn within<T>(&self, call: impl Future<Output = Result<T, BrokerError>>) -> Result<T, BrokerError> {
        match timeout(self.limit, call).await {
            Ok(answer) => answer,
            Err(_) => Err(BrokerError::unavailable("the directory did not answer in time")),
        }
    }

    pub(super) async fn set(&self, channel: &ChannelName, entries: &[MemberEntry]) -> Result<(), BrokerError> {
        self.within(self.directory.set(channel, entries)).await
    }

    pub(super) async fn list(&self, channel: &ChannelName) -> Result<Vec<MemberEntry>, BrokerError> {
        self.within(self.directory.list(channel)).await
    }

    /// Lists the members for a request, which has one time for all its calls.
    pub(super) async fn list_for_request(&self, channel: &ChannelName) -> Result<Vec<MemberEntry>, BrokerError> {
        patience::call(self.limit, self.directory.list(channel)).await
    }

    pub(super) async fn watch(&self, channel: &ChannelName) -> Result<Watch, BrokerError> {
        self.within(self.directory.watch(channel)).await
    }

    pub(super) async fn heartbeat(&self, node: NodeId) -> Result<Heartbeat, BrokerError> {
        self.within(self.directory.heartbeat(node)).await
    }

    pub(super) async fn leave(&self, node: NodeId) -> Result<(), BrokerError> {
        self.within(self.directory.leave(node)).await
    }
}

/// A lease is one node's registration in the directory.
pub(super) struct Lease {
    pub(super) directory: BoundedDirectory,
    pub(super) jitter: Jitter,
    pub(super) runtime: Handle,
    life: Mutex<Life>,
    /// Says whether the node is registered in the directory, so that its entries count.
    lives: watch::Sender<bool>,
    /// While this is set, no member counts as gone, because other nodes are coming back, too. The
    /// time lasts from the first missed heartbeat until the outage is over.
    unsettled: AtomicBool,
    stamp: AtomicU64,
    /// Holds the nodes that the directory has shown, and when each was first seen.
    others: Mutex<HashMap<NodeId, Instant>>,
}

struct Life {
    node: NodeId,
    /// Says whether the last heartbeat failed.
    missed: bool,
    settles: Instant,
    over: bool,
}

/// The answer to a heartbeat gives the node one of these standings.
pub(super) enum Standing {
    /// The node has left the directory.
    Over,
    /// The directory no longer knows the node. The node continues as `next`.
    Expired { dead: NodeId, next: NodeId },
    /// The node is registered, but other nodes may still be coming back.
    Unsettled,
    /// The node is registered. `again` says that an outage ended with this answer.
    Settled { again: bool },
}

impl Lease {
    /// Creates the lease. The caller must be within a tokio runtime.
    pub(super) fn new(directory: Arc<dyn Directory>, jitter: Jitter, limit: Duration) -> Self {
        Self {
            directory: BoundedDirectory { directory, limit },
            jitter,
            runtime: Handle::current(),
            life: Mutex::new(Life {
                node: NodeId::draw(),
                missed: false,
                settles: Instant::now(),
                over: false,
            }),
            lives: watch::Sender::new(false),
            unsettled: AtomicBool::new(false),
            stamp: AtomicU64::new(0),
            others: Mutex::default(),
        }
    }

    /// Returns this node's present incarnation.
    pub(super) fn node(&self) -> NodeId {
        lock(&self.life).node
    }

    /// Returns the node that sends heartbeats, or `None` once it has left the directory.
    pub(super) fn living_node(&self) -> Option<NodeId> {
        let life = lock(&self.life);
        (!life.over).then_some(life.node)
    }

    pub(super) fn is_over(&self) -> bool {
        lock(&self.life).over
    }

    pub(super) fn lives(&self) -> bool {
        *self.lives.borrow()
    }

    /// Returns a receiver that follows [`Lease::lives`].
    pub(super) fn watch_life(&self) -> watch::Receiver<bool> {
        self.lives.subscribe()
    }

    /// Returns whether an entry that the directory does not list counts as gone.
    pub(super) fn is_settled(&self) -> bool {
        !self.unsettled.load(Ordering::Relaxed)
    }

    /// Ends the node's registration. Returns the incarnation that has to leave the directory.
    pub(super) fn end(&self) -> NodeId {
        let mut life = lock(&self.life);
        life.over = true;
        life.node
    }

    /// Notes that a heartbeat was not answered.
    pub(super) fn missed(&self) {
        lock(&self.life).missed = true;
        self.unsettled.store(true, Ordering::Relaxed);
    }

    /// Notes that a heartbeat was answered. `known` says that the directory has kept this node's
    /// entries.
    pub(super) fn answered(&self, known: bool) -> Standing {
        let now = Instant::now();
        let mut life = lock(&self.life);
        if life.over {
            return Standing::Over;
        }
        if self.lives() && !known {
            // The directory let the node expire, or has lost everything. An expired incarnation
            // never returns, because other nodes may be removing it right now.
            let dead = life.node;
            life.node = dead.next();
            life.settles = now + NODE_EXPIRES;
            self.unsettled.store(true, Ordering::Relaxed);
            let next = life.node;
            drop(life);
            self.lives.send_replace(false);
            return Standing::Expired { dead, next };
        }
        if life.missed {
            life.missed = false;
            life.settles = now + NODE_EXPIRES;
        }
        let settled = now >= life.settles;
        drop(life);
        self.lives.send_replace(true);
        if !settled {
            return Standing::Unsettled;
        }
        Standing::Settled {
            again: self.unsettled.swap(false, Ordering::Relaxed),
        }
    }

    /// Returns the stamp of the next entry, which is greater than all before it.
    pub(super) fn stamp(&self) -> u64 {
        let mut last = self.stamp.load(Ordering::Relaxed);
        loop {
            let next = Position(last).next().0;
            match self
                .stamp
                .compare_exchange_weak(last, next, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return next,
                Err(other) => last = other,
            }
        }
    }

    /// Notes that the directory has shown members of these nodes.
    pub(super) fn note_nodes(&self, nodes: impl IntoIterator<Item = NodeId>) {
        let mut others = lock(&self.others);
        for node in nodes {
            others.entry(node).or_insert_with(Instant::now);
        }
    }

    /// Forgets the nodes that have expired, and returns them. `living` is the answer to a heartbeat
    /// that was sent at `asked`.
    pub(super) fn take_dead(&self, asked: Instant, living: &[NodeId]) -> HashSet<NodeId> {
        let living: HashSet<&NodeId> = living.iter().collect();
        let mut dead = HashSet::new();
        lock(&self.others).retain(|node, since| {
            // A node sends a heartbeat before it announces anything. So a node has expired if it
            // was seen before `asked` and is not in `living`.
            let lives = living.contains(node) || *since >= asked;
            if !lives {
                dead.insert(*node);
            }
            lives
        });
        dead
    }
}
