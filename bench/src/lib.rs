//! What the benchmarks and the tests over real processes share.
#![forbid(unsafe_code)]

pub mod chaos;
pub mod wire;
