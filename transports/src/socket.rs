//! This module takes a connection back from hyper: the socket under it, and the bytes that are
//! still to write.
//!
//! hyper keeps about 12 KB per connection for reading requests that a stream never sends. The
//! routes first admit a listener over plain HTTP/1.1. Airwave's own accept loop then takes the
//! `TcpStream` back, and a bare task goes on. Behind any other server the same session is an
//! ordinary body.

use std::any::Any;
use std::cell::Cell;
use std::future::Future;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use airwave_core::Session;
use airwave_core::session::CloseReason;
use bytes::{Buf, Bytes};
use hyper::rt;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::heads::HeadGate;
pub use crate::heads::News;

/// This type shows hyper's use of a socket from outside.
#[derive(Debug, Default)]
pub struct Usage {
    blocked: AtomicBool,
    read: AtomicU64,
    written: AtomicU64,
    /// Holds the [`News`] for the gate, as a number; zero means none.
    news: AtomicU64,
}

impl Usage {
    /// Returns whether hyper holds bytes that the socket did not take. While it does, the caller
    /// must not take the socket back.
    pub fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed)
    }

    /// Notes what hyper has found out about a request. The server must call it before hyper reads
    /// on.
    pub fn tell(&self, news: News) {
        self.news.store(news.encode(), Ordering::Relaxed);
    }

    /// Returns the number of bytes that the socket gave.
    pub fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Returns the number of bytes that the socket took.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Adds bytes that the socket gave.
    pub fn count_read(&self, count: usize) {
        self.read.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// Adds bytes that the socket took.
    pub fn count_written(&self, count: usize) {
        self.written.fetch_add(count as u64, Ordering::Relaxed);
    }
}

/// The server reads the first bytes of a connection before hyper has the socket, to tell HTTP/2
/// from HTTP/1. hyper receives them before everything else.
#[derive(Debug, Default)]
pub struct FirstBytes {
    bytes: [u8; FirstBytes::ENOUGH],
    from: u8,
    to: u8,
}

impl FirstBytes {
    /// This number of bytes decides between HTTP/2 and HTTP/1.
    pub const ENOUGH: usize = 4;

    /// Returns the bytes that the server has read and not yet handed on.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[self.from.into()..self.to.into()]
    }

    /// Returns whether there are enough bytes to decide.
    pub fn are_enough(&self) -> bool {
        usize::from(self.to) == Self::ENOUGH
    }

    /// Reads more of the first bytes; waits for the socket, and does nothing else. Returns how many
    /// came; 0 means that the other end is done.
    ///
    /// # Errors
    /// Returns the errors of the socket.
    pub async fn read_from(&mut self, socket: &mut (impl AsyncRead + Unpin)) -> io::Result<usize> {
        let count = socket.read(&mut self.bytes[self.to.into()..]).await?;
        // The buffer takes at most `ENOUGH` bytes.
        self.to += count as u8;
        Ok(count)
    }
}

/// hyper uses this transport on Airwave's own accept loop. It is a type of its own, so that the
/// server can recognise an upgraded connection and take it back.
pub struct Io {
    stream: TcpStream,
    first: FirstBytes,
    /// Holds bytes from the socket that wait until hyper has understood what came before them.
    held: Bytes,
    gate: HeadGate,
    usage: Arc<Usage>,
}

impl Io {
    /// Puts a socket under hyper's HTTP/1, which reads `first` before anything else. `usage` then
    /// shows what hyper does with it.
    ///
    /// The gate hands on a line of a head that ends with a bare LF so that hyper refuses it. For
    /// that the server tells what hyper has found out about each request ([`Usage::tell`]).
    pub fn http1(stream: TcpStream, first: FirstBytes, usage: Arc<Usage>) -> Self {
        Self::new(stream, first, HeadGate::new(), usage)
    }

    /// Puts a socket under hyper's HTTP/2, which reads `first` before anything else.
    pub fn http2(stream: TcpStream, first: FirstBytes) -> Self {
        Self::new(stream, first, HeadGate::off(), Arc::default())
    }

