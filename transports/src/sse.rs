//! With server-sent events, the server sends and the client listens. The format is WHATWG HTML,
//! section 9.2 "Server-sent events".

use std::fmt::{Display, Write};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use airwave_core::format::{Notice, Stamp};
use airwave_core::hub::{FormatError, FormatHandle};
use airwave_core::rule::TransportName;
use airwave_core::session::{After, CloseCause, CloseReason, Turn};
use airwave_core::{ChannelName, Cursor, Data, Event, Format, Hub, Refusal, Session};
use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::get;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, StatusCode};

use crate::accept::prefers_stream;
use crate::envelope::{envelope, member_json, members_fields};
use crate::request::{
    check_can_come_back, check_query, connect_request, header_text, path_as_seen, query_value, query_values, refusal_response,
    wants_presence, wants_visible_heartbeat,
};
use crate::socket::{Detach, DetachedSocket, Outgoing, Socket, Written, poll_gone_or_loud, spawn};
use crate::transport::{ChannelRequest, Transport};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
/// Bounds the bytes that a listener may send after its request: some clients and proxies send a
/// little. More ends the stream.
const MOST_SENT: usize = 4096;
const EVENT_STREAM: &str = "text/event-stream";

/// The SSE transport answers `GET /channels/{name}` with `Accept: text/event-stream`, and `GET
/// /events?channel=…&channel=…`.
pub struct Sse {
    one: FormatHandle,
    many: FormatHandle,
}

impl Sse {
    /// Registers the transport's formats with the hub.
    ///
    /// # Errors
    /// Those of [`Hub::register_format`].
    pub fn new(hub: &Hub) -> Result<Self, FormatError> {
        Ok(Self {
            one: hub.register_format(Arc::new(OneChannel))?,
            many: hub.register_format(Arc::new(ManyChannels))?,
        })
    }
}

#[async_trait]
impl Transport for Sse {
    fn name(&self) -> TransportName {
        TransportName::SSE
    }

    fn routes(&self, hub: Hub) -> Router {
        let many = self.many.clone();
        Router::new().route("/events", get(events)).with_state((hub, many))
    }

    fn wants(&self, request: &Parts) -> bool {
        prefers_stream(&request.headers)
    }

    async fn listen(&self, hub: &Hub, request: ChannelRequest) -> Response {
        let channel = match request.channel {
            Ok(channel) => channel,
            Err(refusal) => return refused(hub, &refusal, None),
        };
        let url = path_as_seen(&request.parts);
        let checked = check_query(hub, &request.parts, &["after", "presence", "heartbeat"]);
        let after = match checked.and_then(|()| cursor_text(&request.parts)) {
            Ok(text) => After::parse(text.as_deref()),
            Err(refusal) => return refused(hub, &refusal, Some(&url)),
        };
        hub.request(serve(hub, &self.one, &request.parts, request.body, vec![(channel, after)]))
            .await
            .unwrap_or_else(|no| refused(hub, &no, Some(&url)))
    }
}

async fn events(State((hub, format)): State<(Hub, FormatHandle)>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let result = async {
        check_query(&hub, &parts, &["channel", "after", "presence", "heartbeat"])?;
        let channels = channels_of(&hub, &parts)?;
        hub.request(serve(&hub, &format, &parts, body, channels)).await
    };
    match result.await {
        Ok(response) => response,
        // The one URL has several channels behind it, so there is no other URL to name.
        Err(refusal) => refused(&hub, &refusal, None),
    }
}

/// Returns the text of the request's cursor. `Last-Event-ID` wins over `?after=`: a browser that
/// comes back sends both, and the header is newer.
fn cursor_text(parts: &Parts) -> Result<Option<String>, Refusal> {
    match header_text(&parts.headers, &LAST_EVENT_ID) {
        Ok(Some(text)) => Ok(Some(text.to_owned())),
        Ok(None) => query_value(parts, "after"),
        // The header is not a cursor of ours, so it counts as one that the node cannot read.
        Err(_) => Ok(Some("?".to_owned())),
    }
}

