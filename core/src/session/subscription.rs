//! A subscription is one channel of a session: a state machine that reads it, and the bytes that it
//! writes.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::catch_up::{CatchUp, CatchUpStep};
use super::progress::Progress;
use crate::admission::{Admission, Connection};
use crate::channel::Channel;
use crate::cursor::StreamCursor;
use crate::event::{ChannelName, Position};
use crate::format::{GapReason, Notice, Stamp};
use crate::format_slot::FormatSlot;
use crate::handler::{Client, DynHandler, LeaveReason};
use crate::log::{Batch, Entry, Found, Item, Log, Read, Registration};
use crate::presence::Membership;
use crate::rule::SlowPolicy;
use crate::sessions::Sessions;

/// The fields stand in memory in this order, like the session's.
#[repr(C)]
pub(super) struct Subscription {
    registration: Registration,
    reader: Reader,
    progress: Progress,
    pub(super) membership: Option<Box<Membership>>,
    /// Holds the index into the session's stream cursor, as [`StreamCursor::set`] gave it.
    pub(super) stamp_index: usize,
    on_unsubscribe: Option<Box<OnUnsubscribe>>,
}

/// A reader says from where a listener gets what comes next.
pub(super) enum Reader {
    /// The listener reads the ring.
    Ring {
        /// Names the index of the next entry.
        next: u64,
    },
    /// The listener reads history, or what the ring has remembered, and then the ring.
    CatchUp(Box<CatchUp>),
    /// The listener comes from a node that was ahead. It waits until this one has its position,
    /// too.
    Ahead,
    /// The channel has ended, and the listener has received the end.
    Ended,
}

impl Reader {
    /// Makes a reader of some entries first, then of the ring from `next`.
    pub(super) fn before_ring(first: impl Into<VecDeque<Arc<Entry>>>, next: u64) -> Self {
        let first = first.into();
        match first.is_empty() {
            true => Reader::Ring { next },
            false => Reader::CatchUp(CatchUp::before_ring(first, next)),
        }
    }
}

/// The drop of this value tells the handler that a subscription is over.
pub(super) struct OnUnsubscribe {
    pub(super) admission: Arc<Admission>,
    pub(super) handler: Arc<dyn DynHandler>,
    pub(super) client: Arc<Client>,
    pub(super) channel: Channel,
    pub(super) reason: LeaveReason,
}

impl Drop for OnUnsubscribe {
    fn drop(&mut self) {
        let (handler, client, channel) = (self.handler.clone(), self.client.clone(), self.channel.clone());
        self.admission.unsubscribed(handler, client, channel, self.reason);
    }
}

/// A subscription needs this to write what it reads.
pub(super) struct Reading<'a> {
    pub(super) slot: &'a FormatSlot,
    /// Holds the stream for formats whose events carry the cursor of the whole stream.
    pub(super) stream: Option<StampedStream<'a>>,
    pub(super) sessions: &'a Arc<Sessions>,
    /// Costs one more fetch from memory, so it serves only reads of what the ring does not hold.
    pub(super) connection: &'a Arc<Connection>,
    pub(super) sample: bool,
    pub(super) out: &'a mut Vec<Bytes>,
}

/// A session's stream has this cursor. A subscription is one channel of the stream.
pub(super) struct StampedStream<'a> {
    pub(super) stamp: Stamp,
    pub(super) cursor: &'a mut StreamCursor,
    /// Holds the channel's index in the cursor.
    pub(super) index: usize,
}

/// The listener was too slow for a channel whose rule says close.
pub(super) struct TooSlow;

/// Entries that are written one by one come from one of these.
#[derive(Clone, Copy, PartialEq, Eq)]
enum EntrySource {
    Ring,
    CatchUp,
}

/// Says whether a subscription takes another step. It takes none if it has written enough, or
/// nothing waits.
type Flow = ControlFlow<()>;

impl Subscription {
    pub(super) fn new(
        registration: Registration,
        reader: Reader,
        progress: Progress,
        membership: Option<Box<Membership>>,
        stamp_index: usize,
        on_unsubscribe: Option<Box<OnUnsubscribe>>,
    ) -> Self {
        Self {
            registration,
            reader,
            progress,
            membership,
            stamp_index,
            on_unsubscribe,
        }
    }

    pub(super) fn channel(&self) -> &ChannelName {
        &self.registration.log.name
    }

    /// Returns whether the channel has ended and the listener has received the end.
    pub(super) fn is_ended(&self) -> bool {
        matches!(self.reader, Reader::Ended)
    }

