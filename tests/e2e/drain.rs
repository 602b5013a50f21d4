//! The end of a node, asked for (P11) and not: what its clients see, and what they find when they
//! come back.

use std::future::IntoFuture;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use airwave::broker::{BrokerStats, follow_and_replay};
use airwave::brokers::memory::Memory;
use airwave::rule::SendPolicy;
use airwave::{Airwave, Append, Broker, ChannelName, Position, Published, Replay};
use airwave::{BrokerError, Feed, PageLimit};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::Notify;

use crate::support::raw::{Raw, handshake};
use crate::support::{Heard, Listener, Node, Way, config, http, rule, run, until, within};

/// Everything that a listener hears to its end; the numbers of the events must follow on one
/// another.
async fn to_the_end(listener: &mut Listener, mut expected: u64) -> (u64, Heard) {
    loop {
        match listener.next().await {
            Heard::Event(event) => {
                assert_eq!(event.number(), expected);
                expected += 1;
            }
            other => return (expected, other),
        }
    }
}

fn check_goodbye(way: Way, closed: &Heard) {
    let Heard::Closed { retry, code, reason } = closed else {
        panic!("{way:?} heard {closed:?}")
    };
    let wait = if way.is_sse() {
        retry.unwrap()
    } else {
        assert_eq!(*code, Some(1012));
        reason.strip_prefix("retry=").unwrap().parse().unwrap()
    };
    assert!((1000..5000).contains(&wait), "{way:?} is to wait {wait} ms");
}

/// Publishes numbers without a pause, and gives how many.
async fn publish_until(airwave: Airwave, over: Arc<AtomicBool>) -> u64 {
    let channel = airwave.channel("a").unwrap();
    let mut published = 0;
    while !over.load(Ordering::SeqCst) {
        channel.publish("n", &published).await.unwrap();
        tokio::task::yield_now().await;
        published += 1;
    }
    published
}

#[test]
fn every_listener_is_let_go_after_a_whole_event() {
    run(async {
        let mut node = Node::of_rule("{*all}", |rule| rule.history.events = 100_000).await;
        let mut listeners = Vec::new();
        for way in [Way::ALL, Way::ALL].concat() {
            listeners.push((way, node.listen(way, "a").await));
        }
        let mut raw = Raw::saying(
            node.own,
            format!(
                "GET /channels/a HTTP/1.1\r\nhost: {}\r\naccept: text/event-stream\r\n\r\n",
                node.own
            ),
        )
        .await;
        raw.head().await;
        let confirmation = raw.chunk().await.unwrap();
        assert!(confirmation.contains("airwave.subscribed"), "{confirmation}");
        let over = Arc::new(AtomicBool::new(false));
        let publisher = tokio::spawn(publish_until(node.airwave.clone(), over.clone()));
        for (_, listener) in &mut listeners {
            assert_eq!(listener.number().await, 0);
        }
        let drained = node.drain();
        let mut goodbyes = Vec::new();
        for (way, mut listener) in listeners {
            let (heard, closed) = to_the_end(&mut listener, 1).await;
            check_goodbye(way, &closed);
            goodbyes.push((heard, listener.cursor().to_owned()));
        }
        let mut rest = String::new();
        while let Some(chunk) = raw.chunk().await {
            assert!(chunk.ends_with("\n\n"), "a chunk holds whole events: {chunk}");
            rest += &chunk;
        }
        assert!(raw.is_done().await);
        let last = rest.trim_end_matches('\n').rsplit("\n\n").next().unwrap();
        assert!(rest.ends_with("\n\n") && last.starts_with("retry: "), "{last}");
        within("the drain", drained).await.unwrap().unwrap();
        over.store(true, Ordering::SeqCst);
        let published = publisher.await.unwrap();
        // The other clients hear nothing of the drain. Each has a cursor from which it goes on, on
        // another node of the same broker.
        for (heard, cursor) in goodbyes {
            let page = node
                .channel("a")
                .history(Some(cursor.parse().unwrap()), 100_000)
                .await
                .unwrap();
            assert_eq!((page.complete, page.events.len() as u64), (true, published - heard));
        }
    });
}

