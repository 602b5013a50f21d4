//! `airwave listen`: the events of channels on standard output, everything else about them on
//! standard error. A connection that is lost is made again from the cursor.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::io::Write;
use std::time::Duration;

use airwave_core::ChannelName;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{Method, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use super::client::{Backoff, CredentialArgs, Server, ServerArgs, channel_name, query_value};
use super::sse::{Block, Parser};
use super::{Stop, block_on, say};

pub(super) const HELP: &str = "\
Prints one line for each event: position, event name, data (several channels: the channel first). Gaps, the end of a channel and
lost connections are told on standard error. Ends by itself when the channels have ended, after --count events, or after --for.

Examples:
  airwave listen orders/abc
  airwave listen chat/lobby chat/news --transport websocket --json
  AIRWAVE_TOKEN=$(cat token) airwave listen users/ann
  airwave listen jobs/7 --after 1748123004217001 --count 1 --for 10s";

#[derive(clap::Args)]
pub(super) struct Args {
    /// The channels, such as orders/abc
    #[arg(required = true, value_name = "CHANNEL", value_parser = channel_name)]
    channels: Vec<ChannelName>,
    /// [default: the one that the server names]
    #[arg(long, value_enum)]
    transport: Option<Transport>,
    /// Begin after this cursor instead of now
    #[arg(long, value_name = "CURSOR")]
    after: Option<String>,
    /// Print each event as a JSON object with channel, id, event and data, text or base64
    #[arg(long, conflicts_with = "raw")]
    json: bool,
    /// Print the data alone, as it is
    #[arg(long)]
    raw: bool,
    /// End after so many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after this time; with --count it is an error if there were fewer events
    #[arg(long = "for", value_name = "TIME", value_parser = airwave::config::parse_duration)]
    for_: Option<Duration>,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    credentials: CredentialArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Transport {
    Sse,
    Websocket,
}

impl Transport {
    fn of(name: &str) -> Option<Self> {
        match name {
            "sse" => Some(Transport::Sse),
            "websocket" => Some(Transport::Websocket),
            _ => None,
        }
    }
}

pub(super) fn run(args: Args) -> Result<(), Stop> {
    let server = args.server.server()?.with_headers(args.credentials.headers()?);
    let (count, limit) = (args.count, args.for_);
    let mut channels: Vec<ChannelName> = Vec::new();
    for channel in args.channels {
        if !channels.contains(&channel) {
            channels.push(channel);
        }
    }
    let mut listener = Listener {
        server,
        out: std::io::stdout(),
        printer: Printer {
            format: match (args.json, args.raw) {
                (true, _) => Format::Json,
                (_, true) => Format::Raw,
                _ => Format::Line,
            },
            name_channel: channels.len() > 1,
            left: count,
        },
        place: Place {
            channels,
            given: args.after,
            last_id: None,
            cursors: HashMap::new(),
            ended: HashSet::new(),
        },
        backoff: Backoff::default(),
        told: String::new(),
    };
    // Ctrl-C is left to the system: what has been printed is out, and nothing needs to be undone.
    block_on(async {
        let listening = listener.listen(args.transport);
        match limit {
            None => listening.await,
            Some(limit) => timeout(limit, listening).await.unwrap_or(Ok(())),
        }
    })?;
    // The time is over, and no channel was subscribed.
    if listener.place.cursors.is_empty() && !listener.told.is_empty() {
        return Err(Stop::Failed(format!("{}: {}", listener.server, listener.told)));
    }
    match listener.printer.left {
        Some(left) if left > 0 => {
            let count = count.unwrap_or(left);
            Err(Stop::Failed(format!("{} of {count} events", count - left)))
        }
        _ => Ok(()),
    }
}

/// What either transport has to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Heard {
    Event {
        channel: String,
        position: String,
        event: String,
        data: Payload,
    },
    Subscribed {
        channel: String,
        cursor: String,
        resumed: bool,
    },
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
    Error {
        code: String,
        message: String,
        transport: Option<String>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Payload {
    /// JSON, or text: SSE does not say which.
    Data(String),
    Text(String),
    Binary(Vec<u8>),
}

/// Everything that an object on the wire may have, of either transport.
#[derive(Deserialize)]
struct Wire<'a> {
    #[serde(rename = "type")]
    kind: Option<String>,
    channel: Option<String>,
    id: Option<Value>,
    event: Option<String>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    text: Option<String>,
    base64: Option<String>,
    cursor: Option<Value>,
    after: Option<Value>,
    resumed: Option<bool>,
    reason: Option<String>,
    code: Option<String>,
    message: Option<String>,
    transport: Option<String>,
}

/// Cursors are text, but a number means the same.
fn text_of(value: Option<Value>) -> Option<String> {
    match value? {
        Value::String(text) => Some(text),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

impl Wire<'_> {
    /// An event with its envelope. `None` if it has none.
    fn event(self) -> Option<Heard> {
        let data = match (self.data, self.text, self.base64) {
            (Some(data), _, _) => Payload::Data(data.get().to_owned()),
            (_, Some(text), _) => Payload::Text(text),
            (_, _, Some(base64)) => Payload::Binary(STANDARD.decode(base64).ok()?),
            _ => return None,
        };
        Some(Heard::Event {
            channel: self.channel?,
            position: text_of(self.id)?,
            event: self.event?,
            data,
        })
    }

    /// What is no event, by its kind. `None`: nothing that anybody must know.
    fn notice(self, kind: &str) -> Option<Heard> {
        Some(match kind {
            "subscribed" => Heard::Subscribed {
                channel: self.channel?,
                cursor: text_of(self.cursor)?,
                resumed: self.resumed.unwrap_or(false),
            },
            "gap" => Heard::Gap {
                channel: self.channel?,
                after: text_of(self.after),
                cursor: text_of(self.cursor)?,
                reason: self.reason.unwrap_or_default(),
            },
            "end" => Heard::End {
                channel: self.channel?,
                cursor: text_of(self.cursor)?,
            },
            "stale" => Heard::Stale,
            "error" => Heard::Error {
                code: self.code.unwrap_or_default(),
                message: self.message.unwrap_or_default(),
                transport: self.transport,
            },
            _ => return None,
        })
    }
}

/// What a block of an SSE stream says; `only` is the channel of a stream of one.
fn of_block(block: Block, only: Option<&ChannelName>) -> Option<Heard> {
    if let Some(kind) = block.event.strip_prefix("airwave.") {
        return serde_json::from_str::<Wire<'_>>(&block.data).ok()?.notice(kind);
    }
    let Some(channel) = only else {
        return serde_json::from_str::<Wire<'_>>(&block.data).ok()?.event();
    };
    let (event, data) = match block.event.strip_suffix(";base64") {
        Some(event) => (event.to_owned(), Payload::Binary(STANDARD.decode(&block.data).ok()?)),
        None => (block.event, Payload::Data(block.data)),
    };
    Some(Heard::Event {
        channel: channel.to_string(),
        position: block.id,
        event,
        data,
    })
}

/// What a text frame says.
fn of_text(frame: &str) -> Option<Heard> {
    let wire: Wire<'_> = serde_json::from_str(frame).ok()?;
    match wire.kind.clone() {
        Some(kind) => wire.notice(&kind),
        None => wire.event(),
    }
}

/// What a binary frame says: format, channel, event, position, payload.
fn of_binary(frame: &[u8]) -> Option<Heard> {
    fn name(bytes: &[u8]) -> Option<(String, &[u8])> {
        let (&length, rest) = bytes.split_first()?;
        let (name, rest) = rest.split_at_checked(length.into())?;
        Some((String::from_utf8(name.to_vec()).ok()?, rest))
    }
    let rest = frame.strip_prefix(&[1])?;
    let (channel, rest) = name(rest)?;
    let (event, rest) = name(rest)?;
    let (position, payload) = rest.split_first_chunk::<8>()?;
    Some(Heard::Event {
        channel,
        position: u64::from_be_bytes(*position).to_string(),
        event,
        data: Payload::Binary(payload.to_vec()),
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Line,
    Json,
    Raw,
}

/// Writes events, and counts them.
struct Printer {
    format: Format,
    name_channel: bool,
    /// How many are still wanted; `None`: all.
    left: Option<u64>,
}

impl Printer {
    fn is_done(&self) -> bool {
        self.left == Some(0)
    }

    fn event(&self, out: &mut Vec<u8>, channel: &str, position: &str, event: &str, data: &Payload) {
        match self.format {
            Format::Raw => {
                match data {
                    Payload::Data(text) | Payload::Text(text) => out.extend_from_slice(text.as_bytes()),
                    Payload::Binary(bytes) => out.extend_from_slice(bytes),
                }
                out.push(b'\n');
            }
            Format::Json => {
                let (name, value) = match data {
                    Payload::Data(text) => match serde_json::from_str::<Box<RawValue>>(text) {
                        // As it came, not read and written anew: numbers keep their digits.
                        Ok(raw) => ("data", raw.get().to_owned()),
                        Err(_) => ("text", json!(text).to_string()),
                    },
                    Payload::Text(text) => ("text", json!(text).to_string()),
                    Payload::Binary(bytes) => ("base64", json!(STANDARD.encode(bytes)).to_string()),
                };
                let line = format!(
                    "{{\"channel\":{},\"id\":{},\"event\":{},\"{name}\":{value}}}\n",
                    json!(channel),
                    json!(position),
                    json!(event)
                );
                out.extend_from_slice(line.as_bytes());
            }
            Format::Line => {
                let mut line = String::new();
                if self.name_channel {
                    let _ = write!(line, "{channel} ");
                }
                let data: &str = match data {
                    Payload::Data(text) | Payload::Text(text) => text,
                    Payload::Binary(bytes) => &STANDARD.encode(bytes),
                };
                let _ = writeln!(line, "{position} {event} {}", printable(data));
                out.extend_from_slice(line.as_bytes());
            }
        }
    }
}

/// `text` on one line, without the power to move a terminal's cursor.
fn printable(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut line, c| {
        if c.is_control() && c != '\t' {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
        line
    })
}

/// How far the listener has got.
struct Place {
    channels: Vec<ChannelName>,
    /// The cursor that was typed.
    given: Option<String>,
    /// The last id of the SSE stream: a cursor of all its channels.
    last_id: Option<String>,
    /// The cursor of each channel, as a WebSocket wants it.
    cursors: HashMap<String, String>,
    ended: HashSet<String>,
}

impl Place {
    fn only(&self) -> Option<&ChannelName> {
        match &self.channels[..] {
            [only] => Some(only),
            _ => None,
        }
    }

    fn has_ended(&self) -> bool {
        self.channels.iter().all(|channel| self.ended.contains(channel.as_str()))
    }

    /// The path of the stream of all channels.
    fn path(&self) -> String {
        let mut path = match self.only() {
            Some(only) => format!("/channels/{only}"),
            None => {
                let list: Vec<_> = self.channels.iter().map(|channel| query_value(channel.as_str())).collect();
                format!("/events?channel={}", list.join("&channel="))
            }
        };
        if let (None, Some(given)) = (&self.last_id, &self.given) {
            let mark = if path.contains('?') { '&' } else { '?' };
            let _ = write!(path, "{mark}after={}", query_value(given));
        }
        path
    }

    /// The commands that subscribe to all channels that have not ended.
    fn subscriptions(&self) -> Vec<String> {
        self.channels
            .iter()
            .filter(|channel| !self.ended.contains(channel.as_str()))
            .enumerate()
            .map(|(i, channel)| {
                let mut command = json!({"type": "subscribe", "id": i + 1, "channel": channel.as_str()});
                if let Some(after) = self.cursors.get(channel.as_str()).or(self.given.as_ref()) {
                    command["after"] = json!(after);
                }
                command.to_string()
            })
            .collect()
    }
}

/// Why a connection is over.
#[derive(Debug)]
enum Over {
    /// Everything that was asked for is there.
    Done,
    /// It may be made again, after the time that the server named.
    Lost { why: String, wait: Option<Duration> },
    /// The channel is not to be had over this transport, but over that one.
    Elsewhere(Transport),
    /// Trying again would not help.
    Stop(Stop),
}

impl Over {
    fn lost(why: impl Into<String>) -> Self {
        Over::Lost {
            why: why.into(),
            wait: None,
        }
    }

    /// What an error of the protocol means.
    fn refused(code: &str, message: &str, transport: Option<&str>) -> Self {
        let text = printable(&format!("{message} ({code})"));
        match (code, transport.and_then(Transport::of)) {
            ("wrong-transport", Some(transport)) => Over::Elsewhere(transport),
            ("unavailable" | "internal" | "too-many" | "too-slow", _) => Over::lost(text),
            _ => Over::Stop(Stop::Failed(text)),
        }
    }
}

/// The server is never silent for longer than its heartbeat, 15 s by default. The client gives up
/// after three missed ones.
const SILENCE: Duration = Duration::from_secs(50);
const LARGEST_ERROR: usize = 1 << 20;

struct Listener<W> {
    server: Server,
    out: W,
    printer: Printer,
    place: Place,
    backoff: Backoff,
    /// What was said last: the same trouble again is not news, until it has been over.
    told: String,
}

impl<W: Write> Listener<W> {
    async fn listen(&mut self, chosen: Option<Transport>) -> Result<(), Stop> {
        let mut transport = chosen.unwrap_or(Transport::Sse);
        let mut switched = false;
        loop {
            let over = match transport {
                Transport::Sse => self.over_sse().await,
                Transport::Websocket => self.over_websocket().await,
            };
            match over {
                Over::Done => return Ok(()),
                Over::Stop(stop) => return Err(stop),
                Over::Elsewhere(other) if chosen.is_none() && !switched && other != transport => {
                    switched = true;
                    transport = other;
                }
                Over::Elsewhere(other) => {
                    let name = match other {
                        Transport::Sse => "sse",
                        Transport::Websocket => "websocket",
                    };
                    return Err(Stop::Failed(if chosen.is_some() {
                        format!("a channel is not to be had over this transport; write --transport {name}")
                    } else {
                        "these channels have no transport in common; listen to them one by one".into()
                    }));
                }
                Over::Lost { why, wait } => {
                    if why != self.told {
                        say(&format!("{}: {why}; trying again", self.server));
                        self.told = why;
                    }
                    let pause = self.backoff.next();
                    sleep(wait.unwrap_or(pause)).await;
                }
            }
        }
    }

    /// Takes in what came, prints, and remembers the place. `Some`: the connection is over.
    fn take(&mut self, heard: impl IntoIterator<Item = Heard>) -> Option<Over> {
        let mut out = Vec::new();
        let mut over = None;
        for heard in heard {
            over = self.take_one(heard, &mut out);
            if over.is_some() {
                break;
            }
        }
        match self.out.write_all(&out).and_then(|()| self.out.flush()) {
            Ok(()) => over,
            Err(error) => Some(Over::Stop(Stop::of_output(error))),
        }
    }

    fn take_one(&mut self, heard: Heard, out: &mut Vec<u8>) -> Option<Over> {
        match heard {
            Heard::Event {
                channel,
                position,
                event,
                data,
            } => {
                self.printer.event(out, &channel, &position, &event, &data);
                self.place.cursors.insert(channel, position);
                if let Some(left) = &mut self.printer.left {
                    *left -= 1;
                }
                self.printer.is_done().then_some(Over::Done)
            }
            Heard::Subscribed {
                channel,
                cursor,
                resumed,
            } => {
                self.backoff.reset();
                self.told.clear();
                let how = if resumed { "resumed" } else { "listening" };
                say(&printable(&format!("{channel}: {how} after {cursor}")));
                self.place.cursors.insert(channel, cursor);
                None
            }
            Heard::Gap {
                channel,
                after,
                cursor,
                reason,
            } => {
                let after = after.unwrap_or_else(|| "the cursor that was given".into());
                say(&printable(&format!(
                    "{channel}: gap: events after {after} are lost ({reason}); goes on after {cursor}"
                )));
                self.place.cursors.insert(channel, cursor);
                None
            }
            Heard::End { channel, cursor } => {
                say(&printable(&format!("{channel}: has ended")));
                self.place.cursors.insert(channel.clone(), cursor);
                self.place.ended.insert(channel);
                self.place.has_ended().then_some(Over::Done)
            }
            Heard::Stale => {
                say("the server does not reach its broker; waiting");
                None
            }
            Heard::Error {
                code,
                message,
                transport,
            } => Some(Over::refused(&code, &message, transport.as_deref())),
        }
    }

    async fn over_sse(&mut self) -> Over {
        let mut connection = match self.server.open().await {
            Ok(connection) => connection,
            Err(why) => return Over::lost(why),
        };
        let mut request = self
            .server
            .request(Method::GET, &self.place.path())
            .header(ACCEPT, "text/event-stream");
        if let Some(id) = &self.place.last_id {
            request = request.header("Last-Event-ID", id);
        }
        let request = match request.body(Full::<Bytes>::default()) {
            Ok(request) => request,
            Err(error) => return Over::Stop(Stop::Failed(error.to_string())),
        };
        let response = match timeout(SILENCE, connection.send_request(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Over::lost(format!("no answer ({error})")),
            Err(_) => return Over::lost("no answer"),
        };
        match response.status() {
            StatusCode::OK if is_stream(response.headers()) => {}
            StatusCode::NO_CONTENT => {
                say("everything asked for has ended");
                return Over::Done;
            }
            status => {
                let body = Limited::new(response.into_body(), LARGEST_ERROR).collect();
                let body = timeout(SILENCE, body)
                    .await
                    .ok()
                    .and_then(Result::ok)
                    .map(|body| body.to_bytes());
                return of_status(status, &body.unwrap_or_default());
            }
        }
        let mut body = response.into_body();
        let mut parser = Parser::default();
        let wait = |parser: &Parser| parser.retry().map(Duration::from_millis);
        loop {
            let why = match timeout(SILENCE, body.frame()).await {
                Ok(Some(Ok(frame))) => {
                    let Ok(bytes) = frame.into_data() else { continue };
                    let mut blocks = Vec::new();
                    if parser.push(&bytes, &mut blocks).is_err() {
                        return Over::Stop(Stop::Failed("the stream is not one of Airwave's".into()));
                    }
                    let only = self.place.only().cloned();
                    let heard: Vec<Heard> = blocks
                        .into_iter()
                        .filter_map(|block| of_block(block, only.as_ref()))
                        .collect();
                    let over = self.take(heard);
                    if !parser.last_id().is_empty() {
                        self.place.last_id = Some(parser.last_id().to_owned());
                    }
                    match over {
                        None => continue,
                        // An error in the stream: it says itself when to come back.
                        Some(Over::Lost { why, .. }) => {
                            return Over::Lost {
                                why,
                                wait: wait(&parser),
                            };
                        }
                        Some(over) => return over,
                    }
                }
                Ok(Some(Err(_))) => "the stream broke off",
                Ok(None) => "the stream ended",
                Err(_) => "the server has fallen silent",
            };
            return Over::Lost {
                why: why.into(),
                wait: wait(&parser),
            };
        }
    }

    async fn over_websocket(&mut self) -> Over {
        let stream = match self.server.connect().await {
            Ok(stream) => stream,
            Err(why) => return Over::lost(why),
        };
        let request = match self.server.websocket("/socket") {
            Ok(request) => request,
            Err(error) => return Over::Stop(Stop::Failed(error)),
        };
        let handshake = tokio_tungstenite::client_async(request, stream);
        let mut socket = match timeout(SILENCE, handshake).await {
            Ok(Ok((socket, _))) => socket,
            Ok(Err(WsError::Http(response))) => {
                return of_status(response.status(), response.body().as_deref().unwrap_or_default());
            }
            Ok(Err(error)) => return Over::lost(format!("no WebSocket ({error})")),
            Err(_) => return Over::lost("no answer"),
        };
        for command in self.place.subscriptions() {
            if let Err(error) = socket.feed(Message::text(command)).await {
                return Over::lost(error.to_string());
            }
        }
        if let Err(error) = socket.flush().await {
            return Over::lost(error.to_string());
        }
        loop {
            let heard = match timeout(SILENCE, socket.next()).await {
                Ok(Some(Ok(Message::Text(text)))) => of_text(&text),
                Ok(Some(Ok(Message::Binary(bytes)))) => of_binary(&bytes),
                Ok(Some(Ok(Message::Close(frame)))) => return of_close(frame.as_ref()),
                Ok(Some(Ok(_))) => None,
                Ok(Some(Err(error))) => return Over::lost(error.to_string()),
                Ok(None) => return Over::lost("the connection ended"),
                Err(_) => return Over::lost("the server has fallen silent"),
            };
            if let Some(over) = self.take(heard) {
                // A close frame. Its fate changes nothing.
                let _ = timeout(Duration::from_secs(1), socket.close(None)).await;
                return over;
            }
        }
    }
}

fn is_stream(headers: &http::HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    kind.is_some_and(|kind| kind.trim_start().to_ascii_lowercase().starts_with("text/event-stream"))
}

/// An answer that is no stream.
fn of_status(status: StatusCode, body: &[u8]) -> Over {
    #[derive(Deserialize)]
    struct Body {
        error: Error,
        transport: Option<String>,
    }
    #[derive(Deserialize)]
    struct Error {
        code: String,
        message: String,
        transport: Option<String>,
    }
    match serde_json::from_slice::<Body>(body) {
        Ok(body) => {
            let transport = body.error.transport.or(body.transport);
            Over::refused(&body.error.code, &body.error.message, transport.as_deref())
        }
        Err(_) if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
            Over::lost(format!("the server answered {status}"))
        }
        Err(_) => Over::Stop(Stop::Failed(format!(
            "the server answered {status}; is this Airwave, and the URL where it is mounted?"
        ))),
    }
}

/// What a close frame means.
fn of_close(frame: Option<&CloseFrame>) -> Over {
    let Some(frame) = frame else {
        return Over::lost("the connection was closed");
    };
    let code = u16::from(frame.code);
    let wait = frame
        .reason
        .strip_prefix("retry=")
        .and_then(|millis| millis.parse().ok())
        .map(Duration::from_millis);
    let why = printable(&format!("closed ({code} {})", frame.reason));
    match code {
        4408 | 4429 => Over::Lost { why, wait },
        1009 | 4400..=4499 => Over::Stop(Stop::Failed(why)),
        _ => Over::Lost { why, wait },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::fake::{Act, play};
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> ChannelName {
        ChannelName::new(text).unwrap()
    }

    fn event(channel: &str, position: &str, event: &str, data: Payload) -> Heard {
        Heard::Event {
            channel: channel.into(),
            position: position.into(),
            event: event.into(),
            data,
        }
    }

    fn block(id: &str, event: &str, data: &str) -> Block {
        Block {
            id: id.into(),
            event: event.into(),
            data: data.into(),
        }
    }

    fn place(channels: &[&str]) -> Place {
        Place {
            channels: channels.iter().map(|text| name(text)).collect(),
            given: None,
            last_id: None,
            cursors: HashMap::new(),
            ended: HashSet::new(),
        }
    }

    #[test]
    fn both_transports_say_the_same() {
        let one = name("chat/lobby");
        let data = Payload::Data("{\"text\":\"hi\"}".into());
        let expected = Some(event("chat/lobby", "17", "say", data));
        assert_eq!(of_block(block("17", "say", "{\"text\":\"hi\"}"), Some(&one)), expected);
        let envelope = "{\"channel\":\"chat/lobby\",\"id\":\"17\",\"event\":\"say\",\"data\":{\"text\":\"hi\"}}";
        assert_eq!(of_block(block("AQtoken", "say", envelope), None), expected);
        assert_eq!(of_text(envelope), expected);

        let binary = Some(event("a", "17", "e", Payload::Binary(vec![0, 255])));
        assert_eq!(of_block(block("17", "e;base64", "AP8="), Some(&name("a"))), binary);
        assert_eq!(
            of_text("{\"channel\":\"a\",\"id\":17,\"event\":\"e\",\"base64\":\"AP8=\"}"),
            binary
        );
        assert_eq!(of_binary(b"\x01\x01a\x01e\0\0\0\0\0\0\0\x11\0\xff"), binary);

        let gap = Some(Heard::Gap {
            channel: "a".into(),
            after: None,
            cursor: "9".into(),
            reason: "history-expired".into(),
        });
        let body = "\"channel\":\"a\",\"after\":null,\"cursor\":\"9\",\"reason\":\"history-expired\"}";
        assert_eq!(of_block(block("9", "airwave.gap", &format!("{{{body}")), None), gap);
        assert_eq!(of_text(&format!("{{\"type\":\"gap\",{body}")), gap);

        let subscribed = Some(Heard::Subscribed {
            channel: "a".into(),
            cursor: "9".into(),
            resumed: true,
        });
        let body = "\"channel\":\"a\",\"cursor\":\"9\",\"resumed\":true}";
        assert_eq!(
            of_block(block("9", "airwave.subscribed", &format!("{{{body}")), Some(&name("a"))),
            subscribed
        );
        assert_eq!(of_text(&format!("{{\"type\":\"subscribed\",\"id\":1,{body}")), subscribed);
        assert_eq!(of_block(block("", "airwave.stale", "{}"), None), Some(Heard::Stale));
        assert_eq!(of_text("{\"type\":\"heartbeat\"}"), None);
    }

    proptest! {
        #[test]
        fn no_frame_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..40), text in "\\PC{0,60}", kind in "(airwave\\.)?[a-z]{0,6}") {
            let _ = (of_binary(&bytes), of_text(&text), of_block(block("1", &kind, &text), None), of_status(StatusCode::OK, &bytes));
        }

        #[test]
        fn what_is_printed_is_one_line_without_controls(text in "(\\PC|\\p{Cc}){0,40}") {
            prop_assert!(!printable(&text).chars().any(|c| c.is_control() && c != '\t'));
        }
    }

    #[test]
    fn an_event_is_one_line() {
        let print = |format, name_channel, data: Payload| {
            let mut out = Vec::new();
            Printer {
                format,
                name_channel,
                left: None,
            }
            .event(&mut out, "a/b", "17", "e", &data);
            String::from_utf8_lossy(&out).into_owned()
        };
        let text = || Payload::Text("x\ny\x1b[2J".into());
        assert_eq!(print(Format::Line, false, text()), "17 e x\\ny\\u{1b}[2J\n");
        assert_eq!(print(Format::Line, true, text()), "a/b 17 e x\\ny\\u{1b}[2J\n");
        assert_eq!(print(Format::Raw, false, text()), "x\ny\x1b[2J\n");
        assert_eq!(
            print(Format::Json, false, text()),
            "{\"channel\":\"a/b\",\"id\":\"17\",\"event\":\"e\",\"text\":\"x\\ny\\u001b[2J\"}\n"
        );
        assert_eq!(
            print(Format::Json, false, Payload::Data("{\"n\": 1.50}".into())),
            "{\"channel\":\"a/b\",\"id\":\"17\",\"event\":\"e\",\"data\":{\"n\": 1.50}}\n"
        );
        assert_eq!(print(Format::Line, false, Payload::Binary(vec![0, 255])), "17 e AP8=\n");
    }

    #[test]
    fn a_stream_is_asked_for_from_the_place() {
        let mut one = place(&["a/b=c"]);
        assert_eq!(one.path(), "/channels/a/b=c");
        one.given = Some("5".into());
        assert_eq!(one.path(), "/channels/a/b=c?after=5");
        one.last_id = Some("6".into());
        assert_eq!(one.path(), "/channels/a/b=c", "the header says it then");
        let mut two = place(&["a/b=c", "d+e"]);
        two.given = Some("AQ_-".into());
        assert_eq!(two.path(), "/events?channel=a/b%3Dc&channel=d%2Be&after=AQ_-");
    }

    #[test]
    fn subscriptions_go_on_from_each_channels_cursor() {
        let mut two = place(&["a", "b", "c"]);
        two.given = Some("5".into());
        two.cursors.insert("b".into(), "9".into());
        two.ended.insert("c".into());
        assert_eq!(
            two.subscriptions(),
            [
                "{\"after\":\"5\",\"channel\":\"a\",\"id\":1,\"type\":\"subscribe\"}",
                "{\"after\":\"9\",\"channel\":\"b\",\"id\":2,\"type\":\"subscribe\"}"
            ]
        );
        assert!(!two.has_ended());
        two.ended.extend(["a".to_owned(), "b".to_owned()]);
        assert!(two.has_ended());
    }

    fn listener(server: Server, channels: &[&str]) -> Listener<Vec<u8>> {
        Listener {
            server,
            out: Vec::new(),
            printer: Printer {
                format: Format::Line,
                name_channel: channels.len() > 1,
                left: None,
            },
            place: place(channels),
            backoff: Backoff::default(),
            told: String::new(),
        }
    }

    fn printed(listener: &Listener<Vec<u8>>) -> &str {
        std::str::from_utf8(&listener.out).unwrap()
    }

    #[tokio::test]
    async fn a_stream_that_broke_off_goes_on_after_its_last_id() {
        let (server, requests) = play(vec![
            Act::stream("retry: 1\nid: 5\nevent: airwave.subscribed\ndata: {\"channel\":\"a\",\"cursor\":\"5\",\"resumed\":true}\n\nid: 6\nevent: e\ndata: x\n\nid: 7\nevent: e\ndata: cut"),
            Act::HangUp,
            Act::stream("retry: 1\nevent: airwave.error\ndata: {\"code\":\"unavailable\",\"message\":\"later\"}\n\n"),
            Act::stream("id: 7\nevent: e\ndata: y\n\nid: 8\nevent: airwave.end\ndata: {\"channel\":\"a\",\"cursor\":\"8\"}\n\n"),
        ])
        .await;
        let mut listener = listener(server, &["a"]);
        listener.place.given = Some("5".into());
        listener.listen(None).await.unwrap();
        assert_eq!(printed(&listener), "6 e x\n7 e y\n");
        let heads: Vec<String> = requests.await.unwrap().into_iter().map(|request| request.head).collect();
        assert!(heads[0].starts_with("get /channels/a?after=5 ") && !heads[0].contains("last-event-id"));
        for head in &heads[1..] {
            assert!(
                head.starts_with("get /channels/a ") && head.contains("last-event-id: 6"),
                "{head}"
            );
        }
    }

    #[tokio::test]
    async fn an_ended_channel_and_a_refusal_end_it() {
        let (server, _) = play(vec![Act::Answer("204 No Content", "", String::new())]).await;
        listener(server, &["a"]).listen(None).await.unwrap();

        let error = json!({"error": {"code": "forbidden", "message": "not you"}});
        let (server, _) = play(vec![Act::json("403 Forbidden", &error)]).await;
        let stop = listener(server, &["a"]).listen(None).await.unwrap_err();
        assert!(matches!(stop, Stop::Failed(why) if why == "not you (forbidden)"));
    }

    #[tokio::test]
    async fn a_count_ends_it_in_the_middle_of_what_came() {
        let (server, _) = play(vec![Act::stream("id: 1\ndata: x\n\nid: 2\ndata: y\n\nid: 3\ndata: z\n\n")]).await;
        let mut listener = listener(server, &["a"]);
        listener.printer.left = Some(2);
        listener.listen(Some(Transport::Sse)).await.unwrap();
        assert_eq!(printed(&listener), "1 message x\n2 message y\n");
    }

    #[tokio::test]
    async fn a_chosen_transport_is_not_left() {
        let error = json!({"error": {"code": "wrong-transport", "message": "m", "transport": "websocket", "url": "/"}});
        let (server, _) = play(vec![Act::json("406 Not Acceptable", &error)]).await;
        let stop = listener(server, &["a"]).listen(Some(Transport::Sse)).await.unwrap_err();
        assert!(matches!(stop, Stop::Failed(why) if why.contains("--transport websocket")));
    }

    #[tokio::test]
    async fn channels_without_a_transport_in_common_are_no_endless_search() {
        let elsewhere = |name: &str| {
            let error = json!({"error": {"code": "wrong-transport", "message": "m", "transport": name}});
            Act::json("406 Not Acceptable", &error)
        };
        // A client that goes on searching meets the third.
        let (server, _) = play(vec![
            elsewhere("websocket"),
            elsewhere("sse"),
            Act::Answer("403 Forbidden", "", String::new()),
        ])
        .await;
        let stop = listener(server, &["a", "b"]).listen(None).await.unwrap_err();
        assert!(matches!(stop, Stop::Failed(why) if why.contains("no transport in common")));
    }

    /// The server sends the client from SSE to WebSocket, drains in the middle, and is told the
    /// right cursors afterwards.
    #[tokio::test]
    async fn a_websocket_goes_on_from_each_cursor() {
        let (tcp, server) = super::super::fake::bind().await;
        let fake = tokio::spawn(async move {
            let (mut stream, _) = tcp.accept().await.unwrap();
            let body = json!({"error": {"code": "wrong-transport", "message": "m", "transport": "websocket"}}).to_string();
            let answer = format!("HTTP/1.1 406 Not Acceptable\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            tokio::io::AsyncWriteExt::write_all(&mut stream, answer.as_bytes())
                .await
                .unwrap();

            let mut commands = Vec::new();
            for frames in [
                &[
                    "{\"channel\":\"a\",\"id\":\"5\",\"event\":\"e\",\"data\":1}",
                    "{\"type\":\"heartbeat\"}",
                ][..],
                &[
                    "{\"channel\":\"b\",\"id\":\"9\",\"event\":\"e\",\"text\":\"x\"}",
                    "{\"type\":\"end\",\"channel\":\"a\",\"cursor\":\"5\"}",
                    "{\"type\":\"end\",\"channel\":\"b\",\"cursor\":\"9\"}",
                ],
            ] {
                let (stream, _) = tcp.accept().await.unwrap();
                let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
                for _ in 0..2 {
                    let Message::Text(text) = socket.next().await.unwrap().unwrap() else {
                        panic!()
                    };
                    commands.push(serde_json::from_str::<Value>(&text).unwrap());
                }
                for frame in frames {
                    socket.send(Message::text(*frame)).await.unwrap();
                }
                let close = CloseFrame {
                    code: 1012.into(),
                    reason: "retry=1".into(),
                };
                let _ = socket.close(Some(close)).await;
                while let Some(Ok(_)) = socket.next().await {}
            }
            commands
        });
        let mut listener = listener(server, &["a", "b"]);
        listener.listen(None).await.unwrap();
        assert_eq!(printed(&listener), "a 5 e 1\nb 9 e x\n");
        let after: Vec<Value> = fake
            .await
            .unwrap()
            .into_iter()
            .map(|command| command["after"].clone())
            .collect();
        assert_eq!(after, [Value::Null, Value::Null, json!("5"), Value::Null]);
    }

    #[test]
    fn errors_say_whether_to_come_back() {
        let body = |code: &str, more: Value| {
            let mut error = json!({"code": code, "message": "m"});
            if let (Some(error), Some(more)) = (error.as_object_mut(), more.as_object()) {
                error.extend(more.clone());
            }
            json!({ "error": error }).to_string()
        };
        let of = |status: u16, body: &str| of_status(StatusCode::from_u16(status).unwrap(), body.as_bytes());
        assert!(matches!(
            of(406, &body("wrong-transport", json!({"transport": "websocket"}))),
            Over::Elsewhere(Transport::Websocket)
        ));
        assert!(matches!(of(503, &body("unavailable", json!({}))), Over::Lost { .. }));
        assert!(matches!(of(502, "<html>"), Over::Lost { .. }));
        assert!(
            matches!(of(404, &body("unknown-channel", json!({}))), Over::Stop(Stop::Failed(why)) if why == "m (unknown-channel)")
        );
        assert!(matches!(of(200, "<html>"), Over::Stop(Stop::Failed(why)) if why.contains("is this Airwave")));

        let close = |code: u16, reason: &str| {
            of_close(Some(&CloseFrame {
                code: code.into(),
                reason: reason.into(),
            }))
        };
        assert!(matches!(close(1012, "retry=1500"), Over::Lost { wait: Some(wait), .. } if wait.as_millis() == 1500));
        assert!(matches!(close(1013, ""), Over::Lost { wait: None, .. }));
        assert!(matches!(close(4408, "too-slow"), Over::Lost { .. }));
        assert!(matches!(close(4403, "forbidden"), Over::Stop(_)));
        assert!(matches!(of_close(None), Over::Lost { .. }));
    }
}
