//! What a seed stands for: how the nodes are set up, and what goes wrong when.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::random::Random;

/// A channel of a run. Its name, how many events its history keeps, and the rest of its rule.
pub struct Rule {
    /// The channel's name.
    pub channel: &'static str,
    /// `history.events`.
    pub keeps: usize,
    /// `replay`.
    pub replay: &'static str,
    /// `history.age`, in seconds.
    pub age: u64,
}

/// More than any run publishes.
const ALL: usize = 20_000;

const HOUR: u64 = 3600;

/// The channels of every run. One forgets soon, so that `history-expired` is seen, too.
pub const RULES: [Rule; 3] = [
    Rule {
        channel: "chaos/a",
        keeps: ALL,
        replay: "none",
        age: HOUR,
    },
    Rule {
        channel: "chaos/b",
        keeps: ALL,
        replay: "all",
        age: HOUR,
    },
    Rule {
        channel: "chaos/brief",
        keeps: 25,
        replay: "none",
        age: HOUR,
    },
];

/// Of runs with [`More::clocks`]: its events are soon too old, and clocks decide when.
pub const AGED: Rule = Rule {
    channel: "chaos/aged",
    keeps: ALL,
    replay: "all",
    age: 5,
};

/// Of runs with [`More::busy`]: its history is overtaken while it is read.
pub const BUSY: Rule = Rule {
    channel: "chaos/busy",
    keeps: 500,
    replay: "all",
    age: HOUR,
};

/// How a listener behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Changes transport and node whenever it comes back, and drops its connection now and then.
    Restless,
    /// Stays as long as it is let, over SSE.
    SteadySse,
    /// Stays as long as it is let, over WebSocket.
    SteadyWebSocket,
    /// Restless, and reads a little at a time with long pauses.
    Slow,
    /// Comes late, and wants everything from the beginning.
    Late,
}

/// Who listens to what.
pub const LISTENERS: [(&str, Manner, &[&str]); 8] = [
    ("ada", Manner::Restless, &["chaos/a"]),
    ("ben", Manner::SteadySse, &["chaos/a"]),
    ("cleo", Manner::SteadyWebSocket, &["chaos/b"]),
    ("dan", Manner::Restless, &["chaos/a", "chaos/b"]),
    ("eve", Manner::Restless, &["chaos/b", "chaos/brief"]),
    ("finn", Manner::Slow, &["chaos/a"]),
    ("gus", Manner::Restless, &["chaos/brief"]),
    ("lea", Manner::Late, &["chaos/b"]),
];

/// What may go wrong beside what every plan has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct More {
    /// The nodes' clocks differ, and a server of Redis comes back with another clock.
    pub clocks: bool,
    /// A node opens a busy channel over a slow line.
    pub busy: bool,
    /// Redis takes PUBLISH and refuses writes.
    pub refusals: bool,
}

impl More {
    /// Nothing more.
    pub const NONE: Self = Self {
        clocks: false,
        busy: false,
        refusals: false,
    };
    /// All of it.
    pub const ALL: Self = Self {
        clocks: true,
        busy: true,
        refusals: true,
    };
}

impl FromStr for More {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut more = Self::NONE;
        for word in text.split(',') {
            match word {
                "all" => more = Self::ALL,
                "none" => {}
                "clocks" => more.clocks = true,
                "busy" => more.busy = true,
                "refusals" => more.refusals = true,
                other => return Err(format!("'{other}' is none of clocks, busy, refusals, all, none")),
            }
        }
        Ok(more)
    }
}

impl fmt::Display for More {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = [("clocks", self.clocks), ("busy", self.busy), ("refusals", self.refusals)];
        let words: Vec<&str> = words.iter().filter(|(_, on)| *on).map(|(word, _)| *word).collect();
        f.write_str(if words.is_empty() { "none" } else { "" })?;
        f.write_str(&words.join(","))
    }
}

/// How a publisher goes about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pen {
    /// `POST /publish` with an idempotency key, at any node, again until it knows.
    Sure,
    /// The same with arrays of several.
    Several,
    /// `POST /publish` once and without a key.
    Once,
    /// A client's message: `POST /channels/…` or a `send` frame, with an idempotency key, again
    /// until it knows.
    Client,
}

/// Who publishes.
pub const PUBLISHERS: [(&str, Pen); 5] = [
    ("pia", Pen::Sure),
    ("paul", Pen::Sure),
    ("quin", Pen::Several),
    ("olga", Pen::Once),
    ("curt", Pen::Client),
];

