//! Every transport checks here where a request comes from, before it serves the request. This
//! module also makes the answers that refuse a request over HTTP.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use airwave_core::rule::TransportName;
use airwave_core::{ChannelName, ConnectRequest, Hub, Refusal};
use axum::body::Body;
use axum::extract::{ConnectInfo, OriginalUri};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, FORWARDED, HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN,
    SEC_WEBSOCKET_PROTOCOL, VIA,
};
use http::request::Parts;
use http::{Uri, Version};

/// The browser itself says with this header where a request comes from, and no page can set it.
/// Browsers send it over https and to loopback addresses. Not all of them send it with WebSockets.
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// A proxy shows itself by these headers, which http has no names for.
static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// This type says which pages of other origins may listen, send and connect.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origins {
    /// The server accepts only pages that it served itself.
    #[default]
    Same,
    /// The server accepts these origins as well, each as a browser writes it:
    /// `https://app.example`.
    List(Vec<String>),
    /// The server accepts any origin, without credentials.
    Any,
}

/// This type says which clients may `POST /publish`.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum Publishers {
    /// No client may publish: the route answers `forbidden`.
    #[default]
    NoOne,
    /// Every client that reaches the server may publish.
    Anybody,
    /// Clients that address the server as `localhost` or by an IP address may publish. They must
    /// come through no proxy that shows itself. This is for servers on a loopback address. A
    /// foreign site may point its own name here (DNS rebinding), and its page would be same-origin.
    /// The name in the request distinguishes it.
    Local,
    /// Clients that know the token may publish.
    Token(Arc<str>),
}

impl std::fmt::Debug for Publishers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Publishers::NoOne => "NoOne",
            Publishers::Anybody => "Anybody",
            Publishers::Local => "Local",
            Publishers::Token(_) => "Token(…)",
        })
    }
}

/// Returns whether the request can only come from this machine, if the server listens on a loopback
/// address. True excludes a page of a foreign site whose own name leads here (DNS rebinding), and a
/// proxy that shows itself.
pub fn is_local(parts: &Parts) -> bool {
    is_addressed_locally(parts) && !came_through_a_proxy(parts)
}

/// Returns the host that the request names, without a port and in lower case. An IPv6 address has
/// no brackets.
pub fn addressed_host(parts: &Parts) -> Option<Cow<'_, str>> {
    // HTTP/2 has the name in the target (RFC 9113, section 8.3.1), HTTP/1.1 in a header (RFC 9112,
    // section 3.2).
    if let Some(authority) = parts.uri.authority() {
        return Some(bare_host(authority.host()));
    }
    let text = parts.headers.get(HOST)?.as_bytes();
    match plain_host(text) {
        Some(host) => Some(bare_host(host)),
        None => {
            let authority = http::uri::Authority::try_from(text).ok()?;
            Some(bare_host(authority.host()).into_owned().into())
        }
    }
}

/// Returns the host without brackets and in lower case.
fn bare_host(host: &str) -> Cow<'_, str> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        true => host.to_ascii_lowercase().into(),
        false => host.into(),
    }
}

/// Returns the host in `live.example:8080`, as nearly every `Host` header has it. Where this
/// returns `None`, the text may still be a host. A parser of URLs must then read it, which copies
/// it.
fn plain_host(text: &[u8]) -> Option<&str> {
    let text = str::from_utf8(text).ok()?;
    let (host, port) = match text.bytes().position(|byte| byte == b':') {
        Some(colon) => (&text[..colon], &text[colon + 1..]),
        None => (text, ""),
    };
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'-';
    let is_plain = !host.is_empty() && host.bytes().all(is_name) && port.bytes().all(|byte| byte.is_ascii_digit());
    is_plain.then_some(host)
}

/// Returns whether the request names the server in a way that no foreign site's name can.
fn is_addressed_locally(parts: &Parts) -> bool {
    addressed_host(parts).is_some_and(|host| host == "localhost" || host.parse::<IpAddr>().is_ok())
}

/// Returns whether a proxy shows itself. The client behind it need not be on this machine. Not all
/// proxies do, but nginx does, because it speaks HTTP/1.0 by default.
pub fn came_through_a_proxy(parts: &Parts) -> bool {
    let signs = [&FORWARDED, &VIA, &X_FORWARDED_FOR, &X_REAL_IP];
    parts.version < http::Version::HTTP_11 || signs.iter().any(|sign| parts.headers.contains_key(*sign))
}

