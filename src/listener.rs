//! Our own accept loop: header time-out, `TCP_NODELAY`, connection caps, HTTP/1.1 and HTTP/2 by preface, tracked tasks, drain.
//!
//! `axum::serve` has none of these. And it keeps about 12 KB for each connection that streams: here, once the routes have admitted an SSE or WebSocket
//! listener over HTTP/1.1, the socket is taken back from hyper ([`Handover`]) and a bare task goes on with it.

use std::future::{Future, poll_fn};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::{Duration, SystemTime};

use airwave_core::Hub;
use airwave_transports::socket::{Conversation, Handover, Io, Taken};
use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, DATE, TRANSFER_ENCODING};
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

/// A head larger than this ends the connection (P13).
const MAX_HEAD: usize = 16 << 10;
/// What [`Serving::head`] usually is.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may go on sending after its last answer, and how long it may pause.
const CLOSE_WAIT: Duration = Duration::from_secs(2);
const QUIET: Duration = Duration::from_millis(500);
/// How long the kernel may fail to deliver before it gives a dead peer up (RFC 5482).
const USER_TIMEOUT: Duration = Duration::from_secs(30);
/// RFC 9113, section 3.4: how an HTTP/2 connection begins. No HTTP/1 method has these four letters.
const HTTP2_PREFACE: &[u8] = b"PRI ";
/// Connections beyond those that stream: short requests, and those that are being refused.
const SPARE_CONNECTIONS: usize = 1024;

/// What the accept loop needs to know.
#[derive(Clone)]
pub struct Serving {
    /// Connections at once.
    pub connections: usize,
    /// How long a drain may take.
    pub drain: Duration,
    /// How long a request's head may take, and how long a connection may wait for its next request (P13). Usually [`HEAD_TIMEOUT`].
    pub head: Duration,
    /// Whose word about the client's address is taken (`X-Forwarded-For`).
    pub trusts: Arc<dyn Fn(IpAddr) -> bool + Send + Sync>,
}

/// Serves `app` until `shutdown`, then drains: nothing new is taken in, requests under way finish, every session is told to end, and what is
/// not done within [`Serving::drain`] is cut.
pub async fn serve(
    listener: TcpListener,
    app: Router,
    hub: Hub,
    serving: Serving,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let tasks = TaskTracker::new();
    let places = Arc::new(Semaphore::new(
        (serving.connections + SPARE_CONNECTIONS).min(Semaphore::MAX_PERMITS),
    ));
    let (drain, draining) = watch::channel(false);
    let (cut, cutting) = watch::channel(false);
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
                // Out of file descriptors, most likely: some will come back as connections end.
                tracing::warn!(%error, "cannot accept a connection; raise the limit of open files (ulimit -n)");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // Beyond the cap a connection is closed without an answer: an EventSource comes back after that, but not after a 503.
        let Ok(place) = places.clone().try_acquire_owned() else {
            continue;
        };
        let connection = Served {
            app: app.clone(),
            peer,
            head: serving.head,
            trusts: serving.trusts.clone(),
            tasks: tasks.clone(),
            draining: draining.clone(),
            cutting: cutting.clone(),
            place,
        };
        tasks.spawn(connection.run(stream));
    }
    drop(listener);
    drop((draining, cutting));
    hub.drain();
    drain.send_replace(true);
    tasks.close();
    let everything = async {
        tasks.wait().await;
        // Sessions over HTTP/2 or behind an upgrade have tasks that hyper started.
        while hub.sessions() > 0 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    if timeout(serving.drain, everything).await.is_err() {
        tracing::warn!(
            sessions = hub.sessions(),
            "the grace time is over: cutting the connections that are left"
        );
        hub.cut();
        cut.send_replace(true);
        let _ = timeout(Duration::from_millis(500), tasks.wait()).await;
    }
    Ok(())
}

/// One accepted connection.
struct Served {
    app: Router,
    peer: SocketAddr,
    head: Duration,
    trusts: Arc<dyn Fn(IpAddr) -> bool + Send + Sync>,
    tasks: TaskTracker,
    draining: watch::Receiver<bool>,
    cutting: watch::Receiver<bool>,
    place: OwnedSemaphorePermit,
}

