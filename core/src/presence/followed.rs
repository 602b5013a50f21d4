//! A node follows all members of one channel, over all nodes, while it has a listener.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::changes::ChangeRing;
use super::member::{self, MemberReport, OtherNode};
use super::own::OwnMembers;
use crate::directory::{MemberEntry, NodeId, Watch};
use crate::format::{Change, Member};
use crate::newer::Newer;

/// Logs reports of other nodes in a form that this version does not know.
static NEWER: Newer = Newer::new();

/// Listeners receive changes at most once in this time. Changes in between arrive as one.
const SHOW_EVERY: Duration = Duration::from_millis(100);
/// The node waits before it opens a watch again that ended sooner than this.
const WATCH_LASTS: Duration = Duration::from_secs(1);

/// A set keeps this state while a node follows it: from its first listener until its last one has
/// been away for a while.
pub(super) struct Followed {
    pub(super) listeners: usize,
    /// Says whether a task waits for the end of the time after the last listener.
    pub(super) lingering: bool,
    /// Says whether a task is opening the watch.
    pub(super) opening: bool,
    /// Holds the watch, even after its end, until another takes its place. The watch itself reports
    /// its end, and dropping it there would take the lock that it holds.
    pub(super) watch: Option<Watch>,
    opened: Instant,
    /// Holds the stamps of entries that arrive while the node asks the directory for its list.
    /// These entries are newer than the list.
    listing: Option<HashMap<(NodeId, Arc<str>), u64>>,
    members: HashMap<Arc<str>, FollowedMember>,
    /// Says whether this node knows the members of all nodes.
    whole: bool,
    /// Names the members that may differ from what listeners received.
    dirty: Vec<Arc<str>>,
    /// Says whether a task waits to send these changes.
    showing: bool,
    shown_at: Instant,
    pub(super) ring: ChangeRing,
}

/// This type holds what the node knows of one member.
#[derive(Default)]
struct FollowedMember {
    others: Vec<OtherNode>,
    /// Holds the member as listeners last received it.
    shown: Option<Arc<Member>>,
    dirty: bool,
}

/// This type says when listeners receive the changes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ShowWhen {
    Never,
    Now,
    /// A task waits until this time.
    At(Instant),
}

