//! Real `nats-server`s for tests: on free loopback ports, in a temporary folder, ended by their
//! process ids.

#![allow(dead_code)] // each test file uses a part

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::{Client, ConnectOptions};
use futures_util::StreamExt;
use serde_json::{Value, json};

/// How long a server may take to start. Decides nothing but when a hang is called one.
const PATIENCE: Duration = Duration::from_secs(30);

/// A `nats-server` by its age. Each is named by a variable in the environment; the current one may
/// stand in the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    Current,
    /// The oldest line that serves: 2.10.
    Oldest,
    /// Of before that.
    TooOld,
}

impl Release {
    /// Where the program is; `None` after saying so. It is a failure where everything must be
    /// there.
    fn program(self) -> Option<PathBuf> {
        let (variable, version) = match self {
            Release::Current => ("AIRWAVE_TEST_NATS_SERVER", "2.11 or newer"),
            Release::Oldest => ("AIRWAVE_TEST_NATS_SERVER_2_10", "2.10"),
            Release::TooOld => ("AIRWAVE_TEST_NATS_SERVER_2_9", "2.9"),
        };
        let named = std::env::var_os(variable).map(PathBuf::from);
        let path = std::env::var_os("PATH")
            .filter(|_| self == Release::Current)
            .unwrap_or_default();
        let found = named.or_else(|| {
            std::env::split_paths(&path)
                .map(|dir| dir.join("nats-server"))
                .find(|file| file.is_file())
        });
        if found.is_none() {
            let missing = format!("there is no nats-server {version}: name one in {variable} (scripts/needs.sh fetches it)");
            assert!(
                std::env::var_os("AIRWAVE_TEST_REQUIRE_ALL").is_none_or(|all| all != "1"),
                "{missing}"
            );
            eprintln!("skipped: {missing}");
        }
        found
    }
}

/// A folder that goes with its owner.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Dir {
        static MADE: AtomicU64 = AtomicU64::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("airwave-nats-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Dir(dir)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub struct NatsServer {
    pub port: u16,
    program: PathBuf,
    dir: Dir,
    configuration: Mutex<String>,
    child: Mutex<Option<Child>>,
}

/// A port that is free now. Another program may take it before the server does.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Who may log in: anybody, into an account with JetStream; and `sys`, who may look after the
/// server.
const OPEN: &str = r#"
accounts {
  SYS { users: [{ user: sys, password: sys }] }
  APP { jetstream: enabled, users: [{ user: app, password: "s3cret" }] }
}
system_account: SYS
no_auth_user: app
"#;

/// What every server needs that holds a stream.
pub const JETSTREAM: &str = "jetstream { store_dir: \"DIR\", max_memory_store: 256MB, max_file_store: 1GB }\nmax_payload: 8MB\n";

impl NatsServer {
    pub fn start() -> Option<NatsServer> {
        Self::of(Release::Current)
    }

    pub fn of(release: Release) -> Option<NatsServer> {
        Self::with(release, &format!("{JETSTREAM}{OPEN}"))
    }

    /// One with a configuration of its own; `"DIR"` stands for its folder.
    pub fn configured(configuration: &str) -> Option<NatsServer> {
        Self::with(Release::Current, configuration)
    }

    fn with(release: Release, configuration: &str) -> Option<NatsServer> {
        let program = release.program()?;
        for _ in 0..10 {
            let server = Self::at(free_port(), program.clone(), configuration);
            if server.run() {
                return Some(server);
            }
        }
        panic!("nats-server does not start");
    }

    /// Three that are one, started.
    pub fn cluster() -> Option<[NatsServer; 3]> {
        let program = Release::Current.program()?;
        for _ in 0..10 {
            let routes = [free_port(), free_port(), free_port()];
            let named: Vec<String> = routes.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect();
            let servers = [0, 1, 2].map(|n| {
                let cluster = format!(
                    "server_name: n{n}\ncluster {{ name: test, listen: \"127.0.0.1:{}\", routes: [{}] }}\n",
                    routes[n],
                    named.join(", ")
                );
                Self::at(free_port(), program.clone(), &format!("{cluster}{JETSTREAM}{OPEN}"))
            });
            if servers.iter().all(NatsServer::run) {
                return Some(servers);
            }
        }
        panic!("nats-server does not start");
    }

