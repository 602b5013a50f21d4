//! This module tests what feeds show, and what a mere request leaves behind.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::sleep;

use super::calls::{channel, follow, joined, next, patiently, publish, replay, take, take_until, text};
use super::chain::{Chain, assert_same};
use super::fixture::{Fixture, Kept};
use crate::broker::{Append, PageLimit};
use crate::event::{Data, EventName, Key, Message, Position};

/// A client publishes as fast as it can while the test opens feeds. No event falls between a feed's
/// head and the first event that the feed shows.
pub async fn a_feed_shows_every_event_after_its_head(fixture: &dyn Fixture) {
    const EVENTS: usize = 300;
    let nodes = [fixture.node().await, fixture.node().await];
    let channel = channel(Kept::Ample);
    let mut chain = Chain::base(&*nodes[0], &channel).await;
    let publisher = tokio::spawn({
        let (node, channel) = (nodes[0].clone(), channel.clone());
        async move {
            for n in 0..EVENTS {
                chain.publish(&*node, &channel, text(n)).await;
                tokio::task::yield_now().await;
            }
            chain
        }
    });
    let mut feeds = Vec::new();
    while feeds.len() < 20 || (!publisher.is_finished() && feeds.len() < 100) {
        feeds.push(follow(&*nodes[feeds.len() % 2], &channel).await);
        tokio::task::yield_now().await;
    }
    let mut chain = joined(publisher.await);
    let last = chain.publish(&*nodes[1], &channel, text("last")).await;
    for mut feed in feeds {
        let shown: Vec<Position> = take_until(&mut feed, last).await.iter().map(|event| event.position).collect();
        let head = chain.index_of(feed.head);
        let after_head = head.expect("a feed's head is a position of its channel") + 1;
        assert_eq!(shown, chain.0[after_head..], "not what comes after the head {}", feed.head);
    }
}

/// A client publishes while the test opens channels. No event falls between the page and the feed.
pub async fn an_opened_channel_has_every_event_in_its_page_or_its_feed(fixture: &dyn Fixture) {
    const EVENTS: usize = 300;
    const PAGE: usize = 5;
    let nodes = [fixture.node().await, fixture.node().await];
    let channel = channel(Kept::Ample);
    let mut chain = Chain::base(&*nodes[0], &channel).await;
    let publisher = tokio::spawn({
        let (node, channel) = (nodes[0].clone(), channel.clone());
        async move {
            for n in 0..EVENTS {
                chain.publish(&*node, &channel, text(n)).await;
                tokio::task::yield_now().await;
            }
            chain
        }
    });
    let mut opened = Vec::new();
    while opened.len() < 20 || (!publisher.is_finished() && opened.len() < 100) {
        let node = &nodes[opened.len() % 2];
        let open = patiently("open", node.open(&channel, PageLimit::events(PAGE))).await;
        opened.push(open.unwrap_or_else(|error| panic!("open: {error}")));
        tokio::task::yield_now().await;
    }
    let mut chain = joined(publisher.await);
    let last = chain.publish(&*nodes[1], &channel, text("last")).await;
    for (mut feed, page) in opened {
        assert!(feed.head <= page.head, "the page was read before the feed was open");
        let of_page: Vec<Position> = page.events.iter().map(|event| event.position).collect();
        let head = chain.index_of(page.head).expect("a page's head is a position of its channel");
        let newest = &chain.0[1..=head];
        assert_eq!(of_page, newest[newest.len().saturating_sub(PAGE)..], "not the newest events");
        let shown = take_until(&mut feed, last).await.into_iter().map(|event| event.position);
        let shown: Vec<Position> = shown.filter(|position| *position > page.head).collect();
        assert_eq!(
            shown,
            chain.0[head + 1..],
            "not what comes after the page's head {}",
            page.head
        );
    }
}

/// An unread feed delays neither publishers nor the feeds beside it. It still has all events that
/// its caller did not read.
pub async fn a_feed_without_a_reader_delays_no_other(fixture: &dyn Fixture) {
    let (node, channel) = (fixture.node().await, channel(Kept::Ample));
    let mut unread = follow(&*node, &channel).await;
    let mut read = follow(&*node, &channel).await;
    let mut chain = Chain(vec![unread.head]);
    for n in 0..1000 {
        let position = chain.publish(&*node, &channel, text(n)).await;
        assert_eq!(next(&mut read).await.position, position);
    }
    let shown: Vec<Position> = take(&mut unread, 1000).await.iter().map(|event| event.position).collect();
    assert_eq!(shown, chain.0[1..]);
}

