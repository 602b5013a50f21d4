//! `airwave listen`: the events of channels on standard output, everything else about them on
//! standard error. A connection that is lost is made again from the cursor.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::io::Write;
use std::time::Duration;

use airwave_core::ChannelName;
use airwave_protocol::sse::Parser;
use airwave_protocol::{ClientFrame, Code, Envelope, ErrorBody, Failure, ServerFrame, Subscribe, binary, close_code};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{Method, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use super::client::{Backoff, Connection, CredentialArgs, Server, ServerArgs, channel_name, query_value};
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
pub(super) struct ListenArgs {
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

pub(super) fn run(args: ListenArgs) -> Result<(), Stop> {
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
        place: ListenerProgress {
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

    fn event(&self, out: &mut Vec<u8>, event: &Envelope<'_>) {
        let Envelope {
            channel,
            id,
            event: name,
            payload,
            ..
        } = event;
        match self.format {
            Format::Raw => out.extend_from_slice(payload.as_bytes()),
            Format::Json => {
                let line = Envelope::new(&**channel, &**id, &**name, payload.clone());
                out.extend_from_slice(ServerFrame::Event(line).to_json().as_bytes());
            }
            Format::Line => {
                if self.name_channel {
                    out.extend_from_slice(format!("{channel} ").as_bytes());
                }
                let line = format!("{id} {name} {}", printable(&payload.as_text()));
                out.extend_from_slice(line.as_bytes());
            }
        }
        out.push(b'\n');
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
struct ListenerProgress {
    channels: Vec<ChannelName>,
    /// The cursor that was typed.
    given: Option<String>,
    /// The last id of the SSE stream: a cursor of all its channels.
    last_id: Option<String>,
    /// The cursor of each channel, as a WebSocket wants it.
    cursors: HashMap<String, String>,
    ended: HashSet<String>,
}

impl ListenerProgress {
    fn only(&self) -> Option<&ChannelName> {
        match &self.channels[..] {
            [only] => Some(only),
            _ => None,
        }
    }

    fn has_ended(&self) -> bool {
        self.channels.iter().all(|channel| self.ended.contains(channel.as_str()))
    }

    fn goes_on(&mut self, channel: &str, cursor: &str) {
        self.cursors.insert(channel.to_owned(), cursor.to_owned());
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
                let mut command = Subscribe::new(channel.as_str()).with_id(i as u64 + 1);
                let after = self.cursors.get(channel.as_str()).or(self.given.as_ref());
                command.after = after.map(|after| after.as_str().into());
                ClientFrame::Subscribe(command).to_json()
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
    fn refused(error: &Failure<'_>) -> Self {
        let text = printable(&error.to_string());
        match (error.known_code(), error.transport.as_deref().and_then(Transport::of)) {
            (Some(Code::WrongTransport), Some(transport)) => Over::Elsewhere(transport),
            (Some(code), _) if code.is_temporary() => Over::lost(text),
            _ if error.code == "too-slow" => Over::lost(text),
            _ => Over::Stop(Stop::Failed(text)),
        }
    }
}

/// The server is never silent for longer than its heartbeat, 15 s by default. The client gives up
/// after three missed ones.
const SILENCE: Duration = Duration::from_secs(50);
const LARGEST_ERROR: usize = 1 << 20;
/// The longest wait that a server may ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

struct Listener<W> {
    server: Server,
    out: W,
    printer: Printer,
    place: ListenerProgress,
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
    fn take<'a>(&mut self, frames: impl IntoIterator<Item = ServerFrame<'a>>) -> Option<Over> {
        let mut out = Vec::new();
        let over = frames.into_iter().find_map(|frame| self.take_one(&frame, &mut out));
        match self.out.write_all(&out).and_then(|()| self.out.flush()) {
            Ok(()) => over,
            Err(error) => Some(Over::Stop(Stop::of_output(error))),
        }
    }

    fn take_one(&mut self, frame: &ServerFrame<'_>, out: &mut Vec<u8>) -> Option<Over> {
        match frame {
            ServerFrame::Event(event) => {
                self.printer.event(out, event);
                self.place.goes_on(&event.channel, &event.id);
                if let Some(left) = &mut self.printer.left {
                    *left -= 1;
                }
                self.printer.is_done().then_some(Over::Done)
            }
            ServerFrame::Subscribed(subscribed) => {
                self.backoff.reset();
                self.told.clear();
                let (channel, cursor) = (&subscribed.channel, &subscribed.cursor);
                let how = if subscribed.resumed { "resumed" } else { "listening" };
                say(&printable(&format!("{channel}: {how} after {cursor}")));
                self.place.goes_on(channel, cursor);
                None
            }
            ServerFrame::Gap(gap) => {
                let (channel, cursor, reason) = (&gap.channel, &gap.cursor, &gap.reason);
                let after = gap.after.as_deref().unwrap_or("the cursor that was given");
                say(&printable(&format!(
                    "{channel}: gap: events after {after} are lost ({reason}); goes on after {cursor}"
                )));
                self.place.goes_on(channel, cursor);
                None
            }
            ServerFrame::End(end) => {
                say(&printable(&format!("{}: has ended", end.channel)));
                self.place.goes_on(&end.channel, &end.cursor);
                self.place.ended.insert(end.channel.to_string());
                self.place.has_ended().then_some(Over::Done)
            }
            ServerFrame::Stale(_) => {
                say("the server does not reach its broker; waiting");
                None
            }
            ServerFrame::Error(refused) => Some(Over::refused(&refused.error)),
            // Nothing that the listener must know.
            _ => None,
        }
    }

    /// Asks for the stream and waits for the head of the answer.
    async fn open_sse(&self, connection: &mut Connection) -> Result<Incoming, Over> {
        let mut request = self
            .server
            .request(Method::GET, &self.place.path())
            .header(ACCEPT, "text/event-stream");
        if let Some(id) = &self.place.last_id {
            request = request.header("Last-Event-ID", id);
        }
        let request = request
            .body(Full::<Bytes>::default())
            .map_err(|error| Over::Stop(Stop::Failed(error.to_string())))?;
        let response = timeout(SILENCE, connection.send_request(request))
            .await
            .map_err(|_| Over::lost("no answer"))?
            .map_err(|error| Over::lost(format!("no answer ({error})")))?;
        match response.status() {
            StatusCode::OK if is_stream(response.headers()) => Ok(response.into_body()),
            StatusCode::NO_CONTENT => {
                say("everything asked for has ended");
                Err(Over::Done)
            }
            status => {
                let body = Limited::new(response.into_body(), LARGEST_ERROR).collect();
                let body = timeout(SILENCE, body)
                    .await
                    .ok()
                    .and_then(Result::ok)
                    .map(|body| body.to_bytes());
                Err(of_status(status, &body.unwrap_or_default()))
            }
        }
    }

    async fn over_sse(&mut self) -> Over {
        // It stays until the stream is over.
        let mut connection = match self.server.open().await {
            Ok(connection) => connection,
            Err(why) => return Over::lost(why),
        };
        let mut body = match self.open_sse(&mut connection).await {
            Ok(body) => body,
            Err(over) => return over,
        };
        let mut parser = Parser::default();
        let wait = |parser: &Parser| parser.retry().map(|millis| Duration::from_millis(millis).min(LONGEST_WAIT));
        loop {
            let why = match timeout(SILENCE, body.frame()).await {
                Ok(Some(Ok(frame))) => {
                    let Ok(bytes) = frame.into_data() else { continue };
                    let mut events = Vec::new();
                    if parser.push(&bytes, &mut events).is_err() {
                        return Over::Stop(Stop::Failed("the stream is not one of Airwave's".into()));
                    }
                    let only = self.place.only().cloned();
                    let only = only.as_ref().map(ChannelName::as_str);
                    let frames = events.iter().filter_map(|event| ServerFrame::from_sse(event, only).ok());
                    let over = self.take(frames);
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
            let over = match timeout(SILENCE, socket.next()).await {
                Ok(Some(Ok(Message::Text(text)))) => self.take(ServerFrame::parse(&text).ok()),
                Ok(Some(Ok(Message::Binary(bytes)))) => self.take(of_binary(&bytes)),
                Ok(Some(Ok(Message::Close(frame)))) => return of_close(frame.as_ref()),
                Ok(Some(Ok(_))) => None,
                Ok(Some(Err(error))) => return Over::lost(error.to_string()),
                Ok(None) => return Over::lost("the connection ended"),
                Err(_) => return Over::lost("the server has fallen silent"),
            };
            if let Some(over) = over {
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

/// The event of a binary frame.
fn of_binary(frame: &[u8]) -> Option<ServerFrame<'_>> {
    let frame = binary::Frame::decode(frame).ok()?;
    Some(ServerFrame::Event(frame.into_event()))
}

/// An answer that is no stream.
fn of_status(status: StatusCode, body: &[u8]) -> Over {
    match ErrorBody::parse(body) {
        Ok(body) => Over::refused(&body.error),
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
    let wait = close_code::retry_of(&frame.reason).map(|millis| Duration::from_millis(millis).min(LONGEST_WAIT));
    let why = printable(&format!("closed ({code} {})", frame.reason));
    let is_final = Code::from_close_code(code).map_or((4400..=4499).contains(&code), |code| !code.is_temporary());
    match code {
        close_code::TOO_SLOW => Over::Lost { why, wait },
        _ if is_final => Over::Stop(Stop::Failed(why)),
        _ => Over::Lost { why, wait },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::fake::{Act, play};
    use super::*;
    use airwave_protocol::sse::Event;
    use airwave_protocol::{Json, Payload};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn name(text: &str) -> ChannelName {
        ChannelName::new(text).unwrap()
    }

    fn place(channels: &[&str]) -> ListenerProgress {
        ListenerProgress {
            channels: channels.iter().map(|text| name(text)).collect(),
            given: None,
            last_id: None,
            cursors: HashMap::new(),
            ended: HashSet::new(),
        }
    }

    #[test]
    fn both_transports_say_the_same() {
        let data = Payload::Json(Json::parse("{\"text\":\"hi\"}").unwrap());
        let expected = ServerFrame::Event(Envelope::new("chat/lobby", "17", "say", data));
        let envelope = "{\"channel\":\"chat/lobby\",\"id\":\"17\",\"event\":\"say\",\"data\":{\"text\":\"hi\"}}";
        let one = Event::new("17", "say", "{\"text\":\"hi\"}");
        assert_eq!(ServerFrame::from_sse(&one, Some("chat/lobby")).unwrap(), expected);
        let many = Event::new("AQtoken", "say", envelope);
        assert_eq!(ServerFrame::from_sse(&many, None).unwrap(), expected);
        assert_eq!(ServerFrame::parse(envelope).unwrap(), expected);

        let binary = Envelope::new("a", "17", "e", Payload::binary(vec![0, 255]));
        let block = Event::new("17", "e;base64", "AP8=");
        assert_eq!(
            ServerFrame::from_sse(&block, Some("a")).unwrap(),
            ServerFrame::Event(binary.clone())
        );
        let text = "{\"channel\":\"a\",\"id\":17,\"event\":\"e\",\"base64\":\"AP8=\"}";
        assert_eq!(ServerFrame::parse(text).unwrap(), ServerFrame::Event(binary.clone()));
        assert_eq!(
            of_binary(b"\x01\x01a\x01e\0\0\0\0\0\0\0\x11\0\xff"),
            Some(ServerFrame::Event(binary))
        );
    }

    #[test]
    fn null_is_printed_like_other_data() {
        let mut listener = listener(Server::parse("http://127.0.0.1:1").unwrap(), &["a"]);
        let frame = ServerFrame::parse("{\"channel\":\"a\",\"id\":\"17\",\"event\":\"e\",\"data\":null}").unwrap();
        assert!(listener.take([frame]).is_none());
        assert_eq!(printed(&listener), "17 e null\n");
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = (of_binary(&bytes), of_status(StatusCode::OK, &bytes));
        }

        #[test]
        fn what_is_printed_is_one_line_without_controls(text in "(\\PC|\\p{Cc}){0,40}") {
            prop_assert!(!printable(&text).chars().any(|c| c.is_control() && c != '\t'));
        }
    }

    #[test]
    fn an_event_is_one_line() {
        let print = |format, name_channel, payload: Payload<'_>| {
            let mut out = Vec::new();
            Printer {
                format,
                name_channel,
                left: None,
            }
            .event(&mut out, &Envelope::new("a/b", "17", "e", payload));
            String::from_utf8_lossy(&out).into_owned()
        };
        let text = || Payload::text("x\ny\x1b[2J");
        assert_eq!(print(Format::Line, false, text()), "17 e x\\ny\\u{1b}[2J\n");
        assert_eq!(print(Format::Line, true, text()), "a/b 17 e x\\ny\\u{1b}[2J\n");
        assert_eq!(print(Format::Raw, false, text()), "x\ny\x1b[2J\n");
        assert_eq!(
            print(Format::Json, false, text()),
            "{\"channel\":\"a/b\",\"id\":\"17\",\"event\":\"e\",\"text\":\"x\\ny\\u001b[2J\"}\n"
        );
        assert_eq!(
            print(Format::Json, false, Payload::Json(Json::parse("{\"n\": 1.50}").unwrap())),
            "{\"channel\":\"a/b\",\"id\":\"17\",\"event\":\"e\",\"data\":{\"n\": 1.50}}\n"
        );
        assert_eq!(print(Format::Line, false, Payload::binary(vec![0, 255])), "17 e AP8=\n");
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
                "{\"type\":\"subscribe\",\"id\":1,\"channel\":\"a\",\"after\":\"5\"}",
                "{\"type\":\"subscribe\",\"id\":2,\"channel\":\"b\",\"after\":\"9\"}"
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

    /// Accepts a WebSocket, takes two commands, sends the frames and closes as a node that drains.
    async fn drained_after(tcp: &tokio::net::TcpListener, frames: &[&'static str]) -> Vec<Value> {
        let (stream, _) = tcp.accept().await.unwrap();
        let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        let mut commands = Vec::new();
        for _ in 0..2 {
            let Message::Text(text) = socket.next().await.unwrap().unwrap() else {
                panic!()
            };
            commands.push(serde_json::from_str(&text).unwrap());
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
        commands
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
                commands.extend(drained_after(&tcp, frames).await);
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
