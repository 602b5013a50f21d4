//! NATS beyond the contract: outages of every kind, and what is refused. Real servers for each
//! test.

#![cfg(feature = "nats")]
#![allow(clippy::unwrap_used)]

#[path = "support/hub.rs"]
#[allow(dead_code)] // a part of it is used
mod hub;
#[path = "support/outage.rs"]
mod outage;
#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/nats.rs"]
mod support;

use std::sync::Arc;
use std::time::Duration;

use airwave_brokers::Nats;
use airwave_brokers::nats::{NatsConnectError, Tuning};
use airwave_core::rule::TransportName;
use airwave_core::{Append, Broker, Data, EventName, Feed, Message, PageLimit, Position, Rule, Rules};
use futures_util::StreamExt;
use outage::{ended, found, insist, name, publish, say, unavailable};
use proxy::Proxy;
use serde_json::{Value, json};
use support::{NatsServer, Release};
use tokio::time::{Instant, sleep, timeout};

/// How long a test waits for anything. It decides nothing but when a hang is called one.
const PATIENCE: Duration = Duration::from_secs(60);

async fn connect(server: &NatsServer) -> Nats {
    Nats::connect(&server.url(), Rules::default()).await.unwrap()
}

/// All that was given before is incomplete, and what is given now is above it.
async fn begins_above(broker: &Nats, old: &[Position]) {
    let new = insist(async || broker.publish(&name("a"), say("new")).await).await.position;
    assert!(new > *old.last().unwrap());
    for after in old {
        let replay = insist(async || broker.replay(&name("a"), Some(*after), PageLimit::events(100)).await).await;
        assert!(
            !replay.complete && replay.events.len() == 1 && replay.head == new,
            "after {after}: {replay:?}"
        );
    }
}

