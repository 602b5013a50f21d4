//! Redis in states that are no outage: a clock that is wrong, writes that are refused, data that is
//! being loaded, and nodes with different rules. A real server for each test.

#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use airwave_brokers::Redis;
use airwave_core::directory::NodeId;
use airwave_core::rule::TransportName;
use airwave_core::{Broker, Directory, PageLimit, Rule, Rules};
use support::RedisServer;
use support::hub::{Client, Node, rules};
use support::many::{Cluster, Watched, until};
use support::outage::{insist, name, publish, say, unavailable};
use tokio::time::{sleep, timeout};

/// How long a test waits for anything. It decides nothing but when a hang is called one.
const PATIENCE: Duration = Duration::from_secs(30);

fn keeps(events: usize, age: Duration) -> Rules {
    let mut rule = Rule::new("{*all}".parse().unwrap(), vec![TransportName::of("sse")]);
    (rule.history.events, rule.history.age) = (events, age);
    Rules::new([rule])
}

async fn node(url: &str) -> Node {
    Node::new(Arc::new(Redis::connect(url, rules()).await.unwrap()))
}

/// Publishes `count` events by turns, each until it is acknowledged or not known, and gives those
/// that were.
async fn say_many(nodes: &[Node], channel: &str, round: &str, count: usize) -> Vec<(airwave_core::Position, String)> {
    let mut acknowledged = Vec::new();
    while acknowledged.len() < count {
        let text = format!("{round}-{}", acknowledged.len());
        match nodes[acknowledged.len() % nodes.len()].say(channel, &text).await {
            Some(position) => acknowledged.push((position, text)),
            None => sleep(Duration::from_millis(20)).await,
        }
    }
    acknowledged
}

/// How many of these a client has heard.
fn heard(client: &Client, said: &[(airwave_core::Position, String)]) -> usize {
    said.iter().filter(|(position, _)| client.has(*position)).count()
}

