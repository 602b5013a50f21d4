//! `airwave.toml`, then environment, then flags: one checked [`Config`] before anything starts.
//!
//! ```
//! use airwave::config::{Config, Sources};
//!
//! let file = r#"
//!     [[channels]]
//!     match = "orders/{id}"
//!     use_case = "job-status"
//! "#;
//! let config = Config::load(&Sources::of_file("airwave.toml", file)).unwrap();
//! assert_eq!(config.rules.iter().count(), 1);
//! ```
//!
//! [`Config::load`] reads nothing but its arguments. What is wrong is told all at once, each with
//! its place (file, line and column; variable; flag) and a sentence that says what to write
//! instead. Every effective value knows its [`Origin`].

mod about;
mod broker;
mod check;
mod effective;
mod env;
mod file;
mod keys;
mod origin;
mod rules;
mod settings;
mod shown;
mod value;
mod values;
mod warnings;

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use airwave_core::event::Invalid;

pub use crate::listener::ClientIpHeader;
pub use broker::{BrokerConfig, BrokerKind, BrokerUrl};
pub use keys::{Key, keys, reference, rule_keys};
pub use origin::{ConfigError, Origin, Problem};
pub use shown::Shown;
pub(crate) use values::is_loopback_name;
pub use values::{AllowedOrigins, Config, LogConfig, LogFormat, Network, Secret};

use settings::SETTINGS;
use value::Given;

/// What [`Config::load`] reads: each later source overrides the one before.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct Sources {
    /// A file's name (for messages) and text.
    pub file: Option<(String, String)>,
    /// Variables; those that do not begin with `AIRWAVE_` are left alone. Usually
    /// `std::env::vars_os().collect()`.
    pub environment: Vec<(OsString, OsString)>,
    /// Flags of the command line.
    pub flags: Flags,
}

impl Sources {
    /// One file and nothing else.
    pub fn of_file(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            file: Some((name.into(), text.into())),
            ..Self::default()
        }
    }

    /// The same with this process's variables (`AIRWAVE_LISTEN`, `AIRWAVE_BROKER_URL`, …) over it.
    pub fn with_environment(mut self) -> Self {
        self.environment = std::env::vars_os().collect();
        self
    }
}

/// Settings that the command line can give, as they were typed.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Flags {
    /// `--listen`
    pub listen: Option<String>,
    /// `--broker`
    pub broker: Option<String>,
    /// `--log-format`
    pub log_format: Option<String>,
    /// `--log`
    pub log_level: Option<String>,
    /// `--live-page`
    pub live_page: Option<String>,
}

impl Flags {
    /// Returns the same flags with `--listen`, if it was given.
    pub fn with_listen(mut self, listen: Option<String>) -> Self {
        self.listen = listen;
        self
    }

    /// Returns the same flags with `--broker`, if it was given.
    pub fn with_broker(mut self, broker: Option<String>) -> Self {
        self.broker = broker;
        self
    }

    /// Returns the same flags with `--log-format`, if it was given.
    pub fn with_log_format(mut self, log_format: Option<String>) -> Self {
        self.log_format = log_format;
        self
    }

    /// Returns the same flags with `--log`, if it was given.
    pub fn with_log_level(mut self, log_level: Option<String>) -> Self {
        self.log_level = log_level;
        self
    }

    /// Returns the same flags with `--live-page`, if it was given.
    pub fn with_live_page(mut self, live_page: Option<String>) -> Self {
        self.live_page = live_page;
        self
    }

    fn apply(&self, config: &mut Config) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (flag, text) in [
            ("--listen", &self.listen),
            ("--broker", &self.broker),
            ("--log-format", &self.log_format),
            ("--log", &self.log_level),
            ("--live-page", &self.live_page),
        ] {
            let setting = SETTINGS.iter().find(|setting| setting.about.flag == Some(flag));
            let (Some(text), Some(setting)) = (text, setting) else {
                continue;
            };
            match (setting.set)(config, Given::Text(text)) {
                Ok(()) => config.provenance.set(setting.key, Origin::Flag(flag)),
                Err(message) => problems.push(Problem {
                    origin: Origin::Flag(flag),
                    message,
                }),
            }
        }
        problems
    }
}

impl Config {
    /// Reads and checks. Reads nothing but `sources`.
    ///
    /// # Errors
    /// Everything that is wrong. Values that do not go together are looked for only once each of
    /// them could be read.
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let mut config = Config::default();
        let mut problems = Vec::new();
        if let Some((name, text)) = &sources.file {
            problems.extend(file::apply(&mut config, name, text));
        }
        problems.extend(env::apply(&mut config, &sources.environment));
        problems.extend(sources.flags.apply(&mut config));
        if !problems.is_empty() {
            return Err(ConfigError::of(problems));
        }
        if !config.provenance.is_set("live_page") {
            config.live_page = config.is_local();
            if !config.live_page {
                config.provenance.set("live_page", Origin::Implied("other machines reach it"));
            }
        }
        config.check()?;
        Ok(config)
    }

    /// Reads a file, then this process's environment, and checks.
    ///
    /// # Errors
    /// As [`Config::load`], and where the file cannot be read.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::one(Origin::Default, format!("cannot read {name}: {error}")))?;
        let mut sources = Sources::of_file(name, text);
        sources.environment = std::env::vars_os().collect();
        Self::load(&sources)
    }
}

/// Reads a duration as the file has it: `250ms`, `15s`, `2m`, `1h`, `7d`.
///
/// # Errors
/// A sentence that says what to write.
pub fn parse_duration(text: &str) -> Result<Duration, Invalid> {
    Given::Text(text).duration(Duration::ZERO).map_err(Invalid::new)
}

#[cfg(test)]
mod tests;
