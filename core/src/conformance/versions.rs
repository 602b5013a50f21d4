//! These cases check attributes, and messages that a node of a later version has stored.

use bytes::Bytes;

use super::calls::{channel, follow, key, patiently, replay, take, text};
use super::chain::Chain;
use super::fixture::{Fixture, Kept};
use crate::broker::{Append, BrokerErrorKind};
use crate::event::{Attributes, Data, EventName, Key, Message};

fn said(attributes: Attributes) -> Message {
    Message::new(EventName::new("said").unwrap(), Data::text("hello")).with_attributes(attributes)
}

fn eight() -> Attributes {
    (0..8).fold(Attributes::new(), |all, n| {
        all.with(&format!("a{n}-_.~:@+"), &"é:=,\"\\".repeat(n)).unwrap()
    })
}

/// Attributes come back from the feed and from history as they were, and a repeat under a key must
/// have the same.
pub async fn attributes_come_back_as_they_were(fixture: &dyn Fixture) {
    let nodes = [fixture.node().await, fixture.node().await];
    let channel = channel(Kept::Ample);
    let mut feed = follow(&*nodes[1], &channel).await;
    let mut chain = Chain(vec![feed.head]);
    let one = Attributes::new().with("content-type", "text/markdown").unwrap();
    let messages = [
        said(one.clone()),
        said(Attributes::new()),
        said(eight()).with_key(Key::new("k").unwrap()),
        said(Attributes::new().with("empty", "").unwrap()),
    ];
    for message in &messages {
        chain.publish(&*nodes[0], &channel, Append::new(message.clone())).await;
    }
    let keyed = |attributes: Attributes| Append::new(said(attributes)).with_idempotency_key(key("once"));
    let first = chain.publish(&*nodes[0], &channel, keyed(one.clone())).await;
    let again = patiently("publish", nodes[1].publish(&channel, keyed(one.clone())))
        .await
        .unwrap();
    assert_eq!((again.position, again.duplicate), (first, true));
    for other in [Attributes::new(), eight()] {
        let refused = patiently("publish", nodes[1].publish(&channel, keyed(other))).await;
        assert_eq!(refused.unwrap_err().kind, BrokerErrorKind::Rejected, "other attributes");
    }
    chain
        .publish(&*nodes[0], &channel, Append::new(said(eight())).and_end())
        .await;

    let shown = take(&mut feed, 7).await;
    let expected = messages.into_iter().chain([said(one), said(eight())]);
    for (event, message) in shown.iter().zip(expected) {
        assert_eq!(event.message, message, "from the feed");
    }
    let left = replay(&*nodes[1], &channel, Some(chain.0[0]), 100).await;
    assert_eq!(left.events, shown, "from history");
    assert!(left.complete && left.ended);
}

/// A message of a later version keeps its bytes and its place. The channel stays available before,
/// between and behind such messages.
pub async fn what_a_later_version_stored_takes_no_channel_down(fixture: &dyn Fixture) {
    let nodes = [fixture.node().await, fixture.node().await];
    let channel = channel(Kept::Ample);
    let mut feed = follow(&*nodes[1], &channel).await;
    let mut chain = Chain(vec![feed.head]);
    let later: [&[u8]; 5] = [
        b"x0401saidkan unknown kind of payload",
        b"3j04000000said{\"version\":3}",
        b"t0e00airwave.future-",
        b"\xff\xfe no message at all",
        b"~",
    ];
    let mut messages = vec![text("before").message];
    for bytes in later {
        messages.push(Message::from_stored(&Bytes::from_static(bytes)));
        messages.push(text("between").message);
    }
    for message in &messages {
        chain.publish(&*nodes[0], &channel, Append::new(message.clone())).await;
    }
    let shown = take(&mut feed, messages.len()).await;
    chain.names_previous_of(&shown);
    for (event, message) in shown.iter().zip(&messages) {
        assert_eq!(&event.message, message, "from the feed");
    }
    for (n, after) in chain.0.iter().enumerate() {
        let left = replay(&*nodes[1], &channel, Some(*after), 100).await;
        assert!(left.complete, "after event {n}");
        assert_eq!(left.events, shown[n..], "after event {n}");
    }
    let mut as_newest = chain;
    let newest = Message::from_stored(&Bytes::from_static(b"9z04000000said?"));
    as_newest.publish(&*nodes[0], &channel, Append::new(newest.clone())).await;
    let left = replay(&*nodes[1], &channel, None, 1).await;
    assert_eq!(left.events[0].message, newest, "as the newest");
    as_newest.publish(&*nodes[1], &channel, text("behind")).await;
}
