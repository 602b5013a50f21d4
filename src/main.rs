//! The `airwave` binary.
fn main() {}
