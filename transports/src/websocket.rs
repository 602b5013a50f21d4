//! A WebSocket (RFC 6455) carries messages in both directions between client and server.
//!
//! tungstenite reads: it unmasks, joins fragments, checks UTF-8, and answers pings and closes. It
//! writes nothing to the socket itself, but into `Tap::replies`. Events are whole frames, encoded
//! once and shared, and go to the socket unchanged. So frames never mix, a connection needs no
//! write buffer of its own, and all waiting frames go out in one write.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use airwave_core::event::IdempotencyKey;
use airwave_core::format::{Gap, Notice, Stamp};
use airwave_core::hub::{FormatError, FormatHandle};
use airwave_core::patience::Patience;
use airwave_core::rule::TransportName;
use airwave_core::session::{After, CloseCause, CloseReason, PendingSubscription, Turn};
use airwave_core::{Attributes, ChannelName, Code, Connection, Data, Event, Format, Hub, Key, Message, Refusal, Reply, Session};
use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::any;
use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt, Sink, Stream};
use http::header::{
    CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::request::Parts;
use http::{Method, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self};

use crate::envelope::{self, Payload, envelope, member_json, members_fields, some_raw, text_or_number};
use crate::request::{
    check_query, connect_request, only, path_as_seen, query_value, refusal_response, wants_presence, wants_visible_heartbeat,
};
use crate::socket::{Detach, DetachedSocket, Outgoing, Socket, Written, poll_gone, spawn};
use crate::transport::{ChannelRequest, Transport};

/// tungstenite fills this many bytes with zeros before every read (snapview/tungstenite-rs#480), so
/// the buffer is small.
const READ_BUFFER: usize = 1024;
/// Bounds the pieces in which a message may come.
const MAX_FRAGMENTS: u32 = 128;
/// Bounds the answers to pings that wait for a client that does not read, in bytes. Beyond this the
/// server does not read from the client either.
const MAX_REPLIES: usize = 4096;
/// Bounds the frames that wait behind a running command, by their number and their bytes. Beyond
/// this the server does not read from the client.
const MAX_WAITING: usize = 128;
const MAX_WAITING_BYTES: usize = 64 << 10;
/// Allows for base64, names and punctuation around the payload of a message.
const FRAME_OVERHEAD: usize = 2048;
/// Bounds the time of a message from its first byte to its last, as for the body of a POST. Pings
/// in between do not renew it.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(30);
/// The server waits this long for the client to close, after it has closed its own side.
const CLOSE_WAIT: Duration = Duration::from_secs(2);
/// JavaScript does not hold JSON numbers beyond this exactly.
const MAX_ID: u64 = (1 << 53) - 1;
/// The server chooses this one subprotocol where the client offers it. A browser that shows a token
/// must offer it, because a token is no protocol that the server could choose.
const PROTOCOL: &str = "airwave";
/// A binary message has this `id` if its client wants no reply.
const NO_ID: u64 = u64::MAX;

/// The WebSocket transport serves `GET /socket`, and `GET /channels/{name}` with an upgrade.
pub struct WebSocket {
    format: FormatHandle,
}

impl WebSocket {
    /// Registers the transport's format with the hub.
    ///
    /// # Errors
    /// Fails with the errors of [`Hub::register_format`].
    pub fn new(hub: &Hub) -> Result<Self, FormatError> {
        Ok(Self {
            format: hub.register_format(Arc::new(Frames))?,
        })
    }
}

#[async_trait]
impl Transport for WebSocket {
    fn name(&self) -> TransportName {
        TransportName::WEBSOCKET
    }

    fn routes(&self, hub: Hub) -> Router {
        Router::new()
            .route("/socket", any(socket))
            .with_state((hub, self.format.clone()))
    }

    fn wants(&self, request: &Parts) -> bool {
        // Only a WebSocket client sends such a key. If the two headers are missing, a proxy has
        // dropped them.
        asks_for_websocket(request) || request.headers.contains_key(SEC_WEBSOCKET_KEY)
    }

    async fn listen(&self, hub: &Hub, request: ChannelRequest) -> Response {
        serve(hub, &self.format, request.parts, Some(request.channel)).await
    }
}

async fn socket(State((hub, format)): State<(Hub, FormatHandle)>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    if !asks_for_websocket(&parts) && !parts.headers.contains_key(SEC_WEBSOCKET_KEY) {
        return refusal_response(
            &Refusal::bad_request("this is the address of a WebSocket: connect with 'Upgrade: websocket'"),
            None,
        );
    }
    serve(&hub, &format, parts, None).await
}

fn header_has(parts: &Parts, name: &http::HeaderName, word: &str) -> bool {
    parts
        .headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.split(',').any(|token| token.trim().eq_ignore_ascii_case(word)))
}

/// Returns whether the request asks for a WebSocket, by RFC 6455, section 4.2.1, or over HTTP/2 by
/// RFC 8441, section 4.
fn asks_for_websocket(parts: &Parts) -> bool {
    over_http2(parts) || (header_has(parts, &UPGRADE, "websocket") && header_has(parts, &CONNECTION, "upgrade"))
}

fn over_http2(parts: &Parts) -> bool {
    parts.method == Method::CONNECT
        && parts
            .extensions
            .get::<hyper::ext::Protocol>()
            .is_some_and(|protocol| protocol.as_str() == "websocket")
}

/// The server refuses a malformed handshake before there is a WebSocket.
struct Malformed {
    status: StatusCode,
    text: &'static str,
}

impl Malformed {
    fn request(text: &'static str) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            text,
        }
    }

    fn upgrade(text: &'static str) -> Self {
        Self {
            status: StatusCode::UPGRADE_REQUIRED,
            text,
        }
    }

    fn response(&self, hub: &Hub) -> Response {
        hub.metrics().refused(Code::BadRequest);
        let mut response = refusal_response(&Refusal::bad_request(self.text), None);
        if self.status == StatusCode::UPGRADE_REQUIRED {
            *response.status_mut() = self.status;
            let headers = response.headers_mut();
            headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
            headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        }
        response
    }
}

