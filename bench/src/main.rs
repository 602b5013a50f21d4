//! Benchmarks of Airwave, as a user would rerun them.
//!
//! ```text
//! cargo run --release -p airwave-bench -- fanout --transport sse --listeners 5000
//! cargo run --release -p airwave-bench -- all --rounds 3 --write docs/performance.md
//! ```
//!
//! Every figure is taken side by side with two yardsticks in the same run, and only the ratios mean
//! anything on another machine: **the raw limit** (bare epoll, one `write` per delivery of bytes
//! that were built before) and **the hand-written axum server** (`tokio::sync::broadcast` with
//! axum's own SSE and WebSocket types). Each server runs as a process of its own, so that its
//! processor time and memory can be read from /proc; one load generator holds all listeners in one
//! thread over epoll, and publishes from threads beside it. It needs Linux, about as many open
//! files as listeners, and nothing but loopback.
//!
//! A figure counts only if it was delivered correctly: every event carries a sequence number, and a
//! listener that loses one, gets one twice, out of order or from another channel is a **FAULT**
//! below the table, and the exit status is 1.
//!
//! | command | what it does |
//! |---|---|
//! | `fanout` | one channel, many listeners, at a share (`--load`) of the rate that the raw limit reached just before, or at `--rate` |
//! | `burst` | 100 events in one request, again and again, with pauses |
//! | `idle` | memory per listener that only waits, then after some events |
//! | `storm` | all listeners are cut off, miss events, and come back within 2 s |
//! | `channels` | 1,000 channels with 5 listeners each |
//! | `brokers` | publishing and fan-out over SSE with Redis and NATS behind, beside Redis's pub/sub written into axum by hand |
//! | `heal` | 50,000 channels lose the connection to their broker, and then their node |
//! | `chaos` | no benchmark: real processes treated badly, and a checker that judges what clients saw of it |
//! | `cost` | instructions and allocations of a publish, a delivery and a connect, compared with `bench/cost.toml` |
//! | `all` | everything in the table of budgets; `--write FILE` puts it between the file's two `measured` markers |
//!
//! Where to look: `scenario.rs` says what is measured, `load.rs` is the generator, `check.rs` and
//! `wire.rs` decide what counts as delivered, `yardstick/` holds the two servers, `process.rs`
//! reads /proc, `table.rs` makes medians and ratios.
#![forbid(unsafe_code)]

mod check;
mod cost;
mod heal;
mod load;
mod measured;
mod process;
mod publish;
mod scenario;
mod table;
mod yardstick;

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use airwave_bench::{chaos, wire};
use clap::{Args, Parser, Subcommand};

use chaos::{BrokerKind, More, Plan};
use load::Transport;
use process::{Kind, Pinning};
use scenario::{Paced, Rate, Settings};
use table::{Budget, Report};

/// Benchmarks of Airwave beside the raw limit and a hand-written axum server.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct Common {
    /// What to measure.
    #[arg(long, global = true, value_delimiter = ',', default_values = ["raw", "axum", "airwave"])]
    servers: Vec<Kind>,
    /// The airwave binary; by default the one beside this program, built if need be.
    #[arg(long, global = true, value_name = "PATH")]
    airwave: Option<PathBuf>,
    /// How often to measure every server; tables show medians.
    #[arg(long, global = true, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Bytes of an event's data.
    #[arg(long, global = true, default_value_t = 128, value_parser = clap::value_parser!(u32).range(64..=32_768))]
    size: u32,
    /// Give the server the first processor and the generator the others.
    #[arg(long, global = true)]
    pin: bool,
}

impl Common {
    /// The binary that was named, or else one that is built.
    fn airwave_or_build(&self, release: bool) -> Result<PathBuf, String> {
        match &self.airwave {
            Some(path) => Ok(path.clone()),
            None => process::build_airwave(release),
        }
    }

    /// `needs_airwave`: the binary is measured whether it is among the servers or not.
    fn settings(mut self, needs_airwave: bool) -> Result<Settings, String> {
        self.servers.sort_unstable();
        self.servers.dedup();
        let airwave = if needs_airwave || self.servers.contains(&Kind::Airwave) {
            self.airwave_or_build(true)?
        } else {
            PathBuf::new()
        };
        Ok(Settings {
            servers: self.servers,
            rounds: usize::from(self.rounds),
            size: self.size as usize,
            pinning: self.pin.then(Pinning::new).transpose()?,
            airwave,
        })
    }
}

