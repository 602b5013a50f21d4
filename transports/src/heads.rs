//! The parser of hyper accepts lines that end with a bare LF in a head of HTTP/1 (RFC 9112, section
//! 2.2). Two servers may understand such a request differently, so this module refuses it.
//!
//! The gate is no parser. It looks at the ends of lines until the empty one, and learns from hyper
//! how long the body behind it is.

/// This type carries what hyper has found out about a request to the gate under it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum News {
    /// hyper has read a head, and so many bytes of body follow it.
    Body(u64),
    /// hyper has read a head, and its body marks its own end.
    Chunked,
    /// The chunked body has ended.
    ChunkedEnd,
    /// hyper has read a head after which the connection may change to another protocol.
    Upgrade,
    /// The connection stays with HTTP after such a head.
    NoUpgrade,
}

impl News {
    /// Returns the news as one number above zero, for an atomic.
    pub(crate) fn encode(self) -> u64 {
        match self {
            News::Chunked => 1,
            News::ChunkedEnd => 2,
            News::Upgrade => 3,
            News::NoUpgrade => 4,
            News::Body(length) => length.saturating_add(5),
        }
    }

    /// Returns the news that a number stands for, or `None` if there are none.
    pub(crate) fn decode(number: u64) -> Option<Self> {
        match number {
            0 => None,
            1 => Some(News::Chunked),
            2 => Some(News::ChunkedEnd),
            3 => Some(News::Upgrade),
            4 => Some(News::NoUpgrade),
            more => Some(News::Body(more - 5)),
        }
    }
}

/// The gate stands between the socket and hyper. It turns a bare LF in a head into a byte that
/// hyper refuses with 400.
#[derive(Debug)]
pub(crate) struct HeadGate {
    state: State,
    /// Holds the last four bytes that passed, the newest in the lowest place.
    last: u32,
    /// Counts the bytes of the current line so far. `has_lines` says whether the head has a line
    /// already.
    line: u32,
    has_lines: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Everything passes.
    Off,
    Head,
    /// A head has passed, and hyper has not reported what follows.
    Ended,
    Body(u64),
    Chunked,
    /// Everything passes. The value says whether anything has passed.
    Upgrade(bool),
    /// The gate has found a bare LF, and hyper has not seen the end of this head.
    Refused,
}

impl HeadGate {
    /// Creates a gate for HTTP/1, from the first byte of a connection on.
    pub(crate) fn new() -> Self {
        Self {
            state: State::Head,
            last: 0,
            line: 0,
            has_lines: false,
        }
    }

    /// Creates a gate that lets everything pass.
    pub(crate) fn off() -> Self {
        Self {
            state: State::Off,
            ..Self::new()
        }
    }

    fn next_head(&mut self) {
        *self = Self::new();
    }

    /// Takes in news from hyper.
    pub(crate) fn receive(&mut self, news: News) {
        match (self.state, news) {
            (State::Ended, News::Body(0)) => self.next_head(),
            (State::Ended, News::Body(length)) => self.state = State::Body(length),
            (State::Ended, News::Chunked) => self.state = State::Chunked,
            (State::Ended, News::Upgrade) => self.state = State::Upgrade(false),
            // The gate knows where the next head begins only if nothing of it has passed.
            (State::Chunked, News::ChunkedEnd) if self.last == u32::from_be_bytes(*b"\r\n\r\n") => self.next_head(),
            (State::Ended | State::Upgrade(false), News::NoUpgrade) => self.next_head(),
            _ => self.state = State::Off,
        }
    }

