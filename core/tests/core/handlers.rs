use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use airwave_core::event::IdempotencyKey;
use airwave_core::handler::{Handler, Identity, LeaveReason, Reply};
use airwave_core::rule::{Limits, SendPolicy, SlowPolicy, TransportName};
use airwave_core::session::After;
use airwave_core::{Channel, Client, Code, ConnectRequest, Hub, Message, PageLimit, Publish, Refusal, Rules, Session};

use crate::support::*;

/// Writes down what it was asked, and does what it is told.
#[derive(Default)]
struct Notes {
    calls: Mutex<Vec<String>>,
    refuses_connect: AtomicBool,
    refuses_subscribe: AtomicBool,
}

impl Notes {
    fn note(&self, call: String) {
        self.calls.lock().unwrap().push(call);
    }

    /// What was asked since the last time.
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }
}

impl Handler for Notes {
    async fn connect(&self, request: &ConnectRequest) -> Result<Identity, Refusal> {
        self.note(format!("connect {}", request.query));
        if self.refuses_connect.load(SeqCst) {
            return Err(Refusal::unauthorized("say who you are"));
        }
        Ok(Identity::user(request.query.clone()))
    }

    async fn subscribe(&self, client: &Client, channel: &Channel) -> Result<(), Refusal> {
        let user = client.user().unwrap();
        self.note(format!("subscribe {user} {} {:?}", channel.name(), channel.param("room")));
        if self.refuses_subscribe.load(SeqCst) {
            return Err(Refusal::forbidden("not you"));
        }
        Ok(())
    }

    async fn message(&self, client: &Client, channel: &Channel, message: Message) -> Result<Reply, Refusal> {
        self.note(format!("message {} {}", client.user().unwrap(), channel.name()));
        for n in 0..2 {
            let text = format!("{}-{n}", std::str::from_utf8(message.data.as_bytes()).unwrap());
            channel.publish_with(Publish::message(say(&text))).await?;
        }
        Ok(Reply::json(&"said")?)
    }

    async fn unsubscribe(&self, client: &Client, channel: &Channel, reason: LeaveReason) {
        let user = client.user().unwrap();
        self.note(format!("unsubscribe {user} {} {reason:?}", channel.name()));
    }
}

struct Scene {
    backbone: Arc<Backbone>,
    node: Arc<Node>,
    hub: Hub,
    rooms: Arc<Notes>,
    rest: Arc<Notes>,
}

/// `room/…` has a handler, `other/…` another, anything else none.
fn scene(limits: Limits) -> Scene {
    let mut slow = rule();
    slow.pattern = "room/slow".parse().unwrap();
    slow.slow = SlowPolicy::Close;
    slow.history.events = 1;
    let mut open = rule();
    open.pattern = "open/{x}".parse().unwrap();
    open.send = SendPolicy::Publish;
    let mut closed = rule();
    closed.pattern = "room/closed".parse().unwrap();
    closed.send = SendPolicy::Refuse;
    let mut elsewhere = rule();
    elsewhere.pattern = "room/elsewhere".parse().unwrap();
    elsewhere.transports = vec![TransportName::SSE, TransportName::WEBSOCKET];
    let mut rest = rule();
    rest.pattern = "{a}/{b}".parse().unwrap();
    let (rooms, others) = (Arc::new(Notes::default()), Arc::new(Notes::default()));
    let backbone = Backbone::new();
    let node = backbone.node();
    let hub = Hub::builder(node.clone(), Rules::new([slow, open, closed, elsewhere, rest]))
        .limits(limits)
        .handle("room/{room}".parse().unwrap(), rooms.clone())
        .handle("other/{x}".parse().unwrap(), others.clone())
        .build();
    Scene {
        backbone,
        node,
        hub,
        rooms,
        rest: others,
    }
}

impl Scene {
    fn listener(&self, user: &str) -> Listener {
        let format = self.hub.register_format(Lines::plain("a")).unwrap();
        let connection = self.hub.connect(who(user), true).unwrap();
        Listener::of(Session::new(connection, &format))
    }
}

