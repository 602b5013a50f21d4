//! The backbone's contract: it orders, keeps and carries events between nodes.
//!
//! `airwave_brokers::memory` is the reference; the contract as tests is the module `conformance`
//! (feature of that name).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;

use crate::event::{ChannelName, Event, Message, Position};
use crate::idempotency::{Fingerprint, ScopedKey};
use crate::inbox::{FeedSink, Inbox, InboxSender};
pub use crate::replay::{PageLimit, Replay};

/// How long a repeated publish with the same [`IdempotencyKey`](crate::event::IdempotencyKey) is
/// recognised.
pub const IDEMPOTENCY_WINDOW: Duration = Duration::from_secs(120);

/// The backbone. It never sees a client, a transport or a byte of a wire format.
///
/// A broker is made with the node's [`Rules`](crate::Rules), so it knows how much of each channel
/// to keep; history MUST keep what the rule promises and MAY keep more. Every method MUST come back
/// within a few seconds, with [`BrokerErrorKind::Unavailable`] if need be, and MUST NOT retry in
/// secret. Dropping a returned future leaves nothing half done but what a network error could leave
/// too.
///
/// # Examples
///
/// A broker that notes how long a publish takes, around any other broker:
///
/// ```
/// use std::sync::Arc;
/// use std::time::Instant;
///
/// use airwave_core::broker::{Append, Broker, BrokerError, BrokerStats, Feed, Published};
/// use airwave_core::broker::{PageLimit, Replay};
/// use airwave_core::{ChannelName, Position};
/// use async_trait::async_trait;
///
/// struct Timed(Arc<dyn Broker>);
///
/// #[async_trait]
/// impl Broker for Timed {
///     fn name(&self) -> &'static str {
///         self.0.name()
///     }
///
///     async fn publish(&self, channel: &ChannelName, append: Append) -> Result<Published, BrokerError> {
///         let begun = Instant::now();
///         let published = self.0.publish(channel, append).await;
///         println!("{channel}: {:?}", begun.elapsed());
///         published
///     }
///
///     async fn follow(&self, channel: &ChannelName) -> Result<Feed, BrokerError> {
///         self.0.follow(channel).await
///     }
///
///     async fn replay(&self, channel: &ChannelName, after: Option<Position>, limit: PageLimit) -> Result<Replay, BrokerError> {
///         self.0.replay(channel, after, limit).await
///     }
///
///     async fn open(&self, channel: &ChannelName, limit: PageLimit) -> Result<(Feed, Replay), BrokerError> {
///         self.0.open(channel, limit).await
///     }
///
///     async fn ping(&self) -> Result<(), BrokerError> {
///         self.0.ping().await
///     }
///
///     fn stats(&self) -> BrokerStats {
///         self.0.stats()
///     }
/// }
/// ```
#[async_trait]
pub trait Broker: Send + Sync + 'static {
    /// A short name for logs and metrics: `memory`, `redis`.
    fn name(&self) -> &'static str;

    /// Appends `publish` as the channel's next event and carries it to every feed, this node's too.
    ///
    /// One step: an event that a feed has shown can be replayed. Positions follow
    /// [`Position::next`] and are never given twice. With [`Append::and_end`] the event and
    /// [`Append::end_behind`] are appended together, or neither is; the end's position is given.
    ///
    /// With an idempotency key that this channel has seen within [`IDEMPOTENCY_WINDOW`], from
    /// whichever node, nothing is appended and the first position is given again. If the first
    /// publish under the key had another [`Append::fingerprint`], the answer is
    /// [`BrokerError::another_payload`] instead; a broker whose store has trimmed the first event
    /// may not know that any more. After an end the channel takes no more events until the broker
    /// has forgotten it.
    ///
    /// # Errors
    /// `Rejected`: it did not and will not happen. `Ended`: the channel has ended. `Unavailable`:
    /// unknown; the caller may repeat it with the same idempotency key.
    async fn publish(&self, channel: &ChannelName, append: Append) -> Result<Published, BrokerError>;

    /// Opens this node's feed: every event after [`Feed::head`], in order. A feed that may have
    /// missed something MUST end; the hub then follows again and heals. Dropping the feed
    /// unsubscribes. About one call per channel and node.
    async fn follow(&self, channel: &ChannelName) -> Result<Feed, BrokerError>;

    /// The events after `after`, oldest first, as many as fit `limit`; without `after`, the newest
    /// ones that fit.
    ///
    /// A page ends at whichever bound of `limit` comes first, and [`Replay::more`] says so. The
    /// first event is always given, even if it is larger than the whole page, so that a reader who
    /// asks again behind a page comes to the end.
    ///
    /// `complete` MUST be true if and only if the broker still holds `after` itself, or `after` is
    /// the head, or the first event it still holds has `previous == after`. Equality, not `<=`: a
    /// position inside the kept range that is not there was lost. Without `after` it is true if and
    /// only if nothing older than what is returned was ever trimmed or left out.
    ///
    /// A page of no events (`limit.events` is 0) answers the same questions. After `after`,
    /// `complete` is what it is for every other page, and `more` is true if and only if the broker
    /// holds an event after `after`. Without `after`, `complete` is true if and only if the channel
    /// never had an event, because every event is left out, and `more` is false, as for every page
    /// without a position.
    async fn replay(&self, channel: &ChannelName, after: Option<Position>, limit: PageLimit) -> Result<Replay, BrokerError>;

    /// Opens this node's feed and reads the channel's newest events: [`Broker::follow`], and then
    /// [`Broker::replay`] without a position.
    ///
    /// The page MUST be read once the feed is open, so that every event stands in the page or is
    /// shown by the feed. [`Feed::head`] is at most [`Replay::head`]. A node opens every channel in
    /// this way, so a broker that answers both in one question halves what a node asks when it
    /// comes back with very many listeners. Any other calls [`follow_and_replay`].
    async fn open(&self, channel: &ChannelName, limit: PageLimit) -> Result<(Feed, Replay), BrokerError>;

    /// Can this broker deliver now, end to end? Asked by the readiness probe.
    async fn ping(&self) -> Result<(), BrokerError>;

    /// Returns where this broker notes what the node's metrics tell of it. Asked once, when the
    /// node starts. A broker without a connection returns [`BrokerStats::in_process`].
    fn stats(&self) -> BrokerStats;
}

