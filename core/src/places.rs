//! A node has places for connections: in all, and for each address.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::address::{AddressCounts, AddressPlace};
use crate::refusal::{Code, Refusal};

/// Counts the connections that stay.
pub(crate) struct Places {
    taken: AtomicUsize,
    /// Bounds the number of places: `limits.connections`, or fewer.
    limit: AtomicUsize,
    addresses: Arc<AddressCounts>,
    per_address: usize,
}

/// A place belongs to one connection. Dropping it gives the place back.
pub(crate) struct Place {
    places: Arc<Places>,
    /// Holds the connection's place among those of its address, if the address is known.
    _of_address: Option<AddressPlace>,
}

impl Places {
    pub(crate) fn new(limit: usize, per_address: usize) -> Arc<Self> {
        Arc::new(Self {
            taken: AtomicUsize::new(0),
            limit: AtomicUsize::new(limit),
            addresses: Arc::default(),
            per_address,
        })
    }

    /// Takes a place for a connection from `peer`.
    ///
    /// # Errors
    /// `too-many`: no place is left, on the node or for this address.
    pub(crate) fn take(self: &Arc<Self>, peer: Option<IpAddr>) -> Result<Place, Refusal> {
        let open = self.taken.fetch_add(1, Ordering::Relaxed);
        // From here on the drop of `place` gives the place back.
        let mut place = Place {
            places: self.clone(),
            _of_address: None,
        };
        if open >= self.limit.load(Ordering::Relaxed) {
            return Err(Refusal::new(
                Code::TooMany,
                "this server has no place left (limits.connections, or its limit of open files): try again later",
            ));
        }
        if let Some(peer) = peer {
            place._of_address = Some(self.addresses.take(peer, self.per_address).ok_or_else(|| {
                Refusal::new(
                    Code::TooMany,
                    "too many connections from this address (limits.connections_per_address): close some, or subscribe to several channels over one",
                )
            })?);
        }
        Ok(place)
    }

    /// Returns the number of places that are taken.
    pub(crate) fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// Lowers the number of places to `count`, and returns how many there are now.
    pub(crate) fn bound(&self, count: usize) -> usize {
        self.limit.fetch_min(count, Ordering::Relaxed).min(count)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_refused_connection_takes_no_place() {
        let places = Places::new(3, 2);
        let peer = Some(IpAddr::from([10, 0, 0, 1]));
        let kept = [places.take(peer).unwrap(), places.take(peer).unwrap()];
        assert!(places.take(peer).is_err(), "its address has no place left");
        assert_eq!(places.taken(), 2);
        let third = places.take(None).unwrap();
        assert!(places.take(None).is_err(), "the node has no place left");
        drop(third);
        assert_eq!(places.bound(2), 2);
        assert_eq!(places.bound(5), 2, "the number of places only falls");
        assert!(places.take(None).is_err());
        drop(kept);
        assert_eq!(places.taken(), 0);
        assert!(places.take(peer).is_ok());
    }
}
