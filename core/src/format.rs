//! A format connects core and transports: it turns events and notices into bytes.

use std::sync::Arc;

pub use airwave_protocol::GapReason;
use bytes::Bytes;

use crate::event::{ChannelName, Event, JsonText, Position};
use crate::refusal::Refusal;

/// Bounds the number of formats of a hub. Each entry of a ring has a slot for each format.
pub(crate) const MAX_FORMATS: usize = 4;

/// A format encodes events and notices. The node calls it once per event and format, never per
/// listener. It is pure and cannot fail.
///
/// The bytes are ready for the socket, framing included. A socket loop knows nothing of what it
/// writes.
///
/// # Examples
///
/// This format writes one line of text for each event, and nothing for notices but the end of a
/// channel:
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
    /// Returns a short name for metrics: `sse`, `websocket`.
    fn name(&self) -> &'static str;

    /// Encodes an event. The node never calls it for the event that ends a channel: that event is
    /// [`Notice::End`].
    fn event(&self, channel: &ChannelName, event: &Event) -> Bytes;

    /// Encodes a notice of the server about a channel or the connection.
    fn notice(&self, notice: &Notice<'_>) -> Bytes;

    /// Returns the function that writes what follows an event's bytes. A stream of several
    /// channels, in which each event carries the cursor of them all, needs it. `None`: the format
    /// carries the position of each event in itself.
    fn stamp(&self) -> Option<Stamp>;
}

/// Appends the cursor of a stream of several channels to an event that was encoded without it.
pub type Stamp = fn(cursor: &dyn std::fmt::Display, out: &mut bytes::BytesMut);

/// A gap is an announced loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Gap {
    /// Holds the last position before the loss; `None` if the node cannot read the listener's
    /// cursor.
    pub after: Option<Position>,
    /// The stream goes on after this position.
    pub cursor: Position,
    /// Names the reason of the loss.
    pub reason: GapReason,
}

impl Gap {
    /// Returns the loss of everything after `after`, up to `cursor`.
    pub const fn new(after: Option<Position>, cursor: Position, reason: GapReason) -> Self {
        Self { after, cursor, reason }
    }
}

/// A member of a channel is a user, over all their connections on all nodes. All clients without a
/// user are one member, which the node only counts.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Member {
    /// Holds the user's id; `None` is the anonymous member.
    pub user: Option<Arc<str>>,
    /// Counts the connections of the member. It is zero only if the member has left.
    pub connections: u32,
    /// Holds the value that [`Identity::with_meta`](crate::Identity::with_meta) was given.
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

/// A change says what has happened to a [`Member`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Change {
    /// The member has come.
    Join,
    /// The member has left, with their last connection.
    Leave,
    /// The number of connections or the metadata of the member has changed.
    Update,
}

impl Change {
    /// Returns the change as clients see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Change::Join => "join",
            Change::Leave => "leave",
            Change::Update => "update",
        }
    }
}

/// A notice is a frame of the server that is not an event. `id` is the number that the client gave
/// its command, if it gave one.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Notice<'a> {
    /// The node confirms a subscription. `stamp` is the cursor of the whole stream, if the format
    /// has one.
    Subscribed {
        /// Holds the client's number of the command.
        id: Option<u64>,
        /// Names the channel.
        channel: &'a ChannelName,
        /// Holds the position before the first event that follows.
        cursor: Position,
        /// Holds the cursor of all channels of the stream, if it is a different one.
        stamp: Option<&'a crate::Cursor>,
        /// Says whether the client gave a cursor and everything after it follows.
        resumed: bool,
        /// Says how long the client should wait before it connects again, in milliseconds.
        retry: u32,
    },
    /// The subscription is over because the client asked for that.
    Unsubscribed {
        /// Holds the client's number of the command.
        id: Option<u64>,
        /// Names the channel.
        channel: &'a ChannelName,
    },
    /// The channel has lost events.
    Gap {
        /// Names the channel.
        channel: &'a ChannelName,
        /// Says from where, to where and why events are lost.
        gap: &'a Gap,
        /// Holds the cursor of all channels of the stream, if it is a different one.
        stamp: Option<&'a crate::Cursor>,
    },
    /// The channel has ended.
    End {
        /// Names the channel.
        channel: &'a ChannelName,
        /// Holds the end's position.
        cursor: Position,
        /// Holds the cursor of all channels of the stream, if it is a different one.
        stamp: Option<&'a crate::Cursor>,
    },
    /// The handler answers a message.
    Reply {
        /// Holds the client's number of the command.
        id: u64,
        /// Holds the answer.
        data: Option<&'a crate::Data>,
    },
    /// The server refuses a command or the whole session.
    Refused {
        /// Holds the client's number of the command.
        id: Option<u64>,
        /// Names the channel, if the refusal is about one.
        channel: Option<&'a ChannelName>,
        /// Says why.
        refusal: &'a Refusal,
        /// Names the address to use instead, with `wrong-transport`.
        url: Option<&'a str>,
        /// Says how long the client should wait before it connects again, in milliseconds.
        retry: u32,
    },
    /// A page lists the members of a channel. A page begins a new list if it is the first one or
    /// follows a page without `more`. The changes that follow the last page are those after the
    /// list.
    Members {
        /// Names the channel.
        channel: &'a ChannelName,
        /// Holds each member once in the whole list, users in the order of their ids, the anonymous
        /// last.
        members: &'a [Arc<Member>],
        /// Says whether another page follows.
        more: bool,
    },
    /// A member has joined a channel, left it, or changed.
    Change {
        /// Names the channel.
        channel: &'a ChannelName,
        /// Says what has happened.
        change: Change,
        /// Holds the member's present state.
        member: &'a Member,
    },
    /// The node has not reached its broker for a while.
    Stale,
    /// Nothing happened for a while. `visible`: scripts must be able to see the heartbeat.
    Heartbeat {
        /// Says whether scripts must be able to see the heartbeat.
        visible: bool,
    },
    /// The node goes away.
    Drain {
        /// Says how long the client should wait before it connects again, in milliseconds.
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