#[derive(Args, Clone, Copy)]
struct Pacing {
    /// Events a second over all channels, instead of a share of the raw limit's.
    #[arg(long)]
    rate: Option<f64>,
    /// Share of the raw limit's rate.
    #[arg(long, default_value_t = 0.55)]
    load: f64,
    /// Length of the measured window.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
}

impl Pacing {
    fn rate(self) -> Rate {
        self.rate.map_or(Rate::Share(self.load), Rate::Fixed)
    }
}

#[derive(Subcommand)]
enum Command {
    /// One channel with many listeners, at a moderate rate.
    Fanout {
        #[arg(long, default_value = "sse")]
        transport: Transport,
        #[arg(long, default_value_t = 5_000)]
        listeners: usize,
        #[command(flatten)]
        pacing: Pacing,
    },
    /// Many events at once.
    Burst {
        #[arg(long, default_value = "sse")]
        transport: Transport,
        #[arg(long, default_value_t = 1_000)]
        listeners: usize,
        /// Events of one burst.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=300))]
        events: u16,
        #[arg(long, default_value_t = 20)]
        bursts: u32,
        /// Milliseconds between bursts.
        #[arg(long, default_value_t = 100)]
        pause: u64,
    },
    /// Memory of listeners that wait.
    Idle {
        #[arg(long, default_value = "sse")]
        transport: Transport,
        #[arg(long, default_value_t = 5_000)]
        listeners: usize,
    },
    /// All listeners are cut off, miss events, and come back at once.
    Storm {
        #[arg(long, default_value = "sse")]
        transport: Transport,
        #[arg(long, default_value_t = 10_000)]
        listeners: usize,
        /// Events that each of them misses.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=300))]
        missed: u16,
        /// Milliseconds over which they come back.
        #[arg(long, default_value_t = 2_000)]
        within: u64,
    },
    /// Many channels with few listeners each.
    Channels {
        #[arg(long, default_value = "sse")]
        transport: Transport,
        #[arg(long, default_value_t = 1_000)]
        channels: u32,
        /// Listeners of each channel.
        #[arg(long, default_value_t = 5)]
        listeners: usize,
        /// Publishing connections.
        #[arg(long, default_value_t = 4)]
        publishers: u32,
        #[command(flatten)]
        pacing: Pacing,
    },
    /// Publishing and fan-out through Redis and NATS, beside Redis's pub/sub by hand.
    Brokers {
        #[arg(long, default_value_t = 1_000)]
        listeners: usize,
        /// Events a second of the fan-out.
        #[arg(long, default_value_t = 20.0)]
        rate: f64,
        /// Length of the fan-out's window.
        #[arg(long, default_value_t = 10.0)]
        seconds: f64,
        /// Publishing connections.
        #[arg(long, default_value_t = 16)]
        publishers: u32,
        /// Channels that are published to back to back.
        #[arg(long, default_value_t = 64)]
        channels: u32,
        /// Events that are published back to back.
        #[arg(long, default_value_t = 20_000)]
        events: u64,
        /// A Markdown file that has the two lines `<!-- brokers: begin -->` and `<!-- brokers: end
        /// -->`.
        #[arg(long, value_name = "FILE")]
        write: Option<PathBuf>,
    },
    /// Very many channels lose the connection to their broker, and then their node.
    Heal {
        /// The brokers, one after the other.
        #[arg(long = "broker", value_delimiter = ',', default_values = ["redis", "nats"])]
        brokers: Vec<HealBroker>,
        /// How many channels, each with one event and one listener.
        #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        channels: u32,
    },
    /// Treats real processes badly and judges by the promises.
    Chaos(Endurance),
    /// Counts instructions and allocations under valgrind, and compares them.
    Cost {
        /// The file to compare with; by default `bench/cost.toml`.
        #[arg(long, value_name = "FILE")]
        baseline: Option<PathBuf>,
        /// Puts what was counted into the file.
        #[arg(long)]
        write: bool,
    },
    /// Everything in the table of budgets.
    All {
        #[command(flatten)]
        pacing: Pacing,
        /// A Markdown file that has the two lines `<!-- measured: begin -->` and `<!-- measured:
        /// end -->`.
        #[arg(long, value_name = "FILE")]
        write: Option<PathBuf>,
    },
    /// Serves as the raw limit.
    #[command(hide = true)]
    ServeRaw,
    /// Serves as the hand-written axum server.
    #[command(hide = true)]
    ServeAxum,
    /// Serves as the server that speaks to Redis by hand.
    #[command(hide = true)]
    ServeRedis { url: String },
}

