//! What is measured, and how: each scenario runs every server in turn, in every round, under the
//! same load.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::check::Histogram;
use crate::load::{Load, Pace, Transport};
use crate::measured::{Figure, Measured, OTHERS_BUSY, busy};
use crate::process::{Kind, Memory, Pinning, Server, everybodys_cpu, listen_overflows, own_cpu, raise_open_files};
use crate::publish::{Job, Publisher};
use crate::table::{Column, Report};

/// What all scenarios have in common.
pub struct Settings {
    /// In this order.
    pub servers: Vec<Kind>,
    /// How often every server is measured.
    pub rounds: usize,
    /// Bytes of an event's data.
    pub size: usize,
    /// Whether server and generator have processors of their own.
    pub pinning: Option<Pinning>,
    /// The binary; empty if it is not measured.
    pub airwave: PathBuf,
}

/// Deliveries per second of the server's processor time.
pub const PER_CPU_SECOND: Figure = |measured| {
    let cpu = measured.cpu.as_secs_f64();
    (cpu > 0.0 && measured.deliveries > 0).then(|| measured.deliveries as f64 / cpu)
};
/// The server's processor time in seconds.
pub const CPU: Figure = |measured| Some(measured.cpu.as_secs_f64());
/// Publish to receipt, 99th percentile, ms.
pub const P99: Figure = |measured| milliseconds(&measured.latency, 0.99);
/// KiB of resident memory per idle listener.
pub const IDLE: Figure = |measured| measured.memory.map(|[idle, _]| idle);
/// Connect to caught up, 99th percentile, ms.
pub const CATCH_UP_P99: Figure = |measured| milliseconds(&measured.catch_up, 0.99);
/// How often an event was turned into bytes, where all listeners use one wire.
pub const ENCODES: Figure = |measured| (measured.events > 0).then_some(measured.encodes? / measured.events as f64);
/// Reads of the broker's history.
pub const BROKER_READS: Figure = |measured| measured.broker_reads;
/// Connections that found a full listen queue: each waits a second or more for its next try.
pub const LISTEN_OVERFLOWS: Figure = |measured| measured.listen_overflows.map(|count| count as f64);
/// Listeners that have caught up, in percent.
pub const CAUGHT_UP: Figure = |measured| Some(100.0 * measured.caught_up as f64 / measured.listeners.max(1) as f64);

fn milliseconds(histogram: &Histogram, share: f64) -> Option<f64> {
    histogram.percentile(share).map(|nanoseconds| nanoseconds as f64 / 1e6)
}

fn fault_columns() -> Vec<Column> {
    vec![
        Column::plain("lost", 0, |measured| Some(measured.lost as f64)),
        Column::plain("duplicate", 0, |measured| Some(measured.duplicates as f64)),
        Column::plain("disorder", 0, |measured| Some(measured.late as f64)),
    ]
}

fn rate_columns() -> Vec<Column> {
    let mut columns = vec![
        Column::plain("deliveries", 0, |measured| Some(measured.deliveries as f64)),
        Column::plain("CPU s", 2, CPU),
        Column::plain("deliveries/CPU-s", 0, PER_CPU_SECOND),
        Column::to_raw("÷ raw", PER_CPU_SECOND),
        Column::plain("p50 ms", 1, |measured| milliseconds(&measured.latency, 0.5)),
        Column::plain("p99 ms", 1, P99),
        Column::plain("max ms", 1, |measured| milliseconds(&measured.latency, 1.0)),
        Column::plain("publish p99 ms", 1, |measured| milliseconds(&measured.round_trip, 0.99)),
        Column::plain("encodes/event", 2, ENCODES),
        Column::plain("generator busy %", 0, |measured| busy(measured, measured.generator_cpu)),
        Column::plain("others busy %", 0, OTHERS_BUSY),
    ];
    columns.extend(fault_columns());
    columns
}

/// How long a run may stand still before it is given up.
const PATIENCE: Duration = Duration::from_secs(30);

/// One server under load.
struct LoadRun {
    server: Server,
    load: Load,
    publishers: Vec<Publisher>,
    counts: Arc<[AtomicU64]>,
    per_channel: usize,
    round_trip: Histogram,
    window: Option<Window>,
}

