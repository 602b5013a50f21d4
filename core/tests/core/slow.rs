use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use airwave_core::format::GapReason::TooSlow;
use airwave_core::hub::FormatHandle;
use airwave_core::rule::{Delivery, ReplayOnSubscribe, SlowPolicy};
use airwave_core::session::{After, CloseReason};
use airwave_core::{Hub, Position, Rule};

use crate::support::*;

const RING: usize = 16;

struct SlowScene {
    backbone: Arc<Backbone>,
    node: Arc<Node>,
    hub: Hub,
    formats: [FormatHandle; 2],
}

/// A hub whose rings hold sixteen events.
fn scene(slow: SlowPolicy, change: impl FnOnce(&mut Rule)) -> SlowScene {
    let mut rule = rule();
    (rule.slow, rule.history.events) = (slow, RING);
    change(&mut rule);
    let backbone = Backbone::new();
    let node = backbone.node();
    let hub = hub_with(&node, rule, limits().with(|limits| limits.ring_events = RING));
    let formats = [
        hub.register_format(Lines::plain("a")).unwrap(),
        hub.register_format(Lines::stamped("b")).unwrap(),
    ];
    SlowScene {
        backbone,
        node,
        hub,
        formats,
    }
}

impl SlowScene {
    async fn listener(&self, format: usize) -> Listener {
        let mut listener = Listener::at(&self.hub, &self.formats[format], "c", After::Nothing).await;
        listener.confirmation().await;
        listener
    }

    /// Publishes `count` events while `quick` keeps up. The slow listeners must not delay it.
    fn say(&self, from: usize, count: usize, quick: &mut Listener) -> Vec<Position> {
        (from..from + count)
            .map(|n| {
                let position = self.backbone.say_keyed("c", &format!("key-{}", n % 3), &n.to_string());
                assert_eq!(texts(&quick.ready()), [n.to_string()], "who keeps up hears each at once");
                position
            })
            .collect()
    }
}

fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

#[tokio::test(start_paused = true)]
async fn refill_replays_what_the_ring_has_lost_and_delays_no_listener() {
    for format in 0..2 {
        for count in [RING, RING + 1, 600, 1700] {
            let scene = scene(SlowPolicy::Refill, |_| ());
            let mut quick = scene.listener(0).await;
            let mut slow = scene.listener(format).await;
            scene.say(0, count, &mut quick);
            let replays = scene.node.replays.load(SeqCst);
            assert_eq!(texts(&slow.settled().await), numbers(0..count));
            let pages = if count > RING { count.div_ceil(500) } else { 0 };
            assert_eq!(scene.node.replays.load(SeqCst) - replays, pages, "{count} events");
            scene.say(count, 3, &mut quick);
            assert_eq!(texts(&slow.ready()), numbers(count..count + 3));
        }
    }
}

/// It goes on falling behind while it is given page after page.
#[tokio::test(start_paused = true)]
async fn refill_catches_up_with_a_channel_that_does_not_stop() {
    let scene = scene(SlowPolicy::Refill, |_| ());
    let mut quick = scene.listener(0).await;
    let mut slow = scene.listener(0).await;
    scene.say(0, 1000, &mut quick);
    let mut heard: Vec<String> = Vec::new();
    for round in 0..40 {
        heard.extend(slow.take_ready(200).iter().map(|line| line.text().to_owned()));
        scene.say(1000 + round * 30, 30, &mut quick);
        settle().await;
    }
    heard.extend(slow.settled().await.iter().map(|line| line.text().to_owned()));
    assert_eq!(heard, numbers(0..2200));
}

#[tokio::test(start_paused = true)]
async fn refill_from_a_history_that_is_too_short_is_a_gap() {
    for format in 0..2 {
        let scene = scene(SlowPolicy::Refill, |_| ());
        scene.backbone.keep("c", RING);
        let mut quick = scene.listener(0).await;
        let mut slow = scene.listener(format).await;
        let positions = scene.say(0, 1, &mut quick);
        assert_eq!(texts(&slow.ready()), ["0"]);
        let more = scene.say(1, 100, &mut quick);
        let lines = slow.settled().await;
        let goes_on = more[99 - RING];
        assert!(
            matches!(lines[0], Frame::Gap { after, cursor, reason: TooSlow, .. } if (after, cursor) == (Some(positions[0]), goes_on)),
            "{:?}",
            lines[0]
        );
        assert_eq!(texts(&lines[1..]), numbers(101 - RING..101));
        let mut again = Listener::at(&scene.hub, &scene.formats[0], "c", after(goes_on)).await;
        assert_eq!(again.confirmation().await, (goes_on, true));
        assert_eq!(texts(&again.settled().await), numbers(101 - RING..101));
    }
}

