//! What a node counts. Names and labels are listed in docs/deploying.md; no label ever holds what a client chose.

use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::broker::Pulse;
use crate::refusal::Code;
use crate::rule::SlowPolicy;
use crate::wire::GapReason;

/// One label of a bounded set.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Label {
    kind: &'static str,
}

/// A node's figures. Every [`Hub`](crate::Hub) has its own, so several hubs in one process do not mix.
pub struct Metrics {
    registry: Mutex<Registry>,
    pub(crate) connections: Family<Label, Gauge>,
    pub(crate) connections_total: Family<Label, Counter>,
    pub(crate) published: Counter,
    pub(crate) publish_errors: Family<Label, Counter>,
    pub(crate) publish_seconds: Histogram,
    pub(crate) delivered: Family<Label, Counter>,
    pub(crate) delivered_bytes: Family<Label, Counter>,
    pub(crate) encodes: Family<Label, Counter>,
    pub(crate) publish_to_write_seconds: Histogram,
    pub(crate) gaps: Family<Label, Counter>,
    pub(crate) slow_clients: Family<Label, Counter>,
    pub(crate) refusals: Family<Label, Counter>,
    pub(crate) handler_panics: Counter,
    pub(crate) logs: Gauge,
    pub(crate) log_bytes: Gauge,
    pub(crate) log_events: Gauge,
    pub(crate) heals: Counter,
    pub(crate) replays: Counter,
    pub(crate) broker_up: Gauge,
    pub(crate) healing: Gauge,
    pub(crate) pulse: Pulse,
    silent: Gauge<f64, AtomicU64>,
}

/// The handles of one wire, cached so that the hot path looks nothing up.
#[derive(Clone)]
pub(crate) struct WireMetrics {
    pub(crate) connections: Gauge,
    pub(crate) connections_total: Counter,
    pub(crate) delivered: Counter,
    pub(crate) delivered_bytes: Counter,
    pub(crate) encodes: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new(Pulse::default())
    }
}

