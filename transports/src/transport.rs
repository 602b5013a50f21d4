//! This module holds the contract of a transport: the methods that the router calls.

use airwave_core::rule::TransportName;
use airwave_core::{ChannelName, Hub, Refusal};
use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use axum::response::Response;
use http::request::Parts;

/// A transport delivers over an HTTP connection. One that is not HTTP needs no trait: it drives a
/// [`Session`](airwave_core::Session).
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// Returns the transport's name in configuration.
    fn name(&self) -> TransportName;

    /// Returns the routes of the transport's own paths, beside the channels' URLs.
    fn routes(&self, hub: Hub) -> Router;

    /// Returns whether a request to a channel's URL asks for this transport. The first transport
    /// that returns true serves the request.
    fn wants(&self, request: &Parts) -> bool;

    /// Serves a request to a channel's URL.
    async fn listen(&self, hub: &Hub, request: ChannelRequest) -> Response;
}

/// The request is a GET of a channel's URL.
#[non_exhaustive]
pub struct ChannelRequest {
    /// Names the channel; an error if the path holds no valid name.
    pub channel: Result<ChannelName, Refusal>,
    /// Holds the request without its body.
    pub parts: Parts,
    /// Holds what the client sends with the request. A listener has nothing to send.
    pub body: Body,
}

impl ChannelRequest {
    /// Returns the request for `channel`, as a router or a test of a transport gives it.
    pub fn new(channel: Result<ChannelName, Refusal>, parts: Parts, body: Body) -> Self {
        Self { channel, parts, body }
    }
}
