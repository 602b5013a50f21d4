//! Many who want the same thing at the same time cause it to be fetched once.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

type Waiting<K, V> = Arc<Mutex<HashMap<K, watch::Receiver<Option<V>>>>>;

/// One fetch under way per key. A caller that goes away does not stop the fetch that others wait for.
pub(crate) struct Flights<K, V>(Waiting<K, V>);

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
        let (mut outcome, flight) = {
            let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match waiting.get(&key) {
                Some(outcome) => (outcome.clone(), None),
                None => {
                    let (sender, outcome) = watch::channel(None);
                    waiting.insert(key.clone(), outcome.clone());
                    let land = Land {
                        waiting: self.0.clone(),
                        key,
                    };
                    (outcome, Some((sender, land)))
                }
            }
        };
        // Not under the lock: a runtime that is shutting down drops the task at once, and that frees the key.
        if let Some((sender, land)) = flight {
            let fetch = fetch();
            tokio::spawn(async move {
                let value = fetch.await;
                // First the key, so that whoever comes now begins anew; then the word to those who wait.
                drop(land);
                sender.send_replace(Some(value));
            });
        }
        let value = outcome.wait_for(Option::is_some).await.ok()?;
        value.clone()
    }
}

/// Frees the key, also if the fetch panics.
struct Land<K: Eq + Hash, V> {
    waiting: Waiting<K, V>,
    key: K,
}

impl<K: Eq + Hash, V> Drop for Land<K, V> {
    fn drop(&mut self) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

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
