//! An arena for many players at sixty updates a second, decided here and nowhere else. `cargo run
//! --example game`

#[path = "../shared/mod.rs"]
mod shared;
mod world;

use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use airwave::config::Sources;
use airwave::{
    Airwave, Builder, Channel, Client, Code, Config, ConnectRequest, Handler, Identity, LeaveReason, Message, Publish, Refusal,
    Reply,
};
use axum::Router;
use serde::Deserialize;
use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;
use world::{SIZE, Steer, TICKS, World};

const ARENA: &str = "game/arena";

/// The one arena of this server.
static WORLD: LazyLock<Mutex<World>> = LazyLock::new(|| Mutex::new(World::new(0x5eed)));
/// A first page has begun to watch.
static WATCHED: Notify = Notify::const_new();

fn world() -> MutexGuard<'static, World> {
    WORLD.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Players;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Enter {
    name: String,
}

impl Handler for Players {
    /// Each tab is a player, by an id of its own making. Without one it may watch.
    async fn connect(&self, request: &ConnectRequest) -> Result<Identity, Refusal> {
        shared::who(request)
    }

    async fn subscribe(&self, client: &Client, channel: &Channel) -> Result<(), Refusal> {
        if channel.name().as_str() != ARENA {
            return Err(Refusal::new(Code::UnknownChannel, format!("there is one arena: {ARENA}")));
        }
        // A single request has no end that anybody is told of.
        if client.transport.as_str() != "http" {
            world().watch(client.user().unwrap_or_default());
            WATCHED.notify_one();
        }
        Ok(())
    }

    async fn message(&self, client: &Client, _channel: &Channel, message: Message) -> Result<Reply, Refusal> {
        let id = client
            .user()
            .ok_or_else(|| Refusal::forbidden("to play, show an id as bearer token"))?;
        let mut world = world();
        match message.event.as_str() {
            "enter" => {
                let Enter { name } = message.json()?;
                if name.trim().is_empty() || name.chars().count() > 16 {
                    return Err(Refusal::bad_request("a name has 1 to 16 characters"));
                }
                if !world.is_watched_by(id) {
                    return Err(Refusal::forbidden("to play, subscribe first"));
                }
                if !world.enter(id, name.trim()) {
                    return Err(Refusal::new(Code::TooMany, "the arena is full"));
                }
                Ok(Reply::json(&serde_json::json!({"size": SIZE, "ticks": TICKS}))?)
            }
            "steer" => match world.steer(id, message.json::<Steer>()?) {
                true => Ok(Reply::done()),
                false => Err(Refusal::forbidden("enter first")),
            },
            other => Err(Refusal::bad_request(format!(
                "the arena knows 'enter' and 'steer', not '{other}'"
            ))),
        }
    }

    async fn unsubscribe(&self, client: &Client, channel: &Channel, _reason: LeaveReason) {
        let id = client.user().unwrap_or_default();
        // Another connection of theirs may still be there.
        if !world().unwatch(id) || id.is_empty() {
            return;
        }
        // In an outage no page hears of it. Each page lets silent players fade.
        let left = Publish::json("left", &serde_json::json!({"id": id})).key(id);
        drop(channel.publish_with(left).await);
    }
}

/// Registers the handler of the arena.
pub fn add(builder: Builder) -> Builder {
    builder.handle("game/{arena}", Players)
}

/// Moves the world while a page watches it.
pub fn start(airwave: &Airwave) {
    let Ok(channel) = airwave.channel(ARENA) else { return };
    tokio::spawn(async move {
        let mut clock = tokio::time::interval(Duration::from_secs(1) / TICKS);
        clock.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            clock.tick().await;
            let told = {
                let mut world = world();
                world
                    .is_watched()
                    .then(|| (world.tick(), world.players().cloned().collect::<Vec<_>>()))
            };
            let Some((sparks, players)) = told else {
                WATCHED.notified().await;
                continue;
            };
            // What cannot be told now is told anew in a moment.
            for player in &players {
                drop(channel.publish_with(Publish::json("player", player).key(&player.id)).await);
            }
            for spark in &sparks {
                let key = format!("spark-{}", spark.id);
                drop(channel.publish_with(Publish::json("spark", spark).key(&key)).await);
            }
        }
    });
}

/// The page, at `/game/`.
pub fn page() -> Router {
    shared::page(
        "/game/",
        &[
            ("index.html", include_str!("page/index.html")),
            ("page.js", include_str!("page/page.js")),
            ("arena.js", include_str!("page/arena.js")),
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
    let app = shared::alone(&airwave, page(), "/game/");
    airwave
        .serve_until(app, airwave::server::asked_to_end(), shared::say("/game/"))
        .await
}
