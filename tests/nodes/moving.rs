use std::net::SocketAddr;
use std::time::Duration;

use airwave_bench::chaos::clients::{self, EventStream, Heard, Sse, WebSocket};
use airwave_bench::chaos::world::World;
use airwave_bench::chaos::{BrokerKind, LinkState};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{airwave, is_here};

/// No step takes so long, however busy the machine is: it only turns a hang into a failure.
const HANG: Duration = Duration::from_secs(60);

/// `on_each_broker!(scenario)`: the async function `scenario(World)` as one test for each broker,
/// with three nodes.
macro_rules! on_each_broker {
    ($($scenario:ident),* $(,)?) => {$(
        mod $scenario {
            #[test]
            fn redis() {
                super::with_three_nodes(super::BrokerKind::Redis, super::$scenario);
            }

            #[test]
            fn redis_cluster() {
                super::with_three_nodes(super::BrokerKind::RedisCluster, super::$scenario);
            }

            #[test]
            fn nats() {
                super::with_three_nodes(super::BrokerKind::Nats, super::$scenario);
            }
        }
    )*};
}

on_each_broker!(
    what_is_published_on_one_node_is_heard_on_all,
    the_post_half_of_sse_works_on_any_node,
    a_client_that_moves_goes_on_where_it_was,
    a_node_that_is_killed_takes_no_acknowledged_event_with_it,
    a_publish_is_repeated_on_another_node,
    a_node_without_its_broker_is_caught_up,
    members_are_known_on_every_node_and_forgotten_with_a_killed_one,
);

fn with_three_nodes<F: Future<Output = ()>>(kind: BrokerKind, scenario: fn(World) -> F) {
    if !is_here(kind) {
        return;
    }
    crate::run(async {
        let config = |url: &str| {
            format!(
                "[broker]\nurl = \"{url}\"\n[[channels]]\nmatch = \"room/{{name}}\"\ntransport = [\"sse\", \"websocket\"]\n\
                 presence = true\n[[channels]]\nmatch = \"{{*all}}\"\ntransport = [\"sse\", \"websocket\"]\n\
                 send = \"publish\"\nhistory = {{ events = 1000, age = \"1h\" }}\n"
            )
        };
        let world = World::start(kind, 3, airwave(), config).await.unwrap();
        scenario(world).await;
    });
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    Sse,
    SseMany,
    WebSocket,
    Socket,
}

impl Way {
    pub(crate) const ALL: [Way; 4] = [Way::Sse, Way::WebSocket, Way::SseMany, Way::Socket];
}

/// A client of one channel, confirmed.
pub(crate) struct Listener {
    line: EventStream,
    pub(crate) cursor: u64,
}

impl Listener {
    pub(crate) async fn open(node: SocketAddr, way: Way, channel: &str, after: Option<u64>) -> Self {
        let text = after.map_or(String::new(), |after| after.to_string());
        let mut line = match way {
            Way::Sse => Sse::open(node, &format!("/channels/{channel}"), Some(channel), Some(&text), false).await,
            Way::SseMany => Sse::open(node, &format!("/events?channel={channel}&after={text}"), None, None, false).await,
            Way::WebSocket => WebSocket::open(node, &format!("/channels/{channel}?after={text}"), &[], false).await,
            Way::Socket => WebSocket::open(node, "/socket", &[(channel, after)], false).await,
        }
        .unwrap();
        let Heard::Confirmed { cursor, resumed, .. } = next(&mut line).await else {
            panic!("a stream begins with its confirmation");
        };
        assert_eq!(resumed, after.is_some(), "{way:?}");
        assert!(after.is_none_or(|after| after == cursor), "{way:?}");
        Self { line, cursor }
    }

    /// The next events, which these must be.
    pub(crate) async fn hears(&mut self, numbers: std::ops::Range<u64>) -> Vec<u64> {
        let mut positions = Vec::new();
        for number in numbers {
            match next(&mut self.line).await {
                Heard::Event { position, data, .. } => {
                    assert_eq!(data, json!(number));
                    assert!(position > self.cursor);
                    self.cursor = position;
                    positions.push(position);
                }
                other => panic!("{other:?} instead of {number}"),
            }
        }
        positions
    }
}

/// The next that is not only a sign of life: those come for ever, and must not put the hang off.
pub(crate) async fn next(line: &mut EventStream) -> Heard {
    let next = async {
        loop {
            match line.next().await.unwrap() {
                Heard::Beat | Heard::Id(_) => {}
                heard => return heard,
            }
        }
    };
    timeout(HANG, next).await.expect("nothing comes")
}

