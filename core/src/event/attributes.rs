//! Attributes describe a message, beside its payload.

use std::fmt;
use std::sync::Arc;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::names::{Invalid, RESERVED_PREFIX};

/// Bounds the number of attributes of a message.
pub const MAX_ATTRIBUTES: usize = 8;

/// Bounds the name of an attribute, in bytes.
pub const MAX_ATTRIBUTE_NAME: usize = 64;

/// Bounds the names and values of a message's attributes together, in bytes.
pub const MAX_ATTRIBUTES_BYTES: usize = 1024;

/// Attributes describe a message, beside its payload. They are pairs of a name and a text, for
/// example `content-type` and `text/markdown`. A listener reads them without reading the payload.
///
/// A name has 1 to 64 bytes: ASCII letters, digits and `-_.~:@+`. Each name occurs once. Names that
/// begin with `airwave.` are reserved: Airwave sets them itself, and no listener sees them. A value
/// is any text without control characters; it may be empty. A message carries at most 8 attributes
/// with 1,024 bytes of names and values. They stand in the order of their names.
///
/// Without attributes this is one word in memory, and nothing is allocated. A clone is cheap.
///
/// # Examples
///
/// ```
/// use airwave_core::Attributes;
///
/// let attributes = Attributes::new()
///     .with("trace", "4bf92f3577b34da6")?
///     .with("content-type", "text/markdown")?;
/// assert_eq!(attributes.get("content-type"), Some("text/markdown"));
/// assert_eq!(attributes.iter().next(), Some(("content-type", "text/markdown")));
/// assert!(attributes.with("airwave.except", "1").is_err());
/// # Ok::<(), airwave_core::event::Invalid>(())
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Attributes(Option<Arc<Pairs>>);

/// Holds the pairs in the order of their names, each name once. It is never empty.
type Pairs = Vec<(Box<str>, Box<str>)>;

impl Attributes {
    /// Creates an empty set of attributes.
    pub const fn new() -> Self {
        Self(None)
    }

    /// Returns the same attributes with one more, or with another value for one.
    ///
    /// # Errors
    /// The name or the value is not acceptable, or the attributes are too many or too large.
    pub fn with(self, name: &str, value: &str) -> Result<Self, Invalid> {
        check_name(name)?;
        if name.starts_with(RESERVED_PREFIX) {
            return Err(Invalid::new(format!(
                "names of attributes that begin with '{RESERVED_PREFIX}' are reserved"
            )));
        }
        check_value(name, value)?;
        let mut pairs = self.0.map_or_else(Pairs::new, Arc::unwrap_or_clone);
        match place(&pairs, name) {
            Ok(at) => pairs[at].1 = value.into(),
            Err(at) => pairs.insert(at, (name.into(), value.into())),
        }
        let all = Self(Some(Arc::new(pairs)));
        all.check_limits()?;
        Ok(all)
    }

    /// Checks the bounds. Airwave's own attributes do not count: Airwave itself bounds their
    /// number.
    fn check_limits(&self) -> Result<(), Invalid> {
        let count = self.iter().count();
        if count > MAX_ATTRIBUTES {
            return Err(Invalid::new(format!(
                "a message carries at most {MAX_ATTRIBUTES} attributes, this one {count}"
            )));
        }
        let bytes: usize = self.iter().map(|(name, value)| name.len() + value.len()).sum();
        if bytes > MAX_ATTRIBUTES_BYTES {
            return Err(Invalid::new(format!(
                "the attributes have {bytes} bytes; names and values together may have {MAX_ATTRIBUTES_BYTES}"
            )));
        }
        Ok(())
    }

