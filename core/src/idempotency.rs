//! Brokers see each idempotency key in the space of its source, with a fingerprint of the first
//! payload.
//!
//! A caller writes an [`IdempotencyKey`]. A broker stores a [`ScopedKey`]: the caller's key, its
//! source, and the number of the publish within one handled message. Two sources never meet in one
//! scoped key, and no caller can write a key that Airwave derives.

use std::fmt;

use sha2::{Digest, Sha256};

use crate::address::AddressKey;
use crate::event::{IdempotencyKey, Message};

/// Airwave takes a key of at least this many characters for unguessable, if its client has no user
/// id. A UUID without dashes has 32 characters.
pub const UNGUESSABLE: usize = 20;

/// A source names the client that chose an idempotency key. Keys of different sources are different
/// keys, and none is one of the application's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeySource<'a> {
    /// A client with a user id chose the key. The source covers all of its connections.
    User(&'a str),
    /// A client without a user id chose the key, over one WebSocket. The numbers are the node's and
    /// the connection's.
    ///
    /// All clients without a user id share the keys of at least [`UNGUESSABLE`] characters instead.
    /// So such a client can repeat a message over its next connection.
    Connection(u64, u64),
    /// A client without a user id chose the key, over single requests. Such clients share long
    /// keys, as for [`KeySource::Connection`].
    Address(Option<AddressKey>),
}

/// A broker stores an idempotency key in this form. Two keys are the same if their texts are the
/// same, whatever their payloads.
#[derive(Clone)]
pub struct ScopedKey {
    text: Box<str>,
    /// Holds the fingerprint of the message that the source sent. `None` stands for the fingerprint
    /// of what is published under the key.
    fingerprint: Option<Fingerprint>,
}

impl PartialEq for ScopedKey {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for ScopedKey {}

impl std::hash::Hash for ScopedKey {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl ScopedKey {
    /// Makes the key of a publish by the application: `POST /publish`, or
    /// [`Channel::publish_with`](crate::Channel::publish_with) with a key.
    pub fn backend(key: &IdempotencyKey) -> Self {
        Self {
            text: key.as_str().into(),
            fingerprint: None,
        }
    }

    /// Makes the key of the publish number `part`, counted from zero, that one client's message
    /// leads to.
    ///
    /// When the client repeats the message, a handler may make something else of it. So the
    /// client's message is what must be the same.
    pub fn client(source: KeySource<'_>, key: &IdempotencyKey, part: u32, fingerprint: Fingerprint) -> Self {
        // A caller's key has neither spaces nor more than 255 bytes. So no two of these are the
        // same text, none is a backend's own key, and the longest has 310 bytes.
        let scope = match source {
            KeySource::User(user) => format!(" u{}", Fingerprint::of(&[user.as_bytes()])),
            _ if key.as_str().len() >= UNGUESSABLE => " a".to_owned(),
            KeySource::Connection(node, connection) => format!(" c{node:x}-{connection:x}"),
            KeySource::Address(Some(address)) => format!(" i{address}"),
            KeySource::Address(None) => " i".to_owned(),
        };
        let part = if part == 0 { String::new() } else { format!(" {part}") };
        Self {
            text: format!("{key}{scope}{part}").into(),
            fingerprint: Some(fingerprint),
        }
    }

    /// Returns the text that stands for the key in a broker's store: visible ASCII and spaces, at
    /// most 310 bytes. The application's keys stand there as they are. All others hold a space,
    /// which no caller's key holds.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub(crate) fn fingerprint(&self) -> Option<Fingerprint> {
        self.fingerprint
    }
}

impl From<IdempotencyKey> for ScopedKey {
    fn from(key: IdempotencyKey) -> Self {
        Self::backend(&key)
    }
}

impl fmt::Debug for ScopedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// A fingerprint tells two payloads apart. It is the first half of a SHA-256, the same on every
/// node and in every build.
///
/// An attacker cannot make this hash collide. That matters because the hash tells user ids apart
/// too.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 16]);

impl Fingerprint {
    /// Returns the fingerprint of a message, and of whether the channel ends behind it.
    pub fn of_message(message: &Message, and_end: bool) -> Self {
        let attributes = message.attributes.print();
        let parts = [
            &[message.data.kind(), u8::from(and_end), u8::from(message.key.is_some())],
            message.event.as_str().as_bytes(),
            message.key.as_ref().map_or("", |key| key.as_str()).as_bytes(),
            message.data.as_bytes(),
            attributes.as_bytes(),
        ];
        // Nodes of version 0.1 know only the parts before the attributes, and all nodes must agree.
        Self::of(if attributes.is_empty() { &parts[..4] } else { &parts })
    }

