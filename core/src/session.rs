//! One connected client, as every transport uses it: a few cursors into logs, and the bytes that
//! are to be written next.
//!
//! A transport's loop is: [`Session::poll_turn`], write what it gave, again. It knows no event, no
//! gap and no history.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;
use tokio::time::{Instant, sleep};

use crate::broker::{PageLimit, Replay};
use crate::channel::Channel;
use crate::cursor::{Cursor, StreamCursor};
use crate::event::{ChannelName, Position};
use crate::follower::Follower;
use crate::format::{GapReason, Notice, Stamp};
use crate::handler::{Client, Handler, LeaveReason};
use crate::hub::{Connection, FormatHandle, Hub};
use crate::log::{Batch, Entry, FormatSlot, Found, Item, Log, READ_BYTES, Read, Registration};
pub use crate::metrics::CloseCause;
use crate::presence::{Membership, Presence};
use crate::refusal::Refusal;
use crate::rule::{Delivery, ReplayOnSubscribe, SlowPolicy};
use crate::session_handle::{HEARTBEAT, SILENT, STALLED, SessionHandle};
use crate::warnings::Warning;

/// How many events a listener is given from the broker's history at a time.
const PAGE: PageLimit = PageLimit::events(500).with_bytes(1 << 20);
/// After so many gaps on the way a listener goes on in the ring, whatever of history could still be
/// read before that.
const PATIENT_GAPS: usize = 1;
/// Of so many reads one is timed.
const SAMPLE: u32 = 32;
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Where a listener wants to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// It has no cursor: a fresh subscription.
    Nothing,
    /// It has everything up to here. [`Position::ZERO`] is the same as no cursor.
    Position(Position),
    /// It gave a cursor that cannot be read: it is told of a gap.
    Unreadable,
}

impl After {
    /// A cursor as one channel's listener gave it; an empty text is none.
    pub fn parse(text: Option<&str>) -> Self {
        match text {
            None | Some("") => After::Nothing,
            Some(text) => text.parse().map_or(After::Unreadable, After::Position),
        }
    }

    /// What a cursor of several channels says of `channel`. A cursor that does not know the channel
    /// begins it afresh.
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

/// What a transport does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Write what there is, then ask again.
    Frames,
    /// Write what there is, then close.
    Closed(CloseReason),
}

/// Why a session is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// All its channels have ended.
    Ended,
    /// The node goes away; the client should come back after so many milliseconds.
    Drain {
        /// Milliseconds.
        retry: u32,
    },
    /// It was too slow for a channel whose rule says close.
    TooSlow,
    /// Nothing was heard from it for the idle time.
    Silent,
    /// A write made no progress for too long: do not wait for it, cut the connection.
    Stalled,
}

/// One client's cursors. Dropping it leaves all its channels.
///
/// In the order of its fields: an event for thousands of listeners costs what has to be fetched
/// from memory for each, so what every event needs stands together, and it needs no more of other
/// places than the handle.
#[repr(C)]
pub struct Session {
    handle: Arc<SessionHandle>,
    /// All that there was has been put out by the last turn.
    drained: bool,
    ends_with_channels: bool,
    visible_heartbeat: bool,
    stale: u32,
    /// Notices that go out next.
    notices: Vec<Bytes>,
    slot: Arc<FormatSlot>,
    hub: Hub,
    closed: Option<CloseReason>,
    /// Why it ends, where `closed` does not say so.
    cause: Option<CloseCause>,
    reads: u32,
    /// Who is read first, so that a busy channel does not starve the others.
    first: usize,
    /// Most listen to one channel: it stands here, and not elsewhere in memory.
    subscriptions: SmallVec<[Subscription; 1]>,
    stamp: Option<Stamp>,
    /// For formats with a stamp: the channels' positions.
    cursor: Option<Box<StreamCursor>>,
    key: u64,
    connection: Arc<Connection>,
}

/// Subscribes for a session while the session goes on delivering.
#[derive(Clone)]
pub struct Subscriber {
    connection: Arc<Connection>,
    handle: Arc<SessionHandle>,
    /// The index of its format.
    format: usize,
    presence: bool,
}

/// A subscription that is granted and not begun: its channel, and where it begins. Give it to
/// [`Session::add`].
pub struct PendingSubscription {
    registration: Registration,
    next: u64,
    cursor: Position,
    /// Where the listener stands as long as it has not been told more: before a gap that it has not
    /// heard of.
    stands_at: Position,
    resumed: bool,
    catch_up: Option<Box<CatchUp>>,
    over: bool,
    on_unsubscribe: Option<Box<OnUnsubscribe>>,
    /// Where the channel has presence: who comes, and whether they want to hear who else is there.
    membership: Option<(Arc<Client>, bool)>,
}

