//! This module writes and reads messages as brokers store them (docs/reference/stored-format.md).
//!
//! Nodes of several versions share a broker while an installation is upgraded. So a node reads
//! everything that it finds. Unknown data becomes an opaque payload or a hidden message, and never
//! an error for the channel.

use bytes::Bytes;

use super::attributes::{Attributes, hex};
use super::data::Data;
use super::message::Message;
use super::names::{EventName, Key};

/// A node writes this version for messages that version 1 cannot express. The number is the first
/// byte.
const VERSION_2: u8 = b'2';

/// This version marks a payload that is a whole unreadable message.
const UNREADABLE: u8 = 0;

impl Message {
    /// Writes the message as brokers store it, behind what `into` holds.
    ///
    /// Version 0.1 writes a message without attributes in the same way: [`Data::kind`], the lengths
    /// of name and key as two hexadecimal digits each, name, key, payload. A message with
    /// attributes begins with `2`, and the same parts follow. The length of the attributes stands
    /// as four digits behind the other lengths, and the attributes stand behind the key.
    ///
    /// A message that [`Message::from_stored`] has read keeps its bytes.
    pub fn store(&self, into: &mut Vec<u8>) {
        let key = self.key.as_ref().map_or("", |key| key.as_str());
        let version = match &self.data {
            Data::Opaque { version: UNREADABLE, .. } => {
                into.extend_from_slice(self.data.as_bytes());
                return;
            }
            Data::Opaque { version, .. } if *version >= VERSION_2 => Some(*version),
            _ if self.attributes.is_stored() => Some(VERSION_2),
            // Version 1 has small letters for kinds. Another byte in front would read as something
            // else: on NATS a capital letter is a mark.
            Data::Opaque { kind, .. } if !kind.is_ascii_lowercase() => Some(VERSION_2),
            _ => None,
        };
        into.reserve(5 + self.weight());
        into.extend(version);
        into.push(self.data.kind());
        // Name and key are at most 255 bytes long, and a key is never empty.
        into.extend_from_slice(format!("{:02x}{:02x}", self.event.as_str().len(), key.len()).as_bytes());
        let attributes = version.map(|_| self.attributes.store());
        if let Some(attributes) = &attributes {
            into.extend_from_slice(format!("{:04x}", attributes.len()).as_bytes());
        }
        into.extend_from_slice(self.event.as_str().as_bytes());
        into.extend_from_slice(key.as_bytes());
        into.extend_from_slice(attributes.unwrap_or_default().as_bytes());
        into.extend_from_slice(self.data.as_bytes());
    }

    /// Reads a message from a broker's store. [`Message::store`] wrote it, and it takes all of
    /// `bytes`.
    ///
    /// A payload of an unknown kind or of a later version is [opaque](Data::Opaque). Bytes that are
    /// no message become one with a reserved name, so that the event keeps its position and
    /// [is hidden](crate::Event::is_hidden).
    pub fn from_stored(bytes: &Bytes) -> Self {
        read(bytes).unwrap_or_else(|| Self {
            event: EventName::unreadable(),
            data: Data::Opaque {
                version: UNREADABLE,
                kind: bytes.first().copied().unwrap_or_default(),
                bytes: bytes.clone(),
            },
            key: None,
            attributes: Attributes::new(),
        })
    }
}

