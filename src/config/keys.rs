//! What people read of each key: `airwave check --keys` and docs/configuration.md are made of it.

use std::fmt;

use airwave_core::UseCase;
use airwave_core::rule::Rule;

use super::about::About;
use super::rules::{FIELDS, HEAD};
use super::settings::SETTINGS;
use super::values::Config;

/// A key of `airwave.toml`, as docs/configuration.md describes it.
///
/// ```
/// use airwave::config;
///
/// let idle = config::keys().find(|key| key.name == "limits.idle").unwrap();
/// assert_eq!(idle.default, "1m");
/// assert_eq!(idle.variable.as_deref(), Some("AIRWAVE_LIMITS_IDLE"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Key {
    /// Its place in the file: `listen`, `limits.idle`; in a `[[channels]]` rule `history.age`.
    pub name: &'static str,
    /// What it does.
    pub meaning: &'static str,
    /// Its value where nothing sets it.
    pub default: String,
    /// The values that it takes.
    pub range: String,
    /// A value as it stands in the file.
    pub example: &'static str,
    /// The environment variable that sets it. None for keys of rules.
    pub variable: Option<String>,
    /// The flag of `airwave serve` that sets it, if there is one.
    pub flag: Option<&'static str>,
}

impl Key {
    fn new(name: &'static str, about: &About, default: impl fmt::Display, variable: Option<String>) -> Self {
        Self {
            name,
            meaning: about.meaning,
            default: about.default.map_or_else(|| default.to_string(), str::to_owned),
            range: about.range.to_string(),
            example: about.example,
            variable,
            flag: about.flag,
        }
    }
}

/// Every key outside the rules, in the order in which `airwave check` shows them.
pub fn keys() -> impl Iterator<Item = Key> {
    let config = Config::default();
    SETTINGS.iter().map(move |setting| {
        let default = (setting.show)(&config);
        Key::new(setting.key, &setting.about, default, Some(setting.variable()))
    })
}

/// Every key of a `[[channels]]` rule.
pub fn rule_keys() -> impl Iterator<Item = Key> {
    // A constant that parses.
    #[allow(clippy::unwrap_used)]
    let rule = Rule::new("{*channel}".parse().unwrap(), Vec::new());
    let head = HEAD.iter().map(|(name, about)| Key::new(name, about, "none", None));
    let fields = FIELDS
        .iter()
        .map(move |field| Key::new(field.key, &field.about, (field.show)(&rule), None));
    head.chain(fields)
}

/// What each use case sets: its name, and the values of the keys that differ from a rule without
/// one.
pub(super) fn presets() -> impl Iterator<Item = (&'static str, Vec<(&'static str, String)>)> {
    UseCase::ALL.into_iter().map(|use_case| {
        // A constant that parses.
        #[allow(clippy::unwrap_used)]
        let rule = use_case.rule("{*channel}".parse().unwrap());
        let plain = Rule::new(rule.pattern.clone(), Vec::new());
        let set = FIELDS
            .iter()
            .map(|field| (field.key, (field.show)(&rule), (field.show)(&plain)));
        let set = set.filter(|(_, value, default)| value != default);
        (
            use_case.as_str(),
            set.map(|(key, value, _)| (key, value.to_string())).collect(),
        )
    })
}

/// All of the keys as Markdown tables, and the presets: what docs/configuration.md has between its
/// markers.
pub fn reference() -> String {
    let mut text = String::new();
    let table_of = |name: &'static str| name.split_once('.').map_or("", |(table, _)| table);
    let mut tables: Vec<&str> = Vec::new();
    for table in keys().map(|key| table_of(key.name)) {
        if !tables.contains(&table) {
            tables.push(table);
        }
    }
    for table in tables {
        heading(
            &mut text,
            &if table.is_empty() {
                "The server".into()
            } else {
                format!("`[{table}]`")
            },
        );
        for key in keys().filter(|key| table_of(key.name) == table) {
            let name = key.name.rsplit('.').next().unwrap_or(key.name);
            row(&mut text, name, &key);
        }
    }
    heading(&mut text, "`[[channels]]`: the rules");
    for key in rule_keys() {
        row(&mut text, key.name, &key);
    }
    text.push_str("\n### What each `use_case` sets\n\n| `use_case` | keys |\n|---|---|\n");
    for (name, keys) in presets() {
        let keys: Vec<String> = keys.iter().map(|(key, value)| format!("`{key}` {value}")).collect();
        text.push_str(&format!("| `{name}` | {} |\n", keys.join(", ")));
    }
    text
}