/// In the order of its fields, like the session.
#[repr(C)]
struct Subscription {
    registration: Registration,
    next: u64,
    /// What the listener holds.
    cursor: Position,
    /// What the next event must name as its previous: the cursor, except after a lost tail that the
    /// listener had seen.
    expected_previous: Position,
    /// Events up to here are left out: the listener had them before they were lost, and this node
    /// may not know that they are.
    skip_through: Position,
    catch_up: Option<Box<CatchUp>>,
    membership: Option<Box<Membership>>,
    /// The listener comes from a node that was ahead: it waits until this one has its position,
    /// too.
    ahead: bool,
    ended: bool,
    /// Index into [`Session::cursor`], as [`StreamCursor::set`] gave it.
    stamp_index: usize,
    on_unsubscribe: Option<Box<OnUnsubscribe>>,
}

/// A listener that is being given what the ring does not hold.
struct CatchUp {
    waiting: VecDeque<Arc<Entry>>,
    /// The next page, while it is being read.
    fetch: Option<Pin<Box<dyn Future<Output = Arc<Replay>> + Send>>>,
    /// Whether another page is needed once nothing waits.
    more: bool,
    /// Whether the listener is here because it fell off the ring.
    too_slow: bool,
    /// How many gaps it was told on the way.
    gaps: usize,
    /// Where it goes on in the ring, if that is known; else by its cursor.
    lands_at: Option<u64>,
    backoff: Duration,
}

/// Tells the handler that a subscription is over, when it is dropped.
struct OnUnsubscribe {
    hub: Hub,
    handler: Arc<dyn Handler>,
    client: Arc<Client>,
    channel: Channel,
    reason: LeaveReason,
}

impl Drop for OnUnsubscribe {
    fn drop(&mut self) {
        self.hub
            .unsubscribed(self.handler.clone(), self.client.clone(), self.channel.clone(), self.reason);
    }
}

impl Subscriber {
    /// The listener also wants to hear who is in the channel: first all, then who comes and goes.
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
        let hub = &self.connection.hub;
        let admission = hub.admit_listener(&self.connection, name).await?;
        let client = admission.client.clone();
        // From here on the handler is told when it is over, also if we fail.
        let on_unsubscribe = admission.handler.map(|handler| {
            let reason = LeaveReason::Disconnected;
            Box::new(OnUnsubscribe {
                hub: hub.clone(),
                handler,
                client: admission.client,
                channel: admission.channel,
                reason,
            })
        });
        let membership = match hub.0.backbone.presence(name, &admission.rule) {
            Ok(_) => {
                Presence::check(client.user())?;
                Some((client, self.presence))
            }
            Err(refusal) if self.presence => return Err(refusal),
            Err(_) => None,
        };
        let (registration, follower) = self.register(hub, name, &admission.rule).await?;
        let log = registration.log.clone();
        let mut pending = PendingSubscription {
            registration,
            next: 0,
            cursor: Position::ZERO,
            stands_at: Position::ZERO,
            resumed: false,
            catch_up: None,
            over: false,
            on_unsubscribe,
            membership,
        };
        let position = match after {
            After::Position(position) if position != Position::ZERO => position,
            After::Unreadable | After::Nothing | After::Position(_) => {
                let mut catch_up = match log.begin_fresh() {
                    Some(place) => {
                        (pending.next, pending.cursor) = (place.next, place.cursor);
                        CatchUp::of(place.first.into(), place.next)
                    }
                    None => {
                        let replay = hub
                            .ask(name, Position::ZERO, PAGE)
                            .await
                            .map_err(|error| hub.refusal(&error))?;
                        pending.cursor = replay.goes_on_after();
                        let mut catch_up = CatchUp::empty();
                        catch_up.take_in(&log, pending.cursor, pending.cursor, &replay, false);
                        if log.rule.replay == ReplayOnSubscribe::Last {
                            catch_up.waiting = newest_of_each_key(catch_up.waiting);
                        }
                        catch_up
                    }
                };
                if after == After::Unreadable {
                    let gap = Entry::gap(None, pending.cursor, GapReason::UnknownPosition);
                    catch_up.waiting.push_front(gap);
                }
                pending.stands_at = pending.cursor;
                let needed = !catch_up.waiting.is_empty() || catch_up.lands_at.is_none();
                pending.catch_up = needed.then_some(catch_up);
                return Ok(pending);
            }
        };
        pending.stands_at = position;
        // Asked before the ring is looked at: a log that has healed by then shows its gaps.
        let healing = follower.is_healing();
        let found = log.find(position);
        if let (Found::At(next), false) = (&found, healing) {
            pending.resume_in_ring(&log, *next, position);
            return Ok(pending);
        }
        // A log that heals does not know what comes next, and the broker does. While the broker is
        // away, the log's own events come next, if there are any.
        let replay = match (hub.ask(name, position, PAGE).await, found) {
            (Ok(replay), _) => replay,
            (Err(_), Found::At(next)) if pending.resume_without_broker(&log, next, position) => return Ok(pending),
            (Err(error), _) => return Err(hub.refusal(&error)),
        };
        pending.resumed = replay.is_whole(position);
        // This node may not have heard of the end yet that the listener was told by another.
        pending.over = pending.resumed && replay.ended && replay.head == position;
        let mut catch_up = CatchUp::empty();
        catch_up.take_in(&log, position, position, &replay, false);
        pending.cursor = match catch_up.waiting.front() {
            Some(gap) if !pending.resumed => gap.position(),
            _ => position,
        };
        pending.catch_up = Some(catch_up);
        Ok(pending)
    }

    async fn register(
        &self,
        hub: &Hub,
        name: &ChannelName,
        rule: &Arc<crate::Rule>,
    ) -> Result<(Registration, Arc<Follower>), Refusal> {
        // A log that is closed in the moment between is simply opened again.
        for _ in 0..10 {
            let follower = hub.open(name, rule).await?;
            if let Some(registration) = follower.log.register(self.handle.clone(), self.format) {
                return Ok((registration, follower));
            }
            tokio::task::yield_now().await;
        }
        Err(Refusal::unavailable("the channel could not be opened: try again"))
    }

    /// The connection that subscribes.
    pub fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }
}

