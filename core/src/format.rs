//! Connects core and transports: a format turns events and notices into bytes.

use std::sync::Arc;

pub use airwave_protocol::GapReason;
use bytes::Bytes;

use crate::event::{ChannelName, Event, JsonText, Position};
use crate::refusal::Refusal;

/// How many formats a hub can have. Each entry of a ring has a slot for each.
pub(crate) const MAX_FORMATS: usize = 4;

/// One format. Called once per event and format, never per listener. Pure, cannot fail.
///
/// The bytes are ready for the socket, framing included, so that a socket loop knows nothing of
/// what it writes.
///
/// # Examples
///
/// One line of text for each event, and nothing for notices but the end of a channel:
///
/// ```
/// use airwave_core::format::Stamp;
/// use airwave_core::{ChannelName, Event, Format, Notice};
/// use bytes::Bytes;
///
/// struct Lines;
///
/// impl Format for Lines {
///     fn name(&self) -> &'static str {
///         "lines"
///     }
///
///     fn event(&self, channel: &ChannelName, event: &Event) -> Bytes {
///         format!("{channel} {} {}\n", event.position, event.message.event).into()
///     }
///
///     fn notice(&self, notice: &Notice<'_>) -> Bytes {
///         match notice {
///             Notice::End { channel, .. } => format!("{channel} has ended\n").into(),
///             _ => Bytes::new(),
///         }
///     }
///
///     fn stamp(&self) -> Option<Stamp> {
///         None
///     }
/// }
/// ```
pub trait Format: Send + Sync + 'static {
    /// A short name for metrics: `sse`, `websocket`.
    fn name(&self) -> &'static str;

    /// An event as bytes. Never called for the event that ends a channel: that is [`Notice::End`].
    fn event(&self, channel: &ChannelName, event: &Event) -> Bytes;

    /// Something that the server says about a channel or the connection.
    fn notice(&self, notice: &Notice<'_>) -> Bytes;

    /// For formats of streams of several channels in which each event carries the cursor of them
    /// all: what follows an event's bytes. `None`: the format carries the position of each event in
    /// itself.
    fn stamp(&self) -> Option<Stamp>;
}

/// Appends the cursor of a stream of several channels to an event that was encoded without it.
pub type Stamp = fn(cursor: &dyn std::fmt::Display, out: &mut bytes::BytesMut);

/// An announced loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Gap {
    /// The last position before the loss; `None` if the listener's cursor could not be read.
    pub after: Option<Position>,
    /// The stream goes on after this position.
    pub cursor: Position,
    /// Why.
    pub reason: GapReason,
}

impl Gap {
    /// Returns the loss of everything after `after`, up to `cursor`.
    pub const fn new(after: Option<Position>, cursor: Position, reason: GapReason) -> Self {
        Self { after, cursor, reason }
    }
}

/// A member of a channel: a user, over all their connections on all nodes. All clients without a
/// user are one member, who is only counted.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Member {
    /// The user's id; `None`: the anonymous.
    pub user: Option<Arc<str>>,
    /// How many connections there are; zero only where a member has left.
    pub connections: u32,
    /// What [`Identity::with_meta`](crate::Identity::with_meta) was given.
    pub meta: Option<JsonText>,
}

impl Member {
    /// Returns a member with this number of connections. Without a user it is the anonymous member.
    pub fn new(user: Option<Arc<str>>, connections: u32) -> Self {
        Self {
            user,
            connections,
            meta: None,
        }
    }

    /// Returns the same member with metadata. [`Data::json`](crate::Data::json) makes the text.
    pub fn with_meta(mut self, meta: JsonText) -> Self {
        self.meta = Some(meta);
        self
    }
}

/// What has happened to a [`Member`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Change {
    /// They have come.
    Join,
    /// They have left, with their last connection.
    Leave,
    /// The number of their connections or what is said about them is another.
    Update,
}

impl Change {
    /// The change as clients see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Change::Join => "join",
            Change::Leave => "leave",
            Change::Update => "update",
        }
    }
}

