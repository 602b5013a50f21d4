//! A ring holds the newest entries of a channel, in their order.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::batch::Batches;
use super::entry::{Collected, Entry, Item};
use super::latest::Latest;
use crate::broker::{PageLimit, Replay};
use crate::event::{Event, Position};
use crate::format::GapReason;
use crate::ring_memory::MemoryShare;
use crate::rule::{Delivery, Limits, ReplayOnSubscribe, Rule};
use crate::shrink::shrink;

/// Bounds the bytes that one read takes, unless a single event is larger. So it bounds what a
/// connection holds.
pub(crate) const READ_BYTES: usize = 64 << 10;

/// A ring holds entries and the figures that it keeps of them together.
///
/// Indexes count from zero for as long as the log is open, and the ring never reuses one. Positions
/// are the broker's.
pub(super) struct Ring {
    entries: VecDeque<Arc<Entry>>,
    /// Holds the index of `entries[0]`.
    first: u64,
    /// Holds the position before `entries[0]`. A cursor that equals it has missed nothing of the
    /// ring.
    log_start: Position,
    head: Position,
    /// Holds the position that the next event must name as its previous: the head, except after a
    /// lost tail.
    expected_previous: Position,
    bytes: usize,
    /// Counts the gap entries in the ring. While there are none, positions increase along the ring.
    gaps: usize,
    /// Holds the index of the end event.
    end: Option<u64>,
    /// Holds the newest event of each key, where the rule needs it.
    latest: Option<Latest>,
    /// Says whether listeners receive only the newest event of each key.
    conflates: bool,
    /// Says whether the bound of bytes has taken away what history may still hold.
    cut_short: bool,
    /// Says whether the channel has never had an event, as far as this node knows.
    unpublished: bool,
    pub(super) batches: Batches,
    max_events: usize,
    max_bytes: usize,
    /// Counts this ring in the node's memory of rings.
    share: MemoryShare,
}

/// A listener begins, or goes on, at this place.
pub(crate) struct Start {
    /// The listener receives these entries first.
    pub(crate) first: Vec<Arc<Entry>>,
    /// The listener then reads the ring from this index on.
    pub(crate) next: u64,
    pub(crate) cursor: Position,
}

/// A log gives this answer when a caller looks up a cursor.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// The cursor's listener goes on at this index.
    At(u64),
    /// The cursor is beyond the head.
    Ahead,
    /// This node cannot tell, so the caller must ask the broker.
    Unknown,
}

/// The log gives this answer when a caller offers it an event.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Appended {
    Yes,
    /// The log has the event, or stands behind it.
    Known,
    /// The event's `previous` is not where the log stands.
    Broken,
}

impl Ring {
    /// Makes a ring that begins with the newest page of the channel's history.
    pub(super) fn new(rule: &Rule, limits: &Limits, share: MemoryShare, history: Replay) -> Self {
        let keeps_latest = rule.delivery == Delivery::Latest || rule.replay == ReplayOnSubscribe::Last;
        let log_start = history.goes_on_after();
        let mut ring = Self {
            entries: VecDeque::new(),
            first: 0,
            log_start,
            head: log_start,
            expected_previous: log_start,
            bytes: 0,
            gaps: 0,
            end: None,
            latest: keeps_latest.then(Latest::default),
            conflates: rule.delivery == Delivery::Latest,
            cut_short: false,
            unpublished: true,
            batches: Batches::default(),
            max_events: rule.history.events.max(limits.ring_events).max(1),
            max_bytes: limits.ring_bytes,
            share,
        };
        let end = history.lost_end();
        for event in history.events.into_iter().chain(end) {
            ring.push(Entry::event(event));
        }
        ring.unpublished &= history.complete;
        (ring.head, ring.expected_previous) = (history.head, history.head);
        ring
    }

