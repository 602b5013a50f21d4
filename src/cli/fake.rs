//! A server that does as it is told, for the tests of `publish` and `listen`: a connection for each
//! line of its script.

#![allow(clippy::unwrap_used)]

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::client::Server;

/// What it does with a request.
pub(super) enum Act {
    /// Closes the connection without a word.
    HangUp,
    /// Answers with a status line's end ("200 OK"), headers, and a body that ends with the
    /// connection.
    Answer(&'static str, &'static str, String),
}

impl Act {
    pub(super) fn json(status: &'static str, body: &serde_json::Value) -> Self {
        Act::Answer(status, "Content-Type: application/json\r\n", body.to_string())
    }

    pub(super) fn stream(blocks: &str) -> Self {
        Act::Answer("200 OK", "Content-Type: text/event-stream\r\n", blocks.to_owned())
    }
}

/// A request as it came.
pub(super) struct Seen {
    pub(super) head: String,
    pub(super) body: String,
}

/// Somewhere to listen.
pub(super) async fn bind() -> (TcpListener, Server) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, Server::parse(&url).unwrap())
}

/// Starts the server; the task gives back the requests once the script is over.
pub(super) async fn play(script: Vec<Act>) -> (Server, JoinHandle<Vec<Seen>>) {
    let (listener, server) = bind().await;
    let task = tokio::spawn(async move {
        let mut requests = Vec::new();
        for act in script {
            let (mut stream, _) = listener.accept().await.unwrap();
            requests.push(read(&mut stream).await);
            if let Act::Answer(status, headers, body) = act {
                let answer = format!("HTTP/1.1 {status}\r\n{headers}Connection: close\r\n\r\n{body}");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        }
        requests
    });
    (server, task)
}

/// A whole request.
pub(super) async fn read(stream: &mut TcpStream) -> Seen {
    let mut bytes = Vec::new();
    loop {
        assert_ne!(stream.read_buf(&mut bytes).await.unwrap(), 0, "the request broke off");
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let head = head.to_lowercase();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map_or(0, |n| n.parse().unwrap());
        if body.len() >= length {
            return Seen { head, body: body.into() };
        }
    }
}
