//! A node's entries of a channel as bytes: in buckets that are stored, and in parts that are told.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use airwave_core::directory::{MemberEntry, NodeId};
use async_nats::Message;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;

/// In so many messages a node's members of a channel are divided. A bucket of 10,000 members holds
/// 156: some 10 KB.
const BUCKETS: u64 = 64;

/// What is told at once, in bytes. A header may have 64 KiB, and bytes need a third more there.
const TELL_AT_MOST: usize = 32 << 10;

pub(super) const TELLS: &str = "Airwave-Told";

/// An entry that is cleared, where the length of its value would stand.
const CLEARED: u16 = u16::MAX;

/// What a message tells: how often its node had told of the channel, with this; and the entries.
pub(super) fn update_of(message: &Message) -> Option<(u64, Vec<MemberEntry>)> {
    let header = message.headers.as_ref()?.get(TELLS)?;
    let bytes = BASE64_STANDARD.decode(header.as_str()).ok()?;
    let (number, entries) = bytes.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*number), decode(node_of(&message.subject)?, entries)?))
}

/// The same as long as the node runs, and of no meaning to others.
pub(super) fn bucket_of(member: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    member.hash(&mut hasher);
    hasher.finish() % BUCKETS
}

/// `….NODE.BUCKET`: neither they nor the channel's token hold a dot.
pub(super) fn node_of(subject: &str) -> Option<NodeId> {
    subject.rsplit('.').nth(1)?.parse().ok()
}

/// The entries in parts that can each be told at once.
pub(super) fn parts(entries: &[MemberEntry]) -> impl Iterator<Item = &[MemberEntry]> {
    let mut rest = entries;
    std::iter::from_fn(move || {
        let mut size = 0;
        let fits = rest.iter().take_while(|entry| {
            size += 11 + entry.member.len() + entry.value.as_ref().map_or(0, Bytes::len);
            size <= TELL_AT_MOST
        });
        // One is never too large.
        let count = fits.count().max(1).min(rest.len());
        let part;
        (part, rest) = rest.split_at(count);
        (!part.is_empty()).then_some(part)
    })
}

/// For each entry its stamp, member and value, with their lengths before them.
pub(super) fn encode<'a>(entries: impl Iterator<Item = (&'a str, u64, Option<&'a Bytes>)>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (member, stamp, value) in entries {
        bytes.extend_from_slice(&stamp.to_be_bytes());
        // At most 255 bytes, and at most 2 KiB.
        bytes.push(member.len() as u8);
        bytes.extend_from_slice(member.as_bytes());
        let length = value.map_or(CLEARED, |value| value.len() as u16);
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(value.map(|value| &value[..]).unwrap_or_default());
    }
    bytes
}

/// `None`: it is not one of ours.
pub(super) fn decode(node: NodeId, mut rest: &[u8]) -> Option<Vec<MemberEntry>> {
    let mut entries = Vec::new();
    while !rest.is_empty() {
        let mut take = |count: usize| {
            let (taken, left) = rest.split_at_checked(count)?;
            rest = left;
            Some(taken)
        };
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
    fn entries_come_back_as_they_were_and_in_parts_that_fit() {
        let node = NodeId::draw().next();
        let entry =
            |member: &str, value: Option<&[u8]>| MemberEntry::new(node, member, u64::MAX - 1, value.map(Bytes::copy_from_slice));
        let long = "\0".repeat(255);
        let mut entries = vec![entry("", Some(b"")), entry("é*?[a]{}", None)];
        entries.extend((0..100).map(|_| entry(&long, Some(&[255; 2048]))));
        let bytes = |entries: &[MemberEntry]| {
            encode(
                entries
                    .iter()
                    .map(|entry| (&*entry.member, entry.stamp, entry.value.as_ref())),
            )
        };
        assert_eq!(decode(node, &bytes(&entries)).unwrap(), entries);
        let short = bytes(&entries[..2]);
        for length in 0..short.len() {
            let whole = decode(node, &short[..length]).is_none_or(|part| entries.starts_with(&part));
            assert!(whole, "the first {length} bytes of it");
        }
        let parts: Vec<&[MemberEntry]> = parts(&entries).collect();
        assert!(parts.iter().all(|part| bytes(part).len() <= TELL_AT_MOST));
        assert_eq!(parts.concat(), entries);
        assert!(parts.len() < 10);
        assert_eq!(super::parts(&[]).count(), 0);
    }
}
