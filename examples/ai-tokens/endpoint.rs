//! Where answers come from: any endpoint that speaks OpenAI's chat completions, or the texts beside
//! it.

use std::time::Duration;

use airwave::Channel;
use eventsource_stream::Eventsource;
use futures_util::{Stream, StreamExt, stream};
use serde_json::{Value, json};

use super::texts;

type Failure = Box<dyn std::error::Error + Send + Sync>;

const MOST_TOKENS: usize = 4000;
/// How much an endpoint may send without completing an event.
const MOST_PENDING: usize = 1 << 20;
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();
/// How long a model takes for a token, at least and at most: 20 to 50 tokens a second.
const PACE_MS: (u64, u64) = (20, 50);

/// Publishes each token of the answer as it comes, and counts the tokens. Returns when the answer
/// is complete.
///
/// # Errors
/// Says why the answer is not complete, in words that may be shown: the endpoint's own, or ours. No
/// URL.
pub async fn answer(channel: &Channel, question: &str, tokens: &mut usize) -> Result<(), Failure> {
    if let Ok(base) = std::env::var("OPENAI_BASE_URL") {
        return ask(&base, channel, question, tokens).await;
    }
    let asked = json!({"question": question, "model": "texts of this example: no model is configured"});
    channel.publish("asked", &asked).await?;
    for (n, token) in texts::tokens(texts::answer(question)).enumerate() {
        channel.publish("token", token).await?;
        *tokens += 1;
        // Uneven, as a model is.
        let spread = PACE_MS.1 - PACE_MS.0;
        tokio::time::sleep(Duration::from_millis(PACE_MS.0 + (n as u64).wrapping_mul(17) % spread)).await;
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
    // A URL may hold a key, and visitors of the page see the reason.
    let response = request.send().await.map_err(reqwest::Error::without_url)?;
    let status = response.status();
    if !status.is_success() {
        let body = response.text().await.unwrap_or_default();
        let said = serde_json::from_str(&body).ok().and_then(|body: Value| sentence(&body));
        return Err(said.unwrap_or_else(|| format!("the endpoint answered {status}")).into());
    }
    let bytes = response
        .bytes_stream()
        .map(|piece| piece.map_err(reqwest::Error::without_url));
    let mut pieces = std::pin::pin!(deltas(bytes));
    while let Some(piece) = pieces.next().await {
        match piece? {
            Delta::Token(token) => {
                channel.publish("token", &token).await?;
                *tokens += 1;
                if *tokens >= MOST_TOKENS {
                    return Err(format!("the answer was cut after {MOST_TOKENS} tokens").into());
                }
            }
            Delta::Done => return Ok(()),
        }
    }
    Err("the endpoint's answer broke off".into())
}

/// A step of an answer.
#[derive(Debug, PartialEq)]
enum Delta {
    Token(String),
    /// The endpoint said that the answer is complete. A stream that ends without it has broken off.
    Done,
}

/// What an endpoint streams, as steps. Ends with the first error.
fn deltas<B, E>(bytes: impl Stream<Item = Result<B, E>>) -> impl Stream<Item = Result<Delta, Failure>>
where
    B: AsRef<[u8]>,
    E: std::error::Error + Send + Sync + 'static,
{
    let mut pending = 0;
    let mut begin = Some(Vec::new());
    let bounded = bytes.map(move |piece| {
        let piece = piece.map_err(|error| Box::new(error) as Failure)?;
        let mut piece = piece.as_ref();
        // A byte order mark may come in pieces, and makes the parser panic (eventsource-stream
        // 0.2.3): it stays here.
        let opening;
        if let Some(mut read) = begin.take() {
            read.extend_from_slice(piece);
            if read.len() < BYTE_ORDER_MARK.len() && BYTE_ORDER_MARK.starts_with(&read) {
                begin = Some(read);
                return Ok(Vec::new());
            }
            opening = read;
            piece = opening.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&opening);
        }
        pending = match piece.iter().rposition(|&byte| byte == b'\n' || byte == b'\r') {
            Some(end) => piece.len() - end,
            None => pending + piece.len(),
        };
        if pending > MOST_PENDING {
            return Err("the endpoint sent a line that is too long".into());
        }
        Ok(piece.to_vec())
    });
    // Some endpoints leave out the blank line behind their last event, which a parser waits for.
    let closed = bounded.chain(stream::once(async { Ok(b"\n\n".to_vec()) }));
    closed
        .eventsource()
        .map(|event| match event {
            Ok(event) => steps(&event.data),
            Err(eventsource_stream::EventStreamError::Transport(error)) => vec![Err(error)],
            Err(_) => vec![Err("the endpoint sent what is no event stream".into())],
        })
        .flat_map(stream::iter)
}