/// Reads a message. Returns `None` if its header is not one.
fn read(bytes: &Bytes) -> Option<Message> {
    let text = |from: usize, length: usize| std::str::from_utf8(bytes.get(from..from + length)?).ok();
    let number = |from: usize, digits: usize| hex(text(from, digits)?);
    let (version, kind) = match bytes.first()? {
        kind @ b'a'..=b'z' => (None, *kind),
        version @ VERSION_2..=b'9' => (Some(*version), *bytes.get(1)?),
        _ => return None,
    };
    let lengths = 1 + usize::from(version.is_some());
    let (name_bytes, key_bytes) = (number(lengths, 2)?, number(lengths + 2, 2)?);
    let (name, block_bytes) = match version {
        None => (lengths + 4, 0),
        Some(_) => (lengths + 8, number(lengths + 4, 4)?),
    };
    let (key, block) = (name + name_bytes, name + name_bytes + key_bytes);
    let payload = bytes.get(block + block_bytes..).map(|payload| bytes.slice_ref(payload))?;
    let event = EventName::from_stored(text(name, name_bytes)?).ok()?;
    let key = match text(key, key_bytes)? {
        "" => None,
        key => Some(Key::new(key).ok()?),
    };
    let attributes = Attributes::from_stored(text(block, block_bytes)?)?;
    // Version 2 expresses what version 1 cannot, and has the same kinds of payload.
    let data = match version {
        None => Data::from_stored(kind, payload),
        Some(VERSION_2) => Data::from_stored_as(VERSION_2, kind, payload),
        Some(version) => Data::Opaque {
            version,
            kind,
            bytes: payload,
        },
    };
    Some(Message {
        event,
        data,
        key,
        attributes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(message: &Message) -> Bytes {
        let mut bytes = Vec::new();
        message.store(&mut bytes);
        bytes.into()
    }

    fn message_of(data: Data) -> Message {
        Message::new(EventName::new("said").unwrap(), data)
    }

    fn attributes() -> Attributes {
        Attributes::new()
            .with("content-type", "text/plain; a:b")
            .unwrap()
            .with("t", "é")
            .unwrap()
    }

    #[test]
    fn a_kind_that_is_no_small_letter_is_never_the_first_byte() {
        for kind in [b'E', b'M', b'+', b'3', 0, 0xff] {
            let data = Data::from_stored(kind, Bytes::from_static(b"payload"));
            let message = Message::new(EventName::new("said").unwrap(), data);
            let mut bytes = Vec::new();
            message.store(&mut bytes);
            assert_eq!(bytes[0], VERSION_2, "{kind}");
            let back = Message::from_stored(&bytes.into());
            assert_eq!(
                (back.event, back.data.kind(), back.data.as_bytes()),
                (message.event, kind, &b"payload"[..])
            );
        }
    }

    #[test]
    fn messages_come_back_from_a_store_as_they_were() {
        let long = "x".repeat(255);
        for (name, key, data) in [
            ("said", None, Data::text("")),
            ("said", Some("k:1"), Data::text("a:b:c\n")),
            (&long[..], Some(&long[..]), Data::binary(vec![0, 255, b':'])),
            ("s", Some("é"), Data::json_text("[1]").unwrap()),
            ("M", None, Data::text("M")),
        ] {
            let mut message = Message::new(EventName::new(name).unwrap(), data);
            message.key = key.map(|key| Key::new(key).unwrap());
            let bytes = stored(&message);
            assert_eq!(bytes.len(), 5 + message.weight());
            assert_eq!(Message::from_stored(&bytes), message);
            let message = message.with_attributes(attributes());
            let bytes = stored(&message);
            assert_eq!(bytes.len(), 10 + 2 * 6 + message.weight());
            assert_eq!(Message::from_stored(&bytes), message);
        }
        assert_eq!(Message::from_stored(&stored(&Message::end())), Message::end());
    }

    #[test]
    fn the_bytes_of_each_version_stay_what_they_are() {
        let message = message_of(Data::text("hi")).with_key(Key::new("k").unwrap());
        assert_eq!(&stored(&message)[..], b"t0401saidkhi");
        let attributes = Attributes::new().with("a", "1").unwrap();
        let message = message.with_attributes(attributes);
        assert_eq!(&stored(&message)[..], b"2t04010008saidk010001a1hi");
    }

    #[test]
    fn a_payload_of_an_unknown_kind_or_a_later_version_is_opaque() {
        for (bytes, version, kind) in [
            ("z0401saidkhi", b'1', b'z'),
            ("2z04010008saidk010001a1hi", b'2', b'z'),
            ("2\u{7}04010000saidkhi", b'2', 7),
            ("3j04010008saidk010001a1hi", b'3', b'j'),
            ("9t04010000saidkhi", b'9', b't'),
        ] {
            let message = Message::from_stored(&Bytes::from_static(bytes.as_bytes()));
            let data = Data::Opaque {
                version,
                kind,
                bytes: Bytes::from_static(b"hi"),
            };
            assert_eq!((message.event.as_str(), &message.data), ("said", &data), "{bytes}");
            assert_eq!(message.key, Some(Key::new("k").unwrap()));
            assert_eq!(message.attributes.get("a").is_some(), bytes.contains("a1"));
            assert!(!message.is_hidden());
            assert_eq!(stored(&message), bytes);
        }
    }

    #[test]
    fn reserved_names_are_read_and_hidden() {
        for (bytes, is_hidden) in [
            ("t0b00airwave.run", true),
            ("t0b00airwave.end", false),
            ("t0700airwave", false),
        ] {
            let message = Message::from_stored(&Bytes::from_static(bytes.as_bytes()));
            assert_eq!((message.is_hidden(), stored(&message)), (is_hidden, bytes.into()), "{bytes}");
        }
    }

    #[test]
    fn what_is_no_message_is_hidden_and_stays_as_it_is() {
        let unreadable = |bytes: Bytes| {
            let message = Message::from_stored(&bytes);
            assert!(message.is_hidden(), "{bytes:?}");
            assert_eq!(stored(&message), bytes);
        };
        for message in [
            message_of(Data::text("text")),
            message_of(Data::text("text")).with_attributes(attributes()),
        ] {
            let whole = stored(&message);
            for length in 0..whole.len() - 4 {
                unreadable(whole.slice(..length));
            }
        }
        for forged in [
            "",
            "t0000",
            "X0100a",
            "t0100\n",
            "tzz00a",
            "t0101a\n",
            "t-100a",
            "t+100a",
            "tA000aaaaaaaaaa",
            "1t01000000a",
            "2",
            "2t0100",
            "2t01000001a",
            "2t01000002axx",
            "2t01000007a010002ax",
            ":t01000000a",
        ] {
            unreadable(Bytes::from_static(forged.as_bytes()));
        }
        unreadable(Bytes::from_static(b"t0100\xff"));
    }

    proptest::proptest! {
        #[test]
        fn any_message_comes_back(
            name in "[a-z:=+~@._-]{1,9}",
            key in proptest::option::of("[^\\p{Cc}]{1,9}"),
            pairs in proptest::collection::btree_map("[a-zA-Z0-9:+~@._-]{1,8}", "[^\\p{Cc}]{0,20}", 0..8),
            kind in 0..3,
            payload in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..50),
        ) {
            let text = String::from_utf8_lossy(&payload);
            let data = match kind {
                0 => Data::json(&text).unwrap(),
                1 => Data::text(&*text),
                _ => Data::binary(payload.clone()),
            };
            let mut message = Message::new(EventName::new(&name).unwrap(), data);
            message.key = key.map(|key| Key::new(&key).unwrap());
            for (name, value) in &pairs {
                message.attributes = message.attributes.clone().with(name, value).unwrap();
            }
            proptest::prop_assert_eq!(Message::from_stored(&stored(&message)), message);
        }

        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..60), version in "[2-9]?[a-z][0-9a-f]{8}") {
            for bytes in [bytes.clone(), [version.into_bytes(), bytes].concat()] {
                let message = Message::from_stored(&Bytes::from(bytes));
                proptest::prop_assert_eq!(Message::from_stored(&stored(&message)), message);
            }
        }
    }
}
