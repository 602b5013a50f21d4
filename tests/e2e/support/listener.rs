//! One client that listens, over whichever transport: what it hears is told in the same words.

use std::collections::VecDeque;
use std::net::SocketAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{self, Message};

use super::http::Answer;
use super::whatwg_sse::Parser;
use super::{Way, within};

/// What a listener hears, the same on every transport.
#[derive(Debug, Clone, PartialEq)]
pub enum Heard {
    Subscribed(Subscribed),
    Event(Event),
    Gap {
        channel: String,
        after: Option<String>,
        cursor: String,
        reason: String,
    },
    End {
        channel: String,
        cursor: String,
    },
    Stale,
    Heartbeat,
    /// `presence`, `join`, `leave` or `update`, and what was said with it.
    Members(String, Value),
    Refused {
        code: String,
        whole: Value,
    },
    /// WebSocket only: replies, pongs, `unsubscribed`.
    Answer(Value),
    /// SSE: the reconnection time that was set last. WebSocket: code and reason.
    Closed {
        retry: Option<u64>,
        code: Option<u16>,
        reason: String,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub struct Subscribed {
    pub channel: String,
    pub cursor: String,
    pub resumed: bool,
    /// WebSocket only: the number of the command.
    pub id: Option<u64>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    pub channel: String,
    pub id: String,
    pub name: String,
    pub data: Vec<u8>,
    /// Where the form of the event has a place for them.
    pub attributes: Option<Value>,
}

impl Event {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.data).unwrap()
    }

    pub fn number(&self) -> u64 {
        self.text().parse().unwrap()
    }
}

pub struct Listener {
    line: Line,
    /// What has come, and the cursor of a listener that has taken it.
    waiting: VecDeque<(Heard, Option<String>)>,
    cursor: String,
    what: String,
}

enum Line {
    Sse(Box<Sse>),
    WebSocket(Box<WebSocketStream<TcpStream>>),
}

struct Sse {
    body: Incoming,
    parser: Parser,
    /// The channel of the URL; `None`: a stream of several, whose data are envelopes.
    channel: Option<String>,
    over: bool,
    /// Keeps an HTTP/2 connection open.
    _sender: Option<hyper::client::conn::http2::SendRequest<Empty<Bytes>>>,
}

impl Listener {
    /// Connects. `buffer`: the receive buffer of a client that will be slow.
    ///
    /// An error is the whole answer of a server that does not let it listen.
    pub async fn connect(
        address: SocketAddr,
        way: Way,
        path: &str,
        headers: &[(&str, &str)],
        buffer: Option<u32>,
    ) -> Result<Self, Answer> {
        let what = format!("{way:?} {path}");
        let connect = async {
            let socket = TcpSocket::new_v4().unwrap();
            if let Some(buffer) = buffer {
                socket.set_recv_buffer_size(buffer).unwrap();
            }
            let stream = socket.connect(address).await.unwrap();
            stream.set_nodelay(true).unwrap();
            if way.is_sse() {
                sse(stream, address, way, path, headers, buffer.is_some()).await
            } else {
                websocket(stream, address, path, headers).await
            }
        };
        let line = within(&what, connect).await?;
        Ok(Self {
            line,
            waiting: VecDeque::new(),
            cursor: String::new(),
            what,
        })
    }

    /// Where it would resume: the last id that it was given.
    pub fn cursor(&self) -> &str {
        &self.cursor
    }

    pub async fn next(&mut self) -> Heard {
        let what = self.what.clone();
        within(&what, self.hear()).await
    }

    async fn hear(&mut self) -> Heard {
        loop {
            if let Some((heard, cursor)) = self.waiting.pop_front() {
                if let Some(cursor) = cursor.or_else(|| cursor_of(&heard)) {
                    self.cursor = cursor;
                }
                return heard;
            }
            match &mut self.line {
                Line::Sse(sse) => {
                    let Some(piece) = sse.piece().await else {
                        return Heard::Closed {
                            retry: sse.parser.retry(),
                            code: None,
                            reason: String::new(),
                        };
                    };
                    for event in sse.parser.feed(&piece) {
                        let cursor = event.last_event_id.clone();
                        self.waiting
                            .push_back((sse_heard(event, sse.channel.as_deref()), Some(cursor)));
                    }
                }
                Line::WebSocket(socket) => match socket.next().await {
                    Some(Ok(Message::Text(text))) => self.waiting.push_back((frame_heard(&text), None)),
                    Some(Ok(Message::Binary(frame))) => self.waiting.push_back((binary_heard(&frame), None)),
                    Some(Ok(Message::Close(frame))) => {
                        let (code, reason) = frame.map_or((None, String::new()), |frame| {
                            (Some(frame.code.into()), frame.reason.as_str().to_owned())
                        });
                        return Heard::Closed {
                            retry: None,
                            code,
                            reason,
                        };
                    }
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => {
                        return Heard::Closed {
                            retry: None,
                            code: None,
                            reason: "broken".to_owned(),
                        };
                    }
                },
            }
        }
    }

