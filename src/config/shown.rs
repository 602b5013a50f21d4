//! Effective values, as people and machines are shown them.

use std::fmt;
use std::time::Duration;

use super::value::{Bytes, Span};

/// An effective value, ready to be shown; secrets never are.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Shown {
    /// Text.
    Text(String),
    /// A number.
    Count(u64),
    /// A number of bytes.
    Bytes(u64),
    /// A duration.
    Duration(Duration),
    /// Yes or no.
    Flag(bool),
    /// Several texts.
    Words(Vec<String>),
    /// A secret: whether there is one.
    Secret(bool),
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Shown::Text(text) => f.write_str(text),
            Shown::Count(n) => n.fmt(f),
            Shown::Bytes(n) => Bytes(*n).fmt(f),
            Shown::Duration(duration) => Span(*duration).fmt(f),
            Shown::Flag(flag) => flag.fmt(f),
            Shown::Words(words) if words.is_empty() => f.write_str("none"),
            Shown::Words(words) => f.write_str(&words.join(", ")),
            Shown::Secret(true) => f.write_str("set, not shown"),
            Shown::Secret(false) => f.write_str("none"),
        }
    }
}

impl From<&Shown> for serde_json::Value {
    /// Durations as text ("15s"), sizes as numbers of bytes, secrets as whether they are set.
    fn from(shown: &Shown) -> Self {
        match shown {
            Shown::Text(text) => text.as_str().into(),
            Shown::Count(n) | Shown::Bytes(n) => (*n).into(),
            Shown::Duration(duration) => Span(*duration).to_string().into(),
            Shown::Flag(flag) | Shown::Secret(flag) => (*flag).into(),
            Shown::Words(words) => words.as_slice().into(),
        }
    }
}
