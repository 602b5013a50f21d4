//! The contract of a directory of members, clause by clause, over every broker of this crate that
//! has one.

#![allow(clippy::unwrap_used)]

use std::sync::{Arc, RwLock};

use airwave_brokers::Memory;
use airwave_core::Rules;
use airwave_core::conformance::Fault;
use airwave_core::directory::Directory;
use airwave_core::directory_conformance::{CLAUSES, DirectoryFixture};
use async_trait::async_trait;

mod memory {
    use airwave_core::directory::{Heartbeat, MemberEntry, NodeId, Watch};
    use airwave_core::{BrokerError, ChannelName};

    use super::*;

    async fn fixture(_: &[Fault]) -> Option<OneMemory> {
        Some(OneMemory::default())
    }

    airwave_core::directory_conformance_tests!(fixture);

    /// One memory broker, which is every node's; a wipe puts a new one in its place.
    #[derive(Default)]
    struct OneMemory(Arc<Replaced>);

    struct Replaced(RwLock<Arc<Memory>>);

    impl Default for Replaced {
        fn default() -> Self {
            Replaced(RwLock::new(Arc::new(Memory::new(Rules::default()))))
        }
    }

    impl Replaced {
        fn now(&self) -> Arc<Memory> {
            self.0.read().unwrap().clone()
        }
    }

    #[async_trait]
    impl DirectoryFixture for OneMemory {
        async fn node(&self) -> Arc<dyn Directory> {
            self.0.clone()
        }

        fn faults(&self) -> &[Fault] {
            &[Fault::Wipe]
        }

        async fn inflict(&self, _: Fault) {
            *self.0.0.write().unwrap() = Arc::new(Memory::new(Rules::default()));
        }
    }

    #[async_trait]
    #[deny(clippy::missing_trait_methods)]
    impl Directory for Replaced {
        async fn set(&self, channel: &ChannelName, entries: &[MemberEntry]) -> Result<(), BrokerError> {
            self.now().set(channel, entries).await
        }

        async fn list(&self, channel: &ChannelName) -> Result<Vec<MemberEntry>, BrokerError> {
            self.now().list(channel).await
        }

        async fn watch(&self, channel: &ChannelName) -> Result<Watch, BrokerError> {
            self.now().watch(channel).await
        }

        async fn heartbeat(&self, node: NodeId) -> Result<Heartbeat, BrokerError> {
            self.now().heartbeat(node).await
        }

        async fn leave(&self, node: NodeId) -> Result<(), BrokerError> {
            self.now().leave(node).await
        }
    }
}

/// Whole nodes over a broker.
#[cfg(any(feature = "redis", feature = "nats"))]
mod nodes {
    use std::time::Duration;

    use airwave_core::directory_conformance::PATIENCE;
    use airwave_core::format::Stamp;
    use airwave_core::rule::TransportName;
    use airwave_core::session::After;
    use airwave_core::{
        Broker, ChannelName, ConnectRequest, Event, Format, Handler, Hub, Identity, Notice, Refusal, Rule, Session,
    };
    use bytes::Bytes;

    use super::*;

    const TEST: TransportName = TransportName::of("test");

    /// What is said is of no interest: what a presence set knows is asked for.
    struct Mute;

    impl Format for Mute {
        fn name(&self) -> &'static str {
            "mute"
        }

        fn event(&self, _: &ChannelName, _: &Event) -> Bytes {
            Bytes::new()
        }

        fn notice(&self, _: &Notice<'_>) -> Bytes {
            Bytes::new()
        }

