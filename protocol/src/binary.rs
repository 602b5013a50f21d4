//! Binary frames of a WebSocket: events of a server, messages of a client.
//!
//! | bytes | meaning |
//! |---|---|
//! | 1 | format, `0x01` |
//! | 1 + n | length and bytes of the channel name |
//! | 1 + m | length and bytes of the event name |
//! | 8 | server to client: position; client to server: the command's `id`, or [`NO_ID`]. Big endian |
//! | rest | payload |

use crate::envelope::Envelope;
use crate::error::ReadError;
use crate::payload::Payload;

/// The first byte of every binary frame.
pub const FORMAT: u8 = 1;
/// The number in a client's message that wants no reply.
pub const NO_ID: u64 = u64::MAX;

/// A binary frame, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Frame<'a> {
    /// The channel.
    pub channel: &'a str,
    /// The event's name.
    pub event: &'a str,
    /// The position of an event, the number of a command.
    pub number: u64,
    /// The bytes of the event or message.
    pub payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// A frame. Names of more than 255 bytes are cut by [`Frame::encode`]: there are none.
    pub fn new(channel: &'a str, event: &'a str, number: u64, payload: &'a [u8]) -> Self {
        Self {
            channel,
            event,
            number,
            payload,
        }
    }

    /// Reads a frame.
    ///
    /// # Errors
    /// The bytes have another form, or a name is not UTF-8.
    pub fn decode(frame: &'a [u8]) -> Result<Self, ReadError> {
        fn name(bytes: &[u8]) -> Option<(&str, &[u8])> {
            let (&length, rest) = bytes.split_first()?;
            let (name, rest) = rest.split_at_checked(length.into())?;
            Some((std::str::from_utf8(name).ok()?, rest))
        }
        fn all(frame: &[u8]) -> Option<Frame<'_>> {
            let rest = frame.strip_prefix(&[FORMAT])?;
            let (channel, rest) = name(rest)?;
            let (event, rest) = name(rest)?;
            let (number, payload) = rest.split_first_chunk::<8>()?;
            Some(Frame::new(channel, event, u64::from_be_bytes(*number), payload))
        }
        all(frame).ok_or(ReadError::Binary)
    }

    /// Writes the frame.
    pub fn encode(&self) -> Vec<u8> {
        let mut frame = Vec::with_capacity(11 + self.channel.len() + self.event.len() + self.payload.len());
        frame.push(FORMAT);
        for name in [self.channel, self.event] {
            let name = &name.as_bytes()[..name.len().min(255)];
            frame.push(name.len() as u8);
            frame.extend_from_slice(name);
        }
        frame.extend_from_slice(&self.number.to_be_bytes());
        frame.extend_from_slice(self.payload);
        frame
    }

    /// Returns the event of a server's frame.
    pub fn into_event(self) -> Envelope<'a> {
        Envelope::new(
            self.channel,
            self.number.to_string(),
            self.event,
            Payload::binary(self.payload),
        )
    }
}
