//! Which broker, by its URL. A URL may hold a password, so nothing here ever shows more of it than
//! it must.

use std::fmt;
use std::sync::Arc;

use airwave_core::event::Invalid;

use super::value::{Quoted, nearest};

/// The broker behind the channels.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct BrokerConfig {
    /// Its URL; the scheme decides which broker it is.
    pub url: BrokerUrl,
}

/// Which broker a URL names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum BrokerKind {
    /// In this process; ends with it.
    Memory,
    /// A Redis server, alone or behind sentinels, or a Redis Cluster.
    Redis,
    /// A NATS server or cluster with JetStream.
    Nats,
}

const NATS: Option<BrokerKind> = if cfg!(feature = "nats") {
    Some(BrokerKind::Nats)
} else {
    None
};

const REDIS: Option<BrokerKind> = if cfg!(feature = "redis") {
    Some(BrokerKind::Redis)
} else {
    None
};

/// Every scheme that means a broker. `None`: known by name, but not part of this build.
const SCHEMES: &[(&str, Option<BrokerKind>)] = &[
    ("memory", Some(BrokerKind::Memory)),
    ("redis", REDIS),
    ("rediss", REDIS),
    ("redis+cluster", REDIS),
    ("rediss+cluster", REDIS),
    ("redis+sentinel", REDIS),
    ("rediss+sentinel", REDIS),
    ("nats", NATS),
    ("tls", NATS),
];

/// A broker's URL that this build can serve. Shown without its credentials; [`BrokerUrl::expose`]
/// has them.
#[derive(Clone, PartialEq, Eq)]
pub struct BrokerUrl {
    kind: BrokerKind,
    text: Arc<str>,
}

impl BrokerUrl {
    /// Checks a URL.
    ///
    /// # Errors
    /// A sentence that says what to write. It names the scheme at most.
    pub fn new(text: &str) -> Result<Self, Invalid> {
        let Some((scheme, rest)) = text.split_once(':') else {
            return Err(Invalid::new(format!("is not a URL; {}", available())));
        };
        let Some((_, kind)) = SCHEMES.iter().find(|(name, _)| *name == scheme) else {
            // What stands before a colon is a scheme only if "//" follows; it might be half of
            // "user:password@host".
            let looks_like_a_scheme = rest.starts_with("//") && scheme.len() <= 20;
            return Err(Invalid::new(match nearest(scheme, SCHEMES.iter().map(|(name, _)| *name)) {
                Some(near) if looks_like_a_scheme => {
                    format!(
                        "has the unknown scheme {}; did you mean \"{near}\"? {}",
                        Quoted(scheme),
                        available()
                    )
                }
                _ if looks_like_a_scheme => format!("has the unknown scheme {}; {}", Quoted(scheme), available()),
                _ => format!("is not a broker's URL; {}", available()),
            }));
        };
        match kind {
            None => Err(Invalid::new(format!(
                "\"{scheme}:\" is not part of this build; {}",
                available()
            ))),
            Some(BrokerKind::Memory) if !rest.is_empty() => {
                Err(Invalid::new("the memory broker's URL is \"memory:\" and nothing more"))
            }
            Some(kind) => {
                #[cfg(feature = "redis")]
                if *kind == BrokerKind::Redis {
                    airwave_brokers::redis::check(text)?;
                }
                #[cfg(feature = "nats")]
                if *kind == BrokerKind::Nats {
                    airwave_brokers::nats::check(text)?;
                }
                Ok(Self {
                    kind: *kind,
                    text: text.into(),
                })
            }
        }
    }

    /// Which broker it names.
    pub fn kind(&self) -> BrokerKind {
        self.kind
    }

    /// The whole URL, credentials and all: for the broker's client, never for a log.
    pub fn expose(&self) -> &str {
        &self.text
    }
}

fn available() -> String {
    let built: Vec<String> = SCHEMES
        .iter()
        .filter(|(_, kind)| kind.is_some())
        .map(|(name, _)| format!("\"{name}:\""))
        .collect();
    format!("write {}", built.join(" or "))
}

