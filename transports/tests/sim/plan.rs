//! What a seed stands for: how the nodes are set up, and what goes wrong when.

use std::fmt;
use std::time::Duration;

use airwave_core::Rules;
use airwave_core::rule::{Limits, ReplayOnSubscribe, Rule, SlowPolicy, TransportName};

use crate::backbone::Away;
use crate::random::Random;

pub const NODES: [&str; 2] = ["north", "south"];
pub const CHANNELS: [&str; 2] = ["a", "b"];
/// Where clients live. Few places, since the simulation of a host costs more than what runs on it.
pub const PLACES: [&str; 3] = ["home", "office", "train"];
/// Where each listener lives, and what it listens to.
pub const LISTENERS: [(&str, &str, &[&str]); 6] = [
    ("ada", "home", &["a"]),
    ("ben", "office", &["a"]),
    ("cleo", "train", &["b"]),
    ("dan", "home", &["a", "b"]),
    ("eve", "office", &["a", "b"]),
    ("finn", "train", &["b", "a"]),
];
/// Where backends live.
pub const CELLAR: &str = "cellar";
pub const PUBLISHERS: [&str; 2] = ["pia", "paul"];

/// For so long things go wrong, in simulated time.
pub const TROUBLE: Duration = Duration::from_secs(15);

