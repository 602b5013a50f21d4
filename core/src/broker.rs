//! A broker orders, keeps and carries events between nodes, and this module holds its contract.
//!
//! `airwave_brokers::memory` is the reference. The module `conformance` (feature of that name)
//! holds the contract as tests.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;

use crate::event::{ChannelName, Event, Message, Position};
use crate::idempotency::{Fingerprint, ScopedKey};
use crate::inbox::{FeedSink, Inbox, InboxSender};
pub use crate::replay::{PageLimit, Replay};

/// A channel recognises a repeated publish with the same
/// [`IdempotencyKey`](crate::event::IdempotencyKey) for this long.
pub const IDEMPOTENCY_WINDOW: Duration = Duration::from_secs(120);

/// The broker is the backbone of all nodes. It never sees a client, a transport or a byte of a wire
/// format.
///
/// Each broker is made with the node's [`Rules`](crate::Rules), so it knows how much of each
/// channel to keep. History MUST keep what the rule promises and MAY keep more. Every method MUST
/// come back within a few seconds, with [`BrokerErrorKind::Unavailable`] if need be, and MUST NOT
/// retry in secret. Dropping a returned future leaves nothing half done, except what a network
/// error could leave too.
///
/// # Examples
///
/// This broker wraps any other broker and prints how long a publish takes:
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
    /// Returns a short name for logs and metrics: `memory`, `redis`.
    fn name(&self) -> &'static str;

    /// Appends `publish` as the channel's next event and carries it to every feed, this node's too.
    ///
    /// The append is one step: the broker can replay every event that a feed has shown. Positions
    /// follow [`Position::next`], and no position is given twice. With [`Append::and_end`] the
    /// broker appends the event and [`Append::end_behind`] together, or neither. It then returns
    /// the end's position.
    ///
    /// If this channel has seen the idempotency key within [`IDEMPOTENCY_WINDOW`], from any node,
    /// the broker appends nothing and returns the first position again. If the first publish under
    /// the key had another [`Append::fingerprint`], the answer is [`BrokerError::another_payload`]
    /// instead. A broker whose store has trimmed the first event may not know that any more. After
    /// an end the channel takes no more events until the broker has forgotten it.
    ///
    /// # Errors
    /// `Rejected`: it did not and will not happen. `Ended`: the channel has ended. `Unavailable`:
    /// unknown; the caller may repeat it with the same idempotency key.
    async fn publish(&self, channel: &ChannelName, append: Append) -> Result<Published, BrokerError>;

    /// Opens this node's feed, which shows every event after [`Feed::head`], in order. A feed that
    /// may have missed something MUST end; the hub then follows again and heals. Dropping the feed
    /// unsubscribes. A node makes about one such call per channel.
    async fn follow(&self, channel: &ChannelName) -> Result<Feed, BrokerError>;

    /// Returns the events after `after`, oldest first, as many as fit `limit`. Without `after` it
    /// returns the newest events that fit.
    ///
    /// A page ends at the first bound of `limit` that it reaches, and [`Replay::more`] says so. The
    /// page always holds the first event, even if that event is larger than the whole page. A
    /// reader who asks again behind each page therefore comes to the end.
    ///
    /// `complete` MUST be true if and only if the broker still holds `after` itself, or `after` is
    /// the head, or the first event it still holds has `previous == after`. The broker compares for
    /// equality, not `<=`: it has lost a position that is missing inside the kept range. Without
    /// `after`, `complete` is true if and only if the broker never trimmed or left out an event
    /// older than the page.
    ///
    /// A page of no events (`limit.events` is 0) answers the same questions. With `after`,
    /// `complete` is the same as for every other page, and `more` is true if and only if the broker
    /// holds an event after `after`. Without `after`, `complete` is true if and only if the channel
    /// never had an event, because every event is left out. `more` is then false, as for every page
    /// without a position.
    async fn replay(&self, channel: &ChannelName, after: Option<Position>, limit: PageLimit) -> Result<Replay, BrokerError>;

    /// Opens this node's feed and reads the channel's newest events. It does the work of
    /// [`Broker::follow`], and then of [`Broker::replay`] without a position.
    ///
    /// The broker MUST read the page once the feed is open, so that the page holds, or the feed
    /// shows, every event. [`Feed::head`] is at most [`Replay::head`]. A node opens every channel
    /// in this way. A broker that answers both in one request halves the requests of a node that
    /// comes back with very many listeners. Any other broker calls [`follow_and_replay`].
    async fn open(&self, channel: &ChannelName, limit: PageLimit) -> Result<(Feed, Replay), BrokerError>;

    /// Checks whether this broker can deliver now, end to end. The readiness probe calls it.
    async fn ping(&self) -> Result<(), BrokerError>;

    /// Returns the place where this broker notes its part of the node's metrics. The node asks
    /// once, when it starts. A broker without a connection returns [`BrokerStats::in_process`].
    fn stats(&self) -> BrokerStats;
}

