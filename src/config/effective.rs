//! Every effective value with its origin, as `airwave check` prints them.

use super::origin::Origin;
use super::rules;
use super::settings::SETTINGS;
use super::shown::Shown;
use super::values::Config;

impl Config {
    /// Every setting outside the rules: its key, its effective value, where that comes from.
    pub fn settings(&self) -> impl Iterator<Item = (&'static str, Shown, Origin)> {
        SETTINGS
            .iter()
            .map(|setting| (setting.key, (setting.show)(self), self.provenance.get(setting.key)))
    }

    /// Every setting of the rule at `index`: its key, its effective value, where that comes from.
    /// Empty beyond the last rule.
    pub fn rule_settings(&self, index: usize) -> impl Iterator<Item = (&'static str, Shown, Origin)> {
        self.rules.iter().nth(index).into_iter().flat_map(move |rule| {
            rules::FIELDS
                .iter()
                .map(move |field| (field.key, (field.show)(rule), self.rule_field_origin(index, field.key)))
        })
    }
}
