use std::sync::Arc;

use airwave_core::rule::{Delivery, ReplayOnSubscribe};
use airwave_core::session::After;
use airwave_core::{Append, Attributes, Code, Hub, Message, PageLimit, Position, Publish, Rule};
use bytes::Bytes;

use crate::support::*;

/// What a later version stores, as bytes of a store.
fn newer(backbone: &Backbone, stored: &str) -> Position {
    let message = Message::from_stored(&Bytes::copy_from_slice(stored.as_bytes()));
    backbone.publish("c", Append::new(message)).unwrap().position
}

fn hidden(backbone: &Backbone) -> Position {
    newer(backbone, "t0b01airwave.runk{}")
}

fn scene(rule: Rule) -> (Arc<Backbone>, Hub) {
    let backbone = Backbone::new();
    let hub = hub(&backbone.node(), rule);
    (backbone, hub)
}

#[tokio::test(start_paused = true)]
async fn listeners_pass_hidden_events_and_miss_nothing() {
    let (backbone, hub) = scene(rule());
    let formats = [
        hub.register_format(Lines::plain("a")).unwrap(),
        hub.register_format(Lines::stamped("b")).unwrap(),
    ];
    let mut listeners = Vec::new();
    for format in &formats {
        let mut listener = Listener::at(&hub, format, "c", After::Nothing).await;
        listener.confirmation().await;
        listeners.push(listener);
    }
    hidden(&backbone);
    for listener in &mut listeners {
        assert_eq!(listener.settled().await, []);
    }
    backbone.say("c", "1");
    hidden(&backbone);
    // Another form of what cannot be shown: bytes that are no message.
    newer(&backbone, "?");
    backbone.say("c", "2");
    newer(&backbone, "z0300sayopaque");
    backbone.end("c");
    for listener in &mut listeners {
        let heard = listener.settled().await;
        assert_eq!(texts(&heard[..2]), ["1", "2"]);
        assert!(
            matches!(&heard[2], Frame::Event { .. }),
            "an opaque payload is shown: {heard:?}"
        );
        assert!(matches!(heard[3..], [Frame::End { .. }]), "{heard:?}");
    }
    assert_eq!(metric(&hub, "airwave_events_delivered_total", &[("format", "a")]), 4.0);
}

/// From the ring and from history, behind a visible event and behind a hidden one.
#[tokio::test(start_paused = true)]
async fn a_listener_resumes_before_and_behind_hidden_events() {
    for ring in [true, false] {
        let (backbone, hub) = scene(rule());
        let format = hub.register_format(Lines::plain("a")).unwrap();
        let open = Listener::at(&hub, &format, "c", After::Nothing).await;
        let first = backbone.say("c", "1");
        let passed = hidden(&backbone);
        backbone.say("c", "2");
        let last = hidden(&backbone);
        settle().await;
        if !ring {
            drop(open);
        }
        let (hub, format) = match ring {
            true => (hub, format),
            // Another node, whose log is opened only now.
            false => {
                let hub = crate::support::hub(&backbone.node(), rule());
                let format = hub.register_format(Lines::plain("a")).unwrap();
                (hub, format)
            }
        };
        for (after, left) in [(first, &["2"][..]), (passed, &["2"]), (last, &[])] {
            let mut listener = Listener::at(&hub, &format, "c", After::Position(after)).await;
            assert_eq!(listener.confirmation().await, (after, true), "ring: {ring}");
            assert_eq!(texts(&listener.settled().await), left);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_hidden_event_takes_the_place_of_no_visible_one() {
    let mut latest = rule();
    (latest.delivery, latest.replay) = (Delivery::Latest, ReplayOnSubscribe::Last);
    let (backbone, hub) = scene(latest);
    let format = hub.register_format(Lines::plain("a")).unwrap();
    let mut live = Listener::at(&hub, &format, "c", After::Nothing).await;
    live.confirmation().await;
    backbone.say_keyed("c", "k", "1");
    hidden(&backbone);
    assert_eq!(texts(&live.settled().await), ["1"]);
    let mut fresh = Listener::at(&hub, &format, "c", After::Nothing).await;
    fresh.confirmation().await;
    assert_eq!(texts(&fresh.settled().await), ["1"]);
}

#[tokio::test(start_paused = true)]
async fn pages_leave_out_hidden_events_and_go_on_behind_them() {
    let (backbone, hub) = scene(rule());
    let first = backbone.say("c", "1");
    for _ in 0..5 {
        hidden(&backbone);
    }
    let last = backbone.say("c", "2");
    let channel = hub.channel("c").unwrap();
    let page = channel.history(Some(first), 2).await.unwrap();
    let positions: Vec<_> = page.events.iter().map(|event| event.position).collect();
    assert_eq!((positions, page.complete), (vec![last], true));
    // A transport is given the hidden events: the last one is where the next page begins.
    let format = hub.register_format(Lines::plain("a")).unwrap();
    let listener = Listener::new(&hub, &format);
    let connection = listener.session.connection();
    let two = PageLimit::events(2);
    let (_, page) = hub.history(connection, &name("c"), Some(first), two).await.unwrap();
    assert_eq!((page.events.len(), page.more), (2, true));
    assert!(page.events.iter().all(|event| event.is_hidden()));
}

#[tokio::test(start_paused = true)]
async fn reserved_names_and_attributes_cannot_be_published() {
    let (_, hub) = scene(rule());
    let channel = hub.channel("c").unwrap();
    let stored = |text: &str| Message::from_stored(&Bytes::copy_from_slice(text.as_bytes()));
    let refused = channel
        .publish_with(Publish::message(stored("t0b00airwave.run{}")))
        .await
        .unwrap_err();
    assert_eq!(refused.code, Code::BadRequest);
    assert!(channel.history(None, 10).await.unwrap().events.is_empty());
    let message = stored("2t0300001esay0e0002airwave.except17010001b2hi");
    assert_eq!(message.attributes.get("b"), Some("2"));
    channel.publish_with(Publish::message(message)).await.unwrap();
    let page = channel.history(None, 10).await.unwrap();
    let attributes = &page.events.last().unwrap().message.attributes;
    assert_eq!(*attributes, Attributes::new().with("b", "2").unwrap());
}
