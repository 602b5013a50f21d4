//! Patterns of channel names say which channels a rule is for, and which parameters a name gives.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::event::{ChannelName, Invalid};

/// A pattern matches channel names. It has literal segments, `{name}` for one segment, and
/// `{*name}` at the end for all the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    text: Arc<str>,
    segments: Vec<Segment>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Literal(String),
    Param(Arc<str>),
    Rest(Arc<str>),
}

impl Pattern {
    /// Returns the pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the parameters if `channel` matches.
    pub fn matches(&self, channel: &str) -> Option<Params> {
        let mut params = Params::default();
        let mut rest = Some(channel);
        for segment in &self.segments {
            let text = rest?;
            let (head, tail) = match text.split_once('/') {
                Some((head, tail)) => (head, Some(tail)),
                None => (text, None),
            };
            match segment {
                Segment::Literal(literal) if literal == head => rest = tail,
                Segment::Literal(_) => return None,
                Segment::Param(name) => {
                    params.0.push((name.clone(), head.into()));
                    rest = tail;
                }
                Segment::Rest(name) => {
                    params.0.push((name.clone(), text.into()));
                    rest = None;
                }
            }
        }
        rest.is_none().then_some(params)
    }

    /// Returns whether this pattern matches every channel that `other` matches.
    pub fn covers(&self, other: &Pattern) -> bool {
        let (mut mine, mut others) = (self.segments.iter(), other.segments.iter());
        loop {
            match (mine.next(), others.next()) {
                (None, None) | (Some(Segment::Rest(_)), Some(_)) => return true,
                (Some(Segment::Param(_)), Some(Segment::Literal(_) | Segment::Param(_))) => {}
                (Some(Segment::Literal(a)), Some(Segment::Literal(b))) if a == b => {}
                _ => return false,
            }
        }
    }
}

impl FromStr for Pattern {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let mut segments = Vec::new();
        let mut names: Vec<Arc<str>> = Vec::new();
        for segment in text.split('/') {
            if segments.iter().any(|s| matches!(s, Segment::Rest(_))) {
                return Err(Invalid::new(format!(
                    "pattern '{text}': '{{*name}}' takes all the rest and must be the last segment"
                )));
            }
            let inner = segment.strip_prefix('{').and_then(|s| s.strip_suffix('}'));
            segments.push(match inner {
                Some(inner) => {
                    let (rest, name) = inner.strip_prefix('*').map_or((false, inner), |name| (true, name));
                    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                        return Err(Invalid::new(format!("pattern '{text}': a parameter is written {{name}}, of letters, digits and '_'")));
                    }
                    let name: Arc<str> = name.into();
                    if names.contains(&name) {
                        return Err(Invalid::new(format!("pattern '{text}': the parameter '{name}' stands twice")));
                    }
                    names.push(name.clone());
                    if rest { Segment::Rest(name) } else { Segment::Param(name) }
                }
                None => {
                    ChannelName::new(segment).map_err(|e| {
                        Invalid::new(format!("pattern '{text}', segment '{segment}': {e}; a parameter is written {{name}}, the rest of a name {{*name}}"))
                    })?;
                    Segment::Literal(segment.to_owned())
                }
            });
        }
        Ok(Self {
            text: text.into(),
            segments,
        })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// This type holds what the parameters of a pattern stand for in one channel's name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Params(Vec<(Arc<str>, Box<str>)>);

impl Params {
    /// Returns the text of the parameter `name`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| &**n == name).map(|(_, value)| &**value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pattern(text: &str) -> Pattern {
        text.parse().unwrap()
    }

    #[test]
    fn patterns_take_parameters() {
        let params = pattern("shop/{shop}/orders/{id}").matches("shop/7/orders/abc").unwrap();
        assert_eq!(
            (params.get("shop"), params.get("id"), params.get("x")),
            (Some("7"), Some("abc"), None)
        );
        assert_eq!(pattern("logs/{*rest}").matches("logs/a/b").unwrap().get("rest"), Some("a/b"));
        assert!(pattern("logs/{*rest}").matches("logs").is_none());
        assert!(pattern("orders/{id}").matches("orders/1/2").is_none());
        assert!(pattern("orders/{id}").matches("orders").is_none());
        assert!(pattern("{*all}").matches("x").is_some());
    }

    #[test]
    fn bad_patterns_say_what_to_write() {
        for (bad, word) in [
            ("", "empty"),
            ("a//b", "empty"),
            ("{}", "{name}"),
            ("{a}/{a}", "twice"),
            ("{*a}/b", "last"),
            ("a*", "{*name}"),
            ("x{y}", "{name}"),
        ] {
            let error = bad.parse::<Pattern>().unwrap_err().to_string();
            assert!(error.contains(word), "{bad}: {error}");
        }
    }

    #[test]
    fn a_pattern_covers_what_it_always_matches() {
        for (wide, narrow) in [
            ("{*all}", "orders/{id}"),
            ("{*all}", "{*rest}"),
            ("a/{*rest}", "a/b/{*rest}"),
            ("a/{x}", "a/{y}"),
            ("a/{x}", "a/b"),
            ("a", "a"),
        ] {
            assert!(pattern(wide).covers(&pattern(narrow)), "{wide} {narrow}");
        }
        for (one, other) in [
            ("a/{x}", "a/{*rest}"),
            ("a/{*rest}", "a"),
            ("a", "b"),
            ("a/b", "a/{x}"),
            ("{x}", "a/b"),
        ] {
            assert!(!pattern(one).covers(&pattern(other)), "{one} {other}");
        }
    }

    proptest! {
        /// A covering pattern matches every name that the covered one matches. A pattern that does
        /// not cover misses one of the names.
        #[test]
        fn covering_is_about_names(
            wide in "(a|b|[{]x[}])(/(a|b|[{]y[}])){0,2}(/[{][*]z[}])?",
            narrow in "(a|b|[{]x[}])(/(a|b|[{]y[}])){0,2}(/[{][*]z[}])?",
        ) {
            let (Ok(wide), Ok(narrow)) = (wide.parse::<Pattern>(), narrow.parse::<Pattern>()) else { return Ok(()) };
            // The list has every name of up to four segments, over an alphabet with a letter that
            // no pattern has.
            let mut names: Vec<String> = vec![];
            let mut last = vec![String::new()];
            for _ in 0..4 {
                last = last.iter().flat_map(|n| ["a", "b", "c"].map(|s| if n.is_empty() { s.into() } else { format!("{n}/{s}") })).collect();
                names.extend(last.iter().cloned());
            }
            let counterexample = names.iter().find(|n| narrow.matches(n).is_some() && wide.matches(n).is_none());
            prop_assert_eq!(wide.covers(&narrow), counterexample.is_none(), "{} {} {:?}", wide, narrow, counterexample);
        }

        /// A pattern made from a name by replacing segments matches that name, and gives the
        /// segments back.
        #[test]
        fn a_pattern_gives_back_the_segments_it_replaced(segments in prop::collection::vec("[a-z0-9]{1,4}", 1..6), params in any::<u8>()) {
            let name = segments.join("/");
            let text: Vec<String> =
                segments.iter().enumerate().map(|(i, s)| if params >> i & 1 == 1 { format!("{{p{i}}}") } else { s.clone() }).collect();
            let found = pattern(&text.join("/")).matches(&name).unwrap();
            for (i, segment) in segments.iter().enumerate() {
                prop_assert_eq!(found.get(&format!("p{i}")), (params >> i & 1 == 1).then_some(segment.as_str()));
            }
        }
    }
}
