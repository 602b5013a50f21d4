//! One request: calling the routes, and what becomes of the answer.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use airwave_core::{Hub, Refusal};
use airwave_transports::request::{check_host, refusal_response};
use airwave_transports::socket::{Detach, News, OnDetached, Usage};
use axum::body::Body;
use axum::extract::ConnectInfo;
use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, DATE, HeaderValue, TRANSFER_ENCODING};
use http::{Method, Request, Response, StatusCode, Version};
use tokio::sync::oneshot;
use tower::ServiceExt;

use super::forwarded;
use super::idle::{Answer, UnderWay};
use super::node::Node;
use super::serving::unless_refused;

/// How the service tells the connection's loop what it wants.
#[derive(Clone, Default)]
pub(super) struct Slot(Arc<Mutex<Option<Step>>>);

pub(super) enum Step {
    Detach(Detached),
    Upgrade(oneshot::Sender<()>),
    Done(hyper::Result<()>),
}

/// What goes on with the socket, and the response's head, which it writes.
pub(super) struct Detached {
    pub(super) go_on: OnDetached,
    pub(super) head: Bytes,
    pub(super) chunked: bool,
}

impl Slot {
    pub(super) fn put(&self, step: Step) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(step);
    }

    pub(super) fn take(&self) -> Option<Step> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

pub(super) async fn call(
    node: Arc<Node>,
    mut request: Request<Body>,
    peer: SocketAddr,
    refuse: bool,
) -> Result<Response<Body>, std::convert::Infallible> {
    if let Some(refused) = refused_for_its_head(&node.hub, &request) {
        return Ok(refused);
    }
    let serving = &node.serving;
    let (client, scheme) = forwarded::client(request.headers(), peer, serving.client_ip_header, &*serving.trusts);
    request.extensions_mut().insert(ConnectInfo(client));
    if let Some(scheme) = scheme {
        request.extensions_mut().insert(scheme);
    }
    let (version, method) = (request.version(), request.method().clone());
    let mut response = match refuse {
        true => node.refusing.clone().oneshot(request).await?,
        false => unless_refused(&serving.refuses, &node.app, request).await,
    };
    if refuse && version <= Version::HTTP_11 {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    // Only a whole GET over HTTP/1 gives a socket that no other request uses.
    if method != Method::GET || version > Version::HTTP_11 || response.headers().contains_key(CONTENT_ENCODING) {
        response.extensions_mut().remove::<Detach>();
    }
    Ok(response)
}

/// The answer to a request whose head is none, although hyper takes it (RFC 9112, sections 3.2 and
/// 6.1). It concerns the routes of an application as well.
pub(super) fn refused_for_its_head<B>(hub: &Hub, request: &Request<B>) -> Option<Response<Body>> {
    let (version, headers) = (request.version(), request.headers());
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let is_understood = codings.all(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
    let (refusal, status) = match check_host(version, request.uri(), headers) {
        Err(refusal) => (refusal, StatusCode::BAD_REQUEST),
        Ok(()) if is_understood => return None,
        Ok(()) => (
            Refusal::bad_request("'Transfer-Encoding' can only be 'chunked' here"),
            StatusCode::NOT_IMPLEMENTED,
        ),
    };
    hub.metrics().refused(refusal.code);
    let mut response = refusal_response(&refusal, None);
    *response.status_mut() = status;
    if version <= Version::HTTP_11 {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(CONNECTION, close);
    }
    Some(response)
}

/// Gives the response to hyper, or the socket to the task that asked for it.
pub(super) async fn answer(
    call: impl Future<Output = Result<Response<Body>, std::convert::Infallible>>,
    slot: Slot,
    under_way: UnderWay,
    upgrade: Option<Arc<Usage>>,
    chunked: bool,
) -> Result<Response<Answer>, std::convert::Infallible> {
    let mut response = call.await?;
    if let Some(go_on) = response.extensions_mut().remove::<Detach>().and_then(|detach| detach.take()) {
        slot.put(Step::Detach(Detached {
            go_on,
            head: head_of(&response, chunked),
            chunked,
        }));
        // Never answered: the connection's loop takes the socket and drops this.
        return std::future::pending().await;
    }
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let (go_on, going_on) = oneshot::channel();
        slot.put(Step::Upgrade(go_on));
        let _ = going_on.await;
    } else if let Some(usage) = upgrade {
        usage.tell(News::NoUpgrade);
    }
    Ok(response.map(|body| Answer {
        body,
        _under_way: under_way,
    }))
}

/// The response's head as hyper would write it. The body of a stream comes in chunks, or else ends
/// with its connection (RFC 9112, section 6.3, rule 8).
pub(super) fn head_of(response: &Response<Body>, chunked: bool) -> Bytes {
    let mut head = BytesMut::with_capacity(256);
    let status = response.status();
    let reason = status.canonical_reason().unwrap_or_default();
    head.put_slice(format!("HTTP/1.1 {} {reason}\r\n", status.as_str()).as_bytes());
    let switching = status == StatusCode::SWITCHING_PROTOCOLS;
    for (name, value) in response.headers() {
        // axum gives an empty body its length, and a 101 has none (RFC 9110, section 8.6).
        if name != CONTENT_LENGTH && name != TRANSFER_ENCODING && (switching || name != CONNECTION) {
            head.put_slice(name.as_str().as_bytes());
            head.put_slice(b": ");
            head.put_slice(value.as_bytes());
            head.put_slice(b"\r\n");
        }
    }
    if !switching {
        head.put_slice(b"connection: close\r\n");
        if chunked {
            head.put_slice(b"transfer-encoding: chunked\r\n");
        }
    }
    if !response.headers().contains_key(DATE) {
        head.put_slice(format!("date: {}\r\n", httpdate::fmt_http_date(SystemTime::now())).as_bytes());
    }
    head.put_slice(b"\r\n");
    head.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_stream_comes_in_chunks_or_ends_with_its_connection() {
        let response = Response::builder()
            .header("content-type", "text/event-stream")
            .header("transfer-encoding", "chunked")
            .header("content-length", "7")
            .body(Body::empty())
            .unwrap();
        let head = |chunked| String::from_utf8(head_of(&response, chunked).to_vec()).unwrap();
        let in_chunks = head(true);
        assert_eq!(
            in_chunks.matches("\r\ntransfer-encoding: chunked\r\n").count(),
            1,
            "{in_chunks}"
        );
        assert!(!in_chunks.contains("content-length"), "{in_chunks}");
        let head = head(false);
        assert!(
            head.starts_with("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\ndate: "),
            "{head}"
        );
        assert!(head.ends_with("\r\n\r\n") && !head.contains("chunked") && !head.contains("content-length"));
    }
}
