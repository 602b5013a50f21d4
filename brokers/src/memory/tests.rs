use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use airwave_core::broker::IDEMPOTENCY_WINDOW;
use airwave_core::rule::History;
use airwave_core::rule::TransportName;
use airwave_core::{ChannelName, Message, Position, Replay};
use airwave_core::{Data, EventName, Rule};
use tokio::time::Instant;

use super::channel::{ChannelState, FORGET_AFTER};
use super::epochs::HONOURED_FOR;
use super::lock::lock;
use super::shared::{SWEEP_EVERY, SWEEP_WORK, SWEEPS};
use super::*;

const MINUTE: Duration = Duration::from_secs(60);
const A_WHILE: Duration = Duration::from_secs(1000);

fn name(text: &str) -> ChannelName {
    ChannelName::new(text).unwrap()
}

fn say(text: impl ToString) -> Append {
    Append::new(Message::new(EventName::new("said").unwrap(), Data::text(text.to_string())))
}

fn key(text: &str) -> airwave_core::event::IdempotencyKey {
    airwave_core::event::IdempotencyKey::new(text).unwrap()
}

/// Every channel has this history.
fn keeping(events: usize, age: Duration, bytes: usize) -> Memory {
    let mut rule = Rule::new("{*all}".parse().unwrap(), vec![TransportName::SSE]);
    rule.history = History::new(events, age).with_bytes(bytes);
    Memory::new(Rules::new([rule]))
}

fn remembered(broker: &Memory) -> usize {
    let channels = broker.shared.channels.read().unwrap();
    let turns = lock(&broker.shared.sweep).turns.len();
    assert_eq!(channels.len(), turns, "every channel is swept, and nothing else");
    turns
}

async fn publish(broker: &Memory, channel: &str, append: Append) -> Position {
    broker.publish(&name(channel), append).await.unwrap().position
}

async fn replay(broker: &Memory, channel: &str, after: Option<Position>) -> Replay {
    broker
        .replay(&name(channel), after, PageLimit::events(1_000_000))
        .await
        .unwrap()
}

#[tokio::test]
async fn what_is_published_is_shown_and_kept() {
    let broker = Memory::new(Rules::default());
    let mut feed = broker.follow(&name("a")).await.unwrap();
    let first = publish(&broker, "a", say("one")).await;
    let shown = feed.next().await.unwrap();
    assert_eq!((shown.position, shown.previous), (first, feed.head));
    let replayed = replay(&broker, "a", Some(feed.head)).await;
    assert!(
        replayed.complete && Arc::ptr_eq(&replayed.events[0], &shown),
        "one event, shared"
    );
}

#[tokio::test]
async fn every_previous_is_known() {
    let broker = keeping(3, MINUTE, usize::MAX);
    let mut before = broker.follow(&name("a")).await.unwrap().head;
    for n in 0..10 {
        let position = publish(&broker, "a", say(n)).await;
        let newest = replay(&broker, "a", None).await.events.pop().unwrap();
        assert_eq!((newest.previous, newest.position), (before, position));
        before = position;
    }
}

#[tokio::test(start_paused = true)]
async fn history_is_exactly_what_the_rule_says() {
    let broker = keeping(3, MINUTE, 100);
    for n in 0..9 {
        publish(&broker, "a", say(n)).await;
        assert_eq!(replay(&broker, "a", None).await.events.len(), 3.min(n + 1));
    }
    // With its name, `said`, this is 50 bytes: two fit, a third does not, and a larger one than
    // all of it drives out everything.
    for _ in 0..3 {
        publish(&broker, "a", say("x".repeat(46))).await;
    }
    assert_eq!(replay(&broker, "a", None).await.events.len(), 2);
    publish(&broker, "a", say("x".repeat(97))).await;
    assert_eq!(replay(&broker, "a", None).await.events.len(), 0);

    // Not only after the next sweep.
    lock(&broker.shared.sweep).task.take().unwrap().abort();
    publish(&broker, "a", say("old")).await;
    tokio::time::advance(MINUTE / 2).await;
    let old = publish(&broker, "a", say("new")).await;
    tokio::time::advance(MINUTE / 2).await;
    assert_eq!(replay(&broker, "a", None).await.events.len(), 2, "not older than a minute");
    tokio::time::advance(Duration::from_millis(1)).await;
    let left = replay(&broker, "a", None).await;
    assert_eq!((left.events.len(), left.head, left.complete), (1, old, false));
}