/// Follows a channel and then reads its newest events, in two questions: [`Broker::open`] of a
/// broker that cannot answer both in one.
///
/// # Errors
/// As for [`Broker::follow`] and [`Broker::replay`].
pub async fn follow_and_replay<B: Broker + ?Sized>(
    broker: &B,
    channel: &ChannelName,
    limit: PageLimit,
) -> Result<(Feed, Replay), BrokerError> {
    let feed = broker.follow(channel).await?;
    let replay = broker.replay(channel, None, limit).await?;
    Ok((feed, replay))
}

/// What a broker notes of its servers while it works. Cheap to clone; all clones note into one.
/// [`Hub`](crate::Hub) notes every event of a feed itself, so a broker notes what no feed shows.
#[derive(Clone, Debug)]
pub struct BrokerStats(Arc<Noted>);

#[derive(Debug)]
struct Noted {
    since: Instant,
    /// Of the last sign of life: ms after `since`.
    last_activity: AtomicU64,
    reconnects: AtomicU64,
    /// Whether there is a connection to anything.
    remote: bool,
}

impl Default for BrokerStats {
    fn default() -> Self {
        Self::new(true)
    }
}

impl BrokerStats {
    fn new(remote: bool) -> Self {
        Self(Arc::new(Noted {
            since: Instant::now(),
            last_activity: AtomicU64::new(0),
            reconnects: AtomicU64::new(0),
            remote,
        }))
    }

    /// Of a broker within this process, which has no backbone that could be silent.
    pub fn in_process() -> Self {
        Self::new(false)
    }

    /// Whether there is a backbone that could be silent.
    pub(crate) fn can_be_silent(&self) -> bool {
        self.0.remote
    }

    /// Notes that the backbone has delivered something: a probe of this node's, for example.
    pub fn record_activity(&self) {
        self.0.last_activity.store(self.now(), Ordering::Relaxed);
    }

    /// A connection to the backbone was lost and has been made again.
    pub fn reconnected(&self) {
        self.0.reconnects.fetch_add(1, Ordering::Relaxed);
    }

    /// How often [`BrokerStats::reconnected`] was noted.
    pub fn reconnects(&self) -> u64 {
        self.0.reconnects.load(Ordering::Relaxed)
    }

    /// How long ago the backbone delivered anything; at first, how long this has been there.
    pub fn silent_for(&self) -> Duration {
        Duration::from_millis(self.now().saturating_sub(self.0.last_activity.load(Ordering::Relaxed)))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.0.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// One append to a channel, as a broker is asked for it. An application says it with
/// [`Publish`](crate::Publish).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Append {
    /// The event to append. For a bare end of the channel: [`Append::end`].
    pub message: Message,
    /// Makes repeating it harmless.
    pub idempotency_key: Option<ScopedKey>,
    /// Whether the channel ends right behind the message, in the same append.
    pub and_end: bool,
}

impl Append {
    /// Appends `message`.
    pub fn new(message: Message) -> Self {
        Self {
            message,
            idempotency_key: None,
            and_end: false,
        }
    }

    /// Ends the channel.
    pub fn end() -> Self {
        Self::new(Message::end())
    }

    /// The same with an idempotency key of the application's.
    pub fn with_idempotency_key(mut self, key: impl Into<ScopedKey>) -> Self {
        self.idempotency_key = Some(key.into());
        self
    }

    /// The same, and the channel ends behind it: both happen, or neither does.
    pub fn and_end(mut self) -> Self {
        self.and_end = true;
        self
    }