impl PendingSubscription {
    /// The listener holds `position` and goes on at `next` in the ring. It is resumed, unless a gap
    /// stands there.
    fn resume_in_ring(&mut self, log: &Log, next: u64, position: Position) {
        if let Some((place, entry)) = log.next_sent(next)
            && let Item::Gap { gap, expected_previous } = &entry.item
        {
            let gap = Entry::gap(Some(position), *expected_previous, gap.reason);
            self.cursor = gap.position();
            self.catch_up = Some(CatchUp::of(VecDeque::from([gap]), place + 1));
            return;
        }
        (self.next, self.cursor, self.resumed) = (next, position, true);
        self.over = log.is_over(next);
    }

    /// [`PendingSubscription::resume_in_ring`] for a log that is healing while the broker does not
    /// answer. False: the listener has all that the ring holds, so no node knows whether an event
    /// or a gap comes next, and it cannot be told.
    fn resume_without_broker(&mut self, log: &Log, next: u64, position: Position) -> bool {
        let first = log.next_sent(next);
        if first.is_none() && !log.is_over(next) {
            return false;
        }
        self.resume_in_ring(log, next, position);
        // What comes next stays the same, whatever the log appends until the listener reads.
        if self.resumed
            && let Some((place, event)) = first
        {
            self.catch_up = Some(CatchUp::of(VecDeque::from([event]), place + 1));
        }
        true
    }

    /// Whether the channel has ended and the listener has all of it: nothing will ever come.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// The channel.
    pub fn channel(&self) -> &ChannelName {
        &self.registration.log.name
    }
}

impl Session {
    /// A session without channels on a connection that was taken in.
    pub fn new(connection: Arc<Connection>, format: &FormatHandle) -> Self {
        let slot = format.0.clone();
        slot.metrics.connections.inc();
        slot.metrics.connections_total.inc();
        let hub = connection.hub.clone();
        let handle = Arc::new(SessionHandle::new(hub.0.clock.load(Ordering::Relaxed)));
        let inner = &hub.0;
        tracing::debug!(
            connection = connection.id,
            format = slot.format.name(),
            transport = %connection.transport(),
            address = ?connection.peer(),
            "connected"
        );
        let key = inner
            .sessions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(handle.clone());
        let stale = inner.stale.load(Ordering::SeqCst);
        Self {
            handle,
            subscriptions: SmallVec::new(),
            notices: Vec::new(),
            stamp: slot.format.stamp(),
            slot,
            hub,
            stale,
            reads: 0,
            first: 0,
            closed: None,
            cause: None,
            ends_with_channels: false,
            visible_heartbeat: false,
            drained: false,
            cursor: None,
            key,
            connection,
        }
    }

    /// The session closes when its last channel has ended.
    pub fn ends_with_channels(mut self) -> Self {
        self.ends_with_channels = true;
        self
    }

    /// Heartbeats are such that scripts can see them.
    pub fn visible_heartbeat(mut self, visible: bool) -> Self {
        self.visible_heartbeat = visible;
        self
    }

    /// The client answers heartbeats: if nothing is [heard](Session::heard) for the idle time, the
    /// session closes.
    pub fn expects_answers(self) -> Self {
        self.heard();
        self
    }

    /// The connection this session belongs to.
    pub fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// What subscribes for this session.
    pub fn subscriber(&self) -> Subscriber {
        Subscriber {
            connection: self.connection.clone(),
            handle: self.handle.clone(),
            format: self.slot.index,
            presence: false,
        }
    }

    /// How many channels it listens to.
    pub fn subscriptions(&self) -> usize {
        self.subscriptions.len()
    }

    /// Whether it listens to `channel`.
    pub fn is_subscribed(&self, channel: &ChannelName) -> bool {
        self.subscriptions.iter().any(|s| s.registration.log.name == *channel)
    }

