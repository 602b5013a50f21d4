//! Bytes as they are, for what no well-behaved client library would send.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::within;

/// A connection without manners.
pub struct Raw {
    pub stream: TcpStream,
    /// What was read and not looked at yet.
    pub read: Vec<u8>,
}

/// A frame as the server sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub opcode: u8,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn text(&self) -> String {
        assert_eq!(self.opcode, 1, "{self:?}");
        String::from_utf8(self.payload.clone()).unwrap()
    }

    /// Code and reason of a close frame.
    pub fn close(&self) -> (u16, String) {
        assert_eq!(self.opcode, 8, "{self:?}");
        let code = u16::from_be_bytes([self.payload[0], self.payload[1]]);
        (code, String::from_utf8(self.payload[2..].to_vec()).unwrap())
    }
}

impl Raw {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = within("connect", TcpStream::connect(address)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            read: Vec::new(),
        }
    }

    /// Connects and sends.
    pub async fn saying(address: SocketAddr, bytes: impl AsRef<[u8]>) -> Self {
        let mut raw = Self::connect(address).await;
        raw.say(bytes).await;
        raw
    }

    /// A WebSocket after its handshake.
    pub async fn websocket(address: SocketAddr, path: &str) -> Self {
        let mut raw = Self::saying(address, handshake(address, path)).await;
        let head = raw.head().await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        // RFC 9110, section 8.6.
        assert!(!head.contains("content-length"), "{head}");
        raw
    }

    pub async fn say(&mut self, bytes: impl AsRef<[u8]>) {
        within("write", self.stream.write_all(bytes.as_ref())).await.unwrap();
    }

    /// Says as much as the other end will take.
    pub async fn try_say(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        within("write", self.stream.write_all(bytes.as_ref())).await
    }

    /// False: the other end is done, or the connection was reset.
    async fn more(&mut self) -> bool {
        let mut piece = [0; 4096];
        match within("read", self.stream.read(&mut piece)).await {
            Ok(count) if count > 0 => {
                self.read.extend_from_slice(&piece[..count]);
                true
            }
            _ => false,
        }
    }

    /// Everything up to and with `end`, as text.
    pub async fn through(&mut self, end: &str) -> String {
        loop {
            if let Some(at) = find(&self.read, end.as_bytes()) {
                let rest = self.read.split_off(at + end.len());
                return String::from_utf8(std::mem::replace(&mut self.read, rest)).unwrap();
            }
            assert!(
                self.more().await,
                "the connection ended before {end:?}: {:?}",
                String::from_utf8_lossy(&self.read)
            );
        }
    }

    /// The head of an answer.
    pub async fn head(&mut self) -> String {
        self.through("\r\n\r\n").await
    }

    /// The next chunk of a body that comes in chunks (RFC 9112, section 7.1); `None`: it has ended.
    pub async fn chunk(&mut self) -> Option<String> {
        let length = self.through("\r\n").await;
        let length = usize::from_str_radix(length.trim_end(), 16).unwrap_or_else(|_| panic!("no length of a chunk: {length:?}"));
        while self.read.len() < length + 2 {
            assert!(self.more().await, "the connection ended within a chunk");
        }
        let rest = self.read.split_off(length + 2);
        let mut chunk = String::from_utf8(std::mem::replace(&mut self.read, rest)).unwrap();
        assert!(chunk.ends_with("\r\n"), "{chunk:?}");
        chunk.truncate(length);
        (length > 0).then_some(chunk)
    }

    /// The head of an answer, and its body by its `content-length`.
    pub async fn answer(&mut self) -> (String, String) {
        let head = self.head().await;
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.map_or(0, |length| length.parse().unwrap());
        while self.read.len() < length {
            assert!(self.more().await, "the body broke off: {head}");
        }
        let rest = self.read.split_off(length);
        (head, String::from_utf8(std::mem::replace(&mut self.read, rest)).unwrap())
    }

    /// Everything until the other end is done.
    pub async fn rest(mut self) -> Vec<u8> {
        while self.more().await {}
        self.read
    }

    /// Whether the other end says this before anything else.
    pub async fn rest_begins_with(&mut self, wanted: &str) -> bool {
        while self.read.len() < wanted.len() {
            if !self.more().await {
                return false;
            }
        }
        self.read.starts_with(wanted.as_bytes())
    }

    /// Whether the other end is done, in order and not by a reset, and said nothing more.
    pub async fn is_done(&mut self) -> bool {
        self.read.is_empty() && matches!(within("read", self.stream.read(&mut [0])).await, Ok(0))
    }

    /// The next frame; `None`: the connection has ended.
    pub async fn frame(&mut self) -> Option<Frame> {
        loop {
            if let Some((frame, used)) = frame_in(&self.read) {
                self.read.drain(..used);
                return Some(frame);
            }
            if !self.more().await {
                assert!(self.read.is_empty(), "half a frame: {:?}", self.read);
                return None;
            }
        }
    }

    /// Frames up to the close frame: code and reason.
    pub async fn close_frame(&mut self) -> (u16, String) {
        loop {
            let frame = self.frame().await.expect("a close frame before the end");
            if frame.opcode == 8 {
                return frame.close();
            }
        }
    }
}

pub fn handshake(address: SocketAddr, path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nhost: {address}\r\nupgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-version: 13\r\n\
         sec-websocket-key: AAECAwQFBgcICQoLDA0ODw==\r\n\r\n"
    )
}

/// A client's frame: RFC 6455, section 5.2, written by hand. `first`: FIN, reserved bits and
/// opcode.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    let mut frame = vec![first];
    match payload.len() {
        short @ 0..=125 => frame.push(0x80 | short as u8),
        medium @ 126..=0xffff => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&(medium as u16).to_be_bytes());
        }
        long => {
            frame.push(0x80 | 127);
            frame.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

fn frame_in(bytes: &[u8]) -> Option<(Frame, usize)> {
    let (&first, &second) = (bytes.first()?, bytes.get(1)?);
    assert_eq!(
        first & 0xf0,
        0x80,
        "a server's frame is whole and has no reserved bits: {first:#x}"
    );
    assert_eq!(second & 0x80, 0, "a server does not mask");
    let (length, head) = match second {
        126 => (u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().unwrap())), 4),
        127 => (u64::from_be_bytes(bytes.get(2..10)?.try_into().unwrap()), 10),
        short => (u64::from(short), 2),
    };
    let end = head + usize::try_from(length).unwrap();
    let payload = bytes.get(head..end)?.to_vec();
    let opcode = first & 0x0f;
    Some((Frame { opcode, payload }, end))
}
