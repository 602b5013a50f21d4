//! A Redis Cluster: which of its masters has which partition, and the way there.
//!
//! Each master has the same two connections, the same probe and the same feeds as a single server
//! has, so that a master that dies, stands still or is replaced ends its own feeds and no others.
//! The map says which master a partition is at. It is asked for anew when anything contradicts it,
//! and now and then; and it need not be right: a server that does not have a slot says so before it
//! does anything, and then the call goes where it is told, within the caller's time. Nothing else
//! is ever sent twice.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use airwave_core::broker::BrokerStats;
use airwave_core::{BrokerError, ChannelName};
use redis::{Cmd, ConnectionInfo, Pipeline, RedisError, Value, cmd};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::address::Place;
use super::commands::Connected;
use super::errors::{RedisConnectError, lost};
use super::listening::{LOOK, Listener, Listening};
use super::loading::Loading;
use super::marks::Marks;
use super::naming::{Naming, PARTITIONS, partition, slot};
use super::scripts::{Keys, Script};
use super::sentinel::gather;
use super::server::Server;
use super::shard::Shard;
use super::values::{is_nothing, text_of};
use crate::reconnect::random_bits;

/// How often the map is asked for although nothing contradicts it.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The least time between two looks, so that an outage is no storm of them.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// How many masters are asked at once. The newest map counts.
const ASKED: usize = 5;

/// How long a master may take to show its map, and how long others are waited for when one has.
const SHOWS_WITHIN: Duration = Duration::from_secs(1);
const OTHERS_WITHIN: Duration = Duration::from_millis(250);

/// So many redirections go at once; then there is a pause before each.
const REDIRECTIONS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(20);

/// How long a feed that was not to be had waits for a newer map.
const WAIT_FOR_MAP: Duration = Duration::from_millis(500);

/// Dropping it ends its feeds and closes its connections.
pub(super) struct Cluster {
    /// How to log in at any of them.
    login: Server,
    seeds: Vec<Place>,
    runtime: Handle,
    stats: BrokerStats,
    marks: Arc<Marks>,
    map: Mutex<Map>,
    /// Something contradicts the map.
    astray: Arc<Notify>,
    looks: watch::Sender<u64>,
    looking: Mutex<Option<AbortHandle>>,
}

struct Map {
    /// By partition.
    owners: Vec<Option<Arc<Shard>>>,
    shards: HashMap<Place, Arc<Shard>>,
}