    fn at(port: u16, program: PathBuf, configuration: &str) -> NatsServer {
        NatsServer {
            port,
            program,
            dir: Dir::new(),
            configuration: Mutex::new(configuration.to_owned()),
            child: Mutex::new(None),
        }
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub fn dir(&self) -> &Path {
        &self.dir.0
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir().join("log")).unwrap_or_default()
    }

    /// Starts the process and waits until it greets. False: it ended.
    pub fn run(&self) -> bool {
        let log = std::fs::File::create(self.dir().join("log")).unwrap();
        let mut child = Command::new(&self.program)
            .arg("-c")
            .arg(self.write_configuration())
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
            if self.greets() {
                *self.child.lock().unwrap() = Some(child);
                return true;
            }
            if since.elapsed() > PATIENCE {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("nats-server does not answer: {}", self.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn write_configuration(&self) -> PathBuf {
        let configuration = self.configuration.lock().unwrap();
        let configuration = configuration.replace("\"DIR\"", &format!("\"{}\"", self.dir().display()));
        let file = self.dir().join("conf");
        std::fs::write(&file, format!("listen: \"127.0.0.1:{}\"\n{configuration}", self.port)).unwrap();
        file
    }

    /// Gives a running server another configuration. It takes it soon.
    pub fn reconfigure(&self, configuration: &str) {
        configuration.clone_into(&mut self.configuration.lock().unwrap());
        self.write_configuration();
        self.signal("HUP");
    }

    fn greets(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else {
            return false;
        };
        stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let mut greeting = [0; 4];
        stream.read_exact(&mut greeting).is_ok() && &greeting == b"INFO"
    }

    /// Dies without warning.
    pub fn kill(&self) {
        if let Some(mut child) = self.child.lock().unwrap().take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Everything on disk is gone; only for one that does not run.
    pub fn wipe(&self) {
        let _ = std::fs::remove_dir_all(self.dir().join("jetstream"));
    }

    /// `STOP`, `CONT`, `HUP`.
    pub fn signal(&self, signal: &str) {
        let pid = self.child.lock().unwrap().as_ref().unwrap().id();
        let sent = Command::new("kill")
            .args([format!("-{signal}"), pid.to_string()])
            .status()
            .unwrap();
        assert!(sent.success());
    }

    /// A plain client, of the account that holds the stream.
    pub async fn client(&self) -> Client {
        async_nats::connect(self.url()).await.unwrap()
    }

    /// Asks JetStream.
    pub async fn ask(&self, what: &str, body: Value) -> Value {
        let payload = if body.is_null() { String::new() } else { body.to_string() };
        let answer = self.client().await.request(format!("$JS.API.{what}"), payload.into()).await;
        serde_json::from_slice(&answer.unwrap().payload).unwrap()
    }

    /// Asks the server itself, as its operator.
    async fn operate(&self, what: &str, body: Value) -> Value {
        let options = ConnectOptions::with_user_and_password("sys".into(), "sys".into());
        let client = options.connect(self.url()).await.unwrap();
        let server = client.server_info().server_id;
        let mut answers = client.subscribe("answer").await.unwrap();
        let asked = client.publish_with_reply(format!("$SYS.REQ.SERVER.{server}.{what}"), "answer", body.to_string().into());
        asked.await.unwrap();
        serde_json::from_slice(&answers.next().await.unwrap().payload).unwrap()
    }

    async fn connections(&self) -> Vec<Value> {
        let told = self
            .operate(
                "CONNZ",
                json!({ "acc": "APP", "auth": true, "subscriptions": true, "limit": 10_000 }),
            )
            .await;
        told["data"]["connections"].as_array().cloned().unwrap_or_default()
    }

    /// Breaks every connection of the account.
    pub async fn cut(&self) {
        for connection in self.connections().await {
            self.operate("KICK", json!({ "cid": connection["cid"] })).await;
        }
    }

    pub async fn subscriptions(&self, subject: &str) -> usize {
        let connections = self.connections().await;
        let lists = connections
            .iter()
            .filter_map(|connection| connection["subscriptions_list"].as_array());
        lists
            .flatten()
            .filter(|subscribed| subscribed.as_str() == Some(subject))
            .count()
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
    }
}
