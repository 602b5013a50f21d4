//! An exchange: quotes for everybody, orders that are matched by price and time, an account for
//! each. `cargo run --example trading`

mod book;
mod crowd;
mod exchange;
#[path = "../shared/mod.rs"]
mod shared;

use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use airwave::config::Sources;
use airwave::{Airwave, Builder, Channel, Client, Config, ConnectRequest, Handler, Identity, Message, Publish, Refusal, Reply};
use axum::Router;
use crowd::Crowd;
use exchange::{Exchange, NewOrder};
use serde::Deserialize;
use tokio::sync::Notify;

/// The exchange of this server. Matching takes microseconds and waits for nothing, so a plain lock
/// will do.
static EXCHANGE: LazyLock<Mutex<Exchange>> = LazyLock::new(Mutex::default);
/// There is something to tell.
static CHANGED: Notify = Notify::const_new();

fn exchange() -> MutexGuard<'static, Exchange> {
    EXCHANGE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Everybody's own account: only its owner may listen to it and order on it.
struct Accounts;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Cancel {
    order: u64,
}

impl Handler for Accounts {
    /// Takes the account that the client names, without a check.
    async fn connect(&self, request: &ConnectRequest) -> Result<Identity, Refusal> {
        shared::who(request)
    }

    async fn subscribe(&self, client: &Client, channel: &Channel) -> Result<(), Refusal> {
        owner(client, channel).map(drop)
    }

    async fn message(&self, client: &Client, channel: &Channel, message: Message) -> Result<Reply, Refusal> {
        let owner = owner(client, channel)?;
        // Answered when it is done: the reply is the acknowledgement, with what was traded at once
        // and what waits.
        let reply = match message.event.as_str() {
            "order" => Reply::json(
                &exchange()
                    .order(owner, message.json::<NewOrder>()?)
                    .map_err(Refusal::bad_request)?,
            )?,
            "cancel" => Reply::json(
                &exchange()
                    .cancel(owner, message.json::<Cancel>()?.order)
                    .map_err(Refusal::bad_request)?,
            )?,
            "statement" => Reply::json(&exchange().statement(owner))?,
            other => {
                return Err(Refusal::bad_request(format!(
                    "an account knows 'order', 'cancel' and 'statement', not '{other}'"
                )));
            }
        };
        CHANGED.notify_one();
        Ok(reply)
    }
}

/// The owner of this account, if that is who asks.
fn owner<'a>(client: &'a Client, channel: &Channel) -> Result<&'a str, Refusal> {
    let owner = client.user().filter(|user| channel.param("account") == Some(user));
    owner.ok_or_else(|| Refusal::forbidden("this account belongs to another user"))
}

/// Registers the handlers of quotes and orders.
pub fn add(builder: Builder) -> Builder {
    builder.handle("trading/accounts/{account}", Accounts)
}

/// The crowd trades, and one task tells what has changed, so that nothing older is ever told after
/// something newer.
pub fn start(airwave: &Airwave) {
    let Ok(quoted) = airwave.channel("trading/quotes") else {
        return;
    };
    let airwave = airwave.clone();
    tokio::spawn(async move {
        loop {
            CHANGED.notified().await;
            let (quotes, statements) = exchange().changes();
            // Of each key only the newest counts, so what cannot be told in an outage is told by
            // what comes after it.
            for quote in &quotes {
                drop(quoted.publish_with(Publish::json("quote", quote).key(quote.symbol)).await);
            }
            for (owner, statement) in statements.iter().filter(|(owner, _)| !owner.starts_with('@')) {
                if let Ok(account) = airwave.channel(&format!("trading/accounts/{owner}")) {
                    drop(account.publish_with(Publish::json("statement", statement).key(owner)).await);
                }
            }
        }
    });
    // Before the first client can come.
    let mut crowd = Crowd::new(0x5eed);
    crowd.open(&mut exchange());
    CHANGED.notify_one();
    tokio::spawn(async move {
        let mut clock = tokio::time::interval(Duration::from_millis(120));
        loop {
            clock.tick().await;
            crowd.act(&mut exchange());
            CHANGED.notify_one();
        }
    });
}

/// The page, at `/trading/`.
pub fn page() -> Router {
    shared::page(
        "/trading/",
        &[
            ("index.html", include_str!("page/index.html")),
            ("page.js", include_str!("page/page.js")),
            ("preview.js", include_str!("page/preview.js")),
            ("page.css", include_str!("page/page.css")),
            ("source/main.rs", include_str!("main.rs")),
            ("source/airwave.toml", include_str!("airwave.toml")),
        ],
    )
}

#[tokio::main]
async fn main() -> airwave::Result<()> {
    let config = Config::load(&Sources::of_file("airwave.toml", include_str!("airwave.toml")).with_environment())?;
    let airwave = add(Airwave::from_config(config)).build().await?;
    start(&airwave);
    let app = shared::alone(&airwave, page(), "/trading/");
    airwave
        .serve_until(app, airwave::server::asked_to_end(), shared::say("/trading/"))
        .await
}