    /// Begins to deliver several channels, each after its confirmation. The cursor of the first
    /// confirmation already knows them all: a listener that is cut off after it must not come back
    /// as one that never heard of the others.
    pub fn add_all(&mut self, pending: Vec<PendingSubscription>) {
        for pending in &pending {
            self.stamp_at(&pending.registration.log.name, pending.stands_at);
        }
        for pending in pending {
            self.add(pending, None);
        }
    }

    /// Sets the channel's part of the stream's cursor, where the format has one; gives its index.
    fn stamp_at(&mut self, name: &ChannelName, position: Position) -> usize {
        if self.stamp.is_none() {
            return 0;
        }
        self.cursor.get_or_insert_default().set(name, position)
    }

    /// Begins to deliver a channel, after its confirmation. `id`: the client's number of the
    /// command.
    pub fn add(&mut self, pending: PendingSubscription, id: Option<u64>) {
        let PendingSubscription {
            registration,
            next,
            cursor,
            stands_at,
            resumed,
            catch_up,
            over,
            mut on_unsubscribe,
            membership,
        } = pending;
        let name = registration.log.name.clone();
        let stamp_index = self.stamp_at(&name, stands_at);
        // Until the gap itself is told, a listener that comes back must come from before it.
        let stamp = self
            .stamp_cursor()
            .or_else(|| (stands_at != cursor).then_some(Cursor::One(stands_at)));
        let retry = self.hub.retry_hint();
        self.notice(&Notice::Subscribed {
            id,
            channel: &name,
            cursor,
            stamp: stamp.as_ref(),
            resumed,
            retry,
        });
        if over {
            self.notice(&Notice::End {
                channel: &name,
                cursor,
                stamp: stamp.as_ref(),
            });
            if let Some(on_unsubscribe) = &mut on_unsubscribe {
                on_unsubscribe.reason = LeaveReason::Ended;
            }
            return;
        }
        let presence = self.hub.0.backbone.presence.as_ref();
        let membership = membership.zip(presence).map(|((client, listens), presence)| {
            let listener = listens.then(|| self.handle.clone());
            presence.attend(&name, client.user_id(), client.meta(), listener)
        });
        tracing::debug!(connection = self.connection.id, channel = %name, resumed, "subscribed");
        self.drained = false;
        self.subscriptions.push(Subscription {
            membership,
            registration,
            next,
            cursor: stands_at,
            expected_previous: cursor,
            skip_through: Position::ZERO,
            ahead: false,
            catch_up,
            stamp_index,
            ended: false,
            on_unsubscribe,
        });
    }

    /// Stops delivering a channel. False: it did not.
    pub fn remove(&mut self, channel: &ChannelName) -> bool {
        let Some(index) = self.subscriptions.iter().position(|s| s.registration.log.name == *channel) else {
            return false;
        };
        self.drop_subscription(index, LeaveReason::Unsubscribed);
        true
    }

    fn drop_subscription(&mut self, index: usize, reason: LeaveReason) {
        let mut subscription = self.subscriptions.swap_remove(index);
        if let Some(on_unsubscribe) = &mut subscription.on_unsubscribe {
            on_unsubscribe.reason = reason;
        }
        if let Some(membership) = &mut subscription.membership {
            membership.at_once = true;
        }
    }

    /// Says something to the client, after what is already on its way.
    pub fn notice(&mut self, notice: &Notice<'_>) {
        let bytes = self.slot.format.notice(notice);
        if !bytes.is_empty() {
            self.notices.push(bytes);
        }
    }

    /// The client said something, if only a pong.
    pub fn heard(&self) {
        self.handle.heard(self.now());
    }

    /// Tells whether a write waits for the client's socket. While it does, [`Session::poll_cut`]
    /// must be polled.
    pub fn stalled(&self, stalled: bool) {
        self.handle.stalled(if stalled { self.now() } else { 0 });
    }

    /// The hub's coarse clock: asking the system for the time costs more than the rest of a short
    /// turn.
    fn now(&self) -> u64 {
        self.hub.0.clock.load(Ordering::Relaxed)
    }

    /// Reads from the client's socket, or `Pending` if there is nothing: `read` must be a poll of
    /// that socket, and is tried again until it says so.
    ///
    /// Asking a socket costs more than all else that a listener does for an event but writing. So a
    /// task that was woken to write does not: the socket wakes the session instead of the task, and
    /// the session notes why.
    pub fn poll_readable<T>(&self, cx: &mut Context<'_>, read: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        // Taken before the try: what becomes readable after it must not be forgotten.
        if !self.handle.wake.take_readable(cx) {
            return Poll::Pending;
        }
        let result = read(&mut Context::from_waker(&Waker::from(self.handle.clone())));
        if result.is_ready() {
            self.handle.wake.keep_readable();
        }
        result
    }

    /// For a loop that waits for its socket: ready when it should wait no longer.
    pub fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<CloseReason> {
        self.handle.wake.register(cx);
        let flags = self.handle.flags();
        if flags & STALLED != 0 {
            self.stalls();
            Poll::Ready(CloseReason::Stalled)
        } else if flags & SILENT != 0 {
            self.ends_by(CloseCause::Idle);
            Poll::Ready(CloseReason::Silent)
        } else {
            Poll::Pending
        }
    }

