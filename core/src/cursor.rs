//! A cursor says how far a listener has got, as the text that clients store and send back.
//!
//! The cursor of one channel is the decimal position itself. The cursor of several channels is a
//! token. The token names each channel by a short hash and gives its position. So 100 channels stay
//! under 1 KB, which matters because each event of such a stream carries the token.

use base64::Engine;
use base64::display::Base64Display;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::event::{ChannelName, Position};

/// A token begins with this byte before it is written as base64, so that the format can change
/// later. The node reads tokens of the version before, too.
const VERSION: u8 = 2;
const VERSION_BEFORE: u8 = 1;
/// A token of the version before names a channel by this many bytes.
const HASH_BYTES: usize = 6;
/// A token names a channel by this many bits. The salt keeps the channels of one stream apart. Once
/// in 40,000 times, a channel that the stream did not have is taken for one of its 100 channels.
/// The listener then receives a gap, because positions are compared for equality.
const SHORT_BITS: u32 = 22;
const MAX_ENTRIES: usize = 1000;

/// A cursor holds the position of the last event that a listener has, for one or more channels.
///
/// For example, a stream of one channel gives ids like `1748123004217001`. That text *is* the
/// cursor, and a WebSocket takes it as well. A stream of `orders/1` and `chat/x` gives one id that
/// holds both positions, and each event moves one of them.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cursor {
    /// The cursor belongs to a stream of one channel, whichever it is.
    One(Position),
    /// The cursor belongs to a stream of several channels.
    Many(Positions),
}

/// Holds the positions of several channels. A short hash names each channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Positions {
    naming: Naming,
    /// Holds the hash and the position of each channel, in the order of the token.
    entries: Vec<(u64, Position)>,
}

/// The naming says how hashes stand for names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Naming {
    /// A hash has 48 bits, as version 0.1 wrote it.
    Long,
    /// A hash has [`SHORT_BITS`] bits and depends on this salt.
    Short(u8),
}

/// The text is not a cursor. Its listener receives a gap and never a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is not a cursor")]
pub struct BadCursor;

impl Positions {
    /// Returns the number of channels.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns whether there is no channel.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the position of `channel`, or `None` if its hash is unknown. Fails if the hash
    /// stands for two channels with different positions.
    fn find(&self, channel: &ChannelName) -> Result<Option<Position>, BadCursor> {
        let full = stable_hash(channel.as_str());
        let wanted = match self.naming {
            Naming::Long => long(full),
            Naming::Short(salt) => short(full, salt).into(),
        };
        let mut same = self.entries.iter().filter(|(hash, _)| *hash == wanted);
        let Some((_, position)) = same.next() else {
            return Ok(None);
        };
        match same.all(|(_, other)| other == position) {
            true => Ok(Some(*position)),
            false => Err(BadCursor),
        }
    }
}

