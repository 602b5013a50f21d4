//! This module holds names and keys. Each exists only if it is valid, so that no format has to
//! check it again.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bounds names and keys, in bytes.
pub const MAX_NAME: usize = 255;

/// Names of events and attributes with this prefix belong to the protocol.
pub const RESERVED_PREFIX: &str = "airwave.";

/// This error says why a name, a key, a payload or a setting was not accepted. The text says what
/// to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(String);

impl Invalid {
    /// Makes an error from a sentence that says what is wrong and what to write instead. The node
    /// may show it to the client that sent the value.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

fn name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.~:@=+".contains(&byte)
}

fn check_length(kind: &str, text: &str) -> Result<(), Invalid> {
    match text.len() {
        0 => Err(Invalid(format!("{kind} must not be empty"))),
        1..=MAX_NAME => Ok(()),
        n => Err(Invalid(format!("{kind} has {n} bytes; at most {MAX_NAME} are allowed"))),
    }
}

/// A channel name has 1 to 255 bytes. Its segments hold ASCII letters, digits and `-_.~:@=+`, and
/// `/` separates them. No segment is empty, `.` or `..`. Cloning is cheap, because clones share the
/// text.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelName(Arc<str>);

impl ChannelName {
    /// Checks `text` and takes it as a channel name.
    pub fn new(text: &str) -> Result<Self, Invalid> {
        check_length("a channel name", text)?;
        for segment in text.split('/') {
            match segment {
                "" => return Err(Invalid("a channel name must not begin or end with '/' or hold '//'".into())),
                "." | ".." => return Err(Invalid("a channel name must not hold a segment '.' or '..'".into())),
                _ if segment.bytes().all(name_byte) => {}
                _ => {
                    return Err(Invalid(
                        "a channel name is made of letters, digits, '-', '_', '.', '~', ':', '@', '=', '+' and '/'".into(),
                    ));
                }
            }
        }
        Ok(Self(text.into()))
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An event name is written as a channel name, but without `/`. It does not begin with `airwave.`,
/// which belongs to the protocol.
///
/// `error` and `open` are names that a browser's `EventSource` fires itself
/// ([`EventName::is_fired_by_event_source`]).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventName(pub(super) Arc<str>);

impl EventName {
    /// Checks `text` and takes it as an event name.
    pub fn new(text: &str) -> Result<Self, Invalid> {
        let name = Self::from_stored(text)?;
        match name.is_reserved() {
            true => Err(Self::reserved()),
            false => Ok(name),
        }
    }

    /// Returns the name of the event that ends a channel. This version stores no other reserved
    /// name.
    pub fn end() -> Self {
        Self("airwave.end".into())
    }

    /// Returns the name of an event that a store holds and this version cannot read.
    pub(super) fn unreadable() -> Self {
        Self("airwave.unreadable".into())
    }

    /// Takes a name back from a broker's store. A later version may have reserved names there that
    /// this version does not know. Callers can read such names, and not publish them.
    pub fn from_stored(text: &str) -> Result<Self, Invalid> {
        check_length("an event name", text)?;
        if !text.bytes().all(name_byte) {
            return Err(Invalid(
                "an event name is made of letters, digits, '-', '_', '.', '~', ':', '@', '=' and '+'".into(),
            ));
        }
        Ok(Self(text.into()))
    }

    /// Returns whether the name begins with [`RESERVED_PREFIX`].
    pub fn is_reserved(&self) -> bool {
        self.0.starts_with(RESERVED_PREFIX)
    }

    /// Returns the error for a caller that publishes under such a name.
    pub(crate) fn reserved() -> Invalid {
        Invalid(format!("event names that begin with '{RESERVED_PREFIX}' are reserved"))
    }

    /// Returns whether a browser's `EventSource` fires events of this name itself. A page that
    /// receives one cannot tell it from a broken or an opened connection.
    ///
    /// # Examples
    ///
    /// ```
    /// use airwave_core::EventName;
    ///
    /// assert!(EventName::new("error")?.is_fired_by_event_source());
    /// assert!(!EventName::new("failed")?.is_fired_by_event_source());
    /// # Ok::<(), airwave_core::event::Invalid>(())
    /// ```
    pub fn is_fired_by_event_source(&self) -> bool {
        matches!(&*self.0, "error" | "open")
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A key names the thing that an event is about (`AAPL`, `player-7`). It is the unit of conflation.
/// It has 1 to 255 bytes and no control characters.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(pub(super) Arc<str>);

impl Key {
    /// Checks `text` and takes it as a key.
    pub fn new(text: &str) -> Result<Self, Invalid> {
        check_length("a key", text)?;
        if text.chars().any(char::is_control) {
            return Err(Invalid("a key must not hold control characters".into()));
        }
        Ok(Self(text.into()))
    }

    /// Returns the key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An idempotency key makes a repeated publish the same publish. It has 1 to 255 visible ASCII
/// characters. It counts per channel, for [`crate::broker::IDEMPOTENCY_WINDOW`].
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IdempotencyKey(Arc<str>);

impl IdempotencyKey {
    /// Checks `text` and takes it as an idempotency key.
    pub fn new(text: &str) -> Result<Self, Invalid> {
        check_length("an idempotency key", text)?;
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Invalid("an idempotency key is made of visible ASCII characters".into()));
        }
        Ok(Self(text.into()))
    }

    /// Returns the key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

macro_rules! text_value {
    ($($type:ident),*) => {$(
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { fmt::Debug::fmt(self.as_str(), f) }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(self.as_str()) }
        }
        impl FromStr for $type {
            type Err = Invalid;
            fn from_str(text: &str) -> Result<Self, Invalid> { Self::new(text) }
        }
        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str { self.as_str() }
        }
        impl std::borrow::Borrow<str> for $type {
            fn borrow(&self) -> &str { self.as_str() }
        }
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> { serializer.serialize_str(self.as_str()) }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                Self::new(&text).map_err(serde::de::Error::custom)
            }
        }
    )*};
}
text_value!(ChannelName, EventName, Key, IdempotencyKey);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channel_names_are_literal_paths() {
        for good in ["a", "orders/abc123", "chat/room-1/~x:@=+._", &"x".repeat(255)] {
            assert_eq!(ChannelName::new(good).unwrap().as_str(), good);
        }
        for bad in [
            "",
            "/a",
            "a/",
            "a//b",
            ".",
            "a/../b",
            "a/.",
            "a b",
            "a\nb",
            "a\0",
            "é",
            "a*",
            "a>",
            "a?b",
            "a#b",
            "{x}",
            &"x".repeat(256),
        ] {
            assert!(ChannelName::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn event_names_have_no_slash_and_no_reserved_prefix() {
        for good in ["message", "order-update", "airwave", "Airwave.x"] {
            assert!(EventName::new(good).is_ok(), "{good:?}");
        }
        for bad in ["", "a/b", "airwave.gap", "a b", "a\rb", ";base64"] {
            assert!(EventName::new(bad).is_err(), "{bad:?}");
        }
        for (text, is_reserved) in [("airwave.gap", true), ("airwave.", true), ("airwave", false)] {
            assert_eq!(EventName::from_stored(text).unwrap().is_reserved(), is_reserved, "{text}");
        }
        assert!(EventName::from_stored("airwave.a/b").is_err());
    }
}
