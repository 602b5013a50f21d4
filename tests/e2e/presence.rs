//! Who is in a channel: members over two nodes on one backbone, told over every transport.

use std::sync::Arc;
use std::time::Duration;

use airwave::brokers::Memory;
use airwave::{Airwave, ConnectRequest, Handler, Identity, Refusal, Rules};
use serde_json::{Value, json};

use crate::support::{Heard, Listener, Node, Way, config, each_way, http, rule, run, within};

each_way!(
    members_of_two_nodes_are_told_on_every_transport,
    a_resume_begins_with_a_fresh_list,
    a_channel_without_presence_says_so,
);

/// `?user=…` and `?colour=…`.
struct ByQuery;

impl Handler for ByQuery {
    fn query_parameters(&self) -> &[&str] {
        &["user", "colour"]
    }

    async fn connect(&self, request: &ConnectRequest) -> Result<Identity, Refusal> {
        let value = |name: &str| {
            let pair = |pair: &str| pair.strip_prefix(name)?.strip_prefix('=').map(str::to_owned);
            request.query.split('&').find_map(pair)
        };
        let Some(user) = value("user") else {
            return Ok(Identity::anonymous());
        };
        match value("colour") {
            Some(colour) => Ok(Identity::user(user).with_meta(&json!({"colour": colour}))?),
            None => Ok(Identity::user(user)),
        }
    }
}

/// So many nodes on one backbone.
async fn nodes<const N: usize>() -> [Node; N] {
    let rules = [rule("chat/{room}", |rule| rule.presence = true), rule("{*rest}", |_| {})];
    let backbone = Arc::new(Memory::new(Rules::new(rules.clone())));
    let mut nodes = Vec::new();
    for _ in 0..N {
        let builder = Airwave::from_config(config(rules.clone())).broker_with_directory(backbone.clone());
        nodes.push(Node::serving(builder.handle("{*all}", ByQuery), Airwave::router).await);
    }
    nodes.try_into().ok().unwrap()
}

async fn member(node: &Node, way: Way, query: &str) -> Listener {
    let mut listener = node.open(way, &format!("/channels/chat/lobby?{query}")).await;
    listener.subscribed().await;
    listener
}

/// The list, then changes, until `wanted` are known.
struct Known(Vec<Value>);

impl Known {
    fn take(&mut self, kind: &str, said: &Value) {
        assert_eq!(said["channel"], "chat/lobby");
        if kind == "presence" {
            self.0 = said["members"].as_array().unwrap().clone();
            return;
        }
        let member = said["member"].clone();
        self.0.retain(|known| known["user"] != member["user"]);
        if kind != "leave" {
            self.0.push(member);
        }
        self.0.sort_by_key(|member| member["user"].as_str().unwrap_or("~").to_owned());
    }

    async fn until(&mut self, listener: &mut Listener, wanted: Value) {
        while Value::from(self.0.clone()) != wanted {
            match listener.next().await {
                Heard::Members(kind, said) => self.take(&kind, &said),
                other => panic!("{other:?}, and not {wanted}; known are {:?}", self.0),
            }
        }
    }
}