impl Served {
    async fn run(self, stream: TcpStream) {
        // A socket on which these fail is gone already.
        let _ = stream.set_nodelay(true);
        #[cfg(target_os = "linux")]
        let _ = socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(USER_TIMEOUT));
        let cut = happened(self.cutting.clone());
        let serve = async {
            match timeout(self.head, is_http2(&stream)).await {
                Ok(Ok(true)) => self.http2(stream).await,
                Ok(Ok(false)) => self.http1(stream).await,
                Ok(Err(_)) | Err(_) => {}
            }
        };
        tokio::select! {
            () = serve => {}
            () = cut => {}
        }
    }

    async fn http2(self, stream: TcpStream) {
        let (app, peer, trusts) = (self.app, self.peer, self.trusts);
        let service = service_fn(move |request| call(app.clone(), request, peer, trusts.clone()));
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_header_list_size(MAX_HEAD as u32)
            .max_send_buf_size(64 << 10)
            .keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(20))
            .enable_connect_protocol();
        let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = happened(self.draining) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = result {
            tracing::debug!(%error, "an HTTP/2 connection ended badly");
        }
    }

    async fn http1(self, stream: TcpStream) {
        let slot = Slot::default();
        let blocked = Arc::new(AtomicBool::new(false));
        let service = {
            let (app, peer, trusts, slot) = (self.app, self.peer, self.trusts, slot.clone());
            service_fn(move |request| {
                // `poll_without_shutdown` wants a future that can be moved.
                let call = answer(call(app.clone(), request, peer, trusts.clone()), slot.clone());
                Box::pin(call) as Pin<Box<dyn Future<Output = _> + Send>>
            })
        };
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(self.head)
            .max_buf_size(MAX_HEAD);
        let mut connection = builder.serve_connection(Io::new(stream, blocked.clone()), service);
        let mut drained = false;
        let step = loop {
            let progress = poll_fn(|cx| {
                let done = connection.poll_without_shutdown(cx);
                match slot.take() {
                    // hyper still holds bytes of an earlier answer: the socket cannot be taken yet.
                    Some(step @ Step::Take(_)) if blocked.load(Ordering::Relaxed) => slot.put(step),
                    Some(step) => return Poll::Ready(step),
                    None => {}
                }
                done.map(Step::Done)
            });
            tokio::select! {
                step = progress => break step,
                () = happened(self.draining.clone()), if !drained => {
                    drained = true;
                    Pin::new(&mut connection).graceful_shutdown();
                }
            }
        };
        match step {
            Step::Take(taken) => {
                let parts = connection.into_parts();
                let Talk { conversation, head } = taken;
                // Even when it is empty, it would keep hyper's read buffer of 8 KiB alive.
                let read = Bytes::copy_from_slice(&parts.read_buf);
                drop(parts.service);
                // A task of its own, so that nothing of hyper's is kept. Sessions are cut by the hub, so this one need not watch for it.
                conversation(Taken {
                    stream: parts.io.into_stream(),
                    read,
                    head,
                    keep: Box::new((self.place, self.tasks.token())),
                });
            }
            Step::Upgrade(go_on) => {
                // Somebody else's upgrade, of an application's own route: from here on as hyper does it.
                let _ = go_on.send(());
                if let Err(error) = connection.with_upgrades().await {
                    tracing::debug!(%error, "an upgraded connection ended badly");
                }
            }
            Step::Done(result) => {
                if let Err(error) = result {
                    tracing::debug!(%error, "an HTTP/1 connection ended badly");
                }
                // Boxed: its buffer is of no use to the connection before.
                Box::pin(close(connection.into_parts().io.into_stream())).await;
            }
        }
    }
}

/// Ends a connection so that the last answer arrives. A socket that is closed while it holds what nobody has read sends a reset, which may overtake the answer
/// that says what is too much (RFC 9112, section 9.6): the client may finish first, for a while.
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

/// Whether the connection begins like HTTP/2. Nothing is taken from the socket.
async fn is_http2(stream: &TcpStream) -> io::Result<bool> {
    let mut begin = [0u8; HTTP2_PREFACE.len()];
    loop {
        let count = stream.peek(&mut begin).await?;
        if count == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if begin[..count] != HTTP2_PREFACE[..count] {
            return Ok(false);
        }
        if count == begin.len() {
            return Ok(true);
        }
        // The rest is on its way. The socket stays readable meanwhile, so only time can pass here.
        sleep(Duration::from_millis(5)).await;
    }
}

/// How the service tells the connection's loop what it wants.
#[derive(Clone, Default)]
struct Slot(Arc<Mutex<Option<Step>>>);

enum Step {
    Take(Talk),
    Upgrade(oneshot::Sender<()>),
    Done(hyper::Result<()>),
}

