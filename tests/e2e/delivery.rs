//! Every listener hears every event, once and in order, whatever it listens over; and what the
//! rules make of that.

use std::num::NonZeroU32;

use airwave::rule::{Delivery, ReplayOnSubscribe};
use airwave::{Data, EventName, Message, Publish};

use crate::support::{Heard, Listener, Node, Way, each_way, rule, within};

each_way!(
    events_come_in_order_with_the_positions_that_publishing_gave,
    a_late_listener_is_given_nothing,
    a_late_listener_is_given_the_newest_of_each_key,
    a_late_listener_is_given_all,
    a_confirmation_is_a_barrier,
    payloads_of_every_kind_arrive_as_they_were,
    of_a_conflated_channel_the_newest_of_each_key_arrives,
    the_end_closes_and_a_return_is_told_so,
    an_ended_channel_takes_no_more,
);

async fn events_come_in_order_with_the_positions_that_publishing_gave(way: Way) {
    let node = Node::new().await;
    let mut listener = node.listen(way, "orders/1").await;
    for number in 0..50 {
        let position = node.publish("orders/1", number).await;
        let event = listener.event().await;
        assert_eq!((event.id.as_str(), event.number()), (position.as_str(), number));
        assert_eq!((event.channel.as_str(), event.name.as_str()), ("orders/1", "n"));
    }
    // What waits comes together and is no less in order.
    for number in 50..500 {
        node.publish("orders/1", number).await;
    }
    assert_eq!(listener.numbers(450).await, (50..500).collect::<Vec<_>>());
}

/// One channel, all ways at once: the same events with the same ids.
#[test]
fn all_ways_hear_the_same() {
    crate::support::run(async {
        let node = Node::new().await;
        let mut listeners = Vec::new();
        for way in Way::ALL {
            listeners.push(node.listen(way, "orders/1").await);
        }
        let mut positions = Vec::new();
        for number in 0..100 {
            positions.push(node.publish("orders/1", number).await);
        }
        for listener in &mut listeners {
            let mut heard = Vec::new();
            for number in 0..100 {
                let event = listener.event().await;
                assert_eq!(event.number(), number);
                heard.push(event.id);
            }
            assert_eq!(heard, positions);
            assert_eq!(listener.cursor(), positions[99]);
        }
        // Encoded once for each wire, however many listen.
        assert_eq!(node.metric("airwave_encodes_total{format=\"sse\"}"), 100);
        assert_eq!(node.metric("airwave_encodes_total{format=\"websocket\"}"), 100);
    });
}

async fn a_late_listener_is_given_nothing(way: Way) {
    let node = Node::new().await;
    let last = node.publish("a", 1).await;
    let mut listener = node.open(way, "/channels/a").await;
    let subscribed = listener.subscribed().await;
    assert_eq!((subscribed.resumed, subscribed.cursor.as_str()), (false, last.as_str()));
    node.publish("a", 2).await;
    assert_eq!(listener.number().await, 2);
}

async fn a_late_listener_is_given_the_newest_of_each_key(way: Way) {
    let node = Node::of_rule("{*all}", |rule| rule.replay = ReplayOnSubscribe::Last).await;
    for number in 0..30 {
        node.publish_keyed("a", ["red", "green", "blue"][number as usize % 3], number)
            .await;
    }
    let mut listener = node.listen(way, "a").await;
    assert_eq!(listener.numbers(3).await, [27, 28, 29]);
    node.publish_keyed("a", "red", 30).await;
    assert_eq!(listener.number().await, 30);
    // Having the newest, it resumes after them.
    let mut again = node.resume(way, "a", listener.cursor()).await;
    assert!(again.subscribed().await.resumed);
    node.publish_keyed("a", "red", 31).await;
    assert_eq!(again.number().await, 31);
}

async fn a_late_listener_is_given_all(way: Way) {
    let node = Node::of_rule("{*all}", |rule| {
        rule.replay = ReplayOnSubscribe::All;
        rule.history.events = 2000;
    })
    .await;
    for number in 0..1500 {
        node.publish("a", number).await;
    }
    let mut listener = node.listen(way, "a").await;
    assert_eq!(listener.numbers(1500).await, (0..1500).collect::<Vec<_>>());
    node.publish("a", 1500).await;
    assert_eq!(listener.number().await, 1500);
}

/// P6: what is published after the confirmation is heard, however soon.
async fn a_confirmation_is_a_barrier(way: Way) {
    let node = Node::new().await;
    for round in 0..100 {
        let channel = format!("a/{round}");
        let mut listener = node.listen(way, &channel).await;
        let position = node.publish(&channel, round).await;
        assert_eq!(listener.event().await.id, position);
    }
}

