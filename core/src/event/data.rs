//! This module holds payloads: JSON, text and bytes.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;

use super::json::one_line;
use super::names::Invalid;

/// Data is a payload. The enum keeps JSON and text apart, because envelopes embed JSON as it
/// stands.
///
/// JSON is valid, on one line, and free of C0 and C1 controls, U+0085, U+2028 and U+2029. Escapes
/// replace these characters, for every source of the payload.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Data {
    /// The payload is JSON text, normalised.
    Json(JsonText),
    /// The payload is any text.
    Text(Arc<str>),
    /// The payload is any bytes.
    Binary(Bytes),
    /// A later version of Airwave has stored this payload, and this version does not understand it.
    /// Listeners get its bytes as they get [`Data::Binary`].
    #[non_exhaustive]
    Opaque {
        /// Holds the version of the stored message, as its digit.
        version: u8,
        /// Holds the byte that names the kind.
        kind: u8,
        /// Holds the payload as it is stored.
        bytes: Bytes,
    },
}

/// This text is valid and normalised JSON; only [`Data`] makes one. Like a payload it never reaches
/// a log.
#[derive(Clone, PartialEq, Eq)]
pub struct JsonText(Arc<str>);

impl JsonText {
    /// Returns the JSON text.
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
        let text = serde_json::to_string(value).map_err(|e| Invalid::new(format!("the value cannot be written as JSON: {e}")))?;
        Ok(Data::Json(JsonText(one_line(text)?)))
    }

    /// Takes text that should be JSON, checks it and normalises it.
    pub fn json_text(text: &str) -> Result<Self, Invalid> {
        let raw: &serde_json::value::RawValue =
            serde_json::from_str(text).map_err(|e| Invalid::new(format!("the data is not valid JSON: {e}")))?;
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

    /// Returns the payload's size in bytes.
    pub fn len(&self) -> usize {
        self.as_bytes().len()
    }

    /// Returns whether the payload has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the payload's bytes, for every kind.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Data::Json(text) => text.0.as_bytes(),
            Data::Text(text) => text.as_bytes(),
            Data::Binary(bytes) | Data::Opaque { bytes, .. } => bytes,
        }
    }

    /// Returns the byte that names the kind in a broker's store: `j`, `t` or `b`. For an opaque
    /// payload it is the byte that a later version wrote there.
    pub fn kind(&self) -> u8 {
        match self {
            Data::Json(_) => b'j',
            Data::Text(_) => b't',
            Data::Binary(_) => b'b',
            Data::Opaque { kind, .. } => *kind,
        }
    }

    /// Takes a payload back from a broker's store, given the results of [`Data::kind`] and
    /// [`Data::as_bytes`]. It does not parse JSON again, because the publish has checked it. A
    /// payload of an unknown kind, or one that does not match its kind, becomes [`Data::Opaque`].
    pub fn from_stored(kind: u8, bytes: Bytes) -> Self {
        Self::from_stored_as(b'1', kind, bytes)
    }

    /// Does the same for a message of the given version, whose kinds are those of version 1.
    pub(super) fn from_stored_as(version: u8, kind: u8, bytes: Bytes) -> Self {
        let text = || std::str::from_utf8(&bytes).ok().map(Arc::<str>::from);
        let known = match kind {
            b'j' => text().map(|text| Data::Json(JsonText(text))),
            b't' => text().map(Data::Text),
            b'b' => Some(Data::Binary(bytes.clone())),
            _ => None,
        };
        known.unwrap_or(Data::Opaque { version, kind, bytes })
    }
}

impl fmt::Debug for Data {
    // Payloads never reach a log, so the output shows only kind and size.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({} bytes)", self.kind().escape_ascii(), self.len())
    }
}

/// Returns text as a JSON string on one line, without raw controls or separators.
pub fn quoted(text: &str) -> String {
    match Data::json(text) {
        Ok(Data::Json(json)) => json.as_str().to_owned(),
        // JSON can hold every string, so this arm never runs.
        _ => "\"\"".to_owned(),
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
            let refusal = Data::json_text(bad).unwrap_err().to_string();
            assert!(refusal.contains("too large for a double") && refusal.len() < 200, "{refusal}");
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
    fn a_payload_survives_the_store() {
        for data in [
            Data::json(&[1, 2]).unwrap(),
            Data::text("a\r\nb"),
            Data::binary(vec![0u8, 255]),
        ] {
            let stored = Bytes::copy_from_slice(data.as_bytes());
            assert_eq!(Data::from_stored(data.kind(), stored), data);
        }
    }

    #[test]
    fn a_payload_that_is_not_understood_is_opaque() {
        for (kind, bytes) in [(b't', &b"\xff"[..]), (b'j', b"\xff"), (b'?', b""), (b'z', b"zip")] {
            let data = Data::from_stored(kind, Bytes::copy_from_slice(bytes));
            assert!(matches!(data, Data::Opaque { .. }), "{data:?}");
            assert_eq!((data.kind(), data.as_bytes()), (kind, bytes));
        }
        assert_eq!(format!("{:?}", Data::from_stored(b'\n', Bytes::new())), "\\n(0 bytes)");
    }

    #[test]
    fn opaque_payloads_make_the_others_no_larger() {
        assert_eq!(size_of::<Data>(), 5 * size_of::<usize>());
    }
}