/// What one node of the cluster says of it.
struct View {
    epoch: u64,
    masters: Vec<(RangeInclusive<u16>, Place)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that is done under these locks can be left half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cluster {
    /// Asks the seeds for the map, connects to every master, and keeps it so.
    pub(super) async fn connect(
        seeds: Vec<ConnectionInfo>,
        stats: BrokerStats,
        marks: Arc<Marks>,
    ) -> Result<Arc<Cluster>, RedisConnectError> {
        let Some(first) = seeds.first().cloned() else {
            return Err(RedisConnectError::Url("names no host".into()));
        };
        let login = Server::clustered(first);
        let seeds: Vec<Place> = seeds.iter().map(Place::of).collect();
        let view = first_view(&login, &seeds).await?;
        let astray = Arc::new(Notify::new());
        let owners = view.owners();
        let mut shards = HashMap::new();
        for (n, place) in owners.iter().enumerate() {
            let Some(place) = place else {
                return Err(RedisConnectError::Unusable {
                    address: login.to_string(),
                    reason: format!("slot {} has no master; see CLUSTER INFO", slot(n as u16)),
                });
            };
            if !shards.contains_key(place) {
                let shard = Shard::connect(
                    login.at(place),
                    Naming::Partitions,
                    stats.clone(),
                    marks.clone(),
                    n as u16,
                    astray.clone(),
                );
                shards.insert(place.clone(), Arc::new(shard.await?));
            }
        }
        let map = Map {
            owners: owners.iter().map(|place| shards.get(place.as_ref()?).cloned()).collect(),
            shards,
        };
        let cluster = Arc::new(Cluster {
            login,
            seeds,
            runtime: Handle::current(),
            stats,
            marks,
            map: Mutex::new(map),
            astray,
            looks: watch::Sender::new(0),
            looking: Mutex::default(),
        });
        let looking = tokio::spawn(Self::keep_looking(Arc::downgrade(&cluster), cluster.astray.clone()));
        *lock(&cluster.looking) = Some(looking.abort_handle());
        Ok(cluster)
    }

    async fn keep_looking(me: Weak<Cluster>, astray: Arc<Notify>) {
        loop {
            // Either will do.
            let _ = timeout(LOOK_EVERY, astray.notified()).await;
            let Some(cluster) = me.upgrade() else { return };
            if let Some(view) = cluster.look().await {
                cluster.adopt(&view);
            }
            cluster.looks.send_modify(|looks| *looks += 1);
            drop(cluster);
            sleep(LOOK_PAUSE).await;
        }
    }

    /// The newest map that can be had.
    async fn look(&self) -> Option<View> {
        let mut connected: Vec<Connected> = lock(&self.map)
            .shards
            .values()
            .filter_map(|shard| shard.commands.now())
            .collect();
        let several = connected.len().max(1);
        connected.rotate_left(random_bits() as usize % several);
        connected.truncate(ASKED);
        let mut asked = JoinSet::new();
        for connected in connected {
            asked.spawn(async move {
                let answers = timeout(SHOWS_WITHIN, connected.send_all(&question())).await;
                match answers {
                    Ok(Ok(answers)) => View::of(&answers, connected.place()).ok_or(()),
                    _ => Err(()),
                }
            });
        }
        let (mut views, _) = gather(asked, OTHERS_WITHIN).await;
        if views.is_empty() {
            views = gather(ask_seeds(&self.login, &self.seeds), OTHERS_WITHIN).await.0;
        }
        views.into_iter().max_by_key(|view| view.epoch)
    }

    /// From now on calls go where this says. Feeds of what has moved end.
    fn adopt(&self, view: &View) {
        let places = view.owners();
        // Dropped after the lock is released: a shard's end ends its feeds.
        let mut gone = Vec::new();
        let mut moved: Vec<(Arc<Shard>, Vec<u16>)> = Vec::new();
        {
            let mut map = lock(&self.map);
            let mut homes: HashMap<Place, Vec<u16>> = HashMap::new();
            for (n, place) in places.iter().enumerate() {
                let n = n as u16;
                let owner = place.as_ref().map(|place| {
                    homes.entry(place.clone()).or_default().push(n);
                    self.shard(&mut map, place, n)
                });
                let before = std::mem::replace(&mut map.owners[usize::from(n)], owner.clone());
                let Some(before) = before else { continue };
                if owner.is_some_and(|owner| Arc::ptr_eq(&owner, &before)) {
                    continue;
                }
                match moved.iter_mut().find(|(shard, _)| Arc::ptr_eq(shard, &before)) {
                    Some((_, partitions)) => partitions.push(n),
                    None => moved.push((before, vec![n])),
                }
            }
            for (place, partitions) in &homes {
                if let Some(shard) = map.shards.get(place) {
                    shard
                        .listening
                        .set_home(partitions[random_bits() as usize % partitions.len()]);
                }
            }
            gone.extend(map.shards.extract_if(|place, _| !homes.contains_key(place)));
        }
        for (shard, partitions) in moved {
            tracing::info!(partitions = partitions.len(), "partitions have another master now");
            shard.listening.end(|channel| partitions.contains(&partition(channel)));
        }
        for (place, _) in &gone {
            tracing::info!(server = %place, "has no partition any more: closing its connections");
        }
    }

    fn shard(&self, map: &mut Map, place: &Place, home: u16) -> Arc<Shard> {
        let shard = map.shards.entry(place.clone()).or_insert_with(|| {
            tracing::info!(server = %place, "a new master: connecting");
            let server = self.login.at(place);
            Arc::new(Shard::begin(
                server,
                self.stats.clone(),
                self.marks.clone(),
                home,
                self.astray.clone(),
                &self.runtime,
            ))
        });
        shard.clone()
    }

    fn owner(&self, partition: u16) -> Result<Arc<Shard>, BrokerError> {
        let owner = lock(&self.map).owners[usize::from(partition)].clone();
        owner.ok_or_else(|| {
            self.astray.notify_one();
            lost("this channel's part of the cluster has no master")
        })
    }

    /// Calls a script where the channel is.
    pub(super) async fn script(
        &self,
        channel: &ChannelName,
        script: Script,
        arguments: impl Fn(&mut Cmd, Keys),
    ) -> Result<Value, BrokerError> {
        let partition = partition(channel);
        let mut asked: Option<Arc<Shard>> = None;
        let mut sent: u32 = 0;
        // Which keys the call names, and whether it has named the others in this place.
        let (mut keys, mut both) = (Keys::All, false);
        loop {
            let owner = self.owner(partition)?;
            let asking = asked.is_some();
            let shard = asked.take().unwrap_or_else(|| owner.clone());
            let commands = shard.commands_for(script);
            let connected = commands.connected().await.inspect_err(|_| self.astray.notify_one())?;
            if sent > REDIRECTIONS {
                sleep(PAUSE).await;
            }
            sent += 1;
            let error = match connected
                .script(script, &|call: &mut Cmd| arguments(call, keys), asking)
                .await
            {
                // The channel's own keys are not enough.
                Ok(answer) if is_nothing(&answer) && keys == Keys::Own => None,
                Ok(answer) => {
                    if asking && script.tells {
                        self.tell_those_left_behind(&owner, channel).await;
                    }
                    return Ok(answer);
                }
                Err(error) => Some(error),
            };
            let half_way = error.as_ref().is_none_or(|error| error.code() == Some("TRYAGAIN"));
            let Some(error) = error.filter(|_| !half_way) else {
                if script.own && !both {
                    (keys, both) = (keys.others(), true);
                    asked = asking.then_some(shard);
                } else {
                    (keys, both) = (Keys::All, false);
                    sleep(PAUSE).await;
                }
                continue;
            };
            // With each of these nothing has happened.
            match error.code() {
                Some("MOVED") => self.moved(partition, redirect_of(&error, &connected)),
                Some("ASK") => {
                    if let Some(place) = redirect_of(&error, &connected) {
                        asked = Some(self.shard(&mut lock(&self.map), &place, partition));
                        if script.own {
                            // Mostly not all are there.
                            (keys, both) = (Keys::Own, false);
                        }
                    }
                }
                _ => {
                    self.astray.notify_one();
                    return Err(commands.failed(&connected, error));
                }
            }
        }
    }

    /// A partition is not where the map says, but there.
    fn moved(&self, partition: u16, place: Option<Place>) {
        if let Some(place) = place {
            let mut map = lock(&self.map);
            let there = self.shard(&mut map, &place, partition);
            map.owners[usize::from(partition)] = Some(there);
        }
        self.astray.notify_one();
    }

    /// While a slot moves, an event of a channel that is there already is carried there; its
    /// subscribers are still here, where they belong until the slot has moved. So they are told to
    /// look. Should this fail, they look when it has.
    async fn tell_those_left_behind(&self, owner: &Shard, channel: &ChannelName) {
        if let Some(connected) = owner.commands.now() {
            let _ = connected
                .send(cmd("SPUBLISH").arg(Naming::Partitions.wire(channel)).arg(LOOK))
                .await;
        }
    }

    /// Begins to listen to a channel where it is.
    pub(super) async fn join(&self, channel: &ChannelName) -> Result<Listener, BrokerError> {
        let partition = partition(channel);
        loop {
            let mut looks = self.looks.subscribe();
            let shard = self.owner(partition)?;
            let error = match shard.listening.join(channel).await {
                Ok(listener) => return Ok(listener),
                Err(error) => error,
            };
            self.astray.notify_one();
            // Only a map that says something else is worth another try.
            let _ = timeout(WAIT_FOR_MAP, looks.changed()).await;
            if Arc::ptr_eq(&self.owner(partition)?, &shard) {
                return Err(error);
            }
        }
    }

    /// Does every master deliver?
    pub(super) async fn probe_itself(&self) -> Result<(), BrokerError> {
        let listening: Vec<Arc<Listening>> = {
            let map = lock(&self.map);
            if map.owners.iter().any(Option::is_none) {
                return Err(lost("a part of the cluster has no master"));
            }
            map.shards.values().map(|shard| shard.listening.clone()).collect()
        };
        let mut asked = JoinSet::new();
        for listening in listening {
            asked.spawn(async move { listening.probe_itself().await });
        }
        while let Some(answer) = asked.join_next().await {
            answer.map_err(|_| lost("it is closed"))??;
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(looking) = lock(&self.looking).take() {
            looking.abort();
        }
    }
}

fn redirect_of(error: &RedisError, by: &Connected) -> Option<Place> {
    Place::parse(error.redirect_node()?.0, by.place())
}

/// Is the cluster whole from there, and who has what?
fn question() -> Pipeline {
    let mut both = Pipeline::with_capacity(2);
    both.cmd("CLUSTER").arg("INFO").cmd("CLUSTER").arg("SLOTS");
    both
}

fn ask_seeds(login: &Server, seeds: &[Place]) -> JoinSet<Result<View, RedisConnectError>> {
    let mut asked = JoinSet::new();
    for place in seeds {
        let server = login.at(place);
        asked.spawn(async move {
            let mut connection = server.open_to_ask().await?.connection;
            let answers = timeout(SHOWS_WITHIN, connection.send_packed_commands(&question(), 0, 2)).await;
            let answers = answers.map_err(|_| server.unreachable("no answer in time"))?;
            let answers = answers.map_err(|error| server.explain(&error))?;
            let answers: Result<Vec<Value>, RedisError> = answers.into_iter().map(Value::extract_error).collect();
            let answers = answers.map_err(|error| server.explain(&error))?;
            if let Some(view) = View::of(&answers, &server.place()) {
                return Ok(view);
            }
            // A cluster whose nodes load their data is not whole yet.
            if server.is_loading(&mut connection).await {
                return Err(RedisConnectError::Loading {
                    address: server.to_string(),
                });
            }
            Err(server.unreachable("it says that the cluster is down; see CLUSTER INFO"))
        });
    }
    asked
}

/// The newest map that the seeds have, once they have loaded their data.
async fn first_view(login: &Server, seeds: &[Place]) -> Result<View, RedisConnectError> {
    let mut loading = Loading::default();
    loop {
        let (views, mut errors) = gather(ask_seeds(login, seeds), OTHERS_WITHIN).await;
        let newest = views.into_iter().max_by_key(|view| view.epoch);
        // While one loads its data, what others say of the cluster is not the last word.
        errors.sort_by_key(|error| matches!(error, RedisConnectError::Loading { .. }));
        let addresses = || seeds.iter().map(Place::to_string).collect::<Vec<_>>().join(", ");
        let found = newest.ok_or_else(|| {
            errors.pop().unwrap_or_else(|| RedisConnectError::Unreachable {
                address: addresses(),
                reason: "no answer".into(),
            })
        });
        if let Some(found) = loading.judge(found).await {
            return found;
        }
    }
}

impl View {
    /// `None`: from there the cluster is not whole, so nothing that is said of it counts.
    fn of(answers: &[Value], by: &Place) -> Option<View> {
        let [info, slots] = answers else { return None };
        let info = text_of(info)?;
        let field = |what: &str| info.lines().find_map(|line| line.strip_prefix(what)).map(str::trim);
        if field("cluster_state:")? != "ok" {
            return None;
        }
        let epoch = field("cluster_current_epoch:")?.parse().ok()?;
        let Value::Array(ranges) = slots else { return None };
        let number = |value: &Value| match value {
            Value::Int(number) => u16::try_from(*number).ok(),
            _ => None,
        };
        let masters = ranges.iter().map(|range| {
            let Value::Array(range) = range else { return None };
            let [first, last, Value::Array(master), ..] = &range[..] else {
                return None;
            };
            let port = number(master.get(1)?)?;
            // A node that does not know its own name means: the one that you have asked.
            let host = text_of(master.first()?).filter(|host| !matches!(*host, "" | "?"));
            let place = Place {
                host: host.unwrap_or(&by.host).to_owned(),
                port,
            };
            Some((number(first)?..=number(last)?, place))
        });
        Some(View {
            epoch,
            masters: masters.collect::<Option<_>>()?,
        })
    }

    /// By partition.
    fn owners(&self) -> Vec<Option<Place>> {
        let owner = |partition| {
            let slot = slot(partition);
            let found = self.masters.iter().find(|(slots, _)| slots.contains(&slot));
            found.map(|(_, place)| place.clone())
        };
        (0..PARTITIONS).map(owner).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::naming::SLOTS;
    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn answers(state: &str, ranges: &[(i64, i64, Value, i64)]) -> Vec<Value> {
        let info = format!("cluster_enabled:1\r\ncluster_state:{state}\r\ncluster_current_epoch:7\r\n");
        let ranges = ranges.iter().map(|(first, last, host, port)| {
            let master = Value::Array(vec![host.clone(), Value::Int(*port), text("id"), Value::Array(vec![])]);
            Value::Array(vec![Value::Int(*first), Value::Int(*last), master])
        });
        vec![text(&info), Value::Array(ranges.collect())]
    }

    #[test]
    fn a_map_is_read_and_names_the_master_of_each_partition() {
        let by = Place {
            host: "asked".into(),
            port: 1,
        };
        let ranges = [(0, 8191, text("a"), 7001), (8192, i64::from(SLOTS) - 1, Value::Nil, 7002)];
        let view = View::of(&answers("ok", &ranges), &by).unwrap();
        assert_eq!(view.epoch, 7);
        for (n, owner) in view.owners().into_iter().enumerate() {
            let host = if slot(n as u16) < 8192 { "a:7001" } else { "asked:7002" };
            assert_eq!(owner.unwrap().to_string(), host);
        }
        let view = View::of(&answers("ok", &ranges[..1]), &by).unwrap();
        assert!(view.owners().contains(&None), "slots without a master");
        assert!(
            View::of(&answers("fail", &ranges), &by).is_none(),
            "a minority's map counts for nothing"
        );
        assert!(View::of(&answers("ok", &[(0, 99_999, text("a"), 7001)]), &by).is_none());
        assert!(View::of(&[], &by).is_none());
    }

    #[test]
    fn redirections_are_read() {
        let by = Place {
            host: "::1".into(),
            port: 1,
        };
        for (text, place) in [
            ("10.0.0.1:7000", Some("10.0.0.1:7000")),
            ("fd00::2:7000", Some("[fd00::2]:7000")),
            (":7000", Some("[::1]:7000")),
            ("?:7000", Some("[::1]:7000")),
            ("nonsense", None),
            ("host:port", None),
        ] {
            assert_eq!(
                Place::parse(text, &by).map(|place| place.to_string()).as_deref(),
                place,
                "{text}"
            );
        }
    }
}
