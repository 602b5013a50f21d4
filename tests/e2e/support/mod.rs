//! A real node on real sockets, and clients that listen to it in every way there is.

pub mod http;
pub mod listener;
pub mod raw;
#[path = "../../support/whatwg_sse.rs"]
pub mod whatwg_sse;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Mutex, Once, PoisonError};
use std::time::Duration;

use airwave::rule::TransportName;
use airwave::{Airwave, Channel, Config, Publish, Rule, Rules};
use axum::Router;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub use http::Answer;
pub use listener::{Event, Heard, Listener};

/// No step of a test takes so long, however busy the machine is: this only turns a hang into a
/// failure.
pub const HANG: Duration = Duration::from_secs(30);

/// How a client comes to its events. Whatever it is, it must hear the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Our own accept loop: the socket is taken back from hyper.
    Sse,
    /// Our own accept loop: the socket is taken back from hyper.
    WebSocket,
    /// The same routes in an application's server: an ordinary body.
    SseBehindAxum,
    /// The same routes in an application's server: an ordinary upgrade.
    WebSocketBehindAxum,
    /// Our own accept loop, HTTP/2 by prior knowledge.
    SseOverHttp2,
}

impl Way {
    pub const ALL: [Way; 5] = [
        Way::Sse,
        Way::WebSocket,
        Way::SseBehindAxum,
        Way::WebSocketBehindAxum,
        Way::SseOverHttp2,
    ];

    pub fn is_sse(self) -> bool {
        !matches!(self, Way::WebSocket | Way::WebSocketBehindAxum)
    }
}

/// `each_way!(scenario)`: the async function `scenario(Way)` as one test for each way.
macro_rules! each_way {
    ($($scenario:ident),* $(,)?) => {$(
        mod $scenario {
            use crate::support::{Way, run};

            #[test]
            fn sse() {
                run(super::$scenario(Way::Sse));
            }

            #[test]
            fn websocket() {
                run(super::$scenario(Way::WebSocket));
            }

            #[test]
            fn sse_behind_axum() {
                run(super::$scenario(Way::SseBehindAxum));
            }

            #[test]
            fn websocket_behind_axum() {
                run(super::$scenario(Way::WebSocketBehindAxum));
            }

            #[test]
            fn sse_over_http2() {
                run(super::$scenario(Way::SseOverHttp2));
            }
        }
    )*};
}

pub(crate) use each_way;

/// Runs a scenario on a runtime of its own, with two workers as on the smallest machine that we
/// think of.
pub fn run(scenario: impl Future<Output = ()>) {
    static WATCH: Once = Once::new();
    WATCH.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let on_purpose = panic.to_string().contains("on purpose") || panic.payload().is::<crate::hostile::Bomb>();
            if !on_purpose && std::thread::current().name() == Some(WORKER) {
                PANICS.lock().unwrap_or_else(PoisonError::into_inner).push(panic.to_string());
            }
            usual(panic);
        }));
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name(WORKER)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async { tokio::time::timeout(3 * HANG, scenario).await.expect("the scenario hangs") });
    // Whatever still waits for a client is not waited for.
    runtime.shutdown_background();
    let panics = PANICS.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(
        panics.is_empty(),
        "a task of the node (or a client's, of another test) panicked: {panics:?}"
    );
}

/// Scenarios run on the tests' own threads, so a panic on one of these threads comes from a task
/// that no test waits for.
const WORKER: &str = "e2e-worker";

/// P13: no input makes the node panic. tokio would hide it.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// The outcome of one step, which must not hang.
pub async fn within<T>(what: &str, step: impl Future<Output = T>) -> T {
    match tokio::time::timeout(HANG, step).await {
        Ok(outcome) => outcome,
        Err(_) => panic!("hangs: {what}"),
    }
}

/// Until `holds` says so: for what can only be looked at, not waited for.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    within(what, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// A rule that allows both transports, changed as `change` says.
pub fn rule(pattern: &str, change: impl FnOnce(&mut Rule)) -> Rule {
    let mut rule = Rule::new(pattern.parse().unwrap(), vec![TransportName::SSE, TransportName::WEBSOCKET]);
    change(&mut rule);
    rule
}

/// What a node of a test is told: these rules, a free port, and anybody may publish.
pub fn config(rules: impl IntoIterator<Item = Rule>) -> Config {
    let mut config = Config::default();
    config.listen = "127.0.0.1:0".parse().unwrap();
    config.rules = Rules::new(rules);
    config.publish_open = true;
    // Rooms that are not about it ask as fast as they can.
    config.limits.requests_per_second = 1_000_000;
    config
}

/// One node, behind our own accept loop and in an application's server at the same time.
pub struct Node {
    pub airwave: Airwave,
    /// Where our own accept loop listens.
    pub own: SocketAddr,
    /// Where `axum::serve` listens.
    pub axum: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    served: Option<JoinHandle<airwave::Result<()>>>,
    axum_server: JoinHandle<()>,
}

