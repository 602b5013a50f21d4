//! `airwave.toml`: from text to settings, with a line and a column for everything that is wrong.
//!
//! The parsed document is walked with the lists of [`super::settings`] and [`super::rules`] instead
//! of being deserialised into structs, because that finds all mistakes at once, and knows the place
//! of every value that was right.

use std::sync::Arc;

use airwave_core::rule::{Pattern, Rule, Rules};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::origin::{Origin, Problem};
use super::rules::{self, FIELDS, HEAD};
use super::settings::SETTINGS;
use super::value::{Given, Plain, Quoted, nearest};
use super::values::Config;

/// Applies the file to `config`: its settings, and its rules instead of the ones that were there.
pub(super) fn apply(config: &mut Config, name: &str, text: &str) -> Vec<Problem> {
    let mut reader = Reader {
        name: name.into(),
        text,
        problems: Vec::new(),
    };
    config.file = Some(reader.name.clone());
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let offset = error.span().map_or(0, |span| span.start);
        // The parser's message alone: what it shows besides is the line itself, where a token may
        // stand.
        reader.problem(offset, format!("this is not TOML: {}", Plain(error.message())));
    }
    if reader.problems.is_empty() {
        reader.document(config, document.get_ref());
    }
    reader.problems
}

struct Reader<'a> {
    name: Arc<str>,
    text: &'a str,
    problems: Vec<Problem>,
}

type Value<'a> = Spanned<DeValue<'a>>;

