//! Redis Cluster and Redis behind sentinels, beyond the contract: failovers and moves under way,
//! and what they cost. Real processes.

#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use airwave_brokers::Redis;
use airwave_brokers::redis::RedisConnectError;
use airwave_core::event::IdempotencyKey;
use airwave_core::{Append, Broker, ChannelName, Data, EventName, Feed, Message, PageLimit, Position, Rules};
use support::hub::{Node, Told, rules};
use support::many::{Cluster, Watched, cut_off, until};
use support::outage::{UNAVAILABLE_WITHIN, found};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

const PATIENCE: Duration = Duration::from_secs(30);

/// In ms. No server may be taken for dead, however busy this machine is.
const NEVER: u64 = 60_000;

/// In ms. A server that dies is taken for dead soon.
const SOON: u64 = 1000;

fn name(text: &str) -> ChannelName {
    ChannelName::new(text).unwrap()
}

async fn connect(url: &str) -> Arc<Redis> {
    Arc::new(Redis::connect(url, rules()).await.unwrap())
}

async fn node(url: &str) -> Node {
    Node::new(connect(url).await)
}

/// Says something until it is acknowledged, each time something else.
async fn insist(node: &Node, channel: &str, text: &str) -> Position {
    let saying = async {
        for n in 0.. {
            if let Some(position) = node.say(channel, &format!("{text} {n}")).await {
                return position;
            }
            sleep(Duration::from_millis(20)).await;
        }
        unreachable!()
    };
    timeout(PATIENCE, saying).await.expect("publishing does not come back")
}

/// Publishes all the time, until told to stop, and gives what was acknowledged.
struct Publisher {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Vec<(Position, String)>>,
}

impl Publisher {
    fn start(node: Node, channel: &str) -> Publisher {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, channel) = (stop.clone(), channel.to_owned());
        let task = tokio::spawn(async move {
            let mut acknowledged = Vec::new();
            for n in 0.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let text = format!("number {n}");
                if let Some(position) = node.say(&channel, &text).await {
                    acknowledged.push((position, text));
                }
                sleep(Duration::from_millis(2)).await;
            }
            acknowledged
        });
        Publisher { stop, task }
    }

    async fn stop(self) -> Vec<(Position, String)> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

async fn next(feed: &mut Feed) -> Position {
    let next = timeout(PATIENCE, feed.next()).await.expect("the feed shows nothing");
    next.expect("the feed ended although nothing was disturbed").position
}

