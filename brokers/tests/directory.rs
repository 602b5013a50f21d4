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
    use airwave_core::ChannelName;
    use airwave_core::directory::{Entry, NodeId};
    use airwave_core::directory_conformance::PATIENCE;

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
