//! A log is one channel on this node: a ring of recent events, the listeners that read it, and
//! their wake.
//!
//! The hub's follower appends, and sessions read. Neither side waits for the other. A read takes
//! the events that are there. A listener that was too slow finds that its index has fallen off the
//! ring.

mod batch;
mod entry;
mod latest;
mod listeners;
#[cfg(all(test, loom))]
mod loom_tests;
mod ring;
#[cfg(all(test, not(loom)))]
mod tests;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::Instant;

pub(crate) use self::batch::Batch;
pub(crate) use self::entry::{Collected, Entry, Item};
use self::listeners::Listeners;
use self::ring::Ring;
pub(crate) use self::ring::{Appended, Found, READ_BYTES, Start};
use crate::broker::{PageLimit, Replay};
use crate::event::{ChannelName, Event, Position};
use crate::format::{GapReason, MAX_FORMATS};
use crate::format_slot::FormatSlot;
use crate::observe::RuleMetrics;
use crate::ring_memory::{CountedRing, RingMemory};
use crate::rule::{Limits, Rule};
use crate::session_handle::SessionHandle;
use crate::sync::{AtomicU64, Mutex, lock};

/// Bounds how long a log stays open whose channel has never had an event. A client can name as many
/// such channels as it likes.
pub(crate) const UNPUBLISHED_LINGER: Duration = Duration::from_secs(5);

/// A log is one channel on this node.
pub(crate) struct Log {
    pub(crate) name: ChannelName,
    pub(crate) rule: Arc<Rule>,
    /// Holds the figures of the rule.
    pub(crate) figures: Arc<RuleMetrics>,
    /// Holds one past the last index that listeners may read. It lags behind the ring's end only
    /// where the rule has a rate.
    visible: AtomicU64,
    ring: Mutex<Ring>,
    listeners: Listeners,
    /// Counts the memory of all rings of the node.
    memory: Arc<RingMemory>,
}

/// A read finds nothing new, finds entries, or fails because its index is gone.
pub(crate) enum Read<T> {
    Nothing,
    Some(T),
    /// The index is no longer in the ring.
    FellOff,
}

impl Log {
    /// Opens a log that begins with the newest page of the channel's history. Returns `None` if
    /// events are missing in that page: a caller of this log would miss them silently.
    pub(crate) fn open(
        name: ChannelName,
        rule: Arc<Rule>,
        figures: Arc<RuleMetrics>,
        limits: &Limits,
        memory: &Arc<RingMemory>,
        history: Replay,
    ) -> Option<Arc<Self>> {
        if history.more || history.is_torn() {
            return None;
        }
        let log = Arc::new_cyclic(|me: &Weak<Self>| {
            let ring = Ring::new(&rule, limits, memory.share(me.clone()), history);
            Self {
                visible: AtomicU64::new(ring.end_index()),
                ring: Mutex::new(ring),
                listeners: Listeners::new(),
                memory: memory.clone(),
                name,
                rule,
                figures,
            }
        });
        memory.make_room();
        Some(log)
    }

    /// Puts an event at the end of the ring. The caller wakes the listeners with [`Log::show`].
    pub(crate) fn append(&self, event: Arc<Event>) -> Appended {
        let appended = lock(&self.ring).append(event);
        if appended == Appended::Yes {
            self.memory.make_room();
        }
        appended
    }

    /// Returns whether this same event is in the ring.
    pub(crate) fn has(&self, event: &Event) -> bool {
        lock(&self.ring).has(event)
    }

    /// Announces to all listeners that events after the head are lost, or the head itself. The log
    /// continues after `expected_previous`.
    pub(crate) fn append_gap(&self, expected_previous: Position, reason: GapReason) {
        lock(&self.ring).append_gap(expected_previous, reason);
    }

    /// Returns the position of the newest event that this node has.
    pub(crate) fn head(&self) -> Position {
        lock(&self.ring).head()
    }

    /// Returns the position after which the broker is asked for missing events.
    pub(crate) fn expected_previous(&self) -> Position {
        lock(&self.ring).expected_previous()
    }

    /// Lets listeners see everything that was appended, and wakes those that sleep.
    ///
    /// Wakes no listener if all see everything already. A listener of many channels looks at all of
    /// them when it wakes, and most logs that heal have nothing new.
    pub(crate) fn show(&self) {
        {
            let ring = lock(&self.ring);
            let end = ring.end_index();
            // The call that changed the value wakes the listeners. Changes are made under the
            // ring's lock.
            if self.visible.load(Ordering::Relaxed) == end {
                return;
            }
            self.visible.store(end, Ordering::Release);
        }
        self.listeners.wake();
    }

    /// Returns one past the last index that listeners may read.
    fn visible(&self) -> u64 {
        self.visible.load(Ordering::Acquire)
    }

    /// Registers a listener: from now on, appends wake it. `format` is the index of its format, for
    /// metrics. Returns `None` if the log is closed; the caller then opens it again.
    pub(crate) fn register(self: &Arc<Self>, listener: Arc<SessionHandle>, format: usize) -> Option<Registration> {
        let key = self.listeners.register(listener, format, &self.figures)?;
        Some(Registration { log: self.clone(), key })
    }

    /// Counts the listeners by the index of their format.
    pub(crate) fn listeners(&self) -> [usize; MAX_FORMATS] {
        self.listeners.count()
    }

    /// Returns whether there is no listener.
    pub(crate) fn is_unused(&self) -> bool {
        self.listeners.is_empty()
    }

