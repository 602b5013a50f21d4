//! `heal`: a node with very many channels loses the connection on which it hears its broker, and
//! later its life.
//!
//! Each channel has one event and one listener; 500 WebSockets hold a hundred of them each.
//! Measured are the time and memory of opening, the time until the listeners hear again after the
//! connection was cut, what other publishers and `/readyz` saw meanwhile, and the time until all
//! listeners are back after the node was killed and started again.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use airwave_protocol::{ClientFrame, Payload, ServerFrame, Subscribe};
use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;

use crate::process::{Kind, Server, everybodys_cpu, own_cpu, raise_open_files};

/// How many channels one connection holds.
const PER_SOCKET: usize = 100;

/// How long anything is waited for before the run is given up.
const PATIENCE: Duration = Duration::from_secs(180);

/// How often `/readyz` is asked, and something else is published.
const ASKED_EVERY: Duration = Duration::from_millis(100);
const PUBLISHED_EVERY: Duration = Duration::from_millis(20);

/// How long a refused subscription waits. Those behind it on the connection wait with it.
const ASKED_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// How many connections are being opened at once, before the first outage and after it.
const OPENING: usize = 50;

/// Every limit far above what the run uses.
const CONFIG: &str = r#"
[broker]
url = "BROKER"

[limits]
connections = 50000
connections_per_address = 50000
channels = 200000
new_channels_per_minute = 1000000
requests_per_second = 100000

[[channels]]
match = "{*name}"
transport = ["websocket"]
history = { events = 100, age = "1h" }
"#;

/// What was measured.
pub struct Healed {
    kind: Kind,
    channels: usize,
    opened: Duration,
    bytes_a_channel: f64,
    sampled: Duration,
    all: Duration,
    heals: f64,
    ready_flaps: u64,
    published: u64,
    refused: u64,
    refused_while_ready: u64,
    slowest: Duration,
    memory: [u64; 3],
    back: Duration,
    refused_subscriptions: u64,
    gaps: u64,
    others: f64,
}

impl Healed {
    /// A table of the figures.
    pub fn markdown(&self) -> String {
        let mib = |kib: u64| format!("{:.0} MiB", kib as f64 / 1024.0);
        let [before, peak, after] = self.memory;
        let seconds = |time: Duration| format!("{:.1} s", time.as_secs_f64());
        let rows = [
            ("opened", seconds(self.opened)),
            (
                "resident memory a channel",
                format!("{:.2} KiB", self.bytes_a_channel / 1024.0),
            ),
            ("a channel of each connection hears again", seconds(self.sampled)),
            ("every channel has heard an event published since", seconds(self.all)),
            ("heals", format!("{:.0}", self.heals)),
            ("`/readyz` turned", format!("{} times", self.ready_flaps)),
            ("published meanwhile", self.published.to_string()),
            (
                "refused of those, and while ready",
                format!("{}, {}", self.refused, self.refused_while_ready),
            ),
            ("slowest of those", seconds(self.slowest)),
            (
                "memory before, peak, a minute after",
                format!("{}, {}, {}", mib(before), mib(peak), mib(after)),
            ),
            ("all back after `kill -9`", seconds(self.back)),
            ("subscriptions refused and repeated", self.refused_subscriptions.to_string()),
            ("gaps", self.gaps.to_string()),
            ("others busy", format!("{:.0} %", self.others)),
        ];
        let mut text = format!(
            "### Healing {} channels, {}\n\n| figure | value |\n|---|---|\n",
            self.channels, self.kind
        );
        for (what, value) in rows {
            text.push_str(&format!("| {what} | {value} |\n"));
        }
        text
    }

    /// Whether nothing was lost or announced as lost.
    pub fn is_whole(&self) -> bool {
        self.gaps == 0
    }
}

/// What all listeners have seen together.
struct HealProgress {
    address: SocketAddr,
    /// The highest wave that each channel has heard.
    waves: Vec<AtomicU32>,
    /// Where each channel's listener stands.
    cursors: Vec<AtomicU64>,
    /// In which life of the node each channel was confirmed last.
    confirmed: Vec<AtomicU32>,
    life: AtomicU32,
    gaps: AtomicU64,
    /// Subscriptions that were refused, and asked for again.
    refused: AtomicU64,
}

