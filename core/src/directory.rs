//! A directory carries between nodes which members are in which channel. It is the contract behind
//! presence.
//!
//! Each node keeps **entries** in the directory: one for each member that it has in a channel. Only
//! its own node ever writes an entry, so the nodes need no agreement. Core alone reads an entry's
//! content. It counts a member's connections over all nodes, tells joins from leaves, and announces
//! everything again after an outage (`presence`).
//!
//! `airwave_brokers::memory` is the reference implementation. The module `directory_conformance`
//! (feature `conformance`) holds the contract as tests.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::broker::BrokerError;
use crate::event::{ChannelName, Invalid};
use crate::inbox::{FeedSink, Inbox, InboxSender};
use crate::jitter::random;

/// A node sends a heartbeat each time this interval has passed.
pub const HEARTBEAT_EVERY: Duration = Duration::from_secs(5);

/// A node that sends no heartbeat for this time expires, and its entries are gone.
pub const NODE_EXPIRES: Duration = Duration::from_secs(15);

/// Bounds the length of a member id, in bytes.
pub const MAX_MEMBER: usize = 255;

/// A directory is a further ability of a broker: it knows which members each node has in a channel.
///
/// Every method MUST return within a few seconds, with `Unavailable` if need be, and MUST NOT retry
/// in secret. Names of channels and members are literal. A member's id is never a pattern, whatever
/// it holds. It is never a part of a key that the broker could take for another.
///
/// # Examples
///
/// This directory prints how many nodes live, around any other directory:
///
/// ```
/// use std::sync::Arc;
///
/// use airwave_core::directory::{Heartbeat, MemberEntry, NodeId, Watch};
/// use airwave_core::{BrokerError, ChannelName, Directory};
/// use async_trait::async_trait;
///
/// struct Counted(Arc<dyn Directory>);
///
/// #[async_trait]
/// impl Directory for Counted {
///     async fn set(&self, channel: &ChannelName, entries: &[MemberEntry]) -> Result<(), BrokerError> {
///         self.0.set(channel, entries).await
///     }
///
///     async fn list(&self, channel: &ChannelName) -> Result<Vec<MemberEntry>, BrokerError> {
///         self.0.list(channel).await
///     }
///
///     async fn watch(&self, channel: &ChannelName) -> Result<Watch, BrokerError> {
///         self.0.watch(channel).await
///     }
///
///     async fn heartbeat(&self, node: NodeId) -> Result<Heartbeat, BrokerError> {
///         let heartbeat = self.0.heartbeat(node).await?;
///         println!("{} nodes live", heartbeat.living.len());
///         Ok(heartbeat)
///     }
///
///     async fn leave(&self, node: NodeId) -> Result<(), BrokerError> {
///         self.0.leave(node).await
///     }
/// }
/// ```
#[async_trait]
pub trait Directory: Send + Sync + 'static {
    /// Sets or clears entries of one node in one channel, in this order, and shows them to every
    /// watch of the channel.
    ///
    /// All `entries` are of the same node, and that node has [sent a
    /// heartbeat](Directory::heartbeat). A broker MAY carry out a call for a node that has expired
    /// or left. It then never lists the entries of that call, and does not keep them for ever. A
    /// call holds at most 500 entries.
    ///
    /// # Errors
    /// `Unavailable`: some or all of it may have happened. The caller repeats it with newer stamps.
    async fn set(&self, channel: &ChannelName, entries: &[MemberEntry]) -> Result<(), BrokerError>;

    /// Returns the entries that living nodes have set in the channel and not cleared, in any order.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn list(&self, channel: &ChannelName) -> Result<Vec<MemberEntry>, BrokerError>;

    /// Watches the channel and shows every [`Directory::set`] that begins after this has returned.
    /// The watch shows the sets of one node in their order, and may show earlier ones, too. A watch
    /// that may have missed something MUST end; the caller then watches and lists again. Dropping
    /// the watch ends it. A node opens about one watch for each channel. A watch does not show that
    /// a node expires: [`Directory::heartbeat`] returns the living nodes.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn watch(&self, channel: &ChannelName) -> Result<Watch, BrokerError>;

    /// Extends the lease of `node` by [`NODE_EXPIRES`]. A node without a heartbeat for longer
    /// expires for all nodes, also if its process was killed. The broker no longer lists its
    /// entries. They MUST NOT come back if the node sends a heartbeat again. The node that notices
    /// the expiry removes them in the end.
    ///
    /// # Errors
    /// `Unavailable`: it may have happened.
    async fn heartbeat(&self, node: NodeId) -> Result<Heartbeat, BrokerError>;

    /// Deregisters `node`: the broker no longer lists its entries.
    ///
    /// # Errors
    /// `Unavailable`: it may have happened. If not, the node expires in time.
    async fn leave(&self, node: NodeId) -> Result<(), BrokerError>;
}

