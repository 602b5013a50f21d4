//! A broker, nodes, and the lines between them, as processes that can be treated badly.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval, sleep, timeout};

use super::clients::request;
use super::history::wall_clock;
use super::link::{Link, LinkState};
use super::plan::{Lines, Refusal};
use super::servers::{Broker, BrokerKind, Folder, Node, Signal};

/// No step takes so long, however busy the machine is: it only turns a hang into a failure.
pub const HANG: Duration = Duration::from_secs(60);

/// What a node's keeper is told to do with it. The time is how long the node then is away.
#[derive(Clone, Copy, Debug)]
enum Order {
    Kill(Duration),
    Drain(Duration),
    Pause(Duration),
}

/// A broker, nodes, and the lines between them. Dropping it ends them all.
pub struct World {
    /// Which broker.
    pub kind: BrokerKind,
    broker: tokio::sync::Mutex<Broker>,
    /// Of each node, to each of the broker's addresses.
    links: Vec<Vec<Link>>,
    nodes: Vec<Kept>,
    wrong: Arc<Mutex<Vec<String>>>,
    folder: Folder,
    /// By how many milliseconds the broker's clock differs.
    skew: AtomicI64,
}

/// A node that is started again whenever it has ended.
struct Kept {
    address: watch::Receiver<Option<SocketAddr>>,
    orders: mpsc::UnboundedSender<Order>,
    peak: Arc<AtomicU64>,
    keeper: JoinHandle<()>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl World {
    /// Starts a broker and so many nodes of the `airwave` program, and waits until all of them are
    /// ready. `config`: a node's file, for the URL of its broker.
    ///
    /// # Errors
    /// Something does not start; the text says what to do.
    pub async fn start(kind: BrokerKind, nodes: usize, airwave: &Path, config: impl Fn(&str) -> String) -> Result<Self, String> {
        Self::start_skewed(kind, &vec![0; nodes], airwave, config).await
    }

    /// The same with as many nodes as there are `skews`, by each of which a node's clock differs,
    /// in milliseconds.
    ///
    /// # Errors
    /// As for [`World::start`].
    pub async fn start_skewed(
        kind: BrokerKind,
        skews: &[i64],
        airwave: &Path,
        config: impl Fn(&str) -> String,
    ) -> Result<Self, String> {
        let programs: Vec<_> = skews.iter().map(|skew| (airwave, *skew)).collect();
        Self::start_each(kind, &programs, config).await
    }

    /// The same with a program for each node: nodes of several versions share a broker.
    ///
    /// # Errors
    /// As for [`World::start`].
    pub async fn start_each(
        kind: BrokerKind,
        programs: &[(&Path, i64)],
        config: impl Fn(&str) -> String,
    ) -> Result<Self, String> {
        let folder = Folder::new().map_err(|error| format!("there is no folder to work in: {error}"))?;
        let broker = Broker::start(kind, folder.path()).await?;
        let wrong = Arc::new(Mutex::new(Vec::new()));
        let (mut links, mut kept) = (Vec::new(), Vec::new());
        for (number, (airwave, skew)) in programs.iter().enumerate() {
            let mut lines = Vec::new();
            for address in broker.addresses() {
                let from = broker.line_from(number, address);
                let link = Link::from(from, address).await;
                lines.push(link.map_err(|error| format!("there is no line from {from} to {address}: {error}"))?);
            }
            let addresses: Vec<SocketAddr> = lines.iter().map(|link| link.address).collect();
            let config = config(&broker.url(&addresses));
            let file = folder.path().join(format!("node{number}.toml"));
            std::fs::write(&file, config).map_err(|error| error.to_string())?;
            let keeper = Keeper {
                number,
                airwave: airwave.to_path_buf(),
                config: file,
                log: folder.path().join(format!("node{number}.log")),
                wrong: wrong.clone(),
                skew: *skew,
            };
            kept.push(keeper.begin());
            links.push(lines);
        }
        let world = Self {
            kind,
            broker: tokio::sync::Mutex::new(broker),
            links,
            nodes: kept,
            wrong,
            folder,
            skew: AtomicI64::new(0),
        };
        world.all_ready().await?;
        Ok(world)
    }

    /// Where the nodes listen that run now.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().filter_map(|node| *node.address.borrow()).collect()
    }

