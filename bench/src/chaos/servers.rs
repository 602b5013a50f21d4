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
}

impl BrokerKind {
    /// All of them.
    pub const ALL: [BrokerKind; 2] = [BrokerKind::Redis, BrokerKind::RedisVolatile];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            BrokerKind::Redis => "redis",
            BrokerKind::RedisVolatile => "redis-volatile",
        }
    }

    /// Whether a `kill -9` of it loses everything.
    pub fn forgets(self) -> bool {
        self == BrokerKind::RedisVolatile
    }

    /// What nodes are told, where the broker is reached at `address`.
    pub fn url(self, address: SocketAddr) -> String {
        match self {
            BrokerKind::Redis | BrokerKind::RedisVolatile => format!("redis://{address}/0"),
        }
    }

    /// The program that it needs, if it is there: named by a variable, or in the path. An error says what to do.
    pub fn program(self) -> Result<PathBuf, String> {
        let (variable, name) = match self {
            BrokerKind::Redis | BrokerKind::RedisVolatile => ("AIRWAVE_TEST_REDIS_SERVER", "redis-server"),
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
    // It may have ended already; then there is nobody to tell.
    if let Some(process) = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) {
        let _ = kill_process(process, signal);
    }
}

/// A broker in a process of its own.
pub struct Broker {
    /// Which.
    pub kind: BrokerKind,
    /// Where it listens. It changes with every start, because somebody else may have taken a port meanwhile.
    pub address: SocketAddr,
    program: PathBuf,
    folder: PathBuf,
    child: Option<Child>,
}

impl Broker {
    /// Starts one that keeps its things in `folder`.
    pub async fn start(kind: BrokerKind, folder: &Path) -> Result<Self, String> {
        let mut broker = Self {
            kind,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            program: kind.program()?,
            folder: folder.join("broker"),
            child: None,
        };
        std::fs::create_dir_all(&broker.folder).map_err(|error| error.to_string())?;
        broker.run().await?;
        Ok(broker)
    }

    /// Starts the process, again if it was killed, and waits until it answers.
    pub async fn run(&mut self) -> Result<(), String> {
        // Somebody else may take the port between our look and the server's bind.
        let mut last = String::new();
        for _ in 0..10 {
            match self.try_run().await {
                Ok(()) => return Ok(()),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn try_run(&mut self) -> Result<(), String> {
        let text = |error: io::Error| format!("cannot start {}: {error}", self.program.display());
        self.address = TcpListener::bind("127.0.0.1:0")
            .await
            .and_then(|free| free.local_addr())
            .map_err(text)?;
        let log = self.folder.join("log");
        let out = File::create(&log).map_err(text)?;
        let mut command = Command::new(&self.program);
        match self.kind {
            BrokerKind::Redis | BrokerKind::RedisVolatile => {
                let port = self.address.port().to_string();
                command
                    .args(["--bind", "127.0.0.1", "--save", "", "--port", &port, "--dir"])
                    .arg(&self.folder);
                if self.kind == BrokerKind::Redis {
                    command.args(["--appendonly", "yes", "--appendfsync", "always"]);
                }
            }
        }
        command
            .stdin(Stdio::null())
            .stderr(out.try_clone().map_err(text)?)
            .stdout(out)
            .kill_on_drop(true);
        let mut child = command.spawn().map_err(text)?;
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
        let ask = async {
            let mut stream = TcpStream::connect(self.address).await?;
            let mut answer = [0; 5];
            match self.kind {
                // While it still reads its file it answers, but not this.
                BrokerKind::Redis | BrokerKind::RedisVolatile => {
                    stream.write_all(b"PING\r\n").await?;
                    stream.read_exact(&mut answer).await?;
                    Ok::<_, io::Error>(&answer == b"+PONG")
                }
            }
        };
        matches!(timeout(Duration::from_secs(1), ask).await, Ok(Ok(true)))
    }

    /// Dies without warning, and is gone when this returns.
    pub async fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill().await;
        }
    }

    /// Stops or goes on.
    pub fn signal(&self, what: Signal) {
        if let Some(child) = &self.child {
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
