#![doc = include_str!("typescript.md")]

use std::any::TypeId;
use std::collections::HashSet;
use std::path::Path;
use std::{fs, io};

use ts_rs::TypeVisitor;
/// To be derived beside `Serialize`. It understands serde's attributes. Its code names the crate
/// `ts_rs`: `#[ts(crate = "airwave::typescript::ts_rs")]` on the type leads it here.
pub use ts_rs::{self, TS};

/// Stands where a type has a whole number that JavaScript may not read exactly.
const LARGE: &str = "__airwave_large_integer__";
const HEAD: &str = "// Made from the application's Rust types by airwave::typescript. Do not edit.\n";

/// Types, and what they are made of, each once.
#[derive(Default)]
pub struct Types {
    config: ts_rs::Config,
    /// A type may be made of itself.
    seen: HashSet<TypeId>,
    declared: Vec<Declared>,
}

struct Declared {
    name: String,
    text: String,
}

impl Types {
    /// None yet.
    pub fn new() -> Self {
        let config = ts_rs::Config::new().with_large_int(LARGE);
        Self {
            config,
            seen: HashSet::new(),
            declared: Vec::new(),
        }
    }

    /// The same with `T` and every type that it is made of.
    pub fn with<T: TS + 'static>(mut self) -> Self {
        self.visit::<T>();
        self
    }

    /// The declarations, as a module.
    ///
    /// # Errors
    /// Two different types have the same name: give one of them another with `#[ts(rename = "…")]`.
    /// A type has a whole number of 64 bits or more: see the [module](self).
    pub fn text(&self) -> io::Result<String> {
        // By name: in which order a type tells its parts is not the same in every build.
        let mut sorted: Vec<&Declared> = self.declared.iter().collect();
        sorted.sort_by(|a, b| a.name.cmp(&b.name));
        let mut text = HEAD.to_owned();
        for (i, declared) in sorted.iter().enumerate() {
            if i > 0 && sorted[i - 1].name == declared.name {
                return Err(io::Error::other(format!(
                    "two types are called '{}': rename one with #[ts(rename = \"…\")]",
                    declared.name
                )));
            }
            if declared.text.contains(LARGE) {
                return Err(io::Error::other(format!(
                    "'{}' has a whole number of 64 bits or more, which JavaScript reads exactly only up to 2^53: \
                     make it a u32 or an i32, write it as text (airwave::typescript::text with #[ts(type = \"string\")]), \
                     or promise with #[ts(type = \"number\")] that it stays below",
                    declared.name
                )));
            }
            text.push('\n');
            text.push_str(&declared.text);
        }
        Ok(text)
    }

    /// Writes the types to a file if the file does not hold them already. Returns whether it wrote.
    /// A test that asserts `false` finds a file that is out of date.
    ///
    /// # Errors
    /// As [`Types::text`], and those of the file system.
    pub fn write(&self, path: impl AsRef<Path>) -> io::Result<bool> {
        let text = self.text()?;
        if fs::read_to_string(&path).is_ok_and(|old| old == text) {
            return Ok(false);
        }
        fs::write(path, text)?;
        Ok(true)
    }
}

/// Whole numbers of any size as text, in both directions: for `#[serde(with = "…")]`.
///
/// ```
/// use airwave::typescript::{TS, Types};
///
/// #[derive(serde::Serialize, serde::Deserialize, TS)]
/// struct Account {
///     #[serde(with = "airwave::typescript::text")]
///     #[ts(type = "string")]
///     id: u64,
/// }
///
/// let account = Account { id: u64::MAX };
/// assert_eq!(serde_json::to_string(&account)?, r#"{"id":"18446744073709551615"}"#);
/// assert!(Types::new().with::<Account>().text()?.contains("id: string"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub mod text {
    use std::borrow::Cow;
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::Serializer;

    /// Writes the number as text.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    /// Reads a number that is written as text.
    ///
    /// # Errors
    /// It is no text, or the text is no such number.
    pub fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        let text = Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

