//! Frames of a server.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::envelope::Envelope;
use crate::error::{Failure, ReadError};
use crate::fields::{Fields, need};
use crate::member::Member;
use crate::notices::{Empty, End, ErrorFrame, Gap, MemberChange, Members, Pong, Reply, Subscribed, UnknownFrame, Unsubscribed};
use crate::payload::{Json, Payload};
use crate::sse;
use crate::text::{self, owned};

/// A JSON frame of a server: a notice with a `type`, or an event. On a stream of server-sent events
/// the type stands in the event's name (`airwave.gap`), and the rest is the same.
///
/// # Examples
/// ```
/// use airwave_protocol::ServerFrame;
///
/// # fn main() -> Result<(), airwave_protocol::ReadError> {
/// let frame = ServerFrame::parse(r#"{"type":"end","channel":"jobs/7","cursor":"17"}"#)?;
/// assert!(matches!(&frame, ServerFrame::End(end) if end.channel == "jobs/7"));
/// // A newer server may say more.
/// assert!(matches!(ServerFrame::parse(r#"{"type":"moon"}"#)?, ServerFrame::Unknown(_)));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
#[non_exhaustive]
pub enum ServerFrame<'a> {
    /// A subscription stands.
    Subscribed(Subscribed<'a>),
    /// A subscription is over because the client said so.
    Unsubscribed(Unsubscribed<'a>),
    /// Events are lost.
    Gap(Gap<'a>),
    /// A channel has ended, and the subscription with it.
    End(End<'a>),
    /// What the handler answers to a message.
    Reply(Reply<'a>),
    /// A command, or the whole connection, is refused.
    Error(ErrorFrame<'a>),
    /// The answer to a `ping`.
    Pong(Pong),
    /// A page of who is in a channel.
    Presence(Members<'a>),
    /// A member was not there before.
    Join(MemberChange<'a>),
    /// A member has left, with their last connection.
    Leave(MemberChange<'a>),
    /// A member has another number of connections, or other metadata.
    Update(MemberChange<'a>),
    /// The node has not reached its broker for a while.
    Stale(Empty),
    /// Nothing happened for a while.
    Heartbeat(Empty),
    /// An event: the only frame without a `type`.
    #[serde(untagged)]
    Event(Envelope<'a>),
    /// A frame of a newer server. The reader ignores it.
    #[serde(untagged)]
    Unknown(UnknownFrame<'a>),
}

/// What stands before a control event's name on a stream of server-sent events.
const CONTROL: &str = "airwave.";
/// What stands behind an event's name on a stream of one channel, if its data are base64.
const BASE64: &str = ";base64";

impl<'a> ServerFrame<'a> {
    /// Reads a text frame of a WebSocket that holds one frame.
    ///
    /// # Errors
    /// The text is no JSON object, or a frame that is known lacks a field.
    pub fn parse(text: &'a str) -> Result<Self, ReadError> {
        Self::of_fields(serde_json::from_str(text)?)
    }

    /// Reads a text frame of a WebSocket. With `?batch=true` it may be an array of frames.
    ///
    /// # Errors
    /// As [`ServerFrame::parse`].
    pub fn parse_all(text: &'a str) -> Result<Vec<Self>, ReadError> {
        if !text.trim_start().starts_with('[') {
            return Ok(vec![Self::parse(text)?]);
        }
        let all: Vec<Fields<'a>> = serde_json::from_str(text)?;
        all.into_iter().map(Self::of_fields).collect()
    }

    /// Reads an event of a stream of server-sent events. `only`: the channel of a stream of one,
    /// whose events do not name it.
    ///
    /// On a stream of one channel, data that are JSON are [`Payload::Json`]: the stream does not
    /// say which text was published as JSON.
    ///
    /// # Errors
    /// The data are not what the event's name says.
    pub fn from_sse(event: &'a sse::Event, only: Option<&'a str>) -> Result<Self, ReadError> {
        if let Some(kind) = event.event.strip_prefix(CONTROL) {
            return Self::notice(serde_json::from_str(&event.data)?, kind);
        }
        let Some(channel) = only else {
            return Envelope::parse(&event.data).map(ServerFrame::Event);
        };
        let (name, payload) = match event.event.strip_suffix(BASE64) {
            Some(name) => {
                let bytes = STANDARD.decode(&event.data);
                let bytes = bytes.map_err(|error| ReadError::Base64(error.to_string()))?;
                (name, Payload::binary(bytes))
            }
            None => match serde_json::from_str::<&RawValue>(&event.data) {
                // Spaces around JSON are a text's own: JSON comes without.
                Ok(raw) if raw.get().len() == event.data.len() => (event.event.as_str(), Payload::Json(raw.into())),
                _ => (event.event.as_str(), Payload::text(event.data.as_str())),
            },
        };
        Ok(ServerFrame::Event(Envelope::new(channel, event.id.as_str(), name, payload)))
    }

    /// A frame with this type, which may stand beside the fields.
    fn notice(fields: Fields<'a>, kind: &str) -> Result<Self, ReadError> {
        let id = fields.number();
        Ok(match kind {
            "subscribed" => ServerFrame::Subscribed(Subscribed {
                id,
                channel: need!(fields, kind, channel).0,
                cursor: need!(fields, kind, cursor).0,
                resumed: fields.resumed.unwrap_or(false),
            }),
            "unsubscribed" => ServerFrame::Unsubscribed(Unsubscribed {
                id,
                channel: need!(fields, kind, channel).0,
            }),
            "gap" => ServerFrame::Gap(Gap {
                channel: need!(fields, kind, channel).0,
                after: fields.after.map(|after| after.0),
                cursor: need!(fields, kind, cursor).0,
                reason: text::text(fields.reason).unwrap_or_default(),
            }),
            "end" => ServerFrame::End(End {
                channel: need!(fields, kind, channel).0,
                cursor: need!(fields, kind, cursor).0,
            }),
            "reply" => ServerFrame::Reply(Reply {
                id: id.ok_or_else(|| ReadError::missing("reply", "id"))?,
                data: Json::from(need!(fields, kind, data)),
            }),
            "error" => ServerFrame::Error(ErrorFrame {
                id,
                channel: text::text(fields.channel),
                error: Failure {
                    code: need!(fields, kind, code).0,
                    message: text::text(fields.message).unwrap_or_default(),
                    transport: text::text(fields.transport),
                    url: text::text(fields.url),
                },
            }),
            "pong" => ServerFrame::Pong(Pong { id }),
            "presence" => ServerFrame::Presence(Members {
                channel: need!(fields, kind, channel).0,
                members: need!(fields, kind, members),
                more: fields.more.unwrap_or(false),
            }),
            "join" => ServerFrame::Join(change(fields, kind)?),
            "leave" => ServerFrame::Leave(change(fields, kind)?),
            "update" => ServerFrame::Update(change(fields, kind)?),
            "stale" => ServerFrame::Stale(Empty {}),
            "heartbeat" => ServerFrame::Heartbeat(Empty {}),
            _ => ServerFrame::Unknown(UnknownFrame {
                kind: kind.to_owned().into(),
            }),
        })
    }

    fn of_fields(mut fields: Fields<'a>) -> Result<Self, ReadError> {
        match fields.kind.take() {
            Some(kind) => Self::notice(fields, &kind.0),
            None => Envelope::of_fields(fields).map(ServerFrame::Event),
        }
    }

    /// Returns the frame's `type`; `None`: an event.
    pub fn kind(&self) -> Option<&str> {
        Some(match self {
            ServerFrame::Subscribed(_) => "subscribed",
            ServerFrame::Unsubscribed(_) => "unsubscribed",
            ServerFrame::Gap(_) => "gap",
            ServerFrame::End(_) => "end",
            ServerFrame::Reply(_) => "reply",
            ServerFrame::Error(_) => "error",
            ServerFrame::Pong(_) => "pong",
            ServerFrame::Presence(_) => "presence",
            ServerFrame::Join(_) => "join",
            ServerFrame::Leave(_) => "leave",
            ServerFrame::Update(_) => "update",
            ServerFrame::Stale(_) => "stale",
            ServerFrame::Heartbeat(_) => "heartbeat",
            ServerFrame::Event(_) => return None,
            ServerFrame::Unknown(unknown) => &unknown.kind,
        })
    }

    /// Writes the frame as JSON.
    pub fn to_json(&self) -> String {
        // Only maps with keys that are no text cannot be written, and no frame has one.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Returns the same frame, borrowed from nothing.
    pub fn into_owned(self) -> ServerFrame<'static> {
        match self {
            ServerFrame::Subscribed(Subscribed {
                id,
                channel,
                cursor,
                resumed,
            }) => ServerFrame::Subscribed(Subscribed::new(id, owned(channel), owned(cursor), resumed)),
            ServerFrame::Unsubscribed(Unsubscribed { id, channel }) => {
                ServerFrame::Unsubscribed(Unsubscribed::new(id, owned(channel)))
            }
            ServerFrame::Gap(Gap {
                channel,
                after,
                cursor,
                reason,
            }) => ServerFrame::Gap(Gap::new(owned(channel), after.map(owned), owned(cursor), owned(reason))),
            ServerFrame::End(End { channel, cursor }) => ServerFrame::End(End::new(owned(channel), owned(cursor))),
            ServerFrame::Reply(Reply { id, data }) => ServerFrame::Reply(Reply::new(id, data.into_owned())),
            ServerFrame::Error(ErrorFrame { id, channel, error }) => {
                ServerFrame::Error(ErrorFrame::new(id, channel.map(owned), error.into_owned()))
            }
            ServerFrame::Pong(pong) => ServerFrame::Pong(pong),
            ServerFrame::Presence(Members { channel, members, more }) => {
                let members: Vec<_> = members.into_iter().map(Member::into_owned).collect();
                ServerFrame::Presence(Members::new(owned(channel), members, more))
            }
            ServerFrame::Join(change) => ServerFrame::Join(change.into_owned()),
            ServerFrame::Leave(change) => ServerFrame::Leave(change.into_owned()),
            ServerFrame::Update(change) => ServerFrame::Update(change.into_owned()),
            ServerFrame::Stale(empty) => ServerFrame::Stale(empty),
            ServerFrame::Heartbeat(empty) => ServerFrame::Heartbeat(empty),
            ServerFrame::Event(event) => ServerFrame::Event(event.into_owned()),
            ServerFrame::Unknown(UnknownFrame { kind }) => ServerFrame::Unknown(UnknownFrame { kind: owned(kind) }),
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for ServerFrame<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::of_fields(Fields::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

fn change<'a>(fields: Fields<'a>, kind: &str) -> Result<MemberChange<'a>, ReadError> {
    Ok(MemberChange {
        channel: need!(fields, kind, channel).0,
        member: need!(fields, kind, member),
    })
}
