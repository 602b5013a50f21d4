//! The handle that applications publish with. It stands on the broker alone: publishing needs no
//! listener and no open log.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

use crate::broker::{Broker, BrokerError, BrokerErrorKind, Feed, IDEMPOTENCY_WINDOW, PageLimit, Publish, Published, Replay};
use crate::event::{ChannelName, EventName, IdempotencyKey, Key, Message, Position};
use crate::format::Member;
use crate::idempotency::{Fingerprint, KeySource, ScopedKey};
use crate::jitter::Jitter;
use crate::key_counts::KeyCounts;
use crate::metrics::Metrics;
use crate::patience;
use crate::presence::Presence;
use crate::refusal::{Code, Refusal};
use crate::ring_memory::RingMemory;
use crate::rule::{Limits, Params, Rule, Rules};

/// What every part of a node shares: the broker, the rules, the limits, the figures.
pub(crate) struct Backbone {
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) rules: Rules,
    pub(crate) limits: Limits,
    pub(crate) metrics: Metrics,
    pub(crate) jitter: Jitter,
    pub(crate) outage: Outage,
    pub(crate) unanswered: Unanswered,
    pub(crate) turns: HealTurns,
    /// What the rings of all open channels take.
    pub(crate) ring_memory: Arc<RingMemory>,
    /// Idempotency keys that this node has used, by channel.
    pub(crate) keys: KeyCounts<ChannelName>,
    /// Where there is a directory and a rule that asks for it.
    pub(crate) presence: Option<Arc<Presence>>,
}

/// How many logs heal at once. When a connection to the broker breaks, all of a node's logs heal.
/// Together they would stand before everything else that the node asks of its broker, its publishes
/// and its own probe among them.
const HEALS_AT_ONCE: usize = 512;
/// How many of those are logs without listeners, and logs whose last try failed: they must not
/// delay the others.
const OTHER_HEALS_AT_ONCE: usize = 64;

/// Whose turn it is to heal, in the order in which they ask.
pub(crate) struct HealTurns {
    /// Logs with listeners.
    pub(crate) awaited: Semaphore,
    pub(crate) other: Semaphore,
}

impl Default for HealTurns {
    fn default() -> Self {
        Self {
            awaited: Semaphore::new(HEALS_AT_ONCE),
            other: Semaphore::new(OTHER_HEALS_AT_ONCE),
        }
    }
}

/// Channels that cannot be healed, counted, so that an outage is logged once for the node and not
/// for each channel and try.
#[derive(Default)]
pub(crate) struct Outage(Mutex<Troubled>);

#[derive(Default)]
struct Troubled {
    since: Option<Instant>,
    now: usize,
    in_all: usize,
    tries: u64,
}

/// One channel that cannot be healed. Dropping it says that it is over.
pub(crate) struct Unhealed(Arc<Backbone>);

impl Unhealed {
    /// The first try to heal this channel has failed.
    pub(crate) fn begin(backbone: &Arc<Backbone>, channel: &ChannelName, error: &BrokerError) -> Self {
        let first = {
            let mut troubled = backbone.outage.lock();
            troubled.now += 1;
            troubled.in_all += 1;
            backbone.metrics.healing.set(troubled.now as i64);
            let first = troubled.since.is_none();
            troubled.since.get_or_insert_with(Instant::now);
            first
        };
        if first {
            tracing::warn!(%channel, %error, "cannot heal yet; this and every other channel is tried until it can be, and then summed up");
        }
        let unhealed = Self(backbone.clone());
        unhealed.again(channel, error);
        unhealed
    }

    /// One more try has failed.
    pub(crate) fn again(&self, channel: &ChannelName, error: &BrokerError) {
        self.0.outage.lock().tries += 1;
        tracing::debug!(%channel, %error, "cannot heal yet");
    }
}

