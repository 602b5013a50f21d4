//! What the rules of all nodes keep, as the stream itself says it.
//!
//! A node takes from the stream what its rules leave out. Another node may have newer rules that
//! keep more, and it alone would know. So each node adds its rules to the stream's metadata when it
//! connects, and none is taken back by itself. What is swept of a channel is what no rule of any
//! node keeps.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use airwave_core::rule::{History, Pattern};
use airwave_core::{ChannelName, Rules};
use serde_json::{Value, json};

/// Where the stream's metadata has it.
pub(super) const KEPT: &str = "airwave-kept";

/// Servers take 128 KiB of metadata.
const LONGEST: usize = 64 << 10;

type Others = Arc<[(Pattern, History)]>;

/// The rules of other nodes that keep more of some channel than ours.
#[derive(Default)]
pub(super) struct KeptByOthers(Mutex<Others>);

impl KeptByOthers {
    /// What must be left of a channel of which our rules keep `ours`.
    pub(super) fn at_least(&self, channel: &ChannelName, ours: History) -> History {
        let others = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let theirs = others
            .iter()
            .filter(|(pattern, _)| pattern.matches(channel.as_str()).is_some());
        theirs.fold(ours, |kept, (_, theirs)| most(&kept, theirs))
    }

    /// Takes in what the stream says. True: that has changed.
    pub(super) fn learn(&self, metadata: &Value, ours: &Rules) -> bool {
        let others = read(metadata).into_iter().filter(|(pattern, theirs)| {
            let own = ours.iter().find(|rule| rule.pattern.as_str() == pattern.as_str());
            own.is_none_or(|own| most(&own.history, theirs) != own.history)
        });
        let others: Others = others.collect();
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = *known != others;
        *known = others;
        changed
    }
}

/// What the metadata says now and our rules beside it. `None`: that is what it says already, or
/// there is no room for it.
pub(super) fn with_ours(metadata: &Value, ours: &Rules) -> Option<String> {
    let mut all = read(metadata);
    let mut grew = false;
    for rule in ours.iter() {
        match all.iter_mut().find(|(pattern, _)| pattern.as_str() == rule.pattern.as_str()) {
            Some((_, kept)) => {
                let most = most(kept, &rule.history);
                grew |= most != *kept;
                *kept = most;
            }
            None => {
                grew = true;
                all.push((rule.pattern.clone(), rule.history));
            }
        }
    }
    if !grew {
        return None;
    }
    let entries = all.iter().map(|(pattern, kept)| {
        let seconds = kept.age.as_secs().saturating_add(u64::from(kept.age.subsec_nanos() > 0));
        json!([pattern.as_str(), kept.events, seconds, kept.bytes])
    });
    let text = Value::Array(entries.collect()).to_string();
    if text.len() > LONGEST {
        tracing::warn!(
            bytes = text.len(),
            "the rules are too long for the stream's metadata: nodes with other rules may sweep what these keep"
        );
        return None;
    }
    Some(text)
}

fn read(metadata: &Value) -> Vec<(Pattern, History)> {
    let entries = metadata[KEPT]
        .as_str()
        .and_then(|text| serde_json::from_str::<Value>(text).ok());
    let entries = entries.as_ref().and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let entry = |entry: &Value| {
        let history = History::new(
            usize::try_from(entry[1].as_u64()?).ok()?,
            Duration::from_secs(entry[2].as_u64()?),
        )
        .with_bytes(usize::try_from(entry[3].as_u64()?).ok()?);
        Some((entry[0].as_str()?.parse().ok()?, history))
    };
    entries.iter().filter_map(entry).collect()
}

/// Ages in whole seconds, as the metadata has them.
fn most(a: &History, b: &History) -> History {
    History::new(a.events.max(b.events), a.age.max(b.age)).with_bytes(a.bytes.max(b.bytes))
}

#[cfg(test)]
mod tests {
    use airwave_core::Rule;

    use super::*;

    fn rules(all: &[(&str, usize, u64)]) -> Rules {
        Rules::new(all.iter().map(|(pattern, events, seconds)| {
            let mut rule = Rule::new(pattern.parse().unwrap(), Vec::new());
            (rule.history.events, rule.history.age) = (*events, Duration::from_secs(*seconds));
            rule
        }))
    }

    #[test]
    fn what_any_node_keeps_is_left() {
        let (old, new) = (
            rules(&[("{*all}", 100, 60)]),
            rules(&[("{*all}", 10, 3600), ("chat/{room}", 5000, 60)]),
        );
        let first = with_ours(&json!({}), &old).unwrap();
        let metadata = json!({ KEPT: first });
        assert_eq!(with_ours(&metadata, &old), None, "it is there already");
        let metadata = json!({ KEPT: with_ours(&metadata, &new).unwrap() });
        assert_eq!((with_ours(&metadata, &old), with_ours(&metadata, &new)), (None, None));
        let others = KeptByOthers::default();
        assert!(others.learn(&metadata, &old));
        assert!(!others.learn(&metadata, &old));
        for (channel, events, seconds) in [("chat/a", 5000, 3600), ("a", 100, 3600)] {
            let channel = ChannelName::new(channel).unwrap();
            let kept = others.at_least(&channel, old.history(&channel));
            assert_eq!((kept.events, kept.age.as_secs()), (events, seconds), "{channel}");
        }
    }

    #[test]
    fn what_is_no_list_of_rules_is_none() {
        for text in ["", "{}", "[1]", "[[\"{a\",1,1,1]]", "[[\"a\",-1,1,1]]", "[[\"a\",1,1]]"] {
            assert!(read(&json!({ KEPT: text })).is_empty(), "{text}");
        }
    }
}
