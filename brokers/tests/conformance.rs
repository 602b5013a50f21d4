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