fn channels_of(hub: &Hub, parts: &Parts) -> Result<Vec<(ChannelName, After)>, Refusal> {
    let names = query_values(parts, "channel")?;
    if names.is_empty() {
        return Err(Refusal::bad_request("name the channels: /events?channel=a&channel=b"));
    }
    let limit = hub.limits().channels_per_connection;
    if names.len() > limit {
        return Err(Refusal::bad_request(format!(
            "{} channels on one stream; at most {limit} are allowed",
            names.len()
        )));
    }
    let mut channels: Vec<(ChannelName, After)> = Vec::with_capacity(names.len());
    for name in &names {
        let name = ChannelName::new(name)?;
        if channels.iter().any(|(known, _)| *known == name) {
            return Err(Refusal::bad_request(format!("the channel '{name}' is named twice")));
        }
        channels.push((name, After::Nothing));
    }
    let header = header_text(&parts.headers, &LAST_EVENT_ID).unwrap_or(Some("?"));
    let given = query_values(parts, "after")?;
    match (header, given.as_slice()) {
        (None, []) => {}
        (None, each) if each.len() == channels.len() && each.len() > 1 => {
            for ((_, after), text) in channels.iter_mut().zip(each) {
                *after = After::parse(Some(text));
            }
        }
        (None, [_, _, ..]) => {
            return Err(Refusal::bad_request(
                "give 'after' once, or once for each channel in the same order",
            ));
        }
        (Some(all), _) => all_after(&mut channels, all),
        (None, [all]) => all_after(&mut channels, all),
    }
    Ok(channels)
}

fn all_after(channels: &mut [(ChannelName, After)], text: &str) {
    if text.is_empty() {
        return;
    }
    let cursor = Cursor::parse(text);
    let single = channels.len() == 1;
    for (name, after) in channels {
        *after = match &cursor {
            // A stream of one channel may as well begin where a single-channel stream stopped.
            Ok(Cursor::One(position)) if single => After::Position(*position),
            Ok(cursor) => After::of(cursor, name),
            Err(_) => After::Unreadable,
        };
    }
}

/// Admits the listener to all channels, then answers with the stream.
async fn serve(
    hub: &Hub,
    format: &FormatHandle,
    parts: &Parts,
    body: Body,
    channels: Vec<(ChannelName, After)>,
) -> Result<Response, Refusal> {
    check_can_come_back(parts, Cursor::most_bytes(channels.len()))?;
    let visible = wants_visible_heartbeat(parts)?;
    let connection = hub.connect(connect_request(parts, TransportName::SSE), true)?;
    let mut session = Session::new(connection, format)
        .ends_with_channels()
        .visible_heartbeat(visible);
    let subscriber = session.subscriber().with_presence(wants_presence(parts)?);
    let mut joined = Vec::with_capacity(channels.len());
    for (name, after) in &channels {
        let listens = subscriber.subscribe(name, *after).await;
        joined.push(listens.inspect_err(|_| session.ends_by(CloseCause::Refused))?);
    }
    session.connection().forget_request();
    if joined.iter().all(|joined| joined.is_over()) {
        session.ends_by(CloseCause::Ended);
        // Any status but 200 makes an EventSource stop (WHATWG HTML 9.2.3). The status 204 says
        // that this is as it should be.
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        return Ok(response);
    }
    // A HEAD listens to nothing and is no member. A stream has no length, and so its head has none
    // (RFC 9110, section 8.6).
    let mut response = stream_response(Body::new(Endless));
    if parts.method != Method::HEAD {
        session.add_all(joined);
        let unclaimed = Unclaimed(Arc::new(Mutex::new(Some(session))));
        *response.body_mut() = Body::new(Stream {
            session: None,
            unclaimed: unclaimed.clone(),
            done: false,
            incoming: (!http_body::Body::is_end_stream(&body)).then_some(body),
            room: MOST_SENT,
        });
        response.extensions_mut().insert(Detach::new(move || {
            let session = unclaimed.take()?;
            Some(Box::new(move |detached| {
                let DetachedSocket {
                    stream,
                    head,
                    chunked,
                    keep,
                    ..
                } = detached;
                spawn(SocketStream::new(session, stream, head, chunked), keep);
            }))
        }));
    }
    Ok(response)
}

