//! All members of one channel over all nodes, as a node keeps them while it has a listener.

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

/// What other nodes reported in a form that this version does not know.
static NEWER: Newer = Newer::new();

/// How often listeners are told at most. What changes meanwhile is told as one.
const SHOW_EVERY: Duration = Duration::from_millis(100);
/// A watch that ends sooner than this is not opened again at once.
const WATCH_LASTS: Duration = Duration::from_secs(1);

/// What a set keeps while it is followed: from its first listener until its last one has been away
/// for a while.
pub(super) struct Followed {
    pub(super) listeners: usize,
    /// Whether a task waits for the end of the time after the last listener.
    pub(super) lingering: bool,
    /// Whether a task is opening the watch.
    pub(super) opening: bool,
    /// Stays where it is when it has ended, until another takes its place: its end is told by the
    /// watch itself, and dropping it there would take the lock that it holds.
    pub(super) watch: Option<Watch>,
    opened: Instant,
    /// While the directory is being asked for its list: what was heard meanwhile is newer.
    listing: Option<HashMap<(NodeId, Arc<str>), u64>>,
    members: HashMap<Arc<str>, FollowedMember>,
    /// Whether the members of all nodes are known.
    whole: bool,
    /// The members that may be otherwise than they were told.
    dirty: Vec<Arc<str>>,
    /// Whether a task waits to tell of them.
    showing: bool,
    shown_at: Instant,
    pub(super) ring: ChangeRing,
}

/// A member, as far as this node knows.
#[derive(Default)]
struct FollowedMember {
    others: Vec<OtherNode>,
    /// As listeners were told.
    shown: Option<Arc<Member>>,
    dirty: bool,
}

/// Whether listeners have to be told.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ShowWhen {
    Never,
    Now,
    /// A task is to wait for this time.
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

    /// Whether anything still needs what is followed.
    pub(super) fn is_wanted(&self) -> bool {
        self.listeners > 0 || self.lingering
    }

    pub(super) fn is_whole(&self) -> bool {
        self.whole
    }

    /// A watch was opened, and the directory is being asked for its list.
    pub(super) fn begin(&mut self) {
        self.opened = Instant::now();
        self.listing = Some(HashMap::new());
    }

    /// Asks for the list while the watch goes on. False: that is under way already.
    pub(super) fn begin_listing(&mut self) -> bool {
        let free = self.watch.is_some() && self.listing.is_none();
        if free {
            self.listing = Some(HashMap::new());
        }
        free
    }

    /// The list that was asked for will not come.
    pub(super) fn end_listing(&mut self) {
        self.listing = None;
    }

    /// The watch has ended. Returns how long to wait until the next is opened; `None`: a task is
    /// opening one already.
    pub(super) fn watch_ended(&mut self) -> Option<Duration> {
        self.listing = None;
        let opens = !std::mem::replace(&mut self.opening, true);
        opens.then(|| WATCH_LASTS.saturating_sub(self.opened.elapsed()))
    }

    /// The watch shows an entry of another node.
    pub(super) fn apply(&mut self, entry: &MemberEntry) {
        if let Some(meanwhile) = &mut self.listing {
            meanwhile.insert((entry.node, entry.member.clone()), entry.stamp);
        }
        self.take_in(entry);
    }

    /// Takes in what another node says, unless it is older than what is known.
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

    /// Takes in the directory's list, of which `entries` are those of other nodes. `complete`: an
    /// entry that is not listed is gone. True: the members are known now, and were not before.
    /// `None`: the list was not asked for.
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

    /// From now on changes are told: whatever came before is in the list.
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

    /// Forgets what nodes have said that `gone` names.
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
        // Looked up first: the key is cloned only for one who is new.
        if !self.members.contains_key(member) {
            self.members.insert(member.clone(), FollowedMember::default());
        }
        self.members.entry(member.clone()).or_default()
    }

    /// Removes a member without any state.
    fn tidy(&mut self, member: &Arc<str>) {
        if self.members.get(member).is_some_and(FollowedMember::is_nothing) {
            self.members.remove(member);
        }
    }

    /// Listeners may have to be told of `member`.
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

    /// When listeners are told what has changed. Asked after each change.
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

    /// The task that waited for [`ShowWhen::At`] is over.
    pub(super) fn waited(&mut self) {
        self.showing = false;
    }

    /// Puts what has changed into the ring. True: there is something.
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

    /// All members that were told, and the index behind which the list stands.
    pub(super) fn shown(&self) -> (u64, Vec<Arc<Member>>) {
        let members = self.members.values().filter_map(|state| state.shown.clone());
        (self.ring.end(), members.collect())
    }

    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    /// All members of all nodes, as they are now.
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

/// What listeners are told of a member that was shown like this, and is now like that.
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
