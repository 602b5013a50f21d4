//! What an event or a message carries.

use std::borrow::Cow;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::error::ReadError;
use crate::text::Text;

/// The one payload of an event, a message or a publication. In JSON it is exactly one of the fields
/// `data`, `text` and `base64`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub enum Payload<'a> {
    /// Any JSON, `null` included.
    #[serde(rename = "data")]
    Json(Json<'a>),
    /// Any text.
    #[serde(rename = "text")]
    Text(Cow<'a, str>),
    /// Any bytes, as base64 (standard alphabet, padded).
    #[serde(rename = "base64")]
    Binary(Base64<'a>),
}

impl<'a> Payload<'a> {
    /// A payload of bytes.
    pub fn binary(bytes: impl Into<Cow<'a, [u8]>>) -> Self {
        Payload::Binary(Base64(bytes.into()))
    }

    /// A payload of text.
    pub fn text(text: impl Into<Cow<'a, str>>) -> Self {
        Payload::Text(text.into())
    }

    /// Returns the bytes: the JSON text, the text, or the bytes themselves.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Payload::Json(json) => json.get().as_bytes(),
            Payload::Text(text) => text.as_bytes(),
            Payload::Binary(bytes) => &bytes.0,
        }
    }

    /// Returns the payload as one text: the JSON, the text, or the bytes in base64.
    pub fn as_text(&self) -> Cow<'_, str> {
        match self {
            Payload::Json(json) => Cow::Borrowed(json.get()),
            Payload::Text(text) => Cow::Borrowed(text),
            Payload::Binary(bytes) => Cow::Owned(STANDARD.encode(&bytes.0)),
        }
    }

    /// Returns the same payload, borrowed from nothing.
    pub fn into_owned(self) -> Payload<'static> {
        match self {
            Payload::Json(json) => Payload::Json(json.into_owned()),
            Payload::Text(text) => Payload::Text(Cow::Owned(text.into_owned())),
            Payload::Binary(bytes) => Payload::Binary(Base64(Cow::Owned(bytes.0.into_owned()))),
        }
    }

    /// The payload that the three fields make. `Ok(None)`: there is none.
    ///
    /// `null` is data where it stands alone, and an absent field beside another payload.
    pub(crate) fn of_fields(
        data: Option<&'a RawValue>,
        text: Option<Cow<'a, str>>,
        base64: Option<Cow<'a, str>>,
    ) -> Result<Option<Self>, ReadError> {
        let elsewhere = text.is_some() || base64.is_some();
        let data = data.filter(|raw| !elsewhere || raw.get() != "null");
        match (data, text, base64) {
            (None, None, None) => Ok(None),
            (Some(raw), None, None) => Ok(Some(Payload::Json(Json(Cow::Borrowed(raw))))),
            (None, Some(text), None) => Ok(Some(Payload::Text(text))),
            (None, None, Some(base64)) => match STANDARD.decode(base64.as_bytes()) {
                Ok(bytes) => Ok(Some(Payload::binary(bytes))),
                Err(error) => Err(ReadError::Base64(error.to_string())),
            },
            _ => Err(ReadError::SeveralPayloads),
        }
    }
}

/// A JSON text, as it came or as it is to go out: numbers keep their digits, objects their order.
#[derive(Clone)]
pub struct Json<'a>(pub(crate) Cow<'a, RawValue>);

impl<'a> Json<'a> {
    /// Reads a JSON text. Spaces around it are dropped.
    ///
    /// # Errors
    /// The text is not JSON.
    pub fn parse(text: &'a str) -> Result<Self, ReadError> {
        Ok(Self(Cow::Borrowed(serde_json::from_str(text)?)))
    }

    /// Writes a value as JSON.
    ///
    /// # Errors
    /// The value has no JSON: a map has a key that is no text, or the value's own code fails.
    pub fn of<T: Serialize + ?Sized>(value: &T) -> Result<Json<'static>, ReadError> {
        Ok(Json(Cow::Owned(serde_json::value::to_raw_value(value)?)))
    }

    /// Returns the JSON text.
    pub fn get(&self) -> &str {
        self.0.get()
    }

    /// Reads the JSON as a value of `T`.
    ///
    /// # Errors
    /// The JSON has another shape.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, ReadError> {
        Ok(serde_json::from_str(self.get())?)
    }

    /// Returns the same JSON, borrowed from nothing.
    pub fn into_owned(self) -> Json<'static> {
        Json(Cow::Owned(self.0.into_owned()))
    }
}

impl<'a> From<&'a RawValue> for Json<'a> {
    fn from(raw: &'a RawValue) -> Self {
        Self(Cow::Borrowed(raw))
    }
}

impl From<Box<RawValue>> for Json<'_> {
    fn from(raw: Box<RawValue>) -> Self {
        Self(Cow::Owned(raw))
    }
}

/// Compares the texts: `1.0` and `1` are not the same.
impl PartialEq for Json<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.get() == other.get()
    }
}

impl Eq for Json<'_> {}

impl fmt::Debug for Json<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Json({})", self.get())
    }
}

impl Serialize for Json<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Json<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&RawValue>::deserialize(deserializer).map(|raw| Self(Cow::Borrowed(raw)))
    }
}

/// Bytes that are base64 in JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base64<'a>(pub Cow<'a, [u8]>);

impl Serialize for Base64<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

/// Attributes: names and texts that stand beside a payload, in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes<'a>(pub Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl Attributes<'_> {
    /// Returns whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the text of the attribute with this name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, text)| &**text)
    }

    /// Returns the same attributes, borrowed from nothing.
    pub fn into_owned(self) -> Attributes<'static> {
        let owned = |text: Cow<'_, str>| Cow::Owned(text.into_owned());
        Attributes(self.0.into_iter().map(|(name, text)| (owned(name), owned(text))).collect())
    }
}

impl Serialize for Attributes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, text) in &self.0 {
            map.serialize_entry(name, text)?;
        }
        map.end()
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Attributes<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Texts;
        impl<'de> Visitor<'de> for Texts {
            type Value = Attributes<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of texts")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut all: Vec<(Cow<'de, str>, Cow<'de, str>)> = Vec::new();
                while let Some((Text(name), Text(text))) = map.next_entry::<Text<'de>, Text<'de>>()? {
                    // Of a name that is given twice the last text counts, as in every JSON object.
                    match all.iter_mut().find(|(known, _)| *known == name) {
                        Some((_, known)) => *known = text,
                        None => all.push((name, text)),
                    }
                }
                Ok(Attributes(all))
            }
        }
        deserializer.deserialize_map(Texts)
    }
}