    /// Returns the value of an attribute.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(other, _)| *other == name).map(|(_, value)| value)
    }

    /// Returns all names and values, in the order of the names, without reserved ones.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.all().filter(|(name, _)| !name.starts_with(RESERVED_PREFIX))
    }

    /// Returns whether [`Attributes::iter`] returns nothing.
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// Returns all names and values, with the reserved ones.
    fn all(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .flat_map(|pairs| pairs.iter())
            .map(|(name, value)| (&**name, &**value))
    }

    /// Returns the same attributes without reserved ones.
    pub(crate) fn without_reserved(self) -> Self {
        if self.all().all(|(name, _)| !name.starts_with(RESERVED_PREFIX)) {
            return self;
        }
        let rest: Pairs = self.iter().map(|(name, value)| (name.into(), value.into())).collect();
        Self((!rest.is_empty()).then(|| Arc::new(rest)))
    }

    /// Returns the bytes that the attributes take in memory and against limits.
    pub(crate) fn weight(&self) -> usize {
        self.all().map(|(name, value)| name.len() + value.len()).sum()
    }

    /// Returns whether a store keeps anything of the attributes, reserved ones included.
    pub(super) fn is_stored(&self) -> bool {
        self.0.is_some()
    }

    /// Returns the block that a store keeps. Each attribute has the length of its name as two
    /// hexadecimal digits, the length of its value as four, the name and the value.
    pub(super) fn store(&self) -> String {
        let mut block = String::new();
        for (name, value) in self.all() {
            block.push_str(&format!("{:02x}{:04x}{name}{value}", name.len(), value.len()));
        }
        block
    }

    /// Reads a block back from a store; `None` if it is no such block.
    ///
    /// A later version may allow more or larger attributes, so this checks only their form.
    pub(super) fn from_stored(mut block: &str) -> Option<Self> {
        let mut pairs = Pairs::new();
        while !block.is_empty() {
            let (name_bytes, value_bytes) = (hex(block.get(..2)?)?, hex(block.get(2..6)?)?);
            let name = block.get(6..6 + name_bytes)?;
            let value = block.get(6 + name_bytes..6 + name_bytes + value_bytes)?;
            check_name(name).ok()?;
            check_value(name, value).ok()?;
            if pairs.last().is_some_and(|(before, _)| **before >= *name) {
                return None;
            }
            pairs.push((name.into(), value.into()));
            block = block.get(6 + name_bytes + value_bytes..)?;
        }
        Some(Self((!pairs.is_empty()).then(|| Arc::new(pairs))))
    }

    /// Returns a text that tells the attributes of two publishes apart. Reserved ones do not count:
    /// a repeated publish may have others.
    pub(crate) fn print(&self) -> String {
        self.clone().without_reserved().store()
    }
}

/// Reads a number from lower-case hexadecimal digits.
pub(super) fn hex(digits: &str) -> Option<usize> {
    let ours = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    usize::from_str_radix(digits, 16).ok().filter(|_| ours)
}

fn place(pairs: &Pairs, name: &str) -> Result<usize, usize> {
    pairs.binary_search_by(|(other, _)| (**other).cmp(name))
}

fn check_name(name: &str) -> Result<(), Invalid> {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~:@+".contains(&byte);
    match name.len() {
        0 => Err(Invalid::new("the name of an attribute must not be empty")),
        1..=MAX_ATTRIBUTE_NAME if name.bytes().all(valid) => Ok(()),
        1..=MAX_ATTRIBUTE_NAME => Err(Invalid::new(
            "the name of an attribute is made of letters, digits, '-', '_', '.', '~', ':', '@' and '+'",
        )),
        n => Err(Invalid::new(format!(
            "the name of an attribute has {n} bytes; at most {MAX_ATTRIBUTE_NAME} are allowed"
        ))),
    }
}

fn check_value(name: &str, value: &str) -> Result<(), Invalid> {
    match value.chars().any(char::is_control) {
        true => Err(Invalid::new(format!(
            "the value of the attribute '{name}' must not hold control characters"
        ))),
        false => Ok(()),
    }
}

impl fmt::Debug for Attributes {
    // Values never reach a log, like payloads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.all().map(|(name, _)| name)).finish()
    }
}

