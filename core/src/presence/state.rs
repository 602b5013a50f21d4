//! This state holds what a presence set knows, and decides what follows from each change. Nothing
//! here waits, takes a lock or calls the directory.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::followed::{Followed, ShowWhen};
use super::own::OwnMembers;
use crate::directory::{MemberEntry, NodeId, Watch};
use crate::event::JsonText;
use crate::format::Member;

/// The node compares a presence set with the directory this often, whatever it has received.
const REFRESH_EVERY: Duration = Duration::from_secs(600);

/// This state holds one channel's members.
pub(super) struct PresenceState {
    pub(super) node: NodeId,
    /// Says whether the set is no longer among the node's sets.
    pub(super) closed: bool,
    pub(super) own: OwnMembers,
    /// Holds `None` if there is no listener, and there was none for a while.
    pub(super) followed: Option<Followed>,
    /// Numbers the watches, to distinguish the one in use from one that was given up. The set gives
    /// no number twice.
    generation: u64,
    /// Says when the node last compared the set with the directory.
    compared: Instant,
}

/// A change calls for this work. The caller does it when the state is unlocked.
#[derive(Default)]
#[must_use]
pub(super) struct Work {
    /// Asks to wake the listeners.
    pub(super) wake: bool,
    /// Asks to show listeners at this time what has changed until then.
    pub(super) show_at: Option<Instant>,
    /// Asks to begin announcing.
    pub(super) announce: bool,
    /// Asks to wait for the first departure.
    pub(super) depart: bool,
    /// Asks to open the watch after this pause.
    pub(super) follow: Option<Duration>,
    /// Asks to stop following in a while if there is no listener then.
    pub(super) linger: bool,
    /// Asks to compare the set with the directory.
    pub(super) compare: bool,
}

/// A comparison with the directory is under way.
pub(super) struct Comparison {
    /// Counts how often this node had announced something when the comparison began.
    round: u64,
    generation: u64,
    /// Says whether the list counts for what other nodes announce, too.
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

    /// Closes the state, because the node is gone. The caller drops the result when the state is
    /// unlocked.
    pub(super) fn close(&mut self) -> Option<Followed> {
        self.closed = true;
        self.generation += 1;
        self.followed.take()
    }

    pub(super) fn is_unused(&self) -> bool {
        self.followed.is_none() && self.own.is_unused()
    }

    /// Returns one past the last index of the ring, or zero while the list is not known.
    pub(super) fn version(&self) -> u64 {
        let followed = self.followed.as_ref().filter(|followed| followed.is_whole());
        followed.map_or(0, |followed| followed.ring.end())
    }

    /// Begins a connection of `member`.
    pub(super) fn enter(&mut self, member: &Arc<str>, meta: Option<&JsonText>) -> Work {
        let mut work = Work::default();
        if self.own.enter(member, meta) {
            self.own_changed(member, &mut work);
            self.show_if_due(&mut work);
        }
        work
    }

    /// Ends a connection of `member`. Without `at_once` it counts for a while, because it may come
    /// back.
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

    /// Carries out the departures that are due. Returns when the next is due, or `None` if none is
    /// left.
    pub(super) fn depart(&mut self) -> (Option<Instant>, Work) {
        let mut work = Work::default();
        let (departed, next) = self.own.depart();
        for member in &departed {
            self.own_changed(member, &mut work);
        }
        self.show_if_due(&mut work);
        (next, work)
    }

    /// Marks `member`, because what this node announces of it has changed.
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

    /// Shows the changes when the time of [`Work::show_at`] has come.
    pub(super) fn show(&mut self) -> Work {
        let mut work = Work::default();
        if let Some(followed) = &mut self.followed {
            followed.waited();
            work.wake = followed.tell(&self.own);
        }
        work
    }

    /// Adds a listener.
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

    /// Removes a listener.
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

    /// Stops following when the time after the last listener is over. The caller drops the result
    /// when the state is unlocked, because it holds a watch.
    pub(super) fn stop_lingering(&mut self) -> Option<Followed> {
        let followed = self.followed.as_mut()?;
        followed.lingering = false;
        if followed.is_wanted() { None } else { self.stop_following() }
    }

    /// Drops what other nodes announced, because there is no listener any more.
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

    /// Returns whether a listener wants the watch that a task is opening. If not, the set follows
    /// nothing any more. The caller drops the second value when the state is unlocked.
    pub(super) fn go_on_opening(&mut self) -> (bool, Option<Followed>) {
        let given_up = self.followed.take_if(|followed| !followed.is_wanted());
        (self.followed.is_some(), given_up)
    }

    /// Begins a watch that was opened, and returns its generation. The caller asks the directory
    /// for its list next.
    pub(super) fn begin_watch(&mut self) -> Option<u64> {
        let followed = self.followed.as_mut()?;
        self.generation += 1;
        followed.begin();
        Some(self.generation)
    }

    /// Keeps the watch whose list the set has taken in. Returns false if the watch is not wanted,
    /// or not any more. The caller drops the other values when the state is unlocked.
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

    /// Returns whether a watch of that generation counts, and shows an entry of another node.
    pub(super) fn accepts(&self, generation: u64, node: NodeId) -> bool {
        self.generation == generation && node.process != self.node.process
    }

    /// Applies an entry of the watch, which this set [accepts](PresenceState::accepts).
    pub(super) fn apply(&mut self, entry: &MemberEntry) -> Work {
        let mut work = Work::default();
        if let Some(followed) = &mut self.followed {
            followed.apply(entry);
            self.show_if_due(&mut work);
        }
        work
    }

    /// Handles the end of a watch.
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

    /// Takes in the directory's list, which the node asked for while the watch of `generation` was
    /// open. With `complete`, an entry that is not listed is gone. Returns `None` if the watch has
    /// ended since.
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

    /// Forgets what expired nodes have announced.
    pub(super) fn expire(&mut self, dead: &HashSet<NodeId>) -> Work {
        let mut work = Work::default();
        if let Some(followed) = &mut self.followed {
            followed.forget(|node, _| dead.contains(&node));
            self.show_if_due(&mut work);
        }
        work
    }

    /// Takes the new id of this node, which has re-registered and has announced nothing under it.
    pub(super) fn re_register(&mut self, node: NodeId) -> Work {
        self.node = node;
        Work {
            announce: self.own.announce_again(),
            ..Work::default()
        }
    }

    /// Asks for a comparison with the directory. Without `now`, asks only if the last one was long
    /// ago.
    pub(super) fn compare_if_due(&mut self, now: bool) -> Work {
        let mut work = Work::default();
        if now || self.compared.elapsed() >= REFRESH_EVERY {
            self.compared = Instant::now();
            work.compare = true;
        }
        work
    }

    /// Begins a comparison. Returns `None` while the node announces something.
    pub(super) fn begin_comparison(&mut self) -> Option<Comparison> {
        Some(Comparison {
            round: self.own.quiet_round()?,
            generation: self.generation,
            listing: self.followed.as_mut().is_some_and(Followed::begin_listing),
        })
    }

    /// Takes in the directory's list for a comparison.
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

    /// Ends a comparison whose list does not come.
    pub(super) fn end_comparison(&mut self, comparison: &Comparison) {
        if comparison.listing
            && self.generation == comparison.generation
            && let Some(followed) = &mut self.followed
        {
            followed.end_listing();
        }
    }

    /// Returns the members of all nodes, if they are known.
    pub(super) fn members(&self) -> Option<Vec<Arc<Member>>> {
        let followed = self.followed.as_ref().filter(|followed| followed.is_whole())?;
        Some(followed.merged(&self.own))
    }
}
