//! Clients over real sockets: one request, an SSE stream, a WebSocket. They read with
//! airwave-protocol, which knows no encoder of the server.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use airwave_protocol::sse::Parser;
use airwave_protocol::{ClientFrame, ClientMessage, Code, Envelope, Json, Page, Payload, SendMessage, ServerFrame, Subscribe};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::wire::{Dechunker, Head};

/// How long a listener waits for a stream to begin.
const PATIENCE: Duration = Duration::from_secs(4);

/// How long anybody waits for an answer. Far longer than the 2 s within which a publish is
/// answered.
const ANSWERED: Duration = Duration::from_secs(10);

/// One thing that a stream brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// The subscription stands.
    Confirmed {
        /// The channel.
        channel: String,
        /// The position before the first event that follows.
        cursor: u64,
        /// Whether everything after the cursor that was given follows.
        resumed: bool,
    },
    /// An event.
    Event {
        /// The channel.
        channel: String,
        /// Its place.
        position: u64,
        /// Its data.
        data: Value,
    },
    /// An announced loss.
    Gap {
        /// The channel.
        channel: String,
        /// Where the listener stood.
        after: Option<u64>,
        /// Where it stands now.
        cursor: u64,
        /// Why.
        reason: String,
    },
    /// Who is in a channel: the list, or a change.
    Members {
        /// `presence`, `join`, `update` or `leave`.
        kind: String,
        /// What was said.
        said: Value,
    },
    /// The text that an EventSource would send as `Last-Event-ID`, once it has what comes next.
    Id(String),
    /// Nothing but a sign of life.
    Beat,
    /// The server said no: the code.
    Refused(String),
}

/// The network's fault, or a node's that died.
fn broken(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::other(error)
}

