//! Who is in a channel: the entries of each channel in a hash of its own, the leases of the nodes
//! in one place, and the word of changes by the pub/sub channel that carries the channel's events.
//!
//! A hash's fields are `NODE` (25 characters, always) and the member's id, whatever that is; the
//! values an entry's stamp and its value. The list of leases is a sorted set of when each node sent
//! its last heartbeat, by the server's clock, and for each node the set of channels in which it has
//! members: a node that sends a heartbeat and finds another dead removes the dead node's entries.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use airwave_core::ChannelName;
use airwave_core::directory::{MemberEntry, NodeId};
use bytes::Bytes;

/// What a message in pub/sub begins with that tells of members. An event's begins with a digit.
pub(super) const TELLS_OF_MEMBERS: u8 = b'm';

/// How long a node's text is.
const NODE: usize = 25;

/// An entry that is cleared, where the length of its value would stand.
const CLEARED: u16 = u16::MAX;

/// How many entries this broker has in each channel, as far as it knows: in which channels each of
/// its lives is to expire.
pub(super) type Registered = Mutex<HashMap<(NodeId, ChannelName), i64>>;

pub(super) fn field(entry: &MemberEntry) -> Vec<u8> {
    let mut field = entry.node.to_string().into_bytes();
    field.extend_from_slice(entry.member.as_bytes());
    field
}

pub(super) fn stored(entry: &MemberEntry) -> Vec<u8> {
    let mut stored = entry.stamp.to_be_bytes().to_vec();
    stored.extend_from_slice(entry.value.as_deref().unwrap_or_default());
    stored
}

pub(super) fn listed_entry(field: &[u8], value: &[u8]) -> Option<MemberEntry> {
    let (node, member) = field.split_at_checked(NODE)?;
    let (stamp, value) = value.split_first_chunk::<8>()?;
    Some(MemberEntry::new(
        std::str::from_utf8(node).ok()?.parse().ok()?,
        std::str::from_utf8(member).ok()?,
        u64::from_be_bytes(*stamp),
        Some(Bytes::copy_from_slice(value)),
    ))
}

/// Entries as one message: `m`, and for each its node, stamp, member and value, with their lengths
/// before them.
pub(super) fn encode(entries: &[MemberEntry]) -> Vec<u8> {
    let mut message = vec![TELLS_OF_MEMBERS];
    for entry in entries {
        message.extend_from_slice(entry.node.to_string().as_bytes());
        message.extend_from_slice(&entry.stamp.to_be_bytes());
        // At most 255 bytes, and at most 2 KiB.
        message.push(entry.member.len() as u8);
        message.extend_from_slice(entry.member.as_bytes());
        let length = entry.value.as_ref().map_or(CLEARED, |value| value.len() as u16);
        message.extend_from_slice(&length.to_be_bytes());
        message.extend_from_slice(entry.value.as_deref().unwrap_or_default());
    }
    message
}

/// `None`: it is not one of ours.
pub(super) fn decode(message: &[u8]) -> Option<Vec<MemberEntry>> {
    let (&TELLS_OF_MEMBERS, mut rest) = message.split_first()? else {
        return None;
    };
    let mut entries = Vec::new();
    while !rest.is_empty() {
        let mut take = |count: usize| {
            let (taken, left) = rest.split_at_checked(count)?;
            rest = left;
            Some(taken)
        };
        let node = std::str::from_utf8(take(NODE)?).ok()?.parse().ok()?;
        let stamp = u64::from_be_bytes(take(8)?.try_into().ok()?);
        let length = usize::from(*take(1)?.first()?);
        let member: Arc<str> = std::str::from_utf8(take(length)?).ok()?.into();
        let value = match u16::from_be_bytes(take(2)?.try_into().ok()?) {
            CLEARED => None,
            length => Some(Bytes::copy_from_slice(take(length.into())?)),
        };
        entries.push(MemberEntry::new(node, member, stamp, value));
    }
    Some(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_as_they_were() {
        let node = NodeId::draw().next();
        let entry =
            |member: &str, value: Option<&[u8]>| MemberEntry::new(node, member, u64::MAX - 1, value.map(Bytes::copy_from_slice));
        let long = "\0".repeat(255);
        let entries = [
            entry("", Some(b"")),
            entry("é*?[a]{}", None),
            entry(&long, Some(&[255; 2048])),
        ];
        let message = encode(&entries);
        assert_eq!(decode(&message).unwrap(), entries);
        for length in 0..message.len() {
            let whole = decode(&message[..length]).is_none_or(|part| entries.starts_with(&part));
            assert!(whole, "the first {length} bytes of it");
        }
        for entry in entries.iter().filter(|entry| entry.value.is_some()) {
            assert_eq!(listed_entry(&field(entry), &stored(entry)).as_ref(), Some(entry));
        }
        assert_eq!((listed_entry(b"short", &[0; 8]), decode(b"1:2:t")), (None, None));
    }
}
