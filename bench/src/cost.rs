//! What a server's work costs, in instructions and allocations: counted, not timed.
//!
//! The release binary runs under valgrind's callgrind with one worker. Each run has a fixed load:
//! so many publishes over one connection, each of which has reached every listener before the next.
//! Runs differ in one number only, so that differences give the cost of a publish, of a delivery
//! and of a connect without what a server does besides. Allocations are the calls of the C
//! library's allocator that callgrind saw. What the allocator does in them is left out of the
//! instructions: how long it searches depends on where blocks happen to lie, and one run in two
//! took 3 % more for it.
//!
//! Figures hold for a compiler and a kind of processor; `bench/cost.toml` says for which.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use airwave_bench::chaos::Folder;
use airwave_bench::wire::Head;
use futures_util::StreamExt;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;

use crate::load::Transport;

/// The two numbers of publishes and of listeners. A cost is a difference between runs. A delivery
/// costs little, so it takes many until a run's other work is lost in them.
const PUBLISHES: [u64; 2] = [500, 1500];
const LISTENERS: [u64; 2] = [1, 51];
/// The two numbers of listeners who only connect.
const CONNECTS: [u64; 2] = [1, 101];

/// Each run is made so often, and the least counts: what a server does by the clock only adds.
const ROUNDS: usize = 2;

/// A rise by more fails.
const TOLERANCE: f64 = 0.03;
/// Allocations may rise by so many without a word: timers make some.
const ALLOCATIONS_TOLERANCE: f64 = 0.1;

/// No run takes so long: it only turns a hang into a failure.
const HANG: Duration = Duration::from_secs(300);

const CHANNEL: &str = "cost";

const CONFIG: &str = r#"
[log]
level = "warn"

[limits]
heartbeat = "10m"
idle = "30m"

[[channels]]
match = "cost"
transport = ["sse", "websocket"]
history = { events = 1000, age = "1h" }
"#;

/// The names of the figures, as they stand in the file.
const FIGURES: [&str; 5] = [
    "publish",
    "delivery_sse",
    "delivery_websocket",
    "connect_sse",
    "connect_websocket",
];

/// `bench/cost.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Baseline {
    rustc: String,
    instructions: BTreeMap<String, f64>,
    allocations: BTreeMap<String, f64>,
}

/// What was counted in one run, or a difference of that.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Count {
    instructions: f64,
    allocations: f64,
}

impl Count {
    fn minus(self, other: Self) -> Self {
        Self {
            instructions: self.instructions - other.instructions,
            allocations: self.allocations - other.allocations,
        }
    }

    fn over(self, number: f64) -> Self {
        Self {
            instructions: self.instructions / number,
            allocations: self.allocations / number,
        }
    }

    fn times(self, number: f64) -> Self {
        self.over(1.0 / number)
    }
}

/// Counts, and compares with the baseline. `write`: puts what was counted into the file instead.
///
/// # Errors
/// A number rose, or nothing could be counted; the text says what to do.
pub fn run(airwave: &Path, baseline: &Path, write: bool) -> Result<(), String> {
    let text = fs::read_to_string(baseline).map_err(|error| format!("cannot read {}: {error}", baseline.display()))?;
    let before: Baseline = toml::from_str(&text).map_err(|error| format!("{}: {error}", baseline.display()))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start: {error}"))?;
    // Two servers at a time: each has one worker.
    let figures = runtime.block_on(async {
        let (sse, websocket) = tokio::try_join!(costs(airwave, Transport::Sse), costs(airwave, Transport::Websocket))?;
        Ok::<_, String>(figures(&sse, &websocket))
    })?;
    if write {
        fs::write(baseline, written(&text, &figures)).map_err(|error| format!("{}: {error}", baseline.display()))?;
    }
    let (report, rose) = compare(&before, &figures);
    println!("{report}");
    if rose.is_empty() || write {
        return Ok(());
    }
    let mut message = rose.join("\n");
    let _ = write!(
        message,
        "\nA commit that means this raises the number in {} and says why there (--write does the first).",
        baseline.display()
    );
    let rustc = rustc();
    if rustc != before.rustc {
        let _ = write!(
            message,
            "\nThe file was counted with {}, this is {rustc}: count the parent commit with it, too.",
            before.rustc
        );
    }
    Err(message)
}

