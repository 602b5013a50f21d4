use std::num::NonZeroU32;
use std::time::Duration;

use airwave_core::format::GapReason;
use airwave_core::hub::FormatHandle;
use airwave_core::rule::{Delivery, ReplayOnSubscribe};
use airwave_core::session::{After, CloseReason};
use airwave_core::{Code, Hub, Position, Rule, Session};

use crate::support::*;

fn formats(hub: &Hub) -> [FormatHandle; 2] {
    [
        hub.register_format(Lines::plain("plain")).unwrap(),
        hub.register_format(Lines::stamped("stamped")).unwrap(),
    ]
}

/// A stream that closes when its channels have ended, as SSE is.
fn stream(hub: &Hub, format: &FormatHandle) -> Listener {
    Listener::of(Session::new(hub.connect(request(), true).unwrap(), format).ends_with_channels())
}

async fn at(hub: &Hub, format: &FormatHandle, after: After) -> Listener {
    let mut listener = stream(hub, format);
    listener.subscribe("c", after).await.unwrap();
    listener
}

fn is_end(line: &Frame, position: Position) -> bool {
    matches!(line, Frame::End { cursor, .. } if *cursor == position)
}

fn rules() -> impl Iterator<Item = Rule> {
    let replays = [ReplayOnSubscribe::None, ReplayOnSubscribe::Last, ReplayOnSubscribe::All];
    let deliveries = [Delivery::Every, Delivery::Latest];
    let rates = [None, NonZeroU32::new(10)];
    replays.into_iter().flat_map(move |replay| {
        deliveries.into_iter().flat_map(move |delivery| {
            rates
                .into_iter()
                .map(move |max_rate| rule().with_replay(replay).with_delivery(delivery).with_max_rate(max_rate))
        })
    })
}

#[tokio::test(start_paused = true)]
async fn listeners_are_told_of_the_end_and_let_go() {
    for rule in rules() {
        let backbone = Backbone::new();
        let hub = hub(&backbone.node(), rule.clone());
        for (n, format) in formats(&hub).iter().enumerate() {
            let channel = format!("c{n}");
            let mut listener = stream(&hub, format);
            listener.subscribe(&channel, After::Nothing).await.unwrap();
            backbone.say_keyed(&channel, "k", "1");
            let end = backbone.end(&channel);
            let lines = listener.rest().await;
            assert_eq!(lines[1].text(), "1", "{rule:?}");
            assert!(lines.len() == 3 && is_end(&lines[2], end), "{rule:?}: {lines:?}");
            assert_eq!(listener.closed, Some(CloseReason::Ended));
        }
    }
}

/// Of each format, without a cursor and with one that is not understood.
async fn each_is_told_once(hub: &Hub, end: Position, what: &str) {
    for format in formats(hub) {
        for after in [After::Nothing, After::Unreadable] {
            let mut listener = at(hub, &format, after).await;
            let lines = listener.rest().await;
            assert!(is_end(lines.last().unwrap(), end), "{what}: {lines:?}");
            assert_eq!(lines.iter().filter(|line| matches!(line, Frame::End { .. })).count(), 1);
            assert_eq!(listener.closed, Some(CloseReason::Ended));
        }
    }
}

