//! What one client may take of a node: pages of history, requests, names, what it sends unasked.

use std::time::Duration;

use airwave::Airwave;
use airwave::config::Secret;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::net::TcpStream;

use crate::support::raw::Raw;
use crate::support::{Heard, Node, Way, config, rule, run, until, within};

const TOKEN: &str = "0123456789abcdef";

/// A node that keeps 20 events of 60,000 bytes in `a`, and the position before them.
async fn with_a_large_history() -> (Node, String) {
    let node = Node::of_rule("{*all}", |rule| {
        rule.history.events = 1000;
        rule.history.bytes = 64 << 20;
    })
    .await;
    let first = node.publish("a", 0).await;
    for _ in 0..20 {
        node.channel("a").publish("n", &"x".repeat(60_000)).await.unwrap();
    }
    (node, first)
}

#[test]
fn a_page_of_history_ends_after_256_kib() {
    run(async {
        let (node, mut after) = with_a_large_history().await;
        let (mut pages, mut events) = (0, 0);
        loop {
            let answer = node.get(&format!("/channels/a?limit=1000&after={after}")).await;
            assert!(answer.body.len() < 300_000, "{} bytes", answer.body.len());
            let page = answer.json();
            assert_eq!(page["complete"], true);
            pages += 1;
            events += page["events"].as_array().unwrap().len();
            after = page["cursor"].as_str().unwrap().to_owned();
            if page["more"] == false {
                break;
            }
        }
        assert_eq!((events, pages), (20, 5));
        // Without a cursor it is the newest that fit.
        let newest = node.get("/channels/a?limit=1000").await.json();
        assert_eq!(
            (newest["events"].as_array().unwrap().len(), &newest["more"]),
            (4, &json!(false))
        );
        assert_eq!(newest["cursor"], after);
    });
}

/// A client that asks for a hundred pages over one HTTP/2 connection and reads none of them.
#[test]
fn unread_pages_are_read_a_few_at_a_time_and_disturb_no_other_client() {
    run(async {
        let (node, after) = with_a_large_history().await;
        let stream = TcpStream::connect(node.own).await.unwrap();
        let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(0);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let before = node.metric("airwave_broker_replays_total");
        let resident = resident_kib();
        let asked: Vec<_> = (0..100)
            .map(|_| {
                let mut sender = sender.clone();
                let request = Request::get(format!("http://{}/channels/a?limit=1000&after={after}", node.own));
                let request = request.body(Empty::<Bytes>::new()).unwrap();
                tokio::spawn(async move { sender.send_request(request).await })
            })
            .collect();
        let read = || node.metric("airwave_broker_replays_total") - before;
        until("some pages are read", || read() == 4).await;
        for number in 0..100 {
            node.publish("others", number).await;
        }
        let (mut answered, mut refused) = (Vec::new(), 0);
        for asked in asked {
            let answer = within("an answer", asked).await.unwrap().unwrap();
            match answer.status().as_u16() {
                200 => answered.push(answer),
                429 => refused += 1,
                other => panic!("{other}"),
            }
        }
        assert_eq!((answered.len(), refused, read()), (4, 96, 4));
        println!("100 unread pages: {} KiB more", resident_kib().saturating_sub(resident));
        // Another client is not in their way once they are let go.
        drop(answered);
        let page = node.get("/channels/a?limit=1000").await;
        assert_eq!(page.status, 200);
    });
}

/// What this process holds, for the reader of a test's output; 0 where that cannot be told.
fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse().ok())
        .unwrap_or(0)
}

