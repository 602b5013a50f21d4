//! `airwave publish`: one event from the command line, or every line of standard input. What was
//! sent is sent again, under the same idempotency keys, until the server has answered for it, so
//! that neither a lost answer nor a restart makes an event twice or not at all.

use std::io::{BufRead, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use airwave_core::{ChannelName, EventName, Key};
use airwave_protocol::{Attributes, Code, ErrorBody, Failure, Payload, Publication, PublishAnswer};
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Method, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::client::{Backoff, Connection, Server, ServerArgs, bearer, chance, channel_name};
use super::{Stop, block_on, say};

pub(super) const HELP: &str = "\
DATA is sent as JSON if it is JSON, else as text; without DATA, or with -, standard input is read. A line break at the end of
standard input is not sent. Prints the cursor of the (last) event, from which `airwave listen --after` goes on.

With --lines each line of standard input is one event, as text (--json: as JSON), in order. What waits is sent in one request.
A server that cannot be reached is tried again for --retry-for; nothing is sent twice.

Examples:
  airwave publish orders/abc '{\"status\":\"shipped\"}' --event order-update
  airwave publish orders/abc --end
  tail -f app.log | airwave publish logs/app --lines --event line
  airwave publish board/1 --binary drawing.bin --key shape-7
  airwave publish docs/1 '# Title' --text --attribute content-type=text/markdown";

#[derive(clap::Args)]
pub(super) struct PublishArgs {
    /// The channel, such as orders/abc
    #[arg(value_parser = channel_name)]
    channel: ChannelName,
    /// The data; - or nothing: standard input
    #[arg(conflicts_with_all = ["lines", "binary"])]
    data: Option<String>,
    /// The event's name [default: message]
    #[arg(long, value_name = "NAME", value_parser = |text: &str| EventName::new(text).map_err(|e| e.to_string()))]
    event: Option<EventName>,
    /// What the event is about, such as AAPL
    #[arg(long, value_name = "KEY", value_parser = |text: &str| Key::new(text).map_err(|e| e.to_string()))]
    key: Option<Key>,
    /// What the event says about itself beside its data, such as content-type=text/markdown; once
    /// for each attribute
    #[arg(long = "attribute", value_name = "NAME=TEXT", value_parser = attribute)]
    attributes: Vec<(String, String)>,
    /// Each line of standard input is one event
    #[arg(long, conflicts_with = "binary")]
    lines: bool,
    /// The data must be JSON
    #[arg(long, conflicts_with_all = ["text", "binary"])]
    json: bool,
    /// The data is text, even if it looks like JSON
    #[arg(long, conflicts_with = "binary")]
    text: bool,
    /// Send the bytes of a file
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// End the channel after this event (alone: end it now)
    #[arg(long)]
    end: bool,
    #[command(flatten)]
    server: ServerArgs,
    /// The publish token; other users of the machine do not see it in the variable, or in a file
    #[arg(long, env = "AIRWAVE_PUBLISH_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// A file that holds the publish token; goes before --token and the variable
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// How long to try again when the server cannot be reached
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = airwave::config::parse_duration)]
    retry_for: Duration,
}

pub(super) fn run(args: PublishArgs) -> Result<(), Stop> {
    let server = args.server.server()?;
    let authorization = bearer(args.token, args.token_file.as_deref())?;
    let template = Template {
        channel: args.channel,
        event: args.event,
        key: args.key,
        attributes: attributes(args.attributes)?,
        run: format!("cli-{:016x}{:016x}", chance(), chance()),
    };
    let mut publisher = Publisher {
        server,
        authorization,
        retry_for: args.retry_for,
        connection: None,
    };
    let cursor = if args.lines {
        block_on(publisher.lines(read_lines(), &template, args.json, args.end))?
    } else {
        let data = one(args.data.as_deref(), args.binary.as_deref(), args.json, args.text, args.end)?;
        Some(block_on(publisher.one(&template, data, args.end))?)
    };
    match cursor {
        Some(cursor) => writeln!(std::io::stdout(), "{cursor}").map_err(Stop::of_output),
        None => Ok(()),
    }
}

