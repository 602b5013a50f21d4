//! One connected client, as every transport uses it: a few cursors into logs, and the bytes that
//! are to be written next.
//!
//! A transport's loop is: [`Session::poll_turn`], write what it gave, again. It knows no event, no
//! gap and no history.

mod catch_up;
mod progress;
mod subscriber;
mod subscription;

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use smallvec::SmallVec;

use self::subscriber::Beginning;
pub use self::subscriber::{After, PendingSubscription, Subscriber};
use self::subscription::{Reading, StampedStream, Subscription, TooSlow};
use crate::admission::Connection;
use crate::cursor::{Cursor, StreamCursor};
use crate::event::{ChannelName, Position};
use crate::format::{Notice, Stamp};
use crate::format_slot::FormatSlot;
use crate::formats::FormatHandle;
use crate::handler::LeaveReason;
use crate::log::READ_BYTES;
pub use crate::observe::CloseCause;
use crate::orders::Orders;
use crate::session_handle::SessionHandle;
use crate::sessions::Sessions;
use crate::warnings::Warning;

/// Of so many reads one is timed.
const SAMPLE: u32 = 32;

/// What a transport does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Turn {
    /// Write what there is, then ask again.
    Frames,
    /// Write what there is, then close.
    Closed(CloseReason),
}

/// Why a session is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
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
    /// Notices that go out next.
    notices: Vec<Bytes>,
    slot: Arc<FormatSlot>,
    sessions: Arc<Sessions>,
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