    fn of(parts: &[&[u8]]) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let mut half = [0; 16];
        half.copy_from_slice(&hash.finalize()[..16]);
        Self(half)
    }

    /// Reads the text that [`fmt::Display`] writes.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        u128::from_str_radix(text, 16).ok().map(|number| Self(number.to_be_bytes()))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::net::IpAddr;

    use super::*;
    use crate::event::{Attributes, Data, EventName, Key};

    fn key(text: &str) -> IdempotencyKey {
        IdempotencyKey::new(text).unwrap()
    }

    fn message_of(text: &str) -> Message {
        Message::new(EventName::new("said").unwrap(), Data::text(text))
    }

    #[test]
    fn sources_and_parts_never_meet_and_no_caller_can_write_a_derived_key() {
        let print = Fingerprint::of_message(&message_of("x"), false);
        let long = "k".repeat(255);
        let mut texts = Vec::new();
        for caller in ["k", "k~end", "k~1", "k-1", &long] {
            let key = key(caller);
            texts.push(ScopedKey::backend(&key));
            for source in [
                KeySource::User("ann"),
                KeySource::User("bob"),
                KeySource::User(""),
                KeySource::Connection(1, 11),
                KeySource::Connection(11, 1),
                KeySource::Address(None),
                KeySource::Address(Some(IpAddr::from([127, 0, 0, 1]).into())),
            ] {
                // A long key of a client without a user id is one key, whatever the connection.
                if caller.len() >= UNGUESSABLE && !matches!(source, KeySource::User(_) | KeySource::Address(None)) {
                    continue;
                }
                for part in [0, 1, 2, 11] {
                    texts.push(ScopedKey::client(source, &key, part, print));
                }
            }
        }
        let distinct: HashSet<_> = texts.iter().map(ScopedKey::as_str).collect();
        assert_eq!(distinct.len(), texts.len());
        for text in texts {
            assert!(text.as_str().len() <= 310 && text.as_str().bytes().all(|byte| matches!(byte, b' '..=b'~')));
        }
        let longest = ScopedKey::client(KeySource::User("ann"), &key(&long), u32::MAX, print);
        assert!(longest.as_str().len() <= 310, "{}", longest.as_str().len());
    }

    #[test]
    fn a_long_key_of_a_client_without_a_user_is_the_same_over_its_next_connection() {
        let print = Fingerprint::of_message(&message_of("x"), false);
        let over = |source, text: &str| ScopedKey::client(source, &key(text), 0, print);
        let long = "0123456789abcdef0123456789abcdef";
        assert_eq!(over(KeySource::Connection(1, 2), long), over(KeySource::Address(None), long));
        assert_ne!(over(KeySource::Connection(1, 2), "k"), over(KeySource::Connection(1, 3), "k"));
    }

    #[test]
    fn fingerprints_tell_every_part_of_a_message_apart() {
        let print = |message: &Message| Fingerprint::of_message(message, false);
        let message = message_of("x");
        let other_name = Message::new(EventName::new("sai").unwrap(), Data::text("dx"));
        let other_kind = Message::new(EventName::new("said").unwrap(), Data::binary(&b"x"[..]));
        let with_key = message_of("x").with_key(Key::new("k").unwrap());
        let with = |name, value| message_of("x").with_attributes(Attributes::new().with(name, value).unwrap());
        let (tagged, elsewhere) = (with("a", "1"), with("a1", ""));
        for other in [&message_of("y"), &other_name, &other_kind, &with_key, &tagged, &elsewhere] {
            assert_ne!(print(&message), print(other));
        }
        assert_ne!(print(&tagged), print(&elsewhere));
        assert_ne!(Fingerprint::of_message(&message, true), print(&message));
        // Nodes of other builds must agree.
        assert_eq!(print(&message).to_string(), FIXED);
        assert_eq!(Fingerprint::parse(FIXED), Some(print(&message)));
        assert_eq!(Fingerprint::parse(&FIXED[1..]), None);
        assert_eq!(Fingerprint::parse(&format!("+{}", &FIXED[1..])), None);
    }

    const FIXED: &str = "296d66e918a21d8ad949316f37a078b3";
}
