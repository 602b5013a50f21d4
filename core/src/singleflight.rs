//! Callers that want the same value at the same time share one fetch.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::sync::Notify;

use crate::shrink::shrink;

/// At most one fetch per key is under way. A caller that goes away does not stop the fetch that
/// others wait for.
pub(crate) struct Singleflight<K, V>(Arc<UnderWay<K, V>>);

type UnderWay<K, V> = Mutex<HashMap<K, Arc<Fetch<V>>>>;

/// A fetch wakes its callers in the order in which they came, so that a simulation can be repeated.
struct Fetch<V> {
    outcome: OnceLock<Option<V>>,
    done: Notify,
}

impl<K, V> Default for Singleflight<K, V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Clone + Eq + Hash + Send + 'static, V: Clone + Send + Sync + 'static> Singleflight<K, V> {
    /// Returns the outcome of the fetch for `key`: of the one under way, or of `fetch`. Returns
    /// `None` if the fetch panicked.
    pub(crate) async fn run<F>(&self, key: K, fetch: impl FnOnce() -> F) -> Option<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let (fetching, end) = {
            let mut under_way = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match under_way.get(&key) {
                Some(fetching) => (fetching.clone(), None),
                None => {
                    let fetching = Arc::new(Fetch {
                        outcome: OnceLock::new(),
                        done: Notify::new(),
                    });
                    under_way.insert(key.clone(), fetching.clone());
                    let end = EndFetch {
                        under_way: self.0.clone(),
                        key,
                        fetch: fetching.clone(),
                        outcome: None,
                    };
                    (fetching, Some(end))
                }
            }
        };
        // The caller registers before it looks at the outcome, so that a later outcome wakes it.
        let done = fetching.done.notified();
        // The task starts outside the lock: a runtime that is shutting down drops the task at once,
        // and that drop frees the key.
        if let Some(mut end) = end {
            let fetch = fetch();
            tokio::spawn(async move {
                let outcome = fetch.await;
                end.outcome = Some(outcome);
                drop(end);
            });
        }
        if fetching.outcome.get().is_none() {
            done.await;
        }
        fetching.outcome.get().cloned().flatten()
    }
}

/// This guard ends a fetch when it is dropped, also by a panic.
struct EndFetch<K: Eq + Hash, V> {
    under_way: Arc<UnderWay<K, V>>,
    key: K,
    fetch: Arc<Fetch<V>>,
    outcome: Option<V>,
}

impl<K: Eq + Hash, V> Drop for EndFetch<K, V> {
    fn drop(&mut self) {
        // The guard removes the key before it wakes the callers, so that a new caller starts a new
        // fetch.
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.remove(&self.key);
        shrink(&mut *under_way);
        drop(under_way);
        // Only this drop sets the outcome.
        let _ = self.fetch.outcome.set(self.outcome.take());
        self.fetch.done.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::watch;

    #[tokio::test]
    async fn many_callers_cause_one_fetch() {
        let flight = Arc::new(Singleflight::<u8, usize>::default());
        let fetched = Arc::new(AtomicUsize::new(0));
        let (open, gate) = watch::channel(false);
        let callers: Vec<_> = (0..100)
            .map(|_| {
                let (flight, fetched, mut gate) = (flight.clone(), fetched.clone(), gate.clone());
                tokio::spawn(async move {
                    flight
                        .run(1, || async move {
                            gate.wait_for(|open| *open).await.unwrap();
                            fetched.fetch_add(1, Ordering::SeqCst)
                        })
                        .await
                })
            })
            .collect();
        tokio::task::yield_now().await;
        open.send_replace(true);
        for caller in callers {
            assert_eq!(caller.await.unwrap(), Some(0));
        }
        assert_eq!(fetched.load(Ordering::SeqCst), 1);
        let again = fetched.clone();
        assert_eq!(
            flight.run(1, || async move { again.fetch_add(1, Ordering::SeqCst) }).await,
            Some(1)
        );
    }

    #[tokio::test]
    async fn a_fetch_that_panics_leaves_the_key_free() {
        let flight = Singleflight::<u8, u8>::default();
        assert_eq!(flight.run(1, || async { panic!("on purpose") }).await, None);
        assert_eq!(flight.run(1, || async { 7 }).await, Some(7));
    }
}
