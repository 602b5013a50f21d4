//! This module holds what all parts of a node share, and makes the node's calls of the broker.
//!
//! The node counts each call and gives it the time `limits.broker_timeout`. A call that fails gives
//! an error as clients see it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::broker::{Append, Broker, BrokerError, BrokerErrorKind, Feed, IDEMPOTENCY_WINDOW, PageLimit, Published, Replay};
use crate::event::{ChannelName, EventName, Position};
use crate::jitter::Jitter;
use crate::key_counts::KeyCounts;
use crate::newer::Newer;
use crate::observe::Metrics;
use crate::outage::{HealTurns, Outage, Unanswered};
use crate::patience;
use crate::presence::Presence;
use crate::refusal::{Code, Refusal};
use crate::rule::{Limits, Params, Rule, Rules};
use crate::warnings::Warnings;

/// Holds what all parts of a node share: the broker, the rules, the limits, the metrics.
pub(crate) struct Backbone {
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) rules: Rules,
    pub(crate) limits: Limits,
    pub(crate) metrics: Metrics,
    pub(crate) jitter: Jitter,
    pub(crate) outage: Outage,
    pub(crate) unanswered: Unanswered,
    pub(crate) turns: HealTurns,
    /// Records what later versions have stored.
    pub(crate) newer: Newer,
    /// Counts the idempotency keys that this node has used, by channel.
    pub(crate) keys: KeyCounts<ChannelName>,
    pub(crate) warnings: Warnings,
    /// Exists if the node has a directory and a rule that asks for presence.
    pub(crate) presence: Option<Arc<Presence>>,
}

impl Backbone {
    /// Returns the rule of a channel, and the values of the parameters of its pattern.
    pub(crate) fn rule(&self, name: &ChannelName) -> Result<(Arc<Rule>, Params), Refusal> {
        self.rules.find(name).ok_or_else(|| {
            Refusal::new(
                Code::UnknownChannel,
                format!("no rule matches the channel '{name}': check the name, or add a [[channels]] entry to the configuration"),
            )
        })
    }

    /// Returns the refusal that a client receives for a broker's error. Details of an outage are
    /// for the operator, who finds them in the log.
    pub(crate) fn refusal(&self, error: &BrokerError) -> Refusal {
        match error.kind {
            BrokerErrorKind::Unavailable => {
                self.unanswered.refused(error);
                let cause = match error.public {
                    true => &error.message,
                    false => "the broker is out of reach",
                };
                Refusal::unavailable(format!("{cause}: try again, with the same idempotency key if you publish"))
            }
            BrokerErrorKind::Rejected => Refusal::bad_request(error.message.clone()),
            BrokerErrorKind::Ended => Refusal::new(Code::Ended, "the channel has ended; publish to a new one"),
        }
    }

    /// Publishes within the broker's time. `rule` is the index of the rule's metrics.
    pub(crate) async fn publish(&self, channel: &ChannelName, rule: usize, mut append: Append) -> Result<Published, Refusal> {
        if append.message.is_hidden() {
            self.metrics.publish_error(Code::BadRequest);
            return Err(EventName::reserved().into());
        }
        // A handler may publish again what it has read. It sees no reserved attribute, so it sends
        // none.
        append.message.attributes = std::mem::take(&mut append.message.attributes).without_reserved();
        let weight = append.message.weight();
        let events = 1 + u64::from(append.end_behind().is_some());
        if weight > self.limits.message_bytes {
            self.metrics.publish_error(Code::TooLarge);
            return Err(Refusal::new(
                Code::TooLarge,
                format!(
                    "the message has {weight} bytes; at most {} are allowed (limits.message_bytes)",
                    self.limits.message_bytes
                ),
            ));
        }
        let limit = self.limits.idempotency_keys_per_channel;
        if append.idempotency_key.is_some() && !self.keys.take(channel.clone(), limit) {
            self.metrics.publish_error(Code::TooMany);
            return Err(Refusal::new(
                Code::TooMany,
                format!(
                    "this channel has used {limit} idempotency keys within {} seconds (limits.idempotency_keys_per_channel): publish it later",
                    IDEMPOTENCY_WINDOW.as_secs()
                ),
            ));
        }
        let begin = Instant::now();
        let result = patience::call(self.limits.broker_timeout, self.broker.publish(channel, append)).await;
        match result {
            Ok(published) => {
                self.unanswered.answered();
                self.metrics.publish_seconds.observe(begin.elapsed());
                if !published.duplicate {
                    self.metrics.by_rule(rule).published(events);
                }
                Ok(published)
            }
            Err(error) => {
                let refusal = self.refusal(&error);
                self.metrics.publish_error(refusal.code);
                Err(refusal)
            }
        }
    }

    /// Returns the presence of a channel that follows this rule.
    ///
    /// # Errors
    /// `bad-request`: there is none.
    pub(crate) fn presence(&self, channel: &ChannelName, rule: &Rule) -> Result<&Arc<Presence>, Refusal> {
        match &self.presence {
            Some(presence) if rule.presence => Ok(presence),
            _ if rule.presence => Err(Refusal::bad_request(format!(
                "the channel '{channel}' cannot tell who is in it, because this server was built without a directory of members"
            ))),
            _ => Err(Refusal::bad_request(format!(
                "the channel '{channel}' does not tell who is in it: set presence = true in its rule"
            ))),
        }
    }

    /// Follows the channel and reads its newest events, within the broker's time.
    pub(crate) async fn open(&self, channel: &ChannelName, limit: PageLimit) -> Result<(Feed, Replay), BrokerError> {
        self.metrics.replays.inc();
        let (feed, replay) = patience::call(self.limits.broker_timeout, self.broker.open(channel, limit)).await?;
        self.unanswered.answered();
        self.look(&replay);
        if !replay.is_torn() {
            return Ok((feed, replay));
        }
        tracing::debug!(%channel, head = %replay.head, "events are missing in a page of history: reading it again");
        Ok((feed, self.replay(channel, None, limit).await?))
    }

    /// Reads history within the broker's time.
    pub(crate) async fn replay(
        &self,
        channel: &ChannelName,
        after: Option<Position>,
        limit: PageLimit,
    ) -> Result<Replay, BrokerError> {
        self.metrics.replays.inc();
        let result = patience::call(self.limits.broker_timeout, self.page(channel, after, limit)).await;
        if result.is_ok() {
            self.unanswered.answered();
        }
        result
    }
}

impl Backbone {
    fn look(&self, replay: &Replay) {
        replay.events.iter().for_each(|event| self.newer.look(&event.message));
    }

    /// Returns a page without a hole. Publishers may have overtaken the broker while it read.
    async fn page(&self, channel: &ChannelName, after: Option<Position>, limit: PageLimit) -> Result<Replay, BrokerError> {
        for pause in TORN_PAUSES {
            let replay = self.broker.replay(channel, after, limit).await?;
            self.look(&replay);
            match after {
                Some(_) => return Ok(replay.up_to_hole()),
                None if !replay.is_torn() => return Ok(replay),
                None => {
                    tracing::debug!(%channel, head = %replay.head, "events are missing in a page of history: reading it again")
                }
            }
            sleep(self.jitter.spread(pause)).await;
        }
        Err(torn())
    }
}

/// Each pause passes before the node reads a page with a hole again. There are as many tries as
/// pauses.
const TORN_PAUSES: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_millis(10),
    Duration::from_millis(20),
    Duration::from_millis(40),
];

/// Returns the error for a broker that gives no page without a hole.
pub(crate) fn torn() -> BrokerError {
    BrokerError::unavailable("events are missing in the page of history that the broker gives, again and again")
}
