//! Many who want the same thing at the same time cause it to be fetched once.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::sync::Notify;

use crate::shrink::shrink;

/// One fetch under way per key. A caller that goes away does not stop the fetch that others wait for.
pub(crate) struct Flights<K, V>(Arc<UnderWay<K, V>>);

type UnderWay<K, V> = Mutex<HashMap<K, Arc<Flight<V>>>>;

/// Those who wait are woken in the order in which they came, so that a simulation can be repeated.
struct Flight<V> {
    outcome: OnceLock<Option<V>>,
    landed: Notify,
}

impl<K, V> Default for Flights<K, V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Clone + Eq + Hash + Send + 'static, V: Clone + Send + Sync + 'static> Flights<K, V> {
    /// The outcome of the fetch for `key`: of the one under way, or of `fetch`. `None`: it panicked.
    pub(crate) async fn join<F>(&self, key: K, fetch: impl FnOnce() -> F) -> Option<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let (flight, land) = {
            let mut under_way = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match under_way.get(&key) {
                Some(flight) => (flight.clone(), None),
                None => {
                    let flight = Arc::new(Flight {
                        outcome: OnceLock::new(),
                        landed: Notify::new(),
                    });
                    under_way.insert(key.clone(), flight.clone());
                    let land = Land {
                        under_way: self.0.clone(),
                        key,
                        flight: flight.clone(),
                        outcome: None,
                    };
                    (flight, Some(land))
                }
            }
        };
        // Before the look at the outcome: whoever asks for it before it is there is woken.
        let landed = flight.landed.notified();
        // Not under the lock: a runtime that is shutting down drops the task at once, and that frees the key.
        if let Some(mut land) = land {
            let fetch = fetch();
            tokio::spawn(async move {
                let outcome = fetch.await;
                land.outcome = Some(outcome);
                drop(land);
            });
        }
        if flight.outcome.get().is_none() {
            landed.await;
        }
        flight.outcome.get().cloned().flatten()
    }
}

/// Dropped at the end of a fetch, also if it panics.
struct Land<K: Eq + Hash, V> {
    under_way: Arc<UnderWay<K, V>>,
    key: K,
    flight: Arc<Flight<V>>,
    outcome: Option<V>,
}

impl<K: Eq + Hash, V> Drop for Land<K, V> {
    fn drop(&mut self) {
        // First the key, so that whoever comes now begins anew; then the word to those who wait.
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.remove(&self.key);
        shrink(&mut *under_way);
        drop(under_way);
        // Nobody else sets it.
        let _ = self.flight.outcome.set(self.outcome.take());
        self.flight.landed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::watch;

    #[tokio::test]
    async fn many_callers_cause_one_fetch() {
        let flights = Arc::new(Flights::<u8, usize>::default());
        let fetched = Arc::new(AtomicUsize::new(0));
        let (open, gate) = watch::channel(false);
        let callers: Vec<_> = (0..100)
            .map(|_| {
                let (flights, fetched, mut gate) = (flights.clone(), fetched.clone(), gate.clone());
                tokio::spawn(async move {
                    flights
                        .join(1, || async move {
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
            flights.join(1, || async move { again.fetch_add(1, Ordering::SeqCst) }).await,
            Some(1)
        );
    }

    #[tokio::test]
    async fn a_fetch_that_panics_leaves_the_key_free() {
        let flights = Flights::<u8, u8>::default();
        assert_eq!(flights.join(1, || async { panic!("on purpose") }).await, None);
        assert_eq!(flights.join(1, || async { 7 }).await, Some(7));
    }
}
