//! A dashboard of the machine that it runs on: processor, memory, network, disks. `cargo run
//! --example dashboard`
//!
//! The figures are read once a second and published once, however many tabs look at them.

mod machine;
#[path = "../shared/mod.rs"]
mod shared;

use std::time::Duration;

use airwave::config::Sources;
use airwave::{Airwave, Builder, Config, Publish};
use axum::Router;
use machine::Machine;

const CHANNEL: &str = "dashboard/machine";

/// Adds no handler: publishing needs none.
pub fn add(builder: Builder) -> Builder {
    builder
}

/// The work in the background: a reading a second.
pub fn start(airwave: &Airwave) {
    let Ok(channel) = airwave.channel(CHANNEL) else { return };
    let airwave = airwave.clone();
    tokio::spawn(async move {
        let mut machine = Machine::new();
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        loop {
            tick.tick().await;
            // Reading the system's files takes a few milliseconds, which belong to no thread that
            // serves clients.
            let tabs = listeners(&airwave);
            let Ok((back, figures)) = tokio::task::spawn_blocking(move || machine.read(tabs)).await else {
                return;
            };
            machine = back;
            for (key, value) in figures {
                if let Err(error) = channel.publish_with(Publish::json(key, &value).key(key)).await {
                    tracing::warn!(%error, key, "a figure was not published");
                }
            }
        }
    });
}

fn listeners(airwave: &Airwave) -> usize {
    let channels = airwave.hub().channels(10_000);
    let own = channels.iter().find(|channel| channel.name.as_str() == CHANNEL);
    own.map_or(0, |channel| channel.listeners.iter().map(|(_, count)| count).sum())
}

/// The page, at `/dashboard/`.
pub fn page() -> Router {
    shared::page(
        "/dashboard/",
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
    let app = shared::alone(&airwave, page(), "/dashboard/");
    airwave
        .serve_until(app, airwave::server::asked_to_end(), shared::say("/dashboard/"))
        .await
}
