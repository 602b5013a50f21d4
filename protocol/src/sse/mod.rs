//! Server-sent events (WHATWG HTML, section 9.2): a stream, read and written.
//!
//! What a stream's events mean is [`ServerFrame::from_sse`](crate::ServerFrame::from_sse).

mod parser;
mod writer;

pub use parser::{Event, Limits, Parser, Part, TooLarge};
pub use writer::{LineBreak, Writer};
