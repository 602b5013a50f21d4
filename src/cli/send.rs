//! `airwave send`: one message into a channel, as a client of it says it.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use airwave_core::{ChannelName, EventName, Key};
use airwave_protocol::{Answer, ClientMessage};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderName, Method, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use tokio::time::{sleep, timeout};

use super::client::{Backoff, CredentialArgs, Server, ServerArgs, chance, channel_name};
use super::publish::{attribute, attributes, one, passes, refusal};
use super::{Stop, block_on, say};

pub(super) const HELP: &str = "\
Says what a page would say: the message goes to the channel's handler, or, where its rule has send = \"publish\", to all
listeners. DATA is sent as JSON if it is JSON, else as text; without DATA, or with -, standard input is read. Prints what the
handler answers, if it answers anything. A server that cannot be reached is tried again for --retry-for; the message is taken
once.

Examples:
  airwave send chat/lobby '{\"text\":\"hi\"}' --event say
  AIRWAVE_TOKEN=$(cat token) airwave send chat/lobby hi --event say
  airwave send chat/lobby hi --event say --cookie session=abc";

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// How long the server may take to answer.
const ANSWER: Duration = Duration::from_secs(30);
const LARGEST_ANSWER: usize = 4 << 20;

#[derive(clap::Args)]
pub(super) struct SendArgs {
    /// The channel, such as chat/lobby
    #[arg(value_parser = channel_name)]
    channel: ChannelName,
    /// The data; - or nothing: standard input
    #[arg(conflicts_with = "binary")]
    data: Option<String>,
    /// The event's name
    #[arg(long, value_name = "NAME", default_value = "message", value_parser = |text: &str| EventName::new(text).map_err(|e| e.to_string()))]
    event: EventName,
    /// What the message is about, such as AAPL
    #[arg(long, value_name = "KEY", value_parser = |text: &str| Key::new(text).map_err(|e| e.to_string()))]
    key: Option<Key>,
    /// What the message says about itself beside its data, such as content-type=text/markdown; once
    /// for each attribute
    #[arg(long = "attribute", value_name = "NAME=TEXT", value_parser = attribute)]
    attributes: Vec<(String, String)>,
    /// The data must be JSON
    #[arg(long, conflicts_with_all = ["text", "binary"])]
    json: bool,
    /// The data is text, even if it looks like JSON
    #[arg(long, conflicts_with = "binary")]
    text: bool,
    /// Send the bytes of a file
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    credentials: CredentialArgs,
    /// How long to try again when the server cannot be reached
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = airwave::config::parse_duration)]
    retry_for: Duration,
}

pub(super) fn run(args: SendArgs) -> Result<(), Stop> {
    let server = args.server.server()?.with_headers(args.credentials.headers()?);
    let data = one(args.data.as_deref(), args.binary.as_deref(), args.json, args.text, false)?;
    let Some(payload) = data else {
        return Err(Stop::Wrong("there is nothing to send".into()));
    };
    let mut message = ClientMessage::new(args.event.as_str(), payload);
    message.key = args.key.as_ref().map(|key| key.as_str().into());
    message.attributes = Some(attributes(args.attributes)?).filter(|attributes| !attributes.is_empty());
    let sender = Sender {
        server,
        path: format!("/channels/{}", args.channel),
        key: format!("cli-{:016x}{:016x}", chance(), chance()),
        body: message.to_json().into(),
    };
    let reply = block_on(sender.send(args.retry_for))?;
    match reply {
        Some(reply) => writeln!(std::io::stdout(), "{reply}").map_err(Stop::of_output),
        None => Ok(()),
    }
}

struct Sender {
    server: Server,
    path: String,
    /// Makes a repeated try harmless.
    key: String,
    body: Bytes,
}