    fn new(stream: TcpStream, first: FirstBytes, gate: HeadGate, usage: Arc<Usage>) -> Self {
        usage.count_read(first.as_slice().len());
        Self {
            stream,
            first,
            held: Bytes::new(),
            gate,
            usage,
        }
    }

    /// Returns the socket, and the bytes from it that hyper has not seen.
    pub fn into_parts(self) -> (TcpStream, Bytes) {
        let unseen = match self.first.as_slice() {
            [] => self.held,
            // The held bytes came from the first bytes, before the rest of them.
            first => [&self.held[..], first].concat().into(),
        };
        (self.stream, unseen)
    }

    fn note(&mut self, poll: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.usage.blocked.store(poll.is_pending(), Ordering::Relaxed);
        if let Poll::Ready(Ok(count)) = &poll {
            self.usage.count_written(*count);
        }
        poll
    }
}

/// This function goes on with a detached socket, in a task of its own.
pub type OnDetached = Box<dyn FnOnce(DetachedSocket) + Send>;

/// The server took this socket out of hyper, with all that belongs to it.
#[non_exhaustive]
pub struct DetachedSocket {
    /// Holds the socket.
    pub stream: TcpStream,
    /// Holds the bytes from the socket beyond the request.
    pub read: Bytes,
    /// Holds the response's head, which the task writes first.
    pub head: Bytes,
    /// Says whether the head announces a body in chunks (RFC 9112, section 7.1). Some clients read
    /// in lumps if a body ends with its connection instead.
    pub chunked: bool,
    /// The task holds this until it ends. The server counts the task and its place among the
    /// connections by it.
    pub keep: Box<dyn Any + Send>,
}

impl DetachedSocket {
    /// Creates a socket without read bytes beyond the request, whose body ends with the connection.
    /// `head` is the response's head; the task holds `keep` until it ends.
    pub fn new(stream: TcpStream, head: Bytes, keep: Box<dyn Any + Send>) -> Self {
        Self {
            stream,
            read: Bytes::new(),
            head,
            chunked: false,
            keep,
        }
    }

    /// Returns the same socket with the bytes from it beyond the request.
    pub fn with_read(mut self, read: Bytes) -> Self {
        self.read = read;
        self
    }

    /// Returns the same socket with [`DetachedSocket::chunked`] set to `chunked`.
    pub fn with_chunked(mut self, chunked: bool) -> Self {
        self.chunked = chunked;
        self
    }
}

/// Spawns a task that serves a detached socket. The task itself holds the future, and no box does.
/// A box would be one more place in memory to fetch for each listener and event.
pub(crate) fn spawn(serve: impl Future<Output = ()> + Send + Unpin + 'static, keep: Box<dyn Any + Send>) {
    tokio::spawn(Kept { serve, _keep: keep });
}

struct Kept<F> {
    serve: F,
    _keep: Box<dyn Any + Send>,
}

impl<F: Future<Output = ()> + Unpin> Future for Kept<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.serve).poll(cx)
    }
}

/// A response carries this value in its extensions. A server that knows the value takes the socket
/// out of hyper and lets this value go on with it. It then does not send the response's body. Any
/// other server sends the body.
#[derive(Clone)]
pub struct Detach(Arc<dyn Fn() -> Option<OnDetached> + Send + Sync>);

impl Detach {
    /// Creates the value from `take`, which gives the first caller the function that goes on with
    /// the socket.
    pub(crate) fn new(take: impl Fn() -> Option<OnDetached> + Send + Sync + 'static) -> Self {
        Self(Arc::new(take))
    }

    /// Takes the function that goes on with the socket, unless the body or an upgrade has it
    /// already.
    pub fn take(&self) -> Option<OnDetached> {
        (self.0)()
    }
}

