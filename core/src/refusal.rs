//! The few error codes that clients see, the same on every transport.

use std::borrow::Cow;

/// Why something was refused. The text of a code, its HTTP status and its WebSocket close code are part of the protocol
/// (docs/protocol.md, section 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// Malformed: JSON, name, field, frame.
    BadRequest,
    /// Say who you are.
    Unauthorized,
    /// Known, but not allowed.
    Forbidden,
    /// No rule matches this name.
    UnknownChannel,
    /// The channel's rule does not list this transport.
    WrongTransport,
    /// The channel has ended; nothing more can be published.
    Ended,
    /// Body, message or frame over its limit.
    TooLarge,
    /// Over a limit of connections, channels or frames per second.
    TooMany,
    /// The broker is out of reach, or the node is draining: try again.
    Unavailable,
    /// A fault of the server.
    Internal,
}

impl Code {
    /// Every code.
    pub const ALL: [Code; 10] = [
        Code::BadRequest,
        Code::Unauthorized,
        Code::Forbidden,
        Code::UnknownChannel,
        Code::WrongTransport,
        Code::Ended,
        Code::TooLarge,
        Code::TooMany,
        Code::Unavailable,
        Code::Internal,
    ];

    /// The code as clients see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Code::BadRequest => "bad-request",
            Code::Unauthorized => "unauthorized",
            Code::Forbidden => "forbidden",
            Code::UnknownChannel => "unknown-channel",
            Code::WrongTransport => "wrong-transport",
            Code::Ended => "ended",
            Code::TooLarge => "too-large",
            Code::TooMany => "too-many",
            Code::Unavailable => "unavailable",
            Code::Internal => "internal",
        }
    }

    /// The HTTP status.
    pub fn http_status(self) -> u16 {
        match self {
            Code::BadRequest => 400,
            Code::Unauthorized => 401,
            Code::Forbidden => 403,
            Code::UnknownChannel => 404,
            Code::WrongTransport => 406,
            Code::Ended => 409,
            Code::TooLarge => 413,
            Code::TooMany => 429,
            Code::Unavailable => 503,
            Code::Internal => 500,
        }
    }

    /// The WebSocket close code (RFC 6455, section 7.4: 4000 to 4999 are the application's).
    pub fn close_code(self) -> u16 {
        match self {
            Code::TooLarge => 1009,
            Code::Unavailable => 1013,
            Code::Internal => 1011,
            other => 4000 + other.http_status(),
        }
    }

    /// Whether the same request may succeed later without being changed.
    pub fn is_temporary(self) -> bool {
        matches!(self, Code::TooMany | Code::Unavailable | Code::Internal)
    }
}

/// A "no" with a code and a text that may be shown to the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", code.as_str())]
pub struct Refusal {
    /// What kind of "no".
    pub code: Code,
    /// For people: what went wrong and what to do. Never holds secrets.
    pub message: Cow<'static, str>,
    /// Only with [`Code::WrongTransport`]: the transport to use instead.
    pub transport: Option<crate::rule::TransportName>,
}

impl Refusal {
    /// A refusal with a text for the client.
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            message: message.into(),
            transport: None,
        }
    }

    /// [`Code::BadRequest`].
    pub fn bad_request(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::BadRequest, message)
    }

    /// [`Code::Unauthorized`].
    pub fn unauthorized(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::Unauthorized, message)
    }

    /// [`Code::Forbidden`].
    pub fn forbidden(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::Forbidden, message)
    }

    /// [`Code::Unavailable`].
    pub fn unavailable(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::Unavailable, message)
    }

    /// [`Code::Internal`]. The text must not name details of the server.
    pub fn internal(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::Internal, message)
    }
}

impl From<crate::event::Invalid> for Refusal {
    fn from(invalid: crate::event::Invalid) -> Self {
        Self::bad_request(invalid.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn codes_map_one_to_one() {
        let texts: HashSet<_> = Code::ALL.iter().map(|c| c.as_str()).collect();
        let statuses: HashSet<_> = Code::ALL.iter().map(|c| c.http_status()).collect();
        let closes: HashSet<_> = Code::ALL.iter().map(|c| c.close_code()).collect();
        assert_eq!((texts.len(), statuses.len(), closes.len()), (10, 10, 10));
        assert_eq!(Code::WrongTransport.close_code(), 4406);
    }
}
