//! The values everything else passes around: names, positions, messages, events.
//!
//! Parse at the door: a [`ChannelName`] or [`EventName`] exists only if it is valid, so no format
//! has to check again and no line break can ever forge a field of an SSE stream.

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

/// A message at a position of a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event {
    /// Its position.
    pub position: Position,
    /// The position of the event before it in this channel; zero: none is known.
    ///
    /// For example: events 10, 20, 30 have previous 10's base, 10 and 20. A reader that has 20 and
    /// gets 30 has missed nothing; a reader that has 10 and gets 30 asks the broker for what lies
    /// between.
    pub previous: Position,
    /// What was said.
    pub message: Message,
}

impl Event {
    /// Returns the event of `message` at `position`, right behind `previous`. A broker builds its
    /// events with this.
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

    /// Whether this is the event that ends its channel.
    pub fn is_end(&self) -> bool {
        self.message.event.as_str() == "airwave.end"
    }

    /// Whether no listener is shown this event. It has its position, and cursors pass it: a later
    /// version of Airwave has stored it for itself.
    pub fn is_hidden(&self) -> bool {
        self.message.is_hidden()
    }
}