#[tokio::test(start_paused = true)]
async fn refill_waits_for_an_unreachable_broker_and_delays_no_listener() {
    let scene = scene(SlowPolicy::Refill, |_| ());
    let mut quick = scene.listener(0).await;
    let mut slow = scene.listener(0).await;
    scene.say(0, 100, &mut quick);
    scene.node.unavailable(true);
    assert_eq!(slow.settled().await, []);
    scene.say(100, 100, &mut quick);
    scene.node.unavailable(false);
    assert_eq!(texts(&slow.settled().await), numbers(0..200));
}

#[tokio::test(start_paused = true)]
async fn skip_goes_on_at_the_head_after_a_gap() {
    for format in 0..2 {
        let scene = scene(SlowPolicy::Skip, |_| ());
        let mut quick = scene.listener(0).await;
        let mut slow = scene.listener(format).await;
        scene.say(0, 2, &mut quick);
        assert_eq!(texts(&slow.ready()), ["0", "1"]);
        let had = scene.say(2, RING, &mut quick)[RING - 1];
        let kept = slow.ready();
        assert_eq!(texts(&kept), numbers(2..2 + RING), "what the ring holds is not skipped");
        let last = scene.say(2 + RING, 100, &mut quick)[99];
        let lines = slow.settled().await;
        assert!(
            matches!(lines[..], [Frame::Gap { after, cursor, reason: TooSlow, .. }] if (after, cursor) == (Some(had), last)),
            "{lines:?}"
        );
        scene.say(102 + RING, 2, &mut quick);
        assert_eq!(texts(&slow.ready()), numbers(102 + RING..104 + RING));
        let mut again = Listener::at(&scene.hub, &scene.formats[0], "c", after(last)).await;
        assert_eq!(again.confirmation().await, (last, true));
        assert_eq!(texts(&again.settled().await), numbers(102 + RING..104 + RING));
    }
}

#[tokio::test(start_paused = true)]
async fn close_lets_it_come_back_with_its_cursor() {
    for format in 0..2 {
        let scene = scene(SlowPolicy::Close, |_| ());
        let mut quick = scene.listener(0).await;
        let mut slow = scene.listener(format).await;
        scene.say(0, 3, &mut quick);
        let last = slow.ready().pop().unwrap();
        scene.say(3, RING + 1, &mut quick);
        assert_eq!(slow.rest().await, []);
        assert_eq!(slow.closed, Some(CloseReason::TooSlow));
        let Frame::Event { position, .. } = last else {
            panic!("{last:?}")
        };
        let mut again = Listener::at(&scene.hub, &scene.formats[format], "c", after(position)).await;
        assert!(again.confirmation().await.1);
        assert_eq!(texts(&again.settled().await), numbers(3..4 + RING));
    }
}

/// The newest of each key is remembered beyond the ring, so nothing that counts was lost.
#[tokio::test(start_paused = true)]
async fn a_conflated_channel_needs_no_gap() {
    for format in 0..2 {
        for slow_policy in [SlowPolicy::Refill, SlowPolicy::Skip, SlowPolicy::Close] {
            let scene = scene(slow_policy, |rule| rule.delivery = Delivery::Latest);
            let mut quick = scene.listener(0).await;
            let mut slow = scene.listener(format).await;
            scene.backbone.say_keyed("c", "old", "old");
            quick.ready();
            scene.say(0, 100, &mut quick);
            let replays = scene.node.replays.load(SeqCst);
            assert_eq!(texts(&slow.settled().await), ["old", "97", "98", "99"]);
            assert_eq!(scene.node.replays.load(SeqCst), replays, "the broker need not be asked");
            scene.say(100, 2, &mut quick);
            assert_eq!(texts(&slow.ready()), ["100", "101"]);
            // It has had these: falling off again gives only what is newer.
            scene.backbone.say_keyed("c", "key-0", "x");
            (0..100).for_each(|_| _ = scene.backbone.say_keyed("c", "key-1", "y"));
            assert_eq!(texts(&slow.settled().await), ["x", "y"]);
            assert_eq!(slow.closed, None);
        }
    }
}

/// More keys than are remembered: what was forgotten is refilled or announced like anything else.
#[tokio::test(start_paused = true)]
async fn more_keys_than_are_remembered_are_not_lost_in_silence() {
    let scene = scene(SlowPolicy::Skip, |rule| rule.delivery = Delivery::Latest);
    let mut slow = scene.listener(0).await;
    for n in 0..11_000 {
        scene.backbone.say_keyed("c", &n.to_string(), &n.to_string());
    }
    let lines = slow.settled().await;
    assert!(
        matches!(lines[..], [Frame::Gap { reason: TooSlow, .. }]),
        "{} lines",
        lines.len()
    );
    // But who had what was forgotten is given the rest.
    for n in 0..9_000 {
        scene.backbone.say_keyed("c", &format!("{n}+"), &n.to_string());
    }
    assert_eq!(texts(&slow.settled().await), numbers(0..9_000));
}

