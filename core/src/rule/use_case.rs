//! The rows of the decision matrix by name.

use std::str::FromStr;

use crate::event::Invalid;

/// A row of the decision matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
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
