//! One member of a channel: its connections to this node, what other nodes say of it, and both as
//! one.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use crate::directory::{MemberEntry, NodeId};
use crate::event::{Data, JsonText, Position};
use crate::format::Member;

/// A member's connections to this node.
#[derive(Default)]
pub(super) struct OwnConnections {
    live: u32,
    leaving: u32,
    /// How many of those that leave have come back: so many departures do not count.
    back: u32,
    pub(super) metadata: Metadata,
    /// Whether the directory is to be told next.
    pub(super) queued: bool,
    pub(super) announced: Announced,
}

/// What the directory was told of a member of this node.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Announced {
    /// Nothing, or that it is gone.
    #[default]
    Nothing,
    /// This many connections, with metadata of this time. Zero: that it is gone, and the directory
    /// has not answered yet.
    Connections { count: u32, metadata_at: u64 },
    /// Something that may have arrived or not.
    Unknown,
}

/// What another node says of a member.
pub(super) struct OtherNode {
    node: NodeId,
    stamp: u64,
    report: MemberReport,
}

/// What a node says of a member.
#[derive(Clone)]
pub(super) struct MemberReport {
    pub(super) connections: u32,
    pub(super) metadata: Metadata,
}

/// Metadata of a user, and when it was set, in microseconds since 1970; zero: never.
#[derive(Clone, Default)]
pub(super) struct Metadata {
    pub(super) at: u64,
    meta: Option<JsonText>,
}

impl OwnConnections {
    /// The connections that count, those that may come back among them.
    pub(super) fn count(&self) -> u32 {
        self.live.saturating_add(self.leaving)
    }

    /// A connection begins. True: what this node says of the member is now something else.
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

    /// A connection is over, and does not count any more.
    pub(super) fn exit(&mut self) {
        self.live = self.live.saturating_sub(1);
    }

    /// A connection is over, and counts until [`OwnConnections::depart`].
    pub(super) fn begin_to_leave(&mut self) {
        self.exit();
        self.leaving += 1;
    }

    /// The grace of a connection is over. False: one has come back in its place.
    pub(super) fn depart(&mut self) -> bool {
        if self.back > 0 {
            self.back -= 1;
            return false;
        }
        self.leaving = self.leaving.saturating_sub(1);
        true
    }

    /// Whether the directory does not know yet what this node says; if so, it is told now.
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
    /// A byte for the format, the number of connections, when the metadata was set, and the
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

/// Takes in what another node says, unless it is older than what is known. `report` is what the
/// entry says; `None`: that it is cleared. True: something has changed.
pub(super) fn take_in(others: &mut Vec<OtherNode>, entry: &MemberEntry, report: Option<MemberReport>) -> bool {
    let node = entry.node;
    let newer = (node.incarnation, entry.stamp);
    let known = |other: &OtherNode| other.node.process == node.process && (other.node.incarnation, other.stamp) >= newer;
    if others.iter().any(known) {
        return false;
    }
    // If a node began another life, only the last one counts. So no member is counted twice before
    // the first life is known to be dead.
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

/// The member over all nodes; `None`: is on none.
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

/// Users in the order of their ids, the anonymous last.
pub(super) fn in_order(mut members: Vec<Arc<Member>>) -> Vec<Arc<Member>> {
    members.sort_unstable_by(|a, b| (a.user.is_none(), &a.user).cmp(&(b.user.is_none(), &b.user)));
    members
}
