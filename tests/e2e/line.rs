//! The line itself: heartbeats, silence, and requests that are not quite a subscription.

use std::time::Duration;

use serde_json::json;

use crate::support::raw::{Raw, frame};
use crate::support::{Heard, Node, Way, config, each_way, http, rule, run};

each_way!(heartbeats_that_scripts_can_see);

async fn node(heartbeat: Duration, idle: Duration) -> Node {
    let mut config = config([rule("{*all}", |_| {})]);
    config.limits.heartbeat = heartbeat;
    config.limits.idle = idle;
    Node::of(config).await
}

async fn heartbeats_that_scripts_can_see(way: Way) {
    let node = node(Duration::from_millis(50), Duration::from_secs(60)).await;
    let mut listener = node.open(way, "/channels/a?heartbeat=event").await;
    listener.subscribed().await;
    for _ in 0..3 {
        assert_eq!(listener.next().await, Heard::Heartbeat);
    }
    node.publish("a", 1).await;
    while !matches!(listener.next().await, Heard::Event(_)) {}
}

/// docs/protocol.md, section 4, byte by byte.
#[test]
fn an_sse_stream_byte_by_byte() {
    run(async {
        let node = node(Duration::from_millis(50), Duration::from_secs(60)).await;
        for address in [node.own, node.axum] {
            let request = format!("GET /channels/orders/1 HTTP/1.1\r\nhost: {address}\r\naccept: text/event-stream\r\n\r\n");
            let mut raw = Raw::saying(address, request).await;
            let head = raw.head().await;
            assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
            for line in [
                "content-type: text/event-stream\r\n",
                "cache-control: no-store\r\n",
                "x-accel-buffering: no\r\n",
            ] {
                assert!(head.contains(line), "{head}");
            }
            let chunked = head.contains("transfer-encoding: chunked");
            assert!(chunked || head.contains("connection: close\r\n"), "{head}");
            let confirmation = raw.through("\n\n").await;
            let cursor = node.get("/channels/orders/1").await.json()["cursor"]
                .as_str()
                .unwrap()
                .to_owned();
            let (retry, rest) = confirmation[confirmation.find("retry: ").unwrap()..]
                .split_once('\n')
                .unwrap();
            assert!((1000..5000).contains(&retry[7..].parse::<u32>().unwrap()), "{retry}");
            let data = format!("data: {{\"channel\":\"orders/1\",\"cursor\":\"{cursor}\",\"resumed\":false}}\n\n");
            assert_eq!(rest, format!("id: {cursor}\nevent: airwave.subscribed\n{data}"));
            // Silence: a comment.
            assert!(raw.through(":\n\n").await.ends_with(":\n\n"));
            let position = node
                .channel("orders/1")
                .publish("order-update", &json!({"status": "shipped"}))
                .await
                .unwrap();
            let event = raw.through("}\n\n").await;
            let wanted = format!(
                "id: {}\nevent: order-update\ndata: {{\"status\":\"shipped\"}}\n\n",
                position.position
            );
            assert!(event.ends_with(&wanted), "{event}");
        }
    });
}

/// Some clients read a body that ends with its connection in lumps of a fixed size, so over
/// HTTP/1.1 a stream comes in chunks: whole events in each.
#[test]
fn a_stream_comes_in_chunks_of_whole_events() {
    run(async {
        let mut config = config([rule("{*all}", |_| {})]);
        config.limits.message_bytes = 1 << 20;
        let node = Node::of(config).await;
        for address in [node.own, node.axum] {
            let channel = format!("a/{}", address.port());
            let request = format!("GET /channels/{channel} HTTP/1.1\r\nhost: {address}\r\naccept: text/event-stream\r\n\r\n");
            let mut raw = Raw::saying(address, request).await;
            let head = raw.head().await;
            assert_eq!(head.matches("transfer-encoding: chunked\r\n").count(), 1, "{head}");
            assert!(!head.contains("content-length"), "{head}");
            assert!(raw.chunk().await.unwrap().contains("event: airwave.subscribed\n"));
            for size in [1, 10, 200, 3000, 5000, 70_000, 1_000_000] {
                let text = "x".repeat(size);
                let position = node.channel(&channel).publish("n", &text).await.unwrap().position;
                let event = format!("id: {position}\nevent: n\ndata: \"{text}\"\n\n");
                let mut read = String::new();
                while read.len() < event.len() {
                    read += &raw.chunk().await.unwrap();
                }
                assert!(read == event, "an event of {size} bytes");
            }
            node.channel(&channel).end().await.unwrap();
            assert!(raw.chunk().await.unwrap().contains("event: airwave.end\n"));
            assert_eq!(raw.chunk().await, None, "the last chunk says that nothing was cut off");
        }
    });
}