impl HealProgress {
    fn new(address: SocketAddr, channels: usize) -> Self {
        let cells = || (0..channels).map(|_| AtomicU32::new(0)).collect::<Vec<_>>();
        Self {
            address,
            waves: cells(),
            cursors: (0..channels).map(|_| AtomicU64::new(0)).collect(),
            confirmed: cells(),
            life: AtomicU32::new(1),
            gaps: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    fn channel(index: usize) -> String {
        format!("heal/{index}")
    }

    fn count(values: &[AtomicU32], at_least: u32) -> usize {
        values
            .iter()
            .filter(|value| value.load(Ordering::Relaxed) >= at_least)
            .count()
    }

    /// Takes in a frame. Returns the channel whose subscription it refuses, if it does.
    fn read(&self, text: &str) -> Option<usize> {
        let frame = ServerFrame::parse(text).ok()?;
        let index = |channel: &str| -> Option<usize> {
            let index = channel.strip_prefix("heal/")?.parse().ok()?;
            (index < self.waves.len()).then_some(index)
        };
        let stands = |index: usize, cursor: &str| {
            if let Ok(cursor) = cursor.parse() {
                self.cursors[index].store(cursor, Ordering::Relaxed);
            }
        };
        match &frame {
            ServerFrame::Subscribed(subscribed) => {
                let index = index(&subscribed.channel)?;
                stands(index, &subscribed.cursor);
                self.confirmed[index].store(self.life.load(Ordering::Relaxed), Ordering::Relaxed);
            }
            ServerFrame::Gap(gap) => {
                index(&gap.channel)?;
                self.gaps.fetch_add(1, Ordering::Relaxed);
            }
            ServerFrame::Error(refused) => {
                let index = index(refused.channel.as_deref()?)?;
                self.refused.fetch_add(1, Ordering::Relaxed);
                return Some(index);
            }
            ServerFrame::Event(event) => {
                let index = index(&event.channel)?;
                stands(index, &event.id);
                let Payload::Json(data) = &event.payload else { return None };
                let wave = data.read::<Value>().ok()?["wave"].as_u64().unwrap_or(0) as u32;
                self.waves[index].fetch_max(wave, Ordering::Relaxed);
            }
            _ => {}
        }
        None
    }

    fn subscription(&self, index: usize) -> Message {
        let mut command = Subscribe::new(Self::channel(index));
        command.after = match self.cursors[index].load(Ordering::Relaxed) {
            0 => None,
            cursor => Some(cursor.to_string().into()),
        };
        Message::text(ClientFrame::Subscribe(command).to_json())
    }

    /// Listens on one connection, and comes back for ever.
    async fn listen(self: Arc<Self>, socket: usize) {
        let own = socket * PER_SOCKET..((socket + 1) * PER_SOCKET).min(self.waves.len());
        loop {
            // Whatever breaks it, it is made anew.
            let _ = self.listen_once(own.clone()).await;
            sleep(Duration::from_millis(50 + (socket as u64 * 37) % 200)).await;
        }
    }

    async fn listen_once(&self, own: std::ops::Range<usize>) -> Option<()> {
        let stream = TcpStream::connect(self.address).await.ok()?;
        let url = format!("ws://{}/socket", self.address);
        let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await.ok()?;
        for index in own {
            socket.feed(self.subscription(index)).await.ok()?;
        }
        socket.flush().await.ok()?;
        while let Some(message) = socket.next().await {
            if let Message::Text(text) = message.ok()?
                && let Some(refused) = self.read(&text)
            {
                sleep(ASKED_AGAIN_AFTER).await;
                socket.send(self.subscription(refused)).await.ok()?;
            }
        }
        None
    }
}

/// Asks the node over a connection of its own.
async fn ask(address: SocketAddr, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
    let asking = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok()?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1)?.parse().ok()?;
        Some((status, answer))
    };
    timeout(Duration::from_secs(30), asking).await.ok().flatten()
}

/// Publishes one event to each of these channels, again until it is taken.
async fn publish_wave(address: SocketAddr, channels: impl Iterator<Item = usize>, wave: u32) -> Result<(), String> {
    let channels: Vec<usize> = channels.collect();
    for some in channels.chunks(PER_SOCKET) {
        let events: Vec<String> = some
            .iter()
            .map(|index| {
                let channel = HealProgress::channel(*index);
                format!("{{\"channel\":\"{channel}\",\"event\":\"wave\",\"data\":{{\"wave\":{wave}}}}}")
            })
            .collect();
        let body = format!("[{}]", events.join(","));
        let begin = Instant::now();
        loop {
            match ask(address, "POST", "/publish", &body).await {
                Some((200, answer)) if !answer.contains("\"error\"") => break,
                other if begin.elapsed() > PATIENCE => {
                    return Err(format!(
                        "a publish is not taken: {}",
                        other.map_or_else(String::new, |(_, text)| text)
                    ));
                }
                _ => sleep(Duration::from_millis(50)).await,
            }
        }
    }
    Ok(())
}

