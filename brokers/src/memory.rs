//! The broker in this process: one node, nothing survives its end. The reference for the others, so
//! it is written to be read.
//!
//! A channel is one value behind one lock. An event gets its position, is kept and is pushed to the
//! feeds under that lock, and that alone puts all of it into one order. Locks are taken in the
//! order *all channels*, *one channel*, *feed*, none is held across an await, and nothing here
//! drops a [`Feed`], whose callback takes a channel's lock.

mod members;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Duration;

use airwave_core::broker::{BrokerStats, FeedSender, IDEMPOTENCY_WINDOW, follow_and_replay};
use airwave_core::idempotency::{Fingerprint, ScopedKey};
use airwave_core::rule::History;
use airwave_core::shrink::shrink;
use airwave_core::{
    Append, Broker, BrokerError, ChannelName, Event, Feed, Message, PageLimit, Position, Published, Replay, Rules,
};
use async_trait::async_trait;
use tokio::time::Instant;

/// An unused channel is remembered at least so long, and at least as long as its history.
const FORGET_AFTER: Duration = Duration::from_secs(600);

/// A first position that was given out is honoured at least so long after it was last given out.
const HONOURED_FOR: Duration = Duration::from_secs(300);

/// How long a channel without events is remembered whose first position is not honoured any more,
/// so that its last listener can come back. With a round of sweeps this is less than five minutes.
const FORGET_SILENT_AFTER: Duration = Duration::from_secs(200);

/// How often the sweeper looks at channels.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// At most so many channels are looked at in one go, and about as many expired events and keys
/// dropped: well under 10 ms.
const SWEEP_WORK: usize = 4096;

/// Every channel is looked at within so many sweeps, however many there are, unless as much expires
/// as is looked at.
const SWEEPS: usize = 60;

/// What an event, a channel and an idempotency key cost besides the message. Estimates, on the
/// large side.
const EVENT_COST: usize = 256;
const CHANNEL_COST: usize = 1024;
const KEY_COST: usize = 400;

/// Into so many slices by age the events are sorted when some have to go.
const SLICES: usize = 256;

/// Everything in this process. Dropping it ends its feeds.
///
/// A channel begins with its first event. It is forgotten when it has no feed, no history and no
/// live idempotency key and was not used for ten minutes or its history's age, whichever is longer;
/// an ended channel's name is then free again. A channel without events takes no memory when its
/// last feed is gone: all of them share one first position, the *epoch*. With a bound on its memory
/// ([`Memory::bounded`]) the oldest events of all channels go first when it is reached, and
/// channels without feeds, history and keys with them; replays then say that they are not complete.
/// Events are bounded by their rule's history, idempotency keys only by [`IDEMPOTENCY_WINDOW`]
/// times the publishers' rate.
pub struct Memory {
    shared: Arc<Shared>,
    members: members::SharedMembers,
}

struct Shared {
    rules: Rules,
    /// Bytes that all channels together may take, by estimate, and that they take.
    limit: usize,
    used: AtomicUsize,
    /// Held by the one that makes room.
    pressure: Mutex<()>,
    channels: RwLock<Channels>,
    epochs: EpochPair,
    sweep: Mutex<Sweep>,
}

/// The first positions of channels without events: the one that is given out, and the one before
/// it, which is honoured still.
///
/// A channel is forgotten only if its newest event is older than both, so an epoch that is honoured
/// proves that a channel of which nothing is known had no event since.
struct EpochPair {
    /// Written under the lock of the sweep alone. Read under a channel's lock: a channel that
    /// begins anew after it was forgotten sees what the sweeper wrote before that.
    current: AtomicU64,
    before: AtomicU64,
}

impl EpochPair {
    fn current(&self) -> Position {
        Position(self.current.load(Ordering::Acquire))
    }

    fn before(&self) -> Position {
        Position(self.before.load(Ordering::Acquire))
    }

    fn honours(&self, position: Position) -> bool {
        position == self.current() || position == self.before()
    }
}

type Channels = HashMap<ChannelName, Arc<Channel>>;

struct Sweep {
    /// Every channel once; those at the front have waited longest.
    turns: VecDeque<Arc<Channel>>,
    /// When the current epoch began.
    since: Instant,
    /// The newest position of the channels that wait to be forgotten and are not older than both
    /// epochs.
    waits_for: Position,
    task: Option<tokio::task::JoinHandle<()>>,
}

struct Channel {
    name: ChannelName,
    history: History,
    state: Mutex<ChannelState>,
}

struct ChannelState {
    /// The position that stands for "no event yet"; the first event's previous.
    base: Position,
    /// The newest event's position, or the base. It stays when history is trimmed, so the chain
    /// never breaks.
    head: Position,
    kept: VecDeque<Kept>,
    bytes: usize,
    ended: bool,
    keys: HashMap<ScopedKey, (Position, Fingerprint)>,
    keys_by_age: VecDeque<(Instant, ScopedKey)>,
    feeds: Vec<(u64, FeedSender)>,
    feeds_opened: u64,
    touched: Instant,
    /// What [`Shared::used`] counts of this channel.
    counted: usize,
    /// It is no longer among the channels. A caller that still holds it looks the name up again.
    forgotten: bool,
}

struct Kept {
    since: Instant,
    event: Arc<Event>,
}

