//! A member of a channel has connections to this node, reports of other nodes, and both as one.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use crate::directory::{MemberEntry, NodeId};
use crate::event::{Data, JsonText, Position};
use crate::format::Member;

/// This type counts a member's connections to this node.
#[derive(Default)]
pub(super) struct OwnConnections {
    live: u32,
    leaving: u32,
    /// Counts the leaving connections that have come back. As many departures do not count.
    back: u32,
    pub(super) metadata: Metadata,
    /// Says whether the member waits for its turn to be announced to the directory.
    pub(super) queued: bool,
    pub(super) announced: Announced,
}

/// This state records what the node has sent to the directory about one of its members.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Announced {
    /// The node has sent nothing, or the directory knows that the member is gone.
    #[default]
    Nothing,
    /// The node has sent this many connections, with metadata of this time. A count of zero says
    /// that the member is gone, and that the directory has not answered yet.
    Connections { count: u32, metadata_at: u64 },
    /// The node has sent an announcement that may have arrived or not.
    Unknown,
}

/// Another node reports this of a member.
pub(super) struct OtherNode {
    node: NodeId,
    stamp: u64,
    report: MemberReport,
}

/// A report is what one node says of a member.
#[derive(Clone)]
pub(super) struct MemberReport {
    pub(super) connections: u32,
    pub(super) metadata: Metadata,
}

/// This type holds the metadata of a user and when it was set, in microseconds since 1970. Zero
/// means never.
#[derive(Clone, Default)]
pub(super) struct Metadata {
    pub(super) at: u64,
    meta: Option<JsonText>,
}

impl OwnConnections {
    /// Returns how many connections count, including those that may come back.
    pub(super) fn count(&self) -> u32 {
        self.live.saturating_add(self.leaving)
    }

    /// Counts a connection that begins. Returns true if this node's report of the member changes.
    pub(super) fn enter(&mut self, meta: Option<&JsonText>) -> bool {
        let before = (self.count(), self.metadata.at);
        self.live = self.live.saturating_add(1);
        if self.leaving > 0 {
            self.leaving -= 1;
            self.back += 1;
        }
        if meta.is_some() && meta != self.metadata.meta.as_ref() {
            self.metadata = Metadata {
                at: Position(self.metadata.at).next().0,
                meta: meta.cloned(),
            };
        }
        before != (self.count(), self.metadata.at)
    }

    /// Ends a connection, which does not count any more.
    pub(super) fn exit(&mut self) {
        self.live = self.live.saturating_sub(1);
    }

    /// Ends a connection, which counts until [`OwnConnections::depart`].
    pub(super) fn begin_to_leave(&mut self) {
        self.exit();
        self.leaving += 1;
    }

    /// Ends the grace of a connection. Returns false if another connection has come back in its
    /// place.
    pub(super) fn depart(&mut self) -> bool {
        if self.back > 0 {
            self.back -= 1;
            return false;
        }
        self.leaving = self.leaving.saturating_sub(1);
        true
    }

    /// Returns whether the directory does not know this node's report yet. If so, records the
    /// report as announced, because the caller sends it now.
    pub(super) fn announce(&mut self) -> bool {
        let count = self.count();
        let now = Announced::Connections {
            count,
            metadata_at: self.metadata.at,
        };
        let known = if count == 0 {
            self.announced == Announced::Nothing
        } else {
            self.announced == now
        };
        if !known {
            self.announced = now;
        }
        !known
    }

    pub(super) fn report(&self) -> Option<MemberReport> {
        (self.count() > 0).then(|| MemberReport {
            connections: self.count(),
            metadata: self.metadata.clone(),
        })
    }

    pub(super) fn is_nothing(&self) -> bool {
        self.count() == 0 && self.back == 0 && self.announced == Announced::Nothing && !self.queued
    }
}

impl OtherNode {
    pub(super) fn id(&self) -> NodeId {
        self.node
    }
}

impl MemberReport {
    /// Encodes a byte for the format, the number of connections, when the metadata was set, and the
    /// metadata as JSON.
    pub(super) fn encode(&self) -> Bytes {
        let meta = self.metadata.meta.as_ref().map_or("", |meta| meta.as_str());
        let mut bytes = BytesMut::with_capacity(13 + meta.len());
        bytes.put_u8(1);
        bytes.put_u32(self.connections);
        bytes.put_u64(self.metadata.at);
        bytes.put_slice(meta.as_bytes());
        bytes.freeze()
    }

    pub(super) fn decode(bytes: &Bytes) -> Option<Self> {
        let (&format, rest) = bytes.split_first()?;
        let (connections, rest) = rest.split_first_chunk()?;
        let (at, meta) = rest.split_first_chunk()?;
        if format != 1 {
            return None;
        }
        let meta = match meta {
            [] => None,
            meta => match Data::from_stored(b'j', bytes.slice_ref(meta)) {
                Data::Json(meta) => Some(meta),
                _ => return None,
            },
        };
        let at = u64::from_be_bytes(*at);
        Some(Self {
            connections: u32::from_be_bytes(*connections),
            metadata: Metadata { at, meta },
        })
    }
}

/// Takes in another node's report, unless it is older than the known one. `report` is the content
/// of the entry, and `None` says that the entry is cleared. Returns true if something has changed.
pub(super) fn take_in(others: &mut Vec<OtherNode>, entry: &MemberEntry, report: Option<MemberReport>) -> bool {
    let node = entry.node;
    let newer = (node.incarnation, entry.stamp);
    let known = |other: &OtherNode| other.node.process == node.process && (other.node.incarnation, other.stamp) >= newer;
    if others.iter().any(known) {
        return false;
    }
    // If a node has registered again, only its last incarnation counts. So no member counts twice
    // before the node knows that the first incarnation is gone.
    others.retain(|other| other.node.process != node.process);
    if let Some(report) = report {
        others.push(OtherNode {
            node,
            stamp: entry.stamp,
            report,
        });
    }
    true
}

/// Returns the member over all nodes, or `None` if it is on no node.
pub(super) fn merge(id: &Arc<str>, others: &[OtherNode], own: Option<&OwnConnections>) -> Option<Member> {
    let own = own.filter(|own| own.count() > 0);
    let connections = others.iter().map(|other| other.report.connections);
    let connections = connections.fold(own.map_or(0, OwnConnections::count), u32::saturating_add);
    if connections == 0 {
        return None;
    }
    // The newest metadata counts. Where two are as new, all nodes choose the same.
    let metadata = others.iter().map(|other| &other.report.metadata);
    let metadata = metadata.chain(own.map(|own| &own.metadata));
    let newest = metadata.max_by_key(|metadata| (metadata.at, metadata.meta.as_ref().map(|meta| meta.as_str())))?;
    Some(Member {
        user: (!id.is_empty()).then(|| id.clone()),
        connections,
        meta: newest.meta.clone(),
    })
}

/// Sorts the members by user id, the anonymous last.
pub(super) fn in_order(mut members: Vec<Arc<Member>>) -> Vec<Arc<Member>> {
    members.sort_unstable_by(|a, b| (a.user.is_none(), &a.user).cmp(&(b.user.is_none(), &b.user)));
    members
}
