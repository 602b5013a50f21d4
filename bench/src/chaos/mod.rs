//! Real processes treated badly, and a checker that judges what clients saw of it.
//!
//! A run starts a broker and three nodes of the real `airwave` program, each with a line of its own
//! to the broker. Publishers try until they are answered, or once; listeners come and go over SSE
//! and WebSocket, to any node, each time with the cursor they have. A **seed** decides what goes
//! wrong: nodes are killed, drained and paused, the broker is killed and paused, lines are cut,
//! held and delayed. Then everything is put right, a last round of events must reach everybody, and
//! the [`checker`] judges by the promises.
//!
//! **What a seed does not decide** is what real processes do meanwhile: a seed repeats the plan and
//! what clients choose, not the interleaving. Repeat it a few times.
//!
//! ```text
//! cargo run -p airwave-bench -- chaos --minutes 30
//! cargo run -p airwave-bench -- chaos --broker redis-volatile --seed 7 --runs 5 --story
//! ```

pub mod checker;
pub mod clients;
pub mod history;
mod link;
mod plan;
mod random;
mod servers;
pub mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

pub use link::Line as Condition;
pub use plan::{More, Plan};
pub use servers::{BrokerKind, Folder, Loses};

use checker::{Breach, check};
use clients::{Heard, Line, Sse, WebSocket};
use history::{Channel, Clock, History, Listener, Loss, Moment, Outcome, Publication, Told};
use plan::{AGED, BUSY, Fault, LISTENERS, Lines, Manner, PUBLISHERS, Pen, RULES};
use random::Random;
use world::{HANG, World};

/// What no node may have in memory: about three times what a debug build was seen to have.
pub const MEMORY_BOUND_KIB: u64 = 64 * 1024;

/// After so long without a sign of life a listener gives its connection up: three heartbeats.
const SILENCE: Duration = Duration::from_millis(3500);

/// What came of a run.
pub struct Run {
    /// The broker.
    pub kind: BrokerKind,
    /// What went wrong when.
    pub plan: Plan,
    /// What was seen.
    pub history: History,
    /// The promises that were broken.
    pub breaches: Vec<Breach>,
    /// What else went wrong: processes that ended, answers outside the protocol, listeners that did
    /// not catch up, too much memory.
    pub wrong: Vec<String>,
    /// The most memory that any node had, in KiB.
    pub peak_memory: u64,
    /// How long it took, once everything was put right, until all nodes were ready; and then until
    /// everybody had the last events.
    pub healed: (Duration, Duration),
    logs: Vec<String>,
}

/// What a run had in it, for one in which nothing happens keeps every promise.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Publications that were acknowledged.
    pub acknowledged: usize,
    /// Publications that were refused.
    pub refused: usize,
    /// Publications with an unknown outcome.
    pub unknown: usize,
    /// Events that listeners got.
    pub events: usize,
    /// Times that a listener came back and missed nothing.
    pub resumed: usize,
    /// The ways in which they did.
    pub hows: BTreeSet<String>,
    /// Gaps that were announced, by reason.
    pub gaps: BTreeMap<String, usize>,
}

impl Run {
    /// Whether every promise was kept.
    pub fn is_good(&self) -> bool {
        self.breaches.is_empty() && self.wrong.is_empty()
    }

    /// What it had in it.
    pub fn seen(&self) -> Seen {
        let mut seen = Seen::default();
        for publication in &self.history.publications {
            match publication.outcome {
                Outcome::Acknowledged { .. } => seen.acknowledged += 1,
                Outcome::Refused => seen.refused += 1,
                Outcome::Unknown => seen.unknown += 1,
            }
        }
        for listener in &self.history.listeners {
            let mut asked = "";
            for (_, told) in &listener.told {
                match told {
                    Told::Asked { how, .. } => asked = how,
                    Told::Confirmed { resumed: true, .. } => {
                        seen.resumed += 1;
                        seen.hows.insert(asked.to_owned());
                    }
                    Told::Confirmed { .. } => {}
                    Told::Event { .. } => seen.events += 1,
                    Told::Gap { reason, .. } => *seen.gaps.entry(reason.clone()).or_default() += 1,
                }
            }
        }
        seen
    }

