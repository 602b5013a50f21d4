//! `airwave.toml`, then environment, then flags: one checked [`Config`] before anything starts.
//!
//! ```
//! use airwave::config::{Config, Sources};
//!
//! let file = r#"
//!     [[channels]]
//!     match = "orders/{id}"
//!     use_case = "job-status"
//! "#;
//! let config = Config::load(&Sources::of_file("airwave.toml", file)).unwrap();
//! assert_eq!(config.rules.iter().count(), 1);
//! ```
//!
//! [`Config::load`] reads nothing but its arguments. What is wrong is told all at once, each with
//! its place (file, line and column; variable; flag) and a sentence that says what to write
//! instead. Every effective value knows its [`Origin`].

mod broker;
mod env;
mod file;
mod keys;
mod origin;
mod rules;
mod settings;
mod value;

use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use airwave_core::event::Invalid;
use airwave_core::rule::{Limits, Pattern, Rule, Rules, SendPolicy};

pub use crate::listener::ClientIpHeader;
pub use broker::{BrokerConfig, BrokerKind, BrokerUrl};
pub use keys::{Key, keys, reference, rule_keys};
pub use origin::{ConfigError, Origin, Problem};
pub use settings::Shown;

use origin::Origins;
use settings::SETTINGS;
use value::Given;

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
    file: Option<Arc<str>>,
    provenance: Origins,
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

/// Whether a host's name leads to the machine that it is used on: `localhost` and loopback
/// addresses.
pub(crate) fn is_loopback_name(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.to_canonical().is_loopback())
}

/// What [`Config::load`] reads: each later source overrides the one before.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct Sources {
    /// A file's name (for messages) and text.
    pub file: Option<(String, String)>,
    /// Variables; those that do not begin with `AIRWAVE_` are left alone. Usually
    /// `std::env::vars_os().collect()`.
    pub environment: Vec<(OsString, OsString)>,
    /// Flags of the command line.
    pub flags: Flags,
}

impl Sources {
    /// One file and nothing else.
    pub fn of_file(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            file: Some((name.into(), text.into())),
            ..Self::default()
        }
    }

    /// The same with this process's variables (`AIRWAVE_LISTEN`, `AIRWAVE_BROKER_URL`, …) over it.
    pub fn with_environment(mut self) -> Self {
        self.environment = std::env::vars_os().collect();
        self
    }
}

/// Settings that the command line can give, as they were typed.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// `--listen`
    pub listen: Option<String>,
    /// `--broker`
    pub broker: Option<String>,
    /// `--log-format`
    pub log_format: Option<String>,
    /// `--log`
    pub log_level: Option<String>,
    /// `--live-page`
    pub live_page: Option<String>,
}

impl Flags {
    fn apply(&self, config: &mut Config) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (flag, text) in [
            ("--listen", &self.listen),
            ("--broker", &self.broker),
            ("--log-format", &self.log_format),
            ("--log", &self.log_level),
            ("--live-page", &self.live_page),
        ] {
            let setting = SETTINGS.iter().find(|setting| setting.about.flag == Some(flag));
            let (Some(text), Some(setting)) = (text, setting) else {
                continue;
            };
            match (setting.set)(config, Given::Text(text)) {
                Ok(()) => config.provenance.set(setting.key, Origin::Flag(flag)),
                Err(message) => problems.push(Problem {
                    origin: Origin::Flag(flag),
                    message,
                }),
            }
        }
        problems
    }
}