async fn ended(feed: &mut Feed) {
    let next = timeout(PATIENCE, feed.next()).await;
    assert_eq!(next.expect("the feed goes on as if nothing had happened"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_publish_reaches_one_master_and_no_other() {
    let Some(cluster) = Cluster::start(0, NEVER, &[]) else {
        return;
    };
    let channel = cluster.channel_of(1, "a");
    let nodes = [connect(&cluster.url()).await, connect(&cluster.url()).await];
    let mut feeds = Vec::new();
    for node in &nodes {
        feeds.push(node.follow(&name(&channel)).await.unwrap());
        // Others follow elsewhere; they are not to be disturbed.
        feeds.push(node.follow(&name(&cluster.channel_of(0, "b"))).await.unwrap());
    }
    for server in &cluster.0 {
        let clients: String = server.ask(&["CLIENT", "LIST"]);
        let ours = clients.lines().filter(|line| !line.contains("cmd=client")).count();
        assert_eq!(ours, 4, "two connections of each node: {clients}");
        let _: String = server.ask(&["CONFIG", "RESETSTAT"]);
    }
    for n in 0..100 {
        let message = airwave_core::Message::new(
            airwave_core::EventName::new("said").unwrap(),
            airwave_core::Data::text(n.to_string()),
        );
        let published = nodes[0]
            .publish(&name(&channel), airwave_core::Append::new(message))
            .await
            .unwrap();
        for feed in feeds.iter_mut().step_by(2) {
            assert_eq!(next(feed).await, published.position);
        }
    }
    for (n, server) in cluster.0.iter().enumerate() {
        // Each node's probe is a SET and an SPUBLISH of its own.
        // Of one moment: a probe between two questions would be counted by halves.
        let [carried, probes, scripts, publishes] = server.calls_of(["spublish", "set", "evalsha", "publish"]);
        let carried = carried - probes;
        let expected = if n == 1 { 100 } else { 0 };
        assert_eq!((scripts, carried, publishes), (expected, expected, 0), "master {n}");
        for told in [
            "cluster_stats_messages_publish_received",
            "cluster_stats_messages_publishshard_received",
        ] {
            assert_eq!(server.told(&["CLUSTER", "INFO"], told), "", "master {n} was told by another");
        }
    }
}

/// One connection, and not one command too many; and a master that is cut ends its own feeds alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_subscriptions_share_a_connection_and_end_with_their_own_master() {
    const CHANNELS: usize = 6000;
    let Some(cluster) = Cluster::start(0, NEVER, &[]) else {
        return;
    };
    let broker = connect(&cluster.url()).await;
    let follow = async |first: usize, last: usize| {
        let follows = (first..last).map(|n| {
            let broker = broker.clone();
            tokio::spawn(async move {
                let since = Instant::now();
                loop {
                    match broker.follow(&name(&format!("a/{n}"))).await {
                        Ok(feed) => return feed,
                        Err(error) => assert!(since.elapsed() < PATIENCE, "{error}"),
                    }
                    sleep(Duration::from_millis(50)).await;
                }
            })
        });
        let mut feeds = Vec::new();
        for follow in follows.collect::<Vec<_>>() {
            feeds.push(follow.await.unwrap());
        }
        feeds
    };
    let mut feeds = Vec::new();
    for first in (0..CHANNELS).step_by(3000) {
        feeds.extend(follow(first, first + 3000).await);
    }
    let asked: u64 = cluster.0.iter().map(|server| server.calls("ssubscribe")).sum();
    // Each channel, and each master's probe; some more where this machine was so slow that a node
    // asked again.
    assert!(
        (CHANNELS as u64 + 3..2 * CHANNELS as u64).contains(&asked),
        "{asked} SSUBSCRIBEs"
    );

    let killed: i64 = cluster.0[2].ask(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    assert_eq!(killed, 1, "one connection for all subscriptions at a master");
    let of_it: Vec<usize> = (0..300)
        .filter(|n| cluster.owner(cluster.slot(&format!("a/{n}"))) == 2)
        .collect();
    for n in &of_it {
        ended(&mut feeds[*n]).await;
    }
    for (n, feed) in feeds.iter_mut().enumerate().take(300) {
        if !of_it.contains(&n) {
            let message =
                airwave_core::Message::new(airwave_core::EventName::new("said").unwrap(), airwave_core::Data::text("x"));
            let published = broker
                .publish(&name(&format!("a/{n}")), airwave_core::Append::new(message))
                .await
                .unwrap();
            assert_eq!(next(feed).await, published.position, "undisturbed");
        }
    }
    drop(feeds);
    until("no subscription is left", || {
        cluster.0.iter().all(|server| {
            let left: Vec<String> = server.ask(&["PUBSUB", "SHARDCHANNELS"]);
            left.iter().all(|left| left.contains(":probe:"))
        })
    });
}

/// P9, for each master by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_stands_still_is_found_and_the_others_go_on() {
    let Some(cluster) = Cluster::start(0, NEVER, &[]) else {
        return;
    };
    let broker = connect(&cluster.url()).await;
    let (still, well) = (cluster.channel_of(0, "a"), cluster.channel_of(1, "b"));
    let mut feeds = [
        broker.follow(&name(&still)).await.unwrap(),
        broker.follow(&name(&well)).await.unwrap(),
    ];
    broker.ping().await.unwrap();
    let node = Node::new(broker.clone());

    cluster.0[0].signal("STOP");
    let since = Instant::now();
    let said = timeout(UNAVAILABLE_WITHIN, node.say(&still, "unknown")).await;
    assert!(said.expect("no answer in time").is_none());
    broker.ping().await.unwrap_err();
    found(&mut feeds[0], since).await;
    let position = node.say(&well, "all is well here").await.unwrap();
    assert_eq!(next(&mut feeds[1]).await, position, "undisturbed");
    cluster.0[0].signal("CONT");

    insist(&node, &still, "back").await;
    until_ready(&broker).await;
}

async fn until_ready(broker: &Redis) {
    let ready = async {
        while broker.ping().await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, ready).await.expect("it does not come back");
}

/// A master dies, with a listener and a publisher on it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_heals_when_a_master_dies() {
    let Some(cluster) = Cluster::start(3, SOON, &[]) else { return };
    let channel = cluster.channel_of(0, "a");
    let (listening, talking) = (node(&cluster.url()).await, node(&cluster.url()).await);
    let client = listening.listen(&channel, None).await;
    let elsewhere = cluster.channel_of(1, "b");
    let other = listening.listen(&elsewhere, None).await;
    let first = insist(&talking, &channel, "first").await;
    client.hears(first).await;
    let publisher = Publisher::start(node(&cluster.url()).await, &channel);
    sleep(Duration::from_millis(200)).await;

    cluster.0[0].kill();
    until("the replica takes over", || {
        cluster.0[3].told(&["INFO", "replication"], "role") == "master"
    });
    insist(&talking, &channel, "after the failover").await;
    let acknowledged = publisher.stop().await;
    let last = insist(&talking, &channel, "last").await;
    client.hears(last).await;
    client.knows_of(&acknowledged);
    assert!(acknowledged.len() > 20, "{}", acknowledged.len());

    let there = insist(&talking, &elsewhere, "elsewhere").await;
    other.hears(there).await;
    assert_eq!(other.gaps(), []);
    assert!(listening.figure("airwave_broker_reconnects_total") >= 0.0);

    // The one that died comes back as a replica of its successor, and no node goes to it.
    assert!(cluster.0[0].run());
    until("it has become a replica", || {
        cluster.0[0].told(&["INFO", "replication"], "role") == "slave"
    });
    let broker = connect(&cluster.url()).await;
    until_ready(&broker).await;
    let position = insist(&talking, &channel, "in the end").await;
    client.hears(position).await;
}

/// What a replica had not got when its master died is lost, and everybody who had it is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_clusters_failover_lost_is_a_gap() {
    let Some(cluster) = Cluster::start(3, SOON, &[]) else { return };
    let channel = cluster.channel_of(0, "a");
    let node = node(&cluster.url()).await;
    let client = node.listen(&channel, None).await;
    let kept = insist(&node, &channel, "kept").await;
    until("the replica has it", || {
        let offset = |n: usize, name| cluster.0[n].told(&["INFO", "replication"], name);
        offset(3, "slave_repl_offset") == offset(0, "master_repl_offset")
    });
    cut_off(&cluster.0[0], &cluster.0[3]);
    let mut lost = Vec::new();
    for n in 0..20 {
        lost.push((node.say(&channel, &format!("lost {n}")).await.unwrap(), format!("lost {n}")));
    }
    client.hears(lost[19].0).await;

    cluster.0[0].kill();
    until("the replica takes over", || {
        cluster.0[3].told(&["INFO", "replication"], "role") == "master"
    });
    let after = insist(&node, &channel, "after").await;
    assert!(after > lost[19].0, "a position may have been given twice");
    client.hears(after).await;
    let told = client.told();
    let at = told.iter().position(|told| matches!(told, Told::Gap(..))).expect("no gap");
    assert!(
        matches!(&told[at], Told::Gap(_, _, reason) if reason == "broker-lost-data"),
        "{told:?}"
    );
    assert!(
        told[..at]
            .iter()
            .any(|told| matches!(told, Told::Event(position, _) if *position == lost[19].0))
    );
    client.knows_of(&lost);

    // So is who comes back with what was lost, also to a node that has seen none of it; who has
    // what was kept goes on.
    let other = self::node(&cluster.url()).await;
    for (cursor, gaps) in [(lost[10].0, 1), (kept, 0)] {
        let late = other.listen(&channel, Some(cursor)).await;
        late.hears(after).await;
        assert_eq!(late.gaps().len(), gaps, "{:?}", late.told());
    }
}

