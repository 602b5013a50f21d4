//! The application's say: one handler for every transport, and for what is sent over a WebSocket
//! and POSTed alike.

use std::sync::{Arc, Mutex};

use airwave::rule::{SendPolicy, TransportName};
use airwave::{Airwave, Channel, Client, ConnectRequest, Data, Handler, Identity, LeaveReason, Message, Publish, Refusal, Reply};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite;

use crate::support::{Heard, Node, Way, config, each_way, http, rule, run, until};

each_way!(
    who_a_client_is_decides_what_it_may,
    unsubscribe_is_called_once_for_each_subscription,
    a_message_reaches_the_handler_and_is_answered,
);

/// Lets in who has a name, and writes down what happens.
#[derive(Clone, Default)]
struct Room {
    heard: Arc<Mutex<Vec<String>>>,
}

impl Room {
    fn note(&self, text: String) {
        self.heard.lock().unwrap().push(text);
    }

    fn notes(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }
}

impl Handler for Room {
    fn query_parameters(&self) -> &[&str] {
        &["token"]
    }

    async fn connect(&self, request: &ConnectRequest) -> Result<Identity, Refusal> {
        let user = request.bearer_token().or(request.cookie("user")).or_else(|| {
            let query = request.query.split('&').find_map(|pair| pair.strip_prefix("token="));
            query.filter(|name| !name.is_empty())
        });
        match user {
            Some(user) => Ok(Identity::user(user).with(user.len())),
            None => Err(Refusal::unauthorized("log in first: send a token")),
        }
    }

    async fn subscribe(&self, client: &Client, channel: &Channel) -> Result<(), Refusal> {
        let user = client.user().unwrap();
        assert_eq!(client.details::<usize>(), Some(&user.len()));
        self.note(format!("{user} subscribes to {}", channel.param("room").unwrap()));
        if user == "mallory" {
            return Err(Refusal::forbidden("members only: ask for an invitation"));
        }
        Ok(())
    }

    async fn message(&self, client: &Client, channel: &Channel, message: Message) -> Result<Reply, Refusal> {
        let user = client.user().unwrap();
        if user == "mallory" {
            return Err(Refusal::forbidden("members only: ask for an invitation"));
        }
        match message.event.as_str() {
            "say" => {
                let text: Value = message.json()?;
                let published = channel.publish("said", &json!({"by": user, "text": text})).await?;
                Ok(Reply::json(&json!({"cursor": published.position.to_string()}))?)
            }
            "raw" => {
                channel.publish_with(Publish::message(message)).await?;
                Ok(Reply::done())
            }
            "kind" => Ok(Reply::json(match message.data {
                Data::Json(_) => "json",
                Data::Text(_) => "text",
                Data::Binary(_) => "binary",
                _ => "opaque",
            })?),
            "who" => Ok(Reply::json(&json!([
                user,
                client.transport.as_str(),
                channel.name().as_str()
            ]))?),
            _ => Err(Refusal::bad_request("this room knows say, raw, kind and who")),
        }
    }

    async fn unsubscribe(&self, client: &Client, channel: &Channel, reason: LeaveReason) {
        self.note(format!(
            "{} leaves {}: {reason:?}",
            client.user().unwrap(),
            channel.param("room").unwrap()
        ));
    }
}

async fn chat() -> (Node, Room) {
    let room = Room::default();
    let builder = Airwave::from_config(config([rule("chat/{any}", |_| {}), rule("open/{any}", |_| {})]));
    let node = Node::serving(builder.handle("chat/{room}", room.clone()), Airwave::router).await;
    (node, room)
}