fn who(user: &str) -> ConnectRequest {
    request().with_query(user)
}

#[tokio::test(start_paused = true)]
async fn a_handler_is_asked_once_who_it_is_and_each_time_whether_it_may() {
    let scene = scene(limits());
    let mut ann = scene.listener("ann");
    ann.subscribe("room/1", After::Nothing).await.unwrap();
    ann.subscribe("room/2", After::Nothing).await.unwrap();
    assert_eq!(
        scene.rooms.take(),
        [
            "connect ann",
            "subscribe ann room/1 Some(\"1\")",
            "subscribe ann room/2 Some(\"2\")"
        ]
    );
    // Another handler does not know her yet.
    ann.subscribe("other/1", After::Nothing).await.unwrap();
    assert_eq!(scene.rest.take(), ["connect ann", "subscribe ann other/1 None"]);
    // This channel has no handler, so the hub asks none.
    ann.subscribe("free/1", After::Nothing).await.unwrap();
    let connection = ann.session.connection().clone();
    let (room_2, send_hi) = (name("room/2"), say("hi"));
    scene.hub.send(&connection, &name("room/3"), say("hi"), None).await.unwrap();
    assert_eq!(scene.rooms.take(), ["subscribe ann room/3 Some(\"3\")", "message ann room/3"]);
    // A listener was asked already; another client is asked why, and sends nothing.
    let over = |listens| {
        scene
            .hub
            .send_from_listener(&connection, listens, &room_2, send_hi.clone(), None)
    };
    over(true).await.unwrap();
    assert_eq!(scene.rooms.take(), ["message ann room/2"]);
    assert_eq!(over(false).await.unwrap_err().code, Code::Forbidden);
    scene.rooms.refuses_subscribe.store(true, SeqCst);
    assert_eq!(over(false).await.unwrap_err().message, "not you");
    let sent = scene.hub.send(&connection, &name("room/3"), say("hi"), None).await;
    assert_eq!(sent.unwrap_err().message, "not you");
    scene.rooms.refuses_subscribe.store(false, SeqCst);
    assert!(scene.rooms.take().iter().all(|call| call.starts_with("subscribe ann room/")));
    // Another connection of the same user is another client.
    let mut again = scene.listener("ann");
    again.subscribe("room/1", After::Nothing).await.unwrap();
    assert_eq!(scene.rooms.take()[0], "connect ann");
}

#[tokio::test(start_paused = true)]
async fn a_handler_is_told_once_how_each_subscription_ended() {
    let scene = scene(limits());
    let mut ann = scene.listener("ann");
    for channel in ["room/left", "room/ended", "room/stays"] {
        ann.subscribe(channel, After::Nothing).await.unwrap();
    }
    ann.settled().await;
    scene.rooms.take();
    assert!(ann.session.remove(&name("room/left")));
    assert!(!ann.session.remove(&name("room/left")));
    settle().await;
    assert_eq!(scene.rooms.take(), ["unsubscribe ann room/left Unsubscribed"]);
    let end = scene.backbone.end("room/ended");
    ann.settled().await;
    assert_eq!(scene.rooms.take(), ["unsubscribe ann room/ended Ended"]);
    // Subscribed, but nothing was ever delivered: over before it began, or given up by the
    // transport.
    let joined = ann.join("room/ended", after(end)).await.unwrap();
    assert!(joined.is_over());
    ann.session.add(joined, None);
    settle().await;
    assert_eq!(scene.rooms.take()[1..], ["unsubscribe ann room/ended Ended"]);
    drop(ann.join("room/dropped", After::Nothing).await.unwrap());
    settle().await;
    assert_eq!(scene.rooms.take()[1..], ["unsubscribe ann room/dropped Disconnected"]);
    drop(ann);
    settle().await;
    assert_eq!(scene.rooms.take(), ["unsubscribe ann room/stays Disconnected"]);

    let mut bob = scene.listener("bob");
    bob.subscribe("room/slow", After::Nothing).await.unwrap();
    bob.settled().await;
    for n in 0..2000 {
        scene.backbone.say("room/slow", &n.to_string());
    }
    bob.rest().await;
    drop(bob);
    settle().await;
    assert_eq!(scene.rooms.take()[2..], ["unsubscribe bob room/slow Disconnected"]);
}

