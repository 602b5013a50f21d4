//! This module reads the body of a POST: JSON, not coded, within a size and a time.

use std::time::Duration;

use airwave_core::event::IdempotencyKey;
use airwave_core::{Code, Hub, Refusal};
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::time::timeout;

use crate::envelope;
use crate::request::{header_text, only, refusal_response};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Bounds the time of one body, so that a body that never ends takes no place for ever.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Returns the whole body, if its content type is JSON and it is not too large.
///
/// The server refuses other content types because a foreign page may send those without asking
/// (CORS "simple requests").
pub(super) async fn json_body(headers: &HeaderMap, body: Body, limit: usize) -> Result<Bytes, Refusal> {
    let kind = only(headers, &CONTENT_TYPE)?
        .and_then(|kind| kind.to_str().ok())
        .unwrap_or_default();
    if !kind
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .eq_ignore_ascii_case("application/json")
    {
        return Err(Refusal::bad_request("send JSON, with 'Content-Type: application/json'"));
    }
    match timeout(BODY_TIMEOUT, Limited::new(body, limit).collect()).await {
        Ok(Ok(body)) => {
            let body = body.to_bytes();
            Ok(body.slice_ref(envelope::without_bom(&body)))
        }
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(Refusal::new(Code::TooLarge, format!("the body is larger than {limit} bytes")))
        }
        Ok(Err(_)) => Err(Refusal::bad_request("the body broke off")),
        Err(_) => Err(Refusal::bad_request(format!(
            "the body did not come within {} seconds",
            BODY_TIMEOUT.as_secs()
        ))),
    }
}

/// Returns whether a request's body has a coding that the server does not take.
pub(crate) fn is_encoded(headers: &HeaderMap) -> bool {
    let codings = headers.get_all(CONTENT_ENCODING).iter();
    let mut codings = codings.flat_map(|value| value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii));
    codings.any(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity"))
}

/// Answers a body that has a coding (RFC 9110, section 15.5.16).
pub(crate) fn coding_refused(hub: &Hub) -> Response {
    let refusal = Refusal::bad_request("send the body as it is: 'Content-Encoding' is not taken");
    hub.metrics().refused(refusal.code);
    let mut response = refusal_response(&refusal, None);
    *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    let headers = response.headers_mut();
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    response
}

/// Returns the key of the header `Idempotency-Key`, if there is one.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<IdempotencyKey>, Refusal> {
    match header_text(headers, &IDEMPOTENCY_KEY)? {
        Some(text) => Ok(Some(IdempotencyKey::new(text)?)),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_that_never_ends_is_given_up() {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let endless = futures_util::stream::pending::<Result<Bytes, std::io::Error>>();
        let refusal = json_body(&headers, Body::from_stream(endless), 1000).await.unwrap_err();
        assert_eq!(refusal.code, Code::BadRequest);
        assert!(refusal.message.contains("30 seconds"), "{refusal}");
    }
}