async fn who_a_client_is_decides_what_it_may(way: Way) {
    let (node, room) = chat().await;
    for headers in [
        &[("authorization", "Bearer ann")][..],
        &[("cookie", "a=b; user=ann; c=d")][..],
    ] {
        let mut listener = node.try_open(way, "/channels/chat/1", headers).await.unwrap();
        listener.subscribed().await;
        node.publish("chat/1", 1).await;
        assert_eq!(listener.number().await, 1);
    }
    node.open(way, "/channels/chat/1?token=ann").await.subscribed().await;
    for (query, code, status, close) in [("", "unauthorized", 401, 4401), ("?token=mallory", "forbidden", 403, 4403)] {
        let path = format!("/channels/chat/1{query}");
        match node.try_open(way, &path, &[]).await {
            Err(answer) => assert_eq!((answer.status, answer.error().as_str()), (status, code)),
            Ok(mut listener) => {
                assert!(matches!(listener.next().await, Heard::Refused { code: heard, .. } if heard == code));
                assert!(matches!(listener.next().await, Heard::Closed { code, .. } if code == Some(close)));
            }
        }
        // Who may not listen may not read history either.
        let page = http::get(node.address(way), &path, &[]).await;
        assert_eq!((page.status, page.error().as_str()), (status, code));
    }
    // No handler is asked about a channel that has none.
    node.listen(way, "open/1").await;
    let subscribes = room
        .notes()
        .iter()
        .filter(|note| note.contains("ann subscribes to 1"))
        .count();
    assert_eq!(subscribes, 3);
}

async fn unsubscribe_is_called_once_for_each_subscription(way: Way) {
    let (node, room) = chat().await;
    let leaves = |reason: &str| {
        let notes = room.notes();
        notes
            .iter()
            .filter(|note| note.contains("leaves") && note.ends_with(reason))
            .count()
    };
    let mut gone = node.open(way, "/channels/chat/1?token=ann").await;
    gone.subscribed().await;
    drop(gone);
    until("a client that is gone has left", || leaves("Disconnected") == 1).await;
    let mut ended = node.open(way, "/channels/chat/2?token=ann").await;
    ended.subscribed().await;
    node.channel("chat/2").end().await.unwrap();
    assert!(matches!(ended.next().await, Heard::End { .. }));
    until("a listener of a channel that has ended has left", || leaves("Ended") == 1).await;
    if !way.is_sse() {
        let mut socket = node.open(way, "/socket?token=ann").await;
        socket.send(json!({"type": "subscribe", "id": 1, "channel": "chat/3"})).await;
        socket.subscribed().await;
        socket
            .send(json!({"type": "unsubscribe", "id": 2, "channel": "chat/3"}))
            .await;
        socket.answer().await;
        until("who says so has left", || leaves("Unsubscribed") == 1).await;
        // And hears no more of it.
        node.publish("chat/3", 1).await;
        socket.send(json!({"type": "subscribe", "id": 3, "channel": "chat/3"})).await;
        socket.subscribed().await;
        node.publish("chat/3", 2).await;
        assert_eq!(socket.number().await, 2);
    }
    // Reading history asks like a subscription, and no unsubscribe follows.
    http::get(node.address(way), "/channels/chat/4?token=ann", &[]).await;
    drop(ended);
    until("no session is left", || node.airwave.hub().sessions() == 0).await;
    let notes = room.notes();
    for room in ["1", "2"] {
        assert_eq!(
            notes.iter().filter(|note| note.contains(&format!("leaves {room}"))).count(),
            1,
            "{notes:?}"
        );
    }
}

/// Sends over a WebSocket, or POSTs as a client of SSE does; the answer's data or error code.
async fn send(node: &Node, way: Way, user: &str, message: Value) -> Result<Value, String> {
    if way.is_sse() {
        let headers = [("content-type", "application/json"), ("authorization", user)];
        let answer = http::request(
            node.address(way),
            "POST",
            "/channels/chat/1",
            &headers,
            message.to_string().into(),
        )
        .await;
        return match answer.status {
            200 => Ok(answer.json()["data"].clone()),
            _ => Err(answer.error()),
        };
    }
    let mut socket = node.try_open(way, "/socket", &[("authorization", user)]).await.unwrap();
    socket.send(json!({"type": "subscribe", "id": 8, "channel": "chat/1"})).await;
    let mut frame = json!({"type": "send", "id": 9, "channel": "chat/1"});
    frame.as_object_mut().unwrap().extend(message.as_object().unwrap().clone());
    socket.send(frame).await;
    let answer = loop {
        match socket.next().await {
            Heard::Answer(answer) if answer["id"] == 9 => break answer,
            Heard::Refused { whole, .. } if whole["id"] == 9 => break whole,
            // Who may not subscribe may not send, for the same reason.
            Heard::Refused { whole, .. } => assert_eq!(whole["id"], 8),
            _ => {}
        }
    };
    match answer["type"].as_str().unwrap() {
        "reply" => Ok(answer["data"].clone()),
        _ => Err(answer["code"].as_str().unwrap().to_owned()),
    }
}

