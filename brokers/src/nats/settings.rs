//! What the broker's URL says: which servers, how to log in, and what the stream is like.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Everything that a URL can say. Shown as its servers alone.
#[derive(Clone)]
pub(super) struct Settings {
    /// `host:port` each.
    pub(super) servers: Vec<String>,
    pub(super) tls: bool,
    pub(super) login: Login,
    /// Certificates of authorities, instead of the system's.
    pub(super) ca: Option<PathBuf>,
    /// The first token of every subject, and the stream's name.
    pub(super) prefix: String,
    pub(super) replicas: usize,
    /// `file` or `memory`.
    pub(super) storage: &'static str,
    pub(super) tuning: Tuning,
}

/// What only tests change.
#[doc(hidden)]
#[derive(Clone, Copy, Default)]
#[non_exhaustive]
pub struct Tuning {
    /// How many untaken messages a subscription holds; `None`: as many as the client library thinks
    /// good.
    pub held: Option<usize>,
    /// How many messages of history are asked for at once; `None`: as many as is good.
    pub batch: Option<usize>,
    /// How long the stream keeps anything; `None`: as long as is good.
    pub head_lives: Option<Duration>,
    /// How far the node's clock is ahead of the real time, in µs; below zero, how far it is behind.
    pub clock_ahead: i64,
}

impl Tuning {
    /// Returns this tuning after `change`.
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }
}

#[derive(Clone, PartialEq, Eq)]
pub(super) enum Login {
    None,
    Token(String),
    Password(String, String),
    /// A file with a seed.
    Nkey(PathBuf),
    /// A file with a JWT and a seed.
    Credentials(PathBuf),
}

const PARAMETERS: &str = "prefix, replicas, storage, nkey, creds and ca";

const MALFORMED: &str = "cannot be read; write nats://user:password@host:4222,host2:4222?replicas=3, with %40 for '@', %2F for '/', %3A for ':', %2C for ',', %3F for '?' and %25 for '%' in the password";

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.servers.join(","))
    }
}

impl Settings {
    /// Reads a URL. An error is a sentence without its subject, and without any part of the URL.
    pub(super) fn new(url: &str) -> Result<Settings, String> {
        let malformed = || MALFORMED.to_owned();
        let (tls, rest) = match url.split_once("://") {
            Some(("nats", rest)) => (false, rest),
            Some(("tls", rest)) => (true, rest),
            _ => return Err(malformed()),
        };
        if rest.contains('#') {
            return Err("has a part after '#'; none is known (in a password write %23)".into());
        }
        let (hosts, query) = rest.split_once('?').unwrap_or((rest, ""));
        let hosts = hosts.strip_suffix('/').unwrap_or(hosts);
        let (mut servers, mut login) = (Vec::new(), Login::None);
        for host in hosts.split(',') {
            let (user, host) = match host.split_once('@') {
                // Not taken as it stands: what is not escaped is more often an accident than meant.
                Some((user, _)) if user.contains('/') => return Err(malformed()),
                Some((user, host)) => (Some(user), host),
                None => (None, host),
            };
            servers.push(server(host).ok_or_else(malformed)?);
            if let Some(user) = user {
                let given = match user.split_once(':') {
                    Some((user, password)) => {
                        Login::Password(decoded(user).ok_or_else(malformed)?, decoded(password).ok_or_else(malformed)?)
                    }
                    None if user.is_empty() => return Err(malformed()),
                    None => Login::Token(decoded(user).ok_or_else(malformed)?),
                };
                if login != Login::None && login != given {
                    return Err("names several users; write one, before any of the servers, for all of them".into());
                }
                login = given;
            }
        }
        let mut settings = Settings {
            servers,
            tls,
            login,
            ca: None,
            prefix: "airwave".into(),
            replicas: 1,
            storage: "file",
            tuning: Tuning::default(),
        };
        for parameter in query.split('&').filter(|text| !text.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            settings.set(name, &decoded(value).ok_or_else(malformed)?)?;
        }
        Ok(settings)
    }