/// A HEAD does not receive this body, whose length is not known.
struct Endless;

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        Poll::Ready(None)
    }
}

fn stream_response(body: Body) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(EVENT_STREAM));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
    response
}

/// Returns the answer to a refused request. The answer to a temporary refusal must not look like a
/// refusal: an EventSource never comes back after a 429 or a 5xx.
fn refused(hub: &Hub, refusal: &Refusal, url: Option<&str>) -> Response {
    hub.metrics().refused(refusal.code);
    if !refusal.code.is_temporary() {
        return refusal_response(refusal, url);
    }
    let notice = Notice::Refused {
        id: None,
        channel: None,
        refusal,
        url,
        retry: hub.retry_hint(),
    };
    stream_response(Body::from(OneChannel.notice(&notice)))
}

/// This slot holds a session on its way out of the router. The body takes the session, or the task
/// that takes the socket back.
#[derive(Clone)]
struct Unclaimed(Arc<Mutex<Option<Session>>>);

impl Unclaimed {
    fn take(&self) -> Option<Session> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// This body carries the session over HTTP, for HTTP/2, TLS and servers that are not ours.
struct Stream {
    session: Option<Session>,
    unclaimed: Unclaimed,
    done: bool,
    /// Holds what the client sends after its request, although the server does not ask for it.
    incoming: Option<Body>,
    room: usize,
}

impl Stream {
    /// Polls what the client sends. Ready means that the client has sent more than a listener may.
    fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        use http_body::Body as _;
        while let Some(incoming) = &mut self.incoming {
            match ready!(Pin::new(incoming).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    let sent = frame.data_ref().map_or(0, Bytes::len);
                    match self.room.checked_sub(sent) {
                        Some(room) => self.room = room,
                        None => return Poll::Ready(()),
                    }
                }
                Some(Err(_)) | None => self.incoming = None,
            }
        }
        Poll::Pending
    }
}

impl http_body::Body for Stream {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        if self.done {
            return Poll::Ready(None);
        }
        if self.session.is_none() {
            self.session = self.unclaimed.take();
        }
        if self.poll_sent(cx).is_ready() {
            self.done = true;
            if let Some(session) = &mut self.session {
                session.ends_by(CloseCause::Refused);
            }
            self.session = None;
            return Poll::Ready(None);
        }
        let Some(session) = &mut self.session else {
            return Poll::Ready(None);
        };
        session.stalled(false);
        let mut out = Vec::new();
        let turn = ready!(session.poll_turn(cx, &mut out));
        match turn {
            // Until the server polls this body again, it waits for the socket.
            Turn::Frames => session.stalled(true),
            // The session is closed. A turn that this stream does not know ends it too: the client
            // comes back.
            _ => {
                self.done = true;
                self.session = None;
            }
        }
        match joined(out) {
            Some(bytes) => Poll::Ready(Some(Ok(http_body::Frame::data(bytes)))),
            None => Poll::Ready(None),
        }
    }
}

/// Joins the pieces to one, so that one frame of HTTP/2 and one write go out, whatever waited.
fn joined(mut pieces: Vec<Bytes>) -> Option<Bytes> {
    if pieces.len() < 2 {
        return pieces.pop();
    }
    let mut all = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
    pieces.iter().for_each(|piece| all.extend_from_slice(piece));
    Some(all.freeze())
}