    pub async fn subscribed(&mut self) -> Subscribed {
        match self.next().await {
            Heard::Subscribed(subscribed) => subscribed,
            other => panic!("{} heard {other:?}, not its confirmation", self.what),
        }
    }

    pub async fn event(&mut self) -> Event {
        match self.next().await {
            Heard::Event(event) => event,
            other => panic!("{} heard {other:?}, not an event", self.what),
        }
    }

    /// The next event's data as a number.
    pub async fn number(&mut self) -> u64 {
        self.event().await.number()
    }

    pub async fn numbers(&mut self, count: usize) -> Vec<u64> {
        let mut numbers = Vec::with_capacity(count);
        for _ in 0..count {
            numbers.push(self.number().await);
        }
        numbers
    }

    /// The reason of the gap that comes next, and the position before it.
    pub async fn gap(&mut self) -> (String, Option<String>) {
        match self.next().await {
            Heard::Gap { reason, after, .. } => (reason, after),
            other => panic!("{} heard {other:?}, not a gap", self.what),
        }
    }

    /// Sends a JSON frame.
    pub async fn send(&mut self, frame: Value) {
        self.send_message(Message::text(frame.to_string())).await;
    }

    pub async fn send_message(&mut self, message: Message) {
        let Line::WebSocket(socket) = &mut self.line else {
            panic!("{} cannot send", self.what)
        };
        within(&self.what, socket.send(message)).await.unwrap();
    }

    /// The answer to a command, past whatever events come meanwhile.
    pub async fn answer(&mut self) -> Value {
        loop {
            match self.next().await {
                Heard::Answer(value) => return value,
                Heard::Refused { whole, .. } => return whole,
                Heard::Event(_) | Heard::Heartbeat => {}
                other => panic!("{} heard {other:?}, not an answer", self.what),
            }
        }
    }
}

impl Sse {
    async fn piece(&mut self) -> Option<Bytes> {
        while !self.over {
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(piece) = frame.into_data() {
                        return Some(piece);
                    }
                }
                Some(Err(_)) | None => self.over = true,
            }
        }
        None
    }
}

/// On a WebSocket: what the last frame with a cursor said.
fn cursor_of(heard: &Heard) -> Option<String> {
    match heard {
        Heard::Subscribed(subscribed) => Some(subscribed.cursor.clone()),
        Heard::Event(event) => Some(event.id.clone()),
        Heard::Gap { cursor, .. } | Heard::End { cursor, .. } => Some(cursor.clone()),
        _ => None,
    }
}

async fn sse(
    stream: TcpStream,
    address: SocketAddr,
    way: Way,
    path: &str,
    headers: &[(&str, &str)],
    slow: bool,
) -> Result<Line, Answer> {
    let mut request = Request::builder().header("accept", "text/event-stream");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let io = TokioIo::new(stream);
    let (response, sender) = if way == Way::SseOverHttp2 {
        let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        if slow {
            builder
                .initial_stream_window_size(16 << 10)
                .initial_connection_window_size(64 << 10);
        }
        let (mut sender, connection) = builder.handshake(io).await.unwrap();
        tokio::spawn(connection);
        let request = request.uri(format!("http://{address}{path}")).body(Empty::new()).unwrap();
        (sender.send_request(request).await.unwrap(), Some(sender))
    } else {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        let request = request.uri(path).header("host", address.to_string());
        (
            sender
                .send_request(request.body(Empty::<Bytes>::new()).unwrap())
                .await
                .unwrap(),
            None,
        )
    };
    let (parts, body) = response.into_parts();
    let kind = parts.headers.get("content-type").and_then(|kind| kind.to_str().ok());
    if parts.status != 200 || kind != Some("text/event-stream") {
        return Err(Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: body.collect().await.unwrap().to_bytes(),
        });
    }
    assert_eq!(parts.headers["cache-control"], "no-store");
    assert_eq!(parts.headers["x-accel-buffering"], "no");
    let channel = path.split_once("/channels/").map(|(_, name)| name);
    Ok(Line::Sse(Box::new(Sse {
        body,
        parser: Parser::new(),
        channel: channel.map(|name| name.split('?').next().unwrap().to_owned()),
        over: false,
        _sender: sender,
    })))
}

async fn websocket(stream: TcpStream, address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Result<Line, Answer> {
    let mut request = Request::builder()
        .uri(format!("ws://{address}{path}"))
        .header("host", address.to_string())
        .header("upgrade", "websocket")
        .header("connection", "Upgrade")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", tungstenite::handshake::client::generate_key());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    match tokio_tungstenite::client_async(request.body(()).unwrap(), stream).await {
        Ok((socket, _)) => Ok(Line::WebSocket(Box::new(socket))),
        Err(tungstenite::Error::Http(response)) => Err(Answer {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: response.body().clone().unwrap_or_default().into(),
        }),
        Err(error) => panic!("{path}: {error}"),
    }
}

