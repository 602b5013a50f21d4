//! The tasks of this module keep a presence set and the directory in agreement.
//!
//! A healthy presence set has no task. A task runs only while it has work, and holds only a weak
//! handle across waits.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::lease::BoundedDirectory;
use super::set::PresenceSet;
use super::state::{PresenceState, Work};
use crate::broker::BrokerError;
use crate::directory::MemberEntry;
use crate::inbox::FeedSink;

/// Bounds how often a channel's changes are announced to other nodes.
const ANNOUNCE_EVERY: Duration = Duration::from_millis(100);
/// The node follows other nodes for this long without a listener.
const LINGER: Duration = Duration::from_secs(10);
/// Bounds the pauses between attempts to reach the directory.
pub(super) const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Starts the work that a change of the set's state requires.
pub(super) fn carry_out(set: &Arc<PresenceSet>, work: Work) {
    if work.wake {
        set.wake_listeners();
    }
    if let Some(due) = work.show_at {
        spawn(set, show(Arc::downgrade(set), due));
    }
    if work.depart {
        spawn(set, depart(Arc::downgrade(set)));
    }
    if work.announce {
        spawn(set, announce(Arc::downgrade(set)));
    }
    if let Some(pause) = work.follow {
        spawn(set, follow(Arc::downgrade(set), pause));
    }
    if work.linger {
        spawn(set, linger(Arc::downgrade(set)));
    }
    if work.compare {
        spawn(set, compare(Arc::downgrade(set)));
    }
}

/// Changes the set's state, and starts the work that the change requires.
pub(super) fn change(set: &Arc<PresenceSet>, change: impl FnOnce(&mut PresenceState) -> Work) {
    let work = set.change(change);
    carry_out(set, work);
}

fn spawn(set: &PresenceSet, task: impl Future<Output = ()> + Send + 'static) {
    if let Some(sets) = set.sets.upgrade() {
        sets.lease.runtime.spawn(task);
    }
}

fn forget_if_unused(set: &Arc<PresenceSet>) {
    if let Some(sets) = set.sets.upgrade() {
        sets.forget_if_unused(set);
    }
}

fn directory_of(set: &PresenceSet) -> Option<BoundedDirectory> {
    Some(set.sets.upgrade()?.lease.directory.clone())
}

/// Sends listeners the changes, at the time when they may receive the next ones.
async fn show(me: Weak<PresenceSet>, due: Instant) {
    sleep_until(due).await;
    if let Some(set) = me.upgrade() {
        change(&set, PresenceState::show);
    }
}

/// Ends each departing connection when its grace is over.
async fn depart(me: Weak<PresenceSet>) {
    loop {
        let Some(set) = me.upgrade() else { return };
        let (next, work) = set.change(PresenceState::depart);
        carry_out(&set, work);
        let Some(due) = next else {
            forget_if_unused(&set);
            return;
        };
        drop(set);
        sleep_until(due).await;
    }
}

/// Sends the directory this node's announcements until none is left.
async fn announce(me: Weak<PresenceSet>) {
    let mut backoff = BACKOFF.0;
    loop {
        if !lives(&me).await {
            return;
        }
        let Some(set) = me.upgrade() else { return };
        let Some((directory, entries)) = next_entries(&set) else {
            return;
        };
        if entries.is_empty() {
            forget_if_unused(&set);
            return;
        }
        let name = set.name.clone();
        drop(set);
        let answer = directory.set(&name, &entries).await;
        let Some(set) = me.upgrade() else { return };
        let pause = match answer {
            Ok(()) => {
                set.change(|state| state.own.announced(&entries));
                backoff = BACKOFF.0;
                ANNOUNCE_EVERY
            }
            Err(error) => {
                tracing::debug!(channel = %name, %error, "members cannot be announced yet");
                set.change(|state| state.own.not_announced(&entries));
                backoff = (backoff * 2).min(BACKOFF.1);
                let Some(sets) = set.sets.upgrade() else { return };
                sets.lease.jitter.spread(backoff)
            }
        };
        drop(set);
        sleep(pause).await;
    }
}

/// Waits until the node is registered in the directory. Returns false if the set or the node is
/// gone.
async fn lives(me: &Weak<PresenceSet>) -> bool {
    let Some(set) = me.upgrade() else { return false };
    let Some(sets) = set.sets.upgrade() else { return false };
    let mut lives = sets.lease.watch_life();
    drop((set, sets));
    lives.wait_for(|lives| *lives).await.is_ok()
}

