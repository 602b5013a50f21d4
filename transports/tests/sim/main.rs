//! The real hub, SSE and WebSocket code on a simulated network, by seed.
//!
//! Two nodes share one memory broker; six listeners come and go over SSE and WebSocket, to either
//! node, each time with the cursor they have; two publishers try until they are answered. A seed
//! decides what goes wrong: connections that stall or vanish, nodes that crash, drain and start
//! again, feeds that lag, end or skip, a broker that is away, refuses writes, fails over or starts
//! with nothing, nodes whose clocks differ, a node that opens a busy channel over a slow line. Then
//! everything is put right, and a [`checker`] that knows what really happened judges by the
//! promises P1 to P8.
//!
//! `cargo test -p airwave-transports --test sim` tries a fixed list of seeds;
//! `AIRWAVE_SIM_SEEDS=100..400` tries those instead. A seed that fails says how to repeat it; with
//! `AIRWAVE_SIM_STORY=1` it is told from beginning to end.
//!
//! **What a seed does not decide**: positions are the real clock's, so they differ from run to run,
//! but not in their order, and nothing else does.
#![allow(clippy::unwrap_used)]

mod backbone;
mod checker;
mod client;
mod history;
mod plan;
mod random;
mod world;

use std::collections::BTreeSet;

use backbone::Lie;
use checker::{Breach, Promise, check};
use history::{History, Told};
use world::Run;

const SEEDS: std::ops::Range<u64> = 0..30;

fn seeds_asked_for() -> Option<std::ops::Range<u64>> {
    let asked = std::env::var("AIRWAVE_SIM_SEEDS").ok()?;
    let range = asked
        .split_once("..")
        .and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    Some(range.unwrap_or_else(|| panic!("AIRWAVE_SIM_SEEDS is a range such as 100..200, not '{asked}'")))
}

/// What the runs had in them, for a simulation in which nothing happens keeps every promise.
#[derive(Debug, Default)]
struct Seen {
    events: usize,
    resumed: usize,
    hows: BTreeSet<&'static str>,
    reasons: BTreeSet<String>,
}

impl Seen {
    fn add(&mut self, history: &History) {
        let mut how_last = "";
        for (_, told) in history.listeners.iter().flat_map(|listener| &listener.told) {
            match told {
                Told::Asked { how, .. } => how_last = how,
                Told::Confirmed { resumed, .. } => {
                    if *resumed {
                        self.resumed += 1;
                        self.hows.insert(how_last);
                    }
                }
                Told::Event { .. } => self.events += 1,
                Told::Gap { reason, .. } => drop(self.reasons.insert(reason.clone())),
            }
        }
    }
}

fn report(run: &Run, breaches: &[Breach]) -> String {
    let mut text = format!("{}after {:?}:\n", run.plan, run.took);
    for breach in breaches {
        text += &format!("  {breach}\n");
    }
    for wrong in &run.wrong {
        text += &format!("  {wrong}\n");
    }
    if std::env::var("AIRWAVE_SIM_STORY").is_ok() {
        text += &run.history.to_string();
    }
    let seed = run.plan.seed;
    let next = seed + 1;
    text + &format!(
        "again, with its story: AIRWAVE_SIM_STORY=1 AIRWAVE_SIM_SEEDS={seed}..{next} cargo test -p airwave-transports --test sim seeds\n"
    )
}

#[test]
fn promises_are_kept_on_all_seeds() {
    let asked = seeds_asked_for();
    let (mut seen, mut failed) = (Seen::default(), Vec::new());
    for seed in asked.clone().unwrap_or(SEEDS) {
        let run = world::run(seed, None);
        let breaches = check(&run.history);
        seen.add(&run.history);
        if !breaches.is_empty() || !run.wrong.is_empty() {
            println!("{}", report(&run, &breaches));
            failed.push(seed);
        }
    }
    println!("{seen:?}");
    assert!(failed.is_empty(), "seeds {failed:?} fail; see above");
    if asked.is_none() {
        assert!(seen.events > 5000 && seen.resumed > 500, "{seen:?}");
        assert_eq!(seen.hows.len(), 4, "{seen:?}");
        // No client makes up a cursor, and a lost position of a clock that is ahead was given: so
        // none is unknown.
        assert_eq!(
            seen.reasons.iter().map(String::as_str).collect::<Vec<_>>(),
            ["broker-lost-data", "history-expired", "too-slow"],
            "each of the losses that can happen, did"
        );
    }
}

/// What a seed gives is the same each time, so that a failure can be looked into.
#[test]
fn a_seed_can_be_repeated() {
    let story = |seed| {
        let history = world::run(seed, None).history;
        let places: BTreeSet<u64> = history
            .channels
            .values()
            .flat_map(|truth| truth.places.keys().copied())
            .collect();
        let mut story = history.to_string();
        for (nth, position) in places.iter().enumerate() {
            story = story.replace(&position.to_string(), &format!("#{nth}"));
        }
        story
    };
    for seed in [1, 4] {
        let (first, second) = (story(seed), story(seed));
        let differs = first.lines().zip(second.lines()).find(|(one, other)| one != other);
        assert_eq!(differs, None, "seed {seed}");
        assert_eq!(first.len(), second.len(), "seed {seed}");
    }
}

/// A broker that breaks the contract makes the nodes break promises, and the checker sees it, on
/// one of the first seeds.
#[test]
fn a_broker_that_lies_is_noticed() {
    use Promise::*;
    for (lie, promises) in [
        (Lie::AlwaysComplete, &[NoSilentGap, SubscribeBarrier, NoDuplicates][..]),
        (Lie::ReplaysFromALaggingReplica, &[NoFalseGap]),
        (Lie::HidesHistory, &[NoFalseGap]),
        (Lie::HidesWhatFeedsSkip, &[NoSilentGap]),
        (Lie::ForgetsKeys, &[Idempotent]),
        (Lie::AcknowledgesNothing, &[Acknowledged]),
        (Lie::HidesWhatIsBehind, &[NoSilentGap, SubscribeBarrier]),
        (Lie::GluesPages, &[NoSilentGap, SubscribeBarrier]),
        (Lie::ShowsWhatItRefuses, &[SameEverywhere]),
    ] {
        // Most are seen on the first seed. One that needs trimming between two reads is rare.
        let noticed = (0..300).find(|seed| {
            let breaches = check(&world::run(*seed, Some(lie)).history);
            breaches.iter().any(|breach| promises.contains(&breach.promise))
        });
        println!("{lie:?}: {noticed:?}");
        assert!(noticed.is_some(), "{lie:?} was not noticed");
    }
}

/// Nodes do not believe a page whose events are no chain up to its head: they read it again, and
/// no listener misses what it leaves out.
#[test]
fn a_page_with_a_hole_is_not_believed() {
    for (lie, seed) in [Lie::ReplaysWithAHole, Lie::EndsPagesEarly]
        .into_iter()
        .flat_map(|lie| (0..20).map(move |seed| (lie, seed)))
    {
        let breaches = check(&world::run(seed, Some(lie)).history);
        if let Some(silent) = breaches.iter().find(|breach| breach.promise == Promise::NoSilentGap) {
            panic!("{lie:?}, seed {seed}: {silent}");
        }
    }
}
