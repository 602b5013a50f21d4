//! One connection, from its first byte to its end.

use std::any::Any;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use airwave_transports::request::MAX_HEAD;
use airwave_transports::socket::{DetachedSocket, FirstBytes, Io, News, Usage};
use axum::body::Body;
use http::header::UPGRADE;
use http::{Method, Request, Response, Version};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioTimer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::admission::ConnectionPermit;
use super::answer::{Detached, Slot, Step, answer, call};
use super::idle::{Answer, Chunked, HeadClock, Requests, Streams, Waits, without_streams};
use super::node::Node;

/// How long a client may go on sending after its last answer, and how long it may pause.
const CLOSE_WAIT: Duration = Duration::from_secs(2);
const QUIET: Duration = Duration::from_millis(500);
/// How long a connection that is refused may take to say what it wants.
const REFUSAL_WAIT: Duration = Duration::from_secs(1);
/// How long the kernel may fail to deliver before it gives a dead peer up (RFC 5482).
const USER_TIMEOUT: Duration = Duration::from_secs(30);
/// RFC 9113, section 3.4: how an HTTP/2 connection begins. No HTTP/1 method has these four letters.
const HTTP2_PREFACE: &[u8; FirstBytes::ENOUGH] = b"PRI ";

/// The answer to a request of HTTP/1. `poll_without_shutdown` wants a future that can be moved.
type PinnedAnswer = Pin<Box<dyn Future<Output = Result<Response<Answer>, Infallible>> + Send>>;

/// One accepted connection.
pub(super) struct Served {
    pub(super) node: Arc<Node>,
    pub(super) peer: SocketAddr,
    pub(super) accepted: Instant,
    pub(super) place: ConnectionPermit,
}

impl Served {
    pub(super) async fn run(self, mut stream: TcpStream) {
        // A socket on which these fail is gone already.
        let _ = stream.set_nodelay(true);
        #[cfg(target_os = "linux")]
        let _ = socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(USER_TIMEOUT));
        let cut = happened(self.node.cutting.clone());
        let waits = self.waits();
        let serve = async {
            let first = tokio::select! {
                biased;
                first = timeout(waits.head, first_bytes(&mut stream)) => first,
                // A client that was just accepted may have its request on the way.
                () = drained_and(&self.node, self.accepted + QUIET) => return,
            };
            match first {
                Ok(Ok((first, true))) => self.http2(stream, first).await,
                Ok(Ok((first, false))) => self.http1(stream, first).await,
                Ok(Err(_)) | Err(_) => {}
            }
        };
        tokio::select! {
            () = serve => {}
            () = cut => {}
        }
    }

    fn waits(&self) -> Waits {
        let serving = &self.node.serving;
        if self.place.is_for_refusal() {
            return Waits {
                head: serving.head.min(REFUSAL_WAIT),
                keep_alive: serving.keep_alive.min(REFUSAL_WAIT),
            };
        }
        Waits {
            head: serving.head,
            keep_alive: serving.keep_alive,
        }
    }

    async fn http2(self, stream: TcpStream, first: FirstBytes) {
        let requests = Requests::new();
        let (node, peer, refuse) = (self.node.clone(), self.peer, self.place.is_for_refusal());
        let service = service_fn(move |request: Request<Incoming>| call(node.clone(), request.map(Body::new), peer, refuse));
        let mut builder = http2::Builder::new(Streams(requests.clone()));
        builder
            .timer(TokioTimer::new())
            .max_header_list_size(MAX_HEAD as u32)
            .max_send_buf_size(64 << 10)
            .keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(20))
            .enable_connect_protocol();
        let mut connection = std::pin::pin!(builder.serve_connection(Io::http2(stream, first), service));
        let waits = self.waits();
        // The peer may begin a stream meanwhile, and may finish it.
        let finish = async |mut connection: Pin<&mut _>, patience| loop {
            match timeout(patience, Pin::as_mut(&mut connection)).await {
                Ok(result) => return result,
                Err(_) if requests.are_under_way() => {}
                Err(_) => return Ok(()),
            }
        };
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = happened(self.node.draining.clone()) => {
                connection.as_mut().graceful_shutdown();
                finish(connection.as_mut(), QUIET).await
            }
            () = without_streams(&requests, waits, self.accepted) => {
                connection.as_mut().graceful_shutdown();
                finish(connection.as_mut(), CLOSE_WAIT).await
            }
        };
        if let Err(error) = result {
            tracing::debug!(%error, "an HTTP/2 connection ended badly");
        }
    }

    /// How each request of an HTTP/1 connection is answered.
    fn http1_answers(
        &self,
        slot: &Slot,
        usage: &Arc<Usage>,
        requests: &Arc<Requests>,
    ) -> impl Fn(Request<Incoming>) -> PinnedAnswer + use<> {
        let (node, peer, refuse) = (self.node.clone(), self.peer, self.place.is_for_refusal());
        let (slot, requests, usage) = (slot.clone(), requests.clone(), usage.clone());
        move |request| {
            // A client of HTTP/1.0 knows no chunks.
            let chunked = request.version() == Version::HTTP_11;
            let (request, upgrade) = told_to_the_gate(request, &usage);
            let call = call(node.clone(), request, peer, refuse);
            Box::pin(answer(call, slot.clone(), requests.begin(), upgrade, chunked))
        }
    }

    async fn http1(self, stream: TcpStream, first: FirstBytes) {
        let slot = Slot::default();
        let usage = Arc::new(Usage::default());
        let requests = Requests::new();
        let service = service_fn(self.http1_answers(&slot, &usage, &requests));
        let mut builder = http1::Builder::new();
        // Its time-out would be one for the wait and for the head: `HeadClock` has one for each.
        builder.header_read_timeout(None).max_buf_size(MAX_HEAD);
        let mut connection = builder.serve_connection(Io::http1(stream, first, usage.clone()), service);
        let mut clock = HeadClock::new(self.waits(), self.accepted);
        let mut timer = std::pin::pin!(sleep_until(clock.first()));
        let mut drained = false;
        let step = loop {
            let progress = poll_fn(|cx| {
                let done = connection.poll_without_shutdown(cx);
                match slot.take() {
                    // hyper still holds bytes of an earlier answer: the socket cannot be taken yet.
                    Some(step @ Step::Detach(_)) if usage.is_blocked() => slot.put(step),
                    Some(step) => return Poll::Ready(step),
                    None => {}
                }
                match done {
                    Poll::Ready(result) => Poll::Ready(Step::Done(result)),
                    Poll::Pending => clock
                        .poll_expired(timer.as_mut(), &usage, &requests, cx)
                        .map(|()| Step::Done(Ok(()))),
                }
            });
            tokio::select! {
                step = progress => break step,
                () = happened(self.node.draining.clone()), if !drained => {
                    drained = true;
                    clock.hurry(Instant::now() + QUIET);
                    Pin::new(&mut connection).graceful_shutdown();
                }
            }
        };
        match step {
            Step::Detach(detached) => {
                let keep = Box::new((self.place, self.node.tasks.token()));
                detach(connection.into_parts(), detached, keep);
            }
            Step::Upgrade(go_on) => {
                // The upgrade belongs to a route of the application. From here on hyper does it.
                let _ = go_on.send(());
                if let Err(error) = connection.with_upgrades().await {
                    tracing::debug!(%error, "an upgraded connection ended badly");
                }
            }
            Step::Done(result) => {
                if let Err(error) = result {
                    tracing::debug!(%error, "an HTTP/1 connection ended badly");
                }
                // Nothing is on its way that a reset could overtake.
                if drained && requests.are_over_for(CLOSE_WAIT) {
                    return;
                }
                // Boxed: its buffer is of no use to the connection before.
                Box::pin(close(connection.into_parts().io.into_parts().0)).await;
            }
        }
    }
}

