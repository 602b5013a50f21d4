//! Publishing: behind the channel's newest message, once for each key.

use airwave_core::idempotency::Fingerprint;
use airwave_core::{Append, BrokerError, BrokerErrorKind, ChannelName, Position, Published};
use async_nats::{HeaderMap, StatusCode};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde_json::json;
use tokio::time::sleep;

use super::Nats;
use super::errors::{code, lost};
use super::generations::uptime;
use super::link::{Answer, LAG, Link, is_status};
use super::remembered::{KnownChannel, memory_of};
use super::store::{Expected, Outcome};
use super::stored::{self, Chain, token};

/// The header of a key. The stream stores the messages of a key once, whichever server leads.
const KEY: &str = "Nats-Msg-Id";

/// The header of a message with a key: the payload's fingerprint. Version 0.1 wrote none.
const FINGERPRINT: &str = "Airwave-Fingerprint";

/// The header by which a node finds a message of its own again that has no key: which node, and
/// which of its publishes.
const MADE_BY: &str = "Airwave-Publish";

/// What is known of the first message under a key.
enum First {
    Is(Fingerprint),
    /// Version 0.1 stored it, without a fingerprint.
    Old,
    /// It is not kept any more.
    Gone,
}

impl Nats {
    pub(super) async fn append(&self, channel: &ChannelName, append: &Append) -> Result<Published, BrokerError> {
        let memory = memory_of(&self.known, channel);
        let mut known = memory.lock().await;
        let link = self.connection.link().await?;
        let ids = self.ids_of(channel, append);
        let and_end = append.end_behind().is_some();
        let last = |sequence| Position(sequence + u64::from(and_end));
        loop {
            // Takes the chain out, so that a publish that is dropped on the way leaves no old chain
            // behind.
            let chain = match known.chain.take() {
                Some(chain) => chain,
                None => self.chain(&link, channel).await?,
            };
            if chain.ended && append.idempotency_key.is_none() {
                return Err(BrokerError::ended());
            }
            // After an end it must be refused, unless its key is known: that is looked at first.
            let behind = if chain.ended {
                Expected::Nothing
            } else {
                Expected::At(chain.newest)
            };
            let payload = stored::event(&chain, &append.message, and_end, self.connection.now());
            match self.store(&link, channel, behind, payload.clone(), &ids).await? {
                Outcome::At(sequence) => {
                    self.remember(&mut known, channel, sequence, payload);
                    return Ok(Published::new(last(sequence)));
                }
                Outcome::Known(sequence) => {
                    drop(known);
                    return self.published_before(&link, channel, append, sequence).await;
                }
                Outcome::Overtaken(_) if chain.ended => return Err(BrokerError::ended()),
                Outcome::Overtaken(by) => {
                    if let Some((MADE_BY, id)) = ids.first()
                        && let Some(position) = self.stored_all_the_same(&link, channel, &chain, id).await?
                    {
                        return Ok(Published::new(position));
                    }
                    known.chain = self.chain_that_overtook(&link, channel, by).await?;
                }
            }
        }
    }

    /// By what the message of a publish can be found again.
    fn ids_of(&self, channel: &ChannelName, append: &Append) -> Vec<(&'static str, String)> {
        // The name's token holds no slash, so no two names and keys make one text.
        match &append.idempotency_key {
            Some(key) => vec![
                (KEY, format!("{}/{}", token(channel), key.as_str())),
                (FINGERPRINT, append.fingerprint().to_string()),
            ],
            None if self.connection.settings.are_several() => vec![(MADE_BY, self.connection.number())],
            None => Vec::new(),
        }
    }

    /// Takes note of a message that this publish has stored.
    fn remember(&self, known: &mut KnownChannel, channel: &ChannelName, sequence: u64, payload: Bytes) {
        // An end is asked for each time: a channel that was forgotten may begin anew.
        let stored = stored::read(sequence, payload);
        known.chain = stored.as_ref().map(|stored| stored.chain).filter(|chain| !chain.ended);
        let history = self.connection.keeps(channel);
        let passed = stored.and_then(|stored| known.generations.stored(&stored.chain, &history, uptime()));
        if let Some(before) = passed {
            // If there is no room, it is swept with what comes later.
            let _ = self.due.try_send((channel.clone(), before));
        }
    }

