use std::fmt::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use airwave_core::Hub;
use airwave_core::session::{After, CloseCause};
use airwave_core::warnings::Warning;
use tokio::time::{Instant, sleep};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::support::*;

/// Keeps all lines at one level.
#[derive(Clone)]
struct Kept(Level, Arc<Mutex<Vec<String>>>);

impl Kept {
    fn at(level: Level) -> Self {
        Self(level, Arc::default())
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.1.lock().unwrap())
    }
}

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        write!(self.0, "{}={value:?} ", field.name()).unwrap();
    }
}

impl Subscriber for Kept {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == self.0
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        self.1.lock().unwrap().push(text.0);
    }
}

fn closed(hub: &Hub, cause: CloseCause) -> f64 {
    metric(hub, "airwave_connections_closed_total", &[("cause", cause.as_str())])
}

/// However the broker hangs, the answer is there at once, and it is right a moment later.
#[tokio::test(start_paused = true)]
async fn readiness_is_what_the_node_knows_of_its_broker() {
    let backbone = Backbone::new();
    let node = backbone.node();
    let hub = hub(&node, rule());
    assert_eq!(hub.ready().await, Ok(()), "the first answer is waited for");
    for hangs in [true, false, true] {
        node.hang(hangs);
        node.unavailable(!hangs);
        let since = Instant::now();
        assert_eq!(hub.ready().await, Ok(()), "the node does not know yet");
        assert_eq!(since.elapsed(), Duration::ZERO);
        sleep(Duration::from_secs(4)).await;
        let since = Instant::now();
        assert!(hub.ready().await.is_err());
        assert_eq!(since.elapsed(), Duration::ZERO);
        assert_eq!(metric(&hub, "airwave_broker_up", &[]), 0.0);
        node.hang(false);
        node.unavailable(false);
        sleep(Duration::from_secs(4)).await;
        assert_eq!(hub.ready().await, Ok(()));
        assert_eq!(metric(&hub, "airwave_broker_up", &[]), 1.0);
    }
}

#[tokio::test(start_paused = true)]
async fn every_close_is_counted_by_its_cause_and_told() {
    let lines = Kept::at(Level::DEBUG);
    let _guard = tracing::subscriber::set_default(lines.clone());
    let backbone = Backbone::new();
    let hub = hub(&backbone.node(), rule());
    let format = hub.register_format(Lines::plain("a")).unwrap();
    let mut expected = [0.0; CloseCause::ALL.len()];
    for cause in [
        CloseCause::Client,
        CloseCause::Refused,
        CloseCause::Stalled,
        CloseCause::Ended,
        CloseCause::Drain,
    ] {
        let mut listener = Listener::at(&hub, &format, "c", After::Nothing).await;
        listener.confirmation().await;
        match cause {
            CloseCause::Stalled => {
                listener.session.stalled(true);
                std::future::poll_fn(|cx| listener.session.poll_cut(cx)).await;
            }
            CloseCause::Ended | CloseCause::Refused => listener.session.ends_by(cause),
            CloseCause::Drain => {
                hub.drain();
                listener.rest().await;
            }
            _ => {}
        }
        drop(listener);
        expected[cause as usize] += 1.0;
        for (other, count) in CloseCause::ALL.iter().zip(expected) {
            assert_eq!(closed(&hub, *other), count, "{cause:?}: {other:?}");
        }
        let told = lines.take();
        let last = told.iter().rfind(|line| line.contains("message=closed")).unwrap();
        assert!(last.contains(&format!("cause=\"{}\"", cause.as_str())), "{last}");
        assert!(told.iter().any(|line| line.contains("message=connected")), "{told:?}");
        let subscribed = |line: &String| line.contains("message=subscribed") && line.contains("channel=c ");
        assert!(told.iter().any(subscribed), "{told:?}");
        assert_eq!(metric(&hub, "airwave_connections", &[("format", "a")]), 0.0);
    }
}

/// A connection that a drain did not end in time is not counted among those that stalled.
#[tokio::test(start_paused = true)]
async fn what_is_cut_at_the_end_of_a_drain_has_a_cause_of_its_own() {
    let backbone = Backbone::new();
    let hub = hub(&backbone.node(), rule());
    let format = hub.register_format(Lines::plain("a")).unwrap();
    let mut listener = Listener::at(&hub, &format, "c", After::Nothing).await;
    listener.confirmation().await;
    hub.drain();
    hub.cut();
    std::future::poll_fn(|cx| listener.session.poll_cut(cx)).await;
    drop(listener);
    assert_eq!(closed(&hub, CloseCause::DrainTimeout), 1.0);
    assert_eq!(closed(&hub, CloseCause::Stalled), 0.0);
}

