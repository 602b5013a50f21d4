//! Every field that an object of a server may have. One reader for all frames: the JSON is passed
//! over once, and fields that are not here are passed over with it.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::member::Member;
use crate::payload::Attributes;
use crate::text::{self, Cursor, Text};

#[derive(Deserialize)]
pub(crate) struct Fields<'a> {
    #[serde(rename = "type", borrow)]
    pub(crate) kind: Option<Text<'a>>,
    #[serde(borrow)]
    pub(crate) channel: Option<Text<'a>>,
    /// A position of an event, a number of a command.
    #[serde(borrow)]
    pub(crate) id: Option<Cursor<'a>>,
    #[serde(borrow)]
    pub(crate) event: Option<Text<'a>>,
    #[serde(borrow)]
    pub(crate) key: Option<Text<'a>>,
    #[serde(borrow)]
    pub(crate) attributes: Option<Attributes<'a>>,
    #[serde(borrow, default, deserialize_with = "text::present")]
    pub(crate) data: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(crate) text: Option<Text<'a>>,
    #[serde(borrow)]
    pub(crate) base64: Option<Text<'a>>,
    #[serde(borrow)]
    pub(crate) cursor: Option<Cursor<'a>>,
    #[serde(borrow)]
    pub(crate) after: Option<Cursor<'a>>,
    pub(crate) resumed: Option<bool>,
    #[serde(borrow)]
    pub(crate) reason: Option<Text<'a>>,
    #[serde(borrow)]
    pub(crate) code: Option<Text<'a>>,
    #[serde(borrow)]
    pub(crate) message: Option<Text<'a>>,
    #[serde(borrow)]
    pub(crate) transport: Option<Text<'a>>,
    #[serde(borrow)]
    pub(crate) url: Option<Text<'a>>,
    #[serde(borrow)]
    pub(crate) members: Option<Vec<Member<'a>>>,
    #[serde(borrow)]
    pub(crate) member: Option<Member<'a>>,
    pub(crate) more: Option<bool>,
}

impl Fields<'_> {
    /// The number of the command that a frame answers.
    pub(crate) fn number(&self) -> Option<u64> {
        self.id.as_ref()?.0.parse().ok()
    }
}

/// The value of a field that this kind of frame always has.
macro_rules! need {
    ($fields:ident, $kind:expr, $field:ident) => {
        $fields
            .$field
            .ok_or_else(|| ReadError::missing($kind.to_owned(), stringify!($field)))?
    };
}

pub(crate) use need;
