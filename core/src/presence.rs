//! Presence says who is in a channel, as one node knows it. A node holds its own members, those
//! that the directory reports, and the changes, for listeners to read.
//!
//! A **presence set** is to presence what a log is to events: a table of members, and a ring of the
//! last changes. A listener holds an index in that ring. A listener that is new, or has fallen off,
//! receives the whole list, in pages, and goes on behind it. The node makes bytes once per format
//! and shares them, and no listener has a queue of its own.
//!
//! The node announces its members to the directory in batches, one under way at a time. So a member
//! who comes and goes quickly costs no more than the last announcement. A node follows what other
//! nodes announce only while it has a listener.
//!
//! Each of these files uses only those above it:
//!
//! | file | what |
//! |---|---|
//! | `lease` | the node's lease in the directory, and calls to the directory |
//! | `member` | one member: its connections to this node, and what other nodes announce of it |
//! | `changes` | the ring of changes and the list in pages, encoded for listeners |
//! | `own` | this node's members of a channel, and what it has announced of them |
//! | `followed` | all members of a channel while it has a listener |
//! | `state` | what a presence set knows, and what follows from each change |
//! | `set` | a presence set: its state behind a lock; and all sets of a node |
//! | `sync` | the tasks that bring a set and the directory together |
//! | `membership` | one connection in one channel, and what it has read |
//! | `node` | presence of a node, as hub and session call it |
//!
//! The state decides and `sync` acts: a change of a set returns the [`Work`](state::Work) that it
//! calls for.
//!
//! The lock order is: all sets → one set → its listeners. A watch's own lock comes before a set's,
//! so a watch is never dropped under it.

mod changes;
mod followed;
mod lease;
mod member;
mod membership;
mod node;
mod own;
mod set;
mod state;
mod sync;

pub(crate) use membership::Membership;
pub(crate) use node::Presence;
