//! What a node counts, and the text in which it tells it. docs/reference/metrics.md lists the
//! names; no label ever holds what a client chose.

use std::collections::HashMap;
use std::fmt::{self, Display, Write as _};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use crate::broker::BrokerStats;
use crate::format::{GapReason, MAX_FORMATS};
use crate::refusal::Code;
use crate::rule::{Rule, Rules, SlowPolicy};

/// A number that only grows. Clones count together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counter(Arc<AtomicU64>);

impl Counter {
    pub(crate) fn inc(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down. Clones count together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gauge(Arc<AtomicI64>);

impl Gauge {
    pub(crate) fn inc(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn dec(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn set(&self, value: i64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A counter for each value of a small set.
struct Counters<const N: usize>([AtomicU64; N]);

impl<const N: usize> Counters<N> {
    fn new() -> Self {
        Self([const { AtomicU64::new(0) }; N])
    }

    /// Counts one `value` of the set `all`.
    fn count<T: PartialEq>(&self, all: &[T; N], value: &T) {
        if let Some(index) = all.iter().position(|known| known == value) {
            self.0[index].fetch_add(1, Ordering::Relaxed);
        }
    }

    fn get(&self, index: usize) -> u64 {
        self.0[index].load(Ordering::Relaxed)
    }
}

/// Buckets of durations: the first ends at half a millisecond, each of the others at twice the one
/// before, the last at about 16 seconds.
const BUCKETS: usize = 16;
const FIRST_BUCKET: Duration = Duration::from_micros(500);

/// How long something took, counted by buckets.
#[derive(Debug)]
pub(crate) struct Durations {
    /// The last one counts what is longer than all buckets.
    buckets: [AtomicU64; BUCKETS + 1],
    microseconds: AtomicU64,
}

impl Durations {
    fn new() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; BUCKETS + 1],
            microseconds: AtomicU64::new(0),
        }
    }

    pub(crate) fn observe(&self, duration: Duration) {
        let fits = |index: &usize| duration <= FIRST_BUCKET * (1 << index);
        let index = (0..BUCKETS).find(fits).unwrap_or(BUCKETS);
        self.buckets[index].fetch_add(1, Ordering::Relaxed);
        let microseconds = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.microseconds.fetch_add(microseconds, Ordering::Relaxed);
    }

    fn write(&self, text: &mut MetricsText, name: &str, help: &str) {
        text.head(name, "histogram", help);
        let mut count = 0;
        for (index, bucket) in self.buckets.iter().enumerate() {
            count += bucket.load(Ordering::Relaxed);
            let end = match index {
                BUCKETS => "+Inf".to_owned(),
                _ => (FIRST_BUCKET * (1 << index)).as_secs_f64().to_string(),
            };
            text.line(&format!("{name}_bucket"), &[("le", &end)], &count);
        }
        let sum = Duration::from_micros(self.microseconds.load(Ordering::Relaxed)).as_secs_f64();
        text.line(&format!("{name}_sum"), &[], &sum);
        text.line(&format!("{name}_count"), &[], &count);
    }
}

/// The figures of one format, cached so that the hot path looks nothing up.
#[derive(Debug, Clone, Default)]
pub(crate) struct FormatMetrics {
    pub(crate) connections: Gauge,
    pub(crate) connections_total: Counter,
    pub(crate) encodes: Counter,
}

/// The figures of all channels of one rule. A channel's log holds them, so that a delivery looks
/// nothing up.
pub(crate) struct RuleMetrics {
    published: AtomicU64,
    gaps: Counters<{ GapReason::ALL.len() }>,
    formats: [Deliveries; MAX_FORMATS],
}

/// What one rule's channels delivered in one format: one cache line, which each delivery writes to.
#[derive(Default)]
#[repr(align(64))]
struct Deliveries {
    events: AtomicU64,
    bytes: AtomicU64,
    subscriptions: AtomicI64,
}

impl Default for RuleMetrics {
    fn default() -> Self {
        Self {
            published: AtomicU64::new(0),
            gaps: Counters::new(),
            formats: Default::default(),
        }
    }
}

impl RuleMetrics {
    pub(crate) fn published(&self, events: u64) {
        self.published.fetch_add(events, Ordering::Relaxed);
    }

    /// `format`: the index of its slot.
    pub(crate) fn delivered(&self, format: usize, events: u64, bytes: usize) {
        let deliveries = &self.formats[format];
        deliveries.events.fetch_add(events, Ordering::Relaxed);
        deliveries.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn gap(&self, reason: GapReason) {
        self.gaps.count(&GapReason::ALL, &reason);
    }

    /// A subscription begins; [`RuleMetrics::unsubscribed`] ends it.
    pub(crate) fn subscribed(&self, format: usize) {
        self.formats[format].subscriptions.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn unsubscribed(&self, format: usize) {
        self.formats[format].subscriptions.fetch_sub(1, Ordering::Relaxed);
    }
}

type Source = Box<dyn Fn(&mut MetricsText) + Send + Sync>;

/// Why a connection that could listen ended, as the figures and the log name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CloseCause {
    /// The client left, or its connection broke.
    Client,
    /// All its channels have ended.
    Ended,
    /// The node drains.
    Drain,
    /// It did not end within the time of a drain, and was cut.
    DrainTimeout,
    /// It was too slow for a channel whose rule says close.
    TooSlow,
    /// Nothing was heard from it for `limits.idle`.
    Idle,
    /// A write made no progress for `limits.stalled_write`.
    Stalled,
    /// The server refused it: it may not listen, or it broke the protocol.
    Refused,
}

impl CloseCause {
    /// Every cause.
    pub const ALL: [CloseCause; 8] = [
        CloseCause::Client,
        CloseCause::Ended,
        CloseCause::Drain,
        CloseCause::DrainTimeout,
        CloseCause::TooSlow,
        CloseCause::Idle,
        CloseCause::Stalled,
        CloseCause::Refused,
    ];

    /// The cause as figures and the log have it.
    pub fn as_str(self) -> &'static str {
        match self {
            CloseCause::Client => "client",
            CloseCause::Ended => "ended",
            CloseCause::Drain => "drain",
            CloseCause::DrainTimeout => "drain-timeout",
            CloseCause::TooSlow => "too-slow",
            CloseCause::Idle => "idle",
            CloseCause::Stalled => "stalled",
            CloseCause::Refused => "refused",
        }
    }
}

/// A node's figures. Every [`Hub`](crate::Hub) has its own, so several hubs in one process do not
/// mix.
pub struct Metrics {
    formats: RwLock<Vec<(&'static str, FormatMetrics)>>,
    /// By pattern, each once, in the order of the rules; the last one is of channels that have none
    /// of these rules.
    by_rule: Vec<(Box<str>, Arc<RuleMetrics>)>,
    /// Where each rule's figures stand.
    indices: Vec<(Arc<Rule>, usize)>,
    publish_errors: Counters<{ Code::ALL.len() }>,
    refusals: Counters<{ Code::ALL.len() }>,
    slow_clients: Counters<{ SLOW_POLICIES.len() }>,
    closed: Counters<{ CloseCause::ALL.len() }>,
    pub(crate) publish_seconds: Durations,
    pub(crate) publish_to_write_seconds: Durations,
    pub(crate) handler_panics: Counter,
    pub(crate) connections_limit: Gauge,
    pub(crate) logs: Gauge,
    pub(crate) log_bytes: Gauge,
    pub(crate) log_events: Gauge,
    pub(crate) heals: Counter,
    pub(crate) replays: Counter,
    pub(crate) broker_up: Gauge,
    pub(crate) healing: Gauge,
    pub(crate) stats: BrokerStats,
    sources: Mutex<Vec<Source>>,
}

const SLOW_POLICIES: [SlowPolicy; 3] = [SlowPolicy::Refill, SlowPolicy::Skip, SlowPolicy::Close];

fn slow_label(policy: SlowPolicy) -> &'static str {
    match policy {
        SlowPolicy::Refill => "refill",
        SlowPolicy::Skip => "skip",
        SlowPolicy::Close => "close",
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new(BrokerStats::default(), &Rules::default())
    }
}

impl Metrics {
    /// The figures of a node with these rules, whose broker notes into `stats`.
    pub(crate) fn new(stats: BrokerStats, rules: &Rules) -> Self {
        let mut by_rule: Vec<(Box<str>, Arc<RuleMetrics>)> = Vec::new();
        let mut known: HashMap<&str, usize> = HashMap::new();
        let mut indices = Vec::new();
        for rule in rules.iter() {
            // Two rules may have one pattern, and a series stands in the text once.
            let index = *known.entry(rule.pattern.as_str()).or_insert_with(|| {
                by_rule.push((rule.pattern.as_str().into(), Arc::default()));
                by_rule.len() - 1
            });
            indices.push((rule.clone(), index));
        }
        by_rule.push(("".into(), Arc::default()));
        Self {
            formats: RwLock::default(),
            by_rule,
            indices,
            publish_errors: Counters::new(),
            refusals: Counters::new(),
            slow_clients: Counters::new(),
            closed: Counters::new(),
            publish_seconds: Durations::new(),
            publish_to_write_seconds: Durations::new(),
            handler_panics: Counter::default(),
            connections_limit: Gauge::default(),
            logs: Gauge::default(),
            log_bytes: Gauge::default(),
            log_events: Gauge::default(),
            heals: Counter::default(),
            replays: Counter::default(),
            broker_up: Gauge::default(),
            healing: Gauge::default(),
            stats,
            sources: Mutex::default(),
        }
    }

    /// Adds further figures, the process's for example. `source` is called for each text; it must
    /// not block.
    ///
    /// ```
    /// # use airwave_core::metrics::Metrics;
    /// let metrics = Metrics::default();
    /// metrics.add_source(|text| {
    ///     text.gauge("shop_open_carts", "Carts with something in them").add(&[], 3_u64);
    /// });
    /// assert!(metrics.encode().contains("\nshop_open_carts 3\n"));
    /// ```
    pub fn add_source(&self, source: impl Fn(&mut MetricsText) + Send + Sync + 'static) {
        self.sources
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Box::new(source));
    }

    /// All figures in the Prometheus text format, version 0.0.4.
    pub fn encode(&self) -> String {
        self.encode_as(TextFormat::Prometheus)
    }

    /// Writes all metrics in one of the text formats.
    pub fn encode_as(&self, format: TextFormat) -> String {
        let mut text = MetricsText {
            format,
            text: String::new(),
        };
        self.write_connections(&mut text);
        self.write_events(&mut text);
        self.write_node(&mut text);
        for source in &*self.sources.lock().unwrap_or_else(PoisonError::into_inner) {
            source(&mut text);
        }
        if format == TextFormat::OpenMetrics {
            text.text.push_str("# EOF\n");
        }
        text.text
    }

    fn write_connections(&self, text: &mut MetricsText) {
        let formats = self.formats.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut open = text.gauge("airwave_connections", "Connections that can listen, open now");
        for (name, figures) in &formats {
            open.add(&[("format", name)], figures.connections.get());
        }
        text.gauge(
            "airwave_connections_limit",
            "Connections that can listen which this node takes in at most",
        )
        .add(&[], self.connections_limit.get());
        let mut opened = text.counter("airwave_connections_opened_total", "Connections that could listen, opened");
        for (name, figures) in &formats {
            opened.add(&[("format", name)], figures.connections_total.get());
        }
        let mut closed = text.counter(
            "airwave_connections_closed_total",
            "Connections that could listen, closed, by cause",
        );
        for (index, cause) in CloseCause::ALL.iter().enumerate() {
            closed.add(&[("cause", cause.as_str())], self.closed.get(index));
        }
        let mut subscriptions = text.gauge("airwave_subscriptions", "Channels that connections listen to, each counted");
        self.each_delivery(&formats, |labels, deliveries| {
            subscriptions.add(labels, deliveries.subscriptions.load(Ordering::Relaxed));
        });
        let mut refusals = text.counter("airwave_refusals_total", "Requests and commands that were refused");
        for (index, code) in Code::ALL.iter().enumerate() {
            refusals.add(&[("code", code.as_str())], self.refusals.get(index));
        }
        text.counter(
            "airwave_handler_panics_total",
            "Panics of the application's handlers that were caught",
        )
        .add(&[], self.handler_panics.get());
    }

    fn write_events(&self, text: &mut MetricsText) {
        let formats = self.formats.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut published = text.counter(
            "airwave_events_published_total",
            "Events that the broker acknowledged to this node",
        );
        for (rule, figures) in self.rules() {
            published.add(&[("rule", rule)], figures.published.load(Ordering::Relaxed));
        }
        let mut errors = text.counter("airwave_publish_errors_total", "Publishes that were not acknowledged");
        for (index, code) in Code::ALL.iter().enumerate() {
            errors.add(&[("code", code.as_str())], self.publish_errors.get(index));
        }
        self.publish_seconds.write(
            text,
            "airwave_publish_seconds",
            "Time that the broker took to acknowledge a publish",
        );
        let mut delivered = text.counter("airwave_events_delivered_total", "Events handed to sockets");
        self.each_delivery(&formats, |labels, deliveries| {
            delivered.add(labels, deliveries.events.load(Ordering::Relaxed));
        });
        let mut bytes = text.counter("airwave_delivered_bytes_total", "Bytes of events handed to sockets");
        self.each_delivery(&formats, |labels, deliveries| {
            bytes.add(labels, deliveries.bytes.load(Ordering::Relaxed));
        });
        let mut encodes = text.counter("airwave_encodes_total", "Events turned into bytes");
        for (name, figures) in &formats {
            encodes.add(&[("format", name)], figures.encodes.get());
        }
        self.publish_to_write_seconds.write(
            text,
            "airwave_publish_to_write_seconds",
            "From an event's arrival in this node's log until it was handed to a socket (sampled)",
        );
        let mut gaps = text.counter("airwave_gaps_total", "Losses of events that were announced to a listener");
        for (rule, figures) in self.rules() {
            for (index, reason) in GapReason::ALL.iter().enumerate() {
                gaps.add(&[("rule", rule), ("reason", reason.as_str())], figures.gaps.get(index));
            }
        }
        let mut slow = text.counter("airwave_slow_clients_total", "Listeners that fell off a ring");
        for (index, policy) in SLOW_POLICIES.iter().enumerate() {
            slow.add(&[("policy", slow_label(*policy))], self.slow_clients.get(index));
        }
    }

    fn write_node(&self, text: &mut MetricsText) {
        text.gauge("airwave_logs", "Channels open on this node")
            .add(&[], self.logs.get());
        text.gauge(
            "airwave_log_bytes",
            "Memory that the rings of the open channels hold, estimated",
        )
        .add(&[], self.log_bytes.get());
        text.gauge("airwave_log_events", "Events that the rings of the open channels hold")
            .add(&[], self.log_events.get());
        text.counter(
            "airwave_heals_total",
            "Times that a log was healed after a broken chain or feed",
        )
        .add(&[], self.heals.get());
        text.gauge("airwave_healing", "Channels that could not be healed yet and are tried again")
            .add(&[], self.healing.get());
        text.counter("airwave_broker_replays_total", "Pages of history asked of the broker")
            .add(&[], self.replays.get());
        text.gauge("airwave_broker_up", "1 while the broker answers")
            .add(&[], self.broker_up.get());
        text.counter(
            "airwave_broker_reconnects_total",
            "Times that a connection to the broker was lost and made again",
        )
        .add(&[], self.stats.reconnects());
        if self.stats.can_be_silent() {
            text.gauge(
                "airwave_broker_silent_seconds",
                "Time since the broker delivered anything to this node, its own probes included",
            )
            .add(&[], self.stats.silent_for().as_secs_f64());
        }
    }

    /// The rules that are told of: all but the last, which stands for none of them.
    fn rules(&self) -> impl Iterator<Item = (&str, &RuleMetrics)> {
        let known = self.by_rule.len() - 1;
        self.by_rule[..known].iter().map(|(rule, figures)| (&**rule, &**figures))
    }

    fn each_delivery(&self, formats: &[(&'static str, FormatMetrics)], mut write: impl FnMut(&[(&str, &str)], &Deliveries)) {
        for (rule, figures) in self.rules() {
            for ((format, _), deliveries) in formats.iter().zip(&figures.formats) {
                write(&[("rule", rule), ("format", format)], deliveries);
            }
        }
    }

    /// Counts a refusal that a client was told.
    pub fn refused(&self, code: Code) {
        self.refusals.count(&Code::ALL, &code);
    }

    pub(crate) fn slow(&self, policy: SlowPolicy) {
        self.slow_clients.count(&SLOW_POLICIES, &policy);
    }

    pub(crate) fn publish_error(&self, code: Code) {
        self.publish_errors.count(&Code::ALL, &code);
    }

    pub(crate) fn closed(&self, cause: CloseCause) {
        self.closed.count(&CloseCause::ALL, &cause);
    }

    /// Where the figures of a rule stand, for [`Metrics::by_rule`].
    pub(crate) fn index_of(&self, rule: &Arc<Rule>) -> usize {
        let found = self.indices.iter().find(|(known, _)| Arc::ptr_eq(known, rule));
        found.map_or(self.by_rule.len() - 1, |(_, index)| *index)
    }

    /// The figures of a rule.
    pub(crate) fn by_rule(&self, index: usize) -> &Arc<RuleMetrics> {
        &self.by_rule[index].1
    }

    /// The figures of a format. Formats are registered in the order of their slots.
    pub(crate) fn format(&self, name: &'static str) -> FormatMetrics {
        let figures = FormatMetrics::default();
        self.formats
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .push((name, figures.clone()));
        figures
    }
}

/// The text formats in which figures are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TextFormat {
    /// Prometheus's own, version 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl TextFormat {
    /// The `Content-Type` of a text in this format.
    pub fn content_type(self) -> &'static str {
        match self {
            TextFormat::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            TextFormat::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Writes families of figures, for [`Metrics::add_source`].
#[derive(Debug)]
pub struct MetricsText {
    format: TextFormat,
    text: String,
}

/// Adds the series of one family.
#[derive(Debug)]
pub struct Family<'a> {
    text: &'a mut MetricsText,
    name: String,
}

impl MetricsText {
    /// A family of numbers that only grow. `name` ends with `_total`; `help` is one line.
    pub fn counter(&mut self, name: &str, help: &str) -> Family<'_> {
        debug_assert!(name.ends_with("_total"), "{name}");
        let family = match self.format {
            // The suffix belongs to the series there, not to the family.
            TextFormat::OpenMetrics => name.strip_suffix("_total").unwrap_or(name),
            TextFormat::Prometheus => name,
        };
        self.head(family, "counter", help);
        self.family(name)
    }

    /// A family of numbers that go up and down. `help` is one line.
    pub fn gauge(&mut self, name: &str, help: &str) -> Family<'_> {
        self.head(name, "gauge", help);
        self.family(name)
    }

    /// A family whose labels are what it tells, with the value 1. `name` ends with `_info`; `help`
    /// is one line.
    pub fn info(&mut self, name: &str, help: &str) -> Family<'_> {
        debug_assert!(name.ends_with("_info"), "{name}");
        match self.format {
            TextFormat::OpenMetrics => self.head(name.strip_suffix("_info").unwrap_or(name), "info", help),
            TextFormat::Prometheus => self.head(name, "gauge", help),
        }
        self.family(name)
    }

    fn family(&mut self, name: &str) -> Family<'_> {
        Family {
            text: self,
            name: name.to_owned(),
        }
    }

