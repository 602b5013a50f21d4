//! Publishers: they try until they are answered, or once.

use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::clients;
use super::data::data_of;
use super::history::{Outcome, Publication};
use super::plan::{Pen, RULES};
use super::random::Random;
use super::shared::{Shared, lock};
use super::world::HANG;

pub(super) struct ChaosPublisher {
    name: &'static str,
    pen: Pen,
    count: u64,
    random: Random,
    shared: Arc<Shared>,
}

impl ChaosPublisher {
    pub(super) fn new(name: &'static str, pen: Pen, random: Random, shared: Arc<Shared>) -> Self {
        Self {
            name,
            pen,
            count: 0,
            random,
            shared,
        }
    }

    /// To this channel alone.
    pub(super) async fn write(mut self, channel: &str) {
        while self.shared.in_trouble() {
            sleep(self.random.millis(10, 60)).await;
            self.publish(channel, 1, false).await;
        }
    }

    pub(super) async fn live(mut self) {
        while self.shared.in_trouble() {
            sleep(self.random.millis(20, 250)).await;
            let channel = self.random.pick(&RULES.each_ref().map(|rule| rule.channel));
            let several = match self.pen {
                // More than a ring or a page holds.
                Pen::Several if self.random.chance(0.03) => 100 + self.random.below(200),
                Pen::Several => 2 + self.random.below(8),
                _ => 1,
            };
            self.publish(channel, several, false).await;
        }
    }

    /// Publishes so many new messages, and tries as often as its pen wants.
    pub(super) async fn publish(&mut self, channel: &str, several: u64, last: bool) {
        let began = self.shared.clock.now();
        let mut messages: Vec<(Value, Publication)> = Vec::new();
        for _ in 0..several {
            self.count += 1;
            // Some are larger than is allowed, and some so large that a slow reader's buffers are
            // soon full.
            let length = match self.random.below(100) {
                0 if self.pen == Pen::Sure && !last => 70_000,
                1..10 => 4000,
                _ => self.random.below(300),
            };
            let (body, data) = data_of(self.name, self.count, length as usize);
            let publication = Publication {
                channel: channel.to_owned(),
                body,
                began,
                outcome: Outcome::Unknown,
                last,
            };
            messages.push((data, publication));
        }
        let since = Instant::now();
        while messages.iter().any(|(_, message)| message.outcome == Outcome::Unknown) && since.elapsed() < HANG {
            let node = self.shared.some_node(&mut self.random).await;
            self.try_once(node, channel, &mut messages).await;
            if self.pen == Pen::Once {
                break;
            }
            sleep(self.random.millis(10, 300)).await;
        }
        lock(&self.shared.publications).extend(messages.into_iter().map(|(_, publication)| publication));
    }

    async fn try_once(&mut self, node: SocketAddr, channel: &str, messages: &mut [(Value, Publication)]) {
        // Long enough to be one key over whatever connection it is repeated.
        let key = |publication: &Publication| format!("chaos-publication-{}-{}", self.shared.seed, publication.body);
        let publication = |(data, publication): &(Value, Publication)| {
            let mut json = json!({"channel": channel, "data": data});
            if self.pen != Pen::Once {
                json["idempotency_key"] = key(publication).into();
            }
            json
        };
        let (data, first) = &messages[0];
        let answer = match self.pen {
            Pen::Client if self.random.chance(0.5) => clients::post(node, channel, data, &key(first)).await,
            Pen::Client => clients::send(node, channel, data, &key(first)).await,
            Pen::Several => clients::publish(node, &messages.iter().map(publication).collect()).await,
            Pen::Sure | Pen::Once => clients::publish(node, &publication(&messages[0])).await,
        };
        let at = self.shared.clock.now();
        let (status, answer) = match answer {
            Ok(answer) => answer,
            Err(error) => {
                if error.kind() == std::io::ErrorKind::InvalidData {
                    self.shared.wrong(format!("{} was answered nonsense: {error}", self.name));
                }
                return;
            }
        };
        let answers = match answer {
            Value::Array(answers) => answers,
            one => vec![one],
        };
        for ((_, publication), answer) in messages.iter_mut().zip(&answers) {
            let position = answer["cursor"].as_str().and_then(|text| text.parse().ok());
            match (position, answer["error"]["code"].as_str()) {
                (Some(position), _) => {
                    let position = Some(position);
                    publication.outcome = Outcome::Acknowledged { at, position };
                }
                (None, None) if status == 200 && self.pen == Pen::Client => {
                    publication.outcome = Outcome::Acknowledged { at, position: None };
                }
                (None, Some("too-large")) => publication.outcome = Outcome::Refused,
                (None, _) if status == 503 || answer["error"]["code"] == "unavailable" => {}
                _ => self.shared.wrong(format!("{} was answered {status} {answer}", self.name)),
            }
        }
    }
}
