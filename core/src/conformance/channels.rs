//! This module checks names, payloads, many channels at once, and random sequences of calls.

use super::calls::{
    assert_ended, at_once, channel, follow, key, named, next, patiently, publish, replay, take, text, text_of, unique,
};
use super::chain::{Chain, assert_same};
use super::fixture::{Fixture, Kept, TEN};
use crate::broker::{Append, Broker, Feed};
use crate::event::{ChannelName, Data, EventName, Key, Message, Position};

/// Checks every allowed character, the longest names and every byte. Each passes through the feed
/// and the replay of another node.
pub async fn any_valid_name_and_payload_survives(fixture: &dyn Fixture) {
    const NAME: &str = "ABCXYZabcxyz0189-_.~:@=+";
    let nodes = [fixture.node().await, fixture.node().await];
    let every_byte: Vec<u8> = (0..=255).collect();
    let payloads = [
        Data::text(""),
        Data::text("line\r\n\nline\r\0\u{1}\u{7f}\u{85}\u{2028}\u{feff}é😀"),
        Data::text("{\"looks\": \"like JSON\"}"),
        Data::text("* > $ ' \" \\ % { } [ ] \u{1b}[31m"),
        Data::json_text("{\"a\": [1, 2.50, null, \"\u{2028}\\u0000 é😀\"]}").unwrap(),
        Data::json_text("null").unwrap(),
        Data::json_text("123456789012345678901234567890").unwrap(),
        Data::binary(vec![]),
        Data::binary(every_byte),
        Data::binary(b"\r\n\r\n+OK\r\n$-1\r\n".to_vec()),
    ];
    let (event_names, keys) = (
        [NAME, "a", "-", "..", "airwave", &"e".repeat(255)],
        ["k", " ", "é😀 *>$'\"\\{}", &"k".repeat(255), &"é".repeat(127)],
    );
    let idempotency_keys = ["k", "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", &"i".repeat(255)];
    let rest = unique();
    let long = |c: &str| format!("{rest}/{}", c.repeat(254 - rest.len() - "conformance/ample/".len()));
    for rest in [
        format!("{rest}/{NAME}"),
        format!("{NAME}/{rest}"),
        long("x"),
        long("."),
        format!("{rest}/-/_/~/:/..."),
    ] {
        let channel = named(Kept::Ample, &rest);
        let mut feed = follow(&*nodes[1], &channel).await;
        let mut chain = Chain(vec![feed.head]);
        let mut messages = Vec::new();
        for n in 0..30 {
            let event = EventName::new(event_names[n % event_names.len()]).unwrap();
            let mut message = Message::new(event, payloads[n % payloads.len()].clone());
            message.key = (n % 4 != 0).then(|| Key::new(keys[n % keys.len()]).unwrap());
            messages.push(message);
        }
        for (n, message) in messages.iter().enumerate() {
            let mut append = Append::new(message.clone());
            append.idempotency_key = idempotency_keys.get(n).map(|text| key(text).into());
            chain.publish(&*nodes[0], &channel, append).await;
        }
        let shown = take(&mut feed, messages.len()).await;
        let replayed = replay(&*nodes[1], &channel, None, 100).await.events;
        assert_same(&shown, &replayed);
        for (event, message) in replayed.iter().zip(&messages) {
            assert_eq!(event.message, *message, "in channel {channel}");
            assert_eq!(event.message.data.as_bytes(), message.data.as_bytes());
        }
    }
}

/// Checks that payloads of one mebibyte arrive unchanged. They do so whatever the limit of the
/// servers in front of the broker is.
pub async fn binary_payloads_of_one_mebibyte_survive(fixture: &dyn Fixture) {
    let nodes = [fixture.node().await, fixture.node().await];
    let channel = channel(Kept::Ample);
    let mut feed = follow(&*nodes[1], &channel).await;
    for n in 0..3u32 {
        let bytes: Vec<u8> = (0..1u32 << 20).map(|i| (i ^ (i >> 8) ^ n).to_le_bytes()[0]).collect();
        let message = Message::new(EventName::new("large").unwrap(), Data::binary(bytes.clone()));
        publish(&*nodes[0], &channel, Append::new(message)).await;
        let shown = next(&mut feed).await;
        let replayed = replay(&*nodes[1], &channel, None, 1).await.events;
        for event in [&shown, &replayed[0]] {
            assert_eq!(event.message.data.len(), bytes.len());
            assert!(event.message.data.as_bytes() == bytes, "a large payload was changed");
        }
    }
}

