//! The table of docs/brokers.md: the clauses of the contract against the brokers, from what a run
//! of the tests has written down.
//!
//! ```text
//! AIRWAVE_CONFORMANCE_RECORD=target/conformance cargo test -p airwave-brokers --test conformance
//! cargo run -p airwave-brokers --example conformance -- target/conformance docs/brokers.md            # is it still true?
//! cargo run -p airwave-brokers --example conformance -- target/conformance docs/brokers.md --write
//! ```

use std::path::Path;
use std::process::ExitCode;

use airwave_core::conformance::recorded_table;

/// The columns: the modules of `tests/conformance.rs`.
const BROKERS: &[(&str, &str)] = &[
    ("memory", "memory"),
    ("redis_server", "Redis"),
    ("redis_cluster", "Redis Cluster"),
    ("nats", "NATS JetStream"),
    ("nats_2_10", "NATS 2.10"),
];

const BEGIN: &str = "<!-- the table begins: made by the tests, see brokers/examples/conformance.rs -->\n";
const END: &str = "<!-- the table ends -->\n";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (folder, file, write) = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [folder, file] => (folder, file, false),
        [folder, file, "--write"] => (folder, file, true),
        _ => return fail("usage: conformance FOLDER FILE [--write]"),
    };
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) => return fail(&format!("{file}: {error}")),
    };
    let Some((before, rest)) = text.split_once(BEGIN) else {
        return fail(&format!("{file} has no line {BEGIN}"));
    };
    let Some((old, after)) = rest.split_once(END) else {
        return fail(&format!("{file} has no line {END}"));
    };
    let new = recorded_table(Path::new(folder), BROKERS);
    if write {
        return match std::fs::write(file, format!("{before}{BEGIN}{new}{END}{after}")) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&format!("{file}: {error}")),
        };
    }
    if old != new {
        let differs = old.lines().zip(new.lines()).find(|(old, new)| old != new);
        let (old, new) = differs.unwrap_or(("fewer or more lines", "see --write"));
        return fail(&format!(
            "{file} says\n  {old}\nand the tests say\n  {new}\nIf a test has failed, mend it first: a clause that did not run is not in the table. Or else make it anew with --write."
        ));
    }
    ExitCode::SUCCESS
}

fn fail(why: &str) -> ExitCode {
    eprintln!("{why}");
    ExitCode::FAILURE
}
