//! A request waits only for a limited time for a broker that does not answer.
//!
//! A request may call the broker several times: an application's handler does, and so does a
//! subscription to many channels. The waits for a broker that does not answer must not add up. So
//! the time counts from the first call that is not answered. An answer gives the request its whole
//! time again: a request that makes progress may be long.

use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use tokio::task_local;
use tokio::time::{Instant, timeout_at};

use crate::broker::{BrokerError, BrokerErrorKind};

/// A request gives up at this moment. It is `None` while the broker has answered the last call.
#[derive(Clone, Copy, Debug, Default)]
pub struct Patience(Option<Instant>);

impl Patience {
    /// Returns whether the next call has the whole time.
    pub fn is_whole(self) -> bool {
        self.0.is_none()
    }
}

task_local! {
    static LEFT: Cell<Patience>;
}

/// Carries out one request, whose calls of the broker share one time.
///
/// This is no `async fn`: that would hold `request` twice, as it was given and as it runs. The
/// futures of a client's requests are large, and each copy of one costs.
pub(crate) fn request<F: Future>(request: F) -> impl Future<Output = F::Output> {
    LEFT.scope(Cell::default(), request)
}

/// Carries out a [`request`] that has `left` of its time. Returns the time that remains after it.
pub(crate) fn request_behind<F: Future>(left: Patience, request: F) -> impl Future<Output = (F::Output, Patience)> {
    let request = LEFT.scope(Cell::new(left), request);
    async move {
        let mut request = pin!(request);
        let output = request.as_mut().await;
        (output, request.take_value().unwrap_or_default().get())
    }
}

/// Calls the broker for at most `limit`, and no longer than the request around it has left.
pub(crate) async fn call<T>(limit: Duration, call: impl Future<Output = Result<T, BrokerError>>) -> Result<T, BrokerError> {
    let now = Instant::now();
    let gives_up = LEFT.try_with(|left| {
        let at = left.get().0.unwrap_or(now + limit);
        left.set(Patience(Some(at)));
        at
    });
    let gives_up = gives_up.unwrap_or(now + limit);
    if gives_up <= now {
        return Err(
            BrokerError::unavailable("the broker was not called, because it did not answer in time before").for_clients(),
        );
    }
    let result = match timeout_at(gives_up, call).await {
        Ok(result) => result,
        Err(_) => Err(BrokerError::unavailable("the broker did not answer in time").for_clients()),
    };
    let answered = result
        .as_ref()
        .err()
        .is_none_or(|error| error.kind != BrokerErrorKind::Unavailable);
    if answered {
        // Outside of a request, no time is shared, so the call resets none.
        let _ = LEFT.try_with(|left| left.set(Patience(None)));
    }
    result
}

/// Waits for a call that many requests share and that has a limit of its own. A request that has
/// less time left waits no longer than that.
pub(crate) async fn wait<T>(limit: Duration, shared: impl Future<Output = Result<T, BrokerError>>) -> Result<T, BrokerError> {
    let whole = LEFT.try_with(|left| left.get().is_whole()).unwrap_or(true);
    if !whole {
        return call(limit, shared).await;
    }
    let began = Instant::now();
    let result = shared.await;
    let unanswered = result
        .as_ref()
        .err()
        .is_some_and(|error| error.kind == BrokerErrorKind::Unavailable);
    if unanswered {
        // Outside of a request, no further call shares this time.
        let _ = LEFT.try_with(|left| left.set(Patience(Some(began + limit))));
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::sleep;

    const LIMIT: Duration = Duration::from_secs(2);

    async fn hangs() -> Result<(), BrokerError> {
        std::future::pending().await
    }

    async fn answers(after: Duration) -> Result<(), BrokerError> {
        sleep(after).await;
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn calls_that_are_not_answered_share_one_time() {
        let begin = Instant::now();
        let calls = async {
            for _ in 0..20 {
                assert!(call(LIMIT, hangs()).await.is_err());
            }
        };
        let ((), left) = request_behind(Patience::default(), calls).await;
        assert_eq!(begin.elapsed(), LIMIT);
        // A request that waited behind this one shares the same time.
        let unasked = async { call::<()>(LIMIT, async { panic!("the broker is called") }).await };
        let (answer, _) = request_behind(left, unasked).await;
        assert!(answer.is_err());
        assert_eq!(begin.elapsed(), LIMIT);
        assert!(
            call(LIMIT, answers(Duration::ZERO)).await.is_ok(),
            "outside of a request each call has its own time"
        );
    }

    #[test]
    fn a_request_is_hardly_larger_than_what_it_carries_out() {
        let carried = || async {
            let room = [0u8; 1000];
            hangs().await.map(|()| room.len())
        };
        let size = size_of_val(&carried());
        assert!(size >= 1000);
        assert!(size_of_val(&request(carried())) <= size + 64);
        assert!(size_of_val(&request_behind(Patience::default(), carried())) <= 2 * (size + 64));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_gives_the_whole_time_again() {
        let slow = Duration::from_millis(1500);
        let calls = async {
            for _ in 0..5 {
                assert!(call(LIMIT, answers(slow)).await.is_ok());
            }
        };
        let ((), left) = request_behind(Patience::default(), calls).await;
        assert!(left.0.is_none());
    }
}
