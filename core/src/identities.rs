//! This module keeps the identities of one connection. No other place keeps any, so each source of
//! identities is asked once for a connection.

use std::sync::Arc;

use crate::handler::{Client, ConnectRequest};
use crate::refusal::Refusal;
use crate::sync::{Mutex, lock};

/// A source says who a client is. A source that all handlers share would be one more variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IdentitySource {
    /// The channel has no handler: every client is anonymous there.
    Anonymous,
    /// The handler with this number says it.
    Handler(usize),
}

/// A connection has one identity for each source that gave one.
pub(crate) struct Identities {
    /// Holds the request as long as a source may still need it.
    request: Mutex<Option<Box<ConnectRequest>>>,
    known: Mutex<Vec<(IdentitySource, Arc<Client>)>>,
}

impl Identities {
    /// Creates an empty set. `request` is `None` if no source reads it.
    pub(crate) fn new(request: Option<ConnectRequest>) -> Self {
        Self {
            request: Mutex::new(request.map(Box::new)),
            known: Mutex::default(),
        }
    }

    /// Returns the client as `source` knows it, if `source` was asked already.
    pub(crate) fn known(&self, source: IdentitySource) -> Option<Arc<Client>> {
        let known = lock(&self.known);
        let found = known.iter().find(|(of, _)| *of == source);
        found.map(|(_, client)| client.clone())
    }

    /// Returns the request that the connection began with, for a source that has not been asked.
    ///
    /// # Errors
    /// Fails with `internal` if the request was dropped.
    pub(crate) fn request(&self) -> Result<Box<ConnectRequest>, Refusal> {
        let request = lock(&self.request).clone();
        request.ok_or_else(|| Refusal::internal("the connection can no longer be identified"))
    }

    /// Keeps the client that `source` returned.
    pub(crate) fn keep(&self, source: IdentitySource, client: Client) -> Arc<Client> {
        let client = Arc::new(client);
        lock(&self.known).push((source, client.clone()));
        client
    }

    /// Drops the request's headers, because no further source needs them.
    pub(crate) fn forget_request(&self) {
        lock(&self.request).take();
        lock(&self.known).shrink_to_fit();
    }
}