impl Drop for Unhealed {
    fn drop(&mut self) {
        let over = {
            let mut troubled = self.0.outage.lock();
            troubled.now -= 1;
            self.0.metrics.healing.set(troubled.now as i64);
            (troubled.now == 0).then(|| std::mem::take(&mut *troubled))
        };
        if let Some(Troubled {
            since: Some(since),
            in_all,
            tries,
            ..
        }) = over
        {
            let seconds = since.elapsed().as_secs_f64();
            tracing::info!(
                channels = in_all,
                tries,
                seconds,
                "what could not be healed is healed, or closed"
            );
        }
    }
}

impl Outage {
    fn lock(&self) -> MutexGuard<'_, Troubled> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An outage is over when the broker answers and has left nothing unanswered for so long. Part of a
/// cluster may be away while the rest answers.
const ANSWERS_AGAIN: Duration = Duration::from_secs(5);

/// Calls that were refused because the broker did not answer, counted, so that an outage is logged
/// once for the node and not for each of them.
#[derive(Default)]
pub(crate) struct Unanswered {
    /// Whether there are any: looked at with each call.
    any: AtomicBool,
    calls: Mutex<Option<Calls>>,
}

struct Calls {
    first: Instant,
    last: Instant,
    count: u64,
}

impl Unanswered {
    fn lock(&self) -> MutexGuard<'_, Option<Calls>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refused(&self, error: &BrokerError) {
        let now = Instant::now();
        let mut calls = self.lock();
        let first = calls.is_none();
        let Calls { last, count, .. } = calls.get_or_insert(Calls {
            first: now,
            last: now,
            count: 0,
        });
        (*last, *count) = (now, *count + 1);
        self.any.store(true, Ordering::Relaxed);
        drop(calls);
        if first {
            tracing::warn!(%error, "the broker is unavailable; publishes and the like are refused until it answers, and then summed up");
        } else {
            tracing::debug!(%error, "the broker is unavailable");
        }
    }

    fn answered(&self) {
        if !self.any.load(Ordering::Relaxed) {
            return;
        }
        let over = {
            let mut calls = self.lock();
            let over = calls.take_if(|calls| calls.last.elapsed() >= ANSWERS_AGAIN);
            self.any.store(calls.is_some(), Ordering::Relaxed);
            over
        };
        if let Some(Calls { first, last, count }) = over {
            let seconds = (last - first).as_secs_f64();
            tracing::info!(refused = count, seconds, "the broker answers again");
        }
    }
}

impl Backbone {
    /// The channel of that name, to publish to.
    pub(crate) fn channel(self: &Arc<Self>, name: &str) -> Result<Channel, Refusal> {
        let name = ChannelName::new(name)?;
        let (rule, params) = self.rule(&name)?;
        Ok(Channel::new(self.clone(), name, rule, params))
    }

    pub(crate) fn rule(&self, name: &ChannelName) -> Result<(Arc<Rule>, Params), Refusal> {
        self.rules.find(name).ok_or_else(|| {
            Refusal::new(
                Code::UnknownChannel,
                format!("no rule matches the channel '{name}': check the name, or add a [[channels]] entry to the configuration"),
            )
        })
    }

    /// What a client is told of a broker's error. Details of an outage are for the operator, who
    /// finds them in the log.
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