    /// Notes why the connection ends, where a transport ends it by itself. The first note counts.
    pub fn ends_by(&mut self, cause: CloseCause) {
        self.cause.get_or_insert(cause);
    }

    /// It is cut: by itself, or because the node's drain has taken too long.
    fn stalls(&mut self) {
        let draining = self.hub.is_draining();
        self.ends_by(if draining {
            CloseCause::DrainTimeout
        } else {
            CloseCause::Stalled
        });
    }

    fn close_cause(&self) -> CloseCause {
        let told = match self.closed {
            Some(CloseReason::Ended) => Some(CloseCause::Ended),
            Some(CloseReason::Drain { .. }) => Some(CloseCause::Drain),
            Some(CloseReason::TooSlow) => Some(CloseCause::TooSlow),
            Some(CloseReason::Silent) => Some(CloseCause::Idle),
            Some(CloseReason::Stalled) => Some(CloseCause::Stalled),
            None => None,
        };
        self.cause.or(told).unwrap_or(CloseCause::Client)
    }

    fn stamp_cursor(&self) -> Option<Cursor> {
        self.cursor.as_ref().map(|cursor| cursor.snapshot())
    }

    /// Awaits [`Session::poll_turn`].
    pub async fn turn(&mut self, out: &mut Vec<Bytes>) -> Turn {
        std::future::poll_fn(|cx| self.poll_turn(cx, out)).await
    }

    /// Puts everything that waits for this client into `out`, up to about 64 KiB.
    ///
    /// Pending: nothing waits, and the task is woken when something does.
    pub fn poll_turn(&mut self, cx: &mut Context<'_>, out: &mut Vec<Bytes>) -> Poll<Turn> {
        // The turn that wrote took everything. What has come since has set the flag, so a listener
        // that has written its event is spared a second look.
        if std::mem::take(&mut self.drained) && self.notices.is_empty() && self.handle.wake.poll(cx).is_pending() {
            return Poll::Pending;
        }
        loop {
            self.handle.wake.reset();
            out.append(&mut self.notices);
            if let Some(reason) = self.closed {
                return Poll::Ready(Turn::Closed(reason));
            }
            if let Some(reason) = self.heed(out) {
                self.closed = Some(reason);
                return Poll::Ready(Turn::Closed(reason));
            }
            let room = READ_BYTES.saturating_sub(out.iter().map(Bytes::len).sum());
            if let Some(reason) = self.read(cx, out, room) {
                self.closed = Some(reason);
                return Poll::Ready(Turn::Closed(reason));
            }
            if !out.is_empty() {
                self.handle.wrote(self.now());
                // A full turn did not come to everything: a subscription's members wait behind its
                // events.
                let full = out.iter().map(Bytes::len).sum::<usize>() >= READ_BYTES;
                self.drained = !full && self.subscriptions.iter().all(Subscription::is_drained);
                return Poll::Ready(Turn::Frames);
            }
            if self.ends_with_channels && self.subscriptions.is_empty() {
                self.closed = Some(CloseReason::Ended);
                return Poll::Ready(Turn::Closed(CloseReason::Ended));
            }
            if self.handle.wake.poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    /// What the hub has to say.
    fn heed(&mut self, out: &mut Vec<Bytes>) -> Option<CloseReason> {
        let flags = self.handle.take_flags();
        if flags & STALLED != 0 {
            self.stalls();
            return Some(CloseReason::Stalled);
        }
        if flags & SILENT != 0 {
            return Some(CloseReason::Silent);
        }
        let hub = &self.hub;
        if hub.is_draining() {
            let retry = hub.retry_hint();
            self.notice(&Notice::Drain { retry });
            out.append(&mut self.notices);
            return Some(CloseReason::Drain { retry });
        }
        let stale = hub.0.stale.load(Ordering::SeqCst);
        if stale != self.stale {
            self.stale = stale;
            self.notice(&Notice::Stale);
        }
        if flags & HEARTBEAT != 0 {
            self.notice(&Notice::Heartbeat {
                visible: self.visible_heartbeat,
            });
        }
        out.append(&mut self.notices);
        None
    }

    fn read(&mut self, cx: &mut Context<'_>, out: &mut Vec<Bytes>, mut room: usize) -> Option<CloseReason> {
        let mut index = 0;
        self.first = if self.first + 1 < self.subscriptions.len() {
            self.first + 1
        } else {
            0
        };
        while index < self.subscriptions.len() && room > 0 {
            let at = (self.first + index) % self.subscriptions.len();
            let before = out.len();
            let mut reading = Reading {
                slot: &self.slot,
                stamp: self.stamp,
                cursor: self.cursor.as_deref_mut(),
                hub: &self.hub,
                sample: self.reads.is_multiple_of(SAMPLE),
                out,
            };
            if let Err(TooSlow) = self.subscriptions[at].read(&mut reading, cx) {
                return Some(CloseReason::TooSlow);
            }
            let mut written: usize = out[before..].iter().map(Bytes::len).sum();
            if let Some(membership) = &mut self.subscriptions[at].membership
                && written < room
            {
                let before = out.len();
                if membership.read(&self.slot, room - written, out) {
                    self.handle.wake();
                }
                written += out[before..].iter().map(Bytes::len).sum::<usize>();
            }
            if written > 0 {
                self.reads = self.reads.wrapping_add(1);
                room = room.saturating_sub(written);
            }
            if self.subscriptions[at].ended {
                self.drop_subscription(at, LeaveReason::Ended);
                // The last one took its place and is read in the next turn at the latest.
                self.handle.wake();
            } else {
                index += 1;
            }
        }
        if index < self.subscriptions.len() {
            // There may be more than fitted: come back after this has been written.
            self.handle.wake();
        }
        None
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.slot.metrics.connections.dec();
        let cause = self.close_cause();
        self.hub.metrics().closed(cause);
        let (connection, address) = (self.connection.id, self.connection.peer());
        tracing::debug!(connection, ?address, cause = cause.as_str(), "closed");
        if cause == CloseCause::Stalled {
            self.hub.warn(Warning::StalledWrite, address, "");
        }
        let mut sessions = self.hub.0.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.remove(self.key);
    }
}

/// What a subscription needs to write down what it reads.
struct Reading<'a> {
    slot: &'a FormatSlot,
    stamp: Option<Stamp>,
    cursor: Option<&'a mut StreamCursor>,
    hub: &'a Hub,
    sample: bool,
    out: &'a mut Vec<Bytes>,
}

struct TooSlow;

impl Subscription {
    /// Only a wake by its log brings more: it is at the ring's end, and no answer is awaited.
    fn is_drained(&self) -> bool {
        self.catch_up.is_none() && !self.ahead && self.registration.log.is_read(self.next)
    }