/// What one event says.
fn steps(data: &str) -> Vec<Result<Delta, Failure>> {
    if data == "[DONE]" {
        return vec![Ok(Delta::Done)];
    }
    let Ok(told) = serde_json::from_str::<Value>(data) else {
        return vec![Err("the endpoint sent what is not JSON".into())];
    };
    if let Some(said) = sentence(&told) {
        return vec![Err(said.into())];
    }
    let choice = &told["choices"][0];
    let token = choice["delta"]["content"].as_str().filter(|token| !token.is_empty());
    let mut steps: Vec<_> = token.map(|token| Ok(Delta::Token(token.to_owned()))).into_iter().collect();
    match choice["finish_reason"].as_str() {
        None => {}
        Some("stop") => steps.push(Ok(Delta::Done)),
        Some("length") => steps.push(Err("the answer was cut: it reached the model's limit of tokens".into())),
        Some(reason) => steps.push(Err(format!("the endpoint ended the answer: {reason}").into())),
    }
    steps
}

/// The endpoint's own sentence, if it tells an error.
fn sentence(told: &Value) -> Option<String> {
    let error = told.get("error").filter(|error| !error.is_null())?;
    let said = error["message"].as_str().or(error.as_str());
    Some(said.unwrap_or("the endpoint told an error without a message").to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::convert::Infallible;

    use super::*;

    fn told(text: &str, size: usize) -> (String, Option<String>, bool) {
        let pieces: Vec<_> = text
            .as_bytes()
            .chunks(size)
            .map(|piece| Ok::<_, Infallible>(piece.to_vec()))
            .collect();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let steps: Vec<_> = runtime.block_on(deltas(stream::iter(pieces)).collect());
        let mut answer = String::new();
        for step in steps {
            match step {
                Ok(Delta::Token(token)) => answer += &token,
                Ok(Delta::Done) => return (answer, None, true),
                Err(error) => return (answer, Some(error.to_string()), false),
            }
        }
        (answer, None, false)
    }

    fn event(token: &str) -> String {
        format!("data: {}\n\n", json!({"choices": [{"delta": {"content": token}}]}))
    }

    #[test]
    fn an_answer_is_read_however_its_lines_end_and_wherever_it_is_cut() {
        let lf = format!(": a comment\n\n{}{}data: [DONE]\n\n", event("one "), event("two é"));
        let two_lines = lf.replace("{\"choices\"", "{\ndata: \"choices\"");
        for text in [
            lf.clone(),
            lf.replace('\n', "\r\n"),
            lf.replace('\n', "\r"),
            format!("\u{feff}{lf}"),
            lf.trim_end().to_owned(),
            two_lines,
        ] {
            for size in [1, 2, 3, 7, text.len()] {
                assert_eq!(
                    told(&text, size),
                    ("one two é".to_owned(), None, true),
                    "{text:?} in pieces of {size}"
                );
            }
        }
    }

    #[test]
    fn only_an_answer_that_says_so_is_complete() {
        let finish = |reason: &str| format!("data: {}\n\n", json!({"choices": [{"delta": {}, "finish_reason": reason}]}));
        assert_eq!(told(&(event("a") + &finish("stop")), 9), ("a".into(), None, true));
        assert_eq!(told(&event("a"), 9), ("a".into(), None, false));
        for (text, why) in [
            (
                r#"{"error":{"message":"You are over your quota.","type":"x"}}"#.to_owned(),
                "You are over your quota.",
            ),
            (r#"{"error":"overloaded"}"#.to_owned(), "overloaded"),
            (r#"{"error":{}}"#.to_owned(), "without a message"),
            ("{".to_owned(), "not JSON"),
        ] {
            let (answer, said, done) = told(&format!("{}{}data: {text}\n\n{}", event("a"), event("b"), event("c")), 9);
            assert_eq!((answer.as_str(), done), ("ab", false));
            assert!(said.as_ref().is_some_and(|said| said.contains(why)), "{said:?}");
        }
        assert!(
            told(&(event("a") + &finish("length")), 9)
                .1
                .unwrap()
                .contains("limit of tokens")
        );
        assert!(
            told(&(event("a") + &finish("content_filter")), 9)
                .1
                .unwrap()
                .contains("content_filter")
        );
    }

    #[test]
    fn a_line_without_an_end_has_a_bound() {
        let endless = "x".repeat(MOST_PENDING + 2);
        assert!(told(&endless, 4096).1.unwrap().contains("too long"));
    }
}
