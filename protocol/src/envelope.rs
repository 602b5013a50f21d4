//! The envelope of an event.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::error::ReadError;
use crate::fields::{Fields, need};
use crate::payload::{Attributes, Payload};
use crate::text::{self, owned};

/// An event as one JSON object: a WebSocket frame without a `type`, the data of an event on a
/// stream of several channels, an item of a page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Envelope<'a> {
    /// The channel.
    pub channel: Cow<'a, str>,
    /// The position, in decimal.
    pub id: Cow<'a, str>,
    /// The event's name.
    pub event: Cow<'a, str>,
    /// What the event is about, if it says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub key: Option<Cow<'a, str>>,
    /// Texts beside the payload; absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Attributes"))]
    pub attributes: Option<Attributes<'a>>,
    /// What was published.
    #[serde(flatten)]
    pub payload: Payload<'a>,
}

impl<'a> Envelope<'a> {
    /// An event without a key and without attributes.
    pub fn new(
        channel: impl Into<Cow<'a, str>>,
        id: impl Into<Cow<'a, str>>,
        event: impl Into<Cow<'a, str>>,
        payload: Payload<'a>,
    ) -> Self {
        Self {
            channel: channel.into(),
            id: id.into(),
            event: event.into(),
            key: None,
            attributes: None,
            payload,
        }
    }

    /// Gives the event a key.
    pub fn with_key(mut self, key: impl Into<Cow<'a, str>>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Gives the event attributes.
    pub fn with_attributes(mut self, attributes: Attributes<'a>) -> Self {
        self.attributes = Some(attributes);
        self
    }

    /// Reads an envelope.
    ///
    /// # Errors
    /// The text is no JSON object, or lacks a field.
    pub fn parse(text: &'a str) -> Result<Self, ReadError> {
        Self::of_fields(serde_json::from_str(text)?)
    }

    pub(crate) fn of_fields(fields: Fields<'a>) -> Result<Self, ReadError> {
        let payload = Payload::of_fields(fields.data, text::text(fields.text), text::text(fields.base64))?;
        Ok(Self {
            payload: payload.ok_or(ReadError::NoPayload)?,
            channel: need!(fields, "event", channel).0,
            id: need!(fields, "event", id).0,
            event: need!(fields, "event", event).0,
            key: text::text(fields.key),
            attributes: fields.attributes,
        })
    }

    /// Returns the position as a number. `None`: `id` is no decimal number.
    pub fn position(&self) -> Option<u64> {
        self.id.parse().ok()
    }

    /// Returns the same event, borrowed from nothing.
    pub fn into_owned(self) -> Envelope<'static> {
        Envelope {
            channel: owned(self.channel),
            id: owned(self.id),
            event: owned(self.event),
            key: self.key.map(owned),
            attributes: self.attributes.map(Attributes::into_owned),
            payload: self.payload.into_owned(),
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Envelope<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fields = Fields::deserialize(deserializer)?;
        Self::of_fields(fields).map_err(serde::de::Error::custom)
    }
}
