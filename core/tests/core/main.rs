//! Core's integration tests: one binary, a room for each kind of question.
#![allow(clippy::unwrap_used)]

/// The broker, the wire and the client that these tests share.
mod support;

/// Resume across a fork, step by step.
mod forks;
/// Is the resume protocol itself right? A model of it, checked in every interleaving.
mod model;

/// What fan-out costs, and that it reaches every listener.
mod fanout;

/// Is a loss always announced, once, and never one that is none?
mod gaps;

/// Does a client that comes back, to any node at any time, have everything exactly once?
mod resume;

/// Is every listener told of a channel's end, once, and let go?
mod ends;

/// What becomes of those who do not keep up, and what they cost the others.
mod slow;

/// Rules with a rate: fewer wakes, nothing lost.
mod window;

/// The application's say: who is asked what, how often, and what comes of it.
mod handlers;

/// What operators see of an outage.
mod outage;

/// What else operators see: metrics, warnings, readiness.
mod operators;

/// A page of history: the log has it, or the broker is asked.
mod pages;

/// One node: opening and closing logs, telling every client, going away without a trace.
mod node;

/// Who is in a channel, over several nodes and whatever happens to what is between them.
mod presence;

/// What a later version of Airwave has stored.
mod newer;
