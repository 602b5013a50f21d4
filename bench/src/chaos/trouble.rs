//! Everything that goes wrong.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::history::Loss;
use super::link::LinkState;
use super::listener::Client;
use super::plan::{AGED, BUSY, Fault, Lines, Pen, Plan, RULES};
use super::publisher::ChaosPublisher;
use super::random::Random;
use super::servers::Loses;
use super::shared::{Shared, lock};
use super::world::World;

/// Everything that goes wrong, until all of it is over.
pub(super) async fn trouble(plan: &Plan, shared: &Arc<Shared>) {
    let begin = Instant::now();
    let mut under_way = JoinSet::new();
    for (at, long, fault) in plan.faults.clone() {
        sleep(at.saturating_sub(begin.elapsed())).await;
        let shared = shared.clone();
        under_way.spawn(async move { happen(fault, long, &shared).await });
    }
    sleep(plan.trouble.saturating_sub(begin.elapsed())).await;
    while under_way.join_next().await.is_some() {}
    for node in 0..plan.nodes {
        shared.world.set_line(node, LinkState::Open);
    }
}

/// One fault, until it is over.
async fn happen(fault: Fault, long: Duration, shared: &Arc<Shared>) {
    let world = &shared.world;
    // That takes seconds; sometimes the one that is away shall be back before, and
    // sometimes not.
    let until_another_takes_over = |long| if world.kind.fails_over() { 3 * long } else { long };
    match fault {
        Fault::KillNode(node) => world.kill_node(node, long),
        Fault::DrainNode(node) => world.drain_node(node, long),
        Fault::PauseNode(node) => world.pause_node(node, long),
        Fault::KillBroker => kill_broker(shared, until_another_takes_over(long), None).await,
        Fault::KillBrokerSkewed(skew) => kill_broker(shared, until_another_takes_over(long), Some(skew)).await,
        Fault::Busy(node, millis) => busy(shared, node, Duration::from_millis(millis), long).await,
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
        Fault::Cut(lines) => spoil(world, lines, LinkState::Cut, long).await,
        Fault::BlackHole(lines) => spoil(world, lines, LinkState::Held, long).await,
        Fault::Delay(lines, millis) => spoil(world, lines, LinkState::Slow(Duration::from_millis(millis)), long).await,
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
pub(super) async fn visitors(mut random: Random, shared: &Arc<Shared>) {
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
    world.set_line(node, LinkState::Slow(delay));
    let number = shared.named.fetch_add(1, Ordering::SeqCst) as u64;
    let mut random = Random::new(shared.seed, 600 + number);
    let name: &'static str = Box::leak(format!("bulk{number}").into_boxed_str());
    let mut publisher = ChaosPublisher::new(name, Pen::Several, Random::new(shared.seed, 700 + number), shared.clone());
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
    world.set_line(node, LinkState::Open);
}

async fn spoil(world: &World, lines: Lines, condition: LinkState, long: Duration) {
    world.set_lines(lines, condition);
    sleep(long).await;
    world.set_lines(lines, LinkState::Open);
}
