//! Where a value comes from, and what is wrong with it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use airwave_core::UseCase;

/// Where an effective value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// Airwave's default.
    Default,
    /// It follows from another value; the text says from which.
    Implied(&'static str),
    /// The preset of a use case.
    UseCase(UseCase),
    /// A file. Lines and columns (in characters) count from 1.
    File {
        /// The file's name, as it was given.
        file: Arc<str>,
        /// The line.
        line: usize,
        /// The column.
        column: usize,
    },
    /// An environment variable.
    Variable(String),
    /// A flag of the command line.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::Implied(why) => f.write_str(why),
            Origin::UseCase(use_case) => write!(f, "use case {}", use_case.as_str()),
            Origin::File { file, line, .. } => write!(f, "{file}:{line}"),
            Origin::Variable(name) => f.write_str(name),
            Origin::Flag(name) => f.write_str(name),
        }
    }
}

/// The origins of all values that the user set, by key: `limits.idle`, `channels.0.history.age`.
#[derive(Debug, Clone, Default)]
pub(super) struct Origins(BTreeMap<String, Origin>);

impl Origins {
    pub(super) fn set(&mut self, key: impl Into<String>, origin: Origin) {
        self.0.insert(key.into(), origin);
    }

    pub(super) fn get(&self, key: &str) -> Origin {
        self.0.get(key).cloned().unwrap_or(Origin::Default)
    }

    /// The origins of `added` rules come first, before those of as many rules as there were.
    pub(super) fn put_rules_first(&mut self, added: &Origins, count: usize) {
        let index = |key: &str| {
            let (index, field) = key.strip_prefix("channels.")?.split_once('.')?;
            Some((index.parse::<usize>().ok()?, field.to_owned()))
        };
        let old = std::mem::take(&mut self.0)
            .into_iter()
            .map(|(key, origin)| match index(&key) {
                Some((index, field)) => (format!("channels.{}.{field}", index + count), origin),
                None => (key, origin),
            });
        let added = added.0.iter().filter(|(key, _)| index(key).is_some());
        self.0 = old.chain(added.map(|(key, origin)| (key.clone(), origin.clone()))).collect();
    }

    pub(super) fn is_set(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }
}

/// One thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Problem {
    /// Where the wrong value stands. [`Origin::Default`] if a value is missing and so stands
    /// nowhere.
    pub origin: Origin,
    /// What is wrong and what to write instead.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::File { file, line, column } => write!(f, "{file}:{line}:{column}: ")?,
            Origin::Variable(_) | Origin::Flag(_) => write!(f, "{}: ", self.origin)?,
            Origin::Default | Origin::Implied(_) | Origin::UseCase(_) => {}
        }
        f.write_str(&self.message)
    }
}

/// Why there is no configuration: everything that is wrong, one line each. No line holds a token or
/// a URL's credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError(Vec<Problem>);

impl ConfigError {
    /// Those of the file first, in its order.
    pub(super) fn of(mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| match problem.origin {
            Origin::File { line, column, .. } => (line, column),
            _ => (usize::MAX, 0),
        });
        ConfigError(problems)
    }

    pub(super) fn one(origin: Origin, message: impl Into<String>) -> Self {
        ConfigError(vec![Problem {
            origin,
            message: message.into(),
        }])
    }

    /// All that is wrong; at least one.
    pub fn problems(&self) -> &[Problem] {
        &self.0
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}
