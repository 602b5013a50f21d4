//! The shared texts: of each, what all clients have said to it, merged. Every byte of an update is
//! a stranger's.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock};

use airwave::{Code, Refusal};
use tokio::sync::Mutex;
use yrs::updates::decoder::Decode;
use yrs::updates::encoder::Encode;
use yrs::{Doc, ReadTxn, StateVector, Transact, Update};

/// The most that is kept of one document, in bytes of its encoded state (text, and what is left of
/// deleted text): all of it fits into one message, so that a client can bring it back to a server
/// that has lost it.
pub const MAX_BYTES: usize = 60_000;
/// After so many updates they are made into one.
const SQUASH: usize = 500;

/// At most so many documents.
const MAX_DOCUMENTS: usize = 200;

/// All documents of this server, in memory. What a server that was restarted has lost, its clients
/// bring back when they sync.
static DOCUMENTS: LazyLock<Mutex<HashMap<String, Arc<Mutex<Document>>>>> = LazyLock::new(Mutex::default);

/// The document of that name, which may be new.
pub async fn open(name: &str) -> Result<Arc<Mutex<Document>>, Refusal> {
    let mut documents = DOCUMENTS.lock().await;
    if !documents.contains_key(name) && documents.len() >= MAX_DOCUMENTS {
        return Err(Refusal::new(
            Code::TooMany,
            "this server keeps no more documents: use one that there is",
        ));
    }
    Ok(documents.entry(name.to_owned()).or_default().clone())
}

/// Why an update was not taken. Nothing of it is left behind.
#[derive(Debug, PartialEq, Eq)]
pub enum NotTaken {
    /// It is no update.
    Malformed,
    /// It builds on something that this server has not got: the client must sync first.
    Premature,
    /// The document is full.
    Full,
}

impl From<NotTaken> for Refusal {
    fn from(why: NotTaken) -> Self {
        match why {
            NotTaken::Malformed => Refusal::bad_request("this is no update of a Yjs document"),
            NotTaken::Premature => Refusal::bad_request("this update builds on others that the server has not got: sync first"),
            NotTaken::Full => Refusal::new(Code::TooLarge, format!("a document has at most {} bytes", MAX_BYTES)),
        }
    }
}

/// A document and all that it was made of.
#[derive(Default)]
pub struct Document {
    doc: Doc,
    /// Updates that make up the document: what is left if one more turns out to be bad.
    taken: Vec<Vec<u8>>,
    bytes: usize,
    /// Something was merged that the others could not be told.
    untold: bool,
}

impl Document {
    /// Merges one update.
    pub fn take(&mut self, update: &[u8]) -> Result<(), NotTaken> {
        if self.bytes + update.len() > MAX_BYTES {
            self.squash();
            if self.bytes + update.len() > MAX_BYTES {
                return Err(NotTaken::Full);
            }
        }
        let taken = apply(&self.doc, update);
        if taken.is_err() {
            // Half an update may be in there, so the document is made anew from what was good.
            self.doc = Doc::new();
            for update in &self.taken {
                // Each of these has been applied before.
                drop(apply(&self.doc, update));
            }
            return taken;
        }
        self.bytes += update.len();
        self.taken.push(update.to_vec());
        if self.taken.len() >= SQUASH {
            self.squash();
        }
        Ok(())
    }

    /// Returns what a client with the state vector `theirs` is missing. `None`: `theirs` is no
    /// state vector.
    pub fn missing(&self, theirs: &[u8]) -> Option<Vec<u8>> {
        let theirs = caught(|| StateVector::decode_v1(theirs).ok())??;
        Some(self.doc.transact().encode_state_as_update_v1(&theirs))
    }

    /// What this document has, as a state vector.
    pub fn vector(&self) -> Vec<u8> {
        self.doc.transact().state_vector().encode_v1()
    }

    /// What the others are told of an update that was taken: itself, or everything, if there was
    /// something that they could not be told.
    pub fn news_of(&mut self, update: Vec<u8>) -> Vec<u8> {
        if !self.untold {
            return update;
        }
        self.squash();
        self.taken.concat()
    }

    /// Whether telling them has succeeded.
    pub fn told(&mut self, told: bool) {
        self.untold = !told;
    }

    fn squash(&mut self) {
        let all = self.doc.transact().encode_state_as_update_v1(&StateVector::default());
        self.bytes = all.len();
        self.taken = vec![all];
    }
}

