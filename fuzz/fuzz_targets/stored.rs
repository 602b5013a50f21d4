//! What a broker's store gives back: written by any version of a node, or by anything else that
//! reaches the broker.
#![no_main]

use airwave_core::Message;
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some(message) = Message::from_stored(&Bytes::copy_from_slice(bytes)) else {
        return;
    };
    assert!(message.event.as_str().len() <= 255);
    assert!(message.key.as_ref().is_none_or(|key| (1..=255).contains(&key.as_str().len())));
    assert_eq!(message.weight() + 5, bytes.len(), "all of it is the message");
    let mut stored = Vec::new();
    message.store(&mut stored);
    assert_eq!(stored.len(), bytes.len());
    assert_eq!(Message::from_stored(&Bytes::from(stored)), Some(message));
});
