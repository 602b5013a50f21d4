//! Whether the values go together.

use airwave_core::rule::{Delivery, ReplayOnSubscribe, Rule, SlowPolicy};

use super::origin::{ConfigError, Origin, Problem};
use super::rules::{REPLAYS, name_of};
use super::value;
use super::values::Config;

const ZERO_CONFIG_IS_LOCAL: &str = "and without a configuration file every client may listen and publish on every channel; \
    write an airwave.toml that says which channels there are, for example\n    \
    [publish]\n    token = \"…\"                # at least 16 characters: openssl rand -hex 32\n    \
    [[channels]]\n    match = \"orders/{id}\"\n    use_case = \"job-status\"";

impl Config {
    /// Whether the values go together.
    ///
    /// # Errors
    /// Everything that does not.
    pub fn check(&self) -> Result<(), ConfigError> {
        let mut problems = problems_of_rules(self);
        let others = [self.problems_of_limits(), self.problems_of_publishing()];
        problems.extend(others.into_iter().flatten().map(|(key, message)| Problem {
            origin: self.provenance.get(key),
            message,
        }));
        if problems.is_empty() {
            Ok(())
        } else {
            Err(ConfigError::of(problems))
        }
    }

    /// The one of two keys to point at: the first if it is set, else the second.
    fn either(&self, key: &'static str, other: &'static str) -> &'static str {
        if self.provenance.is_set(key) { key } else { other }
    }

    fn problems_of_limits(&self) -> Vec<(&'static str, String)> {
        let (limits, mut problems) = (&self.limits, Vec::new());
        if limits.idle <= limits.heartbeat {
            problems.push((
                self.either("limits.idle", "limits.heartbeat"),
                format!(
                    "limits.idle = \"{}\" must be longer than limits.heartbeat = \"{}\", or healthy clients are cut before they are asked",
                    value::Span(limits.idle),
                    value::Span(limits.heartbeat)
                ),
            ));
        }
        if limits.ring_bytes < limits.message_bytes {
            problems.push((
                self.either("limits.ring_bytes", "limits.message_bytes"),
                format!(
                    "limits.ring_bytes = \"{}\" must be at least limits.message_bytes = \"{}\", or a message would not fit",
                    value::Bytes(limits.ring_bytes as u64),
                    value::Bytes(limits.message_bytes as u64)
                ),
            ));
        }
        if limits.memory / 4 < limits.message_bytes {
            problems.push((
                self.either("limits.memory", "limits.message_bytes"),
                format!(
                    "limits.memory = \"{}\" must be at least four times limits.message_bytes = \"{}\", or a message would not fit",
                    value::Bytes(limits.memory as u64),
                    value::Bytes(limits.message_bytes as u64)
                ),
            ));
        }
        problems
    }

    fn problems_of_publishing(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        if self.publish_token.is_some() && self.publish_open {
            problems.push((
                "publish.open",
                "publish.open = true lets everybody publish, and publish.token asks for a token; remove one of them".into(),
            ));
        }
        let Some((key, reached)) = self.reached() else {
            return problems;
        };
        if self.is_zero_config() {
            problems.push((key, format!("{reached}, {ZERO_CONFIG_IS_LOCAL}")));
        } else if self.publish_token.is_none() && !self.publish_open && !self.provenance.is_set("publish.open") {
            problems.push((
                key,
                format!(
                    "{reached}, and anyone there could publish; write a token of at least 16 characters \
                     (openssl rand -hex 32) as [publish] token = \"…\" or AIRWAVE_PUBLISH_TOKEN; or say it with [publish] open = true \
                     (anyone may publish over HTTP) or open = false (no one may)"
                ),
            ));
        }
        problems
    }
}

/// What the rules say that cannot be.
fn problems_of_rules(config: &Config) -> Vec<Problem> {
    let mut problems = Vec::new();
    let rules: Vec<&Rule> = config.rules.iter().map(AsRef::as_ref).collect();
    if rules.is_empty() {
        problems.push(Problem {
            origin: config.file_start(),
            message: "has no [[channels]], so every channel would be refused; write at least\n    [[channels]]\n    \
                      match = \"{*channel}\"\n    use_case = \"feed\""
                .into(),
        });
    }
    for (index, rule) in rules.iter().enumerate() {
        let own = problems_of_rule(config, index, rule).into_iter();
        // Points at the field if the user wrote it, else at the rule.
        problems.extend(own.chain(is_shadowed(config, &rules, index)).map(|(field, message)| Problem {
            origin: config.rule_field_place(index, field),
            message,
        }));
    }
    problems
}

/// What a rule says that cannot be: the field, and why.
fn problems_of_rule(config: &Config, index: usize, rule: &Rule) -> Vec<(&'static str, String)> {
    let mut problems = Vec::new();
    let from = |field: &str| match config.rule_field_origin(index, field) {
        Origin::UseCase(use_case) => format!(" (from use case {})", use_case.as_str()),
        _ => String::new(),
    };
    if rule.transports.is_empty() {
        problems.push((
            "transport",
            format!(
                "channels \"{}\" have no transport; write transport = \"sse\" or \"websocket\"",
                rule.pattern
            ),
        ));
    }
    let nothing_kept = rule.history.events == 0;
    if nothing_kept && rule.replay != ReplayOnSubscribe::None {
        let replay = name_of(rule.replay, REPLAYS);
        problems.push((
            "replay",
            format!(
                "replay = \"{replay}\"{} needs history, and history.events = 0{} keeps none; write replay = \"none\", or history.events of at least 1",
                from("replay"),
                from("history.events"),
            ),
        ));
    }
    if nothing_kept && rule.slow == SlowPolicy::Refill {
        problems.push((
            "slow",
            format!(
                "slow = \"refill\" needs history, and history.events = 0{} keeps none; write slow = \"skip\" or \"close\", or history.events of at least 1",
                from("history.events"),
            ),
        ));
    }
    if rule.delivery == Delivery::Latest && rule.replay == ReplayOnSubscribe::All {
        problems.push((
            "delivery",
            format!(
                "replay = \"all\"{} cannot be kept with delivery = \"latest\"{}, which sends only the newest event of each key; \
                 write replay = \"last\" or delivery = \"every\"",
                from("replay"),
                from("delivery"),
            ),
        ));
    }
    problems
}

/// Whether a rule can never match, because an earlier one takes all of its channels.
fn is_shadowed(config: &Config, rules: &[&Rule], index: usize) -> Option<(&'static str, String)> {
    let rule = rules[index];
    let mut before = rules[..index].iter().enumerate();
    let (earlier, by) = before.find(|(_, by)| by.pattern.covers(&rule.pattern))?;
    let where_it_is = match config.rule_field_place(earlier, "match") {
        Origin::File { line, .. } => format!("line {line}"),
        _ => format!("rule {}", earlier + 1),
    };
    let message = if rule.pattern.covers(&by.pattern) {
        format!(
            "match = \"{}\" matches the same channels as \"{}\" in {where_it_is}, which comes first; remove one of them",
            rule.pattern, by.pattern
        )
    } else {
        format!(
            "match = \"{}\" can never match: \"{}\" in {where_it_is} comes first and takes all of its channels; \
             put this rule above it",
            rule.pattern, by.pattern
        )
    };
    Some(("match", message))
}
