//! One channel on this node: a ring of recent events, the listeners that read it, and the wake.
//!
//! The hub's feeder appends, sessions read. Nobody waits here for anybody: a read takes what there is, and a listener that was too slow finds
//! that its place has fallen off the ring.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use slab::Slab;
use tokio::time::Instant;

use crate::bell::Bell;
use crate::broker::{Publish, Replay};
use crate::event::{ChannelName, Event, Position};
use crate::metrics::WireMetrics;
use crate::rule::{Delivery, Limits, ReplayOnSubscribe, Rule};
use crate::wire::{Gap, GapReason, Notice, Wire};

/// How many wires a hub can have. Each entry of a ring has a slot for each.
pub(crate) const MAX_WIRES: usize = 4;

/// How much one read takes at most, unless a single event is larger. Bounds what a connection holds.
pub(crate) const READ_BYTES: usize = 64 << 10;

/// How many keys "the newest of each key" remembers, within the ring's bound of bytes; beyond that the oldest is forgotten.
const MAX_KEYS: usize = 10_000;

/// What an entry costs besides its payload: the entry, its slots, names.
const ENTRY_COST: usize = 320;

/// A wire that is in use on this node.
pub(crate) struct WireSlot {
    pub(crate) index: usize,
    pub(crate) wire: Arc<dyn Wire>,
    pub(crate) metrics: WireMetrics,
}

/// One place in a ring: an event, or an announced loss.
pub(crate) struct Entry {
    pub(crate) item: Item,
    pub(crate) at: Instant,
    /// The place of the newer event with the same key; [`u64::MAX`]: there is none.
    superseded_by: AtomicU64,
    encoded: [OnceLock<Bytes>; MAX_WIRES],
}

pub(crate) enum Item {
    Event(Arc<Event>),
    /// What its listeners are told, and the position that the next event names as its previous. After a lost tail that lies behind what
    /// listeners have had; the cursor they are given does not go back, or a node that does not know of the loss yet would send them the lost
    /// events once more.
    Gap {
        gap: Gap,
        link: Position,
    },
}

impl Entry {
    pub(crate) fn new(item: Item) -> Arc<Self> {
        Arc::new(Self {
            item,
            at: Instant::now(),
            superseded_by: AtomicU64::new(u64::MAX),
            encoded: Default::default(),
        })
    }

    /// Where a listener stands that has been given this.
    pub(crate) fn position(&self) -> Position {
        match &self.item {
            Item::Event(event) => event.position,
            Item::Gap { gap, .. } => gap.cursor,
        }
    }

    /// A gap that `after` stands before, in a stream that goes on after `link`.
    pub(crate) fn gap(after: Option<Position>, link: Position, reason: GapReason) -> Arc<Self> {
        let cursor = match reason {
            // A position that was never given: nothing has been seen up to there.
            GapReason::UnknownPosition => link,
            _ => after.map_or(link, |after| after.max(link)),
        };
        Self::new(Item::Gap {
            gap: Gap { after, cursor, reason },
            link,
        })
    }

    /// The position that the next event names as its previous.
    pub(crate) fn link(&self) -> Position {
        match &self.item {
            Item::Event(event) => event.position,
            Item::Gap { link, .. } => *link,
        }
    }

    /// Whether a listener with this cursor goes on behind this entry. Not behind a gap whose cursor stands for lost events: whoever comes with it may
    /// not have been told.
    fn is_at(&self, cursor: Position) -> bool {
        self.position() == cursor && self.link() == cursor
    }

    pub(crate) fn is_end(&self) -> bool {
        matches!(&self.item, Item::Event(event) if event.is_end())
    }

    /// The bytes for the socket: made once per wire, whoever asks first.
    pub(crate) fn bytes(&self, channel: &ChannelName, slot: &WireSlot) -> &Bytes {
        self.encoded[slot.index].get_or_init(|| match &self.item {
            Item::Event(event) if event.is_end() => slot.wire.notice(&Notice::End {
                channel,
                cursor: event.position,
                stamp: None,
            }),
            Item::Event(event) => {
                slot.metrics.encodes.inc();
                slot.wire.event(channel, event)
            }
            Item::Gap { gap, .. } => slot.wire.notice(&Notice::Gap {
                channel,
                gap,
                stamp: None,
            }),
        })
    }