#[tokio::test(start_paused = true)]
async fn metrics_of_events_are_by_rule() {
    let backbone = Backbone::new();
    let mut rules = Vec::new();
    for pattern in ["orders/{id}", "{*rest}"] {
        let mut own = rule();
        own.pattern = pattern.parse().unwrap();
        own.history.events = 2;
        rules.push(own);
    }
    let hub =
        Hub::builder(backbone.node(), airwave_core::Rules::new(rules)).limits(limits().with(|limits| limits.ring_events = 2));
    let hub = hub.build();
    let format = hub.register_format(Lines::plain("a")).unwrap();
    let mut order = Listener::at(&hub, &format, "orders/1", After::Nothing).await;
    let mut other = Listener::at(&hub, &format, "x", After::Nothing).await;
    let subscriptions = |rule: &str| metric(&hub, "airwave_subscriptions", &[("rule", rule), ("format", "a")]);
    assert_eq!((subscriptions("orders/{id}"), subscriptions("{*rest}")), (1.0, 1.0));
    for listener in [&mut order, &mut other] {
        listener.confirmation().await;
    }
    let channel = hub.channel("orders/1").unwrap();
    for n in 0..2 {
        channel.publish("said", &n).await.unwrap();
    }
    assert_eq!(order.lines(2).await.len(), 2);
    let format_a = [("format", "a")];
    let of = |name: &str, rule: &str, more: &[(&str, &str)]| {
        let labels = [&[("rule", rule)], more].concat();
        metric(&hub, &format!("airwave_{name}"), &labels)
    };
    assert_eq!(of("events_published_total", "orders/{id}", &[]), 2.0);
    assert_eq!(of("events_published_total", "{*rest}", &[]), 0.0);
    assert_eq!(of("events_delivered_total", "orders/{id}", &format_a), 2.0);
    assert_eq!(of("events_delivered_total", "{*rest}", &format_a), 0.0);
    assert!(of("delivered_bytes_total", "orders/{id}", &format_a) > 0.0);
    // A cursor that nothing is known of: a gap of this rule.
    let mut late = Listener::at(&hub, &format, "orders/1", After::Unreadable).await;
    late.confirmation().await;
    assert!(matches!(late.line().await, Frame::Gap { .. }));
    let reasons = airwave_core::format::GapReason::ALL;
    let gaps = |rule| {
        let counts = reasons.map(|reason| of("gaps_total", rule, &[("reason", reason.as_str())]));
        counts.iter().sum::<f64>()
    };
    assert_eq!((gaps("orders/{id}"), gaps("{*rest}")), (1.0, 0.0));
    drop((order, late));
    assert_eq!((subscriptions("orders/{id}"), subscriptions("{*rest}")), (0.0, 1.0));
}

/// 10,000 refused clients are a few lines, and one that says how many they were.
#[tokio::test(start_paused = true)]
async fn warnings_that_strangers_cause_are_bounded() {
    let backbone = Backbone::new();
    let hub = hub(&backbone.node(), rule());
    let lines = Kept::at(Level::WARN);
    let _guard = tracing::subscriber::set_default(lines.clone());
    for n in 0..10_000_u32 {
        let address = std::net::IpAddr::from(std::net::Ipv4Addr::from_bits(0x0a00_0000 + n / 4));
        hub.warn(Warning::RefusedOrigin, Some(address), &"https://evil.example\n".repeat(100));
        hub.warn(Warning::WrongToken, Some("10.0.0.1".parse().unwrap()), "chat/lobby");
    }
    let told = lines.take();
    let origins: Vec<_> = told.iter().filter(|line| line.contains("cause=\"origin\"")).collect();
    assert_eq!(origins.len(), 10, "{told:?}");
    assert!(origins[0].contains("'origins'") && origins[0].contains("address=\"10.0.0.0\""));
    assert!(origins.iter().all(|line| line.len() < 500 && !line.contains('\n')));
    let tokens: Vec<_> = told.iter().filter(|line| line.contains("cause=\"unauthorized\"")).collect();
    assert_eq!(tokens.len(), 1);
    sleep(Duration::from_secs(62)).await;
    let told = lines.take();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told.iter().any(|line| line.contains("count=9990")), "{told:?}");
    assert!(told.iter().any(|line| line.contains("count=9999")), "{told:?}");
    hub.warn(Warning::WrongToken, Some("10.0.0.1".parse().unwrap()), "chat/lobby");
    assert_eq!(lines.take().len(), 1, "another minute");
}
