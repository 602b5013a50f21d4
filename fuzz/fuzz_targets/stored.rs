//! What a broker's store gives back: written by any version of a node, or by anything else that
//! reaches the broker.
#![no_main]

use airwave_core::{Data, Message};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fn stored(message: &Message) -> Bytes {
    let mut bytes = Vec::new();
    message.store(&mut bytes);
    bytes.into()
}

fuzz_target!(|bytes: &[u8]| {
    let message = Message::from_stored(&Bytes::copy_from_slice(bytes));
    assert!(message.event.as_str().len() <= 255);
    assert!(message.key.as_ref().is_none_or(|key| (1..=255).contains(&key.as_str().len())));
    let again = stored(&message);
    assert_eq!(Message::from_stored(&again), message);
    // What this version writes, and what it does not understand, is written as it was. Of version 2
    // it writes nothing without attributes.
    let is_opaque = matches!(message.data, Data::Opaque { .. });
    if is_opaque || bytes[0] != b'2' || again.first() == Some(&b'2') {
        assert_eq!(again, bytes);
    }
    for (name, value) in message.attributes.iter() {
        assert!(!name.starts_with("airwave.") && !value.chars().any(char::is_control));
    }
});
