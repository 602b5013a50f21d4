use std::collections::BTreeMap;
use std::net::SocketAddr;

use airwave_bench::chaos::BrokerKind;
use airwave_bench::chaos::clients::{self, EventStream, Heard, Sse, WebSocket};
use airwave_bench::chaos::world::World;
use serde_json::json;

use crate::moving::next;
use crate::{airwave, is_here};

/// The whole file. `URL` is all that differs.
const FILE: &str = r#"
[broker]
url = "URL"

[[channels]]
match = "news/{name}"
transport = ["sse", "websocket"]
history = { events = 1000, age = "1h" }
send = "publish"

[[channels]]
match = "short"
transport = ["sse", "websocket"]
history = { events = 3, age = "1h" }

[[channels]]
match = "room"
use_case = "chat"
"#;

/// What one run said, in words that hold no position: those come from clocks.
#[derive(Default)]
struct Story {
    told: Vec<String>,
    /// Which of a channel's publishes stands there.
    places: BTreeMap<(String, u64), String>,
}

impl Story {
    fn place(&self, channel: &str, position: u64) -> &str {
        let place = self.places.get(&(channel.to_owned(), position));
        place.map_or("a place before all", String::as_str)
    }

    fn tell(&mut self, what: impl Into<String>) {
        self.told.push(what.into());
    }

    async fn publish(&mut self, node: SocketAddr, channel: &str, number: u64, key: Option<&str>) -> u64 {
        let mut message = json!({"channel": channel, "data": number});
        if let Some(key) = key {
            message["idempotency_key"] = key.into();
        }
        let (status, answer) = clients::publish(node, &message).await.unwrap();
        let position: u64 = answer["cursor"].as_str().unwrap().parse().unwrap();
        let name = format!("{channel} {number}");
        self.places.entry((channel.to_owned(), position)).or_insert(name);
        let place = self.place(channel, position).to_owned();
        self.tell(format!("published: {status}, at {place}, twice: {}", answer["duplicate"]));
        position
    }

    /// So many things that are heard.
    async fn hear(&mut self, line: &mut EventStream, count: usize) {
        for _ in 0..count {
            let what = match next(line).await {
                Heard::Beat | Heard::Id(_) => unreachable!("they are passed over"),
                Heard::Confirmed {
                    channel,
                    cursor,
                    resumed,
                } => format!("{channel} from {}, resumed: {resumed}", self.place(&channel, cursor)),
                Heard::Event { channel, position, data } => {
                    // What a client sent is not told its place: it has the one at which it is first
                    // heard.
                    let name = format!("{channel} {data}");
                    self.places.entry((channel.clone(), position)).or_insert(name);
                    format!("{data} at {}", self.place(&channel, position))
                }
                Heard::Gap {
                    channel,
                    after,
                    cursor,
                    reason,
                } => {
                    let after = after.map(|after| self.place(&channel, after));
                    format!("a gap after {after:?} to {}: {reason}", self.place(&channel, cursor))
                }
                Heard::Members { kind, said } => format!("{kind}: {said}"),
                Heard::Refused(code) => format!("refused: {code}"),
            };
            self.tell(format!("heard: {what}"));
        }
    }

    async fn page(&mut self, node: SocketAddr, channel: &str, after: u64) {
        let (events, more) = clients::history(node, channel, after).await.unwrap();
        let events: Vec<String> = events
            .iter()
            .map(|(position, data)| format!("{data} at {}", self.place(channel, *position)))
            .collect();
        self.tell(format!("history: {events:?}, more: {more}"));
    }
}