    fn read(&mut self, reading: &mut Reading<'_>, cx: &mut Context<'_>) -> Result<(), TooSlow> {
        loop {
            if self.catch_up.is_some() {
                if self.catch_up(reading, cx).is_pending() {
                    return Ok(());
                }
                if !reading.out.is_empty() {
                    return Ok(());
                }
                continue;
            }
            let log = &self.registration.log;
            if self.ahead {
                match log.find(self.expected_previous) {
                    Found::Ahead => return Ok(()),
                    Found::At(next) => {
                        self.next = next;
                        // It has had the end from the other node.
                        self.ended = log.is_over(next);
                    }
                    // This node has come past the position without having it. The broker knows
                    // whether it was lost.
                    Found::Unknown => self.catch_up = Some(CatchUp::more()),
                }
                self.ahead = false;
                if self.ended {
                    return Ok(());
                }
                continue;
            }
            let shared = match reading.stamp.is_none() && self.skip_through == Position::ZERO {
                true => Some(log.read_batch(self.next, reading.slot)),
                false => None,
            };
            let needs_own = |batch: &Batch| batch.opens_after.is_some_and(|after| after != self.cursor);
            let fell_off = if let Some(shared) = shared.filter(|shared| !matches!(shared, Read::Some(batch) if needs_own(batch)))
            {
                match shared {
                    Read::Nothing => return Ok(()),
                    Read::FellOff => true,
                    Read::Some(batch) => {
                        self.next = batch.next;
                        if batch.events == 0 {
                            continue;
                        }
                        (self.cursor, self.expected_previous) = (batch.cursor, batch.expected_previous);
                        self.ended = batch.ended;
                        reading.count(log, batch.events, batch.bytes.len(), batch.oldest);
                        if let Some(reason) = batch.gap {
                            log.figures.gap(reason);
                        }
                        reading.out.push(batch.bytes);
                        return Ok(());
                    }
                }
            } else {
                match log.read_entries(self.next) {
                    Read::Nothing => return Ok(()),
                    Read::FellOff => true,
                    Read::Some((entries, next)) => {
                        self.next = next;
                        let log = log.clone();
                        self.write(reading, &log, &entries);
                        if !reading.out.is_empty() || self.ended {
                            return Ok(());
                        }
                        false
                    }
                }
            };
            if fell_off {
                let log = self.registration.log.clone();
                self.fell_off(reading, &log)?;
            }
        }
    }