/// One thing that goes wrong, and is put right again after its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9`; started again after this time.
    KillNode(usize),
    /// SIGTERM; started again this long after its end.
    DrainNode(usize),
    /// SIGSTOP, then SIGCONT.
    PauseNode(usize),
    /// `kill -9` of the broker, which is started again with what it stored.
    KillBroker,
    /// SIGSTOP, then SIGCONT; or the server that counts is cut off from the others.
    PauseBroker,
    /// The node's connections to the broker break, and new ones are refused.
    Cut(Lines),
    /// Nothing comes through between node and broker, and neither side is told. Later it does.
    BlackHole(Lines),
    /// What passes between node and broker takes so many milliseconds more each way.
    Delay(Lines, u64),
    /// `kill -9` of the broker, whose clock differs by so many milliseconds once it is started
    /// again. A NATS server keeps the right clock: it asks the kernel itself, past the library that
    /// skews.
    KillBrokerSkewed(i64),
    /// The node's line takes so many milliseconds more each way while listeners open a channel
    /// there that is published to faster than its history can be read.
    Busy(usize, u64),
    /// The broker takes PUBLISH and refuses writes. NATS is paused instead.
    Refuse(Refusal),
}

/// Why Redis refuses writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It wants more replicas than it has.
    Replicas,
    /// Its memory is full.
    Memory,
}

/// What of the way between a node and its broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lines {
    /// The node.
    pub node: usize,
    /// Only the line to this one of the broker's servers (of fewer: counted around); else to all.
    pub only: Option<usize>,
}

/// All that a seed decides beforehand. What clients do is drawn while they run.
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// How many nodes there are.
    pub nodes: usize,
    /// For how long things go wrong.
    pub trouble: Duration,
    /// When, for how long, and what.
    pub faults: Vec<(Duration, Duration, Fault)>,
    /// What may go wrong beside what every plan has.
    pub more: More,
    /// By how many milliseconds each node's clock differs.
    pub skews: Vec<i64>,
    ring_events: u64,
}

impl Plan {
    /// What this seed stands for, where things go wrong for so long.
    pub fn new(seed: u64, nodes: usize, trouble: Duration, more: More) -> Self {
        let random = &mut Random::new(seed, 1);
        // Of a stream of their own, so that a seed is otherwise the same plan with and without.
        let clocks = &mut Random::new(seed, 2);
        let skew = |random: &mut Random| random.pick(&[0, 20, -20, 120_000, -120_000]);
        let skews = (0..nodes).map(|_| if more.clocks { skew(clocks) } else { 0 }).collect();
        let wanted = [(true, 0..8), (more.clocks, 8..9), (more.busy, 9..10), (more.refusals, 10..11)];
        let wanted: Vec<u8> = wanted
            .into_iter()
            .filter(|(on, _)| *on)
            .flat_map(|(_, kinds)| kinds)
            .collect();
        let end = trouble.as_millis() as u64;
        let mut faults = Vec::new();
        let mut kinds: Vec<u8> = Vec::new();
        // One about every 2 s, and each kind once before any comes a second time.
        let count = (end / 2000).max(1);
        for number in 0..count {
            if kinds.is_empty() {
                kinds.clone_from(&wanted);
                random.shuffle(&mut kinds);
            }
            let node = random.index(nodes);
            let only = random.chance(0.4).then(|| random.index(6));
            let lines = Lines { node, only };
            let (fault, long) = match kinds.pop().unwrap_or_default() {
                0 => (Fault::KillNode(node), 100..2000),
                1 => (Fault::DrainNode(node), 100..1000),
                2 => (Fault::PauseNode(node), 100..4000),
                3 => (Fault::KillBroker, 100..3000),
                4 => (Fault::PauseBroker, 100..4000),
                5 => (Fault::Cut(lines), 100..4000),
                6 => (Fault::BlackHole(lines), 100..6000),
                7 => (Fault::Delay(lines, 20 + random.below(400)), 100..5000),
                8 => (Fault::KillBrokerSkewed(clocks.pick(&SERVER_SKEWS)), 100..2000),
                9 => (Fault::Busy(node, 100 + random.below(300)), 3000..5000),
                _ => (Fault::Refuse(random.pick(&[Refusal::Replicas, Refusal::Memory])), 6500..7500),
            };
            let at = random.millis(end * number / count, end * (number + 1) / count);
            faults.push((at, random.millis(long.start, long.end), fault));
        }
        faults.sort_by_key(|(at, _, _)| *at);
        alone(&mut faults);
        Self {
            seed,
            nodes,
            trouble,
            faults,
            more,
            skews,
            ring_events: random.pick(&[16, 64, 1024]),
        }
    }

