//! Listeners: they come, hear, drop, and come back with their cursor.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::clients::{EventStream, Heard, Sse, WebSocket};
use super::data::body_of;
use super::history::Told;
use super::plan::Manner;
use super::random::Random;
use super::shared::{Shared, lock};

/// After so long without a sign of life a listener gives its connection up: three heartbeats.
const SILENCE: Duration = Duration::from_millis(3500);

/// One listener: comes, hears, drops, and comes back with its cursor, over whichever transport and
/// to whichever node.
pub(super) struct Client {
    name: &'static str,
    manner: Manner,
    channels: &'static [&'static str],
    cursors: BTreeMap<&'static str, u64>,
    /// The last id of a stream of several channels, if that was the last stream.
    token: Option<String>,
    random: Random,
    shared: Arc<Shared>,
}

#[derive(Clone, Copy, PartialEq)]
enum StreamKind {
    Sse,
    SseMany,
    WebSocket,
    Socket,
}

impl StreamKind {
    fn name(self) -> &'static str {
        match self {
            StreamKind::Sse => "sse",
            StreamKind::SseMany => "sse of several channels",
            StreamKind::WebSocket => "websocket of a channel",
            StreamKind::Socket => "websocket",
        }
    }
}

impl Client {
    pub(super) fn new(
        name: &'static str,
        manner: Manner,
        channels: &'static [&'static str],
        random: Random,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            name,
            manner,
            channels,
            cursors: BTreeMap::new(),
            token: None,
            random,
            shared,
        }
    }

    /// A visitor that comes and goes, with a name of its own.
    pub(super) fn visitor(channels: &'static [&'static str], random: Random, shared: &Arc<Shared>) -> Self {
        let number = shared.named.fetch_add(1, Ordering::SeqCst);
        let name = Box::leak(format!("visitor{number}").into_boxed_str());
        Self::new(name, Manner::Restless, channels, random, shared.clone())
    }

    /// Comes to this node, hears for so long, and leaves.
    pub(super) async fn visit(&mut self, node: SocketAddr, long: Duration) {
        if let Ok(line) = self.connect(node).await {
            let _ = timeout(long, self.hear(line)).await;
        }
    }

    pub(super) async fn live(mut self) {
        loop {
            let node = self.shared.some_node(&mut self.random).await;
            let connected = self.connect(node).await;
            if let Ok(line) = connected {
                self.hear(line).await;
            }
            let most = if self.shared.in_trouble() && self.random.chance(0.2) {
                3000
            } else {
                200
            };
            sleep(self.random.millis(10, most)).await;
        }
    }

    fn tell(&self, channel: &str, told: Told) {
        let Some(channel) = self.channels.iter().find(|known| **known == channel) else {
            self.shared.wrong(format!("{} heard of {channel}: {told:?}", self.name));
            return;
        };
        let at = self.shared.clock.now();
        lock(&self.shared.told)
            .entry((self.name, channel))
            .or_default()
            .push((at, told));
    }

    /// The path of a stream of all its channels, with the cursor of each where no header has them.
    fn path_of_all(&self, with_cursors: bool) -> String {
        let mut path = "/events?".to_owned();
        for channel in self.channels {
            path += &format!("channel={channel}&");
            if with_cursors {
                let after = self.cursors.get(channel).map_or(String::new(), ToString::to_string);
                path += &format!("after={after}&");
            }
        }
        path
    }

    async fn connect(&mut self, node: SocketAddr) -> std::io::Result<EventStream> {
        let first = self.channels[0];
        let after = |channel: &str| self.cursors.get(channel).copied();
        let text = |channel: &str| after(channel).map_or(String::new(), |after| after.to_string());
        let how = match self.manner {
            Manner::SteadySse => StreamKind::Sse,
            Manner::SteadyWebSocket => StreamKind::WebSocket,
            _ if self.channels.len() == 1 => self.random.pick(&[
                StreamKind::Sse,
                StreamKind::Sse,
                StreamKind::SseMany,
                StreamKind::WebSocket,
                StreamKind::Socket,
            ]),
            _ => self.random.pick(&[
                StreamKind::SseMany,
                StreamKind::SseMany,
                StreamKind::WebSocket,
                StreamKind::Socket,
            ]),
        };
        let all_stand = self.channels.iter().all(|channel| self.cursors.contains_key(channel));
        let token = self.token.take().filter(|_| how == StreamKind::SseMany && all_stand);
        for channel in self.channels {
            let (after, how) = (after(channel), how.name().to_owned());
            self.tell(channel, Told::Asked { after, how });
        }
        let small = self.manner == Manner::Slow;
        let result = match how {
            StreamKind::Sse => {
                let id = after(first).map(|after| after.to_string());
                let path = format!("/channels/{first}");
                match id.as_deref().filter(|_| self.random.chance(0.5)) {
                    Some(id) => Sse::open(node, &format!("{path}?after={id}"), Some(first), None, small).await,
                    None => Sse::open(node, &path, Some(first), id.as_deref(), small).await,
                }
            }
            StreamKind::SseMany => {
                let path = self.path_of_all(token.is_none());
                Sse::open(node, &path, None, token.as_deref(), small).await
            }
            StreamKind::WebSocket => {
                let rest: Vec<_> = self.channels[1..].iter().map(|channel| (*channel, after(channel))).collect();
                let path = format!("/channels/{first}?after={}", text(first));
                WebSocket::open(node, &path, &rest, small).await
            }
            StreamKind::Socket => {
                let all: Vec<_> = self.channels.iter().map(|channel| (*channel, after(channel))).collect();
                WebSocket::open(node, "/socket", &all, small).await
            }
        };
        // Nothing was heard, so the last id is still the last.
        self.token = token;
        self.look(&result);
        result
    }

    fn look<T>(&self, result: &std::io::Result<T>) {
        if let Err(error) = result
            && error.kind() == std::io::ErrorKind::InvalidData
        {
            self.shared.wrong(format!("{} heard nonsense: {error}", self.name));
        }
    }

    /// Until the connection breaks, or the listener has had enough.
    async fn hear(&mut self, mut line: EventStream) {
        let steady = matches!(self.manner, Manner::SteadySse | Manner::SteadyWebSocket);
        let long = if steady { 3_600_000 } else { 6000 };
        let patience = Instant::now() + self.random.millis(100, long);
        let mut id = None;
        while steady || !self.shared.in_trouble() || Instant::now() < patience {
            if self.manner == Manner::Slow && self.shared.in_trouble() && self.random.chance(0.2) {
                let most = if self.random.chance(0.1) { 3000 } else { 100 };
                sleep(self.random.millis(1, most)).await;
            }
            let Ok(result) = timeout(SILENCE, line.next()).await else {
                return;
            };
            self.look(&result);
            match result {
                Err(_) | Ok(Heard::Refused(_)) => return,
                Ok(Heard::Beat | Heard::Members { .. }) => {}
                Ok(Heard::Id(text)) => {
                    id = Some(text);
                    continue;
                }
                Ok(Heard::Confirmed {
                    channel,
                    cursor,
                    resumed,
                }) => {
                    // Not resumed: a gap follows, and until it is there the old cursor counts.
                    if resumed || !self.cursors.contains_key(&*channel) {
                        self.stands(&channel, cursor);
                    }
                    self.tell(&channel, Told::Confirmed { cursor, resumed });
                }
                Ok(Heard::Event { channel, position, data }) => match body_of(&data) {
                    Ok(body) => {
                        self.stands(&channel, position);
                        self.tell(&channel, Told::Event { position, body });
                    }
                    Err(error) => self.shared.wrong(format!("{} heard {error}", self.name)),
                },
                Ok(Heard::Gap {
                    channel,
                    after,
                    cursor,
                    reason,
                }) => {
                    self.stands(&channel, cursor);
                    self.tell(&channel, Told::Gap { after, cursor, reason });
                }
            }
            match (&line, id.take()) {
                // As an EventSource does it: the id counts, whatever else was said.
                (EventStream::Sse(sse), Some(id)) if sse.is_of_one() => match id.parse() {
                    Ok(position) => self.stands(self.channels[0], position),
                    Err(_) => self.shared.wrong(format!("{} cannot read the id {id}", self.name)),
                },
                (EventStream::Sse(_), Some(id)) => self.token = Some(id),
                _ => {}
            }
        }
    }

    fn stands(&mut self, channel: &str, cursor: u64) {
        if let Some(channel) = self.channels.iter().find(|known| **known == channel) {
            self.cursors.insert(channel, cursor);
        }
    }
}