    /// Returns whether only a wake by its log brings more. The subscription is then at the ring's
    /// end and awaits no answer.
    pub(super) fn is_drained(&self) -> bool {
        matches!(self.reader, Reader::Ring { next } if self.registration.log.is_read(next))
    }

    /// Ends the subscription, for this reason.
    pub(super) fn leave(mut self, reason: LeaveReason) {
        if let Some(on_unsubscribe) = &mut self.on_unsubscribe {
            on_unsubscribe.reason = reason;
        }
        if let Some(membership) = &mut self.membership {
            membership.at_once = true;
        }
    }

    /// Writes what waits, as much as one read gives.
    pub(super) fn read(&mut self, reading: &mut Reading<'_>, cx: &mut Context<'_>) -> Result<(), TooSlow> {
        loop {
            let step = match &mut self.reader {
                Reader::Ring { next } => {
                    let next = *next;
                    self.read_ring(next, reading)?
                }
                Reader::CatchUp(catch_up) => {
                    let step = catch_up.poll_step(&self.registration.log, &self.progress, reading.connection, cx);
                    self.caught_up(step, reading)
                }
                Reader::Ahead => self.look_for_position(),
                Reader::Ended => Flow::Break(()),
            };
            if step.is_break() {
                return Ok(());
            }
        }
    }

    /// Reads the ring from `next` on. It takes bytes that are shared, or entries one by one where
    /// this listener needs bytes of its own.
    fn read_ring(&mut self, next: u64, reading: &mut Reading<'_>) -> Result<Flow, TooSlow> {
        let log = &self.registration.log;
        if reading.stream.is_none() && self.progress.skips_nothing() {
            match log.read_batch(next, reading.slot) {
                Read::Nothing => return Ok(Flow::Break(())),
                Read::FellOff => return self.fell_off(next, reading),
                Read::Some(batch) if batch.opens_after.is_none_or(|after| after == self.progress.cursor) => {
                    return Ok(self.take_batch(batch, reading));
                }
                Read::Some(_) => {}
            }
        }
        match log.read_entries(next) {
            Read::Nothing => Ok(Flow::Break(())),
            Read::FellOff => self.fell_off(next, reading),
            Read::Some(collected) => {
                let ended = reading.write(log, &mut self.progress, &collected.entries, EntrySource::Ring);
                self.progress.expected_previous = collected.expected_previous;
                Ok(self.move_to(collected.next, ended, !reading.out.is_empty()))
            }
        }
    }

    /// Writes a piece of bytes that listeners at the same index share.
    fn take_batch(&mut self, batch: Batch, reading: &mut Reading<'_>) -> Flow {
        self.progress.expected_previous = batch.expected_previous;
        if batch.events == 0 {
            return self.move_to(batch.next, false, false);
        }
        self.progress.cursor = batch.cursor;
        let log = &self.registration.log;
        reading.count(log, batch.events, batch.bytes.len(), batch.oldest);
        if let Some(reason) = batch.gap {
            log.figures.gap(reason);
        }
        reading.out.push(batch.bytes);
        self.move_to(batch.next, batch.ended, true)
    }

    /// Moves on, because the listener has everything of the ring before `next`.
    fn move_to(&mut self, next: u64, ended: bool, wrote: bool) -> Flow {
        self.reader = match ended {
            true => Reader::Ended,
            false => Reader::Ring { next },
        };
        match wrote || ended {
            true => Flow::Break(()),
            false => Flow::Continue(()),
        }
    }

    fn caught_up(&mut self, step: Poll<CatchUpStep>, reading: &mut Reading<'_>) -> Flow {
        let Poll::Ready(step) = step else {
            return Flow::Break(());
        };
        match step {
            CatchUpStep::Send(entries) => {
                if reading.write(&self.registration.log, &mut self.progress, &entries, EntrySource::CatchUp) {
                    self.reader = Reader::Ended;
                }
            }
            CatchUpStep::Again => {}
            CatchUpStep::Ring(next) => self.reader = Reader::Ring { next },
            CatchUpStep::Ahead => self.reader = Reader::Ahead,
        }
        match reading.out.is_empty() {
            true => Flow::Continue(()),
            false => Flow::Break(()),
        }
    }

