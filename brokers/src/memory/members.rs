//! What nodes that share this process say of members.

use std::collections::HashMap;
use std::sync::Arc;

use airwave_core::ChannelName;
use airwave_core::directory::{MemberEntry, NODE_EXPIRES, NodeId, WatchSender};
use tokio::time::Instant;

/// All that is known of members. Entries, and the watches that are shown them, behind one lock,
/// which alone puts them into order.
#[derive(Default)]
pub(super) struct MemberTable {
    /// When each node sent its last heartbeat.
    pub(super) beats: HashMap<NodeId, Instant>,
    pub(super) channels: HashMap<ChannelName, Present>,
    pub(super) watches: u64,
}

#[derive(Default)]
pub(super) struct Present {
    pub(super) entries: HashMap<(NodeId, Arc<str>), MemberEntry>,
    pub(super) watches: Vec<(u64, WatchSender)>,
}

impl MemberTable {
    /// Forgets nodes that are dead, and what they said.
    pub(super) fn expire(&mut self, now: Instant) {
        let before = self.beats.len();
        self.beats.retain(|_, last| now.duration_since(*last) < NODE_EXPIRES);
        if self.beats.len() != before {
            let beats = &self.beats;
            self.channels.retain(|_, present| {
                present.entries.retain(|(node, _), _| beats.contains_key(node));
                !present.is_empty()
            });
        }
    }

    pub(super) fn leave(&mut self, node: NodeId) {
        self.beats.remove(&node);
        self.channels.retain(|_, present| {
            present.entries.retain(|(other, _), _| *other != node);
            !present.is_empty()
        });
    }

    pub(super) fn unwatch(&mut self, channel: &ChannelName, id: u64) {
        if let Some(present) = self.channels.get_mut(channel) {
            present.watches.retain(|(other, _)| *other != id);
            if present.is_empty() {
                self.channels.remove(channel);
            }
        }
    }
}

impl Present {
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.watches.is_empty()
    }
}
