//! Who the client is behind trusted proxies: its address, and the scheme of the page's URL.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use airwave_transports::request::ClientScheme;
use http::HeaderMap;
use http::header::{AsHeaderName, FORWARDED};

/// The header in which trusted proxies name the client's address. The other one is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ClientIpHeader {
    /// `X-Forwarded-For`, with `X-Forwarded-Proto` for the scheme.
    #[default]
    XForwardedFor,
    /// `Forwarded` (RFC 7239), for both.
    Forwarded,
}

/// What the proxies say about one hop: who sent the request to them, and by which scheme.
#[derive(Debug, Default, PartialEq, Eq)]
struct Hop {
    /// `None`: the proxy does not tell, or it wrote no address (`unknown`, `_hidden`).
    address: Option<SocketAddr>,
    scheme: Option<ClientScheme>,
}

/// The client's address, and its scheme where a trusted proxy tells it.
///
/// Each proxy writes its entry to the right of the others. The entries are read from right to left
/// as far as trusted proxies wrote them. An entry without an address ends the search: the client is
/// then the proxy that wrote it, because what stands further to the left is the client's own word.
pub(super) fn client(
    headers: &HeaderMap,
    peer: SocketAddr,
    header: ClientIpHeader,
    trusts: &dyn Fn(IpAddr) -> bool,
) -> (SocketAddr, Option<ClientScheme>) {
    let mut client = peer;
    if !trusts(client.ip()) {
        return (client, None);
    }
    let hops = match header {
        ClientIpHeader::XForwardedFor => x_forwarded_for(headers),
        ClientIpHeader::Forwarded => forwarded(headers),
    };
    let (mut scheme, mut proxies) = (None, 0);
    for hop in hops.iter().rev() {
        scheme = hop.scheme.or(scheme);
        proxies += 1;
        let Some(address) = hop.address else { break };
        client = address;
        if !trusts(address.ip()) {
            break;
        }
    }
    if header == ClientIpHeader::XForwardedFor {
        // Most proxies write one value. Where each adds its own, the outermost trusted proxy
        // knows by which scheme the client came.
        let schemes = list(headers, "x-forwarded-proto");
        let outermost = schemes.len().saturating_sub(proxies.max(1));
        scheme = schemes.get(outermost).and_then(|text| scheme_of(text));
    }
    (client, scheme)
}

/// The entries of a comma-separated header, over all its lines. One that is not ASCII is `?`.
fn list(headers: &HeaderMap, name: impl AsHeaderName) -> Vec<&str> {
    let lines = headers.get_all(name).into_iter();
    let entries = lines.flat_map(|line| line.to_str().unwrap_or("?").split(','));
    entries.map(str::trim).filter(|entry| !entry.is_empty()).collect()
}

fn x_forwarded_for(headers: &HeaderMap) -> Vec<Hop> {
    let entries = list(headers, "x-forwarded-for").into_iter();
    let hop = |entry| Hop {
        address: address_of(entry),
        scheme: None,
    };
    entries.map(hop).collect()
}

/// The elements of `Forwarded`, over all its lines. A line that is malformed counts as one element
/// that tells nothing: a client could have opened a quotation that swallows what a proxy added.
fn forwarded(headers: &HeaderMap) -> Vec<Hop> {
    let mut hops = Vec::new();
    for line in headers.get_all(FORWARDED) {
        match line.to_str().ok().and_then(elements) {
            Some(elements) => hops.extend(elements),
            None => hops.push(Hop::default()),
        }
    }
    hops
}

/// `for=192.0.2.60;proto=http, for="[2001:db8::1]:4711"` (RFC 7239, section 4).
fn elements(line: &str) -> Option<Vec<Hop>> {
    let mut hops = Vec::new();
    let mut rest = line.trim();
    while !rest.is_empty() {
        let mut hop = Hop::default();
        let mut is_empty = true;
        loop {
            rest = rest.trim_start();
            // Empty pairs and empty elements are allowed, and mean nothing.
            if !rest.starts_with([';', ',']) && !rest.is_empty() {
                let (name, after) = rest.split_once('=')?;
                let (value, after) = value_of(after)?;
                if name.eq_ignore_ascii_case("for") {
                    hop.address = address_of(&value);
                } else if name.eq_ignore_ascii_case("proto") {
                    hop.scheme = scheme_of(&value);
                }
                rest = after.trim_start();
                is_empty = false;
            }
            match rest.strip_prefix(';') {
                Some(after) => rest = after,
                None => break,
            }
        }
        if !is_empty {
            hops.push(hop);
        }
        rest = match rest.strip_prefix(',') {
            Some(after) => after.trim_start(),
            None if rest.is_empty() => rest,
            None => return None,
        };
    }
    Some(hops)
}

