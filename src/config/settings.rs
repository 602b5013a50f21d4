//! The one list of settings outside `[[channels]]`. File, environment, flags, `airwave check`,
//! every "did you mean" and docs/configuration.md read it, so that a new setting is one entry here
//! and a field of `Config`. A test compares the document, and its failure has the command that
//! writes it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::about::{About, Range};
use super::broker::BrokerUrl;
use super::shown::Shown;
use super::value::{Given, Quoted, nearest, one_of};
use super::values::{AllowedOrigins, Config, LogFormat, Network, Secret};
use crate::listener::ClientIpHeader;

/// One setting.
pub(super) struct Setting {
    /// Its place in the file: `listen`, `limits.idle`.
    pub(super) key: &'static str,
    /// Reads it. The error is a sentence that goes on after the key's name, and never shows a
    /// secret.
    pub(super) set: fn(&mut Config, Given<'_>) -> Result<(), String>,
    /// The effective value, for people.
    pub(super) show: fn(&Config) -> Shown,
    /// What people read of it.
    pub(super) about: About,
}

impl Setting {
    /// The variable that sets it: `AIRWAVE_LIMITS_IDLE`.
    pub(super) fn variable(&self) -> String {
        format!("AIRWAVE_{}", self.key.to_uppercase().replace('.', "_"))
    }
}

const NO_TIME: Duration = Duration::ZERO;
const A_MOMENT: Duration = Duration::from_millis(1);

fn count_limit(given: Given<'_>, slot: &mut usize, max: usize) -> Result<(), String> {
    // The bound is a usize, so what lies within it fits one.
    *slot = given.count(1, max as u64)? as usize;
    Ok(())
}

macro_rules! limit {
    (count $name:ident up to $max:expr, $example:literal, $meaning:literal) => {
        Setting {
            key: concat!("limits.", stringify!($name)),
            set: |config, given| count_limit(given, &mut config.limits.$name, $max),
            show: |config| Shown::Count(config.limits.$name as u64),
            about: About::new(
                $meaning,
                Range::Count {
                    min: 1,
                    max: $max as u64,
                },
                $example,
            ),
        }
    };
    (size $name:ident from $min:expr, $example:literal, $meaning:literal) => {
        Setting {
            key: concat!("limits.", stringify!($name)),
            set: |config, given| {
                config.limits.$name = given.size($min)?;
                Ok(())
            },
            show: |config| Shown::Bytes(config.limits.$name as u64),
            about: About::new($meaning, Range::Size { min: $min }, $example),
        }
    };
    (duration $name:ident from $min:expr, $example:literal, $meaning:literal) => {
        Setting {
            key: concat!("limits.", stringify!($name)),
            set: |config, given| {
                config.limits.$name = given.duration($min)?;
                Ok(())
            },
            show: |config| Shown::Duration(config.limits.$name),
            about: About::new($meaning, Range::Duration { min: $min }, $example),
        }
    };
}

/// The bound fits u32, and so does twice as much, the burst.
const MOST_PER_TIME: u64 = 1_000_000;

macro_rules! per_time {
    ($name:ident, $example:literal, $meaning:literal) => {
        Setting {
            key: concat!("limits.", stringify!($name)),
            set: |config, given| {
                config.limits.$name = given.count(1, MOST_PER_TIME)? as u32;
                Ok(())
            },
            show: |config| Shown::Count(config.limits.$name.into()),
            about: About::new(
                $meaning,
                Range::Count {
                    min: 1,
                    max: MOST_PER_TIME,
                },
                $example,
            ),
        }
    };
}

/// All settings, in the order in which they are shown.
pub(super) const SETTINGS: &[Setting] = &[
    Setting {
        key: "listen",
        set: |config, given| {
            config.listen = address(given.text()?)?;
            Ok(())
        },
        show: |config| Shown::Text(config.listen.to_string()),
        about: About::new(
            "The address and the port that the server listens on. `0.0.0.0` is every address of the machine; port 0 is any free one.",
            Range::Text("an IP address and a port"),
            "\"0.0.0.0:8080\"",
        )
        .flag("--listen"),
    },
    Setting {
        key: "broker.url",
        set: |config, given| {
            config.broker.url = BrokerUrl::new(given.text()?).map_err(|error| error.to_string())?;
            Ok(())
        },
        show: |config| Shown::Text(config.broker.url.to_string()),
        about: About::new(
            "The broker behind the channels. docs/brokers.md says which URL names which.",
            Range::Text("a URL of one of the schemes `memory`, `redis`, `rediss`, `redis+cluster`, `rediss+cluster`, \
                         `redis+sentinel`, `rediss+sentinel`, `nats`, `tls`"),
            "\"redis://user:password@host:6379/0\"",
        )
        .flag("--broker"),
    },
    Setting {
        key: "publish.token",
        set: |config, given| {
            config.publish_token = Some(token(given.text()?)?);
            Ok(())
        },
        show: |config| Shown::Secret(config.publish_token.is_some()),
        about: About::new(
            "What backends show as `Authorization: Bearer TOKEN` to publish over HTTP. It is never shown and never logged.",
            Range::Text("at least 16 visible ASCII characters"),
            "\"paste-32-random-bytes-in-hex\"",
        )
        .default("none"),
    },
    Setting {
        key: "publish.open",
        set: |config, given| {
            config.publish_open = given.flag()?;
            Ok(())
        },
        show: |config| Shown::Flag(config.publish_open),
        about: About::new(
            "Who may publish over HTTP where there is no token: `true`: anyone who reaches the server; `false`: no one. \
             A server that other machines reach needs a token or this key.",
            Range::Flag,
            "false",
        )
        .default("not set: requests from this machine alone may publish, and only if no other machine reaches the server"),
    },
    Setting {
        key: "origins",
        set: |config, given| {
            config.origins = origins(&given.words()?)?;
            Ok(())
        },
        show: |config| {
            Shown::Words(match &config.origins {
                AllowedOrigins::Any => vec!["*".into()],
                AllowedOrigins::Listed(list) => list.clone(),
            })
        },
        about: About::new(
            "Origins of pages that may listen and send, besides the pages of the server itself. `[\"*\"]` allows every page, without credentials.",
            Range::Text("a text or a list of texts, each as a browser sends it: `scheme://host[:port]`"),
            "[\"https://app.example\", \"http://localhost:5173\"]",
        ),
    },
    Setting {
        key: "hosts",
        set: |config, given| {
            config.hosts = given.words()?.into_iter().map(host).collect::<Result<_, _>>()?;
            Ok(())
        },
        show: |config| Shown::Words(config.hosts.clone()),
        about: About::new(
            "The host names by which clients address the server. A server on a loopback address answers at `localhost`, at loopback \
             addresses and at these; any other server answers at every name until there are some. `[\"*\"]` turns the check off.",
            Range::Text("a text or a list of texts: names or IP addresses, without a port"),
            "[\"live.example\"]",
        ),
    },
    Setting {
        key: "trusted_proxies",
        set: |config, given| {
            config.trusted_proxies = given.words()?.into_iter().map(network).collect::<Result<_, _>>()?;
            Ok(())
        },
        show: |config| Shown::Words(config.trusted_proxies.iter().map(ToString::to_string).collect()),
        about: About::new(
            "The proxies that may tell the address of the client, and the scheme of the page.",
            Range::Text("a text or a list of texts: IP addresses or networks"),
            "[\"127.0.0.1\", \"10.0.0.0/8\"]",
        ),
    },
    Setting {
        key: "client_ip_header",
        set: |config, given| {
            config.client_ip_header = given.choice(&[
                ("x-forwarded-for", ClientIpHeader::XForwardedFor),
                ("forwarded", ClientIpHeader::Forwarded),
            ])?;
            Ok(())
        },
        show: |config| {
            Shown::Text(
                match config.client_ip_header {
                    ClientIpHeader::XForwardedFor => "x-forwarded-for",
                    ClientIpHeader::Forwarded => "forwarded",
                }
                .into(),
            )
        },
        about: About::new(
            "The header in which trusted proxies name the client: `X-Forwarded-For`, or `Forwarded` (RFC 7239).",
            Range::Choice(|| vec!["x-forwarded-for", "forwarded"]),
            "\"forwarded\"",
        ),
    },
    Setting {
        key: "live_page",
        set: |config, given| {
            config.live_page = given.flag()?;
            Ok(())
        },
        show: |config| Shown::Flag(config.live_page),
        about: About::new(
            "Whether the page that shows the channels live is served, at `/` (without a configuration file: at `/live`). \
             It answers at `localhost` and IP addresses alone, and through no proxy that shows itself.",
            Range::Flag,
            "false",
        )
        .default("true where this machine alone reaches the server, else false")
        .flag("--live-page"),
    },
    Setting {
        key: "drain",
        set: |config, given| {
            config.drain = given.duration(NO_TIME)?;
            Ok(())
        },
        show: |config| Shown::Duration(config.drain),
        about: About::new(
            "How long a server that was asked to end gives its connections before it cuts them.",
            Range::Duration { min: NO_TIME },
            "\"20s\"",
        ),
    },
    Setting {
        key: "drain_delay",
        set: |config, given| {
            config.drain_delay = given.duration(NO_TIME)?;
            Ok(())
        },
        show: |config| Shown::Duration(config.drain_delay),
        about: About::new(
            "How long before a drain `/readyz` fails already, while everything else goes on, so that load balancers send no more clients.",
            Range::Duration { min: NO_TIME },
            "\"5s\"",
        ),
    },
    Setting {
        key: "log.format",
        set: |config, given| {
            config.log.format = given.choice(&[("text", LogFormat::Text), ("json", LogFormat::Json)])?;
            Ok(())
        },
        show: |config| {
            Shown::Text(
                match config.log.format {
                    LogFormat::Text => "text",
                    LogFormat::Json => "json",
                }
                .into(),
            )
        },
        about: About::new(
            "How the log is written to standard error: lines for people, or one JSON object a line.",
            Range::Choice(|| vec!["text", "json"]),
            "\"json\"",
        )
        .flag("--log-format"),
    },
    Setting {
        key: "log.level",
        set: |config, given| {
            config.log.level = log_level(given.text()?)?;
            Ok(())
        },
        show: |config| Shown::Text(config.log.level.clone()),
        about: About::new(
            "How much is logged. A directive that names a library (`h2=debug`) brings back its lines; `RUST_LOG` counts where \
             neither the variable nor the flag is given.",
            Range::Text("`off`, `error`, `warn`, `info`, `debug`, `trace`, or directives as `RUST_LOG` has them"),
            "\"info,airwave=debug\"",
        )
        .flag("--log"),
    },
    limit!(
        count connections up to usize::MAX,
        "20_000",
        "Listeners at once on this node: SSE streams and WebSockets. Fewer where open files allow fewer."
    ),
    limit!(
        count connections_per_address up to usize::MAX,
        "200",
        "Listeners at once from one address; an IPv6 address counts by its first 64 bits."
    ),
    // A cursor names at most 1000 channels.
    limit!(
        count channels_per_connection up to 1000,
        "20",
        "Channels that one connection may be subscribed to."
    ),
    limit!(
        count channels up to usize::MAX,
        "50_000",
        "Channels open at once on this node. At the limit channels without listeners make room."
    ),
    limit!(
        size message_bytes from 256,
        "\"256KiB\"",
        "Bytes of one message: payload and names. `limits.ring_bytes` and a quarter of `limits.memory` must be at least as large."
    ),
    per_time!(
        frames_per_second,
        "30",
        "Frames that a client may send over a WebSocket in a second; twice as many in a burst."
    ),
    per_time!(
        requests_per_second,
        "20",
        "Messages and pages of history over HTTP in a second, by user, else by address; twice as many in a burst."
    ),
    per_time!(
        new_channels_per_minute,
        "1_000",
        "Channels that are not open yet and that one address may name in a minute."
    ),
    limit!(
        size memory from 1 << 20,
        "\"4GiB\"",
        "Memory of events on this node: one half for the rings of all channels, one for the memory broker."
    ),
    limit!(
        count idempotency_keys_per_client up to usize::MAX,
        "1_000",
        "Idempotency keys that one client may use within 120 s on this node: a user, else an address."
    ),
    limit!(
        count idempotency_keys_per_channel up to usize::MAX,
        "100_000",
        "Idempotency keys that this node may use in one channel within 120 s."
    ),
    limit!(
        count ring_events up to usize::MAX,
        "4096",
        "Events that the ring of an open channel keeps at least, so that a slow listener has room where history is short."
    ),
    limit!(
        size ring_bytes from 1024,
        "\"64MiB\"",
        "Bytes that the ring of an open channel keeps at most."
    ),
    limit!(
        duration heartbeat from Duration::from_secs(1),
        "\"20s\"",
        "Silence after which the server sends a heartbeat: an SSE comment, a WebSocket ping."
    ),
    limit!(
        duration idle from Duration::from_secs(1),
        "\"90s\"",
        "Silence of a WebSocket client, pongs included, after which its connection is closed. Longer than `limits.heartbeat`."
    ),
    limit!(
        duration keep_alive from A_MOMENT,
        "\"120s\"",
        "How long a connection may wait for its next request. Longer than the same time-out of a proxy in front of the server."
    ),
    limit!(
        duration stalled_write from A_MOMENT,
        "\"10s\"",
        "How long a write to a client may make no progress before its connection is cut."
    ),
    limit!(
        duration linger from NO_TIME,
        "\"5s\"",
        "How long a channel without listeners stays open on this node; one that never had an event, 5 s at most."
    ),
    limit!(
        duration broker_timeout from A_MOMENT,
        "\"5s\"",
        "How long the broker may take to answer one request of a client before the answer is `unavailable`."
    ),
];

fn address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let port = |text: &str| text.parse::<u16>().ok();
    Err(match text.rsplit_once(':') {
        _ if text.parse::<IpAddr>().is_ok() && text.contains(':') => {
            format!("has no port; write \"[{text}]:8080\"")
        }
        _ if text.parse::<IpAddr>().is_ok() => format!("has no port; write \"{text}:8080\""),
        _ if port(text).is_some() => {
            format!("has no address; write \"127.0.0.1:{text}\", or \"0.0.0.0:{text}\" for all of this machine's addresses")
        }
        Some(("", rest)) if port(rest).is_some() => {
            format!("has no address; write \"127.0.0.1{text}\", or \"0.0.0.0{text}\" for all of this machine's addresses")
        }
        Some(("localhost", rest)) if port(rest).is_some() => {
            format!("must be an address, not a name; write \"127.0.0.1:{rest}\"")
        }
        _ => format!(
            "must be an address and a port, not {}; write for example \"127.0.0.1:8080\"",
            Quoted(text)
        ),
    })
}

