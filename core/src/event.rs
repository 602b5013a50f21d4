//! The values everything else passes around: names, positions, messages, events.
//!
//! Parse at the door: a [`ChannelName`] or [`EventName`] exists only if it is valid, so no format
//! has to check again and no line break can ever forge a field of an SSE stream.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest name and key, in bytes.
pub const MAX_NAME: usize = 255;

/// Event names with this prefix belong to the protocol.
pub const RESERVED_PREFIX: &str = "airwave.";

/// Why a name, a key or a payload was not accepted. The text says what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(String);

impl Invalid {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

fn name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.~:@=+".contains(&byte)
}

fn check_length(kind: &str, text: &str) -> Result<(), Invalid> {
    match text.len() {
        0 => Err(Invalid(format!("{kind} must not be empty"))),
        1..=MAX_NAME => Ok(()),
        n => Err(Invalid(format!("{kind} has {n} bytes; at most {MAX_NAME} are allowed"))),
    }
}

/// The name of a channel: 1 to 255 bytes, segments of ASCII letters, digits and `-_.~:@=+`
/// separated by `/`, no empty, `.` or `..` segment. Cloning is cheap (shared text).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelName(Arc<str>);

impl ChannelName {
    /// Checks `text` and takes it as a channel name.
    pub fn new(text: &str) -> Result<Self, Invalid> {
        check_length("a channel name", text)?;
        for segment in text.split('/') {
            match segment {
                "" => return Err(Invalid("a channel name must not begin or end with '/' or hold '//'".into())),
                "." | ".." => return Err(Invalid("a channel name must not hold a segment '.' or '..'".into())),
                _ if segment.bytes().all(name_byte) => {}
                _ => {
                    return Err(Invalid(
                        "a channel name is made of letters, digits, '-', '_', '.', '~', ':', '@', '=', '+' and '/'".into(),
                    ));
                }
            }
        }
        Ok(Self(text.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The name of an event: as a channel name, but without `/` and not beginning with `airwave.`,
/// which is the protocol's.
///
/// `error` and `open` are names that a browser's `EventSource` fires itself
/// ([`EventName::is_fired_by_event_source`]).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventName(Arc<str>);

impl EventName {
    /// Checks `text` and takes it as an event name.
    pub fn new(text: &str) -> Result<Self, Invalid> {
        check_length("an event name", text)?;
        if !text.bytes().all(name_byte) {
            return Err(Invalid(
                "an event name is made of letters, digits, '-', '_', '.', '~', ':', '@', '=' and '+'".into(),
            ));
        }
        if text.starts_with(RESERVED_PREFIX) {
            return Err(Invalid(format!(
                "event names that begin with '{RESERVED_PREFIX}' are reserved"
            )));
        }
        Ok(Self(text.into()))
    }

    /// The name of the event that ends a channel. The only reserved name that a broker ever stores.
    pub fn end() -> Self {
        Self("airwave.end".into())
    }

    /// Takes a name back from a broker's store, where [`EventName::end`] is allowed too.
    pub fn from_stored(text: &str) -> Result<Self, Invalid> {
        if text == "airwave.end" {
            Ok(Self::end())
        } else {
            Self::new(text)
        }
    }

    /// Whether a browser's `EventSource` fires events of this name itself: a page that hears one
    /// cannot tell it from a broken or an opened connection.
    ///
    /// # Examples
    ///
    /// ```
    /// use airwave_core::EventName;
    ///
    /// assert!(EventName::new("error")?.is_fired_by_event_source());
    /// assert!(!EventName::new("failed")?.is_fired_by_event_source());
    /// # Ok::<(), airwave_core::event::Invalid>(())
    /// ```
    pub fn is_fired_by_event_source(&self) -> bool {
        matches!(&*self.0, "error" | "open")
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What an event is about (`AAPL`, `player-7`): the unit of conflation. 1 to 255 bytes, no control
/// characters.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(Arc<str>);

impl Key {
    /// Checks `text` and takes it as a key.
    pub fn new(text: &str) -> Result<Self, Invalid> {
        check_length("a key", text)?;
        if text.chars().any(char::is_control) {
            return Err(Invalid("a key must not hold control characters".into()));
        }
        Ok(Self(text.into()))
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What makes a repeated publish the same publish: 1 to 255 visible ASCII characters, per channel,
/// for [`crate::broker::IDEMPOTENCY_WINDOW`].
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IdempotencyKey(Arc<str>);

impl IdempotencyKey {
    /// Checks `text` and takes it as an idempotency key.
    pub fn new(text: &str) -> Result<Self, Invalid> {
        check_length("an idempotency key", text)?;
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Invalid("an idempotency key is made of visible ASCII characters".into()));
        }
        Ok(Self(text.into()))
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

macro_rules! text_value {
    ($($type:ident),*) => {$(
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { fmt::Debug::fmt(self.as_str(), f) }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(self.as_str()) }
        }
        impl FromStr for $type {
            type Err = Invalid;
            fn from_str(text: &str) -> Result<Self, Invalid> { Self::new(text) }
        }
        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str { self.as_str() }
        }
        impl std::borrow::Borrow<str> for $type {
            fn borrow(&self) -> &str { self.as_str() }
        }
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> { serializer.serialize_str(self.as_str()) }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                Self::new(&text).map_err(serde::de::Error::custom)
            }
        }
    )*};
}
text_value!(ChannelName, EventName, Key, IdempotencyKey);

/// Orders the events of one channel: strictly increasing, and never given to two different events,
/// not even after a crash, a failover that lost writes, or a wiped store.
///
/// Positions start from the clock in microseconds, so a store that begins anew begins above
/// everything it ever gave. For example: events at 1748123004217001 and 1748123004217002; the store
/// is wiped; the next event gets 1748123009000000, whose `previous` is not 1748123004217002, and a
/// listener that holds that cursor is told of a gap.
///
/// Zero is no event's position; as a `previous` it means "none is known".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Position(pub u64);

impl Position {
    /// No event's position.
    pub const ZERO: Position = Position(0);

    /// The clock's position: microseconds since 1970.
    pub fn now() -> Self {
        // A clock before 1970 gives zero; `after` then still counts up from the last position.
        let micros = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros());
        Position(u64::try_from(micros).unwrap_or(u64::MAX))
    }

    /// The position of the clock that much later.
    pub(crate) fn plus(self, time: Duration) -> Self {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        Position(self.0.saturating_add(micros))
    }

    /// The next position of a channel (or store) whose last one is `self`: the clock, or one more
    /// where the clock is behind.
    pub fn next(self) -> Self {
        Position(self.0.saturating_add(1)).max(Position::now())
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Position {
    type Err = Invalid;

    /// Decimal digits only: no sign, no spaces.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(Invalid("a position is a decimal number".into()));
        }
        text.parse()
            .map(Position)
            .map_err(|_| Invalid("a position fits 64 bits".into()))
    }
}

/// A payload. JSON and text are kept apart, because JSON is embedded in envelopes as it stands.
///
/// JSON is valid, on one line, and free of C0 and C1 controls, U+0085, U+2028 and U+2029 (they are
/// escaped), whichever way it came in.
#[derive(Clone, PartialEq, Eq)]
pub enum Data {
    /// JSON text, normalised.
    Json(JsonText),
    /// Any text.
    Text(Arc<str>),
    /// Any bytes.
    Binary(Bytes),
}

/// JSON text that is known to be valid and normalised; only [`Data`] makes one. Like a payload it
/// never reaches a log.
#[derive(Clone, PartialEq, Eq)]
pub struct JsonText(Arc<str>);

impl JsonText {
    /// The JSON text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for JsonText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JsonText({} bytes)", self.0.len())
    }
}

impl Data {
    /// Serialises a value as JSON.
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<Self, Invalid> {
        let text = serde_json::to_string(value).map_err(|e| Invalid(format!("the value cannot be written as JSON: {e}")))?;
        Ok(Data::Json(JsonText(one_line(text)?)))
    }

