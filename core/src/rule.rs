//! These types hold the decision matrix: which channels there are, and what each use case asks of
//! its transport, history and delivery.

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

/// This name stands for a transport in the configuration and in what clients see.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TransportName(Cow<'static, str>);

impl TransportName {
    /// Names server-sent events.
    pub const SSE: TransportName = TransportName(Cow::Borrowed("sse"));
    /// Names WebSocket.
    pub const WEBSOCKET: TransportName = TransportName(Cow::Borrowed("websocket"));
    /// Names plain HTTP requests: the POST half of SSE, and history. Every rule allows it.
    pub const HTTP: TransportName = TransportName(Cow::Borrowed("http"));

    /// Returns the name of a transport of your own.
    pub const fn of(name: &'static str) -> Self {
        TransportName(Cow::Borrowed(name))
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TransportName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// This setting says which of the waiting events a listener receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Delivery {
    /// The listener receives all of them.
    Every,
    /// The listener receives only the newest event of each key ("conflation").
    Latest,
}

/// This setting says what a fresh listener, one without a cursor, receives first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReplayOnSubscribe {
    /// The listener receives nothing first, and then the events from now on.
    None,
    /// The listener receives the newest event of each key.
    Last,
    /// The listener receives everything that history holds.
    All,
}

/// This policy says what happens to a listener whose cursor has fallen off the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SlowPolicy {
    /// The listener receives the missing events from the broker's history. It receives a gap if
    /// history does not hold them.
    Refill,
    /// The listener goes on at the head, after a gap.
    Skip,
    /// The node closes the listener's connection. The client may come back with its cursor.
    Close,
}

/// This policy says what a client's message does where no handler is registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SendPolicy {
    /// Only a handler may decide. Without one, the node refuses the message.
    Handler,
    /// The node publishes the message as it is.
    Publish,
    /// The node refuses the message.
    Refuse,
}

const DEFAULT_HISTORY_BYTES: usize = 16 << 20;

/// A history says how much of a channel the broker keeps. The bound that is met first trims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct History {
    /// The broker keeps at most this many events. Zero means none.
    pub events: usize,
    /// The broker keeps nothing older than this.
    pub age: Duration,
    /// The broker keeps at most this many bytes (payloads and names).
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
    /// Returns a history of 100 events, one hour and 16 MiB.
    fn default() -> Self {
        Self {
            events: 100,
            age: Duration::from_secs(3600),
            bytes: DEFAULT_HISTORY_BYTES,
        }
    }
}

/// A rule is a `[[channels]]` entry of the configuration: a pattern and its settings.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rule {
    /// Says which channels the rule is for.
    pub pattern: Pattern,
    /// Names the row of the matrix that gave the presets.
    pub use_case: Option<UseCase>,
    /// Names the transports that clients may listen over. The node tells clients to use the first.
    pub transports: Vec<TransportName>,
    /// Says whether listeners receive every event, or the newest of each key.
    pub delivery: Delivery,
    /// Bounds how many times a second a listener receives something. Events that wait in between go
    /// out together.
    pub max_rate: Option<NonZeroU32>,
    /// Bounds what the broker keeps.
    pub history: History,
    /// Says what a fresh listener receives first.
    pub replay: ReplayOnSubscribe,
    /// Says what happens to slow listeners.
    pub slow: SlowPolicy,
    /// Says what clients' messages do without a handler.
    pub send: SendPolicy,
    /// Says whether the channel knows its members.
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

    /// Returns the same rule with another delivery: [`Rule::delivery`].
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

    /// Returns the same rule with another replay for fresh listeners: [`Rule::replay`].
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

    /// Returns whether clients may listen over `transport`.
    pub fn allows(&self, transport: &TransportName) -> bool {
        self.transports.contains(transport)
    }

    /// Returns the least time between two deliveries to a listener, on the average. A late delivery
    /// does not put off the next.
    pub fn window(&self) -> Option<Duration> {
        self.max_rate.map(|rate| Duration::from_secs(1) / rate.get())
    }
}

/// A node keeps all its rules here, in order. The first that matches a channel is the channel's.
#[derive(Debug, Clone, Default)]
pub struct Rules(Arc<[Arc<Rule>]>);

impl Rules {
    /// Makes rules, in order of precedence.
    pub fn new(rules: impl IntoIterator<Item = Rule>) -> Self {
        Self(rules.into_iter().map(Arc::new).collect())
    }

    /// Finds the channel's rule, and what its pattern's parameters stand for. Returns `None` if
    /// there is no such channel.
    pub fn find(&self, channel: &ChannelName) -> Option<(Arc<Rule>, Params)> {
        self.0
            .iter()
            .find_map(|rule| Some((rule.clone(), rule.pattern.matches(channel.as_str())?)))
    }

    /// Returns what the broker keeps of `channel`, or the default where no rule matches.
    pub fn history(&self, channel: &ChannelName) -> History {
        self.0
            .iter()
            .find(|rule| rule.pattern.matches(channel.as_str()).is_some())
            .map_or_else(History::default, |rule| rule.history)
    }

    /// Returns the rules in order.
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
