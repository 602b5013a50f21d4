//! Errors: those that a server tells, and those of reading.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::code::Code;
use crate::text::{self, Text, owned};

/// What an error says, on every transport.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Failure<'a> {
    /// The code: one of [`Code`], or one of a newer server.
    #[cfg_attr(feature = "schema", schemars(schema_with = "crate::schema::code"))]
    pub code: Cow<'a, str>,
    /// For people: what went wrong and what to do.
    pub message: Cow<'a, str>,
    /// With `wrong-transport`: the transport to use instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub transport: Option<Cow<'a, str>>,
    /// With `wrong-transport` and one channel: where to go instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub url: Option<Cow<'a, str>>,
}

impl<'a> Failure<'a> {
    /// An error with a code and a text for people.
    pub fn new(code: impl Into<Cow<'a, str>>, message: impl Into<Cow<'a, str>>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
            transport: None,
            url: None,
        }
    }

    /// Returns the code. `None`: it is one of a newer server.
    pub fn known_code(&self) -> Option<Code> {
        Code::from_text(&self.code)
    }

    /// Returns the same error, borrowed from nothing.
    pub fn into_owned(self) -> Failure<'static> {
        Failure {
            code: owned(self.code),
            message: owned(self.message),
            transport: self.transport.map(owned),
            url: self.url.map(owned),
        }
    }
}

impl fmt::Display for Failure<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.code)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Failure<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct FailureFields<'a> {
            #[serde(borrow)]
            code: Cow<'a, str>,
            #[serde(borrow)]
            message: Cow<'a, str>,
            #[serde(borrow)]
            transport: Option<Text<'a>>,
            #[serde(borrow)]
            url: Option<Text<'a>>,
        }
        let fields = FailureFields::deserialize(deserializer)?;
        Ok(Self {
            code: fields.code,
            message: fields.message,
            transport: text::text(fields.transport),
            url: text::text(fields.url),
        })
    }
}

/// The body of an HTTP answer that says no: `{"error":{…}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct ErrorBody<'a> {
    /// What went wrong.
    #[serde(borrow)]
    pub error: Failure<'a>,
}

impl<'a> ErrorBody<'a> {
    /// The body that tells `error`.
    pub fn new(error: Failure<'a>) -> Self {
        Self { error }
    }

    /// Reads a body.
    ///
    /// # Errors
    /// The body is not JSON of this shape: what answers is perhaps no Airwave.
    pub fn parse(body: &'a [u8]) -> Result<Self, ReadError> {
        Ok(serde_json::from_slice(body)?)
    }
}

/// Why something could not be read.
#[derive(Debug)]
#[non_exhaustive]
pub enum ReadError {
    /// Not JSON, or JSON of another shape.
    Json(serde_json::Error),
    /// A field is missing that this kind of frame always has.
    Missing {
        /// What was read: a frame's type, or `event`.
        what: Cow<'static, str>,
        /// The field.
        field: &'static str,
    },
    /// A client's frame has a type that servers do not know.
    UnknownType,
    /// There is no payload where one must be.
    NoPayload,
    /// Several of `data`, `text` and `base64` stand side by side.
    SeveralPayloads,
    /// The field `base64` holds something else.
    Base64(String),
    /// A binary frame of another form.
    Binary,
}

impl ReadError {
    pub(crate) fn missing(what: impl Into<Cow<'static, str>>, field: &'static str) -> Self {
        ReadError::Missing {
            what: what.into(),
            field,
        }
    }
}

impl From<serde_json::Error> for ReadError {
    fn from(error: serde_json::Error) -> Self {
        ReadError::Json(error)
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReadError::Json(error) => write!(f, "this JSON is not understood: {error}"),
            ReadError::Missing { what, field } => write!(f, "'{what}' needs '{field}'"),
            ReadError::UnknownType => f.write_str("unknown 'type'; send one of subscribe, unsubscribe, send, ping"),
            ReadError::NoPayload => f.write_str("there is no 'data', 'text' or 'base64'"),
            ReadError::SeveralPayloads => f.write_str("give exactly one of 'data', 'text' and 'base64'"),
            ReadError::Base64(error) => write!(f, "'base64' cannot be read: {error}"),
            ReadError::Binary => {
                f.write_str("a binary frame is: 0x01, length and channel name, length and event name, 8 bytes of id, payload")
            }
        }
    }
}

impl std::error::Error for ReadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ReadError::Json(error) => Some(error),
            _ => None,
        }
    }
}
