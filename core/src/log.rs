//! One channel on this node: a ring of recent events, the listeners that read it, and the wake.
//!
//! The hub's follower appends, sessions read. Neither side waits for the other: a read takes what
//! there is, and a listener that was too slow finds that its place has fallen off the ring.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, PoisonError, Weak};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;
use tokio::time::Instant;

use crate::broker::{PageLimit, Replay};
use crate::event::{ChannelName, Event, Position};
use crate::format::{Format, Gap, GapReason, MAX_FORMATS, Notice};
use crate::metrics::{FormatMetrics, RuleMetrics};
use crate::registry::Registry;
use crate::ring_memory::RingMemory;
use crate::rule::{Delivery, Limits, ReplayOnSubscribe, Rule};
use crate::session_handle::SessionHandle;
use crate::shrink::shrink;
use crate::sync::{AtomicU64, Mutex, MutexGuard};

/// How much one read takes at most, unless a single event is larger. Bounds what a connection
/// holds.
pub(crate) const READ_BYTES: usize = 64 << 10;

/// How many keys "the newest of each key" remembers, within the ring's bound of bytes; beyond that
/// the oldest is forgotten.
const MAX_KEYS: usize = 10_000;

/// How many listeners are looked at before the first of them is woken.
const LOOK_AHEAD: usize = 16;

/// How long a log lingers at most whose channel has never had an event: a client can name as many
/// of those as it likes.
pub(crate) const UNPUBLISHED_LINGER: Duration = Duration::from_secs(5);

/// What an entry costs besides its payload: the entry, its slots, names.
const ENTRY_COST: usize = 320;

/// A format that is in use on this node.
pub(crate) struct FormatSlot {
    pub(crate) index: usize,
    pub(crate) format: Arc<dyn Format>,
    pub(crate) metrics: FormatMetrics,
}

/// One place in a ring: an event, or an announced loss.
pub(crate) struct Entry {
    pub(crate) item: Item,
    pub(crate) at: Instant,
    /// The place of the newer event with the same key; [`u64::MAX`]: there is none.
    superseded_by: AtomicU64,
    encoded: [OnceLock<Bytes>; MAX_FORMATS],
}

pub(crate) enum Item {
    Event(Arc<Event>),
    /// What its listeners are told, and the position that the next event names as its previous.
    /// After a lost tail that lies behind what listeners have had; the cursor they are given does
    /// not go back, or a node that does not know of the loss yet would send them the lost events
    /// once more.
    Gap {
        gap: Gap,
        expected_previous: Position,
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

    /// A gap that `after` stands before, in a stream that goes on after `expected_previous`.
    pub(crate) fn gap(after: Option<Position>, expected_previous: Position, reason: GapReason) -> Arc<Self> {
        let cursor = match reason {
            // A position that was never given: nothing has been seen up to there.
            GapReason::UnknownPosition => expected_previous,
            _ => after.map_or(expected_previous, |after| after.max(expected_previous)),
        };
        Self::new(Item::Gap {
            gap: Gap { after, cursor, reason },
            expected_previous,
        })
    }

    /// The position that the next event names as its previous.
    pub(crate) fn expected_previous(&self) -> Position {
        match &self.item {
            Item::Event(event) => event.position,
            Item::Gap { expected_previous, .. } => *expected_previous,
        }
    }

    /// Whether a listener with this cursor goes on behind this entry. Not behind a gap whose cursor
    /// stands for lost events: a listener with that cursor may not have been told.
    fn is_at(&self, cursor: Position) -> bool {
        self.position() == cursor && self.expected_previous() == cursor
    }

    pub(crate) fn is_end(&self) -> bool {
        matches!(&self.item, Item::Event(event) if event.is_end())
    }

    /// The bytes for the socket: made once per format, on first need.
    pub(crate) fn bytes(&self, channel: &ChannelName, slot: &FormatSlot) -> &Bytes {
        self.encoded[slot.index].get_or_init(|| match &self.item {
            Item::Event(event) if event.is_end() => slot.format.notice(&Notice::End {
                channel,
                cursor: event.position,
                stamp: None,
            }),
            Item::Event(event) => {
                slot.metrics.encodes.inc();
                slot.format.event(channel, event)
            }
            Item::Gap { gap, .. } => slot.format.notice(&Notice::Gap {
                channel,
                gap,
                stamp: None,
            }),
        })
    }

    /// What it costs to keep, with room for its bytes in two formats.
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
    /// The figures of the rule.
    pub(crate) figures: Arc<RuleMetrics>,
    /// One past the last place that listeners may read. Lags behind the ring's end only where the
    /// rule has a rate.
    visible: AtomicU64,
    ring: Mutex<Ring>,
    listeners: Mutex<Listeners>,
    max_events: usize,
    max_bytes: usize,
    /// What all rings of the node take, and this log's number there.
    memory: Arc<RingMemory>,
    registered: u64,
}

/// Places are counted from zero for as long as the log is open, and never reused; positions are the
/// broker's.
struct Ring {
    entries: VecDeque<Arc<Entry>>,
    /// The place of `entries[0]`.
    first: u64,
    /// The position before `entries[0]`: a cursor that equals it has missed nothing of the ring.
    log_start: Position,
    head: Position,
    /// What the next event must name as its previous: the head, except after a lost tail.
    expected_previous: Position,
    bytes: usize,
    /// What the node's memory of rings knows of this one.
    counted: usize,
    /// Gap entries in the ring. While there are none, positions increase along the ring.
    gaps: usize,
    /// The place of the end event.
    end: Option<u64>,
    /// The newest event of each key, where the rule needs it.
    latest: Option<Latest>,
    /// Whether the bound of bytes has taken away what history may still hold.
    cut_short: bool,
    /// The channel has never had an event, as far as this node knows.
    unpublished: bool,
    /// The last run of entries that was joined for each format: listeners stand at the same place
    /// most of the time.
    batches: [Option<(u64, u64, Batch)>; MAX_FORMATS],
}

#[derive(Default)]
struct Latest {
    by_key: HashMap<Arc<str>, (u64, Arc<Entry>)>,
    /// Oldest first, every event that `by_key` has, and some that newer ones of their key have
    /// replaced.
    order: VecDeque<(u64, Arc<str>)>,
    bytes: usize,
    /// Of those bytes, what has left the ring.
    beyond_ring: usize,
    /// Whether the node's memory has taken away the newest event of a key.
    cut_short: bool,
    /// Everything before this place may have been forgotten: by the bound, or because the log
    /// opened later.
    whole_from: u64,
}

#[derive(Default)]
struct Listeners {
    /// Each with the index of its format.
    registered: Registry<(Arc<SessionHandle>, u8)>,
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
    pub(crate) expected_previous: Position,
    pub(crate) events: u64,
    pub(crate) oldest: Instant,
    pub(crate) ended: bool,
    /// The last gap that stands in it.
    pub(crate) gap: Option<GapReason>,
    /// Where a gap says that it begins which is the first thing in it. A listener that stands
    /// elsewhere needs words of its own.
    pub(crate) opens_after: Option<Position>,
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
    /// The log has it, or stands behind it.
    Known,
    /// Its `previous` is not where the log stands.
    Broken,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing here panics half-way through a change that matters; a log must outlive a listener's
    // panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Log {
    /// A log that begins with the newest page of the channel's history. `None`: events are missing
    /// in that page, so a caller that came to this log would miss them without a word.
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
        let log_start = history.goes_on_after();
        let unpublished = history.complete && history.events.is_empty() && !history.ended;
        let end = history.lost_end();
        let keeps_latest = rule.delivery == Delivery::Latest || rule.replay == ReplayOnSubscribe::Last;
        let log = Arc::new_cyclic(|me: &Weak<Self>| Self {
            visible: AtomicU64::new(0),
            ring: Mutex::new(Ring {
                entries: VecDeque::new(),
                first: 0,
                log_start,
                head: log_start,
                expected_previous: log_start,
                bytes: 0,
                counted: 0,
                gaps: 0,
                end: None,
                latest: keeps_latest.then(Latest::default),
                cut_short: false,
                unpublished,
                batches: Default::default(),
            }),
            listeners: Mutex::new(Listeners {
                empty_since: Some(Instant::now()),
                ..Listeners::default()
            }),
            max_events: rule.history.events.max(limits.ring_events).max(1),
            max_bytes: limits.ring_bytes,
            registered: memory.register(me.clone()),
            memory: memory.clone(),
            name,
            rule,
            figures,
        });
        {
            let mut ring = lock(&log.ring);
            for event in history.events.into_iter().chain(end) {
                log.push(&mut ring, Entry::new(Item::Event(event)));
            }
            (ring.head, ring.expected_previous) = (history.head, history.head);
            log.visible.store(ring.end_place(), Ordering::Release);
        }
        memory.make_room();
        Some(log)
    }

