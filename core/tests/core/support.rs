//! What the tests of this binary share: a broker that does what it is told, a wire that can be read
//! back, a client that listens.

use std::collections::{HashMap, VecDeque};
use std::fmt::{Display, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use airwave_core::broker::{Append, BrokerStats, FeedSender, follow_and_replay};
use airwave_core::format::{GapReason, Stamp};
use airwave_core::hub::FormatHandle;
use airwave_core::idempotency::{Fingerprint, ScopedKey};
use airwave_core::rule::{Limits, TransportName};
use airwave_core::session::{After, CloseReason, PendingSubscription, Turn};
use airwave_core::{
    Broker, BrokerError, ChannelName, ConnectRequest, Cursor, Data, Event, EventName, Feed, Format, Hub, Key, Member, Message,
    Notice, PageLimit, Position, Published, Refusal, Replay, Rule, Rules, Session,
};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use tokio::sync::watch;

/// How long a test waits for anything. It decides nothing but when a hang is called one.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub fn name(text: &str) -> ChannelName {
    ChannelName::new(text).unwrap()
}

pub fn say(text: &str) -> Message {
    Message::new(EventName::new("say").unwrap(), Data::text(text))
}

pub fn keyed(key: &str, text: &str) -> Message {
    say(text).with_key(Key::new(key).unwrap())
}

/// A rule for every channel, served over `test`.
pub fn rule() -> Rule {
    Rule::new("{*all}".parse().unwrap(), vec![TEST])
}

pub const TEST: TransportName = TransportName::of("test");

/// One line for each thing that is said, so that a test can read what a client was told.
pub struct Lines {
    name: &'static str,
    stamped: bool,
    pub encodes: AtomicUsize,
}

impl Lines {
    pub fn plain(name: &'static str) -> Arc<Self> {
        Arc::new(Self {
            name,
            stamped: false,
            encodes: AtomicUsize::new(0),
        })
    }

    /// Each line carries the cursor of all channels of the stream.
    pub fn stamped(name: &'static str) -> Arc<Self> {
        Arc::new(Self {
            name,
            stamped: true,
            encodes: AtomicUsize::new(0),
        })
    }
}

impl Format for Lines {
    fn name(&self) -> &'static str {
        self.name
    }

    fn event(&self, channel: &ChannelName, event: &Event) -> Bytes {
        self.encodes.fetch_add(1, SeqCst);
        let text = String::from_utf8(event.message.data.as_bytes().to_vec()).unwrap();
        let end = if self.stamped { "" } else { " -\n" };
        format!("event {channel} {} {text}{end}", event.position).into()
    }

    fn notice(&self, notice: &Notice<'_>) -> Bytes {
        let stamp = |stamp: &Option<&Cursor>| stamp.map_or_else(|| "-".to_owned(), Cursor::to_string);
        match notice {
            Notice::Subscribed {
                channel,
                cursor,
                resumed,
                stamp: all,
                ..
            } => format!("subscribed {channel} {cursor} {resumed} {}\n", stamp(all)),
            Notice::Gap {
                channel,
                gap,
                stamp: all,
            } => {
                let after = gap.after.map_or_else(|| "null".to_owned(), |after| after.to_string());
                let reason = gap.reason.as_str();
                format!("gap {channel} {after} {} {reason} {}\n", gap.cursor, stamp(all))
            }
            Notice::End {
                channel,
                cursor,
                stamp: all,
            } => format!("end {channel} {cursor} {}\n", stamp(all)),
            Notice::Members { channel, members, more } => {
                let members: Vec<String> = members.iter().map(|member| one(member)).collect();
                format!("members {channel} {} {more}\n", members.join(","))
            }
            Notice::Change { channel, change, member } => format!("{} {channel} {}\n", change.as_str(), one(member)),
            Notice::Stale => "stale\n".to_owned(),
            Notice::Heartbeat { visible } => format!("heartbeat {visible}\n"),
            Notice::Drain { .. } => "drain\n".to_owned(),
            _ => "other\n".to_owned(),
        }
        .into()
    }

    fn stamp(&self) -> Option<Stamp> {
        fn stamp(cursor: &dyn Display, out: &mut BytesMut) {
            writeln!(out, " {cursor}").unwrap();
        }
        self.stamped.then_some(stamp as Stamp)
    }
}