/// What the server says that is not an event. `id` is the number that the client gave its command,
/// if it gave one.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Notice<'a> {
    /// A subscription is confirmed. `stamp` is the cursor of the whole stream, where the format has
    /// one.
    Subscribed {
        /// The client's number of the command.
        id: Option<u64>,
        /// The channel.
        channel: &'a ChannelName,
        /// The position before the first event that follows.
        cursor: Position,
        /// The cursor of all channels of the stream, where that is another.
        stamp: Option<&'a crate::Cursor>,
        /// Whether a cursor was given and everything after it follows.
        resumed: bool,
        /// How long the client should wait before it connects again, in milliseconds.
        retry: u32,
    },
    /// A subscription is over because the client said so.
    Unsubscribed {
        /// The client's number of the command.
        id: Option<u64>,
        /// The channel.
        channel: &'a ChannelName,
    },
    /// Events are lost.
    Gap {
        /// The channel.
        channel: &'a ChannelName,
        /// From where, to where, why.
        gap: &'a Gap,
        /// The cursor of all channels of the stream, where that is another.
        stamp: Option<&'a crate::Cursor>,
    },
    /// The channel has ended.
    End {
        /// The channel.
        channel: &'a ChannelName,
        /// The end's position.
        cursor: Position,
        /// The cursor of all channels of the stream, where that is another.
        stamp: Option<&'a crate::Cursor>,
    },
    /// What the handler answers to a message.
    Reply {
        /// The client's number of the command.
        id: u64,
        /// The answer.
        data: Option<&'a crate::Data>,
    },
    /// A command or the whole session is refused.
    Refused {
        /// The client's number of the command.
        id: Option<u64>,
        /// The channel, if it is about one.
        channel: Option<&'a ChannelName>,
        /// Why.
        refusal: &'a Refusal,
        /// Where to go instead, with `wrong-transport`.
        url: Option<&'a str>,
        /// How long the client should wait before it connects again, in milliseconds.
        retry: u32,
    },
    /// A page of who is in a channel. The first page of a new list follows one without `more`, or
    /// none; the changes that follow the last page are those after the list.
    Members {
        /// The channel.
        channel: &'a ChannelName,
        /// Each once in the whole list, users in the order of their ids, the anonymous last.
        members: &'a [Arc<Member>],
        /// Whether another page follows.
        more: bool,
    },
    /// A member has joined a channel, left it, or changed.
    Change {
        /// The channel.
        channel: &'a ChannelName,
        /// What has happened.
        change: Change,
        /// As they are now.
        member: &'a Member,
    },
    /// The node has not reached its broker for a while.
    Stale,
    /// Nothing happened for a while. `visible`: scripts must be able to see it.
    Heartbeat {
        /// Whether scripts must be able to see it.
        visible: bool,
    },
    /// The node goes away.
    Drain {
        /// How long the client should wait before it connects again, in milliseconds.
        retry: u32,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::{Delivery, ReplayOnSubscribe, SendPolicy, SlowPolicy};
    use crate::session::{CloseReason, Turn};
    use crate::{Data, LeaveReason};

    /// Other crates match these with a `_` arm. A new variant stops this test from compiling, so
    /// that its author looks at those arms: the formats and tasks of SSE and WebSocket,
    /// `transports/tests/wire.rs`, and `[[channels]]` of the configuration.
    #[test]
    fn each_variant_that_other_crates_match_is_listed_here() {
        fn of_notice(notice: &Notice<'_>) {
            match notice {
                Notice::Subscribed { .. } | Notice::Unsubscribed { .. } | Notice::Gap { .. } | Notice::End { .. } => {}
                Notice::Reply { .. } | Notice::Refused { .. } | Notice::Members { .. } | Notice::Change { .. } => {}
                Notice::Stale | Notice::Heartbeat { .. } | Notice::Drain { .. } => {}
            }
        }
        fn of_session(turn: &Turn) {
            match turn {
                Turn::Frames => {}
                Turn::Closed(CloseReason::Drain { .. } | CloseReason::Ended | CloseReason::Silent) => {}
                Turn::Closed(CloseReason::Stalled | CloseReason::TooSlow) => {}
            }
        }
        fn of_data(data: &Data) {
            match data {
                Data::Json(_) | Data::Text(_) | Data::Binary(_) | Data::Opaque { .. } => {}
            }
        }
        fn of_members(change: Change, reason: LeaveReason) {
            match (change, reason) {
                (Change::Join | Change::Leave | Change::Update, LeaveReason::Unsubscribed) => {}
                (_, LeaveReason::Disconnected | LeaveReason::Ended) => {}
            }
        }
        fn of_rules(delivery: Delivery, replay: ReplayOnSubscribe, slow: SlowPolicy, send: SendPolicy) {
            match (delivery, replay) {
                (
                    Delivery::Every | Delivery::Latest,
                    ReplayOnSubscribe::None | ReplayOnSubscribe::Last | ReplayOnSubscribe::All,
                ) => {}
            }
            match (slow, send) {
                (SlowPolicy::Refill | SlowPolicy::Skip | SlowPolicy::Close, SendPolicy::Handler | SendPolicy::Publish) => {}
                (_, SendPolicy::Refuse) => {}
            }
        }
        of_notice(&Notice::Stale);
        of_session(&Turn::Frames);
        of_data(&Data::text(""));
        of_members(Change::Join, LeaveReason::Ended);
        of_rules(Delivery::Every, ReplayOnSubscribe::None, SlowPolicy::Skip, SendPolicy::Refuse);
    }
}
