//! Clients over the simulated network: one request, an SSE stream, a WebSocket. They read with
//! airwave-protocol, which knows no encoder of the server.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use airwave_protocol::sse::Parser;
use airwave_protocol::{ClientFrame, Payload, ServerFrame, Subscribe};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::{Error, Message};
use turmoil::net::TcpStream;

/// How long a client waits for a connection, or for an answer's head.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where the nodes listen.
pub const PORT: u16 = 80;

/// One thing that a stream brought.
#[derive(Clone, Debug, PartialEq)]
pub enum Heard {
    Confirmed {
        channel: String,
        cursor: u64,
        resumed: bool,
    },
    Event {
        channel: String,
        position: u64,
        body: String,
    },
    Gap {
        channel: String,
        after: Option<u64>,
        cursor: u64,
        reason: String,
    },
    /// The text that an EventSource would send as `Last-Event-ID`, once it has what comes next.
    Id(String),
    /// Nothing but a sign of life.
    Beat,
    /// The server said no.
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

async fn in_time<T>(future: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match timeout(PATIENCE, future).await {
        Ok(result) => result,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Ends with its owner.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// One request over a connection of its own. The connection lives as long as the task.
async fn request(node: &str, request: hyper::Request<Full<Bytes>>) -> io::Result<(hyper::Response<Incoming>, Task)> {
    in_time(async {
        let stream = TcpStream::connect((node, PORT)).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let task = Task(tokio::spawn(async move { drop(connection.await) }));
        let response = sender.send_request(request).await.map_err(broken)?;
        Ok((response, task))
    })
    .await
}

/// Publishes with an idempotency key. After an error, the client does not know whether it happened.
pub async fn publish(node: &str, publications: &Value, key: Option<&str>) -> io::Result<(u16, Value)> {
    let mut post = hyper::Request::post("/publish")
        .header("host", node)
        .header("content-type", "application/json");
    if let Some(key) = key {
        post = post.header("idempotency-key", key);
    }
    let post = post.body(Full::from(publications.to_string())).map_err(broken)?;
    in_time(async {
        let (response, _connection) = request(node, post).await?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.map_err(broken)?.to_bytes();
        Ok((status, serde_json::from_slice(&body).map_err(wrong)?))
    })
    .await
}

fn position(text: &str) -> io::Result<u64> {
    text.parse().map_err(|_| wrong(format!("not a position: {text}")))
}

/// What a frame brings. Errors: it is none that a stream may bring.
fn heard(frame: &ServerFrame<'_>) -> io::Result<Heard> {
    Ok(match frame {
        ServerFrame::Event(event) => Heard::Event {
            channel: event.channel.to_string(),
            position: position(&event.id)?,
            body: match &event.payload {
                Payload::Json(json) => json.get().to_owned(),
                other => return Err(wrong(format!("not JSON: {other:?}"))),
            },
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
        ServerFrame::Error(refused) => Heard::Refused(refused.error.code.to_string()),
        ServerFrame::Stale(_) | ServerFrame::Heartbeat(_) => Heard::Beat,
        other => return Err(wrong(format!("not a frame that a stream brings: {}", other.to_json()))),
    })
}

/// A connection that brings events.
pub enum Line {
    Sse(Box<Sse>),
    WebSocket(Box<WebSocket>),
}

impl Line {
    /// What comes next; an error when the connection is over.
    pub async fn next(&mut self) -> io::Result<Heard> {
        match self {
            Line::Sse(sse) => sse.next().await,
            Line::WebSocket(websocket) => websocket.next().await,
        }
    }
}

pub struct Sse {
    body: Incoming,
    _connection: Task,
    /// The channel, on a stream of one; its events do not name it.
    one: Option<String>,
    parser: Parser,
    heard: VecDeque<Heard>,
}

impl Sse {
    pub async fn open(node: &str, path: &str, one: Option<&str>, last_event_id: Option<&str>) -> io::Result<Line> {
        let mut get = hyper::Request::get(path)
            .header("host", node)
            .header("accept", "text/event-stream");
        if let Some(id) = last_event_id {
            get = get.header("last-event-id", id);
        }
        let (response, connection) = request(node, get.body(Full::default()).map_err(broken)?).await?;
        if response.status() != 200 {
            return Err(wrong(format!("an SSE request was answered {}", response.status())));
        }
        Ok(Line::Sse(Box::new(Self {
            body: response.into_body(),
            _connection: connection,
            one: one.map(str::to_owned),
            parser: Parser::default(),
            heard: VecDeque::new(),
        })))
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
            let frame = self.body.frame().await.ok_or(io::ErrorKind::UnexpectedEof)?;
            if let Ok(data) = frame.map_err(broken)?.into_data() {
                let mut events = Vec::new();
                self.parser.push(&data, &mut events).map_err(wrong)?;
                if events.is_empty() {
                    self.heard.push_back(Heard::Beat);
                }
                for event in &events {
                    if !event.id.is_empty() {
                        self.heard.push_back(Heard::Id(event.id.clone()));
                    }
                    let frame = ServerFrame::from_sse(event, self.one.as_deref()).map_err(wrong)?;
                    self.heard.push_back(heard(&frame)?);
                }
            }
        }
    }
}

pub struct WebSocket(WebSocketStream<TcpStream>);

impl WebSocket {
    /// Connects, then sends a subscribe frame for each of `channels`.
    pub async fn open(node: &str, path: &str, channels: &[(&str, Option<u64>)]) -> io::Result<Line> {
        let url = format!("ws://{node}{path}");
        let mut websocket = in_time(async {
            let stream = TcpStream::connect((node, PORT)).await?;
            Ok(tokio_tungstenite::client_async(url, stream).await.map_err(broken)?.0)
        })
        .await?;
        for (id, (channel, after)) in channels.iter().enumerate() {
            let mut command = Subscribe::new(*channel).with_id(id as u64);
            command.after = after.map(|after| after.to_string().into());
            let frame = ClientFrame::Subscribe(command).to_json();
            websocket.send(Message::text(frame)).await.map_err(broken)?;
        }
        Ok(Line::WebSocket(Box::new(Self(websocket))))
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