/// Returns the answer that accepts a handshake.
fn handshake(parts: &Parts) -> Result<Response, Malformed> {
    if !asks_for_websocket(parts) {
        return Err(Malformed::upgrade(
            "this WebSocket handshake came without 'Upgrade: websocket' and 'Connection: upgrade': the proxy in between must pass them on, over HTTP/1.1; without them listen over SSE",
        ));
    }
    if only(&parts.headers, &SEC_WEBSOCKET_VERSION).is_err() || only(&parts.headers, &SEC_WEBSOCKET_KEY).is_err() {
        return Err(Malformed::request(
            "'Sec-WebSocket-Key' or 'Sec-WebSocket-Version' is given more than once",
        ));
    }
    if parts.headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(Malformed::upgrade("only version 13 of the WebSocket protocol is spoken here"));
    }
    let mut response = Response::new(Body::empty());
    if over_http2(parts) {
        *response.status_mut() = StatusCode::OK;
    } else {
        let accept = accept_key(parts)?;
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    // The server may choose only an offered protocol (RFC 6455, section 4.2.2).
    if header_has(parts, &SEC_WEBSOCKET_PROTOCOL, PROTOCOL) {
        let protocol = HeaderValue::from_static(PROTOCOL);
        response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    Ok(response)
}

/// Returns the answer to the handshake's key. The key is sixteen bytes in base64 (RFC 6455, section
/// 4.2.1). These are 24 characters, two of which are padding.
fn accept_key(parts: &Parts) -> Result<HeaderValue, Malformed> {
    let key = parts.headers.get(SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes);
    let base64 = |key: &&[u8]| {
        let (text, padding) = key.split_at(key.len().saturating_sub(2));
        key.len() == 24 && padding == b"==" && text.iter().all(|b| b.is_ascii_alphanumeric() || b"+/".contains(b))
    };
    let key = key
        .filter(base64)
        .filter(|_| parts.method == Method::GET)
        .ok_or_else(|| Malformed::request("'Sec-WebSocket-Key' is missing or not sixteen bytes in base64"))?;
    HeaderValue::from_str(&derive_accept_key(key)).map_err(|_| Malformed::request("'Sec-WebSocket-Key' cannot be answered"))
}

/// Answers the handshake. A later refusal goes out in a frame, because a browser cannot read the
/// answer to a failed upgrade.
async fn serve(hub: &Hub, format: &FormatHandle, mut parts: Parts, channel: Option<Result<ChannelName, Refusal>>) -> Response {
    let mut response = match handshake(&parts) {
        Ok(response) => response,
        Err(malformed) => return malformed.response(hub),
    };
    let Some(upgrade) = parts.extensions.remove::<OnUpgrade>() else {
        let malformed = Malformed::request(
            "this connection cannot be upgraded: a proxy in between must speak HTTP/1.1 to us (nginx: proxy_http_version 1.1)",
        );
        return malformed.response(hub);
    };
    let begun = hub.request(begin(hub, format, &parts, channel)).await;
    let begun = Begun {
        hub: hub.clone(),
        session: begun,
        batches: wants_batches(&parts).unwrap_or(false),
        path: path_as_seen(&parts),
    };
    drop(parts);
    begun.attach(&mut response, upgrade);
    response
}

/// Connects the client, and subscribes it to the channel of the URL that it requested.
async fn begin(
    hub: &Hub,
    format: &FormatHandle,
    parts: &Parts,
    channel: Option<Result<ChannelName, Refusal>>,
) -> Result<Session, Refusal> {
    let known: &[&str] = match channel {
        Some(_) => &["after", "presence", "heartbeat", "batch"],
        None => &["heartbeat", "batch"],
    };
    check_query(hub, parts, known)?;
    let visible = wants_visible_heartbeat(parts)?;
    wants_batches(parts)?;
    let connection = hub.connect(connect_request(parts, TransportName::WEBSOCKET), true)?;
    let mut session = Session::new(connection, format).expects_answers().visible_heartbeat(visible);
    if let Some(channel) = channel {
        let after = query_value(parts, "after")?;
        let subscriber = session.subscriber().with_presence(wants_presence(parts)?);
        let listens = subscriber.subscribe(&channel?, After::parse(after.as_deref())).await;
        let joined = listens.inspect_err(|_| session.ends_by(CloseCause::Refused))?;
        session.add(joined, None);
    }
    Ok(session)
}

/// The server is still answering the handshake of this WebSocket.
struct Begun {
    hub: Hub,
    session: Result<Session, Refusal>,
    batches: bool,
    path: String,
}

/// This future sends a client the reason for its refusal, and closes the connection.
type Refused = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Begun {
    /// Runs the WebSocket once the response is written. It runs on the socket that [`Detach`] takes
    /// back from hyper, or else on the result of hyper's upgrade.
    fn attach(self, response: &mut Response, upgrade: OnUpgrade) {
        let unclaimed = Arc::new(Mutex::new(Some(self)));
        let take = {
            let unclaimed = unclaimed.clone();
            move || unclaimed.lock().unwrap_or_else(PoisonError::into_inner).take()
        };
        response.extensions_mut().insert(Detach::new(move || {
            let begun = take()?;
            Some(Box::new(move |detached| {
                let DetachedSocket {
                    stream,
                    read,
                    head,
                    keep,
                    ..
                } = detached;
                match begun.task(stream, read, head) {
                    Ok(task) => spawn(task, keep),
                    Err(refused) => spawn(refused, keep),
                }
            }))
        }));
        tokio::spawn(async move {
            let upgraded = upgrade.await;
            let begun = unclaimed.lock().unwrap_or_else(PoisonError::into_inner).take();
            // The slot is empty if the socket was taken back. Then there was no upgrade in hyper's
            // sense.
            if let (Ok(upgraded), Some(begun)) = (upgraded, begun) {
                match begun.task(TokioIo::new(upgraded), Bytes::new(), Bytes::new()) {
                    // The task is boxed, so that this future keeps no room for it during the
                    // handshake.
                    Ok(task) => Box::pin(task).await,
                    Err(refused) => refused.await,
                }
            }
        });
    }

    /// Creates the WebSocket's task, or the future that refuses the client. `read` holds the bytes
    /// that came after the handshake. `head` is written before anything else.
    fn task<S>(self, socket: S, read: Bytes, head: Bytes) -> Result<WebSocketTask<S>, Refused>
    where
        S: Socket + Send + 'static,
    {
        let Self {
            hub,
            session,
            batches,
            path,
        } = self;
        match session {
            Ok(session) => {
                let prefix = path
                    .split_once("/channels/")
                    .map_or(path.strip_suffix("/socket"), |(prefix, _)| Some(prefix));
                let prefix = prefix.unwrap_or_default().into();
                let mut task = WebSocketTask::new(&hub, session, socket, read, head, prefix)
                    .ok_or_else(|| Box::pin(std::future::ready(())) as Refused)?;
                task.batches = batches;
                Ok(task)
            }
            Err(refusal) => {
                hub.metrics().refused(refusal.code);
                Err(Box::pin(async move { refuse(socket, head, &refusal, &path).await }))
            }
        }
    }
}

/// Sends the reason in a frame, closes, and waits for the client to close.
async fn refuse<S: AsyncRead + AsyncWrite + Unpin>(mut socket: S, head: Bytes, refusal: &Refusal, url: &str) {
    use tokio::io::AsyncWriteExt;
    let notice = Notice::Refused {
        id: None,
        channel: None,
        refusal,
        url: Some(url),
        retry: 0,
    };
    let mut out = BytesMut::from(&head[..]);
    out.extend_from_slice(&Frames.notice(&notice));
    out.extend_from_slice(&close_frame(refusal.code.close_code(), refusal.code.as_str()));
    let close_wait = async {
        if socket.write_all(&out).await.is_ok() && socket.shutdown().await.is_ok() {
            std::future::poll_fn(|cx| poll_gone(&mut socket, cx)).await;
        }
    };
    // The server cuts off a client that neither reads nor closes.
    let _ = tokio::time::timeout(CLOSE_WAIT, close_wait).await;
}

/// This task serves one client's WebSocket until either side is done.
///
/// The fields keep their order in memory: those that every event needs stand together, as in
/// [`Session`].
#[repr(C)]
struct WebSocketTask<S> {
    out: Outgoing,
    /// Says whether the server sends nothing more after the pending output.
    closing: bool,
    /// Says whether the client accepts several frames as one (`?batch=true`).
    batches: bool,
    /// Holds the running command. Events continue beside it.
    command: Option<Running>,
    /// Holds the frames that came behind it.
    waiting: Option<Box<WaitingFrames>>,
    /// Bounds the time for the rest of a message or frame, while one is unfinished.
    unfinished: Option<Pin<Box<Sleep>>>,
    session: Session,
    websocket: WebSocketStream<Tap<S>>,
    /// Bounds the wait for the client to close. The task sets it once everything is written.
    close_wait: Option<Pin<Box<Sleep>>>,
    /// Holds the part before `/channels/` in this server's URLs, as the client sees them.
    prefix: Box<str>,
    hub: Hub,
}

/// These frames came during a running command, and are read when it is done. Pings and closes do
/// not wait.
#[derive(Default)]
struct WaitingFrames {
    frames: VecDeque<Frame>,
    bytes: usize,
    /// Counts the frames that waited behind a command that the broker did not answer. Each begins
    /// with at most `left`.
    shares: usize,
    left: Patience,
    /// Holds the time that the command has that begins now.
    begins_with: Patience,
}

enum Frame {
    Text(Box<str>),
    Binary(Bytes),
}

impl WaitingFrames {
    fn push(&mut self, frame: Frame) {
        self.bytes += frame.len();
        self.frames.push_back(frame);
    }

    fn pop(&mut self) -> Option<Frame> {
        let frame = self.frames.pop_front()?;
        self.bytes -= frame.len();
        self.begins_with = match self.shares.checked_sub(1) {
            Some(shares) => {
                self.shares = shares;
                self.left
            }
            None => Patience::default(),
        };
        Some(frame)
    }
}

impl Frame {
    fn len(&self) -> usize {
        match self {
            Frame::Text(text) => text.len(),
            Frame::Binary(bytes) => bytes.len(),
        }
    }
}

/// A running command returns its result, and the time for the broker that it leaves to those behind
/// it.
type Running = Pin<Box<dyn Future<Output = (Done, Patience)> + Send>>;

/// A command ends in one of these results.
enum Done {
    Subscribed {
        id: Option<u64>,
        channel: ChannelName,
        result: Box<Result<PendingSubscription, Refusal>>,
    },
    Sent {
        id: Option<u64>,
        channel: ChannelName,
        result: Result<Reply, Refusal>,
    },
}

/// Reads a message. A client that has begun one has a limited time to finish it.
#[inline(never)]
fn next_message<S: Socket>(
    websocket: &mut WebSocketStream<Tap<S>>,
    unfinished: &mut Option<Pin<Box<Sleep>>>,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<tungstenite::Message, tungstenite::Error>>> {
    let message = Pin::new(&mut *websocket).poll_next(cx);
    if message.is_pending() {
        if !websocket.get_ref().watch.is_within_a_message() {
            *unfinished = None;
        } else if unfinished.is_none() {
            *unfinished = Some(Box::pin(sleep(MESSAGE_TIMEOUT)));
        }
    }
    message
}

/// The server reads only the number of a frame that is not a [`Command`].
#[derive(Deserialize)]
struct Numbered {
    id: Option<u64>,
}

/// A client sends its commands as JSON frames.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Command<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    id: Option<u64>,
    #[serde(borrow)]
    channel: Option<Cow<'a, str>>,
    #[serde(borrow)]
    after: Option<&'a RawValue>,
    presence: Option<bool>,
    #[serde(borrow)]
    event: Option<Cow<'a, str>>,
    #[serde(borrow, default, deserialize_with = "some_raw")]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    text: Option<Cow<'a, str>>,
    #[serde(borrow)]
    base64: Option<Cow<'a, str>>,
    key: Option<Key>,
    attributes: Option<Attributes>,
    idempotency_key: Option<IdempotencyKey>,
}

impl<S: Socket> WebSocketTask<S> {
    /// Creates the task. The result is never `None`: making a WebSocket without a handshake waits
    /// for nothing.
    fn new(hub: &Hub, session: Session, socket: S, first: Bytes, head: Bytes, prefix: Box<str>) -> Option<Self> {
        let limits = hub.limits();
        // Base64 needs a third more bytes than its payload.
        let largest = limits.message_bytes.saturating_mul(2).saturating_add(FRAME_OVERHEAD);
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(0)
            .max_message_size(Some(largest))
            .max_frame_size(Some(largest));
        let rate = f64::from(limits.frames_per_second);
        let watch = FrameWatch {
            rate,
            tokens: 2.0 * rate,
            last: Instant::now(),
            ..FrameWatch::default()
        };
        let tap = Tap {
            socket,
            first,
            replies: Vec::new(),
            watch,
        };
        let websocket = WebSocketStream::from_raw_socket(tap, Role::Server, Some(config)).now_or_never()?;
        let mut out = Outgoing::default();
        if !head.is_empty() {
            out.pieces.push(head);
        }
        Some(Self {
            out,
            closing: false,
            batches: false,
            command: None,
            unfinished: None,
            waiting: None,
            session,
            websocket,
            close_wait: None,
            prefix,
            hub: hub.clone(),
        })
    }

    fn close(&mut self, code: u16, reason: &str) {
        self.out.pieces.push(close_frame(code, reason));
        self.closing = true;
    }

    /// Takes the output of tungstenite: answers to pings and closes.
    fn take_replies(&mut self) {
        let replies = &mut self.websocket.get_mut().replies;
        if !replies.is_empty() {
            self.out.pieces.push(Bytes::from(std::mem::take(replies)));
        }
    }

    fn refuse(&mut self, id: Option<u64>, channel: Option<&ChannelName>, refusal: &Refusal) {
        self.hub.metrics().refused(refusal.code);
        let url = channel
            .filter(|_| refusal.transport.is_some())
            .map(|channel| format!("{}/channels/{channel}", self.prefix));
        self.session.notice(&Notice::Refused {
            id,
            channel,
            refusal,
            url: url.as_deref(),
            retry: 0,
        });
    }

    /// Reads a message of the client. Returns `Ready(false)` if the connection is over.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if self.websocket.get_ref().replies.len() > MAX_REPLIES {
            return Poll::Pending;
        }
        let (websocket, unfinished) = (&mut self.websocket, &mut self.unfinished);
        let next = |cx: &mut Context<'_>| next_message(websocket, unfinished, cx);
        // Separate functions handle messages. An event that goes out passes here twice, and mostly
        // no message came.
        match self.session.poll_readable(cx, next) {
            Poll::Ready(message) => Poll::Ready(self.read(message, cx)),
            Poll::Pending if self.unfinished.is_some() => self.poll_unfinished(cx),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Returns `Ready` if the client has not finished a message for too long, and closes with that
    /// reason.
    #[inline(never)]
    fn poll_unfinished(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if let Some(unfinished) = &mut self.unfinished {
            ready!(unfinished.as_mut().poll(cx));
            self.close(
                Code::BadRequest.close_code(),
                &format!("a message was not finished within {} seconds", MESSAGE_TIMEOUT.as_secs()),
            );
            return Poll::Ready(true);
        }
        Poll::Pending
    }

    /// Carries out the request of a frame. Returns false if the connection is over.
    #[inline(never)]
    fn read(&mut self, message: Option<Result<tungstenite::Message, tungstenite::Error>>, cx: &mut Context<'_>) -> bool {
        // A ping in the middle of a message does not give it more time.
        if !matches!(
            message,
            Some(Ok(tungstenite::Message::Ping(_) | tungstenite::Message::Pong(_)))
        ) {
            self.unfinished = None;
        }
        self.session.record_activity();
        match message {
            Some(Ok(tungstenite::Message::Text(text))) if self.command.is_none() => self.text(text.as_str()),
            Some(Ok(tungstenite::Message::Binary(frame))) if self.command.is_none() => self.binary(&frame),
            Some(Ok(tungstenite::Message::Text(text))) => match envelope::read::<Command<'_>>(text.as_bytes()) {
                Ok(command) if command.kind == "ping" => self.text(text.as_str()),
                _ => self.waiting.get_or_insert_default().push(Frame::Text(text.as_str().into())),
            },
            Some(Ok(tungstenite::Message::Binary(frame))) => {
                // The frame is a copy, because a piece of the reader's buffer would keep all of it.
                let frame = Frame::Binary(Bytes::copy_from_slice(&frame));
                self.waiting.get_or_insert_default().push(frame);
            }
            // tungstenite has put the answer into `replies`.
            Some(Ok(tungstenite::Message::Ping(_) | tungstenite::Message::Pong(_) | tungstenite::Message::Frame(_))) => {}
            Some(Ok(tungstenite::Message::Close(_))) => {
                // Unlike a pong, the answer to a close comes out only with the next call, and the
                // task reads nothing any more.
                let _ = Pin::new(&mut self.websocket).poll_flush(cx);
                self.closing = true;
            }
            Some(Err(error)) => return self.fault(&error),
            None => return false,
        }
        true
    }

    /// Sends the client the reason for closing, if the connection can still carry it.
    fn fault(&mut self, error: &tungstenite::Error) -> bool {
        use tungstenite::error::CapacityError;
        let watch = &self.websocket.get_ref().watch;
        let (code, reason) = match error {
            _ if watch.too_many_frames => (Code::TooMany.close_code(), "too many frames per second"),
            _ if watch.too_many_fragments => (Code::TooLarge.close_code(), "a message in too many fragments"),
            tungstenite::Error::Capacity(CapacityError::MessageTooLong { .. }) => {
                (Code::TooLarge.close_code(), "message too large")
            }
            // Code 1007 means text that is not UTF-8, and 1002 any other breach of the protocol
            // (RFC 6455, section 7.4.1).
            tungstenite::Error::Utf8(_) => (1007, "text is not UTF-8"),
            tungstenite::Error::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake) => return false,
            tungstenite::Error::Protocol(_) | tungstenite::Error::Capacity(_) => (1002, "protocol error"),
            _ => return false,
        };
        tracing::debug!(%error, "a WebSocket client broke the protocol");
        self.session.ends_by(CloseCause::Refused);
        self.take_replies();
        self.close(code, reason);
        true
    }

    fn text(&mut self, text: &str) {
        match envelope::read::<Command<'_>>(text.as_bytes()) {
            Ok(command) => {
                let id = command.id;
                if let Err(refusal) = self.command(command) {
                    self.refuse(id.filter(|id| *id <= MAX_ID), None, &refusal);
                }
            }
            Err(refusal) => {
                // A client waits for the answer to its number, even if the rest of the frame is
                // wrong.
                let numbered = serde_json::from_slice::<Numbered>(envelope::without_bom(text.as_bytes())).ok();
                let id = numbered.and_then(|frame| frame.id).filter(|id| *id <= MAX_ID);
                self.refuse(id, None, &refusal);
            }
        }
    }

    fn command(&mut self, command: Command<'_>) -> Result<(), Refusal> {
        let id = command.id;
        if id.is_some_and(|id| id > MAX_ID) {
            return Err(Refusal::bad_request(format!("an 'id' is a whole number up to {MAX_ID}")));
        }
        let channel = command.channel.as_deref().map(ChannelName::new).transpose()?;
        let need_channel = || Refusal::bad_request(format!("'{}' needs a 'channel'", command.kind));
        match &*command.kind {
            "subscribe" => {
                let after = command.after.map(text_or_number).transpose()?;
                self.subscribe(
                    id,
                    channel.ok_or_else(need_channel)?,
                    After::parse(after.as_deref()),
                    command.presence.unwrap_or(false),
                )
            }
            "unsubscribe" => {
                let channel = channel.ok_or_else(need_channel)?;
                if !self.session.remove(&channel) {
                    return Err(Refusal::bad_request(format!("not subscribed to '{channel}'")));
                }
                self.session.notice(&Notice::Unsubscribed { id, channel: &channel });
                Ok(())
            }
            "send" => {
                let channel = channel.ok_or_else(need_channel)?;
                let event = command.event.ok_or_else(|| Refusal::bad_request("'send' needs an 'event'"))?;
                let payload = Payload {
                    data: command.data,
                    text: command.text,
                    base64: command.base64,
                };
                let message = envelope::message(&event, payload, command.key, command.attributes)?;
                self.send(id, channel, message, command.idempotency_key);
                Ok(())
            }
            "ping" => {
                self.out.pieces.push(text_frame(&match id {
                    Some(id) => format!("{{\"type\":\"pong\",\"id\":{id}}}"),
                    None => "{\"type\":\"pong\"}".to_owned(),
                }));
                Ok(())
            }
            _ => Err(Refusal::bad_request(
                "unknown 'type'; send one of subscribe, unsubscribe, send, ping",
            )),
        }
    }

    fn subscribe(&mut self, id: Option<u64>, channel: ChannelName, after: After, presence: bool) -> Result<(), Refusal> {
        if self.session.is_subscribed(&channel) {
            return Err(Refusal::bad_request(format!("already subscribed to '{channel}'")));
        }
        let limit = self.hub.limits().channels_per_connection;
        if self.session.subscriptions() >= limit {
            return Err(Refusal::new(
                Code::TooMany,
                format!("a connection listens to at most {limit} channels"),
            ));
        }
        let subscriber = self.session.subscriber().with_presence(presence);
        self.carry_out(async move {
            let result = Box::new(subscriber.subscribe(&channel, after).await);
            Done::Subscribed { id, channel, result }
        });
        Ok(())
    }

    fn send(&mut self, id: Option<u64>, channel: ChannelName, message: Message, key: Option<IdempotencyKey>) {
        let (hub, connection): (Hub, Arc<Connection>) = (self.hub.clone(), self.session.connection().clone());
        let listens = self.session.is_subscribed(&channel);
        self.carry_out(async move {
            let result = hub.send_from_listener(&connection, listens, &channel, message, key).await;
            Done::Sent { id, channel, result }
        });
    }

    fn carry_out(&mut self, command: impl Future<Output = Done> + Send + 'static) {
        let left = self.waiting.as_mut().map(|waiting| std::mem::take(&mut waiting.begins_with));
        let hub = self.hub.clone();
        self.command = Some(Box::pin(async move {
            hub.request_behind(left.unwrap_or_default(), command).await
        }));
    }

    /// Returns whether the task may read another frame: only a bounded number waits behind a
    /// running command.
    fn has_room(&self) -> bool {
        let has_room = |waiting: &WaitingFrames| waiting.frames.len() < MAX_WAITING && waiting.bytes < MAX_WAITING_BYTES;
        self.command.is_none() || self.waiting.as_deref().is_none_or(has_room)
    }

    /// Continues the command and those that wait behind it. Returns `Ready` if one made progress,
    /// so that there may be output.
    fn poll_command(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self.command {
            Some(_) => self.go_on_with_command(cx),
            None => Poll::Pending,
        }
    }

    #[inline(never)]
    fn go_on_with_command(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(command) = &mut self.command else {
            return Poll::Pending;
        };
        let (done, left) = ready!(command.as_mut().poll(cx));
        self.command = None;
        if let Some(waiting) = &mut self.waiting {
            // The waiting frames share one time, so that their times do not add up.
            (waiting.shares, waiting.left) = (if left.is_whole() { 0 } else { waiting.frames.len() }, left);
        }
        self.done(done);
        while self.command.is_none()
            && let Some(frame) = self.waiting.as_mut().and_then(|waiting| waiting.pop())
        {
            match frame {
                Frame::Text(text) => self.text(&text),
                Frame::Binary(frame) => self.binary(&frame),
            }
        }
        self.waiting.take_if(|waiting| waiting.frames.is_empty());
        Poll::Ready(())
    }

    fn binary(&mut self, frame: &Bytes) {
        match envelope::read_binary(frame) {
            Ok((channel, event, number, payload)) => {
                let id = (number != NO_ID).then_some(number);
                if id.is_some_and(|id| id > MAX_ID) {
                    self.refuse(
                        None,
                        Some(&channel),
                        &Refusal::bad_request(format!("an 'id' is a whole number up to {MAX_ID}")),
                    );
                    return;
                }
                self.send(id, channel, Message::new(event, Data::Binary(payload)), None);
            }
            Err(refusal) => self.refuse(None, None, &refusal),
        }
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Subscribed { id, channel, result } => match *result {
                Ok(joined) => self.session.add(joined, id),
                Err(refusal) => self.refuse(id, Some(&channel), &refusal),
            },
            Done::Sent { id, channel, result } => match (result, id) {
                (Ok(reply), Some(id)) => self.session.notice(&Notice::Reply { id, data: reply.data() }),
                (Ok(_), None) => {}
                (Err(refusal), id) => self.refuse(id, Some(&channel), &refusal),
            },
        }
    }

    /// Writes, reads and takes turns until no work is left.
    fn go_on(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            self.take_replies();
            let socket = &mut self.websocket.get_mut().socket;
            match ready!(self.out.poll_write(socket, &mut self.session, cx)) {
                Written::All => {}
                Written::Broken => return Poll::Ready(()),
            }
            if self.closing {
                return self.poll_close(cx);
            }
            if self.poll_command(cx).is_ready() {
                continue;
            }
            match self.poll_input(cx) {
                Poll::Ready(true) => continue,
                Poll::Ready(false) => return Poll::Ready(()),
                Poll::Pending => {}
            }
            if !self.websocket.get_ref().replies.is_empty() {
                continue;
            }
            match ready!(self.session.poll_turn(cx, &mut self.out.pieces)) {
                Turn::Frames if self.batches => gather(&mut self.out.pieces),
                Turn::Frames => {}
                Turn::Closed(CloseReason::Drain { .. }) if self.command.is_some() => {
                    // The running command finishes and is answered first, unless the grace time
                    // ends before (P11).
                    if self.out.pieces.is_empty() {
                        return self.session.poll_cut(cx).map(|_| ());
                    }
                }
                Turn::Closed(reason) => match reason {
                    CloseReason::Stalled => return Poll::Ready(()),
                    CloseReason::Drain { retry } => self.close(1012, &format!("retry={retry}")),
                    CloseReason::TooSlow => self.close(4408, "too-slow"),
                    CloseReason::Silent => self.close(1001, "nothing was heard for too long"),
                    CloseReason::Ended => self.close(1000, "ended"),
                    // A reason that a later core adds has no code of its own: the client comes
                    // back.
                    _ => self.close(1001, "closed"),
                },
                // This task cannot serve a turn that it does not know.
                _ => self.close(1001, "closed"),
            }
        }
    }

    /// Reads a message of the client, unless too many wait behind a command. Returns `Ready(false)`
    /// if the connection is over.
    fn poll_input(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let under_way = self.command.is_some();
        if under_way && (!self.has_room() || self.hub.is_draining()) {
            // The server does not read now, so a silence is its own and not the client's.
            self.session.record_activity();
            return Poll::Pending;
        }
        match self.poll_read(cx) {
            Poll::Ready(false) if under_way => {
                self.out.pieces.clear();
                self.closing = true;
                Poll::Ready(true)
            }
            read => read,
        }
    }

    /// Waits until the client has also closed, once everything is written.
    #[inline(never)]
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let socket = &mut self.websocket.get_mut().socket;
        let close_wait = match &mut self.close_wait {
            Some(close_wait) => close_wait,
            None => {
                // An immediate close would answer the client's data in flight with a reset, which
                // may overtake our close frame.
                let _ = ready!(Pin::new(&mut *socket).poll_shutdown(cx));
                self.close_wait.insert(Box::pin(sleep(CLOSE_WAIT)))
            }
        };
        let over = close_wait.as_mut().poll(cx).is_ready() || poll_gone(socket, cx).is_ready();
        // The task carries out the commands that the client sent before it left.
        while self.poll_command(cx).is_ready() {}
        match over && self.command.is_none() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }
}

