//! The decision matrix as types: which channels there are, and what each use case asks of its
//! transport, history and delivery.

use std::borrow::Cow;
use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::event::{ChannelName, Invalid};

/// The name of a transport, as configuration and clients see it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TransportName(Cow<'static, str>);

impl TransportName {
    /// Server-sent events.
    pub const SSE: TransportName = TransportName(Cow::Borrowed("sse"));
    /// WebSocket.
    pub const WEBSOCKET: TransportName = TransportName(Cow::Borrowed("websocket"));
    /// Plain HTTP requests: the POST half of SSE, and history. Every rule allows it.
    pub const HTTP: TransportName = TransportName(Cow::Borrowed("http"));

    /// The name of a transport of your own.
    pub const fn of(name: &'static str) -> Self {
        TransportName(Cow::Borrowed(name))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TransportName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A row of the decision matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UseCase {
    /// Live dashboard, analytics.
    Dashboard,
    /// Order or job status.
    JobStatus,
    /// AI response streaming.
    AiTokens,
    /// Activity feed, notifications.
    Feed,
    /// Chat, messaging.
    Chat,
    /// Collaborative editing.
    Collab,
    /// Multiplayer game.
    Game,
    /// Quotes and order entry.
    Trading,
}

impl UseCase {
    /// Every row, in the order of the matrix.
    pub const ALL: [UseCase; 8] = [
        UseCase::Dashboard,
        UseCase::JobStatus,
        UseCase::AiTokens,
        UseCase::Feed,
        UseCase::Chat,
        UseCase::Collab,
        UseCase::Game,
        UseCase::Trading,
    ];

    /// The row's name in configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            UseCase::Dashboard => "dashboard",
            UseCase::JobStatus => "job-status",
            UseCase::AiTokens => "ai-tokens",
            UseCase::Feed => "feed",
            UseCase::Chat => "chat",
            UseCase::Collab => "collab",
            UseCase::Game => "game",
            UseCase::Trading => "trading",
        }
    }

    /// One line for people: what it is for, and why this transport.
    pub fn why(self) -> &'static str {
        match self {
            UseCase::Dashboard => "the server tells what happened; only the newest figures matter",
            UseCase::JobStatus => "the server tells how the job gets on; a late visitor wants all of it; it ends",
            UseCase::AiTokens => "the server tells one long answer; a refresh replays it; it ends",
            UseCase::Feed => "the server tells what happened; a client that was away catches up",
            UseCase::Chat => "client and server converse",
            UseCase::Collab => "client and server converse in small binary updates, each of which counts",
            UseCase::Game => "client and server converse many times a second; only the newest state counts",
            UseCase::Trading => "client and server converse: quotes down, orders up, each acknowledged",
        }
    }

    /// Returns the row's rule for the channels that match `pattern`.
    pub fn rule(self, pattern: Pattern) -> Rule {
        let (transport, delivery, rate, (events, hours), replay, slow) = self.row();
        Rule {
            use_case: Some(self),
            delivery,
            max_rate: NonZeroU32::new(rate),
            history: History {
                events,
                age: Duration::from_secs(hours * 3600),
                ..History::default()
            },
            replay,
            slow,
            presence: matches!(self, UseCase::Chat | UseCase::Collab),
            ..Rule::new(pattern, vec![transport])
        }
    }

    /// The matrix: transport, delivery, deliveries a second (0: no limit), events and hours of
    /// history, what a fresh listener is sent, what happens to a slow one.
    fn row(self) -> (TransportName, Delivery, u32, (usize, u64), ReplayOnSubscribe, SlowPolicy) {
        use Delivery::{Every, Latest};
        use ReplayOnSubscribe as Replay;
        use SlowPolicy::{Refill, Skip};
        const SSE: TransportName = TransportName::SSE;
        const WEBSOCKET: TransportName = TransportName::WEBSOCKET;
        match self {
            UseCase::Dashboard => (SSE, Latest, 10, (1000, 1), Replay::Last, Skip),
            UseCase::JobStatus => (SSE, Every, 0, (1000, 24), Replay::All, Refill),
            UseCase::AiTokens => (SSE, Every, 30, (10_000, 1), Replay::All, Refill),
            UseCase::Feed => (SSE, Every, 0, (1000, 7 * 24), Replay::None, Refill),
            UseCase::Chat => (WEBSOCKET, Every, 0, (500, 24), Replay::None, Refill),
            UseCase::Collab => (WEBSOCKET, Every, 0, (1000, 1), Replay::None, Refill),
            UseCase::Game => (WEBSOCKET, Latest, 60, (0, 1), Replay::None, Skip),
            UseCase::Trading => (WEBSOCKET, Latest, 20, (1000, 1), Replay::Last, Skip),
        }
    }
}

