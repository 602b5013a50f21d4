//! Our own accept loop: time-outs of heads and waits, `TCP_NODELAY`, connection caps, HTTP/1.1 and
//! HTTP/2 by preface, tracked tasks, drain.
//!
//! `axum::serve` has none of these. And it keeps about 12 KB for each connection that streams:
//! here, once the routes have admitted an SSE or WebSocket listener over HTTP/1.1, the socket is
//! taken back from hyper ([`Detach`]) and a bare task goes on with it.
//!
//! `admission` is who gets a place, `drain` waits aloud at the end, `files` is what open files
//! leave room for, `forwarded` who the client is behind proxies, `idle` how long a connection may
//! wait.

mod admission;
mod drain;
mod files;
mod forwarded;
mod idle;

use std::future::{Future, poll_fn};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::{Duration, SystemTime};

use airwave_core::{Hub, Refusal};
use airwave_transports::request::{MAX_HEAD, check_host, refusal_response};
use airwave_transports::socket::{Detach, DetachedSocket, FirstBytes, Io, News, OnDetached, Usage};
use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, DATE, HeaderValue, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioTimer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use admission::{Admission, Place};
use files::{Outage, Spare, is_out_of_files};
use idle::{Answer, Chunked, HeadClock, Requests, Streams, UnderWay, Waits, without_streams};

pub use forwarded::ClientIpHeader;

/// Connections that the kernel may hold until they are accepted. With fewer, a storm of clients
/// that come back loses SYNs, each for a second or more.
pub const BACKLOG: u32 = 4096;
/// What [`Serving::head`] usually is.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may go on sending after its last answer, and how long it may pause.
const CLOSE_WAIT: Duration = Duration::from_secs(2);
const QUIET: Duration = Duration::from_millis(500);
/// How long a connection that is refused may take to say what it wants.
const REFUSAL_WAIT: Duration = Duration::from_secs(1);
/// How long the kernel may fail to deliver before it gives a dead peer up (RFC 5482).
const USER_TIMEOUT: Duration = Duration::from_secs(30);
/// RFC 9113, section 3.4: how an HTTP/2 connection begins. No HTTP/1 method has these four letters.
const HTTP2_PREFACE: &[u8; FirstBytes::ENOUGH] = b"PRI ";
/// Connections beyond those that stream: for short requests.
const SPARE_CONNECTIONS: usize = 1024;
/// The same for each address.
const SPARE_OF_ADDRESS: usize = 256;

/// The answer to a request that no route may see; `None` for the others.
pub type Refuses = Arc<dyn Fn(&Parts) -> Option<Response<Body>> + Send + Sync>;

/// What the accept loop needs to know.
#[derive(Clone)]
#[non_exhaustive]
pub struct Serving {
    /// Connections at once that stream, and no more than open files leave room for. Another 1,024
    /// may make short requests.
    pub connections: usize,
    /// Connections at once that stream from one address (IPv6: from one /64), which may have
    /// another 256 for short requests. The addresses that
    /// [`Serving::trusts`] names are not counted.
    pub connections_per_address: usize,
    /// How long a drain may take.
    pub drain: Duration,
    /// How long before a drain `/readyz` fails already, while everything else goes on.
    pub drain_delay: Duration,
    /// How long a request's head may take from its first byte, and the first one from the accept
    /// (P13). Usually [`HEAD_TIMEOUT`].
    pub head: Duration,
    /// How long a connection may wait for its next request.
    pub keep_alive: Duration,
    /// Whose word about the client's address is taken.
    pub trusts: Arc<dyn Fn(IpAddr) -> bool + Send + Sync>,
    /// The header in which they say it.
    pub client_ip_header: ClientIpHeader,
    /// Answers a request in place of the routes, before any of them sees it. `None`: it goes on to
    /// them. Costs far less than a layer around the routes, which boxes each request twice.
    pub refuses: Refuses,
}

impl Default for Serving {
    fn default() -> Self {
        let limits = airwave_core::rule::Limits::default();
        Self {
            connections: limits.connections,
            connections_per_address: limits.connections_per_address,
            drain: Duration::from_secs(10),
            drain_delay: Duration::ZERO,
            head: HEAD_TIMEOUT,
            keep_alive: limits.keep_alive,
            trusts: Arc::new(|_| false),
            client_ip_header: ClientIpHeader::default(),
            refuses: Arc::new(|_| None),
        }
    }
}

