//! Placeholder while the house is built.

pub mod config;
