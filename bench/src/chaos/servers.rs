//! Real processes: brokers, and nodes of Airwave. Each is killed when its handle is dropped.

use std::fmt;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::str::FromStr;
use std::time::Duration;

use rustix::process::{Pid, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

pub use rustix::process::Signal;

/// How long a server may take to start. Decides nothing but when a hang is called one.
const PATIENCE: Duration = Duration::from_secs(30);

/// The brokers that there are to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokerKind {
    /// Redis with everything on disk before it answers: nothing may be lost.
    Redis,
    /// Redis without persistence: a restart loses everything.
    RedisVolatile,
    /// A Redis server, its replica and three sentinels: a failover loses what the replica had not got.
    RedisSentinel,
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
    pub const ALL: [BrokerKind; 3] = [BrokerKind::Redis, BrokerKind::RedisVolatile, BrokerKind::RedisSentinel];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            BrokerKind::Redis => "redis",
            BrokerKind::RedisVolatile => "redis-volatile",
            BrokerKind::RedisSentinel => "redis-sentinel",
        }
    }

    /// What it may lose.
    pub fn loses(self) -> Loses {
        match self {
            BrokerKind::Redis => Loses::Nothing,
            BrokerKind::RedisVolatile => Loses::Everything,
            BrokerKind::RedisSentinel => Loses::Newest,
        }
    }

    /// The program that it needs, if it is there: named by a variable, or in the path. An error says what to do.
    pub fn program(self) -> Result<PathBuf, String> {
        let (variable, name) = ("AIRWAVE_TEST_REDIS_SERVER", "redis-server");
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
    // It may have ended already; then there is nobody to tell.
    if let Some(process) = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) {
        let _ = kill_process(process, signal);
    }
}

/// One server of a broker.
struct Server {
    address: SocketAddr,
    folder: PathBuf,
    arguments: Vec<String>,
    child: Option<Child>,
}

impl Server {
    /// One that keeps its things in `folder`; not started yet.
    async fn new(folder: PathBuf, arguments: &[&str]) -> io::Result<Self> {
        std::fs::create_dir_all(&folder)?;
        Ok(Self {
            address: free().await?,
            folder,
            arguments: arguments.iter().map(|text| (*text).to_owned()).collect(),
            child: None,
        })
    }

    /// Starts the process and waits until it answers.
    async fn run(&mut self, program: &Path) -> Result<(), String> {
        let text = |error: io::Error| format!("cannot start {}: {error}", program.display());
        let log = self.folder.join("log");
        let out = File::create(&log).map_err(text)?;
        let mut child = Command::new(program)
            .args(&self.arguments)
            .args(["--bind", "127.0.0.1", "--port", &self.address.port().to_string(), "--dir"])
            .arg(&self.folder)
            .stdin(Stdio::null())
            .stderr(out.try_clone().map_err(text)?)
            .stdout(out)
            .kill_on_drop(true)
            .spawn()
            .map_err(text)?;
        let since = Instant::now();
        // While it still reads its file it answers, but not this.
        while !ask(self.address, "PING")
            .await
            .is_ok_and(|answer| answer.starts_with("+PONG"))
        {
            let ended = child.try_wait().map_err(text)?;
            if ended.is_some() || since.elapsed() > PATIENCE {
                let log = std::fs::read_to_string(&log).unwrap_or_default();
                return Err(format!("{} does not start: {log}", program.display()));
            }
            sleep(Duration::from_millis(10)).await;
        }
        self.child = Some(child);
        Ok(())
    }
}

async fn free() -> io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0").await?.local_addr()
}

