//! The load generator: thousands of listeners in one thread over epoll, each with its own
//! [`Checker`].
//!
//! It must be cheap, for it shares the machine with the server it measures: one `read` per
//! readiness into one shared buffer, no allocation per event, nothing kept per connection but what
//! a checker and a torn block need. The thread that owns a [`Load`] drives it: it connects, then
//! pumps until its publishers are done. Publishing is `publish.rs`, on threads of its own.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::fd::OwnedFd;
use rustix::time::Timespec;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::check::{Arrival, Checker, Histogram};
use crate::wire::{Block, Dechunker, Frame, Head, Stamp, Text, number, sse_blocks};

/// Which of the two a listener uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Transport {
    /// Server-sent events.
    Sse,
    /// WebSocket.
    Websocket,
}

impl std::fmt::Display for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Transport::Sse => "SSE",
            Transport::Websocket => "WebSocket",
        })
    }
}

/// Nanoseconds of this process's own clock, the same for publishers and listeners.
pub fn now() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    // 2^64 ns are 584 years.
    START.elapsed().as_nanos() as u64
}

/// The name of the channel with this index.
pub fn channel_name(index: u32) -> String {
    format!("bench/{index}")
}

/// How fast connections are opened.
#[derive(Debug, Clone, Copy)]
pub enum Pace {
    /// At most so many that are not confirmed yet.
    AtOnce(usize),
    /// Evenly over so long, whether the earlier ones are confirmed or not: a reconnect storm.
    Within(Duration),
}

/// What all listeners have seen together since the start (`latency` and `catch_up`: since they were
/// last taken).
#[derive(Default)]
pub struct Totals {
    /// Connections opened.
    pub opened: usize,
    /// Subscriptions confirmed.
    pub confirmed: usize,
    /// Different events that arrived, summed over the listeners.
    pub delivered: u64,
    /// Events that a listener had already.
    pub duplicates: u64,
    /// Events that came after a later one.
    pub late: u64,
    /// Events of another channel than the listener's.
    pub foreign: u64,
    /// Announced gaps.
    pub gaps: u64,
    /// Listeners that were told `resumed: true`.
    pub caught_up: usize,
    /// Anything else that must not happen in a run, and how often it did.
    pub problems: BTreeMap<String, u64>,
    /// Publish to receipt.
    pub latency: Histogram,
    /// Beginning to connect, to having everything up to the target of [`Load::reconnect`].
    pub catch_up: Histogram,
}

impl Totals {
    fn problem(&mut self, what: impl Into<String>) {
        *self.problems.entry(what.into()).or_default() += 1;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    Connecting,
    /// The request is out, its answer's head not complete.
    Head,
    Streaming,
}

struct LoadListener {
    channel: u32,
    checker: Checker,
    /// Position of the last event or confirmation, to resume from.
    cursor: u64,
    resume: bool,
    state: State,
    confirmed: bool,
    caught_up: bool,
    /// When its connect began.
    began: u64,
    socket: Option<TcpStream>,
    /// Distinguishes this connection from the listener's former ones in readiness that was reported
    /// before they closed.
    generation: u32,
    chunks: Option<Dechunker>,
    /// Bytes of a block or frame that is not complete.
    rest: Vec<u8>,
}

/// Many listeners and their epoll.
pub struct Load {
    address: SocketAddr,
    transport: Transport,
    poll: OwnedFd,
    ready: Vec<epoll::Event>,
    buffer: Vec<u8>,
    body: Vec<u8>,
    listeners: Vec<LoadListener>,
    /// Arrival number that counts as having caught up; 0: none.
    target: u64,
    /// What has been seen so far.
    pub totals: Totals,
}

/// Any 16 bytes in base64; it keys nothing.
const WEBSOCKET_KEY: &str = "YWlyd2F2ZS1iZW5jaC0wMA==";

impl Load {
    /// For listeners of the server at `address`; opens nothing yet.
    pub fn new(address: SocketAddr, transport: Transport) -> Result<Self, String> {
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|error| format!("cannot create an epoll: {error}"))?;
        Ok(Self {
            address,
            transport,
            poll,
            ready: Vec::with_capacity(1024),
            buffer: vec![0; 64 * 1024],
            body: Vec::new(),
            listeners: Vec::new(),
            target: 0,
            totals: Totals::default(),
        })
    }

