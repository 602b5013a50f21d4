//! How connections are used: kept, shared, pipelined, taken from hyper and given to others.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use airwave::{Airwave, Channel, Client, Handler, Refusal, server};
use axum::Router;
use axum::extract::ws::{Message, WebSocketUpgrade};
use axum::response::Response;
use axum::routing::get;
use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderValue, Request};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;

use crate::support::raw::{Raw, frame, handshake};
use crate::support::whatwg_sse::Parser;
use crate::support::{Node, Way, config, http as plain, rule, run, until, within};

fn get_json(address: SocketAddr, path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n\r\n")
}

fn get_sse(address: SocketAddr, path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: {address}\r\naccept: text/event-stream\r\n\r\n")
}

/// Reads a stream that began on this connection: its head, its confirmation, and an event that is
/// published now.
async fn listens(raw: &mut Raw, node: &Node, channel: &str) {
    let head = raw.head().await;
    assert!(head.contains("content-type: text/event-stream"), "{head}");
    let confirmation = raw.through("\n\n").await;
    assert!(confirmation.contains("event: airwave.subscribed\n"), "{confirmation}");
    let position = node.publish(channel, 7).await;
    let event = raw.through("data: 7\n\n").await;
    assert!(event.ends_with(&format!("id: {position}\nevent: n\ndata: 7\n\n")), "{event}");
}

