//! One value as the user wrote it, from the file or from a variable or a flag, and how it is read:
//! text, numbers, sizes, durations, choices. Both ways of writing end in the same checks and the
//! same sentences. Nothing here knows which
//! setting it reads; a refusal is a sentence that says what to write.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use toml::de::DeValue;

/// A value as it was written.
#[derive(Clone, Copy)]
pub(super) enum Given<'a> {
    /// In the file, where types are told apart.
    Toml(&'a DeValue<'a>),
    /// In a variable or a flag, where all is text: `true` and `15` as in the file, lists with
    /// commas.
    Text(&'a str),
}

impl<'a> Given<'a> {
    /// What stands there, for "expected …, found …". Never the value itself: it may be a secret.
    fn found(self) -> &'static str {
        match self {
            Given::Text("") => "nothing",
            Given::Text(_) | Given::Toml(DeValue::String(_)) => "text",
            Given::Toml(DeValue::Integer(_)) => "a number",
            Given::Toml(DeValue::Float(_)) => "a number with a decimal point",
            Given::Toml(DeValue::Boolean(_)) => "true or false",
            Given::Toml(DeValue::Datetime(_)) => "a date",
            Given::Toml(DeValue::Array(_)) => "a list",
            Given::Toml(DeValue::Table(_)) => "a table",
        }
    }

    /// Text that is not empty.
    pub(super) fn text(self) -> Result<&'a str, String> {
        match self {
            Given::Text("") => Err("is empty; give it a value or leave it out".into()),
            Given::Text(text) => Ok(text),
            Given::Toml(DeValue::String(text)) if text.is_empty() => Err("is empty; give it a value or leave it out".into()),
            Given::Toml(DeValue::String(text)) => Ok(text),
            other => Err(format!("must be text in quotes, not {}", other.found())),
        }
    }

    /// One text or a list of texts, without an empty one.
    pub(super) fn words(self) -> Result<Vec<&'a str>, String> {
        let words: Vec<&str> = match self {
            Given::Text(text) => text.split(',').map(str::trim).collect(),
            Given::Toml(DeValue::Array(items)) => items
                .iter()
                .map(|item| item.get_ref().as_str())
                .collect::<Option<_>>()
                .ok_or("must be a list of texts in quotes")?,
            Given::Toml(DeValue::String(text)) => vec![text],
            other => {
                return Err(format!(
                    "must be text in quotes or a list of such texts, not {}",
                    other.found()
                ));
            }
        };
        if words.iter().any(|word| word.is_empty()) {
            return Err("holds an empty text; leave it out".into());
        }
        Ok(words)
    }

    pub(super) fn flag(self) -> Result<bool, String> {
        match self {
            Given::Toml(DeValue::Boolean(flag)) => Ok(*flag),
            Given::Text("true") => Ok(true),
            Given::Text("false") => Ok(false),
            Given::Toml(DeValue::String(_)) => Err("must be true or false, without quotes".into()),
            other => Err(format!("must be true or false, not {}", other.found())),
        }
    }

    /// A whole number from `min` to `max`.
    pub(super) fn count(self, min: u64, max: u64) -> Result<u64, String> {
        let wrong = || {
            if max == u64::MAX || max == usize::MAX as u64 {
                format!("must be a whole number, at least {min}")
            } else {
                format!("must be a whole number from {min} to {max}")
            }
        };
        let number = match self {
            Given::Text(text) => text.parse().map_err(|_| wrong())?,
            Given::Toml(DeValue::Integer(n)) => u64::from_str_radix(n.as_str(), n.radix()).map_err(|_| wrong())?,
            Given::Toml(DeValue::String(_)) => return Err(format!("{}, without quotes", wrong())),
            other => return Err(format!("{}, not {}", wrong(), other.found())),
        };
        if (min..=max).contains(&number) {
            Ok(number)
        } else {
            Err(wrong())
        }
    }

    /// A number of bytes: a whole number, or text like "64KiB".
    pub(super) fn size(self, min: u64) -> Result<usize, String> {
        let size = match self {
            Given::Text(text) => parse_size(text)?,
            Given::Toml(DeValue::String(text)) => parse_size(text)?,
            Given::Toml(DeValue::Integer(n)) => u64::from_str_radix(n.as_str(), n.radix()).map_err(|_| SIZE.to_owned())?,
            other => return Err(format!("{SIZE}, not {}", other.found())),
        };
        if size < min {
            return Err(format!("must be at least {}", Bytes(min)));
        }
        usize::try_from(size).map_err(|_| SIZE.into())
    }

    /// Text like "15s", at least `min`.
    pub(super) fn duration(self, min: Duration) -> Result<Duration, String> {
        let duration = match self {
            Given::Text(text) => parse_duration(text)?,
            Given::Toml(DeValue::String(text)) => parse_duration(text)?,
            Given::Toml(DeValue::Integer(n)) => return Err(format!("needs its unit; write \"{0}s\" or \"{0}ms\"", n.as_str())),
            other => return Err(format!("{DURATION}, not {}", other.found())),
        };
        if duration < min {
            return Err(format!("must be at least \"{}\"", Span(min)));
        }
        Ok(duration)
    }

    /// One of `choices`.
    pub(super) fn choice<T: Copy>(self, choices: &[(&str, T)]) -> Result<T, String> {
        let names = || choices.iter().map(|(name, _)| *name);
        let wrong = |what: String| format!("{what}; write {}", one_of(names()));
        let Ok(text) = self.text() else {
            return Err(wrong(format!("must be text in quotes, not {}", self.found())));
        };
        match choices.iter().find(|(name, _)| *name == text) {
            Some((_, value)) => Ok(*value),
            None => Err(match nearest(text, names()) {
                Some(near) => format!("{} is unknown; did you mean \"{near}\"?", Quoted(text)),
                None => wrong(format!("{} is unknown", Quoted(text))),
            }),
        }
    }
}