    /// Connects `per_channel` more listeners to each of the channels and returns when all are
    /// confirmed.
    pub fn connect(&mut self, channels: std::ops::Range<u32>, per_channel: usize, give_up: Duration) -> Result<(), String> {
        let first = self.listeners.len();
        // Channel by channel in the inner loop, so that a channel's listeners are not neighbours in
        // the server's memory.
        for _ in 0..per_channel {
            for channel in channels.clone() {
                self.listeners.push(LoadListener {
                    channel,
                    checker: Checker::starting_at(1),
                    cursor: 0,
                    resume: false,
                    state: State::Closed,
                    confirmed: false,
                    caught_up: false,
                    began: 0,
                    socket: None,
                    generation: 0,
                    chunks: None,
                    rest: Vec::new(),
                });
            }
        }
        self.open_all(first, Pace::AtOnce(256), give_up)
    }

    /// Closes every connection from this side, without a word: what a network that goes away looks
    /// like to the listeners.
    pub fn disconnect(&mut self) {
        for listener in &mut self.listeners {
            listener.close();
        }
    }

    /// Connects all listeners again, each with its cursor, and returns when all are confirmed. A
    /// listener has caught up when it has everything up to sequence number `target`.
    pub fn reconnect(&mut self, target: u64, pace: Pace, give_up: Duration) -> Result<(), String> {
        self.target = target;
        self.totals.confirmed = 0;
        self.totals.opened = 0;
        self.totals.caught_up = 0;
        self.totals.catch_up = Histogram::default();
        for listener in &mut self.listeners {
            listener.resume = true;
            listener.caught_up = false;
        }
        self.open_all(0, pace, give_up)
    }

    fn open_all(&mut self, first: usize, pace: Pace, give_up: Duration) -> Result<(), String> {
        let begin = Instant::now();
        let count = self.listeners.len() - first;
        let (opened_before, confirmed_before) = (self.totals.opened, self.totals.confirmed);
        loop {
            let opened = self.totals.opened - opened_before;
            let confirmed = self.totals.confirmed - confirmed_before;
            if confirmed == count {
                return Ok(());
            }
            if let Some((problem, times)) = self.totals.problems.first_key_value() {
                return Err(format!(
                    "{confirmed} of {count} listeners connected, then: {problem} ({times} x)"
                ));
            }
            if begin.elapsed() > give_up {
                return Err(format!(
                    "only {confirmed} of {count} listeners were confirmed within {} s",
                    give_up.as_secs()
                ));
            }
            let due = match pace {
                Pace::AtOnce(limit) => (confirmed + limit).min(count),
                Pace::Within(window) => {
                    let share = begin.elapsed().as_secs_f64() / window.as_secs_f64().max(1e-9);
                    ((share * count as f64) as usize + 1).min(count)
                }
            };
            for index in opened..due {
                self.open(first + index)?;
            }
            self.poll(Duration::from_millis(if due < count { 1 } else { 20 }))?;
        }
    }

