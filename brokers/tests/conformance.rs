//! The broker contract, clause by clause, over every broker of this crate.

#![allow(clippy::unwrap_used)]

use std::sync::{Arc, RwLock};

use airwave_brokers::Memory;
use airwave_core::conformance::{CLAUSES, Fault, Fixture, rules};
use airwave_core::{Broker, BrokerError, ChannelName, Feed, Position, Publish, Published, Replay};
use async_trait::async_trait;

mod memory {
    use super::*;

    async fn fixture(_: &[Fault]) -> Option<OneMemory> {
        Some(OneMemory::default())
    }

    airwave_core::conformance_tests!(fixture);
}

/// One memory broker, which is every node's; a wipe puts a new one in its place.
#[derive(Default)]
struct OneMemory(Arc<Replaced>);

struct Replaced(RwLock<Arc<Memory>>);

impl Default for Replaced {
    fn default() -> Self {
        Replaced(RwLock::new(Arc::new(Memory::new(rules()))))
    }
}

impl Replaced {
    fn now(&self) -> Arc<Memory> {
        self.0.read().unwrap().clone()
    }
}

#[async_trait]
impl Fixture for OneMemory {
    async fn node(&self) -> Arc<dyn Broker> {
        self.0.clone()
    }

    fn faults(&self) -> &[Fault] {
        &[Fault::Wipe]
    }

    async fn inflict(&self, _: Fault) {
        *self.0.0.write().unwrap() = Arc::new(Memory::new(rules()));
    }

    async fn subscriptions(&self, _: &ChannelName) -> Option<usize> {
        None
    }
}

#[async_trait]
impl Broker for Replaced {
    fn name(&self) -> &'static str {
        "memory"
    }

    async fn publish(&self, channel: &ChannelName, publish: Publish) -> Result<Published, BrokerError> {
        self.now().publish(channel, publish).await
    }

    async fn follow(&self, channel: &ChannelName) -> Result<Feed, BrokerError> {
        self.now().follow(channel).await
    }

    async fn replay(&self, channel: &ChannelName, after: Option<Position>, limit: usize) -> Result<Replay, BrokerError> {
        self.now().replay(channel, after, limit).await
    }

    async fn ping(&self) -> Result<(), BrokerError> {
        self.now().ping().await
    }
}

#[cfg(feature = "redis")]
mod support;

#[cfg(feature = "redis")]
mod redis_server {
    use airwave_brokers::Redis;

    use super::*;
    use crate::support::Server;

    async fn fixture(needs: &[Fault]) -> Option<OneRedis> {
        let server = if needs.contains(&Fault::Restart) {
            Server::that_stores()
        } else {
            Server::start(&[])
        };
        server.map(OneRedis)
    }

    airwave_core::conformance_tests!(fixture);

    /// One server of its own; each node is a broker with connections of its own.
    struct OneRedis(Server);

    #[async_trait]
    impl Fixture for OneRedis {
        async fn node(&self) -> Arc<dyn Broker> {
            Arc::new(Redis::connect(&self.0.url(), rules()).await.unwrap())
        }

        fn faults(&self) -> &[Fault] {
            &[Fault::Wipe, Fault::Cut, Fault::Restart]
        }

        async fn inflict(&self, fault: Fault) {
            match fault {
                Fault::Wipe => self.0.ask(&["FLUSHALL"]),
                Fault::Cut => self.0.cut(),
                Fault::Restart => {
                    self.0.kill();
                    assert!(self.0.run());
                }
            }
        }

        async fn subscriptions(&self, channel: &ChannelName) -> Option<usize> {
            let counted: (String, usize) = self.0.ask(&["PUBSUB", "NUMSUB", &format!("airwave:0:{{{channel}}}")]);
            Some(counted.1)
        }
    }
}

#[cfg(feature = "redis")]
mod redis_cluster {
    use airwave_brokers::Redis;
    use airwave_core::conformance::Verdict;

    use super::*;
    use crate::support::many::{Cluster, until};

    /// Three masters and their replicas, one after the other: a cluster for each clause would take most of the time to be made.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn every_clause_holds() {
        // Nobody is to be taken for dead, however busy this machine is. What a process has written outlives it, synced or not.
        let Some(cluster) = Cluster::start(3, 60_000, &["--appendonly", "yes", "--appendfsync", "no"]) else {
            return;
        };
        let fixture = OneCluster(cluster);
        let mut broken = Vec::new();
        for clause in CLAUSES {
            match clause.judge(&fixture).await {
                Verdict::Held => {}
                Verdict::Skipped(fault) => panic!("{}: this fixture makes {fault:?}", clause.name),
                Verdict::Broken(why) => broken.push(format!("{}: {why}", clause.name)),
            }
        }
        assert!(broken.is_empty(), "{}", broken.join("\n"));
    }

    struct OneCluster(Cluster);

    #[async_trait]
    impl Fixture for OneCluster {
        async fn node(&self) -> Arc<dyn Broker> {
            Arc::new(Redis::connect(&self.0.url(), rules()).await.unwrap())
        }

        fn faults(&self) -> &[Fault] {
            &[Fault::Wipe, Fault::Cut, Fault::Restart]
        }

        async fn inflict(&self, fault: Fault) {
            for master in &self.0.0[..3] {
                match fault {
                    Fault::Wipe => master.ask(&["FLUSHALL"]),
                    Fault::Cut => master.cut(),
                    Fault::Restart => {
                        master.kill();
                        assert!(master.run());
                    }
                }
            }
            if fault == Fault::Restart {
                until("the cluster is whole again", || {
                    self.0
                        .0
                        .iter()
                        .all(|node| node.told(&["CLUSTER", "INFO"], "cluster_state") == "ok")
                });
            }
        }

        async fn subscriptions(&self, channel: &ChannelName) -> Option<usize> {
            let owner = &self.0.0[self.0.owner(self.0.slot(channel.as_str()))];
            let partition = crate::support::many::partition(channel.as_str());
            let wire = format!("airwave:{{{partition}}}:{{{channel}}}");
            let counted: (String, usize) = owner.ask(&["PUBSUB", "SHARDNUMSUB", &wire]);
            Some(counted.1)
        }
    }
}

#[test]
fn every_clause_is_in_the_list() {
    let source = include_str!("../../core/src/conformance.rs");
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
