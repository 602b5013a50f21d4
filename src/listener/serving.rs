//! What the accept loop needs to know.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::request::Parts;
use http::{Request, Response};
use tower::ServiceExt;

use super::forwarded::ClientIpHeader;

/// What [`Serving::head`] usually is.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections beyond those that stream: for short requests.
pub(super) const SPARE_CONNECTIONS: usize = 1024;
/// The same for each address.
pub(super) const SPARE_OF_ADDRESS: usize = 256;

/// The answer to a request that no route may see; `None` for the others.
pub type Refuses = Arc<dyn Fn(&Parts) -> Option<Response<Body>> + Send + Sync>;

/// What the accept loop needs to know.
#[derive(Clone)]
#[non_exhaustive]
pub struct Serving {
    /// Connections at once that stream, and no more than open files leave room for. Another 1,024
    /// may make short requests.
    pub connections: usize,
    /// Connections at once that stream from one address (IPv6: from one /64), which may have
    /// another 256 for short requests. The addresses that
    /// [`Serving::trusts`] names are not counted.
    pub connections_per_address: usize,
    /// How long a drain may take.
    pub drain: Duration,
    /// How long before a drain `/readyz` fails already, while everything else goes on.
    pub drain_delay: Duration,
    /// How long a request's head may take from its first byte, and the first one from the accept
    /// (P13). Usually [`HEAD_TIMEOUT`].
    pub head: Duration,
    /// How long a connection may wait for its next request.
    pub keep_alive: Duration,
    /// Whose word about the client's address is taken.
    pub trusts: Arc<dyn Fn(IpAddr) -> bool + Send + Sync>,
    /// The header in which they say it.
    pub client_ip_header: ClientIpHeader,
    /// Answers a request in place of the routes, before any of them sees it. `None`: it goes on to
    /// them. Costs far less than a layer around the routes, which boxes each request twice.
    pub refuses: Refuses,
}

impl Default for Serving {
    fn default() -> Self {
        let limits = airwave_core::rule::Limits::default();
        Self {
            connections: limits.connections,
            connections_per_address: limits.connections_per_address,
            drain: Duration::from_secs(10),
            drain_delay: Duration::ZERO,
            head: HEAD_TIMEOUT,
            keep_alive: limits.keep_alive,
            trusts: Arc::new(|_| false),
            client_ip_header: ClientIpHeader::default(),
            refuses: Arc::new(|_| None),
        }
    }
}

/// What [`Serving::refuses`] answers, or else the routes.
pub(super) async fn unless_refused(refuses: &Refuses, app: &Router, request: Request<Body>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    if let Some(refused) = refuses(&parts) {
        return refused;
    }
    let Ok(response) = app.clone().oneshot(Request::from_parts(parts, body)).await;
    response
}