/// The compiler, as far as it says.
fn rustc() -> String {
    let told = std::process::Command::new("rustc").arg("--version").output();
    let told = told.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    told.unwrap_or_else(|_| "an unknown rustc".into())
}

/// Of one transport: publish, delivery, connect.
struct Costs {
    publish: Count,
    delivery: Count,
    connect: Count,
}

async fn costs(airwave: &Path, transport: Transport) -> Result<Costs, String> {
    let mut counts = [[Count::default(); 2]; 2];
    for (row, listeners) in LISTENERS.into_iter().enumerate() {
        for (column, publishes) in PUBLISHES.into_iter().enumerate() {
            counts[row][column] = least(airwave, transport, publishes, listeners).await?;
        }
    }
    let mut connects = [Count::default(); 2];
    for (column, listeners) in CONNECTS.into_iter().enumerate() {
        connects[column] = least(airwave, transport, 0, listeners).await?;
    }
    Ok(differences(counts, connects))
}

/// The least of several runs.
async fn least(airwave: &Path, transport: Transport, publishes: u64, listeners: u64) -> Result<Count, String> {
    let mut least: Option<Count> = None;
    for _ in 0..ROUNDS {
        let count = timeout(HANG, count(airwave, transport, publishes, listeners))
            .await
            .unwrap_or_else(|_| Err(format!("a run under valgrind has not ended within {HANG:?}")))?;
        least = Some(least.map_or(count, |least| Count {
            instructions: least.instructions.min(count.instructions),
            allocations: least.allocations.min(count.allocations),
        }));
    }
    Ok(least.unwrap_or_default())
}

/// `counts`: by listeners, then by publishes.
fn differences([few, many]: [[Count; 2]; 2], connects: [Count; 2]) -> Costs {
    let more_publishes = (PUBLISHES[1] - PUBLISHES[0]) as f64;
    let more_listeners = (LISTENERS[1] - LISTENERS[0]) as f64;
    // A publish with its deliveries, to few and to many.
    let (to_few, to_many) = (
        few[1].minus(few[0]).over(more_publishes),
        many[1].minus(many[0]).over(more_publishes),
    );
    let delivery = to_many.minus(to_few).over(more_listeners);
    let publish = to_few.minus(delivery.times(LISTENERS[0] as f64));
    let connect = connects[1].minus(connects[0]).over((CONNECTS[1] - CONNECTS[0]) as f64);
    Costs {
        publish,
        delivery,
        connect,
    }
}

fn figures(sse: &Costs, websocket: &Costs) -> BTreeMap<&'static str, Count> {
    let publish = Count {
        instructions: f64::midpoint(sse.publish.instructions, websocket.publish.instructions),
        allocations: f64::midpoint(sse.publish.allocations, websocket.publish.allocations),
    };
    let counts = [publish, sse.delivery, websocket.delivery, sse.connect, websocket.connect];
    FIGURES.into_iter().zip(counts).collect()
}

/// A table for people, and a sentence for each number that rose.
fn compare(before: &Baseline, figures: &BTreeMap<&'static str, Count>) -> (String, Vec<String>) {
    let mut table = format!("{:<20} {:>14} {:>14} {:>13}\n", "", "instructions", "allocations", "before");
    let mut rose = Vec::new();
    for name in FIGURES {
        let now = figures[name];
        let was = |kind: &BTreeMap<String, f64>| kind.get(name).copied().unwrap_or_default();
        let (instructions, allocations) = (was(&before.instructions), was(&before.allocations));
        let _ = writeln!(
            table,
            "{name:<20} {:>14.0} {:>14.2} {instructions:>14.0} {allocations:>10.2}",
            now.instructions, now.allocations
        );
        let mut judge = |kind: &str, was: f64, now: f64, allowed: f64| {
            // What the file does not have is shown, not judged.
            let known = match kind {
                "instructions" => before.instructions.contains_key(name),
                _ => before.allocations.contains_key(name),
            };
            if !known {
                return;
            }
            if now > was + allowed {
                let share = match was > 0.0 {
                    true => format!("{:+.1} %", 100.0 * (now - was) / was),
                    false => "there was none".into(),
                };
                rose.push(format!("{kind}.{name} rose from {was:.1} to {now:.1} ({share})"));
            } else if now < was - allowed {
                let _ = writeln!(table, "{kind}.{name} fell from {was:.1} to {now:.1}: lower it in the file");
            }
        };
        judge("instructions", instructions, now.instructions, TOLERANCE * instructions);
        let allowed = ALLOCATIONS_TOLERANCE.max(TOLERANCE * allocations);
        judge("allocations", allocations, now.allocations, allowed);
    }
    (table, rose)
}

