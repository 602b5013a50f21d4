//! Answers of our own for a server without a model: the page shows what streaming is like, and
//! promises nothing about what is said.

/// Words of a question, and the text that answers it.
const TEXTS: [(&[&str], &str); 7] = [
    (
        &["promise", "guarantee", "lost", "lose", "gap", "miss"],
        "A channel promises four things. Every listener gets the events in the same order. A listener that comes back goes on exactly behind the last event \
         that it had, over either transport. If events can no longer be given, an explicit gap stands in the stream, with a reason. And an answer to a publish \
         means that the broker holds the event. So a page never has to guess whether it missed something: it either has everything, or it is told.",
    ),
    (
        &["sse", "websocket", "transport", "difference", "which"],
        "Use SSE when the server tells clients what happened: dashboards, job status, answers like this one. It is plain HTTP, so every proxy passes it, and the \
         browser reconnects by itself. Use a WebSocket when client and server converse: chat, editors, games. A message up is then a small frame and not a whole \
         request. With Airwave the choice is a line of configuration, and the client follows it.",
    ),
    (
        &["resume", "refresh", "reload", "reconnect", "cursor", "restart"],
        "Each event has a position, and a listener's position is its cursor. After a refresh the page sends the cursor of the last event it has seen, and gets \
         everything behind it: first from history, then live, as one stream. Try it now: reload this page while the answer is being written. It goes on where \
         it was. Then open the same address in a second window: both read along.",
    ),
    (
        &["redis", "nats", "broker", "node", "scale", "cluster"],
        "One node needs no broker: channels live in memory. For several nodes put Redis or NATS JetStream behind them, by one URL in the configuration. Every node \
         then hears every event, keeps recent ones close to its listeners, and heals itself from the broker's history when a connection breaks. No handler \
         changes, and a client may come back to any node.",
    ),
    (
        &["slow", "backpressure", "memory", "fast", "performance", "many"],
        "Airwave keeps no queue for each connection. Recent events of a channel stand in one ring, encoded once, and each listener holds only its place in it. A \
         slow reader delays no other: it reads what it can, and when its place has fallen off the ring, the rule of the channel decides whether history fills in, \
         the listener skips ahead with a gap, or the connection closes.",
    ),
    (
        &["stop", "cancel", "abort"],
        "Press Stop, here or on any other device that shows this answer. The message goes to the channel's handler on the server, which ends the answer for \
         everybody. The text up to that point stays: the channel has ended, its history has not. An ended channel also tells browsers not to come back.",
    ),
    (
        &[],
        "No language model is configured on this server, so this text was written by hand; it streams as a model's answer would, a few dozen tokens a second. Each \
         answer is a channel of its own. The server publishes one event for each token, and this page listens. Because the channel has a history, a reload loses \
         nothing, a second window reads along, and a device that was asleep catches up. To ask a real model, set OPENAI_BASE_URL to any endpoint that speaks \
         OpenAI's chat completions, and start the server again.",
    ),
];

/// The text that fits a question best. The last one fits any.
pub fn answer(question: &str) -> &'static str {
    let question = question.to_lowercase();
    let fits = |words: &[&str]| words.iter().filter(|word| question.contains(**word)).count();
    // Of several that fit as well, the last.
    let best = TEXTS.iter().max_by_key(|(words, _)| fits(words));
    best.map_or("", |(_, text)| text)
}

/// A text in pieces about as long as a model's tokens: a short word with the space before it, or a
/// few letters of a longer one.
pub fn tokens(text: &str) -> impl Iterator<Item = &str> {
    const LONGEST: usize = 6;
    let mut rest = text;
    std::iter::from_fn(move || {
        let space = usize::from(rest.starts_with(' '));
        let word = rest[space..].find(' ').map_or(rest.len(), |end| space + end);
        let mut end = word.min(space + LONGEST);
        while !rest.is_char_boundary(end) {
            end += 1;
        }
        let (token, after) = rest.split_at(end);
        rest = after;
        (!token.is_empty()).then_some(token)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_gets_the_text_that_fits() {
        assert!(answer("What does a channel promise?").starts_with("A channel promises"));
        assert!(answer("SSE or WebSocket, which transport?").starts_with("Use SSE"));
        assert!(answer("Wie geht es dir?").starts_with("No language model"));
    }

    #[test]
    fn the_tokens_of_a_text_are_the_text() {
        for (_, text) in TEXTS {
            let tokens: Vec<_> = tokens(text).collect();
            assert_eq!(tokens.concat(), text);
            assert!(tokens.len() > 60 && tokens.iter().all(|token| token.len() <= 8), "{tokens:?}");
        }
        assert_eq!(super::tokens("é  x").collect::<String>(), "é  x");
    }
}
