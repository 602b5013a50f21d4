//! How far a listener has got, as the text that clients store and send back.
//!
//! One channel: the decimal position itself. Several channels: a token that names each channel by a short hash and its
//! position, so that 16 channels stay under 400 bytes.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::event::{ChannelName, Position};

/// A token begins with this byte before it is written as base64, so that the format can change later.
const VERSION: u8 = 1;
const HASH_BYTES: usize = 6;
const MAX_ENTRIES: usize = 1000;

/// The position of the last event that a listener has, for one or more channels.
///
/// For example: a stream of one channel gives ids like `1748123004217001`; that text *is* the cursor, and a WebSocket takes it as
/// well. A stream of `orders/1` and `chat/x` gives one id that holds both positions, and each event moves one of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cursor {
    /// The cursor of a stream of one channel, whichever it is.
    One(Position),
    /// The cursor of a stream of several channels: hash of the name, position.
    Many(Vec<(u64, Position)>),
}

/// The text is not a cursor. Its listener is told of a gap, never refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is not a cursor")]
pub struct BadCursor;

impl Cursor {
    /// A cursor of several channels.
    pub fn many<'a>(positions: impl IntoIterator<Item = (&'a ChannelName, Position)>) -> Self {
        Cursor::Many(positions.into_iter().map(|(name, position)| (hash(name), position)).collect())
    }

    /// Reads a cursor back.
    pub fn parse(text: &str) -> Result<Self, BadCursor> {
        if text.bytes().all(|b| b.is_ascii_digit()) {
            return text.parse().map(Cursor::One).map_err(|_| BadCursor);
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| BadCursor)?;
        let (&version, mut rest) = bytes.split_first().ok_or(BadCursor)?;
        if version != VERSION {
            return Err(BadCursor);
        }
        let mut entries = Vec::new();
        let mut last = 0u64;
        while !rest.is_empty() {
            if rest.len() <= HASH_BYTES || entries.len() == MAX_ENTRIES {
                return Err(BadCursor);
            }
            let (head, tail) = rest.split_at(HASH_BYTES);
            let hash = head.iter().fold(0u64, |acc, &b| acc << 8 | u64::from(b));
            let (delta, tail) = read_varint(tail)?;
            last = last.wrapping_add(unzigzag(delta).cast_unsigned());
            entries.push((hash, Position(last)));
            rest = tail;
        }
        if entries.is_empty() {
            Err(BadCursor)
        } else {
            Ok(Cursor::Many(entries))
        }
    }

    /// The position of `channel`; `None` if this cursor does not know the channel.
    pub fn position(&self, channel: &ChannelName) -> Option<Position> {
        match self {
            Cursor::One(position) => Some(*position),
            Cursor::Many(entries) => {
                let wanted = hash(channel);
                entries
                    .iter()
                    .find(|(hash, _)| *hash == wanted)
                    .map(|(_, position)| *position)
            }
        }
    }

    /// Whether the cursor is of one channel, whichever it is: then it says nothing for a stream of several.
    pub fn is_one(&self) -> bool {
        matches!(self, Cursor::One(_))
    }
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Cursor::One(position) => position.fmt(f),
            Cursor::Many(entries) => {
                let mut bytes = Vec::with_capacity(1 + entries.len() * (HASH_BYTES + 8));
                bytes.push(VERSION);
                let mut last = 0u64;
                for (hash, position) in entries {
                    bytes.extend_from_slice(&hash.to_be_bytes()[8 - HASH_BYTES..]);
                    // Positions of one stream lie close together, so differences are shorter than the positions.
                    write_varint(&mut bytes, zigzag(position.0.wrapping_sub(last).cast_signed()));
                    last = position.0;
                }
                f.write_str(&URL_SAFE_NO_PAD.encode(bytes))
            }
        }
    }
}

/// FNV-1a: stable across nodes and versions, unlike the standard library's hashers.
pub(crate) fn stable_hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Folded to 48 bits. Two channels of one stream collide once in 10^10 streams of 100; the listener would then be told of a gap, as
/// positions are compared for equality.
fn hash(name: &ChannelName) -> u64 {
    let full = stable_hash(name.as_str());
    (full >> 48 ^ full) & 0xffff_ffff_ffff
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -((value & 1).cast_signed())
}

fn write_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn read_varint(bytes: &[u8]) -> Result<(u64, &[u8]), BadCursor> {
    let mut value = 0u64;
    for (i, &byte) in bytes.iter().enumerate().take(10) {
        let part = u64::from(byte & 0x7f);
        // The tenth byte has room for one bit only.
        if i == 9 && part > 1 {
            return Err(BadCursor);
        }
        value |= part << (7 * i);
        if byte < 0x80 {
            return Ok((value, &bytes[i + 1..]));
        }
    }
    Err(BadCursor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(n: usize) -> Vec<ChannelName> {
        (0..n)
            .map(|i| ChannelName::new(&format!("orders/customer-with-a-long-name-{i}")).unwrap())
            .collect()
    }

    #[test]
    fn a_cursor_of_one_channel_is_its_position() {
        assert_eq!(Cursor::One(Position(1748123004217001)).to_string(), "1748123004217001");
        assert_eq!(Cursor::parse("1748123004217001"), Ok(Cursor::One(Position(1748123004217001))));
    }

    #[test]
    fn sixteen_channels_stay_under_400_bytes() {
        let names = names(16);
        let text = Cursor::many(
            names
                .iter()
                .enumerate()
                .map(|(i, n)| (n, Position(1748123004217001 + 86_400_000_000 * i as u64))),
        )
        .to_string();
        assert!(text.len() < 400, "{} bytes", text.len());
    }

    #[test]
    fn nonsense_is_no_cursor() {
        for text in [
            "",
            "-1",
            "18446744073709551616",
            "AQ",
            "AA",
            "!!",
            "a b",
            "AQAAAAAAAA",
            "Zm9vYmFy",
        ] {
            assert_eq!(Cursor::parse(text), Err(BadCursor), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_back(positions in prop::collection::vec(any::<u64>(), 1..40)) {
            let names = names(positions.len());
            let cursor = Cursor::many(names.iter().zip(positions.iter().map(|&p| Position(p))));
            let text = cursor.to_string();
            prop_assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
            let back = Cursor::parse(&text).unwrap();
            for (name, &position) in names.iter().zip(&positions) {
                prop_assert_eq!(back.position(name), Some(Position(position)));
            }
        }

        #[test]
        fn any_text_is_read_without_a_panic(text in ".{0,200}") {
            let _ = Cursor::parse(&text);
        }
    }
}