    /// Returns the end of a refused head, once. If the head comes in pieces, hyper looks at it when
    /// it sees the end.
    pub(crate) fn end_of_refused(&mut self) -> Option<&'static [u8]> {
        let refused = self.state == State::Refused;
        refused.then(|| {
            self.state = State::Off;
            &b"\r\n\r\n"[..]
        })
    }

    /// Returns how many of these bytes may pass now: at least one, if there are any. The caller
    /// gives the others again.
    pub(crate) fn pass(&mut self, bytes: &mut [u8]) -> usize {
        let count = match &mut self.state {
            State::Head => return self.pass_head(bytes),
            State::Body(left) => {
                let count = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= count as u64;
                if *left == 0 {
                    self.next_head();
                }
                return count;
            }
            State::Upgrade(passed) => {
                *passed |= !bytes.is_empty();
                bytes.len()
            }
            // hyper reads on before it has reported the head. The gate does not know such a head,
            // so it lets everything pass.
            State::Ended if !bytes.is_empty() => {
                self.state = State::Off;
                bytes.len()
            }
            State::Off | State::Ended | State::Chunked | State::Refused => bytes.len(),
        };
        for byte in &bytes[count.saturating_sub(4)..count] {
            self.last = self.last << 8 | u32::from(*byte);
        }
        count
    }

    fn pass_head(&mut self, bytes: &mut [u8]) -> usize {
        let mut from = 0;
        while let Some(found) = bytes[from..].iter().position(|byte| *byte == b'\n') {
            let at = from + found;
            let before = match at {
                0 => self.last as u8,
                _ => bytes[at - 1],
            };
            if before != b'\r' {
                bytes[at] = 0;
                self.state = State::Refused;
                return at + 1;
            }
            let line = self.line as usize + (at - from);
            self.line = 0;
            from = at + 1;
            // A request may have empty lines before it.
            if line > 1 {
                self.has_lines = true;
            } else if self.has_lines {
                self.state = State::Ended;
                return from;
            }
        }
        // A head is far shorter than a u32 counts.
        self.line = self.line.saturating_add((bytes.len() - from) as u32);
        if let Some(last) = bytes.last() {
            self.last = (*last).into();
        }
        bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns the part of `bytes` that passes up to the end of the first head, if the socket gives
    /// `piece` bytes at a time.
    fn passes(gate: &mut HeadGate, bytes: &[u8], piece: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() && gate.state != State::Ended {
            let mut piece = rest[..piece.min(rest.len())].to_vec();
            let count = gate.pass(&mut piece);
            assert!(count > 0);
            out.extend_from_slice(&piece[..count]);
            rest = &rest[count..];
        }
        out
    }

    #[test]
    fn a_head_passes_and_what_follows_waits() {
        for piece in 1..60 {
            let mut gate = HeadGate::new();
            let head = b"\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n";
            let both = [&head[..], b"body\n", head].concat();
            assert_eq!(passes(&mut gate, &both, piece), head);
            gate.receive(News::Body(5));
            let mut body = both[head.len()..].to_vec();
            assert_eq!(gate.pass(&mut body), 5, "the body, whatever is in it");
            assert_eq!(passes(&mut gate, head, piece), head);
            gate.receive(News::Body(0));
            assert_eq!(passes(&mut gate, head, piece), head);
        }
    }

    #[test]
    fn a_bare_line_feed_in_a_head_is_made_unreadable() {
        for head in [
            &b"GET / HTTP/1.1\nhost: a\n\n"[..],
            b"GET / HTTP/1.1\r\nhost: a\r\n\n",
            b"GET / HTTP/1.1\r\nhost: a\nx: y\r\n\r\n",
            b"\nGET / HTTP/1.1\r\nhost: a\r\n\r\n",
            b"GET / HTTP/1.1\r\nhost: a\r\nx:\n y\r\n\r\n",
        ] {
            for piece in 1..40 {
                let passed = passes(&mut HeadGate::new(), head, piece);
                assert!(
                    passed.contains(&0),
                    "{:?} in pieces of {piece}",
                    String::from_utf8_lossy(head)
                );
                // The gate treats the next head of a connection the same way.
                let mut gate = HeadGate::new();
                passes(&mut gate, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", piece);
                gate.receive(News::Body(0));
                assert!(passes(&mut gate, head, piece).contains(&0));
                let mut gate = HeadGate::new();
                assert_eq!(gate.end_of_refused(), None);
                gate.pass(&mut head.to_vec());
                assert_eq!(gate.end_of_refused(), Some(&b"\r\n\r\n"[..]));
                assert_eq!(gate.end_of_refused(), None);
            }
        }
    }

    #[test]
    fn after_a_chunked_body_the_next_head_is_looked_at_if_its_begin_is_known() {
        let head = b"POST / HTTP/1.1\r\nhost: a\r\n\r\n";
        for (chunks, looked_at) in [(&b"1\r\n\n\r\n0\r\n\r\n"[..], true), (b"1\r\nx\r\n0\r\n\r\nGE", false)] {
            for piece in 1..20 {
                let mut gate = HeadGate::new();
                passes(&mut gate, head, piece);
                gate.receive(News::Chunked);
                assert_eq!(passes(&mut gate, chunks, piece), chunks);
                gate.receive(News::ChunkedEnd);
                assert_eq!(gate.state == State::Head, looked_at);
            }
        }
    }

    #[test]
    fn another_protocol_passes_as_it_is() {
        let head = b"GET / HTTP/1.1\r\nhost: a\r\nupgrade: x\r\n\r\n";
        let mut gate = HeadGate::new();
        passes(&mut gate, head, 7);
        gate.receive(News::Upgrade);
        gate.receive(News::NoUpgrade);
        assert_eq!(gate.state, State::Head);
        passes(&mut gate, head, 7);
        gate.receive(News::Upgrade);
        assert_eq!(passes(&mut gate, b"\n\n\x00", 1), b"\n\n\x00");
        gate.receive(News::NoUpgrade);
        assert_eq!(gate.state, State::Off);
    }

    proptest! {
        #[test]
        fn heads_with_whole_line_ends_pass_unchanged(lines in prop::collection::vec("[a-z: ]{1,9}", 1..9), piece in 1usize..50) {
            let head = format!("{}\r\n\r\n", lines.join("\r\n"));
            prop_assert_eq!(passes(&mut HeadGate::new(), head.as_bytes(), piece), head.as_bytes());
        }

        #[test]
        fn news_are_told_in_one_number(length in 0..u64::MAX - 5) {
            for news in [News::Body(length), News::Chunked, News::ChunkedEnd, News::Upgrade, News::NoUpgrade] {
                prop_assert_eq!(News::decode(news.encode()), Some(news));
            }
            prop_assert_eq!(News::decode(0), None);
        }
    }
}