fn heading(text: &mut String, title: &str) {
    if !text.is_empty() {
        text.push('\n');
    }
    text.push_str(&format!(
        "### {title}\n\n| key | meaning | default | range | example |\n|---|---|---|---|---|\n"
    ));
}

fn row(text: &mut String, name: &str, key: &Key) {
    let mut names = vec![format!("`{name}`")];
    names.extend(key.variable.iter().map(|variable| format!("`{variable}`")));
    names.extend(key.flag.map(|flag| format!("`{flag}`")));
    let example = format!("`{name} = {}`", key.example);
    let cells =
        [names.join("<br>").as_str(), key.meaning, &key.default, &key.range, &example].map(|cell| cell.replace('|', "\\|"));
    text.push_str(&format!("| {} |\n", cells.join(" | ")));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use super::super::about::Range;
    use super::super::value::{Given, Span};
    use super::super::{Sources, file};
    use super::*;

    const BEGIN: &str = "<!-- the keys begin: made from the lists in src/config, see src/config/keys.rs -->\n";
    const END: &str = "<!-- the keys end -->\n";
    const COMMAND: &str = "AIRWAVE_TEST_WRITE_DOCS=1 cargo test --lib the_document_has_every_key";

    fn document(name: &str) -> String {
        std::fs::read_to_string(format!("{}/docs/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
    }

    #[test]
    fn the_document_has_every_key() {
        let text = document("configuration.md");
        let (before, rest) = text.split_once(BEGIN).unwrap();
        let (old, after) = rest.split_once(END).unwrap();
        let new = format!("\n{}\n", reference());
        if std::env::var_os("AIRWAVE_TEST_WRITE_DOCS").is_some() {
            let path = format!("{}/docs/configuration.md", env!("CARGO_MANIFEST_DIR"));
            std::fs::write(path, format!("{before}{BEGIN}{new}{END}{after}")).unwrap();
            return;
        }
        let differs = old.lines().zip(new.lines()).find(|(old, new)| old != new);
        assert!(
            old == new,
            "docs/configuration.md is not what the configuration reads: {differs:?}\nWrite it anew: {COMMAND}"
        );
    }

    /// A limit or a time-out that the table of limits leaves out is one that operators do not find.
    #[test]
    fn the_table_of_guarantees_has_every_limit_and_time_out() {
        let text = document("guarantees.md");
        let rows: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).collect();
        for setting in SETTINGS {
            if setting.key.starts_with("limits.") || matches!(setting.about.range, Range::Duration { .. }) {
                let name = format!("`{}`", setting.key);
                assert!(
                    rows.iter().any(|row| row.contains(&name)),
                    "docs/guarantees.md: the table of limits lacks a row with {name} as the place to change it"
                );
            }
        }
    }

    /// A file that a document shows is one that the server takes.
    #[test]
    fn each_file_in_the_documents_is_read() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let documents = std::fs::read_dir(root.join("docs"))
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let mut files = 0;
        for path in documents.chain([root.join("README.md")]) {
            if path.extension().is_none_or(|end| end != "md") {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            for block in text.split("\n```toml\n").skip(1) {
                let (block, _) = block.split_once("\n```").unwrap();
                if block.contains("[dependencies]") {
                    continue;
                }
                files += 1;
                let problems = file::apply(&mut Config::default(), "airwave.toml", block);
                assert_eq!(problems, [], "{}:\n{block}", path.display());
                if block.contains("[[channels]]") {
                    let mut sources = Sources::of_file("airwave.toml", block);
                    if !block.contains("publish.") && !block.contains("[publish]") {
                        let token = ("AIRWAVE_PUBLISH_TOKEN".into(), "0123456789abcdef".into());
                        sources.environment.push(token);
                    }
                    assert_eq!(Config::load(&sources).err(), None, "{}:\n{block}", path.display());
                }
            }
        }
        assert!(files >= 5, "{files}");
    }

    #[test]
    fn each_example_is_read() {
        for key in keys() {
            let mut config = Config::default();
            let problems = file::apply(&mut config, "airwave.toml", &format!("{} = {}\n", key.name, key.example));
            assert_eq!(problems, [], "{}", key.name);
            let default = Config::default();
            let shown = |config: &Config| config.settings().find(|(name, ..)| *name == key.name).unwrap().1;
            // What is only told from being set by where it comes from shows the same.
            assert!(
                shown(&config) != shown(&default) || config.provenance.is_set(key.name),
                "{}",
                key.name
            );
        }
        for key in rule_keys() {
            let mut lines = vec!["[[channels]]".to_owned(), format!("{} = {}", key.name, key.example)];
            for (name, value) in [("match", "\"a\""), ("transport", "\"sse\"")] {
                if key.name != name {
                    lines.push(format!("{name} = {value}"));
                }
            }
            // An example stands for one key: others that it may need are not its matter.
            let problems = file::apply(&mut Config::default(), "airwave.toml", &lines.join("\n"));
            assert_eq!(problems, [], "{}", key.name);
        }
    }

    /// The range that people read is the one that is read.
    #[test]
    fn ranges_are_those_that_are_read() {
        type Read<'a> = Box<dyn Fn(&str) -> Result<(), String> + 'a>;
        let settings = SETTINGS.iter().map(|setting| {
            let read: Read = Box::new(|text| (setting.set)(&mut Config::default(), Given::Text(text)));
            (setting.key, &setting.about, read)
        });
        let fields = FIELDS.iter().map(|field| {
            let read: Read = Box::new(|text| (field.set)(&mut Rule::new("a".parse().unwrap(), Vec::new()), Given::Text(text)));
            (field.key, &field.about, read)
        });
        for (key, about, read) in settings.chain(fields) {
            let taken = |text: &str| assert_eq!(read(text), Ok(()), "{key} = {text}");
            let refused = |text: &str| assert!(read(text).is_err(), "{key} = {text}");
            match &about.range {
                Range::Text(_) => {}
                Range::Count { min, max } => {
                    taken(&min.to_string());
                    taken(&max.to_string());
                    if let Some(less) = min.checked_sub(1) {
                        refused(&less.to_string());
                    }
                    if let Some(more) = max.checked_add(1) {
                        refused(&more.to_string());
                    }
                }
                Range::Size { min } => {
                    taken(&min.to_string());
                    refused(&(min - 1).to_string());
                }
                Range::Duration { min } => {
                    taken(&Span(*min).to_string());
                    if let Some(less) = min.checked_sub(Duration::from_millis(1)) {
                        refused(&Span(less).to_string());
                    }
                }
                Range::Flag => {
                    taken("true");
                    taken("false");
                    refused("yes");
                }
                Range::Choice(words) => {
                    for word in words() {
                        taken(word);
                    }
                    refused("none of these");
                    // A word that the list lacks would be named by the refusal.
                    let named = read("none of these").unwrap_err().matches('"').count() / 2;
                    assert_eq!(named, words().len() + 1, "{key}");
                }
            }
        }
    }

    #[test]
    fn a_flag_sets_the_key_that_names_it() {
        let flags = keys().filter_map(|key| key.flag).collect::<Vec<_>>();
        assert_eq!(flags, ["--listen", "--broker", "--live-page", "--log-format", "--log"]);
        let mut sources = Sources::default();
        sources.flags.log_level = Some("debug".into());
        let config = Config::load(&sources).unwrap();
        assert_eq!(config.log.level, "debug");
    }
}
