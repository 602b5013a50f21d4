//! Whether a server answers, and what.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Asks Redis, a server or a sentinel, something, and gives the first part of the answer as it
/// comes.
pub(super) async fn ask_redis(address: SocketAddr, what: &str) -> io::Result<String> {
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(format!("{what}\r\n").as_bytes()).await?;
        let mut answer = Vec::with_capacity(8192);
        stream.read_buf(&mut answer).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    timeout(Duration::from_secs(1), ask)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Whether a NATS server answers at all.
pub(super) async fn nats_greets(address: SocketAddr) -> bool {
    let greeted = async {
        let mut stream = TcpStream::connect(address).await?;
        let mut greeting = [0; 4];
        stream.read_exact(&mut greeting).await?;
        Ok::<_, io::Error>(&greeting == b"INFO")
    };
    matches!(timeout(Duration::from_secs(1), greeted).await, Ok(Ok(true)))
}
