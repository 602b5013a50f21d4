//! The formats of one node.

use std::sync::{Arc, PoisonError, RwLock};

use crate::format::{Format, MAX_FORMATS};
use crate::format_slot::FormatSlot;
use crate::observe::Metrics;

/// A format that is registered with a hub.
#[derive(Clone)]
pub struct FormatHandle(pub(crate) Arc<FormatSlot>);

/// The formats that are registered, by the index of their slot.
#[derive(Default)]
pub(crate) struct Formats(RwLock<Vec<Arc<FormatSlot>>>);

impl Formats {
    /// Registers a format. The same name gives the same format.
    pub(crate) fn register(&self, format: Arc<dyn Format>, metrics: &Metrics) -> FormatHandle {
        let mut formats = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = formats.iter().find(|slot| slot.format.name() == format.name()) {
            return FormatHandle(known.clone());
        }
        let index = formats.len();
        assert!(index < MAX_FORMATS, "a hub has room for {MAX_FORMATS} formats");
        let metrics = metrics.format(format.name());
        let slot = Arc::new(FormatSlot { index, format, metrics });
        formats.push(slot.clone());
        FormatHandle(slot)
    }

    /// The names of the formats, in the order of their slots.
    pub(crate) fn names(&self) -> Vec<&'static str> {
        let formats = self.0.read().unwrap_or_else(PoisonError::into_inner);
        formats.iter().map(|slot| slot.format.name()).collect()
    }

    /// How many sessions each format has.
    pub(crate) fn sessions(&self) -> Vec<(&'static str, usize)> {
        let formats = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let sessions = |slot: &FormatSlot| usize::try_from(slot.metrics.connections.get()).unwrap_or(0);
        formats.iter().map(|slot| (slot.format.name(), sessions(slot))).collect()
    }
}
