//! How long a connection may wait: for the first request, for the rest of a head, for the next
//! request.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use airwave_transports::socket::{News, Usage};
use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep};

/// The requests of one connection that are being answered.
#[derive(Debug)]
pub(super) struct Requests {
    start: Instant,
    under_way: AtomicUsize,
    begun: AtomicU64,
    /// Milliseconds from the start until the last one was answered.
    finished: AtomicU64,
}

/// A request that is being answered. Dropped when its answer is complete.
pub(super) struct UnderWay(Arc<Requests>);

impl Requests {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            start: Instant::now(),
            under_way: AtomicUsize::new(0),
            begun: AtomicU64::new(0),
            finished: AtomicU64::new(0),
        })
    }

    pub(super) fn begin(self: &Arc<Self>) -> UnderWay {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        self.begun.fetch_add(1, Ordering::Relaxed);
        UnderWay(self.clone())
    }

    pub(super) fn are_under_way(&self) -> bool {
        self.under_way.load(Ordering::Relaxed) > 0
    }

    /// How many there were.
    fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// Whether none is under way, and none was within `time`.
    pub(super) fn are_over_for(&self, time: Duration) -> bool {
        !self.are_under_way() && self.finished().elapsed() >= time
    }

    /// When the last one was answered.
    fn finished(&self) -> Instant {
        self.start + Duration::from_millis(self.finished.load(Ordering::Relaxed))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let now = self.0.start.elapsed().as_millis() as u64;
        self.0.finished.store(now, Ordering::Relaxed);
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An answer's body, which holds its request's mark until hyper has taken all of it.
pub(super) struct Answer {
    pub(super) body: Body,
    pub(super) _under_way: UnderWay,
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A request's body that tells the gate under hyper when it has ended, because its head does not
/// say how long it is.
pub(super) struct Chunked {
    pub(super) body: Incoming,
    pub(super) usage: Arc<Usage>,
}

impl hyper::body::Body for Chunked {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(frame, Poll::Ready(None)) || self.body.is_end_stream() {
            self.usage.tell(News::ChunkedEnd);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Runs the tasks of an HTTP/2 connection: one for each stream, and one for what goes on in it
/// after an upgrade. All of them count as requests under way.
#[derive(Clone)]
pub(super) struct Streams(pub(super) Arc<Requests>);

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, stream: F) {
        let under_way = self.0.begin();
        tokio::spawn(async move {
            stream.await;
            drop(under_way);
        });
    }
}

/// The limits of a connection's waits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waits {
    /// From the accept to the end of the first head, and from a later head's first byte to its end.
    pub(super) head: Duration,
    /// From the end of an answer to the first byte of the next head.
    pub(super) keep_alive: Duration,
}

/// Watches the waits of an HTTP/1 connection.
///
/// hyper has one time-out for a head and for the wait before it, and starts it when the answer
/// before has gone. These are two limits: a proxy keeps connections for a minute, and no head takes
/// as long.
pub(super) struct HeadClock {
    waits: Waits,
    /// `None` while a request is being answered.
    deadline: Option<Instant>,
    /// Whether the head's first byte is there.
    in_head: bool,
    /// When a head that has begun has to be complete at the latest, whatever `waits` says.
    latest: Option<Instant>,
    /// For when the timer is set: at the deadline, or before it.
    armed: Instant,
    begun: u64,
    read: u64,
    written: u64,
}

impl HeadClock {
    /// The first head is due from `accepted` on, whether or not its first byte is there.
    pub(super) fn new(waits: Waits, accepted: Instant) -> Self {
        let deadline = accepted + waits.head;
        Self {
            waits,
            deadline: Some(deadline),
            in_head: true,
            latest: None,
            armed: deadline,
            begun: 0,
            read: 0,
            written: 0,
        }
    }

    /// From now on a head that has begun has to be complete at `latest`.
    pub(super) fn hurry(&mut self, latest: Instant) {
        self.latest = Some(latest);
    }

    /// For when the timer has to be set at first.
    pub(super) fn first(&self) -> Instant {
        self.armed
    }

    /// Takes note of what the connection did since the last look, and returns until when it may
    /// wait; `None` while a request is being answered.
    fn look(&mut self, now: Instant, usage: &Usage, requests: &Requests) -> Option<Instant> {
        if requests.are_under_way() {
            self.deadline = None;
            return None;
        }
        let (begun, read, written) = (requests.begun(), usage.read(), usage.written());
        if self.deadline.is_none() || begun != self.begun || (written != self.written && begun > 0) {
            // An answer, or a piece of it, has just gone.
            self.deadline = Some(now + self.waits.keep_alive);
            self.in_head = false;
        } else if read != self.read && !self.in_head {
            self.deadline = Some(now + self.waits.head);
            self.in_head = true;
        }
        (self.begun, self.read, self.written) = (begun, read, written);
        match self.latest.filter(|_| self.in_head) {
            Some(latest) => self.deadline.map(|deadline| deadline.min(latest)),
            None => self.deadline,
        }
    }

    /// Ready when the connection has waited too long. To be called after each poll of the
    /// connection. The timer is set anew only if it would ring too late.
    pub(super) fn poll_expired(
        &mut self,
        mut timer: Pin<&mut Sleep>,
        usage: &Usage,
        requests: &Requests,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let Some(deadline) = self.look(Instant::now(), usage, requests) else {
            return Poll::Pending;
        };
        if deadline < self.armed {
            timer.as_mut().reset(deadline);
            self.armed = deadline;
        }
        while timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
            self.armed = deadline;
        }
        Poll::Pending
    }
}

