//! This module holds the open logs of one node. It opens them, shares what many callers ask for,
//! trims them, and closes those that have no listeners.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::backbone::Backbone;
use crate::broker::{BrokerError, PageLimit, Replay};
use crate::event::{ChannelName, Position};
use crate::follower::Follower;
use crate::formats::Formats;
use crate::patience;
use crate::refusal::{Code, Refusal};
use crate::ring_memory::RingMemory;
use crate::rule::Rule;
use crate::singleflight::Singleflight;
use crate::sync::{Mutex, lock};

/// Bounds the logs that one tick looks at, so that a node with a million logs does not stutter.
const LOGS_PER_TICK: usize = 50_000;
/// A node at `limits.channels` waits this long between two searches for unused logs to close.
const ROOM_PAUSE: Duration = Duration::from_secs(1);

/// This type holds the logs of the channels that are open on this node.
pub(crate) struct Logs {
    pub(crate) backbone: Arc<Backbone>,
    /// Holds the logs in the order of their names, so that a page of them needs no look at the
    /// others.
    open: Mutex<BTreeMap<ChannelName, Arc<Follower>>>,
    opening: Singleflight<ChannelName, Result<Arc<Follower>, BrokerError>>,
    asking: Singleflight<(ChannelName, Position, PageLimit), Result<Arc<Replay>, BrokerError>>,
    /// Holds the time at which unused logs last had to make room.
    made_room: Mutex<Option<Instant>>,
    /// Counts the memory that the rings of all logs take.
    ring_memory: Arc<RingMemory>,
    formats: Arc<Formats>,
}

/// A round notes how far a pass over all logs has come.
#[derive(Default)]
pub(crate) struct Round {
    after: Option<ChannelName>,
    events: usize,
}

/// This type describes a channel's state on this node, for people who look at it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChannelState {
    /// Names the channel.
    pub name: ChannelName,
    /// Holds the channel's rule.
    pub rule: Arc<Rule>,
    /// Holds the newest position that this node has.
    pub cursor: Position,
    /// Counts the events in the ring.
    pub events: usize,
    /// Estimates the memory of the ring in bytes.
    pub bytes: usize,
    /// Counts the sessions that listen, by format.
    pub listeners: Vec<(&'static str, usize)>,
    /// Says whether the channel has ended.
    pub ended: bool,
}

impl Logs {
    pub(crate) fn new(backbone: Arc<Backbone>, formats: Arc<Formats>) -> Self {
        Self {
            formats,
            ring_memory: RingMemory::new(backbone.limits.memory / 2),
            backbone,
            open: Mutex::default(),
            opening: Singleflight::default(),
            asking: Singleflight::default(),
            made_room: Mutex::default(),
        }
    }

    fn find(&self, name: &ChannelName) -> Option<Arc<Follower>> {
        lock(&self.open).get(name).cloned()
    }

    /// Returns at most `limit` logs of the channels whose names come after `after`, in the order of
    /// their names.
    fn next(&self, after: Option<&ChannelName>, limit: usize) -> Vec<Arc<Follower>> {
        let begin = after.map_or(Bound::Unbounded, Bound::Excluded);
        let open = lock(&self.open);
        let rest = open.range::<ChannelName, _>((begin, Bound::Unbounded));
        rest.take(limit).map(|(_, follower)| follower.clone()).collect()
    }

    /// Returns whether the channel's log is open.
    pub(crate) fn is_open(&self, name: &ChannelName) -> bool {
        lock(&self.open).contains_key(name)
    }

    /// Returns whether the channel's log is open and shows the channel's end.
    pub(crate) fn has_ended(&self, name: &ChannelName) -> bool {
        self.find(name).is_some_and(|follower| follower.log.size().2)
    }

