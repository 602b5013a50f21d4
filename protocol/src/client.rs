//! Frames and messages of a client. Unknown fields are refused.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::error::ReadError;
use crate::payload::{Attributes, Payload};
use crate::text::{self, Cursor, Text};

/// The largest `id` of a command: JSON numbers beyond it are not exact in JavaScript.
pub const MAX_ID: u64 = (1 << 53) - 1;

/// A JSON frame of a client on a WebSocket.
///
/// # Examples
/// ```
/// use airwave_protocol::{ClientFrame, Subscribe};
///
/// let frame = ClientFrame::Subscribe(Subscribe::new("chat/lobby").with_id(1).after("17"));
/// assert_eq!(frame.to_json(), r#"{"type":"subscribe","id":1,"channel":"chat/lobby","after":"17"}"#);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
#[non_exhaustive]
pub enum ClientFrame<'a> {
    /// Listens to a channel.
    Subscribe(Subscribe<'a>),
    /// Stops listening to a channel.
    Unsubscribe(Unsubscribe<'a>),
    /// Says something to the channel's handler.
    Send(SendMessage<'a>),
    /// Asks for a `pong`.
    Ping(Ping),
}

/// The command that listens to a channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Subscribe<'a> {
    /// The number of the command: 0 to 2^53-1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::schema::command_id"))]
    pub id: Option<u64>,
    /// The channel.
    pub channel: Cow<'a, str>,
    /// The cursor after which to go on; absent: from now on. A number is read as its decimal text.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::schema::after"))]
    pub after: Option<Cow<'a, str>>,
    /// Whether to tell who is in the channel.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub presence: bool,
}

impl<'a> Subscribe<'a> {
    /// Listens from now on.
    pub fn new(channel: impl Into<Cow<'a, str>>) -> Self {
        Self {
            id: None,
            channel: channel.into(),
            after: None,
            presence: false,
        }
    }

    /// Gives the command a number.
    pub fn with_id(mut self, id: u64) -> Self {
        self.id = Some(id);
        self
    }

    /// Goes on after a cursor.
    pub fn after(mut self, cursor: impl Into<Cow<'a, str>>) -> Self {
        self.after = Some(cursor.into());
        self
    }

    /// Asks to be told who is in the channel.
    pub fn with_presence(mut self) -> Self {
        self.presence = true;
        self
    }
}

/// The command that stops listening to a channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Unsubscribe<'a> {
    /// The number of the command: 0 to 2^53-1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::schema::command_id"))]
    pub id: Option<u64>,
    /// The channel.
    pub channel: Cow<'a, str>,
}

impl<'a> Unsubscribe<'a> {
    /// Stops listening.
    pub fn new(id: Option<u64>, channel: impl Into<Cow<'a, str>>) -> Self {
        Self {
            id,
            channel: channel.into(),
        }
    }
}

/// The command that says something to the channel's handler.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct SendMessage<'a> {
    /// The number of the command: 0 to 2^53-1. Absent: no reply is wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::schema::command_id"))]
    pub id: Option<u64>,
    /// The channel.
    pub channel: Cow<'a, str>,
    /// Makes repeating it harmless.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub idempotency_key: Option<Cow<'a, str>>,
    /// What is said.
    #[serde(flatten)]
    pub message: ClientMessage<'a>,
}

impl<'a> SendMessage<'a> {
    /// A message without a number and without an idempotency key.
    pub fn new(channel: impl Into<Cow<'a, str>>, message: ClientMessage<'a>) -> Self {
        Self {
            id: None,
            channel: channel.into(),
            idempotency_key: None,
            message,
        }
    }

    /// Gives the command a number, so that it has a reply.
    pub fn with_id(mut self, id: u64) -> Self {
        self.id = Some(id);
        self
    }

    /// Makes repeating it harmless.
    pub fn with_idempotency_key(mut self, key: impl Into<Cow<'a, str>>) -> Self {
        self.idempotency_key = Some(key.into());
        self
    }
}

/// The command that asks for a `pong`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Ping {
    /// The number of the command: 0 to 2^53-1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::schema::command_id"))]
    pub id: Option<u64>,
}

