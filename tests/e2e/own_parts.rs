//! A broker, a format, a transport and a rule of an application's own, made with `airwave` alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use airwave::broker::BrokerStats;
use airwave::brokers::memory::Memory;
use airwave::format::Stamp;
use airwave::hub::FormatHandle;
use airwave::rule::{History, ReplayOnSubscribe, TransportName};
use airwave::session::{After, Turn};
use airwave::transports::request::connect_request;
use airwave::transports::{ChannelRequest, Options, router};
use airwave::{
    Append, Broker, BrokerError, ChannelName, Event, Feed, Format, Hub, Notice, PageLimit, Position, Publish, Published, Refusal,
    Replay, Rule, Rules, Session, Transport,
};
use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::Request;
use http::request::Parts;
use http_body_util::BodyExt;
use tower::ServiceExt;

use crate::support::{run, within};

const LINES: TransportName = TransportName::of("lines");

/// Counts what is published, and leaves the rest to a broker in memory.
struct CountingBroker {
    memory: Memory,
    published: AtomicUsize,
}

#[airwave::async_trait]
#[deny(clippy::missing_trait_methods)]
impl Broker for CountingBroker {
    fn name(&self) -> &'static str {
        "counting"
    }

    async fn publish(&self, channel: &ChannelName, append: Append) -> Result<Published, BrokerError> {
        self.published.fetch_add(1, Ordering::SeqCst);
        self.memory.publish(channel, append).await
    }

    async fn follow(&self, channel: &ChannelName) -> Result<Feed, BrokerError> {
        self.memory.follow(channel).await
    }

    async fn replay(&self, channel: &ChannelName, after: Option<Position>, limit: PageLimit) -> Result<Replay, BrokerError> {
        self.memory.replay(channel, after, limit).await
    }

    async fn open(&self, channel: &ChannelName, limit: PageLimit) -> Result<(Feed, Replay), BrokerError> {
        self.memory.open(channel, limit).await
    }

    async fn ping(&self) -> Result<(), BrokerError> {
        self.memory.ping().await
    }

    fn stats(&self) -> BrokerStats {
        self.memory.stats()
    }
}

/// One line for each event.
struct LineFormat;

impl Format for LineFormat {
    fn name(&self) -> &'static str {
        "lines"
    }

    fn event(&self, _: &ChannelName, event: &Event) -> Bytes {
        let data = String::from_utf8_lossy(event.message.data.as_bytes());
        format!("{} {data}\n", event.message.event).into()
    }

    fn notice(&self, notice: &Notice<'_>) -> Bytes {
        match notice {
            Notice::End { .. } => Bytes::from_static(b"end\n"),
            _ => Bytes::new(),
        }
    }

    fn stamp(&self) -> Option<Stamp> {
        None
    }
}

/// Answers `GET /channels/{name}?lines` with all events of a channel, once it has ended.
struct LineTransport(FormatHandle);

impl LineTransport {
    async fn read(&self, hub: &Hub, request: ChannelRequest) -> Result<Body, Refusal> {
        let connection = hub.connect(connect_request(&request.parts, LINES), true)?;
        let mut session = Session::new(connection, &self.0).ends_with_channels();
        let pending = session.subscriber().subscribe(&request.channel?, After::Nothing).await?;
        session.add(pending, None);
        let (mut out, mut body) = (Vec::new(), Vec::new());
        loop {
            let turn = session.turn(&mut out).await;
            // Taken each time: a turn that finds frames from before in `out` is over at once.
            out.drain(..).for_each(|piece| body.extend_from_slice(&piece));
            if turn != Turn::Frames {
                return Ok(body.into());
            }
        }
    }
}

#[airwave::async_trait]
impl Transport for LineTransport {
    fn name(&self) -> TransportName {
        LINES
    }

    fn routes(&self, _: Hub) -> Router {
        Router::new()
    }

    fn wants(&self, request: &Parts) -> bool {
        request.uri.query() == Some("lines")
    }

    async fn listen(&self, hub: &Hub, request: ChannelRequest) -> Response {
        match self.read(hub, request).await {
            Ok(body) => Response::new(body),
            Err(refusal) => refusal.into_response(),
        }
    }
}

#[test]
fn a_broker_a_format_a_transport_and_a_rule_of_ones_own_work_together() {
    run(async {
        let rule = Rule::new("jobs/{id}".parse().unwrap(), vec![LINES])
            .with_history(History::new(10, Duration::from_secs(60)))
            .with_replay(ReplayOnSubscribe::All);
        let rules = Rules::new([rule]);
        let broker = Arc::new(CountingBroker {
            memory: Memory::new(rules.clone()),
            published: AtomicUsize::new(0),
        });
        let hub = Hub::builder(broker.clone(), rules).build();
        let format = hub.register_format(Arc::new(LineFormat)).unwrap();
        let app = router(hub.clone(), Options::default(), vec![Arc::new(LineTransport(format))]);

        let channel = hub.channel("jobs/7").unwrap();
        channel.publish("begun", "now").await.unwrap();
        channel.publish_with(Publish::json("done", &3).and_end()).await.unwrap();
        let request = Request::get("/channels/jobs/7?lines").header("host", "localhost");
        let answer = app.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let body = within("the body", answer.into_body().collect()).await.unwrap().to_bytes();
        assert_eq!(body, "begun \"now\"\ndone 3\nend\n");
        assert_eq!(broker.published.load(Ordering::SeqCst), 2);
    });
}