async fn a_message_reaches_the_handler_and_is_answered(way: Way) {
    let (node, _) = chat().await;
    let mut listener = node.open(way, "/channels/chat/1?token=ann").await;
    listener.subscribed().await;
    let reply = send(&node, way, "Bearer bob", json!({"event": "say", "data": "hi"}))
        .await
        .unwrap();
    let event = listener.event().await;
    assert_eq!(
        (event.name.as_str(), event.text()),
        ("said", "{\"by\":\"bob\",\"text\":\"hi\"}")
    );
    assert_eq!(reply, json!({"cursor": event.id}));
    let done = send(&node, way, "Bearer bob", json!({"event": "raw", "text": "x\ny"})).await;
    assert_eq!((done, listener.event().await.text()), (Ok(Value::Null), "x\ny"));
    for (message, kind) in [
        (json!({"event": "kind", "data": null}), "json"),
        (json!({"event": "kind", "text": ""}), "text"),
        (json!({"event": "kind", "base64": "AA=="}), "binary"),
    ] {
        assert_eq!(send(&node, way, "Bearer bob", message).await, Ok(json!(kind)));
    }
    let transport = if way.is_sse() {
        TransportName::HTTP
    } else {
        TransportName::WEBSOCKET
    };
    let who = send(&node, way, "Bearer bob", json!({"event": "who", "data": 1})).await;
    assert_eq!(who, Ok(json!(["bob", transport.as_str(), "chat/1"])));
    for (user, message, code) in [
        ("", json!({"event": "say", "data": 1}), "unauthorized"),
        ("Bearer mallory", json!({"event": "say", "data": 1}), "forbidden"),
        ("Bearer bob", json!({"event": "shout", "data": 1}), "bad-request"),
        ("Bearer bob", json!({"event": "say", "base64": "AA=="}), "bad-request"),
        ("Bearer bob", json!({"event": "airwave.end", "data": 1}), "bad-request"),
        ("Bearer bob", json!({"event": "say"}), "bad-request"),
        ("Bearer bob", json!({"event": "say", "data": 1, "text": "x"}), "bad-request"),
        ("Bearer bob", json!({"event": "say", "base64": "?"}), "bad-request"),
        ("Bearer bob", json!({"event": "a\r\nb", "data": 1}), "bad-request"),
        (
            "Bearer bob",
            json!({"event": "say", "data": 1, "key": "a\u{0}"}),
            "bad-request",
        ),
    ] {
        assert_eq!(
            send(&node, way, user, message.clone()).await,
            Err(code.to_owned()),
            "{message}"
        );
    }
}

