//! The test helpers' own tests. Other test binaries take a helper in with `#[path =
//! "…/tests/support/whatwg_sse.rs"] mod whatwg_sse;`.
#![allow(clippy::unwrap_used)]

/// What a browser would make of a stream: an SSE parser that knows no encoder.
mod whatwg_sse;
