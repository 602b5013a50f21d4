//! One channel: its history, its idempotency keys and its feeds.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use airwave_core::broker::{FeedSender, IDEMPOTENCY_WINDOW};
use airwave_core::idempotency::{Fingerprint, ScopedKey};
use airwave_core::rule::History;
use airwave_core::shrink::shrink;
use airwave_core::{Append, ChannelName, Event, Message, PageLimit, Position, Replay};
use tokio::time::Instant;

use super::epochs::{EpochPair, HONOURED_FOR};

/// An unused channel is remembered at least so long, and at least as long as its history.
pub(super) const FORGET_AFTER: Duration = Duration::from_secs(600);

/// How long a channel without events is remembered whose first position is not honoured any more,
/// so that its last listener can come back. With a round of sweeps this is less than five minutes.
const FORGET_SILENT_AFTER: Duration = Duration::from_secs(200);

pub(super) struct Channel {
    pub(super) name: ChannelName,
    pub(super) history: History,
    pub(super) state: Mutex<ChannelState>,
}

pub(super) struct ChannelState {
    /// The position that stands for "no event yet"; the first event's previous.
    pub(super) base: Position,
    /// The newest event's position, or the base. It stays when history is trimmed, so the chain
    /// never breaks.
    pub(super) head: Position,
    pub(super) kept: VecDeque<Kept>,
    pub(super) bytes: usize,
    pub(super) ended: bool,
    pub(super) keys: HashMap<ScopedKey, (Position, Fingerprint)>,
    pub(super) keys_by_age: VecDeque<(Instant, ScopedKey)>,
    pub(super) feeds: Vec<(u64, FeedSender)>,
    pub(super) feeds_opened: u64,
    pub(super) touched: Instant,
    /// What [`Shared::used`] counts of this channel.
    pub(super) counted: usize,
    /// It is no longer among the channels. A caller that still holds it looks the name up again.
    pub(super) forgotten: bool,
}

pub(super) struct Kept {
    pub(super) since: Instant,
    pub(super) event: Arc<Event>,
}

impl ChannelState {
    pub(super) fn new(base: Position, now: Instant) -> Self {
        ChannelState {
            base,
            head: base,
            kept: VecDeque::new(),
            bytes: 0,
            ended: false,
            keys: HashMap::new(),
            keys_by_age: VecDeque::new(),
            feeds: Vec::new(),
            feeds_opened: 0,
            touched: now,
            counted: 0,
            forgotten: false,
        }
    }

    pub(super) fn append(&mut self, history: &History, now: Instant, append: Append) -> Position {
        let end = append.end_behind();
        let key = append.idempotency_key.clone().map(|key| (key, append.fingerprint()));
        self.ended = append.ends_channel();
        self.append_one(history, now, append.message);
        if let Some(end) = end {
            self.append_one(history, now, end);
        }
        if let Some((key, fingerprint)) = key {
            self.keys.insert(key.clone(), (self.head, fingerprint));
            self.keys_by_age.push_back((now, key));
        }
        self.head
    }

    pub(super) fn append_one(&mut self, history: &History, now: Instant, message: Message) {
        let position = self.head.next();
        let event = Arc::new(Event::new(position, self.head, message));
        self.head = position;
        self.bytes += event.message.weight();
        self.kept.push_back(Kept {
            since: now,
            event: event.clone(),
        });
        while self.kept.len() > history.events || self.bytes > history.bytes {
            self.drop_oldest();
        }
        // Feeds last: what a feed shows can be replayed. One that ended or is gone is dropped.
        self.feeds.retain(|(_, feed)| feed.push(event.clone()));
    }

    pub(super) fn replay(&self, after: Option<Position>, limit: PageLimit) -> Replay {
        // What is kept begins after this position: the head, if nothing is.
        let begin = self.kept.front().map_or(self.head, |oldest| oldest.event.previous);
        let (range, complete) = match after {
            Some(after) => {
                let first_after = self.kept.partition_point(|kept| kept.event.position <= after);
                let held = first_after > 0 && self.kept[first_after - 1].event.position == after;
                let end = first_after + limit.fitting(self.kept.range(first_after..).map(|kept| &*kept.event));
                // Equality, not `<=`: a position within the range that is not there was lost.
                (first_after..end, held || after == begin)
            }
            None => {
                let first = self.kept.len() - limit.fitting(self.kept.iter().rev().map(|kept| &*kept.event));
                (first..self.kept.len(), first == 0 && begin == self.base)
            }
        };
        let more = range.end < self.kept.len();
        let events = self.kept.range(range).map(|kept| kept.event.clone()).collect();
        Replay::new(self.head, events)
            .with_complete(complete)
            .with_more(more)
            .with_ended(self.ended)
    }

    /// Drops events and keys that are too old, at most `most` of each, and gives how many that
    /// were.
    pub(super) fn expire(&mut self, age: Duration, now: Instant, most: usize) -> usize {
        let too_old = |kept: &&Kept| now - kept.since > age;
        let events = self.kept.iter().take(most).take_while(too_old).count();
        for _ in 0..events {
            self.drop_oldest();
        }
        let too_old = |(since, _): &&(Instant, ScopedKey)| now - *since > IDEMPOTENCY_WINDOW;
        let keys = self.keys_by_age.iter().take(most).take_while(too_old).count();
        for (_, key) in self.keys_by_age.drain(..keys) {
            self.keys.remove(&key);
        }
        shrink(&mut self.keys);
        shrink(&mut self.keys_by_age);
        shrink(&mut self.kept);
        events + keys
    }

    pub(super) fn drop_oldest(&mut self) {
        if let Some(oldest) = self.kept.pop_front() {
            self.bytes -= oldest.event.message.weight();
        }
    }

    /// Whether there is nothing in it but its place in the chain.
    pub(super) fn is_bare(&self) -> bool {
        self.feeds.is_empty() && self.kept.is_empty() && self.keys.is_empty()
    }

    /// Whether nothing needs the channel. If only the epochs do, `waits_for` learns of its newest
    /// position.
    pub(super) fn unused(&self, age: Duration, now: Instant, epochs: &EpochPair, waits_for: &mut Position) -> bool {
        if !self.feeds.is_empty() {
            return false;
        }
        let unused_for = now.duration_since(self.touched);
        if self.head == self.base {
            return self.keys.is_empty() && (epochs.honours(self.base) || unused_for >= FORGET_SILENT_AFTER);
        }
        let after = age.max(FORGET_AFTER);
        // The epochs move on in time for it.
        if unused_for + HONOURED_FOR >= after && self.head >= epochs.before() {
            *waits_for = self.head.max(*waits_for);
        }
        if !(self.kept.is_empty() && self.keys.is_empty()) {
            return false;
        }
        unused_for >= after && self.head < epochs.before()
    }
}