    /// Returns whether the channel has never had an event, as far as this node knows.
    pub(crate) fn is_unpublished(&self) -> bool {
        lock(&self.ring).is_unpublished()
    }

    /// Closes the log if it has had no listeners for `linger`, or for [`UNPUBLISHED_LINGER`] if the
    /// channel has never had an event. A closed log registers no listener.
    pub(crate) fn close_if_unused(&self, linger: Duration) -> bool {
        let linger = match self.is_unpublished() {
            true => linger.min(UNPUBLISHED_LINGER),
            false => linger,
        };
        self.listeners.close_if_empty(linger)
    }

    /// Drops the entries that are older than the rule's age, and the batches that only sped up
    /// reading. Listeners that stand there have read them or are very slow.
    pub(crate) fn trim(&self) {
        lock(&self.ring).trim(self.rule.history.age);
    }

    /// Returns the number of entries and estimated bytes in the ring, and whether the channel has
    /// ended.
    pub(crate) fn size(&self) -> (usize, usize, bool) {
        lock(&self.ring).size()
    }

    /// Estimates the bytes of the ring, and of the newest event of each key where that stays
    /// longer.
    pub(crate) fn held(&self) -> usize {
        lock(&self.ring).held()
    }

    /// Finds where a listener without a cursor begins. Returns `None` if the ring holds less than
    /// the listener is sent; the caller then asks history.
    pub(crate) fn begin_fresh(&self) -> Option<Start> {
        let ring = lock(&self.ring);
        ring.begin_fresh(&self.rule, self.visible())
    }

    /// Finds where a listener begins that has everything up to `cursor`.
    pub(crate) fn find(&self, cursor: Position) -> Found {
        lock(&self.ring).find(cursor)
    }

    /// Returns a page of the events after `after` up to `through`, and whether the limit cuts it
    /// short. Returns `None` if the ring does not hold all of these without a hole.
    pub(crate) fn page(&self, after: Position, through: Position, limit: PageLimit) -> Option<(Vec<Arc<Event>>, bool)> {
        lock(&self.ring).page(after, through, limit)
    }

    /// Finds the first entry that a listener at `index` is sent, and its index.
    pub(crate) fn next_sent(&self, index: u64) -> Option<(u64, Arc<Entry>)> {
        lock(&self.ring).next_sent(index)
    }

    /// Returns whether the channel has ended and a listener at `index` has had all of it.
    pub(crate) fn is_over(&self, index: u64) -> bool {
        lock(&self.ring).is_over(index)
    }

    /// Returns the index and the position at which a listener continues that gives up what it
    /// missed.
    pub(crate) fn skip(&self) -> (u64, Position) {
        let ring = lock(&self.ring);
        ring.skip(self.visible())
    }

    /// Returns the first index of the ring and the position before it, if the ring begins behind
    /// `position`.
    pub(crate) fn begin_behind(&self, position: Position) -> Option<(u64, Position)> {
        lock(&self.ring).begin_behind(position)
    }

    /// Collects, for conflated channels, the newest event of each key that a listener has not had.
    /// The listener stands at `cursor` and `index`. Returns `None` unless the log remembers all of
    /// these events.
    pub(crate) fn catch_up_latest(&self, cursor: Position, index: u64) -> Option<Start> {
        let ring = lock(&self.ring);
        ring.catch_up_latest(cursor, index, self.visible())
    }

    /// Returns whether a listener at `from` has had everything that may be read.
    pub(crate) fn is_read(&self, from: u64) -> bool {
        from >= self.visible()
    }

    /// Returns the entries that a listener at `from` has not had, as one piece of bytes. Listeners
    /// at the same index share it.
    pub(crate) fn read_batch(&self, from: u64, slot: &FormatSlot) -> Read<Batch> {
        let visible = self.visible();
        if from >= visible {
            return Read::Nothing;
        }
        let collected = {
            let ring = lock(&self.ring);
            if let Some(batch) = ring.batches.get(slot.index, from, visible) {
                return Read::Some(batch);
            }
            match ring.collect(from, visible) {
                Some(found) => found,
                None => return Read::FellOff,
            }
        };
        // Encoding and joining happen outside the lock: a large event must not hold up the
        // publisher.
        let batch = Batch::join(&collected, &self.name, slot);
        if batch.events > 0 {
            lock(&self.ring).batches.put(slot.index, from, visible, batch.clone());
        }
        Read::Some(batch)
    }

    /// Returns the entries that a listener at `from` has not had, one by one.
    pub(crate) fn read_entries(&self, from: u64) -> Read<Collected> {
        let visible = self.visible();
        if from >= visible {
            return Read::Nothing;
        }
        match lock(&self.ring).collect(from, visible) {
            Some(found) => Read::Some(found),
            None => Read::FellOff,
        }
    }
}

impl CountedRing for Log {
    fn is_unused(&self) -> bool {
        self.is_unused()
    }

    fn held(&self) -> usize {
        self.held()
    }

    fn newest_at(&self) -> Option<Instant> {
        lock(&self.ring).newest_at()
    }

    fn shrink(&self) {
        lock(&self.ring).drop_older_half();
    }

    fn empty(&self) {
        lock(&self.ring).drop_all();
    }
}

/// Appends wake a registered listener. Dropping the registration ends that.
pub(crate) struct Registration {
    pub(crate) log: Arc<Log>,
    key: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.log.listeners.deregister(self.key, &self.log.figures);
    }
}
