//! Rooms to talk in: who is there, who is typing, and what was said before. `cargo run --example
//! chat`

#[path = "../shared/mod.rs"]
mod shared;
mod words;

use airwave::config::Sources;
use airwave::{
    Airwave, Builder, Channel, Client, Code, Config, ConnectRequest, Handler, Identity, Message, Publish, Refusal, Reply,
};
use axum::Router;
use words::{Earlier, Said, Say};

/// The rooms there are. A stranger makes no new ones.
const ROOMS: [&str; 4] = ["lobby", "rust", "music", "night-shift"];
const MAX_TEXT: usize = 2000;
const MAX_PAGE: usize = 50;

/// One room.
struct Room;

impl Handler for Room {
    async fn connect(&self, request: &ConnectRequest) -> Result<Identity, Refusal> {
        shared::who(request)
    }

    async fn subscribe(&self, _client: &Client, channel: &Channel) -> Result<(), Refusal> {
        exists(channel)
    }

    async fn message(&self, client: &Client, channel: &Channel, message: Message) -> Result<Reply, Refusal> {
        exists(channel)?;
        match message.event.as_str() {
            "say" => {
                let Say { text } = message.json()?;
                let text = text.trim();
                if text.is_empty() || text.len() > MAX_TEXT {
                    return Err(Refusal::bad_request(format!("say something, in at most {MAX_TEXT} bytes")));
                }
                channel.publish("said", &Said::now(name(client)?, text)).await?;
                Ok(Reply::done())
            }
            // The history over HTTP goes forwards from a cursor. A page that is scrolled up goes
            // backwards: that is a word with this handler.
            "earlier" => {
                let Earlier { before, limit } = message.json()?;
                let before = before
                    .parse()
                    .map_err(|_| Refusal::bad_request("'before' is the id of a message"))?;
                let kept = channel.history(None, channel.rule().history.events).await?;
                let older = kept.events.iter().take_while(|event| event.position < before);
                let older: Vec<_> = older
                    .filter_map(|event| Some((event.position.to_string(), event.message.json::<Said>().ok()?)))
                    .collect();
                let first = older.len().saturating_sub(limit.clamp(1, MAX_PAGE));
                Ok(Reply::json(
                    &serde_json::json!({"messages": &older[first..], "more": first > 0}),
                )?)
            }
            other => Err(Refusal::bad_request(format!(
                "a room knows 'say' and 'earlier', not '{other}'"
            ))),
        }
    }
}

/// Who is typing in a room.
struct Typing;

impl Handler for Typing {
    async fn connect(&self, request: &ConnectRequest) -> Result<Identity, Refusal> {
        shared::who(request)
    }

    async fn subscribe(&self, _client: &Client, channel: &Channel) -> Result<(), Refusal> {
        exists(channel)
    }

    async fn message(&self, client: &Client, channel: &Channel, message: Message) -> Result<Reply, Refusal> {
        exists(channel)?;
        let (on, from) = (message.json::<bool>()?, name(client)?);
        let typing = serde_json::json!({"from": from, "on": on});
        channel.publish_with(Publish::json("typing", &typing).key(from)).await?;
        Ok(Reply::done())
    }
}

fn name(client: &Client) -> Result<&str, Refusal> {
    client
        .user()
        .ok_or_else(|| Refusal::forbidden("say who you are: show a name as bearer token"))
}

fn exists(channel: &Channel) -> Result<(), Refusal> {
    match channel.param("room") {
        Some(room) if ROOMS.contains(&room) => Ok(()),
        _ => Err(Refusal::new(
            Code::UnknownChannel,
            format!("there is no such room: there are {}", ROOMS.join(", ")),
        )),
    }
}

/// Registers the handlers of the rooms.
pub fn add(builder: Builder) -> Builder {
    builder.handle("chat/{room}", Room).handle("chat/{room}/typing", Typing)
}

/// Publishes a first message in each room that is empty.
pub fn start(airwave: &Airwave) {
    let airwave = airwave.clone();
    tokio::spawn(async move {
        for room in ROOMS {
            let Ok(channel) = airwave.channel(&format!("chat/{room}")) else {
                return;
            };
            if channel.history(None, 1).await.is_ok_and(|kept| kept.events.is_empty()) {
                let welcome = format!("Welcome to #{room}. Open this page in a second window and talk to yourself.");
                drop(channel.publish("said", &Said::now("airwave", &welcome)).await);
            }
        }
    });
}

/// The page, at `/chat/`.
pub fn page() -> Router {
    shared::page(
        "/chat/",
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
    let app = shared::alone(&airwave, page(), "/chat/");
    airwave
        .serve_until(app, airwave::server::asked_to_end(), shared::say("/chat/"))
        .await
}
