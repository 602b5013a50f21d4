//! A real `redis-server` for tests: of its own, on a free loopback port, in a temporary folder,
//! ended by its process id.

#![allow(dead_code)] // each test file uses a part

/// Certificates, for a server that speaks TLS.
pub mod certificates;
/// A clock that can be moved.
pub mod clock;
/// A hub over a real broker, and clients that keep what they were told.
pub mod hub;
/// Several servers that belong together: a cluster, or a master with its replica and sentinels.
pub mod many;
/// Outages that every broker gets over in the same way.
pub mod outage;
/// A line that can be broken.
pub mod proxy;
/// A server that speaks TLS.
pub mod tls;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use redis::{FromRedisValue, cmd};

/// How long a server may take to start. Decides nothing but when a hang is called one.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct RedisServer {
    pub port: u16,
    password: Option<&'static str>,
    program: PathBuf,
    dir: PathBuf,
    arguments: Vec<String>,
    kind: Kind,
    /// Where its clock can be moved.
    clock: Option<clock::Clock>,
    child: Mutex<Option<Child>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Alone,
    /// With the port on which the nodes of a cluster talk.
    Clustered(u16),
    Sentinel,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Where the program is; `None` after saying so. It is a failure where everything must be there.
fn program() -> Option<PathBuf> {
    let named = std::env::var_os("AIRWAVE_TEST_REDIS_SERVER").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = named.or_else(|| {
        std::env::split_paths(&path)
            .map(|dir| dir.join("redis-server"))
            .find(|file| file.is_file())
    });
    if found.is_none() {
        let missing = "there is no redis-server: install it, or name one in AIRWAVE_TEST_REDIS_SERVER";
        assert!(
            std::env::var_os("AIRWAVE_TEST_REQUIRE_ALL").is_none_or(|all| all != "1"),
            "{missing}"
        );
        eprintln!("skipped: {missing}");
    }
    found
}

impl RedisServer {
    /// One that keeps nothing on disk.
    pub fn start(arguments: &[&str]) -> Option<RedisServer> {
        Self::with(arguments, None, Kind::Alone)
    }

    /// One whose clock can be moved. `None`, after saying so: there is nothing here to do that
    /// with.
    pub fn with_a_clock(arguments: &[&str]) -> Option<RedisServer> {
        Self::with_clock(arguments, None, Kind::Alone, Some(clock::Clock::new()?))
    }

    /// The same for one node of a cluster that is none yet.
    pub fn of_a_cluster_with_a_clock(arguments: &[&str]) -> Option<RedisServer> {
        Self::with_clock(arguments, None, Kind::Clustered(0), Some(clock::Clock::new()?))
    }

    /// From now on its clock is so many seconds ahead of this machine's, or behind.
    pub fn set_clock(&self, ahead: i64) {
        self.clock.as_ref().expect("a server with a clock").set(ahead);
    }

    /// One node of a cluster that is none yet.
    pub fn of_a_cluster(arguments: &[&str]) -> Option<RedisServer> {
        Self::with(arguments, None, Kind::Clustered(0))
    }

    /// One that watches the master on this port, and no other sentinel yet.
    pub fn sentinel(master: u16, password: Option<&'static str>) -> Option<RedisServer> {
        let settings = format!(
            "sentinel monitor mymaster 127.0.0.1 {master} 2\nsentinel down-after-milliseconds mymaster 700\n\
             sentinel failover-timeout mymaster 3000\n{}",
            password.map_or_else(String::new, |password| format!(
                "requirepass {password}\nsentinel sentinel-pass {password}\n"
            ))
        );
        Self::with(&[&settings], password, Kind::Sentinel)
    }

    /// One that has everything on disk before it answers.
    pub fn that_stores() -> Option<RedisServer> {
        Self::start(&["--appendonly", "yes", "--appendfsync", "always"])
    }

    pub fn with_password(password: &'static str) -> Option<RedisServer> {
        Self::with(&["--requirepass", password], Some(password), Kind::Alone)
    }

    fn with(arguments: &[&str], password: Option<&'static str>, kind: Kind) -> Option<RedisServer> {
        Self::with_clock(arguments, password, kind, None)
    }

