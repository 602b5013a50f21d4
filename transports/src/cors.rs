//! This module checks the origin of every request, and adds the CORS headers of the allowed
//! origins.

use std::net::SocketAddr;
use std::sync::Arc;

use airwave_core::Hub;
use airwave_core::warnings::Warning;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, HeaderMap, HeaderValue, ORIGIN, VARY,
};
use http::{Method, StatusCode};

use crate::request::{ClientScheme, Options, Origin, check_host, refusal_response};

/// Returns the headers that Airwave reads, and those that the page wants to send beside them. A
/// page whose origin is allowed may be instrumented (`traceparent`). A header that Airwave does not
/// read changes nothing.
fn allowed_headers(asked: Option<&HeaderValue>) -> HeaderValue {
    const READ: &str = "authorization, content-type, idempotency-key, last-event-id";
    asked
        .and_then(|asked| asked.to_str().ok())
        .and_then(|asked| HeaderValue::from_str(&format!("{READ}, {asked}")).ok())
        .unwrap_or_else(|| HeaderValue::from_static(READ))
}

/// Requires one host in each request (RFC 9112, section 3.2) and, by default, the same origin. It
/// does so on every route and every transport, and adds the CORS headers of the allowed origins.
pub(crate) async fn guard_origin(State((hub, options)): State<(Hub, Arc<Options>)>, request: Request, next: Next) -> Response {
    if let Err(refusal) = check_host(request.version(), request.uri(), request.headers()) {
        hub.metrics().refused(refusal.code);
        return refusal_response(&refusal, None);
    }
    let authority = request.uri().authority().map(|authority| authority.as_str().to_owned());
    let scheme = ClientScheme::of(request.uri(), request.extensions());
    let origin = match options.origins.check(request.headers(), authority.as_deref(), scheme) {
        Ok(origin) => origin,
        Err(refusal) => {
            hub.metrics().refused(refusal.code);
            let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip());
            let origin = request
                .headers()
                .get(ORIGIN)
                .map(|origin| String::from_utf8_lossy(origin.as_bytes()));
            hub.warn(Warning::RefusedOrigin, peer, &origin.unwrap_or_default());
            return refusal_response(&refusal, None);
        }
    };
    let preflight = request.method() == Method::OPTIONS && request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = match preflight {
        true => preflight_response(request.headers().get(ACCESS_CONTROL_REQUEST_HEADERS)),
        false => next.run(request).await,
    };
    allow(response.headers_mut(), origin, preflight);
    response
}

/// Answers a preflight with the methods and headers that a page may send.
fn preflight_response(asked: Option<&HeaderValue>) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, allowed_headers(asked));
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    response
}

/// Lets a page of this origin read the response.
fn allow(headers: &mut HeaderMap, origin: Origin, preflight: bool) {
    match origin {
        Origin::Ours => {}
        Origin::Any => {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        }
        Origin::Allowed(origin) => {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
            // The response has one such header, because some caches read only the first.
            let vary = match preflight {
                true => "origin, access-control-request-headers",
                false => "origin",
            };
            headers.append(VARY, HeaderValue::from_static(vary));
        }
    }
}
