//! What a seed stands for: how the nodes are set up, and what goes wrong when.

use std::fmt;
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
}

/// More than any run publishes.
const ALL: usize = 20_000;

/// The channels. One forgets soon, so that `history-expired` is seen, too.
pub const RULES: [Rule; 3] = [
    Rule {
        channel: "chaos/a",
        keeps: ALL,
        replay: "none",
    },
    Rule {
        channel: "chaos/b",
        keeps: ALL,
        replay: "all",
    },
    Rule {
        channel: "chaos/brief",
        keeps: 25,
        replay: "none",
    },
];

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

/// How a publisher goes about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pen {
    /// `POST /publish` with an idempotency key, at any node, again until it knows.
    Sure,
    /// The same with arrays of several.
    Several,
    /// `POST /publish` once and without a key.
    Once,
    /// A client's message: `POST /channels/…` or a `send` frame, with an idempotency key, again until it knows.
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
    /// Nothing comes through between node and broker, and nobody is told. Later it does.
    BlackHole(Lines),
    /// What passes between node and broker takes so many milliseconds more each way.
    Delay(Lines, u64),
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
    ring_events: u64,
}

impl Plan {
    /// What this seed stands for, where things go wrong for so long.
    pub fn new(seed: u64, nodes: usize, trouble: Duration) -> Self {
        let random = &mut Random::new(seed, 1);
        let end = trouble.as_millis() as u64;
        let mut faults = Vec::new();
        let mut kinds: Vec<u8> = Vec::new();
        // One about every 2 s, and each kind once before any comes a second time.
        let count = (end / 2000).max(1);
        for number in 0..count {
            if kinds.is_empty() {
                kinds = (0..8).collect();
                random.shuffle(&mut kinds);
            }
            let node = random.index(nodes);
            let only = random.chance(0.4).then(|| random.index(6));
            let lines = Lines { node, only };
            let (fault, longest) = match kinds.pop().unwrap_or_default() {
                0 => (Fault::KillNode(node), 2000),
                1 => (Fault::DrainNode(node), 1000),
                2 => (Fault::PauseNode(node), 4000),
                3 => (Fault::KillBroker, 3000),
                4 => (Fault::PauseBroker, 4000),
                5 => (Fault::Cut(lines), 4000),
                6 => (Fault::BlackHole(lines), 6000),
                _ => (Fault::Delay(lines, 20 + random.below(400)), 5000),
            };
            let at = random.millis(end * number / count, end * (number + 1) / count);
            faults.push((at, random.millis(100, longest), fault));
        }
        faults.sort_by_key(|(at, _, _)| *at);
        Self {
            seed,
            nodes,
            trouble,
            faults,
            ring_events: random.pick(&[16, 64, 1024]),
        }
    }

    /// The nodes' `airwave.toml`.
    pub fn config(&self, broker: &str) -> String {
        let mut text = format!(
            "[broker]\nurl = \"{broker}\"\n\n[limits]\nring_events = {}\nheartbeat = \"1s\"\nidle = \"5s\"\n",
            self.ring_events
        );
        for Rule { channel, keeps, replay } in RULES {
            text += &format!(
                "\n[[channels]]\nmatch = \"{channel}\"\ntransport = [\"sse\", \"websocket\"]\nsend = \"publish\"\n\
                 history = {{ events = {keeps}, age = \"1h\" }}\nreplay = \"{replay}\"\n"
            );
        }
        text
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "seed {}: {} nodes, rings of {} events, {:?} of trouble",
            self.seed, self.nodes, self.ring_events, self.trouble
        )?;
        self.faults
            .iter()
            .try_for_each(|(at, long, fault)| writeln!(f, "  {:>7.3} s  {fault:?} for {long:?}", at.as_secs_f64()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_the_same_plan_each_time_and_another_one_is_not() {
        let plan = |seed| Plan::new(seed, 3, Duration::from_secs(20)).to_string();
        assert_eq!(plan(1), plan(1));
        assert_ne!(plan(1), plan(2));
    }

    #[test]
    fn in_sixteen_seconds_everything_goes_wrong_once() {
        for seed in 0..50 {
            let plan = Plan::new(seed, 3, Duration::from_secs(16));
            let kinds: std::collections::HashSet<_> = plan
                .faults
                .iter()
                .map(|(_, _, fault)| std::mem::discriminant(fault))
                .collect();
            assert_eq!((plan.faults.len(), kinds.len()), (8, 8), "{plan}");
        }
    }
}