struct Window {
    cpu: Duration,
    broker_cpu: Duration,
    generator_cpu: Duration,
    everybodys_cpu: Duration,
    begin: Instant,
    delivered: u64,
    published: u64,
    encodes: Option<f64>,
    broker_reads: Option<f64>,
    listen_overflows: Option<u64>,
}

/// Counters of Airwave's `/metrics`, by the end of their names.
const ENCODES_COUNTER: &str = "encodes";
const BROKER_READS_COUNTER: &str = "broker_replays";

impl LoadRun {
    /// Starts the server and the publishers, without listeners.
    fn start(settings: &Settings, kind: Kind, transport: Transport, channels: u32, publishers: u32) -> Result<Self, String> {
        let server = Server::start(kind, &settings.airwave, settings.pinning.as_ref())?;
        let load = Load::new(server.address, transport)?;
        let counts: Arc<[AtomicU64]> = (0..channels).map(|_| AtomicU64::new(0)).collect();
        let count = publishers.clamp(1, channels.max(1));
        let publishers = (0..count)
            .map(|publisher| {
                let mine = (0..channels).filter(|channel| channel % count == publisher).collect();
                Publisher::start(server.address, mine, counts.clone(), settings.size)
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            server,
            load,
            publishers,
            counts,
            per_channel: 0,
            round_trip: Histogram::default(),
            window: None,
        })
    }

    fn listen(&mut self, per_channel: usize) -> Result<(), String> {
        self.per_channel += per_channel;
        self.load
            .connect(0..self.counts.len() as u32, per_channel, Duration::from_secs(120))
            .map_err(|error| format!("{error}; the server's stderr: {}", self.server.stderr()))
    }

    /// What all listeners together must have had by now.
    fn expected(&self) -> u64 {
        self.published() * self.per_channel as u64
    }

