//! `AIRWAVE_*` variables.

use std::ffi::{OsStr, OsString};

use super::origin::{Origin, Problem};
use super::settings::SETTINGS;
use super::value::{Given, Plain, Quoted, nearest};
use super::values::Config;

const PREFIX: &str = "AIRWAVE_";

/// Neither settings nor mistakes: the command line's server address, and the variables of the
/// tests.
fn is_elses(name: &str) -> bool {
    matches!(name, "AIRWAVE_URL" | "AIRWAVE_BIN") || name.starts_with("AIRWAVE_TEST_")
}

/// Kubernetes puts such variables into every pod beside a service named `airwave` or `airwave-…`.
fn is_kubernetes(name: &str, value: &str) -> bool {
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || (name.ends_with("_PORT") && value.contains("://"))
        || name
            .split("_PORT_")
            .nth(1)
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// Applies the variables to `config`. Values are never shown by themselves: settings decide what of
/// a value a refusal may tell.
pub(super) fn apply(config: &mut Config, environment: &[(OsString, OsString)]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (name, value) in environment {
        // A name that is no UTF-8 but begins like ours is unknown all the same.
        let name = name.to_string_lossy();
        if !name.starts_with(PREFIX) || is_elses(&name) || is_kubernetes(&name, &value.to_string_lossy()) {
            continue;
        }
        let origin = Origin::Variable(Plain(&name).to_string());
        let result = match SETTINGS.iter().find(|setting| setting.variable() == *name) {
            None => Err(unknown(&name)),
            Some(setting) => OsStr::to_str(value)
                .ok_or_else(|| "is not UTF-8 text".to_owned())
                .and_then(|text| (setting.set)(config, Given::Text(text)))
                .map(|()| setting.key),
        };
        match result {
            Ok(key) => config.provenance.set(key, origin),
            Err(message) => problems.push(Problem { origin, message }),
        }
    }
    problems.sort_by_key(ToString::to_string);
    problems
}

fn unknown(name: &str) -> String {
    let known: Vec<String> = SETTINGS.iter().map(|setting| setting.variable()).collect();
    // Compared without the common prefix, which would make everything look alike.
    let own = |name: &'_ str| name.strip_prefix(PREFIX).map(str::to_owned).unwrap_or_default();
    let names: Vec<String> = known.iter().map(|name| own(name)).collect();
    match nearest(&own(name), names.iter().map(String::as_str)) {
        Some(near) => format!("this variable is unknown; did you mean {PREFIX}{near}?"),
        None => {
            let short: Vec<&str> = known
                .iter()
                .map(String::as_str)
                .filter(|name| !name.starts_with("AIRWAVE_LIMITS_"))
                .collect();
            let shown = Quoted(name);
            format!(
                "the variable {shown} is unknown; known are {} and AIRWAVE_LIMITS_… for every key of [limits]",
                short.join(", ")
            )
        }
    }
}
