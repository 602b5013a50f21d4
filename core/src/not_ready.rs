//! Why a node cannot deliver now: [`NotReady`].

/// Why a node is not ready. The text is for operators.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
#[non_exhaustive]
pub struct NotReady {
    /// What the node waits for.
    pub kind: NotReadyKind,
    /// What is wrong, in a few words.
    pub message: String,
}

/// What a node that is not ready waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NotReadyKind {
    /// For its end: the node drains and takes in no one else.
    Draining,
    /// For the first answer of its broker.
    Starting,
    /// For its broker, which fails or does not answer.
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