/// More than any server takes; a file that was not meant is not read to its end.
const MOST_INPUT: u64 = 64 << 20;

/// What is to be published; `None`: only the end.
pub(super) fn one(
    data: Option<&str>,
    binary: Option<&Path>,
    json: bool,
    text: bool,
    end: bool,
) -> Result<Option<Payload<'static>>, Stop> {
    if let Some(path) = binary {
        let wrong = |error: std::io::Error| Stop::Wrong(format!("cannot read {}: {error}", path.display()));
        let file = std::fs::File::open(path).map_err(wrong)?;
        return Ok(Some(Payload::binary(all_of(file).map_err(wrong)?)));
    }
    let words = match data {
        None if end => return Ok(None),
        None | Some("-") => {
            let stdin = std::io::stdin();
            if stdin.is_terminal() {
                say("reading the data from the terminal; end it with Ctrl-D");
            }
            let bytes = all_of(stdin.lock()).map_err(|error| Stop::Wrong(format!("cannot read standard input: {error}")))?;
            let words = String::from_utf8(bytes).map_err(|_| {
                Stop::Wrong("standard input is not UTF-8 text; write --binary /dev/stdin to send its bytes".into())
            })?;
            let end = words
                .strip_suffix('\n')
                .map_or(&*words, |words| words.strip_suffix('\r').unwrap_or(words));
            end.to_owned()
        }
        Some(words) => words.to_owned(),
    };
    match (json, text) {
        (_, true) => Ok(Some(Payload::text(words))),
        (true, _) => match RawValue::from_string(words) {
            Ok(raw) => Ok(Some(Payload::Json(raw.into()))),
            Err(error) => Err(Stop::Wrong(format!("the data is not JSON: {error}"))),
        },
        _ => Ok(Some(match serde_json::from_str::<Box<RawValue>>(&words) {
            Ok(raw) => Payload::Json(raw.into()),
            Err(_) => Payload::text(words),
        })),
    }
}

fn all_of(from: impl Read) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(MOST_INPUT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST_INPUT {
        return Err(std::io::Error::other("more than 64 MiB"));
    }
    Ok(bytes)
}

/// Reads `NAME=TEXT`.
pub(super) fn attribute(text: &str) -> Result<(String, String), String> {
    let (name, value) = text
        .split_once('=')
        .ok_or_else(|| "write NAME=TEXT, such as content-type=text/markdown".to_owned())?;
    let alone = airwave_core::Attributes::new().with(name, value);
    alone.map_err(|error| error.to_string())?;
    Ok((name.to_owned(), value.to_owned()))
}

/// All attributes of a message.
pub(super) fn attributes(given: Vec<(String, String)>) -> Result<Attributes<'static>, Stop> {
    let mut all = airwave_core::Attributes::new();
    for (name, value) in &given {
        if all.get(name).is_some() {
            return Err(Stop::Wrong(format!("the attribute '{name}' is given twice")));
        }
        all = all.with(name, value).map_err(|error| Stop::Wrong(error.to_string()))?;
    }
    let owned = given.into_iter().map(|(name, value)| (name.into(), value.into()));
    Ok(Attributes(owned.collect()))
}

/// What all publications of one run have in common.
struct Template {
    channel: ChannelName,
    event: Option<EventName>,
    key: Option<Key>,
    attributes: Attributes<'static>,
    /// The first part of each idempotency key.
    run: String,
}

impl Template {
    /// The JSON of the publication with this number.
    fn fill(&self, number: u64, payload: Option<&Payload<'_>>, end: bool) -> String {
        let channel = self.channel.as_str();
        let mut publication = match payload {
            Some(payload) => Publication::new(channel, payload.clone()).and_end(end),
            None => Publication::end_of(channel),
        };
        if payload.is_some() {
            publication.event = self.event.as_ref().map(|event| event.as_str().into());
            publication.key = self.key.as_ref().map(|key| key.as_str().into());
            publication.attributes = Some(self.attributes.clone()).filter(|attributes| !attributes.is_empty());
        }
        publication.with_idempotency_key(format!("{}-{number}", self.run)).to_json()
    }
}

