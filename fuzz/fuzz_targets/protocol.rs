//! Frames, pages and answers of any server, frames of any client, binary frames.
#![no_main]

use airwave_protocol::{
    Answer, ClientFrame, ClientMessage, Envelope, ErrorBody, Page, Publication, PublishAnswer, ServerFrame, binary,
};
use libfuzzer_sys::fuzz_target;

/// Writes what was read, reads that, and writes it again.
macro_rules! again {
    ($text:ident: $($type:ident)*) => {$(
        if let Ok(value) = serde_json::from_str::<$type<'_>>($text) {
            let first = serde_json::to_string(&value).expect("what was read can be written");
            let value: $type<'_> = serde_json::from_str(&first).expect("what was written can be read");
            assert_eq!(serde_json::to_string(&value).expect("it can be written again"), first);
        }
    )*};
}

type Answers<'a> = Vec<PublishAnswer<'a>>;

// What can be read is written, and what was written is read back as the same, byte for byte from
// then on.
fuzz_target!(|bytes: &[u8]| {
    if let Ok(frame) = binary::Frame::decode(bytes) {
        assert_eq!(frame.encode(), bytes, "a frame has one form");
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(frames) = ServerFrame::parse_all(text) {
        for frame in &frames {
            let written = frame.to_json();
            let read = ServerFrame::parse(&written).expect("a frame that was written is one");
            assert_eq!((&read, read.kind()), (frame, frame.kind()));
            assert_eq!(read.clone().into_owned().to_json(), written);
        }
        let batch = serde_json::to_string(&frames).expect("frames are JSON");
        assert_eq!(
            ServerFrame::parse_all(&batch).expect("a batch that was written is one"),
            frames
        );
    }
    again!(text: ClientFrame ClientMessage Envelope Publication Answers Page ErrorBody Answer);
});