/// This task writes a session to a socket that was taken back, after `head`, until either side is
/// done.
///
/// The fields lie in memory in this order, like those of [`Session`].
#[repr(C)]
struct SocketStream<S> {
    out: Outgoing,
    closing: bool,
    /// Says whether each turn is a chunk of the body.
    chunked: bool,
    /// Counts the bytes that the client may still send, although the server does not ask for them.
    room: u16,
    socket: S,
    session: Session,
}

impl<S: Socket> SocketStream<S> {
    /// Makes a task whose output begins with `head`: the response's head, and whatever else stands
    /// before the stream.
    fn new(session: Session, socket: S, head: Bytes, chunked: bool) -> Self {
        let mut out = Outgoing::default();
        out.pieces.push(head);
        Self {
            session,
            socket,
            out,
            closing: false,
            chunked,
            room: MOST_SENT as u16,
        }
    }

    fn go_on(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self
            .session
            .poll_readable(cx, |cx| poll_gone_or_loud(&mut self.socket, &mut self.room, cx))
            .is_ready()
        {
            return Poll::Ready(());
        }
        loop {
            match ready!(self.out.poll_write(&mut self.socket, &mut self.session, cx)) {
                Written::All => {}
                Written::Broken => return Poll::Ready(()),
            }
            if self.closing {
                return Pin::new(&mut self.socket).poll_shutdown(cx).map(|_| ());
            }
            match ready!(self.session.poll_turn(cx, &mut self.out.pieces)) {
                Turn::Frames => {}
                Turn::Closed(CloseReason::Stalled) => return Poll::Ready(()),
                // The session is closed. A turn that this stream does not know ends it too: the
                // client comes back.
                _ => self.closing = true,
            }
            if self.chunked {
                self.out.make_chunk();
                if self.closing {
                    self.out.push_last_chunk();
                }
            }
        }
    }
}

impl<S: Socket> Future for SocketStream<S> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.out.take_room();
        let over = self.go_on(cx);
        self.out.give_room_back();
        over
    }
}

/// This format writes a stream of one channel, as a plain `EventSource` wants it.
pub struct OneChannel;

/// This format writes a stream of several channels: envelopes, and one cursor of them all.
pub struct ManyChannels;

impl Format for OneChannel {
    fn name(&self) -> &'static str {
        "sse"
    }

    fn event(&self, _channel: &ChannelName, event: &Event) -> Bytes {
        let message = &event.message;
        let mut text = String::with_capacity(48 + message.event.as_str().len() + message.data.len());
        let suffix = if matches!(message.data, Data::Json(_) | Data::Text(_)) {
            ""
        } else {
            ";base64"
        };
        // Writing to a String cannot fail.
        let _ = write!(text, "id: {}\nevent: {}{suffix}\n", event.position, message.event);
        match &message.data {
            Data::Json(json) => data_line(&mut text, json.as_str()),
            Data::Text(lines) => data_lines(&mut text, lines),
            // The format encodes binary and opaque data as base64, and any kind that core adds.
            binary => {
                text.push_str("data: ");
                STANDARD.encode_string(binary.as_bytes(), &mut text);
                text.push('\n');
            }
        }
        text.push('\n');
        Bytes::from(text)
    }

    fn notice(&self, notice: &Notice<'_>) -> Bytes {
        notice_block(notice)
    }

    fn stamp(&self) -> Option<Stamp> {
        None
    }
}

impl Format for ManyChannels {
    fn name(&self) -> &'static str {
        "sse-many"
    }

    fn event(&self, channel: &ChannelName, event: &Event) -> Bytes {
        let mut text = format!("event: {}\n", event.message.event);
        data_line(&mut text, &envelope(channel, event));
        Bytes::from(text)
    }

    fn notice(&self, notice: &Notice<'_>) -> Bytes {
        notice_block(notice)
    }

    fn stamp(&self) -> Option<Stamp> {
        Some(|cursor: &dyn Display, out: &mut BytesMut| {
            // Writing to a BytesMut cannot fail: it grows.
            let _ = write!(out, "id: {cursor}\n\n");
        })
    }
}