/// The transports need these options besides the hub.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Options {
    /// Says which foreign pages the server accepts.
    pub origins: Origins,
    /// Says which clients may publish over HTTP.
    pub publishers: Publishers,
}

impl Options {
    /// Returns the same options with other origins.
    pub fn with_origins(mut self, origins: Origins) -> Self {
        self.origins = origins;
        self
    }

    /// Returns the same options with other publishers.
    pub fn with_publishers(mut self, publishers: Publishers) -> Self {
        self.publishers = publishers;
        self
    }
}

/// This is the scheme by which a client reached the server, where that is known. The request's
/// extensions hold it if a trusted proxy reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClientScheme {
    /// The client uses `http`, also for `ws`.
    Http,
    /// The client uses `https`, also for `wss`.
    Https,
}

impl ClientScheme {
    /// Returns the scheme as a URL has it.
    pub fn as_str(self) -> &'static str {
        match self {
            ClientScheme::Http => "http",
            ClientScheme::Https => "https",
        }
    }

    /// Returns the scheme of a request: the one that a trusted proxy reports, else `https` if the
    /// request's own target has it. A target with `http` means nothing, because behind a proxy that
    /// ends TLS every target may have it.
    pub fn of(uri: &http::Uri, extensions: &http::Extensions) -> Option<Self> {
        let from_proxy = extensions.get::<ClientScheme>().copied();
        from_proxy.or_else(|| (uri.scheme() == Some(&http::uri::Scheme::HTTPS)).then_some(ClientScheme::Https))
    }
}

/// An origin is the scheme, host and port of a page, as browsers compare them (RFC 6454).
#[derive(Debug, Clone, Copy)]
struct WebOrigin<'a> {
    scheme: &'a str,
    host: &'a str,
    /// Holds the scheme's own port where the text has none.
    port: u16,
}

impl<'a> WebOrigin<'a> {
    /// Reads an origin like `https://live.example:8443`. Returns `None` if the text is no origin of
    /// a page that was served over HTTP.
    fn parse(text: &'a str) -> Option<Self> {
        let (scheme, authority) = text.split_once("://")?;
        Self::of(scheme, authority)
    }

    /// Returns the origin of pages that `scheme` and `authority` (a `Host`) lead to.
    fn of(scheme: &'a str, authority: &'a str) -> Option<Self> {
        let own_port = match scheme {
            _ if scheme.eq_ignore_ascii_case("https") => 443,
            _ if scheme.eq_ignore_ascii_case("http") => 80,
            _ => return None,
        };
        let end = match authority.strip_prefix('[') {
            // An IPv6 address holds colons.
            Some(rest) => rest.find(']')? + 2,
            None => authority.find(':').unwrap_or(authority.len()),
        };
        let (host, port) = authority.split_at(end);
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => own_port,
            Some("") => own_port,
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok()?,
            _ => return None,
        };
        (!host.is_empty() && !host.contains(['/', '@', '?', '#'])).then_some(Self { scheme, host, port })
    }

    fn is_same(self, other: WebOrigin<'_>) -> bool {
        let ipv6 = |host: &str| host.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok();
        let same_host =
            self.host.eq_ignore_ascii_case(other.host) || ipv6(self.host).is_some_and(|ip| ipv6(other.host) == Some(ip));
        self.scheme.eq_ignore_ascii_case(other.scheme) && same_host && self.port == other.port
    }
}

/// This type says what a request's `Origin` means.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// The request has no origin, or it is the server's own.
    Ours,
    /// The origin is a foreign one that the server allows.
    Allowed(HeaderValue),
    /// The server allows any origin.
    Any,
}

