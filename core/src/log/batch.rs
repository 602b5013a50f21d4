//! A batch joins several entries to one piece of bytes, which listeners at the same index share.

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::entry::{Collected, Item};
use crate::event::{ChannelName, Position};
use crate::format::{GapReason, MAX_FORMATS};
use crate::format_slot::FormatSlot;

/// A batch holds several events as one piece of bytes.
#[derive(Clone)]
pub(crate) struct Batch {
    pub(crate) bytes: Bytes,
    /// Holds the index after the last entry that was looked at.
    pub(crate) next: u64,
    pub(crate) cursor: Position,
    pub(crate) expected_previous: Position,
    pub(crate) events: u64,
    pub(crate) oldest: Instant,
    pub(crate) ended: bool,
    /// Holds the reason of the last gap in the batch.
    pub(crate) gap: Option<GapReason>,
    /// Holds the position where the gap begins, if the batch opens with a gap. A listener that
    /// stands elsewhere needs a gap notice of its own.
    pub(crate) opens_after: Option<Position>,
}

impl Batch {
    /// Joins the bytes of the collected entries.
    pub(super) fn join(collected: &Collected, channel: &ChannelName, slot: &FormatSlot) -> Self {
        let Collected {
            entries,
            next,
            expected_previous,
        } = collected;
        let (next, expected_previous) = (*next, *expected_previous);
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
            return Self::nothing(next, expected_previous);
        };
        let bytes = match &entries[..] {
            [only] => only.bytes(channel, slot).clone(),
            _ => {
                let total = entries.iter().map(|entry| entry.bytes(channel, slot).len()).sum();
                let mut joined = BytesMut::with_capacity(total);
                for entry in entries {
                    joined.extend_from_slice(entry.bytes(channel, slot));
                }
                joined.freeze()
            }
        };
        Self {
            bytes,
            next,
            cursor: last.position(),
            expected_previous,
            events: entries.len() as u64,
            oldest: first.at,
            ended: last.is_end(),
            gap: entries.iter().rev().find_map(|entry| match &entry.item {
                Item::Gap { gap, .. } => Some(gap.reason),
                Item::Event(_) | Item::Hidden(_) => None,
            }),
            opens_after: match &first.item {
                Item::Gap { gap, .. } => gap.after,
                Item::Event(_) | Item::Hidden(_) => None,
            },
        }
    }

    /// Returns a batch without bytes: every entry is hidden, or superseded by events that are still
    /// to come.
    fn nothing(next: u64, expected_previous: Position) -> Self {
        Self {
            bytes: Bytes::new(),
            next,
            cursor: Position::ZERO,
            expected_previous,
            events: 0,
            oldest: Instant::now(),
            ended: false,
            gap: None,
            opens_after: None,
        }
    }
}

/// This cache holds the run of entries that was last joined for each format. Listeners stand at the
/// same index most of the time.
#[derive(Default)]
pub(super) struct Batches([Option<JoinedRun>; MAX_FORMATS]);

struct JoinedRun {
    from: u64,
    /// Says how far listeners could read when the run was joined.
    visible: u64,
    batch: Batch,
}

impl Batches {
    pub(super) fn get(&self, format: usize, from: u64, visible: u64) -> Option<Batch> {
        let run = self.0[format].as_ref()?;
        ((run.from, run.visible) == (from, visible)).then(|| run.batch.clone())
    }

    pub(super) fn put(&mut self, format: usize, from: u64, visible: u64, batch: Batch) {
        self.0[format] = Some(JoinedRun { from, visible, batch });
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}