/// The file with other numbers; everything else in it stays.
fn written(text: &str, figures: &BTreeMap<&'static str, Count>) -> String {
    let (mut table, mut lines) = (String::new(), Vec::new());
    for line in text.lines() {
        if line.starts_with('[') {
            table = line.to_owned();
        }
        let name = line.split('=').next().unwrap_or_default().trim();
        let number = figures.get(name).and_then(|count| match &*table {
            "[instructions]" => Some(format!("{:.0}", count.instructions)),
            // Less than none is none.
            "[allocations]" => Some(format!("{:.2}", count.allocations.max(0.0))),
            _ => None,
        });
        lines.push(match (number, name) {
            (Some(number), _) => format!("{name} = {number}"),
            (None, "rustc") => format!("rustc = \"{}\"", rustc()),
            (None, _) => line.to_owned(),
        });
    }
    lines.join("\n") + "\n"
}

/// One run: a server under callgrind, and its load.
async fn count(airwave: &Path, transport: Transport, publishes: u64, listeners: u64) -> Result<Count, String> {
    let folder = Folder::new().map_err(|error| format!("there is no folder to work in: {error}"))?;
    let text = |error: io::Error| format!("with {listeners} listeners and {publishes} publishes: {error}");
    let (mut server, address) = start(airwave, folder.path()).await?;
    let mut heard = Vec::new();
    for _ in 0..listeners {
        heard.push(CostListener::open(address, transport).await.map_err(text)?);
    }
    let mut publisher = HttpPublisher(TcpStream::connect(address).await.map_err(text)?);
    for number in 0..publishes {
        let mark = format!("mark-{number:06}");
        publisher.publish(&mark).await.map_err(text)?;
        for listener in &mut heard {
            listener.until(&mark).await.map_err(text)?;
        }
    }
    drop((heard, publisher));
    stop(&mut server).await?;
    let out = folder.path().join("callgrind");
    let counted = fs::read_to_string(&out).map_err(|error| format!("callgrind wrote no {}: {error}", out.display()))?;
    read(&counted)
}

async fn start(airwave: &Path, folder: &Path) -> Result<(Child, SocketAddr), String> {
    let config = folder.join("airwave.toml");
    fs::write(&config, CONFIG).map_err(|error| error.to_string())?;
    let log = folder.join("log");
    let out = fs::File::create(&log).map_err(|error| error.to_string())?;
    let mut command = Command::new("valgrind");
    command
        .args(["--tool=callgrind", "--compress-strings=no", "--compress-pos=no"])
        .arg(format!("--callgrind-out-file={}", folder.join("callgrind").display()))
        .arg(airwave)
        .args(["serve", "--listen", "127.0.0.1:0", "--config"])
        .arg(&config)
        // No setting of the machine's counts.
        .env_clear()
        .envs(std::env::vars_os().filter(|(name, _)| name == "PATH" || name == "AIRWAVE_TEST_RUN"))
        .env("TOKIO_WORKER_THREADS", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(out)
        .kill_on_drop(true);
    let mut server = command
        .spawn()
        .map_err(|error| format!("cannot start valgrind (Debian's package of that name): {error}"))?;
    let stdout = server.stdout.take().ok_or("the server has no output")?;
    let line = BufReader::new(stdout).lines().next_line().await.ok().flatten();
    let address = line
        .as_deref()
        .and_then(|line| line.strip_prefix("airwave listening on http://")?.trim().parse().ok())
        .ok_or_else(|| {
            let log = fs::read_to_string(&log).unwrap_or_default();
            format!("the server said {line:?} and {log}")
        })?;
    Ok((server, address))
}

async fn stop(server: &mut Child) -> Result<(), String> {
    let process = server
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .and_then(rustix::process::Pid::from_raw)
        .ok_or("the server has ended by itself")?;
    rustix::process::kill_process(process, rustix::process::Signal::TERM).map_err(|error| error.to_string())?;
    let status = server.wait().await.map_err(|error| error.to_string())?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("the server ended as {status}")),
    }
}

