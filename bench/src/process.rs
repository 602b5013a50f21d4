//! The servers under test as child processes, and what /proc tells of them. Linux only, like the
//! yardstick's epoll.

use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Resource, Signal, getrlimit, kill_process, set_parent_process_death_signal, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tokio::signal::unix::{SignalKind, signal};

use airwave_bench::chaos::BrokerKind;

use crate::wire::{Dechunker, Head};

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Kind {
    /// The raw limit: bare epoll, one write per delivery.
    Raw,
    /// The hand-written axum server.
    Axum,
    /// Redis's pub/sub straight into axum's SSE, as the usual tutorial shows.
    RedisByHand,
    /// Airwave with the memory broker.
    Airwave,
    /// Airwave with Redis.
    AirwaveRedis,
    /// Airwave with NATS JetStream.
    AirwaveNats,
}

impl Kind {
    /// The broker's server that it needs.
    fn broker(self) -> Option<BrokerKind> {
        match self {
            Kind::Raw | Kind::Axum | Kind::Airwave => None,
            Kind::RedisByHand | Kind::AirwaveRedis => Some(BrokerKind::RedisVolatile),
            Kind::AirwaveNats => Some(BrokerKind::NatsVolatile),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Raw => "raw limit",
            Kind::Axum => "hand-written axum",
            Kind::RedisByHand => "Redis by hand",
            Kind::Airwave => "Airwave",
            Kind::AirwaveRedis => "Airwave, Redis",
            Kind::AirwaveNats => "Airwave, NATS",
        })
    }
}

/// Raises the limit of open files as far as it goes and says what to do if that is not enough for
/// `needed`.
pub fn raise_open_files(needed: u64) -> Result<(), String> {
    let mut limit = getrlimit(Resource::Nofile);
    let hard = limit.maximum.unwrap_or(u64::MAX);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).map_err(|error| format!("cannot raise the limit of open files to {hard}: {error}"))?;
    if hard < needed {
        return Err(format!(
            "this run needs {needed} open files in each of two processes, but the hard limit is {hard}: \
             ask for fewer --listeners, or raise it (`ulimit -Hn {needed}` as root, or `LimitNOFILE=` of the service)"
        ));
    }
    Ok(())
}

/// Which processors the server and the load generator run on.
pub struct Pinning {
    server: CpuSet,
    generator: CpuSet,
}

impl Pinning {
    /// The server gets the first processor, the generator the others.
    pub fn new() -> Result<Self, String> {
        let all = sched_getaffinity(None).map_err(|error| format!("cannot read the processor affinity: {error}"))?;
        let mut processors = (0..CpuSet::MAX_CPU).filter(|cpu| all.is_set(*cpu));
        let (mut server, mut generator) = (CpuSet::new(), CpuSet::new());
        if let Some(first) = processors.next() {
            server.set(first);
        }
        processors.for_each(|cpu| generator.set(cpu));
        if generator.count() == 0 {
            return Err("--pin needs at least two processors".into());
        }
        Ok(Self { server, generator })
    }

    fn apply(set: &CpuSet) -> Result<(), String> {
        sched_setaffinity(None, set).map_err(|error| format!("cannot pin to a processor: {error}"))
    }
}

/// A running server, with the broker behind it if it has one. Dropping it kills both and removes
/// their folder.
pub struct Server {
    child: Child,
    broker: Option<BrokerProcess>,
    folder: PathBuf,
    /// Where it listens.
    pub address: SocketAddr,
}

/// Children and their folders, for [`clean_up_on_signals`]. A child is in it from its start until
/// it was killed, and is reaped only after that, so none of these process ids can belong to another
/// process.
static RUNNING: Mutex<Vec<(u32, PathBuf)>> = Mutex::new(Vec::new());

fn running() -> MutexGuard<'static, Vec<(u32, PathBuf)>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From here on SIGINT and SIGTERM end this process and what it started: a run of minutes is
/// interrupted often, and a server left behind would disturb the next one.
pub fn clean_up_on_signals() -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(|error| format!("cannot watch for signals: {error}"))?;
    let guard = runtime.enter();
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| format!("cannot watch for signals: {error}"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| format!("cannot watch for signals: {error}"))?;
    drop(guard);
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        });
        let running = running();
        for (process, folder) in running.iter() {
            if let Some(process) = i32::try_from(*process).ok().and_then(Pid::from_raw) {
                let _ = kill_process(process, Signal::KILL);
            }
            let _ = fs::remove_dir_all(folder);
        }
        // Still holding the lock, so that nothing is started meanwhile.
        std::process::exit(130);
    });
    Ok(())
}