    /// Everything about a run that failed: what was broken, what went wrong when, what the nodes
    /// said, and how to repeat it.
    pub fn report(&self, story: bool) -> String {
        let mut text = format!("{self}\n{}", self.plan);
        for breach in &self.breaches {
            text += &format!("  BROKEN {breach}\n");
        }
        for wrong in &self.wrong {
            text += &format!("  WRONG {wrong}\n");
        }
        if story {
            text += &self.history.to_string();
            for (node, log) in self.logs.iter().enumerate() {
                text += &format!("---- the end of node {node}'s log\n{log}\n");
            }
        }
        text + &format!(
            "again, with its story: cargo run -p airwave-bench -- chaos --broker {} --with {} --nodes {} --seed {} --seconds {} --runs 5 --story\n",
            self.kind,
            self.plan.more,
            self.plan.nodes,
            self.plan.seed,
            self.plan.trouble.as_secs()
        )
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seen = self.seen();
        let verdict = if self.is_good() { "good" } else { "BROKEN" };
        write!(
            f,
            "{verdict}: {} seed {}: {} acknowledged, {} unknown, {} refused; {} events heard, {} resumes, gaps {:?}; \
             nodes at most {} MiB; ready after {:.1} s and caught up after {:.1} s",
            self.kind,
            self.plan.seed,
            seen.acknowledged,
            seen.unknown,
            seen.refused,
            seen.events,
            seen.resumed,
            seen.gaps,
            self.peak_memory / 1024,
            self.healed.0.as_secs_f64(),
            self.healed.1.as_secs_f64()
        )
    }
}

/// Of each listener and channel.
type Stories = BTreeMap<(&'static str, &'static str), Vec<(Moment, Told)>>;

/// What everybody in a run shares.
struct Shared {
    world: World,
    seed: u64,
    /// Clocks differ, so that a position does not tell when something was.
    clocks: bool,
    clock: Clock,
    /// Cleared when everything is put right.
    trouble: AtomicBool,
    publications: Mutex<Vec<Publication>>,
    told: Mutex<Stories>,
    losses: Mutex<Vec<Loss>>,
    jumps: Mutex<Vec<Moment>>,
    /// A count of everything that needs a name of its own.
    named: AtomicUsize,
    wrong: Mutex<Vec<String>>,
    /// A count of publishers that are still at it.
    publishing: AtomicUsize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn in_trouble(&self) -> bool {
        self.trouble.load(Ordering::SeqCst)
    }

    fn wrong(&self, what: String) {
        lock(&self.wrong).push(what);
    }

    /// The highest position that anybody has seen of a channel.
    fn highest(&self, channel: &str) -> Option<u64> {
        let publications = lock(&self.publications);
        let acknowledged = publications.iter().filter(|publication| publication.channel == channel);
        let acknowledged = acknowledged.filter_map(|publication| match publication.outcome {
            Outcome::Acknowledged { position, .. } => position,
            _ => None,
        });
        let told = lock(&self.told);
        let told = told.iter().filter(|((_, of), _)| *of == channel).flat_map(|(_, told)| told);
        let told = told.filter_map(|(_, told)| match told {
            Told::Event { position, .. } => Some(*position),
            Told::Confirmed { cursor, .. } | Told::Gap { cursor, .. } => Some(*cursor),
            Told::Asked { .. } => None,
        });
        acknowledged.chain(told).max()
    }