impl Session {
    /// A session without channels on a connection that was taken in.
    pub fn new(connection: Arc<Connection>, format: &FormatHandle) -> Self {
        let slot = format.0.clone();
        slot.metrics.connections.inc();
        slot.metrics.connections_total.inc();
        let sessions = connection.admission.sessions.clone();
        tracing::debug!(
            connection = connection.id,
            format = slot.format.name(),
            transport = %connection.transport(),
            address = ?connection.peer(),
            "connected"
        );
        let (handle, key) = sessions.register();
        Self {
            handle,
            subscriptions: SmallVec::new(),
            notices: Vec::new(),
            stamp: slot.format.stamp(),
            slot,
            sessions,
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

    /// The client answers heartbeats: if no [activity](Session::record_activity) is recorded for
    /// the idle time, the session closes.
    pub fn expects_answers(self) -> Self {
        self.record_activity();
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
        self.subscriptions.iter().any(|s| s.channel() == channel)
    }

    /// Begins to deliver several channels, each after its confirmation. The cursor of the first
    /// confirmation already knows them all: a listener that is cut off after it must not come back
    /// as one that never heard of the others.
    pub fn add_all(&mut self, pending: Vec<PendingSubscription>) {
        for pending in &pending {
            self.stamp_at(pending.channel(), pending.beginning.stands_at);
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
    pub fn add(&mut self, mut pending: PendingSubscription, id: Option<u64>) {
        let name = pending.channel().clone();
        let Beginning {
            cursor,
            stands_at,
            resumed,
            ..
        } = pending.beginning;
        let stamp_index = self.stamp_at(&name, stands_at);
        // Until the gap itself is told, a listener that comes back must come from before it.
        let stamp = self
            .stamp_cursor()
            .or_else(|| (stands_at != cursor).then_some(Cursor::One(stands_at)));
        let retry = self.connection.admission.retry_hint();
        self.notice(&Notice::Subscribed {
            id,
            channel: &name,
            cursor,
            stamp: stamp.as_ref(),
            resumed,
            retry,
        });
        if pending.is_over() {
            self.notice(&Notice::End {
                channel: &name,
                cursor,
                stamp: stamp.as_ref(),
            });
            if let Some(on_unsubscribe) = &mut pending.on_unsubscribe {
                on_unsubscribe.reason = LeaveReason::Ended;
            }
            return;
        }
        let presence = self.sessions.backbone.presence.as_ref();
        let membership = pending.membership.take().zip(presence);
        let membership = membership.map(|((client, listens), presence)| {
            let listener = listens.then(|| self.handle.clone());
            presence.attend(&name, client.user_id(), client.meta(), listener)
        });
        tracing::debug!(connection = self.connection.id, channel = %name, resumed, "subscribed");
        self.drained = false;
        self.subscriptions.push(pending.begin(membership, stamp_index));
    }

    /// Stops delivering a channel. False: it did not.
    pub fn remove(&mut self, channel: &ChannelName) -> bool {
        let Some(index) = self.subscriptions.iter().position(|s| s.channel() == channel) else {
            return false;
        };
        self.drop_subscription(index, LeaveReason::Unsubscribed);
        true
    }

    fn drop_subscription(&mut self, index: usize, reason: LeaveReason) {
        self.subscriptions.swap_remove(index).leave(reason);
    }

    /// Says something to the client, after what is already on its way.
    pub fn notice(&mut self, notice: &Notice<'_>) {
        let bytes = self.slot.format.notice(notice);
        if !bytes.is_empty() {
            self.notices.push(bytes);
        }
    }

    /// Notes that the client has sent something, if only a pong.
    pub fn record_activity(&self) {
        self.handle.keep_alive.record_activity(self.sessions.now());
    }

    /// Tells whether a write waits for the client's socket. While it does, [`Session::poll_cut`]
    /// must be polled.
    pub fn stalled(&self, stalled: bool) {
        let since = if stalled { self.sessions.now() } else { 0 };
        self.handle.keep_alive.stalled(since);
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
        let orders = self.handle.orders();
        if orders.has(Orders::CUT) {
            self.stalls();
            Poll::Ready(CloseReason::Stalled)
        } else if orders.has(Orders::SILENT) {
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
        let draining = self.sessions.is_draining();
        self.ends_by(if draining {
            CloseCause::DrainTimeout
        } else {
            CloseCause::Stalled
        });
    }

    fn close_cause(&self) -> CloseCause {
        let from_reason = match self.closed {
            Some(CloseReason::Ended) => Some(CloseCause::Ended),
            Some(CloseReason::Drain { .. }) => Some(CloseCause::Drain),
            Some(CloseReason::TooSlow) => Some(CloseCause::TooSlow),
            Some(CloseReason::Silent) => Some(CloseCause::Idle),
            Some(CloseReason::Stalled) => Some(CloseCause::Stalled),
            None => None,
        };
        self.cause.or(from_reason).unwrap_or(CloseCause::Client)
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
            if let Some(reason) = self.obey(out) {
                self.closed = Some(reason);
                return Poll::Ready(Turn::Closed(reason));
            }
            let room = READ_BYTES.saturating_sub(out.iter().map(Bytes::len).sum());
            if let Some(reason) = self.read(cx, out, room) {
                self.closed = Some(reason);
                return Poll::Ready(Turn::Closed(reason));
            }
            if !out.is_empty() {
                self.handle.keep_alive.wrote(self.sessions.now());
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

    /// Carries out what the node has told this session.
    fn obey(&mut self, out: &mut Vec<Bytes>) -> Option<CloseReason> {
        let orders = self.handle.take_orders();
        if orders == Orders::NONE {
            return None;
        }
        if orders.has(Orders::CUT) {
            self.stalls();
            return Some(CloseReason::Stalled);
        }
        if orders.has(Orders::SILENT) {
            return Some(CloseReason::Silent);
        }
        // A session whose time is over may come back as well: it is asked again who it is then.
        if orders.has(Orders::DRAIN | Orders::EXPIRE) {
            let retry = self.connection.admission.retry_hint();
            self.notice(&Notice::Drain { retry });
            out.append(&mut self.notices);
            return Some(CloseReason::Drain { retry });
        }
        if orders.has(Orders::STALE) {
            self.notice(&Notice::Stale);
        }
        if orders.has(Orders::HEARTBEAT) {
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
            let subscription = &mut self.subscriptions[at];
            let stream = self.stamp.zip(self.cursor.as_deref_mut());
            let mut reading = Reading {
                slot: &self.slot,
                stream: stream.map(|(stamp, cursor)| StampedStream {
                    stamp,
                    cursor,
                    index: subscription.stamp_index,
                }),
                sessions: &self.sessions,
                connection: &self.connection,
                sample: self.reads.is_multiple_of(SAMPLE),
                out,
            };
            if let Err(TooSlow) = subscription.read(&mut reading, cx) {
                return Some(CloseReason::TooSlow);
            }
            let mut written: usize = out[before..].iter().map(Bytes::len).sum();
            if let Some(membership) = &mut subscription.membership
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
            if subscription.is_ended() {
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
        self.sessions.backbone.metrics.closed(cause);
        let (connection, address) = (self.connection.id, self.connection.peer());
        tracing::debug!(connection, ?address, cause = cause.as_str(), "closed");
        if cause == CloseCause::Stalled {
            self.sessions.backbone.warnings.warn(Warning::StalledWrite, address, "");
        }
        self.sessions.remove(self.key);
    }
}
