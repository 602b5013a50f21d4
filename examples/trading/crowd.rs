//! A crowd to trade with: one trader always offers both sides around a price that wanders, and
//! another takes now and then.

use super::book::Side;
use super::exchange::{Exchange, NewOrder, SYMBOLS};

/// No client can be called that: names of clients have no `@`.
const MAKER: &str = "@maker";
const TAKER: &str = "@taker";
/// So many prices on each side.
const DEPTH: u32 = 5;

/// What the crowd has in mind.
pub struct Crowd {
    fair: [f64; SYMBOLS.len()],
    seed: u64,
    orders: u64,
}

impl Crowd {
    /// The same seed, the same crowd.
    pub fn new(seed: u64) -> Self {
        Self {
            fair: SYMBOLS.map(|(_, price)| f64::from(price)),
            seed,
            orders: 0,
        }
    }

    /// Offers both sides of every symbol, so that the first user finds a counterparty at once.
    pub fn open(&mut self, exchange: &mut Exchange) {
        for at in 0..SYMBOLS.len() {
            self.quote(exchange, at);
        }
    }

    /// One thought about one symbol.
    pub fn act(&mut self, exchange: &mut Exchange) {
        let at = (self.unit() * SYMBOLS.len() as f64) as usize % SYMBOLS.len();
        self.quote(exchange, at);
        if self.unit() < 0.6 {
            let side = if self.unit() < 0.5 { Side::Buy } else { Side::Sell };
            let quantity = 1 + (self.unit() * self.unit() * 90.0) as u32;
            self.order(exchange, TAKER, SYMBOLS[at].0, side, None, quantity);
        }
    }

    /// Moves the price a little, and the offers with it.
    fn quote(&mut self, exchange: &mut Exchange, at: usize) {
        let (symbol, opened) = SYMBOLS[at];
        let (opened, step) = (f64::from(opened), (self.unit() + self.unit() + self.unit() - 1.5) * 0.003);
        // A wander that is drawn back to where it began, so that it neither ends at nothing nor at
        // the highest price.
        self.fair[at] = (self.fair[at] * (1.0 + step) + (opened - self.fair[at]) * 0.004).clamp(opened * 0.5, opened * 2.0);
        let mine = exchange.statement(MAKER).open;
        for open in mine.iter().filter(|open| open.symbol == symbol) {
            // An order that was traded meanwhile is gone already.
            drop(exchange.cancel(MAKER, open.order));
        }
        let fair = self.fair[at] as u32;
        let tick = (fair / 1000).max(1);
        for level in 1..=DEPTH {
            for (side, price) in [
                (Side::Buy, fair.saturating_sub(tick * level)),
                (Side::Sell, fair + tick * level),
            ] {
                let quantity = 20 + (self.unit() * 120.0) as u32 * level;
                self.order(exchange, MAKER, symbol, side, Some(price.max(1)), quantity);
            }
        }
    }

    fn order(&mut self, exchange: &mut Exchange, who: &str, symbol: &str, side: Side, price: Option<u32>, quantity: u32) {
        self.orders += 1;
        let order = NewOrder {
            reference: self.orders.to_string(),
            symbol: symbol.to_owned(),
            side,
            price,
            quantity,
        };
        if let Err(refused) = exchange.order(who, order) {
            tracing::debug!(refused, "the crowd's order");
        }
    }

    /// From 0 to 1: SplitMix64 (Steele, Lea, Flood, 2014).
    fn unit(&mut self) -> f64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.seed ^ (self.seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn there_is_always_a_counterparty_from_the_first_moment() {
        let (mut exchange, mut crowd) = (Exchange::default(), Crowd::new(0x5eed));
        crowd.open(&mut exchange);
        for _ in 0..1000 {
            for (symbol, _) in SYMBOLS {
                let quote = exchange.quote(symbol).unwrap();
                assert!(!quote.bids.is_empty() && !quote.asks.is_empty(), "{quote:?}");
            }
            crowd.act(&mut exchange);
        }
    }
}