impl rt::Read for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, mut buf: rt::ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        // hyper gives memory that is not initialised. Reading through a small buffer of our own
        // costs a copy of each request's head, and needs no `unsafe`. That buffer is not
        // initialised either: writing zeros over it at each read would cost more than the copy.
        let this = &mut *self;
        let mut piece = [const { MaybeUninit::<u8>::uninit() }; 4096];
        let want = buf.remaining().min(piece.len());
        let mut read = ReadBuf::uninit(&mut piece[..want]);
        let news = this.usage.news.load(Ordering::Relaxed);
        if let Some(news) = News::decode(news) {
            this.usage.news.store(0, Ordering::Relaxed);
            this.gate.receive(news);
        }
        if let Some(end) = this.gate.end_of_refused() {
            buf.put_slice(&end[..end.len().min(want)]);
            return Poll::Ready(Ok(()));
        }
        if !this.held.is_empty() {
            let count = this.held.len().min(want);
            read.put_slice(&this.held[..count]);
            let passed = this.gate.pass(read.filled_mut());
            buf.put_slice(&read.filled()[..passed]);
            this.held.advance(passed);
            return Poll::Ready(Ok(()));
        }
        let first = this.first.as_slice();
        let before = first.len().min(want);
        read.put_slice(&first[..before]);
        this.first.from += before as u8;
        // hyper receives the first bytes together with those that follow them. After a read of only
        // these few bytes hyper would ask for a buffer twice as large, and would parse the head
        // twice.
        if read.remaining() > 0 {
            let poll = Pin::new(&mut this.stream).poll_read(cx, &mut read);
            if before == 0 {
                ready!(poll)?;
            }
        }
        let count = read.filled().len();
        this.usage.count_read(count - before);
        let passed = this.gate.pass(read.filled_mut());
        buf.put_slice(&read.filled()[..passed]);
        if passed < count {
            this.held = Bytes::copy_from_slice(&read.filled()[passed..]);
        }
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

/// A session writes to a socket of this trait.
pub(crate) trait Socket: AsyncRead + AsyncWrite + Unpin {
    /// Writes what the socket takes at once, without asking the runtime first. Returns `None` if
    /// the socket cannot say, or takes nothing now.
    fn send_now(&self, _bytes: &[u8]) -> Option<io::Result<usize>> {
        None
    }

    /// Writes several pieces in the same way.
    fn send_all_now(&self, _pieces: &[IoSlice<'_>]) -> Option<io::Result<usize>> {
        None
    }
}

impl Socket for TcpStream {
    // The runtime keeps its state of a socket in one more place in memory. Nearly always that state
    // says that the socket is writable.
    #[cfg(target_os = "linux")]
    fn send_now(&self, bytes: &[u8]) -> Option<io::Result<usize>> {
        unless_blocked(socket2::SockRef::from(self).send_with_flags(bytes, libc::MSG_NOSIGNAL))
    }

    #[cfg(target_os = "linux")]
    fn send_all_now(&self, pieces: &[IoSlice<'_>]) -> Option<io::Result<usize>> {
        unless_blocked(socket2::SockRef::from(self).send_vectored_with_flags(pieces, libc::MSG_NOSIGNAL))
    }
}

#[cfg(target_os = "linux")]
fn unless_blocked(result: io::Result<usize>) -> Option<io::Result<usize>> {
    match result {
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => None,
        result => Some(result),
    }
}

impl<T> Socket for TokioIo<T> where Self: AsyncRead + AsyncWrite + Unpin {}

thread_local! {
    /// Holds room for the pieces of the connection that this thread polls. A connection that has
    /// nothing to write keeps no room.
    static ROOM: Cell<Vec<Bytes>> = const { Cell::new(Vec::new()) };
}

/// A thread keeps at most this much room for the next connection.
const ROOM_KEPT: usize = 64;

/// Holds the heads of the chunks that most events fit in, so that an event allocates nothing. A
/// head has three hex digits, of which the first two may be left out, and a line break.
static CHUNK_HEADS: [[u8; 5]; 4096] = {
    let digits = b"0123456789abcdef";
    let mut heads = [*b"000\r\n"; 4096];
    let mut length = 0;
    while length < heads.len() {
        heads[length][0] = digits[length >> 8];
        heads[length][1] = digits[length >> 4 & 15];
        heads[length][2] = digits[length & 15];
        length += 1;
    }
    heads
};

fn chunk_head(length: usize) -> Bytes {
    match CHUNK_HEADS.get(length) {
        Some(head) => Bytes::from_static(match length {
            0..=0xf => &head[2..],
            0x10..=0xff => &head[1..],
            _ => head,
        }),
        None => Bytes::from(format!("{length:x}\r\n")),
    }
}

/// This type holds the bytes for one socket: shared pieces, of which the first may be partly
/// written.
#[derive(Default)]
pub(crate) struct Outgoing {
    pub(crate) pieces: Vec<Bytes>,
    stalled: bool,
    /// Says whether the next write goes to the socket directly. Only the first write of a poll
    /// does. The runtime counts the other writes, so that a listener whose events come faster than
    /// it writes lets others run. A write that waits for the socket never goes directly: each event
    /// would try it once more in vain.
    direct: bool,
}

/// This type says how a write ended.
pub(crate) enum Written {
    All,
    /// The connection is broken and of no more use.
    Broken,
}

impl Outgoing {
    /// Takes room for pieces at the beginning of a poll. The caller gives it back at the end of the
    /// poll.
    pub(crate) fn take_room(&mut self) {
        self.direct = !self.stalled;
        if self.pieces.capacity() == 0 {
            self.pieces = ROOM.with(Cell::take);
        }
    }