async fn every_listener_hears(url: &str, kill_and_return: impl FnOnce()) {
    let nodes = [node(url).await, node(url).await];
    let clients = [nodes[0].listen("a", None).await, nodes[1].listen("a", None).await];
    let mut said = say_many(&nodes, "a", "before", 20).await;
    for client in &clients {
        client.hears(said[19].0).await;
    }
    kill_and_return();
    let after = say_many(&nodes, "a", "after", 200).await;
    said.extend(after.clone());
    let late = node(url).await;
    let fresh = late.listen("a", None).await;
    let last = say_many(&nodes, "a", "last", 20).await;
    said.extend(last.clone());
    for client in clients.iter().chain([&fresh]) {
        client.hears(last[19].0).await;
        client.knows_of(&said);
        assert_eq!(heard(client, &last), 20);
    }
    let counts = clients.each_ref().map(|client| heard(client, &after));
    eprintln!("of 200 publishes after the return {counts:?} were heard, the others are behind a gap");
    assert!(
        clients.iter().all(|client| !client.gaps().is_empty()),
        "the loss was announced"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listeners_of_a_server_that_returns_behind_hear_everything() {
    for behind in [3, 600] {
        let Some(server) = RedisServer::with_a_clock(&[]) else {
            return;
        };
        every_listener_hears(&server.url(), || {
            server.kill();
            server.set_clock(-behind);
            assert!(server.run());
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listeners_of_a_cluster_that_returns_behind_hear_everything() {
    let Some(cluster) = Cluster::with_clocks(60_000) else { return };
    every_listener_hears(&cluster.url(), || {
        for server in &cluster.0 {
            server.kill();
            server.set_clock(-600);
            assert!(server.run());
        }
        until("the cluster is whole again", || {
            let whole = |server: &RedisServer| server.told(&["CLUSTER", "INFO"], "cluster_state") == "ok";
            cluster.0.iter().all(whole)
        });
    })
    .await;
}

/// The first to write to the empty store has never heard of the channel, and listeners come back to
/// it later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_that_publishes_to_a_store_that_is_behind_is_heard() {
    let Some(server) = RedisServer::with_a_clock(&[]) else {
        return;
    };
    let nodes = [node(&server.url()).await];
    let client = nodes[0].listen("a", None).await;
    let old = say_many(&nodes, "a", "old", 3).await;
    client.hears(old[2].0).await;
    // Without a break of the connection, so that the feed goes on.
    server.set_clock(-600);
    let _: String = server.ask(&["FLUSHALL"]);
    let stranger = [node(&server.url()).await];
    let new = say_many(&stranger, "a", "new", 20).await;
    assert!(new[0].0 < old[0].0, "the store knows nothing better");
    // What was published before this node had asked is behind a gap, and what came later is told.
    let told = async {
        while client.gaps().is_empty() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, told).await.expect("the loss is not announced");
    let more = [
        say_many(&stranger, "a", "more", 3).await,
        say_many(&nodes, "a", "own", 3).await,
    ]
    .concat();
    client.hears(more[5].0).await;
    assert_eq!(heard(&client, &more), 6);
    assert!(
        more[0].0 > old[2].0,
        "the stranger, too, goes on above what the other node knows"
    );
    client.knows_of(&[old, new, more].concat());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_goes_by_age_after_the_clock_has_jumped_ahead_and_back() {
    let Some(server) = RedisServer::with_a_clock(&[]) else {
        return;
    };
    let rules = keeps(1000, Duration::from_secs(2));
    let broker = Redis::connect(&server.url(), rules).await.unwrap();
    let channel = name("a");
    publish(&broker, "a").await;
    server.set_clock(3600);
    let ahead = publish(&broker, "a").await;
    server.set_clock(0);
    let after = publish(&broker, "a").await;
    assert!(after > ahead);
    let held = broker.replay(&channel, None, PageLimit::events(100)).await.unwrap();
    assert_eq!(
        held.events.last().unwrap().position,
        after,
        "what was written just now is held"
    );
    let gone = async {
        // By reading alone.
        loop {
            let held = broker.replay(&channel, None, PageLimit::events(100)).await.unwrap();
            assert_eq!(held.head, after);
            if held.events.is_empty() {
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, gone).await.expect("events are beyond their age and stay");
    let newest = publish(&broker, "a").await;
    let held = broker.replay(&channel, Some(after), PageLimit::events(100)).await.unwrap();
    assert!(held.complete && held.events.len() == 1 && held.head == newest, "{held:?}");
    // The clock catches up: positions say the time again.
    server.set_clock(3700);
    publish(&broker, "a").await;
    let fields: Vec<Option<String>> = server.ask(&["HMGET", "airwave:{a}:head", "since", "upto"]);
    assert_eq!(fields, [None, None]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_died_before_the_clock_was_set_back_is_found_dead() {
    let Some(server) = RedisServer::with_a_clock(&[]) else {
        return;
    };
    let broker = Redis::connect(&server.url(), Rules::default()).await.unwrap();
    let (dead, alive) = (NodeId::draw(), NodeId::draw());
    server.set_clock(3600);
    for node in [dead, alive] {
        broker.heartbeat(node).await.unwrap();
    }
    server.set_clock(0);
    let heartbeat = broker.heartbeat(alive).await.unwrap();
    assert!(heartbeat.known && heartbeat.living.contains(&alive) && heartbeat.living.contains(&dead));
    server.set_clock(8);
    assert!(broker.heartbeat(alive).await.unwrap().living.contains(&dead));
    server.set_clock(16);
    let heartbeat = broker.heartbeat(alive).await.unwrap();
    assert!(heartbeat.known && heartbeat.living.contains(&alive));
    assert!(
        !heartbeat.living.contains(&dead),
        "it has not beaten since the clock was set back"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_rule_trims_nothing_that_a_newer_one_promises() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let new = Redis::connect(&server.url(), keeps(100, Duration::from_secs(3600)))
        .await
        .unwrap();
    let old = Redis::connect(&server.url(), keeps(2, Duration::from_secs(3600)))
        .await
        .unwrap();
    let none = Redis::connect(&server.url(), keeps(0, Duration::ZERO)).await.unwrap();
    let channel = name("a");
    let mut said = Vec::new();
    for _ in 0..10 {
        said.push(publish(&new, "a").await);
    }
    for broker in [&old, &none] {
        said.push(publish(broker, "a").await);
        broker.replay(&channel, None, PageLimit::events(100)).await.unwrap();
    }
    let shown = async |broker: &Redis| {
        let replay = broker.replay(&channel, None, PageLimit::events(100)).await.unwrap();
        replay.events.iter().map(|event| event.position).collect::<Vec<_>>()
    };
    assert_eq!(shown(&new).await, said);
    assert_eq!(shown(&old).await, said[10..], "each shows what its own rule says");
    assert!(shown(&none).await.is_empty());
    let whole = new.replay(&channel, Some(said[0]), PageLimit::events(100)).await.unwrap();
    assert!(whole.complete && whole.events.len() == 11);
    let cut = old.replay(&channel, Some(said[0]), PageLimit::events(100)).await.unwrap();
    assert!(!cut.complete && cut.events.len() == 2);
    let whole = old.replay(&channel, Some(said[9]), PageLimit::events(100)).await.unwrap();
    assert!(whole.complete && whole.events.len() == 2);
    // The operator makes the limits smaller.
    let _: i64 = server.ask(&["HDEL", "airwave:{a}:head", "events", "age", "bytes"]);
    let last = publish(&old, "a").await;
    assert_eq!(shown(&new).await, [said[11], last]);
}

async fn refuses_writes(url: &str, cause: &str, refuse: impl AsyncFnOnce(), allow: impl AsyncFnOnce()) {
    let broker = Arc::new(Redis::connect(url, rules()).await.unwrap());
    let node = Node::new(broker.clone());
    let mut feed = broker.follow(&name("a")).await.unwrap();
    insist(async || broker.ping().await).await;
    refuse().await;
    let error = broker.ping().await.expect_err("nothing can be published, and it is ready");
    assert!(error.to_string().contains(cause) && error.public, "{error}");
    let error = unavailable(broker.publish(&name("a"), say("refused"))).await;
    assert!(error.contains(cause), "{error}");
    let refusal = node.hub.channel("a").unwrap().end().await.unwrap_err();
    assert!(refusal.message.contains(cause), "{}", refusal.message);
    let told = async {
        while node.figure("airwave_broker_up") != 0.0 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, told).await.expect("airwave_broker_up stays 1");
    let error = node.hub.ready().await.unwrap_err();
    assert_eq!(error.kind, airwave_core::NotReadyKind::Broker);
    assert!(error.message.contains(cause), "{error}");
    allow().await;
    insist(async || broker.ping().await).await;
    let position = insist(async || broker.publish(&name("a"), say("taken")).await).await.position;
    assert_eq!(feed.next().await.unwrap().position, position, "the feed was never in doubt");
    assert_eq!(broker.stats().reconnects(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_refuses_writes_is_not_ready_and_says_why() {
    let Some(cluster) = Cluster::start(0, 60_000, &[]) else {
        return;
    };
    let set = async |value: &str| {
        for master in &cluster.0 {
            let _: String = master.ask(&["CONFIG", "SET", "min-replicas-to-write", value]);
        }
    };
    refuses_writes(
        &cluster.url(),
        "min-replicas-to-write",
        async || set("1").await,
        async || set("0").await,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_behind_sentinels_that_refuses_writes_is_not_ready_and_says_why() {
    let Some(watched) = Watched::start(None) else { return };
    let set = async |value: &str| {
        let _: String = watched.servers[0].ask(&["CONFIG", "SET", "min-replicas-to-write", value]);
    };
    refuses_writes(
        &watched.url(),
        "min-replicas-to-write",
        // It has one.
        async || set("2").await,
        async || set("0").await,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_refuses_writes_is_not_ready_and_says_why() {
    let Some(server) = RedisServer::start(&["--save", "3600 100000", "--dbfilename", "dump"]) else {
        return;
    };
    let set = async |what: &str, value: &str| {
        let _: String = server.ask(&["CONFIG", "SET", what, value]);
    };
    refuses_writes(
        &server.url(),
        "min-replicas-to-write",
        async || set("min-replicas-to-write", "1").await,
        async || set("min-replicas-to-write", "0").await,
    )
    .await;
    refuses_writes(
        &server.url(),
        "maxmemory",
        async || set("maxmemory", "1kb").await,
        async || set("maxmemory", "0").await,
    )
    .await;
    let blocked = server.dir().join("dump");
    refuses_writes(
        &server.url(),
        "stop-writes-on-bgsave-error",
        async || {
            std::fs::create_dir(&blocked).unwrap();
            let _: String = server.ask(&["BGSAVE"]);
            until("saving has failed", || {
                server.told(&["INFO", "persistence"], "rdb_last_bgsave_status") == "err"
            });
        },
        async || {
            std::fs::remove_dir(&blocked).unwrap();
            let _: String = server.ask(&["SAVE"]);
        },
    )
    .await;
}

/// Loads slowly, and answers while it does.
const SLOW: &[&str] = &[
    "--save",
    "3600 100000",
    "--key-load-delay",
    "2000",
    "--loading-process-events-interval-bytes",
    "1024",
];

fn fill_and_restart(server: &RedisServer, tag: &str) {
    let fill = "for n = 1, 1000 do redis.call('SET', 'k{' .. ARGV[1] .. '}' .. n, string.rep('x', 100)) end return 1";
    let _: i64 = server.ask(&["EVAL", fill, "0", tag]);
    let _: String = server.ask(&["SAVE"]);
    server.kill();
    assert!(server.run_until_it_loads());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_loads_its_data_is_waited_for() {
    let Some(server) = RedisServer::start(SLOW) else { return };
    fill_and_restart(&server, "a");
    let broker = Redis::connect(&server.url(), Rules::default()).await.unwrap();
    publish(&broker, "a").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_loads_its_data_is_waited_for_behind_a_sentinel() {
    let Some(server) = RedisServer::start(SLOW) else { return };
    let sentinel = RedisServer::sentinel(server.port, None).unwrap();
    let url = format!("redis+sentinel://127.0.0.1:{}/mymaster/0", sentinel.port);
    fill_and_restart(&server, "a");
    let broker = Redis::connect(&url, Rules::default()).await.unwrap();
    publish(&broker, "a").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_whose_masters_load_their_data_is_waited_for() {
    let Some(cluster) = Cluster::start(0, 60_000, SLOW) else {
        return;
    };
    for (n, server) in cluster.0.iter().enumerate() {
        let mine = |tag: &u32| {
            let slot: u16 = server.ask(&["CLUSTER", "KEYSLOT", &tag.to_string()]);
            usize::from(slot / 5461) == n
        };
        let tag = (0..).find(mine).unwrap().to_string();
        fill_and_restart(server, &tag);
    }
    let broker = Redis::connect(&cluster.url(), Rules::default()).await.unwrap();
    publish(&broker, "a").await;
}