    fn push(&mut self, entry: Arc<Entry>) {
        let index = self.end_index();
        self.unpublished = false;
        (self.head, self.expected_previous) = (entry.position(), entry.expected_previous());
        self.bytes += entry.cost();
        // A broker that has forgotten the channel and its end begins the channel anew.
        self.end = entry.is_end().then_some(index);
        match &entry.item {
            Item::Event(event) if event.is_end() => {}
            Item::Hidden(_) => {}
            Item::Event(event) => {
                if let Some(latest) = &mut self.latest {
                    latest.put(event.message.conflation_key(), index, &entry, self.first, self.max_bytes);
                }
            }
            Item::Gap { .. } => self.gaps += 1,
        }
        self.entries.push_back(entry);
        // No listener stands before the joined runs any more, unless it is slow.
        self.batches.clear();
        while self.entries.len() > self.max_events || (self.bytes > self.max_bytes && self.entries.len() > 1) {
            self.cut_short |= self.entries.len() <= self.max_events;
            self.pop();
        }
        self.count();
    }

    fn pop(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.log_start = entry.expected_previous();
            self.first += 1;
            self.bytes -= entry.cost();
            self.gaps -= usize::from(entry.is_gap());
            if let Some(latest) = &mut self.latest {
                latest.left_ring(&entry);
            }
        }
    }

    /// Reports the bytes of this ring to the node's memory of rings.
    fn count(&mut self) {
        let beyond_ring = self.latest.as_ref().map_or(0, Latest::bytes_beyond_ring);
        self.share.set(self.bytes + beyond_ring);
    }

    /// Puts an event at the end.
    pub(super) fn append(&mut self, event: Arc<Event>) -> Appended {
        // The chain decides, not the head. A store that came back behind goes on below what
        // listeners have had. After a gap the head may be above the chain. Then a lost event may
        // come again, and the ring has it.
        if event.position <= self.expected_previous || (event.position <= self.head && self.has(&event)) {
            return Appended::Known;
        }
        // A `previous` of zero says that the feed is whole, but the broker has forgotten what came
        // before.
        if event.previous != self.expected_previous && event.previous != Position::ZERO {
            return Appended::Broken;
        }
        self.push(Entry::event(event));
        Appended::Yes
    }

    /// Announces that events after the head are lost, or the head itself. The log goes on after
    /// `expected_previous`.
    pub(super) fn append_gap(&mut self, expected_previous: Position, reason: GapReason) {
        self.push(Entry::gap(Some(self.head), expected_previous, reason));
        let end = self.end_index();
        if let Some(latest) = &mut self.latest {
            // A lost event may be newer than what the ring remembers of its key.
            latest.lost_before(end);
        }
    }

    /// Drops entries that are older than `age`, and the joined runs, which only sped up reading.
    pub(super) fn trim(&mut self, age: Duration) {
        self.batches.clear();
        let is_old = |entry: &Arc<Entry>| entry.at.elapsed() > age;
        // The end stays, because a new listener must receive it.
        while self.entries.front().is_some_and(|entry| is_old(entry) && !entry.is_end()) {
            self.pop();
        }
        self.shrink();
        self.count();
    }

    /// Drops the older half. One event stays.
    pub(super) fn drop_older_half(&mut self) {
        let keys = self.latest.as_ref().map_or(0, Latest::bytes);
        self.drop_oldest(self.bytes / 2, 1, keys / 2);
    }

    /// Drops everything except the end of the channel.
    pub(super) fn drop_all(&mut self) {
        self.drop_oldest(0, 0, 0);
    }

    fn drop_oldest(&mut self, bytes: usize, count: usize, bytes_of_keys: usize) {
        self.batches.clear();
        // The end stays, because a listener that comes later must receive it.
        while self.bytes > bytes && self.entries.len() > count && self.entries.front().is_some_and(|entry| !entry.is_end()) {
            self.cut_short = true;
            self.pop();
        }
        if let Some(latest) = &mut self.latest {
            latest.drop_oldest(bytes_of_keys, count, self.first);
        }
        self.shrink();
        self.count();
    }

    /// Gives back memory that a crowd of events needed.
    fn shrink(&mut self) {
        shrink(&mut self.entries);
        if let Some(latest) = &mut self.latest {
            latest.shrink();
        }
    }

    pub(super) fn head(&self) -> Position {
        self.head
    }

    pub(super) fn expected_previous(&self) -> Position {
        self.expected_previous
    }

    pub(super) fn is_unpublished(&self) -> bool {
        self.unpublished
    }

    /// Returns when the newest entry came.
    pub(super) fn newest_at(&self) -> Option<Instant> {
        self.entries.back().map(|entry| entry.at)
    }

    /// Returns the number of entries, their estimated bytes, and whether the channel has ended.
    pub(super) fn size(&self) -> (usize, usize, bool) {
        (self.entries.len(), self.bytes, self.end.is_some())
    }

    /// Returns the estimated bytes, also of the newest event of each key where the ring keeps it
    /// longer.
    pub(super) fn held(&self) -> usize {
        self.share.counted()
    }

    /// Returns the index after the last one.
    pub(super) fn end_index(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// Returns the index where a new listener begins to read, of what is `visible`. It is never
    /// past the end event: each listener must receive the end of a channel, however late the
    /// listener comes.
    fn before_end(&self, visible: u64) -> u64 {
        self.end.unwrap_or(u64::MAX).min(visible).max(self.first)
    }

    fn offset(&self, index: u64) -> Option<usize> {
        usize::try_from(index.checked_sub(self.first)?).ok()
    }

    /// Returns the position of a listener that has had everything before `index`.
    fn position_before(&self, index: u64) -> Position {
        match self.offset(index) {
            None | Some(0) => self.log_start,
            Some(offset) => self
                .entries
                .get(offset - 1)
                .map_or(self.expected_previous, |entry| entry.expected_previous()),
        }
    }

    /// Finds the index after `cursor`. The search compares for equality, not for a range: a
    /// position that lies within the ring and is not there was lost.
    fn index_after(&self, cursor: Position) -> Option<u64> {
        if cursor == self.head && cursor == self.expected_previous {
            return Some(self.end_index());
        }
        let found = if self.gaps == 0 {
            self.entries.binary_search_by_key(&cursor, |entry| entry.position()).ok()
        } else {
            self.entries.iter().rposition(|entry| entry.is_at(cursor))
        };
        match found {
            Some(offset) => Some(self.first + offset as u64 + 1),
            None => (cursor == self.log_start).then_some(self.first),
        }
    }

    /// Returns whether this very event stands in the ring.
    pub(super) fn has(&self, event: &Event) -> bool {
        let is = |entry: &Arc<Entry>| {
            entry
                .as_event()
                .is_some_and(|other| other.position == event.position && other.previous == event.previous)
        };
        if self.gaps > 0 {
            return self.entries.iter().any(is);
        }
        let found = self.entries.binary_search_by_key(&event.position, |entry| entry.position());
        found.is_ok_and(|offset| self.entries.get(offset).is_some_and(is))
    }

    /// Finds where a listener begins that has everything up to `cursor`.
    pub(super) fn find(&self, cursor: Position) -> Found {
        match self.index_after(cursor) {
            Some(index) => Found::At(index),
            None if cursor > self.head => Found::Ahead,
            None => Found::Unknown,
        }
    }

    /// Returns where a listener without a cursor begins, of what is `visible`. Returns `None` if
    /// the ring holds less than the listener must receive, so that the caller must ask history.
    pub(super) fn begin_fresh(&self, rule: &Rule, visible: u64) -> Option<Start> {
        let next = self.before_end(visible);
        Some(match rule.replay {
            ReplayOnSubscribe::None => Start {
                first: Vec::new(),
                next,
                cursor: self.position_before(next),
            },
            ReplayOnSubscribe::All if self.cut_short && self.entries.len() < rule.history.events => return None,
            ReplayOnSubscribe::All => Start {
                first: Vec::new(),
                next: self.first,
                cursor: self.log_start,
            },
            ReplayOnSubscribe::Last => {
                let latest = self.latest.as_ref();
                if latest.is_some_and(Latest::is_cut_short) {
                    return None;
                }
                let first = latest.map(|latest| latest.between(0, next)).unwrap_or_default();
                // A listener that is cut off before it has the last of these must get them again.
                // Its cursor is zero, because it has nothing yet.
                let cursor = match first.is_empty() {
                    true => self.position_before(next),
                    false => Position::ZERO,
                };
                Start { first, next, cursor }
            }
        })
    }

    /// Returns the newest event of each key that a listener at `cursor` and `index` has not had.
    /// Returns `None` if the channel is not conflated, or if the ring does not remember all of
    /// them.
    pub(super) fn catch_up_latest(&self, cursor: Position, index: u64, visible: u64) -> Option<Start> {
        let latest = self.latest.as_ref();
        let latest = latest.filter(|latest| self.conflates && latest.is_whole_from(index))?;
        let next = self.before_end(visible);
        Some(Start {
            first: latest.between(index, next),
            next,
            cursor,
        })
    }

    /// Returns the index and the position where a listener goes on that gives up what it missed.
    pub(super) fn skip(&self, visible: u64) -> (u64, Position) {
        let index = visible.max(self.first);
        (index, self.position_before(index))
    }

    /// Returns the beginning of the ring, if that is behind this position, and the position before
    /// it.
    pub(super) fn begin_behind(&self, position: Position) -> Option<(u64, Position)> {
        (self.log_start > position).then_some((self.first, self.log_start))
    }

    /// Returns a page of the events after `after` up to `through`, and whether the limit cuts it
    /// short. Returns `None` if the ring does not hold all of these, without a hole.
    pub(super) fn page(&self, after: Position, through: Position, limit: PageLimit) -> Option<(Vec<Arc<Event>>, bool)> {
        let (start, end) = (self.index_after(after)?, self.index_after(through)?);
        // Behind a gap positions may go back, so `through` may stand before `after`.
        if end < start {
            return None;
        }
        let wanted = self.entries.range(self.offset(start)?..self.offset(end)?);
        let mut previous = after;
        let mut events = Vec::new();
        let mut rest = limit.bytes;
        for entry in wanted {
            let event = entry.as_event()?;
            if event.previous != previous {
                return None;
            }
            let weight = event.message.weight();
            if events.len() >= limit.events || (weight > rest && !events.is_empty()) {
                return Some((events, true));
            }
            rest = rest.saturating_sub(weight);
            previous = event.position;
            events.push(event.clone());
        }
        Some((events, false))
    }

    /// Returns the entry that a listener at `index` receives first, and the entry's index.
    pub(super) fn next_sent(&self, index: u64) -> Option<(u64, Arc<Entry>)> {
        let rest = self.entries.range(self.offset(index)?.min(self.entries.len())..);
        // The listener does not receive an event if a newer one of the same key stands behind a
        // gap.
        let left_out = |entry: &Entry| entry.is_hidden() || self.conflates && entry.is_superseded_before(u64::MAX);
        let (index, entry) = (index..).zip(rest).find(|(_, entry)| !left_out(entry))?;
        Some((index, entry.clone()))
    }

    /// Returns whether the channel has ended and a listener at `index` has had all of it.
    pub(super) fn is_over(&self, index: u64) -> bool {
        self.end.is_some() && index >= self.end_index()
    }

    /// Collects the entries from `from` that listeners receive, up to `visible` or [`READ_BYTES`].
    /// Returns `None` if `from` is gone.
    pub(super) fn collect(&self, from: u64, visible: u64) -> Option<Collected> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        let mut next = from;
        for entry in self.entries.range(self.offset(from)?..) {
            if next >= visible || bytes >= READ_BYTES {
                break;
            }
            next += 1;
            // Only a visible event supersedes another. Otherwise listeners would never receive a
            // key that changes faster than the rate.
            if entry.is_hidden() || self.conflates && entry.is_superseded_before(visible) {
                continue;
            }
            bytes += entry.weight();
            entries.push(entry.clone());
        }
        Some(Collected {
            entries,
            next,
            expected_previous: self.position_before(next),
        })
    }

    /// Returns the cost of everything that the ring holds, counted anew.
    #[cfg(all(test, not(loom)))]
    pub(super) fn recount(&self) -> usize {
        let latest = self.latest.iter().flat_map(Latest::entries);
        let held: std::collections::HashMap<_, _> = self
            .entries
            .iter()
            .chain(latest)
            .map(|entry| (Arc::as_ptr(entry), entry.cost()))
            .collect();
        held.values().sum()
    }
}
