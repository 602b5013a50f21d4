//! What stands in the stream: events, and marks where a channel has a place without an event.
//!
//! A channel's newest message says all about the channel: where its head is, whether it has ended,
//! how much was ever written. A message is written only if the one it builds on is still the
//! channel's newest, so the chain that they tell is true.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use airwave_core::{Append, ChannelName, Event, Message, Position};
use bytes::Bytes;

/// What is known of a channel from its newest message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chain {
    /// The newest message's sequence, on which the next one must build; zero: there is none.
    pub(super) newest: u64,
    /// The newest event's position, or the base.
    pub(super) head: Position,
    pub(super) base: Position,
    pub(super) ended: bool,
    /// Whether the end stands in the message of the event before it, whose sequence is one below
    /// the head.
    pub(super) end_in_event: bool,
    /// How many events there ever were, and what all of them weigh.
    pub(super) events: u64,
    pub(super) bytes: u64,
}

impl Chain {
    /// Of a channel without any message.
    pub(super) const NONE: Chain = Chain {
        newest: 0,
        head: Position::ZERO,
        base: Position::ZERO,
        ended: false,
        end_in_event: false,
        events: 0,
        bytes: 0,
    };
}

/// No time: later than all others, so that nothing is ever too old for want of a time.
pub(super) const UNKNOWN: u64 = u64::MAX;

impl Chain {
    /// The sequence of the message that holds the head, if the head is an event.
    pub(super) fn head_message(&self) -> u64 {
        self.head.0 - u64::from(self.end_in_event)
    }
}

/// One message of the stream.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Stored {
    /// The chain with this message as its newest.
    pub(super) chain: Chain,
    /// What was written before this event, in bytes.
    pub(super) bytes_before: u64,
    /// When it was stored, by the clock of the server: µs since 1970. [`UNKNOWN`] where no server
    /// said so.
    pub(super) stored_at: u64,
    /// `None`: a mark.
    pub(super) event: Option<Arc<Event>>,
    /// The channel's end, if the message holds it behind its event: at the next sequence, which no
    /// other message of the channel gets.
    pub(super) end: Option<Arc<Event>>,
}

impl Stored {
    /// What the message holds, in order.
    pub(super) fn events(&self) -> impl DoubleEndedIterator<Item = &Arc<Event>> {
        self.event.iter().chain(&self.end)
    }

    /// How many events the channel ever had before this message.
    pub(super) fn events_before(&self) -> u64 {
        self.chain.events.saturating_sub(self.events().count() as u64)
    }

    /// The same as one message for each event: the end as if it stood at its own sequence.
    pub(super) fn parts(mut self) -> impl Iterator<Item = Stored> {
        let end = self.end.take().map(|end| {
            let weight = self.event.as_ref().map_or(0, |event| event.message.weight()) as u64;
            let whole = Stored {
                chain: Chain {
                    newest: end.position.0,
                    ..self.chain
                },
                bytes_before: self.bytes_before + weight,
                event: Some(end.clone()),
                ..self.clone()
            };
            self.chain = Chain {
                head: end.previous,
                ended: false,
                end_in_event: false,
                events: self.chain.events - 1,
                bytes: whole.bytes_before,
                ..self.chain
            };
            whole
        });
        [self].into_iter().chain(end)
    }
}

pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// The channel's name as one token of a subject: what is not a letter, a digit, `-` or `_` becomes
/// `=` and two hexadecimal digits. No name can become a wildcard or another name's token, and the
/// longest is 765 bytes, well below what a server takes.
pub(super) fn token(channel: &ChannelName) -> String {
    use std::fmt::Write;
    let mut token = String::with_capacity(channel.as_str().len() + 16);
    for byte in channel.as_str().bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_' {
            token.push(char::from(byte));
        } else {
            let _ = write!(token, "={byte:02X}"); // writing to a String cannot fail
        }
    }
    token
}