// Everything below leaves its state whole at every point where it could panic, so a poisoned lock
// is still good.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Memory {
    /// A broker without channels that keeps of each what `rules` say.
    pub fn new(rules: Rules) -> Memory {
        Self::bounded(rules, usize::MAX)
    }

    /// [`Memory::new`] that takes about `bytes` at most: when they are reached, the oldest history
    /// of all channels goes.
    pub fn bounded(rules: Rules, bytes: usize) -> Memory {
        let epoch = Position::now().0;
        let shared = Shared {
            rules,
            limit: bytes,
            used: AtomicUsize::new(0),
            pressure: Mutex::default(),
            channels: RwLock::default(),
            epochs: EpochPair {
                current: AtomicU64::new(epoch),
                before: AtomicU64::new(epoch),
            },
            sweep: Mutex::new(Sweep {
                turns: VecDeque::new(),
                since: Instant::now(),
                waits_for: Position::ZERO,
                task: None,
            }),
        };
        Memory {
            shared: Arc::new(shared),
            members: members::SharedMembers::default(),
        }
    }
}

#[async_trait]
impl Broker for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    async fn publish(&self, channel: &ChannelName, append: Append) -> Result<Published, BrokerError> {
        if !self.shared.has_room() {
            return Err(BrokerError::unavailable(
                "the memory broker is full of channels and idempotency keys (limits.memory): raise it, or try again later",
            ));
        }
        self.shared.with(channel, |channel, state, now| {
            state.expire(channel.history.age, now, usize::MAX);
            if let Some(&(position, first)) = append.idempotency_key.as_ref().and_then(|key| state.keys.get(key)) {
                if first != append.fingerprint() {
                    return Err(BrokerError::another_payload());
                }
                return Ok(Published {
                    position,
                    duplicate: true,
                });
            }
            if state.ended {
                return Err(BrokerError::ended());
            }
            let position = state.append(&channel.history, now, append);
            Ok(Published {
                position,
                duplicate: false,
            })
        })
    }

    async fn follow(&self, channel: &ChannelName) -> Result<Feed, BrokerError> {
        Ok(self.shared.with(channel, |channel, state, _| {
            state.feeds_opened += 1;
            let id = state.feeds_opened;
            // Weak, because the channel holds the feed's other end, and must go when the broker
            // goes.
            let channel = Arc::downgrade(channel);
            let (sender, feed) = Feed::new(state.head, move || {
                if let Some(channel) = channel.upgrade() {
                    let mut state = lock(&channel.state);
                    state.feeds.retain(|(other, _)| *other != id);
                    state.touched = Instant::now();
                }
            });
            state.feeds.push((id, sender));
            feed
        }))
    }

    async fn replay(&self, channel: &ChannelName, after: Option<Position>, limit: PageLimit) -> Result<Replay, BrokerError> {
        Ok(self.shared.with(channel, |channel, state, now| {
            state.expire(channel.history.age, now, usize::MAX);
            // Another epoch than the one that this channel began with stands for the same: nothing
            // was there yet.
            let first = after.filter(|after| *after < state.base && self.shared.epochs.honours(*after));
            let mut replay = state.replay(first.map_or(after, |_| Some(state.base)), limit);
            if let (Some(first), true, [event, ..]) = (first, replay.complete, &mut replay.events[..]) {
                let previous = first;
                *event = Arc::new(Event {
                    previous,
                    ..Event::clone(event)
                });
            }
            replay
        }))
    }

    async fn open(&self, channel: &ChannelName, limit: PageLimit) -> Result<(Feed, Replay), BrokerError> {
        follow_and_replay(self, channel, limit).await
    }

    async fn ping(&self) -> Result<(), BrokerError> {
        Ok(())
    }

    fn stats(&self) -> BrokerStats {
        BrokerStats::in_process()
    }
}

