//! This module holds the formats of one node. The node freezes their list when it opens the first
//! log. From then on their number is known, and each entry of a ring has room for the bytes of each
//! format.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use crate::format::{Format, MAX_FORMATS};
use crate::format_slot::FormatSlot;
use crate::observe::Metrics;

/// A handle stands for a format that is registered with a hub.
#[derive(Clone)]
pub struct FormatHandle(pub(crate) Arc<FormatSlot>);

/// An error says why the node cannot register a format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The node has four formats already, and each event has a slot for each.
    #[error("the format '{0}' finds no room: a hub has at most {MAX_FORMATS} formats")]
    TooMany(&'static str),
    /// The node has opened a channel, and its list of formats is frozen since then.
    #[error("the format '{0}' comes too late: register it before a channel is listened to")]
    TooLate(&'static str),
}

/// Holds the registered formats, by the index of their slot.
#[derive(Default)]
pub(crate) struct Formats(RwLock<FormatList>);

#[derive(Default)]
struct FormatList {
    slots: Vec<Arc<FormatSlot>>,
    frozen: bool,
}

impl Formats {
    fn read(&self) -> RwLockReadGuard<'_, FormatList> {
        // The list is whole between any two statements.
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a format. The same name gives the same format, whenever it comes.
    pub(crate) fn register(&self, format: Arc<dyn Format>, metrics: &Metrics) -> Result<FormatHandle, FormatError> {
        let mut list = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let name = format.name();
        if let Some(known) = list.slots.iter().find(|slot| slot.format.name() == name) {
            return Ok(FormatHandle(known.clone()));
        }
        let index = list.slots.len();
        if list.frozen {
            return Err(FormatError::TooLate(name));
        }
        if index >= MAX_FORMATS {
            return Err(FormatError::TooMany(name));
        }
        let metrics = metrics.format(name);
        let slot = Arc::new(FormatSlot { index, format, metrics });
        list.slots.push(slot.clone());
        Ok(FormatHandle(slot))
    }

    /// Closes the list of formats. The node calls it before it opens a log.
    pub(crate) fn freeze(&self) {
        if !self.read().frozen {
            self.0.write().unwrap_or_else(PoisonError::into_inner).frozen = true;
        }
    }

    /// Returns the names of the formats, in the order of their slots.
    pub(crate) fn names(&self) -> Vec<&'static str> {
        self.read().slots.iter().map(|slot| slot.format.name()).collect()
    }

    /// Returns the number of sessions of each format.
    pub(crate) fn sessions(&self) -> Vec<(&'static str, usize)> {
        let sessions = |slot: &FormatSlot| usize::try_from(slot.metrics.connections.get()).unwrap_or(0);
        let list = self.read();
        list.slots.iter().map(|slot| (slot.format.name(), sessions(slot))).collect()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::session::{After, Session};
    use crate::testing::{self, Named};

    #[tokio::test]
    async fn the_list_is_bounded_and_a_known_name_gives_the_same_format() {
        let hub = testing::hub();
        for name in ["a", "b", "c", "d"] {
            hub.register_format(Arc::new(Named(name))).unwrap();
        }
        let fifth = hub.register_format(Arc::new(Named("e")));
        assert_eq!(fifth.err(), Some(FormatError::TooMany("e")));
        let again = hub.register_format(Arc::new(Named("c"))).unwrap();
        assert_eq!(again.0.index, 2);
    }

    #[tokio::test]
    async fn the_list_is_frozen_when_the_first_channel_is_opened() {
        let hub = testing::hub();
        let format = hub.register_format(Arc::new(Named("a"))).unwrap();
        let session = Session::new(hub.connect(testing::request(), true).unwrap(), &format);
        assert!(hub.register_format(Arc::new(Named("b"))).is_ok(), "no channel is open yet");
        let channel = "c".parse().unwrap();
        session.subscriber().subscribe(&channel, After::Nothing).await.unwrap();
        let late = hub.register_format(Arc::new(Named("c")));
        assert_eq!(late.err(), Some(FormatError::TooLate("c")));
        assert!(hub.register_format(Arc::new(Named("b"))).is_ok(), "it is known");
    }
}