impl Origins {
    /// Checks a request's `Origin` header against the server that the request names, and against
    /// the list.
    ///
    /// Scheme, host and port count. A text may name the scheme's own port or leave it out. The
    /// client's scheme may be unknown, as behind a proxy that ends TLS and does not report it. The
    /// check then takes the page's own scheme. A proxy may have replaced `Host`, so the check
    /// accepts the browser's `Sec-Fetch-Site` as well. It does not read `X-Forwarded-Host`.
    /// `authority` is that of the request's target, which goes before `Host`.
    ///
    /// # Errors
    /// `forbidden`.
    pub fn check(&self, headers: &HeaderMap, authority: Option<&str>, scheme: Option<ClientScheme>) -> Result<Origin, Refusal> {
        let Some(origin) = headers.get(ORIGIN) else {
            return Ok(Origin::Ours);
        };
        // A browser sends one origin, so a request with two comes from no page.
        let text = match only(headers, &ORIGIN) {
            Ok(_) => origin.to_str().unwrap_or_default(),
            Err(_) => {
                return Err(Refusal::forbidden(
                    "this request has several 'Origin' headers: a page has one",
                ));
            }
        };
        if headers.get(FETCH_SITE).is_some_and(|site| site == "same-origin") {
            return Ok(Origin::Ours);
        }
        // An origin without a host ("null", of sandboxed pages and files) is never the server's
        // own.
        let page = WebOrigin::parse(text);
        let host = authority.or_else(|| headers.get(HOST).and_then(|host| host.to_str().ok()));
        if let (Some(page), Some(host)) = (page, host)
            && let Some(server) = WebOrigin::of(scheme.map_or(page.scheme, |scheme| scheme.as_str()), host)
            && page.is_same(server)
        {
            return Ok(Origin::Ours);
        }
        let is_listed = |allowed: &String| {
            let same = page
                .zip(WebOrigin::parse(allowed))
                .is_some_and(|(page, allowed)| page.is_same(allowed));
            same || allowed.eq_ignore_ascii_case(text)
        };
        match self {
            Origins::Any => Ok(Origin::Any),
            Origins::List(list) if list.iter().any(is_listed) => Ok(Origin::Allowed(origin.clone())),
            _ => Err(Refusal::forbidden(
                "pages of this origin are not allowed: let the proxy in between, if there is one, pass 'Host' and, if it is trusted, the right 'X-Forwarded-Proto' on, or add the origin to 'origins' in the server's configuration",
            )),
        }
    }
}

/// Bounds the head of a request on Airwave's own server, in bytes.
pub const MAX_HEAD: usize = 16 << 10;
/// Bounds a line of the head for the proxies that it comes through: nginx takes 8 KiB.
const MAX_LINE: usize = 8 << 10;
/// Bounds the number of headers in the head.
const MAX_HEADERS: usize = 100;
/// Leaves room for bytes that a proxy on another way may add.
const SPARE: usize = 256;

/// Checks that the request still fits when a client comes back with a `Last-Event-ID` of `cursor`
/// bytes. A browser's `EventSource` does so, and a 431 is final for it.
///
/// # Errors
/// `bad-request`.
pub fn check_can_come_back(parts: &Parts, cursor: usize) -> Result<(), Refusal> {
    let header = |name: usize, value: usize| name + value + if parts.version > Version::HTTP_11 { 32 } else { 4 };
    let with_it: usize = parts
        .headers
        .iter()
        .filter(|(name, _)| *name != "last-event-id")
        .map(|(name, value)| header(name.as_str().len(), value.len()))
        .sum();
    let line = parts.extensions.get::<OriginalUri>().map_or(&parts.uri, |uri| &uri.0);
    let line = line.path_and_query().map_or(0, |target| target.as_str().len());
    let head = line + 32 + with_it + header("last-event-id".len(), cursor);
    let headers = 1 + parts.headers.len();
    if head + SPARE > MAX_HEAD || cursor + SPARE > MAX_LINE || headers > MAX_HEADERS {
        return Err(Refusal::bad_request(format!(
            "this stream could not come back: with the cursor of its channels a request would have {head} bytes of head and {headers} headers; \
             at most {MAX_HEAD} and {MAX_HEADERS} are taken, and a cursor of {MAX_LINE}: name fewer channels, open several streams, or use '/socket'"
        )));
    }
    Ok(())
}

/// Returns the request as a handler sees it.
pub fn connect_request(parts: &Parts, transport: TransportName) -> ConnectRequest {
    let mut headers: Vec<(String, String)> = parts
        .headers
        .iter()
        .filter_map(|(name, value)| Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned())))
        .collect();
    if !parts.headers.contains_key(AUTHORIZATION)
        && let Some(token) = token_in_subprotocol(&parts.headers)
    {
        headers.push((AUTHORIZATION.as_str().to_owned(), format!("Bearer {token}")));
    }
    let mut request = ConnectRequest::new(transport)
        .with_peer(peer(parts))
        .with_query(parts.uri.query().unwrap_or_default());
    request.headers = headers;
    request
}