const SIZE: &str = "must be a number of bytes, or text like \"64KiB\" or \"16MiB\"";
const DURATION: &str = "must be text like \"250ms\", \"15s\", \"2m\", \"1h\" or \"7d\"";
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
const SIZES: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// A number and the unit after it, spaces around both allowed.
fn split_unit(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, text[end..].trim_start()))
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split_unit(text).ok_or_else(|| DURATION.to_owned())?;
    if unit.is_empty() {
        return Err(format!("needs its unit; write \"{number}s\" or \"{number}ms\""));
    }
    let (_, millis) = UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .ok_or_else(|| DURATION.to_owned())?;
    // A century is far beyond any use, and still far from where arithmetic on instants overflows.
    match number.checked_mul(*millis) {
        Some(millis) if millis <= 36_500 * UNITS[0].1 => Ok(Duration::from_millis(millis)),
        _ => Err("is longer than a hundred years".into()),
    }
}

fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = split_unit(text).ok_or_else(|| SIZE.to_owned())?;
    let factor = match unit {
        "" => 1,
        _ => match SIZES.iter().find(|(name, _)| *name == unit) {
            Some((_, factor)) => *factor,
            None => {
                let meant = match unit.to_ascii_lowercase().chars().next() {
                    Some('k') => "KiB",
                    Some('m') => "MiB",
                    Some('g') => "GiB",
                    _ => return Err(SIZE.into()),
                };
                return Err(format!("has the unknown unit {}; write \"{number}{meant}\"", Quoted(unit)));
            }
        },
    };
    number.checked_mul(factor).ok_or_else(|| SIZE.into())
}

/// A duration as it is written in the file.
pub(super) struct Span(pub(super) Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        let (unit, factor) = UNITS
            .into_iter()
            .find(|(_, factor)| millis != 0 && millis.is_multiple_of(*factor))
            .unwrap_or(("s", 1000));
        write!(f, "{}{unit}", millis / factor)
    }
}

/// A number of bytes as it is written in the file.
pub(super) struct Bytes(pub(super) u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, factor) = SIZES
            .into_iter()
            .find(|(_, factor)| self.0 != 0 && self.0.is_multiple_of(*factor))
            .unwrap_or(("B", 1));
        write!(f, "{}{unit}", self.0 / factor)
    }
}

/// A text in quotes, short and without control characters, so that no value can forge a line of the
/// report.
pub(super) struct Quoted<'a>(pub(super) &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MOST: usize = 60;
        let mut shown: Cow<'_, str> = self.0.into();
        if let Some((end, _)) = self.0.char_indices().nth(MOST) {
            shown = format!("{}…", &self.0[..end]).into();
        }
        write!(f, "\"{}\"", Plain(&shown))
    }
}

/// Text with its control characters escaped.
pub(super) struct Plain<'a>(pub(super) &'a str);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            if c.is_control() {
                write!(f, "{}", c.escape_default())?;
            } else {
                write!(f, "{c}")?;
            }
        }
        Ok(())
    }
}

/// `"a", "b" or "c"`.
pub(super) fn one_of<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut names: Vec<String> = names.map(|name| format!("\"{name}\"")).collect();
    match names.pop() {
        Some(last) if names.is_empty() => last,
        Some(last) => format!("{} or {last}", names.join(", ")),
        None => String::new(),
    }
}

/// The name that `text` was probably meant to be. Case, `-` and `_` do not count.
///
/// Letters first: a name that is a few of them away. Else words: a name whose words are all in
/// `text`, or the other way round (`max_connections`, `timeout`).
pub(super) fn nearest<'a>(text: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |name: &str| name.to_lowercase().replace('-', "_");
    let text = plain(text);
    // What is far longer than any name is none of them; the bound also keeps the work small.
    if text.chars().count() > 64 {
        return None;
    }
    let letters = |name: &str| name.chars().collect::<Vec<_>>();
    let names: Vec<(&str, String)> = names.map(|name| (name, plain(name))).collect();
    let misspelt = names
        .iter()
        .map(|(name, plain)| (distance(&letters(&text), &letters(plain)), *name))
        .filter(|(distance, name)| *distance <= (text.chars().count().min(name.len()) / 3).max(1))
        .min_by_key(|(distance, _)| *distance);
    if let Some((_, name)) = misspelt {
        return Some(name);
    }
    let words = |name: &str| -> Vec<String> { name.split('_').filter(|word| word.len() > 3).map(str::to_owned).collect() };
    let said = words(&text);
    let within = |few: &[String], many: &[String]| !few.is_empty() && few.iter().all(|word| many.contains(word));
    names
        .iter()
        .map(|(name, plain)| (words(plain), *name))
        .filter(|(words, _)| within(words, &said) || within(&said, words))
        // The most words in common, and of those the shortest name.
        .max_by_key(|(words, name)| {
            let common = words.iter().filter(|word| said.contains(word)).count();
            (common, std::cmp::Reverse(name.len()))
        })
        .map(|(_, name)| name)
}

