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
mod data;
pub mod history;
mod link;
mod listener;
mod plan;
mod publisher;
mod random;
mod run;
mod servers;
mod shared;
mod trouble;
pub mod world;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

pub use link::LinkState;
pub use plan::{More, Plan};
pub use run::{ChaosRun, MEMORY_BOUND_KIB, RunSummary};
pub use servers::{BrokerKind, Folder, Loses};

use checker::check;
use data::body_of;
use history::{Channel, History, Listener, Outcome, Told};
use listener::Client;
use plan::{AGED, LISTENERS, Manner, PUBLISHERS, Pen, RULES};
use publisher::ChaosPublisher;
use random::Random;
use shared::{Shared, lock};
use trouble::{trouble, visitors};
use world::{HANG, World};

/// One run of `plan` with this broker. `airwave`: the program.
///
/// # Errors
/// The processes cannot be started at all; the text says what to do.
pub async fn run(kind: BrokerKind, plan: Plan, airwave: &Path) -> Result<ChaosRun, String> {
    let world = World::start_skewed(kind, &plan.skews, airwave, |url| plan.config(url)).await?;
    let shared = Arc::new(Shared::of(&plan, world));
    // Ends with this function.
    let mut people = people(&plan, &shared);
    trouble(&plan, &shared).await;
    shared.trouble.store(false, Ordering::SeqCst);
    let healed = heal(&plan, &shared).await;
    let channels = channels(&plan, &shared).await;
    let ended = shared.clock.now();
    people.shutdown().await;
    let history = History {
        listeners: listeners(&shared),
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
    Ok(ChaosRun {
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

/// Listeners and publishers, at work.
fn people(plan: &Plan, shared: &Arc<Shared>) -> JoinSet<()> {
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
        let (publisher, shared) = (ChaosPublisher::new(name, pen, random, shared.clone()), shared.clone());
        people.spawn(async move {
            publisher.live().await;
            shared.publishing.fetch_sub(1, Ordering::SeqCst);
        });
    }

    if plan.more.clocks {
        let (random, visited) = (Random::new(plan.seed, 400), shared.clone());
        people.spawn(async move { visitors(random, &visited).await });
        let aged = ChaosPublisher::new("age", Pen::Sure, Random::new(plan.seed, 401), shared.clone());
        let shared = shared.clone();
        shared.publishing.fetch_add(1, Ordering::SeqCst);
        people.spawn(async move {
            aged.write(AGED.channel).await;
            shared.publishing.fetch_sub(1, Ordering::SeqCst);
        });
    }
    people
}

/// Waits until everything has healed: how long it took until all nodes were ready, and then until
/// everybody had the last events.
async fn heal(plan: &Plan, shared: &Arc<Shared>) -> (Duration, Duration) {
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
    let mut last = ChaosPublisher::new("last", Pen::Sure, Random::new(plan.seed, 300), shared.clone());
    for rule in &RULES {
        last.publish(rule.channel, 1, true).await;
    }
    let since = Instant::now();
    while !missing(shared).is_empty() && since.elapsed() < HANG {
        sleep(Duration::from_millis(20)).await;
    }
    healed.1 = since.elapsed();
    for who in missing(shared) {
        shared.wrong(format!("{who} has not got the last events within {HANG:?}"));
    }
    healed
}

/// What each channel holds at the end, and by which rule.
async fn channels(plan: &Plan, shared: &Shared) -> BTreeMap<String, Channel> {
    let mut channels = BTreeMap::new();
    for rule in plan.rules() {
        let held = held(shared, rule.channel).await;
        let channel = Channel {
            keeps: rule.keeps,
            skips: false,
            age: (rule.age < 600).then_some(rule.age * 1_000_000),
            replays: rule.replay == "all",
            held,
        };
        channels.insert(rule.channel.to_owned(), channel);
    }
    channels
}

/// What each listener was told.
fn listeners(shared: &Shared) -> Vec<Listener> {
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
    listeners
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
