//! What backends publish over HTTP, and how the server answers.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::error::{ErrorBody, Failure, ReadError};
use crate::payload::{Attributes, Json, Payload};
use crate::text::{self, Text, owned};

/// One publication of `POST /publish`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
#[non_exhaustive]
pub struct Publication<'a> {
    /// The channel.
    pub channel: Cow<'a, str>,
    /// The event's name; absent: `message`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub event: Option<Cow<'a, str>>,
    /// What is published; `None`: only the end of the channel.
    #[serde(flatten)]
    pub payload: Option<Payload<'a>>,
    /// What the event is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub key: Option<Cow<'a, str>>,
    /// Texts beside the payload.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Attributes"))]
    pub attributes: Option<Attributes<'a>>,
    /// Makes repeating it harmless.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub idempotency_key: Option<Cow<'a, str>>,
    /// Whether the channel ends after it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub end: bool,
}

impl<'a> Publication<'a> {
    /// Publishes a payload.
    pub fn new(channel: impl Into<Cow<'a, str>>, payload: Payload<'a>) -> Self {
        Self {
            payload: Some(payload),
            ..Self::end_of(channel)
        }
        .and_end(false)
    }

    /// Ends a channel.
    pub fn end_of(channel: impl Into<Cow<'a, str>>) -> Self {
        Self {
            channel: channel.into(),
            event: None,
            payload: None,
            key: None,
            attributes: None,
            idempotency_key: None,
            end: true,
        }
    }

    /// Names the event.
    pub fn with_event(mut self, event: impl Into<Cow<'a, str>>) -> Self {
        self.event = Some(event.into());
        self
    }

    /// Says what the event is about.
    pub fn with_key(mut self, key: impl Into<Cow<'a, str>>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Gives the event attributes.
    pub fn with_attributes(mut self, attributes: Attributes<'a>) -> Self {
        self.attributes = Some(attributes);
        self
    }

    /// Makes repeating it harmless.
    pub fn with_idempotency_key(mut self, key: impl Into<Cow<'a, str>>) -> Self {
        self.idempotency_key = Some(key.into());
        self
    }

    /// Says whether the channel ends after it.
    pub fn and_end(mut self, end: bool) -> Self {
        self.end = end;
        self
    }

    /// Writes the publication as JSON.
    pub fn to_json(&self) -> String {
        // Only maps with keys that are no text cannot be written, and no publication has one.
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Publication<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct PublicationFields<'a> {
            #[serde(borrow)]
            channel: Cow<'a, str>,
            #[serde(borrow)]
            event: Option<Text<'a>>,
            #[serde(borrow, default, deserialize_with = "text::present")]
            data: Option<&'a RawValue>,
            #[serde(borrow)]
            text: Option<Text<'a>>,
            #[serde(borrow)]
            base64: Option<Text<'a>>,
            #[serde(borrow)]
            key: Option<Text<'a>>,
            #[serde(borrow)]
            attributes: Option<Attributes<'a>>,
            #[serde(borrow)]
            idempotency_key: Option<Text<'a>>,
            end: Option<bool>,
        }
        let fields = PublicationFields::deserialize(deserializer)?;
        let payload = Payload::of_fields(fields.data, text::text(fields.text), text::text(fields.base64))
            .map_err(serde::de::Error::custom)?;
        let end = fields.end.unwrap_or(false);
        if payload.is_none() && !end {
            return Err(serde::de::Error::custom(ReadError::NoPayload));
        }
        Ok(Self {
            channel: fields.channel,
            event: text::text(fields.event),
            payload,
            key: text::text(fields.key),
            attributes: fields.attributes,
            idempotency_key: text::text(fields.idempotency_key),
            end,
        })
    }
}

/// A publication that the broker holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Published<'a> {
    /// The channel.
    #[serde(borrow)]
    pub channel: Cow<'a, str>,
    /// The position of the event, or of the end.
    #[serde(borrow)]
    pub cursor: Cow<'a, str>,
    /// Whether it was published before, with the same idempotency key.
    #[serde(default)]
    pub duplicate: bool,
}

impl<'a> Published<'a> {
    /// A publication that stands at `cursor`.
    pub fn new(channel: impl Into<Cow<'a, str>>, cursor: impl Into<Cow<'a, str>>, duplicate: bool) -> Self {
        Self {
            channel: channel.into(),
            cursor: cursor.into(),
            duplicate,
        }
    }

    /// Returns the same answer, borrowed from nothing.
    pub fn into_owned(self) -> Published<'static> {
        Published::new(owned(self.channel), owned(self.cursor), self.duplicate)
    }
}

/// The answer to one publication of an array.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(untagged)]
#[non_exhaustive]
pub enum PublishAnswer<'a> {
    /// The broker holds it.
    Published(Published<'a>),
    /// It is refused, or unknown after an error that passes.
    Refused(ErrorBody<'a>),
}

impl<'de: 'a, 'a> Deserialize<'de> for PublishAnswer<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct PublishAnswerFields<'a> {
            #[serde(borrow)]
            error: Option<Failure<'a>>,
            #[serde(borrow)]
            channel: Option<Text<'a>>,
            #[serde(borrow)]
            cursor: Option<Text<'a>>,
            #[serde(default)]
            duplicate: bool,
        }
        let fields = PublishAnswerFields::deserialize(deserializer)?;
        match (fields.error, fields.channel, fields.cursor) {
            (Some(error), ..) => Ok(PublishAnswer::Refused(ErrorBody { error })),
            (None, Some(channel), Some(cursor)) => Ok(PublishAnswer::Published(Published {
                channel: channel.0,
                cursor: cursor.0,
                duplicate: fields.duplicate,
            })),
            _ => Err(serde::de::Error::custom("neither 'channel' and 'cursor' nor 'error'")),
        }
    }
}

/// The answer to `POST /channels/{name}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Answer<'a> {
    /// What the handler says; `null` if it has nothing to say.
    pub data: Json<'a>,
}

impl<'a> Answer<'a> {
    /// The answer that says `data`.
    pub fn new(data: Json<'a>) -> Self {
        Self { data }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Answer<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct AnswerFields<'a> {
            #[serde(borrow)]
            data: &'a RawValue,
        }
        let fields = AnswerFields::deserialize(deserializer)?;
        Ok(Self {
            data: fields.data.into(),
        })
    }
}