/// Asks a Redis server or a sentinel something, and gives the first part of the answer as it comes.
async fn ask(address: SocketAddr, what: &str) -> io::Result<String> {
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(format!("{what}\r\n").as_bytes()).await?;
        let mut answer = Vec::with_capacity(4096);
        stream.read_buf(&mut answer).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    timeout(Duration::from_secs(1), ask)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// A broker in processes of its own.
pub struct Broker {
    /// Which.
    pub kind: BrokerKind,
    program: PathBuf,
    /// Those that hold events: one, or a master and its replica.
    servers: Vec<Server>,
    sentinels: Vec<Server>,
    /// The server that is badly treated.
    victim: usize,
}

impl Broker {
    /// Starts one that keeps its things in `folder`.
    pub async fn start(kind: BrokerKind, folder: &Path) -> Result<Self, String> {
        let mut broker = Self {
            kind,
            program: kind.program()?,
            servers: Vec::new(),
            sentinels: Vec::new(),
            victim: 0,
        };
        // Somebody else may take a port between our look and a server's bind.
        let mut last = String::new();
        for number in 0..10 {
            broker.servers.clear();
            broker.sentinels.clear();
            match broker.begin(&folder.join(format!("broker{number}"))).await {
                Ok(()) => return Ok(broker),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn begin(&mut self, folder: &Path) -> Result<(), String> {
        let text = |error: io::Error| format!("a broker cannot be prepared: {error}");
        let stored = ["--save", "", "--appendonly", "yes", "--appendfsync", "always"];
        let settings = match self.kind {
            BrokerKind::RedisVolatile => &stored[..2],
            BrokerKind::Redis | BrokerKind::RedisSentinel => &stored[..],
        };
        let mut first = Server::new(folder.join("0"), settings).await.map_err(text)?;
        first.run(&self.program).await?;
        let master = format!("127.0.0.1 {}", first.address.port());
        self.servers.push(first);
        if self.kind != BrokerKind::RedisSentinel {
            return Ok(());
        }
        let settings = [settings, &["--replicaof", &master]].concat();
        let mut replica = Server::new(folder.join("1"), &settings).await.map_err(text)?;
        replica.run(&self.program).await?;
        self.servers.push(replica);
        for number in 2..5 {
            let folder = folder.join(number.to_string());
            let file = folder.join("settings");
            let mut sentinel = Server::new(folder, &[&file.to_string_lossy(), "--sentinel"])
                .await
                .map_err(text)?;
            let settings = format!(
                "sentinel monitor events {master} 2\nsentinel down-after-milliseconds events 700\n\
                 sentinel failover-timeout events 3000\n"
            );
            std::fs::write(file, settings).map_err(text)?;
            sentinel.run(&self.program).await?;
            self.sentinels.push(sentinel);
        }
        let since = Instant::now();
        for sentinel in &self.sentinels {
            let all = |answer: String| answer.contains("slaves=1,sentinels=3");
            while !ask(sentinel.address, "INFO sentinel").await.is_ok_and(all) {
                if since.elapsed() > PATIENCE {
                    return Err("the sentinels do not find each other".into());
                }
                sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    /// What nodes connect to first: the server, or a sentinel.
    pub fn address(&self) -> SocketAddr {
        self.sentinels.first().unwrap_or(&self.servers[0]).address
    }

    /// What a node is told, whose line to [`Broker::address`] begins at `line`.
    pub fn url(&self, line: SocketAddr) -> String {
        match self.kind {
            BrokerKind::Redis | BrokerKind::RedisVolatile => format!("redis://{line}/0"),
            BrokerKind::RedisSentinel => {
                let others = self.sentinels[1..].iter().map(|sentinel| format!(",{}", sentinel.address));
                format!("redis+sentinel://{line}{}/events/0", others.collect::<String>())
            }
        }
    }

    /// Finds out which server counts now; it is the one to be badly treated next.
    async fn choose(&mut self) {
        for sentinel in &self.sentinels {
            let answer = ask(sentinel.address, "SENTINEL GET-MASTER-ADDR-BY-NAME events").await;
            let answer = answer.unwrap_or_default();
            let is_named = |server: &Server| answer.contains(&format!("\r\n{}\r\n", server.address.port()));
            if let Some(master) = self.servers.iter().position(is_named) {
                self.victim = master;
                return;
            }
        }
    }

    /// The server that counts dies without warning, and is gone when this returns.
    pub async fn kill(&mut self) {
        self.choose().await;
        if let Some(mut child) = self.servers[self.victim].child.take() {
            let _ = child.kill().await;
        }
    }

    /// Starts again what was killed, with what it stored.
    pub async fn run(&mut self) -> Result<(), String> {
        let (program, alone) = (self.program.clone(), self.sentinels.is_empty());
        let server = &mut self.servers[self.victim];
        let mut last = String::new();
        for _ in 0..50 {
            // Somebody else may have taken the port meanwhile. One that is watched is known by its port, and has to wait for it.
            if alone {
                server.address = free().await.map_err(|error| format!("there is no free port: {error}"))?;
            }
            match server.run(&program).await {
                Ok(()) => return Ok(()),
                Err(error) => last = error,
            }
            sleep(Duration::from_millis(100)).await;
        }
        Err(last)
    }

    /// The server that counts stops.
    pub async fn stop(&mut self) {
        self.choose().await;
        self.signal(Signal::STOP);
    }

    /// The server that was stopped goes on.
    pub fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    /// Waits until nothing changes any more by itself: the sentinels name one master, it is one, and the other server follows it.
    ///
    /// # Errors
    /// It takes too long.
    pub async fn settle(&mut self) -> Result<(), String> {
        let since = Instant::now();
        // Sentinels that still think of a failover say so in flags.
        while !self.is_settled().await {
            if since.elapsed() > 2 * PATIENCE {
                return Err("the sentinels do not agree with the servers".into());
            }
            sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }

    async fn is_settled(&mut self) -> bool {
        for sentinel in &self.sentinels {
            let named = ask(sentinel.address, "SENTINEL MASTER events").await.unwrap_or_default();
            let Some(master) = (0..self.servers.len()).find(|server| {
                let port = self.servers[*server].address.port();
                named.contains(&format!("\r\nport\r\n$5\r\n{port}\r\n"))
            }) else {
                return false;
            };
            for (number, server) in self.servers.iter().enumerate() {
                let told = ask(server.address, "INFO replication").await.unwrap_or_default();
                let right = match number == master {
                    true => told.contains("role:master") && told.contains("connected_slaves:1"),
                    false => told.contains("role:slave") && told.contains("master_link_status:up"),
                };
                if !right {
                    return false;
                }
            }
            if !named.contains("flags\r\n$6\r\nmaster\r\n") {
                return false;
            }
        }
        true
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
    /// Starts `program` with this configuration file, and waits until it listens. What it says goes to the end of `log`.
    pub async fn start(program: &Path, config: &Path, log: &Path) -> Result<Self, String> {
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
        let mut child = command.spawn().map_err(text)?;
        let stdout = child.stdout.take().ok_or("it has no output")?;
        let mut lines = BufReader::new(stdout).lines();
        let line = timeout(PATIENCE, lines.next_line()).await;
        let line = line
            .map_err(|_| "it does not say where it listens".to_owned())?
            .map_err(text)?;
        // Without a line it has ended, and its log says why: most likely its broker is out of reach.
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
    pub fn last_words(&self) -> String {
        last_lines(&self.log)
    }
}

fn last_lines(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}
