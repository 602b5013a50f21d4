//! The decision matrix says what each use case asks of its transport, history and delivery.

use std::num::NonZeroU32;
use std::time::Duration;

use super::{Delivery, History, Pattern, ReplayOnSubscribe, Rule, SlowPolicy, TransportName, UseCase};

impl UseCase {
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

    /// Returns a row of the matrix: transport, delivery, deliveries a second (0: no limit), events
    /// and hours of history. The row also says what a fresh listener receives and what happens to a
    /// slow one.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        text.parse().unwrap()
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
}