    /// Tells the node's memory of rings what this one takes.
    fn count(&self, ring: &mut Ring) {
        let now = ring.bytes + ring.latest.as_ref().map_or(0, |latest| latest.beyond_ring);
        self.memory.change(ring.counted, now);
        ring.counted = now;
    }

    fn push(&self, ring: &mut Ring, entry: Arc<Entry>) {
        let place = ring.end_place();
        ring.unpublished = false;
        (ring.head, ring.expected_previous) = (entry.position(), entry.expected_previous());
        ring.bytes += entry.cost();
        // A broker that has forgotten the channel, end and all, begins it anew.
        ring.end = entry.is_end().then_some(place);
        match &entry.item {
            Item::Event(event) if event.is_end() => {}
            Item::Event(event) => {
                if let Some(latest) = &mut ring.latest {
                    latest.put(event.message.conflation_key(), place, &entry, ring.first, self.max_bytes);
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
        self.count(ring);
    }

    /// Puts an event at the end of the ring. The caller wakes the listeners with [`Log::show`].
    pub(crate) fn append(&self, event: Arc<Event>) -> Appended {
        let mut ring = lock(&self.ring);
        // The chain decides, not the head: a store that came back behind goes on below what
        // listeners have had. After a gap the head may be above the chain, and what was lost may
        // come again: that stands in the ring.
        if event.position <= ring.expected_previous || (event.position <= ring.head && ring.has(&event)) {
            return Appended::Known;
        }
        // Zero: the feed is whole, but the broker has forgotten what came before.
        if event.previous != ring.expected_previous && event.previous != Position::ZERO {
            return Appended::Broken;
        }
        self.push(&mut ring, Entry::new(Item::Event(event)));
        drop(ring);
        self.memory.make_room();
        Appended::Yes
    }

    /// Whether this very event stands in the ring.
    pub(crate) fn has(&self, event: &Event) -> bool {
        lock(&self.ring).has(event)
    }

    /// Announces to all listeners that events after the head are lost, or the head itself. The log
    /// goes on after `expected_previous`.
    pub(crate) fn append_gap(&self, expected_previous: Position, reason: GapReason) {
        let mut ring = lock(&self.ring);
        let gap = Entry::gap(Some(ring.head), expected_previous, reason);
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
    pub(crate) fn expected_previous(&self) -> Position {
        lock(&self.ring).expected_previous
    }

    /// Lets listeners see everything that was appended, and wakes those that sleep.
    ///
    /// Wakes none if they see everything already: a listener of many channels looks at all of them
    /// when it wakes, and most logs that heal have nothing new.
    pub(crate) fn show(&self) {
        {
            let ring = lock(&self.ring);
            let end = ring.end_place();
            // Who changed it wakes them. Changes are made under the ring's lock.
            if self.visible.load(Ordering::Relaxed) == end {
                return;
            }
            self.visible.store(end, Ordering::Release);
        }
        let all = lock(&self.listeners);
        let mut rest = all.registered.iter().map(|(listener, _)| &**listener);
        loop {
            // A wake takes a lock, and a lock waits for its memory alone. A look does not: the
            // memory of several is fetched at the same time.
            let some: SmallVec<[&SessionHandle; LOOK_AHEAD]> =
                rest.by_ref().take(LOOK_AHEAD).inspect(|listener| listener.look()).collect();
            if some.is_empty() {
                return;
            }
            some.iter().for_each(|listener| listener.wake());
        }
    }

    /// Registers a listener: from now on appends wake it. `format` is the index of its format, for
    /// metrics. `None`: the log has been closed, open it again.
    pub(crate) fn register(self: &Arc<Self>, listener: Arc<SessionHandle>, format: usize) -> Option<Registration> {
        let mut all = lock(&self.listeners);
        if all.closed {
            return None;
        }
        all.empty_since = None;
        let key = all.registered.insert((listener, format as u8));
        self.figures.subscribed(format);
        Some(Registration { log: self.clone(), key })
    }

    /// How many listeners there are, by the index of their format.
    pub(crate) fn listeners(&self) -> [usize; MAX_FORMATS] {
        let mut counts = [0; MAX_FORMATS];
        for (_, format) in lock(&self.listeners).registered.iter() {
            counts[usize::from(*format)] += 1;
        }
        counts
    }

    /// Whether there is no listener.
    pub(crate) fn is_unused(&self) -> bool {
        lock(&self.listeners).registered.is_empty()
    }

    /// Whether the channel has never had an event, as far as this node knows.
    pub(crate) fn is_unpublished(&self) -> bool {
        lock(&self.ring).unpublished
    }

    /// Closes the log if it has had no listeners for `linger`, or for [`UNPUBLISHED_LINGER`] if the
    /// channel has never had an event. A closed log registers no listener.
    pub(crate) fn close_if_unused(&self, linger: Duration) -> bool {
        let linger = if self.is_unpublished() {
            linger.min(UNPUBLISHED_LINGER)
        } else {
            linger
        };
        let mut all = lock(&self.listeners);
        if all.registered.is_empty() && all.empty_since.is_none_or(|since| since.elapsed() >= linger) {
            all.closed = true;
        }
        all.closed
    }

    /// Drops what is older than the rule's age, and what only sped up reading. Listeners that stand
    /// there have it or are very slow.
    pub(crate) fn trim(&self) {
        let mut ring = lock(&self.ring);
        ring.batches = Default::default();
        let age = self.rule.history.age;
        // The end stays: a new listener must be told.
        while ring
            .entries
            .front()
            .is_some_and(|entry| entry.at.elapsed() > age && !entry.is_end())
        {
            ring.pop();
        }
        ring.shrink();
        self.count(&mut ring);
    }

    /// Drops the older half of the ring, because the rings of the node take too much together. One
    /// event stays. Listeners that stand before it fall off.
    pub(crate) fn shrink(&self) {
        let mut ring = lock(&self.ring);
        let (half, half_of_keys) = (ring.bytes / 2, ring.latest.as_ref().map_or(0, |latest| latest.bytes / 2));
        self.drop_oldest(&mut ring, half, 1, half_of_keys);
    }

    /// Drops the whole ring, but for the end of the channel.
    pub(crate) fn empty(&self) {
        self.drop_oldest(&mut lock(&self.ring), 0, 0, 0);
    }

    fn drop_oldest(&self, ring: &mut Ring, bytes: usize, count: usize, bytes_of_keys: usize) {
        ring.batches = Default::default();
        // The end stays: a listener that comes later must be told.
        while ring.bytes > bytes && ring.entries.len() > count && ring.entries.front().is_some_and(|entry| !entry.is_end()) {
            ring.cut_short = true;
            ring.pop();
        }
        let first = ring.first;
        if let Some(latest) = &mut ring.latest {
            while latest.bytes > bytes_of_keys && latest.by_key.len() > count {
                latest.cut_short = true;
                latest.forget_oldest(first);
            }
        }
        ring.shrink();
        self.count(ring);
    }

    /// When the newest entry came.
    pub(crate) fn newest_at(&self) -> Option<Instant> {
        lock(&self.ring).entries.back().map(|entry| entry.at)
    }

    /// Entries and estimated bytes in the ring, and whether the channel has ended.
    pub(crate) fn size(&self) -> (usize, usize, bool) {
        let ring = lock(&self.ring);
        (ring.entries.len(), ring.bytes, ring.end.is_some())
    }

    /// Estimated bytes of the ring, and of the newest event of each key where that is kept longer.
    pub(crate) fn held(&self) -> usize {
        lock(&self.ring).counted
    }

    /// Where a listener without a cursor begins. `None`: the ring holds less than it is sent, and
    /// history must be asked.
    pub(crate) fn begin_fresh(&self) -> Option<Place> {
        let ring = lock(&self.ring);
        // The end of a channel is news for every new listener, however late.
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
                cursor: ring.log_start,
                first: Vec::new(),
            },
            ReplayOnSubscribe::Last if ring.latest.as_ref().is_some_and(|latest| latest.cut_short) => return None,
            ReplayOnSubscribe::Last => {
                let first = ring
                    .latest
                    .as_ref()
                    .map(|latest| latest.between(0, visible))
                    .unwrap_or_default();
                // A listener that is cut off before it has the last of these must get them again:
                // it has nothing yet.
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

    /// A page of the events after `after` up to `through`, and whether the limit cuts it short.
    /// `None`: the ring does not hold all of these, without a hole.
    pub(crate) fn page(&self, after: Position, through: Position, limit: PageLimit) -> Option<(Vec<Arc<Event>>, bool)> {
        let ring = lock(&self.ring);
        let places = ring.place_after(after)?..ring.place_after(through)?;
        let wanted = ring.entries.range(ring.index(places.start)?..ring.index(places.end)?);
        let mut previous = after;
        let mut events = Vec::new();
        let mut rest = limit.bytes;
        for entry in wanted {
            let Item::Event(event) = &entry.item else { return None };
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

    /// What a listener at `place` is sent first, and its place.
    pub(crate) fn next_sent(&self, place: u64) -> Option<(u64, Arc<Entry>)> {
        let ring = lock(&self.ring);
        let conflates = self.rule.delivery == Delivery::Latest;
        let rest = ring.entries.range(ring.index(place)?.min(ring.entries.len())..);
        // Where a newer event of the same key stands behind a gap, the older one is not sent.
        let sent = |entry: &Entry| !conflates || entry.superseded_by.load(Ordering::Acquire) == u64::MAX;
        let (place, entry) = (place..).zip(rest).find(|(_, entry)| sent(entry))?;
        Some((place, entry.clone()))
    }

    /// Whether the channel has ended, and a listener at `place` has had all of it.
    pub(crate) fn is_over(&self, place: u64) -> bool {
        let ring = lock(&self.ring);
        ring.end.is_some() && place >= ring.end_place()
    }

    /// The place where a listener goes on that gives up what it missed, and the position it then
    /// stands at.
    pub(crate) fn skip(&self) -> (u64, Position) {
        let ring = lock(&self.ring);
        let place = self.visible.load(Ordering::Acquire).max(ring.first);
        (place, ring.position_before(place))
    }

    /// The beginning of the ring, if that is behind this position, and the position before it.
    pub(crate) fn begin_behind(&self, position: Position) -> Option<(u64, Position)> {
        let ring = lock(&self.ring);
        (ring.log_start > position).then_some((ring.first, ring.log_start))
    }

    /// For conflated channels: the newest of each key that a listener at `cursor` and `place` has
    /// not had, if all of them are remembered.
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
            first: latest.between(place, visible),
        })
    }

    /// Whether a listener at `from` has had everything that may be read.
    pub(crate) fn is_read(&self, from: u64) -> bool {
        from >= self.visible.load(Ordering::Acquire)
    }

    /// What a listener at `from` has not had, as one piece of bytes. Listeners at the same place
    /// share it.
    pub(crate) fn read_batch(&self, from: u64, slot: &FormatSlot) -> Read<Batch> {
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
        // Encoding and joining happen outside the lock: a large event must not hold up the
        // publisher.
        let Some(batch) = self.join(&entries, next, slot) else {
            // Everything was superseded by events that are still to come.
            return Read::Some(Batch {
                bytes: Bytes::new(),
                next,
                cursor: Position::ZERO,
                expected_previous: Position::ZERO,
                events: 0,
                oldest: Instant::now(),
                ended: false,
                gap: None,
                opens_after: None,
            });
        };
        lock(&self.ring).batches[slot.index] = Some((from, visible, batch.clone()));
        Read::Some(batch)
    }

    fn join(&self, entries: &[Arc<Entry>], next: u64, slot: &FormatSlot) -> Option<Batch> {
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
            expected_previous: last.expected_previous(),
            events: entries.len() as u64,
            oldest: first.at,
            ended: last.is_end(),
            gap: entries.iter().rev().find_map(|entry| match &entry.item {
                Item::Gap { gap, .. } => Some(gap.reason),
                Item::Event(_) => None,
            }),
            opens_after: match &first.item {
                Item::Gap { gap, .. } => gap.after,
                Item::Event(_) => None,
            },
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
            self.log_start = entry.expected_previous();
            self.first += 1;
            self.bytes -= entry.cost();
            self.gaps -= usize::from(matches!(entry.item, Item::Gap { .. }));
            if let Some(latest) = &mut self.latest {
                latest.left_ring(&entry);
            }
        }
    }

    /// Gives back memory that a crowd of events needed.
    fn shrink(&mut self) {
        shrink(&mut self.entries);
        if let Some(latest) = &mut self.latest {
            shrink(&mut latest.by_key);
            shrink(&mut latest.order);
        }
    }

    fn index(&self, place: u64) -> Option<usize> {
        usize::try_from(place.checked_sub(self.first)?).ok()
    }

    /// Where a listener stands that has had everything before `place`.
    fn position_before(&self, place: u64) -> Position {
        match self.index(place) {
            None | Some(0) => self.log_start,
            Some(index) => self
                .entries
                .get(index - 1)
                .map_or(self.expected_previous, |entry| entry.expected_previous()),
        }
    }

    /// Equality, not a range: a position that lies within the ring and is not there was lost.
    fn place_after(&self, cursor: Position) -> Option<u64> {
        if cursor == self.head && cursor == self.expected_previous {
            return Some(self.end_place());
        }
        let found = if self.gaps == 0 {
            self.entries.binary_search_by_key(&cursor, |entry| entry.position()).ok()
        } else {
            self.entries.iter().rposition(|entry| entry.is_at(cursor))
        };
        match found {
            Some(index) => Some(self.first + index as u64 + 1),
            None => (cursor == self.log_start).then_some(self.first),
        }
    }

    fn has(&self, event: &Event) -> bool {
        let is = |entry: &Arc<Entry>| {
            matches!(&entry.item, Item::Event(other)
                if other.position == event.position && other.previous == event.previous)
        };
        if self.gaps > 0 {
            return self.entries.iter().any(is);
        }
        let found = self.entries.binary_search_by_key(&event.position, |entry| entry.position());
        found.is_ok_and(|index| self.entries.get(index).is_some_and(is))
    }

    /// The entries from `from` that are to be sent, up to `visible` or [`READ_BYTES`], and the
    /// place after them. `None`: `from` is gone.
    fn collect(&self, from: u64, visible: u64, delivery: Delivery) -> Option<(Vec<Arc<Entry>>, u64)> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        let mut next = from;
        for entry in self.entries.range(self.index(from)?..) {
            if next >= visible || bytes >= READ_BYTES {
                break;
            }
            next += 1;
            // Only what is visible supersedes: otherwise a key that changes faster than the rate
            // would never be sent.
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
    /// `first`: the first place of the ring.
    fn put(&mut self, key: &Arc<str>, place: u64, entry: &Arc<Entry>, first: u64, max_bytes: usize) {
        self.order.push_back((place, key.clone()));
        self.bytes += entry.cost();
        if let Some((before, older)) = self.by_key.insert(key.clone(), (place, entry.clone())) {
            older.superseded_by.store(place, Ordering::Release);
            self.forgot(before, &older, first);
        }
        // Keys are chosen by who publishes, so neither their number nor their weight is bounded by
        // anything but this.
        while self.by_key.len() > MAX_KEYS || (self.bytes > max_bytes && self.by_key.len() > 1) {
            self.forget_oldest(first);
        }
        if self.order.len() > 2 * self.by_key.len() + 64 {
            let Self { order, by_key, .. } = self;
            order.retain(|(place, key)| by_key.get(key).is_some_and(|(newest, _)| newest == place));
        }
    }

    fn forget_oldest(&mut self, first: u64) {
        while let Some((place, key)) = self.order.pop_front() {
            if self.by_key.get(&key).is_some_and(|(newest, _)| *newest == place) {
                if let Some((_, entry)) = self.by_key.remove(&key) {
                    self.forgot(place, &entry, first);
                }
                self.whole_from = place + 1;
                return;
            }
        }
    }

    fn forgot(&mut self, place: u64, entry: &Entry, first: u64) {
        self.bytes -= entry.cost();
        if place < first {
            self.beyond_ring -= entry.cost();
        }
    }

    /// The ring has dropped this entry. If it is the newest of its key, it stays here.
    fn left_ring(&mut self, entry: &Arc<Entry>) {
        let Item::Event(event) = &entry.item else { return };
        let newest = self.by_key.get(event.message.conflation_key());
        if newest.is_some_and(|(_, newest)| Arc::ptr_eq(newest, entry)) {
            self.beyond_ring += entry.cost();
        }
    }

    /// In order: what stands at `from` or later, and before `visible`. Places, not positions:
    /// behind a lost tail a listener's cursor goes back to the fork, and the lost events must not
    /// come again.
    fn between(&self, from: u64, visible: u64) -> Vec<Arc<Entry>> {
        let mut found: Vec<_> = self
            .by_key
            .values()
            .filter(|(place, _)| (from..visible).contains(place))
            .collect();
        found.sort_unstable_by_key(|(place, _)| *place);
        found.into_iter().map(|(_, entry)| entry.clone()).collect()
    }
}

/// One listener's place among those that are woken. Dropping it leaves.
pub(crate) struct Registration {
    pub(crate) log: Arc<Log>,
    key: u64,
}

impl Drop for Log {
    fn drop(&mut self) {
        self.memory.deregister(self.registered);
        let counted = self
            .ring
            .get_mut()
            .map_or_else(|poisoned| poisoned.into_inner().counted, |ring| ring.counted);
        self.memory.change(counted, 0);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut all = lock(&self.log.listeners);
        let left = all.registered.remove(self.key);
        if let Some((_, format)) = &left {
            self.log.figures.unsubscribed(usize::from(*format));
        }
        if all.registered.is_empty() {
            all.empty_since = Some(Instant::now());
        }
        drop(all);
        // Perhaps the last handle of a session, dropped without the lock.
        drop(left);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::metrics::Metrics;
    use crate::{Data, EventName, Key, Message};

    /// Writes an event as its position, an end and a gap with a sign before it.
    struct Positions;

    impl Format for Positions {
        fn name(&self) -> &'static str {
            "positions"
        }

        fn event(&self, _: &ChannelName, event: &Event) -> Bytes {
            format!("{} ", event.position).into()
        }

        fn notice(&self, notice: &Notice<'_>) -> Bytes {
            match notice {
                Notice::Gap { gap, .. } => format!("g{} ", gap.cursor).into(),
                Notice::End { cursor, .. } => format!("e{cursor} ").into(),
                other => panic!("a log never says {other:?}"),
            }
        }

        fn stamp(&self) -> Option<crate::format::Stamp> {
            None
        }
    }

    fn slot() -> FormatSlot {
        FormatSlot {
            index: 1,
            format: Arc::new(Positions),
            metrics: Metrics::default().format("positions"),
        }
    }

    fn event(position: u64, previous: u64, key: u8, size: usize) -> Arc<Event> {
        let message = Message::new(EventName::new("x").unwrap(), Data::binary(vec![0; size]));
        Arc::new(Event {
            position: Position(position),
            previous: Position(previous),
            message: message.with_key(Key::new(&key.to_string()).unwrap()),
        })
    }

    fn rule(delivery: Delivery, replay: ReplayOnSubscribe) -> Arc<Rule> {
        let mut rule = Rule::new("c".parse().unwrap(), vec![]);
        (rule.delivery, rule.replay, rule.history.events) = (delivery, replay, 0);
        rule.history.age = Duration::from_secs(100);
        Arc::new(rule)
    }

    const BASE: u64 = 100;

    fn log(rule: Arc<Rule>, ring_events: usize, ring_bytes: usize) -> Arc<Log> {
        let limits = Limits {
            ring_events,
            ring_bytes,
            ..Limits::default()
        };
        let history = Replay::nothing_after(Position(BASE));
        let memory = RingMemory::new(limits.memory);
        Log::open(
            ChannelName::new("c").unwrap(),
            rule,
            Arc::default(),
            &limits,
            &memory,
            history,
        )
        .unwrap()
    }

    /// What is counted is what is held, whatever the way in which events go.
    #[test]
    fn the_memory_of_rings_is_counted_to_the_byte() {
        for (delivery, replay) in [
            (Delivery::Every, ReplayOnSubscribe::None),
            (Delivery::Latest, ReplayOnSubscribe::Last),
        ] {
            let log = log(rule(delivery, replay), 4, 10_000);
            let memory = log.memory.clone();
            for n in 0..200u64 {
                let offered = event(BASE + n + 1, BASE + n, (n % 7) as u8, 900);
                assert_eq!(log.append(offered), Appended::Yes);
                if n % 50 == 49 {
                    log.shrink();
                }
                let ring = lock(&log.ring);
                let mut held: HashMap<*const Entry, usize> = ring.entries.iter().map(|e| (Arc::as_ptr(e), e.cost())).collect();
                for (_, entry) in ring.latest.iter().flat_map(|latest| latest.by_key.values()) {
                    held.insert(Arc::as_ptr(entry), entry.cost());
                }
                assert_eq!(memory.used(), held.values().sum::<usize>(), "after {n}");
            }
            log.empty();
            assert_eq!(memory.used(), 0);
            assert_eq!(
                log.begin_fresh().is_none(),
                replay == ReplayOnSubscribe::Last,
                "history is asked"
            );
            drop(log);
            assert_eq!(memory.used(), 0);
        }
    }

    #[test]
    fn listeners_are_woken_only_when_there_is_something_new() {
        let log = log(rule(Delivery::Every, ReplayOnSubscribe::None), 4, 10_000);
        let listener = Arc::new(SessionHandle::new(1));
        let registration = log.register(listener.clone(), 0);
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        for n in 0..3 {
            assert_eq!(log.append(event(BASE + n + 1, BASE + n, 0, 10)), Appended::Yes);
            log.show();
            assert!(listener.wake.poll(&mut cx).is_ready(), "an event");
            listener.wake.reset();
            log.show();
            assert!(listener.wake.poll(&mut cx).is_pending(), "nothing new");
        }
        log.append_gap(Position(BASE + 1), GapReason::BrokerLostData);
        log.show();
        assert!(listener.wake.poll(&mut cx).is_ready(), "a gap");
        drop(registration);
    }

    #[derive(Debug, Clone)]
    enum Step {
        /// Key, size, distance from the event before, and whether that one is known.
        Append(u8, usize, u64, bool),
        /// An event that does not follow: its chain is broken, or it is known.
        Offer(bool),
        /// Forward where history has expired, back where a tail was lost.
        Gap(i64),
        Show,
        /// Which listener, one by one or as a batch.
        Read(usize, bool),
        /// The listener that has fallen off skips ahead, or is given what is remembered of each
        /// key.
        GetUp(usize, bool),
        Age(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let size = prop_oneof![8 => 0..50usize, 1 => 20_000..30_000usize, 1 => Just(70_000usize)];
        prop_oneof![
            10 => (0..4u8, size, 1..3u64, any::<bool>()).prop_map(|(key, size, far, known)| Step::Append(key, size, far, known)),
            1 => any::<bool>().prop_map(Step::Offer),
            1 => (-5..5i64).prop_map(Step::Gap),
            6 => Just(Step::Show),
            8 => (0..3usize, any::<bool>()).prop_map(|(who, batch)| Step::Read(who, batch)),
            2 => (0..3usize, any::<bool>()).prop_map(|(who, latest)| Step::GetUp(who, latest)),
            1 => (0..60u64).prop_map(Step::Age),
        ]
    }

    /// The log as a list that forgets nothing, with a note of what a ring would have dropped.
    struct Naive {
        all: Vec<NaiveEntry>,
        first: usize,
        visible: usize,
        head: u64,
        expected_previous: u64,
        /// The highest position so far.
        given: u64,
        latest: bool,
        max_events: usize,
        max_bytes: usize,
    }

    struct NaiveEntry {
        position: u64,
        /// What comes next names this as its previous.
        expected_previous: u64,
        /// `None`: a gap.
        key: Option<u8>,
        weight: usize,
        cost: usize,
        at: Instant,
    }

    #[derive(Debug, PartialEq)]
    enum Told {
        Nothing,
        FellOff,
        /// What was written, and the place after it.
        Text(String, u64),
    }

    impl Naive {
        fn push(&mut self, position: u64, expected_previous: u64, key: Option<u8>, weight: usize) {
            let cost = ENTRY_COST + if key.is_some() { 3 * weight } else { 0 };
            let at = Instant::now();
            self.all.push(NaiveEntry {
                position,
                expected_previous,
                key,
                weight,
                cost,
                at,
            });
            (self.head, self.expected_previous) = (position, expected_previous);
            self.given = self.given.max(position);
            while self.all.len() - self.first > self.max_events
                || (self.all.len() - self.first > 1
                    && self.all[self.first..].iter().map(|e| e.cost).sum::<usize>() > self.max_bytes)
            {
                self.first += 1;
            }
        }

        fn is_superseded(&self, place: usize) -> bool {
            let key = self.all[place].key;
            self.latest && key.is_some() && self.all[place + 1..self.visible].iter().any(|later| later.key == key)
        }

        fn read(&self, from: u64) -> Told {
            let from = usize::try_from(from).unwrap();
            if from >= self.visible {
                return Told::Nothing;
            }
            if from < self.first {
                return Told::FellOff;
            }
            let (mut text, mut bytes, mut next) = (String::new(), 0, from);
            while next < self.visible && bytes < READ_BYTES {
                let entry = &self.all[next];
                if !self.is_superseded(next) {
                    let sign = if entry.key.is_none() { "g" } else { "" };
                    text += &format!("{sign}{} ", entry.position);
                    bytes += entry.weight;
                }
                next += 1;
            }
            Told::Text(text, next as u64)
        }

        /// A cursor is known if it is the head, stands in the ring, or just before it; of two that
        /// are the same, the later counts. That of a gap behind which the stream goes back is none,
        /// because it stands for events that are lost.
        fn find(&self, cursor: u64) -> Found {
            let log_start = self
                .first
                .checked_sub(1)
                .map_or(BASE, |before| self.all[before].expected_previous);
            let is_at = |place: &usize| (self.all[*place].position, self.all[*place].expected_previous) == (cursor, cursor);
            match (self.first..self.all.len()).rev().find(is_at) {
                _ if (cursor, cursor) == (self.head, self.expected_previous) => Found::At(self.all.len() as u64),
                Some(place) => Found::At(place as u64 + 1),
                None if cursor == log_start => Found::At(self.first as u64),
                None if cursor > self.head => Found::Ahead,
                None => Found::Unknown,
            }
        }

        fn position_before(&self, place: u64) -> u64 {
            let before = usize::try_from(place).unwrap().checked_sub(1);
            before.map_or(BASE, |before| self.all[before].expected_previous)
        }

        /// The newest event of each key from `place` on, unless it is still to be shown.
        fn newest(&self, place: u64) -> Vec<u64> {
            let newest = |at: usize| {
                let key = self.all[at].key;
                key.is_some() && self.all[at + 1..].iter().all(|later| later.key != key)
            };
            let from = usize::try_from(place).unwrap();
            // What has left the ring before it was shown is as good as shown.
            (from..self.visible.max(self.first).max(from))
                .filter(|&at| newest(at))
                .map(|at| self.all[at].position)
                .collect()
        }
    }

    fn read(log: &Log, from: u64, batch: bool, slot: &FormatSlot) -> (Told, Option<Position>) {
        let text = |bytes: &[u8]| std::str::from_utf8(bytes).unwrap().to_owned();
        if batch {
            return match log.read_batch(from, slot) {
                Read::Nothing => (Told::Nothing, None),
                Read::FellOff => (Told::FellOff, None),
                Read::Some(batch) => (
                    Told::Text(text(&batch.bytes), batch.next),
                    (batch.events > 0).then_some(batch.cursor),
                ),
            };
        }
        match log.read_entries(from) {
            Read::Nothing => (Told::Nothing, None),
            Read::FellOff => (Told::FellOff, None),
            Read::Some((entries, next)) => {
                let all = entries.iter().map(|entry| text(entry.bytes(&log.name, slot))).collect();
                (Told::Text(all, next), entries.last().map(|entry| entry.position()))
            }
        }
    }

    async fn compare(steps: Vec<Step>, delivery: Delivery, replay: ReplayOnSubscribe, max_events: usize, max_bytes: usize) {
        let log = log(rule(delivery, replay), max_events, max_bytes);
        let slot = slot();
        let mut naive = Naive {
            all: Vec::new(),
            first: 0,
            visible: 0,
            head: BASE,
            expected_previous: BASE,
            given: BASE,
            latest: delivery == Delivery::Latest,
            max_events,
            max_bytes,
        };
        // Where each listener stands: place and cursor.
        let mut listeners = [(0u64, Position(BASE)); 3];
        let mut last_gap = 0;
        for step in steps {
            match step {
                Step::Append(key, size, far, known) => {
                    // Never given twice, not even where the head went back.
                    let position = naive.given + far;
                    let previous = if known { naive.expected_previous } else { 0 };
                    let event = event(position, previous, key, size);
                    let weight = event.message.weight();
                    assert_eq!(log.append(event), Appended::Yes);
                    naive.push(position, position, Some(key), weight);
                }
                Step::Offer(known) => {
                    let expected_previous = naive.expected_previous;
                    let (offered, answer) = if known {
                        (event(expected_previous, expected_previous - 1, 0, 0), Appended::Known)
                    } else {
                        (event(naive.given + 10, naive.given + 5, 0, 0), Appended::Broken)
                    };
                    assert_eq!(log.append(offered), answer);
                }
                Step::Gap(far) => {
                    let expected_previous = naive.expected_previous.saturating_add_signed(far).max(BASE);
                    log.append_gap(Position(expected_previous), GapReason::HistoryExpired);
                    naive.push(naive.head.max(expected_previous), expected_previous, None, 0);
                    last_gap = naive.all.len() as u64;
                }
                Step::Show => {
                    log.show();
                    naive.visible = naive.all.len();
                }
                Step::Read(who, batch) => {
                    let (place, cursor) = &mut listeners[who];
                    let expected = naive.read(*place);
                    // Twice, as two listeners at the same place would: the second may be given what
                    // was kept of the first.
                    assert_eq!(read(&log, *place, batch, &slot).0, expected);
                    let (told, at) = read(&log, *place, batch, &slot);
                    assert_eq!(told, expected);
                    if let Told::Text(_, next) = told {
                        *place = next;
                        *cursor = at.unwrap_or(*cursor);
                    }
                }
                Step::GetUp(who, latest) => {
                    let (place, cursor) = &mut listeners[who];
                    if naive.read(*place) != Told::FellOff {
                        continue;
                    }
                    let remembered = log.catch_up_latest(*cursor, *place);
                    // Heavy events may be forgotten sooner, and then it must say so; here nothing
                    // is that heavy.
                    assert_eq!(remembered.is_some(), naive.latest && *place >= last_gap);
                    match remembered.filter(|_| latest) {
                        Some(found) => {
                            let given: Vec<u64> = found.first.iter().map(|entry| entry.position().0).collect();
                            assert_eq!(given, naive.newest(*place));
                            *place = found.next;
                            *cursor = found.first.last().map_or(*cursor, |entry| entry.position());
                        }
                        None => (*place, *cursor) = log.skip(),
                    }
                    assert_eq!(*place, naive.visible.max(naive.first) as u64);
                }
                Step::Age(seconds) => {
                    tokio::time::advance(Duration::from_secs(seconds)).await;
                    log.trim();
                    while naive.first < naive.all.len() && naive.all[naive.first].at.elapsed() > Duration::from_secs(100) {
                        naive.first += 1;
                    }
                }
            }
            // What every step must leave true.
            let (entries, bytes, ended) = log.size();
            let kept = &naive.all[naive.first..];
            assert_eq!(
                (entries, bytes, ended),
                (kept.len(), kept.iter().map(|e| e.cost).sum(), false)
            );
            assert_eq!(log.head().0, naive.head);
            for cursor in naive.head.saturating_sub(12)..naive.given + 3 {
                assert_eq!(
                    log.find(Position(cursor)),
                    naive.find(cursor),
                    "cursor {cursor}, head {}",
                    naive.head
                );
            }
            let place = log.begin_fresh().unwrap();
            let visible = naive.visible.max(naive.first) as u64;
            match replay {
                ReplayOnSubscribe::None => {
                    assert_eq!((place.next, place.cursor.0), (visible, naive.position_before(visible)));
                    assert!(place.first.is_empty());
                }
                ReplayOnSubscribe::All => {
                    let first = naive.first as u64;
                    assert_eq!((place.next, place.cursor.0), (first, naive.position_before(first)));
                }
                ReplayOnSubscribe::Last => {
                    let given: Vec<u64> = place.first.iter().map(|entry| entry.position().0).collect();
                    assert_eq!((place.next, given), (visible, naive.newest(0)));
                }
            }
        }
        // A listener that reads on has everything in the end, or of each key the newest.
        log.show();
        naive.visible = naive.all.len();
        for (mut place, _) in listeners {
            let mut heard = String::new();
            let from = place;
            loop {
                let expected = naive.read(place);
                let (told, _) = read(&log, place, true, &slot);
                assert_eq!(told, expected);
                match told {
                    Told::Nothing => break,
                    Told::FellOff => return,
                    Told::Text(text, next) => {
                        heard += &text;
                        place = next;
                    }
                }
            }
            for position in naive.newest(from) {
                assert_eq!(heard.split(' ').filter(|word| *word == position.to_string()).count(), 1);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_ring_is_a_list_that_forgets(
            steps in prop::collection::vec(step(), 1..120),
            latest in any::<bool>(),
            replay in prop_oneof![Just(ReplayOnSubscribe::None), Just(ReplayOnSubscribe::Last), Just(ReplayOnSubscribe::All)],
            max_events in prop_oneof![Just(1usize), 2..6usize, Just(50usize)],
            max_bytes in prop_oneof![Just(1_000_000usize), Just(10_000_000usize)],
        ) {
            let delivery = if latest { Delivery::Latest } else { Delivery::Every };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(compare(steps, delivery, replay, max_events, max_bytes));
        }

        /// What is remembered of each key is the newest, oldest forgotten first, and it is known
        /// what may be missing.
        #[test]
        fn what_is_forgotten_is_the_oldest(puts in prop::collection::vec((0..12u8, 0..300usize), 1..200), roomy in any::<bool>()) {
            let max_bytes = if roomy { 1 << 30 } else { 8 * ENTRY_COST };
            let mut latest = Latest::default();
            let mut newest: Vec<(u64, u8, usize)> = Vec::new();
            let mut forgotten = 0;
            for (place, (key, size)) in (0..).zip(puts) {
                let event = event(place + 1, place, key, size);
                let entry = Entry::new(Item::Event(event.clone()));
                latest.put(event.message.conflation_key(), place, &entry, 0, max_bytes);
                newest.retain(|(_, known, _)| *known != key);
                newest.push((place, key, entry.cost()));
                while newest.len() > 1 && newest.iter().map(|(_, _, cost)| cost).sum::<usize>() > max_bytes {
                    forgotten = newest.remove(0).0 + 1;
                }
                let given: Vec<u64> = latest.between(0, u64::MAX).iter().map(|e| e.position().0 - 1).collect();
                prop_assert_eq!(given, newest.iter().map(|(place, _, _)| *place).collect::<Vec<_>>());
                prop_assert_eq!(latest.whole_from, forgotten);
                prop_assert!(latest.order.len() <= 2 * newest.len() + 65, "{} for {}", latest.order.len(), newest.len());
            }
        }
    }
}

/// Publishing against subscribing, reading, leaving and closing. A lost wake is a deadlock, which
/// loom reports.
#[cfg(all(test, loom))]
mod loom_tests {
    use std::task::Poll;

    use loom::future::block_on;
    use loom::thread;

    use super::*;
    use crate::{Data, EventName, Message};

    const BASE: Position = Position(100);

    fn log() -> Arc<Log> {
        let mut rule = Rule::new("c".parse().unwrap(), vec![]);
        rule.history.events = 0;
        let limits = Limits {
            ring_events: 8,
            ..Limits::default()
        };
        let history = Replay::nothing_after(BASE);
        let memory = RingMemory::new(limits.memory);
        Log::open(
            ChannelName::new("c").unwrap(),
            Arc::new(rule),
            Arc::default(),
            &limits,
            &memory,
            history,
        )
        .unwrap()
    }

    fn event(position: u64) -> Arc<Event> {
        Arc::new(Event {
            position: Position(position),
            previous: Position(position - 1),
            message: Message::new(EventName::new("x").unwrap(), Data::text("")),
        })
    }

    /// More than three switches between threads where none had to be does not find more and takes
    /// for ever.
    fn check(act: impl Fn() + Sync + Send + 'static) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(act);
    }

    fn publish(log: &Log, position: u64) {
        assert_eq!(log.append(event(position)), Appended::Yes);
        log.show();
    }

    /// Reads from `next` until `last` has come, as a session does: clear, read, wait.
    fn read_to(log: &Log, listener: &SessionHandle, mut next: u64, last: u64) -> Vec<u64> {
        let mut heard = Vec::new();
        block_on(std::future::poll_fn(|cx| {
            loop {
                listener.wake.reset();
                match log.read_entries(next) {
                    Read::Some((entries, after)) => {
                        heard.extend(entries.iter().map(|entry| entry.position().0));
                        next = after;
                    }
                    Read::Nothing => {}
                    Read::FellOff => panic!("the ring has room"),
                }
                if heard.last() == Some(&last) {
                    return Poll::Ready(());
                }
                if listener.wake.poll(cx).is_pending() {
                    return Poll::Pending;
                }
            }
        }));
        heard
    }

    /// P4 and P6: a fresh listener has its place, and everything after it.
    #[test]
    fn loom_who_sits_while_events_come_misses_none() {
        check(|| {
            let log = log();
            let publisher = {
                let log = log.clone();
                thread::spawn(move || (101..=102).for_each(|position| publish(&log, position)))
            };
            let listener = Arc::new(SessionHandle::default());
            let registration = log.register(listener.clone(), 0).unwrap();
            let place = log.begin_fresh().unwrap();
            if place.cursor.0 < 102 {
                let heard = read_to(&log, &listener, place.next, 102);
                assert_eq!(heard, (place.cursor.0 + 1..=102).collect::<Vec<_>>());
            }
            publisher.join().unwrap();
            drop(registration);
        });
    }

    /// A listener that is ahead of its node is woken when the node has its position, and goes on
    /// behind it.
    #[test]
    fn loom_who_waits_for_its_node_misses_none() {
        check(|| {
            let log = log();
            let publisher = {
                let log = log.clone();
                thread::spawn(move || (101..=102).for_each(|position| publish(&log, position)))
            };
            let listener = Arc::new(SessionHandle::default());
            let registration = log.register(listener.clone(), 0).unwrap();
            let mut next = 0;
            block_on(std::future::poll_fn(|cx| {
                loop {
                    listener.wake.reset();
                    match log.find(Position(101)) {
                        Found::At(place) => next = place,
                        Found::Ahead if listener.wake.poll(cx).is_pending() => return Poll::Pending,
                        Found::Ahead => continue,
                        Found::Unknown => panic!("101 is in the ring"),
                    }
                    return Poll::Ready(());
                }
            }));
            assert_eq!(read_to(&log, &listener, next, 102), [102]);
            publisher.join().unwrap();
            drop(registration);
        });
    }

    /// Two listeners, of which one leaves: the other is woken all the same.
    #[test]
    fn loom_leaving_takes_no_other_listeners_wake() {
        check(|| {
            let log = log();
            let listeners = [(); 2].map(|()| Arc::new(SessionHandle::default()));
            let [leaves, stays] = listeners
                .each_ref()
                .map(|listener| log.register(listener.clone(), 0).unwrap());
            let leaver = thread::spawn(move || drop(leaves));
            let publisher = {
                let log = log.clone();
                thread::spawn(move || publish(&log, 101))
            };
            assert_eq!(read_to(&log, &listeners[1], 0, 101), [101]);
            leaver.join().unwrap();
            publisher.join().unwrap();
            drop(stays);
        });
    }

    /// A log with a registration is open, and a log that was closed has none.
    #[test]
    fn loom_a_log_is_closed_or_taken_but_not_both() {
        check(|| {
            let log = log();
            let registering = {
                let log = log.clone();
                thread::spawn(move || log.register(Arc::default(), 0))
            };
            let closed = log.close_if_unused(Duration::ZERO);
            let registration = registering.join().unwrap();
            assert_ne!(closed, registration.is_some());
            drop(registration);
            assert!(log.close_if_unused(Duration::ZERO) && log.register(Arc::default(), 0).is_none());
        });
    }
}