/// Admitted, but then the channel could not be opened: the handler, which may count heads, is told.
#[tokio::test(start_paused = true)]
async fn a_handler_is_told_if_the_subscription_it_admitted_failed() {
    let scene = scene(limits());
    let mut ann = scene.listener("ann");
    scene.node.unavailable(true);
    let refusal = ann.subscribe("room/1", After::Nothing).await.unwrap_err();
    assert_eq!(refusal.code, Code::Unavailable);
    settle().await;
    assert_eq!(
        scene.rooms.take()[1..],
        ["subscribe ann room/1 Some(\"1\")", "unsubscribe ann room/1 Disconnected"]
    );
    // The same if the client goes away while the channel is being opened.
    scene.node.unavailable(false);
    scene.node.hang(true);
    let subscriber = ann.session.subscriber();
    let joining = tokio::spawn(async move { subscriber.subscribe(&name("room/2"), After::Nothing).await.is_ok() });
    settle().await;
    joining.abort();
    settle().await;
    assert_eq!(
        scene.rooms.take(),
        ["subscribe ann room/2 Some(\"2\")", "unsubscribe ann room/2 Disconnected"]
    );
}

#[tokio::test(start_paused = true)]
async fn what_a_handler_refuses_is_refused() {
    let scene = scene(limits());
    let mut ann = scene.listener("ann");
    scene.rooms.refuses_subscribe.store(true, SeqCst);
    assert_eq!(
        ann.subscribe("room/1", After::Nothing).await.unwrap_err().code,
        Code::Forbidden
    );
    let connection = ann.session.connection().clone();
    let history = scene
        .hub
        .history(&connection, &name("room/1"), None, PageLimit::events(10))
        .await;
    assert_eq!(history.unwrap_err().code, Code::Forbidden);
    settle().await;
    assert_eq!(scene.rooms.take().iter().filter(|call| call.starts_with("unsub")).count(), 0);
    assert_eq!(scene.node.follows.load(SeqCst), 0, "nothing is opened for who may not listen");
    scene.rooms.refuses_connect.store(true, SeqCst);
    let mut bob = scene.listener("bob");
    assert_eq!(
        bob.subscribe("room/1", After::Nothing).await.unwrap_err().code,
        Code::Unauthorized
    );
    let connection = bob.session.connection().clone();
    let sent = scene.hub.send(&connection, &name("room/1"), say("x"), None).await;
    assert_eq!(sent.unwrap_err().code, Code::Unauthorized);
    assert_eq!(
        scene.rooms.take(),
        ["connect bob", "connect bob"],
        "who was refused is asked again"
    );
}

