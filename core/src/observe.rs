//! This module counts what happens on a node. The counters are plain atomics, which are read when
//! an exporter asks.
//!
//! [`Metrics::read`] gives plain values, which know no text format. An exporter above this crate
//! turns them into the Prometheus text or hands them to another system. docs/reference/metrics.md
//! lists the names. No label ever holds a value that a client chose.

mod snapshot;

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use crate::broker::BrokerStats;
use crate::format::{GapReason, MAX_FORMATS};
use crate::refusal::Code;
use crate::rule::{Rule, Rules, SlowPolicy};

pub use snapshot::{Family, Histogram, Kind, Sample, Snapshot, Value};

/// A counter only grows. Its clones count together.
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

/// A gauge goes up and down. Its clones count together.
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

/// This type has a counter for each value of a small set.
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

/// Counts the buckets of durations. The first ends at half a millisecond, each of the others at
/// twice the one before, the last at about 16 seconds.
const BUCKETS: usize = 16;
const FIRST_BUCKET: Duration = Duration::from_micros(500);

/// These counters say, by buckets, how long something took.
#[derive(Debug)]
pub(crate) struct Durations {
    /// Counts the durations of each bucket. The last entry counts those longer than all buckets.
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

    fn read(&self) -> Histogram {
        let seconds = |index: usize| (FIRST_BUCKET * (1 << index)).as_secs_f64();
        let counts = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed));
        let sum = Duration::from_micros(self.microseconds.load(Ordering::Relaxed));
        Histogram::new((0..BUCKETS).map(seconds).collect(), counts.collect(), sum.as_secs_f64())
    }
}

/// These counters belong to one format. The format's slot keeps a clone, so that the hot path looks
/// nothing up.
#[derive(Debug, Clone, Default)]
pub(crate) struct FormatMetrics {
    pub(crate) connections: Gauge,
    pub(crate) connections_total: Counter,
    pub(crate) encodes: Counter,
}

/// These counters belong to all channels of one rule. A channel's log holds them, so that a
/// delivery looks nothing up.
pub(crate) struct RuleMetrics {
    published: AtomicU64,
    gaps: Counters<{ GapReason::ALL.len() }>,
    formats: [Deliveries; MAX_FORMATS],
}

/// These counters say what one rule's channels delivered in one format. They fill one cache line,
/// which each delivery writes to.
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

    /// Counts events and bytes that were delivered. `format` is the index of its slot.
    pub(crate) fn delivered(&self, format: usize, events: u64, bytes: usize) {
        let deliveries = &self.formats[format];
        deliveries.events.fetch_add(events, Ordering::Relaxed);
        deliveries.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn gap(&self, reason: GapReason) {
        self.gaps.count(&GapReason::ALL, &reason);
    }

    /// Counts a subscription that begins; [`RuleMetrics::unsubscribed`] ends it.
    pub(crate) fn subscribed(&self, format: usize) {
        self.formats[format].subscriptions.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn unsubscribed(&self, format: usize) {
        self.formats[format].subscriptions.fetch_sub(1, Ordering::Relaxed);
    }
}

type Source = Box<dyn Fn(&mut Snapshot) + Send + Sync>;

/// A cause says why a connection that could listen ended, as metrics and the log name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CloseCause {
    /// The client left, or its connection broke.
    Client,
    /// All channels of the connection have ended.
    Ended,
    /// The node drains.
    Drain,
    /// The connection did not end within the time of a drain, and the node cut it.
    DrainTimeout,
    /// The client was too slow for a channel whose rule says close.
    TooSlow,
    /// The node received nothing from the client for `limits.idle`.
    Idle,
    /// A write made no progress for `limits.stalled_write`.
    Stalled,
    /// The server refused the client: it may not listen, or it broke the protocol.
    Refused,
}

impl CloseCause {
    /// Lists every cause.
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