impl Node {
    /// A node with one rule for all channels: both transports, 100 events of history.
    pub async fn new() -> Self {
        Self::of(config([rule("{*all}", |_| {})])).await
    }

    pub async fn of(config: Config) -> Self {
        Self::serving(Airwave::from_config(config), Airwave::router).await
    }

    pub async fn of_rule(pattern: &str, change: impl FnOnce(&mut Rule)) -> Self {
        Self::of(config([rule(pattern, change)])).await
    }

    /// A node whose routes stand in an application.
    pub async fn serving(builder: airwave::Builder, app: impl FnOnce(&Airwave) -> Router) -> Self {
        let airwave = builder.build().await.unwrap();
        let app = app(&airwave);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let axum = listener.local_addr().unwrap();
        let plain = app.clone().into_make_service_with_connect_info::<SocketAddr>();
        let axum_server = tokio::spawn(async move { axum::serve(listener, plain).await.unwrap() });
        let (stop, stopped) = oneshot::channel();
        let (ready, address) = oneshot::channel();
        let serving = airwave.clone();
        let served = tokio::spawn(async move {
            let stopped = async { drop(stopped.await) };
            serving
                .serve_until(app, stopped, |address| ready.send(address).unwrap())
                .await
        });
        let own = within("the node listens", address).await.unwrap();
        Self {
            airwave,
            own,
            axum,
            stop: Some(stop),
            served: Some(served),
            axum_server,
        }
    }

    /// Begins to drain our own accept loop; what is returned resolves when it is done.
    pub fn drain(&mut self) -> JoinHandle<airwave::Result<()>> {
        self.stop.take().unwrap().send(()).unwrap();
        self.served.take().unwrap()
    }

    pub fn address(&self, way: Way) -> SocketAddr {
        match way {
            Way::Sse | Way::WebSocket | Way::SseOverHttp2 => self.own,
            Way::SseBehindAxum | Way::WebSocketBehindAxum => self.axum,
        }
    }

    pub fn channel(&self, name: &str) -> Channel {
        self.airwave.channel(name).unwrap()
    }

    /// Publishes a number as JSON under the event name `n`; gives its position as text.
    pub async fn publish(&self, channel: &str, number: u64) -> String {
        self.channel(channel)
            .publish("n", &number)
            .await
            .unwrap()
            .position
            .to_string()
    }

    /// Publishes a number under a key.
    pub async fn publish_keyed(&self, channel: &str, key: &str, number: u64) -> String {
        let publish = Publish::json("n", &number).key(key);
        let published = self.channel(channel).publish_with(publish).await.unwrap();
        published.position.to_string()
    }

    /// A fresh listener of one channel, confirmed.
    pub async fn listen(&self, way: Way, channel: &str) -> Listener {
        let mut listener = self.open(way, &format!("/channels/{channel}")).await;
        let subscribed = listener.subscribed().await;
        // No command, no number.
        assert_eq!((subscribed.resumed, subscribed.id), (false, None), "{way:?}");
        listener
    }

    /// A listener that comes back with a cursor; its confirmation is still to be read.
    pub async fn resume(&self, way: Way, channel: &str, cursor: &str) -> Listener {
        self.open(way, &format!("/channels/{channel}?after={cursor}")).await
    }

    /// A listener by its path and query.
    pub async fn open(&self, way: Way, path: &str) -> Listener {
        match self.try_open(way, path, &[]).await {
            Ok(listener) => listener,
            Err(answer) => panic!("{way:?} {path} was answered {answer:?}"),
        }
    }

    pub async fn try_open(&self, way: Way, path: &str, headers: &[(&str, &str)]) -> Result<Listener, Answer> {
        Listener::connect(self.address(way), way, path, headers, None).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        http::get(self.own, path, &[]).await
    }

    pub async fn post(&self, path: &str, headers: &[(&str, &str)], body: impl Into<bytes::Bytes>) -> Answer {
        let headers: Vec<_> = [("content-type", "application/json")]
            .into_iter()
            .chain(headers.iter().copied())
            .collect();
        http::request(self.own, "POST", path, &headers, body.into()).await
    }

    /// Returns the value of a counter or gauge, such as `airwave_gaps_total{reason="too-slow"}`:
    /// the sum of the samples that have these labels, whatever else they have.
    pub fn metric(&self, series: &str) -> u64 {
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let labels = labels
            .trim_end_matches('}')
            .split(',')
            .filter_map(|label| label.split_once('='));
        let labels: Vec<_> = labels.map(|(label, value)| (label, value.trim_matches('"'))).collect();
        let snapshot = self.airwave.hub().metrics().read();
        let total = snapshot.total(name, &labels);
        total.unwrap_or_else(|| panic!("no {series} in {snapshot:?}")) as u64
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.axum_server.abort();
        if let Some(served) = &self.served {
            served.abort();
        }
    }
}

/// Numbers that look random and are the same in every run.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// From 0 to below `sides`.
    pub fn roll(&mut self, sides: usize) -> usize {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % sides
    }
}