/// Returns the token of a browser's WebSocket, which cannot send an `Authorization` header. The
/// browser offers `airwave.bearer.TOKEN` among its subprotocols, with TOKEN in base64url. A query
/// would show the token to every log on the way.
fn token_in_subprotocol(headers: &HeaderMap) -> Option<String> {
    let offered = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter();
    let encoded = offered
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .find_map(|protocol| protocol.trim().strip_prefix("airwave.bearer."))?;
    let token = String::from_utf8(URL_SAFE_NO_PAD.decode(encoded).ok()?).ok()?;
    // The token holds only visible characters, as in the header that it stands for.
    token.bytes().all(|byte| byte.is_ascii_graphic()).then_some(token)
}

/// Returns the address of the other end, where the server reports it (`ConnectInfo`).
pub(crate) fn peer(parts: &Parts) -> Option<IpAddr> {
    parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip())
}

/// Returns the path by which the client reached this URL, whatever prefix the application
/// mounted the server under.
pub fn path_as_seen(parts: &Parts) -> String {
    parts
        .extensions
        .get::<OriginalUri>()
        .map_or_else(|| parts.uri.path(), |uri| uri.0.path())
        .to_owned()
}

/// Reads the name at the end of a channel's URL.
///
/// # Errors
/// `bad-request`.
pub fn channel_name(text: &str) -> Result<ChannelName, Refusal> {
    Ok(ChannelName::new(text)?)
}

/// Returns all values of a query parameter, decoded, in order.
///
/// # Errors
/// `bad-request`: not UTF-8.
pub fn query_values(parts: &Parts, wanted: &str) -> Result<Vec<String>, Refusal> {
    let query = parts.uri.query().unwrap_or_default();
    let mut values = Vec::new();
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if name == wanted {
            let decoded = percent_encoding::percent_decode_str(value).decode_utf8();
            values.push(
                decoded
                    .map_err(|_| Refusal::bad_request(format!("the parameter '{wanted}' is not UTF-8")))?
                    .into_owned(),
            );
        }
    }
    Ok(values)
}

/// Returns the one value of a query parameter.
///
/// # Errors
/// `bad-request`: it stands there more than once, or is not UTF-8.
pub fn query_value(parts: &Parts, wanted: &str) -> Result<Option<String>, Refusal> {
    let mut values = query_values(parts, wanted)?;
    match values.len() {
        0 | 1 => Ok(values.pop()),
        n => Err(Refusal::bad_request(format!(
            "the parameter '{wanted}' is given {n} times; give it once"
        ))),
    }
}

/// Refuses a request with query parameters that neither this URL nor a handler knows. So the client
/// notices a misspelt one.
///
/// # Errors
/// `bad-request`, with the names that are known.
pub fn check_query(hub: &Hub, parts: &Parts, known: &[&str]) -> Result<(), Refusal> {
    let query = parts.uri.query().unwrap_or_default();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let name = pair.split_once('=').map_or(pair, |(name, _)| name);
        let of_a_handler = || hub.query_parameters().any(|parameter| parameter == "*" || parameter == name);
        if known.contains(&name) || of_a_handler() {
            continue;
        }
        let name: String = percent_encoding::percent_decode_str(name)
            .decode_utf8_lossy()
            .chars()
            .take(64)
            .collect();
        let known: Vec<&str> = known.iter().copied().chain(hub.query_parameters()).collect();
        return Err(Refusal::bad_request(match known.as_slice() {
            [] => format!("the query parameter '{name}' is not known: this URL takes none"),
            known => format!(
                "the query parameter '{name}' is not known: this URL takes {}",
                known.join(", ")
            ),
        }));
    }
    Ok(())
}

/// Returns whether the client wants to see heartbeats: `?heartbeat=event`.
///
/// # Errors
/// `bad-request`: another value.
pub fn wants_visible_heartbeat(parts: &Parts) -> Result<bool, Refusal> {
    match query_value(parts, "heartbeat")?.as_deref() {
        None => Ok(false),
        Some("event") => Ok(true),
        Some(_) => Err(Refusal::bad_request("'heartbeat' can only be 'event'")),
    }
}

/// Returns whether the client wants to receive the members of the channel: `?presence=true`.
///
/// # Errors
/// `bad-request`: another value.
pub fn wants_presence(parts: &Parts) -> Result<bool, Refusal> {
    match query_value(parts, "presence")?.as_deref() {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(Refusal::bad_request("'presence' can only be 'true' or 'false'")),
    }
}

