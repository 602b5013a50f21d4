//! Redis: one server, a master with a replica behind sentinels, or a cluster.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::super::plan::RULES;
use super::probe::ask_redis as ask;
use super::{Broker, BrokerKind, PATIENCE, ServerProcess, ServerSettings, free};

/// Everything is on disk before it is answered.
const STORED: [&str; 6] = ["--save", "", "--appendonly", "yes", "--appendfsync", "always"];

/// The masters' parts of a cluster.
const SLOTS: [&str; 3] = ["0 5460", "5461 10922", "10923 16383"];

/// Asks until the answer is as wanted.
async fn until(address: SocketAddr, what: &str, wanted: impl Fn(&str) -> bool) -> Result<(), String> {
    let since = Instant::now();
    loop {
        let answer = ask(address, what).await;
        if answer.as_deref().is_ok_and(&wanted) {
            return Ok(());
        }
        if since.elapsed() > PATIENCE {
            return Err(format!("{what} is answered {answer:?} for {PATIENCE:?}"));
        }
        sleep(Duration::from_millis(20)).await;
    }
}

fn settings(all: &[&[&str]]) -> ServerSettings {
    ServerSettings::Redis(all.concat().into_iter().map(str::to_owned).collect())
}

impl Broker {
    /// A server, and what belongs to it.
    pub(super) async fn begin_redis(&mut self, program: &Path, folder: &Path) -> Result<(), String> {
        let text = |error: io::Error| format!("a broker cannot be prepared: {error}");
        let stored = match self.kind {
            BrokerKind::RedisVolatile => &STORED[..2],
            _ => &STORED[..],
        };
        let first = ServerProcess::new(program, folder.join("0"), settings(&[stored])).await;
        let mut first = first.map_err(text)?;
        first.run().await?;
        let master = format!("127.0.0.1 {}", first.address.port());
        self.servers.push(first);
        if self.kind != BrokerKind::RedisSentinel {
            return Ok(());
        }
        let replica = settings(&[stored, &["--replicaof", &master]]);
        let mut replica = ServerProcess::new(program, folder.join("1"), replica).await.map_err(text)?;
        replica.run().await?;
        self.servers.push(replica);
        for number in 2..5 {
            let folder = folder.join(number.to_string());
            let file = folder.join("settings");
            let how = settings(&[&[&file.to_string_lossy(), "--sentinel"]]);
            let mut sentinel = ServerProcess::new(program, folder, how).await.map_err(text)?;
            let settings = format!(
                "sentinel monitor events {master} 2\nsentinel down-after-milliseconds events 700\n\
                 sentinel failover-timeout events 3000\n"
            );
            std::fs::write(file, settings).map_err(text)?;
            sentinel.run().await?;
            self.sentinels.push(sentinel);
        }
        for sentinel in &self.sentinels {
            let all = |answer: &str| answer.contains("slaves=1,sentinels=3");
            until(sentinel.address, "INFO sentinel", all).await?;
        }
        Ok(())
    }

    /// Three masters; server `n + 3` is the replica of `n`, at first.
    pub(super) async fn begin_cluster(&mut self, program: &Path, folder: &Path) -> Result<(), String> {
        let text = |error: io::Error| format!("a broker cannot be prepared: {error}");
        let mut buses = Vec::new();
        for number in 0..6 {
            let bus = free().await.map_err(text)?.port().to_string();
            let clustered = [
                ["--cluster-enabled", "yes"],
                ["--cluster-port", &bus],
                ["--cluster-node-timeout", "700"],
                // A replica whose master was long out of reach may take over, too: it has lost more
                // of the newest, and that is wanted here.
                ["--cluster-replica-validity-factor", "0"],
                ["--cluster-allow-replica-migration", "no"],
                ["--cluster-preferred-endpoint-type", "unknown-endpoint"],
                ["--repl-diskless-sync-delay", "0"],
            ];
            let how = settings(&[&STORED, clustered.as_flattened()]);
            let server = ServerProcess::new(program, folder.join(number.to_string()), how).await;
            let mut server = server.map_err(text)?;
            server.run().await?;
            self.servers.push(server);
            buses.push(bus);
        }
        let first = format!("127.0.0.1 {} {}", self.servers[0].address.port(), buses[0]);
        let done = |answer: &str| answer.starts_with("+OK");
        for (number, server) in self.servers.iter().enumerate() {
            if let Some(slots) = SLOTS.get(number) {
                until(server.address, &format!("CLUSTER ADDSLOTSRANGE {slots}"), done).await?;
            }
            until(server.address, &format!("CLUSTER SET-CONFIG-EPOCH {}", number + 1), done).await?;
            if number > 0 {
                until(server.address, &format!("CLUSTER MEET {first}"), done).await?;
            }
        }
        for server in &self.servers {
            let all = |answer: &str| answer.contains("cluster_known_nodes:6\r\n");
            until(server.address, "CLUSTER INFO", all).await?;
        }
        for number in 0..3 {
            let master = ask(self.servers[number].address, "CLUSTER MYID").await.map_err(text)?;
            let master = master.lines().nth(1).unwrap_or_default();
            let replica = &self.servers[number + 3];
            until(replica.address, &format!("CLUSTER REPLICATE {master}"), done).await?;
        }
        self.settle().await
    }

