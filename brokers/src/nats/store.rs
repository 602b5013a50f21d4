//! Storing a message of a channel, and asking what the channel's newest is.

use airwave_core::{BrokerError, ChannelName};
use async_nats::HeaderMap;
use bytes::Bytes;
use serde_json::Value;

use super::Nats;
use super::errors::{code, lost, unstored};
use super::in_turn::answer_to_the_first;
use super::link::{Answer, Link};
use super::messages::{EXPECTED, NEVER};
use super::stored::{Chain, Stored};

/// Where a message may be stored.
pub(super) enum Expected {
    /// Only if the channel's newest message is that one; zero: only if it has none.
    At(u64),
    /// Nowhere; its key may be known, though.
    Nothing,
}

impl Expected {
    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        match self {
            Self::At(sequence) => headers.insert(EXPECTED, sequence.to_string()),
            // No roll-up is called so, and that is looked at after the key. Expecting something
            // impossible is not as good: a single server looks at that before the key, and a stream
            // with replicas that refuses a message for the id before it never answers again
            // (nats-server 2.15).
            Self::Nothing => headers.insert("Nats-Rollup", "none"),
        }
        headers
    }
}

/// What became of a message that was to be stored.
pub(super) enum Outcome {
    At(u64),
    Known(u64),
    /// Something else was stored meanwhile.
    Overtaken(Option<u64>),
}

impl Nats {
    /// Stores a message, if it may stand where it would.
    pub(super) async fn store(
        &self,
        link: &Link,
        channel: &ChannelName,
        behind: Expected,
        payload: Bytes,
        ids: &[(&'static str, String)],
    ) -> Result<Outcome, BrokerError> {
        let mut headers = behind.headers();
        for (header, id) in ids {
            headers.insert(*header, id.as_str());
        }
        let before = self.connection.highest();
        let call = link.call(self.connection.subject_of(channel), Some(headers), payload);
        let answer = if matches!(behind, Expected::Nothing) && link.is_2_10 {
            // It says nothing when there is no such roll-up.
            match answer_to_the_first(call, self.connection.says_something(link)).await? {
                Some(answer) => answer?,
                None => return Ok(Outcome::Overtaken(None)),
            }
        } else {
            call.await?
        };
        link.count_leader_message();
        match answer {
            Answer::Done(ack) => self.stored_as(link, before, &ack),
            Answer::Refused { code, text } => refused_as(&behind, code, &text),
        }
    }

    /// What a message became that the stream has taken. `before`: the highest sequence that was
    /// known when it was sent.
    fn stored_as(&self, link: &Link, before: u64, ack: &Value) -> Result<Outcome, BrokerError> {
        let Some(sequence) = ack["seq"].as_u64() else {
            return Err(lost("an answer names no sequence"));
        };
        if ack["duplicate"] == true {
            Ok(Outcome::Known(sequence))
        } else if self.connection.went_up(link, before, sequence) {
            Ok(Outcome::At(sequence))
        } else {
            Err(lost("the stream was lost"))
        }
    }

    /// The channel's newest message, as the stream's leader knows it; `None`: it has none. A caller
    /// that has subscribed before hears all later messages: this request goes to the leader the
    /// same way as messages do, and so behind the subscription.
    pub(super) async fn newest(&self, link: &Link, channel: &ChannelName) -> Result<Option<Stored>, BrokerError> {
        match self.store(link, channel, Expected::At(NEVER), Bytes::new(), &[]).await? {
            Outcome::Overtaken(Some(0)) => return Ok(None),
            Outcome::Overtaken(Some(sequence)) => {
                if let Some(stored) = self.connection.at(link, channel, sequence).await? {
                    return Ok(Some(stored));
                }
            }
            _ => {}
        }
        self.connection.newest_at_leader(link, channel).await
    }

    /// The channel's chain. One without a message begins with the epoch.
    pub(super) async fn chain(&self, link: &Link, channel: &ChannelName) -> Result<Chain, BrokerError> {
        Ok(self.chain_and_newest(link, channel).await?.0)
    }

    /// The same with the message that it was read from.
    pub(super) async fn chain_and_newest(
        &self,
        link: &Link,
        channel: &ChannelName,
    ) -> Result<(Chain, Option<Stored>), BrokerError> {
        if let Some(stored) = self.newest(link, channel).await? {
            return Ok((stored.chain, Some(stored)));
        }
        let epoch = self.epochs.newest(&self.connection, link).await?;
        let chain = Chain {
            head: epoch,
            base: epoch,
            ..Chain::NONE
        };
        Ok((chain, None))
    }
}

/// What a message became that the stream has refused.
fn refused_as(behind: &Expected, code: u64, text: &str) -> Result<Outcome, BrokerError> {
    match code {
        _ if code::WRONG_LAST.contains(&code) => {
            let newest = text.rsplit(' ').next().and_then(|number| number.parse().ok());
            Ok(Outcome::Overtaken(newest))
        }
        code::NO_SUCH_ROLLUP | code::SAME_KEY_UNDER_WAY => Ok(Outcome::Overtaken(None)),
        code::TOO_LARGE => Err(BrokerError::rejected(format!("NATS: {text}"))),
        // Only a question what the newest is, to a stream that stores nothing: the leader can be
        // asked in another way.
        _ if matches!(behind, Expected::At(NEVER)) && (code == code::SEALED || code::FULL.contains(&code)) => {
            Ok(Outcome::Overtaken(None))
        }
        _ => Err(unstored(code, text)),
    }
}
