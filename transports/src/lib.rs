//! Airwave's transports are axum routes on a [`Hub`](airwave_core::Hub).
//!
//! - [`sse`]: the server sends, the client listens
//! - [`websocket`]: client and server send to each other
//! - [`http`]: publish, send, history, health
//! - [`prometheus`]: metrics as text
//! - [`request`], [`accept`], [`envelope`]: the parts that they share; [`socket`]: taking a
//!   connection back from hyper
//!
//! Each channel has one URL: [`router`] asks each [`Transport`] whether a request is its own.
//! Siblings never import each other.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod accept;
mod cors;
pub mod envelope;
mod heads;
pub mod http;
mod pages;
pub mod prometheus;
pub mod request;
mod router;
pub mod socket;
pub mod sse;
mod transport;
pub mod websocket;

pub use request::{Options, Origins, Publishers};
pub use router::{router, standard};
pub use transport::{ChannelRequest, Transport};
