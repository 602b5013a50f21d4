use std::time::{Duration, Instant};

use super::{PATIENCE, RedisServer};

/// Asks until the answer is yes.
pub fn until(what: &str, mut ask: impl FnMut() -> bool) {
    let since = Instant::now();
    while !ask() {
        assert!(since.elapsed() < PATIENCE, "{what}: not for {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Three masters, and as many replicas as asked for: node `n + 3` is the replica of `n`, at first.
pub struct Cluster(pub Vec<RedisServer>);

const SLOTS: [(u16, u16); 3] = [(0, 5460), (5461, 10922), (10923, 16383)];

impl Cluster {
    /// `node_timeout`: in ms, after how long a silent node is taken for dead.
    pub fn start(replicas: usize, node_timeout: u64, arguments: &[&str]) -> Option<Cluster> {
        let timeout = node_timeout.to_string();
        let mut all = vec!["--cluster-node-timeout", &timeout, "--repl-diskless-sync-delay", "0"];
        all.extend(["--cluster-replica-validity-factor", "0"]);
        all.extend(arguments);
        Self::of((0..3 + replicas).map(|_| RedisServer::of_a_cluster(&all)))
    }

    /// Three masters whose clocks can be moved.
    pub fn with_clocks(node_timeout: u64) -> Option<Cluster> {
        let timeout = node_timeout.to_string();
        let all = ["--cluster-node-timeout", &timeout];
        Self::of((0..3).map(|_| RedisServer::of_a_cluster_with_a_clock(&all)))
    }

    fn of(nodes: impl Iterator<Item = Option<RedisServer>>) -> Option<Cluster> {
        let cluster = Cluster(nodes.collect::<Option<_>>()?);
        for (n, node) in cluster.0.iter().enumerate() {
            if let Some((first, last)) = SLOTS.get(n) {
                let _: String = node.ask(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()]);
            }
            let _: String = node.ask(&["CLUSTER", "SET-CONFIG-EPOCH", &(n + 1).to_string()]);
            if n > 0 {
                let first = &cluster.0[0];
                let (port, bus) = (first.port.to_string(), first.bus().to_string());
                let _: String = node.ask(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus]);
            }
        }
        let count = cluster.0.len().to_string();
        until("every node knows every other", || {
            cluster
                .0
                .iter()
                .all(|node| node.told(&["CLUSTER", "INFO"], "cluster_known_nodes") == count)
        });
        for n in 3..cluster.0.len() {
            let master = cluster.id(n - 3);
            until("the replica knows its master", || {
                cluster.0[n].try_ask::<String>(&["CLUSTER", "REPLICATE", &master]).is_ok()
            });
        }
        until("the cluster is whole", || {
            let whole = |node: &RedisServer| node.told(&["CLUSTER", "INFO"], "cluster_state") == "ok";
            let linked = |node: &RedisServer| node.told(&["INFO", "replication"], "master_link_status") == "up";
            cluster.0.iter().all(whole) && cluster.0[3..].iter().all(linked) && cluster.everybody_knows_the_replicas()
        });
        Some(cluster)
    }

    /// A failover needs it: the votes are counted by it.
    fn everybody_knows_the_replicas(&self) -> bool {
        self.0.iter().all(|node| {
            let nodes: String = node.ask(&["CLUSTER", "NODES"]);
            nodes.lines().filter(|line| line.contains("slave")).count() == self.0.len() - 3 && !nodes.contains("handshake")
        })
    }

    pub fn url(&self) -> String {
        let hosts: Vec<String> = self.0.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
        format!("redis+cluster://{}", hosts.join(","))
    }

    pub fn id(&self, node: usize) -> String {
        self.0[node].ask(&["CLUSTER", "MYID"])
    }

    /// The first node that is alive and has the slot.
    pub fn owner(&self, slot: u16) -> usize {
        let asked = self.0.iter().find(|node| node.is_running()).unwrap();
        let nodes: String = asked.ask(&["CLUSTER", "NODES"]);
        for line in nodes.lines().filter(|line| line.contains("master")) {
            let words: Vec<&str> = line.split(' ').collect();
            let has = words[8..].iter().any(|range| {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                first.parse().is_ok_and(|first: u16| first <= slot) && last.parse().is_ok_and(|last: u16| slot <= last)
            });
            if has {
                let port = words[1].split([':', '@']).nth(1).unwrap();
                return self.0.iter().position(|node| node.port.to_string() == port).unwrap();
            }
        }
        panic!("no server has slot {slot}: {nodes}")
    }

    /// The slot of this channel, by the names of its keys.
    pub fn slot(&self, channel: &str) -> u16 {
        let node = self.0.iter().find(|node| node.is_running()).unwrap();
        node.ask(&["CLUSTER", "KEYSLOT", &format!("airwave:{{{}}}", partition(channel))])
    }

    /// A channel, `name/…`, that this node has now.
    pub fn channel_of(&self, node: usize, name: &str) -> String {
        (0..)
            .map(|n| format!("{name}/{n}"))
            .find(|channel| self.owner(self.slot(channel)) == node)
            .unwrap()
    }

    /// Says of a slot what the steps of a move say: `MIGRATING`, `IMPORTING`, `NODE`.
    pub fn set_slot(&self, at: usize, slot: u16, state: &str, other: usize) {
        let other = self.id(other);
        let _: String = self.0[at].ask(&["CLUSTER", "SETSLOT", &slot.to_string(), state, &other]);
    }

    /// Moves the keys that the slot has now.
    pub fn move_keys(&self, slot: u16, from: usize, to: usize) {
        loop {
            let keys: Vec<String> = self.0[from].ask(&["CLUSTER", "GETKEYSINSLOT", &slot.to_string(), "10"]);
            if keys.is_empty() {
                return;
            }
            let port = self.0[to].port.to_string();
            let mut words = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"];
            words.extend(keys.iter().map(String::as_str));
            // NOKEY: the last key is gone already, which is as good.
            let _: String = self.0[from].ask(&words);
        }
    }
}

/// As the broker has it, written apart: CRC16 of the channel's name.
pub fn partition(channel: &str) -> u16 {
    let mut crc = 0_u32;
    for byte in channel.bytes() {
        crc ^= u32::from(byte) << 8;
        for _ in 0..8 {
            crc <<= 1;
            if crc & 0x10000 != 0 {
                crc ^= 0x11021;
            }
        }
    }
    (crc % 1024) as u16
}

/// A master, its replica, and three sentinels that have found each other.
pub struct Watched {
    pub servers: [RedisServer; 2],
    pub sentinels: Vec<RedisServer>,
    password: Option<&'static str>,
}

impl Watched {
    /// `password`: the sentinels', not the servers'.
    pub fn start(password: Option<&'static str>) -> Option<Watched> {
        let settings = ["--repl-diskless-sync-delay", "0"];
        let master = RedisServer::start(&settings)?;
        let of = format!("127.0.0.1 {}", master.port);
        let replica = RedisServer::start(&[&settings[..], &["--replicaof", &of]].concat())?;
        until("the replica has its master", || {
            replica.told(&["INFO", "replication"], "master_link_status") == "up"
        });
        let sentinels = (0..3).map(|_| RedisServer::sentinel(master.port, password));
        let watched = Watched {
            sentinels: sentinels.collect::<Option<_>>()?,
            servers: [master, replica],
            password,
        };
        until("the sentinels have found each other and the replica", || {
            watched.sentinels.iter().all(|sentinel| {
                let told: String = sentinel.ask(&["INFO", "sentinel"]);
                told.contains("slaves=1,sentinels=3")
            })
        });
        Some(watched)
    }

    pub fn url(&self) -> String {
        let hosts: Vec<String> = self.sentinels.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
        let password = self.password.map(|password| format!("?sentinel_password={password}"));
        format!(
            "redis+sentinel://{}/mymaster/0{}",
            hosts.join(","),
            password.unwrap_or_default()
        )
    }

    /// Which of the two is the master, in the eyes of most sentinels.
    pub fn master(&self) -> Option<usize> {
        let mut votes = [0, 0];
        for sentinel in self.sentinels.iter().filter(|sentinel| sentinel.is_running()) {
            let place: Vec<String> = sentinel.ask(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster"]);
            for (n, server) in self.servers.iter().enumerate() {
                votes[n] += usize::from(place[1] == server.port.to_string());
            }
        }
        votes.iter().position(|votes| *votes >= 2)
    }

    /// From now on the replica gets nothing any more of what its master is told.
    pub fn cut_the_replica_off(&self) {
        // A password that the master does not have: it can never log in again.
        cut_off(&self.servers[0], &self.servers[1]);
    }
}

/// From now on the replica gets nothing any more of what its master is told.
pub fn cut_off(master: &RedisServer, replica: &RedisServer) {
    let _: String = replica.ask(&["CONFIG", "SET", "masterauth", "wrong"]);
    let _: i64 = master.ask(&["CLIENT", "KILL", "TYPE", "replica"]);
    until("the replica is cut off", || {
        replica.told(&["INFO", "replication"], "master_link_status") == "down"
    });
}
