//! What people read of one key: its meaning, its range, an example.

use std::fmt;
use std::time::Duration;

use super::value::{Bytes, Span};

/// What people read of a key.
pub(super) struct About {
    pub(super) meaning: &'static str,
    pub(super) range: Range,
    /// A value as it stands in the file.
    pub(super) example: &'static str,
    /// Said in place of the value that a configuration has by itself.
    pub(super) default: Option<&'static str>,
    /// The flag of `airwave serve` and `airwave check` that sets it.
    pub(super) flag: Option<&'static str>,
}

impl About {
    pub(super) const fn new(meaning: &'static str, range: Range, example: &'static str) -> Self {
        Self {
            meaning,
            range,
            example,
            default: None,
            flag: None,
        }
    }

    pub(super) const fn default(mut self, text: &'static str) -> Self {
        self.default = Some(text);
        self
    }

    pub(super) const fn flag(mut self, flag: &'static str) -> Self {
        self.flag = Some(flag);
        self
    }
}

/// The values that a key takes. A test holds each against what is read.
pub(super) enum Range {
    /// Described by words.
    Text(&'static str),
    /// A whole number, both bounds included.
    Count { min: u64, max: u64 },
    /// A number of bytes.
    Size { min: u64 },
    /// A duration.
    Duration { min: Duration },
    /// True or false.
    Flag,
    /// One of these words.
    Choice(fn() -> Vec<&'static str>),
}

/// As the document has it: Markdown.
impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Range::Text(words) => f.write_str(words),
            // What no machine can hold is no bound that people meet.
            Range::Count { min, max } if *max >= usize::MAX as u64 => write!(f, "at least {min}"),
            Range::Count { min, max } => write!(f, "{min} to {max}"),
            Range::Size { min } => write!(f, "bytes, or text like `\"64KiB\"`; at least {}", Bytes(*min)),
            Range::Duration { min } if min.is_zero() => f.write_str("a duration like `\"15s\"`"),
            Range::Duration { min } => write!(f, "a duration like `\"15s\"`; at least {}", Span(*min)),
            Range::Flag => f.write_str("`true`, `false`"),
            Range::Choice(words) => {
                let words: Vec<String> = words().iter().map(|word| format!("`{word}`")).collect();
                f.write_str(&words.join(", "))
            }
        }
    }
}