/// A line, read back. `stamp` is the cursor of all channels, on wires that have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    Event {
        channel: String,
        position: Position,
        text: String,
        stamp: Option<String>,
    },
    Subscribed {
        channel: String,
        cursor: Position,
        resumed: bool,
        stamp: Option<String>,
    },
    Gap {
        channel: String,
        after: Option<Position>,
        cursor: Position,
        reason: GapReason,
        stamp: Option<String>,
    },
    End {
        channel: String,
        cursor: Position,
        stamp: Option<String>,
    },
    /// Each member as `id*connections`, or with words about it `id*connections=words`; the
    /// anonymous as `?`.
    Members {
        channel: String,
        members: Vec<String>,
        more: bool,
    },
    Change {
        change: String,
        channel: String,
        member: String,
    },
    Stale,
    Heartbeat {
        visible: bool,
    },
    Drain,
    Other,
}

pub fn one(member: &Member) -> String {
    let user = member.user.as_deref().unwrap_or("?");
    let meta = member
        .meta
        .as_ref()
        .map_or_else(String::new, |meta| format!("={}", meta.as_str()));
    format!("{user}*{}{meta}", member.connections)
}

impl Frame {
    fn read(line: &str) -> Frame {
        let words: Vec<_> = line.split(' ').collect();
        let position = |text: &str| text.parse::<Position>().unwrap();
        let stamp = |text: &str| (text != "-").then(|| text.to_owned());
        match *words.as_slice() {
            ["event", channel, at, text, all] => Frame::Event {
                channel: channel.to_owned(),
                position: position(at),
                text: text.to_owned(),
                stamp: stamp(all),
            },
            ["subscribed", channel, cursor, resumed, all] => Frame::Subscribed {
                channel: channel.to_owned(),
                cursor: position(cursor),
                resumed: resumed == "true",
                stamp: stamp(all),
            },
            ["gap", channel, after, cursor, reason, all] => Frame::Gap {
                channel: channel.to_owned(),
                after: (after != "null").then(|| position(after)),
                cursor: position(cursor),
                reason: *GapReason::ALL.iter().find(|known| known.as_str() == reason).unwrap(),
                stamp: stamp(all),
            },
            ["end", channel, cursor, all] => Frame::End {
                channel: channel.to_owned(),
                cursor: position(cursor),
                stamp: stamp(all),
            },
            ["members", channel, members, more] => Frame::Members {
                channel: channel.to_owned(),
                members: members
                    .split(',')
                    .filter(|member| !member.is_empty())
                    .map(str::to_owned)
                    .collect(),
                more: more == "true",
            },
            [change @ ("join" | "leave" | "update"), channel, member] => Frame::Change {
                change: change.to_owned(),
                channel: channel.to_owned(),
                member: member.to_owned(),
            },
            ["stale"] => Frame::Stale,
            ["heartbeat", visible] => Frame::Heartbeat {
                visible: visible == "true",
            },
            ["drain"] => Frame::Drain,
            ["other"] => Frame::Other,
            _ => panic!("not a line: {line:?}"),
        }
    }

    /// What a client would come back with: the position of one channel, or the stream's cursor.
    pub fn cursor(&self) -> Option<String> {
        let (position, stamp) = match self {
            Frame::Event { position, stamp, .. } => (position, stamp),
            Frame::Subscribed { cursor, stamp, .. } | Frame::Gap { cursor, stamp, .. } | Frame::End { cursor, stamp, .. } => {
                (cursor, stamp)
            }
            _ => return None,
        };
        Some(stamp.clone().unwrap_or_else(|| position.to_string()))
    }

    /// The text of an event.
    #[track_caller]
    pub fn text(&self) -> &str {
        match self {
            Frame::Event { text, .. } => text,
            other => panic!("not an event: {other:?}"),
        }
    }
}

