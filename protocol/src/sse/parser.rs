use std::fmt;

use memchr::{memchr, memchr2};

/// An event that a stream dispatched: it had data.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event {
    /// The last id that the stream has named, in this event or before it; empty if there is none.
    pub id: String,
    /// The event's name; `message` where none is given.
    pub event: String,
    /// The lines of data, joined with LF.
    pub data: String,
}

impl Event {
    /// An event with an id, a name and data.
    pub fn new(id: impl Into<String>, event: impl Into<String>, data: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            event: event.into(),
            data: data.into(),
        }
    }
}

/// How much of a stream a [`Parser`] holds, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// The longest line.
    pub line: usize,
    /// The most data of one event, its name included.
    pub event: usize,
    /// The longest id.
    pub id: usize,
}

impl Default for Limits {
    /// 64 MiB for a line and for an event, 64 KiB for an id. Airwave's own ids are at most 8 KiB.
    fn default() -> Self {
        Self {
            line: 64 << 20,
            event: 64 << 20,
            id: 64 << 10,
        }
    }
}

impl Limits {
    /// Limits of so many bytes each.
    pub fn new(line: usize, event: usize, id: usize) -> Self {
        Self { line, event, id }
    }
}

/// What of a stream is beyond its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Part {
    /// A line.
    Line,
    /// The data and the name of an event.
    Event,
    /// An id.
    Id,
    /// The ids of the events of one piece. An event without an id repeats the one before it.
    Ids,
}

/// A part of a stream is larger than its limit. The parser reads no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct TooLarge {
    /// Which part.
    pub part: Part,
    /// Its limit in bytes.
    pub limit: usize,
}

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = match self.part {
            Part::Line => "a line",
            Part::Event => "an event",
            Part::Id => "an id",
            Part::Ids => "what one piece repeats of ids",
        };
        write!(f, "{part} of this stream is longer than {} bytes", self.limit)
    }
}

impl std::error::Error for TooLarge {}

/// Reads a stream of events from bytes that come in any pieces (WHATWG HTML, section 9.2.6).
///
/// At the end of a stream the parser is dropped: what no empty line followed is discarded.
///
/// # Examples
/// ```
/// use airwave_protocol::sse::{Event, Parser};
///
/// # fn main() -> Result<(), airwave_protocol::sse::TooLarge> {
/// let (mut parser, mut events) = (Parser::default(), Vec::new());
/// parser.push(b"id: 17\nevent: say\nda", &mut events)?;
/// assert!(events.is_empty());
/// parser.push(b"ta: hi\n\n", &mut events)?;
/// assert_eq!(events, [Event::new("17", "say", "hi")]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default)]
pub struct Parser {
    limits: Limits,
    /// The bytes of a line that is not complete.
    line: Vec<u8>,
    /// The last byte was a CR, so an LF that comes next belongs to it.
    after_cr: bool,
    /// Whether a line has been seen: a byte order mark counts only before the first.
    begun: bool,
    /// Of the event that is being read.
    event: String,
    data: String,
    id: String,
    /// Of the last block that was complete.
    last_id: String,
    retry: Option<u64>,
    /// Counts the bytes of the ids that the events of this piece have.
    ids: usize,
    failed: Option<TooLarge>,
}

impl Parser {
    /// A parser with other limits than the usual.
    pub fn with_limits(limits: Limits) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    /// Takes the next bytes and appends the events that they complete.
    ///
    /// # Errors
    /// A part of the stream is beyond its limit. `events` holds what came before it. Every later
    /// call fails in the same way.
    pub fn push(&mut self, bytes: &[u8], events: &mut Vec<Event>) -> Result<(), TooLarge> {
        if let Some(failed) = self.failed {
            return Err(failed);
        }
        self.ids = 0;
        let result = self.take(bytes, events);
        self.failed = result.err();
        result
    }

    fn take(&mut self, bytes: &[u8], events: &mut Vec<Event>) -> Result<(), TooLarge> {
        let mut rest = bytes;
        // An empty piece says nothing about what comes after a CR.
        if !rest.is_empty() && std::mem::take(&mut self.after_cr) {
            rest = rest.strip_prefix(b"\n").unwrap_or(rest);
        }
        while let Some(end) = memchr2(b'\n', b'\r', rest) {
            let line = &rest[..end];
            self.check(Part::Line, self.limits.line, self.line.len() + line.len())?;
            if self.line.is_empty() {
                self.take_line(line, events)?;
            } else {
                let mut whole = std::mem::take(&mut self.line);
                whole.extend_from_slice(line);
                self.take_line(&whole, events)?;
                // Its room is used again by the next torn line.
                whole.clear();
                self.line = whole;
            }
            let is_cr = rest[end] == b'\r';
            rest = &rest[end + 1..];
            if is_cr {
                self.after_cr = rest.is_empty();
                rest = rest.strip_prefix(b"\n").unwrap_or(rest);
            }
        }
        self.check(Part::Line, self.limits.line, self.line.len() + rest.len())?;
        self.line.extend_from_slice(rest);
        Ok(())
    }

