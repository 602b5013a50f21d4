//! Taking a connection back from hyper: the socket under it, and what is still to be written to it.
//!
//! hyper keeps about 12 KB per connection for reading requests that a stream never sends. After the
//! routes have admitted a listener over plain HTTP/1.1, our own accept loop takes the `TcpStream`
//! back and a bare task goes on. Behind any other server the same session is an ordinary body.

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

/// What hyper's use of a socket shows from outside.
#[derive(Debug, Default)]
pub struct Usage {
    blocked: AtomicBool,
    read: AtomicU64,
    written: AtomicU64,
    /// [`News`] for the gate, as a number; zero: none.
    news: AtomicU64,
}

impl Usage {
    /// Whether hyper holds bytes that the socket would not take. While it does, the socket must not
    /// be taken back.
    pub fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed)
    }

    /// Tells what hyper has found out about a request. To be called before hyper reads on.
    pub fn tell(&self, news: News) {
        self.news.store(news.encode(), Ordering::Relaxed);
    }

    /// How many bytes were read.
    pub fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// How many bytes were written.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Adds bytes that were read.
    pub fn count_read(&self, count: usize) {
        self.read.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// Adds bytes that were written.
    pub fn count_written(&self, count: usize) {
        self.written.fetch_add(count as u64, Ordering::Relaxed);
    }
}

/// The first bytes of a connection: read before hyper has the socket, to tell HTTP/2 from HTTP/1,
/// and handed to hyper before everything else.
#[derive(Debug, Default)]
pub struct FirstBytes {
    bytes: [u8; FirstBytes::ENOUGH],
    from: u8,
    to: u8,
}

impl FirstBytes {
    /// As many as decide.
    pub const ENOUGH: usize = 4;

    /// Those that were read and not yet handed on.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[self.from.into()..self.to.into()]
    }

    /// Whether there are as many as decide.
    pub fn are_enough(&self) -> bool {
        usize::from(self.to) == Self::ENOUGH
    }

    /// Reads more of them; waits for the socket, and does nothing else. Returns how many came; 0:
    /// the other end is done.
    ///
    /// # Errors
    /// Returns the errors of the socket.
    pub async fn read_from(&mut self, socket: &mut (impl AsyncRead + Unpin)) -> io::Result<usize> {
        let count = socket.read(&mut self.bytes[self.to.into()..]).await?;
        // At most `ENOUGH`.
        self.to += count as u8;
        Ok(count)
    }
}

/// The transport under hyper on our own accept loop. A name of its own, so that an upgraded
/// connection can be recognised and taken back.
pub struct Io {
    stream: TcpStream,
    first: FirstBytes,
    /// What was read and has to wait until hyper has understood what came before it.
    held: Bytes,
    gate: HeadGate,
    usage: Arc<Usage>,
}

impl Io {
    /// Puts a socket under hyper's HTTP/1, which reads `first` before anything else. `usage` then
    /// tells what hyper does with it.
    ///
    /// A line of a head that ends with a bare LF is handed on so that hyper refuses it. For that
    /// the server tells what hyper has found out about each request ([`Usage::tell`]).
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