/// Without a handler the rule decides, the same for both.
#[test]
fn without_a_handler_the_rule_decides() {
    run(async {
        let node = Node::of(config([
            rule("handler/{id}", |_| {}),
            rule("publish/{id}", |rule| rule.send = SendPolicy::Publish),
            rule("refuse/{id}", |rule| rule.send = SendPolicy::Refuse),
        ]))
        .await;
        let mut listener = node.listen(Way::WebSocket, "publish/1").await;
        for (channel, outcome) in [("handler/1", 403), ("publish/1", 200), ("refuse/1", 403), ("unknown/1", 404)] {
            let posted = node
                .post(&format!("/channels/{channel}"), &[], r#"{"event":"e","data":1,"key":"k"}"#)
                .await;
            assert_eq!(posted.status, outcome, "{channel}");
            let mut socket = node.open(Way::WebSocket, "/socket").await;
            let frame = json!({"type": "send", "id": 1, "channel": channel, "event": "e", "data": 1, "key": "k"});
            // Not without a subscription, whatever the rule says.
            socket.send(frame.clone()).await;
            let code = if outcome == 404 { "unknown-channel" } else { "forbidden" };
            assert_eq!(socket.answer().await["code"], code, "{channel}");
            socket.send(json!({"type": "subscribe", "id": 0, "channel": channel})).await;
            socket.send(frame).await;
            let answer = loop {
                match socket.next().await {
                    Heard::Answer(answer) => break answer,
                    Heard::Refused { whole, .. } if whole["id"] == 1 => break whole,
                    _ => {}
                }
            };
            assert_eq!(answer["type"] == "reply", outcome == 200, "{channel}");
        }
        assert_eq!(listener.numbers(2).await, [1, 1]);
        // A long key makes a client's repetition harmless too, over any connection and transport.
        let long = "0123456789abcdef0123456789abcdef";
        let frame = |data: u32, key: &str| json!({"type": "send", "id": 1, "channel": "publish/1", "event": "e", "data": data, "idempotency_key": key});
        for _ in 0..2 {
            let mut socket = node.open(Way::WebSocket, "/channels/publish/1").await;
            socket.subscribed().await;
            socket.send(frame(7, long)).await;
            assert_eq!(socket.answer().await, json!({"type": "reply", "id": 1, "data": null}));
            let header = [("idempotency-key", long)];
            let post = async |body: &'static str| node.post("/channels/publish/1", &header, body).await;
            assert_eq!(post(r#"{"event":"e","data":7}"#).await.status, 200);
            let answer = post(r#"{"event":"e","data":8}"#).await;
            assert_eq!((answer.status, answer.error().as_str()), (400, "bad-request"));
            socket.send(frame(8, long)).await;
            assert_eq!(socket.answer().await["code"], "bad-request");
        }
        node.publish("publish/1", 9).await;
        assert_eq!(listener.numbers(2).await, [7, 9]);
    });
}

/// A stranger who knows or guesses a key makes no other source's event vanish.
#[test]
fn keys_of_strangers_do_not_meet() {
    run(async {
        let node = Node::of(config([rule("a", |rule| rule.send = SendPolicy::Publish)])).await;
        let mut listener = node.listen(Way::WebSocket, "a").await;
        let frame = |data: u32| json!({"type": "send", "id": 1, "channel": "a", "event": "e", "data": data, "idempotency_key": "order-1-shipped"});
        let mut sockets = Vec::new();
        for data in [1, 2] {
            let mut socket = node.open(Way::WebSocket, "/channels/a").await;
            socket.subscribed().await;
            for _ in 0..2 {
                socket.send(frame(data)).await;
                assert_eq!(socket.answer().await["type"], "reply");
            }
            socket.send(frame(data + 10)).await;
            assert_eq!(socket.answer().await["code"], "bad-request");
            sockets.push(socket);
        }
        let header = [("idempotency-key", "order-1-shipped")];
        for (data, status) in [(3, 200), (3, 200), (13, 400)] {
            let body = json!({"event": "e", "data": data}).to_string();
            assert_eq!(node.post("/channels/a", &header, body).await.status, status);
        }
        let published = node.post("/publish", &header, r#"{"channel":"a","data":4}"#).await.json();
        assert_eq!(published["duplicate"], false);
        assert_eq!(listener.numbers(4).await, [1, 2, 3, 4]);
    });
}

/// Who may not listen may not say anything, over any transport, unless the handler says so.
#[test]
fn only_who_may_listen_may_send() {
    #[derive(Clone)]
    struct Letterbox(Room);

    impl Handler for Letterbox {
        async fn subscribe(&self, _: &Client, _: &Channel) -> Result<(), Refusal> {
            self.0.note("asked".into());
            Err(Refusal::forbidden("this is not read"))
        }

        async fn message(&self, _: &Client, _: &Channel, message: Message) -> Result<Reply, Refusal> {
            self.0.note(format!("told {}", message.event));
            Ok(Reply::done())
        }

        fn requires_subscription(&self) -> bool {
            self.0.notes()[0] != "open"
        }
    }

    run(async {
        let room = Room::default();
        let builder = Airwave::from_config(config([rule("{*all}", |_| {})]));
        let node = Node::serving(builder.handle("box/{id}", Letterbox(room.clone())), Airwave::router).await;
        room.note("closed".into());
        let frame = json!({"type": "send", "id": 1, "channel": "box/1", "event": "e", "data": 1});
        let mut socket = node.open(Way::WebSocket, "/socket").await;
        for _ in 0..2 {
            let answer = node.post("/channels/box/1", &[], r#"{"event":"e","data":1}"#).await;
            assert_eq!((answer.status, answer.error().as_str()), (403, "forbidden"));
            socket.send(frame.clone()).await;
            let answer = socket.answer().await;
            assert_eq!(
                (&answer["code"], &answer["message"]),
                (&json!("forbidden"), &json!("this is not read"))
            );
        }
        assert_eq!(room.notes(), ["closed", "asked", "asked", "asked", "asked"]);
        room.heard.lock().unwrap().clear();
        room.note("open".into());
        assert_eq!(
            node.post("/channels/box/1", &[], r#"{"event":"e","data":1}"#).await.status,
            200
        );
        socket.send(frame).await;
        assert_eq!(socket.answer().await["type"], "reply");
        assert_eq!(room.notes(), ["open", "told e", "told e"]);
    });
}

/// Commands of one connection are carried out in their order, whatever each takes.
#[test]
fn commands_are_answered_in_order() {
    run(async {
        let (node, _) = chat().await;
        let mut socket = node.open(Way::WebSocket, "/channels/chat/1?token=ann").await;
        socket.subscribed().await;
        for id in 0..50 {
            let frame = json!({"type": "send", "id": id, "channel": "chat/1", "event": "say", "data": id});
            socket.send(frame).await;
        }
        let (mut replies, mut events) = (0, 0);
        while replies < 50 || events < 50 {
            match socket.next().await {
                Heard::Answer(answer) => {
                    assert_eq!(answer["id"], replies);
                    replies += 1;
                }
                Heard::Event(event) => {
                    assert!(event.text().ends_with(&format!("\"text\":{events}}}")), "{event:?}");
                    events += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        // Without a number there is no reply; errors are told all the same.
        socket
            .send(json!({"type": "send", "channel": "chat/1", "event": "who", "data": 1}))
            .await;
        socket
            .send(json!({"type": "send", "channel": "chat/1", "event": "what", "data": 1}))
            .await;
        let answer = socket.answer().await;
        assert_eq!((&answer["type"], &answer["id"]), (&json!("error"), &Value::Null));
    });
}

/// A binary frame of a client: docs/protocol.md, section 5.
fn binary(channel: &str, event: &str, id: u64, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![1, channel.len() as u8];
    frame.extend_from_slice(channel.as_bytes());
    frame.push(event.len() as u8);
    frame.extend_from_slice(event.as_bytes());
    frame.extend_from_slice(&id.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

#[test]
fn binary_goes_both_ways() {
    run(async {
        let (node, _) = chat().await;
        let mut listener = node.open(Way::Sse, "/channels/chat/1?token=ann").await;
        listener.subscribed().await;
        let mut socket = node.open(Way::WebSocket, "/channels/chat/1?token=bob").await;
        socket.subscribed().await;
        let payload: Vec<u8> = (0..=255).cycle().take(50_000).collect();
        let frame = binary("chat/1", "raw", 5, &payload);
        socket.send_message(tungstenite::Message::binary(frame)).await;
        let (mut event, mut reply) = (None, None);
        while event.is_none() || reply.is_none() {
            match socket.next().await {
                Heard::Event(heard) => event = Some(heard),
                Heard::Answer(heard) => reply = Some(heard),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(reply, Some(json!({"type": "reply", "id": 5, "data": null})));
        assert_eq!(event.as_ref().map(|event| &event.data), Some(&payload));
        assert_eq!(listener.event().await, event.unwrap());
        // All ones: no reply is wanted. Then what is no such frame.
        let frame = binary("chat/1", "kind", u64::MAX, b"x");
        socket.send_message(tungstenite::Message::binary(frame)).await;
        for bad in [
            Vec::new(),
            vec![2, 1, b'a', 1, b'b'],
            vec![1, 200, b'a'],
            binary("chat/1", "raw", 1 << 53, b"x"),
            binary("a/../b", "raw", 1, b"x"),
            binary("chat/1", "airwave.end", 1, b"x"),
            binary("chat/1", "raw", 1, b"")[..10].to_vec(),
        ] {
            socket.send_message(tungstenite::Message::binary(bad.clone())).await;
            assert_eq!(socket.answer().await["code"], "bad-request", "{bad:?}");
        }
        // The same bytes for those who get text.
        let page = http::get(node.own, "/channels/chat/1?token=ann", &[]).await.json();
        assert_eq!(page["events"][0]["base64"], STANDARD.encode(&payload));
    });
}