    fn open(&mut self, index: usize) -> Result<(), String> {
        // A source address has some 28,000 ports, and a closed connection keeps its own for a
        // minute: take another every 2,000.
        static OPENED: AtomicU32 = AtomicU32::new(0);
        let block = OPENED.fetch_add(1, Ordering::Relaxed) / 2_000;
        let source = Ipv4Addr::new(127, 0, 1 + (block / 250 % 250) as u8, 2 + (block % 250) as u8);
        let connect = || -> std::io::Result<TcpStream> {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM.nonblocking().cloexec(), None)?;
            socket.bind(&SocketAddr::from((source, 0)).into())?;
            match socket.connect(&self.address.into()) {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
                Err(error) => return Err(error),
            }
            Ok(socket.into())
        };
        let began = now();
        let socket = connect().map_err(|error| format!("cannot connect from {source} to {}: {error}", self.address))?;
        let listener = &mut self.listeners[index];
        listener.generation = listener.generation.wrapping_add(1);
        let token = u64::from(listener.generation) << 32 | index as u64;
        epoll::add(&self.poll, &socket, epoll::EventData::new_u64(token), epoll::EventFlags::OUT)
            .map_err(|error| format!("cannot watch a connection: {error}"))?;
        listener.socket = Some(socket);
        listener.state = State::Connecting;
        listener.began = began;
        self.totals.opened += 1;
        Ok(())
    }

    /// Reads what arrives until `done`, until `limit` has passed or until there is a problem; tells
    /// whether it was `done`.
    pub fn pump(&mut self, limit: Duration, mut done: impl FnMut(&Totals) -> bool) -> Result<bool, String> {
        let end = Instant::now() + limit;
        loop {
            if done(&self.totals) {
                return Ok(true);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || !self.totals.problems.is_empty() {
                return Ok(false);
            }
            self.poll(left.min(Duration::from_millis(5)))?;
        }
    }

    /// Events that are missing, summed over the listeners, when `published` events are out on each
    /// channel.
    pub fn lost(&self, published: impl Fn(u32) -> u64) -> u64 {
        self.listeners
            .iter()
            .map(|listener| listener.checker.lost(published(listener.channel)))
            .sum()
    }

    /// How many listeners there are, connected or not.
    pub fn len(&self) -> usize {
        self.listeners.len()
    }

    fn poll(&mut self, wait: Duration) -> Result<(), String> {
        let timeout = Timespec {
            tv_sec: wait.as_secs() as i64,
            tv_nsec: i64::from(wait.subsec_nanos()),
        };
        self.ready.clear();
        match epoll::wait(&self.poll, rustix::buffer::spare_capacity(&mut self.ready), Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(format!("cannot wait for connections: {error}")),
        }
        for at in 0..self.ready.len() {
            let token = self.ready[at].data.u64();
            let (index, generation) = ((token & 0xffff_ffff) as usize, (token >> 32) as u32);
            let listener = &mut self.listeners[index];
            if listener.generation != generation {
                continue;
            }
            let step = match listener.state {
                State::Closed => Ok(()),
                State::Connecting => listener.request(self.address, self.transport, token, &self.poll),
                State::Head | State::Streaming => listener.receive(
                    self.transport,
                    &mut self.buffer,
                    &mut self.body,
                    self.target,
                    &mut self.totals,
                ),
            };
            if let Err(problem) = step {
                listener.close();
                self.totals.problem(problem);
            }
        }
        Ok(())
    }
}

impl LoadListener {
    fn close(&mut self) {
        self.socket = None;
        self.state = State::Closed;
        self.confirmed = false;
        self.chunks = None;
        self.rest = Vec::new();
    }

