//! This module bounds how many pages of history a node reads at once. It also bounds how long a
//! client may hold a page without reading it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use airwave_core::address::AddressKey;
use airwave_core::{Code, Refusal};
use axum::body::Body;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

/// A page ends after this many bytes of messages, with `more: true`.
pub(crate) const PAGE_BYTES: usize = 256 << 10;
/// Bounds the pages that a node reads or writes at once, in all and of one address.
const AT_ONCE: usize = 16;
const AT_ONCE_PER_ADDRESS: usize = 4;
/// Bounds the requests that wait for their turn, on the node and of one address, and how long each
/// may wait.
const WAITING: usize = 256;
const WAITING_PER_ADDRESS: usize = 64;
const PATIENCE: Duration = Duration::from_secs(5);
/// A body hands out pieces of this size, so a server buffers one piece of an unread answer.
const PIECE: usize = 16 << 10;
/// The node sweeps unused addresses from the table when it has grown to this many.
const SWEPT_AT: usize = 1024;

/// This queue lets a node read a few pages at a time. The other requests wait in order, and the
/// queue's length is bounded.
pub(crate) struct Pages {
    node: Arc<Semaphore>,
    waiting: AtomicUsize,
    addresses: Mutex<HashMap<AddressKey, Weak<Turns>>>,
}

struct Turns {
    turns: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// A turn lets one page be read. Dropping it lets the next request in.
pub(crate) struct Turn {
    _node: OwnedSemaphorePermit,
    _address: Option<(OwnedSemaphorePermit, Arc<Turns>)>,
}

/// This guard holds the place of a request that waits. Dropping it leaves the queue.
struct QueuePlace<'a>(&'a AtomicUsize);

impl<'a> QueuePlace<'a> {
    fn join(queue: &'a AtomicUsize, most: usize) -> Result<Self, Refusal> {
        // The guard exists before the check, so that a refusal leaves the queue, too.
        let waiting = QueuePlace(queue);
        if queue.fetch_add(1, Ordering::Relaxed) < most {
            Ok(waiting)
        } else {
            Err(Refusal::new(
                Code::TooMany,
                "too many pages of history are being read: try again later, and listen instead of asking again and again",
            ))
        }
    }
}

impl Drop for QueuePlace<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Default for Pages {
    fn default() -> Self {
        Self {
            node: Arc::new(Semaphore::new(AT_ONCE)),
            waiting: AtomicUsize::new(0),
            addresses: Mutex::default(),
        }
    }
}

impl Pages {
    /// Waits for a page's turn.
    ///
    /// # Errors
    /// `too-many`: the queue is full, or the turn did not come in time.
    pub(crate) async fn turn(&self, peer: Option<IpAddr>) -> Result<Turn, Refusal> {
        let of_address = peer.map(|peer| self.turns_of(peer.into()));
        let _waiting = QueuePlace::join(&self.waiting, WAITING)?;
        let _of_address = match &of_address {
            Some(turns) => Some(QueuePlace::join(&turns.waiting, WAITING_PER_ADDRESS)?),
            None => None,
        };
        let turn = async {
            // The request waits for its address first: requests of one address must not fill the
            // node's queue.
            let address = match &of_address {
                Some(turns) => Some((turns.turns.clone().acquire_owned().await?, turns.clone())),
                None => None,
            };
            let node = self.node.clone().acquire_owned().await?;
            Ok::<_, tokio::sync::AcquireError>(Turn {
                _node: node,
                _address: address,
            })
        };
        match timeout(PATIENCE, turn).await {
            Ok(Ok(turn)) => Ok(turn),
            Ok(Err(_)) | Err(_) => Err(Refusal::new(
                Code::TooMany,
                "pages of history are read a few at a time, and this one's turn did not come: read the answers that are under way, and try again",
            )),
        }
    }

    fn turns_of(&self, address: AddressKey) -> Arc<Turns> {
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turns) = addresses.get(&address).and_then(Weak::upgrade) {
            return turns;
        }
        if addresses.len() >= SWEPT_AT {
            addresses.retain(|_, turns| turns.strong_count() > 0);
            airwave_core::shrink::shrink(&mut *addresses);
        }
        let turns = Arc::new(Turns {
            turns: Arc::new(Semaphore::new(AT_ONCE_PER_ADDRESS)),
            waiting: AtomicUsize::new(0),
        });
        addresses.insert(address, Arc::downgrade(&turns));
        turns
    }
}

/// This body holds a page's bytes on their way to a client.
struct PageBody {
    left: Arc<Mutex<Left>>,
    watch: AbortHandle,
}

struct Left {
    bytes: Bytes,
    /// The turn ends when the body has handed out the last piece.
    turn: Option<Turn>,
    cut: bool,
}

fn lock(left: &Mutex<Left>) -> MutexGuard<'_, Left> {
    left.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the body of an answer that holds a page. A client that takes nothing of it for `stalled`
