//! Where answers come from: any endpoint that speaks OpenAI's chat completions, or the small model beside it.

use std::time::Duration;

use airwave::Channel;
use serde_json::{Value, json};

use super::model;

type Failure = Box<dyn std::error::Error + Send + Sync>;

const MOST_TOKENS: usize = 4000;
/// About as fast as somebody reads.
const PACE: Duration = Duration::from_millis(45);

/// Publishes each token of the answer as it comes, and counts them.
pub async fn answer(channel: &Channel, question: &str, tokens: &mut usize) -> Result<(), Failure> {
    if let Ok(base) = std::env::var("OPENAI_BASE_URL") {
        return ask(&base, channel, question, tokens).await;
    }
    let asked = json!({"question": question, "model": "a trigram model that has read this repository"});
    channel.publish("asked", &asked).await?;
    for word in model::OWN.answer(question).take(MOST_TOKENS) {
        channel.publish("token", &format!("{word} ")).await?;
        *tokens += 1;
        tokio::time::sleep(PACE).await;
    }
    Ok(())
}

async fn ask(base: &str, channel: &Channel, question: &str, tokens: &mut usize) -> Result<(), Failure> {
    let model = std::env::var("OPENAI_MODEL").unwrap_or_else(|_| "gpt-4o-mini".into());
    channel
        .publish("asked", &json!({"question": question, "model": model}))
        .await?;
    let mut request = reqwest::Client::new()
        .post(format!("{}/chat/completions", base.trim_end_matches('/')))
        .json(&json!({"model": model, "stream": true, "max_tokens": MOST_TOKENS, "messages": [{"role": "user", "content": question}]}));
    if let Ok(key) = std::env::var("OPENAI_API_KEY") {
        request = request.bearer_auth(key);
    }
    let mut response = request.send().await?.error_for_status()?;
    let mut lines = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        lines.extend_from_slice(&chunk);
        if lines.len() > 1 << 20 {
            return Err("the endpoint sent a line that is too long".into());
        }
        while let Some(end) = lines.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = lines.drain(..=end).collect();
            let Some(data) = line.strip_prefix(b"data:").map(<[u8]>::trim_ascii) else {
                continue;
            };
            if data == b"[DONE]" || *tokens >= MOST_TOKENS {
                return Ok(());
            }
            let told: Value = serde_json::from_slice(data)?;
            if let Some(token) = told["choices"][0]["delta"]["content"]
                .as_str()
                .filter(|token| !token.is_empty())
            {
                channel.publish("token", token).await?;
                *tokens += 1;
            }
        }
    }
    Ok(())
}
