//! The line between one node and its broker, which can be cut, held up and delayed.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

/// How the line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// All is well.
    Open,
    /// Connections break, and new ones too.
    Cut,
    /// Nothing comes through, as if packets were lost: connections stay, and what was sent comes
    /// later.
    Held,
    /// Everything takes so much longer, each way.
    Slow(Duration),
}

/// A TCP proxy. Dropping it ends it and its connections.
pub struct Link {
    /// Where nodes connect to.
    pub address: SocketAddr,
    line: watch::Sender<LinkState>,
    target: watch::Sender<SocketAddr>,
    accepting: JoinHandle<()>,
}

impl Link {
    /// One from this address (with the port 0: from a free one) to `target`.
    pub async fn from(address: SocketAddr, target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let (line, line_seen) = watch::channel(LinkState::Open);
        let (target, target_seen) = watch::channel(target);
        let accepting = tokio::spawn(async move {
            // Dropped, and with it its tasks, when this task is aborted.
            let mut open = tokio::task::JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((client, _)) = accepted else { continue };
                        let (line, target) = (line_seen.clone(), *target_seen.borrow());
                        open.spawn(async move { drop(carry(client, target, line).await) });
                    }
                    Some(_) = open.join_next() => {}
                }
            }
        });
        Ok(Self {
            address,
            line,
            target,
            accepting,
        })
    }

    /// From now on the line is so.
    pub fn set(&self, line: LinkState) {
        self.line.send_replace(line);
    }

    /// New connections lead there.
    pub fn lead_to(&self, target: SocketAddr) {
        self.target.send_replace(target);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn carry(client: TcpStream, target: SocketAddr, line: watch::Receiver<LinkState>) -> io::Result<()> {
    let mut mine = line.clone();
    let open = async {
        passing(&mut line.clone()).await;
        let server = TcpStream::connect(target).await?;
        for stream in [&client, &server] {
            stream.set_nodelay(true)?;
        }
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        // Either direction's end is the end of both.
        tokio::select! {
            done = pump(from_client, to_server, line.clone()) => done,
            done = pump(from_server, to_client, line.clone()) => done,
        }
    };
    tokio::select! {
        done = open => done,
        _ = mine.wait_for(|line| *line == LinkState::Cut) => Ok(()),
    }
}

async fn passing(line: &mut watch::Receiver<LinkState>) {
    // An error says that the link is gone, and then so is this task soon.
    let _ = line.wait_for(|line| *line != LinkState::Held).await;
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut line: watch::Receiver<LinkState>) -> io::Result<()> {
    // Full, it stops the reading, as a network's buffers would.
    let (sender, mut on_the_way) = mpsc::channel::<(Instant, Arc<[u8]>)>(64);
    let seen = line.clone();
    let reading = async move {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let read = from.read(&mut buffer).await?;
            let delay = match *seen.borrow() {
                LinkState::Slow(delay) => delay,
                _ => Duration::ZERO,
            };
            if read == 0 || sender.send((Instant::now() + delay, buffer[..read].into())).await.is_err() {
                return Ok(());
            }
        }
    };
    let writing = async move {
        while let Some((due, bytes)) = on_the_way.recv().await {
            sleep_until(due).await;
            passing(&mut line).await;
            to.write_all(&bytes).await?;
        }
        Ok(())
    };
    let (read, written): (io::Result<()>, io::Result<()>) = tokio::join!(reading, writing);
    read.and(written)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tokio::time::timeout;

    /// A server that sends back what it gets.
    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.into_split();
                    drop(tokio::io::copy(&mut from, &mut to).await);
                });
            }
        });
        address
    }

    #[tokio::test]
    async fn a_line_carries_holds_and_breaks() {
        let link = Link::from("127.0.0.1:0".parse().unwrap(), echo().await).await.unwrap();
        let mut stream = TcpStream::connect(link.address).await.unwrap();
        let mut buffer = [0; 1];
        stream.write_all(b"a").await.unwrap();
        stream.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"a");

        link.set(LinkState::Held);
        stream.write_all(b"b").await.unwrap();
        let held = timeout(Duration::from_millis(200), stream.read_exact(&mut buffer)).await;
        assert!(held.is_err(), "it came through");
        link.set(LinkState::Slow(Duration::from_millis(1)));
        stream.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"b", "later it does");

        link.set(LinkState::Cut);
        assert!(!matches!(stream.read(&mut buffer).await, Ok(1..)));
        link.set(LinkState::Open);
        let mut stream = TcpStream::connect(link.address).await.unwrap();
        stream.write_all(b"c").await.unwrap();
        stream.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"c");
    }
}
