//! Typed end to end, for signed-in users: the events and commands of an order are Rust enums, the
//! page has their TypeScript types, and what does not fit is refused with the path of the wrong
//! field.
//!
//! ```text
//! cargo run --features typescript --example typed
//! cargo run --features typescript --example typed types > orders.ts
//! ```

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use airwave::config::Sources;
use airwave::typescript::{TS, Types};
use airwave::{Airwave, Channel, Client, Config, ConnectRequest, Handler, Identity, Message, Refusal, Reply};
use axum::routing::post;
use serde::{Deserialize, Serialize};

/// What a listener of an order hears.
#[derive(Serialize, TS)]
#[serde(tag = "event", content = "data", rename_all = "kebab-case")]
#[ts(crate = "airwave::typescript::ts_rs")]
enum OrderEvents {
    OrderUpdate { status: Status, items: Vec<Item> },
    Cancelled { why: String },
}

/// What it may say.
#[derive(Deserialize, TS)]
#[serde(tag = "event", content = "data", rename_all = "kebab-case")]
#[ts(crate = "airwave::typescript::ts_rs")]
enum OrderCommands {
    AddItems { items: Vec<Item> },
    Cancel { why: String },
}

#[derive(Serialize, Deserialize, TS)]
#[serde(rename_all = "kebab-case")]
#[ts(crate = "airwave::typescript::ts_rs")]
enum Status {
    Open,
    Shipped,
}

#[derive(Serialize, Deserialize, TS)]
#[ts(crate = "airwave::typescript::ts_rs")]
struct Item {
    name: String,
    cents: u32,
}

/// Who has signed in: the tokens that are good now.
#[derive(Clone, Default)]
struct Tokens(Arc<Mutex<(u64, HashSet<String>)>>);

impl Tokens {
    fn issue(&self) -> String {
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.0 += 1;
        // A real one is signed, or random.
        let token = format!("token-{}", tokens.0);
        tokens.1.insert(token.clone());
        token
    }

    fn revoke_all(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1.clear();
    }

    fn is_good(&self, token: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1.contains(token)
    }
}

struct Orders(Tokens);

impl Handler for Orders {
    async fn connect(&self, request: &ConnectRequest) -> Result<Identity, Refusal> {
        match request.bearer_token() {
            Some(token) if self.0.is_good(token) => Ok(Identity::user(token)),
            _ => Err(Refusal::unauthorized("sign in first")),
        }
    }

    async fn message(&self, _client: &Client, channel: &Channel, message: Message) -> Result<Reply, Refusal> {
        let event = match message.typed()? {
            OrderCommands::AddItems { items } => OrderEvents::OrderUpdate {
                status: Status::Open,
                items,
            },
            OrderCommands::Cancel { why } => OrderEvents::Cancelled { why },
        };
        channel.publish_typed(&event).await?;
        Ok(Reply::done())
    }
}

const CONFIG: &str = r#"
[[channels]]
match = "orders/{id}"
transport = ["websocket", "sse"]
presence = true
"#;

#[tokio::main]
async fn main() -> airwave::Result<()> {
    let argument = std::env::args().nth(1);
    if argument.as_deref() == Some("types") {
        print!("{}", Types::new().with::<OrderEvents>().with::<OrderCommands>().text()?);
        return Ok(());
    }
    let mut config = Config::load(&Sources::of_file("typed.toml", CONFIG))?;
    if let Some(address) = argument.and_then(|text| text.parse().ok()) {
        config.listen = address;
    }
    let tokens = Tokens::default();
    let (sign_in, sign_out) = (tokens.clone(), tokens.clone());
    let airwave = Airwave::from_config(config)
        .handle("orders/{id}", Orders(tokens))
        .build()
        .await?;
    let app = axum::Router::new()
        .route("/sign-in", post(|| async move { sign_in.issue() }))
        .route("/sign-out-everybody", post(|| async move { sign_out.revoke_all() }))
        .merge(airwave.router());
    airwave
        .serve_until(app, airwave::server::asked_to_end(), |address| {
            println!("listening on http://{address}")
        })
        .await
}
