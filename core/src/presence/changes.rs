//! Listeners receive a channel's members from here: a ring of the last changes, and the whole list
//! in pages. Each format encodes both once.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

use bytes::{Bytes, BytesMut};

use super::member::in_order;
use crate::event::ChannelName;
use crate::format::{Change, MAX_FORMATS, Member, Notice};
use crate::format_slot::FormatSlot;

/// Bounds the changes in the ring: their number, and the bytes of their ids and metadata.
const RING: (usize, usize) = (1024, 1 << 20);
/// Bounds a page of the list: its members and their bytes. It so bounds a frame, and the memory of
/// a connection.
const PAGE: (usize, usize) = (500, 32 << 10);

/// Each format encodes its bytes once, on first need.
type EncodedOnce = [OnceLock<Bytes>; MAX_FORMATS];

/// Listeners receive this change of a member.
pub(super) struct PresenceChange {
    change: Change,
    member: Arc<Member>,
    encoded: EncodedOnce,
}

/// The ring holds the last changes of a channel, in order.
pub(super) struct ChangeRing {
    changes: VecDeque<Arc<PresenceChange>>,
    /// Holds the index of `changes[0]`. Indices count from one; zero stands for a listener that has
    /// received nothing.
    first: u64,
    weight: usize,
    list: Option<Arc<MemberList>>,
    /// Holds the bytes that the last reader of each format received, and the indices that bound
    /// them. The next reader mostly wants the same bytes.
    batches: [Option<(u64, u64, Bytes)>; MAX_FORMATS],
}

/// A listener at some index has not received these changes.
pub(super) enum Unread {
    /// The ring has already encoded these changes.
    Encoded(Bytes),
    Changes(Vec<Arc<PresenceChange>>),
    /// The index is not in the ring: the listener needs the list.
    Everything,
}

/// The list holds all members, as they were before the change at index `version`.
pub(super) struct MemberList {
    pub(super) version: u64,
    pub(super) pages: Vec<MemberPage>,
}

/// A page is a part of the list that fits into a frame.
pub(super) struct MemberPage {
    members: Vec<Arc<Member>>,
    more: bool,
    encoded: EncodedOnce,
}

impl ChangeRing {
    pub(super) fn new() -> Self {
        Self {
            changes: VecDeque::new(),
            first: 1,
            weight: 0,
            list: None,
            batches: Default::default(),
        }
    }

    /// Returns the index one past the last change.
    pub(super) fn end(&self) -> u64 {
        self.first + self.changes.len() as u64
    }

    pub(super) fn push(&mut self, change: Change, member: Arc<Member>) {
        self.weight += weight(&member);
        self.changes.push_back(Arc::new(PresenceChange {
            change,
            member,
            encoded: EncodedOnce::default(),
        }));
        self.batches = Default::default();
    }

    /// Drops the oldest changes until the ring is within its bounds.
    pub(super) fn trim(&mut self) {
        while self.changes.len() > RING.0 || (self.weight > RING.1 && self.changes.len() > 1) {
            if let Some(oldest) = self.changes.pop_front() {
                self.weight -= weight(&oldest.member);
                self.first += 1;
            }
        }
    }

    /// Returns the changes that a listener at `index` has not received, for the format at index
    /// `format`.
    pub(super) fn unread(&self, index: u64, format: usize) -> Unread {
        if let Some((from, to, bytes)) = &self.batches[format]
            && (*from, *to) == (index, self.end())
        {
            return Unread::Encoded(bytes.clone());
        }
        let offset = index.checked_sub(self.first).and_then(|offset| usize::try_from(offset).ok());
        match offset {
            Some(offset) => Unread::Changes(self.changes.iter().skip(offset).cloned().collect()),
            None => Unread::Everything,
        }
    }

    /// Keeps the bytes of the changes between two indices for the next reader.
    pub(super) fn keep_batch(&mut self, format: usize, from: u64, to: u64, bytes: Bytes) {
        self.batches[format] = Some((from, to, bytes));
    }

    /// Returns the list that was made last, if few changes have come since. In a large channel, a
    /// new list for each new listener costs more than sending that listener the last changes.
    pub(super) fn list(&self, members: usize) -> Option<Arc<MemberList>> {
        let list = self.list.as_ref()?;
        let fresh = list.version >= self.first && (self.end() - list.version) as usize <= members / 8;
        fresh.then(|| list.clone())
    }

    pub(super) fn keep_list(&mut self, list: Arc<MemberList>) {
        self.list = Some(list);
    }
}

/// Returns the bytes of `changes` in one piece.
pub(super) fn encode_all(channel: &ChannelName, changes: &[Arc<PresenceChange>], slot: &FormatSlot) -> Bytes {
    match changes {
        [only] => only.encode(channel, slot),
        all => {
            let mut joined = BytesMut::new();
            for change in all {
                joined.extend_from_slice(&change.encode(channel, slot));
            }
            joined.freeze()
        }
    }
}

impl PresenceChange {
    fn encode(&self, channel: &ChannelName, slot: &FormatSlot) -> Bytes {
        let bytes = self.encoded[slot.index].get_or_init(|| {
            slot.format.notice(&Notice::Change {
                channel,
                change: self.change,
                member: &self.member,
            })
        });
        bytes.clone()
    }
}

impl MemberList {
    /// Splits the members into pages, at least one, so that listeners receive an empty list, too.
    pub(super) fn new(version: u64, members: Vec<Arc<Member>>) -> Self {
        let mut pages = Vec::new();
        let (mut page, mut bytes) = (Vec::new(), 0);
        for member in in_order(members) {
            let weight = weight(&member);
            if page.len() >= PAGE.0 || (bytes + weight > PAGE.1 && !page.is_empty()) {
                pages.push(std::mem::take(&mut page));
                bytes = 0;
            }
            bytes += weight;
            page.push(member);
        }
        pages.push(page);
        let last = pages.len() - 1;
        let page = |(index, members)| MemberPage {
            members,
            more: index < last,
            encoded: EncodedOnce::default(),
        };
        Self {
            version,
            pages: pages.into_iter().enumerate().map(page).collect(),
        }
    }
}

impl MemberPage {
    pub(super) fn encode(&self, channel: &ChannelName, slot: &FormatSlot) -> Bytes {
        let bytes = self.encoded[slot.index].get_or_init(|| {
            slot.format.notice(&Notice::Members {
                channel,
                members: &self.members,
                more: self.more,
            })
        });
        bytes.clone()
    }
}

fn weight(member: &Member) -> usize {
    let user = member.user.as_ref().map_or(0, |user| user.len());
    // Formats write ids as JSON, where a character may take six bytes; braces and names add more.
    64 + 2 * user + member.meta.as_ref().map_or(0, |meta| meta.as_str().len())
}
