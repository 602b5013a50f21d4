//! A parser of event streams, written from WHATWG HTML, section 9.2.6 "Interpreting an event
//! stream", and from nothing else: it must not know how Airwave writes, so that it shows what a
//! browser would see. Only the standard library.
//!
//! It takes bytes as they come from a socket, cut anywhere. At the end of a stream it is simply
//! dropped: what was not followed by an empty line is discarded, as the standard says. For the next
//! connection of the same client there is [`Parser::reconnected`].
// Not every test binary that takes this file in uses all of it.
#![allow(dead_code)]

/// One event as an `EventSource` would dispatch it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParsedEvent {
    /// `message` if the stream named none.
    pub event: String,
    /// The lines of data, joined by LF.
    pub data: String,
    /// The newest id that the stream had given when this event was complete; empty if there was
    /// none, or an empty one.
    pub last_event_id: String,
}

/// The state of one stream, and of the client that reads it.
#[derive(Debug, Default)]
pub struct Parser {
    /// The bytes of the line that is not complete yet.
    line: Vec<u8>,
    /// Whether the last line ended with a CR: then an LF that comes next belongs to it, even in
    /// another chunk.
    after_cr: bool,
    /// Whether a line has been seen: a byte order mark counts only at the very beginning.
    begun: bool,
    data: String,
    event: String,
    id: String,
    last_event_id: String,
    retry: Option<u64>,
}

impl Parser {
    /// A client's first connection.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same client's next connection, after the stream has ended: what was incomplete is gone;
    /// the last event id and the reconnection time stay.
    pub fn reconnected(self) -> Self {
        Self {
            id: self.last_event_id.clone(),
            last_event_id: self.last_event_id,
            retry: self.retry,
            ..Self::default()
        }
    }

