//! What a ring holds at one index, with the bytes that its listeners are sent.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use tokio::time::Instant;

use crate::event::{ChannelName, Event, Position};
use crate::format::{Gap, GapReason, MAX_FORMATS, Notice};
use crate::format_slot::FormatSlot;
use crate::sync::AtomicU64;

/// What an entry costs besides its payload: the entry, its slots, names.
pub(super) const ENTRY_COST: usize = 320;

/// An event of a channel, or an announced loss.
pub(crate) struct Entry {
    pub(crate) item: Item,
    pub(crate) at: Instant,
    /// The index of the newer event with the same key; [`u64::MAX`]: there is none.
    superseded_by: AtomicU64,
    encoded: [OnceLock<Bytes>; MAX_FORMATS],
}

pub(crate) enum Item {
    Event(Arc<Event>),
    /// An event of a later version that no listener is shown. It keeps its place in the chain, and
    /// cursors pass it.
    Hidden(Arc<Event>),
    /// What its listeners are told, and the position that the next event names as its previous.
    /// After a lost tail that lies behind what listeners have had; the cursor they are given does
    /// not go back, or a node that does not know of the loss yet would send them the lost events
    /// once more.
    Gap {
        gap: Gap,
        expected_previous: Position,
    },
}

/// What a listener is sent of the ring.
pub(crate) struct Collected {
    pub(crate) entries: Vec<Arc<Entry>>,
    /// The index after the last entry that was looked at.
    pub(crate) next: u64,
    /// What the next event names as its previous: the position of that entry, which may be hidden.
    pub(crate) expected_previous: Position,
}

impl Entry {
    /// An event, which is shown or hidden.
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

    /// Where a listener stands that has been given this.
    pub(crate) fn position(&self) -> Position {
        match &self.item {
            Item::Event(event) | Item::Hidden(event) => event.position,
            Item::Gap { gap, .. } => gap.cursor,
        }
    }

    /// The position that the next event names as its previous.
    pub(crate) fn expected_previous(&self) -> Position {
        match &self.item {
            Item::Event(event) | Item::Hidden(event) => event.position,
            Item::Gap { expected_previous, .. } => *expected_previous,
        }
    }

    /// The event, also a hidden one.
    pub(super) fn as_event(&self) -> Option<&Arc<Event>> {
        match &self.item {
            Item::Event(event) | Item::Hidden(event) => Some(event),
            Item::Gap { .. } => None,
        }
    }

    /// Whether no listener is shown this.
    pub(crate) fn is_hidden(&self) -> bool {
        matches!(self.item, Item::Hidden(_))
    }

    /// Whether a listener with this cursor goes on behind this entry. Not behind a gap whose cursor
    /// stands for lost events: a listener with that cursor may not have been told.
    pub(super) fn is_at(&self, cursor: Position) -> bool {
        self.position() == cursor && self.expected_previous() == cursor
    }

    pub(crate) fn is_end(&self) -> bool {
        matches!(&self.item, Item::Event(event) if event.is_end())
    }

    pub(super) fn is_gap(&self) -> bool {
        matches!(self.item, Item::Gap { .. })
    }

    /// A newer event with the same key has come, at this index.
    pub(super) fn supersede(&self, index: u64) {
        self.superseded_by.store(index, Ordering::Release);
    }

    /// Whether a newer event with the same key stands before `index`.
    pub(super) fn is_superseded_before(&self, index: u64) -> bool {
        self.superseded_by.load(Ordering::Acquire) < index
    }

    /// The bytes for the socket: made once per format, on first need. None for what is hidden.
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

    /// The payload's part of [`Entry::cost`], and of what one read takes.
    pub(crate) fn weight(&self) -> usize {
        self.as_event().map_or(0, |event| event.message.weight())
    }

    /// What it costs to keep, with room for its bytes in two formats.
    pub(super) fn cost(&self) -> usize {
        ENTRY_COST + 3 * self.weight()
    }
}
