//! Wakes one session. Ringing a bell that rings already costs nothing, so a busy listener is woken once however much is published.

use std::task::{Context, Poll, Waker};

use crate::sync::Mutex;

/// One session's bell: any number of logs ring it, one task waits for it.
///
/// The listener's rule, which leaves no room for a lost wake: [`Bell::clear`], *then* read the logs, then [`Bell::poll`]. What is appended after
/// the read rings a cleared bell; what was appended before the read has been read.
pub(crate) struct Bell(Mutex<State>);

#[derive(Default)]
struct State {
    rung: bool,
    /// The session's socket may have something to read.
    readable: bool,
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

    /// The session's socket may have something to read: the task is woken, and the bell does not ring.
    pub(crate) fn readable(&self) {
        let waker = self.with(|state| {
            state.readable = true;
            state.waker.take()
        });
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The socket may still have something to read; the task knows.
    pub(crate) fn stays_readable(&self) {
        self.with(|state| state.readable = true);
    }

    /// Whether the socket may have something to read, said once. If not, the task is woken when it does.
    pub(crate) fn take_readable(&self, cx: &mut Context<'_>) -> bool {
        self.with(|state| {
            state.keep(cx);
            std::mem::take(&mut state.readable)
        })
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

/// A lost wake is a deadlock, which loom reports.
#[cfg(all(test, loom))]
mod loom_tests {
    use std::sync::Arc;

    use loom::future::block_on;
    use loom::sync::atomic::{AtomicBool, AtomicU8, Ordering};
    use loom::thread;

    use super::*;

    /// More than three switches between threads where none had to be does not find more and takes for ever.
    fn check(act: impl Fn() + Sync + Send + 'static) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(act);
    }

    #[test]
    fn loom_what_is_rung_after_a_change_is_never_missed() {
        check(|| {
            let bell = Arc::new(Bell::default());
            let changed = Arc::new([AtomicBool::new(false), AtomicBool::new(false)]);
            let ringers = [0, 1].map(|n| {
                let (bell, changed) = (bell.clone(), changed.clone());
                thread::spawn(move || {
                    changed[n].store(true, Ordering::Release);
                    bell.ring();
                })
            });
            block_on(std::future::poll_fn(|cx| {
                loop {
                    bell.clear();
                    if changed.iter().all(|changed| changed.load(Ordering::Acquire)) {
                        return Poll::Ready(());
                    }
                    if bell.poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                }
            }));
            for ringer in ringers {
                ringer.join().unwrap();
            }
        });
    }

    /// A task that waits for its socket does not clear its bell, which may be ringing.
    #[test]
    fn loom_an_alarm_reaches_a_task_whose_bell_rings_already() {
        check(|| {
            let bell = Arc::new(Bell::default());
            let cut = Arc::new(AtomicBool::new(false));
            bell.ring();
            let ringer = {
                let bell = bell.clone();
                thread::spawn(move || bell.ring())
            };
            let hub = {
                let (bell, cut) = (bell.clone(), cut.clone());
                thread::spawn(move || {
                    cut.store(true, Ordering::Relaxed);
                    bell.alarm();
                })
            };
            block_on(std::future::poll_fn(|cx| {
                bell.listen(cx);
                if cut.load(Ordering::Relaxed) {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            }));
            ringer.join().unwrap();
            hub.join().unwrap();
        });
    }

    /// What the hub says by a flag and an alarm reaches a session between its turns, too.
    #[test]
    fn loom_an_alarm_reaches_a_task_that_is_about_to_sleep() {
        check(|| {
            let bell = Arc::new(Bell::default());
            let flags = Arc::new(AtomicU8::new(0));
            let hub = {
                let (bell, flags) = (bell.clone(), flags.clone());
                thread::spawn(move || {
                    flags.fetch_or(2, Ordering::Relaxed);
                    bell.alarm();
                })
            };
            block_on(std::future::poll_fn(|cx| {
                loop {
                    bell.clear();
                    if flags.swap(0, Ordering::Relaxed) != 0 {
                        return Poll::Ready(());
                    }
                    if bell.poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                }
            }));
            hub.join().unwrap();
        });
    }

    /// A socket wakes by the bell. Its word reaches a task that is about to sleep, whatever else rings, and is no ring.
    #[test]
    fn loom_what_a_socket_says_is_never_missed() {
        check(|| {
            let bell = Arc::new(Bell::default());
            let ringer = {
                let bell = bell.clone();
                thread::spawn(move || bell.ring())
            };
            let socket = {
                let bell = bell.clone();
                thread::spawn(move || bell.readable())
            };
            block_on(std::future::poll_fn(|cx| {
                if bell.take_readable(cx) {
                    return Poll::Ready(());
                }
                bell.clear();
                loop {
                    match bell.poll(cx) {
                        Poll::Ready(()) => bell.clear(),
                        Poll::Pending => return Poll::Pending,
                    }
                }
            }));
            ringer.join().unwrap();
            socket.join().unwrap();
        });
    }
}