/// Waits until the count is reached.
async fn until(what: &str, wanted: usize, count: impl Fn() -> usize) -> Result<(), String> {
    let begin = Instant::now();
    while count() < wanted {
        if begin.elapsed() > PATIENCE {
            let seconds = PATIENCE.as_secs();
            return Err(format!("{what}: {} of {wanted} after {seconds} s", count()));
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Stands between a node and its broker; `cut` closes all that goes through.
async fn cuttable(to: SocketAddr, cut: broadcast::Sender<()>) -> Result<SocketAddr, String> {
    let failed = |error| format!("cannot listen: {error}");
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut cut = cut.subscribe();
            tokio::spawn(async move {
                let Ok(mut far) = TcpStream::connect(to).await else { return };
                // Both ends send at once. A proxy that waited for acknowledgements would add some
                // 40 ms to most questions and answers.
                if near.set_nodelay(true).and(far.set_nodelay(true)).is_err() {
                    return;
                }
                tokio::select! {
                    _ = copy_bidirectional(&mut near, &mut far) => {}
                    _ = cut.recv() => {}
                }
            });
        }
    });
    Ok(address)
}

/// What others see of the node meanwhile.
#[derive(Default)]
struct Meanwhile {
    over: AtomicBool,
    flaps: AtomicU64,
    peak: AtomicU64,
    published: AtomicU64,
    refused: AtomicU64,
    /// Refused although `/readyz` said 200 before and after.
    refused_while_ready: AtomicU64,
    not_ready: AtomicBool,
    slowest: AtomicU64,
}

impl Meanwhile {
    async fn look(self: Arc<Self>, address: SocketAddr, process: u32) {
        let mut ready = true;
        while !self.over.load(Ordering::Relaxed) {
            let now = matches!(ask(address, "GET", "/readyz", "").await, Some((200, _)));
            self.flaps.fetch_add(u64::from(now != ready), Ordering::Relaxed);
            ready = now;
            self.not_ready.store(!now, Ordering::Relaxed);
            self.peak.fetch_max(resident(process), Ordering::Relaxed);
            sleep(ASKED_EVERY).await;
        }
    }

    async fn publish(self: Arc<Self>, address: SocketAddr) {
        let mut n = 0_u64;
        while !self.over.load(Ordering::Relaxed) {
            let body = format!("{{\"channel\":\"aside/{}\",\"event\":\"tick\",\"data\":{n}}}", n % 10);
            let (begin, ready) = (Instant::now(), !self.not_ready.load(Ordering::Relaxed));
            let taken = matches!(ask(address, "POST", "/publish", &body).await, Some((200, _)));
            n += 1;
            self.published.fetch_add(1, Ordering::Relaxed);
            self.refused.fetch_add(u64::from(!taken), Ordering::Relaxed);
            let ready = ready && !self.not_ready.load(Ordering::Relaxed);
            self.refused_while_ready
                .fetch_add(u64::from(!taken && ready), Ordering::Relaxed);
            self.slowest.fetch_max(begin.elapsed().as_millis() as u64, Ordering::Relaxed);
            sleep(PUBLISHED_EVERY).await;
        }
    }
}

