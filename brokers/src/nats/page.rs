//! What of a channel's history may be shown.

use std::sync::Arc;
use std::time::Duration;

use airwave_core::rule::History;
use airwave_core::{Event, PageLimit, Replay};

use super::stored::{Chain, Stored};

/// What of a channel may be shown, and how it stands.
pub(super) struct Page {
    pub(super) history: History,
    pub(super) now: u64,
    pub(super) chain: Chain,
    /// The message that holds the head: most channels that are opened have few events, and this one
    /// is not asked for twice.
    pub(super) newest: Option<Stored>,
}

impl Page {
    /// Whether the event is within what the rule keeps. The stream may keep more.
    pub(super) fn judges(&self, stored: &Stored) -> Age {
        let newer = self.chain.events.saturating_sub(stored.chain.events) as usize;
        let bytes = self.chain.bytes.saturating_sub(stored.bytes_before);
        if stored.event.is_none() || newer >= self.history.events || bytes > self.history.bytes as u64 {
            return Age::Beyond;
        }
        match self.now.checked_sub(stored.stored_at) {
            None => Age::Unknown,
            Some(age) if Duration::from_micros(age) <= self.history.age => Age::Young,
            Some(_) => Age::TooOld,
        }
    }

    pub(super) fn replay(&self, events: Vec<Arc<Event>>, complete: bool, more: bool) -> Replay {
        Replay::new(self.chain.head, events)
            .with_complete(complete)
            .with_more(more)
            .with_ended(self.chain.ended)
    }

    pub(super) fn newest(&self, events: Vec<Arc<Event>>) -> Replay {
        let begin = events.first().map_or(self.chain.head, |oldest| oldest.previous);
        self.replay(events, begin == self.chain.base, false)
    }
}

/// Whether a page that holds these events, so many bytes in all, takes another one.
pub(super) fn has_room(events: &[Arc<Event>], bytes: usize, event: &Event, limit: PageLimit) -> bool {
    let bytes = bytes.saturating_add(event.message.weight());
    events.len() < limit.events && (events.is_empty() || bytes <= limit.bytes)
}

/// How an event stands to what the rule keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Age {
    /// Too many events or bytes have come after it, or it is none.
    Beyond,
    /// It was stored too long ago.
    TooOld,
    /// Stored at a time that is still to come: the server's clock was set. What came after it
    /// decides.
    Unknown,
    Young,
}

/// Where a page begins: with the first event that is young. From there on all are shown, whatever
/// their age: only the beginning of a history can be too old, and a clock that was set back makes
/// no hole.
#[derive(Debug, Default)]
pub(super) struct Beginning {
    found: bool,
    /// Those of unknown age before it.
    undecided: Vec<Arc<Event>>,
}

impl Beginning {
    /// What is to be shown now that this event is next.
    pub(super) fn next(&mut self, age: Age, event: Arc<Event>) -> impl Iterator<Item = Arc<Event>> + use<> {
        let found = self.found || age == Age::Young;
        let before = if found && !self.found { self.rest() } else { Vec::new() };
        self.found = found;
        let now = if found {
            Some(event)
        } else {
            match age {
                Age::Unknown => self.undecided.push(event),
                _ => self.undecided.clear(),
            }
            None
        };
        before.into_iter().chain(now)
    }

    /// Nothing came after those of unknown age that is too old.
    pub(super) fn rest(&mut self) -> Vec<Arc<Event>> {
        std::mem::take(&mut self.undecided)
    }

    pub(super) fn of_all(&mut self, events: Vec<(Age, Arc<Event>)>) -> Vec<Arc<Event>> {
        let mut shown: Vec<_> = events.into_iter().flat_map(|(age, event)| self.next(age, event)).collect();
        shown.append(&mut self.rest());
        shown
    }

    /// Behind a hole: what is undecided before it is not shown. True: nothing was shown yet.
    pub(super) fn forget(&mut self) -> bool {
        self.undecided.clear();
        !self.found
    }

    /// Whether everything so far is left out.
    pub(super) fn is_open(&self) -> bool {
        !self.found && self.undecided.is_empty()
    }
}
