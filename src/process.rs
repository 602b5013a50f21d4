//! Figures of the process and of the build, by the names that Prometheus's own libraries use.

use std::fs;
use std::time::Duration;

use airwave_core::observe::{Metrics, Snapshot};

/// The kernel tells times of processes in hundredths of a second, whatever its own clock is
/// (proc(5), `USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;

/// Adds the figures to those of a node.
pub(crate) fn add_to(metrics: &Metrics) {
    metrics.add_source(|snapshot| {
        snapshot
            .info("airwave_build_info", "The version of this server")
            .add(&[("version", env!("CARGO_PKG_VERSION"))], 1);
        add(snapshot, &Figures::read());
    });
}

/// What the system tells of this process. What it does not tell is left out.
#[derive(Debug, Default, PartialEq)]
struct Figures {
    resident_bytes: Option<u64>,
    virtual_bytes: Option<u64>,
    threads: Option<u64>,
    cpu_seconds: Option<f64>,
    start: Option<Duration>,
    open_files: Option<u64>,
    most_files: Option<u64>,
}

impl Figures {
    fn read() -> Self {
        let text = |path| fs::read_to_string(path).unwrap_or_default();
        Self {
            open_files: open_files(),
            most_files: rlimit::getrlimit(rlimit::Resource::NOFILE).ok().map(|(soft, _)| soft),
            ..Self::parse(&text("/proc/self/status"), &text("/proc/self/stat"), &text("/proc/stat"))
        }
    }

    fn parse(status: &str, stat: &str, system: &str) -> Self {
        let value = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        // The name of the program stands in brackets and may hold spaces: the fields after it count
        // from 3 (proc(5)).
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .map_or("", |(_, rest)| rest)
            .split_whitespace()
            .collect();
        let ticks = |field: usize| fields.get(field - 3)?.parse::<f64>().ok();
        let boot = system
            .lines()
            .find_map(|line| line.strip_prefix("btime ")?.trim().parse::<f64>().ok());
        let start = ticks(22).zip(boot).map(|(ticks, boot)| boot + ticks / TICKS_PER_SECOND);
        Self {
            resident_bytes: value("VmRSS").map(|kib| kib * 1024),
            virtual_bytes: value("VmSize").map(|kib| kib * 1024),
            threads: value("Threads"),
            cpu_seconds: ticks(14)
                .zip(ticks(15))
                .map(|(user, system)| (user + system) / TICKS_PER_SECOND),
            start: start.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
            ..Self::default()
        }
    }
}

/// How many files the process has open.
fn open_files() -> Option<u64> {
    let folder = "/proc/self/fd";
    // Newer kernels (6.2) tell the number as the folder's size; counting a hundred thousand takes
    // long.
    match fs::metadata(folder).ok()?.len() {
        0 => Some(fs::read_dir(folder).ok()?.count() as u64),
        count => Some(count),
    }
}

fn add(snapshot: &mut Snapshot, figures: &Figures) {
    if let Some(seconds) = figures.cpu_seconds {
        snapshot
            .counter("process_cpu_seconds_total", "Processor time that the process has used")
            .add(&[], seconds);
    }
    let mut gauge = |name, help, value: Option<u64>| {
        if let Some(value) = value {
            snapshot.gauge(name, help).add(&[], value);
        }
    };
    gauge("process_open_fds", "Files that the process has open", figures.open_files);
    gauge("process_max_fds", "Files that the process may have open", figures.most_files);
    gauge(
        "process_resident_memory_bytes",
        "Memory that the process holds",
        figures.resident_bytes,
    );
    gauge(
        "process_virtual_memory_bytes",
        "Addresses that the process has reserved",
        figures.virtual_bytes,
    );
    gauge("process_threads", "Threads of the process", figures.threads);
    if let Some(start) = figures.start {
        snapshot
            .gauge("process_start_time_seconds", "When the process began, since 1970")
            .add(&[], start.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    #[test]
    fn what_the_kernel_tells_is_read() {
        let status = "Name:\tair wave\nVmSize:\t   2048 kB\nVmRSS:\t    1024 kB\nThreads:\t3\n";
        let mut fields: Vec<String> = (3..=52).map(|field| field.to_string()).collect();
        fields[22 - 3] = "12345".into();
        let stat = format!("77 (air) wave) {}", fields.join(" "));
        let figures = Figures::parse(status, &stat, "cpu 1 2\nbtime 1700000000\n");
        assert_eq!(figures.start.unwrap().as_millis() / 10, 170_000_012_345);
        let start = figures.start;
        assert_eq!(
            figures,
            Figures {
                resident_bytes: Some(1 << 20),
                virtual_bytes: Some(2 << 20),
                threads: Some(3),
                cpu_seconds: Some(0.29),
                start,
                ..Figures::default()
            }
        );
        assert_eq!(Figures::parse("", "", ""), Figures::default());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_is_told_of() {
        let before = Figures::read();
        let file = fs::File::open("/proc/self/status").unwrap();
        let figures = Figures::read();
        drop(file);
        assert!(before.open_files.unwrap() >= 3 && figures.most_files.unwrap() >= figures.open_files.unwrap());
        assert!(figures.resident_bytes.unwrap() > 1 << 20);
        let age = SystemTime::now().duration_since(UNIX_EPOCH + figures.start.unwrap()).unwrap();
        assert!(age < Duration::from_secs(3600 * 24), "{age:?}");
    }
}
