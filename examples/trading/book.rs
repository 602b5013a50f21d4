//! A matching engine for one symbol: limit and market orders, by price and then by time.
//!
//! Prices are whole cents and quantities whole shares, so nothing is ever rounded. The book holds
//! resting orders only; who may trade, and what anybody owns, is the exchange's business.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

/// Buy or sell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Wants shares.
    Buy,
    /// Wants money.
    Sell,
}

/// What an owner wants to trade.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Never given twice in one book.
    pub id: u64,
    /// Who.
    pub owner: Arc<str>,
    /// Buy or sell.
    pub side: Side,
    /// Cents: the most a buyer pays, the least a seller takes. `None`: a market order, whose rest
    /// is cancelled instead of resting.
    pub price: Option<u32>,
    /// Shares, at least one.
    pub quantity: u32,
}

/// A trade between an order that had been waiting and one that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fill {
    /// The order that was waiting, and its owner.
    pub maker: (u64, Arc<str>),
    /// The order that came, and its owner.
    pub taker: (u64, Arc<str>),
    /// Which side the taker was on.
    pub side: Side,
    /// Cents: always the waiting order's price.
    pub price: u32,
    /// Shares.
    pub quantity: u32,
}

#[derive(Debug)]
struct Resting {
    id: u64,
    owner: Arc<str>,
    quantity: u32,
}

/// All orders of one price, the oldest in front.
type Queue = VecDeque<Resting>;

/// The orders that wait for a counterparty.
#[derive(Debug, Default)]
pub struct Book {
    bids: BTreeMap<u32, Queue>,
    asks: BTreeMap<u32, Queue>,
    /// Where an order waits, so that a cancellation need not search.
    places: HashMap<u64, (Side, u32)>,
}

impl Book {
    /// Trades the order against what waits on the other side, best price first and within a price
    /// oldest first; the rest of a limit order then waits, too. Gives the trades in the order in
    /// which they happened, and how much was left to wait.
    pub fn submit(&mut self, order: Order) -> (Vec<Fill>, u32) {
        let mut fills = Vec::new();
        let mut left = order.quantity;
        while left > 0 {
            let best = match order.side {
                Side::Buy => self
                    .asks
                    .first_entry()
                    .filter(|level| order.price.is_none_or(|limit| *level.key() <= limit)),
                Side::Sell => self
                    .bids
                    .last_entry()
                    .filter(|level| order.price.is_none_or(|limit| *level.key() >= limit)),
            };
            let Some(mut level) = best else { break };
            let price = *level.key();
            while let Some(first) = level.get_mut().front_mut().filter(|_| left > 0) {
                let quantity = left.min(first.quantity);
                left -= quantity;
                first.quantity -= quantity;
                fills.push(Fill {
                    maker: (first.id, first.owner.clone()),
                    taker: (order.id, order.owner.clone()),
                    side: order.side,
                    price,
                    quantity,
                });
                if first.quantity == 0 {
                    self.places.remove(&first.id);
                    level.get_mut().pop_front();
                }
            }
            if level.get().is_empty() {
                level.remove();
            }
        }
        let Some(price) = order.price.filter(|_| left > 0) else {
            return (fills, 0);
        };
        self.places.insert(order.id, (order.side, price));
        self.side_mut(order.side).entry(price).or_default().push_back(Resting {
            id: order.id,
            owner: order.owner,
            quantity: left,
        });
        (fills, left)
    }

    /// Removes a waiting order of this owner. Returns what had not been traded. `None`: there is no
    /// such order (any more), or it belongs to another owner.
    pub fn cancel(&mut self, id: u64, owner: &str) -> Option<u32> {
        let (side, price) = *self.places.get(&id)?;
        let levels = self.side_mut(side);
        let queue = levels.get_mut(&price)?;
        let at = queue
            .iter()
            .position(|resting| resting.id == id && &*resting.owner == owner)?;
        let quantity = queue.remove(at)?.quantity;
        if queue.is_empty() {
            levels.remove(&price);
        }
        self.places.remove(&id);
        Some(quantity)
    }

    /// The best `depth` prices of a side and how many shares wait at each, best first.
    pub fn levels(&self, side: Side, depth: usize) -> Vec<(u32, u64)> {
        let total = |(price, queue): (&u32, &Queue)| (*price, queue.iter().map(|resting| u64::from(resting.quantity)).sum());
        match side {
            Side::Buy => self.bids.iter().rev().take(depth).map(total).collect(),
            Side::Sell => self.asks.iter().take(depth).map(total).collect(),
        }
    }

    /// The best price of a side.
    #[cfg(test)]
    pub fn best(&self, side: Side) -> Option<u32> {
        match side {
            Side::Buy => self.bids.last_key_value(),
            Side::Sell => self.asks.first_key_value(),
        }
        .map(|(price, _)| *price)
    }