impl Followed {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            listeners: 0,
            lingering: false,
            opening: false,
            watch: None,
            opened: now,
            listing: None,
            members: HashMap::new(),
            whole: false,
            dirty: Vec::new(),
            showing: false,
            shown_at: now,
            ring: ChangeRing::new(),
        }
    }

    /// Returns whether a listener, or the time after the last one, still needs this state.
    pub(super) fn is_wanted(&self) -> bool {
        self.listeners > 0 || self.lingering
    }

    pub(super) fn is_whole(&self) -> bool {
        self.whole
    }

    /// Notes that the node has opened a watch, and now asks the directory for its list.
    pub(super) fn begin(&mut self) {
        self.opened = Instant::now();
        self.listing = Some(HashMap::new());
    }

    /// Notes that the node asks for the list while the watch goes on. Returns false if it does so
    /// already, or if there is no watch.
    pub(super) fn begin_listing(&mut self) -> bool {
        let free = self.watch.is_some() && self.listing.is_none();
        if free {
            self.listing = Some(HashMap::new());
        }
        free
    }

    /// Notes that the list that the node asked for will not come.
    pub(super) fn end_listing(&mut self) {
        self.listing = None;
    }

    /// Notes the end of the watch. Returns how long the caller waits before it opens the next one,
    /// or `None` if a task is opening one already.
    pub(super) fn watch_ended(&mut self) -> Option<Duration> {
        self.listing = None;
        let opens = !std::mem::replace(&mut self.opening, true);
        opens.then(|| WATCH_LASTS.saturating_sub(self.opened.elapsed()))
    }

    /// Takes in an entry of another node that the watch shows.
    pub(super) fn apply(&mut self, entry: &MemberEntry) {
        if let Some(meanwhile) = &mut self.listing {
            meanwhile.insert((entry.node, entry.member.clone()), entry.stamp);
        }
        self.take_in(entry);
    }

    /// Takes in another node's entry, unless the node knows a newer one.
    pub(super) fn take_in(&mut self, entry: &MemberEntry) {
        let report = match &entry.value {
            None => None,
            Some(value) => match MemberReport::decode(value) {
                Some(report) => Some(report),
                None => {
                    NEWER.say("a node's report of its members", "its members are not shown here");
                    return;
                }
            },
        };
        if report.is_none() && !self.members.contains_key(&entry.member) {
            return;
        }
        if member::take_in(&mut self.state_of(&entry.member).others, entry, report) {
            self.mark(&entry.member);
            self.tidy(&entry.member);
        }
    }

    /// Takes in the directory's list, whose entries of other nodes are `entries`. With `complete`,
    /// an entry that is not in the list is gone. Returns true if the members are known now and were
    /// not before, and `None` if the node did not ask for the list.
    pub(super) fn take_list<'a>(
        &mut self,
        entries: impl Iterator<Item = &'a MemberEntry>,
        complete: bool,
        own: &OwnMembers,
    ) -> Option<bool> {
        let meanwhile = self.listing.take()?;
        let mut listed = HashSet::new();
        for entry in entries {
            let key = (entry.node, entry.member.clone());
            if meanwhile.get(&key).is_none_or(|newer| *newer < entry.stamp) {
                self.take_in(entry);
            }
            listed.insert(key);
        }
        if complete {
            self.forget(|node, member| {
                let key = (node, member.clone());
                !listed.contains(&key) && !meanwhile.contains_key(&key)
            });
        }
        let first = !std::mem::replace(&mut self.whole, true);
        if first {
            self.begin_telling(own);
        }
        Some(first)
    }

    /// Begins to report changes. The list holds everything that came before.
    fn begin_telling(&mut self, own: &OwnMembers) {
        for id in own.ids() {
            self.state_of(id);
        }
        for (id, state) in &mut self.members {
            state.dirty = false;
            state.shown = member::merge(id, &state.others, own.get(id)).map(Arc::new);
        }
        self.members.retain(|_, state| !state.is_nothing());
        self.dirty.clear();
        self.shown_at = Instant::now();
    }

    /// Forgets the entries that `gone` names by node and member.
    pub(super) fn forget(&mut self, gone: impl Fn(NodeId, &Arc<str>) -> bool) {
        let mut changed = Vec::new();
        for (id, state) in &mut self.members {
            let before = state.others.len();
            state.others.retain(|other| !gone(other.id(), id));
            if state.others.len() != before {
                changed.push(id.clone());
            }
        }
        for id in changed {
            self.mark(&id);
            self.tidy(&id);
        }
    }

    fn state_of(&mut self, member: &Arc<str>) -> &mut FollowedMember {
        self.members.entry(member.clone()).or_default()
    }

    /// Removes a member without any state.
    fn tidy(&mut self, member: &Arc<str>) {
        if self.members.get(member).is_some_and(FollowedMember::is_nothing) {
            self.members.remove(member);
        }
    }

    /// Notes that `member` may have changed for the listeners.
    pub(super) fn mark(&mut self, member: &Arc<str>) {
        if !self.whole {
            return;
        }
        let state = self.state_of(member);
        if !state.dirty {
            state.dirty = true;
            self.dirty.push(member.clone());
        }
    }

    /// Returns when listeners receive the changes. The caller asks after each change.
    pub(super) fn due(&mut self) -> ShowWhen {
        if self.dirty.is_empty() || self.showing {
            return ShowWhen::Never;
        }
        let due = self.shown_at + SHOW_EVERY;
        if due <= Instant::now() {
            return ShowWhen::Now;
        }
        self.showing = true;
        ShowWhen::At(due)
    }

    /// Notes that the task that waited for [`ShowWhen::At`] is over.
    pub(super) fn waited(&mut self) {
        self.showing = false;
    }

    /// Puts the changes into the ring. Returns whether there are any.
    pub(super) fn tell(&mut self, own: &OwnMembers) -> bool {
        let before = self.ring.end();
        self.shown_at = Instant::now();
        for id in std::mem::take(&mut self.dirty) {
            let Some(state) = self.members.get_mut(&id) else { continue };
            state.dirty = false;
            let now = member::merge(&id, &state.others, own.get(&id));
            if let Some((change, member)) = difference(state.shown.as_deref(), now) {
                state.shown = (change != Change::Leave).then(|| member.clone());
                self.ring.push(change, member);
            }
            self.tidy(&id);
        }
        let changed = self.ring.end() != before;
        self.ring.trim();
        changed
    }

    /// Returns all members as listeners received them, with the index behind which this list
    /// stands.
    pub(super) fn shown(&self) -> (u64, Vec<Arc<Member>>) {
        let members = self.members.values().filter_map(|state| state.shown.clone());
        (self.ring.end(), members.collect())
    }

    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    /// Returns all members of all nodes, as they are now.
    pub(super) fn merged(&self, own: &OwnMembers) -> Vec<Arc<Member>> {
        let merge = |id| {
            let others = self.members.get(id).map_or(&[][..], |state| &state.others);
            member::merge(id, others, own.get(id)).map(Arc::new)
        };
        let only_own = own.ids().filter(|id| !self.members.contains_key(*id));
        self.members.keys().chain(only_own).filter_map(merge).collect()
    }
}

impl FollowedMember {
    fn is_nothing(&self) -> bool {
        self.others.is_empty() && self.shown.is_none() && !self.dirty
    }
}

/// Returns the change that listeners receive for a member, or `None` if it is the same as before.
fn difference(was: Option<&Member>, now: Option<Member>) -> Option<(Change, Arc<Member>)> {
    match (was, now) {
        (None, None) => None,
        (None, Some(now)) => Some((Change::Join, Arc::new(now))),
        (Some(was), None) => {
            let gone = Member {
                connections: 0,
                ..was.clone()
            };
            Some((Change::Leave, Arc::new(gone)))
        }
        (Some(was), Some(now)) if *was == now => None,
        (Some(_), Some(now)) => Some((Change::Update, Arc::new(now))),
    }
}
