//! The answer of a language model, token by token. `cargo run --example ai-tokens`
//!
//! With `OPENAI_BASE_URL` (and `OPENAI_API_KEY`, `OPENAI_MODEL`) it asks any endpoint that speaks
//! OpenAI's chat completions; without, it streams texts of its own. Each answer is a channel: a
//! page that opens it attaches to it, and it is never started twice.

mod endpoint;
#[path = "../shared/mod.rs"]
mod shared;
mod texts;

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use airwave::config::Sources;
use airwave::{Airwave, Builder, Channel, Client, Code, Config, Handler, Message, Refusal, Reply};
use axum::Router;
use serde_json::{Value, json};
use tokio::sync::watch;

const MOST_QUESTION: usize = 4000;
const MOST_TIME: Duration = Duration::from_secs(300);
const MOST_ANSWERS: usize = 8;

/// Answers that are being given, and how to stop them.
static RUNNING: LazyLock<Mutex<HashMap<String, watch::Sender<bool>>>> = LazyLock::new(Mutex::default);

struct Answers;

impl Handler for Answers {
    async fn message(&self, _client: &Client, channel: &Channel, message: Message) -> Result<Reply, Refusal> {
        let id = channel.param("id").unwrap_or_default().to_owned();
        if id == "list" {
            return Err(Refusal::forbidden("the list is written by the server"));
        }
        match message.event.as_str() {
            "ask" => {
                let question: String = message.json()?;
                if question.trim().is_empty() || question.len() > MOST_QUESTION {
                    return Err(Refusal::bad_request(format!(
                        "ask something, in at most {MOST_QUESTION} bytes"
                    )));
                }
                // Asked again, by a refresh or by another tab: this answer goes on, no second one
                // begins.
                let past = channel.history(None, 1).await?;
                let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
                if past.ended || !past.events.is_empty() || running.contains_key(&id) {
                    return Ok(Reply::json(&json!({"attached": true}))?);
                }
                if running.len() >= MOST_ANSWERS {
                    return Err(Refusal::new(
                        Code::TooMany,
                        "there are questions enough: wait until one is answered",
                    ));
                }
                let (stop, stopped) = watch::channel(false);
                running.insert(id.clone(), stop);
                tokio::spawn(answer(id, channel.clone(), question, stopped));
                Ok(Reply::json(&json!({"attached": false}))?)
            }
            "stop" => {
                if let Some(stop) = RUNNING.lock().unwrap_or_else(PoisonError::into_inner).get(&id) {
                    stop.send_replace(true);
                }
                Ok(Reply::done())
            }
            _ => Err(Refusal::bad_request("send ask or stop")),
        }
    }
}

/// Streams one answer from the question to its end. It needs no listener, and the channel ends in
/// every case.
async fn answer(id: String, channel: Channel, question: String, mut stopped: watch::Receiver<bool>) {
    let began = Instant::now();
    tell(&channel, &json!({"id": id, "question": question, "is": "running"})).await;
    let mut tokens = 0;
    let (is, why) = tokio::select! {
        done = endpoint::answer(&channel, &question, &mut tokens) => match done {
            Ok(()) => ("done", None),
            Err(error) => ("failed", Some(error.to_string())),
        },
        _ = stopped.wait_for(|stopped| *stopped) => ("stopped", None),
        () = tokio::time::sleep(MOST_TIME) => ("failed", Some("it took too long".to_owned())),
    };
    // If the broker is out of reach, the listeners wait. No other caller needs the result.
    let _ = channel
        .publish(
            "done",
            &json!({"is": is, "why": why, "tokens": tokens, "seconds": began.elapsed().as_secs_f64()}),
        )
        .await;
    let _ = channel.end().await;
    tell(&channel, &json!({"id": id, "question": question, "is": is})).await;
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
}

/// The list of answers, in which other devices find them. It is another channel of the same node.
async fn tell(answer: &Channel, line: &Value) {
    let told = async { answer.other("ai/list")?.publish("answer", line).await };
    if let Err(error) = told.await {
        tracing::warn!(%error, "the list of answers does not show one");
    }
}

/// The handlers.
pub fn add(builder: Builder) -> Builder {
    builder.handle("ai/{id}", Answers)
}

/// Nothing runs before a client asks.
pub fn start(_airwave: &Airwave) {}

/// The page, at `/ai-tokens/`.
pub fn page() -> Router {
    shared::page(
        "/ai-tokens/",
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
    let app = shared::alone(&airwave, page(), "/ai-tokens/");
    airwave
        .serve_until(app, airwave::server::asked_to_end(), shared::say("/ai-tokens/"))
        .await
}
