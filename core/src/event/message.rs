//! Clients and backends publish messages.

use std::borrow::Cow;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::attributes::Attributes;
use super::data::Data;
use super::names::{EventName, Invalid, Key};

/// A message to publish has an event name, data, an optional key and attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Message {
    /// Names the event.
    pub event: EventName,
    /// Holds the payload.
    pub data: Data,
    /// Names the thing that the message is about. `None`: its event name stands for the key.
    pub key: Option<Key>,
    /// Holds texts that describe the message, beside its payload.
    pub attributes: Attributes,
}

impl Message {
    /// Creates a message without a key and without attributes.
    pub fn new(event: EventName, data: Data) -> Self {
        Self {
            event,
            data,
            key: None,
            attributes: Attributes::new(),
        }
    }

    /// Creates the message that ends a channel.
    pub(crate) fn end() -> Self {
        Self::new(EventName::end(), Data::text(""))
    }

    /// Creates a message whose data is `value` as JSON.
    pub fn json_of<T: Serialize + ?Sized>(event: &str, value: &T) -> Result<Self, Invalid> {
        Ok(Self::new(EventName::new(event)?, Data::json(value)?))
    }

    /// Returns the same message with a key.
    pub fn with_key(mut self, key: Key) -> Self {
        self.key = Some(key);
        self
    }

    /// Returns the same message with these attributes, and no others.
    pub fn with_attributes(mut self, attributes: Attributes) -> Self {
        self.attributes = attributes;
        self
    }

    /// Returns whether listeners do not see this message: its name is reserved and not the end of a
    /// channel. Only a later version of Airwave stores such messages.
    pub fn is_hidden(&self) -> bool {
        self.event.is_reserved() && self.event.as_str() != "airwave.end"
    }

    /// Returns the unit of conflation: the key, or the event name where there is none.
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
        // The name's characters need no escape. The name comes first, so that the parser reads the
        // data as the event's type, and an error knows its path.
        let text = format!("{{\"event\":\"{}\",\"data\":{}}}", self.event, self.data_as_json()?);
        serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_str(&text))
            .map_err(|error| self.does_not_fit("data", &error))
    }

    /// Creates the message that [`Message::typed`] reads back: `event` is an enum with a variant
    /// for each event, `#[serde(tag = "event", content = "data")]`.
    ///
    /// # Errors
    /// `event` is not such an enum, or a variant's name is no event name.
    pub fn of_typed<E: Serialize + ?Sized>(event: &E) -> Result<Self, Invalid> {
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Tagged {
            event: String,
            #[serde(default)]
            data: Option<Box<serde_json::value::RawValue>>,
        }
        let Data::Json(text) = Data::json(event)? else {
            return Err(Invalid::new("a value became no JSON"));
        };
        let tagged: Tagged = serde_json::from_str(text.as_str()).map_err(|error| {
            Invalid::new(format!(
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
            Data::Binary(_) | Data::Opaque { .. } => {
                Err(Invalid::new(format!("the data of '{}' is binary, not JSON", self.event)))
            }
        }
    }

    /// Describes the error to the sender. `within` is the first step of the path, which Airwave
    /// adds and the sender does not know.
    fn does_not_fit(&self, within: &str, error: &serde_path_to_error::Error<serde_json::Error>) -> Invalid {
        let path = error.path().to_string();
        let path = path.strip_prefix(within).unwrap_or(&path).trim_start_matches('.');
        let why = error.inner().to_string();
        // Line and column count in a text that the sender has not seen.
        let why = why.rsplit_once(" at line ").map_or(why.as_str(), |(why, _)| why);
        match path {
            "" | "?" => Invalid::new(format!("the data of '{}' does not fit: {why}", self.event)),
            path => Invalid::new(format!("the data of '{}' does not fit at '{path}': {why}", self.event)),
        }
    }

    /// Returns the bytes that this message takes in memory and against limits: payload, names and
    /// attributes.
    pub fn weight(&self) -> usize {
        let names = self.event.0.len() + self.key.as_ref().map_or(0, |k| k.0.len());
        self.data.len() + names + self.attributes.weight()
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[test]
    fn data_that_do_not_fit_are_refused_with_the_path_of_the_wrong_field() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Purchase {
            price: u32,
        }
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "event", content = "data", rename_all = "kebab-case")]
        enum Command {
            AddItems { items: Vec<Purchase> },
            Note(String),
            Clear,
        }
        let message = |event: &str, data: &str| Message::new(EventName::new(event).unwrap(), Data::json_text(data).unwrap());
        for command in [
            Command::AddItems {
                items: vec![Purchase { price: 7 }],
            },
            Command::Note("so".into()),
            Command::Clear,
        ] {
            let message = Message::of_typed(&command).unwrap();
            assert_eq!(message.typed::<Command>().unwrap(), command);
        }
        assert_eq!(Message::of_typed(&Command::Clear).unwrap().event.as_str(), "clear");
        for (event, data, reason) in [
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
            assert!(text.contains(reason) && !text.contains("column"), "{text}");
        }
        let text = message("x", r#"[{"price":"1"}]"#)
            .json::<Vec<Purchase>>()
            .unwrap_err()
            .to_string();
        assert!(text.contains("at '[0].price': invalid type: string"), "{text}");
        // These values are no enum, have no tag, or have a name that is no event name.
        assert!(Message::of_typed(&Purchase { price: 1 }).is_err());
        assert!(Message::of_typed(&serde_json::json!({"event": "a/b"})).is_err());
        let text = Message::new(EventName::new("note").unwrap(), Data::text("as \"text\""));
        assert_eq!(text.typed::<Command>().unwrap(), Command::Note("as \"text\"".into()));
    }
}