/// The texts of the events among `lines`; anything else is a failure.
#[track_caller]
pub fn texts(lines: &[Frame]) -> Vec<&str> {
    let mut texts = Vec::new();
    for line in lines {
        texts.push(line.text());
    }
    texts
}

/// A connected client: reads what its session gives, line by line.
pub struct Listener {
    pub session: Session,
    read: VecDeque<Frame>,
    pub closed: Option<CloseReason>,
    /// The largest turn so far, in bytes.
    pub largest: usize,
}

pub fn request() -> ConnectRequest {
    ConnectRequest::new(TEST)
}

impl Listener {
    /// A session without channels.
    pub fn new(hub: &Hub, format: &FormatHandle) -> Self {
        Self::of(Session::new(hub.connect(request(), true).unwrap(), format))
    }

    pub fn of(session: Session) -> Self {
        Self {
            session,
            read: VecDeque::new(),
            closed: None,
            largest: 0,
        }
    }

    /// A session that listens to `channel`. The confirmation is the first line.
    pub async fn at(hub: &Hub, format: &FormatHandle, channel: &str, after: After) -> Self {
        let mut listener = Self::new(hub, format);
        listener.subscribe(channel, after).await.unwrap();
        listener
    }

    pub async fn join(&mut self, channel: &str, after: After) -> Result<PendingSubscription, Refusal> {
        let subscriber = self.session.subscriber();
        let joined = tokio::time::timeout(PATIENCE * 10, subscriber.subscribe(&name(channel), after)).await;
        joined.expect("a join must not hang")
    }

    pub async fn subscribe(&mut self, channel: &str, after: After) -> Result<(), Refusal> {
        let joined = self.join(channel, after).await?;
        self.session.add(joined, None);
        Ok(())
    }

    fn take_in(&mut self, out: &mut Vec<Bytes>, turn: Turn) {
        self.largest = self.largest.max(out.iter().map(Bytes::len).sum());
        for bytes in out.drain(..) {
            let text = std::str::from_utf8(&bytes).unwrap();
            assert!(text.ends_with('\n'), "a turn ends with a whole line: {text:?}");
            self.read.extend(text.lines().map(Frame::read));
        }
        if let Turn::Closed(reason) = turn {
            self.closed = Some(reason);
        }
    }

    /// What can be read without waiting.
    pub fn ready(&mut self) -> Vec<Frame> {
        let mut cx = Context::from_waker(Waker::noop());
        let mut out = Vec::new();
        while self.closed.is_none() {
            match self.session.poll_turn(&mut cx, &mut out) {
                Poll::Ready(turn) => self.take_in(&mut out, turn),
                Poll::Pending => break,
            }
        }
        self.read.drain(..).collect()
    }

    /// The first `count` lines of what can be read without waiting. What is left over stays.
    pub fn take_ready(&mut self, count: usize) -> Vec<Frame> {
        let ready = self.ready();
        self.read.extend(ready);
        let count = count.min(self.read.len());
        self.read.drain(..count).collect()
    }

    /// Everything that comes until nothing has come for longer than anybody in core waits before
    /// trying again. Only with paused time.
    pub async fn settled(&mut self) -> Vec<Frame> {
        let mut lines = self.ready();
        let mut quiet = 0;
        while quiet < 30 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let more = self.ready();
            quiet = if more.is_empty() { quiet + 1 } else { 0 };
            lines.extend(more);
        }
        lines
    }

    /// The next line, waited for. `None`: the session closed.
    pub async fn maybe_line(&mut self) -> Option<Frame> {
        loop {
            if let Some(line) = self.read.pop_front() {
                return Some(line);
            }
            if self.closed.is_some() {
                return None;
            }
            let mut out = Vec::new();
            let turn = tokio::time::timeout(PATIENCE, self.session.turn(&mut out)).await;
            let turn = turn.unwrap_or_else(|_| panic!("nothing came for {PATIENCE:?}"));
            self.take_in(&mut out, turn);
        }
    }

    pub async fn line(&mut self) -> Frame {
        let line = self.maybe_line().await;
        line.unwrap_or_else(|| panic!("the session closed: {:?}", self.closed))
    }

    /// The next `count` lines.
    pub async fn lines(&mut self, count: usize) -> Vec<Frame> {
        let mut lines = Vec::new();
        while lines.len() < count {
            lines.push(self.line().await);
        }
        lines
    }

    /// Lines until the session closes.
    pub async fn rest(&mut self) -> Vec<Frame> {
        let mut lines = Vec::new();
        while let Some(line) = self.maybe_line().await {
            lines.push(line);
        }
        lines
    }

    /// The confirmation: its cursor, and whether it is a resume.
    pub async fn confirmation(&mut self) -> (Position, bool) {
        match self.line().await {
            Frame::Subscribed { cursor, resumed, .. } => (cursor, resumed),
            other => panic!("not a confirmation: {other:?}"),
        }
    }
}

