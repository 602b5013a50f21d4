//! The raw limit: one thread, bare epoll, one `write` per delivery of bytes that were built once
//! per event.
//!
//! It speaks as much of the protocol as the load generator asks for: the SSE head, the WebSocket
//! handshake, the confirmation, `POST /publish`, and resuming from a ring. It has no permissions,
//! limits, time-outs or heartbeats: nothing that costs anything, for it is the bottom line that
//! everything else is divided by. Not a server to be used.

use std::collections::{HashMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};

use memchr::memmem;
use rustix::event::epoll;
use rustix::fd::OwnedFd;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::{Item, now_micros, subscribed_notice};

/// Events a channel keeps to resume from.
const HISTORY: usize = 1_000;
const LISTENER_TOKEN: u64 = u64::MAX;

/// Serves until the process is killed; prints its address first.
pub fn serve() -> Result<(), String> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| format!("cannot listen: {error}"))?;
    // std listens with a backlog of 128, which a storm overruns; a second listen() raises it.
    rustix::net::listen(&listener, 4096).map_err(|error| format!("cannot listen: {error}"))?;
    listener
        .set_nonblocking(true)
        .map_err(|error| format!("cannot listen: {error}"))?;
    super::announce(listener.local_addr().map_err(|error| error.to_string())?)?;
    Raw::new()?
        .run(&listener)
        .map_err(|error| format!("the raw server failed: {error}"))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wire {
    Sse,
    Websocket,
}

/// What a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Reading requests: new, or a publisher.
    Requests,
    /// Listens to the channel with this index, at this place of the channel's list.
    Listens { channel: usize, place: usize, wire: Wire },
}

struct ServedConnection {
    socket: TcpStream,
    role: Role,
    input: Vec<u8>,
    /// What the socket did not take.
    output: Vec<u8>,
}

#[derive(Default)]
struct ChannelState {
    listeners: Vec<usize>,
    last: u64,
    history: VecDeque<Encoded>,
    /// Which wires anybody has listened on: only those are encoded.
    sse: bool,
    websocket: bool,
}

struct Encoded {
    position: u64,
    sse: Vec<u8>,
    websocket: Vec<u8>,
}

impl Encoded {
    fn on(&self, wire: Wire) -> &[u8] {
        match wire {
            Wire::Sse => &self.sse,
            Wire::Websocket => &self.websocket,
        }
    }
}

struct Raw {
    poll: OwnedFd,
    /// Slots, so that a token is an index.
    connections: Vec<Option<ServedConnection>>,
    free: Vec<usize>,
    /// Slots of connections that closed during this round of readiness; not to be given away before
    /// the next.
    closing: Vec<usize>,
    names: HashMap<String, usize>,
    channels: Vec<ChannelState>,
}

