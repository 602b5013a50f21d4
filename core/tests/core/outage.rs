use std::fmt;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use airwave_core::session::After;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::support::*;

/// Keeps what is logged about healing and about a broker that does not answer, with its level.
#[derive(Clone, Default)]
struct CapturedLog(Arc<Mutex<Vec<(Level, String)>>>);

impl Subscriber for CapturedLog {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        struct MessageText(String);
        impl Visit for MessageText {
            fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
                self.0.push_str(&format!("{}={value:?} ", field.name()));
            }
        }
        let mut text = MessageText(String::new());
        event.record(&mut text);
        if text.0.contains("heal")
            || ["the broker is unavailable", "the broker answers again"]
                .iter()
                .any(|said| text.0.contains(said))
        {
            self.0.lock().unwrap().push((*event.metadata().level(), text.0));
        }
    }
}

impl CapturedLog {
    fn at(&self, level: Level) -> Vec<String> {
        let captured = self.0.lock().unwrap();
        let of_level = captured.iter().filter(|(other, _)| *other == level);
        of_level.map(|(_, text)| text.clone()).collect()
    }
}

/// One line when it begins and one when it is over, and not one for each channel and try.
#[tokio::test(start_paused = true)]
async fn an_outage_with_many_channels_does_not_flood_the_log() {
    const CHANNELS: usize = 50;
    let backbone = Backbone::new();
    let node = backbone.node();
    let hub = hub(&node, rule());
    let format = hub.register_format(Lines::plain("a")).unwrap();
    let mut listeners = Vec::new();
    for n in 0..CHANNELS {
        let mut listener = Listener::at(&hub, &format, &format!("c/{n}"), After::Nothing).await;
        listener.confirmation().await;
        listeners.push(listener);
    }
    let captured = CapturedLog::default();
    let _guard = tracing::subscriber::set_default(captured.clone());
    for outage in 1..=2 {
        node.unavailable(true);
        node.cut();
        tokio::time::sleep(Duration::from_secs(8)).await;
        assert_eq!(metric(&hub, "airwave_healing", &[]), CHANNELS as f64);
        assert_eq!(captured.at(Level::WARN).len(), outage, "{:?}", captured.at(Level::WARN));
        assert_eq!(captured.at(Level::INFO).len(), outage - 1, "it is not over yet");

        node.unavailable(false);
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(metric(&hub, "airwave_healing", &[]), 0.0);
        assert_eq!(captured.at(Level::WARN).len(), outage);
        let over = captured.at(Level::INFO);
        assert_eq!(over.len(), outage);
        assert!(over[outage - 1].contains(&format!("channels={CHANNELS} ")), "{over:?}");
    }
    assert!(
        captured.at(Level::DEBUG).len() > 2 * CHANNELS,
        "each try is there for who looks for it"
    );
}

/// However many publishes are refused, and although another part of the broker answers meanwhile.
#[tokio::test(start_paused = true)]
async fn refused_publishes_are_logged_once_for_each_outage() {
    const PUBLISHES: usize = 200;
    let backbone = Backbone::new();
    let node = backbone.node();
    let hub = hub(&node, rule());
    let channel = hub.channel("c").unwrap();
    let captured = CapturedLog::default();
    let _guard = tracing::subscriber::set_default(captured.clone());
    for outage in 1..=2 {
        for _ in 0..PUBLISHES {
            node.unavailable(true);
            assert!(channel.publish("said", "refused").await.is_err());
            node.unavailable(false);
            channel.publish("said", "taken").await.unwrap();
        }
        assert_eq!(captured.at(Level::WARN).len(), outage, "{:?}", captured.at(Level::WARN));
        assert_eq!(captured.at(Level::INFO).len(), outage - 1, "it may not be over yet");

        tokio::time::sleep(Duration::from_secs(6)).await;
        channel.publish("said", "taken").await.unwrap();
        channel.publish("said", "taken").await.unwrap();
        assert_eq!(captured.at(Level::WARN).len(), outage);
        let over = captured.at(Level::INFO);
        assert_eq!(over.len(), outage);
        assert!(over[outage - 1].contains(&format!("refused={PUBLISHES} ")), "{over:?}");
    }
}