impl Sender {
    /// Sends the message until it is answered. `None`: the handler said nothing.
    async fn send(&self, retry_for: Duration) -> Result<Option<String>, Stop> {
        let mut backoff = Backoff::default();
        let mut told = false;
        let trying = async {
            loop {
                let why = match self.attempt().await {
                    Ok((status, answer)) if status.is_success() => return reply(&answer),
                    Ok((status, answer)) => {
                        let refusal = refusal(status, &answer);
                        if !(status.is_server_error() || passes(&refusal)) {
                            return Err(Stop::Failed(refusal.to_string()));
                        }
                        refusal.to_string()
                    }
                    Err(why) => why,
                };
                if !told {
                    say(&format!("{}: {why}; trying again", self.server));
                    told = true;
                }
                sleep(backoff.next()).await;
            }
        };
        timeout(retry_for, trying)
            .await
            .unwrap_or_else(|_| Err(Stop::Failed(format!("{}: given up", self.server))))
    }

    async fn attempt(&self) -> Result<(StatusCode, Bytes), String> {
        let exchange = async {
            let mut connection = self.server.open().await?;
            let request = self
                .server
                .request(Method::POST, &self.path)
                .header(CONTENT_TYPE, "application/json")
                .header(IDEMPOTENCY_KEY, &self.key)
                .body(Full::new(self.body.clone()))
                .map_err(|error| error.to_string())?;
            let response = connection
                .send_request(request)
                .await
                .map_err(|error| format!("no answer ({error})"))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), LARGEST_ANSWER).collect().await;
            let body = body.map_err(|_| "the answer broke off".to_owned())?;
            Ok((status, body.to_bytes()))
        };
        timeout(ANSWER, exchange)
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {} s", ANSWER.as_secs())))
    }
}

/// What the handler says, as JSON.
fn reply(answer: &[u8]) -> Result<Option<String>, Stop> {
    let answer: Answer<'_> = serde_json::from_slice(answer)
        .map_err(|_| Stop::Failed("the answer is none of Airwave's; is this Airwave, and the URL where it is mounted?".into()))?;
    let data = Some(answer.data.get()).filter(|data| *data != "null");
    Ok(data.map(str::to_owned))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::fake::{Act, play};
    use super::*;
    use serde_json::json;

    fn sender(server: Server) -> Sender {
        Sender {
            server,
            path: "/channels/chat/lobby".into(),
            key: "cli-1".into(),
            body: "{\"event\":\"say\",\"text\":\"hi\"}".into(),
        }
    }

    #[tokio::test]
    async fn a_lost_answer_is_asked_for_again_under_the_same_key() {
        let script = vec![
            Act::HangUp,
            Act::json(
                "503 Service Unavailable",
                &json!({ "error": { "code": "unavailable", "message": "x" } }),
            ),
            Act::json("200 OK", &json!({ "data": { "n": 1 } })),
        ];
        let (server, requests) = play(script).await;
        let reply = sender(server).send(Duration::from_secs(120)).await.unwrap();
        assert_eq!(reply.as_deref(), Some("{\"n\":1}"));
        let requests = requests.await.unwrap();
        assert_eq!(requests.len(), 3);
        for request in requests {
            assert!(
                request.head.starts_with("post /channels/chat/lobby http/1.1\r\n"),
                "{}",
                request.head
            );
            assert!(request.head.contains("idempotency-key: cli-1\r\n"));
            assert_eq!(request.body, "{\"event\":\"say\",\"text\":\"hi\"}");
        }
    }

    #[tokio::test]
    async fn a_refusal_is_final_and_no_answer_prints_nothing() {
        let refused = json!({ "error": { "code": "forbidden", "message": "not here" } });
        let (server, _) = play(vec![Act::json("403 Forbidden", &refused)]).await;
        match sender(server).send(Duration::from_secs(120)).await {
            Err(Stop::Failed(text)) => assert_eq!(text, "not here (forbidden)"),
            other => panic!("{other:?}"),
        }
        let (server, _) = play(vec![Act::json("200 OK", &json!({ "data": null }))]).await;
        assert_eq!(sender(server).send(Duration::from_secs(120)).await.unwrap(), None);
    }
}
