//! A clock for a server of its own: a small library, made by the C compiler of this machine and
//! loaded into the process.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// In a file that goes with it.
pub struct Clock(PathBuf);

impl Clock {
    /// One that is right. `None`, after saying so: there is no C compiler.
    pub fn new() -> Option<Clock> {
        static MADE: AtomicU64 = AtomicU64::new(0);
        library()?;
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let clock = Clock(std::env::temp_dir().join(format!("airwave-clock-{}-{number}", std::process::id())));
        clock.set(0);
        Some(clock)
    }

    /// So many seconds ahead of this machine's.
    pub fn set(&self, ahead: i64) {
        use std::os::unix::fs::FileExt;
        // Not truncated: the server has it mapped.
        let file = std::fs::File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&self.0);
        file.unwrap().write_all_at(&(ahead * 1_000_000).to_ne_bytes(), 0).unwrap();
    }

    pub fn give(&self, command: &mut Command) {
        if let Some(library) = library() {
            command.env("LD_PRELOAD", library).env("AIRWAVE_TEST_CLOCK", &self.0);
        }
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Made once for each process of tests.
fn library() -> Option<&'static Path> {
    static LIBRARY: OnceLock<Option<PathBuf>> = OnceLock::new();
    LIBRARY.get_or_init(make).as_deref()
}

fn make() -> Option<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/clock.c");
    let made = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("clock-{}.so", std::process::id()));
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let done = Command::new(compiler)
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .args([&made, &source])
        .output();
    match done {
        Ok(done) => {
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            Some(made)
        }
        Err(error) => {
            let missing = format!("there is no C compiler to make a clock with: {error}");
            assert!(
                std::env::var_os("AIRWAVE_TEST_REQUIRE_ALL").is_none_or(|all| all != "1"),
                "{missing}"
            );
            eprintln!("skipped: {missing}");
            None
        }
    }
}