/// Follows a channel and then reads its newest events, in two requests. A broker that cannot answer
/// both in one request uses it for [`Broker::open`].
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

/// A broker notes here what it sees of its servers while it works. The value is cheap to clone, and
/// all clones share their notes. [`Hub`](crate::Hub) notes every event of a feed itself, so a
/// broker notes only what no feed shows.
#[derive(Clone, Debug)]
pub struct BrokerStats(Arc<Noted>);

#[derive(Debug)]
struct Noted {
    since: Instant,
    /// Holds the time of the last activity, in ms after `since`.
    last_activity: AtomicU64,
    reconnects: AtomicU64,
    /// Says whether the broker has a connection to anything.
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

    /// Returns the statistics of a broker within this process, which has no backbone that could be
    /// silent.
    pub fn in_process() -> Self {
        Self::new(false)
    }

    /// Returns whether there is a backbone that could be silent.
    pub(crate) fn can_be_silent(&self) -> bool {
        self.0.remote
    }

    /// Notes that the backbone has delivered something, for example a probe of this node.
    pub fn record_activity(&self) {
        self.0.last_activity.store(self.now(), Ordering::Relaxed);
    }

    /// Notes that the broker has lost its connection to the backbone and made it again.
    pub fn reconnected(&self) {
        self.0.reconnects.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns how many times [`BrokerStats::reconnected`] was called.
    pub fn reconnects(&self) -> u64 {
        self.0.reconnects.load(Ordering::Relaxed)
    }

    /// Returns how long ago the backbone delivered anything. Before the first delivery it returns
    /// the age of these statistics.
    pub fn silent_for(&self) -> Duration {
        Duration::from_millis(self.now().saturating_sub(self.0.last_activity.load(Ordering::Relaxed)))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.0.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// An append asks a broker to add one event to a channel. An application uses
/// [`Publish`](crate::Publish) instead.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Append {
    /// Holds the event to append. [`Append::end`] makes a bare end of the channel.
    pub message: Message,
    /// Makes a repeated append harmless.
    pub idempotency_key: Option<ScopedKey>,
    /// Says whether the channel ends right behind the message, in the same append.
    pub and_end: bool,
}

impl Append {
    /// Creates an append of `message`.
    pub fn new(message: Message) -> Self {
        Self {
            message,
            idempotency_key: None,
            and_end: false,
        }
    }

    /// Creates an append that ends the channel.
    pub fn end() -> Self {
        Self::new(Message::end())
    }

    /// Returns the append with an idempotency key of the application.
    pub fn with_idempotency_key(mut self, key: impl Into<ScopedKey>) -> Self {
        self.idempotency_key = Some(key.into());
        self
    }

    /// Returns the append with the channel's end behind it: both happen, or neither does.
    pub fn and_end(mut self) -> Self {
        self.and_end = true;
        self
    }

    /// Returns whether this append is nothing but the channel's end.
    pub fn is_end(&self) -> bool {
        self.message.event.as_str() == "airwave.end"
    }

    /// Returns whether the channel has ended after this append.
    pub fn ends_channel(&self) -> bool {
        self.and_end || self.is_end()
    }

    /// Returns the end to append right behind the message, if there is one to append.
    pub fn end_behind(&self) -> Option<Message> {
        (self.and_end && !self.is_end()).then(|| Append::end().message)
    }

    /// Returns the value that must be the same when a caller repeats this append under its key. It
    /// comes from the key's source, or else from the message itself.
    pub fn fingerprint(&self) -> Fingerprint {
        let of_source = self.idempotency_key.as_ref().and_then(ScopedKey::fingerprint);
        of_source.unwrap_or_else(|| Fingerprint::of_message(&self.message, self.ends_channel()))
    }
}

/// The broker puts a publish at this position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Published {
    /// Holds the event's position. With [`Append::and_end`] it is the end's position, which is the
    /// channel's last.
    pub position: Position,
    /// Says whether an earlier publish with the same idempotency key got this position.
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

    /// Returns the answer to a repeated publish, whose first publish stands at `position`.
    pub const fn duplicate_of(position: Position) -> Self {
        Self {
            position,
            duplicate: true,
        }
    }
}

/// The kind says what a failed call leaves open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum BrokerErrorKind {
    /// The caller can try again. The broker may have appended the publish.
    Unavailable,
    /// The broker never accepts the call as it is.
    Rejected,
    /// The channel has ended.
    Ended,
}