    /// Whether this is nothing but the channel's end.
    pub fn is_end(&self) -> bool {
        self.message.event.as_str() == "airwave.end"
    }

    /// Whether the channel has ended after this.
    pub fn ends_channel(&self) -> bool {
        self.and_end || self.is_end()
    }

    /// The end to append right behind the message, if there is one to append.
    pub fn end_behind(&self) -> Option<Message> {
        (self.and_end && !self.is_end()).then(|| Append::end().message)
    }

    /// What must be the same when this is repeated under its key: what the key's source said, or
    /// else the message itself.
    pub fn fingerprint(&self) -> Fingerprint {
        let of_source = self.idempotency_key.as_ref().and_then(ScopedKey::fingerprint);
        of_source.unwrap_or_else(|| Fingerprint::of_message(&self.message, self.ends_channel()))
    }
}

/// Where a publish was put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Published {
    /// The event's position; with [`Append::and_end`], the end's, which is the channel's last.
    pub position: Position,
    /// Whether an earlier publish with the same idempotency key got it.
    pub duplicate: bool,
}

impl Published {
    /// Returns the answer to a publish that was appended at `position`.
    pub const fn new(position: Position) -> Self {
        Self {
            position,
            duplicate: false,
        }
    }

    /// Returns the answer to a repeated publish: the first one stands at `position`.
    pub const fn duplicate_of(position: Position) -> Self {
        Self {
            position,
            duplicate: true,
        }
    }
}

/// What a failed call leaves open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum BrokerErrorKind {
    /// Try again. A publish may have happened.
    Unavailable,
    /// It never will be accepted as it is.
    Rejected,
    /// The channel has ended.
    Ended,
}

/// Why the broker could not do it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
#[non_exhaustive]
pub struct BrokerError {
    /// What the caller can do.
    pub kind: BrokerErrorKind,
    /// For operators: what went wrong. Never holds credentials.
    pub message: String,
    /// Whether clients may read the message: it names the cause, and no host, user or channel.
    pub public: bool,
    /// The client library's own error.
    #[source]
    pub source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl BrokerError {
    /// [`BrokerErrorKind::Unavailable`].
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self {
            kind: BrokerErrorKind::Unavailable,
            message: message.into(),
            public: false,
            source: None,
        }
    }

    /// [`BrokerErrorKind::Rejected`].
    pub fn rejected(message: impl Into<String>) -> Self {
        Self {
            kind: BrokerErrorKind::Rejected,
            message: message.into(),
            public: false,
            source: None,
        }
    }

    /// [`BrokerErrorKind::Ended`].
    pub fn ended() -> Self {
        Self {
            kind: BrokerErrorKind::Ended,
            message: "the channel has ended".into(),
            public: false,
            source: None,
        }
    }

    /// The same, with a message that clients may read.
    pub fn for_clients(mut self) -> Self {
        self.public = true;
        self
    }

    /// [`BrokerErrorKind::Rejected`]: the idempotency key was first used for another payload.
    pub fn another_payload() -> Self {
        Self::rejected(
            "this idempotency key was used for another message within the last 120 seconds: give each message a key of its own",
        )
    }

    /// The same with the cause.
    pub fn caused_by(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Arc::new(source));
        self
    }
}

/// One node's live stream of one channel.
///
/// For example: `head` is 20 when the feed opens; events 30 and 40 are published; the feed shows
/// 30, then 40. The connection to the broker breaks: the feed shows nothing more and ends. The
/// reader opens a new feed, finds a head of 60, and replays after 40.
///
/// Within one feed nothing is missing, so an event whose `previous` is zero continues the one
/// before it.
#[non_exhaustive]
pub struct Feed {
    /// The channel's newest position when the feed opened; never zero. Every later event is shown.
    pub head: Position,
    inbox: Inbox<Arc<Event>>,
}

/// The broker's end of a [`Feed`]. Dropping it ends the feed.
pub struct FeedSender(InboxSender<Arc<Event>>);

impl Feed {
    /// A feed and the broker's end of it. `unsubscribe` is called once, when the feed is dropped.
    pub fn new(head: Position, unsubscribe: impl FnOnce() + Send + 'static) -> (FeedSender, Feed) {
        let (sender, inbox) = Inbox::new(unsubscribe);
        (FeedSender(sender), Feed { head, inbox })
    }

    /// The next event; `None` when the feed has ended.
    pub async fn next(&mut self) -> Option<Arc<Event>> {
        std::future::poll_fn(|cx| self.inbox.poll_next(cx)).await
    }

    /// From now on `sink` is called for each event, beginning with those that wait already.
    pub(crate) fn attach(&self, sink: Arc<dyn FeedSink<Arc<Event>>>) {
        self.inbox.attach(sink);
    }
}

impl FeedSender {
    /// Shows the feed its next event. Returns false if the feed was dropped, or had to end because
    /// its reader took no events.
    pub fn push(&self, event: Arc<Event>) -> bool {
        self.0.push(event)
    }

    /// Whether the feed has been dropped.
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }
}