impl Config {
    /// Reads and checks. Reads nothing but `sources`.
    ///
    /// # Errors
    /// Everything that is wrong. Values that do not go together are looked for only once each of
    /// them could be read.
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let mut config = Config::default();
        let mut problems = Vec::new();
        if let Some((name, text)) = &sources.file {
            problems.extend(file::apply(&mut config, name, text));
        }
        problems.extend(env::apply(&mut config, &sources.environment));
        problems.extend(sources.flags.apply(&mut config));
        if !problems.is_empty() {
            return Err(ConfigError::of(problems));
        }
        if !config.provenance.is_set("live_page") {
            config.live_page = config.is_local();
            if !config.live_page {
                config.provenance.set("live_page", Origin::Implied("other machines reach it"));
            }
        }
        config.check()?;
        Ok(config)
    }

    /// Reads a file, then this process's environment, and checks.
    ///
    /// # Errors
    /// As [`Config::load`], and where the file cannot be read.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::one(Origin::Default, format!("cannot read {name}: {error}")))?;
        let mut sources = Sources::of_file(name, text);
        sources.environment = std::env::vars_os().collect();
        Self::load(&sources)
    }

    /// Whether the values go together.
    ///
    /// # Errors
    /// Everything that does not.
    pub fn check(&self) -> Result<(), ConfigError> {
        let mut problems = rules::problems(self);
        let mut problem = |key: &str, message: String| {
            problems.push(Problem {
                origin: self.provenance.get(key),
                message,
            });
        };
        let limits = &self.limits;
        if limits.idle <= limits.heartbeat {
            let key = if self.provenance.is_set("limits.idle") {
                "limits.idle"
            } else {
                "limits.heartbeat"
            };
            problem(
                key,
                format!(
                    "limits.idle = \"{}\" must be longer than limits.heartbeat = \"{}\", or healthy clients are cut before they are asked",
                    value::Span(limits.idle),
                    value::Span(limits.heartbeat)
                ),
            );
        }
        if limits.ring_bytes < limits.message_bytes {
            let key = if self.provenance.is_set("limits.ring_bytes") {
                "limits.ring_bytes"
            } else {
                "limits.message_bytes"
            };
            problem(
                key,
                format!(
                    "limits.ring_bytes = \"{}\" must be at least limits.message_bytes = \"{}\", or a message would not fit",
                    value::Bytes(limits.ring_bytes as u64),
                    value::Bytes(limits.message_bytes as u64)
                ),
            );
        }
        if limits.memory / 4 < limits.message_bytes {
            problem(
                if self.provenance.is_set("limits.memory") {
                    "limits.memory"
                } else {
                    "limits.message_bytes"
                },
                format!(
                    "limits.memory = \"{}\" must be at least four times limits.message_bytes = \"{}\", or a message would not fit",
                    value::Bytes(limits.memory as u64),
                    value::Bytes(limits.message_bytes as u64)
                ),
            );
        }
        if self.publish_token.is_some() && self.publish_open {
            problem(
                "publish.open",
                "publish.open = true lets everybody publish, and publish.token asks for a token; remove one of them".into(),
            );
        }
        if let Some((key, reached)) = self.reached() {
            if self.is_zero_config() {
                problem(key, format!("{reached}, {ZERO_CONFIG_IS_LOCAL}"));
            } else if self.publish_token.is_none() && !self.publish_open && !self.provenance.is_set("publish.open") {
                problem(
                    key,
                    format!(
                        "{reached}, and anyone there could publish; write a token of at least 16 characters \
                         (openssl rand -hex 32) as [publish] token = \"…\" or AIRWAVE_PUBLISH_TOKEN; or say it with [publish] open = true \
                         (anyone may publish over HTTP) or open = false (no one may)"
                    ),
                );
            }
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(ConfigError::of(problems))
        }
    }

    /// How other machines reach the server: the key that says so, and a sentence's beginning.
    fn reached(&self) -> Option<(&'static str, String)> {
        if self.is_local() {
            return None;
        }
        Some(if !self.listens_on_loopback() {
            ("listen", format!("{} can be reached from other machines", self.listen))
        } else {
            let key = if self.trusted_proxies.is_empty() {
                "hosts"
            } else {
                "trusted_proxies"
            };
            (
                key,
                format!("{} can be reached from other machines through a proxy", self.listen),
            )
        })
    }

    /// What a server without handlers logs as warnings when it starts: what strangers may do. Empty
    /// where no other machine reaches it.
    ///
    /// ```
    /// use airwave::config::{Config, Sources};
    ///
    /// let file = r#"
    ///     listen = "0.0.0.0:8080"
    ///     publish.open = false
    ///     [[channels]]
    ///     match = "news"
    ///     use_case = "feed"
    /// "#;
    /// let config = Config::load(&Sources::of_file("airwave.toml", file)).unwrap();
    /// assert!(config.warnings()[0].contains("may listen to the channels of the rule \"news\""));
    /// ```
    pub fn warnings(&self) -> Vec<String> {
        self.warnings_beside(|_| false)
    }

    /// The same where `handled` says which rules have a handler for all of their channels: the
    /// handler decides then.
    pub(crate) fn warnings_beside(&self, handled: impl Fn(&Pattern) -> bool) -> Vec<String> {
        let Some((_, reached)) = self.reached() else {
            return Vec::new();
        };
        let open: Vec<&Rule> = self
            .rules
            .iter()
            .map(AsRef::as_ref)
            .filter(|rule| !handled(&rule.pattern))
            .collect();
        let said: Vec<&Rule> = open.iter().copied().filter(|rule| rule.send == SendPolicy::Publish).collect();
        let mut warnings = Vec::new();
        if !open.is_empty() {
            warnings.push(format!(
                "{reached}, and anyone there may listen to the channels of the {} and read their history, because nothing here asks \
                 who it is; if they are not for everyone, let a proxy ask (docs/who-may-listen.md has the lines for nginx) or an \
                 application's handler (docs/handlers.md), or write listen = \"127.0.0.1:8080\" without trusted_proxies and hosts",
                named(&open)
            ));
        }
        if !said.is_empty() {
            warnings.push(format!(
                "{reached}, and anyone there may publish to the channels of the {}, because send = \"publish\" publishes what a client \
                 sends; if that is not meant, write send = \"refuse\" there, or let a proxy or a handler ask as docs/who-may-listen.md says",
                named(&said)
            ));
        }
        if self.publish_open {
            warnings.push(format!(
                "{reached}, and anyone there may publish to every channel by POST /publish, because publish.open = true; if that is not \
                 meant, write a token of at least 16 characters as publish.token or AIRWAVE_PUBLISH_TOKEN in its place, or \
                 publish.open = false"
            ));
        }
        warnings
    }

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

    /// Every setting outside the rules: its key, its effective value, where that comes from.
    pub fn settings(&self) -> impl Iterator<Item = (&'static str, Shown, Origin)> {
        SETTINGS
            .iter()
            .map(|setting| (setting.key, (setting.show)(self), self.provenance.get(setting.key)))
    }

    /// Every setting of the rule at `index`: its key, its effective value, where that comes from.
    /// Empty beyond the last rule.
    pub fn rule_settings(&self, index: usize) -> impl Iterator<Item = (&'static str, Shown, Origin)> {
        self.rules.iter().nth(index).into_iter().flat_map(move |rule| {
            rules::FIELDS
                .iter()
                .map(move |field| (field.key, (field.show)(rule), self.rule_field_origin(index, field.key)))
        })
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

    fn rule_field_origin(&self, index: usize, field: &str) -> Origin {
        self.provenance.get(&format!("channels.{index}.{field}"))
    }

    /// The place to look at for a field: where it was written, else where its rule stands.
    fn rule_field_place(&self, index: usize, field: &str) -> Origin {
        match self.rule_field_origin(index, field) {
            place @ Origin::File { .. } => place,
            _ => self.rule_origin(index),
        }
    }

    fn file_start(&self) -> Origin {
        match &self.file {
            Some(file) => Origin::File {
                file: file.clone(),
                line: 1,
                column: 1,
            },
            None => Origin::Default,
        }
    }

    fn is_zero_config(&self) -> bool {
        self.file.is_none() && self.rules.iter().eq(rules::zero_config().iter())
    }
}

