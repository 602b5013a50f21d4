//! What a broker shows one node, one thing after the other, until it may have missed something. Feeds and watches are lines.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// How many untaken things a line holds. A line that would hold more ends.
const BOUND: usize = 65_536;

/// Takes a line's things the moment they come, without a task in between.
///
/// Called one at a time and in order, while the broker may hold locks: it must neither block nor call the broker back.
pub(crate) trait Sink<T>: Send + Sync {
    fn take(&self, thing: T);
    fn ended(&self);
}

/// The node's end. Dropping it unsubscribes.
pub(crate) struct Line<T> {
    shared: Arc<Shared<T>>,
}

/// The broker's end. Dropping it ends the line.
pub(crate) struct LineSender<T> {
    shared: Arc<Shared<T>>,
}

type Unsubscribe = Box<dyn FnOnce() + Send>;

struct Shared<T> {
    state: Mutex<State<T>>,
}

struct State<T> {
    waiting: VecDeque<T>,
    sink: Option<Arc<dyn Sink<T>>>,
    waker: Option<Waker>,
    unsubscribe: Option<Unsubscribe>,
    ended: bool,
    dropped: bool,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // A panic in a sink leaves the state usable; the line goes on.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Line<T> {
    /// A line and the broker's end of it. `unsubscribe` is called once, when the line is dropped.
    pub(crate) fn new(unsubscribe: impl FnOnce() + Send + 'static) -> (LineSender<T>, Line<T>) {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                waiting: VecDeque::new(),
                sink: None,
                waker: None,
                unsubscribe: Some(Box::new(unsubscribe)),
                ended: false,
                dropped: false,
            }),
        });
        (LineSender { shared: shared.clone() }, Line { shared })
    }

    /// The next thing; `None` when the line has ended.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let mut state = self.shared.lock();
        match state.waiting.pop_front() {
            Some(thing) => Poll::Ready(Some(thing)),
            None if state.ended => Poll::Ready(None),
            None => {
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// From now on `sink` is called for each thing, beginning with those that wait already.
    pub(crate) fn attach(&self, sink: Arc<dyn Sink<T>>) {
        let mut state = self.shared.lock();
        for thing in std::mem::take(&mut state.waiting) {
            sink.take(thing);
        }
        if state.ended {
            sink.ended();
        } else {
            state.sink = Some(sink);
        }
    }
}

impl<T> Drop for Line<T> {
    fn drop(&mut self) {
        let (unsubscribe, sink) = {
            let mut state = self.shared.lock();
            state.dropped = true;
            state.waiting.clear();
            (state.unsubscribe.take(), state.sink.take())
        };
        // Both may take locks of their own; ours is released first.
        drop(sink);
        if let Some(unsubscribe) = unsubscribe {
            unsubscribe();
        }
    }
}

impl<T> LineSender<T> {
    /// Shows the line its next thing. Returns false if the line was dropped, or had to end because
    /// its reader took nothing.
    pub(crate) fn push(&self, thing: T) -> bool {
        let mut state = self.shared.lock();
        if state.dropped || state.ended {
            return false;
        }
        if let Some(sink) = &state.sink {
            sink.take(thing);
            return true;
        }
        if state.waiting.len() >= BOUND {
            state.waiting.clear();
            state.ended = true;
        } else {
            state.waiting.push_back(thing);
        }
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
        !state.ended
    }

    /// Whether the line has been dropped.
    pub(crate) fn is_closed(&self) -> bool {
        self.shared.lock().dropped
    }
}

impl<T> Drop for LineSender<T> {
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