/// loses it, and with it the turn.
pub(crate) fn body(bytes: Bytes, turn: Turn, stalled: Duration) -> Body {
    if bytes.len() <= PIECE {
        // A server buffers a piece anyway.
        return Body::from(bytes);
    }
    let left = Arc::new(Mutex::new(Left {
        bytes,
        turn: Some(turn),
        cut: false,
    }));
    let watch = tokio::spawn(cut_if_stalled(left.clone(), stalled)).abort_handle();
    Body::new(PageBody { left, watch })
}

async fn cut_if_stalled(left: Arc<Mutex<Left>>, stalled: Duration) {
    let mut before = lock(&left).bytes.len();
    loop {
        sleep(stalled).await;
        let mut left = lock(&left);
        let now = left.bytes.len();
        if now == 0 {
            return;
        }
        if now == before {
            (left.bytes, left.turn, left.cut) = (Bytes::new(), None, true);
            return;
        }
        before = now;
    }
}

impl http_body::Body for PageBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let mut left = lock(&self.left);
        if left.cut {
            return Poll::Ready(Some(Err(std::io::ErrorKind::TimedOut.into())));
        }
        if left.bytes.is_empty() {
            return Poll::Ready(None);
        }
        let piece = left.bytes.len().min(PIECE);
        // The body copies the piece, so that an unread piece does not keep the whole page.
        let piece = Bytes::copy_from_slice(&left.bytes.split_to(piece));
        if left.bytes.is_empty() {
            (left.bytes, left.turn) = (Bytes::new(), None);
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        let left = lock(&self.left);
        left.bytes.is_empty() && !left.cut
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(lock(&self.left).bytes.len() as u64)
    }
}

impl Drop for PageBody {
    fn drop(&mut self) {
        self.watch.abort();
        let mut left = lock(&self.left);
        (left.bytes, left.turn) = (Bytes::new(), None);
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    fn peer(last: u8) -> Option<IpAddr> {
        Some(IpAddr::from([203, 0, 113, last]))
    }

    const STALLED: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn an_address_has_a_few_turns_and_does_not_take_those_of_others() {
        let pages = Pages::default();
        let mut turns = Vec::new();
        for _ in 0..AT_ONCE_PER_ADDRESS {
            turns.push(pages.turn(peer(1)).await.unwrap());
        }
        assert_eq!(pages.turn(peer(1)).await.err().unwrap().code, Code::TooMany);
        assert!(pages.turn(peer(2)).await.is_ok());
        turns.pop();
        assert!(pages.turn(peer(1)).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn the_queue_is_bounded() {
        let pages = Arc::new(Pages::default());
        let mut held = Vec::new();
        for _ in 0..AT_ONCE_PER_ADDRESS {
            held.push(pages.turn(peer(1)).await.unwrap());
        }
        let asked: Vec<_> = (0..2 * WAITING_PER_ADDRESS)
            .map(|_| {
                let pages = pages.clone();
                tokio::spawn(async move { pages.turn(peer(1)).await.is_ok() })
            })
            .collect();
        // The runtime polls a bounded number of tasks before it comes back to this one.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert_eq!(pages.waiting.load(Ordering::Relaxed), WAITING_PER_ADDRESS);
        drop(held);
        let mut came = 0;
        for asked in asked {
            came += usize::from(asked.await.unwrap());
        }
        assert_eq!(came, WAITING_PER_ADDRESS);
        assert_eq!(pages.waiting.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_page_that_is_read_comes_whole_and_then_its_turn_is_free() {
        let pages = Pages::default();
        let bytes = Bytes::from(vec![7; 100_000]);
        let body = body(bytes.clone(), pages.turn(peer(1)).await.unwrap(), STALLED);
        assert_eq!(http_body::Body::size_hint(&body).exact(), Some(100_000));
        assert_eq!(pages.node.available_permits(), AT_ONCE - 1);
        assert_eq!(body.collect().await.unwrap().to_bytes(), bytes);
        assert_eq!(pages.node.available_permits(), AT_ONCE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_page_that_is_not_read_is_let_go_of() {
        let pages = Pages::default();
        let mut bodies = Vec::new();
        for last in 0..AT_ONCE as u8 {
            let turn = pages.turn(peer(last)).await.unwrap();
            bodies.push(body(Bytes::from(vec![7; 100_000]), turn, STALLED));
        }
        assert!(bodies[0].frame().await.unwrap().is_ok());
        assert_eq!(pages.node.available_permits(), 0);
        sleep(3 * STALLED).await;
        assert_eq!(pages.node.available_permits(), AT_ONCE);
        for mut body in bodies {
            assert!(
                body.frame().await.unwrap().is_err(),
                "a page that was cut does not look whole"
            );
        }
    }
}