/// Ends this process when the bench that started it is gone, however it went.
pub fn end_with_parent() {
    // Without it only an interrupted run leaves something behind.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
}

/// Everything open, nothing in the way: one rule for all channels, limits far above what a run
/// uses.
const AIRWAVE_CONFIG: &str = r#"
[broker]
url = "BROKER"

[limits]
connections = 50000
connections_per_address = 50000
channels = 100000

[[channels]]
match = "{*name}"
transport = ["sse", "websocket"]
history = { events = 1000, age = "1h" }
send = "publish"
"#;

/// Says at which address a node finds its broker.
pub type Behind = dyn Fn(SocketAddr) -> Result<SocketAddr, String>;

impl Server {
    /// Starts it and waits until it listens. `airwave`: the binary.
    pub fn start(kind: Kind, airwave: &Path, pinning: Option<&Pinning>) -> Result<Self, String> {
        Self::start_configured(kind, airwave, pinning, AIRWAVE_CONFIG, &Ok)
    }

    /// The same with another configuration, and with something between the node and its broker:
    /// `behind` is given the broker's address and says which one to use.
    pub fn start_behind(kind: Kind, airwave: &Path, config: &str, behind: &Behind) -> Result<Self, String> {
        Self::start_configured(kind, airwave, None, config, behind)
    }

