//! This module holds the JSON that WebSocket frames, several-channel SSE and plain HTTP share. It
//! writes the envelope, and reads messages and publications.

use std::borrow::Cow;
use std::sync::Arc;

use airwave_core::event::{IdempotencyKey, quoted};
use airwave_core::{Attributes, ChannelName, Code, Data, Event, EventName, Key, Member, Message, Refusal};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

/// Bounds how deep JSON from outside may nest.
pub const MAX_DEPTH: usize = 32;

/// Encodes the event as one JSON object. JSON data is embedded as it stands; binary data as base64.
pub fn envelope(channel: &ChannelName, event: &Event) -> String {
    let message = &event.message;
    let mut json = String::with_capacity(96 + channel.as_str().len() + message.data.len());
    // Names are made of characters that JSON does not escape.
    json.push_str("{\"channel\":\"");
    json.push_str(channel.as_str());
    json.push_str("\",\"id\":\"");
    json.push_str(&event.position.to_string());
    json.push_str("\",\"event\":\"");
    json.push_str(message.event.as_str());
    json.push('"');
    if let Some(key) = &message.key {
        json.push_str(",\"key\":");
        json.push_str(&quoted(key.as_str()));
    }
    attributes_field(&message.attributes, &mut json);
    match &message.data {
        Data::Json(text) => {
            json.push_str(",\"data\":");
            json.push_str(text.as_str());
        }
        Data::Text(text) => {
            json.push_str(",\"text\":");
            json.push_str(&quoted(text));
        }
        // Base64 carries binary and opaque data, and any kind that core adds.
        binary => {
            json.push_str(",\"base64\":\"");
            STANDARD.encode_string(binary.as_bytes(), &mut json);
            json.push('"');
        }
    }
    json.push('}');
    json
}

/// Writes the attributes of an event as a further field, or nothing if it has none.
fn attributes_field(attributes: &Attributes, json: &mut String) {
    for (at, (name, value)) in attributes.iter().enumerate() {
        json.push_str(if at == 0 { ",\"attributes\":{\"" } else { ",\"" });
        // Names are made of characters that JSON does not escape.
        json.push_str(name);
        json.push_str("\":");
        json.push_str(&quoted(value));
    }
    if !attributes.is_empty() {
        json.push('}');
    }
}

/// Encodes a member of a channel as one JSON object.
pub fn member_json(member: &Member) -> String {
    let user = member.user.as_deref().map_or_else(|| "null".to_owned(), quoted);
    let meta = member
        .meta
        .as_ref()
        .map_or_else(String::new, |meta| format!(",\"meta\":{}", meta.as_str()));
    format!("{{\"user\":{user},\"connections\":{}{meta}}}", member.connections)
}

/// Returns the fields of a page of members.
pub fn members_fields(channel: &ChannelName, members: &[Arc<Member>], more: bool) -> String {
    format!(
        "\"channel\":\"{channel}\",\"members\":{},\"more\":{more}",
        members_json(members)
    )
}

/// Encodes members as a JSON array.
pub fn members_json(members: &[Arc<Member>]) -> String {
    let members: Vec<String> = members.iter().map(|member| member_json(member)).collect();
    format!("[{}]", members.join(","))
}

/// Encodes data as JSON, for the `data` field of an answer.
pub fn data_as_json(data: Option<&Data>) -> Cow<'_, str> {
    match data {
        None => Cow::Borrowed("null"),
        Some(Data::Json(text)) => Cow::Borrowed(text.as_str()),
        Some(Data::Text(text)) => Cow::Owned(quoted(text)),
        // Base64 carries binary and opaque data, and any kind that core adds.
        Some(binary) => Cow::Owned(format!("\"{}\"", STANDARD.encode(binary.as_bytes()))),
    }
}