impl Cursor {
    /// Makes a cursor of several channels, in any order. If a channel is given twice, its last
    /// position counts.
    pub fn many<'a>(positions: impl IntoIterator<Item = (&'a ChannelName, Position)>) -> Self {
        let mut stream = StreamCursor::default();
        for (name, position) in positions {
            stream.set(name, position);
        }
        stream.snapshot()
    }

    /// Returns how many bytes the cursor of a stream of so many channels has at most, as text. The
    /// bound holds while positions are below 2^53.
    pub fn most_bytes(channels: usize) -> usize {
        if channels < 2 {
            return 24;
        }
        // With K = 54 - log2(channels) low bits, at most one distance in 2^J is longer than
        // K + J - 1 bits. So the distances take at most K + 2.5 bits each. `best_low_bits` takes
        // no more.
        let distance = 57 - channels.ilog2() as usize;
        let bits = channels * (SHORT_BITS as usize + distance);
        (15 + bits / 8).div_ceil(3) * 4
    }

    /// Reads a cursor back.
    pub fn parse(text: &str) -> Result<Self, BadCursor> {
        if text.bytes().all(|b| b.is_ascii_digit()) {
            return text.parse().map(Cursor::One).map_err(|_| BadCursor);
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| BadCursor)?;
        let positions = match bytes.split_first() {
            Some((&VERSION, rest)) => decode(rest)?,
            Some((&VERSION_BEFORE, rest)) => decode_version_before(rest)?,
            _ => return Err(BadCursor),
        };
        if positions.is_empty() {
            Err(BadCursor)
        } else {
            Ok(Cursor::Many(positions))
        }
    }

    /// Returns the position of `channel`. Returns `None` if this cursor does not know the channel
    /// or cannot tell it from another.
    pub fn position(&self, channel: &ChannelName) -> Option<Position> {
        self.find(channel).unwrap_or(None)
    }

    /// Returns the position of `channel`, or `None` if this cursor does not know the channel. Fails
    /// if the cursor cannot tell the channel from another.
    pub(crate) fn find(&self, channel: &ChannelName) -> Result<Option<Position>, BadCursor> {
        match self {
            Cursor::One(position) => Ok(Some(*position)),
            Cursor::Many(positions) => positions.find(channel),
        }
    }

    /// Returns whether the cursor belongs to a stream of one channel, whichever it is. Such a
    /// cursor says nothing for a stream of several channels.
    pub fn is_one(&self) -> bool {
        matches!(self, Cursor::One(_))
    }
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let positions = match self {
            Cursor::One(position) => return position.fmt(f),
            Cursor::Many(positions) => positions,
        };
        let bytes = match positions.naming {
            Naming::Short(salt) => encode(salt, positions.entries.iter().copied()),
            Naming::Long => encode_version_before(&positions.entries),
        };
        Base64Display::new(&bytes, &URL_SAFE_NO_PAD).fmt(f)
    }
}

/// This cursor belongs to a stream of several channels and moves with it. It keeps the hashes of
/// the names. It keeps the channels in the order of their positions, in which they are written.
#[derive(Debug, Default)]
pub(crate) struct StreamCursor {
    salt: u8,
    channels: Vec<StreamChannel>,
    /// Holds indexes into `channels`, in the order of their positions.
    order: Vec<usize>,
}

#[derive(Debug)]
struct StreamChannel {
    name: ChannelName,
    full: u64,
    short: u32,
    position: Position,
}

impl StreamCursor {
    /// Sets the position of a channel, which may be new. Returns its index.
    pub(crate) fn set(&mut self, name: &ChannelName, position: Position) -> usize {
        if let Some(index) = self.channels.iter().position(|known| known.name == *name) {
            self.advance(index, position);
            return index;
        }
        let full = stable_hash(name.as_str());
        let index = self.channels.len();
        self.channels.push(StreamChannel {
            name: name.clone(),
            full,
            short: short(full, self.salt),
            position,
        });
        self.order.push(index);
        self.put_in_order(self.order.len() - 1);
        let short = self.channels[index].short;
        if self.channels[..index].iter().any(|other| other.short == short) {
            self.salt_anew();
        }
        index
    }

    /// Sets the position of the channel with that index.
    pub(crate) fn advance(&mut self, index: usize, position: Position) {
        self.channels[index].position = position;
        if let Some(at) = self.order.iter().rposition(|known| *known == index) {
            self.put_in_order(at);
        }
    }

    /// Returns the cursor as it is now.
    pub(crate) fn snapshot(&self) -> Cursor {
        Cursor::Many(Positions {
            naming: Naming::Short(self.salt),
            entries: self.entries().collect(),
        })
    }

    fn entries(&self) -> impl ExactSizeIterator<Item = (u64, Position)> + Clone {
        self.order.iter().map(|index| {
            let channel = &self.channels[*index];
            (channel.short.into(), channel.position)
        })
    }

    fn put_in_order(&mut self, mut at: usize) {
        let position = |order: &[usize], at: usize| self.channels[order[at]].position;
        while at + 1 < self.order.len() && position(&self.order, at) > position(&self.order, at + 1) {
            self.order.swap(at, at + 1);
            at += 1;
        }
        while at > 0 && position(&self.order, at) < position(&self.order, at - 1) {
            self.order.swap(at, at - 1);
            at -= 1;
        }
    }