fn text_of(value: &Value, field: &str) -> String {
    value[field]
        .as_str()
        .unwrap_or_else(|| panic!("no {field} in {value}"))
        .to_owned()
}

fn subscribed(value: &Value) -> Heard {
    Heard::Subscribed(Subscribed {
        channel: text_of(value, "channel"),
        cursor: text_of(value, "cursor"),
        resumed: value["resumed"].as_bool().unwrap(),
        id: value["id"].as_u64(),
    })
}

fn gap(value: &Value) -> Heard {
    Heard::Gap {
        channel: text_of(value, "channel"),
        after: value["after"].as_str().map(str::to_owned),
        cursor: text_of(value, "cursor"),
        reason: text_of(value, "reason"),
    }
}

fn end(value: &Value) -> Heard {
    Heard::End {
        channel: text_of(value, "channel"),
        cursor: text_of(value, "cursor"),
    }
}

fn refused(value: Value) -> Heard {
    Heard::Refused {
        code: text_of(&value, "code"),
        whole: value,
    }
}

/// `"data":null` is data.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    serde::Deserialize::deserialize(deserializer).map(Some)
}

/// The envelope: docs/protocol.md, section 5.
pub fn envelope(text: &str) -> Event {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Envelope<'a> {
        channel: String,
        id: String,
        event: String,
        #[serde(borrow, default, deserialize_with = "present")]
        data: Option<&'a RawValue>,
        text: Option<String>,
        base64: Option<String>,
        #[allow(dead_code, reason = "allowed, and of no interest here")]
        key: Option<String>,
        attributes: Option<Value>,
    }
    let envelope: Envelope<'_> = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let data = match (envelope.data, envelope.text, envelope.base64) {
        (Some(data), None, None) => data.get().as_bytes().to_vec(),
        (None, Some(text), None) => text.into_bytes(),
        (None, None, Some(base64)) => STANDARD.decode(base64).unwrap(),
        _ => panic!("exactly one of data, text, base64: {text}"),
    };
    Event {
        channel: envelope.channel,
        id: envelope.id,
        name: envelope.event,
        data,
        attributes: envelope.attributes,
    }
}

fn sse_heard(event: super::whatwg_sse::ParsedEvent, channel: Option<&str>) -> Heard {
    let value = || serde_json::from_str::<Value>(&event.data).unwrap_or_else(|error| panic!("{error}: {event:?}"));
    match event.event.as_str() {
        "airwave.subscribed" => subscribed(&value()),
        "airwave.gap" => gap(&value()),
        "airwave.end" => end(&value()),
        "airwave.stale" => Heard::Stale,
        "airwave.heartbeat" => Heard::Heartbeat,
        "airwave.error" => refused(value()),
        "airwave.presence" | "airwave.join" | "airwave.leave" | "airwave.update" => {
            Heard::Members(event.event["airwave.".len()..].to_owned(), value())
        }
        name => Heard::Event(match channel {
            Some(channel) => {
                let (name, data) = match name.strip_suffix(";base64") {
                    Some(name) => (name, STANDARD.decode(&event.data).unwrap()),
                    None => (name, event.data.clone().into_bytes()),
                };
                Event {
                    channel: channel.to_owned(),
                    id: event.last_event_id.clone(),
                    name: name.to_owned(),
                    data,
                    attributes: None,
                }
            }
            None => {
                let envelope = envelope(&event.data);
                assert_eq!(envelope.name, name);
                envelope
            }
        }),
    }
}

fn frame_heard(text: &str) -> Heard {
    let mut value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let kind = value.get("type").cloned();
    match kind.as_ref().and_then(Value::as_str) {
        None => Heard::Event(envelope(text)),
        Some("subscribed") => subscribed(&value),
        Some("gap") => gap(&value),
        Some("end") => end(&value),
        Some("stale") => Heard::Stale,
        Some("heartbeat") => Heard::Heartbeat,
        Some("error") => refused(value),
        Some(kind @ ("presence" | "join" | "leave" | "update")) => {
            let kind = kind.to_owned();
            value.as_object_mut().unwrap().remove("type");
            Heard::Members(kind, value)
        }
        Some(_) => Heard::Answer(value),
    }
}

/// docs/protocol.md, section 5, "Binary events".
fn binary_heard(frame: &[u8]) -> Heard {
    let take = |rest: &mut &[u8], count: usize| {
        let (head, tail) = rest.split_at(count);
        *rest = tail;
        head.to_vec()
    };
    let rest = &mut &frame[..];
    assert_eq!(take(rest, 1), [1]);
    let mut name = || {
        let length = take(rest, 1)[0];
        String::from_utf8(take(rest, length.into())).unwrap()
    };
    let (channel, name) = (name(), name());
    let id = u64::from_be_bytes(take(rest, 8).try_into().unwrap());
    Heard::Event(Event {
        channel,
        id: id.to_string(),
        name,
        data: rest.to_vec(),
        attributes: None,
    })
}