    /// Looks whether this node has come as far as the listener.
    fn look_for_position(&mut self) -> Flow {
        let log = &self.registration.log;
        self.reader = match log.find(self.progress.expected_previous) {
            Found::Ahead => return Flow::Break(()),
            // The listener has received the end from the other node.
            Found::At(next) if log.is_over(next) => Reader::Ended,
            Found::At(next) => Reader::Ring { next },
            // This node has come past the position without having it. The broker knows whether it
            // was lost.
            Found::Unknown => Reader::CatchUp(CatchUp::from_history()),
        };
        Flow::Continue(())
    }

    /// Handles a listener at `next` that the ring has left behind.
    fn fell_off(&mut self, next: u64, reading: &Reading<'_>) -> Result<Flow, TooSlow> {
        let log = &self.registration.log;
        reading.sessions.backbone.metrics.slow(log.rule.slow);
        // Only the newest event of each key counts in a conflated channel. As long as the log
        // remembers those, nothing is lost.
        if let Some(start) = log.catch_up_latest(self.progress.cursor, next) {
            self.reader = Reader::before_ring(start.first, start.next);
            return Ok(Flow::Continue(()));
        }
        self.reader = match log.rule.slow {
            SlowPolicy::Close => return Err(TooSlow),
            SlowPolicy::Skip => {
                let (next, expected_previous) = log.skip();
                let gap = Entry::gap(Some(self.progress.cursor), expected_previous, GapReason::TooSlow);
                Reader::before_ring([gap], next)
            }
            SlowPolicy::Refill => Reader::CatchUp(CatchUp::too_slow()),
        };
        Ok(Flow::Continue(()))
    }
}

impl Reading<'_> {
    /// Writes entries one by one, each with the stream's cursor where the format has one. Returns
    /// whether the channel's end is among them.
    fn write(&mut self, log: &Log, progress: &mut Progress, entries: &[Arc<Entry>], source: EntrySource) -> bool {
        let mut bytes = BytesMut::new();
        let (mut events, mut ended) = (0, false);
        for entry in entries {
            let own = own_gap(entry, progress.cursor);
            let entry = own.as_ref().unwrap_or(entry);
            if !progress.advance(entry) {
                continue;
            }
            ended |= entry.is_end();
            if let Item::Gap { gap, .. } = &entry.item {
                log.figures.gap(gap.reason);
                // The ring has only what comes behind its own gaps.
                if source == EntrySource::CatchUp {
                    progress.skip_what_was_lost(|| log.head());
                }
            }
            events += 1;
            self.encode(log, entry, &mut bytes);
        }
        if let (Some(first), false) = (entries.first(), bytes.is_empty()) {
            self.count(log, events, bytes.len(), first.at);
            self.out.push(bytes.freeze());
        }
        ended
    }

    fn encode(&mut self, log: &Log, entry: &Entry, bytes: &mut BytesMut) {
        let Some(StampedStream { stamp, cursor, index }) = &mut self.stream else {
            bytes.extend_from_slice(entry.bytes(&log.name, self.slot));
            return;
        };
        cursor.advance(*index, entry.position());
        match &entry.item {
            Item::Event(event) if event.is_end() => {
                let notice = Notice::End {
                    channel: &log.name,
                    cursor: event.position,
                    stamp: Some(&cursor.snapshot()),
                };
                bytes.extend_from_slice(&self.slot.format.notice(&notice));
            }
            Item::Event(_) | Item::Hidden(_) => {
                bytes.extend_from_slice(entry.bytes(&log.name, self.slot));
                stamp(&**cursor, bytes);
            }
            Item::Gap { gap, .. } => {
                let notice = Notice::Gap {
                    channel: &log.name,
                    gap,
                    stamp: Some(&cursor.snapshot()),
                };
                bytes.extend_from_slice(&self.slot.format.notice(&notice));
            }
        }
    }

    fn count(&self, log: &Log, events: u64, bytes: usize, oldest: Instant) {
        log.figures.delivered(self.slot.index, events, bytes);
        if self.sample {
            let metrics = &self.sessions.backbone.metrics;
            metrics.publish_to_write_seconds.observe(oldest.elapsed());
        }
    }
}

/// Returns the gap that a listener at `cursor` receives instead of this one of the log's.
///
/// The log's own gaps begin where the log stood. Past a fork a listener may stand elsewhere,
/// because it was ahead or is new.
fn own_gap(entry: &Entry, cursor: Position) -> Option<Arc<Entry>> {
    match &entry.item {
        Item::Gap { gap, expected_previous } if gap.after.is_some_and(|after| after != cursor) => {
            Some(Entry::gap(Some(cursor), *expected_previous, gap.reason))
        }
        _ => None,
    }
}