    fn start_configured(
        kind: Kind,
        airwave: &Path,
        pinning: Option<&Pinning>,
        config: &str,
        behind: &Behind,
    ) -> Result<Self, String> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("airwave-bench-{}-{number}", std::process::id()));
        let mut broker = None;
        let start = |broker: &mut Option<BrokerProcess>| -> Result<fs::File, String> {
            let io = |error| format!("cannot write to {}: {error}", folder.display());
            fs::create_dir_all(&folder).map_err(io)?;
            if let Some(kind) = kind.broker() {
                *broker = Some(BrokerProcess::start(kind, &folder)?);
            }
            let url = match broker.as_ref() {
                Some(broker) => broker.url_at(behind(broker.address)?),
                None => "memory:".into(),
            };
            fs::write(folder.join("airwave.toml"), config.replace("BROKER", &url)).map_err(io)?;
            fs::File::create(folder.join("stderr")).map_err(io)
        };
        let stderr = start(&mut broker).inspect_err(|_| {
            // Nothing was started that would remove it.
            let _ = fs::remove_dir_all(&folder);
        })?;
        let mut command = Self::command(kind, airwave, &folder, broker.as_ref())?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
        // A child inherits the affinity, and so do the threads that it starts and counts its
        // processors for.
        if let Some(pinning) = pinning {
            Pinning::apply(&pinning.server)?;
        }
        let mut running = running();
        let child = command.spawn();
        if let Ok(child) = &child {
            running.push((child.id(), folder.clone()));
        }
        drop(running);
        if let Some(pinning) = pinning {
            Pinning::apply(&pinning.generator)?;
        }
        let child = child.map_err(|error| format!("cannot start {:?}: {error}", command.get_program()))?;
        let mut server = Self {
            child,
            broker,
            folder,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
        };
        server.address = server.wait_for_address(kind)?;
        Ok(server)
    }

    /// How this kind of server is started.
    fn command(kind: Kind, airwave: &Path, folder: &Path, broker: Option<&BrokerProcess>) -> Result<Command, String> {
        let this = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
        Ok(match kind {
            Kind::Raw | Kind::Axum | Kind::RedisByHand => {
                let mut command = Command::new(this);
                command.arg(match kind {
                    Kind::Raw => "serve-raw",
                    Kind::Axum => "serve-axum",
                    _ => "serve-redis",
                });
                command.args(broker.map(BrokerProcess::url));
                command
            }
            Kind::Airwave | Kind::AirwaveRedis | Kind::AirwaveNats => {
                let mut command = Command::new(airwave);
                command
                    .args(["serve", "--listen", "127.0.0.1:0", "--config"])
                    .arg(folder.join("airwave.toml"));
                command
            }
        })
    }

    fn wait_for_address(&mut self, kind: Kind) -> Result<SocketAddr, String> {
        let (sender, lines) = channel();
        if let Some(stdout) = self.child.stdout.take() {
            std::thread::spawn(move || {
                // Read to the end, or a server that prints more would block.
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    let _ = sender.send(line);
                }
            });
        }
        let line = lines
            .recv_timeout(Duration::from_secs(20))
            .map_err(|_| match self.child.try_wait() {
                Ok(Some(status)) => format!("{kind} ended ({status}) without saying where it listens: {}", self.stderr()),
                _ => format!("{kind} did not say where it listens within 20 s: {}", self.stderr()),
            })?;
        line.strip_prefix("airwave listening on http://")
            .and_then(|address| address.trim_end().parse().ok())
            .ok_or_else(|| {
                format!(
                    "{kind} should have said where it listens, and said {line:?}: {}",
                    self.stderr()
                )
            })
    }

    /// Kills it without a warning and starts it again at the same address.
    pub fn kill_and_start_again(&mut self, airwave: &Path) -> Result<(), String> {
        end(&mut self.child);
        let stderr = fs::File::create(self.folder.join("stderr")).map_err(|error| format!("cannot write: {error}"))?;
        let mut command = Command::new(airwave);
        command
            .args(["serve", "--listen", &self.address.to_string(), "--config"])
            .arg(self.folder.join("airwave.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr);
        let mut running = running();
        self.child = command.spawn().map_err(|error| format!("cannot start it again: {error}"))?;
        running.push((self.child.id(), self.folder.clone()));
        drop(running);
        self.wait_for_address(Kind::Airwave).map(|_| ())
    }

    /// Its process id.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// Where its broker is itself.
    pub fn broker_url(&self) -> Result<String, String> {
        self.broker
            .as_ref()
            .map(BrokerProcess::url)
            .ok_or_else(|| "it has no broker".into())
    }

    /// The end of what it wrote to stderr.
    pub fn stderr(&self) -> String {
        let text = fs::read_to_string(self.folder.join("stderr")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        match lines.len() {
            0 => "(nothing on stderr)".into(),
            count => lines[count.saturating_sub(10)..].join("\n"),
        }
    }

    /// Processor time it has used.
    pub fn cpu(&self) -> Result<Duration, String> {
        cpu(self.child.id())
    }

    /// Processor time that its broker has used.
    pub fn broker_cpu(&self) -> Result<Duration, String> {
        self.broker
            .as_ref()
            .map_or(Ok(Duration::ZERO), |broker| cpu(broker.child.id()))
    }

    /// Connections that its broker has; `None` without a broker.
    pub fn broker_connections(&self) -> Option<usize> {
        let table = fs::read_to_string("/proc/net/tcp").ok()?;
        Some(connections_to(&table, self.broker.as_ref()?.address.port()))
    }

    /// The sum of a counter's series on `/metrics`, by the end of its name without `_total`; `None`
    /// for servers that have none.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let mut socket = TcpStream::connect(self.address).ok()?;
        socket.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        write!(
            socket,
            "GET /metrics HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            self.address
        )
        .ok()?;
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).ok()?;
        let head = Head::parse(&answer).ok()?.filter(|head| head.status == 200)?;
        let mut body = answer.split_off(head.length);
        if head.chunked {
            let chunks = std::mem::take(&mut body);
            Dechunker::default().decode(&chunks, &mut body).ok()?;
        }
        sum_of_series(&String::from_utf8_lossy(&body), name)
    }

    /// What it holds in memory.
    pub fn memory(&self) -> Result<Memory, String> {
        let path = format!("/proc/{}/status", self.child.id());
        let text = fs::read_to_string(&path)
            .map_err(|error| format!("cannot read {path}: {error}; is the server gone? {}", self.stderr()))?;
        Memory::parse(&text).ok_or_else(|| format!("{path} has no VmRSS and RssAnon"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        end(&mut self.child);
        self.broker = None;
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn end(child: &mut Child) {
    // It may be gone already; then there is nothing to end.
    let _ = child.kill();
    running().retain(|(process, _)| *process != child.id());
    let _ = child.wait();
}

/// A broker's server. Dropping it kills it.
struct BrokerProcess {
    kind: BrokerKind,
    child: Child,
    address: SocketAddr,
}

impl BrokerProcess {
    /// Starts it and waits until it answers. Nothing of it is on disk, which would be what is
    /// measured.
    fn start(kind: BrokerKind, folder: &Path) -> Result<Self, String> {
        let free = || -> std::io::Result<SocketAddr> { TcpListener::bind("127.0.0.1:0")?.local_addr() };
        let address = free().map_err(|error| format!("there is no free port: {error}"))?;
        let port = address.port().to_string();
        let mut command = Command::new(kind.program()?);
        match kind {
            BrokerKind::NatsVolatile => {
                let store = folder.join("nats");
                command.args(["--addr", "127.0.0.1", "--port", &port, "--jetstream", "--store_dir"]);
                command.arg(store);
            }
            _ => {
                command.args(["--bind", "127.0.0.1", "--port", &port, "--save", "", "--appendonly", "no"]);
                command.current_dir(folder);
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut running = running();
        let child = command
            .spawn()
            .map_err(|error| format!("cannot start {:?}: {error}", command.get_program()))?;
        running.push((child.id(), folder.to_owned()));
        drop(running);
        let mut broker = Self { kind, child, address };
        for _ in 0..200 {
            if TcpStream::connect(address).is_ok() {
                return Ok(broker);
            }
            if let Ok(Some(status)) = broker.child.try_wait() {
                return Err(format!("the server of {kind} ended at once: {status}"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Err(format!("the server of {kind} did not listen within 10 s"))
    }

    fn url(&self) -> String {
        self.url_at(self.address)
    }

    fn url_at(&self, address: SocketAddr) -> String {
        match self.kind {
            BrokerKind::NatsVolatile => format!("nats://{address}?storage=memory"),
            _ => format!("redis://{address}"),
        }
    }
}

impl Drop for BrokerProcess {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// Established connections to a port, out of /proc/net/tcp: the rows whose own port it is.
fn connections_to(table: &str, port: u16) -> usize {
    let suffix = format!(":{port:04X}");
    let rows = table
        .lines()
        .skip(1)
        .map(|row| row.split_ascii_whitespace().collect::<Vec<_>>());
    // 01 is "established".
    rows.filter(|row| row.get(1).is_some_and(|own| own.ends_with(&suffix)) && row.get(3) == Some(&"01"))
        .count()
}

fn sum_of_series(metrics: &str, name: &str) -> Option<f64> {
    let series = metrics.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let full = line.split(['{', ' ']).next()?;
        let is_it = full.strip_suffix("_total").unwrap_or(full).ends_with(name);
        if is_it {
            line.rsplit(' ').next()?.parse::<f64>().ok()
        } else {
            None
        }
    });
    series.reduce(|sum, value| sum + value)
}

/// Processor time of this process.
pub fn own_cpu() -> Result<Duration, String> {
    cpu(std::process::id())
}

/// How many connections found a full listen queue since the machine started (`ListenOverflows` of
/// /proc/net/netstat).
pub fn listen_overflows() -> Option<u64> {
    let text = fs::read_to_string("/proc/net/netstat").ok()?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
    let (names, values) = (lines.next()?, lines.next()?);
    let mut counters = names.split_whitespace().zip(values.split_whitespace());
    counters.find(|(name, _)| *name == "ListenOverflows")?.1.parse().ok()
}

/// Processor time that anybody has used on this machine, the hypervisor's other guests (steal)
/// included.
pub fn everybodys_cpu() -> Result<Duration, String> {
    let text = fs::read_to_string("/proc/stat").map_err(|error| format!("cannot read /proc/stat: {error}"))?;
    let ticks = busy_ticks(&text).ok_or("/proc/stat is not what it should be")?;
    Ok(in_seconds(ticks))
}

/// user + nice + system + irq + softirq + steal out of /proc/stat: all but idle and waiting for
/// disks.
fn busy_ticks(stat: &str) -> Option<u64> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let fields: Vec<u64> = line.split_ascii_whitespace().map_while(|field| field.parse().ok()).collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, steal, ..] = fields[..] else {
        return None;
    };
    Some(user + nice + system + irq + softirq + steal)
}

fn in_seconds(ticks: u64) -> Duration {
    Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

fn cpu(process: u32) -> Result<Duration, String> {
    let path = format!("/proc/{process}/stat");
    let text = fs::read_to_string(&path).map_err(|error| format!("cannot read {path}: {error}"))?;
    let ticks = ticks(&text).ok_or_else(|| format!("{path} is not what it should be"))?;
    Ok(Duration::from_secs_f64(
        ticks as f64 / rustix::param::clock_ticks_per_second() as f64,
    ))
}

/// utime + stime out of /proc/PID/stat.
fn ticks(stat: &str) -> Option<u64> {
    // The program's name is in parentheses and may have spaces and parentheses itself; utime is the
    // 14th field.
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(user + system)
}

/// Resident memory in KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// All of it.
    pub resident: u64,
    /// Without mapped files.
    pub anonymous: u64,
}

impl Memory {
    fn parse(status: &str) -> Option<Self> {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.trim().strip_suffix(" kB")?.trim().parse().ok()
        };
        Some(Self {
            resident: field("VmRSS")?,
            anonymous: field("RssAnon")?,
        })
    }
}

/// The `airwave` binary beside this one, built afresh if this is a checkout: an old one must not be
/// measured by mistake.
pub fn build_airwave(release: bool) -> Result<PathBuf, String> {
    let this = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let folder = this.parent().unwrap_or(Path::new("."));
    let binary = folder.join("airwave");
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let target = folder.parent().unwrap_or(folder);
    if workspace.join("Cargo.toml").is_file() {
        eprintln!("building airwave ...");
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo)
            .args(["build", "--quiet", "-p", "airwave", "--bin", "airwave"])
            .args(release.then_some("--release"))
            .arg("--target-dir")
            .arg(target)
            .current_dir(&workspace)
            .status()
            .map_err(|error| format!("cannot run cargo to build airwave: {error}; give the binary with --airwave PATH"))?;
        if !status.success() {
            return Err("airwave does not build; give a binary with --airwave PATH, or measure --servers raw,axum".into());
        }
    }
    let binary = if binary.is_file() {
        binary
    } else {
        target.join(if release { "release" } else { "debug" }).join("airwave")
    };
    if !binary.is_file() {
        return Err("there is no airwave binary beside this one; give it with --airwave PATH".into());
    }
    Ok(binary)
}

/// Processors, model, kernel and load, for the head of a report.
pub fn machine() -> String {
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown", |(_, model)| model.trim());
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    // The part behind the version names the distribution's build.
    let kernel = kernel.trim().split('-').next().unwrap_or_default();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default();
    format!("{processors} processors ({model}), Linux {kernel}, loopback; load average when it began: {load}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_established_connections_of_the_port_itself_count() {
        let table = "sl local_address rem_address st tx_queue\n\
             0: 0100007F:18EB 00000000:0000 0A 0\n\
             1: 0100007F:18EB 0100007F:C350 01 0\n\
             2: 0100007F:C350 0100007F:18EB 01 0\n\
             3: 0100007F:18EB 0100007F:C351 06 0\n";
        assert_eq!(connections_to(table, 0x18EB), 1);
    }

    #[test]
    fn processor_time_is_found_behind_any_name() {
        let stat = "42 (a) b (c) S 1 42 42 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 3 0 100 1000 200";
        assert_eq!(ticks(stat), Some(300));
        assert_eq!(ticks("nonsense"), None);
    }

    #[test]
    fn own_processor_time_grows_with_work() {
        let before = own_cpu().unwrap_or_default();
        let mut sum = 0_u64;
        while own_cpu().unwrap_or_default() == before {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
    }

    #[test]
    fn idle_time_is_not_busy() {
        let stat = "cpu  1 2 4 1000 1000 8 16 32 0 0\ncpu0 9 9 9 9 9 9 9 9 0 0\n";
        assert_eq!(busy_ticks(stat), Some(63));
        assert_eq!(busy_ticks("intr 5"), None);
    }

    #[test]
    fn series_of_a_counter_are_added_up() {
        let text = "# TYPE airwave_encodes counter\nairwave_encodes_total{wire=\"sse\"} 3\nairwave_encodes_total{wire=\"ws\"} 4\nairwave_logs 9\n";
        assert_eq!(sum_of_series(text, "encodes"), Some(7.0));
        assert_eq!(sum_of_series(text, "logs"), Some(9.0));
        assert_eq!(sum_of_series(text, "replays"), None);
    }

    #[test]
    fn memory_is_read_from_status() {
        let status = "Name:\tx\nVmRSS:\t    1234 kB\nRssAnon:\t     567 kB\nRssFile:\t 1 kB\n";
        assert_eq!(
            Memory::parse(status),
            Some(Memory {
                resident: 1234,
                anonymous: 567
            })
        );
        assert_eq!(Memory::parse("Name:\tx\n"), None);
    }
}