/// Ten events and the base before them, each heard.
async fn ten(broker: &Nats, feed: &mut Feed) -> Vec<Position> {
    let mut given = vec![feed.head];
    for _ in 0..10 {
        given.push(publish(broker, "a").await);
        assert_eq!(feed.next().await.unwrap().position, *given.last().unwrap());
    }
    given
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_on_which_something_arrives_is_not_given_up() {
    let Some(server) = NatsServer::start() else { return };
    let proxy = Proxy::to(server.port);
    let through = format!("nats://127.0.0.1:{}", proxy.port);
    let near = Nats::connect(&through, Rules::default()).await.unwrap();
    let far = connect(&server).await;
    outage::a_slow_line_is_not_a_dead_one(&near, &far, &proxy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_behind_others_waits_while_they_are_answered() {
    let Some(server) = NatsServer::start() else { return };
    let proxy = Proxy::to(server.port);
    let through = format!("nats://127.0.0.1:{}", proxy.port);
    let broker = Nats::connect(&through, Rules::default()).await.unwrap();
    outage::calls_behind_others_are_not_late(Arc::new(broker), &proxy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_restarts_empty_gives_no_position_again_and_calls_nothing_complete() {
    let Some(server) = NatsServer::start() else { return };
    let broker = connect(&server).await;
    let mut feed = broker.follow(&name("a")).await.unwrap();
    let old = ten(&broker, &mut feed).await;

    server.kill();
    ended(&mut feed).await;
    unavailable(broker.publish(&name("a"), say("lost"))).await;
    unavailable(broker.ping()).await;
    unavailable(broker.follow(&name("a"))).await;
    server.wipe();
    assert!(server.run());
    begins_above(&broker, &old).await;
    insist(async || broker.ping().await).await;
    let mut feed = insist(async || broker.follow(&name("a")).await).await;
    let next = publish(&broker, "a").await;
    assert_eq!(feed.next().await.unwrap().position, next);
}

/// Its stream comes back without events, and counts from the number at which it was made: also for
/// nodes that knew nothing of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_in_memory_gives_no_position_again() {
    let Some(server) = NatsServer::start() else { return };
    let url = format!("{}?storage=memory", server.url());
    let broker = Nats::connect(&url, Rules::default()).await.unwrap();
    let mut feed = broker.follow(&name("a")).await.unwrap();
    let old = ten(&broker, &mut feed).await;
    drop(broker);
    server.kill();
    assert!(server.run());
    let broker = Nats::connect(&url, Rules::default()).await.unwrap();
    begins_above(&broker, &old).await;
}

/// The node that made the stream has a clock that is ahead, the one that finds it empty has not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_in_memory_that_a_clock_ahead_made_gives_no_position_again() {
    let Some(server) = NatsServer::start() else { return };
    let url = format!("{}?storage=memory", server.url());
    let ahead = Tuning::default().with(|tuning| tuning.clock_ahead = 120_000_000);
    let broker = Nats::connect_tuned(&url, Rules::default(), ahead).await.unwrap();
    let mut feed = broker.follow(&name("a")).await.unwrap();
    let old = ten(&broker, &mut feed).await;
    drop(broker);
    server.kill();
    assert!(server.run());
    let broker = Nats::connect(&url, Rules::default()).await.unwrap();
    begins_above(&broker, &old).await;
    // One whose clock is ahead takes nothing away that was stored since.
    let position = publish(&broker, "b").await;
    let other = Nats::connect_tuned(&url, Rules::default(), ahead).await.unwrap();
    let replay = other.replay(&name("b"), None, PageLimit::events(10)).await.unwrap();
    assert_eq!(
        replay.events.iter().map(|event| event.position).collect::<Vec<_>>(),
        [position]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn feeds_heal_after_a_restart_with_all_that_was_stored() {
    let Some(server) = NatsServer::start() else { return };
    let nodes = [connect(&server).await, connect(&server).await];
    let mut feed = nodes[0].follow(&name("a")).await.unwrap();
    let first = publish(&nodes[1], "a").await;
    assert_eq!(feed.next().await.unwrap().position, first);

    server.kill();
    ended(&mut feed).await;
    assert!(server.run());

    let second = insist(async || nodes[1].publish(&name("a"), say("second")).await)
        .await
        .position;
    let feed = insist(async || nodes[0].follow(&name("a")).await).await;
    assert_eq!(feed.head, second);
    let replay = nodes[0]
        .replay(&name("a"), Some(first), PageLimit::events(100))
        .await
        .unwrap();
    assert!(replay.complete && replay.events.len() == 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stands_still_is_found_and_comes_back() {
    let Some(server) = NatsServer::start() else { return };
    let broker = connect(&server).await;
    outage::silence_is_found_and_healed(&broker, |silent| server.signal(if silent { "STOP" } else { "CONT" })).await;
}

/// The connections stay open, and nothing comes through any more: no end, no error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_that_swallows_everything_is_found_and_healed() {
    let Some(server) = NatsServer::start() else { return };
    let proxy = Proxy::to(server.port);
    let through = format!("nats://127.0.0.1:{}", proxy.port);
    let broker = Nats::connect(&through, hub::rules()).await.unwrap();
    outage::silence_is_found_and_healed(&broker, |silent| proxy.swallow(silent)).await;
    let other = Nats::connect(&server.url(), hub::rules()).await.unwrap();
    outage::each_hears_what_others_publish(Arc::new(broker), Arc::new(other), |silent| proxy.swallow(silent)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_is_no_busy_loop() {
    let Some(server) = NatsServer::start() else { return };
    let proxy = Proxy::to(server.port);
    let through = format!("nats://127.0.0.1:{}", proxy.port);
    let _broker = Nats::connect(&through, Rules::default()).await.unwrap();
    // After 50 ms, 100 ms, … 1 s, and half of that by chance.
    outage::an_outage_is_no_busy_loop(&proxy, 12).await;
}

/// A node that stands still for a moment finds more than its client library has room for, which
/// drops the newest. It says that it did, not what.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_client_library_drops_is_never_missed_in_silence() {
    const SENT: usize = 100;
    let Some(server) = NatsServer::start() else { return };
    let other = Nats::connect(&server.url(), hub::rules()).await.unwrap();
    let url = server.url();
    let tuning = Tuning::default().with(|tuning| tuning.held = Some(2));
    let (ready, is_ready) = tokio::sync::oneshot::channel();
    let (go_on, stands) = std::sync::mpsc::channel::<()>();
    let node = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let narrow = Nats::connect_tuned(&url, hub::rules(), tuning).await.unwrap();
            let mut feed = narrow.follow(&name("a")).await.unwrap();
            ready.send(()).unwrap();
            // The thread waits, and with it everything that belongs to the node.
            stands.recv().unwrap();
            let mut last = feed.head;
            let mut shown = 0;
            while let Some(event) = timeout(PATIENCE, feed.next()).await.expect("it waits for what was dropped") {
                assert_eq!(event.previous, last, "a silent gap");
                last = event.position;
                shown += 1;
            }
            (last, shown)
        })
    });
    is_ready.await.unwrap();
    for _ in 0..SENT {
        publish(&other, "a").await;
    }
    go_on.send(()).unwrap();
    let (last, shown) = node.await.unwrap();
    assert!(shown < SENT, "nothing was dropped");
    let replay = other.replay(&name("a"), Some(last), PageLimit::events(1000)).await.unwrap();
    assert!(replay.complete && replay.events.len() == SENT - shown, "{replay:?}");
}

/// The server stores to the stream but delivers its messages to no node. Only a node's probe to
/// itself finds this.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_stores_and_does_not_tell_is_found() {
    let Some(server) = NatsServer::start() else { return };
    let broker = connect(&server).await;
    let mut feed = broker.follow(&name("a")).await.unwrap();
    let mut config = server.ask("STREAM.INFO.airwave", Value::Null).await["config"].take();
    config.as_object_mut().unwrap().remove("republish");
    let since = Instant::now();
    let changed = server.ask("STREAM.UPDATE.airwave", config).await;
    assert!(changed.get("error").is_none(), "{changed}");
    found(&mut feed, since).await;
}

/// Who waits for an outage's end waits in vain for what was published in it: nothing is sent later
/// in secret.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_published_in_an_outage_does_not_come_later() {
    let Some(server) = NatsServer::start() else { return };
    let broker = connect(&server).await;
    let first = publish(&broker, "a").await;
    server.kill();
    for _ in 0..3 {
        unavailable(broker.publish(&name("a"), say("lost"))).await;
    }
    assert!(server.run());
    insist(async || broker.ping().await).await;
    insist(async || broker.ping().await).await;
    let replay = broker.replay(&name("a"), Some(first), PageLimit::events(10)).await.unwrap();
    assert!(replay.complete && replay.events.is_empty(), "{replay:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_loses_its_leader_goes_on_with_all_that_was_acknowledged() {
    let Some(servers) = NatsServer::cluster() else { return };
    let hosts = servers
        .each_ref()
        .map(|server| format!("127.0.0.1:{}", server.port))
        .join(",");
    let url = format!("nats://{hosts}?replicas=3");
    let connecting = async {
        loop {
            // It takes a moment to find out who leads.
            match Nats::connect(&url, Rules::default()).await {
                Ok(node) => return node,
                Err(error) => eprintln!("not yet: {error}"),
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    let broker = timeout(PATIENCE, connecting).await.unwrap();
    let mut feed = broker.follow(&name("a")).await.unwrap();
    let mut given = vec![feed.head];
    for round in 0..2 {
        for _ in 0..20 {
            given.push(insist(async || broker.publish(&name("a"), say("text")).await).await.position);
        }
        let running = &servers[usize::from(round == 1)..];
        let led = async {
            loop {
                let info = running[running.len() - 1].ask("STREAM.INFO.airwave", Value::Null).await;
                let leader = info["cluster"]["leader"].as_str();
                if let Some(leader) = leader.and_then(|name| name.strip_prefix('n')?.parse::<usize>().ok()) {
                    return leader;
                }
                sleep(Duration::from_millis(100)).await;
            }
        };
        let leader = timeout(PATIENCE, led).await.expect("no server leads");
        servers[leader].kill();
        let next = insist(async || broker.publish(&name("a"), say("after")).await).await.position;
        assert!(next > *given.last().unwrap());
        given.push(next);
        let replay = insist(async || broker.replay(&name("a"), Some(given[0]), PageLimit::events(1000)).await).await;
        let replayed: Vec<Position> = replay.events.iter().map(|event| event.position).collect();
        assert!(replay.complete, "an acknowledged event was lost");
        // A publish that was not answered may have happened, and was published again.
        assert!(
            given[1..].iter().all(|position| replayed.contains(position)),
            "{given:?} {replayed:?}"
        );
        assert!(servers[leader].run());
        insist(async || broker.ping().await).await;
    }
    // However it went on, nothing is missing before the end or the next event.
    let mut last = feed.head;
    while let Ok(Some(event)) = timeout(Duration::from_secs(1), feed.next()).await {
        assert_eq!(event.previous, last);
        last = event.position;
    }
}

async fn refused(url: &str) -> NatsConnectError {
    match timeout(PATIENCE, Nats::connect(url, Rules::default())).await.unwrap() {
        Ok(_) => panic!("connected to {url}"),
        Err(error) => error,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_cannot_be_used_is_refused_with_what_to_do() {
    let Some(server) = NatsServer::configured("") else { return };
    let error = refused(&server.url()).await.to_string();
    assert!(error.contains("no JetStream; start it with -js"), "{error}");
    let address = format!("127.0.0.1:{}", server.port);
    server.kill();
    let error = refused(&format!("nats://me:s3cret@{address}")).await;
    assert!(matches!(error, NatsConnectError::Unreachable { .. }), "{error}");
    let error = format!("{error} {error:?}");
    assert!(
        error.contains(&address) && error.contains("start it") && !error.contains("s3cret"),
        "{error}"
    );

    let Some(server) = NatsServer::start() else { return };
    let error = refused(&format!("{}?replicas=3", server.url())).await.to_string();
    assert!(
        error.contains("replicas=3") && error.contains("write other replicas"),
        "{error}"
    );
    let made = json!({ "name": "airwave", "subjects": ["other.>"], "storage": "file" });
    server.ask("STREAM.CREATE.airwave", made).await;
    let error = refused(&server.url()).await.to_string();
    assert!(
        error.contains("subjects differs") && error.contains("?prefix=NAME"),
        "{error}"
    );
    let made = json!({ "name": "other", "subjects": ["mine.log.>"], "storage": "file" });
    server.ask("STREAM.CREATE.other", made).await;
    let error = refused(&format!("{}?prefix=mine", server.url())).await.to_string();
    assert!(error.contains("mine.log.>") && error.contains("another prefix"), "{error}");
    let good = Nats::connect(&format!("{}?prefix=good", server.url()), Rules::default())
        .await
        .unwrap();
    publish(&good, "a").await;
    let error = refused(&format!("{}?prefix=good&storage=memory", server.url()))
        .await
        .to_string();
    assert!(error.contains("write storage=file"), "{error}");
}

/// The stream keeps what the most generous rule says, and a node with older rules takes nothing of
/// that away. Each shows what its own rule says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_of_the_stream_only_grow_by_themselves() {
    let Some(server) = NatsServer::start() else { return };
    let keeping = |events: usize| {
        let mut rule = Rule::new("{*all}".parse().unwrap(), vec![TransportName::SSE]);
        rule.history.events = events;
        Rules::new([rule])
    };
    let most = async || server.ask("STREAM.INFO.airwave", Value::Null).await["config"]["max_msgs_per_subject"].clone();
    let old = Nats::connect(&server.url(), keeping(500)).await.unwrap();
    for _ in 0..20 {
        publish(&old, "a").await;
    }
    assert_eq!(most().await, 501);
    let shown = async |node: &Nats| {
        node.replay(&name("a"), None, PageLimit::events(1000))
            .await
            .unwrap()
            .events
            .len()
    };
    let few = Nats::connect(&server.url(), keeping(3)).await.unwrap();
    assert_eq!((most().await, shown(&few).await, shown(&old).await), (json!(501), 3, 20));
    let new = Nats::connect(&server.url(), keeping(1000)).await.unwrap();
    assert_eq!((most().await, shown(&few).await, shown(&new).await), (json!(1001), 3, 20));
    // Nor does one that only comes back.
    server.cut().await;
    for node in [&old, &few, &new] {
        insist(async || node.ping().await).await;
        insist(async || node.ping().await).await;
    }
    assert_eq!((most().await, shown(&few).await, shown(&new).await), (json!(1001), 3, 20));
}

/// What lies in the stream since version 0.1: its fifth number is the clock of who wrote it, which
/// nothing is compared with any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_as_old_as_the_server_says_whatever_their_writer_wrote() {
    let Some(server) = NatsServer::start() else { return };
    let broker = connect(&server).await;
    let base = broker.replay(&name("a"), None, PageLimit::events(0)).await.unwrap().head;
    let client = server.client().await;
    let mut previous = base.0;
    for (n, written) in ["1", "1700000000000000", "9999999999999999999", "0"].iter().enumerate() {
        let payload = format!("{previous}:{base}:{}:{n}:{written}:t0400said{n}", 5 * n);
        let answer = client.request("airwave.log.c.a", payload.into()).await.unwrap();
        let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
        previous = answer["seq"].as_u64().unwrap();
    }
    for limit in [4, 100] {
        let page = broker.replay(&name("a"), None, PageLimit::events(limit)).await.unwrap();
        assert_eq!(
            (page.events.len(), page.complete, page.head.0),
            (4, true, previous),
            "{page:?}"
        );
    }
    let page = broker.replay(&name("a"), Some(base), PageLimit::events(100)).await.unwrap();
    assert!(page.events.len() == 4 && page.complete, "{page:?}");
    let next = publish(&broker, "a").await;
    let page = broker
        .replay(&name("a"), Some(Position(previous)), PageLimit::events(100))
        .await
        .unwrap();
    assert_eq!((page.events.len(), page.complete, page.head), (1, true, next));
}

/// What comes of reading in steps, far from the server, while another node publishes: each page
/// leads to its head or says that there is more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_that_trimming_overtakes_begins_again_behind_the_hole() {
    for release in [Release::Current, Release::Oldest] {
        let Some(server) = NatsServer::of(release) else { return };
        let near = Arc::new(connect(&server).await);
        let proxy = Proxy::to(server.port);
        let tuning = Tuning::default().with(|tuning| tuning.batch = Some(10));
        let through = format!("nats://127.0.0.1:{}", proxy.port);
        let far = Nats::connect_tuned(&through, Rules::default(), tuning).await.unwrap();
        for _ in 0..150 {
            publish(&*near, "a").await;
        }
        let begin = far.replay(&name("a"), None, PageLimit::events(100)).await.unwrap().events[0].previous;
        proxy.delay(Duration::from_millis(10));
        let writing = {
            let near = near.clone();
            tokio::spawn(async move {
                loop {
                    publish(&*near, "a").await;
                }
            })
        };
        // Whether trimming was faster in one of them depends on this machine, and is no matter: all
        // of them must be whole.
        for round in 0..10 {
            for after in [None, Some(begin)] {
                let page = insist(async || far.replay(&name("a"), after, PageLimit::events(1000)).await).await;
                for pair in page.events.windows(2) {
                    assert_eq!(
                        pair[1].previous, pair[0].position,
                        "{release:?}, round {round}, after {after:?}"
                    );
                }
                let last = page.events.last().map(|last| last.position);
                assert!(
                    page.more || last.is_none_or(|last| last == page.head),
                    "{release:?}, round {round}, after {after:?}: it ends with {last:?}, and the head is {}",
                    page.head
                );
                assert!(after.is_none() || !page.complete, "what came after {begin} is gone");
            }
        }
        writing.abort();
    }
}

/// The stream lets go of what is old, also of a channel's newest message. Not while a node follows
/// the channel.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_channel_that_is_followed_outlives_the_age_of_the_stream() {
    let Some(server) = NatsServer::start() else { return };
    let broker = Nats::connect_tuned(
        &server.url(),
        Rules::default(),
        Tuning::default().with(|tuning| tuning.head_lives = Some(Duration::from_secs(4))),
    )
    .await
    .unwrap();
    publish(&broker, "followed").await;
    let mut feed = broker.follow(&name("followed")).await.unwrap();
    let mut silent = broker.follow(&name("born")).await.unwrap();
    let born = silent.head;
    let gone = async |position: Position| {
        let expired = async {
            while server
                .ask("STREAM.MSG.GET.airwave", json!({ "seq": position.0 }))
                .await
                .get("error")
                .is_none()
            {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(PATIENCE, expired).await.expect("it does not expire");
    };
    for position in [feed.head, born] {
        gone(position).await;
    }
    // Twice as long as the stream keeps anything.
    let second = publish(&broker, "alone").await;
    gone(second).await;
    for (feed, channel) in [(&mut feed, "followed"), (&mut silent, "born")] {
        let replay = broker
            .replay(&name(channel), Some(feed.head), PageLimit::events(10))
            .await
            .unwrap();
        assert!(replay.complete && replay.events.is_empty(), "{channel}: {replay:?}");
        let next = publish(&broker, channel).await;
        let event = feed.next().await.unwrap();
        assert_eq!((event.position, event.previous), (next, feed.head), "{channel}");
        let replay = broker
            .replay(&name(channel), Some(feed.head), PageLimit::events(10))
            .await
            .unwrap();
        assert!(replay.complete && replay.events.len() == 1, "{channel}: {replay:?}");
    }
}

/// One rule keeps much, another little: the stream's limits are the same for both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_rule_leaves_out_is_taken_from_the_stream() {
    let Some(server) = NatsServer::start() else { return };
    let rule = |pattern: &str, events, age| {
        let mut rule = Rule::new(pattern.parse().unwrap(), vec![TransportName::SSE]);
        (rule.history.events, rule.history.age) = (events, age);
        rule
    };
    let hour = Duration::from_secs(3600);
    let rules = Rules::new([rule("much/{*rest}", 5000, hour), rule("{*all}", 10, Duration::from_secs(1))]);
    let broker = Nats::connect(&server.url(), rules).await.unwrap();
    let stored = async |channel: &str| {
        let subject = format!("airwave.log.c.{channel}");
        let info = server.ask("STREAM.INFO.airwave", json!({ "subjects_filter": subject })).await;
        info["state"]["subjects"][&subject].as_u64().unwrap()
    };
    let becomes = async |channel: &str, most: u64| {
        let waiting = async {
            while stored(channel).await > most {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(PATIENCE, waiting).await.expect("nothing is swept");
    };
    for _ in 0..50 {
        publish(&broker, "much/a").await;
    }
    let mut newest = Position::ZERO;
    // The second generation is a thousand long: then the first one goes.
    for _ in 0..2010 {
        newest = publish(&broker, "a").await;
    }
    becomes("a", 1010).await;
    // It is quiet, and its history over: its head is left, with which its chain goes on.
    becomes("a", 1).await;
    let replay = broker.replay(&name("a"), None, PageLimit::events(100)).await.unwrap();
    assert!(replay.events.is_empty() && replay.head == newest);
    let mut feed = broker.follow(&name("a")).await.unwrap();
    let next = publish(&broker, "a").await;
    let event = feed.next().await.unwrap();
    assert_eq!((feed.head, event.previous, event.position), (newest, newest, next));
    assert_eq!(stored("much=2Fa").await, 50);
}

/// A node with older rules that publishes to a channel takes nothing from the stream that another
/// node's rules keep.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_sweeps_nothing_that_the_rules_of_another_keep() {
    let Some(server) = NatsServer::start() else { return };
    let rule = |pattern: &str, events, age| {
        let mut rule = Rule::new(pattern.parse().unwrap(), vec![TransportName::SSE]);
        (rule.history.events, rule.history.age) = (events, Duration::from_secs(age));
        rule
    };
    let swept = || rule("swept/{*rest}", 10, 1);
    let old = Nats::connect(&server.url(), Rules::new([swept(), rule("{*all}", 10, 1)]))
        .await
        .unwrap();
    let new = Nats::connect(&server.url(), Rules::new([swept(), rule("kept/{*rest}", 5000, 3600)]))
        .await
        .unwrap();
    let base = new.replay(&name("kept/a"), None, PageLimit::events(0)).await.unwrap().head;
    for _ in 0..2100 {
        publish(&old, "kept/a").await;
    }
    for _ in 0..2100 {
        publish(&old, "swept/a").await;
    }
    // One is swept after the other.
    let subject = "airwave.log.c.swept=2Fa";
    let others_are_swept = async {
        loop {
            let info = server.ask("STREAM.INFO.airwave", json!({ "subjects_filter": subject })).await;
            if info["state"]["subjects"][subject].as_u64().unwrap() <= 1110 {
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, others_are_swept).await.expect("nothing is swept");
    let mut after = base;
    let mut events = 0;
    loop {
        let page = new
            .replay(&name("kept/a"), Some(after), PageLimit::events(1000))
            .await
            .unwrap();
        assert!(page.complete, "swept after {after}");
        events += page.events.len();
        after = page.events.last().unwrap().position;
        if !page.more {
            break;
        }
    }
    assert_eq!(events, 2100);
}

/// Names and what stands in them reach no other subject, and none is told twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_is_one_literal_subject() {
    let Some(server) = NatsServer::start() else { return };
    let client = server.client().await;
    let mut told = client.subscribe("airwave.live.>").await.unwrap();
    client.flush().await.unwrap();
    let broker = connect(&server).await;
    for channel in ["a.b", "a/b:c", &"~".repeat(255)] {
        let position = publish(&broker, channel).await;
        let subject = loop {
            let message = timeout(PATIENCE, told.next()).await.unwrap().unwrap();
            if message.subject.contains(".live.c.") {
                let sequence = message.headers.unwrap().get("Nats-Sequence").unwrap().to_string();
                assert_eq!(sequence, position.to_string());
                break message.subject;
            }
        };
        assert_eq!(subject.matches('.').count(), 3, "{subject}");
    }
}

/// A channel without events has no message, and neither has one that was asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_are_only_asked_for_leave_nothing() {
    for release in [Release::Current, Release::Oldest] {
        let Some(server) = NatsServer::of(release) else { return };
        let broker = Arc::new(connect(&server).await);
        let messages = async || server.ask("STREAM.INFO.airwave", Value::Null).await["state"]["messages"].clone();
        let mut first = Position::ZERO;
        for n in 0..20 {
            let many = (0..1000).map(|more| {
                let broker = broker.clone();
                async move {
                    broker
                        .replay(&name(&format!("made-up/{n}/{more}")), None, PageLimit::events(10))
                        .await
                        .unwrap()
                        .head
                }
            });
            first = futures_util::future::join_all(many).await[0];
        }
        assert_eq!(messages().await, 2, "an epoch and a probe");
        let position = publish(&*broker, "a").await;
        let replay = broker.replay(&name("a"), Some(first), PageLimit::events(10)).await.unwrap();
        assert!(replay.complete && replay.events[0].position == position && replay.events[0].previous == first);
    }
}

/// A new epoch is stored long before the old one is dropped; an event that is younger than an epoch
/// is dropped after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_epoch_is_good_until_the_stream_drops_it() {
    let Some(server) = NatsServer::start() else { return };
    let keeping = async |age: Duration| {
        let mut config = server.ask("STREAM.INFO.airwave", Value::Null).await["config"].clone();
        config["max_age"] = (age.as_nanos() as u64).into();
        config["duplicate_window"] = 100_000_000.into();
        let changed = server.ask("STREAM.UPDATE.airwave", config).await;
        assert!(changed["error"].is_null(), "{changed}");
    };
    let broker = connect(&server).await;
    let head = async |channel: &str| broker.replay(&name(channel), None, PageLimit::events(0)).await.unwrap().head;
    let first = head("a").await;
    assert_eq!(head("b").await, first);
    // As soon as the node connects again it finds that the epoch has lived for more than half of
    // what is kept.
    keeping(Duration::from_secs(3600)).await;
    let purged = json!({ "filter": "airwave.log.epoch" });
    server.ask("STREAM.PURGE.airwave", purged).await;
    let second = head("b").await;
    assert!(second > first);
    publish(&broker, "a").await;
    let after = async |position| {
        broker
            .replay(&name("a"), Some(position), PageLimit::events(10))
            .await
            .unwrap()
            .complete
    };
    assert!(!after(first).await, "what came between the two may have been dropped");
    assert!(after(second).await);
}

/// An operator changes the stream, so that it will take no more, or takes nothing any more.
async fn limit_the_stream(server: &NatsServer, why: &str) {
    let mut config = server.ask("STREAM.INFO.airwave", Value::Null).await["config"].clone();
    match why {
        "stream" => {
            config["max_bytes"] = 500_000.into();
            config["discard"] = "new".into();
        }
        "sealed" => config["sealed"] = true.into(),
        _ => return,
    }
    let changed = server.ask("STREAM.UPDATE.airwave", config).await;
    assert!(changed["error"].is_null(), "{changed}");
}

/// Publishes large events, and then small ones, until none is taken; gives the last refusal.
async fn publish_until_it_is_full(broker: &Nats) -> String {
    let mut told = String::new();
    for length in [20_000, 1] {
        let text = Data::text("x".repeat(length));
        let append = Append::new(Message::new(EventName::new("said").unwrap(), text));
        told = loop {
            if let Err(error) = broker.publish(&name("a"), append.clone()).await {
                break error.to_string();
            }
        };
    }
    told
}

/// Every way in which JetStream serves what it holds and stores nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_server_starts_nodes_and_serves_what_it_holds() {
    const SERVER: &str = "jetstream { store_dir: \"DIR\", max_memory_store: 64MB, max_file_store: 8MB }\nmax_payload: 8MB\n";
    const ACCOUNT: &str = "jetstream { store_dir: \"DIR\", max_memory_store: 64MB, max_file_store: 80MB }\nmax_payload: 8MB\naccounts { APP { jetstream { max_file: 8MB, max_memory: 8MB }, users: [{ user: app, password: app }] } }\nno_auth_user: app\n";
    const ROOMY: &str = "jetstream { store_dir: \"DIR\", max_memory_store: 64MB, max_file_store: 80MB }\nmax_payload: 8MB\n";
    let rules = |age: u64| {
        let mut rule = Rule::new("{*all}".parse().unwrap(), vec![TransportName::SSE]);
        (rule.history.events, rule.history.bytes, rule.history.age) = (5000, usize::MAX, Duration::from_secs(age));
        Rules::new([rule])
    };
    for (why, configuration) in [("server", SERVER), ("account", ACCOUNT), ("stream", ROOMY), ("sealed", ROOMY)] {
        let Some(server) = NatsServer::configured(configuration) else {
            return;
        };
        let broker = Nats::connect(&server.url(), rules(3600)).await.unwrap();
        let first = publish(&broker, "a").await;
        limit_the_stream(&server, why).await;
        let told = publish_until_it_is_full(&broker).await;
        let cause = if why == "sealed" { "sealed" } else { "JetStream is full" };
        assert!(told.contains(cause), "{why}: {told}");
        let full = async |broker: &Nats| {
            let waiting = async {
                while !broker.ping().await.is_err_and(|error| error.message.contains(cause)) {
                    sleep(Duration::from_millis(20)).await;
                }
            };
            timeout(PATIENCE, waiting).await.expect("it does not say why it is not ready");
        };
        full(&broker).await;
        // Longer than a connection is given that does not hear itself.
        let mut feed = broker.follow(&name("a")).await.unwrap();
        sleep(Duration::from_secs(5)).await;
        assert_eq!(
            broker.stats().reconnects(),
            0,
            "{why}: a refusal is no reason to connect again"
        );
        let again = Nats::connect(&server.url(), rules(3600)).await.unwrap();
        full(&again).await;
        for broker in [&broker, &again] {
            let replay = broker.replay(&name("a"), None, PageLimit::events(3)).await.unwrap();
            assert_eq!(replay.head, feed.head, "{why}");
            assert!(why == "sealed" || replay.events.len() == 3);
        }
        assert!(first < feed.head || why == "sealed");
        // An operator gives it room: it goes on, with the feed that there was.
        if why != "sealed" {
            server
                .ask("STREAM.PURGE.airwave", json!({ "filter": "airwave.log.c.a", "keep": 2 }))
                .await;
            let position = insist(async || broker.publish(&name("a"), say("room")).await).await.position;
            assert_eq!(feed.next().await.unwrap().position, position);
            insist(async || again.ping().await).await;
        }
    }
}

/// No operator has to make room by hand for what no rule shows any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_starts_on_a_full_server_sweeps_what_is_too_old() {
    let configuration = "jetstream { store_dir: \"DIR\", max_memory_store: 64MB, max_file_store: 8MB }\nmax_payload: 8MB\n";
    let Some(server) = NatsServer::configured(configuration) else {
        return;
    };
    let rules = |age: u64| {
        let mut rule = Rule::new("{*all}".parse().unwrap(), vec![TransportName::SSE]);
        (rule.history.events, rule.history.bytes, rule.history.age) = (5000, usize::MAX, Duration::from_secs(age));
        Rules::new([rule])
    };
    let old = Nats::connect(&server.url(), rules(3600)).await.unwrap();
    let large = Append::new(Message::new(EventName::new("said").unwrap(), Data::text("x".repeat(20_000))));
    let mut newest = Position::ZERO;
    while let Ok(published) = old.publish(&name("a/b"), large.clone()).await {
        newest = published.position;
    }
    drop(old);
    // All that is stored is older than this rule's age, but for the newest, which is the head.
    let broker = Nats::connect(&server.url(), rules(0)).await.unwrap();
    insist(async || broker.ping().await).await;
    let replay = broker
        .replay(&name("a/b"), Some(newest), PageLimit::events(10))
        .await
        .unwrap();
    assert!(replay.complete && replay.head == newest);
    insist(async || broker.publish(&name("a/b"), say("room")).await).await;
}

/// How much the stream may hold is the operator's to say.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_that_an_operator_gave_the_stream_are_respected() {
    let Some(server) = NatsServer::start() else { return };
    let broker = connect(&server).await;
    let first = broker.follow(&name("a")).await.unwrap().head;
    let mut config = server.ask("STREAM.INFO.airwave", Value::Null).await["config"].clone();
    config["max_bytes"] = 20_000.into();
    server.ask("STREAM.UPDATE.airwave", config).await;
    server.cut().await;
    insist(async || broker.ping().await).await;
    for _ in 0..200 {
        insist(async || broker.publish(&name("a"), say("x".repeat(1000))).await).await;
    }
    // What the stream dropped to make room is a gap, also for one who had no event: the epoch went
    // first.
    let replay = broker.replay(&name("a"), Some(first), PageLimit::events(1000)).await.unwrap();
    assert!(!replay.complete && replay.events.len() < 30, "{} events", replay.events.len());
    let other = connect(&server).await;
    insist(async || other.ping().await).await;
    let kept = server.ask("STREAM.INFO.airwave", Value::Null).await["config"]["max_bytes"].clone();
    assert_eq!(kept, 20_000);
}

/// Publishes as fast as is asked for, until it is dropped; keeps what was acknowledged, and when.
struct Publisher {
    said: Arc<std::sync::Mutex<Vec<(Position, String, Instant)>>>,
    task: tokio::task::AbortHandle,
}

impl Publisher {
    fn to(channel: &'static str, nodes: Vec<Arc<Nats>>, pause: Duration) -> Publisher {
        let said: Arc<std::sync::Mutex<Vec<_>>> = Arc::default();
        let keep = said.clone();
        let task = tokio::spawn(async move {
            for n in 0_usize.. {
                let text = n.to_string();
                let published = nodes[n % nodes.len()].publish(&name(channel), say(&text)).await;
                if let Ok(published) = published {
                    keep.lock().unwrap().push((published.position, text, Instant::now()));
                }
                if !pause.is_zero() {
                    sleep(pause).await;
                }
            }
        });
        Publisher {
            said,
            task: task.abort_handle(),
        }
    }

    fn said(&self) -> Vec<(Position, String, Instant)> {
        self.said.lock().unwrap().clone()
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn acknowledged(said: &[(Position, String, Instant)]) -> Vec<(Position, String)> {
    said.iter().map(|(position, text, _)| (*position, text.clone())).collect()
}

/// Two nodes publish 40 events a second each, their clocks differ, and the channel is older than
/// its age. Fresh streams on a third node have all that is young, and no hole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "figures: a minute"]
async fn figures_of_fresh_streams_beside_skewed_clocks() {
    const AGE: Duration = Duration::from_secs(5);
    let mut rule = Rule::new("{*all}".parse().unwrap(), vec![TransportName::SSE, TransportName::of("test")]);
    (rule.history.events, rule.history.age) = (100_000, AGE);
    rule.replay = airwave_core::rule::ReplayOnSubscribe::All;
    let rules = Rules::new([rule]);
    for skew in [20_000_i64, -20_000, 120_000_000, -120_000_000] {
        let Some(server) = NatsServer::start() else { return };
        let with_clock = async |ahead: i64| {
            let tuning = Tuning::default().with(|tuning| tuning.clock_ahead = ahead);
            Arc::new(Nats::connect_tuned(&server.url(), rules.clone(), tuning).await.unwrap())
        };
        let publisher = Publisher::to(
            "a",
            vec![with_clock(0).await, with_clock(skew).await],
            Duration::from_micros(12_500),
        );
        sleep(AGE + Duration::from_secs(1)).await;
        let (mut incomplete, mut events, mut most_hidden) = (0, 0, 0);
        for _ in 0..20 {
            let node = hub::Node::with(with_clock(0).await, rules.clone());
            let before = publisher.said();
            let opened = Instant::now();
            let client = node.listen("a", None).await;
            client.hears(before.last().unwrap().0).await;
            // What was young when the stream opened, for sure.
            let young: Vec<_> = before
                .iter()
                .filter(|said| opened - said.2 < AGE - Duration::from_millis(200))
                .collect();
            let hidden = young.iter().filter(|said| !client.has(said.0)).count();
            client.knows_of(&acknowledged(&before));
            incomplete += usize::from(hidden > 0 || !client.gaps().is_empty());
            most_hidden = most_hidden.max(hidden);
            events += client.told().len();
        }
        println!(
            "skew {skew} µs: {incomplete} of 20 fresh streams incomplete, at most {most_hidden} events hidden, {} events each",
            events / 20
        );
        assert_eq!(incomplete, 0);
    }
}

/// One node publishes as fast as it can, another one is 300 ms away and restarts; listeners resume
/// there with fresh cursors.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "figures: some minutes"]
async fn figures_of_resumes_at_a_node_that_is_far_away() {
    let mut rule = Rule::new("{*all}".parse().unwrap(), vec![TransportName::SSE, TransportName::of("test")]);
    rule.history.events = 5000;
    let rules = Rules::new([rule]);
    let Some(server) = NatsServer::start() else { return };
    let near = Arc::new(Nats::connect(&server.url(), rules.clone()).await.unwrap());
    let proxy = Proxy::to(server.port);
    let through = format!("nats://127.0.0.1:{}", proxy.port);
    let publisher = Publisher::to("a", vec![near], Duration::ZERO);
    while publisher.said().len() < 6000 {
        sleep(Duration::from_millis(50)).await;
    }
    let (since, first) = (Instant::now(), publisher.said().len());
    let (mut gaps, mut refused, mut heard) = (0, 0, 0);
    for round in 0..20 {
        let batch = std::env::var("AIRWAVE_FIGURES_BATCH")
            .ok()
            .and_then(|batch| batch.parse().ok());
        let tuning = Tuning::default().with(|tuning| tuning.batch = batch);
        let far = Arc::new(Nats::connect_tuned(&through, rules.clone(), tuning).await.unwrap());
        proxy.delay(Duration::from_millis(150));
        let node = hub::Node::with(far.clone(), rules.clone());
        let cursor = publisher.said().last().unwrap().0;
        let client = loop {
            match node.try_listen("a", Some(cursor)).await {
                Ok(client) => break client,
                Err(_) => {
                    refused += 1;
                    let since = Instant::now();
                    let page = far.replay(&name("a"), None, PageLimit::events(5000)).await;
                    let page = page.map(|page| page.events.len());
                    eprintln!("round {round}: a page after {:?}: {page:?}", since.elapsed());
                }
            }
        };
        let newest = publisher.said().last().unwrap().0;
        client.hears(newest).await;
        sleep(Duration::from_secs(1)).await;
        let said = acknowledged(&publisher.said());
        let said: Vec<_> = said.into_iter().filter(|(position, _)| *position > cursor).collect();
        // Panics at a silent loss.
        client.knows_of(&said);
        gaps += client.gaps().len();
        heard += client.told().len();
        proxy.delay(Duration::ZERO);
    }
    let rate = (publisher.said().len() - first) as f64 / since.elapsed().as_secs_f64();
    println!("{rate:.0} events/s: 0 silent losses in 20 rounds, {gaps} gaps, {refused} opens refused, {heard} lines heard");
}

/// NATS 2.10, 40 ms away, and more events than can be read message by message: how many gaps a
/// listener hears that joins.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "figures: some seconds"]
async fn figures_of_joining_a_busy_channel_on_2_10() {
    let Some(server) = NatsServer::of(Release::Oldest) else {
        return;
    };
    let mut rule = Rule::new("{*all}".parse().unwrap(), vec![TransportName::SSE, TransportName::of("test")]);
    rule.history.events = 100;
    let rules = Rules::new([rule]);
    let near = Arc::new(Nats::connect(&server.url(), rules.clone()).await.unwrap());
    let proxy = Proxy::to(server.port);
    let through = format!("nats://127.0.0.1:{}", proxy.port);
    let publisher = Publisher::to("a", vec![near], Duration::from_micros(100));
    while publisher.said().len() < 1000 {
        sleep(Duration::from_millis(50)).await;
    }
    let since = (Instant::now(), publisher.said().len());
    for replay in [None, Some(publisher.said()[10].0), publisher.said().last().map(|said| said.0)] {
        proxy.delay(Duration::ZERO);
        let far = Arc::new(Nats::connect(&through, rules.clone()).await.unwrap());
        proxy.delay(Duration::from_millis(20));
        let node = hub::Node::with(far, rules.clone());
        let mut refused = 0;
        let client = loop {
            match node.try_listen("a", replay).await {
                Ok(client) => break client,
                Err(_) => refused += 1,
            }
        };
        sleep(Duration::from_secs(4)).await;
        let said: Vec<_> = acknowledged(&publisher.said());
        let from = replay.unwrap_or(Position::ZERO);
        let said: Vec<_> = said.into_iter().filter(|(position, _)| *position > from).collect();
        client.knows_of(&said);
        let rate = (publisher.said().len() - since.1) as f64 / since.0.elapsed().as_secs_f64();
        println!(
            "{rate:.0} events/s, from {replay:?}: {} items in 4 s, {} gaps, {refused} opens refused",
            client.told().len(),
            client.gaps().len()
        );
        assert!(client.gaps().len() <= 2, "{:?}", client.gaps());
    }
}