    fn head(&mut self, family: &str, kind: &str, help: &str) {
        debug_assert!(!help.contains(['\n', '\\', '"']), "{help}");
        // Writing to a String cannot fail.
        let _ = write!(self.text, "# HELP {family} {help}\n# TYPE {family} {kind}\n");
    }

    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: &dyn Display) {
        self.text.push_str(name);
        for (index, (label, value)) in labels.iter().enumerate() {
            let begin = if index == 0 { '{' } else { ',' };
            let _ = write!(self.text, "{begin}{label}=\"{}\"", Escaped(value));
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.text, "{end} {value}");
    }
}

impl Family<'_> {
    /// Adds the series with these labels.
    pub fn add(&mut self, labels: &[(&str, &str)], value: impl Display) -> &mut Self {
        self.text.line(&self.name, labels, &value);
        self
    }
}

/// The value of a label, as it stands between quotes.
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
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

#[cfg(all(test, not(loom)))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn rules(patterns: &[&str]) -> Rules {
        Rules::new(patterns.iter().map(|text| Rule::new(text.parse().unwrap(), vec![])))
    }

    #[test]
    fn the_two_formats_name_families_each_in_its_way() {
        let metrics = Metrics::new(BrokerStats::default(), &rules(&["a"]));
        metrics.add_source(|text| {
            text.info("shop_build_info", "The version").add(&[("version", "1\n\"\\")], 1);
        });
        let plain = metrics.encode();
        assert!(
            plain.contains("# TYPE airwave_gaps_total counter\nairwave_gaps_total{rule=\"a\",reason=\"unknown-position\"} 0\n"),
            "{plain}"
        );
        assert!(plain.contains("# TYPE shop_build_info gauge\nshop_build_info{version=\"1\\n\\\"\\\\\"} 1\n"));
        assert!(!plain.contains("# EOF"));
        let open = metrics.encode_as(TextFormat::OpenMetrics);
        assert!(
            open.contains("# TYPE airwave_gaps counter\nairwave_gaps_total{rule=\"a\",reason=\"unknown-position\"} 0\n"),
            "{open}"
        );
        assert!(open.contains("# TYPE shop_build info\nshop_build_info{"));
        assert!(open.ends_with("\n# EOF\n"));
        let series = |text: &str| {
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            lines
                .filter(|line| !line.contains("silent"))
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(series(&plain), series(&open));
    }

    #[test]
    fn rules_with_one_pattern_are_one_series() {
        let rules = rules(&["a", "b/{c}", "a"]);
        let metrics = Metrics::new(BrokerStats::default(), &rules);
        metrics.format("sse");
        for rule in rules.iter() {
            let figures = metrics.by_rule(metrics.index_of(rule));
            figures.published(2);
            figures.delivered(0, 3, 10);
            figures.subscribed(0);
        }
        let foreign = Arc::new(Rule::new("x".parse().unwrap(), vec![]));
        metrics.by_rule(metrics.index_of(&foreign)).published(100);
        let text = metrics.encode();
        for line in [
            "airwave_events_published_total{rule=\"a\"} 4",
            "airwave_events_published_total{rule=\"b/{c}\"} 2",
            "airwave_events_delivered_total{rule=\"a\",format=\"sse\"} 6",
            "airwave_delivered_bytes_total{rule=\"b/{c}\",format=\"sse\"} 10",
            "airwave_subscriptions{rule=\"a\",format=\"sse\"} 2",
        ] {
            assert_eq!(text.lines().filter(|known| *known == line).count(), 1, "{line} in {text}");
        }
        assert!(!text.contains("rule=\"\""));
    }

    #[test]
    fn durations_are_counted_in_the_bucket_that_they_fit_in() {
        let durations = Durations::new();
        for micros in [0, 500, 501, 20_000_000] {
            durations.observe(Duration::from_micros(micros));
        }
        let mut text = MetricsText {
            format: TextFormat::Prometheus,
            text: String::new(),
        };
        durations.write(&mut text, "x_seconds", "X");
        let text = text.text;
        for line in [
            "x_seconds_bucket{le=\"0.0005\"} 2",
            "x_seconds_bucket{le=\"0.001\"} 3",
            "x_seconds_bucket{le=\"16.384\"} 3",
            "x_seconds_bucket{le=\"+Inf\"} 4",
            "x_seconds_sum 20.001001",
            "x_seconds_count 4",
        ] {
            assert!(text.lines().any(|known| known == line), "{line} in {text}");
        }
    }

    #[test]
    fn silence_is_told_only_where_there_is_a_broker_to_be_silent() {
        let text = |stats| Metrics::new(stats, &Rules::default()).encode();
        assert!(text(BrokerStats::default()).contains("airwave_broker_silent_seconds "));
        assert!(!text(BrokerStats::in_process()).contains("airwave_broker_silent_seconds"));
    }
}