/// The channel that a token is of. `None`: of none.
pub(super) fn channel_of(token: &str) -> Option<ChannelName> {
    let mut name = Vec::with_capacity(token.len());
    let mut bytes = token.bytes();
    while let Some(byte) = bytes.next() {
        name.push(match byte {
            b'=' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            byte => byte,
        });
    }
    ChannelName::new(std::str::from_utf8(&name).ok()?).ok()
}

/// Before the message of an event behind which the channel ends. Version 0.1 takes such a message
/// for none of its own.
const AND_END: &[u8] = b"+";

/// Five numbers (previous or head, base, bytes, events, clock), each before a colon; then, of an
/// event, its message as brokers store it. The chain is the one before the event. `and_end`: the
/// channel ends behind it. The clock is the writer's own. Only version 0.1 reads it: age is judged
/// by the time at which the server stored the message.
pub(super) fn event(before: &Chain, message: &Message, and_end: bool, now: u64) -> Bytes {
    let mut bytes = numbers(before, now).into_bytes();
    if and_end {
        bytes.extend_from_slice(AND_END);
    }
    message.store(&mut bytes);
    bytes.into()
}

/// A mark: of the base, if the chain has no head, or of a head whose event may not be kept.
/// Version 0.1 wrote one wherever a channel was asked for.
pub(super) fn mark(chain: &Chain, now: u64) -> Bytes {
    let kind = match chain {
        Chain { end_in_event: true, .. } => "+E",
        Chain { ended: true, .. } => "E",
        _ => "M",
    };
    (numbers(chain, now) + kind).into()
}

fn numbers(chain: &Chain, now: u64) -> String {
    format!("{}:{}:{}:{}:{now}:", chain.head, chain.base, chain.bytes, chain.events)
}

/// What a mark says behind its numbers: whether the channel has ended, and whether its end stands
/// in the message of the event before it. `None`: this is no mark.
///
/// A mark begins with a capital letter, behind a `+` where the end stands with its event. Of a mark
/// of a later version only the numbers are taken, so that the chain goes on.
fn kind_of_mark(rest: &[u8]) -> Option<(bool, bool)> {
    match rest {
        [b'+', b'A'..=b'Z', ..] => Some((true, true)),
        [kind @ b'A'..=b'Z', ..] => Some((*kind == b'E', false)),
        _ => None,
    }
}

/// A message of the stream. `None`: it is not one of ours. Behind the five numbers may stand what a
/// later version wrote: an event that is opaque or hidden, or a mark.
pub(super) fn read(sequence: u64, bytes: Bytes) -> Option<Stored> {
    let mut parts = bytes.splitn(6, |byte| *byte == b':');
    let mut number = || std::str::from_utf8(parts.next()?).ok()?.parse::<u64>().ok();
    let (head, base, bytes_before, events, _written) = (number()?, number()?, number()?, number()?, number()?);
    let rest = bytes.slice_ref(parts.next()?);
    if let Some((ended, end_in_event)) = kind_of_mark(&rest) {
        let place = |given: u64| Position(if given == 0 { sequence } else { given });
        let chain = Chain {
            newest: sequence,
            head: place(head),
            base: place(base),
            ended,
            end_in_event,
            events,
            bytes: bytes_before,
        };
        return Some(Stored {
            chain,
            bytes_before,
            stored_at: UNKNOWN,
            event: None,
            end: None,
        });
    }
    // A first event without a mark before it stands right behind its base.
    let place = |given: u64| Position(if given == 0 { sequence - 1 } else { given });
    let and_end = rest.starts_with(AND_END);
    let event = Event::new(
        Position(sequence),
        place(head),
        Message::from_stored(&rest.slice(if and_end { AND_END.len() } else { 0 }..)),
    );
    let end = and_end.then(|| Event::new(Position(sequence + 1), event.position, Append::end().message));
    if and_end && event.is_end() {
        return None;
    }
    let last = end.as_ref().unwrap_or(&event);
    let weight = event.message.weight() + end.as_ref().map_or(0, |end| end.message.weight());
    let chain = Chain {
        newest: sequence,
        head: last.position,
        base: place(base),
        ended: last.is_end(),
        end_in_event: and_end,
        events: events.checked_add(1 + u64::from(and_end))?,
        bytes: bytes_before.checked_add(weight as u64)?,
    };
    Some(Stored {
        chain,
        bytes_before,
        stored_at: UNKNOWN,
        event: Some(Arc::new(event)),
        end: end.map(Arc::new),
    })
}

