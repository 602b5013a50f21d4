//! Resume across a fork, step by step: a broker whose answers and feeds the test writes down, so
//! that the order of things is exact.
//!
//! Each of these was a shortest counterexample of the model once. Events are named by their
//! positions: the confirmation is `S`, a gap `G after>cursor:reason`, an event `E`.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use airwave_core::broker::{Append, Broker, BrokerError, BrokerStats, Feed, FeedSender, Published, Replay, follow_and_replay};
use airwave_core::format::{Format, Notice, Stamp};
use airwave_core::hub::FormatHandle;
use airwave_core::session::{After, Session, Turn};
use airwave_core::{ChannelName, Data, Event, EventName, Hub, Message, PageLimit, Position, Rules};
use bytes::Bytes;

use crate::support::{name, request, rule};

#[derive(Default)]
struct Lab {
    held: Mutex<Vec<Arc<Event>>>,
    head: Mutex<u64>,
    feeds: Mutex<Vec<FeedSender>>,
    gates: Mutex<VecDeque<tokio::sync::oneshot::Receiver<()>>>,
    asked: Mutex<u32>,
}
fn ev(position: u64, previous: u64) -> Arc<Event> {
    Arc::new(Event::new(
        Position(position),
        Position(previous),
        Message::new(EventName::new("x").unwrap(), Data::text(position.to_string())),
    ))
}
impl Lab {
    fn set(&self, head: u64, held: &[(u64, u64)]) {
        *self.head.lock().unwrap() = head;
        *self.held.lock().unwrap() = held.iter().map(|(a, b)| ev(*a, *b)).collect();
    }
}
#[async_trait::async_trait]
impl Broker for Lab {
    fn name(&self) -> &'static str {
        "lab"
    }
    async fn publish(&self, _: &ChannelName, _: Append) -> Result<Published, BrokerError> {
        Err(BrokerError::rejected("this broker only tells"))
    }
    async fn follow(&self, _: &ChannelName) -> Result<Feed, BrokerError> {
        let (s, f) = Feed::new(Position(*self.head.lock().unwrap()), || {});
        self.feeds.lock().unwrap().push(s);
        Ok(f)
    }
    async fn replay(&self, _: &ChannelName, after: Option<Position>, _limit: PageLimit) -> Result<Replay, BrokerError> {
        let answer = {
            let held = self.held.lock().unwrap().clone();
            let head = Position(*self.head.lock().unwrap());
            let complete = match after {
                None => true,
                Some(a) => a == head || held.iter().any(|e| e.position == a) || held.first().is_some_and(|e| e.previous == a),
            };
            let events = held.into_iter().filter(|e| after.is_none_or(|a| e.position > a)).collect();
            Replay::new(head, events).with_complete(complete)
        };
        *self.asked.lock().unwrap() += 1;
        let gate = self.gates.lock().unwrap().pop_front();
        if let Some(g) = gate {
            let _ = g.await;
        }
        Ok(answer)
    }
    async fn open(&self, channel: &ChannelName, limit: PageLimit) -> Result<(Feed, Replay), BrokerError> {
        follow_and_replay(self, channel, limit).await
    }

    async fn ping(&self) -> Result<(), BrokerError> {
        Ok(())
    }

    fn stats(&self) -> BrokerStats {
        BrokerStats::in_process()
    }
}
struct Plain;
impl Format for Plain {
    fn name(&self) -> &'static str {
        "plain"
    }
    fn event(&self, _: &ChannelName, e: &Event) -> Bytes {
        format!("E{} ", e.position.0).into()
    }
    fn notice(&self, n: &Notice<'_>) -> Bytes {
        match n {
            Notice::Subscribed { cursor, resumed, .. } => format!("S{}{} ", cursor.0, if *resumed { "+" } else { "-" }).into(),
            Notice::Gap { gap, .. } => {
                format!("G{}>{}:{} ", gap.after.map_or(0, |p| p.0), gap.cursor.0, gap.reason.as_str()).into()
            }
            _ => Bytes::new(),
        }
    }
    fn stamp(&self) -> Option<Stamp> {
        None
    }
}
/// The same for a format that repeats its cursor, whose entries are written one by one.
struct Stamped;
impl Format for Stamped {
    fn name(&self) -> &'static str {
        "stamped"
    }
    fn event(&self, channel: &ChannelName, event: &Event) -> Bytes {
        Plain.event(channel, event)
    }
    fn notice(&self, notice: &Notice<'_>) -> Bytes {
        Plain.notice(notice)
    }
    fn stamp(&self) -> Option<Stamp> {
        Some(|_, _| {})
    }
}
struct Rig {
    lab: Arc<Lab>,
    hub: Hub,
    format: FormatHandle,
}
fn rig() -> Rig {
    rig_over(Arc::new(Plain))
}