    /// The answer to a publish whose key is known: the first message under it has that sequence.
    async fn published_before(
        &self,
        link: &Link,
        channel: &ChannelName,
        append: &Append,
        sequence: u64,
    ) -> Result<Published, BrokerError> {
        let and_end = append.end_behind().is_some();
        let position = match self.fingerprint_at(link, sequence).await? {
            First::Is(first) if first != append.fingerprint() => return Err(BrokerError::another_payload()),
            // Its end was a publish of its own, and may be missing.
            First::Old if and_end => match Box::pin(self.append(channel, &Append::end())).await {
                Ok(end) => end.position,
                Err(error) if error.kind == BrokerErrorKind::Ended => Position(sequence),
                Err(error) => return Err(error),
            },
            First::Is(_) | First::Old | First::Gone => Position(sequence + u64::from(and_end)),
        };
        Ok(Published::duplicate_of(position))
    }

    /// What the next try builds on: the message that was stored instead, as the server that refused
    /// says. A replica that lags has it not yet: then the leader is asked.
    async fn chain_that_overtook(
        &self,
        link: &Link,
        channel: &ChannelName,
        by: Option<u64>,
    ) -> Result<Option<Chain>, BrokerError> {
        let Some(sequence @ 1..) = by else { return Ok(None) };
        let newest = self.connection.at(link, channel, sequence).await?.map(|stored| stored.chain);
        Ok(newest.filter(|chain| !chain.ended))
    }

    /// What the first payload under a key was, whose message has that sequence.
    async fn fingerprint_at(&self, link: &Link, sequence: u64) -> Result<First, BrokerError> {
        let read = |headers: Option<&HeaderMap>| {
            let fingerprint = headers.and_then(|headers| headers.get(FINGERPRINT));
            match fingerprint.and_then(|text| Fingerprint::parse(text.as_str())) {
                Some(fingerprint) => First::Is(fingerprint),
                None => First::Old,
            }
        };
        let question = json!({ "seq": sequence });
        let subject = format!("$JS.API.DIRECT.GET.{}", self.connection.settings.prefix);
        let message = link.ask(subject, None, question.to_string().into()).await?;
        if is_status(&message).is_none() {
            return Ok(read(message.headers.as_ref()));
        }
        // It is trimmed, or a replica that lags has it not yet. The leader knows.
        let subject = format!("$JS.API.STREAM.MSG.GET.{}", self.connection.settings.prefix);
        match link.call(subject, None, question.to_string().into()).await? {
            Answer::Done(answer) => {
                let headers = BASE64_STANDARD.decode(answer["message"]["hdrs"].as_str().unwrap_or_default());
                let headers = String::from_utf8(headers.unwrap_or_default()).unwrap_or_default();
                let lines = headers.lines().filter_map(|line| line.split_once(':'));
                let fingerprint = lines
                    .filter(|(name, _)| *name == FINGERPRINT)
                    .find_map(|(_, text)| Fingerprint::parse(text.trim()));
                Ok(fingerprint.map_or(First::Old, First::Is))
            }
            Answer::Refused {
                code: code::NO_MESSAGE, ..
            } => Ok(First::Gone),
            Answer::Refused { text, .. } => Err(lost(&text)),
        }
    }

    /// Where a message stands that was refused because it did not come behind `chain`. While
    /// servers change their leader two may take themselves for it, and one refuses what the other
    /// one has stored. A message that is not what follows `chain` can never be stored any more, and
    /// may be sent again.
    async fn stored_all_the_same(
        &self,
        link: &Link,
        channel: &ChannelName,
        chain: &Chain,
        id: &str,
    ) -> Result<Option<Position>, BrokerError> {
        let subject = format!("$JS.API.DIRECT.GET.{}", self.connection.settings.prefix);
        let question = json!({ "seq": chain.newest + 1, "next_by_subj": self.connection.subject_of(channel) }).to_string();
        loop {
            let message = link.ask(subject.clone(), None, question.clone().into()).await?;
            match is_status(&message) {
                None => {
                    let made_by = message.headers.as_ref().and_then(|headers| headers.get(MADE_BY));
                    let ours = made_by.is_some_and(|made_by| made_by.as_str() == id);
                    let stored = self.connection.stored(channel, message)?;
                    return match ours {
                        true => Ok(Some(stored.chain.head)),
                        false if stored.events_before() <= chain.events => Ok(None),
                        // What came in between is trimmed, and it may have been among that.
                        false => Err(lost("it is no longer known whether it was stored")),
                    };
                }
                // The server that answers lags, or nothing follows and the refusal was false. Then
                // the loop goes on until the caller's time is over.
                Some(StatusCode::NOT_FOUND) => sleep(LAG).await,
                Some(status) => return Err(lost(&format!("a message could not be read: {status}"))),
            }
        }
    }
}