/// The slot goes to another master while one client publishes and another listens. Nothing is lost,
/// so nothing is announced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_moves_under_publishing_and_no_listener_misses_an_event() {
    let Some(cluster) = Cluster::start(0, NEVER, &[]) else {
        return;
    };
    let channel = cluster.channel_of(0, "a");
    let slot = cluster.slot(&channel);
    let listening = node(&cluster.url()).await;
    let client = listening.listen(&channel, None).await;
    let publisher = Publisher::start(node(&cluster.url()).await, &channel);
    let broker = connect(&cluster.url()).await;
    let keyed = || {
        let (event, key) = (EventName::new("said").unwrap(), IdempotencyKey::new("k").unwrap());
        Append::new(Message::new(event, Data::text("once"))).with_idempotency_key(key)
    };
    let once = broker.publish(&name(&channel), keyed()).await.unwrap().position;
    sleep(Duration::from_millis(100)).await;
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        cluster.set_slot(to, slot, "IMPORTING", from);
        cluster.set_slot(from, slot, "MIGRATING", to);
        cluster.move_keys(slot, from, to);
        // Half way: the keys are there, the subscribers are still here. They hear of it all the
        // same.
        let position = insist(&listening, &channel, "half way").await;
        client.hears(position).await;
        assert_eq!(cluster.owner(slot), from, "it was half way");
        // A history read goes after the keys, too, and so does a publish that is known already.
        let late = listening.listen(&channel, Some(position)).await;
        drop(late);
        for after in [None, Some(once), Some(position)] {
            let replay = broker
                .replay(&name(&channel), after, PageLimit::events(10_000))
                .await
                .unwrap();
            assert!(replay.head >= position);
            assert!(after.is_none() || replay.complete, "after {after:?}");
        }
        let again = broker.publish(&name(&channel), keyed()).await.unwrap();
        assert_eq!((again.position, again.duplicate), (once, true));
        assert_eq!(cluster.owner(slot), from, "it is half way still");
        cluster.set_slot(to, slot, "NODE", to);
        for n in (0..3).filter(|n| *n != to) {
            cluster.set_slot(n, slot, "NODE", to);
        }
        let position = insist(&listening, &channel, "moved").await;
        client.hears(position).await;
        until("everybody knows", || cluster.owner(slot) == to);
    }
    let acknowledged = publisher.stop().await;
    let last = insist(&listening, &channel, "last").await;
    client.hears(last).await;
    client.knows_of(&acknowledged);
    for (position, _) in &acknowledged {
        assert!(client.has(*position), "{position} was not lost, but is missing");
    }
    assert_eq!(client.gaps(), []);
}