/// A bit of everything.
async fn story(world: &World) -> Vec<String> {
    let node = world.address(0).await;
    let mut story = Story::default();
    let mut listener = Sse::open(node, "/channels/news/a", Some("news/a"), None, false)
        .await
        .unwrap();
    story.hear(&mut listener, 1).await;
    let mut positions = Vec::new();
    for number in 0..6 {
        positions.push(story.publish(node, "news/a", number, Some(&format!("k{number}"))).await);
    }
    story.publish(node, "news/a", 2, Some("k2")).await;
    story.hear(&mut listener, 6).await;
    for (number, said) in [
        (6, clients::post(node, "news/a", &json!(6), "p").await),
        (7, clients::send(node, "news/a", &json!(7), "s").await),
    ] {
        story.tell(format!("sent {number}: {}", said.unwrap().0));
    }
    story.hear(&mut listener, 2).await;
    // With a cursor, over the other transport, and among others.
    let after = format!("/channels/news/a?after={}", positions[2]);
    let mut resumed = WebSocket::open(node, &after, &[], false).await.unwrap();
    story.hear(&mut resumed, 6).await;
    let channels = [("news/a", Some(positions[4])), ("news/b", None)];
    let mut many = WebSocket::open(node, "/socket", &channels[..1], false).await.unwrap();
    story.hear(&mut many, 4).await;
    let mut other = WebSocket::open(node, "/socket", &channels[1..], false).await.unwrap();
    story.hear(&mut other, 1).await;
    story.publish(node, "news/b", 0, None).await;
    story.hear(&mut other, 1).await;
    story.page(node, "news/a", positions[1]).await;
    // What is kept no more is a gap, and so is a place that was never given.
    let mut short = Vec::new();
    for number in 0..8 {
        short.push(story.publish(node, "short", number, None).await);
    }
    for (after, count) in [(short[0], 5), (short[4], 4), (u64::MAX >> 1, 2)] {
        let path = format!("/channels/short?after={after}");
        let mut late = Sse::open(node, &path, Some("short"), None, false).await.unwrap();
        story.hear(&mut late, count).await;
    }
    story.page(node, "short", 0).await;
    members(&mut story, node).await;
    let no_name = json!({"channel": "no name", "data": 1});
    let (status, answer) = clients::publish(node, &no_name).await.unwrap();
    story.tell(format!("refused: {status} {}", answer["error"]["code"]));
    story.told
}

/// A second client comes to a room.
async fn members(story: &mut Story, node: SocketAddr) {
    let mut room = WebSocket::open(node, "/channels/room?presence=true", &[], false)
        .await
        .unwrap();
    story.hear(&mut room, 1).await;
    let mut known = String::new();
    let _second = WebSocket::open(node, "/socket", &[("room", None)], false).await.unwrap();
    // In how many steps it is told is left open.
    while !known.contains("\"connections\":2") {
        if let Heard::Members { said, .. } = next(&mut room).await {
            known = said.to_string();
        }
    }
    let (_, answer) = clients::request(node, "GET", "/channels/room?presence=true", "", "")
        .await
        .unwrap();
    story.tell(format!("members: {}", answer["members"]));
}

/// `[broker] url`, nothing else.
#[test]
fn only_the_url_changes() {
    // The first one runs in memory, and leaves the server that it was given alone.
    let kinds = [
        (BrokerKind::Redis, Some("memory:")),
        (BrokerKind::Redis, None),
        (BrokerKind::RedisCluster, None),
        (BrokerKind::Nats, None),
    ];
    if !kinds.iter().all(|(kind, _)| is_here(*kind)) {
        return;
    }
    crate::run(async {
        let mut first: Option<Vec<String>> = None;
        for (kind, own) in kinds {
            let file = |url: &str| FILE.replace("URL", own.unwrap_or(url));
            let world = World::start(kind, 1, airwave(), file).await.unwrap();
            let told = story(&world).await;
            assert_eq!(world.wrong(), Vec::<String>::new());
            match &first {
                Some(first) => assert_eq!(&told, first, "on {kind}, against the memory broker"),
                None => {
                    println!("{}", told.join("\n"));
                    assert!(told.len() > 50 && told.iter().any(|line| line.contains("a gap after")));
                    first = Some(told);
                }
            }
        }
    });
}