/// One line on its way: its number in the input, and the JSON of its publication.
#[derive(Debug, Clone, PartialEq, Eq)]
struct NumberedPublication {
    line: u64,
    json: String,
}

/// The most publications in one request, and about the most bytes: a body may have 64 KiB by
/// default.
const MOST_ITEMS: usize = 1000;
const MOST_BYTES: usize = 60 << 10;

/// How many of `items`, from the first on, go into one request. At least one: what is too large
/// alone is the server's to refuse.
fn batch(items: &[NumberedPublication]) -> usize {
    let mut bytes = 2;
    let fits = items
        .iter()
        .take(MOST_ITEMS)
        .take_while(|item| {
            bytes += item.json.len() + 1;
            bytes <= MOST_BYTES
        })
        .count();
    fits.max(1).min(items.len())
}

fn array(items: &[NumberedPublication]) -> Bytes {
    let all: Vec<&str> = items.iter().map(|item| item.json.as_str()).collect();
    format!("[{}]", all.join(",")).into()
}

/// Whether it may go differently another time, with nothing changed.
pub(super) fn passes(refusal: &Failure<'_>) -> bool {
    refusal.known_code().is_some_and(Code::is_temporary)
}

/// Whether it is about this one publication: the next one may be well.
fn is_of_one(refusal: &Failure<'_>) -> bool {
    matches!(refusal.known_code(), Some(Code::BadRequest | Code::TooLarge))
}

/// A whole request's error, from its body or from its status alone.
pub(super) fn refusal(status: StatusCode, body: &[u8]) -> Failure<'_> {
    match ErrorBody::parse(body) {
        Ok(body) => body.error,
        Err(_) => Failure::new(
            status.as_u16().to_string(),
            format!("the server answered {status}; is this Airwave, and the URL where it is mounted?"),
        ),
    }
}

/// What became of a batch.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    /// The last cursor.
    cursor: Option<String>,
    /// What is to be sent again.
    again: Vec<NumberedPublication>,
    /// Why, for people.
    why: String,
    /// Lines that were refused for their own sake: number, reason.
    refused: Vec<(u64, String)>,
    /// Why nothing more can be published.
    stop: Option<String>,
}

/// Reads the answer to `items`.
fn outcome(items: Vec<NumberedPublication>, status: StatusCode, body: &[u8]) -> Outcome {
    let mut outcome = Outcome::default();
    let answers: Vec<PublishAnswer<'_>> = serde_json::from_slice(body).unwrap_or_default();
    if answers.len() != items.len() {
        // The request as a whole was refused, or this is no answer of Airwave's.
        let refusal = refusal(status, body);
        if status.is_server_error() || passes(&refusal) {
            outcome.why = refusal.to_string();
            outcome.again = items;
        } else if let ([item], true) = (&items[..], is_of_one(&refusal)) {
            outcome.refused.push((item.line, refusal.to_string()));
        } else {
            outcome.stop = Some(refusal.to_string());
        }
        return outcome;
    }
    for (item, answer) in items.into_iter().zip(answers) {
        match answer {
            PublishAnswer::Published(published) => outcome.cursor = Some(published.cursor.into_owned()),
            PublishAnswer::Refused(ErrorBody { error, .. }) if passes(&error) => {
                outcome.why = error.to_string();
                outcome.again.push(item);
            }
            PublishAnswer::Refused(ErrorBody { error, .. }) if is_of_one(&error) => {
                outcome.refused.push((item.line, error.to_string()));
            }
            PublishAnswer::Refused(ErrorBody { error, .. }) => {
                outcome.stop.get_or_insert(format!("line {}: {error}", item.line));
            }
            // Nothing else is in the protocol.
            _ => {}
        }
    }
    outcome
}

/// How long one request may take before its answer counts as lost.
const ANSWER: Duration = Duration::from_secs(10);
const LARGEST_ANSWER: usize = 4 << 20;

struct Publisher {
    server: Server,
    authorization: Option<HeaderValue>,
    retry_for: Duration,
    connection: Option<Connection>,
}

