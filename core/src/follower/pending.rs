//! This module keeps a feed's events while a log heals, and joins them to the channel's history.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::broker::Replay;
use crate::event::{Event, Position};
use crate::format::GapReason;
use crate::log::{Appended, Log};
use crate::replay::position_before;

/// Bounds the events that wait while a log heals. Beyond it the log drops them and reads them from
/// history, which holds every event that a feed has shown.
const PENDING_BOUND: usize = 10_000;
/// Bounds the gaps after which the log still reads on in history. Beyond it the log goes on with
/// the feed's events, because the broker trims history faster than the node reads it.
const PATIENT_GAPS: usize = 1;

/// This type holds the events that wait while a log heals.
#[derive(Default)]
pub(super) struct Pending {
    events: VecDeque<Arc<Event>>,
    /// Holds the position of the newest event that found no room. The log is not whole before it
    /// reaches this position. The `previous` of later events need not show it, because it may be
    /// zero.
    dropped: Position,
    /// Counts how often history did not reach back to the log's head.
    gaps: usize,
    /// Says whether the feed has broken its chain since the node last asked for history. It has
    /// then shown an event that does not follow the one before it.
    went_back: bool,
}

impl Pending {
    /// Begins with an event that the feed has shown and the log cannot append.
    pub(super) fn since(event: Arc<Event>) -> Self {
        Self {
            events: VecDeque::from([event]),
            ..Self::default()
        }
    }

    /// Adds an event of the feed. `follows` says whether it follows the one that the feed showed
    /// before.
    pub(super) fn push(&mut self, event: Arc<Event>, follows: bool) {
        self.went_back |= !follows;
        if self.events.len() >= PENDING_BOUND {
            self.dropped = self.events.back().map_or(self.dropped, |last| last.position);
            self.events.clear();
        }
        self.events.push_back(event);
    }

    /// Notes that the node is about to ask for history. The answer is newer than the events that
    /// the feed has shown.
    pub(super) fn asks_history(&mut self) {
        self.went_back = false;
    }

    /// Appends a page of history that was asked for with `after`, and then the waiting events.
    /// Returns whether the log is whole.
    ///
    /// With `give_up`, the log announces the hole. History will not close it before the events that
    /// the feed has shown.
    pub(super) fn take_in(&mut self, log: &Log, after: Position, replay: &Replay, give_up: bool) -> bool {
        if log.expected_previous() != after {
            return false;
        }
        let goes_on_live = !replay.is_whole(after) && self.announce_loss(log, after, replay);
        append_history(log, replay);
        if replay.more && !goes_on_live {
            return false;
        }
        if log.head() < self.dropped {
            if !give_up {
                return false;
            }
            log.append_gap(self.dropped, GapReason::BrokerLostData);
        }
        !self.went_back && self.append_to(log, give_up)
    }

    /// Announces that events are missing between `after` and `replay`. Returns whether the log goes
    /// on with the feed's events, and not with more of history.
    fn announce_loss(&mut self, log: &Log, after: Position, replay: &Replay) -> bool {
        let reason = replay.lost_reason(after, log.head());
        self.gaps += 1;
        let live = self.shown_beyond(replay);
        let goes_on_live = live.is_some();
        let known = live.or_else(|| self.goes_on_after(replay));
        let goes_on = known.unwrap_or_else(|| replay.goes_on_after());
        tracing::warn!(channel = %log.name, %after, %goes_on, reason = reason.as_str(), "events are lost");
        log.append_gap(goes_on, reason);
        goes_on_live
    }

    /// Returns the position after which the stream goes on with the feed's events. It returns one
    /// only if the broker trims history faster than the node reads it.
    fn shown_beyond(&self, replay: &Replay) -> Option<Position> {
        if self.gaps <= PATIENT_GAPS {
            return None;
        }
        let live = self.events.front().map(|first| position_before(first))?;
        // A page that reaches what the feed shows leaves nothing out.
        let reaches = replay.events.iter().any(|event| event.position == live);
        (live > replay.goes_on_after() && !reaches).then_some(live)
    }

    /// Returns the position after which the stream goes on if the store has lost everything up to
    /// its head, and that head is a waiting event. The stream then goes on before the first of the
    /// waiting events that lead to the head. Listeners receive these events, and the log does not
    /// count them among the lost.
    fn goes_on_after(&mut self, replay: &Replay) -> Option<Position> {
        if !replay.events.is_empty() || self.dropped != Position::ZERO {
            return None;
        }
        let mut first = self.events.iter().rposition(|event| event.position == replay.head)?;
        while first > 0 && self.events[first - 1].position == self.events[first].previous {
            first -= 1;
        }
        self.events.drain(..first);
        self.events.front().map(|first| position_before(first))
    }

    /// Appends the waiting events. Returns false if one of them does not follow yet.
    fn append_to(&mut self, log: &Log, give_up: bool) -> bool {
        while let Some(event) = self.events.front() {
            match log.append(event.clone()) {
                Appended::Yes | Appended::Known => {
                    self.events.pop_front();
                }
                Appended::Broken if give_up => log.append_gap(event.previous, GapReason::BrokerLostData),
                Appended::Broken => return false,
            }
        }
        true
    }
}

fn append_history(log: &Log, replay: &Replay) {
    // Behind a gap that took events back, history may hold some of them again. Listeners have had
    // those, so the log skips them.
    let again = (log.expected_previous() < log.head())
        .then(|| replay.events.iter().rposition(|event| log.has(event)))
        .flatten();
    let again = again.map_or(0, |last| last + 1);
    for event in replay.events.iter().skip(again).cloned().chain(replay.lost_end()) {
        if log.append(event.clone()) == Appended::Broken {
            // History is whole, so it holds events again that the log announced as lost, as after a
            // failover and one back. Some listeners had them before the gap, and listeners that
            // came behind it did not. A new gap informs both.
            tracing::warn!(channel = %log.name, after = %event.previous, "events that were announced as lost are there again");
            log.append_gap(event.previous, GapReason::BrokerLostData);
            log.append(event);
        }
    }
}