/// Gives the socket to the task that asked for it.
///
/// That is a task of its own, so that nothing of hyper's is kept. Sessions are cut by the hub, so
/// it need not watch for that.
fn detach<S>(parts: http1::Parts<Io, S>, detached: Detached, keep: Box<dyn Any + Send>) {
    let Detached { go_on, head, chunked } = detached;
    let (stream, unseen) = parts.io.into_parts();
    // A copy: even when it is empty, it would keep hyper's read buffer of 8 KiB alive.
    let read = [&parts.read_buf[..], &unseen[..]].concat().into();
    drop(parts.service);
    go_on(DetachedSocket::new(stream, head, keep).with_read(read).with_chunked(chunked));
}

/// Ends a connection so that the last answer arrives. A socket that is closed with unread bytes
/// sends a reset. The reset may overtake the answer that says what is too much (RFC 9112, section
/// 9.6). So the client gets some time to finish first.
pub(super) async fn close(mut stream: TcpStream) {
    let _ = stream.shutdown().await;
    let mut piece = [0u8; 4096];
    let rest = async { while matches!(timeout(QUIET, stream.read(&mut piece)).await, Ok(Ok(1..))) {} };
    let _ = timeout(CLOSE_WAIT, rest).await;
}

/// Until the word is given; for ever if it never will be.
pub(super) async fn happened(mut word: watch::Receiver<bool>) {
    if word.wait_for(|given| *given).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Until the node drains, and not before `earliest`.
pub(super) async fn drained_and(node: &Node, earliest: Instant) {
    happened(node.draining.clone()).await;
    sleep_until(earliest).await;
}

/// Tells the gate under hyper what the head said of its body. What is returned tells it that no
/// other protocol follows.
pub(super) fn told_to_the_gate(request: Request<Incoming>, usage: &Arc<Usage>) -> (Request<Body>, Option<Arc<Usage>>) {
    if request.headers().contains_key(UPGRADE) || request.method() == Method::CONNECT {
        usage.tell(News::Upgrade);
        return (request.map(Body::new), Some(usage.clone()));
    }
    match request.body().size_hint().exact() {
        Some(length) => {
            usage.tell(News::Body(length));
            (request.map(Body::new), None)
        }
        None => {
            usage.tell(News::Chunked);
            let usage = usage.clone();
            (request.map(|body| Body::new(Chunked { body, usage })), None)
        }
    }
}

/// The first bytes of a connection, and whether it begins like HTTP/2.
pub(super) async fn first_bytes(stream: &mut TcpStream) -> io::Result<(FirstBytes, bool)> {
    let mut first = FirstBytes::default();
    loop {
        if first.read_from(stream).await? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let read = first.as_slice();
        if *read != HTTP2_PREFACE[..read.len()] {
            return Ok((first, false));
        }
        if first.are_enough() {
            return Ok((first, true));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a connection costs before it streams, or between two requests; hyper's buffers are
    /// added to it. The test fails when a change makes it grow.
    #[test]
    fn a_connection_is_small() {
        fn of<F>(_: fn(Served, TcpStream) -> F) -> usize {
            size_of::<F>()
        }
        let connection = of(Served::run);
        // 56 of them are the gate before hyper and what waits behind it.
        assert!(connection <= 3264, "{connection} bytes");
    }
}