impl<S: Socket> Future for WebSocketTask<S> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.out.take_room();
        let over = self.go_on(cx);
        self.out.give_room_back();
        over
    }
}

/// tungstenite sees the socket through this type: it watches reads, and puts writes into `replies`.
#[repr(C)]
struct Tap<S> {
    // The two fields stand side by side, because every event reads both.
    socket: S,
    replies: Vec<u8>,
    /// Holds the bytes that hyper had read beyond the handshake.
    first: Bytes,
    watch: FrameWatch,
}

impl<S: AsyncRead + Unpin> AsyncRead for Tap<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        if this.first.is_empty() {
            ready!(Pin::new(&mut this.socket).poll_read(cx, buf))?;
        } else {
            let piece = this.first.split_to(this.first.len().min(buf.remaining()));
            buf.put_slice(&piece);
        }
        this.watch.look(&buf.filled()[before..])?;
        Poll::Ready(Ok(()))
    }
}

impl<S: Unpin> AsyncWrite for Tap<S> {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.replies.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The watch counts a client's frames as they come in, below tungstenite, which hides fragments and
/// pings.
#[derive(Debug)]
struct FrameWatch {
    /// Holds the allowed frames per second. `tokens` counts how many may still come now.
    rate: f64,
    tokens: f64,
    last: Instant,
    /// Holds the bytes of the frame's head that were read so far. A head has two bytes, up to eight
    /// of length, and four of mask (RFC 6455, section 5.2).
    head: [u8; 14],
    head_len: usize,
    payload_left: u64,
    fragments: u32,
    too_many_frames: bool,
    too_many_fragments: bool,
}

impl Default for FrameWatch {
    fn default() -> Self {
        Self {
            rate: 0.0,
            tokens: 0.0,
            last: Instant::now(),
            head: [0; 14],
            head_len: 0,
            payload_left: 0,
            fragments: 0,
            too_many_frames: false,
            too_many_fragments: false,
        }
    }
}

impl FrameWatch {
    fn look(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let skipped = usize::try_from(self.payload_left).unwrap_or(usize::MAX).min(bytes.len());
            self.payload_left -= skipped as u64;
            bytes = &bytes[skipped..];
            let Some((&byte, rest)) = bytes.split_first() else { break };
            self.head[self.head_len] = byte;
            self.head_len += 1;
            bytes = rest;
            if self.head_len >= 2 && self.head_len == self.head_size() {
                self.frame()?;
            }
        }
        Ok(())
    }

