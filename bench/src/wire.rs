//! The listener's side of the wire: just enough HTTP, SSE and WebSocket to take events apart at
//! full rate.
//!
//! Written from docs/protocol.md, apart from the server's encoders and from airwave-protocol, so
//! that they cannot be wrong in the same way, and because the load shares its processors with the
//! server that it measures: it finds two fields where a reader of JSON reads all. It trusts its
//! input more than a client may: what it cannot read is a named problem of the run, and the run
//! fails. The clients of chaos and heal read with airwave-protocol.

use memchr::{memchr, memmem};
use serde::Deserialize;

/// The start of an HTTP response.
#[derive(Debug, PartialEq, Eq)]
pub struct Head {
    /// The status code.
    pub status: u16,
    /// Bytes of the head, its blank line included.
    pub length: usize,
    /// Whether the body comes in chunks.
    pub chunked: bool,
    /// `Content-Length`, if there is one.
    pub content_length: Option<usize>,
    /// `Sec-WebSocket-Accept`, if there is one.
    pub accept: Option<String>,
}

impl Head {
    /// Reads a head off the front of `bytes`; `None` until it is complete.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, String> {
        let Some(end) = memmem::find(bytes, b"\r\n\r\n") else {
            return Ok(None);
        };
        let text = String::from_utf8_lossy(&bytes[..end]);
        let mut lines = text.split("\r\n");
        let first = lines.next().unwrap_or_default();
        let status = first
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3))
            .and_then(|code| code.parse().ok())
            .ok_or_else(|| format!("not an HTTP/1.1 response: {first:?}"))?;
        let mut head = Head {
            status,
            length: end + 4,
            chunked: false,
            content_length: None,
            accept: None,
        };
        for line in lines {
            let Some((name, value)) = line.split_once(':') else { continue };
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "transfer-encoding" => head.chunked = value.eq_ignore_ascii_case("chunked"),
                "content-length" => head.content_length = value.parse().ok(),
                "sec-websocket-accept" => head.accept = Some(value.to_owned()),
                _ => {}
            }
        }
        Ok(Some(head))
    }
}

/// Takes `Transfer-Encoding: chunked` off a body that arrives in pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dechunker {
    /// In the line with the size; `digits` tells that there was one, `extension` that the rest of
    /// the line is to be skipped.
    Size {
        /// What was read of it so far.
        size: u64,
        /// There was a digit.
        digits: bool,
        /// Past a semicolon.
        extension: bool,
    },
    /// In a chunk with so many bytes to come.
    Data(u64),
    /// Before the line end that follows a chunk, `true` once its CR is past.
    AfterData(bool),
    /// Behind the last chunk.
    Done,
}

impl Default for Dechunker {
    fn default() -> Self {
        Dechunker::Size {
            size: 0,
            digits: false,
            extension: false,
        }
    }
}

impl Dechunker {
    /// Appends the body bytes in `input` to `out`.
    pub fn decode(&mut self, mut input: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        while let Some(&byte) = input.first() {
            let mut used = 1;
            *self = match *self {
                Dechunker::Size { size, digits, extension } => match byte {
                    b'\n' if !digits => return Err("a chunk without a size".into()),
                    b'\n' if size == 0 => Dechunker::Done,
                    b'\n' => Dechunker::Data(size),
                    b'\r' => *self,
                    b';' => Dechunker::Size {
                        size,
                        digits,
                        extension: true,
                    },
                    _ if extension => *self,
                    _ => {
                        let digit = (byte as char)
                            .to_digit(16)
                            .ok_or("a chunk size that is no hexadecimal number")?;
                        if size > 1 << 40 {
                            return Err("an absurd chunk size".into());
                        }
                        Dechunker::Size {
                            size: size * 16 + u64::from(digit),
                            digits: true,
                            extension,
                        }
                    }
                },
                Dechunker::Data(left) => {
                    used = input.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    out.extend_from_slice(&input[..used]);
                    match left - used as u64 {
                        0 => Dechunker::AfterData(false),
                        left => Dechunker::Data(left),
                    }
                }
                Dechunker::AfterData(false) if byte == b'\r' => Dechunker::AfterData(true),
                Dechunker::AfterData(true) if byte == b'\n' => Dechunker::default(),
                Dechunker::AfterData(_) => return Err("a chunk that does not end where it said".into()),
                Dechunker::Done => return Ok(()),
            };
            input = &input[used..];
        }
        Ok(())
    }
}

/// One block of an event stream.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Block<'a> {
    /// `id:`, empty if there is none.
    pub id: &'a [u8],
    /// `event:`, empty if there is none.
    pub event: &'a [u8],
    /// The first `data:` line, empty if there is none. Events of this bench have one.
    pub data: &'a [u8],
}

