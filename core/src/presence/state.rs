//! What a presence set knows, and what follows from each change. Nothing here waits, takes a lock
//! or calls the directory.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::followed::{Followed, ShowWhen};
use super::own::OwnMembers;
use crate::directory::{MemberEntry, NodeId, Watch};
use crate::event::JsonText;
use crate::format::Member;

/// How often a presence set is compared with the directory, whatever it has heard.
const REFRESH_EVERY: Duration = Duration::from_secs(600);

/// One channel's members.
pub(super) struct PresenceState {
    pub(super) node: NodeId,
    /// The set is no longer among the node's sets.
    pub(super) closed: bool,
    pub(super) own: OwnMembers,
    /// `None`: there is no listener, and there was none for a while.
    pub(super) followed: Option<Followed>,
    /// Tells the watch that is in use from one that was given up. Never given twice.
    generation: u64,
    /// When the set was last compared with the directory.
    compared: Instant,
}

/// What a change calls for, to be done when the state is unlocked.
#[derive(Default)]
#[must_use]
pub(super) struct Work {
    /// Wake the listeners.
    pub(super) wake: bool,
    /// Tell listeners at this time what has changed until then.
    pub(super) show_at: Option<Instant>,
    /// Begin to announce.
    pub(super) announce: bool,
    /// Wait for the first departure.
    pub(super) depart: bool,
    /// Open the watch after this pause.
    pub(super) follow: Option<Duration>,
    /// Stop following in a while if there is no listener then.
    pub(super) linger: bool,
    /// Compare the set with the directory.
    pub(super) compare: bool,
}

/// A comparison with the directory that is under way.
pub(super) struct Comparison {
    /// How often this node had announced something when it began.
    round: u64,
    generation: u64,
    /// Whether the list counts for what other nodes say, too.
    pub(super) listing: bool,
}

impl PresenceState {
    pub(super) fn new(node: NodeId) -> Self {
        Self {
            node,
            closed: false,
            own: OwnMembers::default(),
            followed: None,
            generation: 0,
            compared: Instant::now(),
        }
    }

    /// The node is gone. What is returned is dropped when the state is unlocked.
    pub(super) fn close(&mut self) -> Option<Followed> {
        self.closed = true;
        self.generation += 1;
        self.followed.take()
    }

    pub(super) fn is_unused(&self) -> bool {
        self.followed.is_none() && self.own.is_unused()
    }

    /// One past the last index of the ring; zero while the list is not known.
    pub(super) fn version(&self) -> u64 {
        let followed = self.followed.as_ref().filter(|followed| followed.is_whole());
        followed.map_or(0, |followed| followed.ring.end())
    }

    /// A connection of `member` begins.
    pub(super) fn enter(&mut self, member: &Arc<str>, meta: Option<&JsonText>) -> Work {
        let mut work = Work::default();
        if self.own.enter(member, meta) {
            self.own_changed(member, &mut work);
            self.show_if_due(&mut work);
        }
        work
    }

    /// A connection of `member` is over. Without `at_once` it counts for a while, because it may
    /// come back.
    pub(super) fn exit(&mut self, member: &Arc<str>, at_once: bool) -> Work {
        let mut work = Work::default();
        if at_once {
            self.own.exit(member);
            self.own_changed(member, &mut work);
            self.show_if_due(&mut work);
        } else {
            work.depart = self.own.begin_to_leave(member);
        }
        work
    }

    /// Carries out the departures that are due. Returns when the next is; `None`: none is left.
    pub(super) fn depart(&mut self) -> (Option<Instant>, Work) {
        let mut work = Work::default();
        let (departed, next) = self.own.depart();
        for member in &departed {
            self.own_changed(member, &mut work);
        }
        self.show_if_due(&mut work);
        (next, work)
    }

    /// What this node says of `member` is now something else.
    fn own_changed(&mut self, member: &Arc<str>, work: &mut Work) {
        work.announce |= self.own.queue(member);
        if let Some(followed) = &mut self.followed {
            followed.mark(member);
        }
    }

    fn show_if_due(&mut self, work: &mut Work) {
        let Some(followed) = &mut self.followed else { return };
        match followed.due() {
            ShowWhen::Never => {}
            ShowWhen::Now => work.wake |= followed.tell(&self.own),
            ShowWhen::At(due) => work.show_at = Some(due),
        }
    }

    /// The time of [`Work::show_at`] has come.
    pub(super) fn show(&mut self) -> Work {
        let mut work = Work::default();
        if let Some(followed) = &mut self.followed {
            followed.waited();
            work.wake = followed.tell(&self.own);
        }
        work
    }

    /// A listener comes.
    pub(super) fn listen(&mut self) -> Work {
        let mut work = Work::default();
        let followed = self.followed.get_or_insert_with(Followed::new);
        followed.listeners += 1;
        if followed.watch.is_none() && !followed.opening {
            followed.opening = true;
            work.follow = Some(Duration::ZERO);
        }
        work
    }

    /// A listener goes.
    pub(super) fn stop_listening(&mut self) -> Work {
        let mut work = Work::default();
        if let Some(followed) = &mut self.followed {
            followed.listeners = followed.listeners.saturating_sub(1);
            if followed.listeners == 0 && !followed.lingering {
                followed.lingering = true;
                work.linger = true;
            }
        }
        work
    }

    /// The time after the last listener is over. What is returned is dropped when the state is
    /// unlocked, because it holds a watch.
    pub(super) fn stop_lingering(&mut self) -> Option<Followed> {
        let followed = self.followed.as_mut()?;
        followed.lingering = false;
        if followed.is_wanted() { None } else { self.stop_following() }
    }

