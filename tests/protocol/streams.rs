//! Streams of events, cut anywhere, and what the parser of airwave-protocol hears in them.
//! streams.json holds both, so that readers that are not ours compare: `eventsource-parser`
//! (clients/typescript/test/protocol.test.ts) and Chromium's `EventSource`
//! (tests/browser/eventsource.test.mjs).

use airwave_protocol::sse;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

/// Corners of the standard, each with a sense of its own.
const CORNERS: [&str; 16] = [
    "data: YHOO\ndata: +2\ndata: 10\n\n",
    ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
    "data\n\ndata\ndata\n\ndata:",
    "data: a\rdata: b\r\revent: x\rdata: c\r\r",
    "data: a\r\ndata: b\r\n\r\nevent: x\r\ndata: c\r\n\r\n",
    "data: a\rdata: b\r\n\revent: x\ndata: c\r\r\n",
    "data: a\n\rdata: b\n\r",
    "data: a\u{2028}b\u{2029}c\u{85}d\u{b}e\u{c}f\n\n",
    "\u{feff}data: a\n\n\u{feff}data: b\n\ndata: c\n\n",
    "id: 1\ndata: a\n\nid: 2\0\ndata: b\n\ndata: c\n\n",
    "retry: 10\ndata: a\n\nretry: 1x\nretry: -1\nretry:\ndata: b\n\n",
    "Data: a\n data: b\ndata : c\nDATA:d\n\ndata: e\n\n",
    "event: x\nevent: y\ndata: a\n\ndata: b\n\nevent: z\nevent\ndata: c\n\n",
    "event: x\n\ndata: a\n\n",
    "data: a: b\nfoo: bar\nfoo\n\n",
    "retry: 2731\nid: 17\nevent: airwave.subscribed\ndata: {\"channel\":\"a\"}\n\n:\n\nid: 18\nevent: line\ndata: a\ndata: b\n\n",
];

const PIECES: [&[u8]; 24] = [
    b"data",
    b"data: ",
    b"data: x\n",
    b"event",
    b"event: e\n",
    b"id",
    b"id: 7\n",
    b"retry: 5\n",
    b":",
    b": ",
    b"\n",
    b"\n\n",
    b"\r",
    b"\r\n",
    b"\r\n\r\n",
    b" ",
    b"x",
    "é".as_bytes(),
    "\u{1f980}".as_bytes(),
    "\u{2028}".as_bytes(),
    b"\0",
    b"\xff",
    b"\xe2\x82",
    b"\t",
];

/// The same numbers in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

fn streams() -> Vec<Vec<u8>> {
    let mut numbers = Numbers(7);
    let mut streams: Vec<Vec<u8>> = CORNERS.iter().map(|text| text.as_bytes().to_vec()).collect();
    for _ in 0..300 {
        let length = numbers.below(40);
        let mut stream: Vec<u8> = (0..length)
            .flat_map(|_| PIECES[numbers.below(PIECES.len())].to_vec())
            .collect();
        // Something is heard in most of them.
        stream.extend_from_slice(b"\n\ndata: last\n\n");
        streams.push(stream);
    }
    streams
}

#[test]
fn the_streams_for_other_readers_are_up_to_date() {
    let mut numbers = Numbers(11);
    let mut lines = Vec::new();
    for stream in streams() {
        let mut cuts: Vec<usize> = (0..numbers.below(6)).map(|_| numbers.below(stream.len() + 1)).collect();
        cuts.sort_unstable();
        let (mut parser, mut events) = (sse::Parser::default(), Vec::new());
        let mut from = 0;
        for to in cuts.iter().copied().chain([stream.len()]) {
            parser.push(&stream[from..to], &mut events).unwrap();
            from = to;
        }
        let events: Vec<_> = events
            .iter()
            .map(|event| json!({"id": event.id, "event": event.event, "data": event.data}))
            .collect();
        let line = json!({"bytes": STANDARD.encode(&stream), "cuts": cuts, "retry": parser.retry(), "events": events});
        lines.push(super::in_order(&line).to_string());
    }
    super::is_up_to_date("tests/protocol/streams.json", &format!("[\n{}\n]\n", lines.join(",\n")));
}