    /// Takes the next bytes of the stream, and gives the events that they complete.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<ParsedEvent> {
        let mut events = Vec::new();
        for &byte in bytes {
            let after_cr = std::mem::take(&mut self.after_cr);
            match byte {
                b'\n' if after_cr => {}
                b'\n' => events.extend(self.end_line()),
                b'\r' => {
                    self.after_cr = true;
                    events.extend(self.end_line());
                }
                _ => self.line.push(byte),
            }
        }
        events
    }

    /// What the client would send as `Last-Event-ID`; empty: it would send none. An id counts once
    /// its block is complete, with or without data.
    pub fn last_event_id(&self) -> &str {
        &self.last_event_id
    }

    /// The reconnection time in milliseconds, if the stream has ever set one.
    pub fn retry(&self) -> Option<u64> {
        self.retry
    }

    fn end_line(&mut self) -> Option<ParsedEvent> {
        let bytes = std::mem::take(&mut self.line);
        // CR and LF are never a part of another character, so decoding line by line is the same as
        // decoding the stream.
        let bytes = match std::mem::replace(&mut self.begun, true) {
            false => bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&bytes),
            true => &bytes,
        };
        let line = String::from_utf8_lossy(bytes);
        if line.is_empty() {
            return self.dispatch();
        }
        match line.split_once(':') {
            Some(("", _)) => {}
            Some((field, value)) => self.field(field, value.strip_prefix(' ').unwrap_or(value)),
            None => self.field(&line, ""),
        }
        None
    }

    fn field(&mut self, name: &str, value: &str) {
        match name {
            "event" => self.event = value.to_owned(),
            "data" => {
                self.data.push_str(value);
                self.data.push('\n');
            }
            "id" if !value.contains('\0') => self.id = value.to_owned(),
            "retry" if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) => {
                // Only digits: nothing but their number can be wrong.
                self.retry = Some(value.parse().unwrap_or(u64::MAX));
            }
            _ => {}
        }
    }

    fn dispatch(&mut self) -> Option<ParsedEvent> {
        self.last_event_id.clone_from(&self.id);
        let mut data = std::mem::take(&mut self.data);
        let event = std::mem::take(&mut self.event);
        // Not the same as no data: the line `data` alone leaves an LF here, and dispatches an empty
        // string.
        data.pop()?;
        Some(ParsedEvent {
            event: if event.is_empty() { "message".to_owned() } else { event },
            data,
            last_event_id: self.last_event_id.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(event: &str, data: &str, last_event_id: &str) -> ParsedEvent {
        ParsedEvent {
            event: event.into(),
            data: data.into(),
            last_event_id: last_event_id.into(),
        }
    }

    /// Parses `stream` whole, byte by byte, and cut in two at every place: it must never matter.
    fn parse(stream: impl AsRef<[u8]>) -> Vec<ParsedEvent> {
        let stream = stream.as_ref();
        let whole = Parser::new().feed(stream);
        let mut parser = Parser::new();
        let bytewise: Vec<_> = stream.iter().flat_map(|byte| parser.feed(&[*byte])).collect();
        assert_eq!(bytewise, whole, "byte by byte");
        for cut in 0..=stream.len() {
            let mut parser = Parser::new();
            let mut events = parser.feed(&stream[..cut]);
            events.extend(parser.feed(&stream[cut..]));
            assert_eq!(events, whole, "cut at {cut}");
        }
        whole
    }

    #[test]
    fn the_standards_stock_quotes_are_one_event_of_three_lines() {
        let events = parse("data: YHOO\ndata: +2\ndata: 10\n\n");
        assert_eq!(events, [event("message", "YHOO\n+2\n10", "")]);
    }

    #[test]
    fn the_standards_four_blocks_give_three_events_and_reset_the_id() {
        // The first block is a comment, the third resets the id, the fourth begins its data with a
        // space.
        let events = parse(": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n");
        let expected = [
            event("message", "first event", "1"),
            event("message", "second event", ""),
            event("message", " third event", ""),
        ];
        assert_eq!(events, expected);
    }

    #[test]
    fn the_standards_empty_data_lines_dispatch_and_what_lacks_an_empty_line_does_not() {
        let events = parse("data\n\ndata\ndata\n\ndata:");
        assert_eq!(events, [event("message", "", ""), event("message", "\n", "")]);
    }

    #[test]
    fn a_space_after_the_colon_makes_no_difference() {
        assert_eq!(
            parse("data:test\n\ndata: test\n\n"),
            [event("message", "test", ""), event("message", "test", "")]
        );
        assert_eq!(parse("data:\ttest\n\n"), [event("message", "\ttest", "")]);
    }

    #[test]
    fn lines_end_with_lf_cr_or_crlf_in_any_mixture() {
        let expected = [event("message", "a\nb", ""), event("x", "c", "")];
        for stream in [
            "data: a\ndata: b\n\nevent: x\ndata: c\n\n",
            "data: a\rdata: b\r\revent: x\rdata: c\r\r",
            "data: a\r\ndata: b\r\n\r\nevent: x\r\ndata: c\r\n\r\n",
            "data: a\rdata: b\r\n\revent: x\ndata: c\r\r\n",
        ] {
            assert_eq!(parse(stream), expected, "{stream:?}");
        }
    }

    #[test]
    fn an_event_is_dispatched_at_the_cr_of_its_crlf() {
        let mut parser = Parser::new();
        assert_eq!(parser.feed(b"data: a\r\n\r"), [event("message", "a", "")]);
        assert_eq!(parser.feed(b"\ndata: b\n\n"), [event("message", "b", "")]);
    }

    #[test]
    fn lf_cr_is_two_line_ends() {
        assert_eq!(
            parse("data: a\n\rdata: b\n\r"),
            [event("message", "a", ""), event("message", "b", "")]
        );
    }

    #[test]
    fn other_line_breaks_of_unicode_are_data() {
        let events = parse("data: a\u{2028}b\u{2029}c\u{85}d\u{b}e\u{c}f\n\n");
        assert_eq!(events, [event("message", "a\u{2028}b\u{2029}c\u{85}d\u{b}e\u{c}f", "")]);
    }

    #[test]
    fn one_byte_order_mark_at_the_beginning_is_left_out_and_no_other() {
        assert_eq!(parse("\u{feff}data: a\n\n"), [event("message", "a", "")]);
        // The second makes it another field.
        assert_eq!(parse("\u{feff}\u{feff}data: a\n\n"), []);
        assert_eq!(parse("\ndata: a\n\u{feff}data: b\n\n"), [event("message", "a", "")]);
        assert_eq!(parse("data: \u{feff}a\n\n"), [event("message", "\u{feff}a", "")]);
    }

    #[test]
    fn comments_and_unknown_fields_are_ignored() {
        assert_eq!(
            parse(":\n\n: data: x\ndata: a\n:event: x\nfoo: bar\nfoo\n\n"),
            [event("message", "a", "")]
        );
    }

    #[test]
    fn names_of_fields_are_taken_literally() {
        assert_eq!(parse("Data: a\n data: b\ndata : c\nDATA:d\n\n"), []);
    }

    #[test]
    fn only_the_first_colon_divides() {
        assert_eq!(parse("data: a: b\n\n"), [event("message", "a: b", "")]);
    }

    #[test]
    fn the_last_event_name_of_a_block_counts_and_the_next_block_begins_without() {
        let events = parse("event: x\nevent: y\ndata: a\n\ndata: b\n\nevent: z\nevent\ndata: c\n\n");
        assert_eq!(
            events,
            [event("y", "a", ""), event("message", "b", ""), event("message", "c", "")]
        );
    }

    #[test]
    fn a_block_without_data_dispatches_nothing_and_leaves_no_name_behind() {
        assert_eq!(parse("event: x\n\ndata: a\n\n"), [event("message", "a", "")]);
    }

    #[test]
    fn an_id_holds_until_the_next_one() {
        let events = parse("id: 1\ndata: a\n\ndata: b\n\nid: 2\ndata: c\n\n");
        assert_eq!(
            events,
            [
                event("message", "a", "1"),
                event("message", "b", "1"),
                event("message", "c", "2")
            ]
        );
    }

    #[test]
    fn an_id_with_a_nul_is_ignored() {
        let events = parse("id: 1\ndata: a\n\nid: 2\0\ndata: b\n\n");
        assert_eq!(events, [event("message", "a", "1"), event("message", "b", "1")]);
    }

    #[test]
    fn an_id_without_data_counts_for_the_reconnect_but_only_once_its_block_is_complete() {
        let mut parser = Parser::new();
        assert_eq!(parser.feed(b"id: 7\n"), []);
        assert_eq!(parser.last_event_id(), "");
        assert_eq!(parser.feed(b"\n"), []);
        assert_eq!(parser.last_event_id(), "7");
    }

    #[test]
    fn what_is_incomplete_at_the_end_is_discarded_and_id_and_retry_survive_the_reconnect() {
        let mut parser = Parser::new();
        assert_eq!(
            parser.feed(b"retry: 10\nid: 1\ndata: a\n\nid: 2\nevent: x\ndata: b\nda"),
            [event("message", "a", "1")]
        );
        let mut parser = parser.reconnected();
        assert_eq!((parser.last_event_id(), parser.retry()), ("1", Some(10)));
        assert_eq!(parser.feed("\u{feff}data: c\n\n".as_bytes()), [event("message", "c", "1")]);
    }

    #[test]
    fn retry_takes_digits_only() {
        let mut parser = Parser::new();
        assert_eq!(parser.retry(), None);
        for (line, expected) in [
            ("retry: 3000", Some(3000)),
            ("retry: 3000x", Some(3000)),
            ("retry: -1", Some(3000)),
            ("retry: +1", Some(3000)),
            ("retry: 1.5", Some(3000)),
            ("retry:  1", Some(3000)),
            ("retry: ١", Some(3000)),
            ("retry:", Some(3000)),
            ("retry", Some(3000)),
            ("retry:007", Some(7)),
            ("retry: 99999999999999999999999", Some(u64::MAX)),
        ] {
            assert_eq!(parser.feed(format!("{line}\n").as_bytes()), []);
            assert_eq!(parser.retry(), expected, "{line}");
        }
    }

    #[test]
    fn what_is_not_utf_8_is_replaced_and_takes_no_line_end_with_it() {
        // A three byte character that lacks its last byte, then a byte that begins none.
        assert_eq!(
            parse(b"data: \xE2\x82\ndata: \xFFa\n\n"),
            [event("message", "\u{fffd}\n\u{fffd}a", "")]
        );
    }

    #[test]
    fn a_nul_is_data_like_any_other() {
        assert_eq!(parse("data: a\0b\nevent: x\0\n\n"), [event("x\0", "a\0b", "")]);
    }

    #[test]
    fn many_empty_lines_dispatch_once() {
        assert_eq!(parse("\n\n\r\r\ndata: a\n\n\n\n"), [event("message", "a", "")]);
    }
}
