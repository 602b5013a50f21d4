//! One connection to a server: questions on it, what the server forbids, and when it is dead.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use airwave_core::BrokerError;
use async_nats::client::RequestErrorKind;
use async_nats::{Client, HeaderMap, Message, Request, StatusCode};
use bytes::Bytes;
use serde_json::Value;
use tokio::sync::{Mutex, broadcast, watch};

use super::clock::time_of;
use super::errors::{late, lost};
use crate::reconnect::Disconnected;
use crate::silence::while_active;

/// How long a call waits while nothing arrives on the connection. Below the two seconds within
/// which callers are promised an answer.
pub(super) const DEADLINE: Duration = Duration::from_millis(1800);

/// What no call exceeds, although other things arrive.
pub(super) const LONGEST: Duration = Duration::from_secs(5);

/// How long to wait for a replica that lags before it is asked again.
pub(super) const LAG: Duration = Duration::from_millis(20);

/// Asks for the server's time. A node does without where this is forbidden.
pub(super) const SERVER_TIME: &str = "$SYS.REQ.USER.INFO";

/// What the server forbids, in its own words. It says so beside the answers, and answers nothing.
#[derive(Clone)]
pub(super) struct Forbidden(pub(super) broadcast::Sender<Arc<str>>);

impl Forbidden {
    pub(super) fn new() -> Forbidden {
        // Who has missed some may have missed the one that was meant.
        Forbidden(broadcast::Sender::new(64))
    }

    pub(super) fn tell(&self, text: &str) {
        // The send fails if no call watches.
        let _ = self.0.send(text.into());
    }

    /// From now on.
    pub(super) fn watch(&self, doing: &str, subject: &str) -> PermissionWatch {
        PermissionWatch {
            refusals: self.0.subscribe(),
            what: format!("{doing} to \"{subject}\""),
        }
    }
}

/// Whether one thing is forbidden.
pub(super) struct PermissionWatch {
    refusals: broadcast::Receiver<Arc<str>>,
    what: String,
}

impl PermissionWatch {
    /// Comes back when it is.
    pub(super) async fn wait(&mut self) -> BrokerError {
        loop {
            match self.refusals.recv().await {
                Ok(text) if text.contains(&self.what) => return forbidden(&text),
                Ok(_) => {}
                Err(broadcast::error::RecvError::Lagged(_)) => return lost("the server forbids much"),
                Err(broadcast::error::RecvError::Closed) => return std::future::pending().await,
            }
        }
    }

    /// Whether it was said until now.
    pub(super) fn look(&mut self) -> Result<(), BrokerError> {
        loop {
            match self.refusals.try_recv() {
                Ok(text) if text.contains(&self.what) => return Err(forbidden(&text)),
                Ok(_) => {}
                Err(broadcast::error::TryRecvError::Lagged(_)) => return Err(lost("the server forbids much")),
                Err(_) => return Ok(()),
            }
        }
    }
}

fn forbidden(text: &str) -> BrokerError {
    lost(&format!("the server forbids this user what it needs ({text})"))
}

/// One connection.
pub(super) struct Link {
    pub(super) client: Client,
    pub(super) dead: Arc<Disconnected>,
    pub(super) forbidden: Forbidden,
    /// The server is of version 2.10: it gives one message for a question, and refuses some things
    /// without a word.
    pub(super) is_2_10: bool,
    /// There once the stream of members was seen; dead when it is gone or has no leader, which is
    /// no matter of the events.
    pub(super) members: Mutex<Option<Arc<Disconnected>>>,
    /// The newest of this node's own probes that has come back.
    pub(super) last_probe: watch::Sender<u64>,
    /// How many messages have come from the stream's leader: its answers, and events.
    pub(super) from_leader: Arc<AtomicU64>,
}

/// What a server's refusal or answer is, as JSON says it.
pub(super) enum Answer {
    Done(Value),
    Refused { code: u64, text: String },
}

impl Link {
    /// How many bytes have arrived on this connection. As long as there are more and more of them,
    /// the server lives.
    pub(super) fn arrived(&self) -> u64 {
        self.client.statistics().in_bytes.load(Ordering::Relaxed)
    }

    /// The stream's leader has answered.
    pub(super) fn count_leader_message(&self) {
        self.from_leader.fetch_add(1, Ordering::Relaxed);
    }

    /// Asks and waits for one answer, as long as the connection lives.
    pub(super) async fn ask(&self, subject: String, headers: Option<HeaderMap>, payload: Bytes) -> Result<Message, BrokerError> {
        self.ask_of(&self.dead, subject, headers, payload).await
    }

    /// Tells `gone` if no server answers there.
    pub(super) async fn ask_of(
        &self,
        gone: &Disconnected,
        subject: String,
        headers: Option<HeaderMap>,
        payload: Bytes,
    ) -> Result<Message, BrokerError> {
        let mut request = Request::new().payload(payload).timeout(None);
        if let Some(headers) = headers {
            request = request.headers(headers);
        }
        let mut watched = self.forbidden.watch("Publish", &subject);
        let answered = while_active(DEADLINE, || self.arrived(), self.client.send_request(subject, request));
        let answer = tokio::select! {
            answer = answered => answer.ok_or_else(late)?,
            () = self.dead.wait() => return Err(lost("the connection broke")),
            forbidden = watched.wait() => return Err(forbidden),
        };
        answer.map_err(|error| match error.kind() {
            RequestErrorKind::MaxPayloadExceeded => BrokerError::rejected(format!(
                "the message is larger than NATS takes ({} bytes with what is written beside it): raise max_payload in its configuration",
                self.client.max_payload()
            )),
            RequestErrorKind::NoResponders => {
                // The stream is gone or has no leader: the next connection checks for it, and makes
                // it anew.
                gone.tell();
                lost("no server answers for the stream")
            }
            _ => lost("no answer in time").caused_by(error),
        })
    }

    /// The same of JetStream, which answers in JSON.
    pub(super) async fn call(&self, subject: String, headers: Option<HeaderMap>, payload: Bytes) -> Result<Answer, BrokerError> {
        self.call_of(&self.dead, subject, headers, payload).await
    }

    /// Does the same with another stream than that of the events. Tells `gone` if no server answers
    /// for it.
    pub(super) async fn call_of(
        &self,
        gone: &Disconnected,
        subject: String,
        headers: Option<HeaderMap>,
        payload: Bytes,
    ) -> Result<Answer, BrokerError> {
        let message = self.ask_of(gone, subject, headers, payload).await?;
        let answer: Value =
            serde_json::from_slice(&message.payload).map_err(|error| lost("an answer is no JSON").caused_by(error))?;
        Ok(match answer.get("error") {
            Some(error) => Answer::Refused {
                code: error["err_code"].as_u64().unwrap_or(0),
                text: error["description"].as_str().unwrap_or("no reason given").to_owned(),
            },
            None => Answer::Done(answer),
        })
    }

    pub(super) async fn api(&self, what: String, body: &Value) -> Result<Answer, BrokerError> {
        let payload = if body.is_null() {
            Bytes::new()
        } else {
            body.to_string().into()
        };
        self.call(format!("$JS.API.{what}"), None, payload).await
    }
}

/// When the server stored this message, as it says itself.
pub(super) fn stored_at(message: &Message) -> Option<u64> {
    time_of(message.headers.as_ref()?.get("Nats-Time-Stamp")?.as_str())
}

/// Whether a message is only about the answer: its end, or that there is none.
pub(super) fn is_status(message: &Message) -> Option<StatusCode> {
    message.status.filter(|status| *status != StatusCode::OK)
}