/// Tries until the time is up, and says so in a line when it begins and when it is over.
struct Patience {
    server: String,
    limit: Duration,
    since: Option<Instant>,
    backoff: Backoff,
}

impl Patience {
    /// Waits after a failure.
    async fn wait(&mut self, why: &str) -> Result<(), Stop> {
        let since = *self.since.get_or_insert_with(|| {
            if !self.limit.is_zero() {
                say(&format!("{}: {why}; trying again for {:?}", self.server, self.limit));
            }
            Instant::now()
        });
        let left = self.limit.saturating_sub(since.elapsed());
        if left.is_zero() {
            return Err(Stop::Failed(format!("{}: {why}; gave up", self.server)));
        }
        sleep(self.backoff.next().min(left)).await;
        Ok(())
    }

    fn over(&mut self) {
        if self.since.take().is_some() {
            say(&format!("{} answers again", self.server));
        }
        self.backoff.reset();
    }
}

impl Publisher {
    fn patience(&self) -> Patience {
        Patience {
            server: self.server.to_string(),
            limit: self.retry_for,
            since: None,
            backoff: Backoff::default(),
        }
    }

    /// One request and its answer. An error leaves open whether it was done.
    async fn attempt(&mut self, body: Bytes) -> Result<(StatusCode, Bytes), String> {
        // A connection that has been quiet may have been closed by the server just now, which is no
        // trouble worth a word.
        if let Some(connection) = self.connection.take().filter(|connection| !connection.is_closed())
            && let Ok(answer) = self.exchange(Some(connection), body.clone()).await
        {
            return Ok(answer);
        }
        self.exchange(None, body).await
    }

    async fn exchange(&mut self, connection: Option<Connection>, body: Bytes) -> Result<(StatusCode, Bytes), String> {
        let exchange = async {
            let mut connection = match connection {
                Some(connection) => connection,
                None => self.server.open().await?,
            };
            connection.ready().await.map_err(|_| "the connection was closed".to_owned())?;
            let mut request = self
                .server
                .request(Method::POST, "/publish")
                .header(CONTENT_TYPE, "application/json");
            if let Some(authorization) = &self.authorization {
                request = request.header(AUTHORIZATION, authorization);
            }
            let request = request.body(Full::new(body)).map_err(|error| error.to_string())?;
            let response = connection
                .send_request(request)
                .await
                .map_err(|error| format!("no answer ({error})"))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), LARGEST_ANSWER)
                .collect()
                .await
                .map_err(|_| "the answer broke off".to_owned())?;
            self.connection = Some(connection);
            Ok((status, body.to_bytes()))
        };
        timeout(ANSWER, exchange)
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {} s", ANSWER.as_secs())))
    }

    async fn one(&mut self, template: &Template, data: Option<Payload<'static>>, end: bool) -> Result<String, Stop> {
        let body = Bytes::from(template.fill(0, data.as_ref(), end));
        let mut patience = self.patience();
        loop {
            let why = match self.attempt(body.clone()).await {
                Ok((status, answer)) if status.is_success() => match serde_json::from_slice(&answer) {
                    Ok(PublishAnswer::Published(published)) => return Ok(published.cursor.into_owned()),
                    _ => return Err(Stop::Failed(refusal(status, &answer).to_string())),
                },
                Ok((status, answer)) => {
                    let refusal = refusal(status, &answer);
                    if !(status.is_server_error() || passes(&refusal)) {
                        return Err(Stop::Failed(refusal.to_string()));
                    }
                    refusal.to_string()
                }
                Err(why) => why,
            };
            patience.wait(&why).await?;
        }
    }

    /// Publishes all lines. The last cursor.
    async fn lines(
        &mut self,
        mut lines: mpsc::Receiver<String>,
        template: &Template,
        json: bool,
        end: bool,
    ) -> Result<Option<String>, Stop> {
        let (mut cursor, mut failed, mut number) = (None, 0u64, 0);
        let mut waiting: Vec<String> = Vec::new();
        let mut items: Vec<NumberedPublication> = Vec::new();
        loop {
            while let Some(count) = (!items.is_empty()).then(|| batch(&items)) {
                let rest = items.split_off(count);
                let (last, refused) = self.deliver(std::mem::replace(&mut items, rest)).await?;
                cursor = last.or(cursor);
                failed += refused;
            }
            waiting.clear();
            if lines.recv_many(&mut waiting, MOST_ITEMS).await == 0 {
                break;
            }
            for text in waiting.drain(..) {
                number += 1;
                let data = if json {
                    match RawValue::from_string(text) {
                        Ok(raw) => Payload::Json(raw.into()),
                        Err(error) => {
                            say(&format!("line {number} is not JSON and was left out: {error}"));
                            failed += 1;
                            continue;
                        }
                    }
                } else {
                    Payload::text(text)
                };
                items.push(NumberedPublication {
                    line: number,
                    json: template.fill(number, Some(&data), false),
                });
            }
        }
        if end {
            cursor = Some(self.one(template, None, true).await?);
        }
        match failed {
            0 => Ok(cursor),
            _ => {
                if let Some(cursor) = cursor {
                    writeln!(std::io::stdout(), "{cursor}").map_err(Stop::of_output)?;
                }
                Err(Stop::Failed(format!("{failed} of {number} lines were not published")))
            }
        }
    }

    /// Sends one batch until each of its items is done or refused. The last cursor, and how many
    /// were refused.
    async fn deliver(&mut self, mut items: Vec<NumberedPublication>) -> Result<(Option<String>, u64), Stop> {
        let mut patience = self.patience();
        let (mut cursor, mut refused) = (None, 0);
        loop {
            let why = match self.attempt(array(&items)).await {
                Err(why) => why,
                Ok((status, body)) => {
                    let outcome = outcome(items, status, &body);
                    for (line, reason) in &outcome.refused {
                        say(&format!("line {line} was refused: {reason}"));
                        refused += 1;
                    }
                    cursor = outcome.cursor.or(cursor);
                    if let Some(stop) = outcome.stop {
                        return Err(Stop::Failed(stop));
                    }
                    if outcome.again.is_empty() {
                        patience.over();
                        return Ok((cursor, refused));
                    }
                    items = outcome.again;
                    outcome.why
                }
            };
            patience.wait(&why).await?;
        }
    }
}