impl Metrics {
    /// The figures of a node whose broker notes into `pulse`.
    pub(crate) fn new(pulse: Pulse) -> Self {
        let mut registry = Registry::with_prefix("airwave");
        // Half a millisecond to about 16 seconds.
        let latency = || Histogram::new((0..16).map(|i| 0.000_5 * f64::from(1 << i)));
        let metrics = Self {
            connections: Family::default(),
            connections_total: Family::default(),
            published: Counter::default(),
            publish_errors: Family::default(),
            publish_seconds: latency(),
            delivered: Family::default(),
            delivered_bytes: Family::default(),
            encodes: Family::default(),
            publish_to_write_seconds: latency(),
            gaps: Family::default(),
            slow_clients: Family::default(),
            refusals: Family::default(),
            handler_panics: Counter::default(),
            logs: Gauge::default(),
            log_bytes: Gauge::default(),
            log_events: Gauge::default(),
            heals: Counter::default(),
            replays: Counter::default(),
            broker_up: Gauge::default(),
            healing: Gauge::default(),
            pulse,
            silent: Gauge::default(),
            registry: Mutex::default(),
        };
        let r = &mut registry;
        r.register("connections", "Sessions open now, by wire", metrics.connections.clone());
        r.register(
            "connections_opened",
            "Sessions opened, by wire",
            metrics.connections_total.clone(),
        );
        r.register(
            "events_published",
            "Events that the broker acknowledged to this node",
            metrics.published.clone(),
        );
        r.register(
            "publish_errors",
            "Publishes that were not acknowledged, by error code",
            metrics.publish_errors.clone(),
        );
        r.register(
            "publish_seconds",
            "Time the broker took to acknowledge",
            metrics.publish_seconds.clone(),
        );
        r.register(
            "events_delivered",
            "Events handed to sockets, by wire",
            metrics.delivered.clone(),
        );
        r.register(
            "delivered_bytes",
            "Bytes of events handed to sockets, by wire",
            metrics.delivered_bytes.clone(),
        );
        r.register("encodes", "Events turned into bytes, by wire", metrics.encodes.clone());
        r.register(
            "publish_to_write_seconds",
            "From an event's arrival in this node's log until it was handed to a socket (sampled)",
            metrics.publish_to_write_seconds.clone(),
        );
        r.register("gaps", "Gaps announced to listeners, by reason", metrics.gaps.clone());
        r.register(
            "slow_clients",
            "Listeners that fell off a ring, by policy",
            metrics.slow_clients.clone(),
        );
        r.register(
            "refusals",
            "Requests and commands refused, by error code",
            metrics.refusals.clone(),
        );
        r.register(
            "handler_panics",
            "Panics of the application's handlers that were caught",
            metrics.handler_panics.clone(),
        );
        r.register("logs", "Channels open on this node", metrics.logs.clone());
        r.register(
            "log_bytes",
            "Memory that the open channels' rings hold, estimated",
            metrics.log_bytes.clone(),
        );
        r.register(
            "log_events",
            "Events that the open channels' rings hold",
            metrics.log_events.clone(),
        );
        r.register(
            "heals",
            "Times that a log was healed after a broken chain or feed",
            metrics.heals.clone(),
        );
        r.register("broker_replays", "History reads asked of the broker", metrics.replays.clone());
        r.register("broker_up", "1 while the broker answers", metrics.broker_up.clone());
        r.register(
            "healing",
            "Channels that could not be healed yet and are tried again",
            metrics.healing.clone(),
        );
        r.register(
            "broker_reconnects",
            "Times that a connection to the broker was lost and made again",
            metrics.pulse.counter(),
        );
        r.register(
            "broker_silent_seconds",
            "Time since the broker delivered anything to this node, its own probes included",
            metrics.silent.clone(),
        );
        // All series exist from the start, so that a rate never begins with a hole.
        for reason in GapReason::ALL {
            drop(metrics.gaps.get_or_create(&Label { kind: reason.as_str() }));
        }
        for policy in [SlowPolicy::Refill, SlowPolicy::Skip, SlowPolicy::Close] {
            drop(metrics.slow_clients.get_or_create(&Label {
                kind: slow_label(policy),
            }));
        }
        for code in Code::ALL {
            drop(metrics.refusals.get_or_create(&Label { kind: code.as_str() }));
        }
        Self {
            registry: Mutex::new(registry),
            ..metrics
        }
    }
}

fn slow_label(policy: SlowPolicy) -> &'static str {
    match policy {
        SlowPolicy::Refill => "refill",
        SlowPolicy::Skip => "skip",
        SlowPolicy::Close => "close",
    }
}

impl Metrics {
    /// Registers further figures, a broker's for example.
    pub fn register(&self, add: impl FnOnce(&mut Registry)) {
        add(&mut self.registry.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// All figures in the Prometheus text format (OpenMetrics 1.0).
    pub fn encode(&self) -> String {
        self.silent.set(self.pulse.silent_for().as_secs_f64());
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.registry.lock().unwrap_or_else(PoisonError::into_inner));
        text
    }

    /// Counts a refusal that a client was told.
    pub fn refused(&self, code: Code) {
        self.refusals.get_or_create(&Label { kind: code.as_str() }).inc();
    }

    pub(crate) fn gap(&self, reason: GapReason) {
        self.gaps.get_or_create(&Label { kind: reason.as_str() }).inc();
    }

    pub(crate) fn slow(&self, policy: SlowPolicy) {
        self.slow_clients
            .get_or_create(&Label {
                kind: slow_label(policy),
            })
            .inc();
    }

    pub(crate) fn publish_error(&self, code: Code) {
        self.publish_errors.get_or_create(&Label { kind: code.as_str() }).inc();
    }

    pub(crate) fn wire(&self, name: &'static str) -> WireMetrics {
        let label = Label { kind: name };
        WireMetrics {
            connections: self.connections.get_or_create(&label).clone(),
            connections_total: self.connections_total.get_or_create(&label).clone(),
            delivered: self.delivered.get_or_create(&label).clone(),
            delivered_bytes: self.delivered_bytes.get_or_create(&label).clone(),
            encodes: self.encodes.get_or_create(&label).clone(),
        }
    }
}
