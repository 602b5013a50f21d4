use std::sync::atomic::Ordering::SeqCst;

use airwave_core::rule::Delivery;
use airwave_core::session::After;

use crate::support::*;

#[tokio::test(start_paused = true)]
async fn an_event_is_encoded_once_for_each_format_however_many_listen() {
    let backbone = Backbone::new();
    let hub = hub(&backbone.node(), rule());
    let (a, b, idle) = (Lines::plain("a"), Lines::plain("b"), Lines::plain("idle"));
    let (wire_a, wire_b) = (
        hub.register_format(a.clone()).unwrap(),
        hub.register_format(b.clone()).unwrap(),
    );
    hub.register_format(idle.clone()).unwrap();
    let mut listeners = Vec::new();
    for i in 0..1000 {
        let format = if i % 2 == 0 { &wire_a } else { &wire_b };
        listeners.push(Listener::at(&hub, format, "c", After::Nothing).await);
    }
    for listener in &mut listeners {
        assert!(!listener.confirmation().await.1);
    }
    // One by one, so that every listener reads every event alone; then a burst, which is read as
    // one piece.
    let mut sent = Vec::new();
    for i in 0..20 {
        sent.push(backbone.say("c", &format!("single-{i}")));
        for listener in &mut listeners {
            assert_eq!(texts(&listener.ready()), [format!("single-{i}")]);
        }
    }
    let burst: Vec<_> = (0..50).map(|i| format!("burst-{i}")).collect();
    burst.iter().for_each(|text| sent.push(backbone.say("c", text)));
    for listener in &mut listeners {
        assert_eq!(texts(&listener.ready()), burst);
    }
    assert_eq!(
        (a.encodes.load(SeqCst), b.encodes.load(SeqCst), idle.encodes.load(SeqCst)),
        (70, 70, 0)
    );
    assert_eq!(metric(&hub, "airwave_encodes_total", &[("format", "a")]), 70.0);
    assert_eq!(
        metric(&hub, "airwave_events_delivered_total", &[("rule", "{*all}"), ("format", "a")]),
        (500 * 70) as f64
    );
}

/// Listeners at different places need different pieces; still nothing is encoded twice.
#[tokio::test(start_paused = true)]
async fn an_event_is_encoded_once_wherever_its_listeners_stand() {
    let backbone = Backbone::new();
    let hub = hub(&backbone.node(), rule());
    let (plain, many) = (Lines::plain("plain"), Lines::stamped("many"));
    let (wire_plain, wire_many) = (
        hub.register_format(plain.clone()).unwrap(),
        hub.register_format(many.clone()).unwrap(),
    );
    let mut listeners = Vec::new();
    for i in 0..100 {
        let format = if i % 2 == 0 { &wire_plain } else { &wire_many };
        listeners.push((Listener::at(&hub, format, "c", After::Nothing).await, 0));
    }
    for (listener, _) in &mut listeners {
        listener.confirmation().await;
    }
    for i in 0..200_usize {
        backbone.say("c", &i.to_string());
        for (n, (listener, read)) in listeners.iter_mut().enumerate() {
            if (i + n) % (n + 1) == 0 {
                *read += listener.ready().len();
            }
        }
    }
    for (listener, read) in &mut listeners {
        *read += listener.ready().len();
        assert_eq!(*read, 200);
    }
    assert_eq!((plain.encodes.load(SeqCst), many.encodes.load(SeqCst)), (200, 200));
}

#[tokio::test(start_paused = true)]
async fn of_a_conflated_channel_only_what_is_sent_is_encoded() {
    let backbone = Backbone::new();
    let mut rule = rule();
    rule.delivery = Delivery::Latest;
    let hub = hub(&backbone.node(), rule);
    let lines = Lines::plain("a");
    let format = hub.register_format(lines.clone()).unwrap();
    let mut listener = Listener::at(&hub, &format, "c", After::Nothing).await;
    listener.confirmation().await;
    for i in 0..100 {
        backbone.say_keyed("c", ["x", "y"][i % 2], &i.to_string());
    }
    assert_eq!(texts(&listener.ready()), ["98", "99"]);
    assert_eq!(lines.encodes.load(SeqCst), 2);
}

/// A channel that is published to without pause leaves room for the others of the same session.
#[tokio::test(start_paused = true)]
async fn a_busy_channel_does_not_starve_the_others() {
    let backbone = Backbone::new();
    let hub = hub(&backbone.node(), rule());
    let format = hub.register_format(Lines::plain("a")).unwrap();
    let mut listener = Listener::new(&hub, &format);
    for channel in ["busy", "quiet"] {
        listener.subscribe(channel, After::Nothing).await.unwrap();
    }
    listener.lines(2).await;
    let large = "x".repeat(60 << 10);
    backbone.say("quiet", "hello");
    for _ in 0..10 {
        // As much as a turn takes, again and again.
        backbone.say("busy", &large);
        backbone.say("busy", &large);
        if listener.line().await.text() == "hello" {
            return;
        }
    }
    panic!("the quiet channel was never read");
}