/// With paused time: comes back when every task waits for something that is further away than a
/// millisecond.
pub async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

/// What all nodes see: channels, whole or not.
pub struct Backbone {
    channels: Mutex<HashMap<ChannelName, Channel>>,
    nodes: Mutex<Vec<Weak<Node>>>,
    /// Brokers like JetStream: what came before the oldest event that is kept is not known.
    forgets_previous: AtomicBool,
}

struct Channel {
    /// The highest position ever given.
    given: Position,
    base: Position,
    head: Position,
    events: VecDeque<Arc<Event>>,
    ended: bool,
    keys: HashMap<ScopedKey, (Position, Fingerprint)>,
    feeds: Vec<FollowerFeed>,
    feeds_opened: usize,
    /// What the node is asked to keep.
    keep: usize,
}

struct FollowerFeed {
    id: usize,
    node: Weak<Node>,
    sender: FeedSender,
    /// Held back.
    late: VecDeque<Arc<Event>>,
}

/// Where events are missing in a page that says nothing of it.
#[derive(Debug, Clone, Copy)]
pub enum Torn {
    AtTheEnd,
    InTheMiddle,
}

/// One node's way to the backbone: its feeds may lag, lose events in silence, end; its calls may
/// fail or hang.
pub struct Node {
    backbone: Arc<Backbone>,
    me: Weak<Node>,
    lagging: AtomicBool,
    /// So many events are not shown to this node's feeds.
    to_lose: AtomicUsize,
    unavailable: AtomicBool,
    /// So many replays are overtaken by trimming while they are read.
    to_tear: Mutex<(usize, Torn)>,
    hanging: watch::Sender<bool>,
    holding: watch::Sender<bool>,
    pub follows: AtomicUsize,
    pub replays: AtomicUsize,
    /// So many events replays have answered with.
    pub events_read: AtomicUsize,
    pub publishes: AtomicUsize,
    pub pings: AtomicUsize,
    /// Feeds that are open, and feeds that this node unsubscribed.
    pub feeds: AtomicUsize,
    pub unsubscribed: AtomicUsize,
    /// Feeds end as soon as they are opened.
    pub stillborn: AtomicBool,
    pub stats: BrokerStats,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap()
}

