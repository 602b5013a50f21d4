//! Publishing over HTTP: docs/protocol.md, section 7.

use serde_json::{Value, json};

use crate::support::{Heard, Node, Way, config, http, rule, run};

async fn publish(node: &Node, body: Value) -> Value {
    let answer = node.post("/publish", &[], body.to_string()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

#[test]
fn one_publication() {
    run(async {
        let node = Node::new().await;
        let mut sse = node.listen(Way::Sse, "a").await;
        let mut websocket = node.listen(Way::WebSocket, "a").await;
        let answer = publish(
            &node,
            json!({"channel": "a", "event": "e", "data": {"x": [1, null]}, "key": "k"}),
        )
        .await;
        assert_eq!((&answer["channel"], &answer["duplicate"]), (&json!("a"), &json!(false)));
        for listener in [&mut sse, &mut websocket] {
            let event = listener.event().await;
            assert_eq!((event.name.as_str(), event.text()), ("e", "{\"x\":[1,null]}"));
            assert_eq!(json!(event.id), answer["cursor"]);
        }
        // The event's name has a default, and the payload its three forms.
        publish(&node, json!({"channel": "a", "text": "a\nb"})).await;
        publish(&node, json!({"channel": "a", "base64": "AAEC/w=="})).await;
        publish(&node, json!({"channel": "a", "data": null})).await;
        for listener in [&mut sse, &mut websocket] {
            let event = listener.event().await;
            assert_eq!((event.name.as_str(), event.text()), ("message", "a\nb"));
            assert_eq!(listener.event().await.data, [0, 1, 2, 255]);
            assert_eq!(listener.event().await.text(), "null");
        }
    });
}

#[test]
fn an_array_is_answered_item_by_item() {
    run(async {
        let node = Node::of(config([rule("a/{id}", |_| {})])).await;
        let mut listener = node.listen(Way::Sse, "a/1").await;
        let (good, unknown, bad) = (
            |n: u64| json!({"channel": "a/1", "data": n}),
            json!({"channel": "b", "data": 1}),
            json!({"channel": "a/1", "event": "airwave.forged", "data": 1}),
        );
        for (items, status) in [
            (json!([good(1), good(2)]), 200),
            (json!([good(3), unknown, good(4), bad]), 207),
            (json!([unknown, bad]), 404),
            (json!([bad, unknown]), 400),
        ] {
            let answer = node.post("/publish", &[], items.to_string()).await;
            assert_eq!(answer.status, status, "{answer:?}");
            let (items, answers) = (items.as_array().unwrap(), answer.json());
            let answers = answers.as_array().unwrap();
            assert_eq!(answers.len(), items.len());
            for (item, answer) in items.iter().zip(answers) {
                let fine = item["channel"] == "a/1" && item["event"].is_null();
                assert_eq!(answer["cursor"].is_string(), fine, "{answer}");
                assert_eq!(answer["error"]["code"].is_string(), !fine, "{answer}");
            }
        }
        assert_eq!(listener.numbers(4).await, [1, 2, 3, 4]);
        for (body, word) in [("[]".to_owned(), "1 to 1000"), (format!("[{}1]", "1,".repeat(1000)), "")] {
            let answer = node.post("/publish", &[], body).await;
            assert_eq!((answer.status, answer.error().as_str()), (400, "bad-request"));
            assert!(
                answer.json()["error"]["message"].as_str().unwrap().contains(word),
                "{answer:?}"
            );
        }
        let many: Vec<Value> = (0..1001).map(good).collect();
        assert_eq!(
            node.post("/publish", &[], json!(many).to_string()).await.error(),
            "bad-request"
        );
        let many: Vec<Value> = (0..1000).map(good).collect();
        assert_eq!(node.post("/publish", &[], json!(many).to_string()).await.status, 200);
        assert_eq!(listener.numbers(1000).await, (0..1000).collect::<Vec<_>>());
    });
}

/// P2: repeated with the same key, by header or in the body, it happens once.
#[test]
fn a_key_makes_repeating_harmless() {
    run(async {
        let node = Node::new().await;
        let mut listener = node.listen(Way::WebSocket, "a").await;
        let header = [("idempotency-key", "one")];
        let first = node.post("/publish", &header, r#"{"channel":"a","data":1}"#).await.json();
        let again = node.post("/publish", &header, r#"{"channel":"a","data":1}"#).await.json();
        assert_eq!((&first["cursor"], &again["duplicate"]), (&again["cursor"], &json!(true)));
        let in_body = publish(&node, json!({"channel": "a", "data": 1, "idempotency_key": "one"})).await;
        assert_eq!(in_body["cursor"], first["cursor"]);
        // What stands in the body counts more than the header; a key is of one channel.
        let header = [("idempotency-key", "two")];
        let body = r#"{"channel":"a","data":1,"idempotency_key":"one"}"#;
        assert_eq!(node.post("/publish", &header, body).await.json()["duplicate"], true);
        let other = publish(&node, json!({"channel": "b", "data": 5, "idempotency_key": "one"})).await;
        assert_eq!(other["duplicate"], false);
        publish(&node, json!({"channel": "a", "data": 6})).await;
        assert_eq!(listener.numbers(2).await, [1, 6]);
        // Many at once: one of them does it.
        let posts = (0..20).map(|n| {
            // Half of them by header: that is the same key.
            let body = match n % 2 {
                0 => json!({"channel": "a", "data": 100, "idempotency_key": "crowd"}),
                _ => json!({"channel": "a", "data": 100}),
            };
            let (body, by_header) = (body.to_string(), n % 2 == 1);
            let address = node.own;
            tokio::spawn(async move {
                let headers = [("content-type", "application/json"), ("idempotency-key", "crowd")];
                let headers = if by_header { &headers[..] } else { &headers[..1] };
                http::request(address, "POST", "/publish", headers, body.into()).await.json()
            })
        });
        let mut answers = Vec::new();
        for post in posts.collect::<Vec<_>>() {
            answers.push(post.await.unwrap());
        }
        assert_eq!(answers.iter().filter(|answer| answer["duplicate"] == false).count(), 1);
        assert!(answers.iter().all(|answer| answer["cursor"] == answers[0]["cursor"]));
        let crowd = listener.event().await;
        assert_eq!(json!(crowd.id), answers[0]["cursor"]);
        for (key, status) in [
            ("with space", 400),
            ("", 200),
            (&"k".repeat(256), 400),
            (&"k".repeat(255), 200),
        ] {
            let answer = node
                .post("/publish", &[("idempotency-key", key)], r#"{"channel":"a","data":1}"#)
                .await;
            assert_eq!(answer.status, status, "{key:?}");
        }
        let answer = node
            .post("/publish", &[("idempotency-key", "x")], r#"[{"channel":"a","data":1}]"#)
            .await;
        assert_eq!(answer.error(), "bad-request");
    });
}

/// Event and end are one step: repeated with one key after an unknown outcome, both have happened
/// once.
#[test]
fn an_end_can_be_repeated_with_its_key() {
    run(async {
        let node = Node::new().await;
        for (channel, body) in [
            ("a", r#"{"channel":"a","data":1,"end":true,"idempotency_key":"k"}"#),
            ("b", r#"{"channel":"b","end":true,"idempotency_key":"k"}"#),
        ] {
            let mut listener = node.listen(Way::Sse, channel).await;
            let first = node.post("/publish", &[], body).await.json();
            let again = node.post("/publish", &[], body).await.json();
            assert_eq!((&first["cursor"], &first["duplicate"]), (&again["cursor"], &json!(false)));
            assert_eq!(again["duplicate"], true, "{again}");
            if channel == "a" {
                assert_eq!(listener.number().await, 1);
            }
            let Heard::End { cursor, .. } = listener.next().await else {
                panic!("not the end")
            };
            assert_eq!(json!(cursor), first["cursor"]);
        }
        // An event without its end is another payload.
        publish(&node, json!({"channel": "c", "data": 1, "idempotency_key": "k"})).await;
        let body = r#"{"channel":"c","data":1,"end":true,"idempotency_key":"k"}"#;
        assert_eq!(node.post("/publish", &[], body).await.error(), "bad-request");
        assert_eq!(node.get("/channels/c").await.json()["ended"], false);
    });
}

/// P1: what is answered with a 4xx has not happened, not even in part.
#[test]
fn what_is_refused_has_left_nothing_behind() {
    run(async {
        let node = Node::new().await;
        let events = async |channel: &str| {
            let page = node.get(&format!("/channels/{channel}")).await.json();
            (page["events"].as_array().unwrap().len(), page["ended"] == true)
        };
        // As long as a key may be: with an end behind it, it is the same key.
        for length in [1, 252, 255] {
            let channel = format!("long/{length}");
            let body = json!({"channel": channel, "data": 1, "end": true, "idempotency_key": "k".repeat(length)});
            for duplicate in [false, true] {
                let answer = publish(&node, body.clone()).await;
                assert_eq!(answer["duplicate"], duplicate, "{length}: {answer}");
            }
            assert_eq!(events(&channel).await, (1, true));
        }
        let refused = json!([
            {"channel": "a", "data": 1, "end": true, "idempotency_key": "k".repeat(256)},
            {"channel": "a", "data": 2},
        ]);
        assert_eq!(node.post("/publish", &[], refused.to_string()).await.status, 400);
        let refused = json!([
            {"channel": "b", "event": "a/b", "data": 1, "end": true},
            {"channel": "c", "data": "x".repeat(70_000), "end": true},
            {"channel": "d", "data": 1, "text": "y", "end": true},
        ]);
        let answer = node.post("/publish", &[], refused.to_string()).await;
        let codes: Vec<_> = answer
            .json()
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["error"]["code"].clone())
            .collect();
        assert_eq!(codes, ["bad-request", "too-large", "bad-request"]);
        for channel in ["a", "b", "c", "d"] {
            assert_eq!(events(channel).await, (0, false), "{channel}");
        }
        // Keys that look like those of other parts or of an end are keys of their own.
        for key in ["k", "k~end", "k~1", "k~2"] {
            assert_eq!(
                publish(&node, json!({"channel": "e", "data": key, "idempotency_key": key})).await["duplicate"],
                false
            );
        }
        let ended = publish(
            &node,
            json!({"channel": "e", "data": 0, "end": true, "idempotency_key": "end"}),
        )
        .await;
        assert_eq!((&ended["duplicate"], events("e").await), (&json!(false), (5, true)));
    });
}

/// P2: another payload under a known key is refused, and nothing is appended.
#[test]
fn a_known_key_with_another_payload_is_refused() {
    run(async {
        let node = Node::new().await;
        let keyed = |data: u32| json!({"channel": "a", "data": data, "idempotency_key": "k"}).to_string();
        assert_eq!(node.post("/publish", &[], keyed(1)).await.status, 200);
        let answer = node.post("/publish", &[], keyed(2)).await;
        assert_eq!((answer.status, answer.error().as_str()), (400, "bad-request"));
        let both = format!("[{},{}]", keyed(1), keyed(2));
        let answer = node.post("/publish", &[], both).await;
        assert_eq!((answer.status, &answer.json()[0]["duplicate"]), (207, &json!(true)));
        assert_eq!(answer.json()[1]["error"]["code"], "bad-request");
        let page = node.get("/channels/a").await.json();
        assert_eq!(page["events"].as_array().unwrap().len(), 1);
    });
}

/// docs/protocol.md, section 6.
#[test]
fn history_is_read_in_pages_and_continued_by_a_stream() {
    run(async {
        let node = Node::of_rule("{*all}", |rule| rule.history.events = 200).await;
        for number in 0..120 {
            node.publish("a", number).await;
        }
        let newest = node.get("/channels/a").await.json();
        let numbers = |page: &Value| -> Vec<u64> {
            let events = page["events"].as_array().unwrap();
            events.iter().map(|event| event["data"].as_u64().unwrap()).collect()
        };
        assert_eq!(numbers(&newest), (70..120).collect::<Vec<_>>());
        assert_eq!(
            (&newest["complete"], &newest["more"], &newest["ended"]),
            (&json!(true), &json!(false), &json!(false))
        );
        let first = node.get("/channels/a?limit=1000").await.json();
        let mut cursor = first["events"][0]["id"].as_str().unwrap().to_owned();
        let mut all = vec![0];
        loop {
            let page = node.get(&format!("/channels/a?limit=50&after={cursor}")).await.json();
            all.extend(numbers(&page));
            assert_eq!(page["complete"], true);
            cursor = page["cursor"].as_str().unwrap().to_owned();
            if page["more"] == false {
                break;
            }
        }
        assert_eq!(all, (0..120).collect::<Vec<_>>());
        node.publish("a", 120).await;
        for way in [Way::Sse, Way::WebSocket] {
            let mut listener = node.resume(way, "a", &cursor).await;
            assert!(listener.subscribed().await.resumed);
            assert_eq!(listener.number().await, 120);
        }
        // The mark of a channel's end takes no event's place.
        for n in 0..3 {
            node.publish("over", n).await;
        }
        let ended = node.post("/publish", &[], r#"{"channel":"over","end":true}"#).await;
        assert_eq!(ended.status, 200);
        for limit in 1..=3 {
            let page = node.get(&format!("/channels/over?limit={limit}")).await.json();
            assert_eq!(numbers(&page), (3 - limit..3).collect::<Vec<_>>());
            assert_eq!((&page["ended"], &page["cursor"]), (&json!(true), &ended.json()["cursor"]));
        }
        // A channel without events and listeners has a cursor to begin with.
        let page = node.get("/channels/new").await.json();
        let mut listener = node.resume(Way::Sse, "new", page["cursor"].as_str().unwrap()).await;
        assert!(listener.subscribed().await.resumed);
        for (query, word) in [
            ("limit=0", "limit"),
            ("limit=1001", "limit"),
            ("limit=x", "limit"),
            ("after=x", "after"),
            ("after=-1", "after"),
            ("limit=1&limit=2", "limit"),
        ] {
            let answer = node.get(&format!("/channels/a?{query}")).await;
            assert_eq!((answer.status, answer.error().as_str()), (400, "bad-request"), "{query}");
            assert!(answer.json()["error"]["message"].as_str().unwrap().contains(word));
        }
    });
}