/// A token or a quoted string at the beginning of `text`, and what follows it.
fn value_of(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([';', ',', ' ', '\t']).unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            _ => value.push(character),
        }
    }
    None
}

fn scheme_of(text: &str) -> Option<ClientScheme> {
    match text.to_ascii_lowercase().as_str() {
        // Some proxies name the scheme of a WebSocket's URL.
        "https" | "wss" => Some(ClientScheme::Https),
        "http" | "ws" => Some(ClientScheme::Http),
        _ => None,
    }
}

/// `203.0.113.7`, `203.0.113.7:51234`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:4711`; the
/// port may be hidden (`_port`, RFC 7239). The port is 0 where none is told.
fn address_of(text: &str) -> Option<SocketAddr> {
    let text = text.trim().trim_matches('"').trim();
    if let Some(address) = ip_of(text) {
        return Some(SocketAddr::new(address, 0));
    }
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            let address = ip_of(host).filter(|_| host.contains(':'))?;
            (address, rest)
        }
        None => {
            let colon = text.find(':')?;
            (IpAddr::V4(text[..colon].parse().ok()?), &text[colon..])
        }
    };
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => 0,
        Some(hidden) if hidden.starts_with('_') => 0,
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok()?,
        _ => return None,
    };
    Some(SocketAddr::new(host, port))
}

