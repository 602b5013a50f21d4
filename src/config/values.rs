//! What a node is told, as values.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use airwave_core::rule::{Limits, Rule, Rules};

use super::broker::BrokerConfig;
use super::origin::{Origin, Origins};
use super::rules;
use crate::listener::ClientIpHeader;

/// Everything that a node is told before it starts.
///
/// [`Config::default`] is the zero-config server: one rule for every channel, loopback only. Fields
/// may be changed; [`Config::check`] then says whether they still go together, and a server asks it
/// before it starts.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Config {
    /// The address to listen on. Default `127.0.0.1:8080`.
    pub listen: SocketAddr,
    /// The broker behind the channels. Default `memory:`.
    pub broker: BrokerConfig,
    /// Which channels there are. First match wins.
    pub rules: Rules,
    /// What this node allows.
    pub limits: Limits,
    /// Whose pages may listen and send besides the server's own.
    pub origins: AllowedOrigins,
    /// What backends show to publish over HTTP; `None`: anyone who reaches the server may, which
    /// [`Config::check`] allows only where [`Config::is_local`] holds or `publish_open` says so.
    pub publish_token: Option<Secret>,
    /// Anyone who reaches the server may publish, though it can be reached from other machines. If
    /// that is false and there is no token, no client may publish over HTTP there, and the file
    /// must say so (`open = false`). Then clients on this machine may not publish either.
    pub publish_open: bool,
    /// The host names by which the server may be addressed, in lower case and without a port; `*`
    /// is any. A server on a loopback address answers at `localhost`, at a loopback address and at
    /// these. Any other server that has some answers at these, `localhost` and IP addresses. If
    /// others than this machine's are named, other machines reach the server whatever address it
    /// listens on.
    pub hosts: Vec<String>,
    /// The peers (reverse proxies) whose word about the client's address is taken. If there are
    /// any, other machines reach the server whatever address it listens on.
    pub trusted_proxies: Vec<Network>,
    /// The header in which they name the client. Default `x-forwarded-for`.
    pub client_ip_header: ClientIpHeader,
    /// Whether the page that shows the channels live is served. Default: as [`Config::is_local`].
    pub live_page: bool,
    /// How the log is written.
    pub log: LogConfig,
    /// How long a node that shuts down gives its connections. Default 10 s.
    pub drain: Duration,
    /// How long before a drain `/readyz` fails already, while everything else goes on, so that load
    /// balancers send no more clients. Default 0.
    pub drain_delay: Duration,
    /// The file that was read.
    pub(super) file: Option<Arc<str>>,
    pub(super) provenance: Origins,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080),
            broker: BrokerConfig::default(),
            rules: rules::zero_config(),
            limits: Limits::default(),
            origins: AllowedOrigins::default(),
            publish_token: None,
            publish_open: false,
            hosts: Vec::new(),
            trusted_proxies: Vec::new(),
            client_ip_header: ClientIpHeader::default(),
            live_page: true,
            log: LogConfig::default(),
            drain: Duration::from_secs(10),
            drain_delay: Duration::ZERO,
            file: None,
            provenance: Origins::default(),
        }
    }
}

impl Config {
    /// Returns whether the configuration forbids publishing over HTTP without a token, even from
    /// this machine.
    pub(crate) fn publish_is_closed(&self) -> bool {
        !self.publish_open && self.provenance.is_set("publish.open")
    }

    /// Whether only this machine can reach the server: it listens on loopback, and no proxy is said
    /// to stand before it.
    pub fn is_local(&self) -> bool {
        // `*` says nothing of a proxy: with it a server is as open as it was before there was
        // `hosts`.
        self.listens_on_loopback()
            && self.trusted_proxies.is_empty()
            && self.hosts.iter().all(|host| host == "*" || is_loopback_name(host))
    }

    pub(crate) fn listens_on_loopback(&self) -> bool {
        self.listen.ip().to_canonical().is_loopback()
    }

    /// Whether `peer` is a proxy whose word about the client's address is taken.
    pub fn trusts(&self, peer: IpAddr) -> bool {
        self.trusted_proxies.iter().any(|network| network.contains(peer))
    }

    /// The file that was read, as it was named.
    pub fn file(&self) -> Option<&str> {
        self.file.as_deref()
    }

    /// Where the value of a setting (`listen`, `limits.idle`) comes from.
    pub fn origin(&self, key: &str) -> Origin {
        self.provenance.get(key)
    }

