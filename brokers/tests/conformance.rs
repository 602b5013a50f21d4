//! The broker contract, clause by clause, over every broker of this crate.

#![allow(clippy::unwrap_used)]

use std::sync::{Arc, RwLock};

use airwave_brokers::Memory;
use airwave_core::broker::BrokerStats;
use airwave_core::conformance::{CLAUSES, Fault, Fixture, rules};
use airwave_core::{Append, Broker, BrokerError, ChannelName, Feed, PageLimit, Position, Published, Replay};
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
#[deny(clippy::missing_trait_methods)]
impl Broker for Replaced {
    fn name(&self) -> &'static str {
        "memory"
    }

    async fn publish(&self, channel: &ChannelName, append: Append) -> Result<Published, BrokerError> {
        self.now().publish(channel, append).await
    }

    async fn follow(&self, channel: &ChannelName) -> Result<Feed, BrokerError> {
        self.now().follow(channel).await
    }

    async fn replay(&self, channel: &ChannelName, after: Option<Position>, limit: PageLimit) -> Result<Replay, BrokerError> {
        self.now().replay(channel, after, limit).await
    }

    async fn open(&self, channel: &ChannelName, limit: PageLimit) -> Result<(Feed, Replay), BrokerError> {
        self.now().open(channel, limit).await
    }

    async fn ping(&self) -> Result<(), BrokerError> {
        self.now().ping().await
    }

    fn stats(&self) -> BrokerStats {
        self.now().stats()
    }
}

#[cfg(feature = "redis")]
mod support;

#[cfg(feature = "redis")]
mod redis_server {
    use airwave_brokers::Redis;

    use super::*;
    use crate::support::RedisServer;

    async fn fixture(needs: &[Fault]) -> Option<OneRedis> {
        let server = if needs.contains(&Fault::Restart) {
            RedisServer::that_stores()
        } else if needs.contains(&Fault::ReturnBehind) {
            RedisServer::with_a_clock(&[])
        } else {
            RedisServer::start(&[])
        };
        server.map(OneRedis)
    }

    airwave_core::conformance_tests!(fixture);

    /// One server of its own; each node is a broker with connections of its own.
    struct OneRedis(RedisServer);

    #[async_trait]
    impl Fixture for OneRedis {
        async fn node(&self) -> Arc<dyn Broker> {
            Arc::new(Redis::connect(&self.0.url(), rules()).await.unwrap())
        }

        fn faults(&self) -> &[Fault] {
            &[Fault::Wipe, Fault::Cut, Fault::Restart, Fault::ReturnBehind]
        }

        async fn inflict(&self, fault: Fault) {
            match fault {
                Fault::Wipe => self.0.ask(&["FLUSHALL"]),
                Fault::Cut => self.0.cut(),
                Fault::Restart => {
                    self.0.kill();
                    assert!(self.0.run());
                }
                Fault::ReturnBehind => {
                    self.0.kill();
                    self.0.set_clock(-600);
                    assert!(self.0.run());
                }
                fault => unreachable!("this fixture does not offer {fault:?}"),
            }
        }

        async fn subscriptions(&self, channel: &ChannelName) -> Option<usize> {
            let counted: (String, usize) = self.0.ask(&["PUBSUB", "NUMSUB", &format!("airwave:0:{{{channel}}}")]);
            Some(counted.1)
        }

        async fn stored(&self) -> Option<usize> {
            let keys: Vec<String> = self.0.ask(&["KEYS", "airwave:{*"]);
            Some(keys.len())
        }
    }
}

#[cfg(feature = "redis")]
mod redis_cluster {
    use airwave_brokers::Redis;
    use airwave_core::conformance::Verdict;

    use super::*;
    use crate::support::many::{Cluster, until};

    /// Three masters and their replicas, one after the other: a cluster for each clause would take
    /// most of the time to be made.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn every_clause_holds() {
        // No server may be taken for dead, however busy this machine is. What a process has written
        // outlives it, synced or not.
        let Some(cluster) = Cluster::start(3, 60_000, &["--appendonly", "yes", "--appendfsync", "no"]) else {
            return;
        };
        let fixture = OneCluster(cluster);
        let mut broken = Vec::new();
        for clause in CLAUSES {
            let mut behind = None;
            if clause.needs.contains(&Fault::ReturnBehind) {
                // Its servers keep nothing, and their clocks can be moved.
                behind = Cluster::with_clocks(60_000).map(OneCluster);
                if behind.is_none() {
                    continue;
                }
            }
            let fixture = behind.as_ref().unwrap_or(&fixture);
            match clause.judge_and_record("redis_cluster", fixture).await {
                Verdict::Held => {}
                Verdict::Skipped(fault) => panic!("{}: this fixture makes {fault:?}", clause.name),
                Verdict::Broken(why) => broken.push(format!("{}: {why}", clause.name)),
                verdict => panic!("{}: a verdict that this test does not know: {verdict:?}", clause.name),
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
            &[Fault::Wipe, Fault::Cut, Fault::Restart, Fault::ReturnBehind]
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
                    Fault::ReturnBehind => {
                        master.kill();
                        master.set_clock(-600);
                        assert!(master.run());
                    }
                    fault => unreachable!("this fixture does not offer {fault:?}"),
                }
            }
            if matches!(fault, Fault::Restart | Fault::ReturnBehind) {
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

        async fn stored(&self) -> Option<usize> {
            let keys = self.0.0[..3]
                .iter()
                .map(|master| master.ask::<Vec<String>>(&["KEYS", "airwave:{*}:{*"]).len());
            Some(keys.sum())
        }
    }
}

