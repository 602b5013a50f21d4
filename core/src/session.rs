//! A session is one connected client, as every transport uses it. It holds a few cursors into logs,
//! and the bytes that the transport writes next.
//!
//! A transport calls [`Session::poll_turn`], writes the result, and calls it again. The transport
//! knows no event, no gap and no history.

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

/// The session times one read of this many.
const SAMPLE: u32 = 32;

/// The turn says what a transport does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Turn {
    /// The transport writes the frames, then asks again.
    Frames,
    /// The transport writes the frames, then closes the connection.
    Closed(CloseReason),
}

/// The reason says why a session is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CloseReason {
    /// All channels of the session have ended.
    Ended,
    /// The node goes away, and the client should come back after the given time.
    Drain {
        /// Holds the time in milliseconds.
        retry: u32,
    },
    /// The client is too slow for a channel whose rule says close.
    TooSlow,
    /// The client sends nothing for the idle time.
    Silent,
    /// A write makes no progress for too long. The transport does not wait for it and cuts the
    /// connection.
    Stalled,
}

/// The session holds one client's cursors. Dropping it leaves all its channels.
///
/// The order of the fields follows the cost of memory. An event for thousands of listeners costs
/// what the processor fetches from memory for each. The fields that every event needs therefore
/// stand together, and an event needs no other memory than the handle.
#[repr(C)]
pub struct Session {
    handle: Arc<SessionHandle>,
    /// Says whether the last turn has put out everything that waited.
    drained: bool,
    ends_with_channels: bool,
    visible_heartbeat: bool,
    /// Holds the notices that go out next.
    notices: Vec<Bytes>,
    slot: Arc<FormatSlot>,
    sessions: Arc<Sessions>,
    closed: Option<CloseReason>,
    /// Says why the session ends, where `closed` does not say so.
    cause: Option<CloseCause>,
    reads: u32,
    /// Holds the index of the subscription that is read first, so that a busy channel does not
    /// starve the others.
    first: usize,
    /// Holds the subscriptions. Most sessions listen to one channel, so they stand here and not
    /// elsewhere in memory.
    subscriptions: SmallVec<[Subscription; 1]>,
    stamp: Option<Stamp>,
    /// Holds the channels' positions, for formats with a stamp.
    cursor: Option<Box<StreamCursor>>,
    key: u64,
    connection: Arc<Connection>,
}

impl Session {
    /// Creates a session without channels on a connection that the node has taken in.
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

    /// Makes the session close when its last channel has ended.
    pub fn ends_with_channels(mut self) -> Self {
        self.ends_with_channels = true;
        self
    }

    /// Makes heartbeats visible to scripts if `visible` is true.
    pub fn visible_heartbeat(mut self, visible: bool) -> Self {
        self.visible_heartbeat = visible;
        self
    }

    /// Makes the session expect answers to heartbeats. It closes if no
    /// [activity](Session::record_activity) is recorded for the idle time.
    pub fn expects_answers(self) -> Self {
        self.record_activity();
        self
    }

    /// Returns the connection of this session.
    pub fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// Returns a subscriber, which subscribes for this session.
    pub fn subscriber(&self) -> Subscriber {
        Subscriber {
            connection: self.connection.clone(),
            handle: self.handle.clone(),
            format: self.slot.index,
            presence: false,
        }
    }

    /// Returns how many channels the session listens to.
    pub fn subscriptions(&self) -> usize {
        self.subscriptions.len()
    }

    /// Returns whether the session listens to `channel`.
    pub fn is_subscribed(&self, channel: &ChannelName) -> bool {
        self.subscriptions.iter().any(|s| s.channel() == channel)
    }

    /// Begins to deliver several channels, each after its confirmation. The cursor of the first
    /// confirmation already knows all of them. A listener that is cut off after it therefore comes
    /// back with a cursor that also knows the others.
    pub fn add_all(&mut self, pending: Vec<PendingSubscription>) {
        for pending in &pending {
            self.stamp_at(pending.channel(), pending.beginning.stands_at);
        }
        for pending in pending {
            self.add(pending, None);
        }
    }

    /// Sets the channel's part of the stream's cursor, where the format has one, and returns its
    /// index.
    fn stamp_at(&mut self, name: &ChannelName, position: Position) -> usize {
        if self.stamp.is_none() {
            return 0;
        }
        self.cursor.get_or_insert_default().set(name, position)
    }

    /// Begins to deliver a channel, after its confirmation. `id` is the client's number of the
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
        // A listener that comes back before it receives the gap must begin before the gap.
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

    /// Stops delivering a channel. Returns false if the session did not deliver it.
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

    /// Sends a notice to the client, after the frames that are already on their way.
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

    /// Notes whether a write waits for the client's socket. While one waits, the transport must
    /// poll [`Session::poll_cut`].
    pub fn stalled(&self, stalled: bool) {
        let since = if stalled { self.sessions.now() } else { 0 };
        self.handle.keep_alive.stalled(since);
    }

    /// Reads from the client's socket, or returns `Pending` if there is nothing to read. `read`
    /// must be a poll of that socket, and the session tries it again until it returns `Pending`.
    ///
    /// Reading a socket costs a listener more than all its other work for an event, except writing.
    /// A task that was woken to write therefore does not read: the socket wakes the session instead
    /// of the task, and the session notes why.
    pub fn poll_readable<T>(&self, cx: &mut Context<'_>, read: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        // The session takes the flag before the read, so that it does not lose data that becomes
        // readable later.
        if !self.handle.wake.take_readable(cx) {
            return Poll::Pending;
        }
        let result = read(&mut Context::from_waker(&Waker::from(self.handle.clone())));
        if result.is_ready() {
            self.handle.wake.keep_readable();
        }
        result
    }

    /// Returns ready when a loop that waits for its socket should wait no longer.
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

    /// Notes the cause of a cut: the client's stalled write, or a drain of the node that takes too
    /// long.
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
    /// Returns pending if nothing waits. The session then wakes the task when something does. The
    /// caller takes all pieces out of `out` before the next call: a turn that finds pieces there
    /// counts them as its own, and returns at once.
    pub fn poll_turn(&mut self, cx: &mut Context<'_>, out: &mut Vec<Bytes>) -> Poll<Turn> {
        // The turn before this one took everything. Anything newer has set the flag, so a listener
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
                // A full turn did not reach everything: a subscription's members wait behind its
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

    /// Carries out the orders that the node gave this session.
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
        // A session whose time is over may come back as well, and the node then asks for its
        // identity again.
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
                // The last subscription takes its place, and the session reads it in the next turn
                // at the latest.
                self.handle.wake();
            } else {
                index += 1;
            }
        }
        if index < self.subscriptions.len() {
            // More may wait than fitted, so the session comes back after the transport has written
            // this.
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