/// Resolves when an HTTP/2 connection has had no stream for too long: none since it was accepted,
/// or none since the last one ended. What else the peer sends, pings for example, does not count.
pub(super) async fn without_streams(requests: &Requests, waits: Waits, accepted: Instant) {
    let mut look = accepted + waits.head;
    loop {
        tokio::time::sleep_until(look).await;
        match next_look(Instant::now(), requests, waits, accepted) {
            Some(next) => look = next,
            None => return,
        }
    }
}

/// When to look again at an HTTP/2 connection; `None`: it has had no stream for too long.
fn next_look(now: Instant, requests: &Requests, waits: Waits, accepted: Instant) -> Option<Instant> {
    let deadline = if requests.are_under_way() {
        now + waits.keep_alive
    } else if requests.begun() > 0 {
        requests.finished() + waits.keep_alive
    } else {
        accepted + waits.head
    };
    (deadline > now).then_some(deadline)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: Duration = Duration::from_secs(10);
    const KEEP_ALIVE: Duration = Duration::from_secs(75);
    const WAITS: Waits = Waits {
        head: HEAD,
        keep_alive: KEEP_ALIVE,
    };
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_first_head_is_due_from_the_accept_on() {
        let (usage, requests, accepted) = (Usage::default(), Requests::new(), Instant::now());
        let mut clock = HeadClock::new(WAITS, accepted);
        for seconds in 0..9 {
            assert_eq!(
                clock.look(accepted + seconds * SECOND, &usage, &requests),
                Some(accepted + HEAD)
            );
            usage.count_read(1);
        }
    }

    #[test]
    fn between_requests_there_is_more_time_than_for_a_head() {
        let (usage, requests) = (Usage::default(), Requests::new());
        let mut now = Instant::now();
        let mut clock = HeadClock::new(WAITS, now);
        for _ in 0..3 {
            usage.count_read(100);
            let request = requests.begin();
            assert_eq!(clock.look(now, &usage, &requests), None, "a request is being answered");
            usage.count_written(100);
            drop(request);
            now += SECOND;
            assert_eq!(clock.look(now, &usage, &requests), Some(now + KEEP_ALIVE));
            assert_eq!(clock.look(now + 70 * SECOND, &usage, &requests), Some(now + KEEP_ALIVE));
            now += 70 * SECOND;
        }
        // The first byte of the next head, and more of them.
        usage.count_read(1);
        let due = now + HEAD;
        assert_eq!(clock.look(now, &usage, &requests), Some(due));
        usage.count_read(1);
        assert_eq!(clock.look(now + 5 * SECOND, &usage, &requests), Some(due));
    }

    #[test]
    fn a_request_that_was_answered_between_two_looks_counts() {
        let (usage, requests, now) = (Usage::default(), Requests::new(), Instant::now());
        let mut clock = HeadClock::new(WAITS, now);
        usage.count_read(100);
        drop(requests.begin());
        assert_eq!(clock.look(now, &usage, &requests), Some(now + KEEP_ALIVE));
    }

    #[test]
    fn a_large_answer_on_its_way_is_not_a_wait() {
        let (usage, requests) = (Usage::default(), Requests::new());
        let mut now = Instant::now();
        let mut clock = HeadClock::new(WAITS, now);
        drop(requests.begin());
        for _ in 0..10 {
            usage.count_written(1000);
            assert_eq!(clock.look(now, &usage, &requests), Some(now + KEEP_ALIVE));
            now += 60 * SECOND;
        }
    }

    #[test]
    fn a_head_that_has_begun_is_hurried_and_an_answer_is_not() {
        let (usage, requests, now) = (Usage::default(), Requests::new(), Instant::now());
        let mut clock = HeadClock::new(WAITS, now);
        clock.hurry(now + SECOND);
        assert_eq!(clock.look(now, &usage, &requests), Some(now + SECOND));
        usage.count_read(100);
        drop(requests.begin());
        usage.count_written(1000);
        assert_eq!(clock.look(now, &usage, &requests), Some(now + KEEP_ALIVE));
    }

    #[test]
    fn http2_without_streams_ends() {
        let requests = Requests::new();
        let accepted = Instant::now();
        let look = |now, requests: &Requests| next_look(now, requests, WAITS, accepted);
        assert_eq!(look(accepted + 9 * SECOND, &requests), Some(accepted + HEAD));
        assert_eq!(look(accepted + HEAD, &requests), None, "no stream since the accept");
        let stream = requests.begin();
        assert!(look(accepted + 3600 * SECOND, &requests).is_some());
        drop(stream);
        let ended = requests.finished();
        assert_eq!(look(ended + 74 * SECOND, &requests), Some(ended + KEEP_ALIVE));
        assert_eq!(look(ended + KEEP_ALIVE, &requests), None);
    }
}
