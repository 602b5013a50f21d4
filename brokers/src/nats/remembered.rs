//! What this node knows of the channels that it publishes to.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use airwave_core::ChannelName;
use airwave_core::shrink::shrink;

use super::generations::Generations;
use super::stored::Chain;

/// So many channels' newest messages are remembered for the next publish.
const REMEMBERED: usize = 100_000;

/// What this node knows of a channel.
#[derive(Default)]
pub(super) struct KnownChannel {
    /// What the next publish builds on. It may be old: the server knows better.
    pub(super) chain: Option<Chain>,
    pub(super) generations: Generations,
}

/// Locked while a publish is under way: they go one after the other.
pub(super) type LockedChannel = Arc<tokio::sync::Mutex<KnownChannel>>;

pub(super) type Remembered = Arc<Mutex<HashMap<ChannelName, LockedChannel>>>;

pub(super) fn remembered(known: &Remembered) -> MutexGuard<'_, HashMap<ChannelName, LockedChannel>> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is known of a channel. It is remembered from now on.
pub(super) fn memory_of(known: &Remembered, channel: &ChannelName) -> LockedChannel {
    let mut known = remembered(known);
    if known.len() >= REMEMBERED && !known.contains_key(channel) {
        // Those under way must stay: their publishes wait for each other there.
        known.retain(|_, memory| Arc::strong_count(memory) > 1);
        shrink(&mut *known);
    }
    known.entry(channel.clone()).or_default().clone()
}