    /// Returns the cause as metrics and the log name it.
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

/// This type holds the counters of one node. Every [`Hub`](crate::Hub) has its own, so several hubs
/// in one process do not mix.
pub struct Metrics {
    formats: RwLock<Vec<(&'static str, FormatMetrics)>>,
    /// Holds counters by pattern, each once, in the order of the rules. The last one counts for
    /// channels that have none of these rules.
    by_rule: Vec<(Box<str>, Arc<RuleMetrics>)>,
    /// Holds the index of each rule's counters in `by_rule`.
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
    /// Returns the metrics of a node with these rules, whose broker notes into `stats`.
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

    /// Adds metrics of the application, or of the process. Each read calls `source`, which must
    /// not block.
    ///
    /// # Examples
    ///
    /// ```
    /// # use airwave_core::observe::Metrics;
    /// let metrics = Metrics::default();
    /// metrics.add_source(|snapshot| {
    ///     snapshot.gauge("shop_open_carts", "Carts that hold something").add(&[], 3_u64);
    /// });
    /// assert_eq!(metrics.read().total("shop_open_carts", &[]), Some(3.0));
    /// ```
    pub fn add_source(&self, source: impl Fn(&mut Snapshot) + Send + Sync + 'static) {
        self.sources
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Box::new(source));
    }

    /// Returns the present values of all metrics, those of the added sources last.
    ///
    /// A read costs time and memory in proportion to rules and formats. It stops no counter, so
    /// two values may stand a moment apart.
    pub fn read(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        self.read_connections(&mut snapshot);
        self.read_events(&mut snapshot);
        self.read_node(&mut snapshot);
        for source in &*self.sources.lock().unwrap_or_else(PoisonError::into_inner) {
            source(&mut snapshot);
        }
        snapshot
    }

    fn read_connections(&self, snapshot: &mut Snapshot) {
        let formats = self.formats.read().unwrap_or_else(PoisonError::into_inner).clone();
        let open = snapshot.gauge("airwave_connections", "Connections that can listen, open now");
        for (name, counters) in &formats {
            open.add(&[("format", name)], counters.connections.get());
        }
        snapshot
            .gauge(
                "airwave_connections_limit",
                "Connections that can listen which this node takes in at most",
            )
            .add(&[], self.connections_limit.get());
        let opened = snapshot.counter("airwave_connections_opened_total", "Connections that could listen, opened");
        for (name, counters) in &formats {
            opened.add(&[("format", name)], counters.connections_total.get());
        }
        let closed = snapshot.counter(
            "airwave_connections_closed_total",
            "Connections that could listen, closed, by cause",
        );
        for (index, cause) in CloseCause::ALL.iter().enumerate() {
            closed.add(&[("cause", cause.as_str())], self.closed.get(index));
        }
        let subscriptions = snapshot.gauge("airwave_subscriptions", "Channels that connections listen to, each counted");
        self.each_delivery(&formats, |labels, deliveries| {
            subscriptions.add(labels, deliveries.subscriptions.load(Ordering::Relaxed));
        });
        let refusals = snapshot.counter("airwave_refusals_total", "Requests and commands that were refused");
        for (index, code) in Code::ALL.iter().enumerate() {
            refusals.add(&[("code", code.as_str())], self.refusals.get(index));
        }
        snapshot
            .counter(
                "airwave_handler_panics_total",
                "Panics of the application's handlers that were caught",
            )
            .add(&[], self.handler_panics.get());
    }