    /// Returns whether a frame or a message has begun and is not finished.
    fn is_within_a_message(&self) -> bool {
        self.head_len > 0 || self.payload_left > 0 || self.fragments > 0
    }

    fn head_size(&self) -> usize {
        let mask = if self.head[1] & 0x80 == 0 { 0 } else { 4 };
        mask + match self.head[1] & 0x7f {
            127 => 10,
            126 => 4,
            _ => 2,
        }
    }

    fn frame(&mut self) -> io::Result<()> {
        let length_bytes = match self.head[1] & 0x7f {
            127 => &self.head[2..10],
            126 => &self.head[2..4],
            _ => &[self.head[1] & 0x7f],
        };
        self.payload_left = length_bytes.iter().fold(0, |length, &byte| length << 8 | u64::from(byte));
        self.head_len = 0;
        let (fin, opcode) = (self.head[0] & 0x80 != 0, self.head[0] & 0x0f);
        if opcode < 8 {
            self.fragments = if opcode == 0 { self.fragments + 1 } else { 1 };
            self.too_many_fragments = self.fragments > MAX_FRAGMENTS;
        }
        if opcode < 8 && fin {
            self.fragments = 0;
        }
        // The fragments of one message count as one frame, because they have a limit of their own.
        if opcode >= 8 || fin {
            let now = Instant::now();
            self.tokens = (self.tokens + now.duration_since(self.last).as_secs_f64() * self.rate).min(2.0 * self.rate);
            self.last = now;
            self.tokens -= 1.0;
            self.too_many_frames = self.tokens < 0.0;
        }
        if self.too_many_frames || self.too_many_fragments {
            return Err(io::Error::other("a limit of frames is broken"));
        }
        Ok(())
    }
}

