//! Jobs that really run: a child process compresses a file, a second one unpacks it again to see
//! whether it is still the same. `cargo run --example job-status`
//!
//! Each job is a channel: `start` sent to it starts the job, its progress is its events, and it
//! ends when the job does.

mod pack;
#[path = "../shared/mod.rs"]
mod shared;

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use airwave::config::Sources;
use airwave::{Airwave, Builder, Channel, Client, Code, Config, Handler, Message, Refusal, Reply};
use axum::Router;
use serde_json::{Value, json};
use tokio::sync::watch;

const MOST_TIME: Duration = Duration::from_secs(120);
/// So many jobs wait or run; the next is refused.
const MOST_JOBS: usize = 20;

/// Jobs that wait or run, and how to cancel them.
static RUNNING: LazyLock<Mutex<HashMap<String, watch::Sender<bool>>>> = LazyLock::new(Mutex::default);

struct Jobs;

impl Handler for Jobs {
    async fn message(&self, _client: &Client, channel: &Channel, message: Message) -> Result<Reply, Refusal> {
        let id = channel.param("id").unwrap_or_default().to_owned();
        match message.event.as_str() {
            "start" => {
                let named: String = message.json()?;
                let past = channel.history(None, 1).await?;
                if id == "list" || past.ended || !past.events.is_empty() {
                    return Err(Refusal::bad_request("this job has been started already"));
                }
                let Some(&tool) = pack::TOOLS.iter().find(|(tool, level)| named == format!("{tool} {level}")) else {
                    return Err(Refusal::bad_request("send the name of a tool, as \"gzip -9\""));
                };
                let cancelled = {
                    let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
                    if running.len() >= MOST_JOBS {
                        return Err(Refusal::new(Code::TooMany, "there are jobs enough: wait until one is done"));
                    }
                    let (cancel, cancelled) = watch::channel(false);
                    if running.insert(id.clone(), cancel).is_some() {
                        return Err(Refusal::bad_request("this job has been started already"));
                    }
                    cancelled
                };
                tokio::spawn(job(id, channel.clone(), tool, cancelled));
            }
            "cancel" => {
                if let Some(cancel) = RUNNING.lock().unwrap_or_else(PoisonError::into_inner).get(&id) {
                    cancel.send_replace(true);
                }
            }
            _ => return Err(Refusal::bad_request("send start or cancel")),
        }
        Ok(Reply::done())
    }
}

/// From the queue to the last word. Whatever happens, the channel ends.
async fn job(id: String, channel: Channel, (tool, level): (&str, &str), mut cancelled: watch::Receiver<bool>) {
    let name = format!("{tool} {level}");
    tell(&channel, json!({"id": id, "tool": name, "is": "running"})).await;
    let outcome = tokio::select! {
        done = pack::run(&channel, tool, level) => done.unwrap_or_else(|error| json!({"is": "failed", "why": error.to_string()})),
        // Dropping what runs kills the child process.
        _ = cancelled.wait_for(|cancelled| *cancelled) => json!({"is": "cancelled"}),
        () = tokio::time::sleep(MOST_TIME) => json!({"is": "failed", "why": "it took too long"}),
    };
    // If the broker is out of reach, the job's listeners wait. No other caller needs the result.
    let _ = channel.publish("finished", &outcome).await;
    let _ = channel.end().await;
    tell(
        &channel,
        json!({"id": id, "tool": name, "is": outcome["is"], "ratio": outcome["ratio"]}),
    )
    .await;
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
}

/// The list of jobs, which other tabs see. It is another channel of the same node.
async fn tell(job: &Channel, line: Value) {
    let told = async { job.other("jobs/list")?.publish("job", &line).await };
    if let Err(error) = told.await {
        tracing::warn!(%error, job = %job.name(), "the list of jobs does not show it");
    }
}

/// The handlers.
pub fn add(builder: Builder) -> Builder {
    builder.handle("jobs/{id}", Jobs)
}

/// Nothing runs before a client starts a job.
pub fn start(_airwave: &Airwave) {}

/// The page, at `/job-status/`.
pub fn page() -> Router {
    shared::page(
        "/job-status/",
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
    let app = shared::alone(&airwave, page(), "/job-status/");
    airwave
        .serve_until(app, airwave::server::asked_to_end(), shared::say("/job-status/"))
        .await
}