    /// Publishes within the broker's time. `rule`: where the figures of the channel's rule stand.
    pub(crate) async fn publish(&self, channel: &ChannelName, rule: usize, publish: Publish) -> Result<Published, Refusal> {
        let weight = publish.message.weight();
        let events = 1 + u64::from(publish.end_behind().is_some());
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
        if publish.idempotency_key.is_some() && !self.keys.take(channel.clone(), limit) {
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
        let result = patience::call(self.limits.broker_timeout, self.broker.publish(channel, publish)).await;
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

    /// Presence of a channel with this rule.
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
    /// A page without a hole, from a broker that may have been overtaken while it read.
    async fn page(&self, channel: &ChannelName, after: Option<Position>, limit: PageLimit) -> Result<Replay, BrokerError> {
        for pause in TORN_PAUSES {
            let replay = self.broker.replay(channel, after, limit).await?;
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

/// How long to wait before a page with a hole is read again. As many tries as there are pauses.
const TORN_PAUSES: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_millis(10),
    Duration::from_millis(20),
    Duration::from_millis(40),
];

/// The broker gives no page without a hole.
pub(crate) fn torn() -> BrokerError {
    BrokerError::unavailable("events are missing in the page of history that the broker gives, again and again")
}

/// A channel, as an application holds it: publish, end, history. Cheap to clone.
#[derive(Clone)]
pub struct Channel {
    backbone: Arc<Backbone>,
    name: ChannelName,
    rule: Arc<Rule>,
    /// Where the rule's figures stand.
    figures: usize,
    params: Params,
    /// Set where a client's message brought a key: what the handler publishes through this handle
    /// is then repeatable.
    key: Option<Arc<ClientKey>>,
}

/// The key of a client's message, for all that its handler publishes.
struct ClientKey {
    user: Option<Arc<str>>,
    /// Of a client without a user.
    connection: KeySource<'static>,
    key: IdempotencyKey,
    said: Fingerprint,
    parts: AtomicU32,
}

impl Channel {
    pub(crate) fn new(backbone: Arc<Backbone>, name: ChannelName, rule: Arc<Rule>, params: Params) -> Self {
        Self {
            figures: backbone.metrics.index_of(&rule),
            backbone,
            name,
            rule,
            params,
            key: None,
        }
    }

    /// The same for the handler of a client's `message` that came with a key. `connection`: the
    /// key's source if there is no `user`.
    pub(crate) fn with_key(
        mut self,
        key: Option<IdempotencyKey>,
        user: Option<Arc<str>>,
        connection: KeySource<'static>,
        message: &Message,
    ) -> Self {
        self.key = key.map(|key| {
            Arc::new(ClientKey {
                user,
                connection,
                key,
                said: Fingerprint::of_message(message, false),
                parts: AtomicU32::new(0),
            })
        });
        self
    }

    /// The channel called `name` on the same node: the way from a handler to all other channels. No
    /// handler is asked.
    ///
    /// In [`Handler::message`](crate::Handler::message) it continues the message's idempotency key:
    /// when a client repeats the message, what the handler published to any channel is not
    /// published again.
    ///
    /// # Errors
    /// `bad-request`: not a name; `unknown-channel`: no rule matches.
    ///
    /// # Examples
    /// ```
    /// use airwave_core::{Channel, Client, Handler, Message, Refusal, Reply};
    ///
    /// struct Jobs;
    ///
    /// #[async_trait::async_trait]
    /// impl Handler for Jobs {
    ///     async fn message(&self, _: &Client, job: &Channel, _: Message) -> Result<Reply, Refusal> {
    ///         job.publish("started", &true).await?;
    ///         job.other("jobs/list")?.publish("job", job.name().as_str()).await?;
    ///         Ok(Reply::done())
    ///     }
    /// }
    /// ```
    pub fn other(&self, name: &str) -> Result<Channel, Refusal> {
        let other = self.backbone.channel(name)?;
        Ok(Self {
            key: self.key.clone(),
            ..other
        })
    }

    /// The channel's name.
    pub fn name(&self) -> &ChannelName {
        &self.name
    }

    /// The rule that the channel follows.
    pub fn rule(&self) -> &Rule {
        &self.rule
    }

    /// What a parameter of the pattern stands for: `room` of `chat/{room}`. In a handler the
    /// handler's pattern counts, elsewhere the rule's.
    pub fn param(&self, name: &str) -> Option<&str> {
        self.params.get(name)
    }

    /// Publishes `value` as JSON and waits for the broker's word. The position that comes back is a
    /// cursor of this channel.
    ///
    /// # Errors
    /// `bad-request`: the name or value is not acceptable; `too-large`; `ended`: the channel takes
    /// no more; `unavailable`: it may or may not have happened.
    pub async fn publish<T: Serialize + ?Sized>(&self, event: &str, value: &T) -> Result<Published, Refusal> {
        self.publish_message(Message::json_of(event, value)?).await
    }

    /// [`Channel::publish`] under a key: where the rule delivers the `latest`, a listener that has
    /// not got the key's earlier events gets only the newest.
    pub async fn publish_keyed<T: Serialize + ?Sized>(&self, event: &str, key: &str, value: &T) -> Result<Published, Refusal> {
        let key = Key::new(key)?;
        self.publish_message(Message::json_of(event, value)?.with_key(key)).await
    }

    /// Publishes a value of an enum that has a variant for each event, `#[serde(tag = "event",
    /// content = "data")]`. Errors as for [`Channel::publish`].
    pub async fn publish_typed<E: Serialize + ?Sized>(&self, event: &E) -> Result<Published, Refusal> {
        self.publish_message(Message::of_typed(event)?).await
    }

    /// Publishes a message of any kind. Errors as for [`Channel::publish`].
    pub async fn publish_message(&self, message: Message) -> Result<Published, Refusal> {
        self.publish_with(Publish::new(message)).await
    }

    /// Publishes with options: an idempotency key, an end behind the event. Errors as for
    /// [`Channel::publish`].
    pub async fn publish_with(&self, mut publish: Publish) -> Result<Published, Refusal> {
        if publish.message.event.is_fired_by_event_source() {
            warn_of_name(&self.name, &publish.message.event);
        }
        if let (None, Some(key)) = (&publish.idempotency_key, &self.key) {
            publish.idempotency_key = Some(key.next());
        }
        self.backbone.publish(&self.name, self.figures, publish).await
    }

    /// Ends the channel: its listeners are told and let go, and it takes no more events.
    ///
    /// # Errors
    /// `ended` if it has ended already; `unavailable`.
    pub async fn end(&self) -> Result<Published, Refusal> {
        self.publish_with(Publish::end()).await
    }

    /// What the broker keeps after `after`, or without it the newest events; at most `limit`,
    /// oldest first.
    ///
    /// # Errors
    /// `unavailable`.
    pub async fn history(&self, after: Option<Position>, limit: usize) -> Result<Replay, Refusal> {
        self.page(after, PageLimit::events(limit)).await
    }

    /// [`Channel::history`] with a bound in bytes as well.
    ///
    /// # Errors
    /// `unavailable`.
    pub async fn page(&self, after: Option<Position>, limit: PageLimit) -> Result<Replay, Refusal> {
        self.backbone
            .replay(&self.name, after, limit)
            .await
            .map_err(|error| self.backbone.refusal(&error))
    }
}

/// Warns once of each event name that pages cannot tell from their connection's own events.
fn warn_of_name(channel: &ChannelName, event: &EventName) {
    static WARNED: [AtomicBool; 2] = [const { AtomicBool::new(false) }; 2];
    let warned = &WARNED[usize::from(event.as_str() == "open")];
    if !warned.swap(true, Ordering::Relaxed) {
        tracing::warn!(
            %channel,
            %event,
            "an event has a name that a browser's EventSource fires itself: pages take it for a broken or an opened connection; \
             choose another name (this is said once for each name)"
        );
    }
}

impl Channel {
    /// Who is in the channel now, on all nodes: users in the order of their ids, the anonymous
    /// last. The directory of members is asked, unless this node follows the channel's members for
    /// a listener anyway.
    ///
    /// # Errors
    /// `bad-request`: the channel's rule says nothing of presence; `unavailable`.
    pub async fn members(&self) -> Result<Vec<Arc<Member>>, Refusal> {
        let presence = self.backbone.presence(&self.name, &self.rule)?;
        let members = presence.members(&self.name).await;
        members.map_err(|error| self.backbone.refusal(&error))
    }
}

impl ClientKey {
    /// A key for the next publish: the same ones, in the same order, whenever the message is
    /// repeated.
    fn next(&self) -> ScopedKey {
        let part = self.parts.fetch_add(1, Ordering::Relaxed);
        let source = self.user.as_deref().map_or(self.connection, KeySource::User);
        ScopedKey::client(source, &self.key, part, self.said)
    }
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channel").field("name", &self.name).finish_non_exhaustive()
    }
}
