//! An inbox is a bounded in-order stream from a broker to one node. It ends as soon as the node may
//! have missed an item. Feeds and watches are inboxes.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Bounds the untaken items of an inbox. An inbox that would hold more ends.
const BOUND: usize = 65_536;

/// A sink takes the items of an inbox the moment they come, without a task in between.
///
/// The inbox calls it one item at a time and in order, while the broker may hold locks. The sink
/// must neither block nor call the broker back.
pub(crate) trait FeedSink<T>: Send + Sync {
    fn take(&self, item: T);
    fn ended(&self);
}

/// The node has this end. Dropping it unsubscribes.
pub(crate) struct Inbox<T> {
    shared: Arc<Shared<T>>,
}

/// The broker has this end. Dropping it ends the inbox.
pub(crate) struct InboxSender<T> {
    shared: Arc<Shared<T>>,
}

type Unsubscribe = Box<dyn FnOnce() + Send>;

struct Shared<T> {
    state: Mutex<InboxState<T>>,
}

struct InboxState<T> {
    waiting: VecDeque<T>,
    sink: Option<Arc<dyn FeedSink<T>>>,
    waker: Option<Waker>,
    unsubscribe: Option<Unsubscribe>,
    ended: bool,
    dropped: bool,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, InboxState<T>> {
        // A panic in a sink leaves the state usable; the inbox goes on.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Inbox<T> {
    /// Makes an inbox and the broker's end of it. Dropping the inbox calls `unsubscribe` once.
    pub(crate) fn new(unsubscribe: impl FnOnce() + Send + 'static) -> (InboxSender<T>, Inbox<T>) {
        let shared = Arc::new(Shared {
            state: Mutex::new(InboxState {
                waiting: VecDeque::new(),
                sink: None,
                waker: None,
                unsubscribe: Some(Box::new(unsubscribe)),
                ended: false,
                dropped: false,
            }),
        });
        (InboxSender { shared: shared.clone() }, Inbox { shared })
    }

    /// Returns the next item, or `None` when the inbox has ended.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let mut state = self.shared.lock();
        match state.waiting.pop_front() {
            Some(item) => Poll::Ready(Some(item)),
            None if state.ended => Poll::Ready(None),
            None => {
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Calls `sink` for each item from now on, beginning with those that wait already.
    pub(crate) fn attach(&self, sink: Arc<dyn FeedSink<T>>) {
        let mut state = self.shared.lock();
        for item in std::mem::take(&mut state.waiting) {
            sink.take(item);
        }
        if state.ended {
            sink.ended();
        } else {
            state.sink = Some(sink);
        }
    }
}

impl<T> Drop for Inbox<T> {
    fn drop(&mut self) {
        let (unsubscribe, sink) = {
            let mut state = self.shared.lock();
            state.dropped = true;
            state.waiting.clear();
            (state.unsubscribe.take(), state.sink.take())
        };
        // The sink and `unsubscribe` may take locks of their own, so the inbox releases its own
        // first.
        drop(sink);
        if let Some(unsubscribe) = unsubscribe {
            unsubscribe();
        }
    }
}

impl<T> InboxSender<T> {
    /// Shows the inbox its next item. Returns false if the inbox was dropped, or had to end because
    /// its reader took nothing.
    pub(crate) fn push(&self, item: T) -> bool {
        let mut state = self.shared.lock();
        if state.dropped || state.ended {
            return false;
        }
        if let Some(sink) = &state.sink {
            sink.take(item);
            return true;
        }
        if state.waiting.len() >= BOUND {
            state.waiting.clear();
            state.ended = true;
        } else {
            state.waiting.push_back(item);
        }
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
        !state.ended
    }

    /// Returns whether the inbox has been dropped.
    pub(crate) fn is_closed(&self) -> bool {
        self.shared.lock().dropped
    }
}

impl<T> Drop for InboxSender<T> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if !state.ended {
            state.ended = true;
            if let Some(sink) = state.sink.take() {
                sink.ended();
            }
            if let Some(waker) = state.waker.take() {
                waker.wake();
            }
        }
    }
}