impl FromStr for UseCase {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        UseCase::ALL.into_iter().find(|u| u.as_str() == text).ok_or_else(|| {
            let all: Vec<_> = UseCase::ALL.iter().map(|u| u.as_str()).collect();
            Invalid::new(format!("unknown use case '{text}'; write one of {}", all.join(", ")))
        })
    }
}

/// What a listener is sent of the events that wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// All of them.
    Every,
    /// Of each key only the newest ("conflation").
    Latest,
}

/// What a fresh listener, one without a cursor, is sent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplayOnSubscribe {
    /// Nothing: it hears what happens from now on.
    None,
    /// The newest event of each key.
    Last,
    /// All that history holds.
    All,
}

/// What happens to a listener whose cursor has fallen off the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlowPolicy {
    /// It is given the missing events from the broker's history; a gap if history does not hold
    /// them.
    Refill,
    /// It goes on at the head, after a gap.
    Skip,
    /// Its connection is closed; it may come back with its cursor.
    Close,
}

/// What a client's message does where no handler is registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendPolicy {
    /// Only a handler may decide; without one it is refused.
    Handler,
    /// It is published as it is.
    Publish,
    /// It is refused.
    Refuse,
}

/// How much of a channel the broker keeps. Whichever bound is met first trims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct History {
    /// At most so many events; 0: none.
    pub events: usize,
    /// Nothing older than this.
    pub age: Duration,
    /// At most so many bytes (payloads and names).
    pub bytes: usize,
}

impl Default for History {
    /// 100 events, one hour, 16 MiB.
    fn default() -> Self {
        Self {
            events: 100,
            age: Duration::from_secs(3600),
            bytes: 16 << 20,
        }
    }
}

/// A pattern of channel names: literal segments, `{name}` for one segment, and `{*name}` at the end
/// for all the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    text: Arc<str>,
    segments: Vec<Segment>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Literal(String),
    Param(Arc<str>),
    Rest(Arc<str>),
}

impl Pattern {
    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The parameters if `channel` matches.
    pub fn matches(&self, channel: &str) -> Option<Params> {
        let mut params = Params::default();
        let mut rest = Some(channel);
        for segment in &self.segments {
            let text = rest?;
            let (head, tail) = match text.split_once('/') {
                Some((head, tail)) => (head, Some(tail)),
                None => (text, None),
            };
            match segment {
                Segment::Literal(literal) if literal == head => rest = tail,
                Segment::Literal(_) => return None,
                Segment::Param(name) => {
                    params.0.push((name.clone(), head.into()));
                    rest = tail;
                }
                Segment::Rest(name) => {
                    params.0.push((name.clone(), text.into()));
                    rest = None;
                }
            }
        }
        rest.is_none().then_some(params)
    }

    /// Returns whether this pattern matches every channel that `other` matches.
    pub fn covers(&self, other: &Pattern) -> bool {
        let (mut mine, mut others) = (self.segments.iter(), other.segments.iter());
        loop {
            match (mine.next(), others.next()) {
                (None, None) | (Some(Segment::Rest(_)), Some(_)) => return true,
                (Some(Segment::Param(_)), Some(Segment::Literal(_) | Segment::Param(_))) => {}
                (Some(Segment::Literal(a)), Some(Segment::Literal(b))) if a == b => {}
                _ => return false,
            }
        }
    }
}