/// An address without a port; an IPv6 address may have a zone, and may hold an IPv4 address.
fn ip_of(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address.to_canonical());
    }
    let (address, _zone) = text.split_once('%')?;
    address.parse::<Ipv6Addr>().ok().map(IpAddr::V6)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROXY: &str = "127.0.0.1:9";

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, http::HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    fn seen(header: ClientIpHeader, lines: &[(&'static str, &str)], peer: &str) -> (String, Option<ClientScheme>) {
        let trusts = |address: IpAddr| address.is_loopback();
        let (address, scheme) = client(&headers(lines), peer.parse().unwrap(), header, &trusts);
        (address.ip().to_string(), scheme)
    }

    fn by_x(entries: &str) -> String {
        seen(ClientIpHeader::XForwardedFor, &[("x-forwarded-for", entries)], PROXY).0
    }

    fn by_forwarded(elements: &str) -> String {
        seen(ClientIpHeader::Forwarded, &[("forwarded", elements)], PROXY).0
    }

    #[test]
    fn an_entry_may_have_a_port_and_brackets() {
        for (entry, address) in [
            ("203.0.113.7", "203.0.113.7"),
            ("203.0.113.7:51234", "203.0.113.7"),
            ("  203.0.113.7:51234  ", "203.0.113.7"),
            ("\"203.0.113.7:51234\"", "203.0.113.7"),
            ("203.0.113.7:_hidden", "203.0.113.7"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:4711", "2001:db8::1"),
            ("[2001:DB8::1]:_p", "2001:db8::1"),
            ("fe80::1%eth0", "fe80::1"),
            ("::ffff:203.0.113.7", "203.0.113.7"),
            ("[::ffff:203.0.113.7]:80", "203.0.113.7"),
            ("198.51.100.1, 203.0.113.7:1, 127.0.0.2:80, [::1]:443", "203.0.113.7"),
            ("203.0.113.7,,", "203.0.113.7"),
        ] {
            assert_eq!(by_x(entry), address, "{entry}");
        }
        let (address, _) = client(
            &headers(&[("x-forwarded-for", "203.0.113.7:51234")]),
            PROXY.parse().unwrap(),
            ClientIpHeader::XForwardedFor,
            &|address| address.is_loopback(),
        );
        assert_eq!(address.port(), 51234);
    }

    #[test]
    fn an_entry_without_an_address_makes_the_proxy_the_client() {
        for entry in [
            "unknown",
            "_hidden",
            "nonsense",
            "203.0.113.7:port",
            "203.0.113.7:99999",
            "[203.0.113.7]",
            "[2001:db8::1",
            "[2001:db8::1]x",
            "203.0.113.7 198.51.100.1",
            "203.0.113.7/32",
        ] {
            assert_eq!(by_x(&format!("198.51.100.1, {entry}, 127.0.0.3")), "127.0.0.3", "{entry}");
        }
        assert_eq!(by_x("198.51.100.1, é"), "127.0.0.1");
    }

    #[test]
    fn entries_of_several_lines_are_one_list() {
        let lines = [
            ("x-forwarded-for", "198.51.100.1, 203.0.113.7"),
            ("x-forwarded-for", "127.0.0.2"),
        ];
        assert_eq!(seen(ClientIpHeader::XForwardedFor, &lines, PROXY).0, "203.0.113.7");
    }

    #[test]
    fn only_trusted_proxies_name_the_client() {
        let lines = [
            ("x-forwarded-for", "198.51.100.1"),
            ("forwarded", "for=198.51.100.1"),
            ("x-forwarded-proto", "https"),
        ];
        for header in [ClientIpHeader::XForwardedFor, ClientIpHeader::Forwarded] {
            let direct = seen(header, &lines, "203.0.113.9:1");
            assert_eq!(direct, ("203.0.113.9".to_owned(), None));
            assert_eq!(seen(header, &lines, PROXY).0, "198.51.100.1");
            assert_eq!(seen(header, &[], PROXY).0, "127.0.0.1");
        }
    }

    #[test]
    fn the_header_that_was_not_chosen_is_not_read() {
        let lines = [("x-forwarded-for", "198.51.100.1"), ("forwarded", "for=203.0.113.7")];
        assert_eq!(seen(ClientIpHeader::XForwardedFor, &lines, PROXY).0, "198.51.100.1");
        assert_eq!(seen(ClientIpHeader::Forwarded, &lines, PROXY).0, "203.0.113.7");
    }

    #[test]
    fn forwarded_is_read_as_rfc_7239_writes_it() {
        for (elements, address) in [
            ("for=203.0.113.7", "203.0.113.7"),
            ("For=203.0.113.7", "203.0.113.7"),
            ("for=\"203.0.113.7:51234\"", "203.0.113.7"),
            ("for=\"[2001:db8:cafe::17]:4711\"", "2001:db8:cafe::17"),
            ("for=\"[2001:db8:cafe::17]\"", "2001:db8:cafe::17"),
            ("for=\"203.0.113\\.7\"", "203.0.113.7"),
            ("for=203.0.113.7;proto=http;by=203.0.113.43", "203.0.113.7"),
            ("by=203.0.113.43 ; for=203.0.113.7 ; host=\"a,b;c=\\\"d\"", "203.0.113.7"),
            ("for=198.51.100.1, for=203.0.113.7, for=127.0.0.2", "203.0.113.7"),
            ("for=198.51.100.1,for=203.0.113.7;,,for=\"[::1]\"", "203.0.113.7"),
            ("for=198.51.100.1, for=unknown", "127.0.0.1"),
            ("for=198.51.100.1, for=_hidden;proto=https", "127.0.0.1"),
            ("for=198.51.100.1, proto=https", "127.0.0.1"),
            // A client opens a quotation, and a proxy adds its element behind it.
            ("for=\"198.51.100.1, for=203.0.113.7", "127.0.0.1"),
            ("for=\"198.51.100.1\"x, for=203.0.113.7", "127.0.0.1"),
            ("nonsense", "127.0.0.1"),
            ("", "127.0.0.1"),
        ] {
            assert_eq!(by_forwarded(elements), address, "{elements}");
        }
    }

    #[test]
    fn the_scheme_is_what_the_outermost_trusted_proxy_tells() {
        use ClientScheme::{Http, Https};
        for (hops, proto, scheme) in [
            ("203.0.113.7", "https", Some(Https)),
            ("203.0.113.7", "HTTP", Some(Http)),
            ("203.0.113.7", "wss", Some(Https)),
            ("203.0.113.7", "gopher", None),
            // One value for several proxies, and a value of each.
            ("203.0.113.7, 127.0.0.2", "https", Some(Https)),
            ("203.0.113.7, 127.0.0.2", "https, http", Some(Https)),
            // The first is the client's own word.
            ("203.0.113.7", "http, https", Some(Https)),
        ] {
            let lines = [("x-forwarded-for", hops), ("x-forwarded-proto", proto)];
            assert_eq!(seen(ClientIpHeader::XForwardedFor, &lines, PROXY).1, scheme, "{hops} {proto}");
        }
        assert_eq!(
            seen(ClientIpHeader::XForwardedFor, &[("x-forwarded-proto", "https")], PROXY).1,
            Some(Https)
        );
        for (elements, scheme) in [
            ("for=203.0.113.7;proto=https", Some(Https)),
            ("for=203.0.113.7;proto=\"https\", for=127.0.0.2;proto=http", Some(Https)),
            ("for=198.51.100.1;proto=http, for=203.0.113.7;proto=https", Some(Https)),
            ("for=203.0.113.7", None),
            ("proto=https", Some(Https)),
        ] {
            let lines = [("forwarded", elements), ("x-forwarded-proto", "http")];
            assert_eq!(seen(ClientIpHeader::Forwarded, &lines, PROXY).1, scheme, "{elements}");
        }
    }
}
