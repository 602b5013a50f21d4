//! Heads, bodies and names at the edges of HTTP.

use std::net::SocketAddr;

use airwave::rule::SendPolicy;
use airwave::{Airwave, Data, Handler};
use serde_json::{Value, json};

use crate::support::raw::{Raw, frame, handshake};
use crate::support::{Heard, Node, Way, each_way, http, rule, run};

const JSON: (&str, &str) = ("content-type", "application/json");

/// A node whose clients publish to each other.
async fn open_node() -> Node {
    Node::of_rule("{*all}", |rule| rule.send = SendPolicy::Publish).await
}

#[test]
fn what_a_client_prefers_is_what_it_gets() {
    run(async {
        let node = Node::new().await;
        for address in [node.own, node.axum] {
            for (accept, kind) in [
                ("text/event-stream;q=0.1, application/json", "application/json"),
                ("text/event-stream;q=0, */*", "application/json"),
                ("*/*", "application/json"),
                ("application/json, text/event-stream;q=0.9", "application/json"),
                ("text/event-stream, application/json;q=0.9", "text/event-stream"),
                ("text/event-stream;q=0.2, */*;q=0.1", "text/event-stream"),
                ("application/json;q=0.1, text/*;q=0.2", "text/event-stream"),
            ] {
                let answer = http::request(address, "HEAD", "/channels/a", &[("accept", accept)], "".into()).await;
                assert_eq!((answer.status, answer.header("content-type")), (200, Some(kind)), "{accept}");
            }
        }
    });
}

