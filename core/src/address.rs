//! Limits count by a part of a client's address, [`AddressKey`]. [`AddressCounts`] counts how many
//! places each address has.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::shrink::shrink;

/// Limits count clients by this part of their address.
///
/// An IPv4 address counts as a whole. An IPv6 address counts by its first 64 bits, because a host
/// may choose the other 64 as it likes. An IPv4 address that came in over an IPv6 socket counts as
/// the IPv4 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AddressKey(IpAddr);

impl From<IpAddr> for AddressKey {
    fn from(address: IpAddr) -> Self {
        AddressKey(match address.to_canonical() {
            v4 @ IpAddr::V4(_) => v4,
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
        })
    }
}

impl fmt::Display for AddressKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V4(v4) => v4.fmt(f),
            IpAddr::V6(v6) => write!(f, "{v6}/64"),
        }
    }
}

/// This table counts the places of each address, for example its connections.
///
/// The table holds an entry only for an address that has a place. It gives its memory back when
/// most addresses are gone.
#[derive(Debug, Default)]
pub struct AddressCounts(Mutex<HashMap<AddressKey, usize>>);

/// This guard holds one place of an address. Dropping it gives the place back.
#[derive(Debug)]
pub struct AddressPlace {
    counts: Arc<AddressCounts>,
    key: AddressKey,
}

impl AddressCounts {
    /// Takes a place for `address`. Returns `None` if the address has `limit` places already.
    pub fn take(self: &Arc<Self>, address: impl Into<AddressKey>, limit: usize) -> Option<AddressPlace> {
        let key = address.into();
        let mut counts = self.lock();
        let count = counts.get(&key).copied().unwrap_or(0);
        if count >= limit {
            return None;
        }
        counts.insert(key, count + 1);
        drop(counts);
        Some(AddressPlace {
            counts: self.clone(),
            key,
        })
    }

    /// Returns how many places `address` has.
    pub fn of(&self, address: impl Into<AddressKey>) -> usize {
        self.lock().get(&address.into()).copied().unwrap_or(0)
    }

    /// Returns how many addresses the table has memory for.
    pub fn capacity(&self) -> usize {
        self.lock().capacity()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<AddressKey, usize>> {
        // The map is whole between any two statements.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for AddressPlace {
    fn drop(&mut self) {
        let mut counts = self.counts.lock();
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
                shrink(&mut *counts);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> AddressKey {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn ipv6_counts_by_its_first_64_bits() {
        assert_eq!(key("2001:db8:1:2::1"), key("2001:db8:1:2:ffff:ffff:ffff:ffff"));
        assert_ne!(key("2001:db8:1:2::1"), key("2001:db8:1:3::1"));
        assert_ne!(key("203.0.113.7"), key("203.0.113.8"));
        assert_eq!(key("::ffff:203.0.113.7"), key("203.0.113.7"));
        assert_eq!(key("2001:db8:1:2::1").to_string(), "2001:db8:1:2::/64");
        assert_eq!(key("203.0.113.7").to_string(), "203.0.113.7");
    }

    #[test]
    fn an_address_has_as_many_places_as_the_limit() {
        let counts = Arc::new(AddressCounts::default());
        let (one, other) = (key("203.0.113.7"), key("203.0.113.8"));
        let first = counts.take(one, 2).unwrap();
        let second = counts.take(one, 2).unwrap();
        assert!(counts.take(one, 2).is_none());
        assert!(counts.take(other, 2).is_some());
        assert_eq!((counts.of(one), counts.of(other)), (2, 0));
        drop(first);
        assert!(counts.take(one, 2).is_some());
        drop(second);
        assert_eq!(counts.of(one), 0);
    }

    #[test]
    fn memory_is_given_back_after_a_flood_of_addresses() {
        let counts = Arc::new(AddressCounts::default());
        let address = |n: u32| IpAddr::from(std::net::Ipv4Addr::from_bits(n));
        let flood: Vec<_> = (0..100_000).map(|n| counts.take(address(n), 1).unwrap()).collect();
        assert!(counts.capacity() >= 100_000);
        drop(flood);
        assert!(counts.capacity() <= 2048, "{}", counts.capacity());
    }
}
