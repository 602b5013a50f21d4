//! Wakes one session. Ringing a bell that rings already costs nothing, so a busy listener is woken once however much is published.

use std::task::{Context, Poll, Waker};

#[cfg(loom)]
use loom::sync::Mutex;
#[cfg(not(loom))]
use std::sync::Mutex;

/// One session's bell: any number of logs ring it, one task waits for it.
///
/// The listener's rule, which leaves no room for a lost wake: [`Bell::clear`], *then* read the logs, then [`Bell::poll`]. What is appended after
/// the read rings a cleared bell; what was appended before the read has been read.
pub(crate) struct Bell(Mutex<State>);

#[derive(Default)]
struct State {
    rung: bool,
    waker: Option<Waker>,
}

impl Default for Bell {
    fn default() -> Self {
        Self(Mutex::new(State::default()))
    }
}

impl Bell {
    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        // A poisoned lock can only come from a panic while a waker was cloned; the state is whole.
        match self.0.lock() {
            Ok(mut state) => act(&mut state),
            Err(poisoned) => act(&mut poisoned.into_inner()),
        }
    }

    /// There is something to read.
    pub(crate) fn ring(&self) {
        let waker = self.with(|state| {
            if state.rung {
                return None;
            }
            state.rung = true;
            state.waker.take()
        });
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Wakes the task even if the bell rings already: for word that must reach a task that waits for its socket.
    pub(crate) fn alarm(&self) {
        let waker = self.with(|state| {
            state.rung = true;
            state.waker.take()
        });
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The session is about to read.
    pub(crate) fn clear(&self) {
        self.with(|state| state.rung = false);
    }

    /// Ready once the bell has rung since it was cleared.
    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.with(|state| {
            if state.rung {
                return Poll::Ready(());
            }
            state.keep(cx);
            Poll::Pending
        })
    }

    /// Has the task woken by [`Bell::alarm`] (and perhaps once by a ring), without asking whether the bell has rung.
    pub(crate) fn listen(&self, cx: &mut Context<'_>) {
        self.with(|state| state.keep(cx));
    }
}

impl State {
    fn keep(&mut self, cx: &mut Context<'_>) {
        if !self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            self.waker = Some(cx.waker().clone());
        }
    }
}