/// Publishes a number, and gives its position.
pub(crate) async fn publish(node: SocketAddr, channel: &str, number: u64) -> u64 {
    let message = json!({"channel": channel, "data": number, "idempotency_key": format!("{channel}-{number}")});
    let published = async {
        loop {
            match clients::publish(node, &message).await.unwrap() {
                (200, answer) => return position(&answer),
                // The disk may stand still for longer than the broker has time.
                (503, _) => tokio::time::sleep(Duration::from_millis(50)).await,
                (status, answer) => panic!("{status}: {answer}"),
            }
        }
    };
    timeout(HANG, published).await.expect("it cannot be published")
}

pub(crate) fn position(answer: &Value) -> u64 {
    answer["cursor"].as_str().unwrap().parse().unwrap()
}

async fn nodes(world: &World) -> [SocketAddr; 3] {
    [world.address(0).await, world.address(1).await, world.address(2).await]
}

async fn what_is_published_on_one_node_is_heard_on_all(world: World) {
    let nodes = nodes(&world).await;
    let mut listeners = Vec::new();
    for node in nodes {
        for way in Way::ALL {
            listeners.push(Listener::open(node, way, "a", None).await);
        }
    }
    let mut positions = Vec::new();
    for number in 0..30 {
        positions.push(publish(nodes[number as usize % 3], "a", number).await);
    }
    for listener in &mut listeners {
        assert_eq!(listener.hears(0..30).await, positions, "everywhere the same places");
    }
}

async fn the_post_half_of_sse_works_on_any_node(world: World) {
    let nodes = nodes(&world).await;
    let mut listener = Listener::open(nodes[0], Way::Sse, "a", None).await;
    for (number, node) in (0..).zip(nodes.into_iter().chain(nodes)) {
        let said = match number {
            0..3 => clients::post(node, "a", &json!(number), &format!("k{number}")).await,
            _ => clients::send(node, "a", &json!(number), &format!("k{number}")).await,
        };
        let (status, answer) = said.unwrap();
        assert_eq!(status, 200, "{answer}");
        listener.hears(number..number + 1).await;
    }
}

/// From node to node and from one transport to the other, with one cursor; events come meanwhile.
async fn a_client_that_moves_goes_on_where_it_was(world: World) {
    let nodes = nodes(&world).await;
    let mut listener = Listener::open(nodes[0], Way::Sse, "a", None).await;
    let mut number = 0;
    for round in 0..24 {
        for _ in 0..2 {
            publish(nodes[(round + 1) % 3], "a", number).await;
            number += 1;
        }
        listener.hears(number - 2..number).await;
        let cursor = listener.cursor;
        drop(listener);
        for _ in 0..round % 3 {
            publish(nodes[round % 3], "a", number).await;
            number += 1;
        }
        let way = Way::ALL[(round / 3 + round) % 4];
        listener = Listener::open(nodes[round % 3], way, "a", Some(cursor)).await;
        listener.hears(number - (round as u64 % 3)..number).await;
    }
}

/// P10: it was acknowledged, so the broker has it, whatever becomes of the node that said so.
async fn a_node_that_is_killed_takes_no_acknowledged_event_with_it(world: World) {
    let mut moving = Listener::open(world.address(0).await, Way::WebSocket, "a", None).await;
    let mut staying = Listener::open(world.address(1).await, Way::Sse, "a", None).await;
    let mut number = 0;
    for round in 0..4 {
        let node = world.address(0).await;
        for _ in 0..5 {
            publish(node, "a", number).await;
            number += 1;
        }
        world.kill_node(0, Duration::ZERO);
        staying.hears(number - 5..number).await;
        // The killed node's client goes to another, with what it has, which may be nothing of these
        // five.
        let way = Way::ALL[round % 4];
        moving = Listener::open(world.address(2).await, way, "a", Some(moving.cursor)).await;
        moving.hears(number - 5..number).await;
        let cursor = moving.cursor;
        // Until the old process is gone, so that the next round finds the new one.
        while world.addresses().contains(&node) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let home = world.address(0).await;
        moving = Listener::open(home, way, "a", Some(cursor)).await;
    }
}