impl Backbone {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            channels: Mutex::default(),
            nodes: Mutex::default(),
            forgets_previous: AtomicBool::new(false),
        })
    }

    /// From now on the previous of an event is known only while the broker keeps it.
    pub fn forget_previous(&self) {
        self.forgets_previous.store(true, SeqCst);
    }

    pub fn node(self: &Arc<Self>) -> Arc<Node> {
        let node = Arc::new_cyclic(|me| Node {
            backbone: self.clone(),
            me: me.clone(),
            lagging: AtomicBool::new(false),
            to_lose: AtomicUsize::new(0),
            unavailable: AtomicBool::new(false),
            to_tear: Mutex::new((0, Torn::AtTheEnd)),
            hanging: watch::channel(false).0,
            holding: watch::channel(false).0,
            follows: AtomicUsize::new(0),
            replays: AtomicUsize::new(0),
            events_read: AtomicUsize::new(0),
            publishes: AtomicUsize::new(0),
            pings: AtomicUsize::new(0),
            feeds: AtomicUsize::new(0),
            unsubscribed: AtomicUsize::new(0),
            stillborn: AtomicBool::new(false),
            stats: BrokerStats::default(),
        });
        lock(&self.nodes).push(Arc::downgrade(&node));
        node
    }

    fn with<T>(&self, channel: &str, act: impl FnOnce(&mut Channel) -> T) -> T {
        let mut channels = lock(&self.channels);
        let channel = channels.entry(name(channel)).or_insert_with(|| {
            let base = Position::ZERO.next();
            Channel {
                given: base,
                base,
                head: base,
                events: VecDeque::new(),
                ended: false,
                keys: HashMap::new(),
                feeds: Vec::new(),
                feeds_opened: 0,
                keep: usize::MAX,
            }
        });
        act(channel)
    }

    /// Publishes, past all nodes.
    pub fn publish(&self, channel: &str, append: Append) -> Result<Published, BrokerError> {
        self.with(channel, |channel| {
            let fingerprint = append.fingerprint();
            if let Some(&(position, first)) = append.idempotency_key.as_ref().and_then(|key| channel.keys.get(key)) {
                if first != fingerprint {
                    return Err(BrokerError::another_payload());
                }
                return Ok(Published::duplicate_of(position));
            }
            if channel.ended {
                return Err(BrokerError::ended());
            }
            channel.ended = append.ends_channel();
            let end = append.end_behind();
            for message in [append.message].into_iter().chain(end) {
                let position = channel.given.next();
                let forgotten = self.forgets_previous.load(SeqCst) && channel.events.is_empty();
                let event = Arc::new(Event::new(
                    position,
                    if forgotten { Position::ZERO } else { channel.head },
                    message,
                ));
                (channel.given, channel.head) = (position, position);
                channel.events.push_back(event.clone());
                while channel.events.len() > channel.keep {
                    channel.events.pop_front();
                }
                channel.feeds.retain_mut(|feed| feed.show(&event));
            }
            if let Some(key) = append.idempotency_key {
                channel.keys.insert(key, (channel.head, fingerprint));
            }
            Ok(Published::new(channel.head))
        })
    }

    /// Says something, past all nodes.
    pub fn say(&self, channel: &str, text: &str) -> Position {
        self.publish(channel, Append::new(say(text))).unwrap().position
    }

    pub fn say_keyed(&self, channel: &str, key: &str, text: &str) -> Position {
        self.publish(channel, Append::new(keyed(key, text))).unwrap().position
    }

    pub fn end(&self, channel: &str) -> Position {
        self.publish(channel, Append::end()).unwrap().position
    }

    pub fn head(&self, channel: &str) -> Position {
        self.with(channel, |channel| channel.head)
    }

    /// From now on only the newest `count` events are kept.
    pub fn keep(&self, channel: &str, count: usize) {
        self.with(channel, |channel| {
            channel.keep = count;
            while channel.events.len() > count {
                channel.events.pop_front();
            }
        });
    }

    /// A failover to a replica that lacks the newest `count` events. Feeds are not told.
    pub fn lose_tail(&self, channel: &str, count: usize) {
        self.with(channel, |channel| {
            for _ in 0..count {
                let lost = channel.events.pop_back().unwrap();
                channel.head = lost.previous;
                channel.ended = false;
            }
        });
    }

    /// The store is empty, and the channel begins anew. Feeds are not told.
    pub fn wipe(&self, channel: &str) {
        self.with(channel, |channel| {
            channel.events.clear();
            channel.keys.clear();
            channel.ended = false;
            channel.given = channel.given.next();
            (channel.base, channel.head) = (channel.given, channel.given);
        });
    }

    /// All feeds of the channel end, on all nodes.
    pub fn end_feeds(&self, channel: &str) {
        let feeds = self.with(channel, |channel| std::mem::take(&mut channel.feeds));
        drop(feeds);
    }
}

impl FollowerFeed {
    fn show(&mut self, event: &Arc<Event>) -> bool {
        let Some(node) = self.node.upgrade() else { return false };
        let lost = node.to_lose.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok();
        if lost {
            return true;
        }
        if node.lagging.load(SeqCst) {
            self.late.push_back(event.clone());
            return true;
        }
        self.sender.push(event.clone())
    }
}

