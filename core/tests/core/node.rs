use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use airwave_core::rule::{Limits, ReplayOnSubscribe};
use airwave_core::session::{After, CloseReason};
use airwave_core::{Broker, Code, Hub, NotReadyKind, PageLimit, Session};
use tokio::time::{Instant, sleep};

use crate::support::*;

const SECOND: Duration = Duration::from_secs(1);

fn listening_hub(limits: Limits) -> (Arc<Backbone>, Arc<Node>, Hub) {
    let backbone = Backbone::new();
    let node = backbone.node();
    let hub = hub_with(&node, rule(), limits);
    (backbone, node, hub)
}

/// With real threads, so that they truly come at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_that_subscribe_at_once_are_one_follow_and_one_replay() {
    let (backbone, node, hub) = listening_hub(limits());
    let format = hub.register_format(Lines::plain("a")).unwrap();
    let history: Vec<_> = (0..100).map(|n| backbone.say("c", &n.to_string())).collect();
    // They wait for each other at the broker's door.
    node.hang(true);
    let joins: Vec<_> = (0..10_000)
        .map(|n| {
            let (hub, format, cursor) = (hub.clone(), format.clone(), history[n % 99]);
            tokio::spawn(async move {
                let mut listener = Listener::new(&hub, &format);
                let joined = listener.join("c", after(cursor)).await.unwrap();
                listener.session.add(joined, None);
                assert_eq!(listener.confirmation().await, (cursor, true));
                assert_eq!(listener.line().await.text(), (n % 99 + 1).to_string());
                listener
            })
        })
        .collect();
    while node.follows.load(SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    node.hang(false);
    let mut listeners = Vec::new();
    for join in joins {
        listeners.push(join.await.unwrap());
    }
    assert_eq!((node.follows.load(SeqCst), node.replays.load(SeqCst)), (1, 1));
    assert_eq!(hub.sessions(), 10_000);
    assert_eq!(hub.channels(9)[0].listeners, [("a", 10_000)]);
}