/// P2, where the client does not know the outcome of the first try.
async fn a_publish_is_repeated_on_another_node(world: World) {
    let nodes = nodes(&world).await;
    let mut listener = Listener::open(nodes[2], Way::Sse, "a", None).await;
    let message = json!({"channel": "a", "data": 0, "idempotency_key": "once"});
    let (_, first) = clients::publish(nodes[0], &message).await.unwrap();
    world.kill_node(0, Duration::ZERO);
    for node in [nodes[1], nodes[2]] {
        let (status, answer) = clients::publish(node, &message).await.unwrap();
        assert_eq!(
            (status, position(&answer), &answer["duplicate"]),
            (200, position(&first), &json!(true))
        );
    }
    publish(nodes[1], "a", 1).await;
    listener.hears(0..2).await;
}

/// Nothing comes through to one node: the others go on, and its listeners stay and miss nothing.
async fn a_node_without_its_broker_is_caught_up(world: World) {
    let nodes = nodes(&world).await;
    let mut cut_off = Vec::new();
    for way in Way::ALL {
        cut_off.push(Listener::open(nodes[0], way, "a", None).await);
    }
    for (line, first) in [(LinkState::Held, 0), (LinkState::Cut, 10)] {
        world.set_line(0, line);
        for number in first..first + 10 {
            publish(nodes[1], "a", number).await;
        }
        // It answers, and it does not say that it happened.
        let message = json!({"channel": "b", "data": 0});
        let (status, answer) = clients::publish(nodes[0], &message).await.unwrap();
        assert_eq!((status, &answer["error"]["code"]), (503, &json!("unavailable")));
        while !matches!(clients::request(nodes[0], "GET", "/readyz", "", "").await, Ok((503, _))) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        world.set_line(0, LinkState::Open);
        for listener in &mut cut_off {
            listener.hears(first..first + 10).await;
        }
        world.all_ready().await.unwrap();
    }
}

/// A client that asks who is in the room. All clients here are anonymous, so they are one counted
/// member.
pub(crate) struct Watcher {
    line: EventStream,
    connections: u64,
}

impl Watcher {
    pub(crate) async fn open(node: SocketAddr, way: Way) -> Self {
        let line = match way {
            Way::Sse => Sse::open(node, "/channels/room/a?presence=true", Some("room/a"), None, false).await,
            _ => WebSocket::open(node, "/channels/room/a?presence=true", &[], false).await,
        };
        let mut line = line.unwrap();
        assert!(matches!(next(&mut line).await, Heard::Confirmed { .. }));
        Self { line, connections: 0 }
    }

    pub(crate) async fn knows_of(&mut self, connections: u64) {
        while self.connections != connections {
            let Heard::Members { kind, said } = next(&mut self.line).await else {
                panic!("nothing is published here")
            };
            let member = match kind.as_str() {
                "presence" => &said["members"][0],
                _ => &said["member"],
            };
            self.connections = member["connections"].as_u64().unwrap_or(0);
        }
    }
}

/// A node that is killed says nothing any more, so the others find out; one that goes in peace says
/// so.
async fn members_are_known_on_every_node_and_forgotten_with_a_killed_one(world: World) {
    let nodes = nodes(&world).await;
    let mut watchers = [
        Watcher::open(nodes[0], Way::WebSocket).await,
        Watcher::open(nodes[1], Way::Sse).await,
    ];
    let mut doomed = Vec::new();
    for way in [Way::Sse, Way::WebSocket, Way::Socket] {
        doomed.push(Listener::open(nodes[2], way, "room/a", None).await);
    }
    for watcher in &mut watchers {
        watcher.knows_of(5).await;
    }
    let path = "/channels/room/a?presence=true";
    let everybody = |connections: u64| json!([{"user": null, "connections": connections}]);
    for node in nodes {
        let (_, answer) = clients::request(node, "GET", path, "", "").await.unwrap();
        assert_eq!(answer["members"], everybody(5));
    }
    world.kill_node(2, Duration::ZERO);
    for watcher in &mut watchers {
        watcher.knows_of(2).await;
    }
    while world.addresses().contains(&nodes[2]) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let again = world.address(2).await;
    let (_, answer) = clients::request(again, "GET", path, "", "").await.unwrap();
    assert_eq!(answer["members"], everybody(2));
    let _member = Listener::open(again, Way::Sse, "room/a", None).await;
    for watcher in &mut watchers {
        watcher.knows_of(3).await;
    }
    world.drain_node(2, Duration::ZERO);
    for watcher in &mut watchers {
        watcher.knows_of(2).await;
    }
}