/// Returns the entries to announce next, or `None` if the node has left the directory.
fn next_entries(set: &PresenceSet) -> Option<(BoundedDirectory, Vec<MemberEntry>)> {
    let sets = set.sets.upgrade()?;
    if sets.lease.is_over() {
        return None;
    }
    let entries = set.change(|state| state.own.next_entries(state.node, || sets.lease.stamp()));
    Some((sets.lease.directory.clone(), entries))
}

/// Opens the watch. Runs until the watch is open, or until there is no listener.
async fn follow(me: Weak<PresenceSet>, mut pause: Duration) {
    let mut backoff = BACKOFF.0;
    loop {
        sleep(pause).await;
        let Some(set) = me.upgrade() else { return };
        let (wanted, given_up) = set.change(PresenceState::go_on_opening);
        drop(given_up);
        if !wanted {
            forget_if_unused(&set);
            return;
        }
        let (Some(directory), name) = (directory_of(&set), set.name.clone()) else {
            return;
        };
        drop(set);
        match open_watch(&me, &directory).await {
            Ok(true) => return,
            Ok(false) => backoff = BACKOFF.0,
            Err(error) => tracing::debug!(channel = %name, %error, "other nodes' members are out of reach"),
        }
        let Some(sets) = me.upgrade().and_then(|set| set.sets.upgrade()) else {
            return;
        };
        pause = sets.lease.jitter.spread(backoff);
        backoff = (backoff * 2).min(BACKOFF.1);
    }
}

/// Opens the watch, then lists the members: an entry that is set between the two is in both.
/// Returns false if the watch ended before that, or is no longer wanted.
async fn open_watch(me: &Weak<PresenceSet>, directory: &BoundedDirectory) -> Result<bool, BrokerError> {
    let Some(name) = me.upgrade().map(|set| set.name.clone()) else {
        return Ok(true);
    };
    let watch = directory.watch(&name).await?;
    let Some(set) = me.upgrade() else { return Ok(true) };
    let Some(generation) = set.change(PresenceState::begin_watch) else {
        return Ok(true);
    };
    watch.attach(Arc::new(LiveWatch {
        set: me.clone(),
        generation,
    }));
    drop(set);
    let entries = directory.list(&name).await?;
    let Some(set) = me.upgrade() else { return Ok(true) };
    let Some(sets) = set.sets.upgrade() else { return Ok(true) };
    let complete = sets.lease.is_settled();
    sets.lease.note_nodes(entries.iter().map(|entry| entry.node));
    drop(sets);
    let taken = set.change(|state| state.take_list(generation, &entries, complete));
    let Some(work) = taken else { return Ok(false) };
    carry_out(&set, work);
    let (kept, watch, followed) = set.change(|state| state.keep_watch(generation, watch));
    drop((watch, followed));
    Ok(kept)
}

/// Stops following other nodes when there has been no listener for a while.
async fn linger(me: Weak<PresenceSet>) {
    sleep(LINGER).await;
    let Some(set) = me.upgrade() else { return };
    if set.change(PresenceState::stop_lingering).is_some() {
        forget_if_unused(&set);
    }
}

/// Lists the channel, and corrects every difference between this node and the directory.
async fn compare(me: Weak<PresenceSet>) {
    let Some(set) = me.upgrade() else { return };
    let Some(directory) = directory_of(&set) else { return };
    let Some(comparison) = set.change(PresenceState::begin_comparison) else {
        return;
    };
    let name = set.name.clone();
    drop(set);
    let answer = directory.list(&name).await;
    let Some(set) = me.upgrade() else { return };
    match answer {
        Ok(entries) => {
            if let Some(sets) = set.sets.upgrade()
                && comparison.listing
            {
                sets.lease.note_nodes(entries.iter().map(|entry| entry.node));
            }
            change(&set, |state| state.compare(&comparison, &entries));
        }
        Err(error) => {
            tracing::debug!(channel = %name, %error, "the directory cannot be compared with");
            set.change(|state| state.end_comparison(&comparison));
        }
    }
}

/// A watch delivers its entries to the presence set through this type.
struct LiveWatch {
    set: Weak<PresenceSet>,
    generation: u64,
}

impl FeedSink<MemberEntry> for LiveWatch {
    fn take(&self, entry: MemberEntry) {
        let Some(set) = self.set.upgrade() else { return };
        let sets = set.sets.upgrade();
        change(&set, |state| {
            if !state.accepts(self.generation, entry.node) {
                return Work::default();
            }
            if let Some(sets) = &sets {
                sets.lease.note_nodes([entry.node]);
            }
            state.apply(&entry)
        });
    }

    fn ended(&self) {
        if let Some(set) = self.set.upgrade() {
            change(&set, |state| state.watch_ended(self.generation));
        }
    }
}