/// The socket is taken back from a connection that has served before.
#[test]
fn a_connection_is_kept_and_then_streams() {
    run(async {
        let node = Node::new().await;
        for address in [node.own, node.axum] {
            let mut raw = Raw::connect(address).await;
            for _ in 0..3 {
                raw.say(get_json(address, "/channels/a")).await;
                let (head, body) = raw.answer().await;
                assert!(
                    head.starts_with("HTTP/1.1 200 ") && body.contains("\"cursor\""),
                    "{head}{body}"
                );
                let post = r#"{"channel":"other","data":1}"#;
                let length = post.len();
                raw.say(format!(
                    "POST /publish HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{post}"
                ))
                .await;
                assert!(raw.answer().await.1.contains("\"duplicate\":false"));
            }
            raw.say(get_sse(address, "/channels/a")).await;
            listens(&mut raw, &node, "a").await;
            let mut raw = Raw::connect(address).await;
            raw.say(get_json(address, "/healthz")).await;
            assert!(raw.answer().await.0.starts_with("HTTP/1.1 200 "));
            raw.say(handshake(address, "/socket")).await;
            assert!(raw.head().await.starts_with("HTTP/1.1 101 "));
            raw.say(frame(0x81, br#"{"type":"ping","id":1}"#)).await;
            assert_eq!(raw.frame().await.unwrap().text(), r#"{"type":"pong","id":1}"#);
        }
    });
}

/// All requests in one packet: the answers before the stream come first and are whole.
#[test]
fn requests_may_come_before_the_stream_without_waiting() {
    run(async {
        let node = Node::new().await;
        for address in [node.own, node.axum] {
            let requests = get_json(address, "/healthz") + &get_json(address, "/channels/a") + &get_sse(address, "/channels/a");
            let mut raw = Raw::saying(address, requests).await;
            assert_eq!(raw.answer().await.1, "ok");
            assert!(raw.answer().await.1.contains("\"cursor\""));
            listens(&mut raw, &node, "a").await;
            // What comes after it is not for a stream.
            let mut raw = Raw::saying(address, get_sse(address, "/channels/a") + &get_json(address, "/healthz")).await;
            listens(&mut raw, &node, "a").await;
        }
    });
}

/// An answer that the client's socket does not take yet is not torn from hyper's hands.
#[test]
fn a_large_answer_before_the_stream_arrives_whole() {
    run(async {
        // One event comes even if it is larger than a page.
        let mut config = config([rule("{*all}", |_| {})]);
        config.limits.message_bytes = 10 << 20;
        let node = Node::of(config).await;
        node.channel("large").publish("n", &"x".repeat(8_000_000)).await.unwrap();
        let wanted = plain::get(node.own, "/channels/large?limit=1000", &[]).await.body;
        assert!(wanted.len() > 8_000_000);
        for websocket in [false, true] {
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_recv_buffer_size(4096).unwrap();
            let mut raw = Raw {
                stream: socket.connect(node.own).await.unwrap(),
                read: Vec::new(),
            };
            until("the one before has gone", || node.airwave.hub().sessions() == 0).await;
            let second = if websocket {
                handshake(node.own, "/channels/a")
            } else {
                get_sse(node.own, "/channels/a")
            };
            raw.say(get_json(node.own, "/channels/large?limit=1000") + &second).await;
            let (_, body) = raw.answer().await;
            assert_eq!(body.len(), wanted.len());
            assert!(body.as_bytes() == wanted);
            if websocket {
                assert!(raw.head().await.starts_with("HTTP/1.1 101 "));
                assert!(raw.frame().await.unwrap().text().contains("\"subscribed\""));
            } else {
                listens(&mut raw, &node, "a").await;
            }
            assert_eq!(node.airwave.hub().sessions(), 1);
        }
    });
}

#[test]
fn http_1_0_gets_a_stream_as_well() {
    run(async {
        // Without a host in the request, nothing says that it was meant for this server.
        let mut config = config([rule("{*all}", |_| {})]);
        config.hosts = vec!["*".into()];
        let node = Node::of(config).await;
        for address in [node.own, node.axum] {
            let mut raw = Raw::saying(address, "GET /channels/a HTTP/1.0\r\naccept: text/event-stream\r\n\r\n").await;
            let head = raw.head().await;
            assert!(!head.contains("chunked"), "{head}");
            assert!(raw.through("\n\n").await.contains("airwave.subscribed"));
            node.publish("a", 1).await;
            raw.through("data: 1\n\n").await;
            let mut raw = Raw::saying(address, "GET /healthz HTTP/1.0\r\n\r\n").await;
            assert_eq!(raw.answer().await.1, "ok");
            assert!(raw.is_done().await);
        }
    });
}

/// Many streams share one HTTP/2 connection, and each ends on its own.
#[test]
fn many_streams_over_one_http2_connection() {
    run(async {
        let node = Node::new().await;
        let stream = TcpStream::connect(node.own).await.unwrap();
        let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        let open = |path: String| {
            let mut sender = sender.clone();
            let request = Request::get(format!("http://{}{path}", node.own)).header("accept", "text/event-stream");
            async move {
                sender
                    .send_request(request.body(Empty::<Bytes>::new()).unwrap())
                    .await
                    .unwrap()
                    .into_body()
            }
        };
        let mut streams = Vec::new();
        for number in 0..100 {
            streams.push((
                number,
                Parser::new(),
                within("a stream opens", open(format!("/channels/a/{number}"))).await,
            ));
        }
        for number in 0..100 {
            node.publish(&format!("a/{number}"), number).await;
        }
        for (number, parser, body) in &mut streams {
            let mut events = Vec::new();
            while events.len() < 2 {
                let piece = within("an event", body.frame()).await.unwrap().unwrap().into_data().unwrap();
                events.extend(parser.feed(&piece));
            }
            assert_eq!(events[1].data, number.to_string());
        }
        streams.truncate(40);
        until("sixty have ended", || node.airwave.hub().sessions() == 40).await;
        // A plain request goes over the same connection.
        let request = Request::get(format!("http://{}/healthz", node.own))
            .body(Empty::new())
            .unwrap();
        assert_eq!(sender.clone().send_request(request).await.unwrap().status(), 200);
    });
}

/// RFC 8441: a browser that speaks HTTP/2 may open its WebSocket within that connection.
#[test]
fn a_websocket_over_http2() {
    run(async {
        let node = Node::new().await;
        let stream = TcpStream::connect(node.own).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        // The server says in its first frame that it knows CONNECT with a protocol; this answer
        // comes after it.
        let first = Request::get(format!("http://{}/healthz", node.own))
            .body(Empty::new())
            .unwrap();
        assert_eq!(sender.send_request(first).await.unwrap().status(), 200);
        let request = Request::builder()
            .method("CONNECT")
            .uri(format!("http://{}/channels/a", node.own))
            .header("sec-websocket-version", "13")
            .extension(hyper::ext::Protocol::from_static("websocket"))
            .body(Empty::<Bytes>::new())
            .unwrap();
        let response = within("the upgrade", sender.send_request(request)).await.unwrap();
        assert_eq!(response.status(), 200);
        let upgraded = within("the upgrade", hyper::upgrade::on(response)).await.unwrap();
        let role = tokio_tungstenite::tungstenite::protocol::Role::Client;
        let mut socket = tokio_tungstenite::WebSocketStream::from_raw_socket(TokioIo::new(upgraded), role, None).await;
        let mut next = async || within("a frame", socket.next()).await.unwrap().unwrap().into_text().unwrap();
        assert!(next().await.contains("\"subscribed\""));
        let position = node.publish("a", 7).await;
        let wanted = json!({"channel": "a", "id": position, "event": "n", "data": 7});
        assert_eq!(serde_json::from_str::<serde_json::Value>(&next().await).unwrap(), wanted);
    });
}

async fn echo(upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(|mut socket| async move {
        while let Some(Ok(message)) = socket.next().await {
            if matches!(message, Message::Text(_)) && socket.send(message).await.is_err() {
                return;
            }
        }
    })
}

/// An application's own routes, streams and WebSockets go through our accept loop untouched, and
/// its middleware sees ours.
#[test]
fn an_application_has_its_own_beside_ours() {
    run(async {
        let app = |airwave: &Airwave| {
            Router::new()
                .route("/mine", get(|| async { "mine" }))
                .route("/echo", get(echo))
                .nest("/realtime", airwave.router())
                .layer(axum::middleware::map_response(|mut response: Response| async move {
                    response.headers_mut().insert("x-app", HeaderValue::from_static("yes"));
                    response
                }))
        };
        let node = Node::serving(Airwave::from_config(config([rule("{*all}", |_| {})])), app).await;
        for address in [node.own, node.axum] {
            let answer = plain::get(address, "/mine", &[]).await;
            assert_eq!((&answer.body[..], answer.header("x-app")), (&b"mine"[..], Some("yes")));
            let mut raw = Raw::websocket(address, "/echo").await;
            for text in ["hello", "again"] {
                raw.say(frame(0x81, text.as_bytes())).await;
                assert_eq!(raw.frame().await.unwrap().text(), text);
            }
            // Taken from hyper or not, the head is what the application made of it.
            let mut raw = Raw::saying(address, get_sse(address, "/realtime/channels/a")).await;
            assert!(raw.head().await.contains("x-app: yes\r\n"));
            let mut raw = Raw::saying(address, handshake(address, "/realtime/channels/a")).await;
            assert!(raw.head().await.contains("x-app: yes\r\n"));
            assert!(raw.frame().await.unwrap().text().contains("\"subscribed\""));
            assert_eq!(plain::get(address, "/channels/a", &[]).await.status, 404);
        }
        for way in Way::ALL {
            let mut listener = node.open(way, "/realtime/channels/b").await;
            listener.subscribed().await;
            node.publish("b", 1).await;
            assert_eq!(listener.number().await, 1);
        }
    });
}

/// Who the client is, where a proxy that is trusted says so, and nowhere else.
#[test]
fn the_clients_address_is_the_proxys_word_only_where_it_is_trusted() {
    #[derive(Clone, Default)]
    struct Peers(Arc<Mutex<Vec<String>>>);

    impl Handler for Peers {
        async fn subscribe(&self, client: &Client, _: &Channel) -> Result<(), Refusal> {
            self.0.lock().unwrap().push(client.peer.unwrap().to_string());
            Ok(())
        }
    }

    run(async {
        for trusted in [false, true] {
            let peers = Peers::default();
            let mut config = config([rule("{*all}", |_| {})]);
            config.limits.connections_per_address = 1;
            config.hosts = vec!["*".into()];
            if trusted {
                let network = airwave::config::Network::new("127.0.0.0".parse().unwrap(), Some(8));
                config.trusted_proxies = vec![network.unwrap()];
            }
            let node = Node::serving(Airwave::from_config(config).handle("{*all}", peers.clone()), Airwave::router).await;
            let mut open = Vec::new();
            for (way, client) in [
                (Way::Sse, "203.0.113.1:51234"),
                (Way::WebSocket, "203.0.113.2"),
                (Way::SseOverHttp2, "[2001:db8::1]:4711"),
            ] {
                let list = format!("192.0.2.9, {client}, 127.0.0.7:80");
                let listener = node.try_open(way, "/channels/a", &[("x-forwarded-for", &list)]).await;
                let mut listener = listener.unwrap();
                listener.next().await;
                open.push(listener);
            }
            let seen = peers.0.lock().unwrap().clone();
            if trusted {
                assert_eq!(seen, ["203.0.113.1", "203.0.113.2", "2001:db8::1"]);
            } else {
                // All three are one address, which may have one connection.
                assert_eq!(seen, ["127.0.0.1"]);
            }
        }
    });
}

/// The page that shows the channels is for developers: on loopback, or where it was asked for, and
/// never inside an application.
#[test]
fn the_live_page_is_served_only_where_it_should_be() {
    run(async {
        let serve = async |change: &dyn Fn(&mut airwave::Config)| {
            let mut config = config([rule("{*all}", |_| {})]);
            change(&mut config);
            let (ready, address) = oneshot::channel();
            tokio::spawn(server::run(config, std::future::pending(), |address| {
                ready.send(address).unwrap()
            }));
            let port = within("it listens", address).await.unwrap().port();
            SocketAddr::from(([127, 0, 0, 1], port))
        };
        let shown = async |address| plain::get(address, "/", &[]).await.status == 200;
        assert!(shown(serve(&|_| {}).await).await);
        assert!(!shown(serve(&|config| config.live_page = false).await).await);
        let node = Node::new().await;
        assert!(!shown(node.own).await);
        assert_eq!(node.get("/live/state").await.status, 404);
        let address = serve(&|_| {}).await;
        let page = plain::get(address, "/", &[]).await;
        assert!(page.header("content-security-policy").unwrap().contains("default-src 'none'"));
        assert_eq!(plain::get(address, "/live/state", &[]).await.json()["channels"], json!([]));
    });
}

/// The kernel holds a storm of clients until they are accepted. One that finds no room waits a
/// second for its next try, and here for ever.
#[test]
fn a_storm_of_clients_finds_room_in_the_backlog() {
    run(async {
        let allowed = std::fs::read_to_string("/proc/sys/net/core/somaxconn").map_or(0, |text| text.trim().parse().unwrap());
        if allowed < 1024 {
            eprintln!("skipped: the kernel allows a backlog of {allowed} only");
            return;
        }
        // Never accepted.
        let listener = airwave::listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let storm = (0..1000).map(|_| within("a client of the storm connects", TcpStream::connect(address)));
        let connected = futures_util::future::join_all(storm).await;
        assert!(connected.iter().all(Result::is_ok));
    });
}

/// A page of a TLS site behind a proxy, as the proxy tells it.
#[test]
fn a_trusted_proxy_tells_the_scheme_that_an_origin_is_compared_with() {
    run(async {
        for (header, told, trusted, http_page, https_page) in [
            ("x-forwarded-for", ("x-forwarded-proto", "https"), true, 403, 200),
            ("x-forwarded-for", ("x-forwarded-proto", "http"), true, 200, 403),
            ("x-forwarded-for", ("x-forwarded-proto", "https"), false, 200, 200),
            ("x-forwarded-for", ("x-other", "https"), true, 200, 200),
            ("forwarded", ("forwarded", "for=203.0.113.7;proto=https"), true, 403, 200),
            ("forwarded", ("x-forwarded-proto", "https"), true, 200, 200),
        ] {
            let file = format!(
                "listen = \"127.0.0.1:0\"\nhosts = [\"live.example\"]\nclient_ip_header = \"{header}\"\n{}[publish]\nopen = true\n[[channels]]\nmatch = \"{{*all}}\"\ntransport = [\"sse\"]\n",
                if trusted { "trusted_proxies = [\"127.0.0.1\"]\n" } else { "" }
            );
            let config = airwave::Config::load(&airwave::config::Sources::of_file("airwave.toml", file)).unwrap();
            let node = Node::of(config).await;
            for (origin, status) in [("http://live.example", http_page), ("https://live.example", https_page)] {
                let request = format!(
                    "GET /channels/a HTTP/1.1\r\nhost: live.example\r\norigin: {origin}\r\n{}: {}\r\n\r\n",
                    told.0, told.1
                );
                let (head, _) = Raw::saying(node.own, request).await.answer().await;
                assert!(
                    head.starts_with(&format!("HTTP/1.1 {status} ")),
                    "{header} {told:?} trusted: {trusted} {origin}: {head}"
                );
            }
        }
    });
}
