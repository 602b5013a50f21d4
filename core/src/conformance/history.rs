//! These cases check which events history keeps, and for how long.

use std::time::Duration;

use tokio::time::sleep;

use super::calls::{channel, follow, next, patiently, replay, take, text, text_of};
use super::chain::Chain;
use super::fixture::{FEW_BYTES, Fixture, Kept, TEN, at_most};

/// The history holds what the rule promises, and not much more.
pub async fn history_is_trimmed_by_count(fixture: &dyn Fixture) {
    let (node, channel) = (fixture.node().await, channel(Kept::Ten));
    let mut chain = Chain::base(&*node, &channel).await;
    for n in 0..2 * at_most(TEN) {
        chain.publish(&*node, &channel, text(n)).await;
        if n % 50 == 0 || n < 2 * TEN {
            let left = replay(&*node, &channel, None, 10_000).await;
            chain.allows(None, 10_000, TEN, &left);
            assert!(
                left.events.len() >= TEN.min(n + 1),
                "less than promised: {}",
                left.events.len()
            );
            assert!(
                left.events.len() <= at_most(TEN),
                "{} events are kept instead of {TEN}",
                left.events.len()
            );
        }
    }
}

/// The history holds the events that fit the rule's bytes, and not much more.
pub async fn history_is_trimmed_by_bytes(fixture: &dyn Fixture) {
    let (node, channel) = (fixture.node().await, channel(Kept::FewBytes));
    let mut chain = Chain::base(&*node, &channel).await;
    let payload = "x".repeat(2000);
    let fitting = FEW_BYTES / text(&payload).message.weight();
    for n in 0..200 {
        chain.publish(&*node, &channel, text(&payload)).await;
        if n % 20 == 0 || n < 2 * fitting {
            let left = replay(&*node, &channel, None, 10_000).await;
            chain.allows(None, 10_000, fitting, &left);
            let bytes: usize = left.events.iter().map(|event| event.message.weight()).sum();
            assert!(
                left.events.len() >= fitting.min(n + 1),
                "less than promised: {}",
                left.events.len()
            );
            assert!(bytes <= 4 * FEW_BYTES, "{bytes} bytes are kept instead of {FEW_BYTES}");
        }
    }
}

/// Old events expire even without a publish, and the chain stays.
pub async fn history_is_trimmed_by_age(fixture: &dyn Fixture) {
    let (node, channel) = (fixture.node().await, channel(Kept::Briefly));
    let mut feed = follow(&*node, &channel).await;
    let mut chain = Chain(vec![feed.head]);
    chain.publish_many(&*node, &channel, 3).await;
    patiently("the end of old events", async {
        while !replay(&*node, &channel, None, 10).await.events.is_empty() {
            sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    for after in chain.0.clone() {
        let replayed = replay(&*node, &channel, Some(after), 10).await;
        chain.allows(Some(after), 10, 0, &replayed);
        assert_eq!(replayed.complete, after == chain.head());
    }
    chain.publish(&*node, &channel, text("late")).await;
    chain.names_previous_of(&take(&mut feed, 4).await);
    let after = chain.0[3];
    chain.allows(Some(after), 10, 0, &replay(&*node, &channel, Some(after), 10).await);
}

/// One clock judges how old an event is. It is not the clock of a node: neither of the node that
/// published nor of the node that reads.
pub async fn nodes_with_different_clocks_see_the_same_history(fixture: &dyn Fixture) {
    const MINUTES: i64 = 120_000_000;
    const MOMENT: i64 = 20_000;
    // The events are far younger than the history's age, if the difference of the clocks is left
    // out.
    let nodes = [
        fixture.node().await,
        fixture.node_with_clock(-MINUTES).await,
        fixture.node_with_clock(MINUTES).await,
    ];
    let young = channel(Kept::Minute);
    let mut chain = Chain::base(&*nodes[0], &young).await;
    for n in 0..12 {
        chain.publish(&*nodes[n % 3], &young, text(n)).await;
    }
    for node in &nodes {
        chain.allows(None, 100, 12, &replay(&**node, &young, None, 100).await);
        chain.allows(None, 5, 12, &replay(&**node, &young, None, 5).await);
        for after in &chain.0 {
            chain.allows(Some(*after), 100, 12, &replay(&**node, &young, Some(*after), 100).await);
        }
    }
    // Some events are always just about to be too old.
    let nodes = [fixture.node_with_clock(-MOMENT).await, fixture.node_with_clock(MOMENT).await];
    let reader = fixture.node().await;
    let old = channel(Kept::Briefly);
    let mut chain = Chain::base(&*reader, &old).await;
    let mut trimmed = 0;
    while trimmed < 20 {
        for node in nodes.iter().chain(&nodes) {
            chain.publish(&**node, &old, text("said")).await;
            sleep(Duration::from_millis(5)).await;
        }
        for node in [&reader, &nodes[0]] {
            let page = replay(&**node, &old, None, 10_000).await;
            chain.allows(None, 10_000, 0, &page);
            assert!(!page.events.is_empty(), "the newest is not too old");
            trimmed += usize::from(!page.complete);
            let after = chain.0[chain.0.len() / 2];
            chain.allows(Some(after), 10_000, 0, &replay(&**node, &old, Some(after), 10_000).await);
        }
    }
}

/// Feeds show every event and the head moves. A replay says that it cannot show the events.
pub async fn a_channel_without_history_keeps_its_chain(fixture: &dyn Fixture) {
    let nodes = [fixture.node().await, fixture.node().await];
    let channel = channel(Kept::None);
    let mut feed = follow(&*nodes[1], &channel).await;
    let mut chain = Chain(vec![feed.head]);
    for n in 0..2 * at_most(0) {
        chain.publish(&*nodes[0], &channel, text(n)).await;
        let event = next(&mut feed).await;
        assert_eq!((event.position, text_of(&event)), (chain.head(), n.to_string().as_str()));
        chain.names_previous_of(&[event]);
        if n < 5 || n % 100 == 0 {
            chain.replays(&*nodes[1], &channel, 0).await;
        }
    }
    let left = replay(&*nodes[0], &channel, None, 10_000).await;
    assert!(
        left.events.len() <= at_most(0),
        "{} events are kept instead of none",
        left.events.len()
    );
    assert_eq!(follow(&*nodes[0], &channel).await.head, chain.head());
}