/// Hands every complete block of `bytes` to `each` and returns how many bytes those were. Lines end
/// with LF, as the protocol says.
pub fn sse_blocks<'a>(bytes: &'a [u8], mut each: impl FnMut(Block<'a>)) -> usize {
    let (mut at, mut done) = (0, 0);
    let mut block = Block::default();
    let mut empty = true;
    while let Some(length) = memchr(b'\n', &bytes[at..]) {
        let line = &bytes[at..at + length];
        at += length + 1;
        if line.is_empty() {
            let finished = std::mem::take(&mut block);
            if !std::mem::replace(&mut empty, true) {
                each(finished);
            }
            done = at;
            continue;
        }
        let Some(colon) = memchr(b':', line) else { continue };
        let value = &line[colon + 1..];
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match &line[..colon] {
            b"id" => block.id = value,
            b"event" => block.event = value,
            b"data" if block.data.is_empty() => block.data = value,
            _ => continue,
        }
        empty = false;
    }
    done
}

/// One WebSocket frame from a server.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// 1 text, 2 binary, 8 close, 9 ping, 10 pong.
    pub opcode: u8,
    /// What it carries.
    pub payload: &'a [u8],
    /// Bytes of the whole frame.
    pub length: usize,
}

impl<'a> Frame<'a> {
    /// Reads a frame off the front of `bytes`; `None` until it is complete.
    pub fn parse(bytes: &'a [u8]) -> Result<Option<Self>, String> {
        let [first, second, ..] = *bytes else { return Ok(None) };
        if first & 0xf0 != 0x80 {
            return Err(format!(
                "a frame that begins with {first:#04x}: fragments and extensions were not asked for"
            ));
        }
        if second & 0x80 != 0 {
            return Err("a masked frame from the server".into());
        }
        let (size, start) = match second {
            126 => match bytes.get(2..4) {
                Some(size) => (usize::from(u16::from_be_bytes([size[0], size[1]])), 4),
                None => return Ok(None),
            },
            127 => return Err("a frame of more than 64 KiB".into()),
            size => (usize::from(size), 2),
        };
        Ok(bytes.get(start..start + size).map(|payload| Frame {
            opcode: first & 0x0f,
            payload,
            length: start + size,
        }))
    }
}

/// A text frame, as section 5 of the protocol tells notices from events.
#[derive(Debug, PartialEq, Eq)]
pub enum Text<'a> {
    /// An object with a `type`.
    Notice {
        /// Its `type`.
        kind: &'a str,
        /// Its cursor, 0 if it has none.
        cursor: u64,
    },
    /// The envelope of an event.
    Event {
        /// Its `id`.
        position: u64,
        /// Where its data begins; the rest of the envelope stands behind it.
        data: &'a [u8],
    },
}

impl<'a> Text<'a> {
    /// Takes a text frame apart.
    pub fn parse(payload: &'a [u8]) -> Result<Self, String> {
        let unreadable = || {
            format!(
                "an unreadable frame: {}",
                String::from_utf8_lossy(&payload[..payload.len().min(200)])
            )
        };
        if let Some(rest) = payload.strip_prefix(b"{\"type\":\"") {
            let kind = memchr(b'"', rest)
                .and_then(|end| std::str::from_utf8(&rest[..end]).ok())
                .ok_or_else(unreadable)?;
            let cursor = memmem::find(payload, b"\"cursor\":\"").map_or(0, |at| number(&payload[at + 10..]));
            return Ok(Text::Notice { kind, cursor });
        }
        let id = memmem::find(payload, b"\"id\":\"").ok_or_else(unreadable)?;
        let data = memmem::find(&payload[id..], b"\"data\":").ok_or_else(unreadable)?;
        Ok(Text::Event {
            position: number(&payload[id + 6..]),
            data: &payload[id + data + 7..],
        })
    }
}

/// The decimal number at the front of `bytes`, 0 if there is none.
pub fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .take_while(|byte| byte.is_ascii_digit())
        .fold(0, |sum: u64, digit| {
            sum.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'))
        })
}

/// What the publisher writes into an event, to be checked where it arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Stamp {
    /// Counts from 1 within the channel.
    pub n: u64,
    /// Index of the channel, so that an event on a wrong one shows.
    pub c: u32,
    /// When it was to be published: nanoseconds of this process's clock.
    pub t: u64,
}

impl Stamp {
    /// The event's data: JSON of `size` bytes, or the few more that the stamp itself needs.
    pub fn to_json(self, size: usize) -> String {
        let Stamp { n, c, t } = self;
        let mut json = format!("{{\"n\":{n},\"c\":{c},\"t\":{t},\"pad\":\"");
        let pad = size.saturating_sub(json.len() + 2);
        json.extend(std::iter::repeat_n('x', pad));
        json.push_str("\"}");
        json
    }

    /// Reads it back. `data` may have bytes behind it (the rest of an envelope).
    pub fn parse(data: &[u8]) -> Option<Self> {
        Self::as_written(data).or_else(|| {
            // Another order of fields or other spaces would be just as right, only slower to read.
            serde_json::Deserializer::from_slice(data).into_iter().next()?.ok()
        })
    }

