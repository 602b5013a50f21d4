//! Hostile input ends its own request or connection with the documented code, and costs no other
//! client anything (P13).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use airwave::listener::{self, Serving};
use airwave::{Airwave, Channel, Client, ConnectRequest, Handler, Identity, LeaveReason, Message, Refusal, Reply};
use serde_json::json;
use tokio::net::TcpListener;

use crate::support::raw::{Raw, frame, handshake};
use crate::support::{Dice, Heard, Listener, Node, Way, config, http, rule, run, until, within};

/// Others, who must not notice.
struct Bystanders {
    listeners: Vec<Listener>,
    said: u64,
}

impl Bystanders {
    async fn of(node: &Node) -> Self {
        let mut listeners = Vec::new();
        for way in Way::ALL {
            listeners.push(node.listen(way, "bystanders").await);
        }
        Self { listeners, said: 0 }
    }

    /// They are all still there, on the connections that they had, and hear what is said, and
    /// nothing else.
    async fn are_well(&mut self, node: &Node) {
        self.said += 1;
        node.publish("bystanders", self.said).await;
        for listener in &mut self.listeners {
            assert_eq!(listener.number().await, self.said);
        }
    }
}

/// A frame with a length that it does not have.
fn lying(first: u8, length: u64) -> Vec<u8> {
    let mut bytes = vec![first, 0x80 | 127];
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&[1, 2, 3, 4, 5]);
    bytes
}

/// A message whose end never comes.
fn fragments(count: usize) -> Vec<u8> {
    let mut bytes = frame(0x01, b"x");
    for _ in 1..count {
        bytes.extend(frame(0x00, b"x"));
    }
    bytes
}

