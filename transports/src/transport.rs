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
///
/// # Examples
/// This transport answers `GET /channels/{name}?lines` with all events of a channel that ends.
/// ```
/// use airwave_core::hub::FormatHandle;
/// use airwave_core::rule::TransportName;
/// use airwave_core::session::{After, Turn};
/// use airwave_core::{Hub, Refusal, Session};
/// use airwave_transports::request::connect_request;
/// use airwave_transports::{ChannelRequest, Transport};
/// use axum::Router;
/// use axum::body::Body;
/// use axum::response::{IntoResponse, Response};
/// use http::request::Parts;
///
/// const LINES: TransportName = TransportName::of("lines");
///
/// /// Holds what `Hub::register_format` returned.
/// struct LineTransport(FormatHandle);
///
/// impl LineTransport {
///     async fn read(&self, hub: &Hub, request: ChannelRequest) -> Result<Body, Refusal> {
///         let connection = hub.connect(connect_request(&request.parts, LINES), true)?;
///         let mut session = Session::new(connection, &self.0).ends_with_channels();
///         let pending = session.subscriber().subscribe(&request.channel?, After::Nothing).await?;
///         session.add(pending, None);
///         let (mut out, mut body) = (Vec::new(), Vec::new());
///         loop {
///             let turn = session.turn(&mut out).await;
///             // A turn returns at once if `out` still holds what an earlier one has put into it.
///             out.drain(..).for_each(|piece| body.extend_from_slice(&piece));
///             if turn != Turn::Frames {
///                 return Ok(body.into());
///             }
///         }
///     }
/// }
///
/// #[async_trait::async_trait]
/// impl Transport for LineTransport {
///     fn name(&self) -> TransportName {
///         LINES
///     }
///
///     fn routes(&self, _: Hub) -> Router {
///         Router::new()
///     }
///
///     fn wants(&self, request: &Parts) -> bool {
///         request.uri.query() == Some("lines")
///     }
///
///     async fn listen(&self, hub: &Hub, request: ChannelRequest) -> Response {
///         match self.read(hub, request).await {
///             Ok(body) => Response::new(body),
///             Err(refusal) => refusal.into_response(),
///         }
///     }
/// }
/// ```
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
