//! The browser client at `/client.js`: built from `clients/typescript`, carried in the binary, so
//! that a page needs no build step and no CDN.

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use axum::routing::get;
use http::StatusCode;
use http::header::{
    ACCESS_CONTROL_ALLOW_ORIGIN, CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH,
};

/// Not executed as anything but what it says it is.
const NOSNIFF: HeaderName = HeaderName::from_static("x-content-type-options");

/// The client, and the module that it loads if tabs share a connection. They stand beside each
/// other, wherever this is mounted.
pub(crate) fn routes() -> Router {
    Router::new()
        .route(
            "/client.js",
            get(|headers: HeaderMap| async move { module(&headers, include_bytes!("../clients/typescript/dist/served.js")) }),
        )
        .route(
            "/client-share.js",
            get(|headers: HeaderMap| async move {
                module(&headers, include_bytes!("../clients/typescript/dist/client-share.js"))
            }),
        )
}

/// Asked for again each time, answered with 304 while it is the same: pages never run the client of
/// an older server.
fn module(request: &HeaderMap, text: &'static [u8]) -> Response {
    let tag = format!("\"{:016x}\"", fingerprint(text));
    // RFC 9110, section 13.1.2: a list of tags, compared weakly; a proxy that compresses makes ours
    // weak.
    let known = request.get_all(IF_NONE_MATCH).iter().any(|value| {
        let tags = value.to_str().unwrap_or_default().split(',');
        tags.map(|each| each.trim().trim_start_matches("W/"))
            .any(|each| each == tag || each == "*")
    });
    let mut response = Response::new(if known { Body::empty() } else { Body::from(text) });
    if known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/javascript; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(NOSNIFF, HeaderValue::from_static("nosniff"));
    // It holds nothing that is not public, and a page of an allowed origin must be able to import
    // it.
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        headers.insert(ETAG, tag);
    }
    response
}

/// FNV-1a: the same for the same text, in every build and on every node behind a balancer.
fn fingerprint(text: &[u8]) -> u64 {
    text.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_is_sent_once_and_then_only_confirmed() {
        let ask = |tag: Option<&str>| {
            let mut headers = HeaderMap::new();
            if let Some(tag) = tag {
                headers.insert(IF_NONE_MATCH, tag.parse().unwrap());
            }
            module(&headers, b"export {};")
        };
        let first = ask(None);
        assert_eq!(first.status(), StatusCode::OK);
        assert_eq!(first.headers()[CONTENT_TYPE], "text/javascript; charset=utf-8");
        let tag = first.headers()[ETAG].to_str().unwrap().to_owned();
        for known in [tag.clone(), format!("W/{tag}"), format!("\"other\", {tag}"), "*".to_owned()] {
            assert_eq!(ask(Some(&known)).status(), StatusCode::NOT_MODIFIED, "{known}");
        }
        assert_eq!(ask(Some("\"other\"")).status(), StatusCode::OK);
        assert_ne!(fingerprint(b"a"), fingerprint(b"b"));
    }
}