/// A new master without a slot is none of ours; it becomes ours with its first slot. One that has
/// given its last one away is let go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_known_by_any_of_its_nodes() {
    let Some(cluster) = Cluster::start(3, NEVER, &[]) else {
        return;
    };
    for server in &cluster.0 {
        let broker = connect(&format!("redis+cluster://127.0.0.1:1,127.0.0.1:{}", server.port)).await;
        broker.ping().await.unwrap();
    }
    let refused = async |url: String| match Redis::connect(&url, Rules::default()).await {
        Ok(_) => panic!("connected to {url}"),
        Err(error) => error,
    };
    let error = refused(format!("redis://127.0.0.1:{}", cluster.0[0].port)).await;
    assert!(error.to_string().contains("redis+cluster://"), "{error}");
    let error = refused("redis+cluster://127.0.0.1:1".to_owned()).await;
    assert!(matches!(error, RedisConnectError::Unreachable { .. }), "{error}");
    let Some(alone) = support::RedisServer::start(&[]) else {
        return;
    };
    let error = refused(format!("redis+cluster://127.0.0.1:{}", alone.port)).await;
    assert!(error.to_string().contains("it is no cluster"), "{error}");
    let Some(empty) = support::RedisServer::of_a_cluster(&[]) else {
        return;
    };
    let error = refused(format!("redis+cluster://127.0.0.1:{}", empty.port)).await;
    assert!(error.to_string().contains("the cluster is down"), "{error}");
}