impl FromStr for Pattern {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let mut segments = Vec::new();
        let mut names: Vec<Arc<str>> = Vec::new();
        for segment in text.split('/') {
            if segments.iter().any(|s| matches!(s, Segment::Rest(_))) {
                return Err(Invalid::new(format!(
                    "pattern '{text}': '{{*name}}' takes all the rest and must be the last segment"
                )));
            }
            let inner = segment.strip_prefix('{').and_then(|s| s.strip_suffix('}'));
            segments.push(match inner {
                Some(inner) => {
                    let (rest, name) = inner.strip_prefix('*').map_or((false, inner), |name| (true, name));
                    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                        return Err(Invalid::new(format!("pattern '{text}': a parameter is written {{name}}, of letters, digits and '_'")));
                    }
                    let name: Arc<str> = name.into();
                    if names.contains(&name) {
                        return Err(Invalid::new(format!("pattern '{text}': the parameter '{name}' stands twice")));
                    }
                    names.push(name.clone());
                    if rest { Segment::Rest(name) } else { Segment::Param(name) }
                }
                None => {
                    ChannelName::new(segment).map_err(|e| {
                        Invalid::new(format!("pattern '{text}', segment '{segment}': {e}; a parameter is written {{name}}, the rest of a name {{*name}}"))
                    })?;
                    Segment::Literal(segment.to_owned())
                }
            });
        }
        Ok(Self {
            text: text.into(),
            segments,
        })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What the parameters of a pattern stand for in one channel's name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Params(Vec<(Arc<str>, Box<str>)>);

impl Params {
    /// The text of the parameter `name`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| &**n == name).map(|(_, value)| &**value)
    }
}

/// A `[[channels]]` entry of the configuration: a pattern and its settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Which channels.
    pub pattern: Pattern,
    /// The row of the matrix that gave the presets.
    pub use_case: Option<UseCase>,
    /// The transports that clients may listen over; the first is the one they are told to use.
    pub transports: Vec<TransportName>,
    /// Every event, or the newest of each key.
    pub delivery: Delivery,
    /// A listener is sent something at most so many times a second; what waits meanwhile goes out
    /// together.
    pub max_rate: Option<NonZeroU32>,
    /// What the broker keeps.
    pub history: History,
    /// What a fresh listener is sent first.
    pub replay: ReplayOnSubscribe,
    /// What happens to slow listeners.
    pub slow: SlowPolicy,
    /// What clients' messages do without a handler.
    pub send: SendPolicy,
    /// Whether the channel knows who is in it.
    pub presence: bool,
}

impl Rule {
    /// A rule with default settings: every event, 100 events or an hour of history, no replay,
    /// refill.
    pub fn new(pattern: Pattern, transports: Vec<TransportName>) -> Self {
        Self {
            pattern,
            use_case: None,
            transports,
            delivery: Delivery::Every,
            max_rate: None,
            history: History::default(),
            replay: ReplayOnSubscribe::None,
            slow: SlowPolicy::Refill,
            send: SendPolicy::Handler,
            presence: false,
        }
    }

    /// Whether clients may listen over `transport`.
    pub fn allows(&self, transport: &TransportName) -> bool {
        self.transports.contains(transport)
    }

    /// The least time between two deliveries to a listener, on the average: one that came late does
    /// not put off the next.
    pub fn window(&self) -> Option<Duration> {
        self.max_rate.map(|rate| Duration::from_secs(1) / rate.get())
    }
}

/// All rules of a node, in order: the first that matches a channel is the channel's.
#[derive(Debug, Clone, Default)]
pub struct Rules(Arc<[Arc<Rule>]>);

impl Rules {
    /// Rules in order of precedence.
    pub fn new(rules: impl IntoIterator<Item = Rule>) -> Self {
        Self(rules.into_iter().map(Arc::new).collect())
    }

    /// The channel's rule and what its pattern's parameters stand for; `None`: there is no such
    /// channel.
    pub fn find(&self, channel: &ChannelName) -> Option<(Arc<Rule>, Params)> {
        self.0
            .iter()
            .find_map(|rule| Some((rule.clone(), rule.pattern.matches(channel.as_str())?)))
    }

