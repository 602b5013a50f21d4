//! Hub and session use the presence of one node through this module.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::followed::Followed;
use super::lease::{Lease, Standing};
use super::member::in_order;
use super::membership::Membership;
use super::own::OwnMembers;
use super::set::PresenceSets;
use super::state::PresenceState;
use super::sync::{self, BACKOFF};
use crate::broker::BrokerError;
use crate::directory::{Directory, HEARTBEAT_EVERY, Heartbeat, MAX_MEMBER, NodeId};
use crate::event::{ChannelName, JsonText};
use crate::format::Member;
use crate::jitter::Jitter;
use crate::refusal::Refusal;
use crate::session_handle::SessionHandle;

/// Bounds the calls that a leaving node makes at the same time to remove its members.
const DEREGISTER_AT_ONCE: usize = 32;

/// Presence keeps the node registered in the directory, and holds its presence sets.
pub(crate) struct Presence {
    sets: Arc<PresenceSets>,
}

impl Presence {
    /// Begins the node's heartbeats in the directory. The caller must be within a tokio runtime.
    pub(crate) fn begin(directory: Arc<dyn Directory>, jitter: Jitter, limit: Duration) -> Arc<Self> {
        let sets = PresenceSets::new(Lease::new(directory, jitter, limit));
        tokio::spawn(heartbeat(Arc::downgrade(&sets)));
        Arc::new(Self { sets })
    }

    /// Checks whether a user can be a member.
    ///
    /// # Errors
    /// `internal`: the application gave a user an id that is too long.
    pub(crate) fn check(user: Option<&str>) -> Result<(), Refusal> {
        let length = user.map_or(0, str::len);
        if length > MAX_MEMBER {
            tracing::error!(
                length,
                "a user's id is longer than the {MAX_MEMBER} bytes that presence takes: shorten it in Handler::connect, or set presence = false"
            );
            return Err(Refusal::internal(
                "who you are cannot be shown in this channel: the user's id is too long",
            ));
        }
        Ok(())
    }

    /// Adds a connection to the channel's members. With a `listener` it listens as well, and wakes
    /// when there is something to read.
    pub(crate) fn attend(
        &self,
        channel: &ChannelName,
        user: Option<&Arc<str>>,
        meta: Option<&JsonText>,
        listener: Option<Arc<SessionHandle>>,
    ) -> Box<Membership> {
        let member: Arc<str> = user.cloned().unwrap_or_default();
        // Presence distinguishes only users, so an anonymous connection has no metadata.
        let meta = meta.filter(|_| !member.is_empty());
        let set = loop {
            let set = self.sets.get_or_create(channel);
            let entered = set.change(|state| (!state.closed).then(|| state.enter(&member, meta)));
            if let Some(work) = entered {
                sync::carry_out(&set, work);
                break set;
            }
            // The node closed this set between the look-up and the change, and it is no longer in
            // the map.
        };
        Box::new(Membership::new(set, member, listener))
    }

    /// Returns all members of the channel, on any node: users in the order of their ids, the
    /// anonymous last.
    pub(crate) async fn members(&self, channel: &ChannelName) -> Result<Vec<Arc<Member>>, BrokerError> {
        let known = self.sets.get(channel);
        if let Some(members) = known.as_ref().and_then(|set| set.look(PresenceState::members)) {
            return Ok(in_order(members));
        }
        let lease = &self.sets.lease;
        let entries = lease.directory.list_for_request(channel).await?;
        // This table lives for one call. It joins the entries of other nodes with this node's own
        // members.
        let mut others = Followed::new();
        let process = lease.node().process;
        for entry in entries.iter().filter(|entry| entry.node.process != process) {
            others.take_in(entry);
        }
        let members = match known {
            Some(set) => set.look(|state| others.merged(&state.own)),
            None => others.merged(&OwnMembers::default()),
        };
        Ok(in_order(members))
    }

    /// Removes this node's members, so that other nodes see it at once. The node announces nothing
    /// after it.
    pub(crate) async fn deregister(&self) {
        let lease = &self.sets.lease;
        let node = lease.end();
        if !lease.lives() {
            return;
        }
        let mut calls = JoinSet::new();
        for set in self.sets.all() {
            let removals = set.change(|state| state.own.removals(state.node, || lease.stamp()));
            for entries in removals {
                if calls.len() >= DEREGISTER_AT_ONCE {
                    calls.join_next().await;
                }
                let (directory, name) = (lease.directory.clone(), set.name.clone());
                calls.spawn(async move { directory.set(&name, &entries).await });
            }
        }
        while calls.join_next().await.is_some() {}
        if let Err(error) = lease.directory.leave(node).await {
            tracing::debug!(%error, "the node could not leave the directory: its entries expire");
        }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        // A watch's own call into its presence set must not drop the watch, because that call holds
        // the watch's lock. The call may be the last holder of the set, so the sets close here.
        for set in self.sets.all() {
            drop(set.change(PresenceState::close));
        }
    }
}

/// Sends heartbeats of this node, and receives the list of nodes that live.
async fn heartbeat(me: Weak<PresenceSets>) {
    loop {
        let Some(sets) = me.upgrade() else { return };
        let Some(node) = sets.lease.living_node() else { return };
        let directory = sets.lease.directory.clone();
        // The task holds only a weak handle across waits.
        drop(sets);
        let asked = Instant::now();
        let answer = directory.heartbeat(node).await;
        let Some(sets) = me.upgrade() else { return };
        let pause = match answer {
            Ok(heartbeat) => answered(&sets, asked, &heartbeat),
            Err(error) => {
                tracing::debug!(%error, "the directory is out of reach");
                sets.lease.missed();
                sets.lease.jitter.spread(BACKOFF.1)
            }
        };
        drop(sets);
        sleep(pause).await;
    }
}

/// Handles the directory's answer to a heartbeat that was sent at `asked`. Returns the time until
/// the next one is due.
fn answered(sets: &PresenceSets, asked: Instant, heartbeat: &Heartbeat) -> Duration {
    match sets.lease.answered(heartbeat.known) {
        Standing::Over => return HEARTBEAT_EVERY,
        Standing::Expired { dead, next } => {
            re_register(sets, dead, next);
            return Duration::ZERO;
        }
        Standing::Unsettled => {}
        Standing::Settled { again } => {
            expire(sets, asked, &heartbeat.living);
            for set in sets.all() {
                sync::change(&set, |state| state.compare_if_due(again));
            }
        }
    }
    sets.lease.jitter.spread(HEARTBEAT_EVERY)
}

/// Announces the node's members again, as those of its next incarnation.
fn re_register(sets: &PresenceSets, dead: NodeId, next: NodeId) {
    tracing::warn!("this node was not in the directory any more: announcing its members again");
    let directory = sets.lease.directory.clone();
    // The call removes the entries under the old id. If it fails, those entries do no harm.
    sets.lease.runtime.spawn(async move { directory.leave(dead).await.is_ok() });
    for set in sets.all() {
        sync::change(&set, |state| state.re_register(next));
    }
}

/// Forgets the entries of nodes that have expired.
fn expire(sets: &PresenceSets, asked: Instant, living: &[NodeId]) {
    let dead = sets.lease.take_dead(asked, living);
    if dead.is_empty() {
        return;
    }
    tracing::info!(nodes = dead.len(), "nodes are dead: their members have left");
    for set in sets.all() {
        sync::change(&set, |state| state.expire(&dead));
    }
}