fn apply(doc: &Doc, update: &[u8]) -> Result<(), NotTaken> {
    let applied = caught(|| {
        let update = Update::decode_v1(update).map_err(|_| NotTaken::Malformed)?;
        let mut changing = doc.transact_mut();
        changing.apply_update(update).map_err(|_| NotTaken::Malformed)?;
        // Yjs keeps updates that wait for their predecessors without a bound, and shows them to no
        // reader.
        let store = changing.store();
        match (store.pending_update(), store.pending_ds()) {
            (None, None) => Ok(()),
            _ => Err(NotTaken::Premature),
        }
    });
    applied.unwrap_or(Err(NotTaken::Malformed))
}

/// The library decodes what it is given in good faith: bytes that make it panic are bytes that are
/// not taken.
fn caught<T>(call: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(call)).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;
    use yrs::{GetString, Text};

    /// A client's document, and what it would send after each of these insertions.
    fn typed(words: &[(u32, &str)]) -> (Doc, Vec<Vec<u8>>) {
        let doc = Doc::new();
        let text = doc.get_or_insert_text("text");
        let updates = words.iter().map(|(at, word)| {
            let mut typing = doc.transact_mut();
            text.insert(&mut typing, *at, word);
            typing.encode_update_v1()
        });
        let updates = updates.collect();
        (doc, updates)
    }

    fn shown(document: &Document) -> String {
        let text = document.doc.get_or_insert_text("text");
        text.get_string(&document.doc.transact())
    }

    #[test]
    fn two_who_wrote_apart_are_merged_and_a_latecomer_gets_all() {
        let (_, ada) = typed(&[(0, "hello "), (6, "world")]);
        let (_, bob) = typed(&[(0, "bye")]);
        let mut document = Document::default();
        for update in ada.iter().chain(&bob).chain(&ada) {
            document.take(update).unwrap();
        }
        let text = shown(&document);
        assert!(
            text.contains("hello world") && text.contains("bye") && text.len() == 14,
            "{text}"
        );
        let mut late = Document::default();
        late.take(&document.missing(&late.vector()).unwrap()).unwrap();
        // Decoded, because who wrote is listed in any order.
        let had = |document: &Document| StateVector::decode_v1(&document.vector()).unwrap();
        assert_eq!((shown(&late), had(&late)), (text, had(&document)));
    }

    #[test]
    fn a_bad_update_leaves_nothing_behind() {
        let (_, updates) = typed(&[(0, "one "), (4, "two "), (8, "three")]);
        let mut document = Document::default();
        document.take(&updates[0]).unwrap();
        assert_eq!(document.take(b"no update"), Err(NotTaken::Malformed));
        assert_eq!(document.take(&updates[2]), Err(NotTaken::Premature));
        assert_eq!(shown(&document), "one ");
        document.take(&updates[1]).unwrap();
        assert_eq!(shown(&document), "one two ");
        assert_eq!(document.missing(b"\xff"), None);
    }

    #[test]
    fn a_document_is_full_some_time_and_stays_whole() {
        let page = "x".repeat(6_000);
        let pages: Vec<_> = (0..20).map(|_| (0, page.as_str())).collect();
        let (_, updates) = typed(&pages);
        let mut document = Document::default();
        let taken = updates.iter().take_while(|update| document.take(update).is_ok()).count();
        assert!((5..MAX_BYTES / 6_000 + 1).contains(&taken), "{taken}");
        assert_eq!(document.take(&updates[taken]), Err(NotTaken::Full));
        assert_eq!(shown(&document).len(), taken * page.len());
    }

    proptest! {
        #[test]
        fn no_bytes_break_it(noise in prop::collection::vec(any::<u8>(), 0..200), at in 0usize..100, flip in 1u8..) {
            let (_, updates) = typed(&[(0, "first "), (6, "second")]);
            let mut document = Document::default();
            document.take(&updates[0]).unwrap();
            let mut bent = updates[1].clone();
            let at = at % bent.len();
            bent[at] ^= flip;
            for update in [noise.clone(), bent] {
                let before = shown(&document);
                if document.take(&update).is_err() {
                    prop_assert_eq!(shown(&document), before);
                }
            }
            let _ = document.missing(&noise);
            let mut other = Document::default();
            other.take(&document.missing(&other.vector()).unwrap()).unwrap();
            prop_assert_eq!(shown(&other), shown(&document));
        }
    }
}
