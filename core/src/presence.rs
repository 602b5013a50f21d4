//! Who is in a channel, as one node knows it: its own members, those that the directory tells of,
//! and what has changed, for listeners to read.
//!
//! A **presence set** is to presence what a log is to events: a table of members, and a ring of the
//! last changes. A listener holds an index in that ring. A listener that is new, or has fallen off,
//! gets the whole list, in pages, and goes on behind it. Bytes are made once per format and shared,
//! and no listener has a queue of its own.
//!
//! What a node says about its members goes to the directory in batches, one under way at a time, so
//! that a member who comes and goes quickly costs no more than the last word. A node follows what
//! other nodes say only while it has a listener.
//!
//! The files, each of which uses only those above it:
//!
//! | file | what |
//! |---|---|
//! | `lease` | the node's life in the directory, and calls to the directory |
//! | `member` | one member: its connections to this node, and what other nodes say of it |
//! | `changes` | the ring of changes and the list in pages, encoded for listeners |
//! | `own` | this node's members of a channel, and what the directory was told of them |
//! | `followed` | all members of a channel while it has a listener |
//! | `state` | what a presence set knows, and what follows from each change |
//! | `set` | a presence set: its state behind a lock; and all sets of a node |
//! | `sync` | the tasks that bring a set and the directory together |
//! | `membership` | one connection in one channel, and what it has read |
//! | `node` | presence of a node, as hub and session call it |
//!
//! The state decides and `sync` acts: what changes a set returns the [`Work`](state::Work) that the
//! change calls for.
//!
//! Lock order: all sets → one set → its listeners; a watch's own lock comes before a set's, so a
//! watch is never dropped under it.

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