    /// The nodes' `airwave.toml`.
    pub fn config(&self, broker: &str) -> String {
        let mut text = format!(
            "[broker]\nurl = \"{broker}\"\n\n[limits]\nring_events = {}\nheartbeat = \"1s\"\nidle = \"5s\"\n",
            self.ring_events
        );
        for rule in self.rules() {
            let Rule {
                channel,
                keeps,
                replay,
                age,
            } = rule;
            text += &format!(
                "\n[[channels]]\nmatch = \"{channel}\"\ntransport = [\"sse\", \"websocket\"]\nsend = \"publish\"\n\
                 history = {{ events = {keeps}, age = \"{age}s\" }}\nreplay = \"{replay}\"\n"
            );
        }
        text
    }

    /// The channels.
    pub fn rules(&self) -> impl Iterator<Item = &'static Rule> {
        let aged = self.more.clocks.then_some(&AGED);
        let busy = self.more.busy.then_some(&BUSY);
        RULES.iter().chain(aged).chain(busy)
    }
}

/// By how many milliseconds the clock of a server differs that was started again: ahead, behind,
/// and right again.
const SERVER_SKEWS: [i64; 7] = [20, -20, 3000, -3000, 120_000, -600_000, 0];

/// While the broker comes back with another clock, and a moment before and after, nothing else goes
/// wrong: of an event that one node alone had heard of nothing is promised if the clock goes back
/// behind it at the same time.
fn alone(faults: &mut Vec<(Duration, Duration, Fault)>) {
    let (before, after) = (Duration::from_millis(500), Duration::from_secs(2));
    let quiet: Vec<(Duration, Duration)> = faults
        .iter()
        .filter(|(_, _, fault)| matches!(fault, Fault::KillBrokerSkewed(_)))
        .map(|(at, long, _)| (at.saturating_sub(before), *at + *long + after))
        .collect();
    faults.retain(|(at, long, fault)| {
        let over = *at + *long;
        matches!(fault, Fault::KillBrokerSkewed(_)) || quiet.iter().all(|(from, to)| over < *from || at > to)
    });
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "seed {}: {} nodes, rings of {} events, {:?} of trouble, nodes' clocks differ by {:?} ms",
            self.seed, self.nodes, self.ring_events, self.trouble, self.skews
        )?;
        self.faults
            .iter()
            .try_for_each(|(at, long, fault)| writeln!(f, "  {:>7.3} s  {fault:?} for {long:?}", at.as_secs_f64()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_seed_is_the_same_plan_each_time_and_another_one_is_not() {
        let plan = |seed| Plan::new(seed, 3, Duration::from_secs(20), More::ALL).to_string();
        assert_eq!(plan(1), plan(1));
        assert_ne!(plan(1), plan(2));
    }

    #[test]
    fn every_kind_of_fault_comes_once_in_two_seconds_each() {
        for (more, kinds_in_all) in [(More::NONE, 8), (More::ALL, 11)] {
            for seed in 0..50 {
                let plan = Plan::new(seed, 3, Duration::from_secs(2 * kinds_in_all), more);
                let kind = |(_, _, fault): &(Duration, Duration, Fault)| std::mem::discriminant(fault);
                let kinds: std::collections::HashSet<_> = plan.faults.iter().map(kind).collect();
                assert_eq!(plan.faults.len(), kinds.len(), "{plan}");
                // Beside a skewed clock nothing else goes wrong.
                assert!(more.clocks || kinds.len() as u64 == kinds_in_all, "{plan}");
            }
        }
    }

    #[test]
    fn while_a_broker_comes_back_with_another_clock_nothing_else_goes_wrong() {
        for seed in 0..50 {
            let plan = Plan::new(seed, 3, Duration::from_secs(60), More::ALL);
            let is_skewed = |fault: &Fault| matches!(fault, Fault::KillBrokerSkewed(_));
            assert!(plan.faults.iter().any(|(_, _, fault)| is_skewed(fault)), "{plan}");
            for (at, long, _) in plan.faults.iter().filter(|(_, _, fault)| is_skewed(fault)) {
                let others = plan.faults.iter().filter(|(_, _, fault)| !is_skewed(fault));
                for (other, other_long, _) in others {
                    assert!(*other + *other_long < *at || *other > *at + *long, "{plan}");
                }
            }
        }
    }

    #[test]
    fn what_may_go_wrong_is_read_and_written() {
        for text in ["none", "clocks", "clocks,refusals", "clocks,busy,refusals"] {
            assert_eq!(text.parse::<More>().unwrap().to_string(), text);
        }
        assert_eq!("all".parse(), Ok(More::ALL));
        assert!("more".parse::<More>().is_err());
    }
}
