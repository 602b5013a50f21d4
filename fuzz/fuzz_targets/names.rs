//! Names and keys come in URLs, frames and publications, and go unescaped into frames and storage.
#![no_main]

use std::fmt::Debug;

use airwave_core::event::{IdempotencyKey, Invalid};
use airwave_core::rule::Pattern;
use airwave_core::{ChannelName, EventName, Key};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if kept(text, ChannelName::new(text), ChannelName::as_str) {
        unescaped(text);
        assert!(text.split('/').all(|part| !part.is_empty()), "{text:?}");
        // A name without wildcards is a pattern for itself.
        let pattern: Pattern = text.parse().expect("a channel's name is a pattern");
        assert!(pattern.matches(text).is_some(), "{text:?}");
    }
    if kept(text, EventName::new(text), EventName::as_str) {
        unescaped(text);
        assert!(!text.contains('/') && !text.starts_with("airwave."), "{text:?}");
        assert!(EventName::from_stored(text).is_ok(), "{text:?} can be said and not stored");
    }
    kept(text, Key::new(text), Key::as_str);
    if kept(text, IdempotencyKey::new(text), IdempotencyKey::as_str) {
        assert!(text.bytes().all(|byte| byte.is_ascii_graphic()), "{text:?}");
    }
    if let Ok(pattern) = text.parse::<Pattern>() {
        assert_eq!(pattern.as_str(), text);
    }
});

/// Whether it is taken; what is taken stays as it was, has 1 to 255 bytes, and no control
/// characters.
fn kept<T: Debug>(text: &str, made: Result<T, Invalid>, as_str: impl Fn(&T) -> &str) -> bool {
    match made {
        Ok(made) => {
            assert_eq!(as_str(&made), text);
            assert!((1..=255).contains(&text.len()), "{} bytes", text.len());
            assert!(!text.chars().any(char::is_control), "{text:?}");
            true
        }
        Err(why) => {
            assert!(!why.to_string().is_empty());
            false
        }
    }
}

/// What frames embed as it stands.
fn unescaped(text: &str) {
    assert_eq!(serde_json::to_string(text).expect("it is text"), format!("\"{text}\""));
}
