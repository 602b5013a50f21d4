use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use airwave_core::hub::Connection;
use airwave_core::session::After;
use airwave_core::{Hub, PageLimit, Position, Replay};

use crate::support::*;

const ALL: PageLimit = PageLimit::events(100);

/// A hub whose log of `c` is open, and a client that listens to it.
struct PageScene {
    backbone: Arc<Backbone>,
    node: Arc<Node>,
    hub: Hub,
    listener: Listener,
}

impl PageScene {
    async fn new() -> Self {
        let backbone = Backbone::new();
        let node = backbone.node();
        let hub = hub(&node, rule());
        let listener = Listener::at(&hub, &hub.register_format(Lines::plain("a")).unwrap(), "c", After::Nothing).await;
        Self {
            backbone,
            node,
            hub,
            listener,
        }
    }

    fn say(&self, count: usize) -> Vec<Position> {
        (0..count).map(|n| self.backbone.say("c", &n.to_string())).collect()
    }

    /// A page, and how many events the broker gave for it.
    async fn page(&self, after: Position, limit: PageLimit) -> (Replay, usize) {
        let before = self.node.events_read.load(SeqCst);
        let connection: Arc<Connection> = self.listener.session.connection().clone();
        let page = self.hub.history(&connection, &name("c"), Some(after), limit).await.unwrap().1;
        (page, self.node.events_read.load(SeqCst) - before)
    }
}

fn positions(page: &Replay) -> Vec<Position> {
    page.events.iter().map(|event| event.position).collect()
}

#[tokio::test(start_paused = true)]
async fn the_broker_gives_one_event_of_a_page_that_the_log_holds() {
    let mut scene = PageScene::new().await;
    let said = scene.say(5);
    scene.listener.settled().await;
    let (page, read) = scene.page(said[0], PageLimit::events(2)).await;
    assert_eq!(
        (positions(&page), page.more, page.complete),
        (said[1..3].to_vec(), true, true)
    );
    assert_eq!((page.head, page.ended, read), (said[4], false, 1));
    let (page, read) = scene.page(said[2], ALL).await;
    assert_eq!((positions(&page), page.more, read), (said[3..].to_vec(), false, 1));
    // A limit in bytes always lets one event through.
    let (page, read) = scene.page(said[0], ALL.with_bytes(1)).await;
    assert_eq!((positions(&page), page.more, read), (said[1..2].to_vec(), true, 1));
    let end = scene.backbone.end("c");
    scene.listener.settled().await;
    let (page, read) = scene.page(said[3], ALL).await;
    assert_eq!((positions(&page), page.ended, read), (vec![said[4], end], true, 1));
}

/// What was published before the page was asked for stands in it, also on a node that lags.
#[tokio::test(start_paused = true)]
async fn a_page_holds_what_the_log_has_not_heard_yet() {
    let mut scene = PageScene::new().await;
    let mut said = scene.say(3);
    scene.listener.settled().await;
    scene.node.lag();
    said.extend(scene.say(2));
    let (page, read) = scene.page(said[0], ALL).await;
    assert_eq!((positions(&page), read), (said[1..].to_vec(), 5));
}

#[tokio::test(start_paused = true)]
async fn what_the_log_has_and_the_broker_lost_is_in_no_page() {
    let mut scene = PageScene::new().await;
    let said = scene.say(4);
    scene.listener.settled().await;
    scene.backbone.lose_tail("c", 2);
    let (page, _) = scene.page(said[0], ALL).await;
    assert_eq!((positions(&page), page.head), (vec![said[1]], said[1]));
    let other = scene.say(1);
    scene.listener.settled().await;
    let (page, _) = scene.page(said[0], ALL).await;
    assert_eq!((positions(&page), page.complete), (vec![said[1], other[0]], true));
}

/// A rule that keeps little, or little time, holds for pages as well.
#[tokio::test(start_paused = true)]
async fn what_the_broker_keeps_no_longer_is_in_no_page() {
    let mut scene = PageScene::new().await;
    let said = scene.say(4);
    scene.listener.settled().await;
    scene.backbone.keep("c", 1);
    let (page, _) = scene.page(said[0], ALL).await;
    assert_eq!((positions(&page), page.complete), (said[3..].to_vec(), false));
}

/// The log has told of a gap: the page is the broker's.
#[tokio::test(start_paused = true)]
async fn a_log_with_a_gap_gives_no_page_over_it() {
    let mut scene = PageScene::new().await;
    let said = scene.say(3);
    scene.listener.settled().await;
    scene.node.lose(1);
    scene.say(1);
    scene.backbone.keep("c", 1);
    let newest = scene.say(1);
    scene.listener.settled().await;
    let (page, read) = scene.page(said[1], ALL).await;
    assert_eq!((positions(&page), page.complete, read), (newest, false, 2));
}
