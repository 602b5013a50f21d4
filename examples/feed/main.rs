//! What happens in a folder: its files, as the system tells, and its git commits. `cargo run
//! --example feed`
//!
//! It is the folder of `FEED_FOLDER`. Without it, a folder made for the purpose in which a made-up
//! author writes: the names of the files where a server is started are not for every page.
//!
//! A page that was away asks for what it missed by the cursor of the last event that it saw.

mod author;
mod folder;
#[path = "../shared/mod.rs"]
mod shared;

use std::collections::HashSet;
use std::path::PathBuf;

use airwave::config::Sources;
use airwave::{Airwave, Builder, Channel, Code, Config};
use axum::Router;
use folder::{Folder, News};
use serde_json::{Value, json};

/// Why a folder is not watched.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Adds no handler: publishing needs none.
pub fn add(builder: Builder) -> Builder {
    builder
}

/// The work in the background: watches the folder.
pub fn start(airwave: &Airwave) {
    let Ok(channel) = airwave.channel("feed/activity") else {
        return;
    };
    let path = match std::env::var_os("FEED_FOLDER").map(PathBuf::from) {
        Some(path) => path,
        None => match author::begin() {
            Ok(path) => {
                tokio::spawn(author::write(path.clone(), airwave.clone()));
                path
            }
            Err(error) => {
                tracing::warn!(%error, "there is no folder for the feed's author");
                return;
            }
        },
    };
    // From here on nothing is missed.
    let folder = Folder::watch(&path);
    tokio::spawn(async move {
        let told = match folder {
            Ok(folder) => tell(&channel, folder).await,
            Err(error) => Err(error),
        };
        if let Err(error) = told {
            tracing::warn!(%error, folder = %path.display(), "the folder is not watched");
        }
    });
}

/// Publishes what happens in the folder, for ever.
async fn tell(channel: &Channel, mut folder: Folder) -> Result<(), Failure> {
    // A broker that outlives this process holds the commits that it told of.
    let past = channel.history(None, 1000).await?;
    let commit = |event: &airwave::Event| Some(event.message.json::<Value>().ok()?["hash"].as_str()?.to_owned());
    let mut told: HashSet<String> = past.events.iter().filter_map(|event| commit(event)).collect();
    loop {
        for news in folder.news() {
            let published = match &news {
                News::Commit(commit) if !told.insert(commit.hash.clone()) => continue,
                News::Commit(commit) => channel.publish("commit", commit).await,
                News::File(file) => channel.publish("file", file).await,
                News::Files(count) => channel.publish("files", &json!({"count": count})).await,
            };
            match published {
                // The broker is away: a feed goes on with what comes next, and is not told later
                // what is old by then.
                Err(error) if error.code == Code::Unavailable => tracing::warn!(%error, "not told"),
                done => drop(done?),
            }
        }
        folder.changed().await;
    }
}

/// The page, at `/feed/`.
pub fn page() -> Router {
    shared::page(
        "/feed/",
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
    let app = shared::alone(&airwave, page(), "/feed/");
    airwave
        .serve_until(app, airwave::server::asked_to_end(), shared::say("/feed/"))
        .await
}