fn data_line(text: &mut String, line: &str) {
    text.push_str("data: ");
    text.push_str(line);
    text.push('\n');
}

/// Writes one `data:` line per line. A reader ends lines at CR LF, LF or CR (WHATWG HTML 9.2.6), so
/// a bare CR in a payload must not be left in.
fn data_lines(text: &mut String, lines: &str) {
    let mut rest = lines;
    while let Some(end) = rest.find(['\r', '\n']) {
        data_line(text, &rest[..end]);
        rest = rest[end..].strip_prefix("\r\n").unwrap_or(&rest[end + 1..]);
    }
    data_line(text, rest);
}

fn notice_block(notice: &Notice<'_>) -> Bytes {
    let id_of = |stamp: Option<&Cursor>, cursor| stamp.map_or_else(|| Cursor::One(cursor), Cursor::clone);
    let text = match notice {
        Notice::Subscribed {
            channel,
            cursor,
            stamp,
            resumed,
            retry,
            ..
        } => format!(
            "retry: {retry}\nid: {}\nevent: airwave.subscribed\ndata: {{\"channel\":\"{channel}\",\"cursor\":\"{cursor}\",\"resumed\":{resumed}}}\n\n",
            id_of(*stamp, *cursor)
        ),
        Notice::Gap { channel, gap, stamp } => {
            let after = gap.after.map_or_else(|| "null".to_owned(), |after| format!("\"{after}\""));
            format!(
                "id: {}\nevent: airwave.gap\ndata: {{\"channel\":\"{channel}\",\"after\":{after},\"cursor\":\"{}\",\"reason\":\"{}\"}}\n\n",
                id_of(*stamp, gap.cursor),
                gap.cursor,
                gap.reason.as_str()
            )
        }
        Notice::End { channel, cursor, stamp } => format!(
            "id: {}\nevent: airwave.end\ndata: {{\"channel\":\"{channel}\",\"cursor\":\"{cursor}\"}}\n\n",
            id_of(*stamp, *cursor)
        ),
        Notice::Refused { refusal, url, retry, .. } => {
            format!(
                "retry: {retry}\nevent: airwave.error\ndata: {{{}}}\n\n",
                refusal.json_fields(*url)
            )
        }
        // The event has no id, because no client resumes from here.
        Notice::Members { channel, members, more } => {
            format!(
                "event: airwave.presence\ndata: {{{}}}\n\n",
                members_fields(channel, members, *more)
            )
        }
        Notice::Change { channel, change, member } => format!(
            "event: airwave.{}\ndata: {{\"channel\":\"{channel}\",\"member\":{}}}\n\n",
            change.as_str(),
            member_json(member)
        ),
        Notice::Stale => "event: airwave.stale\ndata: {}\n\n".to_owned(),
        Notice::Heartbeat { visible: true } => "event: airwave.heartbeat\ndata: {}\n\n".to_owned(),
        Notice::Heartbeat { visible: false } => ":\n\n".to_owned(),
        Notice::Drain { retry } => format!("retry: {retry}\n\n"),
        // An SSE client sends nothing on its stream that these could answer.
        Notice::Unsubscribed { .. } | Notice::Reply { .. } => String::new(),
        // A notice that core adds has no event in this protocol.
        _ => String::new(),
    };
    Bytes::from(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bounds what each of ten thousand idle streams costs beside its kernel buffers, one
    /// subscription included. The test fails when a change makes it grow.
    #[test]
    fn a_stream_is_small() {
        let socket = size_of::<SocketStream<tokio::net::TcpStream>>();
        assert!(socket <= 320, "{socket} bytes");
        let body = size_of::<Stream>();
        assert!(body <= 272, "{body} bytes");
        let session = size_of::<Session>();
        assert!(session <= 256, "{session} bytes");
    }
}