/// Remembering the newest of each key does not escape the ring's bound of bytes.
#[tokio::test(start_paused = true)]
async fn large_events_of_many_keys_are_bounded() {
    let mut rule = rule();
    rule.delivery = Delivery::Latest;
    rule.replay = ReplayOnSubscribe::Last;
    let backbone = Backbone::new();
    let limits = limits().with(|limits| limits.ring_bytes = 1 << 20);
    let hub = hub_with(&backbone.node(), rule, limits);
    let format = hub.register_format(Lines::plain("a")).unwrap();
    let mut open = Listener::at(&hub, &format, "c", After::Nothing).await;
    let large = "x".repeat(50 << 10);
    for n in 0..200 {
        backbone.say_keyed("c", &n.to_string(), &large);
    }
    assert!(open.ready().len() < 200);
    let mut fresh = Listener::at(&hub, &format, "c", After::Nothing).await;
    let remembered = fresh.settled().await.len() - 1;
    assert!(
        (5..=20).contains(&remembered),
        "{remembered} events of 50 KiB are kept of 1 MiB"
    );
}

#[tokio::test(start_paused = true)]
async fn rings_and_turns_are_bounded() {
    for format in 0..2 {
        let backbone = Backbone::new();
        let limits = limits().with(|limits| limits.ring_bytes = 1 << 20);
        let hub = hub_with(&backbone.node(), rule(), limits);
        let formats = [
            hub.register_format(Lines::plain("a")).unwrap(),
            hub.register_format(Lines::stamped("b")).unwrap(),
        ];
        let mut idle = Listener::at(&hub, &formats[format], "c", After::Nothing).await;
        let mut heard = 0;
        let mut rng = 1_u64;
        for n in 0..2000_usize {
            rng = rng
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let size = match (rng >> 33) % 10 {
                0 => 60 << 10,
                1..4 => 5000,
                _ => 20,
            };
            backbone.say("c", &"x".repeat(size));
            let ring = &hub.channels(1)[0];
            assert!(ring.bytes <= 1 << 20, "{} bytes", ring.bytes);
            if n % 500 == 499 {
                heard += idle.settled().await.len();
            }
        }
        assert_eq!(heard, 2001);
        assert!(idle.largest < (64 << 10) + (61 << 10), "{} bytes in one turn", idle.largest);
    }
}

/// `replay = "all"` means history, also where the ring's bound of bytes is the smaller one.
#[tokio::test(start_paused = true)]
async fn all_that_history_holds_is_more_than_the_ring() {
    for delivery in [Delivery::Every, Delivery::Latest] {
        let mut rule = rule();
        (rule.replay, rule.delivery) = (ReplayOnSubscribe::All, delivery);
        rule.history.events = 2000;
        let backbone = Backbone::new();
        let limits = limits().with(|limits| limits.ring_bytes = 100_000);
        let hub = hub_with(&backbone.node(), rule, limits);
        let formats = [
            hub.register_format(Lines::plain("a")).unwrap(),
            hub.register_format(Lines::stamped("b")).unwrap(),
        ];
        for n in 0..1000 {
            backbone.say_keyed("c", &n.to_string(), &n.to_string());
        }
        for round in 0..2 {
            let mut listeners = Vec::new();
            for format in &formats {
                let mut listener = Listener::at(&hub, format, "c", After::Nothing).await;
                assert!(!listener.confirmation().await.1);
                assert_eq!(texts(&listener.settled().await), numbers(0..1000 + 10 * round));
                listeners.push(listener);
            }
            let from = 1000 + 10 * round;
            for n in from..from + 10 {
                backbone.say_keyed("c", &n.to_string(), &n.to_string());
            }
            for listener in &mut listeners {
                assert_eq!(texts(&listener.ready()), numbers(from..from + 10));
            }
        }
    }
}

/// What a fresh listener is given first, and that it and what follows are one stream.
#[tokio::test(start_paused = true)]
async fn what_is_replayed_on_subscribe_joins_what_is_live() {
    for (replay, first) in [
        (ReplayOnSubscribe::None, vec![]),
        (ReplayOnSubscribe::Last, vec!["7", "8", "9"]),
        (ReplayOnSubscribe::All, vec!["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]),
    ] {
        let scene = scene(SlowPolicy::Refill, |rule| rule.replay = replay);
        for n in 0..10 {
            scene.backbone.say_keyed("c", &format!("key-{}", n % 3), &n.to_string());
        }
        let mut cursors: HashMap<usize, String> = HashMap::new();
        for format in 0..2 {
            let mut listener = Listener::at(&scene.hub, &scene.formats[format], "c", After::Nothing).await;
            assert!(!listener.confirmation().await.1);
            let lines = listener.settled().await;
            assert_eq!(texts(&lines), first);
            if let Some(line) = lines.first() {
                cursors.insert(format, line.cursor().unwrap());
            }
        }
        // Cut off after the first of these, it comes back for the rest.
        if let Some(cursor) = cursors.get(&0) {
            let mut again = Listener::at(&scene.hub, &scene.formats[0], "c", After::parse(Some(cursor))).await;
            assert!(again.confirmation().await.1);
            assert_eq!(texts(&again.settled().await), first[1..]);
        }
    }
}