/// Checks that each channel delivers its own events alone. The chains, ends and positions of
/// different channels do not touch either.
pub async fn channels_do_not_hear_each_other(fixture: &dyn Fixture) {
    let node = fixture.node().await;
    let channels = [channel(Kept::Ample), channel(Kept::Ample), channel(Kept::Ample)];
    let mut open = Vec::new();
    for channel in &channels {
        let feed = follow(&*node, channel).await;
        open.push((channel, Chain(vec![feed.head]), feed));
    }
    for n in 0..20 {
        for (channel, chain, _) in &mut open {
            chain.publish(&*node, channel, text(format!("{channel} {n}"))).await;
        }
    }
    publish(&*node, &channels[2], Append::end()).await;
    for (channel, chain, feed) in &mut open[..2] {
        chain.publish(&*node, channel, text(format!("{channel} 20"))).await;
        let shown = take(feed, 21).await;
        chain.names_previous_of(&shown);
        for (n, event) in shown.iter().enumerate() {
            assert_eq!(text_of(event), format!("{channel} {n}"));
        }
        chain.replays(&*node, channel, 21).await;
    }
}

/// Checks that each name has its own chain. A broker with another alphabet for its names must not
/// fold two names into one.
pub async fn names_that_look_alike_are_different_channels(fixture: &dyn Fixture) {
    let node = fixture.node().await;
    let rest = unique();
    let alike = [
        "a/b", "a.b", "a:b", "a_b", "a-b", "a~b", "a@b", "a=b", "a+b", "A/b", "a/B", "ab", "a", "a/b/c", "a=2Fb", "a=2fb",
        "a~1b", "a_2Fb", "a/.b", "a.../b", "b", "a=", "a==", "a=3D", "a~", "a~~", "a~0", "a__b", "a--b",
    ];
    let mut feeds = Vec::new();
    for name in alike {
        feeds.push((name, follow(&*node, &named(Kept::Ample, &format!("{rest}/{name}"))).await));
    }
    for (name, feed) in &feeds {
        let channel = named(Kept::Ample, &format!("{rest}/{name}"));
        publish(&*node, &channel, text(name).with_idempotency_key(key("same"))).await;
        let replayed = replay(&*node, &channel, Some(feed.head), 10).await;
        assert!(
            replayed.complete && replayed.events.len() == 1,
            "{name} shares its chain: {replayed:?}"
        );
        assert_eq!(text_of(&replayed.events[0]), *name);
    }
    for (name, feed) in &mut feeds {
        assert_eq!(text_of(&*next(feed).await), *name);
        publish(&*node, &named(Kept::Ample, &format!("{rest}/{name}")), text("last")).await;
        assert_eq!(text_of(&*next(feed).await), "last", "{name} heard another channel");
    }
}

/// Follows ten thousand channels and publishes to all of them at once. Each feed shows its own
/// event.
pub async fn ten_thousand_channels_work(fixture: &dyn Fixture) {
    let nodes = [fixture.node().await, fixture.node().await];
    let names: Vec<ChannelName> = (0..10_000).map(|_| channel(Kept::Ample)).collect();
    let feeds = at_once(names.clone().into_iter().map(|name| {
        let node = nodes[1].clone();
        async move { (name.clone(), follow(&*node, &name).await) }
    }))
    .await;
    at_once(names.into_iter().map(|name| {
        let node = nodes[0].clone();
        async move { publish(&*node, &name, text(&name)).await }
    }))
    .await;
    for (n, (name, mut feed)) in feeds.into_iter().enumerate() {
        let event = next(&mut feed).await;
        assert_eq!(text_of(&event), name.as_str());
        if n % 100 == 0 {
            let replayed = replay(&*nodes[1], &name, Some(feed.head), 10).await;
            assert!(replayed.complete && replayed.events.len() == 1, "{name}: {replayed:?}");
        }
    }
}

