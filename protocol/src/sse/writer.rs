use std::fmt::{self, Write as _};

/// An id or a name that would end its line, or that a reader would ignore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LineBreak;

impl fmt::Display for LineBreak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an id or a name of an event holds a line break or a NUL")
    }
}

impl std::error::Error for LineBreak {}

/// Writes a stream of events, block by block.
///
/// # Examples
/// ```
/// use airwave_protocol::sse::Writer;
///
/// # fn main() -> Result<(), airwave_protocol::sse::LineBreak> {
/// let mut writer = Writer::default();
/// writer.retry(2731).id("17")?.event("line")?.data("one\r\ntwo").end();
/// assert_eq!(writer.into_text(), "retry: 2731\nid: 17\nevent: line\ndata: one\ndata: two\n\n");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default)]
pub struct Writer {
    text: String,
}

impl Writer {
    /// Writes how many milliseconds a reader waits before it connects again.
    pub fn retry(&mut self, milliseconds: u64) -> &mut Self {
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "retry: {milliseconds}");
        self
    }

    /// Writes an id.
    ///
    /// # Errors
    /// The id holds a line break or a NUL.
    pub fn id(&mut self, id: &str) -> Result<&mut Self, LineBreak> {
        self.name("id: ", id)
    }

    /// Writes the event's name.
    ///
    /// # Errors
    /// The name holds a line break or a NUL.
    pub fn event(&mut self, name: &str) -> Result<&mut Self, LineBreak> {
        self.name("event: ", name)
    }

    /// Writes data: one line per line. The reader joins the lines with LF, whatever ended them.
    pub fn data(&mut self, data: &str) -> &mut Self {
        self.lines("data: ", data)
    }

    /// Writes a comment, which readers ignore. An empty one is a heartbeat.
    pub fn comment(&mut self, comment: &str) -> &mut Self {
        self.lines(":", comment)
    }

    /// Ends the block: a reader dispatches it if it has data.
    pub fn end(&mut self) -> &mut Self {
        self.text.push('\n');
        self
    }

    /// Returns what was written.
    pub fn into_text(self) -> String {
        self.text
    }

    fn name(&mut self, field: &str, value: &str) -> Result<&mut Self, LineBreak> {
        if value.contains(['\n', '\r', '\0']) {
            return Err(LineBreak);
        }
        self.line(field, value);
        Ok(self)
    }

    fn lines(&mut self, field: &str, value: &str) -> &mut Self {
        let mut rest = value;
        while let Some(end) = rest.find(['\r', '\n']) {
            self.line(field, &rest[..end]);
            rest = rest[end..].strip_prefix("\r\n").unwrap_or(&rest[end + 1..]);
        }
        self.line(field, rest);
        self
    }

    fn line(&mut self, field: &str, value: &str) {
        self.text.push_str(field);
        self.text.push_str(value);
        self.text.push('\n');
    }
}
