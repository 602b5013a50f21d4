//! Airwave keeps JSON on one line, in a form that strict readers accept.

use std::sync::Arc;

use super::names::Invalid;

/// Puts valid JSON on one line, and escapes what a reader could mistake for a line break or a
/// control.
///
/// In valid JSON, raw C0 controls stand only between tokens. Everything beyond ASCII stands only
/// inside strings. So the first become spaces and the second `\u` escapes, and the value stays the
/// same.
///
/// Refuses a string with half of a surrogate pair. It is no text, and the strict readers of some
/// listeners fail on it. Refuses a number that no double holds (`1e400`), too: RFC 8259, section 6.
pub(super) fn one_line(text: impl AsRef<str> + Into<Arc<str>>) -> Result<Arc<str>, Invalid> {
    if let Some(half) = half_of_a_pair(text.as_ref()) {
        return Err(Invalid::new(format!(
            "the JSON holds '{half}', half of a surrogate pair, which is no character: send both halves, or the character itself"
        )));
    }
    if let Some(number) = number_beyond_doubles(text.as_ref()) {
        let (begin, more) = match number.get(..30) {
            Some(begin) => (begin, "…"),
            None => (number, ""),
        };
        return Err(Invalid::new(format!(
            "the JSON holds the number {begin}{more}, which is too large for a double, and so for most readers: send it as a string"
        )));
    }
    let needs_care = |c: char| c.is_control() || c == '\u{2028}' || c == '\u{2029}';
    // Controls are below 0x20, 0x7f, or begin with the byte 0xc2; the separators begin with 0xe2.
    let suspicious = text.as_ref().bytes().any(|b| b < 0x20 || b == 0x7f || b == 0xc2 || b == 0xe2);
    if !suspicious || !text.as_ref().chars().any(needs_care) {
        return Ok(text.into());
    }
    let mut line = String::with_capacity(text.as_ref().len() + 16);
    for c in text.as_ref().chars() {
        if (c as u32) < 0x20 {
            line.push(' ');
        } else if needs_care(c) {
            use std::fmt::Write;
            let _ = write!(line, "\\u{:04x}", c as u32); // writing to a String cannot fail
        } else {
            line.push(c);
        }
    }
    Ok(line.into())
}

/// Finds the first escape in valid JSON that is one half of a surrogate pair without the other.
fn half_of_a_pair(json: &str) -> Option<&str> {
    // In valid JSON a backslash stands only in strings, and four hex digits follow `\u`.
    let unit = |at: usize| {
        let digits = json.get(at..)?.strip_prefix("\\u")?.get(..4)?;
        u16::from_str_radix(digits, 16).ok()
    };
    let mut from = 0;
    while let Some(found) = json.get(from..)?.find('\\') {
        let at = from + found;
        from = at
            + match unit(at) {
                None => 2,
                Some(0xd800..=0xdbff) if matches!(unit(at + 6), Some(0xdc00..=0xdfff)) => 12,
                Some(0xd800..=0xdfff) => return json.get(at..at + 6),
                Some(_) => 6,
            };
    }
    None
}

/// A double surely holds a number of this many digits, if the number has no exponent.
const DIGITS_OF_A_DOUBLE: usize = 308;

/// Finds the first number in valid JSON that is too large for a double.
fn number_beyond_doubles(json: &str) -> Option<&str> {
    let bytes = json.as_bytes();
    let is_exponent = |pair: &[u8]| pair[0].is_ascii_digit() && pair[1] | 0x20 == b'e';
    if json.len() <= DIGITS_OF_A_DOUBLE && !bytes.windows(2).any(is_exponent) {
        return None;
    }
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => {
                at += 1;
                while at < bytes.len() && bytes[at] != b'"' {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                at += 1;
            }
            b'-' | b'0'..=b'9' => {
                let is_of_number = |byte: &u8| matches!(byte, b'-' | b'+' | b'.' | b'0'..=b'9' | b'e' | b'E');
                let long = bytes[at..].iter().take_while(|byte| is_of_number(byte)).count();
                let number = &json[at..at + long];
                if number.parse::<f64>().is_ok_and(f64::is_infinite) {
                    return Some(number);
                }
                at += long;
            }
            _ => at += 1,
        }
    }
    None
}