#[cfg(test)]
mod tests {
    use airwave_core::event::Key;
    use airwave_core::{Data, EventName};

    use super::*;

    const BEFORE: Chain = Chain {
        newest: 40,
        head: Position(30),
        base: Position(10),
        ended: false,
        end_in_event: false,
        events: 2,
        bytes: 100,
    };

    #[test]
    fn messages_come_back_as_they_were() {
        let long = "x".repeat(255);
        for (name, key, data) in [
            ("said", None, Data::text("")),
            ("said", Some("k:1"), Data::text("a:b:c\n")),
            (&long[..], Some(&long[..]), Data::binary(vec![0, 255, b':'])),
            ("s", Some("é"), Data::json_text("[1]").unwrap()),
            ("M", None, Data::text("M")),
        ] {
            let mut message = Message::new(EventName::new(name).unwrap(), data);
            message.key = key.map(|key| Key::new(key).unwrap());
            let stored = read(50, event(&BEFORE, &message, false, 7)).unwrap();
            let shown = stored.event.unwrap();
            assert_eq!((shown.position.0, shown.previous.0), (50, 30));
            assert_eq!(shown.message, message);
            let bytes = 100 + message.weight() as u64;
            let chain = Chain {
                newest: 50,
                head: Position(50),
                events: 3,
                bytes,
                ..BEFORE
            };
            assert_eq!((stored.chain, stored.bytes_before), (chain, 100));
        }
        let end = read(50, event(&BEFORE, &Append::end().message, false, 7)).unwrap();
        assert!(end.chain.ended);
    }

    #[test]
    fn an_event_and_the_end_behind_it_are_one_message() {
        let message = Message::new(EventName::new("said").unwrap(), Data::text("last"));
        let bytes = event(&BEFORE, &message, true, 7);
        let stored = read(50, bytes.clone()).unwrap();
        let events: Vec<_> = stored.events().collect();
        assert_eq!(
            (events[0].position.0, events[0].previous.0, &events[0].message),
            (50, 30, &message)
        );
        assert_eq!(
            (events[1].position.0, events[1].previous.0, events[1].is_end()),
            (51, 50, true)
        );
        let chain = stored.chain;
        assert_eq!(
            (chain.newest, chain.head.0, chain.head_message(), chain.events),
            (50, 51, 50, 4)
        );
        assert!(chain.ended && stored.events_before() == 2);
        let parts: Vec<_> = stored.clone().parts().collect();
        assert_eq!(parts[0], read(50, event(&BEFORE, &message, false, 7)).unwrap());
        let before = Chain {
            newest: 50,
            ..parts[0].chain
        };
        let end = read(51, event(&before, &Append::end().message, false, 7)).unwrap();
        assert_eq!(
            (&parts[1].event, parts[1].bytes_before, parts.len()),
            (&end.event, end.bytes_before, 2)
        );
        // A mark that repeats it still says where the head stands.
        assert_eq!(read(60, mark(&chain, 7)).unwrap().chain, Chain { newest: 60, ..chain });
        // What version 0.1 does with it: it reads a message behind the numbers, and this is none.
        let behind_numbers = bytes.iter().enumerate().filter(|(_, byte)| **byte == b':').nth(4).unwrap().0 + 1;
        assert!(Message::from_stored(&bytes.slice(behind_numbers..)).is_hidden());
        assert_eq!(read(50, event(&BEFORE, &Append::end().message, true, 7)), None, "two ends");
    }

