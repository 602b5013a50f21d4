//! The `Accept` headers say which of two representations a client prefers. The choice is a stream
//! of events or JSON, OpenMetrics or Prometheus's own text (RFC 9110, section 12.5.1).

use http::header::{ACCEPT, HeaderMap};

const EVENT_STREAM: &str = "text/event-stream";
const JSON: &str = "application/json";
const OPENMETRICS: &str = "application/openmetrics-text";
const PLAIN: &str = "text/plain";

/// Returns whether the `Accept` headers ask for a stream of events rather than for JSON.
///
/// The most specific range that matches a type gives its weight (`q`). If the weights are equal,
/// the stream wins where a range names its type, and JSON wins where only wildcards match. `curl`
/// sends `*/*` and receives a page.
///
/// # Examples
///
/// ```
/// use airwave_transports::accept::prefers_stream;
/// use http::header::{ACCEPT, HeaderMap, HeaderValue};
///
/// let mut headers = HeaderMap::new();
/// headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream;q=0.1, application/json"));
/// assert!(!prefers_stream(&headers));
/// headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream, */*;q=0.1"));
/// assert!(prefers_stream(&headers));
/// ```
pub fn prefers_stream(headers: &HeaderMap) -> bool {
    let (mut stream, mut json) = (Weight::default(), Weight::default());
    for value in headers.get_all(ACCEPT) {
        let Ok(text) = value.to_str() else { continue };
        for range in split_unquoted(text, b',') {
            let (kind, weight) = range_of(range);
            stream.consider(kind, EVENT_STREAM, weight);
            json.consider(kind, JSON, weight);
        }
    }
    stream.weight > json.weight || (stream.weight > 0 && stream.weight == json.weight && stream.specific == NAMED)
}

/// Returns whether the `Accept` headers ask for OpenMetrics 1.0 rather than for Prometheus's text
/// format 0.0.4. The text format wins if the client prefers neither. A range that names another
/// version of a format does not count for it.
///
/// # Examples
///
/// ```
/// use airwave_transports::accept::prefers_openmetrics;
/// use http::header::{ACCEPT, HeaderMap, HeaderValue};
///
/// let mut headers = HeaderMap::new();
/// assert!(!prefers_openmetrics(&headers));
/// let accept = "application/openmetrics-text, text/plain;q=0.5";
/// headers.insert(ACCEPT, HeaderValue::from_static(accept));
/// assert!(prefers_openmetrics(&headers));
/// ```
pub fn prefers_openmetrics(headers: &HeaderMap) -> bool {
    let (mut open, mut plain) = (Weight::default(), Weight::default());
    for value in headers.get_all(ACCEPT) {
        let Ok(text) = value.to_str() else { continue };
        for range in split_unquoted(text, b',') {
            let (kind, weight) = range_of(range);
            let version = parameter(range, "version").map(|version| version.trim_matches('"'));
            if version.is_none_or(|version| version == "1.0.0") {
                open.consider(kind, OPENMETRICS, weight);
            }
            if version.is_none_or(|version| version == "0.0.4") {
                plain.consider(kind, PLAIN, weight);
            }
        }
    }
    open.weight > plain.weight
}

/// A range that names the type itself is this specific.
const NAMED: u8 = 3;

/// Holds the weight of a type so far, in thousandths, and how specific the range is that gave it.
#[derive(Default)]
struct Weight {
    weight: u16,
    specific: u8,
}

impl Weight {
    fn consider(&mut self, range: &str, media_type: &str, weight: u16) {
        let specific = match range.split_once('/') {
            _ if range.eq_ignore_ascii_case(media_type) => NAMED,
            Some((major, "*"))
                if media_type
                    .split('/')
                    .next()
                    .is_some_and(|own| own.eq_ignore_ascii_case(major)) =>
            {
                2
            }
            Some(("*", "*")) => 1,
            // Some clients write `*` for any type.
            None if range == "*" => 1,
            _ => return,
        };
        // If two ranges are equally specific, the higher weight counts.
        if (specific, weight) > (self.specific, self.weight) || specific > self.specific {
            (self.weight, self.specific) = (weight, specific);
        }
    }
}

/// Returns a range without its parameters, and its weight in thousandths.
fn range_of(range: &str) -> (&str, u16) {
    let kind = split_unquoted(range, b';').next().unwrap_or_default().trim();
    let weight = parameter(range, "q").and_then(thousandths);
    (kind, weight.unwrap_or(1000))
}

/// Returns the value of a parameter of a range.
fn parameter<'a>(range: &'a str, wanted: &str) -> Option<&'a str> {
    split_unquoted(range, b';').skip(1).find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case(wanted).then(|| value.trim())
    })
}