/// The error says why the broker could not carry out a call.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
#[non_exhaustive]
pub struct BrokerError {
    /// Says what the caller can do.
    pub kind: BrokerErrorKind,
    /// Says to operators what went wrong. It never holds credentials.
    pub message: String,
    /// Says whether clients may read the message. Such a message names the cause, and no host, user
    /// or channel.
    pub public: bool,
    /// Holds the client library's own error.
    #[source]
    pub source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl BrokerError {
    /// Creates an error of the kind [`BrokerErrorKind::Unavailable`].
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self {
            kind: BrokerErrorKind::Unavailable,
            message: message.into(),
            public: false,
            source: None,
        }
    }

    /// Creates an error of the kind [`BrokerErrorKind::Rejected`].
    pub fn rejected(message: impl Into<String>) -> Self {
        Self {
            kind: BrokerErrorKind::Rejected,
            message: message.into(),
            public: false,
            source: None,
        }
    }

    /// Creates an error of the kind [`BrokerErrorKind::Ended`].
    pub fn ended() -> Self {
        Self {
            kind: BrokerErrorKind::Ended,
            message: "the channel has ended".into(),
            public: false,
            source: None,
        }
    }

    /// Returns the error with a message that clients may read.
    pub fn for_clients(mut self) -> Self {
        self.public = true;
        self
    }

    /// Creates an error of the kind [`BrokerErrorKind::Rejected`]: the idempotency key was first
    /// used for another payload.
    pub fn another_payload() -> Self {
        Self::rejected(
            "this idempotency key was used for another message within the last 120 seconds: give each message a key of its own",
        )
    }

    /// Returns the error with its cause.
    pub fn caused_by(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Arc::new(source));
        self
    }
}

/// A feed is one node's live stream of one channel.
///
/// For example, `head` is 20 when the feed opens. Applications publish the events 30 and 40, and
/// the feed shows 30, then 40. The connection to the broker breaks, so the feed shows nothing more
/// and ends. The reader opens a new feed, finds a head of 60, and replays after 40.
///
/// A feed misses no event between two that it shows, so an event whose `previous` is zero continues
/// the one before it.
#[non_exhaustive]
pub struct Feed {
    /// Holds the channel's newest position when the feed opened; it is never zero. The feed shows
    /// every later event.
    pub head: Position,
    inbox: Inbox<Arc<Event>>,
}

/// The sender is the broker's end of a [`Feed`]. Dropping it ends the feed.
pub struct FeedSender(InboxSender<Arc<Event>>);

impl Feed {
    /// Creates a feed and the broker's end of it. Dropping the feed calls `unsubscribe` once.
    pub fn new(head: Position, unsubscribe: impl FnOnce() + Send + 'static) -> (FeedSender, Feed) {
        let (sender, inbox) = Inbox::new(unsubscribe);
        (FeedSender(sender), Feed { head, inbox })
    }

    /// Returns the next event, or `None` when the feed has ended.
    pub async fn next(&mut self) -> Option<Arc<Event>> {
        std::future::poll_fn(|cx| self.inbox.poll_next(cx)).await
    }

    /// Calls `sink` for each event from now on, beginning with those that wait already.
    pub(crate) fn attach(&self, sink: Arc<dyn FeedSink<Arc<Event>>>) {
        self.inbox.attach(sink);
    }
}

impl FeedSender {
    /// Shows the feed its next event. It returns false if the feed was dropped, or had to end
    /// because its reader took no events.
    pub fn push(&self, event: Arc<Event>) -> bool {
        self.0.push(event)
    }

    /// Returns whether the feed has been dropped.
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }
}
