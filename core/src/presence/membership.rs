//! A membership is one connection in one channel.

use std::sync::Arc;

use bytes::Bytes;

use super::changes::MemberList;
use super::set::{NextRead, PresenceSet};
use super::state::PresenceState;
use super::sync;
use crate::format_slot::FormatSlot;
use crate::log::READ_BYTES;
use crate::session_handle::SessionHandle;

/// The connection is a member of one channel and may also listen. Dropping this value leaves the
/// channel.
pub(crate) struct Membership {
    set: Arc<PresenceSet>,
    member: Arc<str>,
    reader: Option<MemberReader>,
    /// Says whether the member leaves without grace: the connection stays, and wants no more of
    /// this channel.
    pub(crate) at_once: bool,
}

/// The reader marks where a listener stands in the changes of a channel.
struct MemberReader {
    registration: u64,
    /// Holds the index of the next change. Zero means that the listener has received nothing.
    index: u64,
    /// Holds the list that the listener is receiving, and the number of the next page.
    list: Option<(Arc<MemberList>, usize)>,
}

impl Membership {
    /// Creates the membership of a member that the set has taken in. With a `listener` the member
    /// listens as well.
    pub(super) fn new(set: Arc<PresenceSet>, member: Arc<str>, listener: Option<Arc<SessionHandle>>) -> Self {
        let reader = listener.map(|listener| {
            let (registration, work) = set.register(listener);
            sync::carry_out(&set, work);
            MemberReader {
                registration,
                index: 0,
                list: None,
            }
        });
        Self {
            set,
            member,
            reader,
            at_once: false,
        }
    }

    /// Puts the members and changes that the listener has not received into `out`, up to about
    /// `room` bytes. Returns true if there is more.
    pub(crate) fn read(&mut self, slot: &FormatSlot, room: usize, out: &mut Vec<Bytes>) -> bool {
        let Some(reader) = &mut self.reader else { return false };
        let mut written = 0;
        while written < room.min(READ_BYTES) {
            let bytes = match &mut reader.list {
                Some((list, next)) => {
                    let Some(page) = list.pages.get(*next) else {
                        reader.index = list.version;
                        reader.list = None;
                        continue;
                    };
                    *next += 1;
                    page.encode(&self.set.name, slot)
                }
                None => match self.set.read(reader.index, slot) {
                    NextRead::Nothing => return false,
                    NextRead::List(list) => {
                        reader.list = Some((list, 0));
                        continue;
                    }
                    NextRead::Changes(bytes, next) => {
                        reader.index = next;
                        bytes
                    }
                },
            };
            written += bytes.len();
            out.push(bytes);
        }
        true
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        if let Some(reader) = self.reader.take() {
            let work = self.set.deregister(reader.registration);
            sync::carry_out(&self.set, work);
        }
        let leave = |state: &mut PresenceState| state.exit(&self.member, self.at_once);
        sync::change(&self.set, leave);
    }
}