    /// What the broker keeps of `channel`; the default where no rule matches.
    pub fn history(&self, channel: &ChannelName) -> History {
        self.0
            .iter()
            .find(|rule| rule.pattern.matches(channel.as_str()).is_some())
            .map_or_else(History::default, |rule| rule.history)
    }

    /// The rules in order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Rule>> {
        self.0.iter()
    }
}

/// What a node allows. Every input has a stated limit (docs/guarantees.md, P13).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Sessions at once on this node.
    pub connections: usize,
    /// Sessions at once from one address.
    pub connections_per_address: usize,
    /// Channels that one session may be subscribed to.
    pub channels_per_connection: usize,
    /// Logs open at once on this node.
    pub channels: usize,
    /// Bytes of one message: payload and names.
    pub message_bytes: usize,
    /// WebSocket frames that a client may send in a second (twice as many in a burst).
    pub frames_per_second: u32,
    /// Requests over HTTP (messages, pages of history) that a user, or else an address, may make in
    /// a second (twice as many in a burst).
    pub requests_per_second: u32,
    /// Channels that are not open on this node yet and that one address may name in a minute.
    pub new_channels_per_minute: u32,
    /// Bytes of events on this node: half of it for the rings of all logs together, half for the
    /// history of the memory broker.
    pub memory: usize,
    /// Idempotency keys that one client may use within
    /// [`IDEMPOTENCY_WINDOW`](crate::broker::IDEMPOTENCY_WINDOW): a user over all connections to
    /// this node, or all clients without a user id from one address.
    pub idempotency_keys_per_client: usize,
    /// Idempotency keys that this node may use in one channel within that time.
    pub idempotency_keys_per_channel: usize,
    /// Events that a log's ring keeps at least, so that a slow listener has room even where history
    /// is short.
    pub ring_events: usize,
    /// Bytes that a log's ring keeps at most.
    pub ring_bytes: usize,
    /// Silence after which a heartbeat is sent.
    pub heartbeat: Duration,
    /// Silence of a client that is expected to answer, after which its session is closed.
    pub idle: Duration,
    /// How long an HTTP connection may wait for its next request.
    pub keep_alive: Duration,
    /// How long a write may make no progress before the connection is cut.
    pub stalled_write: Duration,
    /// How long a log stays open without listeners.
    pub linger: Duration,
    /// How long the broker may take to answer before it counts as unavailable.
    pub broker_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 100_000,
            connections_per_address: 1000,
            channels_per_connection: 100,
            channels: 1_000_000,
            message_bytes: 64 << 10,
            frames_per_second: 100,
            requests_per_second: 100,
            new_channels_per_minute: 10_000,
            memory: 1 << 30,
            idempotency_keys_per_client: 20_000,
            idempotency_keys_per_channel: 1_000_000,
            ring_events: 1024,
            ring_bytes: 16 << 20,
            heartbeat: Duration::from_secs(15),
            idle: Duration::from_secs(60),
            keep_alive: Duration::from_secs(75),
            stalled_write: Duration::from_secs(30),
            linger: Duration::from_secs(30),
            broker_timeout: Duration::from_secs(2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pattern(text: &str) -> Pattern {
        text.parse().unwrap()
    }

    #[test]
    fn patterns_take_parameters() {
        let params = pattern("shop/{shop}/orders/{id}").matches("shop/7/orders/abc").unwrap();
        assert_eq!(
            (params.get("shop"), params.get("id"), params.get("x")),
            (Some("7"), Some("abc"), None)
        );
        assert_eq!(pattern("logs/{*rest}").matches("logs/a/b").unwrap().get("rest"), Some("a/b"));
        assert!(pattern("logs/{*rest}").matches("logs").is_none());
        assert!(pattern("orders/{id}").matches("orders/1/2").is_none());
        assert!(pattern("orders/{id}").matches("orders").is_none());
        assert!(pattern("{*all}").matches("x").is_some());
    }

    #[test]
    fn bad_patterns_say_what_to_write() {
        for (bad, word) in [
            ("", "empty"),
            ("a//b", "empty"),
            ("{}", "{name}"),
            ("{a}/{a}", "twice"),
            ("{*a}/b", "last"),
            ("a*", "{*name}"),
            ("x{y}", "{name}"),
        ] {
            let error = bad.parse::<Pattern>().unwrap_err().to_string();
            assert!(error.contains(word), "{bad}: {error}");
        }
    }

    #[test]
    fn the_first_matching_rule_wins() {
        let rules = Rules::new([
            UseCase::Chat.rule(pattern("chat/{room}")),
            UseCase::Feed.rule(pattern("{*rest}")),
        ]);
        let of = |name: &str| rules.find(&ChannelName::new(name).unwrap()).unwrap().0.use_case;
        assert_eq!(
            (of("chat/x"), of("chat/x/y"), of("z")),
            (Some(UseCase::Chat), Some(UseCase::Feed), Some(UseCase::Feed))
        );
    }

    #[test]
    fn the_matrix_is_as_designed() {
        for use_case in UseCase::ALL {
            let rule = use_case.rule(pattern("x"));
            let converse = matches!(use_case, UseCase::Chat | UseCase::Collab | UseCase::Game | UseCase::Trading);
            assert_eq!(
                rule.transports,
                [if converse {
                    TransportName::WEBSOCKET
                } else {
                    TransportName::SSE
                }]
            );
            assert_eq!(use_case.as_str().parse(), Ok(use_case));
        }
        assert_eq!(UseCase::Game.rule(pattern("x")).history.events, 0);
    }

    #[test]
    fn a_pattern_covers_what_it_always_matches() {
        for (wide, narrow) in [
            ("{*all}", "orders/{id}"),
            ("{*all}", "{*rest}"),
            ("a/{*rest}", "a/b/{*rest}"),
            ("a/{x}", "a/{y}"),
            ("a/{x}", "a/b"),
            ("a", "a"),
        ] {
            assert!(pattern(wide).covers(&pattern(narrow)), "{wide} {narrow}");
        }
        for (one, other) in [
            ("a/{x}", "a/{*rest}"),
            ("a/{*rest}", "a"),
            ("a", "b"),
            ("a/b", "a/{x}"),
            ("{x}", "a/b"),
        ] {
            assert!(!pattern(one).covers(&pattern(other)), "{one} {other}");
        }
    }

    proptest! {
        /// What a covered pattern matches, the covering one matches; what it never matches shows
        /// that it does not cover.
        #[test]
        fn covering_is_about_names(
            wide in "(a|b|[{]x[}])(/(a|b|[{]y[}])){0,2}(/[{][*]z[}])?",
            narrow in "(a|b|[{]x[}])(/(a|b|[{]y[}])){0,2}(/[{][*]z[}])?",
        ) {
            let (Ok(wide), Ok(narrow)) = (wide.parse::<Pattern>(), narrow.parse::<Pattern>()) else { return Ok(()) };
            // Every name of up to four segments over an alphabet with a letter that no pattern has.
            let mut names: Vec<String> = vec![];
            let mut last = vec![String::new()];
            for _ in 0..4 {
                last = last.iter().flat_map(|n| ["a", "b", "c"].map(|s| if n.is_empty() { s.into() } else { format!("{n}/{s}") })).collect();
                names.extend(last.iter().cloned());
            }
            let counterexample = names.iter().find(|n| narrow.matches(n).is_some() && wide.matches(n).is_none());
            prop_assert_eq!(wide.covers(&narrow), counterexample.is_none(), "{} {} {:?}", wide, narrow, counterexample);
        }

        /// A pattern made from a name by replacing segments matches that name, and gives the
        /// segments back.
        #[test]
        fn a_pattern_gives_back_the_segments_it_replaced(segments in prop::collection::vec("[a-z0-9]{1,4}", 1..6), params in any::<u8>()) {
            let name = segments.join("/");
            let text: Vec<String> =
                segments.iter().enumerate().map(|(i, s)| if params >> i & 1 == 1 { format!("{{p{i}}}") } else { s.clone() }).collect();
            let found = pattern(&text.join("/")).matches(&name).unwrap();
            for (i, segment) in segments.iter().enumerate() {
                prop_assert_eq!(found.get(&format!("p{i}")), (params >> i & 1 == 1).then_some(segment.as_str()));
            }
        }
    }
}
