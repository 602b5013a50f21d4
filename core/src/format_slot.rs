//! A slot holds a format that is in use on a node.

use std::sync::Arc;

use crate::format::Format;
use crate::observe::FormatMetrics;

/// Each slot holds a registered format, its index among the formats of the node, and its metrics.
pub(crate) struct FormatSlot {
    pub(crate) index: usize,
    pub(crate) format: Arc<dyn Format>,
    pub(crate) metrics: FormatMetrics,
}
