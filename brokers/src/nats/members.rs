//! Who is in a channel: a second, small stream, in which every subject holds its newest message
//! alone.
//!
//! **What a node says of a channel is in at most 64 messages**, by the members' hashes:
//! `airwave.members.c.NAME.NODE.BUCKET` holds the whole bucket. The node is its only writer and
//! knows what is in it, so nothing is read to write. A channel of 10,000 members is listed with 64
//! questions for each node, and for a member that joins, its node rewrites a 64th of its entries.
//!
//! **What has changed stands in a header** of the last message of a call. The stream tells that
//! again without the rest (`headers_only`), under `airwave.changes.c.NAME.NODE.BUCKET`; so a watch
//! is one plain subscription. Each node counts what it tells of a channel: a watch that finds a
//! hole ends.
//!
//! **The list of leases is one message**, `airwave.members.roll`, which a node replaces only after
//! it has read it. All times in it are those at which the stream's leader stored something, so no
//! node's clock counts. A node sends its heartbeat by writing the list of leases, at the time that
//! the server gives that very message. The dead stay in it for a while, so that they cannot come
//! back before what they said is removed.
//!
//! The stream's leader alone is asked, since replicas may lag. Nothing here needs more than version
//! 2.10.

mod directory;
mod entries;
mod leases;
mod stream;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use airwave_core::ChannelName;
use airwave_core::directory::NodeId;
use bytes::Bytes;
use tokio::time::Instant;

/// What this broker has stored about members.
#[derive(Default)]
pub(super) struct MemberAccounts {
    accounts: Mutex<HashMap<(NodeId, ChannelName), Account>>,
    /// Channels without members, of which only empty messages are left.
    empty: Mutex<HashSet<(NodeId, ChannelName)>>,
    /// When each of our lives sent its last heartbeat; `None`: it is over. Entries of a life that
    /// counts as dead would only take room.
    answered: Mutex<HashMap<NodeId, Option<Instant>>>,
}

/// One call at a time: each builds on what the one before said.
type Account = Arc<tokio::sync::Mutex<ChannelEntries>>;

/// What one node has stored of one channel.
#[derive(Default)]
struct ChannelEntries {
    buckets: BTreeMap<u64, Bucket>,
    /// How often something was stored.
    updates: u64,
    /// It is no longer in the table: another one counts.
    over: bool,
}

/// By member: stamp and value.
type Bucket = BTreeMap<Arc<str>, (u64, Bytes)>;

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Nothing here panics half-way through a change that matters.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