    /// Returns the id of the last complete block, with data or without: where to resume.
    pub fn last_id(&self) -> &str {
        &self.last_id
    }

    /// Returns the last `retry:`, in milliseconds. Numbers beyond `u64` count as its largest.
    pub fn retry(&self) -> Option<u64> {
        self.retry
    }

    /// Prepares for the next connection of the same client: what was incomplete is gone, the last
    /// id and the reconnection time stay.
    pub fn reconnected(self) -> Self {
        Self {
            limits: self.limits,
            id: self.last_id.clone(),
            last_id: self.last_id,
            retry: self.retry,
            ..Self::default()
        }
    }

    fn check(&self, part: Part, limit: usize, bytes: usize) -> Result<(), TooLarge> {
        match bytes <= limit {
            true => Ok(()),
            false => Err(TooLarge { part, limit }),
        }
    }

    fn take_line(&mut self, mut line: &[u8], events: &mut Vec<Event>) -> Result<(), TooLarge> {
        if !std::mem::replace(&mut self.begun, true) {
            line = line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(line);
        }
        if line.is_empty() {
            return self.dispatch(events);
        }
        let (field, value) = match memchr(b':', line) {
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (line, &b""[..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        // CR and LF are never part of another character, so that decoding each line is the same as
        // decoding the stream.
        match field {
            b"event" => {
                self.check(Part::Event, self.limits.event, self.data.len() + value.len())?;
                self.event.clear();
                self.event.push_str(&String::from_utf8_lossy(value));
            }
            b"data" => {
                let bytes = self.event.len() + self.data.len() + value.len() + 1;
                self.check(Part::Event, self.limits.event, bytes)?;
                self.data.push_str(&String::from_utf8_lossy(value));
                self.data.push('\n');
            }
            b"id" if !value.contains(&0) => {
                self.check(Part::Id, self.limits.id, value.len())?;
                self.id.clear();
                self.id.push_str(&String::from_utf8_lossy(value));
            }
            b"retry" if !value.is_empty() && value.iter().all(u8::is_ascii_digit) => {
                let digits = std::str::from_utf8(value).unwrap_or_default();
                // Only digits: nothing but the size of their number can be wrong.
                self.retry = Some(digits.parse().unwrap_or(u64::MAX));
            }
            _ => {}
        }
        Ok(())
    }

    fn dispatch(&mut self, events: &mut Vec<Event>) -> Result<(), TooLarge> {
        self.last_id.clone_from(&self.id);
        let mut data = std::mem::take(&mut self.data);
        let event = std::mem::take(&mut self.event);
        // Not the same as no data: the line `data` alone leaves an LF here, and dispatches an empty
        // text.
        if data.pop().is_some() {
            // Six bytes make an event, and each has a copy of the id: a long one, repeated, would
            // make much of few bytes.
            self.ids += self.id.len();
            self.check(Part::Ids, self.limits.event, self.ids)?;
            events.push(Event {
                id: self.id.clone(),
                event: if event.is_empty() { "message".into() } else { event },
                data,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::sse::Writer;
    use proptest::prelude::*;

    fn parse(text: &str) -> (Vec<Event>, Parser) {
        let (mut parser, mut events) = (Parser::default(), Vec::new());
        parser.push(text.as_bytes(), &mut events).unwrap();
        (events, parser)
    }

    #[test]
    fn the_first_blocks_of_an_airwave_stream() {
        let (events, parser) = parse(
            "retry: 2731\nid: 17\nevent: airwave.subscribed\ndata: {\"channel\":\"a\"}\n\n:\n\nid: 18\nevent: line\ndata: a\ndata: b\n\nid: 19\ndata: cut off\n",
        );
        assert_eq!(
            events,
            [
                Event::new("17", "airwave.subscribed", "{\"channel\":\"a\"}"),
                Event::new("18", "line", "a\nb")
            ]
        );
        assert_eq!((parser.last_id(), parser.retry()), ("18", Some(2731)));
        let parser = parser.reconnected();
        assert_eq!((parser.last_id(), parser.retry()), ("18", Some(2731)));
    }

    #[test]
    fn the_corners_of_the_standard() {
        assert_eq!(parse("\u{feff}data: x\n\n").0, [Event::new("", "message", "x")]);
        assert_eq!(parse("data:  x\n\n").0[0].data, " x", "one space goes, not two");
        assert_eq!(parse("data\n\n").0[0].data, "", "a field without a colon has an empty value");
        assert_eq!(parse("data:\ndata:\n\n").0[0].data, "\n");
        assert_eq!(
            parse("event: e\n\ndata: x\n\n").0,
            [Event::new("", "message", "x")],
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
        assert_eq!(parse("retry: 5\nretry: 99999999999999999999999\n").1.retry(), Some(u64::MAX));
        assert_eq!(parse("data: x\r\rdata: y\r\n\r\n").0.len(), 2);
        assert_eq!(parse("Data: x\n\n").0, [], "field names are case-sensitive");
    }

    #[test]
    fn a_long_id_that_short_events_repeat_has_a_bound() {
        let mut parser = Parser::with_limits(Limits::new(1000, 100, 40));
        let (mut events, id) = (Vec::new(), "i".repeat(40));
        let text = format!("id: {id}\n{}", "data\n\n".repeat(3));
        let refused = Err(TooLarge {
            part: Part::Ids,
            limit: 100,
        });
        assert_eq!(parser.push(text.as_bytes(), &mut events), refused);
        assert_eq!(events.len(), 2, "those within the bound are given");
    }

    #[test]
    fn each_limit_is_named_and_what_came_before_it_is_kept() {
        let limits = Limits::new(20, 30, 5);
        for (stream, part, limit) in [
            ("data: 0123456789012345\n", Part::Line, 20),
            ("data: 0123456789012345", Part::Line, 20),
            ("data: 0123456789\ndata: 0123456789\ndata: 0123456789\n", Part::Event, 30),
            ("data: 0123456789\ndata: 0123456789\nevent: 0123456789\n", Part::Event, 30),
            ("id: 123456\n", Part::Id, 5),
        ] {
            let stream = format!("data: first\n\n{stream}\ndata: never\n\n");
            for step in 1..stream.len() {
                let (mut parser, mut events) = (Parser::with_limits(limits), Vec::new());
                let result: Vec<_> = stream
                    .as_bytes()
                    .chunks(step)
                    .map(|piece| parser.push(piece, &mut events))
                    .collect();
                let error = Err(TooLarge { part, limit });
                assert_eq!(result.last(), Some(&error), "{stream:?} by {step}");
                assert_eq!(parser.push(b"", &mut events), error, "it reads no further");
                assert_eq!(events, [Event::new("", "message", "first")], "{stream:?} by {step}");
            }
        }
        let (mut parser, mut events) = (Parser::with_limits(limits), Vec::new());
        parser.push(b"id: 12345\ndata: 01234567890123\n\n", &mut events).unwrap();
        assert_eq!(events.len(), 1, "what is just within the limits passes");
        let shown = TooLarge {
            part: Part::Id,
            limit: 5,
        }
        .to_string();
        assert_eq!(shown, "an id of this stream is longer than 5 bytes");
    }

    #[test]
    fn a_stream_without_line_ends_does_not_fill_the_memory() {
        let (mut parser, mut events) = (Parser::default(), Vec::new());
        let piece = vec![b'x'; 1 << 20];
        let taken = (0..100).take_while(|_| parser.push(&piece, &mut events).is_ok()).count();
        assert_eq!(taken, Limits::default().line >> 20);
    }

    #[test]
    fn no_id_and_no_name_of_a_writer_ends_its_line() {
        for text in ["a\nb", "a\rb", "a\0b"] {
            assert!(Writer::default().id(text).is_err() && Writer::default().event(text).is_err());
        }
    }

    proptest! {
        #[test]
        fn any_cut_gives_what_the_whole_gives(
            text in "(data|id|event|retry|:|: | |x|7|é|\u{feff}|\n|\r|\r\n|\n\n|data: x\n){0,40}",
            step in 1usize..50,
        ) {
            let (whole, at_once) = parse(&text);
            let (mut parser, mut events) = (Parser::default(), Vec::new());
            for piece in text.as_bytes().chunks(step) {
                parser.push(piece, &mut events).unwrap();
                parser.push(b"", &mut events).unwrap();
            }
            prop_assert_eq!(events, whole);
            prop_assert_eq!((parser.last_id(), parser.retry()), (at_once.last_id(), at_once.retry()));
        }

        #[test]
        fn what_is_written_is_read_back(
            events in prop::collection::vec(("[^\n\r\0]{1,9}", "[^\n\r\0]{1,9}", "(\\PC|\n|\r|\r\n| |:){0,20}"), 0..5),
            retry: u64,
            step in 1usize..50,
        ) {
            let mut writer = Writer::default();
            writer.retry(retry).comment("a\nb").end();
            for (id, name, data) in &events {
                writer.id(id).unwrap().event(name).unwrap().data(data).end();
            }
            let (mut parser, mut read) = (Parser::default(), Vec::new());
            for piece in writer.into_text().as_bytes().chunks(step) {
                parser.push(piece, &mut read).unwrap();
            }
            let lines = |data: &str| data.replace("\r\n", "\n").replace('\r', "\n");
            let expected: Vec<_> = events.iter().map(|(id, name, data)| Event::new(id, name, lines(data))).collect();
            prop_assert_eq!(read, expected);
            prop_assert_eq!(parser.retry(), Some(retry));
        }
    }
}