        fn stamp(&self) -> Option<Stamp> {
            None
        }
    }

    struct ByQuery;

    impl Handler for ByQuery {
        async fn connect(&self, request: &ConnectRequest) -> Result<Identity, Refusal> {
            Ok(Identity::user(request.query.clone()))
        }
    }

    /// Presence in every channel.
    pub fn everywhere() -> Rules {
        let mut rule = Rule::new("{*all}".parse().unwrap(), vec![TEST]);
        rule.presence = true;
        Rules::new([rule])
    }

    pub fn hub(broker: Arc<impl Broker + Directory>) -> Hub {
        let hub = Hub::builder(broker.clone(), everywhere()).directory(broker);
        hub.handle("{*all}".parse().unwrap(), ByQuery).build()
    }

    /// A server, and what can be done to it.
    #[async_trait]
    pub trait Treated {
        async fn node(&self) -> Hub;
        async fn cut(&self);
        fn kill(&self);
        /// It runs again, with nothing of what it had.
        fn run_empty(&self);
    }

    pub async fn member(hub: &Hub, user: &str, watches: bool) -> Session {
        let request = ConnectRequest::new(TEST).with_query(user);
        let format = hub.register_format(Arc::new(Mute)).unwrap();
        let mut session = Session::new(hub.connect(request, false).unwrap(), &format);
        let subscriber = session.subscriber().with_presence(watches);
        let joined = subscriber.subscribe(&ChannelName::new("room").unwrap(), After::Nothing).await;
        session.add(joined.unwrap(), None);
        session
    }

    pub async fn until_all(hubs: [&Hub; 2], wanted: &[&str]) {
        let all_know = async {
            for hub in hubs {
                loop {
                    let members = hub.channel("room").unwrap().members().await;
                    let members: Vec<String> = members
                        .unwrap_or_default()
                        .iter()
                        .filter_map(|member| member.user.as_ref().map(|user| user.to_string()))
                        .collect();
                    if members == wanted {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        };
        let waited = tokio::time::timeout(PATIENCE, all_know).await;
        waited.unwrap_or_else(|_| panic!("not all nodes know {wanted:?}"));
    }

    /// Nodes as applications have them: whatever happens to the server, in the end all of them know
    /// everybody.
    pub async fn come_to_agree(server: &impl Treated) {
        let (here, there) = (server.node().await, server.node().await);
        let hubs = [&here, &there];
        let _ann = member(&here, "ann", true).await;
        let bob = member(&there, "bob", true).await;
        until_all(hubs, &["ann", "bob"]).await;
        server.cut().await;
        let mut eve = member(&there, "eve", false).await;
        until_all(hubs, &["ann", "bob", "eve"]).await;
        // It comes back with nothing: every node has to say everything again.
        server.kill();
        assert!(eve.remove(&ChannelName::new("room").unwrap()));
        server.run_empty();
        until_all(hubs, &["ann", "bob"]).await;
        let _dan = member(&here, "dan", false).await;
        until_all(hubs, &["ann", "bob", "dan"]).await;
        drop(bob);
        there.deregister().await;
        drop(there);
        until_all([&here, &here], &["ann", "dan"]).await;
    }
}

#[cfg(feature = "redis")]
mod support;

#[cfg(feature = "redis")]
mod redis_server {
    use std::time::Duration;

    use airwave_brokers::Redis;
    use airwave_core::directory::{MemberEntry, NodeId};
    use airwave_core::directory_conformance::PATIENCE;
    use airwave_core::{ChannelName, Hub};

    use super::*;
    use crate::nodes::{Treated, come_to_agree, everywhere};
    use crate::support::RedisServer;

    async fn fixture(_: &[Fault]) -> Option<OneRedis> {
        RedisServer::start(&[]).map(OneRedis)
    }

    airwave_core::directory_conformance_tests!(fixture);

    /// One server of its own; each node is a broker with connections of its own.
    struct OneRedis(RedisServer);

    #[async_trait]
    impl DirectoryFixture for OneRedis {
        async fn node(&self) -> Arc<dyn Directory> {
            Arc::new(Redis::connect(&self.0.url(), Rules::default()).await.unwrap())
        }

        fn faults(&self) -> &[Fault] {
            &[Fault::Wipe, Fault::Cut]
        }

        async fn inflict(&self, fault: Fault) {
            match fault {
                Fault::Wipe => self.0.ask(&["FLUSHALL"]),
                _ => self.0.cut(),
            }
        }
    }

    #[async_trait]
    impl Treated for OneRedis {
        async fn node(&self) -> Hub {
            let redis = Redis::connect(&self.0.url(), everywhere()).await.unwrap();
            crate::nodes::hub(Arc::new(redis))
        }

        async fn cut(&self) {
            self.0.cut();
        }

        fn kill(&self) {
            self.0.kill();
        }

        fn run_empty(&self) {
            assert!(self.0.run());
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nodes_come_to_agree_whatever_happens_to_it() {
        if let Some(server) = fixture(&[]).await {
            come_to_agree(&server).await;
        }
    }

    /// Nothing stays on the server of nodes that were killed, nor of those that left.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_the_dead_said_is_removed() {
        let Some(server) = RedisServer::start(&[]) else { return };
        let redis = Redis::connect(&server.url(), Rules::default()).await.unwrap();
        let (killed, left, lives) = (NodeId::draw(), NodeId::draw(), NodeId::draw());
        for node in [killed, left] {
            redis.heartbeat(node).await.unwrap();
            for n in 0..300 {
                let entry = MemberEntry::new(node, "ann", 1, Some(b"here"[..].into()));
                let channel = ChannelName::new(&format!("room/{n}")).unwrap();
                redis.set(&channel, &[entry]).await.unwrap();
            }
        }
        redis.leave(left).await.unwrap();
        let removed = async {
            // What is left is the list of leases, with the one that lives. The node's probe writes
            // a key of its own.
            let left = || {
                let keys: Vec<String> = server.ask(&["KEYS", "*"]);
                keys.iter().filter(|key| !key.starts_with("airwave:0:probe:")).count()
            };
            while left() > 1 {
                redis.heartbeat(lives).await.unwrap();
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        tokio::time::timeout(PATIENCE, removed)
            .await
            .expect("what the dead said is removed");
        assert_eq!(redis.heartbeat(lives).await.unwrap().living, [lives]);
    }
}

#[cfg(feature = "redis")]
mod redis_cluster {
    use airwave_brokers::Redis;

    use super::*;
    use crate::support::many::Cluster;

    /// Three masters, one clause after the other: a cluster for each would take most of the time to
    /// be made.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn every_clause_holds() {
        let Some(cluster) = Cluster::start(3, 60_000, &[]) else {
            return;
        };
        let fixture = OneCluster(cluster);
        for clause in CLAUSES {
            println!("{}", clause.name);
            clause.prove(&fixture).await;
        }
    }

    struct OneCluster(Cluster);

    #[async_trait]
    impl DirectoryFixture for OneCluster {
        async fn node(&self) -> Arc<dyn Directory> {
            Arc::new(Redis::connect(&self.0.url(), Rules::default()).await.unwrap())
        }

        fn faults(&self) -> &[Fault] {
            &[Fault::Wipe, Fault::Cut]
        }

        async fn inflict(&self, fault: Fault) {
            for master in &self.0.0[..3] {
                match fault {
                    Fault::Wipe => master.ask(&["FLUSHALL"]),
                    _ => master.cut(),
                }
            }
        }
    }
}

#[cfg(feature = "redis")]
mod redis_sentinel {
    use airwave_brokers::Redis;

    use super::*;
    use crate::support::many::Watched;

    /// A master that sentinels name, one clause after the other.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn every_clause_holds() {
        let Some(watched) = Watched::start(None) else { return };
        let fixture = OneWatched(watched);
        for clause in CLAUSES {
            println!("{}", clause.name);
            clause.prove(&fixture).await;
        }
    }

    struct OneWatched(Watched);

    #[async_trait]
    impl DirectoryFixture for OneWatched {
        async fn node(&self) -> Arc<dyn Directory> {
            Arc::new(Redis::connect(&self.0.url(), Rules::default()).await.unwrap())
        }

        fn faults(&self) -> &[Fault] {
            &[Fault::Wipe, Fault::Cut]
        }

        async fn inflict(&self, fault: Fault) {
            match fault {
                Fault::Wipe => self.0.servers[0].ask(&["FLUSHALL"]),
                _ => self.0.servers[0].cut(),
            }
        }
    }
}

#[cfg(feature = "nats")]
#[path = "support/nats.rs"]
mod nats_server;

#[cfg(feature = "nats")]
mod nats {
    use std::time::Duration;

    use airwave_brokers::Nats;
    use airwave_core::directory::{MemberEntry, NodeId};
    use airwave_core::directory_conformance::PATIENCE;
    use airwave_core::{Append, Broker, ChannelName, Data, EventName, Hub, Message, PageLimit};
    use serde_json::{Value, json};

    use super::*;
    use crate::nats_server::NatsServer;
    use crate::nodes::{Treated, come_to_agree, everywhere, hub, member, until_all};

    async fn fixture(_: &[Fault]) -> Option<OneNats> {
        NatsServer::start().map(OneNats)
    }

    airwave_core::directory_conformance_tests!(fixture);

    /// One server of its own; each node is a broker with a connection of its own.
    struct OneNats(NatsServer);

    async fn wipe(server: &NatsServer) {
        let deleted = server.ask("STREAM.DELETE.airwave-members", Value::Null).await;
        assert_eq!(deleted["success"], true, "{deleted}");
    }

    #[async_trait]
    impl DirectoryFixture for OneNats {
        async fn node(&self) -> Arc<dyn Directory> {
            // No rule asks for presence. The broker serves every caller all the same.
            Arc::new(Nats::connect(&self.0.url(), Rules::default()).await.unwrap())
        }

        fn faults(&self) -> &[Fault] {
            &[Fault::Wipe, Fault::Cut]
        }

        async fn inflict(&self, fault: Fault) {
            match fault {
                Fault::Wipe => wipe(&self.0).await,
                _ => self.0.cut().await,
            }
        }
    }

    /// Three servers, three replicas, the nodes spread over them; one clause after the other.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn clauses_hold_on_a_cluster() {
        let Some(servers) = NatsServer::cluster() else { return };
        let fixture = ThreeNats(servers);
        // Left out: three servers store each message on a machine that has other things to do, and
        // a call that takes longer than it may is refused.
        for clause in CLAUSES
            .iter()
            .filter(|clause| clause.name != "ten_thousand_members_are_listed")
        {
            println!("{}", clause.name);
            clause.prove(&fixture).await;
        }
    }

    struct ThreeNats([NatsServer; 3]);

    impl ThreeNats {
        async fn connect(&self) -> Arc<Nats> {
            let hosts = self.0.each_ref().map(|server| format!("127.0.0.1:{}", server.port));
            let url = format!("nats://{}?replicas=3&storage=memory", hosts.join(","));
            // A cluster that has just started takes a moment to find out who leads.
            let connecting = async {
                loop {
                    match Nats::connect(&url, everywhere()).await {
                        Ok(node) => return node,
                        Err(error) => eprintln!("not yet: {error}"),
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            };
            let node = tokio::time::timeout(PATIENCE, connecting).await;
            Arc::new(node.expect("the cluster does not come up"))
        }

        /// The server that decides what members' messages there are.
        async fn leader(&self) -> &NatsServer {
            let info = self.0[0].ask("STREAM.INFO.airwave-members", Value::Null).await;
            let leader = info["cluster"]["leader"].as_str().unwrap();
            &self.0[leader.strip_prefix('n').unwrap().parse::<usize>().unwrap()]
        }
    }

    #[async_trait]
    impl DirectoryFixture for ThreeNats {
        async fn node(&self) -> Arc<dyn Directory> {
            self.connect().await
        }

        fn faults(&self) -> &[Fault] {
            // While the cluster has no leader, a clause that does not wait would fail.
            &[Fault::Cut]
        }

        async fn inflict(&self, _: Fault) {
            for server in &self.0 {
                server.cut().await;
            }
        }
    }

    /// The leader is killed while members come, and others while it is away.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nodes_agree_again_when_the_leader_of_three_is_killed() {
        let Some(servers) = NatsServer::cluster() else { return };
        let servers = ThreeNats(servers);
        let (here, there) = (hub(servers.connect().await), hub(servers.connect().await));
        let hubs = [&here, &there];
        let _ann = member(&here, "ann", true).await;
        let bob = member(&there, "bob", true).await;
        until_all(hubs, &["ann", "bob"]).await;
        let leader = servers.leader().await;
        let _eve = member(&there, "eve", false).await;
        leader.kill();
        let _dan = member(&here, "dan", false).await;
        until_all(hubs, &["ann", "bob", "dan", "eve"]).await;
        assert!(leader.run());
        drop(bob);
        until_all(hubs, &["ann", "dan", "eve"]).await;
    }

    #[async_trait]
    impl Treated for OneNats {
        async fn node(&self) -> Hub {
            let nats = Nats::connect(&self.0.url(), everywhere()).await.unwrap();
            hub(Arc::new(nats))
        }

        async fn cut(&self) {
            self.0.cut().await;
        }

        fn kill(&self) {
            self.0.kill();
        }

        fn run_empty(&self) {
            self.0.wipe();
            assert!(self.0.run());
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nodes_come_to_agree_whatever_happens_to_it() {
        if let Some(server) = fixture(&[]).await {
            come_to_agree(&server).await;
        }
    }

    fn here(node: NodeId, member: &str, stamp: u64, value: Option<&str>) -> MemberEntry {
        MemberEntry::new(node, member, stamp, value.map(|value| value.to_owned().into()))
    }

    async fn messages(server: &NatsServer) -> u64 {
        let info = server.ask("STREAM.INFO.airwave-members", Value::Null).await;
        info["state"]["messages"].as_u64().unwrap()
    }

    /// Nothing stays on the server of nodes that were killed, nor of nodes that left, nor of
    /// channels without members.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_the_dead_said_is_removed() {
        let Some(server) = NatsServer::start() else { return };
        let nats = Nats::connect(&server.url(), everywhere()).await.unwrap();
        let (killed, left, lives) = (NodeId::draw(), NodeId::draw(), NodeId::draw());
        for node in [killed, left, lives] {
            nats.heartbeat(node).await.unwrap();
            for n in 0..100 {
                let channel = ChannelName::new(&format!("room/{n}")).unwrap();
                nats.set(&channel, &[here(node, "ann", 1, Some("here"))]).await.unwrap();
                if node == lives {
                    nats.set(&channel, &[here(node, "ann", 2, None)]).await.unwrap();
                }
            }
        }
        assert_eq!(messages(&server).await, 301);
        nats.leave(left).await.unwrap();
        assert!(
            nats.set(&ChannelName::new("room/1").unwrap(), &[here(left, "ann", 2, Some("late"))])
                .await
                .is_err()
        );
        let removed = async {
            // What is left is the list of leases.
            while messages(&server).await > 1 {
                nats.heartbeat(lives).await.unwrap();
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        tokio::time::timeout(PATIENCE, removed)
            .await
            .expect("what the dead said is removed");
        assert_eq!(nats.heartbeat(lives).await.unwrap().living, [lives]);
    }

    /// The stream of members is no matter of the events: their feeds go on without it. Those who
    /// watch must look again.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_stream_of_members_that_is_lost_ends_watches_and_no_feed() {
        let Some(server) = NatsServer::start() else { return };
        let nats = Nats::connect(&server.url(), everywhere()).await.unwrap();
        let (node, channel) = (NodeId::draw(), ChannelName::new("room").unwrap());
        nats.heartbeat(node).await.unwrap();
        let mut feed = nats.follow(&channel).await.unwrap();
        let mut watch = nats.watch(&channel).await.unwrap();
        wipe(&server).await;
        assert!(nats.set(&channel, &[here(node, "ann", 1, Some("lost"))]).await.is_err());
        assert_eq!(tokio::time::timeout(PATIENCE, watch.next()).await.unwrap(), None);
        // The next call that needs it makes it anew, over the same connection.
        assert!(!nats.heartbeat(node).await.unwrap().known);
        let mut watch = nats.watch(&channel).await.unwrap();
        let entry = here(node, "ann", 2, Some("here"));
        nats.set(&channel, std::slice::from_ref(&entry)).await.unwrap();
        assert_eq!(watch.next().await, Some(entry));
        let publish = Append::new(Message::new(EventName::new("said").unwrap(), Data::text("it goes on")));
        let published = nats.publish(&channel, publish).await.unwrap();
        let heard = tokio::time::timeout(PATIENCE, feed.next()).await.unwrap();
        assert_eq!(heard.unwrap().position, published.position);
    }

    /// Only the list of leases is gone: no node is known, and earlier entries do not come back with
    /// their nodes.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_was_said_before_the_roll_was_lost_does_not_come_back() {
        let Some(server) = NatsServer::start() else { return };
        let nats = Nats::connect(&server.url(), everywhere()).await.unwrap();
        let (node, channel) = (NodeId::draw(), ChannelName::new("room").unwrap());
        nats.heartbeat(node).await.unwrap();
        nats.set(&channel, &[here(node, "ann", 1, Some("here"))]).await.unwrap();
        let leases = json!({ "filter": "airwave.members.roll" });
        let purged = server.ask("STREAM.PURGE.airwave-members", leases).await;
        assert_eq!(purged["purged"], 1, "{purged}");
        assert_eq!(nats.list(&channel).await.unwrap(), []);
        assert!(!nats.heartbeat(node).await.unwrap().known);
        assert_eq!(nats.list(&channel).await.unwrap(), []);
        let entry = here(node, "bob", 2, Some("here"));
        nats.set(&channel, std::slice::from_ref(&entry)).await.unwrap();
        assert_eq!(nats.list(&channel).await.unwrap(), [entry]);
    }

    /// What docs/deploying.md says that a user of NATS must be allowed.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_user_who_may_do_nothing_else_suffices() {
        let words: Vec<&str> = include_str!("../../docs/deploying.md").split_whitespace().collect();
        let told = words.join(" ");
        let told = told
            .split_once("- **Permissions**")
            .unwrap()
            .1
            .split_once("Any user that may publish")
            .unwrap()
            .0;
        let (mut publish, mut subscribe) = (Vec::new(), Vec::new());
        for part in told.split("publish ").skip(1) {
            let (published, subscribed) = part.split_once("subscribe ").unwrap();
            for (list, text) in [(&mut publish, published), (&mut subscribe, subscribed)] {
                list.extend(text.split('`').skip(1).step_by(2).map(|subject| format!("\"{subject}\"")));
            }
        }
        assert!(publish.len() >= 8 && subscribe.len() >= 3, "{publish:?} {subscribe:?}");
        let configured = NatsServer::configured(&format!(
            "jetstream {{ store_dir: \"DIR\" }}\naccounts {{ APP {{ jetstream: enabled, users: [{{ user: me, password: mine, \
             permissions: {{ publish: [{}], subscribe: [{}] }} }}] }} }}\n",
            publish.join(", "),
            subscribe.join(", ")
        ));
        let Some(server) = configured else { return };
        let url = format!("nats://me:mine@127.0.0.1:{}", server.port);
        let nats = Nats::connect(&url, everywhere()).await.unwrap();
        let (node, channel) = (NodeId::draw(), ChannelName::new("room").unwrap());
        nats.ping().await.unwrap();
        nats.heartbeat(node).await.unwrap();
        let mut watch = nats.watch(&channel).await.unwrap();
        let entry = here(node, "ann", 1, Some("here"));
        nats.set(&channel, std::slice::from_ref(&entry)).await.unwrap();
        assert_eq!(
            tokio::time::timeout(PATIENCE, watch.next()).await.unwrap(),
            Some(entry.clone())
        );
        assert_eq!(nats.list(&channel).await.unwrap(), [entry]);
        assert_eq!(
            nats.replay(&channel, None, PageLimit::events(10)).await.unwrap().events.len(),
            0
        );
        nats.leave(node).await.unwrap();
        assert_eq!(nats.list(&channel).await.unwrap(), []);
    }

    /// One change of a node has not come, so the watcher must read the list again.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_watch_with_a_hole_ends() {
        let Some(server) = NatsServer::start() else { return };
        let nats = Nats::connect(&server.url(), everywhere()).await.unwrap();
        let (node, channel) = (NodeId::draw(), ChannelName::new("room").unwrap());
        nats.heartbeat(node).await.unwrap();
        let mut watch = nats.watch(&channel).await.unwrap();
        for stamp in 1..4 {
            let entry = here(node, "ann", stamp, Some("here"));
            nats.set(&channel, std::slice::from_ref(&entry)).await.unwrap();
            assert_eq!(watch.next().await, Some(entry));
        }
        // The stream does not tell the fourth: it has no such order.
        let info = server.ask("STREAM.INFO.airwave-members", Value::Null).await;
        let mut config = info["config"].clone();
        config.as_object_mut().unwrap().remove("republish");
        let silenced = server.ask("STREAM.UPDATE.airwave-members", config.clone()).await;
        assert_eq!(silenced["error"], Value::Null, "{silenced}");
        nats.set(&channel, &[here(node, "ann", 4, Some("unheard"))]).await.unwrap();
        config["republish"] = json!({ "src": "airwave.members.>", "dest": "airwave.changes.>", "headers_only": true });
        let telling = server.ask("STREAM.UPDATE.airwave-members", config).await;
        assert_eq!(telling["error"], Value::Null, "{telling}");
        nats.set(&channel, &[here(node, "ann", 5, Some("here"))]).await.unwrap();
        let next = tokio::time::timeout(PATIENCE, watch.next()).await.unwrap();
        assert_eq!(next, None);
    }
}