impl Ping {
    /// A ping with this number.
    pub fn new(id: Option<u64>) -> Self {
        Self { id }
    }
}

/// What a client says: the body of `POST /channels/{name}`, and a part of a `send` frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct ClientMessage<'a> {
    /// The event's name.
    pub event: Cow<'a, str>,
    /// What is said.
    #[serde(flatten)]
    pub payload: Payload<'a>,
    /// What it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub key: Option<Cow<'a, str>>,
    /// Texts beside the payload.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Attributes"))]
    pub attributes: Option<Attributes<'a>>,
}

impl<'a> ClientMessage<'a> {
    /// A message without a key and without attributes.
    pub fn new(event: impl Into<Cow<'a, str>>, payload: Payload<'a>) -> Self {
        Self {
            event: event.into(),
            payload,
            key: None,
            attributes: None,
        }
    }

    /// Says what it is about.
    pub fn with_key(mut self, key: impl Into<Cow<'a, str>>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Gives the message attributes.
    pub fn with_attributes(mut self, attributes: Attributes<'a>) -> Self {
        self.attributes = Some(attributes);
        self
    }

    /// Writes the message as JSON.
    pub fn to_json(&self) -> String {
        // Only maps with keys that are no text cannot be written, and no message has one.
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for ClientMessage<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Sent<'a> {
            #[serde(borrow)]
            event: Cow<'a, str>,
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
        }
        let sent = Sent::deserialize(deserializer)?;
        let payload = Payload::of_fields(sent.data, text::text(sent.text), text::text(sent.base64));
        let payload = payload.and_then(|payload| payload.ok_or(ReadError::NoPayload));
        Ok(Self {
            event: sent.event,
            payload: payload.map_err(serde::de::Error::custom)?,
            key: text::text(sent.key),
            attributes: sent.attributes,
        })
    }
}

/// Every field that a frame of a client may have, of whatever type it is.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Command<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    id: Option<u64>,
    #[serde(borrow)]
    channel: Option<Text<'a>>,
    #[serde(borrow)]
    after: Option<Cursor<'a>>,
    presence: Option<bool>,
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
}

impl<'a> ClientFrame<'a> {
    /// Reads a text frame of a client. How deep the JSON nests and which names are allowed is for
    /// the server to check.
    ///
    /// # Errors
    /// The text is no JSON object, has an unknown field or type, or lacks a field.
    pub fn parse(text: &'a str) -> Result<Self, ReadError> {
        Self::of_command(serde_json::from_str(text)?)
    }

    fn of_command(command: Command<'a>) -> Result<Self, ReadError> {
        let (kind, id) = (command.kind, command.id);
        if kind == "ping" {
            return Ok(ClientFrame::Ping(Ping { id }));
        }
        if !matches!(&*kind, "subscribe" | "unsubscribe" | "send") {
            return Err(ReadError::UnknownType);
        }
        let missing = |field| ReadError::missing(kind.clone().into_owned(), field);
        let channel = match command.channel {
            Some(channel) => channel.0,
            None => return Err(missing("channel")),
        };
        Ok(match &*kind {
            "subscribe" => ClientFrame::Subscribe(Subscribe {
                id,
                channel,
                after: command.after.map(|after| after.0),
                presence: command.presence.unwrap_or(false),
            }),
            "unsubscribe" => ClientFrame::Unsubscribe(Unsubscribe { id, channel }),
            _ => {
                let event = command.event.ok_or_else(|| missing("event"))?.0;
                let payload = Payload::of_fields(command.data, text::text(command.text), text::text(command.base64))?;
                let payload = payload.ok_or(ReadError::NoPayload)?;
                ClientFrame::Send(SendMessage {
                    id,
                    channel,
                    idempotency_key: text::text(command.idempotency_key),
                    message: ClientMessage {
                        event,
                        payload,
                        key: text::text(command.key),
                        attributes: command.attributes,
                    },
                })
            }
        })
    }

    /// Writes the frame as JSON.
    pub fn to_json(&self) -> String {
        // Only maps with keys that are no text cannot be written, and no frame has one.
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for ClientFrame<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::of_command(Command::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}
