//! What a URL names: one server, the sentinels that know where it is, or a cluster.

use redis::io::tcp::TcpSettings;
use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion};

use super::errors::RedisConnectError;

/// Where to connect to, and how to log in there.
pub(super) enum Address {
    Server(ConnectionInfo),
    Sentinels {
        sentinels: Vec<ConnectionInfo>,
        /// By which name they know the master.
        master: String,
        /// How to log in to the master. Its host and port are whatever the sentinels say.
        server: ConnectionInfo,
    },
    Cluster(Vec<ConnectionInfo>),
}

const ONE: &str = "redis://user:password@host:6379/0";
const SENTINELS: &str = "redis+sentinel://user:password@host:26379,host2:26379/MASTER-NAME/0";
const CLUSTER: &str = "redis+cluster://user:password@host:6379,host2:6379";

/// The library's own errors might quote the URL.
fn malformed(form: &str) -> RedisConnectError {
    RedisConnectError::Url(format!(
        "cannot be read; write {form}, with %40 for '@', %2F for '/', %3A for ':' and %2C for ',' in the password"
    ))
}

impl Address {
    pub(super) fn parse(url: &str) -> Result<Address, RedisConnectError> {
        let (scheme, rest) = url.split_once("://").ok_or_else(|| malformed(ONE))?;
        let (plain, kind) = scheme.split_once('+').unwrap_or((scheme, ""));
        let form = match (plain, kind) {
            ("redis" | "rediss", "") => ONE,
            ("redis" | "rediss", "sentinel") => SENTINELS,
            ("redis" | "rediss", "cluster") => CLUSTER,
            _ => return Err(malformed(ONE)),
        };
        let (rest, parameters) = match rest.split_once('?') {
            Some((rest, parameters)) if kind == "sentinel" && !parameters.contains(['@', '/', '?', '#']) => (rest, parameters),
            None => (rest, ""),
            Some(_) => return Err(RedisConnectError::Url(unknown_parameters(kind))),
        };
        if rest.contains('#') {
            return Err(RedisConnectError::Url(unknown_parameters(kind)));
        }
        let parts = Parts::of(plain, rest, form)?;
        match kind {
            "cluster" => parts.cluster(),
            "sentinel" => parts.sentinels(parameters),
            _ => Ok(Address::Server(parts.read(&parts.login, parts.hosts, parts.path)?)),
        }
    }
}

/// What stands between the scheme and the parameters.
struct Parts<'a> {
    /// `redis` or `rediss`.
    scheme: &'a str,
    /// With the `@` behind it; empty if there is none.
    login: String,
    hosts: &'a str,
    path: &'a str,
    /// How to write such a URL.
    form: &'static str,
}

impl<'a> Parts<'a> {
    fn of(scheme: &'a str, rest: &'a str, form: &'static str) -> Result<Parts<'a>, RedisConnectError> {
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, hosts) = match authority.rsplit_once('@') {
            Some((login, _)) if login.contains('@') => return Err(malformed(form)),
            Some((login, hosts)) => (format!("{login}@"), hosts),
            None => (String::new(), authority),
        };
        Ok(Parts {
            scheme,
            login,
            hosts,
            path,
            form,
        })
    }

    /// One server.
    fn read(&self, login: &str, host: &str, database: &str) -> Result<ConnectionInfo, RedisConnectError> {
        if host.is_empty() {
            return Err(malformed(self.form));
        }
        let info = format!("{}://{login}{host}/{database}", self.scheme).into_connection_info();
        ready(info.map_err(|_| malformed(self.form))?).ok_or_else(|| malformed(self.form))
    }

    fn cluster(&self) -> Result<Address, RedisConnectError> {
        if !matches!(self.path, "" | "0") {
            return Err(RedisConnectError::Url(format!(
                "names a database, and a cluster has only one; write {CLUSTER}"
            )));
        }
        let seeds = self.hosts.split(',').map(|host| self.read(&self.login, host, "0"));
        Ok(Address::Cluster(seeds.collect::<Result<_, _>>()?))
    }

