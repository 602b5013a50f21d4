//! What a server says that is no event: the frames with a `type`.

use std::borrow::Cow;

use serde::Serialize;

use crate::code::GapReason;
use crate::error::Failure;
use crate::member::Member;
use crate::payload::Json;
use crate::text::owned;

/// A confirmed subscription.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Subscribed<'a> {
    /// The number of the command, if it had one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "u64"))]
    pub id: Option<u64>,
    /// The channel.
    pub channel: Cow<'a, str>,
    /// The position before the first event that follows.
    pub cursor: Cow<'a, str>,
    /// Whether a cursor was given and everything after it follows.
    pub resumed: bool,
}

/// An ended subscription.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Unsubscribed<'a> {
    /// The number of the command, if it had one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "u64"))]
    pub id: Option<u64>,
    /// The channel.
    pub channel: Cow<'a, str>,
}

/// An announced loss.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Gap<'a> {
    /// The channel.
    pub channel: Cow<'a, str>,
    /// The last position before the loss; `null` if the listener's cursor could not be read.
    pub after: Option<Cow<'a, str>>,
    /// The stream goes on after this position.
    pub cursor: Cow<'a, str>,
    /// Why: one of [`GapReason`], or one of a newer server.
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::schema::gap_reason"))]
    pub reason: Cow<'a, str>,
}

impl Gap<'_> {
    /// Returns the reason. `None`: it is one of a newer server.
    pub fn known_reason(&self) -> Option<GapReason> {
        GapReason::from_text(&self.reason)
    }
}

/// The end of a channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct End<'a> {
    /// The channel.
    pub channel: Cow<'a, str>,
    /// The end's position.
    pub cursor: Cow<'a, str>,
}

/// What the handler answers to a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Reply<'a> {
    /// The number of the command.
    pub id: u64,
    /// The answer; `null` if the handler has nothing to say.
    pub data: Json<'a>,
}

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct ErrorFrame<'a> {
    /// The number of the command; `null`: it had none, or the whole connection is refused.
    pub id: Option<u64>,
    /// The channel, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub channel: Option<Cow<'a, str>>,
    /// What went wrong.
    #[serde(flatten)]
    pub error: Failure<'a>,
}

/// The answer to a `ping`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Pong {
    /// The number of the ping, if it had one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "u64"))]
    pub id: Option<u64>,
}

/// A page of who is in a channel. The first page of a new list follows one without `more`, or none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Members<'a> {
    /// The channel.
    pub channel: Cow<'a, str>,
    /// Each once in the whole list, users in the order of their ids, the anonymous last.
    pub members: Vec<Member<'a>>,
    /// Whether another page follows.
    pub more: bool,
}

/// A member that joined, left or changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct MemberChange<'a> {
    /// The channel.
    pub channel: Cow<'a, str>,
    /// The member as it is now.
    pub member: Member<'a>,
}

/// A frame whose type says everything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Empty {}

/// A frame whose type this crate does not know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct UnknownFrame<'a> {
    /// The type.
    #[serde(rename = "type")]
    pub kind: Cow<'a, str>,
}

/// A constructor of a frame: its fields are public, but more may come.
macro_rules! new {
    ($($(#[$doc:meta])* $type:ident { $($field:ident: $value:ty),* })*) => {$(
        impl<'a> $type<'a> {
            $(#[$doc])*
            pub fn new($($field: impl Into<$value>),*) -> Self {
                Self { $($field: $field.into()),* }
            }
        }
    )*};
}

new! {
    /// A subscription that stands.
    Subscribed { id: Option<u64>, channel: Cow<'a, str>, cursor: Cow<'a, str>, resumed: bool }
    /// A subscription that is over.
    Unsubscribed { id: Option<u64>, channel: Cow<'a, str> }
    /// A loss.
    Gap { channel: Cow<'a, str>, after: Option<Cow<'a, str>>, cursor: Cow<'a, str>, reason: Cow<'a, str> }
    /// The end of a channel.
    End { channel: Cow<'a, str>, cursor: Cow<'a, str> }
    /// An answer to a message.
    Reply { id: u64, data: Json<'a> }
    /// A refusal.
    ErrorFrame { id: Option<u64>, channel: Option<Cow<'a, str>>, error: Failure<'a> }
    /// A page of members.
    Members { channel: Cow<'a, str>, members: Vec<Member<'a>>, more: bool }
    /// A member that joined, left or changed.
    MemberChange { channel: Cow<'a, str>, member: Member<'a> }
}

impl Pong {
    /// The answer to the ping with this number.
    pub fn new(id: Option<u64>) -> Self {
        Self { id }
    }
}

impl MemberChange<'_> {
    /// Returns the same change, borrowed from nothing.
    pub fn into_owned(self) -> MemberChange<'static> {
        MemberChange::new(owned(self.channel), self.member.into_owned())
    }
}