    /// Where a node listens, once it runs. It has another address whenever it was started again.
    pub async fn address(&self, node: usize) -> SocketAddr {
        let mut address = self.nodes[node].address.clone();
        loop {
            if let Some(address) = *address.borrow_and_update() {
                return address;
            }
            if address.changed().await.is_err() {
                // Its keeper is gone, and so is the world.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until every node runs and says that it can deliver.
    ///
    /// # Errors
    /// It takes too long; the text says what the node said.
    pub async fn all_ready(&self) -> Result<(), String> {
        let since = Instant::now();
        for number in 0..self.nodes.len() {
            loop {
                let answer = match timeout(Duration::from_secs(1), self.address(number)).await {
                    Ok(address) => request(address, "GET", "/readyz", "", "")
                        .await
                        .map_err(|error| error.to_string()),
                    Err(_) => Err("it does not run".to_owned()),
                };
                if matches!(answer, Ok((200, _))) {
                    break;
                }
                if since.elapsed() > HANG {
                    return Err(format!(
                        "node {number} is not ready after {HANG:?}: {answer:?}; {}",
                        self.log(number)
                    ));
                }
                sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    /// What went wrong with processes so far: nodes that ended unasked, did not drain, or panicked.
    pub fn wrong(&self) -> Vec<String> {
        let mut wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for node in 0..self.nodes.len() {
            let log = std::fs::read_to_string(self.log_file(node)).unwrap_or_default();
            let panics = log.lines().filter(|line| line.contains("panicked at"));
            wrong.extend(panics.map(|line| format!("node {node}: {line}")));
        }
        wrong
    }

    fn log_file(&self, node: usize) -> PathBuf {
        self.folder.path().join(format!("node{node}.log"))
    }

    /// All that a node has written to its log, or the end of it if that is much.
    pub fn log(&self, node: usize) -> String {
        let text = std::fs::read_to_string(self.log_file(node)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// The most memory that any node had, in KiB.
    pub fn peak_memory(&self) -> u64 {
        let peaks = self.nodes.iter().map(|node| node.peak.load(Ordering::Relaxed));
        peaks.max().unwrap_or_default()
    }

    fn order(&self, node: usize, order: Order) {
        // Without a keeper there is nothing left to keep.
        let _ = self.nodes[node].orders.send(order);
    }

    /// `kill -9`; the node is started again after `down`. Does not wait.
    pub fn kill_node(&self, node: usize, down: Duration) {
        self.order(node, Order::Kill(down));
    }

    /// SIGTERM; the node is started again so long after it has ended. Does not wait.
    pub fn drain_node(&self, node: usize, down: Duration) {
        self.order(node, Order::Drain(down));
    }

    /// SIGSTOP, and SIGCONT after `long`. Does not wait.
    pub fn pause_node(&self, node: usize, long: Duration) {
        self.order(node, Order::Pause(long));
    }

    /// `kill -9` of the broker (see `Broker::kill`), which is started again after `down`. Between,
    /// and so before anything new is published, `between` is called with the broker's clock: what
    /// it lost has a position before that.
    ///
    /// # Errors
    /// It does not start again.
    pub async fn kill_broker(&self, down: Duration, between: impl FnOnce(u64)) -> Result<(), String> {
        self.kill_broker_skewed(down, None, between).await
    }

    /// The same. `skew`: the clock of what is started again differs by so many milliseconds from
    /// now on. The broker's clock that `between` is told of is the one to come.
    ///
    /// # Errors
    /// As for [`World::kill_broker`].
    pub async fn kill_broker_skewed(&self, down: Duration, skew: Option<i64>, between: impl FnOnce(u64)) -> Result<(), String> {
        let mut broker = self.broker.lock().await;
        let skew = skew.filter(|_| broker.takes_skew());
        if let Some(skew) = skew {
            self.skew.store(skew, Ordering::Relaxed);
        }
        broker.kill().await;
        // Clocks count whole microseconds; nothing may be in the same one.
        sleep(Duration::from_millis(2)).await;
        between(wall_clock().saturating_add_signed(1000 * self.skew.load(Ordering::Relaxed)));
        sleep(Duration::from_millis(2).max(down)).await;
        broker.run(skew).await?;
        for lines in &self.links {
            for (link, address) in lines.iter().zip(broker.addresses()) {
                link.lead_to(address);
            }
        }
        Ok(())
    }

    /// By how many milliseconds the broker's clock differs.
    pub(super) fn skew(&self) -> i64 {
        self.skew.load(Ordering::Relaxed)
    }

    /// Waits until the broker's servers agree which of them counts, and then until every node is
    /// ready.
    ///
    /// # Errors
    /// It takes too long; the text says what is missing.
    pub async fn settle(&self) -> Result<(), String> {
        self.broker.lock().await.settle().await?;
        self.all_ready().await
    }

    /// Redis takes PUBLISH and refuses writes for so long. Gives the nodes that said that they can
    /// deliver all the while; `None`: this broker cannot be told to.
    pub(super) async fn refuse_writes(&self, why: Refusal, long: Duration) -> Option<Vec<usize>> {
        if self.kind.is_nats() {
            return None;
        }
        self.broker.lock().await.refuse_writes(why, true).await;
        let since = Instant::now();
        let mut ready: Vec<usize> = (0..self.nodes.len()).collect();
        while since.elapsed() < long {
            for node in std::mem::take(&mut ready) {
                let address = *self.nodes[node].address.borrow();
                let Some(address) = address else { continue };
                if matches!(request(address, "GET", "/readyz", "", "").await, Ok((200, _))) {
                    ready.push(node);
                }
            }
            sleep(Duration::from_millis(100)).await;
        }
        self.broker.lock().await.refuse_writes(why, false).await;
        Some(ready)
    }

    /// SIGSTOP of the broker, and SIGCONT after `long`.
    pub async fn pause_broker(&self, long: Duration) {
        let mut broker = self.broker.lock().await;
        broker.stop().await;
        sleep(long).await;
        broker.go_on();
    }

    /// How all lines between a node and its broker are from now on.
    pub fn set_line(&self, node: usize, line: LinkState) {
        for link in &self.links[node] {
            link.set(line);
        }
    }

    /// How these lines are from now on.
    pub(super) fn set_lines(&self, Lines { node, only }: Lines, line: LinkState) {
        match only {
            Some(only) => self.links[node][only % self.links[node].len()].set(line),
            None => self.set_line(node, line),
        }
    }
}

/// Starts a node again and again, and does to it what it is ordered to.
struct Keeper {
    number: usize,
    airwave: PathBuf,
    config: PathBuf,
    log: PathBuf,
    wrong: Arc<Mutex<Vec<String>>>,
    skew: i64,
}

impl Keeper {
    fn begin(self) -> Kept {
        let (address_told, address) = watch::channel(None);
        let (orders, taken) = mpsc::unbounded_channel();
        let peak = Arc::new(AtomicU64::new(0));
        let keeper = tokio::spawn(self.keep(address_told, taken, peak.clone()));
        Kept {
            address,
            orders,
            peak,
            keeper,
        }
    }

    fn wrong(&self, what: &str) {
        let what = format!("node {}: {what}", self.number);
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }

    async fn keep(
        self,
        address: watch::Sender<Option<SocketAddr>>,
        mut orders: mpsc::UnboundedReceiver<Order>,
        peak: Arc<AtomicU64>,
    ) {
        loop {
            // A node whose broker is out of reach at its start ends at once. The loop starts it
            // again, as a supervisor would.
            let Ok(mut node) = Node::start(&self.airwave, &self.config, &self.log, self.skew).await else {
                sleep(Duration::from_millis(200)).await;
                continue;
            };
            address.send_replace(Some(node.address));
            let down = self.mind(&mut node, &mut orders, &peak).await;
            address.send_replace(None);
            sleep(down).await;
        }
    }

    /// Until the node has ended; gives how long it shall be away.
    async fn mind(&self, node: &mut Node, orders: &mut mpsc::UnboundedReceiver<Order>, peak: &AtomicU64) -> Duration {
        let mut look = interval(Duration::from_millis(250));
        loop {
            let order = tokio::select! {
                order = orders.recv() => order,
                ended = node.wait() => {
                    self.wrong(&format!("it ended by itself ({ended:?}): {}", node.last_output()));
                    return Duration::ZERO;
                }
                _ = look.tick() => {
                    peak.fetch_max(node.memory().unwrap_or_default(), Ordering::Relaxed);
                    continue;
                }
            };
            match order {
                Some(Order::Kill(down)) => {
                    node.kill().await;
                    return down;
                }
                Some(Order::Drain(down)) => {
                    node.signal(Signal::TERM);
                    // It promises ten seconds.
                    match timeout(HANG, node.wait()).await {
                        Ok(Ok(status)) if status.code() == Some(0) => {}
                        ended => self.wrong(&format!("after SIGTERM it ended as {ended:?}: {}", node.last_output())),
                    }
                    return down;
                }
                Some(Order::Pause(long)) => {
                    node.signal(Signal::STOP);
                    sleep(long).await;
                    node.signal(Signal::CONT);
                }
                // The world is gone.
                None => return HANG,
            }
        }
    }
}
