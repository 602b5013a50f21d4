//! Real processes: brokers, and nodes of Airwave. Each is killed when its handle is dropped.

mod nats;
mod probe;
mod redis;

use std::fmt;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::str::FromStr;
use std::time::Duration;

use rustix::process::{Pid, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

pub use rustix::process::Signal;

use super::link::{Link, LinkState};
use super::plan::Refusal;

/// How long a server may take to start. Decides nothing but when a hang is called one.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long the servers of one broker may take to agree again. A NATS cluster takes many seconds to
/// choose a leader, and may have to twice.
const AGREES_WITHIN: Duration = Duration::from_secs(90);

/// The brokers that there are to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokerKind {
    /// Redis with everything on disk before it answers: nothing may be lost.
    Redis,
    /// Redis without persistence: a restart loses everything.
    RedisVolatile,
    /// A Redis server, its replica and three sentinels: a failover loses what the replica had not
    /// got.
    RedisSentinel,
    /// Three Redis masters with a replica each: a failover loses what the replica had not got.
    RedisCluster,
    /// One NATS server, which stores: nothing may be lost.
    Nats,
    /// One NATS server with its stream in memory: a restart loses everything.
    NatsVolatile,
    /// Three NATS servers, each with a copy of the stream: nothing may be lost.
    NatsCluster,
}

/// What a broker may lose when it is treated badly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loses {
    /// Nothing.
    Nothing,
    /// Everything, whenever it is killed.
    Everything,
    /// Some of the newest, at any time: a failover happens whenever a server does not answer soon.
    Newest,
}

impl BrokerKind {
    /// All of them.
    pub const ALL: [BrokerKind; 7] = [
        BrokerKind::Redis,
        BrokerKind::RedisVolatile,
        BrokerKind::RedisSentinel,
        BrokerKind::RedisCluster,
        BrokerKind::Nats,
        BrokerKind::NatsVolatile,
        BrokerKind::NatsCluster,
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            BrokerKind::Redis => "redis",
            BrokerKind::RedisVolatile => "redis-volatile",
            BrokerKind::RedisSentinel => "redis-sentinel",
            BrokerKind::RedisCluster => "redis-cluster",
            BrokerKind::Nats => "nats",
            BrokerKind::NatsVolatile => "nats-volatile",
            BrokerKind::NatsCluster => "nats-cluster",
        }
    }

    /// What it may lose.
    pub fn loses(self) -> Loses {
        match self {
            BrokerKind::Redis | BrokerKind::Nats | BrokerKind::NatsCluster => Loses::Nothing,
            BrokerKind::RedisVolatile | BrokerKind::NatsVolatile => Loses::Everything,
            BrokerKind::RedisSentinel | BrokerKind::RedisCluster => Loses::Newest,
        }
    }

    /// Whether another server takes over when one is gone.
    pub fn fails_over(self) -> bool {
        matches!(
            self,
            BrokerKind::RedisSentinel | BrokerKind::RedisCluster | BrokerKind::NatsCluster
        )
    }

    pub(super) fn is_nats(self) -> bool {
        matches!(self, BrokerKind::Nats | BrokerKind::NatsVolatile | BrokerKind::NatsCluster)
    }

    /// The program that it needs, if it is there: named by a variable, or in the path. An error
    /// says what to do.
    pub fn program(self) -> Result<PathBuf, String> {
        let (variable, name) = match self.is_nats() {
            true => ("AIRWAVE_TEST_NATS_SERVER", "nats-server"),
            false => ("AIRWAVE_TEST_REDIS_SERVER", "redis-server"),
        };
        let path = std::env::var_os("PATH").unwrap_or_default();
        let named = std::env::var_os(variable).map(PathBuf::from);
        named
            .or_else(|| {
                std::env::split_paths(&path)
                    .map(|folder| folder.join(name))
                    .find(|file| file.is_file())
            })
            .ok_or_else(|| format!("there is no {name}: install it, or name one in {variable}"))
    }
}