    /// What it costs to keep, with room for its bytes on two wires.
    fn cost(&self) -> usize {
        match &self.item {
            Item::Event(event) => ENTRY_COST + 3 * event.message.weight(),
            Item::Gap { .. } => ENTRY_COST,
        }
    }
}

/// One channel on this node.
pub(crate) struct Log {
    pub(crate) name: ChannelName,
    pub(crate) rule: Arc<Rule>,
    /// One past the last place that listeners may read. Lags behind the ring's end only where the rule has a rate.
    visible: AtomicU64,
    ring: Mutex<Ring>,
    seats: Mutex<Seats>,
    max_events: usize,
    max_bytes: usize,
}

/// Places are counted from zero for as long as the log is open, and never reused; positions are the broker's.
struct Ring {
    entries: VecDeque<Arc<Entry>>,
    /// The place of `entries[0]`.
    first: u64,
    /// The position before `entries[0]`: a cursor that equals it has missed nothing of the ring.
    floor: Position,
    head: Position,
    /// What the next event must name as its previous: the head, except after a lost tail.
    link: Position,
    bytes: usize,
    /// Gap entries in the ring. While there are none, positions increase along the ring.
    gaps: usize,
    /// The place of the end event.
    end: Option<u64>,
    /// The newest event of each key, where the rule needs it.
    latest: Option<Latest>,
    /// Whether the bound of bytes has taken away what history may still hold.
    cut_short: bool,
    /// The last run of entries that was joined for each wire: listeners stand at the same place most of the time.
    batches: [Option<(u64, u64, Batch)>; MAX_WIRES],
}

#[derive(Default)]
struct Latest {
    by_key: HashMap<Arc<str>, (u64, Arc<Entry>)>,
    /// Oldest first, every event that `by_key` has, and some that newer ones of their key have replaced.
    order: VecDeque<(u64, Arc<str>)>,
    bytes: usize,
    /// Everything before this place may have been forgotten: by the bound, or because the log opened later.
    whole_from: u64,
}

#[derive(Default)]
struct Seats {
    bells: Slab<(Arc<Bell>, &'static str)>,
    closed: bool,
    empty_since: Option<Instant>,
}

/// Several events as one piece of bytes.
#[derive(Clone)]
pub(crate) struct Batch {
    pub(crate) bytes: Bytes,
    /// The place after the last one looked at.
    pub(crate) next: u64,
    pub(crate) cursor: Position,
    pub(crate) link: Position,
    pub(crate) events: u64,
    pub(crate) oldest: Instant,
    pub(crate) ended: bool,
    /// The last gap that stands in it.
    pub(crate) gap: Option<GapReason>,
}

/// What a read found.
pub(crate) enum Read<T> {
    Nothing,
    Some(T),
    /// The place is no longer in the ring.
    FellOff,
}

/// Where a listener begins.
pub(crate) struct Place {
    pub(crate) next: u64,
    pub(crate) cursor: Position,
    /// To be sent first.
    pub(crate) first: Vec<Arc<Entry>>,
}

/// What a log knows of a cursor.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Its listener goes on at this place.
    At(u64),
    /// It is beyond the head.
    Ahead,
    /// This node cannot tell: ask the broker.
    Unknown,
}

/// What became of an event that was offered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Appended {
    Yes,
    /// The log has it, or something newer.
    Known,
    /// Its `previous` is not the log's head.
    Broken,
}

/// The position after which a stream goes on that this replay continues.
pub(crate) fn goes_on_after(replay: &Replay) -> Position {
    let first = match replay.events.first() {
        Some(first) => (first.position, first.previous),
        None if replay.ended => (replay.head, Position::ZERO),
        None => return replay.head,
    };
    match first {
        // The broker has forgotten what came before: the nearest position below is as good, because nothing can stand between.
        (position, Position::ZERO) => Position(position.0.saturating_sub(1)),
        (_, previous) => previous,
    }
}