/// A node id names one incarnation of one node in the directory. A node that has expired comes back
/// as another incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub struct NodeId {
    /// Names the process; it stays the same as long as the node runs.
    pub process: u64,
    /// Counts the incarnations of the node, from zero.
    pub incarnation: u32,
}

impl NodeId {
    /// Draws the first incarnation of a new node.
    pub fn draw() -> Self {
        Self {
            process: random(),
            incarnation: 0,
        }
    }

    /// Returns the next incarnation of this node.
    pub fn next(self) -> Self {
        Self {
            incarnation: self.incarnation.wrapping_add(1),
            ..self
        }
    }
}

impl fmt::Display for NodeId {
    /// Writes 25 characters: hexadecimal digits and `-`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:08x}", self.process, self.incarnation)
    }
}

impl FromStr for NodeId {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let read = || {
            let (process, incarnation) = text.split_once('-')?;
            let digits = |text: &str, n: usize| text.len() == n && text.bytes().all(|b| b.is_ascii_hexdigit());
            (digits(process, 16) && digits(incarnation, 8)).then_some(())?;
            Some(Self {
                process: u64::from_str_radix(process, 16).ok()?,
                incarnation: u32::from_str_radix(incarnation, 16).ok()?,
            })
        };
        read().ok_or_else(|| Invalid::new("a node's id is 16 and 8 hexadecimal digits with '-' between"))
    }
}

/// A member entry holds the value that one node sets for one member of a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemberEntry {
    /// Names the node that owns the entry.
    pub node: NodeId,
    /// Holds the member's id: 0 to [`MAX_MEMBER`] bytes of any text.
    pub member: Arc<str>,
    /// Strictly increases with each entry of this node about this member in this channel, set or
    /// cleared.
    pub stamp: u64,
    /// Holds the entry's value, opaque to brokers, of at most 2 KiB. `None` means that the entry is
    /// cleared.
    pub value: Option<Bytes>,
}

impl MemberEntry {
    /// Creates the entry of `node` for `member`. Without a `value` the entry is cleared.
    pub fn new(node: NodeId, member: impl Into<Arc<str>>, stamp: u64, value: Option<Bytes>) -> Self {
        Self {
            node,
            member: member.into(),
            stamp,
            value,
        }
    }
}

/// The directory returns this answer to a heartbeat of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Heartbeat {
    /// Says whether the directory knew the node before. It is false the first time. It is also
    /// false after the node had expired or the directory was lost: then the node's entries are
    /// gone.
    pub known: bool,
    /// Holds all nodes that live now. This node is among them, unless it had expired.
    pub living: Vec<NodeId>,
}

impl Heartbeat {
    /// Creates the answer to a heartbeat: whether the node was known before, and all nodes that
    /// live now.
    pub fn new(known: bool, living: Vec<NodeId>) -> Self {
        Self { known, living }
    }
}

/// A watch is one node's live stream of the entries of one channel.
pub struct Watch(Inbox<MemberEntry>);

/// The broker holds this end of a [`Watch`]. Dropping it ends the watch.
pub struct WatchSender(InboxSender<MemberEntry>);

impl Watch {
    /// Creates a watch and the broker's end of it. Dropping the watch calls `unsubscribe` once.
    pub fn new(unsubscribe: impl FnOnce() + Send + 'static) -> (WatchSender, Watch) {
        let (sender, inbox) = Inbox::new(unsubscribe);
        (WatchSender(sender), Watch(inbox))
    }

    /// Returns the next entry that was set or cleared; `None` when the watch has ended.
    pub async fn next(&mut self) -> Option<MemberEntry> {
        std::future::poll_fn(|cx| self.0.poll_next(cx)).await
    }

    pub(crate) fn attach(&self, sink: Arc<dyn FeedSink<MemberEntry>>) {
        self.0.attach(sink);
    }
}

impl WatchSender {
    /// Shows the watch an entry. Returns false if the watch was dropped, or had to end because its
    /// reader took no entries.
    pub fn push(&self, entry: MemberEntry) -> bool {
        self.0.push(entry)
    }

    /// Returns whether the watch has been dropped.
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_told_by_its_text() {
        let node = NodeId::draw().next();
        assert_eq!(node.to_string().parse(), Ok(node));
        assert_ne!(NodeId::draw(), NodeId::draw());
        for wrong in [
            "",
            "-",
            "0000000000000000-0000000g",
            "+000000000000000-00000000",
            "0000000000000000-000000000",
        ] {
            assert!(wrong.parse::<NodeId>().is_err(), "{wrong}");
        }
    }
}
