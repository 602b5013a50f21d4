//! This module turns a [`Refusal`] into an HTTP response of axum (feature `axum`).
//!
//! This is the one place in core that names an HTTP framework, because only the crate of a type may
//! implement another crate's trait for it. Nothing else in core uses it.

use axum_core::body::Body;
use axum_core::response::{IntoResponse, Response};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, StatusCode};

use crate::refusal::{Code, Refusal};

/// Returns the response for a refusal: the status of its code and
/// `{"error":{"code":…,"message":…}}`. With `wrong-transport`, `url` says where the client must go
/// instead.
pub fn refused(refusal: &Refusal, url: Option<&str>) -> Response {
    let mut response = Response::new(Body::from(format!("{{\"error\":{{{}}}}}", refusal.json_fields(url))));
    *response.status_mut() = StatusCode::from_u16(refusal.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if matches!(refusal.code, Code::TooMany | Code::Unavailable) {
        // Within a second every counter has a request again (`limits.requests_per_second`), and an
        // outage may be over.
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// This conversion lets an axum handler of the application return `Result<_, Refusal>`. The cause
/// of [`Refusal::from_error`] goes to the log.
impl IntoResponse for Refusal {
    fn into_response(mut self) -> Response {
        if let Some(error) = self.take_cause() {
            tracing::error!(error, "a request failed; its client is answered 'internal'");
        }
        refused(&self, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_a_response_with_its_status_and_without_its_cause() {
        let response = Refusal::unavailable("later").into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[RETRY_AFTER], "1");
        let response = Refusal::from_error("the disk is full").into_response();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let debug = format!("{response:?}");
        assert!(!debug.contains("disk"), "{debug}");
    }
}