#[tokio::test(start_paused = true)]
async fn channels_without_a_rule_and_wrong_transports_are_refused() {
    let scene = scene(limits());
    let mut ann = scene.listener("ann");
    let refusal = ann.subscribe("no-rule", After::Nothing).await.unwrap_err();
    assert_eq!(refusal.code, Code::UnknownChannel);
    assert_eq!(scene.hub.channel("no-rule").unwrap_err().code, Code::UnknownChannel);
    assert_eq!(scene.hub.channel("no rule").unwrap_err().code, Code::BadRequest);
    let refusal = ann.subscribe("room/elsewhere", After::Nothing).await.unwrap_err();
    assert_eq!(
        (refusal.code, refusal.transport),
        (Code::WrongTransport, Some(TransportName::SSE))
    );
    // Plain requests may read any channel's history and send to it.
    let mut http = who("ann");
    http.transport = TransportName::HTTP;
    let connection = scene.hub.connect(http, false).unwrap();
    scene.backbone.say("room/elsewhere", "1");
    let (_, page) = scene
        .hub
        .history(&connection, &name("room/elsewhere"), None, PageLimit::events(10))
        .await
        .unwrap();
    assert_eq!(page.events.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_a_message_does_is_the_rules_and_the_handlers_decision() {
    let scene = scene(limits());
    let connection = scene.hub.connect(who("ann"), true).unwrap();
    let send = async |channel: &str, text: &str| {
        let reply = scene.hub.send(&connection, &name(channel), say(text), None).await;
        reply
            .map(|reply| reply.data().map(|data| data.len()))
            .map_err(|refusal| refusal.code)
    };
    assert_eq!(send("room/1", "hi").await, Ok(Some("\"said\"".len())));
    assert_eq!(send("open/1", "hi").await, Ok(None));
    assert_eq!(send("room/closed", "hi").await, Err(Code::Forbidden));
    assert_eq!(send("free/1", "hi").await, Err(Code::Forbidden));
    assert_eq!(send("no-rule", "hi").await, Err(Code::UnknownChannel));
    let large = "x".repeat(scene.hub.limits().message_bytes);
    assert_eq!(send("open/1", &large).await, Err(Code::TooLarge));
    scene.backbone.end("open/1");
    assert_eq!(send("open/1", "hi").await, Err(Code::Ended));
    scene.node.unavailable(true);
    assert_eq!(send("open/1", "hi").await, Err(Code::Unavailable));
    let replay = scene.backbone.head("open/1");
    assert!(replay > scene.backbone.head("free/1") || scene.node.publishes.load(SeqCst) == 5);
    assert_eq!(
        scene.rooms.take(),
        ["connect ann", "subscribe ann room/1 Some(\"1\")", "message ann room/1"]
    );
}

/// A client that repeats its message with the same key has it happen once, all that the handler
/// publishes for it.
#[tokio::test(start_paused = true)]
async fn a_messages_key_makes_what_the_handler_publishes_repeatable() {
    let scene = scene(limits());
    let mut listener = scene.listener("bob");
    listener.subscribe("room/1", After::Nothing).await.unwrap();
    listener.subscribe("open/1", After::Nothing).await.unwrap();
    assert_eq!(listener.settled().await.len(), 2);
    let send = async |user: &str, channel: &str, key: &str, text: &str| {
        let connection = scene.hub.connect(who(user), true).unwrap();
        let key = IdempotencyKey::new(key).unwrap();
        let sent = scene.hub.send(&connection, &name(channel), say(text), Some(key)).await;
        sent.map_err(|refusal| refusal.code)
    };
    // The longest key that is allowed, too.
    for key in ["k-of-ann", "other-key-of-ann", &"x".repeat(255)] {
        for _ in 0..3 {
            send("ann", "room/1", key, &key[..1]).await.unwrap();
        }
        assert_eq!(send("ann", "room/1", key, "another").await, Err(Code::BadRequest));
    }
    // A client without a user is known by a long key only, because any client that has the key is
    // that client.
    for key in ["0123456789abcdef0123", &"y".repeat(255)] {
        for _ in 0..3 {
            send("ann", "open/1", key, &key[..1]).await.unwrap();
        }
        assert_eq!(send("ann", "open/1", key, "another").await, Err(Code::BadRequest));
    }
    for text in ["first", "second"] {
        send("ann", "open/1", "short", text).await.unwrap();
    }
    // Another user's key, and the application's, are other keys.
    send("eve", "room/1", "k-of-ann", "e").await.unwrap();
    let channel = scene.hub.channel("room/1").unwrap();
    let publish = Publish::message(say("b")).idempotency_key("k-of-ann");
    assert!(!channel.publish_with(publish).await.unwrap().duplicate);
    let lines = listener.settled().await;
    let mut heard = texts(&lines);
    heard.sort_unstable();
    assert_eq!(
        heard,
        [
            "0", "b", "e-0", "e-1", "first", "k-0", "k-1", "o-0", "o-1", "second", "x-0", "x-1", "y"
        ]
    );
}

/// What a client or a channel may have of them is bounded, and what is over it has not happened.
#[tokio::test(start_paused = true)]
async fn idempotency_keys_are_bounded() {
    let scene = scene(limits().with(|limits| {
        limits.idempotency_keys_per_client = 3;
        limits.idempotency_keys_per_channel = 5;
    }));
    let send = async |user: &str, n: u32| {
        let connection = scene.hub.connect(who(user), true).unwrap();
        let key = IdempotencyKey::new(&format!("key-{n}")).unwrap();
        let sent = scene.hub.send(&connection, &name("room/1"), say("x"), Some(key)).await;
        sent.map(|_| ()).map_err(|refusal| refusal.code)
    };
    // Two events each: the channel's bound comes first.
    assert_eq!((send("ann", 1).await, send("ann", 2).await), (Ok(()), Ok(())));
    assert_eq!(send("bob", 1).await, Err(Code::TooMany));
    tokio::time::advance(std::time::Duration::from_secs(131)).await;
    let say_to = async |user: &str, channel: &str, n: u32| {
        let connection = scene.hub.connect(who(user), true).unwrap();
        let key = IdempotencyKey::new(&format!("another-key-{n}")).unwrap();
        let sent = scene.hub.send(&connection, &name(channel), say("x"), Some(key)).await;
        sent.map(|_| ()).map_err(|refusal| refusal.code)
    };
    for n in 0..3 {
        assert_eq!(say_to("ann", &format!("room/{n}"), n).await, Ok(()));
    }
    let before = scene.node.publishes.load(SeqCst);
    assert_eq!(say_to("ann", "room/9", 9).await, Err(Code::TooMany));
    assert_eq!(scene.node.publishes.load(SeqCst), before);
    assert_eq!(say_to("bob", "room/9", 9).await, Ok(()));
}

/// Whatever a handler panics at, its client is answered, and it is counted.
#[tokio::test(start_paused = true)]
async fn a_panic_is_caught_wherever_it_happens() {
    /// Panics when it is dropped, also on the way.
    struct Bomb;

    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("on purpose")
        }
    }

    struct Broken;

    impl Handler for Broken {
        // Not an `async fn`: this panics before any future is there.
        fn message(&self, _: &Client, _: &Channel, message: Message) -> impl Future<Output = Result<Reply, Refusal>> + Send {
            match message.event.as_str() {
                "pending" => {
                    async {
                        let _bomb = Bomb;
                        std::future::pending().await
                    }
                }
                _ => panic!("on purpose"),
            }
        }

        fn requires_subscription(&self) -> bool {
            true
        }
    }

    let backbone = Backbone::new();
    let hub = Hub::builder(backbone.node(), Rules::new([rule()]))
        .limits(limits())
        .handle("{*all}".parse().unwrap(), Broken)
        .build();
    let connection = hub.connect(who("ann"), true).unwrap();
    let sent = hub.send(&connection, &name("a"), say("x"), None).await;
    assert_eq!(sent.unwrap_err().code, Code::Internal);
    let pending = Message::new(airwave_core::EventName::new("pending").unwrap(), airwave_core::Data::text(""));
    let channel = name("a");
    let sending = hub.send(&connection, &channel, pending, None);
    assert!(
        tokio::time::timeout(std::time::Duration::from_secs(1), sending)
            .await
            .is_err()
    );
    assert_eq!(metric(&hub, "airwave_handler_panics_total", &[]), 2.0);
}

