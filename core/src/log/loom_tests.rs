//! These models run publishing against subscribing, reading, leaving and closing. A lost wake is a
//! deadlock, which loom reports.

use std::task::Poll;

use loom::future::block_on;
use loom::thread;

use super::*;
use crate::{Data, EventName, Message};

const BASE: Position = Position(100);

fn log() -> Arc<Log> {
    let mut rule = Rule::new("c".parse().unwrap(), vec![]);
    rule.history.events = 0;
    let limits = Limits {
        ring_events: 8,
        ..Limits::default()
    };
    let history = Replay::nothing_after(BASE);
    let memory = RingMemory::new(limits.memory);
    Log::open(
        ChannelName::new("c").unwrap(),
        Arc::new(rule),
        Arc::default(),
        &limits,
        &memory,
        history,
    )
    .unwrap()
}

fn event(position: u64) -> Arc<Event> {
    Arc::new(Event {
        position: Position(position),
        previous: Position(position - 1),
        message: Message::new(EventName::new("x").unwrap(), Data::text("")),
    })
}

/// Runs `act` with at most three switches between threads where none had to be. More switches find
/// nothing more and take for ever.
fn check(act: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(act);
}

fn publish(log: &Log, position: u64) {
    assert_eq!(log.append(event(position)), Appended::Yes);
    log.show();
}

/// Reads from `next` until `last` has come, as a session does: reset, read, wait.
fn read_to(log: &Log, listener: &SessionHandle, mut next: u64, last: u64) -> Vec<u64> {
    let mut received = Vec::new();
    block_on(std::future::poll_fn(|cx| {
        loop {
            listener.wake.reset();
            match log.read_entries(next) {
                Read::Some(Collected {
                    entries, next: after, ..
                }) => {
                    received.extend(entries.iter().map(|entry| entry.position().0));
                    next = after;
                }
                Read::Nothing => {}
                Read::FellOff => panic!("the ring has room"),
            }
            if received.last() == Some(&last) {
                return Poll::Ready(());
            }
            if listener.wake.poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }));
    received
}

/// P4 and P6: a fresh listener has its start, and everything after it.
#[test]
fn loom_a_listener_that_registers_while_events_come_misses_none() {
    check(|| {
        let log = log();
        let publisher = {
            let log = log.clone();
            thread::spawn(move || (101..=102).for_each(|position| publish(&log, position)))
        };
        let listener = Arc::new(SessionHandle::default());
        let registration = log.register(listener.clone(), 0).unwrap();
        let start = log.begin_fresh().unwrap();
        if start.cursor.0 < 102 {
            let received = read_to(&log, &listener, start.next, 102);
            assert_eq!(received, (start.cursor.0 + 1..=102).collect::<Vec<_>>());
        }
        publisher.join().unwrap();
        drop(registration);
    });
}

/// The log wakes a listener that is ahead of its node when the node has its position. The listener
/// goes on behind that position.
#[test]
fn loom_a_listener_that_is_ahead_of_its_node_misses_none() {
    check(|| {
        let log = log();
        let publisher = {
            let log = log.clone();
            thread::spawn(move || (101..=102).for_each(|position| publish(&log, position)))
        };
        let listener = Arc::new(SessionHandle::default());
        let registration = log.register(listener.clone(), 0).unwrap();
        let mut next = 0;
        block_on(std::future::poll_fn(|cx| {
            loop {
                listener.wake.reset();
                match log.find(Position(101)) {
                    Found::At(index) => next = index,
                    Found::Ahead if listener.wake.poll(cx).is_pending() => return Poll::Pending,
                    Found::Ahead => continue,
                    Found::Unknown => panic!("101 is in the ring"),
                }
                return Poll::Ready(());
            }
        }));
        assert_eq!(read_to(&log, &listener, next, 102), [102]);
        publisher.join().unwrap();
        drop(registration);
    });
}

/// One of two listeners leaves, and the log still wakes the other.
#[test]
fn loom_a_listener_that_leaves_takes_no_wake_from_another() {
    check(|| {
        let log = log();
        let listeners = [(); 2].map(|()| Arc::new(SessionHandle::default()));
        let [leaves, stays] = listeners
            .each_ref()
            .map(|listener| log.register(listener.clone(), 0).unwrap());
        let leaver = thread::spawn(move || drop(leaves));
        let publisher = {
            let log = log.clone();
            thread::spawn(move || publish(&log, 101))
        };
        assert_eq!(read_to(&log, &listeners[1], 0, 101), [101]);
        leaver.join().unwrap();
        publisher.join().unwrap();
        drop(stays);
    });
}

/// A log with a registration is open, and a log that was closed has none.
#[test]
fn loom_a_log_is_closed_or_registers_a_listener_but_not_both() {
    check(|| {
        let log = log();
        let registering = {
            let log = log.clone();
            thread::spawn(move || log.register(Arc::default(), 0))
        };
        let closed = log.close_if_unused(Duration::ZERO);
        let registration = registering.join().unwrap();
        assert_ne!(closed, registration.is_some());
        drop(registration);
        assert!(log.close_if_unused(Duration::ZERO) && log.register(Arc::default(), 0).is_none());
    });
}