impl Raw {
    fn new() -> Result<Self, String> {
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|error| format!("cannot create an epoll: {error}"))?;
        Ok(Self {
            poll,
            connections: Vec::new(),
            free: Vec::new(),
            closing: Vec::new(),
            names: HashMap::new(),
            channels: Vec::new(),
        })
    }

    fn run(&mut self, listener: &TcpListener) -> std::io::Result<()> {
        epoll::add(
            &self.poll,
            listener,
            epoll::EventData::new_u64(LISTENER_TOKEN),
            epoll::EventFlags::IN,
        )?;
        let mut ready = Vec::with_capacity(1024);
        let mut buffer = vec![0; 256 * 1024];
        loop {
            ready.clear();
            match epoll::wait(&self.poll, rustix::buffer::spare_capacity(&mut ready), None) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            for event in &ready {
                let token = event.data.u64();
                if token == LISTENER_TOKEN {
                    self.accept(listener)?;
                    continue;
                }
                let slot = token as usize;
                let flags = event.flags;
                if flags.contains(epoll::EventFlags::OUT) {
                    self.flush(slot);
                }
                if flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::HUP | epoll::EventFlags::ERR) {
                    self.readable(slot, &mut buffer);
                }
            }
            self.free.append(&mut self.closing);
        }
    }

    fn accept(&mut self, listener: &TcpListener) -> std::io::Result<()> {
        loop {
            let socket = match listener.accept() {
                Ok((socket, _)) => socket,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error),
            };
            socket.set_nonblocking(true)?;
            socket.set_nodelay(true)?;
            let slot = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            epoll::add(
                &self.poll,
                &socket,
                epoll::EventData::new_u64(slot as u64),
                epoll::EventFlags::IN,
            )?;
            self.connections[slot] = Some(ServedConnection {
                socket,
                role: Role::Requests,
                input: Vec::new(),
                output: Vec::new(),
            });
        }
    }

    fn close(&mut self, slot: usize) {
        let Some(connection) = self.connections[slot].take() else {
            return;
        };
        self.closing.push(slot);
        if let Role::Listens { channel, place, .. } = connection.role {
            let listeners = &mut self.channels[channel].listeners;
            listeners.swap_remove(place);
            if let Some(&moved) = listeners.get(place)
                && let Some(ServedConnection {
                    role: Role::Listens { place: its, .. },
                    ..
                }) = &mut self.connections[moved]
            {
                *its = place;
            }
        }
    }

    /// Sends `bytes`, and what does not go out as soon as the socket can take it.
    fn send(&mut self, slot: usize, bytes: &[u8]) {
        let Some(connection) = &mut self.connections[slot] else {
            return;
        };
        let written = if connection.output.is_empty() {
            match connection.socket.write(bytes) {
                Ok(written) => written,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => 0,
                // A dead connection is found again, and cleaned up, where it is read.
                Err(_) => return,
            }
        } else {
            0
        };
        if written < bytes.len() {
            if connection.output.is_empty() {
                self.watch(slot, epoll::EventFlags::IN | epoll::EventFlags::OUT);
            }
            if let Some(connection) = &mut self.connections[slot] {
                connection.output.extend_from_slice(&bytes[written..]);
            }
        }
    }

    fn flush(&mut self, slot: usize) {
        let Some(connection) = &mut self.connections[slot] else {
            return;
        };
        if let Ok(written) = connection.socket.write(&connection.output) {
            connection.output.drain(..written);
        }
        if connection.output.is_empty() {
            self.watch(slot, epoll::EventFlags::IN);
        }
    }

    fn watch(&self, slot: usize, flags: epoll::EventFlags) {
        if let Some(connection) = &self.connections[slot] {
            // Only a bad descriptor can make this fail, and this one is open.
            let _ = epoll::modify(&self.poll, &connection.socket, epoll::EventData::new_u64(slot as u64), flags);
        }
    }

    fn readable(&mut self, slot: usize, buffer: &mut [u8]) {
        let Some(connection) = &mut self.connections[slot] else {
            return;
        };
        match connection.socket.read(buffer) {
            Ok(0) => self.close(slot),
            Ok(count) => {
                // What listeners say (pongs, a close) is read and dropped.
                if connection.role == Role::Requests {
                    connection.input.extend_from_slice(&buffer[..count]);
                    self.requests(slot);
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => self.close(slot),
        }
    }

    fn requests(&mut self, slot: usize) {
        while let Some(connection) = &mut self.connections[slot]
            && connection.role == Role::Requests
        {
            let Some(request) = Request::parse(&connection.input) else {
                return;
            };
            let mut input = std::mem::take(&mut connection.input);
            self.answer(slot, &request, &input);
            input.drain(..request.length);
            if let Some(connection) = &mut self.connections[slot]
                && connection.role == Role::Requests
            {
                connection.input = input;
            }
        }
    }

    fn answer(&mut self, slot: usize, request: &Request, bytes: &[u8]) {
        if request.publishes {
            let answer = match self.publish(&bytes[request.body..request.length]) {
                Ok(body) => format!(
                    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                ),
                Err(error) => {
                    let body = error.to_string();
                    format!("HTTP/1.1 400 Bad Request\r\ncontent-length: {}\r\n\r\n{body}", body.len())
                }
            };
            self.send(slot, answer.as_bytes());
        } else if let Some(name) = &request.channel {
            self.subscribe(slot, name, request);
        } else {
            self.send(slot, b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n");
        }
    }

    fn channel(&mut self, name: &str) -> usize {
        if let Some(&index) = self.names.get(name) {
            return index;
        }
        self.channels.push(ChannelState {
            last: now_micros(),
            ..ChannelState::default()
        });
        self.names.insert(name.to_owned(), self.channels.len() - 1);
        self.channels.len() - 1
    }

    fn subscribe(&mut self, slot: usize, name: &str, request: &Request) {
        let index = self.channel(name);
        let channel = &mut self.channels[index];
        let wire = if request.key.is_some() { Wire::Websocket } else { Wire::Sse };
        let after = request.after.unwrap_or(channel.last);
        let known = after == channel.last || channel.history.iter().any(|event| event.position == after);
        let notice = subscribed_notice(name, after, request.after.is_some() && known);
        let mut bytes = match &request.key {
            None => format!(
                "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-store\r\nconnection: close\r\n\r\n\
                 retry: 1000\nid: {after}\nevent: airwave.subscribed\ndata: {{{notice}}}\n\n"
            )
            .into_bytes(),
            Some(key) => {
                let accept = derive_accept_key(key.as_bytes());
                let mut bytes = format!(
                    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: {accept}\r\n\r\n"
                )
                .into_bytes();
                text_frame(&format!("{{\"type\":\"subscribed\",{notice}}}"), &mut bytes);
                bytes
            }
        };
        match wire {
            Wire::Sse => channel.sse = true,
            Wire::Websocket => channel.websocket = true,
        }
        let missed = channel.history.partition_point(|event| event.position <= after);
        for event in channel.history.range(missed..) {
            bytes.extend_from_slice(event.on(wire));
        }
        let place = channel.listeners.len();
        channel.listeners.push(slot);
        if let Some(connection) = &mut self.connections[slot] {
            connection.role = Role::Listens {
                channel: index,
                place,
                wire,
            };
            connection.input = Vec::new();
        }
        self.send(slot, &bytes);
    }

    fn publish(&mut self, body: &[u8]) -> Result<String, serde_json::Error> {
        if body.first() == Some(&b'[') {
            let items: Vec<Item<'_>> = serde_json::from_slice(body)?;
            let answers: Vec<String> = items.iter().map(|item| self.publish_one(item)).collect();
            return Ok(format!("[{}]", answers.join(",")));
        }
        let item: Item<'_> = serde_json::from_slice(body)?;
        Ok(self.publish_one(&item))
    }

    fn publish_one(&mut self, item: &Item<'_>) -> String {
        let index = self.channel(item.channel);
        let channel = &mut self.channels[index];
        channel.last = now_micros().max(channel.last + 1);
        let (position, name, event, data) = (channel.last, item.channel, item.event, item.data.get());
        let mut encoded = Encoded {
            position,
            sse: Vec::new(),
            websocket: Vec::new(),
        };
        if channel.sse {
            encoded.sse = format!("id: {position}\nevent: {event}\ndata: {data}\n\n").into_bytes();
        }
        if channel.websocket {
            let envelope = format!("{{\"channel\":\"{name}\",\"id\":\"{position}\",\"event\":\"{event}\",\"data\":{data}}}");
            text_frame(&envelope, &mut encoded.websocket);
        }
        // The list is put back below; sending closes nothing, so it does not change meanwhile.
        let listeners = std::mem::take(&mut channel.listeners);
        for &slot in &listeners {
            if let Some(ServedConnection {
                role: Role::Listens { wire, .. },
                ..
            }) = &self.connections[slot]
            {
                self.send(slot, encoded.on(*wire));
            }
        }
        let channel = &mut self.channels[index];
        channel.listeners = listeners;
        channel.history.push_back(encoded);
        if channel.history.len() > HISTORY {
            channel.history.pop_front();
        }
        format!("{{\"channel\":\"{name}\",\"cursor\":\"{position}\",\"duplicate\":false}}")
    }
}

/// Appends one unmasked text frame.
fn text_frame(text: &str, out: &mut Vec<u8>) {
    out.push(0x81);
    match text.len() {
        size @ ..126 => out.push(size as u8),
        size => {
            out.push(126);
            // An event of this bench stays under 64 KiB.
            out.extend_from_slice(&(size as u16).to_be_bytes());
        }
    }
    out.extend_from_slice(text.as_bytes());
}

/// The parts of a request that matter here.
struct Request {
    publishes: bool,
    channel: Option<String>,
    /// `Sec-WebSocket-Key`.
    key: Option<String>,
    after: Option<u64>,
    /// Where the body begins.
    body: usize,
    /// Bytes of the whole request.
    length: usize,
}

impl Request {
    /// Reads a request off the front of `bytes`; `None` until it is complete.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let end = memmem::find(bytes, b"\r\n\r\n")?;
        let head = std::str::from_utf8(&bytes[..end]).unwrap_or_default();
        let mut lines = head.split("\r\n");
        let mut first = lines.next().unwrap_or_default().split(' ');
        let (method, target) = (first.next().unwrap_or_default(), first.next().unwrap_or_default());
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut request = Request {
            publishes: method == "POST" && path == "/publish",
            channel: path.strip_prefix("/channels/").filter(|_| method == "GET").map(str::to_owned),
            key: None,
            after: query
                .split('&')
                .find_map(|pair| pair.strip_prefix("after="))
                .and_then(|after| after.parse().ok()),
            body: end + 4,
            length: end + 4,
        };
        for line in lines {
            let Some((name, value)) = line.split_once(':') else { continue };
            let value = value.trim();
            if name.eq_ignore_ascii_case("content-length") {
                request.length += value.parse::<usize>().unwrap_or(0);
            } else if name.eq_ignore_ascii_case("sec-websocket-key") {
                request.key = Some(value.to_owned());
            } else if name.eq_ignore_ascii_case("last-event-id") {
                request.after = value.parse().ok();
            }
        }
        (bytes.len() >= request.length).then_some(request)
    }
}
