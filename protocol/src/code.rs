//! Error codes, close codes and gap reasons: one table each.

/// A code of an error. Its text, its HTTP status and its WebSocket close code belong to each other
/// one to one (docs/protocol.md, section 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Code {
    /// The request is malformed: its JSON, a name, a field or a frame.
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
    /// Over a limit of connections, channels, requests or frames per second.
    TooMany,
    /// The broker is out of reach, or the node is draining: try again.
    Unavailable,
    /// A fault of the server.
    Internal,
}

/// Code, text, HTTP status, WebSocket close code.
const CODES: [(Code, &str, u16, u16); 10] = [
    (Code::BadRequest, "bad-request", 400, 4400),
    (Code::Unauthorized, "unauthorized", 401, 4401),
    (Code::Forbidden, "forbidden", 403, 4403),
    (Code::UnknownChannel, "unknown-channel", 404, 4404),
    (Code::WrongTransport, "wrong-transport", 406, 4406),
    (Code::Ended, "ended", 409, 4409),
    (Code::TooLarge, "too-large", 413, 1009),
    (Code::TooMany, "too-many", 429, 4429),
    (Code::Unavailable, "unavailable", 503, 1013),
    (Code::Internal, "internal", 500, 1011),
];

impl Code {
    /// Every code, in the order of the table.
    pub const ALL: [Code; 10] = {
        let mut all = [Code::BadRequest; 10];
        let mut at = 0;
        while at < all.len() {
            all[at] = CODES[at].0;
            at += 1;
        }
        all
    };

    const fn row(self) -> &'static (Code, &'static str, u16, u16) {
        // The test below says that the table is in the order of the enum.
        &CODES[self as usize]
    }

    /// Returns the text on the wire.
    pub const fn as_str(self) -> &'static str {
        self.row().1
    }

    /// Returns the HTTP status.
    pub const fn http_status(self) -> u16 {
        self.row().2
    }

    /// Returns the WebSocket close code.
    pub const fn close_code(self) -> u16 {
        self.row().3
    }

    /// Returns whether the same request may succeed later without being changed.
    pub const fn is_temporary(self) -> bool {
        matches!(self, Code::TooMany | Code::Unavailable | Code::Internal)
    }

    /// Returns the code with this text. `None`: a newer server has one that this crate does not
    /// know.
    pub fn from_text(text: &str) -> Option<Self> {
        Self::find(|row| row.1 == text)
    }

    /// Returns the code with this HTTP status.
    pub fn from_http_status(status: u16) -> Option<Self> {
        Self::find(|row| row.2 == status)
    }

    /// Returns the code with this WebSocket close code.
    pub fn from_close_code(code: u16) -> Option<Self> {
        Self::find(|row| row.3 == code)
    }

    fn find(is: impl Fn(&(Code, &'static str, u16, u16)) -> bool) -> Option<Self> {
        CODES.iter().find(|row| is(row)).map(|row| row.0)
    }
}

/// Close codes of a WebSocket that are no code of an error.
pub mod close_code {
    /// The only channel of the connection has ended.
    pub const ENDED: u16 = 1000;
    /// Nothing was heard from the client for the idle time.
    pub const SILENT: u16 = 1001;
    /// A breach of RFC 6455.
    pub const PROTOCOL: u16 = 1002;
    /// Text that is not UTF-8.
    pub const NOT_UTF8: u16 = 1007;
    /// The node drains. The reason is `retry=MS`: see [`retry_of`].
    pub const DRAIN: u16 = 1012;
    /// The client fell behind, and the policy of the channel for slow clients is `close`.
    pub const TOO_SLOW: u16 = 4408;

    /// Returns how many milliseconds the server asks the client to wait, from a close's reason.
    pub fn retry_of(reason: &str) -> Option<u64> {
        reason.strip_prefix("retry=")?.parse().ok()
    }
}

/// Why events that existed cannot be delivered any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GapReason {
    /// The cursor names no position that this channel knows.
    UnknownPosition,
    /// Older than what is kept.
    HistoryExpired,
    /// The listener fell behind, and its rule says skip or history could not fill in.
    TooSlow,
    /// The broker lost acknowledged events.
    BrokerLostData,
}

impl GapReason {
    /// Every reason.
    pub const ALL: [GapReason; 4] = [
        GapReason::UnknownPosition,
        GapReason::HistoryExpired,
        GapReason::TooSlow,
        GapReason::BrokerLostData,
    ];

    /// Returns the text on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            GapReason::UnknownPosition => "unknown-position",
            GapReason::HistoryExpired => "history-expired",
            GapReason::TooSlow => "too-slow",
            GapReason::BrokerLostData => "broker-lost-data",
        }
    }

    /// Returns the reason with this text. `None`: a newer server has one that this crate does not
    /// know.
    pub fn from_text(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == text)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_codes_and_one_to_one() {
        for (at, row) in CODES.iter().enumerate() {
            assert_eq!(row.0 as usize, at, "{row:?}");
            for other in &CODES[..at] {
                assert!(row.1 != other.1 && row.2 != other.2 && row.3 != other.3, "{row:?} {other:?}");
            }
            assert_eq!(Code::from_text(row.1), Some(row.0));
            assert_eq!(Code::from_http_status(row.2), Some(row.0));
            assert_eq!(Code::from_close_code(row.3), Some(row.0));
        }
        assert_eq!(Code::from_text("teapot"), None);
        assert_eq!(Code::from_http_status(418), None);
        assert_eq!(Code::from_close_code(close_code::DRAIN), None);
    }

    #[test]
    fn a_drain_says_how_long_to_wait() {
        assert_eq!(close_code::retry_of("retry=1500"), Some(1500));
        for reason in ["", "retry=", "retry=x", "1500"] {
            assert_eq!(close_code::retry_of(reason), None, "{reason}");
        }
        for reason in GapReason::ALL {
            assert_eq!(GapReason::from_text(reason.as_str()), Some(reason));
        }
    }
}
