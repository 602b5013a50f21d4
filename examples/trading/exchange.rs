//! The exchange around the books: who may order what, what it made of everybody's account, and what
//! there is to tell of it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::book::{Book, Fill, Order, Side};

/// What is traded, and at which price (in cents) trading begins.
pub const SYMBOLS: [(&str, u32); 4] = [("AIRW", 12_500), ("WAVE", 4_210), ("SOCK", 31_870), ("STRM", 890)];
/// Every account begins with so many cents.
pub const CASH: i64 = 10_000_000;

// What one client may make the exchange keep and do.
const MAX_PRICE: u32 = 1_000_000;
const MAX_QUANTITY: u32 = 10_000;
const MAX_OPEN: usize = 50;
const MAX_POSITION: i64 = 1_000_000;
const MAX_ACCOUNTS: usize = 2_000;
/// So many order references of an account are remembered: a repeated order is answered, not done
/// again.
const REMEMBERED: usize = 200;
const SHOWN_TRADES: usize = 14;

/// An order as a client sends it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewOrder {
    /// The client's own name for it. A second order of the same name is not done; it is answered
    /// like the first.
    pub reference: String,
    pub symbol: String,
    pub side: Side,
    /// Cents. None: a market order.
    pub price: Option<u32>,
    pub quantity: u32,
}

/// What became of an order the moment it came.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ack {
    pub order: u64,
    pub reference: String,
    pub filled: u32,
    pub resting: u32,
    /// What was paid or taken for each share on average, in cents; none if nothing was traded.
    pub average: Option<f64>,
}

/// An order that waits.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Open {
    pub order: u64,
    pub symbol: &'static str,
    pub side: Side,
    pub price: u32,
    pub left: u32,
}

/// What an account holds of a symbol: shares (below zero: sold without having) and the cents paid
/// for them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Position {
    pub shares: i64,
    pub cost: i64,
}

/// A trade as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Trade {
    pub number: u64,
    pub symbol: &'static str,
    /// What the incoming order did; in a statement, what the account's owner did.
    pub side: Side,
    pub price: u32,
    pub quantity: u32,
}

/// An account as its owner sees it.
#[derive(Debug, Clone, Serialize)]
pub struct Statement {
    pub cash: i64,
    pub positions: HashMap<&'static str, Position>,
    pub open: Vec<Open>,
    /// The newest trades, oldest first.
    pub trades: VecDeque<Trade>,
}

/// A symbol as everybody sees it.
#[derive(Debug, Clone, Serialize)]
pub struct Quote {
    pub symbol: &'static str,
    pub bids: Vec<(u32, u64)>,
    pub asks: Vec<(u32, u64)>,
    pub last: u32,
    pub opened: u32,
    pub volume: u64,
    /// The newest trades, oldest first.
    pub trades: VecDeque<Trade>,
}

#[derive(Debug, Default)]
struct Account {
    cash: i64,
    positions: HashMap<&'static str, Position>,
    open: Vec<Open>,
    answered: VecDeque<Ack>,
    trades: VecDeque<Trade>,
}

#[derive(Debug)]
struct Market {
    symbol: &'static str,
    book: Book,
    last: u32,
    opened: u32,
    volume: u64,
    trades: VecDeque<Trade>,
}

/// All books and all accounts.
#[derive(Debug)]
pub struct Exchange {
    markets: Vec<Market>,
    accounts: HashMap<Arc<str>, Account>,
    last_order: u64,
    last_trade: u64,
    changed_markets: HashSet<&'static str>,
    changed_accounts: HashSet<Arc<str>>,
}

impl Default for Exchange {
    fn default() -> Self {
        let market = |(symbol, price)| Market {
            symbol,
            book: Book::default(),
            last: price,
            opened: price,
            volume: 0,
            trades: VecDeque::new(),
        };
        Self {
            markets: SYMBOLS.map(market).into(),
            accounts: HashMap::new(),
            last_order: 0,
            last_trade: 0,
            changed_markets: HashSet::new(),
            changed_accounts: HashSet::new(),
        }
    }
}

impl NewOrder {
    /// Whether it can be an order at all.
    fn check(&self) -> Result<(), String> {
        if self.reference.is_empty() || self.reference.len() > 64 {
            return Err("'reference' names the order, in 1 to 64 bytes".into());
        }
        if !(1..=MAX_QUANTITY).contains(&self.quantity) {
            return Err(format!("'quantity' is a number of shares from 1 to {MAX_QUANTITY}"));
        }
        if self.price.is_some_and(|price| !(1..=MAX_PRICE).contains(&price)) {
            return Err(format!("'price' is a number of cents from 1 to {MAX_PRICE}"));
        }
        Ok(())
    }
}

