//! Who is in a channel, for nodes that share this process: the reference of [`Directory`].

use std::sync::Arc;

use airwave_core::directory::{Heartbeat, MemberEntry, NodeId, Watch};
use airwave_core::{BrokerError, ChannelName, Directory};
use async_trait::async_trait;
use tokio::time::Instant;

use super::Memory;
use super::lock::lock;
use super::members::MemberTable;

#[async_trait]
impl Directory for Memory {
    async fn set(&self, channel: &ChannelName, entries: &[MemberEntry]) -> Result<(), BrokerError> {
        let mut members = lock(&self.members);
        members.expire(Instant::now());
        // What the dead say counts for nothing.
        if entries.iter().any(|entry| !members.beats.contains_key(&entry.node)) {
            return Ok(());
        }
        let present = members.channels.entry(channel.clone()).or_default();
        for entry in entries {
            let key = (entry.node, entry.member.clone());
            match &entry.value {
                Some(_) => present.entries.insert(key, entry.clone()),
                None => present.entries.remove(&key),
            };
            present.watches.retain(|(_, watch)| watch.push(entry.clone()));
        }
        if present.is_empty() {
            members.channels.remove(channel);
        }
        Ok(())
    }

    async fn list(&self, channel: &ChannelName) -> Result<Vec<MemberEntry>, BrokerError> {
        let mut members = lock(&self.members);
        members.expire(Instant::now());
        let present = members.channels.get(channel);
        Ok(present.map_or_else(Vec::new, |present| present.entries.values().cloned().collect()))
    }

    async fn watch(&self, channel: &ChannelName) -> Result<Watch, BrokerError> {
        let mut members = lock(&self.members);
        members.watches += 1;
        let id = members.watches;
        // Weak, because the watches hang on it, and must end when the broker goes.
        let (shared, name) = (Arc::downgrade(&self.members), channel.clone());
        let (sender, watch) = Watch::new(move || {
            if let Some(members) = shared.upgrade() {
                let mut members: std::sync::MutexGuard<'_, MemberTable> = lock(&members);
                members.unwatch(&name, id);
            }
        });
        let present = members.channels.entry(channel.clone()).or_default();
        present.watches.push((id, sender));
        Ok(watch)
    }

    async fn heartbeat(&self, node: NodeId) -> Result<Heartbeat, BrokerError> {
        let mut members = lock(&self.members);
        let now = Instant::now();
        members.expire(now);
        let known = members.beats.insert(node, now).is_some();
        Ok(Heartbeat::new(known, members.beats.keys().copied().collect()))
    }

    async fn leave(&self, node: NodeId) -> Result<(), BrokerError> {
        lock(&self.members).leave(node);
        Ok(())
    }
}
