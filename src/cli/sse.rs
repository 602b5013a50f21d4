//! Server-sent events, read: bytes in any pieces to blocks, as the WHATWG standard says.

/// A block that was dispatched: it had data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Block {
    /// The last id that the stream has named, this block's or an earlier one's.
    pub(super) id: String,
    /// The event's name; `message` where none is given.
    pub(super) event: String,
    /// The lines of data, joined with LF.
    pub(super) data: String,
}

/// A block or a line beyond any sense: the other side is no Airwave.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLarge;

/// The most that one block may hold, so that a stream without line ends cannot fill the memory.
const LARGEST: usize = 64 << 20;

/// Reads a stream.
#[derive(Debug, Default)]
pub(super) struct Parser {
    line: Vec<u8>,
    /// The last byte was a CR, so an LF that comes next belongs to it.
    after_cr: bool,
    begun: bool,
    /// Of the block that is being read.
    event: String,
    data: Option<String>,
    id: String,
    /// Of the last block that was whole.
    last_id: String,
    retry: Option<u64>,
}

impl Parser {
    /// Takes the next bytes and appends the blocks that they complete.
    pub(super) fn push(&mut self, bytes: &[u8], blocks: &mut Vec<Block>) -> Result<(), TooLarge> {
        let mut rest = bytes;
        // An empty piece says nothing about what comes after a CR.
        if !rest.is_empty() && std::mem::take(&mut self.after_cr) {
            rest = rest.strip_prefix(b"\n").unwrap_or(rest);
        }
        while let Some(end) = rest.iter().position(|&b| b == b'\n' || b == b'\r') {
            self.line.extend_from_slice(&rest[..end]);
            let cr = rest[end] == b'\r';
            rest = &rest[end + 1..];
            if cr {
                match rest.first() {
                    Some(b'\n') => rest = &rest[1..],
                    Some(_) => {}
                    None => self.after_cr = true,
                }
            }
            let line = std::mem::take(&mut self.line);
            self.take_line(&String::from_utf8_lossy(&line), blocks);
        }
        self.line.extend_from_slice(rest);
        let size = self.line.len() + self.data.as_ref().map_or(0, String::len);
        if size > LARGEST { Err(TooLarge) } else { Ok(()) }
    }

    /// The id of the last whole block, with data or without: where to resume.
    pub(super) fn last_id(&self) -> &str {
        &self.last_id
    }

    /// The last `retry:`, in milliseconds.
    pub(super) fn retry(&self) -> Option<u64> {
        self.retry
    }

