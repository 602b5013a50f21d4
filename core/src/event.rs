//! This module defines the values that everything else passes around: names, positions, messages
//! and events.
//!
//! Construction checks each value: a [`ChannelName`] or [`EventName`] exists only if it is valid.
//! So no format has to check again, and no line break can forge a field of an SSE stream.

mod attributes;
mod data;
mod json;
mod message;
mod names;
mod position;
mod stored;

pub use self::attributes::{Attributes, MAX_ATTRIBUTE_NAME, MAX_ATTRIBUTES, MAX_ATTRIBUTES_BYTES};
pub use self::data::{Data, JsonText, quoted};
pub use self::message::Message;
pub use self::names::{ChannelName, EventName, IdempotencyKey, Invalid, Key, MAX_NAME, RESERVED_PREFIX};
pub use self::position::Position;

/// An event is a message at a position of a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event {
    /// Holds the event's position.
    pub position: Position,
    /// Holds the position of the event before this one in its channel. Zero means that none is
    /// known.
    ///
    /// For example, events 10, 20 and 30 have as previous the base of 10, then 10, then 20. A
    /// reader that has 20 and gets 30 has missed nothing. A reader that has 10 and gets 30 asks the
    /// broker for the events in between.
    pub previous: Position,
    /// Holds the message.
    pub message: Message,
}

impl Event {
    /// Returns the event of `message` at `position`, right behind `previous`. A broker builds its
    /// events with this function.
    ///
    /// # Examples
    ///
    /// ```
    /// use airwave_core::{Event, Message, Position};
    ///
    /// let message = Message::json_of("shipped", &7)?;
    /// let event = Event::new(Position(30), Position(20), message);
    /// assert_eq!(event.previous, Position(20));
    /// # Ok::<(), airwave_core::event::Invalid>(())
    /// ```
    pub fn new(position: Position, previous: Position, message: Message) -> Self {
        Self {
            position,
            previous,
            message,
        }
    }

    /// Returns whether this event ends its channel.
    pub fn is_end(&self) -> bool {
        self.message.event.as_str() == "airwave.end"
    }

    /// Returns whether the event is hidden from all listeners. It has its position, and cursors
    /// pass it. A later version of Airwave has stored it for its own use.
    pub fn is_hidden(&self) -> bool {
        self.message.is_hidden()
    }
}