/// The longest line that is taken; what is longer is cut into several events rather than filling
/// the memory.
const LONGEST_LINE: u64 = 1 << 20;

/// Standard input, line by line, from a thread of its own: reading blocks. It ends with the
/// process.
fn read_lines() -> mpsc::Receiver<String> {
    // A full channel stops the reader, and that stops the program that writes into the pipe.
    let (sender, receiver) = mpsc::channel(MOST_ITEMS);
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        loop {
            match next_line(&mut stdin) {
                Ok(Some(line)) => {
                    if sender.blocking_send(line).is_err() {
                        return;
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    say(&format!("cannot read standard input: {error}"));
                    return;
                }
            }
        }
    });
    receiver
}

/// The next line without its line break; bytes that are no UTF-8 become the replacement character.
fn next_line(from: &mut impl BufRead) -> std::io::Result<Option<String>> {
    let mut line = Vec::new();
    if from.take(LONGEST_LINE).read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    if line.pop_if(|byte| *byte == b'\n').is_some() {
        let _ = line.pop_if(|byte| *byte == b'\r');
    }
    Ok(Some(String::from_utf8_lossy(&line).into_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::fake::{Act, Seen, bind, play, read};
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn template() -> Template {
        Template {
            channel: ChannelName::new("logs/app").unwrap(),
            event: Some(EventName::new("line").unwrap()),
            key: None,
            attributes: Attributes::default(),
            run: "run".into(),
        }
    }

    fn items(sizes: &[usize]) -> Vec<NumberedPublication> {
        sizes
            .iter()
            .enumerate()
            .map(|(i, size)| NumberedPublication {
                line: i as u64 + 1,
                json: "x".repeat(*size),
            })
            .collect()
    }

    #[test]
    fn data_is_json_if_it_is_json() {
        let read = |words: &str, json, text| one(Some(words), None, json, text, false);
        assert!(matches!(read("{\"a\": 1}", false, false), Ok(Some(Payload::Json(raw))) if raw.get() == "{\"a\": 1}"));
        assert!(matches!(read("17", false, false), Ok(Some(Payload::Json(_)))));
        assert!(matches!(read("17", false, true), Ok(Some(Payload::Text(text))) if text == "17"));
        assert!(matches!(read("hello", false, false), Ok(Some(Payload::Text(text))) if text == "hello"));
        assert!(matches!(read("hello", true, false), Err(Stop::Wrong(_))));
        assert!(
            matches!(one(None, None, false, false, true), Ok(None)),
            "--end alone reads nothing"
        );
        assert!(matches!(
            one(None, Some(Path::new("/nowhere")), false, false, false),
            Err(Stop::Wrong(_))
        ));
    }

    #[test]
    fn a_publication_is_as_the_protocol_has_it() {
        let fill = |data: Option<&Payload<'_>>, end| serde_json::from_str::<Value>(&template().fill(7, data, end)).unwrap();
        assert_eq!(
            fill(Some(&Payload::text("a\nb")), false),
            json!({"channel": "logs/app", "event": "line", "text": "a\nb", "idempotency_key": "run-7"})
        );
        assert_eq!(
            fill(Some(&Payload::binary(vec![0, 255])), true),
            json!({"channel": "logs/app", "event": "line", "base64": "AP8=", "idempotency_key": "run-7", "end": true})
        );
        let raw = RawValue::from_string("{\"n\":1.50}".into()).unwrap();
        assert!(
            template()
                .fill(1, Some(&Payload::Json(raw.into())), false)
                .contains("\"data\":{\"n\":1.50}"),
            "as it was typed"
        );
        assert_eq!(
            fill(None, true),
            json!({"channel": "logs/app", "idempotency_key": "run-7", "end": true})
        );
        let mut template = template();
        template.attributes = attributes(vec![("b".into(), "1=2".into()), ("a".into(), String::new())]).unwrap();
        let filled: Value = serde_json::from_str(&template.fill(1, Some(&Payload::text("")), false)).unwrap();
        assert_eq!(filled["attributes"], json!({"a": "", "b": "1=2"}));
    }

    #[test]
    fn attributes_are_checked_before_anything_is_sent() {
        assert_eq!(attribute("a=b=c"), Ok(("a".into(), "b=c".into())));
        for wrong in ["a", "=b", "a b=c", "airwave.x=1", "a=\n"] {
            assert!(attribute(wrong).is_err(), "{wrong}");
        }
        let pair = |name: &str| (name.to_owned(), String::new());
        assert!(matches!(attributes(vec![pair("a"), pair("a")]), Err(Stop::Wrong(why)) if why.contains("twice")));
        assert!(attributes((0..9).map(|n| pair(&format!("n{n}"))).collect()).is_err());
    }

    #[test]
    fn batches_are_bounded_in_number_and_bytes() {
        assert_eq!(batch(&items(&[1; 2000])), 1000);
        assert_eq!(batch(&items(&[30_000, 30_000, 30_000])), 2);
        assert_eq!(batch(&items(&[100_000, 1])), 1, "what is too large goes alone");
        assert_eq!(batch(&items(&[1, 100_000])), 1);
        assert_eq!(array(&items(&[1, 2])), "[x,xx]");
    }

    proptest! {
        #[test]
        fn batches_keep_everything_in_order(sizes in prop::collection::vec(0usize..100_000, 1..50)) {
            let all = items(&sizes);
            let mut rest = all.clone();
            let mut sent = Vec::new();
            while !rest.is_empty() {
                let tail = rest.split_off(batch(&rest));
                prop_assert!(!rest.is_empty());
                prop_assert!(rest.len() == 1 || array(&rest).len() <= MOST_BYTES);
                sent.append(&mut rest);
                rest = tail;
            }
            prop_assert_eq!(sent, all);
        }
    }

    #[test]
    fn what_was_done_is_not_sent_again() {
        let body = json!([
            {"channel": "a", "cursor": "5", "duplicate": false},
            {"error": {"code": "unavailable", "message": "no broker"}},
            {"error": {"code": "too-large", "message": "too long"}},
            {"channel": "a", "cursor": "6", "duplicate": true},
        ]);
        let all = items(&[1, 1, 1, 1]);
        let outcome = outcome(all.clone(), StatusCode::MULTI_STATUS, body.to_string().as_bytes());
        assert_eq!(
            outcome,
            Outcome {
                cursor: Some("6".into()),
                again: vec![all[1].clone()],
                why: "no broker (unavailable)".into(),
                refused: vec![(3, "too long (too-large)".into())],
                stop: None,
            }
        );
    }

    #[test]
    fn a_refused_request_stops_and_a_passing_trouble_does_not() {
        let error = |code: &str| json!({"error": {"code": code, "message": "m"}}).to_string();
        let two = || items(&[1, 1]);
        let stop = outcome(two(), StatusCode::UNAUTHORIZED, error("unauthorized").as_bytes());
        assert_eq!((stop.stop.as_deref(), stop.again.len()), (Some("m (unauthorized)"), 0));
        let again = outcome(two(), StatusCode::SERVICE_UNAVAILABLE, error("unavailable").as_bytes());
        assert_eq!((again.stop, again.again), (None, two()));
        let again = outcome(two(), StatusCode::BAD_GATEWAY, b"<html>");
        assert_eq!((again.stop, again.again), (None, two()));
        let stop = outcome(two(), StatusCode::NOT_FOUND, b"<html>");
        assert!(stop.stop.unwrap().contains("is this Airwave"));
        let stop = outcome(two(), StatusCode::OK, b"{}");
        assert!(stop.stop.is_some(), "an answer that answers nothing is not taken for one");
        let one = outcome(items(&[1]), StatusCode::PAYLOAD_TOO_LARGE, error("too-large").as_bytes());
        assert_eq!((one.refused.len(), one.stop), (1, None));
        let body = json!([{"error": {"code": "ended", "message": "over"}}, {"error": {"code": "ended", "message": "over"}}]);
        let ended = outcome(two(), StatusCode::CONFLICT, body.to_string().as_bytes());
        assert_eq!(ended.stop.as_deref(), Some("line 1: over (ended)"));
    }

    fn publisher(server: Server, retry_for: Duration) -> Publisher {
        Publisher {
            server,
            authorization: None,
            retry_for,
            connection: None,
        }
    }

    fn done(cursor: &str) -> Value {
        json!({"channel": "logs/app", "cursor": cursor, "duplicate": false})
    }

    fn unavailable() -> Value {
        json!({"error": {"code": "unavailable", "message": "no broker"}})
    }

    /// The idempotency keys of a request's publications.
    fn keys(seen: &Seen) -> Vec<String> {
        let body: Value = serde_json::from_str(&seen.body).unwrap();
        let all = body.as_array().cloned().unwrap_or_else(|| vec![body]);
        all.iter()
            .map(|item| item["idempotency_key"].as_str().unwrap().to_owned())
            .collect()
    }

    const PATIENT: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn one_event_is_sent_under_one_key_until_it_is_answered() {
        let (server, requests) = play(vec![
            Act::HangUp,
            Act::json("503 Service Unavailable", &unavailable()),
            Act::Answer("502 Bad Gateway", "", "<html>".into()),
            Act::json("200 OK", &done("17")),
        ])
        .await;
        let mut publisher = publisher(server, PATIENT);
        publisher.authorization = Some(HeaderValue::from_static("Bearer t0ken"));
        let cursor = publisher.one(&template(), Some(Payload::text("x")), false).await.unwrap();
        assert_eq!(cursor, "17");
        let requests = requests.await.unwrap();
        assert_eq!(requests.len(), 4);
        for request in &requests {
            assert!(request.head.starts_with("post /publish http/1.1\r\n"), "{}", request.head);
            assert!(request.head.contains("authorization: bearer t0ken"));
            assert_eq!(keys(request), ["run-0"]);
        }
    }

    /// The server answers and then closes its side, as it does with a connection that has been
    /// quiet for long.
    #[tokio::test]
    async fn a_connection_that_went_stale_is_no_trouble() {
        let (tcp, server) = bind().await;
        let fake = tokio::spawn(async move {
            for _ in 0..2 {
                let (mut stream, _) = tcp.accept().await.unwrap();
                read(&mut stream).await;
                let body = done("1").to_string();
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                tokio::io::AsyncWriteExt::write_all(&mut stream, answer.as_bytes())
                    .await
                    .unwrap();
            }
        });
        // Without patience the first error would be the end.
        let mut publisher = publisher(server, Duration::ZERO);
        for _ in 0..2 {
            assert_eq!(publisher.one(&template(), None, true).await.unwrap(), "1");
            assert!(publisher.connection.is_some());
        }
        fake.await.unwrap();
    }

    #[tokio::test]
    async fn what_is_refused_is_not_tried_again() {
        let error = json!({"error": {"code": "ended", "message": "it is over"}});
        let (server, requests) = play(vec![Act::json("409 Conflict", &error)]).await;
        let stop = publisher(server, PATIENT).one(&template(), None, true).await.unwrap_err();
        assert!(matches!(stop, Stop::Failed(why) if why == "it is over (ended)"));
        assert_eq!(requests.await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn patience_ends() {
        let (listener, server) = bind().await;
        // No server listens there any more.
        drop(listener);
        let stop = publisher(server, Duration::ZERO)
            .one(&template(), None, true)
            .await
            .unwrap_err();
        assert!(matches!(stop, Stop::Failed(why) if why.contains("connection refused; gave up")));
    }

    #[tokio::test]
    async fn lines_go_on_where_the_answer_left_them() {
        let too_large = json!({"error": {"code": "too-large", "message": "too long"}});
        let (server, requests) = play(vec![
            Act::HangUp,
            Act::json("207 Multi-Status", &json!([done("1"), unavailable(), too_large])),
            Act::json("200 OK", &json!([done("2")])),
            Act::json("200 OK", &done("3")),
        ])
        .await;
        let (sender, lines) = mpsc::channel(10);
        for line in ["a", "b", "c"] {
            sender.send(line.to_owned()).await.unwrap();
        }
        drop(sender);
        let stop = publisher(server, PATIENT)
            .lines(lines, &template(), false, true)
            .await
            .unwrap_err();
        assert!(matches!(stop, Stop::Failed(why) if why == "1 of 3 lines were not published"));
        let requests = requests.await.unwrap();
        let sent: Vec<_> = requests.iter().map(keys).collect();
        assert_eq!(
            sent,
            [
                vec!["run-1", "run-2", "run-3"],
                vec!["run-1", "run-2", "run-3"],
                vec!["run-2"],
                vec!["run-0"]
            ]
        );
        assert!(requests[3].body.contains("\"end\":true"));
    }

    #[tokio::test]
    async fn lines_of_json_are_checked_one_by_one() {
        let (server, requests) = play(vec![Act::json("200 OK", &json!([done("1"), done("2")]))]).await;
        let (sender, lines) = mpsc::channel(10);
        for line in ["{\"a\":1}", "{", "2"] {
            sender.send(line.to_owned()).await.unwrap();
        }
        drop(sender);
        let stop = publisher(server, PATIENT)
            .lines(lines, &template(), true, false)
            .await
            .unwrap_err();
        assert!(matches!(stop, Stop::Failed(why) if why == "1 of 3 lines were not published"));
        assert_eq!(keys(&requests.await.unwrap()[0]), ["run-1", "run-3"]);
    }

    #[test]
    fn lines_lose_their_break_and_nothing_else() {
        let mut input = &b"a\r\n\nb \xff\rc\nlast"[..];
        let mut lines = Vec::new();
        while let Some(line) = next_line(&mut input).unwrap() {
            lines.push(line);
        }
        assert_eq!(lines, ["a", "", "b \u{fffd}\rc", "last"]);
    }
}
