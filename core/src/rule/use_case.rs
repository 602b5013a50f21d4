//! Use cases name the rows of the decision matrix.

use std::str::FromStr;

use crate::event::Invalid;

/// A use case is a row of the decision matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum UseCase {
    /// The channel feeds a live dashboard or analytics.
    Dashboard,
    /// The channel shows the status of an order or a job.
    JobStatus,
    /// The channel streams the response of an AI model.
    AiTokens,
    /// The channel carries an activity feed or notifications.
    Feed,
    /// The channel carries chat or other messaging.
    Chat,
    /// The channel carries collaborative editing.
    Collab,
    /// The channel carries a multiplayer game.
    Game,
    /// The channel carries quotes and order entry.
    Trading,
}

impl UseCase {
    /// Lists every row, in the order of the matrix.
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

    /// Returns the row's name in configuration.
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

    /// Returns one line for people: the purpose of the row, and the reason for its transport.
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
