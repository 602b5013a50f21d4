//! The settings of one `[[channels]]` entry, as one list.

use std::num::NonZeroU32;
use std::time::Duration;

use airwave_core::UseCase;
use airwave_core::rule::{Delivery, Pattern, ReplayOnSubscribe, Rule, Rules, SendPolicy, SlowPolicy, TransportName};

use super::about::{About, Range};
use super::shown::Shown;
use super::value::{Given, Quoted, nearest, one_of};

/// One setting of a rule, besides `match` and `use_case`, which come first.
pub(super) struct Field {
    pub(super) key: &'static str,
    pub(super) set: fn(&mut Rule, Given<'_>) -> Result<(), String>,
    pub(super) show: fn(&Rule) -> Shown,
    /// What people read of it.
    pub(super) about: About,
}

/// The keys of a rule that are read before its fields: which channels it is for, and its preset.
pub(super) const HEAD: [(&str, About); 2] = [
    (
        "match",
        About::new(
            "Which channels the rule is for: literal segments, `{name}` for any one segment, `{*name}` at the end for all the rest. \
             The first rule that matches a channel is its rule.",
            Range::Text("a pattern"),
            "\"orders/{id}\"",
        )
        .default("none: must be written"),
    ),
    (
        "use_case",
        About::new(
            "What the channels are for. It sets the other keys as the table below says; each can be overridden.",
            Range::Choice(use_cases),
            "\"job-status\"",
        )
        .default("none: then `transport` must be written"),
    ),
];

fn use_cases() -> Vec<&'static str> {
    UseCase::ALL.map(UseCase::as_str).to_vec()
}

