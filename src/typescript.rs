#![doc = include_str!("typescript.md")]

use std::any::TypeId;
use std::collections::HashSet;
use std::path::Path;
use std::{fs, io};

use ts_rs::TypeVisitor;
/// To be derived beside `Serialize`. It understands serde's attributes. Its code names the crate
/// `ts_rs`: `#[ts(crate = "airwave::typescript::ts_rs")]` on the type leads it here.
pub use ts_rs::{self, TS};

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
        // As the browser reads them: JSON has one kind of number, and positions fit it.
        let config = ts_rs::Config::new().with_large_int("number");
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
            text.push('\n');
            text.push_str(&declared.text);
        }
        Ok(text)
    }

    /// Writes them to a file, if that does not hold them already; tells whether it did not. A test that asserts `false` finds a file that nobody has written anew.
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

impl TypeVisitor for Types {
    fn visit<T: TS + 'static + ?Sized>(&mut self) {
        if !self.seen.insert(TypeId::of::<T>()) {
            return;
        }
        // What has no place of its own (numbers, lists, …) needs no declaration, but may be made of something that does.
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
        price: u64,
        next: Option<Box<Item>>,
    }

    #[derive(serde::Serialize, TS)]
    #[serde(tag = "event", content = "data", rename_all = "kebab-case")]
    enum Events {
        AddItems { items: Vec<Item> },
        Clear,
    }

    mod other {
        #[derive(super::TS)]
        pub(super) struct Item;
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
        assert!(Types::new().with::<Item>().with::<other::Item>().text().is_err());
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