    fn side_mut(&mut self, side: Side) -> &mut BTreeMap<u32, Queue> {
        match side {
            Side::Buy => &mut self.bids,
            Side::Sell => &mut self.asks,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    fn order(id: u64, owner: &str, side: Side, price: impl Into<Option<u32>>, quantity: u32) -> Order {
        Order {
            id,
            owner: owner.into(),
            side,
            price: price.into(),
            quantity,
        }
    }

    #[test]
    fn the_best_price_trades_first_and_within_it_the_oldest() {
        let mut book = Book::default();
        for (id, price) in [(1, 101), (2, 100), (3, 100)] {
            assert_eq!(book.submit(order(id, "maker", Side::Sell, price, 10)), (vec![], 10));
        }
        let (fills, left) = book.submit(order(4, "taker", Side::Buy, 101, 25));
        let told: Vec<_> = fills.iter().map(|fill| (fill.maker.0, fill.price, fill.quantity)).collect();
        assert_eq!((told, left), (vec![(2, 100, 10), (3, 100, 10), (1, 101, 5)], 0));
        assert_eq!(
            (book.levels(Side::Sell, 9), book.levels(Side::Buy, 9)),
            (vec![(101, 5)], vec![])
        );
    }

    #[test]
    fn a_limit_order_waits_and_a_market_order_does_not() {
        let mut book = Book::default();
        book.submit(order(1, "a", Side::Buy, 99, 5));
        assert_eq!(book.submit(order(2, "b", Side::Sell, 100, 5)), (vec![], 5));
        let (fills, left) = book.submit(order(3, "c", Side::Buy, None, 8));
        assert_eq!((fills.len(), fills[0].quantity, left), (1, 5, 0));
        assert_eq!(book.levels(Side::Buy, 9), vec![(99, 5)]);
    }

    #[test]
    fn only_its_owner_cancels_an_order_and_only_once() {
        let mut book = Book::default();
        book.submit(order(1, "a", Side::Buy, 99, 5));
        book.submit(order(2, "b", Side::Sell, 99, 2));
        assert_eq!(book.cancel(1, "b"), None);
        assert_eq!(book.cancel(1, "a"), Some(3));
        assert_eq!((book.cancel(1, "a"), book.best(Side::Buy)), (None, None));
    }

    /// What the book should do, written the slow way: all waiting orders in one list, in the order
    /// in which they came.
    #[derive(Default)]
    struct Plain(Vec<Order>);

    impl Plain {
        fn submit(&mut self, mut order: Order) -> Vec<(u64, u32, u32)> {
            let mut fills = Vec::new();
            loop {
                let fits = |price: u32, limit: u32| match order.side {
                    Side::Buy => price <= limit,
                    Side::Sell => price >= limit,
                };
                let crosses = |waiting: &&mut Order| {
                    let (wanted, price) = (order.price, waiting.price.unwrap());
                    waiting.side != order.side && wanted.is_none_or(|limit| fits(price, limit))
                };
                // `min_by_key` gives the first of several that are equal: the oldest.
                let best = self.0.iter_mut().filter(crosses).min_by_key(|waiting| {
                    let price = i64::from(waiting.price.unwrap());
                    if order.side == Side::Buy { price } else { -price }
                });
                let Some(best) = best.filter(|_| order.quantity > 0) else {
                    break;
                };
                let quantity = best.quantity.min(order.quantity);
                best.quantity -= quantity;
                order.quantity -= quantity;
                fills.push((best.id, best.price.unwrap(), quantity));
                self.0.retain(|waiting| waiting.quantity > 0);
            }
            if order.quantity > 0 && order.price.is_some() {
                self.0.push(order);
            }
            fills
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Submit(Side, Option<u32>, u32),
        Cancel(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let side = prop_oneof![Just(Side::Buy), Just(Side::Sell)];
        // Few prices, so that orders meet.
        let submit = (side, prop::option::weighted(0.9, 1u32..12), 1u32..20).prop_map(|(s, p, q)| Step::Submit(s, p, q));
        prop::collection::vec(prop_oneof![4 => submit, 1 => (1u64..60).prop_map(Step::Cancel)], 1..80)
    }

    proptest! {
        #[test]
        fn never_crossed_by_price_and_time_and_nothing_is_lost(steps in steps()) {
            let (mut book, mut plain) = (Book::default(), Plain::default());
            let (mut submitted, mut traded, mut dropped) = (0u64, 0u64, 0u64);
            for (step, id) in steps.into_iter().zip(1u64..) {
                match step {
                    Step::Submit(side, price, quantity) => {
                        submitted += u64::from(quantity);
                        let (fills, left) = book.submit(order(id, "anyone", side, price, quantity));
                        // Price-time priority: trade for trade what the plain list does.
                        let told: Vec<_> = fills.iter().map(|fill| (fill.maker.0, fill.price, fill.quantity)).collect();
                        prop_assert_eq!(told, plain.submit(order(id, "anyone", side, price, quantity)));
                        let filled: u32 = fills.iter().map(|fill| fill.quantity).sum();
                        for fill in &fills {
                            let within = price.is_none_or(|limit| if side == Side::Buy { fill.price <= limit } else { fill.price >= limit });
                            prop_assert!(within, "{:?} was traded for a limit of {:?}", fill, price);
                        }
                        traded += 2 * u64::from(filled);
                        dropped += u64::from(quantity - filled - left);
                        prop_assert!(price.is_none() || quantity == filled + left);
                    }
                    Step::Cancel(id) => {
                        let expected = plain.0.iter().position(|order| order.id == id).map(|at| plain.0.remove(at).quantity);
                        let cancelled = book.cancel(id, "anyone");
                        prop_assert_eq!(cancelled, expected);
                        dropped += u64::from(cancelled.unwrap_or(0));
                    }
                }
                if let (Some(bid), Some(ask)) = (book.best(Side::Buy), book.best(Side::Sell)) {
                    prop_assert!(bid < ask, "crossed: {bid} is bid, {ask} is asked");
                }
                // Conservation: every share that was ever wanted was traded, was dropped, or waits.
                let waits: u64 = [Side::Buy, Side::Sell].iter().flat_map(|side| book.levels(*side, usize::MAX)).map(|(_, q)| q).sum();
                prop_assert_eq!(submitted, traded + dropped + waits);
                prop_assert_eq!(book.places.len(), plain.0.len());
            }
        }
    }
}