    /// Takes text that should be JSON: checks and normalises it.
    pub fn json_text(text: &str) -> Result<Self, Invalid> {
        let raw: &serde_json::value::RawValue =
            serde_json::from_str(text).map_err(|e| Invalid(format!("the data is not valid JSON: {e}")))?;
        Self::raw_json(raw)
    }

    /// Takes JSON that serde_json has checked already.
    ///
    /// # Errors
    /// A string in it holds half of a surrogate pair (`\ud800`), which serde_json lets pass.
    pub fn raw_json(raw: &serde_json::value::RawValue) -> Result<Self, Invalid> {
        Ok(Data::Json(JsonText(one_line(raw.get())?)))
    }

    /// Takes any text.
    pub fn text(text: impl Into<Arc<str>>) -> Self {
        Data::Text(text.into())
    }

    /// Takes any bytes.
    pub fn binary(bytes: impl Into<Bytes>) -> Self {
        Data::Binary(bytes.into())
    }

    /// The payload's size in bytes.
    pub fn len(&self) -> usize {
        self.as_bytes().len()
    }

    /// Whether the payload has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The payload's bytes, whatever its kind.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Data::Json(text) => text.0.as_bytes(),
            Data::Text(text) => text.as_bytes(),
            Data::Binary(bytes) => bytes,
        }
    }

    /// One byte that names the kind in a broker's store: `j`, `t` or `b`.
    pub fn kind(&self) -> u8 {
        match self {
            Data::Json(_) => b'j',
            Data::Text(_) => b't',
            Data::Binary(_) => b'b',
        }
    }

    /// Takes a payload back from a broker's store: what [`Data::kind`] and [`Data::as_bytes`] gave.
    /// JSON is not parsed again: it was checked when it was published.
    pub fn from_stored(kind: u8, bytes: Bytes) -> Result<Self, Invalid> {
        let text = |bytes: &Bytes| match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Arc::<str>::from(text)),
            Err(_) => Err(Invalid("a stored text is not UTF-8".into())),
        };
        match kind {
            b'j' => Ok(Data::Json(JsonText(text(&bytes)?))),
            b't' => Ok(Data::Text(text(&bytes)?)),
            b'b' => Ok(Data::Binary(bytes)),
            other => Err(Invalid(format!("a stored payload has the unknown kind {other}"))),
        }
    }
}

