//! The decision matrix as types: which channels there are, and what each use case asks of its
//! transport, history and delivery.

use std::borrow::Cow;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use crate::event::ChannelName;

mod limits;
mod matrix;
mod pattern;
mod use_case;

pub use limits::Limits;
pub use pattern::{Params, Pattern};
pub use use_case::UseCase;

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

/// What a listener is sent of the events that wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Delivery {
    /// All of them.
    Every,
    /// Of each key only the newest ("conflation").
    Latest,
}

/// What a fresh listener, one without a cursor, is sent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
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
#[non_exhaustive]
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
#[non_exhaustive]
pub enum SendPolicy {
    /// Only a handler may decide; without one it is refused.
    Handler,
    /// It is published as it is.
    Publish,
    /// It is refused.
    Refuse,
}

const DEFAULT_HISTORY_BYTES: usize = 16 << 20;

/// How much of a channel the broker keeps. Whichever bound is met first trims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct History {
    /// At most so many events; 0: none.
    pub events: usize,
    /// Nothing older than this.
    pub age: Duration,
    /// At most so many bytes (payloads and names).
    pub bytes: usize,
}

impl History {
    /// Returns a history of at most `events` events, none older than `age`, and 16 MiB.
    pub const fn new(events: usize, age: Duration) -> Self {
        Self {
            events,
            age,
            bytes: DEFAULT_HISTORY_BYTES,
        }
    }

    /// Returns the same history with another bound in bytes.
    pub const fn with_bytes(self, bytes: usize) -> Self {
        Self { bytes, ..self }
    }
}

impl Default for History {
    /// 100 events, one hour, 16 MiB.
    fn default() -> Self {
        Self {
            events: 100,
            age: Duration::from_secs(3600),
            bytes: DEFAULT_HISTORY_BYTES,
        }
    }
}

/// A `[[channels]]` entry of the configuration: a pattern and its settings.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
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
    /// Returns a rule with default settings: every event, 100 events or an hour of history, no
    /// replay, refill. The methods below change them; [`UseCase::rule`] has others to begin with.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use airwave_core::Rule;
    /// use airwave_core::rule::{Delivery, History, TransportName};
    ///
    /// let rule = Rule::new("prices/{id}".parse()?, vec![TransportName::SSE])
    ///     .with_delivery(Delivery::Latest)
    ///     .with_history(History::new(1000, Duration::from_secs(60)));
    /// assert_eq!(rule.history.events, 1000);
    /// # Ok::<(), airwave_core::event::Invalid>(())
    /// ```
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

    /// Returns the same rule with which events it delivers: [`Rule::delivery`].
    pub fn with_delivery(mut self, delivery: Delivery) -> Self {
        self.delivery = delivery;
        self
    }

    /// Returns the same rule with another rate: [`Rule::max_rate`].
    pub fn with_max_rate(mut self, max_rate: Option<NonZeroU32>) -> Self {
        self.max_rate = max_rate;
        self
    }

    /// Returns the same rule with another history: [`Rule::history`].
    pub fn with_history(mut self, history: History) -> Self {
        self.history = history;
        self
    }

    /// Returns the same rule with what a fresh listener is sent first: [`Rule::replay`].
    pub fn with_replay(mut self, replay: ReplayOnSubscribe) -> Self {
        self.replay = replay;
        self
    }

    /// Returns the same rule with another policy for slow listeners: [`Rule::slow`].
    pub fn with_slow(mut self, slow: SlowPolicy) -> Self {
        self.slow = slow;
        self
    }

    /// Returns the same rule with another policy for messages without a handler: [`Rule::send`].
    pub fn with_send(mut self, send: SendPolicy) -> Self {
        self.send = send;
        self
    }

    /// Returns the same rule with presence, or without it: [`Rule::presence`].
    pub fn with_presence(mut self, presence: bool) -> Self {
        self.presence = presence;
        self
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

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        text.parse().unwrap()
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
}