#[test]
fn nothing_new_is_taken_in() {
    run(async {
        let mut node = Node::new().await;
        let mut idle = Raw::connect(node.own).await;
        idle.say(format!("GET /healthz HTTP/1.1\r\nhost: {}\r\n\r\n", node.own)).await;
        assert_eq!(idle.answer().await.1, "ok");
        let drained = node.drain();
        within("the drain", drained).await.unwrap().unwrap();
        assert!(idle.is_done().await, "a connection that waits for its next request is closed");
        assert!(TcpStream::connect(node.own).await.is_err());
        // Where another server still listens, a new client is told to come again.
        let (ready, health) = (
            http::get(node.axum, "/readyz", &[]).await,
            http::get(node.axum, "/healthz", &[]).await,
        );
        assert_eq!((ready.status, &ready.body[..], health.status), (503, &b"draining\n"[..], 200));
        let body = r#"{"channel":"a","data":1}"#;
        let headers = [("content-type", "application/json")];
        let publish = http::request(node.axum, "POST", "/publish", &headers, body.into()).await;
        assert_eq!((publish.status, publish.error().as_str()), (503, "unavailable"));
        for way in [Way::SseBehindAxum, Way::WebSocketBehindAxum] {
            let mut listener = node.open(way, "/channels/a").await;
            assert!(matches!(listener.next().await, Heard::Refused { code, .. } if code == "unavailable"));
            let Heard::Closed { retry, code, .. } = listener.next().await else {
                panic!("it goes on")
            };
            assert!(if way.is_sse() { retry.is_some() } else { code == Some(1013) });
        }
    });
}

/// A browser opens connections before it needs them.
#[test]
fn connections_that_say_nothing_do_not_hold_up_a_drain() {
    run(async {
        let mut config = config([rule("{*all}", |_| {})]);
        // Longer than any test waits.
        config.drain = Duration::from_secs(3600);
        let mut node = Node::of(config).await;
        let mut idle = Raw::connect(node.own).await;
        idle.say(format!("GET /healthz HTTP/1.1\r\nhost: {}\r\n\r\n", node.own)).await;
        assert_eq!(idle.answer().await.1, "ok");
        let mut quiet = vec![idle];
        for said in [
            "",
            "G",
            "PRI",
            "GET /healthz HTTP/1.1\r\nhost: x\r\n",
            "PRI * HTTP/2.0\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ] {
            quiet.push(Raw::saying(node.own, said).await);
        }
        // Connections are accepted in their order, so the others are, too.
        assert_eq!(http::get(node.own, "/healthz", &[]).await.status, 200);
        within("the drain", node.drain()).await.unwrap().unwrap();
        for raw in quiet {
            // Ends, whatever HTTP/2 says before.
            raw.rest().await;
        }
    });
}

