//! Subscribing asks permission, opens the channel, and decides where the listener begins.
//!
//! This module is the one place that decides about resume, for every transport.

use std::sync::Arc;

use super::catch_up::{CatchUp, PAGE};
use super::progress::Progress;
use super::subscription::{OnUnsubscribe, Reader, Subscription};
use crate::admission::Connection;
use crate::broker::Replay;
use crate::cursor::Cursor;
use crate::event::{ChannelName, Position};
use crate::follower::Follower;
use crate::format::GapReason;
use crate::handler::{Client, LeaveReason};
use crate::log::{Entry, Found, Item, Log, Registration};
use crate::logs::Logs;
use crate::presence::{Membership, Presence};
use crate::refusal::Refusal;
use crate::rule::{ReplayOnSubscribe, Rule};
use crate::session_handle::SessionHandle;

/// A listener wants to begin at this point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum After {
    /// The listener has no cursor: the subscription is fresh.
    Nothing,
    /// The listener has everything up to here. [`Position::ZERO`] is the same as no cursor.
    Position(Position),
    /// The listener gives a cursor that the node cannot read, and receives a gap.
    Unreadable,
}

impl After {
    /// Parses a cursor as one channel's listener gave it. An empty text is no cursor.
    pub fn parse(text: Option<&str>) -> Self {
        match text {
            None | Some("") => After::Nothing,
            Some(text) => text.parse().map_or(After::Unreadable, After::Position),
        }
    }

    /// Returns what a cursor of several channels says of `channel`. A listener whose cursor does
    /// not know the channel begins it afresh.
    pub fn of(cursor: &Cursor, channel: &ChannelName) -> Self {
        if cursor.is_one() {
            return After::Unreadable;
        }
        match cursor.find(channel) {
            Ok(position) => position.map_or(After::Nothing, After::Position),
            Err(_) => After::Unreadable,
        }
    }
}

/// A subscriber subscribes for a session while the session goes on delivering.
#[derive(Clone)]
pub struct Subscriber {
    pub(super) connection: Arc<Connection>,
    pub(super) handle: Arc<SessionHandle>,
    /// Holds the index of the session's format.
    pub(super) format: usize,
    pub(super) presence: bool,
}

/// The node has granted this subscription, and the session has not begun it. It holds the channel,
/// and where the listener begins. The caller gives it to [`Session::add`](super::Session::add).
pub struct PendingSubscription {
    registration: Registration,
    pub(super) beginning: Beginning,
    pub(super) on_unsubscribe: Option<Box<OnUnsubscribe>>,
    /// Holds the client, and whether it wants to receive the other members, where the channel has
    /// presence.
    pub(super) membership: Option<(Arc<Client>, bool)>,
}

/// A subscription begins at this point.
pub(super) struct Beginning {
    reader: Reader,
    /// Holds the cursor that the listener receives with its confirmation.
    pub(super) cursor: Position,
    /// Holds where the listener stands until it receives more: before a gap that it has not
    /// received.
    pub(super) stands_at: Position,
    pub(super) resumed: bool,
}

impl Subscriber {
    /// Makes the listener also receive the channel's members, first all of them and then each
    /// change.
    pub fn with_presence(mut self, presence: bool) -> Self {
        self.presence = presence;
        self
    }

    /// Asks permission, opens the channel, and finds where the listener begins. The subscription
    /// misses nothing that is published after this returns.
    ///
    /// # Errors
    /// What the handler refuses, and `unknown-channel`, `wrong-transport`, `too-many`,
    /// `unavailable`; `bad-request`: it wants to hear who is in a channel whose rule says nothing
    /// of presence.
    pub async fn subscribe(&self, name: &ChannelName, after: After) -> Result<PendingSubscription, Refusal> {
        let admission = &self.connection.admission;
        let admitted = admission.admit_listener(&self.connection, name).await?;
        let client = admitted.client.clone();
        // From here on the handler receives a call when the subscription is over, even if a later
        // step fails.
        let on_unsubscribe = admitted.handler.map(|handler| {
            Box::new(OnUnsubscribe {
                admission: admission.clone(),
                handler,
                client: admitted.client,
                channel: admitted.channel,
                reason: LeaveReason::Disconnected,
            })
        });
        let membership = self.membership(name, &admitted.rule, client)?;
        let (registration, follower) = self.register(name, &admitted.rule).await?;
        let beginning = match after {
            After::Position(position) if position != Position::ZERO => {
                Beginning::resumed(&admission.logs, &follower, position).await?
            }
            After::Unreadable | After::Nothing | After::Position(_) => {
                let unreadable = after == After::Unreadable;
                Beginning::fresh(&admission.logs, &follower.log, unreadable).await?
            }
        };
        Ok(PendingSubscription {
            registration,
            beginning,
            on_unsubscribe,
            membership,
        })
    }

    /// Returns what the channel's presence needs to know of the listener, where the channel has
    /// presence.
    fn membership(&self, name: &ChannelName, rule: &Rule, client: Arc<Client>) -> Result<Option<(Arc<Client>, bool)>, Refusal> {
        match self.connection.admission.backbone.presence(name, rule) {
            Ok(_) => {
                Presence::check(client.user())?;
                Ok(Some((client, self.presence)))
            }
            Err(refusal) if self.presence => Err(refusal),
            Err(_) => Ok(None),
        }
    }

    async fn register(&self, name: &ChannelName, rule: &Arc<Rule>) -> Result<(Registration, Arc<Follower>), Refusal> {
        // The log may close in the moment between, and the node then opens it again.
        for _ in 0..10 {
            let follower = self.connection.admission.logs.open(name, rule).await?;
            if let Some(registration) = follower.log.register(self.handle.clone(), self.format) {
                return Ok((registration, follower));
            }
            tokio::task::yield_now().await;
        }
        Err(Refusal::unavailable("the channel could not be opened: try again"))
    }

