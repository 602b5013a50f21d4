//! This module logs what later versions of Airwave store and this version does not know, once for
//! each kind.
//!
//! An operator may upgrade a node after the others, or go back to an older version. The log then
//! explains why listeners of that node see less.

use std::sync::{Mutex, PoisonError};

use crate::event::{Data, Message};

/// Bounds the kinds that the node tells apart, because a store may hold anything.
const KINDS: usize = 16;

/// Holds the kinds that the node has logged. Each node has one such list.
#[derive(Debug, Default)]
pub(crate) struct Newer(Mutex<Vec<String>>);

impl Newer {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// Checks a message of the store.
    pub(crate) fn look(&self, message: &Message) {
        // Nearly every message is of this version, and the node calls this for each.
        if message.is_hidden() {
            self.say(
                &format!("an event named {}", message.event),
                "no listener is shown such events",
            );
        } else if let Data::Opaque { version, kind, .. } = &message.data {
            let (version, kind) = (version.escape_ascii(), kind.escape_ascii());
            self.say(
                &format!("a payload of kind {kind} and version {version}"),
                "listeners get such payloads as binary data",
            );
        }
    }

    /// Logs `what`, unless the node has logged it. Returns whether this was the first time.
    pub(crate) fn say(&self, what: &str, instead: &str) -> bool {
        {
            let mut reported = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if reported.len() >= KINDS || reported.iter().any(|other| other == what) {
                return false;
            }
            reported.push(what.to_owned());
        }
        tracing::warn!(
            what,
            instead,
            "the broker holds something that a later version of Airwave has written and this one does not know: upgrade this node (this is said once for each kind)"
        );
        true
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn each_kind_is_said_once_and_of_a_flood_only_some() {
        let newer = Newer::default();
        let look = |bytes: &str| {
            newer.look(&Message::from_stored(&Bytes::copy_from_slice(bytes.as_bytes())));
            newer.0.lock().unwrap().len()
        };
        assert_eq!(look("t0400saidhi"), 0);
        assert_eq!(look("t0b00airwave.end"), 0);
        assert_eq!((look("t0b00airwave.run1"), look("t0b00airwave.run2")), (1, 1));
        assert_eq!((look("z0400saidhi"), look("3j04000000saidhi"), look("z0100a")), (2, 3, 3));
        assert_eq!((look("?"), look("")), (4, 4));
        for n in 10..99 {
            look(&format!("t0a00airwave.{n}"));
        }
        assert_eq!(newer.0.lock().unwrap().len(), KINDS);
        assert!(!newer.say("more", ""));
    }
}