impl fmt::Debug for Data {
    // Payloads never reach a log: only kind and size are shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({} bytes)", char::from(self.kind()), self.len())
    }
}

/// Text as a JSON string on one line, without raw controls or separators.
pub fn quoted(text: &str) -> String {
    match Data::json(text) {
        Ok(Data::Json(json)) => json.as_str().to_owned(),
        // A string can always be written as JSON.
        _ => "\"\"".to_owned(),
    }
}

/// Puts valid JSON on one line, and escapes what could be mistaken for a line break or a control by
/// a reader.
///
/// In valid JSON raw C0 controls stand only between tokens, and everything beyond ASCII only inside
/// strings. So the first become spaces and the second `\u` escapes, and the value stays the same.
///
/// A string with half of a surrogate pair is refused: it is no text, and strict readers of
/// listeners fail on it. So is a number that no double holds (`1e400`), RFC 8259, section 6.
fn one_line(text: impl AsRef<str> + Into<Arc<str>>) -> Result<Arc<str>, Invalid> {
    if let Some(half) = half_of_a_pair(text.as_ref()) {
        return Err(Invalid(format!(
            "the JSON holds '{half}', half of a surrogate pair, which is no character: send both halves, or the character itself"
        )));
    }
    if let Some(number) = number_beyond_doubles(text.as_ref()) {
        let (begin, more) = match number.get(..30) {
            Some(begin) => (begin, "…"),
            None => (number, ""),
        };
        return Err(Invalid(format!(
            "the JSON holds the number {begin}{more}, which is too large for a double, and so for most readers: send it as a string"
        )));
    }
    let needs_care = |c: char| c.is_control() || c == '\u{2028}' || c == '\u{2029}';
    // Controls are below 0x20, 0x7f, or begin with the byte 0xc2; the separators begin with 0xe2.
    let suspicious = text.as_ref().bytes().any(|b| b < 0x20 || b == 0x7f || b == 0xc2 || b == 0xe2);
    if !suspicious || !text.as_ref().chars().any(needs_care) {
        return Ok(text.into());
    }
    let mut line = String::with_capacity(text.as_ref().len() + 16);
    for c in text.as_ref().chars() {
        if (c as u32) < 0x20 {
            line.push(' ');
        } else if needs_care(c) {
            use fmt::Write;
            let _ = write!(line, "\\u{:04x}", c as u32); // writing to a String cannot fail
        } else {
            line.push(c);
        }
    }
    Ok(line.into())
}