#[tokio::test(start_paused = true)]
async fn a_key_is_recognised_within_its_window_and_then_new_again() {
    let broker = keeping(10, MINUTE, usize::MAX);
    let first = publish(&broker, "a", say("one").with_idempotency_key(key("k"))).await;
    tokio::time::advance(IDEMPOTENCY_WINDOW).await;
    let again = broker
        .publish(&name("a"), say("one").with_idempotency_key(key("k")))
        .await
        .unwrap();
    assert_eq!((again.position, again.duplicate), (first, true));
    // Recognising it did not prolong it.
    tokio::time::advance(Duration::from_millis(1)).await;
    let again = broker
        .publish(&name("a"), say("one").with_idempotency_key(key("k")))
        .await
        .unwrap();
    assert!(again.position > first && !again.duplicate);
    let channel = broker.shared.open(&name("a"));
    let state = lock(&channel.state);
    assert_eq!((state.keys.len(), state.keys_by_age.len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn an_unused_channel_is_forgotten_after_a_while() {
    for (age, after) in [(MINUTE, FORGET_AFTER), (2 * FORGET_AFTER, 2 * FORGET_AFTER)] {
        let broker = keeping(10, age, usize::MAX);
        publish(&broker, "published", say("one").with_idempotency_key(key("k"))).await;
        publish(&broker, "ended", Append::end()).await;
        tokio::time::sleep(after - 2 * SWEEP_EVERY).await;
        assert_eq!(remembered(&broker), 2);
        let last = replay(&broker, "published", None).await.head;
        tokio::time::sleep(HONOURED_FOR).await;
        assert_eq!(remembered(&broker), 1, "all but the one that was used");
        let again = replay(&broker, "published", None).await;
        assert_eq!(again.head, last);

        assert!(
            broker.publish(&name("ended"), say("new")).await.is_ok(),
            "a forgotten name is free"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn channels_that_are_only_asked_for_take_no_memory_and_their_cursors_stay_good() {
    let broker = keeping(10, MINUTE, usize::MAX);
    let mut firsts = Vec::new();
    for n in 0..20_000 {
        let channel = n.to_string();
        firsts.push(replay(&broker, &channel, None).await.head);
        drop(broker.follow(&name(&channel)).await.unwrap());
    }
    let followed = broker.follow(&name("followed")).await.unwrap();
    tokio::time::sleep(HONOURED_FOR).await;
    assert_eq!(remembered(&broker), 1, "the one that is followed");
    for (n, first) in firsts.iter().enumerate().step_by(1000) {
        let position = publish(&broker, &n.to_string(), say("one")).await;
        let missed = replay(&broker, &n.to_string(), Some(*first)).await;
        assert!(missed.complete, "{n}");
        assert_eq!((missed.events[0].position, missed.events[0].previous), (position, *first));
    }
    drop(followed);
}

/// Other channels are forgotten meanwhile, so epochs go by.
#[tokio::test(start_paused = true)]
async fn a_listener_without_events_comes_back_within_minutes_whatever_is_forgotten() {
    let broker = keeping(10, MINUTE, usize::MAX);
    let feed = broker.follow(&name("long")).await.unwrap();
    let mut given = Vec::new();
    for n in 0..40_usize {
        publish(&broker, &format!("passing/{n}"), say("one")).await;
        given.push(replay(&broker, &format!("asked/{n}"), None).await.head);
        tokio::time::sleep(MINUTE).await;
        let Some(since) = n.checked_sub(4) else { continue };
        let channel = format!("asked/{since}");
        publish(&broker, &channel, say("missed")).await;
        let missed = replay(&broker, &channel, Some(given[since])).await;
        assert!(missed.complete && missed.events.len() == 1 && missed.events[0].previous == given[since]);
    }
    assert_ne!(given[0], given[39], "no epoch went by");
    // One that listened all the time has the same right.
    let first = feed.head;
    assert!(!broker.shared.epochs.honours(first));
    drop(feed);
    tokio::time::sleep(2 * MINUTE).await;
    publish(&broker, "long", say("missed")).await;
    assert!(replay(&broker, "long", Some(first)).await.complete);
    assert!(remembered(&broker) < 30);
}

#[tokio::test(start_paused = true)]
async fn an_epoch_from_before_a_forgotten_event_proves_nothing() {
    let broker = keeping(10, MINUTE, usize::MAX);
    let first = replay(&broker, "a", None).await.head;
    publish(&broker, "a", say("missed")).await;
    tokio::time::sleep(2 * A_WHILE).await;
    assert_eq!(remembered(&broker), 0);
    assert!(!replay(&broker, "a", Some(first)).await.complete);
    publish(&broker, "a", say("one")).await;
    assert!(!replay(&broker, "a", Some(first)).await.complete);
}

#[tokio::test(start_paused = true)]
async fn memory_is_given_back_after_a_flood_of_names_and_keys() {
    let broker = keeping(10_000, MINUTE, usize::MAX);
    for n in 0..20_000 {
        publish(&broker, &n.to_string(), say(n)).await;
        let once = say(n).with_idempotency_key(key(&n.to_string()));
        publish(&broker, "busy", once).await;
    }
    let capacities = || {
        let channels = broker.shared.channels.read().unwrap();
        let turns = lock(&broker.shared.sweep).turns.capacity();
        let busy = channels.get(&name("busy")).map(|channel| {
            let state = lock(&channel.state);
            [state.keys.capacity(), state.keys_by_age.capacity(), state.kept.capacity()]
        });
        (channels.capacity(), turns, busy)
    };
    let (names, turns, busy) = capacities();
    assert!(names >= 20_000 && turns >= 20_000);
    assert!(busy.unwrap().iter().all(|&capacity| capacity >= 10_000));
    // What was said is too old, and its keys are, but the channel itself is still known.
    tokio::time::sleep(2 * IDEMPOTENCY_WINDOW).await;
    let small = |busy: Option<[usize; 3]>| busy.unwrap().iter().all(|&capacity| capacity <= 2048);
    // A round of sweeps drops so many of them, and then gives memory back.
    for _ in 0..4 {
        if !small(capacities().2) {
            tokio::time::sleep(SWEEP_EVERY * SWEEPS as u32).await;
        }
    }
    let (_, _, busy) = capacities();
    assert!(small(busy), "{busy:?}");
    tokio::time::sleep(3 * FORGET_AFTER).await;
    assert_eq!(remembered(&broker), 0);
    let (names, turns, _) = capacities();
    assert!(names <= 2048 && turns <= 2048, "{names} {turns}");
}

#[tokio::test(start_paused = true)]
async fn a_channel_that_is_followed_is_remembered_and_its_cursor_stays_good() {
    let broker = keeping(10, MINUTE, usize::MAX);
    let feed = broker.follow(&name("a")).await.unwrap();
    let last = publish(&broker, "a", say("one")).await;
    tokio::time::sleep(2 * A_WHILE).await;
    assert_eq!(remembered(&broker), 1);
    drop(feed);
    // Its listener may come back: the time begins when it leaves.
    tokio::time::sleep(FORGET_AFTER - 2 * SWEEP_EVERY).await;
    assert!(replay(&broker, "a", Some(last)).await.complete);
    tokio::time::sleep(FORGET_AFTER + 2 * SWEEP_EVERY).await;
    assert_eq!(remembered(&broker), 0);
}

#[tokio::test]
async fn a_channel_that_is_used_again_before_it_is_forgotten_stays() {
    let broker = keeping(10, MINUTE, usize::MAX);
    let feed = broker.follow(&name("a")).await.unwrap();
    let channel = broker.shared.open(&name("a"));
    assert!(!broker.shared.forget(&channel, Instant::now() + A_WHILE));
    assert!(Arc::ptr_eq(&channel, &broker.shared.open(&name("a"))));
    drop(feed);
    assert!(broker.shared.forget(&channel, Instant::now() + A_WHILE));
    assert!(lock(&channel.state).forgotten, "a caller that still holds it can tell");
    assert!(!Arc::ptr_eq(&channel, &broker.shared.open(&name("a"))));
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_channel_comes_back_above_all_that_it_gave() {
    let broker = keeping(10, MINUTE, usize::MAX);
    let ahead = Position(Position::now().0 + 3_600_000_000);
    replay(&broker, "a", None).await;
    lock(&broker.shared.open(&name("a")).state).head = ahead;
    let last = publish(&broker, "a", say("the clock was an hour ahead")).await;
    assert!(last > ahead);
    publish(&broker, "forgotten-after-it", say("one")).await;
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(remembered(&broker), 0);

    let again = replay(&broker, "a", Some(last)).await;
    assert!(again.head > last && !again.complete);
    assert!(publish(&broker, "a", say("one")).await > again.head);
    assert!(replay(&broker, "b", None).await.head > last, "the epoch is every channel's");
}

#[tokio::test]
async fn positions_go_on_when_the_clock_goes_backwards() {
    let broker = keeping(10, MINUTE, usize::MAX);
    replay(&broker, "a", None).await;
    let ahead = Position(Position::now().0 + 3_600_000_000);
    lock(&broker.shared.open(&name("a")).state).head = ahead;
    for n in 1..=3 {
        assert_eq!(publish(&broker, "a", say(n)).await, Position(ahead.0 + n));
    }
    assert!(replay(&broker, "a", Some(ahead)).await.complete);
}

#[tokio::test]
async fn a_new_broker_begins_above_the_old_one() {
    let mut last = Position::ZERO;
    for _ in 0..3 {
        let broker = Memory::new(Rules::default());
        for n in 0..1000 {
            let position = publish(&broker, "a", say(n)).await;
            assert!(position > last);
            last = position;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn quiet_channels_lose_what_is_old() {
    let broker = keeping(10, MINUTE, usize::MAX);
    let _feed = broker.follow(&name("a")).await.unwrap();
    publish(&broker, "a", say("one").with_idempotency_key(key("k"))).await;
    let channel = broker.shared.open(&name("a"));
    tokio::time::sleep(MINUTE + 2 * SWEEP_EVERY).await;
    let sizes = |state: MutexGuard<ChannelState>| (state.kept.len(), state.bytes, state.keys.len());
    assert_eq!(sizes(lock(&channel.state)), (0, 0, 1));
    tokio::time::sleep(IDEMPOTENCY_WINDOW).await;
    assert_eq!(sizes(lock(&channel.state)), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn one_sweep_does_a_bounded_amount_of_work_and_all_get_their_turn() {
    let broker = keeping(usize::MAX, MINUTE, usize::MAX);
    for n in 0..SWEEP_WORK + 10 {
        publish(&broker, &format!("{n}"), say("one")).await;
    }
    for time in 1..=2 {
        lock(&broker.shared.sweep).waits_for = Position(1);
        broker.shared.turn_epoch(Instant::now() + time * HONOURED_FOR);
    }
    let later = Instant::now() + A_WHILE;
    // Each channel is one piece of work, and so is its event.
    broker.shared.sweep(later);
    assert_eq!(remembered(&broker), SWEEP_WORK / 2 + 10);
    broker.shared.sweep(later);
    broker.shared.sweep(later);
    assert_eq!(remembered(&broker), 0);

    for n in 0..SWEEP_WORK + 10 {
        replay(&broker, &format!("{n}"), None).await;
    }
    broker.shared.sweep(later);
    assert_eq!(remembered(&broker), 10);
    broker.shared.sweep(later);

    for n in 0..2 * SWEEP_WORK + 10 {
        publish(&broker, "long", say("one").with_idempotency_key(key(&n.to_string()))).await;
    }
    let channel = broker.shared.open(&name("long"));
    broker.shared.sweep(later);
    assert_eq!(lock(&channel.state).kept.len(), SWEEP_WORK + 10);
    assert_eq!(lock(&channel.state).keys.len(), SWEEP_WORK + 10);
}

#[tokio::test]
async fn dropping_a_feed_leaves_nothing_behind() {
    let broker = Memory::new(Rules::default());
    let channel = broker.shared.open(&name("a"));
    let stays = broker.follow(&name("a")).await.unwrap();
    drop(broker.follow(&name("a")).await.unwrap());
    assert_eq!(lock(&channel.state).feeds.len(), 1);
    drop(stays);
    assert_eq!(lock(&channel.state).feeds.len(), 0);
}

#[tokio::test]
async fn an_unread_feed_ends_at_its_bound() {
    let broker = keeping(1, MINUTE, usize::MAX);
    let mut unread = broker.follow(&name("a")).await.unwrap();
    let channel = broker.shared.open(&name("a"));
    for n in 0..1_000_000 {
        publish(&broker, "a", say(n)).await;
        if lock(&channel.state).feeds.is_empty() {
            assert_eq!(unread.next().await, None, "it says nothing more rather than a part");
            return;
        }
    }
    panic!("an unread feed grows without bound");
}

#[tokio::test]
async fn feeds_end_with_the_broker() {
    let broker = Memory::new(Rules::default());
    let mut feed = broker.follow(&name("a")).await.unwrap();
    publish(&broker, "a", say("one")).await;
    drop(broker);
    assert!(feed.next().await.is_some());
    assert_eq!(feed.next().await, None);
}

#[tokio::test(start_paused = true)]
async fn the_sweeper_goes_with_the_broker() {
    let broker = Memory::new(Rules::default());
    replay(&broker, "a", None).await;
    let task = lock(&broker.shared.sweep).task.take().unwrap();
    drop(broker);
    tokio::time::timeout(A_WHILE, task).await.unwrap().unwrap();
}

#[test]
fn the_sweeper_comes_back_after_its_runtime_has_gone() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap()
    };
    let broker = keeping(10, MINUTE, usize::MAX);
    // Without a runtime there is no sweeper yet, and that is no error.
    broker.shared.open(&name("a"));
    runtime().block_on(replay(&broker, "b", None));
    runtime().block_on(async {
        replay(&broker, "c", None).await;
        tokio::time::sleep(A_WHILE).await;
    });
    assert_eq!(remembered(&broker), 0);
}

/// The publisher has found the channel but not locked it yet when the sweeper forgets it.
#[test]
fn a_publish_that_meets_the_forgetting_goes_to_the_new_channel() {
    let broker = Memory::new(Rules::default());
    let channel = broker.shared.open(&name("a"));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    std::thread::scope(|threads| {
        let mut state = lock(&channel.state);
        let strong = Arc::strong_count(&channel);
        let publisher = threads.spawn(|| runtime.block_on(publish(&broker, "a", say("one"))));
        while Arc::strong_count(&channel) == strong {
            std::thread::yield_now();
        }
        state.forgotten = true;
        broker.shared.channels.write().unwrap().remove(&name("a"));
        drop(state);
        let position = publisher.join().unwrap();
        assert_eq!(lock(&channel.state).kept.len(), 0);
        assert_eq!(lock(&broker.shared.open(&name("a")).state).head, position);
    });
}

fn used(broker: &Memory) -> usize {
    broker.shared.used.load(Ordering::Relaxed)
}

#[tokio::test(start_paused = true)]
async fn ever_new_channels_stay_within_the_bound() {
    const BOUND: usize = 4 << 20;
    let mut rule = Rule::new("{*all}".parse().unwrap(), vec![TransportName::SSE]);
    rule.history = History::new(100, A_WHILE).with_bytes(16 << 20);
    let broker = Memory::bounded(Rules::new([rule]), BOUND);
    let payload = "x".repeat(60_000);
    let mut cursors = Vec::new();
    for n in 0..1000 {
        let published = broker.publish(&name(&format!("c/{n}")), say(&payload)).await.unwrap();
        cursors.push(published.position);
        assert!(used(&broker) <= BOUND + 70_000, "{} bytes after {n}", used(&broker));
        tokio::time::advance(Duration::from_millis(1)).await;
    }
    assert!(used(&broker) > BOUND / 2, "what fits is kept");
    // The newest is whole; of the oldest nothing is left, and a replay says so.
    assert!(replay(&broker, "c/999", Some(cursors[999])).await.complete);
    assert_eq!(replay(&broker, "c/999", None).await.events.len(), 1);
    let lost = replay(&broker, "c/0", Some(Position(cursors[0].0 - 1))).await;
    assert_eq!((lost.complete, lost.events.len()), (false, 0));
}

#[tokio::test(start_paused = true)]
async fn at_the_bound_channels_of_which_nothing_is_left_are_forgotten() {
    const BOUND: usize = 256 << 10;
    let broker = Memory::bounded(Rules::new([]), BOUND);
    let mut cursors = Vec::new();
    for n in 0..1000 {
        let published = broker.publish(&name(&format!("c/{n}")), say("x")).await.unwrap();
        cursors.push(published.position);
        assert!(used(&broker) <= BOUND + 2000, "{} bytes after {n}", used(&broker));
        tokio::time::advance(Duration::from_millis(1)).await;
    }
    assert!(remembered(&broker) < 250, "{}", remembered(&broker));
    // What was forgotten begins anew above all that it gave, and its old cursor is told of a
    // gap.
    let known = |n: usize| broker.shared.channels.read().unwrap().contains_key(&name(&format!("c/{n}")));
    let forgotten = (0..1000).find(|&n| !known(n)).unwrap();
    let (channel, cursor) = (format!("c/{forgotten}"), cursors[forgotten]);
    let lost = replay(&broker, &channel, Some(cursor)).await;
    assert_eq!((lost.complete, lost.events.len()), (false, 0));
    let again = broker.publish(&name(&channel), say("x")).await.unwrap();
    assert!(again.position > cursor);
    assert!(!replay(&broker, &channel, Some(cursor)).await.complete);
}

#[tokio::test(start_paused = true)]
async fn at_the_bound_the_oldest_history_of_all_channels_goes_first() {
    const BOUND: usize = 1 << 20;
    let mut rule = Rule::new("{*all}".parse().unwrap(), vec![TransportName::SSE]);
    rule.history = History::new(10_000, A_WHILE).with_bytes(16 << 20);
    let broker = Memory::bounded(Rules::new([rule]), BOUND);
    let payload = "x".repeat(1000);
    let feed = broker.follow(&name("old")).await.unwrap();
    for _ in 0..100 {
        broker.publish(&name("old"), say(&payload)).await.unwrap();
    }
    tokio::time::advance(MINUTE).await;
    for _ in 0..1500 {
        broker.publish(&name("new"), say(&payload)).await.unwrap();
        tokio::time::advance(Duration::from_millis(10)).await;
    }
    let old = replay(&broker, "old", Some(feed.head)).await;
    assert_eq!(
        (old.complete, old.events.len()),
        (false, 0),
        "the oldest went, and it is told"
    );
    let new = replay(&broker, "new", None).await;
    assert!(!new.complete && new.events.len() > 400, "{} events", new.events.len());
    for pair in new.events.windows(2) {
        assert_eq!(pair[1].previous, pair[0].position, "only the beginning of a history goes");
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_make_room_is_refused() {
    let broker = Memory::bounded(Rules::new([]), 64 << 10);
    let mut feeds = Vec::new();
    for n in 0..100 {
        feeds.push(broker.follow(&name(&format!("c/{n}"))).await.unwrap());
    }
    let refused = broker.publish(&name("c/1"), say("x")).await.unwrap_err();
    assert!(refused.message.contains("limits.memory"), "{refused}");
    drop(feeds);
    assert!(broker.publish(&name("c/1"), say("x")).await.is_ok());
}