    /// Which of the two servers the sentinels take for the master.
    pub(super) async fn master(&self) -> Option<usize> {
        for sentinel in &self.sentinels {
            let answer = ask(sentinel.address, "SENTINEL GET-MASTER-ADDR-BY-NAME events").await;
            let answer = answer.unwrap_or_default();
            let is_named = |server: &ServerProcess| answer.contains(&format!("\r\n{}\r\n", server.address.port()));
            if let Some(master) = self.servers.iter().position(is_named) {
                return Some(master);
            }
        }
        None
    }

    /// Which server of a cluster has one of the channels, another one each time.
    pub(super) async fn owner(&self, turn: usize) -> Option<usize> {
        let channel = RULES[turn % RULES.len()].channel;
        for server in &self.servers {
            if server.child.is_none() {
                continue;
            }
            let slot = async |key: &str| -> Option<u16> {
                let answer = ask(server.address, &format!("CLUSTER KEYSLOT {key}")).await.ok()?;
                answer.strip_prefix(':')?.trim().parse().ok()
            };
            // A channel's partition is the same checksum, of its name, as a key's slot is.
            let Some(partition) = slot(channel).await.map(|slot| slot % 1024) else {
                continue;
            };
            let Some(slot) = slot(&format!("airwave:{partition}")).await else {
                continue;
            };
            let nodes = ask(server.address, "CLUSTER NODES").await.unwrap_or_default();
            for line in nodes.lines().filter(|line| line.contains("master")) {
                let words: Vec<&str> = line.split(' ').collect();
                let has = words.iter().skip(8).any(|range| {
                    let (first, last) = range.split_once('-').unwrap_or((range, range));
                    first.parse().is_ok_and(|first: u16| first <= slot) && last.parse().is_ok_and(|last: u16| slot <= last)
                });
                let port = words.get(1).and_then(|place| place.split([':', '@']).nth(1));
                let is_named = |server: &ServerProcess| port == Some(&server.address.port().to_string());
                if let Some(owner) = self.servers.iter().position(is_named).filter(|_| has) {
                    return Some(owner);
                }
            }
        }
        None
    }

    /// The sentinels name one master, it is one, and the other server follows it.
    pub(super) async fn master_is_settled(&self) -> Result<(), String> {
        for sentinel in &self.sentinels {
            let named = ask(sentinel.address, "SENTINEL MASTER events").await.unwrap_or_default();
            let Some(master) = (0..self.servers.len()).find(|server| {
                let port = self.servers[*server].address.port();
                named.contains(&format!("\r\nport\r\n$5\r\n{port}\r\n"))
                    || named.contains(&format!("\r\nport\r\n$4\r\n{port}\r\n"))
            }) else {
                return Err(format!("a sentinel names no master: {named}"));
            };
            for (number, server) in self.servers.iter().enumerate() {
                let told = ask(server.address, "INFO replication").await.unwrap_or_default();
                let right = match number == master {
                    true => told.contains("role:master") && told.contains("connected_slaves:1"),
                    false => told.contains("role:slave") && told.contains("master_link_status:up"),
                };
                if !right {
                    return Err(format!("the master is number {master}, but number {number} says {told}"));
                }
            }
            // Sentinels that still think of a failover say so in flags.
            if !named.contains("flags\r\n$6\r\nmaster\r\n") {
                return Err(format!("a sentinel is not sure: {named}"));
            }
        }
        Ok(())
    }

    /// Each server sees the cluster whole and no server failing, and each replica follows its
    /// master.
    pub(super) async fn cluster_is_settled(&self) -> Result<(), String> {
        let mut masters = 0;
        for (number, server) in self.servers.iter().enumerate() {
            let info = ask(server.address, "CLUSTER INFO").await.unwrap_or_default();
            let nodes = ask(server.address, "CLUSTER NODES").await.unwrap_or_default();
            let told = ask(server.address, "INFO replication").await.unwrap_or_default();
            let whole = info.contains("cluster_state:ok") && info.contains("cluster_slots_ok:16384");
            let known = nodes.matches(" connected").count() == 6 && nodes.matches("slave ").count() == 3;
            let sure = !nodes.contains("fail") && !nodes.contains("handshake");
            let is_master = told.contains("role:master") && told.contains("connected_slaves:1");
            let follows = told.contains("role:slave") && told.contains("master_link_status:up");
            masters += usize::from(is_master);
            if !whole || !known || !sure || is_master == follows {
                return Err(format!("number {number} says {info}{nodes}{told}"));
            }
        }
        match masters {
            3 => Ok(()),
            _ => Err(format!("there are {masters} masters")),
        }
    }
}
