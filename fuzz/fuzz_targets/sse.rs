//! The command line reads streams from any server.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../src/cli/sse.rs"]
#[allow(dead_code)]
mod sse;

use sse::{Block, Parser};

// The first byte counts the bytes after it that say where the rest, a stream, is cut.
fuzz_target!(|bytes: &[u8]| {
    let Some((&cuts, rest)) = bytes.split_first() else {
        return;
    };
    let (cuts, stream) = rest.split_at(usize::from(cuts).min(rest.len()));
    let whole = parse([stream]);
    assert_eq!(whole, parse(cut(stream, cuts)), "a stream means the same however it is cut");
    for block in &whole.0 {
        assert!(!block.event.is_empty());
        for text in [&block.id, &block.event] {
            assert!(!text.contains(['\n', '\r']), "{text:?}");
        }
        assert!(!block.data.contains('\r') && !block.id.contains('\0'), "{block:?}");
    }
    // Written as a server writes them, the blocks are read back.
    let written: String = whole.0.iter().map(write).collect();
    assert_eq!(parse([written.as_bytes()]).0, whole.0);
});

fn parse<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Block>, String, Option<u64>) {
    let (mut parser, mut blocks) = (Parser::default(), Vec::new());
    for piece in pieces {
        parser.push(piece, &mut blocks).expect("an input is far smaller than what is too large");
    }
    (blocks, parser.last_id().to_owned(), parser.retry())
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

fn write(block: &Block) -> String {
    let data: String = block.data.split('\n').map(|line| format!("data: {line}\n")).collect();
    format!("id: {}\nevent: {}\n{data}\n", block.id, block.event)
}
