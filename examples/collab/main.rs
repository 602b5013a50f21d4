//! One text, many writers: Yjs in the browser, yrs here, binary updates between them. `cargo run
//! --example collab`

mod document;
#[path = "../shared/mod.rs"]
mod shared;

use airwave::config::Sources;
use airwave::{
    Airwave, Builder, Channel, Client, Config, ConnectRequest, Data, Handler, Identity, LeaveReason, Message, Publish, Refusal,
    Reply,
};
use axum::Router;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

const MAX_PLACE: usize = 200;

/// The text.
struct Texts;

/// What a client says it has, in base64; it is answered with what it lacks, and with what the
/// server has.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sync {
    vector: String,
}

impl Handler for Texts {
    async fn connect(&self, request: &ConnectRequest) -> Result<Identity, Refusal> {
        shared::who(request)
    }

    async fn message(&self, _client: &Client, channel: &Channel, message: Message) -> Result<Reply, Refusal> {
        let document = document::open(channel.param("document").unwrap_or_default()).await?;
        match (message.event.as_str(), &message.data) {
            ("update", Data::Binary(update)) => {
                let (update, channel) = (update.clone(), channel.clone());
                // In a task of its own: what was merged is told to the others, even if its writer's
                // connection breaks meanwhile.
                let told = tokio::spawn(async move {
                    let mut document = document.lock().await;
                    document.take(&update)?;
                    // Publishes under the lock, so no other task can merge or sync. A client that
                    // subscribes and then syncs either hears this update or gets it with the sync.
                    let update = document.news_of(update.to_vec());
                    let told = channel.publish_with(Publish::binary("update", update)).await;
                    document.told(told.is_ok());
                    told.map(|_| Reply::done())
                });
                told.await
                    .unwrap_or_else(|_| Err(Refusal::internal("the update was not taken")))
            }
            ("sync", _) => {
                let Sync { vector } = message.json()?;
                let vector = STANDARD
                    .decode(vector)
                    .map_err(|_| Refusal::bad_request("'vector' is base64"))?;
                let document = document.lock().await;
                let missing = document
                    .missing(&vector)
                    .ok_or_else(|| Refusal::bad_request("'vector' is no state vector"))?;
                let (update, vector) = (STANDARD.encode(missing), STANDARD.encode(document.vector()));
                Ok(Reply::json(&serde_json::json!({"update": update, "vector": vector}))?)
            }
            (other, _) => Err(Refusal::bad_request(format!(
                "a text knows 'update' (binary) and 'sync', not '{other}'"
            ))),
        }
    }
}

/// Where everybody is. A place is Yjs's own and opaque here; it moves with the text around it.
struct Cursors;

#[derive(Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields)]
struct Cursor {
    anchor: String,
    head: String,
}

impl Handler for Cursors {
    async fn connect(&self, request: &ConnectRequest) -> Result<Identity, Refusal> {
        shared::who(request)
    }

    async fn message(&self, client: &Client, channel: &Channel, message: Message) -> Result<Reply, Refusal> {
        let cursor: Cursor = message.json()?;
        if cursor.anchor.len().max(cursor.head.len()) > MAX_PLACE {
            return Err(Refusal::bad_request(format!("a place has at most {MAX_PLACE} bytes")));
        }
        let who = client
            .user()
            .ok_or_else(|| Refusal::forbidden("say who you are: show a name as bearer token"))?;
        show(channel, who, Some(cursor)).await?;
        Ok(Reply::done())
    }

    async fn unsubscribe(&self, client: &Client, channel: &Channel, _reason: LeaveReason) {
        if let Some(who) = client.user() {
            // In an outage no page hears of it. Each page lets silent cursors fade.
            drop(show(channel, who, None).await);
        }
    }
}

async fn show(channel: &Channel, who: &str, cursor: Option<Cursor>) -> Result<(), Refusal> {
    let shown = serde_json::json!({"who": who, "cursor": cursor});
    channel.publish_with(Publish::json("cursor", &shown).key(who)).await?;
    Ok(())
}

/// Registers the handlers of the documents and their presence.
pub fn add(builder: Builder) -> Builder {
    builder
        .handle("collab/{document}", Texts)
        .handle("collab/{document}/cursors", Cursors)
}

/// Does nothing: the document changes only when a user writes.
pub fn start(_airwave: &Airwave) {}

/// The page, at `/collab/`.
pub fn page() -> Router {
    shared::page(
        "/collab/",
        &[
            ("index.html", include_str!("page/index.html")),
            ("page.js", include_str!("page/page.js")),
            ("preview.js", include_str!("page/preview.js")),
            ("shared-text.js", include_str!("page/shared-text.js")),
            ("yjs.js", include_str!("page/yjs.js")),
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
    let app = shared::alone(&airwave, page(), "/collab/");
    airwave
        .serve_until(app, airwave::server::asked_to_end(), shared::say("/collab/"))
        .await
}
