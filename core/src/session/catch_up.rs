//! A listener that catches up receives the events that the ring does not hold, until it is back at
//! the ring.

use std::collections::{HashSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::sleep;

use super::progress::Progress;
use crate::admission::Connection;
use crate::broker::{PageLimit, Replay};
use crate::event::{ChannelName, Event, Position};
use crate::format::GapReason;
use crate::log::{Entry, Found, Item, Log, READ_BYTES};
use crate::logs::Logs;
use crate::rule::Delivery;

/// Bounds how many events a listener receives from the broker's history at a time.
pub(super) const PAGE: PageLimit = PageLimit::events(500).with_bytes(1 << 20);
/// After more gaps than this on the way, a listener continues in the ring. It then skips the events
/// before the ring that history could still give.
const PATIENT_GAPS: usize = 1;
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// A listener receives these entries before it reads the ring.
pub(super) struct CatchUp {
    waiting: VecDeque<Arc<Entry>>,
    /// Names the step that follows once no entry waits.
    then: Then,
    /// Says whether the listener catches up because it fell off the ring.
    too_slow: bool,
    /// Counts the gaps that the listener received on the way.
    gaps: usize,
    backoff: Duration,
}

enum Then {
    /// The listener needs another page of history, unless the ring reaches back to it by then.
    Page,
    /// A page is being read.
    Reading(Pin<Box<dyn Future<Output = Arc<Replay>> + Send>>),
    /// The listener reads the ring from this index on.
    Ring(u64),
    /// The listener reads the ring where the ring holds the previous that the next event must have.
    Search,
}

/// A listener that catches up takes one of these steps next.
pub(super) enum CatchUpStep {
    /// The listener receives these entries.
    Send(Vec<Arc<Entry>>),
    /// The listener takes another step.
    Again,
    /// The listener reads the ring from this index on.
    Ring(u64),
    /// The listener is beyond what this node has of the channel.
    Ahead,
}

impl CatchUp {
    fn new(waiting: VecDeque<Arc<Entry>>, then: Then) -> Box<Self> {
        Box::new(Self {
            waiting,
            then,
            too_slow: false,
            gaps: 0,
            backoff: Duration::ZERO,
        })
    }

    /// Begins with a page of history.
    pub(super) fn from_history() -> Box<Self> {
        Self::new(VecDeque::new(), Then::Page)
    }

    /// Begins with a page of history, like [`CatchUp::from_history`], for a listener that fell off
    /// the ring.
    pub(super) fn too_slow() -> Box<Self> {
        let mut catch_up = Self::from_history();
        catch_up.too_slow = true;
        catch_up
    }

    /// Begins with some entries, and then continues in the ring from `index`.
    pub(super) fn before_ring(waiting: VecDeque<Arc<Entry>>, index: u64) -> Box<Self> {
        Self::new(waiting, Then::Ring(index))
    }

    /// Begins with the page that was read for a listener that stands at `progress`.
    pub(super) fn with_page(log: &Log, progress: &Progress, replay: &Replay) -> Box<Self> {
        let mut catch_up = Self::new(VecDeque::new(), Then::Search);
        catch_up.take_in(log, progress, replay);
        catch_up
    }

    /// Returns the first entry that the listener receives, as far as it is known.
    pub(super) fn first(&self) -> Option<&Arc<Entry>> {
        self.waiting.front()
    }

    /// Makes the listener receive `gap` before all else.
    pub(super) fn announce(&mut self, gap: Arc<Entry>) {
        self.waiting.push_front(gap);
    }

    /// Keeps only the newest event of each key among the waiting entries.
    pub(super) fn conflate(&mut self) {
        self.waiting = newest_of_each_key(std::mem::take(&mut self.waiting));
    }

    /// Takes the next step of a listener that stands at `progress`. Returns `Pending` while a page
    /// is being read.
    pub(super) fn poll_step(
        &mut self,
        log: &Log,
        progress: &Progress,
        connection: &Connection,
        cx: &mut Context<'_>,
    ) -> Poll<CatchUpStep> {
        if !self.waiting.is_empty() {
            return Poll::Ready(CatchUpStep::Send(self.next_piece()));
        }
        let after = progress.expected_previous;
        if let Then::Page = self.then {
            // The ring may reach further back than history does. Then the listener needs no other
            // page.
            if let Found::At(next) = log.find(after) {
                return Poll::Ready(CatchUpStep::Ring(next));
            }
            let logs = connection.admission.logs.clone();
            self.then = Then::Reading(Box::pin(fetch_page(logs, log.name.clone(), after, self.backoff)));
        }
        let step = match &mut self.then {
            Then::Reading(page) => {
                let replay = ready!(page.as_mut().poll(cx));
                self.take_in(log, progress, &replay);
                CatchUpStep::Again
            }
            Then::Ring(index) => CatchUpStep::Ring(*index),
            Then::Page | Then::Search => self.search(log, after),
        };
        Poll::Ready(step)
    }

    /// Looks for the index from which on the listener reads the ring.
    fn search(&mut self, log: &Log, after: Position) -> CatchUpStep {
        match log.find(after) {
            Found::At(next) => CatchUpStep::Ring(next),
            Found::Ahead => CatchUpStep::Ahead,
            Found::Unknown => {
                // The ring has moved on, or the log is healing. The listener soon reads another
                // page.
                self.then = Then::Page;
                self.backoff = (self.backoff * 2).clamp(BACKOFF.0, BACKOFF.1);
                CatchUpStep::Again
            }
        }
    }

    /// Takes about as many waiting entries as one write takes.
    fn next_piece(&mut self) -> Vec<Arc<Entry>> {
        let mut bytes = 0;
        let mut piece = Vec::new();
        while bytes < READ_BYTES
            && let Some(entry) = self.waiting.pop_front()
        {
            bytes += entry.weight();
            piece.push(entry);
        }
        piece
    }

    /// Takes in `replay`: the events that history holds after the position that `progress` expects.
    fn take_in(&mut self, log: &Log, progress: &Progress, replay: &Replay) {
        self.then = match replay.more {
            true => Then::Page,
            false => Then::Search,
        };
        if !replay.is_whole(progress.expected_previous) && self.announce_loss(log, progress, replay) {
            return;
        }
        if !replay.events.is_empty() {
            self.backoff = Duration::ZERO;
        }
        self.wait_for(log, replay.events.iter().cloned().chain(replay.lost_end()));
    }

    /// Announces that events are missing before `replay`. Returns whether the listener continues in
    /// the ring instead of in `replay`.
    fn announce_loss(&mut self, log: &Log, progress: &Progress, replay: &Replay) -> bool {
        let reason = match self.too_slow {
            true => GapReason::TooSlow,
            false => replay.lost_reason(progress.expected_previous, log.head()),
        };
        let goes_on = replay.goes_on_after();
        let gap = |goes_on| Entry::gap(Some(progress.cursor), goes_on, reason);
        self.gaps += 1;
        // The broker trims history faster than the listener can read it. So the next page would
        // begin with a gap again, and so on for ever. The listener continues in the ring instead,
        // behind this page if the page reaches the ring.
        let ring = match self.gaps > PATIENT_GAPS {
            true => log.begin_behind(goes_on),
            false => None,
        };
        let Some((index, begin)) = ring else {
            self.waiting.push_back(gap(goes_on));
            return false;
        };
        match replay.events.iter().position(|event| event.position == begin) {
            Some(last) => {
                self.waiting.push_back(gap(goes_on));
                self.wait_for(log, replay.events[..=last].iter().cloned());
            }
            None => self.waiting.push_back(gap(begin)),
        }
        self.then = Then::Ring(index);
        true
    }

    /// Queues events to be sent: all of them, or the newest of each key, as the rule says.
    fn wait_for(&mut self, log: &Log, events: impl Iterator<Item = Arc<Event>>) {
        let entries: Vec<_> = events.map(Entry::event).collect();
        match log.rule.delivery {
            Delivery::Every => self.waiting.extend(entries),
            Delivery::Latest => self.waiting.extend(newest_of_each_key(entries)),
        }
    }
}

/// Keeps the newest event of each key, the end, and every entry that is not an event.
fn newest_of_each_key(entries: impl IntoIterator<Item = Arc<Entry>, IntoIter: DoubleEndedIterator>) -> VecDeque<Arc<Entry>> {
    let mut newer_keys = HashSet::new();
    let mut newest = VecDeque::new();
    for entry in entries.into_iter().rev() {
        let sent = match &entry.item {
            Item::Event(event) if !event.is_end() => newer_keys.insert(event.message.conflation_key().clone()),
            _ => true,
        };
        if sent {
            newest.push_front(entry);
        }
    }
    newest
}

/// Reads the page after `after`. It waits however long the broker is away: the listener stays
/// connected.
async fn fetch_page(logs: Arc<Logs>, name: ChannelName, after: Position, pause: Duration) -> Arc<Replay> {
    if pause > Duration::ZERO {
        sleep(logs.backbone.jitter.spread(pause)).await;
    }
    let mut backoff = BACKOFF.0;
    loop {
        match logs.shared_replay(&name, after, PAGE).await {
            Ok(replay) => return replay,
            Err(error) => {
                tracing::debug!(channel = %name, %error, "history is out of reach: a listener waits");
                sleep(logs.backbone.jitter.spread(backoff)).await;
                backoff = (backoff * 2).min(BACKOFF.1);
            }
        }
    }
}
