use std::path::PathBuf;

use super::certificates::Certificates;
use super::{RedisServer, free_port};

/// A server with a certificate for 127.0.0.1 alone, the authority that it is of, and another one.
pub struct Secured {
    pub server: RedisServer,
    pub port: u16,
    pub authority: PathBuf,
    pub other_authority: PathBuf,
    _certificates: Certificates,
}

impl Secured {
    pub fn start() -> Option<Secured> {
        let certificates = Certificates::make()?;
        let port = free_port();
        let path = |name: &str| certificates.path(name).to_str().unwrap().to_owned();
        let server = RedisServer::start(&[
            "--tls-port",
            &port.to_string(),
            "--tls-cert-file",
            &path("server.crt"),
            "--tls-key-file",
            &path("server.key"),
            "--tls-ca-cert-file",
            &path("authority.crt"),
            "--tls-auth-clients",
            "no",
        ])?;
        Some(Secured {
            server,
            port,
            authority: certificates.path("authority.crt"),
            other_authority: certificates.path("other.crt"),
            _certificates: certificates,
        })
    }
}