/// What callgrind wrote: the instructions outside of the allocator, and the calls of it that gave
/// memory.
fn read(text: &str) -> Result<Count, String> {
    const GIVE: [&str; 6] = ["malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc", "memalign"];
    let is_allocator = |name: &str| GIVE.contains(&name) || name == "free";
    // Of a recursion there is a second one, `name'2`.
    let plain = |name: &str| name.split('\'').next().unwrap_or_default().to_owned();
    let number = |word: Option<&str>| {
        let word = word.unwrap_or_default();
        word.parse::<f64>().map_err(|_| format!("callgrind counted {word:?}"))
    };
    let mut count = Count::default();
    let (mut caller, mut called) = (String::new(), String::new());
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(total) = line.strip_prefix("totals: ") {
            count.instructions += number(Some(total.trim()))?;
        } else if let Some(name) = line.strip_prefix("fn=") {
            caller = plain(name);
        } else if let Some(name) = line.strip_prefix("cfn=") {
            called = plain(name);
        } else if let Some(calls) = line.strip_prefix("calls=") {
            // The line behind it: where the calls were, and what they cost with all that they
            // called.
            let cost = lines.next().and_then(|line| line.split(' ').nth(1));
            if is_allocator(&called) && !is_allocator(&caller) {
                count.instructions -= number(cost)?;
                if called != "free" {
                    count.allocations += number(calls.split(' ').next())?;
                }
            }
        }
    }
    if count.instructions <= 0.0 || count.allocations == 0.0 {
        return Err("callgrind counted nothing".into());
    }
    Ok(count)
}

/// `POST /publish` over one connection.
struct HttpPublisher(TcpStream);

