//! Every refusal has its documented form on every transport, names what to do, and costs no other
//! client anything.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use airwave::broker::{BrokerStats, follow_and_replay};
use airwave::brokers::memory::Memory;
use airwave::config::{AllowedOrigins, Secret};
use airwave::rule::TransportName;
use airwave::{
    Airwave, Append, Broker, Channel, ChannelName, Client, Code, Handler, Message, Position, Published, Refusal, Replay, Reply,
};
use airwave::{BrokerError, Feed, PageLimit};
use axum::Router;
use serde_json::json;

use crate::support::{Answer, Heard, Listener, Node, Way, config, each_way, http, rule, within};

each_way!(
    every_code_has_its_form,
    another_transport_is_named_with_its_url,
    another_transport_is_named_for_a_channel_among_several,
    names_that_are_none,
    foreign_pages_are_kept_out,
    listed_pages_are_let_in,
    all_pages_are_let_in,
    too_many_connections,
    a_broker_that_is_gone,
);

/// What a client of this way is told when it may not listen.
async fn refusal(node: &Node, way: Way, path: &str) -> Refused {
    match node.try_open(way, path, &[]).await {
        Err(answer) => Refused::of(answer),
        Ok(mut listener) => told(&mut listener).await,
    }
}

#[derive(Debug)]
struct Refused {
    code: String,
    /// The whole error object.
    error: serde_json::Value,
    /// HTTP.
    status: Option<u16>,
    /// WebSocket.
    close: Option<u16>,
    /// SSE that is to come back.
    retry: Option<u64>,
}

impl Refused {
    fn of(answer: Answer) -> Self {
        Self {
            code: answer.error(),
            error: answer.json()["error"].clone(),
            status: Some(answer.status),
            close: None,
            retry: None,
        }
    }
}

/// A stream of one error block, or an error frame and a close frame.
async fn told(listener: &mut Listener) -> Refused {
    let Heard::Refused { code, whole } = listener.next().await else {
        panic!("not a refusal")
    };
    let Heard::Closed {
        retry,
        code: close,
        reason,
    } = listener.next().await
    else {
        panic!("it goes on after {code}")
    };
    if close.is_some() {
        assert_eq!(reason, code);
    }
    Refused {
        code,
        error: whole,
        status: None,
        close,
        retry,
    }
}

/// Refuses with the code that the channel's name says.
struct Refuser;

impl Refuser {
    fn no(channel: &Channel) -> Refusal {
        let code = Code::ALL
            .into_iter()
            .find(|code| Some(code.as_str()) == channel.param("code"));
        Refusal::new(code.unwrap(), "this text is for people, and says what to do")
    }
}

impl Handler for Refuser {
    async fn subscribe(&self, _: &Client, channel: &Channel) -> Result<(), Refusal> {
        Err(Self::no(channel))
    }

    async fn message(&self, _: &Client, channel: &Channel, _: Message) -> Result<Reply, Refusal> {
        Err(Self::no(channel))
    }
}