    /// Looks for a salt that keeps all channels apart. One salt in nine fails for 1,000 channels. A
    /// stream keeps its channels, so it does not try a salt again that has failed. Names made to
    /// collide cost a stream 255 tries in all. A listener of such channels receives a gap.
    fn salt_anew(&mut self) {
        while let Some(salt) = self.salt.checked_add(1) {
            self.salt = salt;
            let mut shorts = Vec::with_capacity(self.channels.len());
            for channel in &mut self.channels {
                channel.short = short(channel.full, salt);
                shorts.push(channel.short);
            }
            shorts.sort_unstable();
            if shorts.windows(2).all(|pair| pair[0] != pair[1]) {
                return;
            }
        }
    }
}

impl std::fmt::Display for StreamCursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bytes = encode(self.salt, self.entries());
        Base64Display::new(&bytes, &URL_SAFE_NO_PAD).fmt(f)
    }
}

/// Writes a token's bytes: version, salt, number of channels, lowest position, `low_bits`, then
/// bits. The bits hold the hash of each channel, from the lowest position to the highest. They also
/// hold its distance from the position before. The lowest `low_bits` bits of a distance are written
/// as they are. The length of the bits above them comes first, in unary. So one channel far behind
/// the others costs little.
fn encode(salt: u8, entries: impl ExactSizeIterator<Item = (u64, Position)> + Clone) -> Vec<u8> {
    let lowest = entries.clone().next().map_or(0, |(_, position)| position.0);
    let pairs = entries.clone().zip(entries.clone().skip(1));
    let low_bits = best_low_bits(pairs.map(|((_, before), (_, position))| position.0.wrapping_sub(before.0)));
    let mut out = Vec::with_capacity(16 + entries.len() * 10);
    out.extend_from_slice(&[VERSION, salt]);
    write_varint(&mut out, entries.len() as u64);
    write_varint(&mut out, lowest);
    out.push(low_bits as u8);
    let mut bits = BitWriter {
        out,
        waiting: 0,
        count: 0,
    };
    let mut before = None;
    for (hash, position) in entries {
        bits.write(hash, SHORT_BITS);
        if let Some(before) = before.replace(position.0) {
            let distance = position.0.wrapping_sub(before);
            let high = distance >> low_bits;
            let length = length_of(high);
            for _ in 0..length {
                bits.write(1, 1);
            }
            bits.write(0, 1);
            if length > 1 {
                // The highest bit is 1, so the token leaves it out.
                bits.write(high ^ 1 << (length - 1), length - 1);
            }
            bits.write(distance & ((1 << low_bits) - 1), low_bits);
        }
    }
    bits.finish()
}

/// Returns the number of low bits with which the distances are shortest: at most 63.
fn best_low_bits(distances: impl Iterator<Item = u64>) -> u32 {
    let mut of_length = [0usize; 65];
    let mut count = 0;
    for distance in distances {
        of_length[length_of(distance) as usize] += 1;
        count += 1;
    }
    // One low bit more costs one bit for each distance. It saves two bits of each distance that
    // stays longer, and one of each that is now as long as its low bits.
    let mut longer = count - of_length[0];
    for low_bits in 0..63 {
        let stay_longer = longer - of_length[low_bits as usize + 1];
        if longer + stay_longer <= count {
            return low_bits;
        }
        longer = stay_longer;
    }
    63
}

/// Returns how many bits the value has without leading zeros.
fn length_of(value: u64) -> u32 {
    u64::BITS - value.leading_zeros()
}