impl fmt::Display for BrokerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for BrokerKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = BrokerKind::ALL.map(BrokerKind::name);
        BrokerKind::ALL
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| format!("there is no broker '{text}'; there are {}", all.join(", ")))
    }
}

/// A folder of its own, gone when it is dropped.
pub struct Folder(PathBuf);

impl Folder {
    /// A new one.
    pub fn new() -> io::Result<Self> {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("airwave-chaos-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn signal(child: &Child, signal: Signal) {
    // The process may have ended already. Then no signal is needed.
    if let Some(process) = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) {
        let _ = kill_process(process, signal);
    }
}

/// Makes the library that gives a process another time of day, unless the folder has it. An error
/// says what to do. libfaketime is none: a server that is linked with jemalloc hangs with it.
fn clock_library(folder: &Path) -> Result<PathBuf, String> {
    static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let library = folder.join("clock.so");
    if library.is_file() {
        return Ok(library);
    }
    let source = folder.join("clock.c");
    let text = include_str!("../../../brokers/tests/support/clock.c");
    std::fs::write(&source, text).map_err(|error| format!("a clock cannot be made: {error}"))?;
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let made = std::process::Command::new(&compiler)
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .args([&library, &source])
        .output()
        .map_err(|error| format!("{compiler} does not run ({error}): install a C compiler, or name one in CC"))?;
    if made.status.success() {
        Ok(library)
    } else {
        Err(format!(
            "{compiler} makes no clock: {}",
            String::from_utf8_lossy(&made.stderr)
        ))
    }
}

/// Lets the process that this starts see a time of day that differs by so many milliseconds. What
/// it measures durations with stays right. What that needs is written into the folder.
fn skew(command: &mut Command, millis: i64, folder: &Path) -> Result<(), String> {
    if millis != 0 {
        let library = clock_library(folder)?;
        let clock = folder.join(format!("clock{millis}"));
        // Not truncated: another process may have it mapped.
        let file = File::options().write(true).create(true).truncate(false).open(&clock);
        file.and_then(|file| file.write_all_at(&(1000 * millis).to_ne_bytes(), 0))
            .map_err(|error| format!("a clock cannot be set: {error}"))?;
        command.env("LD_PRELOAD", library).env("AIRWAVE_TEST_CLOCK", clock);
    }
    Ok(())
}

/// One server of a broker.
struct ServerProcess {
    address: SocketAddr,
    folder: PathBuf,
    program: PathBuf,
    settings: ServerSettings,
    child: Option<Child>,
    /// By how many milliseconds its clock differs, the next time it is started.
    skew: i64,
}

/// What a server is told, beside where it listens and keeps its things.
enum ServerSettings {
    /// Its arguments.
    Redis(Vec<String>),
    /// Its configuration.
    Nats(String),
}

impl ServerProcess {
    /// One that keeps its things in `folder`; not started yet.
    async fn new(program: &Path, folder: PathBuf, settings: ServerSettings) -> io::Result<Self> {
        std::fs::create_dir_all(&folder)?;
        Ok(Self {
            address: free().await?,
            folder,
            program: program.to_owned(),
            settings,
            child: None,
            skew: 0,
        })
    }

    /// Starts the process and waits until it answers.
    async fn run(&mut self) -> Result<(), String> {
        let text = |error: io::Error| format!("cannot start {}: {error}", self.program.display());
        let log = self.folder.join("log");
        let out = File::create(&log).map_err(text)?;
        let mut command = Command::new(&self.program);
        let port = self.address.port();
        match &self.settings {
            ServerSettings::Redis(arguments) => {
                command
                    .args(arguments)
                    .args(["--bind", "127.0.0.1", "--port", &port.to_string()]);
                command.arg("--dir").arg(&self.folder);
                skew(&mut command, self.skew, &self.folder)?;
            }
            ServerSettings::Nats(configuration) => {
                let file = self.folder.join("settings");
                std::fs::write(&file, format!("listen: \"127.0.0.1:{port}\"\n{configuration}")).map_err(text)?;
                command.arg("-c").arg(file);
            }
        }
        let mut child = command
            .stdin(Stdio::null())
            .stderr(out.try_clone().map_err(text)?)
            .stdout(out)
            .kill_on_drop(true)
            .spawn()
            .map_err(text)?;
        let since = Instant::now();
        while !self.answers().await {
            let ended = child.try_wait().map_err(text)?;
            if ended.is_some() || since.elapsed() > PATIENCE {
                let log = std::fs::read_to_string(&log).unwrap_or_default();
                return Err(format!("{} does not start: {log}", self.program.display()));
            }
            sleep(Duration::from_millis(10)).await;
        }
        self.child = Some(child);
        Ok(())
    }