impl Node {
    /// Holds back what the node's feeds show, until [`Node::catch_up`].
    pub fn lag(&self) {
        self.lagging.store(true, SeqCst);
    }

    /// Shows up to `count` of the events that are held back, oldest first.
    pub fn catch_up_by(&self, count: usize) {
        let mut channels = lock(&self.backbone.channels);
        for feed in channels.values_mut().flat_map(|channel| &mut channel.feeds) {
            if feed.node.as_ptr() == self.me.as_ptr() {
                for _ in 0..count {
                    let Some(event) = feed.late.pop_front() else { break };
                    feed.sender.push(event);
                }
            }
        }
    }

    /// Shows everything that was held back, and holds back nothing more.
    pub fn catch_up(&self) {
        self.lagging.store(false, SeqCst);
        self.catch_up_by(usize::MAX);
    }

    /// Hides the next `count` events from this node, without a notice.
    pub fn lose(&self, count: usize) {
        self.to_lose.store(count, SeqCst);
    }

    /// This node's feeds end.
    pub fn cut(&self) {
        let mut cut = Vec::new();
        let mut channels = lock(&self.backbone.channels);
        for channel in channels.values_mut() {
            let (mine, others) = std::mem::take(&mut channel.feeds)
                .into_iter()
                .partition(|feed| feed.node.as_ptr() == self.me.as_ptr());
            channel.feeds = others;
            cut.push(mine);
        }
        drop(channels);
        drop(cut);
    }

    /// The next `count` replays are pages that lack events without a word, as of a broker that
    /// reads in steps and takes a hole for the end. Only pages of three events and more.
    pub fn tear(&self, count: usize, torn: Torn) {
        *lock(&self.to_tear) = (count, torn);
    }

    pub fn unavailable(&self, unavailable: bool) {
        self.unavailable.store(unavailable, SeqCst);
    }

    /// Calls do not come back until this is taken back.
    pub fn hang(&self, hang: bool) {
        self.hanging.send_replace(hang);
    }

    /// Replays are read, but their answers do not come back until this is taken back.
    pub fn hold_answers(&self, hold: bool) {
        self.holding.send_replace(hold);
    }

    async fn reach(&self) -> Result<(), BrokerError> {
        let mut hanging = self.hanging.subscribe();
        hanging.wait_for(|hanging| !hanging).await.unwrap();
        if self.unavailable.load(SeqCst) {
            return Err(BrokerError::unavailable("told to be unavailable"));
        }
        Ok(())
    }
}

