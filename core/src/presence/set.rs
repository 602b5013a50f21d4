//! A presence set is one channel's members behind a lock. This module also holds all sets of a
//! node.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use bytes::Bytes;

use super::changes::{self, MemberList, Unread};
use super::lease::{Lease, lock};
use super::state::{PresenceState, Work};
use crate::event::ChannelName;
use crate::format_slot::FormatSlot;
use crate::registry::Registry;
use crate::session_handle::SessionHandle;
use crate::shrink::shrink;

/// A node keeps its presence sets here.
pub(super) struct PresenceSets {
    pub(super) lease: Lease,
    by_channel: Mutex<HashMap<ChannelName, Arc<PresenceSet>>>,
}

/// A presence set holds one channel's members, as this node knows them.
pub(super) struct PresenceSet {
    pub(super) name: ChannelName,
    /// Refers to all sets weakly, because the tasks of a set end with its node.
    pub(super) sets: Weak<PresenceSets>,
    /// Holds [`PresenceState::version`], for listeners that look without the lock.
    version: AtomicU64,
    state: Mutex<PresenceState>,
    listeners: Mutex<Registry<Arc<SessionHandle>>>,
}

/// A listener finds one of these.
pub(super) enum NextRead {
    Nothing,
    /// The listener gets bytes, and the index behind them.
    Changes(Bytes, u64),
    List(Arc<MemberList>),
}

impl PresenceSets {
    pub(super) fn new(lease: Lease) -> Arc<Self> {
        Arc::new(Self {
            lease,
            by_channel: Mutex::default(),
        })
    }

    pub(super) fn get(&self, channel: &ChannelName) -> Option<Arc<PresenceSet>> {
        lock(&self.by_channel).get(channel).cloned()
    }

    pub(super) fn get_or_create(self: &Arc<Self>, channel: &ChannelName) -> Arc<PresenceSet> {
        let mut sets = lock(&self.by_channel);
        if let Some(set) = sets.get(channel) {
            return set.clone();
        }
        // The set enters the map under its lock: a node that re-registers reaches all sets in the
        // map.
        let set = Arc::new(PresenceSet {
            name: channel.clone(),
            sets: Arc::downgrade(self),
            version: AtomicU64::new(0),
            state: Mutex::new(PresenceState::new(self.lease.node())),
            listeners: Mutex::default(),
        });
        sets.insert(channel.clone(), set.clone());
        set
    }

    pub(super) fn all(&self) -> Vec<Arc<PresenceSet>> {
        lock(&self.by_channel).values().cloned().collect()
    }

    /// Removes the presence set if it is unused.
    pub(super) fn forget_if_unused(&self, set: &Arc<PresenceSet>) {
        let mut sets = lock(&self.by_channel);
        let mut state = lock(&set.state);
        if !state.closed && state.is_unused() {
            state.closed = true;
            sets.remove(&set.name);
            shrink(&mut *sets);
        }
    }
}

impl PresenceSet {
    /// Changes the state. The caller drops what `change` returns when the state is unlocked.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut PresenceState) -> T) -> T {
        let mut state = lock(&self.state);
        let result = change(&mut state);
        self.version.store(state.version(), Ordering::Release);
        result
    }

    /// Looks at the state.
    pub(super) fn look<T>(&self, look: impl FnOnce(&PresenceState) -> T) -> T {
        look(&lock(&self.state))
    }

    pub(super) fn register(&self, listener: Arc<SessionHandle>) -> (u64, Work) {
        let registration = lock(&self.listeners).insert(listener);
        (registration, self.change(PresenceState::listen))
    }

    pub(super) fn deregister(&self, registration: u64) -> Work {
        lock(&self.listeners).remove(registration);
        self.change(PresenceState::stop_listening)
    }

    pub(super) fn wake_listeners(&self) {
        for listener in lock(&self.listeners).iter() {
            listener.wake();
        }
    }

    /// Returns what a listener at `index` has not received, as one piece of bytes. Returns
    /// everything if the ring no longer knows that.
    pub(super) fn read(&self, index: u64, slot: &FormatSlot) -> NextRead {
        let version = self.version.load(Ordering::Acquire);
        if version == index || version == 0 {
            return NextRead::Nothing;
        }
        let (unread, end) = {
            let state = lock(&self.state);
            // The set may have forgotten its members between the look and the lock.
            let Some(followed) = state.followed.as_ref().filter(|followed| followed.is_whole()) else {
                return NextRead::Nothing;
            };
            (followed.ring.unread(index, slot.index), followed.ring.end())
        };
        match unread {
            Unread::Encoded(bytes) => NextRead::Changes(bytes, end),
            Unread::Everything => self.list().map_or(NextRead::Nothing, NextRead::List),
            Unread::Changes(unread) => {
                let bytes = changes::encode_all(&self.name, &unread, slot);
                if let Some(followed) = &mut lock(&self.state).followed {
                    followed.ring.keep_batch(slot.index, index, end, bytes.clone());
                }
                NextRead::Changes(bytes, end)
            }
        }
    }

    /// Returns all members that the set has shown, for a listener that knows none. Listeners share
    /// the list as long as few changes have come since.
    fn list(&self) -> Option<Arc<MemberList>> {
        let (version, members) = {
            let state = lock(&self.state);
            let followed = state.followed.as_ref().filter(|followed| followed.is_whole())?;
            if let Some(list) = followed.ring.list(followed.len()) {
                return Some(list);
            }
            followed.shown()
        };
        let list = Arc::new(MemberList::new(version, members));
        if let Some(followed) = &mut lock(&self.state).followed {
            followed.ring.keep_list(list.clone());
        }
        Some(list)
    }
}