    /// Whether there is, as far as the URL tells, more than one server, so that they may be of two
    /// minds.
    pub(super) fn are_several(&self) -> bool {
        self.replicas > 1 || self.servers.len() > 1
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let login = match name {
            "prefix" => {
                let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
                if value.is_empty() || value.len() > 32 || !value.bytes().all(good) {
                    return Err("has a prefix that cannot be one; write 1 to 32 letters, digits, '-' or '_'".into());
                }
                self.prefix = value.into();
                return Ok(());
            }
            "replicas" => {
                self.replicas = match value.parse() {
                    Ok(replicas @ 1..=5) => replicas,
                    _ => return Err("has replicas that cannot be; write replicas=1 to replicas=5".into()),
                };
                return Ok(());
            }
            "storage" => {
                self.storage = match value {
                    "file" => "file",
                    "memory" => "memory",
                    _ => return Err("has a storage that is not known; write storage=file or storage=memory".into()),
                };
                return Ok(());
            }
            "ca" if !value.is_empty() => {
                self.ca = Some(value.into());
                return Ok(());
            }
            "nkey" if !value.is_empty() => Login::Nkey(value.into()),
            "creds" if !value.is_empty() => Login::Credentials(value.into()),
            "ca" | "nkey" | "creds" => return Err(format!("has {name} without a file; write {name}=/path/to/file")),
            // Not shown: it may be a part of a password.
            _ => {
                return Err(format!(
                    "has a parameter that is not known; write only {PARAMETERS} (in a password write %3F for '?')"
                ));
            }
        };
        if self.login != Login::None {
            return Err("says in two ways how to log in; write one of user:password@, token@, nkey= and creds=".into());
        }
        self.login = login;
        Ok(())
    }
}

/// `host:port`, with the port that is usual.
fn server(text: &str) -> Option<String> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        address.parse::<std::net::Ipv6Addr>().ok()?;
        (format!("[{address}]"), port)
    } else {
        let at = text.find(':').unwrap_or(text.len());
        (text[..at].to_owned(), &text[at..])
    };
    let good = |c: char| c.is_ascii_alphanumeric() || "-._[]:".contains(c);
    if host.is_empty() || !host.chars().all(good) {
        return None;
    }
    let port: u16 = match port.strip_prefix(':') {
        Some(port) => port.parse().ok().filter(|port| *port != 0)?,
        None if port.is_empty() => 4222,
        None => return None,
    };
    Some(format!("{host}:{port}"))
}

/// `%40` is `@`, and so on.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next()?, rest.next()?];
            if !digits.iter().all(u8::is_ascii_hexdigit) {
                return None;
            }
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_say_what_they_say() {
        let settings = Settings::new("nats://h").unwrap();
        assert_eq!((settings.servers, settings.tls), (vec!["h:4222".to_owned()], false));
        assert_eq!(
            (settings.prefix.as_str(), settings.replicas, settings.storage),
            ("airwave", 1, "file")
        );
        assert!(settings.login == Login::None);

        let settings = Settings::new("tls://me:p%40%2C@a:1,b,[::1]:3/?replicas=3&storage=memory&prefix=x&ca=%2Fca.pem").unwrap();
        assert_eq!(settings.to_string(), "a:1,b:4222,[::1]:3");
        assert!(settings.tls && settings.login == Login::Password("me".into(), "p@,".into()));
        assert_eq!(
            (settings.prefix.as_str(), settings.replicas, settings.storage),
            ("x", 3, "memory")
        );
        assert_eq!(settings.ca, Some("/ca.pem".into()));

        assert!(Settings::new("nats://t0ken@h").unwrap().login == Login::Token("t0ken".into()));
        assert!(Settings::new("nats://h?creds=/f").unwrap().login == Login::Credentials("/f".into()));
        assert!(Settings::new("nats://h?nkey=/f").unwrap().login == Login::Nkey("/f".into()));
        assert!(Settings::new("nats://u:p@h,u:p@i").unwrap().login == Login::Password("u".into(), "p".into()));
    }

    #[test]
    fn bad_urls_are_refused_without_being_shown() {
        for bad in [
            "nats://",
            "nats://u:s3cret@",
            "nats://u:s3cret@h:port",
            "nats://u:s3cret@h:0",
            "nats://u:s3cret@h/x",
            "nats://u:s3,cret@h",
            "nats://u:s3/cret@h",
            "nats://u:s3?cret@h",
            "nats://u:s3cret%@h",
            "nats://u:s3cret%zz@h",
            "nats://u:s3cret@h#x",
            "nats://@h",
            "nats://u:s3cret@h,v:s3cret@i",
            "nats://u:s3cret@h?creds=/f",
            "nats://h?creds=",
            "nats://h?replicas=6",
            "nats://h?replicas=0",
            "nats://h?storage=s3cret",
            "nats://h?prefix=s3.cret",
            "nats://h?prefix=",
            "nats://h?s3cret",
            "redis://u:s3cret@h",
        ] {
            let Err(refusal) = Settings::new(bad) else {
                panic!("{bad} was taken")
            };
            assert!(!refusal.contains("s3") && !refusal.contains("cret"), "{bad}: {refusal}");
            assert!(refusal.contains("write"), "{bad}: {refusal}");
        }
    }
}
