//! A format that is in use on a node.

use std::sync::Arc;

use crate::format::Format;
use crate::observe::FormatMetrics;

/// A registered format, with its index among those of the node and its figures.
pub(crate) struct FormatSlot {
    pub(crate) index: usize,
    pub(crate) format: Arc<dyn Format>,
    pub(crate) metrics: FormatMetrics,
}
