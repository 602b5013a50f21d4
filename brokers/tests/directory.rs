//! The contract of a directory of members, clause by clause, over every broker of this crate that has one.

#![allow(clippy::unwrap_used)]

use std::sync::{Arc, RwLock};

use airwave_brokers::Memory;
use airwave_core::Rules;
use airwave_core::conformance::Fault;
use airwave_core::directory::Directory;
use airwave_core::directory_conformance::{CLAUSES, Fixture};
use async_trait::async_trait;

mod memory {
    use airwave_core::directory::{Beat, Entry, NodeId, Watch};
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
    impl Fixture for OneMemory {
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
    impl Directory for Replaced {
        async fn set(&self, channel: &ChannelName, entries: &[Entry]) -> Result<(), BrokerError> {
            self.now().set(channel, entries).await
        }

        async fn list(&self, channel: &ChannelName) -> Result<Vec<Entry>, BrokerError> {
            self.now().list(channel).await
        }

        async fn watch(&self, channel: &ChannelName) -> Result<Watch, BrokerError> {
            self.now().watch(channel).await
        }

        async fn beat(&self, node: NodeId) -> Result<Beat, BrokerError> {
            self.now().beat(node).await
        }

        async fn leave(&self, node: NodeId) -> Result<(), BrokerError> {
            self.now().leave(node).await
        }
    }
}

#[cfg(feature = "redis")]
mod support;

#[cfg(feature = "redis")]
mod redis_server {
    use std::time::Duration;

    use airwave_brokers::Redis;
    use airwave_core::directory::{Entry, NodeId};
    use airwave_core::directory_conformance::PATIENCE;
    use airwave_core::rule::TransportName;
    use airwave_core::session::After;
    use airwave_core::wire::Stamp;
    use airwave_core::{ChannelName, ConnectRequest, Event, Handler, Hub, Identity, Notice, Refusal, Rule, Session, Wire};
    use bytes::Bytes;

    use super::*;
    use crate::support::Server;

    async fn fixture(_: &[Fault]) -> Option<OneRedis> {
        Server::start(&[]).map(OneRedis)
    }

    airwave_core::directory_conformance_tests!(fixture);

    /// One server of its own; each node is a broker with connections of its own.
    struct OneRedis(Server);

    #[async_trait]
    impl Fixture for OneRedis {
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

    const TEST: TransportName = TransportName::of("test");

    /// What is said is of no interest: what a roster knows is asked for.
    struct Mute;

    impl Wire for Mute {
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

    #[async_trait]
    impl Handler for ByQuery {
        async fn connect(&self, request: &ConnectRequest) -> Result<Identity, Refusal> {
            Ok(Identity::user(request.query.clone()))
        }
    }

    async fn node(server: &Server) -> Hub {
        let mut rule = Rule::new("{*all}".parse().unwrap(), vec![TEST]);
        rule.presence = true;
        let rules = Rules::new([rule]);
        let redis = Arc::new(Redis::connect(&server.url(), rules.clone()).await.unwrap());
        let hub = Hub::builder(redis.clone(), rules).directory(redis);
        hub.handle("{*all}".parse().unwrap(), Arc::new(ByQuery)).build()
    }

    async fn member(hub: &Hub, user: &str, watches: bool) -> Session {
        let request = ConnectRequest {
            transport: TEST,
            peer: None,
            query: user.to_owned(),
            headers: Vec::new(),
        };
        let wire = hub.register_wire(Arc::new(Mute));
        let mut session = Session::new(hub.connect(request, false).unwrap(), &wire);
        let joiner = session.joiner().with_presence(watches);
        let joined = joiner.join(&ChannelName::new("room").unwrap(), After::Nothing).await;
        session.add(joined.unwrap(), None);
        session
    }

    async fn until_all(hubs: [&Hub; 2], wanted: &[&str]) {
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

    /// Nodes as applications have them: whatever happens to Redis, in the end all of them know everybody.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nodes_come_to_agree_whatever_happens_to_redis() {
        let Some(server) = Server::start(&[]) else { return };
        let (here, there) = (node(&server).await, node(&server).await);
        let hubs = [&here, &there];
        let _ann = member(&here, "ann", true).await;
        let bob = member(&there, "bob", true).await;
        until_all(hubs, &["ann", "bob"]).await;
        server.cut();
        let mut eve = member(&there, "eve", false).await;
        until_all(hubs, &["ann", "bob", "eve"]).await;
        // It comes back with nothing: every node has to say everything again.
        server.kill();
        assert!(eve.remove(&ChannelName::new("room").unwrap()));
        assert!(server.run());
        until_all(hubs, &["ann", "bob"]).await;
        let _dan = member(&here, "dan", false).await;
        until_all(hubs, &["ann", "bob", "dan"]).await;
        drop(bob);
        there.farewell().await;
        drop(there);
        until_all([&here, &here], &["ann", "dan"]).await;
    }

    /// Nothing stays on the server of nodes that were killed, nor of those that left.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_the_dead_said_is_removed() {
        let Some(server) = Server::start(&[]) else { return };
        let redis = Redis::connect(&server.url(), Rules::default()).await.unwrap();
        let (killed, left, lives) = (NodeId::draw(), NodeId::draw(), NodeId::draw());
        for node in [killed, left] {
            redis.beat(node).await.unwrap();
            for n in 0..300 {
                let entry = Entry {
                    node,
                    member: "ann".into(),
                    stamp: 1,
                    value: Some(b"here"[..].into()),
                };
                let channel = ChannelName::new(&format!("room/{n}")).unwrap();
                redis.set(&channel, &[entry]).await.unwrap();
            }
        }
        redis.leave(left).await.unwrap();
        let removed = async {
            // What is left is the roll, with the one that lives.
            while server.ask::<usize>(&["DBSIZE"]) > 1 {
                redis.beat(lives).await.unwrap();
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        tokio::time::timeout(PATIENCE, removed)
            .await
            .expect("what the dead said is removed");
        assert_eq!(redis.beat(lives).await.unwrap().living, [lives]);
    }
}

#[cfg(feature = "redis")]
mod redis_cluster {
    use airwave_brokers::Redis;

    use super::*;
    use crate::support::many::Cluster;

    /// Three masters, one clause after the other: a cluster for each would take most of the time to be made.
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
    impl Fixture for OneCluster {
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

#[test]
fn every_clause_is_in_the_list() {
    let source = include_str!("../../core/src/directory_conformance.rs");
    let clauses = source.lines().filter_map(|line| {
        let (name, _) = line.strip_prefix("pub async fn ")?.split_once("(fixture: &dyn Fixture)")?;
        Some(name)
    });
    let mut written: Vec<&str> = clauses.collect();
    let mut listed: Vec<&str> = CLAUSES.iter().map(|clause| clause.name).collect();
    written.sort_unstable();
    listed.sort_unstable();
    assert_eq!(written, listed);
}
