//! This module keeps this node's members of one channel: their connections, the departures that do
//! not count yet, and the entries that the directory has received.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::member::{Announced, MemberReport, OwnConnections};
use crate::directory::{MemberEntry, NodeId};
use crate::event::JsonText;

/// Bounds how long a member still counts whose connection broke. So a page that is loaded again
/// neither leaves nor joins.
const GRACE: Duration = Duration::from_secs(3);
/// Bounds how many entries are announced in one call.
const BATCH: usize = 500;

/// Each member has its id as its key. Anonymous members share the empty id.
#[derive(Default)]
pub(super) struct OwnMembers {
    members: HashMap<Arc<str>, OwnConnections>,
    /// Holds the departures that do not count yet, in the order of their times.
    departures: VecDeque<(Instant, Arc<str>)>,
    /// Says whether a task waits for the first of them.
    departing: bool,
    unannounced: VecDeque<Arc<str>>,
    announcing: bool,
    /// Counts the announcements.
    rounds: u64,
}

impl OwnMembers {
    pub(super) fn is_unused(&self) -> bool {
        self.members.is_empty() && self.departures.is_empty() && !self.announcing
    }

    pub(super) fn get(&self, member: &Arc<str>) -> Option<&OwnConnections> {
        self.members.get(member)
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = &Arc<str>> {
        self.members.keys()
    }

    /// Returns the number of announcements, or `None` while one is under way.
    pub(super) fn quiet_round(&self) -> Option<u64> {
        (!self.announcing).then_some(self.rounds)
    }

    fn connections_of(&mut self, member: &Arc<str>) -> &mut OwnConnections {
        // The lookup comes first, so that the key is cloned only for a new member.
        if !self.members.contains_key(member) {
            self.members.insert(member.clone(), OwnConnections::default());
        }
        self.members.entry(member.clone()).or_default()
    }

    /// Removes a member without any state.
    fn tidy(&mut self, member: &Arc<str>) {
        if self.members.get(member).is_some_and(OwnConnections::is_nothing) {
            self.members.remove(member);
        }
    }

    /// Notes that a connection of `member` begins. Returns whether this changes the node's report
    /// of the member.
    pub(super) fn enter(&mut self, member: &Arc<str>, meta: Option<&JsonText>) -> bool {
        self.connections_of(member).enter(meta)
    }

    /// Notes that a connection of `member` is over and no longer counts.
    pub(super) fn exit(&mut self, member: &Arc<str>) {
        self.connections_of(member).exit();
    }

    /// Notes that a connection of `member` broke, which counts for [`GRACE`] more. Returns whether
    /// the caller must start a task that waits for the departure.
    pub(super) fn begin_to_leave(&mut self, member: &Arc<str>) -> bool {
        self.connections_of(member).begin_to_leave();
        self.departures.push_back((Instant::now() + GRACE, member.clone()));
        !std::mem::replace(&mut self.departing, true)
    }

    /// Carries out the departures that are due. Returns the members that have one connection less,
    /// and the time of the next departure. The time is `None` if no departure is left; the task
    /// then ends.
    pub(super) fn depart(&mut self) -> (Vec<Arc<str>>, Option<Instant>) {
        let now = Instant::now();
        let mut departed = Vec::new();
        while let Some((due, member)) = self.departures.pop_front() {
            if due > now {
                self.departures.push_front((due, member));
                return (departed, Some(due));
            }
            if self.connections_of(&member).depart() {
                departed.push(member);
            } else {
                self.tidy(&member);
            }
        }
        self.departing = false;
        (departed, None)
    }

    /// Queues `member` for an announcement. Returns whether the caller must start a task for it.
    pub(super) fn queue(&mut self, member: &Arc<str>) -> bool {
        let own = self.connections_of(member);
        if !own.queued {
            own.queued = true;
            self.unannounced.push_back(member.clone());
        }
        !std::mem::replace(&mut self.announcing, true)
    }

    /// Returns the entries to announce next. If there are none, the task ends.
    pub(super) fn next_entries(&mut self, node: NodeId, stamp: impl Fn() -> u64) -> Vec<MemberEntry> {
        let mut entries = Vec::new();
        while entries.len() < BATCH
            && let Some(member) = self.unannounced.pop_front()
        {
            let own = self.connections_of(&member);
            own.queued = false;
            if own.announce() {
                entries.push(MemberEntry {
                    node,
                    member: member.clone(),
                    stamp: stamp(),
                    value: own.report().as_ref().map(MemberReport::encode),
                });
            }
            self.tidy(&member);
        }
        self.announcing = !entries.is_empty();
        self.rounds += u64::from(self.announcing);
        entries
    }

    /// Notes that the directory has `entries`.
    pub(super) fn announced(&mut self, entries: &[MemberEntry]) {
        for entry in entries.iter().filter(|entry| entry.value.is_none()) {
            let own = self.connections_of(&entry.member);
            if matches!(own.announced, Announced::Connections { count: 0, .. }) {
                own.announced = Announced::Nothing;
            }
            self.tidy(&entry.member);
        }
    }

    /// Notes that the directory may have `entries` or not.
    pub(super) fn not_announced(&mut self, entries: &[MemberEntry]) {
        for entry in entries {
            let own = self.connections_of(&entry.member);
            own.announced = Announced::Unknown;
            if !own.queued {
                own.queued = true;
                self.unannounced.push_back(entry.member.clone());
            }
        }
    }

    /// Queues all present members again, because the node has a new incarnation that has announced
    /// nothing. Returns whether the caller must start a task that announces.
    pub(super) fn announce_again(&mut self) -> bool {
        let mut announce = false;
        let members: Vec<Arc<str>> = self.members.keys().cloned().collect();
        for member in members {
            let own = self.connections_of(&member);
            own.announced = Announced::Nothing;
            if own.count() > 0 {
                announce |= self.queue(&member);
            } else {
                self.tidy(&member);
            }
        }
        announce
    }

    /// Returns the entries that clear all announced members, in batches.
    pub(super) fn removals(&mut self, node: NodeId, stamp: impl Fn() -> u64) -> Vec<Vec<MemberEntry>> {
        let mut entries = Vec::new();
        for (member, own) in &mut self.members {
            if std::mem::take(&mut own.announced) != Announced::Nothing {
                entries.push(MemberEntry {
                    node,
                    member: member.clone(),
                    stamp: stamp(),
                    value: None,
                });
            }
        }
        entries.chunks(BATCH).map(<[MemberEntry]>::to_vec).collect()
    }

    /// Queues the members again whose entries in the directory differ from this node's
    /// announcements. `listed` are the directory's entries of this node. They count only if
    /// [`OwnMembers::quiet_round`] is still `round`: no announcement came since. Returns whether
    /// the caller must start a task that announces.
    pub(super) fn correct<'a>(&mut self, round: u64, listed: impl Iterator<Item = &'a MemberEntry>) -> bool {
        if self.quiet_round() != Some(round) {
            return false;
        }
        // An unreadable value counts as no connections at all, so it never agrees.
        let listed: HashMap<&Arc<str>, Announced> = listed
            .map(|entry| {
                let report = entry.value.as_ref().and_then(MemberReport::decode);
                let announced = report.map(|report| Announced::Connections {
                    count: report.connections,
                    metadata_at: report.metadata.at,
                });
                (&entry.member, announced.unwrap_or_default())
            })
            .collect();
        let mut announce = false;
        let known: HashSet<Arc<str>> = self.members.keys().chain(listed.keys().copied()).cloned().collect();
        for member in known {
            let own = self.connections_of(&member);
            let agree = match listed.get(&member) {
                None => own.announced == Announced::Nothing,
                Some(Announced::Nothing) => false,
                Some(listed) => own.announced == *listed,
            };
            if !agree {
                own.announced = match listed.contains_key(&member) {
                    true => Announced::Unknown,
                    false => Announced::Nothing,
                };
                announce |= self.queue(&member);
            }
            self.tidy(&member);
        }
        announce
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Announces all queued members.
    fn announce(own: &mut OwnMembers, node: NodeId) {
        loop {
            let entries = own.next_entries(node, || 1);
            if entries.is_empty() {
                return;
            }
            own.announced(&entries);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_that_came_back_and_then_left_at_once_leaves_no_state_behind() {
        let (mut own, node, member) = (OwnMembers::default(), NodeId::draw(), Arc::from("ada"));
        own.enter(&member, None);
        own.queue(&member);
        announce(&mut own, node);
        assert!(own.begin_to_leave(&member), "a task waits for the departure");
        assert!(!own.enter(&member, None), "it is back: the count is the same");
        own.exit(&member);
        own.queue(&member);
        announce(&mut own, node);
        assert!(!own.is_unused(), "a departure is to come");
        tokio::time::advance(GRACE).await;
        assert_eq!(own.depart(), (vec![], None));
        assert!(own.is_unused());
    }
}