    fn sentinels(&self, parameters: &str) -> Result<Address, RedisConnectError> {
        let (master, database) = self.path.split_once('/').unwrap_or((self.path, ""));
        let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if master.is_empty() || !master.chars().all(known) {
            return Err(RedisConnectError::Url(format!(
                "does not say which master the sentinels are to be asked for; write {SENTINELS}"
            )));
        }
        let own_login = sentinel_login(parameters)?;
        let sentinels = self.hosts.split(',').map(|host| {
            let has_port = host.rsplit(']').next().is_some_and(|after| after.contains(':'));
            let host = if has_port || host.is_empty() {
                host.to_owned()
            } else {
                format!("{host}:26379")
            };
            self.read(&own_login, &host, "")
        });
        Ok(Address::Sentinels {
            sentinels: sentinels.collect::<Result<_, _>>()?,
            master: master.to_owned(),
            server: self.read(&self.login, "known-by-the-sentinels", database)?,
        })
    }
}

fn unknown_parameters(kind: &str) -> String {
    let known = if kind == "sentinel" {
        "sentinel_user and sentinel_password are known"
    } else {
        "none is known"
    };
    format!("has parameters after '?' or '#'; {known} (in a password write %3F and %23)")
}

/// What the sentinels themselves want to hear, which is not what the server wants.
fn sentinel_login(parameters: &str) -> Result<String, RedisConnectError> {
    let (mut user, mut password) = ("", "");
    for parameter in parameters.split('&').filter(|parameter| !parameter.is_empty()) {
        match parameter.split_once('=') {
            Some(("sentinel_user", value)) => user = value,
            Some(("sentinel_password", value)) => password = value,
            _ => return Err(RedisConnectError::Url(unknown_parameters("sentinel"))),
        }
    }
    Ok(match (user, password) {
        ("", "") => String::new(),
        (_, "") => {
            return Err(RedisConnectError::Url(
                "has a sentinel_user without a sentinel_password; write both".into(),
            ));
        }
        (user, password) => format!("{user}:{password}@"),
    })
}

/// The same, as our connections need it. `None`: it is none of ours.
fn ready(info: ConnectionInfo) -> Option<ConnectionInfo> {
    let tcp = matches!(info.addr(), ConnectionAddr::Tcp(..) | ConnectionAddr::TcpTls { .. });
    if !tcp || info.redis_settings().db() < 0 {
        return None;
    }
    // Push messages need RESP3.
    let redis = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    let tcp = TcpSettings::default().set_nodelay(true);
    Some(info.set_tcp_settings(tcp).set_redis_settings(redis))
}

/// A host and its port.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) host: String,
    pub(super) port: u16,
}

impl Place {
    pub(super) fn of(info: &ConnectionInfo) -> Place {
        match info.addr() {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => Place {
                host: host.clone(),
                port: *port,
            },
            // `ready` lets none of the others through.
            _ => Place {
                host: String::new(),
                port: 0,
            },
        }
    }

    /// As servers write it: `host:port`, without brackets around an IPv6 address. One that tells no
    /// host means its own.
    pub(super) fn parse(text: &str, by: &Place) -> Option<Place> {
        let (host, port) = text.rsplit_once(':')?;
        Some(Place {
            host: if host.is_empty() || host == "?" { &by.host } else { host }.to_owned(),
            port: port.parse().ok()?,
        })
    }

    /// The same login and the same TLS there.
    pub(super) fn instead_of(&self, info: &ConnectionInfo) -> ConnectionInfo {
        let address = match info.addr() {
            ConnectionAddr::TcpTls {
                insecure, tls_params, ..
            } => ConnectionAddr::TcpTls {
                host: self.host.clone(),
                port: self.port,
                insecure: *insecure,
                tls_params: tls_params.clone(),
            },
            _ => ConnectionAddr::Tcp(self.host.clone(), self.port),
        };
        info.clone().set_addr(address)
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}