fn rig_over(format: Arc<dyn Format>) -> Rig {
    let lab = Arc::new(Lab::default());
    let hub = Hub::builder(lab.clone(), Rules::new([rule()])).build();
    let format = hub.register_format(format).unwrap();
    Rig { lab, hub, format }
}

impl Rig {
    async fn join(&self, after: After) -> Session {
        let connection = self.hub.connect(request(), true).unwrap();
        let mut session = Session::new(connection, &self.format);
        let joined = session.subscriber().subscribe(&name("c"), after).await.unwrap();
        session.add(joined, None);
        session
    }
}

/// All that comes until nothing does.
async fn hear(session: &mut Session) -> String {
    let mut text = String::new();
    loop {
        let mut out = vec![];
        match tokio::time::timeout(Duration::from_secs(10), session.turn(&mut out)).await {
            Ok(Turn::Frames) => out
                .iter()
                .for_each(|bytes| text.push_str(std::str::from_utf8(bytes).unwrap())),
            _ => return text,
        }
    }
}

/// A failover loses 20, and a failover back brings it again, and what was built on it.
#[tokio::test(start_paused = true)]
async fn a_tail_that_comes_back_is_followed_on() {
    let rig = rig();
    rig.lab.set(10, &[(10, 5)]);
    let mut old = rig.join(After::Nothing).await;
    assert_eq!(hear(&mut old).await, "S10- ");
    rig.lab.feeds.lock().unwrap()[0].push(ev(20, 10));
    assert_eq!(hear(&mut old).await, "E20 ");
    rig.lab.feeds.lock().unwrap().clear();
    assert_eq!(hear(&mut old).await, "G20>20:broker-lost-data ");
    let mut new = rig.join(After::Nothing).await;
    assert_eq!(hear(&mut new).await, "S10- ");
    rig.lab.set(30, &[(10, 5), (20, 10), (30, 20)]);
    rig.lab.feeds.lock().unwrap().clear();
    assert_eq!(hear(&mut old).await, "G20>20:broker-lost-data E30 ");
    assert_eq!(hear(&mut new).await, "G10>20:broker-lost-data E30 ");
    // Nothing is behind: the feed goes on.
    rig.lab.feeds.lock().unwrap()[0].push(ev(40, 30));
    assert_eq!(hear(&mut old).await, "E40 ");
    assert_eq!(hear(&mut new).await, "E40 ");
}

/// The same, and what was built on it is lost before history tells: the feed alone has shown it.
#[tokio::test(start_paused = true)]
async fn a_tail_that_comes_back_without_what_followed_it_is_given_up() {
    let rig = rig();
    rig.lab.set(10, &[(10, 5)]);
    let mut listener = rig.join(After::Nothing).await;
    rig.lab.feeds.lock().unwrap()[0].push(ev(20, 10));
    assert_eq!(hear(&mut listener).await, "S10- E20 ");
    rig.lab.feeds.lock().unwrap().clear();
    assert_eq!(hear(&mut listener).await, "G20>20:broker-lost-data ");
    rig.lab.set(20, &[(10, 5), (20, 10)]);
    rig.lab.feeds.lock().unwrap()[0].push(ev(40, 30));
    assert_eq!(hear(&mut listener).await, "G20>30:broker-lost-data E40 ");
}

/// The client saw 20 elsewhere; the broker has lost it; this node's feed still brings it.
#[tokio::test(start_paused = true)]
async fn an_event_that_was_lost_is_not_sent_again_by_a_node_that_does_not_know() {
    let rig = rig();
    rig.lab.set(10, &[]);
    let mut other = rig.join(After::Nothing).await;
    assert_eq!(hear(&mut other).await, "S10- ");
    let mut client = rig.join(After::Position(Position(20))).await;
    assert_eq!(hear(&mut client).await, "S20- G20>20:broker-lost-data ");
    rig.lab.feeds.lock().unwrap()[0].push(ev(20, 10));
    assert_eq!(hear(&mut other).await, "E20 ");
    assert_eq!(hear(&mut client).await, "");
    // The node hears of the loss: the client has been told, the other has not.
    rig.lab.set(30, &[(30, 10)]);
    rig.lab.feeds.lock().unwrap().clear();
    assert_eq!(hear(&mut other).await, "G20>20:broker-lost-data E30 ");
    assert_eq!(hear(&mut client).await, "E30 ");
}