/// docs/protocol.md, section 3, the table.
async fn every_code_has_its_form(way: Way) {
    let builder = Airwave::from_config(config([rule("{*all}", |_| {})])).handle("no/{code}", Refuser);
    let node = Node::serving(builder, Airwave::router).await;
    let mut bystander = node.listen(way, "quiet").await;
    for (code, status, close, temporary) in [
        ("bad-request", 400, 4400, false),
        ("unauthorized", 401, 4401, false),
        ("forbidden", 403, 4403, false),
        ("unknown-channel", 404, 4404, false),
        ("wrong-transport", 406, 4406, false),
        ("ended", 409, 4409, false),
        ("too-large", 413, 1009, false),
        ("too-many", 429, 4429, true),
        ("unavailable", 503, 1013, true),
        ("internal", 500, 1011, true),
    ] {
        let refused = refusal(&node, way, &format!("/channels/no/{code}")).await;
        assert_eq!(refused.code, code);
        assert_eq!(refused.error["message"], "this text is for people, and says what to do");
        if !way.is_sse() {
            assert_eq!(refused.close, Some(close), "{code}");
        } else if temporary {
            // An EventSource never comes back after a 429 or a 5xx (P9).
            assert_eq!(refused.status, None, "{code}");
            assert!(
                refused.retry.is_some_and(|retry| (1000..60_000).contains(&retry)),
                "{refused:?}"
            );
        } else {
            assert_eq!(refused.status, Some(status), "{code}");
        }
        // The same over plain HTTP.
        let page = node.get(&format!("/channels/no/{code}")).await;
        assert_eq!((page.status, page.error().as_str()), (status, code));
        let sent = node
            .post(&format!("/channels/no/{code}"), &[], r#"{"event":"x","data":1}"#)
            .await;
        assert_eq!((sent.status, sent.error().as_str()), (status, code));
        if way.is_sse() {
            let refused = refusal(&node, way, &format!("/events?channel=quiet&channel=no/{code}")).await;
            assert_eq!(refused.code, code);
        } else {
            // A refused command is no reason to close.
            let mut socket = node.open(way, "/socket").await;
            socket
                .send(json!({"type": "subscribe", "id": 1, "channel": format!("no/{code}")}))
                .await;
            let answer = socket.answer().await;
            assert_eq!((&answer["id"], &answer["code"]), (&json!(1), &json!(code)));
            assert_eq!(answer["channel"], format!("no/{code}"));
            socket
                .send(json!({"type": "send", "id": 2, "channel": format!("no/{code}"), "event": "x", "data": 1}))
                .await;
            let answer = socket.answer().await;
            assert_eq!((&answer["id"], &answer["code"]), (&json!(2), &json!(code)));
            socket.send(json!({"type": "ping", "id": 3})).await;
            assert_eq!(socket.answer().await["type"], "pong");
        }
    }
    node.publish("quiet", 1).await;
    assert_eq!(bystander.number().await, 1);
}

async fn realtime() -> Node {
    let rules = [
        rule("told/{id}", |rule| rule.transports = vec![TransportName::SSE]),
        rule("said/{id}", |rule| rule.transports = vec![TransportName::WEBSOCKET]),
    ];
    let app = |airwave: &Airwave| Router::new().merge(airwave.router()).nest("/realtime", airwave.router());
    Node::serving(Airwave::from_config(config(rules)), app).await
}

async fn another_transport_is_named_with_its_url(way: Way) {
    let node = realtime().await;
    let (wrong, to_use) = if way.is_sse() {
        ("said/1", "websocket")
    } else {
        ("told/1", "sse")
    };
    for prefix in ["", "/realtime"] {
        let path = format!("{prefix}/channels/{wrong}");
        let refused = refusal(&node, way, &path).await;
        assert_eq!(refused.code, "wrong-transport");
        assert_eq!(
            (&refused.error["transport"], &refused.error["url"]),
            (&json!(to_use), &json!(path))
        );
        // A message goes over whatever there is; history too, and it names what to listen over.
        let page = node.get(&path).await.json();
        assert_eq!((&page["transport"], &page["url"]), (&json!(to_use), &json!(path)));
        assert_eq!(page["transports"], json!([to_use]));
    }
}

async fn another_transport_is_named_for_a_channel_among_several(way: Way) {
    let node = realtime().await;
    for prefix in ["", "/realtime"] {
        if way.is_sse() {
            let refused = refusal(&node, way, &format!("{prefix}/events?channel=told/1&channel=said/1")).await;
            assert_eq!((refused.status, refused.code.as_str()), (Some(406), "wrong-transport"));
            assert_eq!(refused.error["transport"], "websocket");
            assert!(refused.error["message"].as_str().unwrap().contains("said/1"), "{refused:?}");
        } else {
            let mut socket = node.open(way, &format!("{prefix}/socket")).await;
            socket.send(json!({"type": "subscribe", "id": 1, "channel": "told/1"})).await;
            let answer = socket.answer().await;
            assert_eq!(
                (&answer["code"], &answer["transport"]),
                (&json!("wrong-transport"), &json!("sse"))
            );
            assert_eq!(answer["url"], format!("{prefix}/channels/told/1"));
            let mut other = node.open(way, &format!("{prefix}/channels/said/1")).await;
            other.subscribed().await;
            other.send(json!({"type": "subscribe", "id": 1, "channel": "told/1"})).await;
            assert_eq!(other.answer().await["url"], format!("{prefix}/channels/told/1"));
        }
    }
}

async fn names_that_are_none(way: Way) {
    let node = Node::of_rule("known/{*rest}", |_| {}).await;
    let long = "x".repeat(256);
    for name in [
        "a/../b",
        "..",
        "a//b",
        "a/",
        "%00",
        "a%0d%0aid:%207",
        "a%0ab",
        "a%20b",
        "a*",
        "a%3Eb",
        "%ff%fe",
        "%C3%A4",
        "a%2F..%2Fb",
        long.as_str(),
    ] {
        let refused = refusal(&node, way, &format!("/channels/{name}")).await;
        assert_eq!(refused.code, "bad-request", "{name}");
        assert_eq!(
            refused.status.or(refused.close),
            Some(if way.is_sse() { 400 } else { 4400 }),
            "{name}"
        );
        for (method, body) in [("GET", ""), ("POST", r#"{"event":"x","data":1}"#)] {
            let json = [("content-type", "application/json")];
            let answer = http::request(node.address(way), method, &format!("/channels/{name}"), &json, body.into()).await;
            assert_eq!(
                (answer.status, answer.error().as_str()),
                (400, "bad-request"),
                "{method} {name}"
            );
        }
    }
    // Valid names without a rule: a name is literal, whatever a broker or a path might make of it.
    for name in ["a", "a/b", "known", "%2e%2e.", "knowN/1", "~", "...", "a%2Fb"] {
        let refused = refusal(&node, way, &format!("/channels/{name}")).await;
        assert_eq!(refused.code, "unknown-channel", "{name}");
        assert_eq!(
            refused.status.or(refused.close),
            Some(if way.is_sse() { 404 } else { 4404 }),
            "{name}"
        );
    }
}

async fn with_origins(origins: AllowedOrigins) -> Node {
    let mut config = config([rule("{*all}", |_| {})]);
    config.origins = origins;
    Node::of(config).await
}

async fn preflight(node: &Node, way: Way, path: &str, origin: &str) -> Answer {
    let headers = [
        ("origin", origin),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "content-type,traceparent,x-request-id"),
    ];
    http::request(node.address(way), "OPTIONS", path, &headers, "".into()).await
}

async fn foreign_pages_are_kept_out(way: Way) {
    let node = with_origins(AllowedOrigins::Listed(vec!["https://app.example".into()])).await;
    let same_host_other_port = format!("http://{}", node.address(way).ip());
    for origin in [
        "https://evil.example",
        "null",
        "https://app.example.evil.example",
        "",
        same_host_other_port.as_str(),
    ] {
        for path in ["/channels/a", if way.is_sse() { "/events?channel=a" } else { "/socket" }] {
            let Err(answer) = node.try_open(way, path, &[("origin", origin)]).await else {
                panic!("{origin} may listen to {path}")
            };
            assert_eq!(
                (answer.status, answer.error().as_str()),
                (403, "forbidden"),
                "{origin} {path}"
            );
            assert_eq!(answer.header("access-control-allow-origin"), None);
        }
        let json = [("content-type", "application/json"), ("origin", origin)];
        for (method, path) in [("GET", "/channels/a"), ("POST", "/channels/a"), ("POST", "/publish")] {
            let answer = http::request(node.address(way), method, path, &json, r#"{"channel":"a","data":1}"#.into()).await;
            assert_eq!(
                (answer.status, answer.error().as_str()),
                (403, "forbidden"),
                "{origin} {method} {path}"
            );
        }
        assert_eq!(preflight(&node, way, "/channels/a", origin).await.status, 403, "{origin}");
    }
    // The server's own pages are not foreign.
    let own = format!("http://{}", node.address(way));
    let mut listener = node.try_open(way, "/channels/a", &[("origin", &own)]).await.unwrap();
    listener.subscribed().await;
}

async fn listed_pages_are_let_in(way: Way) {
    let node = with_origins(AllowedOrigins::Listed(vec!["https://app.example".into()])).await;
    let origin = ("origin", "https://app.example");
    node.try_open(way, "/channels/a", &[origin]).await.unwrap().subscribed().await;
    let answer = http::get(node.address(way), "/channels/a", &[origin]).await;
    // Also where the answer is a "no", or the page could not read why.
    let refused = http::get(node.address(way), "/channels/a/../b", &[origin]).await;
    let flight = preflight(&node, way, "/channels/a", origin.1).await;
    assert_eq!((answer.status, refused.status, flight.status), (200, 400, 204));
    for answer in [&answer, &refused, &flight] {
        assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.example"));
        assert_eq!(answer.header("access-control-allow-credentials"), Some("true"));
        assert!(answer.header("vary").unwrap().contains("origin"));
    }
    assert!(flight.header("access-control-allow-methods").unwrap().contains("POST"));
    // And what a page sends besides: instrumentation adds headers to each of its requests.
    for header in [
        "authorization",
        "content-type",
        "idempotency-key",
        "last-event-id",
        "traceparent",
        "x-request-id",
    ] {
        assert!(flight.header("access-control-allow-headers").unwrap().contains(header));
    }
    assert!(flight.header("vary").unwrap().contains("access-control-request-headers"));
}

async fn all_pages_are_let_in(way: Way) {
    let node = with_origins(AllowedOrigins::Any).await;
    let origin = ("origin", "https://any.example");
    node.try_open(way, "/channels/a", &[origin]).await.unwrap().subscribed().await;
    let answer = http::get(node.address(way), "/channels/a", &[origin]).await;
    assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
    // With "*" a browser sends no cookies, and must not be told that it may.
    assert_eq!(answer.header("access-control-allow-credentials"), None);
}

/// The caps: of the node, of one address, of one connection.
async fn too_many_connections(way: Way) {
    for per_address in [false, true] {
        too_many_sessions(way, per_address).await;
    }
    let mut config = config([rule("{*all}", |_| {})]);
    config.limits.channels_per_connection = 2;
    let node = Node::of(config).await;
    if way.is_sse() {
        queries_that_are_refused(&node, way).await;
    } else {
        too_many_subscriptions(&node, way).await;
    }
}

async fn too_many_sessions(way: Way, per_address: bool) {
    let mut config = config([rule("{*all}", |_| {})]);
    if per_address {
        config.limits.connections_per_address = 3;
    } else {
        config.limits.connections = 3;
    }
    let node = Node::of(config).await;
    let mut listeners = Vec::new();
    for _ in 0..3 {
        listeners.push(node.listen(way, "a").await);
    }
    let refused = refusal(&node, way, "/channels/a").await;
    assert_eq!(refused.code, "too-many");
    assert!(refused.error["message"].as_str().unwrap().contains("limits.connections"));
    assert_eq!((refused.status, refused.close), (None, (!way.is_sse()).then_some(4429)));
    // Those who are in stay in, and requests that do not stay need no place.
    assert_eq!(node.post("/publish", &[], r#"{"channel":"a","data":7}"#).await.status, 200);
    for listener in &mut listeners {
        assert_eq!(listener.number().await, 7);
    }
    // A place that becomes free is given again.
    drop(listeners.pop());
    crate::support::until("the place is free", || node.airwave.hub().sessions() == 2).await;
    a_place_is_given(&node, way).await;
}

/// Tries until there is a place.
async fn a_place_is_given(node: &Node, way: Way) {
    crate::support::within("the place is given", async {
        loop {
            match node.try_open(way, "/channels/a", &[]).await {
                Ok(mut listener) => match listener.next().await {
                    Heard::Subscribed(_) => break,
                    // The session is gone a moment before its connection is.
                    Heard::Refused { code, .. } => assert_eq!(code, "too-many"),
                    other => panic!("{other:?}"),
                },
                Err(answer) => panic!("{answer:?}"),
            }
        }
    })
    .await;
}

async fn queries_that_are_refused(node: &Node, way: Way) {
    let refused = refusal(node, way, "/events?channel=a&channel=b&channel=c").await;
    assert_eq!((refused.status, refused.code.as_str()), (Some(400), "bad-request"));
    for (path, word) in [
        ("/events", "channel="),
        ("/events?channel=a&channel=a", "twice"),
        ("/events?channel=a&channel=b&after=1&after=2&after=3", "after"),
        ("/events?channel=a&heartbeat=no", "heartbeat"),
        ("/channels/a?after=1&after=2", "after"),
    ] {
        let refused = refusal(node, way, path).await;
        assert_eq!((refused.status, refused.code.as_str()), (Some(400), "bad-request"), "{path}");
        assert!(
            refused.error["message"].as_str().unwrap().contains(word),
            "{path}: {refused:?}"
        );
    }
}

async fn too_many_subscriptions(node: &Node, way: Way) {
    let mut socket = node.open(way, "/socket").await;
    for (channel, code) in [("a", None), ("b", None), ("c", Some("too-many"))] {
        socket.send(json!({"type": "subscribe", "id": 1, "channel": channel})).await;
        match (socket.next().await, code) {
            (Heard::Subscribed(subscribed), None) => assert_eq!(subscribed.id, Some(1)),
            (Heard::Refused { code, .. }, Some(wanted)) => assert_eq!(code, wanted),
            other => panic!("{other:?}"),
        }
    }
    socket.send(json!({"type": "unsubscribe", "id": 2, "channel": "a"})).await;
    assert_eq!(
        socket.answer().await,
        json!({"type": "unsubscribed", "id": 2, "channel": "a"})
    );
    socket.send(json!({"type": "subscribe", "id": 3, "channel": "c"})).await;
    socket.subscribed().await;
}

/// A broker that can be switched off.
struct Switch {
    memory: Memory,
    off: Arc<AtomicBool>,
}

impl Switch {
    fn gone(&self) -> Result<(), BrokerError> {
        if self.off.load(Ordering::SeqCst) {
            Err(BrokerError::unavailable("connection refused: secret.internal:6379"))
        } else {
            Ok(())
        }
    }
}

#[airwave::async_trait]
#[deny(clippy::missing_trait_methods)]
impl Broker for Switch {
    fn name(&self) -> &'static str {
        "switch"
    }

    async fn publish(&self, channel: &ChannelName, append: Append) -> Result<Published, BrokerError> {
        self.gone()?;
        self.memory.publish(channel, append).await
    }

    async fn follow(&self, channel: &ChannelName) -> Result<Feed, BrokerError> {
        self.gone()?;
        self.memory.follow(channel).await
    }

    async fn replay(&self, channel: &ChannelName, after: Option<Position>, limit: PageLimit) -> Result<Replay, BrokerError> {
        self.gone()?;
        self.memory.replay(channel, after, limit).await
    }

    async fn open(&self, channel: &ChannelName, limit: PageLimit) -> Result<(Feed, Replay), BrokerError> {
        follow_and_replay(self, channel, limit).await
    }

    async fn ping(&self) -> Result<(), BrokerError> {
        self.gone()
    }

    fn stats(&self) -> BrokerStats {
        self.memory.stats()
    }
}

/// Waits until the readiness probe answers `status`. The probe tells what the node knows of its
/// broker.
async fn readiness(node: &Node, status: u16) -> Answer {
    within("the readiness probe", async {
        loop {
            let ready = node.get("/readyz").await;
            if ready.status == status {
                return ready;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
}

/// P9: a listener stays, a new client is told to come again, and no answer names the broker's
/// address.
async fn a_broker_that_is_gone(way: Way) {
    let off = Arc::new(AtomicBool::new(false));
    let config = config([rule("{*all}", |_| {})]);
    let broker = Switch {
        memory: Memory::new(config.rules.clone()),
        off: off.clone(),
    };
    let node = Node::serving(Airwave::from_config(config).broker(Arc::new(broker)), Airwave::router).await;
    let mut listener = node.listen(way, "a").await;
    off.store(true, Ordering::SeqCst);
    let refused = refusal(&node, way, "/channels/another").await;
    assert_eq!(refused.code, "unavailable");
    assert_eq!((refused.status, refused.close), (None, (!way.is_sse()).then_some(1013)));
    let answer = node.post("/publish", &[], r#"{"channel":"a","data":1}"#).await;
    assert_eq!((answer.status, answer.error().as_str()), (503, "unavailable"));
    let page = node.get("/channels/a").await;
    assert_eq!((page.status, page.error().as_str()), (503, "unavailable"));
    for text in [refused.error.to_string(), answer.json().to_string(), page.json().to_string()] {
        assert!(!text.contains("secret.internal"), "{text}");
    }
    // Only the operators' probe says what is wrong.
    let ready = readiness(&node, 503).await;
    assert!(String::from_utf8_lossy(&ready.body).contains("switch"));
    assert_eq!(node.get("/healthz").await.status, 200);
    off.store(false, Ordering::SeqCst);
    readiness(&node, 200).await;
    node.publish("a", 2).await;
    assert_eq!(listener.number().await, 2);
}

#[test]
fn publishing_needs_the_token_or_leave() {
    crate::support::run(async {
        let body = r#"{"channel":"a","data":1}"#;
        let mut with_token = config([rule("{*all}", |_| {})]);
        with_token.publish_open = false;
        with_token.publish_token = Some(Secret::new("0123456789abcdef"));
        let node = Node::of(with_token).await;
        for (authorization, status) in [
            (None, 401),
            (Some("Bearer 0123456789abcdee"), 401),
            (Some("Bearer 0123456789abcde"), 401),
            (Some("Basic 0123456789abcdef"), 401),
            (Some("Bearer"), 401),
            (Some("Bearer 0123456789abcdef"), 200),
            (Some("bearer 0123456789abcdef"), 200),
        ] {
            let headers: Vec<_> = authorization.into_iter().map(|value| ("authorization", value)).collect();
            let answer = node.post("/publish", &headers, body).await;
            assert_eq!(answer.status, status, "{authorization:?}");
            if status != 200 {
                assert_eq!(answer.error(), "unauthorized");
            }
        }
        // Inside an application nothing is known of who reaches the address: closed until said
        // otherwise.
        let mut silent = config([rule("{*all}", |_| {})]);
        silent.publish_open = false;
        let node = Node::of(silent).await;
        let answer = node.post("/publish", &[], body).await;
        assert_eq!((answer.status, answer.error().as_str()), (403, "forbidden"));
    });
}