#[test]
fn an_optional_field_that_is_null_is_absent() {
    run(async {
        let node = open_node().await;
        for (body, published) in [
            (r#"{"channel":"a","data":1,"end":null}"#, "1"),
            (
                r#"{"channel":"a","data":2,"event":null,"key":null,"text":null,"base64":null}"#,
                "2",
            ),
            (r#"{"channel":"a","text":"3","data":null,"idempotency_key":null}"#, "3"),
            (r#"{"channel":"a","data":null,"end":false}"#, "null"),
        ] {
            let answer = node.post("/publish", &[], body).await;
            assert_eq!(answer.status, 200, "{body}: {answer:?}");
            let page = node.channel("a").history(None, 1).await.unwrap();
            assert_eq!(page.events[0].message.data.as_bytes(), published.as_bytes(), "{body}");
            assert!(!page.ended);
        }
        let sent = r#"{"event":"e","text":"x","data":null,"base64":null,"key":null}"#;
        assert_eq!(node.post("/channels/a", &[], sent).await.status, 200);
        for way in [Way::WebSocket, Way::WebSocketBehindAxum] {
            let mut socket = node.open(way, "/socket").await;
            let nothing = json!({"type": "subscribe", "channel": "b", "id": null, "after": null, "presence": null, "event": null,
                "data": null, "text": null, "base64": null, "key": null, "idempotency_key": null});
            socket.send(nothing).await;
            assert!(!socket.subscribed().await.resumed);
            socket
                .send(
                    json!({"type": "send", "id": null, "channel": "b", "event": "e", "data": null, "text": "x", "after": null,
                "presence": null, "base64": null, "key": null, "idempotency_key": null}),
                )
                .await;
            assert_eq!(socket.event().await.text(), "x");
            socket.send(json!({"type": "ping", "id": null, "channel": null})).await;
            socket
                .send(json!({"type": "unsubscribe", "id": 2, "channel": "b", "after": null}))
                .await;
            let mut answers = Vec::new();
            while answers.len() < 2 {
                answers.push(socket.answer().await["type"].clone());
            }
            assert_eq!(answers, ["pong", "unsubscribed"]);
        }
    });
}

#[test]
fn a_byte_order_mark_before_json_is_skipped() {
    run(async {
        let node = open_node().await;
        for address in [node.own, node.axum] {
            for (path, body, status) in [
                ("/publish", r#"{"channel":"a","data":1}"#, 200),
                ("/publish", r#" [{"channel":"a","data":1},{"channel":"b","data":1}]"#, 200),
                ("/channels/a", r#"{"event":"e","data":1}"#, 200),
                ("/publish", "\u{feff}{}", 400),
                ("/publish", "", 400),
            ] {
                let marked = format!("\u{feff}{body}");
                let answer = http::request(address, "POST", path, &[JSON], marked.into()).await;
                assert_eq!(answer.status, status, "{path} {body}: {answer:?}");
            }
        }
        let mut socket = Raw::websocket(node.own, "/socket").await;
        socket
            .say(frame(0x81, "\u{feff}{\"type\":\"ping\",\"id\":1}".as_bytes()))
            .await;
        assert_eq!(socket.frame().await.unwrap().text(), r#"{"type":"pong","id":1}"#);
        socket.say(frame(0x81, "\u{feff}{\"type\":7,\"id\":2}".as_bytes())).await;
        assert!(socket.frame().await.unwrap().text().contains("\"id\":2"));
    });
}

#[test]
fn a_coded_body_is_an_unsupported_media_type() {
    run(async {
        let node = open_node().await;
        let body = r#"{"channel":"a","event":"e","data":1}"#;
        for address in [node.own, node.axum] {
            for path in ["/publish", "/channels/a"] {
                for coding in ["gzip", "GZIP", "br", "identity, gzip", "deflate,identity", "x"] {
                    let headers = [JSON, ("content-encoding", coding)];
                    let answer = http::request(address, "POST", path, &headers, body.into()).await;
                    assert_eq!((answer.status, answer.error().as_str()), (415, "bad-request"), "{coding}");
                    assert_eq!(answer.header("accept-encoding"), Some("identity"));
                    assert!(
                        answer.json()["error"]["message"]
                            .as_str()
                            .unwrap()
                            .contains("Content-Encoding")
                    );
                }
                let twice = [JSON, ("content-encoding", "identity"), ("content-encoding", "gzip")];
                assert_eq!(http::request(address, "POST", path, &twice, body.into()).await.status, 415);
            }
            for coding in ["identity", "Identity", ""] {
                let headers = [JSON, ("content-encoding", coding)];
                let answer = http::request(address, "POST", "/publish", &headers, r#"{"channel":"a","data":1}"#.into()).await;
                assert_eq!(answer.status, 200, "{coding}");
            }
        }
    });
}

/// Strict readers of JSON fail on it, so no listener is ever sent one.
#[test]
fn half_a_surrogate_pair_is_refused_wherever_a_client_says_it() {
    run(async {
        let node = open_node().await;
        for data in [
            r#""\ud800""#,
            r#"{"\uDC00":1}"#,
            r#"["\ud83d","\ude00"]"#,
            r#""\ud83d\u0020""#,
        ] {
            for (path, body) in [
                ("/publish", format!(r#"{{"channel":"a","data":{data}}}"#)),
                ("/channels/a", format!(r#"{{"event":"e","data":{data}}}"#)),
            ] {
                let answer = node.post(path, &[], body.clone()).await;
                assert_eq!((answer.status, answer.error().as_str()), (400, "bad-request"), "{body}");
            }
            let body = format!(r#"[{{"channel":"a","data":1}},{{"channel":"a","data":{data}}}]"#);
            let answer = node.post("/publish", &[], body).await;
            assert_eq!(answer.status, 207);
            assert_eq!(answer.json()[1]["error"]["code"], "bad-request");
            let mut socket = Raw::websocket(node.own, "/channels/b").await;
            assert!(socket.frame().await.unwrap().text().contains("subscribed"));
            let send = format!(r#"{{"type":"send","id":3,"channel":"b","event":"e","data":{data}}}"#);
            socket.say(frame(0x81, send.as_bytes())).await;
            let answer: Value = serde_json::from_str(&socket.frame().await.unwrap().text()).unwrap();
            assert_eq!((&answer["code"], &answer["id"]), (&json!("bad-request"), &json!(3)));
        }
        for field in ["text", "event", "key", "channel", "idempotency_key", "base64"] {
            let mut body = json!({"channel": "a", "event": "e", "text": "x"});
            body[field] = json!("HALF");
            let body = body.to_string().replace("HALF", "\\ud800");
            let answer = node.post("/publish", &[], body.clone()).await;
            assert_eq!((answer.status, answer.error().as_str()), (400, "bad-request"), "{body}");
        }
        let whole = r#"{"channel":"c","data":"\ud83d\ude00 \\ud800"}"#;
        assert_eq!(node.post("/publish", &[], whole).await.status, 200);
        let page = node.get("/channels/c").await.json();
        assert_eq!(page["events"][0]["data"], "😀 \\ud800");
    });
}

#[test]
fn names_that_an_eventsource_fires_itself_are_refused_from_clients() {
    /// Says what it hears back under the same name.
    struct Echo;

    impl Handler for Echo {
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

    run(async {
        let config = crate::support::config([rule("{*all}", |rule| rule.send = SendPolicy::Publish)]);
        let node = Node::serving(Airwave::from_config(config).handle("echo", Echo), Airwave::router).await;
        for channel in ["a", "echo"] {
            for way in [Way::WebSocket, Way::WebSocketBehindAxum] {
                let mut socket = node.listen(way, channel).await;
                for name in ["error", "open", "airwave.gap"] {
                    let body = json!({"event": name, "data": 1});
                    let answer = node.post(&format!("/channels/{channel}"), &[], body.to_string()).await;
                    assert_eq!((answer.status, answer.error().as_str()), (400, "bad-request"), "{name}");
                    socket
                        .send(json!({"type": "send", "id": 1, "channel": channel, "event": name, "data": 1}))
                        .await;
                    let Heard::Refused { code, whole } = socket.next().await else {
                        panic!("{name} is taken")
                    };
                    assert_eq!((code.as_str(), &whole["id"]), ("bad-request", &json!(1)));
                }
                for name in ["message", "Error", "opened"] {
                    socket
                        .send(json!({"type": "send", "channel": channel, "event": name, "data": 1}))
                        .await;
                    assert_eq!(socket.event().await.name, name);
                }
            }
            let mut raw = Raw::websocket(node.own, &format!("/channels/{channel}")).await;
            raw.frame().await.unwrap();
            let binary = [
                &b"\x01"[..],
                &[channel.len() as u8],
                channel.as_bytes(),
                b"\x05error",
                &[0; 8],
                b"x",
            ]
            .concat();
            raw.say(frame(0x82, &binary)).await;
            assert!(raw.frame().await.unwrap().text().contains("bad-request"));
        }
        // A backend is warned, and believed.
        for name in ["error", "open"] {
            let body = json!({"channel": "a", "event": name, "data": 1}).to_string();
            assert_eq!(node.post("/publish", &[], body).await.status, 200);
        }
    });
}

each_way!(a_header_that_means_one_thing_is_given_once);

async fn a_header_that_means_one_thing_is_given_once(way: Way) {
    let node = open_node().await;
    let address = match way {
        Way::SseBehindAxum | Way::WebSocketBehindAxum => node.axum,
        _ => node.own,
    };
    let twice = |name: &'static str, value: &'static str| [JSON, (name, value), (name, value)];
    for (path, body) in [
        ("/publish", r#"{"channel":"a","data":1}"#),
        ("/channels/a", r#"{"event":"e","data":1}"#),
    ] {
        for headers in [&twice("idempotency-key", "k")[..], &[JSON, JSON]] {
            let answer = http::request(address, "POST", path, headers, body.into()).await;
            assert_eq!((answer.status, answer.error().as_str()), (400, "bad-request"), "{headers:?}");
        }
        let origins = twice("origin", "http://a.example");
        assert_eq!(http::request(address, "POST", path, &origins, body.into()).await.status, 403);
    }
    assert!(node.channel("a").history(None, 9).await.unwrap().events.is_empty());
    for header in ["sec-websocket-key: AAECAwQFBgcICQoLDA0ODw==", "sec-websocket-version: 13"] {
        let request = handshake(address, "/socket").replace("\r\n\r\n", &format!("\r\n{header}\r\n\r\n"));
        let (head, _) = Raw::saying(address, request).await.answer().await;
        assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
    }
    if !way.is_sse() {
        return;
    }
    // A cursor that cannot be read is no reason to refuse an EventSource for ever: it is told of a
    // gap.
    node.publish("a", 1).await;
    let cursors = [("last-event-id", "1"), ("last-event-id", "2")];
    let mut listener = node.try_open(way, "/channels/a", &cursors).await.unwrap();
    assert!(!listener.subscribed().await.resumed);
    assert!(matches!(listener.next().await, Heard::Gap { .. }));
}

#[test]
fn an_application_cannot_publish_half_a_surrogate_pair_either() {
    run(async {
        let node = Node::new().await;
        let raw: Box<serde_json::value::RawValue> = serde_json::from_str(r#""\ud800""#).unwrap();
        assert_eq!(
            node.channel("a").publish("e", &raw).await.unwrap_err().code,
            airwave::Code::BadRequest
        );
        assert!(Data::json_text(r#""\ud800""#).is_err());
    });
}

/// A path whose requests are answered at once.
const PATH: &str = "/channels/a";
/// A body in which lines end as they like.
const BODY: &str = "{\"channel\":\"b\",\n\"data\":1\n}\n";

/// Sends the head, sees the status of the answer, and gives the connection.
async fn answered(address: SocketAddr, head: &str, status: u16) -> Raw {
    let mut raw = Raw::saying(address, head).await;
    let (answer, _) = raw.answer().await;
    // The version is that of the request.
    assert!(
        answer.starts_with("HTTP/1.") && answer[8..].starts_with(&format!(" {status} ")),
        "{head:?}: {answer}"
    );
    raw
}

fn get() -> String {
    format!("GET {PATH} HTTP/1.1\r\nhost: a\r\n\r\n")
}

fn post(framing: &str, body: &str) -> String {
    format!("POST /publish HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n{framing}\r\n\r\n{body}")
}

fn post_with_length() -> String {
    post(&format!("content-length: {}", BODY.len()), BODY)
}

fn post_in_chunks() -> String {
    let chunked = format!("{:x}\r\n{BODY}\r\n0\r\n\r\n", BODY.len());
    post("transfer-encoding: chunked", &chunked)
}

async fn exactly_one_host_is_asked_for(address: SocketAddr) {
    for hosts in [
        "",
        "host: a\r\nhost: a\r\n",
        "host: a\r\nHost: b\r\n",
        "host: a b\r\n",
        "host: a@b\r\n",
    ] {
        for accept in ["", "accept: text/event-stream\r\n"] {
            answered(address, &format!("GET {PATH} HTTP/1.1\r\n{hosts}{accept}\r\n"), 400).await;
        }
    }
    answered(address, &format!("GET {PATH} HTTP/1.0\r\nhost: a\r\nhost: a\r\n\r\n"), 400).await;
    answered(address, &format!("GET http://a{PATH} HTTP/1.1\r\n\r\n"), 400).await;
    let upgrade = handshake(address, PATH).replace(&format!("host: {address}\r\n"), "");
    answered(address, &upgrade, 400).await;
    for good in [
        format!("GET {PATH} HTTP/1.1\r\nHOST:a\r\n\r\n"),
        format!("GET {PATH} HTTP/1.0\r\n\r\n"),
        format!("GET {PATH} HTTP/1.0\r\nhost: a\r\n\r\n"),
        format!("\r\nGET {PATH} HTTP/1.1\r\nhost: a\r\n\r\n"),
    ] {
        answered(address, &good, 200).await;
    }
}

async fn bare_line_feeds_are_refused(address: SocketAddr) {
    let get = get();
    let bare = [
        get.replace("\r\n", "\n"),
        get.replacen("\r\n", "\n", 1),
        get.replace("a\r\n\r\n", "a\n\r\n"),
        get.replace("a\r\n\r\n", "a\r\n\n"),
        get.replace("host", "x: y\nhost"),
        get.replace("host: a", "host: a\r\nx: y\n z"),
        format!("\n{get}"),
        get.replace(" HTTP/1.1\r\n", " HTTP/1.1\r\naccept: text/event-stream\n"),
        handshake(address, PATH).replace("\r\nupgrade", "\nupgrade"),
    ];
    for head in &bare {
        answered(address, head, 400).await;
        // Later on a connection as well, and behind bodies in which a line may end as it likes.
        for before in [get.clone(), post_with_length(), post_in_chunks()] {
            let mut raw = answered(address, &before, 200).await;
            raw.say(head).await;
            let (answer, _) = raw.answer().await;
            assert!(answer.starts_with("HTTP/1.1 400 "), "{before:?} {head:?}: {answer}");
            if before.starts_with("GET") || before.contains("content-length") {
                let mut raw = answered(address, &format!("{before}{head}"), 200).await;
                let (answer, _) = raw.answer().await;
                assert!(answer.starts_with("HTTP/1.1 400 "), "together: {before:?} {head:?}: {answer}");
            }
        }
    }
}

/// What is whole goes on: pipelined, and byte by byte.
async fn whole_requests_are_answered(address: SocketAddr) {
    let get = get();
    let requests = [
        post_with_length(),
        get.clone(),
        post_in_chunks(),
        get.clone(),
        get.replace("host: a", "host: a\r\nupgrade: h2c\r\nconnection: upgrade"),
        get,
    ];
    let mut raw = Raw::saying(address, requests.concat()).await;
    for request in &requests {
        let (answer, _) = raw.answer().await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{request:?}: {answer}");
    }
    let mut raw = Raw::connect(address).await;
    for byte in requests.concat().bytes() {
        raw.say([byte]).await;
    }
    for request in &requests {
        let (answer, _) = raw.answer().await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{request:?}: {answer}");
    }
}

async fn frames_together_with_their_handshake_are_answered(address: SocketAddr) {
    let early = [
        handshake(address, PATH).as_bytes(),
        &frame(0x81, b"{\"type\":\"ping\",\n\n\"id\":10}\n"),
    ]
    .concat();
    let mut raw = Raw::saying(address, early).await;
    assert!(raw.head().await.starts_with("HTTP/1.1 101 "));
    // In either order.
    let mut frames = [raw.frame().await.unwrap().text(), raw.frame().await.unwrap().text()];
    frames.sort_unstable_by_key(|frame| !frame.contains("pong"));
    assert_eq!(frames[0], r#"{"type":"pong","id":10}"#);
    assert!(frames[1].contains("subscribed"), "{frames:?}");
}

/// RFC 9112, sections 2.2, 3.2 and 6.1.
#[test]
fn heads_that_servers_may_understand_differently_are_refused() {
    run(async {
        // Not the name of the server is the matter here.
        let mut config = crate::support::config([rule("{*all}", |_| {})]);
        config.hosts = vec!["*".into()];
        let node = Node::of(config).await;
        for address in [node.own, node.axum] {
            exactly_one_host_is_asked_for(address).await;
        }
        let mut raw = answered(node.own, &post("transfer-encoding: gzip, chunked", "0\r\n\r\n"), 501).await;
        assert!(raw.is_done().await);
        bare_line_feeds_are_refused(node.own).await;
        assert_eq!(node.airwave.hub().sessions(), 0);
        whole_requests_are_answered(node.own).await;
        frames_together_with_their_handshake_are_answered(node.own).await;
    });
}

/// A browser's EventSource comes back with the same URL and one more header. A 431 is final for it.
#[test]
fn a_stream_of_many_channels_can_come_back_or_is_refused_at_once() {
    run(async {
        let mut config = crate::support::config([rule("{*all}", |_| {})]);
        config.limits.channels_per_connection = 1000;
        let node = Node::of(config).await;
        let (mut came_back, mut refused) = (0, 0);
        for (count, length) in [
            (2, 9),
            (100, 9),
            (100, 80),
            (100, 140),
            (300, 9),
            (500, 9),
            (600, 20),
            (700, 9),
        ] {
            let names: Vec<String> = (0..count).map(|n| format!("{:0>length$}", format!("c{n}"))).collect();
            let path = format!("/events?channel={}", names.join("&channel="));
            for way in [Way::Sse, Way::SseBehindAxum, Way::SseOverHttp2] {
                let mut listener = match node.try_open(way, &path, &[]).await {
                    Ok(listener) => listener,
                    Err(answer) if answer.status == 400 => {
                        assert_eq!(answer.error(), "bad-request");
                        assert!(answer.json()["error"]["message"].as_str().unwrap().contains("fewer channels"));
                        refused += 1;
                        continue;
                    }
                    // The request itself is too large.
                    Err(answer) => {
                        assert_eq!(answer.status, 431, "{way:?} {count} {length}");
                        continue;
                    }
                };
                for _ in &names {
                    listener.subscribed().await;
                }
                // Every channel at a place of its own.
                for name in &names {
                    node.publish(name, 1).await;
                    listener.event().await;
                }
                let cursor = listener.cursor().to_owned();
                assert!(count > 100 || cursor.len() < 1000, "{count}: {} bytes", cursor.len());
                drop(listener);
                node.publish(&names[1], 2).await;
                let mut again = node.try_open(way, &path, &[("last-event-id", &cursor)]).await.unwrap();
                for _ in &names {
                    assert!(again.subscribed().await.resumed, "{way:?} {count} {length}");
                }
                let missed = again.event().await;
                assert_eq!((missed.channel.as_str(), missed.number()), (names[1].as_str(), 2));
                came_back += 1;
            }
        }
        assert!(
            came_back >= 12 && refused >= 3,
            "{came_back} came back, {refused} were refused"
        );
    });
}