impl Serialize for Attributes {
    /// Writes one object, without reserved names.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (name, value) in self.iter() {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Attributes {
    /// Reads one object of texts. A name that occurs twice is an error.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Attributes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("attributes: an object whose values are texts")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Attributes, M::Error> {
                let mut attributes = Attributes::new();
                while let Some((name, value)) = map.next_entry::<String, String>()? {
                    if attributes.get(&name).is_some() {
                        return Err(M::Error::custom(format!("the attribute '{name}' is given twice")));
                    }
                    attributes = attributes.with(&name, &value).map_err(M::Error::custom)?;
                }
                Ok(attributes)
            }
        }

        deserializer.deserialize_map(Object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(count: usize) -> Result<Attributes, Invalid> {
        (0..count).try_fold(Attributes::new(), |all, n| all.with(&format!("n{n}"), ""))
    }

    #[test]
    fn no_attributes_are_one_word() {
        assert_eq!(size_of::<Attributes>(), size_of::<usize>());
        assert!(Attributes::default().is_empty() && !Attributes::new().is_stored());
    }

    #[test]
    fn a_message_carries_eight_attributes_of_1024_bytes_together() {
        assert_eq!(of(8).unwrap().iter().count(), 8);
        assert!(of(9).unwrap_err().to_string().contains("at most 8 attributes, this one 9"));
        let value = |bytes: usize| "é".repeat(bytes / 2) + &"x".repeat(bytes % 2);
        let full = Attributes::new()
            .with("a", &value(1000))
            .unwrap()
            .with("b", &value(22))
            .unwrap();
        assert_eq!(full.weight(), 1024);
        let more = full.clone().with("b", &value(23)).unwrap_err().to_string();
        assert!(more.contains("1025 bytes"), "{more}");
        // A new value takes the place of the old one.
        assert_eq!(full.with("a", "short").unwrap().get("a"), Some("short"));
    }

    #[test]
    fn names_and_values_are_plain_text() {
        let long = "x".repeat(64);
        for good in ["content-type", "a", "A.b_c~:@+", &long] {
            assert!(Attributes::new().with(good, "a value = \u{1F600}").is_ok(), "{good}");
        }
        let longer = "x".repeat(65);
        for bad in ["", "a b", "a=b", "a/b", "é", "a\n", "airwave.", "airwave.except", &longer] {
            assert!(Attributes::new().with(bad, "x").is_err(), "{bad:?}");
        }
        for bad in ["\n", "a\0", "\u{85}", "\x7f"] {
            let refused = Attributes::new().with("name", bad).unwrap_err().to_string();
            assert!(refused.contains("'name'"), "{refused}");
        }
    }

    #[test]
    fn an_object_of_texts_is_read_and_written() {
        let read = |json: &str| serde_json::from_str::<Attributes>(json);
        let attributes = read(r#"{"b":"2","a":"1\u00e9"}"#).unwrap();
        assert_eq!(attributes.iter().collect::<Vec<_>>(), [("a", "1é"), ("b", "2")]);
        assert_eq!(serde_json::to_string(&attributes).unwrap(), r#"{"a":"1é","b":"2"}"#);
        assert!(read("{}").unwrap().is_empty());
        for (bad, told) in [
            (r#"{"a":1}"#, "expected a string"),
            (r#"{"a":null}"#, "expected a string"),
            (r#"{"a":"1","a":"1"}"#, "'a' is given twice"),
            (r#"{"airwave.x":"1"}"#, "reserved"),
            (r#"[]"#, "an object whose values are texts"),
            (r#"{"a":"\n"}"#, "control characters"),
        ] {
            let refused = read(bad).unwrap_err().to_string();
            assert!(refused.contains(told), "{bad}: {refused}");
        }
    }

    #[test]
    fn a_store_keeps_reserved_attributes_and_no_listener_sees_them() {
        let block = "0e0001airwave.except7010002b22";
        let stored = Attributes::from_stored(block).unwrap();
        assert_eq!(stored.store(), block);
        assert_eq!(stored.iter().collect::<Vec<_>>(), [("b", "22")]);
        assert_eq!((stored.get("airwave.except"), stored.weight()), (None, 18));
        assert_eq!(serde_json::to_string(&stored).unwrap(), r#"{"b":"22"}"#);
        assert_eq!(stored.print(), "010002b22");
        assert_eq!(stored.without_reserved(), Attributes::new().with("b", "22").unwrap());
        let reserved = Attributes::from_stored("0e0001airwave.except7").unwrap();
        assert!(reserved.is_empty() && reserved.is_stored());
        assert!(!reserved.without_reserved().is_stored());
        // These blocks have a name twice, names out of order, a cut, no length, no name, or a
        // control character.
        for bad in [
            "010000a010000a",
            "010000b010000a",
            "010001a",
            "010002a1",
            "01000Aa1234567890",
            "+10000a",
            "000000",
            "010000/",
            "010001a\n",
            "0100",
        ] {
            assert_eq!(Attributes::from_stored(bad), None, "{bad}");
        }
    }
}