/// Strips the byte order mark that some editors and libraries write before JSON. RFC 8259, section
/// 8.1, lets a reader ignore it.
pub fn without_bom(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

/// Reads JSON from outside: UTF-8, not too deep, of the right shape. It skips a byte order mark.
///
/// # Errors
/// `bad-request`, with what is wrong and where.
pub fn read<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Refusal> {
    let text = std::str::from_utf8(without_bom(bytes)).map_err(|_| Refusal::bad_request("the text is not UTF-8"))?;
    check_depth(text)?;
    serde_json::from_str(text).map_err(|e| {
        // If the text is valid JSON, the fault may lie in what its strings and numbers hold.
        let whole: Result<&RawValue, _> = serde_json::from_str(text);
        match whole.map(Data::raw_json) {
            Ok(Err(invalid)) => Refusal::bad_request(invalid.to_string()),
            _ => Refusal::bad_request(format!("this JSON is not understood: {e}")),
        }
    })
}

/// Refuses deep nesting before any code parses it, because it costs the parser's stack.
fn check_depth(text: &str) -> Result<(), Refusal> {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Err(Refusal::bad_request(format!("the JSON is nested deeper than {MAX_DEPTH}")));
                }
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}

/// A `send` frame, a POST and a publication all carry this payload.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Payload<'a> {
    /// Holds any JSON.
    pub data: Option<&'a RawValue>,
    /// Holds any text.
    pub text: Option<Cow<'a, str>>,
    /// Holds any bytes, as base64.
    pub base64: Option<Cow<'a, str>>,
}

impl Payload<'_> {
    /// Returns the one payload; `None`: there is none.
    ///
    /// # Errors
    /// `bad-request`: there are several, or the base64 cannot be read.
    pub fn read(self) -> Result<Option<Data>, Refusal> {
        let elsewhere = self.text.is_some() || self.base64.is_some();
        // `null` is data if it stands alone, and an absent field beside another payload.
        let data = self.data.filter(|raw| !elsewhere || raw.get() != "null");
        match (data, self.text, self.base64) {
            (None, None, None) => Ok(None),
            (Some(raw), None, None) => Ok(Some(Data::raw_json(raw)?)),
            (None, Some(text), None) => Ok(Some(Data::text(text))),
            (None, None, Some(base64)) => match STANDARD.decode(base64.as_bytes()) {
                Ok(bytes) => Ok(Some(Data::binary(bytes))),
                Err(e) => Err(Refusal::bad_request(format!("'base64' cannot be read: {e}"))),
            },
            _ => Err(Refusal::bad_request("give exactly one of 'data', 'text' and 'base64'")),
        }
    }
}

/// The fields are the body of a `POST /channels/{name}`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sent<'a> {
    #[serde(borrow)]
    event: Cow<'a, str>,
    #[serde(borrow, default, deserialize_with = "some_raw")]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    text: Option<Cow<'a, str>>,
    #[serde(borrow)]
    base64: Option<Cow<'a, str>>,
    key: Option<Key>,
    attributes: Option<Attributes>,
}

/// Reads a field that may be `null`: `"data": null` is data, unlike an absent field.
pub fn some_raw<'de: 'a, 'a, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// Reads the body of a `POST /channels/{name}`.
///
/// # Errors
/// `bad-request`.
pub fn read_sent(body: &[u8]) -> Result<Message, Refusal> {
    let sent: Sent<'_> = read(body)?;
    message(
        &sent.event,
        Payload {
            data: sent.data,
            text: sent.text,
            base64: sent.base64,
        },
        sent.key,
        sent.attributes,
    )
}

/// Builds a client's message from its parts.
///
/// # Errors
/// `bad-request`: a name or payload that is not acceptable, or no payload.
pub fn message(event: &str, payload: Payload<'_>, key: Option<Key>, attributes: Option<Attributes>) -> Result<Message, Refusal> {
    let data = payload
        .read()?
        .ok_or_else(|| Refusal::bad_request("there is no 'data', 'text' or 'base64' in this message"))?;
    let mut message = Message::new(EventName::new(event)?, data);
    (message.key, message.attributes) = (key, attributes.unwrap_or_default());
    Ok(message)
}

