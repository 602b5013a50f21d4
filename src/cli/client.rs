//! The way to a server, for `publish`, `send` and `listen`: its URL, who the client is, one
//! connection, and how long to wait before the next try.

use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::time::Duration;

use airwave_core::ChannelName;
use bytes::Bytes;
use http::header::{AUTHORIZATION, COOKIE, HOST, HeaderMap, HeaderName, HeaderValue};
use http::request::Builder;
use http::{Method, Uri};
use http_body_util::Full;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

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

/// Who the client is, for the application behind the channels.
#[derive(clap::Args)]
pub(super) struct CredentialArgs {
    /// A token, sent as `Authorization: Bearer`; other users of the machine do not see it in the
    /// variable, or in a file
    #[arg(long, env = "AIRWAVE_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// A file that holds the token; goes before --token and the variable
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// A header of each request, such as 'X-Tenant: acme'; may be repeated
    #[arg(long, value_name = "NAME: VALUE")]
    header: Vec<String>,
    /// A cookie, such as session=abc; may be repeated
    #[arg(long, value_name = "NAME=VALUE", env = "AIRWAVE_COOKIE", hide_env_values = true)]
    cookie: Vec<String>,
}

impl CredentialArgs {
    /// The headers of each request.
    pub(super) fn headers(self) -> Result<HeaderMap, Stop> {
        let mut headers = HeaderMap::new();
        for header in &self.header {
            let (name, value) = header_of(header)?;
            headers.append(name, value);
        }
        if let Some(value) = bearer(self.token, self.token_file.as_deref())? {
            headers.insert(AUTHORIZATION, value);
        }
        let cookies: Vec<String> = self.cookie.into_iter().filter(|cookie| !cookie.is_empty()).collect();
        if !cookies.is_empty() {
            // Whether it is one is not said, and never shown: it may be a secret.
            let wrong = || Stop::Wrong("--cookie takes NAME=VALUE, for example session=abc".into());
            if !cookies.iter().all(|cookie| cookie.contains('=')) {
                return Err(wrong());
            }
            let mut value = HeaderValue::try_from(cookies.join("; ")).map_err(|_| wrong())?;
            value.set_sensitive(true);
            headers.append(COOKIE, value);
        }
        Ok(headers)
    }
}

/// Headers that the command line sets itself.
const OWN_HEADERS: [&str; 6] = [
    "connection",
    "content-length",
    "content-type",
    "last-event-id",
    "transfer-encoding",
    "upgrade",
];

fn header_of(text: &str) -> Result<(HeaderName, HeaderValue), Stop> {
    let wrong = || Stop::Wrong("--header takes 'NAME: VALUE', for example 'X-Tenant: acme'".into());
    let (name, value) = text.split_once(':').ok_or_else(wrong)?;
    let name = HeaderName::try_from(name.trim()).map_err(|_| wrong())?;
    let mut value = HeaderValue::try_from(value.trim()).map_err(|_| wrong())?;
    if OWN_HEADERS.contains(&name.as_str()) || name.as_str().starts_with("sec-websocket-") {
        return Err(Stop::Wrong(format!(
            "--header {name}: this command sets it itself; leave it out"
        )));
    }
    value.set_sensitive(true);
    Ok((name, value))
}

