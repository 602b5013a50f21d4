//! A node gives orders to a session, as bits of one atomic.

use std::ops::BitOr;
use std::sync::atomic::{AtomicU8, Ordering};

/// This type is a set of orders. Orders that are given before the session looks add up, and none is
/// lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Orders(u8);

impl Orders {
    pub(crate) const NONE: Orders = Orders(0);
    /// The session sends a heartbeat.
    pub(crate) const HEARTBEAT: Orders = Orders(1);
    /// The session ends without waiting for the socket: a write makes no progress, or the drain
    /// takes too long.
    pub(crate) const CUT: Orders = Orders(1 << 1);
    /// The session ends, because nothing came from the client for too long.
    pub(crate) const SILENT: Orders = Orders(1 << 2);
    /// The session tells the client that the node has not reached its broker for a while.
    pub(crate) const STALE: Orders = Orders(1 << 3);
    /// The session ends and tells the client when to come back, because the node goes away.
    pub(crate) const DRAIN: Orders = Orders(1 << 4);
    /// The session ends and tells the client when to come back, because its granted time is over.
    pub(crate) const EXPIRE: Orders = Orders(1 << 5);

    /// Returns whether at least one of `orders` is in the set.
    pub(crate) fn has(self, orders: Orders) -> bool {
        self.0 & orders.0 != 0
    }
}

impl BitOr for Orders {
    type Output = Orders;

    fn bitor(self, other: Orders) -> Orders {
        Orders(self.0 | other.0)
    }
}

/// This set holds the orders that one session has not carried out yet.
///
/// Every access is relaxed. The node gives an order before it wakes the session, and the session
/// takes its orders after it has reset its wake flag. The flag's lock orders the two.
#[derive(Default)]
pub(crate) struct PendingOrders(AtomicU8);

impl PendingOrders {
    /// Adds `orders` to the waiting orders.
    pub(crate) fn add(&self, orders: Orders) {
        self.0.fetch_or(orders.0, Ordering::Relaxed);
    }

    /// Returns the waiting orders, and leaves them.
    pub(crate) fn peek(&self) -> Orders {
        Orders(self.0.load(Ordering::Relaxed))
    }

    /// Returns the waiting orders, and takes them.
    pub(crate) fn take(&self) -> Orders {
        // Mostly no order waits, and a load is cheaper than an exchange.
        match self.peek() {
            Orders::NONE => Orders::NONE,
            _ => Orders(self.0.swap(0, Ordering::Relaxed)),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn orders_add_up_until_they_are_taken_once() {
        let pending = PendingOrders::default();
        assert_eq!(pending.take(), Orders::NONE);
        pending.add(Orders::STALE);
        pending.add(Orders::HEARTBEAT);
        pending.add(Orders::STALE);
        assert_eq!(pending.peek(), Orders::STALE | Orders::HEARTBEAT);
        let taken = pending.take();
        assert!(taken.has(Orders::STALE) && taken.has(Orders::HEARTBEAT));
        assert!(!taken.has(Orders::DRAIN | Orders::CUT | Orders::SILENT | Orders::EXPIRE));
        assert_eq!(pending.take(), Orders::NONE);
    }
}
