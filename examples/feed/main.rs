//! What happens in a folder: its files, as the system tells, and its git commits. `cargo run --example feed`
//!
//! It is the current folder, or that of `FEED_FOLDER`. A page that was away asks for what it missed by the cursor of the last thing it saw.

mod folder;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use airwave::config::Sources;
use airwave::{Airwave, Builder, Config, Refusal};
use axum::Router;
use axum::response::Redirect;
use axum::routing::get;
use notify::{Event, EventKind, RecursiveMode, Watcher};
use serde_json::{Value, json};
use tokio::sync::mpsc;

const CHANNEL: &str = "feed/activity";
/// More changes at once than so many are told as one.
const MOST_AT_ONCE: usize = 30;
/// Editors write a file in several steps, which are one change.
const CALM: Duration = Duration::from_millis(400);

/// Nobody is asked for anything: publishing needs no handler.
pub fn add(builder: Builder) -> Builder {
    builder
}

/// The work in the background: watches the folder.
pub fn start(airwave: &Airwave) {
    let folder = std::env::var_os("FEED_FOLDER").map_or_else(|| PathBuf::from("."), PathBuf::from);
    let airwave = airwave.clone();
    tokio::spawn(async move {
        if let Err(error) = watch(&airwave, &folder).await {
            tracing::warn!(%error, folder = %folder.display(), "the folder is not watched");
        }
    });
}

async fn watch(airwave: &Airwave, folder: &Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let folder = folder.canonicalize()?;
    let (tell, mut told) = mpsc::channel::<Event>(1024);
    // What does not fit is left out: a file that changed a thousand times has changed.
    let mut watcher =
        notify::recommended_watcher(move |event: notify::Result<Event>| drop(event.map(|event| tell.try_send(event))))?;
    let mut folders = 0;
    folder::add_folders(&mut watcher, &folder, &mut folders);
    let log = folder::git_log(&folder);
    if let Some(logs) = log.as_deref().and_then(Path::parent) {
        watcher.watch(logs, RecursiveMode::NonRecursive)?;
    }
    // A broker that outlives this process holds the commits that it told of.
    let past = airwave.channel(CHANNEL)?.history(None, 1000).await?;
    let mut commits: HashSet<String> = past
        .events
        .iter()
        .filter_map(|event| Some(event.message.json::<Value>().ok()?["hash"].as_str()?.to_owned()))
        .collect();
    tell_commits(airwave, log.as_deref(), &mut commits).await?;

    while let Some(first) = told.recv().await {
        tokio::time::sleep(CALM).await;
        let mut changed: BTreeMap<PathBuf, bool> = BTreeMap::new();
        let mut next = Some(first);
        while let Some(event) = next {
            let created = matches!(event.kind, EventKind::Create(_));
            if !matches!(event.kind, EventKind::Access(_)) {
                for path in event.paths {
                    *changed.entry(path).or_default() |= created;
                }
            }
            next = told.try_recv().ok();
        }
        tell_commits(airwave, log.as_deref(), &mut commits).await?;
        let files: Vec<(&PathBuf, &bool)> = changed.iter().filter(|(path, _)| folder::shown(&folder, path)).collect();
        if files.len() > MOST_AT_ONCE {
            tell_one(airwave, "files", &json!({"count": files.len()})).await?;
            continue;
        }
        for (path, created) in files {
            let about = path.symlink_metadata();
            if *created && about.as_ref().is_ok_and(|about| about.is_dir()) {
                folder::add_folders(&mut watcher, path, &mut folders);
            }
            let what = match (&about, created) {
                (Err(_), true) => continue,
                (Err(_), false) => "removed",
                (Ok(_), true) => "created",
                (Ok(_), false) => "changed",
            };
            let name = path.strip_prefix(&folder).unwrap_or(path).to_string_lossy();
            tell_one(
                airwave,
                "file",
                &json!({"path": name, "is": what, "bytes": about.ok().filter(|about| about.is_file()).map(|about| about.len())}),
            )
            .await?;
        }
    }
    Ok(())
}

async fn tell_one(airwave: &Airwave, event: &str, value: &impl serde::Serialize) -> Result<(), Refusal> {
    match airwave.channel(CHANNEL)?.publish(event, value).await {
        Err(error) if error.code == airwave::Code::Unavailable => tracing::warn!(%error, event, "not told"),
        done => drop(done?),
    }
    Ok(())
}

/// Tells of the commits that have not been told of.
async fn tell_commits(airwave: &Airwave, log: Option<&Path>, known: &mut HashSet<String>) -> Result<(), Refusal> {
    for commit in log.map(folder::commits).unwrap_or_default() {
        if known.insert(commit.hash.clone()) {
            tell_one(airwave, "commit", &commit).await?;
        }
    }
    Ok(())
}

/// The page, at `/feed/`.
pub fn page() -> Router {
    airwave::pages(
        "/feed/",
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
    let front = Router::new().route("/", get(async || Redirect::temporary("/feed/")));
    airwave
        .serve_until(
            front.merge(page()).merge(airwave.router()),
            airwave::server::asked_to_end(),
            |address| {
                println!("open http://{address}/feed/");
            },
        )
        .await
}