/// A broker that `heal` measures.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum HealBroker {
    Redis,
    Nats,
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("there were FAULTs: the figures above do not count");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Tells whether everything was delivered correctly.
fn run(cli: Cli) -> Result<bool, String> {
    let Cli { common, command } = cli;
    match command {
        Command::ServeRaw | Command::ServeAxum | Command::ServeRedis { .. } => serve(&command).map(|()| true),
        Command::Chaos(long) => endure(&long, &common.airwave_or_build(!cfg!(debug_assertions))?),
        Command::Cost { baseline, write } => {
            let airwave = common
                .airwave
                .ok_or("name a release build of airwave: --airwave target/release/airwave")?;
            cost::run(&airwave, &baseline.unwrap_or_else(cost::default_baseline), write).map(|()| true)
        }
        Command::Heal { brokers, channels } => heal_each(&common, &brokers, channels as usize),
        command => measure(common, command),
    }
}

/// Is one of the yardsticks, until the bench that started it is gone.
fn serve(command: &Command) -> Result<(), String> {
    process::end_with_parent();
    match command {
        Command::ServeRedis { url } => yardstick::redis::serve(url),
        Command::ServeRaw => yardstick::raw::serve(),
        _ => yardstick::axum::serve(),
    }
}

fn heal_each(common: &Common, brokers: &[HealBroker], channels: usize) -> Result<bool, String> {
    process::clean_up_on_signals()?;
    let airwave = common.airwave_or_build(true)?;
    println!("{}.\n", process::machine());
    let mut whole = true;
    for broker in brokers {
        let kind = match broker {
            HealBroker::Redis => Kind::AirwaveRedis,
            HealBroker::Nats => Kind::AirwaveNats,
        };
        let healed = heal::run(kind, &airwave, channels)?;
        println!("{}", healed.markdown());
        whole &= healed.is_whole();
    }
    Ok(whole)
}

/// Measures beside the yardsticks.
fn measure(common: Common, command: Command) -> Result<bool, String> {
    process::clean_up_on_signals()?;
    if cfg!(debug_assertions) {
        eprintln!("this is a debug build: check the machinery with it, and believe no figure");
    }
    let settings = common.settings(matches!(command, Command::Brokers { .. }))?;
    let machine = process::machine();
    match command {
        Command::All { pacing, write } => all(&settings, pacing, write, &machine),
        Command::Brokers {
            listeners,
            rate,
            seconds,
            publishers,
            channels,
            events,
            write,
        } => {
            let reports = [
                scenario::broker_publish(&settings, publishers, channels, events)?,
                scenario::broker_fanout(&settings, listeners, rate, seconds)?,
            ];
            tell(&reports, &machine, write.map(|path| (path, "brokers")))
        }
        command => {
            let report = measure_one(&settings, command)?;
            println!("{machine}.\n\n{}", report.markdown());
            Ok(report.faults().is_empty())
        }
    }
}

/// Runs the one scenario that the command names.
fn measure_one(settings: &Settings, command: Command) -> Result<Report, String> {
    let milliseconds = Duration::from_millis;
    match command {
        Command::Fanout {
            transport,
            listeners,
            pacing,
        } => scenario::paced(settings, fanout(transport, listeners, pacing)),
        Command::Burst {
            transport,
            listeners,
            events,
            bursts,
            pause,
        } => {
            let events = usize::from(events);
            scenario::burst(settings, transport, listeners, events, bursts, milliseconds(pause))
        }
        Command::Idle { transport, listeners } => scenario::idle(settings, transport, listeners),
        Command::Storm {
            transport,
            listeners,
            missed,
            within,
        } => scenario::storm(settings, transport, listeners, usize::from(missed), milliseconds(within)),
        Command::Channels {
            transport,
            channels,
            listeners,
            publishers,
            pacing,
        } => {
            let shape = Paced {
                transport,
                channels,
                per_channel: listeners,
                seconds: pacing.seconds,
                rate: pacing.rate(),
                publishers,
            };
            scenario::paced(settings, shape)
        }
        _ => Err("this command measures no single scenario".into()),
    }
}

