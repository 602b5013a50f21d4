//! An exchange: quotes for everybody, orders that are matched by price and time, an account for each. `cargo run --example trading`

mod book;
mod crowd;
mod exchange;

use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use airwave::config::Sources;
use airwave::{Airwave, Builder, Channel, Client, Config, ConnectRequest, Handler, Identity, Key, Message, Refusal, Reply};
use axum::Router;
use axum::response::Redirect;
use axum::routing::get;
use crowd::Crowd;
use exchange::{Exchange, NewOrder};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

/// The exchange of this server. Matching takes microseconds and waits for nothing, so a plain lock will do.
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

#[airwave::async_trait]
impl Handler for Accounts {
    /// Whoever comes says which account is theirs, and is believed: the place for a real check of a real token.
    async fn connect(&self, request: &ConnectRequest) -> Result<Identity, Refusal> {
        match request.bearer_token() {
            None => Ok(Identity::anonymous()),
            Some(name) if (1..=32).contains(&name.len()) && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') => {
                Ok(Identity::user(name))
            }
            Some(_) => Err(Refusal::bad_request(
                "an account has a name of 1 to 32 letters, digits and '-'",
            )),
        }
    }

    async fn subscribe(&self, client: &Client, channel: &Channel) -> Result<(), Refusal> {
        owner(client, channel).map(drop)
    }

    async fn message(&self, client: &Client, channel: &Channel, message: Message) -> Result<Reply, Refusal> {
        let owner = owner(client, channel)?;
        // Answered when it is done: the reply is the acknowledgement, with what was traded at once and what waits.
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
    owner.ok_or_else(|| Refusal::forbidden("this account is somebody else's"))
}

/// Registers the handlers of quotes and orders.
pub fn add(builder: Builder) -> Builder {
    builder.handle("trading/accounts/{account}", Accounts)
}

/// The crowd trades, and one task tells what has changed, so that nothing older is ever told after something newer.
pub fn start(airwave: &Airwave) {
    let airwave = airwave.clone();
    tokio::spawn(async move {
        loop {
            CHANGED.notified().await;
            let (quotes, statements) = exchange().changes();
            let quotes = quotes
                .iter()
                .map(|quote| tell(&airwave, "trading/quotes".into(), "quote", quote.symbol, quote));
            for told in quotes {
                drop(told.await);
            }
            for (owner, statement) in statements.iter().filter(|(owner, _)| !owner.starts_with('@')) {
                drop(tell(&airwave, format!("trading/accounts/{owner}"), "statement", owner, statement).await);
            }
        }
    });
    tokio::spawn(async move {
        let mut crowd = Crowd::new(0x5eed);
        let mut clock = tokio::time::interval(Duration::from_millis(120));
        loop {
            clock.tick().await;
            crowd.act(&mut exchange());
            CHANGED.notify_one();
        }
    });
}

/// Only the newest under a key counts, so what cannot be told in an outage is told by what comes after it.
async fn tell<T: Serialize>(airwave: &Airwave, channel: String, event: &str, key: &str, value: &T) -> Result<(), Refusal> {
    let message = Message::json_of(event, value)?.with_key(Key::new(key)?);
    airwave.channel(&channel)?.publish_message(message).await?;
    Ok(())
}

/// The page, at `/trading/`.
pub fn page() -> Router {
    airwave::pages(
        "/trading/",
        &[
            ("index.html", include_str!("page/index.html")),
            ("page.js", include_str!("page/page.js")),
            ("preview.js", include_str!("page/preview.js")),
            ("page.css", include_str!("page/page.css")),
            ("frame.js", include_str!("../shared/frame.js")),
            ("style.css", include_str!("../shared/style.css")),
        ],
    )
}

#[tokio::main]
async fn main() -> airwave::Result<()> {
    let config = Config::load(&Sources::of_file("airwave.toml", include_str!("airwave.toml")).with_environment())?;
    let airwave = add(Airwave::from_config(config)).build().await?;
    start(&airwave);
    let front = Router::new().route("/", get(async || Redirect::temporary("/trading/")));
    airwave
        .serve_until(
            front.merge(page()).merge(airwave.router()),
            airwave::server::asked_to_end(),
            |address| {
                println!("open http://{address}/trading/");
            },
        )
        .await
}