/// Listens on `address` with room for a storm of clients ([`BACKLOG`]).
///
/// # Errors
/// The address cannot be listened on.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // A restart must not wait for connections of the process before. On Windows it means another
    // thing.
    #[cfg(not(windows))]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let listener = socket.listen(BACKLOG)?;
    #[cfg(target_os = "linux")]
    if let Some(allowed) = std::fs::read_to_string("/proc/sys/net/core/somaxconn")
        .ok()
        .and_then(|text| text.trim().parse::<u32>().ok())
        && allowed < BACKLOG
    {
        tracing::info!(
            backlog = BACKLOG,
            allowed,
            "the kernel cuts the listen backlog: many clients that come at once may wait a second or more; raise it with sysctl net.core.somaxconn={BACKLOG}"
        );
    }
    Ok(listener)
}

/// Serves `app` until `shutdown` and [`Serving::drain_delay`] longer, then drains.
///
/// Nothing new is taken in, requests under way finish, every session is told to end, and what is
/// not done within [`Serving::drain`] is cut.
pub async fn serve(
    listener: TcpListener,
    app: Router,
    hub: Hub,
    serving: Serving,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let (begin_drain, draining) = watch::channel(false);
    let (cut, cutting) = watch::channel(false);
    let mut admission = Admission::new(&serving);
    hub.bound_connections(admission.listeners());
    let drain_delay = serving.drain_delay;
    let node = Arc::new(Node {
        hub: hub.clone(),
        refusing: admission::refusing(app.clone(), serving.refuses.clone(), hub.clone()),
        app,
        serving,
        tasks: TaskTracker::new(),
        draining,
        cutting,
    });
    let tasks = &node.tasks;
    let mut out_of_files = Outage::default();
    let mut spare = Spare::new();
    let shutdown = async {
        shutdown.await;
        leave(&hub, drain_delay).await;
    };
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut shutdown => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            // The client was gone before we looked.
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset) => continue,
            Err(error) => {
                if out_of_files.begins() {
                    tracing::warn!(%error, "cannot accept connections: clients are turned away; raise the limit of open files (ulimit -n)");
                }
                if is_out_of_files(&error) {
                    tokio::select! {
                        () = spare.turn_away(&listener) => {}
                        () = &mut shutdown => break,
                    }
                } else {
                    sleep(Duration::from_millis(100)).await;
                }
                continue;
            }
        };
        // Without a place, not even for a refusal, a connection is closed without an answer: an
        // EventSource comes back after that.
        let Some(place) = admission.place(peer.ip()) else {
            continue;
        };
        let connection = Served {
            node: node.clone(),
            peer,
            accepted: Instant::now(),
            place,
        };
        tasks.spawn(connection.run(stream));
    }
    drop(listener);
    hub.drain();
    begin_drain.send_replace(true);
    tasks.close();
    let everything = async {
        tasks.wait().await;
        // Sessions over HTTP/2 or behind an upgrade have tasks that hyper started.
        while hub.sessions() > 0 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    if !drain::wait(everything, node.serving.drain, &hub, tasks).await {
        hub.cut();
        cut.send_replace(true);
        let _ = timeout(Duration::from_millis(500), tasks.wait()).await;
    }
    Ok(())
}

/// Lets `/readyz` say that this node is about to drain, and gives load balancers `delay` to send
/// their clients elsewhere.
async fn leave(hub: &Hub, delay: Duration) {
    if !delay.is_zero() {
        tracing::info!(
            ?delay,
            "a drain is about to begin: /readyz fails, everything else goes on for drain_delay"
        );
        hub.announce_drain();
        sleep(delay).await;
    }
}

