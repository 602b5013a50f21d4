//! Redis beyond the contract: outages of every kind, and what it costs. A real server for each
//! test.

#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use airwave_brokers::Redis;
use airwave_brokers::redis::RedisConnectError;
use airwave_core::rule::TransportName;
use airwave_core::{Broker, BrokerErrorKind, Feed, PageLimit, Position, Rule, Rules};
use support::RedisServer;
use support::outage::{self, ended, found, insist, name, publish, say, unavailable};
use support::proxy::Proxy;
use tokio::time::{Instant, sleep, timeout};

/// How long a test waits for anything. It decides nothing but when a hang is called one.
const PATIENCE: Duration = Duration::from_secs(30);

async fn connect(server: &RedisServer) -> Redis {
    Redis::connect(&server.url(), Rules::default()).await.unwrap()
}

/// Follows until it works.
async fn follow(broker: &Redis, channel: &str) -> Feed {
    let following = async {
        loop {
            match broker.follow(&name(channel)).await {
                Ok(feed) => return feed,
                Err(error) => assert_eq!(error.kind, BrokerErrorKind::Unavailable, "{error}"),
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, following).await.expect("it does not come back")
}

/// Calls a command was called since the last `CONFIG RESETSTAT`.
fn calls(server: &RedisServer, command: &str) -> u64 {
    let stats: String = server.ask(&["INFO", "commandstats"]);
    let line = stats
        .lines()
        .find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
}

/// All keys of the one node that is connected, sorted, but the one that its probe writes, which
/// goes away by itself.
fn keys_but_the_probe(server: &RedisServer) -> Vec<String> {
    let keys: Vec<String> = server.ask(&["KEYS", "*"]);
    let (probes, mut others): (Vec<_>, Vec<_>) = keys.into_iter().partition(|key| key.starts_with("airwave:0:probe:"));
    assert!(probes.len() <= 1, "one node has one probe: {probes:?}");
    for probe in probes {
        // -2: it has gone away meanwhile.
        let lives: i64 = server.ask(&["PTTL", &probe]);
        assert!(lives == -2 || (0..=10_000).contains(&lives), "{probe} lives for {lives} ms");
    }
    others.sort();
    others
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_restarts_empty_gives_no_position_again_and_calls_nothing_complete() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let broker = connect(&server).await;
    let mut feed = broker.follow(&name("a")).await.unwrap();
    let mut old = vec![feed.head];
    for _ in 0..10 {
        old.push(publish(&broker, "a").await);
        assert_eq!(feed.next().await.unwrap().position, *old.last().unwrap());
    }

    server.kill();
    ended(&mut feed).await;
    unavailable(broker.publish(&name("a"), say("lost"))).await;
    unavailable(broker.ping()).await;
    unavailable(broker.follow(&name("a"))).await;
    assert!(server.run());

    let new = insist(async || broker.publish(&name("a"), say("new")).await).await.position;
    assert!(new > *old.last().unwrap());
    for after in old {
        let replay = broker.replay(&name("a"), Some(after), PageLimit::events(100)).await.unwrap();
        assert!(
            !replay.complete && replay.events.len() == 1 && replay.head == new,
            "after {after}: {replay:?}"
        );
    }
    insist(async || broker.ping().await).await;
    let mut feed = follow(&broker, "a").await;
    assert_eq!(feed.head, new);
    let next = publish(&broker, "a").await;
    assert_eq!(feed.next().await.unwrap().position, next);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn feeds_heal_after_a_restart_with_all_that_was_stored() {
    let Some(server) = RedisServer::that_stores() else { return };
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
    let feed = follow(&nodes[0], "a").await;
    assert_eq!(feed.head, second);
    let replay = nodes[0]
        .replay(&name("a"), Some(first), PageLimit::events(100))
        .await
        .unwrap();
    assert!(replay.complete && replay.events.len() == 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stands_still_is_found_and_comes_back() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let broker = connect(&server).await;
    outage::silence_is_found_and_healed(&broker, |silent| server.signal(if silent { "STOP" } else { "CONT" })).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_the_subscriber_ends_its_feeds_and_disturbs_no_publish() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let broker = connect(&server).await;
    let mut feeds = Vec::new();
    for n in 0..100 {
        feeds.push((n, broker.follow(&name(&format!("a/{n}"))).await.unwrap()));
    }
    let killed: i64 = server.ask(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    assert_eq!(killed, 1, "one connection for all subscriptions");
    for n in 0..100 {
        publish(&broker, &format!("a/{n}")).await;
    }
    for (n, feed) in &mut feeds {
        ended(feed).await;
        let again = follow(&broker, &format!("a/{n}")).await;
        let replay = broker
            .replay(&name(&format!("a/{n}")), Some(feed.head), PageLimit::events(10))
            .await
            .unwrap();
        assert!(replay.complete && replay.events.len() == 1 && again.head == replay.head);
    }
}

/// The connections stay open, and nothing comes through any more: no end, no error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_that_swallows_everything_is_found_and_healed() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let proxy = Proxy::to(server.port);
    let through = format!("redis://127.0.0.1:{}", proxy.port);
    let broker = Redis::connect(&through, support::hub::rules()).await.unwrap();
    outage::silence_is_found_and_healed(&broker, |silent| proxy.swallow(silent)).await;
    let other = Redis::connect(&server.url(), support::hub::rules()).await.unwrap();
    outage::each_hears_what_others_publish(Arc::new(broker), Arc::new(other), |silent| proxy.swallow(silent)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_on_which_something_arrives_is_not_given_up() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let proxy = Proxy::to(server.port);
    let through = format!("redis://127.0.0.1:{}", proxy.port);
    let near = Redis::connect(&through, support::hub::rules()).await.unwrap();
    let far = Redis::connect(&server.url(), support::hub::rules()).await.unwrap();
    outage::a_slow_line_is_not_a_dead_one(&near, &far, &proxy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_behind_others_waits_while_they_are_answered() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let proxy = Proxy::to(server.port);
    let through = format!("redis://127.0.0.1:{}", proxy.port);
    let broker = Redis::connect(&through, support::hub::rules()).await.unwrap();
    outage::calls_behind_others_are_not_late(Arc::new(broker), &proxy).await;
}

/// Pages of history come over a connection of their own: large ones on a slow line delay no publish
/// and no probe. When that connection goes silent, pages come again over another one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_have_a_connection_of_their_own() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let proxy = Proxy::to(server.port);
    let through = format!("redis://127.0.0.1:{}", proxy.port);
    let broker = Arc::new(Redis::connect(&through, support::hub::rules()).await.unwrap());
    let text = "x".repeat(10_000);
    for _ in 0..20 {
        broker.publish(&name("large"), say(&text)).await.unwrap();
    }
    let page = async |broker: &Redis| broker.replay(&name("large"), None, PageLimit::events(20)).await;
    page(&broker).await.unwrap();
    // Commands, subscriptions, then the one that the first page has asked for.
    let connected = async {
        while proxy.connections() < 3 {
            sleep(Duration::from_millis(20)).await;
        }
        // It is used from when its scripts are loaded.
        while server.ask::<String>(&["CLIENT", "LIST"]).matches("cmd=evalsha").count() < 2 {
            assert_eq!(page(&broker).await.unwrap().events.len(), 20);
        }
    };
    timeout(PATIENCE, connected).await.expect("pages have no connection");

    proxy.pace(100_000);
    let pages: Vec<_> = (0..8)
        .map(|_| {
            let broker = broker.clone();
            tokio::spawn(async move { broker.replay(&name("large"), None, PageLimit::events(20)).await })
        })
        .collect();
    for _ in 0..5 {
        // Behind the pages it would take more than ten seconds.
        let small = name("a");
        let publish = timeout(outage::UNAVAILABLE_WITHIN, broker.publish(&small, say("small")));
        publish.await.expect("it waits behind pages").unwrap();
        broker.ping().await.unwrap();
    }
    proxy.pace(0);
    for page in pages {
        // Those that took too long are refused.
        let _ = page.await.unwrap();
    }

    proxy.swallow_one(2);
    let replay = insist(async || page(&broker).await).await;
    assert_eq!(replay.events.len(), 20);
    assert_eq!(broker.stats().reconnects(), 0, "the other connections are as they were");
}

/// What comes from the server alone is swallowed for the subscriber alone: commands go on, and only
/// the probe can tell.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_that_hears_nothing_is_found_while_commands_work() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let proxy = Proxy::to(server.port);
    let broker = Redis::connect(&format!("redis://127.0.0.1:{}", proxy.port), Rules::default())
        .await
        .unwrap();
    let mut feed = broker.follow(&name("a")).await.unwrap();
    // Connections come in the order in which the broker makes them: commands, then subscriptions.
    proxy.swallow_one(1);
    let since = Instant::now();
    let position = publish(&broker, "a").await;
    unavailable(broker.ping()).await;
    found(&mut feed, since).await;
    let feed = follow(&broker, "a").await;
    assert_eq!(feed.head, position);
    insist(async || broker.ping().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_channels_take_one_connection_and_few_commands() {
    const CHANNELS: usize = 10_000;
    let Some(server) = RedisServer::start(&[]) else { return };
    let broker = Arc::new(connect(&server).await);
    let _: String = server.ask(&["CONFIG", "RESETSTAT"]);
    let mut feeds = Vec::new();
    // Many at once, as when a node comes back, but not so many that a busy machine takes longer
    // than a command may.
    for first in (0..CHANNELS).step_by(1000) {
        let follows = (first..first + 1000).map(|n| {
            let broker = broker.clone();
            tokio::spawn(async move { follow(&broker, &format!("a/{n}")).await })
        });
        for follow in follows.collect::<Vec<_>>() {
            feeds.push(follow.await.unwrap());
        }
    }
    let clients: String = server.ask(&["CLIENT", "LIST"]);
    assert_eq!(
        clients.lines().count(),
        3,
        "one for commands, one for subscriptions, one that asks"
    );
    assert!(
        calls(&server, "subscribe") < CHANNELS as u64 / 2,
        "{} SUBSCRIBEs",
        calls(&server, "subscribe")
    );
    for (n, feed) in feeds.iter_mut().enumerate() {
        let position = publish(&*broker, &format!("a/{n}")).await;
        assert_eq!(feed.next().await.unwrap().position, position);
    }
    drop(feeds);
    let left = async {
        while !server.ask::<Vec<String>>(&["PUBSUB", "CHANNELS", "airwave:0:{*"]).is_empty() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, left).await.expect("subscriptions are left");
}

/// A hub opens a log once, whatever number of listeners wants it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opening_a_channel_costs_one_subscription_and_one_read() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let broker = connect(&server).await;
    publish(&broker, "a").await;
    let _: String = server.ask(&["CONFIG", "RESETSTAT"]);
    let (_feed, page) = broker.open(&name("a"), PageLimit::events(100)).await.unwrap();
    assert_eq!(page.events.len(), 1);
    let counted = ["subscribe", "evalsha", "eval", "psubscribe"].map(|command| calls(&server, command));
    assert_eq!(counted, [1, 1, 0, 0]);
    publish(&broker, "a").await;
    assert_eq!(calls(&server, "evalsha"), 2, "one script call per publish");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_forgot_the_scripts_is_told_them_again() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let broker = connect(&server).await;
    let first = publish(&broker, "a").await;
    let _: String = server.ask(&["SCRIPT", "FLUSH"]);
    assert!(publish(&broker, "a").await > first);
    let _: String = server.ask(&["SCRIPT", "FLUSH"]);
    assert_eq!(
        broker
            .replay(&name("a"), Some(first), PageLimit::events(10))
            .await
            .unwrap()
            .events
            .len(),
        1
    );
}

/// It may lag, so what it would say of history is no answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_became_a_replica_answers_nothing() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let broker = connect(&server).await;
    let mut feed = broker.follow(&name("a")).await.unwrap();
    let first = publish(&broker, "a").await;
    assert_eq!(feed.next().await.unwrap().position, first);
    // A master that does not exist: port 1 of this machine.
    let _: String = server.ask(&["REPLICAOF", "127.0.0.1", "1"]);
    unavailable(broker.replay(&name("a"), Some(first), PageLimit::events(10))).await;
    unavailable(broker.publish(&name("a"), say("text"))).await;
    let _: String = server.ask(&["REPLICAOF", "NO", "ONE"]);
    let replay = insist(async || broker.replay(&name("a"), Some(first), PageLimit::events(10)).await).await;
    assert!(replay.complete);
    insist(async || broker.publish(&name("a"), say("text")).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_server_takes_no_events_but_tells_its_history() {
    let Some(server) = RedisServer::start(&["--maxmemory-policy", "noeviction"]) else {
        return;
    };
    let broker = connect(&server).await;
    let first = publish(&broker, "a").await;
    let _: String = server.ask(&["CONFIG", "SET", "maxmemory", "1"]);
    let told = unavailable(broker.publish(&name("a"), say("too much"))).await;
    assert!(told.contains("full"), "{told}");
    let replay = broker.replay(&name("a"), None, PageLimit::events(10)).await.unwrap();
    assert_eq!((replay.head, replay.events.len()), (first, 1));
    let _: String = server.ask(&["CONFIG", "SET", "maxmemory", "0"]);
    publish(&broker, "a").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_or_a_history_that_is_gone_is_never_hidden() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let broker = connect(&server).await;
    let mut old = vec![broker.replay(&name("a"), None, PageLimit::events(0)).await.unwrap().head];
    for _ in 0..5 {
        old.push(publish(&broker, "a").await);
    }
    let _: i64 = server.ask(&["DEL", "airwave:{a}:stream"]);
    for after in &old {
        let replay = broker.replay(&name("a"), Some(*after), PageLimit::events(10)).await.unwrap();
        assert_eq!((replay.complete, replay.events.len()), (*after == old[5], 0));
    }
    old.push(publish(&broker, "a").await);
    let _: i64 = server.ask(&["DEL", "airwave:{a}:head"]);
    for after in &old {
        let replay = broker.replay(&name("a"), Some(*after), PageLimit::events(10)).await.unwrap();
        assert!(
            !replay.complete && replay.events.is_empty() && replay.head > old[6],
            "{replay:?}"
        );
    }
    assert!(publish(&broker, "a").await > old[6]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_or_foreign_message_ends_the_feed() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let broker = connect(&server).await;
    for forged in ["nonsense", "1748123004217002:1748123004217001", "9007199254740000:5:t0100a"] {
        let mut feed = broker.follow(&name("a")).await.unwrap();
        let heard: i64 = server.ask(&["PUBLISH", "airwave:0:{a}", forged]);
        assert_eq!(heard, 1);
        ended(&mut feed).await;
    }
}

/// Pub/sub knows no databases.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn databases_do_not_hear_each_other() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let zero = connect(&server).await;
    let one = Redis::connect(&format!("redis://127.0.0.1:{}/1", server.port), Rules::default())
        .await
        .unwrap();
    let mut feed = zero.follow(&name("a")).await.unwrap();
    publish(&one, "a").await;
    let position = publish(&zero, "a").await;
    assert_eq!(feed.next().await.unwrap().position, position);
    assert!(broker_has(&zero, 1).await && broker_has(&one, 1).await);
}

async fn broker_has(broker: &Redis, events: usize) -> bool {
    broker
        .replay(&name("a"), None, PageLimit::events(10))
        .await
        .unwrap()
        .events
        .len()
        == events
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_live_for_thirty_days_and_history_for_its_age() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let mut rule = Rule::new("{*all}".parse().unwrap(), vec![TransportName::SSE]);
    rule.history.age = Duration::from_secs(60);
    let broker = Redis::connect(&server.url(), Rules::new([rule])).await.unwrap();
    let days = |seconds: i64| (seconds + 3600) / (24 * 3600);
    broker.replay(&name("quiet"), None, PageLimit::events(0)).await.unwrap();
    let there: i64 = server.ask(&["EXISTS", "airwave:{quiet}:head"]);
    assert_eq!(there, 0, "one that was only asked for");
    // Shorter than a head's, or an epoch would speak for events that are forgotten.
    assert_eq!(days(server.ask(&["TTL", "airwave:epoch:0"])), 28);
    let keyed = say("text").with_idempotency_key(airwave_core::event::IdempotencyKey::new("k").unwrap());
    broker.publish(&name("a"), keyed).await.unwrap();
    assert_eq!(days(server.ask(&["TTL", "airwave:{a}:head"])), 30);
    let stream: i64 = server.ask(&["PTTL", "airwave:{a}:stream"]);
    let idempotency: i64 = server.ask(&["PTTL", "airwave:{a}:key:k"]);
    assert!(
        (1..=60_000).contains(&stream) && (1..=120_000).contains(&idempotency),
        "{stream} {idempotency}"
    );
    assert_eq!(
        keys_but_the_probe(&server),
        [
            "airwave:epoch:0",
            "airwave:{a}:head",
            "airwave:{a}:key:k",
            "airwave:{a}:stream"
        ]
    );
}

/// What is left after them lives for ever or for long, so the test need not wait for five minutes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_thousand_names_that_are_only_asked_for_leave_nothing() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let broker = connect(&server).await;
    let before: i64 = server.told(&["INFO", "memory"], "used_memory").parse().unwrap();
    for n in 0..20_000 {
        broker
            .replay(&name(&format!("made-up/{n}")), None, PageLimit::events(10))
            .await
            .unwrap();
    }
    let after: i64 = server.told(&["INFO", "memory"], "used_memory").parse().unwrap();
    assert!(after - before < 1 << 20, "{} bytes more", after - before);
    assert_eq!(keys_but_the_probe(&server), ["airwave:epoch:0"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_server_opens_channels_without_events() {
    let Some(server) = RedisServer::start(&["--maxmemory-policy", "noeviction"]) else {
        return;
    };
    let broker = connect(&server).await;
    publish(&broker, "a").await;
    let _: String = server.ask(&["CONFIG", "SET", "maxmemory", "1"]);
    let mut feed = broker.follow(&name("silent")).await.unwrap();
    let _: String = server.ask(&["CONFIG", "SET", "maxmemory", "0"]);
    let position = publish(&broker, "silent").await;
    let event = feed.next().await.unwrap();
    assert_eq!((event.position, event.previous), (position, feed.head));
}

/// A new epoch is given out long before the old one is forgotten.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_epoch_is_good_until_it_is_forgotten() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let broker = connect(&server).await;
    let days = |days: u64| (days * 24 * 3600 * 1000).to_string();
    let head = async |channel: &str| broker.replay(&name(channel), None, PageLimit::events(0)).await.unwrap().head;
    let first = head("a").await;
    let mut feed = broker.follow(&name("followed")).await.unwrap();
    let _: i64 = server.ask(&["PEXPIRE", "airwave:epoch:0", &days(13)]);
    let second = head("a").await;
    assert!(second > first);
    for channel in ["a", "followed"] {
        let position = publish(&broker, channel).await;
        for after in [first, second] {
            let replay = broker
                .replay(&name(channel), Some(after), PageLimit::events(10))
                .await
                .unwrap();
            assert!(replay.complete, "{channel} after {after}");
            assert_eq!((replay.events[0].position, replay.events[0].previous), (position, after));
        }
        let never = broker
            .replay(&name(channel), Some(Position(first.0 + 1)), PageLimit::events(10))
            .await
            .unwrap();
        assert!(!never.complete, "a position between the two was never given");
    }
    // Whether it follows, only history can tell: the feed says nothing rather than something that
    // looks like a loss.
    ended(&mut feed).await;
    // When it is forgotten, events that came after it may be, too.
    let _: i64 = server.ask(&["DEL", "airwave:epoch:0"]);
    for channel in ["a", "never-used"] {
        assert!(
            !broker
                .replay(&name(channel), Some(first), PageLimit::events(10))
                .await
                .unwrap()
                .complete
        );
        assert!(
            broker
                .replay(&name(channel), Some(second), PageLimit::events(10))
                .await
                .unwrap()
                .complete
        );
    }
    // Set ahead and back again, a clock makes an epoch outlive heads: it counts as none.
    let _: i64 = server.ask(&["PEXPIRE", "airwave:epoch:1", &days(100)]);
    assert!(
        !broker
            .replay(&name("never-used"), Some(second), PageLimit::events(10))
            .await
            .unwrap()
            .complete
    );
}

/// What version 0.1 stored for a channel that was only asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_birth_of_the_first_version_is_still_good() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let broker = connect(&server).await;
    let base = Position(Position::now().0 - 1000);
    let text = base.to_string();
    let _: i64 = server.ask(&["HSET", "airwave:{a}:head", "position", &text, "birth", &text]);
    let mut feed = broker.follow(&name("a")).await.unwrap();
    assert_eq!(feed.head, base);
    let position = publish(&broker, "a").await;
    let event = feed.next().await.unwrap();
    assert_eq!((event.position, event.previous), (position, base));
    let epoch = broker.replay(&name("b"), None, PageLimit::events(0)).await.unwrap().head;
    for after in [base, epoch] {
        assert!(
            broker
                .replay(&name("a"), Some(after), PageLimit::events(10))
                .await
                .unwrap()
                .complete
                || after == epoch && epoch > position
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn positions_go_on_when_the_clock_goes_backwards() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let broker = connect(&server).await;
    let ahead = publish(&broker, "a").await.0 + 3_600_000_000;
    let _: i64 = server.ask(&["HSET", "airwave:{a}:head", "position", &ahead.to_string()]);
    assert_eq!(publish(&broker, "a").await, Position(ahead + 1));
    assert_eq!(publish(&broker, "a").await, Position(ahead + 2));
}

/// What the old rule kept must not pass for the newest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_that_stops_keeping_history_leaves_no_part_of_it() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let kept = publish(&connect(&server).await, "a").await;
    let mut rule = Rule::new("{*all}".parse().unwrap(), vec![TransportName::SSE]);
    rule.history.events = 0;
    let broker = Redis::connect(&server.url(), Rules::new([rule])).await.unwrap();
    publish(&broker, "a").await;
    let replay = broker.replay(&name("a"), Some(kept), PageLimit::events(10)).await.unwrap();
    assert!(!replay.complete && replay.events.is_empty(), "{replay:?}");
}

async fn refused(url: &str) -> RedisConnectError {
    match timeout(PATIENCE, Redis::connect(url, Rules::default())).await.unwrap() {
        Ok(_) => panic!("connected to {url}"),
        Err(error) => error,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_cannot_be_used_is_refused_with_what_to_do() {
    let Some(server) = RedisServer::with_password("s3cret") else {
        return;
    };
    let at = format!("127.0.0.1:{}", server.port);
    let right = Redis::connect(&format!("redis://:s3cret@{at}"), Rules::default())
        .await
        .unwrap();
    publish(&right, "a").await;
    let right = Redis::connect(&format!("redis://default:s3cret@{at}"), Rules::default())
        .await
        .unwrap();
    right.ping().await.unwrap();
    for url in [
        format!("redis://{at}"),
        format!("redis://:wr0ng@{at}"),
        format!("redis://me:wr0ng@{at}"),
    ] {
        let error = refused(&url).await;
        assert!(matches!(error, RedisConnectError::Unusable { .. }), "{error}");
        let error = format!("{error} {error:?}");
        assert!(
            error.contains("password") && !error.contains("wr0ng") && !error.contains("s3cret"),
            "{error}"
        );
    }
    let error = refused(&format!("redis://:s3cret@{at}/99")).await;
    assert!(
        matches!(error, RedisConnectError::Unusable { .. }) && error.to_string().contains("database"),
        "{error}"
    );

    let Some(cluster) = RedisServer::start(&["--cluster-enabled", "yes"]) else {
        return;
    };
    let error = refused(&cluster.url()).await.to_string();
    assert!(error.contains("cluster mode"), "{error}");
    let Some(replica) = RedisServer::start(&["--replicaof", "127.0.0.1 1"]) else {
        return;
    };
    let error = refused(&replica.url()).await.to_string();
    assert!(error.contains("name its master"), "{error}");

    server.kill();
    let error = refused(&format!("redis://:s3cret@{at}")).await;
    assert!(matches!(error, RedisConnectError::Unreachable { .. }), "{error}");
    let error = format!("{error} {error:?}");
    assert!(
        error.contains(&at) && error.contains("start it") && !error.contains("s3cret"),
        "{error}"
    );
}

#[test]
fn urls_are_checked_without_asking_anybody_and_never_shown() {
    use airwave_brokers::redis::check;
    for good in [
        "redis://h",
        "redis://h:7000/3",
        "redis://:p%40@h",
        "rediss://u:p@h",
        "redis://[::1]:7000",
        "redis+cluster://h",
        "redis+cluster://u:p%2C@h:7000,[::1]:7001,h3/",
        "rediss+cluster://u:p@h,h2/0",
        "redis+sentinel://h/mymaster",
        "redis+sentinel://u:p@h:7000,[::1],h3/my.master-1/3",
        "rediss+sentinel://h/m/0?sentinel_user=u&sentinel_password=p%26",
    ] {
        assert_eq!(check(good), Ok(()), "{good}");
    }
    for bad in [
        "redis://",
        "redis://u:s3cret@",
        "redis://u:s3cret@h:port",
        "redis://u:s3cret@h/x",
        "redis://u:s3cret@h/-1",
        "redis://u:s3cret@h?protocol=resp2",
        "redis://u:s3cret@h#insecure",
        "unix:///s3cret",
        "valkey://u:s3cret@h",
        "redis+cluster://u:s3cret@",
        "redis+cluster://u:s3cret@h,,h2",
        "redis+cluster://u:s3cret@h,u:s3cret@h2",
        "redis+cluster://u:s3cret@h/3",
        "redis+cluster://u:s3cret@h?s3cret",
        "redis+sentinel://u:s3cret@h",
        "redis+sentinel://u:s3cret@h/",
        "redis+sentinel://u:s3cret@h/s3 cret/0",
        "redis+sentinel://u:s3cret@h/m/x",
        "redis+sentinel://u:s3cret@h/m/0/1",
        "redis+sentinel://h/m?password=s3cret",
        "redis+sentinel://h/m?sentinel_user=s3cret",
        "redis+sentinel://u:s3?cret@h/m",
        "redis+other://u:s3cret@h",
    ] {
        let told = check(bad).unwrap_err().to_string();
        assert!(!told.contains("s3cret") && told.contains("write"), "{bad}: {told}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_is_no_busy_loop() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let proxy = Proxy::to(server.port);
    let through = format!("redis://127.0.0.1:{}", proxy.port);
    let _broker = Redis::connect(&through, Rules::default()).await.unwrap();
    // Two connections, each after 50 ms, 100 ms, … 1 s, and half of that by chance: at most ten
    // each.
    outage::an_outage_is_no_busy_loop(&proxy, 24).await;
}

/// Those that TLS trusts are of the whole process, so what connects has one of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_needs_a_server_that_proves_its_name() {
    let Some(secured) = support::tls::Secured::start() else {
        return;
    };
    let connect = |host: &str, trusted: &std::path::Path| {
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tls_in_a_process_of_its_own", "--ignored", "--nocapture"])
            .env("AIRWAVE_TEST_URL", format!("rediss://{host}:{}/0", secured.port))
            .env("SSL_CERT_FILE", trusted)
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&child.stdout).into_owned();
        assert!(child.status.success(), "{told} {}", String::from_utf8_lossy(&child.stderr));
        told
    };
    let told = connect("127.0.0.1", &secured.authority);
    assert!(told.contains("it works"), "{told}");
    // Of an authority that we do not trust; for another host.
    for (host, trusted) in [("127.0.0.1", &secured.other_authority), ("localhost", &secured.authority)] {
        let told = connect(host, trusted);
        assert!(told.contains("refused: "), "{told}");
        assert!(
            told.contains("its TLS certificate is not accepted") && told.contains("SSL_CERT_FILE"),
            "{told}"
        );
    }
    assert_eq!(
        secured.server.calls("evalsha"),
        4,
        "a head, the store's first epoch, the head again and an event, by the one who was let in"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a part of the test before it, which runs it"]
async fn tls_in_a_process_of_its_own() {
    let url = std::env::var("AIRWAVE_TEST_URL").unwrap();
    match Redis::connect(&url, Rules::default()).await {
        Ok(broker) => {
            let mut feed = broker.follow(&name("a")).await.unwrap();
            let position = publish(&broker, "a").await;
            assert_eq!(feed.next().await.unwrap().position, position);
            broker.ping().await.unwrap();
            println!("it works");
        }
        Err(error) => println!("refused: {error}"),
    }
}

/// Listens from many clients at once.
async fn all_come_back(
    node: &Arc<support::hub::Node>,
    at: impl Iterator<Item = (String, Position)>,
) -> Vec<support::hub::Client> {
    let coming = at.map(|(channel, cursor)| {
        let node = node.clone();
        tokio::spawn(async move { node.listen(&channel, Some(cursor)).await })
    });
    let mut clients = Vec::new();
    for client in coming.collect::<Vec<_>>() {
        clients.push(client.await.unwrap());
    }
    clients
}

/// Thousands come back at once, to a node that has been there and to one that is new. What they
/// missed is read once for each channel.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reconnect_storm_costs_one_history_read_for_each_channel_and_node() {
    const CHANNELS: usize = 5;
    const CLIENTS: usize = 5000;
    const MISSED: usize = 40;
    let Some(server) = RedisServer::start(&[]) else { return };
    let node = async || {
        let broker = Redis::connect(&server.url(), support::hub::rules()).await.unwrap();
        Arc::new(support::hub::Node::new(Arc::new(broker)))
    };
    let channel = |n: usize| format!("a/{}", n % CHANNELS);
    let (old, new) = (node().await, node().await);
    let mut cursors = Vec::new();
    let mut missed = vec![Vec::new(); CHANNELS];
    for n in 0..CHANNELS {
        // The old node has the channel open.
        let client = old.listen(&channel(n), None).await;
        cursors.push(old.say(&channel(n), "heard").await.unwrap());
        client.hears(cursors[n]).await;
        for _ in 0..MISSED {
            missed[n].push(old.say(&channel(n), "missed").await.unwrap());
        }
        client.hears(missed[n][MISSED - 1]).await;
    }
    for (node, replays) in [(old, 0), (new, CHANNELS)] {
        let before = node.figure("airwave_broker_replays_total");
        let _: String = server.ask(&["CONFIG", "RESETSTAT"]);
        let coming = (0..CLIENTS).map(|n| (channel(n), cursors[n % CHANNELS]));
        let clients = all_come_back(&node, coming).await;
        for (n, client) in clients.iter().enumerate() {
            let missed = &missed[n % CHANNELS];
            client.hears(missed[missed.len() - 1]).await;
            assert_eq!(
                client.told().len(),
                1 + missed.len(),
                "a confirmation and what was missed: {:?}",
                client.gaps()
            );
        }
        assert_eq!(node.figure("airwave_broker_replays_total") - before, replays as f64);
        // A channel that is opened: its head and its history in one read.
        assert_eq!(calls(&server, "evalsha"), replays as u64);
        assert!(calls(&server, "subscribe") <= replays as u64);

        // Their node loses its line to Redis, and they notice nothing. A quiet channel reads no
        // history: its new feed begins where its log ends.
        let before = node.figure("airwave_broker_replays_total");
        let _: i64 = server.ask(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        let healed = async {
            for (n, missed) in missed.iter_mut().enumerate() {
                let mut said = None;
                while said.is_none() {
                    said = node.say(&channel(n), "after").await;
                }
                let position = said.unwrap();
                for client in clients.iter().skip(n).step_by(CHANNELS) {
                    client.hears(position).await;
                }
                missed.push(position);
            }
        };
        timeout(PATIENCE, healed).await.unwrap();
        let replays = node.figure("airwave_broker_replays_total") - before;
        assert!(replays <= 3.0 * CHANNELS as f64, "{replays} replays");
        assert!(clients.iter().all(|client| client.gaps().is_empty()));
    }
}
