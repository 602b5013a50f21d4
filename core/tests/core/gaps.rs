use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use airwave_core::format::GapReason::{self, *};
use airwave_core::rule::Delivery;
use airwave_core::session::After;
use airwave_core::{Code, Cursor, Hub, Position};

use crate::support::*;

/// What a client is told that comes back: whether it is resumed, the gap if there is one, and the
/// texts that follow.
#[derive(Debug, PartialEq)]
struct Resumption {
    resumed: bool,
    gap: Option<(Option<Position>, Position, GapReason)>,
    texts: Vec<String>,
}

async fn come_back(hub: &Hub, channel: &str, after: After) -> Resumption {
    let format = hub.register_format(Lines::plain("a")).unwrap();
    let mut listener = Listener::at(hub, &format, channel, after).await;
    let (cursor, resumed) = listener.confirmation().await;
    let mut lines = listener.settled().await;
    let mut gap = None;
    // A node's ring may show the loss where it happened: later.
    if let Some(at) = lines.iter().position(|line| matches!(line, Frame::Gap { .. }))
        && let Frame::Gap {
            after,
            cursor: goes_on,
            reason,
            ..
        } = lines.remove(at)
    {
        assert_eq!(resumed, at > 0);
        assert!(
            resumed || cursor == goes_on,
            "the confirmation's cursor is where the stream goes on"
        );
        gap = Some((after, goes_on, reason));
    }
    // Anything but events, a second gap for example, is a failure here.
    let texts = texts(&lines).into_iter().map(str::to_owned).collect();
    Resumption { resumed, gap, texts }
}

/// A gap is final: who has been told of one and comes back from its new cursor is told of none, on
/// this node and on a fresh one.
async fn a_gap_is_final(backbone: &Arc<Backbone>, hub: &Hub, channel: &str, resumption: &Resumption) {
    let (_, cursor, _) = resumption.gap.unwrap();
    let again = Resumption {
        resumed: true,
        gap: None,
        texts: resumption.texts.clone(),
    };
    assert_eq!(come_back(hub, channel, after(cursor)).await, again, "on the same node");
    let other = crate::support::hub(&backbone.node(), rule());
    assert_eq!(come_back(&other, channel, after(cursor)).await, again, "on another node");
}

fn say_all(backbone: &Backbone, texts: impl IntoIterator<Item = usize>) -> Vec<Position> {
    texts.into_iter().map(|i| backbone.say("c", &i.to_string())).collect()
}

fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|i| i.to_string()).collect()
}

#[tokio::test(start_paused = true)]
async fn history_that_expired_is_a_gap_and_a_final_one() {
    for forgets_previous in [false, true] {
        let backbone = Backbone::new();
        let positions = say_all(&backbone, 0..20);
        backbone.keep("c", 10);
        if forgets_previous {
            backbone.forget_previous();
        }
        let hub = hub(&backbone.node(), rule());
        // Event 9 is gone, but what follows it is all there; only a broker that knows the previous
        // of its oldest can tell.
        let edge = come_back(&hub, "c", after(positions[9])).await;
        // Between neighbouring positions nothing can stand.
        let provable = !forgets_previous || positions[9].0 + 1 == positions[10].0;
        assert_eq!((edge.resumed, edge.texts), (provable, numbers(10..20)));
        let resumption = come_back(&hub, "c", after(positions[8])).await;
        let goes_on = if forgets_previous {
            Position(positions[10].0 - 1)
        } else {
            positions[9]
        };
        assert_eq!(
            resumption,
            Resumption {
                resumed: false,
                gap: Some((Some(positions[8]), goes_on, HistoryExpired)),
                texts: numbers(10..20)
            }
        );
        a_gap_is_final(&backbone, &hub, "c", &resumption).await;
    }
}

/// The node's ring still has what the broker has dropped: nothing is lost, so nothing is announced.
#[tokio::test(start_paused = true)]
async fn what_the_node_still_has_is_no_gap() {
    let backbone = Backbone::new();
    let hub = hub(&backbone.node(), rule());
    let format = hub.register_format(Lines::plain("a")).unwrap();
    let _keeps_it_open = Listener::at(&hub, &format, "c", After::Nothing).await;
    let positions = say_all(&backbone, 0..20);
    backbone.keep("c", 1);
    let resumption = come_back(&hub, "c", after(positions[4])).await;
    assert_eq!(
        (resumption.resumed, resumption.gap, resumption.texts),
        (true, None, numbers(5..20))
    );
}

#[tokio::test(start_paused = true)]
async fn nothing_is_kept_and_nothing_was_missed() {
    let backbone = Backbone::new();
    let positions = say_all(&backbone, 0..3);
    backbone.keep("c", 0);
    let mut rule = rule();
    rule.history.events = 0;
    let hub = hub(&backbone.node(), rule);
    let resumption = come_back(&hub, "c", after(positions[2])).await;
    assert_eq!((resumption.resumed, resumption.gap, resumption.texts.len()), (true, None, 0));
    let resumption = come_back(&hub, "c", after(positions[1])).await;
    assert_eq!(resumption.gap, Some((Some(positions[1]), positions[2], HistoryExpired)));
    a_gap_is_final(&backbone, &hub, "c", &resumption).await;
}