    /// The socket, and what was read from it and hyper has not seen.
    pub fn into_parts(self) -> (TcpStream, Bytes) {
        let unseen = match self.first.as_slice() {
            [] => self.held,
            // What is held was first itself, and passed before the rest of it.
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

/// Goes on with a detached socket, in a task of its own.
pub type OnDetached = Box<dyn FnOnce(DetachedSocket) + Send>;

/// A socket that was taken out of hyper, and all that belongs to it.
#[non_exhaustive]
pub struct DetachedSocket {
    /// The socket.
    pub stream: TcpStream,
    /// What was read from it beyond the request.
    pub read: Bytes,
    /// The response's head, which is written first.
    pub head: Bytes,
    /// Whether the head says that the body comes in chunks (RFC 9112, section 7.1). A body that
    /// ends with its connection is read in lumps by some clients.
    pub chunked: bool,
    /// The task holds this until it ends: by it the server counts the task, and its place among the
    /// connections.
    pub keep: Box<dyn Any + Send>,
}

impl DetachedSocket {
    /// Returns a socket of which nothing was read beyond the request, and whose body ends with the
    /// connection. `head` is the response's head; the task holds `keep` until it ends.
    pub fn new(stream: TcpStream, head: Bytes, keep: Box<dyn Any + Send>) -> Self {
        Self {
            stream,
            read: Bytes::new(),
            head,
            chunked: false,
            keep,
        }
    }

    /// Returns the same socket with what was read from it beyond the request.
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

/// Spawns a task that serves a detached socket. The future stands in the task itself and not in a
/// box: a box would be one more place in memory to fetch for each listener and event.
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

/// Travels in a response's extensions. A server that knows it takes the socket out of hyper and
/// lets this go on with it, instead of sending the response's body. Any other server sends the
/// body.
#[derive(Clone)]
pub struct Detach(Arc<dyn Fn() -> Option<OnDetached> + Send + Sync>);

impl Detach {
    /// `take` gives what goes on with the socket to the first caller.
    pub(crate) fn new(take: impl Fn() -> Option<OnDetached> + Send + Sync + 'static) -> Self {
        Self(Arc::new(take))
    }

    /// Takes what goes on with the socket, unless the body or an upgrade has it already.
    pub fn take(&self) -> Option<OnDetached> {
        (self.0)()
    }
}

impl rt::Read for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, mut buf: rt::ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        // hyper hands out memory that is not initialised. Reading by way of a small buffer of our
        // own costs a copy of each request's head, and no `unsafe`. That buffer is not initialised
        // either: to write zeros over it at each read would cost more than the copy.
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
        // hyper gets the first bytes together with what follows them. After a read that gave only
        // these few it would ask for a buffer twice as large, and would parse the head twice.
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

/// What a session is written to.
pub(crate) trait Socket: AsyncRead + AsyncWrite + Unpin {
    /// Writes what the socket takes at once, without asking the runtime whether it would. `None`:
    /// it cannot be told, or it takes nothing now.
    fn send_now(&self, _bytes: &[u8]) -> Option<io::Result<usize>> {
        None
    }

    /// The same with several pieces.
    fn send_all_now(&self, _pieces: &[IoSlice<'_>]) -> Option<io::Result<usize>> {
        None
    }
}

impl Socket for TcpStream {
    // What the runtime knows of a socket stands in one more place in memory, and nearly always it
    // says that the socket may be written.
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
    /// Room for the pieces of the connection that is polled on this thread. A connection without
    /// anything to write keeps none.
    static ROOM: Cell<Vec<Bytes>> = const { Cell::new(Vec::new()) };
}

/// So much room is kept for the next.
const ROOM_KEPT: usize = 64;

/// The heads of the chunks that most events fit in, so that an event allocates nothing: three hex
/// digits, of which the first may be left out, and a line break.
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

/// Bytes on their way to one socket: shared pieces, and how much of the first is written.
#[derive(Default)]
pub(crate) struct Outgoing {
    pub(crate) pieces: Vec<Bytes>,
    stalled: bool,
    /// The next write goes to the socket directly. Only the first of a poll does: the others count
    /// as the runtime counts, so that a listener whose events come faster than it writes gives way
    /// to others. And none does that waits for the socket: each event would try it once more in
    /// vain.
    direct: bool,
}

/// What became of a write.
pub(crate) enum Written {
    All,
    /// The connection is of no more use.
    Broken,
}

impl Outgoing {
    /// At the beginning of a poll: there is room for pieces, which is to be given back at its end.
    pub(crate) fn take_room(&mut self) {
        self.direct = !self.stalled;
        if self.pieces.capacity() == 0 {
            self.pieces = ROOM.with(Cell::take);
        }
    }

    /// Gives the room back, unless it is needed.
    pub(crate) fn give_room_back(&mut self) {
        if self.pieces.is_empty() {
            let room = std::mem::take(&mut self.pieces);
            if room.capacity() <= ROOM_KEPT {
                // `LocalKey::set` costs more: it is made for values that are not there yet.
                ROOM.with(|kept| kept.set(room));
            }
        }
    }

    /// Makes one chunk of all pieces (RFC 9112, section 7.1). They are not copied.
    pub(crate) fn make_chunk(&mut self) {
        let length = self.pieces.iter().map(Bytes::len).sum();
        // A chunk without bytes would end the body.
        if length == 0 {
            return;
        }
        // Nearly always one event, which changes places with its head: nothing is moved.
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

    /// Writes all pieces. While the socket takes nothing, the session knows, and may say that it
    /// has waited long enough.
    pub(crate) fn poll_write<S: Socket>(&mut self, socket: &mut S, session: &mut Session, cx: &mut Context<'_>) -> Poll<Written> {
        while !self.pieces.is_empty() {
            let result = match self.pieces.as_slice() {
                [only] => match std::mem::take(&mut self.direct).then(|| socket.send_now(only)).flatten() {
                    Some(result) => Poll::Ready(result),
                    None => Pin::new(&mut *socket).poll_write(cx, only),
                },
                // One event as a chunk.
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
        // Nearly always all of them.
        if whole == self.pieces.len() {
            self.pieces.clear();
        } else {
            self.pieces.drain(..whole);
        }
    }
}

/// Reads and forgets. Ready: the other end is gone, or has sent more than `room` bytes.
pub(crate) fn poll_gone_or_loud<S: AsyncRead + Unpin>(socket: &mut S, room: &mut u16, cx: &mut Context<'_>) -> Poll<()> {
    let mut piece = [0u8; 256];
    loop {
        let mut read = ReadBuf::new(&mut piece);
        match Pin::new(&mut *socket).poll_read(cx, &mut read) {
            Poll::Ready(Ok(())) if !read.filled().is_empty() => {
                // A piece is far smaller than what a u16 holds.
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

    /// A client that sends one byte and waits costs nothing while it waits.
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

    /// With the first bytes alone hyper would parse each head twice, and take a buffer twice as
    /// large for each connection.
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

        // Where nothing follows, they are not held back.
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