/// Parses a weight such as `0.25` into thousandths. Returns `None` if the text is no weight; the
/// range then counts as one without a weight.
fn thousandths(text: &str) -> Option<u16> {
    let (whole, rest) = text.split_once('.').unwrap_or((text, ""));
    let is_number = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(whole) || !is_number(rest) || (whole.is_empty() && rest.is_empty()) {
        return None;
    }
    let digit = |index: usize| rest.as_bytes().get(index).map_or(0, |byte| u16::from(byte - b'0'));
    match whole.trim_start_matches('0') {
        "" => Some(digit(0) * 100 + digit(1) * 10 + digit(2)),
        _ => Some(1000),
    }
}

/// Splits a list into its pieces. A separator within a quoted string separates nothing.
fn split_unquoted(text: &str, separator: u8) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let (mut quoted, mut escaped) = (false, false);
        let end = text.bytes().position(|byte| {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if quoted => escaped = true,
                b'"' => quoted = !quoted,
                _ => {}
            }
            byte == separator && !quoted
        });
        let (piece, after) = match end {
            Some(end) => (&text[..end], Some(&text[end + 1..])),
            None => (text, None),
        };
        rest = after;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefers(values: &[&str]) -> bool {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(ACCEPT, value.parse().unwrap());
        }
        prefers_stream(&headers)
    }

    #[test]
    fn a_stream_is_what_the_client_prefers_to_json() {
        for accept in [
            "text/event-stream",
            " Text/Event-Stream ",
            "text/event-stream; q=0.5",
            "text/event-stream;charset=utf-8",
            "text/event-stream, */*",
            "text/event-stream, application/json",
            "application/json, text/event-stream",
            "application/json;q=0.5, text/event-stream;q=0.6",
            "text/event-stream;q=0.5, */*;q=0.1",
            "application/json;q=0.2, text/*;q=0.4",
            "text/event-stream;q=0.001",
            "application/json;q=0, */*",
            "text/event-stream;q=0.5;charset=utf-8, */*;Q=0.499",
            "text/html;x=\", application/json\", text/event-stream;q=0.1",
            "text/event-stream;q=nonsense",
            "text/event-stream;q=NaN",
            "text/event-stream;q=0, text/event-stream",
        ] {
            assert!(prefers(&[accept]), "{accept}");
        }
        assert!(prefers(&["application/json;q=0.1", "text/event-stream;q=0.2"]));
    }

    #[test]
    fn json_is_what_comes_otherwise() {
        for accept in [
            "",
            "*/*",
            "*",
            "text/*, */*",
            "text/html, application/xhtml+xml, application/xml;q=0.9, */*;q=0.8",
            "text/plain",
            "text/event-streams",
            "text/event-stream;q=0",
            "text/event-stream; Q=0.000",
            "text/event-stream;q=0, */*",
            "text/event-stream;q=0.1, application/json",
            "text/event-stream;q=0.1, */*",
            "text/event-stream;q=0.1, application/*;q=0.2",
            "application/json, text/event-stream;q=0.999",
            "application/json;q=1.000, text/event-stream;q=0.9",
            "text/plain;x=\"text/event-stream, text/event-stream\"",
        ] {
            assert!(!prefers(&[accept]), "{accept}");
        }
        assert!(!prefers(&[]));
        assert!(!prefers(&["application/json;q=0.3", "text/event-stream;q=0.2"]));
    }

    #[test]
    fn the_format_of_the_metrics_is_what_accept_prefers() {
        let open = |accept: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in accept {
                headers.append(ACCEPT, value.parse().unwrap());
            }
            prefers_openmetrics(&headers)
        };
        for plain in [
            &[][..],
            &["*/*"],
            &["text/plain"],
            &["text/plain;version=0.0.4;charset=utf-8"],
            &["text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"],
            &["application/openmetrics-text;q=0.4, text/plain;version=0.0.4;q=0.5"],
            &["application/openmetrics-text;q=0, */*"],
            &["application/openmetrics-text;version=2.0.0"],
            &["application/json"],
            &["text/plain, application/openmetrics-text"],
            &["", ";", "q=1"],
        ] {
            assert!(!open(plain), "{plain:?}");
        }
        for wanted in [
            &["application/openmetrics-text"][..],
            &["Application/OpenMetrics-Text; Version=\"1.0.0\""],
            // Prometheus 2 and 3 send these headers.
            &[
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            ],
            &[
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
            ],
            &["text/plain;q=0.1", "application/openmetrics-text;q=0.2"],
            &["text/*;q=0.1, application/*;q=0.2"],
            &["text/plain;q=0, */*;q=0.1"],
        ] {
            assert!(open(wanted), "{wanted:?}");
        }
    }
}