    /// Gives the room back, unless pieces still need it.
    pub(crate) fn give_room_back(&mut self) {
        if self.pieces.is_empty() {
            let room = std::mem::take(&mut self.pieces);
            if room.capacity() <= ROOM_KEPT {
                // `LocalKey::set` costs more, because it also serves values that do not exist yet.
                ROOM.with(|kept| kept.set(room));
            }
        }
    }

    /// Makes one chunk of all pieces (RFC 9112, section 7.1). It does not copy them.
    pub(crate) fn make_chunk(&mut self) {
        let length = self.pieces.iter().map(Bytes::len).sum();
        // A chunk without bytes would end the body.
        if length == 0 {
            return;
        }
        // There is nearly always one event. It changes places with its head, so the list moves
        // nothing.
        match self.pieces.as_mut_slice() {
            [event] => {
                let event = std::mem::replace(event, chunk_head(length));
                self.pieces.push(event);
            }
            _ => self.pieces.insert(0, chunk_head(length)),
        }
        self.pieces.push(Bytes::from_static(b"\r\n"));
    }

    /// Ends a body that comes in chunks.
    pub(crate) fn push_last_chunk(&mut self) {
        self.pieces.push(Bytes::from_static(b"0\r\n\r\n"));
    }

    /// Writes all pieces. While the socket takes nothing, the session knows it, and may say that it
    /// has waited long enough.
    pub(crate) fn poll_write<S: Socket>(&mut self, socket: &mut S, session: &mut Session, cx: &mut Context<'_>) -> Poll<Written> {
        while !self.pieces.is_empty() {
            let result = match self.pieces.as_slice() {
                [only] => match std::mem::take(&mut self.direct).then(|| socket.send_now(only)).flatten() {
                    Some(result) => Poll::Ready(result),
                    None => Pin::new(&mut *socket).poll_write(cx, only),
                },
                // These three pieces are one event as a chunk.
                [head, event, end] => {
                    let slices = [IoSlice::new(head), IoSlice::new(event), IoSlice::new(end)];
                    let direct = std::mem::take(&mut self.direct);
                    match direct.then(|| socket.send_all_now(&slices)).flatten() {
                        Some(result) => Poll::Ready(result),
                        None => Pin::new(&mut *socket).poll_write_vectored(cx, &slices),
                    }
                }
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
        // The write nearly always takes all pieces.
        if whole == self.pieces.len() {
            self.pieces.clear();
        } else {
            self.pieces.drain(..whole);
        }
    }
}

/// Reads and drops bytes. Ready: the other end is gone, or has sent more than `room` bytes.
pub(crate) fn poll_gone_or_loud<S: AsyncRead + Unpin>(socket: &mut S, room: &mut u16, cx: &mut Context<'_>) -> Poll<()> {
    let mut piece = [0u8; 256];
    loop {
        let mut read = ReadBuf::new(&mut piece);
        match Pin::new(&mut *socket).poll_read(cx, &mut read) {
            Poll::Ready(Ok(())) if !read.filled().is_empty() => {
                // A `u16` holds far more than the length of a piece.
                match room.checked_sub(read.filled().len() as u16) {
                    Some(left) => *room = left,
                    None => return Poll::Ready(()),
                }
            }
            Poll::Ready(_) => return Poll::Ready(()),
            Poll::Pending => return Poll::Pending,
        }
    }
}

/// Reads and drops bytes. Ready: the other end is gone.
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

#[cfg(test)]
mod tests {
    use std::task::Wake;

    use tokio::io::AsyncWriteExt;

    use super::*;

    /// Counts how often a task is woken.
    #[derive(Default)]
    struct Wakes(AtomicU64);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_chunk_names_its_length_in_hexadecimal() {
        for length in (1..5000).chain([65_536, 1 << 20]) {
            assert_eq!(chunk_head(length), format!("{length:x}\r\n"));
        }
        let mut out = Outgoing::default();
        out.make_chunk();
        assert!(out.pieces.is_empty(), "nothing is no chunk: it would end the body");
        out.pieces.push(Bytes::from_static(b"data: 1\n\n"));
        out.make_chunk();
        assert_eq!(out.pieces.concat(), b"9\r\ndata: 1\n\n\r\n");
        out.pieces.clear();
        out.pieces
            .extend([Bytes::from_static(b"data: 1\n\n"), Bytes::from_static(b":\n\n")]);
        out.make_chunk();
        assert_eq!(out.pieces.concat(), b"c\r\ndata: 1\n\n:\n\n\r\n");
        out.push_last_chunk();
        assert!(out.pieces.concat().ends_with(b"\n\n\r\n0\r\n\r\n"));
    }

    /// A client that sends one byte and then waits costs nothing while it waits.
    #[test]
    fn the_first_bytes_are_waited_for_without_looking_again() {
        let wakes = Arc::new(Wakes::default());
        let waker = wakes.clone().into();
        let mut cx = Context::from_waker(&waker);
        let (mut client, mut server) = tokio::io::duplex(64);
        let say = |client: &mut tokio::io::DuplexStream, text: &str| {
            let write =
                std::pin::pin!(client.write_all(text.as_bytes())).poll(&mut Context::from_waker(std::task::Waker::noop()));
            assert!(write.is_ready());
        };
        let mut first = FirstBytes::default();
        say(&mut client, "P");
        assert!(matches!(
            std::pin::pin!(first.read_from(&mut server)).poll(&mut cx),
            Poll::Ready(Ok(1))
        ));
        let mut rest = Box::pin(first.read_from(&mut server));
        for _ in 0..3 {
            assert!(rest.as_mut().poll(&mut cx).is_pending());
        }
        assert_eq!(wakes.0.load(Ordering::Relaxed), 0);
        say(&mut client, "RI * HTTP/2.0");
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        assert!(matches!(rest.as_mut().poll(&mut cx), Poll::Ready(Ok(3))));
        drop(rest);
        assert_eq!((first.as_slice(), first.are_enough()), (&b"PRI "[..], true));
    }

    /// hyper would parse each head twice if it received the first bytes alone. It would also take a
    /// buffer twice as large for each connection.
    #[tokio::test]
    async fn the_first_bytes_come_together_with_what_follows_them() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let head = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
        client.write_all(&head[..4]).await.unwrap();
        let mut first = FirstBytes::default();
        while !first.are_enough() {
            first.read_from(&mut server).await.unwrap();
        }
        client.write_all(&head[4..]).await.unwrap();
        server.readable().await.unwrap();
        let usage = Arc::new(Usage::default());
        let mut io = TokioIo::new(Io::http1(server, first, usage.clone()));
        let mut read = [0; 256];
        let count = io.read(&mut read).await.unwrap();
        assert_eq!(&read[..count], head);
        assert_eq!(usage.read(), head.len() as u64);

        // The transport does not hold the first bytes back where nothing follows them.
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        client.write_all(&head[..4]).await.unwrap();
        let mut first = FirstBytes::default();
        while !first.are_enough() {
            first.read_from(&mut server).await.unwrap();
        }
        let mut io = TokioIo::new(Io::http2(server, first));
        assert_eq!(io.read(&mut read).await.unwrap(), 4);
        client.write_all(&head[4..]).await.unwrap();
        let count = io.read(&mut read).await.unwrap();
        assert_eq!(&read[..count], &head[4..]);
    }
}
