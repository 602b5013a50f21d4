//! This module says why a node cannot deliver now: [`NotReady`].

/// The node is not ready for this reason. The text is for operators.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
#[non_exhaustive]
pub struct NotReady {
    /// Says what the node waits for.
    pub kind: NotReadyKind,
    /// Says what is wrong, in a few words.
    pub message: String,
}

/// A node that is not ready waits for one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NotReadyKind {
    /// The node drains: it waits for its end and takes in no more clients.
    Draining,
    /// The node waits for the first answer of its broker.
    Starting,
    /// The node waits for its broker, which fails or does not answer.
    Broker,
}

impl NotReady {
    pub(crate) fn draining() -> Self {
        Self {
            kind: NotReadyKind::Draining,
            message: "draining".into(),
        }
    }

    pub(crate) fn starting(broker: &str) -> Self {
        Self {
            kind: NotReadyKind::Starting,
            message: format!("broker {broker} has not answered yet"),
        }
    }

    pub(crate) fn broker(broker: &str, error: &str) -> Self {
        Self {
            kind: NotReadyKind::Broker,
            message: format!("broker {broker}: {error}"),
        }
    }
}