    /// The connection is there: asks for the channel.
    fn request(&mut self, address: SocketAddr, transport: Transport, token: u64, poll: &OwnedFd) -> Result<(), String> {
        let Some(mut socket) = self.socket.as_ref() else {
            return Ok(());
        };
        if let Some(error) = socket.take_error().unwrap_or_else(Some) {
            return Err(format!("cannot connect: {error}"));
        }
        let path = format!("/channels/{}", channel_name(self.channel));
        let cursor = self.cursor;
        let request = match (transport, self.resume) {
            (Transport::Sse, resume) => {
                let resume = if resume {
                    format!("Last-Event-ID: {cursor}\r\n")
                } else {
                    String::new()
                };
                format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nAccept: text/event-stream\r\n{resume}\r\n")
            }
            (Transport::Websocket, resume) => {
                let resume = if resume { format!("?after={cursor}") } else { String::new() };
                format!(
                    "GET {path}{resume} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                     Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {WEBSOCKET_KEY}\r\n\r\n"
                )
            }
        };
        // A fresh socket's buffer takes a few hundred bytes in one go.
        match socket.write(request.as_bytes()) {
            Ok(written) if written == request.len() => {}
            Ok(_) => return Err("a request did not fit into a fresh socket's buffer".into()),
            Err(error) => return Err(format!("cannot send the request: {error}")),
        }
        epoll::modify(poll, socket, epoll::EventData::new_u64(token), epoll::EventFlags::IN)
            .map_err(|error| format!("cannot watch a connection: {error}"))?;
        self.state = State::Head;
        Ok(())
    }

    fn receive(
        &mut self,
        transport: Transport,
        buffer: &mut [u8],
        body: &mut Vec<u8>,
        target: u64,
        totals: &mut Totals,
    ) -> Result<(), String> {
        let Some(mut socket) = self.socket.as_ref() else {
            return Ok(());
        };
        let count = match socket.read(buffer) {
            Ok(0) => return Err("the server closed a connection".into()),
            Ok(count) => count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return Ok(()),
            Err(error) => return Err(format!("cannot read: {error}")),
        };
        let arrived = now();
        let fresh = &buffer[..count];
        if self.state == State::Head {
            self.rest.extend_from_slice(fresh);
            let Some(head) = Head::parse(&self.rest)? else { return Ok(()) };
            self.check_head(&head, transport)?;
            self.state = State::Streaming;
            let after = self.rest.split_off(head.length);
            self.rest = Vec::new();
            return self.stream(transport, &after, body, arrived, target, totals);
        }
        self.stream(transport, fresh, body, arrived, target, totals)
    }

    fn check_head(&mut self, head: &Head, transport: Transport) -> Result<(), String> {
        let expected = match transport {
            Transport::Sse => 200,
            Transport::Websocket => 101,
        };
        if head.status != expected {
            let answer = String::from_utf8_lossy(&self.rest);
            return Err(format!(
                "status {} instead of {expected}: {}",
                head.status,
                answer.chars().take(400).collect::<String>()
            ));
        }
        if transport == Transport::Websocket
            && head.accept.as_deref() != Some(derive_accept_key(WEBSOCKET_KEY.as_bytes()).as_str())
        {
            return Err("the handshake's Sec-WebSocket-Accept is wrong".into());
        }
        self.chunks = head.chunked.then(Dechunker::default);
        Ok(())
    }

    /// Takes `fresh` bytes of the stream apart; what is not complete waits in `rest`.
    fn stream(
        &mut self,
        transport: Transport,
        fresh: &[u8],
        body: &mut Vec<u8>,
        arrived: u64,
        target: u64,
        totals: &mut Totals,
    ) -> Result<(), String> {
        let had_rest = !self.rest.is_empty();
        let mut rest = std::mem::take(&mut self.rest);
        body.clear();
        let bytes: &[u8] = match &mut self.chunks {
            Some(chunks) if had_rest => {
                chunks.decode(fresh, &mut rest)?;
                &rest
            }
            Some(chunks) => {
                chunks.decode(fresh, body)?;
                body
            }
            None if had_rest => {
                rest.extend_from_slice(fresh);
                &rest
            }
            None => fresh,
        };
        let used = match transport {
            Transport::Sse => {
                let mut outcome = Ok(());
                let used = sse_blocks(bytes, |block| {
                    if outcome.is_ok() {
                        outcome = self.block(&block, arrived, target, totals);
                    }
                });
                outcome?;
                if self.chunks == Some(Dechunker::Done) {
                    return Err("the server ended a stream".into());
                }
                used
            }
            Transport::Websocket => {
                let mut used = 0;
                while let Some(frame) = Frame::parse(&bytes[used..])? {
                    used += frame.length;
                    self.frame(&frame, arrived, target, totals)?;
                }
                used
            }
        };
        if used < bytes.len() {
            self.rest = bytes[used..].to_vec();
        }
        Ok(())
    }

