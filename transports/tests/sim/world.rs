//! One run: two nodes, six listeners and two publishers on a simulated network, what a seed makes
//! of them, and what they lived through.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::pending;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use airwave_core::rule::Limits;
use airwave_core::{ChannelName, Cursor, Hub, Rules};
use airwave_transports::{Options, Publishers, router, standard};
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};
use turmoil::net::TcpListener;

use crate::backbone::{Backbone, Lie, Node};
use crate::client::{self, Heard, Line, PORT, Sse, WebSocket};
use crate::history::{Clock, History, Listener, Moment, Outcome, Publication, Told, Truth};
use crate::plan::{CELLAR, CHANNELS, Fault, LISTENERS, NODES, PLACES, PUBLISHERS, Plan, TROUBLE};
use crate::random::Random;

const TICK: Duration = Duration::from_millis(20);
/// How long everybody has to catch up once everything is well.
const SETTLE: Duration = Duration::from_secs(30);
/// After so long without a sign of life a listener gives its connection up: three heartbeats.
const SILENCE: Duration = Duration::from_millis(3500);

/// Of each listener and channel.
type Stories = BTreeMap<(&'static str, &'static str), Vec<(Moment, Told)>>;

/// What the hosts of one simulation share beside the network.
struct Shared {
    seed: u64,
    clock: Clock,
    /// Cleared when everything is put right.
    trouble: AtomicBool,
    publishing: AtomicUsize,
    /// Publishers write to this channel without a pause, and not through this node.
    busy: Mutex<Option<(&'static str, usize)>>,
    /// The last events are acknowledged.
    last_round: AtomicBool,
    publications: Mutex<Vec<Publication>>,
    told: Mutex<Stories>,
    /// What no network explains.
    wrong: Mutex<Vec<String>>,
}

impl Shared {
    fn new(seed: u64, clock: Clock) -> Self {
        Self {
            seed,
            clock,
            trouble: AtomicBool::new(true),
            publishing: AtomicUsize::new(PUBLISHERS.len()),
            busy: Mutex::default(),
            last_round: AtomicBool::new(false),
            publications: Mutex::default(),
            told: Mutex::default(),
            wrong: Mutex::default(),
        }
    }

    /// Takes what was published and heard.
    fn history(&self, plan: &Plan, channels: BTreeMap<String, Truth>) -> History {
        let mut history = History {
            channels,
            publications: std::mem::take(&mut self.publications.lock().unwrap()),
            listeners: Vec::new(),
        };
        for (name, truth) in &mut history.channels {
            truth.skips = plan.skips(name);
            truth.busy = plan.is_busy(name);
        }
        for ((name, channel), told) in std::mem::take(&mut *self.told.lock().unwrap()) {
            history.listeners.push(Listener {
                name: name.into(),
                channel: channel.into(),
                told,
            });
        }
        history
    }

    fn in_trouble(&self) -> bool {
        self.trouble.load(Ordering::Relaxed)
    }

    fn wrong(&self, what: String) {
        self.wrong.lock().unwrap().push(what);
    }
}

/// What came of a run.
pub struct Run {
    pub plan: Plan,
    pub history: History,
    /// Panics, and what clients heard that is not of the protocol.
    pub wrong: Vec<String>,
    pub took: Duration,
}

thread_local! {
    /// Panics of this thread while it simulates. tokio swallows those of tasks.
    static PANICS: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

fn catch_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.with_borrow_mut(|panics| panics.iter_mut().for_each(|panics| panics.push(panic.to_string())));
            before(panic);
        }));
    });
    PANICS.set(Some(Vec::new()));
}

/// tokio numbers tasks through the whole process, and a runtime that is dropped drops its tasks in
/// an order that depends on their numbers. So a run must have the process to itself, and begin at a
/// round number, or a crash would close connections in another order each time.
fn from_a_round_task_number() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let number = || runtime.block_on(async { tokio::spawn(async { tokio::task::id().to_string() }).await.unwrap() });
    while number().parse::<u64>().unwrap() % 64 != 63 {}
    alone
}

