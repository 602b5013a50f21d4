//! Taking a connection back from hyper: the socket under it, and what is still to be written to it.
//!
//! hyper keeps about 12 KB per connection for reading requests that a stream never sends. After the routes have admitted a listener over plain
//! HTTP/1.1, our own accept loop takes the `TcpStream` back and a bare task goes on. Behind any other server the same session is an ordinary body.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker, ready};

use airwave_core::Session;
use airwave_core::session::CloseReason;
use bytes::{Buf, Bytes};
use hyper::rt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// The transport under hyper on our own accept loop. A name of its own, so that an upgraded connection can be recognised and taken back.
pub struct Io {
    stream: TcpStream,
    blocked: Arc<AtomicBool>,
}

impl Io {
    /// Puts a socket under hyper. `blocked` then tells whether hyper holds bytes that the socket would not take; while it does, the socket
    /// must not be taken back.
    pub fn new(stream: TcpStream, blocked: Arc<AtomicBool>) -> Self {
        Self { stream, blocked }
    }

    /// The socket.
    pub fn into_stream(self) -> TcpStream {
        self.stream
    }

    fn note<T>(&mut self, poll: Poll<T>) -> Poll<T> {
        self.blocked.store(poll.is_pending(), Ordering::Relaxed);
        poll
    }
}

/// What goes on with a socket that was taken back: given the socket, what was read from it beyond the request, and the response's head, which it writes first.
pub type Conversation = Box<dyn FnOnce(TcpStream, Bytes, Bytes) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

/// Travels in a response's extensions: whoever serves the connection may take the socket from hyper and let this go on with it, instead of
/// sending the response's body. A server that does not know of it sends the body.
#[derive(Clone)]
pub struct Handover(Arc<dyn Fn() -> Option<Conversation> + Send + Sync>);

impl Handover {
    /// `take` gives the conversation to the first who asks.
    pub(crate) fn new(take: impl Fn() -> Option<Conversation> + Send + Sync + 'static) -> Self {
        Self(Arc::new(take))
    }

    /// The conversation, unless the body or an upgrade has it already.
    pub fn take(&self) -> Option<Conversation> {
        (self.0)()
    }
}

impl rt::Read for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, mut buf: rt::ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        // hyper hands out memory that is not initialised. Reading by way of a small buffer of our own costs a copy of each request's head, and no `unsafe`.
        let mut piece = [0u8; 4096];
        let want = buf.remaining().min(piece.len());
        let mut read = ReadBuf::new(&mut piece[..want]);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut read))?;
        buf.put_slice(read.filled());
        Poll::Ready(Ok(()))
    }
}

impl rt::Write for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.note(poll)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.note(poll)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Bytes on their way to one socket: shared pieces, and how much of the first is written.
#[derive(Default)]
pub(crate) struct Outgoing {
    pub(crate) pieces: Vec<Bytes>,
    stalled: bool,
}

/// What became of a write.
pub(crate) enum Written {
    All,
    /// The connection is of no more use.
    Broken,
}

impl Outgoing {
    /// Writes all pieces. While the socket takes nothing, the session knows, and may say that it has waited long enough.
    pub(crate) fn poll_write<S: AsyncWrite + Unpin>(
        &mut self,
        socket: &mut S,
        session: &mut Session,
        cx: &mut Context<'_>,
    ) -> Poll<Written> {
        while !self.pieces.is_empty() {
            let result = match self.pieces.as_slice() {
                [only] => Pin::new(&mut *socket).poll_write(cx, only),
                several => {
                    let mut slices = [IoSlice::new(&[]); 16];
                    let count = several.len().min(slices.len());
                    for (slice, piece) in slices.iter_mut().zip(several) {
                        *slice = IoSlice::new(piece);
                    }
                    Pin::new(&mut *socket).poll_write_vectored(cx, &slices[..count])
                }
            };
            match result {
                Poll::Ready(Ok(n)) if n > 0 => {
                    self.advance(n);
                    if std::mem::take(&mut self.stalled) {
                        session.stalled(false);
                    }
                }
                Poll::Ready(_) => return Poll::Ready(Written::Broken),
                Poll::Pending => {
                    if !self.stalled {
                        self.stalled = true;
                        session.stalled(true);
                    }
                    return match session.poll_cut(cx) {
                        Poll::Ready(CloseReason::Stalled | CloseReason::Silent) => Poll::Ready(Written::Broken),
                        _ => Poll::Pending,
                    };
                }
            }
        }
        Poll::Ready(Written::All)
    }

    fn advance(&mut self, mut written: usize) {
        let mut whole = 0;
        for piece in &mut self.pieces {
            if written < piece.len() {
                piece.advance(written);
                break;
            }
            written -= piece.len();
            whole += 1;
        }
        self.pieces.drain(..whole);
        if self.pieces.is_empty() && self.pieces.capacity() > 4 {
            self.pieces = Vec::new();
        }
    }
}

/// Knows whether a socket may have something to read, so that a task that was woken to write does not ask it.
///
/// Asking costs more than all else that a listener does for an event but writing. So the socket wakes this instead of the task, and this
/// notes why.
pub(crate) struct Readable {
    state: Arc<ReadableState>,
    waker: Waker,
}

struct ReadableState {
    maybe: AtomicBool,
    task: Mutex<Option<Waker>>,
}

impl Wake for ReadableState {
    fn wake(self: Arc<Self>) {
        self.maybe.store(true, Ordering::SeqCst);
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(task) = task {
            task.wake();
        }
    }
}

impl Default for Readable {
    /// There may be something to read, until it has been tried.
    fn default() -> Self {
        let state = Arc::new(ReadableState {
            maybe: AtomicBool::new(true),
            task: Mutex::default(),
        });
        Self {
            waker: Waker::from(state.clone()),
            state,
        }
    }
}

impl Readable {
    /// `read` if there may be something to read. It is tried again until it has said that there is nothing.
    pub(crate) fn poll<T>(&self, cx: &mut Context<'_>, read: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        {
            let mut task = self.state.task.lock().unwrap_or_else(PoisonError::into_inner);
            if !task.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
                *task = Some(cx.waker().clone());
            }
        }
        // Before the try: what becomes readable after it must not be forgotten.
        if !self.state.maybe.swap(false, Ordering::SeqCst) {
            return Poll::Pending;
        }
        let result = read(&mut Context::from_waker(&self.waker));
        if result.is_ready() {
            self.state.maybe.store(true, Ordering::SeqCst);
        }
        result
    }
}

/// Reads and forgets. Ready: the other end is gone.
pub(crate) fn poll_gone<S: AsyncRead + Unpin>(socket: &mut S, cx: &mut Context<'_>) -> Poll<()> {
    let mut piece = [0u8; 256];
    loop {
        let mut read = ReadBuf::new(&mut piece);
        match Pin::new(&mut *socket).poll_read(cx, &mut read) {
            Poll::Ready(Ok(())) if !read.filled().is_empty() => {}
            Poll::Ready(_) => return Poll::Ready(()),
            Poll::Pending => return Poll::Pending,
        }
    }
}