/// Not what docs/protocol.md says: a failure of the run.
fn wrong(what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

async fn in_time<T>(patience: Duration, future: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match timeout(patience, future).await {
        Ok(result) => result,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// `small`: a small receive buffer, so that a server soon notices that this client does not read.
async fn connect(node: SocketAddr, small: bool) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if small {
        socket.set_recv_buffer_size(4096)?;
    }
    let stream = socket.connect(node).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Reads until the head of an answer is there; what came behind it stays in `buffer`.
async fn head(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Head> {
    loop {
        if let Some(head) = Head::parse(buffer).map_err(wrong)? {
            buffer.drain(..head.length);
            return Ok(head);
        }
        if stream.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// One request on a connection of its own, answered with JSON or text.
///
/// # Errors
/// The connection failed, or no answer came in time. The caller does not know whether the server
/// carried the request out.
pub async fn request(node: SocketAddr, method: &str, path: &str, headers: &str, body: &str) -> io::Result<(u16, Value)> {
    in_time(ANSWERED, async {
        let mut stream = connect(node, false).await?;
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {node}\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n{headers}\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut buffer = Vec::new();
        let head = head(&mut stream, &mut buffer).await?;
        // A server that died in the middle closes, too, so the length counts.
        let length = head.content_length.ok_or_else(|| wrong("an answer without a length"))?;
        while buffer.len() < length {
            if stream.read_buf(&mut buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let value = serde_json::from_slice(&buffer).unwrap_or_else(|_| String::from_utf8_lossy(&buffer).into());
        Ok((head.status, value))
    })
    .await
}

/// Publishes one publication (an object) or several (an array), as docs/protocol.md says. Errors as
/// for [`request`].
pub async fn publish(node: SocketAddr, publications: &Value) -> io::Result<(u16, Value)> {
    request(node, "POST", "/publish", "", &publications.to_string()).await
}

/// A client's message by `POST /channels/…`, as an SSE client sends it. Errors as for [`request`].
pub async fn post(node: SocketAddr, channel: &str, data: &Value, key: &str) -> io::Result<(u16, Value)> {
    let body = json!({"event": "said", "data": data}).to_string();
    let key = format!("Idempotency-Key: {key}\r\n");
    request(node, "POST", &format!("/channels/{channel}"), &key, &body).await
}

/// A client's message by a `send` frame. Gives a status as [`post`] does. Errors as for
/// [`request`].
pub async fn send(node: SocketAddr, channel: &str, data: &Value, key: &str) -> io::Result<(u16, Value)> {
    in_time(ANSWERED, async {
        let stream = connect(node, false).await?;
        // It begins subscribed: only then may it send.
        let url = format!("ws://{node}/channels/{channel}");
        let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await.map_err(broken)?;
        let message = ClientMessage::new("said", Payload::Json(Json::of(data).map_err(wrong)?));
        let command = SendMessage::new(channel, message).with_id(1).with_idempotency_key(key);
        socket
            .send(Message::text(ClientFrame::Send(command).to_json()))
            .await
            .map_err(broken)?;
        while let Some(message) = socket.next().await {
            let Message::Text(text) = message.map_err(broken)? else {
                continue;
            };
            let answer: Value = serde_json::from_str(&text).map_err(wrong)?;
            match ServerFrame::parse(&text).map_err(wrong)? {
                ServerFrame::Reply(_) => return Ok((200, answer)),
                ServerFrame::Error(refused) => {
                    let may_pass = matches!(refused.error.known_code(), Some(Code::Unavailable | Code::Internal));
                    return Ok((if may_pass { 503 } else { 400 }, answer));
                }
                _ => {}
            }
        }
        Err(io::ErrorKind::UnexpectedEof.into())
    })
    .await
}

/// What history holds of a channel after `after`, at most a thousand: positions and data. And
/// whether there is more.
pub async fn history(node: SocketAddr, channel: &str, after: u64) -> io::Result<(Vec<(u64, Value)>, bool)> {
    let path = format!("/channels/{channel}?limit=1000&after={after}");
    let (status, page) = request(node, "GET", &path, "", "").await?;
    let text = page.to_string();
    let page = Page::parse(text.as_bytes()).map_err(|error| broken(format!("history was answered {status}: {text}: {error}")))?;
    let events = page.events.iter().map(|event| Ok((position(&event.id)?, data_of(event)?)));
    Ok((events.collect::<io::Result<_>>()?, page.more))
}

fn position(text: &str) -> io::Result<u64> {
    text.parse().map_err(|_| wrong(format!("not a position: {text}")))
}

fn data_of(event: &Envelope<'_>) -> io::Result<Value> {
    match &event.payload {
        Payload::Json(json) => json.read().map_err(wrong),
        other => Err(wrong(format!("not JSON: {other:?}"))),
    }
}

/// What a frame brings. Errors: it is none that a stream may bring.
fn heard(frame: &ServerFrame<'_>) -> io::Result<Heard> {
    Ok(match frame {
        ServerFrame::Event(event) => Heard::Event {
            channel: event.channel.to_string(),
            position: position(&event.id)?,
            data: data_of(event)?,
        },
        ServerFrame::Subscribed(subscribed) => Heard::Confirmed {
            channel: subscribed.channel.to_string(),
            cursor: position(&subscribed.cursor)?,
            resumed: subscribed.resumed,
        },
        ServerFrame::Gap(gap) => Heard::Gap {
            channel: gap.channel.to_string(),
            after: gap.after.as_deref().map(position).transpose()?,
            cursor: position(&gap.cursor)?,
            reason: gap.reason.to_string(),
        },
        ServerFrame::Presence(_) | ServerFrame::Join(_) | ServerFrame::Leave(_) | ServerFrame::Update(_) => Heard::Members {
            kind: frame.kind().unwrap_or_default().to_owned(),
            said: serde_json::to_value(frame).map_err(wrong)?,
        },
        ServerFrame::Error(refused) => Heard::Refused(refused.error.code.to_string()),
        ServerFrame::Stale(_) | ServerFrame::Heartbeat(_) => Heard::Beat,
        other => return Err(wrong(format!("not a frame that a stream brings: {}", other.to_json()))),
    })
}

/// A connection that brings events.
pub enum EventStream {
    /// Server-sent events.
    Sse(Box<Sse>),
    /// A WebSocket.
    WebSocket(Box<WebSocket>),
}

impl EventStream {
    /// What comes next; an error when the connection is over, of the kind `InvalidData` if what
    /// came is not of the protocol.
    pub async fn next(&mut self) -> io::Result<Heard> {
        match self {
            EventStream::Sse(sse) => sse.next().await,
            EventStream::WebSocket(websocket) => websocket.next().await,
        }
    }
}

/// A stream of server-sent events.
pub struct Sse {
    stream: TcpStream,
    chunks: Option<Dechunker>,
    /// The channel, on a stream of one; its events do not name it.
    one: Option<String>,
    parser: Parser,
    heard: VecDeque<Heard>,
}

impl Sse {
    /// Opens one. `one`: the channel, if it is a stream of one. `small`: with little room for what
    /// was not read yet.
    ///
    /// # Errors
    /// The connection; of the kind `InvalidData` if the answer is not what docs/protocol.md says.
    pub async fn open(node: SocketAddr, path: &str, one: Option<&str>, id: Option<&str>, small: bool) -> io::Result<EventStream> {
        in_time(PATIENCE, async {
            let mut stream = connect(node, small).await?;
            let id = id.map_or(String::new(), |id| format!("Last-Event-ID: {id}\r\n"));
            let request = format!("GET {path} HTTP/1.1\r\nHost: {node}\r\nAccept: text/event-stream\r\n{id}\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut bytes = Vec::new();
            let head = head(&mut stream, &mut bytes).await?;
            if head.status != 200 {
                return Err(wrong(format!("an SSE request was answered {}", head.status)));
            }
            let mut sse = Self {
                stream,
                chunks: head.chunked.then(Dechunker::default),
                one: one.map(str::to_owned),
                parser: Parser::default(),
                heard: VecDeque::new(),
            };
            sse.take_in(&bytes)?;
            Ok(EventStream::Sse(Box::new(sse)))
        })
        .await
    }

    /// Whether it is a stream of one channel, whose ids are positions.
    pub fn is_of_one(&self) -> bool {
        self.one.is_some()
    }

    async fn next(&mut self) -> io::Result<Heard> {
        loop {
            if let Some(heard) = self.heard.pop_front() {
                return Ok(heard);
            }
            let mut bytes = Vec::with_capacity(8192);
            if self.stream.read_buf(&mut bytes).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            // Comments are taken off with the blocks, so any bytes are a sign of life.
            self.heard.push_back(Heard::Beat);
            self.take_in(&bytes)?;
        }
    }

    fn take_in(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut body = Vec::new();
        let bytes = match &mut self.chunks {
            Some(chunks) => {
                chunks.decode(bytes, &mut body).map_err(wrong)?;
                &body
            }
            None => bytes,
        };
        let mut events = Vec::new();
        self.parser.push(bytes, &mut events).map_err(wrong)?;
        for event in &events {
            // An `EventSource` has this id from here on, whichever event gave it.
            if !event.id.is_empty() {
                self.heard.push_back(Heard::Id(event.id.clone()));
            }
            let frame = ServerFrame::from_sse(event, self.one.as_deref()).map_err(wrong)?;
            self.heard.push_back(heard(&frame)?);
        }
        Ok(())
    }
}

/// A WebSocket.
pub struct WebSocket(WebSocketStream<TcpStream>);

impl WebSocket {
    /// Connects, then sends a subscribe frame for each of `channels`. `small`: with little room for
    /// what was not read yet.
    ///
    /// # Errors
    /// The connection.
    pub async fn open(node: SocketAddr, path: &str, channels: &[(&str, Option<u64>)], small: bool) -> io::Result<EventStream> {
        in_time(PATIENCE, async {
            let stream = connect(node, small).await?;
            let url = format!("ws://{node}{path}");
            let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await.map_err(broken)?;
            for (id, (channel, after)) in channels.iter().enumerate() {
                let mut command = Subscribe::new(*channel).with_id(id as u64);
                command.after = after.map(|after| after.to_string().into());
                let frame = ClientFrame::Subscribe(command).to_json();
                socket.send(Message::text(frame)).await.map_err(broken)?;
            }
            Ok(EventStream::WebSocket(Box::new(Self(socket))))
        })
        .await
    }

    async fn next(&mut self) -> io::Result<Heard> {
        let message = self.0.next().await.ok_or(io::ErrorKind::UnexpectedEof)?;
        let message = message.map_err(|error| match error {
            Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => broken(error),
            Error::Protocol(_) | Error::Utf8(_) | Error::Capacity(_) => wrong(error),
            _ => broken(error),
        })?;
        let Message::Text(frame) = message else {
            return Ok(Heard::Beat);
        };
        heard(&ServerFrame::parse(&frame).map_err(wrong)?)
    }
}
