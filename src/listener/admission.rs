//! Which connections get a place, and what those hear that get none.

use std::net::IpAddr;
use std::sync::Arc;

use airwave_core::address::{AddressCounts, AddressKey, AddressPlace};
use airwave_core::{Code, Hub, Refusal};
use airwave_transports::request::refusal_response;
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::files::{Outage, room_of_this_process};
use super::serving::{Refuses, SPARE_CONNECTIONS, SPARE_OF_ADDRESS, Serving, unless_refused};

/// Connections at once that have no place and are told so. Fewer where an eighth of all places is
/// fewer.
const REFUSALS: usize = 32;
/// Places that no single address gets, so that others still reach the server. Fewer where a
/// quarter of all places is fewer.
const FOR_OTHERS: usize = 512;

/// The places for connections.
pub(super) struct Admission {
    places: Arc<Semaphore>,
    count: usize,
    listeners: usize,
    addresses: Arc<AddressCounts>,
    per_address: usize,
    trusts: Arc<dyn Fn(IpAddr) -> bool + Send + Sync>,
    refusals: Arc<Semaphore>,
    full: Outage,
    greedy: Outage,
}

/// What a connection holds as long as it is open.
pub(super) struct ConnectionPermit {
    _permit: OwnedSemaphorePermit,
    _address: Option<AddressPlace>,
    for_refusal: bool,
}

impl ConnectionPermit {
    /// Whether the connection is only to be told that there is no place for it.
    pub(super) fn is_for_refusal(&self) -> bool {
        self.for_refusal
    }
}

impl Admission {
    pub(super) fn new(serving: &Serving) -> Self {
        Self::within(serving, room_of_this_process())
    }

    /// The places, of which there are at most `room`.
    fn within(serving: &Serving, room: usize) -> Self {
        let wanted = serving.connections.saturating_add(SPARE_CONNECTIONS);
        let count = wanted.min(room).min(Semaphore::MAX_PERMITS);
        let spare = SPARE_CONNECTIONS.min(count / 8);
        let for_others = FOR_OTHERS.min(count / 4);
        let per_address = serving.connections_per_address.saturating_add(SPARE_OF_ADDRESS);
        Self {
            places: Arc::new(Semaphore::new(count)),
            count,
            listeners: if room < wanted { count - spare } else { usize::MAX },
            addresses: Arc::default(),
            per_address: per_address.min(count - for_others),
            trusts: serving.trusts.clone(),
            refusals: Arc::new(Semaphore::new(REFUSALS.min(count / 8).max(1))),
            full: Outage::default(),
            greedy: Outage::default(),
        }
    }

    /// How many connections may stream, because the others are for short requests. No bound where
    /// open files are none: then `limits.connections` alone counts.
    pub(super) fn listeners(&self) -> usize {
        self.listeners
    }

    /// A place for a connection from `peer`, or one to refuse it from; `None`: neither is left.
    pub(super) fn place(&mut self, peer: IpAddr) -> Option<ConnectionPermit> {
        let address = if (self.trusts)(peer) {
            None
        } else {
            match self.addresses.take(peer, self.per_address) {
                Some(address) => Some(address),
                None => {
                    if self.greedy.begins() {
                        tracing::warn!(
                            address = %AddressKey::from(peer),
                            connections = self.per_address,
                            "an address has all its places: more of its connections are refused (limits.connections_per_address; \
                             if it is a proxy, name it in trusted_proxies)"
                        );
                    }
                    return self.refusal();
                }
            }
        };
        let Ok(permit) = self.places.clone().try_acquire_owned() else {
            if self.full.begins() {
                tracing::warn!(
                    connections = self.count,
                    "all places are taken: more connections are refused (limits.connections, and the limit of open files)"
                );
            }
            return self.refusal();
        };
        Some(ConnectionPermit {
            _permit: permit,
            _address: address,
            for_refusal: false,
        })
    }

