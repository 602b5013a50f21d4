//! Who is where, as a broker carries it between nodes: the contract behind presence.
//!
//! Each node keeps **entries** in the directory: one for each member that it has in a channel. Only
//! its own node ever writes an entry, so the nodes need no agreement. What an entry says is core's
//! business: it counts a member's connections over all nodes, tells joins from leaves, and
//! announces everything again after an outage (`presence`).
//!
//! `airwave_brokers::memory` is the reference; the contract as tests is the module
//! `directory_conformance` (feature `conformance`).

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

/// How often a node says that it lives.
pub const HEARTBEAT_EVERY: Duration = Duration::from_secs(5);

/// A node that has said nothing for so long is dead, and its entries are gone.
pub const NODE_EXPIRES: Duration = Duration::from_secs(15);

/// The longest member id, in bytes.
pub const MAX_MEMBER: usize = 255;

/// A further ability of a broker: it knows which members each node has in a channel.
///
/// Every method MUST come back within a few seconds, with `Unavailable` if need be, and MUST NOT
/// retry in secret. Names of channels and members are literal: whatever a member's id holds, it is
/// never a pattern or a part of a key that could be taken for another.
///
/// # Examples
///
/// A directory that says which nodes live, around any other directory:
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
    /// All `entries` are of the same node, one that has [sent a heartbeat](Directory::heartbeat). A
    /// call for a node that is dead or has left MAY be carried out, but what it sets is never
    /// listed, and does not stay for ever. At most 500 entries a call.
    ///
    /// # Errors
    /// `Unavailable`: some or all of it may have happened. It is repeated with newer stamps.
    async fn set(&self, channel: &ChannelName, entries: &[MemberEntry]) -> Result<(), BrokerError>;

    /// What living nodes have set in the channel and not cleared, in any order.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn list(&self, channel: &ChannelName) -> Result<Vec<MemberEntry>, BrokerError>;

    /// Watches the channel: every [`Directory::set`] that begins after this has come back is shown,
    /// in the order of its node. Those before may be shown, too. A watch that may have missed
    /// something MUST end; the caller then watches and lists again. Dropping the watch ends it.
    /// About one for each channel and node. A node's death is not shown: [`Directory::heartbeat`]
    /// tells.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn watch(&self, channel: &ChannelName) -> Result<Watch, BrokerError>;

    /// `node` lives for another [`NODE_EXPIRES`]. One without a heartbeat for longer is dead for
    /// everybody, also if its process was killed: its entries are listed no more, MUST NOT come
    /// back if it sends a heartbeat again, and the node that notices removes them in the end.
    ///
    /// # Errors
    /// `Unavailable`: it may have happened.
    async fn heartbeat(&self, node: NodeId) -> Result<Heartbeat, BrokerError>;

    /// `node` goes away: its entries are listed no more.
    ///
    /// # Errors
    /// `Unavailable`: it may have happened. If not, the node dies in time.
    async fn leave(&self, node: NodeId) -> Result<(), BrokerError>;
}

/// One life of one node in the directory. A node that was taken for dead comes back as another
/// incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub struct NodeId {
    /// The same as long as the node runs.
    pub process: u64,
    /// Counted from zero.
    pub incarnation: u32,
}

impl NodeId {
    /// The first life of a new node.
    pub fn draw() -> Self {
        Self {
            process: random(),
            incarnation: 0,
        }
    }

    /// The next life of this node.
    pub fn next(self) -> Self {
        Self {
            incarnation: self.incarnation.wrapping_add(1),
            ..self
        }
    }
}

impl fmt::Display for NodeId {
    /// 25 characters: hexadecimal digits and `-`.
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

/// What one node says about one member of a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemberEntry {
    /// Whose it is.
    pub node: NodeId,
    /// The member's id: 0 to [`MAX_MEMBER`] bytes of any text.
    pub member: Arc<str>,
    /// Strictly increases with each entry of this node about this member in this channel, set or
    /// cleared.
    pub stamp: u64,
    /// What it says, opaque to brokers, at most 2 KiB; `None`: the entry is cleared.
    pub value: Option<Bytes>,
}

impl MemberEntry {
    /// Returns what `node` says about `member`. Without a `value` the entry is cleared.
    pub fn new(node: NodeId, member: impl Into<Arc<str>>, stamp: u64, value: Option<Bytes>) -> Self {
        Self {
            node,
            member: member.into(),
            stamp,
            value,
        }
    }
}

/// What a node hears when it says that it lives.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Heartbeat {
    /// Whether the node was alive before. False the first time, and after it had died or the
    /// directory was lost: then its entries are gone.
    pub known: bool,
    /// All nodes that live now. This one is among them, unless it had died.
    pub living: Vec<NodeId>,
}

impl Heartbeat {
    /// Returns the answer to a heartbeat: whether the node was alive before, and all nodes that
    /// live now.
    pub fn new(known: bool, living: Vec<NodeId>) -> Self {
        Self { known, living }
    }
}

/// One node's live stream of the entries of one channel.
pub struct Watch(Inbox<MemberEntry>);

/// The broker's end of a [`Watch`]. Dropping it ends the watch.
pub struct WatchSender(InboxSender<MemberEntry>);

impl Watch {
    /// A watch and the broker's end of it. `unsubscribe` is called once, when the watch is dropped.
    pub fn new(unsubscribe: impl FnOnce() + Send + 'static) -> (WatchSender, Watch) {
        let (sender, inbox) = Inbox::new(unsubscribe);
        (WatchSender(sender), Watch(inbox))
    }

    /// The next entry that was set or cleared; `None` when the watch has ended.
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

    /// Whether the watch has been dropped.
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
