//! These tests check a log by itself: its memory, its wakes, and a comparison with a list that
//! forgets nothing.

mod comparison;
mod naive;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::format::{Format, Notice, Stamp};
use crate::observe::Metrics;
use crate::rule::{Delivery, ReplayOnSubscribe};
use crate::{Data, EventName, Key, Message};

/// This format writes an event as its position, and an end and a gap with a sign before it.
struct PositionsAsText;

impl Format for PositionsAsText {
    fn name(&self) -> &'static str {
        "positions"
    }

    fn event(&self, _: &ChannelName, event: &Event) -> Bytes {
        format!("{} ", event.position).into()
    }

    fn notice(&self, notice: &Notice<'_>) -> Bytes {
        match notice {
            Notice::Gap { gap, .. } => format!("g{} ", gap.cursor).into(),
            Notice::End { cursor, .. } => format!("e{cursor} ").into(),
            other => panic!("a log never says {other:?}"),
        }
    }

    fn stamp(&self) -> Option<Stamp> {
        None
    }
}

fn slot() -> FormatSlot {
    FormatSlot {
        index: 1,
        format: Arc::new(PositionsAsText),
        metrics: Metrics::default().format("positions"),
    }
}

pub(super) fn event(position: u64, previous: u64, key: u8, size: usize) -> Arc<Event> {
    let message = Message::new(EventName::new("x").unwrap(), Data::binary(vec![0; size]));
    Arc::new(Event {
        position: Position(position),
        previous: Position(previous),
        message: message.with_key(Key::new(&key.to_string()).unwrap()),
    })
}

/// Bounds the age of history in the rule of these tests.
const AGE: Duration = Duration::from_secs(100);

fn rule(delivery: Delivery, replay: ReplayOnSubscribe) -> Arc<Rule> {
    let mut rule = Rule::new("c".parse().unwrap(), vec![]);
    (rule.delivery, rule.replay, rule.history.events) = (delivery, replay, 0);
    rule.history.age = AGE;
    Arc::new(rule)
}

/// The channel begins at this position.
const BASE: u64 = 100;

fn log(rule: Arc<Rule>, ring_events: usize, ring_bytes: usize) -> Arc<Log> {
    let limits = Limits {
        ring_events,
        ring_bytes,
        ..Limits::default()
    };
    let name = ChannelName::new("c").unwrap();
    let memory = RingMemory::new(limits.memory);
    let history = Replay::nothing_after(Position(BASE));
    Log::open(name, rule, Arc::default(), &limits, &memory, history).unwrap()
}

/// The counter shows the bytes that the rings hold, whatever the way in which events go.
#[test]
fn the_memory_of_rings_is_counted_to_the_byte() {
    for (delivery, replay) in [
        (Delivery::Every, ReplayOnSubscribe::None),
        (Delivery::Latest, ReplayOnSubscribe::Last),
    ] {
        let log = log(rule(delivery, replay), 4, 10_000);
        let memory = log.memory.clone();
        for n in 0..200u64 {
            let offered = event(BASE + n + 1, BASE + n, (n % 7) as u8, 900);
            assert_eq!(log.append(offered), Appended::Yes);
            if n % 50 == 49 {
                log.shrink();
            }
            assert_eq!(memory.used(), lock(&log.ring).recount(), "after {n}");
        }
        log.empty();
        assert_eq!(memory.used(), 0);
        assert_eq!(
            log.begin_fresh().is_none(),
            replay == ReplayOnSubscribe::Last,
            "history is asked"
        );
        drop(log);
        assert_eq!(memory.used(), 0);
    }
}

#[test]
fn the_memory_of_a_ring_is_given_back_with_its_log() {
    let log = log(rule(Delivery::Every, ReplayOnSubscribe::None), 4, 10_000);
    let memory = log.memory.clone();
    assert_eq!(log.append(event(BASE + 1, BASE, 0, 900)), Appended::Yes);
    assert!(memory.used() > 900);
    drop(log);
    assert_eq!(memory.used(), 0);
}

#[test]
fn listeners_are_woken_only_when_there_is_something_new() {
    let log = log(rule(Delivery::Every, ReplayOnSubscribe::None), 4, 10_000);
    let listener = Arc::new(SessionHandle::new(1));
    let registration = log.register(listener.clone(), 0);
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    for n in 0..3 {
        assert_eq!(log.append(event(BASE + n + 1, BASE + n, 0, 10)), Appended::Yes);
        log.show();
        assert!(listener.wake.poll(&mut cx).is_ready(), "an event");
        listener.wake.reset();
        log.show();
        assert!(listener.wake.poll(&mut cx).is_pending(), "nothing new");
    }
    log.append_gap(Position(BASE + 1), GapReason::BrokerLostData);
    log.show();
    assert!(listener.wake.poll(&mut cx).is_ready(), "a gap");
    drop(registration);
}