    fn published(&self) -> u64 {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// Gives every publisher the job.
    fn begin(&self, job: Job) {
        for publisher in &self.publishers {
            publisher.begin(job);
        }
    }

    /// Reads until the publishers are done and everything has arrived, or nothing has for a long
    /// time: then the faults tell.
    fn complete(&mut self) -> Result<(), String> {
        let mut running = self.publishers.len();
        let mut last = (0, Instant::now());
        loop {
            let (expected, before) = (self.expected(), self.load.totals.delivered);
            let arrived = self.load.pump(Duration::from_millis(2), |totals| {
                running == 0 && totals.delivered >= expected
            })?;
            for publisher in &self.publishers {
                if let Some(result) = publisher.finished() {
                    let round_trips =
                        result.map_err(|error| format!("{error}; the server's stderr: {}", self.server.stderr()))?;
                    self.round_trip.merge(&round_trips);
                    running -= 1;
                }
            }
            if (arrived && running == 0) || !self.load.totals.problems.is_empty() {
                return Ok(());
            }
            if self.load.totals.delivered != before || running != last.0 {
                last = (running, Instant::now());
            } else if last.1.elapsed() > PATIENCE {
                return Ok(());
            }
        }
    }

    fn open_window(&mut self) -> Result<(), String> {
        self.load.totals.latency = Histogram::default();
        self.round_trip = Histogram::default();
        // Asking for metrics costs the server something: before the window.
        let (encodes, broker_reads) = (self.server.metric(ENCODES_COUNTER), self.server.metric(BROKER_READS_COUNTER));
        self.window = Some(Window {
            published: self.published(),
            encodes,
            broker_reads,
            listen_overflows: listen_overflows(),
            cpu: self.server.cpu()?,
            broker_cpu: self.server.broker_cpu()?,
            generator_cpu: own_cpu()?,
            everybodys_cpu: everybodys_cpu()?,
            begin: Instant::now(),
            delivered: self.load.totals.delivered,
        });
        Ok(())
    }

    /// Everything that was seen, the window's figures among it.
    fn finish(mut self) -> Result<Measured, String> {
        let mut measured = Measured {
            broker_connections: self.server.broker_connections(),
            ..Measured::default()
        };
        if let Some(window) = self.window.take() {
            measured.wall = window.begin.elapsed();
            measured.cpu = self.server.cpu()?.saturating_sub(window.cpu);
            measured.generator_cpu = own_cpu()?.saturating_sub(window.generator_cpu);
            measured.broker_cpu = self.server.broker_cpu()?.saturating_sub(window.broker_cpu);
            let ours = measured.cpu + measured.broker_cpu + measured.generator_cpu;
            measured.others_cpu = everybodys_cpu()?.saturating_sub(window.everybodys_cpu).saturating_sub(ours);
            measured.deliveries = self.load.totals.delivered - window.delivered;
            measured.events = self.published() - window.published;
            let grown = |name, before: Option<f64>| Some(self.server.metric(name)? - before?);
            measured.encodes = grown(ENCODES_COUNTER, window.encodes);
            measured.broker_reads = grown(BROKER_READS_COUNTER, window.broker_reads);
            measured.listen_overflows = listen_overflows()
                .zip(window.listen_overflows)
                .map(|(now, before)| now - before);
        }
        // What comes too much comes late: leave it some time.
        self.load.pump(Duration::from_millis(300), |_| false)?;
        let counts = self.counts.clone();
        measured.lost = self.load.lost(|channel| counts[channel as usize].load(Ordering::Relaxed));
        measured.listeners = self.load.len();
        measured.round_trip = std::mem::take(&mut self.round_trip);
        let totals = std::mem::take(&mut self.load.totals);
        measured.latency = totals.latency;
        measured.catch_up = totals.catch_up;
        measured.caught_up = totals.caught_up;
        measured.duplicates = totals.duplicates;
        measured.late = totals.late;
        measured.foreign = totals.foreign;
        measured.gaps = totals.gaps;
        measured.problems = totals.problems;
        Ok(measured)
    }
}

/// Runs `one` for every server in every round; the order changes from round to round, so that none
/// is always first.
fn rounds(
    settings: &Settings,
    title: &str,
    servers: &[Kind],
    one: impl Fn(Kind) -> Result<Measured, String>,
) -> Vec<BTreeMap<Kind, Result<Measured, String>>> {
    (0..settings.rounds)
        .map(|round| {
            let mut order = servers.to_vec();
            order.rotate_left(round % servers.len().max(1));
            let measure = |kind: Kind| {
                eprintln!("{title}: {kind}, round {} of {}", round + 1, settings.rounds);
                (kind, one(kind))
            };
            order.into_iter().map(measure).collect()
        })
        .collect()
}

/// How fast events are published.
#[derive(Debug, Clone, Copy)]
pub enum Rate {
    /// Events a second.
    Fixed(f64),
    /// This share of what the raw limit was found to deliver just before.
    Share(f64),
}

/// Shape of a paced run: how many listen to how many channels, and for how long events are
/// published.
#[derive(Debug, Clone, Copy)]
pub struct Paced {
    /// Which wire.
    pub transport: Transport,
    /// Channels.
    pub channels: u32,
    /// Listeners of each.
    pub per_channel: usize,
    /// Seconds of the measured window.
    pub seconds: f64,
    /// Events a second over all channels.
    pub rate: Rate,
    /// Publishing connections.
    pub publishers: u32,
}

/// One channel with many listeners, or many channels with few, at a rate that saturates no process.
pub fn paced(settings: &Settings, shape: Paced) -> Result<Report, String> {
    let Paced {
        transport,
        channels,
        per_channel,
        seconds,
        ..
    } = shape;
    let listeners = channels as usize * per_channel;
    raise_open_files(listeners as u64 + 100)?;
    let title = match channels {
        1 => format!("fan-out: 1 channel x {per_channel} listeners, {transport}"),
        _ => format!("many channels: {channels} channels x {per_channel} listeners, {transport}"),
    };
    let (rate, chosen) = match shape.rate {
        Rate::Fixed(rate) => (rate, "as asked".to_owned()),
        Rate::Share(share) => {
            eprintln!("{title}: finding the raw limit's rate");
            let most = capacity(settings, shape)?;
            (
                share * most / per_channel as f64,
                format!(
                    "{:.0} % of the {most:.0} deliveries/s that the raw limit reached",
                    share * 100.0
                ),
            )
        }
    };
    let events = ((seconds * rate) as u64).max(u64::from(shape.publishers));
    let rounds = rounds(settings, &title, &settings.servers, |kind| {
        let mut run = LoadRun::start(settings, kind, transport, channels, shape.publishers)?;
        run.listen(per_channel)?;
        let share = |events: u64| Job::Paced {
            events: (events / run.publishers.len() as u64).max(1),
            per_second: rate / run.publishers.len() as f64,
        };
        let (warm_up, job) = (share((rate as u64).max(3)), share(events));
        run.begin(warm_up);
        run.complete()?;
        run.open_window()?;
        run.begin(job);
        run.complete()?;
        run.finish()
    });
    let setting = format!(
        "{}-byte events, {rate:.1} events/s ({:.0} deliveries/s: {chosen}), {seconds:.0} s after a warm-up, {} round(s), one event a request.",
        settings.size,
        rate * per_channel as f64,
        settings.rounds
    );
    Ok(Report {
        title,
        setting,
        columns: rate_columns(),
        rounds,
    })
}

/// Deliveries a second that the raw limit reaches when it is never idle, as measured from publish
/// to the last receipt.
fn capacity(settings: &Settings, shape: Paced) -> Result<f64, String> {
    let mut run = LoadRun::start(settings, Kind::Raw, shape.transport, shape.channels, shape.publishers)?;
    run.listen(shape.per_channel)?;
    let deliveries = 100_000;
    let requests = (deliveries / shape.per_channel / run.publishers.len()).max(5) as u64;
    run.begin(Job::BackToBack {
        requests: requests.div_ceil(10),
        events: 1,
    });
    run.complete()?;
    run.open_window()?;
    run.begin(Job::BackToBack { requests, events: 1 });
    run.complete()?;
    let measured = run.finish()?;
    match measured.faults() {
        None => Ok(measured.deliveries as f64 / measured.wall.as_secs_f64()),
        Some(faults) => Err(format!("cannot find the raw limit's rate: {faults}; give one with --rate")),
    }
}

/// Bursts: many events in one request, to one channel.
pub fn burst(
    settings: &Settings,
    transport: Transport,
    listeners: usize,
    events: usize,
    bursts: u32,
    pause: Duration,
) -> Result<Report, String> {
    raise_open_files(listeners as u64 + 100)?;
    let title = format!("burst: {events} events back to back x {listeners} listeners, {transport}");
    let rounds = rounds(settings, &title, &settings.servers, |kind| {
        let mut run = LoadRun::start(settings, kind, transport, 1, 1)?;
        run.listen(listeners)?;
        let job = Job::BackToBack { requests: 1, events };
        run.begin(job);
        run.complete()?;
        run.open_window()?;
        for _ in 0..bursts {
            run.begin(job);
            run.complete()?;
            run.load.pump(pause, |_| false)?;
        }
        run.finish()
    });
    let setting = format!(
        "{}-byte events, {bursts} bursts with {} ms between them, each one array to `POST /publish`, {} round(s).",
        settings.size,
        pause.as_millis(),
        settings.rounds
    );
    Ok(Report {
        title,
        setting,
        columns: rate_columns(),
        rounds,
    })
}

/// Memory of listeners that wait.
pub fn idle(settings: &Settings, transport: Transport, listeners: usize) -> Result<Report, String> {
    /// Connections that are there before the first reading, so that what a server sets up once is
    /// not counted per listener.
    const WARM_UP: usize = 100;
    /// Events that every listener gets before the second reading.
    const EVENTS: usize = 20;
    raise_open_files((WARM_UP + listeners) as u64 + 100)?;
    let title = format!("idle memory: {listeners} listeners, {transport}");
    let rounds = rounds(settings, &title, &settings.servers, |kind| {
        let mut run = LoadRun::start(settings, kind, transport, 1, 1)?;
        run.listen(WARM_UP)?;
        run.load.pump(Duration::from_millis(500), |_| false)?;
        let before = run.server.memory()?;
        run.listen(listeners)?;
        run.load.pump(Duration::from_secs(1), |_| false)?;
        let idle = run.server.memory()?;
        run.begin(Job::BackToBack {
            requests: EVENTS as u64,
            events: 1,
        });
        run.complete()?;
        run.load.pump(Duration::from_secs(1), |_| false)?;
        let used = run.server.memory()?;
        let mut measured = run.finish()?;
        let each =
            |of: fn(&Memory) -> u64| [idle, used].map(|memory| of(&memory).saturating_sub(of(&before)) as f64 / listeners as f64);
        measured.memory = Some(each(|memory| memory.resident));
        measured.anonymous = Some(each(|memory| memory.anonymous));
        Ok(measured)
    });
    let setting = format!(
        "Growth of the server's resident memory over {listeners} further connections, all confirmed, after {WARM_UP} that were there before; \
         then after {EVENTS} events to each. The kernel's socket memory is not in it. {} round(s).",
        settings.rounds
    );
    let mut columns = vec![
        Column::plain("KiB/listener", 2, IDLE),
        Column::plain("of it anonymous", 2, |measured| measured.anonymous.map(|[idle, _]| idle)),
        Column::plain("after events", 2, |measured| measured.memory.map(|[_, used]| used)),
    ];
    columns.extend(fault_columns());
    Ok(Report {
        title,
        setting,
        columns,
        rounds,
    })
}

/// A resume storm: everybody loses the connection, misses something, and comes back at once.
pub fn storm(
    settings: &Settings,
    transport: Transport,
    listeners: usize,
    missed: usize,
    within: Duration,
) -> Result<Report, String> {
    raise_open_files(listeners as u64 + 100)?;
    let title = format!(
        "resume storm: {listeners} listeners back within {} s, {transport}",
        within.as_secs_f64()
    );
    // The hand-written server has no history, so no client can resume from it.
    let servers: Vec<Kind> = settings.servers.iter().copied().filter(|kind| *kind != Kind::Axum).collect();
    let rounds = rounds(settings, &title, &servers, |kind| {
        let mut run = LoadRun::start(settings, kind, transport, 1, 1)?;
        run.listen(listeners)?;
        run.begin(Job::BackToBack { requests: 1, events: 20 });
        run.complete()?;
        run.load.disconnect();
        run.begin(Job::BackToBack {
            requests: 1,
            events: missed,
        });
        // Time for the server to find all of them gone; nothing arrives meanwhile.
        run.load.pump(Duration::from_secs(1), |_| false)?;
        while run.publishers[0].finished().is_none() {
            run.load.pump(Duration::from_millis(10), |_| false)?;
        }
        let target = run.counts[0].load(Ordering::Relaxed);
        run.open_window()?;
        // Live events fall into the storm, so that the seam between replay and live is under test
        // as well.
        run.begin(Job::Paced {
            events: 4,
            per_second: 4.0 / within.as_secs_f64().max(0.1),
        });
        run.load.reconnect(target, Pace::Within(within), within + PATIENCE)?;
        run.load.pump(PATIENCE, |totals| totals.caught_up == listeners)?;
        run.complete()?;
        run.finish()
    });
    let setting = format!(
        "Every listener has 20 events, is cut off, misses {missed} ({} bytes each) and resumes from its last id; 4 live events fall into the storm. \
         Catching up: from the beginning of its connect to its last missed event. The hand-written server cannot resume. {} round(s).",
        settings.size, settings.rounds
    );
    let mut columns = vec![
        Column::plain("caught up %", 2, CAUGHT_UP),
        Column::plain("catch-up p50 ms", 1, |measured| milliseconds(&measured.catch_up, 0.5)),
        Column::plain("p99 ms", 1, CATCH_UP_P99),
        Column::plain("max ms", 1, |measured| milliseconds(&measured.catch_up, 1.0)),
        Column::plain("CPU s", 2, CPU),
        Column::to_raw("CPU ÷ raw", CPU),
        Column::plain("broker reads", 0, BROKER_READS),
        Column::plain("listen overflows", 0, LISTEN_OVERFLOWS),
        Column::plain("others busy %", 0, OTHERS_BUSY),
        Column::plain("whole storm s", 2, |measured| Some(measured.wall.as_secs_f64())),
    ];
    columns.extend(fault_columns());
    Ok(Report {
        title,
        setting,
        columns,
        rounds,
    })
}

/// What is compared where a broker stands behind the server.
const WITH_A_BROKER: [Kind; 4] = [Kind::RedisByHand, Kind::Airwave, Kind::AirwaveRedis, Kind::AirwaveNats];

/// Deliveries per second of processor time, the broker's included.
const PER_CPU_SECOND_OF_BOTH: Figure = |measured| {
    let cpu = (measured.cpu + measured.broker_cpu).as_secs_f64();
    (cpu > 0.0 && measured.deliveries > 0).then(|| measured.deliveries as f64 / cpu)
};
/// Events a second, from the first publish to the last receipt.
const EVENTS_PER_SECOND: Figure = |measured| {
    let wall = measured.wall.as_secs_f64();
    (wall > 0.0).then(|| measured.events as f64 / wall)
};

fn broker_columns() -> Vec<Column> {
    let mut columns = vec![
        Column::plain("events/s", 0, EVENTS_PER_SECOND),
        Column::to(Kind::RedisByHand, "÷ by hand", EVENTS_PER_SECOND),
        Column::plain("publish p50 ms", 2, |measured| milliseconds(&measured.round_trip, 0.5)),
        Column::plain("p99 ms", 1, |measured| milliseconds(&measured.round_trip, 0.99)),
        Column::plain("receipt p50 ms", 2, |measured| milliseconds(&measured.latency, 0.5)),
        Column::plain("p99 ms", 1, P99),
        Column::plain("deliveries/CPU-s, broker included", 0, PER_CPU_SECOND_OF_BOTH),
        Column::to(Kind::RedisByHand, "÷ by hand", PER_CPU_SECOND_OF_BOTH),
        Column::plain("server CPU s", 2, CPU),
        Column::plain("broker CPU s", 2, |measured| Some(measured.broker_cpu.as_secs_f64())),
        Column::plain("connections to the broker", 0, |measured| {
            measured.broker_connections.map(|count| count as f64)
        }),
        Column::plain("others busy %", 0, OTHERS_BUSY),
    ];
    columns.extend(fault_columns());
    columns
}

/// How many events a second get through a broker when publishers wait for nothing but the answer
/// before.
pub fn broker_publish(settings: &Settings, publishers: u32, channels: u32, requests: u64) -> Result<Report, String> {
    raise_open_files(u64::from(channels) + 200)?;
    let title = format!("publishing through a broker: {publishers} publishers, {channels} channels with a listener each");
    let rounds = rounds(settings, &title, &WITH_A_BROKER, |kind| {
        let mut run = LoadRun::start(settings, kind, Transport::Sse, channels, publishers)?;
        run.listen(1)?;
        let each = |requests: u64| Job::BackToBack {
            requests: (requests / run.publishers.len() as u64).max(1),
            events: 1,
        };
        let (warm_up, job) = (each(requests / 10), each(requests));
        run.begin(warm_up);
        run.complete()?;
        run.open_window()?;
        run.begin(job);
        run.complete()?;
        run.finish()
    });
    let setting = format!(
        "{}-byte events, {requests} of them, one event a request, each publisher sends its next when the last was answered. Broker, server and load \
         generator share the machine; the brokers keep nothing on disk. {} round(s).",
        settings.size, settings.rounds
    );
    Ok(Report {
        title,
        setting,
        columns: broker_columns(),
        rounds,
    })
}

/// What one channel with many listeners costs the server and the broker behind it, at the same rate
/// for all.
pub fn broker_fanout(settings: &Settings, listeners: usize, rate: f64, seconds: f64) -> Result<Report, String> {
    // By hand each listener is a connection to Redis as well.
    raise_open_files(2 * listeners as u64 + 200)?;
    let title = format!("fan-out through a broker: 1 channel x {listeners} listeners");
    let events = ((rate * seconds) as u64).max(1);
    let rounds = rounds(settings, &title, &WITH_A_BROKER, |kind| {
        let mut run = LoadRun::start(settings, kind, Transport::Sse, 1, 1)?;
        run.listen(listeners)?;
        let paced = |events| Job::Paced {
            events,
            per_second: rate,
        };
        run.begin(paced((rate as u64).max(3)));
        run.complete()?;
        run.open_window()?;
        run.begin(paced(events));
        run.complete()?;
        run.finish()
    });
    let setting = format!(
        "{}-byte events, {rate:.1} events/s ({:.0} deliveries/s), {seconds:.0} s after a warm-up, {} round(s), one event a request.",
        settings.size,
        rate * listeners as f64,
        settings.rounds
    );
    Ok(Report {
        title,
        setting,
        columns: broker_columns(),
        rounds,
    })
}