#[derive(Args)]
struct Endurance {
    /// How long to go on with one seed after the other.
    #[arg(long, default_value_t = 1.0, conflicts_with = "runs")]
    minutes: f64,
    /// So many runs of the one seed, instead.
    #[arg(long)]
    runs: Option<u32>,
    /// The brokers to try in turn; by default those whose servers are here.
    #[arg(long = "broker")]
    brokers: Vec<BrokerKind>,
    /// All brokers; one whose server is missing is a failure.
    #[arg(long, conflicts_with = "brokers")]
    every_broker: bool,
    /// The first seed; by default the clock's.
    #[arg(long)]
    seed: Option<u64>,
    /// For how long things go wrong in one run.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// How many nodes; of several numbers (`1,5`) each is tried with each broker.
    #[arg(long, default_value = "3", value_delimiter = ',', value_parser = clap::value_parser!(u8).range(1..=20))]
    nodes: Vec<u8>,
    /// What may go wrong beside the usual, separated by commas: clocks, busy, refusals; or all.
    #[arg(long = "with", value_name = "FAULTS", default_value_t = More::NONE)]
    more: More,
    /// Tells everything that was seen in a run that fails.
    #[arg(long)]
    story: bool,
}

/// Run after run, until the time is over or a signal comes. Each broker with each number of nodes
/// has one run at least.
fn endure(long: &Endurance, airwave: &Path) -> Result<bool, String> {
    let brokers = match long.every_broker {
        true => BrokerKind::ALL.to_vec(),
        false if long.brokers.is_empty() => BrokerKind::ALL.into_iter().filter(|kind| kind.program().is_ok()).collect(),
        false => long.brokers.clone(),
    };
    if brokers.is_empty() {
        return Err("there is no broker's server to try; name one with --broker to be told what is missing".into());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start: {error}"))?;
    let nodes = long.nodes.iter().map(|nodes| usize::from(*nodes));
    let matrix: Vec<(usize, BrokerKind)> = nodes
        .flat_map(|nodes| brokers.iter().map(move |kind| (nodes, *kind)))
        .collect();
    // Whichever ends, all processes end with it.
    runtime.block_on(async {
        tokio::select! {
            result = go_on(long, &matrix, airwave) => result,
            () = interrupted() => Err("interrupted".into()),
        }
    })
}

/// Comes back when a signal asks to end.
async fn interrupted() {
    let terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate());
    let Ok(mut terminate) = terminate else {
        return std::future::pending().await;
    };
    tokio::select! { _ = terminate.recv() => {}, _ = tokio::signal::ctrl_c() => {} }
}

/// Goes through the matrix again and again. True: every promise was kept.
async fn go_on(long: &Endurance, matrix: &[(usize, BrokerKind)], airwave: &Path) -> Result<bool, String> {
    let first = long.seed.unwrap_or_else(|| chaos::history::wall_clock() / 1_000_000);
    let trouble = Duration::from_secs(long.seconds);
    let since = Instant::now();
    let (mut done, mut failed) = (0usize, Vec::new());
    let mut seed = first;
    loop {
        let (round, number) = (done / matrix.len(), done % matrix.len());
        let over = match long.runs {
            Some(runs) => round >= runs as usize,
            None => round > 0 && since.elapsed().as_secs_f64() >= long.minutes * 60.0,
        };
        if over {
            break;
        }
        if long.runs.is_none() {
            seed = first + round as u64;
        }
        let (nodes, kind) = matrix[number];
        let run = chaos::run(kind, Plan::new(seed, nodes, trouble, long.more), airwave).await?;
        done += 1;
        if run.is_good() {
            println!("{run}");
        } else {
            println!("{}", run.report(long.story));
            failed.push(format!("{kind} seed {seed} with {nodes} nodes"));
        }
    }
    println!(
        "{done} runs of seeds {first} to {seed}, {} failed {failed:?}, {:.0} s",
        failed.len(),
        since.elapsed().as_secs_f64()
    );
    Ok(failed.is_empty())
}

fn fanout(transport: Transport, listeners: usize, pacing: Pacing) -> Paced {
    Paced {
        transport,
        channels: 1,
        per_channel: listeners,
        seconds: pacing.seconds,
        rate: pacing.rate(),
        publishers: 1,
    }
}