/// The master dies, with a listener and a publisher on it; then the one that took over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_are_followed_through_two_failovers() {
    let Some(watched) = Watched::start(None) else { return };
    let (listening, talking) = (node(&watched.url()).await, node(&watched.url()).await);
    let client = listening.listen("a", None).await;
    let publisher = Publisher::start(node(&watched.url()).await, "a");
    for master in [0, 1] {
        let position = insist(&talking, "a", "before").await;
        client.hears(position).await;
        assert_eq!(watched.master(), Some(master));
        watched.servers[master].kill();
        until("the sentinels name the other", || watched.master() == Some(1 - master));
        let position = insist(&talking, "a", "after").await;
        client.hears(position).await;
        // The dead one comes back, for a moment as the master that it was.
        assert!(watched.servers[master].run());
        until("it has become a replica", || {
            let told = |name| watched.servers[master].told(&["INFO", "replication"], name);
            told("role") == "slave" && told("master_link_status") == "up"
        });
    }
    let acknowledged = publisher.stop().await;
    let last = insist(&talking, "a", "last").await;
    client.hears(last).await;
    client.knows_of(&acknowledged);
    assert!(acknowledged.len() > 20);
    assert!(
        listening.figure("airwave_broker_reconnects_total") >= 4.0,
        "two connections, twice"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_sentinels_failover_lost_is_a_gap() {
    let Some(watched) = Watched::start(Some("s3cret")) else {
        return;
    };
    let node = node(&watched.url()).await;
    let client = node.listen("a", None).await;
    let kept = insist(&node, "a", "kept").await;
    until("the replica has it", || {
        let offset = |n: usize, name| watched.servers[n].told(&["INFO", "replication"], name);
        offset(1, "slave_repl_offset") == offset(0, "master_repl_offset")
    });
    watched.cut_the_replica_off();
    let mut lost = Vec::new();
    for n in 0..20 {
        lost.push((node.say("a", &format!("lost {n}")).await.unwrap(), format!("lost {n}")));
    }
    client.hears(lost[19].0).await;
    watched.servers[0].kill();
    until("the sentinels name the other", || watched.master() == Some(1));
    let after = insist(&node, "a", "after").await;
    assert!(after > lost[19].0, "a position may have been given twice");
    client.hears(after).await;
    let gaps = client.gaps();
    assert!(
        matches!(&gaps[..], [Told::Gap(_, _, reason)] if reason == "broker-lost-data"),
        "{gaps:?}"
    );
    client.knows_of(&lost);
    let other = self::node(&watched.url()).await;
    for (cursor, gaps) in [(lost[10].0, 1), (kept, 0)] {
        let late = other.listen("a", Some(cursor)).await;
        late.hears(after).await;
        assert_eq!(late.gaps().len(), gaps, "{:?}", late.told());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_that_are_of_no_use_are_refused_with_what_to_do() {
    let Some(watched) = Watched::start(Some("s3cret")) else {
        return;
    };
    let refused = async |url: String| {
        let refused = timeout(PATIENCE, Redis::connect(&url, Rules::default())).await.unwrap();
        let error = match refused {
            Ok(_) => panic!("connected to {url}"),
            Err(error) => error,
        };
        assert!(!format!("{error} {error:?}").contains("s3cret"), "{error}");
        error.to_string()
    };
    let at = format!("127.0.0.1:{}", watched.sentinels[0].port);
    let told = refused(format!("redis+sentinel://{at}/mymaster")).await;
    assert!(told.contains("?sentinel_password="), "{told}");
    let told = refused(format!("redis+sentinel://{at}/mymaster?sentinel_password=wrong")).await;
    assert!(told.contains("sentinel_password"), "{told}");
    let told = refused(format!("redis+sentinel://{at}/other?sentinel_password=s3cret")).await;
    assert!(told.contains("no master of that name"), "{told}");
    let told = refused("redis+sentinel://127.0.0.1:1/mymaster".to_owned()).await;
    assert!(told.contains("cannot be reached"), "{told}");
    let told = refused(format!("redis+sentinel://127.0.0.1:{}/mymaster", watched.servers[0].port)).await;
    assert!(told.contains("is not a sentinel"), "{told}");
    // The first is dead; the others know as well.
    watched.sentinels[0].kill();
    connect(&watched.url()).await.ping().await.unwrap();
}

/// No server dies: the old master steps down. Its connections stay open, and nothing is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_steps_down_loses_nothing() {
    let Some(cluster) = Cluster::start(3, 3 * SOON, &[]) else {
        return;
    };
    let channel = cluster.channel_of(0, "a");
    let listening = node(&cluster.url()).await;
    let client = listening.listen(&channel, None).await;
    let publisher = Publisher::start(node(&cluster.url()).await, &channel);
    for replica in [3, 0] {
        let position = insist(&listening, &channel, "before").await;
        client.hears(position).await;
        let mut looks = 0;
        until("it takes over", || {
            // One that is not agreed on in time is given up by the servers, and has to be asked for
            // again; asking begins it anew.
            if looks % 100 == 0 {
                let _ = cluster.0[replica].try_ask::<String>(&["CLUSTER", "FAILOVER"]);
            }
            looks += 1;
            cluster.0[replica].told(&["INFO", "replication"], "role") == "master"
        });
        let position = insist(&listening, &channel, "after").await;
        client.hears(position).await;
        until("the other has stepped down", || {
            let told = |name| cluster.0[3 - replica].told(&["INFO", "replication"], name);
            told("role") == "slave" && told("master_link_status") == "up"
        });
    }
    let acknowledged = publisher.stop().await;
    let last = insist(&listening, &channel, "last").await;
    client.hears(last).await;
    client.knows_of(&acknowledged);
    assert!(acknowledged.iter().all(|(position, _)| client.has(*position)));
    assert_eq!(client.gaps(), []);
}

/// The sentinels lose sight of the master, we do not, and it goes on to answer us. They have chosen
/// another, so that is where we go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_only_we_can_reach_is_left() {
    let Some(watched) = Watched::start(None) else { return };
    let node = node(&watched.url()).await;
    let client = node.listen("a", None).await;
    let before = insist(&node, "a", "before").await;
    client.hears(before).await;
    // Who is logged in stays so; who comes again must know the password.
    let old = &watched.servers[0];
    let clients: String = old.ask(&["CLIENT", "LIST"]);
    let sentinels = clients.lines().filter(|line| line.contains("name=sentinel-"));
    let ids: Vec<&str> = sentinels
        .map(|line| line.split(' ').find_map(|word| word.strip_prefix("id=")).unwrap())
        .collect();
    assert!(ids.len() >= 3, "{clients}");
    let mut at_once = redis::pipe();
    at_once.cmd("CONFIG").arg(&["SET", "requirepass", "s3cret"]).ignore();
    for id in ids {
        at_once.cmd("CLIENT").arg(&["KILL", "ID", id]).ignore();
    }
    let client_of_old = redis::Client::open(format!("redis://127.0.0.1:{}", old.port)).unwrap();
    let () = at_once.query(&mut client_of_old.get_connection().unwrap()).unwrap();

    until("the sentinels name the other", || watched.master() == Some(1));
    let moved = async {
        // What the old one takes meanwhile is lost with it.
        while node.figure("airwave_broker_reconnects_total") < 2.0 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, moved)
        .await
        .expect("it stays with a master that has been replaced");
    let after = insist(&node, "a", "after").await;
    client.hears(after).await;
    let head: String = watched.servers[1].ask(&["HGET", "airwave:{a}:head", "position"]);
    assert_eq!(head, after.to_string(), "it went to the new master");
}
