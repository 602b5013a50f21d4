//! All channels of a broker: finding one, beginning one, and forgetting those that nothing needs.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::Duration;

use airwave_core::shrink::shrink;
use airwave_core::{ChannelName, Position, Rules};
use tokio::time::Instant;

use super::channel::{Channel, ChannelState};
use super::epochs::{EpochPair, HONOURED_FOR};
use super::lock::lock;

/// How often the sweeper looks at channels.
pub(super) const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// At most so many channels are looked at in one go, and about as many expired events and keys
/// dropped: well under 10 ms.
pub(super) const SWEEP_WORK: usize = 4096;

/// Every channel is looked at within so many sweeps, however many there are, unless as much expires
/// as is looked at.
pub(super) const SWEEPS: usize = 60;

/// What an event, a channel and an idempotency key cost besides the message. Estimates, on the
/// large side.
pub(super) const EVENT_COST: usize = 256;
pub(super) const CHANNEL_COST: usize = 1024;
pub(super) const KEY_COST: usize = 400;

pub(super) struct Shared {
    pub(super) rules: Rules,
    /// Bytes that all channels together may take, by estimate, and that they take.
    pub(super) limit: usize,
    pub(super) used: AtomicUsize,
    /// Held by the one that makes room.
    pub(super) pressure: Mutex<()>,
    pub(super) channels: RwLock<Channels>,
    pub(super) epochs: EpochPair,
    pub(super) sweep: Mutex<Sweep>,
}

pub(super) type Channels = HashMap<ChannelName, Arc<Channel>>;

pub(super) struct Sweep {
    /// Every channel once; those at the front have waited longest.
    pub(super) turns: VecDeque<Arc<Channel>>,
    /// When the current epoch began.
    pub(super) since: Instant,
    /// The newest position of the channels that wait to be forgotten and are not older than both
    /// epochs.
    pub(super) waits_for: Position,
    pub(super) task: Option<tokio::task::JoinHandle<()>>,
}

impl Shared {
    /// Does `act` under the channel's lock. The channel begins here if it is new.
    pub(super) fn with<T>(
        self: &Arc<Self>,
        name: &ChannelName,
        act: impl FnOnce(&Arc<Channel>, &mut ChannelState, Instant) -> T,
    ) -> T {
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

    pub(super) fn open(self: &Arc<Self>, name: &ChannelName) -> Arc<Channel> {
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
            state: Mutex::new(ChannelState::new(self.epochs.current(), Instant::now())),
        });
        channels.insert(name.clone(), channel.clone());
        drop(channels);
        self.enrol(channel.clone());
        channel
    }

    /// Has the channel swept from now on, by a task if there is a runtime.
    pub(super) fn enrol(self: &Arc<Self>, channel: Arc<Channel>) {
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
    pub(super) fn sweep(&self, now: Instant) {
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
    pub(super) fn turn_epoch(&self, now: Instant) {
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
    pub(super) fn forget(&self, channel: &Channel, now: Instant) -> bool {
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

    pub(super) fn forget_locked(&self, channel: &Channel, channels: &mut Channels, state: &mut ChannelState) {
        state.forgotten = true;
        self.used.fetch_sub(std::mem::take(&mut state.counted), Ordering::Relaxed);
        channels.remove(&channel.name);
    }

    /// Brings what is counted of a channel up to date.
    pub(super) fn count(&self, channel: &Channel, state: &mut ChannelState) {
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