/// One `[[channels]]` entry.
struct Entry<'t, 'v> {
    /// Where it begins.
    start: usize,
    leaves: Vec<(&'static str, &'t Value<'v>)>,
}

impl<'t, 'v> Entry<'t, 'v> {
    fn find(&self, key: &str) -> Option<&'t Value<'v>> {
        self.leaves.iter().find(|(name, _)| *name == key).map(|(_, value)| *value)
    }
}

impl Reader<'_> {
    fn place(&self, offset: usize) -> Origin {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Origin::File {
            file: self.name.clone(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }

    fn problem(&mut self, offset: usize, message: String) {
        let origin = self.place(offset);
        self.problems.push(Problem { origin, message });
    }

    fn document(&mut self, config: &mut Config, document: &DeTable<'_>) {
        let mut known: Vec<&'static str> = SETTINGS.iter().map(|setting| setting.key).collect();
        known.push("channels");
        let mut channels = None;
        for (key, value) in self.leaves(document, &known, "", "") {
            if key == "channels" {
                channels = Some(value);
            } else if let Some(setting) = SETTINGS.iter().find(|setting| setting.key == key) {
                match (setting.set)(config, Given::Toml(value.get_ref())) {
                    Ok(()) => config.provenance.set(key, self.place(value.span().start)),
                    Err(error) => self.problem(value.span().start, format!("{key} {error}")),
                }
            }
        }
        let mut list = Vec::new();
        match channels.map(|value| (value, value.get_ref())) {
            None => {}
            Some((_, DeValue::Array(entries))) if entries.iter().all(|entry| entry.get_ref().is_table()) => {
                for entry in entries.iter() {
                    if let Some(table) = entry.get_ref().as_table() {
                        list.push(self.rule(config, list.len(), entry.span().start, table));
                    }
                }
            }
            Some((value, _)) => self.problem(
                value.span().start,
                "channels must be a list of rules; write each as [[channels]], with two brackets".into(),
            ),
        }
        config.rules = Rules::new(list);
    }

    /// One `[[channels]]` entry. What cannot be read is a problem, and the rule then holds
    /// something else in its place.
    fn rule(&mut self, config: &mut Config, index: usize, start: usize, table: &DeTable<'_>) -> Rule {
        let known = rule_keys();
        let entry = Entry {
            start,
            leaves: self.leaves(table, &known, "", "[[channels]]"),
        };
        let mut set = |origin: Origin, key: &str| config.provenance.set(format!("channels.{index}.{key}"), origin);
        set(self.place(start), "");
        let pattern = self.pattern(&entry, &mut set);
        let mut rule = self.preset(&entry, pattern, &mut set);
        for field in FIELDS {
            if let Some(value) = entry.find(field.key) {
                match (field.set)(&mut rule, Given::Toml(value.get_ref())) {
                    Ok(()) => set(self.place(value.span().start), field.key),
                    Err(error) => self.problem(value.span().start, format!("{} {error}", field.key)),
                }
            }
        }
        if rules::settle(&mut rule, entry.find("slow").is_some()) {
            set(Origin::Implied("history keeps nothing"), "slow");
        }
        rule
    }

    /// Which channels the rule is for.
    fn pattern(&mut self, entry: &Entry<'_, '_>, set: &mut impl FnMut(Origin, &str)) -> Pattern {
        let pattern = match entry.find("match") {
            None => {
                self.problem(
                    entry.start,
                    "this rule does not say which channels it is for; write for example match = \"orders/{id}\"".into(),
                );
                None
            }
            Some(value) => match Given::Toml(value.get_ref())
                .text()
                .map_err(|error| format!("match {error}"))
                .and_then(|text| text.parse::<Pattern>().map_err(|error| Plain(&error.to_string()).to_string()))
            {
                Ok(pattern) => {
                    set(self.place(value.span().start), "match");
                    Some(pattern)
                }
                Err(error) => {
                    self.problem(value.span().start, error);
                    None
                }
            },
        };
        // Stands in until the problem is told; the configuration is refused then.
        let pattern = pattern.or_else(|| "{*rest}".parse().ok());
        // A constant that parses.
        #[allow(clippy::unwrap_used)]
        pattern.unwrap()
    }

    /// The rule as its use case has it, before its fields are read.
    fn preset(&mut self, entry: &Entry<'_, '_>, pattern: Pattern, set: &mut impl FnMut(Origin, &str)) -> Rule {
        match entry
            .find("use_case")
            .map(|value| (value, rules::use_case(Given::Toml(value.get_ref()))))
        {
            Some((value, Ok(use_case))) => {
                for field in FIELDS {
                    set(Origin::UseCase(use_case), field.key);
                }
                set(self.place(value.span().start), "use_case");
                let rule = use_case.rule(pattern.clone());
                // What the preset leaves as every rule has it is a default, not the use case's.
                let plain = Rule::new(pattern, rule.transports.clone());
                for field in FIELDS {
                    if field.key != "transport" && (field.show)(&rule) == (field.show)(&plain) {
                        set(Origin::Default, field.key);
                    }
                }
                rule
            }
            Some((value, Err(error))) => {
                self.problem(value.span().start, format!("use_case {error}"));
                Rule::new(pattern, Vec::new())
            }
            None => {
                if entry.find("transport").is_none() {
                    self.problem(
                        entry.start,
                        "this rule says neither use_case nor transport; write for example use_case = \"feed\" or transport = \"sse\""
                            .into(),
                    );
                }
                Rule::new(pattern, Vec::new())
            }
        }
    }

    /// The values in `table` whose dotted key is `known`, and a problem for every key that is not.
    fn leaves<'t, 'v>(
        &mut self,
        table: &'t DeTable<'v>,
        known: &[&'static str],
        prefix: &str,
        within: &str,
    ) -> Vec<(&'static str, &'t Value<'v>)> {
        let mut leaves = Vec::new();
        for (key, value) in table {
            let full = format!("{prefix}{}", key.get_ref());
            let deeper = format!("{full}.");
            if let Some(name) = known.iter().find(|name| **name == full) {
                leaves.push((*name, value));
            } else if known.iter().any(|name| name.starts_with(&deeper)) {
                match value.get_ref() {
                    DeValue::Table(table) => {
                        leaves.extend(self.leaves(table, known, &deeper, within));
                    }
                    _ => {
                        let parts: Vec<_> = known.iter().filter_map(|name| name.strip_prefix(&deeper)).collect();
                        self.problem(
                            value.span().start,
                            format!("{full} must be a table with {}", parts.join(", ")),
                        );
                    }
                }
            } else {
                let message = unknown_key(key.get_ref(), known, prefix, within);
                self.problem(key.span().start, message);
            }
        }
        leaves
    }
}

fn rule_keys() -> Vec<&'static str> {
    HEAD.iter()
        .map(|(name, _)| *name)
        .chain(FIELDS.iter().map(|field| field.key))
        .collect()
}

fn unknown_key(key: &str, known: &[&'static str], prefix: &str, within: &str) -> String {
    let mut here: Vec<&str> = Vec::new();
    for name in known.iter().filter_map(|name| name.strip_prefix(prefix)) {
        let first = name.split('.').next().unwrap_or(name);
        if !here.contains(&first) {
            here.push(first);
        }
    }
    let table = match (within, prefix.trim_end_matches('.')) {
        ("", "") => String::new(),
        ("", prefix) => format!(" in [{prefix}]"),
        (within, "") => format!(" in {within}"),
        (within, prefix) => format!(" in {prefix} of {within}"),
    };
    let unknown = format!("{} is unknown{table}", Quoted(key));
    if let Some(near) = nearest(key, here.iter().copied()) {
        return format!("{unknown}; did you mean \"{near}\"?");
    }
    // The right key in the wrong table: a user writes a top-level key below a [table].
    let leaf = |name: &&&str| name.rsplit('.').next() == Some(key);
    if within.is_empty()
        && let Some(elsewhere) = SETTINGS.iter().map(|s| s.key).collect::<Vec<_>>().iter().find(leaf)
    {
        return match elsewhere.rsplit_once('.') {
            Some((table, _)) => format!("{unknown}; it belongs into [{table}]"),
            None => format!("{unknown}; it belongs at the top of the file, before the first [table]"),
        };
    }
    if within.is_empty() && rule_keys().iter().any(|name| name.split('.').next() == Some(key)) {
        return format!("{unknown}; it belongs into a [[channels]] rule");
    }
    let known = format!("{unknown}; known here: {}", here.join(", "));
    match near_elsewhere(key, within) {
        Some(near) => format!("{known}; the nearest elsewhere is {near}"),
        None => known,
    }
}

/// A misspelt key of another table. Inside a rule those of rules come first.
fn near_elsewhere(key: &str, within: &str) -> Option<String> {
    let leaf = |name: &'static str| name.rsplit('.').next().unwrap_or(name);
    let near = |names: Vec<&'static str>| {
        let near = nearest(key, names.iter().map(|name| leaf(name)))?;
        names.into_iter().find(|name| leaf(name) == near)
    };
    let setting = || {
        near(SETTINGS.iter().map(|setting| setting.key).collect()).map(|name| match name.rsplit_once('.') {
            Some((table, name)) => format!("\"{name}\" in [{table}]"),
            None => format!("\"{name}\" at the top of the file, before the first [table]"),
        })
    };
    let of_rule = || {
        near(rule_keys()).map(|name| match name.rsplit_once('.') {
            Some((table, name)) => format!("\"{name}\" in {table} of a [[channels]] rule"),
            None => format!("\"{name}\" in a [[channels]] rule"),
        })
    };
    if within.is_empty() {
        setting().or_else(of_rule)
    } else {
        of_rule().or_else(setting)
    }
}
