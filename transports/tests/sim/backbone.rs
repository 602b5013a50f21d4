//! The memory broker as several nodes share it, with everything that can go wrong between a node
//! and its broker, on demand.
//!
//! What it does wrong is what the contract allows (`airwave_core::Broker`): feeds lag and end,
//! calls fail or hang, a failover loses the newest events, a restart loses all. One thing is
//! against the contract, because a lost packet can do it: a feed skips an event in silence. And it
//! can lie ([`Lie`]), so that a test can see the checker notice.
//!
//! It also knows what really happened, see [`Truth`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use airwave_brokers::memory::Memory;
use airwave_core::broker::{BrokerStats, FeedSender, follow_and_replay};
use airwave_core::event::IdempotencyKey;
use airwave_core::idempotency::ScopedKey;
use airwave_core::{Append, Broker, BrokerError, ChannelName, Event, Feed, PageLimit, Position, Published, Replay, Rules};
use async_trait::async_trait;
use futures_util::FutureExt;
use tokio::time::{Instant, sleep, timeout};

use crate::history::{Clock, Truth};
use crate::random::Random;

/// A way to break the contract that must not go unnoticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// A replay is always complete.
    AlwaysComplete,
    /// A replay leaves out an event in its middle.
    ReplaysWithAHole,
    /// A replay is answered by a replica that lacks the newest events.
    ReplaysFromALaggingReplica,
    /// A replay leaves out its oldest events, as if they had grown too old.
    HidesHistory,
    /// A feed skips events, and names the one before them as the previous of the next.
    HidesWhatFeedsSkip,
    /// A repeated publish is another event.
    ForgetsKeys,
    /// A publish is acknowledged and dropped.
    AcknowledgesNothing,
    /// A replay leaves out what a node published whose clock is behind, and hides the hole.
    HidesWhatIsBehind,
    /// A replay is read in two pieces. What passed out of the history between them is left out, and
    /// the hole is hidden.
    GluesPages,
    /// A replay ends two events early, although its head does not.
    EndsPagesEarly,
    /// Feeds show what the broker refused to write.
    ShowsWhatItRefuses,
}

/// What a call to a broker that is away does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Away {
    Refuses,
    Hangs,
    /// Whatever writes is refused, the node's own probe as well. Reads and feeds go on.
    RefusesWrites,
}

/// What stands between one node and the broker.
#[derive(Clone, Debug, Default)]
struct Weather {
    away: Option<Away>,
    /// What every call takes more, each way.
    line: Duration,
    /// Feeds show nothing for the time being.
    held: bool,
    /// How long events are under way to this node.
    lag: Duration,
    /// Feeds that were opened before the count reached this are over.
    feeds_ended: u64,
    /// So many of the events that come next are left out.
    skip: u32,
}

pub struct Backbone {
    inner: Mutex<Inner>,
    rules: Rules,
    clock: Clock,
    lie: Option<Lie>,
}

struct Inner {
    memory: Memory,
    /// Counts restarts, and restarts and failovers: a feed of an earlier time shows nothing that is
    /// newer.
    restarts: u64,
    epoch: u64,
    /// What failovers have lost, which the memory broker still holds. With the position before
    /// each.
    lost: BTreeMap<Position, Position>,
    truth: BTreeMap<ChannelName, Truth>,
    nodes: Vec<Weather>,
    random: Random,
    clocks: Clocks,
    /// What was refused, for [`Lie::ShowsWhatItRefuses`].
    refused: Vec<(ChannelName, Arc<Event>)>,
}

/// The nodes' clocks, where they differ. The position of an event is then that of the node that
/// publishes it, as on NATS, or one more than the newest.
#[derive(Default)]
struct Clocks {
    /// By how many microseconds each node's clock differs. Empty if all of them are right.
    skews: Vec<i64>,
    /// The positions of the memory broker, and which ones stand for them.
    given: BTreeMap<ChannelName, BTreeMap<Position, Position>>,
    /// The highest position that was ever given: also above it is what a broker gives that lost it.
    newest: u64,
    /// What nodes published whose clocks are behind.
    behind: BTreeSet<Position>,
}

impl Clocks {
    fn are_right(&self) -> bool {
        self.skews.is_empty()
    }

    /// Gives a position of its own to what the memory broker has at `position`. No `node`: it is
    /// the first position of a channel.
    fn give(&mut self, name: &ChannelName, position: Position, node: Option<usize>) {
        if self.are_right() {
            return;
        }
        let skew = node.map_or(0, |node| self.skews[node]);
        self.newest = position.0.saturating_add_signed(skew).max(self.newest + 1);
        let given = Position(self.newest);
        self.given.entry(name.clone()).or_default().insert(position, given);
        if skew < 0 {
            self.behind.insert(given);
        }
    }