/// Dropping a feed ends that feed alone. Another feed of the same channel continues, and a later
/// one works. Where the backbone counts subscriptions, none is left.
pub async fn dropping_a_feed_unsubscribes(fixture: &dyn Fixture) {
    let (node, channel) = (fixture.node().await, channel(Kept::Ample));
    let mut stays = follow(&*node, &channel).await;
    let mut chain = Chain(vec![stays.head]);
    for n in 0..20 {
        drop(follow(&*node, &channel).await);
        let mut dropped_soon = follow(&*node, &channel).await;
        let position = chain.publish(&*node, &channel, text(n)).await;
        assert_eq!(next(&mut dropped_soon).await.position, position);
        assert_eq!(
            next(&mut stays).await.position,
            position,
            "a feed fell silent when another one was dropped"
        );
    }
    drop(stays);
    chain.publish(&*node, &channel, text("unheard")).await;
    patiently("the end of all subscriptions", async {
        while fixture.subscriptions(&channel).await.is_some_and(|count| count > 0) {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let mut again = follow(&*node, &channel).await;
    assert_eq!(again.head, chain.head());
    let position = chain.publish(&*node, &channel, text("again")).await;
    assert_eq!(next(&mut again).await.position, position);
}

/// The broker stores and shows an event in one step, on every node.
pub async fn an_event_that_a_feed_has_shown_can_be_replayed(fixture: &dyn Fixture) {
    const EVENTS: usize = 200;
    let nodes = [fixture.node().await, fixture.node().await];
    let channel = channel(Kept::Ample);
    let mut feed = follow(&*nodes[1], &channel).await;
    let publisher = tokio::spawn({
        let (node, channel) = (nodes[0].clone(), channel.clone());
        async move {
            for n in 0..EVENTS {
                publish(&*node, &channel, text(n)).await;
                tokio::task::yield_now().await;
            }
        }
    });
    let mut before = feed.head;
    for n in 0..EVENTS {
        let event = next(&mut feed).await;
        let replay = replay(&*nodes[n % 2], &channel, Some(before), 10).await;
        assert!(replay.complete, "{before} was shown, but is not known");
        assert_eq!(
            replay.events.first(),
            Some(&event),
            "{} was shown, but cannot be replayed",
            event.position
        );
        assert!(replay.head >= event.position);
        before = event.position;
    }
    joined(publisher.await);
}

/// The test publishes every kind of payload. It compares the replays from every position, on every
/// node, with the feed.
pub async fn replay_is_what_the_feed_showed(fixture: &dyn Fixture) {
    let nodes = [fixture.node().await, fixture.node().await];
    let channel = channel(Kept::Ample);
    let mut feed = follow(&*nodes[0], &channel).await;
    let mut chain = Chain(vec![feed.head]);
    for n in 0..30u8 {
        let data = match n % 3 {
            0 => Data::json(&HashMap::from([("n", n)])).unwrap(),
            1 => Data::text(format!("line {n}\r\nanother")),
            _ => Data::binary(vec![n; usize::from(n)]),
        };
        let mut message = Message::new(EventName::new(&format!("event-{n}")).unwrap(), data);
        message.key = (n % 2 == 0).then(|| Key::new(&format!("key {n}")).unwrap());
        chain
            .publish(&*nodes[usize::from(n) % 2], &channel, Append::new(message))
            .await;
    }
    let shown = take(&mut feed, 30).await;
    for node in &nodes {
        for from in 0..=30 {
            let replay = replay(&**node, &channel, Some(chain.0[from]), 100).await;
            chain.allows(Some(chain.0[from]), 100, 30, &replay);
            assert!(replay.complete);
            assert_same(&shown[from..], &replay.events);
        }
    }
}

/// A client can name any number of channels. Where the backbone counts the things it stores, the
/// count does not grow.
pub async fn names_that_are_only_asked_for_are_not_stored(fixture: &dyn Fixture) {
    let node = fixture.node().await;
    let spoken = channel(Kept::Ample);
    publish(&*node, &spoken, text("so that there is something")).await;
    let before = fixture.stored().await;
    for _ in 0..100 {
        let silent = channel(Kept::Ample);
        let first = replay(&*node, &silent, None, 10).await.head;
        replay(&*node, &silent, Some(first), 10).await;
        drop(follow(&*node, &silent).await);
    }
    if let (Some(before), Some(after)) = (before, fixture.stored().await) {
        assert!(
            after <= before,
            "{} things are stored that were only asked for",
            after - before
        );
    }
}
