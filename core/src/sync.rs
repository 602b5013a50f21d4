//! This module holds the locks and atomics on the way from an append to a wake. They are those of
//! the standard library. Under `cfg(loom)` they are those with which its tests try every
//! interleaving.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::AtomicU64;
#[cfg(loom)]
pub(crate) use loom::sync::{Mutex, MutexGuard};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::AtomicU64;
#[cfg(not(loom))]
pub(crate) use std::sync::{Mutex, MutexGuard};

/// Locks `mutex`. The data behind these locks is whole between any two statements, and must outlive
/// a listener's panic. So the function takes a poisoned lock like any other.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