fn all(settings: &Settings, pacing: Pacing, write: Option<PathBuf>, machine: &str) -> Result<bool, String> {
    if let Some(path) = &write {
        // Not after minutes of measuring.
        replace_between(&read(path)?, "measured", "").map_err(|error| format!("{}: {error}", path.display()))?;
    }
    let mut measured = All {
        settings,
        pacing,
        budgets: Vec::new(),
        reports: Vec::new(),
    };
    measured.fanouts()?;
    measured.bursts()?;
    measured.idle()?;
    measured.storms()?;
    measured.channels()?;
    let budgets = format!("### Budgets\n\n{}", table::budgets(&measured.budgets));
    tell_below(&budgets, &measured.reports, machine, write.map(|path| (path, "measured")))
}

const BOTH: [Transport; 2] = [Transport::Sse, Transport::Websocket];

/// Everything in the table of budgets, as far as it is measured.
struct All<'a> {
    settings: &'a Settings,
    pacing: Pacing,
    budgets: Vec<Budget>,
    reports: Vec<Report>,
}

impl All<'_> {
    fn add(&mut self, report: Report) {
        println!("{}", report.markdown());
        self.reports.push(report);
    }

    fn fanouts(&mut self) -> Result<(), String> {
        for transport in BOTH {
            for listeners in [5_000, 1_000] {
                let report = scenario::paced(self.settings, fanout(transport, listeners, self.pacing))?;
                if listeners == 5_000 {
                    self.budgets.push(Budget {
                        figure: format!("deliveries per CPU-second ÷ raw limit, {listeners} listeners, {transport}"),
                        measured: report.ratio(Kind::Airwave, scenario::PER_CPU_SECOND),
                        foundation: Some(0.85),
                        goal: Some(1.0),
                        more: true,
                        unit: "",
                    });
                    self.budgets.push(Budget {
                        figure: format!("encodes per event, {transport}"),
                        measured: report.median(Kind::Airwave, scenario::ENCODES),
                        foundation: Some(1.0),
                        goal: Some(1.0),
                        more: false,
                        unit: "",
                    });
                }
                // The goal, "lower than every peer's", is beyond the two yardsticks here: the
                // hand-written server stands for the peers.
                let peer = report.median(Kind::Axum, scenario::P99);
                self.budgets.push(Budget {
                    figure: format!("publish → receipt p99, {listeners} listeners, {transport} (bound: hand-written axum's)"),
                    measured: report.median(Kind::Airwave, scenario::P99),
                    foundation: peer,
                    goal: peer,
                    more: false,
                    unit: " ms",
                });
                self.add(report);
            }
        }
        Ok(())
    }

    fn bursts(&mut self) -> Result<(), String> {
        for transport in BOTH {
            let report = scenario::burst(self.settings, transport, 1_000, 100, 20, Duration::from_millis(100))?;
            self.budgets.push(Budget {
                figure: format!("the same in a burst of 100 × 1,000 listeners, {transport}"),
                measured: report.ratio(Kind::Airwave, scenario::PER_CPU_SECOND),
                foundation: Some(10.0),
                goal: Some(30.0),
                more: true,
                unit: "",
            });
            self.add(report);
        }
        Ok(())
    }

    fn idle(&mut self) -> Result<(), String> {
        for (transport, foundation) in [(Transport::Sse, 13.0), (Transport::Websocket, 7.0)] {
            let report = scenario::idle(self.settings, transport, 5_000)?;
            self.budgets.push(Budget {
                figure: format!("resident memory per idle listener, {transport}"),
                measured: report.median(Kind::Airwave, scenario::IDLE),
                foundation: Some(foundation),
                goal: Some(2.0),
                more: false,
                unit: " KiB",
            });
            self.add(report);
        }
        Ok(())
    }

    fn storms(&mut self) -> Result<(), String> {
        for transport in BOTH {
            let report = scenario::storm(self.settings, transport, 10_000, 100, Duration::from_secs(2))?;
            self.budgets.push(Budget {
                figure: format!("resume storm, 10,000 back within 2 s: caught up, {transport}"),
                measured: report.median(Kind::Airwave, scenario::CAUGHT_UP),
                foundation: Some(100.0),
                goal: Some(100.0),
                more: true,
                unit: " %",
            });
            self.budgets.push(Budget {
                figure: format!("resume storm: reads of the broker's history, {transport}"),
                measured: report.median(Kind::Airwave, scenario::BROKER_READS),
                foundation: Some(1.0),
                goal: Some(1.0),
                more: false,
                unit: "",
            });
            self.budgets.push(Budget {
                figure: format!("resume storm: replay p99, {transport}"),
                measured: report.median(Kind::Airwave, scenario::CATCH_UP_P99),
                foundation: None,
                goal: Some(1_000.0),
                more: false,
                unit: " ms",
            });
            self.add(report);
        }
        Ok(())
    }

    fn channels(&mut self) -> Result<(), String> {
        for transport in BOTH {
            let shape = Paced {
                transport,
                channels: 1_000,
                per_channel: 5,
                seconds: self.pacing.seconds,
                rate: self.pacing.rate(),
                publishers: 4,
            };
            let report = scenario::paced(self.settings, shape)?;
            self.budgets.push(Budget {
                figure: format!("1,000 channels × 5 listeners ÷ raw limit, {transport} (foundation: hand-written axum's)"),
                measured: report.ratio(Kind::Airwave, scenario::PER_CPU_SECOND),
                foundation: report.ratio(Kind::Axum, scenario::PER_CPU_SECOND),
                goal: Some(1.0),
                more: true,
                unit: "",
            });
            self.add(report);
        }
        Ok(())
    }
}