/// `rules "a/{id}", "b" and 7 more`: so many that a line of the log stays one that people read.
fn named(rules: &[&Rule]) -> String {
    const MOST: usize = 10;
    let shown: Vec<String> = rules.iter().take(MOST).map(|rule| format!("\"{}\"", rule.pattern)).collect();
    let more = match rules.len().saturating_sub(MOST) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("rule{} {}{more}", if rules.len() == 1 { "" } else { "s" }, shown.join(", "))
}

const ZERO_CONFIG_IS_LOCAL: &str = "and without a configuration file every client may listen and publish on every channel; \
    write an airwave.toml that says which channels there are, for example\n    \
    [publish]\n    token = \"…\"                # at least 16 characters: openssl rand -hex 32\n    \
    [[channels]]\n    match = \"orders/{id}\"\n    use_case = \"job-status\"";

/// Reads a duration as the file has it: `250ms`, `15s`, `2m`, `1h`, `7d`.
///
/// # Errors
/// A sentence that says what to write.
pub fn parse_duration(text: &str) -> Result<Duration, Invalid> {
    Given::Text(text).duration(Duration::ZERO).map_err(Invalid::new)
}

/// Whose pages may listen and send, besides the server's own.
#[derive(Debug, Clone, PartialEq, Eq)]
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
pub enum LogFormat {
    /// Text, coloured on a terminal.
    Text,
    /// One JSON object a line.
    Json,
}

#[cfg(test)]
mod tests;