pub fn run(seed: u64, lie: Option<Lie>) -> Run {
    let _alone = from_a_round_task_number();
    catch_panics();
    let plan = Plan::new(seed);
    let clock = Clock::default();
    let shared = Arc::new(Shared::new(seed, clock.clone()));
    let backbone = Backbone::new(plan.rules(), &plan.skews, Random::new(seed, 2), clock, lie);
    let hubs: Hubs = Arc::default();
    let mut sim = simulation(seed, &plan);
    for (index, name) in NODES.iter().enumerate() {
        let (backbone, hubs, rules, limits) = (backbone.clone(), hubs.clone(), plan.rules(), plan.limits());
        sim.host(*name, move || {
            let node = Node {
                backbone: backbone.clone(),
                index,
            };
            serve(node, hubs.clone(), rules.clone(), limits.clone(), seed ^ index as u64)
        });
    }
    add_clients(&mut sim, seed, &shared);
    let mut stage = Stage {
        sim,
        backbone: backbone.clone(),
        hubs,
        shared: shared.clone(),
    };
    stage.play(&plan);
    let took = stage.sim.elapsed();
    drop(stage);
    let history = shared.history(&plan, backbone.truth());
    let mut wrong = std::mem::take(&mut *shared.wrong.lock().unwrap());
    wrong.extend(PANICS.take().into_iter().flatten());
    Run {
        plan,
        history,
        wrong,
        took,
    }
}

fn simulation(seed: u64, plan: &Plan) -> turmoil::Sim<'static> {
    let mut builder = turmoil::Builder::new();
    builder
        .rng_seed(seed)
        .tick_duration(TICK)
        .simulation_duration(TROUBLE + 4 * SETTLE)
        .min_message_latency(plan.latency.0)
        .max_message_latency(plan.latency.1);
    if plan.random_order {
        builder.enable_random_order();
    }
    builder.build()
}

/// The listeners, each at its place, and the publishers.
fn add_clients(sim: &mut turmoil::Sim<'_>, seed: u64, shared: &Arc<Shared>) {
    for place in PLACES {
        let here = LISTENERS.into_iter().enumerate().filter(|(_, (_, home, _))| *home == place);
        let listeners: Vec<_> = here
            .map(|(index, (name, _, channels))| {
                Client::new(name, channels, Random::new(seed, 100 + index as u64), shared.clone())
            })
            .collect();
        sim.client(place, async {
            listeners.into_iter().for_each(|listener| drop(tokio::spawn(listener.live())));
            pending().await
        });
    }
    let publishers = PUBLISHERS.map(|name| (name, shared.clone()));
    sim.client(CELLAR, async move {
        for (index, (name, shared)) in publishers.into_iter().enumerate() {
            tokio::spawn(publish(name, Random::new(seed, 200 + index as u64), shared));
        }
        pending().await
    });
}

type Hubs = Arc<Mutex<[Option<Hub>; NODES.len()]>>;

/// A node, as an application embeds the routes: hyper drives the connections, and no listener takes
/// sockets back.
async fn serve(node: Node, hubs: Hubs, rules: Rules, limits: Limits, seed: u64) -> turmoil::Result {
    let index = node.index;
    let hub = Hub::builder(Arc::new(node), rules).limits(limits).seed(seed).build();
    hubs.lock().unwrap()[index] = Some(hub.clone());
    let options = Options::default().with_publishers(Publishers::Anybody);
    let app: Router = router(hub.clone(), options, standard(&hub).unwrap());
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let connection = http1::Builder::new()
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app.clone()))
            .with_upgrades();
        // A connection that breaks is no news here.
        tokio::spawn(async move { drop(connection.await) });
    }
}

/// The simulation, from outside.
struct Stage<'a> {
    sim: turmoil::Sim<'a>,
    backbone: Arc<Backbone>,
    hubs: Hubs,
    shared: Arc<Shared>,
}