    fn read_events(&self, snapshot: &mut Snapshot) {
        let formats = self.formats.read().unwrap_or_else(PoisonError::into_inner).clone();
        let published = snapshot.counter(
            "airwave_events_published_total",
            "Events that the broker acknowledged to this node",
        );
        for (rule, counters) in self.rules() {
            published.add(&[("rule", rule)], counters.published.load(Ordering::Relaxed));
        }
        let errors = snapshot.counter("airwave_publish_errors_total", "Publishes that were not acknowledged");
        for (index, code) in Code::ALL.iter().enumerate() {
            errors.add(&[("code", code.as_str())], self.publish_errors.get(index));
        }
        snapshot
            .histogram(
                "airwave_publish_seconds",
                "Time that the broker took to acknowledge a publish",
            )
            .add(&[], self.publish_seconds.read());
        let delivered = snapshot.counter("airwave_events_delivered_total", "Events handed to sockets");
        self.each_delivery(&formats, |labels, deliveries| {
            delivered.add(labels, deliveries.events.load(Ordering::Relaxed));
        });
        let bytes = snapshot.counter("airwave_delivered_bytes_total", "Bytes of events handed to sockets");
        self.each_delivery(&formats, |labels, deliveries| {
            bytes.add(labels, deliveries.bytes.load(Ordering::Relaxed));
        });
        let encodes = snapshot.counter("airwave_encodes_total", "Events turned into bytes");
        for (name, counters) in &formats {
            encodes.add(&[("format", name)], counters.encodes.get());
        }
        snapshot
            .histogram(
                "airwave_publish_to_write_seconds",
                "From an event's arrival in this node's log until it was handed to a socket (sampled)",
            )
            .add(&[], self.publish_to_write_seconds.read());
        let gaps = snapshot.counter("airwave_gaps_total", "Losses of events that were announced to a listener");
        for (rule, counters) in self.rules() {
            for (index, reason) in GapReason::ALL.iter().enumerate() {
                gaps.add(&[("rule", rule), ("reason", reason.as_str())], counters.gaps.get(index));
            }
        }
        let slow = snapshot.counter("airwave_slow_clients_total", "Listeners that fell off a ring");
        for (index, policy) in SLOW_POLICIES.iter().enumerate() {
            slow.add(&[("policy", slow_label(*policy))], self.slow_clients.get(index));
        }
    }

    fn read_node(&self, snapshot: &mut Snapshot) {
        snapshot
            .gauge("airwave_logs", "Channels open on this node")
            .add(&[], self.logs.get());
        snapshot
            .gauge(
                "airwave_log_bytes",
                "Memory that the rings of the open channels hold, estimated",
            )
            .add(&[], self.log_bytes.get());
        snapshot
            .gauge("airwave_log_events", "Events that the rings of the open channels hold")
            .add(&[], self.log_events.get());
        snapshot
            .counter(
                "airwave_heals_total",
                "Times that a log was healed after a broken chain or feed",
            )
            .add(&[], self.heals.get());
        snapshot
            .gauge("airwave_healing", "Channels that could not be healed yet and are tried again")
            .add(&[], self.healing.get());
        snapshot
            .counter("airwave_broker_replays_total", "Pages of history asked of the broker")
            .add(&[], self.replays.get());
        snapshot
            .gauge("airwave_broker_up", "1 while the broker answers")
            .add(&[], self.broker_up.get());
        snapshot
            .counter(
                "airwave_broker_reconnects_total",
                "Times that a connection to the broker was lost and made again",
            )
            .add(&[], self.stats.reconnects());
        if self.stats.can_be_silent() {
            snapshot
                .gauge(
                    "airwave_broker_silent_seconds",
                    "Time since the broker delivered anything to this node, its own probes included",
                )
                .add(&[], self.stats.silent_for().as_secs_f64());
        }
    }

    /// Returns the rules that are reported: all but the last, which stands for none of them.
    fn rules(&self) -> impl Iterator<Item = (&str, &RuleMetrics)> {
        let known = self.by_rule.len() - 1;
        self.by_rule[..known].iter().map(|(rule, counters)| (&**rule, &**counters))
    }