async fn payloads_of_every_kind_arrive_as_they_were(way: Way) {
    let node = Node::new().await;
    let mut listener = node.listen(way, "a").await;
    let binary: Vec<u8> = (0..=255).cycle().take(3000).collect();
    let payloads = [
        (Data::json_text("{\"a\":[1,2.50,\"\\u2028\",null]}").unwrap(), None),
        (Data::json("two\nlines\r\nand \u{85}\u{2028}\u{2029}\0 more").unwrap(), None),
        (Data::json("").unwrap(), None),
        (Data::text("plain text"), Some("plain text")),
        (Data::text(""), Some("")),
        (Data::text("id: 1\nevent: forged\ndata: x\n\n: comment"), None),
        (Data::text(" a space, and:colons"), None),
        (Data::text("\u{feff}first"), None),
        (Data::text("nul \0 and emoji \u{1f600}"), None),
        (Data::binary(binary), None),
        (Data::binary(Vec::new()), None),
    ];
    for (data, _) in &payloads {
        let message = Message::new(EventName::new("said").unwrap(), data.clone());
        node.channel("a").publish_with(Publish::message(message)).await.unwrap();
    }
    for (data, shown) in &payloads {
        let event = listener.event().await;
        let wanted = shown.map_or(data.as_bytes(), str::as_bytes);
        assert_eq!(event.data, wanted, "{way:?} {:?}", String::from_utf8_lossy(wanted));
        assert_eq!(event.name, "said");
    }
    // The one thing that SSE changes, and says so: line breaks of text become LF.
    let message = Message::new(EventName::new("said").unwrap(), Data::text("a\r\nb\rc\nd\r\n"));
    node.channel("a").publish_with(Publish::message(message)).await.unwrap();
    let wanted = if way.is_sse() { "a\nb\nc\nd\n" } else { "a\r\nb\rc\nd\r\n" };
    assert_eq!(listener.event().await.text(), wanted);
}

/// With a rate, what comes within a window goes out together, and then only the newest of each key.
async fn of_a_conflated_channel_the_newest_of_each_key_arrives(way: Way) {
    let node = Node::of_rule("{*all}", |rule| {
        rule.delivery = Delivery::Latest;
        rule.max_rate = NonZeroU32::new(4);
    })
    .await;
    let mut listener = node.listen(way, "a").await;
    // The first goes out at once and begins the window.
    node.publish_keyed("a", "red", 0).await;
    assert_eq!(listener.number().await, 0);
    let begin = std::time::Instant::now();
    for number in 1..=200 {
        node.publish_keyed("a", ["red", "green"][number as usize % 2], number).await;
    }
    let published = begin.elapsed();
    let mut heard = Vec::new();
    while heard.last() != Some(&200) {
        heard.push(listener.number().await);
    }
    assert_eq!(heard[heard.len() - 2..], [199, 200], "the newest of each key: {heard:?}");
    assert!(heard.is_sorted(), "in order: {heard:?}");
    // Two keys in each window that began while it was published, and in the last one. On an idle
    // machine that is one window.
    let windows = 2 + published.as_millis() as usize / 250;
    assert!(heard.len() <= 2 * windows, "{} events in {windows} windows", heard.len());
}

async fn heard_until_closed(listener: &mut Listener) -> Vec<Heard> {
    let mut all = Vec::new();
    loop {
        let heard = listener.next().await;
        let over = matches!(heard, Heard::Closed { .. });
        all.push(heard);
        if over {
            return all;
        }
    }
}

async fn the_end_closes_and_a_return_is_told_so(way: Way) {
    let node = Node::new().await;
    let mut listener = node.listen(way, "job/1").await;
    node.publish("job/1", 1).await;
    let end = node.channel("job/1").end().await.unwrap().position.to_string();
    assert_eq!(listener.number().await, 1);
    let wanted = Heard::End {
        channel: "job/1".to_owned(),
        cursor: end.clone(),
    };
    assert_eq!(listener.next().await, wanted);
    if way.is_sse() {
        assert!(matches!(listener.next().await, Heard::Closed { .. }));
        assert_eq!(listener.cursor(), end);
        // An EventSource stops at anything but 200, and 204 says that this is as it should be.
        let path = format!("/channels/job/1?after={end}");
        let Err(answer) = node.try_open(way, &path, &[]).await else {
            panic!("a stream of nothing")
        };
        assert_eq!((answer.status, answer.body.len()), (204, 0));
        let Err(answer) = node.try_open(way, "/channels/job/1", &[("last-event-id", &end)]).await else {
            panic!("a stream of nothing")
        };
        assert_eq!(answer.status, 204);
    } else {
        // The end ends the subscription and not the conversation.
        listener.send(serde_json::json!({"type": "ping", "id": 7})).await;
        assert_eq!(listener.answer().await, serde_json::json!({"type": "pong", "id": 7}));
        let mut again = node.resume(way, "job/1", &end).await;
        assert!(again.subscribed().await.resumed);
        assert_eq!(again.next().await, wanted);
    }
    // Who comes fresh, or with an older cursor, is told of the end as well.
    let mut fresh = node.listen(way, "job/1").await;
    assert_eq!(fresh.next().await, wanted);
}

async fn an_ended_channel_takes_no_more(way: Way) {
    let node = Node::of(crate::support::config([rule("{*all}", |rule| {
        rule.replay = ReplayOnSubscribe::All;
    })]))
    .await;
    let mut listener = node.listen(way, "a").await;
    let answer = node.post("/publish", &[], r#"{"channel":"a","data":1,"end":true}"#).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    for body in [
        r#"{"channel":"a","data":2}"#,
        r#"{"channel":"a","end":true}"#,
        r#"{"channel":"a","data":2,"end":true}"#,
    ] {
        let answer = node.post("/publish", &[], body).await;
        assert_eq!((answer.status, answer.error().as_str()), (409, "ended"), "{body}");
    }
    assert_eq!(listener.number().await, 1);
    assert!(matches!(listener.next().await, Heard::End { .. }));
    if way.is_sse() {
        let rest = within("the stream closes", heard_until_closed(&mut listener)).await;
        assert_eq!(rest.len(), 1, "{rest:?}");
    }
    // History tells the same story, without the end itself.
    let page = node.get("/channels/a").await.json();
    assert_eq!(
        (page["ended"].as_bool(), page["events"].as_array().unwrap().len()),
        (Some(true), 1)
    );
}