#[tokio::test(start_paused = true)]
async fn places_are_limited_and_freed() {
    let scene = scene(limits().with(|limits| {
        limits.connections = 5;
        limits.connections_per_address = 2;
        limits.channels = 3;
    }));
    let from = |last| who("ann").with_peer(IpAddr::V4(Ipv4Addr::new(192, 0, 2, last)));
    let refused = |request| scene.hub.connect(request, true).map(|_| ()).unwrap_err().code;
    let mut open: Vec<_> = (0..2).map(|_| scene.hub.connect(from(1), true).unwrap()).collect();
    assert_eq!(refused(from(1)), Code::TooMany);
    open.extend((0..2).map(|_| scene.hub.connect(from(2), true).unwrap()));
    // Who is not counted takes no place and needs none.
    let _uncounted: Vec<_> = (0..10).map(|_| scene.hub.connect(from(1), false).unwrap()).collect();
    open.push(scene.hub.connect(who("from an unknown address"), true).unwrap());
    assert_eq!(refused(from(3)), Code::TooMany);
    open.pop();
    assert_eq!(
        refused(from(2)),
        Code::TooMany,
        "the address has no place, though the node has"
    );
    let third = scene.hub.connect(from(3), true).unwrap();
    drop(open);
    // All are free again, and a refusal took none.
    let _full: Vec<_> = [1, 1, 2, 2].map(|last| scene.hub.connect(from(last), true).unwrap()).into();
    assert_eq!(refused(from(4)), Code::TooMany);
    drop(third);
    let mut listener = Listener::of(Session::new(
        scene.hub.connect(from(3), true).unwrap(),
        &scene.hub.register_format(Lines::plain("a")).unwrap(),
    ));
    for n in 0..3 {
        listener.subscribe(&format!("free/{n}"), After::Nothing).await.unwrap();
    }
    assert_eq!(
        listener.subscribe("free/3", After::Nothing).await.unwrap_err().code,
        Code::TooMany
    );
    listener.session.remove(&name("free/0"));
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    listener.subscribe("free/3", After::Nothing).await.unwrap();
}