/// The shortest publish token; shorter ones can be guessed.
const SHORTEST_TOKEN: usize = 16;

fn token(text: &str) -> Result<Secret, String> {
    if text.len() < SHORTEST_TOKEN {
        return Err(format!(
            "has {} characters; it must have at least {SHORTEST_TOKEN}, from a good source of chance (openssl rand -hex 32)",
            text.len()
        ));
    }
    if !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err("must be visible ASCII characters without spaces, since it travels in a header".into());
    }
    Ok(Secret::new(text))
}

fn origins(words: &[&str]) -> Result<AllowedOrigins, String> {
    if words.contains(&"*") {
        return match words {
            ["*"] => Ok(AllowedOrigins::Any),
            _ => Err("has \"*\" beside other origins; write [\"*\"] alone, which allows every page, or only the others".into()),
        };
    }
    words
        .iter()
        .map(|word| origin(word))
        .collect::<Result<_, _>>()
        .map(AllowedOrigins::Listed)
}

/// Browsers send `scheme://host[:port]`, lower case, without the default port; it is compared as
/// text, so anything else would never match.
fn origin(text: &str) -> Result<String, String> {
    let example = "write it as a browser sends it, for example \"https://app.example\"";
    let wrong = |what: &str| Err(format!("has {} {what}; {example}", Quoted(text)));
    if text == "null" {
        return wrong("which any page can claim to be");
    }
    let Some((scheme, host)) = text.split_once("://") else {
        return wrong("without a scheme");
    };
    let proper = |bytes: &str, more: &[u8]| {
        !bytes.is_empty()
            && bytes
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || more.contains(&b))
    };
    if host.contains('*') {
        return wrong("with a wildcard, which is not understood");
    }
    if host.ends_with('/') || host.contains('/') {
        return wrong("with a path or a closing slash");
    }
    if text.bytes().any(|b| b.is_ascii_uppercase()) {
        return wrong("with capital letters");
    }
    if (scheme == "https" && host.ends_with(":443")) || (scheme == "http" && host.ends_with(":80")) {
        return wrong("with the scheme's own port, which browsers leave out");
    }
    if !proper(scheme, b"+-.") || !proper(host, b"-._:[]") {
        return wrong("which is no origin");
    }
    Ok(text.to_owned())
}