#[test]
fn requests_beyond_the_rate_are_told_when_to_come_again() {
    run(async {
        let mut config = config([rule("{*all}", |rule| rule.send = airwave::rule::SendPolicy::Publish)]);
        config.publish_open = false;
        config.publish_token = Some(Secret::new(TOKEN));
        config.limits.requests_per_second = 5;
        let node = Node::of(config).await;
        let body = r#"{"event":"e","data":1}"#;
        let mut statuses = Vec::new();
        let refused = loop {
            let answer = node.post("/channels/a", &[], body).await;
            statuses.push(answer.status);
            if answer.status != 200 {
                break answer;
            }
            assert!(statuses.len() < 1000, "nothing is refused");
        };
        assert!(statuses.len() > 10, "the burst: {statuses:?}");
        assert_eq!((refused.status, refused.error().as_str()), (429, "too-many"));
        assert_eq!(refused.headers["retry-after"], "1");
        // A page counts as well; a backend with its token does not.
        let mut pages = 0;
        while node.get("/channels/a").await.status == 200 {
            pages += 1;
            assert!(pages < 1000, "no page is refused");
        }
        let token = format!("Bearer {TOKEN}");
        for _ in 0..30 {
            let published = node
                .post("/publish", &[("authorization", &token)], r#"{"channel":"a","data":1}"#)
                .await;
            assert_eq!(published.status, 200);
        }
    });
}

#[test]
fn new_names_are_limited_by_address_on_every_way() {
    run(async {
        let mut config = config([rule("{*all}", |_| {})]);
        config.limits.new_channels_per_minute = 6;
        let node = Node::of(config).await;
        let mut open = node.listen(Way::Sse, "open").await;
        let many: String = (0..5).map(|n| format!("channel=n/{n}&")).collect();
        node.open(Way::Sse, &format!("/events?{many}")).await;
        let error = |heard: Heard| match heard {
            Heard::Refused { code, .. } => code,
            other => panic!("{other:?}"),
        };
        let mut refused = node.open(Way::Sse, "/channels/one-more").await;
        assert_eq!(error(refused.next().await), "too-many");
        let mut refused = node.open(Way::Sse, "/events?channel=x&channel=y").await;
        assert_eq!(error(refused.next().await), "too-many");
        let mut refused = node.open(Way::WebSocket, "/channels/one-more").await;
        assert_eq!(error(refused.next().await), "too-many");
        assert_eq!(node.get("/channels/one-more").await.status, 429);
        // What is open already is no new name.
        node.listen(Way::WebSocket, "open").await;
        assert_eq!(node.get("/channels/open").await.status, 200);
        node.publish("open", 1).await;
        assert_eq!(open.event().await.number(), 1);
    });
}

#[test]
fn at_the_limit_of_channels_those_without_events_make_room_first() {
    run(async {
        let mut config = config([rule("{*all}", |_| {})]);
        config.limits.channels = 2;
        let node = Node::of(config).await;
        node.publish("used", 1).await;
        drop(node.listen(Way::Sse, "used").await);
        drop(node.listen(Way::Sse, "unused").await);
        until("the last listener has gone", || node.airwave.hub().sessions() == 0).await;
        let _listener = node.listen(Way::Sse, "another").await;
        let names: Vec<String> = node
            .airwave
            .hub()
            .channels(9)
            .iter()
            .map(|state| state.name.to_string())
            .collect();
        assert_eq!(names, ["another", "used"]);
    });
}

#[test]
fn a_listener_that_sends_for_ever_is_let_go() {
    run(async {
        let node = Node::new().await;
        let head = format!(
            "GET /channels/a HTTP/1.1\r\nhost: {}\r\naccept: text/event-stream\r\n\r\n",
            node.own
        );
        // A little is no harm.
        let mut quiet = Raw::saying(node.own, &head).await;
        quiet.through("airwave.subscribed").await;
        quiet.say("x".repeat(1000)).await;
        let mut loud = Raw::saying(node.own, &head).await;
        loud.through("airwave.subscribed").await;
        let sent = async { while loud.try_say("x".repeat(1000)).await.is_ok() {} };
        within("the stream ends", sent).await;
        until("only the quiet one is left", || node.airwave.hub().sessions() == 1).await;

        let stream = TcpStream::connect(node.own).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        let request = Request::get(format!("http://{}/channels/a", node.own)).header("accept", "text/event-stream");
        let request = request.body(Full::new(Bytes::from(vec![b'x'; 20_000]))).unwrap();
        let mut body = within("an answer", sender.send_request(request)).await.unwrap().into_body();
        within("the stream ends", async { while let Some(Ok(_)) = body.frame().await {} }).await;
        until("only the quiet one is left", || node.airwave.hub().sessions() == 1).await;

        node.publish("a", 7).await;
        quiet.through("data: 7").await;
    });
}

#[test]
fn unknown_query_parameters_are_refused_with_the_known_ones() {
    run(async {
        let node = Node::new().await;
        let sse = [("accept", "text/event-stream")];
        for (path, headers, known) in [
            ("/channels/a?before=5", &[][..], "after, limit, presence, members_after"),
            ("/channels/a?limit=5&Limit=5", &[], "limit"),
            ("/channels/a?%61fter=5", &[], "after"),
            ("/channels/a?before=5", &sse, "after, presence, heartbeat"),
            ("/channels/a?limit=5", &sse, "after, presence, heartbeat"),
            ("/events?channel=a&chanel=b", &sse, "channel, after, presence, heartbeat"),
            ("/healthz?x", &[], "takes none"),
            ("/readyz?x=1", &[], "takes none"),
            ("/metrics?x=1", &[], "takes none"),
        ] {
            let answer = crate::support::http::get(node.own, path, headers).await;
            assert_eq!((answer.status, answer.error().as_str()), (400, "bad-request"), "{path}");
            let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
            assert!(message.contains(known), "{path}: {message}");
        }
        for path in ["/channels/a?wait=true", "/publish?channel=a"] {
            let answer = node.post(path, &[], r#"{"channel":"a","event":"e","data":1}"#).await;
            assert_eq!(answer.status, 400, "{path}");
        }
        for path in ["/channels/a?before=5", "/socket?after=5"] {
            let mut socket = node.open(Way::WebSocket, path).await;
            match socket.next().await {
                Heard::Refused { code, .. } => assert_eq!(code, "bad-request", "{path}"),
                other => panic!("{path}: {other:?}"),
            }
        }
        assert_eq!(node.get("/channels/a?&limit=5&").await.status, 200);
    });
}

#[test]
fn a_server_on_loopback_answers_at_its_own_names_alone() {
    run(async {
        let builder = Airwave::from_config(config([rule("{*all}", |_| {})]));
        let node = Node::serving(builder, Airwave::standalone_router).await;
        node.listen(Way::WebSocket, "secret/name").await;
        let ask = async |path: &str, host: &str, more: &str| {
            let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n{more}\r\n");
            let (head, body) = Raw::saying(node.own, request).await.answer().await;
            (head[9..12].to_owned(), body)
        };
        let (status, body) = ask("/live/state", "localhost:8080", "").await;
        assert_eq!((status.as_str(), body.contains("secret/name")), ("200", true));
        for (host, more) in [
            ("evil.example", ""),
            ("localhost", "x-forwarded-for: 203.0.113.7\r\n"),
            ("127.0.0.1", "via: 1.1 proxy\r\n"),
            ("203.0.113.7", ""),
        ] {
            for path in ["/live/state", "/", "/channels/secret/name", "/metrics"] {
                let (status, body) = ask(path, host, more).await;
                assert_eq!(
                    (status.as_str(), body.contains("secret/name")),
                    ("403", false),
                    "{path} at {host}"
                );
                assert!(body.contains("hosts"), "{body}");
            }
        }
        assert_eq!(ask("/healthz", "evil.example", "").await.0, "200");

        let mut named = config([rule("{*all}", |_| {})]);
        named.hosts = vec!["live.example".into()];
        let node = Node::serving(Airwave::from_config(named), Airwave::standalone_router).await;
        let ask = async |path: &str, host: &str| {
            let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nx-forwarded-for: 203.0.113.7\r\n\r\n");
            Raw::saying(node.own, request).await.answer().await.0[9..12].to_owned()
        };
        assert_eq!(ask("/channels/a", "live.example").await, "200");
        assert_eq!(ask("/channels/a", "evil.example").await, "403");
        // The live page is for this machine, whatever the configuration.
        assert_eq!(ask("/live/state", "live.example").await, "403");
    });
}

/// What the rings take together stays within half of `limits.memory`, and listeners go on.
#[test]
fn rings_shrink_at_the_limit_of_memory() {
    run(async {
        let mut config = config([rule("{*all}", |rule| rule.history.events = 1000)]);
        config.limits.memory = 8 << 20;
        config.limits.heartbeat = Duration::from_secs(1);
        let node = Node::of(config).await;
        let mut listeners = Vec::new();
        for n in 0..8 {
            listeners.push(node.listen(Way::WebSocket, &format!("r/{n}")).await);
        }
        let payload = "x".repeat(10_000);
        for n in 0..8 {
            for _ in 0..100 {
                node.channel(&format!("r/{n}")).publish("n", &payload).await.unwrap();
            }
        }
        let total = || node.airwave.hub().channels(99).iter().map(|state| state.bytes).sum::<usize>();
        until("the rings shrink", || total() <= 4 << 20).await;
        node.publish("r/0", 5).await;
        loop {
            if let Heard::Event(event) = listeners[0].next().await
                && event.text() == "5"
            {
                break;
            }
        }
    });
}
