//! Airwave's brokers: what orders, keeps and carries events between nodes. One module each, all of
//! the same contract, [`airwave_core::Broker`].
//!
//! 1. [`memory`]: one node, in this process. The reference: read it first
//! 2. `redis` (feature `redis`): several nodes, on one Redis server
//! 3. `nats` (feature `nats`): several nodes, on a NATS server or cluster with JetStream
//!
//! A broker imports `airwave_core` and its own client library, and never another broker; what two
//! of them would both write belongs in core. `tests/conformance.rs` runs every clause of the
//! contract over every broker.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod memory;
#[cfg(feature = "nats")]
pub mod nats;
#[cfg(any(feature = "nats", feature = "redis"))]
mod reconnect;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(any(feature = "nats", feature = "redis"))]
mod silence;

#[cfg(feature = "nats")]
pub use self::nats::Nats;
#[cfg(feature = "redis")]
pub use self::redis::Redis;
pub use memory::Memory;