    fn refusal(&self) -> Option<ConnectionPermit> {
        let permit = self.refusals.clone().try_acquire_owned().ok()?;
        Some(ConnectionPermit {
            _permit: permit,
            _address: None,
            for_refusal: true,
        })
    }
}

/// Answers where no place is left. A stream is told to come again, because an EventSource never
/// comes back after an error; what supervisors and load balancers ask is answered by `app`.
pub(super) fn refusing(app: Router, refuses: Refuses, hub: Hub) -> Router {
    Router::new().fallback(async move |request: Request| {
        if ["/healthz", "/readyz", "/metrics"].contains(&request.uri().path()) {
            return unless_refused(&refuses, &app, request).await;
        }
        hub.metrics().refused(Code::TooMany);
        let accept = request.headers().get_all(ACCEPT).iter();
        let mut accept = accept.filter_map(|value| value.to_str().ok());
        if accept.any(|value| value.contains("text/event-stream")) {
            let mut response = Response::new(Body::from(format!("retry: {}\n\n", hub.retry_hint())));
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            return response;
        }
        let refusal = Refusal::new(
            Code::TooMany,
            "this server has no place left for a connection of yours (limits.connections, limits.connections_per_address): try again later",
        );
        let mut response = refusal_response(&refusal, None);
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("5"));
        response
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(connections: usize, per_address: usize, room: usize) -> Admission {
        let serving = Serving {
            connections,
            connections_per_address: per_address,
            trusts: Arc::new(|address| address.is_loopback()),
            ..Serving::default()
        };
        Admission::within(&serving, room)
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// How many places `peer` gets, and how many refusals after them.
    fn takes(admission: &mut Admission, peer: &str) -> (Vec<ConnectionPermit>, usize) {
        let peer = address(peer);
        let all: Vec<_> = std::iter::from_fn(|| admission.place(peer)).take(10_000).collect();
        let (refusals, places): (Vec<_>, Vec<_>) = all.into_iter().partition(ConnectionPermit::is_for_refusal);
        (places, refusals.len())
    }

    #[test]
    fn one_address_leaves_places_for_others() {
        // By its own limit, and where there are fewer places than that.
        for (connections, room, expected, refused) in [
            (100_000, usize::MAX, 1256, 32),
            (100, usize::MAX, 843, 32),
            (100_000, 100, 75, 12),
        ] {
            let mut admission = admission(connections, 1000, room);
            let (places, refusals) = takes(&mut admission, "203.0.113.7");
            assert_eq!((places.len(), refusals), (expected, refused));
            assert!(!admission.place(address("203.0.113.8")).unwrap().is_for_refusal());
        }
    }

    #[test]
    fn an_ipv6_network_is_one_address() {
        let mut admission = admission(100_000, 10, usize::MAX);
        let (places, _) = takes(&mut admission, "2001:db8:1:2::1");
        assert_eq!(places.len(), 266);
        assert!(admission.place(address("2001:db8:1:2:3::4")).unwrap().is_for_refusal());
        assert!(!admission.place(address("2001:db8:1:3::1")).unwrap().is_for_refusal());
        drop(places);
        assert!(!admission.place(address("2001:db8:1:2:3::4")).unwrap().is_for_refusal());
    }

    #[test]
    fn trusted_proxies_may_have_all_places() {
        let mut admission = admission(10, 1, usize::MAX);
        let (places, refusals) = takes(&mut admission, "127.0.0.1");
        assert_eq!((places.len(), refusals), (10 + SPARE_CONNECTIONS, REFUSALS));
    }

    #[test]
    fn open_files_bound_the_places() {
        assert_eq!(admission(100_000, 1000, 884).listeners(), 774);
        assert_eq!(admission(100_000, 1000, usize::MAX).listeners(), usize::MAX);
        assert!(admission(100_000, 1000, 1).listeners() >= 1);
    }
}