/// The clock that gave the position is ahead of this node's. The node has seen the event, so it was
/// lost, and a client that has it does not get it again.
#[tokio::test(start_paused = true)]
async fn a_lost_event_from_a_clock_that_is_ahead_is_not_sent_again() {
    let ahead = Position::now().0 + 120_000_000;
    let rig = rig();
    rig.lab.set(10, &[]);
    let mut other = rig.join(After::Nothing).await;
    rig.lab.feeds.lock().unwrap()[0].push(ev(ahead, 10));
    assert_eq!(hear(&mut other).await, format!("S10- E{ahead} "));
    // The node asks what comes next, and is not answered before the client has asked, too.
    let (open, gate) = tokio::sync::oneshot::channel();
    rig.lab.gates.lock().unwrap().push_back(gate);
    rig.lab.feeds.lock().unwrap().clear();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut client = rig.join(After::Position(Position(ahead))).await;
    open.send(()).unwrap();
    let lost = format!("G{ahead}>{ahead}:broker-lost-data ");
    assert_eq!(hear(&mut other).await, lost);
    assert_eq!(hear(&mut client).await, format!("S{ahead}- {lost}"));
    let next = ahead + 1;
    rig.lab.feeds.lock().unwrap()[0].push(ev(next, 10));
    assert_eq!(hear(&mut other).await, format!("E{next} "));
    assert_eq!(hear(&mut client).await, format!("E{next} "));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_waits_for_its_node_is_judged_again_when_the_node_is_there() {
    let rig = rig();
    rig.lab.set(10, &[]);
    let _open = rig.join(After::Nothing).await;
    rig.lab.set(20, &[(20, 10)]);
    let mut client = rig.join(After::Position(Position(20))).await;
    assert_eq!(hear(&mut client).await, "S20+ ");
    // A failover without 20.
    rig.lab.set(30, &[(30, 10)]);
    rig.lab.feeds.lock().unwrap().clear();
    assert_eq!(hear(&mut client).await, "G20>20:broker-lost-data E30 ");
}

#[tokio::test(start_paused = true)]
async fn a_gap_of_its_node_is_not_for_a_client_that_was_ahead_of_it() {
    let rig = rig();
    rig.lab.set(10, &[]);
    let mut other = rig.join(After::Nothing).await;
    hear(&mut other).await;
    // 20 was trimmed before this node heard of it; the client has had 30.
    rig.lab.set(30, &[(30, 20)]);
    let mut client = rig.join(After::Position(Position(30))).await;
    assert_eq!(hear(&mut client).await, "S30+ ");
    rig.lab.feeds.lock().unwrap().clear();
    assert_eq!(hear(&mut other).await, "G10>20:history-expired E30 ");
    assert_eq!(hear(&mut client).await, "");
}

#[tokio::test(start_paused = true)]
async fn of_two_that_heal_at_once_one_appends() {
    let rig = rig();
    rig.lab.set(20, &[(20, 10)]);
    let mut client = rig.join(After::Nothing).await;
    assert_eq!(hear(&mut client).await, "S20- ");
    rig.lab.set(30, &[(30, 10)]);
    let (first, held) = tokio::sync::oneshot::channel();
    let (second, held_too) = tokio::sync::oneshot::channel();
    rig.lab.gates.lock().unwrap().extend([held, held_too]);
    for _ in 0..2 {
        let asked = *rig.lab.asked.lock().unwrap();
        rig.lab.feeds.lock().unwrap().clear();
        while *rig.lab.asked.lock().unwrap() == asked {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    first.send(()).unwrap();
    tokio::time::sleep(Duration::from_millis(1)).await;
    second.send(()).unwrap();
    assert_eq!(hear(&mut client).await, "G20>20:broker-lost-data E30 ");
}

/// The client saw 20 elsewhere; this node, and the broker, are back at 10. Then the broker starts
/// with nothing: the log's gap begins at 10, the client's where the client stands.
#[tokio::test(start_paused = true)]
async fn a_second_loss_is_told_to_each_from_where_it_stands() {
    let rig = rig();
    rig.lab.set(10, &[]);
    let mut other = rig.join(After::Nothing).await;
    assert_eq!(hear(&mut other).await, "S10- ");
    let mut client = rig.join(After::Position(Position(20))).await;
    assert_eq!(hear(&mut client).await, "S20- G20>20:broker-lost-data ");
    rig.lab.set(40, &[(40, 30)]);
    rig.lab.feeds.lock().unwrap().clear();
    assert_eq!(hear(&mut other).await, "G10>30:history-expired E40 ");
    assert_eq!(hear(&mut client).await, "G20>30:history-expired E40 ");
}

/// The node's log stands at 20, which is lost, and goes on from 10. Who comes now begins at 10, and
/// so does the next gap as it is told.
#[tokio::test(start_paused = true)]
async fn a_listener_that_came_after_the_last_loss_is_told_of_a_loss_from_where_it_began() {
    let rig = rig();
    rig.lab.set(20, &[(20, 10)]);
    let mut old = rig.join(After::Nothing).await;
    assert_eq!(hear(&mut old).await, "S20- ");
    rig.lab.set(10, &[]);
    rig.lab.feeds.lock().unwrap().clear();
    assert_eq!(hear(&mut old).await, "G20>20:broker-lost-data ");
    let mut new = rig.join(After::Nothing).await;
    assert_eq!(hear(&mut new).await, "S10- ");
    rig.lab.set(40, &[(40, 30)]);
    rig.lab.feeds.lock().unwrap().clear();
    assert_eq!(hear(&mut old).await, "G20>30:history-expired E40 ");
    assert_eq!(hear(&mut new).await, "G10>30:history-expired E40 ");
}

/// The store is lost and its clock is behind: a node that never knew the channel publishes to it,
/// far below the head.
#[tokio::test(start_paused = true)]
async fn events_below_the_head_are_told_behind_a_gap() {
    for format in [Arc::new(Plain) as Arc<dyn Format>, Arc::new(Stamped)] {
        let rig = rig_over(format);
        rig.lab.set(1000, &[(1000, 990)]);
        let mut listener = rig.join(After::Nothing).await;
        assert_eq!(hear(&mut listener).await, "S1000- ");
        rig.lab.set(401, &[(400, 390), (401, 400)]);
        rig.lab.feeds.lock().unwrap()[0].push(ev(400, 390));
        rig.lab.feeds.lock().unwrap()[0].push(ev(401, 400));
        assert_eq!(hear(&mut listener).await, "G1000>1000:broker-lost-data E400 E401 ");
        rig.lab.feeds.lock().unwrap()[0].push(ev(402, 401));
        assert_eq!(hear(&mut listener).await, "E402 ", "the stream goes on from there");
        let mut fresh = rig.join(After::Nothing).await;
        assert_eq!(hear(&mut fresh).await, "S402- ");
        let mut back = rig.join(After::Position(Position(401))).await;
        assert_eq!(hear(&mut back).await, "S401+ E402 ");
    }
}

/// The same, and the feed has ended: what was published before it was there again is covered by the
/// gap.
#[tokio::test(start_paused = true)]
async fn a_store_that_returns_behind_is_followed_on_below_the_head() {
    for format in [Arc::new(Plain) as Arc<dyn Format>, Arc::new(Stamped)] {
        let rig = rig_over(format);
        rig.lab.set(1000, &[(1000, 990)]);
        let mut listener = rig.join(After::Nothing).await;
        assert_eq!(hear(&mut listener).await, "S1000- ");
        rig.lab.set(400, &[(400, 390)]);
        rig.lab.feeds.lock().unwrap().clear();
        assert_eq!(hear(&mut listener).await, "G1000>1000:broker-lost-data ");
        rig.lab.feeds.lock().unwrap()[0].push(ev(401, 400));
        assert_eq!(hear(&mut listener).await, "E401 ");
    }
}

/// History is read after the feed was opened, so a feed may begin with what the log has, and may
/// show an event twice.
#[tokio::test(start_paused = true)]
async fn an_event_that_the_log_has_is_dropped() {
    let rig = rig();
    rig.lab.set(10, &[]);
    let mut listener = rig.join(After::Nothing).await;
    rig.lab.set(30, &[(20, 10), (30, 20)]);
    for event in [ev(20, 10), ev(20, 10), ev(30, 20), ev(20, 10)] {
        rig.lab.feeds.lock().unwrap()[0].push(event);
    }
    assert_eq!(hear(&mut listener).await, "S10- E20 E30 ");
    let asked = *rig.lab.asked.lock().unwrap();
    rig.lab.feeds.lock().unwrap()[0].push(ev(40, 30));
    assert_eq!(hear(&mut listener).await, "E40 ");
    assert_eq!(*rig.lab.asked.lock().unwrap(), asked, "nothing had to be healed");
}