    fn take_line(&mut self, mut line: &str, blocks: &mut Vec<Block>) {
        if !std::mem::replace(&mut self.begun, true) {
            line = line.strip_prefix('\u{feff}').unwrap_or(line);
        }
        if line.is_empty() {
            self.last_id.clone_from(&self.id);
            let event = std::mem::take(&mut self.event);
            if let Some(mut data) = self.data.take() {
                data.pop(); // the LF after the last line
                blocks.push(Block {
                    id: self.id.clone(),
                    event: if event.is_empty() { "message".into() } else { event },
                    data,
                });
            }
            return;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => self.event = value.into(),
            "data" => {
                let data = self.data.get_or_insert_default();
                data.push_str(value);
                data.push('\n');
            }
            "id" if !value.contains('\0') => self.id = value.into(),
            "retry" if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) => {
                self.retry = value.parse().ok().or(self.retry);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> (Vec<Block>, Parser) {
        let (mut parser, mut blocks) = (Parser::default(), Vec::new());
        parser.push(text.as_bytes(), &mut blocks).unwrap();
        (blocks, parser)
    }

    fn block(id: &str, event: &str, data: &str) -> Block {
        Block {
            id: id.into(),
            event: event.into(),
            data: data.into(),
        }
    }

    #[test]
    fn the_first_blocks_of_an_airwave_stream() {
        let (blocks, parser) = parse(
            "retry: 2731\nid: 17\nevent: airwave.subscribed\ndata: {\"channel\":\"a\"}\n\n:\n\nid: 18\nevent: line\ndata: a\ndata: b\n\nid: 19\ndata: cut off\n",
        );
        assert_eq!(
            blocks,
            [
                block("17", "airwave.subscribed", "{\"channel\":\"a\"}"),
                block("18", "line", "a\nb")
            ]
        );
        assert_eq!((parser.last_id(), parser.retry()), ("18", Some(2731)));
    }

    #[test]
    fn the_corners_of_the_standard() {
        assert_eq!(parse("\u{feff}data: x\n\n").0, [block("", "message", "x")]);
        assert_eq!(parse("data:  x\n\n").0[0].data, " x", "one space goes, not two");
        assert_eq!(parse("data\n\n").0[0].data, "", "a field without a colon has an empty value");
        assert_eq!(parse("data:\ndata:\n\n").0[0].data, "\n");
        assert_eq!(
            parse("event: e\n\ndata: x\n\n").0,
            [block("", "message", "x")],
            "a name without data is dropped"
        );
        assert_eq!(parse("id: 1\n\n").1.last_id(), "1", "an id without data counts");
        assert_eq!(
            parse("id: 1\ndata: x\n\nid\ndata: y\n\n").1.last_id(),
            "",
            "an empty id resets"
        );
        assert_eq!(parse("id: a\0b\ndata: x\n\n").0[0].id, "", "an id with a NUL is ignored");
        assert_eq!(parse("retry: 1x\n").1.retry(), None);
        assert_eq!(parse("retry: 5\nretry: 99999999999999999999999\n").1.retry(), Some(5));
        assert_eq!(parse("data: x\r\rdata: y\r\n\r\n").0.len(), 2);
        assert_eq!(parse("Data: x\n\n").0, [], "field names are case-sensitive");
    }

    #[test]
    fn a_stream_without_line_ends_is_cut() {
        let (mut parser, mut blocks) = (Parser::default(), Vec::new());
        let piece = vec![b'x'; 1 << 20];
        let taken = (0..100).take_while(|_| parser.push(&piece, &mut blocks).is_ok()).count();
        assert_eq!(taken, LARGEST >> 20);
    }

    /// The standard's algorithm over the whole text at once, written apart from the parser.
    fn model(text: &str) -> Vec<Block> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let unified = text.replace("\r\n", "\n").replace('\r', "\n");
        let Some((whole, _)) = unified.rsplit_once('\n') else {
            return vec![];
        };
        let (mut id, mut event, mut data, mut blocks) = (String::new(), String::new(), Vec::<String>::new(), vec![]);
        for line in whole.split('\n') {
            let (name, value) = match line.find(':') {
                Some(at) => (&line[..at], line[at + 1..].strip_prefix(' ').unwrap_or(&line[at + 1..])),
                None => (line, ""),
            };
            match (line, name) {
                ("", _) => {
                    if !data.is_empty() {
                        blocks.push(block(
                            &id,
                            if event.is_empty() { "message" } else { &event },
                            &data.join("\n"),
                        ));
                    }
                    data.clear();
                    event.clear();
                }
                (_, "data") => data.push(value.into()),
                (_, "event") => event = value.into(),
                (_, "id") if !value.contains('\0') => id = value.into(),
                _ => {}
            }
        }
        blocks
    }

    proptest! {
        #[test]
        fn any_cut_gives_what_the_whole_gives(
            text in "(data|id|event|retry|:|: | |x|7|é|\u{feff}|\n|\r|\r\n|\n\n|data: x\n){0,40}",
            cuts in prop::collection::vec(0usize..200, 0..8),
        ) {
            let (mut parser, mut blocks) = (Parser::default(), Vec::new());
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
            cuts.sort_unstable();
            let mut from = 0;
            for cut in cuts.into_iter().chain([bytes.len()]) {
                parser.push(&bytes[from..cut], &mut blocks).unwrap();
                from = cut;
            }
            // A CR at the very end has ended its line already; in the model nothing comes after it
            // either.
            prop_assert_eq!(blocks, model(&text));
        }
    }
}
