//! A cursor is whatever a client sends as `after` or `Last-Event-ID`.
#![no_main]

use airwave_core::{ChannelName, Cursor, Position};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        any_text(text);
    }
    any_positions(bytes);
});

/// What is taken for a cursor is written and read back as the same cursor, and is bounded.
fn any_text(text: &str) {
    let Ok(cursor) = Cursor::parse(text) else {
        return;
    };
    let written = cursor.to_string();
    assert_eq!(Cursor::parse(&written).as_ref(), Ok(&cursor), "{text:?} became {written:?}");
    // A number has one form but for zeros in front; a token may not be longer when it is written.
    assert!(written.len() <= text.len(), "{text:?} became {written:?}");
    match &cursor {
        Cursor::One(_) => assert!(cursor.is_one()),
        Cursor::Many(entries) => assert!((1..=1000).contains(&entries.len()), "{} entries", entries.len()),
        other => panic!("this target does not check {other:?} yet"),
    }
}

/// Whatever positions a stream has, the id that it sends brings them back.
fn any_positions(bytes: &[u8]) {
    let positions: Vec<u64> = bytes
        .chunks_exact(8)
        .take(100)
        .map(|bytes| bytes.iter().fold(0, |all, byte| all << 8 | u64::from(*byte)))
        .collect();
    if positions.is_empty() {
        return;
    }
    let names: Vec<ChannelName> = (0..positions.len())
        .map(|number| ChannelName::new(&format!("fuzz/{number}")).expect("it is a name"))
        .collect();
    let all = names.iter().zip(positions.iter().map(|position| Position(*position)));
    let text = Cursor::many(all).to_string();
    assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)), "{text:?}");
    let back = Cursor::parse(&text).expect("it was written as a cursor");
    for (name, position) in names.iter().zip(&positions) {
        assert_eq!(back.position(name), Some(Position(*position)));
    }
}
