use std::num::NonZeroU32;
use std::time::Duration;

use airwave_core::rule::Delivery;
use airwave_core::session::After;
use airwave_core::{Hub, Rule};
use tokio::time::{Instant, sleep};

use crate::support::*;

fn at_most(rate: u32) -> Rule {
    rule().with_max_rate(NonZeroU32::new(rate))
}

async fn listener(hub: &Hub, stamped: bool) -> Listener {
    // Both, because a node takes no format once it has opened a channel.
    let formats = [Lines::plain("a"), Lines::stamped("b")].map(|format| hub.register_format(format).unwrap());
    let mut listener = Listener::at(hub, &formats[usize::from(stamped)], "c", After::Nothing).await;
    listener.confirmation().await;
    listener
}

#[tokio::test(start_paused = true)]
async fn listeners_are_woken_at_most_so_many_times_a_second_and_miss_nothing() {
    for stamped in [false, true] {
        let backbone = Backbone::new();
        let hub = hub(&backbone.node(), at_most(10));
        let mut listener = listener(&hub, stamped).await;
        let publishing = {
            let backbone = backbone.clone();
            tokio::spawn(async move {
                for n in 0..3000 {
                    backbone.say("c", &n.to_string());
                    sleep(Duration::from_millis(1)).await;
                }
            })
        };
        let (mut turns, mut heard) = (Vec::new(), Vec::new());
        while heard.len() < 3000 {
            // One line is waited for; the rest of its turn is there.
            let line = listener.line().await;
            turns.push(Instant::now());
            heard.push(line.text().to_owned());
            heard.extend(listener.take_ready(usize::MAX).iter().map(|line| line.text().to_owned()));
        }
        publishing.await.unwrap();
        assert_eq!(heard, (0..3000).map(|n| n.to_string()).collect::<Vec<_>>());
        assert!((25..=31).contains(&turns.len()), "{} turns in three seconds", turns.len());
        for pair in turns.windows(2) {
            assert!(pair[1] - pair[0] >= Duration::from_millis(99), "{:?}", pair[1] - pair[0]);
        }
    }
}

/// A sixtieth of a second is no whole number of milliseconds, so every timer here is late.
#[tokio::test(start_paused = true)]
async fn timers_that_are_late_do_not_lower_the_rate() {
    let backbone = Backbone::new();
    let hub = hub(&backbone.node(), at_most(60));
    let mut listener = listener(&hub, false).await;
    let mut turns = 0;
    for n in 0..3000 {
        backbone.say("c", &n.to_string());
        sleep(Duration::from_millis(1)).await;
        turns += usize::from(!listener.ready().is_empty());
    }
    assert!((179..=181).contains(&turns), "{turns} turns in three seconds");
}

#[tokio::test(start_paused = true)]
async fn what_comes_after_a_quiet_time_is_sent_at_once() {
    let backbone = Backbone::new();
    let hub = hub(&backbone.node(), at_most(1));
    let mut listener = listener(&hub, false).await;
    for n in 0..5 {
        sleep(Duration::from_secs(3)).await;
        backbone.say("c", &n.to_string());
        assert_eq!(texts(&listener.ready()), [n.to_string()]);
        backbone.say("c", "waits");
        assert_eq!(listener.ready(), []);
        let since = Instant::now();
        assert_eq!(listener.line().await.text(), "waits");
        assert!(since.elapsed() <= Duration::from_millis(1001), "{:?}", since.elapsed());
    }
}

/// At the very edge of the window, from both sides, in every order with the timer.
#[tokio::test(start_paused = true)]
async fn nothing_is_lost_at_the_edges_of_a_window() {
    let backbone = Backbone::new();
    let hub = hub(&backbone.node(), at_most(10));
    let mut listener = listener(&hub, false).await;
    let mut said = 0;
    for micros in [99_000, 99_999, 100_000, 100_001, 101_000, 1, 50_000, 200_000, 300_000] {
        for _ in 0..20 {
            backbone.say("c", &said.to_string());
            said += 1;
            sleep(Duration::from_micros(micros)).await;
        }
    }
    sleep(Duration::from_millis(101)).await;
    let expected: Vec<_> = (0..said).map(|n| n.to_string()).collect();
    assert_eq!(texts(&listener.ready()), expected);
}

/// P6: what is published once the subscription is confirmed arrives, wherever in a window the
/// subscription fell.
#[tokio::test(start_paused = true)]
async fn a_confirmed_subscription_misses_nothing_for_the_window() {
    let backbone = Backbone::new();
    let hub = hub(&backbone.node(), at_most(10));
    let _keeps_it_open = listener(&hub, false).await;
    for offset in 0..50_u64 {
        backbone.say("c", "before");
        sleep(Duration::from_millis(offset * 7 % 110)).await;
        let mut listener = listener(&hub, offset % 2 == 0).await;
        let after = format!("after-{offset}");
        backbone.say("c", &after);
        sleep(Duration::from_millis(101)).await;
        let lines = listener.ready();
        // What was published before and waits for the window may come first.
        assert_eq!(lines.last().map(Frame::text), Some(after.as_str()));
        assert!(
            lines[..lines.len() - 1].iter().all(|line| line.text() == "before"),
            "{lines:?}"
        );
    }
}

/// A key that changes faster than the rate is sent all the same, once a window.
#[tokio::test(start_paused = true)]
async fn a_busy_key_is_sent_once_a_window() {
    let backbone = Backbone::new();
    let hub = hub(&backbone.node(), at_most(10).with_delivery(Delivery::Latest));
    let mut listener = listener(&hub, false).await;
    let mut heard = 0;
    for n in 0..1000 {
        backbone.say_keyed("c", "busy", &n.to_string());
        if n == 500 {
            backbone.say_keyed("c", "rare", "rare");
        }
        sleep(Duration::from_millis(1)).await;
        let lines = listener.ready();
        let busy = lines.iter().filter(|line| line.text() != "rare").count();
        assert!(busy <= 1, "{lines:?}");
        heard += busy;
    }
    assert!((9..=11).contains(&heard), "{heard} in a second");
    sleep(Duration::from_millis(101)).await;
    assert_eq!(texts(&listener.ready()), ["999"]);
}