/// Draws calls at random and checks each against a list. The calls publish, repeat, follow, drop,
/// replay and end, over two nodes.
pub async fn any_sequence_of_calls_agrees_with_a_list(fixture: &dyn Fixture) {
    let nodes = [fixture.node().await, fixture.node().await];
    for (seed, kept, promised) in [
        (1, Kept::Ample, 10_000),
        (2, Kept::Ten, TEN),
        (3, Kept::None, 0),
        (4, Kept::Ten, TEN),
    ] {
        let channel = channel(kept);
        let mut calls = RandomCalls {
            seed,
            dice: Dice(seed),
            promised,
            chain: Chain::base(&*nodes[0], &channel).await,
            channel,
            keys: Vec::new(),
            feeds: Vec::new(),
        };
        for step in 0..300 {
            let node = calls.dice.roll(2);
            calls.call(&*nodes[node], step).await;
        }
        let RandomCalls { channel, mut chain, .. } = calls;
        chain.publish(&*nodes[0], &channel, Append::end()).await;
        assert_ended(patiently("publish", nodes[1].publish(&channel, text("late"))).await);
    }
}

/// Random calls must agree with the list that this type keeps.
struct RandomCalls {
    seed: u64,
    dice: Dice,
    channel: ChannelName,
    /// Counts the events that history promises.
    promised: usize,
    chain: Chain,
    keys: Vec<(Append, Position)>,
    /// Holds each open feed with the last position that it has shown.
    feeds: Vec<(Feed, Position)>,
}

impl RandomCalls {
    async fn call(&mut self, node: &dyn Broker, step: usize) {
        let at = format!("seed {}, step {step}", self.seed);
        match self.dice.roll(10) {
            0..4 => {
                self.chain.publish(node, &self.channel, text(step)).await;
            }
            4 => {
                let fresh = text(step).with_idempotency_key(key(&format!("key-{step}")));
                let position = self.chain.publish(node, &self.channel, fresh.clone()).await;
                self.keys.push((fresh, position));
            }
            5 if !self.keys.is_empty() => {
                let (old, position) = &self.keys[self.dice.roll(self.keys.len())];
                let published = patiently("publish", node.publish(&self.channel, old.clone())).await.unwrap();
                assert_eq!((published.position, published.duplicate), (*position, true), "{at}");
            }
            6 if self.feeds.len() < 4 => {
                let feed = follow(node, &self.channel).await;
                assert_eq!(feed.head, self.chain.head(), "{at}");
                let head = feed.head;
                self.feeds.push((feed, head));
            }
            7 if !self.feeds.is_empty() => self.read_feed(&at).await,
            _ => {
                let somewhere = self.chain.0[self.dice.roll(self.chain.0.len())];
                let after = [None, Some(somewhere), Some(Position(somewhere.0 + 1))][self.dice.roll(3)];
                let limit = [1, 3, 10, 1000][self.dice.roll(4)];
                let replayed = replay(node, &self.channel, after, limit).await;
                self.chain.allows(after, limit, self.promised, &replayed);
            }
        }
    }

    /// Reads a feed to the head, and then drops it in half of the cases.
    async fn read_feed(&mut self, at: &str) {
        let index = self.dice.roll(self.feeds.len());
        let (feed, shown) = &mut self.feeds[index];
        let from = self.chain.index_of(*shown).unwrap() + 1;
        for expected in &self.chain.0[from..] {
            assert_eq!(next(feed).await.position, *expected, "{at}");
        }
        *shown = self.chain.head();
        if self.dice.roll(2) == 0 {
            self.feeds.swap_remove(index);
        }
    }
}

/// The generator (splitmix64) is small, repeatable, and needs no dependency.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % sides as u64) as usize
    }
}
