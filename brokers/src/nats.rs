//! NATS with JetStream, version 2.10 or newer, as the backbone of several nodes.
//!
//! **One stream holds the events of all channels**, each channel under a subject of its own, and
//! tells every message that it has stored once more to those who listen (`republish`). So there is
//! neither a stream nor a consumer per channel: a node has one connection, and a plain subscription
//! for each channel that it follows. One stream and not several, because a channel must never
//! change its stream: the numbers of two streams are not in one order, and nodes with older rules
//! would listen elsewhere.
//!
//! **An event's position is its sequence in the stream.** The stream begins to count at the clock
//! in microseconds, so a new one gives nothing that an older one gave. Sequences of one channel
//! have holes; so each message says which one was before it, and is stored only if that one still
//! is the channel's newest (`Nats-Expected-Last-Subject-Sequence`). The chain that is read is the
//! chain that was written, and nothing comes after an end. Publishes to one channel hence go one
//! after the other.
//!
//! **Only the stream's leader knows the newest message.** It is asked by a publish that it must
//! refuse, and which tells what the newest is. Events are then read from any replica, which may
//! lag: a page must be a chain up to where the leader said, or it is read again.
//!
//! Subjects, for the prefix `airwave`: `airwave.log.c.NAME` what is stored of a channel,
//! `airwave.live.c.NAME` the same as it is told, `airwave.log.epoch` where channels without events
//! begin, `airwave.log.probe.NODE` what a node says to itself. Who is in a channel is in a stream
//! of its own, which `members` tells of.

mod append;
mod clock;
mod connection;
mod epoch;
mod errors;
mod generations;
mod in_turn;
mod kept;
mod link;
mod members;
mod messages;
mod page;
mod read;
mod refresh;
mod remembered;
mod scan;
mod settings;
mod store;
mod stored;
mod stream;
mod sweep;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use airwave_core::broker::{BrokerStats, FeedSender};
use airwave_core::event::Invalid;
use airwave_core::{Append, Broker, BrokerError, ChannelName, Feed, PageLimit, Position, Published, Replay, Rules};
use async_nats::Subscriber;
use async_trait::async_trait;
use futures_util::StreamExt;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use self::connection::Connection;
pub use self::errors::NatsConnectError;
use self::errors::{late, lost};
use self::link::{DEADLINE, LONGEST, Link, PermissionWatch};
use self::messages::sequence_of;
use self::refresh::{Followed, Follows};
use self::remembered::Remembered;
use self::settings::Settings;
pub use self::settings::Tuning;
use self::stored::token;
use self::sweep::ToSweep;
use crate::silence::while_active;

/// The broker. Dropping it ends its feeds and closes its connection.
pub struct Nats {
    rules: Rules,
    connection: Arc<Connection>,
    known: Remembered,
    epochs: epoch::Epochs,
    /// What is to be taken from the stream.
    due: mpsc::Sender<ToSweep>,
    members: members::MemberAccounts,
    followed: Followed,
    task: AbortHandle,
}

/// Checks a URL without asking anybody: what is wrong with it, and what to write.
///
/// # Errors
/// A sentence without its subject, and without any part of the URL.
pub fn check(url: &str) -> Result<(), Invalid> {
    Settings::new(url).map(|_| ()).map_err(Invalid::new)
}

impl Nats {
    /// Connects to one of the servers that `url` names,
    /// `nats://[user:password@]host[:port][,host…][?parameters]` or `tls://…`, makes or changes the
    /// stream, and keeps of each channel what `rules` say. Belongs to the tokio runtime that it is
    /// awaited in.
    ///
    /// Parameters: `prefix` (of stream and subjects: `airwave`), `replicas` (1 to 5: 1), `storage`
    /// (`file` or `memory`: `file`), `creds` and `nkey` (a file to log in with), `ca` (a file with
    /// the certificates that TLS trusts, instead of the system's). `token@` instead of
    /// `user:password@` is a token.
    ///
    /// # Errors
    /// The URL is wrong, or no server can be reached, or refuses us, or is one that we can use; the
    /// text says what to do. Later outages are no errors of this kind: they are waited for.
    pub async fn connect(url: &str, rules: Rules) -> Result<Nats, NatsConnectError> {
        Self::with(Settings::new(url).map_err(NatsConnectError::Url)?, rules).await
    }

    /// For tests: one with other sizes and another clock.
    #[doc(hidden)]
    pub async fn connect_tuned(url: &str, rules: Rules, tuning: Tuning) -> Result<Nats, NatsConnectError> {
        let mut settings = Settings::new(url).map_err(NatsConnectError::Url)?;
        settings.tuning = tuning;
        Self::with(settings, rules).await
    }

