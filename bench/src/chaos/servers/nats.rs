//! NATS: one server, or three that keep the stream together.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::super::link::Link;
use super::{Broker, PATIENCE, ServerProcess, ServerSettings, free};

/// The stream that nodes make.
const STREAM: &str = "$JS.API.STREAM.INFO.airwave";

/// Asks JetStream something, at this server.
async fn ask(address: SocketAddr, subject: &str) -> io::Result<Value> {
    static ASKED: AtomicU64 = AtomicU64::new(0);
    // Each question has a subject of its own for its answer, so a late answer to an earlier
    // question is not mistaken for this one.
    let number = ASKED.fetch_add(1, Ordering::Relaxed);
    let ask = async {
        let mut stream = BufReader::new(TcpStream::connect(address).await?);
        let question =
            format!("CONNECT {{\"verbose\":false}}\r\nSUB answer.{number} 1\r\nPUB {subject} answer.{number} 0\r\n\r\n");
        stream.write_all(question.as_bytes()).await?;
        let mut line = String::new();
        loop {
            line.clear();
            if stream.read_line(&mut line).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if line.starts_with("MSG ") {
                let length = line.trim().rsplit(' ').next().and_then(|length| length.parse().ok());
                let mut payload = vec![0; length.unwrap_or(0)];
                stream.read_exact(&mut payload).await?;
                return serde_json::from_slice(&payload).map_err(io::Error::other);
            }
        }
    };
    timeout(Duration::from_secs(1), ask)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

impl Broker {
    /// So many servers that are one.
    pub(super) async fn begin_nats(&mut self, program: &Path, folder: &Path, several: usize) -> Result<(), String> {
        let text = |error: io::Error| format!("a broker cannot be prepared: {error}");
        let mut places = Vec::new();
        for _ in 0..several {
            places.push(free().await.map_err(text)?);
        }
        for from in 0..several {
            for to in (0..several).filter(|to| *to != from) {
                let link = Link::from(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), places[to]).await;
                self.routes.push((from, to, link.map_err(text)?));
            }
        }
        for (number, place) in places.iter().enumerate() {
            let folder = folder.join(number.to_string());
            let store = folder.join("store");
            let mut settings = format!(
                "server_name: n{number}\njetstream {{ store_dir: {store:?}, max_memory_store: 256MB, max_file_store: 1GB }}\n\
                 max_payload: 8MB\n"
            );
            if several > 1 {
                let routes = self.routes.iter().filter(|(from, _, _)| *from == number);
                let routes: Vec<String> = routes.map(|(_, _, link)| format!("nats://{}", link.address)).collect();
                // What servers tell each other of where they are would lead past the lines.
                settings += &format!(
                    "cluster {{ name: chaos, listen: \"{place}\", advertise: \"127.0.0.1:1\", routes: [{}] }}\n",
                    routes.join(", ")
                );
            }
            let server = ServerProcess::new(program, folder, ServerSettings::Nats(settings)).await;
            let mut server = server.map_err(text)?;
            server.run().await?;
            self.servers.push(server);
        }
        let since = Instant::now();
        for server in &self.servers {
            loop {
                let answer = ask(server.address, "$JS.API.INFO").await;
                if answer.as_ref().is_ok_and(|answer| answer["error"].is_null()) {
                    break;
                }
                if since.elapsed() > PATIENCE {
                    return Err(format!("JetStream does not come up: {answer:?}"));
                }
                sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    /// Which server leads the stream.
    pub(super) async fn leader(&self) -> Option<usize> {
        for server in self.servers.iter().filter(|server| server.child.is_some()) {
            let answer = ask(server.address, STREAM).await.unwrap_or_default();
            let named = answer["cluster"]["leader"].as_str().and_then(|name| name.strip_prefix('n'));
            if let Some(leader) = named.and_then(|number| number.parse().ok()) {
                return Some(leader);
            }
        }
        None
    }

    /// Asked anywhere, the stream has one leader, and the other servers are up to it.
    pub(super) async fn nats_is_settled(&self) -> Result<(), String> {
        let mut leaders = Vec::new();
        for (number, server) in self.servers.iter().enumerate() {
            let answer = ask(server.address, STREAM).await;
            let answer = answer.map_err(|error| format!("asked of the stream, number {number} says {error}"))?;
            let cluster = &answer["cluster"];
            let followers = cluster["replicas"].as_array().map(Vec::as_slice).unwrap_or_default();
            let current = followers
                .iter()
                .all(|follower| follower["current"] == true && follower["offline"] != true);
            if followers.len() + 1 != self.servers.len() || !current || cluster["leader"].as_str().is_none_or(str::is_empty) {
                return Err(format!("asked of the stream, number {number} says {answer}"));
            }
            leaders.push(cluster["leader"].clone());
        }
        leaders.dedup();
        match leaders.len() {
            1 => Ok(()),
            _ => Err(format!("the stream has leaders {leaders:?}")),
        }
    }
}