impl ChannelState {
    fn born(base: Position, now: Instant) -> Self {
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

    fn append(&mut self, history: &History, now: Instant, append: Append) -> Position {
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

    fn append_one(&mut self, history: &History, now: Instant, message: Message) {
        let position = self.head.next();
        let event = Arc::new(Event {
            position,
            previous: self.head,
            message,
        });
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

    fn replay(&self, after: Option<Position>, limit: PageLimit) -> Replay {
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
        Replay {
            more: range.end < self.kept.len(),
            events: self.kept.range(range).map(|kept| kept.event.clone()).collect(),
            complete,
            head: self.head,
            ended: self.ended,
        }
    }

    /// Drops events and keys that are too old, at most `most` of each, and gives how many that
    /// were.
    fn expire(&mut self, age: Duration, now: Instant, most: usize) -> usize {
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

    fn drop_oldest(&mut self) {
        if let Some(oldest) = self.kept.pop_front() {
            self.bytes -= oldest.event.message.weight();
        }
    }

    /// Whether there is nothing in it but its place in the chain.
    fn is_bare(&self) -> bool {
        self.feeds.is_empty() && self.kept.is_empty() && self.keys.is_empty()
    }

    /// Whether nothing needs the channel. If only the epochs do, `waits_for` learns of its newest
    /// position.
    fn unused(&self, age: Duration, now: Instant, epochs: &EpochPair, waits_for: &mut Position) -> bool {
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

impl Shared {
    /// Does `act` under the channel's lock. The channel begins here if it is new.
    fn with<T>(self: &Arc<Self>, name: &ChannelName, act: impl FnOnce(&Arc<Channel>, &mut ChannelState, Instant) -> T) -> T {
        loop {
            let channel = self.open(name);
            let mut state = lock(&channel.state);
            if !state.forgotten {
                // Read under the lock, so that ages are in the order of positions.
                let now = Instant::now();
                state.touched = now;
                let result = act(&channel, &mut state, now);
                self.count(&channel, &mut state);
                return result;
            }
            // The sweeper forgot it between our look-up and our lock.
        }
    }

    fn open(self: &Arc<Self>, name: &ChannelName) -> Arc<Channel> {
        let channels = self.channels.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(name) {
            return channel.clone();
        }
        drop(channels);
        let history = self.rules.history(name);
        let mut channels = self.channels.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(name) {
            return channel.clone();
        }
        let channel = Arc::new(Channel {
            name: name.clone(),
            history,
            state: Mutex::new(ChannelState::born(self.epochs.current(), Instant::now())),
        });
        channels.insert(name.clone(), channel.clone());
        drop(channels);
        self.enrol(channel.clone());
        channel
    }

    /// Has the channel swept from now on, by a task if there is a runtime.
    fn enrol(self: &Arc<Self>, channel: Arc<Channel>) {
        let mut sweep = lock(&self.sweep);
        sweep.turns.push_back(channel);
        // The runtime of an earlier task may have gone, and the task with it.
        if sweep.task.as_ref().is_none_or(|task| task.is_finished())
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            sweep.task = Some(runtime.spawn(keep_sweeping(Arc::downgrade(self))));
        }
    }

    /// Looks at the channels whose turn it is: expires what is old and forgets unused channels.
    fn sweep(&self, now: Instant) {
        self.turn_epoch(now);
        let most = lock(&self.sweep).turns.len();
        let mut waits_for = Position::ZERO;
        let mut work = SWEEP_WORK;
        for _ in 0..most {
            // A statement of its own: within a `let … else` or a loop's head its lock would be held
            // for longer.
            let turn = lock(&self.sweep).turns.pop_front();
            let Some(channel) = turn else { break };
            let mut state = lock(&channel.state);
            if state.forgotten {
                continue;
            }
            let dropped = state.expire(channel.history.age, now, work);
            self.count(&channel, &mut state);
            let unused = state.unused(channel.history.age, now, &self.epochs, &mut waits_for);
            drop(state);
            if !(unused && self.forget(&channel, now)) {
                lock(&self.sweep).turns.push_back(channel);
            }
            work = work.saturating_sub(1 + dropped);
            if work == 0 {
                break;
            }
        }
        let mut sweep = lock(&self.sweep);
        sweep.waits_for = sweep.waits_for.max(waits_for);
    }

    /// Begins a new epoch if channels wait for it and the one before the current one was last given
    /// out long enough ago.
    fn turn_epoch(&self, now: Instant) {
        let mut sweep = lock(&self.sweep);
        if sweep.waits_for == Position::ZERO || now.duration_since(sweep.since) < HONOURED_FOR {
            return;
        }
        let current = self.epochs.current();
        let next = sweep.waits_for.max(current).next();
        (sweep.since, sweep.waits_for) = (now, Position::ZERO);
        self.epochs.before.store(current.0, Ordering::Release);
        self.epochs.current.store(next.0, Ordering::Release);
    }

    /// Forgets the channel unless a caller has begun to use it.
    fn forget(&self, channel: &Channel, now: Instant) -> bool {
        let mut channels = self.channels.write().unwrap_or_else(PoisonError::into_inner);
        let mut state = lock(&channel.state);
        if state.forgotten {
            return true;
        }
        if !state.unused(channel.history.age, now, &self.epochs, &mut Position::default()) {
            return false;
        }
        self.forget_locked(channel, &mut channels, &mut state);
        shrink(&mut *channels);
        true
    }

    fn forget_locked(&self, channel: &Channel, channels: &mut Channels, state: &mut ChannelState) {
        state.forgotten = true;
        self.used.fetch_sub(std::mem::take(&mut state.counted), Ordering::Relaxed);
        channels.remove(&channel.name);
    }

    /// Brings what is counted of a channel up to date.
    fn count(&self, channel: &Channel, state: &mut ChannelState) {
        let cost = CHANNEL_COST
            + 2 * channel.name.as_str().len()
            + state.bytes
            + state.kept.len() * EVENT_COST
            + state.keys.len() * KEY_COST;
        let before = std::mem::replace(&mut state.counted, cost);
        if cost > before {
            self.used.fetch_add(cost - before, Ordering::Relaxed);
        } else if cost < before {
            self.used.fetch_sub(before - cost, Ordering::Relaxed);
        }
    }

    /// Makes room if the bound is reached; false if there is none still.
    fn has_room(&self) -> bool {
        let is_full = || self.used.load(Ordering::Relaxed) > self.limit;
        if !is_full() {
            return true;
        }
        let _pressure = lock(&self.pressure);
        if is_full() {
            self.make_room();
        }
        !is_full()
    }

    /// Drops the oldest events of all channels until an eighth of the bound is free, and the
    /// channels of which nothing is left.
    fn make_room(&self) {
        let channels: Vec<Arc<Channel>> = {
            let channels = self.channels.read().unwrap_or_else(PoisonError::into_inner);
            channels.values().cloned().collect()
        };
        let now = Instant::now();
        let fronts = channels
            .iter()
            .filter_map(|channel| lock(&channel.state).kept.front().map(|kept| kept.since));
        let oldest = fronts.min().unwrap_or(now);
        let span = now.saturating_duration_since(oldest).as_nanos().max(1);
        let slice_of = |kept: &Kept| {
            let age = now.saturating_duration_since(kept.since).as_nanos();
            (age * (SLICES as u128 - 1) / span).min(SLICES as u128 - 1) as usize
        };
        let mut bytes = [0_usize; SLICES];
        for channel in &channels {
            for kept in &lock(&channel.state).kept {
                bytes[slice_of(kept)] += kept.event.message.weight() + EVENT_COST;
            }
        }
        let target = self.limit - self.limit / 8;
        let mut excess = self.used.load(Ordering::Relaxed).saturating_sub(target);
        let mut last = SLICES;
        while last > 0 && excess > 0 {
            last -= 1;
            excess = excess.saturating_sub(bytes[last]);
        }
        let mut emptied = Vec::new();
        for channel in &channels {
            let mut state = lock(&channel.state);
            while let Some(slice) = state.kept.front().map(slice_of)
                && (slice > last || (slice == last && self.used.load(Ordering::Relaxed) > target))
            {
                state.drop_oldest();
                self.count(channel, &mut state);
            }
            if state.is_bare() {
                emptied.push(channel);
            }
        }
        if self.used.load(Ordering::Relaxed) > target {
            self.forget_at_once(&emptied, target);
        }
        lock(&self.sweep).turns.retain(|channel| !lock(&channel.state).forgotten);
    }

    /// Forgets channels of which nothing is left before the epochs are old enough. So all epochs
    /// are dropped, and a listener that comes back with one is told of a gap.
    fn forget_at_once(&self, emptied: &[&Arc<Channel>], target: usize) {
        let Some(newest) = emptied.iter().map(|channel| lock(&channel.state).head).max() else {
            return;
        };
        {
            let mut sweep = lock(&self.sweep);
            let next = newest.max(self.epochs.current()).next();
            sweep.since = Instant::now();
            self.epochs.before.store(next.0, Ordering::Release);
            self.epochs.current.store(next.0, Ordering::Release);
        }
        for channel in emptied {
            if self.used.load(Ordering::Relaxed) <= target {
                return;
            }
            let mut channels = self.channels.write().unwrap_or_else(PoisonError::into_inner);
            let mut state = lock(&channel.state);
            if state.is_bare() && !state.forgotten && state.head < self.epochs.before() {
                self.forget_locked(channel, &mut channels, &mut state);
            }
        }
    }
}

/// Weak, so that the broker goes with its last owner, and the task within one period.
async fn keep_sweeping(shared: Weak<Shared>) {
    loop {
        tokio::time::sleep(SWEEP_EVERY).await;
        let Some(held) = shared.upgrade() else { return };
        let channels = {
            let mut sweep = lock(&held.sweep);
            shrink(&mut sweep.turns);
            sweep.turns.len()
        };
        drop(held);
        for _ in 0..channels.div_ceil(SWEEPS * SWEEP_WORK) {
            let Some(shared) = shared.upgrade() else { return };
            shared.sweep(Instant::now());
            drop(shared);
            // Between two goes it is others' turn.
            tokio::task::yield_now().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use airwave_core::rule::TransportName;
    use airwave_core::{Data, EventName, Rule};

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const A_WHILE: Duration = Duration::from_secs(1000);

    fn name(text: &str) -> ChannelName {
        ChannelName::new(text).unwrap()
    }

    fn say(text: impl ToString) -> Append {
        Append::new(Message::new(EventName::new("said").unwrap(), Data::text(text.to_string())))
    }

    fn key(text: &str) -> airwave_core::event::IdempotencyKey {
        airwave_core::event::IdempotencyKey::new(text).unwrap()
    }

    /// Every channel has this history.
    fn keeping(events: usize, age: Duration, bytes: usize) -> Memory {
        let mut rule = Rule::new("{*all}".parse().unwrap(), vec![TransportName::SSE]);
        rule.history = History { events, age, bytes };
        Memory::new(Rules::new([rule]))
    }

    fn remembered(broker: &Memory) -> usize {
        let channels = broker.shared.channels.read().unwrap();
        let turns = lock(&broker.shared.sweep).turns.len();
        assert_eq!(channels.len(), turns, "every channel is swept, and nothing else");
        turns
    }

    async fn publish(broker: &Memory, channel: &str, append: Append) -> Position {
        broker.publish(&name(channel), append).await.unwrap().position
    }

    async fn replay(broker: &Memory, channel: &str, after: Option<Position>) -> Replay {
        broker
            .replay(&name(channel), after, PageLimit::events(1_000_000))
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn what_is_published_is_shown_and_kept() {
        let broker = Memory::new(Rules::default());
        let mut feed = broker.follow(&name("a")).await.unwrap();
        let first = publish(&broker, "a", say("one")).await;
        let shown = feed.next().await.unwrap();
        assert_eq!((shown.position, shown.previous), (first, feed.head));
        let replayed = replay(&broker, "a", Some(feed.head)).await;
        assert!(
            replayed.complete && Arc::ptr_eq(&replayed.events[0], &shown),
            "one event, shared"
        );
    }

    #[tokio::test]
    async fn every_previous_is_known() {
        let broker = keeping(3, MINUTE, usize::MAX);
        let mut before = broker.follow(&name("a")).await.unwrap().head;
        for n in 0..10 {
            let position = publish(&broker, "a", say(n)).await;
            let newest = replay(&broker, "a", None).await.events.pop().unwrap();
            assert_eq!((newest.previous, newest.position), (before, position));
            before = position;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn history_is_exactly_what_the_rule_says() {
        let broker = keeping(3, MINUTE, 100);
        for n in 0..9 {
            publish(&broker, "a", say(n)).await;
            assert_eq!(replay(&broker, "a", None).await.events.len(), 3.min(n + 1));
        }
        // With its name, `said`, this is 50 bytes: two fit, a third does not, and a larger one than
        // all of it drives out everything.
        for _ in 0..3 {
            publish(&broker, "a", say("x".repeat(46))).await;
        }
        assert_eq!(replay(&broker, "a", None).await.events.len(), 2);
        publish(&broker, "a", say("x".repeat(97))).await;
        assert_eq!(replay(&broker, "a", None).await.events.len(), 0);

        // Not only after the next sweep.
        lock(&broker.shared.sweep).task.take().unwrap().abort();
        publish(&broker, "a", say("old")).await;
        tokio::time::advance(MINUTE / 2).await;
        let old = publish(&broker, "a", say("new")).await;
        tokio::time::advance(MINUTE / 2).await;
        assert_eq!(replay(&broker, "a", None).await.events.len(), 2, "not older than a minute");
        tokio::time::advance(Duration::from_millis(1)).await;
        let left = replay(&broker, "a", None).await;
        assert_eq!((left.events.len(), left.head, left.complete), (1, old, false));
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_recognised_within_its_window_and_then_new_again() {
        let broker = keeping(10, MINUTE, usize::MAX);
        let first = publish(&broker, "a", say("one").with_idempotency_key(key("k"))).await;
        tokio::time::advance(IDEMPOTENCY_WINDOW).await;
        let again = broker
            .publish(&name("a"), say("one").with_idempotency_key(key("k")))
            .await
            .unwrap();
        assert_eq!((again.position, again.duplicate), (first, true));
        // Recognising it did not prolong it.
        tokio::time::advance(Duration::from_millis(1)).await;
        let again = broker
            .publish(&name("a"), say("one").with_idempotency_key(key("k")))
            .await
            .unwrap();
        assert!(again.position > first && !again.duplicate);
        let channel = broker.shared.open(&name("a"));
        let state = lock(&channel.state);
        assert_eq!((state.keys.len(), state.keys_by_age.len()), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn an_unused_channel_is_forgotten_after_a_while() {
        for (age, after) in [(MINUTE, FORGET_AFTER), (2 * FORGET_AFTER, 2 * FORGET_AFTER)] {
            let broker = keeping(10, age, usize::MAX);
            publish(&broker, "published", say("one").with_idempotency_key(key("k"))).await;
            publish(&broker, "ended", Append::end()).await;
            tokio::time::sleep(after - 2 * SWEEP_EVERY).await;
            assert_eq!(remembered(&broker), 2);
            let last = replay(&broker, "published", None).await.head;
            tokio::time::sleep(HONOURED_FOR).await;
            assert_eq!(remembered(&broker), 1, "all but the one that was used");
            let again = replay(&broker, "published", None).await;
            assert_eq!(again.head, last);

            assert!(
                broker.publish(&name("ended"), say("new")).await.is_ok(),
                "a forgotten name is free"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn channels_that_are_only_asked_for_take_no_memory_and_their_cursors_stay_good() {
        let broker = keeping(10, MINUTE, usize::MAX);
        let mut firsts = Vec::new();
        for n in 0..20_000 {
            let channel = n.to_string();
            firsts.push(replay(&broker, &channel, None).await.head);
            drop(broker.follow(&name(&channel)).await.unwrap());
        }
        let followed = broker.follow(&name("followed")).await.unwrap();
        tokio::time::sleep(HONOURED_FOR).await;
        assert_eq!(remembered(&broker), 1, "the one that is followed");
        for (n, first) in firsts.iter().enumerate().step_by(1000) {
            let position = publish(&broker, &n.to_string(), say("one")).await;
            let missed = replay(&broker, &n.to_string(), Some(*first)).await;
            assert!(missed.complete, "{n}");
            assert_eq!((missed.events[0].position, missed.events[0].previous), (position, *first));
        }
        drop(followed);
    }

    /// Other channels are forgotten meanwhile, so epochs go by.
    #[tokio::test(start_paused = true)]
    async fn a_listener_without_events_comes_back_within_minutes_whatever_is_forgotten() {
        let broker = keeping(10, MINUTE, usize::MAX);
        let feed = broker.follow(&name("long")).await.unwrap();
        let mut given = Vec::new();
        for n in 0..40_usize {
            publish(&broker, &format!("passing/{n}"), say("one")).await;
            given.push(replay(&broker, &format!("asked/{n}"), None).await.head);
            tokio::time::sleep(MINUTE).await;
            let Some(since) = n.checked_sub(4) else { continue };
            let channel = format!("asked/{since}");
            publish(&broker, &channel, say("missed")).await;
            let missed = replay(&broker, &channel, Some(given[since])).await;
            assert!(missed.complete && missed.events.len() == 1 && missed.events[0].previous == given[since]);
        }
        assert_ne!(given[0], given[39], "no epoch went by");
        // One that listened all the time has the same right.
        let first = feed.head;
        assert!(!broker.shared.epochs.honours(first));
        drop(feed);
        tokio::time::sleep(2 * MINUTE).await;
        publish(&broker, "long", say("missed")).await;
        assert!(replay(&broker, "long", Some(first)).await.complete);
        assert!(remembered(&broker) < 30);
    }

    #[tokio::test(start_paused = true)]
    async fn an_epoch_from_before_a_forgotten_event_proves_nothing() {
        let broker = keeping(10, MINUTE, usize::MAX);
        let first = replay(&broker, "a", None).await.head;
        publish(&broker, "a", say("missed")).await;
        tokio::time::sleep(2 * A_WHILE).await;
        assert_eq!(remembered(&broker), 0);
        assert!(!replay(&broker, "a", Some(first)).await.complete);
        publish(&broker, "a", say("one")).await;
        assert!(!replay(&broker, "a", Some(first)).await.complete);
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_given_back_after_a_flood_of_names_and_keys() {
        let broker = keeping(10_000, MINUTE, usize::MAX);
        for n in 0..20_000 {
            publish(&broker, &n.to_string(), say(n)).await;
            let once = say(n).with_idempotency_key(key(&n.to_string()));
            publish(&broker, "busy", once).await;
        }
        let capacities = || {
            let channels = broker.shared.channels.read().unwrap();
            let turns = lock(&broker.shared.sweep).turns.capacity();
            let busy = channels.get(&name("busy")).map(|channel| {
                let state = lock(&channel.state);
                [state.keys.capacity(), state.keys_by_age.capacity(), state.kept.capacity()]
            });
            (channels.capacity(), turns, busy)
        };
        let (names, turns, busy) = capacities();
        assert!(names >= 20_000 && turns >= 20_000);
        assert!(busy.unwrap().iter().all(|&capacity| capacity >= 10_000));
        // What was said is too old, and its keys are, but the channel itself is still known.
        tokio::time::sleep(2 * IDEMPOTENCY_WINDOW).await;
        let small = |busy: Option<[usize; 3]>| busy.unwrap().iter().all(|&capacity| capacity <= 2048);
        // A round of sweeps drops so many of them, and then gives memory back.
        for _ in 0..4 {
            if !small(capacities().2) {
                tokio::time::sleep(SWEEP_EVERY * SWEEPS as u32).await;
            }
        }
        let (_, _, busy) = capacities();
        assert!(small(busy), "{busy:?}");
        tokio::time::sleep(3 * FORGET_AFTER).await;
        assert_eq!(remembered(&broker), 0);
        let (names, turns, _) = capacities();
        assert!(names <= 2048 && turns <= 2048, "{names} {turns}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_channel_that_is_followed_is_remembered_and_its_cursor_stays_good() {
        let broker = keeping(10, MINUTE, usize::MAX);
        let feed = broker.follow(&name("a")).await.unwrap();
        let last = publish(&broker, "a", say("one")).await;
        tokio::time::sleep(2 * A_WHILE).await;
        assert_eq!(remembered(&broker), 1);
        drop(feed);
        // Its listener may come back: the time begins when it leaves.
        tokio::time::sleep(FORGET_AFTER - 2 * SWEEP_EVERY).await;
        assert!(replay(&broker, "a", Some(last)).await.complete);
        tokio::time::sleep(FORGET_AFTER + 2 * SWEEP_EVERY).await;
        assert_eq!(remembered(&broker), 0);
    }

    #[tokio::test]
    async fn a_channel_that_is_used_again_before_it_is_forgotten_stays() {
        let broker = keeping(10, MINUTE, usize::MAX);
        let feed = broker.follow(&name("a")).await.unwrap();
        let channel = broker.shared.open(&name("a"));
        assert!(!broker.shared.forget(&channel, Instant::now() + A_WHILE));
        assert!(Arc::ptr_eq(&channel, &broker.shared.open(&name("a"))));
        drop(feed);
        assert!(broker.shared.forget(&channel, Instant::now() + A_WHILE));
        assert!(lock(&channel.state).forgotten, "a caller that still holds it can tell");
        assert!(!Arc::ptr_eq(&channel, &broker.shared.open(&name("a"))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_forgotten_channel_comes_back_above_all_that_it_gave() {
        let broker = keeping(10, MINUTE, usize::MAX);
        let ahead = Position(Position::now().0 + 3_600_000_000);
        replay(&broker, "a", None).await;
        lock(&broker.shared.open(&name("a")).state).head = ahead;
        let last = publish(&broker, "a", say("the clock was an hour ahead")).await;
        assert!(last > ahead);
        publish(&broker, "forgotten-after-it", say("one")).await;
        tokio::time::sleep(A_WHILE).await;
        assert_eq!(remembered(&broker), 0);

        let again = replay(&broker, "a", Some(last)).await;
        assert!(again.head > last && !again.complete);
        assert!(publish(&broker, "a", say("one")).await > again.head);
        assert!(replay(&broker, "b", None).await.head > last, "the epoch is every channel's");
    }

    #[tokio::test]
    async fn positions_go_on_when_the_clock_goes_backwards() {
        let broker = keeping(10, MINUTE, usize::MAX);
        replay(&broker, "a", None).await;
        let ahead = Position(Position::now().0 + 3_600_000_000);
        lock(&broker.shared.open(&name("a")).state).head = ahead;
        for n in 1..=3 {
            assert_eq!(publish(&broker, "a", say(n)).await, Position(ahead.0 + n));
        }
        assert!(replay(&broker, "a", Some(ahead)).await.complete);
    }

    #[tokio::test]
    async fn a_new_broker_begins_above_the_old_one() {
        let mut last = Position::ZERO;
        for _ in 0..3 {
            let broker = Memory::new(Rules::default());
            for n in 0..1000 {
                let position = publish(&broker, "a", say(n)).await;
                assert!(position > last);
                last = position;
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn quiet_channels_lose_what_is_old() {
        let broker = keeping(10, MINUTE, usize::MAX);
        let _feed = broker.follow(&name("a")).await.unwrap();
        publish(&broker, "a", say("one").with_idempotency_key(key("k"))).await;
        let channel = broker.shared.open(&name("a"));
        tokio::time::sleep(MINUTE + 2 * SWEEP_EVERY).await;
        let sizes = |state: MutexGuard<ChannelState>| (state.kept.len(), state.bytes, state.keys.len());
        assert_eq!(sizes(lock(&channel.state)), (0, 0, 1));
        tokio::time::sleep(IDEMPOTENCY_WINDOW).await;
        assert_eq!(sizes(lock(&channel.state)), (0, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn one_sweep_does_a_bounded_amount_of_work_and_all_get_their_turn() {
        let broker = keeping(usize::MAX, MINUTE, usize::MAX);
        for n in 0..SWEEP_WORK + 10 {
            publish(&broker, &format!("{n}"), say("one")).await;
        }
        for time in 1..=2 {
            lock(&broker.shared.sweep).waits_for = Position(1);
            broker.shared.turn_epoch(Instant::now() + time * HONOURED_FOR);
        }
        let later = Instant::now() + A_WHILE;
        // Each channel is one piece of work, and so is its event.
        broker.shared.sweep(later);
        assert_eq!(remembered(&broker), SWEEP_WORK / 2 + 10);
        broker.shared.sweep(later);
        broker.shared.sweep(later);
        assert_eq!(remembered(&broker), 0);

        for n in 0..SWEEP_WORK + 10 {
            replay(&broker, &format!("{n}"), None).await;
        }
        broker.shared.sweep(later);
        assert_eq!(remembered(&broker), 10);
        broker.shared.sweep(later);

        for n in 0..2 * SWEEP_WORK + 10 {
            publish(&broker, "long", say("one").with_idempotency_key(key(&n.to_string()))).await;
        }
        let channel = broker.shared.open(&name("long"));
        broker.shared.sweep(later);
        assert_eq!(lock(&channel.state).kept.len(), SWEEP_WORK + 10);
        assert_eq!(lock(&channel.state).keys.len(), SWEEP_WORK + 10);
    }

    #[tokio::test]
    async fn dropping_a_feed_leaves_nothing_behind() {
        let broker = Memory::new(Rules::default());
        let channel = broker.shared.open(&name("a"));
        let stays = broker.follow(&name("a")).await.unwrap();
        drop(broker.follow(&name("a")).await.unwrap());
        assert_eq!(lock(&channel.state).feeds.len(), 1);
        drop(stays);
        assert_eq!(lock(&channel.state).feeds.len(), 0);
    }

    #[tokio::test]
    async fn an_unread_feed_ends_at_its_bound() {
        let broker = keeping(1, MINUTE, usize::MAX);
        let mut unread = broker.follow(&name("a")).await.unwrap();
        let channel = broker.shared.open(&name("a"));
        for n in 0..1_000_000 {
            publish(&broker, "a", say(n)).await;
            if lock(&channel.state).feeds.is_empty() {
                assert_eq!(unread.next().await, None, "it says nothing more rather than a part");
                return;
            }
        }
        panic!("an unread feed grows without bound");
    }

    #[tokio::test]
    async fn feeds_end_with_the_broker() {
        let broker = Memory::new(Rules::default());
        let mut feed = broker.follow(&name("a")).await.unwrap();
        publish(&broker, "a", say("one")).await;
        drop(broker);
        assert!(feed.next().await.is_some());
        assert_eq!(feed.next().await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_sweeper_goes_with_the_broker() {
        let broker = Memory::new(Rules::default());
        replay(&broker, "a", None).await;
        let task = lock(&broker.shared.sweep).task.take().unwrap();
        drop(broker);
        tokio::time::timeout(A_WHILE, task).await.unwrap().unwrap();
    }

    #[test]
    fn the_sweeper_comes_back_after_its_runtime_has_gone() {
        let runtime = || {
            tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .unwrap()
        };
        let broker = keeping(10, MINUTE, usize::MAX);
        // Without a runtime there is no sweeper yet, and that is no error.
        broker.shared.open(&name("a"));
        runtime().block_on(replay(&broker, "b", None));
        runtime().block_on(async {
            replay(&broker, "c", None).await;
            tokio::time::sleep(A_WHILE).await;
        });
        assert_eq!(remembered(&broker), 0);
    }

    /// The publisher has found the channel but not locked it yet when the sweeper forgets it.
    #[test]
    fn a_publish_that_meets_the_forgetting_goes_to_the_new_channel() {
        let broker = Memory::new(Rules::default());
        let channel = broker.shared.open(&name("a"));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        std::thread::scope(|threads| {
            let mut state = lock(&channel.state);
            let strong = Arc::strong_count(&channel);
            let publisher = threads.spawn(|| runtime.block_on(publish(&broker, "a", say("one"))));
            while Arc::strong_count(&channel) == strong {
                std::thread::yield_now();
            }
            state.forgotten = true;
            broker.shared.channels.write().unwrap().remove(&name("a"));
            drop(state);
            let position = publisher.join().unwrap();
            assert_eq!(lock(&channel.state).kept.len(), 0);
            assert_eq!(lock(&broker.shared.open(&name("a")).state).head, position);
        });
    }

    fn used(broker: &Memory) -> usize {
        broker.shared.used.load(Ordering::Relaxed)
    }

    #[tokio::test(start_paused = true)]
    async fn ever_new_channels_stay_within_the_bound() {
        const BOUND: usize = 4 << 20;
        let mut rule = Rule::new("{*all}".parse().unwrap(), vec![TransportName::SSE]);
        rule.history = History {
            events: 100,
            age: A_WHILE,
            bytes: 16 << 20,
        };
        let broker = Memory::bounded(Rules::new([rule]), BOUND);
        let payload = "x".repeat(60_000);
        let mut cursors = Vec::new();
        for n in 0..1000 {
            let published = broker.publish(&name(&format!("c/{n}")), say(&payload)).await.unwrap();
            cursors.push(published.position);
            assert!(used(&broker) <= BOUND + 70_000, "{} bytes after {n}", used(&broker));
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert!(used(&broker) > BOUND / 2, "what fits is kept");
        // The newest is whole; of the oldest nothing is left, and a replay says so.
        assert!(replay(&broker, "c/999", Some(cursors[999])).await.complete);
        assert_eq!(replay(&broker, "c/999", None).await.events.len(), 1);
        let lost = replay(&broker, "c/0", Some(Position(cursors[0].0 - 1))).await;
        assert_eq!((lost.complete, lost.events.len()), (false, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn at_the_bound_channels_of_which_nothing_is_left_are_forgotten() {
        const BOUND: usize = 256 << 10;
        let broker = Memory::bounded(Rules::new([]), BOUND);
        let mut cursors = Vec::new();
        for n in 0..1000 {
            let published = broker.publish(&name(&format!("c/{n}")), say("x")).await.unwrap();
            cursors.push(published.position);
            assert!(used(&broker) <= BOUND + 2000, "{} bytes after {n}", used(&broker));
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert!(remembered(&broker) < 250, "{}", remembered(&broker));
        // What was forgotten begins anew above all that it gave, and its old cursor is told of a
        // gap.
        let known = |n: usize| broker.shared.channels.read().unwrap().contains_key(&name(&format!("c/{n}")));
        let forgotten = (0..1000).find(|&n| !known(n)).unwrap();
        let (channel, cursor) = (format!("c/{forgotten}"), cursors[forgotten]);
        let lost = replay(&broker, &channel, Some(cursor)).await;
        assert_eq!((lost.complete, lost.events.len()), (false, 0));
        let again = broker.publish(&name(&channel), say("x")).await.unwrap();
        assert!(again.position > cursor);
        assert!(!replay(&broker, &channel, Some(cursor)).await.complete);
    }

    #[tokio::test(start_paused = true)]
    async fn at_the_bound_the_oldest_history_of_all_channels_goes_first() {
        const BOUND: usize = 1 << 20;
        let mut rule = Rule::new("{*all}".parse().unwrap(), vec![TransportName::SSE]);
        rule.history = History {
            events: 10_000,
            age: A_WHILE,
            bytes: 16 << 20,
        };
        let broker = Memory::bounded(Rules::new([rule]), BOUND);
        let payload = "x".repeat(1000);
        let feed = broker.follow(&name("old")).await.unwrap();
        for _ in 0..100 {
            broker.publish(&name("old"), say(&payload)).await.unwrap();
        }
        tokio::time::advance(MINUTE).await;
        for _ in 0..1500 {
            broker.publish(&name("new"), say(&payload)).await.unwrap();
            tokio::time::advance(Duration::from_millis(10)).await;
        }
        let old = replay(&broker, "old", Some(feed.head)).await;
        assert_eq!(
            (old.complete, old.events.len()),
            (false, 0),
            "the oldest went, and it is told"
        );
        let new = replay(&broker, "new", None).await;
        assert!(!new.complete && new.events.len() > 400, "{} events", new.events.len());
        for pair in new.events.windows(2) {
            assert_eq!(pair[1].previous, pair[0].position, "only the beginning of a history goes");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_make_room_is_refused() {
        let broker = Memory::bounded(Rules::new([]), 64 << 10);
        let mut feeds = Vec::new();
        for n in 0..100 {
            feeds.push(broker.follow(&name(&format!("c/{n}"))).await.unwrap());
        }
        let refused = broker.publish(&name("c/1"), say("x")).await.unwrap_err();
        assert!(refused.message.contains("limits.memory"), "{refused}");
        drop(feeds);
        assert!(broker.publish(&name("c/1"), say("x")).await.is_ok());
    }
}
