//! The formats of one node. Their list is frozen when the first log is opened: from then on their
//! number is known, and each entry of a ring has room for the bytes of each of them.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use crate::format::{Format, MAX_FORMATS};
use crate::format_slot::FormatSlot;
use crate::observe::Metrics;

/// A format that is registered with a hub.
#[derive(Clone)]
pub struct FormatHandle(pub(crate) Arc<FormatSlot>);

/// Why a format cannot be registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The node has four formats already: each event has a slot for each.
    #[error("the format '{0}' finds no room: a hub has at most {MAX_FORMATS} formats")]
    TooMany(&'static str),
    /// The node has opened a channel, and its list of formats is frozen since then.
    #[error("the format '{0}' comes too late: register it before a channel is listened to")]
    TooLate(&'static str),
}

/// The formats that are registered, by the index of their slot.
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

    /// Takes no further formats. Called before a log is opened.
    pub(crate) fn freeze(&self) {
        if !self.read().frozen {
            self.0.write().unwrap_or_else(PoisonError::into_inner).frozen = true;
        }
    }

    /// The names of the formats, in the order of their slots.
    pub(crate) fn names(&self) -> Vec<&'static str> {
        self.read().slots.iter().map(|slot| slot.format.name()).collect()
    }

    /// How many sessions each format has.
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
