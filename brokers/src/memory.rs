//! The broker in this process: one node, nothing survives its end. The reference for the others, so
//! it is written to be read.
//!
//! A channel is one value behind one lock. An event gets its position, is kept and is pushed to the
//! feeds under that lock, and that alone puts all of it into one order. Locks are taken in the
//! order *all channels*, *one channel*, *feed*, none is held across an await, and nothing here
//! drops a [`Feed`], whose callback takes a channel's lock.

mod channel;
mod directory;
mod epochs;
mod lock;
mod members;
mod room;
mod shared;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, RwLock};

use airwave_core::broker::{BrokerStats, follow_and_replay};
use airwave_core::{Append, Broker, BrokerError, ChannelName, Event, Feed, PageLimit, Position, Published, Replay, Rules};
use async_trait::async_trait;
use tokio::time::Instant;

use self::epochs::EpochPair;
use self::lock::lock;
use self::members::MemberTable;
use self::shared::{Shared, Sweep};

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
///
/// [`IDEMPOTENCY_WINDOW`]: airwave_core::broker::IDEMPOTENCY_WINDOW
pub struct Memory {
    shared: Arc<Shared>,
    members: Arc<Mutex<MemberTable>>,
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
            members: Arc::default(),
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
                return Ok(Published::duplicate_of(position));
            }
            if state.ended {
                return Err(BrokerError::ended());
            }
            let position = state.append(&channel.history, now, append);
            Ok(Published::new(position))
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
                *event = Arc::new(Event::new(event.position, first, event.message.clone()));
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
