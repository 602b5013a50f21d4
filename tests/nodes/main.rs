//! Several nodes: real processes of the real program over real brokers, and what clients hear who
//! move between them.
//!
//! A broker's server that is not here is a skip, said aloud, and a failure where everything must be
//! here (`AIRWAVE_TEST_REQUIRE_ALL=1`).
#![allow(clippy::unwrap_used)]

/// All is well, and clients go wherever they like.
mod moving;

/// One file, and only the broker's URL in it is another: clients hear the same.
mod swapping;

/// A node that may not open many files, and has more clients than that.
mod files;

/// A broker that does not answer.
mod ready;

/// Pages of history that are not read.
mod pages;

/// A node that is asked to end while its broker hangs.
mod ending;

/// Nothing is well: a short run of the chaos that `cargo run -p airwave-bench -- chaos` goes on
/// with.
mod chaos;

/// Nodes of two versions share a broker.
mod upgrade;

use std::path::Path;

use airwave_bench::chaos::BrokerKind;

/// The program under test.
fn airwave() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_airwave"))
}

/// Whether the broker's server is here.
fn is_here(kind: BrokerKind) -> bool {
    let Err(missing) = kind.program() else { return true };
    let required = std::env::var_os("AIRWAVE_TEST_REQUIRE_ALL").is_some_and(|all| all == "1");
    assert!(!required, "{missing}");
    eprintln!("skipped: {missing}");
    false
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(test);
}