/// Publishes to its own channel and to others, and fails in its own way.
struct Elsewhere;

#[derive(Debug, thiserror::Error)]
#[error("the disk of host db-7 is full")]
struct Full;

impl Handler for Elsewhere {
    async fn message(&self, _: &Client, channel: &Channel, message: Message) -> Result<Reply, Refusal> {
        match std::str::from_utf8(message.data.as_bytes()).unwrap() {
            "fail" => Err(Refusal::from_error(Full)),
            "fail in a box" => {
                let saved: Result<(), Box<dyn std::error::Error + Send + Sync>> = Err(Full.into());
                saved?;
                Ok(Reply::done())
            }
            "no such channel" => Ok(channel.other("a b").map(|_| Reply::done())?),
            text => {
                channel.publish_with(Publish::message(say(text))).await?;
                channel.other("free/list")?.publish_with(Publish::message(say(text))).await?;
                Ok(Reply::done())
            }
        }
    }
}

fn with_elsewhere() -> (Arc<Backbone>, Hub) {
    let backbone = Backbone::new();
    let hub = Hub::builder(backbone.node(), Rules::new([rule()]))
        .handle("jobs/{id}".parse().unwrap(), Elsewhere)
        .build();
    (backbone, hub)
}

#[tokio::test]
async fn a_handler_publishes_to_other_channels_and_a_repeated_message_does_so_once() {
    let (_backbone, hub) = with_elsewhere();
    let key = || Some(IdempotencyKey::new("the-same-key-again-and-again").unwrap());
    for _ in 0..2 {
        let connection = hub.connect(request(), false).unwrap();
        hub.send(&connection, &name("jobs/1"), say("hello"), key()).await.unwrap();
    }
    for channel in ["jobs/1", "free/list"] {
        let kept = hub.channel(channel).unwrap().history(None, 10).await.unwrap();
        assert_eq!(kept.events.len(), 1, "{channel}");
    }
}

#[tokio::test]
async fn what_went_wrong_in_the_application_is_internal_and_not_told() {
    let (_backbone, hub) = with_elsewhere();
    for text in ["fail", "fail in a box"] {
        let connection = hub.connect(request(), false).unwrap();
        let refusal = hub.send(&connection, &name("jobs/1"), say(text), None).await.unwrap_err();
        assert_eq!(refusal.code, Code::Internal);
        assert!(!format!("{refusal} {refusal:?}").contains("db-7"), "{refusal:?}");
        assert!(std::error::Error::source(&refusal).is_none(), "the log has had it");
    }
    let connection = hub.connect(request(), false).unwrap();
    let refusal = hub.send(&connection, &name("jobs/1"), say("no such channel"), None).await;
    assert_eq!(refusal.unwrap_err().code, Code::BadRequest);
}
