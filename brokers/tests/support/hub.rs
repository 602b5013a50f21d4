use std::fmt::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use airwave_core::format::Stamp;
use airwave_core::hub::FormatHandle;
use airwave_core::rule::{Limits, TransportName};
use airwave_core::session::{After, Turn};
use airwave_core::{
    Broker, ChannelName, ConnectRequest, Event, Format, Hub, Message, Notice, Position, Publish, Refusal, Rule, Rules, Session,
};
use airwave_core::{Data, EventName};
use bytes::Bytes;
use tokio::task::AbortHandle;

use super::PATIENCE;

const TEST: TransportName = TransportName::of("test");

/// What a client was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    From(Position),
    Event(Position, String),
    Gap(Option<Position>, Position, String),
}

struct Lines;

impl Format for Lines {
    fn name(&self) -> &'static str {
        "test"
    }

    fn event(&self, _: &ChannelName, event: &Event) -> Bytes {
        let text = String::from_utf8_lossy(event.message.data.as_bytes()).into_owned();
        format!("event {} {text}\n", event.position).into()
    }

    fn stamp(&self) -> Option<Stamp> {
        None
    }

    fn notice(&self, notice: &Notice<'_>) -> Bytes {
        match notice {
            Notice::Subscribed { cursor, .. } => format!("from {cursor}\n").into(),
            Notice::Gap { gap, .. } => {
                let mut line = format!("gap {} ", gap.cursor);
                match gap.after {
                    Some(after) => write!(line, "{after}").unwrap(),
                    None => line.push('-'),
                }
                writeln!(line, " {}", gap.reason.as_str()).unwrap();
                line.into()
            }
            _ => Bytes::new(),
        }
    }
}

fn read(line: &str) -> Told {
    let words: Vec<&str> = line.splitn(4, ' ').collect();
    let position = Position(words[1].parse().unwrap());
    match words[0] {
        "from" => Told::From(position),
        "event" => Told::Event(position, words[2..].join(" ")),
        "gap" => Told::Gap(words[2].parse().ok().map(Position), position, words[3].to_owned()),
        _ => panic!("{line}"),
    }
}

/// For the broker and its hub: everything is kept for as long as a test runs.
pub fn rules() -> Rules {
    let mut rule = Rule::new("{*all}".parse().unwrap(), vec![TEST]);
    rule.history.events = 100_000;
    Rules::new([rule])
}

/// A node as an application has it, on a broker with the same [`rules`].
pub struct Node {
    pub hub: Hub,
    format: FormatHandle,
}

/// A listener that keeps what it is told.
pub struct Client {
    told: Arc<Mutex<Vec<Told>>>,
    task: AbortHandle,
}

impl Node {
    pub fn new(broker: Arc<dyn Broker>) -> Node {
        Self::with(broker, rules())
    }

    pub fn with(broker: Arc<dyn Broker>, rules: Rules) -> Node {
        let limits = Limits::default().with(|limits| {
            limits.connections = 100_000;
            limits.connections_per_address = 100_000;
        });
        let hub = Hub::builder(broker, rules).limits(limits).build();
        let format = hub.register_format(Arc::new(Lines)).unwrap();
        Node { hub, format }
    }

    pub async fn listen(&self, channel: &str, after: Option<Position>) -> Client {
        self.try_listen(channel, after).await.unwrap()
    }

    pub async fn try_listen(&self, channel: &str, after: Option<Position>) -> Result<Client, Refusal> {
        let request = ConnectRequest::new(TEST);
        let mut session = Session::new(self.hub.connect(request, true).unwrap(), &self.format);
        let after = after.map_or(After::Nothing, After::Position);
        let name = ChannelName::new(channel).unwrap();
        let joined = session.subscriber().subscribe(&name, after).await?;
        session.add(joined, None);
        let told = Arc::new(Mutex::new(Vec::new()));
        let keep = told.clone();
        let task = tokio::spawn(async move {
            let mut out = Vec::new();
            while session.turn(&mut out).await == Turn::Frames {
                let bytes = std::mem::take(&mut out).concat();
                let lines = String::from_utf8(bytes).unwrap();
                keep.lock().unwrap().extend(lines.lines().map(read));
            }
        });
        Ok(Client {
            told,
            task: task.abort_handle(),
        })
    }

    /// Publishes once. `None`: the outcome is unknown.
    pub async fn say(&self, channel: &str, text: &str) -> Option<Position> {
        let message = Message::new(EventName::new("said").unwrap(), Data::text(text));
        let said = self
            .hub
            .channel(channel)
            .unwrap()
            .publish_with(Publish::message(message))
            .await;
        said.ok().map(|published| published.position)
    }

    /// One figure of `/metrics`.
    pub fn figure(&self, name: &str) -> f64 {
        let snapshot = self.hub.metrics().read();
        let total = snapshot.total(name, &[]);
        total.unwrap_or_else(|| panic!("no {name} in {snapshot:?}"))
    }
}

impl Client {
    pub fn told(&self) -> Vec<Told> {
        self.told.lock().unwrap().clone()
    }

    pub fn gaps(&self) -> Vec<Told> {
        self.told().into_iter().filter(|told| matches!(told, Told::Gap(..))).collect()
    }

    pub fn has(&self, position: Position) -> bool {
        let told = self.told.lock().unwrap();
        told.iter().any(|told| matches!(told, Told::Event(at, _) if *at == position))
    }

    pub async fn hears(&self, position: Position) {
        let heard = async {
            while !self.has(position) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let heard = tokio::time::timeout(PATIENCE, heard).await;
        heard.unwrap_or_else(|_| {
            let told = self.told();
            let near = told.iter().position(|told| match told {
                Told::Event(at, _) | Told::Gap(_, at, _) => *at >= position,
                Told::From(_) => false,
            });
            let near = near.unwrap_or(told.len());
            panic!(
                "nothing of {position}, but {:?}",
                &told[near.saturating_sub(5)..told.len().min(near + 5)]
            )
        });
    }

    /// P3, P4, P7: what was acknowledged was told, in order and once, or a gap stands where it is
    /// missing.
    pub fn knows_of(&self, acknowledged: &[(Position, String)]) {
        let told = self.told();
        let mut last = None;
        for told in &told {
            match told {
                Told::From(position) => last = Some(*position),
                Told::Event(position, _) => {
                    assert!(last.is_none_or(|last| *position > last), "{position} after {last:?}");
                    if let Some(last) = last {
                        let missed = acknowledged.iter().find(|(other, _)| *other > last && other < position);
                        assert!(missed.is_none(), "a silent gap: {missed:?} between {last} and {position}");
                    }
                    last = Some(*position);
                }
                // What comes after it is after its cursor; what lies before it is what the gap
                // announces.
                Told::Gap(_, cursor, _) => last = Some(last.unwrap_or(*cursor).max(*cursor)),
            }
        }
        for (position, text) in acknowledged {
            let said = told.iter().find(|told| matches!(told, Told::Event(at, _) if at == position));
            assert!(
                said.is_none_or(|said| *said == Told::Event(*position, text.clone())),
                "{position} was given twice"
            );
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}