/// Resident memory of a process in KiB.
fn resident(process: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

/// Runs the scenario once. `kind`: a node with Redis or NATS.
pub fn run(kind: Kind, airwave: &Path, channels: usize) -> Result<Healed, String> {
    raise_open_files(4096)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start: {error}"))?;
    runtime.block_on(measure(kind, airwave, channels))
}

/// Ends the node's subscriptions at its broker.
async fn break_connection(kind: Kind, server: &Server, cut: &broadcast::Sender<()>) -> Result<(), String> {
    if kind != Kind::AirwaveRedis {
        // No connection: then there is nothing to cut, and the wave tells.
        let _ = cut.send(());
        return Ok(());
    }
    let client = redis::Client::open(server.broker_url()?).map_err(|error| error.to_string())?;
    let mut connection = client
        .get_multiplexed_async_connection()
        .await
        .map_err(|error| error.to_string())?;
    let kill = redis::cmd("CLIENT")
        .arg("KILL")
        .arg("TYPE")
        .arg("pubsub")
        .exec_async(&mut connection)
        .await;
    kill.map_err(|error| error.to_string())
}

/// Processor time so far: of the machine, of this process, of the node and of its broker.
struct Used([Duration; 4]);

impl Used {
    fn now(server: &Server) -> Result<Used, String> {
        Ok(Used([everybodys_cpu()?, own_cpu()?, server.cpu()?, server.broker_cpu()?]))
    }

    /// What everybody else has used since, in percent of one processor.
    fn by_others(&self, server: &Server, wall: Duration) -> Result<f64, String> {
        let now = Used::now(server)?;
        let mut used = now.0.iter().zip(self.0).map(|(now, before)| now.saturating_sub(before));
        let everybody = used.next().unwrap_or_default();
        let ours: Duration = used.sum();
        Ok(everybody.saturating_sub(ours).as_secs_f64() * 100.0 / wall.as_secs_f64())
    }
}

/// Opens all channels, a connection after the other, and gives the time that it took.
async fn open_all(seen: &Arc<HealProgress>, listeners: &mut JoinSet<()>) -> Result<Duration, String> {
    let (begin, channels) = (Instant::now(), seen.waves.len());
    for socket in 0..channels.div_ceil(PER_SOCKET) {
        listeners.spawn(seen.clone().listen(socket));
        let most = (socket + 1).saturating_sub(OPENING) * PER_SOCKET;
        until("opening", most, || HealProgress::count(&seen.confirmed, 1)).await?;
    }
    until("opened", channels, || HealProgress::count(&seen.confirmed, 1)).await?;
    Ok(begin.elapsed())
}

/// Waits until every connection hears again on one of its channels.
async fn sample_heals(seen: &HealProgress) -> Result<(), String> {
    let channels = seen.waves.len();
    let sockets = channels.div_ceil(PER_SOCKET);
    // Another one of each connection, so that they lie everywhere in the order of healing.
    let sample: Vec<usize> = (0..sockets)
        .map(|socket| (socket * PER_SOCKET + (socket * 37) % PER_SOCKET).min(channels - 1))
        .collect();
    publish_wave(seen.address, sample.iter().copied(), 2).await?;
    let heard = || {
        sample
            .iter()
            .filter(|index| seen.waves[**index].load(Ordering::Relaxed) >= 2)
            .count()
    };
    until("healed", sockets, heard).await
}

/// Starts a node whose connections to its broker are cut with `cut`.
fn start_cuttable(kind: Kind, airwave: &Path, cut: &broadcast::Sender<()>) -> Result<Server, String> {
    let (cut, runtime) = (cut.clone(), tokio::runtime::Handle::current());
    let behind = move |broker: SocketAddr| {
        let cuttable = cuttable(broker, cut.clone());
        tokio::task::block_in_place(|| runtime.block_on(cuttable))
    };
    Server::start_behind(kind, airwave, CONFIG, &behind)
}

/// Kills the node, starts it again, and gives the time until every channel is confirmed once more.
async fn restart(server: &mut Server, airwave: &Path, seen: &HealProgress) -> Result<Duration, String> {
    seen.life.store(2, Ordering::Relaxed);
    let begin = Instant::now();
    server.kill_and_start_again(airwave)?;
    until("back", seen.waves.len(), || HealProgress::count(&seen.confirmed, 2)).await?;
    Ok(begin.elapsed())
}

async fn measure(kind: Kind, airwave: &Path, channels: usize) -> Result<Healed, String> {
    let (cut, _) = broadcast::channel(1);
    let mut server = start_cuttable(kind, airwave, &cut)?;
    let address = server.address;
    let seen = Arc::new(HealProgress::new(address, channels));
    publish_wave(address, 0..channels, 1).await?;
    let empty = resident(server.process());

    let mut listeners = JoinSet::new();
    let opened = open_all(&seen, &mut listeners).await?;
    sleep(Duration::from_secs(2)).await;
    let before = resident(server.process());

    let heals = server.metric("heals").unwrap_or(0.0);
    let meanwhile = Arc::new(Meanwhile::default());
    let looks = [
        tokio::spawn(meanwhile.clone().look(address, server.process())),
        tokio::spawn(meanwhile.clone().publish(address)),
    ];
    let used = Used::now(&server)?;
    let begin = Instant::now();
    break_connection(kind, &server, &cut).await?;
    sample_heals(&seen).await?;
    let sampled = begin.elapsed();
    publish_wave(address, 0..channels, 3).await?;
    until("heard", channels, || HealProgress::count(&seen.waves, 3)).await?;
    let all = begin.elapsed();
    let others = used.by_others(&server, all)?;
    sleep(Duration::from_secs(60).saturating_sub(begin.elapsed())).await;
    meanwhile.over.store(true, Ordering::Relaxed);
    for look in looks {
        look.await.map_err(|error| error.to_string())?;
    }
    let after = resident(server.process());
    let heals = server.metric("heals").unwrap_or(0.0) - heals;

    let back = restart(&mut server, airwave, &seen).await?;
    listeners.abort_all();
    let load = |value: &AtomicU64| value.load(Ordering::Relaxed);
    Ok(Healed {
        kind,
        channels,
        opened,
        bytes_a_channel: before.saturating_sub(empty) as f64 * 1024.0 / channels as f64,
        sampled,
        all,
        heals,
        ready_flaps: load(&meanwhile.flaps),
        published: load(&meanwhile.published),
        refused: load(&meanwhile.refused),
        refused_while_ready: load(&meanwhile.refused_while_ready),
        slowest: Duration::from_millis(load(&meanwhile.slowest)),
        memory: [before, load(&meanwhile.peak), after],
        back,
        refused_subscriptions: load(&seen.refused),
        gaps: load(&seen.gaps),
        others,
    })
}