impl Account {
    /// Whether its owner may have one more order, and may reach that position.
    fn allows(&self, symbol: &str, new: &NewOrder) -> Result<(), String> {
        let waits: i64 = self
            .open
            .iter()
            .filter(|open| open.symbol == symbol && open.side == new.side)
            .map(|open| i64::from(open.left))
            .sum();
        let shares = self.positions.get(symbol).map_or(0, |position| position.shares);
        let reached = if new.side == Side::Buy { shares } else { -shares } + waits + i64::from(new.quantity);
        if reached > MAX_POSITION {
            return Err(format!("that could take your position beyond {MAX_POSITION} shares"));
        }
        if self.open.len() >= MAX_OPEN {
            return Err(format!("you have {MAX_OPEN} orders waiting: cancel one first"));
        }
        Ok(())
    }
}

impl Exchange {
    /// Carries an order out. Gives what its owner is answered.
    ///
    /// # Errors
    /// A sentence for the client, and nothing has happened.
    pub fn order(&mut self, owner: &str, new: NewOrder) -> Result<Ack, String> {
        new.check()?;
        let known = || SYMBOLS.map(|(symbol, _)| symbol).join(", ");
        let at = self
            .market(&new.symbol)
            .ok_or_else(|| format!("nothing is traded under this symbol: there are {}", known()))?;
        let owner = self.account(owner)?;
        let account = self.accounts.entry(owner.clone()).or_default();
        if let Some(ack) = account.answered.iter().find(|ack| ack.reference == new.reference) {
            return Ok(ack.clone());
        }
        let symbol = self.markets[at].symbol;
        account.allows(symbol, &new)?;
        self.last_order += 1;
        let order = self.last_order;
        let (fills, resting) = self.markets[at].book.submit(Order {
            id: order,
            owner: owner.clone(),
            side: new.side,
            price: new.price,
            quantity: new.quantity,
        });
        self.changed_markets.insert(symbol);
        self.changed_accounts.insert(owner.clone());
        for fill in &fills {
            self.changed_accounts.insert(fill.maker.1.clone());
            self.settle(at, fill);
        }
        let filled: u32 = fills.iter().map(|fill| fill.quantity).sum();
        let paid: f64 = fills
            .iter()
            .map(|fill| f64::from(fill.price) * f64::from(fill.quantity))
            .sum();
        let ack = Ack {
            order,
            reference: new.reference,
            filled,
            resting,
            average: (filled > 0).then(|| paid / f64::from(filled)),
        };
        let account = self.accounts.entry(owner).or_default();
        if let Some(price) = new.price.filter(|_| resting > 0) {
            account.open.push(Open {
                order,
                symbol,
                side: new.side,
                price,
                left: resting,
            });
        }
        account.answered.push_back(ack.clone());
        if account.answered.len() > REMEMBERED {
            account.answered.pop_front();
        }
        Ok(ack)
    }

    /// Takes a waiting order back. Gives how many shares of it had not been traded.
    ///
    /// # Errors
    /// A sentence for the client: the order was traded, cancelled, or never theirs.
    pub fn cancel(&mut self, owner: &str, order: u64) -> Result<u32, String> {
        let gone = || "this order does not wait (any more)".to_owned();
        let name = self.accounts.get_key_value(owner).ok_or_else(gone)?.0.clone();
        let account = self.accounts.get_mut(owner).ok_or_else(gone)?;
        let at = account.open.iter().position(|open| open.order == order).ok_or_else(gone)?;
        let symbol = account.open.remove(at).symbol;
        let market = self.market(symbol).ok_or_else(gone)?;
        let left = self.markets[market].book.cancel(order, owner).ok_or_else(gone)?;
        self.changed_markets.insert(symbol);
        self.changed_accounts.insert(name);
        Ok(left)
    }

    /// Returns what an owner has. Asking opens no account.
    pub fn statement(&self, owner: &str) -> Statement {
        match self.accounts.get(owner) {
            Some(account) => Statement {
                cash: account.cash,
                positions: account.positions.clone(),
                open: account.open.clone(),
                trades: account.trades.clone(),
            },
            None => Statement {
                cash: CASH,
                positions: HashMap::new(),
                open: Vec::new(),
                trades: VecDeque::new(),
            },
        }
    }