    fn block(&mut self, block: &Block<'_>, arrived: u64, target: u64, totals: &mut Totals) -> Result<(), String> {
        match block.event.strip_prefix(b"airwave.") {
            None => self.event(number(block.id), block.data, arrived, target, totals),
            Some(kind) => {
                let kind = String::from_utf8_lossy(kind);
                self.notice(&kind, number(block.id), block.data, totals)
            }
        }
    }

    fn frame(&mut self, frame: &Frame<'_>, arrived: u64, target: u64, totals: &mut Totals) -> Result<(), String> {
        match frame.opcode {
            1 => match Text::parse(frame.payload)? {
                Text::Event { position, data } => self.event(position, data, arrived, target, totals),
                Text::Notice { kind, cursor } => self.notice(kind, cursor, frame.payload, totals),
            },
            8 => {
                let code = frame
                    .payload
                    .get(..2)
                    .map_or(1005, |code| u16::from_be_bytes([code[0], code[1]]));
                let reason = String::from_utf8_lossy(frame.payload.get(2..).unwrap_or_default());
                Err(format!("the server closed a WebSocket with {code} {reason}"))
            }
            9 => {
                let mut pong = vec![0x8a, 0x80 | frame.payload.len() as u8, 0, 0, 0, 0]; // masked with zeros
                pong.extend_from_slice(frame.payload);
                let Some(mut socket) = self.socket.as_ref() else {
                    return Ok(());
                };
                socket
                    .write_all(&pong)
                    .map_err(|error| format!("cannot answer a ping: {error}"))
            }
            10 => Ok(()),
            other => Err(format!("a frame with opcode {other}")),
        }
    }

    fn event(&mut self, position: u64, data: &[u8], arrived: u64, target: u64, totals: &mut Totals) -> Result<(), String> {
        let stamp = Stamp::parse(data).ok_or_else(|| {
            format!(
                "an event that is none of ours: {}",
                String::from_utf8_lossy(&data[..data.len().min(200)])
            )
        })?;
        if stamp.c != self.channel {
            totals.foreign += 1;
            return Ok(());
        }
        match self.checker.see(stamp.n) {
            Arrival::Duplicate => {
                totals.duplicates += 1;
                return Ok(());
            }
            Arrival::Late => totals.late += 1,
            Arrival::Next | Arrival::Ahead => {
                if position <= self.cursor {
                    return Err(format!(
                        "event {} has position {position} after position {}",
                        stamp.n, self.cursor
                    ));
                }
                self.cursor = position;
            }
        }
        totals.delivered += 1;
        totals.latency.record(arrived.saturating_sub(stamp.t));
        if target > 0 && !self.caught_up && self.checker.has_all_up_to(target) {
            self.caught_up = true;
            totals.caught_up += 1;
            totals.catch_up.record(arrived.saturating_sub(self.began));
        }
        Ok(())
    }