/// The first escape in valid JSON that is one half of a surrogate pair without the other.
fn half_of_a_pair(json: &str) -> Option<&str> {
    // In valid JSON a backslash stands only in strings, and four hex digits follow `\u`.
    let unit = |at: usize| {
        let digits = json.get(at..)?.strip_prefix("\\u")?.get(..4)?;
        u16::from_str_radix(digits, 16).ok()
    };
    let mut from = 0;
    while let Some(found) = json.get(from..)?.find('\\') {
        let at = from + found;
        from = at
            + match unit(at) {
                None => 2,
                Some(0xd800..=0xdbff) if matches!(unit(at + 6), Some(0xdc00..=0xdfff)) => 12,
                Some(0xd800..=0xdfff) => return json.get(at..at + 6),
                Some(_) => 6,
            };
    }
    None
}

/// How many digits a number without an exponent may have and be surely held by a double.
const DIGITS_OF_A_DOUBLE: usize = 308;

/// The first number in valid JSON that is too large for a double.
fn number_beyond_doubles(json: &str) -> Option<&str> {
    let bytes = json.as_bytes();
    let is_exponent = |pair: &[u8]| pair[0].is_ascii_digit() && pair[1] | 0x20 == b'e';
    if json.len() <= DIGITS_OF_A_DOUBLE && !bytes.windows(2).any(is_exponent) {
        return None;
    }
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => {
                at += 1;
                while at < bytes.len() && bytes[at] != b'"' {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                at += 1;
            }
            b'-' | b'0'..=b'9' => {
                let is_of_number = |byte: &u8| matches!(byte, b'-' | b'+' | b'.' | b'0'..=b'9' | b'e' | b'E');
                let long = bytes[at..].iter().take_while(|byte| is_of_number(byte)).count();
                let number = &json[at..at + long];
                if number.parse::<f64>().is_ok_and(f64::is_infinite) {
                    return Some(number);
                }
                at += long;
            }
            _ => at += 1,
        }
    }
    None
}

/// A message to publish: event name, data, optional key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The event's name.
    pub event: EventName,
    /// The payload.
    pub data: Data,
    /// What it is about; `None`: its event name stands for the key.
    pub key: Option<Key>,
}

impl Message {
    /// A message without a key.
    pub fn new(event: EventName, data: Data) -> Self {
        Self { event, data, key: None }
    }

    /// The message that ends a channel.
    pub(crate) fn end() -> Self {
        Self::new(EventName::end(), Data::text(""))
    }

    /// A message whose data is `value` as JSON.
    pub fn json_of<T: Serialize + ?Sized>(event: &str, value: &T) -> Result<Self, Invalid> {
        Ok(Self::new(EventName::new(event)?, Data::json(value)?))
    }