/// A publication is one item of `POST /publish`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Publication<'a> {
    /// Names the channel to publish to.
    #[serde(borrow)]
    pub channel: Cow<'a, str>,
    #[serde(borrow)]
    event: Option<Cow<'a, str>>,
    #[serde(borrow, default, deserialize_with = "some_raw")]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    text: Option<Cow<'a, str>>,
    #[serde(borrow)]
    base64: Option<Cow<'a, str>>,
    key: Option<Key>,
    attributes: Option<Attributes>,
    /// Makes a repeated publication harmless.
    pub idempotency_key: Option<IdempotencyKey>,
    #[serde(rename = "end")]
    ends: Option<bool>,
}

impl Publication<'_> {
    /// Returns whether the channel ends after the publication.
    pub fn ends(&self) -> bool {
        self.ends.unwrap_or(false)
    }

    /// Takes the message out; `None`: the publication is only the end of the channel.
    ///
    /// # Errors
    /// `bad-request`.
    pub fn take_message(&mut self) -> Result<Option<Message>, Refusal> {
        let payload = Payload {
            data: self.data.take(),
            text: self.text.take(),
            base64: self.base64.take(),
        };
        let data = payload.read()?;
        match (data, &self.event) {
            (Some(data), event) => {
                let event = EventName::new(event.as_deref().unwrap_or("message"))?;
                let mut message = Message::new(event, data);
                (message.key, message.attributes) = (self.key.take(), self.attributes.take().unwrap_or_default());
                Ok(Some(message))
            }
            (None, None) if self.ends() => Ok(None),
            (None, _) => Err(Refusal::bad_request(
                "there is no 'data', 'text' or 'base64' to publish (none is needed only with \"end\": true)",
            )),
        }
    }
}

/// Reads a JSON number or text, as cursors and counts come.
pub fn text_or_number(value: &RawValue) -> Result<String, Refusal> {
    fn as_is<T: DeserializeOwned>(value: &RawValue) -> Option<T> {
        serde_json::from_str(value.get()).ok()
    }
    as_is::<String>(value)
        .or_else(|| as_is::<u64>(value).map(|n| n.to_string()))
        .ok_or_else(|| Refusal::bad_request("'after' is a cursor: a text or a whole number"))
}

/// Marks the head of a binary frame.
const BINARY_FORMAT: u8 = 1;

