//! The broker in this process: one node, nothing survives its end. The reference for the others, so it is written to be read.
//!
//! A channel is one value behind one lock. An event gets its position, is kept and is pushed to the feeds under that lock, and
//! that alone puts all of it into one order. Locks are taken in the order *all channels*, *one channel*, *feed*, none is held
//! across an await, and nothing here drops a [`Feed`], whose callback takes a channel's lock.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Duration;

use airwave_core::broker::{FeedSender, IDEMPOTENCY_WINDOW};
use airwave_core::event::IdempotencyKey;
use airwave_core::rule::History;
use airwave_core::{Broker, BrokerError, ChannelName, Event, Feed, Position, Publish, Published, Replay, Rules};
use async_trait::async_trait;
use tokio::time::Instant;

/// A channel that nobody uses is remembered at least so long, and at least as long as its history.
const FORGET_AFTER: Duration = Duration::from_secs(600);

/// How often the sweeper looks at channels.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// At most so many channels are looked at in one sweep, and about as many expired events and keys dropped: well under 10 ms, and
/// a million quiet channels are gone through in four minutes.
const SWEEP_WORK: usize = 4096;

/// Everything in this process. Dropping it ends its feeds.
///
/// A channel begins when somebody first names it. It is forgotten when it has no feed, no history and no live idempotency key and
/// nobody has named it for ten minutes or its history's age, whichever is longer; an ended channel's name is then free again.
/// Events are bounded by their rule's history, idempotency keys only by [`IDEMPOTENCY_WINDOW`] times the publishers' rate.
pub struct Memory {
    shared: Arc<Shared>,
}

struct Shared {
    rules: Rules,
    channels: RwLock<Channels>,
    sweep: Mutex<Sweep>,
}

#[derive(Default)]
struct Channels {
    by_name: HashMap<ChannelName, Arc<Channel>>,
    /// The highest position of all forgotten channels. New ones begin above it, so that a channel which comes back while the
    /// clock is behind gives no position twice.
    floor: Position,
}

#[derive(Default)]
struct Sweep {
    /// Every channel once; those at the front have waited longest.
    turns: VecDeque<Arc<Channel>>,
    task: Option<tokio::task::JoinHandle<()>>,
}

struct Channel {
    name: ChannelName,
    history: History,
    state: Mutex<State>,
}

struct State {
    /// The position that stands for "no event yet"; the first event's previous.
    birth: Position,
    /// The newest event's position, or the birth. It stays when history is trimmed, so the chain never breaks.
    head: Position,
    kept: VecDeque<Kept>,
    bytes: usize,
    ended: bool,
    keys: HashMap<IdempotencyKey, Position>,
    keys_by_age: VecDeque<(Instant, IdempotencyKey)>,
    feeds: Vec<(u64, FeedSender)>,
    feeds_opened: u64,
    touched: Instant,
    /// It is no longer among the channels; whoever still holds it looks the name up again.
    forgotten: bool,
}

struct Kept {
    since: Instant,
    event: Arc<Event>,
}

// Everything below leaves its state whole at every point where it could panic, so a poisoned lock is still good.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Memory {
    /// A broker without channels that keeps of each what `rules` say.
    pub fn new(rules: Rules) -> Memory {
        let shared = Shared {
            rules,
            channels: RwLock::default(),
            sweep: Mutex::default(),
        };
        Memory {
            shared: Arc::new(shared),
        }
    }
}