/// Drains a node whose connections are another server's: see [`crate::Airwave::shutdown`].
pub(crate) async fn drain(hub: &Hub, delay: Duration, drain: Duration) {
    leave(hub, delay).await;
    hub.drain();
    let no_sessions = async || {
        while hub.sessions() > 0 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    if timeout(drain, no_sessions()).await.is_err() {
        tracing::warn!(
            sessions = hub.sessions(),
            "the grace time is over: cutting the listeners that are left"
        );
        hub.cut();
        let _ = timeout(Duration::from_millis(500), no_sessions()).await;
    }
}

/// What all connections have in common.
struct Node {
    hub: Hub,
    app: Router,
    /// Answers in place of `app` where no place is left.
    refusing: Router,
    serving: Serving,
    tasks: TaskTracker,
    draining: watch::Receiver<bool>,
    cutting: watch::Receiver<bool>,
}

/// One accepted connection.
struct Served {
    node: Arc<Node>,
    peer: SocketAddr,
    accepted: Instant,
    place: Place,
}

impl Served {
    async fn run(self, mut stream: TcpStream) {
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

    async fn http1(self, stream: TcpStream, first: FirstBytes) {
        let slot = Slot::default();
        let usage = Arc::new(Usage::default());
        let requests = Requests::new();
        let service = {
            let (node, peer, refuse) = (self.node.clone(), self.peer, self.place.is_for_refusal());
            let (slot, requests, usage) = (slot.clone(), requests.clone(), usage.clone());
            service_fn(move |request: Request<Incoming>| {
                // A client of HTTP/1.0 knows no chunks.
                let chunked = request.version() == Version::HTTP_11;
                let (request, upgrade) = told_to_the_gate(request, &usage);
                let call = call(node.clone(), request, peer, refuse);
                // `poll_without_shutdown` wants a future that can be moved.
                let call = answer(call, slot.clone(), requests.begin(), upgrade, chunked);
                Box::pin(call) as Pin<Box<dyn Future<Output = _> + Send>>
            })
        };
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
                let parts = connection.into_parts();
                let Detached { go_on, head, chunked } = detached;
                let (stream, unseen) = parts.io.into_parts();
                // A copy: even when it is empty, it would keep hyper's read buffer of 8 KiB alive.
                let read = [&parts.read_buf[..], &unseen[..]].concat().into();
                drop(parts.service);
                // A task of its own, so that nothing of hyper's is kept. Sessions are cut by the
                // hub, so this one need not watch for it.
                go_on(DetachedSocket {
                    stream,
                    read,
                    head,
                    chunked,
                    keep: Box::new((self.place, self.node.tasks.token())),
                });
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

/// Ends a connection so that the last answer arrives. A socket that is closed with unread bytes
/// sends a reset. The reset may overtake the answer that says what is too much (RFC 9112, section
/// 9.6). So the client gets some time to finish first.
async fn close(mut stream: TcpStream) {
    let _ = stream.shutdown().await;
    let mut piece = [0u8; 4096];
    let rest = async { while matches!(timeout(QUIET, stream.read(&mut piece)).await, Ok(Ok(1..))) {} };
    let _ = timeout(CLOSE_WAIT, rest).await;
}

/// Until the word is given; for ever if it never will be.
async fn happened(mut word: watch::Receiver<bool>) {
    if word.wait_for(|given| *given).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Until the node drains, and not before `earliest`.
async fn drained_and(node: &Node, earliest: Instant) {
    happened(node.draining.clone()).await;
    sleep_until(earliest).await;
}

/// Tells the gate under hyper what the head said of its body. What is returned tells it that no
/// other protocol follows.
fn told_to_the_gate(request: Request<Incoming>, usage: &Arc<Usage>) -> (Request<Body>, Option<Arc<Usage>>) {
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
async fn first_bytes(stream: &mut TcpStream) -> io::Result<(FirstBytes, bool)> {
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

/// How the service tells the connection's loop what it wants.
#[derive(Clone, Default)]
struct Slot(Arc<Mutex<Option<Step>>>);

enum Step {
    Detach(Detached),
    Upgrade(oneshot::Sender<()>),
    Done(hyper::Result<()>),
}

/// What goes on with the socket, and the response's head, which it writes.
struct Detached {
    go_on: OnDetached,
    head: Bytes,
    chunked: bool,
}

impl Slot {
    fn put(&self, step: Step) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(step);
    }

    fn take(&self) -> Option<Step> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

async fn call(
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

/// What [`Serving::refuses`] answers, or else the routes.
async fn unless_refused(refuses: &Refuses, app: &Router, request: Request<Body>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    if let Some(refused) = refuses(&parts) {
        return refused;
    }
    let Ok(response) = app.clone().oneshot(Request::from_parts(parts, body)).await;
    response
}

/// The answer to a request whose head is none, although hyper takes it (RFC 9112, sections 3.2 and
/// 6.1). It concerns the routes of an application as well.
fn refused_for_its_head<B>(hub: &Hub, request: &Request<B>) -> Option<Response<Body>> {
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
async fn answer(
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
fn head_of(response: &Response<Body>, chunked: bool) -> Bytes {
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