/// The value of `Authorization` for a token, or for the one that a file holds. The token is never
/// shown.
pub(super) fn bearer(token: Option<String>, file: Option<&Path>) -> Result<Option<HeaderValue>, Stop> {
    let token = match file {
        None => token.unwrap_or_default(),
        Some(path) => {
            let shown = path.display();
            let text = std::fs::read_to_string(path)
                .map_err(|error| Stop::Wrong(format!("--token-file: cannot read {shown}: {error}")))?;
            let text = text.trim().to_owned();
            if text.is_empty() {
                return Err(Stop::Wrong(format!(
                    "--token-file: {shown} is empty; write the token into it"
                )));
            }
            text
        }
    };
    if token.is_empty() {
        return Ok(None);
    }
    let mut value = HeaderValue::try_from(format!("Bearer {token}"))
        .map_err(|_| Stop::Wrong("the token holds characters that no token has".into()))?;
    value.set_sensitive(true);
    Ok(Some(value))
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
    /// Of each request.
    headers: HeaderMap,
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
            headers: HeaderMap::new(),
        })
    }

    /// Sends `headers` with each request.
    pub(super) fn with_headers(mut self, headers: HeaderMap) -> Self {
        self.headers = headers;
        self
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
        // The caller that waits for an answer gets the connection's error.
        tokio::spawn(connection);
        Ok(sender)
    }

    /// A request for `path`, which begins with `/`.
    pub(super) fn request(&self, method: Method, path: &str) -> Builder {
        let mut request = http::Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header(HOST, &self.authority);
        if let Some(headers) = request.headers_mut() {
            self.add_headers(headers);
        }
        request
    }

    /// The handshake of a WebSocket at `path`.
    pub(super) fn websocket(&self, path: &str) -> Result<http::Request<()>, String> {
        let url = format!("ws://{}{}{path}", self.authority, self.base);
        let mut request = url.into_client_request().map_err(|error| error.to_string())?;
        self.add_headers(request.headers_mut());
        Ok(request)
    }

    fn add_headers(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.headers {
            if name == HOST {
                headers.insert(name.clone(), value.clone());
            } else {
                headers.append(name.clone(), value.clone());
            }
        }
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

/// Returns a number that no other process has: the standard library's hash keys come from the
/// system's source of chance.
pub(super) fn chance() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

/// Longer and longer waits, from a quarter of a second to some five, each between half of its
/// length and all of it, so that many clients that lost one server do not come back together.
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
        assert_eq!(server.websocket("/socket").unwrap().uri(), "ws://[::1]/realtime/socket");
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
    fn credentials_are_headers_of_each_request_and_are_never_shown() {
        let args = |token: Option<&str>, header: &[&str], cookie: &[&str]| CredentialArgs {
            token: token.map(str::to_owned),
            token_file: None,
            header: header.iter().map(|text| (*text).to_owned()).collect(),
            cookie: cookie.iter().map(|text| (*text).to_owned()).collect(),
        };
        let headers = args(
            Some("secret-1"),
            &["X-Tenant: secret-2", "Host: other"],
            &["a=secret-3", "b=4"],
        )
        .headers()
        .unwrap();
        let server = Server::parse("http://127.0.0.1:1/x").unwrap().with_headers(headers);
        assert!(!format!("{server:?} {server}").contains("secret"), "{server:?}");
        let plain = server.request(Method::GET, "/y").body(()).unwrap();
        let socket = server.websocket("/socket").unwrap();
        for headers in [plain.headers(), socket.headers()] {
            assert_eq!(headers["authorization"], "Bearer secret-1");
            assert_eq!(headers["x-tenant"], "secret-2");
            assert_eq!(headers["cookie"], "a=secret-3; b=4");
            assert_eq!(headers.get_all(HOST).iter().collect::<Vec<_>>(), ["other"]);
        }
        for (wrong, expected) in [
            (args(Some("a\nb"), &[], &[]), "the token"),
            (args(None, &["secret"], &[]), "--header takes"),
            (args(None, &["Upgrade: secret"], &[]), "leave it out"),
            (args(None, &["Sec-WebSocket-Key: secret"], &[]), "leave it out"),
            (args(None, &[], &["secret"]), "--cookie takes"),
        ] {
            match wrong.headers() {
                Err(Stop::Wrong(text)) => assert!(text.contains(expected) && !text.contains("secret"), "{text}"),
                other => panic!("{expected}: {other:?}"),
            }
        }
        assert!(args(Some(""), &[], &[""]).headers().unwrap().is_empty());
    }

    #[test]
    fn a_token_may_stand_in_a_file() {
        let path = std::env::temp_dir().join(format!("airwave-token-{}", std::process::id()));
        std::fs::write(&path, "from-file\n").unwrap();
        let value = bearer(Some("from-flag".into()), Some(&path)).unwrap().unwrap();
        assert_eq!(value, "Bearer from-file");
        std::fs::write(&path, "\n").unwrap();
        assert!(bearer(None, Some(&path)).is_err());
        std::fs::remove_file(&path).unwrap();
        assert!(bearer(None, Some(&path)).is_err());
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