fn decode(bytes: &[u8]) -> Result<Positions, BadCursor> {
    let (&salt, rest) = bytes.split_first().ok_or(BadCursor)?;
    let (count, rest) = read_varint(rest)?;
    let (mut last, rest) = read_varint(rest)?;
    let (&low_bits, rest) = rest.split_first().ok_or(BadCursor)?;
    if count > MAX_ENTRIES as u64 || low_bits > 63 {
        return Err(BadCursor);
    }
    let mut bits = BitReader { bytes: rest, at: 0 };
    let mut entries = Vec::new();
    for index in 0..count {
        let hash = bits.read(SHORT_BITS).ok_or(BadCursor)?;
        if index > 0 {
            let distance = bits.read_distance(low_bits.into()).ok_or(BadCursor)?;
            last = last.checked_add(distance).ok_or(BadCursor)?;
        }
        entries.push((hash, Position(last)));
    }
    // Fewer than eight zero bits fill the last byte.
    let left = bits.left();
    if left >= 8 || bits.read(left as u32) != Some(0) {
        return Err(BadCursor);
    }
    Ok(Positions {
        naming: Naming::Short(salt),
        entries,
    })
}

struct BitWriter {
    out: Vec<u8>,
    waiting: u64,
    count: u32,
}

impl BitWriter {
    /// Writes the lowest `count` bits, of which there are at most 63.
    fn write(&mut self, bits: u64, count: u32) {
        if count > 32 {
            self.write(bits >> 32, count - 32);
            return self.write(bits & 0xffff_ffff, 32);
        }
        // Fewer than eight bits wait.
        self.waiting = self.waiting << count | bits;
        self.count += count;
        while self.count >= 8 {
            self.count -= 8;
            self.out.push((self.waiting >> self.count) as u8);
        }
        self.waiting &= (1 << self.count) - 1;
    }

    fn finish(mut self) -> Vec<u8> {
        if self.count > 0 {
            self.write(0, 8 - self.count);
        }
        self.out
    }
}

struct BitReader<'a> {
    bytes: &'a [u8],
    /// Counts the bits that have been read.
    at: usize,
}

impl BitReader<'_> {
    fn left(&self) -> usize {
        self.bytes.len() * 8 - self.at
    }

    fn read(&mut self, count: u32) -> Option<u64> {
        if self.left() < count as usize {
            return None;
        }
        let bit = |at: usize| u64::from(self.bytes[at / 8] >> (7 - at % 8) & 1);
        let bits = (self.at..self.at + count as usize).fold(0, |bits, at| bits << 1 | bit(at));
        self.at += count as usize;
        Some(bits)
    }

    /// Reads one distance. Returns `None` also if the distance does not fit 64 bits.
    fn read_distance(&mut self, low_bits: u32) -> Option<u64> {
        let mut length = 0;
        while self.read(1)? == 1 {
            length += 1;
            if length + low_bits > u64::BITS {
                return None;
            }
        }
        let high = match length {
            0 => 0,
            length => 1 << (length - 1) | self.read(length - 1)?,
        };
        Some(high << low_bits | self.read(low_bits)?)
    }
}

fn encode_version_before(entries: &[(u64, Position)]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + entries.len() * (HASH_BYTES + 8));
    bytes.push(VERSION_BEFORE);
    let mut last = 0u64;
    for (hash, position) in entries {
        bytes.extend_from_slice(&hash.to_be_bytes()[8 - HASH_BYTES..]);
        write_varint(&mut bytes, zigzag(position.0.wrapping_sub(last).cast_signed()));
        last = position.0;
    }
    bytes
}

fn decode_version_before(mut rest: &[u8]) -> Result<Positions, BadCursor> {
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
    Ok(Positions {
        naming: Naming::Long,
        entries,
    })
}

/// Hashes with FNV-1a, which is stable across nodes and versions, unlike the standard library's
/// hashers.
pub(crate) fn stable_hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Folds a hash to 48 bits.
fn long(full: u64) -> u64 {
    (full >> 48 ^ full) & 0xffff_ffff_ffff
}