/// The server pings a WebSocket even while events go out, and closes one that does not answer.
#[test]
fn who_does_not_answer_is_closed_and_who_does_is_not() {
    run(async {
        let idle = Duration::from_secs(1);
        let node = node(Duration::from_millis(50), idle).await;
        let mut mute = Raw::websocket(node.own, "/channels/a").await;
        let mut alive = node.open(Way::WebSocket, "/channels/a?heartbeat=event").await;
        alive.subscribed().await;
        // Busy: an event between any two heartbeats.
        let (mut events, mut heartbeats) = (0, 0);
        let begin = std::time::Instant::now();
        while begin.elapsed() < 2 * idle {
            node.publish("a", events).await;
            loop {
                match alive.next().await {
                    Heard::Event(event) if event.number() == events => break,
                    Heard::Heartbeat => heartbeats += 1,
                    other => panic!("{other:?}"),
                }
            }
            events += 1;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(heartbeats > 2, "{heartbeats} heartbeats beside {events} events");
        let mut pings = 0;
        let (code, reason) = loop {
            let frame = mute.frame().await.expect("a close frame");
            match frame.opcode {
                9 => pings += 1,
                8 => break frame.close(),
                _ => {}
            }
        };
        assert_eq!(code, 1001, "{reason}");
        assert!(pings > 2, "{pings} pings");
    });
}

/// Anything that is said counts, an empty pong as well.
#[test]
fn a_pong_is_enough() {
    run(async {
        let idle = Duration::from_secs(1);
        let node = node(Duration::from_millis(100), idle).await;
        let mut raw = Raw::websocket(node.own, "/socket").await;
        let begin = std::time::Instant::now();
        while begin.elapsed() < 2 * idle {
            assert_eq!(raw.frame().await.expect("still open").opcode, 9);
            raw.say(frame(0x8a, b"")).await;
        }
    });
}

/// A handler that takes its time is not the client's silence.
#[test]
fn a_slow_command_is_not_silence() {
    struct Slow;

    impl airwave::Handler for Slow {
        async fn message(
            &self,
            _: &airwave::Client,
            _: &airwave::Channel,
            _: airwave::Message,
        ) -> Result<airwave::Reply, airwave::Refusal> {
            tokio::time::sleep(Duration::from_millis(1500)).await;
            Ok(airwave::Reply::done())
        }
    }

    run(async {
        let mut config = config([rule("{*all}", |_| {})]);
        config.limits.heartbeat = Duration::from_millis(100);
        config.limits.idle = Duration::from_millis(700);
        let builder = airwave::Airwave::from_config(config).handle("{*all}", Slow);
        let node = Node::serving(builder, airwave::Airwave::router).await;
        let mut listener = node.listen(Way::WebSocket, "a").await;
        listener
            .send(json!({"type": "send", "id": 1, "channel": "a", "event": "e", "data": 1}))
            .await;
        assert_eq!(listener.answer().await, json!({"type": "reply", "id": 1, "data": null}));
    });
}

#[test]
fn a_head_request_is_answered_like_a_get_and_stays_not() {
    run(async {
        // A request of HTTP/1.0 is taken for a proxy's.
        let mut config = config([rule("{*all}", |_| {})]);
        config.hosts = vec!["*".into()];
        let node = Node::of(config).await;
        node.publish("a", 1).await;
        for address in [node.own, node.axum] {
            let accept = [("accept", "text/event-stream")];
            for path in ["/channels/a", "/events?channel=a"] {
                let answer = http::request(address, "HEAD", path, &accept, "".into()).await;
                assert_eq!((answer.status, answer.body.len()), (200, 0));
                assert_eq!(answer.header("content-type"), Some("text/event-stream"));
                // RFC 9110, section 8.6: a stream has no length.
                assert_eq!(answer.header("content-length"), None, "{path}");
                let mut raw = Raw::saying(
                    address,
                    format!("HEAD {path} HTTP/1.0\r\nhost: {address}\r\naccept: text/event-stream\r\n\r\n"),
                )
                .await;
                let head = raw.head().await;
                assert!(head.contains(" 200 ") && !head.contains("content-length"), "{head}");
                assert!(raw.is_done().await, "a HEAD has no body");
            }
            let answer = http::request(address, "HEAD", "/channels/a", &[], "".into()).await;
            let whole = http::get(address, "/channels/a", &[]).await;
            assert_eq!((answer.status, answer.body.len()), (200, 0));
            assert_eq!(answer.header("content-length"), Some(whole.body.len().to_string().as_str()));
            let none = http::request(address, "HEAD", "/channels/a/../b", &accept, "".into()).await;
            assert_eq!(none.status, 400);
        }
        assert_eq!(node.airwave.hub().sessions(), 0);
    });
}

#[test]
fn other_methods_and_paths_are_told_so() {
    run(async {
        let node = Node::new().await;
        for method in ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"] {
            let answer = http::request(node.own, method, "/channels/a", &[], "".into()).await;
            assert_eq!(
                (answer.status, answer.header("allow")),
                (405, Some("GET, HEAD, POST")),
                "{method}"
            );
        }
        for path in ["/publish", "/healthz", "/readyz", "/metrics", "/events"] {
            let answer = http::request(node.own, "DELETE", path, &[], "".into()).await;
            assert_eq!(answer.status, 405, "{path}");
        }
        for path in ["/nowhere", "/channels", "/channels/", "/"] {
            assert_eq!(node.get(path).await.status, 404, "{path}");
        }
        assert_eq!(node.get("/socket").await.error(), "bad-request");
        assert_eq!(
            (node.get("/healthz").await.status, node.get("/readyz").await.status),
            (200, 200)
        );
        let metrics = node.get("/metrics").await;
        assert_eq!(
            metrics.header("content-type").unwrap(),
            "text/plain; version=0.0.4; charset=utf-8"
        );
        assert!(String::from_utf8_lossy(&metrics.body).contains("# TYPE airwave_gaps_total counter\n"));
        let accept = [("accept", "application/openmetrics-text; version=1.0.0, text/plain; q=0.5")];
        let metrics = http::request(node.own, "GET", "/metrics", &accept, "".into()).await;
        assert_eq!(
            metrics.header("content-type").unwrap(),
            "application/openmetrics-text; version=1.0.0; charset=utf-8"
        );
        assert_eq!(metrics.header("vary").unwrap(), "accept");
        assert!(String::from_utf8_lossy(&metrics.body).ends_with("# EOF\n"));
    });
}