/// Encodes a binary event or message as one frame's payload: format, names, a number, payload.
pub fn binary(channel: &ChannelName, event: &EventName, number: u64, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(11 + channel.as_str().len() + event.as_str().len() + payload.len());
    frame.push(BINARY_FORMAT);
    for name in [channel.as_str(), event.as_str()] {
        // Names have at most 255 bytes.
        frame.push(name.len() as u8);
        frame.extend_from_slice(name.as_bytes());
    }
    frame.extend_from_slice(&number.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// Takes a binary frame apart: channel, event, number, payload.
///
/// # Errors
/// `bad-request`.
pub fn read_binary(frame: &Bytes) -> Result<(ChannelName, EventName, u64, Bytes), Refusal> {
    let bad = || {
        Refusal::new(
            Code::BadRequest,
            "a binary frame is: 0x01, length and channel name, length and event name, 8 bytes of id, payload",
        )
    };
    let text = |bytes: &[u8]| std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| bad());
    let (&format, mut rest) = frame.split_first().ok_or_else(bad)?;
    if format != BINARY_FORMAT {
        return Err(bad());
    }
    let mut names = Vec::with_capacity(2);
    for _ in 0..2 {
        let (&length, tail) = rest.split_first().ok_or_else(bad)?;
        let (name, tail) = tail.split_at_checked(length as usize).ok_or_else(bad)?;
        names.push(text(name)?);
        rest = tail;
    }
    let (number, payload) = rest.split_first_chunk::<8>().ok_or_else(bad)?;
    Ok((
        ChannelName::new(&names[0])?,
        EventName::new(&names[1])?,
        u64::from_be_bytes(*number),
        frame.slice_ref(payload),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use airwave_core::Position;
    use proptest::prelude::*;

    #[test]
    fn deep_json_is_refused_and_brackets_in_strings_do_not_count() {
        let deep = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        assert!(read::<serde_json::Value>(deep(32).as_bytes()).is_ok());
        assert_eq!(
            read::<serde_json::Value>(deep(33).as_bytes()).unwrap_err().code,
            Code::BadRequest
        );
        let text = format!("\"{}\\\"{}\"", "[".repeat(99), "{".repeat(99));
        assert!(read::<serde_json::Value>(text.as_bytes()).is_ok());
    }

    #[test]
    fn null_is_data_and_nothing_is_not() {
        assert_eq!(read_sent(br#"{"event":"x","data":null}"#).unwrap().data.as_bytes(), b"null");
        assert!(read_sent(br#"{"event":"x"}"#).is_err());
        assert!(read_sent(br#"{"event":"x","data":1,"text":"y"}"#).is_err());
        assert!(read_sent(br#"{"event":"x","data":1,"text":null,"base64":null,"key":null}"#).is_ok());
        assert_eq!(
            read_sent(br#"{"event":"x","data":null,"text":"y"}"#).unwrap().data,
            Data::text("y")
        );
        assert_eq!(
            read_sent(br#"{"event":"x","data":null,"base64":"eQ=="}"#).unwrap().data,
            Data::binary(&b"y"[..])
        );
        let publication = |text: &'static str| read::<Publication<'_>>(text.as_bytes()).unwrap();
        assert!(!publication(r#"{"channel":"a","data":1,"end":null,"event":null,"idempotency_key":null}"#).ends());
        assert!(publication(r#"{"channel":"a","end":true}"#).ends());
        assert!(
            read_sent(br#"{"event":"x","data":1,"colour":2}"#)
                .unwrap_err()
                .message
                .contains("colour")
        );
    }

    #[test]
    fn a_byte_order_mark_is_skipped() {
        let mut body = b"\xef\xbb\xbf".to_vec();
        body.extend_from_slice(br#"{"event":"x","data":1}"#);
        assert_eq!(read_sent(&body).unwrap().data.as_bytes(), b"1");
        assert!(read_sent(b"\xef\xbb\xbf").is_err());
    }

    #[test]
    fn half_a_surrogate_pair_is_no_character() {
        for data in [r#""\ud800""#, r#"{"\uDFFF":1}"#, r#"[["\ud83d x"]]"#] {
            let body = format!(r#"{{"event":"x","data":{data}}}"#);
            assert_eq!(read_sent(body.as_bytes()).unwrap_err().code, Code::BadRequest, "{data}");
        }
        for field in ["text", "event", "key"] {
            let body = format!(r#"{{"event":"x","{field}":"\ud800"}}"#).replace(r#""event":"x","event""#, r#""event""#);
            assert_eq!(read_sent(body.as_bytes()).unwrap_err().code, Code::BadRequest, "{field}");
        }
    }

    proptest! {
        #[test]
        fn an_envelope_is_one_line_of_json_with_the_same_data(text in "\\PC{0,40}|[\\x00-\\x1f\u{80}-\u{a0}\u{2028}\u{2029}]{0,9}", json: bool) {
            let data = if json { Data::json(&text).unwrap() } else { Data::text(text.clone()) };
            let event = Event::new(Position(7), Position(6), Message::new(EventName::new("e").unwrap(), data));
            let line = envelope(&ChannelName::new("a/b").unwrap(), &event);
            prop_assert!(!line.chars().any(|c| c.is_control() || c == '\u{2028}' || c == '\u{2029}'), "{line:?}");
            let value: serde_json::Value = serde_json::from_str(&line).unwrap();
            prop_assert_eq!(value[if json { "data" } else { "text" }].as_str(), Some(text.as_str()));
        }

        #[test]
        fn binary_frames_are_read_back(payload: Vec<u8>, number: u64) {
            let (channel, event) = (ChannelName::new("a/b").unwrap(), EventName::new("e").unwrap());
            let frame = Bytes::from(binary(&channel, &event, number, &payload));
            prop_assert_eq!(read_binary(&frame).unwrap(), (channel, event, number, Bytes::from(payload)));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>) {
            let _ = read_binary(&Bytes::from(bytes.clone()));
            let _ = read_sent(&bytes);
        }
    }
}
