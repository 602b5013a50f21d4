//! Airwave's protocol as types: what servers, clients and backends write to each other.
//!
//! [docs/protocol.md] describes the protocol for people. This crate is the same for programs: it
//! reads and writes frames, envelopes, publications, pages and errors, and it takes streams of
//! server-sent events apart. It does no I/O, starts no task and reads no clock, so a client over
//! any runtime can use it.
//!
//! A reader of what a **server** sends ([`ServerFrame`], [`Page`], [`ErrorBody`]) accepts unknown
//! fields and unknown frames, because the server may be newer. A reader of what a **client** sends
//! ([`ClientFrame`], [`Publication`], [`ClientMessage`]) refuses unknown fields, because a misspelt
//! field would otherwise be dropped in silence.
//!
//! # Examples
//! A client that listens over server-sent events:
//!
//! ```
//! use airwave_protocol::{Payload, ServerFrame, sse};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let stream = b"retry: 2731\nid: 17\nevent: say\ndata: {\"text\":\"hi\"}\n\n";
//! let (mut parser, mut events) = (sse::Parser::default(), Vec::new());
//! parser.push(stream, &mut events)?;
//! let frame = ServerFrame::from_sse(&events[0], Some("chat/lobby"))?;
//! let ServerFrame::Event(event) = frame else { panic!() };
//! assert_eq!((&*event.channel, &*event.id, &*event.event), ("chat/lobby", "17", "say"));
//! let Payload::Json(data) = &event.payload else { panic!() };
//! assert_eq!(data.get(), "{\"text\":\"hi\"}");
//! # Ok(())
//! # }
//! ```
//!
//! [docs/protocol.md]: https://docs.rs/airwave-protocol
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod binary;
mod client;
mod code;
mod envelope;
mod error;
mod fields;
mod member;
mod notices;
mod page;
mod payload;
mod publication;
#[cfg(feature = "schema")]
pub mod schema;
mod server;
pub mod sse;
mod text;

pub use client::{ClientFrame, ClientMessage, MAX_ID, Ping, SendMessage, Subscribe, Unsubscribe};
pub use code::{Code, GapReason, close_code};
pub use envelope::Envelope;
pub use error::{ErrorBody, Failure, ReadError};
pub use member::Member;
pub use notices::{Empty, End, ErrorFrame, Gap, MemberChange, Members, Pong, Reply, Subscribed, UnknownFrame, Unsubscribed};
pub use page::Page;
pub use payload::{Attributes, Base64, Json, Payload};
pub use publication::{Answer, Publication, PublishAnswer, Published};
pub use server::ServerFrame;