/// Returns the one value of a header, or `None` if it is absent. Such a header means nothing if it
/// stands there twice.
///
/// # Errors
/// `bad-request`: it is given more than once.
pub fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a HeaderValue>, Refusal> {
    let mut values = headers.get_all(name).iter();
    let value = values.next();
    match values.count() {
        0 => Ok(value),
        more => Err(Refusal::bad_request(format!(
            "the header '{name}' is given {} times; give it once",
            more + 1
        ))),
    }
}

/// Checks that a request names one host, as every version of HTTP demands it. HTTP/1.1 names it in
/// a `Host` header (RFC 9112, section 3.2). HTTP/2 names it in `:authority` or the header (RFC
/// 9113, section 8.3.1). HTTP/1.0 perhaps does not name it at all.
///
/// # Errors
/// `bad-request`.
pub fn check_host(version: Version, uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(host) = only(headers, &HOST)? else {
        let named = version < Version::HTTP_11 || (version > Version::HTTP_11 && uri.authority().is_some());
        return match named {
            true => Ok(()),
            false => Err(Refusal::bad_request("this request names no host: send a 'Host' header")),
        };
    };
    if !is_host(host.as_bytes()) {
        return Err(Refusal::bad_request(
            "the header 'Host' is a name or an IP address, with a port if it is not the scheme's own: live.example:8080",
        ));
    }
    // An absolute target of HTTP/1.1 goes before the header, whatever the header says.
    let differs = |authority: &http::uri::Authority| !authority.as_str().as_bytes().eq_ignore_ascii_case(host.as_bytes());
    if version > Version::HTTP_11 && uri.authority().is_some_and(differs) {
        return Err(Refusal::bad_request(
            "the header 'Host' names another host than ':authority': send one of them",
        ));
    }
    Ok(())
}