/// What it is, its bytes, and the code with which the connection is closed.
fn malformed_frames() -> Vec<(&'static str, Vec<u8>, u16)> {
    let large = vec![b'x'; 60_000];
    vec![
        ("not masked", vec![0x81, 2, b'h', b'i'], 1002),
        ("reserved bit 1", frame(0xc1, b"{}"), 1002),
        ("reserved bit 2", frame(0xa1, b"{}"), 1002),
        ("reserved bit 3", frame(0x91, b"{}"), 1002),
        ("reserved opcode 3", frame(0x83, b"{}"), 1002),
        ("reserved opcode 15", frame(0x8f, b"{}"), 1002),
        ("a ping in fragments", frame(0x09, b"x"), 1002),
        ("a ping of 126 bytes", frame(0x89, &[b'x'; 126]), 1002),
        ("a continuation of nothing", frame(0x80, b"x"), 1002),
        (
            "a message within a message",
            [frame(0x01, b"x"), frame(0x81, b"y")].concat(),
            1002,
        ),
        ("129 fragments", fragments(129), 1009),
        ("a large frame", frame(0x82, &vec![0; 200_000]), 1009),
        ("a large frame that never comes", lying(0x82, 1 << 30), 1009),
        ("the largest length", lying(0x82, (1 << 63) - 1), 1009),
        ("a length beyond", lying(0x82, u64::MAX), 1009),
        (
            "large in fragments",
            [
                frame(0x02, &large),
                frame(0x00, &large),
                frame(0x00, &large),
                frame(0x80, &large),
            ]
            .concat(),
            1009,
        ),
        ("text that is not UTF-8", frame(0x81, b"\xff\xfe"), 1007),
        ("half a character", frame(0x81, b"\"\xe2\x82"), 1007),
        ("a surrogate", frame(0x81, b"\xed\xa0\x80"), 1007),
        (
            "not UTF-8 in fragments",
            [frame(0x01, b"\xe2"), frame(0x80, b"x")].concat(),
            1007,
        ),
        ("a close of one byte", frame(0x88, b"\x03"), 1002),
        ("a close code below 1000", frame(0x88, &999u16.to_be_bytes()), 1002),
        ("a close code that is never sent", frame(0x88, &1006u16.to_be_bytes()), 1002),
        ("401 pings at once", frame(0x89, b"").repeat(401), 4429),
        ("401 commands at once", frame(0x81, br#"{"type":"ping"}"#).repeat(401), 4429),
    ]
}

#[test]
fn malformed_frames_end_their_connection() {
    run(async {
        let node = Node::new().await;
        let mut bystanders = Bystanders::of(&node).await;
        for address in [node.own, node.axum] {
            for (what, bytes, code) in &malformed_frames() {
                let mut raw = Raw::websocket(address, "/channels/a").await;
                // The server may close before it has read all of it.
                let _ = raw.try_say(bytes).await;
                let (heard, reason) = raw.close_frame().await;
                assert_eq!(heard, *code, "{what}: {reason}");
                assert!(raw.frame().await.is_none(), "{what}: it goes on after its close");
            }
        }
        bystanders.are_well(&node).await;
        until("they are gone", || node.airwave.hub().sessions() == Way::ALL.len()).await;
    });
}

/// What is unusual and allowed.
#[test]
fn unusual_frames_are_understood() {
    run(async {
        let node = Node::new().await;
        let mut raw = Raw::websocket(node.own, "/socket").await;
        // 128 fragments, with pings in between, each byte in a packet of its own, and an empty one
        // at the end.
        let text = format!("{{\"type\":\"ping\",\"id\":7{}}}", " ".repeat(105));
        for (index, byte) in text.bytes().enumerate() {
            let opcode = if index == 0 { 0x01 } else { 0x00 };
            raw.say(frame(opcode, &[byte])).await;
            if index % 50 == 0 {
                raw.say(frame(0x89, b"are you there?")).await;
                assert_eq!(
                    raw.frame().await.map(|f| (f.opcode, f.payload)),
                    Some((10, b"are you there?".to_vec()))
                );
            }
        }
        raw.say(frame(0x80, b"")).await;
        assert_eq!(raw.frame().await.unwrap().text(), "{\"type\":\"pong\",\"id\":7}");
        // A pong without a ping, and a close with a reason, which is answered.
        raw.say(frame(0x8a, b"hello")).await;
        raw.say(frame(0x88, &[&4999u16.to_be_bytes()[..], "grüße".as_bytes()].concat()))
            .await;
        assert_eq!(raw.close_frame().await.0, 4999);
        assert!(raw.frame().await.is_none());
        // A close without a code.
        let mut raw = Raw::websocket(node.own, "/socket").await;
        raw.say(frame(0x88, b"")).await;
        assert_eq!(raw.frame().await.map(|f| (f.opcode, f.payload)), Some((8, vec![])));
        // A frame that comes together with the handshake.
        let together = [
            handshake(node.own, "/socket").into_bytes(),
            frame(0x81, br#"{"type":"ping","id":1}"#),
        ]
        .concat();
        let mut raw = Raw::saying(node.own, together).await;
        assert!(raw.head().await.starts_with("HTTP/1.1 101 "));
        assert_eq!(raw.frame().await.unwrap().text(), "{\"type\":\"pong\",\"id\":1}");
    });
}

/// The text, the number of the command that its answer names, and the code.
type NotUnderstood<T> = (T, Option<u64>, &'static str);

const NOT_UNDERSTOOD: &[NotUnderstood<&str>] = &[
    ("", None, "bad-request"),
    ("{", None, "bad-request"),
    ("null", None, "bad-request"),
    ("[]", None, "bad-request"),
    ("\"subscribe\"", None, "bad-request"),
    ("{}", None, "bad-request"),
    (r#"{"type":"ping","id":"7"}"#, None, "bad-request"),
    (r#"{"type":"ping","id":-1}"#, None, "bad-request"),
    (r#"{"type":"ping","id":1.5}"#, None, "bad-request"),
    (r#"{"type":"ping","id":9007199254740992}"#, None, "bad-request"),
    (r#"{"type":"ping","id":1,"id":2}"#, None, "bad-request"),
    (r#"{"type":"dance","id":5}"#, Some(5), "bad-request"),
    (r#"{"type":7,"id":5}"#, Some(5), "bad-request"),
    (r#"{"type":"ping","id":5,"colour":"red"}"#, Some(5), "bad-request"),
    (r#"{"type":"subscribe","id":5}"#, Some(5), "bad-request"),
    (r#"{"type":"subscribe","id":5,"channel":""}"#, Some(5), "bad-request"),
    (r#"{"type":"subscribe","id":5,"channel":"a/../b"}"#, Some(5), "bad-request"),
    (r#"{"type":"subscribe","id":5,"channel":"a\r\nb"}"#, Some(5), "bad-request"),
    (r#"{"type":"subscribe","id":5,"channel":"a\u0000"}"#, Some(5), "bad-request"),
    (
        r#"{"type":"subscribe","id":5,"channel":"a","after":{}}"#,
        Some(5),
        "bad-request",
    ),
    (r#"{"type":"unsubscribe","id":5,"channel":"a"}"#, Some(5), "bad-request"),
    (r#"{"type":"send","id":5,"channel":"a","data":1}"#, Some(5), "bad-request"),
    (r#"{"type":"send","id":5,"channel":"a","event":"e"}"#, Some(5), "bad-request"),
    (
        r#"{"type":"send","id":5,"channel":"a","event":"e","data":01}"#,
        None,
        "bad-request",
    ),
    (
        r#"{"type":"send","id":5,"channel":"a","event":"e","data":1}"#,
        Some(5),
        "forbidden",
    ),
];

fn frames_that_are_not_understood() -> Vec<NotUnderstood<String>> {
    let deep = format!("{{\"type\":\"ping\",\"id\":{}1{}}}", "[".repeat(40), "]".repeat(40));
    let deeper = "[".repeat(50_000);
    let long_name = format!(r#"{{"type":"subscribe","id":5,"channel":"{}"}}"#, "x".repeat(300));
    let too_large = format!(
        r#"{{"type":"send","id":5,"channel":"a","event":"e","text":"{}"}}"#,
        "x".repeat(70_000)
    );
    let large = [
        (deep, None, "bad-request"),
        (deeper, None, "bad-request"),
        (long_name, Some(5), "bad-request"),
        (too_large, Some(5), "too-large"),
    ];
    let small = NOT_UNDERSTOOD.iter().map(|(text, id, code)| ((*text).to_owned(), *id, *code));
    small.chain(large).collect()
}

/// Text frames that are no command: an answer, and the conversation goes on.
#[test]
fn frames_that_are_not_understood_are_answered() {
    run(async {
        let node = Node::new().await;
        let mut bystanders = Bystanders::of(&node).await;
        let mut socket = node.open(Way::WebSocket, "/socket").await;
        for (text, id, code) in frames_that_are_not_understood() {
            let shown: String = text.chars().take(80).collect();
            socket.send_message(tokio_tungstenite::tungstenite::Message::text(text)).await;
            let answer = socket.answer().await;
            assert_eq!((&answer["type"], &answer["code"]), (&json!("error"), &json!(code)), "{shown}");
            assert_eq!(answer["id"], json!(id), "{shown}");
            assert!(answer["message"].as_str().unwrap().len() > 10, "{shown}");
        }
        socket.send(json!({"type": "subscribe", "id": 8, "channel": "a"})).await;
        assert_eq!(socket.subscribed().await.id, Some(8));
        socket.send(json!({"type": "subscribe", "id": 9, "channel": "a"})).await;
        assert_eq!(socket.answer().await["code"], "bad-request");
        bystanders.are_well(&node).await;
    });
}

#[test]
fn handshakes_that_are_none() {
    run(async {
        let node = Node::new().await;
        for address in [node.own, node.axum] {
            for (from, to, status) in [
                ("version: 13", "version: 8", "426"),
                ("sec-websocket-version: 13\r\n", "", "426"),
                // What a proxy that knows no WebSockets leaves of them.
                ("upgrade: websocket\r\n", "", "426"),
                ("connection: Upgrade", "connection: close", "426"),
                ("sec-websocket-key: AAECAwQFBgcICQoLDA0ODw==\r\n", "", "400"),
                ("AAECAwQFBgcICQoLDA0ODw==", "short", "400"),
                ("AAECAwQFBgcICQoLDA0ODw==", "!!!!!!!!!!!!!!!!!!!!!!==", "400"),
                ("GET /socket", "POST /socket", "400"),
            ] {
                let request = handshake(address, "/socket").replace(from, to);
                let mut raw = Raw::saying(address, request).await;
                let (head, body) = raw.answer().await;
                assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{to}: {head}");
                assert!(body.contains("\"bad-request\""), "{body}");
                assert!(status != "426" || head.contains("sec-websocket-version: 13"), "{head}");
            }
        }
    });
}

/// The body, and a word of the answer.
fn bodies_that_are_refused() -> Vec<(Vec<u8>, &'static str)> {
    let deep = format!(r#"{{"channel":"a","data":{}1{}}}"#, "[".repeat(32), "]".repeat(32));
    let bottomless = format!(r#"{{"channel":"a","data":{}"#, "[".repeat(1_000_000));
    let name = "x".repeat(256);
    vec![
        (b"".to_vec(), "not understood"),
        (b"{".to_vec(), "line 1"),
        (b"null".to_vec(), "not understood"),
        (b"7".to_vec(), "not understood"),
        (b"\xff\xfe".to_vec(), "UTF-8"),
        (b"{\"channel\":\"a\",\"data\":\"\xff\"}".to_vec(), "UTF-8"),
        (b"\xef\xbb\xbf".to_vec(), "not understood"),
        (br#"{"channel":"a","data":"\ud800"}"#.to_vec(), "surrogate"),
        (br#"{"channel":"a","key":"\udfff","data":1}"#.to_vec(), "surrogate"),
        (br#"{"channel":"a","data":[1e400]}"#.to_vec(), "too large for a double"),
        (br#"{"data":1}"#.to_vec(), "channel"),
        (br#"{"channel":7,"data":1}"#.to_vec(), "not understood"),
        (br#"{"channel":"a","data":1,"colour":2}"#.to_vec(), "colour"),
        (br#"{"channel":"a","channel":"b","data":1}"#.to_vec(), "duplicate"),
        (br#"{"channel":"a","data":1,"text":"x"}"#.to_vec(), "exactly one"),
        (br#"{"channel":"a","base64":"not base64!"}"#.to_vec(), "base64"),
        (br#"{"channel":"a","event":"x"}"#.to_vec(), "data"),
        (br#"{"channel":"a","event":"","data":1}"#.to_vec(), "empty"),
        (br#"{"channel":"a","event":"a b","data":1}"#.to_vec(), "event name"),
        (
            br#"{"channel":"a","event":"x\ndata: forged","data":1}"#.to_vec(),
            "event name",
        ),
        (br#"{"channel":"a","event":"airwave.gap","data":1}"#.to_vec(), "reserved"),
        (br#"{"channel":"a\u0000","data":1}"#.to_vec(), "channel name"),
        (br#"{"channel":"..","data":1}"#.to_vec(), "'..'"),
        (format!(r#"{{"channel":"{name}","data":1}}"#).into_bytes(), "255"),
        (br#"{"channel":"a","data":1,"key":""}"#.to_vec(), "key"),
        (br#"{"channel":"a","data":1,"idempotency_key":"a b"}"#.to_vec(), "idempotency"),
        (br#"{"channel":"a","data":NaN}"#.to_vec(), "not understood"),
        (
            br#"{"channel":"a","data":1}{"channel":"a","data":2}"#.to_vec(),
            "not understood",
        ),
        (deep.into_bytes(), "nested"),
        (bottomless.into_bytes(), "nested"),
    ]
}

#[test]
fn bodies_that_are_not_understood() {
    run(async {
        let node = Node::new().await;
        let mut bystanders = Bystanders::of(&node).await;
        for (body, word) in bodies_that_are_refused() {
            let shown = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
            let answer = node.post("/publish", &[], body).await;
            assert_eq!((answer.status, answer.error().as_str()), (400, "bad-request"), "{shown}");
            let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
            assert!(message.contains(word), "{shown}: {message}");
            assert!(message.len() < 500, "{shown}: {message}");
        }
        for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""] {
            // What a foreign page may send without asking first.
            for path in ["/publish", "/channels/a"] {
                let body = r#"{"channel":"a","event":"e","data":1}"#;
                let answer = http::request(node.own, "POST", path, &[("content-type", kind)], body.into()).await;
                assert_eq!(
                    (answer.status, answer.error().as_str()),
                    (400, "bad-request"),
                    "{kind} {path}"
                );
            }
        }
        let kind = [("content-type", "Application/JSON; charset=utf-8")];
        let answer = http::request(node.own, "POST", "/publish", &kind, r#"{"channel":"a","data":1}"#.into()).await;
        assert_eq!(answer.status, 200);
        bystanders.are_well(&node).await;
    });
}

/// The answer arrives, though the server has not read what is too much.
#[test]
fn bodies_that_are_too_large() {
    run(async {
        let node = Node::new().await;
        let mut bystanders = Bystanders::of(&node).await;
        let one = |bytes: usize| format!(r#"{{"channel":"a","text":"{}"}}"#, "x".repeat(bytes));
        assert_eq!(node.post("/publish", &[], one(65_000)).await.status, 200);
        let answer = node.post("/publish", &[], one(66_000)).await;
        assert_eq!((answer.status, answer.error().as_str()), (413, "too-large"));
        assert!(
            answer.json()["error"]["message"]
                .as_str()
                .unwrap()
                .contains("limits.message_bytes")
        );
        let sent = node
            .post(
                "/channels/a",
                &[],
                format!(r#"{{"event":"e","text":"{}"}}"#, "x".repeat(70_000)),
            )
            .await;
        assert_eq!((sent.status, sent.error().as_str()), (413, "too-large"));
        for (path, bytes) in [("/publish", 6_000_000), ("/channels/a", 1_000_000)] {
            let body = "x".repeat(bytes);
            for chunked in [false, true] {
                let head = format!(
                    "POST {path} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\n",
                    node.own
                );
                let request = if chunked {
                    format!("{head}transfer-encoding: chunked\r\n\r\n{bytes:x}\r\n{body}\r\n0\r\n\r\n")
                } else {
                    format!("{head}content-length: {bytes}\r\n\r\n{body}")
                };
                let mut raw = Raw::saying(node.own, request).await;
                let (head, body) = raw.answer().await;
                assert!(head.starts_with("HTTP/1.1 413 "), "{path} chunked: {chunked}: {head}");
                assert!(body.contains("too-large"), "{body}");
                // A reset could have overtaken the answer: the client may finish what it says.
                assert!(raw.is_done().await, "{path} chunked: {chunked}");
                for _ in 0..10 {
                    raw.say("and more").await;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        }
        bystanders.are_well(&node).await;
    });
}

#[test]
fn heads_that_are_too_large_or_no_http() {
    run(async {
        let node = Node::new().await;
        let mut bystanders = Bystanders::of(&node).await;
        let host = node.own;
        for (request, status) in [
            (
                format!("GET /healthz HTTP/1.1\r\nhost: {host}\r\nx: {}\r\n\r\n", "x".repeat(20_000)),
                "431",
            ),
            (
                format!("GET /healthz HTTP/1.1\r\nhost: {host}\r\n{}\r\n", "x: y\r\n".repeat(10_000)),
                "431",
            ),
            (format!("GET /{} HTTP/1.1\r\nhost: {host}\r\n\r\n", "x".repeat(20_000)), "4"),
            ("GET /healthz HTTP/1.1\r\nhost : x\r\n\r\n".to_owned(), "400"),
            ("GET /healthz HTTP/1.1\r\nx\0y: z\r\n\r\n".to_owned(), "400"),
            (
                "\x16\x03\x01\x02\0\x01\0\x01\x7c\x03\x03".to_owned() + &"x".repeat(300),
                "400",
            ),
            ("hello\r\n\r\n".to_owned(), "400"),
            (
                format!("POST /publish HTTP/1.1\r\nhost: {host}\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello"),
                "400",
            ),
            (
                format!("POST /publish HTTP/1.1\r\nhost: {host}\r\ncontent-length: -1\r\n\r\n"),
                "400",
            ),
        ] {
            let mut raw = Raw::connect(host).await;
            let _ = raw.try_say(&request).await;
            let head = raw.head().await;
            let shown: String = request.chars().take(60).collect();
            assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{shown}: {head}");
        }
        // HTTP/2 that begins well and goes on badly.
        for rest in [
            &b"* HTTP/2.0\r\n\r\nSM\r\n\r\n"[..],
            b"* HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            b"xyz",
        ] {
            let mut raw = Raw::saying(host, [b"PRI ", rest].concat()).await;
            let _ = raw.try_say([0xff; 64]).await;
            raw.rest().await;
        }
        bystanders.are_well(&node).await;
    });
}

/// Bytes of no meaning, at every place where bytes can come in.
#[test]
fn noise() {
    run(async {
        let node = Node::new().await;
        let mut bystanders = Bystanders::of(&node).await;
        let mut dice = Dice::new(11);
        for round in 0..150 {
            let noise: Vec<u8> = (0..1 + dice.roll(400)).map(|_| dice.roll(256) as u8).collect();
            match round % 3 {
                0 => drop(Raw::saying(node.own, noise).await),
                1 => Raw::websocket(node.own, "/socket").await.say(noise).await,
                _ => {
                    // Well-formed frames of nonsense.
                    let mut raw = Raw::websocket(node.own, "/channels/a").await;
                    for piece in noise.chunks(40) {
                        let first = [0x81, 0x82, 0x01, 0x80, 0x89, 0x88][dice.roll(6)];
                        let _ = raw.try_say(frame(first, piece)).await;
                    }
                }
            }
        }
        bystanders.are_well(&node).await;
        until("they are gone", || node.airwave.hub().sessions() == Way::ALL.len()).await;
    });
}

/// A node with an accept loop of its own, so that its limits can be short.
async fn serve(node: &Node, change: impl FnOnce(&mut Serving)) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut serving = Serving::default();
    serving.connections = 100;
    change(&mut serving);
    let (app, hub) = (node.airwave.router(), node.airwave.hub().clone());
    tokio::spawn(listener::serve(listener, app, hub, serving, std::future::pending()));
    address
}

/// "Slowloris": heads that never end, in any state of the connection.
#[test]
fn slow_heads_are_cut() {
    run(async {
        let node = Node::new().await;
        let address = serve(&node, |serving| {
            serving.head = Duration::from_millis(300);
            serving.keep_alive = Duration::from_millis(300);
        })
        .await;
        let whole = format!("GET /healthz HTTP/1.1\r\nhost: {address}\r\n\r\n");
        for begin in [
            "",
            "P",
            "PRI",
            "PRI ",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            // With SETTINGS, and then with HEADERS that never end.
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x01\x01\0\0\0\0\x01\x02",
            "GET /channels/a HTTP/1.1\r\nhost: localhost\r\n",
            whole.as_str(),
            "\r\n",
        ] {
            let raw = Raw::saying(address, begin).await;
            let rest = within(begin, raw.rest()).await;
            let answer = String::from_utf8_lossy(&rest);
            assert_eq!(answer.contains("200 OK"), begin == whole, "{begin:?}: {answer}");
        }
        // A byte now and then does not help.
        let mut raw = Raw::connect(address).await;
        within("the slow head is cut", async {
            for byte in "GET /channels/a HTTP/1.1\r\nx: ".bytes().chain(std::iter::repeat(b'x')) {
                if raw.try_say([byte]).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        // A stream that has begun is not a head.
        let mut listener = Listener::connect(address, Way::Sse, "/channels/a", &[], None).await.unwrap();
        listener.subscribed().await;
        tokio::time::sleep(Duration::from_millis(700)).await;
        node.publish("a", 1).await;
        assert_eq!(listener.number().await, 1);
    });
}

/// A proxy keeps connections for a minute and longer: the wait for a request is not the time for
/// its head.
#[test]
fn a_connection_may_wait_longer_for_its_next_request_than_for_a_head() {
    run(async {
        let node = Node::new().await;
        let address = serve(&node, |serving| {
            serving.head = Duration::from_millis(300);
            serving.keep_alive = Duration::from_secs(600);
        })
        .await;
        let whole = format!("GET /healthz HTTP/1.1\r\nhost: {address}\r\n\r\n");
        let mut raw = Raw::connect(address).await;
        for _ in 0..3 {
            raw.say(&whole).await;
            assert_eq!(raw.answer().await.1, "ok");
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
        // The next head has its first byte, and not more time than the first one.
        raw.say("G").await;
        assert!(raw.is_done().await);
    });
}

pub async fn over_http2(
    address: SocketAddr,
) -> (
    hyper::client::conn::http2::SendRequest<http_body_util::Empty<bytes::Bytes>>,
    tokio::task::JoinHandle<hyper::Result<()>>,
) {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (executor, io) = (hyper_util::rt::TokioExecutor::new(), hyper_util::rt::TokioIo::new(stream));
    let (sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    (sender, tokio::spawn(connection))
}

pub fn get_over_http2(address: SocketAddr, path: &str) -> ::http::Request<http_body_util::Empty<bytes::Bytes>> {
    let request = ::http::Request::get(format!("http://{address}{path}")).header("accept", "text/event-stream");
    request.body(http_body_util::Empty::new()).unwrap()
}

/// It answers the server's pings, and is closed all the same; one with a stream is not.
#[test]
fn an_http2_connection_without_streams_is_closed() {
    run(async {
        let node = Node::new().await;
        let address = serve(&node, |serving| serving.keep_alive = Duration::from_millis(300)).await;
        let (mut sender, connection) = over_http2(address).await;
        let answer = sender.send_request(get_over_http2(address, "/healthz")).await.unwrap();
        assert_eq!(answer.status(), 200);
        drop(answer);
        within("the idle connection ends", connection).await.unwrap().unwrap();

        let (mut sender, connection) = over_http2(address).await;
        let stream = sender.send_request(get_over_http2(address, "/channels/a")).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert!(!connection.is_finished(), "a stream is open");
        assert_eq!(
            sender
                .send_request(get_over_http2(address, "/healthz"))
                .await
                .unwrap()
                .status(),
            200
        );
        drop(stream);
        within("the connection ends with its last stream", connection)
            .await
            .unwrap()
            .unwrap();
    });
}

/// A connection from a loopback address of one's own.
async fn from(local: [u8; 4], address: SocketAddr) -> Raw {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((local, 0))).unwrap();
    let stream = within("connect", socket.connect(address)).await.unwrap();
    Raw {
        stream,
        read: Vec::new(),
    }
}

/// One address has as many connections as it may, of whatever kind; others do not notice, and it is
/// told.
#[test]
fn one_address_does_not_take_the_places_of_others() {
    run(async {
        let node = Node::new().await;
        // None that stream, and 256 to spare for each address.
        let address = serve(&node, |serving| {
            serving.connections_per_address = 0;
            serving.head = Duration::from_secs(600);
        })
        .await;
        let mut open = Vec::new();
        for number in 0..256 {
            let mut raw = from([127, 0, 0, 1], address).await;
            raw.say(["P", "PRI ", "GET / HTTP/1.1\r\n", ""][number % 4]).await;
            open.push(raw);
        }
        let get = |path: &str, accept: &str| format!("GET {path} HTTP/1.1\r\nhost: x\r\naccept: {accept}\r\n\r\n");
        for (path, accept, status, word) in [
            ("/channels/a", "text/event-stream", "200", "retry: "),
            ("/channels/a", "application/json", "429", "too-many"),
            ("/healthz", "*/*", "200", "ok"),
            ("/readyz", "*/*", "200", "ready"),
        ] {
            let mut raw = from([127, 0, 0, 1], address).await;
            raw.say(get(path, accept)).await;
            let (head, body) = raw.answer().await;
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{path} {accept}: {head}");
            assert!(body.contains(word), "{path} {accept}: {body}");
            assert!(raw.is_done().await, "{path} {accept}");
        }
        let mut other = from([127, 0, 0, 2], address).await;
        other.say(get("/healthz", "*/*")).await;
        assert_eq!(other.answer().await.1, "ok");
        other.say(get("/channels/a", "text/event-stream")).await;
        other.through("airwave.subscribed").await;
        drop(open);
        within("there is room again", async {
            loop {
                let mut raw = from([127, 0, 0, 1], address).await;
                raw.say(get("/channels/a", "application/json")).await;
                if raw.answer().await.0.starts_with("HTTP/1.1 200 ") {
                    break;
                }
            }
        })
        .await;
    });
}

/// Beyond the cap of connections a client is told so, in a way in which an EventSource comes back.
#[test]
fn connections_beyond_the_cap_are_refused() {
    run(async {
        let node = Node::new().await;
        // None that stream, and 1024 to spare, for one address, too.
        let address = serve(&node, |serving| {
            serving.connections = 0;
            serving.head = Duration::from_secs(600);
            serving.trusts = Arc::new(|_| true);
        })
        .await;
        let mut open = Vec::new();
        for number in 0..1024 {
            // A stream whose socket was taken from hyper holds its place as well.
            open.push(match number % 100 {
                50 => Raw::websocket(address, "/socket").await,
                51 => {
                    let mut raw = Raw::saying(
                        address,
                        "GET /channels/a HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\n\r\n",
                    )
                    .await;
                    raw.through("airwave.subscribed").await;
                    raw
                }
                _ => Raw::connect(address).await,
            });
        }
        let whole = format!("GET /channels/a HTTP/1.1\r\nhost: {address}\r\n\r\n");
        let mut last = Raw::saying(address, &whole).await;
        let (head, body) = last.answer().await;
        assert!(head.starts_with("HTTP/1.1 429 ") && body.contains("too-many"), "{head}{body}");
        let stream = "GET /channels/a HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\n\r\n";
        let (head, body) = Raw::saying(address, stream).await.answer().await;
        assert!(
            head.starts_with("HTTP/1.1 200 ") && body.starts_with("retry: "),
            "{head}{body}"
        );
        let (_, body) = Raw::saying(address, whole.replace("/channels/a", "/healthz"))
            .await
            .answer()
            .await;
        assert_eq!(body, "ok");
        // Those who are in are served.
        open[0].say(&whole).await;
        assert!(open[0].head().await.starts_with("HTTP/1.1 200 "));
        drop(open);
        within("there is room again", async {
            loop {
                let mut raw = Raw::connect(address).await;
                let _ = raw.try_say(&whole).await;
                if raw.rest_begins_with("HTTP/1.1 200 ").await {
                    break;
                }
            }
        })
        .await;
    });
}

/// Panics when it is dropped, if it is armed.
pub struct Bomb(bool);

impl Drop for Bomb {
    fn drop(&mut self) {
        assert!(!self.0, "on purpose");
    }
}

/// Panics in the methods that the query names, and in messages that it does not know.
struct Broken;

fn panic_if_named(query: &str, method: &str) {
    assert!(!query.split('&').any(|part| part == method), "on purpose");
}

impl Handler for Broken {
    fn query_parameters(&self) -> &[&str] {
        &["*"]
    }

    async fn connect(&self, request: &ConnectRequest) -> Result<Identity, Refusal> {
        panic_if_named(&request.query, "connect");
        let bomb = Bomb(request.query.contains("details"));
        Ok(Identity::anonymous().with((request.query.clone(), bomb)))
    }

    async fn subscribe(&self, client: &Client, _: &Channel) -> Result<(), Refusal> {
        let (query, _) = client.details::<(String, Bomb)>().unwrap();
        let _bomb = Bomb(query.contains("drops"));
        tokio::task::yield_now().await;
        panic_if_named(query, "subscribe");
        Ok(())
    }

    async fn message(&self, _: &Client, _: &Channel, message: Message) -> Result<Reply, Refusal> {
        match message.event.as_str() {
            "calm" => Ok(Reply::done()),
            "late" => {
                tokio::task::yield_now().await;
                panic!("on purpose")
            }
            "any" => std::panic::panic_any(Bomb(true)),
            _ => panic!("on purpose"),
        }
    }

    async fn unsubscribe(&self, _: &Client, _: &Channel, _: LeaveReason) {
        panic!("on purpose")
    }
}

/// A handler that panics is answered `internal`, over every transport; its client's connection goes
/// on, and so does everybody else's.
#[test]
fn a_panic_in_a_handler_is_an_answer() {
    run(async {
        let builder = Airwave::from_config(config([rule("{*all}", |_| {})])).handle("broken/{id}", Broken);
        let node = Node::serving(builder, Airwave::router).await;
        let mut bystanders = Bystanders::of(&node).await;
        let mut panics = 0_u64;
        for query in ["connect", "subscribe", "drops"] {
            let answer = node
                .post(&format!("/channels/broken/1?{query}"), &[], r#"{"event":"calm","data":1}"#)
                .await;
            assert_eq!((answer.status, answer.error().as_str()), (500, "internal"), "{query}");
            let page = node.get(&format!("/channels/broken/1?{query}")).await;
            assert_eq!((page.status, page.error().as_str()), (500, "internal"), "{query}");
            for way in Way::ALL {
                let mut listener = node.open(way, &format!("/channels/broken/1?{query}")).await;
                assert!(matches!(listener.next().await, Heard::Refused { code, .. } if code == "internal"));
                panics += 1;
            }
            panics += 2;
        }
        for event in ["now", "late", "any"] {
            let body = json!({"event": event, "data": 1}).to_string();
            let answer = node.post("/channels/broken/1?details", &[], body).await;
            assert_eq!((answer.status, answer.error().as_str()), (500, "internal"), "{event}");
            panics += 1;
        }
        // The connection stays, and its other channels.
        let mut socket = node.open(Way::WebSocket, "/channels/broken/1?details").await;
        socket.subscribed().await;
        socket.send(json!({"type": "subscribe", "id": 1, "channel": "a"})).await;
        assert_eq!(socket.subscribed().await.id, Some(1));
        for (id, event, answered) in [
            (2, "now", "error"),
            (3, "late", "error"),
            (4, "any", "error"),
            (5, "calm", "reply"),
        ] {
            socket
                .send(json!({"type": "send", "id": id, "channel": "broken/1", "event": event, "data": 1}))
                .await;
            let answer = socket.answer().await;
            assert_eq!((&answer["id"], &answer["type"]), (&json!(id), &json!(answered)));
            assert!(answered == "reply" || answer["code"] == "internal", "{answer}");
            panics += u64::from(answered == "error");
        }
        socket
            .send(json!({"type": "unsubscribe", "id": 6, "channel": "broken/1"}))
            .await;
        assert_eq!(socket.answer().await["type"], "unsubscribed");
        panics += 1;
        node.publish("a", 7).await;
        assert_eq!(socket.number().await, 7);
        drop(socket);
        bystanders.are_well(&node).await;
        until("they are gone", || node.airwave.hub().sessions() == Way::ALL.len()).await;
        until("all are counted", || node.metric("airwave_handler_panics_total") == panics).await;
    });
}