/// How many letters must be put in, taken out, replaced or swapped with their neighbour.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    rows[0] = (0..=b.len()).collect();
    for i in 1..=a.len() {
        rows[i][0] = i;
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = least;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_have_a_unit() {
        let read = |text: &str| Given::Text(text).duration(Duration::ZERO);
        assert_eq!(read("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(read("15s"), Ok(Duration::from_secs(15)));
        assert_eq!(read(" 2 m "), Ok(Duration::from_secs(120)));
        assert_eq!(read("1h"), Ok(Duration::from_secs(3600)));
        assert_eq!(read("7d"), Ok(Duration::from_secs(7 * 86_400)));
        assert_eq!(read("15").unwrap_err(), "needs its unit; write \"15s\" or \"15ms\"");
        for bad in ["", "s", "-1s", "1.5s", "1 hour", "1h30m", "99999999999999999999s"] {
            assert_eq!(read(bad).unwrap_err(), DURATION, "{bad}");
        }
        assert_eq!(read("36501d").unwrap_err(), "is longer than a hundred years");
        assert_eq!(read("18446744073709551615d").unwrap_err(), "is longer than a hundred years");
        assert_eq!(
            Given::Text("0s").duration(Duration::from_millis(1)).unwrap_err(),
            "must be at least \"1ms\""
        );
    }

    #[test]
    fn sizes_are_bytes_or_have_a_binary_unit() {
        let read = |text: &str| Given::Text(text).size(0);
        assert_eq!(read("1000"), Ok(1000));
        assert_eq!(read("64KiB"), Ok(64 << 10));
        assert_eq!(read("16 MiB"), Ok(16 << 20));
        assert_eq!(read("1GiB"), Ok(1 << 30));
        assert_eq!(read("5B"), Ok(5));
        assert_eq!(read("64KB").unwrap_err(), "has the unknown unit \"KB\"; write \"64KiB\"");
        assert_eq!(read("64k").unwrap_err(), "has the unknown unit \"k\"; write \"64KiB\"");
        for bad in ["", "KiB", "-1", "1.5MiB", "1 parsec", "18446744073709551615GiB"] {
            assert_eq!(read(bad).unwrap_err(), SIZE, "{bad}");
        }
        assert_eq!(Given::Text("1").size(1 << 10).unwrap_err(), "must be at least 1KiB");
    }

    #[test]
    fn near_misses_are_found_and_far_ones_are_not() {
        let names = ["use_case", "transport", "max_rate", "match", "slow", "send"];
        let near = |text| nearest(text, names.into_iter());
        assert_eq!(near("use-case"), Some("use_case"));
        assert_eq!(near("Transports"), Some("transport"));
        assert_eq!(near("max_raet"), Some("max_rate"));
        assert_eq!(near("macth"), Some("match"));
        assert_eq!(near("sned"), Some("send"));
        assert_eq!(near("history"), None);
        // Words of a name, where letters are too far away.
        assert_eq!(near("rate_per_second"), Some("max_rate"));
        assert_eq!(near("case"), Some("use_case"));
        assert_eq!(near(""), None);
        assert_eq!(near(&"transport".repeat(1000)), None);
    }

    #[test]
    fn what_is_quoted_is_short_and_has_no_controls() {
        assert_eq!(Quoted("a\x1b[31m\nb").to_string(), "\"a\\u{1b}[31m\\nb\"");
        assert_eq!(Quoted(&"é".repeat(100)).to_string().chars().count(), 63);
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(millis in 0u64..3_000_000_000, bytes in any::<u32>()) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse_duration(&Span(duration).to_string()), Ok(duration));
            prop_assert_eq!(parse_size(&Bytes(bytes.into()).to_string()), Ok(bytes.into()));
        }

        #[test]
        fn any_text_is_read_without_a_panic(text in ".{0,40}") {
            let given = Given::Text(&text);
            let _ = (given.duration(Duration::ZERO), given.size(0), given.count(0, 9), given.words(), given.flag());
            let _ = (given.choice(&[("sse", 1), ("websocket", 2)]), Quoted(&text).to_string());
        }

        #[test]
        fn distance_is_symmetric_and_bounded(a in "[a-d_]{0,8}", b in "[a-d_]{0,8}") {
            let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
            let d = distance(&a, &b);
            prop_assert_eq!(d, distance(&b, &a));
            prop_assert!(d <= a.len().max(b.len()) && d >= a.len().abs_diff(b.len()));
            prop_assert_eq!(d == 0, a == b);
        }
    }
}