    fn notice(&mut self, kind: &str, cursor: u64, data: &[u8], totals: &mut Totals) -> Result<(), String> {
        match kind {
            "subscribed" => {
                if self.resume && memchr::memmem::find(data, b"\"resumed\":true").is_none() {
                    totals.problem("a resumed listener was told that it is not");
                }
                if self.cursor == 0 {
                    self.cursor = cursor;
                }
                if !std::mem::replace(&mut self.confirmed, true) {
                    totals.confirmed += 1;
                }
                Ok(())
            }
            "gap" => {
                totals.gaps += 1;
                Ok(())
            }
            "heartbeat" => Ok(()),
            _ => Err(format!(
                "notice {kind:?}: {}",
                String::from_utf8_lossy(&data[..data.len().min(300)])
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::net::TcpListener;
    use std::thread::JoinHandle;

    /// How a scripted server writes.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Style {
        Sse,
        Chunked,
        Websocket,
    }

    const STYLES: [Style; 3] = [Style::Sse, Style::Chunked, Style::Websocket];

    impl Style {
        fn transport(self) -> Transport {
            if self == Style::Websocket {
                Transport::Websocket
            } else {
                Transport::Sse
            }
        }

        fn head(self) -> String {
            let accept = derive_accept_key(WEBSOCKET_KEY.as_bytes());
            match self {
                Style::Sse => "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n".into(),
                Style::Chunked => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".into(),
                Style::Websocket => format!("HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"),
            }
        }

        fn named(self, event: &str, id: u64, data: &str) -> Vec<u8> {
            let text = match self {
                Style::Websocket => match event.strip_prefix("airwave.") {
                    Some(kind) => format!("{{\"type\":\"{kind}\",\"cursor\":\"{id}\",{}", &data[1..]),
                    None => format!("{{\"channel\":\"bench/0\",\"id\":\"{id}\",\"event\":\"{event}\",\"data\":{data}}}"),
                },
                _ => format!("id: {id}\nevent: {event}\ndata: {data}\n\n"),
            };
            match self {
                Style::Sse => text.into_bytes(),
                Style::Chunked => format!("{:x}\r\n{text}\r\n", text.len()).into_bytes(),
                Style::Websocket => {
                    let mut frame = vec![0x81, 126];
                    frame.extend((text.len() as u16).to_be_bytes());
                    frame.extend(text.as_bytes());
                    frame
                }
            }
        }
    }

    /// Answers one listener with events of these sequence numbers, in this order, a byte-wise torn
    /// write at a time; then with `tail`. Returns what the listener said after its request, once it
    /// has closed.
    fn server(style: Style, numbers: &[u64], channel: u32, tail: Vec<u8>) -> (SocketAddr, JoinHandle<Vec<u8>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut stream = style.head().into_bytes();
        stream.extend(style.named("airwave.subscribed", 5, "{\"resumed\":false}"));
        for (at, n) in numbers.iter().enumerate() {
            let stamp = Stamp {
                n: *n,
                c: channel,
                t: now(),
            };
            stream.extend(style.named("tick", 10 + at as u64, &stamp.to_json(100)));
        }
        stream.extend(tail);
        let thread = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            socket.set_nodelay(true).unwrap();
            let mut request = vec![0; 4096];
            let mut length = 0;
            while memchr::memmem::find(&request[..length], b"\r\n\r\n").is_none() {
                length += socket.read(&mut request[length..]).unwrap();
            }
            for piece in stream.chunks(37) {
                socket.write_all(piece).unwrap();
            }
            let mut said = Vec::new();
            let _ = socket.read_to_end(&mut said);
            said
        });
        (address, thread)
    }

    /// Lets one listener hear the script until `done` or a problem.
    fn hear(style: Style, address: SocketAddr, done: impl FnMut(&Totals) -> bool) -> Load {
        let mut load = Load::new(address, style.transport()).unwrap();
        load.connect(0..1, 1, Duration::from_secs(10)).unwrap();
        load.pump(Duration::from_secs(10), done).unwrap();
        load
    }

    #[test]
    fn a_correct_stream_is_clean_in_every_style() {
        for style in STYLES {
            let (address, thread) = server(style, &[1, 2, 3], 0, Vec::new());
            let mut load = hear(style, address, |totals| totals.delivered == 3);
            let totals = &load.totals;
            assert_eq!(
                (totals.delivered, totals.duplicates, totals.late, totals.foreign),
                (3, 0, 0, 0),
                "{style:?}"
            );
            assert_eq!((load.lost(|_| 3), &totals.problems), (0, &BTreeMap::new()), "{style:?}");
            assert_eq!(load.listeners[0].cursor, 12, "{style:?}");
            assert!(load.totals.latency.percentile(1.0).is_some(), "{style:?}");
            load.disconnect();
            thread.join().unwrap();
        }
    }

    #[test]
    fn loss_duplicates_and_disorder_are_each_reported() {
        for style in STYLES {
            let (address, _thread) = server(style, &[1, 2, 2, 5, 4], 0, Vec::new());
            let load = hear(style, address, |totals| totals.late == 1);
            let totals = &load.totals;
            assert_eq!(
                (totals.delivered, totals.duplicates, totals.late),
                (4, 1, 1),
                "{style:?}: {:?}",
                totals.problems
            );
            assert_eq!(load.lost(|_| 7), 3, "3, 6 and 7 are missing: {style:?}");
        }
    }

    #[test]
    fn an_event_of_another_channel_is_reported() {
        let (address, _thread) = server(Style::Sse, &[1], 9, Vec::new());
        let load = hear(Style::Sse, address, |totals| totals.foreign == 1);
        assert_eq!((load.totals.foreign, load.totals.delivered), (1, 0));
    }

    #[test]
    fn announced_gaps_and_errors_are_reported() {
        for style in STYLES {
            let gap = style.named("airwave.gap", 99, "{\"reason\":\"too-slow\"}");
            let (address, _thread) = server(style, &[1], 0, gap);
            let load = hear(style, address, |totals| totals.gaps == 1);
            assert_eq!(load.totals.gaps, 1, "{style:?}");

            let error = style.named("airwave.error", 99, "{\"code\":\"too-many\"}");
            let (address, _thread) = server(style, &[1], 0, error);
            let load = hear(style, address, |_| false);
            let problem = load.totals.problems.keys().next().unwrap();
            assert!(problem.contains("too-many"), "{style:?}: {problem}");
        }
    }

    #[test]
    fn a_position_that_goes_back_is_a_problem() {
        let mut back = Style::Sse.named("tick", 3, &Stamp { n: 2, c: 0, t: 0 }.to_json(64));
        back.extend(Style::Sse.named("tick", 30, &Stamp { n: 3, c: 0, t: 0 }.to_json(64)));
        let (address, _thread) = server(Style::Sse, &[1], 0, back);
        let load = hear(Style::Sse, address, |_| false);
        assert_eq!(
            load.totals.problems.keys().next().unwrap(),
            "event 2 has position 3 after position 10"
        );
    }

    #[test]
    fn pings_are_answered_and_a_close_tells_its_code() {
        let mut tail = vec![0x89, 2, b'h', b'i'];
        tail.extend([0x88, 6]);
        tail.extend(4408_u16.to_be_bytes());
        tail.extend(b"slow");
        let (address, thread) = server(Style::Websocket, &[1], 0, tail);
        let load = hear(Style::Websocket, address, |_| false);
        assert_eq!(
            load.totals.problems.keys().next().unwrap(),
            "the server closed a WebSocket with 4408 slow"
        );
        drop(load);
        assert_eq!(thread.join().unwrap(), [0x8a, 0x82, 0, 0, 0, 0, b'h', b'i']);
    }

    #[test]
    fn a_refusal_is_told_with_the_servers_own_words() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let _thread = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let _ = socket.read(&mut [0; 1024]);
            let _ = socket.write_all(b"HTTP/1.1 406 Not Acceptable\r\nContent-Length: 14\r\n\r\nuse websocket!");
            let _ = socket.read(&mut [0; 1024]);
        });
        let mut load = Load::new(address, Transport::Sse).unwrap();
        let error = load.connect(0..1, 1, Duration::from_secs(10)).unwrap_err();
        assert!(
            error.contains("status 406 instead of 200") && error.contains("use websocket!"),
            "{error}"
        );
    }
}