    #[test]
    fn a_first_event_and_a_birth_find_their_places() {
        let message = Message::new(EventName::new("said").unwrap(), Data::text(""));
        let first = read(50, event(&Chain::NONE, &message, false, 7)).unwrap();
        assert_eq!((first.chain.base.0, first.event.unwrap().previous.0), (49, 49));
        let base = read(50, mark(&Chain::NONE, 7)).unwrap().chain;
        assert_eq!((base.newest, base.head.0, base.base.0, base.ended), (50, 50, 50, false));
        let ended = Chain { ended: true, ..BEFORE };
        assert_eq!(read(50, mark(&ended, 7)).unwrap().chain, Chain { newest: 50, ..ended });
    }

    #[test]
    fn what_is_not_ours_is_not_read() {
        let whole = event(
            &BEFORE,
            &Message::new(EventName::new("said").unwrap(), Data::text("text")),
            false,
            7,
        );
        let numbers = numbers(&BEFORE, 7).len();
        for length in 0..numbers {
            assert_eq!(read(50, whole.slice(..length)), None, "the first {length} bytes of one");
        }
        for forged in ["", "M", "1:1:1:1:x:M", "1:1:1:1:1", "-1:1:1:1:1:M"] {
            assert_eq!(read(50, Bytes::copy_from_slice(forged.as_bytes())), None, "{forged}");
        }
    }

    #[test]
    fn behind_the_numbers_a_later_version_may_have_written_anything() {
        let read = |rest: &str| read(50, (numbers(&BEFORE, 7) + rest).into()).unwrap();
        for (rest, is_hidden) in [
            ("", true),
            ("t0401", true),
            ("t0101a\n", true),
            ("?", true),
            ("t0b00airwave.run{}", true),
            ("z0400saidhi", false),
            ("3j04000000saidhi", false),
            ("+3j04000000saidhi", false),
        ] {
            let stored = read(rest);
            let event = stored.event.clone().unwrap();
            assert_eq!(
                (event.position.0, event.previous.0, event.is_hidden()),
                (50, 30, is_hidden),
                "{rest}"
            );
            assert_eq!(stored.end.is_some(), rest.starts_with('+'));
            let bytes = stored.events().map(|event| event.message.weight() as u64).sum::<u64>();
            assert_eq!(
                (stored.chain.events, stored.chain.bytes),
                (2 + stored.events().count() as u64, 100 + bytes)
            );
        }
        // A mark of a later version keeps the chain. What ends a channel still begins as it does.
        for (rest, ended, end_in_event) in [
            ("MM", false, false),
            ("X:1", false, false),
            ("E2", true, false),
            ("+E2", true, true),
        ] {
            let stored = read(rest);
            assert_eq!(stored.event, None);
            let chain = Chain {
                newest: 50,
                ended,
                end_in_event,
                ..BEFORE
            };
            assert_eq!(stored.chain, chain, "{rest}");
        }
    }

    #[test]
    fn names_are_one_literal_token_each() {
        let token = |name: &str| token(&ChannelName::new(name).unwrap());
        assert_eq!(token("orders/a.b_c-D:1"), "orders=2Fa=2Eb_c-D=3A1");
        assert_ne!(token("a=2Fb"), token("a/b"));
        let longest = token(&"~".repeat(255));
        assert!(longest.len() == 765 && !longest.contains(['.', '*', '>', ' ']));
        for name in ["orders/a.b_c-D:1", "a=2Fb", "~"] {
            assert_eq!(
                channel_of(&token(name)).map(|name| name.to_string()),
                ChannelName::new(name).ok().map(|name| name.to_string())
            );
        }
        for foreign in ["a=", "a=2", "a=zz", "=FF", ""] {
            assert_eq!(channel_of(foreign), None, "{foreign}");
        }
    }
}
