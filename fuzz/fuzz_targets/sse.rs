//! Clients read streams from any server.
#![no_main]

use airwave_protocol::ServerFrame;
use airwave_protocol::sse::{Event, Limits, Parser, Writer};
use libfuzzer_sys::fuzz_target;

// The first byte counts the bytes after it that say where the rest, a stream, is cut.
fuzz_target!(|bytes: &[u8]| {
    let Some((&cuts, rest)) = bytes.split_first() else {
        return;
    };
    let (cuts, stream) = rest.split_at(usize::from(cuts).min(rest.len()));
    let whole = parse([stream]);
    assert_eq!(whole, parse(cut(stream, cuts)), "a stream means the same however it is cut");
    for event in &whole.0 {
        assert!(!event.event.is_empty());
        for text in [&event.id, &event.event] {
            assert!(!text.contains(['\n', '\r']), "{text:?}");
        }
        assert!(!event.data.contains('\r') && !event.id.contains('\0'), "{event:?}");
        let _ = (ServerFrame::from_sse(event, None), ServerFrame::from_sse(event, Some("a")));
    }
    // Written as a server writes them, the events are read back. A name with a NUL cannot be
    // written.
    let mut writer = Writer::default();
    let named: Vec<&Event> = whole.0.iter().filter(|event| !event.event.contains('\0')).collect();
    for event in &named {
        let written = writer.id(&event.id).and_then(|writer| writer.event(&event.event));
        written
            .expect("no id and no name that was read ends its line")
            .data(&event.data)
            .end();
    }
    let text = writer.into_text();
    assert_eq!(parse([text.as_bytes()]).0.iter().collect::<Vec<_>>(), named);

    // Where the limits are small, the cuts change nothing either: the same events, the same error.
    let limited = |pieces: Vec<&[u8]>| {
        let (mut parser, mut events) = (Parser::with_limits(Limits::new(24, 32, 6)), Vec::new());
        let error = pieces.into_iter().fold(Ok(()), |_, piece| parser.push(piece, &mut events));
        (events, error)
    };
    assert_eq!(limited(vec![stream]), limited(cut(stream, cuts)));
});

fn parse<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Event>, String, Option<u64>) {
    let (mut parser, mut events) = (Parser::default(), Vec::new());
    for piece in pieces {
        parser
            .push(piece, &mut events)
            .expect("an input is far smaller than what is too large");
    }
    (events, parser.last_id().to_owned(), parser.retry())
}

fn cut<'a>(mut stream: &'a [u8], cuts: &[u8]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    for length in cuts {
        let (piece, rest) = stream.split_at(usize::from(*length).min(stream.len()));
        pieces.push(piece);
        stream = rest;
    }
    pieces.push(stream);
    pieces
}