fn names<T>(choices: &[(&'static str, T)]) -> Vec<&'static str> {
    choices.iter().map(|(name, _)| *name).collect()
}

pub(super) const TRANSPORTS: [TransportName; 2] = [TransportName::SSE, TransportName::WEBSOCKET];

const DELIVERIES: &[(&str, Delivery)] = &[("every", Delivery::Every), ("latest", Delivery::Latest)];
pub(super) const REPLAYS: &[(&str, ReplayOnSubscribe)] = &[
    ("none", ReplayOnSubscribe::None),
    ("last", ReplayOnSubscribe::Last),
    ("all", ReplayOnSubscribe::All),
];
const SLOW: &[(&str, SlowPolicy)] = &[
    ("refill", SlowPolicy::Refill),
    ("skip", SlowPolicy::Skip),
    ("close", SlowPolicy::Close),
];
const SEND: &[(&str, SendPolicy)] = &[
    ("handler", SendPolicy::Handler),
    ("publish", SendPolicy::Publish),
    ("refuse", SendPolicy::Refuse),
];

pub(super) fn name_of<T: PartialEq>(value: T, choices: &[(&'static str, T)]) -> Shown {
    let name = choices
        .iter()
        .find(|(_, choice)| *choice == value)
        .map_or("", |(name, _)| name);
    Shown::Text(name.into())
}

/// All of them, in the order in which they are shown.
pub(super) const FIELDS: &[Field] = &[
    Field {
        key: "transport",
        set: |rule, given| {
            rule.transports = transports(&given.words()?)?;
            Ok(())
        },
        show: |rule| Shown::Words(rule.transports.iter().map(ToString::to_string).collect()),
        about: About::new(
            "How clients may listen. The first is what clients are told to use. Messages and history over HTTP are always allowed.",
            Range::Text("`sse`, `websocket`, or a list of both"),
            "[\"websocket\", \"sse\"]",
        )
        .default("none: must be written, or `use_case`"),
    },
    Field {
        key: "delivery",
        set: |rule, given| {
            rule.delivery = given.choice(DELIVERIES)?;
            Ok(())
        },
        show: |rule| name_of(rule.delivery, DELIVERIES),
        about: About::new(
            "`every`: each event. `latest`: of the events that wait for a listener, only the newest of each key.",
            Range::Choice(|| names(DELIVERIES)),
            "\"latest\"",
        ),
    },
    Field {
        key: "max_rate",
        set: |rule, given| {
            rule.max_rate = max_rate(given)?;
            Ok(())
        },
        show: |rule| {
            rule.max_rate
                .map_or(Shown::Text("none".into()), |rate| Shown::Count(rate.get().into()))
        },
        about: About::new(
            "Deliveries to a listener in a second; what is published in between goes out together.",
            Range::Text("1 to 1000, or `\"none\"`"),
            "20",
        ),
    },
    Field {
        key: "history.events",
        set: |rule, given| {
            // The bound is a usize, so what lies within it fits one.
            rule.history.events = given.count(0, usize::MAX as u64)? as usize;
            Ok(())
        },
        show: |rule| Shown::Count(rule.history.events as u64),
        about: About::new(
            "Events that a channel keeps. 0 keeps none.",
            Range::Count {
                min: 0,
                max: usize::MAX as u64,
            },
            "500",
        ),
    },
    Field {
        key: "history.age",
        set: |rule, given| {
            rule.history.age = given.duration(Duration::from_millis(1))?;
            Ok(())
        },
        show: |rule| Shown::Duration(rule.history.age),
        about: About::new(
            "How long an event is kept.",
            Range::Duration {
                min: Duration::from_millis(1),
            },
            "\"1d\"",
        ),
    },
    Field {
        key: "history.bytes",
        set: |rule, given| {
            rule.history.bytes = given.size(1)?;
            Ok(())
        },
        show: |rule| Shown::Bytes(rule.history.bytes as u64),
        about: About::new("Bytes of events that a channel keeps.", Range::Size { min: 1 }, "\"1MiB\""),
    },
    Field {
        key: "replay",
        set: |rule, given| {
            rule.replay = given.choice(REPLAYS)?;
            Ok(())
        },
        show: |rule| name_of(rule.replay, REPLAYS),
        about: About::new(
            "What a listener without a cursor gets first: nothing, the newest event of each key, or all that history holds.",
            Range::Choice(|| names(REPLAYS)),
            "\"all\"",
        ),
    },
    Field {
        key: "slow",
        set: |rule, given| {
            rule.slow = given.choice(SLOW)?;
            Ok(())
        },
        show: |rule| name_of(rule.slow, SLOW),
        about: About::new(
            "What happens to a listener that falls behind the ring: it is filled in from history, it skips with a gap, or it is closed.",
            Range::Choice(|| names(SLOW)),
            "\"close\"",
        ),
    },
    Field {
        key: "send",
        set: |rule, given| {
            rule.send = given.choice(SEND)?;
            Ok(())
        },
        show: |rule| name_of(rule.send, SEND),
        about: About::new(
            "What becomes of a message of a client. `handler`: a handler decides; without one it is refused. `publish`: a handler decides; \
             without one it is published as it is. `refuse`: it is refused.",
            Range::Choice(|| names(SEND)),
            "\"publish\"",
        ),
    },
    Field {
        key: "presence",
        set: |rule, given| {
            rule.presence = given.flag()?;
            Ok(())
        },
        show: |rule| Shown::Flag(rule.presence),
        about: About::new(
            "Whether clients may ask who is in the channel.",
            Range::Flag,
            "true",
        ),
    },
];

fn transports(words: &[&str]) -> Result<Vec<TransportName>, String> {
    let names = || TRANSPORTS.iter().map(TransportName::as_str);
    let mut transports = Vec::new();
    for word in words {
        let Some(transport) = TRANSPORTS.iter().find(|t| t.as_str() == *word) else {
            return Err(if *word == TransportName::HTTP.as_str() {
                format!("names \"http\", which every rule allows anyway; write {}", one_of(names()))
            } else if let Some(near) = nearest(word, names()) {
                format!("names {}, which is unknown; did you mean \"{near}\"?", Quoted(word))
            } else {
                format!("names {}, which is unknown; write {}", Quoted(word), one_of(names()))
            });
        };
        if transports.contains(transport) {
            return Err(format!("names \"{transport}\" twice"));
        }
        transports.push(transport.clone());
    }
    if transports.is_empty() {
        return Err(format!(
            "is an empty list, so no client could listen; write {}",
            one_of(names())
        ));
    }
    Ok(transports)
}

fn max_rate(given: Given<'_>) -> Result<Option<NonZeroU32>, String> {
    if let Ok("none") = given.text() {
        return Ok(None);
    }
    // A window shorter than a millisecond is shorter than any timer here can wait.
    match given.count(1, 1000) {
        Ok(rate) => Ok(NonZeroU32::new(rate as u32)),
        Err(error) => Err(format!("{error} (deliveries to a listener per second), or \"none\"")),
    }
}

pub(super) fn use_case(given: Given<'_>) -> Result<UseCase, String> {
    given.choice(&UseCase::ALL.map(|use_case| (use_case.as_str(), use_case)))
}

/// Replaces a default that could only fail: without history nothing can be refilled. Returns
/// whether it replaced it.
pub(super) fn settle(rule: &mut Rule, slow_was_written: bool) -> bool {
    let settles = !slow_was_written && rule.slow == SlowPolicy::Refill && rule.history.events == 0;
    if settles {
        rule.slow = SlowPolicy::Skip;
    }
    settles
}

/// The one rule of a server without a file: every channel, both transports, every listener may
/// publish.
pub(super) fn zero_config() -> Rules {
    // A constant; a test below reads it.
    #[allow(clippy::unwrap_used)]
    let mut rule = Rule::new("{*channel}".parse::<Pattern>().unwrap(), TRANSPORTS.to_vec());
    rule.history.events = 1000;
    rule.history.age = Duration::from_secs(3600);
    rule.send = SendPolicy::Publish;
    Rules::new([rule])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_file_there_is_one_rule_for_everything() {
        let rules = zero_config();
        let rule = rules.iter().next().expect("one rule");
        assert_eq!(rule.pattern.as_str(), "{*channel}");
        assert_eq!(rule.transports, TRANSPORTS);
        assert_eq!((rule.history.events, rule.history.age), (1000, Duration::from_secs(3600)));
        assert_eq!(rule.send, SendPolicy::Publish);
    }
}