    /// The same message with a key.
    pub fn with_key(mut self, key: Key) -> Self {
        self.key = Some(key);
        self
    }

    /// The unit of conflation: the key, or the event name where there is none.
    pub fn conflation_key(&self) -> &Arc<str> {
        self.key.as_ref().map_or(&self.event.0, |key| &key.0)
    }

    /// Reads the data as a value: JSON as it is, text as a JSON string.
    ///
    /// # Errors
    /// [`Invalid`] that names the path of the first wrong field (`items[2].price`); its text may be
    /// shown to the client who sent it.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Invalid> {
        let text = self.data_as_json()?;
        serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_str(&text))
            .map_err(|error| self.does_not_fit("", &error))
    }

    /// Reads event name and data as one value of an enum that has a variant for each event:
    ///
    /// ```
    /// use airwave_core::{Data, EventName, Message};
    ///
    /// #[derive(serde::Serialize, serde::Deserialize, Debug, PartialEq)]
    /// #[serde(tag = "event", content = "data", rename_all = "kebab-case")]
    /// enum Command {
    ///     Cancel { why: String },
    ///     Refresh,
    /// }
    ///
    /// let message = Message::new(EventName::new("cancel")?, Data::json_text(r#"{"why":"too late"}"#)?);
    /// assert_eq!(message.typed::<Command>()?, Command::Cancel { why: "too late".into() });
    /// let wrong = Message::new(EventName::new("cancel")?, Data::json_text(r#"{"why":7}"#)?);
    /// assert!(wrong.typed::<Command>().unwrap_err().to_string().contains("'why': invalid type: integer `7`, expected a string"));
    /// # Ok::<(), airwave_core::event::Invalid>(())
    /// ```
    ///
    /// # Errors
    /// As [`Message::json`]; also a name that is none of the enum's events.
    pub fn typed<E: DeserializeOwned>(&self) -> Result<E, Invalid> {
        // The name's characters need no escape. It comes first, so that the data are read as what
        // they must be, and an error knows its place.
        let text = format!("{{\"event\":\"{}\",\"data\":{}}}", self.event, self.data_as_json()?);
        serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_str(&text))
            .map_err(|error| self.does_not_fit("data", &error))
    }

    /// The message that [`Message::typed`] reads back: `event` is an enum with a variant for each
    /// event, `#[serde(tag = "event", content = "data")]`.
    ///
    /// # Errors
    /// It is not such an enum, or a variant's name is no event name.
    pub fn of_typed<E: Serialize + ?Sized>(event: &E) -> Result<Self, Invalid> {
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Tagged {
            event: String,
            #[serde(default)]
            data: Option<Box<serde_json::value::RawValue>>,
        }
        let Data::Json(text) = Data::json(event)? else {
            return Err(Invalid("a value became no JSON".into()));
        };
        let tagged: Tagged = serde_json::from_str(text.as_str()).map_err(|error| {
            Invalid(format!(
                "this is no enum with #[serde(tag = \"event\", content = \"data\")]: {error}"
            ))
        })?;
        let data = match tagged.data {
            Some(raw) => Data::raw_json(&raw)?,
            None => Data::json_text("null")?,
        };
        Ok(Self::new(EventName::new(&tagged.event)?, data))
    }

    fn data_as_json(&self) -> Result<Cow<'_, str>, Invalid> {
        match &self.data {
            Data::Json(text) => Ok(Cow::Borrowed(text.as_str())),
            Data::Text(text) => Ok(Cow::Owned(serde_json::Value::String(text.to_string()).to_string())),
            Data::Binary(_) => Err(Invalid(format!("the data of '{}' is binary, not JSON", self.event))),
        }
    }

    /// `within`: the first step of the path, which is ours and not the sender's.
    fn does_not_fit(&self, within: &str, error: &serde_path_to_error::Error<serde_json::Error>) -> Invalid {
        let path = error.path().to_string();
        let path = path.strip_prefix(within).unwrap_or(&path).trim_start_matches('.');
        let why = error.inner().to_string();
        // Line and column are those of a text that the sender has not seen.
        let why = why.rsplit_once(" at line ").map_or(why.as_str(), |(why, _)| why);
        match path {
            "" | "?" => Invalid(format!("the data of '{}' does not fit: {why}", self.event)),
            path => Invalid(format!("the data of '{}' does not fit at '{path}': {why}", self.event)),
        }
    }

    /// What this message weighs in memory and against limits, in bytes: payload and names.
    pub fn weight(&self) -> usize {
        self.data.len() + self.event.0.len() + self.key.as_ref().map_or(0, |k| k.0.len())
    }

    /// Writes the message as brokers store it: [`Data::kind`], the lengths of name and key as two
    /// hexadecimal digits each, name, key, payload.
    pub fn store(&self, into: &mut Vec<u8>) {
        let key = self.key.as_ref().map_or("", |key| key.as_str());
        into.reserve(5 + self.weight());
        into.push(self.data.kind());
        // Both are at most 255 bytes long, and a key is never empty.
        into.extend_from_slice(format!("{:02x}{:02x}", self.event.0.len(), key.len()).as_bytes());
        into.extend_from_slice(self.event.0.as_bytes());
        into.extend_from_slice(key.as_bytes());
        into.extend_from_slice(self.data.as_bytes());
    }

    /// Takes a message back from a broker's store: what [`Message::store`] wrote, up to the end.
    /// `None`: it is not one.
    pub fn from_stored(bytes: &Bytes) -> Option<Self> {
        let length = |digits: &[u8]| {
            let digits = std::str::from_utf8(digits).ok()?;
            // A sign would be taken for one.
            usize::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+'))
        };
        let (kind, names) = (*bytes.first()?, 5 + length(bytes.get(1..3)?)?);
        let keys = names + length(bytes.get(3..5)?)?;
        let name = std::str::from_utf8(bytes.get(5..names)?).ok()?;
        let key = std::str::from_utf8(bytes.get(names..keys)?).ok()?;
        let key = if key.is_empty() { None } else { Some(Key::new(key).ok()?) };
        Some(Self {
            event: EventName::from_stored(name).ok()?,
            data: Data::from_stored(kind, bytes.slice(keys..)).ok()?,
            key,
        })
    }
}

