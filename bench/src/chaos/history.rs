//! What was seen of a run from outside: by publishers, by listeners, and by who kills brokers.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// A point in the one order of everything that this process saw. Microseconds, roughly.
pub type Moment = u64;

/// Gives moments, each later than the one before.
#[derive(Debug)]
pub struct Clock {
    since: Instant,
    last: AtomicU64,
}

impl Default for Clock {
    /// One that begins now.
    fn default() -> Self {
        Self {
            since: Instant::now(),
            last: AtomicU64::new(0),
        }
    }
}

impl Clock {
    /// This moment.
    pub fn now(&self) -> Moment {
        let now = self.since.elapsed().as_micros() as u64;
        let last = self.last.fetch_max(now, Ordering::SeqCst);
        if now > last {
            return now;
        }
        self.last.fetch_add(1, Ordering::SeqCst) + 1
    }
}

/// What the machine's clock says, in the unit of positions.
pub fn wall_clock() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_micros() as u64
}

/// A whole run.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// What the channels were set up as, and what the broker held of them in the end.
    pub channels: BTreeMap<String, Channel>,
    /// Every message that a client tried to publish.
    pub publications: Vec<Publication>,
    /// What each listener was told, once for each of its channels.
    pub listeners: Vec<Listener>,
    /// When the broker was made to lose something. Without any, nothing may be lost.
    pub losses: Vec<Loss>,
    /// When the broker's clock was put forward, so that what came before may be too old at once.
    pub jumps: Vec<Moment>,
    /// Whether clocks differ. A node that is behind does not know of a position that is ahead of it
    /// whether it was given and lost, or never given.
    pub clocks: bool,
    /// When the last page of what history held was read.
    pub ended: Moment,
}

/// One channel.
#[derive(Clone, Debug)]
pub struct Channel {
    /// So many events its history keeps.
    pub keeps: usize,
    /// Its rule lets slow listeners miss what the broker holds.
    pub skips: bool,
    /// For so many microseconds history keeps an event.
    pub age: Option<Moment>,
    /// Its rule gives who comes without a cursor all that history holds.
    pub replays: bool,
    /// What history held in the end: the body at each position.
    pub held: BTreeMap<u64, String>,
}

/// The broker was made to lose something.
#[derive(Clone, Debug)]
pub struct Loss {
    /// Of this channel; else of all.
    pub channel: Option<String>,
    /// What was lost has a position before this one, and what came later a position after it.
    pub position: u64,
    /// When nothing was left of the old.
    pub at: Moment,
    /// Everything was lost; else some of the newest may have been, and what the broker held in the
    /// end tells which.
    pub everything: bool,
}

/// One message that a client wanted to publish, however often it tried.
#[derive(Clone, Debug)]
pub struct Publication {
    /// Where.
    pub channel: String,
    /// What; no two are alike.
    pub body: String,
    /// When the first try began.
    pub began: Moment,
    /// What came of it.
    pub outcome: Outcome,
    /// It belongs to the last round, after everything was put right: everybody must hear it.
    pub last: bool,
}

/// What a publisher knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A 2xx.
    Acknowledged {
        /// When it came.
        at: Moment,
        /// The event's place, if the answer tells it.
        position: Option<u64>,
    },
    /// A 4xx: it did not happen and will not.
    Refused,
    /// A 5xx, or no answer.
    Unknown,
}

/// What one client was told of one channel, over all its connections.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Its name.
    pub name: String,
    /// The channel.
    pub channel: String,
    /// It asked for everything from the beginning.
    pub from_the_beginning: bool,
    /// It left before the end, so that nothing is owed to it from then on.
    pub leaves: bool,
    /// In order.
    pub told: Vec<(Moment, Told)>,
}

/// One thing that a listener asked or was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// Not told but asked: it connects, with the cursor it has.
    Asked {
        /// Its cursor for this channel.
        after: Option<u64>,
        /// The transport and the node.
        how: String,
    },
    /// The subscription stands.
    Confirmed {
        /// The position before the first event that follows.
        cursor: u64,
        /// Whether everything after its own cursor follows.
        resumed: bool,
    },
    /// An event.
    Event {
        /// Its place.
        position: u64,
        /// Its body.
        body: String,
    },
    /// An announced loss.
    Gap {
        /// Where the listener stood, as the server says.
        after: Option<u64>,
        /// Where it stands now.
        cursor: u64,
        /// Why.
        reason: String,
    },
}

impl fmt::Display for History {
    /// All of it in the order of moments, for people who look into a failure.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines: Vec<(Moment, String)> = Vec::new();
        for loss in &self.losses {
            let what = if loss.everything { "everything" } else { "its newest" };
            lines.push((loss.at, format!("broker: loses {what} before {}", loss.position)));
        }
        for publication in &self.publications {
            let Publication {
                channel,
                body,
                began,
                outcome,
                ..
            } = publication;
            lines.push((*began, format!("publisher: {channel} {body} begins, ends as {outcome:?}")));
            if let Outcome::Acknowledged { at, position } = outcome {
                lines.push((*at, format!("publisher: {channel} {body} is acknowledged at {position:?}")));
            }
        }
        for listener in &self.listeners {
            for (at, told) in &listener.told {
                lines.push((*at, format!("{} {}: {told:?}", listener.name, listener.channel)));
            }
        }
        lines.sort();
        for (name, channel) in &self.channels {
            let (count, last) = (channel.held.len(), channel.held.last_key_value());
            lines.push((
                Moment::MAX,
                format!("broker: {name} holds {count} events, the last is {last:?}"),
            ));
        }
        lines
            .iter()
            .try_for_each(|(at, line)| writeln!(f, "{:>10.3} {line}", *at as f64 / 1e3))
    }
}