#[tokio::test(start_paused = true)]
async fn a_position_that_was_never_given_is_a_gap() {
    let backbone = Backbone::new();
    let positions = say_all(&backbone, 0..5);
    let hub = hub(&backbone.node(), rule());
    let future = Position(positions[4].0 + 1_000_000_000_000);
    let resumption = come_back(&hub, "c", after(future)).await;
    assert_eq!(resumption.gap, Some((Some(future), positions[4], UnknownPosition)));
    a_gap_is_final(&backbone, &hub, "c", &resumption).await;
    let resumption = come_back(&hub, "c", after(Position(1))).await;
    assert_eq!(resumption.gap.unwrap().0, Some(Position(1)));
    assert_eq!(resumption.texts, numbers(0..5), "what is still there follows");
    a_gap_is_final(&backbone, &hub, "c", &resumption).await;
}

/// A node whose clock is ahead gave the position, and the broker lost it. This node still holds
/// events before it, which the listener has had.
#[tokio::test(start_paused = true)]
async fn a_lost_position_of_a_clock_that_is_ahead_brings_nothing_back() {
    let backbone = Backbone::new();
    let hub = hub(&backbone.node(), rule());
    let wire = hub.register_format(Lines::plain("a")).unwrap();
    let mut other = Listener::at(&hub, &wire, "c", After::Nothing).await;
    let positions = say_all(&backbone, 0..5);
    other.settled().await;
    backbone.lose_tail("c", 3);
    let mut listeners = Vec::new();
    for ahead_s in [1, 120, 500] {
        let lost = Position(positions[4].0 + ahead_s * 1_000_000);
        let resumption = come_back(&hub, "c", after(lost)).await;
        assert_eq!(resumption.gap, Some((Some(lost), lost, BrokerLostData)), "{ahead_s} s");
        assert!(resumption.texts.is_empty(), "{:?}", resumption.texts);
        let mut listener = Listener::at(&hub, &wire, "c", after(lost)).await;
        listener.settled().await;
        listeners.push(listener);
    }
    // What comes now has positions before that one, and is new to them.
    say_all(&backbone, 5..8);
    for listener in &mut listeners {
        let lines = listener.settled().await;
        let texts: Vec<_> = lines
            .iter()
            .filter_map(|line| match line {
                Frame::Event { text, .. } => Some(text.as_str()),
                _ => None,
            })
            .collect();
        assert_eq!(texts, ["5", "6", "7"], "{lines:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_cursor_that_cannot_be_read_is_a_gap_and_then_live() {
    let backbone = Backbone::new();
    let positions = say_all(&backbone, 0..5);
    let hub = hub(&backbone.node(), rule());
    for text in ["not-a-cursor", "-1", "99999999999999999999", "AQAA"] {
        let resumption = come_back(&hub, "c", After::parse(Some(text))).await;
        assert_eq!(resumption.gap, Some((None, positions[4], UnknownPosition)), "{text}");
        assert!(!resumption.resumed && resumption.texts.is_empty());
        a_gap_is_final(&backbone, &hub, "c", &resumption).await;
    }
    for none in [None, Some(""), Some("0")] {
        let resumption = come_back(&hub, "c", After::parse(none)).await;
        assert_eq!((resumption.gap, resumption.resumed), (None, false), "{none:?}");
    }
}

/// A failover lost events 7, 8 and 9. Clients that had some of them come back, before and after the
/// next publish.
#[tokio::test(start_paused = true)]
async fn a_lost_tail_is_announced_only_to_listeners_that_had_seen_it() {
    let backbone = Backbone::new();
    let positions = say_all(&backbone, 0..10);
    backbone.lose_tail("c", 3);
    let before = hub(&backbone.node(), rule());
    let resumption = come_back(&before, "c", after(positions[8])).await;
    // The cursor does not go back to event 6: a node that does not know of the loss yet would send
    // 7 and 8 once more.
    assert_eq!(resumption.gap, Some((Some(positions[8]), positions[8], BrokerLostData)));
    assert!(resumption.texts.is_empty());
    // Until something new is published there is nothing else to hold, and who comes back hears the
    // same again.
    assert_eq!(come_back(&before, "c", after(positions[8])).await, resumption);
    let resumption = come_back(&before, "c", after(positions[6])).await;
    assert_eq!((resumption.resumed, resumption.gap), (true, None));

    say_all(&backbone, 10..12);
    for hub in [before, hub(&backbone.node(), rule())] {
        for &lost in &positions[7..10] {
            let resumption = come_back(&hub, "c", after(lost)).await;
            assert_eq!(resumption.gap, Some((Some(lost), lost, BrokerLostData)));
            assert_eq!(resumption.texts, ["10", "11"], "not a part of it, and nothing twice");
        }
        for &held in &positions[..7] {
            let resumption = come_back(&hub, "c", after(held)).await;
            assert_eq!(resumption.gap, None);
            assert_eq!(resumption.texts[resumption.texts.len() - 2..], ["10", "11"]);
        }
    }
}

/// The same while listeners are there: each is told once, in the stream, whether the feed ended or
/// only the chain shows it.
#[tokio::test(start_paused = true)]
async fn a_lost_tail_is_told_once_to_each_listener() {
    for feeds_end in [true, false] {
        let backbone = Backbone::new();
        let hub = hub(&backbone.node(), rule());
        let formats = [
            hub.register_format(Lines::plain("a")).unwrap(),
            hub.register_format(Lines::stamped("b")).unwrap(),
        ];
        let mut listeners = Vec::new();
        for i in 0..10 {
            let mut listener = Listener::at(&hub, &formats[i % 2], "c", After::Nothing).await;
            listener.confirmation().await;
            listeners.push(listener);
        }
        let positions = say_all(&backbone, 0..10);
        for listener in &mut listeners {
            assert_eq!(texts(&listener.ready()), numbers(0..10));
        }
        backbone.lose_tail("c", 3);
        if feeds_end {
            backbone.end_feeds("c");
            for listener in &mut listeners {
                let lines = listener.settled().await;
                assert_eq!(lines.len(), 1, "{lines:?}");
                assert!(
                    matches!(lines[0], Frame::Gap { after, cursor, reason: BrokerLostData, .. } if (after, cursor) == (Some(positions[9]), positions[9])),
                    "{lines:?}"
                );
            }
        }
        say_all(&backbone, 10..13);
        for listener in &mut listeners {
            let mut lines = listener.settled().await;
            if !feeds_end {
                let gap = lines.remove(0);
                assert!(
                    matches!(gap, Frame::Gap { after, cursor, reason: BrokerLostData, .. } if (after, cursor) == (Some(positions[9]), positions[9])),
                    "{gap:?}"
                );
            }
            assert_eq!(texts(&lines), numbers(10..13));
        }
        let resumption = come_back(&hub, "c", after(positions[6])).await;
        assert_eq!(resumption.gap.map(|gap| gap.2), Some(BrokerLostData));
        assert_eq!(
            resumption.texts,
            numbers(7..13),
            "this node still has what was lost, and says that it was"
        );
        let resumption = come_back(&hub, "c", after(positions[8])).await;
        assert_eq!(resumption.gap.map(|gap| gap.2), Some(BrokerLostData));
        assert_eq!(resumption.texts, numbers(9..13), "as the node saw it");
        let elsewhere = crate::support::hub(&backbone.node(), rule());
        let resumption = come_back(&elsewhere, "c", after(positions[8])).await;
        assert_eq!(resumption.gap.map(|gap| gap.2), Some(BrokerLostData));
        assert_eq!(resumption.texts, numbers(10..13), "as another finds it");
    }
}

#[tokio::test(start_paused = true)]
async fn a_wiped_broker_is_told_to_every_listener() {
    let backbone = Backbone::new();
    let hub = hub(&backbone.node(), rule());
    let format = hub.register_format(Lines::plain("a")).unwrap();
    let mut listener = Listener::at(&hub, &format, "c", After::Nothing).await;
    let positions = say_all(&backbone, 0..5);
    assert_eq!(listener.settled().await.len(), 6);
    backbone.wipe("c");
    backbone.end_feeds("c");
    say_all(&backbone, 5..7);
    let lines = listener.settled().await;
    assert!(
        matches!(lines[0], Frame::Gap { after, .. } if after == Some(positions[4])),
        "{lines:?}"
    );
    assert_eq!(texts(&lines[1..]), numbers(5..7));
    // On a node that has seen it, and on one that has not.
    for hub in [hub, crate::support::hub(&backbone.node(), rule())] {
        let resumption = come_back(&hub, "c", after(positions[2])).await;
        assert!(resumption.gap.is_some());
        assert_eq!(resumption.texts[resumption.texts.len() - 2..], numbers(5..7));
    }
}

/// A confirmation that says `resumed` is followed by no gap: the gap stands in the node's ring
/// already, or the node is about to find out.
#[tokio::test(start_paused = true)]
async fn a_listener_that_resumes_right_before_a_gap_is_not_resumed() {
    for healing in [false, true] {
        for conflated in [false, true] {
            let backbone = Backbone::new();
            let node = backbone.node();
            let mut rule = rule();
            if conflated {
                rule.delivery = Delivery::Latest;
            }
            let hub = hub(&node, rule);
            let formats = [
                hub.register_format(Lines::plain("a")).unwrap(),
                hub.register_format(Lines::stamped("b")).unwrap(),
            ];
            let mut stays = Listener::at(&hub, &formats[0], "c", After::Nothing).await;
            stays.confirmation().await;
            let positions = say_all(&backbone, 0..2);
            stays.settled().await;
            let other = backbone.say("d", "other");
            backbone.wipe("c");
            node.hold_answers(healing);
            let last = say_all(&backbone, 2..3)[0];
            if !healing {
                assert_eq!(stays.settled().await.len(), 2, "the gap and the event");
            }
            for (format, stamped) in [(&formats[0], false), (&formats[1], true)] {
                let mut listener = Listener::new(&hub, format);
                let release = async {
                    settle().await;
                    node.hold_answers(false);
                };
                let (first, ()) = tokio::join!(listener.join("c", after(positions[1])), release);
                let mut joined = vec![first.unwrap()];
                if stamped {
                    joined.push(listener.join("d", after(other)).await.unwrap());
                }
                listener.session.add_all(joined);
                let mut lines = listener.settled().await;
                let gap_cursor = match lines.remove(0) {
                    Frame::Subscribed { cursor, resumed, .. } => {
                        assert!(!resumed, "a gap comes next");
                        cursor
                    }
                    line => panic!("not a confirmation: {line:?}"),
                };
                if stamped {
                    assert!(matches!(lines.remove(0), Frame::Subscribed { resumed: true, .. }));
                }
                assert!(
                    matches!(&lines[0], Frame::Gap { after, cursor, .. } if (*after, *cursor) == (Some(positions[1]), gap_cursor)),
                    "{lines:?}"
                );
                assert_eq!(texts(&lines[1..]), ["2"]);
                node.hold_answers(healing);
            }
            node.hold_answers(false);
            let resumption = come_back(&hub, "c", after(last)).await;
            assert_eq!((resumption.resumed, resumption.gap), (true, None), "behind the gap");
        }
    }
}

/// While the broker is away no node knows whether a gap comes next. What the ring holds comes next
/// for sure; a listener that has all of it is refused for now, and told the truth afterwards.
#[tokio::test(start_paused = true)]
async fn in_an_outage_a_listener_is_resumed_only_if_an_event_comes_next() {
    for comes_back_empty in [false, true] {
        for conflated in [false, true] {
            let backbone = Backbone::new();
            let node = backbone.node();
            let mut rule = rule();
            if conflated {
                rule.delivery = Delivery::Latest;
            }
            let hub = hub(&node, rule);
            let format = hub.register_format(Lines::plain("a")).unwrap();
            let mut stays = Listener::at(&hub, &format, "c", After::Nothing).await;
            stays.confirmation().await;
            let positions = [backbone.say_keyed("c", "k", "0"), backbone.say_keyed("c", "l", "1")];
            stays.settled().await;
            node.unavailable(true);
            node.cut();
            settle().await;

            // It lacks an event that the node has.
            let mut behind = Listener::at(&hub, &format, "c", after(positions[0])).await;
            // And it has not read it when the broker is back.
            let mut late = Listener::at(&hub, &format, "c", after(positions[0])).await;
            assert_eq!(behind.confirmation().await, (positions[0], true));
            assert_eq!(behind.line().await.text(), "1");
            let mut up_to_date = Listener::new(&hub, &format);
            let refusal = up_to_date.join("c", after(positions[1])).await.err().unwrap();
            assert_eq!(refusal.code, Code::Unavailable, "an event or a gap comes next");
            let mut fresh = Listener::at(&hub, &format, "c", After::Nothing).await;
            assert_eq!(fresh.settled().await.len(), 1, "it gave no position");

            if comes_back_empty {
                backbone.wipe("c");
                backbone.say_keyed("c", "l", "2");
            }
            node.unavailable(false);
            stays.settled().await;
            tokio::time::sleep(std::time::Duration::from_secs(5)).await;
            let resumption = come_back(&hub, "c", after(positions[1])).await;
            assert_eq!(
                (resumption.resumed, resumption.gap.is_some()),
                (!comes_back_empty, comes_back_empty)
            );
            // A confirmation was promised an event, and the gap comes behind it.
            assert_eq!(late.confirmation().await, (positions[0], true));
            assert_eq!(late.line().await.text(), "1");
            let rest = late.settled().await;
            assert_eq!(matches!(rest.first(), Some(Frame::Gap { .. })), comes_back_empty, "{rest:?}");
        }
    }
}

/// The end of a channel is the last word, so an outage does not matter.
#[tokio::test(start_paused = true)]
async fn in_an_outage_a_listener_of_an_ended_channel_is_told_so() {
    let backbone = Backbone::new();
    let node = backbone.node();
    let hub = hub(&node, rule());
    let format = hub.register_format(Lines::plain("a")).unwrap();
    let mut stays = Listener::at(&hub, &format, "c", After::Nothing).await;
    stays.confirmation().await;
    let end = backbone.end("c");
    stays.settled().await;
    node.unavailable(true);
    node.cut();
    settle().await;
    let mut late = Listener::new(&hub, &format);
    late.subscribe("c", after(end)).await.unwrap();
    assert_eq!(late.confirmation().await, (end, true));
    assert!(matches!(late.line().await, Frame::End { .. }));
}

/// Of a conflated channel the event before the gap is left out, because a newer one of its key
/// waits. So the gap comes first.
#[tokio::test(start_paused = true)]
async fn a_gap_behind_a_superseded_event_comes_next_too() {
    let backbone = Backbone::new();
    let mut rule = rule();
    rule.delivery = Delivery::Latest;
    let hub = hub(&backbone.node(), rule);
    let format = hub.register_format(Lines::plain("a")).unwrap();
    let mut stays = Listener::at(&hub, &format, "c", After::Nothing).await;
    stays.confirmation().await;
    let first = backbone.say_keyed("c", "k", "0");
    backbone.say_keyed("c", "k", "1");
    stays.settled().await;
    backbone.wipe("c");
    backbone.say_keyed("c", "k", "2");
    stays.settled().await;
    let resumption = come_back(&hub, "c", after(first)).await;
    assert_eq!((resumption.resumed, resumption.texts), (false, vec!["2".to_owned()]));
    assert_eq!(resumption.gap.unwrap().0, Some(first));
}

/// P5: the feed skipped events in silence, the broker holds them, so they come late, but they come,
/// without a gap.
#[tokio::test(start_paused = true)]
async fn a_broken_chain_is_healed_without_a_gap() {
    for lost in [1, 5, 2500] {
        let backbone = Backbone::new();
        let node = backbone.node();
        let hub = hub(&node, rule());
        let formats = [
            hub.register_format(Lines::plain("a")).unwrap(),
            hub.register_format(Lines::stamped("b")).unwrap(),
        ];
        let mut listeners = [
            Listener::at(&hub, &formats[0], "c", After::Nothing).await,
            Listener::at(&hub, &formats[1], "c", After::Nothing).await,
        ];
        for listener in &mut listeners {
            listener.confirmation().await;
        }
        say_all(&backbone, 0..3);
        node.lose(lost);
        say_all(&backbone, 3..3 + lost);
        for listener in &mut listeners {
            assert_eq!(texts(&listener.settled().await), numbers(0..3), "no listener knows yet");
        }
        say_all(&backbone, 3 + lost..8 + lost);
        for listener in &mut listeners {
            assert_eq!(texts(&listener.settled().await), numbers(3..8 + lost));
        }
        say_all(&backbone, 8 + lost..9 + lost);
        for listener in &mut listeners {
            assert_eq!(texts(&listener.settled().await), numbers(8 + lost..9 + lost));
        }
        assert_eq!(node.follows.load(SeqCst), 1, "the feed was good enough");
    }
}

/// The feed skipped events, and they are gone from history too: a gap for those who were there.
#[tokio::test(start_paused = true)]
async fn a_broken_chain_that_history_cannot_close_is_a_gap() {
    for forgets_previous in [false, true] {
        let backbone = Backbone::new();
        let node = backbone.node();
        let hub = hub(&node, rule());
        let format = hub.register_format(Lines::plain("a")).unwrap();
        let mut listener = Listener::at(&hub, &format, "c", After::Nothing).await;
        listener.confirmation().await;
        let first = say_all(&backbone, 0..3);
        backbone.keep("c", 2);
        if forgets_previous {
            backbone.forget_previous();
        }
        node.lose(5);
        let lost = say_all(&backbone, 3..8);
        let last = say_all(&backbone, 8..9);
        let lines = listener.settled().await;
        assert_eq!(texts(&lines[..3]), numbers(0..3));
        let goes_on = if forgets_previous { Position(lost[4].0 - 1) } else { lost[3] };
        assert_eq!(
            lines[3],
            Frame::Gap {
                channel: "c".into(),
                after: Some(first[2]),
                cursor: goes_on,
                reason: HistoryExpired,
                stamp: None
            }
        );
        assert_eq!(texts(&lines[4..]), numbers(7..9));
        let resumption = come_back(&hub, "c", after(last[0])).await;
        assert_eq!((resumption.resumed, resumption.gap), (true, None));
        let resumption = Resumption {
            resumed: false,
            gap: Some((None, goes_on, HistoryExpired)),
            texts: numbers(7..9),
        };
        a_gap_is_final(&backbone, &hub, "c", &resumption).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_feed_that_ends_is_followed_again_and_nothing_is_missed() {
    let backbone = Backbone::new();
    let node = backbone.node();
    let hub = hub(&node, rule());
    let format = hub.register_format(Lines::plain("a")).unwrap();
    let mut listener = Listener::at(&hub, &format, "c", After::Nothing).await;
    listener.confirmation().await;
    let mut heard = 0;
    for round in 0..20 {
        say_all(&backbone, heard..heard + 3);
        node.cut();
        // In the time without a feed, too.
        say_all(&backbone, heard + 3..heard + 5);
        if round % 2 == 0 {
            settle().await;
        }
        say_all(&backbone, heard + 5..heard + 7);
        assert_eq!(texts(&listener.settled().await), numbers(heard..heard + 7), "round {round}");
        heard += 7;
        tokio::time::sleep(std::time::Duration::from_secs(10)).await;
    }
    assert_eq!(node.follows.load(SeqCst), 21);
    assert_eq!(node.feeds.load(SeqCst), 1, "feeds that were given up are unsubscribed");
}

/// A broker whose feeds end at once is asked again and again, but not without pause.
#[tokio::test(start_paused = true)]
async fn a_feed_that_ends_at_once_is_no_busy_loop() {
    let backbone = Backbone::new();
    let node = backbone.node();
    let hub = hub(&node, rule());
    let format = hub.register_format(Lines::plain("a")).unwrap();
    let mut listener = Listener::at(&hub, &format, "c", After::Nothing).await;
    listener.confirmation().await;
    node.stillborn.store(true, SeqCst);
    node.cut();
    for _ in 0..20 {
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    }
    let follows = node.follows.load(SeqCst);
    assert!((2..=40).contains(&follows), "{follows} follows in ten seconds");
    say_all(&backbone, 0..1);
    node.stillborn.store(false, SeqCst);
    assert_eq!(listener.line().await.text(), "0");
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_is_away_while_healing_costs_time_and_nothing_else() {
    for hangs in [false, true] {
        let backbone = Backbone::new();
        let node = backbone.node();
        let hub = hub(&node, rule());
        let format = hub.register_format(Lines::plain("a")).unwrap();
        let mut listener = Listener::at(&hub, &format, "c", After::Nothing).await;
        listener.confirmation().await;
        say_all(&backbone, 0..3);
        assert_eq!(listener.settled().await.len(), 3);
        // Not for so long that listeners are told of it.
        if hangs {
            node.hang(true);
        } else {
            node.unavailable(true);
        }
        node.cut();
        say_all(&backbone, 3..6);
        tokio::time::sleep(std::time::Duration::from_secs(6)).await;
        assert_eq!(listener.ready(), []);
        assert!(node.follows.load(SeqCst) < 40, "{} follows", node.follows.load(SeqCst));
        if hangs {
            node.hang(false);
        } else {
            node.unavailable(false);
        }
        let back = tokio::time::Instant::now();
        say_all(&backbone, 6..7);
        assert_eq!(texts(&listener.lines(4).await), numbers(3..7));
        // P9: caught up within 5 s.
        assert!(back.elapsed() < std::time::Duration::from_secs(5), "{:?}", back.elapsed());
    }
}

/// The feed breaks once more while the loss of its first break is being looked into: one gap,
/// nothing twice, nothing missing.
#[tokio::test(start_paused = true)]
async fn two_disturbances_at_once_are_one_gap() {
    for chain_breaks_first in [true, false] {
        let backbone = Backbone::new();
        let node = backbone.node();
        let hub = hub(&node, rule());
        let format = hub.register_format(Lines::plain("a")).unwrap();
        let mut listener = Listener::at(&hub, &format, "c", After::Nothing).await;
        listener.confirmation().await;
        say_all(&backbone, 0..3);
        assert_eq!(listener.settled().await.len(), 3);
        backbone.keep("c", 2);
        // What is read now is answered late.
        node.hold_answers(true);
        if chain_breaks_first {
            node.lose(5);
            say_all(&backbone, 3..9);
            settle().await;
            node.cut();
        } else {
            node.cut();
            say_all(&backbone, 3..9);
        }
        tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
        assert_eq!(node.replays.load(SeqCst), 2 + usize::from(chain_breaks_first));
        say_all(&backbone, 9..12);
        node.hold_answers(false);
        let lines = listener.settled().await;
        assert!(matches!(lines[0], Frame::Gap { .. }), "{lines:?}");
        assert_eq!(texts(&lines[1..]), numbers(7..12), "{lines:?}");
    }
}

/// So much is said while the log heals that it cannot all wait: it is read from history instead,
/// whatever `previous` says.
#[tokio::test(start_paused = true)]
async fn more_than_can_wait_while_healing_is_read_from_history() {
    for forgets_previous in [false, true] {
        let backbone = Backbone::new();
        let node = backbone.node();
        let hub = hub(&node, rule());
        let format = hub.register_format(Lines::plain("a")).unwrap();
        let mut listener = Listener::at(&hub, &format, "c", After::Nothing).await;
        listener.confirmation().await;
        if forgets_previous {
            backbone.forget_previous();
        }
        say_all(&backbone, 0..1);
        assert_eq!(listener.line().await.text(), "0");
        node.lose(1);
        node.unavailable(true);
        say_all(&backbone, 1..10_500);
        settle().await;
        node.unavailable(false);
        let mut heard = vec!["0".to_owned()];
        while heard.len() < 10_500 {
            heard.push(listener.line().await.text().to_owned());
        }
        assert_eq!(heard, numbers(0..10_500));
    }
}

/// The same where history holds nothing and no `previous` is known: then it is a gap, but not
/// silence.
#[tokio::test(start_paused = true)]
async fn more_than_can_wait_while_healing_is_never_lost_in_silence() {
    let backbone = Backbone::new();
    let node = backbone.node();
    let mut rule = rule();
    rule.history.events = 0;
    let hub = hub(&node, rule);
    let format = hub.register_format(Lines::plain("a")).unwrap();
    let mut listener = Listener::at(&hub, &format, "c", After::Nothing).await;
    listener.confirmation().await;
    backbone.keep("c", 0);
    backbone.forget_previous();
    say_all(&backbone, 0..1);
    assert_eq!(listener.line().await.text(), "0");
    node.hold_answers(true);
    node.cut();
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert_eq!(node.follows.load(SeqCst), 2);
    say_all(&backbone, 1..10_500);
    node.hold_answers(false);
    let lines = listener.settled().await;
    let gaps = lines.iter().filter(|line| matches!(line, Frame::Gap { .. })).count();
    let heard: Vec<_> = lines
        .iter()
        .filter(|line| matches!(line, Frame::Event { .. }))
        .map(Frame::text)
        .collect();
    assert_eq!(gaps, 1, "{} lines", lines.len());
    assert_eq!(heard, numbers(10_500 - heard.len()..10_500));
}

/// Cut off between the confirmation and the gap, or while another channel of the stream is told:
/// the gap is told to who comes back.
#[tokio::test(start_paused = true)]
async fn a_gap_that_did_not_arrive_is_told_again() {
    let backbone = Backbone::new();
    let old = ["a", "b"].map(|channel| {
        let first = backbone.say(channel, "1");
        for n in 2..10 {
            backbone.say(channel, &n.to_string());
        }
        backbone.keep(channel, 3);
        first
    });
    let hub = hub(&backbone.node(), rule());
    let [plain, stamped] = [
        hub.register_format(Lines::plain("a")).unwrap(),
        hub.register_format(Lines::stamped("b")).unwrap(),
    ];
    let mut listener = Listener::at(&hub, &plain, "a", after(old[0])).await;
    let confirmed = listener.line().await;
    assert!(matches!(confirmed, Frame::Subscribed { resumed: false, .. }));
    let resumption = come_back(&hub, "a", After::parse(confirmed.cursor().as_deref())).await;
    assert_eq!(resumption.gap.map(|gap| gap.0), Some(Some(old[0])));

    // Of a stream of several, the cursor of every line stands before each gap that has not been
    // told.
    let names = ["a", "b"].map(name);
    let mut listener = Listener::new(&hub, &stamped);
    let mut joined = Vec::new();
    for (channel, old) in names.iter().zip(old) {
        joined.push(listener.join(channel.as_str(), after(old)).await.unwrap());
    }
    listener.session.add_all(joined);
    let lines = listener.settled().await;
    for at in 0..lines.len() {
        let arrived = &lines[..=at];
        let cursor = Cursor::parse(&arrived[at].cursor().unwrap()).unwrap();
        for (channel, old) in names.iter().zip(old) {
            let told = arrived
                .iter()
                .any(|line| matches!(line, Frame::Gap { channel: c, .. } if c == channel.as_str()));
            assert_eq!(cursor.position(channel) == Some(old), !told, "after {arrived:?}");
        }
    }
}

/// A broker that reads in several steps is overtaken by trimming, and takes the hole for the end of
/// the page. A node that opens the channel then would lack events, and resume everybody past them.
#[tokio::test(start_paused = true)]
async fn a_page_that_was_overtaken_is_not_taken_for_whole() {
    for torn in [Torn::AtTheEnd, Torn::InTheMiddle] {
        for times in [1, 3] {
            let backbone = Backbone::new();
            let positions = say_all(&backbone, 0..20);
            let node = backbone.node();
            let hub = hub(&node, rule());
            node.tear(times, torn);
            let resumption = come_back(&hub, "c", after(positions[4])).await;
            let whole = Resumption {
                resumed: true,
                gap: None,
                texts: numbers(5..20),
            };
            assert_eq!(resumption, whole, "{torn:?}, {times} times");
        }
    }
}

/// As if it were out of reach: the listener comes back, and nothing is hidden from it.
#[tokio::test(start_paused = true)]
async fn a_broker_that_gives_no_whole_page_opens_no_channel() {
    let backbone = Backbone::new();
    let positions = say_all(&backbone, 0..20);
    let node = backbone.node();
    let hub = hub(&node, rule());
    node.tear(usize::MAX, Torn::AtTheEnd);
    let format = hub.register_format(Lines::plain("a")).unwrap();
    let mut listener = Listener::new(&hub, &format);
    let refused = listener.subscribe("c", after(positions[4])).await.unwrap_err();
    assert_eq!(refused.code, airwave_core::Code::Unavailable);
    assert!(node.replays.load(SeqCst) < 10, "its pages are read again and again");
    node.tear(0, Torn::AtTheEnd);
    let resumption = come_back(&hub, "c", after(positions[4])).await;
    assert_eq!((resumption.gap, resumption.texts), (None, numbers(5..20)));
}

#[tokio::test(start_paused = true)]
async fn a_log_that_heals_from_pages_that_were_overtaken_misses_nothing() {
    for torn in [Torn::AtTheEnd, Torn::InTheMiddle] {
        let backbone = Backbone::new();
        say_all(&backbone, 0..5);
        let node = backbone.node();
        let hub = hub(&node, rule());
        let format = hub.register_format(Lines::plain("a")).unwrap();
        let mut listener = Listener::at(&hub, &format, "c", After::Nothing).await;
        listener.confirmation().await;
        listener.settled().await;
        node.lose(15);
        say_all(&backbone, 5..20);
        node.tear(2, torn);
        say_all(&backbone, 20..21);
        assert_eq!(texts(&listener.settled().await), numbers(5..21), "{torn:?}");
    }
}

/// What the node's ring does not hold is read from history.
#[tokio::test(start_paused = true)]
async fn a_listener_that_is_caught_up_from_pages_that_were_overtaken_misses_nothing() {
    for torn in [Torn::AtTheEnd, Torn::InTheMiddle] {
        let backbone = Backbone::new();
        let positions = say_all(&backbone, 0..200);
        let node = backbone.node();
        let mut few = rule();
        few.history.events = 5;
        let hub = hub_with(&node, few, limits().with(|limits| limits.ring_events = 5));
        let format = hub.register_format(Lines::plain("a")).unwrap();
        let _keeps_it_open = Listener::at(&hub, &format, "c", After::Nothing).await;
        node.tear(2, torn);
        let resumption = come_back(&hub, "c", after(positions[9])).await;
        assert_eq!(
            (resumption.resumed, resumption.gap, resumption.texts),
            (true, None, numbers(10..200)),
            "{torn:?}"
        );
    }
}

/// History is trimmed faster than it can be read: after the second gap a listener goes on in the
/// ring, and is told of no third one.
#[tokio::test(start_paused = true)]
async fn a_listener_that_history_cannot_catch_up_goes_on_live_after_the_second_gap() {
    let backbone = Backbone::new();
    let positions = say_all(&backbone, 0..100);
    backbone.keep("c", 5);
    let node = backbone.node();
    let mut few = rule();
    few.history.events = 5;
    let limits = limits().with(|limits| limits.ring_events = 8);
    let hub = hub_with(&node, few, limits);
    let format = hub.register_format(Lines::plain("a")).unwrap();
    let _keeps_it_open = Listener::at(&hub, &format, "c", After::Nothing).await;
    let publishing = {
        let (backbone, node) = (backbone.clone(), node.clone());
        tokio::spawn(async move {
            for round in 0..40 {
                node.hold_answers(true);
                for begin in [100 + 12 * round, 106 + 12 * round] {
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                    // Not more than the ring holds: a listener that is live is not too slow.
                    say_all(&backbone, begin..begin + 6);
                }
                node.hold_answers(false);
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        })
    };
    let mut listener = Listener::at(&hub, &format, "c", after(positions[3])).await;
    let mut lines = Vec::new();
    while !matches!(lines.last(), Some(Frame::Event { text, .. }) if text == "579") {
        lines.push(listener.line().await);
    }
    publishing.await.unwrap();
    let gaps = lines.iter().filter(|line| matches!(line, Frame::Gap { .. })).count();
    assert!((1..=2).contains(&gaps), "{gaps} gaps: {lines:?}");
}

/// The ring holds less than the broker keeps: what the page holds before it is sent as well.
#[tokio::test(start_paused = true)]
async fn a_listener_that_goes_on_live_gets_what_its_last_page_holds() {
    let backbone = Backbone::new();
    let mut positions = say_all(&backbone, 0..100);
    backbone.keep("c", 12);
    let node = backbone.node();
    let limits = limits().with(|limits| limits.ring_events = 8);
    let mut few = rule();
    few.history.events = 5;
    let hub = hub_with(&node, few, limits);
    let format = hub.register_format(Lines::plain("a")).unwrap();
    let _keeps_it_open = Listener::at(&hub, &format, "c", After::Nothing).await;
    // While the first page is on its way more is said than the ring holds, and than history keeps.
    node.hold_answers(true);
    let saying = {
        let (backbone, node) = (backbone.clone(), node.clone());
        tokio::spawn(async move {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            let said = say_all(&backbone, 100..120);
            node.hold_answers(false);
            said
        })
    };
    let mut listener = Listener::at(&hub, &format, "c", after(positions[3])).await;
    positions.extend(saying.await.unwrap());
    let mut lines = Vec::new();
    while !matches!(lines.last(), Some(Frame::Event { text, .. }) if text == "119") {
        lines.push(listener.line().await);
    }
    let gaps: Vec<_> = lines
        .iter()
        .filter_map(|line| match line {
            Frame::Gap { after, cursor, .. } => Some((*after, *cursor)),
            _ => None,
        })
        .collect();
    let expected = [(positions[3], positions[87]), (positions[99], positions[107])];
    assert_eq!(gaps, expected.map(|(after, cursor)| (Some(after), cursor)), "{lines:?}");
    let texts: Vec<_> = lines
        .iter()
        .filter_map(|line| match line {
            Frame::Event { text, .. } => Some(text.clone()),
            _ => None,
        })
        .collect();
    let numbers: Vec<_> = (88..100).chain(108..120).map(|n| n.to_string()).collect();
    assert_eq!(texts, numbers);
}

/// The ring reaches back further than the first page comes: the rest is read there, and not from
/// the broker.
#[tokio::test(start_paused = true)]
async fn a_listener_that_catches_up_goes_on_in_the_ring_as_soon_as_that_reaches_back_to_it() {
    let backbone = Backbone::new();
    let positions = say_all(&backbone, 0..1200);
    let node = backbone.node();
    let mut some = rule();
    some.history.events = 900;
    let limits = limits().with(|limits| limits.ring_events = 900);
    let hub = hub_with(&node, some, limits);
    let format = hub.register_format(Lines::plain("a")).unwrap();
    let _keeps_it_open = Listener::at(&hub, &format, "c", After::Nothing).await;
    let before = node.replays.load(SeqCst);
    let resumption = come_back(&hub, "c", after(positions[9])).await;
    assert_eq!((resumption.gap, resumption.texts), (None, numbers(10..1200)));
    assert_eq!(node.replays.load(SeqCst) - before, 1, "one page of five hundred");
}