async fn members_of_two_nodes_are_told_on_every_transport(way: Way) {
    let [here, there] = nodes().await;
    let mut ann = member(&here, way, "user=ann&presence=true").await;
    let mut known = Known(vec![]);
    known.until(&mut ann, json!([{"user": "ann", "connections": 1}])).await;
    let bob = member(&there, way, "user=bob&colour=red").await;
    let bob_again = member(&here, way, "user=bob&colour=red").await;
    let _anonymous = member(&there, way, "").await;
    known
        .until(
            &mut ann,
            json!([
                {"user": "ann", "connections": 1},
                {"user": "bob", "connections": 2, "meta": {"colour": "red"}},
                {"user": null, "connections": 1},
            ]),
        )
        .await;
    // Events are where they were, and so is the cursor.
    let id = there.publish("chat/lobby", 7).await;
    assert_eq!(ann.event().await.number(), 7);
    assert_eq!(ann.cursor(), id);

    // What a node says of itself reaches the others a moment later.
    within("the other node knows them too", async {
        let wanted = Value::from(known.0.clone());
        while there.get("/channels/chat/lobby?presence=true&limit=1").await.json()["members"] != wanted {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
    let members = there.channel("chat/lobby").members().await.unwrap();
    assert_eq!(members.len(), 3);

    drop((bob, bob_again));
    known
        .until(
            &mut ann,
            json!([{"user": "ann", "connections": 1}, {"user": null, "connections": 1}]),
        )
        .await;
    assert_eq!(ann.cursor(), id, "a member is no cursor to resume from");
}

async fn a_resume_begins_with_a_fresh_list(way: Way) {
    let [here, there] = nodes().await;
    let mut ann = member(&here, way, "user=ann&presence=true").await;
    Known(vec![])
        .until(&mut ann, json!([{"user": "ann", "connections": 1}]))
        .await;
    let id = here.publish("chat/lobby", 1).await;
    assert_eq!(ann.event().await.number(), 1);
    drop(ann);
    let path = format!("/channels/chat/lobby?user=ann&presence=true&after={id}");
    let mut ann = there.open(way, &path).await;
    assert!(ann.subscribed().await.resumed);
    let Heard::Members(kind, said) = ann.next().await else {
        panic!()
    };
    assert_eq!((kind.as_str(), &said["more"]), ("presence", &Value::Bool(false)));
    assert_eq!(said["members"][0]["user"], "ann");
}

async fn a_channel_without_presence_says_so(way: Way) {
    let [node] = nodes().await;
    match node.try_open(way, "/channels/other?presence=true", &[]).await {
        Err(answer) => {
            assert_eq!(answer.status, 400);
            assert!(
                String::from_utf8_lossy(&answer.body).contains("presence = true"),
                "{answer:?}"
            );
        }
        Ok(mut listener) => match listener.next().await {
            Heard::Refused { code, whole } => {
                assert_eq!(code, "bad-request");
                assert!(whole["message"].as_str().unwrap().contains("presence = true"));
            }
            other => panic!("{other:?}"),
        },
    }
}

#[test]
fn odd_requests_are_answered_with_what_to_write() {
    run(async {
        let [node] = nodes().await;
        for (path, word) in [
            ("/channels/chat/lobby?presence=yes", "'true' or 'false'"),
            ("/channels/other?presence=true", "presence = true"),
        ] {
            for accept in ["application/json", "text/event-stream"] {
                let answer = http::get(node.own, path, &[("accept", accept)]).await;
                assert_eq!(answer.status, 400, "{path} {accept}");
                assert!(String::from_utf8_lossy(&answer.body).contains(word), "{answer:?}");
            }
        }
    });
}

#[test]
fn commands_and_streams_of_several_channels_ask_for_members_too() {
    run(async {
        let [node] = nodes().await;
        let mut socket = node.open(Way::WebSocket, "/socket?user=ann").await;
        for channel in ["chat/a", "chat/b"] {
            let presence = channel == "chat/a";
            let frame = json!({"type": "subscribe", "channel": channel, "presence": presence});
            socket.send(frame).await;
        }
        let (mut subscribed, mut members) = (vec![], vec![]);
        while subscribed.len() < 2 || members.is_empty() {
            match socket.next().await {
                Heard::Subscribed(heard) => subscribed.push(heard.channel),
                Heard::Members(_, said) => members.push(said["channel"].clone()),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(members, ["chat/a"]);

        let mut stream = node
            .open(Way::Sse, "/events?channel=chat/a&channel=chat/b&presence=true&user=bob")
            .await;
        // A member that has just come is in the list, or joins right behind it.
        let mut there = std::collections::BTreeSet::new();
        while there.len() < 4 {
            if let Heard::Members(_, said) = stream.next().await {
                let list = said["members"].as_array().cloned();
                for member in list.unwrap_or_else(|| vec![said["member"].clone()]) {
                    there.insert((said["channel"].to_string(), member["user"].to_string()));
                }
            }
        }
        assert_eq!(there.len(), 4, "{there:?}");
    });
}

#[test]
fn only_who_listens_is_a_member() {
    run(async {
        let [node] = nodes().await;
        for (method, accept) in [("HEAD", "text/event-stream"), ("GET", "application/json")] {
            let path = "/channels/chat/lobby?user=ann";
            let answer = http::request(node.own, method, path, &[("accept", accept)], Default::default()).await;
            assert_eq!(answer.status, 200, "{method}");
        }
        assert_eq!(node.channel("chat/lobby").members().await.unwrap(), []);
    });
}

#[test]
fn a_node_that_drains_takes_its_members_with_it() {
    run(async {
        let [mut here, there] = nodes().await;
        let mut ann = member(&there, Way::WebSocket, "user=ann&presence=true").await;
        let _bob = member(&here, Way::Sse, "user=bob").await;
        let mut known = Known(vec![]);
        known
            .until(
                &mut ann,
                json!([{"user": "ann", "connections": 1}, {"user": "bob", "connections": 1}]),
            )
            .await;
        let before = std::time::Instant::now();
        within("the node drains", here.drain()).await.unwrap().unwrap();
        known.until(&mut ann, json!([{"user": "ann", "connections": 1}])).await;
        // A node that only dies is missed after a quarter of a minute.
        assert!(before.elapsed() < Duration::from_secs(12));
    });
}