/// The format encodes whole frames, unmasked as servers send them (RFC 6455, section 5.1).
pub struct Frames;

impl Format for Frames {
    fn name(&self) -> &'static str {
        "websocket"
    }

    fn event(&self, channel: &ChannelName, event: &Event) -> Bytes {
        match &event.message.data {
            Data::Binary(payload) | Data::Opaque { bytes: payload, .. } => frame(
                0x2,
                &envelope::binary(channel, &event.message.event, event.position.0, payload),
            ),
            _ => text_frame(&envelope(channel, event)),
        }
    }

    fn notice(&self, notice: &Notice<'_>) -> Bytes {
        text_frame(&match notice {
            Notice::Subscribed {
                id,
                channel,
                cursor,
                resumed,
                ..
            } => format!(
                "{{\"type\":\"subscribed\",{}\"channel\":\"{channel}\",\"cursor\":\"{cursor}\",\"resumed\":{resumed}}}",
                id_field(*id)
            ),
            Notice::Unsubscribed { id, channel } => {
                format!("{{\"type\":\"unsubscribed\",{}\"channel\":\"{channel}\"}}", id_field(*id))
            }
            Notice::Gap { channel, gap, .. } => gap_json(channel, gap),
            Notice::End { channel, cursor, .. } => {
                format!("{{\"type\":\"end\",\"channel\":\"{channel}\",\"cursor\":\"{cursor}\"}}")
            }
            Notice::Reply { id, data } => {
                format!(
                    "{{\"type\":\"reply\",\"id\":{id},\"data\":{}}}",
                    envelope::data_as_json(*data)
                )
            }
            Notice::Refused {
                id,
                channel,
                refusal,
                url,
                ..
            } => refused_json(*id, *channel, refusal, *url),
            Notice::Members { channel, members, more } => {
                format!("{{\"type\":\"presence\",{}}}", members_fields(channel, members, *more))
            }
            Notice::Change { channel, change, member } => format!(
                "{{\"type\":\"{}\",\"channel\":\"{channel}\",\"member\":{}}}",
                change.as_str(),
                member_json(member)
            ),
            Notice::Stale => "{\"type\":\"stale\"}".to_owned(),
            // Every client answers this ping. Scripts cannot see it, so some ask for a frame as
            // well.
            Notice::Heartbeat { visible: false } => return Bytes::from_static(&[0x89, 0]),
            Notice::Heartbeat { visible: true } => {
                let mut both = BytesMut::from(&[0x89, 0][..]);
                both.extend_from_slice(&text_frame("{\"type\":\"heartbeat\"}"));
                return both.freeze();
            }
            // The close frame carries this notice.
            Notice::Drain { .. } => return Bytes::new(),
            // A notice that a later core adds has no frame in this protocol.
            _ => return Bytes::new(),
        })
    }

    fn stamp(&self) -> Option<Stamp> {
        None
    }
}

