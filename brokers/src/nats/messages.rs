//! Single messages of the stream: from any replica, or from the leader, which alone knows the
//! newest.

use airwave_core::{BrokerError, ChannelName};
use async_nats::{Message, StatusCode};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::clock;
use super::connection::Connection;
use super::errors::{code, lost, not_ours};
use super::link::{Answer, Link, is_status, stored_at};
use super::stored::{self, Stored, token};

/// A sequence that no stream of ours holds.
pub(super) const NEVER: u64 = 1;

pub(super) const EXPECTED: &str = "Nats-Expected-Last-Subject-Sequence";
pub(super) const SEQUENCE: &str = "Nats-Sequence";

impl Connection {
    /// The subject under which the stream holds the channel.
    pub(super) fn subject_of(&self, channel: &ChannelName) -> String {
        self.log(&format!("c.{}", token(channel)))
    }

    /// The message at a sequence, from any replica. `None`: it has it not, or not yet.
    pub(super) async fn at(&self, link: &Link, channel: &ChannelName, sequence: u64) -> Result<Option<Stored>, BrokerError> {
        let subject = format!("$JS.API.DIRECT.GET.{}", self.settings.prefix);
        let message = link.ask(subject, None, json!({ "seq": sequence }).to_string().into()).await?;
        match is_status(&message) {
            None => self.stored(channel, message).map(Some),
            Some(StatusCode::NOT_FOUND) => Ok(None),
            Some(status) => Err(lost(&format!("a message could not be read: {status}"))),
        }
    }

    pub(super) fn stored(&self, channel: &ChannelName, message: Message) -> Result<Stored, BrokerError> {
        let headers = message.headers.as_ref();
        let subject = headers.and_then(|headers| headers.get("Nats-Subject"));
        let ours = subject.is_some_and(|subject| subject.as_str() == self.subject_of(channel));
        let sequence = sequence_of(&message).filter(|_| ours);
        let stored_at = stored_at(&message).unwrap_or(stored::UNKNOWN);
        sequence
            .and_then(|sequence| stored::read(sequence, message.payload))
            .map(|stored| Stored { stored_at, ..stored })
            .ok_or_else(|| not_ours(channel))
    }

    /// The channel's first message from a sequence on.
    pub(super) async fn first_from(&self, link: &Link, channel: &ChannelName, from: u64) -> Result<Option<Stored>, BrokerError> {
        let subject = format!("$JS.API.DIRECT.GET.{}", self.settings.prefix);
        let question = json!({ "seq": from, "next_by_subj": self.subject_of(channel) });
        let message = link.ask(subject, None, question.to_string().into()).await?;
        match is_status(&message) {
            None => self.stored(channel, message).map(Some),
            Some(StatusCode::NOT_FOUND) => Ok(None),
            Some(status) => Err(lost(&format!("history could not be read: {status}"))),
        }
    }

    /// The message that `which` names, as the stream's leader has it.
    pub(super) async fn ask_leader(
        &self,
        link: &Link,
        channel: &ChannelName,
        which: &Value,
    ) -> Result<Option<Stored>, BrokerError> {
        let subject = format!("$JS.API.STREAM.MSG.GET.{}", self.settings.prefix);
        match link.call(subject, None, which.to_string().into()).await? {
            Answer::Done(answer) => {
                let message = &answer["message"];
                let data = BASE64_STANDARD.decode(message["data"].as_str().unwrap_or_default()).ok();
                let ours = message["subject"].as_str() == Some(&self.subject_of(channel));
                let stored = message["seq"].as_u64().zip(data).filter(|_| ours);
                let stored = stored.and_then(|(sequence, data)| stored::read(sequence, data.into()));
                let at = message["time"].as_str().and_then(clock::time_of).unwrap_or(stored::UNKNOWN);
                let stored = stored.map(|stored| Stored { stored_at: at, ..stored });
                stored.map(Some).ok_or_else(|| not_ours(channel))
            }
            Answer::Refused {
                code: code::NO_MESSAGE, ..
            } => Ok(None),
            Answer::Refused { text, .. } => Err(lost(&text)),
        }
    }

    /// The channel's newest message, as the stream's leader knows it.
    pub(super) async fn newest_at_leader(&self, link: &Link, channel: &ChannelName) -> Result<Option<Stored>, BrokerError> {
        let which = json!({ "last_by_subj": self.subject_of(channel) });
        self.ask_leader(link, channel, &which).await
    }
}

pub(super) fn sequence_of(message: &Message) -> Option<u64> {
    message.headers.as_ref()?.get(SEQUENCE)?.as_str().parse().ok()
}