impl TypeVisitor for Types {
    fn visit<T: TS + 'static + ?Sized>(&mut self) {
        if !self.seen.insert(TypeId::of::<T>()) {
            return;
        }
        // What has no place of its own (numbers, lists, …) needs no declaration, but may be made of
        // something that does.
        if T::output_path().is_some() {
            let docs = T::docs().unwrap_or_default();
            self.declared.push(Declared {
                name: T::ident(&self.config),
                text: format!("{docs}export {}\n", T::decl(&self.config)),
            });
        }
        T::visit_dependencies(self);
        T::visit_generics(self);
    }
}

#[cfg(test)]
mod tests {
    #![allow(dead_code)]
    use super::*;

    #[derive(serde::Serialize, TS)]
    struct Item {
        price: u32,
        next: Option<Box<Item>>,
    }

    #[derive(serde::Serialize, TS)]
    #[serde(tag = "event", content = "data", rename_all = "kebab-case")]
    enum Events {
        AddItems { items: Vec<Item> },
        Clear,
    }

    mod another {
        #[derive(super::TS)]
        #[ts(rename = "Item")]
        pub(super) struct Elsewhere;
    }

    #[test]
    fn each_type_is_declared_once_with_what_it_is_made_of() {
        let text = Types::new().with::<Events>().with::<Item>().text().unwrap();
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("export")).collect();
        assert_eq!(
            lines,
            [
                r#"export type Events = { "event": "add-items", "data": { items: Array<Item>, } } | { "event": "clear" };"#,
                "export type Item = { price: number, next: Item | null, };"
            ]
        );
        assert!(Types::new().with::<Item>().with::<another::Elsewhere>().text().is_err());
    }

    #[test]
    fn a_whole_number_that_javascript_cannot_read_is_refused_until_the_field_says_what_it_is() {
        #[derive(serde::Serialize, TS)]
        struct TooWide {
            id: u64,
        }
        #[derive(serde::Serialize, TS)]
        struct Deep {
            ids: Vec<Option<i64>>,
            by_size: std::collections::HashMap<String, (u8, usize)>,
        }
        #[derive(serde::Serialize, TS)]
        #[serde(tag = "event", content = "data")]
        enum Whole {
            Counted(u128),
        }
        #[derive(serde::Serialize, serde::Deserialize, TS)]
        struct Said {
            #[serde(with = "super::text")]
            #[ts(type = "string")]
            id: i64,
            #[ts(type = "number")]
            bytes: u64,
            ratio: f64,
            count: u32,
        }
        for (types, name) in [
            (Types::new().with::<TooWide>(), "TooWide"),
            (Types::new().with::<Deep>(), "Deep"),
            (Types::new().with::<Whole>(), "Whole"),
        ] {
            let error = types.text().unwrap_err().to_string();
            assert!(error.contains(&format!("'{name}'")) && error.contains("2^53"), "{error}");
        }
        let text = Types::new().with::<Said>().text().unwrap();
        assert!(
            text.contains("{ id: string, bytes: number, ratio: number, count: number, }"),
            "{text}"
        );
        let said: Said = serde_json::from_str(r#"{"id":"-9223372036854775808","bytes":1,"ratio":0.5,"count":2}"#).unwrap();
        assert_eq!(said.id, i64::MIN);
        assert!(
            serde_json::to_string(&said)
                .unwrap()
                .contains(r#""id":"-9223372036854775808""#)
        );
        assert!(serde_json::from_str::<Said>(r#"{"id":"9223372036854775808","bytes":1,"ratio":0.5,"count":2}"#).is_err());
    }

    #[test]
    fn a_file_is_written_only_if_it_is_old() {
        let path = std::env::temp_dir().join(format!("airwave-types-{}.ts", std::process::id()));
        let types = Types::new().with::<Events>();
        assert!(types.write(&path).unwrap());
        assert!(!types.write(&path).unwrap());
        fs::remove_file(path).unwrap();
    }
}
