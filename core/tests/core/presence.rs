use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use airwave_core::directory::{Directory, HEARTBEAT_EVERY, Heartbeat, MemberEntry, NODE_EXPIRES, NodeId, Watch, WatchSender};
use airwave_core::handler::{Handler, Identity};
use airwave_core::hub::FormatHandle;
use airwave_core::session::After;
use airwave_core::{BrokerError, ChannelName, Code, ConnectRequest, Hub, Refusal, Rule, Rules, Session};
use async_trait::async_trait;
use tokio::time::{Instant, sleep};

use crate::support::*;

const ROOM: &str = "chat/lobby";
/// Longer than the grace of a member whose connection broke, and shorter than anything else that is
/// waited for.
const GRACE_OVER: Duration = Duration::from_secs(4);

/// What the nodes of a test have in common, and what can happen to it.
#[derive(Default)]
struct Desk {
    state: Mutex<DirectoryState>,
    away: AtomicBool,
    sets: AtomicUsize,
    lists: AtomicUsize,
    /// Lists are old when they arrive.
    slow: AtomicBool,
}

#[derive(Default)]
struct DirectoryState {
    beats: HashMap<NodeId, Instant>,
    entries: HashMap<(ChannelName, NodeId, Arc<str>), MemberEntry>,
    watches: Vec<(ChannelName, WatchSender)>,
}

impl Desk {
    async fn reach(&self) -> Result<(), BrokerError> {
        // No call is answered at once, nor in the order of the calls.
        sleep(Duration::from_millis(2)).await;
        match self.away.load(SeqCst) {
            true => Err(BrokerError::unavailable("on purpose")),
            false => Ok(()),
        }
    }

    fn living(state: &mut DirectoryState) {
        state.beats.retain(|_, last| last.elapsed() < NODE_EXPIRES);
        let DirectoryState { beats, entries, .. } = state;
        entries.retain(|(_, node, _), _| beats.contains_key(node));
    }

    fn cut(&self) {
        let watches = std::mem::take(&mut self.state.lock().unwrap().watches);
        drop(watches);
    }

    fn wipe(&self) {
        let mut state = self.state.lock().unwrap();
        state.entries.clear();
        state.beats.clear();
    }

    fn entries(&self) -> usize {
        self.state.lock().unwrap().entries.len()
    }

    fn watches(&self) -> usize {
        let mut state = self.state.lock().unwrap();
        state.watches.retain(|(_, watch)| !watch.is_closed());
        state.watches.len()
    }
}

#[async_trait]
impl Directory for Desk {
    async fn set(&self, channel: &ChannelName, entries: &[MemberEntry]) -> Result<(), BrokerError> {
        self.sets.fetch_add(1, SeqCst);
        assert!(!entries.is_empty() && entries.len() <= 500);
        self.reach().await?;
        let mut state = self.state.lock().unwrap();
        for entry in entries {
            let key = (channel.clone(), entry.node, entry.member.clone());
            if state.beats.contains_key(&entry.node) && entry.value.is_some() {
                state.entries.insert(key, entry.clone());
            } else {
                state.entries.remove(&key);
            }
            state
                .watches
                .retain(|(name, watch)| name != channel || watch.push(entry.clone()));
        }
        Ok(())
    }

    async fn list(&self, channel: &ChannelName) -> Result<Vec<MemberEntry>, BrokerError> {
        self.lists.fetch_add(1, SeqCst);
        self.reach().await?;
        let entries = {
            let mut state = self.state.lock().unwrap();
            Self::living(&mut state);
            let entries = state.entries.iter().filter(|((name, ..), _)| name == channel);
            entries.map(|(_, entry)| entry.clone()).collect()
        };
        if self.slow.load(SeqCst) {
            sleep(Duration::from_secs(1)).await;
        }
        Ok(entries)
    }

    async fn watch(&self, channel: &ChannelName) -> Result<Watch, BrokerError> {
        self.reach().await?;
        let (sender, watch) = Watch::new(|| {});
        self.state.lock().unwrap().watches.push((channel.clone(), sender));
        Ok(watch)
    }