/// Whatever the broker, events are signs of life; what it notes itself is shown too.
#[tokio::test(start_paused = true)]
async fn metrics_show_what_the_broker_notes() {
    let backbone = Backbone::new();
    let node = backbone.node();
    let stats = &node.stats;
    stats.reconnected();
    stats.reconnected();
    assert_eq!(stats.reconnects(), 2);
    let hub = hub(&node, rule());
    assert_eq!(metric(&hub, "airwave_broker_reconnects_total", &[]), 2.0);
    stats.reconnected();
    assert_eq!(metric(&hub, "airwave_broker_reconnects_total", &[]), 3.0);

    let format = hub.register_format(Lines::plain("a")).unwrap();
    let mut listener = Listener::at(&hub, &format, "c", After::Nothing).await;
    listener.confirmation().await;
    let quiet = Duration::from_millis(30);
    for sign_of_life in [true, false] {
        // The real clock: this metric is for people.
        std::thread::sleep(quiet);
        assert!(stats.silent_for() >= quiet);
        assert!(metric(&hub, "airwave_broker_silent_seconds", &[]) >= quiet.as_secs_f64());
        let before = std::time::Instant::now();
        if sign_of_life {
            stats.record_activity();
        } else {
            backbone.say("c", "text");
            listener.line().await;
        }
        let silent = stats.silent_for();
        let tick = Duration::from_millis(1);
        assert!(
            silent <= before.elapsed() + tick,
            "{silent:?} of silence after a sign of life"
        );
    }
}

/// When a connection to the broker breaks, all of a node's logs heal. They do so in turns, or they
/// would stand before everything else.
#[tokio::test(start_paused = true)]
async fn many_channels_heal_in_turns() {
    const CHANNELS: usize = 1500;
    let backbone = Backbone::new();
    let node = backbone.node();
    let hub = hub(&node, rule());
    let format = hub.register_format(Lines::plain("a")).unwrap();
    let mut listener = Listener::new(&hub, &format);
    for n in 0..CHANNELS {
        listener.subscribe(&format!("c{n}"), After::Nothing).await.unwrap();
    }
    assert_eq!(listener.ready().len(), CHANNELS);
    // Feeds that have lasted are followed again without a pause.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (follows, replays) = (node.follows.load(SeqCst), node.replays.load(SeqCst));
    node.hang(true);
    node.cut();
    settle().await;
    let asked = node.follows.load(SeqCst) - follows;
    assert!((1..=512).contains(&asked), "{asked} at once");
    node.hang(false);
    settle().await;
    assert_eq!(node.follows.load(SeqCst) - follows, CHANNELS);
    assert_eq!(
        node.replays.load(SeqCst),
        replays,
        "nothing was said, so there is nothing to read"
    );
    for n in 0..CHANNELS {
        backbone.say(&format!("c{n}"), "again");
    }
    assert_eq!(texts(&listener.settled().await), ["again"; CHANNELS]);
}

/// A part of the broker that is away delays no channel of another part.
#[tokio::test(start_paused = true)]
async fn a_heal_that_hangs_gives_its_turn_back() {
    const CHANNELS: usize = 1500;
    let backbone = Backbone::new();
    let node = backbone.node();
    let hub = hub(&node, rule());
    let format = hub.register_format(Lines::plain("a")).unwrap();
    let mut listener = Listener::new(&hub, &format);
    for n in 0..CHANNELS {
        listener.subscribe(&format!("c{n}"), After::Nothing).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let follows = node.follows.load(SeqCst);
    node.hang(true);
    node.cut();
    // Less than the time after which the first call is given up.
    tokio::time::sleep(Duration::from_millis(1700)).await;
    assert_eq!(node.follows.load(SeqCst) - follows, CHANNELS);
}

/// What a handler, or anything else that is one request, asks of a broker that does not answer
/// takes one time.
#[tokio::test(start_paused = true)]
async fn the_calls_of_one_request_share_one_time() {
    let backbone = Backbone::new();
    let node = backbone.node();
    let hub = hub(&node, rule());
    let format = hub.register_format(Lines::plain("a")).unwrap();
    node.hang(true);
    let begin = tokio::time::Instant::now();
    hub.request(async {
        for n in 0..10 {
            let channel = hub.channel(&format!("c{n}")).unwrap();
            channel.publish("e", &n).await.unwrap_err();
            channel.history(None, 10).await.unwrap_err();
            let mut listener = Listener::new(&hub, &format);
            assert!(listener.subscribe(&format!("c{n}"), After::Nothing).await.is_err());
        }
    })
    .await;
    assert_eq!(begin.elapsed(), limits().broker_timeout);
    node.hang(false);
    hub.channel("c").unwrap().publish("e", &1).await.unwrap();
}
