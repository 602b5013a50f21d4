use std::time::Duration;

use airwave_bench::chaos::checker::{Breach, Promise, check};
use airwave_bench::chaos::history::{History, Outcome, Told};
use airwave_bench::chaos::{self, BrokerKind, ChaosRun, Loses, More, Plan};

use crate::{airwave, is_here};

/// Long enough for each kind of fault once.
const TROUBLE: Duration = Duration::from_secs(22);

fn short(kind: BrokerKind, seed: u64) {
    if !is_here(kind) {
        return;
    }
    crate::run(async {
        let run = chaos::run(kind, Plan::new(seed, 3, TROUBLE, More::ALL), airwave())
            .await
            .unwrap();
        println!("{run}");
        assert!(run.is_good(), "{}", run.report(true));
        something_happened(&run);
        every_broken_history_is_noticed(&run.history, kind.loses() == Loses::Newest);
    });
}

#[test]
fn redis_that_stores() {
    short(BrokerKind::Redis, 1);
}

#[test]
fn redis_that_forgets() {
    short(BrokerKind::RedisVolatile, 2);
}

#[test]
fn redis_whose_replica_takes_over() {
    short(BrokerKind::RedisSentinel, 3);
}

#[test]
fn a_cluster_of_redis() {
    short(BrokerKind::RedisCluster, 4);
}

#[test]
fn nats_alone() {
    short(BrokerKind::Nats, 5);
}

#[test]
fn three_of_nats() {
    short(BrokerKind::NatsCluster, 6);
}

/// A run in which nothing happens keeps every promise. Far below what even a busy machine gets
/// through.
fn something_happened(run: &ChaosRun) {
    let seen = run.seen();
    assert!(seen.acknowledged > 20 && seen.events > 60 && seen.resumed > 8, "{seen:?}");
    assert!(seen.hows.len() >= 3, "{seen:?}");
    assert!(!seen.gaps.is_empty() || run.kind.loses() != Loses::Everything, "{seen:?}");
}

/// The checker, tried on this very run with one thing wrong. `forks`: the broker may lose some of
/// the newest at any time, so the checker cannot tell from outside of some events whether it did.
fn every_broken_history_is_noticed(good: &History, forks: bool) {
    let listener = good.listeners.iter().position(|listener| listener.name == "ben").unwrap();
    let told = &good.listeners[listener].told;
    let held = &good.channels[&good.listeners[listener].channel].held;
    let is_event = |at: &usize| matches!(told[*at].1, Told::Event { position, .. } if held.contains_key(&position));
    let pairs: Vec<usize> = (0..told.len() - 1).filter(|at| is_event(at) && is_event(&(at + 1))).collect();
    // Somewhere in the middle.
    let at = pairs[pairs.len() / 2];
    let broken = |change: &dyn Fn(&mut History)| -> Vec<Promise> {
        let mut history = good.clone();
        change(&mut history);
        check(&history).into_iter().map(|Breach { promise, .. }| promise).collect()
    };
    assert_eq!(broken(&|_| {}), []);
    let dropped = broken(&|history| drop(history.listeners[listener].told.remove(at)));
    assert_eq!(dropped, [Promise::NoSilentGap]);
    let duplicated = broken(&|history| history.listeners[listener].told.insert(at, told[at].clone()));
    assert_eq!(duplicated, [Promise::NoDuplicates]);
    let reordered = broken(&|history| history.listeners[listener].told.swap(at, at + 1));
    assert_eq!(reordered.len(), 1, "{reordered:?}");
    // An event that was acknowledged, and is gone in the end.
    let channel = &good.listeners[listener].channel;
    let last = *held.last_key_value().unwrap().0;
    let lost = broken(&|history| {
        history.channels.get_mut(channel).unwrap().held.remove(&last);
    });
    let noticed = if forks { Promise::CaughtUp } else { Promise::Acknowledged };
    assert!(lost.contains(&noticed), "{lost:?}");
    // One that was refused, and came all the same.
    let refused = broken(&|history| {
        let body = history.channels[channel].held[&last].clone();
        let publication = history
            .publications
            .iter_mut()
            .find(|publication| publication.body == body)
            .unwrap();
        publication.outcome = Outcome::Refused;
    });
    assert!(refused.contains(&Promise::Acknowledged), "{refused:?}");
    let false_gap = broken(&|history| {
        let Told::Event { position, .. } = told[at].1 else { return };
        let gap = Told::Gap {
            after: Some(position),
            cursor: position + 1,
            reason: "broker-lost-data".into(),
        };
        history.listeners[listener].told.insert(at + 1, (told[at].0, gap));
    });
    let noticed: &[Promise] = if forks { &[] } else { &[Promise::NoFalseGap] };
    assert_eq!(false_gap, noticed);
}