impl Stage<'_> {
    fn play(&mut self, plan: &Plan) {
        let mut faults = plan.faults.iter().peekable();
        while self.sim.elapsed() < TROUBLE {
            while let Some((_, fault)) = faults.next_if(|(at, _)| *at <= self.sim.elapsed()) {
                self.bring(*fault);
            }
            self.step();
        }
        self.put_right();
        self.shared.trouble.store(false, Ordering::Relaxed);
        while !self.shared.last_round.load(Ordering::Relaxed) && self.sim.elapsed() < TROUBLE + SETTLE {
            self.step();
        }
        let settled = self.sim.elapsed();
        while !self.all_caught_up() && self.sim.elapsed() < settled + SETTLE {
            (0..10).for_each(|_| self.step());
        }
        // A node that sends more than it should gets the time to send it.
        (0..50).for_each(|_| self.step());
    }

    fn step(&mut self) {
        if let Err(error) = self.sim.step() {
            self.shared.wrong(error.to_string());
        }
    }

    fn bring(&mut self, fault: Fault) {
        let sim = &mut self.sim;
        match fault {
            Fault::Hold(client, node) => sim.hold(client, NODES[node]),
            Fault::Release(client, node) => sim.release(client, NODES[node]),
            Fault::Partition(client, node) => sim.partition(client, NODES[node]),
            Fault::Mute(client, node) => sim.partition_oneway(NODES[node], client),
            Fault::Crash(node) => {
                self.hubs.lock().unwrap()[node] = None;
                sim.crash(NODES[node]);
            }
            Fault::PowerLoss(node) => {
                let clients = PLACES.into_iter().chain([CELLAR]);
                clients.clone().for_each(|client| sim.partition(client, NODES[node]));
                self.bring(Fault::Crash(node));
                clients.for_each(|client| self.bring(Fault::Release(client, node)));
            }
            Fault::Start(node) => {
                if !sim.is_host_running(NODES[node]) {
                    sim.bounce(NODES[node]);
                }
            }
            Fault::Drain(node) => {
                if let Some(hub) = &self.hubs.lock().unwrap()[node] {
                    hub.drain();
                }
            }
            Fault::HoldFeeds(node, held) => self.backbone.hold_feeds(node, held),
            Fault::Lag(node, lag) => self.backbone.lag(node, lag),
            Fault::EndFeeds(node) => self.backbone.end_feeds(node),
            Fault::SkipEvents(node, events) => self.backbone.skip(node, events),
            Fault::BrokerAway(node, away) => self.backbone.go_away(node, away),
            Fault::Line(node, line) => self.backbone.slow_line(node, line),
            Fault::Busy(channel) => *self.shared.busy.lock().unwrap() = channel,
            Fault::FailOver(events) => self.backbone.fail_over(events),
            Fault::RestartEmpty => self.backbone.restart_empty(),
        }
    }

    fn put_right(&mut self) {
        for node in 0..NODES.len() {
            for place in PLACES.into_iter().chain([CELLAR]) {
                self.bring(Fault::Release(place, node));
            }
            let draining = self.hubs.lock().unwrap()[node].as_ref().is_some_and(Hub::is_draining);
            if draining {
                self.bring(Fault::Crash(node));
            }
            self.bring(Fault::Start(node));
            self.bring(Fault::HoldFeeds(node, false));
            self.bring(Fault::Lag(node, Duration::ZERO));
            self.bring(Fault::SkipEvents(node, 0));
            self.bring(Fault::BrokerAway(node, None));
            self.bring(Fault::Line(node, Duration::ZERO));
        }
        self.bring(Fault::Busy(None));
    }

    fn all_caught_up(&self) -> bool {
        let truth = self.backbone.truth();
        let told = self.shared.told.lock().unwrap();
        LISTENERS.iter().all(|(name, _, channels)| {
            channels.iter().all(|channel| {
                let last = told.get(&(*name, *channel)).and_then(|told| told.last());
                let head = truth.get(*channel).map(|truth| truth.head);
                last.is_some_and(|(_, told)| match told {
                    Told::Confirmed { cursor, .. } | Told::Gap { cursor, .. } => Some(*cursor) == head,
                    Told::Event { position, .. } => Some(*position) == head,
                    Told::Asked { .. } => false,
                })
            })
        })
    }
}

/// One listener: comes, hears, drops, and comes back with its cursor, over whichever transport and
/// to whichever node.
struct Client {
    name: &'static str,
    channels: &'static [&'static str],
    cursors: BTreeMap<&'static str, u64>,
    /// The last id of a stream of several channels, if that was the last stream.
    token: Option<String>,
    random: Random,
    shared: Arc<Shared>,
}

#[derive(Clone, Copy, PartialEq)]
enum How {
    Sse,
    SseMany,
    WebSocket,
    Socket,
}

impl How {
    fn name(self) -> &'static str {
        match self {
            How::Sse => "sse",
            How::SseMany => "sse of several channels",
            How::WebSocket => "websocket of a channel",
            How::Socket => "websocket",
        }
    }
}