fn id_field(id: Option<u64>) -> String {
    id.map_or_else(String::new, |id| format!("\"id\":{id},"))
}

fn gap_json(channel: &ChannelName, gap: &Gap) -> String {
    let after = gap.after.map_or_else(|| "null".to_owned(), |after| format!("\"{after}\""));
    format!(
        "{{\"type\":\"gap\",\"channel\":\"{channel}\",\"after\":{after},\"cursor\":\"{}\",\"reason\":\"{}\"}}",
        gap.cursor,
        gap.reason.as_str()
    )
}

fn refused_json(id: Option<u64>, channel: Option<&ChannelName>, refusal: &Refusal, url: Option<&str>) -> String {
    let id = id.map_or_else(|| "null".to_owned(), |id| id.to_string());
    let channel = channel.map_or_else(String::new, |channel| format!("\"channel\":\"{channel}\","));
    format!("{{\"type\":\"error\",\"id\":{id},{channel}{}}}", refusal.json_fields(url))
}

fn text_frame(text: &str) -> Bytes {
    frame(0x1, text.as_bytes())
}

/// Encodes one whole, final frame without a mask (RFC 6455, section 5.2).
fn frame(opcode: u8, payload: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(10 + payload.len());
    frame.extend_from_slice(&[0x80 | opcode]);
    match payload.len() {
        short @ 0..=125 => frame.extend_from_slice(&[short as u8]),
        medium @ 126..=0xffff => {
            frame.extend_from_slice(&[126]);
            frame.extend_from_slice(&(medium as u16).to_be_bytes());
        }
        long => {
            frame.extend_from_slice(&[127]);
            frame.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(payload);
    frame.freeze()
}

/// Returns whether the client accepts a text frame that is an array of frames (`?batch=true`).
fn wants_batches(parts: &Parts) -> Result<bool, Refusal> {
    match query_value(parts, "batch")?.as_deref() {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(Refusal::bad_request("'batch' can only be 'true' or 'false'")),
    }
}

/// Makes one text frame, a JSON array, of each run of text frames, in their order.
///
/// A browser spends more time on a frame than on its content: a replay of 50,000 events took it
/// seconds. The array holds the frames of one turn of the session, which has a bound of its own.
fn gather(pieces: &mut Vec<Bytes>) {
    let mut from = 0;
    while from < pieces.len() {
        let run: Vec<Vec<&str>> = pieces[from..].iter().map_while(|piece| texts_of(piece)).collect();
        let texts = || run.iter().flatten();
        let count = run.len();
        if texts().count() > 1 {
            let mut array = String::with_capacity(texts().map(|text| text.len() + 1).sum::<usize>() + 1);
            for (index, text) in texts().enumerate() {
                array.push(if index == 0 { '[' } else { ',' });
                array.push_str(text);
            }
            array.push(']');
            pieces.splice(from..from + count, [text_frame(&array)]);
        }
        from += 1;
    }
}

/// Returns the texts of a piece that consists of whole text frames, or `None` for any other piece.
fn texts_of(piece: &[u8]) -> Option<Vec<&str>> {
    let mut texts = Vec::new();
    let mut rest = piece;
    while let Some((&[first, short], behind)) = rest.split_first_chunk::<2>() {
        let (length, payload) = match short {
            126 => behind
                .split_first_chunk()
                .map(|(length, payload)| (u16::from_be_bytes(*length).into(), payload))?,
            127 => behind
                .split_first_chunk()
                .map(|(length, payload)| (u64::from_be_bytes(*length), payload))?,
            short => (u64::from(short), behind),
        };
        let (text, more) = payload.split_at_checked(usize::try_from(length).ok()?)?;
        if first != 0x81 {
            return None;
        }
        texts.push(std::str::from_utf8(text).ok()?);
        rest = more;
    }
    (rest.is_empty() && !texts.is_empty()).then_some(texts)
}

/// Encodes a close frame. A control frame holds at most 125 bytes, two of which are the code (RFC
/// 6455, section 5.5.1).
fn close_frame(code: u16, reason: &str) -> Bytes {
    let mut payload = code.to_be_bytes().to_vec();
    payload.extend_from_slice(&reason.as_bytes()[..reason.len().min(123)]);
    frame(0x8, &payload)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpStream;

    /// Each of ten thousand idle WebSockets costs this much beside its kernel buffers, one
    /// subscription included. The test fails when a change makes it grow.
    #[test]
    fn the_task_of_a_websocket_is_small() {
        let size = size_of::<WebSocketTask<TcpStream>>();
        assert!(size <= 768, "{size} bytes");
    }

    #[test]
    fn text_frames_that_wait_together_become_one_in_their_order() {
        let long = format!("\"{}\"", "x".repeat(70_000));
        let medium = format!("\"{}\"", "y".repeat(200));
        let binary = frame(0x2, b"bytes");
        let ping = Bytes::from_static(&[0x89, 0]);
        let mut pieces = vec![
            text_frame("1"),
            text_frame(&medium),
            text_frame(&long),
            binary.clone(),
            text_frame("4"),
            ping.clone(),
            text_frame("5"),
            text_frame("6"),
        ];
        gather(&mut pieces);
        let first = text_frame(&format!("[1,{medium},{long}]"));
        assert_eq!(pieces, [first, binary.clone(), text_frame("4"), ping, text_frame("[5,6]")]);
        // A piece may hold several frames.
        let several = Bytes::from([&text_frame("1")[..], &text_frame(&medium)[..]].concat());
        let mut pieces = vec![
            several,
            text_frame("3"),
            Bytes::from([&binary[..], &text_frame("4")[..]].concat()),
        ];
        let mixed = pieces[2].clone();
        gather(&mut pieces);
        assert_eq!(pieces, [text_frame(&format!("[1,{medium},3]")), mixed]);
        // A heartbeat that a script sees is a ping and a text frame in one piece.
        let both = Frames.notice(&Notice::Heartbeat { visible: true });
        let mut pieces = vec![text_frame("1"), both.clone(), text_frame("2")];
        gather(&mut pieces);
        assert_eq!(pieces, [text_frame("1"), both, text_frame("2")]);
    }

    /// The clients send half a head, a payload that drips, and a message whose last fragment never
    /// comes. A client whose last fragment never comes sends pings in between.
    #[tokio::test(start_paused = true)]
    async fn a_message_that_is_never_finished_is_given_up() {
        use airwave_core::{ConnectRequest, Rule, Rules};
        use tokio::io::{AsyncReadExt, AsyncWriteExt};

        let rule = Rule::new("{*all}".parse().unwrap(), vec![TransportName::WEBSOCKET]);
        let rules = Rules::new([rule]);
        let hub = Hub::builder(Arc::new(airwave_brokers::Memory::new(rules.clone())), rules).build();
        let format = hub.register_format(Arc::new(Frames)).unwrap();
        for (what, first, drip) in [
            ("half a head", &[0x81][..], &[][..]),
            ("a payload", &[0x81, 0xfe, 0x10, 0, 0, 0, 0, 0], b" "),
            ("fragments", &[0x01, 0x81, 0, 0, 0, 0, b'{'], &[0x89, 0x80, 0, 0, 0, 0]),
            (
                "fragments that drip",
                &[0x01, 0x81, 0, 0, 0, 0, b'{'],
                &[0x00, 0x81, 0, 0, 0, 0, b' '],
            ),
        ] {
            let request = ConnectRequest::new(TransportName::WEBSOCKET);
            let session = Session::new(hub.connect(request, true).unwrap(), &format).expects_answers();
            let (client, server) = tokio::io::duplex(1 << 16);
            let socket = TokioIo::new(TokioIo::new(server));
            let task = WebSocketTask::new(&hub, session, socket, Bytes::new(), Bytes::new(), "".into());
            tokio::spawn(task.unwrap());
            let (mut reads, mut writes) = tokio::io::split(client);
            let begun = Instant::now();
            writes.write_all(first).await.unwrap();
            let dripping = tokio::spawn(async move {
                sleep(Duration::from_secs(5)).await;
                while writes.write_all(drip).await.is_ok() {
                    sleep(Duration::from_secs(5)).await;
                }
            });
            let mut answer = Vec::new();
            reads.read_to_end(&mut answer).await.unwrap();
            dripping.abort();
            let took = begun.elapsed();
            let answer = String::from_utf8_lossy(&answer);
            assert!(
                answer.contains("not finished within 30 seconds"),
                "{what}: {answer:?} after {took:?}"
            );
            assert!(took < MESSAGE_TIMEOUT + Duration::from_secs(10), "{what}: {took:?}");
        }
    }
}