impl HttpPublisher {
    async fn publish(&mut self, mark: &str) -> io::Result<()> {
        let body = format!(
            "{{\"channel\":\"{CHANNEL}\",\"event\":\"said\",\"data\":{{\"mark\":\"{mark}\",\"text\":\"{}\"}}}}",
            "x".repeat(80)
        );
        let request = format!(
            "POST /publish HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.0.write_all(request.as_bytes()).await?;
        let mut bytes = Vec::new();
        loop {
            if let Some(head) = Head::parse(&bytes).map_err(io::Error::other)? {
                if head.status != 200 {
                    return Err(io::Error::other(format!("a publish was answered {}", head.status)));
                }
                if bytes.len() >= head.length + head.content_length.unwrap_or_default() {
                    return Ok(());
                }
            }
            if self.0.read_buf(&mut bytes).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

enum CostListener {
    Sse { stream: TcpStream, unread: Vec<u8> },
    WebSocket(Box<WebSocketStream<TcpStream>>),
}

impl CostListener {
    async fn open(address: SocketAddr, transport: Transport) -> io::Result<Self> {
        let mut stream = TcpStream::connect(address).await?;
        let mut listener = match transport {
            Transport::Sse => {
                let request = format!("GET /channels/{CHANNEL} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n");
                stream.write_all(request.as_bytes()).await?;
                let unread = Vec::new();
                Self::Sse { stream, unread }
            }
            Transport::Websocket => {
                let url = format!("ws://localhost/channels/{CHANNEL}");
                let (socket, _) = tokio_tungstenite::client_async(url, stream).await.map_err(io::Error::other)?;
                Self::WebSocket(Box::new(socket))
            }
        };
        listener.until("subscribed").await?;
        Ok(listener)
    }

    /// Until this came.
    async fn until(&mut self, what: &str) -> io::Result<()> {
        loop {
            match self {
                Self::Sse { stream, unread } => {
                    if unread.windows(what.len()).any(|bytes| bytes == what.as_bytes()) {
                        unread.clear();
                        return Ok(());
                    }
                    if stream.read_buf(unread).await? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Self::WebSocket(socket) => {
                    let message = socket.next().await.ok_or(io::ErrorKind::UnexpectedEof)?;
                    if message
                        .map_err(io::Error::other)?
                        .to_text()
                        .is_ok_and(|text| text.contains(what))
                    {
                        return Ok(());
                    }
                }
            }
        }
    }
}

/// The file that figures are compared with.
pub fn default_baseline() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cost.toml")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn counts(instructions: f64, allocations: f64) -> Count {
        Count {
            instructions,
            allocations,
        }
    }

    #[test]
    fn differences_give_what_one_costs() {
        let (publish, delivery, connect, rest) = (counts(700.0, 9.0), counts(17.0, 1.0), counts(900.0, 90.0), counts(5e6, 4e3));
        let run = |publishes: u64, listeners: u64| {
            let (publishes, listeners) = (publishes as f64, listeners as f64);
            let zero = Count::default();
            // Adding is taking away what is taken away.
            let parts = [
                publish.times(publishes),
                delivery.times(publishes * listeners),
                connect.times(listeners),
                rest,
            ];
            parts.into_iter().fold(zero, |sum, part| sum.minus(zero.minus(part)))
        };
        let costs = differences(
            LISTENERS.map(|listeners| PUBLISHES.map(|publishes| run(publishes, listeners))),
            CONNECTS.map(|listeners| run(0, listeners)),
        );
        for (found, given) in [(costs.publish, publish), (costs.delivery, delivery), (costs.connect, connect)] {
            assert!((found.instructions - given.instructions).abs() < 1e-6, "{found:?} {given:?}");
            assert!((found.allocations - given.allocations).abs() < 1e-6, "{found:?} {given:?}");
        }
    }

    #[test]
    fn callgrinds_file_is_read() {
        let text = "version: 1\nfn=airwave::main\n12 30\ncfi=x.c\ncfn=malloc\ncalls=7 0\n0 90\ncfn=free\ncalls=5 0\n0 1\n\
                    fn=other\ncfn=realloc'2\ncalls=2 9\n0 4\ncfn=airwave::main\ncalls=3 9\n0 400\n\
                    fn=realloc\n0 3\ncfn=malloc\ncalls=1 9\n0 1\n\ntotals: 4711\n";
        // The allocator's own calls of itself are within those from outside.
        assert_eq!(read(text).unwrap(), counts(4711.0 - 90.0 - 1.0 - 4.0, 9.0));
        assert!(read("nothing").is_err());
    }

    #[test]
    fn a_rise_is_named_and_a_file_is_written_and_read() {
        let mut text = String::from("# why\nrustc = \"rustc 1\"\n\n[instructions]\n");
        let all: Vec<String> = FIGURES.map(|name| format!("{name} = 100\n")).to_vec();
        let _ = write!(text, "{}\n[allocations]\n{}", all.concat(), all.concat());
        let before: Baseline = toml::from_str(&text).unwrap();
        let mut figures: BTreeMap<_, _> = FIGURES.into_iter().map(|name| (name, counts(102.9, 100.0))).collect();
        assert_eq!(compare(&before, &figures).1, Vec::<String>::new());
        figures.insert("delivery_sse", counts(103.1, 104.0));
        let rose = compare(&before, &figures).1;
        assert_eq!(rose.len(), 2, "{rose:?}");
        assert!(
            rose[0].starts_with("instructions.delivery_sse rose from 100.0 to 103.1"),
            "{rose:?}"
        );
        let after = written(&text, &figures);
        assert!(after.starts_with("# why\nrustc = \"rustc"), "{after}");
        let after: Baseline = toml::from_str(&after).unwrap();
        assert_eq!(after.instructions["delivery_sse"], 103.0);
        assert_eq!(after.allocations["delivery_sse"], 104.0);
        assert_eq!(compare(&after, &figures).1, Vec::<String>::new());
    }
}
