//! Messages and publications: bodies of POST, JSON frames, binary frames.
#![no_main]

use airwave_core::{ChannelName, Data, Event, Message, Position};
use airwave_transports::envelope::{Publication, binary, envelope, read, read_binary, read_sent};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|bytes: &[u8]| {
    match read_sent(bytes) {
        Ok(message) => is_sound(bytes, message),
        Err(refusal) => assert!(!refusal.message.is_empty()),
    }
    if let Ok(mut publication) = read::<Publication<'_>>(bytes) {
        let ends = publication.ends();
        match publication.take_message() {
            Ok(Some(message)) => is_sound(bytes, message),
            Ok(None) => assert!(ends, "nothing is published, and nothing ends"),
            Err(refusal) => assert!(!refusal.message.is_empty()),
        }
    }
    let frame = Bytes::copy_from_slice(bytes);
    if let Ok((channel, event, number, payload)) = read_binary(&frame) {
        assert_eq!(binary(&channel, &event, number, &payload), bytes, "a frame has one form");
    }
});

/// What is taken from a client goes out as one line of JSON that says the same.
fn is_sound(body: &[u8], message: Message) {
    assert!(depth(body) <= 32, "the JSON nests {} deep", depth(body));
    assert!(message.event.as_str().len() <= 255);
    let channel = ChannelName::new("fuzz").expect("it is a name");
    let event = Event::new(Position(7), Position(6), message);
    let line = envelope(&channel, &event);
    let breaks = |c: char| c.is_control() || c == '\u{2028}' || c == '\u{2029}';
    assert!(!line.contains(breaks), "{line:?}");
    let said: Value = serde_json::from_str(&line).expect("an envelope is JSON");
    assert_eq!(said["event"], event.message.event.as_str());
    assert_eq!(said["key"].as_str(), event.message.key.as_ref().map(|key| key.as_str()));
    match &event.message.data {
        // Numbers beyond f64 and lone surrogates are JSON that serde's Value does not hold.
        Data::Json(text) => {
            if let Ok(data) = serde_json::from_str::<Value>(text.as_str()) {
                assert_eq!(said["data"], data);
            }
        }
        Data::Text(text) => assert_eq!(said["text"], **text),
        Data::Binary(bytes) => assert_eq!(said["base64"], STANDARD.encode(bytes)),
        other => panic!("{other:?} cannot be published"),
    }
    let mut stored = Vec::new();
    event.message.store(&mut stored);
    assert_eq!(Message::from_stored(&Bytes::from(stored)), event.message);
}

/// How deep JSON nests.
fn depth(json: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0usize, 0, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}