    /// How a symbol stands now.
    pub fn quote(&self, symbol: &str) -> Option<Quote> {
        let market = &self.markets[self.market(symbol)?];
        Some(Quote {
            symbol: market.symbol,
            bids: market.book.levels(Side::Buy, 6),
            asks: market.book.levels(Side::Sell, 6),
            last: market.last,
            opened: market.opened,
            volume: market.volume,
            trades: market.trades.clone(),
        })
    }

    /// How everything stands that has changed since this was last asked.
    pub fn changes(&mut self) -> (Vec<Quote>, Vec<(Arc<str>, Statement)>) {
        let (symbols, owners) = (
            std::mem::take(&mut self.changed_markets),
            std::mem::take(&mut self.changed_accounts),
        );
        let quotes = symbols.into_iter().filter_map(|symbol| self.quote(symbol)).collect();
        let statements = owners
            .into_iter()
            .map(|owner| (owner.clone(), self.statement(&owner)))
            .collect();
        (quotes, statements)
    }

    fn market(&self, symbol: &str) -> Option<usize> {
        self.markets.iter().position(|market| market.symbol == symbol)
    }

    /// The account of that name, opened if need be.
    fn account(&mut self, owner: &str) -> Result<Arc<str>, String> {
        if let Some((owner, _)) = self.accounts.get_key_value(owner) {
            return Ok(owner.clone());
        }
        if self.accounts.len() >= MAX_ACCOUNTS {
            // An account with no shares and no open order loses nothing by it.
            self.accounts
                .retain(|_, account| !account.open.is_empty() || account.positions.values().any(|position| position.shares != 0));
        }
        if self.accounts.len() >= MAX_ACCOUNTS {
            return Err("the exchange has no room for another account".into());
        }
        let owner: Arc<str> = owner.into();
        self.accounts.insert(
            owner.clone(),
            Account {
                cash: CASH,
                ..Account::default()
            },
        );
        Ok(owner)
    }

    /// Moves money and shares. What one account gets, the other gives.
    fn settle(&mut self, at: usize, fill: &Fill) {
        let market = &mut self.markets[at];
        market.last = fill.price;
        market.volume += u64::from(fill.quantity);
        self.last_trade += 1;
        let trade = |side| Trade {
            number: self.last_trade,
            symbol: market.symbol,
            side,
            price: fill.price,
            quantity: fill.quantity,
        };
        remember(&mut market.trades, trade(fill.side));
        let (symbol, shares) = (market.symbol, i64::from(fill.quantity));
        let taken = if fill.side == Side::Buy { shares } else { -shares };
        for ((_, owner), shares) in [(&fill.taker, taken), (&fill.maker, -taken)] {
            let account = self.accounts.entry(owner.clone()).or_default();
            remember(&mut account.trades, trade(if shares > 0 { Side::Buy } else { Side::Sell }));
            let money = shares * i64::from(fill.price);
            account.cash -= money;
            let position = account.positions.entry(symbol).or_default();
            // What is sold of a position goes at what it cost on average; what goes beyond it opens
            // a new one at today's price.
            let before = *position;
            position.shares += shares;
            position.cost = if before.shares == 0 || before.shares.signum() == shares.signum() {
                before.cost + money
            } else if position.shares.signum() == before.shares.signum() {
                before.cost * position.shares / before.shares
            } else {
                position.shares * i64::from(fill.price)
            };
        }
        let maker = self.accounts.entry(fill.maker.1.clone()).or_default();
        for open in maker.open.iter_mut().filter(|open| open.order == fill.maker.0) {
            open.left -= fill.quantity;
        }
        maker.open.retain(|open| open.left > 0);
    }
}

