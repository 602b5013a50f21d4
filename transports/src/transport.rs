//! The contract of a transport: what the router asks of it.

use airwave_core::rule::TransportName;
use airwave_core::{ChannelName, Hub, Refusal};
use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use axum::response::Response;
use http::request::Parts;

/// A way to deliver over an HTTP connection. One that is not HTTP needs no trait: it drives a
/// [`Session`](airwave_core::Session).
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// Its name in configuration.
    fn name(&self) -> TransportName;

    /// The paths of its own, beside the channels' URLs.
    fn routes(&self, hub: Hub) -> Router;

    /// Whether a request to a channel's URL asks for this transport. The first that says yes serves
    /// it.
    fn wants(&self, request: &Parts) -> bool;

    /// Serves a request to a channel's URL.
    async fn listen(&self, hub: &Hub, request: ChannelRequest) -> Response;
}

/// A GET of a channel's URL.
#[non_exhaustive]
pub struct ChannelRequest {
    /// The channel; an error if the path holds no valid name.
    pub channel: Result<ChannelName, Refusal>,
    /// The request without its body.
    pub parts: Parts,
    /// What the client sends with it. A listener has nothing to send.
    pub body: Body,
}

impl ChannelRequest {
    /// Returns the request for `channel`, as a router or a test of a transport gives it.
    pub fn new(channel: Result<ChannelName, Refusal>, parts: Parts, body: Body) -> Self {
        Self { channel, parts, body }
    }
}