/// A load balancer asks for `/readyz` from time to time, and sends clients until it has heard.
#[test]
fn before_a_drain_everything_goes_on_and_readyz_fails() {
    run(async {
        let mut config = config([rule("{*all}", |_| {})]);
        config.drain_delay = Duration::from_secs(3600);
        let mut node = Node::of(config).await;
        let mut before = node.listen(Way::Sse, "a").await;
        drop(node.drain());
        within("readyz fails", async {
            while node.get("/readyz").await.status == 200 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        let ready = node.get("/readyz").await;
        assert_eq!((ready.status, &ready.body[..]), (503, &b"draining\n"[..]));
        assert_eq!(node.get("/healthz").await.status, 200);
        assert_eq!(
            node.post("/publish", &[], r#"{"channel":"a","event":"n","data":1}"#)
                .await
                .status,
            200
        );
        assert_eq!(before.number().await, 1);
        for way in Way::ALL {
            let mut listener = node.listen(way, "a").await;
            node.publish("a", 2).await;
            assert_eq!(listener.number().await, 2);
        }
    });
}

#[test]
fn a_drain_follows_its_delay() {
    run(async {
        let mut config = config([rule("{*all}", |_| {})]);
        config.drain_delay = Duration::from_millis(50);
        let mut node = Node::of(config).await;
        let mut listener = node.listen(Way::Sse, "a").await;
        let drained = node.drain();
        check_goodbye(Way::Sse, &listener.next().await);
        within("the drain", drained).await.unwrap().unwrap();
    });
}

/// axum's graceful shutdown waits for its connections, and a listener's does not end by itself.
#[test]
fn an_applications_own_server_shuts_down_while_listeners_are_connected() {
    run(async {
        let config = config([rule("{*all}", |_| {})]);
        let airwave = Airwave::from_config(config).build().await.unwrap();
        let app = axum::Router::new().nest("/realtime", airwave.router());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let server = axum::serve(listener, app).with_graceful_shutdown({
            let airwave = airwave.clone();
            async move {
                drop(stopped.await);
                airwave.shutdown().await;
            }
        });
        let server = tokio::spawn(server.into_future());
        let mut listeners = Vec::new();
        for way in [Way::SseBehindAxum, Way::WebSocketBehindAxum] {
            for path in ["/realtime/channels/a", "/realtime/channels/b"] {
                let mut listener = Listener::connect(address, way, path, &[], None).await.unwrap();
                listener.subscribed().await;
                listeners.push((way, listener));
            }
        }
        stop.send(()).unwrap();
        for (way, listener) in &mut listeners {
            check_goodbye(*way, &listener.next().await);
        }
        within("the server ends", server).await.unwrap().unwrap();
        assert_eq!(airwave.hub().sessions(), 0);
    });
}

/// A broker whose publishes wait for leave.
struct Gated {
    memory: Memory,
    asked: Arc<Notify>,
    leave: Arc<Notify>,
}

#[airwave::async_trait]
#[deny(clippy::missing_trait_methods)]
impl Broker for Gated {
    fn name(&self) -> &'static str {
        "gated"
    }

    async fn publish(&self, channel: &ChannelName, append: Append) -> Result<Published, BrokerError> {
        self.asked.notify_one();
        self.leave.notified().await;
        self.memory.publish(channel, append).await
    }

    async fn follow(&self, channel: &ChannelName) -> Result<Feed, BrokerError> {
        self.memory.follow(channel).await
    }

    async fn replay(&self, channel: &ChannelName, after: Option<Position>, limit: PageLimit) -> Result<Replay, BrokerError> {
        self.memory.replay(channel, after, limit).await
    }

    async fn open(&self, channel: &ChannelName, limit: PageLimit) -> Result<(Feed, Replay), BrokerError> {
        follow_and_replay(self, channel, limit).await
    }

    async fn ping(&self) -> Result<(), BrokerError> {
        Ok(())
    }

    fn stats(&self) -> BrokerStats {
        self.memory.stats()
    }
}

#[test]
fn publishes_under_way_finish() {
    run(async {
        let (asked, leave) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let mut config = config([rule("{*all}", |_| {})]);
        config.limits.broker_timeout = Duration::from_secs(20);
        config.drain = Duration::from_secs(20);
        let broker = Gated {
            memory: Memory::new(config.rules.clone()),
            asked: asked.clone(),
            leave: leave.clone(),
        };
        let mut node = Node::serving(Airwave::from_config(config).broker(Arc::new(broker)), Airwave::router).await;
        // One waits for the broker, one is still being sent.
        let address = node.own;
        let body = r#"{"channel":"a","data":1}"#;
        let waiting = tokio::spawn(async move {
            let headers = [("content-type", "application/json")];
            http::request(address, "POST", "/publish", &headers, body.into()).await
        });
        within("the publish is under way", asked.notified()).await;
        let head = format!(
            "POST /publish HTTP/1.1\r\nhost: {address}\r\nexpect: 100-continue\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let mut half = Raw::saying(address, head).await;
        // The server asks for the body once it has begun with the request.
        assert!(half.head().await.starts_with("HTTP/1.1 100 "));
        half.say(&body[..10]).await;
        let hub = node.airwave.hub().clone();
        let drained = node.drain();
        until("the node drains", || hub.is_draining()).await;
        half.say(&body[10..]).await;
        within("the second publish is under way", asked.notified()).await;
        assert!(!drained.is_finished() && !waiting.is_finished());
        leave.notify_one();
        leave.notify_one();
        until("leave is taken", || {
            leave.notify_one();
            waiting.is_finished()
        })
        .await;
        let answer = waiting.await.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        let (head, body) = half.answer().await;
        assert!(
            head.starts_with("HTTP/1.1 200 ") && body.contains("\"duplicate\":false"),
            "{head}{body}"
        );
        within("the drain", drained).await.unwrap().unwrap();
        assert_eq!(node.channel("a").history(None, 10).await.unwrap().events.len(), 2);
    });
}

/// Publishes what clients who do not listen say.
struct OpenLetterbox;

impl airwave::Handler for OpenLetterbox {
    fn requires_subscription(&self) -> bool {
        false
    }

    async fn message(
        &self,
        _: &airwave::Client,
        channel: &airwave::Channel,
        message: airwave::Message,
    ) -> Result<airwave::Reply, airwave::Refusal> {
        channel.publish_with(airwave::Publish::message(message)).await?;
        Ok(airwave::Reply::done())
    }
}

/// A message that is being handled is answered before the goodbye.
#[test]
fn commands_under_way_are_answered() {
    run(async {
        let (asked, leave) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let mut config = config([rule("{*all}", |rule| rule.send = SendPolicy::Publish)]);
        config.limits.broker_timeout = Duration::from_secs(20);
        config.drain = Duration::from_secs(20);
        let broker = Gated {
            memory: Memory::new(config.rules.clone()),
            asked: asked.clone(),
            leave: leave.clone(),
        };
        let builder = Airwave::from_config(config)
            .broker(Arc::new(broker))
            .handle("b", OpenLetterbox);
        let mut node = Node::serving(builder, Airwave::router).await;
        let mut socket = node.listen(Way::WebSocket, "a").await;
        socket
            .send(json!({"type": "send", "id": 1, "channel": "b", "event": "e", "data": 1}))
            .await;
        within("the message is being handled", asked.notified()).await;
        let mut other = node.listen(Way::WebSocket, "a").await;
        let drained = node.drain();
        check_goodbye(Way::WebSocket, &other.next().await);
        leave.notify_one();
        assert_eq!(socket.answer().await, json!({"type": "reply", "id": 1, "data": null}));
        check_goodbye(Way::WebSocket, &socket.next().await);
        within("the drain", drained).await.unwrap().unwrap();
        assert_eq!(node.channel("b").history(None, 10).await.unwrap().events.len(), 1);
    });
}

/// Who does not read its goodbye, and who never finishes, is cut after the grace time.
#[test]
fn what_is_left_after_the_grace_time_is_cut() {
    run(async {
        let mut config = config([rule("{*all}", |rule| rule.history.events = 1000)]);
        config.drain = Duration::from_millis(500);
        // Not what cuts them here.
        config.limits.stalled_write = Duration::from_secs(600);
        let mut node = Node::of(config).await;
        let mut stalled = Vec::new();
        for way in [Way::Sse, Way::WebSocket, Way::SseOverHttp2] {
            let mut listener = Listener::connect(node.own, way, "/channels/a", &[], Some(4096))
                .await
                .unwrap();
            listener.subscribed().await;
            stalled.push(listener);
        }
        let mut begun = Raw::saying(node.own, "POST /publish HTTP/1.1\r\ncontent-type: application/json\r\n").await;
        let text = "x".repeat(50_000);
        for _ in 0..150 {
            node.channel("a").publish("n", &text).await.unwrap();
        }
        let drained = node.drain();
        within("the drain", drained).await.unwrap().unwrap();
        let begin = std::time::Instant::now();
        until("all sessions are gone", || node.airwave.hub().sessions() == 0).await;
        // After 30 s the kernel would have given them up.
        assert!(begin.elapsed() < Duration::from_secs(20));
        // Each hears what was on its way, and then an end that is no goodbye.
        for mut listener in stalled {
            loop {
                match listener.next().await {
                    Heard::Event(event) => assert_eq!(event.data.len(), 50_002),
                    Heard::Closed { code, .. } => {
                        assert_eq!(code, None);
                        break;
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        let _ = begun.try_say("x: y").await;
        assert!(begun.rest().await.is_empty());
    });
}

/// The `airwave` binary, which does not outlive its test.
struct Process {
    child: Child,
    address: SocketAddr,
}

impl Process {
    async fn start(listen: &str) -> Self {
        Self::start_with(listen, &[]).await
    }

    async fn start_with(listen: &str, variables: &[(&str, &str)]) -> Self {
        Self::start_logging(listen, variables, None, Stdio::null()).await
    }

    /// With so many open files at most, if a number is given, and with its log in `log`.
    async fn start_logging(listen: &str, variables: &[(&str, &str)], files: Option<u32>, log: Stdio) -> Self {
        let mut command = Command::new("sh");
        let bound = files.map_or(String::new(), |files| format!("ulimit -n {files} && "));
        command
            .arg("-c")
            .arg(format!("{bound}exec \"$0\" \"$@\""))
            .arg(env!("CARGO_BIN_EXE_airwave"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("AIRWAVE_") {
                command.env_remove(name);
            }
        }
        command.envs(variables.iter().copied());
        // A folder without an airwave.toml.
        command
            .current_dir(env!("CARGO_TARGET_TMPDIR"))
            .args(["serve", "--listen", listen]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = within("the first line", lines.next_line()).await.unwrap().unwrap();
        let address = line.rsplit("http://").next().unwrap().parse().unwrap();
        Self { child, address }
    }

    async fn listen(&self, way: Way, path: &str) -> Listener {
        Listener::connect(self.address, way, path, &[], None).await.unwrap()
    }

    async fn publish(&self, channel: &str, number: u64) {
        let headers = [("content-type", "application/json")];
        let body = json!({"channel": channel, "event": "n", "data": number}).to_string();
        let answer = http::request(self.address, "POST", "/publish", &headers, body.into()).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }

    async fn signal(&self, signal: &str) {
        let id = self.child.id().unwrap().to_string();
        let status = Command::new("kill").args([signal, &id]).status().await.unwrap();
        assert!(status.success());
    }
}

const OVER_OUR_LOOP: [Way; 3] = [Way::Sse, Way::WebSocket, Way::SseOverHttp2];

#[test]
fn sigterm_drains_the_process() {
    run(async {
        let mut process = Process::start("127.0.0.1:0").await;
        let mut listeners = Vec::new();
        for way in OVER_OUR_LOOP {
            let mut listener = process.listen(way, "/channels/a").await;
            listener.subscribed().await;
            listeners.push((way, listener));
        }
        let mut undecided = Raw::saying(process.address, handshake(process.address, "/socket")).await;
        undecided.head().await;
        process.publish("a", 0).await;
        process.signal("-TERM").await;
        for (way, mut listener) in listeners {
            let (heard, closed) = to_the_end(&mut listener, 0).await;
            assert_eq!(heard, 1);
            check_goodbye(way, &closed);
        }
        assert_eq!(undecided.close_frame().await.0, 1012);
        drop(undecided);
        let status = within("the process ends", process.child.wait()).await.unwrap();
        assert_eq!(status.code(), Some(0));
    });
}

/// A file for a process's log, gone with the test.
struct LogFile(std::path::PathBuf);

impl LogFile {
    fn new(name: &str) -> Self {
        let name = format!("{name}-{}.log", std::process::id());
        Self(std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name))
    }

    fn create(&self) -> Stdio {
        std::fs::File::create(&self.0).unwrap().into()
    }

    fn text(&self) -> String {
        std::fs::read_to_string(&self.0).unwrap()
    }
}

impl Drop for LogFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Signals that mean "reload" or "open the log anew" elsewhere do nothing; SIGQUIT drains as
/// SIGTERM does.
#[test]
fn sigquit_drains_and_sighup_is_ignored() {
    run(async {
        let log = LogFile::new("signals");
        let mut process = Process::start_logging("127.0.0.1:0", &[], None, log.create()).await;
        let mut listener = process.listen(Way::Sse, "/channels/a").await;
        listener.subscribed().await;
        for signal in ["HUP", "USR1", "USR2"] {
            process.signal(&format!("-{signal}")).await;
            until("the signal is logged", || log.text().contains(&format!("SIG{signal}"))).await;
        }
        process.publish("a", 0).await;
        assert_eq!(listener.number().await, 0);
        process.signal("-QUIT").await;
        check_goodbye(Way::Sse, &listener.next().await);
        let status = within("the process ends", process.child.wait()).await.unwrap();
        assert_eq!(status.code(), Some(0));
    });
}

/// The library that speaks HTTP/2 warns of each acknowledgement of a ping that was never sent.
#[test]
fn a_flood_of_frames_does_not_fill_the_log() {
    run(async {
        let log = LogFile::new("flood");
        let process = Process::start_logging("127.0.0.1:0", &[], None, log.create()).await;
        let mut raw = Raw::saying(process.address, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        raw.say(b"\0\0\0\x04\0\0\0\0\0").await;
        let acknowledgement = b"\0\0\x08\x06\x01\0\0\0\0unasked!";
        for _ in 0..300 {
            if raw.try_say(acknowledgement.repeat(1000)).await.is_err() {
                break;
            }
        }
        // An answer behind them: all were read, or the connection is gone.
        let _ = raw.try_say(b"\0\0\x08\x06\0\0\0\0\0a ping!!").await;
        let answer = b"\0\0\x08\x06\x01\0\0\0\0a ping!!";
        let mut heard = Vec::new();
        within("the flood is read", async {
            let mut piece = [0; 4096];
            while let Ok(count @ 1..) = tokio::io::AsyncReadExt::read(&mut raw.stream, &mut piece).await {
                heard.extend_from_slice(&piece[..count]);
                if heard.windows(answer.len()).any(|window| window == answer) {
                    break;
                }
            }
        })
        .await;
        let text = log.text();
        assert!(text.len() <= 64 << 10, "{} bytes", text.len());
        assert!(text.contains("listening"), "{text}");
        process.publish("a", 0).await;
    });
}

/// More clients than open files: those who are too many are told so, those who are in are served,
/// and the log says it once.
#[test]
fn a_process_with_few_open_files_keeps_some() {
    run(async {
        let log = LogFile::new("files");
        let process = Process::start_logging("127.0.0.1:0", &[], Some(96), log.create()).await;
        let mut listener = process.listen(Way::Sse, "/channels/a").await;
        listener.subscribed().await;
        let mut open = Vec::new();
        for _ in 0..300 {
            open.push(Raw::connect(process.address).await);
        }
        let descriptors = format!("/proc/{}/fd", process.child.id().unwrap());
        for _ in 0..10 {
            let open: Vec<_> = std::fs::read_dir(&descriptors)
                .unwrap()
                .filter_map(|file| std::fs::read_link(file.unwrap().path()).ok())
                .collect();
            assert!(open.len() <= 90, "{} of 96 files are open: {open:?}", open.len());
            let mut raw = Raw::connect(process.address).await;
            let _ = raw
                .try_say("GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
                .await;
            // Answered, or at least not left waiting.
            raw.rest().await;
        }
        drop(open);
        within("there is room again", async {
            loop {
                let mut raw = Raw::connect(process.address).await;
                let _ = raw.try_say("GET /channels/a HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
                if raw.rest_begins_with("HTTP/1.1 200 ").await {
                    break;
                }
            }
        })
        .await;
        process.publish("a", 0).await;
        assert_eq!(listener.number().await, 0);
        let text = log.text();
        let warnings = text.lines().filter(|line| line.contains("WARN")).count();
        assert!(warnings <= 3, "{text}");
    });
}

/// Who does not read cannot keep the process.
#[test]
fn sigterm_ends_the_process_though_a_client_is_stalled() {
    run(async {
        let mut process = Process::start_with("127.0.0.1:0", &[("AIRWAVE_DRAIN", "1s")]).await;
        let mut stalled = Vec::new();
        for way in OVER_OUR_LOOP {
            let mut listener = Listener::connect(process.address, way, "/channels/a", &[], Some(4096))
                .await
                .unwrap();
            listener.subscribed().await;
            stalled.push(listener);
        }
        let text = "x".repeat(50_000);
        let fifty = json!(vec![json!({"channel": "a", "text": text}); 50]).to_string();
        for _ in 0..3 {
            let headers = [("content-type", "application/json")];
            let answer = http::request(process.address, "POST", "/publish", &headers, fifty.clone().into()).await;
            assert_eq!(answer.status, 200);
        }
        process.signal("-TERM").await;
        let status = within("the process ends", process.child.wait()).await.unwrap();
        assert_eq!(status.code(), Some(0));
    });
}

/// The memory broker dies with its process. A client that comes back to the next one on that
/// address is told of a gap.
#[test]
fn kill_9_and_a_restart_is_a_gap() {
    run(async {
        let mut process = Process::start("127.0.0.1:0").await;
        let address = process.address;
        let mut listeners = Vec::new();
        for way in OVER_OUR_LOOP {
            let mut listener = process.listen(way, "/channels/a").await;
            listener.subscribed().await;
            listeners.push((way, listener));
        }
        process.publish("a", 0).await;
        for (_, listener) in &mut listeners {
            assert_eq!(listener.number().await, 0);
        }
        process.child.start_kill().unwrap();
        within("the process ends", process.child.wait()).await.unwrap();
        let process = Process::start(&address.to_string()).await;
        process.publish("a", 1).await;
        for (way, mut before) in listeners {
            let (heard, closed) = to_the_end(&mut before, 1).await;
            assert!(heard == 1 && matches!(closed, Heard::Closed { code: None, .. }), "{closed:?}");
            let path = format!("/channels/a?after={}", before.cursor());
            let mut after = process.listen(way, &path).await;
            assert!(!after.subscribed().await.resumed);
            let (reason, from) = after.gap().await;
            assert_eq!(from.as_deref(), Some(before.cursor()), "{reason}");
            // What the new process has is what is left.
            assert_eq!(after.number().await, 1);
        }
    });
}
