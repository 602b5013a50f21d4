//! In Airwave's core, a channel is a log, and a listener is a cursor.
//!
//! This crate knows no socket, no HTTP framework and no broker client. Read the modules in this
//! order; each one uses only those above it:
//!
//! 1. [`event`]: names, positions, messages and events; values that are valid by construction
//! 2. [`cursor`]: how far a listener has got, as text
//! 3. [`shrink`], [`address`], [`warnings`]: giving memory back; counting by address; log lines
//!    that strangers can cause
//! 4. [`rule`]: the decision matrix and its settings as types
//! 5. [`refusal`]: the few error codes that clients see
//! 6. [`idempotency`]: keys that make a repeated publish harmless, as brokers see them
//! 7. [`broker`]: the backbone's contract: [`Broker`], [`Feed`], [`Replay`] (`replay`: what a page
//!    of history holds; [`patience`]: how long one request waits for a broker)
//! 8. [`directory`]: a further ability of a backbone: who is in a channel on which node
//! 9. [`mod@format`]: how events become bytes of a transport: [`Format`], [`Notice`]
//! 10. [`observe`]: what a node counts, and the present values of its metrics
//! 11. `sync`, `wake`, `orders`, `keep_alive`, `session_handle`, `registry`, `format_slot`,
//!     `ring_memory`, `log`: one channel on this node: ring, listeners, wake; the memory of
//!     all rings
//! 12. `presence`: who is in a channel, as this node knows it
//! 13. `outage`, `backbone`: what all parts of a node share, and the calls of the broker
//! 14. [`publish`], [`channel`]: what applications publish, and the handle that they publish with
//! 15. [`handler`]: what the application decides about clients
//! 16. `unhealed`, `follower`: fills a channel's log from the broker, and heals it
//! 17. `logs`: the open logs of one node
//! 18. `sessions`, `probe`: the node's sessions and the orders that it gives them
//! 19. `places`, `identities`, `admission`: who may connect, listen and send
//! 20. [`hub`]: one node, made of these parts
//! 21. [`session`]: one connected client, as every transport uses it
//!
//! `response` (feature `axum`) turns a refusal into an HTTP response. `conformance` and
//! `directory_conformance` (feature `conformance`) state the two contracts as test suites.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod address;
mod admission;
mod backbone;
pub mod broker;
mod caught;
pub mod channel;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod cursor;
pub mod directory;
#[cfg(feature = "conformance")]
pub mod directory_conformance;
pub mod event;
mod follower;
pub mod format;
mod format_slot;
mod formats;
pub mod handler;
pub mod hub;
pub mod idempotency;
mod identities;
mod inbox;
mod jitter;
mod keep_alive;
mod key_counts;
mod log;
mod logs;
mod newer;
mod not_ready;
pub mod observe;
mod orders;
mod outage;
pub mod patience;
mod places;
mod presence;
mod probe;
pub mod publish;
mod rate;
pub mod refusal;
mod registry;
mod replay;
#[cfg(feature = "axum")]
pub mod response;
mod ring_memory;
pub mod rule;
pub mod session;
mod session_handle;
mod sessions;
pub mod shrink;
mod singleflight;
mod sync;
#[cfg(all(test, not(loom)))]
mod testing;
mod unhealed;
mod wake;
pub mod warnings;

pub use broker::{Append, Broker, BrokerError, BrokerErrorKind, Feed, PageLimit, Published, Replay};
pub use channel::Channel;
pub use cursor::Cursor;
pub use directory::Directory;
pub use event::{Attributes, ChannelName, Data, Event, EventName, Key, Message, Position};
pub use format::{Format, Member, Notice};
pub use handler::{Client, ConnectRequest, Handler, Identity, LeaveReason, Reply};
pub use hub::{Connection, Hub};
pub use idempotency::ScopedKey;
pub use not_ready::{NotReady, NotReadyKind};
pub use publish::Publish;
pub use refusal::{Code, Refusal};
pub use rule::{Rule, Rules, UseCase};
pub use session::Session;