    /// A node that runs, if there is one.
    async fn some_node(&self, random: &mut Random) -> SocketAddr {
        loop {
            let nodes = self.world.addresses();
            if !nodes.is_empty() {
                return random.pick(&nodes);
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// One run of `plan` with this broker. `airwave`: the program.
///
/// # Errors
/// The processes cannot be started at all; the text says what to do.
pub async fn run(kind: BrokerKind, plan: Plan, airwave: &Path) -> Result<Run, String> {
    let world = World::start_skewed(kind, &plan.skews, airwave, |url| plan.config(url)).await?;
    let shared = Arc::new(Shared {
        world,
        seed: plan.seed,
        clocks: plan.more.clocks,
        clock: Clock::default(),
        trouble: AtomicBool::new(true),
        publications: Mutex::default(),
        told: Mutex::default(),
        losses: Mutex::default(),
        jumps: Mutex::default(),
        named: AtomicUsize::new(0),
        wrong: Mutex::default(),
        publishing: AtomicUsize::new(PUBLISHERS.len()),
    });
    if kind.loses() == Loses::Newest {
        lock(&shared.losses).push(Loss {
            channel: None,
            position: u64::MAX,
            at: 0,
            everything: false,
        });
    }
    // Ends with this function.
    let mut people = JoinSet::new();
    for (number, (name, manner, channels)) in LISTENERS.into_iter().enumerate() {
        let random = Random::new(plan.seed, 100 + number as u64);
        let client = Client::new(name, manner, channels, random, shared.clone());
        let late = plan.trouble.mul_f64(0.6);
        people.spawn(async move {
            if manner == Manner::Late {
                sleep(late).await;
            }
            client.live().await;
        });
    }
    for (number, (name, pen)) in PUBLISHERS.into_iter().enumerate() {
        let random = Random::new(plan.seed, 200 + number as u64);
        let (publisher, shared) = (Publisher::new(name, pen, random, shared.clone()), shared.clone());
        people.spawn(async move {
            publisher.live().await;
            shared.publishing.fetch_sub(1, Ordering::SeqCst);
        });
    }

    if plan.more.clocks {
        let (random, visited) = (Random::new(plan.seed, 400), shared.clone());
        people.spawn(async move { visitors(random, &visited).await });
        let aged = Publisher::new("age", Pen::Sure, Random::new(plan.seed, 401), shared.clone());
        let shared = shared.clone();
        shared.publishing.fetch_add(1, Ordering::SeqCst);
        people.spawn(async move {
            aged.write(AGED.channel).await;
            shared.publishing.fetch_sub(1, Ordering::SeqCst);
        });
    }

    trouble(&plan, &shared).await;
    shared.trouble.store(false, Ordering::SeqCst);
    let since = Instant::now();
    let mut healed = (Duration::ZERO, Duration::ZERO);
    match shared.world.settle().await {
        Ok(()) => healed.0 = since.elapsed(),
        Err(error) => shared.wrong(error),
    }
    let done = timeout(HANG, async {
        while shared.publishing.load(Ordering::SeqCst) > 0 {
            sleep(Duration::from_millis(20)).await;
        }
    });
    if done.await.is_err() {
        shared.wrong("publishers are not answered, though everything was put right".into());
    }
    let mut last = Publisher::new("last", Pen::Sure, Random::new(plan.seed, 300), shared.clone());
    for rule in &RULES {
        last.publish(rule.channel, 1, true).await;
    }
    let since = Instant::now();
    while !missing(&shared).is_empty() && since.elapsed() < HANG {
        sleep(Duration::from_millis(20)).await;
    }
    healed.1 = since.elapsed();
    for who in missing(&shared) {
        shared.wrong(format!("{who} has not got the last events within {HANG:?}"));
    }
    let mut channels = BTreeMap::new();
    for rule in plan.rules() {
        let held = held(&shared, rule.channel).await;
        let channel = Channel {
            keeps: rule.keeps,
            skips: false,
            age: (rule.age < 600).then_some(rule.age * 1_000_000),
            replays: rule.replay == "all",
            held,
        };
        channels.insert(rule.channel.to_owned(), channel);
    }
    let ended = shared.clock.now();
    people.shutdown().await;

    let mut told = std::mem::take(&mut *lock(&shared.told));
    let listeners = LISTENERS
        .into_iter()
        .flat_map(|(name, manner, listens)| listens.iter().map(move |channel| (name, manner == Manner::Late, *channel)));
    let listeners = listeners.map(|(name, late, channel)| Listener {
        name: name.to_owned(),
        channel: channel.to_owned(),
        from_the_beginning: late,
        leaves: false,
        told: told.remove(&(name, channel)).unwrap_or_default(),
    });
    let mut listeners: Vec<Listener> = listeners.collect();
    listeners.extend(told.into_iter().map(|((name, channel), told)| Listener {
        name: name.to_owned(),
        channel: channel.to_owned(),
        from_the_beginning: false,
        leaves: true,
        told,
    }));
    let history = History {
        listeners,
        clocks: plan.more.clocks,
        jumps: std::mem::take(&mut *lock(&shared.jumps)),
        ended,
        channels,
        publications: std::mem::take(&mut *lock(&shared.publications)),
        losses: std::mem::take(&mut *lock(&shared.losses)),
    };
    let peak_memory = shared.world.peak_memory();
    let mut wrong = shared.world.wrong();
    wrong.append(&mut lock(&shared.wrong));
    if peak_memory > MEMORY_BOUND_KIB {
        wrong.push(format!(
            "a node had {peak_memory} KiB of memory, at most {MEMORY_BOUND_KIB} are allowed"
        ));
    }
    Ok(Run {
        kind,
        breaches: check(&history),
        history,
        wrong,
        peak_memory,
        healed,
        logs: (0..plan.nodes).map(|node| shared.world.log(node)).collect(),
        plan,
    })
}

/// Everything that goes wrong, until all of it is over.
async fn trouble(plan: &Plan, shared: &Arc<Shared>) {
    let begin = Instant::now();
    let mut under_way = JoinSet::new();
    for (at, long, fault) in plan.faults.clone() {
        sleep(at.saturating_sub(begin.elapsed())).await;
        let shared = shared.clone();
        under_way.spawn(async move {
            let world = &shared.world;
            // That takes seconds; sometimes the one that is away shall be back before, and
            // sometimes not.
            let until_another_takes_over = |long| if world.kind.fails_over() { 3 * long } else { long };
            match fault {
                Fault::KillNode(node) => world.kill_node(node, long),
                Fault::DrainNode(node) => world.drain_node(node, long),
                Fault::PauseNode(node) => world.pause_node(node, long),
                Fault::KillBroker => kill_broker(&shared, until_another_takes_over(long), None).await,
                Fault::KillBrokerSkewed(skew) => kill_broker(&shared, until_another_takes_over(long), Some(skew)).await,
                Fault::Busy(node, millis) => busy(&shared, node, Duration::from_millis(millis), long).await,
                Fault::Refuse(why) => match world.refuse_writes(why, long).await {
                    None => world.pause_broker(until_another_takes_over(long / 2)).await,
                    Some(ready) => {
                        for node in ready {
                            shared.wrong(format!(
                                "node {node} was ready for {long:?}, and the broker refused every write ({why:?})"
                            ));
                        }
                    }
                },
                Fault::PauseBroker => world.pause_broker(until_another_takes_over(long)).await,
                Fault::Cut(lines) => spoil(world, lines, Condition::Cut, long).await,
                Fault::BlackHole(lines) => spoil(world, lines, Condition::Held, long).await,
                Fault::Delay(lines, millis) => spoil(world, lines, Condition::Slow(Duration::from_millis(millis)), long).await,
            }
        });
    }
    sleep(plan.trouble.saturating_sub(begin.elapsed())).await;
    while under_way.join_next().await.is_some() {}
    for node in 0..plan.nodes {
        shared.world.set_line(node, Condition::Open);
    }
}

async fn kill_broker(shared: &Shared, down: Duration, skew: Option<i64>) {
    let world = &shared.world;
    // What forgets everything comes back no further behind. A node that never knew a channel gives
    // positions below the others' heads then, and what they tell is not what this run promises.
    let forgets = world.kind.loses() == Loses::Everything;
    let skew = skew.map(|skew| if forgets { skew.max(world.skew()) } else { skew });
    let lost = |clock| {
        let at = shared.clock.now();
        if skew.is_some_and(|skew| skew > 0) {
            lock(&shared.jumps).push(at);
        }
        if world.kind.loses() != Loses::Everything {
            return;
        }
        let loss = |channel, position| Loss {
            channel,
            position,
            at,
            everything: true,
        };
        if !shared.clocks {
            return lock(&shared.losses).push(loss(None, clock));
        }
        // A clock that goes back does not take positions back: what comes is above all that a node
        // has seen.
        for rule in RULES.iter().chain([&AGED, &BUSY]) {
            let after = shared.highest(rule.channel).map_or(clock, |highest| clock.max(highest + 1));
            lock(&shared.losses).push(loss(Some(rule.channel.to_owned()), after));
        }
    };
    if let Err(error) = world.kill_broker_skewed(down, skew, lost).await {
        shared.wrong(error);
    }
}

/// Listeners who come to a channel whose events are soon too old, want all that is not, hear a
/// little, and leave.
async fn visitors(mut random: Random, shared: &Arc<Shared>) {
    while shared.in_trouble() {
        sleep(random.millis(500, 1500)).await;
        let mut visitor = Client::visitor(&[AGED.channel], Random::new(shared.seed, 500 + random.below(1 << 30)), shared);
        let node = shared.some_node(&mut random).await;
        visitor.visit(node, random.millis(500, 2500)).await;
        // And comes back elsewhere, as far as it got.
        let node = shared.some_node(&mut random).await;
        visitor.visit(node, random.millis(500, 1500)).await;
    }
}

/// A channel that is not open at this node is published to elsewhere, faster than a page can be
/// read over the node's slow line, and listeners come to the node: new ones, and one that has a
/// cursor from elsewhere.
async fn busy(shared: &Arc<Shared>, node: usize, delay: Duration, long: Duration) {
    let begin = Instant::now();
    let world = &shared.world;
    world.set_line(node, Condition::Slow(delay));
    let number = shared.named.fetch_add(1, Ordering::SeqCst) as u64;
    let mut random = Random::new(shared.seed, 600 + number);
    let name: &'static str = Box::leak(format!("bulk{number}").into_boxed_str());
    let mut publisher = Publisher::new(name, Pen::Several, Random::new(shared.seed, 700 + number), shared.clone());
    let publishing = async {
        while begin.elapsed() < long {
            publisher.publish(BUSY.channel, 100, false).await;
        }
    };
    let mut listening = JoinSet::new();
    for visit in 0..3 {
        let mut visitor = Client::visitor(&[BUSY.channel], Random::new(shared.seed, 800 + 10 * number + visit), shared);
        let (shared, elsewhere, wait) = (shared.clone(), shared.some_node(&mut random).await, random.millis(300, 1000));
        listening.spawn(async move {
            sleep(wait).await;
            if visit == 0 {
                visitor.visit(elsewhere, Duration::from_millis(600)).await;
            }
            let address = timeout(Duration::from_secs(2), shared.world.address(node)).await;
            if let Ok(address) = address {
                visitor.visit(address, long.saturating_sub(begin.elapsed())).await;
            }
        });
    }
    publishing.await;
    while listening.join_next().await.is_some() {}
    world.set_line(node, Condition::Open);
}

async fn spoil(world: &World, lines: Lines, condition: Condition, long: Duration) {
    world.set_lines(lines, condition);
    sleep(long).await;
    world.set_lines(lines, Condition::Open);
}

/// Who has not got the events of the last round.
fn missing(shared: &Shared) -> Vec<String> {
    let mut last: BTreeMap<String, u64> = BTreeMap::new();
    for publication in lock(&shared.publications).iter().filter(|publication| publication.last) {
        if let Outcome::Acknowledged {
            position: Some(position),
            ..
        } = publication.outcome
        {
            last.insert(publication.channel.clone(), position);
        }
    }
    let told = lock(&shared.told);
    let all = LISTENERS
        .iter()
        .flat_map(|(name, _, channels)| channels.iter().map(move |channel| (*name, *channel)));
    let missing = all.filter(|(name, channel)| {
        let newest = told.get(&(*name, *channel)).and_then(|told| told.last());
        let newest = newest.and_then(|(_, told)| match told {
            Told::Event { position, .. } => Some(*position),
            _ => None,
        });
        newest.is_none() || newest < last.get(*channel).copied()
    });
    missing.map(|(name, channel)| format!("{name} on {channel}")).collect()
}

/// All that history holds of a channel.
async fn held(shared: &Shared, channel: &str) -> BTreeMap<u64, String> {
    let mut held = BTreeMap::new();
    // Before every event, and never given: history answers with what it has.
    let mut after = 1;
    let mut failures = 0;
    loop {
        let page = clients::history(shared.world.address(0).await, channel, after).await;
        match page {
            Ok((events, more)) => {
                for (position, data) in events {
                    match body_of(&data) {
                        Ok(body) => drop(held.insert(position, body)),
                        Err(error) => shared.wrong(format!("history of {channel} at {position}: {error}")),
                    }
                    after = position;
                }
                if !more {
                    return held;
                }
            }
            Err(error) => {
                failures += 1;
                if failures == 10 {
                    shared.wrong(format!("history of {channel} cannot be read: {error}"));
                    return held;
                }
                sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

/// The data of a message: its body, and padding of a length that the body tells.
fn data_of(name: &str, count: u64, length: usize) -> (String, Value) {
    let body = format!("{name}-{count}-{length}");
    let data = json!({"body": body, "padding": "x".repeat(length)});
    (body, data)
}

/// The body, if the data came whole.
fn body_of(data: &Value) -> Result<String, String> {
    let whole = || {
        let body = data["body"].as_str()?;
        let length: usize = body.rsplit('-').next()?.parse().ok()?;
        let padding = data["padding"].as_str()?;
        (padding.len() == length && padding.bytes().all(|byte| byte == b'x')).then(|| body.to_owned())
    };
    whole().ok_or_else(|| {
        let text: String = data.to_string().chars().take(100).collect();
        format!("data that no client published: {text}")
    })
}

struct Publisher {
    name: &'static str,
    pen: Pen,
    count: u64,
    random: Random,
    shared: Arc<Shared>,
}

impl Publisher {
    fn new(name: &'static str, pen: Pen, random: Random, shared: Arc<Shared>) -> Self {
        Self {
            name,
            pen,
            count: 0,
            random,
            shared,
        }
    }

    /// To this channel alone.
    async fn write(mut self, channel: &str) {
        while self.shared.in_trouble() {
            sleep(self.random.millis(10, 60)).await;
            self.publish(channel, 1, false).await;
        }
    }

    async fn live(mut self) {
        while self.shared.in_trouble() {
            sleep(self.random.millis(20, 250)).await;
            let channel = self.random.pick(&RULES.each_ref().map(|rule| rule.channel));
            let several = match self.pen {
                // More than a ring or a page holds.
                Pen::Several if self.random.chance(0.03) => 100 + self.random.below(200),
                Pen::Several => 2 + self.random.below(8),
                _ => 1,
            };
            self.publish(channel, several, false).await;
        }
    }

    /// Publishes so many new messages, and tries as often as its pen wants.
    async fn publish(&mut self, channel: &str, several: u64, last: bool) {
        let began = self.shared.clock.now();
        let mut messages: Vec<(Value, Publication)> = Vec::new();
        for _ in 0..several {
            self.count += 1;
            // Some are larger than is allowed, and some so large that a slow reader's buffers are
            // soon full.
            let length = match self.random.below(100) {
                0 if self.pen == Pen::Sure && !last => 70_000,
                1..10 => 4000,
                _ => self.random.below(300),
            };
            let (body, data) = data_of(self.name, self.count, length as usize);
            let publication = Publication {
                channel: channel.to_owned(),
                body,
                began,
                outcome: Outcome::Unknown,
                last,
            };
            messages.push((data, publication));
        }
        let since = Instant::now();
        while messages.iter().any(|(_, message)| message.outcome == Outcome::Unknown) && since.elapsed() < HANG {
            let node = self.shared.some_node(&mut self.random).await;
            self.try_once(node, channel, &mut messages).await;
            if self.pen == Pen::Once {
                break;
            }
            sleep(self.random.millis(10, 300)).await;
        }
        lock(&self.shared.publications).extend(messages.into_iter().map(|(_, publication)| publication));
    }

    async fn try_once(&mut self, node: SocketAddr, channel: &str, messages: &mut [(Value, Publication)]) {
        // Long enough to be one key over whatever connection it is repeated.
        let key = |publication: &Publication| format!("chaos-publication-{}-{}", self.shared.seed, publication.body);
        let publication = |(data, publication): &(Value, Publication)| {
            let mut json = json!({"channel": channel, "data": data});
            if self.pen != Pen::Once {
                json["idempotency_key"] = key(publication).into();
            }
            json
        };
        let (data, first) = &messages[0];
        let answer = match self.pen {
            Pen::Client if self.random.chance(0.5) => clients::post(node, channel, data, &key(first)).await,
            Pen::Client => clients::send(node, channel, data, &key(first)).await,
            Pen::Several => clients::publish(node, &messages.iter().map(publication).collect()).await,
            Pen::Sure | Pen::Once => clients::publish(node, &publication(&messages[0])).await,
        };
        let at = self.shared.clock.now();
        let (status, answer) = match answer {
            Ok(answer) => answer,
            Err(error) => {
                if error.kind() == std::io::ErrorKind::InvalidData {
                    self.shared.wrong(format!("{} was answered nonsense: {error}", self.name));
                }
                return;
            }
        };
        let answers = match answer {
            Value::Array(answers) => answers,
            one => vec![one],
        };
        for ((_, publication), answer) in messages.iter_mut().zip(&answers) {
            let position = answer["cursor"].as_str().and_then(|text| text.parse().ok());
            match (position, answer["error"]["code"].as_str()) {
                (Some(position), _) => {
                    let position = Some(position);
                    publication.outcome = Outcome::Acknowledged { at, position };
                }
                (None, None) if status == 200 && self.pen == Pen::Client => {
                    publication.outcome = Outcome::Acknowledged { at, position: None };
                }
                (None, Some("too-large")) => publication.outcome = Outcome::Refused,
                (None, _) if status == 503 || answer["error"]["code"] == "unavailable" => {}
                _ => self.shared.wrong(format!("{} was answered {status} {answer}", self.name)),
            }
        }
    }
}

/// One listener: comes, hears, drops, and comes back with its cursor, over whichever transport and
/// to whichever node.
struct Client {
    name: &'static str,
    manner: Manner,
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

impl Client {
    fn new(name: &'static str, manner: Manner, channels: &'static [&'static str], random: Random, shared: Arc<Shared>) -> Self {
        Self {
            name,
            manner,
            channels,
            cursors: BTreeMap::new(),
            token: None,
            random,
            shared,
        }
    }

    /// A visitor that comes and goes, with a name of its own.
    fn visitor(channels: &'static [&'static str], random: Random, shared: &Arc<Shared>) -> Self {
        let number = shared.named.fetch_add(1, Ordering::SeqCst);
        let name = Box::leak(format!("visitor{number}").into_boxed_str());
        Self::new(name, Manner::Restless, channels, random, shared.clone())
    }

    /// Comes to this node, hears for so long, and leaves.
    async fn visit(&mut self, node: SocketAddr, long: Duration) {
        if let Ok(line) = self.connect(node).await {
            let _ = timeout(long, self.hear(line)).await;
        }
    }

    async fn live(mut self) {
        loop {
            let node = self.shared.some_node(&mut self.random).await;
            let connected = self.connect(node).await;
            if let Ok(line) = connected {
                self.hear(line).await;
            }
            let most = if self.shared.in_trouble() && self.random.chance(0.2) {
                3000
            } else {
                200
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
        lock(&self.shared.told)
            .entry((self.name, channel))
            .or_default()
            .push((at, told));
    }

    async fn connect(&mut self, node: SocketAddr) -> std::io::Result<Line> {
        let first = self.channels[0];
        let after = |channel: &str| self.cursors.get(channel).copied();
        let text = |channel: &str| after(channel).map_or(String::new(), |after| after.to_string());
        let how = match self.manner {
            Manner::SteadySse => How::Sse,
            Manner::SteadyWebSocket => How::WebSocket,
            _ if self.channels.len() == 1 => self
                .random
                .pick(&[How::Sse, How::Sse, How::SseMany, How::WebSocket, How::Socket]),
            _ => self.random.pick(&[How::SseMany, How::SseMany, How::WebSocket, How::Socket]),
        };
        let all_stand = self.channels.iter().all(|channel| self.cursors.contains_key(channel));
        let token = self.token.take().filter(|_| how == How::SseMany && all_stand);
        let name = match how {
            How::Sse => "sse",
            How::SseMany => "sse of several channels",
            How::WebSocket => "websocket of a channel",
            How::Socket => "websocket",
        };
        for channel in self.channels {
            let (after, how) = (after(channel), name.to_owned());
            self.tell(channel, Told::Asked { after, how });
        }
        let small = self.manner == Manner::Slow;
        let result = match how {
            How::Sse => {
                let id = after(first).map(|after| after.to_string());
                let path = format!("/channels/{first}");
                match id.as_deref().filter(|_| self.random.chance(0.5)) {
                    Some(id) => Sse::open(node, &format!("{path}?after={id}"), Some(first), None, small).await,
                    None => Sse::open(node, &path, Some(first), id.as_deref(), small).await,
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
                Sse::open(node, &path, None, token.as_deref(), small).await
            }
            How::WebSocket => {
                let rest: Vec<_> = self.channels[1..].iter().map(|channel| (*channel, after(channel))).collect();
                let path = format!("/channels/{first}?after={}", text(first));
                WebSocket::open(node, &path, &rest, small).await
            }
            How::Socket => {
                let all: Vec<_> = self.channels.iter().map(|channel| (*channel, after(channel))).collect();
                WebSocket::open(node, "/socket", &all, small).await
            }
        };
        // Nothing was heard, so the last id is still the last.
        self.token = token;
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
        let steady = matches!(self.manner, Manner::SteadySse | Manner::SteadyWebSocket);
        let long = if steady { 3_600_000 } else { 6000 };
        let patience = Instant::now() + self.random.millis(100, long);
        let mut id = None;
        while steady || !self.shared.in_trouble() || Instant::now() < patience {
            if self.manner == Manner::Slow && self.shared.in_trouble() && self.random.chance(0.2) {
                let most = if self.random.chance(0.1) { 3000 } else { 100 };
                sleep(self.random.millis(1, most)).await;
            }
            let Ok(result) = timeout(SILENCE, line.next()).await else {
                return;
            };
            self.look(&result);
            match result {
                Err(_) | Ok(Heard::Refused(_)) => return,
                Ok(Heard::Beat | Heard::Members { .. }) => {}
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
                Ok(Heard::Event { channel, position, data }) => match body_of(&data) {
                    Ok(body) => {
                        self.stands(&channel, position);
                        self.tell(&channel, Told::Event { position, body });
                    }
                    Err(error) => self.shared.wrong(format!("{} heard {error}", self.name)),
                },
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