    /// Drops what other nodes said, because there is no listener any more.
    fn stop_following(&mut self) -> Option<Followed> {
        self.generation += 1;
        let stopped = self.followed.take();
        if stopped.as_ref().is_some_and(|stopped| stopped.opening) {
            // The task that opens the watch finds that no listener wants it, or that one is back.
            let mut opening = Followed::new();
            opening.opening = true;
            self.followed = Some(opening);
        }
        stopped
    }

    /// Whether a listener wants the watch that a task is opening. If not, nothing is followed any
    /// more, and what is returned beside it is dropped when the state is unlocked.
    pub(super) fn go_on_opening(&mut self) -> (bool, Option<Followed>) {
        let given_up = self.followed.take_if(|followed| !followed.is_wanted());
        (self.followed.is_some(), given_up)
    }

    /// A watch was opened. Returns its generation; the directory is asked for its list next.
    pub(super) fn begin_watch(&mut self) -> Option<u64> {
        let followed = self.followed.as_mut()?;
        self.generation += 1;
        followed.begin();
        Some(self.generation)
    }

    /// Keeps the watch whose list was taken in. False: it is not wanted, or not any more. What is
    /// returned beside it is dropped when the state is unlocked.
    pub(super) fn keep_watch(&mut self, generation: u64, watch: Watch) -> (bool, Option<Watch>, Option<Followed>) {
        if self.generation != generation {
            return (false, Some(watch), None);
        }
        match &mut self.followed {
            Some(followed) if followed.is_wanted() => {
                followed.opening = false;
                // The watch before this one has ended.
                (true, followed.watch.replace(watch), None)
            }
            _ => (false, Some(watch), self.stop_following()),
        }
    }

    /// Whether a watch of that generation counts, and shows an entry of another node.
    pub(super) fn accepts(&self, generation: u64, node: NodeId) -> bool {
        self.generation == generation && node.process != self.node.process
    }

    /// The watch shows an entry that this set [accepts](PresenceState::accepts).
    pub(super) fn apply(&mut self, entry: &MemberEntry) -> Work {
        let mut work = Work::default();
        if let Some(followed) = &mut self.followed {
            followed.apply(entry);
            self.show_if_due(&mut work);
        }
        work
    }

    /// A watch has ended.
    pub(super) fn watch_ended(&mut self, generation: u64) -> Work {
        let mut work = Work::default();
        if self.generation == generation
            && let Some(followed) = &mut self.followed
        {
            self.generation += 1;
            work.follow = followed.watch_ended();
        }
        work
    }

    /// Takes in the directory's list, asked for while the watch of `generation` was open.
    /// `complete`: an entry that is not listed is gone. `None`: the watch has ended since.
    pub(super) fn take_list(&mut self, generation: u64, entries: &[MemberEntry], complete: bool) -> Option<Work> {
        if self.generation != generation {
            return None;
        }
        let process = self.node.process;
        let others = entries.iter().filter(|entry| entry.node.process != process);
        let first = self.followed.as_mut()?.take_list(others, complete, &self.own)?;
        self.compared = Instant::now();
        let mut work = Work {
            wake: first,
            ..Work::default()
        };
        self.show_if_due(&mut work);
        Some(work)
    }

    /// Forgets what dead nodes have said.
    pub(super) fn expire(&mut self, dead: &HashSet<NodeId>) -> Work {
        let mut work = Work::default();
        if let Some(followed) = &mut self.followed {
            followed.forget(|node, _| dead.contains(&node));
            self.show_if_due(&mut work);
        }
        work
    }

    /// The node has begun another life, in which it has said nothing.
    pub(super) fn re_register(&mut self, node: NodeId) -> Work {
        self.node = node;
        Work {
            announce: self.own.announce_again(),
            ..Work::default()
        }
    }

    /// Asks for a comparison with the directory; without `now` only if the last one was long ago.
    pub(super) fn compare_if_due(&mut self, now: bool) -> Work {
        let mut work = Work::default();
        if now || self.compared.elapsed() >= REFRESH_EVERY {
            self.compared = Instant::now();
            work.compare = true;
        }
        work
    }

    /// Begins a comparison; `None`: something is being announced.
    pub(super) fn begin_comparison(&mut self) -> Option<Comparison> {
        Some(Comparison {
            round: self.own.quiet_round()?,
            generation: self.generation,
            listing: self.followed.as_mut().is_some_and(Followed::begin_listing),
        })
    }

    /// The directory's list for a comparison.
    pub(super) fn compare(&mut self, comparison: &Comparison, entries: &[MemberEntry]) -> Work {
        let mut work = Work::default();
        if comparison.listing
            && let Some(taken) = self.take_list(comparison.generation, entries, true)
        {
            work = taken;
        }
        let node = self.node;
        let listed = entries.iter().filter(|entry| entry.node == node);
        work.announce |= self.own.correct(comparison.round, listed);
        work
    }

    /// The list for a comparison does not come.
    pub(super) fn end_comparison(&mut self, comparison: &Comparison) {
        if comparison.listing
            && self.generation == comparison.generation
            && let Some(followed) = &mut self.followed
        {
            followed.end_listing();
        }
    }

    /// The members of all nodes, if they are known.
    pub(super) fn members(&self) -> Option<Vec<Arc<Member>>> {
        let followed = self.followed.as_ref().filter(|followed| followed.is_whole())?;
        Some(followed.merged(&self.own))
    }
}