    async fn with(settings: Settings, rules: Rules) -> Result<Nats, NatsConnectError> {
        let (connection, keep) = Connection::connect(settings, rules.clone()).await?;
        let known = Remembered::default();
        let (due, sweeping) = sweep::queue();
        let followed = Followed::default();
        let task = {
            let (connection, rules, known) = (connection.clone(), rules.clone(), known.clone());
            let followed = followed.clone();
            async move {
                tokio::join!(
                    keep,
                    sweep::sweep(&connection, rules, known, sweeping),
                    refresh::refresh(&connection, followed)
                )
            }
        };
        Ok(Nats {
            rules,
            connection,
            known,
            epochs: epoch::Epochs::default(),
            due,
            members: members::MemberAccounts::default(),
            followed,
            task: tokio::spawn(task).abort_handle(),
        })
    }

    /// Carries out a call as long as anything arrives on the connection, and no longer than
    /// [`LONGEST`].
    async fn within<T>(&self, call: impl Future<Output = Result<T, BrokerError>>) -> Result<T, BrokerError> {
        let call = while_active(DEADLINE, || self.connection.arrived(), call);
        match timeout(LONGEST, call).await {
            Ok(Some(answer)) => answer,
            Ok(None) | Err(_) => Err(late()),
        }
    }

    /// Follows the channel. `page`: reads its newest events, too.
    async fn open_feed(&self, channel: &ChannelName, page: Option<PageLimit>) -> Result<(Feed, Option<Replay>), BrokerError> {
        let link = self.connection.link().await?;
        let subject = self.connection.live(&format!("c.{}", token(channel)));
        let mut forbidden = link.forbidden.watch("Subscription", &subject);
        let live = link.client.subscribe(subject).await;
        let live = live.map_err(|error| lost("the connection broke").caused_by(error))?;
        // Only now: what is stored after this answer is heard.
        let (head, replay) = match page {
            Some(limit) => {
                let replay = self.read(channel, None, limit).await?;
                (replay.head, Some(replay))
            }
            None => (self.chain(&link, channel).await?.head, None),
        };
        forbidden.look()?;
        let (stop, stopped) = oneshot::channel();
        let (sender, feed) = Feed::new(head, move || drop(stop));
        let follows = self.followed.add(channel, head);
        tokio::spawn(carry(link, live, forbidden, stopped, (sender, head), follows));
        Ok((feed, replay))
    }
}

/// Carries what the stream tells to a feed, until something is missing, the connection is dead, the
/// server takes the subscription away, or the feed is dropped.
async fn carry(
    link: Arc<Link>,
    mut live: Subscriber,
    mut forbidden: PermissionWatch,
    stopped: oneshot::Receiver<()>,
    (feed, feed_head): (FeedSender, Position),
    _follows: Follows,
) {
    let (dead, from_leader) = (link.dead.clone(), link.from_leader.clone());
    // Held by a quiet feed, it would keep a dead connection's client.
    drop(link);
    let (head, mut last) = (feed_head, feed_head);
    let carry = async {
        while let Some(message) = live.next().await {
            from_leader.fetch_add(1, Ordering::Relaxed);
            let stored = sequence_of(&message).and_then(|sequence| stored::read(sequence, message.payload));
            let Some(stored) = stored else {
                tracing::warn!(subject = %message.subject, "a message is not one of ours: its feed ends");
                return;
            };
            // Others were told before the head was read.
            for event in stored.events().filter(|event| event.position > head) {
                let follows = event.previous == last;
                last = event.position;
                if !follows || !feed.push(event.clone()) {
                    return;
                }
            }
        }
    };
    tokio::select! {
        () = carry => {}
        _ = stopped => {}
        () = dead.wait() => {}
        _ = forbidden.wait() => {}
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.task.abort();
        self.connection.close();
    }
}

#[async_trait]
impl Broker for Nats {
    fn name(&self) -> &'static str {
        "nats"
    }

    async fn publish(&self, channel: &ChannelName, append: Append) -> Result<Published, BrokerError> {
        self.within(self.append(channel, &append)).await
    }

    async fn follow(&self, channel: &ChannelName) -> Result<Feed, BrokerError> {
        let opened = self.within(self.open_feed(channel, None)).await;
        opened.map(|(feed, _)| feed)
    }

    async fn open(&self, channel: &ChannelName, limit: PageLimit) -> Result<(Feed, Replay), BrokerError> {
        let (feed, replay) = self.within(self.open_feed(channel, Some(limit))).await?;
        let replay = replay.ok_or_else(|| lost("the page was not read"))?;
        Ok((feed, replay))
    }

    async fn replay(&self, channel: &ChannelName, after: Option<Position>, limit: PageLimit) -> Result<Replay, BrokerError> {
        self.within(self.read(channel, after, limit)).await
    }

    async fn ping(&self) -> Result<(), BrokerError> {
        let ping = async {
            let link = self.connection.link().await?;
            self.connection.probe_itself(&link).await
        };
        self.within(ping).await
    }

    fn stats(&self) -> BrokerStats {
        self.connection.stats.clone()
    }
}
