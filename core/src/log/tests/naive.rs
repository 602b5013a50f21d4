//! This model of the log is a list that forgets nothing, with a note of what a ring would have
//! dropped.

use std::time::Duration;

use tokio::time::Instant;

use super::BASE;
use crate::log::entry::ENTRY_COST;
use crate::log::{Found, READ_BYTES};

pub(super) struct Naive {
    pub(super) all: Vec<NaiveEntry>,
    pub(super) first: usize,
    pub(super) visible: usize,
    pub(super) head: u64,
    pub(super) expected_previous: u64,
    /// Holds the highest position so far.
    pub(super) highest: u64,
    pub(super) latest: bool,
    max_events: usize,
    max_bytes: usize,
}

pub(super) struct NaiveEntry {
    position: u64,
    /// The next entry names this position as its previous.
    expected_previous: u64,
    /// Holds the event's key. `None` marks a gap.
    key: Option<u8>,
    weight: usize,
    cost: usize,
    at: Instant,
}

/// A read of the model gives this result.
#[derive(Debug, PartialEq)]
pub(super) enum ReadText {
    Nothing,
    FellOff,
    /// The read gives this text, and the index after it.
    Text(String, u64),
}

impl Naive {
    pub(super) fn new(latest: bool, max_events: usize, max_bytes: usize) -> Self {
        Self {
            all: Vec::new(),
            first: 0,
            visible: 0,
            head: BASE,
            expected_previous: BASE,
            highest: BASE,
            latest,
            max_events,
            max_bytes,
        }
    }

    pub(super) fn push(&mut self, position: u64, expected_previous: u64, key: Option<u8>, weight: usize) {
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
        self.highest = self.highest.max(position);
        while self.kept().len() > self.max_events || (self.kept().len() > 1 && self.bytes() > self.max_bytes) {
            self.first += 1;
        }
    }

    pub(super) fn drop_older_than(&mut self, age: Duration) {
        while self.kept().first().is_some_and(|entry| entry.at.elapsed() > age) {
            self.first += 1;
        }
    }

    pub(super) fn kept(&self) -> &[NaiveEntry] {
        &self.all[self.first..]
    }

    pub(super) fn bytes(&self) -> usize {
        self.kept().iter().map(|entry| entry.cost).sum()
    }

    /// Returns the index where a new listener begins.
    pub(super) fn live(&self) -> u64 {
        self.visible.max(self.first) as u64
    }

    fn is_superseded(&self, index: usize) -> bool {
        let key = self.all[index].key;
        self.latest && key.is_some() && self.all[index + 1..self.visible].iter().any(|later| later.key == key)
    }

    pub(super) fn read(&self, from: u64) -> ReadText {
        let from = usize::try_from(from).unwrap();
        if from >= self.visible {
            return ReadText::Nothing;
        }
        if from < self.first {
            return ReadText::FellOff;
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
        ReadText::Text(text, next as u64)
    }

    /// Finds where a cursor stands. A cursor is known if it is the head, stands in the ring, or
    /// just before it. Of two that are the same, the later counts. The cursor of a gap behind which
    /// the stream goes back is not known, because it stands for lost events.
    pub(super) fn find(&self, cursor: u64) -> Found {
        let log_start = self
            .first
            .checked_sub(1)
            .map_or(BASE, |before| self.all[before].expected_previous);
        let is_at = |index: &usize| (self.all[*index].position, self.all[*index].expected_previous) == (cursor, cursor);
        match (self.first..self.all.len()).rev().find(is_at) {
            _ if (cursor, cursor) == (self.head, self.expected_previous) => Found::At(self.all.len() as u64),
            Some(index) => Found::At(index as u64 + 1),
            None if cursor == log_start => Found::At(self.first as u64),
            None if cursor > self.head => Found::Ahead,
            None => Found::Unknown,
        }
    }

    pub(super) fn position_before(&self, index: u64) -> u64 {
        let before = usize::try_from(index).unwrap().checked_sub(1);
        before.map_or(BASE, |before| self.all[before].expected_previous)
    }

    /// Returns the newest event of each key from `index` on, unless the log has not shown it yet.
    pub(super) fn newest(&self, index: u64) -> Vec<u64> {
        let newest = |at: usize| {
            let key = self.all[at].key;
            key.is_some() && self.all[at + 1..].iter().all(|later| later.key != key)
        };
        let from = usize::try_from(index).unwrap();
        // An event that left the ring before the log showed it counts as shown.
        (from..self.visible.max(self.first).max(from))
            .filter(|&at| newest(at))
            .map(|at| self.all[at].position)
            .collect()
    }
}
