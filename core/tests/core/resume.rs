use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use airwave_core::hub::FormatHandle;
use airwave_core::rule::{Delivery, Limits};
use airwave_core::session::After;
use airwave_core::{Cursor, Hub, Position, Rule};
use proptest::prelude::*;

use crate::support::*;

/// A client that listens, goes away at any moment and comes back with the last cursor it has read,
/// and knows what it must be told.
struct Client {
    channels: Vec<String>,
    stamped: bool,
    cursor: Option<String>,
    /// The position of the last event of each channel that it has, or the cursor of its
    /// confirmation.
    has: HashMap<String, Position>,
    heard: HashMap<String, Vec<Position>>,
    listener: Option<Listener>,
    resumes: usize,
}

impl Client {
    fn new(channels: &[&str], stamped: bool) -> Self {
        Self {
            channels: channels.iter().map(|&channel| channel.to_owned()).collect(),
            stamped,
            cursor: None,
            has: HashMap::new(),
            heard: HashMap::new(),
            listener: None,
            resumes: 0,
        }
    }

    async fn come_to(&mut self, place: &TestNode) {
        let format = if self.stamped { &place.stamped } else { &place.plain };
        let mut listener = Listener::new(&place.hub, format);
        let mut joined = Vec::new();
        for channel in &self.channels {
            let after = match &self.cursor {
                None => After::Nothing,
                Some(text) if self.stamped => After::of(&Cursor::parse(text).unwrap(), &name(channel)),
                Some(text) => After::parse(Some(text)),
            };
            joined.push(listener.join(channel, after).await.unwrap());
        }
        listener.session.add_all(joined);
        self.listener = Some(listener);
        self.resumes += 1;
    }

    /// Reads up to `count` of the lines that can be read now.
    fn read(&mut self, count: usize) {
        let Some(listener) = &mut self.listener else { return };
        for line in listener.take_ready(count) {
            self.take_in(line);
        }
    }

    fn take_in(&mut self, line: Frame) {
        let comes_back = self.cursor.is_some();
        self.cursor = line.cursor().or(self.cursor.take());
        match line {
            Frame::Subscribed {
                channel,
                cursor,
                resumed,
                ..
            } => match self.has.get(&channel) {
                None => drop(self.has.insert(channel, cursor)),
                Some(&has) => {
                    assert!(
                        comes_back && resumed,
                        "P5, P8: {channel} is not resumed though nothing was lost"
                    );
                    assert_eq!(cursor, has, "a resume begins where the client was");
                }
            },
            Frame::Event { channel, position, .. } => {
                let has = self.has.insert(channel.clone(), position).expect("first the confirmation");
                assert!(position > has, "P3, P7: {channel} shows {position} after {has}");
                self.heard.entry(channel).or_default().push(position);
            }
            other => panic!("P5: nothing was lost, but {other:?}"),
        }
    }

    /// What was heard is the end of what was published, without a hole.
    fn has_everything(&self, published: &HashMap<String, Vec<Position>>) {
        for channel in &self.channels {
            let heard = self.heard.get(channel).cloned().unwrap_or_default();
            let all = published.get(channel).cloned().unwrap_or_default();
            assert!(all.ends_with(&heard), "P4: {channel}: {heard:?} of {all:?}");
            if let (Some(has), Some(last)) = (self.has.get(channel), all.last()) {
                assert!(has >= last, "{channel} stopped at {has}, but {last} is the newest");
            }
        }
    }
}

/// A node, and the wires of its hub.
struct TestNode {
    node: Arc<Node>,
    hub: Hub,
    plain: FormatHandle,
    stamped: FormatHandle,
}

impl TestNode {
    fn new(backbone: &Arc<Backbone>, rule: Rule, limits: Limits) -> Self {
        let node = backbone.node();
        let hub = hub_with(&node, rule, limits);
        Self {
            plain: hub.register_format(Lines::plain("plain")).unwrap(),
            stamped: hub.register_format(Lines::stamped("stamped")).unwrap(),
            node,
            hub,
        }
    }
}

#[derive(Debug, Clone)]
enum Action {
    Publish(usize, usize),
    Read(usize),
    /// Goes away, and comes back on that node.
    Move(usize),
    GoAway,
    Lag(usize),
    CatchUpBy(usize, usize),
    CatchUp(usize),
    Cut(usize),
    Lose(usize, usize),
    Settle,
    /// Long enough for anything that waits before it tries again, and for logs to be closed.
    Pause,
}