    /// Returns the connection that subscribes.
    pub fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }
}

impl Beginning {
    /// Finds the beginning of a listener without a cursor, or with one that is `unreadable`.
    async fn fresh(logs: &Logs, log: &Log, unreadable: bool) -> Result<Self, Refusal> {
        let unknown = |cursor| unreadable.then(|| Entry::gap(None, cursor, GapReason::UnknownPosition));
        let (reader, cursor) = match log.begin_fresh() {
            Some(start) => {
                let mut first = start.first;
                if let Some(gap) = unknown(start.cursor) {
                    first.insert(0, gap);
                }
                (Reader::before_ring(first, start.next), start.cursor)
            }
            None => {
                let replay = logs
                    .shared_replay(&log.name, Position::ZERO, PAGE)
                    .await
                    .map_err(|error| logs.backbone.refusal(&error))?;
                let cursor = replay.goes_on_after();
                let mut catch_up = CatchUp::with_page(log, &Progress::new(cursor, cursor), &replay);
                if log.rule.replay == ReplayOnSubscribe::Last {
                    catch_up.conflate();
                }
                if let Some(gap) = unknown(cursor) {
                    catch_up.announce(gap);
                }
                (Reader::CatchUp(catch_up), cursor)
            }
        };
        Ok(Self {
            reader,
            cursor,
            stands_at: cursor,
            resumed: false,
        })
    }

    /// Finds the beginning of a listener that has everything up to `position`.
    async fn resumed(logs: &Logs, follower: &Follower, position: Position) -> Result<Self, Refusal> {
        let log = &follower.log;
        // The node asks this before it looks at the ring, because a log that has healed by then
        // shows its gaps.
        let healing = follower.is_healing();
        let found = log.find(position);
        if let (Found::At(next), false) = (&found, healing) {
            return Ok(Self::in_ring(log, *next, position));
        }
        // A log that heals does not know what comes next, and the broker does. While the node
        // cannot reach the broker, the log's own events come next, if there are any.
        let refused = |error| logs.backbone.refusal(error);
        match (logs.shared_replay(&log.name, position, PAGE).await, found) {
            (Ok(replay), _) => Ok(Self::in_history(log, &replay, position)),
            (Err(error), Found::At(next)) => Self::without_broker(log, next, position).ok_or_else(|| refused(&error)),
            (Err(error), _) => Err(refused(&error)),
        }
    }

    /// Begins at `next` in the ring, for a listener that holds `position`. The listener is resumed,
    /// unless a gap stands there.
    fn in_ring(log: &Log, next: u64, position: Position) -> Self {
        if let Some((index, entry)) = log.next_sent(next)
            && let Item::Gap { gap, expected_previous } = &entry.item
        {
            let gap = Entry::gap(Some(position), *expected_previous, gap.reason);
            return Self {
                cursor: gap.position(),
                stands_at: position,
                resumed: false,
                reader: Reader::before_ring([gap], index + 1),
            };
        }
        let reader = match log.is_over(next) {
            true => Reader::Ended,
            false => Reader::Ring { next },
        };
        Self {
            reader,
            cursor: position,
            stands_at: position,
            resumed: true,
        }
    }

    /// Does the work of [`Beginning::in_ring`] for a log that is healing while the broker does not
    /// answer. Returns `None` if the listener has all that the ring holds. No node then knows
    /// whether an event or a gap comes next.
    fn without_broker(log: &Log, next: u64, position: Position) -> Option<Self> {
        let first = log.next_sent(next);
        if first.is_none() && !log.is_over(next) {
            return None;
        }
        let mut beginning = Self::in_ring(log, next, position);
        // The listener's next entry stays the same, even if the log appends more before the
        // listener reads.
        if beginning.resumed
            && let Some((index, event)) = first
        {
            beginning.reader = Reader::before_ring([event], index + 1);
        }
        Some(beginning)
    }

    /// Begins with `replay`, which the node asked for with the `position` that the listener holds.
    fn in_history(log: &Log, replay: &Replay, position: Position) -> Self {
        let resumed = replay.is_whole(position);
        let catch_up = CatchUp::with_page(log, &Progress::new(position, position), replay);
        let cursor = match catch_up.first() {
            Some(gap) if !resumed => gap.position(),
            _ => position,
        };
        // Another node may have sent the listener the end, while this node has not received it yet.
        let over = resumed && replay.ended && replay.head == position;
        Self {
            reader: match over {
                true => Reader::Ended,
                false => Reader::CatchUp(catch_up),
            },
            cursor,
            stands_at: position,
            resumed,
        }
    }
}

impl PendingSubscription {
    /// Returns whether the channel has ended and the listener has all of it, so that nothing more
    /// comes.
    pub fn is_over(&self) -> bool {
        matches!(self.beginning.reader, Reader::Ended)
    }

    /// Returns the channel.
    pub fn channel(&self) -> &ChannelName {
        &self.registration.log.name
    }

    /// Begins the subscription, for the session that has confirmed it.
    pub(super) fn begin(self, membership: Option<Box<Membership>>, stamp_index: usize) -> Subscription {
        let Beginning {
            reader,
            cursor,
            stands_at,
            ..
        } = self.beginning;
        Subscription::new(
            self.registration,
            reader,
            Progress::new(stands_at, cursor),
            membership,
            stamp_index,
            self.on_unsubscribe,
        )
    }
}