/// Returns whether a `Host` header may hold this text (RFC 9110, section 7.2). The text may be
/// empty.
fn is_host(text: &[u8]) -> bool {
    if text.is_empty() || plain_host(text).is_some() {
        return true;
    }
    let Ok(authority) = http::uri::Authority::try_from(text) else {
        return false;
    };
    let text = authority.as_str();
    let port = match text.rsplit_once(']') {
        Some((_, port)) => port,
        None => text.find(':').map_or("", |colon| &text[colon..]),
    };
    let digits = port.strip_prefix(':').unwrap_or(port);
    !text.contains('@') && !authority.host().is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// Returns the text of a header, or `None` if it is absent or empty.
///
/// # Errors
/// `bad-request`: it is given more than once, or holds other than visible ASCII characters.
pub fn header_text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Refusal> {
    match only(headers, name)?.map(HeaderValue::to_str) {
        None | Some(Ok("")) => Ok(None),
        Some(Ok(text)) => Ok(Some(text)),
        Some(Err(_)) => Err(Refusal::bad_request(format!(
            "the header '{name}' holds characters that are not visible ASCII"
        ))),
    }
}

/// Returns a JSON answer.
pub fn json_response(status: u16, body: String) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Returns a refusal over plain HTTP. With `wrong-transport`, `url` names where the client goes
/// instead.
pub fn refusal_response(refusal: &Refusal, url: Option<&str>) -> Response {
    airwave_core::response::refused(refusal, url)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(host: &str, origin: Option<&str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            headers.insert(ORIGIN, origin.parse().unwrap());
        }
        headers
    }

    #[test]
    fn only_our_own_pages_and_listed_ones_are_let_in() {
        let listed = Origins::List(vec!["https://app.example".into(), "capacitor://localhost".into()]);
        let check = |origins: &Origins, origin| origins.check(&headers("live.example:8080", origin), None, None);
        assert_eq!(check(&Origins::Same, None), Ok(Origin::Ours));
        assert_eq!(check(&Origins::Same, Some("http://live.example:8080")), Ok(Origin::Ours));
        assert_eq!(check(&Origins::Same, Some("http://LIVE.example:8080")), Ok(Origin::Ours));
        for foreign in [
            "http://live.example",
            "http://live.example:80801",
            "null",
            "http://evil.example",
            "live.example:8080",
        ] {
            for origins in [&Origins::Same, &listed] {
                let refusal = check(origins, Some(foreign)).unwrap_err();
                assert!(refusal.message.contains("'origins'"), "it says which setting: {refusal}");
            }
            assert_eq!(check(&Origins::Any, Some(foreign)), Ok(Origin::Any));
        }
        for allowed in [
            "https://app.example",
            "https://APP.example",
            "https://app.example:443",
            "capacitor://localhost",
        ] {
            assert!(matches!(check(&listed, Some(allowed)), Ok(Origin::Allowed(_))), "{allowed}");
        }
        for foreign in [
            "http://app.example",
            "https://app.example:80",
            "https://app.example.evil.example",
        ] {
            assert!(check(&listed, Some(foreign)).is_err(), "{foreign}");
        }
        assert!(Origins::Same.check(&headers("", Some("http://")), None, None).is_err());

        // The proxy in front of the server names its upstream in `Host`.
        for (site, ours) in [
            ("same-origin", true),
            ("same-site", false),
            ("cross-site", false),
            ("none", false),
        ] {
            let mut headers = headers("10.0.0.7:8080", Some("https://live.example"));
            headers.insert(FETCH_SITE, site.parse().unwrap());
            assert_eq!(Origins::Same.check(&headers, None, None).is_ok(), ours, "{site}");
        }
    }

    proptest! {
        /// The plain reading finds the same host as a parser of URLs.
        #[test]
        fn a_plain_host_is_read_as_any_other(text in "[a-zA-Z0-9.:@%_\\[\\]-]{0,12}") {
            let parsed = http::uri::Authority::try_from(text.as_bytes());
            if let Some(host) = plain_host(text.as_bytes()) {
                prop_assert_eq!(parsed.as_ref().map(http::uri::Authority::host).ok(), Some(host));
            }
            let parts = http::Request::get("/").header(HOST, text.as_str()).body(()).unwrap().into_parts().0;
            let expected = parsed.ok().map(|parsed| {
                parsed.host().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase()
            });
            prop_assert_eq!(addressed_host(&parts).map(Cow::into_owned), expected);
        }
    }

    #[test]
    fn the_schemes_own_port_may_be_written_or_not() {
        for (host, origin, ours) in [
            ("live.example:443", "https://live.example", true),
            ("live.example", "https://live.example:443", true),
            ("live.example:80", "http://live.example", true),
            ("LIVE.example:443", "https://live.EXAMPLE", true),
            ("live.example:", "https://live.example", true),
            ("[::1]:443", "https://[::1]", true),
            ("[2001:db8:0::1]", "https://[2001:DB8::1]", true),
            ("[::1]:8080", "http://[::1]:8080", true),
            ("live.example:443", "http://live.example", false),
            ("live.example:80", "https://live.example", false),
            ("live.example:8443", "https://live.example", false),
            ("live.example", "https://live.example:8443", false),
            ("live.example", "https://live.example:80", false),
            ("live.example", "http://live.example:99999", false),
            ("live.example:99999", "http://live.example", false),
            ("live.example:+80", "http://live.example", false),
            ("[::1]", "http://[::2]", false),
            ("[::1]x", "http://[::1]", false),
            ("[::1", "http://[::1", false),
            ("evil@live.example", "http://live.example", false),
            ("localhost", "capacitor://localhost", false),
            ("", "https://", false),
        ] {
            let checked = Origins::Same.check(&headers(host, Some(origin)), None, None);
            assert_eq!(checked.is_ok(), ours, "{host} {origin}");
        }
    }

    #[test]
    fn the_scheme_counts_where_it_is_known() {
        use ClientScheme::{Http, Https};
        for (scheme, host, origin, ours) in [
            (Some(Https), "live.example", "https://live.example", true),
            (Some(Https), "live.example:443", "https://live.example", true),
            (Some(Https), "live.example:8443", "https://live.example:8443", true),
            (Some(Https), "live.example", "http://live.example", false),
            (Some(Https), "live.example:80", "http://live.example", false),
            (Some(Https), "live.example:8443", "http://live.example:8443", false),
            (Some(Http), "live.example", "http://live.example", true),
            (Some(Http), "live.example", "https://live.example", false),
            // The proxy ends TLS and does not report the scheme.
            (None, "live.example", "https://live.example", true),
            (None, "live.example", "http://live.example", true),
        ] {
            let checked = Origins::Same.check(&headers(host, Some(origin)), None, scheme);
            assert_eq!(checked.is_ok(), ours, "{scheme:?} {host} {origin}");
        }
        let of = |uri: &str, from_proxy: Option<ClientScheme>| {
            let mut request = http::Request::get(uri).body(()).unwrap();
            if let Some(from_proxy) = from_proxy {
                request.extensions_mut().insert(from_proxy);
            }
            ClientScheme::of(request.uri(), request.extensions())
        };
        assert_eq!(of("/channels/a", None), None);
        assert_eq!(of("https://live.example/channels/a", None), Some(Https));
        // The proxy speaks HTTP/2 to the server without TLS.
        assert_eq!(of("http://live.example/channels/a", None), None);
        assert_eq!(of("http://live.example/channels/a", Some(Https)), Some(Https));
    }

    #[test]
    fn the_target_goes_before_the_host_header() {
        let headers = headers("other.example", Some("https://live.example"));
        assert!(Origins::Same.check(&headers, Some("live.example"), None).is_ok());
        assert!(Origins::Same.check(&headers, None, None).is_err());
    }

    #[test]
    fn every_request_names_one_host() {
        let check = |version, target: &str, hosts: &[&str]| {
            let mut headers = HeaderMap::new();
            for host in hosts {
                headers.append(HOST, host.parse().unwrap());
            }
            check_host(version, &target.parse().unwrap(), &headers).is_ok()
        };
        for host in [
            "live.example",
            "live.example:8080",
            "LIVE.example:",
            "127.0.0.1:80",
            "[::1]",
            "[::1]:8080",
            "",
            "my_host",
        ] {
            assert!(check(Version::HTTP_11, "/", &[host]), "{host}");
            assert!(check(Version::HTTP_10, "/", &[host]), "{host}");
        }
        for host in [
            "live.example evil.example",
            "live.example, evil.example",
            "user@live.example",
            "live.example:80x",
            "live.example:8080:1",
            "live.example/x",
            "[::1",
            ":80",
            "a\tb",
        ] {
            assert!(!check(Version::HTTP_11, "/", &[host]), "{host}");
        }
        for version in [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2] {
            assert!(!check(version, "/", &["live.example", "live.example"]), "{version:?}");
            assert!(
                !check(version, "http://live.example/", &["live.example", "evil.example"]),
                "{version:?}"
            );
        }
        assert!(check(Version::HTTP_10, "/", &[]));
        assert!(!check(Version::HTTP_11, "/", &[]));
        assert!(!check(Version::HTTP_11, "http://live.example/", &[]));
        assert!(check(Version::HTTP_11, "http://live.example/", &["other.example"]));
        assert!(check(Version::HTTP_2, "http://live.example/", &[]));
        assert!(check(Version::HTTP_2, "http://live.example/", &["LIVE.example"]));
        assert!(!check(Version::HTTP_2, "http://live.example/", &["other.example"]));
        assert!(!check(Version::HTTP_2, "/", &[]));
    }

    #[test]
    fn a_page_has_one_origin() {
        let mut headers = headers("live.example", Some("http://live.example"));
        headers.append(ORIGIN, "http://evil.example".parse().unwrap());
        for origins in [Origins::Same, Origins::Any] {
            assert!(origins.check(&headers, None, None).is_err(), "{origins:?}");
        }
    }

    #[test]
    fn a_subprotocol_stands_for_the_header_that_a_browser_cannot_send() {
        let token = |offered: &'static str, header: Option<&'static str>| {
            let mut request = http::Request::new(());
            let headers = request.headers_mut();
            headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(offered));
            if let Some(header) = header {
                headers.insert(AUTHORIZATION, HeaderValue::from_static(header));
            }
            let request = connect_request(&request.into_parts().0, TransportName::WEBSOCKET);
            request.bearer_token().map(str::to_owned)
        };
        // The token is "a.b-c" in base64url.
        assert_eq!(token("airwave, airwave.bearer.YS5iLWM", None).as_deref(), Some("a.b-c"));
        assert_eq!(
            token("airwave,airwave.bearer.YS5iLWM", Some("Bearer header")).as_deref(),
            Some("header")
        );
        // The offers have padding, no base64, a line break, and nothing at all.
        for offered in [
            "airwave.bearer.YS5iLWM=",
            "airwave.bearer.?",
            "airwave.bearer.YQpi",
            "airwave",
            "airwave.bearer",
        ] {
            assert_eq!(token(offered, None), None, "{offered}");
        }
    }

    #[test]
    fn a_token_is_not_shown() {
        assert_eq!(format!("{:?}", Publishers::Token("hush-hush".into())), "Token(…)");
    }
}