    fn each_delivery(&self, formats: &[(&'static str, FormatMetrics)], mut write: impl FnMut(&[(&str, &str)], &Deliveries)) {
        for (rule, counters) in self.rules() {
            for ((format, _), deliveries) in formats.iter().zip(&counters.formats) {
                write(&[("rule", rule), ("format", format)], deliveries);
            }
        }
    }

    /// Counts a refusal that a client received.
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

    /// Returns the index of a rule's counters, for [`Metrics::by_rule`].
    pub(crate) fn index_of(&self, rule: &Arc<Rule>) -> usize {
        let found = self.indices.iter().find(|(known, _)| Arc::ptr_eq(known, rule));
        found.map_or(self.by_rule.len() - 1, |(_, index)| *index)
    }

    /// Returns the counters of a rule.
    pub(crate) fn by_rule(&self, index: usize) -> &Arc<RuleMetrics> {
        &self.by_rule[index].1
    }

    /// Returns the counters of a format. Formats are registered in the order of their slots.
    pub(crate) fn format(&self, name: &'static str) -> FormatMetrics {
        let counters = FormatMetrics::default();
        self.formats
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .push((name, counters.clone()));
        counters
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
    fn rules_with_one_pattern_are_one_series() {
        let rules = rules(&["a", "b/{c}", "a"]);
        let metrics = Metrics::new(BrokerStats::default(), &rules);
        metrics.format("sse");
        for rule in rules.iter() {
            let counters = metrics.by_rule(metrics.index_of(rule));
            counters.published(2);
            counters.delivered(0, 3, 10);
            counters.subscribed(0);
        }
        let foreign = Arc::new(Rule::new("x".parse().unwrap(), vec![]));
        metrics.by_rule(metrics.index_of(&foreign)).published(100);
        let snapshot = metrics.read();
        let of = |name: &str, labels: &[(&str, &str)]| {
            let family = snapshot.families().iter().find(|family| family.name == name).unwrap();
            let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
            let labels: Vec<_> = labels.iter().map(owned).collect();
            let fitting = family.samples.iter().filter(|sample| sample.labels == labels);
            fitting.map(|sample| sample.value.clone()).collect::<Vec<_>>()
        };
        let both = |rule| [("rule", rule), ("format", "sse")];
        assert_eq!(of("airwave_events_published_total", &[("rule", "a")]), [4_u64.into()]);
        assert_eq!(of("airwave_events_published_total", &[("rule", "b/{c}")]), [2_u64.into()]);
        assert_eq!(of("airwave_events_delivered_total", &both("a")), [6_u64.into()]);
        assert_eq!(of("airwave_delivered_bytes_total", &both("b/{c}")), [10_u64.into()]);
        assert_eq!(of("airwave_subscriptions", &both("a")), [2_i64.into()]);
        let samples = snapshot.families().iter().flat_map(|family| &family.samples);
        let mut labels = samples.flat_map(|sample| &sample.labels);
        assert!(labels.all(|(name, value)| name != "rule" || !value.is_empty()));
    }

    #[test]
    fn durations_are_counted_in_the_bucket_that_they_fit_in() {
        let durations = Durations::new();
        for micros in [0, 500, 501, 20_000_000] {
            durations.observe(Duration::from_micros(micros));
        }
        let read = durations.read();
        assert_eq!(read.bounds.len(), 16);
        assert_eq!((read.bounds[0], read.bounds[1], read.bounds[15]), (0.0005, 0.001, 16.384));
        let mut expected = vec![0; 17];
        (expected[0], expected[1], expected[16]) = (2, 1, 1);
        assert_eq!(read.counts, expected);
        assert_eq!((read.count(), read.sum), (4, 20.001001));
    }

    #[test]
    fn silence_is_reported_only_of_a_broker_that_can_be_silent() {
        let silence = |stats| {
            let snapshot = Metrics::new(stats, &Rules::default()).read();
            snapshot.total("airwave_broker_silent_seconds", &[])
        };
        assert!(silence(BrokerStats::default()).is_some());
        assert!(silence(BrokerStats::in_process()).is_none());
    }
}