/// One thing that goes wrong, or is put right again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// What is sent between a place and a node waits until it is released.
    Hold(&'static str, usize),
    Release(&'static str, usize),
    /// What is sent is lost, and so are the connections, but neither side is told.
    Partition(&'static str, usize),
    /// The same from the node to the place only.
    Mute(&'static str, usize),
    /// The process dies, and the system closes its connections.
    Crash(usize),
    /// The machine dies, and its peers are not told.
    PowerLoss(usize),
    Drain(usize),
    Start(usize),
    HoldFeeds(usize, bool),
    Lag(usize, Duration),
    EndFeeds(usize),
    SkipEvents(usize, u32),
    BrokerAway(usize, Option<Away>),
    /// Every call of the node to the broker takes so much more, each way.
    Line(usize, Duration),
    /// Publishers write to this channel without a pause, and not through this node.
    Busy(Option<(&'static str, usize)>),
    FailOver(usize),
    RestartEmpty,
}

/// All that a seed decides beforehand. What the hosts do is drawn while they run.
pub struct Plan {
    pub seed: u64,
    pub faults: Vec<(Duration, Fault)>,
    pub latency: (Duration, Duration),
    pub random_order: bool,
    /// By how many milliseconds the clock of each node differs.
    pub skews: [i64; 2],
    rules: [Rule; 2],
    ring_bytes: usize,
}

impl Plan {
    pub fn new(seed: u64) -> Self {
        let random = &mut Random::new(seed, 1);
        let mut rules = CHANNELS.map(|channel| {
            let mut rule = Rule::new(channel.parse().unwrap(), vec![TransportName::SSE, TransportName::WEBSOCKET]);
            rule.history.events = random.pick(&[5, 30, 30, 1000]);
            rule.replay = random.pick(&[ReplayOnSubscribe::None, ReplayOnSubscribe::All]);
            rule.slow = random.pick(&[SlowPolicy::Refill, SlowPolicy::Refill, SlowPolicy::Skip, SlowPolicy::Close]);
            rule.max_rate = random.pick(&[None, None, std::num::NonZeroU32::new(10)]);
            rule
        });
        let mut faults = faults(random);
        // Of a stream of their own, so that a seed is otherwise the same plan as before.
        let random_of_more = &mut Random::new(seed, 3);
        if let Some(busy) = more_faults(random_of_more, &mut faults) {
            // What is busy is overtaken while it is read.
            rules[busy].history.events = 10;
        }
        let skews = match random_of_more.chance(0.5) {
            true => [0; 2].map(|_: i64| random_of_more.pick(&[0, 20, -20, 120_000, -120_000])),
            false => [0; 2],
        };
        Self {
            seed,
            faults,
            skews,
            latency: (Duration::ZERO, random.millis(20, 300)),
            random_order: random.chance(0.5),
            rules,
            ring_bytes: random.pick(&[5_000, 20_000, 1 << 20]),
        }
    }

    pub fn rules(&self) -> Rules {
        Rules::new(self.rules.clone())
    }

    pub fn skips(&self, channel: &str) -> bool {
        let rule = self.rules.iter().find(|rule| rule.pattern.as_str() == channel);
        rule.is_some_and(|rule| rule.slow == SlowPolicy::Skip)
    }

    /// Whether publishers write to it without a pause for a time.
    pub fn is_busy(&self, channel: &str) -> bool {
        let busy = |fault: &Fault| matches!(fault, Fault::Busy(Some((name, _))) if *name == channel);
        self.faults.iter().any(|(_, fault)| busy(fault))
    }

    /// As a server has them, but in a hurry.
    pub fn limits(&self) -> Limits {
        Limits::default().with(|limits| {
            limits.message_bytes = 2048;
            limits.ring_events = 8;
            limits.ring_bytes = self.ring_bytes;
            limits.heartbeat = Duration::from_secs(1);
            limits.idle = Duration::from_secs(4);
            limits.stalled_write = Duration::from_secs(3);
            limits.linger = Duration::from_secs(2);
            limits.broker_timeout = Duration::from_secs(1);
        })
    }
}

/// When something goes wrong, and what.
type TimedFault = (Duration, Fault);

/// Not every seed has every kind of fault: a run in which the broker never loses anything shows
/// false gaps that another would excuse.
fn faults(random: &mut Random) -> Vec<TimedFault> {
    let mut faults = Vec::new();
    add_network_faults(random, &mut faults);
    add_node_faults(random, &mut faults);
    add_feed_faults(random, &mut faults);
    add_broker_faults(random, &mut faults);
    // Whatever ends later is put right with everything else.
    faults.retain(|(at, _)| *at < TROUBLE);
    faults.sort_by_key(|(at, _)| *at);
    faults
}

/// Adds one kind of fault with this probability: at least once, at most `most` times.
fn now_and_then(random: &mut Random, probability: f64, most: u64, mut fault: impl FnMut(&mut Random, Duration)) {
    if random.chance(probability) {
        for _ in 0..=random.below(most) {
            let at = random.millis(500, TROUBLE.as_millis() as u64);
            fault(random, at);
        }
    }
}

fn add_network_faults(random: &mut Random, faults: &mut Vec<TimedFault>) {
    let clients: Vec<&'static str> = PLACES.into_iter().chain([CELLAR]).collect();
    let mut add = |at: Duration, fault: Fault| faults.push((at, fault));
    now_and_then(random, 0.6, 6, |random, at| {
        let (client, node) = (random.pick(&clients), random.index(2));
        add(at, Fault::Hold(client, node));
        add(at + random.millis(100, 4000), Fault::Release(client, node));
    });
    now_and_then(random, 0.6, 6, |random, at| {
        let (client, node) = (random.pick(&clients), random.index(2));
        let fault = random.pick(&[Fault::Partition(client, node), Fault::Mute(client, node)]);
        add(at, fault);
        add(at + random.millis(100, 4000), Fault::Release(client, node));
    });
}

fn add_node_faults(random: &mut Random, faults: &mut Vec<TimedFault>) {
    let mut add = |at: Duration, fault: Fault| faults.push((at, fault));
    now_and_then(random, 0.5, 3, |random, at| {
        let node = random.index(2);
        if random.chance(0.4) {
            add(at, Fault::Drain(node));
        }
        let dies = at + random.millis(1, 1500);
        let death = random.pick(&[Fault::Crash(node), Fault::PowerLoss(node)]);
        add(dies, death);
        add(dies + random.millis(100, 3000), Fault::Start(node));
    });
}

fn add_feed_faults(random: &mut Random, faults: &mut Vec<TimedFault>) {
    let mut add = |at: Duration, fault: Fault| faults.push((at, fault));
    now_and_then(random, 0.6, 4, |random, at| {
        let node = random.index(2);
        add(at, Fault::HoldFeeds(node, true));
        add(at + random.millis(200, 4000), Fault::HoldFeeds(node, false));
    });
    now_and_then(random, 0.6, 4, |random, at| {
        add(at, Fault::Lag(random.index(2), random.millis(0, 1500)))
    });
    now_and_then(random, 0.6, 6, |random, at| add(at, Fault::EndFeeds(random.index(2))));
    now_and_then(random, 0.5, 6, |random, at| {
        add(at, Fault::SkipEvents(random.index(2), 1 + random.below(4) as u32));
    });
}

fn add_broker_faults(random: &mut Random, faults: &mut Vec<TimedFault>) {
    let mut add = |at: Duration, fault: Fault| faults.push((at, fault));
    now_and_then(random, 0.5, 3, |random, at| {
        let away = random.pick(&[Away::Refuses, Away::Hangs]);
        let nodes = random.pick(&[&[0][..], &[1], &[0, 1]]);
        let back = at + random.millis(200, 5000);
        for node in nodes {
            add(at, Fault::BrokerAway(*node, Some(away)));
            add(back, Fault::BrokerAway(*node, None));
            if random.chance(0.5) {
                add(at, Fault::EndFeeds(*node));
            }
        }
    });
    now_and_then(random, 0.4, 3, |random, at| add(at, Fault::FailOver(1 + random.index(5))));
    now_and_then(random, 0.25, 2, |_, at| add(at, Fault::RestartEmpty));
}

/// A node that opens a busy channel over a slow line, and a broker that refuses writes. Gives the
/// channel that is busy.
fn more_faults(random: &mut Random, faults: &mut Vec<TimedFault>) -> Option<usize> {
    let end = TROUBLE.as_millis() as u64;
    let busy = random.chance(0.4).then(|| random.index(CHANNELS.len()));
    if let Some(channel) = busy {
        let (at, node) = (random.millis(500, end - 4000), random.index(2));
        let soon = at + random.millis(100, 500);
        let over = soon + random.millis(2000, 3000);
        faults.extend([
            (at, Fault::Line(node, random.millis(100, 400))),
            (at, Fault::Busy(Some((CHANNELS[channel], node)))),
            (soon, Fault::Crash(node)),
            (soon + random.millis(50, 200), Fault::Start(node)),
            (over, Fault::Busy(None)),
            (over, Fault::Line(node, Duration::ZERO)),
        ]);
    }
    if random.chance(0.4) {
        let at = random.millis(500, end - 1000);
        let over = at + random.millis(500, 5000);
        for node in 0..NODES.len() {
            faults.push((at, Fault::BrokerAway(node, Some(Away::RefusesWrites))));
            faults.push((over, Fault::BrokerAway(node, None)));
        }
    }
    faults.retain(|(at, _)| *at < TROUBLE);
    faults.sort_by_key(|(at, _)| *at);
    busy
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}", self.seed)?;
        for rule in &self.rules {
            writeln!(
                f,
                "  channel {}: {} events of history, replay {:?}, slow {:?}, rate {:?}",
                rule.pattern, rule.history.events, rule.replay, rule.slow, rule.max_rate
            )?;
        }
        writeln!(
            f,
            "  a ring of {} bytes, latency {:?}, random order {}, nodes' clocks differ by {:?} ms",
            self.ring_bytes, self.latency, self.random_order, self.skews
        )?;
        self.faults
            .iter()
            .try_for_each(|(at, fault)| writeln!(f, "  {at:>9.3?} {fault:?}"))
    }
}