    /// Returns the channel's log on this node, and opens it if need be. However many callers ask at
    /// once, the broker receives one request.
    ///
    /// # Errors
    /// `too-many`: the node has no room for one more log; `unavailable`.
    pub(crate) async fn open(self: &Arc<Self>, name: &ChannelName, rule: &Arc<Rule>) -> Result<Arc<Follower>, Refusal> {
        if let Some(follower) = self.find(name) {
            return Ok(follower);
        }
        if lock(&self.open).len() >= self.backbone.limits.channels && !self.make_room() {
            return Err(Refusal::new(
                Code::TooMany,
                "this server has too many channels open (limits.channels): try again later",
            ));
        }
        let fetch = || {
            let (logs, name, rule) = (self.clone(), name.clone(), rule.clone());
            async move { logs.fetch(name, rule).await }
        };
        let opened = async { self.opening.run(name.clone(), fetch).await.transpose() };
        match patience::wait(self.backbone.limits.broker_timeout, opened).await {
            Ok(Some(follower)) => Ok(follower),
            Err(error) => Err(self.backbone.refusal(&error)),
            Ok(None) => Err(Refusal::internal("the channel could not be opened")),
        }
    }

    async fn fetch(&self, name: ChannelName, rule: Arc<Rule>) -> Result<Arc<Follower>, BrokerError> {
        // The fetch before this one may have ended a moment ago.
        if let Some(follower) = self.find(&name) {
            return Ok(follower);
        }
        self.formats.freeze();
        let open = Follower::open(self.backbone.clone(), &self.ring_memory, name.clone(), rule);
        let follower = patience::request(open).await?;
        lock(&self.open).insert(name, follower.clone());
        Ok(follower)
    }

    /// Returns a page of history from the broker. Listeners that want it at the same time share one
    /// request.
    pub(crate) async fn shared_replay(
        &self,
        name: &ChannelName,
        after: Position,
        limit: PageLimit,
    ) -> Result<Arc<Replay>, BrokerError> {
        let fetch = || {
            let (backbone, name) = (self.backbone.clone(), name.clone());
            async move { backbone.replay(&name, Some(after), limit).await.map(Arc::new) }
        };
        let asked = async {
            let asked = self.asking.run((name.clone(), after, limit), fetch).await;
            asked.unwrap_or_else(|| Err(BrokerError::unavailable("the broker could not be asked")))
        };
        patience::wait(self.backbone.limits.broker_timeout, asked).await
    }

    /// Returns a page of history from the channel's log. Returns `None` if there is no log, or if
    /// it does not hold all of the page.
    pub(crate) async fn page(
        &self,
        name: &ChannelName,
        after: Position,
        limit: PageLimit,
    ) -> Result<Option<Replay>, BrokerError> {
        match self.find(name) {
            Some(follower) => follower.page(after, limit).await,
            None => Ok(None),
        }
    }

    /// Closes logs that have no listeners: first those whose channels have never had an event, then
    /// the others. Returns false if there is still no room, or if the last try was a moment ago.
    fn make_room(&self) -> bool {
        {
            let mut last = lock(&self.made_room);
            if last.is_some_and(|last| last.elapsed() < ROOM_PAUSE) {
                return false;
            }
            *last = Some(Instant::now());
        }
        let followers: Vec<Arc<Follower>> = lock(&self.open).values().cloned().collect();
        for unpublished in [true, false] {
            for follower in &followers {
                if unpublished == follower.log.is_unpublished() {
                    self.close_if_unused(follower, Duration::ZERO);
                }
            }
            if lock(&self.open).len() < self.backbone.limits.channels {
                return true;
            }
        }
        false
    }

    /// Closes and forgets a log that has had no listeners for `linger`. Returns false if the log
    /// has some, or is not in use any more.
    fn close_if_unused(&self, follower: &Follower, linger: Duration) -> bool {
        let name = &follower.log.name;
        // The node closes and removes the log in one step. A caller that finds it closed must not
        // find it again.
        let closed = {
            let mut open = lock(&self.open);
            // Since the caller found the log, the node may have closed the channel and opened it
            // again.
            let in_use = open.get(name).is_some_and(|known| std::ptr::eq(&**known, follower));
            in_use && follower.log.close_if_unused(linger) && open.remove(name).is_some()
        };
        if closed {
            follower.close();
        }
        closed
    }