/// Those whose cursors the ring does not hold ask the broker, but those that ask the same at once
/// ask once.
#[tokio::test(start_paused = true)]
async fn a_thousand_that_ask_the_same_at_once_are_one_replay() {
    let (backbone, node, hub) = listening_hub(limits().with(|limits| limits.ring_events = 10));
    let mut rule = rule();
    rule.history.events = 10;
    drop(hub);
    let hub = hub_with(&node, rule, limits().with(|limits| limits.ring_events = 10));
    let format = hub.register_format(Lines::plain("a")).unwrap();
    let history: Vec<_> = (0..100).map(|n| backbone.say("c", &n.to_string())).collect();
    let _open = Listener::at(&hub, &format, "c", After::Nothing).await;
    let before = node.replays.load(SeqCst);
    node.hang(true);
    let joins: Vec<_> = (0..1000)
        .map(|_| {
            let (hub, format, cursor) = (hub.clone(), format.clone(), history[5]);
            tokio::spawn(async move { Listener::at(&hub, &format, "c", after(cursor)).await })
        })
        .collect();
    settle().await;
    node.hang(false);
    for join in joins {
        let mut listener = join.await.unwrap();
        listener.confirmation().await;
        assert_eq!(listener.ready().len(), 94);
    }
    assert_eq!(node.replays.load(SeqCst) - before, 1);
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_is_away_refuses_joins_and_is_asked_anew() {
    for hangs in [false, true] {
        let (_, node, hub) = listening_hub(limits());
        let format = hub.register_format(Lines::plain("a")).unwrap();
        node.hang(hangs);
        node.unavailable(!hangs);
        let mut listener = Listener::new(&hub, &format);
        let since = Instant::now();
        let refusal = listener.subscribe("c", After::Nothing).await.unwrap_err();
        assert_eq!(refusal.code, Code::Unavailable);
        // P9.
        assert!(since.elapsed() <= 2 * SECOND + SECOND / 10, "{:?}", since.elapsed());
        let since = Instant::now();
        assert_eq!(
            hub.channel("c").unwrap().publish("x", "y").await.unwrap_err().code,
            Code::Unavailable
        );
        assert!(since.elapsed() <= 2 * SECOND + SECOND / 10, "{:?}", since.elapsed());
        assert!(hub.ready().await.is_err());
        node.hang(false);
        node.unavailable(false);
        listener.subscribe("c", After::Nothing).await.unwrap();
        // As soon as the node has asked its broker again.
        sleep(4 * SECOND).await;
        assert!(hub.ready().await.is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn an_unused_log_is_closed_and_opened_again() {
    let (backbone, node, hub) = listening_hub(limits());
    let format = hub.register_format(Lines::plain("a")).unwrap();
    for round in 1..4 {
        let mut listener = Listener::at(&hub, &format, "c", After::Nothing).await;
        listener.confirmation().await;
        sleep(100 * SECOND).await;
        assert_eq!(node.feeds.load(SeqCst), 1, "as long as the channel has a listener");
        backbone.say("c", "x");
        assert_eq!(texts(&listener.ready()), ["x"]);
        drop(listener);
        sleep(20 * SECOND).await;
        assert_eq!((node.feeds.load(SeqCst), hub.channels(9).len()), (1, 1), "it lingers");
        // Who comes back in time finds it open.
        drop(Listener::at(&hub, &format, "c", After::Nothing).await);
        assert_eq!(node.follows.load(SeqCst), round);
        sleep(29 * SECOND).await;
        assert_eq!(node.feeds.load(SeqCst), 1);
        sleep(3 * SECOND).await;
        assert_eq!((node.feeds.load(SeqCst), hub.channels(9).len()), (0, 0));
        assert_eq!(node.unsubscribed.load(SeqCst), round);
    }
}

/// Listeners come and go in the moment when logs are closed. None is refused, none misses anything,
/// and no feed is left over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscribing_in_the_moment_of_closing_works() {
    let (backbone, node, hub) = listening_hub(limits().with(|limits| {
        limits.linger = Duration::ZERO;
        limits.heartbeat = Duration::from_millis(40);
    }));
    let format = hub.register_format(Lines::plain("a")).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let joins = Arc::new(AtomicUsize::new(0));
    let visitors: Vec<_> = (0..3)
        .map(|n| {
            let (hub, format, backbone, stop, joins) =
                (hub.clone(), format.clone(), backbone.clone(), stop.clone(), joins.clone());
            tokio::spawn(async move {
                let mut turn = 0;
                while !stop.load(SeqCst) {
                    let mut listener = Listener::at(&hub, &format, "c", After::Nothing).await;
                    listener.confirmation().await;
                    turn += 1;
                    let text = format!("{n}-{turn}");
                    backbone.say("c", &text);
                    // Others speak, too.
                    while !matches!(listener.line().await, Frame::Event { text: heard, .. } if heard == text) {}
                    drop(listener);
                    joins.fetch_add(1, SeqCst);
                    // Now and then the channel has no listener.
                    sleep(Duration::from_millis([0, 3, 11][turn % 3])).await;
                }
            })
        })
        .collect();
    // Until logs have been closed under them often enough, whatever the machine's speed.
    let patience = Instant::now();
    while node.unsubscribed.load(SeqCst) < 20 || joins.load(SeqCst) < 500 {
        assert!(patience.elapsed() < 2 * PATIENCE, "{} closed", node.unsubscribed.load(SeqCst));
        sleep(Duration::from_millis(5)).await;
    }
    stop.store(true, SeqCst);
    for visitor in visitors {
        visitor.await.unwrap();
    }
    while node.feeds.load(SeqCst) > 0 {
        assert!(patience.elapsed() < 3 * PATIENCE);
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(node.follows.load(SeqCst), node.unsubscribed.load(SeqCst));
}

#[tokio::test(start_paused = true)]
async fn drain_tells_every_session_and_refuses_new_ones() {
    let (backbone, _, hub) = listening_hub(limits());
    let format = hub.register_format(Lines::plain("a")).unwrap();
    let mut waiting = Vec::new();
    for n in 0..100 {
        let mut listener = Listener::at(&hub, &format, "c", After::Nothing).await;
        listener.confirmation().await;
        if n % 2 == 0 {
            listener.ready();
        }
        waiting.push(tokio::spawn(async move {
            let lines = listener.rest().await;
            (lines, listener.closed)
        }));
    }
    let mut with_news = Listener::at(&hub, &format, "c", After::Nothing).await;
    let mut without_channels = Listener::new(&hub, &format);
    settle().await;
    backbone.say("c", "last");
    settle().await;
    hub.drain();
    for waiting in waiting {
        let (lines, closed) = waiting.await.unwrap();
        assert_eq!(lines.last(), Some(&Frame::Drain));
        assert!(matches!(closed, Some(CloseReason::Drain { retry }) if retry >= 1000));
    }
    for listener in [&mut with_news, &mut without_channels] {
        assert_eq!(listener.rest().await.last(), Some(&Frame::Drain));
    }
    assert_eq!(hub.connect(request(), true).map(|_| ()).unwrap_err().code, Code::Unavailable);
    assert_eq!(
        with_news.subscribe("d", After::Nothing).await.unwrap_err().code,
        Code::Unavailable
    );
    let why = hub.ready().await.unwrap_err();
    assert_eq!((why.kind, why.message.as_str()), (NotReadyKind::Draining, "draining"));
}

/// After ten seconds without the broker every session is told, once for each outage.
#[tokio::test(start_paused = true)]
async fn an_outage_is_told_once() {
    for hangs in [false, true] {
        let (_, node, hub) = listening_hub(limits());
        let format = hub.register_format(Lines::plain("a")).unwrap();
        let mut listeners = Vec::new();
        for _ in 0..3 {
            let mut listener = Listener::at(&hub, &format, "c", After::Nothing).await;
            listener.confirmation().await;
            listeners.push(listener);
        }
        for _ in 0..3 {
            sleep(10 * SECOND).await;
            node.hang(hangs);
            node.unavailable(!hangs);
            sleep(8 * SECOND).await;
            for listener in &mut listeners {
                assert_eq!(listener.ready(), [], "too early");
            }
            sleep(10 * SECOND).await;
            for listener in &mut listeners {
                assert_eq!(listener.ready(), [Frame::Stale]);
            }
            sleep(60 * SECOND).await;
            for listener in &mut listeners {
                assert_eq!(listener.ready(), [], "once");
            }
            node.hang(false);
            node.unavailable(false);
        }
        // A short one is not worth a word.
        sleep(10 * SECOND).await;
        node.unavailable(true);
        sleep(6 * SECOND).await;
        node.unavailable(false);
        sleep(30 * SECOND).await;
        for listener in &mut listeners {
            assert_eq!(listener.ready(), []);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn silence_is_broken_by_heartbeats() {
    let (backbone, _, hub) = listening_hub(limits().with(|limits| limits.heartbeat = 15 * SECOND));
    let format = hub.register_format(Lines::plain("a")).unwrap();
    for visible in [false, true] {
        let session = Session::new(hub.connect(request(), true).unwrap(), &format).visible_heartbeat(visible);
        let mut listener = Listener::of(session);
        listener.subscribe("c", After::Nothing).await.unwrap();
        listener.confirmation().await;
        let mut since = Instant::now();
        for _ in 0..5 {
            assert_eq!(listener.line().await, Frame::Heartbeat { visible });
            let passed = since.elapsed();
            // The clock of sessions ticks once a second.
            assert!((14 * SECOND..=17 * SECOND).contains(&passed), "{passed:?}");
            since = Instant::now();
        }
        // What is said counts as a sign of life.
        for _ in 0..10 {
            sleep(10 * SECOND).await;
            backbone.say("c", "x");
            assert_eq!(texts(&listener.ready()), ["x"]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_expected_to_answer_and_does_not_is_closed() {
    let (_, _, hub) = listening_hub(limits().with(|limits| {
        limits.heartbeat = 15 * SECOND;
        limits.idle = 60 * SECOND;
    }));
    let format = hub.register_format(Lines::plain("a")).unwrap();
    let mut listener = Listener::of(Session::new(hub.connect(request(), true).unwrap(), &format).expects_answers());
    for _ in 0..10 {
        assert_eq!(listener.line().await, Frame::Heartbeat { visible: false });
        listener.session.record_activity();
    }
    let since = Instant::now();
    let lines = listener.rest().await;
    assert!(
        since.elapsed() >= 58 * SECOND && since.elapsed() <= 62 * SECOND,
        "{:?}",
        since.elapsed()
    );
    assert_eq!(listener.closed, Some(CloseReason::Silent));
    assert!((2..=4).contains(&lines.len()), "asked several times: {lines:?}");
    // Who is not expected to answer never is.
    let mut listener = Listener::new(&hub, &format);
    sleep(3600 * SECOND).await;
    listener.ready();
    assert_eq!(listener.closed, None);
}

/// A loop that waits for its socket is woken when it has waited too long, though its flag is set
/// all the time.
#[tokio::test(start_paused = true)]
async fn a_write_that_makes_no_progress_is_cut() {
    let (backbone, _, hub) = listening_hub(limits());
    let format = hub.register_format(Lines::plain("a")).unwrap();
    let mut listener = Listener::at(&hub, &format, "c", After::Nothing).await;
    listener.confirmation().await;
    // Slow, but not stuck.
    for _ in 0..10 {
        listener.session.stalled(true);
        sleep(20 * SECOND).await;
        listener.session.stalled(false);
    }
    backbone.say("c", "x");
    assert_eq!(texts(&listener.ready()), ["x"]);
    listener.session.stalled(true);
    backbone.say("c", "rings");
    let since = Instant::now();
    let cut = tokio::time::timeout(100 * SECOND, std::future::poll_fn(|cx| listener.session.poll_cut(cx))).await;
    assert_eq!(cut, Ok(CloseReason::Stalled));
    assert!(
        since.elapsed() >= 29 * SECOND && since.elapsed() <= 32 * SECOND,
        "{:?}",
        since.elapsed()
    );
    let mut out = Vec::new();
    assert_eq!(
        listener.session.turn(&mut out).await,
        airwave_core::session::Turn::Closed(CloseReason::Stalled)
    );
}

fn drop_hub_last(hub: Hub, listeners: Vec<Listener>) {
    drop(listeners);
    assert_eq!(hub.sessions(), 0);
    assert!(hub.channels(9).iter().all(|channel| channel.listeners.is_empty()));
}

async fn drop_hub_first(hub: Hub, listeners: Vec<Listener>, lines: &Arc<Lines>) {
    drop(hub);
    settle().await;
    assert!(Arc::strong_count(lines) > 1, "a session is enough to keep its hub");
    drop(listeners);
}

/// Subscribes to a channel that is not open yet, and gives up before the broker has answered.
async fn give_up_a_subscription(listener: &Listener) {
    let subscriber = listener.session.subscriber();
    let joining = tokio::spawn(async move { subscriber.subscribe(&name("e"), After::Nothing).await.is_ok() });
    sleep(SECOND).await;
    joining.abort();
}

async fn no_call_comes(node: &Node, ending: &str) {
    let calls = || node.pings.load(SeqCst) + node.follows.load(SeqCst) + node.replays.load(SeqCst);
    let before = calls();
    sleep(60 * SECOND).await;
    assert_eq!(calls(), before, "{ending}: a task still calls the broker");
}

/// Nothing holds a hub but those who use it, and nothing of it is left when they are gone.
#[tokio::test(start_paused = true)]
async fn when_every_client_has_gone_nothing_is_left() {
    let backbone = Backbone::new();
    let node = backbone.node();
    for ending in [
        "hub last",
        "session last",
        "while healing",
        "while a client waits for history",
        "while hanging",
    ] {
        let mut rule = rule();
        rule.history.events = 4;
        let hub = hub_with(&node, rule, limits().with(|limits| limits.ring_events = 4));
        let lines = Lines::plain("a");
        let format = hub.register_format(lines.clone()).unwrap();
        let mut listeners = Vec::new();
        for n in 0..10 {
            listeners.push(Listener::at(&hub, &format, ["c", "d"][n % 2], After::Nothing).await);
        }
        for n in 0..10 {
            backbone.say("c", &n.to_string());
        }
        drop(format);
        match ending {
            "hub last" => drop_hub_last(hub, listeners),
            "session last" => drop_hub_first(hub, listeners, &lines).await,
            "while healing" => {
                node.unavailable(true);
                node.cut();
                sleep(SECOND).await;
                drop((listeners, hub));
            }
            "while a client waits for history" => {
                node.unavailable(true);
                for listener in &mut listeners {
                    listener.ready();
                }
                sleep(SECOND).await;
                drop((listeners, hub));
            }
            _ => {
                node.hang(true);
                node.cut();
                give_up_a_subscription(&listeners[0]).await;
                drop((listeners, hub));
            }
        }
        // Calls that are under way may finish, within the broker's time.
        sleep(3 * SECOND).await;
        node.unavailable(false);
        node.hang(false);
        assert_eq!(Arc::strong_count(&lines), 1, "{ending}: the hub lives on");
        assert_eq!(node.feeds.load(SeqCst), 0, "{ending}: a feed is still open");
        no_call_comes(&node, ending).await;
        // The test's own handle, and each node's handle on itself.
        assert_eq!(Arc::strong_count(&node), 1, "{ending}");
    }
}

/// The last hub goes while events come in on another thread. Once that hung for ever.
#[test]
fn a_hub_may_go_while_events_come_in() {
    let backbone = Backbone::new();
    let node = backbone.node();
    let stop = Arc::new(AtomicBool::new(false));
    let publisher = {
        let (backbone, stop) = (backbone.clone(), stop.clone());
        std::thread::spawn(move || {
            while !stop.load(SeqCst) {
                backbone.say("c", "x");
            }
        })
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    for _ in 0..300 {
        runtime.block_on(async {
            let hub = hub(&node, rule());
            let format = hub.register_format(Lines::plain("a")).unwrap();
            let mut listener = Listener::at(&hub, &format, "c", After::Nothing).await;
            listener.lines(3).await;
        });
    }
    stop.store(true, SeqCst);
    publisher.join().unwrap();
    drop(runtime);
    assert_eq!(node.feeds.load(SeqCst), 0);
}

/// The broker the nodes of this file stand on is what it says.
#[tokio::test]
async fn the_test_broker_keeps_the_contract_where_it_matters() {
    let backbone = Backbone::new();
    let node = backbone.node();
    let positions: Vec<_> = (0..5).map(|n| backbone.say("c", &n.to_string())).collect();
    backbone.keep("c", 3);
    let replay = async |after| node.replay(&name("c"), after, PageLimit::events(2)).await.unwrap();
    let page = replay(Some(positions[1])).await;
    assert_eq!((page.complete, page.more, page.events.len()), (true, true, 2));
    assert!(!replay(Some(positions[0])).await.complete);
    let page = replay(None).await;
    assert_eq!((page.complete, page.events[0].position), (false, positions[3]));
    let mut feed = node.follow(&name("c")).await.unwrap();
    assert_eq!(feed.head, positions[4]);
    let next = backbone.say("c", "5");
    assert_eq!(feed.next().await.unwrap().position, next);
    node.cut();
    assert!(feed.next().await.is_none());
}

/// Large events to ever new channels, each of which has a listener: the rings of the node stay
/// within their half of `limits.memory` after each event, and no listener misses one.
#[tokio::test]
async fn a_flood_of_large_events_to_new_channels_stays_within_the_memory_of_the_node() {
    const LARGE: usize = 60_000;
    for replay in [ReplayOnSubscribe::None, ReplayOnSubscribe::Last] {
        for listens in [true, false] {
            let backbone = Backbone::new();
            let mut rule = rule();
            rule.replay = replay;
            let limits = Limits::default().with(|limits| {
                limits.memory = 8 << 20;
                limits.heartbeat = Duration::from_secs(3600);
            });
            let bound = limits.memory / 2;
            let hub = hub_with(&backbone.node(), rule, limits);
            let format = hub.register_format(Lines::plain("a")).unwrap();
            let mut listeners = Vec::new();
            let mut most = 0;
            for n in 0..60 {
                let channel = format!("c{n}");
                let mut listener = Listener::at(&hub, &format, &channel, After::Nothing).await;
                listener.confirmation().await;
                let text = format!("{n}-{}", "x".repeat(LARGE));
                // Two, so that the newest of each key is more than the ring's last.
                for key in ["k", "l"] {
                    backbone.say_keyed(&channel, key, &text);
                    let held: usize = hub.channels(usize::MAX).iter().map(|state| state.bytes).sum();
                    most = most.max(held);
                }
                for _ in 0..2 {
                    assert!(listener.line().await.text() == text, "{channel}");
                }
                if listens {
                    listeners.push((listener, channel));
                }
            }
            assert!(most <= bound, "{most} of {bound} bytes: {replay:?}, {listens}");
            assert!(most > bound / 2, "the bound is used: {most}");
            // What has left the rings is read from the broker, and a fresh listener gets the last.
            for (listener, channel) in listeners.iter_mut().take(5) {
                let head = backbone.say_keyed(channel, "k", "more");
                assert_eq!(listener.line().await.text(), "more");
                let mut again = Listener::at(&hub, &format, channel, after(head)).await;
                assert_eq!(again.confirmation().await, (head, true));
                let mut fresh = Listener::at(&hub, &format, channel, After::Nothing).await;
                fresh.confirmation().await;
                let lines = fresh.settled().await;
                let expected = if replay == ReplayOnSubscribe::Last { 2 } else { 0 };
                assert_eq!(lines.len(), expected, "{channel}");
            }
        }
    }
}
