//! What scripts and servers answer, as values of ours.

use std::sync::Arc;

use airwave_core::{Event, Message, Position, Replay};
use bytes::Bytes;
use redis::Value;

pub(super) fn text_of(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Some(text),
        _ => None,
    }
}

/// An event as the scripts tell it: `position:previous:message`. `None`: it is not one.
pub(super) fn decode(bytes: Vec<u8>) -> Option<Event> {
    let bytes = Bytes::from(bytes);
    let mut parts = bytes.splitn(3, |byte| *byte == b':');
    let position = std::str::from_utf8(parts.next()?).ok()?.parse().ok()?;
    let previous = std::str::from_utf8(parts.next()?).ok()?.parse().ok()?;
    let message = bytes.slice_ref(parts.next()?);
    Some(Event::new(position, previous, Message::from_stored(&message)))
}

/// Whether a script answers that it was not given enough.
pub(super) fn is_nothing(answer: &Value) -> bool {
    matches!(answer, Value::Array(parts) if parts.is_empty())
}

pub(super) fn strings(answer: Value) -> Option<Vec<Vec<u8>>> {
    let Value::Array(items) = answer else { return None };
    items
        .into_iter()
        .map(|item| match item {
            Value::BulkString(bytes) => Some(bytes),
            Value::SimpleString(text) => Some(text.into_bytes()),
            _ => None,
        })
        .collect()
}

pub(super) fn replay_of(answer: Value) -> Option<Replay> {
    let Value::Array(items) = answer else { return None };
    let mut items = items.into_iter();
    let flag = |items: &mut std::vec::IntoIter<Value>| match items.next()? {
        Value::Int(flag) => Some(flag == 1),
        _ => None,
    };
    let Value::BulkString(head) = items.next()? else { return None };
    let head: Position = std::str::from_utf8(&head).ok()?.parse().ok()?;
    let (ended, complete, more) = (flag(&mut items)?, flag(&mut items)?, flag(&mut items)?);
    let events = items.map(|item| match item {
        Value::BulkString(bytes) => decode(bytes).map(Arc::new),
        _ => None,
    });
    Some(
        Replay::new(head, events.collect::<Option<_>>()?)
            .with_complete(complete)
            .with_more(more)
            .with_ended(ended),
    )
}

#[cfg(test)]
mod tests {
    use airwave_core::event::Key;
    use airwave_core::{Append, Data, EventName};

    use super::*;

    fn stored(message: &Message) -> Vec<u8> {
        let mut bytes = b"1748123004217002:1748123004217001:".to_vec();
        message.store(&mut bytes);
        bytes
    }

    #[test]
    fn messages_come_back_as_they_were() {
        let long = "x".repeat(255);
        for (name, key, data) in [
            ("said", None, Data::text("")),
            ("said", Some("k:1"), Data::text("a:b:c\n")),
            (&long[..], Some(&long[..]), Data::binary(vec![0, 255, b':'])),
            ("s", Some("é"), Data::json_text("[1]").unwrap()),
        ] {
            let mut message = Message::new(EventName::new(name).unwrap(), data);
            message.key = key.map(|key| Key::new(key).unwrap());
            let event = decode(stored(&message)).unwrap();
            assert_eq!((event.position.0, event.previous.0), (1748123004217002, 1748123004217001));
            assert_eq!(event.message, message);
        }
        let end = Append::end().message;
        assert!(decode(stored(&end)).unwrap().is_end());
    }

    #[test]
    fn what_is_not_an_event_is_not_read_as_one() {
        let whole = stored(&Message::new(EventName::new("said").unwrap(), Data::text("text")));
        let numbers = b"1748123004217002:1748123004217001:".len();
        for length in 0..numbers {
            assert_eq!(decode(whole[..length].to_vec()), None, "the first {length} bytes of one");
        }
        for forged in ["x:1:t0000", "1:x:t0000", "-1:1:t0100a"] {
            assert_eq!(decode(forged.as_bytes().to_vec()), None, "{forged}");
        }
        for (newer, is_hidden) in [
            ("1:0:", true),
            ("1:0:t0100\n", true),
            ("1:0:tzz00a", true),
            ("1:0:t0101a\n", true),
            ("1:0:t0b00airwave.run{}", true),
            ("1:0:x0100a", false),
            ("1:0:3j01000000a", false),
        ] {
            let event = decode(newer.as_bytes().to_vec()).unwrap();
            assert_eq!((event.position.0, event.is_hidden()), (1, is_hidden), "{newer}");
        }
    }
}