    /// Writes entries one by one, each with the stream's cursor where the format has one.
    fn write(&mut self, reading: &mut Reading<'_>, log: &Log, entries: &[Arc<Entry>]) {
        let mut pending = BytesMut::new();
        let mut events = 0;
        for entry in entries {
            let mine;
            let entry = match &entry.item {
                // The log's own words begin where the log stood. Past a fork a listener may stand
                // elsewhere: it was ahead, or it is new.
                Item::Gap { gap, expected_previous } if gap.after.is_some_and(|after| after != self.cursor) => {
                    mine = Entry::gap(Some(self.cursor), *expected_previous, gap.reason);
                    &mine
                }
                _ => entry,
            };
            self.expected_previous = entry.expected_previous();
            if entry.position() <= self.skip_through {
                continue;
            }
            self.cursor = entry.position();
            self.skip_through = Position::ZERO;
            self.ended |= entry.is_end();
            if let Item::Gap { gap, expected_previous } = &entry.item {
                log.figures.gap(gap.reason);
                // Of the ring's own gaps the ring has only what comes behind them.
                if gap.cursor > *expected_previous && self.catch_up.is_some() {
                    // What is published from now on may stand before a cursor that is ahead of the
                    // clock, so only what this node holds already is left out then.
                    self.skip_through = match gap.cursor > Position::now() {
                        true => gap.cursor.min(log.head()),
                        false => gap.cursor,
                    };
                }
            }
            events += 1;
            let (Some(stamp), Some(stream)) = (reading.stamp, &mut reading.cursor) else {
                pending.extend_from_slice(entry.bytes(&log.name, reading.slot));
                continue;
            };
            stream.advance(self.stamp_index, self.cursor);
            match &entry.item {
                Item::Event(event) if event.is_end() => {
                    let notice = Notice::End {
                        channel: &log.name,
                        cursor: event.position,
                        stamp: Some(&stream.snapshot()),
                    };
                    pending.extend_from_slice(&reading.slot.format.notice(&notice));
                }
                Item::Event(_) => {
                    pending.extend_from_slice(entry.bytes(&log.name, reading.slot));
                    stamp(&**stream, &mut pending);
                }
                Item::Gap { gap, .. } => {
                    let notice = Notice::Gap {
                        channel: &log.name,
                        gap,
                        stamp: Some(&stream.snapshot()),
                    };
                    pending.extend_from_slice(&reading.slot.format.notice(&notice));
                }
            }
        }
        if let (Some(first), false) = (entries.first(), pending.is_empty()) {
            reading.count(log, events, pending.len(), first.at);
            reading.out.push(pending.freeze());
        }
    }

    /// The ring has moved on without this listener.
    fn fell_off(&mut self, reading: &mut Reading<'_>, log: &Arc<Log>) -> Result<(), TooSlow> {
        let metrics = reading.hub.metrics();
        metrics.slow(log.rule.slow);
        // Of a conflated channel only the newest of each key counts, and as long as the log
        // remembers those, nothing is lost.
        if let Some(place) = log.catch_up_latest(self.cursor, self.next) {
            self.next = place.next;
            self.catch_up = Some(CatchUp::of(place.first.into(), place.next));
            return Ok(());
        }
        match log.rule.slow {
            SlowPolicy::Close => return Err(TooSlow),
            SlowPolicy::Skip => {
                let (next, expected_previous) = log.skip();
                let gap = Entry::gap(Some(self.cursor), expected_previous, GapReason::TooSlow);
                self.next = next;
                self.catch_up = Some(CatchUp::of(VecDeque::from([gap]), next));
            }
            SlowPolicy::Refill => {
                let mut catch_up = CatchUp::more();
                catch_up.too_slow = true;
                self.catch_up = Some(catch_up);
            }
        }
        Ok(())
    }

    /// Ready: something was written, or the listener is back at the ring.
    fn catch_up(&mut self, reading: &mut Reading<'_>, cx: &mut Context<'_>) -> Poll<()> {
        let log = self.registration.log.clone();
        let Some(catch_up) = &mut self.catch_up else {
            return Poll::Ready(());
        };
        if !catch_up.waiting.is_empty() {
            let page = catch_up.next_piece();
            self.write(reading, &log, &page);
            return Poll::Ready(());
        }
        // The ring may reach further back than what history still holds: then no other page is
        // needed.
        if catch_up.more
            && catch_up.fetch.is_none()
            && let Found::At(next) = log.find(self.expected_previous)
        {
            self.next = next;
            self.catch_up = None;
            return Poll::Ready(());
        }
        if catch_up.more || catch_up.fetch.is_some() {
            let (hub, name, after, pause) = (
                reading.hub.clone(),
                log.name.clone(),
                self.expected_previous,
                catch_up.backoff,
            );
            let fetch = catch_up
                .fetch
                .get_or_insert_with(|| Box::pin(fetch_page(hub, name, after, pause)));
            let Poll::Ready(replay) = fetch.as_mut().poll(cx) else {
                return Poll::Pending;
            };
            catch_up.fetch = None;
            let too_slow = catch_up.too_slow;
            catch_up.take_in(&log, self.cursor, self.expected_previous, &replay, too_slow);
            return Poll::Ready(());
        }
        match catch_up.lands_at {
            Some(next) => {
                self.next = next;
                self.catch_up = None;
            }
            None => match log.find(self.expected_previous) {
                Found::At(next) => {
                    self.next = next;
                    self.catch_up = None;
                }
                Found::Ahead => {
                    self.ahead = true;
                    self.catch_up = None;
                }
                Found::Unknown => {
                    // The ring has moved on meanwhile, or the log is healing: another page, soon.
                    catch_up.more = true;
                    catch_up.backoff = (catch_up.backoff * 2).clamp(BACKOFF.0, BACKOFF.1);
                }
            },
        }
        Poll::Ready(())
    }
}

impl CatchUp {
    fn empty() -> Box<Self> {
        Box::new(Self {
            waiting: VecDeque::new(),
            fetch: None,
            more: false,
            too_slow: false,
            gaps: 0,
            lands_at: None,
            backoff: Duration::ZERO,
        })
    }