    /// Trims the next logs of the round, and closes those that are unused. The node calls this
    /// every second or so. It counts the logs at the end of each round.
    pub(crate) fn tend(&self, round: &mut Round) {
        let part = self.next(round.after.as_ref(), LOGS_PER_TICK);
        for follower in &part {
            follower.log.trim();
            if !self.close_if_unused(follower, self.backbone.limits.linger) {
                round.events += follower.log.size().0;
            }
        }
        if part.len() == LOGS_PER_TICK {
            round.after = part.last().map(|follower| follower.log.name.clone());
            return;
        }
        let metrics = &self.backbone.metrics;
        metrics.logs.set(lock(&self.open).len() as i64);
        metrics.log_bytes.set(self.ring_memory.used() as i64);
        metrics.log_events.set(round.events as i64);
        *round = Round::default();
    }

    /// Returns the states of at most `limit` channels whose names come after `after`, in the order
    /// of their names.
    pub(crate) fn states(&self, after: Option<&ChannelName>, limit: usize) -> Vec<ChannelState> {
        let formats = self.formats.names();
        let followers = self.next(after, limit);
        followers
            .iter()
            .map(|follower| ChannelState::of(follower, &formats))
            .collect()
    }
}

impl ChannelState {
    fn of(follower: &Follower, formats: &[&'static str]) -> Self {
        let log = &follower.log;
        let (events, _, ended) = log.size();
        let listeners = formats.iter().copied().zip(log.listeners());
        Self {
            name: log.name.clone(),
            rule: log.rule.clone(),
            cursor: log.head(),
            events,
            bytes: log.held(),
            listeners: listeners.filter(|(_, count)| *count > 0).collect(),
            ended,
        }
    }
}

impl Drop for Logs {
    fn drop(&mut self) {
        // The broker's own call into a follower must not drop the feed, because it holds the feed's
        // lock. That call may be the last holder of the follower, so the feeds end here.
        for follower in lock(&self.open).values() {
            follower.close();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::testing;

    #[tokio::test]
    async fn a_log_that_was_closed_does_not_close_the_one_that_took_its_place() {
        let hub = testing::hub();
        let logs = hub.connect(testing::request(), true).unwrap().admission.logs.clone();
        let name = ChannelName::new("c").unwrap();
        let (rule, _) = logs.backbone.rule(&name).unwrap();
        let before = logs.open(&name, &rule).await.unwrap();
        assert!(logs.close_if_unused(&before, Duration::ZERO));
        let registration = {
            let after = logs.open(&name, &rule).await.unwrap();
            assert!(!logs.close_if_unused(&before, Duration::ZERO));
            assert!(logs.is_open(&name));
            after.log.register(Arc::default(), 0)
        };
        let linger = logs.find(&name).unwrap();
        assert!(!logs.close_if_unused(&linger, Duration::ZERO), "it has a listener");
        drop(registration);
        assert!(logs.close_if_unused(&linger, Duration::ZERO));
        assert!(!logs.is_open(&name));
    }

    #[tokio::test]
    async fn rounds_and_pages_go_on_after_a_name_whatever_was_closed() {
        let hub = testing::hub();
        let logs = hub.connect(testing::request(), true).unwrap().admission.logs.clone();
        let open = async |name: &str| {
            let name = ChannelName::new(name).unwrap();
            let (rule, _) = logs.backbone.rule(&name).unwrap();
            logs.open(&name, &rule).await.unwrap()
        };
        let names = |after: &str, limit| -> Vec<String> {
            let after = ChannelName::new(after).ok();
            let states = logs.states(after.as_ref(), limit);
            states.iter().map(|state| state.name.to_string()).collect()
        };
        for name in ["d", "a", "c", "e", "b"] {
            open(name).await;
        }
        assert_eq!(names("", 2), ["a", "b"]);
        assert_eq!(names("", usize::MAX), ["a", "b", "c", "d", "e"]);
        let second = open("b").await;
        assert!(logs.close_if_unused(&second, Duration::ZERO));
        assert_eq!(names("b", 2), ["c", "d"]);
        assert_eq!(names("d", 2), ["e"]);
        assert_eq!(names("e", 2), [""; 0]);
        assert_eq!(hub.channels_after(None, 1)[0].name.as_str(), "a");
    }
}
