//! An entry is what a ring holds at one index, with the bytes that its listeners receive.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use tokio::time::Instant;

use crate::event::{ChannelName, Event, Position};
use crate::format::{Gap, GapReason, MAX_FORMATS, Notice};
use crate::format_slot::FormatSlot;
use crate::sync::AtomicU64;

/// Counts what an entry costs besides its payload: the entry, its slots, its names.
pub(super) const ENTRY_COST: usize = 320;

/// An entry is an event of a channel, or an announced loss.
pub(crate) struct Entry {
    pub(crate) item: Item,
    pub(crate) at: Instant,
    /// Holds the index of the newer event with the same key; [`u64::MAX`] means that there is none.
    superseded_by: AtomicU64,
    encoded: [OnceLock<Bytes>; MAX_FORMATS],
}

pub(crate) enum Item {
    Event(Arc<Event>),
    /// The event is of a later version, and no listener sees it. It keeps its index in the chain,
    /// and cursors pass it.
    Hidden(Arc<Event>),
    /// Listeners receive `gap`. `expected_previous` is the position that the next event names as
    /// its previous. After a lost tail this position lies behind what listeners have had. The
    /// cursor of the gap does not go back. Otherwise a node that does not know of the loss yet
    /// would send the listeners the lost events once more.
    Gap {
        gap: Gap,
        expected_previous: Position,
    },
}

/// Holds the part of the ring that a listener receives.
pub(crate) struct Collected {
    pub(crate) entries: Vec<Arc<Entry>>,
    /// Holds the index after the last entry that was looked at.
    pub(crate) next: u64,
    /// Holds the position that the next event names as its previous. It is the position of that
    /// last entry, which may be hidden.
    pub(crate) expected_previous: Position,
}

impl Entry {
    /// Makes the entry of an event. A hidden event makes a hidden entry.
    pub(crate) fn event(event: Arc<Event>) -> Arc<Self> {
        Self::new(match event.is_hidden() {
            true => Item::Hidden(event),
            false => Item::Event(event),
        })
    }

    fn new(item: Item) -> Arc<Self> {
        Arc::new(Self {
            item,
            at: Instant::now(),
            superseded_by: AtomicU64::new(u64::MAX),
            encoded: Default::default(),
        })
    }

    /// Makes the entry of a gap with `after` before it, in a stream that goes on after
    /// `expected_previous`.
    pub(crate) fn gap(after: Option<Position>, expected_previous: Position, reason: GapReason) -> Arc<Self> {
        let cursor = match reason {
            // The position was never given, so the listener has seen nothing up to there.
            GapReason::UnknownPosition => expected_previous,
            _ => after.map_or(expected_previous, |after| after.max(expected_previous)),
        };
        Self::new(Item::Gap {
            gap: Gap { after, cursor, reason },
            expected_previous,
        })
    }

    /// Returns the position of a listener that has received this entry.
    pub(crate) fn position(&self) -> Position {
        match &self.item {
            Item::Event(event) | Item::Hidden(event) => event.position,
            Item::Gap { gap, .. } => gap.cursor,
        }
    }

    /// Returns the position that the next event names as its previous.
    pub(crate) fn expected_previous(&self) -> Position {
        match &self.item {
            Item::Event(event) | Item::Hidden(event) => event.position,
            Item::Gap { expected_previous, .. } => *expected_previous,
        }
    }

    /// Returns the event, also a hidden one.
    pub(super) fn as_event(&self) -> Option<&Arc<Event>> {
        match &self.item {
            Item::Event(event) | Item::Hidden(event) => Some(event),
            Item::Gap { .. } => None,
        }
    }

    /// Returns whether no listener sees this entry.
    pub(crate) fn is_hidden(&self) -> bool {
        matches!(self.item, Item::Hidden(_))
    }

    /// Returns whether a listener with this cursor goes on behind this entry. It does not go on
    /// behind a gap whose cursor stands for lost events: a listener with that cursor may not have
    /// received the gap.
    pub(super) fn is_at(&self, cursor: Position) -> bool {
        self.position() == cursor && self.expected_previous() == cursor
    }

    pub(crate) fn is_end(&self) -> bool {
        matches!(&self.item, Item::Event(event) if event.is_end())
    }

    pub(super) fn is_gap(&self) -> bool {
        matches!(self.item, Item::Gap { .. })
    }

    /// Records that a newer event with the same key has come, at this index.
    pub(super) fn supersede(&self, index: u64) {
        self.superseded_by.store(index, Ordering::Release);
    }

    /// Returns whether a newer event with the same key stands before `index`.
    pub(super) fn is_superseded_before(&self, index: u64) -> bool {
        self.superseded_by.load(Ordering::Acquire) < index
    }

    /// Returns the bytes for the socket. Each format makes them once, on first need. There are none
    /// for a hidden event.
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
            Item::Hidden(_) => Bytes::new(),
            Item::Gap { gap, .. } => slot.format.notice(&Notice::Gap {
                channel,
                gap,
                stamp: None,
            }),
        })
    }

    /// Returns the payload's part of [`Entry::cost`], and of what one read takes.
    pub(crate) fn weight(&self) -> usize {
        self.as_event().map_or(0, |event| event.message.weight())
    }

    /// Returns the cost of keeping the entry, with room for its bytes in two formats.
    pub(super) fn cost(&self) -> usize {
        ENTRY_COST + 3 * self.weight()
    }
}