#[async_trait]
impl Broker for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    async fn publish(&self, channel: &ChannelName, publish: Publish) -> Result<Published, BrokerError> {
        self.shared.with(channel, |channel, state, now| {
            state.expire(channel.history.age, now, usize::MAX);
            if let Some(&position) = publish.idempotency_key.as_ref().and_then(|key| state.keys.get(key)) {
                return Ok(Published {
                    position,
                    duplicate: true,
                });
            }
            if state.ended {
                return Err(BrokerError::ended());
            }
            let position = state.append(&channel.history, now, publish);
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
            // Weak, because the channel holds the feed's other end, and must go when the broker goes.
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

    async fn replay(&self, channel: &ChannelName, after: Option<Position>, limit: usize) -> Result<Replay, BrokerError> {
        Ok(self.shared.with(channel, |channel, state, now| {
            state.expire(channel.history.age, now, usize::MAX);
            state.replay(after, limit)
        }))
    }

    async fn ping(&self) -> Result<(), BrokerError> {
        Ok(())
    }
}

impl State {
    fn born(birth: Position, now: Instant) -> Self {
        State {
            birth,
            head: birth,
            kept: VecDeque::new(),
            bytes: 0,
            ended: false,
            keys: HashMap::new(),
            keys_by_age: VecDeque::new(),
            feeds: Vec::new(),
            feeds_opened: 0,
            touched: now,
            forgotten: false,
        }
    }

    fn append(&mut self, history: &History, now: Instant, publish: Publish) -> Position {
        let position = self.head.next();
        self.ended = publish.is_end();
        let event = Arc::new(Event {
            position,
            previous: self.head,
            message: publish.message,
        });
        self.head = position;
        if let Some(key) = publish.idempotency_key {
            self.keys.insert(key.clone(), position);
            self.keys_by_age.push_back((now, key));
        }
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
        position
    }

    fn replay(&self, after: Option<Position>, limit: usize) -> Replay {
        let oldest_previous = self.kept.front().map_or(self.head, |oldest| oldest.event.previous);
        let (range, complete) = match after {
            Some(after) => {
                let first_after = self.kept.partition_point(|kept| kept.event.position <= after);
                let held = first_after > 0 && self.kept[first_after - 1].event.position == after;
                let end = self.kept.len().min(first_after.saturating_add(limit));
                // Equality, not `<=`: a position within the range that is not there was lost.
                (first_after..end, held || after == self.head || after == oldest_previous)
            }
            None => {
                let first = self.kept.len().saturating_sub(limit);
                (first..self.kept.len(), first == 0 && oldest_previous == self.birth)
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

    /// Drops events and keys that are too old, at most `most` of each, and gives how many that were.
    fn expire(&mut self, age: Duration, now: Instant, most: usize) -> usize {
        let too_old = |kept: &&Kept| now - kept.since > age;
        let events = self.kept.iter().take(most).take_while(too_old).count();
        for _ in 0..events {
            self.drop_oldest();
        }
        let too_old = |(since, _): &&(Instant, IdempotencyKey)| now - *since > IDEMPOTENCY_WINDOW;
        let keys = self.keys_by_age.iter().take(most).take_while(too_old).count();
        for (_, key) in self.keys_by_age.drain(..keys) {
            self.keys.remove(&key);
        }
        events + keys
    }

    fn drop_oldest(&mut self) {
        if let Some(oldest) = self.kept.pop_front() {
            self.bytes -= oldest.event.message.weight();
        }
    }

    fn unused(&self, age: Duration, now: Instant) -> bool {
        self.feeds.is_empty()
            && self.kept.is_empty()
            && self.keys.is_empty()
            && now.duration_since(self.touched) >= age.max(FORGET_AFTER)
    }
}

impl Shared {
    /// Does `act` under the channel's lock. The channel begins here if it is new.
    fn with<T>(self: &Arc<Self>, name: &ChannelName, act: impl FnOnce(&Arc<Channel>, &mut State, Instant) -> T) -> T {
        loop {
            let channel = self.open(name);
            let mut state = lock(&channel.state);
            if !state.forgotten {
                // Read under the lock, so that ages are in the order of positions.
                let now = Instant::now();
                state.touched = now;
                return act(&channel, &mut state, now);
            }
            // The sweeper forgot it between our look-up and our lock.
        }
    }

    fn open(self: &Arc<Self>, name: &ChannelName) -> Arc<Channel> {
        let channels = self.channels.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.by_name.get(name) {
            return channel.clone();
        }
        drop(channels);
        let history = self.rules.history(name);
        let mut channels = self.channels.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.by_name.get(name) {
            return channel.clone();
        }
        let channel = Arc::new(Channel {
            name: name.clone(),
            history,
            state: Mutex::new(State::born(channels.floor.next(), Instant::now())),
        });
        channels.by_name.insert(name.clone(), channel.clone());
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

    /// Looks at the channels whose turn it is: expires what is old and forgets those that nobody uses.
    fn sweep(&self, now: Instant) {
        let most = lock(&self.sweep).turns.len();
        let mut work = SWEEP_WORK;
        for _ in 0..most {
            // A statement of its own: within a `let … else` or a loop's head its lock would be held for longer.
            let turn = lock(&self.sweep).turns.pop_front();
            let Some(channel) = turn else { return };
            let mut state = lock(&channel.state);
            let dropped = state.expire(channel.history.age, now, work);
            let unused = state.unused(channel.history.age, now);
            drop(state);
            if !(unused && self.forget(&channel, now)) {
                lock(&self.sweep).turns.push_back(channel);
            }
            work = work.saturating_sub(1 + dropped);
            if work == 0 {
                return;
            }
        }
    }

    /// Forgets the channel unless somebody has begun to use it meanwhile.
    fn forget(&self, channel: &Channel, now: Instant) -> bool {
        let mut channels = self.channels.write().unwrap_or_else(PoisonError::into_inner);
        let mut state = lock(&channel.state);
        if !state.unused(channel.history.age, now) {
            return false;
        }
        state.forgotten = true;
        channels.floor = channels.floor.max(state.head);
        channels.by_name.remove(&channel.name);
        true
    }
}

/// Weak, so that the broker goes with its last owner, and the task within one period.
async fn keep_sweeping(shared: Weak<Shared>) {
    loop {
        tokio::time::sleep(SWEEP_EVERY).await;
        let Some(shared) = shared.upgrade() else { return };
        shared.sweep(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use airwave_core::{Data, EventName, Message};

    use super::*;

    fn name(text: &str) -> ChannelName {
        ChannelName::new(text).unwrap()
    }

    fn say(text: &str) -> Publish {
        Publish::new(Message::new(EventName::new("said").unwrap(), Data::text(text)))
    }

    #[tokio::test]
    async fn what_is_published_is_shown_and_kept() {
        let broker = Memory::new(Rules::default());
        let mut feed = broker.follow(&name("a")).await.unwrap();
        let first = broker.publish(&name("a"), say("one")).await.unwrap();
        let shown = feed.next().await.unwrap();
        assert_eq!((shown.position, shown.previous), (first.position, feed.head));
        let replay = broker.replay(&name("a"), Some(feed.head), 10).await.unwrap();
        assert_eq!((replay.events, replay.complete), (vec![shown], true));
    }
}