    /// Puts the rules of `other` before these. They keep their origins; nothing else of `other` is
    /// taken.
    pub fn put_rules_first(&mut self, other: &Config) {
        let both = other.rules.iter().chain(self.rules.iter());
        let rules = Rules::new(both.map(|rule| Rule::clone(rule)));
        self.provenance.put_rules_first(&other.provenance, other.rules.iter().count());
        self.rules = rules;
    }

    /// Where the rule at `index` stands.
    pub fn rule_origin(&self, index: usize) -> Origin {
        self.rule_field_origin(index, "")
    }

    pub(super) fn rule_field_origin(&self, index: usize, field: &str) -> Origin {
        self.provenance.get(&format!("channels.{index}.{field}"))
    }

    /// The place to look at for a field: where it was written, else where its rule stands.
    pub(super) fn rule_field_place(&self, index: usize, field: &str) -> Origin {
        match self.rule_field_origin(index, field) {
            place @ Origin::File { .. } => place,
            _ => self.rule_origin(index),
        }
    }

    pub(super) fn file_start(&self) -> Origin {
        match &self.file {
            Some(file) => Origin::File {
                file: file.clone(),
                line: 1,
                column: 1,
            },
            None => Origin::Default,
        }
    }

    pub(super) fn is_zero_config(&self) -> bool {
        self.file.is_none() && self.rules.iter().eq(rules::zero_config().iter())
    }
}

/// Whether a host's name leads to the machine that it is used on: `localhost` and loopback
/// addresses.
pub(crate) fn is_loopback_name(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.to_canonical().is_loopback())
}

/// Whose pages may listen and send, besides the server's own.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum AllowedOrigins {
    /// Everybody's, without credentials.
    Any,
    /// These, as browsers send them (`https://app.example`). None: only the server's own.
    Listed(Vec<String>),
}

impl Default for AllowedOrigins {
    fn default() -> Self {
        AllowedOrigins::Listed(Vec::new())
    }
}

/// A text that is never shown: not by `Debug`, not in a log.
#[derive(Clone)]
pub struct Secret(Arc<str>);

impl Secret {
    /// Keeps `text`.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The text itself: to send it on, never to show it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether `given` is the secret. How long it takes does not tell how much of it is right.
    pub fn matches(&self, given: &[u8]) -> bool {
        let secret = self.0.as_bytes();
        let differences = secret
            .iter()
            .zip(given)
            .fold(0u8, |acc, (a, b)| std::hint::black_box(acc | (a ^ b)));
        secret.len() == given.len() && differences == 0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Addresses that begin alike: `10.0.0.0/8`, or a single address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    /// The addresses whose first `bits` are those of `address`; `None` for `bits`: this address
    /// alone. `None` if an address of that kind has not so many bits.
    pub fn new(address: IpAddr, bits: Option<u8>) -> Option<Self> {
        let all = Self::bits_of(address);
        let bits = bits.unwrap_or(all);
        (bits <= all).then_some(Self { address, bits })
    }

    fn bits_of(address: IpAddr) -> u8 {
        if address.is_ipv4() { 32 } else { 128 }
    }

    /// Whether `address` is one of them. An IPv4 address that came in over an IPv6 socket counts as
    /// the IPv4 address that it is.
    pub fn contains(&self, address: IpAddr) -> bool {
        let number = |address: IpAddr| match address {
            IpAddr::V4(v4) => u128::from(u32::from(v4)),
            IpAddr::V6(v6) => u128::from(v6),
        };
        let (own, other) = (self.address.to_canonical(), address.to_canonical());
        // The network itself may have been written as an IPv4 address in IPv6 clothes.
        let bits = if own.is_ipv4() && self.address.is_ipv6() {
            self.bits.saturating_sub(96)
        } else {
            self.bits
        };
        let rest = Self::bits_of(own) - bits;
        own.is_ipv4() == other.is_ipv4() && (number(own) ^ number(other)).checked_shr(rest.into()).unwrap_or(0) == 0
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.bits == Self::bits_of(self.address) {
            self.address.fmt(f)
        } else {
            write!(f, "{}/{}", self.address, self.bits)
        }
    }
}

/// How the log is written.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogConfig {
    /// For people or for machines.
    pub format: LogFormat,
    /// A level (`info`), or directives as `RUST_LOG` has them (`info,airwave=debug`).
    pub level: String,
}

impl Default for LogConfig {
    /// Text, `info`.
    fn default() -> Self {
        Self {
            format: LogFormat::Text,
            level: "info".into(),
        }
    }
}

/// Lines for people or for machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LogFormat {
    /// Text, coloured on a terminal.
    Text,
    /// One JSON object a line.
    Json,
}
