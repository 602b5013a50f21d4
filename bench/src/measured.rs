//! What was measured of one server in one round.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::check::Histogram;

/// One server in one round.
#[derive(Default)]
pub struct Measured {
    /// Events times listeners, within the measured window.
    pub deliveries: u64,
    /// The server's processor time in the window.
    pub cpu: Duration,
    /// Its broker's processor time in the window.
    pub broker_cpu: Duration,
    /// Connections to its broker while everybody listened.
    pub broker_connections: Option<usize>,
    /// The generator's processor time in the window.
    pub generator_cpu: Duration,
    /// Processor time of everybody else on the machine in the window: what disturbs.
    pub others_cpu: Duration,
    /// Length of the window.
    pub wall: Duration,
    /// Publish to receipt.
    pub latency: Histogram,
    /// A publish's request to its answer.
    pub round_trip: Histogram,
    /// Connect to having everything that was missed.
    pub catch_up: Histogram,
    /// Events published in the window.
    pub events: u64,
    /// Events that the server turned into bytes in the window, as it counts itself.
    pub encodes: Option<f64>,
    /// Reads that the server asked of its broker in the window, as it counts itself.
    pub broker_reads: Option<f64>,
    /// Connections that the kernel dropped in the window because a listen queue was full, of all
    /// processes.
    pub listen_overflows: Option<u64>,
    /// Listeners.
    pub listeners: usize,
    /// Listeners that have caught up.
    pub caught_up: usize,
    /// KiB of resident memory per listener, idle and after traffic.
    pub memory: Option<[f64; 2]>,
    /// KiB of anonymous resident memory per listener, idle and after traffic.
    pub anonymous: Option<[f64; 2]>,
    /// Events that never came, summed over the listeners.
    pub lost: u64,
    /// Events that came twice.
    pub duplicates: u64,
    /// Events that came after a later one.
    pub late: u64,
    /// Events that came on another channel.
    pub foreign: u64,
    /// Announced gaps.
    pub gaps: u64,
    /// What else went wrong, and how often.
    pub problems: BTreeMap<String, u64>,
}

impl Measured {
    /// What makes its figures worthless, if anything does.
    pub fn faults(&self) -> Option<String> {
        let counts = [
            (self.lost, "lost"),
            (self.duplicates, "duplicated"),
            (self.late, "out of order"),
            (self.foreign, "on the wrong channel"),
            (self.gaps, "gaps announced"),
        ];
        let mut faults: Vec<String> = counts
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        faults.extend(self.problems.iter().map(|(problem, times)| format!("{problem} ({times} x)")));
        (!faults.is_empty()).then(|| faults.join("; "))
    }
}

/// A figure of a measurement; `None` if that server has none.
pub type Figure = fn(&Measured) -> Option<f64>;

/// What everybody else used of the machine, in percent of one processor.
pub const OTHERS_BUSY: Figure = |measured| busy(measured, measured.others_cpu);

/// Processor time in percent of one processor.
pub fn busy(measured: &Measured, cpu: Duration) -> Option<f64> {
    (!measured.wall.is_zero()).then(|| 100.0 * cpu.as_secs_f64() / measured.wall.as_secs_f64())
}