/// A client that comes after the end is told of it, whether history still holds it or not, on a
/// node that saw it and on one that did not.
#[tokio::test(start_paused = true)]
async fn a_fresh_listener_on_an_ended_channel_is_told() {
    for rule in rules() {
        for kept in [usize::MAX, 1, 0] {
            let backbone = Backbone::new();
            let saw_it = hub(&backbone.node(), rule.clone());
            let _listens = Listener::at(&saw_it, &formats(&saw_it)[0], "c", After::Nothing).await;
            backbone.say_keyed("c", "k", "1");
            let end = backbone.end("c");
            backbone.keep("c", kept);
            settle().await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            for hub in [saw_it, hub(&backbone.node(), rule.clone())] {
                each_is_told_once(&hub, end, &format!("{rule:?}, {kept} kept")).await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_has_had_the_end_is_over() {
    for kept in [usize::MAX, 0] {
        let backbone = Backbone::new();
        let behind = backbone.node();
        let behind_hub = hub(&behind, rule());
        let mut waits = Listener::at(&behind_hub, &formats(&behind_hub)[0], "c", After::Nothing).await;
        behind.lag();
        let before = backbone.say("c", "1");
        let end = backbone.end("c");
        backbone.keep("c", kept);
        let fresh = hub(&backbone.node(), rule());
        for (what, hub) in [("fresh", &fresh), ("behind", &behind_hub)] {
            for format in formats(hub) {
                let mut listener = stream(hub, &format);
                let joined = listener.join("c", after(end)).await.unwrap();
                assert!(joined.is_over(), "{what}, {kept} kept");
                // If the transport says so all the same, the client is told once more, and that is
                // all.
                listener.session.add(joined, None);
                let lines = listener.rest().await;
                assert!(matches!(lines[0], Frame::Subscribed { resumed: true, .. }));
                assert!(lines.len() == 2 && is_end(&lines[1], end), "{lines:?}");
                let mut listener = stream(hub, &format);
                let joined = listener.join("c", after(before)).await.unwrap();
                assert!(!joined.is_over(), "the end is still to come");
            }
        }
        behind.catch_up();
        let lines = waits.settled().await;
        assert_eq!(lines[1].text(), "1");
        assert!(is_end(&lines[2], end));
    }
}

/// A node that is behind is asked by a client that is ahead; then the node catches up and hears of
/// the end.
#[tokio::test(start_paused = true)]
async fn a_client_that_waits_for_its_node_is_told_of_the_end_once() {
    for history in [usize::MAX, 0] {
        let backbone = Backbone::new();
        let node = backbone.node();
        let hub = hub(&node, rule());
        for (n, format) in formats(&hub).iter().enumerate() {
            let name = format!("c{n}");
            let _open = Listener::at(&hub, format, &name, After::Nothing).await;
            node.lag();
            backbone.say(&name, "1");
            let second = backbone.say(&name, "2");
            let mut ahead = stream(&hub, format);
            ahead.subscribe(&name, after(second)).await.unwrap();
            assert_eq!(ahead.settled().await.len(), 1);
            backbone.say(&name, "3");
            let end = backbone.end(&name);
            backbone.keep(&name, history);
            node.catch_up();
            let lines = ahead.rest().await;
            assert_eq!(lines[0].text(), "3");
            assert!(lines.len() == 2 && is_end(&lines[1], end), "{lines:?}");
        }
    }
}

/// It was away for so long that the end itself has left history: a gap, and then the end, not a
/// stream that never says anything again.
#[tokio::test(start_paused = true)]
async fn a_listener_that_comes_back_after_the_end_has_expired_is_told_of_both() {
    for node_saw_it in [false, true] {
        let backbone = Backbone::new();
        let node = backbone.node();
        let hub = crate::support::hub(&node, rule());
        let first = backbone.say("c", "1");
        backbone.say("c", "2");
        if node_saw_it {
            // Opened late, so that its ring does not hold what the client has.
            backbone.keep("c", 0);
            Listener::at(&hub, &formats(&hub)[0], "c", After::Nothing).await;
        }
        let end = backbone.end("c");
        backbone.keep("c", 0);
        for format in formats(&hub) {
            let mut listener = at(&hub, &format, after(first)).await;
            let (cursor, resumed) = listener.confirmation().await;
            assert!(!resumed);
            let lines = listener.rest().await;
            assert!(
                matches!(lines[0], Frame::Gap { after, cursor: goes_on, reason: GapReason::HistoryExpired, .. }
                    if after == Some(first) && goes_on == cursor),
                "{lines:?}"
            );
            assert!(lines.len() == 2 && is_end(&lines[1], end), "{lines:?}");
            assert_eq!(listener.closed, Some(CloseReason::Ended));
            // From the gap's cursor there is no second gap, and the end is still told.
            for hub in [&hub, &crate::support::hub(&backbone.node(), rule())] {
                let lines = at(hub, &formats(hub)[0], after(cursor)).await.rest().await;
                assert!(matches!(lines[0], Frame::Subscribed { resumed: true, .. }), "{lines:?}");
                assert!(lines.len() == 2 && is_end(&lines[1], end), "{lines:?}");
            }
        }
    }
}

/// The channel ended while this node's feed was broken, and history holds nothing: the listeners
/// are told all the same.
#[tokio::test(start_paused = true)]
async fn an_end_that_no_feed_showed_is_still_told() {
    let backbone = Backbone::new();
    let node = backbone.node();
    let hub = hub(&node, rule());
    let [plain, stamped] = formats(&hub);
    let mut listeners = [
        at(&hub, &plain, After::Nothing).await,
        at(&hub, &stamped, After::Nothing).await,
    ];
    backbone.keep("c", 0);
    backbone.say("c", "1");
    for listener in &mut listeners {
        assert_eq!(listener.lines(2).await[1].text(), "1");
    }
    node.lose(2);
    backbone.say("c", "2");
    let end = backbone.end("c");
    node.cut();
    for listener in &mut listeners {
        let lines = listener.rest().await;
        assert!(matches!(lines[0], Frame::Gap { .. }), "{lines:?}");
        assert!(lines.len() == 2 && is_end(&lines[1], end), "{lines:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_closes_when_its_last_channel_has_ended() {
    let backbone = Backbone::new();
    let hub = hub(&backbone.node(), rule());
    for (n, format) in formats(&hub).iter().enumerate() {
        let names = ["a", "b"].map(|c| format!("{c}{n}"));
        let mut listener = stream(&hub, format);
        for name in &names {
            listener.subscribe(name, After::Nothing).await.unwrap();
        }
        listener.lines(2).await;
        backbone.end(&names[0]);
        assert!(matches!(&listener.settled().await[..], [Frame::End { channel, .. }] if *channel == names[0]));
        assert_eq!((listener.closed, listener.session.subscriptions()), (None, 1));
        backbone.say(&names[1], "on");
        assert_eq!(listener.line().await.text(), "on");
        backbone.end(&names[1]);
        assert!(matches!(&listener.rest().await[..], [Frame::End { channel, .. }] if *channel == names[1]));
        assert_eq!(listener.closed, Some(CloseReason::Ended));
    }
}

/// A conversation goes on without channels.
#[tokio::test(start_paused = true)]
async fn a_session_that_does_not_end_with_its_channels_stays() {
    let backbone = Backbone::new();
    let hub = hub(&backbone.node(), rule());
    let format = &formats(&hub)[0];
    let mut listener = Listener::at(&hub, format, "c", After::Nothing).await;
    backbone.end("c");
    assert_eq!(listener.settled().await.len(), 2);
    assert_eq!((listener.closed, listener.session.subscriptions()), (None, 0));
    listener.subscribe("d", After::Nothing).await.unwrap();
    backbone.say("d", "1");
    assert_eq!(listener.lines(2).await[1].text(), "1");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_published_after_the_end() {
    let backbone = Backbone::new();
    let hub = hub(&backbone.node(), rule());
    let channel = hub.channel("c").unwrap();
    channel.publish("say", "1").await.unwrap();
    channel.end().await.unwrap();
    assert_eq!(channel.publish("say", "2").await.unwrap_err().code, Code::Ended);
    assert_eq!(channel.end().await.unwrap_err().code, Code::Ended);
}

/// Visitors keep an ended channel's log open for longer than its history lasts.
#[tokio::test(start_paused = true)]
async fn the_end_does_not_grow_old() {
    let mut rule = rule();
    rule.history.age = Duration::from_secs(60);
    let backbone = Backbone::new();
    let hub = hub(&backbone.node(), rule);
    let format = &formats(&hub)[0];
    backbone.say("c", "1");
    let end = backbone.end("c");
    for visit in 0..20 {
        let lines = at(&hub, format, After::Nothing).await.rest().await;
        assert!(is_end(lines.last().unwrap(), end), "visit {visit}: {lines:?}");
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
}

/// The broker has forgotten the channel, end and all, and a publisher begins it anew while a node
/// still has the old one open.
#[tokio::test(start_paused = true)]
async fn a_channel_that_begins_anew_is_not_over() {
    let backbone = Backbone::new();
    let hub = hub(&backbone.node(), rule());
    let format = &formats(&hub)[0];
    let mut listener = Listener::at(&hub, format, "c", After::Nothing).await;
    let old = backbone.end("c");
    assert_eq!(listener.settled().await.len(), 2);
    backbone.wipe("c");
    backbone.say("c", "anew");
    settle().await;
    for (hub, text) in [(&hub, "here"), (&crate::support::hub(&backbone.node(), rule()), "elsewhere")] {
        let mut listener = at(hub, &formats(hub)[0], After::Nothing).await;
        assert_eq!(listener.settled().await.len(), 1, "a fresh listener hears what comes");
        let head = backbone.head("c");
        let mut listener = at(hub, &formats(hub)[0], after(head)).await;
        assert_eq!(listener.confirmation().await, (head, true));
        backbone.say("c", text);
        assert_eq!(listener.line().await.text(), text);
        let mut listener = at(hub, &formats(hub)[0], after(old)).await;
        assert!(!listener.confirmation().await.1, "a gap comes next");
        let lines = listener.settled().await;
        assert!(matches!(lines[0], Frame::Gap { .. }), "{lines:?}");
        assert_eq!(lines[1].text(), "anew");
    }
}