fn step() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => (0..3usize, 1..6usize).prop_map(|(channel, count)| Action::Publish(channel, count)),
        4 => (0..8usize).prop_map(Action::Read),
        4 => (0..2usize).prop_map(Action::Move),
        1 => Just(Action::GoAway),
        2 => (0..2usize).prop_map(Action::Lag),
        2 => (0..2usize, 1..4usize).prop_map(|(node, count)| Action::CatchUpBy(node, count)),
        2 => (0..2usize).prop_map(Action::CatchUp),
        1 => (0..2usize).prop_map(Action::Cut),
        1 => (0..2usize, 1..4usize).prop_map(|(node, count)| Action::Lose(node, count)),
        4 => Just(Action::Settle),
        1 => Just(Action::Pause),
    ]
}

const CHANNELS: [&str; 3] = ["a", "b", "c"];

async fn run(steps: Vec<Action>, rule: Rule, stamped: bool, ring_events: usize) -> Client {
    let limits = limits().with(|limits| limits.ring_events = ring_events);
    let backbone = Backbone::new();
    let places = [(); 2].map(|()| TestNode::new(&backbone, rule.clone(), limits.clone()));
    let channels = if stamped { &CHANNELS[..] } else { &CHANNELS[..1] };
    let mut client = Client::new(channels, stamped);
    let mut published: HashMap<String, Vec<Position>> = HashMap::new();
    let mut said = 0;
    let mut publish = |channel: &str| {
        said += 1;
        let position = backbone.say_keyed(channel, &format!("key-{}", said % 3), &said.to_string());
        published.entry(channel.to_owned()).or_default().push(position);
    };
    for step in steps {
        match step {
            Action::Publish(channel, count) => (0..count).for_each(|_| publish(channels[channel % channels.len()])),
            Action::Read(count) => client.read(count),
            Action::Move(place) => client.come_to(&places[place]).await,
            Action::GoAway => client.listener = None,
            Action::Lag(place) => places[place].node.lag(),
            Action::CatchUpBy(place, count) => places[place].node.catch_up_by(count),
            Action::CatchUp(place) => places[place].node.catch_up(),
            Action::Cut(place) => places[place].node.cut(),
            Action::Lose(place, count) => places[place].node.lose(count),
            Action::Settle => settle().await,
            Action::Pause => tokio::time::sleep(Duration::from_secs(60)).await,
        }
    }
    if client.cursor.is_none() {
        client.come_to(&places[0]).await;
        client.read(usize::MAX);
    }
    // A node that lost something in silence finds out with the next event that it sees.
    for place in &places {
        place.node.lose(0);
        place.node.catch_up();
    }
    channels.iter().for_each(|channel| publish(channel));
    if client.listener.is_none() {
        client.come_to(&places[1]).await;
    }
    for line in client.listener.as_mut().unwrap().settled().await {
        client.take_in(line);
    }
    let every = rule.delivery == Delivery::Every;
    if every {
        client.has_everything(&published);
    } else {
        for (channel, all) in &published {
            assert_eq!(client.has[channel], *all.last().unwrap(), "the newest comes last");
        }
    }
    client
}

fn paused<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(work)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    /// P3 to P8 over two nodes that lag, lose events in silence and lose their feeds, for a client
    /// that may go at any moment. With a ring of four events most of it comes from the broker's
    /// history.
    #[test]
    fn a_client_that_comes_back_has_missed_nothing(
        steps in prop::collection::vec(step(), 20..150),
        stamped in any::<bool>(),
        ring_events in prop_oneof![Just(4), Just(1024)],
        max_rate in prop_oneof![Just(None), Just(std::num::NonZeroU32::new(5))],
    ) {
        let mut rule = rule();
        rule.history.events = 4;
        rule.max_rate = max_rate;
        paused(run(steps, rule, stamped, ring_events));
    }

    /// A listener of a conflated channel does not get every event. In the end it has the newest, in
    /// order and never twice.
    #[test]
    fn a_client_that_comes_back_to_a_conflated_channel_ends_with_the_newest(
        steps in prop::collection::vec(step(), 20..150),
        stamped in any::<bool>(),
        ring_events in prop_oneof![Just(4), Just(1024)],
        max_rate in prop_oneof![Just(None), Just(std::num::NonZeroU32::new(5))],
    ) {
        let mut rule = rule();
        rule.delivery = Delivery::Latest;
        rule.history.events = 4;
        rule.max_rate = max_rate;
        paused(run(steps, rule, stamped, ring_events));
    }
}

