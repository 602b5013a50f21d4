//! A log that heals: what its feed shows meanwhile, and what history says of it.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::broker::Replay;
use crate::event::{Event, Position};
use crate::format::GapReason;
use crate::log::{Appended, Log};
use crate::replay::position_before;

/// How many events wait at most while a log heals. Beyond it they are dropped and read from history
/// instead, which holds what a feed has shown.
const PENDING_BOUND: usize = 10_000;
/// After so many gaps the log goes on with what the feed has shown: history is trimmed faster than
/// it can be read.
const PATIENT_GAPS: usize = 1;

/// The events that wait while a log heals.
#[derive(Default)]
pub(super) struct Pending {
    events: VecDeque<Arc<Event>>,
    /// The newest event that did not find room. The log is not whole before it has come this far:
    /// `previous` need not show it, it may be zero.
    dropped: Position,
    /// How often history did not reach back to the log's head.
    gaps: usize,
    /// The feed has shown an event, since history was asked last, that does not follow the one
    /// before it.
    went_back: bool,
}

impl Pending {
    /// The feed has shown this, and the log cannot append it.
    pub(super) fn since(event: Arc<Event>) -> Self {
        Self {
            events: VecDeque::from([event]),
            ..Self::default()
        }
    }

    /// Has an event of the feed wait. `follows`: it follows the one that the feed showed before.
    pub(super) fn push(&mut self, event: Arc<Event>, follows: bool) {
        self.went_back |= !follows;
        if self.events.len() >= PENDING_BOUND {
            self.dropped = self.events.back().map_or(self.dropped, |last| last.position);
            self.events.clear();
        }
        self.events.push_back(event);
    }

    /// History is about to be asked: what it says then is newer than what the feed has shown.
    pub(super) fn asks_history(&mut self) {
        self.went_back = false;
    }

    /// Appends a page of history that was asked for with `after`, and then what waits. Returns
    /// whether the log is whole.
    ///
    /// `give_up`: history will not close the hole before what the feed has shown; announce it.
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
    /// on with what the feed has shown, and not with more of history.
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

    /// Where the stream goes on with what the feed has shown, if history is trimmed faster than it
    /// can be read.
    fn shown_beyond(&self, replay: &Replay) -> Option<Position> {
        if self.gaps <= PATIENT_GAPS {
            return None;
        }
        let live = self.events.front().map(|first| position_before(first))?;
        // A page that reaches what the feed shows leaves nothing out.
        let reaches = replay.events.iter().any(|event| event.position == live);
        (live > replay.goes_on_after() && !reaches).then_some(live)
    }

    /// Where the stream goes on when the store has lost everything up to the head and stands at an
    /// event that waits here: before the first of those that lead to it. They are told then, and
    /// not counted among the lost.
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

    /// Appends what waits. False: it does not follow yet.
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
    // Behind a gap that took events back: those that are there again, which listeners have had.
    let again = (log.expected_previous() < log.head())
        .then(|| replay.events.iter().rposition(|event| log.has(event)))
        .flatten();
    let again = again.map_or(0, |last| last + 1);
    for event in replay.events.iter().skip(again).cloned().chain(replay.lost_end()) {
        if log.append(event.clone()) == Appended::Broken {
            // History is whole. So it holds events again that were announced as lost, as after a
            // failover and one back. Some listeners had them before the gap, and those that came
            // behind it did not: a new gap tells both.
            tracing::warn!(channel = %log.name, after = %event.previous, "events that were announced as lost are there again");
            log.append_gap(event.previous, GapReason::BrokerLostData);
            log.append(event);
        }
    }
}