impl Client {
    fn new(name: &'static str, channels: &'static [&'static str], random: Random, shared: Arc<Shared>) -> Self {
        Self {
            name,
            channels,
            cursors: BTreeMap::new(),
            token: None,
            random,
            shared,
        }
    }

    async fn live(mut self) {
        sleep(self.random.millis(0, 2000)).await;
        loop {
            let node = self.random.pick(&NODES);
            if let Ok(line) = self.connect(node).await {
                self.hear(line).await;
            }
            let most = if self.shared.in_trouble() && self.random.chance(0.2) {
                3000
            } else {
                300
            };
            sleep(self.random.millis(10, most)).await;
        }
    }

    fn tell(&self, channel: &str, told: Told) {
        let Some(channel) = self.channels.iter().find(|known| **known == channel) else {
            self.shared.wrong(format!("{} heard of {channel}: {told:?}", self.name));
            return;
        };
        let at = self.shared.clock.now();
        let mut all = self.shared.told.lock().unwrap();
        all.entry((self.name, channel)).or_default().push((at, told));
    }

    async fn connect(&mut self, node: &str) -> std::io::Result<Line> {
        let first = self.channels[0];
        let after = |channel: &str| self.cursors.get(channel).copied();
        let text = |channel: &str| after(channel).map_or(String::new(), |after| after.to_string());
        let hows: &[How] = match self.channels {
            [_] => &[How::Sse, How::SseMany, How::WebSocket, How::Socket],
            _ => &[How::SseMany, How::WebSocket, How::Socket],
        };
        let how = self.random.pick(hows);
        let token = self.token.take().filter(|_| how == How::SseMany);
        let said = token.as_deref().map(Cursor::parse);
        for channel in self.channels {
            let after = match &said {
                None => after(channel),
                Some(Ok(cursor)) => cursor
                    .position(&ChannelName::new(channel).unwrap())
                    .map(|position| position.0),
                Some(Err(error)) => {
                    self.shared.wrong(format!("{}: {error}: {token:?}", self.name));
                    None
                }
            };
            self.tell(channel, Told::Asked { after, how: how.name() });
        }
        let result = match how {
            How::Sse => {
                let id = after(first).map(|after| after.to_string());
                let path = format!("/channels/{first}");
                match id.as_deref().filter(|_| self.random.chance(0.5)) {
                    Some(id) => Sse::open(node, &format!("{path}?after={id}"), Some(first), None).await,
                    None => Sse::open(node, &path, Some(first), id.as_deref()).await,
                }
            }
            How::SseMany => {
                let mut path = "/events?".to_owned();
                for channel in self.channels {
                    path += &format!("channel={channel}&");
                    if token.is_none() {
                        path += &format!("after={}&", text(channel));
                    }
                }
                Sse::open(node, &path, None, token.as_deref()).await
            }
            How::WebSocket => {
                let rest: Vec<_> = self.channels[1..].iter().map(|channel| (*channel, after(channel))).collect();
                WebSocket::open(node, &format!("/channels/{first}?after={}", text(first)), &rest).await
            }
            How::Socket => {
                let all: Vec<_> = self.channels.iter().map(|channel| (*channel, after(channel))).collect();
                WebSocket::open(node, "/socket", &all).await
            }
        };
        // Nothing was heard, so the last id is still the last.
        if how == How::SseMany {
            self.token = token;
        }
        self.look(&result);
        result
    }

    fn look<T>(&self, result: &std::io::Result<T>) {
        if let Err(error) = result
            && error.kind() == std::io::ErrorKind::InvalidData
        {
            self.shared.wrong(format!("{} heard nonsense: {error}", self.name));
        }
    }

    /// Until the connection breaks, or the listener has had enough.
    async fn hear(&mut self, mut line: Line) {
        let mut things = if self.random.chance(0.3) {
            1 + self.random.below(10)
        } else {
            u64::MAX
        };
        let patience = Instant::now() + self.random.millis(100, 4000);
        let mut id = None;
        while !self.shared.in_trouble() || (things > 0 && Instant::now() < patience) {
            if self.shared.in_trouble() && self.random.chance(0.02) {
                // It reads nothing for a while.
                sleep(self.random.millis(100, 5000)).await;
            }
            let Ok(result) = timeout(SILENCE, line.next()).await else {
                return;
            };
            self.look(&result);
            match result {
                Err(_) | Ok(Heard::Refused(_)) => return,
                Ok(Heard::Beat) => {}
                Ok(Heard::Id(text)) => {
                    id = Some(text);
                    continue;
                }
                Ok(Heard::Confirmed {
                    channel,
                    cursor,
                    resumed,
                }) => {
                    // Not resumed: a gap follows, and until it is there the old cursor counts.
                    if resumed || !self.cursors.contains_key(&*channel) {
                        self.stands(&channel, cursor);
                    }
                    self.tell(&channel, Told::Confirmed { cursor, resumed });
                }
                Ok(Heard::Event { channel, position, body }) => {
                    self.stands(&channel, position);
                    self.tell(&channel, Told::Event { position, body });
                }
                Ok(Heard::Gap {
                    channel,
                    after,
                    cursor,
                    reason,
                }) => {
                    self.stands(&channel, cursor);
                    self.tell(&channel, Told::Gap { after, cursor, reason });
                }
            }
            things = things.saturating_sub(1);
            match (&line, id.take()) {
                // As an EventSource does it: the id counts, whatever else was said.
                (Line::Sse(sse), Some(id)) if sse.is_of_one() => match id.parse() {
                    Ok(position) => self.stands(self.channels[0], position),
                    Err(_) => self.shared.wrong(format!("{} cannot read the id {id}", self.name)),
                },
                (Line::Sse(_), Some(id)) => self.token = Some(id),
                _ => {}
            }
        }
    }

    fn stands(&mut self, channel: &str, cursor: u64) {
        if let Some(channel) = self.channels.iter().find(|known| **known == channel) {
            self.cursors.insert(channel, cursor);
        }
    }
}

async fn publish(name: &'static str, mut random: Random, shared: Arc<Shared>) {
    let mut publisher = Publisher {
        shared: shared.clone(),
        count: 0,
        name,
    };
    let mut burst = 0;
    while shared.in_trouble() {
        let busy = *shared.busy.lock().unwrap();
        if let Some((channel, _)) = busy {
            publisher.publish(&mut random, channel, 16, 4).await;
            continue;
        }
        if burst == 0 {
            sleep(random.millis(20, 600)).await;
            burst = if random.chance(0.1) { random.below(20) } else { 1 };
        }
        burst = burst.saturating_sub(1);
        let channel = random.pick(&CHANNELS);
        let several = if random.chance(0.15) { 2 + random.below(15) } else { 1 };
        publisher.publish(&mut random, channel, several, 4).await;
    }
    // The last words come after everybody else's.
    if shared.publishing.fetch_sub(1, Ordering::Relaxed) == 1 {
        for channel in CHANNELS {
            publisher.publish(&mut random, channel, 1, 100).await;
        }
        shared.last_round.store(true, Ordering::Relaxed);
    }
}

struct Publisher {
    shared: Arc<Shared>,
    name: &'static str,
    count: u64,
}

impl Publisher {
    /// Publishes so many messages with one request, and tries again, at whichever node, until it
    /// knows or has tried often enough.
    async fn publish(&mut self, random: &mut Random, channel: &str, several: u64, tries: u32) {
        let began = self.shared.clock.now();
        let mut messages: Vec<(Value, Publication)> = Vec::new();
        for _ in 0..several {
            self.count += 1;
            let key = format!("{}-{}-{}", self.name, self.shared.seed, self.count);
            // Some are larger than is allowed; the last words are not, for they must be heard.
            let too_large = several == 1 && self.shared.in_trouble() && random.chance(0.02);
            let length = if too_large { 3000 } else { random.below(300) };
            let data = json!({"key": key, "padding": "x".repeat(length as usize)});
            let publication = Publication {
                channel: channel.to_owned(),
                body: data.to_string(),
                began,
                outcome: Outcome::Unknown,
            };
            messages.push((json!({"channel": channel, "data": data, "idempotency_key": key}), publication));
        }
        for _ in 0..tries {
            let busy = *self.shared.busy.lock().unwrap();
            let node = match busy {
                Some((_, slow)) => NODES[(slow + 1) % NODES.len()],
                None => random.pick(&NODES),
            };
            let result = if several == 1 {
                let mut one = messages[0].0.clone();
                let key = one.as_object_mut().and_then(|one| one.remove("idempotency_key"));
                let key = key.as_ref().and_then(Value::as_str);
                client::publish(node, &one, key)
                    .await
                    .map(|(status, answer)| (status, vec![answer]))
            } else {
                let all: Vec<_> = messages.iter().map(|(message, _)| message.clone()).collect();
                let result = client::publish(node, &Value::Array(all), None).await;
                result.map(|(status, answer)| (status, answer.as_array().cloned().unwrap_or_default()))
            };
            if let Ok((status, answers)) = result {
                let at = self.shared.clock.now();
                for ((_, publication), answer) in messages.iter_mut().zip(&answers) {
                    let position = answer["cursor"].as_str().and_then(|text| text.parse().ok());
                    match (position, answer["error"]["code"].as_str()) {
                        (Some(position), _) => publication.outcome = Outcome::Acknowledged { at, position },
                        (None, Some("too-large")) => publication.outcome = Outcome::Refused,
                        (None, Some("unavailable")) => {}
                        _ => self.shared.wrong(format!("a publish was answered {status} {answer}")),
                    }
                }
            }
            if messages
                .iter()
                .all(|(_, publication)| publication.outcome != Outcome::Unknown)
            {
                break;
            }
            sleep(random.millis(10, 500)).await;
        }
        let mut all = self.shared.publications.lock().unwrap();
        all.extend(messages.into_iter().map(|(_, publication)| publication));
    }
}