/// Makes [`SHORT_BITS`] bits of a hash, others for each salt.
fn short(full: u64, salt: u8) -> u32 {
    let salted = full ^ u64::from(salt).wrapping_mul(0xa076_1d64_78bd_642f);
    (salted.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - SHORT_BITS)) as u32
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
    use crate::session::After;
    use proptest::prelude::*;

    const FIXED: &str = "AdxMhgFD7w7fTIYBXsbEmoWrk_qaBg";

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
    fn a_hundred_channels_stay_under_a_kilobyte() {
        let names = names(1000);
        let first = 1_748_123_004_217_001;
        for (count, apart, most) in [
            (16, 86_400_000_000u64, 200),
            (100, 0, 420),
            (100, 1000, 600),
            (100, 3_600_000_000, 1000),
            (100, 20_000_000_000, 1000),
            (1000, 1_000_000, 8000),
            (1000, 86_400_000_000, 11_000),
        ] {
            // The positions come in no order.
            let positions = (0..count).map(|i| (&names[i], Position(first + apart * (i as u64 * 7 % count as u64))));
            let text = Cursor::many(positions).to_string();
            assert!(text.len() <= most, "{count} channels {apart} apart: {} bytes", text.len());
            assert!(text.len() <= Cursor::most_bytes(count), "{count} channels {apart} apart");
        }
        // A third of the channels has had no event, one was silent for a year, the others are
        // spread over ten days.
        let mixed = names[..100].iter().enumerate().map(|(i, name)| match i as u64 {
            i if i % 3 == 0 => (name, Position(0)),
            1 => (name, Position(first - 31_536_000_000_000)),
            i => (name, Position(first + i * i * 86_400_017)),
        });
        let text = Cursor::many(mixed).to_string();
        assert!(text.len() < 1000, "{} bytes", text.len());
    }

    /// The distances are long up to a varying place of the order, and 1 behind it.
    #[test]
    fn no_cursor_is_longer_than_the_most() {
        let names = names(1000);
        for count in [1, 2, 3, 10, 99, 100, 640, 1000] {
            for long in [0, 1, 2, count / 4, count / 2, count * 3 / 4, count] {
                let step = (1u64 << 53) / long.max(1) as u64;
                let mut last = 0u64;
                let positions = names[..count].iter().enumerate().map(|(i, name)| {
                    last = (last + if i < long { step } else { 1 }).min((1 << 53) - 1);
                    (name, Position(last))
                });
                let text = Cursor::many(positions).to_string();
                let most = Cursor::most_bytes(count);
                assert!(text.len() <= most, "{count}, {long}: {} bytes of {most}", text.len());
            }
        }
    }

    /// Version 0.1 wrote this form.
    #[test]
    fn a_cursor_of_the_version_before_is_read() {
        let names = names(3);
        let entries: Vec<_> = names
            .iter()
            .zip([Position(1_748_123_004_217_001), Position(5), Position(u64::MAX)])
            .map(|(name, position)| (long(stable_hash(name.as_str())), position))
            .collect();
        let text = URL_SAFE_NO_PAD.encode(encode_version_before(&entries));
        let cursor = Cursor::parse(&text).unwrap();
        assert_eq!(cursor.position(&names[0]), Some(Position(1_748_123_004_217_001)));
        assert_eq!(cursor.position(&names[1]), Some(Position(5)));
        assert_eq!(cursor.position(&names[2]), Some(Position(u64::MAX)));
        assert_eq!(cursor.position(&ChannelName::new("other").unwrap()), None);
        assert_eq!(cursor.to_string(), text);
        // The fixed cursor has `a` at 7 and `b` at 1748123004217001.
        let fixed = Cursor::parse(FIXED).unwrap();
        assert_eq!(fixed.position(&ChannelName::new("a").unwrap()), Some(Position(7)));
        assert_eq!(
            fixed.position(&ChannelName::new("b").unwrap()),
            Some(Position(1_748_123_004_217_001))
        );
        assert_eq!(fixed.to_string(), FIXED);
    }

    #[test]
    fn channels_of_one_stream_are_kept_apart() {
        let names = names(1000);
        let mut stream = StreamCursor::default();
        for (i, name) in names.iter().enumerate() {
            assert_eq!(stream.set(name, Position(i as u64 * 17 % 1000)), i);
        }
        let mut shorts: Vec<u32> = stream.channels.iter().map(|channel| channel.short).collect();
        shorts.sort_unstable();
        shorts.dedup();
        assert_eq!(shorts.len(), names.len());
        // Channels move on, move back and are set again.
        stream.advance(3, Position(5000));
        stream.advance(999, Position(0));
        assert_eq!(stream.set(&names[5], Position(500)), 5);
        let text = stream.to_string();
        assert_eq!(text, stream.snapshot().to_string());
        let cursor = Cursor::parse(&text).unwrap();
        for (i, name) in names.iter().enumerate() {
            let wanted = match i {
                3 => 5000,
                999 => 0,
                5 => 500,
                i => i as u64 * 17 % 1000,
            };
            assert_eq!(cursor.position(name), Some(Position(wanted)), "{name}");
        }
        assert_eq!(cursor.position(&ChannelName::new("another").unwrap()), None);
    }

    /// The text shows neither the order of the channels nor their positions before.
    #[test]
    fn the_order_of_channels_does_not_matter() {
        let names = names(3);
        let [a, b, c] = [(&names[0], Position(7)), (&names[1], Position(5)), (&names[2], Position(9))];
        let text = Cursor::many([a, b, c]).to_string();
        assert_eq!(Cursor::many([c, b, a]).to_string(), text);
        assert_eq!(Cursor::many([(&names[1], Position(11)), c, a, b]).to_string(), text);
    }

    /// Two names have one 64-bit hash, so no salt keeps them apart.
    #[test]
    fn names_that_cannot_be_told_apart_have_no_position_and_cost_little() {
        let [a, b] = ["8yn0iYCKYHlIj4-BwPqk", "GReLUrM4wMqfg9yzV3KQ"].map(|name| ChannelName::new(name).unwrap());
        assert_eq!(stable_hash(a.as_str()), stable_hash(b.as_str()));
        let others = names(100);
        let mut stream = StreamCursor::default();
        for name in others.iter().chain([&a, &b]) {
            stream.set(name, Position(3));
        }
        // The two channels have one position, so it does not matter which of them is found.
        assert_eq!(Cursor::parse(&stream.to_string()).unwrap().find(&a), Ok(Some(Position(3))));
        stream.set(&b, Position::ZERO);
        assert_eq!(stream.salt, u8::MAX);
        let cursor = Cursor::parse(&stream.to_string()).unwrap();
        assert_eq!(cursor.find(&a), Err(BadCursor));
        assert_eq!(cursor.find(&b), Err(BadCursor));
        assert_eq!(cursor.position(&a), None);
        assert_eq!(After::of(&cursor, &a), After::Unreadable);
        assert_eq!(After::of(&cursor, &others[5]), After::Position(Position(3)));
        assert_eq!(After::of(&cursor, &ChannelName::new("another").unwrap()), After::Nothing);
        assert_eq!(cursor.find(&others[5]), Ok(Some(Position(3))));
        // The stream does not try the salts again.
        let more = ChannelName::new("more").unwrap();
        stream.set(&more, Position(4));
        assert_eq!(Cursor::parse(&stream.to_string()).unwrap().find(&more), Ok(Some(Position(4))));
    }

    /// Returns a token of version 2 with these bytes behind the version.
    fn token(bytes: &[u8]) -> String {
        URL_SAFE_NO_PAD.encode([&[VERSION], bytes].concat())
    }

    #[test]
    fn hostile_tokens_are_refused() {
        let ones = vec![0xff; 1 << 20];
        for low_bits in [0, 1, 63, 64, 255] {
            // The distance has a length that never ends.
            for count in [1, 2, 100] {
                assert_eq!(
                    Cursor::parse(&token(&[&[0, count, 0, low_bits], &ones[..]].concat())),
                    Err(BadCursor)
                );
            }
        }
        // A token may have one thousand channels, but not one thousand and one.
        let (many, more) = (vec![0; 1000 * 23 / 8], vec![0; 1 << 20]);
        assert!(Cursor::parse(&token(&[&[0, 0xe8, 0x07, 0, 0], &many[..]].concat())).is_ok());
        assert_eq!(
            Cursor::parse(&token(&[&[0, 0xe9, 0x07, 0, 0], &more[..]].concat())),
            Err(BadCursor)
        );
        assert_eq!(
            Cursor::parse(&token(&[&[0], &ones[..9], &[1, 0, 0], &more[..]].concat())),
            Err(BadCursor)
        );
        // A position must fit 64 bits.
        let mut high = vec![0, 2];
        write_varint(&mut high, u64::MAX);
        assert!(Cursor::parse(&token(&[&high[..], &[0, 0, 0, 0, 0, 0, 0]].concat())).is_ok());
        let one_more = [0, 0, 0, 0, 0, 0, 0b0000_1000];
        assert_eq!(Cursor::parse(&token(&[&high[..], &one_more].concat())), Err(BadCursor));
        assert_eq!(
            Cursor::parse(&token(&[&[0, 2, 7], &one_more[..]].concat()))
                .unwrap()
                .to_string()
                .len(),
            15
        );
        // The parser refuses a token without a channel, with something behind the last one, or cut
        // off.
        assert_eq!(Cursor::parse(&token(&[0, 0, 0, 0])), Err(BadCursor));
        assert!(Cursor::parse(&token(&[0, 1, 5, 0, 0, 0, 0])).is_ok());
        assert_eq!(Cursor::parse(&token(&[0, 1, 5, 0, 0, 0, 1])), Err(BadCursor));
        assert_eq!(Cursor::parse(&token(&[0, 1, 5, 0, 0, 0, 0, 0])), Err(BadCursor));
        let whole = Cursor::many(names(9).iter().zip((0..).map(|i| Position(i * 1000)))).to_string();
        for end in 0..whole.len() {
            assert_eq!(Cursor::parse(&whole[..end]), Err(BadCursor), "{end} of {whole}");
        }
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

    /// Makes any positions, or positions such as a stream has.
    fn positions() -> impl Strategy<Value = Vec<u64>> {
        let near = (1_700_000_000_000_000u64..1_800_000_000_000_000, 0..40u32).prop_flat_map(|(first, bits)| {
            let one = prop_oneof![9 => first..first + (1 << bits), 1 => Just(0)];
            prop_oneof![
                9 => prop::collection::vec(one.clone(), 1..=60),
                1 => prop::collection::vec(one, 1..=1000),
            ]
        });
        prop_oneof![prop::collection::vec(any::<u64>(), 1..40), near]
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_back(positions in positions()) {
            let names = names(positions.len());
            let cursor = Cursor::many(names.iter().zip(positions.iter().map(|&p| Position(p))));
            let text = cursor.to_string();
            prop_assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
            let back = Cursor::parse(&text).unwrap();
            prop_assert_eq!(&back, &cursor);
            for (name, &position) in names.iter().zip(&positions) {
                prop_assert_eq!(back.position(name), Some(Position(position)));
            }
        }

        #[test]
        fn any_text_is_read_without_a_panic(text in ".{0,200}") {
            let _ = Cursor::parse(&text);
        }

        /// A cursor that was read is written no longer than it was, and can be read again.
        #[test]
        fn any_bytes_are_read_without_a_panic(
            version in 1..=2u8,
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            count in 0..9u8,
        ) {
            let shorter = [&[version, 0, count, 5, count], &bytes[..]].concat();
            for bytes in [&[&[version], &bytes[..]].concat(), &shorter] {
                // Each of these prefixes may be a token.
                for end in 0..=bytes.len() {
                    let text = URL_SAFE_NO_PAD.encode(&bytes[..end]);
                    if let Ok(cursor) = Cursor::parse(&text) {
                        let written = cursor.to_string();
                        prop_assert!(written.len() <= text.len(), "{} became {}", text, written);
                        prop_assert_eq!(Cursor::parse(&written), Ok(cursor));
                    }
                }
            }
        }
    }
}
