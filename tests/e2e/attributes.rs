//! Attributes: docs/protocol.md, section 1.

use airwave_core::rule::SendPolicy;
use serde_json::{Value, json};

use crate::support::{Node, Way, run};

async fn node() -> Node {
    Node::of_rule("a", |rule| {
        rule.send = SendPolicy::Publish;
        rule.history.events = 100;
    })
    .await
}

#[test]
fn attributes_are_on_every_wire_that_has_a_place_for_them() {
    run(async {
        let node = node().await;
        let attributes = json!({"content-type": "text/markdown", "trace": "é \"\\ \u{2028}"});
        let mut many = node.open(Way::Sse, "/events?channel=a").await;
        let mut socket = node.listen(Way::WebSocket, "a").await;
        let mut one = node.listen(Way::Sse, "a").await;
        let said = json!({"channel": "a", "data": 1, "key": "k", "attributes": attributes});
        assert_eq!(node.post("/publish", &[], said.to_string()).await.status, 200);
        let said = json!({"event": "e", "data": 2, "attributes": attributes});
        assert_eq!(node.post("/channels/a", &[], said.to_string()).await.status, 200);
        socket
            .send(json!({"type": "send", "channel": "a", "event": "e", "data": 3, "attributes": attributes}))
            .await;
        assert_eq!(
            node.post("/publish", &[], r#"{"channel":"a","data":4,"attributes":{}}"#)
                .await
                .status,
            200
        );
        assert_eq!(
            node.post("/publish", &[], r#"{"channel":"a","data":5,"attributes":null}"#)
                .await
                .status,
            200
        );
        many.subscribed().await;
        for listener in [&mut many, &mut socket] {
            for number in 1..=5 {
                let event = listener.event().await;
                let expected = (number < 4).then_some(&attributes);
                assert_eq!((event.number(), event.attributes.as_ref()), (number, expected));
            }
        }
        // An event of one channel's stream is its data alone, without key and attributes.
        assert_eq!(one.numbers(5).await, [1, 2, 3, 4, 5]);
        let page = node.get("/channels/a").await.json();
        let of_page: Vec<&Value> = page["events"]
            .as_array()
            .unwrap()
            .iter()
            .map(|event| &event["attributes"])
            .collect();
        assert_eq!(of_page, [&attributes, &attributes, &attributes, &Value::Null, &Value::Null]);
    });
}

#[test]
fn attributes_have_limits_and_what_breaks_them_is_said() {
    run(async {
        let node = node().await;
        let many = |count: usize| -> Value {
            (0..count)
                .map(|n| (format!("n{n}"), json!("")))
                .collect::<serde_json::Map<_, _>>()
                .into()
        };
        let long = |bytes: usize| json!({"a": "x".repeat(bytes - 1)});
        for good in [many(8), long(1024)] {
            let body = json!({"channel": "a", "data": 1, "attributes": good});
            assert_eq!(node.post("/publish", &[], body.to_string()).await.status, 200, "{good}");
        }
        for (bad, told) in [
            (many(9).to_string(), "at most 8"),
            (long(1025).to_string(), "1025 bytes"),
            (r#"{"airwave.x":"1"}"#.into(), "reserved"),
            (r#"{"a b":"1"}"#.into(), "is made of letters"),
            (r#"{"a":"\u0000"}"#.into(), "control characters"),
            (r#"{"a":1}"#.into(), "expected a string"),
            (r#"{"a":"1","a":"2"}"#.into(), "given twice"),
            (r#"["a"]"#.into(), "an object whose values are texts"),
        ] {
            let publication = format!(r#"{{"channel":"a","data":1,"attributes":{bad}}}"#);
            let message = format!(r#"{{"event":"e","data":1,"attributes":{bad}}}"#);
            for (path, body) in [("/publish", publication), ("/channels/a", message)] {
                let answer = node.post(path, &[], body).await;
                assert_eq!((answer.status, answer.error().as_str()), (400, "bad-request"), "{bad}");
                let text = answer.json()["error"]["message"].to_string();
                assert!(text.contains(told), "{bad}: {text}");
            }
        }
    });
}

#[test]
fn another_attribute_is_another_message_for_an_idempotency_key() {
    run(async {
        let node = node().await;
        let body = |text: &str| json!({"channel": "a", "data": 1, "idempotency_key": "k", "attributes": {"a": text}}).to_string();
        assert_eq!(node.post("/publish", &[], body("1")).await.status, 200);
        assert_eq!(node.post("/publish", &[], body("1")).await.json()["duplicate"], true);
        assert_eq!(node.post("/publish", &[], body("2")).await.error(), "bad-request");
    });
}