    /// A page of history first.
    fn more() -> Box<Self> {
        Box::new(Self {
            more: true,
            ..*Self::empty()
        })
    }

    /// Some entries first, then the ring from `place`.
    fn of(waiting: VecDeque<Arc<Entry>>, place: u64) -> Box<Self> {
        Box::new(Self {
            waiting,
            lands_at: Some(place),
            ..*Self::empty()
        })
    }

    /// About as much as one write takes.
    fn next_piece(&mut self) -> Vec<Arc<Entry>> {
        let mut bytes = 0;
        let mut piece = Vec::new();
        while bytes < READ_BYTES
            && let Some(entry) = self.waiting.pop_front()
        {
            if let Item::Event(event) = &entry.item {
                bytes += event.message.weight();
            }
            piece.push(entry);
        }
        piece
    }

    /// `replay`: what history holds after `expected_previous`, for a listener that holds `cursor`.
    fn take_in(&mut self, log: &Log, cursor: Position, expected_previous: Position, replay: &Replay, too_slow: bool) {
        self.more = replay.more;
        if !replay.is_whole(expected_previous) {
            let reason = if too_slow {
                GapReason::TooSlow
            } else {
                replay.lost_reason(expected_previous, log.head())
            };
            let goes_on = replay.goes_on_after();
            self.gaps += 1;
            // History is trimmed faster than it can be read, so the next page would begin with a
            // gap, too, and so on for ever. The ring goes on instead, behind this page if that
            // reaches it.
            if self.gaps > PATIENT_GAPS
                && let Some((place, begin)) = log.begin_behind(goes_on)
            {
                let reaching = replay.events.iter().position(|event| event.position == begin);
                let until = reaching.map_or(0, |last| last + 1);
                let goes_on = if until > 0 { goes_on } else { begin };
                self.waiting.push_back(Entry::gap(Some(cursor), goes_on, reason));
                self.wait_for(log, replay.events[..until].iter().cloned());
                (self.more, self.lands_at) = (false, Some(place));
                return;
            }
            self.waiting.push_back(Entry::gap(Some(cursor), goes_on, reason));
        }
        if !replay.events.is_empty() {
            self.backoff = Duration::ZERO;
        }
        self.wait_for(log, replay.events.iter().cloned().chain(replay.lost_end()));
    }

    /// Has events wait to be sent: all of them, or the newest of each key, as the rule says.
    fn wait_for(&mut self, log: &Log, events: impl Iterator<Item = Arc<crate::Event>>) {
        let entries: Vec<_> = events.map(|event| Entry::new(Item::Event(event))).collect();
        match log.rule.delivery {
            Delivery::Every => self.waiting.extend(entries),
            Delivery::Latest => self.waiting.extend(newest_of_each_key(entries)),
        }
    }
}

/// Of what waits, only the newest of each key, and what has none.
fn newest_of_each_key(entries: impl IntoIterator<Item = Arc<Entry>, IntoIter: DoubleEndedIterator>) -> VecDeque<Arc<Entry>> {
    let mut seen = std::collections::HashSet::new();
    let mut newest = VecDeque::new();
    for entry in entries.into_iter().rev() {
        let sent = match &entry.item {
            Item::Event(event) if !event.is_end() => seen.insert(event.message.conflation_key().clone()),
            _ => true,
        };
        if sent {
            newest.push_front(entry);
        }
    }
    newest
}

impl Reading<'_> {
    fn count(&self, log: &Log, events: u64, bytes: usize, oldest: Instant) {
        log.figures.delivered(self.slot.index, events, bytes);
        if self.sample {
            let metrics = self.hub.metrics();
            metrics.publish_to_write_seconds.observe(oldest.elapsed());
        }
    }
}

/// Reads the page after `after`, however long the broker is away: the listener stays connected
/// meanwhile.
async fn fetch_page(hub: Hub, name: ChannelName, after: Position, pause: Duration) -> Arc<Replay> {
    if pause > Duration::ZERO {
        sleep(hub.0.backbone.jitter.spread(pause)).await;
    }
    let mut backoff = BACKOFF.0;
    loop {
        match hub.ask(&name, after, PAGE).await {
            Ok(replay) => return replay,
            Err(error) => {
                tracing::debug!(channel = %name, %error, "history is out of reach: a listener waits");
                sleep(hub.0.backbone.jitter.spread(backoff)).await;
                backoff = (backoff * 2).min(BACKOFF.1);
            }
        }
    }
}