/// A name or an IP address as it stands in a URL, without the port; `*` for any.
fn host(text: &str) -> Result<String, String> {
    let wrong = |what: &str| {
        Err(format!(
            "has {} {what}; write the name alone, for example \"live.example\"",
            Quoted(text)
        ))
    };
    if text == "*" {
        return Ok(text.to_owned());
    }
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Ok(address.to_string());
    }
    if text.contains("://") {
        return wrong("with a scheme");
    }
    if text.contains('/') {
        return wrong("with a path");
    }
    if text.contains(':') {
        return wrong("with a port, which does not matter here");
    }
    if text.contains('*') {
        return wrong("with a wildcard, which is understood only alone");
    }
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)) {
        return wrong("which is no host name");
    }
    Ok(text.to_ascii_lowercase())
}

fn network(text: &str) -> Result<Network, String> {
    let wrong = || {
        format!(
            "has {}, which is no address or network; write for example \"127.0.0.1\" or \"10.0.0.0/8\"",
            Quoted(text)
        )
    };
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address, Some(bits.parse::<u8>().map_err(|_| wrong())?)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().map_err(|_| wrong())?;
    Network::new(address, bits).ok_or_else(wrong)
}

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// `info`, or directives as `RUST_LOG` has them. A plain word must be a level: the filter itself
/// would take a misspelt one for a module's name and log everything of it, which is nothing.
fn log_level(text: &str) -> Result<String, String> {
    for piece in text.split(',').map(str::trim) {
        let level = piece.rsplit_once('=').map_or(piece, |(_, level)| level);
        if !LEVELS.contains(&level.to_ascii_lowercase().as_str()) {
            let hint = match nearest(level, LEVELS.into_iter()) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => format!("write {}, or for example \"info,airwave=debug\"", one_of(LEVELS.into_iter())),
            };
            return Err(format!("has the unknown level {}; {hint}", Quoted(level)));
        }
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Every limit can be set: a limit that the list omits cannot be configured.
    #[test]
    fn the_list_has_every_limit() {
        let shown = format!("{:?}", airwave_core::rule::Limits::default());
        for field in shown.split([' ', '{']).filter_map(|word| word.strip_suffix(':')) {
            let key = format!("limits.{field}");
            assert!(SETTINGS.iter().any(|s| s.key == key), "{key}");
        }
        assert_eq!(
            shown.matches(": ").count(),
            SETTINGS.iter().filter(|s| s.key.starts_with("limits.")).count()
        );
    }

    #[test]
    fn a_setting_shows_what_was_set() {
        for (key, text, shown) in [
            ("listen", "[::1]:90", "[::1]:90"),
            ("publish.token", "0123456789abcdef", "set, not shown"),
            ("publish.open", "true", "true"),
            (
                "origins",
                "https://a.example, http://localhost:3000",
                "https://a.example, http://localhost:3000",
            ),
            ("origins", "*", "*"),
            (
                "trusted_proxies",
                "127.0.0.1,10.1.0.0/16,fd00::/8",
                "127.0.0.1, 10.1.0.0/16, fd00::/8",
            ),
            ("hosts", "Live.example,[::1],*", "live.example, ::1, *"),
            ("live_page", "false", "false"),
            ("client_ip_header", "forwarded", "forwarded"),
            ("drain", "0s", "0s"),
            ("drain_delay", "5s", "5s"),
            ("log.format", "json", "json"),
            ("log.level", "warn,airwave=debug", "warn,airwave=debug"),
            ("limits.connections", "7", "7"),
            ("limits.message_bytes", "1MiB", "1MiB"),
            ("limits.frames_per_second", "5", "5"),
            ("limits.idle", "90s", "90s"),
            ("limits.keep_alive", "2m", "2m"),
        ] {
            let setting = SETTINGS.iter().find(|s| s.key == key).unwrap();
            let mut config = Config::default();
            (setting.set)(&mut config, Given::Text(text)).unwrap();
            assert_eq!((setting.show)(&config).to_string(), shown, "{key}");
        }
    }

    #[test]
    fn bad_values_say_what_to_write() {
        for (key, text, sentence) in [
            ("listen", "8080", "write \"127.0.0.1:8080\""),
            ("listen", ":8080", "\"0.0.0.0:8080\" for all"),
            ("listen", "localhost:8080", "not a name; write \"127.0.0.1:8080\""),
            ("listen", "127.0.0.1", "has no port; write \"127.0.0.1:8080\""),
            ("listen", "::1", "has no port; write \"[::1]:8080\""),
            ("listen", "there", "write for example \"127.0.0.1:8080\""),
            ("listen", "", "is empty"),
            ("publish.token", "short", "has 5 characters; it must have at least 16"),
            ("publish.token", "a token with spaces in it", "visible ASCII"),
            ("publish.open", "yes", "must be true or false"),
            ("origins", "*,https://a.example", "write [\"*\"] alone"),
            ("origins", "app.example", "without a scheme"),
            ("origins", "https://app.example/", "closing slash"),
            ("origins", "https://*.example", "wildcard"),
            ("origins", "https://App.example", "capital"),
            ("origins", "https://app.example:443", "own port"),
            ("origins", "null", "any page can claim"),
            ("origins", "https://a b", "is no origin"),
            ("origins", "https://a.example,", "empty"),
            ("trusted_proxies", "10.0.0.0/33", "no address or network"),
            ("trusted_proxies", "nginx", "no address or network"),
            ("client_ip_header", "X-Forwarded-For", "did you mean \"x-forwarded-for\"?"),
            ("client_ip_header", "x-real-ip", "write \"x-forwarded-for\" or \"forwarded\""),
            ("hosts", "https://live.example", "with a scheme"),
            ("hosts", "live.example:8080", "with a port"),
            ("hosts", "live.example/x", "with a path"),
            ("hosts", "*.example", "only alone"),
            ("hosts", "a b", "no host name"),
            ("live_page", "1", "must be true or false"),
            ("drain", "10", "write \"10s\""),
            ("drain_delay", "5", "write \"5s\""),
            ("log.format", "JSON", "did you mean \"json\"?"),
            ("log.format", "xml", "write \"text\" or \"json\""),
            ("log.level", "inf", "did you mean \"info\"?"),
            ("log.level", "airwave=loud", "unknown level \"loud\""),
            ("limits.connections", "0", "at least 1"),
            ("limits.connections", "many", "whole number"),
            ("limits.channels_per_connection", "1001", "from 1 to 1000"),
            ("limits.message_bytes", "10", "at least 256B"),
            ("limits.heartbeat", "10ms", "at least \"1s\""),
            ("limits.broker_timeout", "0s", "at least \"1ms\""),
        ] {
            let setting = SETTINGS.iter().find(|s| s.key == key).unwrap();
            let error = (setting.set)(&mut Config::default(), Given::Text(text)).unwrap_err();
            assert!(error.contains(sentence), "{key} = {text}: {error}");
        }
    }
}
