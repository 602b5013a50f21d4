//! Core's integration tests: one binary, a room for each kind of question.
#![allow(clippy::unwrap_used)]

/// Is the resume protocol itself right? A model of it, checked in every interleaving.
mod model;
