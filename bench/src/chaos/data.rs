//! The data of messages, by which a listener tells whether it came whole.

use serde_json::{Value, json};

/// The data of a message: its body, and padding of a length that the body tells.
pub(super) fn data_of(name: &str, count: u64, length: usize) -> (String, Value) {
    let body = format!("{name}-{count}-{length}");
    let data = json!({"body": body, "padding": "x".repeat(length)});
    (body, data)
}

/// The body, if the data came whole.
pub(super) fn body_of(data: &Value) -> Result<String, String> {
    let whole = || {
        let body = data["body"].as_str()?;
        let length: usize = body.rsplit('-').next()?.parse().ok()?;
        let padding = data["padding"].as_str()?;
        (padding.len() == length && padding.bytes().all(|byte| byte == b'x')).then(|| body.to_owned())
    };
    whole().ok_or_else(|| {
        let text: String = data.to_string().chars().take(100).collect();
        format!("data that no client published: {text}")
    })
}