/// A message that has its place in a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its place.
    pub position: Position,
    /// The place of the event before it in this channel; zero: none is known.
    ///
    /// For example: events 10, 20, 30 have previous 10's base, 10 and 20. A reader that has 20 and
    /// gets 30 has missed nothing; a reader that has 10 and gets 30 asks the broker for what lies
    /// between.
    pub previous: Position,
    /// What was said.
    pub message: Message,
}

impl Event {
    /// Whether this is the event that ends its channel.
    pub fn is_end(&self) -> bool {
        self.message.event.as_str() == "airwave.end"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_surrogate_pair_is_refused() {
        for json in [
            r#""\ud800""#,
            r#""\uDBFF""#,
            r#""\udc00""#,
            r#""\ud83d\u0041""#,
            r#""\ud83d\ud83d\ude00""#,
            r#""\ude00\ud83d""#,
            r#""\\\ud800""#,
            r#""é\n\ud800x""#,
            r#"{"\ud800":1}"#,
            r#"[1,{"a":["\udfff"]}]"#,
        ] {
            let refused = Data::json_text(json).unwrap_err().to_string();
            assert!(refused.contains("surrogate"), "{json}: {refused}");
            let raw: Box<serde_json::value::RawValue> = serde_json::from_str(json).unwrap();
            assert!(Data::raw_json(&raw).is_err(), "{json}");
            assert!(Data::json(&raw).is_err(), "{json}");
        }
        for json in [
            r#""\ud83d\ude00""#,
            r#""\uD83D\uDE00\uD83D\uDE00""#,
            r#""\\ud800""#,
            r#""\\\\udc00 \" \n""#,
            r#""\u0041\ue000\ud7ff""#,
            r#""\u0000""#,
            "\"😀\"",
        ] {
            assert!(Data::json_text(json).is_ok(), "{json}");
        }
    }

    #[test]
    fn channel_names_are_literal_paths() {
        for good in ["a", "orders/abc123", "chat/room-1/~x:@=+._", &"x".repeat(255)] {
            assert_eq!(ChannelName::new(good).unwrap().as_str(), good);
        }
        for bad in [
            "",
            "/a",
            "a/",
            "a//b",
            ".",
            "a/../b",
            "a/.",
            "a b",
            "a\nb",
            "a\0",
            "é",
            "a*",
            "a>",
            "a?b",
            "a#b",
            "{x}",
            &"x".repeat(256),
        ] {
            assert!(ChannelName::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn event_names_have_no_slash_and_no_reserved_prefix() {
        for good in ["message", "order-update", "airwave", "Airwave.x"] {
            assert!(EventName::new(good).is_ok(), "{good:?}");
        }
        for bad in ["", "a/b", "airwave.gap", "a b", "a\rb", ";base64"] {
            assert!(EventName::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn json_becomes_one_line_and_keeps_its_value() {
        let text = "{\n\t\"a\":\r\n [1, \"x\u{2028}y\u{85}z\u{7f}\u{9f} \u{e9} \u{1F600}\"]}";
        let Data::Json(line) = Data::json_text(text).unwrap() else {
            panic!("not JSON")
        };
        assert!(!line.as_str().chars().any(|c| c.is_control() || c == '\u{2028}'));
        let before: serde_json::Value = serde_json::from_str(text).unwrap();
        let after: serde_json::Value = serde_json::from_str(line.as_str()).unwrap();
        assert_eq!(before, after);
    }

    #[test]
    fn numbers_that_no_double_holds_are_refused() {
        let digits = |count: usize| format!("[{}]", "9".repeat(count));
        for bad in ["1e309", "-1E+400", r#"{"a":["\\",2e308]}"#, &digits(310)] {
            let told = Data::json_text(bad).unwrap_err().to_string();
            assert!(told.contains("too large for a double") && told.len() < 200, "{told}");
            assert!(serde_json::from_str::<serde_json::Value>(bad).is_err(), "{bad}");
        }
        let text = format!(r#"["1e400\"1e400", 1e308, 1e-400, 0e999, 1.5E3, {}]"#, "1".repeat(300));
        for good in [&text, &digits(300), r#"{"1e400":1}"#, r#"["0e1e400"]"#] {
            assert!(Data::json_text(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn bad_json_is_refused_and_payloads_are_not_shown() {
        assert!(Data::json_text("{").is_err());
        assert!(Data::json_text("{} {}").is_err());
        assert_eq!(format!("{:?}", Data::text("secret")), "t(6 bytes)");
    }

    #[test]
    fn data_that_do_not_fit_are_refused_with_the_path_of_the_wrong_field() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Item {
            price: u32,
        }
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "event", content = "data", rename_all = "kebab-case")]
        enum Command {
            AddItems { items: Vec<Item> },
            Note(String),
            Clear,
        }
        let message = |event: &str, data: &str| Message::new(EventName::new(event).unwrap(), Data::json_text(data).unwrap());
        for command in [
            Command::AddItems {
                items: vec![Item { price: 7 }],
            },
            Command::Note("so".into()),
            Command::Clear,
        ] {
            let message = Message::of_typed(&command).unwrap();
            assert_eq!(message.typed::<Command>().unwrap(), command);
        }
        assert_eq!(Message::of_typed(&Command::Clear).unwrap().event.as_str(), "clear");
        for (event, data, told) in [
            (
                "add-items",
                r#"{"items":[{"price":1},{"price":-1}]}"#,
                "at 'items[1].price': invalid value: integer `-1`",
            ),
            ("add-items", r#"{}"#, "missing field `items`"),
            ("note", "7", "does not fit: invalid type: integer `7`, expected a string"),
            ("remove", "{}", "unknown variant `remove`"),
        ] {
            let text = message(event, data).typed::<Command>().unwrap_err().to_string();
            assert!(text.contains(told) && !text.contains("column"), "{text}");
        }
        let text = message("x", r#"[{"price":"1"}]"#)
            .json::<Vec<Item>>()
            .unwrap_err()
            .to_string();
        assert!(text.contains("at '[0].price': invalid type: string"), "{text}");
        // No enum, no tag, a name that is none.
        assert!(Message::of_typed(&Item { price: 1 }).is_err());
        assert!(Message::of_typed(&serde_json::json!({"event": "a/b"})).is_err());
        let text = Message::new(EventName::new("note").unwrap(), Data::text("as \"text\""));
        assert_eq!(text.typed::<Command>().unwrap(), Command::Note("as \"text\"".into()));
    }

    #[test]
    fn positions_follow_the_clock_and_never_repeat() {
        let ahead = Position(u64::MAX - 10);
        assert_eq!(ahead.next(), Position(u64::MAX - 9));
        assert!(Position::ZERO.next().0 > 1_700_000_000_000_000);
        assert!(
            "+1".parse::<Position>().is_err()
                && "".parse::<Position>().is_err()
                && "99999999999999999999".parse::<Position>().is_err()
        );
    }

    #[test]
    fn a_payload_survives_the_store() {
        for data in [
            Data::json(&[1, 2]).unwrap(),
            Data::text("a\r\nb"),
            Data::binary(vec![0u8, 255]),
        ] {
            let stored = Bytes::copy_from_slice(data.as_bytes());
            assert_eq!(Data::from_stored(data.kind(), stored).unwrap(), data);
        }
        assert!(Data::from_stored(b't', Bytes::from_static(&[0xff])).is_err());
        assert!(Data::from_stored(b'?', Bytes::new()).is_err());
    }

    #[test]
    fn messages_come_back_from_a_store_as_they_were() {
        let long = "x".repeat(255);
        for (name, key, data) in [
            ("said", None, Data::text("")),
            ("said", Some("k:1"), Data::text("a:b:c\n")),
            (&long[..], Some(&long[..]), Data::binary(vec![0, 255, b':'])),
            ("s", Some("é"), Data::json_text("[1]").unwrap()),
            ("M", None, Data::text("M")),
        ] {
            let mut message = Message::new(EventName::new(name).unwrap(), data);
            message.key = key.map(|key| Key::new(key).unwrap());
            let mut bytes = Vec::new();
            message.store(&mut bytes);
            assert_eq!(bytes.len(), 5 + message.weight());
            assert_eq!(Message::from_stored(&bytes.into()), Some(message));
        }
        let mut end = Vec::new();
        crate::Publish::end().message.store(&mut end);
        assert_eq!(Message::from_stored(&end.into()), Some(crate::Publish::end().message));
    }

    #[test]
    fn what_no_broker_stored_is_no_message() {
        let mut whole = Vec::new();
        Message::new(EventName::new("said").unwrap(), Data::text("text")).store(&mut whole);
        let whole = Bytes::from(whole);
        for length in 0..whole.len() - 4 {
            assert_eq!(
                Message::from_stored(&whole.slice(..length)),
                None,
                "the first {length} bytes of one"
            );
        }
        for forged in ["", "t0000", "x0100a", "t0100\n", "tzz00a", "t0101a\n", "t-100a", "t+100a"] {
            assert_eq!(Message::from_stored(&Bytes::from_static(forged.as_bytes())), None, "{forged}");
        }
    }
}