    async fn heartbeat(&self, node: NodeId) -> Result<Heartbeat, BrokerError> {
        self.reach().await?;
        let mut state = self.state.lock().unwrap();
        Self::living(&mut state);
        let known = state.beats.insert(node, Instant::now()).is_some();
        Ok(Heartbeat::new(known, state.beats.keys().copied().collect()))
    }

    async fn leave(&self, node: NodeId) -> Result<(), BrokerError> {
        self.reach().await?;
        let mut state = self.state.lock().unwrap();
        state.beats.remove(&node);
        Self::living(&mut state);
        Ok(())
    }
}

/// One node's way to the desk. A node that is cut off for ever is a dead one, for all others.
struct Way {
    desk: Arc<Desk>,
    dead: AtomicBool,
}

impl Way {
    async fn desk(&self) -> Result<&Desk, BrokerError> {
        match self.dead.load(SeqCst) {
            true => std::future::pending().await,
            false => Ok(&self.desk),
        }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Directory for Way {
    async fn set(&self, channel: &ChannelName, entries: &[MemberEntry]) -> Result<(), BrokerError> {
        self.desk().await?.set(channel, entries).await
    }

    async fn list(&self, channel: &ChannelName) -> Result<Vec<MemberEntry>, BrokerError> {
        self.desk().await?.list(channel).await
    }

    async fn watch(&self, channel: &ChannelName) -> Result<Watch, BrokerError> {
        self.desk().await?.watch(channel).await
    }

    async fn heartbeat(&self, node: NodeId) -> Result<Heartbeat, BrokerError> {
        self.desk().await?.heartbeat(node).await
    }

    async fn leave(&self, node: NodeId) -> Result<(), BrokerError> {
        self.desk().await?.leave(node).await
    }
}

/// `?USER` or `?USER&META`; without either, an anonymous client.
struct ByQuery;

impl Handler for ByQuery {
    async fn connect(&self, request: &ConnectRequest) -> Result<Identity, Refusal> {
        Ok(match request.query.split_once('&') {
            _ if request.query.is_empty() => Identity::anonymous(),
            None => Identity::user(request.query.clone()),
            Some((user, meta)) => Identity::user(user).with_meta(meta)?,
        })
    }
}

fn with_presence() -> Rule {
    rule().with_presence(true)
}

/// One node of its own, with the wire its clients are written to.
struct PresenceNode {
    way: Arc<Way>,
    hub: Hub,
    format: FormatHandle,
}

impl PresenceNode {
    fn at(desk: &Arc<Desk>, backbone: &Arc<Backbone>) -> Self {
        let way = Arc::new(Way {
            desk: desk.clone(),
            dead: AtomicBool::new(false),
        });
        let hub = Hub::builder(backbone.node(), Rules::new([with_presence()]))
            .limits(limits())
            .directory(way.clone())
            .handle("{*all}".parse().unwrap(), ByQuery)
            .build();
        let format = hub.register_format(Lines::plain("lines")).unwrap();
        Self { way, hub, format }
    }

    fn session(&self, who: &str) -> Listener {
        let request = request().with_query(who);
        Listener::of(Session::new(self.hub.connect(request, true).unwrap(), &self.format))
    }

    /// A member that does not care who else is there.
    async fn member(&self, who: &str) -> Listener {
        let mut listener = self.session(who);
        listener.subscribe(ROOM, After::Nothing).await.unwrap();
        listener.confirmation().await;
        listener
    }

    /// A member that wants to hear who is there.
    async fn watcher(&self, who: &str) -> Listener {
        let mut listener = self.session(who);
        let joined = listener
            .session
            .subscriber()
            .with_presence(true)
            .subscribe(&name(ROOM), After::Nothing)
            .await;
        listener.session.add(joined.unwrap(), None);
        listener.confirmation().await;
        listener
    }

    async fn members(&self) -> Vec<String> {
        let members = self.hub.channel(ROOM).unwrap().members().await.unwrap();
        members.iter().map(|member| one(member)).collect()
    }
}

fn nodes<const N: usize>() -> (Arc<Desk>, [PresenceNode; N]) {
    let (desk, backbone) = (Arc::new(Desk::default()), Backbone::new());
    let places = std::array::from_fn(|_| PresenceNode::at(&desk, &backbone));
    (desk, places)
}

/// What was told in `lines`, applied to what was known before.
#[derive(Default)]
struct Known {
    members: HashMap<String, String>,
    more: bool,
}

impl Known {
    #[track_caller]
    fn take(&mut self, lines: &[Frame]) {
        let split = |member: &str| {
            member
                .split_once('*')
                .map(|(user, rest)| (user.to_owned(), rest.to_owned()))
                .unwrap()
        };
        for line in lines {
            match line {
                Frame::Members { members, more, .. } => {
                    if !self.more {
                        self.members.clear();
                    }
                    self.members.extend(members.iter().map(|member| split(member)));
                    self.more = *more;
                }
                Frame::Change { change, member, .. } => {
                    assert!(!self.more, "a change within a list");
                    let (user, rest) = split(member);
                    let known = match change.as_str() {
                        "leave" => self.members.remove(&user).is_some(),
                        _ => self.members.insert(user, rest).is_some(),
                    };
                    assert_eq!(known, change != "join", "{change} {member}");
                }
                other => panic!("not about members: {other:?}"),
            }
        }
    }

    fn all(&self) -> Vec<String> {
        let mut all: Vec<String> = self.members.iter().map(|(user, rest)| format!("{user}*{rest}")).collect();
        all.sort();
        all
    }
}

fn changes(lines: &[Frame]) -> Vec<String> {
    let change = |line: &Frame| match line {
        Frame::Change { change, member, .. } => format!("{change} {member}"),
        Frame::Members { members, .. } => format!("members {}", members.join(",")),
        other => panic!("not about members: {other:?}"),
    };
    lines.iter().map(change).collect()
}

#[tokio::test(start_paused = true)]
async fn a_listener_is_told_who_is_there_and_then_who_comes_and_goes() {
    let (_, [here]) = nodes();
    let ann = here.member("ann").await;
    let mut bob = here.watcher("bob").await;
    assert_eq!(changes(&bob.settled().await), ["members ann*1,bob*1"]);

    let carol = here.member("carol&red").await;
    assert_eq!(changes(&bob.settled().await), ["join carol*1=\"red\""]);
    let again = here.member("carol").await;
    assert_eq!(changes(&bob.settled().await), ["update carol*2=\"red\""]);
    drop(ann);
    sleep(GRACE_OVER).await;
    assert_eq!(changes(&bob.settled().await), ["leave ann*0"]);
    drop((carol, again));
    sleep(GRACE_OVER).await;
    assert_eq!(changes(&bob.settled().await), ["leave carol*0=\"red\""]);
    assert_eq!(here.members().await, ["bob*1"]);
}

#[tokio::test(start_paused = true)]
async fn members_are_counted_over_all_nodes() {
    let (_, [here, there]) = nodes();
    let _ann = here.member("ann").await;
    let mut bob = here.watcher("bob").await;
    let one = there.member("ann&blue").await;
    let two = there.member("ann").await;
    assert_eq!(changes(&bob.settled().await).pop().unwrap(), "update ann*3=\"blue\"");
    let mut carol = there.watcher("carol").await;
    assert_eq!(changes(&carol.settled().await), ["members ann*3=\"blue\",bob*1,carol*1"]);
    assert_eq!(changes(&bob.settled().await), ["join carol*1"]);
    for place in [&here, &there] {
        assert_eq!(place.members().await, ["ann*3=\"blue\"", "bob*1", "carol*1"]);
    }
    drop((one, two));
    sleep(GRACE_OVER).await;
    assert_eq!(changes(&bob.settled().await), ["update ann*1"]);
    assert_eq!(changes(&carol.settled().await), ["update ann*1"]);
}

#[tokio::test(start_paused = true)]
async fn a_page_that_is_loaded_again_neither_leaves_nor_joins() {
    let (desk, [here, there]) = nodes();
    let mut bob = there.watcher("bob").await;
    let ann = here.member("ann").await;
    bob.settled().await;
    let sets = desk.sets.load(SeqCst);
    drop(ann);
    sleep(Duration::from_secs(1)).await;
    let _ann = here.member("ann").await;
    assert_eq!(bob.settled().await, []);
    assert_eq!(desk.sets.load(SeqCst), sets, "nor does anybody else hear of it");
    assert_eq!(there.members().await, ["ann*1", "bob*1"]);
}

#[tokio::test(start_paused = true)]
async fn a_member_that_unsubscribes_leaves_at_once() {
    let (_, [here]) = nodes();
    let mut bob = here.watcher("bob").await;
    let mut ann = here.member("ann").await;
    bob.settled().await;
    let before = Instant::now();
    assert!(ann.session.remove(&name(ROOM)));
    assert_eq!(changes(&bob.lines(1).await), ["leave ann*0"]);
    assert!(before.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_channel_empties_its_presence() {
    let (desk, backbone) = (Arc::new(Desk::default()), Backbone::new());
    let here = PresenceNode::at(&desk, &backbone);
    let mut bob = here.watcher("bob").await;
    bob.settled().await;
    backbone.end(ROOM);
    assert!(matches!(bob.line().await, Frame::End { .. }));
    settle().await;
    assert_eq!(here.members().await, [] as [String; 0]);
}

#[tokio::test(start_paused = true)]
async fn the_members_of_a_node_that_crashes_are_gone_after_a_while() {
    let (desk, [here, there]) = nodes();
    let mut bob = here.watcher("bob").await;
    let _ann = there.member("ann").await;
    let _both = (here.member("carol").await, there.member("carol").await);
    assert_eq!(changes(&bob.settled().await).last().unwrap(), "update carol*2");
    let before = Instant::now();
    there.way.dead.store(true, SeqCst);
    let mut told = changes(&bob.lines(2).await);
    told.sort();
    assert_eq!(told, ["leave ann*0", "update carol*1"]);
    assert!(before.elapsed() <= NODE_EXPIRES + HEARTBEAT_EVERY, "{:?}", before.elapsed());
    assert_eq!(here.members().await, ["bob*1", "carol*1"]);
    // It was not dead after all: its members are back, under another life.
    there.way.dead.store(false, SeqCst);
    let mut told = changes(&bob.lines(2).await);
    told.sort();
    assert_eq!(told, ["join ann*1", "update carol*2"]);
    assert_eq!((bob.settled().await, desk.entries()), (vec![], 4));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_deregisters_takes_its_members_with_it_at_once() {
    let (desk, [here, there]) = nodes();
    let mut bob = here.watcher("bob").await;
    let _ann = there.member("ann").await;
    assert_eq!(changes(&bob.settled().await).last().unwrap(), "join ann*1");
    let before = Instant::now();
    there.hub.deregister().await;
    assert_eq!(changes(&bob.lines(1).await), ["leave ann*0"]);
    assert!(before.elapsed() < Duration::from_secs(1));
    // Whatever its sessions still do, nothing is announced any more.
    let sets = desk.sets.load(SeqCst);
    let _dan = there.member("dan").await;
    assert_eq!(bob.settled().await, []);
    assert_eq!((desk.sets.load(SeqCst), desk.entries()), (sets, 1));
}

#[tokio::test(start_paused = true)]
async fn in_an_outage_every_listener_stays_and_afterwards_it_has_everything() {
    let (desk, [here, there]) = nodes();
    let mut bob = here.watcher("bob").await;
    let ann = there.member("ann").await;
    let _dan = there.member("dan").await;
    assert_eq!(changes(&bob.settled().await).last().unwrap(), "join dan*1");

    for longer_than_a_node_lives in [false, true] {
        desk.away.store(true, SeqCst);
        desk.cut();
        sleep(Duration::from_secs(if longer_than_a_node_lives { 60 } else { 6 })).await;
        assert_eq!(bob.settled().await, [], "what is known stays");
        let _eve = there.member("eve").await;
        assert_eq!(bob.settled().await, []);
        desk.away.store(false, SeqCst);
        assert_eq!(changes(&bob.settled().await), ["join eve*1"], "{longer_than_a_node_lives}");
        drop(_eve);
        sleep(2 * NODE_EXPIRES).await;
        assert_eq!(changes(&bob.settled().await), ["leave eve*0"]);
    }
    // A member leaves while the directory is out of reach.
    desk.away.store(true, SeqCst);
    desk.cut();
    drop(ann);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(bob.settled().await, []);
    desk.away.store(false, SeqCst);
    sleep(2 * NODE_EXPIRES).await;
    assert_eq!(changes(&bob.settled().await), ["leave ann*0"]);
    assert_eq!(desk.entries(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_hides_nothing() {
    let (desk, [here, there]) = nodes();
    let mut bob = here.watcher("bob").await;
    let ann = there.member("ann").await;
    bob.settled().await;
    desk.cut();
    let _eve = there.member("eve").await;
    drop(ann);
    sleep(GRACE_OVER).await;
    assert_eq!(changes(&bob.settled().await), ["join eve*1", "leave ann*0"]);
    assert_eq!(desk.watches(), 1, "the other node has no listener");
}

#[tokio::test(start_paused = true)]
async fn what_was_heard_while_the_list_was_on_its_way_is_newer() {
    let (desk, [here, there]) = nodes();
    let mut ann = there.member("ann").await;
    let mut dan = there.member("dan&red").await;
    sleep(Duration::from_secs(1)).await;
    desk.slow.store(true, SeqCst);
    let mut bob = here.watcher("bob").await;
    sleep(Duration::from_millis(100)).await;
    ann.session.remove(&name(ROOM));
    dan.session.remove(&name(ROOM));
    let _dan = there.member("dan&blue").await;
    let mut known = Known::default();
    known.take(&bob.settled().await);
    assert_eq!(known.all(), ["bob*1", "dan*1=\"blue\""]);
}

#[tokio::test(start_paused = true)]
async fn a_member_that_left_while_this_node_was_cut_off_has_left() {
    let (desk, [here, there]) = nodes();
    let mut bob = here.watcher("bob").await;
    let mut ann = there.member("ann").await;
    let _dan = there.member("dan").await;
    bob.settled().await;
    here.way.dead.store(true, SeqCst);
    desk.cut();
    ann.session.remove(&name(ROOM));
    // Long enough for a heartbeat to be missed, and not for the node to be dead.
    assert_eq!(bob.settled().await, []);
    sleep(Duration::from_secs(6)).await;
    here.way.dead.store(false, SeqCst);
    sleep(2 * NODE_EXPIRES).await;
    assert_eq!(changes(&bob.settled().await), ["leave ann*0"]);
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_has_lost_everything_is_told_again() {
    let (desk, [here, there]) = nodes();
    let mut bob = here.watcher("bob").await;
    let _ann = there.member("ann").await;
    bob.settled().await;
    desk.wipe();
    sleep(4 * NODE_EXPIRES).await;
    assert_eq!(bob.settled().await, [], "no node has noticed");
    assert_eq!(desk.entries(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_the_directory_has_wrong_is_put_right() {
    let (desk, [here]) = nodes();
    let _ann = here.member("ann").await;
    let _bob = here.member("bob").await;
    settle().await;
    sleep(Duration::from_secs(1)).await;
    {
        let mut state = desk.state.lock().unwrap();
        // One entry is lost, and one that was cleared has come back.
        let lost = state.entries.keys().find(|(.., member)| &**member == "ann").unwrap().clone();
        let mut ghost = state.entries.remove(&lost).unwrap();
        ghost.member = "ghost".into();
        state.entries.insert((lost.0, lost.1, ghost.member.clone()), ghost);
    }
    sleep(Duration::from_secs(1200)).await;
    let state = desk.state.lock().unwrap();
    let mut members: Vec<&str> = state.entries.keys().map(|(.., member)| &**member).collect();
    members.sort();
    assert_eq!(members, ["ann", "bob"]);
}

#[tokio::test(start_paused = true)]
async fn a_member_that_comes_and_goes_quickly_costs_little() {
    let (desk, [here, there]) = nodes();
    let mut bob = there.watcher("bob").await;
    let _ann = here.member("ann").await;
    bob.settled().await;
    let sets = desk.sets.load(SeqCst);
    for _ in 0..1000 {
        let (mut eve, mut dan) = (here.member("eve").await, here.member("dan").await);
        sleep(Duration::from_millis(3)).await;
        eve.session.remove(&name(ROOM));
        dan.session.remove(&name(ROOM));
        sleep(Duration::from_millis(3)).await;
    }
    let told = bob.settled().await;
    let (told, sets) = (told.len(), desk.sets.load(SeqCst) - sets);
    // Six seconds and a little, a tenth of a second each, two members.
    assert!(told <= 140 && sets <= 70, "{told} {sets}");
    assert_eq!(there.members().await, ["ann*1", "bob*1"]);
    assert_eq!(desk.entries(), 2);
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_members_come_in_pages_and_one_more_in_a_line() {
    let (desk, [here, there]) = nodes();
    let mut crowd = Vec::new();
    for n in 0..10_000 {
        crowd.push(there.member(&format!("user-{n:05}")).await);
    }
    sleep(Duration::from_secs(5)).await;
    assert_eq!(desk.entries(), 10_000);
    let sets = desk.sets.load(SeqCst);
    assert!(sets < 200, "{sets} calls for ten thousand members");

    let mut bob = here.watcher("bob").await;
    let mut known = Known::default();
    let mut lines = bob.settled().await;
    for line in &lines {
        if let Frame::Members { members, .. } = line {
            assert!(members.len() <= 500);
        }
    }
    assert!(lines.len() >= 20, "{} pages", lines.len());
    known.take(&lines);
    assert_eq!(known.members.len(), 10_001);
    assert!(bob.largest < 128 << 10, "{} bytes in one turn", bob.largest);

    let (sets, lists) = (desk.sets.load(SeqCst), desk.lists.load(SeqCst));
    crowd.push(there.member("one-more").await);
    lines = bob.settled().await;
    assert_eq!(changes(&lines), ["join one-more*1"]);
    assert_eq!((desk.sets.load(SeqCst), desk.lists.load(SeqCst)), (sets + 1, lists));

    // All of them go at once. A listener that falls behind gets a list again.
    drop(crowd);
    sleep(GRACE_OVER).await;
    known.take(&bob.settled().await);
    assert_eq!(known.all(), ["bob*1"]);
    assert_eq!(desk.entries(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_falls_off_is_given_the_list_again() {
    let (_, [here, there]) = nodes();
    let mut bob = here.watcher("bob").await;
    let mut known = Known::default();
    known.take(&bob.settled().await);
    let mut all = Vec::new();
    for n in 0..2000 {
        all.push(there.member(&format!("u{n}")).await);
    }
    sleep(Duration::from_secs(5)).await;
    let lines = bob.ready();
    assert!(matches!(lines[0], Frame::Members { .. }), "not one by one");
    known.take(&lines);
    assert_eq!(known.members.len(), 2001);
}

/// The events fill the listener's turn, the last of them just so, and nothing rings for the member
/// again.
#[tokio::test(start_paused = true)]
async fn a_member_that_comes_beside_large_events_is_told_behind_them() {
    let (_, [here]) = nodes();
    let mut bob = here.watcher("bob").await;
    assert_eq!(changes(&bob.settled().await), ["members bob*1"]);
    let _carol = here.member("carol").await;
    let large = "x".repeat(10 << 10);
    for _ in 0..7 {
        here.hub.channel(ROOM).unwrap().publish("say", large.as_str()).await.unwrap();
    }
    sleep(Duration::from_secs(1)).await;
    let lines = bob.ready();
    let (events, members): (Vec<_>, Vec<_>) = lines.into_iter().partition(|line| matches!(line, Frame::Event { .. }));
    assert_eq!(events.len(), 7);
    assert_eq!(changes(&members), ["join carol*1"]);
}

#[tokio::test(start_paused = true)]
async fn the_anonymous_are_one_member_that_is_counted() {
    let (_, [here, there]) = nodes();
    let mut bob = here.watcher("bob").await;
    bob.settled().await;
    let _all = (here.member("").await, there.member("").await, there.member("&said").await);
    assert_eq!(changes(&bob.settled().await).last().unwrap(), "update ?*3");
    assert_eq!(there.members().await, ["bob*1", "?*3"]);
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_does_not_ask_for_members_is_told_none_and_costs_no_watch() {
    let (desk, [here, there]) = nodes();
    let mut ann = here.member("ann").await;
    let _bob = there.member("bob").await;
    assert_eq!(ann.settled().await, []);
    assert_eq!((desk.watches(), desk.lists.load(SeqCst)), (0, 0));

    let mut eve = here.watcher("eve").await;
    let mut dan = here.watcher("dan").await;
    eve.settled().await;
    dan.settled().await;
    assert_eq!((desk.watches(), desk.lists.load(SeqCst)), (1, 1), "one for all of a node");
    drop((eve, dan));
    sleep(Duration::from_secs(60)).await;
    assert_eq!(desk.watches(), 0);
    let mut eve = here.watcher("eve").await;
    assert_eq!(changes(&eve.settled().await), ["members ann*1,bob*1,eve*1"]);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_left_of_members_who_have_gone() {
    let (desk, [here]) = nodes();
    for n in 0..100 {
        let _ = (here.member(&format!("u{n}")).await, here.watcher(&format!("v{n}")).await);
    }
    sleep(Duration::from_secs(60)).await;
    assert_eq!((desk.entries(), desk.watches()), (0, 0));
    let lists = desk.lists.load(SeqCst);
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(desk.lists.load(SeqCst), lists, "the presence set is gone, too");
}

#[tokio::test(start_paused = true)]
async fn a_channel_without_presence_says_what_to_set() {
    let (desk, backbone) = (Arc::new(Desk::default()), Backbone::new());
    let hub = Hub::builder(backbone.node(), Rules::new([rule()]))
        .directory(desk.clone())
        .build();
    let format = hub.register_format(Lines::plain("lines")).unwrap();
    let listener = Listener::new(&hub, &format);
    let subscriber = listener.session.subscriber().with_presence(true);
    let refusal = subscriber.subscribe(&name(ROOM), After::Nothing).await.err().unwrap();
    assert_eq!(refusal.code, Code::BadRequest);
    assert!(refusal.message.contains("presence = true"), "{refusal}");
    let refusal = hub.channel(ROOM).unwrap().members().await.unwrap_err();
    assert_eq!(refusal.code, Code::BadRequest);

    let hub = Hub::builder(backbone.node(), Rules::new([with_presence()])).build();
    let refusal = hub.channel(ROOM).unwrap().members().await.unwrap_err();
    assert!(refusal.message.contains("directory"), "{refusal}");
}

#[tokio::test(start_paused = true)]
async fn an_id_that_is_too_long_is_refused_and_the_longest_is_not() {
    let (_, [here]) = nodes();
    let longest = "é".repeat(127) + "!";
    let mut bob = here.watcher(&longest).await;
    assert_eq!(changes(&bob.settled().await), [format!("members {longest}*1")]);
    let mut eve = here.session(&(longest + "!"));
    let refusal = eve.subscribe(ROOM, After::Nothing).await.err().unwrap();
    assert_eq!(refusal.code, Code::Internal);
    assert!(Identity::user("x").with_meta(&"x".repeat(1022)).is_ok());
    assert!(Identity::user("x").with_meta(&"x".repeat(1023)).is_err());
}

#[tokio::test(start_paused = true)]
async fn members_are_listened_to_on_a_stream_of_several_channels() {
    let (_, [here]) = nodes();
    let format = here.hub.register_format(Lines::stamped("stamped")).unwrap();
    let request = request().with_query("ann");
    let mut listener = Listener::of(Session::new(here.hub.connect(request, true).unwrap(), &format));
    let subscriber = listener.session.subscriber().with_presence(true);
    let mut joined = Vec::new();
    for channel in ["a", "b"] {
        joined.push(subscriber.subscribe(&name(channel), After::Nothing).await.unwrap());
    }
    listener.session.add_all(joined);
    let lines = listener.settled().await;
    let members: Vec<_> = lines.iter().filter(|line| matches!(line, Frame::Members { .. })).collect();
    assert_eq!(
        changes(&members.into_iter().cloned().collect::<Vec<_>>()),
        ["members ann*1", "members ann*1"]
    );
}
