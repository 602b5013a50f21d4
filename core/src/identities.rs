//! Who one connection is. This is the one place where identities are kept, so that each source of
//! them is asked once for a connection.

use std::sync::Arc;

use crate::handler::{Client, ConnectRequest};
use crate::refusal::Refusal;
use crate::sync::{Mutex, lock};

/// Who says who a client is. A source that all handlers share would be one more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IdentitySource {
    /// The channel has no handler: every client is anonymous there.
    Anonymous,
    /// The handler with this number.
    Handler(usize),
}

/// The identities of one connection, by the source that gave them.
pub(crate) struct Identities {
    /// Kept as long as a source may still have to be asked.
    request: Mutex<Option<Box<ConnectRequest>>>,
    known: Mutex<Vec<(IdentitySource, Arc<Client>)>>,
}

impl Identities {
    /// `request`: `None` if no source reads it.
    pub(crate) fn new(request: Option<ConnectRequest>) -> Self {
        Self {
            request: Mutex::new(request.map(Box::new)),
            known: Mutex::default(),
        }
    }

    /// The client as `source` knows it, if `source` was asked already.
    pub(crate) fn known(&self, source: IdentitySource) -> Option<Arc<Client>> {
        let known = lock(&self.known);
        let found = known.iter().find(|(of, _)| *of == source);
        found.map(|(_, client)| client.clone())
    }

    /// The request that the connection began with, for a source that has not been asked.
    ///
    /// # Errors
    /// `internal`: it was forgotten.
    pub(crate) fn request(&self) -> Result<Box<ConnectRequest>, Refusal> {
        let request = lock(&self.request).clone();
        request.ok_or_else(|| Refusal::internal("the connection can no longer be identified"))
    }

    /// Keeps what `source` said.
    pub(crate) fn keep(&self, source: IdentitySource, client: Client) -> Arc<Client> {
        let client = Arc::new(client);
        lock(&self.known).push((source, client.clone()));
        client
    }

    /// No further source will be asked: lets go of the request's headers.
    pub(crate) fn forget_request(&self) {
        lock(&self.request).take();
        lock(&self.known).shrink_to_fit();
    }
}
