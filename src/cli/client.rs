//! The way to a server, for `publish` and `listen`: its URL, one connection, and how long to wait before the next try.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use airwave_core::ChannelName;
use bytes::Bytes;
use http::header::HOST;
use http::request::Builder;
use http::{Method, Uri};
use http_body_util::Full;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Stop;

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(5);

#[derive(clap::Args)]
pub(super) struct ServerArgs {
    /// The server, with the path under which Airwave is mounted
    #[arg(long, value_name = "URL", env = "AIRWAVE_URL", default_value = "http://127.0.0.1:8080")]
    url: String,
}

impl ServerArgs {
    pub(super) fn server(&self) -> Result<Server, Stop> {
        Server::parse(&self.url).map_err(|error| Stop::Wrong(format!("--url {error}")))
    }
}

/// A connection that takes requests.
pub(super) type Connection = SendRequest<Full<Bytes>>;

/// Where the server is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Server {
    host: String,
    port: u16,
    authority: String,
    base: String,
}

impl Server {
    /// Takes the URL apart. The error never shows it: it may hold a password.
    pub(super) fn parse(url: &str) -> Result<Self, String> {
        const EXAMPLE: &str = "write for example http://127.0.0.1:8080";
        let uri: Uri = url.parse().map_err(|_| format!("is no URL; {EXAMPLE}"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                return Err(
                    "https:// is not part of this command line yet; use http://, or a proxy on this machine that speaks TLS"
                        .into(),
                );
            }
            _ => return Err(format!("is no http:// URL; {EXAMPLE}")),
        }
        let (Some(host), Some(authority)) = (uri.host().filter(|host| !host.is_empty()), uri.authority()) else {
            return Err(format!("names no server; {EXAMPLE}"));
        };
        if authority.as_str().contains('@') {
            return Err("holds a user name; leave it out, and give the publish token as --token or AIRWAVE_PUBLISH_TOKEN".into());
        }
        if uri.query().is_some() {
            return Err("has a query; leave it out".into());
        }
        Ok(Self {
            host: host.trim_start_matches('[').trim_end_matches(']').into(),
            port: uri.port_u16().unwrap_or(80),
            authority: authority.to_string(),
            base: uri.path().trim_end_matches('/').into(),
        })
    }

    /// The bare connection.
    pub(super) async fn connect(&self) -> Result<TcpStream, String> {
        match timeout(CONNECT, TcpStream::connect((self.host.as_str(), self.port))).await {
            Ok(Ok(stream)) => {
                // Requests are written in one piece; waiting for more would only delay them.
                let _ = stream.set_nodelay(true);
                Ok(stream)
            }
            Ok(Err(error)) => Err(reason(&error)),
            Err(_) => Err(format!("no connection within {} s", CONNECT.as_secs())),
        }
    }

    /// A connection that takes requests. It ends when it is dropped.
    pub(super) async fn open(&self) -> Result<Connection, String> {
        let stream = self.connect().await?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        // What goes wrong with the connection is told to whoever waits for an answer.
        tokio::spawn(connection);
        Ok(sender)
    }

    /// A request for `path`, which begins with `/`.
    pub(super) fn request(&self, method: Method, path: &str) -> Builder {
        http::Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header(HOST, &self.authority)
    }

    /// The URL of a WebSocket at `path`.
    pub(super) fn websocket(&self, path: &str) -> String {
        format!("ws://{}{}{path}", self.authority, self.base)
    }
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "http://{}{}", self.authority, self.base)
    }
}

/// The system's words without its numbers ("Connection refused (os error 111)").
fn reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((words, _)) => words.to_lowercase(),
        None => text,
    }
}

/// `text` as a value in a query.
pub(super) fn query_value(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

pub(super) fn channel_name(text: &str) -> Result<ChannelName, String> {
    ChannelName::new(text).map_err(|error| error.to_string())
}

/// A number nobody else has: the standard library's hash keys come from the system's source of chance.
pub(super) fn chance() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

/// Longer and longer waits, from a quarter of a second to some five, each between half of its length and all of it, so that
/// many clients that lost one server do not come back together.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    tries: u32,
}

impl Backoff {
    const FIRST: u64 = 250;
    const LONGEST: u64 = 5000;

    pub(super) fn next(&mut self) -> Duration {
        let full = (Self::FIRST << self.tries.min(10)).min(Self::LONGEST);
        self.tries = self.tries.saturating_add(1);
        Duration::from_millis(full / 2 + chance() % (full / 2 + 1))
    }

    pub(super) fn reset(&mut self) {
        self.tries = 0;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_url_is_host_port_and_base() {
        let server = Server::parse("http://127.0.0.1:8080").unwrap();
        assert_eq!(
            (server.host.as_str(), server.port, server.base.as_str()),
            ("127.0.0.1", 8080, "")
        );
        let server = Server::parse("http://[::1]/realtime/").unwrap();
        assert_eq!(
            (server.host.as_str(), server.port, server.base.as_str()),
            ("::1", 80, "/realtime")
        );
        let request = server.request(Method::GET, "/events").body(()).unwrap();
        assert_eq!(
            (request.uri().to_string().as_str(), request.headers()[HOST].as_bytes()),
            ("/realtime/events", &b"[::1]"[..])
        );
        assert_eq!(server.websocket("/socket"), "ws://[::1]/realtime/socket");
        assert_eq!(server.to_string(), "http://[::1]/realtime");
    }

    #[test]
    fn other_urls_are_refused_without_being_shown() {
        for (url, sentence) in [
            ("https://s3cret.example", "not part of this command line yet"),
            ("127.0.0.1:8080", "no http:// URL"),
            ("s3cret", "no http:// URL"),
            ("", "no URL"),
            ("http://me:s3cret@h", "holds a user name"),
            ("http://h/?s3cret", "has a query"),
            ("ftp://h", "no http:// URL"),
        ] {
            let error = Server::parse(url).unwrap_err();
            assert!(error.contains(sentence) && !error.contains("s3cret"), "{url}: {error}");
        }
    }

    #[test]
    fn query_values_lose_nothing() {
        assert_eq!(query_value("a/b-c_d.e~f"), "a/b-c_d.e~f");
        assert_eq!(query_value("a+b=c@d:e&é"), "a%2Bb%3Dc%40d%3Ae%26%C3%A9");
    }

    #[test]
    fn waits_grow_to_a_bound_and_differ() {
        let mut backoff = Backoff::default();
        for full in [250, 500, 1000, 2000, 4000, 5000, 5000] {
            let wait = backoff.next().as_millis();
            assert!((full / 2..=full).contains(&wait), "{wait} of {full}");
        }
        for _ in 0..100 {
            backoff.next();
        }
        backoff.reset();
        assert!(backoff.next().as_millis() <= 250);
        assert_ne!(chance(), chance());
    }
}