#[cfg(feature = "nats")]
#[path = "support/nats.rs"]
mod nats_server;

#[cfg(feature = "nats")]
mod nats {
    use airwave_brokers::Nats;
    use airwave_brokers::nats::Tuning;
    use serde_json::Value;

    use super::*;
    use crate::nats_server::NatsServer;

    async fn fixture(_: &[Fault]) -> Option<OneNats> {
        NatsServer::start().map(OneNats)
    }

    airwave_core::conformance_tests!(fixture);

    /// Three servers that are one; the nodes are spread over them.
    pub struct ThreeNats(pub [NatsServer; 3]);

    #[async_trait]
    impl Fixture for ThreeNats {
        async fn node(&self) -> Arc<dyn Broker> {
            Arc::new(insist_on_three(&self.0).await)
        }

        fn faults(&self) -> &[Fault] {
            &[Fault::Wipe]
        }

        async fn inflict(&self, _: Fault) {
            let deleted = self.0[0].ask("STREAM.DELETE.airwave", Value::Null).await;
            assert_eq!(deleted["success"], true, "{deleted}");
        }

        async fn subscriptions(&self, _: &ChannelName) -> Option<usize> {
            None
        }
    }

    /// A cluster that has just started takes a moment to find out who leads.
    async fn insist_on_three(servers: &[NatsServer; 3]) -> Nats {
        let hosts = servers
            .each_ref()
            .map(|server| format!("127.0.0.1:{}", server.port))
            .join(",");
        let connecting = async {
            loop {
                match Nats::connect(&format!("nats://{hosts}?replicas=3"), rules()).await {
                    Ok(node) => return node,
                    Err(error) => eprintln!("not yet: {error}"),
                }
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(airwave_core::conformance::PATIENCE, connecting)
            .await
            .expect("the cluster does not come up")
    }

    /// One server of its own; each node is a broker with a connection of its own.
    pub struct OneNats(pub NatsServer);

    #[async_trait]
    impl Fixture for OneNats {
        async fn node(&self) -> Arc<dyn Broker> {
            self.node_with_clock(0).await
        }

        async fn node_with_clock(&self, ahead: i64) -> Arc<dyn Broker> {
            let tuning = Tuning::default().with(|tuning| tuning.clock_ahead = ahead);
            Arc::new(Nats::connect_tuned(&self.0.url(), rules(), tuning).await.unwrap())
        }

        fn faults(&self) -> &[Fault] {
            &[Fault::Wipe, Fault::Cut, Fault::Restart]
        }

        async fn inflict(&self, fault: Fault) {
            match fault {
                Fault::Wipe => {
                    let deleted = self.0.ask("STREAM.DELETE.airwave", Value::Null).await;
                    assert_eq!(deleted["success"], true, "{deleted}");
                }
                Fault::Cut => self.0.cut().await,
                Fault::Restart => {
                    self.0.kill();
                    assert!(self.0.run());
                }
                Fault::ReturnBehind => unreachable!("positions come from the nodes' clocks here"),
                fault => unreachable!("this fixture does not offer {fault:?}"),
            }
        }

        async fn subscriptions(&self, channel: &ChannelName) -> Option<usize> {
            // These names have nothing else to escape.
            let token = channel.as_str().replace('/', "=2F");
            Some(self.0.subscriptions(&format!("airwave.live.c.{token}")).await)
        }

        async fn stored(&self) -> Option<usize> {
            let filter = serde_json::json!({ "subjects_filter": "airwave.log.c.>" });
            let info = self.0.ask("STREAM.INFO.airwave", filter).await;
            Some(info["state"]["subjects"].as_object().map_or(0, |subjects| subjects.len()))
        }
    }
}

/// The oldest that serves: it gives history one by one, refuses in silence, and comes back in its
/// own way after it was killed.
#[cfg(feature = "nats")]
mod nats_2_10 {
    use super::nats::OneNats;
    use super::*;
    use crate::nats_server::{NatsServer, Release};

    async fn fixture(_: &[Fault]) -> Option<OneNats> {
        NatsServer::of(Release::Oldest).map(OneNats)
    }

    airwave_core::conformance_tests!(fixture);
}

/// Three servers, three replicas: what differs is who decides and who answers.
#[cfg(feature = "nats")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_keeps_the_contract_on_a_cluster() {
    let Some(servers) = nats_server::NatsServer::cluster() else {
        return;
    };
    let fixture = nats::ThreeNats(servers);
    for name in [
        "a_broker_that_works_says_so",
        "a_listener_without_events_misses_nothing",
        "concurrent_publishers_are_put_into_one_order_that_every_feed_shows",
        "a_feed_shows_every_event_after_its_head",
        "an_event_that_a_feed_has_shown_can_be_replayed",
        "replay_after_the_previous_of_the_oldest_is_complete",
        "a_repeated_key_among_concurrent_publishers_makes_one_event",
        "a_publish_that_was_given_up_may_be_repeated_with_its_key",
        "an_ended_channel_takes_no_more_events",
        "a_repeated_end_with_its_key_gives_its_position",
        "a_key_with_another_payload_is_refused",
        "an_event_and_the_end_behind_it_are_one_append",
        "any_sequence_of_calls_agrees_with_a_list",
        "after_a_wipe_nothing_old_goes_on",
    ] {
        airwave_core::conformance::clause(name).prove("nats_cluster", &fixture).await;
    }
}