/// Publishes to all channels until it is stopped, and gives what it has published. Both nodes are
/// behind for most of the time, by different amounts.
fn publish_without_pause(
    backbone: &Backbone,
    places: &[TestNode],
    stop: &std::sync::atomic::AtomicBool,
) -> HashMap<String, Vec<Position>> {
    let mut published: HashMap<String, Vec<Position>> = HashMap::new();
    let mut turn = 0;
    while !stop.load(SeqCst) {
        let channel = CHANNELS[turn % 3];
        published
            .entry(channel.to_owned())
            .or_default()
            .push(backbone.say(channel, &turn.to_string()));
        match turn % 64 {
            10 => places[0].node.lag(),
            20 => places[1].node.lag(),
            30 => places[0].node.catch_up(),
            50 => places[1].node.catch_up(),
            _ => {}
        }
        if turn % 700 == 0 {
            places[turn % 2].node.cut();
        }
        turn += 1;
        std::thread::sleep(Duration::from_micros(300));
    }
    places.iter().for_each(|place| place.node.catch_up());
    for channel in CHANNELS {
        published.get_mut(channel).unwrap().push(backbone.say(channel, "last"));
    }
    published
}

/// A client that changes the node each time, the `n`th of several.
async fn resume_300_times(n: usize, places: Arc<[TestNode]>) -> Client {
    let stamped = n.is_multiple_of(2);
    let mut client = Client::new(if stamped { &CHANNELS } else { &CHANNELS[n % 3..][..1] }, stamped);
    for turn in 0..300 {
        client.come_to(&places[(turn + n) % 2]).await;
        // The confirmations at least, now and then some events.
        let want = client.channels.len() + [0, 1, 7, 40][turn % 4];
        for _ in 0..want {
            let line = client.listener.as_mut().unwrap().line().await;
            client.take_in(line);
        }
    }
    client
}

/// The same with real threads and real time: a publisher that does not pause, nodes whose lag
/// changes, hundreds of resumes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_resumes_while_publishing_goes_on() {
    let backbone = Backbone::new();
    let mut rule = rule();
    rule.history.events = 16;
    let limits = limits().with(|limits| {
        limits.ring_events = 16;
        limits.linger = Duration::from_millis(40);
    });
    let places: Arc<[TestNode]> = (0..2)
        .map(|_| TestNode::new(&backbone, rule.clone(), limits.clone()))
        .collect();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let publisher = {
        let (backbone, stop, places) = (backbone.clone(), stop.clone(), places.clone());
        std::thread::spawn(move || publish_without_pause(&backbone, &places, &stop))
    };
    let clients = (0..4).map(|n| tokio::spawn(resume_300_times(n, places.clone())));
    let mut done = Vec::new();
    for client in clients.collect::<Vec<_>>() {
        done.push(client.await.unwrap());
    }
    stop.store(true, SeqCst);
    let published = tokio::task::spawn_blocking(move || publisher.join().unwrap()).await.unwrap();
    for mut client in done {
        assert!(client.resumes >= 300);
        client.come_to(&places[0]).await;
        while client
            .channels
            .iter()
            .any(|channel| client.has[channel] < *published[channel].last().unwrap())
        {
            let line = client.listener.as_mut().unwrap().line().await;
            client.take_in(line);
        }
        client.has_everything(&published);
    }
}

/// A client that is cut off between the confirmations of a stream of several channels comes back
/// for all of them.
#[tokio::test(start_paused = true)]
async fn a_stream_that_is_cut_off_after_its_first_line_is_resumed_whole() {
    let backbone = Backbone::new();
    let place = TestNode::new(&backbone, rule(), limits());
    let mut client = Client::new(&CHANNELS, true);
    client.come_to(&place).await;
    client.read(usize::MAX);
    let mut published: HashMap<String, Vec<Position>> = HashMap::new();
    for round in 0..20 {
        for channel in CHANNELS {
            published.entry(channel.into()).or_default().push(backbone.say(channel, "x"));
        }
        client.come_to(&place).await;
        client.read(1 + round % 3);
    }
    client.come_to(&place).await;
    client.read(usize::MAX);
    client.has_everything(&published);
}

/// Pages follow each other without a seam, from history into the ring.
#[tokio::test(start_paused = true)]
async fn a_long_absence_is_made_up_in_pages() {
    for stamped in [false, true] {
        let backbone = Backbone::new();
        let place = TestNode::new(&backbone, rule(), limits().with(|limits| limits.ring_events = 100));
        let mut client = Client::new(&CHANNELS[..1], stamped);
        client.come_to(&place).await;
        client.read(usize::MAX);
        client.listener = None;
        let published: Vec<_> = (0..2345).map(|n| backbone.say("a", &n.to_string())).collect();
        let published = HashMap::from([("a".to_owned(), published)]);
        let replays = place.node.replays.load(SeqCst);
        client.come_to(&place).await;
        for line in client.listener.as_mut().unwrap().settled().await {
            client.take_in(line);
        }
        client.has_everything(&published);
        assert_eq!(client.heard["a"].len(), 2345);
        let replays = place.node.replays.load(SeqCst) - replays;
        assert_eq!(replays, 5, "2345 events in pages of 500");
    }
}