/// Keeps the newest.
fn remember(trades: &mut VecDeque<Trade>, trade: Trade) {
    trades.push_back(trade);
    if trades.len() > SHOWN_TRADES {
        trades.pop_front();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    fn new(reference: impl ToString, side: Side, price: Option<u32>, quantity: u32) -> NewOrder {
        NewOrder {
            reference: reference.to_string(),
            symbol: "AIRW".into(),
            side,
            price,
            quantity,
        }
    }

    #[test]
    fn an_order_is_answered_settled_and_not_done_twice() {
        let mut exchange = Exchange::default();
        let ack = exchange.order("ada", new("a1", Side::Sell, Some(100), 10)).unwrap();
        assert_eq!((ack.filled, ack.resting, ack.average), (0, 10, None));
        let bought = exchange.order("bob", new("b1", Side::Buy, Some(120), 4)).unwrap();
        assert_eq!((bought.filled, bought.resting, bought.average), (4, 0, Some(100.0)));
        let (quotes, statements) = exchange.changes();
        assert_eq!(
            (quotes[0].last, quotes[0].volume, quotes[0].asks.as_slice()),
            (100, 4, &[(100, 6)][..])
        );
        let told: HashSet<_> = statements.iter().map(|(owner, _)| &**owner).collect();
        assert_eq!(told, HashSet::from(["ada", "bob"]));
        assert_eq!(exchange.order("bob", new("b1", Side::Buy, Some(120), 4)).unwrap(), bought);
        assert!(exchange.changes().0.is_empty());
        let (ada, bob) = (exchange.statement("ada"), exchange.statement("bob"));
        assert_eq!(
            (ada.cash, ada.positions["AIRW"].shares, ada.open[0].left),
            (CASH + 400, -4, 6)
        );
        assert_eq!(
            (bob.cash, bob.positions["AIRW"], bob.open.len()),
            (CASH - 400, Position { shares: 4, cost: 400 }, 0)
        );
        assert_eq!(
            exchange.cancel("bob", ack.order).unwrap_err(),
            "this order does not wait (any more)"
        );
        assert_eq!(exchange.cancel("ada", ack.order).unwrap(), 6);
        assert!(exchange.quote("AIRW").unwrap().asks.is_empty());
    }

    #[test]
    fn what_is_out_of_bounds_is_refused_and_changes_nothing() {
        let mut exchange = Exchange::default();
        for bad in [
            new("", Side::Buy, Some(1), 1),
            new("x".repeat(65), Side::Buy, Some(1), 1),
            new("x", Side::Buy, Some(0), 1),
            new("x", Side::Buy, Some(MAX_PRICE + 1), 1),
            new("x", Side::Buy, Some(1), 0),
            new("x", Side::Buy, Some(1), MAX_QUANTITY + 1),
            NewOrder {
                symbol: "NONE".into(),
                ..new("x", Side::Buy, Some(1), 1)
            },
        ] {
            exchange.order("ada", bad).unwrap_err();
        }
        for n in 0..MAX_OPEN {
            exchange.order("ada", new(n, Side::Buy, Some(1), 1)).unwrap();
        }
        exchange.order("ada", new("one more", Side::Buy, Some(1), 1)).unwrap_err();
        assert_eq!(exchange.statement("ada").open.len(), MAX_OPEN);
    }

    #[test]
    fn there_are_so_many_accounts_and_idle_ones_give_way() {
        let mut exchange = Exchange::default();
        exchange.order("keeps", new("k", Side::Buy, Some(1), 1)).unwrap();
        for n in 0..2 * MAX_ACCOUNTS {
            exchange.order(&n.to_string(), new("m", Side::Sell, None, 1)).unwrap();
        }
        assert!(exchange.accounts.len() <= MAX_ACCOUNTS);
        assert_eq!(exchange.statement("keeps").positions["AIRW"].shares, 1);
    }

    proptest! {
        #[test]
        fn money_and_shares_are_neither_made_nor_lost(steps in prop::collection::vec((0usize..3, any::<bool>(), prop::option::of(95u32..105), 1u32..50, 0u64..40), 1..60)) {
            let names = ["ada", "bob", "cyd"];
            let mut exchange = Exchange::default();
            for (n, (who, buys, price, quantity, cancel)) in steps.into_iter().enumerate() {
                let side = if buys { Side::Buy } else { Side::Sell };
                exchange.order(names[who], new(n, side, price, quantity)).unwrap();
                let _ = exchange.cancel(names[(who + 1) % 3], cancel);
                let accounts = exchange.accounts.values();
                prop_assert_eq!(accounts.clone().map(|account| account.cash - CASH).sum::<i64>(), 0);
                prop_assert_eq!(accounts.clone().flat_map(|account| account.positions.values()).map(|position| position.shares).sum::<i64>(), 0);
                // What accounts say waits is what waits in the book.
                let open: u64 = accounts.flat_map(|account| &account.open).map(|open| u64::from(open.left)).sum();
                let book = &exchange.markets[0].book;
                let waits: u64 = [Side::Buy, Side::Sell].iter().flat_map(|side| book.levels(*side, usize::MAX)).map(|(_, shares)| shares).sum();
                prop_assert_eq!(open, waits);
            }
        }
    }
}