/// What takes the socket from hyper, and the answer's head, which it writes.
struct Talk {
    conversation: Conversation,
    head: Bytes,
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
    app: Router,
    request: Request<Incoming>,
    peer: SocketAddr,
    trusts: Arc<dyn Fn(IpAddr) -> bool + Send + Sync>,
) -> Result<Response<Body>, std::convert::Infallible> {
    let mut request = request.map(Body::new);
    let client = client_address(&request, peer, &*trusts);
    request.extensions_mut().insert(ConnectInfo(client));
    let (version, method) = (request.version(), request.method().clone());
    let mut response = app.oneshot(request).await?;
    // Only a whole GET over HTTP/1 gives a socket that nobody else uses.
    if method != Method::GET || version > Version::HTTP_11 || response.headers().contains_key(CONTENT_ENCODING) {
        response.extensions_mut().remove::<Handover>();
    }
    Ok(response)
}

/// Gives the response to hyper, or the socket to whoever asked for it.
async fn answer(
    call: impl Future<Output = Result<Response<Body>, std::convert::Infallible>>,
    slot: Slot,
) -> Result<Response<Body>, std::convert::Infallible> {
    let mut response = call.await?;
    if let Some(conversation) = response
        .extensions_mut()
        .remove::<Handover>()
        .and_then(|handover| handover.take())
    {
        slot.put(Step::Take(Talk {
            conversation,
            head: head_of(&response),
        }));
        // Never answered: the connection's loop takes the socket and drops this.
        return std::future::pending().await;
    }
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let (go_on, going_on) = oneshot::channel();
        slot.put(Step::Upgrade(go_on));
        let _ = going_on.await;
    }
    Ok(response)
}

/// The response's head as hyper would write it, for a stream that ends with its connection (RFC 9112, section 6.3, rule 8).
fn head_of(response: &Response<Body>) -> Bytes {
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
    }
    if !response.headers().contains_key(DATE) {
        head.put_slice(format!("date: {}\r\n", httpdate::fmt_http_date(SystemTime::now())).as_bytes());
    }
    head.put_slice(b"\r\n");
    head.freeze()
}

/// The client's address: the peer's, or what trusted proxies say. The list grows to the right, and only what a trusted peer wrote is believed.
fn client_address<B>(request: &Request<B>, peer: SocketAddr, trusts: &dyn Fn(IpAddr) -> bool) -> SocketAddr {
    let mut client = peer;
    if !trusts(client.ip()) {
        return client;
    }
    let forwarded = request
        .headers()
        .get_all("x-forwarded-for")
        .iter()
        .filter_map(|value| value.to_str().ok());
    let hops: Vec<&str> = forwarded.flat_map(|value| value.split(',')).map(str::trim).collect();
    for hop in hops.iter().rev() {
        let Ok(address) = hop.parse::<IpAddr>() else { break };
        client = SocketAddr::new(address, 0);
        if !trusts(address) {
            break;
        }
    }
    client
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a connection costs before it streams, or between two requests; hyper's buffers come to it. Whoever makes it grow should know.
    #[test]
    fn a_connection_is_small() {
        fn of<F>(_: fn(Served, TcpStream) -> F) -> usize {
            size_of::<F>()
        }
        let connection = of(Served::run);
        assert!(connection <= 3072, "{connection} bytes");
    }

    #[test]
    fn only_trusted_proxies_name_the_client() {
        let proxy: SocketAddr = "127.0.0.1:9".parse().unwrap();
        let trusts = |address: IpAddr| address.is_loopback();
        let seen = |forwarded: &str, peer: &str| {
            let request = Request::builder().header("x-forwarded-for", forwarded).body(()).unwrap();
            client_address(&request, peer.parse().unwrap(), &trusts).ip().to_string()
        };
        assert_eq!(seen("203.0.113.7", "127.0.0.1:9"), "203.0.113.7");
        assert_eq!(seen("198.51.100.1, 203.0.113.7, 127.0.0.2", "127.0.0.1:9"), "203.0.113.7");
        assert_eq!(seen("198.51.100.1", "203.0.113.9:1"), "203.0.113.9");
        assert_eq!(seen("nonsense", "127.0.0.1:9"), "127.0.0.1");
        assert_eq!(client_address(&Request::new(()), proxy, &trusts), proxy);
    }

    #[test]
    fn a_taken_stream_has_a_head_that_ends_with_its_connection() {
        let response = Response::builder()
            .header("content-type", "text/event-stream")
            .header("transfer-encoding", "chunked")
            .header("content-length", "7")
            .body(Body::empty())
            .unwrap();
        let head = String::from_utf8(head_of(&response).to_vec()).unwrap();
        assert!(
            head.starts_with("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\ndate: "),
            "{head}"
        );
        assert!(head.ends_with("\r\n\r\n") && !head.contains("chunked") && !head.contains("content-length"));
    }
}
