//! Open files: how many connections they leave room for, and what happens when there are none left.

use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;

/// Open files that connections never take: the broker's connections, the log, what handlers open.
const RESERVE: std::ops::RangeInclusive<u64> = 24..=512;

/// How many connections fit within `limit` open files, of which `open` are open already.
pub(super) fn room(limit: u64, open: u64) -> usize {
    let reserve = (limit / 8).clamp(*RESERVE.start(), *RESERVE.end());
    usize::try_from(limit.saturating_sub(open + reserve))
        .unwrap_or(usize::MAX)
        .max(1)
}

/// How many connections fit within this process's limit of open files.
pub(super) fn room_of_this_process() -> usize {
    match rlimit::getrlimit(rlimit::Resource::NOFILE) {
        Ok((limit, _)) => room(limit, open_files()),
        // Without such a limit there is nothing to keep to.
        Err(_) => usize::MAX,
    }
}

/// The files that are open now.
fn open_files() -> u64 {
    // One of them is the directory itself.
    std::fs::read_dir("/proc/self/fd").map_or(16, |files| files.count() as u64)
}

/// A file that is kept open to be closed when the process has no descriptor left: the next client
/// then gets a descriptor, and with it an end, where it would wait in the kernel's queue for ever.
pub(super) struct Spare(Option<File>);

impl Spare {
    pub(super) fn new() -> Self {
        Self(File::open("/dev/null").ok())
    }

    /// Turns one waiting client away. Waits a moment if there is none, or no descriptor for it.
    pub(super) async fn turn_away(&mut self, listener: &TcpListener) {
        const MOMENT: Duration = Duration::from_millis(100);
        if self.0.take().is_some() {
            match tokio::time::timeout(MOMENT, listener.accept()).await {
                Ok(Ok(client)) => drop(client),
                Ok(Err(_)) => tokio::time::sleep(MOMENT).await,
                Err(_) => {}
            }
        } else {
            tokio::time::sleep(MOMENT).await;
        }
        *self = Self::new();
    }
}

/// Whether an accept failed because no descriptor is left, in this process or on the machine.
pub(super) fn is_out_of_files(error: &io::Error) -> bool {
    // EMFILE and ENFILE have these numbers on every Unix.
    matches!(error.raw_os_error(), Some(23 | 24))
}

/// Something that goes on for a while and is logged once: it counts as over after a quiet minute.
#[derive(Debug, Default)]
pub(super) struct Outage {
    last: Option<Instant>,
}

impl Outage {
    /// Notes that it happened. Returns true if it has just begun.
    pub(super) fn begins(&mut self) -> bool {
        const QUIET: Duration = Duration::from_secs(60);
        let now = Instant::now();
        let before = self.last.replace(now);
        before.is_none_or(|before| now - before > QUIET)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_files_are_left_for_the_broker() {
        assert_eq!(room(1024, 12), 884);
        assert_eq!(room(64, 12), 28);
        assert_eq!(room(1 << 20, 12), (1 << 20) - 12 - 512);
        assert_eq!(room(16, 12), 1);
        assert_eq!(room(u64::MAX, 12), usize::MAX - 524);
    }

    #[test]
    fn an_outage_is_told_once() {
        let mut outage = Outage::default();
        assert!(outage.begins());
        assert!((0..1000).all(|_| !outage.begins()));
    }
}