    fn given(&self, name: &ChannelName, position: Position) -> Position {
        let given = self.given.get(name).and_then(|given| given.get(&position));
        given.copied().unwrap_or(position)
    }
}

/// The backbone as one node reaches it.
pub struct Node {
    pub backbone: Arc<Backbone>,
    pub index: usize,
}

impl Backbone {
    /// `skews`: by how many milliseconds the clock of each node differs.
    pub fn new(rules: Rules, skews: &[i64], random: Random, clock: Clock, lie: Option<Lie>) -> Arc<Self> {
        let differ = skews.iter().any(|skew| *skew != 0);
        let micros = skews.iter().filter(|_| differ).map(|millis| millis * 1000);
        let clocks = Clocks {
            skews: micros.collect(),
            ..Clocks::default()
        };
        let inner = Inner {
            memory: Memory::new(rules.clone()),
            restarts: 0,
            epoch: 0,
            lost: BTreeMap::new(),
            truth: BTreeMap::new(),
            nodes: vec![Weather::default(); skews.len()],
            random,
            clocks,
            refused: Vec::new(),
        };
        Arc::new(Self {
            inner: Mutex::new(inner),
            rules,
            clock,
            lie,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    pub fn truth(&self) -> BTreeMap<String, Truth> {
        let truth = &self.lock().truth;
        truth.iter().map(|(name, truth)| (name.to_string(), truth.clone())).collect()
    }

    pub fn go_away(&self, node: usize, away: Option<Away>) {
        self.lock().nodes[node].away = away;
    }

    pub fn slow_line(&self, node: usize, line: Duration) {
        self.lock().nodes[node].line = line;
    }

    pub fn hold_feeds(&self, node: usize, held: bool) {
        self.lock().nodes[node].held = held;
    }

    pub fn lag(&self, node: usize, lag: Duration) {
        self.lock().nodes[node].lag = lag;
    }

    pub fn end_feeds(&self, node: usize) {
        self.lock().nodes[node].feeds_ended += 1;
    }

    pub fn skip(&self, node: usize, events: u32) {
        self.lock().nodes[node].skip = events;
    }

    /// The primary dies, and its replica lacks the newest `events` of each channel.
    pub fn fail_over(&self, events: usize) {
        let mut inner = self.lock();
        inner.epoch += 1;
        let names: Vec<_> = inner.truth.keys().cloned().collect();
        for name in names {
            let (kept, ..) = inner.log(&name);
            inner.truth.get_mut(&name).unwrap().losses.push(self.clock.now());
            for event in kept.iter().rev().take(events) {
                inner.lost.insert(event.position, event.previous);
                let at = self.clock.now();
                let truth = inner.truth.get_mut(&name).unwrap();
                truth.places.get_mut(&event.position.0).unwrap().lost = Some(at);
                truth.head = event.previous.0;
            }
        }
    }

    /// The broker starts again with nothing.
    pub fn restart_empty(&self) {
        let mut inner = self.lock();
        let newest = inner
            .truth
            .values()
            .filter_map(|truth| truth.places.keys().last())
            .max()
            .copied();
        // With clocks that differ, positions go on above the newest by themselves.
        while inner.clocks.are_right() && Position::now().0 <= newest.unwrap_or(0) {
            // A restart takes longer than the microseconds by which a burst can be ahead of the
            // clock.
            std::thread::yield_now();
        }
        inner.epoch += 1;
        inner.restarts += 1;
        inner.memory = Memory::new(self.rules.clone());
        inner.clocks.given.clear();
        for truth in inner.truth.values_mut() {
            truth.losses.push(self.clock.now());
            for place in truth.places.values_mut() {
                place.lost.get_or_insert_with(|| self.clock.now());
            }
        }
        let names: Vec<_> = inner.truth.keys().cloned().collect();
        for name in names {
            inner.touch(&name, &self.clock);
        }
    }
}

impl Inner {
    /// Records the base of a channel at its first use since the broker started.
    fn touch(&mut self, name: &ChannelName, clock: &Clock) {
        let known = self
            .truth
            .get(name)
            .is_some_and(|truth| truth.places.values().any(|place| place.lost.is_none()));
        if !known {
            let all = at_once(self.memory.replay(name, None, PageLimit::events(usize::MAX))).unwrap();
            self.clocks.give(name, all.head, None);
            let (_, head, _) = self.log(name);
            let truth = self.truth.entry(name.clone()).or_default();
            truth.base(head.0, clock.now());
        }
    }

    /// The position that now stands before what came after `position`.
    fn surviving(&self, mut position: Position) -> Position {
        while let Some(previous) = self.lost.get(&position) {
            position = *previous;
        }
        position
    }

    fn as_it_is_now(&self, name: &ChannelName, event: &Arc<Event>) -> Arc<Event> {
        let position = self.clocks.given(name, event.position);
        let previous = self.surviving(self.clocks.given(name, event.previous));
        if (position, previous) == (event.position, event.previous) {
            return event.clone();
        }
        Arc::new(Event::new(position, previous, event.message.clone()))
    }

    /// What the broker holds of a channel, its head, and whether it has ended.
    fn log(&self, name: &ChannelName) -> (Vec<Arc<Event>>, Position, bool) {
        let all = at_once(self.memory.replay(name, None, PageLimit::events(usize::MAX))).unwrap();
        let events = all.events.iter().map(|event| self.as_it_is_now(name, event));
        (
            events.filter(|event| !self.lost.contains_key(&event.position)).collect(),
            self.surviving(self.clocks.given(name, all.head)),
            all.ended,
        )
    }

    fn replay(&self, name: &ChannelName, after: Option<Position>, limit: PageLimit) -> Replay {
        if self.lost.is_empty() && self.clocks.are_right() {
            return at_once(self.memory.replay(name, after, limit)).unwrap();
        }
        // As the contract says it (`airwave_core::Broker::replay`), of what is left.
        let (kept, head, ended) = self.log(name);
        let oldest_previous = kept.first().map_or(head, |oldest| oldest.previous);
        let first = match after {
            Some(after) => kept.partition_point(|event| event.position <= after),
            None => kept.len() - limit.fitting(kept.iter().rev().map(|event| &**event)),
        };
        let end = first + limit.fitting(kept[first..].iter().map(|event| &**event));
        let complete = match after {
            Some(after) => after == head || after == oldest_previous || kept.iter().any(|event| event.position == after),
            None => false,
        };
        Replay::new(head, kept[first..end].to_vec())
            .with_complete(complete)
            .with_more(end < kept.len())
            .with_ended(ended)
    }

    fn append(&mut self, name: &ChannelName, append: Append, node: usize) -> Result<Published, BrokerError> {
        let mut published = at_once(self.memory.publish(name, append))?;
        if !published.duplicate {
            self.clocks.give(name, published.position, Some(node));
        }
        published.position = self.clocks.given(name, published.position);
        Ok(published)
    }

    fn publish(
        &mut self,
        name: &ChannelName,
        append: &Append,
        node: usize,
        lie: Option<Lie>,
        clock: &Clock,
    ) -> Result<Published, BrokerError> {
        let mut attempt = append.clone();
        if lie == Some(Lie::ForgetsKeys) {
            attempt.idempotency_key = None;
        }
        let mut published = self.append(name, attempt, node)?;
        for again in 1.. {
            if !published.duplicate || !self.lost.contains_key(&published.position) {
                break;
            }
            // A failover lost the key with its event; the memory broker still has both. So a
            // publisher that tries again uses another key.
            let key = append
                .idempotency_key
                .as_ref()
                .map_or("", ScopedKey::as_str)
                .replace(' ', "_");
            let mut attempt = append.clone();
            attempt.idempotency_key = IdempotencyKey::new(&format!("{key}~{again}")).ok().map(Into::into);
            published = self.append(name, attempt, node)?;
        }
        if !published.duplicate {
            let (kept, head, _) = self.log(name);
            assert_eq!(head, published.position);
            let previous = kept.last().map_or(self.truth[name].head, |event| event.previous.0);
            let truth = self.truth.get_mut(name).unwrap();
            let body = String::from_utf8_lossy(append.message.data.as_bytes());
            truth.event(published.position.0, previous, &body, clock.now());
            let oldest = kept.first().map_or(head, |event| event.position);
            for (_, place) in truth
                .places
                .range_mut(..oldest.0)
                .rev()
                .take_while(|(_, place)| place.trimmed.is_none())
            {
                place.trimmed = Some(clock.now());
            }
        }
        Ok(published)
    }
}

/// The memory broker never waits.
fn at_once<T>(answer: impl Future<Output = T>) -> T {
    answer.now_or_never().expect("the memory broker answers at once")
}

impl Node {
    fn weather<T>(&self, look: impl FnOnce(&mut Weather) -> T) -> T {
        look(&mut self.backbone.lock().nodes[self.index])
    }

    /// A call takes its time there and back, and may be lost on either way.
    async fn call<T>(&self, act: impl FnOnce(&mut Inner) -> Result<T, BrokerError>) -> Result<T, BrokerError> {
        let there = self.delay();
        self.way(there).await?;
        let answer = act(&mut self.backbone.lock());
        let back = self.delay();
        self.way(back).await?;
        answer
    }

    fn delay(&self) -> Duration {
        let mut inner = self.backbone.lock();
        let most = if inner.random.chance(0.1) { 300 } else { 20 };
        inner.nodes[self.index].line + Duration::from_millis(inner.random.below(most))
    }

    /// What the broker says to a write.
    fn writes(&self, inner: &Inner) -> Result<(), BrokerError> {
        match inner.nodes[self.index].away {
            Some(Away::RefusesWrites) => Err(BrokerError::unavailable("the broker refuses writes")),
            _ => Ok(()),
        }
    }

    async fn way(&self, delay: Duration) -> Result<(), BrokerError> {
        sleep(delay).await;
        match self.weather(|weather| weather.away) {
            None | Some(Away::RefusesWrites) => Ok(()),
            Some(Away::Refuses) => Err(BrokerError::unavailable("the broker is away")),
            // Until the caller has waited long enough.
            Some(Away::Hangs) => pending().await,
        }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Broker for Node {
    fn name(&self) -> &'static str {
        "simulated"
    }

    async fn publish(&self, channel: &ChannelName, append: Append) -> Result<Published, BrokerError> {
        let Backbone { clock, lie, .. } = &*self.backbone;
        self.call(|inner| {
            inner.touch(channel, clock);
            if let Err(refused) = self.writes(inner) {
                if *lie == Some(Lie::ShowsWhatItRefuses) {
                    let previous = Position(inner.truth[channel].head);
                    let event = Event::new(previous.next(), previous, append.message.clone());
                    inner.refused.push((channel.clone(), Arc::new(event)));
                }
                return Err(refused);
            }
            if *lie == Some(Lie::AcknowledgesNothing) && inner.random.chance(0.1) {
                let position = Position(inner.truth[channel].head).next();
                return Ok(Published::new(position));
            }
            inner.publish(channel, &append, self.index, *lie, clock)
        })
        .await
    }

    async fn follow(&self, channel: &ChannelName) -> Result<Feed, BrokerError> {
        self.call(|inner| {
            inner.touch(channel, &self.backbone.clock);
            let source = at_once(inner.memory.follow(channel))?;
            let head = inner.surviving(inner.clocks.given(channel, source.head));
            let (sender, feed) = Feed::new(head, || {});
            let pump = Pump {
                node: Node {
                    backbone: self.backbone.clone(),
                    index: self.index,
                },
                name: channel.clone(),
                refused: inner.refused.len(),
                feed: inner.nodes[self.index].feeds_ended,
                epoch: inner.epoch,
                sender,
                waiting: VecDeque::new(),
                shown: head,
                unsaid: false,
            };
            // On the node's own runtime: it dies with the node, and its time is the node's.
            tokio::spawn(pump.run(source));
            Ok(feed)
        })
        .await
    }

    async fn replay(&self, channel: &ChannelName, after: Option<Position>, limit: PageLimit) -> Result<Replay, BrokerError> {
        let lie = self.backbone.lie;
        let page = self.call(|inner| {
            inner.touch(channel, &self.backbone.clock);
            let mut replay = inner.replay(channel, after, limit);
            match lie {
                Some(Lie::AlwaysComplete) => replay.complete = true,
                Some(Lie::HidesHistory) if replay.events.len() > 2 => {
                    replay.events.drain(..2);
                    replay.complete = false;
                }
                Some(Lie::ReplaysWithAHole) if replay.events.len() > 2 => drop(replay.events.remove(1)),
                Some(Lie::ReplaysFromALaggingReplica) => {
                    for _ in 0..3 {
                        if let Some(newest) = replay.events.pop() {
                            replay.head = newest.previous;
                        }
                    }
                    replay.complete &= after.is_none_or(|after| after <= replay.head);
                }
                Some(Lie::HidesWhatIsBehind) if !replay.more => {
                    replay.events = without(&replay.events, |event| inner.clocks.behind.contains(&event.position));
                    replay.head = replay.events.last().map_or(replay.head, |last| last.position);
                }
                Some(Lie::EndsPagesEarly) if replay.events.len() > 2 && !replay.more => {
                    replay.events.truncate(replay.events.len() - 2);
                }
                _ => {}
            }
            Ok(replay)
        });
        let page = page.await?;
        match (lie, page.events.last()) {
            (Some(Lie::GluesPages), Some(last)) if !page.more => {
                let rest = self.call(|inner| Ok(inner.replay(channel, None, limit))).await?;
                let newer = rest.events.iter().filter(|event| event.position > last.position);
                let events: Vec<_> = page.events.iter().chain(newer).cloned().collect();
                let mut page = page;
                (page.events, page.head) = (chained(&events), rest.head);
                Ok(page)
            }
            _ => Ok(page),
        }
    }

    async fn open(&self, channel: &ChannelName, limit: PageLimit) -> Result<(Feed, Replay), BrokerError> {
        follow_and_replay(self, channel, limit).await
    }

    async fn ping(&self) -> Result<(), BrokerError> {
        self.call(|inner| self.writes(inner)).await
    }

    fn stats(&self) -> BrokerStats {
        BrokerStats::in_process()
    }
}

/// What is left without those that `hides`, as if they had never been.
fn without(events: &[Arc<Event>], hides: impl Fn(&Event) -> bool) -> Vec<Arc<Event>> {
    let shown = events.iter().filter(|event| !hides(event)).cloned();
    // What stands before the first is named by the first that is left.
    let mut chain = chained(&shown.collect::<Vec<_>>());
    if let (Some(oldest), Some(first)) = (events.first(), chain.first_mut()) {
        Arc::make_mut(first).previous = oldest.previous;
    }
    chain
}

/// The same events, each of which names the one before it.
fn chained(events: &[Arc<Event>]) -> Vec<Arc<Event>> {
    let mut chain: Vec<Arc<Event>> = Vec::new();
    for event in events {
        let mut event = Event::clone(event);
        event.previous = chain.last().map_or(event.previous, |last| last.position);
        chain.push(Arc::new(event));
    }
    chain
}

/// One feed of one node: carries events from the memory broker's feed to the node's, in the weather
/// that there is.
struct Pump {
    node: Node,
    name: ChannelName,
    /// How many refused writes there had been when it last looked.
    refused: usize,
    /// How many times feeds had been ended when this one began.
    feed: u64,
    epoch: u64,
    sender: FeedSender,
    /// Events under way, and when they are there.
    waiting: VecDeque<(Instant, Arc<Event>)>,
    shown: Position,
    /// Something was skipped since.
    unsaid: bool,
}

impl Pump {
    async fn run(mut self, mut source: Feed) {
        // Looks up from time to time, for the weather changes without a word.
        const LOOK: Duration = Duration::from_millis(20);
        loop {
            let next = timeout(LOOK, source.next()).await;
            let (weather, epoch, refused) = {
                let inner = self.node.backbone.lock();
                let refused = inner.refused[self.refused..].to_vec();
                (inner.nodes[self.node.index].clone(), inner.epoch, refused)
            };
            self.refused += refused.len();
            if self.sender.is_closed() || weather.feeds_ended != self.feed {
                return;
            }
            if epoch != self.epoch || matches!(next, Ok(None)) {
                // It hung on a broker that is gone: it shows nothing more, and after a while that
                // is noticed.
                let random = self.node.backbone.lock().random.below(500);
                sleep(Duration::from_millis(random)).await;
                return;
            }
            for (_, event) in refused.into_iter().filter(|(name, _)| *name == self.name) {
                self.waiting.push_back((Instant::now() + weather.lag, event));
            }
            if let Ok(Some(event)) = next {
                let event = self.node.backbone.lock().as_it_is_now(&self.name, &event);
                self.waiting.push_back((Instant::now() + weather.lag, event));
            }
            while !weather.held && self.waiting.front().is_some_and(|(due, _)| *due <= Instant::now()) {
                let next = self.waiting.pop_front();
                next.into_iter().for_each(|(_, event)| self.show(event));
            }
        }
    }

    fn show(&mut self, event: Arc<Event>) {
        let lie = self.node.backbone.lie == Some(Lie::HidesWhatFeedsSkip);
        let skip = self.node.weather(|weather| {
            let skip = weather.skip > 0;
            weather.skip -= u32::from(skip);
            skip
        });
        if skip || (lie && self.node.backbone.lock().random.chance(0.05)) {
            self.unsaid = true;
            return;
        }
        let position = event.position;
        let event = match self.unsaid && lie {
            true => Arc::new(Event::new(position, self.shown, event.message.clone())),
            false => event,
        };
        self.unsaid = false;
        self.shown = position;
        self.sender.push(event);
    }
}