    async fn answers(&self) -> bool {
        match self.settings {
            // While it still reads its file it answers, but not this.
            ServerSettings::Redis(_) => probe::ask_redis(self.address, "PING")
                .await
                .is_ok_and(|answer| answer.starts_with("+PONG")),
            ServerSettings::Nats(_) => probe::nats_greets(self.address).await,
        }
    }
}

async fn free() -> io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0").await?.local_addr()
}

/// A broker in processes of its own.
pub struct Broker {
    /// Which.
    pub kind: BrokerKind,
    /// Those that hold events.
    servers: Vec<ServerProcess>,
    sentinels: Vec<ServerProcess>,
    /// The server that is badly treated.
    victim: usize,
    /// How often one was.
    chosen: usize,
    /// How often one was stopped.
    stopped: usize,
    /// From one server to another, where they talk by lines that can be spoilt.
    routes: Vec<(usize, usize, Link)>,
}

impl Broker {
    /// Starts one that keeps its things in `folder`.
    pub async fn start(kind: BrokerKind, folder: &Path) -> Result<Self, String> {
        let program = kind.program()?;
        // Another program may take a port between our look and a server's bind.
        let mut last = String::new();
        for number in 0..10 {
            let folder = folder.join(format!("broker{number}"));
            let mut broker = Self {
                kind,
                servers: Vec::new(),
                sentinels: Vec::new(),
                victim: 0,
                chosen: 0,
                stopped: 0,
                routes: Vec::new(),
            };
            let begun = match kind {
                BrokerKind::Nats | BrokerKind::NatsVolatile => broker.begin_nats(&program, &folder, 1).await,
                BrokerKind::NatsCluster => broker.begin_nats(&program, &folder, 3).await,
                BrokerKind::RedisCluster => broker.begin_cluster(&program, &folder).await,
                BrokerKind::Redis | BrokerKind::RedisVolatile | BrokerKind::RedisSentinel => {
                    broker.begin_redis(&program, &folder).await
                }
            };
            match begun {
                Ok(()) => return Ok(broker),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// What a node has lines to: the server or all of them, or a sentinel.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        match self.sentinels.first() {
            Some(sentinel) => vec![sentinel.address],
            None => self.servers.iter().map(|server| server.address).collect(),
        }
    }

    /// Where the line from a node to one of [`Broker::addresses`] begins. The servers of a cluster
    /// tell their ports, and the client chooses the host. So each node has a host of its own with
    /// the servers' ports: all of 127.0.0.0/8 is this machine, and no other program listens at a
    /// host that this process's number chooses.
    pub fn line_from(&self, node: usize, to: SocketAddr) -> SocketAddr {
        match self.kind {
            BrokerKind::RedisCluster => {
                let [.., high, low] = std::process::id().to_be_bytes();
                SocketAddr::from((Ipv4Addr::new(127, high.max(1), low, node as u8 + 1), to.port()))
            }
            _ => SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        }
    }

    /// What a node is told whose lines to [`Broker::addresses`] begin at `lines`.
    pub fn url(&self, lines: &[SocketAddr]) -> String {
        let lines: Vec<String> = lines.iter().map(SocketAddr::to_string).collect();
        let lines = lines.join(",");
        match self.kind {
            BrokerKind::Redis | BrokerKind::RedisVolatile => format!("redis://{lines}/0"),
            BrokerKind::RedisSentinel => {
                let others = self.sentinels[1..].iter().map(|sentinel| format!(",{}", sentinel.address));
                format!("redis+sentinel://{lines}{}/events/0", others.collect::<String>())
            }
            BrokerKind::RedisCluster => format!("redis+cluster://{lines}"),
            BrokerKind::Nats => format!("nats://{lines}"),
            BrokerKind::NatsVolatile => format!("nats://{lines}?storage=memory"),
            BrokerKind::NatsCluster => format!("nats://{lines}?replicas=3"),
        }
    }

    /// Finds out which server counts now; it is the one to be badly treated next.
    async fn choose(&mut self) {
        let counts = match self.kind {
            BrokerKind::RedisSentinel => self.master().await,
            BrokerKind::RedisCluster => self.owner(self.chosen).await,
            BrokerKind::NatsCluster => self.leader().await,
            _ => None,
        };
        self.victim = counts.unwrap_or(self.victim);
        self.chosen += 1;
    }

    /// The server that counts dies without warning, every third time with all others that hold
    /// events, and is gone when this returns.
    pub async fn kill(&mut self) {
        self.choose().await;
        let all = self.chosen.is_multiple_of(3);
        for (number, server) in self.servers.iter_mut().enumerate() {
            if let Some(mut child) = server.child.take_if(|_| all || number == self.victim) {
                let _ = child.kill().await;
                // Of a stream in memory its settings stay. A disk that is gone takes them, too.
                if self.kind == BrokerKind::NatsVolatile && self.chosen.is_multiple_of(2) {
                    let _ = std::fs::remove_dir_all(server.folder.join("store"));
                }
            }
        }
    }

    /// Starts again what was killed, with what it stored. `skew`: and with a clock that differs by
    /// so many milliseconds from now on.
    pub async fn run(&mut self, skew: Option<i64>) -> Result<(), String> {
        let alone = !self.kind.fails_over();
        for server in self.servers.iter_mut().filter(|server| server.child.is_none()) {
            server.skew = skew.unwrap_or(server.skew);
            Self::run_again(server, alone).await?;
        }
        Ok(())
    }

    async fn run_again(server: &mut ServerProcess, alone: bool) -> Result<(), String> {
        let mut last = String::new();
        for _ in 0..50 {
            // Another program may have taken the port. A server that others know by its port has to
            // wait for it.
            if alone {
                server.address = free().await.map_err(|error| format!("there is no free port: {error}"))?;
            }
            match server.run().await {
                Ok(()) => return Ok(()),
                Err(error) => last = error,
            }
            sleep(Duration::from_millis(100)).await;
        }
        Err(last)
    }

    /// The server that counts stops. Where servers talk by lines, every other time they are held or
    /// cut instead: it is alone, and may take a while to notice.
    pub async fn stop(&mut self) {
        self.choose().await;
        let turn = self.stopped;
        self.stopped += 1;
        match turn % 4 {
            0 if !self.routes.is_empty() => self.set_routes(LinkState::Held),
            2 if !self.routes.is_empty() => self.set_routes(LinkState::Cut),
            _ => self.signal(Signal::STOP),
        }
    }

    /// The server that was stopped goes on.
    pub fn go_on(&self) {
        self.set_routes(LinkState::Open);
        self.signal(Signal::CONT);
    }

    /// Whether a server can be given another clock, and what follows from it is promised. Of two
    /// servers with different clocks it is not.
    pub fn takes_skew(&self) -> bool {
        matches!(self.kind, BrokerKind::Redis | BrokerKind::RedisVolatile)
    }

    /// Redis takes PUBLISH and refuses writes from now on, or no longer.
    pub async fn refuse_writes(&self, why: Refusal, refuses: bool) {
        let setting = match (why, refuses) {
            (Refusal::Replicas, true) => "min-replicas-to-write 9",
            (Refusal::Replicas, false) => "min-replicas-to-write 0",
            (Refusal::Memory, true) => "maxmemory 1",
            (Refusal::Memory, false) => "maxmemory 0",
        };
        for server in self.servers.iter().filter(|server| server.child.is_some()) {
            // A server that is paused takes it later; one that is killed comes back as it was set
            // up.
            let _ = probe::ask_redis(server.address, &format!("CONFIG SET {setting}")).await;
        }
    }

    fn set_routes(&self, line: LinkState) {
        for (from, to, link) in &self.routes {
            if [from, to].contains(&&self.victim) {
                link.set(line);
            }
        }
    }

    /// Waits until nothing changes any more by itself: the servers agree on their roles, and no
    /// replica lags behind.
    ///
    /// # Errors
    /// It takes too long; what is missing.
    pub async fn settle(&mut self) -> Result<(), String> {
        let since = Instant::now();
        loop {
            let settled = match self.kind {
                BrokerKind::RedisSentinel => self.master_is_settled().await,
                BrokerKind::RedisCluster => self.cluster_is_settled().await,
                BrokerKind::NatsCluster => self.nats_is_settled().await,
                _ => Ok(()),
            };
            match settled {
                Ok(()) => return Ok(()),
                Err(error) if since.elapsed() > AGREES_WITHIN => {
                    return Err(format!("the broker's servers do not agree: {error}"));
                }
                Err(_) => sleep(Duration::from_millis(200)).await,
            }
        }
    }

    fn signal(&self, what: Signal) {
        if let Some(child) = &self.servers[self.victim].child {
            signal(child, what);
        }
    }
}

/// A node of Airwave in a process of its own.
pub struct Node {
    /// Where it listens.
    pub address: SocketAddr,
    child: Child,
    log: PathBuf,
}

impl Node {
    /// Starts `program` with this configuration file, and waits until it listens. What it says goes
    /// to the end of `log`. `skewed`: by how many milliseconds its clock differs.
    pub async fn start(program: &Path, config: &Path, log: &Path, skewed: i64) -> Result<Self, String> {
        let text = |error: io::Error| format!("cannot start {}: {error}", program.display());
        let out = File::options().create(true).append(true).open(log).map_err(text)?;
        let mut command = Command::new(program);
        command.args(["serve", "--listen", "127.0.0.1:0", "--config"]).arg(config);
        for (name, _) in std::env::vars_os() {
            // Settings from outside would be in force, too.
            let name_text = name.to_string_lossy();
            if (name_text.starts_with("AIRWAVE_") && name_text != "AIRWAVE_TEST_RUN") || name_text == "RUST_LOG" {
                command.env_remove(&name);
            }
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(out)
            .kill_on_drop(true);
        skew(&mut command, skewed, config.parent().unwrap_or(Path::new(".")))?;
        let mut child = command.spawn().map_err(text)?;
        let stdout = child.stdout.take().ok_or("it has no output")?;
        let mut lines = BufReader::new(stdout).lines();
        let line = timeout(PATIENCE, lines.next_line()).await;
        let line = line
            .map_err(|_| "it does not say where it listens".to_owned())?
            .map_err(text)?;
        // Without a line it has ended, and its log says why: most likely its broker is out of
        // reach.
        let address = line
            .as_deref()
            .and_then(|line| line.strip_prefix("airwave listening on http://")?.trim().parse().ok())
            .ok_or_else(|| format!("it said {line:?} and {}", last_lines(log)))?;
        Ok(Self {
            address,
            child,
            log: log.to_owned(),
        })
    }

    /// Sends a signal.
    pub fn signal(&self, what: Signal) {
        signal(&self.child, what);
    }

    /// Its end.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Dies without warning, and is gone when this returns.
    pub async fn kill(&mut self) {
        let _ = self.child.kill().await;
    }

    /// Resident memory in KiB; `None` once it has ended.
    pub fn memory(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()?)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().strip_suffix(" kB")?.trim().parse().ok()
    }

    /// The end of what it said.
    pub fn last_output(&self) -> String {
        last_lines(&self.log)
    }
}

fn last_lines(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}