impl Default for BrokerUrl {
    /// `memory:`
    fn default() -> Self {
        Self {
            kind: BrokerKind::Memory,
            text: "memory:".into(),
        }
    }
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&redacted(&self.text))
    }
}

impl fmt::Debug for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BrokerUrl({self})")
    }
}

/// The URL without credentials and query. A password may hold any character that its writer forgot
/// to escape, `/`, `?` and `@` too, and there may be several hosts, so everything up to the last
/// `@` goes.
fn redacted(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let separator = if scheme.is_empty() { "" } else { "://" };
    let (hidden, rest) = match rest.rsplit_once('@') {
        Some((_, rest)) => ("***@", rest),
        None => ("", rest),
    };
    let (rest, query) = match rest.find(['?', '#']) {
        Some(at) => (&rest[..at], "?***"),
        None => (rest, ""),
    };
    format!("{scheme}{separator}{hidden}{rest}{query}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn credentials_are_never_shown() {
        for (url, shown) in [
            ("memory:", "memory:"),
            ("redis://h:6379/0", "redis://h:6379/0"),
            ("redis://me:s3cret@h:6379/0", "redis://***@h:6379/0"),
            ("redis://me:s3/cr?e@t@h/0", "redis://***@h/0"),
            ("redis+cluster://a:s3cret@h1,b:s3cret@h2", "redis+cluster://***@h2"),
            ("nats://h?token=s3cret", "nats://h?***"),
        ] {
            assert_eq!(redacted(url), shown);
        }
        for refused in [
            "nats://me:s3/cret@h",
            "nats://me:s3cret@h:port",
            "nats://s3cret@h?creds=cret",
            "redis://me:s3/cret@h",
            "redis://me:s3cret@h:port",
            "redis://me:s3cret@h/database",
            "redis://me:s3cret@h?s3cret",
            "me:s3cret@h",
            "s3cret",
            "s3cret:x",
            "s3cret@h",
            "memory:s3cret",
            "reddis://:s3cret@h",
        ] {
            let error = BrokerUrl::new(refused).unwrap_err().to_string();
            assert!(!error.contains("s3") && !error.contains("cret"), "{error}");
            assert!(error.contains("write") || error.contains("\"memory:\""), "{error}");
        }
    }

    #[test]
    fn schemes_are_known_by_name() {
        let built = available();
        assert_eq!(BrokerUrl::new("memory:").unwrap().kind(), BrokerKind::Memory);
        #[cfg(feature = "nats")]
        for url in ["nats://h", "tls://u:p%40@h:4223,i", "nats://h?creds=/f&replicas=3"] {
            assert_eq!(BrokerUrl::new(url).unwrap().kind(), BrokerKind::Nats);
        }
        #[cfg(feature = "redis")]
        {
            for url in [
                "redis://h",
                "rediss://h",
                "redis://:p@h:7000",
                "rediss://u:p%40@[::1]:7000/3",
                "redis+cluster://u:p@h,h2:7000",
                "rediss+cluster://h",
                "redis+sentinel://u:p@h,h2:7000/mymaster/0",
                "rediss+sentinel://h/mymaster?sentinel_password=p",
            ] {
                let scheme = url.split_once("://").unwrap().0;
                assert!(built.contains(&format!("\"{scheme}:\"")), "{built}");
                assert_eq!(BrokerUrl::new(url).unwrap().kind(), BrokerKind::Redis);
            }
        }
        #[cfg(not(feature = "nats"))]
        for known in ["nats", "tls"] {
            assert_eq!(
                BrokerUrl::new(&format!("{known}://h")).unwrap_err().to_string(),
                format!("\"{known}:\" is not part of this build; {built}")
            );
        }
        assert_eq!(
            BrokerUrl::new("kafka://h").unwrap_err().to_string(),
            format!("has the unknown scheme \"kafka\"; {built}")
        );
        assert_eq!(
            BrokerUrl::new("memroy://").unwrap_err().to_string(),
            format!("has the unknown scheme \"memroy\"; did you mean \"memory\"? {built}")
        );
    }
}
