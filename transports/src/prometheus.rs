//! This module writes a [`Snapshot`] of a node's metrics in the text formats of Prometheus.

use std::borrow::Cow;
use std::fmt::{self, Display, Write as _};

use airwave_core::observe::{Family, Histogram, Kind, Snapshot, Value};

/// A node writes its metrics as text in one of these formats.
///
/// # Examples
///
/// ```
/// use airwave_core::observe::Snapshot;
/// use airwave_transports::prometheus::TextFormat;
///
/// let mut snapshot = Snapshot::default();
/// snapshot.gauge("shop_open_carts", "Carts that hold something").add(&[("country", "de")], 3_u64);
/// let text = TextFormat::Prometheus.encode(&snapshot);
/// assert!(text.ends_with("\nshop_open_carts{country=\"de\"} 3\n"), "{text}");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TextFormat {
    /// Names Prometheus's own format, version 0.0.4.
    Prometheus,
    /// Names OpenMetrics 1.0.
    OpenMetrics,
}

impl TextFormat {
    /// Returns the `Content-Type` of a text in this format.
    pub fn content_type(self) -> &'static str {
        match self {
            TextFormat::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            TextFormat::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// Returns the metrics in this format.
    pub fn encode(self, snapshot: &Snapshot) -> String {
        let mut text = String::new();
        for family in snapshot.families() {
            let (name, kind) = self.head(family);
            // Writing to a String cannot fail.
            let _ = write!(text, "# HELP {name} {}\n# TYPE {name} {kind}\n", family.help);
            for sample in &family.samples {
                add_sample(&mut text, &family.name, &sample.labels, &sample.value);
            }
        }
        if self == TextFormat::OpenMetrics {
            text.push_str("# EOF\n");
        }
        text
    }

    /// Returns a family's name and kind as its head has them.
    fn head(self, family: &Family) -> (&str, &'static str) {
        let name = family.name.as_str();
        // In OpenMetrics the suffix belongs to the series, not to the family.
        let without = |suffix| match self {
            TextFormat::OpenMetrics => name.strip_suffix(suffix).unwrap_or(name),
            TextFormat::Prometheus => name,
        };
        match (family.kind, self) {
            (Kind::Counter, _) => (without("_total"), "counter"),
            (Kind::Info, TextFormat::OpenMetrics) => (without("_info"), "info"),
            (Kind::Gauge | Kind::Info, _) => (name, "gauge"),
            (Kind::Histogram, _) => (name, "histogram"),
            (_, TextFormat::OpenMetrics) => (name, "unknown"),
            (_, TextFormat::Prometheus) => (name, "untyped"),
        }
    }
}

fn add_sample(text: &mut String, name: &str, labels: &[(String, String)], value: &Value) {
    let labels = labels.iter().map(|(label, value)| (label.as_str(), Cow::from(value)));
    match value {
        Value::Unsigned(value) => add_line(text, name, labels, value),
        Value::Signed(value) => add_line(text, name, labels, value),
        Value::Float(value) => add_line(text, name, labels, value),
        Value::Histogram(histogram) => add_histogram(text, name, labels, histogram),
        // The format leaves out a value of a kind that it does not know yet.
        _ => {}
    }
}

/// Adds the lines of a histogram. A bucket counts the values that are not larger than its bound,
/// those of the smaller buckets included.
fn add_histogram<'a, L>(text: &mut String, name: &str, labels: L, histogram: &Histogram)
where
    L: Iterator<Item = (&'a str, Cow<'a, str>)> + Clone,
{
    let bounds = histogram.bounds.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
    let mut count = 0;
    for (bound, own) in bounds.zip(&histogram.counts) {
        count += own;
        let labels = labels.clone().chain([("le", Cow::from(bound))]);
        add_line(text, &format!("{name}_bucket"), labels, &count);
    }
    add_line(text, &format!("{name}_sum"), labels.clone(), &histogram.sum);
    add_line(text, &format!("{name}_count"), labels, &count);
}

fn add_line<'a>(text: &mut String, name: &str, labels: impl Iterator<Item = (&'a str, Cow<'a, str>)>, value: &dyn Display) {
    text.push_str(name);
    let mut end = "";
    for (label, value) in labels {
        let begin = if end.is_empty() { '{' } else { ',' };
        let _ = write!(text, "{begin}{label}=\"{}\"", EscapedLabel(&value));
        end = "}";
    }
    let _ = writeln!(text, "{end} {value}");
}

/// This type displays the value of a label, as it stands between quotes.
struct EscapedLabel<'a>(&'a str);

impl Display for EscapedLabel<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '\\' => f.write_str("\\\\")?,
                '"' => f.write_str("\\\"")?,
                '\n' => f.write_str("\\n")?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use airwave_core::{Hub, Rule, Rules};

    use super::*;

    #[tokio::test]
    async fn the_two_formats_name_families_each_in_its_way() {
        let rules = Rules::new([Rule::new("a".parse().unwrap(), vec![])]);
        let hub = Hub::builder(Arc::new(airwave_brokers::Memory::new(rules.clone())), rules).build();
        hub.metrics().add_source(|snapshot| {
            snapshot
                .info("shop_build_info", "The version")
                .add(&[("version", "1\n\"\\")], 1);
        });
        let snapshot = hub.metrics().read();
        let plain = TextFormat::Prometheus.encode(&snapshot);
        assert!(
            plain.contains("# TYPE airwave_gaps_total counter\nairwave_gaps_total{rule=\"a\",reason=\"unknown-position\"} 0\n"),
            "{plain}"
        );
        assert!(plain.contains("# TYPE shop_build_info gauge\nshop_build_info{version=\"1\\n\\\"\\\\\"} 1\n"));
        assert!(!plain.contains("# EOF"));
        let open = TextFormat::OpenMetrics.encode(&snapshot);
        assert!(
            open.contains("# TYPE airwave_gaps counter\nairwave_gaps_total{rule=\"a\",reason=\"unknown-position\"} 0\n"),
            "{open}"
        );
        assert!(open.contains("# TYPE shop_build info\nshop_build_info{"));
        assert!(open.ends_with("\n# EOF\n"));
        let series = |text: &str| {
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(series(&plain), series(&open));
    }

    #[test]
    fn buckets_of_a_histogram_include_the_smaller_ones() {
        let mut snapshot = Snapshot::default();
        let histogram = Histogram::new(vec![0.0005, 16.384], vec![2, 1, 1], 20.001001);
        let family = snapshot.histogram("x_seconds", "X");
        family.add(&[("rule", "a")], histogram);
        assert_eq!(
            TextFormat::Prometheus.encode(&snapshot),
            "# HELP x_seconds X\n# TYPE x_seconds histogram\n\
             x_seconds_bucket{rule=\"a\",le=\"0.0005\"} 2\n\
             x_seconds_bucket{rule=\"a\",le=\"16.384\"} 3\n\
             x_seconds_bucket{rule=\"a\",le=\"+Inf\"} 4\n\
             x_seconds_sum{rule=\"a\"} 20.001001\n\
             x_seconds_count{rule=\"a\"} 4\n"
        );
    }
}
