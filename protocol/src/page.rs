//! The JSON over a channel's URL.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::envelope::Envelope;
use crate::error::ReadError;
use crate::member::Member;

/// A page of a channel's history, and how to listen: the answer to `GET /channels/{name}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Page<'a> {
    /// The channel.
    #[serde(borrow)]
    pub channel: Cow<'a, str>,
    /// Where a stream starts that continues exactly after this page.
    #[serde(borrow)]
    pub cursor: Cow<'a, str>,
    /// False if events after the cursor that was given are lost.
    pub complete: bool,
    /// Whether a further page exists.
    pub more: bool,
    /// Whether the channel has ended.
    pub ended: bool,
    /// The transport that the server prefers; `null` if the channel's rule lists none that it has.
    pub transport: Option<String>,
    /// The transports of the channel.
    pub transports: Vec<String>,
    /// The path of this channel as the client reached it.
    #[serde(borrow)]
    pub url: Cow<'a, str>,
    /// Events, oldest first.
    #[serde(borrow)]
    pub events: Vec<Envelope<'a>>,
    /// Members, with `?presence=true`.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Vec<Member>"))]
    pub members: Option<Vec<Member<'a>>>,
    /// Whether there are members behind these, with `?presence=true`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "bool"))]
    pub members_more: Option<bool>,
}

impl<'a> Page<'a> {
    /// An empty page of a channel: nothing is lost, nothing follows.
    pub fn new(channel: impl Into<Cow<'a, str>>, cursor: impl Into<Cow<'a, str>>, url: impl Into<Cow<'a, str>>) -> Self {
        Self {
            channel: channel.into(),
            cursor: cursor.into(),
            complete: true,
            more: false,
            ended: false,
            transport: None,
            transports: Vec::new(),
            url: url.into(),
            events: Vec::new(),
            members: None,
            members_more: None,
        }
    }

    /// Reads a page.
    ///
    /// # Errors
    /// The body is not JSON of this shape.
    pub fn parse(body: &'a [u8]) -> Result<Self, ReadError> {
        Ok(serde_json::from_slice(body)?)
    }
}
