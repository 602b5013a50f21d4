//! Airwave's transports, as axum routes on a [`Hub`].
//!
//! - [`sse`]: the server tells, the client listens
//! - [`websocket`]: client and server converse
//! - [`http`]: publish, send, history, health
//! - [`prometheus`]: metrics as text
//! - [`request`], [`accept`], [`envelope`]: what they have in common; [`socket`]: taking a
//!   connection back from hyper
//!
//! One URL per channel: [`router`] asks each transport whether a request is its own. Siblings never
//! import each other.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod accept;
pub mod envelope;
mod heads;
pub mod http;
mod pages;
pub mod prometheus;
pub mod request;
pub mod socket;
pub mod sse;
pub mod websocket;

use std::net::SocketAddr;
use std::sync::Arc;

use ::http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ALLOW, HeaderValue, ORIGIN, VARY,
};
use ::http::request::Parts;
use ::http::{Method, StatusCode};
use airwave_core::rule::TransportName;
use airwave_core::warnings::Warning;
use airwave_core::{ChannelName, Hub, Refusal};
use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::any;

use request::{ClientScheme, Origin, channel_name, refusal_response};
pub use request::{Options, Origins, Publishers};

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
pub struct ChannelRequest {
    /// The channel; an error if the path holds no valid name.
    pub channel: Result<ChannelName, Refusal>,
    /// The request without its body.
    pub parts: Parts,
    /// What the client sends with it. A listener has nothing to send.
    pub body: Body,
}

#[derive(Clone)]
struct App {
    hub: Hub,
    options: Arc<Options>,
    transports: Arc<[Arc<dyn Transport>]>,
    pages: Arc<pages::Pages>,
}

/// The transports that come with Airwave, in the order in which they are asked.
pub fn standard(hub: &Hub) -> Vec<Arc<dyn Transport>> {
    vec![Arc::new(websocket::WebSocket::new(hub)), Arc::new(sse::Sse::new(hub))]
}

/// All routes, to be nested under any prefix.
pub fn router(hub: Hub, options: Options, transports: Vec<Arc<dyn Transport>>) -> Router {
    let options = Arc::new(options);
    let mut router = http::routes(hub.clone(), options.clone());
    for transport in &transports {
        router = router.merge(transport.routes(hub.clone()));
    }
    let app = App {
        hub,
        options,
        transports: transports.into(),
        pages: Arc::default(),
    };
    let channels = Router::new().route("/channels/{*name}", any(channel)).with_state(app.clone());
    router
        .merge(channels)
        .layer(middleware::from_fn_with_state(app, guard_origin))
}

async fn channel(State(app): State<App>, request: Request) -> Response {
    let method = request.method().clone();
    let (mut parts, body) = request.into_parts();
    let channel = name_in_path(&parts);
    if let Some(transport) = app.transports.iter().find(|transport| transport.wants(&parts)) {
        // A WebSocket over HTTP/2 is a CONNECT (RFC 8441); everything else that listens is a GET.
        if method == Method::GET || method == Method::HEAD || method == Method::CONNECT {
            return transport.listen(&app.hub, ChannelRequest { channel, parts, body }).await;
        }
    }
    let result = match (channel, method) {
        (Err(refusal), _) => Err(refusal),
        (Ok(channel), Method::GET | Method::HEAD) => {
            let names: Vec<_> = app.transports.iter().map(|transport| transport.name()).collect();
            http::history(&app.hub, &app.pages, &names, channel, &mut parts).await
        }
        (Ok(_), Method::POST) if http::is_encoded(&parts.headers) => Ok(http::coding_refused(&app.hub)),
        (Ok(channel), Method::POST) => http::send(&app.hub, channel, &mut parts, body).await,
        (Ok(_), _) => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
            response
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static("GET, HEAD, POST"));
            Ok(response)
        }
    };
    result.unwrap_or_else(|refusal| {
        app.hub.metrics().refused(refusal.code);
        refusal_response(&refusal, Some(&request::path_as_seen(&parts)))
    })
}

/// The router strips whatever prefix we are mounted under, so the name is all that follows
/// `/channels/`.
fn name_in_path(parts: &Parts) -> Result<ChannelName, Refusal> {
    let path = parts.uri.path();
    let name = path.strip_prefix("/channels/").unwrap_or(path);
    let decoded = percent_encoding::percent_decode_str(name).decode_utf8();
    channel_name(&decoded.map_err(|_| Refusal::bad_request("the channel's name in the path is not UTF-8"))?)
}

/// The headers that Airwave reads, and those that the page wants to send beside them. A page whose
/// origin is allowed may be instrumented (`traceparent`), and what Airwave does not read changes
/// nothing.
fn allowed_headers(asked: Option<&HeaderValue>) -> HeaderValue {
    const READ: &str = "authorization, content-type, idempotency-key, last-event-id";
    asked
        .and_then(|asked| asked.to_str().ok())
        .and_then(|asked| HeaderValue::from_str(&format!("{READ}, {asked}")).ok())
        .unwrap_or_else(|| HeaderValue::from_static(READ))
}

/// One host in each request (RFC 9112, section 3.2), same origin by default, on every route and
/// every transport; CORS headers for the origins that are allowed.
async fn guard_origin(State(app): State<App>, request: Request, next: Next) -> Response {
    if let Err(refusal) = request::check_host(request.version(), request.uri(), request.headers()) {
        app.hub.metrics().refused(refusal.code);
        return refusal_response(&refusal, None);
    }
    let authority = request.uri().authority().map(|authority| authority.as_str().to_owned());
    let scheme = ClientScheme::of(request.uri(), request.extensions());
    let origin = match app.options.origins.check(request.headers(), authority.as_deref(), scheme) {
        Ok(origin) => origin,
        Err(refusal) => {
            app.hub.metrics().refused(refusal.code);
            let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip());
            let origin = request
                .headers()
                .get(ORIGIN)
                .map(|origin| String::from_utf8_lossy(origin.as_bytes()));
            app.hub.warn(Warning::RefusedOrigin, peer, &origin.unwrap_or_default());
            return refusal_response(&refusal, None);
        }
    };
    let preflight = request.method() == Method::OPTIONS && request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD);
    let asked = request.headers().get(ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    let mut response = if preflight {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        let headers = response.headers_mut();
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, allowed_headers(asked.as_ref()));
        headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
        response
    } else {
        next.run(request).await
    };
    let headers = response.headers_mut();
    match origin {
        Origin::Ours => {}
        Origin::Any => {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        }
        Origin::Allowed(origin) => {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
            // One header, as some caches read the first alone.
            let vary = match preflight {
                true => "origin, access-control-request-headers",
                false => "origin",
            };
            headers.append(VARY, HeaderValue::from_static(vary));
        }
    }
    response
}
