//! Each block of Rust in these documents is a test of this crate: it compiles, and runs unless it
//! says `no_run`.

#[doc = include_str!("../../../README.md")]
pub mod readme {}

#[doc = include_str!("../../../docs/handlers.md")]
pub mod handlers {}

#[doc = include_str!("../../../docs/using.md")]
pub mod using {}

#[cfg(feature = "typescript")]
#[doc = include_str!("../../../src/typescript.md")]
pub mod typescript {}