    fn as_written(data: &[u8]) -> Option<Self> {
        fn field<'a>(data: &'a [u8], name: &[u8]) -> Option<(u64, &'a [u8])> {
            let rest = data.strip_prefix(name)?;
            let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
            (digits > 0).then(|| (number(rest), &rest[digits..]))
        }
        let (n, rest) = field(data, b"{\"n\":")?;
        let (c, rest) = field(rest, b",\"c\":")?;
        let (t, _) = field(rest, b",\"t\":")?;
        Some(Stamp {
            n,
            c: u32::try_from(c).ok()?,
            t,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_head_is_read_once_it_is_whole() {
        let text = b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: abc=\r\n\r\nrest";
        for cut in 0..text.len() - 4 {
            assert_eq!(Head::parse(&text[..cut]).unwrap(), None, "at {cut}");
        }
        let head = Head::parse(text).unwrap().unwrap();
        assert_eq!(
            (head.status, head.accept.as_deref(), head.chunked),
            (101, Some("abc="), false)
        );
        assert_eq!(&text[head.length..], b"rest");

        let head = Head::parse(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 7\r\n\r\n")
            .unwrap()
            .unwrap();
        assert!(head.chunked && head.content_length == Some(7));
        assert!(Head::parse(b"SSH-2.0-x\r\n\r\n").is_err());
    }

    #[test]
    fn chunks_are_joined_wherever_they_are_cut() {
        let body = b"5\r\nhello\r\nA;x=y\r\n, world !!\r\n0\r\n\r\n";
        for cut in 0..=body.len() {
            let (mut decoder, mut out) = (Dechunker::default(), Vec::new());
            decoder.decode(&body[..cut], &mut out).unwrap();
            decoder.decode(&body[cut..], &mut out).unwrap();
            assert_eq!(out, b"hello, world !!", "cut at {cut}");
            assert_eq!(decoder, Dechunker::Done);
        }
        for bad in [&b"\r\n"[..], b"zz\r\n", b"1\r\nab\r\n"] {
            assert!(Dechunker::default().decode(bad, &mut Vec::new()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn blocks_come_out_whole_and_comments_do_not() {
        let stream =
            b"retry: 5\nid: 7\nevent: airwave.subscribed\ndata: {}\n\n:\n\nid: 8\nevent: tick\ndata: {\"n\":1}\n\nid: 9\nda";
        let mut seen = Vec::new();
        let used = sse_blocks(stream, |block| {
            seen.push((number(block.id), block.event.to_vec(), block.data.to_vec()))
        });
        assert_eq!(
            seen,
            [
                (7, b"airwave.subscribed".to_vec(), b"{}".to_vec()),
                (8, b"tick".to_vec(), b"{\"n\":1}".to_vec())
            ]
        );
        assert_eq!(&stream[used..], b"id: 9\nda");
    }

    #[test]
    fn frames_are_read_wherever_they_are_cut() {
        let mut long = vec![0x81, 126, 1, 0];
        long.extend([b'x'; 256]);
        for cut in 0..long.len() {
            assert_eq!(Frame::parse(&long[..cut]).unwrap(), None, "at {cut}");
        }
        let frame = Frame::parse(&long).unwrap().unwrap();
        assert_eq!((frame.opcode, frame.payload.len(), frame.length), (1, 256, 260));

        let ping = Frame::parse(&[0x89, 2, 1, 2, 99]).unwrap().unwrap();
        assert_eq!((ping.opcode, ping.payload, ping.length), (9, &[1, 2][..], 4));
        for bad in [[0x01, 0], [0xc1, 0], [0x81, 0x80], [0x81, 127]] {
            assert!(Frame::parse(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn notices_and_events_are_told_apart() {
        let event = br#"{"channel":"a","id":"17","event":"tick","data":{"n":3,"c":0,"t":9}}"#;
        let Text::Event { position: 17, data } = Text::parse(event).unwrap() else {
            panic!()
        };
        assert_eq!(Stamp::parse(data), Some(Stamp { n: 3, c: 0, t: 9 }));
        let notice = br#"{"type":"subscribed","channel":"a","cursor":"12","resumed":true}"#;
        assert_eq!(
            Text::parse(notice).unwrap(),
            Text::Notice {
                kind: "subscribed",
                cursor: 12
            }
        );
        assert!(Text::parse(b"[]").is_err());
    }

    #[test]
    fn a_stamp_survives_the_way_and_fills_its_size() {
        let stamp = Stamp {
            n: 123,
            c: 4,
            t: 5_678_901_234,
        };
        let json = stamp.to_json(128);
        assert_eq!(json.len(), 128);
        assert_eq!(Stamp::parse(json.as_bytes()), Some(stamp));
        assert_eq!(
            Stamp::as_written(json.as_bytes()),
            Some(stamp),
            "the fast path reads what is written"
        );
        assert_eq!(
            Stamp::parse(br#"{ "t": 3, "c": 2, "n": 1 } tail"#),
            Some(Stamp { n: 1, c: 2, t: 3 })
        );
        assert_eq!(Stamp::parse(b"{\"n\":1}"), None);
        assert_eq!(
            Stamp::parse(Stamp { n: 1, c: 1, t: 1 }.to_json(0).as_bytes()),
            Some(Stamp { n: 1, c: 1, t: 1 })
        );
    }
}