    fn with_clock(
        arguments: &[&str],
        password: Option<&'static str>,
        kind: Kind,
        clock: Option<clock::Clock>,
    ) -> Option<RedisServer> {
        static STARTED: AtomicU64 = AtomicU64::new(0);
        let program = program()?;
        let dir = std::env::temp_dir().join(format!(
            "airwave-redis-{}-{}",
            std::process::id(),
            STARTED.fetch_add(1, Ordering::Relaxed)
        ));
        std::fs::create_dir_all(&dir).unwrap();
        let mut server = RedisServer {
            port: 0,
            password,
            program,
            dir,
            arguments: arguments.iter().map(|text| (*text).to_owned()).collect(),
            kind,
            clock,
            child: Mutex::new(None),
        };
        // Another program may take the port between our look and the server's bind.
        for _ in 0..10 {
            server.port = free_port();
            match kind {
                // The usual one, 10,000 above, may be none at all.
                Kind::Clustered(_) => server.kind = Kind::Clustered(free_port()),
                Kind::Sentinel => std::fs::write(server.dir.join("settings"), &server.arguments[0]).unwrap(),
                Kind::Alone => {}
            }
            if server.run() {
                return Some(server);
            }
        }
        panic!("redis-server does not start: {}", server.log());
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Starts the process and waits until it answers. False: it ended.
    pub fn run(&self) -> bool {
        self.run_until(Self::answers)
    }

    /// Starts the process and waits until it says that it loads its data.
    pub fn run_until_it_loads(&self) -> bool {
        self.run_until(|server| server.says("-LOAD"))
    }

    fn run_until(&self, ready: impl Fn(&Self) -> bool) -> bool {
        let log = std::fs::File::create(self.dir.join("log")).unwrap();
        let mut command = Command::new(&self.program);
        if self.kind == Kind::Sentinel {
            command.arg(self.dir.join("settings")).arg("--sentinel");
        }
        command.args(["--bind", "127.0.0.1", "--port", &self.port.to_string(), "--dir"]);
        command.arg(&self.dir);
        match self.kind {
            Kind::Alone => drop(command.args(["--save", ""]).args(&self.arguments)),
            Kind::Clustered(port) => {
                command.args(["--save", "", "--cluster-enabled", "yes", "--cluster-port", &port.to_string()]);
                command.args(&self.arguments);
            }
            Kind::Sentinel => {}
        }
        if let Some(clock) = &self.clock {
            clock.give(&mut command);
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let since = Instant::now();
        loop {
            if child.try_wait().unwrap().is_some() {
                return false;
            }
            if ready(self) {
                *self.child.lock().unwrap() = Some(child);
                return true;
            }
            if since.elapsed() > PATIENCE {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("redis-server does not answer: {}", self.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn answers(&self) -> bool {
        self.says("+PONG") || self.says("-NOAU")
    }

    /// Whether its answer to a ping begins with these five characters.
    fn says(&self, wanted: &str) -> bool {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else {
            return false;
        };
        stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let mut answer = [0; 5];
        stream.write_all(b"PING\r\n").is_ok() && stream.read_exact(&mut answer).is_ok() && answer == wanted.as_bytes()
    }

    /// Dies without warning.
    pub fn kill(&self) {
        if let Some(mut child) = self.child.lock().unwrap().take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// `STOP`, `CONT`.
    pub fn signal(&self, signal: &str) {
        let pid = self.child.lock().unwrap().as_ref().unwrap().id();
        let sent = Command::new("kill")
            .args([format!("-{signal}"), pid.to_string()])
            .status()
            .unwrap();
        assert!(sent.success());
    }

    /// Asks the server something, on a connection of its own.
    pub fn ask<T: FromRedisValue>(&self, words: &[&str]) -> T {
        // Sentinels make a server that changes its role drop all its connections.
        for _ in 0..20 {
            match self.try_ask(words) {
                Err(error) if error.is_connection_dropped() => std::thread::sleep(Duration::from_millis(50)),
                answer => return answer.unwrap(),
            }
        }
        self.try_ask(words).unwrap()
    }

    pub fn try_ask<T: FromRedisValue>(&self, words: &[&str]) -> Result<T, redis::RedisError> {
        let password = self.password.map(|password| format!(":{password}@")).unwrap_or_default();
        // A sentinel has no databases, and is not asked to select one.
        let client = redis::Client::open(format!("redis://{password}127.0.0.1:{}", self.port)).unwrap();
        let mut connection = client.get_connection()?;
        let mut command = cmd(words[0]);
        command.arg(&words[1..]);
        command.query(&mut connection)
    }

    /// The port on which it talks to the other nodes of its cluster.
    pub fn bus(&self) -> u16 {
        match self.kind {
            Kind::Clustered(port) => port,
            _ => panic!("it is not of a cluster"),
        }
    }

    /// How often a command was called since the last `CONFIG RESETSTAT`.
    pub fn calls(&self, command: &str) -> u64 {
        self.calls_of([command])[0]
    }

    /// The same for several, all of one moment.
    pub fn calls_of<const N: usize>(&self, commands: [&str; N]) -> [u64; N] {
        let stats: String = self.ask(&["INFO", "commandstats"]);
        commands.map(|command| {
            let line = stats
                .lines()
                .find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
            line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
        })
    }

    /// One line of `INFO`, or of `CLUSTER INFO`: what stands behind `name:`.
    pub fn told(&self, words: &[&str], name: &str) -> String {
        let text: String = self.ask(words);
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_default().trim().to_owned()
    }

    pub fn is_running(&self) -> bool {
        self.child.lock().unwrap().is_some()
    }

    /// Breaks every connection but the one that asks for it.
    pub fn cut(&self) {
        for kind in ["normal", "pubsub"] {
            let _: i64 = self.ask(&["CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"]);
        }
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
