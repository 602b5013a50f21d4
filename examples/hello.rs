//! The smallest application: a chat room whose handler serves WebSocket and SSE alike.
//!
//! ```text
//! cargo run --example hello
//! curl -N -H 'Accept: text/event-stream' http://127.0.0.1:8080/realtime/channels/chat/lobby
//! curl -H 'Content-Type: application/json' -d '{"event":"say","data":{"text":"hi"}}' http://127.0.0.1:8080/realtime/channels/chat/lobby
//! ```

use airwave::config::Sources;
use airwave::{Airwave, Channel, Client, Config, Handler, Message, Refusal, Reply};

#[derive(serde::Deserialize, serde::Serialize)]
struct Say {
    text: String,
}

struct Chat;

impl Handler for Chat {
    async fn message(&self, _client: &Client, channel: &Channel, message: Message) -> Result<Reply, Refusal> {
        let say: Say = message.json()?;
        if say.text.is_empty() {
            return Err(Refusal::bad_request("say something"));
        }
        channel.publish("said", &say).await?;
        Ok(Reply::done())
    }
}

const CONFIG: &str = r#"
[[channels]]
match = "chat/{room}"
use_case = "chat"
transport = ["websocket", "sse"]
"#;

#[tokio::main]
async fn main() -> airwave::Result<()> {
    let config = Config::load(&Sources::of_file("hello.toml", CONFIG))?;
    let airwave = Airwave::from_config(config).handle("chat/{room}", Chat).build().await?;
    let app = axum::Router::new().nest("/realtime", airwave.router());
    airwave
        .serve_until(app, airwave::server::asked_to_end(), |address| {
            println!("listening on http://{address}/realtime")
        })
        .await
}
