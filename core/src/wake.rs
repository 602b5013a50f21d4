//! This module wakes the task of one session. Setting a flag that is set costs nothing, so a busy
//! listener is woken once however much is published.

use std::task::{Context, Poll, Waker};

use crate::sync::Mutex;

/// A wake flag belongs to one session: any number of logs set it, one task waits for it.
///
/// The task keeps one order, which leaves no room for a lost wake: [`WakeFlag::reset`], *then* read
/// the logs, then [`WakeFlag::poll`]. An event that is appended after the read sets the flag again.
/// An event that was appended before the read has been read.
pub(crate) struct WakeFlag(Mutex<WakeState>);

#[derive(Default)]
struct WakeState {
    set: bool,
    /// Says whether the session's socket may have something to read.
    readable: bool,
    waker: Option<Waker>,
}

impl Default for WakeFlag {
    fn default() -> Self {
        Self(Mutex::new(WakeState::default()))
    }
}

impl WakeFlag {
    fn with<T>(&self, act: impl FnOnce(&mut WakeState) -> T) -> T {
        // A poisoned lock can only come from a panic while a waker was cloned; the state is whole.
        match self.0.lock() {
            Ok(mut state) => act(&mut state),
            Err(poisoned) => act(&mut poisoned.into_inner()),
        }
    }

    /// Sets the flag and wakes the task, because there is something to read.
    pub(crate) fn wake(&self) {
        let waker = self.with(|state| {
            if state.set {
                return None;
            }
            state.set = true;
            state.waker.take()
        });
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Wakes the task even if the flag is set already. An order must reach a task that waits for
    /// its socket.
    pub(crate) fn wake_always(&self) {
        let waker = self.with(|state| {
            state.set = true;
            state.waker.take()
        });
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Wakes the task without setting the flag, because the session's socket may have something to
    /// read.
    pub(crate) fn wake_readable(&self) {
        let waker = self.with(|state| {
            state.readable = true;
            state.waker.take()
        });
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Notes that the socket may still have something to read. The task knows, so it is not woken.
    pub(crate) fn keep_readable(&self) {
        self.with(|state| state.readable = true);
    }

    /// Returns whether the socket may have something to read, and forgets it. If not, the task is
    /// woken when the socket does.
    pub(crate) fn take_readable(&self, cx: &mut Context<'_>) -> bool {
        self.with(|state| {
            state.keep(cx);
            std::mem::take(&mut state.readable)
        })
    }

    /// Resets the flag. The task calls it before it reads.
    pub(crate) fn reset(&self) {
        self.with(|state| state.set = false);
    }

    /// Returns `Ready` once the flag has been set since its reset.
    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.with(|state| {
            if state.set {
                return Poll::Ready(());
            }
            state.keep(cx);
            Poll::Pending
        })
    }

    /// Registers the task for [`WakeFlag::wake_always`] (and perhaps one [`WakeFlag::wake`]),
    /// without a look at the flag.
    pub(crate) fn register(&self, cx: &mut Context<'_>) {
        self.with(|state| state.keep(cx));
    }
}

impl WakeState {
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

    /// Checks with at most three switches between threads where none had to be. More switches find
    /// no more and take for ever.
    fn check(act: impl Fn() + Sync + Send + 'static) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(act);
    }

    #[test]
    fn loom_a_wake_after_a_change_is_never_missed() {
        check(|| {
            let flag = Arc::new(WakeFlag::default());
            let changed = Arc::new([AtomicBool::new(false), AtomicBool::new(false)]);
            let wakers = [0, 1].map(|n| {
                let (flag, changed) = (flag.clone(), changed.clone());
                thread::spawn(move || {
                    changed[n].store(true, Ordering::Release);
                    flag.wake();
                })
            });
            block_on(std::future::poll_fn(|cx| {
                loop {
                    flag.reset();
                    if changed.iter().all(|changed| changed.load(Ordering::Acquire)) {
                        return Poll::Ready(());
                    }
                    if flag.poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                }
            }));
            for waker in wakers {
                waker.join().unwrap();
            }
        });
    }

    /// A task that waits for its socket does not reset its flag, which may be set.
    #[test]
    fn loom_wake_always_reaches_a_task_whose_flag_is_set() {
        check(|| {
            let flag = Arc::new(WakeFlag::default());
            let cut = Arc::new(AtomicBool::new(false));
            flag.wake();
            let waker = {
                let flag = flag.clone();
                thread::spawn(move || flag.wake())
            };
            let hub = {
                let (flag, cut) = (flag.clone(), cut.clone());
                thread::spawn(move || {
                    cut.store(true, Ordering::Relaxed);
                    flag.wake_always();
                })
            };
            block_on(std::future::poll_fn(|cx| {
                flag.register(cx);
                if cut.load(Ordering::Relaxed) {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            }));
            waker.join().unwrap();
            hub.join().unwrap();
        });
    }

    /// An order of the hub, by its own flag and `wake_always`, reaches a session between its turns,
    /// too.
    #[test]
    fn loom_wake_always_reaches_a_task_that_is_about_to_sleep() {
        check(|| {
            let flag = Arc::new(WakeFlag::default());
            let flags = Arc::new(AtomicU8::new(0));
            let hub = {
                let (flag, flags) = (flag.clone(), flags.clone());
                thread::spawn(move || {
                    flags.fetch_or(2, Ordering::Relaxed);
                    flag.wake_always();
                })
            };
            block_on(std::future::poll_fn(|cx| {
                loop {
                    flag.reset();
                    if flags.swap(0, Ordering::Relaxed) != 0 {
                        return Poll::Ready(());
                    }
                    if flag.poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                }
            }));
            hub.join().unwrap();
        });
    }

    /// A socket wakes the task by the same object. That reaches a task that is about to sleep,
    /// whatever else wakes it, and does not set the flag.
    #[test]
    fn loom_what_a_socket_says_is_never_missed() {
        check(|| {
            let flag = Arc::new(WakeFlag::default());
            let waker = {
                let flag = flag.clone();
                thread::spawn(move || flag.wake())
            };
            let socket = {
                let flag = flag.clone();
                thread::spawn(move || flag.wake_readable())
            };
            block_on(std::future::poll_fn(|cx| {
                if flag.take_readable(cx) {
                    return Poll::Ready(());
                }
                flag.reset();
                loop {
                    match flag.poll(cx) {
                        Poll::Ready(()) => flag.reset(),
                        Poll::Pending => return Poll::Pending,
                    }
                }
            }));
            waker.join().unwrap();
            socket.join().unwrap();
        });
    }
}