#[async_trait]
impl Broker for Node {
    fn name(&self) -> &'static str {
        "test"
    }

    fn stats(&self) -> BrokerStats {
        self.stats.clone()
    }

    async fn publish(&self, channel: &ChannelName, append: Append) -> Result<Published, BrokerError> {
        self.publishes.fetch_add(1, SeqCst);
        self.reach().await?;
        self.backbone.publish(channel.as_str(), append)
    }

    async fn follow(&self, channel: &ChannelName) -> Result<Feed, BrokerError> {
        self.follows.fetch_add(1, SeqCst);
        self.reach().await?;
        self.feeds.fetch_add(1, SeqCst);
        let (backbone, node, key) = (Arc::downgrade(&self.backbone), self.me.clone(), channel.as_str().to_owned());
        let stillborn = self.stillborn.load(SeqCst);
        Ok(self.backbone.with(channel.as_str(), |channel| {
            channel.feeds_opened += 1;
            let id = channel.feeds_opened;
            let (sender, feed) = Feed::new(channel.head, move || {
                if let Some(node) = node.upgrade() {
                    node.feeds.fetch_sub(1, SeqCst);
                    node.unsubscribed.fetch_add(1, SeqCst);
                }
                // Takes the backbone's lock, as a real broker's would: dropping a feed under it
                // would hang.
                if let Some(backbone) = backbone.upgrade() {
                    backbone.with(&key, |channel| channel.feeds.retain(|feed| feed.id != id));
                }
            });
            if !stillborn {
                channel.feeds.push(FollowerFeed {
                    id,
                    node: self.me.clone(),
                    sender,
                    late: VecDeque::new(),
                });
            }
            feed
        }))
    }

    async fn replay(&self, channel: &ChannelName, after: Option<Position>, limit: PageLimit) -> Result<Replay, BrokerError> {
        self.replays.fetch_add(1, SeqCst);
        self.reach().await?;
        let forgets = self.backbone.forgets_previous.load(SeqCst);
        let mut holding = self.holding.subscribe();
        let replay = self.backbone.with(channel.as_str(), |channel| {
            let kept = &channel.events;
            // Where the broker does not know what came before its oldest event, only an event that
            // it holds, or the head, proves anything.
            let oldest_previous = match kept.front() {
                Some(_) if forgets => Position::ZERO,
                Some(oldest) => oldest.previous,
                None => channel.head,
            };
            let (range, complete) = match after {
                Some(after) => {
                    let first = kept.partition_point(|event| event.position <= after);
                    let held = first > 0 && kept[first - 1].position == after;
                    let complete = held || after == channel.head || (after == oldest_previous && after != Position::ZERO);
                    let fitting = limit.fitting(kept.range(first..).map(|event| &**event));
                    (first..first + fitting, complete)
                }
                None => {
                    let first = kept.len() - limit.fitting(kept.iter().rev().map(|event| &**event));
                    (first..kept.len(), first == 0 && oldest_previous == channel.base)
                }
            };
            let more = range.end < kept.len();
            let first = range.start;
            let mut events: Vec<_> = kept.range(range).cloned().collect();
            if forgets
                && first == 0
                && let Some(event) = events.first_mut()
            {
                let mut forgotten = (**event).clone();
                forgotten.previous = Position::ZERO;
                *event = Arc::new(forgotten);
            }
            Replay::new(channel.head, events)
                .with_complete(complete)
                .with_more(more)
                .with_ended(channel.ended)
        });
        holding.wait_for(|holding| !holding).await.unwrap();
        let mut replay = replay;
        let (count, torn) = &mut *lock(&self.to_tear);
        if *count > 0 && replay.events.len() >= 3 {
            *count -= 1;
            let middle = replay.events.len() / 2;
            match torn {
                Torn::AtTheEnd => {
                    replay.events.truncate(middle);
                    replay.more = false;
                }
                Torn::InTheMiddle => drop(replay.events.remove(middle)),
            }
        }
        self.events_read.fetch_add(replay.events.len(), SeqCst);
        Ok(replay)
    }

    async fn open(&self, channel: &ChannelName, limit: PageLimit) -> Result<(Feed, Replay), BrokerError> {
        follow_and_replay(self, channel, limit).await
    }

    async fn ping(&self) -> Result<(), BrokerError> {
        self.pings.fetch_add(1, SeqCst);
        self.reach().await
    }
}

/// Limits under which a test's clients are never held back by anything but what the test is about.
pub fn limits() -> Limits {
    Limits::default().with(|limits| {
        limits.connections = 1_000_000;
        limits.connections_per_address = 1_000_000;
        // A test with paused time lets hours pass.
        limits.heartbeat = Duration::from_secs(1_000_000);
    })
}

/// A hub of its own on this node's broker.
pub fn hub(node: &Arc<Node>, rule: Rule) -> Hub {
    hub_with(node, rule, limits())
}

pub fn hub_with(node: &Arc<Node>, rule: Rule, limits: Limits) -> Hub {
    Hub::builder(node.clone(), Rules::new([rule])).limits(limits).build()
}

/// A cursor as a client of a single channel sends it back.
/// Returns the sum of the samples of a metric that have these labels.
pub fn metric(hub: &Hub, name: &str, labels: &[(&str, &str)]) -> f64 {
    let snapshot = hub.metrics().read();
    let total = snapshot.total(name, labels);
    total.unwrap_or_else(|| panic!("no {name} {labels:?} in {snapshot:?}"))
}

pub fn after(position: Position) -> After {
    After::Position(position)
}