/// Prints the reports, and puts them into the file that wants them.
fn tell(reports: &[Report], machine: &str, write: Option<(PathBuf, &str)>) -> Result<bool, String> {
    for report in reports {
        println!("{}", report.markdown());
    }
    tell_below("", reports, machine, write)
}

/// `first` stands above the reports, which have been printed. `write`: a file, and the name of its
/// markers.
fn tell_below(first: &str, reports: &[Report], machine: &str, write: Option<(PathBuf, &str)>) -> Result<bool, String> {
    let mut text = format!("Measured with `airwave-bench` {} on {machine}.\n", env!("CARGO_PKG_VERSION"));
    // Writing to a String cannot fail.
    let disturbed = reports.iter().map(Report::disturbance).fold(0.0, f64::max);
    if disturbed > 25.0 {
        let _ = writeln!(text, "\n{}", not_quiet(disturbed));
    }
    if !first.is_empty() {
        let _ = write!(text, "\n{first}");
    }
    println!("{text}");
    for report in reports {
        let _ = write!(text, "\n{}", report.markdown());
    }
    if let Some((path, markers)) = write {
        let file = replace_between(&read(&path)?, markers, &text).map_err(|error| format!("{}: {error}", path.display()))?;
        std::fs::write(&path, file).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    Ok(reports.iter().all(|report| report.faults().is_empty()))
}

/// What is said above the tables of a run that shared the machine.
fn not_quiet(percent: f64) -> String {
    format!(
        "**Preliminary: the machine was not quiet.** Others used up to {percent:.0} % of a processor meanwhile. Memory, delivery and the \
         counted figures hold; the ratios are hints; the latencies say nothing."
    )
}

fn read(path: &PathBuf) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

/// `file` with `text` for what stood between its two markers of that name.
fn replace_between(file: &str, markers: &str, text: &str) -> Result<String, String> {
    let (begin, end) = (format!("<!-- {markers}: begin -->"), format!("<!-- {markers}: end -->"));
    let (before, rest) = file
        .split_once(&format!("{begin}\n"))
        .ok_or_else(|| format!("there is no line `{begin}`"))?;
    let (_, after) = rest
        .split_once(&end)
        .ok_or_else(|| format!("there is no line `{end}` after the first"))?;
    Ok(format!("{before}{begin}\n\n{text}\n{end}{after}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
        let cli = Cli::parse_from([
            "airwave-bench",
            "fanout",
            "--transport",
            "sse",
            "--listeners",
            "5000",
            "--servers",
            "raw,axum",
        ]);
        assert_eq!(cli.common.servers, [Kind::Raw, Kind::Axum]);
    }

    #[test]
    fn only_what_stands_between_the_markers_is_replaced() {
        let file = "a\n<!-- measured: begin -->\nold\n<!-- measured: end -->\nz\n";
        let once = replace_between(file, "measured", "new").unwrap();
        assert_eq!(once, "a\n<!-- measured: begin -->\n\nnew\n<!-- measured: end -->\nz\n");
        assert_eq!(
            replace_between(&once, "measured", "new").unwrap(),
            once,
            "and again comes to the same"
        );
        assert!(replace_between("<!-- measured: end -->\n<!-- measured: begin -->\n", "measured", "").is_err());
    }
}