/// Whether nothing is missing between `after` and this replay, which was asked for with it. The broker cannot know the positions that
/// [`goes_on_after`] gives for want of better ones, so those are recognised here: a gap is final.
pub(crate) fn is_whole(after: Position, replay: &Replay) -> bool {
    replay.complete || goes_on_after(replay) == after
}

/// The end of a channel that has left history: whoever comes must still be told.
pub(crate) fn lost_end(replay: &Replay) -> Option<Arc<Event>> {
    let lost = replay.ended && !replay.more && !replay.events.last().is_some_and(|event| event.is_end());
    lost.then(|| {
        Arc::new(Event {
            position: replay.head,
            previous: Position::ZERO,
            message: Publish::end().message,
        })
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing here panics half-way through a change that matters; a log must outlive a listener's panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Log {
    /// A log that begins with the newest page of the channel's history.
    pub(crate) fn open(name: ChannelName, rule: Arc<Rule>, limits: &Limits, history: Replay) -> Self {
        let floor = goes_on_after(&history);
        let end = lost_end(&history);
        let keeps_latest = rule.delivery == Delivery::Latest || rule.replay == ReplayOnSubscribe::Last;
        let log = Self {
            visible: AtomicU64::new(0),
            ring: Mutex::new(Ring {
                entries: VecDeque::new(),
                first: 0,
                floor,
                head: floor,
                link: floor,
                bytes: 0,
                gaps: 0,
                end: None,
                latest: keeps_latest.then(Latest::default),
                cut_short: false,
                batches: Default::default(),
            }),
            seats: Mutex::new(Seats {
                empty_since: Some(Instant::now()),
                ..Seats::default()
            }),
            max_events: rule.history.events.max(limits.ring_events).max(1),
            max_bytes: limits.ring_bytes,
            name,
            rule,
        };
        {
            let mut ring = lock(&log.ring);
            for event in history.events.into_iter().chain(end) {
                log.push(&mut ring, Entry::new(Item::Event(event)));
            }
            (ring.head, ring.link) = (history.head, history.head);
            log.visible.store(ring.end_place(), Ordering::Release);
        }
        log
    }

    fn push(&self, ring: &mut Ring, entry: Arc<Entry>) {
        let place = ring.end_place();
        (ring.head, ring.link) = (entry.position(), entry.link());
        ring.bytes += entry.cost();
        // A broker that has forgotten the channel, end and all, begins it anew.
        ring.end = entry.is_end().then_some(place);
        match &entry.item {
            Item::Event(event) if event.is_end() => {}
            Item::Event(event) => {
                if let Some(latest) = &mut ring.latest {
                    latest.put(event.message.conflation_key(), place, &entry, self.max_bytes);
                }
            }
            Item::Gap { .. } => ring.gaps += 1,
        }
        ring.entries.push_back(entry);
        // No listener stands before this run any more, unless it is slow.
        ring.batches = Default::default();
        while ring.entries.len() > self.max_events || (ring.bytes > self.max_bytes && ring.entries.len() > 1) {
            ring.cut_short |= ring.entries.len() <= self.max_events;
            ring.pop();
        }
    }

    /// Puts an event at the end of the ring. The caller wakes the listeners with [`Log::show`].
    pub(crate) fn append(&self, event: Arc<Event>) -> Appended {
        let mut ring = lock(&self.ring);
        if event.position <= ring.head {
            return Appended::Known;
        }
        // Zero: the feed is whole, but the broker has forgotten what came before.
        if event.previous != ring.link && event.previous != Position::ZERO {
            return Appended::Broken;
        }
        self.push(&mut ring, Entry::new(Item::Event(event)));
        Appended::Yes
    }

    /// Announces to all listeners that events after the head are lost, or the head itself. The log goes on after `link`.
    pub(crate) fn append_gap(&self, link: Position, reason: GapReason) {
        let mut ring = lock(&self.ring);
        let gap = Entry::gap(Some(ring.head), link, reason);
        self.push(&mut ring, gap);
        let end = ring.end_place();
        if let Some(latest) = &mut ring.latest {
            // What was lost may have been newer than what is remembered.
            latest.whole_from = end;
        }
    }

    /// The position of the newest event that this node has.
    pub(crate) fn head(&self) -> Position {
        lock(&self.ring).head
    }

    /// The position after which the broker is asked for what is missing.
    pub(crate) fn link(&self) -> Position {
        lock(&self.ring).link
    }

    /// Lets listeners see everything that was appended, and wakes those that sleep.
    pub(crate) fn show(&self) {
        {
            let ring = lock(&self.ring);
            self.visible.store(ring.end_place(), Ordering::Release);
        }
        for (_, (bell, _)) in &lock(&self.seats).bells {
            bell.ring();
        }
    }

    /// Takes a seat: from now on `bell` rings. `wire` says over what, for people. `None`: the log has been closed, open it again.
    pub(crate) fn sit(self: &Arc<Self>, bell: Arc<Bell>, wire: &'static str) -> Option<Seat> {
        let mut seats = lock(&self.seats);
        if seats.closed {
            return None;
        }
        seats.empty_since = None;
        let key = seats.bells.insert((bell, wire));
        Some(Seat { log: self.clone(), key })
    }

    /// How many listeners there are, by wire.
    pub(crate) fn listeners(&self) -> Vec<(&'static str, usize)> {
        let mut counts: Vec<(&'static str, usize)> = Vec::new();
        for (_, (_, wire)) in &lock(&self.seats).bells {
            match counts.iter_mut().find(|(name, _)| name == wire) {
                Some((_, count)) => *count += 1,
                None => counts.push((wire, 1)),
            }
        }
        counts
    }

    /// Closes the log if it has had no listeners for `linger`. A closed log takes no seats.
    pub(crate) fn close_if_unused(&self, linger: Duration) -> bool {
        let mut seats = lock(&self.seats);
        if seats.bells.is_empty() && seats.empty_since.is_none_or(|since| since.elapsed() >= linger) {
            seats.closed = true;
        }
        seats.closed
    }

    /// Drops what is older than the rule's age, and what only sped up reading. Listeners that stand there have it or are very slow.
    pub(crate) fn trim(&self) {
        let mut ring = lock(&self.ring);
        ring.batches = Default::default();
        let age = self.rule.history.age;
        // The end stays: whoever comes must be told.
        while ring
            .entries
            .front()
            .is_some_and(|entry| entry.at.elapsed() > age && !entry.is_end())
        {
            ring.pop();
        }
    }

    /// Entries and estimated bytes in the ring, and whether the channel has ended.
    pub(crate) fn size(&self) -> (usize, usize, bool) {
        let ring = lock(&self.ring);
        (ring.entries.len(), ring.bytes, ring.end.is_some())
    }

    /// Where a listener without a cursor begins. `None`: it is to be sent all that history holds, and the ring holds less.
    pub(crate) fn begin_fresh(&self) -> Option<Place> {
        let ring = lock(&self.ring);
        // The end of a channel is news for whoever comes, however late.
        let visible = ring
            .end
            .unwrap_or(u64::MAX)
            .min(self.visible.load(Ordering::Acquire))
            .max(ring.first);
        Some(match self.rule.replay {
            ReplayOnSubscribe::None => Place {
                next: visible,
                cursor: ring.position_before(visible),
                first: Vec::new(),
            },
            ReplayOnSubscribe::All if ring.cut_short && ring.entries.len() < self.rule.history.events => return None,
            ReplayOnSubscribe::All => Place {
                next: ring.first,
                cursor: ring.floor,
                first: Vec::new(),
            },
            ReplayOnSubscribe::Last => {
                let first = ring
                    .latest
                    .as_ref()
                    .map(|latest| latest.between(Position::ZERO, visible))
                    .unwrap_or_default();
                // A listener that is cut off before it has the last of these must get them again: it has nothing yet.
                let cursor = if first.is_empty() {
                    ring.position_before(visible)
                } else {
                    Position::ZERO
                };
                Place {
                    next: visible,
                    cursor,
                    first,
                }
            }
        })
    }

    /// Where a listener begins that has everything up to `cursor`.
    pub(crate) fn find(&self, cursor: Position) -> Found {
        let ring = lock(&self.ring);
        match ring.place_after(cursor) {
            Some(place) => Found::At(place),
            None if cursor > ring.head => Found::Ahead,
            None => Found::Unknown,
        }
    }

    /// Whether the channel has ended, and a listener at `place` has had all of it.
    pub(crate) fn is_over(&self, place: u64) -> bool {
        let ring = lock(&self.ring);
        ring.end.is_some() && place >= ring.end_place()
    }

    /// The place where a listener goes on that gives up what it missed, and the position it then stands at.
    pub(crate) fn skip(&self) -> (u64, Position) {
        let ring = lock(&self.ring);
        let place = self.visible.load(Ordering::Acquire).max(ring.first);
        (place, ring.position_before(place))
    }

    /// For conflated channels: the newest of each key that a listener at `cursor` and `place` has not had, if all of them are remembered.
    pub(crate) fn catch_up_latest(&self, cursor: Position, place: u64) -> Option<Place> {
        let ring = lock(&self.ring);
        let latest = ring
            .latest
            .as_ref()
            .filter(|latest| self.rule.delivery == Delivery::Latest && latest.whole_from <= place)?;
        let visible = ring
            .end
            .unwrap_or(u64::MAX)
            .min(self.visible.load(Ordering::Acquire))
            .max(ring.first);
        Some(Place {
            next: visible,
            cursor,
            first: latest.between(cursor, visible),
        })
    }

    /// What a listener at `from` has not had, as one piece of bytes. Listeners at the same place share it.
    pub(crate) fn read_batch(&self, from: u64, slot: &WireSlot) -> Read<Batch> {
        let visible = self.visible.load(Ordering::Acquire);
        if from >= visible {
            return Read::Nothing;
        }
        let (entries, next) = {
            let ring = lock(&self.ring);
            if let Some((start, end, batch)) = &ring.batches[slot.index]
                && (*start, *end) == (from, visible)
            {
                return Read::Some(batch.clone());
            }
            match ring.collect(from, visible, self.rule.delivery) {
                Some(found) => found,
                None => return Read::FellOff,
            }
        };
        // Encoding and joining happen outside the lock: a large event must not hold up the publisher.
        let Some(batch) = self.join(&entries, next, slot) else {
            // Everything was superseded by events that are still to come.
            return Read::Some(Batch {
                bytes: Bytes::new(),
                next,
                cursor: Position::ZERO,
                link: Position::ZERO,
                events: 0,
                oldest: Instant::now(),
                ended: false,
                gap: None,
            });
        };
        lock(&self.ring).batches[slot.index] = Some((from, visible, batch.clone()));
        Read::Some(batch)
    }

    fn join(&self, entries: &[Arc<Entry>], next: u64, slot: &WireSlot) -> Option<Batch> {
        let (first, last) = (entries.first()?, entries.last()?);
        let bytes = match entries {
            [only] => only.bytes(&self.name, slot).clone(),
            _ => {
                let total = entries.iter().map(|entry| entry.bytes(&self.name, slot).len()).sum();
                let mut joined = BytesMut::with_capacity(total);
                for entry in entries {
                    joined.extend_from_slice(entry.bytes(&self.name, slot));
                }
                joined.freeze()
            }
        };
        let batch = Batch {
            bytes,
            next,
            cursor: last.position(),
            link: last.link(),
            events: entries.len() as u64,
            oldest: first.at,
            ended: last.is_end(),
            gap: entries.iter().rev().find_map(|entry| match &entry.item {
                Item::Gap { gap, .. } => Some(gap.reason),
                Item::Event(_) => None,
            }),
        };
        Some(batch)
    }

    /// What a listener at `from` has not had, one by one, and the place after it.
    pub(crate) fn read_entries(&self, from: u64) -> Read<(Vec<Arc<Entry>>, u64)> {
        let visible = self.visible.load(Ordering::Acquire);
        if from >= visible {
            return Read::Nothing;
        }
        match lock(&self.ring).collect(from, visible, self.rule.delivery) {
            Some(found) => Read::Some(found),
            None => Read::FellOff,
        }
    }
}

impl Ring {
    /// One past the last place.
    fn end_place(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    fn pop(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.floor = entry.link();
            self.first += 1;
            self.bytes -= entry.cost();
            self.gaps -= usize::from(matches!(entry.item, Item::Gap { .. }));
        }
    }

    fn index(&self, place: u64) -> Option<usize> {
        usize::try_from(place.checked_sub(self.first)?).ok()
    }

    /// Where a listener stands that has had everything before `place`.
    fn position_before(&self, place: u64) -> Position {
        match self.index(place) {
            None | Some(0) => self.floor,
            Some(index) => self.entries.get(index - 1).map_or(self.link, |entry| entry.link()),
        }
    }

    /// Equality, not a range: a position that lies within the ring and is not there was lost.
    fn place_after(&self, cursor: Position) -> Option<u64> {
        if cursor == self.head && cursor == self.link {
            return Some(self.end_place());
        }
        let found = if self.gaps == 0 {
            self.entries.binary_search_by_key(&cursor, |entry| entry.position()).ok()
        } else {
            self.entries.iter().rposition(|entry| entry.is_at(cursor))
        };
        match found {
            Some(index) => Some(self.first + index as u64 + 1),
            None => (cursor == self.floor).then_some(self.first),
        }
    }

    /// The entries from `from` that are to be sent, up to `visible` or [`READ_BYTES`], and the place after them. `None`: `from` is gone.
    fn collect(&self, from: u64, visible: u64, delivery: Delivery) -> Option<(Vec<Arc<Entry>>, u64)> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        let mut next = from;
        for entry in self.entries.range(self.index(from)?..) {
            if next >= visible || bytes >= READ_BYTES {
                break;
            }
            next += 1;
            // Only what is visible supersedes: otherwise a key that changes faster than the rate would never be sent.
            if delivery == Delivery::Latest && entry.superseded_by.load(Ordering::Acquire) < visible {
                continue;
            }
            bytes += match &entry.item {
                Item::Event(event) => event.message.weight(),
                Item::Gap { .. } => 0,
            };
            entries.push(entry.clone());
        }
        Some((entries, next))
    }
}

impl Latest {
    fn put(&mut self, key: &Arc<str>, place: u64, entry: &Arc<Entry>, max_bytes: usize) {
        self.order.push_back((place, key.clone()));
        self.bytes += entry.cost();
        if let Some((_, older)) = self.by_key.insert(key.clone(), (place, entry.clone())) {
            older.superseded_by.store(place, Ordering::Release);
            self.bytes -= older.cost();
        }
        // Keys are chosen by who publishes, so neither their number nor their weight is bounded by anything but this.
        while self.by_key.len() > MAX_KEYS || (self.bytes > max_bytes && self.by_key.len() > 1) {
            self.forget_oldest();
        }
        if self.order.len() > 2 * self.by_key.len() + 64 {
            let Self { order, by_key, .. } = self;
            order.retain(|(place, key)| by_key.get(key).is_some_and(|(newest, _)| newest == place));
        }
    }

    fn forget_oldest(&mut self) {
        while let Some((place, key)) = self.order.pop_front() {
            if self.by_key.get(&key).is_some_and(|(newest, _)| *newest == place) {
                self.bytes -= self.by_key.remove(&key).map_or(0, |(_, entry)| entry.cost());
                self.whole_from = place + 1;
                return;
            }
        }
    }

    /// In order: what is newer than `cursor` and stands before `visible`.
    fn between(&self, cursor: Position, visible: u64) -> Vec<Arc<Entry>> {
        let mut found: Vec<_> = self
            .by_key
            .values()
            .filter(|(place, entry)| *place < visible && entry.position() > cursor)
            .collect();
        found.sort_unstable_by_key(|(place, _)| *place);
        found.into_iter().map(|(_, entry)| entry.clone()).collect()
    }
}

/// One listener's place among those that are woken. Dropping it leaves.
pub(crate) struct Seat {
    pub(crate) log: Arc<Log>,
    key: usize,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = lock(&self.log.seats);
        seats.bells.try_remove(self.key);
        if seats.bells.is_empty() {
            seats.empty_since = Some(Instant::now());
        }
        // A log that was popular once must not keep the room for ever.
        if seats.bells.len() * 4 < seats.bells.capacity() && seats.bells.capacity() > 64 {
            seats.bells.shrink_to_fit();
        }
    }
}
